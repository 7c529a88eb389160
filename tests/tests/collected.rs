//! Collected directories: files that visitors write on one node are read on the others. Real programs, and
//! Apache with the shipped rules.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use syncd_tests::edits::write;
use syncd_tests::process::Outcome;
use syncd_tests::{Agent, Apache, DocumentRoot, Origin, Scene, Seeded, http, wait};

const PATH: &str = "wp-content/uploads";

struct Cluster {
    scene: Scene,
    origin: Origin,
    nodes: Vec<Agent>,
}

/// `USER:GROUP` of the files on the nodes: the web server's, if this process may give files away.
fn owner() -> String {
    match syncd_tests::is_root() {
        true => "www-data:www-data".to_owned(),
        false => {
            format!("{}:{}", rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
        }
    }
}

impl Cluster {
    /// An origin with a collected directory, and two nodes that are linked to it.
    fn new(name: &str) -> Self {
        Self::with(name, "")
    }

    /// Like [`Self::new`], with more lines in the table of the directory.
    fn with(name: &str, lines: &str) -> Self {
        let mut cluster = Self::without_nodes(name, lines);
        cluster.origin.start();
        cluster.origin.commit();
        for node in ["web1", "web2"] {
            cluster.add(node);
        }
        cluster
    }

    fn without_nodes(name: &str, lines: &str) -> Self {
        let scene = Scene::new(name);
        let tree = scene.path("tree");
        write(&tree, "index.html", "a site");
        write(&tree, "wp-content/index.php", "<?php // nothing");
        let config = scene.path("origin.toml");
        let table = format!("[collect.uploads]\npath = '{PATH}'\nowner = '{}'\n{lines}\n", owner());
        fs::write(&config, table).expect("write the configuration");
        let config = config.display().to_string();
        let options = ["--trigger", "manual", "--config", &config];
        let origin = Origin::create(&scene, &tree).with_options(&options);
        Self { scene, origin, nodes: Vec::new() }
    }

    fn add(&mut self, name: &str) {
        let agent = Agent::started(&self.scene, &self.origin, name);
        self.nodes.push(agent);
        wait::until("the link", || self.uploads(self.nodes.len() - 1).is_dir().then_some(()));
    }

    /// The directory as web servers and visitors see it.
    fn uploads(&self, node: usize) -> PathBuf {
        self.nodes[node].live().join(PATH)
    }

    fn config(&self) -> PathBuf {
        self.scene.path("origin.toml")
    }

    fn collected(&self, args: &[&str]) -> Outcome {
        self.origin.cli("collected", args)
    }

    fn lines(&self, args: &[&str]) -> Vec<Value> {
        let outcome = self.collected(args).expect_success();
        outcome.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// Waits until the file has this content on all nodes.
    #[track_caller]
    fn arrives(&self, path: &str, content: impl AsRef<[u8]>) {
        for node in 0..self.nodes.len() {
            let at = self.uploads(node).join(path);
            wait::until_ok(&format!("{path} on node {node}"), || match fs::read(&at) {
                Ok(bytes) if bytes == content.as_ref() => Ok(()),
                Ok(bytes) => Err(format!("{} other bytes; {}", bytes.len(), self.told(node))),
                Err(error) => Err(format!("{error}; {}", self.told(node))),
            });
        }
    }

    #[track_caller]
    fn vanishes(&self, path: &str) {
        for node in 0..self.nodes.len() {
            let at = self.uploads(node).join(path);
            wait::until(&format!("no {path} on node {node}"), || at.symlink_metadata().err());
        }
    }

    /// Waits until both nodes have the same files.
    #[track_caller]
    fn ends_equal(&self) -> BTreeMap<String, Vec<u8>> {
        wait::until("equal nodes", || {
            let [first, second] = [0, 1].map(|node| files(&self.uploads(node)));
            (first == second).then_some(first)
        })
    }

    /// Waits for a version of a later second than `before`. Returns its time.
    #[track_caller]
    fn second_after(&self, before: Option<&str>) -> String {
        let mut round = 0;
        wait::until("another second", || {
            round += 1;
            write(&self.uploads(0), "clock.txt", format!("{before:?} {round}"));
            let versions = self.lines(&["history", "uploads", "clock.txt", "--json"]);
            let newest = versions.last()?["since"].as_str()?.to_owned();
            (Some(newest.as_str()) > before).then_some(newest)
        })
    }

    /// The part of a node's status on collected directories.
    fn report(&self, node: usize) -> Value {
        let outcome = self.nodes[node].cli("status", &["--json"]);
        serde_json::from_str::<Value>(&outcome.stdout).map_or(Value::Null, |all| all["collected"].clone())
    }

    fn told(&self, node: usize) -> String {
        self.report(node).to_string()
    }

    /// Waits for an event of this kind. Returns the newest one.
    #[track_caller]
    fn event(&self, name: &str) -> Value {
        wait::until(&format!("an event {name}"), || {
            let told = self.origin.cli("events", &["--json"]).expect_success().stdout;
            let mut events = told.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
            events.rfind(|event| event["event"] == name)
        })
    }

    /// Waits until `status --check` of the origin ends with this code.
    #[track_caller]
    fn checks(&self, code: i32) {
        wait::until_ok(&format!("status --check with {code}"), || {
            let outcome = self.origin.cli("status", &["--check"]);
            if outcome.code == Some(code) { Ok(()) } else { Err(format!("{outcome:?}")) }
        });
    }

    /// Waits until a node has nothing to do.
    #[track_caller]
    fn settles(&self, node: usize) {
        wait::until_ok("a settled node", || {
            let report = self.report(node);
            match (&report["connected"], &report["waiting"]) {
                (Value::Bool(true), Value::Number(zero)) if zero.as_u64() == Some(0) => Ok(()),
                _ => Err(report.to_string()),
            }
        });
    }
}

fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut directories = vec![directory.to_path_buf()];
    while let Some(at) = directories.pop() {
        for entry in fs::read_dir(&at).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
            } else {
                let name = path.strip_prefix(directory).expect("below").display().to_string();
                found.insert(name, fs::read(&path).unwrap_or_default());
            }
        }
    }
    found
}

