//! Snapshots of what people and scripts see: help, output, errors and every `--json`.
//!
//! A snapshot is a transcript. A line of standard error begins with `! `, an exit code other than 0 stands in
//! brackets, and JSON is printed over several lines with its keys sorted. CONTRIBUTING.md says how to update
//! snapshots.

#[path = "contract/transcript.rs"]
mod transcript;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use syncd_tests::edits::{set_time, write};
use syncd_tests::process::run;
use syncd_tests::{Agent, Origin, Scene, binary, wait};
use transcript::Transcript;

/// Compares a transcript with `tests/tests/contract/NAME.snap`.
macro_rules! assert_contract {
    ($name:literal, $transcript:expr) => {
        insta::with_settings!({
            snapshot_path => "contract",
            prepend_module_to_snapshot => false,
            omit_expression => true,
        }, {
            insta::assert_snapshot!($name, $transcript.text());
        })
    };
}

/// Help of a program and of all its commands, as it lists them.
fn help(program: &str) -> Transcript {
    let mut shown = Transcript::default();
    let top = shown.program(program, &["--help"]);
    for command in commands(&top) {
        let help = shown.program(program, &[command, "--help"]);
        for inner in commands(&help) {
            shown.program(program, &[command, inner, "--help"]);
        }
    }
    shown
}

fn commands(help: &str) -> impl Iterator<Item = &str> {
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = listed.take_while(|line| !line.is_empty()).filter_map(|line| {
        let is_name = line.starts_with("  ") && !line.starts_with("   ");
        line.split_whitespace().next().filter(|name| is_name && *name != "help")
    });
    names.collect::<Vec<_>>().into_iter()
}

/// Asserts that the help below `words` has examples, and says the units of every value that has one.
fn assert_explained(program: &str, words: &[&str]) {
    let help = run(Command::new(binary(program)).args(words).arg("--help")).expect_success().stdout;
    let line = words.join(" ");
    let flat = help.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.is_empty() || help.contains("\nExamples:\n"), "no example: {program} {line}\n{help}");
    for (value, units) in [
        ("TIME", &["TIME is a number with a unit, as in", "TIME is a moment, as in"][..]),
        ("SIZE", &["SIZE is bytes", "SIZE and RATE are bytes"]),
        ("RATE", &["RATE is bytes per second", "SIZE and RATE are bytes, and bytes per second"]),
        ("DURATION", &[]),
    ] {
        let is_said = units.iter().any(|unit| flat.contains(unit));
        assert!(
            !flat.contains(&format!("<{value}>")) || is_said,
            "no unit of {value}: {program} {line}\n{help}"
        );
    }
    for command in commands(&help) {
        assert_explained(program, &[words, &[command]].concat());
    }
}

#[test]
fn every_command_has_examples_and_units() {
    for program in ["syncd-origin", "syncd-agent"] {
        assert_explained(program, &[]);
    }
}

#[test]
fn help_of_the_origin() {
    assert_contract!("help_of_the_origin", help("syncd-origin"));
}

#[test]
fn help_of_the_agent() {
    assert_contract!("help_of_the_agent", help("syncd-agent"));
}

#[test]
fn help_of_the_quickstart() {
    assert_contract!("help_of_the_quickstart", help("syncd-quickstart"));
}

#[test]
fn wrong_usage() {
    let mut shown = Transcript::default();
    for line in [
        "syncd-origin nonsense",
        "syncd-origin revoking",
        "syncd-origin serve",
        "syncd-origin serve --tree /srv/site --listen 8873",
        "syncd-origin serve --tree /srv/site --settle soon",
        "syncd-origin serve --tree /srv/site --trigger often",
        "syncd-origin serve --tree /srv/site --keep-bytes much",
        "syncd-origin serve --tree /srv/site --bwlimit fast",
        "syncd-origin serve --tree /srv/site --admin-group no-such-group",
        "syncd-origin token --ttl 500ms",
        "syncd-origin token --uses 0",
        "syncd-origin commit --require-all",
        "syncd-origin commit --wait=soon",
        "syncd-origin group web1",
        "syncd-origin rollback latest",
        "syncd-origin diff --pending 1",
        "syncd-origin status --watch --check",
        "syncd-origin revoke",
        "syncd-origin backup",
        "syncd-agent nonsense",
        "syncd-agent join",
        "syncd-agent join 127.0.0.1:8873 --name web/1",
        "syncd-agent run --root /srv/replica --swap exchanged",
        "syncd-agent run --root /srv/replica --keep 0",
        "syncd-agent run --root /srv/replica --owner no-such-user",
        "syncd-agent run --root /srv/replica --verify-every often",
        "syncd-agent run --http 8874",
        "syncd-quickstart --once /srv/site",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        shown.program(words[0], &words[1..]);
    }
    assert_contract!("wrong_usage", shown);
}

