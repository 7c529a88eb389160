//! First sync of a sealed tree on an additional node, from the start of the agent to live and durable, beside
//! the alternatives of a user and the limits of the machine. Every program writes to a new disk.

use std::cell::RefCell;
use std::path::Path;
use std::time::Instant;

use syncd_tests::Scene;
use syncd_tests::corpora::Corpus;
use syncd_tests::oracle::assert_same;

use crate::bench::{Bench, in_turn};
use crate::noise::settle;
use crate::peers::rsync::{PLAIN, RsyncDaemon, ZSTD};
use crate::peers::{casync, copy, durable, syncthing};
use crate::report::Report;
use crate::site::{Site, deploy, on_fresh_disk};
use crate::wire::Wire;

const OWN: &str = "syncd, start of the agent to live";
const TIMES_RSYNC: f64 = 0.7;
const AGENT_MEBIBYTES: f64 = 96.0;
const ORIGIN_MEBIBYTES: f64 = 150.0;

pub fn measure(bench: &Bench) -> Report {
    let trees = bench.trees();
    let named = trees.iter().map(|(name, corpus)| (*name, corpus));
    let mut report = bench.report("first-sync", "First sync of a sealed tree to an additional node", named);
    for (name, corpus) in &trees {
        tree(bench, &mut report, name, corpus);
    }
    report
}

fn tree(bench: &Bench, report: &mut Report, name: &str, corpus: &Corpus) {
    let a = corpus.a();
    let mut site = Site::new("first-sync", &a);
    let number = site.commit();
    // A restart, so that the origin's peak memory is that of serving, not of the first scan.
    site.origin.stop();
    site.origin.start();
    let site = RefCell::new(site);
    let scene = Scene::new("bench-first-sync-peers");
    let b = corpus.b();
    let modules = [("a", a.as_path()), ("b", b.as_path())];
    let daemon = RsyncDaemon::start(&scene, &modules[..if b.exists() { 2 } else { 1 }]);
    let store = scene.path("casync");
    casync::make(&a, &store).report(report, name, "casync make (once)");
    if bench.slow_peers {
        let cost = on_fresh_disk(&scene, |to| syncthing::first_sync(&scene, &a, to));
        cost.report(report, name, "syncthing (once), from the start of both");
    }
    for run in 0..=bench.runs() {
        report.begin(run, bench.runs());
        in_turn(
            run,
            report,
            &[
                &|report| {
                    let cost = on_fresh_disk(&scene, |to| daemon.pull(PLAIN, "a", to));
                    cost.report(report, name, "rsync -a");
                },
                &|report| {
                    let cost = on_fresh_disk(&scene, |to| daemon.pull(ZSTD, "a", to));
                    cost.report(report, name, "rsync -az, zstd");
                },
                &|report| own(&mut site.borrow_mut(), report, name, "node", run, number),
                &|report| {
                    on_fresh_disk(&scene, |to| copy::cp(&a, &to.join("a"))).report(
                        report,
                        name,
                        "cp -a, no network",
                    );
                },
                &|report| {
                    on_fresh_disk(&scene, |to| copy::tar(&a, to)).report(
                        report,
                        name,
                        "tar | tar, no network",
                    );
                },
                &|report| {
                    let cost = on_fresh_disk(&scene, |to| casync::extract(&store, &to.join("a")));
                    cost.report(report, name, "casync extract, no network");
                },
            ],
        );
    }
    let (time, wire, memory) = (panel(name, "time"), panel(name, "wire"), panel(name, "peak memory"));
    let origin_peak = site.borrow_mut().origin_peak_mib();
    report.sample(&memory, "MiB", "syncd-origin, all first syncs", origin_peak);
    let beside = format!("first sync of {name}, times rsync -a followed by sync -f");
    report.target_ratio(&beside, TIMES_RSYNC, &time, OWN, &durable("rsync -a"));
    report.ratio(&time, OWN, "rsync -a");
    report.ratio(&time, OWN, &durable("rsync -az, zstd"));
    report.ratio(&panel(name, "CPU"), OWN, "rsync -a");
    let beside = format!("wire of {name}, times rsync -az");
    report.target_ratio(&beside, 1.0, &wire, OWN, "rsync -az, zstd");
    let agent_peak = report.median(&memory, "syncd-agent");
    report.target(&format!("peak memory of the agent, {name}"), "MiB", AGENT_MEBIBYTES, agent_peak);
    report.target(&format!("peak memory of the origin, {name}"), "MiB", ORIGIN_MEBIBYTES, origin_peak);
    if b.exists() {
        late(bench, report, &scene, &daemon, &site, name, &b);
    }
}

/// The same for a tree that is the second generation: content shared with the first one is in the first one's
/// frames.
fn late(
    bench: &Bench,
    report: &mut Report,
    scene: &Scene,
    daemon: &RsyncDaemon,
    site: &RefCell<Site>,
    name: &str,
    version: &Path,
) {
    let name = &format!("{name} b, generation 2");
    deploy(version, &site.borrow().tree());
    let number = site.borrow().commit();
    for run in 0..=bench.runs() {
        report.begin(run, bench.runs());
        let rsync = |report: &mut Report, options: &'static [&'static str], called: &str| {
            on_fresh_disk(scene, |to| daemon.pull(options, "b", to)).report(report, name, called);
        };
        in_turn(
            run,
            report,
            &[
                &|report| rsync(report, PLAIN, "rsync -a"),
                &|report| rsync(report, ZSTD, "rsync -az, zstd"),
                &|report| {
                    own(&mut site.borrow_mut(), report, name, "late", run, number);
                },
            ],
        );
    }
    report.ratio(&panel(name, "time"), OWN, &durable("rsync -a"));
    report.ratio(&panel(name, "CPU"), OWN, "rsync -a");
    let beside = format!("wire of {name}, times rsync -az");
    report.target_ratio(&beside, 1.0, &panel(name, "wire"), OWN, "rsync -az, zstd");
}

fn panel(name: &str, what: &str) -> String {
    format!("{name}: {what}")
}

fn own(site: &mut Site, report: &mut Report, name: &str, node: &str, run: usize, number: u64) {
    let tree = site.tree();
    let cpu = site.origin_cpu_seconds();
    let node = site.join(&format!("{node}{run}"));
    settle();
    let (wire, started) = (Wire::now(), Instant::now());
    node.agent.start();
    node.wait_live(number);
    report.sample(&panel(name, "time"), "s", OWN, started.elapsed().as_secs_f64());
    report.sample(&panel(name, "wire"), "MB", OWN, wire.megabytes());
    report.sample(&panel(name, "peak memory"), "MiB", "syncd-agent", node.peak_mib());
    let agent_cpu = crate::processes::cpu_seconds(node.agent.daemon().pid());
    if run == 0 {
        assert_same(&tree, &node.agent.live());
    }
    site.nodes.clear();
    let origin_cpu = site.origin_cpu_seconds() - cpu;
    report.sample(&panel(name, "CPU"), "s", OWN, agent_cpu + origin_cpu);
    report.sample(&panel(name, "CPU"), "s", "syncd-origin of it", origin_cpu);
}
