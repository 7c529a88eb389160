//! PHP under load through activations: php-fpm and mod_php, with and without timestamps, as configured by
//! docs/php.md.
//!
//! A page includes three files. Once a generation is live, no old code may run. No request may see two
//! generations or fail, and php-fpm must keep unchanged code cached. `SYNCD_PHP=N` makes N activations of
//! each kind; 200 is the long run.

#[path = "php/exchange.rs"]
mod exchange;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use syncd_tests::edits::{remove, set_time, write};
use syncd_tests::trouble::in_own_machine_within;
use syncd_tests::{WebNode, http, require_root};

const ADDRESS: &str = "127.0.0.1:80";
/// Activations of each kind, unless `SYNCD_PHP` is set.
const ACTIVATIONS: u64 = 12;
const CLIENTS: usize = 3;

/// Included scripts, and the expressions that include them.
const INCLUDED: [(&str, &str); 3] = [
    ("inc/a.php", "__DIR__ . '/inc/a.php'"),
    ("inc/b.php", "'inc/b.php'"),
    ("inc/c.php", "$_SERVER['DOCUMENT_ROOT'] . '/inc/c.php'"),
];

/// A site in which each version of the first half changes every script, and each later version changes one.
#[derive(Debug, Clone, Copy)]
struct Site {
    all_change_until: u64,
}

impl Site {
    /// Version in which included script `n` got the content that it has in `version`.
    fn stamp(self, version: u64, n: u64) -> u64 {
        if version <= self.all_change_until {
            return version;
        }
        let newest = (self.all_change_until + 1..=version).rev().find(|version| version % 3 == n);
        newest.unwrap_or(self.all_change_until)
    }

    /// Page of `version`.
    fn page(self, version: u64) -> String {
        let stamps: String = (0..3).map(|n| format!("[{}]", self.stamp(version, n))).collect();
        format!("version {version} {stamps} end of {version}")
    }

    /// Writes the differences from the version before. Times are in the distant past, because PHP would not
    /// cache yet, and differ by a second.
    fn write(self, tree: &Path, version: u64) {
        if version == 0 {
            let includes: String = INCLUDED
                .iter()
                .map(|(_, how)| format!("usleep(random_int(0, 3000)); include {how};\n"))
                .collect();
            let script = format!(
                "<?php\n\
                 echo 'version ', file_get_contents(__DIR__ . '/version.txt'), ' ';\n{includes}\
                 echo ' end of ', file_get_contents(__DIR__ . '/version.txt');\n"
            );
            write(tree, "index.php", script);
            let script = "<?php\n\
                 $statistics = opcache_get_status(false)['opcache_statistics'];\n\
                 echo $statistics['hits'], ' ', $statistics['misses'];\n";
            write(tree, "statistics.php", script);
        }
        write(tree, "version.txt", version.to_string());
        for (n, (path, _)) in INCLUDED.iter().enumerate() {
            if version == 0 || self.stamp(version, n as u64) != self.stamp(version - 1, n as u64) {
                write(tree, path, format!("<?php echo '[{version}]';"));
                set_time(&tree.join(path), 1_700_000_000 + version, 0);
            }
        }
    }
}

/// Counts and complaints of all clients.
#[derive(Default)]
struct Tally {
    stop: AtomicBool,
    /// Version that was reported live everywhere.
    live: AtomicU64,
    requests: AtomicU64,
    failed: AtomicU64,
    mixed: AtomicU64,
    old: AtomicU64,
    complaints: Mutex<Vec<String>>,
}

impl Tally {
    fn visit(&self, site: Site) {
        let at_least = self.live.load(Ordering::SeqCst);
        self.requests.fetch_add(1, Ordering::Relaxed);
        let body = match http::get(ADDRESS, "/index.php") {
            Ok(answer) if answer.status == 200 => String::from_utf8_lossy(&answer.body).into_owned(),
            Ok(answer) => return self.complain(&self.failed, answer.head),
            Err(broken) => return self.complain(&self.failed, broken),
        };
        let version = body.split(' ').nth(1).and_then(|version| version.parse().ok());
        match version {
            Some(version) if body == site.page(version) => {
                if version < at_least {
                    self.complain(&self.old, format!("{version} although {at_least} is live"));
                }
            }
            _ => self.complain(&self.mixed, body),
        }
    }

    fn complain(&self, counter: &AtomicU64, complaint: String) {
        counter.fetch_add(1, Ordering::Relaxed);
        let mut complaints = self.complaints.lock().expect("no client panicked");
        if complaints.len() < 10 {
            complaints.push(complaint);
        }
    }
}

