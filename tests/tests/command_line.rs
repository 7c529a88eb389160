//! The contract of the command line: exit codes, JSON shapes, output streams, precedence of configuration,
//! and the admin socket.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Seek};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use syncd_tests::edits::{small_site, write};
use syncd_tests::oracle::assert_same;
use syncd_tests::process::{run, run_within, tool};
use syncd_tests::{Agent, Origin, Outcome, Scene, binary, http, require_root, wait};

fn site(name: &str) -> (Scene, Origin) {
    let scene = Scene::new(name);
    let tree = scene.path("tree");
    small_site(&tree, 40);
    let origin = Origin::started(&scene, &tree);
    (scene, origin)
}

fn program(name: &str, args: &[&str]) -> Outcome {
    run_within(Command::new(binary(name)).args(args), Duration::from_secs(20))
}

#[test]
fn help_and_version_go_to_standard_output() {
    for name in ["syncd-origin", "syncd-agent"] {
        for args in [&["--help"][..], &["--version"]] {
            let outcome = program(name, args).expect_success();
            assert!(outcome.stdout.contains("syncd") && outcome.stderr.is_empty(), "{outcome:#?}");
        }
    }
    let help = program("syncd-origin", &["--help"]).stdout;
    for word in
        ["init", "serve", "token", "commit", "status", "history", "diff", "rollback", "revoke", "check"]
    {
        assert!(help.contains(word), "{word} in\n{help}");
    }
    let help = program("syncd-agent", &["--help"]).stdout;
    for word in ["join", "run", "status", "verify"] {
        assert!(help.contains(word), "{word} in\n{help}");
    }
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for (name, args) in [
        ("syncd-origin", &["nonsense"][..]),
        ("syncd-origin", &[]),
        ("syncd-origin", &["commit", "--nonsense"]),
        ("syncd-origin", &["serve", "--tree", "/tmp", "--listen", "nonsense"]),
        ("syncd-origin", &["serve", "--tree", "/tmp", "--settle", "nonsense"]),
        ("syncd-origin", &["serve", "--tree", "/tmp", "--trigger", "nonsense"]),
        ("syncd-origin", &["rollback", "nonsense"]),
        ("syncd-origin", &["rollout"]),
        ("syncd-origin", &["commit", "--wait=nonsense"]),
        ("syncd-agent", &["nonsense"]),
        ("syncd-agent", &["join"]),
        ("syncd-agent", &["run", "--keep", "nonsense"]),
    ] {
        let outcome = program(name, args).expect_code(2);
        assert!(outcome.stdout.is_empty() && !outcome.stderr.is_empty(), "{outcome:#?}");
    }
}

#[test]
fn a_typed_option_goes_before_a_variable_that_conflicts_with_it() {
    let fingerprint = "0".repeat(64);
    let variables =
        [("SYNCD_ORIGIN", "a:1"), ("SYNCD_FOLLOW", "file:///a"), ("SYNCD_TRUST", fingerprint.as_str())];
    let shown = |typed: &[&str], variables: &[(&str, &str)]| {
        let mut command = Command::new(binary("syncd-agent"));
        command.args(["config", "show", "--config", "/dev/null", "--"]).args(typed);
        command.envs(variables.iter().copied());
        run_within(&mut command, Duration::from_secs(20))
    };
    let has = |shown: &str, name: &str, value: &str| {
        let words = shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        assert!(words.clone().any(|words| words.starts_with(&[name, value])), "{name} {value} in\n{shown}");
    };
    let followed = shown(&["--follow", "file:///b", "--trust", &fingerprint], &variables[..1]);
    let followed = followed.expect_success().stdout;
    has(&followed, "follow", "file:///b");
    has(&followed, "origin", "the");
    let joined = shown(&["--origin", "b:1"], &variables[1..]).expect_success().stdout;
    has(&joined, "origin", "b:1");
    has(&joined, "follow", "-");
    shown(&[], &variables).expect_code(2);
}

#[test]
fn a_wrong_value_is_told_with_its_option_its_source_and_an_example() {
    let scene = Scene::new("wrong-values");
    let config = scene.path("syncd.toml");
    let origin = ("syncd-origin", &["serve", "--tree", "/tmp"][..]);
    let agent = ("syncd-agent", &["run", "--root", "/nonexistent"][..]);
    let join = ("syncd-agent", &["join", "127.0.0.1:1"][..]);
    for ((name, args), option, variable, example) in [
        (origin, "settle", "SYNCD_SETTLE", "500ms"),
        (origin, "settle-max", "SYNCD_SETTLE_MAX", "30s"),
        (origin, "settle-max-publish", "SYNCD_SETTLE_MAX_PUBLISH", "5m"),
        (origin, "poll", "SYNCD_POLL", "10s"),
        (origin, "trigger", "SYNCD_TRIGGER", "settle"),
        (origin, "mtime", "SYNCD_MTIME", "tree"),
        (origin, "symlinks", "SYNCD_SYMLINKS", "verbatim"),
        (origin, "keep-generations", "SYNCD_KEEP_GENERATIONS", "10"),
        (origin, "keep-for", "SYNCD_KEEP_FOR", "7d"),
        (origin, "keep-bytes", "SYNCD_KEEP_BYTES", "20G"),
        (origin, "bwlimit", "SYNCD_ORIGIN_BWLIMIT", "10M"),
        (origin, "publish", "SYNCD_PUBLISH", "file:///DIRECTORY"),
        (origin, "listen", "SYNCD_LISTEN", "0.0.0.0:8873"),
        (origin, "http", "SYNCD_ORIGIN_HTTP", "0.0.0.0:8873"),
        (origin, "admin-group", "SYNCD_ADMIN_GROUP", "give a number"),
        (agent, "keep", "SYNCD_KEEP", "2"),
        (agent, "grace", "SYNCD_GRACE", "150s"),
        (agent, "verify-every", "SYNCD_VERIFY_EVERY", "7d"),
        (agent, "swap", "SYNCD_SWAP", "link"),
        (agent, "owner", "SYNCD_OWNER", "www-data:www-data"),
        (agent, "check-timeout", "SYNCD_CHECK_TIMEOUT", "10s"),
        (agent, "bwlimit", "SYNCD_AGENT_BWLIMIT", "10M"),
        (agent, "http", "SYNCD_AGENT_HTTP", "0.0.0.0:8873"),
        (join, "name", "SYNCD_NAME", "as in web1"),
    ] {
        let wrong = |change: &dyn Fn(&mut Command)| {
            let mut command = Command::new(binary(name));
            command.args(args);
            change(&mut command);
            let told = run_within(&mut command, Duration::from_secs(20)).expect_code(2).stderr;
            for word in [format!("'--{option} <"), example.to_owned()] {
                assert!(told.contains(&word), "{word} in\n{told}");
            }
            told
        };
        let told = wrong(&|command| {
            command.env(variable, "bo/gus");
        });
        assert!(told.contains(&format!("the value comes from the variable {variable}\n")), "{told}");
        fs::write(&config, format!("{option} = 'bo/gus'\n")).expect("write the configuration");
        let told = wrong(&|command| {
            command.arg("--config").arg(&config).env_remove(variable);
        });
        let source = format!("the value comes from the key {option} in {}", config.display());
        assert!(told.contains(&source), "{told}");
        let told = wrong(&|command| {
            command.arg(format!("--{option}=bo/gus"));
        });
        assert!(!told.contains("comes from"), "{told}");
    }
}