#[test]
fn an_upload_on_one_node_is_served_by_the_other() {
    let cluster = Cluster::new("collected-served");
    let [first, second] = [cluster.uploads(0), cluster.uploads(1)];
    let configured =
        Apache::configured(&cluster.scene, "apache", &cluster.nodes[1].root, &DocumentRoot::LiveLink);
    let mut apache = configured.with_collected(PATH);
    apache.start();
    let picture = Seeded::new(1).bytes(2_000_000);
    write(&first, "2026/11/picture.jpg", &picture);
    cluster.arrives("2026/11/picture.jpg", &picture);
    assert_eq!(apache.get("/wp-content/uploads/2026/11/picture.jpg").body, picture);
    let times = [&first, &second].map(|at| {
        fs::metadata(at.join("2026/11/picture.jpg")).expect("metadata").modified().expect("a time")
    });
    assert_eq!(times[0], times[1]);
    // Edited on the node that did not upload it.
    write(&second, "2026/11/picture.jpg", "edited");
    cluster.arrives("2026/11/picture.jpg", "edited");
    fs::rename(first.join("2026"), first.join("2027")).expect("rename");
    cluster.arrives("2027/11/picture.jpg", "edited");
    cluster.vanishes("2026");
    assert_eq!(apache.get("/wp-content/uploads/2027/11/picture.jpg").body, b"edited");
    fs::create_dir(second.join("empty")).expect("a directory");
    wait::until("the empty directory", || first.join("empty").is_dir().then_some(()));
    fs::remove_dir_all(second.join("2027")).expect("a removal");
    cluster.vanishes("2027");
    // A new generation keeps the directory.
    write(&cluster.origin.tree, "index.html", "changed");
    write(&first, "kept.jpg", "kept");
    let number = cluster.origin.commit_live();
    cluster.nodes.iter().for_each(|node| assert_eq!(node.wait_live(number), number));
    cluster.arrives("kept.jpg", "kept");
    let history = cluster.lines(&["history", "uploads", "2026/11/picture.jpg", "--json"]);
    let seen: Vec<_> = history.iter().map(|line| (line["kind"].as_str(), line["node"].as_str())).collect();
    assert_eq!(seen[..2], [(Some("file"), Some("web1")), (Some("file"), Some("web2"))]);
}