/// Times are part of what is shown: whether a changed file has the second that it had.
const YESTERDAY: u64 = 1_700_000_000;

/// A small site without anything random in it.
fn site(scene: &Scene) -> Origin {
    let tree = scene.path("tree");
    for (path, content) in [
        ("index.html", "<h1>site</h1>\n"),
        ("same-second.html", "<p>one</p>\n"),
        ("about/team.html", "<p>we</p>\n"),
        ("empty", ""),
    ] {
        write(&tree, path, content);
        set_time(&tree.join(path), YESTERDAY, 0);
    }
    std::os::unix::fs::symlink("index.html", tree.join("home")).expect("create a symlink");
    fs::set_permissions(&tree, fs::Permissions::from_mode(0o755)).expect("chmod");
    Origin::existing(scene, "origin", &tree)
}

fn started(scene: &Scene) -> Origin {
    let mut origin = site(scene);
    origin.cli("init", &["--host", "127.0.0.1"]).expect_success();
    origin.start();
    origin
}

/// The agent `web1`, with generation 1 live.
fn following(scene: &Scene, origin: &Origin) -> Agent {
    let agent = Agent::started(scene, origin, "web1");
    origin.wait_connected(&["web1"]);
    origin.commit_live();
    agent.wait_live(1);
    agent
}

/// Waits until both sides report the generation live and history is measured: `status` then stays unchanged.
fn wait_idle(origin: &Origin, agent: &Agent, generation: u64) {
    agent.wait_live(generation);
    wait::until("the agent to be idle", || {
        let status = origin.cli("status", &["--json"]).expect_success().json();
        let member = &status["agents"][0];
        let is_idle = agent.status().state == "live" && member["state"] == "live";
        let is_known = member["generation"] == generation && !status["history_bytes"].is_null();
        (is_idle && is_known).then_some(())
    });
}

#[test]
fn an_origin_without_a_generation() {
    let scene = Scene::new("contract-new");
    let mut origin = site(&scene);
    let mut shown = Transcript::of(&scene);
    for (command, args) in [
        ("status", &[][..]),
        ("token", &[]),
        ("serve", &["--tree", "/nonexistent"]),
        ("init", &["--host", "origin.example"]),
        ("init", &[]),
        ("status", &[]),
        ("status", &["--json"]),
        ("history", &[]),
        ("history", &["--json"]),
        ("diff", &[]),
        ("commit", &[]),
        ("serve", &["--tree", "/nonexistent"]),
    ] {
        shown.origin(&origin, command, args);
    }
    origin.start();
    for (command, args) in [
        ("status", &[][..]),
        ("status", &["--check", "--json"]),
        ("history", &[]),
        ("diff", &[]),
        ("diff", &["1"]),
        ("diff", &["--pending"]),
        ("rollback", &["1"]),
    ] {
        shown.origin(&origin, command, args);
    }
    assert_contract!("an_origin_without_a_generation", shown);
}

#[test]
fn tokens_and_joining() {
    let scene = Scene::new("contract-join");
    let origin = started(&scene);
    let agent = Agent::new(&scene, "web1");
    let mut shown = Transcript::of(&scene);
    shown.origin(&origin, "token", &["list"]);
    let token = shown.origin(&origin, "token", &["--ttl", "1d", "--uses", "2"]);
    shown.hide(token.trim(), "TOKEN");
    for args in [&["list"][..], &["list", "--json"], &["revoke", "nonsense"]] {
        shown.origin(&origin, "token", args);
    }
    shown.agent(&agent, "status", &[]);
    shown.agent(&agent, "status", &["--json"]);
    shown.agent(&agent, "run", &[]);
    shown.agent(&agent, "verify", &[]);
    shown.agent(&agent, "check-php", &[]);
    let join = |shown: &mut Transcript, address: &str, token: &str, name: &str| {
        shown.agent(&agent, "join", &[address, "--token", token, "--name", name]);
    };
    shown.agent(&agent, "join", &[origin.address()]);
    join(&mut shown, origin.address(), "nonsense", "web1");
    join(&mut shown, "127.0.0.1:1", token.trim(), "web1");
    join(&mut shown, origin.address(), token.trim(), "web1");
    join(&mut shown, origin.address(), token.trim(), "web1");
    shown.agent(&agent, "status", &[]);
    shown.agent(&agent, "status", &["--json"]);
    shown.origin(&origin, "status", &[]);
    shown.origin(&origin, "status", &["--json"]);
    shown.origin(&origin, "revoke", &["web"]);
    shown.origin(&origin, "revoke", &["web1"]);
    assert_contract!("tokens_and_joining", shown);
}

