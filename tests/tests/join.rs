//! Enrolment through the real command line: a third node, tokens, names, certificates, revocation.

use std::process::Command;
use std::time::Duration;

use syncd_tests::edits::{small_site, write};
use syncd_tests::oracle::{assert_same, fingerprint};
use syncd_tests::process::run;
use syncd_tests::{Agent, Origin, Scene, Seeded, WrongClock, binary, http, require_root, wait};

fn site(name: &str) -> (Scene, Origin) {
    let scene = Scene::new(name);
    let tree = scene.path("tree");
    small_site(&tree, 60);
    let origin = Origin::started(&scene, &tree);
    origin.commit();
    (scene, origin)
}

#[test]
fn node_three_is_one_join_and_one_run() {
    let (scene, origin) = site("node-three");
    let _fleet = ["web1", "web2"].map(|name| Agent::started(&scene, &origin, name));
    origin.wait_connected(&["web1", "web2"]);
    write(&origin.tree, "index.html", "live before node three");
    let number = origin.commit_live();

    let mut three = Agent::new(&scene, "web3");
    three.join(origin.address(), &origin.token()).expect_success();
    three.start();
    assert_eq!(three.wait_live(number), number);
    assert_same(&origin.tree, &three.live());
    origin.wait_connected(&["web1", "web2", "web3"]);
    wait::until("the origin to see it live", || {
        (origin.status().agent("web3").generation == Some(number)).then_some(())
    });
}

#[test]
fn a_token_comes_from_a_file_or_the_environment() {
    let (scene, origin) = site("token-sources");
    let file = scene.path("token");
    std::fs::write(&file, format!("{}\n", origin.token())).expect("write a token");
    let join = |name: &str| {
        let mut command = Command::new(binary("syncd-agent"));
        command.args(["join", origin.address(), "--name", name, "--root"]).arg(scene.path(name));
        command
    };
    run(join("web1").arg("--token-file").arg(&file)).expect_success();
    run(join("web2").env("SYNCD_TOKEN", origin.token())).expect_success();
    let outcome = run(&mut join("web3"));
    assert!(outcome.code == Some(2) || outcome.code == Some(1), "a token is needed: {outcome:?}");
    assert!(outcome.stderr.contains("token"), "{outcome:?}");
}

#[test]
fn a_spent_token_is_refused() {
    let (scene, origin) = site("spent");
    let token = origin.token();
    Agent::new(&scene, "web1").join(origin.address(), &token).expect_success();
    Agent::new(&scene, "web2")
        .join(origin.address(), &token)
        .expect_refusal(&["token", "syncd-origin token"]);
    assert!(origin.status().agents.iter().all(|agent| agent.name != "web2"));
}

#[test]
fn a_token_of_two_uses_serves_two() {
    let (scene, origin) = site("uses");
    let token = origin.cli("token", &["--uses", "2"]).expect_success().only_line().to_string();
    for name in ["web1", "web2"] {
        Agent::new(&scene, name).join(origin.address(), &token).expect_success();
    }
    Agent::new(&scene, "web3").join(origin.address(), &token).expect_refusal(&["token"]);
}

#[test]
fn an_expired_token_is_refused() {
    let (scene, origin) = site("expired");
    let token = origin.cli("token", &["--ttl", "1s"]).expect_success().only_line().to_string();
    std::thread::sleep(Duration::from_millis(1500)); // the token's own clock; there is nothing else to wait for
    Agent::new(&scene, "web1")
        .join(origin.address(), &token)
        .expect_refusal(&["token", "syncd-origin token"]);
}

#[test]
fn a_damaged_token_is_refused() {
    let (scene, origin) = site("damaged");
    let token = origin.token();
    let mut guessed = token.clone();
    let last = guessed.pop().expect("a token has letters");
    guessed.push(if last == 'a' { 'b' } else { 'a' });
    for bad in ["nonsense", &token[..token.len() / 2], guessed.as_str()] {
        Agent::new(&scene, "web1").join(origin.address(), bad).expect_refusal(&["token"]);
    }
    // None of that used up the token.
    Agent::new(&scene, "web1").join(origin.address(), &token).expect_success();
}