#[test]
fn init_says_what_to_do_next() {
    let scene = Scene::new("init");
    let data = scene.path("data");
    let outcome = run(Command::new(binary("syncd-origin"))
        .args(["init", "--host", "origin.example", "--data"])
        .arg(&data))
    .expect_success();
    let said = format!("{}{}", outcome.stdout, outcome.stderr);
    for word in ["serve", "token", "join", "origin.example", "back"] {
        assert!(said.to_lowercase().contains(word), "{word} in\n{said}");
    }
    let mode = fs::metadata(&data).expect("stat").permissions().mode();
    assert_eq!(mode & 0o077, 0, "keys are nobody else's business: {mode:o}");
}

#[test]
fn commit_prints_the_number_alone_and_nodes_on_standard_error() {
    let (scene, origin) = site("commit");
    let _agent = Agent::started(&scene, &origin, "web1");
    origin.wait_connected(&["web1"]);
    let outcome = origin.cli("commit", &["--wait", "-m", "release 7"]).expect_success();
    assert_eq!(outcome.stdout, "1\n");
    assert!(outcome.stderr.contains("web1"), "{outcome:#?}");
    assert_eq!(origin.status().label.as_deref(), Some("release 7"));

    let again = origin.cli("commit", &["--wait"]).expect_success();
    assert_eq!(again.stdout, "1\n", "nothing changed");
    let said = again.stderr.to_lowercase();
    assert!(
        said.contains("nothing") || said.contains("unchanged") || said.contains("no change"),
        "{again:#?}"
    );

    write(&origin.tree, "index.html", "two");
    let json = origin.cli("commit", &["--wait", "--json"]).expect_success();
    assert_eq!(json.json()["generation"], 2, "{json:#?}");
    assert!(json.stdout.contains("web1"), "nodes are in the JSON: {json:#?}");
}

#[test]
fn a_pipeline_gets_a_dry_run_events_and_a_summary_and_can_wait_later() {
    let (scene, origin) = site("pipeline");
    (0..90).for_each(|n| write(&origin.tree, &format!("page-{n}.html"), "text"));
    let dry = origin.cli("commit", &["--dry-run"]).expect_success();
    assert!(dry.stdout.contains("added") && dry.stdout.contains("page-7.html"), "{dry:#?}");
    assert_eq!(origin.status().generation, None, "nothing was published");

    let _agent = Agent::started(&scene, &origin, "web1");
    origin.wait_connected(&["web1"]);
    let file = scene.path("summary.md");
    fs::write(&file, "# the job\n").expect("write a file");
    let summary = file.to_str().expect("a path of text");
    let arguments = ["-m", "<b>7</b>", "--wait", "--events", "--summary", summary];
    let outcome = origin.cli("commit", &arguments).expect_success();
    let events: Vec<serde_json::Value> =
        outcome.stdout.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    let of = |name: &str| events.iter().find(|event| event["event"] == name).expect("the event");
    assert_eq!((&of("generation")["generation"], &of("node")["result"]), (&1.into(), &"live".into()));
    assert_eq!(events.last(), Some(&serde_json::json!({"event": "done", "code": 0})), "{events:#?}");
    let text = fs::read_to_string(&file).expect("read the summary");
    assert!(text.starts_with("# the job\n### syncd: generation 1 (&lt;b>7&lt;/b>): done\n"), "{text}");
    assert!(text.contains("| web1 | live | "), "{text}");

    assert_eq!(origin.cli("wait", &["1", "--require-all"]).expect_success().stdout, "1\n");
    origin.cli("wait", &["9"]).expect_refusal(&["9"]);
    // A commit that the guard would hold, before it is made.
    (0..90).for_each(|n| fs::remove_file(origin.tree.join(format!("page-{n}.html"))).expect("remove a page"));
    let refused = origin.cli("commit", &["--dry-run", "--json"]).expect_code(1);
    assert!(refused.stderr.contains("not published: "), "{refused:#?}");
    assert_eq!(origin.status().generation, Some(1));
}

#[test]
fn waiting_says_with_exit_code_3_that_it_is_not_live_everywhere() {
    let (scene, origin) = site("wait");
    let outcome = origin.cli("commit", &["--wait=2s"]).expect_code(3);
    assert_eq!(outcome.stdout, "1\n", "no connected agent at all is not success, but it is sealed");

    let mut agents = ["web1", "web2"].map(|name| Agent::started(&scene, &origin, name));
    origin.wait_connected(&["web1", "web2"]);
    agents[1].stop();
    wait::until("web2 to be seen gone", || (!origin.status().agent("web2").connected).then_some(()));
    write(&origin.tree, "index.html", "two");
    let outcome = origin.cli("commit", &["--wait"]).expect_success();
    assert!(outcome.stderr.contains("web2"), "the unreachable are listed: {outcome:#?}");
    origin.cli("commit", &["--wait=2s", "--require-all"]).expect_code(3);
    agents[1].start();
    origin.wait_connected(&["web1", "web2"]);
    origin.cli("commit", &["--wait", "--require-all"]).expect_success();
}

