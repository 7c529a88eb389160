//! Trees published to an object store, and agents that follow them without ever reaching the origin.

use std::fs;
use std::path::{Path, PathBuf};

use syncd_tests::edits::{small_site, write};
use syncd_tests::oracle::assert_same;
use syncd_tests::{Agent, Origin, Scene, wait};

struct Published {
    scene: Scene,
    origin: Origin,
    bucket: PathBuf,
}

impl Published {
    /// An origin that publishes a small site into a directory.
    fn new(name: &str) -> Self {
        let scene = Scene::new(name);
        let tree = scene.path("tree");
        small_site(&tree, 30);
        // Some chunks long, and no two alike.
        let large: Vec<u8> =
            (0..300_000u32).flat_map(|n| (n.wrapping_mul(2_654_435_761)).to_le_bytes()).collect();
        write(&tree, "large.bin", &large);
        let bucket = scene.path("bucket");
        let url = url(&bucket);
        let mut origin =
            Origin::create(&scene, &tree).with_options(&["--trigger", "manual", "--publish", &url]);
        origin.start();
        Self { scene, origin, bucket }
    }

    fn fingerprint(&self) -> String {
        let keys = self.origin.cli("key", &["show", "--json"]).expect_success().json();
        keys["root_key"].as_str().expect("a fingerprint").to_owned()
    }

    /// Commits, and waits until `head` names the generation.
    fn commit(&self) -> u64 {
        let number = self.origin.commit();
        self.wait_released(number);
        number
    }

    fn publish(&self) -> serde_json::Value {
        self.origin.cli("status", &["--json"]).expect_success().json()["publish"].clone()
    }

    fn wait_released(&self, number: u64) {
        wait::until_ok("the generation to be published", || {
            let publish = self.publish();
            if publish["released"] == number { Ok(()) } else { Err(publish.to_string()) }
        });
    }

    fn follower(&self, name: &str) -> Agent {
        let (url, trust) = (url(&self.bucket), self.fingerprint());
        Agent::new(&self.scene, name).with_options(&["--follow", &url, "--trust", &trust])
    }

    fn started(&self, name: &str) -> Agent {
        let mut agent = self.follower(name);
        agent.start();
        agent
    }

    fn objects(&self, kind: &str) -> Vec<PathBuf> {
        let found = fs::read_dir(self.bucket.join(kind)).into_iter().flatten();
        let mut found: Vec<_> = found.map(|entry| entry.expect("a listing").path()).collect();
        found.sort();
        found
    }
}

fn url(bucket: &Path) -> String {
    format!("file://{}", bucket.display())
}

#[test]
fn an_agent_follows_without_a_join_and_without_the_origin() {
    let mut published = Published::new("published-follow");
    let first = published.commit();
    let near = published.started("near");
    near.wait_live(first);
    assert_same(&published.origin.tree, &near.live());
    write(&published.origin.tree, "index.html", "changed");
    write(&published.origin.tree, "new/deep/page.html", "new");
    fs::remove_file(published.origin.tree.join("large.bin")).expect("remove a file");
    let second = published.commit();
    near.wait_live(second);
    assert_same(&published.origin.tree, &near.live());
    assert!(!published.objects("update").is_empty());
    let status = near.cli("status", &["--json"]).expect_success().json();
    assert!(status["head"].is_string() && status["connected"] == true, "{status}");
    // The origin and everything of it is gone. A new node takes what was published.
    published.origin.kill9();
    let tree = published.scene.path("kept");
    fs::rename(&published.origin.tree, &tree).expect("move the tree");
    let trust = near_trust(&near);
    fs::remove_dir_all(&published.origin.data).expect("destroy the origin");
    let mut late = Agent::new(&published.scene, "late").with_options(&[
        "--follow",
        &url(&published.bucket),
        "--trust",
        &trust,
    ]);
    late.start();
    late.wait_live(second);
    assert_same(&tree, &late.live());
    late.restart();
    late.wait_live(second);
}

/// Fingerprint of the root key that an agent trusts.
fn near_trust(agent: &Agent) -> String {
    let status = agent.cli("status", &["--json"]).expect_success().json();
    status["root_key"].as_str().expect("a fingerprint").to_owned()
}

#[test]
fn a_tree_of_another_root_key_is_not_followed() {
    let published = Published::new("published-other-key");
    published.commit();
    let mut agent = Agent::new(&published.scene, "web1").with_options(&[
        "--follow",
        &url(&published.bucket),
        "--trust",
        &"ab".repeat(32),
    ]);
    agent.start();
    let status = wait::until("the agent to refuse", || agent.daemon().ended());
    assert_eq!(status.code(), Some(1));
    assert!(agent.daemon().log().contains("root key"), "{}", agent.daemon().log());
    assert!(!agent.live().exists());
    // Without a fingerprint nothing is followed at all.
    let bare = agent.cli("run", &["--follow", &url(&published.bucket)]);
    assert_eq!(bare.code, Some(2), "{bare:#?}");
}

/// Flips a byte in the middle of each file. Returns what they held.
fn damage(paths: &[PathBuf]) -> Vec<(PathBuf, Vec<u8>)> {
    assert!(!paths.is_empty());
    let damaged = paths.iter().map(|path| {
        let held = fs::read(path).expect("an object");
        let mut changed = held.clone();
        let at = changed.len() / 2;
        changed[at] ^= 1;
        fs::write(path, changed).expect("damage an object");
        (path.clone(), held)
    });
    damaged.collect()
}

