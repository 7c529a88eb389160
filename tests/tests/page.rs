//! The page of the origin: who is answered, what an answer allows, and what a browser makes of it.

#[path = "page/browser.rs"]
mod browser;
#[path = "page/pictures.rs"]
mod pictures;
#[path = "page/site.rs"]
mod site;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use syncd_tests::edits::write;
use syncd_tests::process::run_within;
use syncd_tests::{Agent, Daemon, Origin, Scene, binary, http, wait};

use browser::{Browser, PAGE_MAX_BYTES, visit};
use site::Site;

/// Markup as a label and a file name.
const HOSTILE: &str = "<img src=x onerror=alert(1)><script>alert(2)</script>";

fn scene(name: &str) -> (Scene, Origin) {
    let scene = Scene::new(name);
    let tree = scene.new_directory("tree");
    std::fs::write(tree.join("index.html"), "hello").expect("write a page");
    let origin = Origin::started(&scene, &tree);
    (scene, origin)
}

fn address_of(origin: &Origin) -> String {
    origin.status().http_address.expect("an address")
}

/// Sends a request with these headers and returns the beginning of the answer.
fn answer(address: &str, path: &str, headers: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("set a time limit");
    write!(stream, "GET {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n").expect("send a request");
    let mut answer = Vec::new();
    let _ = stream.take(64 * 1024).read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn only_this_machine_is_answered_and_nothing_may_be_embedded() {
    let (_scene, origin) = scene("page-names");
    let address = address_of(&origin);
    for (headers, status) in [
        ("Host: 127.0.0.1:8874\r\n", "200"),
        ("Host: localhost\r\n", "200"),
        ("Host: evil.example\r\n", "421"),
        ("Host: localhost.evil.example:8874\r\n", "421"),
        ("Host: localhost\r\nX-Forwarded-For: 192.0.2.1\r\n", "403"),
    ] {
        for path in ["/", "/live/fleet", "/nodes/1", "/node/web1"] {
            if status == "200" && path != "/" {
                continue;
            }
            let answer = answer(&address, path, headers);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path} {headers}: {answer}");
        }
    }
    let page = http::get(&address, "/").expect("the page");
    for (name, value) in [
        ("content-security-policy", "frame-ancestors 'none'"),
        ("content-security-policy", "default-src 'none'"),
        ("x-frame-options", "DENY"),
        ("x-content-type-options", "nosniff"),
        ("cross-origin-resource-policy", "same-origin"),
        ("cache-control", "no-store"),
    ] {
        let header = page.header(name).unwrap_or_default();
        assert!(header.contains(value), "{name}: {header}");
    }
    let html = String::from_utf8(page.body).expect("text");
    assert!(!html.contains("http://") && !html.contains("https://"), "asks elsewhere: {html}");
    assert!(!html.contains(" style=") && !html.contains(" onclick="), "{html}");
    // Health is asked by balancers, under any name.
    assert!(answer(&address, "/healthz", "Host: origin.example\r\n").contains(" 503 "));
}

#[test]
fn elsewhere_than_on_loopback_there_is_no_page() {
    let scene = Scene::new("page-elsewhere");
    let tree = scene.new_directory("tree");
    let origin = Origin::create(&scene, &tree);
    let tree = tree.to_str().expect("text");
    let options = ["--tree", tree, "--listen", "127.0.0.1:0", "--http", "0.0.0.0:0"];
    let mut serve = origin.command("serve", &options);
    let _daemon = Daemon::start(&mut serve, scene.directory(), "elsewhere");
    let address = wait::until("the address", || {
        let bound = origin.try_status()?.http_address?;
        Some(bound.replace("0.0.0.0", "127.0.0.1"))
    });
    assert!(answer(&address, "/healthz", "Host: localhost\r\n").starts_with("HTTP/1.1 "));
    for path in ["/", "/live/fleet"] {
        assert!(answer(&address, path, "Host: localhost\r\n").starts_with("HTTP/1.1 404 "), "{path}");
    }
}

/// Sends one request to the admin socket and waits for the end of the answer.
#[track_caller]
fn ask(origin: &Origin, request: &Value) {
    let mut stream = UnixStream::connect(origin.data.join("admin.sock")).expect("connect");
    writeln!(stream, "{request}").expect("ask");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.contains("\"done\""), "{request}: {answer}");
}

