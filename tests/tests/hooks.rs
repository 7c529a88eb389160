//! The on-activate hook decides what is live. If the hook that resolves the document root fails, Apache stays
//! on the old generation, which is reported everywhere and stays complete.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use syncd_tests::edits::{remove, write};
use syncd_tests::{Agent, Apache, DocumentRoot, Origin, Scene, Seeded, http, wait};

/// A hook that behaves like `real`, but fails while `broken` exists.
fn breakable(scene: &Scene, real: &Path, broken: &Path) -> PathBuf {
    let hook = scene.path("hook");
    let text = format!(
        "#!/bin/sh\nif [ -e {0} ]; then echo 'AH00526: Syntax error' >&2; exit 1; fi\nexec {1}\n",
        broken.display(),
        real.display()
    );
    write(scene.directory(), "hook", text);
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    hook
}

/// web1, joined, with or without privileges.
#[track_caller]
fn joined(scene: &Scene, origin: &Origin, is_unprivileged: bool) -> Agent {
    let agent = Agent::new(scene, "web1");
    let agent = if is_unprivileged { agent.unprivileged(scene) } else { agent };
    agent.join(origin.address(), &origin.token()).expect_success();
    agent
}

/// An empty file that every user may write.
#[track_caller]
fn open_log(path: &Path) {
    std::fs::write(path, "").expect("make the log");
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o666)).expect("chmod");
}

#[track_caller]
fn healthz(address: &str) -> String {
    let answer = http::get(address, "/healthz").expect("a health answer");
    assert_eq!(answer.status, 200, "{}", answer.head);
    String::from_utf8(answer.body).expect("text")
}

#[test]
fn waiting_for_what_is_switched_already_has_a_mended_hook_run_at_once() {
    a_mended_hook(false);
    a_mended_hook(true);
}

fn a_mended_hook(is_unprivileged: bool) {
    let scene = Scene::new("hook-mended");
    let tree = scene.path("tree");
    write(&tree, "index.html", "one");
    let origin = Origin::started(&scene, &tree);
    let broken = scene.path("broken");
    std::fs::write(&broken, "").expect("break the hook");
    let hook = format!("test ! -e {} || {{ echo broken >&2; exit 1; }}", broken.display());
    let mut web1 = joined(&scene, &origin, is_unprivileged).with_options(&["--on-activate", &hook]);
    web1.start();
    origin.wait_connected(&["web1"]);
    origin.cli("commit", &["--wait"]).expect_code(3);
    // The pauses between attempts grow: after five attempts the next one is seconds away.
    wait::until("five attempts", || {
        let status = origin.cli("status", &["--json"]).expect_success().json();
        let hook = &status["agents"][0]["hook"];
        (hook["attempt"].as_u64() >= Some(5) && hook["outcome"] == "failed").then_some(())
    });
    origin.cli("commit", &["--wait"]).expect_code(3);
    std::fs::remove_file(&broken).expect("mend the hook");
    let outcome = origin.cli("commit", &["--wait"]).expect_success();
    assert!(outcome.stderr.contains("nothing changed"), "{outcome:#?}");
    assert!(outcome.stderr.contains("web1 live after"), "{outcome:#?}");
}

