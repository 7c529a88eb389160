//! Programs in front of the web servers of nodes, with the files in packaging/: Varnish on the node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use syncd_tests::edits::{remove, write};
use syncd_tests::process::{Daemon, tool};
use syncd_tests::{Agent, Apache, DocumentRoot, Origin, Scene, free_port, http, require_program, wait};

/// A file of packaging/.
fn packaged(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging").join(path)
}

/// Varnish with the shipped configuration, in front of one Apache.
struct Varnish {
    address: String,
    instance: PathBuf,
    daemon: Daemon,
}

impl Varnish {
    fn start(scene: &Scene, apache: &Apache) -> Self {
        let varnishd = require_program("varnishd", "varnish");
        let text = fs::read_to_string(packaged("varnish/syncd.vcl")).expect("read the shipped configuration");
        let (_, port) = apache.address.split_once(':').expect("a port");
        let configuration = scene.path("syncd.vcl");
        fs::write(&configuration, text.replace("8080", port)).expect("write the configuration");
        let (address, instance) = (format!("127.0.0.1:{}", free_port()), scene.path("varnish"));
        let mut command = Command::new(varnishd);
        // Fresh for an hour, so that only bans can make it forget.
        command.args(["-F", "-j", "none", "-t", "3600", "-a", &address]);
        command.arg("-f").arg(&configuration).arg("-n").arg(&instance);
        let mut daemon = Daemon::start(&mut command, scene.directory(), "varnish");
        wait::until("Varnish to answer", || {
            assert!(daemon.ended().is_none(), "Varnish ended at once:\n{}", daemon.log());
            http::get(&address, "/").ok()
        });
        Self { address, instance, daemon }
    }

    fn get(&self, path: &str) -> http::Response {
        let answer = http::get(&self.address, path).unwrap_or_else(|broken| panic!("GET {path}: {broken}"));
        assert_eq!(answer.status, 200, "GET {path}: {}", answer.head);
        answer
    }

    /// The body of a page, and whether it came from the cache.
    fn page(&self, path: &str) -> (String, bool) {
        let answer = self.get(path);
        // The number of the request and, for a hit, that of the request that filled the cache.
        let numbers = answer.header("X-Varnish").expect("the header").split_whitespace().count();
        assert_eq!(answer.header("x-syncd-url"), None, "kept from visitors");
        (String::from_utf8(answer.body).expect("text"), numbers == 2)
    }

    fn bans(&self) -> usize {
        let list = tool("varnishadm", [Path::new("-n"), &self.instance, Path::new("ban.list")]).stdout;
        list.lines().filter(|line| line.contains("obj.")).count()
    }
}

#[test]
fn varnish_on_the_node_forgets_exactly_the_changed_pages() {
    let scene = Scene::new("varnish");
    let tree = scene.path("tree");
    write(&tree, "index.html", "home 1");
    write(&tree, "about/index.html", "about 1");
    write(&tree, "a b+(c)%.html", "odd 1");
    write(&tree, "same.html", "same");
    write(&tree, "gone.html", "gone 1");
    let origin = Origin::started(&scene, &tree);
    let mut agent = Agent::joined(&scene, &origin, "web1");
    let mut apache = Apache::configured(&scene, "apache", &agent.root, &DocumentRoot::LiveLink);
    // Options of the hook; no file: there is no Varnish.
    let options = scene.path("ban-options");
    let hook = format!(
        "[ ! -f {0} ] || exec {1} $(cat {0})",
        options.display(),
        packaged("varnish/varnish-ban").display()
    );
    agent = agent.with_options(&["--on-activate", &hook]);
    agent.start();
    agent.wait_live(origin.commit_live());
    apache.start();
    let mut varnish = Varnish::start(&scene, &apache);
    fs::write(&options, format!("-n {}", varnish.instance.display())).expect("write the options");
    let odd = "/a%20b+(c)%25.html";
    let paths = ["/", "/about/", "/about/index.html", odd, "/same.html", "/same.html?page=2", "/gone.html"];
    for path in paths {
        varnish.get(path);
        assert!(varnish.page(path).1, "{path} is cached");
    }

    write(&tree, "index.html", "home 2");
    write(&tree, "about/index.html", "about 2");
    write(&tree, "a b+(c)%.html", "odd 2");
    remove(&tree.join("gone.html"));
    origin.commit_live();
    // The hook has succeeded, so no visitor gets an old page.
    for (path, text) in
        [("/", "home 2"), ("/about/", "about 2"), ("/about/index.html", "about 2"), (odd, "odd 2")]
    {
        assert_eq!(varnish.page(path), (text.to_owned(), false), "{path}");
    }
    assert_eq!(http::get(&varnish.address, "/gone.html").expect("an answer").status, 404);
    for path in ["/same.html", "/same.html?page=2"] {
        assert_eq!(varnish.page(path), ("same".to_owned(), true), "{path} has not changed");
    }
    assert!(varnish.bans() <= 1, "one ban for all of them");

    // Code may be part of every page.
    write(&tree, "lib/menu.php", "<?php");
    origin.commit_live();
    assert_eq!(varnish.page("/same.html"), ("same".to_owned(), false));

    // While Varnish can't be told, nothing is called live. The next commit has the hook run at once, with the
    // paths of both.
    assert!(varnish.page("/same.html").1);
    let found = fs::read(&options).expect("read the options");
    fs::write(&options, "-T 127.0.0.1:1 -S /dev/null").expect("write the options");
    write(&tree, "same.html", "new");
    origin.commit();
    wait::until("the hook to fail", || {
        let status = agent.cli("status", &[]).stdout;
        status.contains("varnish-ban").then_some(())
    });
    fs::write(&options, found).expect("write the options");
    write(&tree, "other.html", "other");
    origin.commit_live();
    assert_eq!(varnish.page("/same.html"), ("new".to_owned(), false));
    assert_eq!(varnish.daemon.stop(), Some(0));
}