#[test]
fn a_token_of_another_origin_is_never_sent() {
    let (scene, origin) = site("foreign");
    let other_tree = scene.path("other-tree");
    small_site(&other_tree, 5);
    let mut other = Origin::create_named(&scene, "other", &other_tree);
    other.start();
    let token = other.token();
    Agent::new(&scene, "web1").join(origin.address(), &token).expect_refusal(&["token|origin"]);
    // The secret did not reach the wrong origin, and was not used up at the right one.
    Agent::new(&scene, "web2").join(other.address(), &token).expect_success();
}

#[test]
fn a_taken_name_is_refused_until_it_is_revoked() {
    let (scene, origin) = site("taken");
    let mut first = Agent::started(&scene, &origin, "web1");
    origin.wait_connected(&["web1"]);
    let second = Agent::new(&scene, "web1").at(&scene.path("second"));
    second.join(origin.address(), &origin.token()).expect_refusal(&["web1", "revoke|--name"]);
    assert!(first.daemon().ended().is_none(), "the holder of the name is not disturbed");

    origin.cli("revoke", &["web1"]).expect_success();
    second.join(origin.address(), &origin.token()).expect_success();
}

#[test]
fn a_revoked_agent_is_cut_off_at_once_and_keeps_serving() {
    let (scene, origin) = site("revoked");
    let mut agent = Agent::started(&scene, &origin, "web1");
    origin.wait_connected(&["web1"]);
    let number = origin.commit_live();
    let told = origin.cli("revoke", &["web1"]).expect_success();
    assert!(told.stdout.is_empty() && told.stderr.starts_with("web1 is revoked: "), "{told:#?}");
    wait::until("the stream to be closed", || {
        origin.status().agents.iter().all(|member| member.name != "web1" || !member.connected).then_some(())
    });
    let before = fingerprint(&agent.live());
    write(&origin.tree, "index.html", "not for the revoked");
    origin.commit();
    agent.restart();
    wait::until("the agent to be told", || agent.try_status().filter(|status| status.error.is_some()));
    assert_eq!(agent.live_generation(), Some(number));
    assert_eq!(fingerprint(&agent.live()), before);
    assert!(!agent.status().connected);
    origin.cli("revoke", &["nobody"]).expect_refusal(&["nobody"]);

    // Everywhere that a person looks, not in the log alone.
    let said = "revoked: join again with a new token";
    wait::until("the agent to say so", || {
        let text = agent.cli("status", &[]).expect_success().stdout;
        text.contains(said).then_some(())
    });
    assert_eq!(agent.cli("status", &["--json"]).expect_success().json()["revoked"], true);
    std::fs::remove_file(agent.live().join("index.html")).expect("remove");
    let verified = agent.cli("verify", &[]).expect_code(1);
    assert!(verified.stderr.contains("revoked"), "{verified:#?}");
    agent.join(origin.address(), &origin.token()).expect_success();
    // The damage that could not be healed is healed now, without another `verify`.
    wait::until("the agent to be well", || {
        let status = agent.try_status().filter(|status| status.connected && status.error.is_none());
        status.filter(|_| agent.live().join("index.html").exists())
    });
}

#[test]
fn joining_again_keeps_the_replica() {
    let (scene, origin) = site("rejoin");
    let mut agent = Agent::started(&scene, &origin, "web1");
    origin.wait_connected(&["web1"]);
    let number = origin.commit_live();
    agent.stop();
    let inode = |agent: &Agent| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(agent.live().join("index.html")).expect("stat").ino()
    };
    let before = (fingerprint(&agent.live()), inode(&agent));
    origin.cli("revoke", &["web1"]).expect_success();
    agent.join(origin.address(), &origin.token()).expect_success();
    assert_eq!((fingerprint(&agent.live()), inode(&agent)), before, "nothing was fetched or moved");
    agent.start();
    assert_eq!(agent.wait_live(number), number);
    origin.wait_connected(&["web1"]);
    write(&origin.tree, "index.html", "after joining again");
    let next = origin.commit_live();
    agent.wait_live(next);
    assert_same(&origin.tree, &agent.live());
}

