//! The keys of a tree through the real command line: replaced while everybody serves, lost, and stolen.

use std::path::PathBuf;
use std::process::Command;

use syncd_tests::edits::{small_site, write};
use syncd_tests::oracle::assert_same;
use syncd_tests::process::run;
use syncd_tests::{Agent, Origin, Scene, WrongClock, binary, wait};

fn site(name: &str) -> (Scene, Origin) {
    let scene = Scene::new(name);
    let tree = scene.path("tree");
    small_site(&tree, 20);
    let origin = Origin::started(&scene, &tree);
    origin.commit();
    (scene, origin)
}

/// Moves the root key off the origin's machine, as `init` says.
fn move_root_key(scene: &Scene, origin: &Origin) -> PathBuf {
    let safe = scene.path("safe");
    std::fs::create_dir_all(&safe).expect("make a directory");
    std::fs::rename(origin.data.join("root.key"), safe.join("root.key")).expect("move the root key");
    safe.join("root.key")
}

fn sign(origin: &Origin, root: &std::path::Path) {
    let root = root.to_str().expect("a path as text");
    origin.cli("key", &["sign", "--root-key", root]).expect_success();
}

fn keys(origin: &Origin) -> serde_json::Value {
    origin.cli("key", &["show", "--json"]).expect_success().json()
}

/// Number of the agent's trust document.
fn trust(agent: &Agent) -> Option<u64> {
    let outcome = agent.cli("status", &["--json"]);
    (outcome.code == Some(0)).then(|| outcome.json()["trust"].as_u64()).flatten()
}

#[track_caller]
fn follows(agent: &Agent, origin: &Origin, number: u64) {
    wait::until("the agent to follow the trust document", || (trust(agent) == Some(number)).then_some(()));
    write(&origin.tree, "index.html", format!("under document {number} for {}", agent.name));
    let generation = origin.commit_live();
    agent.wait_live(generation);
    assert_same(&origin.tree, &agent.live());
}

#[test]
fn a_signing_key_is_replaced_and_nodes_follow_without_joining_again() {
    let (scene, mut origin) = site("keys-signing");
    let root = move_root_key(&scene, &origin);
    let mut near = Agent::started(&scene, &origin, "near");
    let mut away = Agent::started(&scene, &origin, "away");
    origin.wait_connected(&["near", "away"]);
    let before = origin.commit_live();
    away.stop();
    let old = keys(&origin);
    let document = origin.cli("key", &["rotate", "--signing"]).expect_success();
    assert!(document.stdout.starts_with("# syncd: trust document 2"), "{document:#?}");
    assert_eq!(keys(&origin)["pending"]["number"], 2);
    assert_eq!(keys(&origin)["trust"], old["trust"], "nothing has changed yet");
    sign(&origin, &root);
    let new = keys(&origin);
    assert_eq!((&new["trust"]["number"], &new["pending"]), (&2.into(), &serde_json::Value::Null));
    assert_ne!(new["trust"]["signing_key"], old["trust"]["signing_key"]);
    assert_eq!(new["trust"]["authority"], old["trust"]["authority"]);
    // The tree was signed again under the next number, so that a node that joins now can take it.
    // It is past all that the former key could sign.
    assert_eq!(new["trust"]["first_number"], 1_000_000_001);
    let again = origin.wait_generation(1_000_000_001);
    assert!(before < again);
    let late = Agent::started(&scene, &origin, "late");
    late.wait_live(again);
    assert_same(&origin.tree, &late.live());
    follows(&near, &origin, 2);
    away.start();
    follows(&away, &origin, 2);
    near.restart();
    assert_eq!(wait::until("near to answer", || trust(&near)), 2, "it is kept");
    // And after a restart of the origin, with a root key that is not there.
    origin.stop();
    origin.start();
    origin.wait_connected(&["near", "away"]);
    follows(&near, &origin, 2);
}

