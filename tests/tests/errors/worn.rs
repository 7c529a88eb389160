//! Disks that really fail, below the file system: the kernel has accepted the content and cannot write it
//! back.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use syncd_tests::device::{Refused, Wear, marked};
use syncd_tests::edits::{small_site, write};
use syncd_tests::mounts::Mount;
use syncd_tests::node::{Node, Rights, Scenario};
use syncd_tests::tracer::{Point, Traced, Verdict};
use syncd_tests::{Origin, Scene, wait};

const PATIENCE: Duration = Duration::from_secs(60);
/// Number of files of two pages each.
const WIDE_FILES: u64 = 200;

/// Result of a run on a disk that refused content.
#[derive(Debug)]
struct Ended {
    /// Number of writes that the disk refused.
    refusals: u64,
    /// Whether the origin's `status` showed the error while the old generation was served.
    reported: bool,
    /// State of the newest generation after a power cut right after it was reported live.
    whole: Result<u64, String>,
    log: String,
}

/// Runs the scenario on a disk that refuses marked content from the first sync of an activation on, until the
/// origin shows the error or the generation is reported live. Then cuts the power.
fn wear_out(node: &mut Node, wear: &Wear, scenario: &Scenario, is_sync: fn(&Point) -> bool) -> Ended {
    let newest = node.newest();
    let log = Traced::log_of(node.mount.directory());
    let _ = std::fs::remove_file(&log);
    let (before, worn) = (wear.refusals(), wear.clone());
    let mut begun = false;
    let policy = move |point: &Point| {
        if !begun && is_sync(point) {
            begun = true;
            worn.refuse(Refused::Marked);
        }
        Verdict::Pass
    };
    let mut traced = node.trace(scenario, Box::new(policy));
    let mut reported = false;
    let started = Instant::now();
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    loop {
        if node.status().and_then(|status| status.generation) == Some(newest) {
            break;
        }
        let status = node.origin.try_status();
        let error = status.and_then(|status| status.agents.first()?.error.clone());
        if !reported && error.is_some_and(|error| error.contains("Input/output error")) {
            assert_eq!(node.complete(scenario.live), Ok(scenario.live), "{}", said());
            reported = true;
            wear.refuse(Refused::Nothing);
        }
        assert!(traced.ended().is_none(), "{}: the agent ended\n{}", scenario.name, said());
        assert!(started.elapsed() < PATIENCE, "{}: not live in {PATIENCE:?}\n{}", scenario.name, said());
        std::thread::sleep(Duration::from_millis(5));
    }
    node.mount.cut_power();
    traced.kill();
    wear.refuse(Refused::Nothing);
    node.mount.power_up();
    node.origin_answers(true);
    let refusals = wear.refusals() - before;
    Ended { refusals, reported, whole: node.complete(newest), log: said() }
}

fn widen(tree: &Path) {
    for number in 0..WIDE_FILES {
        write(tree, &format!("wide/{}/page-{number}.bin", number % 7), marked(number, 8_000));
    }
}

fn content_is_never_lost(name: &str, mount: impl FnOnce(&Path) -> Mount) {
    let scene = Scene::in_memory(name);
    let (mount, wear) = mount(&scene.path("disk")).on_a_worn_disk();
    let (mut node, scenarios) = Node::new(&scene, mount, Rights::Root);
    let tree = node.origin.tree.clone();
    widen(&tree);
    let newest = node.commit();
    // Only the agent's own calls: the next sync is that of the activation.
    let whole = |point: &Point| point.thread == "replica" && point.call == "syncfs";
    for scenario in scenarios.iter().filter(|s| ["first sync", "large update"].contains(&s.name)) {
        node.planted = None;
        let ended = wear_out(&mut node, &wear, scenario, whole);
        println!(
            "{name}, {}: {} writes refused; {:?} is live after a cut",
            scenario.name, ended.refusals, ended.whole
        );
        assert!(ended.refusals > 0 && ended.reported, "{ended:?}");
        assert_eq!(ended.whole, Ok(newest), "{}", ended.log);
        // An agent that believes the second result of a sync loses content, and the oracle notices.
        node.planted = Some("sync-again");
        let ended = wear_out(&mut node, &wear, scenario, whole);
        println!(
            "{name}, {}, sync again: {} writes refused; {:?}",
            scenario.name, ended.refusals, ended.whole
        );
        assert!(ended.refusals > 0 && !ended.reported && ended.whole.is_err(), "{ended:?}");
    }
    // Few changes are synced one by one.
    node.planted = None;
    let image = scenarios.iter().find_map(|s| s.image.as_ref()).expect("a disk");
    node.mount.restore(image);
    node.settle_at(newest);
    let scenario = Scenario::from("one file", &node.save("wide.image"), newest);
    write(&tree, "index.html", marked(WIDE_FILES, 20_000));
    let newest = node.commit();
    // The first sync is that of the signed record, or of the spare's row, before any content: ext4 writes a
    // file that replaces another one at once.
    let one = |point: &Point| {
        ["syncing", "replica"].contains(&point.thread.as_str())
            && ["fsync", "fdatasync"].contains(&point.call)
    };
    let ended = wear_out(&mut node, &wear, &scenario, one);
    println!("{name}, one file: {} writes refused; {:?} is live after a cut", ended.refusals, ended.whole);
    assert!(ended.refusals > 0 && ended.reported, "{ended:?}");
    assert_eq!(ended.whole, Ok(newest), "{}", ended.log);
}

#[test]
fn content_that_ext4_could_not_write_is_never_reported_live() {
    content_is_never_lost("worn-ext4", |directory| Mount::ext4(directory, 64));
}