#[test]
fn a_browser_shows_every_page_without_running_what_a_name_says() {
    let (scene, origin) = scene("page-browser");
    let address = address_of(&origin);
    std::fs::write(origin.tree.join(format!("{}.txt", HOSTILE.replace('/', "\u{2215}"))), HOSTILE).unwrap();
    std::fs::write(origin.tree.join("secret.txt"), "password\n").unwrap();
    let closed = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(origin.tree.join("secret.txt"), closed).unwrap();
    origin.cli("commit", &["-m", "first"]).expect_success();
    std::fs::write(origin.tree.join("index.html"), "hello\n<b>again</b>\n").unwrap();
    std::fs::write(origin.tree.join("secret.txt"), "other password\n").unwrap();
    origin.cli("commit", &["-m", HOSTILE]).expect_success();
    let mut agent = Agent::started(&scene, &origin, "web1");
    agent.wait_live(2);
    let node = visit(&address, "/node/web1", json!({"axe": true, "live": true, "copy": true}));
    assert_eq!(node["copied"], "Copied", "{node}");
    let fleet = visit(&address, "/", json!({"axe": true, "live": true, "wait": "1 of 1 node live"}));
    assert!(fleet["text"].as_str().is_some_and(|text| text.contains(HOSTILE)), "{fleet}");
    for (path, text) in [
        ("/history", HOSTILE),
        ("/generation/1", "onerror=alert(1)"),
        ("/generation/1/file/index.html", "not there"),
        ("/generation/2", "index.html"),
        ("/generation/2/file/index.html", "<b>again</b>"),
        ("/generation/2/file/secret.txt", "not every user"),
    ] {
        let shown = visit(&address, path, json!({"axe": true}));
        let shown = shown["text"].as_str().expect("text");
        assert!(shown.contains(text) && !shown.contains("password"), "{path}: {shown}");
    }
    for (path, dark, width) in
        [("/", true, 1280), ("/", false, 360), ("/generation/2", true, 360), ("/", true, 2560)]
    {
        visit(&address, path, json!({"axe": true, "dark": dark, "width": width}));
    }
    agent.stop();
}

/// An origin with a collected directory, and two nodes that are linked to it.
fn scene_with_uploads(name: &str) -> (Scene, Origin, [Agent; 2]) {
    let scene = Scene::new(name);
    let tree = scene.new_directory("tree");
    write(&tree, "index.html", "hello");
    let (config, owner) =
        (scene.path("origin.toml"), (rustix::process::geteuid(), rustix::process::getegid()));
    let owner = format!("{}:{}", owner.0.as_raw(), owner.1.as_raw());
    let table = format!("[collect.uploads]\npath = 'uploads'\nowner = '{owner}'\n");
    std::fs::write(&config, table).expect("write the configuration");
    let config = config.display().to_string();
    let mut origin =
        Origin::create(&scene, &tree).with_options(&["--trigger", "manual", "--config", &config]);
    origin.start();
    origin.commit();
    let agents = ["web1", "web2"].map(|node| Agent::started(&scene, &origin, node));
    for agent in &agents {
        wait::until("the link", || agent.live().join("uploads").is_dir().then_some(()));
    }
    (scene, origin, agents)
}