#[test]
fn a_signing_key_replaced_on_a_restored_copy_leads_nodes_that_know_more() {
    let (scene, mut origin) = site("keys-restored");
    let root = move_root_key(&scene, &origin);
    let agent = Agent::started(&scene, &origin, "web1");
    origin.wait_connected(&["web1"]);
    let copy = scene.path("copy");
    origin.cli("backup", &[copy.to_str().expect("a path as text")]).expect_success();
    for edit in ["one", "two", "three"] {
        write(&origin.tree, "index.html", edit);
        let generation = origin.commit_live();
        agent.wait_live(generation);
    }
    origin.stop();
    std::fs::rename(&origin.data, scene.path("lost")).expect("lose the data");
    std::fs::rename(&copy, &origin.data).expect("restore the copy");
    origin.cli("key", &["rotate", "--signing"]).expect_success();
    sign(&origin, &root);
    origin.start();
    origin.wait_connected(&["web1"]);
    follows(&agent, &origin, 2);
}

#[test]
fn a_copy_that_lost_a_trust_document_makes_one_past_those_that_nodes_know() {
    let (scene, mut origin) = site("keys-lost-document");
    let root = move_root_key(&scene, &origin);
    let agent = Agent::started(&scene, &origin, "web1");
    origin.wait_connected(&["web1"]);
    let copy = scene.path("copy");
    origin.cli("backup", &[copy.to_str().expect("a path as text")]).expect_success();
    origin.cli("key", &["rotate", "--signing"]).expect_success();
    sign(&origin, &root);
    follows(&agent, &origin, 2);
    origin.stop();
    std::fs::rename(&origin.data, scene.path("lost")).expect("lose the data");
    std::fs::rename(&copy, &origin.data).expect("restore the copy");
    // Without its nodes, the origin can only ask.
    let alone = origin.cli("key", &["rotate"]).expect_success();
    assert!(alone.stderr.contains("--after") && alone.stdout.contains("trust document 2 "), "{alone:#?}");
    origin.start();
    origin.wait_connected(&["web1"]);
    wait::until("the agent to say what to do", || {
        agent.try_status().and_then(|status| status.error).filter(|error| error.contains("key rotate"))
    });
    let rotated = origin.cli("key", &["rotate", "--signing"]).expect_success();
    assert!(rotated.stderr.contains("trust document 2 is not in this copy"), "{rotated:#?}");
    let file = root.to_str().expect("a path as text");
    origin
        .cli("key", &["sign", "--root-key", file])
        .expect_refusal(&["follows 1 with a gap", "--skip-numbers"]);
    let signed = origin.cli("key", &["sign", "--root-key", file, "--skip-numbers"]).expect_success();
    let changes = signed.stderr.lines().filter(|line| line.contains("(new; before: ")).count();
    assert_eq!(changes, 4, "both keys, and where they count: {signed:#?}");
    follows(&agent, &origin, 3);
}

/// The program reads the passphrase on a terminal that `script` makes.
#[test]
fn an_interrupt_at_the_question_for_a_passphrase_leaves_the_terminal_as_it_was() {
    use std::io::{Read, Write};
    let scene = Scene::new("keys-terminal");
    let (program, data) = (binary("syncd-origin"), scene.path("origin"));
    let command = format!("{} init --data {}; echo code $?; stty -a", program.display(), data.display());
    let mut script = Command::new("script");
    script.args(["--quiet", "--command", &command, "/dev/null"]);
    script.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut script = script.spawn().expect("start script, of the package bsdutils");
    let (mut keys, mut screen) = (script.stdin.take().expect("piped"), script.stdout.take().expect("piped"));
    let mut shown = Vec::new();
    let mut byte = [0];
    while !String::from_utf8_lossy(&shown).contains("(empty: none): ") {
        assert_eq!(
            screen.read(&mut byte).expect("read the terminal"),
            1,
            "{}",
            String::from_utf8_lossy(&shown)
        );
        shown.push(byte[0]);
    }
    keys.write_all(b"secret\x03").expect("type");
    keys.flush().expect("type");
    let mut rest = Vec::new();
    screen.read_to_end(&mut rest).expect("read the terminal");
    let rest = String::from_utf8_lossy(&rest);
    assert!(rest.contains("nothing was done") && rest.contains("code 1"), "{rest}");
    assert!(!rest.contains("secret"), "{rest}");
    for setting in ["echo", "isig", "icanon"] {
        assert!(rest.split_whitespace().any(|word| word == setting), "{setting}: {rest}");
    }
    assert!(!data.join("keys").exists());
    script.wait().expect("script ends");
}

