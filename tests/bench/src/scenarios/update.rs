//! docs a -> b: from `commit` to live on the first node, and on an additional node when everything is sealed
//! and encoded, beside rsync, atomic and in place. Origin, nodes and peers are new in every run, because
//! otherwise the second run would find everything encoded.

use std::time::Instant;

use syncd_tests::Scene;
use syncd_tests::corpora::Corpus;
use syncd_tests::oracle::assert_same;

use crate::bench::{Bench, in_turn};
use crate::noise::settle;
use crate::peers::durable;
use crate::peers::rsync::{PLAIN, RsyncDaemon, ZSTD};
use crate::processes::cpu_seconds;
use crate::report::Report;
use crate::site::{Site, deploy, on_fresh_disk};
use crate::wire::Wire;

const ADDITIONAL: &str = "syncd, an additional node";
const FIRST: &str = "syncd, commit to live on the first node";
const ATOMIC: &str = "rsync -az --link-dest, swap (atomic)";

pub fn measure(bench: &Bench) -> Report {
    let (name, corpus) = bench.docs();
    let mut report = bench.report("update", "docs a -> b", [(name, &corpus)]);
    let scene = Scene::new("bench-update-peers");
    let (a, b) = (corpus.a(), corpus.b());
    let daemon = RsyncDaemon::start(&scene, &[("b", &b)]);
    for run in 0..=bench.runs() {
        report.begin(run, bench.runs());
        let rsync = |report: &mut Report, options: &'static [&'static str], called: &str| {
            on_fresh_disk(&scene, |replica| {
                RsyncDaemon::prepare_atomic(&a, replica);
                let atomic = format!("rsync {called} --link-dest, swap (atomic)");
                daemon.pull_atomic(options, "b", replica).report(report, name, &atomic);
                let in_place = format!("rsync {called}, in place");
                daemon.pull(options, "b", &replica.join("1")).report(report, name, &in_place);
            });
        };
        in_turn(
            run,
            &mut report,
            &[&|report| rsync(report, PLAIN, "-a"), &|report| rsync(report, ZSTD, "-az"), &|report| {
                own(report, name, &corpus, run)
            }],
        );
    }
    let (time, wire) = (format!("{name}: time"), format!("{name}: wire"));
    let atomic = durable(ATOMIC);
    let beside = "rsync -az --link-dest, swap, sync -f";
    report.target_ratio(&format!("additional node, times {beside}"), 0.4, &time, ADDITIONAL, &atomic);
    report.target_ratio("wire, times rsync -az", 0.55, &wire, ADDITIONAL, ATOMIC);
    report.target_ratio(&format!("commit to live, times {beside}"), 1.2, &time, FIRST, &atomic);
    report.ratio(&time, ADDITIONAL, ATOMIC);
    report.ratio(&time, FIRST, ATOMIC);
    report.ratio(&time, ADDITIONAL, "rsync -az, in place");
    for own in [ADDITIONAL, FIRST] {
        report.ratio(&format!("{name}: CPU"), own, ATOMIC);
    }
    let peak = report.median(&format!("{name}: peak memory"), "syncd-agent, both");
    report.target("peak memory of an agent, first sync included", "MiB", 96.0, peak);
    report
}

fn own(report: &mut Report, name: &str, corpus: &Corpus, run: usize) {
    let [time, wire, cpu] = ["time", "wire", "CPU"].map(|what| format!("{name}: {what}"));
    let mut site = Site::new("update", &corpus.a());
    site.commit();
    site.join_all(&["first", "additional"]);
    deploy(&corpus.b(), &site.tree());
    // Stopped while connected at a, so that the later measurement starts at the announcement.
    site.nodes[1].freeze();
    let agents: Vec<f64> = site.nodes.iter_mut().map(|node| cpu_seconds(node.agent.daemon().pid())).collect();
    let (before, counted) = (site.origin_cpu_seconds(), Wire::now());
    let (took, number) = site.commit_to_live(1);
    report.sample(&time, "s", FIRST, took);
    report.sample(&wire, "MB", FIRST, counted.megabytes());
    let used = site.origin_cpu_seconds() - before;
    report.sample(&cpu, "s", "syncd-origin, commit and first node", used);
    let agent = cpu_seconds(site.nodes[0].agent.daemon().pid()) - agents[0];
    report.sample(&cpu, "s", FIRST, used + agent);
    let first_peak = site.nodes[0].peak_mib();
    site.nodes[0].agent.kill9();
    settle();
    let (before, counted, started) = (site.origin_cpu_seconds(), Wire::now(), Instant::now());
    site.nodes[1].thaw();
    site.nodes[1].wait_live(number);
    report.sample(&time, "s", ADDITIONAL, started.elapsed().as_secs_f64());
    report.sample(&wire, "MB", ADDITIONAL, counted.megabytes());
    let used = site.origin_cpu_seconds() - before;
    report.sample(&cpu, "s", "syncd-origin, additional node", used);
    let agent = cpu_seconds(site.nodes[1].agent.daemon().pid()) - agents[1];
    report.sample(&cpu, "s", ADDITIONAL, used + agent);
    let memory = format!("{name}: peak memory");
    report.sample(&memory, "MiB", "syncd-agent, both", first_peak.max(site.nodes[1].peak_mib()));
    report.sample(&memory, "MiB", "syncd-origin", site.origin_peak_mib());
    if run == 0 {
        assert_same(&site.tree(), &site.nodes[1].agent.live());
    }
}
