//! The error sweep: calls by which the real agent changes its disk fail, once or until the fault ends.
//!
//! As in the crash sweep each call of a counted run is a case, with each error that it can give. A share of the cases runs
//! by default; `SYNCD_SEED=N` repeats the choice, `SYNCD_SWEEP=N` takes N cases, `SYNCD_SWEEP=full` all:
//!
//! ```text
//! SYNCD_SWEEP=full ./tests/run errors
//! ```

use std::collections::BTreeMap;
use std::time::Instant;

use syncd_tests::edits::{small_site, write};
use syncd_tests::faults::{Failing, Fault};
use syncd_tests::hub::{Errand, Hub};
use syncd_tests::mounts::Mount;
use syncd_tests::node::{Node, Scenario};
use syncd_tests::oracle::{assert_same, fingerprint};
use syncd_tests::tracer::Point;
use syncd_tests::{Agent, Origin, Scene, Seeded, wait};

/// Cases unless `SYNCD_SWEEP` says otherwise.
const SHARE: usize = 60;

fn share() -> Option<usize> {
    match std::env::var("SYNCD_SWEEP") {
        Ok(text) if text == "full" => None,
        Ok(text) => Some(text.parse().expect("SYNCD_SWEEP is a number or full")),
        Err(_) => Some(SHARE),
    }
}

/// Every call with every fault that can hit it, by fault and kind of call.
fn kinds_of(points: &[Point]) -> BTreeMap<String, Vec<Failing>> {
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
    kinds
}

/// A kind of case at random, then one of them.
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

#[test]
fn no_error_of_the_disk_is_lost_or_lasts() {
    let mut random = Seeded::announced("errors");
    let scene = Scene::in_memory("errors");
    let mount = Mount::ext4(&scene.path("disk"), 64);
    let started = Instant::now();
    let (mut node, scenarios) = Node::new(&scene, mount);
    let mut complaints = Vec::new();
    let mut all = 0;
    let scenarios: Vec<Scenario> = scenarios.into_iter().filter(|s| s.origin_answers).collect();
    for scenario in &scenarios {
        let mut kinds = kinds_of(&node.count(scenario));
        let counted: usize = kinds.values().map(Vec::len).sum();
        let (mut tried, mut failed, mut logged, mut reported, mut ended) = (0, 0, 0, 0, 0);
        let most = share().map_or(usize::MAX, |share| share.div_ceil(scenarios.len()));
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
            "{}: {tried} of {counted} cases, {failed} calls failed; {logged} logged, {reported} at the origin's status, {ended} agents ended",
            scenario.name
        );
    }
    println!("{all} cases in {:.0} s", started.elapsed().as_secs_f64());
    assert!(complaints.is_empty(), "{} complaints:\n{}", complaints.len(), complaints.join("\n"));
}

#[test]
fn no_error_under_data_loses_a_generation() {
    let mut random = Seeded::announced("errors under DATA");
    let scene = Scene::in_memory("errors-origin");
    let mount = Mount::ext4(&scene.path("disk"), 64);
    let mut hub = Hub::new(&scene, mount);
    let mut kinds = kinds_of(&hub.count(Errand::Commit));
    let counted: usize = kinds.values().map(Vec::len).sum();
    let (mut tried, mut failed, mut complaints) = (0, 0, Vec::new());
    while share().is_none_or(|share| tried < share / 4) {
        let Some(failing) = draw(&mut kinds, &mut random) else { break };
        tried += 1;
        match hub.fail(failing) {
            Ok(calls) => failed += calls,
            Err(complaint) => {
                println!("COMPLAINT {complaint}");
                complaints.push(complaint);
            }
        }
    }
    println!("{tried} of {counted} cases, {failed} calls failed");
    assert!(complaints.is_empty(), "{} complaints:\n{}", complaints.len(), complaints.join("\n"));
}

#[test]
fn what_a_failed_sync_left_is_never_taken_for_durable() {
    let scene = Scene::in_memory("errors-sync");
    let mount = Mount::ext4(&scene.path("disk"), 64);
    let (mut node, scenarios) = Node::new(&scene, mount);
    let scenario = scenarios.iter().find(|s| s.name == "large update").expect("a scenario");
    let written = |points: &[Point]| {
        points.iter().filter(|p| p.call == "openat2" && p.path.contains("staging/")).count()
    };
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

/// An agent that waits a moment only after an error.
fn hasty(scene: &Scene, origin: &Origin, root: &std::path::Path) -> Agent {
    let mut agent = Agent::new(scene, "web1").at(root).with_options(&["--grace", "0s"]);
    agent.join(origin.address(), &origin.token()).expect_success();
    agent.under(&["env".into(), "SYNCD_HASTY=1".into()]);
    agent
}

/// Waits until the agent and the origin say that `word`.
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
    // Someone else takes all the space.
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
    // Longer than the origin takes to miss an agent that has fallen silent would be long for a test: a few heartbeats.
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
