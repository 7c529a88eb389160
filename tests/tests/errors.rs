//! The error sweep: calls by which the real agent changes its disk fail, once or until the fault ends.
//!
//! As in the crash sweep, each call of a counted run is a case, with each error that it can return. A sample
//! of the cases runs by default. `SYNCD_SEED=N` repeats the sample. `SYNCD_SWEEP=N` runs N cases on each file
//! system (and of each errand of the origin), and `SYNCD_SWEEP=full` runs all. `SYNCD_KINDS='Disk ioctl'`
//! runs only those whose fault and call contain that text:
//!
//! ```text
//! SYNCD_SWEEP=full ./tests/run errors
//! ```

#[path = "errors/worn.rs"]
mod worn;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use syncd_tests::edits::{small_site, write};
use syncd_tests::faults::{Failing, Fault};
use syncd_tests::hub::{Errand, Hub};
use syncd_tests::mounts::{Elsewhere, Mount};
use syncd_tests::node::{Node, Rights, Scenario};
use syncd_tests::oracle::{assert_same, fingerprint};
use syncd_tests::tracer::{Point, Traced, Verdict};
use syncd_tests::{Agent, Origin, Scene, Seeded, assert_none, wait};

/// Number of cases by default: of the agent on ext4, on xfs, without privileges, and with `--swap exchange`.
const SHARE: [usize; 4] = [24, 14, 10, 14];
/// Number of calls before and after an exchange that fail with `--swap exchange`. All others are the same
/// with a link.
const NEAR_THE_EXCHANGE: usize = 14;
/// Number of cases of each of the origin's errands, likewise.
const ORIGIN_SHARE: [usize; 2] = [6, 3];

/// Number of cases: `usual`, or the value of `SYNCD_SWEEP`.
fn share(usual: usize) -> usize {
    match std::env::var("SYNCD_SWEEP") {
        Ok(text) if text == "full" => usize::MAX,
        Ok(text) => text.parse().expect("SYNCD_SWEEP is a number or full"),
        Err(_) => usual,
    }
}

fn ext4(scene: &Scene) -> Mount {
    Mount::ext4(&scene.path("disk"), 64)
}

fn xfs(scene: &Scene) -> Mount {
    Mount::xfs(&scene.path("disk"), 320)
}

/// Every call with every fault that applies to it, by fault and kind of call. Only those selected by
/// `SYNCD_KINDS`.
fn kinds_of(points: &[Point]) -> BTreeMap<String, Vec<Failing>> {
    let wanted = std::env::var("SYNCD_KINDS").unwrap_or_default();
    let mut kinds = BTreeMap::<String, Vec<Failing>>::new();
    for point in points {
        for fault in Fault::ALL {
            if fault.verdict(point).is_some() {
                for lasts in [false, true] {
                    let failing = Failing { fault, ordinal: point.ordinal, lasts };
                    kinds.entry(format!("{fault:?} {}", point.label())).or_default().push(failing);
                }
            }
        }
    }
    kinds.retain(|kind, _| kind.contains(&wanted));
    kinds
}

/// Picks a kind of case at random, and then one of its cases.
fn draw(kinds: &mut BTreeMap<String, Vec<Failing>>, random: &mut Seeded) -> Option<Failing> {
    let names: Vec<String> = kinds.keys().cloned().collect();
    let name = random.pick(&names)?;
    let cases = kinds.get_mut(name)?;
    let failing = cases.swap_remove(random.below(cases.len() as u64) as usize);
    if cases.is_empty() {
        kinds.remove(name);
    }
    Some(failing)
}

/// Calls of the agent that fail: all, or with `--swap exchange` those around the exchange with `live`.
fn calls_to_fail(points: Vec<Point>, swap: &str) -> Vec<Point> {
    if swap == "link" {
        return points;
    }
    let is_switch = |point: &&Point| point.call == "renameat2" && point.path.ends_with("web1/live");
    let switch = points.iter().find(is_switch).expect("a switch").ordinal;
    let near = |point: &Point| point.ordinal.abs_diff(switch) <= NEAR_THE_EXCHANGE;
    points.into_iter().filter(near).collect()
}

