//! `syncd-load`: a thousand agents that follow the protocol, in one process, against one origin in its own.
//!
//! Joins, mutual TLS, control streams and fetches are real; only the replicas are missing. It measures what a
//! fleet costs an origin, and how fast the fleet follows. Run it with `cargo run --release -p syncd-load`.

mod agent;
mod board;
mod cached;
mod enrol;
mod fetch;
mod phases;
mod process_figures;
mod report;
mod screens;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

/// Runs many agents against one origin on this machine.
#[derive(Debug, Clone, Parser)]
#[command(name = "syncd-load", version)]
pub struct Options {
    /// Number of agents.
    #[arg(long, default_value_t = 1000)]
    agents: usize,
    /// Number of files in the tree.
    #[arg(long, default_value_t = 200)]
    files: usize,
    /// Number of small updates, of one changed file each.
    #[arg(long, default_value_t = 10)]
    updates: usize,
    /// New content of the medium update, in MiB. It does not compress.
    #[arg(long, default_value_t = 4)]
    medium_mib: usize,
    /// Seconds with nothing but heartbeats.
    #[arg(long, default_value_t = 30)]
    idle_s: u64,
    /// Measure instead one update of this many MiB through one cache: a published tree, nginx and Varnish.
    #[arg(long, value_name = "MIB")]
    cached: Option<usize>,
    /// Browsers that keep the page of the fleet open. The origin serves at most 32.
    #[arg(long, default_value_t = 20)]
    screens: usize,
    /// Write all figures to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Open files of one agent in each process: at most two connections.
const OPEN_FILES_PER_AGENT: u64 = 2;
const OPEN_FILES_BESIDES: u64 = 512;

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    if cfg!(debug_assertions) {
        eprintln!("a debug build: its figures mean little; use cargo run --release");
    }
    process_figures::raise_open_files(options.agents as u64 * OPEN_FILES_PER_AGENT + OPEN_FILES_BESIDES)?;
    let report = match options.cached {
        Some(mebibytes) => cached::run(&options, mebibytes)?,
        None => phases::run(&options)?,
    };
    println!("{report}");
    if let Some(path) = &options.json {
        let json = serde_json::to_string_pretty(&report).context("encode the figures")?;
        std::fs::write(path, json).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(if report.all_reached() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
