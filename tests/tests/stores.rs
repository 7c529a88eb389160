//! Trees published to a real object store (SeaweedFS), read from it and by web servers and caches in front of
//! it, with the faults of each. The suite `published` has the same with directories.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use syncd_tests::cdn::{Nginx, Varnish};
use syncd_tests::edits::{small_site, write};
use syncd_tests::link::{Line, Link};
use syncd_tests::oracle::assert_same;
use syncd_tests::process::{run, tool};
use syncd_tests::relay::{Relay, Spoil};
use syncd_tests::seaweed::{Anonymous, KEYS, Seaweed};
use syncd_tests::{Agent, Daemon, Origin, Scene, Seeded, WrongClock, free_port, http, wait};

const URL: &str = "s3://bucket/site";
const TAKEN_OVER: u64 = 1 << 20;

/// A store, a relay in front of it, and an origin that publishes through the relay.
struct Stores {
    store: Seaweed,
    relay: Relay,
    origin: Origin,
    /// Goes last, when nothing writes there any more.
    scene: Scene,
}

impl Stores {
    fn new(name: &str, anonymous: Anonymous, options: &[&str]) -> Self {
        let scene = Scene::new(name);
        let store = Seaweed::started(&scene, anonymous);
        let relay = Relay::new(&store.address());
        let tree = scene.path("tree");
        small_site(&tree, 30);
        write(&tree, "large.bin", large(1));
        let options = [&["--trigger", "manual", "--publish", URL], options].concat();
        let environment = Seaweed::environment(relay.address());
        let origin = Origin::create(&scene, &tree).with_options(&options).with_environment(&environment);
        Self { store, relay, origin, scene }
    }

