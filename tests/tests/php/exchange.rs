//! PHP under load through a directory `live` (`--swap exchange`): the table of docs/php.md.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use syncd_tests::trouble::in_own_machine_within;
use syncd_tests::{WebNode, http, require_root, wait};

use super::{ADDRESS, CLIENTS, Php, Site, activations};

/// OPcache counts whole seconds: a script that it checked just before a switch is not checked for
/// `revalidate_freq` and the rest of a second.
const STOCK_OLD: Duration = Duration::from_secs(3);

/// How PHP learns of new code, as a row of the table.
#[derive(Debug, Clone, Copy)]
struct Row {
    php: Php,
    /// Heading of the way in docs/apache.md.
    way: &'static str,
    /// Lines for `php.ini`.
    ini: &'static str,
    /// Command of the hook, with `VERSION` for that of PHP.
    hook: Option<&'static str>,
    /// Time after `commit --wait` for which old code may run.
    old_for: Duration,
}

/// Answers of one row.
#[derive(Debug, Default)]
struct Seen {
    requests: u64,
    failed: u64,
    /// Requests during a commit that saw two generations. Either can be of any age: a worker that takes a
    /// script from OPcache while another discards it runs it unchecked (the other sets its time to 0, which
    /// stands for a preloaded script), and below `slots` OPcache may hold code of long ago.
    mixed: u64,
    /// Requests with no commit beside them that ran older code than that of the generation that was live when
    /// they began.
    old: u64,
    /// Longest time that a generation had been live when such a request began.
    old_for: Duration,
    /// Requests among them that ran older code than that of the generation before.
    older: u64,
    complaints: Vec<String>,
}

struct Watch {
    site: Site,
    stop: AtomicBool,
    /// Version that was reported live, and the moment of the report.
    live: Mutex<(u64, Instant)>,
    /// Version that is live or about to be.
    coming: AtomicU64,
    seen: Mutex<Seen>,
}

impl Watch {
    fn new(site: Site) -> Arc<Self> {
        Arc::new(Self {
            site,
            stop: AtomicBool::new(false),
            live: Mutex::new((0, Instant::now())),
            coming: AtomicU64::new(0),
            seen: Mutex::default(),
        })
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("no client panicked")
    }

    fn visit(&self) {
        let (live, since) = *self.live.lock().expect("no client panicked");
        let began = Instant::now();
        let answer = http::get(ADDRESS, "/index.php");
        let coming = self.coming.load(Ordering::SeqCst);
        let mut seen = self.seen();
        seen.requests += 1;
        let body = match answer {
            Ok(answer) if answer.status == 200 => String::from_utf8_lossy(&answer.body).into_owned(),
            other => {
                seen.failed += 1;
                return seen.complaints.push(format!("{other:?}"));
            }
        };
        if (live..=coming).any(|version| body == self.site.page(version)) {
            return;
        }
        let numbers = body.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok());
        // The version, those of the three scripts, and the version once more.
        let stamps: Vec<u64> = numbers.skip(1).take(3).collect();
        let runs_before = |version| (0..).zip(&stamps).any(|(n, stamp)| *stamp < self.site.stamp(version, n));
        if stamps.len() < 3 || (live == coming && !runs_before(live)) {
            seen.failed += 1;
            seen.complaints.push(body);
        } else if live == coming {
            seen.old += 1;
            seen.old_for = seen.old_for.max(began - since);
            if runs_before(live.saturating_sub(1)) {
                seen.older += 1;
                seen.complaints.push(format!("{body}, although {live} is live"));
            }
        } else {
            seen.mixed += 1;
        }
    }

    /// Commits versions one after another under load, `pace` apart.
    fn through(self: &Arc<Self>, node: &WebNode, versions: u64, pace: Duration) {
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    while !self.stop.load(Ordering::Relaxed) {
                        self.visit();
                    }
                });
            }
            for version in 1..=versions {
                self.coming.store(version, Ordering::SeqCst);
                self.site.write(&node.origin.tree, version);
                node.origin.commit_live();
                *self.live.lock().expect("no client panicked") = (version, Instant::now());
                // Whatever the commit took: old code is that of one generation before.
                std::thread::sleep(pace);
            }
            self.stop.store(true, Ordering::Relaxed);
        });
    }
}

/// A node with this row's settings, served through `live`, with version 0 live.
fn node(row: Row, site: Site, grace: &str) -> WebNode {
    let mut node = WebNode::new("php-exchange", |tree| site.write(tree, 0))
        .with_agent_options(&["--swap", "exchange", "--grace", grace]);
    node.follow("apache.md", row.way);
    if row.php == Php::Fpm {
        // The last step checks the settings, of which some are to be doubted here.
        (0..2).for_each(|step| node.follow_step("php.md", "## php-fpm", step));
    }
    let php = node.debian.php();
    std::fs::write(format!("/etc/php/{php}/mods-available/exchange.ini"), row.ini).expect("settings");
    node.debian.follow("phpenmod exchange; systemctl restart apache2");
    restart(&node, row.php);
    node.debian.follow("install -D -m 644 packaging/php/opcache.php /usr/local/lib/syncd/opcache.php");
    if let Some(hook) = row.hook {
        let hook = hook.replace("VERSION", &php);
        node.debian.follow(&format!(
            "install -d /etc/syncd; echo \"SYNCD_ON_ACTIVATE='{hook}'\" >> /etc/syncd/agent.env"
        ));
    }
    if !node.agent.is_running() {
        node.start_agent();
    }
    node.origin.commit_live();
    node
}

