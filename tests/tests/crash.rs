//! SIGKILL of the origin at random moments, and damage to what the agent keeps. The suite `sweep` has kills
//! and power cuts at chosen calls.
//!
//! The moments are random but repeatable: the seed is printed, and `SYNCD_SEED=N` runs them again.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::Path;
use std::time::{Duration, Instant};

use syncd_tests::edits::{Edits, closed_directories, remove, small_site, write};
use syncd_tests::replica::assert_no_litter;
use syncd_tests::{Agent, Origin, Scene, Seeded, is_root, wait};

/// Two running agents: one of this process's user, and one without privileges.
fn two_agents(scene: &Scene, origin: &Origin, options: &[&str]) -> [Agent; 2] {
    let agents = [Agent::new(scene, "web1"), Agent::new(scene, "web2").unprivileged(scene)];
    let agents = agents.map(|agent| {
        let mut agent = agent.with_options(options);
        agent.join(origin.address(), &origin.token()).expect_success();
        agent.start();
        agent
    });
    origin.wait_connected(&["web1", "web2"]);
    agents
}

/// Makes directories that deny their owner something. Only root could publish them.
fn close(tree: &Path, round: usize) {
    if is_root() {
        closed_directories(tree, round);
    }
}

/// Waits for a random part of `span`, until the moment of the kill.
fn pass(random: &mut Seeded, span: Duration) {
    let moment = Duration::from_micros(random.below(span.as_micros() as u64 + 1));
    let started = Instant::now();
    while started.elapsed() < moment {
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn an_origin_killed_in_scan_or_seal_has_the_previous_or_the_new_generation() {
    const KILLS: u32 = 25;
    let mut random = Seeded::announced("kills of the origin");
    let scene = Scene::new("crash-origin");
    let tree = scene.path("tree");
    small_site(&tree, 400);
    close(&tree, 0);
    let mut origin = Origin::started(&scene, &tree);
    let mut agent = Agent::new(&scene, "web1").unprivileged(&scene);
    agent.join(origin.address(), &origin.token()).expect_success();
    agent.start();
    origin.wait_connected(&["web1"]);
    let mut newest = origin.commit_live();
    let mut edits = Edits::new(&tree, random.next_u64()).closing();
    let mut sealed_as = BTreeMap::from([(newest, agent.expects(&tree))]);

    // Measures how long a commit takes here, with the same work as each commit below.
    edits.round(40);
    remove(&tree.join("large.bin"));
    write(&tree, "large.bin", random.bytes(2_000_000));
    let started = Instant::now();
    newest = origin.commit();
    sealed_as.insert(newest, agent.expects(&tree));
    let mut span = (started.elapsed() * 2).max(Duration::from_millis(40));
    let mut sealed = 0;
    for _ in 0..KILLS {
        edits.round(40);
        remove(&tree.join("large.bin"));
        write(&tree, "large.bin", random.bytes(2_000_000));
        let expected = agent.expects(&tree);
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
            sealed_as.insert(newest, expected);
            span = span * 3 / 4;
        } else {
            // The machine may have become slower: the kills follow the commits' pace.
            span = span * 4 / 3;
        }
        agent.wait_live(newest);
        let differences = agent.differences(&sealed_as[&newest], &agent.live()).expect("walk what is live");
        assert!(differences.is_empty(), "generation {newest}: {differences:?}");
    }
    assert!(sealed > 0 && sealed < KILLS, "the kills fell before and after sealing: {sealed} of {KILLS}");
    println!("{sealed} of {KILLS} commits were sealed before the kill");
    origin.wait_connected(&["web1"]);
    origin.commit_live();
    agent.assert_live_is(&tree);
    origin.stop();
    origin.cli("check", &[]).expect_success();
    origin.start();
}

#[test]
fn damage_in_a_retired_tree_never_comes_back_to_life_through_a_spare() {
    damage_retired_trees("damage", "link", 14);
}

#[test]
fn damage_in_a_tree_that_was_live_at_a_directory_never_comes_back_to_life() {
    damage_retired_trees("damage-exchange", "exchange", 5);
}

fn damage_retired_trees(name: &str, swap: &str, rounds: u64) {
    let scene = Scene::new(name);
    let tree = scene.path("tree");
    small_site(&tree, 100);
    close(&tree, 0);
    let origin = Origin::started(&scene, &tree);
    let agents = two_agents(&scene, &origin, &["--swap", swap, "--grace", "500ms", "--keep", "2"]);
    origin.commit_live();
    write(&tree, "index.html", "second");
    let second = origin.commit_live();

    for round in 0..rounds {
        agents.iter().for_each(|agent| damage_retired(agent, round));
        write(&tree, "index.html", format!("round {round}"));
        write(&tree, &format!("section-1/new-{round}.html"), "new");
        close(&tree, round as usize + 1);
        let number = origin.commit_live();
        assert!(number > second);
        for agent in &agents {
            agent.assert_live_is(&tree);
            // A spare has to be made of what was retired.
            wait::until("a spare to be ready", || agent.try_status().filter(|status| status.spares >= 1));
            agent.assert_live_is(&tree);
        }
    }
    agents.iter().for_each(assert_no_litter);
}

/// Damages every tree that is not live, in every way that does not reach the live tree's inodes.
fn damage_retired(agent: &Agent, round: u64) {
    let live = agent.live_generation().expect("a live generation");
    for number in agent.status().generations {
        let retired = agent.root.join(format!("generations/{number}"));
        if number != live && retired.exists() {
            damage(&retired, round);
        }
    }
}

/// Damages a tree whose files are hard-linked into others: only by new inodes and names. The agent may use
/// the tree at the same moment, so errors are ignored.
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
    // Not create_dir_all: if the agent has moved the tree away, its name must not come back. Only root can
    // empty another user's directory.
    for planted in ["section-3/planted-directory", "section-3/planted-directory/deep"] {
        let _ = fs::create_dir(tree.join(planted));
        if let Ok(owner) = fs::metadata(tree) {
            let _ = lchown(tree.join(planted), Some(owner.uid()), Some(owner.gid()));
        }
    }
    let _ = fs::remove_file(tree.join("section-4/page-4.html"));
    let _ = std::os::unix::fs::symlink("/etc", tree.join("section-5/planted-link"));
    if tree.join("section-6").exists() && round.is_multiple_of(3) {
        let _ = fs::remove_dir_all(tree.join("section-6"));
    }
}

