//! Nothing changed: a `commit` without changes, and an idle fleet, beside rsync's walk of the whole tree.

use std::thread;
use std::time::{Duration, Instant};

use syncd_tests::Scene;
use syncd_tests::corpora::Corpus;

use crate::bench::Bench;
use crate::peers::rsync::{PLAIN, RsyncDaemon};
use crate::processes::cpu_seconds;
use crate::report::Report;
use crate::site::{Site, on_fresh_disk};
use crate::wire::Wire;

const COMMITS: usize = 20;
const IDLE: Duration = Duration::from_secs(10);

pub fn measure(bench: &Bench) -> Report {
    let trees = bench.trees();
    let named = trees.iter().map(|(name, corpus)| (*name, corpus));
    let mut report = bench.report("no-change", "Nothing changed", named);
    for (name, corpus) in &trees {
        own(&mut report, name, corpus);
        let scene = Scene::new("bench-no-change-peers");
        let a = corpus.a();
        let daemon = RsyncDaemon::start(&scene, &[("a", &a)]);
        on_fresh_disk(&scene, |to| {
            Corpus::copy(&a, &to.join("a"));
            for run in 0..=bench.runs() {
                report.begin(run, bench.runs());
                let cost = daemon.pull(PLAIN, "a", &to.join("a"));
                report.sample(&format!("{name}: time"), "ms", "rsync -a", cost.wall_s * 1e3);
                report.sample(&format!("{name}: wire"), "kB", "rsync -a", cost.wire_mb * 1e3);
            }
        });
        let commit = format!("syncd, commit of nothing (n = {COMMITS})");
        report.ratio(&format!("{name}: time"), &commit, "rsync -a");
    }
    report
}

fn own(report: &mut Report, name: &str, corpus: &Corpus) {
    let mut site = Site::new("no-change", &corpus.a());
    site.commit();
    site.join_all(&["node1", "node2"]);
    site.commit();
    let commit = format!("syncd, commit of nothing (n = {COMMITS})");
    // Each commit is a separate process, so the origin's own CPU is measured separately.
    let (before, wire) = (site.origin_cpu_seconds(), Wire::now());
    for _ in 0..COMMITS {
        let started = Instant::now();
        site.commit();
        report.sample(&format!("{name}: time"), "ms", &commit, started.elapsed().as_secs_f64() * 1e3);
    }
    let each = (site.origin_cpu_seconds() - before) * 1e3 / COMMITS as f64;
    report.sample(&format!("{name}: wire"), "kB", &commit, wire.megabytes() * 1e3 / COMMITS as f64);
    let panel = format!("{name}: CPU");
    report.sample(&panel, "ms", "syncd-origin, a commit of nothing (mean)", each);
    report.target(&format!("origin CPU of a commit of nothing, {name}"), "ms", 50.0, each);
    let pids: Vec<u32> = site.nodes.iter_mut().map(|node| node.agent.daemon().pid()).collect();
    let agents = || pids.iter().map(|pid| cpu_seconds(*pid)).sum::<f64>();
    let (origin_before, agents_before, wire) = (site.origin_cpu_seconds(), agents(), Wire::now());
    thread::sleep(IDLE);
    let origin = (site.origin_cpu_seconds() - origin_before) * 1e3;
    let agents = (agents() - agents_before) * 1e3;
    report.sample(&panel, "ms", "syncd-origin, 10 idle seconds", origin);
    report.sample(&panel, "ms", "syncd-agent, two, 10 idle seconds", agents);
    report.sample(&format!("{name}: wire"), "kB", "syncd, 10 idle seconds", wire.megabytes() * 1e3);
    // 10 ms is one tick of the kernel's accounting, 0.1 %.
    report.target(&format!("CPU of an idle origin in 10 s, {name}"), "ms", 10.0, origin);
    report.target(&format!("CPU of two idle agents in 10 s, {name}"), "ms", 10.0, agents);
    let memory = format!("{name}: peak memory");
    let (origin, agent) = (site.origin_peak_mib(), site.agents_peak_mib());
    report.sample(&memory, "MiB", "syncd-origin", origin);
    report.sample(&memory, "MiB", "syncd-agent, the larger", agent);
    report.target(&format!("peak memory of the origin, {name}"), "MiB", 150.0, origin);
    report.target(&format!("peak memory of an agent, {name}"), "MiB", 96.0, agent);
}
