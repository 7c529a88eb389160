//! Every row of "Bad input": a clear error of one line that names the next step, exit code 1, and no damage.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use syncd_tests::edits::{remove, small_site, write};
use syncd_tests::mounts::Mount;
use syncd_tests::oracle::{assert_same, fingerprint};
use syncd_tests::process::{Outcome, run_within, tool};
use syncd_tests::{Agent, Origin, Scene, binary, is_root, require_program, require_root, wait};

const QUICK: Duration = Duration::from_secs(30);

/// Runs `serve`, which must end on its own.
#[track_caller]
fn refused_serve(origin: &Origin, more: &[&str]) -> Outcome {
    run_within(origin.serve_command().args(more), QUICK)
}

/// Runs `run`, which must end on its own.
#[track_caller]
fn refused_run(agent: &Agent) -> Outcome {
    run_within(&mut agent.run_command(), QUICK)
}

fn site(name: &str) -> (Scene, Origin) {
    let scene = Scene::new(name);
    let tree = scene.path("tree");
    small_site(&tree, 40);
    let origin = Origin::started(&scene, &tree);
    origin.commit();
    (scene, origin)
}

#[test]
fn a_missing_tree_with_an_empty_store() {
    let scene = Scene::new("missing-tree");
    let mut origin = Origin::create(&scene, &scene.path("nowhere"));
    refused_serve(&origin, &[]).expect_refusal(&["nowhere", "--tree|create|mount"]);
    // A file is not a tree either.
    fs::write(scene.path("nowhere"), "a file").expect("write");
    refused_serve(&origin, &[]).expect_refusal(&["nowhere", "directory"]);
    // Nothing is damaged: with a tree it works.
    remove(&scene.path("nowhere"));
    small_site(&origin.tree, 5);
    origin.start();
    assert_eq!(origin.commit(), 1);
}

#[test]
fn a_configuration_is_refused_before_the_origin_is_started_with_it() {
    let scene = Scene::new("config-check");
    let (tree, file) = (scene.path("tree"), scene.path("origin.toml"));
    let check = |text: &str| {
        fs::write(&file, text.replace("TREE", &tree.display().to_string())).expect("write");
        let mut command = Command::new(binary("syncd-origin"));
        run_within(command.args(["config", "check", "--config"]).arg(&file), QUICK)
    };
    check("tree = 'TREE'").expect_refusal(&["tree", "missing", "create or mount"]);
    fs::create_dir(&tree).expect("make the tree");
    check("tree = 'TREE'").expect_success();
    for (text, words) in [
        ("[rollout.x]\nholt = '1s'", ["rollout.x", "holt", "steps, flip, hold"]),
        ("[rollout.x]\nsteps = [ { nodes = 1 } ]", ["origin.toml", "rollout.x", "rest = true"]),
        ("[rollout]\ndefault = 'careful'", ["no rollout policy", "careful", "together"]),
        ("git-ref = 'main'", ["--git-ref", "need", "--trigger git"]),
    ] {
        check(&format!("tree = 'TREE'\n{text}")).expect_refusal(&words);
    }
    let warned = check("tree = 'TREE'\n[rollout.x]\nsteps = [ { nodes = 1 }, { rest = true } ]");
    assert!(warned.expect_success().stderr.contains("[rollout.x] holds without a check"));
    // Commands come from no file that others can write.
    for text in ["purge = 'true'", "[rollout.x]\ncheck = 'true'"] {
        check(&format!("tree = 'TREE'\n{text}")).expect_success();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).expect("chmod");
        check(&format!("tree = 'TREE'\n{text}")).expect_refusal(&["origin.toml", "others", "chmod go-w"]);
        let mut serve = Command::new(binary("syncd-origin"));
        serve.args(["serve", "--config"]).arg(&file).arg("--data").arg(scene.path("data"));
        run_within(&mut serve, QUICK).expect_refusal(&["origin.toml", "others", "chmod go-w"]);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("chmod");
    }
}

#[test]
fn a_missing_tree_with_generations_is_held() {
    let (_scene, mut origin) = site("held");
    origin.stop();
    let aside = origin.tree.with_extension("aside");
    fs::rename(&origin.tree, &aside).expect("rename");
    origin.start();
    let status = origin.status();
    assert_eq!((status.state.as_str(), status.generation), ("held", Some(1)), "{status:?}");
    origin.cli("commit", &[]).expect_refusal(&["tree"]);
    fs::rename(&aside, &origin.tree).expect("rename");
    write(&origin.tree, "index.html", "back");
    assert_eq!(origin.commit(), 2);
}

