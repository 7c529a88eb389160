//! Content that changes while its time does not, as in npm packages and reproducible builds: the web server's
//! answers to conditional requests, and PHP's cache of compiled code. Without `--mtime distinct` both keep
//! the old content, which these tests document.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;

use syncd_tests::edits::{set_time, write};
use syncd_tests::process::run;
use syncd_tests::{Agent, Apache, DocumentRoot, Origin, Scene, require_program, wait};

/// npm dates every file of its packages 1985-10-26.
const SECOND: u64 = 499_162_500;

struct Site {
    origin: Origin,
    tree: PathBuf,
    scene: Scene,
}

impl Site {
    fn new(name: &str, mtime: &str) -> Self {
        let scene = Scene::new(&format!("{name}-{mtime}"));
        let tree = scene.new_directory("tree");
        let mut origin =
            Origin::create(&scene, &tree).with_options(&["--trigger", "manual", "--mtime", mtime]);
        origin.start();
        Self { origin, tree, scene }
    }

    /// Writes a file with a time in the distant past.
    fn write(&self, path: &str, content: &str) {
        write(&self.tree, path, content);
        set_time(&self.tree.join(path), SECOND, 0);
    }

    /// Makes an executable hook.
    fn hook(&self, text: &str) -> String {
        let hook = self.scene.path("hook");
        fs::write(&hook, format!("#!/bin/sh\n{text}\n")).expect("write the hook");
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("chmod");
        hook.display().to_string()
    }

    /// Starts an agent and waits until it is connected.
    fn agent(&self, name: &str, hook: &str) -> Agent {
        let mut agent = Agent::joined(&self.scene, &self.origin, name).with_options(&["--on-activate", hook]);
        agent.start();
        self.origin.wait_connected(&[name]);
        agent
    }
}

/// Runs `curl` with a header of a conditional request. Returns status and body.
#[track_caller]
fn conditional(apache: &Apache, path: &str, header: &str) -> (u16, String) {
    let url = format!("http://{}{path}", apache.address);
    let mut command = Command::new(require_program("curl", "curl"));
    command.args(["-s", "--max-time", "60", "-H", header, "-w", "\n%{http_code}", &url]);
    let outcome = run(&mut command).expect_success();
    let (body, status) = outcome.stdout.rsplit_once('\n').expect("curl writes the status");
    (status.parse().expect("a number"), body.to_owned())
}

/// Publishes `app.js` twice with different content and the same size and time. Returns the answers to a
/// browser that has the first one, by tag and by date, and the output of the second commit.
fn revisit(mtime: &str) -> ([(u16, String); 2], serde_json::Value) {
    let site = Site::new("conditional", mtime);
    site.write("app.js", "version = 1;");
    site.write("other.js", "stays");
    let changed = site.scene.path("changed");
    let agent = site.agent("web1", &site.hook(&format!("cat >> {}", changed.display())));
    let second = site.agent("web2", "true");
    site.origin.commit_live();
    let mut apache = Apache::configured(&site.scene, "apache", &agent.root, &DocumentRoot::LiveLink);
    write(&site.tree, "index.html", "site");
    site.origin.commit_live();
    apache.start();
    let seen = apache.get("/app.js");
    assert_eq!(seen.body, b"version = 1;");
    let [tag, date] =
        ["ETag", "Last-Modified"].map(|name| seen.header(name).expect("a validator").to_owned());

    fs::write(&changed, "").expect("forget earlier paths");
    site.write("app.js", "version = 2;");
    let outcome = site.origin.cli("commit", &["--wait", "--json"]).expect_success();
    assert!(outcome.stderr.contains("app.js"), "{outcome:#?}");
    // Hooks get the path in any case, so that they can purge caches.
    assert_eq!(fs::read_to_string(&changed).expect("what the hook got"), "app.js\n");
    apache.assert_serves("/app.js", &site.tree.join("app.js"));
    let times =
        [&agent, &second].map(|agent| fs::metadata(agent.live().join("app.js")).expect("a file").mtime());
    assert_eq!(times[0], times[1], "nodes agree");
    assert_eq!(fs::metadata(site.tree.join("app.js")).expect("a file").mtime(), SECOND as i64);
    let answers = [format!("If-None-Match: {tag}"), format!("If-Modified-Since: {date}")]
        .map(|header| conditional(&apache, "/app.js", &header));
    (answers, outcome.json())
}

#[test]
fn a_browser_keeps_the_old_file_where_the_time_is_the_trees() {
    let (answers, said) = revisit("tree");
    assert_eq!(answers.map(|(status, _)| status), [304, 304]);
    let expected = serde_json::json!({"files": 1, "paths": ["app.js"]});
    assert_eq!(said["indistinct"], expected, "{said:#}");
}

#[test]
fn a_browser_gets_the_new_file_with_distinct_times() {
    let (answers, said) = revisit("distinct");
    let new = (200, "version = 2;".to_owned());
    assert_eq!(answers, [new.clone(), new]);
    assert_eq!(said["indistinct"]["files"], 0, "{said:#}");
    assert_eq!(said["retimed"], serde_json::json!({"files": 1, "paths": ["app.js"]}), "{said:#}");
}

const PAGE: &str = "<?php echo 'part=', include __DIR__.'/part.php', ' dated=', include __DIR__.'/dated.php', \
                    ' cached=', var_export(opcache_is_script_cached(__DIR__.'/part.php'), true);";

/// Lets mod_php run a page in a slot, with OPcache as configured by Debian. Then publishes `part.php` with
/// other content and size and the same time, beside `dated.php` with a new time. Returns the page of that
/// slot once it is used again and PHP has checked the times.
fn page_after_a_change(mtime: &str) -> String {
    let site = Site::new("opcache", mtime);
    let mut agent = Agent::joined(&site.scene, &site.origin, "web1").with_options(&["--grace", "0s"]);
    agent.start();
    site.origin.wait_connected(&["web1"]);
    site.write("index.php", PAGE);
    site.write("part.php", "<?php return 'old';");
    site.write("dated.php", "<?php return 'old';");
    site.origin.commit_live();
    let slot = || agent.live().canonicalize().expect("a live tree");
    let first = slot();
    let mut apache =
        Apache::configured(&site.scene, "apache", &agent.root, &DocumentRoot::Php(first.clone()));
    apache.start();
    let page = || conditional(&apache, "/index.php", "X: y");
    wait::until_ok("OPcache to have the page", || match page() {
        (200, body) if body == "part=old dated=old cached=true" => Ok(()),
        (status, body) => Err(format!("{status} {body} {}", apache.error_log())),
    });
    site.write("part.php", "<?php return 'new code';");
    site.write("dated.php", "<?php return 'new';");
    set_time(&site.tree.join("dated.php"), SECOND + 1, 0);
    site.origin.commit_live();
    let mut further = 0;
    wait::until("the turn of the first slot", || {
        further += 1;
        write(&site.tree, "further.txt", further.to_string());
        site.origin.commit_live();
        (slot() == first).then_some(())
    });
    // Every 2 s PHP checks the times of all files that a request includes.
    wait::until_ok("PHP to look at the times", || match page() {
        (200, body) if body.contains("dated=new") => Ok(body),
        (status, body) => Err(format!("{status} {body}")),
    })
}

#[test]
fn php_runs_old_code_where_the_time_is_the_trees() {
    assert_eq!(page_after_a_change("tree"), "part=old dated=new cached=true");
}

#[test]
fn php_runs_new_code_with_distinct_times() {
    assert_eq!(page_after_a_change("distinct"), "part=new code dated=new cached=true");
}