    fn started(name: &str, anonymous: Anonymous, options: &[&str]) -> Self {
        let mut stores = Self::new(name, anonymous, options);
        stores.origin.start();
        stores
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

    /// Waits until `status` shows an error of publishing that contains `text`.
    fn wait_error(&self, text: &str) {
        wait::until_ok("the failure to be shown", || {
            let publish = self.publish();
            let error = publish["error"].as_str().unwrap_or_default();
            if error.contains(text) { Ok(()) } else { Err(publish.to_string()) }
        });
    }

    /// A node that follows `url`, and reaches the store at `address`.
    fn follower(&self, name: &str, url: &str, address: &str) -> Agent {
        let keys = self.origin.cli("key", &["show", "--json"]).expect_success().json();
        let trust = keys["root_key"].as_str().expect("a fingerprint").to_owned();
        Agent::new(&self.scene, name)
            .with_options(&["--follow", url, "--trust", &trust])
            .with_environment(&Seaweed::environment(address))
    }

    fn follow(&self, name: &str) -> Agent {
        let mut agent = self.follower(name, URL, &self.store.address());
        agent.start();
        agent
    }

    /// URL of the published tree for readers without credentials.
    fn http_url(&self, address: &str) -> String {
        format!("http://{address}/bucket/site")
    }
}

/// Some chunks long, and no two alike.
fn large(seed: u32) -> Vec<u8> {
    (0..300_000u32).flat_map(|n| (n ^ seed).wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

/// An origin's keys, as a backup of the small set has them.
fn copy_keys(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a directory");
    let parts = ["format", "keys"].map(|part| from.join(part));
    tool("cp", ["-a".into()].into_iter().chain(parts).chain([to.to_path_buf()])).expect_success();
    tool("chmod", ["700".into(), to.to_path_buf()]).expect_success();
}

#[test]
fn a_tree_is_published_followed_checked_collected_and_restored() {
    let mut stores = Stores::started("stores-s3", Anonymous::Nothing, &[]);
    let first = stores.commit();
    let near = stores.follow("near");
    near.wait_live(first);
    assert_same(&stores.origin.tree, &near.live());
    for n in 0..4 {
        write(&stores.origin.tree, "index.html", format!("page {n}"));
        fs::remove_file(stores.origin.tree.join("large.bin")).ok();
        stores.commit();
    }
    let last = first + 4;
    near.wait_live(last);
    assert!(!stores.store.names("site/update/").is_empty());
    stores.origin.cli("publish", &["check"]).expect_success();

    // Objects that nobody needs are deleted, by its name in the listing.
    let gc =
        || stores.origin.cli("publish", &["gc", "--keep", "1", "--grace", "1ms"]).expect_success().stderr;
    gc();
    wait::until("old objects to be deleted", || (!gc().contains("deleted 0 objects")).then_some(()));
    assert_eq!(stores.store.names("site/gen/").len(), 1);
    stores.origin.cli("publish", &["check"]).expect_success();

    // An object is missing, and another one has other bytes.
    let packs = stores.store.names("site/pack/");
    stores.store.delete(&format!("site/pack/{}", packs[0]));
    let update = stores.store.names("site/update/").remove(0);
    stores.store.replace(&format!("site/update/{update}"), b"something else");
    let found = stores.origin.cli("publish", &["check"]);
    assert_eq!(found.code, Some(1), "{found:#?}");
    let check = || stores.origin.cli("publish", &["check"]).code;
    wait::until("everything to be put again", || check().filter(|code| *code == 0));

    // The host is lost. Its keys and the store make another one.
    let (tree, data) = (stores.scene.path("tree2"), stores.scene.path("restored"));
    copy_keys(&stores.origin.data, &data);
    let address = stores.origin.address().to_owned();
    stores.origin.kill9();
    fs::remove_dir_all(&stores.origin.data).expect("destroy the data");
    let live = fs::canonicalize(near.live()).expect("the live tree");
    tool("cp", ["-a".into(), live, tree.clone()]).expect_success();
    let mut restored = Origin::existing(&stores.scene, "restored", &tree)
        .with_options(&["--trigger", "manual", "--publish", URL])
        .with_environment(&Seaweed::environment(stores.relay.address()))
        .listening(&address);
    let outcome = restored.cli("restore", &["--from", URL]).expect_success();
    assert_eq!(outcome.only_line(), last.to_string());
    restored.start();
    near.wait_live(last + TAKEN_OVER);
    write(&tree, "index.html", "from the restored origin");
    assert_eq!(restored.commit(), last + TAKEN_OVER + 1);
    near.wait_live(last + TAKEN_OVER + 1);
    assert_same(&tree, &near.live());
}

#[test]
fn fenced_commits_survive_lost_answers_and_a_promotion() {
    let mut stores = Stores::started("stores-fenced", Anonymous::Nothing, &["--fenced"]);
    let first = stores.commit();
    // The generation's object is created, and nobody says so.
    stores.relay.spoil("PUT /bucket/site/gen/", Spoil::LoseAnswer);
    write(&stores.origin.tree, "index.html", "with a lost answer");
    let second = stores.origin.commit();
    assert_eq!(second, first + 1, "the own nonce is read back");
    assert!(stores.relay.spoiled() > 0);
    stores.relay.heal();
    stores.wait_released(second);

    // The second origin stands by, and is promoted while the first one is cut off from nothing.
    let (tree, address) = (stores.origin.tree.clone(), format!("127.0.0.1:{}", free_port()));
    copy_keys(&stores.origin.data, &stores.scene.path("standby"));
    let options = ["--trigger", "manual", "--publish", URL, "--fenced", "--standby"];
    let mut standby = Origin::existing(&stores.scene, "standby", &tree)
        .with_options(&options)
        .with_environment(&Seaweed::environment(&stores.store.address()))
        .listening(&address);
    standby.stand_by();
    wait::until("the standby to follow", || (standby.status().generation == Some(second)).then_some(()));
    let addresses = format!("{},{address}", stores.origin.address());
    let mut agent =
        Agent::joined(&stores.scene, &stores.origin, "web1").with_options(&["--origin", &addresses]);
    agent.start();
    agent.wait_live(second);
    // It is promoted in the middle of a commit of the first one.
    stores.relay.spoil("PUT /bucket/site/gen/", Spoil::Status(503));
    let before = stores.relay.spoiled();
    write(&tree, "index.html", "in the middle of a commit");
    let mut command = stores.origin.command("commit", &[]);
    let committing = std::thread::spawn(move || run(&mut command));
    wait::until("the commit to ask the store", || (stores.relay.spoiled() > before).then_some(()));
    standby.cli("promote", &[]).expect_success();
    write(&tree, "index.html", "from the promoted origin");
    let number = wait::until("the promoted origin to commit", || {
        let commit = standby.cli("commit", &[]);
        (commit.code == Some(0)).then(|| commit.only_line().parse::<u64>().expect("a number"))
    });
    assert!(number > TAKEN_OVER);
    stores.relay.heal();
    let refused = committing.join().expect("the commit ends");
    assert_eq!(refused.code, Some(1), "{refused:#?}");
    // The first origin runs on, and commits nothing: of two numbers none is used twice.
    write(&tree, "index.html", "from the deposed origin");
    wait::until("the first origin to be deposed", || {
        let refused = stores.origin.cli("commit", &[]);
        assert_eq!(refused.code, Some(1), "{refused:#?}");
        refused.stderr.contains("deposed").then_some(())
    });
    stores.origin.kill9();
    agent.wait_live(number);
}

#[test]
fn a_store_that_dies_holds_up_no_commit_and_is_named() {
    let mut stores = Stores::started("stores-faults", Anonymous::Nothing, &[]);
    let first = stores.commit();
    let agent = stores.follow("web1");
    agent.wait_live(first);

    // The store dies while packs are put, half of one is lost on the way, and it comes back.
    stores.relay.spoil("PUT /bucket/site/pack/", Spoil::CutRequest);
    write(&stores.origin.tree, "large.bin", large(2));
    let second = stores.origin.commit();
    wait::until("a put to be cut", || (stores.relay.spoiled() > 0).then_some(()));
    stores.store.kill9();
    stores.relay.heal();
    stores.wait_error("does not answer");
    assert_eq!(stores.publish()["released"], first);
    stores.store.start();
    stores.wait_released(second);
    agent.wait_live(second);
    assert_same(&stores.origin.tree, &agent.live());

    // It answers that it has trouble, and then not at all.
    let mut newest = second;
    for how in [Spoil::Status(503), Spoil::Stall] {
        stores.relay.spoil("PUT /bucket/site/", how);
        write(&stores.origin.tree, "index.html", format!("{how:?}"));
        newest = stores.origin.commit();
        stores.wait_error("does not answer");
        stores.relay.heal();
        stores.wait_released(newest);
    }
    agent.wait_live(newest);
}

#[test]
fn a_store_that_refuses_the_origin_holds_up_no_commit_and_says_why() {
    let mut stores = Stores::started("stores-refused", Anonymous::Nothing, &[]);
    let newest = stores.commit();
    let agent = stores.follow("web1");
    agent.wait_live(newest);

    // The credentials are revoked, and then come back.
    stores.store.kill9();
    stores.store.allow(("another", "pair"), Anonymous::Nothing);
    stores.store.start();
    write(&stores.origin.tree, "index.html", "refused");
    let third = stores.origin.commit();
    stores.wait_error("refuses access");
    stores.wait_error("AWS_ACCESS_KEY_ID");
    assert_eq!(agent.live_generation(), Some(newest));
    stores.store.kill9();
    stores.store.allow(KEYS, Anonymous::Nothing);
    stores.store.start();
    stores.wait_released(third);
    agent.wait_live(third);

    // The origin's clock is wrong by a day, so that the store refuses its signatures.
    let clock = WrongClock::new(&stores.scene);
    stores.origin.stop();
    stores.origin.under(&clock.prefix(1));
    stores.origin.start();
    write(&stores.origin.tree, "index.html", "at another time");
    let late = stores.origin.commit();
    stores.wait_error("refuses access");
    stores.wait_error("this machine's clock");
    stores.origin.stop();
    stores.origin.under(&[]);
    stores.origin.start();
    stores.wait_released(late);
    agent.wait_live(late);
}

#[test]
fn a_bucket_that_was_emptied_is_filled_again() {
    let mut stores = Stores::started("stores-emptied", Anonymous::Nothing, &[]);
    let first = stores.commit();
    let mut agent = stores.follow("web1");
    agent.wait_live(first);
    // Nodes serve on, and the next start puts the tree again.
    for kind in ["pack", "gen", "update"] {
        for name in stores.store.names(&format!("site/{kind}/")) {
            stores.store.delete(&format!("site/{kind}/{name}"));
        }
    }
    stores.store.delete("site/head");
    stores.origin.stop();
    stores.origin.start();
    write(&stores.origin.tree, "index.html", "after the loss");
    let fourth = stores.commit();
    agent.wait_live(fourth);
    agent.stop();
    let late = stores.follow("web2");
    late.wait_live(fourth);
    assert_same(&stores.origin.tree, &late.live());
}

#[test]
fn what_a_reader_gets_is_checked_whoever_spoils_it() {
    let stores = Stores::started("stores-spoiled", Anonymous::Reads, &[]);
    let first = stores.commit();
    let relay = Relay::new(&stores.store.address());
    let mut agent = stores.follower("web1", &stores.http_url(relay.address()), "127.0.0.1:9");
    agent.start();
    agent.wait_live(first);
    let content = ["/pack/", "/update/"];
    let spoils = [
        (&content[..], Spoil::CutAnswer),
        (&content, Spoil::Flip),
        (&content, Spoil::Status(503)),
        (&content, Spoil::Status(403)),
        (&content, Spoil::Close),
        (&["/head"], Spoil::CutAnswer),
        (&["/gen/"], Spoil::Flip),
    ];
    for (n, (kinds, how)) in spoils.into_iter().enumerate() {
        let served = agent.live_generation();
        let page = fs::read(agent.live().join("index.html")).expect("a page");
        kinds.iter().for_each(|kind| relay.spoil(kind, how));
        let before = relay.spoiled();
        write(&stores.origin.tree, "index.html", format!("page {n}"));
        let number = stores.commit();
        wait::until(&format!("{how:?} to be met"), || (relay.spoiled() > before + 2).then_some(()));
        wait::until("the failure to be shown", || agent.try_status()?.error);
        assert_eq!(agent.live_generation(), served, "{how:?}");
        assert_eq!(fs::read(agent.live().join("index.html")).expect("a page"), page, "{how:?}");
        relay.heal();
        agent.wait_live(number);
        assert_same(&stores.origin.tree, &agent.live());
    }
    // A cache shows the head of the first generation for ever.
    relay.spoil("/head", Spoil::Stale);
    write(&stores.origin.tree, "index.html", "while the cache is stale");
    let (served, newest) = (agent.live_generation(), stores.commit());
    wait::until("an earlier generation to be refused", || {
        agent.try_status()?.error.filter(|error| error.contains("is older than the accepted"))
    });
    assert_eq!(agent.live_generation(), served);
    relay.heal();
    agent.wait_live(newest);
    assert_same(&stores.origin.tree, &agent.live());
}

#[test]
fn a_store_without_conditional_puts_is_refused_for_fencing() {
    // Signatures would cover the header that is removed.
    let mut stores = Stores::new("stores-strip", Anonymous::Everything, &["--fenced"]);
    let environment = [
        ("AWS_ENDPOINT_URL".to_owned(), format!("http://{}", stores.relay.address())),
        ("AWS_SKIP_SIGNATURE".to_owned(), "true".to_owned()),
    ];
    stores.origin = stores.origin.with_environment(&environment);
    stores.relay.spoil("PUT ", Spoil::Strip("If-None-Match"));
    let mut serve = Daemon::start(&mut stores.origin.serve_command(), stores.scene.directory(), "refused");
    let status = wait::until("the origin to refuse", || serve.ended());
    assert_eq!(status.code(), Some(1));
    let log = serve.log();
    assert!(log.contains("can't fence") && log.contains("If-None-Match"), "{log}");
    // The same store keeps the promise without the relay's change.
    stores.relay.heal();
    stores.origin.start();
    stores.commit();
}

#[test]
fn a_missing_variable_is_named_at_the_start() {
    let scene = Scene::new("stores-settings");
    let tree = scene.path("tree");
    small_site(&tree, 3);
    let origin = Origin::create(&scene, &tree).with_options(&["--trigger", "manual", "--publish", URL]);
    let refused = |set: &[(&str, &str)], names: &str| {
        let mut command = origin.serve_command();
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
            command.env_remove(name);
        }
        command.envs(set.iter().copied());
        let mut serve = Daemon::start(&mut command, scene.directory(), "refused");
        let status = wait::until("the origin to refuse", || serve.ended());
        assert!(status.code() == Some(1) && serve.log().contains(names), "{names}: {}", serve.log());
    };
    refused(&[], "AWS_ENDPOINT_URL");
    refused(&[("AWS_REGION", "eu-central-1")], "AWS_ACCESS_KEY_ID");
    let key = ("AWS_ACCESS_KEY_ID", "key");
    refused(&[("AWS_REGION", "eu-central-1"), key], "AWS_SECRET_ACCESS_KEY is missing");
}

#[test]
fn a_web_server_with_https_is_followed_by_the_trust_of_the_machine() {
    let scene = Scene::new("stores-https");
    let (tree, bucket) = (scene.path("tree"), scene.path("bucket"));
    small_site(&tree, 10);
    fs::create_dir(&bucket).expect("a directory");
    let url = format!("file://{}", bucket.display());
    let mut origin = Origin::create(&scene, &tree).with_options(&["--trigger", "manual", "--publish", &url]);
    origin.start();
    let number = origin.commit();
    let issuer = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    fs::write(scene.path("cert.pem"), issuer.cert.pem()).expect("write the certificate");
    fs::write(scene.path("key.pem"), issuer.signing_key.serialize_pem()).expect("write the key");
    let directory = scene.directory().display();
    let server = format!(
        "listen ADDRESS ssl; ssl_certificate {directory}/cert.pem; ssl_certificate_key {directory}/key.pem;
         root {directory}; location = /bucket/head {{ add_header Cache-Control no-cache; }}"
    );
    let nginx = Nginx::start(&scene, "nginx", &server, "");
    let url = format!("https://localhost:{}/bucket", nginx.port());
    let keys = origin.cli("key", &["show", "--json"]).expect_success().json();
    let options = ["--follow", &url, "--trust", keys["root_key"].as_str().expect("a fingerprint")];
    // A certificate that the machine does not trust.
    let mut stranger = Agent::new(&scene, "stranger").with_options(&options);
    stranger.start();
    wait::until("the agent to refuse", || stranger.daemon().ended());
    assert!(stranger.daemon().log().contains("certificate"), "{}", stranger.daemon().log());
    let trusted = ("SSL_CERT_FILE".to_owned(), scene.path("cert.pem").display().to_string());
    let mut agent = Agent::new(&scene, "web1").with_options(&options).with_environment(&[trusted]);
    agent.start();
    agent.wait_live(number);
    assert_same(&tree, &agent.live());
    write(&tree, "index.html", "changed");
    agent.wait_live(origin.commit());
    assert_same(&tree, &agent.live());
}

#[test]
fn followers_behind_a_cache_cost_the_store_one_read() {
    let stores = Stores::started("stores-cache", Anonymous::Reads, &[]);
    let first = stores.commit();
    let relay = Relay::new(&stores.store.address());
    let nginx = Nginx::cache(&stores.scene, relay.address());
    let url = stores.http_url(&nginx.address);
    let agents: Vec<Agent> = (0..4)
        .map(|n| {
            let mut agent = stores.follower(&format!("web{n}"), &url, "127.0.0.1:9");
            agent.start();
            agent.wait_live(first);
            agent
        })
        .collect();
    let packs: u64 = stores
        .store
        .names("site/pack/")
        .iter()
        .map(|name| {
            let answer = http::get(&nginx.address, &format!("/bucket/site/pack/{name}")).expect("a pack");
            let cache = answer.header("Cache-Control").map(str::to_owned);
            assert_eq!(cache.as_deref(), Some("public, max-age=31536000, immutable"), "{}", answer.head);
            answer.body.len() as u64
        })
        .sum();
    assert!(relay.passed() < packs * 2, "{} bytes of {packs} were read from the store", relay.passed());
    for agent in &agents {
        assert_same(&stores.origin.tree, &agent.live());
    }
}

impl Stores {
    /// Not started yet: joined agents are told to read at `url`.
    fn telling(mut self, url: &str) -> Self {
        let options = ["--trigger", "manual", "--publish", URL, "--publish-read", url];
        self.origin = self.origin.with_options(&options);
        self.origin.start();
        self
    }
}

/// Bytes without an order, so that an update to them has to carry them.
fn random(bytes: usize, seed: u64) -> Vec<u8> {
    let mut random = Seeded::new(seed);
    (0..bytes / 8).flat_map(|_| random.next_u64().to_le_bytes()).collect()
}

#[test]
fn joined_agents_get_their_bytes_from_a_cache_and_the_origin_sends_none() {
    const BYTES: usize = 10 << 20;
    const AGENTS: usize = 8;
    let stores = Stores::new("stores-locations", Anonymous::Reads, &[]);
    let behind = Relay::new(&stores.store.address());
    let varnish = Varnish::cache(&stores.scene, behind.address());
    let url = stores.http_url(&varnish.address);
    let stores = stores.telling(&url);
    let first = stores.commit();
    let line = Line { round_trip: Duration::ZERO, bytes_per_second: 1e9 };
    let link = Link::new(stores.origin.address(), line);
    let agents: Vec<Agent> = (0..AGENTS)
        .map(|n| {
            let mut agent = Agent::new(&stores.scene, &format!("web{n}"));
            agent.join(&link.address(), &stores.origin.token()).expect_success();
            agent.start();
            agent.wait_live(first);
            agent
        })
        .collect();
    let sent = || link.delivered(Instant::now()).0;
    let tree: u64 = stores.origin.status().bytes;
    assert!(sent() < tree * AGENTS as u64 / 10, "{} bytes were sent for a tree of {tree}", sent());
    link.reset();
    write(&stores.origin.tree, "big.bin", random(BYTES, 1));
    let number = stores.origin.commit();
    for agent in &agents {
        agent.wait_live(number);
        assert_same(&stores.origin.tree, &agent.live());
    }
    let (sent, all) = (sent(), (BYTES * AGENTS) as u64);
    let read = behind.passed();
    println!("the origin sent {sent} of {all} bytes; {read} were read from the store, first syncs included");
    assert!(read < 4 * (tree + BYTES as u64), "{read} bytes were read from the store");
    assert!(sent < all / 100, "the origin sent {sent} of {all} bytes");
    // A change that fits into the announcement costs no look at the store.
    write(&stores.origin.tree, "index.html", "small");
    let number = stores.origin.commit();
    for agent in &agents {
        agent.wait_live(number);
    }
}

#[test]
fn an_agent_falls_back_on_the_origin_whatever_the_announced_place_does() {
    let stores = Stores::new("stores-fallback", Anonymous::Reads, &[]);
    let relay = Relay::new(&stores.store.address());
    let url = stores.http_url(relay.address());
    let mut stores = stores.telling(&url);
    let first = stores.commit();
    let agent = Agent::started(&stores.scene, &stores.origin, "web1");
    agent.wait_live(first);
    assert!(relay.passed() > 1_000_000, "the first sync came from the store");
    let faults = [
        ("/pack/", Spoil::Flip),
        ("/pack/", Spoil::CutAnswer),
        ("/pack/", Spoil::Status(404)),
        ("/gen/", Spoil::Status(404)),
    ];
    for (n, (of, how)) in faults.into_iter().enumerate() {
        relay.spoil(of, how);
        relay.spoil("/update/", how);
        let before = relay.spoiled();
        write(&stores.origin.tree, "big.bin", random(1 << 20, n as u64));
        let number = stores.origin.commit();
        agent.wait_live(number);
        assert!(relay.spoiled() > before, "{of} {how:?} was met");
        assert_same(&stores.origin.tree, &agent.live());
        relay.heal();
    }
    // The store is down: the generation does not get there, and nobody waits for it.
    stores.store.kill9();
    write(&stores.origin.tree, "big.bin", random(1 << 20, 9));
    let number = stores.origin.commit();
    agent.wait_live(number);
    assert_same(&stores.origin.tree, &agent.live());
}