#[test]
fn code_is_neither_collected_nor_run() {
    let cluster = Cluster::new("collected-code");
    let [first, second] = [cluster.uploads(0), cluster.uploads(1)];
    let root = &cluster.nodes[0].root;
    let php = DocumentRoot::Php(root.join("live"));
    let mut apache = Apache::configured(&cluster.scene, "apache", root, &php).with_collected(PATH);
    apache.start();
    let denied = ["shell.php", "a/shell.PHP", ".htaccess", "a/.user.ini", "x.phtml", "b/x.phar"];
    for path in denied {
        write(&first, path, "<?php echo 6 * 7;");
    }
    for path in ["upload.part", "cache/page.html", "debug.log"] {
        write(&first, path, "stays");
    }
    symlink("/etc/passwd", first.join("passwd.txt")).expect("a link");
    write(&first, "program", "setuid");
    fs::set_permissions(first.join("program"), PermissionsExt::from_mode(0o4755)).expect("a mode");
    write(&first, "last.jpg", "last");
    cluster.arrives("last.jpg", "last");
    cluster.settles(0);
    wait::until_ok("all refusals", || {
        let report = cluster.report(0);
        if report["refused"] == denied.len() { Ok(()) } else { Err(report.to_string()) }
    });
    // The origin knows of them too, until they are gone.
    let refused = cluster.event("collected_refused");
    assert_eq!((refused["directory"].as_str(), refused["node"].as_str()), (Some("uploads"), Some("web1")));
    cluster.checks(3);
    let elsewhere = files(&second);
    assert_eq!(elsewhere.keys().collect::<Vec<_>>(), ["last.jpg"]);
    for path in ["shell.php", "a/shell.PHP", ".htaccess", "x.phtml", "b/x.phar", "passwd.txt"] {
        let answer = http::get(&apache.address, &format!("/wp-content/uploads/{path}")).expect("an answer");
        assert_eq!(answer.status, 403, "{path}: {}", String::from_utf8_lossy(&answer.body));
    }
    // Elsewhere in the tree PHP runs, so that the refusals say something.
    assert_eq!(apache.get("/wp-content/index.php").body, b"");
    write(&first, "wc-logs/order.txt", "private");
    cluster.arrives("wc-logs/order.txt", "private");
    let answer = http::get(&apache.address, "/wp-content/uploads/wc-logs/order.txt").expect("an answer");
    assert_eq!(answer.status, 403);
    for path in denied {
        fs::remove_file(first.join(path)).expect("a removal");
    }
    cluster.checks(0);
}