#[test]
fn what_follows_a_live_generation_runs_until_it_succeeds_and_is_no_part_of_live() {
    let scene = Scene::new("hook-after");
    let tree = scene.path("tree");
    write(&tree, "index.html", "one");
    let origin = Origin::started(&scene, &tree);
    let (broken, late, out) = (scene.path("broken"), scene.path("late"), scene.path("out"));
    let on = format!("test ! -e {}", broken.display());
    let after = format!(
        "test ! -e {} || {{ echo no answer; exit 1; }}; {{ cat; echo generation $SYNCD_GENERATION; }} >> {}",
        late.display(),
        out.display()
    );
    let options = ["--on-activate", &on, "--after-activate", &after];
    let mut web1 = Agent::joined(&scene, &origin, "web1").with_options(&options);
    web1.start();
    origin.wait_connected(&["web1"]);
    origin.commit_live();
    let wait_told = |expected: &str| {
        wait::until_ok("the hook to be told", || {
            let told = std::fs::read_to_string(&out).unwrap_or_default();
            if told == expected { Ok(()) } else { Err(told) }
        });
    };
    wait_told("index.html\ngeneration 1\n");
    // Not before the node is live.
    std::fs::write(&broken, "").expect("break on-activate");
    std::fs::write(&late, "").expect("break after-activate");
    write(&tree, "a.html", "two");
    origin.cli("commit", &["--wait"]).expect_code(3);
    wait::until_ok("after-activate to be due", || {
        let status = web1.cli("status", &["--json"]).expect_success().json();
        let after = &status["after"];
        let is_due = status["state"] == "switched" && after["generation"] == 2 && after["outcome"] == "due";
        if is_due { Ok(()) } else { Err(status.to_string()) }
    });
    std::fs::remove_file(&broken).expect("mend on-activate");
    origin.cli("commit", &["--wait"]).expect_success();
    wait::until_ok("after-activate to fail", || {
        let status = web1.cli("status", &[]).stdout;
        if status.contains("after-activate failed: exit status: 1: no answer") { Ok(()) } else { Err(status) }
    });
    // Its failure is nobody's concern, and an agent that was killed goes on with it.
    write(&tree, "b.html", "three");
    origin.cli("commit", &["--wait"]).expect_success();
    web1.kill9();
    std::fs::remove_file(&late).expect("mend after-activate");
    web1.start();
    wait_told("index.html\ngeneration 1\na.html\nb.html\ngeneration 3\n");
}

#[test]
fn healing_has_the_hook_run_again_for_every_path() {
    healing(false);
    healing(true);
}

fn healing(is_unprivileged: bool) {
    let scene = Scene::new("hook-healing");
    let tree = scene.path("tree");
    for name in ["index.html", "login.php", "other.html"] {
        write(&tree, name, name);
    }
    let origin = Origin::started(&scene, &tree);
    let runs = scene.path("runs");
    open_log(&runs);
    let hook = format!(
        "{{ echo generation $SYNCD_GENERATION, paths $(wc -l), slot $(wc -c < $SYNCD_SLOT_PATHS); }} >> {}",
        runs.display()
    );
    let mut web1 = joined(&scene, &origin, is_unprivileged).with_options(&["--on-activate", &hook]);
    web1.start();
    origin.wait_connected(&["web1"]);
    origin.commit_live();
    let told = || std::fs::read_to_string(&runs).unwrap_or_default();
    let first = told();
    assert_eq!(first.lines().count(), 1, "{first}");
    std::fs::write(web1.root.join("live/login.php"), "a back door").expect("edit the live tree");
    let outcome = web1.cli("verify", &[]);
    assert!(outcome.stdout.contains("healed"), "{outcome:#?}");
    wait::until("the hook's second run", || (told().lines().count() == 2).then_some(()));
    let (first, second) = (first.trim_end().to_owned(), told());
    assert_eq!(
        second.lines().collect::<Vec<_>>(),
        [first.as_str(), first.as_str()],
        "all paths, slot unknown"
    );
    wait::until("the node is live again", || {
        let status = origin.cli("status", &["--json"]).expect_success().json();
        (status["agents"][0]["hook"]["outcome"] == "ok").then_some(())
    });
}

