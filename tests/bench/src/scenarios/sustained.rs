//! One changed file for each commit, at 1 and at 10 commits per second, until live and durable on two agents.
//! Also counts updates without a ready spare.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use syncd_tests::oracle::assert_same;

use super::one_file::page;
use crate::bench::Bench;
use crate::processes::cpu_seconds;
use crate::report::Report;
use crate::site::Site;

pub fn measure(bench: &Bench) -> Report {
    let (name, many) = bench.many();
    let mut report = bench.report("sustained", "One changed file a commit, sustained", [(name, &many)]);
    let files = if bench.quick { 1000 } else { 200_000 };
    let seconds = if bench.quick { 3 } else { 30 };
    for rate in [1, 10] {
        eprintln!("sustained: {rate} commits a second for twice {seconds} s");
        let mut site = Site::new("sustained", &many.a());
        site.commit();
        site.join_all(&["node1", "node2"]);
        at_rate(&mut report, &mut site, files, rate, seconds);
    }
    report
}

fn misses(site: &Site) -> BTreeMap<String, u64> {
    let agents = site.origin.status().agents.into_iter();
    agents.map(|agent| (agent.name.to_string(), agent.spare_misses)).collect()
}

fn at_rate(report: &mut Report, site: &mut Site, files: usize, rate: usize, seconds: u64) {
    let called = format!("syncd, {rate} commits a second");
    let pids: Vec<u32> = site.nodes.iter_mut().map(|node| node.agent.daemon().pid()).collect();
    let agents = || pids.iter().map(|pid| cpu_seconds(*pid)).sum::<f64>();
    let (origin_before, agents_before) = (site.origin_cpu_seconds(), agents());
    let mut commits = 0;
    // At first the trees to build on run out and more are made; later, retired trees are reused.
    for phase in ["the first half", "the second half"] {
        let misses_before = misses(site);
        let (phase_started, commits_before) = (Instant::now(), commits);
        while phase_started.elapsed() < Duration::from_secs(seconds) {
            // A late commit is not made up for: the next one starts when the one before is live.
            let due = Duration::from_secs_f64((commits - commits_before) as f64 / rate as f64);
            thread::sleep(due.saturating_sub(phase_started.elapsed()));
            Site::edit(&site.tree().join(page(commits, files)), commits);
            commits += 1;
            let asked = Instant::now();
            site.commit_live();
            report.sample(
                "commit --wait to live on two agents",
                "ms",
                &format!("{called}, {phase}"),
                asked.elapsed().as_secs_f64() * 1e3,
            );
        }
        let commits = commits - commits_before;
        let live = commits as f64 / phase_started.elapsed().as_secs_f64();
        report.sample("commits a second that were live", "1/s", &format!("{called}, {phase}"), live);
        for (name, misses) in misses(site) {
            let misses = misses - misses_before[&name];
            let share = misses as f64 * 100.0 / commits as f64;
            report.sample("updates that found no spare", "%", &format!("{called}, {phase}"), share);
            report.note(format!("{called}, {phase}: {misses} of {commits} updates found no spare on {name}"));
        }
    }
    let origin = (site.origin_cpu_seconds() - origin_before) * 1e3 / commits as f64;
    let agents = (agents() - agents_before) * 1e3 / (2 * commits) as f64;
    report.sample("CPU a commit", "ms", &format!("{called}, origin"), origin);
    report.sample("CPU a commit", "ms", &format!("{called}, an agent (spares included)"), agents);
    report.sample("peak memory", "MiB", &format!("{called}, syncd-origin"), site.origin_peak_mib());
    report.sample("peak memory", "MiB", &format!("{called}, syncd-agent"), site.agents_peak_mib());
    for node in &site.nodes {
        assert_same(&site.tree(), &node.agent.live());
    }
}