#[test]
fn of_two_changes_without_the_origin_the_later_one_is_kept_aside() {
    let mut cluster = Cluster::new("collected-conflict");
    let [first, second] = [cluster.uploads(0), cluster.uploads(1)];
    for path in ["shared.jpg", "doomed.jpg"] {
        write(&first, path, "before");
        cluster.arrives(path, "before");
    }
    cluster.origin.kill9();
    for path in ["shared.jpg", "settled.jpg"] {
        write(&first, path, "of web1");
        write(&second, path, "of web2");
    }
    write(&first, "only-web1.jpg", "1");
    write(&second, "only-web2.jpg", "2");
    fs::remove_file(first.join("doomed.jpg")).expect("a removal");
    cluster.origin.start();
    cluster.arrives("only-web1.jpg", "1");
    cluster.arrives("only-web2.jpg", "2");
    cluster.vanishes("doomed.jpg");
    let conflicts = wait::until("both conflicts", || {
        Some(cluster.lines(&["conflicts", "--json"])).filter(|lines| lines.len() == 2)
    });
    let at = |path: &str| conflicts.iter().find(|conflict| conflict["path"] == path).expect("a conflict");
    let (conflict, settled) = (at("shared.jpg"), at("settled.jpg"));
    let equal = cluster.ends_equal();
    // A person is content with the one.
    let number = settled["conflict"].to_string();
    cluster
        .collected(&["dismiss", "uploads", &number, "99"])
        .expect_refusal(&["there is no conflict 99", "collected conflicts"]);
    cluster.collected(&["dismiss", "uploads", &number]).expect_success();
    assert_eq!(cluster.lines(&["conflicts", "--json"]), std::slice::from_ref(conflict));
    let (winner, loser) = match &equal["shared.jpg"][..] {
        b"of web1" => ("of web1", "web2"),
        b"of web2" => ("of web2", "web1"),
        other => panic!("{}", other.escape_ascii()),
    };
    assert_eq!((conflict["path"].as_str(), conflict["node"].as_str()), (Some("shared.jpg"), Some(loser)));
    let event = cluster.event("collected_conflict");
    assert_eq!(event["node"], at(event["path"].as_str().expect("a path"))["node"]);
    // The other one is decided otherwise, and taken back.
    let number = conflict["conflict"].to_string();
    cluster.collected(&["restore", "uploads", "--conflict", &number]).expect_success();
    cluster.arrives("shared.jpg", format!("of {loser}"));
    assert_eq!(cluster.lines(&["conflicts", "--json"]), [] as [Value; 0], "it is settled");
    let history = cluster.lines(&["history", "uploads", "shared.jpg", "--json"]);
    let version = history[history.len() - 2]["version"].to_string();
    cluster.collected(&["restore", "uploads", "shared.jpg", "--version", &version]).expect_success();
    cluster.arrives("shared.jpg", winner);
    assert_eq!(cluster.event("collected_restored")["files"], 1);
}

/// The origin runs and answers nobody, as behind a broken line.
#[test]
fn nodes_that_are_cut_off_and_write_one_name_lose_neither_picture() {
    let mut cluster = Cluster::new("collected-partition");
    write(&cluster.uploads(0), "before.jpg", "before");
    cluster.arrives("before.jpg", "before");
    cluster.origin.daemon().signal(Signal::STOP);
    let pictures = [Seeded::new(1).bytes(50_000), Seeded::new(2).bytes(50_000)];
    for (node, picture) in pictures.iter().enumerate() {
        write(&cluster.uploads(node), "2026/11/image.jpg", picture);
        write(&cluster.uploads(node), &format!("only-{node}.jpg"), picture);
    }
    // Meanwhile each shows its own.
    for (node, picture) in pictures.iter().enumerate() {
        assert_eq!(&fs::read(cluster.uploads(node).join("2026/11/image.jpg")).expect("a picture"), picture);
        assert!(!cluster.uploads(1 - node).join(format!("only-{node}.jpg")).exists());
    }
    cluster.origin.daemon().signal(Signal::CONT);
    for (node, picture) in pictures.iter().enumerate() {
        cluster.arrives(&format!("only-{node}.jpg"), picture);
    }
    let conflict = wait::until("a conflict", || cluster.lines(&["conflicts", "--json"]).pop());
    assert_eq!(conflict["path"], "2026/11/image.jpg");
    let loser = if conflict["node"] == "web1" { 0 } else { 1 };
    cluster.arrives("2026/11/image.jpg", &pictures[1 - loser]);
    let number = conflict["conflict"].to_string();
    cluster.collected(&["restore", "uploads", "--conflict", &number]).expect_success();
    cluster.arrives("2026/11/image.jpg", &pictures[loser]);
    // The winner is in the history.
    let history = cluster.lines(&["history", "uploads", "2026/11/image.jpg", "--json"]);
    assert_eq!(history.iter().filter(|line| line["kind"] == "file").count(), 2);
}