#[test]
fn a_hook_that_fails_is_told_everywhere_and_what_apache_still_serves_stays() {
    let scene = Scene::new("hook-fails");
    let tree = scene.path("tree");
    write(&tree, "index.html", "one");
    write(&tree, "only-in-1.html", "still here");
    let mut origin = Origin::started(&scene, &tree);
    let web1 = Agent::joined(&scene, &origin, "web1");
    let mut apache = Apache::configured(&scene, "apache", &web1.root, &DocumentRoot::Resolved);
    let broken = scene.path("broken");
    let hook = breakable(&scene, &apache.hook(), &broken);
    let command = hook.display().to_string();
    // With the tightest options: nothing is kept, and nothing rests.
    let mut web1 = web1.with_options(&["--on-activate", &command, "--keep", "1", "--grace", "0s"]);
    web1.start();
    let _web2 = Agent::started(&scene, &origin, "web2");
    origin.wait_connected(&["web1", "web2"]);
    assert_eq!(origin.commit_live(), 1);
    apache.start();
    let first = web1.root.join("generations/1/only-in-1.html");

    std::fs::write(&broken, "").expect("break the hook");
    write(&tree, "index.html", "two");
    remove(&tree.join("only-in-1.html"));
    let outcome = origin.cli("commit", &["--wait"]).expect_code(3);
    let failed = "web1 hook failed: exit status: 1: AH00526: Syntax error";
    assert!(outcome.stderr.lines().any(|line| line == failed), "{outcome:#?}");
    assert!(outcome.stderr.contains("web2 live after"), "{outcome:#?}");

    let status = origin.cli("status", &["--json"]).expect_success().json();
    let [on_web1, on_web2] = [&status["agents"][0], &status["agents"][1]];
    assert_eq!(on_web1["state"], "switched", "{on_web1:#}");
    assert_eq!(on_web1["generation"], 2, "{on_web1:#}");
    assert_eq!(on_web1["hook"]["succeeded"], 1, "{on_web1:#}");
    assert_eq!(on_web1["hook"]["generation"], 2, "{on_web1:#}");
    let error = on_web1["error"].as_str().expect("an error");
    assert!(error.contains("hook failed: exit status: 1: AH00526"), "{error}");
    assert_eq!(on_web2["state"], "live", "{on_web2:#}");
    assert!(on_web2["hook"].is_null(), "{on_web2:#}");
    let text = origin.cli("status", &[]).expect_success().stdout;
    assert!(text.contains("1 of 2 have it live") && text.contains("hook failed: exit status: 1"), "{text}");
    let health = healthz(&origin.status().http_address.expect("an address"));
    assert!(health.contains("not live on 1 node, hook failed: web1"), "{health}");
    let at_node = web1.cli("status", &["--json"]).expect_success().json();
    assert_eq!(at_node["state"], "switched", "{at_node:#}");
    assert_eq!(at_node["hook"]["outcome"], "failed", "{at_node:#}");
    let text = web1.cli("status", &[]).expect_success().stdout;
    assert!(text.starts_with("web1: generation 2 is switched") && text.contains("hook failed"), "{text}");

    // One further generation is activated, and the others wait. A kill changes nothing.
    for number in 3..8 {
        write(&tree, "index.html", format!("version {number}"));
        let outcome = origin.cli("commit", &["--wait"]).expect_code(3);
        let waits = format!("generation {number} waits: the on-activate hook of generation 3 keeps failing");
        assert_eq!(outcome.stderr.contains(&waits), number > 3, "{outcome:#?}");
        assert!(outcome.stderr.contains("web1 hook failed: "), "{outcome:#?}");
        if number == 5 {
            web1.kill9();
            let offline = web1.cli("status", &["--json"]).expect_success().json();
            assert_eq!(offline["state"], "switched", "{offline:#}");
            origin.stop();
            origin.start();
            let status = origin.cli("status", &["--json"]).expect_success().json();
            assert_eq!(status["agents"][0]["state"], "switched", "away, and known as it was: {status:#}");
            web1.start();
            origin.wait_connected(&["web1"]);
        }
        assert_eq!(web1.live_generation(), Some(3));
        apache.assert_serves("/only-in-1.html", &first);
        assert_eq!(apache.get("/index.html").body, b"one");
    }
    assert_eq!(web1.status().generations, [1, 2, 3]);

    // The hook is repaired: the next commit runs it at once.
    remove(&broken);
    write(&tree, "index.html", "eight");
    let outcome = origin.cli("commit", &["--wait"]).expect_success();
    assert!(outcome.stderr.contains("web1 live after"), "{outcome:#?}");
    assert_eq!(apache.get("/index.html").body, b"eight");
    assert_eq!(origin.status().agent("web1").state, "live");
    assert_eq!(healthz(&origin.status().http_address.expect("an address")), "ok generation 8\n");
    wait::until("what nobody serves any more to be recycled", || {
        (web1.status().generations == [8]).then_some(())
    });
}

