//! Networks that fail under real processes: partitions, resets, stalls, flipped bits, loss, slow lines,
//! stopped agents.
//!
//! A failure must be noticed within the keepalive. The fleet recovers without help, verified content is not
//! fetched again, and other agents are not delayed. The suite `fleet` (`syncd-load`) tests a thousand
//! simultaneous reconnects.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use syncd_tests::edits::{small_site, write};
use syncd_tests::oracle::assert_same;
use syncd_tests::trouble::{Fault, Packets, Trouble, in_own_network};
use syncd_tests::{Agent, Origin, Scene, require_root, wait};

/// HTTP/2's keepalive: a ping after 15 s of silence, and 10 s for its answer.
const KEEPALIVE: Duration = Duration::from_secs(25);
/// Limit for noticing a dead connection, with an allowance for a busy machine. TCP alone takes 15 minutes.
const NOTICED: Duration = Duration::from_secs(90);

/// Bytes that a broken connection may lose: the message that it broke in, of 1 MiB, and the contents of
/// socket buffers. Data that the agent has read is used.
const CUT_BYTES: u64 = 1_500_000;

/// Makes content that does not compress.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut content);
    content
}

/// An origin with a small site, and one agent that has it live.
fn pair(scene: &Scene) -> (Origin, Agent) {
    let tree = scene.path("tree");
    small_site(&tree, 20);
    let origin = Origin::started(scene, &tree);
    let number = origin.commit();
    let agent = Agent::started(scene, &origin, "web1");
    agent.wait_live(number);
    (origin, agent)
}

fn is_connected(origin: &Origin) -> bool {
    origin.status().agent("web1").connected
}

/// Time until both sides report that they are not connected.
fn noticed_after(origin: &Origin, agent: &Agent) -> (Duration, Duration) {
    let started = Instant::now();
    let (mut at_origin, mut at_agent) = (None, None);
    wait::within(NOTICED, "both sides to notice", || {
        if at_origin.is_none() && !is_connected(origin) {
            at_origin = Some(started.elapsed());
        }
        if at_agent.is_none() && agent.try_status().is_some_and(|status| !status.connected) {
            at_agent = Some(started.elapsed());
        }
        at_origin.zip(at_agent)
    })
}

/// Asserts that a commit made during a partition is live soon after it, and that one update covers all such
/// commits.
fn assert_comes_back(origin: &Origin, agent: &Agent, packets: Packets) {
    for round in 0..3 {
        write(&origin.tree, "changed.html", format!("round {round}\n"));
        origin.commit();
    }
    let newest = origin.status().generation.expect("a generation");
    assert_eq!(agent.live_generation(), Some(newest - 3), "nothing passes");
    packets.heal();
    let healed = Instant::now();
    wait::until("the newest generation", || (agent.live_generation() == Some(newest)).then_some(()));
    println!("live {:.1} s after the partition", healed.elapsed().as_secs_f64());
    assert_same(&origin.tree, &agent.live());
    assert_eq!(agent.status().generations.len(), 2, "one update over three generations");
}

#[test]
fn a_silent_partition_is_noticed_within_the_keepalive() {
    require_root("network namespace");
    if !in_own_network("a_silent_partition_is_noticed_within_the_keepalive") {
        return;
    }
    let scene = Scene::new("silent");
    let (origin, agent) = pair(&scene);
    let packets = Packets::of(origin.address());
    packets.drop_silently();
    let (at_origin, at_agent) = noticed_after(&origin, &agent);
    println!(
        "silent partition: noticed by the origin after {at_origin:.1?}, by the agent after {at_agent:.1?}"
    );
    assert_eq!(agent.status().state, "live");
    assert_comes_back(&origin, &agent, packets);
}

#[test]
fn a_refusing_partition_is_noticed_and_heals() {
    require_root("network namespace");
    if !in_own_network("a_refusing_partition_is_noticed_and_heals") {
        return;
    }
    let scene = Scene::new("refusing");
    let (mut origin, agent) = pair(&scene);
    let packets = Packets::of(origin.address());
    packets.refuse();
    let (at_origin, at_agent) = noticed_after(&origin, &agent);
    println!(
        "refusing partition: noticed by the origin after {at_origin:.1?}, by the agent after {at_agent:.1?}"
    );
    // The RST was noticed, rather than a missing answer to the ping.
    origin.daemon().wait_logged("connection reset");
    assert_comes_back(&origin, &agent, packets);
}