/// Makes the agent's calls fail in every scenario that has an origin.
fn sweep_the_agent(
    name: &str,
    mount: impl FnOnce(&Scene) -> Mount,
    rights: Rights,
    swap: &str,
    usual: usize,
) {
    let mut random = Seeded::announced(name);
    let scene = Scene::in_memory(name);
    let mount = mount(&scene);
    let started = Instant::now();
    let (mut node, scenarios) = Node::with_options(&scene, mount, rights, &["--swap", swap]);
    let mut complaints = Vec::new();
    let mut all = 0;
    let scenarios: Vec<Scenario> = scenarios.into_iter().filter(|s| s.origin_answers).collect();
    for scenario in &scenarios {
        let mut kinds = kinds_of(&calls_to_fail(node.count(scenario), swap));
        let counted: usize = kinds.values().map(Vec::len).sum();
        let (mut tried, mut failed, mut logged, mut reported, mut ended) = (0, 0, 0, 0, 0);
        let most = share(usual).div_ceil(scenarios.len());
        while tried < most {
            let Some(failing) = draw(&mut kinds, &mut random) else { break };
            tried += 1;
            match node.fail(scenario, failing) {
                Ok(seen) => {
                    failed += seen.failed;
                    logged += usize::from(seen.logged);
                    reported += usize::from(seen.reported);
                    ended += usize::from(seen.ended);
                }
                Err(complaint) => {
                    println!("COMPLAINT {complaint}");
                    complaints.push(complaint);
                }
            }
        }
        all += tried;
        println!(
            "{name}, {}: {tried} of {counted} cases, {failed} calls failed; {logged} logged, {reported} at the origin's status, {ended} agents ended",
            scenario.name
        );
    }
    println!("{name}: {all} cases in {:.0} s", started.elapsed().as_secs_f64());
    // Dropped before the panic, whose message would otherwise be hidden by the logs. Each complaint contains
    // its part of them.
    drop(node);
    assert_none(&complaints);
}

#[test]
fn no_error_of_a_disk_is_lost_or_lasts() {
    sweep_the_agent("errors-ext4", ext4, Rights::Root, "link", SHARE[0]);
}

#[test]
fn no_error_of_a_disk_with_xfs_is_lost_or_lasts() {
    sweep_the_agent("errors-xfs", xfs, Rights::Root, "link", SHARE[1]);
}

#[test]
fn no_error_of_a_disk_stops_an_agent_without_privileges() {
    sweep_the_agent("errors-user", ext4, Rights::User, "link", SHARE[2]);
}

#[test]
fn no_error_of_a_disk_around_an_exchange_is_lost_or_lasts() {
    sweep_the_agent("errors-exchange", xfs, Rights::Root, "exchange", SHARE[3]);
}

/// Makes the origin's calls fail in each of its errands.
fn sweep_the_origin(name: &str, mount: impl FnOnce(&Scene) -> Mount, usual: usize) {
    let mut random = Seeded::announced(name);
    let scene = Scene::in_memory(name);
    let mount = mount(&scene);
    let started = Instant::now();
    let mut hub = Hub::new(&scene, mount);
    let mut complaints = Vec::new();
    for errand in [Errand::Commit, Errand::Join, Errand::Collect] {
        let mut kinds = kinds_of(&hub.count(errand));
        let counted: usize = kinds.values().map(Vec::len).sum();
        let (mut tried, mut failed) = (0, 0);
        while tried < share(usual) {
            let Some(failing) = draw(&mut kinds, &mut random) else { break };
            tried += 1;
            match hub.fail(errand, failing) {
                Ok(calls) => failed += calls,
                Err(complaint) => {
                    println!("COMPLAINT {complaint}");
                    complaints.push(complaint);
                }
            }
        }
        println!("{name}, {errand:?}: {tried} of {counted} cases, {failed} calls failed");
    }
    println!("{name}: {:.0} s", started.elapsed().as_secs_f64());
    // Dropped before the panic, whose message would otherwise be hidden by the logs. Each complaint contains
    // its part of them.
    drop(hub);
    assert_none(&complaints);
}