#[test]
fn an_authority_is_replaced_offline_and_nodes_renew_by_themselves() {
    let (scene, mut origin) = site("keys-authority");
    let root = move_root_key(&scene, &origin);
    let near = Agent::started(&scene, &origin, "near");
    let mut away = Agent::started(&scene, &origin, "away");
    let mut lost = Agent::started(&scene, &origin, "lost");
    origin.wait_connected(&["near", "away", "lost"]);
    origin.commit_live();
    away.stop();
    lost.stop();
    let token = origin.token();
    // The document travels to the machine of the root key, and back.
    let document = origin.cli("key", &["rotate", "--authority"]).expect_success();
    let (file, signed) = (scene.path("document"), scene.path("signed"));
    std::fs::write(&file, &document.stdout).expect("write the document");
    let mut there = Command::new(binary("syncd-origin"));
    there.args(["key", "--data"]).arg(scene.path("another machine"));
    let outcome = run(there.args(["sign", "--root-key"]).arg(&root).arg(&file)).expect_success();
    let changes: Vec<&str> = outcome.stderr.lines().filter(|line| line.contains("(new; before: ")).collect();
    assert!(changes.len() == 1 && changes[0].contains("authority"), "it shows what changes: {outcome:#?}");
    std::fs::write(&signed, &outcome.stdout).expect("write the signed document");
    let unsigned = origin.cli("key", &["take", file.to_str().expect("text")]);
    unsigned.expect_refusal(&["not signed"]);
    origin.cli("key", &["take", signed.to_str().expect("text")]).expect_success();
    assert_eq!(keys(&origin)["earlier_authorities"], 1);
    follows(&near, &origin, 2);
    // Nodes that were away trust no certificate that the origin shows now, and ask for the document.
    away.start();
    follows(&away, &origin, 2);
    Agent::new(&scene, "late").join(origin.address(), &token).expect_success();
    // The first authority was stolen: none of its certificates counts any more.
    origin.cli("key", &["rotate", "--retire"]).expect_success();
    sign(&origin, &root);
    assert_eq!(keys(&origin)["earlier_authorities"], 0);
    follows(&near, &origin, 3);
    lost.start();
    wait::until("the node of the retired authority to say so", || {
        lost.try_status().and_then(|status| status.error).filter(|error| error.contains("join again"))
    });
    lost.join(origin.address(), &origin.token()).expect_refusal(&["revoke"]);
    origin.cli("revoke", &["lost"]).expect_success();
    lost.join(origin.address(), &origin.token()).expect_success();
    follows(&lost, &origin, 3);
    origin.stop();
}