#[test]
fn nothing_is_said_to_a_stranger() {
    let (_scene, origin) = site("stranger");
    // Plain HTTP/2, plain HTTP/1 and noise get nothing, and the fleet continues.
    for hello in [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00"] {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(origin.address()).expect("connect");
        stream.write_all(hello).expect("send");
        stream.shutdown(std::net::Shutdown::Write).expect("half close");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set a timeout");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty() || answer[0] == 0x15, "at most a TLS alert: {answer:?}");
    }
    assert_eq!(origin.status().state, "ready");
}

#[test]
fn two_agents_with_one_certificate_are_seen() {
    let (scene, origin) = site("cloned");
    let mut agent = Agent::started(&scene, &origin, "web1");
    origin.wait_connected(&["web1"]);
    let number = origin.commit_live();
    agent.stop();
    let clone = Agent::new(&scene, "clone");
    syncd_tests::process::tool(
        "cp",
        [std::ffi::OsString::from("-a"), agent.root.clone().into(), clone.root.clone().into()],
    );
    agent.start();
    origin.wait_connected(&["web1"]);
    // Another machine has another boot id, which a mount namespace simulates here.
    require_root("it makes a mount namespace");
    let boot_id = scene.path("boot_id");
    std::fs::write(&boot_id, "6ba7b810-9dad-11d1-80b4-00c04fd430c8\n").expect("write a boot id");
    let script = format!("mount --bind {} /proc/sys/kernel/random/boot_id && exec \"$@\"", boot_id.display());
    let mut clone = clone;
    clone.under(&["unshare", "-m", "sh", "-c", &script, "sh"].map(Into::into));
    clone.start();
    wait::until("the origin to say so", || {
        origin
            .status()
            .agents
            .iter()
            .find(|member| member.name == "web1")
            .filter(|member| !member.notes.is_empty())
            .map(|_| ())
    });
    assert!(agent.live_generation() == Some(number) && clone.live_generation() == Some(number));
}

/// Longer than the life of the authority.
const TEN_YEARS_DAYS: i64 = 3_660;

