//! Real Apache on each replica under load, through many activations: [`ACTIVATIONS`], or `SYNCD_APACHE=N`.
//!
//! There are two replicas. For `web1` the hook resolves the document root once for each generation; for
//! `web2` it leads through the `live` link. Each is read by `wrk`, and by clients that judge every byte.

use std::process::Command;
use std::time::Duration;

use syncd_tests::corpora::{self, Corpus};
use syncd_tests::edits::{remove, write};
use syncd_tests::http::Download;
use syncd_tests::load::{Clients, Verdict, page};
use syncd_tests::oracle::assert_same;
use syncd_tests::process::Daemon;
use syncd_tests::replica::assert_no_litter;
use syncd_tests::trouble::in_own_machine;
use syncd_tests::{
    Agent, Apache, DocumentRoot, Origin, Scene, Seeded, WebNode, require_program, require_root, wait,
};

/// Activations, unless `SYNCD_APACHE` is set.
const ACTIVATIONS: u64 = 60;
const EXCHANGES: u64 = 40;
const PAGES: usize = 40;
const SLOW_BYTES: usize = 24 * 1024 * 1024;

/// Summary printed by `wrk`.
#[derive(Debug, Default)]
struct Wrk {
    requests: u64,
    bad_status: u64,
    socket_errors: String,
}

fn start_wrk(scene: &Scene, apache: &Apache, name: &str) -> Daemon {
    let program = require_program("wrk", "wrk");
    let url = format!("http://{}/page-1.html", apache.address);
    // On a busy machine an answer may be late, but not wrong.
    let arguments = ["-t1", "-c2", "-d3600s", "--timeout", "60s", &url];
    Daemon::start(Command::new(program).args(arguments), scene.directory(), name)
}

fn finish_wrk(mut wrk: Daemon) -> Wrk {
    wrk.interrupt();
    let output = wrk.output();
    let mut said = Wrk::default();
    for line in output.lines().map(str::trim) {
        if let Some((count, _)) = line.split_once(" requests in ") {
            said.requests = count.parse().unwrap_or(0);
        }
        if let Some(count) = line.strip_prefix("Non-2xx or 3xx responses: ") {
            said.bad_status = count.parse().unwrap_or(u64::MAX);
        }
        if line.starts_with("Socket errors:") {
            said.socket_errors = line.to_string();
        }
    }
    assert!(said.requests > 0, "wrk said nothing to rely on:\n{output}");
    said
}

/// Reads a large file slowly enough to last through all activations, until told to hurry.
struct SlowReader {
    hurry: std::sync::mpsc::Sender<()>,
    thread: std::thread::JoinHandle<Result<Vec<u8>, String>>,
}

impl SlowReader {
    fn start(apache: &Apache) -> Self {
        let mut download = Download::start(&apache.address, "/download.bin").expect("start a download");
        assert_eq!((download.status, download.length), (200, SLOW_BYTES as u64));
        let (hurry, told) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            // 20 KB/s for ten minutes: Apache keeps more than the socket buffers hold until the end.
            while told.recv_timeout(Duration::from_millis(100)).is_err() {
                download.read_some(2048)?;
            }
            let read_slowly = download.received();
            assert!(read_slowly < SLOW_BYTES / 2, "the download was to last longer than the activations");
            Ok(download.finish()?.body)
        });
        Self { hurry, thread }
    }

    fn finish(self) -> Vec<u8> {
        self.hurry.send(()).expect("the reader waits");
        let read = self.thread.join().expect("the reader does not panic");
        read.expect("the download ends intact")
    }
}

fn show(name: &str, verdict: &Verdict, wrk: &Wrk) {
    println!(
        "{name}: judged {} requests, {} failed, {} mixed {:?}; wrk {} requests, {} not 200, {}",
        verdict.requests,
        verdict.failed,
        verdict.mixed,
        verdict.complaints,
        wrk.requests,
        wrk.bad_status,
        if wrk.socket_errors.is_empty() { "no socket errors" } else { &wrk.socket_errors }
    );
}