#[test]
fn a_failing_hook_before_activation_keeps_the_old_generation_and_fails_the_commit() {
    let (scene, origin) = site("hooks");
    let gate = scene.path("gate");
    let seen = scene.path("seen");
    let before = format!("test ! -e {}", gate.display());
    let after = format!("echo \"$SYNCD_GENERATION\" >> {0}; cat >> {0}", seen.display());
    let mut agent = Agent::joined(&scene, &origin, "web1").with_options(&[
        "--before-activate",
        &before,
        "--on-activate",
        &after,
    ]);
    agent.start();
    origin.wait_connected(&["web1"]);
    origin.commit_live();
    write(&origin.tree, "section-1/page-1.html", "changed");
    write(&origin.tree, "section-1/new.html", "new");
    origin.commit_live();
    wait::until_ok("the hook to see exactly the changed paths", || {
        let text = String::from_utf8_lossy(&fs::read(&seen).unwrap_or_default()).into_owned();
        let mut lines: Vec<&str> = text.lines().skip_while(|line| *line != "2").collect();
        lines.sort();
        let files: Vec<&&str> = lines.iter().filter(|line| line.ends_with(".html")).collect();
        if files == [&"section-1/new.html", &"section-1/page-1.html"] {
            Ok(())
        } else {
            Err(format!("{lines:?}"))
        }
    });

    fs::write(&gate, "").expect("close the gate");
    write(&origin.tree, "index.html", "not yet");
    let outcome = origin.cli("commit", &["--wait=5s"]).expect_code(3);
    assert!(outcome.stderr.contains("web1"), "{outcome:#?}");
    assert_eq!(agent.live_generation(), Some(2), "the old generation stays");
    wait::until("the origin to be told", || origin.status().agent("web1").error.clone());
    fs::remove_file(&gate).expect("open the gate");
    agent.wait_live(3);
    assert_same(&origin.tree, &agent.live());
}

#[test]
fn a_hook_gets_the_documented_variables_and_no_secret_of_the_agent() {
    let (scene, origin) = site("hook-environment");
    let seen = scene.path("seen");
    let hook = format!("env > {0}.new; mv {0}.new {0}", seen.display());
    let mut agent = Agent::joined(&scene, &origin, "web1").with_options(&["--before-activate", &hook]);
    agent.under(
        &["env", "SYNCD_TOKEN=syncd1-secret", "SYNCD_AGENT_BWLIMIT=100M", "SITE=blog"].map(Into::into),
    );
    agent.start();
    origin.wait_connected(&["web1"]);
    origin.commit_live();
    let environment = fs::read_to_string(&seen).expect("the hook ran before the activation");
    assert!(environment.lines().any(|line| line == "SITE=blog"), "{environment}");
    let mut names: Vec<_> =
        environment.lines().filter_map(|line| line.split_once('=')).map(|v| v.0).collect();
    names.retain(|name| name.starts_with("SYNCD_"));
    names.sort();
    let documented = ["GENERATION", "HOOK_RUN", "LABEL", "LIVE", "PREVIOUS", "ROOT", "ROOT_HASH", "TREE"];
    assert_eq!(names, documented.map(|name| format!("SYNCD_{name}")));
}

#[test]
fn status_has_the_shape_of_the_contract() {
    let (scene, origin) = site("shapes");
    let mut agent = Agent::started(&scene, &origin, "web1");
    origin.wait_connected(&["web1"]);
    origin.commit_live();
    let json = origin.cli("status", &["--json"]).expect_success().json();
    for key in [
        "tree_id",
        "tree",
        "grpc_address",
        "http_address",
        "state",
        "generation",
        "root",
        "label",
        "created",
        "files",
        "bytes",
        "agents",
    ] {
        assert!(json.get(key).is_some(), "{key} in {json:#}");
    }
    for key in ["name", "connected", "generation", "root", "state", "last_seen", "error"] {
        assert!(json["agents"][0].get(key).is_some(), "{key} in {json:#}");
    }
    let status = origin.status();
    assert_eq!(status.tree_id.len(), 32);
    assert_eq!(status.files, files_in(&origin.tree));
    assert_eq!((status.state.as_str(), status.generation), ("ready", Some(1)));
    assert_eq!(status.root.as_ref().map(String::len), Some(64));
    assert!(status.created.as_deref().is_some_and(|t| t.contains('T')), "RFC 3339: {status:?}");
    let member = status.agent("web1");
    assert_eq!((member.state.as_str(), &member.root), ("live", &status.root));

    let json = agent.cli("status", &["--json"]).expect_success().json();
    for key in [
        "name",
        "root_directory",
        "origin",
        "connected",
        "generation",
        "root",
        "live",
        "state",
        "accepted",
        "generations",
        "spares",
        "last_contact",
        "error",
    ] {
        assert!(json.get(key).is_some(), "{key} in {json:#}");
    }
    let said = agent.status();
    assert_eq!((said.name.as_str(), said.origin.as_str()), ("web1", origin.address()));
    assert_eq!((said.accepted, said.root, said.live), (Some(1), status.root, agent.live()));

    // The same facts as text.
    let text = origin.cli("status", &[]).expect_success().stdout;
    assert!(text.contains("web1") && text.contains('1'), "{text}");
    assert!(agent.cli("status", &[]).expect_success().stdout.contains("web1"));

    // Without the processes, the same is read from the disk.
    agent.stop();
    let offline = agent.status();
    assert_eq!((offline.generation, offline.connected), (Some(1), false));
    let mut origin = origin;
    origin.stop();
    assert_eq!((origin.status().state.as_str(), origin.status().generation), ("stopped", Some(1)));
}

fn files_in(tree: &Path) -> u64 {
    let facts = syncd_tests::oracle::facts(tree);
    facts.values().filter(|fact| fact.kind == 'f').count() as u64
}

