//! SIGKILL at random moments. `live` is one complete generation at every look, and no litter stays.
//!
//! The moments are random but repeatable: the seed is printed, `SYNCD_SEED=N` runs them again.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use syncd_tests::edits::{Edits, remove, small_site, write};
use syncd_tests::oracle::{assert_same, fingerprint};
use syncd_tests::replica::assert_no_litter;
use syncd_tests::{Agent, Origin, Scene, Seeded, wait};

/// What every sealed generation is, as the oracle saw the tree when it was sealed.
#[derive(Default)]
struct Known(BTreeMap<u64, String>);

impl Known {
    fn commit(&mut self, origin: &Origin) -> u64 {
        let print = fingerprint(&origin.tree);
        let number = origin.commit();
        self.0.insert(number, print);
        number
    }

    /// Panics unless `live` is exactly one known generation, and not an older one than before.
    #[track_caller]
    fn assert_complete(&self, agent: &Agent, floor: &mut u64) {
        let Some(number) = agent.live_generation() else {
            assert_eq!(*floor, 0, "the live link is gone");
            assert!(fs::symlink_metadata(agent.live()).is_err(), "live leads nowhere");
            return;
        };
        assert!(number >= *floor, "live went back from {floor} to {number}");
        *floor = number;
        let actual = fingerprint(&agent.live());
        assert!(self.0.get(&number) == Some(&actual), "live says generation {number}, but is not that");
    }
}