#[test]
fn what_one_node_did_is_undone() {
    let cluster = Cluster::new("collected-restore");
    let [first, second] = [cluster.uploads(0), cluster.uploads(1)];
    for path in ["a.jpg", "below/b.jpg", "c.jpg"] {
        write(&first, path, path);
        cluster.arrives(path, path);
    }
    // Times are shown in whole seconds, so that what follows has to be of a later one.
    let before = cluster.second_after(None);
    let moment = cluster.second_after(Some(&before));
    cluster.second_after(Some(&moment));
    write(&second, "a.jpg", "defaced");
    fs::remove_dir_all(second.join("below")).expect("a removal");
    write(&second, "spam.jpg", "spam");
    write(&first, "good.jpg", "good");
    cluster.arrives("a.jpg", "defaced");
    cluster.arrives("spam.jpg", "spam");
    cluster.arrives("good.jpg", "good");
    cluster.vanishes("below");
    let undo = ["restore", "uploads", "--before", &moment, "--from", "web2"];
    cluster.collected(&undo).expect_success();
    cluster.arrives("a.jpg", "a.jpg");
    cluster.arrives("below/b.jpg", "below/b.jpg");
    cluster.vanishes("spam.jpg");
    cluster.arrives("good.jpg", "good");
}

#[test]
fn a_node_that_was_away_or_lost_its_journal_brings_back_nothing() {
    let mut cluster = Cluster::new("collected-away");
    let [first, second] = [cluster.uploads(0), cluster.uploads(1)];
    for path in ["stays.jpg", "removed.jpg", "edited.jpg"] {
        write(&first, path, path);
        cluster.arrives(path, path);
    }
    for (round, is_lost) in [(1, false), (2, true)] {
        cluster.settles(1);
        cluster.nodes[1].kill9();
        let (removed, edited, new) = ("removed.jpg", format!("edited {round}"), format!("new-{round}.jpg"));
        fs::remove_file(first.join(removed)).expect("a removal");
        write(&first, "edited.jpg", &edited);
        write(&second, &new, "written while the agent was away");
        if is_lost {
            fs::write(cluster.nodes[1].root.join("state/collected.redb"), "damaged").expect("damage");
        }
        cluster.settles(0);
        cluster.nodes[1].start();
        cluster.arrives("edited.jpg", &edited);
        cluster.arrives(&new, "written while the agent was away");
        cluster.vanishes(removed);
        cluster.arrives("stays.jpg", "stays.jpg");
        assert!(cluster.lines(&["conflicts", "--json"]).is_empty());
        write(&second, removed, "there again");
        cluster.arrives(removed, "there again");
    }
}

#[test]
fn a_kill_in_the_middle_of_an_upload_loses_nothing() {
    // Slow enough to be caught.
    let mut cluster = Cluster::with("collected-kill", "rate = '2M'");
    let first = cluster.uploads(0);
    let incoming = cluster.origin.data.join("collected/incoming");
    let mut random = Seeded::new(5);
    let is_half = |incoming: &Path| {
        let listed = fs::read_dir(incoming).into_iter().flatten().flatten();
        listed.filter_map(|entry| entry.metadata().ok()).any(|found| found.len() > 100_000)
    };
    for round in 0..4 {
        let (name, content) = (format!("film-{round}.mp4"), random.bytes(6_000_000));
        write(&first, &name, &content);
        wait::until("half an upload", || is_half(&incoming).then_some(()));
        match round {
            0 => cluster.nodes[0].kill9(),
            1 => cluster.origin.kill9(),
            2 => {
                cluster.origin.kill9();
                cluster.nodes[0].kill9();
            }
            _ => cluster.origin.daemon().signal(Signal::STOP),
        }
        assert!(!cluster.uploads(1).join(&name).exists());
        match round {
            3 => cluster.origin.daemon().signal(Signal::CONT),
            _ if !cluster.origin.is_running() => cluster.origin.start(),
            _ => {}
        }
        if !cluster.nodes[0].is_running() {
            cluster.nodes[0].start();
        }
        cluster.arrives(&name, &content);
    }
    // The node that receives is killed too.
    let content = random.bytes(6_000_000);
    write(&first, "last.mp4", &content);
    wait::until("half an upload", || is_half(&incoming).then_some(()));
    let receiving = cluster.nodes[1].root.join("collected/.incoming");
    wait::until("the download", || {
        let begun = fs::read_dir(&receiving).into_iter().flatten().count() > 0;
        (begun || cluster.uploads(1).join("last.mp4").exists()).then_some(())
    });
    cluster.nodes[1].kill9();
    cluster.nodes[1].start();
    cluster.arrives("last.mp4", &content);
    wait::until("no litter", || {
        let left = [0, 1].map(|node| cluster.nodes[node].root.join("collected/.incoming"));
        left.iter().all(|at| fs::read_dir(at).is_ok_and(|mut listed| listed.next().is_none())).then_some(())
    });
}