#[test]
fn history_and_diff_tell_what_changed() {
    let (_scene, origin) = site("history");
    origin.commit();
    write(&origin.tree, "section-1/page-1.html", "changed");
    write(&origin.tree, "added.html", "added");
    fs::remove_file(origin.tree.join("section-2/page-2.html")).expect("remove");
    let second = origin.cli("commit", &["-m", "a label"]).expect_success();
    assert_eq!(second.stdout, "2\n");
    let history = origin.cli("history", &["--json"]).expect_success();
    assert_json_lines(&history);
    assert!(history.stdout.contains("a label"), "{history:#?}");
    let diff = origin.cli("diff", &["1", "2"]).expect_success().stdout;
    for path in ["section-1/page-1.html", "added.html", "section-2/page-2.html"] {
        assert!(diff.contains(path), "{path} in\n{diff}");
    }
    assert!(!diff.contains("section-3/"), "only what changed:\n{diff}");
    assert_eq!(origin.cli("diff", &[]).expect_success().stdout, diff, "the default is the last step");
    assert_json_lines(&origin.cli("diff", &["1", "2", "--json"]).expect_success());
    let rolled = origin.cli("rollback", &["1"]).expect_success();
    assert_eq!(rolled.stdout, "3\n", "a rollback is a new generation");
    assert!(!origin.cli("diff", &["1", "3"]).expect_success().stdout.contains("section-1/page-1.html"));
}