#[test]
fn a_node_that_lost_its_power_takes_its_place_again_at_once() {
    require_root("network namespace");
    if !in_own_network("a_node_that_lost_its_power_takes_its_place_again_at_once") {
        return;
    }
    let scene = Scene::new("half-open");
    let (origin, mut agent) = pair(&scene);
    let packets = Packets::of(origin.address());
    // No FIN reaches the origin, so the connection still looks intact.
    packets.drop_silently();
    agent.kill9();
    assert!(is_connected(&origin), "half-open");
    packets.heal();
    agent.start();
    wait::until("the agent to be connected", || {
        agent.try_status().is_some_and(|status| status.connected).then_some(())
    });
    write(&origin.tree, "changed.html", "after the power cut\n");
    let number = origin.commit();
    agent.wait_live(number);
    let status = origin.status();
    let member = status.agent("web1");
    assert!(member.connected && member.generation == Some(number), "{member:?}");
    assert!(member.notes.is_empty(), "the same boot of the same node is no clone: {member:?}");
}

#[test]
fn a_connection_that_died_without_a_word_is_given_up_within_the_keepalive() {
    require_root("network namespace");
    if !in_own_network("a_connection_that_died_without_a_word_is_given_up_within_the_keepalive") {
        return;
    }
    let scene = Scene::new("dead");
    let (origin, mut agent) = pair(&scene);
    Packets::of(origin.address()).drop_silently();
    agent.kill9();
    let started = Instant::now();
    wait::within(NOTICED, "the origin to notice", || (!is_connected(&origin)).then_some(()));
    println!("half-open connection: given up after {:.1} s", started.elapsed().as_secs_f64());
}

/// First sync of `files` files of `bytes` each, through a proxy that causes `fault` `times` times, each after
/// `after` bytes of a connection. Returns the bytes that arrived, and the bytes of the content.
fn sync_through(
    name: &str,
    fault: Fault,
    (files, bytes): (usize, usize),
    after: u64,
    times: u64,
) -> (u64, u64) {
    let scene = Scene::new(name);
    let tree = scene.path("tree");
    for number in 0..files {
        write(&tree, &format!("part-{}/{number}.bin", number % 7), noise(number as u64, bytes));
    }
    let origin = Origin::started(&scene, &tree);
    let number = origin.commit();
    let proxy = Trouble::new(origin.address());
    let mut agent = Agent::new(&scene, "far");
    agent.join(&proxy.address(), &origin.token()).expect_success();
    proxy.plan(fault, after, times);
    let started = Instant::now();
    agent.start();
    let limit = Duration::from_secs(150);
    wait::within(limit, "the first sync", || (agent.live_generation() == Some(number)).then_some(()));
    println!(
        "{name}: {} faults, {} connections, {:.2} MB for {:.2} MB of content, {:.1} s",
        proxy.caused(),
        proxy.connections(),
        proxy.delivered() as f64 / 1e6,
        (files * bytes) as f64 / 1e6,
        started.elapsed().as_secs_f64()
    );
    assert_eq!(proxy.caused(), times, "every fault was played");
    assert_same(&tree, &agent.live());
    (proxy.delivered(), (files * bytes) as u64)
}

#[test]
fn after_resets_in_mid_frame_only_what_was_not_verified_comes_again() {
    let (came, content) = sync_through("resets", Fault::Reset, (600, 40_000), 5_000_000, 4);
    assert!(came <= content + 4 * CUT_BYTES + content / 20, "{came} bytes for {content}");
}

#[test]
fn flipped_bytes_never_get_through() {
    let (came, content) = sync_through("flips", Fault::Flip, (300, 40_000), 2_500_000, 4);
    assert!(came <= content + 4 * CUT_BYTES + content / 20, "{came} bytes for {content}");
}

#[test]
fn a_stalled_transfer_is_given_up_and_goes_on_where_it_was() {
    let (came, content) = sync_through("stall", Fault::Stall, (300, 40_000), 4_000_000, 1);
    assert!(came <= content + CUT_BYTES + content / 20, "{came} bytes for {content}");
}

#[test]
fn an_update_gets_through_five_percent_loss() {
    require_root("network namespace");
    if !in_own_network("an_update_gets_through_five_percent_loss") {
        return;
    }
    let scene = Scene::new("loss");
    let (origin, agent) = pair(&scene);
    let packets = Packets::of(origin.address());
    packets.lose(20);
    let started = Instant::now();
    for round in 0..10 {
        write(&origin.tree, "small.html", format!("round {round}\n"));
        write(&origin.tree, &format!("large-{round}.bin"), noise(round, 1_500_000));
        let number = origin.commit();
        agent.wait_live(number);
    }
    let (took, lost) = (started.elapsed().as_secs_f64(), packets.lost());
    println!("5 % loss: ten updates of 1.5 MB in {took:.1} s, {lost} packets lost");
    assert!(lost >= 10, "{lost} packets");
    assert!(agent.status().connected);
    assert_same(&origin.tree, &agent.live());
}

