//! `syncd-bench`: measures what syncd costs beside its peers, in the same run.
//!
//! `cargo run --release -p syncd-bench -- [SCENARIO...] [--runs N] [--quick] [--out DIR]` prints medians,
//! spread and ratios, marks targets as met or missed, and writes `SCENARIO.json` and `SCENARIO.svg`.
//! docs/performance.md describes each scenario, and how noise is avoided.

mod bench;
mod noise;
mod peers;
mod plot;
mod processes;
mod report;
mod scenarios;
mod site;
mod statistics;
mod surroundings;
mod versions;
mod wire;

use std::fs;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use serde::Serialize;

use crate::bench::Bench;
use crate::report::Report;
use crate::versions::Versions;

/// Contents of a scenario's JSON file.
#[derive(Serialize)]
struct Record<'a> {
    versions: &'a Versions,
    quick: bool,
    #[serde(flatten)]
    report: &'a Report,
}

fn main() -> anyhow::Result<ExitCode> {
    let bench = Bench::parse();
    if !surroundings::are_ready() {
        return surroundings::enter(&bench);
    }
    if cfg!(debug_assertions) {
        eprintln!("a debug build: its figures mean nothing; use cargo run --release");
    }
    let versions = Versions::collect();
    println!("{versions}");
    let out = bench.out();
    fs::create_dir_all(&out).with_context(|| format!("make {}", out.display()))?;
    let (mut met, mut missed) = (0, 0);
    for scenario in bench.wanted() {
        let report = scenarios::measure(scenario, &bench);
        println!("{report}");
        let path = |extension: &str| out.join(&report.scenario).with_extension(extension);
        let record = Record { versions: &versions, quick: bench.quick, report: &report };
        let json = serde_json::to_string_pretty(&record).context("encode the figures")?;
        fs::write(path("json"), json + "\n").with_context(|| format!("write to {}", out.display()))?;
        if let Err(error) = plot::draw(&report, &path("svg")) {
            eprintln!("no plot of {}: {error}", report.scenario);
        }
        let (now_met, now_missed) = report.met_and_missed();
        (met, missed) = (met + now_met, missed + now_missed);
    }
    println!("{met} targets met, {missed} missed; JSON and plots are in {}", out.display());
    Ok(if missed == 0 || bench.quick { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