#[test]
fn a_clock_that_is_off_by_ten_years_stops_nobody_from_serving() {
    let (scene, mut origin) = site("clock");
    let clock = WrongClock::new(&scene);
    let mut agent = Agent::started(&scene, &origin, "web1");
    origin.wait_connected(&["web1"]);
    let mut number = origin.commit_live();
    let says = |agent: &Agent, what: &str| {
        wait::until_ok("the agent to say why", || {
            let error = agent.try_status().and_then(|status| status.error).unwrap_or_default();
            if error.contains(what) { Ok(()) } else { Err(error) }
        });
    };
    for days in [TEN_YEARS_DAYS, -TEN_YEARS_DAYS] {
        // The node's clock: it serves, says what to check, and follows again once the clock is right.
        agent.stop();
        agent.under(&clock.prefix(days));
        let before = fingerprint(&agent.live());
        agent.start();
        says(&agent, "check this machine's clock");
        write(&origin.tree, "index.html", format!("while a node's clock was off by {days} days"));
        origin.commit();
        assert_eq!((agent.live_generation(), fingerprint(&agent.live())), (Some(number), before));
        agent.stop();
        agent.under(&[]);
        agent.start();
        number = origin.status().generation.expect("a generation");
        agent.wait_live(number);
        // The origin's clock: it issues no certificate outside its authority's life, agents serve, numbers of
        // commits continue, and all follow once the clock is right.
        origin.stop();
        origin.under(&clock.prefix(days));
        origin.start();
        write(&origin.tree, "index.html", format!("while the origin's clock was off by {days} days"));
        let next = origin.commit();
        assert!(next > number, "{next} after {number}");
        says(&agent, "does not hold today");
        wait::until("the agent to be told why", || {
            agent.daemon().log().contains("check the clock of the origin's machine").then_some(())
        });
        assert_eq!(agent.live_generation(), Some(number));
        origin.stop();
        origin.under(&[]);
        origin.start();
        agent.wait_live(next);
        assert_same(&origin.tree, &agent.live());
        number = next;
    }
    let log = agent.daemon().log();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn a_fleet_whose_origin_was_down_for_two_months_goes_on_by_itself() {
    let (scene, mut origin) = site("two-months");
    let clock = WrongClock::new(&scene);
    let mut agents = ["web1", "web2"].map(|name| Agent::started(&scene, &origin, name));
    origin.wait_connected(&["web1", "web2"]);
    let number = origin.commit_live();
    agents.iter_mut().for_each(Agent::stop);
    origin.stop();
    // Two months later one node starts long before the origin, and the other one after it.
    let later = clock.prefix(61);
    agents.iter_mut().for_each(|agent| agent.under(&later));
    agents[0].start();
    wait::until("web1 to serve what it has", || {
        agents[0].try_status().filter(|status| status.error.is_some() && status.generation == Some(number))
    });
    origin.under(&later);
    origin.start();
    write(&origin.tree, "index.html", "two months later");
    let next = origin.commit();
    agents[1].start();
    for agent in &agents {
        agent.wait_live(next);
        assert_same(&origin.tree, &agent.live());
    }
    assert_eq!(agents[1].status().error, None);
    // The clocks were wrong from the start: a certificate that is not valid yet is renewed as well.
    agents.iter_mut().for_each(Agent::stop);
    origin.stop();
    agents.iter_mut().for_each(|agent| agent.under(&[]));
    origin.under(&[]);
    origin.start();
    agents.iter_mut().for_each(Agent::start);
    origin.wait_connected(&["web1", "web2"]);
    // Expiry does not free a name.
    origin.stop();
    origin.under(&later);
    origin.start();
    let stranger = Agent::new(&scene, "web1").at(&scene.path("stranger"));
    stranger.join(origin.address(), &origin.token()).expect_refusal(&["web1", "revoke|--name"]);
}

#[test]
fn a_running_agent_that_joins_again_keeps_its_name_and_takes_up_the_new_identity() {
    let (scene, origin) = site("rejoin-running");
    let mut agent = Agent::started(&scene, &origin, "web1");
    origin.wait_connected(&["web1"]);
    let number = origin.commit_live();
    origin.cli("revoke", &["web1"]).expect_success();
    wait::until("the agent to be told", || agent.try_status().filter(|status| status.error.is_some()));
    let token = origin.token();
    let join = |token: &str, options: &[&str]| {
        let mut command = Command::new(binary("syncd-agent"));
        command.args(["join", origin.address(), "--token", token, "--root"]).arg(&agent.root).args(options);
        run(&mut command)
    };
    // Another name needs `--rename`; the refusal does not use up the token.
    join(&token, &["--name", "web2"]).expect_refusal(&["web1", "--rename"]);
    assert_eq!(join(&token, &[]).expect_success().only_line(), "web1");
    origin.wait_connected(&["web1"]);
    assert_eq!(agent.wait_live(number), number);
    let renamed = join(&origin.token(), &["--name", "web2", "--rename"]).expect_success();
    assert!(renamed.stderr.contains("syncd-origin revoke web1"), "{renamed:?}");
    origin.wait_connected(&["web2"]);
    assert_eq!(agent.status().name, "web2");
    origin.cli("revoke", &["web1"]).expect_success();
    write(&origin.tree, "index.html", "under another name");
    agent.wait_live(origin.commit_live());
    assert!(agent.daemon().ended().is_none());
}

#[test]
fn modes_do_not_depend_on_the_umask_and_are_mended() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let mode = |path: &std::path::Path| std::fs::metadata(path).expect("stat").mode() & 0o7777;
    for umask in ["000", "077"] {
        let scene = Scene::new("umask");
        let (tree, data, root) = (scene.path("tree"), scene.path("origin"), scene.path("lib/web1"));
        small_site(&tree, 5);
        if umask == "000" {
            // Created beforehand, accessible to all.
            for directory in [&data, &root] {
                std::fs::create_dir_all(directory).expect("make a directory");
                std::fs::set_permissions(directory, PermissionsExt::from_mode(0o777)).expect("set a mode");
            }
        }
        let script = format!("umask {umask}; exec \"$@\"");
        let under: [std::ffi::OsString; 4] = ["sh", "-c", &script, "sh"].map(Into::into);
        let command = |program: &str| {
            let mut command = Command::new("sh");
            command.args(&under[1..]).arg(binary(program));
            command
        };
        run(command("syncd-origin").args(["init", "--data"]).arg(&data)).expect_success();
        let mut origin = Origin::existing(&scene, "origin", &tree);
        origin.under(&under);
        origin.start();
        let number = origin.commit();
        let mut agent = Agent::new(&scene, "web1").at(&root);
        let token = origin.token();
        run(command("syncd-agent")
            .args(["join", origin.address(), "--name", "web1", "--token", &token, "--root"])
            .arg(&root))
        .expect_success();
        agent.under(&under);
        agent.start();
        agent.wait_live(number);
        for (path, expected) in
            [(data.clone(), 0o700), (data.join("keys"), 0o700), (data.join("keys/ca.key"), 0o600)]
        {
            assert_eq!(mode(&path), expected, "{} under {umask}", path.display());
        }
        for (name, expected) in [
            ("", 0o755),
            ("slots", 0o755),
            ("generations", 0o755),
            ("state", 0o700),
            ("state/identity/identity", 0o600),
        ] {
            assert_eq!(mode(&root.join(name)), expected, "ROOT/{name} under {umask}");
        }
        assert_eq!(mode(&scene.path("lib")) & 0o055, 0o055, "a web server gets through to ROOT");
    }
}

