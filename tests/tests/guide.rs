//! Pages of the guide, followed word by word on a Debian web server with mod_php: docs/apache.md, and those
//! parts of docs/php.md that the suite `php` does not follow.

use std::fs;
use std::path::Path;
use std::time::Duration;

use syncd_tests::edits::write;
use syncd_tests::trouble::in_own_machine;
use syncd_tests::{WebNode, require_root, wait};

const PAGE: &str = "apache.md";
/// More requests than Apache has workers, so that most workers answer one.
const REQUESTS: usize = 12;

fn node(name: &str) -> WebNode {
    WebNode::new(name, |tree| {
        write(tree, ".htaccess", "Redirect 302 /old /new\n");
        release(tree, 1);
    })
}

/// Writes a page, and a script that includes another one.
fn release(tree: &Path, number: u64) {
    write(tree, "page.html", format!("release {number}"));
    write(tree, "index.php", "<?php require __DIR__ . '/inc/release.php'; echo release();");
    write(tree, "inc/release.php", format!("<?php function release() {{ return 'release {number}'; }}"));
}

/// Publishes release `number`, which becomes the generation with that number.
fn publish(node: &WebNode, number: u64) {
    release(&node.origin.tree, number);
    assert_eq!(node.origin.commit(), number);
    node.agent.wait_live(number);
}

/// Releases shown in the answers to [`REQUESTS`] requests.
fn releases(node: &WebNode) -> Vec<String> {
    (0..REQUESTS).map(|_| node.get("/").1).collect()
}

fn assert_serves(node: &WebNode, number: u64) {
    assert_eq!(node.get("/page.html"), (200, format!("release {number}")));
    assert_eq!(node.get("/old").0, 302, ".htaccess counts");
}

#[test]
fn the_simple_way_serves_static_files_at_once_and_php_with_two_settings() {
    require_root("it installs a web server's configuration, in namespaces of its own");
    if !in_own_machine("the_simple_way_serves_static_files_at_once_and_php_with_two_settings") {
        return;
    }
    let mut node = node("simple");
    node.follow(PAGE, "## The simple way");
    wait::until("Apache to answer before the first activation", || (node.get("").0 == 403).then_some(()));
    node.start_agent();
    publish(&node, 1);
    assert_serves(&node, 1);
    publish(&node, 2);
    assert_serves(&node, 2);

    node.follow("php.md", "## Through the link");
    wait::until("PHP to run", || releases(&node).iter().all(|r| r == "release 2").then_some(()));
    publish(&node, 3);
    // With Debian's settings the old release would run for 90 to 120 s.
    wait::within(Duration::from_secs(45), "PHP to run the new release alone", || {
        releases(&node).iter().all(|r| r == "release 3").then_some(())
    });

    node.agent.stop();
    node.debian.boot(true);
    assert_serves(&node, 3);
}

#[test]
fn the_exact_way_serves_what_the_hook_says_and_never_starts_apache() {
    require_root("it installs a web server's configuration, in namespaces of its own");
    if !in_own_machine("the_exact_way_serves_what_the_hook_says_and_never_starts_apache") {
        return;
    }
    let mut node = node("exact");
    node.follow(PAGE, "## The exact way");
    node.wait_served("unknown");
    assert_eq!(node.get("").0, 403, "nothing is live yet");
    node.debian.boot(true);
    node.wait_served("unknown");

    publish(&node, 1);
    node.wait_served(1);
    assert_serves(&node, 1);
    assert_eq!(releases(&node), ["release 1"; REQUESTS]);
    publish(&node, 2);
    node.wait_served(2);
    assert_eq!(releases(&node), ["release 2"; REQUESTS], "PHP runs nothing old once the hook has succeeded");

    // A broken configuration: the operator sees Apache's message, and Apache continues to serve.
    let broken = "/etc/apache2/conf-enabled/broken.conf";
    fs::write(broken, "NoSuchDirective\n").expect("break Apache's configuration");
    publish(&node, 3);
    wait::until_ok("the hook to fail", || match node.agent.status().error {
        Some(error) if error.contains("is broken") && error.contains("NoSuchDirective") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_serves(&node, 2);
    fs::remove_file(broken).expect("mend Apache's configuration");
    node.wait_served(3);
    assert_serves(&node, 3);

    // Apache is stopped: the hook succeeds, and Apache stays stopped.
    for (number, with_systemd) in [(4, true), (5, false)] {
        node.debian.follow("systemctl stop apache2");
        if !with_systemd {
            fs::remove_dir("/run/systemd/system").expect("pretend that systemd does not run");
        }
        publish(&node, number);
        let due = node.agent.root.join("state/on-activate.pending");
        wait::until("the hook to succeed", || (!due.exists()).then_some(()));
        wait::until("Apache to be gone", || (node.debian.apache_processes() == 0).then_some(()));
        // The agent prints a hook's words a moment after its success.
        node.agent.daemon().wait_logged(&format!("Apache is stopped; it will serve generation {number}"));
        // A boot without origin and agent: Apache serves the live generation.
        node.agent.stop();
        node.debian.boot(with_systemd);
        node.wait_served(number);
        assert_serves(&node, number);
        node.start_agent();
    }
    publish(&node, 6);
    node.wait_served(6);
    assert_serves(&node, 6);
}
