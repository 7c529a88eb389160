//! A node's own check: it returns by itself, with and without an origin, through kills and a lost record.
//! Orders of people, and the pages for load balancers.

use std::path::PathBuf;

use syncd_tests::edits::write;
use syncd_tests::{Agent, Origin, Scene, http, wait};

/// An origin and web1, whose check passes while `live/bad` and `broken` are missing.
struct Site {
    scene: Scene,
    tree: PathBuf,
    origin: Origin,
    web1: Agent,
    broken: PathBuf,
}

impl Site {
    /// Generation 1 is live and has passed.
    #[track_caller]
    fn new(name: &str, first: &str) -> Self {
        let scene = Scene::new(name);
        let (tree, broken) = (scene.path("tree"), scene.path("broken"));
        write(&tree, "index.html", "one");
        let origin = Origin::started(&scene, &tree);
        let check = format!(
            "{first} test ! -e $SYNCD_LIVE/bad && test ! -e {} || {{ echo 502 Bad Gateway; exit 1; }}",
            broken.display()
        );
        let mut web1 = Agent::joined(&scene, &origin, "web1").with_options(&[
            "--check",
            &check,
            "--check-timeout",
            "10m",
        ]);
        web1.start();
        origin.wait_connected(&["web1"]);
        origin.commit_live();
        let mut site = Self { scene, tree, origin, web1, broken };
        site.wait_check(1, "passed");
        // The origin withdraws nothing because of a drained node: these tests look at the node alone.
        site.origin.cli("drain", &["web1"]).expect_success();
        site
    }

    fn status(&self) -> serde_json::Value {
        let outcome = self.web1.cli("status", &["--json"]);
        serde_json::from_str(&outcome.stdout).unwrap_or_default()
    }

    /// Waits for an outcome of the check for a generation.
    #[track_caller]
    fn wait_check(&mut self, generation: u64, outcome: &str) -> serde_json::Value {
        wait::until_ok(&format!("{outcome} for generation {generation}"), || {
            let status = self.status();
            let check = &status["check"];
            let is_it = check["generation"] == generation && check["outcome"] == outcome;
            if is_it { Ok(check.clone()) } else { Err(format!("{status:#}")) }
        })
    }

    /// Commits a generation whose check fails.
    fn commit_bad(&self) {
        write(&self.tree, "bad", "x");
        write(&self.tree, "index.html", "two");
        self.origin.commit();
    }

    /// The agent is connected, refuses generation 2, and does not go there.
    #[track_caller]
    fn assert_refuses(&self) {
        self.origin.wait_connected(&["web1"]);
        let status = self.web1.status();
        assert_eq!(status.refused.iter().map(|refused| refused.generation).collect::<Vec<_>>(), [2]);
        assert_eq!(self.web1.live_generation(), Some(1));
    }

    #[track_caller]
    fn assert_returned(&mut self) {
        // Generation 1 is live before the switch as well.
        wait::until("the refusal to be recorded", || {
            let refused = self.web1.cli("refused", &[]).stdout;
            refused.starts_with("generation 2 ").then_some(())
        });
        self.web1.wait_back(1);
        assert_eq!(std::fs::read(self.web1.root.join("live/index.html")).expect("a page"), b"one");
    }
}

trait WaitBack {
    fn wait_back(&self, number: u64);
}

impl WaitBack for Agent {
    /// Waits until exactly this generation is live on disk.
    #[track_caller]
    fn wait_back(&self, number: u64) {
        wait::until_ok(&format!("generation {number} to be live again"), || match self.live_generation() {
            Some(live) if live == number => Ok(()),
            live => Err(format!("{live:?} is live: {:?}", self.try_status())),
        });
    }
}

#[test]
fn a_generation_whose_check_fails_is_left_and_never_taken_again() {
    let mut site = Site::new("check-fails", "");
    site.commit_bad();
    site.assert_returned();
    let check = site.wait_check(2, "failed");
    assert_eq!(check["returned_to"], 1, "{check:#}");
    assert!(check["output"].as_str().expect("text").contains("502 Bad Gateway"), "{check:#}");
    // Refused after a restart as well.
    site.web1.restart();
    site.assert_refuses();
    // The next one is taken.
    std::fs::remove_file(site.tree.join("bad")).expect("mend the tree");
    let number = site.origin.commit();
    site.web1.wait_live(number);
    site.wait_check(number, "passed");
    // A person lifts the refusal.
    site.web1.cli("accept", &["7"]).expect_code(1);
    site.web1.cli("accept", &["2"]).expect_success();
    assert_eq!(site.web1.cli("refused", &[]).expect_success().stdout, "");
}