#[test]
fn a_file_beyond_the_quota_stays_on_its_node() {
    let mut cluster = Cluster::with("collected-quota", "max_bytes = '100K'");
    let [first, second] = [cluster.uploads(0), cluster.uploads(1)];
    write(&first, "small.bin", vec![1; 60_000]);
    cluster.arrives("small.bin", vec![1; 60_000]);
    write(&first, "more.bin", vec![2; 60_000]);
    wait::until_ok("the refusal", || {
        let report = cluster.report(0);
        if report["refused"] == 1 { Ok(()) } else { Err(report.to_string()) }
    });
    let text = cluster.nodes[0].cli("status", &[]).expect_success().stdout;
    assert!(text.contains("uploads/more.bin: max_bytes of this directory"), "{text}");
    assert_eq!(cluster.event("collected_refused")["path"], "more.bin");
    cluster.checks(3);
    assert!(first.join("more.bin").exists() && !second.join("more.bin").exists());
    fs::remove_file(second.join("small.bin")).expect("a removal");
    cluster.vanishes("small.bin");
    // Tried again in the next session.
    cluster.nodes[0].restart();
    cluster.arrives("more.bin", vec![2; 60_000]);
    cluster.checks(0);
}

#[test]
fn two_thousand_small_files_arrive_at_once() {
    let cluster = Cluster::new("collected-burst");
    let first = cluster.uploads(0);
    for number in 0..2_000 {
        write(&first, &format!("{:02}/{number}.jpg", number % 20), format!("picture {number}"));
    }
    let expected = files(&first);
    assert_eq!(expected.len(), 2_000);
    // A loaded machine needs minutes for as many syncs.
    wait::within(Duration::from_secs(600), "all files", || {
        (files(&cluster.uploads(1)).len() == expected.len()).then_some(())
    });
    assert!(cluster.ends_equal() == expected);
}

#[test]
fn a_tree_with_files_is_adopted_and_released() {
    let mut cluster = Cluster::without_nodes("collected-adopt", "");
    let tree = cluster.origin.tree.clone();
    write(&tree, "wp-content/uploads/2025/old.jpg", "old");
    write(&tree, "wp-content/uploads/shell.php", "code");
    cluster.origin.start();
    cluster.origin.commit();
    cluster.add("web1");
    cluster.add("web2");
    // Not a link yet: nothing that visitors see may be lost.
    assert!(cluster.uploads(1).symlink_metadata().expect("an entry").is_dir());
    let status = cluster.origin.cli("status", &[]).expect_success().stdout;
    assert!(status.contains("syncd-origin collected adopt uploads"), "{status}");
    cluster.collected(&["adopt", "uploads"]).expect_success();
    cluster.origin.stop();
    cluster.origin.start();
    let number = cluster.origin.commit_live();
    cluster.nodes.iter().for_each(|node| assert_eq!(node.wait_live(number), number));
    assert!(cluster.uploads(1).symlink_metadata().expect("an entry").is_symlink());
    cluster.arrives("2025/old.jpg", "old");
    cluster.vanishes("shell.php");
    write(&cluster.uploads(0), "new.jpg", "new");
    cluster.arrives("new.jpg", "new");
    let out = cluster.scene.path("released");
    cluster.collected(&["release", "uploads", &out.display().to_string()]).expect_success();
    assert_eq!(files(&out), files(&cluster.uploads(0)));
    // An origin that lost them does not publish the old files of the tree in their place.
    cluster.settles(0);
    cluster.settles(1);
    cluster.origin.stop();
    fs::remove_dir_all(cluster.origin.data.join("collected")).expect("a loss");
    cluster.origin.start();
    write(&tree, "index.html", "changed");
    let number = cluster.origin.commit_live();
    cluster.nodes.iter().for_each(|node| assert_eq!(node.wait_live(number), number));
    assert!(cluster.uploads(1).symlink_metadata().expect("an entry").is_symlink());
    wait::until("the files at the origin", || {
        cluster.lines(&["history", "uploads", "new.jpg", "--json"]).pop()
    });
    cluster.arrives("new.jpg", "new");
}

