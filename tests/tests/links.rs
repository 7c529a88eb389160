//! Long links, fast and slow, and `--bwlimit`: measured at the socket, and compared with plain TCP on the
//! same link.

use std::path::Path;
use std::time::{Duration, Instant};

use syncd_tests::edits::write;
use syncd_tests::link::{Line, Link};
use syncd_tests::oracle::assert_same;
use syncd_tests::{Agent, Origin, Scene, wait};

const ROUND_TRIP: Duration = Duration::from_millis(80);
/// No limit: the speed of the machine.
const OPEN: Line = Line { round_trip: Duration::ZERO, bytes_per_second: 2e9 };

/// Fills a tree with content that does not compress.
fn noise(tree: &Path, files: usize, bytes_each: usize) {
    for number in 0..files {
        let mut content = vec![0; bytes_each];
        blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut content);
        write(tree, &format!("part-{}/noise-{number}.bin", number % 8), content);
    }
}

/// An agent that reaches the origin through `line`. It does not run yet.
fn behind(scene: &Scene, origin: &Origin, line: Line) -> (Agent, Link) {
    let link = Link::new(origin.address(), line);
    let agent = Agent::new(scene, "far");
    agent.join(&link.address(), &origin.token()).expect_success();
    link.reset();
    (agent, link)
}

/// Runs the agent until the generation is live. Returns the time taken.
fn sync(agent: &mut Agent, number: u64) -> Duration {
    let started = Instant::now();
    agent.start();
    wait::until("the first sync", || (agent.live_generation() == Some(number)).then_some(()));
    started.elapsed()
}

/// First sync through `line`, as a fraction of the rate of plain TCP, from the start of the agent to the last
/// byte.
fn fill(name: &str, line: Line, files: usize, bytes_each: usize) -> f64 {
    let scene = Scene::new(name);
    let tree = scene.path("tree");
    noise(&tree, files, bytes_each);
    let origin = Origin::started(&scene, &tree);
    let number = origin.commit();
    let (mut agent, link) = behind(&scene, &origin, line);
    let plain = Link::plain_tcp_rate(line, files * bytes_each);
    let started = Instant::now();
    let took = sync(&mut agent, number);
    let (bytes, until_last) = link.delivered(started);
    let rate = bytes as f64 / until_last.as_secs_f64();
    println!(
        "{name}: plain TCP {:.2} MB/s; syncd {:.2} MB/s from start to last byte, {:.2} MB/s in the middle; {:.1} MB, \
         last byte after {:.2} s, live after {:.2} s; agent's peak memory {:.0} MiB",
        plain / 1e6,
        rate / 1e6,
        link.steady_rate() / 1e6,
        bytes as f64 / 1e6,
        until_last.as_secs_f64(),
        took.as_secs_f64(),
        peak_mib(agent.daemon().pid()),
    );
    println!("{name}: first deliveries, ms and bytes: {:?}", link.first(16, started));
    assert_same(&tree, &agent.live());
    rate / plain
}

fn peak_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("read a process's status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: Option<f64> = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}

/// Rate of the fast link in bytes per second, from `SYNCD_LINK_MBYTES` in megabytes per second.
fn fat_rate() -> f64 {
    std::env::var("SYNCD_LINK_MBYTES").ok().and_then(|text| text.parse().ok()).unwrap_or(25.0) * 1e6
}

#[test]
fn one_agent_fills_a_long_fat_link() {
    let line = Line { round_trip: ROUND_TRIP, bytes_per_second: fat_rate() };
    let seconds = 6.0;
    let files = (line.bytes_per_second * seconds / f64::from(2 << 20)) as usize;
    let share = fill("fat", line, files, 2 << 20);
    // The target is 0.8, which the bench checks on a quiet machine with a release build.
    assert!(share >= 0.65, "{:.0} % of plain TCP", share * 100.0);
}

#[test]
fn one_agent_fills_a_long_thin_link() {
    let line = Line { round_trip: ROUND_TRIP, bytes_per_second: 2e6 };
    let share = fill("thin", line, 200, 60_000);
    assert!(share >= 0.65, "{:.0} % of plain TCP", share * 100.0);
}

/// Rate in the middle of a transfer, and its fullest second, both in bytes.
fn limited(name: &str, at_origin: &[&str], at_agent: &[&str]) -> (f64, f64) {
    let scene = Scene::new(name);
    let tree = scene.path("tree");
    noise(&tree, 24, 1 << 20);
    let mut options = vec!["--trigger", "manual"];
    options.extend_from_slice(at_origin);
    let mut origin = Origin::create(&scene, &tree).with_options(&options);
    origin.start();
    let number = origin.commit();
    let (agent, link) = behind(&scene, &origin, OPEN);
    let mut agent = agent.with_options(at_agent);
    sync(&mut agent, number);
    let figures = (link.steady_rate(), link.fullest_second() as f64);
    println!("{name}: {:.3} MiB/s, fullest second {:.3} MiB", figures.0 / 1048576.0, figures.1 / 1048576.0);
    assert_same(&tree, &agent.live());
    figures
}

/// Asserts that `--bwlimit 4M` holds within 10 % during the transfer. The fullest second may also contain one
/// burst of the bucket (a tenth of a second), and a frame at the origin, or the agent's receive buffer at the
/// start.
fn assert_four_mebibytes((rate, fullest): (f64, f64)) {
    let wanted = 4.0 * 1048576.0;
    assert!((rate / wanted - 1.0).abs() <= 0.1, "{rate} bytes a second in the middle, {wanted} wanted");
    assert!(fullest <= wanted * 1.1 + 2.5 * 1048576.0, "{fullest} bytes in one second, {wanted} wanted");
}

#[test]
fn the_origin_keeps_to_its_bandwidth_limit() {
    assert_four_mebibytes(limited("bwlimit-origin", &["--bwlimit", "4M"], &[]));
}

#[test]
fn the_agent_keeps_to_its_bandwidth_limit() {
    assert_four_mebibytes(limited("bwlimit-agent", &[], &["--bwlimit", "4M"]));
}