#[test]
fn a_tree_that_lost_most_of_itself_is_held() {
    let (_scene, origin) = site("mass-deletion");
    for section in 0..12 {
        remove(&origin.tree.join(format!("section-{section}")));
    }
    origin.cli("commit", &[]).expect_refusal(&["--allow-mass-deletion"]);
    let status = origin.status();
    assert_eq!((status.state.as_str(), status.generation), ("held", Some(1)), "{status:?}");
    origin.cli("commit", &["--allow-mass-deletion"]).expect_success();
    assert_eq!(origin.status().generation, Some(2));
}

#[test]
fn an_unreadable_tree_or_file() {
    let scene = Scene::new("unreadable");
    let tree = scene.path("tree");
    small_site(&tree, 20);
    let mut origin = Origin::create(&scene, &tree);
    if is_root() {
        // Root can read everything, so `serve` runs as another user.
        for path in [scene.directory(), origin.data.as_path(), &tree] {
            tool("chown", ["-R", "nobody:nogroup", &path.display().to_string()]);
        }
        let program = scene.path("syncd-origin");
        fs::copy(binary("syncd-origin"), &program).expect("copy the program");
        let account = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"];
        origin.under(&account.map(Into::into));
    }
    let mode =
        |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    mode(&tree, 0o000);
    refused_serve(&origin, &[]).expect_refusal(&["tree", "permission|read|access"]);
    mode(&tree, 0o755);
    origin.start();
    let file = tree.join("section-1/page-1.html");
    mode(&file, 0o000);
    let refused = origin.cli("commit", &[]).expect_refusal(&["page-1.html"]);
    println!("{}", refused.stderr);
    mode(&file, 0o644);
    assert_eq!(origin.commit(), 1);
    // The last generation stays when a later scan cannot read a file.
    write(&tree, "section-1/page-1.html", "changed");
    mode(&file, 0o000);
    origin.cli("commit", &[]).expect_refusal(&["page-1.html"]);
    assert_eq!(origin.status().generation, Some(1));
    mode(&file, 0o644);
}

#[test]
fn a_data_directory_of_another_format() {
    let (scene, mut origin) = site("format");
    origin.stop();
    let format = origin.data.join("format");
    let text = fs::read_to_string(&format).expect("the format file");
    fs::write(&format, text.replacen('1', "99", 1)).expect("write the format");
    let before = fingerprint(&origin.data);
    refused_serve(&origin, &[]).expect_refusal(&["format", "99"]);
    assert_eq!(fingerprint(&origin.data), before, "nothing was changed");
    fs::write(&format, text).expect("restore the format");
    origin.start();
    assert_eq!(origin.status().generation, Some(1));

    // A directory that is not a data directory.
    let foreign = scene.new_directory("foreign");
    write(&foreign, "precious.txt", "precious");
    let before = fingerprint(&foreign);
    let mut command = origin.serve_command();
    command.arg("--data").arg(&foreign);
    let outcome = run_within(&mut command, QUICK);
    assert!(outcome.code == Some(1) || outcome.code == Some(2), "{outcome:#?}");
    let init = run_within(Command::new(binary("syncd-origin")).args(["init", "--data"]).arg(&foreign), QUICK);
    init.expect_refusal(&["foreign", "empty"]);
    assert_eq!(fingerprint(&foreign), before);
}

#[test]
fn a_data_directory_that_was_never_initialised() {
    let scene = Scene::new("uninitialised");
    let data = scene.path("nothing");
    for subcommand in ["status", "token", "commit", "history", "check"] {
        let outcome =
            run_within(Command::new(binary("syncd-origin")).args([subcommand, "--data"]).arg(&data), QUICK);
        outcome.expect_refusal(&["init"]);
        assert!(!data.exists(), "{subcommand} made the directory");
    }
}

#[test]
fn a_data_directory_held_by_another_process() {
    let (_scene, origin) = site("data-held");
    refused_serve(&origin, &[]).expect_refusal(&["held|in use|running", "stop|pid|process"]);
    assert_eq!(origin.status().state, "ready", "the holder is not disturbed");
}