/// Nodes that the origin's status has a note for.
fn nodes_with_note(origin: &Origin, words: &str) -> Vec<String> {
    let status = origin.cli("status", &["--json"]).expect_success().json();
    let has_note = |agent: &&serde_json::Value| agent["notes"].to_string().contains(words);
    let agents = status["agents"].as_array().expect("a list").iter().filter(has_note);
    agents.map(|agent| agent["name"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn a_lost_root_key_is_replaced_and_pinned_on_each_node() {
    let (scene, origin) = site("keys-root");
    let mut agent = Agent::started(&scene, &origin, "web1");
    let mut stopped = Agent::started(&scene, &origin, "web2");
    origin.wait_connected(&["web1", "web2"]);
    stopped.stop();
    std::fs::remove_file(origin.data.join("root.key")).expect("lose the root key");
    origin.cli("key", &["rotate", "--root", "--signing"]).expect_success();
    let root = move_root_key(&scene, &origin);
    sign(&origin, &root);
    let print = keys(&origin)["root_key"].as_str().expect("a fingerprint").to_owned();
    wait::until("the agent to say what to do", || {
        agent.try_status().and_then(|status| status.error).filter(|error| error.contains("syncd-agent trust"))
    });
    assert_eq!(trust(&agent), Some(1));
    let need = || nodes_with_note(&origin, &format!("syncd-agent trust {print}"));
    assert_eq!(need(), ["web1", "web2"], "also one that is away");
    agent.cli("trust", &["00"]).expect_code(2);
    let wrong = agent.cli("trust", &[&"0".repeat(64)]).expect_success();
    assert!(
        wrong.stderr.contains("warning: trust document 2, which the origin shows, is of another"),
        "{wrong:#?}"
    );
    let right = agent.cli("trust", &[&print]).expect_success();
    assert!(right.stderr.contains("trust document 2 of the origin is of this root key"), "{right:#?}");
    wait::until("one node to be left", || (need() == ["web2"]).then_some(()));
    stopped.cli("trust", &[&print]).expect_success();
    stopped.start();
    wait::until("no node to be left", || need().is_empty().then_some(()));
    origin.wait_connected(&["web1", "web2"]);
    follows(&agent, &origin, 2);
    follows(&stopped, &origin, 2);
    agent.restart();
    follows(&agent, &origin, 2);
}

#[test]
fn a_root_key_with_a_passphrase_signs_with_it_alone() {
    let scene = Scene::new("keys-passphrase");
    let tree = scene.path("tree");
    small_site(&tree, 5);
    let origin = Origin::existing(&scene, "origin", &tree);
    let (right, wrong) = (scene.path("right"), scene.path("wrong"));
    std::fs::write(&right, "correct horse\n").expect("write");
    std::fs::write(&wrong, "battery staple\n").expect("write");
    let (right, wrong) = (right.to_str().expect("text"), wrong.to_str().expect("text"));
    let init = origin.cli("init", &["--root-passphrase-file", right]).expect_success();
    assert!(init.stderr.contains("root.key. Move it off this machine"), "{init:#?}");
    // Without a serving origin, too.
    origin.cli("key", &["rotate"]).expect_success();
    let root = origin.data.join("root.key");
    let root = root.to_str().expect("text");
    origin.cli("key", &["sign", "--root-key", root]).expect_refusal(&["--root-passphrase-file"]);
    let guess = ["sign", "--root-key", root, "--root-passphrase-file", wrong];
    origin.cli("key", &guess).expect_refusal(&["passphrase does not open"]);
    assert_eq!(keys(&origin)["trust"]["number"], 1);
    origin.cli("key", &["sign", "--root-key", root, "--root-passphrase-file", right]).expect_success();
    assert_eq!(keys(&origin)["trust"]["number"], 2);
    origin.cli("key", &["sign", "--root-key", root]).expect_refusal(&["key rotate"]);
}

#[test]
fn certificates_of_origin_and_authority_are_extended_long_before_their_end() {
    let (scene, mut origin) = site("keys-clock");
    let clock = WrongClock::new(&scene);
    let mut agent = Agent::started(&scene, &origin, "web1");
    origin.wait_connected(&["web1"]);
    origin.commit_live();
    let before = keys(&origin);
    let ends = |keys: &serde_json::Value, which: &str| keys[which].as_str().expect("a date").to_owned();
    agent.stop();
    origin.stop();
    // Seven years later: two thirds of the authority's life.
    let later = clock.prefix(7 * 365);
    origin.under(&later);
    origin.start();
    agent.under(&later);
    agent.start();
    let after = keys(&origin);
    for which in ["authority_ends", "certificate_ends"] {
        assert!(ends(&after, which) > ends(&before, which), "{which}: {before} {after}");
    }
    assert_eq!(after["trust"], before["trust"], "no signature is needed");
    origin.wait_connected(&["web1"]);
    follows(&agent, &origin, 1);
    // The date warns, and nothing stops.
    agent.daemon().wait_logged("should have been replaced");
    origin.daemon().wait_logged("should have been replaced");
}