#[test]
fn verify_finds_drift_and_heals_it() {
    drift_is_healed("verify", "link");
}

#[test]
fn verify_heals_drift_in_a_directory_that_is_live() {
    drift_is_healed("verify-exchange", "exchange");
}

fn drift_is_healed(name: &str, swap: &str) {
    let scene = Scene::new(name);
    let tree = scene.path("tree");
    small_site(&tree, 60);
    close(&tree, 0);
    let origin = Origin::started(&scene, &tree);
    let agents = two_agents(&scene, &origin, &["--swap", swap]);
    origin.commit_live();
    for agent in &agents {
        assert_eq!(agent.cli("verify", &[]).code, Some(0), "nothing to find");
        let live = agent.live();
        fs::write(live.join("section-1/page-1.html"), "edited on the node").expect("edit");
        write(&live, "planted.php", "planted");
        remove(&live.join("section-2/page-2.html"));
        if is_root() {
            write(&live, "closed/1/inner/planted.php", "planted");
            remove(&live.join("closed/2/page.html"));
        }
        let outcome = agent.cli("verify", &["--json"]);
        println!("{outcome:#?}");
        assert!(outcome.stdout.contains("page-1.html"), "drift is reported: {outcome:#?}");
        agent.assert_live_is(&tree);
        assert_eq!(agent.cli("verify", &[]).code, Some(0), "healed");
    }
}
