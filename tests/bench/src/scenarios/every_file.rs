//! Every file of a tree changes at once: a new checkout that changes all times, and an edit of all files.
//! Measures the time from `commit` to live on a node, beside rsync, atomic and in place.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use syncd_tests::Scene;
use syncd_tests::corpora::Corpus;
use syncd_tests::oracle::assert_same;
use walkdir::WalkDir;

use crate::bench::Bench;
use crate::noise::settle;
use crate::peers::rsync::{PLAIN, RsyncDaemon, ZSTD};
use crate::processes::cpu_seconds;
use crate::report::Report;
use crate::site::{Site, on_fresh_disk};
use crate::wire::Wire;

const OWN: &str = "syncd, commit to live";
const ATOMIC: &str = "rsync -a --link-dest, swap (atomic)";

pub fn measure(bench: &Bench) -> Report {
    let (name, corpus) = bench.many();
    let mut report = bench.report("every-file", "Every file of a tree changed", [(name, &corpus)]);
    for (what, change) in [("new times", touch_all as fn(&Path, usize)), ("edited", edit_all)] {
        let panel = format!("{name}, {what}");
        let mut site = Site::new("every-file", &corpus.a());
        site.commit();
        site.join_all(&["node1"]);
        // A restart, so that the first sync is not counted.
        site.nodes[0].agent.kill9();
        site.nodes[0].agent.start();
        site.rest();
        for run in 0..=bench.runs() {
            report.begin(run, bench.runs());
            change(&site.tree(), run);
            let agent = site.nodes[0].agent.daemon().pid();
            let (before, counted) = (site.origin_cpu_seconds() + cpu_seconds(agent), Wire::now());
            let (took, _) = site.commit_to_live(1);
            report.sample(&format!("{panel}: time"), "s", OWN, took);
            report.sample(&format!("{panel}: wire"), "MB", OWN, counted.megabytes());
            let used = site.origin_cpu_seconds() + cpu_seconds(agent) - before;
            report.sample(&format!("{panel}: CPU"), "s", OWN, used);
            site.rest();
        }
        assert_same(&site.tree(), &site.nodes[0].agent.live());
        let (origin, agent) = (site.origin_peak_mib(), site.agents_peak_mib());
        report.sample(&format!("{panel}: peak memory"), "MiB", "syncd-origin", origin);
        report.sample(&format!("{panel}: peak memory"), "MiB", "syncd-agent", agent);
        report.target(&format!("peak memory of the agent, {what}"), "MiB", 96.0, agent);
        report.target(&format!("peak memory of the origin, {what}"), "MiB", 150.0, origin);
        drop(site);
        peers(bench, &mut report, &panel, &corpus, change);
        report.ratio(&format!("{panel}: time"), OWN, ATOMIC);
        report.ratio(&format!("{panel}: time"), OWN, "rsync -a, in place");
        report.ratio(&format!("{panel}: wire"), OWN, "rsync -az, in place");
    }
    report
}

fn peers(bench: &Bench, report: &mut Report, panel: &str, corpus: &Corpus, change: fn(&Path, usize)) {
    let scene = Scene::new("bench-every-file-peers");
    on_fresh_disk(&scene, |disk| {
        let source = disk.join("source");
        Corpus::copy(&corpus.a(), &source);
        change(&source, 0);
        let daemon = RsyncDaemon::start(&scene, &[("source", &source)]);
        for run in 0..=bench.runs().min(2) {
            report.begin(run, bench.runs().min(2));
            let other = Scene::new("bench-every-file-target");
            on_fresh_disk(&other, |replica| {
                RsyncDaemon::prepare_atomic(&corpus.a(), replica);
                daemon.pull_atomic(PLAIN, "source", replica).report(report, panel, ATOMIC);
                daemon.pull(ZSTD, "source", &replica.join("1")).report(report, panel, "rsync -az, in place");
            });
            on_fresh_disk(&other, |replica| {
                Corpus::copy(&corpus.a(), &replica.join("1"));
                daemon.pull(PLAIN, "source", &replica.join("1")).report(report, panel, "rsync -a, in place");
            });
        }
    });
}

fn each_file(tree: &Path, change: impl Fn(&Path)) {
    for entry in WalkDir::new(tree) {
        let entry = entry.expect("list a tree");
        if entry.file_type().is_file() {
            change(entry.path());
        }
    }
    settle();
}

/// Sets new times on all files, and waits for write-back.
pub fn touch_all(tree: &Path, round: usize) {
    let time = SystemTime::now() + Duration::from_secs(round as u64);
    each_file(tree, |path| {
        let file = File::options().write(true).open(path).expect("open a file");
        file.set_modified(time).expect("set the time of a file");
    });
}

fn edit_all(tree: &Path, round: usize) {
    each_file(tree, |path| {
        let mut content = fs::read(path).expect("read a file");
        content.extend_from_slice(format!("\n<p>footer {round}</p>\n").as_bytes());
        fs::write(path, content).expect("write a file");
    });
}
