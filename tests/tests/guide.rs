//! Pages of the guide, followed word by word on a Debian web server with mod_php: docs/apache.md.

use std::fs;
use std::time::Duration;

use syncd_tests::edits::write;
use syncd_tests::trouble::in_own_machine;
use syncd_tests::{Agent, Debian, Origin, Scene, instructions, require_root, wait};

const PAGE: &str = "apache.md";
const SITE: &str = "http://localhost";
/// Where Apache says which generation it serves.
const PROBE: &str = "http://127.0.0.1:8876/";
/// More than Apache has workers, so that most of them are asked.
const REQUESTS: usize = 12;

struct Site {
    debian: Debian,
    origin: Origin,
    agent: Agent,
    _scene: Scene,
}

impl Site {
    /// A Debian web server as installed, which runs, and an origin; the agent has joined and does not run.
    fn new(name: &str) -> Self {
        let scene = Scene::new(name);
        let tree = scene.path("tree");
        write(&tree, ".htaccess", "Redirect 302 /old /new\n");
        release(&tree, 1);
        let debian = Debian::new(&scene);
        debian.boot(true);
        let origin = Origin::started(&scene, &tree);
        let agent = Agent::new(&scene, "web1").at(debian.root());
        agent.join(origin.address(), &origin.token()).expect_success();
        Self { debian, origin, agent, _scene: scene }
    }

    /// Does what the page says below `heading`.
    fn follow(&mut self, heading: &str) {
        for block in instructions(PAGE, heading) {
            self.debian.follow(&block);
        }
        if self.debian.agent_is_to_restart() {
            if self.agent.is_running() {
                self.agent.stop();
            }
            self.start_agent();
        }
    }

    /// As its unit would: with the variables of `/etc/syncd/agent.env`.
    fn start_agent(&mut self) {
        self.agent.under(&self.debian.environment("/etc/syncd/agent.env"));
        self.agent.start();
        self.origin.wait_connected(&["web1"]);
    }

    /// Publishes release `number`, which becomes the generation of that number.
    fn publish(&self, number: u64) {
        release(&self.origin.tree, number);
        assert_eq!(self.origin.commit(), number);
        self.agent.wait_live(number);
    }

    /// Waits until Apache says that it serves this.
    fn wait_served(&self, what: &str) {
        wait::until_ok("Apache to serve it", || match self.debian.curl(PROBE) {
            (410, served) if served == what => Ok(()),
            other => Err(format!("{other:?} instead of {what}; {:?}", self.agent.try_status())),
        });
    }

    /// The releases that so many requests are answered from.
    fn releases(&self, path: &str) -> Vec<String> {
        (0..REQUESTS).map(|_| self.debian.curl(&format!("{SITE}{path}")).1).collect()
    }

    fn assert_serves(&self, number: u64) {
        let page = self.debian.curl(&format!("{SITE}/page.html"));
        assert_eq!(page, (200, format!("release {number}")));
        assert_eq!(self.debian.curl(&format!("{SITE}/old")).0, 302, ".htaccess counts");
    }
}

/// A page, and a script that includes another one.
fn release(tree: &std::path::Path, number: u64) {
    write(tree, "page.html", format!("release {number}"));
    write(tree, "index.php", "<?php require __DIR__ . '/inc/release.php'; echo release();");
    write(tree, "inc/release.php", format!("<?php function release() {{ return 'release {number}'; }}"));
}

#[test]
fn the_simple_way_serves_static_files_at_once_and_php_with_two_settings() {
    require_root("it installs a web server's configuration, in namespaces of its own");
    if !in_own_machine("the_simple_way_serves_static_files_at_once_and_php_with_two_settings") {
        return;
    }
    let mut site = Site::new("simple");
    site.follow("## The simple way");
    wait::until("Apache to answer before the first activation", || {
        (site.debian.curl(SITE).0 == 403).then_some(())
    });
    site.start_agent();
    site.publish(1);
    site.assert_serves(1);
    site.publish(2);
    site.assert_serves(2);

    site.follow("## PHP");
    wait::until("PHP to run", || site.releases("/").iter().all(|r| r == "release 2").then_some(()));
    site.publish(3);
    // With Debian's settings the old release runs for 90 to 120 s.
    wait::within(Duration::from_secs(45), "PHP to run the new release alone", || {
        site.releases("/").iter().all(|r| r == "release 3").then_some(())
    });

    site.agent.stop();
    site.debian.boot(true);
    site.assert_serves(3);
}

#[test]
fn the_exact_way_serves_what_the_hook_says_and_never_starts_apache() {
    require_root("it installs a web server's configuration, in namespaces of its own");
    if !in_own_machine("the_exact_way_serves_what_the_hook_says_and_never_starts_apache") {
        return;
    }
    let mut site = Site::new("exact");
    site.follow("## The exact way");
    site.wait_served("live");
    assert_eq!(site.debian.curl(SITE).0, 403, "nothing is live yet");
    site.debian.boot(true);
    site.wait_served("live");

    site.publish(1);
    site.wait_served("generations/1");
    site.assert_serves(1);
    assert_eq!(site.releases("/"), ["release 1"; REQUESTS]);
    site.publish(2);
    site.wait_served("generations/2");
    assert_eq!(
        site.releases("/"),
        ["release 2"; REQUESTS],
        "PHP runs nothing old once the hook has succeeded"
    );

    // A broken configuration: Apache's own words reach the operator, Apache serves on.
    let broken = "/etc/apache2/conf-enabled/broken.conf";
    fs::write(broken, "NoSuchDirective\n").expect("break Apache's configuration");
    site.publish(3);
    wait::until_ok("the hook to fail", || match site.agent.status().error {
        Some(error) if error.contains("is broken") && error.contains("NoSuchDirective") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    site.assert_serves(2);
    fs::remove_file(broken).expect("mend Apache's configuration");
    site.wait_served("generations/3");
    site.assert_serves(3);

    // Apache is stopped: the hook succeeds, and Apache stays stopped.
    for (number, with_systemd) in [(4, true), (5, false)] {
        site.debian.follow("systemctl stop apache2");
        if !with_systemd {
            fs::remove_dir("/run/systemd/system").expect("pretend that systemd does not run");
        }
        site.publish(number);
        let due = site.agent.root.join("state/on-activate.pending");
        wait::until("the hook to succeed", || (!due.exists()).then_some(()));
        wait::until("Apache to be gone", || (site.debian.apache_processes() == 0).then_some(()));
        let log = site.agent.daemon().log();
        assert!(log.contains(&format!("Apache is stopped; it will serve generations/{number}")), "{log}");
        // A boot without origin and agent: Apache serves what is live.
        site.agent.stop();
        site.debian.boot(with_systemd);
        site.wait_served(&format!("generations/{number}"));
        site.assert_serves(number);
        site.start_agent();
    }
    site.publish(6);
    site.wait_served("generations/6");
    site.assert_serves(6);
}