#[test]
fn activations_under_load_fail_no_request_and_mix_nothing() {
    let activations = std::env::var("SYNCD_APACHE")
        .map_or(ACTIVATIONS, |number| number.parse().expect("SYNCD_APACHE is a number"));
    let scene = Scene::new("apache");
    let corpus = corpora::wordpress();
    let tree = scene.path("tree");
    // Real content in two alternating versions, beside the pages that are judged.
    Corpus::copy(&corpus.a().join("wp-includes/css"), &tree);
    let slow = Seeded::new(3).bytes(SLOW_BYTES);
    write(&tree, "download.bin", &slow);
    write(&tree, "index.html", "index");
    let pages = |version: u64| {
        for number in 0..PAGES {
            write(&tree, &format!("page-{number}.html"), page(version, number));
        }
    };
    pages(0);

    let origin = Origin::started(&scene, &tree);
    let mut web1 = Agent::joined(&scene, &origin, "web1");
    let mut resolved = Apache::configured(&scene, "apache1", &web1.root, &DocumentRoot::Resolved);
    web1 = web1.with_options(&["--on-activate", &resolved.hook().display().to_string()]);
    web1.start();
    let web2 = Agent::started(&scene, &origin, "web2");
    let mut linked = Apache::configured(&scene, "apache2", &web2.root, &DocumentRoot::LiveLink);
    origin.wait_connected(&["web1", "web2"]);
    let first = origin.commit_live();
    web1.wait_live(first);
    web2.wait_live(first);
    resolved.start();
    linked.start();

    let slow_readers = [SlowReader::start(&resolved), SlowReader::start(&linked)];
    let wrks = [start_wrk(&scene, &resolved, "wrk1"), start_wrk(&scene, &linked, "wrk2")];
    let clients = [Clients::start(&resolved.address, PAGES, 2), Clients::start(&linked.address, PAGES, 2)];
    for version in 1..=activations {
        pages(version);
        let styles = if version % 2 == 0 { corpus.a() } else { corpus.b() };
        Corpus::deploy(&styles.join("wp-includes/css/dist"), &tree.join("dist"));
        // The file being downloaded is replaced, deleted, and restored.
        match version % 4 {
            1 => write(&tree, "download.bin", format!("version {version}")),
            2 => remove(&tree.join("download.bin")),
            _ => write(&tree, "download.bin", "back"),
        }
        let number = origin.commit_live();
        assert_eq!(number, first + version, "every version is a generation of its own");
    }
    // The hook may still be reloading; the last version must be served in the end.
    for clients in &clients {
        wait::until("the last version to be served", || (clients.newest() == activations).then_some(()));
    }

    let [judged1, judged2] = clients.map(Clients::finish);
    let [wrk1, wrk2] = wrks.map(finish_wrk);
    show("resolved by the hook", &judged1, &wrk1);
    show("through the live link", &judged2, &wrk2);
    for (reader, name) in slow_readers.into_iter().zip(["resolved", "live link"]) {
        assert!(reader.finish() == slow, "the slow download through {name} is what it was when it began");
    }
    assert_eq!((judged1.failed, judged1.mixed), (0, 0), "resolved by the hook: {judged1:?}");
    assert_eq!((wrk1.bad_status, wrk1.socket_errors.as_str()), (0, ""), "resolved by the hook: {wrk1:?}");
    // Apache calls stat on a path and opens it later, so through the link a request can span a switch. This
    // is rare, and counted.
    let straddled = judged2.failed + judged2.mixed;
    println!("through the live link: {straddled} of {} requests straddled a switch", judged2.requests);
    assert!(straddled * 1000 <= judged2.requests, "more than one in a thousand: {judged2:?}");
    assert!(wrk2.bad_status * 1000 <= wrk2.requests, "more than one in a thousand: {wrk2:?}");

    for agent in [&web1, &web2] {
        assert_same(&tree, &agent.live());
        assert_no_litter(agent);
        assert!(
            agent.status().generations.len() <= 3 + 8 + 1,
            "retired trees are bounded: {:?}",
            agent.status()
        );
    }
}