/// Asserts that a list has one JSON object for each line.
fn assert_json_lines(outcome: &Outcome) {
    assert!(!outcome.stdout.is_empty(), "{outcome:#?}");
    for line in outcome.stdout.lines() {
        let value: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {outcome:#?}"));
        assert!(value.is_object(), "{outcome:#?}");
    }
}

#[test]
fn what_needs_no_serving_origin_works_without_one() {
    let (_scene, mut origin) = site("offline");
    origin.commit();
    origin.stop();
    assert_eq!(origin.status().state, "stopped");
    assert!(!origin.token().is_empty());
    origin.cli("history", &[]).expect_success();
    origin.cli("diff", &[]).expect_success();
    origin.cli("check", &[]).expect_success();
    origin.start();
    origin.cli("check", &[]).expect_success();
}

#[test]
fn check_finds_a_flipped_byte() {
    let (_scene, mut origin) = site("check");
    origin.commit();
    origin.stop();
    let packs: Vec<_> = walk_files(&origin.data)
        .into_iter()
        .filter(|(path, size)| {
            *size > 4096 && path.components().any(|c| c.as_os_str().to_string_lossy().contains("pack"))
        })
        .collect();
    let (pack, size) = packs.first().expect("a pack file");
    let mut bytes = fs::read(pack).expect("read a pack");
    bytes[*size as usize / 2] ^= 1;
    fs::write(pack, bytes).expect("damage a pack");
    let outcome = origin.cli("check", &[]).expect_code(1);
    assert!(!outcome.stderr.is_empty(), "{outcome:#?}");
}

fn walk_files(directory: &Path) -> Vec<(std::path::PathBuf, u64)> {
    let facts = syncd_tests::oracle::facts(directory);
    facts.into_iter().filter(|(_, f)| f.kind == 'f').map(|(p, f)| (directory.join(p), f.size)).collect()
}

#[test]
fn a_token_stands_alone_on_standard_output() {
    let (_scene, origin) = site("token");
    let outcome = origin.cli("token", &[]).expect_success();
    let token = outcome.only_line();
    assert!(!token.contains(char::is_whitespace) && token.len() > 40, "{token:?}");
    assert_ne!(origin.token(), token);
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file() {
    let scene = Scene::new("precedence");
    let tree = scene.path("tree");
    small_site(&tree, 2);
    let ids: Vec<String> = ["by-flag", "by-variable", "by-file"]
        .iter()
        .map(|name| Origin::create_named(&scene, name, &tree).status().tree_id)
        .collect();
    let config = scene.path("syncd.toml");
    fs::write(&config, format!("data = {:?}\n", scene.path("by-file"))).expect("write the configuration");
    let ask = |flag: bool, variable: bool| {
        let mut command = Command::new(binary("syncd-origin"));
        command.args(["status", "--json", "--config"]).arg(&config).env_remove("SYNCD_DATA");
        if flag {
            command.arg("--data").arg(scene.path("by-flag"));
        }
        if variable {
            command.env("SYNCD_DATA", scene.path("by-variable"));
        }
        run(&mut command).expect_success().json()["tree_id"].as_str().map(str::to_string)
    };
    assert_eq!(ask(true, true).as_ref(), Some(&ids[0]));
    assert_eq!(ask(false, true).as_ref(), Some(&ids[1]));
    assert_eq!(ask(false, false).as_ref(), Some(&ids[2]));

    fs::write(&config, "no_such_option = 1\n").expect("write the configuration");
    let outcome = run(Command::new(binary("syncd-origin")).args(["status", "--config"]).arg(&config));
    assert!(matches!(outcome.code, Some(1 | 2)) && outcome.stderr.contains("no_such_option"), "{outcome:#?}");
}

#[test]
fn the_admin_socket_is_private_and_its_path_may_be_long() {
    let scene = Scene::new("socket");
    let tree = scene.path("tree");
    small_site(&tree, 5);
    let long = format!("{}/{}", "d".repeat(100), "e".repeat(100));
    fs::create_dir_all(scene.path(&"d".repeat(100))).expect("create directories");
    let mut origin = Origin::create_named(&scene, &long, &tree);
    // The name of the log follows the origin's.
    origin.start();
    assert_eq!(origin.commit(), 1);
    assert_eq!(origin.status().state, "ready");
    let mut sockets = Vec::new();
    collect_sockets(&origin.data, &mut sockets);
    assert!(!sockets.is_empty(), "the admin socket is in DATA");
    for mode in sockets {
        assert_eq!(mode & 0o777, 0o600, "{mode:o}");
    }
    let agent =
        Agent::new(&scene, "web1").at(&scene.path(&format!("{}/{}", "d".repeat(100), "r".repeat(100))));
    agent.join(origin.address(), &origin.token()).expect_success();
    let mut agent = agent;
    agent.start();
    agent.wait_live(1);
    assert!(agent.status().connected);
}

fn collect_sockets(directory: &Path, sockets: &mut Vec<u32>) {
    for item in fs::read_dir(directory).expect("list").filter_map(Result::ok) {
        let metadata = item.path().symlink_metadata().expect("stat");
        if metadata.is_dir() {
            collect_sockets(&item.path(), sockets);
        } else if metadata.file_type().is_socket() {
            sockets.push(metadata.permissions().mode());
        }
    }
}

#[test]
fn logs_go_to_standard_error_and_health_over_http() {
    let (scene, mut origin) = site("logs");
    let mut agent = Agent::started(&scene, &origin, "web1");
    origin.wait_connected(&["web1"]);
    origin.commit_live();
    assert_eq!(origin.daemon().output(), "", "serve says nothing on standard output");
    assert!(!origin.daemon().log().is_empty());
    assert_eq!(agent.daemon().output(), "", "run says nothing on standard output");
    assert!(!agent.daemon().log().contains('\x1b'), "no escapes where nobody looks");
    let address = origin.status().http_address.expect("an address");
    let health = http::get(&address, "/healthz").expect("a health answer");
    assert_eq!(health.status, 200, "{}", health.head);
    origin.stop();
    agent.stop();
}

#[test]
fn a_person_sees_who_never_came_how_far_the_others_are_and_what_changed() {
    let (scene, origin) = site("seen");
    assert_eq!(origin.cli("status", &["--check"]).code, Some(1), "no generation yet");
    assert_eq!(origin.cli("commit", &["-m", "first"]).expect_success().stdout, "1\n");
    let text = origin.cli("status", &["--check"]).expect_code(3).stdout;
    assert!(text.contains("none is enrolled: `syncd-origin token`"), "{text}");
    let mut slow = Agent::joined(&scene, &origin, "slow").with_options(&["--bwlimit", "50K"]);
    let text = origin.cli("status", &["--check"]).expect_code(3).stdout;
    assert!(text.contains("slow  never connected"), "{text}");
    assert!(text.contains(concat!("syncd ", env!("CARGO_PKG_VERSION"))), "{text}");
    let idle = slow.cli("status", &["--check"]).expect_code(1).stdout;
    assert!(idle.contains("agent not running") && idle.contains("generations  none"), "{idle}");

    // Noise does not compress, so at 50 KiB per second it takes some seconds.
    let noise: Vec<u8> = (0..12_000u32).flat_map(|n| *blake3::hash(&n.to_le_bytes()).as_bytes()).collect();
    write(&origin.tree, "large.bin", noise);
    origin.commit();
    slow.start();
    wait::until("the origin to show bytes, files and percent", || {
        let text = origin.cli("status", &[]).expect_success().stdout;
        let line = text.lines().find(|line| line.contains("generation 2: "))?;
        (line.contains(" files, ") && line.contains(" of ") && line.contains(" %")).then_some(())
    });
    let json = origin.cli("status", &["--json"]).expect_success().json();
    assert_eq!(json["agents"][0]["version"], env!("CARGO_PKG_VERSION"), "{json:#}");
    wait::until("the agent to show it, too", || {
        let shown = slow.cli("status", &[]).expect_success().stdout;
        (shown.contains("progress  ") && shown.contains(" %")).then_some(())
    });
    slow.stop();

    let unused = origin.cli("commit", &["-m", "unused"]).expect_success();
    assert!(unused.stderr.contains("the label \"unused\" was not used"), "{unused:#?}");
    fs::create_dir(origin.tree.join("new")).expect("make a directory");
    write(&origin.tree, "new/page.html", "new");
    write(&origin.tree, "index.html", "changed");
    fs::remove_file(origin.tree.join("large.bin")).expect("remove");
    let pending = origin.cli("diff", &["--pending"]).expect_success();
    for line in
        ["added     new/\n", "added     new/page.html\n", "modified  index.html\n", "removed   large.bin\n"]
    {
        assert!(pending.stdout.contains(line), "{line:?} in {pending:#?}");
    }
    assert!(pending.stderr.contains("2 added, 1 modified, 1 removed"), "{pending:#?}");
    assert_eq!(origin.status().generation, Some(2), "a look publishes nothing");
    origin.commit();
    let stat = origin.cli("diff", &["--stat"]).expect_success();
    assert_eq!(stat.only_line(), pending.stderr.trim_end());
    assert_eq!(origin.cli("diff", &["--stat", "--json"]).expect_success().json()["added"], 2);
    let nothing = origin.cli("diff", &["--pending"]).expect_success();
    assert_eq!((nothing.stdout.as_str(), nothing.stderr.as_str()), ("", "no difference\n"));

    let history = origin.cli("history", &[]).expect_success().stdout;
    let lines: Vec<&str> = history.lines().collect();
    assert!(lines.len() == 4 && lines[0].contains("changes"), "{history}");
    assert!(lines[3].starts_with('*') && lines[3].contains("+2 ~1 -1"), "{history}");
    assert!(lines[1].starts_with(' ') && lines[1].contains("first"), "{history}");
    // Times have the same form everywhere.
    let json = origin.cli("commit", &["--json"]).expect_success();
    assert!(json.stdout.starts_with("{\"generation\":3,\"root\":"), "{json:#?}");
    let created = json.json()["created"].as_str().map(str::len);
    assert_eq!(created, Some("2026-11-29T12:00:00.000Z".len()), "{json:#?}");
}

/// Runs a command on a pseudo terminal of 80 columns. Returns its lines.
fn on_a_terminal(command: &Command, variables: &str) -> Vec<String> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<String> = words.map(|word| format!("'{}'", word.to_str().expect("text"))).collect();
    let line = format!("stty cols 80 rows 24; {variables} {}", words.join(" "));
    let mut script = Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).env_remove("NO_COLOR");
    run_within(&mut script, Duration::from_secs(60))
        .expect_success()
        .stdout
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_terminal_of_80_columns_shows_whole_lines_in_colour() {
    syncd_tests::require_program("script", "bsdutils");
    let (scene, origin) = site("terminal");
    let mut agent = Agent::started(&scene, &origin, "a-node-with-a-long-name");
    origin.wait_connected(&["a-node-with-a-long-name"]);
    let label = "a label of many words, which is longer than what remains of a row, and is shown whole";
    origin.cli("commit", &["-m", label, "--wait=60s"]).expect_success();
    agent.kill9();
    wait::until("the origin to miss the node", || (!origin.status().agents[0].connected).then_some(()));
    for (command, colour) in [
        (origin.command("status", &[]), "\x1b[31m  a-node"),
        (origin.command("history", &[]), "\x1b[32m*"),
        (agent.command("status", &[]), "\x1b[31ma-node"),
    ] {
        let plain = on_a_terminal(&command, "NO_COLOR=1");
        for line in &plain {
            // A path stays whole, so that it can be copied.
            let fits = line.chars().count() <= 80 || !line.trim().contains(' ');
            assert!(fits && !line.contains('\x1b'), "{line:?} of {plain:#?}");
        }
        let coloured = on_a_terminal(&command, "");
        assert!(coloured.iter().any(|line| line.starts_with(colour)), "{colour:?} in {coloured:#?}");
    }
    let history = on_a_terminal(&origin.command("history", &[]), "NO_COLOR=1").join(" ");
    let words = history.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.ends_with(label), "{words}");
    let whole = origin.cli("history", &[]).expect_success().stdout;
    assert!(whole.trim_end().ends_with(label) && !whole.contains('\x1b'), "{whole}");
}

