//! `syncd-endurance`: one origin and two agents under continuous commits, with one agent killed repeatedly.
//!
//! It shows that memory, descriptors, DATA and ROOT stay bounded. The long run is `cargo run --release -p
//! syncd-endurance` (15 minutes); the suite `endurance` runs it for 20 s. The programs are real, each in a
//! process of its own.

mod bounds;
mod figures;

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Parser;
use syncd_tests::edits::{Edits, small_site};
use syncd_tests::oracle::assert_same;
use syncd_tests::replica::assert_no_litter;
use syncd_tests::{Agent, Origin, Scene, require_program};

use bounds::Series;

/// Commits and kills continuously, and prints which figures stayed within their bounds.
#[derive(Debug, Clone, Parser)]
#[command(name = "syncd-endurance", version)]
struct Options {
    /// Duration of the commits.
    #[arg(long, default_value = "15m", value_name = "TIME")]
    duration: humantime::Duration,
    /// Interval between the starts of two commits. A commit that takes longer is followed at once.
    #[arg(long, default_value = "200ms", value_name = "TIME")]
    commit_every: humantime::Duration,
    /// Interval between two SIGKILLs of the agent `web1`.
    #[arg(long, default_value = "30s", value_name = "TIME")]
    kill_every: humantime::Duration,
    /// Number of files in the tree.
    #[arg(long, default_value_t = 200)]
    files: usize,
}

/// Largest number of random edits for each commit.
const EDITS: u64 = 4;
/// Number of samples in a run.
const SAMPLES: u32 = 60;

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    require_program("rsync", "rsync");
    let scene = Scene::new("endurance");
    let tree = scene.path("tree");
    small_site(&tree, options.files);
    // No history is kept, so DATA stays level once garbage is collected.
    let serve = ["--trigger", "manual", "--keep-generations", "20", "--keep-for", "0"];
    let mut origin = Origin::create(&scene, &tree).with_options(&serve);
    origin.start();
    let mut killed = Agent::started(&scene, &origin, "web1");
    let mut steady = Agent::started(&scene, &origin, "web2");
    origin.wait_connected(&["web1", "web2"]);
    let first = origin.commit_live();

    let mut series = Series::default();
    let mut edits = Edits::new(&tree, 1);
    let (started, duration) = (Instant::now(), Duration::from(options.duration));
    let (mut kills, mut newest) = (0, first);
    let (mut next_sample, mut next_kill) = (Duration::ZERO, Duration::from(options.kill_every));
    while started.elapsed() < duration {
        let next_commit = Instant::now() + Duration::from(options.commit_every);
        edits.round(EDITS);
        newest = origin.commit();
        if started.elapsed() >= next_kill {
            killed.kill9();
            killed.start();
            kills += 1;
            next_kill += Duration::from(options.kill_every);
        }
        if started.elapsed() >= next_sample {
            series.push(figures::sample(&mut origin, &mut steady, &killed)?);
            next_sample += duration / SAMPLES;
        }
        thread::sleep(next_commit.saturating_duration_since(Instant::now()));
    }
    println!(
        "{} commits and {kills} kills in {}",
        newest - first,
        humantime::format_duration(Duration::from_secs(started.elapsed().as_secs()))
    );
    println!("{series}");

    // At the end everything is right, and nothing is left over.
    for agent in [&killed, &steady] {
        agent.wait_live(newest);
        assert_same(&tree, &agent.live());
        assert_no_litter(agent);
        let verified = agent.cli("verify", &["--json"]).expect_success().json();
        ensure!(verified["drifted"] == 0, "{} has drifted: {verified}", agent.name);
    }
    Ok(if series.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