#[test]
fn an_agent_that_runs_without_the_hook_drops_what_was_due() {
    let scene = Scene::new("hook-removed");
    let tree = scene.path("tree");
    write(&tree, "index.html", "one");
    let origin = Origin::started(&scene, &tree);
    let mut agent = Agent::joined(&scene, &origin, "web1").with_options(&["--on-activate", "exit 1"]);
    agent.start();
    origin.wait_connected(&["web1"]);
    origin.cli("commit", &["--wait"]).expect_code(3);
    agent.stop();
    assert!(agent.root.join("state/on-activate.pending").exists());
    let mut agent = Agent::new(&scene, "web1");
    agent.start();
    origin.wait_connected(&["web1"]);
    let outcome = origin.cli("commit", &["--wait"]).expect_success();
    assert!(outcome.stderr.contains("web1 live"), "{outcome:#?}");
    assert!(!agent.root.join("state/on-activate.pending").exists());
    agent.stop();
}

#[test]
fn a_hook_that_is_set_or_changed_later_runs_for_what_is_live_already() {
    let scene = Scene::new("hook-later");
    let tree = scene.path("tree");
    for name in ["index.html", "login.php", "other.html"] {
        write(&tree, name, name);
    }
    let origin = Origin::started(&scene, &tree);
    let mut web1 = Agent::joined(&scene, &origin, "web1");
    web1.start();
    origin.wait_connected(&["web1"]);
    origin.commit_live();
    web1.stop();
    let runs = scene.path("runs");
    let told = || std::fs::read_to_string(&runs).unwrap_or_default();
    let run = |name: &str| {
        let hook = format!("echo {name} $SYNCD_GENERATION, paths $(wc -l) >> {}", runs.display());
        let mut agent = Agent::new(&scene, "web1").with_options(&["--on-activate", &hook]);
        agent.start();
        origin.wait_connected(&["web1"]);
        wait::until("the node is live", || (agent.cli("status", &["--check"]).code == Some(0)).then_some(()));
        agent
    };
    // Every start except the first with a command finds that a command has already succeeded.
    let mut expected = String::new();
    for (name, is_new) in [("first", true), ("first", false), ("second", true), ("second", false)] {
        let mut agent = run(name);
        if is_new {
            expected += &format!("{name} 1, paths 3\n");
        }
        wait::until("the run of a new hook", || (told() == expected).then_some(()));
        agent.stop();
        assert_eq!(told(), expected);
    }
    // Without a hook nobody knows afterwards what a web server has.
    let mut agent = Agent::new(&scene, "web1");
    agent.start();
    origin.wait_connected(&["web1"]);
    agent.stop();
    let mut agent = run("second");
    expected += "second 1, paths 3\n";
    wait::until("the run after a start without it", || (told() == expected).then_some(()));
    agent.kill9();
}

#[test]
fn a_hook_runs_at_the_next_start_for_what_was_healed_while_no_agent_ran() {
    healing_offline(false);
    healing_offline(true);
}

fn healing_offline(is_unprivileged: bool) {
    let scene = Scene::new("hook-offline");
    let tree = scene.path("tree");
    write(&tree, "index.html", "one");
    write(&tree, "login.php", "one");
    let origin = Origin::started(&scene, &tree);
    let runs = scene.path("runs");
    open_log(&runs);
    let hook = format!("{{ wc -l; wc -c < $SYNCD_SLOT_PATHS; }} >> {}", runs.display());
    let mut web1 = joined(&scene, &origin, is_unprivileged).with_options(&["--on-activate", &hook]);
    web1.start();
    origin.wait_connected(&["web1"]);
    origin.commit_live();
    web1.stop();
    let told = || std::fs::read_to_string(&runs).unwrap_or_default();
    assert_eq!(told(), "2\n0\n");
    std::fs::write(web1.root.join("live/login.php"), "a back door").expect("edit the live tree");
    let outcome = web1.cli("verify", &[]);
    assert!(outcome.stdout.contains("healed"), "{outcome:#?}");
    let status = web1.cli("status", &["--json"]).expect_success().json();
    assert_eq!(status["state"], "switched", "{status:#}");
    assert_eq!(told(), "2\n0\n");
    web1.start();
    wait::until("the hook's second run", || (told() == "2\n0\n2\n0\n").then_some(()));
    wait::until("the node is live", || (web1.status().state == "live").then_some(()));
}

/// One run of a hook that logs its generation, tree and slot paths.
struct SlotRun {
    generation: u64,
    tree: String,
    paths: Vec<String>,
}

fn slot_runs(log: &Path) -> Vec<SlotRun> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let run = |line: &str| {
        let mut words = line.split(' ').map(str::to_owned);
        let (generation, tree) = (words.next()?.parse().ok()?, words.next()?);
        Some(SlotRun { generation, tree, paths: words.filter(|word| !word.is_empty()).collect() })
    };
    text.lines().filter_map(run).collect()
}