#[test]
fn members_of_the_admin_group_publish_and_read_nothing_else() {
    require_root("it runs commands as other users");
    let scene = Scene::new("admin-group");
    let tree = scene.path("tree");
    small_site(&tree, 5);
    let long = format!("{}/{}", "d".repeat(100), "e".repeat(100));
    fs::create_dir_all(scene.path(&"d".repeat(100))).expect("create directories");
    let mut origin = Origin::create_named(&scene, &long, &tree).with_options(&[
        "--trigger",
        "manual",
        "--admin-group",
        "4711",
    ]);
    origin.start();
    let program = scene.path("syncd-origin");
    fs::copy(binary("syncd-origin"), &program).expect("copy the program to where anybody may run it");
    let as_group = |group: &str, args: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", &format!("--regid={group}"), "--clear-groups"]).arg(&program);
        run(command.args(args).arg("--data").arg(&origin.data))
    };
    assert_eq!(as_group("4711", &["commit", "-m", "by CI"]).expect_success().stdout, "1\n");
    assert_eq!(as_group("4711", &["token"]).expect_success().stdout.lines().count(), 1);
    as_group("4712", &["commit"]).expect_refusal(&["admin-group", "root"]);
    let read = |path: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=4711", "--clear-groups"]);
        run(command.args(["ls", "-d"]).arg(origin.data.join(path)).arg(origin.data.join(path).join("."))).code
    };
    assert_ne!(read("keys"), Some(0), "keys stay closed");
    let list = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=4711", "--clear-groups", "ls"])
        .arg(&origin.data)
        .output()
        .expect("run ls");
    assert!(!list.status.success(), "DATA can be entered, not listed");

    // Without the option the next start closes DATA again.
    let facts =
        |path: &Path| fs::metadata(path).map(|found| (found.mode() & 0o777, found.gid())).expect("stat");
    assert_eq!(facts(&origin.data), (0o710, 4711));
    origin.stop();
    let mut origin = Origin::existing(&scene, &long, &tree).with_options(&["--trigger", "manual"]);
    origin.start();
    assert_eq!(facts(&origin.data), (0o700, 0));
}

/// Runs a command whose standard output nobody reads.
fn unread(command: &mut Command) -> Outcome {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut err = tempfile::tempfile().expect("a file");
    command.stdin(Stdio::null()).stdout(writer).stderr(err.try_clone().expect("share a file"));
    let shown = format!("{command:?}");
    let mut child = command.spawn().expect("start it");
    let code = wait::until("the command to end", || child.try_wait().expect("look at a child"));
    let mut stderr = String::new();
    err.rewind().and_then(|()| err.read_to_string(&mut stderr)).expect("read it back");
    Outcome { command: shown, code: code.code(), stdout: String::new(), stderr, took: Duration::ZERO }
}

#[test]
fn a_reader_that_goes_away_ends_a_command_quietly() {
    let (scene, origin) = site("unread");
    let mut agent = Agent::joined(&scene, &origin, "web1");
    let mut commands = vec![
        Command::new(binary("syncd-origin")),
        origin.command("commit", &["-m", "first"]),
        origin.command("commit", &["--json"]),
        origin.command("status", &[]),
        origin.command("status", &["--watch"]),
        origin.command("status", &["--json"]),
        origin.command("history", &[]),
        origin.command("diff", &[]),
        origin.command("token", &[]),
        agent.command("status", &[]),
    ];
    commands[0].arg("init").arg("--data").arg(scene.path("another"));
    for command in &mut commands {
        let outcome = unread(command).expect_code(128 + 13);
        for word in ["panicked", "roken pipe", "standard output"] {
            assert!(!outcome.stderr.contains(word), "{outcome:#?}");
        }
    }
    assert_eq!(origin.status().label.as_deref(), Some("first"), "the commit was done all the same");
    // A full disk is reported, together with what was done.
    write(&origin.tree, "index.html", "two");
    let full = fs::File::options().write(true).open("/dev/full").expect("open /dev/full");
    let child = origin.command("commit", &[]).stdout(full).stderr(Stdio::piped()).spawn().expect("start it");
    let outcome = child.wait_with_output().expect("its end");
    let said = String::from_utf8_lossy(&outcome.stderr);
    assert_eq!(outcome.status.code(), Some(1), "{said}");
    assert!(said.contains("generation 2: standard output can't be written"), "{said}");
    assert_eq!(origin.status().generation, Some(2));
    // In a pipe, `--watch` prints no terminal codes.
    let mut watch =
        syncd_tests::Daemon::start(&mut origin.command("status", &["--watch"]), scene.directory(), "watch");
    wait::until("two statuses", || (watch.output().matches("agents ").count() >= 2).then_some(()));
    watch.kill9();
    assert!(!watch.output().contains('\x1b'), "{}", watch.output());
    agent.start();
    agent.wait_live(2);
}