#[test]
fn forty_activations_of_a_real_directory_under_load() {
    let scene = Scene::new("apache-exchange");
    let tree = scene.path("tree");
    let pages = |version: u64| {
        for number in 0..PAGES {
            write(&tree, &format!("page-{number}.html"), page(version, number));
        }
    };
    pages(0);
    let origin = Origin::started(&scene, &tree);
    let mut web = Agent::joined(&scene, &origin, "web1").with_options(&["--swap", "exchange"]);
    web.start();
    origin.wait_connected(&["web1"]);
    let first = origin.commit_live();
    web.wait_live(first);
    let mut apache = Apache::configured(&scene, "apache", &web.root, &DocumentRoot::LiveDirectory);
    apache.start();
    let clients = Clients::start(&apache.address, PAGES, 2);
    for version in 1..=EXCHANGES {
        pages(version);
        let before = web.live_target().expect("a tree");
        let number = origin.commit_live();
        assert_eq!(number, first + version, "every version is a generation of its own");
        let (target, inode) = web.live_target().expect("a tree");
        assert_eq!(target.to_str(), Some("live"), "a directory");
        assert_ne!(inode, before.1, "another directory");
    }
    wait::until("the last version to be served", || (clients.newest() == EXCHANGES).then_some(()));
    let judged = clients.finish();
    println!("a real directory: {judged:?}");
    // Apache calls stat on a path and opens it later, as through a link: a request can span a switch.
    let straddled = judged.failed + judged.mixed;
    assert!(straddled * 1000 <= judged.requests, "more than one in a thousand: {judged:?}");
    assert_same(&tree, &web.live());
    assert_no_litter(&web);
}

const ASSET_NAME: &str = "assets_of_the_generation_before_are_found_and_nothing_else_of_it";

#[test]
fn assets_of_the_generation_before_are_found_and_nothing_else_of_it() {
    require_root("it installs a web server's configuration, in namespaces of its own");
    if !in_own_machine(ASSET_NAME) {
        return;
    }
    let (both, only_before) = ("/page.css", ["/app.1.css", "/deep/er/photo%20(1).JPG"]);
    let mut node = WebNode::new("assets", |tree| {
        write(tree, "page.css", "page 1");
        write(tree, "app.1.css", "app 1");
        write(tree, "deep/er/photo (1).JPG", "photo 1");
        // None of these may be served once it is removed.
        for gone in ["page.html", "data.json", "run.php", "run.php.css/run.php", ".hidden/a.css", ".a.css"] {
            write(tree, gone, "<?php echo 6 * 7;");
        }
        write(tree, "script.php.js", "<?php echo 6 * 7;");
        write(tree, "denied/.htaccess", "Require all denied\n");
        write(tree, "denied/a.css", "denied");
        // Honoured where it is served, and ignored below `previous`.
        write(
            tree,
            "handler/.htaccess",
            "AddHandler application/x-httpd-php .js\nSetHandler application/x-httpd-php\n",
        );
        write(tree, "handler/a.js", "<?php echo 6 * 7;");
    });
    node.follow("apache.md", "## The exact way");
    assert_eq!(node.origin.commit_live(), 1);
    assert_eq!(node.get("/handler/a.js"), (200, "42".to_owned()), "PHP as the site has it");
    let tree = node.origin.tree.clone();
    for name in std::fs::read_dir(&tree).expect("list the tree") {
        remove(&name.expect("a name").path());
    }
    write(&tree, "page.css", "page 2");
    write(&tree, "app.2.css", "app 2");
    node.origin.cli("commit", &["--wait", "--allow-mass-deletion"]).expect_success();
    assert_eq!(node.get(both), (200, "page 2".to_owned()));
    assert_eq!(node.get("/app.2.css"), (200, "app 2".to_owned()));
    assert_eq!(node.get(only_before[0]), (200, "app 1".to_owned()));
    assert_eq!(node.get(only_before[1]), (200, "photo 1".to_owned()));
    let program = "<?php echo 6 * 7;".to_owned();
    for text in ["/script.php.js", "/handler/a.js"] {
        assert_eq!(node.get(text), (200, program.clone()), "{text} is sent and not run");
    }
    for gone in [
        "/page.html",
        "/data.json",
        "/run.php",
        "/run.php.css/run.php",
        "/.hidden/a.css",
        "/.a.css",
        "/none.css",
    ] {
        assert_eq!(node.get(gone).0, 404, "{gone}");
    }
    assert_eq!(node.get("/denied/a.css").0, 403, "what was closed stays closed");

    write(&tree, "page.css", "page 3");
    node.origin.commit_live();
    assert_eq!(node.get("/app.2.css").0, 200);
    assert_eq!(node.get(only_before[0]).0, 404, "one generation back, no more");
    // The same with the simple configuration.
    node.debian.follow("a2dissite -q syncd-site-exact");
    node.follow("apache.md", "## The simple way");
    remove(&tree.join("app.2.css"));
    write(&tree, "app.4.css", "app 4");
    node.origin.commit();
    node.agent.wait_live(4);
    assert_eq!(node.get("/app.2.css"), (200, "app 2".to_owned()));
}