/// Number of the origin's pings that the agent has answered, from its log.
fn pings_answered(agent: &mut Agent) -> usize {
    agent.daemon().log().matches("send frame=Ping { ack: true").count()
}

#[test]
fn a_thin_line_carries_an_update_and_the_heartbeats_beside_it() {
    const KBIT_PER_SECOND: u32 = 384;
    const BYTES: usize = 1_800_000;
    // The line is full for longer than the keepalive, so its pings must get through.
    const { assert!(BYTES as u64 * 8 / KBIT_PER_SECOND as u64 > KEEPALIVE.as_millis() as u64) };
    require_root("network namespace");
    if !in_own_network("a_thin_line_carries_an_update_and_the_heartbeats_beside_it") {
        return;
    }
    let scene = Scene::new("thin");
    let tree = scene.path("tree");
    small_site(&tree, 20);
    let origin = Origin::started(&scene, &tree);
    let number = origin.commit();
    let mut agent = Agent::joined(&scene, &origin, "web1");
    agent.under(&["env".into(), "RUST_LOG=info,syncd_agent=debug,h2::codec=debug".into()]);
    Packets::of(origin.address()).slow_down(KBIT_PER_SECOND);
    agent.start();
    agent.wait_live(number);
    write(&origin.tree, "large.bin", noise(1, BYTES));
    let before = pings_answered(&mut agent);
    let started = Instant::now();
    let number = origin.commit();
    wait::within(Duration::from_secs(200), "the update over a thin line", || {
        assert!(is_connected(&origin), "cut off after {:?}", started.elapsed());
        (agent.live_generation() == Some(number)).then_some(())
    });
    let pings = pings_answered(&mut agent) - before;
    println!(
        "{KBIT_PER_SECOND} kbit/s: {BYTES} bytes in {:.1} s, {pings} pings answered",
        started.elapsed().as_secs_f64()
    );
    assert!(pings >= 1, "the origin probed the full line");
    let log = agent.daemon().log();
    for lost in ["connection lost", "disconnected"] {
        assert!(!log.contains(lost), "{lost}: {log}");
    }
    assert_eq!(log.matches("connected to the origin").count(), 1, "{log}");
    assert_same(&origin.tree, &agent.live());
}

fn memory_mib(pid: u32, field: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("read a process's status");
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib: Option<f64> = line.and_then(|l| l.split_whitespace().nth(1)).and_then(|n| n.parse().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}

#[test]
fn a_stopped_agent_holds_nobody_up_and_costs_no_memory() {
    let scene = Scene::new("stopped");
    let tree = scene.path("tree");
    small_site(&tree, 20);
    let mut origin = Origin::started(&scene, &tree);
    let number = origin.commit();
    let mut agents: Vec<Agent> =
        (0..5).map(|n| Agent::started(&scene, &origin, &format!("web{n}"))).collect();
    for agent in &agents {
        agent.wait_live(number);
    }
    let round = |round: u64, agents: &[Agent]| {
        write(&tree, "large.bin", noise(round, 3_000_000));
        let started = Instant::now();
        let number = origin.commit();
        for agent in agents {
            wait::until("an update", || (agent.live_generation() == Some(number)).then_some(()));
        }
        started.elapsed()
    };
    let before: Vec<Duration> = (0..4).map(|n| round(n, &agents)).collect();
    agents[0].daemon().signal(Signal::STOP);
    let others = &agents[1..];
    // It may have been in the middle of something.
    round(99, others);
    // The update did not wait for the keepalive, which would have disconnected the stopped agent.
    assert!(
        origin.status().agent("web0").connected,
        "the stopped agent held up an update until it was given up"
    );
    let after: Vec<Duration> = (100..110).map(|n| round(n, others)).collect();
    let (median_before, median_after) = (median(before), median(after));
    println!(
        "stopped agent: updates to the others took {median_before:.2?} before, {median_after:.2?} with it"
    );
    agents[0].daemon().signal(Signal::CONT);
    let newest = origin.status().generation.expect("a generation");
    agents[0].wait_live(newest);
    assert_same(&tree, &agents[0].live());
    let held = agents[0].status().generations;
    assert!(
        held.iter().filter(|held| **held > number + 5 && **held < newest).count() == 0,
        "skipped: {held:?}"
    );
    let peak = memory_mib(origin.daemon().pid(), "VmHWM");
    println!("stopped agent: peak memory of the origin {peak:.0} MiB");
    assert!(peak < 256.0, "{peak} MiB");
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort();
    all[all.len() / 2]
}
