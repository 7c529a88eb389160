//! Cost follows the change: the same one-file commit in trees of 1,000, 10,000, 100,000 (and a million)
//! files, beside costs that must grow with the tree (first seal, first sync), and rsync, whose every cost
//! does.

use std::time::Instant;

use syncd_tests::{Scene, corpora};

use super::every_file::touch_all;
use super::one_file::page;
use crate::bench::Bench;
use crate::noise::settle;
use crate::peers::rsync::{PLAIN, RsyncDaemon};
use crate::report::Report;
use crate::site::{FirstSeal, Site, on_fresh_disk};
use crate::statistics::Summary;

const AXIS: &str = "files";
const COMMIT: &str = "one changed file";
const CPU: &str = "CPU for one changed file";
const OWN: &str = "syncd, commit --wait, one agent, durable";
const NOTHING: &str = "syncd, commit of nothing";

pub fn measure(bench: &Bench) -> Report {
    let mut report = bench.report("growth", "Growth with the size of the tree", []);
    let mut sizes: Vec<usize> = if bench.quick { vec![500, 2000] } else { vec![1000, 10_000, 100_000] };
    if bench.million {
        sizes.push(1_000_000);
    }
    for &files in &sizes {
        eprintln!("growth: {files} files");
        own(bench, &mut report, files);
        rsync(bench, &mut report, files);
    }
    if let [first, .., last] = sizes[..] {
        for (panel, name) in
            [(COMMIT, OWN), (COMMIT, NOTHING), (CPU, "syncd-origin"), (CPU, "syncd-agent, spares included")]
        {
            let median = |files: usize| Summary::of(report.samples(panel, name, Some(files as f64))).median;
            let ratio = median(last) / median(first);
            report.note(format!("{panel}, {name}: {last} files cost {ratio:.2} times what {first} do"));
        }
    }
    let peak =
        |files: usize| Summary::of(report.samples("peak memory", "syncd-origin", Some(files as f64))).median;
    if bench.million {
        let at = peak(1_000_000);
        report.target("peak memory of the origin at a million files", "MiB", 600.0, at);
    }
    let agents = sizes.iter().map(|&n| report.samples("peak memory", "syncd-agent", Some(n as f64)));
    let largest = agents.flatten().copied().fold(0.0, f64::max);
    report.target("peak memory of the agent, all sizes", "MiB", 96.0, largest);
    report
}

fn own(bench: &Bench, report: &mut Report, files: usize) {
    let x = files as f64;
    let mut site = Site::stopped("growth", |tree| {
        std::fs::create_dir(tree).expect("create a tree");
        corpora::grow(tree, files);
    });
    let FirstSeal { number, took_s, .. } = site.first_seal();
    report.point("whole tree", "s", AXIS, "syncd, first seal", x, took_s);
    site.origin.start();
    let node = site.join("node1");
    settle();
    let started = Instant::now();
    node.agent.start();
    node.wait_live(number);
    report.point("whole tree", "s", AXIS, "syncd, first sync", x, started.elapsed().as_secs_f64());
    site.rest();
    for run in 0..=bench.runs() * 2 {
        report.begin(run, bench.runs() * 2);
        let started = Instant::now();
        site.commit();
        report.point(COMMIT, "ms", AXIS, NOTHING, x, started.elapsed().as_secs_f64() * 1e3);
        let agent = site.nodes[0].agent.daemon().pid();
        let before = (site.origin_cpu_seconds(), crate::processes::cpu_seconds(agent));
        Site::edit(&site.tree().join(page(run, files)), run);
        let started = Instant::now();
        site.commit_live();
        report.point(COMMIT, "ms", AXIS, OWN, x, started.elapsed().as_secs_f64() * 1e3);
        site.rest();
        let origin = (site.origin_cpu_seconds() - before.0) * 1e3;
        report.point(CPU, "ms", AXIS, "syncd-origin", x, origin);
        let agent = (crate::processes::cpu_seconds(agent) - before.1) * 1e3;
        report.point(CPU, "ms", AXIS, "syncd-agent, spares included", x, agent);
    }
    touch_all(&site.tree(), 1);
    let (took, _) = site.commit_to_live(1);
    report.point("whole tree", "s", AXIS, "syncd, new times of all files, commit to live", x, took);
    report.point("peak memory", "MiB", AXIS, "syncd-origin", x, site.origin_peak_mib());
    report.point("peak memory", "MiB", AXIS, "syncd-agent", x, site.agents_peak_mib());
}

fn rsync(bench: &Bench, report: &mut Report, files: usize) {
    let x = files as f64;
    let scene = Scene::new("bench-growth-peers");
    on_fresh_disk(&scene, |disk| {
        let (source, target) = (disk.join("source"), disk.join("target"));
        for side in [&source, &target] {
            std::fs::create_dir(side).expect("create a directory");
        }
        corpora::grow(&source, files);
        let daemon = RsyncDaemon::start(&scene, &[("source", &source)]);
        let first = daemon.pull(PLAIN, "source", &target);
        report.point("whole tree", "s", AXIS, "rsync -a, sync -f", x, first.durable_s);
        for run in 0..=bench.runs() {
            report.begin(run, bench.runs());
            Site::edit(&source.join(page(run, files)), run);
            let cost = daemon.pull(PLAIN, "source", &target);
            report.point(COMMIT, "ms", AXIS, "rsync -a, in place", x, cost.wall_s * 1e3);
        }
    });
}
