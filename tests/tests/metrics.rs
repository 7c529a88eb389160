//! `/metrics` of both programs: read by Prometheus' own tool, every name documented, and the shipped alert
//! rules and dashboard name nothing that does not exist.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use regex::Regex;
use syncd_tests::edits::write;
use syncd_tests::{Agent, Daemon, Origin, Scene, free_port, http, require_program, wait};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository").to_path_buf()
}

#[track_caller]
fn read(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("read {path}: {error}"))
}

#[track_caller]
fn metrics(address: &str) -> String {
    let answer = http::get(address, "/metrics").expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.head);
    String::from_utf8(answer.body).expect("text")
}

/// Names of metrics, as samples have them, without what a histogram adds.
fn names(text: &str) -> BTreeSet<String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    types.map(str::to_owned).collect()
}

fn named_in(text: &str) -> BTreeSet<String> {
    let name = Regex::new(r"\bsyncd_(?:origin|agent)_[a-z_]+").expect("a pattern");
    let ends = Regex::new(r"_seconds_(?:bucket|sum|count)$").expect("a pattern");
    name.find_iter(text).map(|name| ends.replace(name.as_str(), "_seconds").into_owned()).collect()
}

#[track_caller]
fn promtool(arguments: &[&str], directory: &Path, input: &str) {
    let mut command = Command::new(require_program("promtool", "prometheus"));
    command.args(arguments).current_dir(directory);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start promtool");
    child.stdin.take().expect("its input").write_all(input.as_bytes()).expect("write to promtool");
    let output = child.wait_with_output().expect("promtool");
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told);
    assert!(output.status.success(), "promtool {arguments:?}: {told}");
}

#[track_caller]
fn page_of(agent: &mut Agent) -> String {
    wait::until("the agent to name its page", || {
        let log = agent.daemon().log();
        let rest = log.split_once("http://")?.1;
        rest.split_once("/healthz").map(|(address, _)| address.to_owned())
    })
}

#[test]
fn promtool_reads_both_programs_and_every_name_is_documented() {
    let scene = Scene::new("metrics");
    let tree = scene.path("tree");
    write(&tree, "index.html", "one");
    let bucket = scene.path("bucket");
    std::fs::create_dir(&bucket).expect("a directory");
    let url = format!("file://{}", bucket.display());
    let config = scene.path("origin.toml");
    let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let table = format!("[collect.uploads]\npath = 'uploads'\nowner = '{}:{}'\n", owner.0, owner.1);
    std::fs::write(&config, table).expect("write the configuration");
    let config = config.display().to_string();
    let mut origin = Origin::create(&scene, &tree).with_options(&["--config", &config, "--publish", &url]);
    origin.start();
    origin.cli("commit", &["-m", "first"]).expect_success();
    let mut agent = Agent::new(&scene, "web1").with_options(&["--on-activate", "true"]);
    agent.join(origin.address(), &origin.token()).expect_success();
    agent.start();
    let page = origin.status().http_address.expect("an address");
    let live = "syncd_origin_agent_state{agent=\"web1\",state=\"live\"} 1\n";
    wait::until("web1 to be live", || metrics(&page).contains(live).then_some(()));
    let ours = metrics(&page);
    assert!(ours.contains("syncd_origin_generation 1\n"), "{ours}");
    assert!(ours.contains("syncd_origin_agent_lag_generations{agent=\"web1\"} 0\n"), "{ours}");
    assert!(ours.contains("syncd_origin_announce_to_live_seconds_count 1\n"), "{ours}");
    for (action, count) in [("commit", 1), ("join", 1), ("token", 1), ("rollback", 0)] {
        let line = format!("syncd_origin_audit_total{{action=\"{action}\"}} {count}\n");
        assert!(ours.contains(&line), "{line} in {ours}");
    }
    let address = page_of(&mut agent);
    let theirs = wait::until("the agent to count the hook", || {
        let text = metrics(&address);
        // Collected directories have a connection of their own.
        let both = ["syncd_agent_hook_seconds_count 1\n", "syncd_agent_collected_connected"];
        both.iter().all(|part| text.contains(part)).then_some(text)
    });
    assert!(theirs.contains("syncd_agent_live 1\n"), "{theirs}");
    assert!(theirs.contains("syncd_agent_sync_seconds_count 1\n"), "{theirs}");
    assert!(theirs.contains("syncd_agent_healed_total 0\n"), "{theirs}");
    write(&agent.root.join("live"), "index.html", "defaced");
    agent.cli("verify", &[]).expect_success();
    wait::until("the agent to count what it healed", || {
        let text = metrics(&address);
        let healed = text.lines().find_map(|line| line.strip_prefix("syncd_agent_healed_total "))?;
        (healed != "0").then_some(())
    });
    let keys = origin.cli("key", &["show", "--json"]).expect_success().json();
    let trust = keys["root_key"].as_str().expect("a fingerprint");
    let mut follower = Agent::new(&scene, "web2").with_options(&["--follow", &url, "--trust", trust]);
    follower.start();
    let address = page_of(&mut follower);
    let followed = wait::until("the follower to see a release", || {
        let text = metrics(&address);
        text.contains("syncd_agent_head_seconds ").then_some(text)
    });
    for text in [&ours, &theirs, &followed] {
        promtool(&["check", "metrics"], scene.directory(), text);
    }
    let exist: BTreeSet<_> = [&ours, &theirs, &followed].into_iter().flat_map(|text| names(text)).collect();
    let documented = named_in(&read("docs/guide/monitoring.md"));
    assert_eq!(documented, exist, "docs/guide/monitoring.md and the programs");
    for file in ["packaging/prometheus/syncd.rules.yml", "packaging/grafana/syncd.json"] {
        let unknown: Vec<_> = named_in(&read(file)).difference(&exist).cloned().collect();
        assert!(unknown.is_empty(), "{file} has metrics that do not exist: {unknown:?}");
    }
}