#[test]
fn a_backup_has_the_uploads_and_nodes_go_on_with_it() {
    let mut cluster = Cluster::new("collected-backup");
    let [first, second] = [cluster.uploads(0), cluster.uploads(1)];
    write(&first, "before.jpg", "before");
    write(&first, "removed.jpg", "removed");
    cluster.arrives("before.jpg", "before");
    cluster.arrives("removed.jpg", "removed");
    let copy = cluster.scene.path("backup");
    cluster.origin.cli("backup", &[&copy.display().to_string()]).expect_success();
    write(&second, "after.jpg", "after");
    cluster.arrives("after.jpg", "after");
    cluster.settles(0);
    cluster.settles(1);
    cluster.origin.kill9();
    fs::rename(&cluster.origin.data, cluster.scene.path("lost")).expect("a loss");
    fs::rename(&copy, &cluster.origin.data).expect("the backup");
    cluster.origin.start();
    cluster.arrives("before.jpg", "before");
    cluster.arrives("after.jpg", "after");
    // The restored origin has it again, from a node.
    wait::until("the upload at the origin", || {
        cluster.lines(&["history", "uploads", "after.jpg", "--json"]).pop()
    });
    write(&first, "later.jpg", "later");
    cluster.arrives("later.jpg", "later");
}

#[test]
fn an_origin_that_gets_its_table_later_is_asked_again() {
    let mut cluster = Cluster::new("collected-table");
    let first = cluster.uploads(0);
    write(&first, "before.jpg", "before");
    cluster.arrives("before.jpg", "before");
    let table = fs::read(cluster.config()).expect("the table");
    cluster.origin.stop();
    fs::write(cluster.config(), "").expect("no table");
    cluster.origin.start();
    cluster.origin.wait_connected(&["web1", "web2"]);
    write(&first, "meanwhile.jpg", "meanwhile");
    wait::until_ok("an unserved node", || {
        let report = cluster.report(0);
        if report["connected"] == false { Ok(()) } else { Err(report.to_string()) }
    });
    cluster.origin.stop();
    fs::write(cluster.config(), table).expect("the table");
    cluster.origin.start();
    cluster.arrives("meanwhile.jpg", "meanwhile");
}

#[test]
fn a_table_that_cannot_work_is_refused() {
    let cluster = Cluster::without_nodes("collected-config", "");
    let tree = cluster.origin.tree.display().to_string();
    let data = cluster.origin.data.display().to_string();
    let config = cluster.config().display().to_string();
    let check = || {
        let arguments =
            ["check", "--config", &config, "--", "--tree", &tree, "--data", &data].map(str::to_owned);
        let mut command = std::process::Command::new(syncd_tests::binary("syncd-origin"));
        command.arg("config").args(arguments);
        syncd_tests::process::run(&mut command)
    };
    check().expect_success();
    write(&cluster.origin.tree, "wp-content/uploads/old.jpg", "old");
    let noted = check().expect_success();
    assert!(noted.stderr.contains("collected adopt uploads"), "{noted:?}");
    let good = format!("[collect.uploads]\npath = '{PATH}'\nowner = '{}'\n", owner());
    for (text, expected) in [
        (format!("{good}pth = 'x'"), "unknown key \"pth\""),
        (good.replace(PATH, "nowhere/uploads"), "nowhere is no directory"),
        (format!("{good}[collect.other]\npath = '{PATH}/deeper'\nowner = '0:0'"), "overlap"),
        (format!("{good}max_bytes = 'much'"), "a size"),
        (good.replace("owner", "#"), "needs the key owner"),
        ("[collect]\ndefault = 'x'".to_owned(), "are tables [collect.NAME]"),
        ("[rollout.careful]\nstps = []".to_owned(), "unknown key \"stps\""),
    ] {
        fs::write(&config, &text).expect("write the configuration");
        let refused = check();
        assert!(refused.code != Some(0) && refused.stderr.contains(expected), "{text}: {refused:?}");
    }
}
