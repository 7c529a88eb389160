//! The web server's user on the node, who can write where an operator was careless, against the real agent.
//! Nothing that this user plants is served through a spare, and nothing is written where it points.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::fake_origin::peak_mib;
use syncd_tests::edits::{small_site, write};
use syncd_tests::oracle::{assert_same, fingerprint};
use syncd_tests::process::tool;
use syncd_tests::replica::trash_is_empty;
use syncd_tests::{Agent, Origin, Scene, require_root, wait};

/// Runs a shell script as www-data.
fn as_web_user(script: &str) -> bool {
    let status = std::process::Command::new("setpriv")
        .args(["--reuid=33", "--regid=33", "--clear-groups", "sh", "-c", script])
        .stderr(std::process::Stdio::null())
        .status();
    status.expect("run setpriv").success()
}

#[track_caller]
fn give(path: &Path) {
    tool("chown", ["-R".into(), "33:33".into(), path.as_os_str().to_os_string()]);
}

fn spares(agent: &Agent) -> Vec<PathBuf> {
    let listed = |place: &str| {
        let items = fs::read_dir(agent.root.join(place)).expect("list").filter_map(Result::ok);
        items.filter_map(|item| item.path().canonicalize().ok()).collect::<Vec<_>>()
    };
    let held = listed("generations");
    listed("slots").into_iter().filter(|slot| !held.contains(slot)).collect()
}

#[test]
fn what_a_web_user_plants_is_never_served() {
    require_root("it becomes www-data");
    let scene = Scene::new("hostile-web-user");
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(scene.directory(), open).expect("chmod");
    let tree = scene.path("tree");
    small_site(&tree, 60);
    // Published as owned by the web server's user: the careless case, in which this user can write
    // everywhere.
    give(&tree);
    let outside = scene.new_directory("outside");
    write(&outside, "precious", "untouched");
    let before = fingerprint(&outside);
    let origin = Origin::started(&scene, &tree);
    let first = origin.commit();
    let mut agent = Agent::joined(&scene, &origin, "web1").with_options(&["--grace", "0s"]);
    agent.start();
    agent.wait_live(first);
    let change = |text: &str| {
        write(&origin.tree, "index.html", text);
        give(&origin.tree.join("index.html"));
        origin.commit_live()
    };
    change("two");
    change("three");
    // Staging belongs only to the agent: other users cannot even list it.
    let staging = agent.root.join("staging");
    assert!(!as_web_user(&format!("ls {}", staging.display())), "staging is closed");
    // The same applies to every tree that is not served, although its parent is open.
    wait::until("closed spares", || {
        let spares = spares(&agent);
        // A tree that was live is closed when it is inspected.
        let open = spares.iter().any(|spare| as_web_user(&format!("ls {}/", spare.display())));
        (!open && !spares.is_empty()).then_some(())
    });
    assert!(!as_web_user(&format!("echo x > {}/state/x", agent.root.display())), "so is the state");
    assert!(!as_web_user(&format!("ln -sfn /etc {}/live", agent.root.display())), "so is the root");
    // Every directory of live and retired trees becomes a link to the outside, and gets a planted file.
    let live = agent.live().canonicalize().expect("live");
    let number = agent.live_generation().expect("a generation");
    let generations = agent.root.join("generations");
    for tree in fs::read_dir(&generations).expect("list").filter_map(Result::ok).map(|item| item.path()) {
        let script = format!(
            "cd {tree} || exit 1; for d in $(find . -mindepth 1 -maxdepth 1 -type d | head -3); do \
             mv $d $d.aside; ln -s {outside} $d; done; echo planted > planted.php; echo evil > index.html.new; \
             find . -type f -name '*.html' | head -5 | while read f; do echo changed > $f.tmp; mv $f.tmp $f; done",
            tree = tree.display(),
            outside = outside.display()
        );
        let tree = tree.canonicalize().unwrap_or_default();
        assert!(as_web_user(&script) || tree != live, "the web user may write to live");
    }
    // The agent continues: the next generations use spares and farms, and none contains any of it.
    for round in 0..6 {
        change(&format!("round {round}"));
        wait::until_ok("the live tree to be as published", || {
            let difference = syncd_tests::oracle::rsync_differences(&origin.tree, &agent.live());
            if difference.is_empty() { Ok(()) } else { Err(difference) }
        });
        assert_eq!(fingerprint(&outside), before, "written outside the root");
        assert!(!agent.live().join("planted.php").exists());
    }
    assert_same(&origin.tree, &agent.live());
    for spare in spares(&agent) {
        assert!(!spare.join("planted.php").exists(), "{} has what was planted", spare.display());
    }
    // It is not deleted silently: it is kept in a closed directory, and one line for each tree reports how
    // much.
    let kept = agent.root.join("lost+found").join(number.to_string());
    wait::until("what was planted to be kept", || kept.join("planted.php").exists().then_some(()));
    assert!(!as_web_user(&format!("ls {}", kept.display())), "lost+found is closed");
    // While it is live, `verify` reports what was changed, and heals it.
    assert!(as_web_user(&format!(
        "echo drift > {}/planted2.php",
        agent.live().canonicalize().expect("live").display()
    )));
    let outcome = agent.cli("verify", &["--json"]);
    assert!(outcome.stdout.contains("planted2.php"), "{outcome:?}");
    wait::until("it to be healed", || (!agent.live().join("planted2.php").exists()).then_some(()));
    let kept = agent.root.join("lost+found").join(agent.live_generation().expect("a generation").to_string());
    assert_eq!(fs::read(kept.join("planted2.php")).expect("kept"), b"drift\n");
    assert_same(&origin.tree, &agent.live());
}

