//! Programs in front of the web servers of nodes, with the files in packaging/: Varnish on the node and in
//! front of all nodes, HAProxy, keepalived.

#[path = "balancers/haproxy.rs"]
mod haproxy;
#[path = "balancers/keepalived.rs"]
mod keepalived;

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

/// Runs of a purge's command, each with what it got: `all 1:`, `changed 2: a.html b.html`.
fn purges(log: &Path) -> Vec<String> {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.split_terminator("end\n").map(|run| run.replace('\n', " ").trim_end().to_owned()).collect()
}

#[test]
fn a_shared_cache_is_purged_after_the_last_node_and_again_after_stragglers() {
    let scene = Scene::new("purge");
    let tree = scene.path("tree");
    for name in ["index.html", "a.html", "same.html"] {
        write(&tree, name, "1");
    }
    let (log, refuse, instance) = (scene.path("purges"), scene.path("refuse"), scene.path("varnish"));
    let script = format!(
        "#!/bin/sh\n\
         [ ! -e {refuse} ] || {{ echo no route to the cache; exit 7; }}\n\
         cat >{log}.lines\n\
         [ ! -d {instance} ] || {ban} -n {instance} <{log}.lines || exit 1\n\
         {{ echo $SYNCD_PURGE $SYNCD_GENERATION:; cat {log}.lines; echo end; }} >>{log}\n",
        refuse = refuse.display(),
        log = log.display(),
        instance = instance.display(),
        ban = packaged("varnish/varnish-ban").display()
    );
    let command = scene.path("purge");
    fs::write(&command, script).expect("write the command");
    let command = format!("sh {}", command.display());
    let purge = ["--trigger", "manual", "--purge", &command];
    let mut origin = Origin::create(&scene, &tree).with_options(&purge);
    origin.start();
    let mut agents = ["web1", "web2"].map(|name| Agent::joined(&scene, &origin, name));
    let mut apache = Apache::configured(&scene, "apache", &agents[0].root, &DocumentRoot::LiveLink);
    agents.iter_mut().for_each(Agent::start);
    origin.wait_connected(&["web1", "web2"]);
    origin.commit_live();
    let wait_for = |expected: &[&str]| {
        wait::until_ok("purges", || {
            let purges = purges(&log);
            if purges == expected { Ok(()) } else { Err(format!("{purges:#?}")) }
        })
    };
    // Nobody knows what the cache holds at first.
    wait_for(&["all 1:"]);
    apache.start();
    let varnish = Varnish::start(&scene, &apache);
    for path in ["/", "/a.html", "/same.html"] {
        varnish.get(path);
        assert!(varnish.page(path).1, "{path} is cached");
    }

    // The second node is away and keeps its tree, so that the cache may be filled from it again.
    agents[1].stop();
    write(&tree, "a.html", "2");
    write(&tree, "index.html", "2");
    origin.commit_live();
    wait_for(&["all 1:", "changed 2: a.html index.html"]);
    assert_eq!(varnish.page("/"), ("2".to_owned(), false));
    assert_eq!(varnish.page("/a.html"), ("2".to_owned(), false));
    assert_eq!(varnish.page("/same.html"), ("1".to_owned(), true));
    agents[1].start();
    wait_for(&["all 1:", "changed 2: a.html index.html", "changed 2: a.html index.html"]);

    // A purge that fails is shown, and made by the origin's next process if this one dies.
    fs::write(&refuse, "").expect("make purges fail");
    write(&tree, "a.html", "3");
    origin.commit_live();
    let status = wait::until("a purge to fail", || {
        let status = origin.cli("status", &["--json"]).json();
        (status["purge"]["failures"].as_u64() > Some(0)).then_some(status)
    });
    let error = status["purge"]["error"].as_str().expect("an error");
    assert!(error.contains("no route to the cache") && error.contains("exit status: 7"), "{error}");
    assert_eq!((status["purge"]["generation"].as_u64(), status["purge"]["due"].as_u64()), (Some(2), Some(3)));
    origin.kill9();
    fs::remove_file(&refuse).expect("let purges succeed");
    origin.start();
    let changed = "changed 2: a.html index.html";
    // It is repeated if a node reconnects late, because the origin does not know then what that one served.
    wait::until_ok("purges", || {
        let purges = purges(&log);
        let is_new = |run: &String| run == "changed 3: a.html";
        let is_right = purges.len() > 3 && purges[..3] == ["all 1:", changed, changed];
        if is_right && purges[3..].iter().all(is_new) { Ok(()) } else { Err(format!("{purges:#?}")) }
    });
    assert_eq!(varnish.page("/a.html").0, "3");
    wait::until_ok("status to show it", || {
        let text = origin.cli("status", &[]).expect_success().stdout;
        let is_shown = text.contains("caches are purged for generation 3\n");
        if is_shown { Ok(()) } else { Err(text) }
    });
}