#[test]
fn content_that_xfs_could_not_write_is_never_reported_live() {
    content_is_never_lost("worn-xfs", |directory| Mount::xfs(directory, 320));
}

/// If ext4 cannot write its log, it stops all changes until it is mounted again.
#[test]
fn a_file_system_that_gave_up_is_served_from_until_it_is_mounted_anew() {
    let scene = Scene::in_memory("worn-log");
    let (mount, wear) =
        Mount::ext4(&scene.path("disk"), 64).with_options("loop,errors=remount-ro").on_a_worn_disk();
    let (mut node, scenarios) = Node::new(&scene, mount, Rights::Root);
    let scenario = scenarios.iter().find(|s| s.name == "large update").expect("a scenario");
    let newest = node.newest();
    let worn = wear.clone();
    let policy = move |point: &Point| {
        if point.thread == "replica" && point.call == "syncfs" {
            worn.refuse(Refused::Everything);
        }
        Verdict::Pass
    };
    let mut traced = node.trace(scenario, Box::new(policy));
    let log = Traced::log_of(node.mount.directory());
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    let error = |node: &Node| node.origin.try_status()?.agents.first()?.error.clone();
    wait::until("the origin to know", || {
        error(&node).filter(|error| error.contains("Read-only file system"))
    });
    wear.refuse(Refused::Nothing);
    // The disk works again, but the file system does not.
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(2) {
        assert_eq!(node.complete(scenario.live), Ok(scenario.live), "{}", said());
        assert!(traced.ended().is_none(), "it ended: {}", said());
        assert!(error(&node).is_some(), "the origin no longer says why");
        std::thread::sleep(Duration::from_millis(50));
    }
    traced.kill();
    node.mount.power_up();
    assert_eq!(node.complete(scenario.live), Ok(scenario.live), "{}", said());
    node.settle_at(newest);
    assert_eq!(node.complete(newest), Ok(newest));
    assert!(said().contains("Read-only file system"), "{}", said());
}

/// Leftovers of an interrupted update may have failed to reach the disk, and another program may have been
/// told: the file system reports the error to each descriptor that was open at the time, and to the first one
/// opened afterwards.
#[test]
fn what_an_interrupted_update_left_is_read_from_the_disk() {
    let scene = Scene::in_memory("worn-leftovers");
    let (mount, wear) = Mount::ext4(&scene.path("disk"), 64).on_a_worn_disk();
    let (mut node, scenarios) = Node::new(&scene, mount, Rights::Root);
    widen(&node.origin.tree.clone());
    let newest = node.commit();
    for scenario in scenarios.iter().filter(|s| ["first sync", "large update"].contains(&s.name)) {
        let before = wear.refusals();
        let freeze = |point: &Point| match point.thread == "replica" && point.call == "syncfs" {
            true => Verdict::FreezeBefore,
            false => Verdict::Pass,
        };
        let mut traced = node.trace(scenario, Box::new(freeze));
        assert!(traced.wait(PATIENCE, |_| false), "{}: it never syncs", scenario.name);
        traced.kill();
        wear.refuse(Refused::Marked);
        let told = Command::new("sync").arg("-f").arg(node.mount.directory()).output().expect("run sync");
        assert!(!told.status.success() && wear.refusals() > before, "{told:?}");
        wear.refuse(Refused::Nothing);
        let again = Scenario { image: None, ..scenario.clone() };
        let live = |node: &Node| node.status().and_then(|status| status.generation) == Some(newest);
        let mut traced = node.trace(&again, Box::new(|_| Verdict::Pass));
        traced.wait(PATIENCE, |_| live(&node));
        assert!(live(&node), "{}: generation {newest} is not live", scenario.name);
        node.mount.cut_power();
        traced.kill();
        node.mount.power_up();
        println!("{}: {} writes were refused", scenario.name, wear.refusals() - before);
        assert_eq!(node.complete(newest), Ok(newest), "{}", scenario.name);
    }
}

/// The origin's packs, likewise: a commit whose content did not reach the disk is refused, and the next
/// commit stores it again.
fn no_commit_is_answered_too_early(name: &str, mount: impl FnOnce(&Path) -> Mount) {
    let scene = Scene::in_memory(name);
    let (disk, wear) = mount(&scene.path("disk")).on_a_worn_disk();
    let tree = scene.path("tree");
    small_site(&tree, 30);
    let mut origin = Origin::create_named(&scene, "disk/data", &tree);
    origin.start();
    let first = origin.commit();
    widen(&tree);
    wear.refuse(Refused::Marked);
    let refused = origin.cli("commit", &[]);
    println!("{name}: {} writes refused; {}", wear.refusals(), refused.stderr.trim());
    assert_ne!(refused.code, Some(0));
    assert!(refused.stderr.contains("Input/output error") && wear.refusals() > 0, "{refused:?}");
    assert_eq!(origin.status().generation, Some(first));
    wear.refuse(Refused::Nothing);
    let second = origin.commit();
    let root = origin.status().root;
    assert_eq!(second, first + 1);
    disk.cut_power();
    origin.kill9();
    disk.power_up();
    origin.start();
    let status = origin.status();
    assert_eq!((status.generation, &status.root), (Some(second), &root));
    origin.stop();
    let check = origin.cli("check", &[]);
    assert_eq!(check.code, Some(0), "{check:?}");
}

#[test]
fn a_commit_that_ext4_could_not_write_is_refused() {
    no_commit_is_answered_too_early("worn-origin-ext4", |directory| Mount::ext4(directory, 64));
}

#[test]
fn a_commit_that_xfs_could_not_write_is_refused() {
    no_commit_is_answered_too_early("worn-origin-xfs", |directory| Mount::xfs(directory, 320));
}