#[test]
fn publishing() {
    let scene = Scene::new("contract-publish");
    let origin = started(&scene);
    let mut shown = Transcript::of(&scene);
    shown.origin(&origin, "commit", &["--wait=1s", "-m", "first"]);
    let agent = following(&scene, &origin);
    shown.origin(&origin, "commit", &["-m", "unused"]);
    shown.origin(&origin, "commit", &["--wait", "--json"]);
    change(&origin.tree);
    shown.origin(&origin, "commit", &["--wait", "-m", "second"]);
    wait_idle(&origin, &agent, 2);
    shown.origin(&origin, "rollback", &["7"]);
    shown.origin(&origin, "rollback", &["2"]);
    shown.origin(&origin, "rollback", &["1", "--wait", "--json"]);
    wait_idle(&origin, &agent, 3);
    shown.origin(&origin, "history", &[]);
    shown.origin(&origin, "history", &["--json"]);
    shown.origin(&origin, "status", &["--check"]);
    assert_contract!("publishing", shown);
}

/// One of each change that `diff` knows.
fn change(tree: &Path) {
    write(tree, "index.html", "<h1>another site</h1>\n");
    write(tree, "same-second.html", "<p>two</p>\n");
    set_time(&tree.join("same-second.html"), YESTERDAY, 0);
    write(tree, "news/today.html", "<p>new</p>\n");
    fs::remove_file(tree.join("empty")).expect("remove");
    fs::rename(tree.join("about/team.html"), tree.join("about/people.html")).expect("rename");
    fs::set_permissions(tree.join("about"), fs::Permissions::from_mode(0o700)).expect("chmod");
}

#[test]
fn differences() {
    let scene = Scene::new("contract-diff");
    let origin = started(&scene);
    origin.commit();
    change(&origin.tree);
    let mut shown = Transcript::of(&scene);
    shown.origin(&origin, "diff", &["--pending"]);
    origin.commit();
    for args in [
        &[][..],
        &["--json"],
        &["--stat"],
        &["--stat", "--json"],
        &["2", "1"],
        &["2", "2"],
        &["--pending"],
        &["1", "7"],
    ] {
        shown.origin(&origin, "diff", args);
    }
    assert_contract!("differences", shown);
}

#[test]
fn status_of_a_fleet() {
    let scene = Scene::new("contract-status");
    let mut origin = started(&scene);
    let mut agent = following(&scene, &origin);
    wait_idle(&origin, &agent, 1);
    wait::until("both spares", || (agent.status().spares == 2).then_some(()));
    let mut shown = Transcript::of(&scene);
    shown.origin(&origin, "status", &["--check"]);
    shown.origin(&origin, "status", &["--json"]);
    shown.agent(&agent, "status", &["--check"]);
    shown.agent(&agent, "status", &["--json"]);
    agent.stop();
    wait::until("web1 to be unreachable", || (!origin.status().agent("web1").connected).then_some(()));
    shown.origin(&origin, "status", &["--check"]);
    shown.agent(&agent, "status", &["--check"]);
    origin.stop();
    shown.origin(&origin, "status", &[]);
    shown.origin(&origin, "status", &["--json"]);
    shown.origin(&origin, "commit", &[]);
    assert_contract!("status_of_a_fleet", shown);
}

#[test]
fn integrity() {
    let scene = Scene::new("contract-integrity");
    let mut origin = started(&scene);
    let agent = following(&scene, &origin);
    wait_idle(&origin, &agent, 1);
    let mut shown = Transcript::of(&scene);
    shown.origin(&origin, "check", &[]);
    let copy = scene.path("copy");
    shown.origin(&origin, "backup", &[copy.to_str().expect("a path of text")]);
    shown.origin(&origin, "backup", &[copy.to_str().expect("a path of text")]);
    shown.origin(&origin, "backup", &[origin.tree.join("copy").to_str().expect("a path of text")]);
    shown.agent(&agent, "verify", &[]);
    shown.agent(&agent, "verify", &["--json"]);
    write(&agent.live(), "visitor.txt", "not published");
    fs::write(agent.live().join("index.html"), "<h1>back door</h1>").expect("change a file");
    shown.agent(&agent, "verify", &["--json"]);
    shown.agent(&agent, "verify", &[]);
    fs::remove_file(origin.tree.join("index.html")).expect("remove");
    fs::remove_dir_all(&origin.tree).expect("remove the tree");
    shown.origin(&origin, "commit", &[]);
    origin.stop();
    assert_contract!("integrity", shown);
}