#[test]
fn a_port_in_use() {
    let (_scene, mut origin) = site("port");
    origin.stop();
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = taken.local_addr().expect("an address").to_string();
    let mut command = origin.command("serve", &["--tree"]);
    command.arg(&origin.tree).args(["--listen", &address, "--http", "127.0.0.1:0"]);
    run_within(&mut command, QUICK).expect_refusal(&[&address, "--listen|in use"]);
    let mut command = origin.command("serve", &["--tree"]);
    command.arg(&origin.tree).args(["--listen", "127.0.0.1:0", "--http", &address]);
    run_within(&mut command, QUICK).expect_refusal(&[&address, "--http|in use"]);
    origin.start();
    assert_eq!(origin.status().generation, Some(1));
}

#[test]
fn an_agents_port_in_use() {
    let (scene, origin) = site("agent-port");
    let agent = Agent::joined(&scene, &origin, "web1");
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = taken.local_addr().expect("an address").to_string();
    let mut command = agent.command("run", &["--http", &address]);
    run_within(&mut command, QUICK).expect_refusal(&[&address, "--http|in use"]);
}

#[test]
fn an_unreachable_origin() {
    let (scene, origin) = site("unreachable");
    let token = origin.token();
    let free = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("an address").to_string();
    let agent = Agent::new(&scene, "web1");
    agent.join(&free, &token).expect_refusal(&[&free, "reach|connect"]);
    agent.join("no-such-host.invalid:1", &token).expect_refusal(&["no-such-host.invalid"]);
    let outcome = agent.join("not an address", &token);
    assert!(outcome.code == Some(1) || outcome.code == Some(2), "{outcome:#?}");
    agent.join(origin.address(), &token).expect_success();
}

#[test]
fn a_wrong_origin() {
    let (scene, origin) = site("wrong");
    let tree = scene.path("other-tree");
    small_site(&tree, 9);
    let mut other = Origin::create_named(&scene, "other", &tree);
    other.start();
    other.commit();
    let mut agent = Agent::joined(&scene, &origin, "web1");
    agent.start();
    agent.wait_live(1);
    let before = fingerprint(&agent.live());
    agent.stop();
    agent = agent.with_options(&["--origin", other.address()]);
    agent.start();
    let status = wait::until("the agent to say so", || agent.try_status().filter(|s| s.error.is_some()));
    println!("{status:?}");
    assert!(!status.connected);
    assert_eq!((agent.live_generation(), fingerprint(&agent.live())), (Some(1), before));
    assert!(other.status().agents.is_empty(), "{:?}", other.status());
}

#[test]
fn an_agent_that_never_joined() {
    let scene = Scene::new("not-joined");
    let agent = Agent::new(&scene, "web1");
    refused_run(&agent).expect_refusal(&["join"]);
    agent.cli("status", &[]).expect_refusal(&["join"]);
    agent.cli("verify", &[]).expect_refusal(&["join"]);
}

#[test]
fn a_replica_root_that_holds_someone_elses_files() {
    let (scene, origin) = site("foreign-root");
    let agent = Agent::new(&scene, "web1");
    write(&agent.root, "precious/data.txt", "precious");
    write(&agent.root, "index.html", "an old site");
    let before = fingerprint(&agent.root);
    agent.join(origin.address(), &origin.token()).expect_refusal(&["web1", "empty|--root|files"]);
    assert_eq!(fingerprint(&agent.root), before, "nothing was touched");
}

#[test]
fn a_live_that_is_a_real_directory_with_content() {
    let (scene, origin) = site("real-live");
    let fresh = Agent::new(&scene, "web1");
    write(&fresh.root, "live/index.html", "the site as it was");
    let before = fingerprint(&fresh.root);
    fresh.join(origin.address(), &origin.token()).expect_refusal(&["live", "move|empty"]);
    assert_eq!(fingerprint(&fresh.root), before, "nothing was touched");

    // The same in the root of an agent that has joined.
    let mut agent = Agent::started(&scene, &origin, "web2");
    agent.wait_live(1);
    agent.stop();
    remove(&agent.live());
    write(&agent.live(), "index.html", "someone's directory");
    let before = fingerprint(&agent.live());
    refused_run(&agent).expect_refusal(&["live", "move"]);
    assert_eq!(fingerprint(&agent.live()), before, "nothing was touched");
    remove(&agent.live());
    agent.start();
    agent.wait_live(1);
    assert_same(&origin.tree, &agent.live());
}