#[test]
fn events_tell_what_happened_and_the_audit_who_did_it() {
    let (scene, mut origin) = site("events");
    let follow =
        syncd_tests::Daemon::start(&mut origin.command("events", &["--follow"]), scene.directory(), "events");
    origin.cli("commit", &["-m", "release 7"]).expect_success();
    let mut agent = Agent::new(&scene, "web1");
    let secret = origin.token();
    let listed = origin.cli("token", &["list", "--json"]).expect_success();
    let listed: serde_json::Value = serde_json::from_str(listed.only_line()).expect("JSON");
    let token = listed["id"].as_str().expect("the ID of the token").to_owned();
    agent.join(origin.address(), &secret).expect_success();
    agent.start();
    agent.wait_live(1);
    let seen = |words: &str| {
        wait::until(words, || {
            let squeezed = follow.output().split_whitespace().collect::<Vec<_>>().join(" ");
            squeezed.contains(words).then_some(())
        });
    };
    seen("sealed generation 1 (release 7): ");
    seen("live web1 generation 1");
    origin.cli("revoke", &["web1"]).expect_success();
    seen("removed web1");
    origin.cli("page", &[]).expect_success();
    assert!(unread(&mut origin.command("events", &[])).expect_code(128 + 13).stderr.is_empty());
    let told = origin.cli("events", &["--json"]).expect_success().stdout;
    let events: Vec<serde_json::Value> =
        told.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let numbers: Vec<u64> = events.iter().filter_map(|event| event["number"].as_u64()).collect();
    assert_eq!(numbers, (1..=events.len() as u64).collect::<Vec<_>>(), "{told}");
    let names: Vec<&str> = events.iter().filter_map(|event| event["event"].as_str()).collect();
    let at = |name: &str| {
        names.iter().position(|found| *found == name).unwrap_or_else(|| panic!("{name}: {told}"))
    };
    for (earlier, later) in
        [("started", "sealed"), ("sealed", "joined"), ("joined", "connected"), ("live", "removed")]
    {
        assert!(at(earlier) < at(later), "{told}");
    }
    let deeds = origin.cli("audit", &[]).expect_success().stdout;
    let of_operators = ["commit  label=\"release 7\"", "token  ttl_s=", "revoke  agent=\"web1\"", "page"];
    let (joins, by_operators): (Vec<_>, Vec<_>) = deeds.lines().partition(|line| line.contains("  join  "));
    assert_eq!(by_operators.len(), of_operators.len(), "{deeds}");
    for (line, words) in by_operators.into_iter().zip(of_operators) {
        assert!(line.contains("uid ") && line.contains("pid ") && line.contains(words), "{deeds}");
    }
    assert_eq!(joins.len(), 1, "{deeds}");
    for words in ["a node  join", "address=\"127.0.0.1:", "node=\"web1\"", &format!("token=\"{token}\"")] {
        assert!(joins[0].contains(words), "{words}: {deeds}");
    }
    assert!(unread(&mut origin.command("audit", &[])).expect_code(128 + 13).stderr.is_empty());
    for log in ["events", "audit"] {
        let mode = fs::metadata(origin.data.join(log)).expect("the log").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{log}");
    }
    // Without an origin both are still there, and what is done is recorded.
    origin.stop();
    let outcome = origin.cli("events", &["--follow"]).expect_code(1);
    assert!(outcome.stderr.contains("no origin serves"), "{outcome:#?}");
    assert!(outcome.stdout.contains("release 7"), "{outcome:#?}");
    origin.cli("token", &["--uses", "3"]).expect_success();
    let deeds = origin.cli("audit", &["--json"]).expect_success().stdout;
    let last: serde_json::Value = serde_json::from_str(deeds.lines().last().expect("a deed")).expect("JSON");
    assert_eq!((&last["number"], &last["request"], &last["uses"]), (&6.into(), &"token".into(), &3.into()));
    // A request that can't be recorded is not carried out.
    fs::remove_file(origin.data.join("audit")).expect("remove the audit");
    fs::create_dir(origin.data.join("audit")).expect("make a directory");
    origin.cli("token", &[]).expect_refusal(&["nothing was done", "audit"]);
    let tokens = origin.cli("token", &["list"]).expect_success().stdout;
    assert_eq!(tokens.lines().count(), 1, "{tokens}");
}

#[test]
fn the_log_has_the_format_that_is_asked_for() {
    let (scene, mut origin) = site("log_format");
    origin.stop();
    let mut origin = origin.with_options(&["--log-format", "json"]);
    origin.start();
    let log = origin.daemon().log();
    let lines: Vec<serde_json::Value> = log
        .lines()
        .skip_while(|line| !line.ends_with("INFO stopping"))
        .skip(1)
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {log}")))
        .collect();
    let serving = lines.iter().find(|line| line["message"] == "serving").expect("a line");
    assert_eq!((&serving["level"], serving["agents"].is_string()), (&"info".into(), true), "{log}");
    let mut agent = Agent::joined(&scene, &origin, "web1").with_options(&["--log-format", "journal"]);
    agent.start();
    let log = wait::until("the agent to run", || {
        Some(agent.daemon().log()).filter(|log| log.contains("agent runs"))
    });
    assert!(log.lines().all(|line| line.starts_with('<')), "{log}");
    assert!(log.lines().any(|line| line.starts_with("<6>agent runs name=")), "{log}");
}

#[test]
fn a_hangup_ends_neither_program() {
    let (scene, mut origin) = site("hangup");
    let mut agent = Agent::started(&scene, &origin, "web1");
    origin.wait_connected(&["web1"]);
    for daemon in [origin.daemon(), agent.daemon()] {
        daemon.signal(rustix::process::Signal::HUP);
        wait::until("the signal to be logged", || daemon.log().contains("SIGHUP").then_some(()));
    }
    origin.commit_live();
}

#[test]
fn the_origins_health_tells_of_a_first_generation_and_of_lost_data() {
    let (scene, mut origin) = site("health");
    let address = origin.status().http_address.expect("an address");
    let health = || {
        let answer = http::get(&address, "/healthz").expect("a health answer");
        (answer.status, String::from_utf8_lossy(&answer.body).into_owned())
    };
    assert_eq!(health(), (503, "no generation yet: run `syncd-origin commit`\n".to_owned()));
    origin.commit();
    assert_eq!(health(), (200, "ok generation 1\n".to_owned()));
    let (data, moved) = (origin.data.clone(), scene.path("moved"));
    fs::rename(&data, &moved).expect("take DATA away");
    wait::until("health to tell of it", || (health().0 == 503).then_some(()));
    assert!(health().1.contains("not there any more"), "{}", health().1);
    origin.daemon().wait_logged("nothing can be published");
    // The socket was moved as well. Nothing may be sealed into a directory that is gone.
    origin.data.clone_from(&moved);
    write(&origin.tree, "index.html", "two");
    origin.cli("commit", &[]).expect_refusal(&["index.redb", "restart"]);
    assert_eq!(origin.status().state, "held");
    fs::rename(&moved, &data).expect("bring it back");
    origin.data = data;
    wait::until("health to tell of it", || (health().0 == 200).then_some(()));
    assert_eq!(origin.commit(), 2);
}

