//! `syncd-endurance`: one origin and two agents under commits without pause, one agent killed again and again.
//!
//! It shows that memory, descriptors, DATA and ROOT stay bounded. `cargo run --release -p syncd-endurance` is the long
//! run (15 minutes); the suite `endurance` runs it for 20 s. The programs are the real ones, each in a process of its own.

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

/// Commits and kills without pause, and prints what stayed within which bound.
#[derive(Debug, Clone, Parser)]
#[command(name = "syncd-endurance", version)]
struct Options {
    /// How long commits go on.
    #[arg(long, default_value = "15m", value_name = "TIME")]
    duration: humantime::Duration,
    /// From the start of one commit to the start of the next; a commit that takes longer is followed at once.
    #[arg(long, default_value = "200ms", value_name = "TIME")]
    commit_every: humantime::Duration,
    /// From one SIGKILL of the agent `web1` to the next.
    #[arg(long, default_value = "30s", value_name = "TIME")]
    kill_every: humantime::Duration,
    /// Files of the tree.
    #[arg(long, default_value_t = 200)]
    files: usize,
}

/// Random operations a commit, at most.
const EDITS: u64 = 4;
/// Samples that a run takes.
const SAMPLES: u32 = 60;

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    require_program("rsync", "rsync");
    let scene = Scene::new("endurance");
    let tree = scene.path("tree");
    small_site(&tree, options.files);
    // Without history, so that DATA is to stay level once garbage is collected.
    let serve = ["--trigger", "manual", "--keep-generations", "20", "--keep-days", "0"];
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

    // Everything is right in the end, and nothing is left over.
    for agent in [&killed, &steady] {
        agent.wait_live(newest);
        assert_same(&tree, &agent.live());
        assert_no_litter(agent);
        let verified = agent.cli("verify", &["--json"]).expect_success().json();
        ensure!(verified["drifted"] == 0, "{} has drifted: {verified}", agent.name);
    }
    Ok(if series.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