#[test]
fn no_error_under_data_loses_a_generation_or_a_token() {
    sweep_the_origin("errors-origin", ext4, ORIGIN_SHARE[0]);
}

#[test]
fn no_error_under_data_on_xfs_loses_a_generation_or_a_token() {
    sweep_the_origin("errors-origin-xfs", xfs, ORIGIN_SHARE[1]);
}

/// Whether a call changes arriving content or a tree.
fn is_content(point: &Point) -> bool {
    ["staging/", "slots/"].iter().any(|place| point.path.contains(place))
}

#[test]
fn what_a_failed_sync_left_is_never_taken_for_durable() {
    let scene = Scene::in_memory("errors-sync");
    let mount = Mount::ext4(&scene.path("disk"), 64);
    let (mut node, scenarios) = Node::new(&scene, mount, Rights::Root);
    let scenario = scenarios.iter().find(|s| s.name == "large update").expect("a scenario");
    let written = |points: &[Point]| points.iter().filter(|p| p.call == "openat2" && is_content(p)).count();
    for (planted, wanted) in [(None, true), (Some("sync-again"), false)] {
        node.planted = planted;
        let points = node.count(scenario);
        let sync = points.iter().find(|p| p.call == "syncfs" && p.thread == "replica").expect("a sync");
        let once = written(&points[..sync.ordinal]);
        let failing = Failing { fault: Fault::Disk, ordinal: sync.ordinal, lasts: false };
        let again = match node.fail(scenario, failing) {
            Ok(seen) => written(seen.points.get(sync.ordinal..).unwrap_or_default()),
            Err(complaint) => {
                assert!(!wanted, "{complaint}");
                println!("{planted:?}: {complaint}");
                0
            }
        };
        println!("{planted:?}: {once} files staged, a sync failed, {again} staged again");
        assert!(once > 20, "{once} files");
        assert_eq!(again >= once, wanted, "{planted:?}: everything is staged again");
    }
}

/// An agent that waits only briefly after an error.
fn hasty(scene: &Scene, origin: &Origin, root: &std::path::Path) -> Agent {
    let mut agent = Agent::new(scene, "web1").at(root).with_options(&["--grace", "0s"]);
    agent.join(origin.address(), &origin.token()).expect_success();
    agent.under(&["env".into(), "SYNCD_HASTY=1".into()]);
    agent
}

/// Waits until the agent's and the origin's status contain `word`.
fn wait_error(origin: &Origin, agent: &Agent, word: &str) {
    let says = |said: Option<String>| said.filter(|said| said.to_lowercase().contains(word));
    wait::until("the agent to say so", || says(agent.try_status()?.error));
    wait::until("the origin to know", || says(origin.status().agent("web1").error.clone()));
}

