//! A directory at the top is renamed: no content should travel.

use std::fs;
use std::path::{Path, PathBuf};

use syncd_tests::Scene;
use syncd_tests::corpora::Corpus;
use syncd_tests::oracle::assert_same;
use walkdir::WalkDir;

use crate::bench::Bench;
use crate::peers::durable;
use crate::peers::rsync::{PLAIN, RsyncDaemon, ZSTD};
use crate::report::Report;
use crate::site::{Site, on_fresh_disk, rename};
use crate::wire::Wire;

const OWN: &str = "syncd, commit to live";

pub fn measure(bench: &Bench) -> Report {
    let (name, corpus) = bench.docs();
    let mut report = bench.report("rename", "A top directory gets another name", [(name, &corpus)]);
    let scene = Scene::new("bench-rename-peers");
    let (a, top) = (corpus.a(), largest(&corpus.a()));
    report.note(format!("{name}: {} becomes {}", top.display(), new_name(&top).display()));
    let (time, wire) = (format!("{name}: time"), format!("{name}: wire"));
    let mut site = Site::new("rename", &a);
    site.commit();
    site.join_all(&["node1"]);
    // Forth and back, so that every run is a rename.
    for run in 0..=bench.runs() {
        report.begin(run, bench.runs());
        let tree = site.tree();
        let (from, to) =
            if run % 2 == 0 { (top.clone(), new_name(&top)) } else { (new_name(&top), top.clone()) };
        rename(&tree.join(from), &tree.join(to));
        let counted = Wire::now();
        let (took, _) = site.commit_to_live(1);
        report.sample(&time, "s", OWN, took);
        report.sample(&wire, "MB", OWN, counted.megabytes());
        assert_same(&tree, &site.nodes[0].agent.live());
        site.rest();
    }
    let (origin, agent) = (site.origin_peak_mib(), site.agents_peak_mib());
    drop(site);
    on_fresh_disk(&scene, |disk| {
        let source = disk.join("source");
        Corpus::copy(&a, &source);
        rename(&source.join(&top), &source.join(new_name(&top)));
        let daemon = RsyncDaemon::start(&scene, &[("source", &source)]);
        for run in 0..=bench.runs() {
            report.begin(run, bench.runs());
            for (options, called) in [(PLAIN, "rsync -a"), (ZSTD, "rsync -az")] {
                let other = Scene::new("bench-rename-target");
                on_fresh_disk(&other, |to| {
                    Corpus::copy(&a, &to.join("a"));
                    daemon.pull(options, "source", &to.join("a")).report(&mut report, name, called);
                });
            }
        }
    });
    report.target_ratio("live, times rsync -a followed by sync -f", 0.25, &time, OWN, &durable("rsync -a"));
    report.ratio(&time, OWN, "rsync -a");
    // Sealed directories, announcement and handshake are not content. One file of the tree would be more than
    // the limit.
    let bytes = report.median(&wire, OWN) * 1e3;
    report.target("all bytes on the wire (content would be megabytes)", "kB", 64.0, bytes);
    report.sample(&format!("{name}: peak memory"), "MiB", "syncd-origin", origin);
    report.sample(&format!("{name}: peak memory"), "MiB", "syncd-agent", agent);
    report
}

/// The directory with the most files: at the top, or below it if there is only one.
fn largest(tree: &Path) -> PathBuf {
    let files = |path: &Path| WalkDir::new(path).into_iter().filter_map(Result::ok).count();
    let directories = |path: &Path| -> Vec<PathBuf> {
        let items = fs::read_dir(path).expect("list a tree").filter_map(Result::ok);
        items.map(|item| item.path()).filter(|path| path.is_dir()).collect()
    };
    let most = directories(tree).into_iter().max_by_key(|path| files(path)).expect("a tree has directories");
    most.strip_prefix(tree).expect("a directory in the tree").to_path_buf()
}

fn new_name(path: &Path) -> PathBuf {
    path.with_extension("renamed")
}