#[test]
fn damaged_objects_are_never_served_and_a_mended_store_is_followed() {
    let published = Published::new("published-damage");
    let first = published.commit();
    let mut agent = published.started("web1");
    agent.wait_live(first);
    for kinds in [&["update"][..], &["pack"], &["update", "pack"]] {
        let serves = agent.live_generation();
        let page = fs::read(agent.live().join("index.html")).expect("a page");
        agent.stop();
        let before: Vec<_> = kinds.iter().flat_map(|kind| published.objects(kind)).collect();
        write(&published.origin.tree, "index.html", format!("with {kinds:?}"));
        write(&published.origin.tree, &format!("{}.html", kinds.join("-")), format!("new with {kinds:?}"));
        let number = published.commit();
        let mut new: Vec<_> = kinds.iter().flat_map(|kind| published.objects(kind)).collect();
        new.retain(|path| !before.contains(path));
        let held = damage(&new);
        agent.start();
        if kinds.len() == 2 {
            wait::until("the failure to be shown", || agent.try_status()?.error);
            assert_eq!(agent.live_generation(), serves);
            assert_eq!(fs::read(agent.live().join("index.html")).expect("a page"), page);
            for (path, bytes) in held {
                fs::write(path, bytes).expect("mend an object");
            }
        }
        agent.wait_live(number);
        assert_same(&published.origin.tree, &agent.live());
    }
}

#[test]
fn a_store_that_is_down_holds_up_no_commit_and_is_shown() {
    let published = Published::new("published-down");
    let first = published.commit();
    let away = published.scene.path("away");
    fs::rename(&published.bucket, &away).expect("take the store away");
    fs::write(&published.bucket, "not a directory").expect("put a file there");
    write(&published.origin.tree, "index.html", "while the store is down");
    let second = published.origin.commit();
    wait::until("the failure to be shown", || published.publish()["error"].is_string().then_some(()));
    assert_eq!(published.publish()["released"], first);
    assert_eq!(published.origin.status().generation, Some(second));
    fs::remove_file(&published.bucket).expect("remove the file");
    fs::rename(&away, &published.bucket).expect("bring the store back");
    published.wait_released(second);
    let agent = published.started("web1");
    agent.wait_live(second);
    assert_same(&published.origin.tree, &agent.live());
}

/// Commits one page after the other, so that early packs and generations go out of use.
fn commit_pages(published: &Published, count: usize) -> u64 {
    let commits = (0..count).map(|n| {
        write(&published.origin.tree, "index.html", format!("page {n}"));
        published.commit()
    });
    commits.last().expect("a commit")
}

#[test]
fn what_no_follower_needs_is_deleted_after_a_grace_and_an_agent_goes_on() {
    let published = Published::new("published-gc");
    let first = published.commit();
    let agent = published.started("web1");
    agent.wait_live(first);
    // Most of the first pack goes out of use.
    fs::remove_file(published.origin.tree.join("large.bin")).expect("remove a file");
    let last = commit_pages(&published, 4);
    let large = published.objects("pack").into_iter().max_by_key(|path| size(path)).expect("a pack");
    let gc = |grace: &str| {
        published.origin.cli("publish", &["gc", "--keep", "1", "--grace", grace]).expect_success().stderr
    };
    assert!(gc("1h").contains("deleted 0 objects"), "young objects stay");
    let listed = gc("1ms");
    assert!(listed.contains("will not be listed by the next generation"), "{listed}");
    assert_eq!(published.objects("gen").len() as u64, last, "listed, and not deleted yet");
    let deleted = gc("1ms");
    assert!(!deleted.contains("deleted 0 objects"), "{deleted}");
    assert_eq!(published.objects("gen").len(), 1);
    published.origin.cli("publish", &["check"]).expect_success();
    agent.wait_live(last);
    // Generations that no longer list the pack set it free.
    let last = commit_pages(&published, 2);
    gc("1ms");
    gc("1ms");
    assert!(!large.exists());
    published.origin.cli("publish", &["check"]).expect_success();
    agent.wait_live(last);
    let new = published.started("web2");
    new.wait_live(last);
    assert_same(&published.origin.tree, &new.live());
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).expect("an object").len()
}

#[test]
fn a_check_finds_what_is_damaged_or_missing_and_it_is_put_again() {
    let mut published = Published::new("published-check");
    let first = published.commit();
    write(&published.origin.tree, "index.html", "the second");
    let number = published.commit();
    let check = |published: &Published| published.origin.cli("publish", &["check"]);
    check(&published).expect_success();
    let packs = published.objects("pack");
    damage(&packs[..1]);
    fs::remove_file(&packs[1]).expect("remove a pack");
    damage(&published.objects("update"));
    let found = check(&published);
    assert_eq!(found.code, Some(1), "{found:#?}");
    assert_eq!(found.stdout.lines().filter(|line| line.starts_with("damaged: ")).count(), 3, "{found:#?}");
    wait::until("everything to be put again", || check(&published).code.filter(|code| *code == 0));
    let agent = published.started("web1");
    agent.wait_live(number);
    assert_same(&published.origin.tree, &agent.live());
    assert!(first < number);
    // An origin that starts puts again what is missing, and goes on.
    let lost = published.objects("pack").remove(0);
    fs::remove_file(&lost).expect("remove a pack");
    published.origin.stop();
    published.origin.start();
    write(&published.origin.tree, "index.html", "the third");
    let number = published.commit();
    agent.wait_live(number);
    check(&published).expect_success();
}