#[test]
fn the_origins_health_tells_of_each_part_of_its_data_and_agents_are_served_meanwhile() {
    let (scene, mut origin) = site("health-parts");
    let address = origin.status().http_address.expect("an address");
    let health = || {
        let answer = http::get(&address, "/healthz").expect("a health answer");
        (answer.status, String::from_utf8_lossy(&answer.body).into_owned())
    };
    let mut agent = Agent::started(&scene, &origin, "web1");
    origin.wait_connected(&["web1"]);
    origin.commit_live();
    for (part, may_publish) in
        [("packs", false), ("format", true), ("keys/signing.key", true), ("keys/ca.key", true)]
    {
        let (path, moved) = (origin.data.join(part), scene.path("moved"));
        fs::rename(&path, &moved).expect("take a part away");
        wait::until(&format!("health without {part}"), || (health().0 == 503).then_some(()));
        assert!(health().1.contains(part), "{}", health().1);
        origin.cli("status", &["--check"]).expect_code(if may_publish { 3 } else { 1 });
        agent.restart();
        origin.wait_connected(&["web1"]);
        write(&origin.tree, "index.html", format!("without {part}"));
        if may_publish {
            origin.commit_live();
        } else {
            origin.cli("commit", &[]).expect_refusal(&[part, "restart"]);
        }
        fs::rename(&moved, &path).expect("bring it back");
        wait::until(&format!("health with {part}"), || (health().0 == 200).then_some(()));
        origin.commit_live();
    }
    assert!(
        origin.daemon().log().contains("signing.key is gone: agents are served"),
        "{}",
        origin.daemon().log()
    );
}

#[test]
fn arguments_are_repeated_as_one_short_line() {
    let evil = "7\n2026-11-30T00:00:00Z  INFO all is well\x1b[2J";
    let long = "9".repeat(50_000);
    for value in [evil, &long] {
        for (program, arguments) in [
            ("syncd-origin", ["commit", "-m", value]),
            ("syncd-origin", ["serve", "--tree=/srv", value]),
            ("syncd-agent", ["run", "--grace", value]),
            ("syncd-agent", ["run", "--root=/srv", value]),
        ] {
            let outcome = run(Command::new(binary(program)).args(arguments)).expect_code(2);
            let shown = outcome.stderr;
            assert!(!shown.contains('\x1b') && !shown.contains("\n2026"), "{shown:?}");
            assert!(shown.len() < 2000, "{program} prints {} bytes", shown.len());
        }
    }
}

#[test]
fn a_defaulted_http_port_that_is_taken_is_a_warning() {
    require_root("it makes a network namespace");
    let scene = Scene::new("default-port");
    let namespace = Namespace::new(&format!("syncd-{}", std::process::id()));
    let tree = scene.path("tree");
    small_site(&tree, 2);
    let inside = |origin: &Origin| {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &namespace.0]).arg(binary("syncd-origin"));
        command.arg("serve").arg("--tree").arg(&tree).arg("--data").arg(&origin.data);
        command.args(["--listen", "127.0.0.1:0"]);
        command
    };
    let origins = ["first", "second"].map(|name| Origin::create_named(&scene, name, &tree));
    let _daemons = [0, 1].map(|i| {
        let name = format!("serve-{i}");
        let daemon = syncd_tests::Daemon::start(&mut inside(&origins[i]), scene.directory(), &name);
        wait::until("it to serve", || origins[i].try_status().filter(|status| status.state == "ready"));
        if i == 1 {
            assert!(daemon.log().contains("8874"), "a warning names the port:\n{}", daemon.log());
        }
        daemon
    });
    assert_eq!(origins[0].status().http_address.as_deref(), Some("127.0.0.1:8874"));
    assert_eq!(origins[1].status().http_address, None);
}

struct Namespace(String);

impl Namespace {
    fn new(name: &str) -> Self {
        tool("ip", ["netns", "add", name]);
        tool("ip", ["-n", name, "link", "set", "lo", "up"]);
        Self(name.to_string())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

#[test]
fn a_symlink_that_leaves_the_tree_is_refused_where_the_operator_wants_that() {
    let scene = Scene::new("symlinks");
    let tree = scene.path("tree");
    small_site(&tree, 5);
    let mut origin =
        Origin::create(&scene, &tree).with_options(&["--trigger", "manual", "--symlinks", "inside"]);
    origin.start();
    origin.cli("commit", &[]).expect_refusal(&["dangling"]);
    fs::remove_file(tree.join("dangling")).expect("remove");
    assert_eq!(origin.commit(), 1);
}

#[test]
fn a_fresh_checkout_keeps_times_where_the_operator_wants_that() {
    let scene = Scene::new("mtime-keep");
    let tree = scene.path("tree");
    small_site(&tree, 30);
    let mut origin = Origin::create(&scene, &tree).with_options(&["--trigger", "manual", "--mtime", "keep"]);
    origin.start();
    let agent = Agent::started(&scene, &origin, "web1");
    origin.wait_connected(&["web1"]);
    origin.commit_live();
    let before =
        fs::metadata(agent.live().join("section-1/page-1.html")).and_then(|m| m.modified()).expect("a time");
    // The same content with new times everywhere, and one real change.
    let args = ["-exec", "touch", "-h", "{}", "+"].map(OsString::from);
    tool("find", [tree.clone().into_os_string()].into_iter().chain(args));
    write(&tree, "index.html", "changed");
    origin.commit_live();
    let after =
        fs::metadata(agent.live().join("section-1/page-1.html")).and_then(|m| m.modified()).expect("a time");
    assert_eq!(before, after);
    let diff = origin.cli("diff", &["1", "2"]).expect_success().stdout;
    assert!(diff.contains("index.html") && !diff.contains("page-1.html"), "{diff}");
}
