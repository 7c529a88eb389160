//! A fleet of agents that follow the protocol, run by `syncd-load`: everything works, within generous bounds.

use std::process::Command;
use std::time::Duration;

use syncd_tests::process::run_within;
use syncd_tests::{Scene, binary};

const AGENTS: &str = "100";

#[test]
fn a_hundred_agents_connect_follow_and_come_back() {
    let scene = Scene::new("fleet");
    let json = scene.path("figures.json");
    let mut command = Command::new(binary("syncd-load"));
    command.args(["--agents", AGENTS, "--updates", "3", "--medium-mib", "2", "--idle-s", "2", "--json"]);
    command.arg(&json).env("SYNCD_TESTS_BUILT", "1");
    // It fails if an agent does not arrive, and exits with 1 if a target is missed.
    let outcome = run_within(&mut command, Duration::from_secs(600)).expect_success();
    println!("{}", outcome.stdout);
    let report = std::fs::read_to_string(&json).expect("read the figures");
    let report: serde_json::Value = serde_json::from_str(&report).expect("figures as JSON");
    let figure = |name: &str| {
        let figures = report["figures"].as_array().expect("figures");
        let found = figures.iter().find(|figure| figure["name"] == name);
        found.and_then(|figure| figure["value"].as_f64()).unwrap_or_else(|| panic!("no {name} in {report}"))
    };
    assert_eq!(figure("small updates: share sent inside the announcement"), 100.0);
    assert!(figure("medium update: bytes to all agents") >= 200.0);
    // A storm from one address is served by turns, and no agent is refused.
    let storms = report["notes"].as_array().expect("notes").iter().filter_map(|note| note.as_str());
    let refused: Vec<&str> = storms.filter(|note| note.starts_with("connect storm")).collect();
    assert!(refused.is_empty(), "{refused:?}");
}

#[test]
fn agents_behind_a_cache_take_an_update_of_which_the_origin_sends_nothing() {
    let mut command = Command::new(binary("syncd-load"));
    command.args(["--agents", "25", "--cached", "2"]).env("SYNCD_TESTS_BUILT", "1");
    let outcome = run_within(&mut command, Duration::from_secs(600)).expect_success();
    println!("{}", outcome.stdout);
}