#[test]
fn a_token_comes_with_its_join_command_and_is_listed_and_revoked() {
    let (scene, origin) = site("token-list");
    let made = origin.cli("token", &["--uses", "2"]).expect_success();
    let token = made.only_line().to_string();
    let command = format!("SYNCD_TOKEN={token} syncd-agent join {} --root", origin.address());
    assert!(made.stderr.contains(&command), "{made:?}");
    let listed = origin.cli("token", &["list", "--json"]).expect_success();
    let listed: serde_json::Value = serde_json::from_str(listed.only_line()).expect("JSON");
    assert_eq!(listed["uses_left"], 2);
    let id = listed["id"].as_str().expect("an ID");
    assert!(made.stderr.contains(&format!("token {id}, for 2 agents until ")), "{made:?}");
    origin.cli("token", &["revoke", "nonsense"]).expect_refusal(&["token list"]);
    origin.cli("token", &["revoke", id]).expect_success();
    assert_eq!(origin.cli("token", &["list"]).expect_success().stdout, "");
    Agent::new(&scene, "web1").join(origin.address(), &token).expect_refusal(&["token"]);
    for absurd in ["0s", "500ms", "1500ms", "10years"] {
        let refused = origin.cli("token", &["--ttl", absurd]);
        assert_eq!(refused.code, Some(2), "{refused:?}");
        assert!(refused.stderr.contains("30d"), "{refused:?}");
    }
}

#[test]
fn a_backup_is_served_from_as_it_is_and_keeps_revoked_nodes_out() {
    let (scene, mut origin) = site("backup");
    let mut agents = ["web1", "web2"].map(|name| Agent::started(&scene, &origin, name));
    origin.wait_connected(&["web1", "web2"]);
    let number = origin.commit_live();
    origin.cli("revoke", &["web2"]).expect_success();
    let (running, stopped) = (scene.path("running"), scene.path("stopped"));
    let backup = |origin: &Origin, to: &std::path::Path| {
        origin.cli("backup", &[to.to_str().expect("text")]).expect_success();
    };
    backup(&origin, &running);
    origin.cli("backup", &[running.to_str().expect("text")]).expect_refusal(&["not empty"]);
    let published = origin.tree.join("new/backup");
    origin.cli("backup", &[published.to_str().expect("text")]).expect_refusal(&["inside the content tree"]);
    assert!(!origin.tree.join("new").exists());
    origin.stop();
    backup(&origin, &stopped);
    for copy in [running, stopped] {
        origin.data = copy;
        origin.cli("check", &[]).expect_success();
        origin.start();
        origin.wait_connected(&["web1"]);
        agents[1].restart();
        wait::until("web2 to be refused", || {
            agents[1].try_status().and_then(|status| status.error).filter(|error| error.contains("revoked"))
        });
        write(&origin.tree, "index.html", format!("from {}", origin.data.display()));
        let next = origin.commit();
        assert!(agents[0].wait_live(next) > number);
        assert_same(&origin.tree, &agents[0].live());
        assert_eq!(agents[1].live_generation(), Some(number));
        origin.stop();
    }
}

