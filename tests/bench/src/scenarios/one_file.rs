//! One small file changed in a large and in a small tree: `commit --wait` until live and durable on two
//! agents, beside rsync of that file alone (whose name one must know) and lsyncd. Neither of them is atomic
//! or durable. Everything is on the machine's own file system. Files are deleted only after all measurements.

use std::fs;
use std::time::{Duration, Instant};

use syncd_tests::corpora::{self, Corpus};
use syncd_tests::oracle::assert_same;
use syncd_tests::{Scene, wait};

use crate::bench::Bench;
use crate::noise::sync_all;
use crate::peers::Cost;
use crate::peers::lsyncd::Lsyncd;
use crate::peers::rsync::{PLAIN, RsyncDaemon};
use crate::processes::complete;
use crate::report::Report;
use crate::site::Site;
use crate::wire::Wire;

/// Number of edits in each requested run.
const EDITS_A_RUN: usize = 4;
const SMALL: &str = "many (1k)";
const OWN: &str = "syncd, commit --wait, two agents, durable";
const RSYNC: &str = "rsync of that file, one node";
const LSYNCD: &str = "lsyncd, delay 0, one node, write to visible";

pub fn measure(bench: &Bench) -> Report {
    let (name, many) = bench.many();
    let small = corpora::many(1000);
    let mut report = bench.report("one-file", "One small file changed", [(name, &many), (SMALL, &small)]);
    let edits = bench.runs() * EDITS_A_RUN;
    let large_panel = format!("{name}: time");
    let trees = if bench.quick {
        vec![(SMALL, &small, 1000)]
    } else {
        // The small tree first, so that write-back of the large one cannot delay it.
        vec![(SMALL, &small, 1000), (name, &many, 200_000)]
    };
    let (mut made, mut scenes) = (Vec::new(), Vec::new());
    for (name, corpus, files) in trees {
        made.push(own(&mut report, name, corpus, files, edits));
        let scene = Scene::new("bench-one-file-peers");
        peers(&mut report, &scene, name, corpus, files, edits);
        scenes.push(scene);
        report.ratio(&format!("{name}: time"), OWN, RSYNC);
        report.ratio(&format!("{name}: time"), OWN, LSYNCD);
    }
    let (large, little) = (report.median(&large_panel, OWN), report.median(&format!("{SMALL}: time"), OWN));
    report.target(&format!("one file of {name}, commit --wait to live on two agents"), "ms", 15.0, large);
    report.target(&format!("the same, times that in {SMALL}"), "x", 1.25, large / little);
    report
}

/// Path of a file that is elsewhere in every round.
pub fn page(round: usize, files: usize) -> std::path::PathBuf {
    corpora::page(round * 7919 % files)
}

fn own(report: &mut Report, name: &str, corpus: &Corpus, files: usize, edits: usize) -> Site {
    let mut site = Site::on_machine("one-file", &corpus.a());
    site.commit();
    site.join_all(&["node1", "node2"]);
    for round in 0..=edits {
        report.begin(round, edits);
        Site::edit(&site.tree().join(page(round, files)), round);
        let (cpu, wire, started) = (site.origin_cpu_seconds(), Wire::now(), Instant::now());
        site.commit_live();
        report.sample(&format!("{name}: time"), "ms", OWN, started.elapsed().as_secs_f64() * 1e3);
        report.sample(&format!("{name}: wire"), "kB", OWN, wire.megabytes() * 1e3);
        let used = site.origin_cpu_seconds() - cpu;
        report.sample(&format!("{name}: CPU"), "ms", "syncd-origin, steps of 10 ms", used * 1e3);
        site.rest();
    }
    for node in &site.nodes {
        assert_same(&site.tree(), &node.agent.live());
    }
    let misses: u64 = site.origin.status().agents.iter().map(|agent| agent.spare_misses).sum();
    report.note(format!("{name}: {misses} spare misses in {} commits", edits + 1));
    let memory = format!("{name}: peak memory");
    report.sample(&memory, "MiB", "syncd-origin", site.origin_peak_mib());
    report.sample(&memory, "MiB", "syncd-agent, the larger", site.agents_peak_mib());
    site
}

fn peers(report: &mut Report, scene: &Scene, name: &str, corpus: &Corpus, files: usize, edits: usize) {
    let (source, target) = (scene.path("source"), scene.path("target"));
    for side in [&source, &target] {
        Corpus::copy(&corpus.a(), side);
    }
    let daemon = RsyncDaemon::start(scene, &[("source", &source), ("target", &target)]);
    for round in 0..=edits {
        report.begin(round, edits);
        let page = page(round, files);
        Site::edit(&source.join(&page), round);
        let path = format!("source/{}", page.display());
        let mut command = daemon.command(PLAIN, &path, &target.join(&page));
        let cost = Cost::of(&target, || {
            complete(&mut command);
        });
        report.sample(&format!("{name}: time"), "ms", RSYNC, cost.wall_s * 1e3);
        report.sample(&format!("{name}: time"), "ms", &crate::peers::durable(RSYNC), cost.durable_s * 1e3);
        report.sample(&format!("{name}: wire"), "kB", RSYNC, cost.wire_mb * 1e3);
    }
    let _lsyncd = Lsyncd::start(scene, &source, &daemon, "target");
    for round in 0..=edits {
        report.begin(round, edits);
        sync_all();
        let page = page(edits + 1 + round, files);
        let wanted =
            fs::metadata(source.join(&page)).map_or(0, |m| m.len()) + format!("edit {round}\n").len() as u64;
        let (wire, started) = (Wire::now(), Instant::now());
        Site::edit(&source.join(&page), round);
        wait::within(Duration::from_secs(60), "lsyncd to bring an edit", || {
            fs::metadata(target.join(&page)).is_ok_and(|m| m.len() == wanted).then_some(())
        });
        report.sample(&format!("{name}: time"), "ms", LSYNCD, started.elapsed().as_secs_f64() * 1e3);
        // Its rsync still ends its connection, and lsyncd collects further changes.
        std::thread::sleep(Duration::from_millis(300));
        report.sample(&format!("{name}: wire"), "kB", LSYNCD, wire.megabytes() * 1e3);
    }
}