/// User id of www-data.
const WEB_USER: u32 = 33;
/// Directories of the content in which every user may write.
const OPEN: [&str; 4] = ["uploads", "uploads/a", "uploads/b", "cache"];

/// Successful actions of a racing web user.
#[derive(Default, Debug)]
struct Deeds {
    swaps: usize,
    planted: usize,
    /// In trees that the agent had meanwhile taken away.
    behind_the_door: usize,
    trespassed: Vec<String>,
}

/// Becomes the web server's user, only in this thread, and replaces everything that it can by links to
/// `outside` until `stop`. It keeps directories open, as a process working in them would, and so stays in a
/// tree that has moved to staging.
fn race(root: PathBuf, outside: PathBuf, stop: Arc<AtomicBool>) -> Deeds {
    use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, open, renameat, symlinkat, unlinkat};
    use rustix::process::{Gid, Uid};
    rustix::thread::set_thread_groups(&[]).expect("no groups");
    let (user, group) = (Uid::from_raw(WEB_USER), Gid::from_raw(WEB_USER));
    rustix::thread::set_thread_res_gid(group, group, group).expect("its group");
    rustix::thread::set_thread_res_uid(user, user, user).expect("its user");
    let mut deeds = Deeds::default();
    let mut held: Vec<(PathBuf, rustix::fd::OwnedFd)> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for round in 0u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        // Directories that belong only to the agent.
        for place in [".", "slots", "staging", "staging/new", "trash", "state", "generations"] {
            let at = root.join(place);
            let made = std::os::unix::fs::symlink(&outside, at.join("way-out"));
            let moved = fs::rename(at.join("live"), at.join("dead"));
            if made.is_ok() || moved.is_ok() {
                deeds.trespassed.push(format!("{} ({round})", at.display()));
            }
        }
        let live = root.join("live").canonicalize().unwrap_or_default();
        // A slot has another generation each time it is live.
        let page = fs::metadata(live.join("index.html")).map(|page| page.ino()).unwrap_or_default();
        if seen.insert((live.clone(), page)) {
            for place in OPEN {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
                if let Ok(directory) = open(live.join(place), flags, Mode::empty()) {
                    held.push((live.join(place), directory));
                }
            }
        }
        for (path, directory) in &held {
            let is_hidden = fs::symlink_metadata(path).is_err();
            // Children of an open directory, and names that the agent may write next to them.
            for name in ["a", "b", "page.html", "new.html", "deep"] {
                let aside = format!("{name}.{}", round % 3);
                let swapped = renameat(directory, name, directory, aside.as_str()).is_ok();
                let planted = symlinkat(&outside, directory, name).is_ok();
                deeds.swaps += usize::from(swapped && planted);
                deeds.planted += usize::from(planted);
                deeds.behind_the_door += usize::from(planted && is_hidden);
                if round % 2 == 0 && planted {
                    let _ = unlinkat(directory, name, AtFlags::empty());
                    let _ = renameat(directory, aside.as_str(), directory, name);
                }
            }
            let _ = mkdirat(directory, "cellar", Mode::from_raw_mode(0o777));
        }
        if held.len() > 60 {
            held.drain(..20);
        }
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
    deeds
}