#[test]
fn a_root_that_keeps_the_web_server_out_is_named_with_the_command() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let mode = |path: &std::path::Path| std::fs::metadata(path).expect("stat").mode() & 0o7777;
    let close = |path: &std::path::Path| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o700)).expect("set a mode");
    };
    let (scene, origin) = site("closed-root");
    let mut agent = Agent::new(&scene, "web1");
    let slots = agent.root.join("slots");
    std::fs::create_dir(&agent.root).expect("make ROOT");
    close(&agent.root);
    let command = format!("chmod 0755 {}", agent.root.display());
    let joined = agent.join(origin.address(), &origin.token()).expect_success();
    assert!(joined.stderr.contains(&command), "{joined:?}");
    let offline = agent.cli("status", &[]).expect_success();
    assert!(offline.stdout.contains(&command), "{offline:?}");

    close(&slots);
    agent.start();
    agent.wait_live(1);
    assert_eq!((mode(&agent.root), mode(&slots)), (0o700, 0o755), "ROOT is the operator's, slots is not");
    assert!(agent.daemon().log().contains(&command), "{}", agent.daemon().log());
    let shown = agent.cli("status", &[]).expect_success().stdout;
    assert!(shown.contains("  warning      only user ") && shown.contains(&command), "{shown}");

    std::fs::set_permissions(&agent.root, PermissionsExt::from_mode(0o755)).expect("set a mode");
    let shown = agent.cli("status", &[]).expect_success().stdout;
    assert!(!shown.contains("warning"), "a mode that was mended is not complained of: {shown}");
}

/// Bytes that the origin has sent for first syncs.
#[track_caller]
fn sent_for_first_syncs(origin: &Origin) -> u64 {
    let address = origin.status().http_address.expect("an address");
    let metrics = String::from_utf8(http::get(&address, "/metrics").expect("an answer").body).expect("text");
    let line = metrics
        .lines()
        .find(|line| line.starts_with("syncd_origin_sent_bytes_total{") && line.contains("kind=\"objects\""));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("{metrics}"))
}

#[test]
fn an_adopted_document_root_is_not_fetched_and_stays_as_it_was() {
    let scene = Scene::new("adopt");
    let tree = scene.path("tree");
    let mut random = Seeded::new(24);
    for number in 0..8 {
        write(&tree, &format!("films/{number}.bin"), random.bytes(500_000));
    }
    write(&tree, "index.html", "of the origin");
    let origin = Origin::started(&scene, &tree);
    let number = origin.commit();

    // It has all but one of the large files: one under another name, all with other times.
    let served = scene.path("served");
    for number in 1..8 {
        let name = if number == 1 { "films/renamed.bin".to_owned() } else { format!("films/{number}.bin") };
        write(&served, &name, std::fs::read(tree.join(format!("films/{number}.bin"))).expect("read"));
    }
    write(&served, "index.html", "edited on this node");
    write(&served, "only-here.html", "precious");
    std::os::unix::fs::symlink("/srv/uploads", served.join("uploads")).expect("link");
    let before = fingerprint(&served);

    let mut agent = Agent::new(&scene, "web1");
    let adopting = agent.join_with(origin.address(), &origin.token(), &["--adopt", &text(&served)]);
    let told = adopting.expect_success().stderr;
    assert!(told.contains("9 files, 3.34 MiB, of") && told.contains("diff -rq"), "{told}");
    assert!(
        told.contains("1 symlink leads out of it") && told.contains("  uploads -> /srv/uploads\n"),
        "{told}"
    );
    agent.start();
    agent.wait_live(number);
    assert_same(&origin.tree, &agent.live());
    assert_eq!(fingerprint(&served), before, "the way back");
    let sent_bytes = sent_for_first_syncs(&origin);
    assert!((500_000..700_000).contains(&sent_bytes), "one large file was missing: {sent_bytes} bytes sent");

    // A replica has its content, and one inside the other is no copy.
    let again = agent.join_with(origin.address(), &origin.token(), &["--adopt", &text(&served)]);
    assert!(again.code == Some(1) && again.stderr.contains("has a replica already"), "{again:?}");
    let inside = Agent::new(&scene, "served/agent");
    let refused = inside.join_with(origin.address(), &origin.token(), &["--adopt", &text(&served)]);
    assert!(refused.code == Some(1) && refused.stderr.contains("overlap"), "{refused:?}");
    assert_eq!(fingerprint(&served), before);
}

fn text(path: &std::path::Path) -> String {
    path.display().to_string()
}