#[test]
fn a_conflict_appears_on_an_open_page_with_the_command_that_settles_it() {
    let (_scene, mut origin, agents) = scene_with_uploads("page-collected");
    let address = address_of(&origin);
    // Harmless in a shell, in HTML and on a terminal only if it is escaped in each.
    let name = format!("{}\u{202e}\x1b[2J'.jpg", HOSTILE.replace('/', "\u{2215}"));
    let at = [0, 1].map(|node: usize| agents[node].live().join("uploads").join(&name));
    std::fs::write(&at[0], "before").expect("an upload");
    let has = |node: usize, text: &str| {
        wait::until("the upload", || {
            std::fs::read(&at[node]).is_ok_and(|content| content == text.as_bytes()).then_some(())
        })
    };
    has(1, "before");
    write(&agents[0].live().join("uploads"), "shell.php", "<?php echo 6 * 7;");
    let directory = "/collected/uploads";
    let none = visit(&address, directory, json!({"axe": true, "live": true, "wait": "1 file"}));
    assert!(none["text"].as_str().is_some_and(|text| text.contains("No content lost")), "{none}");
    let mut browser = Browser::start("follow", &format!("{address}{directory}"), "onerror=alert(1)");
    assert_eq!(browser.step()["step"], "open");
    // It answers nobody, as behind a broken line.
    origin.daemon().signal(Signal::STOP);
    for (path, text) in at.iter().zip(["of web1", "of web2"]) {
        std::fs::write(path, text).expect("a change");
    }
    origin.daemon().signal(Signal::CONT);
    let seen = browser.step();
    assert_eq!((&seen["step"], &seen["once"], &seen["errors"]), (&json!("seen"), &json!(true), &json!([])));

    let listed = origin.cli("collected", &["conflicts", "--json"]).expect_success().json();
    let loser = listed["node"].as_str().expect("a node");
    for (dark, width) in [(false, 1280), (true, 360)] {
        let options = json!({"axe": true, "live": true, "dark": dark, "width": width});
        let shown = visit(&address, directory, options);
        let text = shown["text"].as_str().expect("text");
        let escaped = name.replace('\u{202e}', "\\u{202e}").replace('\x1b', "\\u{1b}");
        for part in [&escaped, loser, "7 B", "Refused\n1 file"] {
            assert!(text.contains(part), "{part}: {shown}");
        }
    }
    // As a person runs what the button copies.
    let shown = visit(&address, directory, json!({}));
    let commands = shown["commands"].as_array().expect("commands");
    let restore = commands.iter().filter_map(Value::as_str).find(|line| line.contains(" restore "));
    run_copied(restore.expect("a command"));
    has(0, &format!("of {loser}"));
    has(1, &format!("of {loser}"));
    let fleet = visit(&address, "/", json!({"axe": true, "live": true, "wait": "Collected directories"}));
    assert!(fleet["text"].as_str().is_some_and(|text| text.contains("uploads")), "{fleet}");
}

#[test]
fn three_clicks_lead_to_a_difference_and_four_keys_to_the_history() {
    let (_scene, origin) = scene("page-walk");
    let address = address_of(&origin);
    for (label, content) in [("first", "hello\n"), ("second", "good morning\n")] {
        write(&origin.tree, "index.html", content);
        origin.cli("commit", &["-m", label]).expect_success();
    }
    let walked = Browser::start("walk", &address, "").step();
    assert_eq!(walked["errors"], json!([]), "{walked}");
    let clicks =
        json!(["/history History", "/generation/2 Generation 2", "/generation/2/file/index.html index.html"]);
    assert_eq!(walked["clicks"], clicks);
    assert_eq!(walked["difference"], json!(["removed: − hello", "added: + good morning"]));
    let data = origin.data.display();
    let command = json!(format!("syncd-origin diff 1 2 --data {data}"));
    assert_eq!((&walked["shown"], &walked["copied"]), (&command, &command));
    let keys = walked["keys"].as_array().expect("keys");
    let names: Vec<&str> = keys.iter().filter_map(|key| key["name"].as_str()).collect();
    assert_eq!(names, ["Skip to content", "syncd", "Fleet", "History"]);
    assert!(keys.iter().all(|key| key["outline"] == "solid"), "each is seen: {walked}");
    assert_eq!(walked["opened_by_keys"], "/history History");
    assert_eq!(walked["skipped_to"]["name"], "content");
    assert!(walked["next"]["name"].as_str().is_some_and(|name| name.starts_with("Copy")), "{walked}");
}

#[test]
fn strangers_can_neither_frame_the_page_nor_lend_it_their_name() {
    let (_scene, origin) = scene("page-strangers");
    origin.cli("commit", &["-m", "a label to steal"]).expect_success();
    let address = address_of(&origin);
    let framed = Browser::start("frame", &address, "").step();
    assert_eq!(framed["frames"].as_array().map(Vec::len), Some(1), "{framed}");
    assert!(!framed["frames"].to_string().contains("steal"), "{framed}");
    assert!(framed["errors"].to_string().contains("frame-ancestors"), "{framed}");
    let rebound = Browser::start("rebind", &address, "").step();
    assert_eq!(rebound["status"], 421, "{rebound}");
    assert!(!rebound["text"].to_string().contains("steal"), "{rebound}");
}

#[test]
fn an_open_page_follows_the_fleet_and_outlives_the_origin() {
    let (_scene, mut origin) = scene("page-follows");
    origin.cli("commit", &["-m", "first"]).expect_success();
    origin.keep_http_address();
    let address = address_of(&origin);
    let mut browser = Browser::start("follow", &address, "released meanwhile");
    assert_eq!(browser.step()["step"], "open");
    origin.kill9();
    origin.start();
    std::fs::write(origin.tree.join("index.html"), "other").unwrap();
    origin.cli("commit", &["-m", "released meanwhile"]).expect_success();
    let seen = browser.step();
    assert_eq!((&seen["step"], &seen["once"]), (&json!("seen"), &json!(true)), "{seen}");
}

