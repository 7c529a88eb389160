//! A release of a CMS: from `commit` to live on the first node, beside rsync, then the rollback to the tree
//! that both nodes hold, and the way back. Origin, nodes and peers are new in every run.

use std::path::Path;
use std::time::Instant;

use syncd_tests::Scene;
use syncd_tests::corpora::{self, Corpus};
use syncd_tests::oracle::assert_same;

use crate::bench::{Bench, in_turn};
use crate::peers::durable;
use crate::peers::rsync::{RsyncDaemon, ZSTD};
use crate::processes::cpu_seconds;
use crate::report::Report;
use crate::site::{Site, deploy, on_fresh_disk};
use crate::wire::Wire;

const NAME: &str = "wordpress";
const FIRST: &str = "syncd, commit to live on the first node";
const ROLLBACK: &str = "syncd, rollback --wait, two nodes hold the tree";
const BACK: &str = "syncd, commit --wait of what two nodes hold";
const ATOMIC: &str = "rsync -az --link-dest, swap (atomic)";

pub fn measure(bench: &Bench) -> Report {
    let corpus = corpora::wordpress();
    let mut report = bench.report("release", "A release of a CMS, and back", [(NAME, &corpus)]);
    let scene = Scene::new("bench-release-peers");
    let (a, b) = (corpus.a(), corpus.b());
    let daemon = RsyncDaemon::start(&scene, &[("b", &b)]);
    for run in 0..=bench.runs() {
        report.begin(run, bench.runs());
        let rsync = |report: &mut Report, replica: &Path| {
            RsyncDaemon::prepare_atomic(&a, replica);
            daemon.pull_atomic(ZSTD, "b", replica).report(report, NAME, ATOMIC);
        };
        in_turn(
            run,
            &mut report,
            &[&|report| on_fresh_disk(&scene, |replica| rsync(report, replica)), &|report| {
                own(report, &corpus)
            }],
        );
    }
    let (time, wire) = (format!("{NAME}: time"), format!("{NAME}: wire"));
    let beside = "times rsync -az --link-dest, swap, sync -f";
    report.target_ratio(&format!("commit to live, {beside}"), 0.6, &time, FIRST, &durable(ATOMIC));
    report.ratio(&time, FIRST, ATOMIC);
    report.ratio(&wire, FIRST, ATOMIC);
    report.ratio(&format!("{NAME}: CPU"), FIRST, ATOMIC);
    for held in [ROLLBACK, BACK] {
        let took = report.median(&time, held);
        report.target(held, "ms", 100.0, took * 1e3);
    }
    report
}

fn own(report: &mut Report, corpus: &Corpus) {
    let [time, wire, cpu] = ["time", "wire", "CPU"].map(|what| format!("{NAME}: {what}"));
    let mut site = Site::new("release", &corpus.a());
    site.commit();
    site.join_all(&["first", "second"]);
    deploy(&corpus.b(), &site.tree());
    // Stopped while connected, so that only one node takes part.
    site.nodes[1].freeze();
    let agent = cpu_seconds(site.nodes[0].agent.daemon().pid());
    let (before, counted) = (site.origin_cpu_seconds(), Wire::now());
    let (took, number) = site.commit_to_live(1);
    report.sample(&time, "s", FIRST, took);
    report.sample(&wire, "MB", FIRST, counted.megabytes());
    let origin = site.origin_cpu_seconds() - before;
    report.sample(&cpu, "s", "syncd-origin, commit and first node", origin);
    let agent = cpu_seconds(site.nodes[0].agent.daemon().pid()) - agent;
    report.sample(&cpu, "s", FIRST, origin + agent);
    site.nodes[1].thaw();
    site.nodes[1].wait_live(number);
    site.rest();
    let started = Instant::now();
    site.rollback_live();
    report.sample(&time, "s", ROLLBACK, started.elapsed().as_secs_f64());
    assert_same(&corpus.a(), &site.nodes[0].agent.live());
    site.rest();
    let started = Instant::now();
    site.commit_live();
    report.sample(&time, "s", BACK, started.elapsed().as_secs_f64());
    // Not `b`: rsync leaves a directory's time if only its fraction of a second differs.
    assert_same(&site.tree(), &site.nodes[1].agent.live());
}
