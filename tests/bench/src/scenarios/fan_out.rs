//! One update of a real site to 1, 2, 4, ... 32 agents at once. Measures the cost of each additional agent
//! for the origin, beside that of each additional `rsync -a` on the side of the source. Everything runs on
//! this machine, so wall time grows with the disk and cores that the agents share. The origin's CPU is what
//! counts.

use std::process::{Command, Stdio};
use std::time::Instant;

use syncd_tests::Scene;
use syncd_tests::corpora::{self, Corpus};
use syncd_tests::oracle::assert_same;

use crate::bench::Bench;
use crate::noise::settle;
use crate::peers::rsync::RsyncDaemon;
use crate::processes::complete;
use crate::report::Report;
use crate::site::{Site, deploy, fresh_disk, on_fresh_disk};
use crate::statistics::{Summary, slope};
use crate::wire::Wire;

const AXIS: &str = "agents";
const OWN: &str = "syncd";
const RSYNC: &str = "rsync -a, in place";
const CPU: &str = "CPU at the source";

pub fn measure(bench: &Bench) -> Report {
    let corpus = corpora::wordpress();
    let title = "One update to many agents";
    let mut report = bench.report("fan-out", title, [("wordpress", &corpus)]);
    let counts: &[usize] = if bench.quick { &[1, 2, 4] } else { &[1, 2, 4, 8, 16, 32] };
    for run in 0..=bench.runs() {
        report.begin(run, bench.runs());
        // The warm-up does not need 32 agents.
        for count in counts.iter().copied().take(if run == 0 { 2 } else { counts.len() }) {
            eprintln!("fan-out: {count} agents");
            own(&mut report, &corpus, count);
            rsync(&mut report, &corpus, count);
        }
    }
    let mut each = |name: &str| {
        let median = |count: usize| Summary::of(report.samples(CPU, name, Some(count as f64))).median;
        let points: Vec<(f64, f64)> = counts.iter().map(|count| (*count as f64, median(*count))).collect();
        let each = slope(&points);
        report.sample("CPU at the source for each one more", "ms", name, each);
        each
    };
    let (own, peer) = (each(OWN), each(RSYNC));
    let beside = "CPU of the origin for an agent more, times that of one rsync -a at the source";
    report.target(beside, "x", 0.1, own / peer);
    report
}

fn point(report: &mut Report, panel: &str, unit: &'static str, name: &str, count: usize, value: f64) {
    report.point(panel, unit, AXIS, name, count as f64, value);
}

fn own(report: &mut Report, corpus: &Corpus, count: usize) {
    let mut site = Site::new("fan-out", &corpus.a());
    site.commit();
    let disk = fresh_disk(&site.scene, "nodes-disk");
    for number in 0..count {
        let name = format!("node{number}");
        let root = disk.directory().join(&name);
        site.join_at(&name, &root).agent.start();
    }
    site.rest();
    deploy(&corpus.b(), &site.tree());
    let (cpu, wire, started) = (site.origin_cpu_seconds(), Wire::now(), Instant::now());
    site.commit_live();
    let took = started.elapsed().as_secs_f64();
    point(report, "commit to live on all", "s", OWN, count, took);
    point(report, CPU, "ms", OWN, count, (site.origin_cpu_seconds() - cpu) * 1e3);
    point(report, "wire an agent", "MB", OWN, count, wire.megabytes() / count as f64);
    point(report, "peak memory", "MiB", "syncd-origin", count, site.origin_peak_mib());
    point(report, "peak memory", "MiB", "syncd-agent, the largest", count, site.agents_peak_mib());
    assert_same(&site.tree(), &site.nodes[count - 1].agent.live());
    site.nodes.clear();
}

fn rsync(report: &mut Report, corpus: &Corpus, count: usize) {
    let scene = Scene::new("bench-fan-out-peers");
    on_fresh_disk(&scene, |disk| {
        let targets: Vec<_> = (0..count).map(|number| disk.join(number.to_string())).collect();
        for target in &targets {
            Corpus::copy(&corpus.a(), target);
        }
        let b = corpus.b();
        let daemon = RsyncDaemon::start(&scene, &[("b", &b)]);
        settle();
        let (cpu, wire, started) = (daemon.cpu_seconds(), Wire::now(), Instant::now());
        let pulls = targets.iter().map(|target| {
            let mut command: Command = daemon.command(&["-a", "--delete"], "b/", target);
            command.stdout(Stdio::null()).spawn().expect("start rsync")
        });
        for mut pull in pulls.collect::<Vec<_>>() {
            assert!(pull.wait().is_ok_and(|status| status.success()), "an rsync failed");
        }
        point(report, "commit to live on all", "s", RSYNC, count, started.elapsed().as_secs_f64());
        complete(Command::new("sync").arg("-f").arg(disk));
        let name = "rsync -a, in place, sync -f";
        point(report, "commit to live on all", "s", name, count, started.elapsed().as_secs_f64());
        point(report, CPU, "ms", RSYNC, count, (daemon.cpu_seconds() - cpu) * 1e3);
        point(report, "wire an agent", "MB", RSYNC, count, wire.megabytes() / count as f64);
    });
}