#[test]
fn charts_tell_of_generations_before_a_restart() {
    let (scene, mut origin) = scene("page-charts");
    let mut agent = Agent::started(&scene, &origin, "web1");
    for content in ["one", "two"] {
        write(&origin.tree, "index.html", content);
        let live = format!("web1  generation {}", origin.commit_live());
        wait::until("the event", || {
            let events = origin.cli("events", &[]).expect_success().stdout;
            events.lines().any(|line| line.ends_with(&live)).then_some(())
        });
    }
    let page = |origin: &Origin| {
        let answer = http::get(&address_of(origin), "/").expect("the page");
        String::from_utf8(answer.body).expect("text")
    };
    let before = page(&origin);
    assert!(!before.contains("by generation, since"), "{before}");
    origin.kill9();
    origin.start();
    let after = page(&origin);
    for number in 1..=2 {
        let bar = after.split_once(&format!("<title>generation {number}: "));
        let told = bar.and_then(|(_, rest)| rest.split_once("</title>")).map(|(told, _)| told);
        assert!(told.is_some_and(|told| told.ends_with(" on one node")), "{told:?}: {after}");
    }
    assert!(
        after.contains("by generation, since <time") && after.contains("no generation since then"),
        "{after}"
    );
    agent.stop();
}

/// An answer inside TLS: status line, headers and body.
fn answer_in_tls(url: &str, cookie: &str) -> String {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--insecure", "--include", "--max-time", "60", "--cookie", cookie, url]);
    run_within(&mut curl, Duration::from_secs(90)).stdout
}

#[test]
fn elsewhere_a_login_link_is_needed_and_good_once() {
    let scene = Scene::new("page-login");
    let tree = scene.new_directory("tree");
    std::fs::write(tree.join("index.html"), "hello").unwrap();
    let options = ["--trigger", "manual", "--page-listen", "127.0.0.1:0"];
    let mut origin = Origin::create(&scene, &tree).with_options(&options);
    origin.start();
    origin.cli("commit", &["-m", "a label to steal"]).expect_success();
    let link = || origin.cli("page", &[]).expect_success();
    let made = link();
    assert!(made.stderr.contains("SHA-256 "), "{}", made.stderr);
    let made = made.only_line().to_owned();
    let (site, _) = made.split_once("/login/").expect("a login link");
    assert!(site.starts_with("https://127.0.0.1:"), "{made}");

    // A planted cookie opens nothing, before the login and after it.
    let planted = "__Host-syncd=0123456789abcdef";
    for path in ["/", "/history", "/generation/1", "/live/fleet", "/generation/1/file/index.html"] {
        for cookie in ["a=b", planted] {
            let answer = answer_in_tls(&format!("{site}{path}"), cookie);
            assert!(answer.starts_with("HTTP/1.1 401"), "{path}: {answer}");
            assert!(!answer.contains("steal") && !answer.to_lowercase().contains("set-cookie"), "{answer}");
        }
    }
    let login = answer_in_tls(&made, planted);
    let cookie = login.lines().find_map(|line| line.strip_prefix("set-cookie: ")).expect("a cookie");
    let (pair, rest) = cookie.split_once(';').expect("attributes");
    assert!(!pair.contains("0123456789abcdef") && pair.len() > 60, "{cookie}");
    for attribute in ["Path=/", "Secure", "HttpOnly", "SameSite=Strict"] {
        assert!(rest.contains(attribute), "{cookie}");
    }
    assert!(answer_in_tls(site, pair).contains("a label to steal"));
    assert!(answer_in_tls(site, planted).starts_with("HTTP/1.1 401"));
    // Neither the link nor a guess is good again, and guesses are limited.
    assert!(answer_in_tls(&made, "a=b").starts_with("HTTP/1.1 401"));
    let guess = || answer_in_tls(&format!("{site}/login/guess"), "a=b");
    assert!((0..30).any(|_| guess().starts_with("HTTP/1.1 429")));
    let another = link().only_line().to_owned();
    assert!(answer_in_tls(&another, "a=b").starts_with("HTTP/1.1 200"));
    assert!(!http::get(site.trim_start_matches("https://"), "/").is_ok_and(|answer| answer.status == 200));

    let seen = Browser::start("login", link().only_line(), "a label to steal").step();
    assert_eq!(seen["errors"], json!([]), "{seen}");
    let kept = json!([{"name": "__Host-syncd", "httpOnly": true, "secure": true, "sameSite": "Strict"}]);
    assert_eq!((&seen["cookies"], &seen["readable"]), (&kept, &json!("")), "{seen}");
    origin.kill9();
    origin.start();
    let new_site = origin.cli("page", &[]).expect_success().only_line().to_owned();
    let (new_site, _) = new_site.split_once("/login/").expect("a login link");
    assert!(answer_in_tls(new_site, pair).starts_with("HTTP/1.1 401"), "a restart ends sessions");
}