#[test]
fn a_hook_that_failed_for_two_switches_is_told_later_what_the_slots_showed_meanwhile() {
    for is_unprivileged in [false, true] {
        let scene = Scene::new("hook-twice");
        let tree = scene.path("tree");
        write(&tree, "index.html", "one");
        let origin = Origin::started(&scene, &tree);
        let (log, broken) = (scene.path("log"), scene.path("broken"));
        open_log(&log);
        let paths = "$(tr '\\0' ' ' < $SYNCD_SLOT_PATHS)";
        let hook = format!(
            "echo \"$SYNCD_GENERATION $SYNCD_TREE {paths}\" >> {}; test ! -e {}",
            log.display(),
            broken.display()
        );
        let agent = joined(&scene, &origin, is_unprivileged);
        let mut agent = agent.with_options(&["--on-activate", &hook, "--keep", "1", "--grace", "0s"]);
        agent.start();
        origin.wait_connected(&["web1"]);
        let commit = |number: u64, code: i32| {
            write(&tree, "index.html", format!("version {number}"));
            origin.cli("commit", &["--wait"]).expect_code(code);
            wait::until("spares", || (agent.status().spares >= 2 || code != 0).then_some(()));
        };
        (1..=5).for_each(|number| commit(number, 0));
        let mut last = 5;
        // A slot whose hook failed is not used again if the agent has had the time to build other spares.
        let again = (0..10).find_map(|_| {
            std::fs::write(&broken, "").expect("break the hook");
            let failed = [last + 1, last + 2];
            for number in failed {
                let page = format!("only-in-{number}.html");
                write(&tree, &page, "a page of a generation whose hook failed");
                commit(number, 3);
                remove(&tree.join(page));
            }
            remove(&broken);
            last += 2;
            // The lowest slots are used again first: until one of the two comes round.
            (0..8).find_map(|_| {
                last += 1;
                commit(last, 0);
                let runs = slot_runs(&log);
                let newest = runs.iter().find(|run| run.generation == last)?;
                // Nobody knows what else was cached of a slot that no hook has succeeded for.
                let was_known = |run: &&SlotRun| failed.contains(&run.generation) && !run.paths.is_empty();
                let shown = runs.iter().filter(was_known).find(|run| run.tree == newest.tree)?;
                Some((shown.generation, newest.paths.clone()))
            })
        });
        let (failed, paths) = again.expect("a slot is used again");
        for name in [format!("only-in-{failed}.html"), "index.html".to_owned()] {
            assert!(paths.contains(&name), "generation {failed}: {paths:?}");
        }
        agent.stop();
    }
}

/// Number of lines in a log that contain all of these.
fn lines_with(log: &str, parts: &[&str]) -> usize {
    log.lines().filter(|line| parts.iter().all(|part| line.contains(part))).count()
}