#[test]
fn a_web_user_that_swaps_directories_meanwhile_leads_nothing_out_of_the_root() {
    require_root("it becomes www-data");
    let scene = Scene::new("hostile-race");
    fs::set_permissions(scene.directory(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let tree = scene.path("tree");
    small_site(&tree, 30);
    let publish = |round: u32| {
        for place in OPEN {
            write(&tree, &format!("{place}/page.html"), format!("{place} {round}"));
            write(&tree, &format!("{place}/new.html"), format!("new {}", round / 2));
            fs::set_permissions(tree.join(place), fs::Permissions::from_mode(0o777)).expect("chmod");
        }
        let deep = tree.join("cache/deep");
        if round.is_multiple_of(3) {
            let _ = fs::remove_dir_all(&deep);
        } else {
            write(&tree, "cache/deep/inside/x.html", format!("deep {round}"));
        }
        write(&tree, "index.html", format!("round {round}"));
    };
    publish(0);
    // The link's target has the same names.
    let outside = scene.new_directory("outside");
    for name in ["precious", "page.html", "new.html", "a/page.html", "inside/x.html", "deep/inside/x.html"] {
        write(&outside, name, "untouched");
    }
    let before = fingerprint(&outside);
    let origin = Origin::started(&scene, &tree);
    let first = origin.commit();
    let mut agent = Agent::joined(&scene, &origin, "web1").with_options(&["--grace", "0s", "--keep", "1"]);
    agent.start();
    agent.wait_live(first);
    let stop = Arc::new(AtomicBool::new(false));
    let racer = {
        let (root, outside, stop) = (agent.root.clone(), outside.clone(), stop.clone());
        std::thread::spawn(move || race(root, outside, stop))
    };
    for round in 1..=20 {
        publish(round);
        let number = origin.commit();
        let live = agent.wait_live(number);
        assert_eq!(fingerprint(&outside), before, "written outside the root in round {round}, live {live}");
    }
    stop.store(true, Ordering::Relaxed);
    let deeds = racer.join().expect("no panic");
    println!(
        "{} swaps, {} planted, {} of them in trees that were taken away",
        deeds.swaps, deeds.planted, deeds.behind_the_door
    );
    assert!(deeds.trespassed.is_empty(), "{:?}", deeds.trespassed);
    assert!(deeds.swaps > 100 && deeds.behind_the_door > 0, "it did race: {deeds:?}");
    // Afterwards the live tree is as published again, and nothing planted comes back.
    agent.cli("verify", &["--json"]);
    for round in 21..=24 {
        publish(round);
        origin.commit_live();
        wait::until_ok("the live tree to be as published", || {
            let difference = syncd_tests::oracle::rsync_differences(&origin.tree, &agent.live());
            if difference.is_empty() { Ok(()) } else { Err(difference) }
        });
    }
    assert_eq!(fingerprint(&outside), before, "written outside the root");
    assert_same(&origin.tree, &agent.live());
}

/// Becomes the web server's user, only in this thread, and makes a chain of directories.
fn dig(below: PathBuf, levels: usize, name: String) {
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut directory = openat(CWD, &below, flags, Mode::empty()).expect("open");
    for _ in 0..levels {
        mkdirat(&directory, name.as_str(), Mode::from_raw_mode(0o755)).expect("mkdir");
        directory = openat(&directory, name.as_str(), flags, Mode::empty()).expect("open");
    }
}

#[test]
fn a_web_user_that_nests_directories_without_end_stops_neither_updates_nor_the_agent() {
    require_root("it becomes www-data");
    let scene = Scene::in_memory("hostile-depth");
    let tree = scene.path("tree");
    small_site(&tree, 30);
    write(&tree, "uploads/page.html", "an upload");
    fs::set_permissions(tree.join("uploads"), fs::Permissions::from_mode(0o777)).expect("chmod");
    let origin = Origin::started(&scene, &tree);
    let first = origin.commit();
    let mut agent = Agent::joined(&scene, &origin, "web1").with_options(&["--grace", "0s", "--keep", "1"]);
    agent.under(&["prlimit".into(), "--nofile=256".into()]);
    agent.start();
    agent.wait_live(first);
    let pid = agent.daemon().pid();
    let before = peak_mib(pid);
    for (round, levels) in [6_000, 20_000].into_iter().enumerate() {
        let uploads = agent.live().canonicalize().expect("live").join("uploads");
        let digger = std::thread::spawn(move || {
            use rustix::process::{Gid, Uid};
            rustix::thread::set_thread_groups(&[]).expect("no groups");
            let (user, group) = (Uid::from_raw(WEB_USER), Gid::from_raw(WEB_USER));
            rustix::thread::set_thread_res_gid(group, group, group).expect("its group");
            rustix::thread::set_thread_res_uid(user, user, user).expect("its user");
            dig(uploads, levels, "n".repeat(200));
        });
        digger.join().expect("no panic");
        // The tree is retired, made a spare, and live again.
        for update in 0..4 {
            write(&tree, "index.html", format!("round {round}, update {update}"));
            let number = origin.commit_live();
            agent.wait_live(number);
            assert_same(&tree, &agent.live());
        }
    }
    // It is nested too deep to be kept, so it is deleted.
    wait::until("the trash to be empty", || trash_is_empty(&agent.root).then_some(()));
    let peak = peak_mib(pid);
    println!("peak memory {before} MiB, then {peak} MiB");
    assert!(peak < before + 48, "{before} MiB, then {peak} MiB");
    // The agent never died: it is the same process.
    assert_eq!(agent.daemon().pid(), pid);
    assert!(agent.daemon().ended().is_none(), "{}", agent.daemon().log());
}

#[test]
fn a_web_user_stops_no_agent_without_privileges_and_leads_it_nowhere() {
    require_root("it becomes www-data");
    let scene = Scene::new("hostile-unprivileged");
    fs::set_permissions(scene.directory(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let tree = scene.path("tree");
    small_site(&tree, 30);
    write(&tree, "uploads/page.html", "an upload");
    fs::set_permissions(tree.join("uploads"), fs::Permissions::from_mode(0o777)).expect("chmod");
    let outside = scene.new_directory("outside");
    write(&outside, "precious", "untouched");
    write(&outside, "page.html", "untouched");
    let before = fingerprint(&outside);
    let origin = Origin::started(&scene, &tree);
    let first = origin.commit();
    let agent = Agent::new(&scene, "web1").unprivileged(&scene);
    agent.join(origin.address(), &origin.token()).expect_success();
    let mut agent = agent.with_options(&["--grace", "0s", "--keep", "1"]);
    agent.start();
    agent.wait_live(first);
    let pid = agent.daemon().pid();
    for round in 0..8 {
        // A file, a link that leads out, and a directory that the agent may not empty.
        let script = format!(
            "cd {}/uploads && echo evil > shell.php && ln -s {outside} out && mkdir -p mine/below && \
             echo x > mine/below/x && chmod 0700 mine/below mine && rm -f page.html && ln -s {outside}/page.html page.html",
            agent.live().canonicalize().expect("live").display(),
            outside = outside.display()
        );
        assert!(as_web_user(&script), "the web user may write to uploads");
        write(&tree, "index.html", format!("round {round}"));
        write(&tree, "uploads/page.html", format!("upload {round}"));
        let number = origin.commit_live();
        agent.wait_live(number);
        agent.assert_live_is(&tree);
        assert_eq!(fingerprint(&outside), before, "written outside the root in round {round}");
    }
    // The planted files are reported, and at the origin as well.
    wait::until("the report", || {
        let status = origin.cli("status", &["--json"]).expect_success().json();
        status["agents"][0]["drift"]["paths"].as_u64().is_some_and(|paths| paths > 0).then_some(())
    });
    assert_eq!(agent.daemon().pid(), pid);
    assert!(agent.daemon().ended().is_none(), "{}", agent.daemon().log());
    agent.assert_live_is(&tree);
}