#[test]
fn five_hundred_nodes_and_two_thousand_generations_stay_light() {
    const NODES: usize = 500;
    const GENERATIONS: u64 = 2_000;
    let scene = Scene::in_memory("page-large");
    let tree = scene.new_directory("tree");
    std::fs::write(tree.join("index.html"), "one").unwrap();
    let origin = Origin::started(&scene, &tree);
    origin.cli("commit", &[]).expect_success();
    std::fs::write(tree.join("index.html"), "two").unwrap();
    origin.cli("commit", &[]).expect_success();
    for number in 2..GENERATIONS {
        ask(&origin, &json!({"request": "rollback", "generation": 1 + number % 2, "wait": null}));
    }
    let token = origin.cli("token", &["--uses", &NODES.to_string()]).expect_success();
    let token = token.stdout.trim().to_owned();
    std::thread::scope(|threads| {
        for first in 0..4 {
            let (scene, origin, token) = (&scene, &origin, &token);
            threads.spawn(move || {
                for number in (first..NODES).step_by(4) {
                    let agent = Agent::new(scene, &format!("web{number:03}"));
                    agent.join(origin.address(), token).expect_success();
                }
            });
        }
    });
    let address = address_of(&origin);
    visit(&address, "/", json!({"axe": true, "live": true, "wait": "of 500 nodes live"}));
    let nodes = visit(&address, "/nodes/1", json!({"live": true}));
    assert_eq!(nodes["rows"], 200);
    visit(&address, "/history", json!({}));
    // Every part of the history, to its end.
    let (mut part, mut seen, began) = ("/history".to_owned(), 0, Instant::now());
    loop {
        let answer = http::get(&address, &part).expect("a part of the history");
        assert!(answer.body.len() < PAGE_MAX_BYTES as usize, "{part}");
        let html = String::from_utf8(answer.body).expect("text");
        seen += html.matches("<tr><th scope=\"row\">").count() as u64;
        let Some((_, older)) = html.split_once("href=\"/history/before/") else { break };
        part = format!("/history/before/{}", older.split_once('"').expect("an end").0);
    }
    println!("{seen} generations read in {:?}", began.elapsed());
    assert_eq!(seen, GENERATIONS);
}

#[test]
fn a_rollout_is_shown_step_by_step_and_its_commands_steer_it() {
    let mut site = Site::new("page-rollout", 1);
    site.add_nodes(4);
    site.release(&["--now", "--wait"]);
    let number = site.hold_rollout();
    let address = address_of(&site.origin);
    let mut shown = Value::Null;
    for (dark, width) in [(true, 1280), (false, 360)] {
        let options =
            json!({"axe": true, "live": true, "dark": dark, "width": width, "wait": "Step 1: group canary"});
        shown = visit(&address, "/", options);
    }
    let text = shown["text"].as_str().expect("text");
    for part in ["2 of 4 nodes live", &format!("Rollout of generation {number}"), "2 live (web01, web02)"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let mut browser = Browser::start("follow", &address, "4 of 4 nodes live");
    assert_eq!(browser.step()["step"], "open");
    let commands = shown["commands"].as_array().expect("commands");
    let advance = commands.iter().filter_map(Value::as_str).find(|line| line.contains("rollout advance"));
    for expected in [("holding", 2), ("released", 3)] {
        run_copied(advance.expect("a command"));
        wait::until_ok("the next step", || {
            let rollout = site.rollout();
            let is = (rollout["phase"].as_str(), rollout["step"].as_u64());
            if is == (Some(expected.0), Some(expected.1)) { Ok(()) } else { Err(rollout.to_string()) }
        });
    }
    let seen = browser.step();
    assert_eq!((&seen["step"], &seen["once"]), (&json!("seen"), &json!(true)), "{seen}");
}

/// Runs a line as a person pastes it.
#[track_caller]
fn run_copied(line: &str) {
    let programs = binary("syncd-origin");
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", line]).env("PATH", programs.parent().expect("a directory"));
    run_within(&mut shell, Duration::from_secs(60)).expect_success();
}
