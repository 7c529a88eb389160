//! The web server's user on the node, who may write where an operator was careless, against the real agent: nothing of
//! what it plants is ever served through a spare, and nothing is written where it points.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use syncd_tests::edits::{small_site, write};
use syncd_tests::oracle::{assert_same, fingerprint};
use syncd_tests::process::tool;
use syncd_tests::{Agent, Origin, Scene, require_root, wait};

/// Runs a shell as www-data.
fn as_web_user(script: &str) -> bool {
    let status = std::process::Command::new("setpriv")
        .args(["--reuid=33", "--regid=33", "--clear-groups", "sh", "-c", script])
        .stderr(std::process::Stdio::null())
        .status();
    status.expect("run setpriv").success()
}

#[track_caller]
fn give(path: &Path) {
    tool("chown", ["-R".into(), "33:33".into(), path.as_os_str().to_os_string()]);
}

fn spares(agent: &Agent) -> Vec<PathBuf> {
    let listed = fs::read_dir(agent.root.join("staging")).expect("list");
    listed
        .filter_map(Result::ok)
        .map(|item| item.path())
        .filter(|path| path.to_string_lossy().contains("spare-"))
        .collect()
}

#[test]
fn what_a_web_user_plants_is_never_served() {
    require_root("it becomes www-data");
    let scene = Scene::new("hostile-web-user");
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(scene.directory(), open).expect("chmod");
    let tree = scene.path("tree");
    small_site(&tree, 60);
    // Published as the web server's own: the careless case in which it may write to all of it.
    give(&tree);
    let outside = scene.new_directory("outside");
    write(&outside, "precious", "untouched");
    let before = fingerprint(&outside);
    let origin = Origin::started(&scene, &tree);
    let first = origin.commit();
    let agent = Agent::started(&scene, &origin, "web1").with_options(&[]);
    agent.wait_live(first);
    let change = |text: &str| {
        write(&origin.tree, "index.html", text);
        give(&origin.tree.join("index.html"));
        origin.commit_live()
    };
    change("two");
    change("three");
    // Staging is the agent's alone: its user can't even look.
    let staging = agent.root.join("staging");
    assert!(!as_web_user(&format!("ls {}", staging.display())), "staging is closed");
    assert!(!as_web_user(&format!("echo x > {}/state/x", agent.root.display())), "so is the state");
    assert!(!as_web_user(&format!("ln -sfn /etc {}/live", agent.root.display())), "so is the root");
    // Every directory of live and of retired trees becomes a way out, and everything is planted with a file.
    let live = agent.live().canonicalize().expect("live");
    let generations = agent.root.join("generations");
    for tree in fs::read_dir(&generations).expect("list").filter_map(Result::ok).map(|item| item.path()) {
        let script = format!(
            "cd {tree} || exit 1; for d in $(find . -mindepth 1 -maxdepth 1 -type d | head -3); do \
             mv $d $d.aside; ln -s {outside} $d; done; echo planted > planted.php; echo evil > index.html.new; \
             find . -type f -name '*.html' | head -5 | while read f; do echo changed > $f.tmp; mv $f.tmp $f; done",
            tree = tree.display(),
            outside = outside.display()
        );
        assert!(as_web_user(&script) || tree != live, "the web user may write to live");
    }
    // The agent goes on: the next generations come through spares and farms, and none has any of it.
    for round in 0..6 {
        change(&format!("round {round}"));
        wait::until_ok("the live tree to be as published", || {
            let difference = syncd_tests::oracle::rsync_differences(&origin.tree, &agent.live());
            if difference.is_empty() { Ok(()) } else { Err(difference) }
        });
        assert_eq!(fingerprint(&outside), before, "written outside the root");
        assert!(!agent.live().join("planted.php").exists());
    }
    assert_same(&origin.tree, &agent.live());
    for spare in spares(&agent) {
        assert!(!spare.join("planted.php").exists(), "{} has what was planted", spare.display());
    }
    // While it is live, verify says what was changed, and heals it.
    assert!(as_web_user(&format!(
        "echo drift > {}/planted2.php",
        agent.live().canonicalize().expect("live").display()
    )));
    let outcome = agent.cli("verify", &["--json"]);
    assert!(outcome.stdout.contains("planted2.php"), "{outcome:?}");
    wait::until("it to be healed", || (!agent.live().join("planted2.php").exists()).then_some(()));
    assert_same(&origin.tree, &agent.live());
}