/// Unmounts a file system at the end of a test.
struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn a_file_system_that_can_not_exchange_directories() {
    require_root("it mounts a file system");
    let (scene, origin) = site("no-exchange");
    let [below, above] = ["below", "above"].map(|name| scene.new_directory(name));
    // FUSE hands RENAME_EXCHANGE to its daemon, and this one refuses it.
    require_program("bindfs", "bindfs");
    tool("bindfs", [&below, &above]);
    let _mounted = Unmount(&above);
    let agent = Agent::new(&scene, "web1").at(&above.join("web1")).with_options(&["--swap", "exchange"]);
    agent.join(origin.address(), &origin.token()).expect_success();
    refused_run(&agent).expect_refusal(&["--swap exchange", "RENAME_EXCHANGE", "fuse", "--swap link"]);
    assert!(!agent.live().exists() && !agent.live().is_symlink(), "nothing is live");
    assert_eq!(fs::read_dir(agent.root.join("staging")).expect("staging").count(), 0, "nothing was left");
}

#[test]
fn two_agents_on_one_root() {
    let (scene, origin) = site("two-agents");
    let agent = Agent::started(&scene, &origin, "web1");
    agent.wait_live(1);
    refused_run(&agent).expect_refusal(&["web1|in use", "pid|in use"]);
    assert!(agent.status().connected, "the first is not disturbed");
}

#[test]
fn staging_on_another_file_system() {
    require_root("it mounts a file system");
    let (scene, origin) = site("other-file-system");
    let mut agent = Agent::joined(&scene, &origin, "web1");
    let mount = Mount::tmpfs(&agent.root.join("staging"), 8);
    refused_run(&agent).expect_refusal(&["staging", "another file system"]);
    drop(mount);
    agent.start();
    agent.wait_live(1);
}

#[test]
fn data_and_tree_inside_each_other() {
    let (scene, mut origin) = site("overlap");
    origin.stop();
    let (data, tree) = (origin.data.clone(), origin.tree.clone());
    let refused = |data: &Path, tree: &Path, words: &[&str]| {
        let mut command = Command::new(binary("syncd-origin"));
        command.arg("serve").arg("--tree").arg(tree).arg("--data").arg(data).env_remove("SYNCD_DATA");
        run_within(command.args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]), QUICK)
            .expect_refusal(words);
    };
    fs::create_dir(data.join("site")).expect("create a directory");
    refused(&data, &data.join("site"), &["inside the data directory", "--tree"]);
    fs::remove_dir(data.join("site")).expect("remove it");
    let before = fingerprint(&data);
    refused(&data, scene.directory(), &["inside the content tree", "--data"]);
    if is_root() {
        let shown = Mount::bind(&data.join("keys"), &tree.join("uploads"));
        refused(&data, &tree, &["uploads", "shows the data directory"]);
        drop(shown);
        remove(&tree.join("uploads"));
        let elsewhere = Mount::bind(scene.directory(), &scene.directory().with_extension("bound"));
        refused(&data, elsewhere.directory(), &["inside the content tree"]);
        let point = elsewhere.directory().to_path_buf();
        drop(elsewhere);
        remove(&point);
    }
    assert_eq!(fingerprint(&data), before, "nothing was changed");
    origin.start();
    assert_eq!(origin.commit(), 1);
}

#[test]
fn a_replica_or_a_key_inside_the_tree() {
    let (scene, origin) = site("private");
    let in_tree = origin.tree.join("agent");
    let agent = Agent::new(&scene, "web1").at(&in_tree);
    agent.join(origin.address(), &origin.token()).expect_success();
    // Before the agent runs, only the identity exists.
    origin.cli("commit", &[]).expect_refusal(&[
        "agent/state/identity/identity",
        "private file",
        "move it out",
    ]);
    let mut agent = agent;
    agent.start();
    agent.wait_live(1);
    origin.cli("commit", &[]).expect_refusal(&["agent is the replica of a syncd agent", "move it out"]);
    agent.stop();
    remove(&in_tree);
    fs::copy(origin.data.join("keys/signing.key"), origin.tree.join("notes.txt")).expect("copy a key");
    origin.cli("commit", &[]).expect_refusal(&["notes.txt", "private file"]);
    remove(&origin.tree.join("notes.txt"));
    assert_eq!(origin.commit(), 1, "nothing of it was published");
    // An agent does not create its root inside another one's either.
    let inside = Agent::new(&scene, "web2").at(&origin.data.join("agent"));
    inside.join(origin.address(), &origin.token()).expect_refusal(&["inside", "data directory", "--root"]);
}

