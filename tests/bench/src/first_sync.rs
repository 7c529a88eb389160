//! First sync of the documentation tree to an additional node, against `rsync -a` and `sync -f`.

use std::process::Command;
use std::time::{Duration, Instant};

use syncd_tests::corpora::{self, Corpus};
use syncd_tests::mounts::Mount;
use syncd_tests::oracle::assert_same;
use syncd_tests::process::run_within;
use syncd_tests::{Agent, Origin, Scene};

use crate::proc_figures::peak_memory_mib;
use crate::report::Report;
use crate::rsync_daemon::RsyncDaemon;

const IMAGE_MEBIBYTES: u64 = 3072;
const TIMES_RSYNC: f64 = 1.5;
const MEMORY_MEBIBYTES: f64 = 128.0;

/// Measures `runs` of each, alternating, after one of each that does not count.
pub fn measure(report: &mut Report, runs: usize) {
    let scene = Scene::new("bench-first");
    let corpus = corpora::docs();
    report.note(format!("docs: {}", corpus.versions()));
    let tree = scene.path("tree");
    Corpus::copy(&corpus.a(), &tree);
    let mut origin = Origin::started(&scene, &tree);
    let started = Instant::now();
    let number = origin.commit();
    report.add("first commit of docs (scan, store, seal)", "s", vec![started.elapsed().as_secs_f64()]);
    let sealing_peak = peak_memory_mib(origin.daemon().pid());
    // A restart, so that the origin's peak below is of serving, not of the first scan.
    origin.stop();
    origin.start();
    let daemon = RsyncDaemon::start(&scene, &tree);

    let (mut rsync, mut rsync_synced, mut syncd, mut agent_peak) = (vec![], vec![], vec![], vec![]);
    for run in 0..=runs {
        eprintln!("first-sync: run {run} of {runs}{}", if run == 0 { " (warm-up)" } else { "" });
        let (copied, synced) = {
            let disk = fresh_disk(&scene, "rsync-disk");
            let destination = disk.directory().join("tree");
            std::fs::create_dir(&destination).expect("create a destination");
            daemon.pull(&destination)
        };
        let (took, peak) = {
            let disk = fresh_disk(&scene, "syncd-disk");
            let mut agent = Agent::new(&scene, &format!("node{run}")).at(&disk.directory().join("replica"));
            agent.join(origin.address(), &origin.token()).expect_success();
            let started = Instant::now();
            agent.start();
            while agent.live_generation() != Some(number) {
                assert!(
                    started.elapsed() < Duration::from_secs(600),
                    "no first sync: {}",
                    agent.daemon().log()
                );
                std::thread::sleep(Duration::from_millis(1));
            }
            let took = started.elapsed().as_secs_f64();
            let peak = peak_memory_mib(agent.daemon().pid());
            if run == 0 {
                assert_same(&tree, &agent.live());
            }
            agent.kill9();
            (took, peak)
        };
        if run > 0 {
            rsync.push(copied);
            rsync_synced.push(copied + synced);
            syncd.push(took);
            agent_peak.push(peak);
        }
    }
    let origin_peak = peak_memory_mib(origin.daemon().pid());
    report.add("rsync -a, daemon, loopback, TCP_NODELAY", "s", rsync);
    let peer = report.add("rsync -a, then sync -f", "s", rsync_synced);
    let own = report.add("syncd, start of the agent to live (durable)", "s", syncd);
    let agent_memory = report.add("peak memory of the agent", "MiB", agent_peak);
    report.add("peak memory of the origin, first commit", "MiB", vec![sealing_peak]);
    report.add("peak memory of the origin, all first syncs", "MiB", vec![origin_peak]);
    report.target("first sync, times rsync -a and sync -f", "x", TIMES_RSYNC, own / peer);
    report.target("peak memory of the agent", "MiB", MEMORY_MEBIBYTES, agent_memory);
    report.target("peak memory of the origin", "MiB", MEMORY_MEBIBYTES, origin_peak.max(sealing_peak));
}

/// A new file system, and nobody's write-back in the way.
fn fresh_disk(scene: &Scene, name: &str) -> Mount {
    let disk = Mount::ext4(&scene.path(name), IMAGE_MEBIBYTES);
    run_within(&mut Command::new("sync"), Duration::from_secs(600)).expect_success();
    disk
}