fn restart(node: &WebNode, php: Php) {
    match php {
        Php::Fpm => node.debian.follow(&format!("systemctl restart php{}-fpm", node.debian.php())),
        Php::Module => node.debian.follow("systemctl restart apache2"),
    };
}

/// Runs the test of this name.
fn exchanges_under_load(name: &str, row: Row) {
    require_root("it installs a web server's configuration, in namespaces of its own");
    if !in_own_machine_within(name, Duration::from_secs(300 + 5 * activations())) {
        return;
    }
    let (versions, pace, grace) = match row.old_for {
        Duration::ZERO => (activations(), Duration::from_millis(500), "500ms"),
        old_for => (activations() / 4, old_for + Duration::from_secs(1), "4s"),
    };
    // Every version changes every script.
    let site = Site { all_change_until: versions };
    let node = node(row, site, grace);
    let watch = Watch::new(site);
    watch.through(&node, versions, pace);
    let seen = watch.seen();
    println!(
        "{name}: {versions} activations, {} requests, {} failed, {} mixed during a commit, {} old for up to \
         {:.1} s, {} of them older than the generation before",
        seen.requests,
        seen.failed,
        seen.mixed,
        seen.old,
        seen.old_for.as_secs_f64(),
        seen.older
    );
    assert!(seen.requests > 50, "too few requests");
    assert_eq!((seen.failed, seen.older), (0, 0), "{:#?}", &seen.complaints[..seen.complaints.len().min(10)]);
    match row.old_for {
        Duration::ZERO => assert_eq!(seen.old, 0, "old code although another generation is live"),
        // Seconds without a check, so that old code is seen whenever clients ask.
        old_for => assert!(seen.old > 0 && seen.old_for < old_for, "{:?}", seen.old_for),
    }
}

const SIMPLE: &str = "## The simple way";
const INVALIDATE: &str = "syncd-agent php-invalidate --fpm /run/php/phpVERSION-fpm.sock";
const STOCK: Row = Row { php: Php::Fpm, way: SIMPLE, ini: "", hook: None, old_for: STOCK_OLD };
const EACH_TIME: Row = Row { ini: "opcache.revalidate_freq=0\n", old_for: Duration::ZERO, ..STOCK };
const NEVER: Row = Row { ini: "opcache.validate_timestamps=0\n", ..EACH_TIME };

#[test]
fn fpm_in_a_directory_with_stock_settings() {
    exchanges_under_load("exchange::fpm_in_a_directory_with_stock_settings", STOCK);
}

#[test]
fn fpm_in_a_directory_that_checks_each_time() {
    exchanges_under_load("exchange::fpm_in_a_directory_that_checks_each_time", EACH_TIME);
}

#[test]
fn fpm_in_a_directory_without_timestamps() {
    let row = Row { hook: Some(INVALIDATE), ..NEVER };
    exchanges_under_load("exchange::fpm_in_a_directory_without_timestamps", row);
}

#[test]
fn mod_php_in_a_directory_with_stock_settings() {
    let row = Row { php: Php::Module, ..STOCK };
    exchanges_under_load("exchange::mod_php_in_a_directory_with_stock_settings", row);
}

#[test]
fn mod_php_in_a_directory_that_checks_each_time() {
    let row = Row { php: Php::Module, ..EACH_TIME };
    exchanges_under_load("exchange::mod_php_in_a_directory_that_checks_each_time", row);
}

#[test]
fn mod_php_in_a_directory_that_is_reloaded() {
    let row = Row { php: Php::Module, way: "## The exact way", ..NEVER };
    exchanges_under_load("exchange::mod_php_in_a_directory_that_is_reloaded", row);
}

#[test]
fn php_in_a_directory_that_nobody_tells_runs_old_code_until_it_is_restarted() {
    const NAME: &str = "exchange::php_in_a_directory_that_nobody_tells_runs_old_code_until_it_is_restarted";
    require_root("it installs a web server's configuration, in namespaces of its own");
    if !in_own_machine_within(NAME, Duration::from_secs(300)) {
        return;
    }
    let site = Site { all_change_until: 2 };
    let node = node(NEVER, site, "1s");
    assert_eq!(node.get("/index.php").1, site.page(0));
    site.write(&node.origin.tree, 1);
    node.origin.commit_live();
    let old = "version 1 [0][0][0] end of 1";
    let started = Instant::now();
    while started.elapsed() < STOCK_OLD {
        assert_eq!(node.get("/index.php").1, old);
        std::thread::sleep(Duration::from_millis(100));
    }
    restart(&node, Php::Fpm);
    wait::until("PHP to run the new code", || (node.get("/index.php").1 == site.page(1)).then_some(()));
}
