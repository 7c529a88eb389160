//! The pictures of docs/guide/page.md: `SYNCD_PICTURES=update ./tests/run page -- pictures` takes them anew.
//! Look at them before you commit them.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use syncd_tests::edits::write;
use syncd_tests::{Agent, Daemon, FleetMember, Origin, Scene, Seeded, binary, wait};

use crate::address_of;
use crate::browser::visit;
use crate::site::Site;

/// Whether pictures are wanted: they are for people, and change with every run.
fn wants_pictures() -> bool {
    std::env::var("SYNCD_PICTURES").as_deref() == Ok("update")
}

/// Takes a picture for the guide of an origin in `directory`, with the paths of an installation. A page with
/// a text to wait for is live.
fn picture(name: &str, address: &str, path: &str, directory: &Path, mut options: Value) {
    const PICTURE_MAX_BYTES: u64 = 200_000;
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/guide").join(name);
    let data = format!(" --data {}", directory.join("origin").display());
    let tree = directory.join("tree").display().to_string();
    options["live"] = options["wait"].is_string().into();
    options["shot"] = file.display().to_string().into();
    options["replace"] = json!([[data, ""], [tree, "/srv/site"], ["load-", "web"]]);
    visit(address, path, options);
    let bytes = std::fs::metadata(&file).expect("the picture").len();
    println!("{}: {bytes} bytes", file.display());
    assert!(bytes < PICTURE_MAX_BYTES, "{name}: {bytes} bytes");
}

#[test]
fn pictures_of_a_fleet() {
    if !wants_pictures() {
        return;
    }
    const NODES: usize = 16;
    let mut site = Site::new("page-pictures", 5);
    site.add_nodes(NODES);
    for _ in 0..8 {
        site.release(&["--now", "--wait=4m"]);
    }
    let directory = site.scene.directory().to_path_buf();
    let at = |agent: usize, path: &str| site.agents[agent].live().join("media/uploads").join(path);
    for number in 0..40 {
        let mut random = Seeded::new(number);
        let length = 20_000 + random.below(100_000) as usize;
        write(&at(0, "2026/11"), &format!("photo-{number}.jpg"), random.bytes(length));
    }
    let conflicting =
        ["2026/11/photo-7.jpg", "2026/11/photo-12.jpg", "2026/11/\u{202e}gpj.exe", "2026/11/image.jpg"];
    for path in conflicting {
        std::fs::write(at(0, path), "before").expect("an upload");
        wait::until("the upload", || std::fs::read(at(1, path)).is_ok_and(|c| c == b"before").then_some(()));
    }
    write(&at(2, ""), "backdoor.php", "<?php");
    site.origin.daemon().signal(Signal::STOP);
    for (number, path) in conflicting.iter().enumerate() {
        for node in [number, number + 3] {
            std::fs::write(at(node, path), Seeded::new(node as u64).bytes(50_000 + number * 9_999))
                .expect("a change");
        }
    }
    site.origin.daemon().signal(Signal::CONT);
    wait::until("all conflicts", || {
        let listed = site.origin.cli("collected", &["conflicts", "--json"]).expect_success().stdout;
        (listed.lines().count() >= conflicting.len()).then_some(())
    });
    let address = address_of(&site.origin);
    let take = |name: &str, path: &str, options: Value| picture(name, &address, path, &directory, options);
    take("page-conflicts.png", "/collected/uploads", json!({"height": 640, "wait": "Conflicts"}));

    site.origin.cli("pin", &["web05"]).expect_success();
    site.origin.cli("drain", &["web07"]).expect_success();
    Agent::joined(&site.scene, &site.origin, "web17");
    site.release(&["--now"]);
    site.agents[NODES - 1].kill9();
    let all = "14 of 17 nodes live";
    take("page-fleet.png", "/", json!({"height": 1140, "wait": all}));
    take("page-history.png", "/history", json!({"height": 700}));
    let newest = site.origin.status().generation.expect("a generation");
    let style = format!("/generation/{newest}/file/css/site.css");
    take("page-difference.png", &style, json!({"height": 620}));
    site.hold_rollout();
    let all = "Step 1: group canary";
    take("page-rollout.png", "/", json!({"height": 900, "wait": all}));
    take("page-dark.png", "/", json!({"height": 900, "wait": all, "dark": true}));
    take("page-phone.png", "/", json!({"width": 390, "height": 844, "wait": all}));
}

/// A program and those that it started. Dropping this kills all.
struct Group(Daemon);

impl Drop for Group {
    fn drop(&mut self) {
        let group = rustix::process::Pid::from_raw(self.0.pid() as i32).expect("a process");
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
}

/// The picture of a large fleet, whose nodes are simulated.
#[test]
fn pictures_of_five_hundred_nodes() {
    const SIMULATED: usize = 495;
    const UPDATES: u64 = 14;
    if !wants_pictures() {
        return;
    }
    let scene = Scene::new("page-many");
    let mut load = Command::new(binary("syncd-load"));
    let numbers = [SIMULATED.to_string(), UPDATES.to_string()];
    load.args(["--agents", &numbers[0], "--updates", &numbers[1], "--medium-mib", "0", "--idle-s", "3600"]);
    load.env("TMPDIR", scene.directory()).process_group(0);
    let _load = Group(Daemon::start(&mut load, scene.directory(), "load"));
    let directory = wait::until("the directory of the load", || {
        let entries = std::fs::read_dir(scene.directory()).expect("the scene").flatten();
        entries.map(|entry| entry.path()).find(|path| path.join("origin/admin.sock").exists())
    });
    let inside = directory.strip_prefix(scene.directory()).expect("below").display().to_string();
    let origin = Origin::existing(&scene, &format!("{inside}/origin"), &directory.join("tree"));
    let is_live = |generation: u64, nodes: usize| {
        // All first syncs of a debug build take minutes.
        wait::within(Duration::from_secs(1_200), "the fleet", || {
            let status = origin.try_status()?;
            let has_it = |agent: &&FleetMember| agent.connected && agent.generation == Some(generation);
            (status.agents.iter().filter(has_it).count() == nodes).then_some(status)
        })
    };
    // The first generation, the small updates and one that fits its announcement.
    let status = is_live(UPDATES + 2, SIMULATED);
    for node in ["load-77", "load-303"] {
        origin.cli("pin", &[node]).expect_success();
    }
    origin.cli("drain", &["load-12"]).expect_success();
    let address = status.grpc_address.expect("an address");
    for node in ["web496", "web497", "web498", "web499", "web500"] {
        Agent::new(&scene, node).join(&address, &origin.token()).expect_success();
    }
    write(&origin.tree, "index.html", "a sale");
    origin.cli("commit", &["--now", "-m", "Winter sale"]).expect_success();
    is_live(UPDATES + 3, SIMULATED - 2);
    let options = json!({"height": 1000, "wait": "493 of 500 nodes live"});
    picture("page-500-nodes.png", &status.http_address.expect("an address"), "/", &directory, options);
}