#[test]
fn init_twice() {
    let (_scene, mut origin) = site("init-twice");
    origin.stop();
    let before = fingerprint(&origin.data);
    origin.cli("init", &[]).expect_refusal(&["already", "serve|--data"]);
    assert_eq!(fingerprint(&origin.data), before, "nothing was changed");
    origin.start();
    origin.cli("init", &[]).expect_refusal(&["already|held|in use"]);
    assert_eq!(origin.status().generation, Some(1));
}

#[test]
fn commit_or_rollback_with_nothing_serving() {
    let (_scene, mut origin) = site("not-serving");
    origin.stop();
    origin.cli("commit", &[]).expect_refusal(&["serve"]);
    origin.cli("rollback", &["1"]).expect_refusal(&["serve"]);
    origin.start();
    assert_eq!(origin.status().generation, Some(1));
    // The socket that a killed origin left makes no difference.
    origin.kill9();
    origin.cli("commit", &[]).expect_refusal(&["serve"]);
}

#[test]
fn a_generation_that_is_not_there() {
    let (_scene, origin) = site("no-generation");
    origin.cli("rollback", &["77"]).expect_refusal(&["77", "history"]);
    origin.cli("diff", &["77"]).expect_refusal(&["77"]);
    assert_eq!(origin.status().generation, Some(1));
}

#[test]
fn a_full_disk_at_the_agent() {
    let scene = Scene::new("agent-full");
    let tree = scene.path("tree");
    small_site(&tree, 30);
    let origin = Origin::started(&scene, &tree);
    let disk = Mount::tmpfs(&scene.path("disk"), 96);
    let mut agent = Agent::new(&scene, "web1").at(&disk.directory().join("replica"));
    agent.join(origin.address(), &origin.token()).expect_success();
    agent.start();
    origin.wait_connected(&["web1"]);
    let first = origin.commit_live();
    let before = fingerprint(&agent.live());

    let mut noise = syncd_tests::Seeded::new(11);
    for number in 0..12 {
        let mut bytes = noise.bytes(16 * 1024 * 1024);
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = byte.wrapping_add((index >> 9) as u8 ^ number);
        }
        write(&tree, &format!("large/{number}.bin"), bytes);
    }
    let outcome = origin.cli("commit", &["--wait=20s"]).expect_code(3);
    assert!(outcome.stderr.contains("web1"), "{outcome:#?}");
    let said = wait::until("the agent to say so", || agent.try_status().and_then(|s| s.error));
    assert!(said.to_lowercase().contains("space"), "{said}");
    wait::until("the origin to know", || origin.status().agent("web1").error.clone());
    assert_eq!((agent.live_generation(), fingerprint(&agent.live())), (Some(first), before), "the old stays");

    // With space available it converges without help.
    disk.resize(512);
    let number = origin.status().generation.expect("a generation");
    agent.wait_live(number);
    assert_same(&tree, &agent.live());
    syncd_tests::replica::assert_no_litter(&agent);
}

#[test]
fn a_full_disk_at_the_origin() {
    let scene = Scene::new("origin-full");
    let tree = scene.path("tree");
    small_site(&tree, 30);
    let disk = Mount::tmpfs(&scene.path("disk"), 64);
    let mut origin = Origin::create_named(&scene, "disk/data", &tree);
    origin.start();
    let agent = Agent::started(&scene, &origin, "web1");
    origin.wait_connected(&["web1"]);
    let first = origin.commit_live();
    let mut noise = syncd_tests::Seeded::new(13);
    for number in 0..10_u64 {
        let bytes: Vec<u8> = (0..1_250_000).flat_map(|_| noise.next_u64().to_le_bytes()).collect();
        write(&tree, &format!("large/{number}.bin"), bytes);
    }
    origin.cli("commit", &[]).expect_refusal(&["space"]);
    assert_eq!(origin.status().generation, Some(first), "the last generation stands");
    assert_eq!(agent.live_generation(), Some(first));
    disk.resize(512);
    let number = origin.commit_live();
    assert_eq!(number, first + 1);
    assert_same(&tree, &agent.live());
    origin.cli("check", &[]).expect_success();
}
