//! The origin's first seal of a tree, durable, beside a copy of the tree.

use syncd_tests::Scene;
use syncd_tests::corpora::Corpus;

use crate::bench::{Bench, in_turn};
use crate::peers::{copy, durable};
use crate::report::Report;
use crate::site::{Site, on_fresh_disk};

const OWN: &str = "syncd, start of the origin to sealed";
const COPY: &str = "cp -a";

pub fn measure(bench: &Bench) -> Report {
    let trees = bench.trees();
    let named = trees.iter().map(|(name, corpus)| (*name, corpus));
    let mut report = bench.report("first-seal", "The origin's first seal of a tree", named);
    let scene = Scene::new("bench-first-seal-peers");
    for (name, corpus) in &trees {
        let time = format!("{name}: time");
        for run in 0..=bench.runs() {
            report.begin(run, bench.runs());
            in_turn(
                run,
                &mut report,
                &[
                    &|report| {
                        let cost = on_fresh_disk(&scene, |to| copy::cp(&corpus.a(), &to.join("a")));
                        cost.report(report, name, COPY);
                    },
                    &|report| own(report, name, corpus),
                ],
            );
        }
        let beside = format!("first seal of {name}, times cp -a followed by sync -f");
        report.target_ratio(&beside, 1.0, &time, OWN, &durable(COPY));
        report.ratio(&time, OWN, COPY);
        report.ratio(&format!("{name}: CPU"), OWN, COPY);
        let memory = format!("{name}: peak memory");
        let peak = report.median(&memory, "syncd-origin");
        report.target(&format!("peak memory of the origin, {name}"), "MiB", 150.0, peak);
    }
    report
}

fn own(report: &mut Report, name: &str, corpus: &Corpus) {
    let mut site = Site::stopped("first-seal", |tree| Corpus::copy(&corpus.a(), tree));
    let seal = site.first_seal();
    report.sample(&format!("{name}: time"), "s", OWN, seal.took_s);
    report.sample(&format!("{name}: CPU"), "s", OWN, seal.cpu_s);
    let data = syncd_tests::process::tool("du", ["-sm".as_ref(), site.origin.data.as_os_str()]).stdout;
    let stored = data.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(f64::NAN);
    report.sample(&format!("{name}: store"), "MiB", "syncd-origin, on disk", stored);
    report.sample(&format!("{name}: peak memory"), "MiB", "syncd-origin", seal.peak_mib);
}