struct Clients {
    tally: Arc<Tally>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    fn start(site: Site, tally: &Arc<Tally>) -> Self {
        let spawn = |_| {
            let tally = tally.clone();
            std::thread::spawn(move || {
                while !tally.stop.load(Ordering::Relaxed) {
                    tally.visit(site);
                }
            })
        };
        Self { tally: tally.clone(), threads: (0..CLIENTS).map(spawn).collect() }
    }

    /// Panics unless every request was answered correctly.
    #[track_caller]
    fn finish(self, name: &str) {
        self.tally.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().expect("a client does not panic"));
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Tally { requests, failed, mixed, old, complaints, .. } = &*self.tally;
        println!(
            "{name}: {} requests, {} failed, {} mixed, {} old",
            count(requests),
            count(failed),
            count(mixed),
            count(old)
        );
        assert!(count(requests) > 50, "{name}: too few requests");
        assert_eq!((count(failed), count(mixed), count(old)), (0, 0, 0), "{name}: {complaints:#?}");
    }
}

/// Hits and misses of OPcache since PHP started.
fn statistics() -> (u64, u64) {
    let answer = http::get(ADDRESS, "/statistics.php").expect("an answer");
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let numbers =
        text.split_once(' ').and_then(|(hits, misses)| Some((hits.parse().ok()?, misses.parse().ok()?)));
    numbers.unwrap_or_else(|| panic!("no statistics: {}\n{text}", answer.head))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Php {
    Fpm,
    Module,
}

/// Grace period of a slot, and shortest duration of an activation: few enough slots rest that they are reused
/// often. With timestamps the grace period exceeds OPcache's revalidate_freq of 2 s.
fn rest_and_pace(timestamps: bool) -> (&'static str, Duration) {
    if timestamps { ("3s", Duration::from_secs(1)) } else { ("500ms", Duration::from_millis(500)) }
}

/// Configures the node as the guide says, with version 0 live.
fn node(name: &str, php: Php, timestamps: bool, site: Site) -> WebNode {
    let mut node = WebNode::new(name, |tree| site.write(tree, 0));
    node.follow("apache.md", "## The exact way");
    node.origin.commit_live();
    let heading = if php == Php::Fpm { "## php-fpm" } else { "## mod_php" };
    node.follow("php.md", heading);
    if !timestamps {
        without_timestamps(&mut node, php);
    }
    // The guide's checks assume the default.
    node.agent.stop();
    let mut node = node.with_agent_options(&["--grace", rest_and_pace(timestamps).0]);
    node.start_agent();
    node
}

fn without_timestamps(node: &mut WebNode, php: Php) {
    match php {
        Php::Fpm => node.follow("php.md", "## Without timestamps"),
        // Only the first step applies.
        Php::Module => node.follow_step("php.md", "## Without timestamps", 0),
    }
}

fn activations() -> u64 {
    std::env::var("SYNCD_PHP")
        .ok()
        .map_or(ACTIVATIONS, |number| number.parse().expect("SYNCD_PHP is a number"))
}

/// Runs the test of this name.
fn activations_under_load(name: &str, php: Php, timestamps: bool) {
    require_root("it installs a web server's configuration, in namespaces of its own");
    if !in_own_machine_within(name, Duration::from_secs(300 + 5 * activations())) {
        return;
    }
    let site = Site { all_change_until: activations() / 2 };
    let (_, pace) = rest_and_pace(timestamps);
    let node = node("php", php, timestamps, site);
    let tally = Arc::new(Tally::default());
    let clients = Clients::start(site, &tally);
    let mut halfway = (0, 0);
    for version in 1..=activations() {
        let started = Instant::now();
        site.write(&node.origin.tree, version);
        node.origin.commit_live();
        tally.live.store(version, Ordering::SeqCst);
        if version == site.all_change_until {
            halfway = statistics();
        }
        std::thread::sleep(pace.saturating_sub(started.elapsed()));
    }
    let (hits, misses) = statistics();
    clients.finish(name);
    if php == Php::Fpm {
        let (hits, misses) = (hits - halfway.0, misses - halfway.1);
        println!("{name}: {hits} hits and {misses} misses of OPcache where one script changed");
        assert!(hits * 100 > (hits + misses) * 95, "{hits} hits, {misses} misses");
    }
    let slots = std::fs::read_dir(node.agent.root.join("slots")).expect("the slots").count() as u64;
    println!("{name}: {} activations of {slots} slots", activations());
    assert!(slots + 4 <= activations(), "{slots} slots did not take turns");
}

#[test]
fn fpm_with_timestamps() {
    activations_under_load("fpm_with_timestamps", Php::Fpm, true);
}

#[test]
fn fpm_without_timestamps() {
    activations_under_load("fpm_without_timestamps", Php::Fpm, false);
}

#[test]
fn mod_php_with_timestamps() {
    activations_under_load("mod_php_with_timestamps", Php::Module, true);
}

#[test]
fn mod_php_without_timestamps() {
    activations_under_load("mod_php_without_timestamps", Php::Module, false);
}

/// A node with php-fpm that never checks files again, Apache on slot 1, and no running agent.
fn node_with_a_tree_by_hand(name: &str) -> (WebNode, std::path::PathBuf) {
    let node = WebNode::new(name, |tree| write(tree, "index.html", "unused"));
    let tree = node.agent.root.join("slots/1");
    write(&tree, "index.html", "by hand");
    std::os::unix::fs::symlink("slots/1", node.agent.live()).expect("link");
    node.follow_step("apache.md", "## The exact way", 0);
    node.follow_step("apache.md", "## The exact way", 1);
    node.follow_step("php.md", "## php-fpm", 0);
    node.follow_step("php.md", "## php-fpm", 1);
    node.follow_step("php.md", "## Without timestamps", 0);
    // Trees change by hand here, without the rest after which PHP has forgotten where a link led.
    node.debian.follow("echo realpath_cache_size=0 > /etc/php/$(phpquery -V)/fpm/conf.d/99-rested.ini");
    node.debian.follow("systemctl restart php$(phpquery -V)-fpm");
    node.debian.follow("install -D -m 644 packaging/php/opcache.php /usr/local/lib/syncd/opcache.php");
    (node, tree)
}

#[test]
fn php_fpm_forgets_what_changed_and_nothing_else() {
    const NAME: &str = "php_fpm_forgets_what_changed_and_nothing_else";
    require_root("it installs a web server's configuration, in namespaces of its own");
    if !in_own_machine_within(NAME, Duration::from_secs(300)) {
        return;
    }
    let (node, tree) = node_with_a_tree_by_hand("php-forgets");
    let script = |path: &str, text: &str| {
        write(&tree, path, format!("<?php echo '{text} ';"));
        set_time(&tree.join(path), 1_700_000_000, 0);
    };
    let included = ["changed.php", "gone.php", "directory/moved.php", "link/linked.php", "same.php"];
    let includes: String = included.iter().map(|path| format!("@include __DIR__ . '/{path}';")).collect();
    write(&tree, "index.php", format!("<?php {includes}"));
    set_time(&tree.join("index.php"), 1_700_000_000, 0);
    for path in ["changed.php", "gone.php", "same.php", "directory/moved.php"] {
        script(path, "old");
    }
    script("one/linked.php", "one");
    script("two/linked.php", "two");
    let link = |to: &str| {
        remove(&tree.join("link"));
        std::os::unix::fs::symlink(to, tree.join("link")).expect("link");
    };
    link("one");
    let socket = format!("/run/php/php{}-fpm.sock", node.debian.php());
    let list = node.scene().path("paths");
    let invalidate = |paths: &[&str], more: &str| {
        std::fs::write(&list, paths.iter().map(|path| format!("{path}\0")).collect::<String>())
            .expect("list");
        let command = format!("syncd-agent php-invalidate --fpm {socket} {more}");
        let variables = format!("SYNCD_TREE={} SYNCD_SLOT_PATHS={}", tree.display(), list.display());
        node.debian.try_lines(&format!("env {variables} {command}"))
    };
    let page = || node.get("/index.php");
    let old = (200, "old old old one old ".to_owned());
    assert_eq!([page(), page()], [old.clone(), old.clone()]);

    script("changed.php", "new");
    remove(&tree.join("gone.php"));
    std::fs::rename(tree.join("directory"), tree.join("elsewhere")).expect("rename");
    assert_eq!(page(), old, "PHP does not look at files again");
    let said = invalidate(&["", "changed.php", "directory", "elsewhere", "gone.php"], "").expect_success();
    assert_eq!(said.stdout, format!("{socket}: 5 changed paths, OPcache forgot 3 scripts\n"));
    assert_eq!(page(), (200, "new one old ".to_owned()));

    link("two");
    assert_eq!(page().1, "new one old ");
    invalidate(&["link"], "").expect_success();
    assert_eq!(page().1, "new two old ");

    // A slot that PHP never served: cached code below its path is dropped.
    script("same.php", "newer");
    let said = invalidate(&[], "").expect_success();
    assert_eq!(said.stdout, format!("{socket}: 0 changed paths, OPcache forgot 4 scripts\n"));
    assert_eq!(page().1, "new two newer ");

    // A PHP-FPM that does not answer fails the hook, but the others still drop the code.
    script("changed.php", "newest");
    let said = invalidate(&["changed.php"], "--fpm /run/php/none.sock").expect_code(1);
    assert!(
        said.stderr.contains("PHP-FPM at /run/php/none.sock does not answer: can't connect"),
        "{said:#?}"
    );
    assert_eq!(page().1, "newest two newer ");
    let said = invalidate(&["changed.php"], "--script /none.php").expect_code(1);
    assert!(said.stderr.contains("can't run /none.php: File not found."), "{said:#?}");

    // The web cannot use the script.
    std::fs::copy("/usr/local/lib/syncd/opcache.php", tree.join("opcache.php")).expect("copy");
    assert_eq!(node.get("/opcache.php"), (403, "refused: only syncd-agent may ask\n".to_owned()));
}

#[test]
fn check_php_says_what_does_not_suit_the_replica() {
    const NAME: &str = "check_php_says_what_does_not_suit_the_replica";
    require_root("it installs a web server's configuration, in namespaces of its own");
    if !in_own_machine_within(NAME, Duration::from_secs(300)) {
        return;
    }
    let mut node = WebNode::new("php-check", |tree| {
        for number in 0..60 {
            write(tree, &format!("{number}.php"), "<?php echo 1;");
        }
    });
    node.follow("apache.md", "## The exact way");
    node.origin.commit_live();
    // The guide's own checks find nothing.
    node.follow("php.md", "## mod_php");
    node.follow("php.md", "## php-fpm");
    let php = node.debian.php();
    let check = || {
        let both = format!("--fpm /run/php/php{php}-fpm.sock --ini /etc/php/{php}/apache2");
        node.debian.try_lines(&format!("syncd-agent check-php {both}"))
    };
    let set = |lines: &str| {
        std::fs::write(format!("/etc/php/{php}/mods-available/check.ini"), lines).expect("settings");
        node.debian.follow(&format!("phpenmod check; systemctl restart php{php}-fpm"));
    };
    set("opcache.validate_timestamps=0\nopcache.max_accelerated_files=200\nrealpath_cache_ttl=600\n");
    let said = check().expect_code(3);
    for (words, times) in [
        ("  warning: opcache.validate_timestamps is off and no hook makes PHP forget", 1),
        ("  warning: realpath_cache_ttl is 600 s and --grace 150 s", 2),
        ("  warning: OPcache has room for 2", 2),
    ] {
        assert_eq!(said.stdout.matches(words).count(), times, "{words}: {said:#?}");
    }
    set("opcache.preload=/var/lib/syncd/agent/live/1.php\nopcache.preload_user=www-data\n");
    let said = check().expect_code(1);
    let refused = "  refused: opcache.preload takes /var/lib/syncd/agent/live/1.php from ROOT";
    assert_eq!(said.stdout.matches(refused).count(), 2, "{said:#?}");
    node.agent.stop();
    let said = node.debian.try_lines("syncd-agent check-php --fpm /run/php/none.sock").expect_code(1);
    assert!(said.stderr.contains("no agent runs on /var/lib/syncd/agent"), "{said:#?}");
}

#[test]
fn no_worker_from_before_takes_requests_once_the_hook_has_succeeded() {
    const NAME: &str = "no_worker_from_before_takes_requests_once_the_hook_has_succeeded";
    require_root("it installs a web server's configuration, in namespaces of its own");
    if !in_own_machine_within(NAME, Duration::from_secs(300)) {
        return;
    }
    // A request that lasts until Apache serves generation 2, and then longer than the hook needs to notice.
    let lasting = "file_put_contents($file, getmypid());\n\
        $context = stream_context_create(['http' => ['ignore_errors' => true]]);\n\
        do {\n\
            usleep(10000);\n\
            @file_get_contents('http://127.0.0.1:8876/', false, $context);\n\
        } while (!in_array('X-Syncd-Generation: 2', $http_response_header ?? []));\n\
        usleep(700000); echo 'done';\n";
    let mut node = WebNode::new("php-workers", |tree| {
        let file = tree.with_file_name("worker");
        std::fs::write(&file, "").expect("a file");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).expect("chmod");
        write(tree, "slow.php", format!("<?php $file = '{}';\n{lasting}", file.display()));
        write(tree, "page.html", "1");
    });
    node.follow("apache.md", "## The exact way");
    node.origin.commit_live();
    let slow = std::thread::spawn(|| http::get(ADDRESS, "/slow.php"));
    let worker: String = syncd_tests::wait::until("a worker to be busy", || {
        std::fs::read_to_string(node.scene().path("worker")).ok().filter(|worker| !worker.is_empty())
    });
    write(&node.origin.tree, "page.html", "2");
    node.origin.commit_live();
    // A zombie no longer has a program.
    assert!(std::fs::read_link(format!("/proc/{worker}/exe")).is_err(), "the worker from before is there");
    let answer = slow.join().expect("no panic").expect("an answer");
    assert_eq!(answer.body, b"done", "what was under way has ended as it should");
}