#[test]
fn a_full_inode_table_and_a_full_disk_keep_the_old_generation() {
    let scene = Scene::in_memory("errors-full");
    let tree = scene.path("tree");
    small_site(&tree, 30);
    let origin = Origin::started(&scene, &tree);
    let disk = Mount::ext4_of_inodes(&scene.path("disk"), 32, 400);
    let mut agent = hasty(&scene, &origin, &disk.directory().join("replica"));
    agent.start();
    origin.wait_connected(&["web1"]);
    let first = origin.commit_live();
    let before = fingerprint(&agent.live());
    // More files than there are inodes.
    for number in 0..500 {
        write(&tree, &format!("many/{number}"), "x");
    }
    origin.commit();
    wait_error(&origin, &agent, "inode");
    assert_eq!((agent.live_generation(), fingerprint(&agent.live())), (Some(first), before.clone()));
    syncd_tests::edits::remove(&tree.join("many"));
    write(&tree, "index.html", "second");
    origin.cli("commit", &["--allow-mass-deletion"]).expect_success();
    let second = origin.status().generation.expect("a generation");
    agent.wait_live(second);
    assert_same(&tree, &agent.live());
    // Another program takes all the space.
    let ballast = disk.directory().join("ballast");
    let filled: std::io::Result<()> = std::fs::File::create(&ballast).and_then(|mut file| {
        loop {
            std::io::Write::write_all(&mut file, &[1; 65536])?;
        }
    });
    assert!(filled.is_err_and(|error| error.kind() == std::io::ErrorKind::StorageFull));
    let before = fingerprint(&agent.live());
    let noise: Vec<u8> =
        (0..300_000).map(|n: u64| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8).collect();
    write(&tree, "large.bin", noise);
    let third = origin.commit();
    wait_error(&origin, &agent, "space");
    assert_eq!((agent.live_generation(), fingerprint(&agent.live())), (Some(second), before));
    std::fs::remove_file(&ballast).expect("remove");
    agent.wait_live(third);
    assert_same(&tree, &agent.live());
    assert!(wait::until("no error", || agent.try_status().filter(|s| s.error.is_none())).error.is_none());
    syncd_tests::replica::assert_no_litter(&agent);
}

