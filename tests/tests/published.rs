//! Trees published to an object store, and agents that follow them without ever reaching the origin.

use std::fs;
use std::path::{Path, PathBuf};

use syncd_tests::edits::{small_site, write};
use syncd_tests::mounts::Mount;
use syncd_tests::oracle::assert_same;
use syncd_tests::process::tool;
use syncd_tests::{Agent, Origin, Scene, Seeded, free_port, http, wait};

struct Published {
    scene: Scene,
    origin: Origin,
    bucket: PathBuf,
}

impl Published {
    /// An origin that publishes a small site into a directory.
    fn new(name: &str) -> Self {
        Self::with(name, &[])
    }

    /// Like [`Self::new`], with more options of `serve`.
    fn with(name: &str, options: &[&str]) -> Self {
        let scene = Scene::new(name);
        let tree = scene.path("tree");
        small_site(&tree, 30);
        // Some chunks long, and no two alike.
        let large: Vec<u8> =
            (0..300_000u32).flat_map(|n| (n.wrapping_mul(2_654_435_761)).to_le_bytes()).collect();
        write(&tree, "large.bin", &large);
        let bucket = scene.path("bucket");
        fs::create_dir(&bucket).expect("a directory");
        let url = url(&bucket);
        let options = [&["--trigger", "manual", "--publish", &url], options].concat();
        let mut origin = Origin::create(&scene, &tree).with_options(&options);
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
    assert_eq!(late.cli("check", &[]).code, Some(0));
    late = late.with_options(&["--head-max-age", "1ms"]);
    late.restart();
    late.wait_live(second);
    // Nothing newer comes: the node says so, and serves on.
    wait::until_ok("the node to say that what it has seen is old", || {
        let checked = late.cli("check", &[]);
        let says_it = checked.code == Some(1) && checked.stdout.contains("--head-max-age");
        if says_it { Ok(()) } else { Err(format!("{checked:?}")) }
    });
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
    assert_eq!(published.origin.status().reason.as_deref(), Some("publishing to the object store fails"));
    assert_eq!(published.origin.status().generation, Some(second));
    fs::remove_file(&published.bucket).expect("remove the file");
    fs::rename(&away, &published.bucket).expect("bring the store back");
    published.wait_released(second);
    let agent = published.started("web1");
    agent.wait_live(second);
    assert_same(&published.origin.tree, &agent.live());
}

/// Commits one page after the other, so that early packs and generations go out of use.
/// A store that is full holds up no commit, and goes on where it was once there is room.
#[test]
fn a_store_without_room_is_named_and_goes_on_with_room() {
    let mut published = Published::new("published-full");
    let mount = Mount::tmpfs(&published.bucket, 4);
    let first = published.commit();
    let agent = published.started("web1");
    agent.wait_live(first);
    let mut random = Seeded::new(7);
    write(&published.origin.tree, "big.bin", random.bytes(8 << 20));
    let second = published.origin.commit();
    wait::until_ok("the failure to be shown", || {
        let publish = published.publish();
        let error = publish["error"].as_str().unwrap_or_default();
        if error.contains("No space left") { Ok(()) } else { Err(publish.to_string()) }
    });
    assert_eq!(agent.live_generation(), Some(first));
    mount.resize(64);
    published.wait_released(second);
    agent.wait_live(second);
    assert_same(&published.origin.tree, &agent.live());
    let litter: Vec<_> = published.objects("tmp");
    assert!(litter.is_empty(), "{litter:?}");
    published.origin.stop();
}

fn commit_pages(published: &Published, count: usize) -> u64 {
    let mut newest = 0;
    for n in 0..count {
        write(&published.origin.tree, "index.html", format!("page {n}"));
        newest = published.commit();
    }
    newest
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

#[test]
fn a_damaged_generation_is_named_and_put_again() {
    let mut published = Published::new("published-generation");
    let first = published.commit();
    let damaged = published.objects("gen").remove(0);
    let check = |published: &Published| published.origin.cli("publish", &["check"]);
    for length in [0, 100] {
        let whole = fs::read(&damaged).expect("an object");
        fs::write(&damaged, &whole[..length]).expect("cut an object");
        let found = check(&published);
        let names_it = found.stdout.contains("damaged: gen/") && found.stdout.contains("is damaged");
        assert!(found.code == Some(1) && names_it, "{found:#?}");
        wait::until("the generation to be put again", || check(&published).code.filter(|code| *code == 0));
        // Also by an origin that starts, which tells at once what followers get.
        published.origin.stop();
        fs::write(&damaged, &whole[..length]).expect("cut an object");
        published.origin.start();
        assert_eq!(published.publish()["released"], first);
        wait::until("the generation to be put again", || check(&published).code.filter(|code| *code == 0));
    }
    // Or if it is gone, and `head` with it.
    for gone in [vec![damaged.clone()], vec![damaged.clone(), published.bucket.join("head")]] {
        gone.iter().for_each(|path| fs::remove_file(path).expect("remove an object"));
        assert_eq!(check(&published).code, Some(1));
        wait::until("the generation to be put again", || check(&published).code.filter(|code| *code == 0));
    }
    let agent = published.started("web1");
    agent.wait_live(first);
    assert_same(&published.origin.tree, &agent.live());
}

/// Copies the keys of an origin into a new data directory, as a backup of the small set has them.
fn copy_keys(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a directory");
    let parts = ["format", "keys"].map(|part| from.join(part));
    tool("cp", ["-a".into()].into_iter().chain(parts).chain([to.to_path_buf()])).expect_success();
    tool("chmod", ["700".into(), to.to_path_buf()]).expect_success();
}

const TAKEN_OVER: u64 = 1 << 20;

#[test]
fn an_origin_is_restored_from_its_keys_and_the_object_store() {
    let mut published = Published::new("published-restore");
    published.commit();
    let joined = Agent::started(&published.scene, &published.origin, "joined");
    let follower = published.started("follower");
    let last = commit_pages(&published, 3);
    joined.wait_live(last);
    follower.wait_live(last);
    let (tree, data) = (published.scene.path("tree2"), published.scene.path("restored"));
    copy_keys(&published.origin.data, &data);
    let address = published.origin.address().to_owned();
    published.origin.kill9();
    tool("cp", ["-a".into(), published.origin.data.clone(), published.scene.path("zombie")]).expect_success();
    fs::remove_dir_all(&published.origin.data).expect("destroy the data");
    fs::remove_dir_all(&published.origin.tree).expect("destroy the tree");
    let live = fs::canonicalize(follower.live()).expect("the live tree");
    tool("cp", ["-a".into(), live, tree.clone()]).expect_success();

    let bucket = url(&published.bucket);
    let options = ["--trigger", "manual", "--publish", &bucket];
    let mut restored =
        Origin::existing(&published.scene, "restored", &tree).with_options(&options).listening(&address);
    // A name and bytes that no key has signed decide nothing.
    let newest = published.objects("gen").pop().expect("a generation");
    let stray = newest.with_file_name(format!("{:020}", u64::MAX));
    fs::copy(&newest, &stray).expect("copy an object");
    let outcome = restored.cli("restore", &["--from", &bucket]).expect_success();
    assert_eq!(outcome.only_line(), last.to_string());
    fs::remove_file(&stray).expect("remove an object");
    let again = restored.cli("restore", &["--from", &bucket]);
    assert!(again.code == Some(1) && again.stderr.contains("has generations already"), "{again:#?}");
    restored.start();
    // Its first generation has the same tree, and ends the epoch of the one that is gone.
    joined.wait_live(last + TAKEN_OVER);
    follower.wait_live(last + TAKEN_OVER);
    let status = restored.status();
    assert_eq!(status.state, "waiting", "{status:?}");
    write(&tree, "index.html", "from the restored origin");
    assert_eq!(restored.commit(), last + TAKEN_OVER + 1);
    for agent in [&joined, &follower] {
        agent.wait_live(last + TAKEN_OVER + 1);
        assert_same(&tree, &agent.live());
    }
    restored.cli("check", &[]).expect_success();

    // The lost origin comes back, and publishes nothing that followers would take.
    let old_tree = published.scene.path("old-tree");
    small_site(&old_tree, 3);
    let mut zombie = Origin::existing(&published.scene, "zombie", &old_tree).with_options(&options);
    zombie.start();
    let error = wait::until("the old origin to notice", || {
        zombie.cli("status", &["--json"]).expect_success().json()["publish"]["error"]
            .as_str()
            .map(str::to_owned)
    });
    assert!(error.contains("deposed"), "{error}");
    let status = zombie.status();
    assert_eq!(status.state, "held", "{status:?}");
    // Agents that know its address are not kept from the other origin.
    let address: std::net::SocketAddr = zombie.address().parse().expect("an address");
    wait::until("the old origin to close its port", || std::net::TcpStream::connect(address).err());
    write(&old_tree, "index.html", "from the old origin");
    let refused = zombie.cli("commit", &["--allow-mass-deletion"]);
    assert!(refused.code == Some(1) && refused.stderr.contains("deposed"), "{refused:#?}");
    assert_eq!(follower.live_generation(), Some(last + TAKEN_OVER + 1));
}

#[test]
fn keys_of_another_tree_restore_nothing() {
    let published = Published::new("published-restore-other");
    published.commit();
    let other = Origin::create_named(&published.scene, "other", &published.origin.tree);
    let data = published.scene.path("restored");
    copy_keys(&other.data, &data);
    let restored = Origin::existing(&published.scene, "restored", &published.origin.tree);
    let outcome = restored.cli("restore", &["--from", &url(&published.bucket)]);
    assert!(outcome.code == Some(1) && outcome.stderr.contains("tree"), "{outcome:#?}");
}

#[test]
fn an_origin_on_standby_is_promoted_and_agents_follow_it() {
    let mut published = Published::new("published-standby");
    let first = published.commit();
    let (bucket, tree) = (url(&published.bucket), published.origin.tree.clone());
    let second = format!("127.0.0.1:{}", free_port());
    copy_keys(&published.origin.data, &published.scene.path("standby"));
    let options = ["--trigger", "manual", "--publish", &bucket, "--standby"];
    let mut standby =
        Origin::existing(&published.scene, "standby", &tree).with_options(&options).listening(&second);
    standby.stand_by();
    let addresses = format!("{},{second}", published.origin.address());
    let mut agent =
        Agent::joined(&published.scene, &published.origin, "web1").with_options(&["--origin", &addresses]);
    agent.start();
    agent.wait_live(first);
    let last = commit_pages(&published, 2);
    agent.wait_live(last);
    wait::until("the standby to follow", || (standby.status().generation == Some(last)).then_some(()));
    let refused = standby.cli("commit", &[]);
    assert!(refused.code == Some(1) && refused.stderr.contains("standby"), "{refused:#?}");
    let http_address = standby.status().http_address.expect("an address");
    let health = http::get(&http_address, "/healthz").expect("an answer");
    assert_eq!(
        (health.status, String::from_utf8_lossy(&health.body).trim()),
        (200, &*format!("standby; generation {last}"))
    );
    let metrics = http::get(&http_address, "/metrics").expect("an answer").body;
    assert!(String::from_utf8_lossy(&metrics).contains("syncd_origin_state{state=\"standby\"} 1\n"));
    let history = standby.cli("history", &["--json"]).expect_success().stdout;
    assert!(history.contains(&format!("\"generation\":{last},")), "{history}");

    published.origin.kill9();
    let promoted = standby.cli("promote", &[]).expect_success();
    assert!(promoted.stderr.contains("this is the origin now"), "{promoted:#?}");
    standby.cli("status", &[]).expect_success();
    agent.wait_live(last + TAKEN_OVER);
    let told = wait::until("the promoted origin to answer", || {
        let told = standby.cli("events", &["--json"]);
        (told.code == Some(0) && told.stdout.contains("\"started\"")).then_some(told.stdout)
    });
    let places = ["standing_by", "followed", "promoted", "started"]
        .map(|name| told.find(&format!("\"event\":\"{name}\"")).unwrap_or_else(|| panic!("{name}: {told}")));
    assert!(places.is_sorted(), "{told}");
    let deeds = standby.cli("audit", &[]).expect_success().stdout;
    assert!(deeds.lines().count() == 1 && deeds.contains("uid ") && deeds.contains("  promote"), "{deeds}");
    write(&tree, "index.html", "from the promoted origin");
    let number = wait::until("the promoted origin to serve", || {
        let commit = standby.cli("commit", &[]);
        (commit.code == Some(0)).then(|| commit.only_line().parse::<u64>().expect("a number"))
    });
    agent.wait_live(number);
    assert_same(&tree, &agent.live());
    // It stays promoted after a restart, and the other one can stand by for it.
    standby.stop();
    standby.start();
    published.origin = published.origin.with_options(&options);
    published.origin.stand_by();
    wait::until("the former origin to follow", || {
        (published.origin.status().generation == Some(number)).then_some(())
    });
    agent.wait_live(number);
}

#[test]
fn of_two_fenced_origins_from_one_backup_one_is_held() {
    let mut published = Published::with("published-fenced", &["--fenced"]);
    let first = published.commit();
    published.origin.stop();
    let (data, tree) = (published.scene.path("copy"), published.scene.path("copied-tree"));
    tool("cp", ["-a".into(), published.origin.data.clone(), data]).expect_success();
    tool("cp", ["-a".into(), published.origin.tree.clone(), tree.clone()]).expect_success();
    published.origin.start();
    let bucket = url(&published.bucket);
    let options = ["--trigger", "manual", "--publish", &bucket, "--fenced"];
    let mut copy = Origin::existing(&published.scene, "copy", &tree).with_options(&options);
    copy.start();
    write(&published.origin.tree, "index.html", "from the origin");
    write(&tree, "index.html", "from its copy");
    let second = published.commit();
    assert_eq!(second, first + 1);
    let refused = copy.cli("commit", &[]);
    assert!(
        refused.code == Some(1) && refused.stderr.contains("two origins run from one backup"),
        "{refused:#?}"
    );
    let follower = published.started("follower");
    follower.wait_live(second);
    assert_same(&published.origin.tree, &follower.live());
}

/// Two origins from one backup, without fences, use a number twice. Nobody mixes the two trees, and everybody
/// who sees both says so.
#[test]
fn a_fork_is_told_by_the_origin_that_hears_of_it_and_by_followers() {
    let mut published = Published::new("published-fork");
    let first = published.commit();
    let agent = Agent::started(&published.scene, &published.origin, "web1");
    let follower = published.started("follower");
    agent.wait_live(first);
    follower.wait_live(first);
    published.origin.stop();
    let (data, tree) = (published.scene.path("copy"), published.scene.path("copied-tree"));
    tool("cp", ["-a".into(), published.origin.data.clone(), data]).expect_success();
    tool("cp", ["-a".into(), published.origin.tree.clone(), tree.clone()]).expect_success();
    published.origin.start();
    write(&published.origin.tree, "index.html", "from the origin");
    let second = published.commit();
    agent.wait_live(second);
    follower.wait_live(second);
    published.origin.kill9();

    // Nobody reaches the copy while it takes the same number.
    let mut copy = Origin::existing(&published.scene, "copy", &tree);
    copy.start();
    write(&tree, "index.html", "from its copy");
    assert_eq!(copy.commit(), second);
    copy.stop();
    fs::remove_dir_all(&published.bucket).expect("empty the store");
    fs::create_dir(&published.bucket).expect("a directory");
    let bucket = url(&published.bucket);
    let options = ["--trigger", "manual", "--publish", &bucket];
    let mut copy = copy.with_options(&options).listening(published.origin.address());
    copy.start();
    for forked in [&agent, &follower] {
        let fork = wait::until("the node to see two roots", || {
            let status = forked.cli("status", &["--json"]).expect_success().json();
            status["fork"].is_object().then_some(status)
        });
        assert_eq!(fork["fork"]["generation"], second, "{fork}");
        assert_eq!(fork["fork"]["known"], fork["root"], "{fork}");
        assert!(fork["error"].as_str().is_some_and(|error| error.contains("has two roots")), "{fork}");
        assert_same(&published.origin.tree, &forked.live());
    }
    wait::until_ok("the copy to tell of the fork", || {
        let events = copy.cli("events", &["--json"]).expect_success().stdout;
        if events.contains("\"event\":\"fork\",\"node\":\"web1\"") { Ok(()) } else { Err(events) }
    });
    let status = copy.cli("status", &[]).expect_success().stdout;
    assert!(status.contains("has two roots"), "{status}");
    let http = copy.status().http_address.expect("an address");
    let metrics = http::get(&http, "/metrics").expect("metrics").body;
    assert!(String::from_utf8_lossy(&metrics).contains("syncd_origin_forks_total 1\n"));

    // The next number ends it.
    let third = copy.commit();
    assert!(third > second);
    for forked in [&agent, &follower] {
        forked.wait_live(third);
        assert_same(&tree, &forked.live());
    }
    let status = copy.cli("status", &[]).expect_success().stdout;
    assert!(!status.contains("has two roots"), "{status}");
}

#[test]
fn a_fenced_origin_commits_nothing_while_the_store_is_down_and_goes_on_after() {
    let published = Published::with("published-fenced-down", &["--fenced"]);
    let first = published.commit();
    let away = published.scene.path("away");
    fs::rename(&published.bucket, &away).expect("take the store away");
    fs::write(&published.bucket, "not a directory").expect("put a file there");
    write(&published.origin.tree, "index.html", "while the store is down");
    let refused = published.origin.cli("commit", &[]);
    assert!(refused.code == Some(1) && refused.stderr.contains("does not answer"), "{refused:#?}");
    assert_eq!(published.origin.status().generation, Some(first));
    fs::remove_file(&published.bucket).expect("remove the file");
    fs::rename(&away, &published.bucket).expect("bring the store back");
    assert_eq!(published.commit(), first + 1);
}

const CANARY: &str = "
[rollout.canary]
steps = [ { nodes = 1 }, { rest = true } ]
hold = '10m'
";

#[test]
fn followers_get_a_generation_only_when_its_rollout_has_ended() {
    let scene = Scene::new("published-rollout");
    let config = scene.path("origin.toml");
    fs::write(&config, CANARY).expect("write the policies");
    let published = Published::with("published-canary", &["--config", config.to_str().expect("text")]);
    let first = published.commit();
    let agents = ["web1", "web2"].map(|name| Agent::started(&published.scene, &published.origin, name));
    let follower = published.started("follower");
    for agent in agents.iter().chain([&follower]) {
        agent.wait_live(first);
    }
    published.origin.wait_connected(&["web1", "web2"]);
    write(&published.origin.tree, "index.html", "a canary first");
    let commit = published.origin.cli("commit", &["--rollout", "canary"]).expect_success();
    let second: u64 = commit.only_line().parse().expect("a number");
    wait::until("the canary to have it", || {
        agents.iter().any(|agent| agent.live_generation() == Some(second)).then_some(())
    });
    assert_eq!(published.publish()["released"], first);
    assert_eq!(follower.live_generation(), Some(first));
    published.origin.cli("rollout", &["advance"]).expect_success();
    published.wait_released(second);
    for agent in agents.iter().chain([&follower]) {
        agent.wait_live(second);
    }
}
