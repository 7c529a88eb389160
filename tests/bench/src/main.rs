//! `syncd-bench`: what the main job must reach, measured in one run beside the peers.
//!
//! `cargo run --release --bin syncd-bench -- first-sync idle-commit one-file --json figures.json`
//!
//! Needs root (loop-mounted file systems, so that no run writes where another deleted), rsync, and for the first time
//! the network (real content by apt). Takes ratios, not absolute times, from one machine to another.

mod commits;
mod first_sync;
mod proc_figures;
mod report;
mod rsync_daemon;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};

use crate::report::Report;

/// Measures syncd on real content, beside rsync, in the same run.
#[derive(Debug, Parser)]
#[command(name = "syncd-bench", version)]
struct Options {
    /// What to measure; everything if none is named.
    #[arg(value_enum)]
    scenarios: Vec<Scenario>,
    /// Runs of each side of a comparison; an uncounted one warms up.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Changes of one file in each tree.
    #[arg(long, default_value_t = 25)]
    commits: usize,
    /// Files of the large tree.
    #[arg(long, default_value_t = 200_000)]
    files: usize,
    /// Writes all samples here, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// The documentation tree to an additional node, against rsync -a and sync -f.
    FirstSync,
    /// Origin CPU of a commit of nothing, and of doing nothing, with a large tree.
    IdleCommit,
    /// One changed file, `commit --wait` to live on two agents, in a large and a small tree.
    OneFile,
}

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    if cfg!(debug_assertions) {
        eprintln!("a debug build: its figures mean nothing; use cargo run --release");
    }
    let wanted = |scenario| options.scenarios.is_empty() || options.scenarios.contains(&scenario);
    let mut report = Report::new();
    if wanted(Scenario::FirstSync) {
        first_sync::measure(&mut report, options.runs);
    }
    if wanted(Scenario::IdleCommit) || wanted(Scenario::OneFile) {
        let one_file = wanted(Scenario::OneFile).then_some(options.commits);
        commits::measure(&mut report, options.files, wanted(Scenario::IdleCommit), one_file);
    }
    println!("{report}");
    if let Some(path) = &options.json {
        let json = serde_json::to_string_pretty(&report).context("encode the figures")?;
        std::fs::write(path, json).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(if report.all_reached() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