/// Waits a random part of `span`: the moment of the kill.
fn pass(random: &mut Seeded, span: Duration) {
    let moment = Duration::from_micros(random.below(span.as_micros() as u64 + 1));
    let started = Instant::now();
    while started.elapsed() < moment {
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn an_agent_killed_in_updates_always_has_one_complete_generation_live() {
    const KILLS: u32 = 90;
    let mut random = Seeded::announced("kills in updates");
    let scene = Scene::new("crash");
    let tree = scene.path("tree");
    small_site(&tree, 250);
    let origin = Origin::started(&scene, &tree);
    let mut known = Known::default();
    let mut agent = Agent::joined(&scene, &origin, "web1").with_options(&["--grace", "1s"]);
    let first = known.commit(&origin);
    agent.start();
    agent.wait_live(first);
    let mut floor = first;
    let mut edits = Edits::new(&tree, random.next_u64());

    // How long an update takes here, from commit to live.
    edits.round(20);
    let started = Instant::now();
    let second = known.commit(&origin);
    agent.wait_live(second);
    let span = (started.elapsed() * 2).clamp(Duration::from_millis(30), Duration::from_secs(2));
    println!("kills are spread over {span:?} after a commit");

    let mut seen: BTreeMap<u64, u32> = BTreeMap::new();
    for kill in 0..KILLS {
        if kill % 3 != 2 {
            edits.round(30);
            known.commit(&origin);
        }
        // A third of the kills hits the recovery and the catching up of the one before.
        pass(&mut random, span);
        agent.kill9();
        known.assert_complete(&agent, &mut floor);
        *seen.entry(floor).or_default() += 1;
        agent.start();
        if random.one_in(4) {
            let newest = known.0.keys().next_back().copied().expect("generations");
            agent.wait_live(newest);
            known.assert_complete(&agent, &mut floor);
        }
    }
    println!("{KILLS} kills saw {} different generations live", seen.len());
    assert!(seen.len() > 5, "the agent made progress between the kills");
    let last = known.commit(&origin);
    agent.wait_live(last);
    assert_same(&tree, &agent.live());
    assert_no_litter(&agent);
    let verified = agent.cli("verify", &[]);
    assert_eq!(verified.code, Some(0), "{verified:#?}");
}

#[test]
fn an_agent_killed_in_its_first_sync_has_nothing_or_everything_live() {
    const KILLS: u32 = 30;
    let mut random = Seeded::announced("kills in the first sync");
    let scene = Scene::new("crash-first");
    let tree = scene.path("tree");
    small_site(&tree, 1500);
    let mut bytes = Seeded::new(5);
    for number in 0..8 {
        write(&tree, &format!("large/{number}.bin"), bytes.bytes(3_000_000));
    }
    let origin = Origin::started(&scene, &tree);
    let mut known = Known::default();
    let first = known.commit(&origin);
    let agent = Agent::started(&scene, &origin, "timer");
    let started = Instant::now();
    agent.wait_live(first);
    let span = started.elapsed();
    drop(agent);
    println!("kills are spread over {span:?} after the start");

    let mut kills = 0;
    let mut replicas = 0;
    while kills < KILLS {
        replicas += 1;
        let mut agent = Agent::joined(&scene, &origin, &format!("web{replicas}"));
        let mut floor = 0;
        // The same replica again and again, until it got through.
        while floor == 0 && kills < KILLS {
            agent.start();
            pass(&mut random, span);
            agent.kill9();
            kills += 1;
            known.assert_complete(&agent, &mut floor);
        }
        agent.start();
        agent.wait_live(first);
        assert_same(&tree, &agent.live());
        assert_no_litter(&agent);
    }
    println!("{kills} kills in the first syncs of {replicas} replicas");
}

#[test]
fn an_origin_killed_in_scan_or_seal_has_the_previous_or_the_new_generation() {
    const KILLS: u32 = 25;
    let mut random = Seeded::announced("kills of the origin");
    let scene = Scene::new("crash-origin");
    let tree = scene.path("tree");
    small_site(&tree, 400);
    let mut origin = Origin::started(&scene, &tree);
    let agent = Agent::started(&scene, &origin, "web1");
    origin.wait_connected(&["web1"]);
    let mut newest = origin.commit_live();
    agent.wait_live(newest);
    let mut edits = Edits::new(&tree, random.next_u64());
    let mut prints = BTreeMap::from([(newest, fingerprint(&tree))]);

    // How long a commit takes here, with what each of the commits below has to do.
    edits.round(40);
    remove(&tree.join("large.bin"));
    write(&tree, "large.bin", random.bytes(2_000_000));
    let started = Instant::now();
    newest = origin.commit();
    prints.insert(newest, fingerprint(&tree));
    let span = (started.elapsed() * 2).max(Duration::from_millis(40));
    let mut sealed = 0;
    for _ in 0..KILLS {
        edits.round(40);
        remove(&tree.join("large.bin"));
        write(&tree, "large.bin", random.bytes(2_000_000));
        let print = fingerprint(&tree);
        let mut commit = origin.command("commit", &[]);
        commit.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut commit = commit.spawn().expect("start commit");
        pass(&mut random, span);
        origin.kill9();
        assert!(commit.wait().expect("commit ends").code().is_some(), "commit ends when the origin does");
        origin.start();
        let status = origin.status();
        let number = status.generation.expect("a generation");
        assert!(number == newest || number == newest + 1, "{number} follows {newest}: {status:?}");
        if number > newest {
            sealed += 1;
            newest = number;
            prints.insert(newest, print);
        }
        agent.wait_live(newest);
        assert!(prints.get(&newest) == Some(&fingerprint(&agent.live())), "generation {newest} is whole");
    }
    assert!(sealed > 0 && sealed < KILLS, "the kills fell before and after sealing: {sealed} of {KILLS}");
    println!("{sealed} of {KILLS} commits were sealed before the kill");
    origin.wait_connected(&["web1"]);
    let last = origin.commit_live();
    agent.wait_live(last);
    assert_same(&tree, &agent.live());
    origin.stop();
    origin.cli("check", &[]).expect_success();
    origin.start();
}

#[test]
fn damage_in_a_retired_tree_never_comes_back_to_life_through_a_spare() {
    let scene = Scene::new("damage");
    let tree = scene.path("tree");
    small_site(&tree, 100);
    let origin = Origin::started(&scene, &tree);
    let mut agent = Agent::joined(&scene, &origin, "web1").with_options(&["--grace", "500ms", "--keep", "2"]);
    agent.start();
    origin.wait_connected(&["web1"]);
    origin.commit_live();
    write(&tree, "index.html", "second");
    let second = origin.commit_live();

    for round in 0..14_u64 {
        // Every tree that is not live gets damage of every kind that does not reach the live tree's inodes.
        let live = agent.live_generation().expect("a live generation");
        for number in agent.status().generations {
            let retired = agent.root.join(format!("generations/{number}"));
            if number != live && retired.exists() {
                damage(&retired, round);
            }
        }
        write(&tree, "index.html", format!("round {round}"));
        write(&tree, &format!("section-1/new-{round}.html"), "new");
        let number = origin.commit_live();
        assert!(number > second);
        assert_same(&tree, &agent.live());
        // Let a spare be made of what was retired.
        wait::until("a spare to be ready", || agent.try_status().filter(|status| status.spares >= 1));
        assert_same(&tree, &agent.live());
    }
    assert_no_litter(&agent);
}

/// Damages a tree whose files are hard-linked into others: by new inodes and by names only. The agent may be taking the
/// tree at the same moment, so nothing here insists.
fn damage(tree: &Path, round: u64) {
    let victim = tree.join("section-2/page-2.html");
    if let Ok(metadata) = fs::metadata(&victim) {
        let forged = tree.join("section-2/.forged");
        let content = vec![b'X'; metadata.len() as usize];
        let forge = || -> std::io::Result<()> {
            fs::write(&forged, &content)?;
            fs::File::options().write(true).open(&forged)?.set_modified(metadata.modified()?)?;
            fs::rename(&forged, &victim)
        };
        let _ = forge();
    }
    let _ = fs::write(tree.join(format!("planted-{round}.php")), "<?php evil");
    // Not create_dir_all: where the agent took the tree away, its name must not come back.
    let _ = fs::create_dir(tree.join("section-3/planted-directory"));
    let _ = fs::create_dir(tree.join("section-3/planted-directory/deep"));
    let _ = fs::remove_file(tree.join("section-4/page-4.html"));
    let _ = std::os::unix::fs::symlink("/etc", tree.join("section-5/planted-link"));
    if tree.join("section-6").exists() && round.is_multiple_of(3) {
        let _ = fs::remove_dir_all(tree.join("section-6"));
    }
}

#[test]
fn verify_finds_drift_and_heals_it() {
    let scene = Scene::new("verify");
    let tree = scene.path("tree");
    small_site(&tree, 60);
    let origin = Origin::started(&scene, &tree);
    let agent = Agent::started(&scene, &origin, "web1");
    origin.wait_connected(&["web1"]);
    origin.commit_live();
    assert_eq!(agent.cli("verify", &[]).code, Some(0), "nothing to find");

    let live = agent.live();
    fs::write(live.join("section-1/page-1.html"), "edited on the node").expect("edit");
    write(&live, "planted.php", "planted");
    remove(&live.join("section-2/page-2.html"));
    let outcome = agent.cli("verify", &["--json"]);
    println!("{outcome:#?}");
    assert!(outcome.stdout.contains("page-1.html"), "drift is reported: {outcome:#?}");
    wait::until_ok("the drift to be healed", || {
        let differences = syncd_tests::oracle::rsync_differences(&tree, &agent.live());
        if differences.is_empty() { Ok(()) } else { Err(differences) }
    });
    assert_same(&tree, &agent.live());
    assert_eq!(agent.cli("verify", &[]).code, Some(0), "healed");
}