#[test]
fn prometheus_scrapes_both_programs_as_open_metrics() {
    let scene = Scene::new("scraped");
    let tree = scene.path("tree");
    write(&tree, "index.html", "one");
    let origin = Origin::started(&scene, &tree);
    let first = origin.commit();
    let mut agent = Agent::joined(&scene, &origin, "web1");
    agent.start();
    agent.wait_live(first);
    let pages = [origin.status().http_address.expect("an address"), page_of(&mut agent)];
    for page in &pages {
        let request = format!(
            "GET /metrics HTTP/1.1\r\nHost: {page}\r\nAccept: application/openmetrics-text\r\nConnection: close\r\n\r\n"
        );
        let mut stream = std::net::TcpStream::connect(page).expect("connect");
        stream.write_all(request.as_bytes()).expect("ask");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.contains("application/openmetrics-text; version=1.0.0"), "{answer}");
        assert!(answer.trim_end().ends_with("# EOF"), "{answer}");
    }
    let address = format!("127.0.0.1:{}", free_port());
    let config = format!(
        "global: {{ scrape_interval: 1s }}\nscrape_configs:\n- job_name: syncd\n  static_configs:\n  - targets: {pages:?}\n"
    );
    std::fs::write(scene.path("prometheus.yml"), config).expect("write the configuration");
    let mut command = Command::new(require_program("prometheus", "prometheus"));
    command.current_dir(scene.directory()).args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"]);
    let mut prometheus = Daemon::start(
        command.arg(format!("--web.listen-address={address}")),
        scene.directory(),
        "prometheus",
    );
    let ask = |query: &str| {
        let answer = http::get(&address, &format!("/api/v1/query?query={query}")).ok()?;
        let answer: serde_json::Value = serde_json::from_slice(&answer.body).ok()?;
        answer["data"]["result"].as_array().cloned().filter(|found| !found.is_empty())
    };
    let up = wait::until("Prometheus to scrape both", || {
        ask("up").filter(|up| up.len() == 2 && up.iter().all(|target| target["value"][1] == "1"))
    });
    assert_eq!(up.len(), 2);
    for name in ["syncd_origin_generation", "syncd_agent_live"] {
        let found = ask(name).unwrap_or_else(|| panic!("{name} was scraped"));
        assert_eq!(found[0]["value"][1], first.to_string(), "{found:?}");
    }
    prometheus.stop();
}

#[test]
fn the_alert_rules_fire_when_they_should() {
    let rules = repository().join("packaging/prometheus");
    promtool(&["check", "rules", "syncd.rules.yml"], &rules, "");
    promtool(&["test", "rules", "syncd.rules.test.yml"], &rules, "");
}

#[test]
fn the_dashboard_is_what_grafana_imports() {
    let dashboard: serde_json::Value =
        serde_json::from_str(&read("packaging/grafana/syncd.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    assert!(panels.iter().all(|panel| panel["targets"][0]["expr"].is_string()), "{dashboard:#}");
    let ids: BTreeSet<_> = panels.iter().filter_map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len(), "an id each");
}