#[test]
fn a_hung_disk_holds_up_nothing_but_the_update() {
    let scene = Scene::in_memory("errors-hung");
    let tree = scene.path("tree");
    small_site(&tree, 30);
    let origin = Origin::started(&scene, &tree);
    let disk = Mount::ext4(&scene.path("disk"), 64);
    let mut agent = hasty(&scene, &origin, &disk.directory().join("replica"));
    agent.start();
    origin.wait_connected(&["web1"]);
    let first = origin.commit_live();
    let before = fingerprint(&agent.live());
    wait::until("spares", || agent.try_status().filter(|s| s.spares == 2));
    disk.freeze(true);
    write(&tree, "index.html", "second");
    let second = origin.commit();
    // Waiting until the origin misses a silent agent would take too long for a test; a few heartbeats
    // suffice.
    let started = Instant::now();
    while started.elapsed().as_secs() < 3 {
        let status = origin.status();
        assert!(status.agent("web1").connected, "{status:?}");
        assert_eq!(agent.live_generation(), Some(first));
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    assert_eq!(fingerprint(&agent.live()), before, "the old generation is served");
    disk.freeze(false);
    agent.wait_live(second);
    assert_same(&tree, &agent.live());
    syncd_tests::replica::assert_no_litter(&agent);
}

#[test]
fn a_read_only_disk_is_named_and_served_from() {
    let scene = Scene::in_memory("errors-ro");
    let tree = scene.path("tree");
    small_site(&tree, 30);
    let origin = Origin::started(&scene, &tree);
    let disk = Mount::ext4(&scene.path("disk"), 64);
    let mut agent = hasty(&scene, &origin, &disk.directory().join("replica"));
    agent.start();
    origin.wait_connected(&["web1"]);
    let first = origin.commit_live();
    agent.stop();
    let before = fingerprint(&agent.live());
    disk.remount("ro");
    agent.start();
    assert_eq!(agent.daemon().exit_code(std::time::Duration::from_secs(20)), Some(1));
    assert!(agent.daemon().log().contains("Read-only file system"), "{}", agent.daemon().log());
    agent.kill9();
    assert_eq!((agent.live_generation(), fingerprint(&agent.live())), (Some(first), before));
    disk.remount("rw");
    write(&tree, "index.html", "second");
    let second = origin.commit();
    agent.start();
    agent.wait_live(second);
    assert_same(&tree, &agent.live());
}

/// A disk that becomes read-only under a running agent. The kernel refuses that while a file on it is open
/// for writing, so the agent's record and lock are elsewhere.
#[test]
fn a_disk_that_becomes_read_only_is_served_from_until_it_no_longer_is() {
    const WORDS: &str = "Read-only file system";
    let scene = Scene::in_memory("errors-remount");
    let tree = scene.path("tree");
    small_site(&tree, 30);
    let mount = ext4(&scene);
    let mut node = Node::joined(&scene, mount, &tree, Rights::Root);
    node.agent.under(&["env".into(), "SYNCD_HASTY=1".into()]);
    let first = node.commit();
    node.settle_at(first);
    let disk = node.mount.directory().to_path_buf();
    let refused = Mount::try_remount(&disk, "ro").expect_err("the record is open");
    assert!(refused.contains("busy"), "{refused}");
    node.agent.stop();
    let kept = scene.new_directory("kept");
    let state = node.agent.root.join("state");
    let _elsewhere = ["record.redb", "lock"].map(|name| Elsewhere::keep(&state.join(name), &kept));
    // While the agent is idle.
    node.settle_at(first);
    wait::until_ok("nothing to be open", || Mount::try_remount(&disk, "ro"));
    write(&tree, "index.html", "second");
    let second = node.commit();
    wait_error(&node.origin, &node.agent, &WORDS.to_lowercase());
    assert_eq!(node.complete(first), Ok(first));
    node.agent.daemon().wait_logged(WORDS);
    node.mount.remount("rw");
    node.settle_at(second);
    node.agent.stop();
    // While the agent stages.
    for number in 0..300 {
        write(&tree, &format!("many/{}/{number}.html", number % 7), format!("page {number}"));
    }
    let third = node.commit();
    let scenario = Scenario { image: None, ..Scenario::from("remount", &disk, second) };
    let log = Traced::log_of(&disk);
    let (directory, mut files, remounted) = (disk.clone(), 0, Arc::new(AtomicBool::new(false)));
    let done = remounted.clone();
    let policy = move |point: &Point| {
        files += u32::from(point.call == "openat2" && is_content(point));
        if files > 100 && !done.load(Ordering::Relaxed) {
            done.store(Mount::try_remount(&directory, "ro").is_ok(), Ordering::Relaxed);
        }
        Verdict::Pass
    };
    let mut traced = node.trace(&scenario, Box::new(policy));
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    wait::until("the origin to know", || {
        let status = node.origin.try_status()?;
        status.agent("web1").error.clone().filter(|error| error.contains(WORDS))
    });
    assert!(remounted.load(Ordering::Relaxed) && said().contains(WORDS), "{}", said());
    assert_eq!(node.complete(second), Ok(second));
    node.mount.remount("rw");
    node.poll("the agent to catch up", |node| {
        let status = node.status().ok_or("no status")?;
        node.settled(&status, third)
    })
    .unwrap_or_else(|complaint| panic!("{complaint}\n{}", said()));
    assert_eq!(node.complete(third), Ok(third));
    assert!(traced.ended().is_none());
    traced.kill();
}

#[test]
fn an_update_needs_few_descriptors() {
    let scene = Scene::in_memory("errors-descriptors");
    let tree = scene.path("tree");
    small_site(&tree, 400);
    let origin = Origin::started(&scene, &tree);
    let mut agent = Agent::joined(&scene, &origin, "web1");
    agent.under(&["prlimit".into(), "--nofile=80".into()]);
    agent.start();
    origin.wait_connected(&["web1"]);
    origin.commit_live();
    for number in 0..300 {
        write(&tree, &format!("deep/{}/{}/{number}.html", number % 7, number % 11), format!("{number}"));
    }
    origin.commit_live();
    assert_same(&tree, &agent.live());
}