#[test]
fn a_node_returns_with_the_origin_dead_and_remembers_it_without_its_record() {
    // The check of generation 2 lasts until `go` exists beside the replica.
    let first = "while [ $SYNCD_PHASE$SYNCD_GENERATION = trial2 ] && ! test -e $SYNCD_ROOT/../go; do sleep 0.05; done;";
    let mut site = Site::new("check-origin-dead", first);
    site.commit_bad();
    site.web1.wait_live(2);
    site.origin.kill9();
    std::fs::write(site.scene.path("go"), "").expect("end the trial");
    site.assert_returned();
    // Without the record, the refusal is known from its file.
    site.web1.kill9();
    std::fs::remove_file(site.web1.root.join("state/record.redb")).expect("lose the record");
    site.web1.start();
    site.origin.start();
    site.assert_refuses();
}

#[test]
fn two_starts_without_a_passed_check_return_the_node() {
    let mut site = Site::new("check-starts", "[ $SYNCD_GENERATION = 1 ] || sleep 600;");
    write(&site.tree, "index.html", "two");
    site.origin.commit();
    site.web1.wait_live(2);
    site.origin.kill9();
    site.web1.kill9();
    site.web1.start();
    site.wait_check(2, "running");
    assert_eq!(site.web1.live_generation(), Some(2));
    site.web1.kill9();
    site.web1.start();
    site.assert_returned();
}

#[test]
fn a_check_that_fails_before_or_on_both_is_no_reason_to_refuse_or_loop() {
    let mut site = Site::new("check-weather", "");
    std::fs::write(&site.broken, "").expect("break what is behind");
    write(&site.tree, "index.html", "two");
    site.origin.commit();
    let check = site.wait_check(1, "failed-before");
    assert!(check["returned_to"].is_null(), "{check:#}");
    assert_eq!(site.web1.live_generation(), Some(1));
    std::fs::remove_file(&site.broken).expect("mend it");
    site.web1.wait_live(2);
    site.wait_check(2, "passed");
    // The generation breaks what is behind for every generation.
    site.web1.stop();
    let hook = format!("[ $SYNCD_GENERATION != 3 ] || touch {}", site.broken.display());
    site.web1 = std::mem::replace(&mut site.web1, Agent::new(&site.scene, "nobody"))
        .with_options(&["--on-activate", &hook]);
    site.web1.start();
    site.origin.wait_connected(&["web1"]);
    write(&site.tree, "index.html", "three");
    site.origin.commit();
    let check = site.wait_check(3, "failed-on-both");
    assert_eq!(check["returned_to"], 2, "{check:#}");
    assert_eq!(site.web1.live_generation(), Some(2));
}

#[test]
fn orders_of_people_survive_restarts_and_show_to_balancers() {
    let scene = Scene::new("orders");
    let tree = scene.path("tree");
    write(&tree, "index.html", "one");
    let mut origin = Origin::started(&scene, &tree);
    let port = http_port();
    let address = format!("127.0.0.1:{port}");
    let mut web1 = Agent::joined(&scene, &origin, "web1").with_options(&["--health-listen", &address]);
    web1.start();
    origin.wait_connected(&["web1"]);
    assert_eq!(ready(&address), 503, "empty");
    web1.cli("check", &[]).expect_code(1);
    web1.cli("pin", &[]).expect_code(1);
    origin.commit_live();
    assert_eq!(ready(&address), 200);
    web1.cli("check", &[]).expect_success();
    let generation = http::get(&address, "/generation").expect("an answer");
    assert!(String::from_utf8_lossy(&generation.body).contains("\"number\":1"));

    web1.cli("drain", &[]).expect_success();
    assert_eq!(ready(&address), 503);
    web1.kill9();
    web1.start();
    wait::until("the page", || (ready(&address) == 503).then_some(()));
    web1.cli("undrain", &[]).expect_success();
    assert_eq!(ready(&address), 200);

    write(&tree, "index.html", "two");
    origin.wait_connected(&["web1"]);
    origin.commit_live();
    let outcome = web1.cli("pin", &["9"]).expect_code(1);
    assert!(outcome.stderr.contains("it has 1, 2"), "{outcome:#?}");
    origin.kill9();
    web1.cli("pin", &["1"]).expect_success();
    web1.wait_back(1);
    assert_eq!(ready(&address), 200, "pinned");
    origin.start();
    origin.wait_connected(&["web1"]);
    write(&tree, "index.html", "three");
    let third = origin.commit();
    web1.stop();
    // Without an agent the order is kept for its next start.
    web1.cli("drain", &[]).expect_success();
    web1.start();
    origin.wait_connected(&["web1"]);
    assert_eq!((web1.live_generation(), ready(&address)), (Some(1), 503));
    web1.cli("unpin", &[]).expect_success();
    web1.wait_live(third);
}

fn ready(address: &str) -> u16 {
    http::get(address, "/readyz").map_or(0, |answer| answer.status)
}

/// A free port.
fn http_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").port()
}