#[test]
fn the_logs_of_both_sides_tell_what_happened_once() {
    let scene = Scene::new("log-lines");
    let tree = scene.path("tree");
    write(&tree, "index.html", "one");
    write(&tree, "gone.html", "1");
    let mut origin = Origin::started(&scene, &tree);
    let mut plain = Agent::started(&scene, &origin, "web1");
    let mut hooked = Agent::joined(&scene, &origin, "web2").with_options(&["--on-activate", "exit 0"]);
    hooked.start();
    origin.wait_connected(&["web1", "web2"]);
    origin.commit_live();
    write(&tree, "index.html", "two");
    write(&tree, "new.html", "2");
    remove(&tree.join("gone.html"));
    origin.cli("commit", &["--allow-mass-deletion", "-m", "release 2", "--wait"]).expect_success();
    let live = ["INFO", "generation 2 (release 2) is live: +1 ~1 -1 files and directories, 4 B, "];
    wait::until("the line of the switch", || (lines_with(&plain.daemon().log(), &live) > 0).then_some(()));
    let switched = ["INFO", "generation 2 (release 2) is switched, its on-activate hook is due: +1 ~1 -1"];
    wait::until("the line of the switch", || {
        (lines_with(&hooked.daemon().log(), &switched) > 0).then_some(())
    });

    // The agent keeps dialling, and reports the problem once.
    let connected = origin.daemon().log();
    for (agent, name) in [(&mut plain, "agent=web1"), (&mut hooked, "agent=web2")] {
        assert_eq!(lines_with(&connected, &["INFO", "agent connected", name]), 1, "{connected}");
        let live = ["INFO", "live", name, "generation=2 label=\"release 2\" files=2 bytes=4 B seconds="];
        assert_eq!(lines_with(&connected, &live), 1, "{connected}");
        let log = agent.daemon().log();
        assert_eq!(lines_with(&log, &["INFO", " connected to the origin"]), 1, "{log}");
        assert_eq!(lines_with(&log, &["INFO", "first sync"]), 1, "{log}");
        assert_eq!(lines_with(&log, &["generation 2", "is live"]), 1, "{log}");
    }
    let log = hooked.daemon().log();
    assert_eq!(lines_with(&log, &["generation 2 is live: the on-activate hook succeeded after"]), 1, "{log}");
    origin.kill9();
    let lost = ["INFO", "disconnected from the origin", "reason="];
    wait::until("the line of the lost connection", || {
        (lines_with(&plain.daemon().log(), &lost) > 0).then_some(())
    });
    origin.start();
    origin.wait_connected(&["web1", "web2"]);
    let log = plain.daemon().log();
    assert_eq!(lines_with(&log, &lost), 1, "{log}");
    assert_eq!(lines_with(&log, &["INFO", " connected to the origin"]), 2, "{log}");
    plain.stop();
    let gone = ["INFO", "agent disconnected", "agent=web1", "reason="];
    wait::until("the line of the agent that went", || {
        (lines_with(&origin.daemon().log(), &gone) > 0).then_some(())
    });
    let log = origin.daemon().log();
    assert_eq!(lines_with(&log, &gone), 1, "{log}");
    assert!(!log.contains("disconnected agent=web2"), "{log}");
}

#[test]
fn an_update_that_is_cut_short_is_not_called_done() {
    let scene = Scene::new("log-interrupted");
    let tree = scene.path("tree");
    write(&tree, "large.bin", Seeded::new(5).bytes(4 << 20));
    let origin = Origin::started(&scene, &tree);
    let mut agent = Agent::joined(&scene, &origin, "web1").with_options(&["--bwlimit", "100K"]);
    agent.start();
    origin.wait_connected(&["web1"]);
    origin.commit();
    let begun = std::time::Instant::now();
    // Shorter work is not shown.
    wait::until("an update that is shown", || {
        let fetching = agent.try_status().is_some_and(|status| status.state == "fetching");
        (fetching && begun.elapsed() > std::time::Duration::from_secs(4)).then_some(())
    });
    agent.daemon().stop();
    let log = agent.daemon().log();
    assert_eq!(lines_with(&log, &["INFO", "update interrupted: ", " of 4.00 MiB"]), 1, "{log}");
    assert!(!log.contains("update done"), "{log}");
}

#[test]
fn a_tree_that_a_failing_hook_left_the_web_server_on_would_be_missed() {
    for planted in [false, true] {
        let scene = Scene::new(&format!("hook-planted-{planted}"));
        let tree = scene.path("tree");
        write(&tree, "index.html", "one");
        let origin = Origin::started(&scene, &tree);
        let options = ["--on-activate", "[ $SYNCD_GENERATION = 1 ]", "--keep", "1", "--grace", "0s"];
        let mut agent = Agent::joined(&scene, &origin, "web1").with_options(&options);
        if planted {
            agent.under(&["env".into(), "SYNCD_PLANTED=unprotected".into()]);
        }
        agent.start();
        origin.wait_connected(&["web1"]);
        assert_eq!(origin.commit_live(), 1);
        for number in 2..=3 {
            write(&tree, "index.html", format!("version {number}"));
            origin.cli("commit", &["--wait"]).expect_code(3);
            agent.wait_live(number);
        }
        if planted {
            wait::until("a tree to be taken", || (!agent.status().generations.contains(&1)).then_some(()));
        } else {
            wait::until("what can wait to be done", || agent.try_status().filter(|s| s.spares >= 2));
            assert_eq!(agent.status().generations, [1, 2, 3]);
        }
    }
}
