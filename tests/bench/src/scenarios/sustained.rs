//! One changed file a commit, at 1 and at 10 commits a second, to live and durable on two agents; how many updates
//! found no spare.

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
    let seconds = if bench.quick { 5 } else { 30 };
    for rate in [1, 10] {
        eprintln!("sustained: {rate} commits a second for {seconds} s");
        let mut site = Site::new("sustained", &many.a());
        site.commit();
        site.join_all(&["node1", "node2"]);
        at_rate(&mut report, &mut site, files, rate, seconds);
    }
    report
}

fn at_rate(report: &mut Report, site: &mut Site, files: usize, rate: usize, seconds: u64) {
    let called = format!("syncd, {rate} commits a second");
    let pids: Vec<u32> = site.nodes.iter_mut().map(|node| node.agent.daemon().pid()).collect();
    let agents = || pids.iter().map(|pid| cpu_seconds(*pid)).sum::<f64>();
    let (origin_before, agents_before) = (site.origin_cpu_seconds(), agents());
    let started = Instant::now();
    let mut commits = 0;
    while started.elapsed() < Duration::from_secs(seconds) {
        // One that is late is not made up for: the next begins when the one before it is live.
        let (round, due) = (commits, Duration::from_secs_f64(commits as f64 / rate as f64));
        commits += 1;
        thread::sleep(due.saturating_sub(started.elapsed()));
        Site::edit(&site.tree().join(page(round, files)), round);
        let asked = Instant::now();
        site.commit_live();
        report.sample(
            "commit --wait to live on two agents",
            "ms",
            &called,
            asked.elapsed().as_secs_f64() * 1e3,
        );
    }
    let took = started.elapsed().as_secs_f64();
    report.sample("commits a second that were live", "1/s", &called, commits as f64 / took);
    let origin = (site.origin_cpu_seconds() - origin_before) * 1e3 / commits as f64;
    let agents = (agents() - agents_before) * 1e3 / (2 * commits) as f64;
    report.sample("CPU a commit", "ms", &format!("{called}, origin"), origin);
    report.sample("CPU a commit", "ms", &format!("{called}, an agent (spares included)"), agents);
    for member in site.origin.status().agents {
        let share = member.spare_misses as f64 * 100.0 / commits as f64;
        report.sample("updates that found no spare", "%", &called, share);
        report.note(format!(
            "{called}: {} of {commits} updates found no spare on {}",
            member.spare_misses, member.name
        ));
    }
    report.sample("peak memory", "MiB", &format!("{called}, syncd-origin"), site.origin_peak_mib());
    report.sample("peak memory", "MiB", &format!("{called}, syncd-agent"), site.agents_peak_mib());
    for node in &site.nodes {
        assert_same(&site.tree(), &node.agent.live());
    }
}
