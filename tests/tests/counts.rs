//! Counts of what one change costs, by size and by shape of the tree, against committed baselines.
//!
//! Times depend on the machine. Counts of system calls, of syncs and of bytes do not, and a small tree shows
//! already that a count grows with the tree. Each scenario makes [`ROUNDS`] commits of one changed or one
//! added file while both programs are traced. A count that is clearly above its baseline fails, and so does
//! one that is clearly higher in the large tree than in the small one of the same shape.
//! `SYNCD_COUNTS=update` writes the baselines anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use syncd_tests::edits::write;
use syncd_tests::link::{Line, Link};
use syncd_tests::strace::Strace;
use syncd_tests::{Agent, Origin, Scene, binary, wait};

/// Commits in each scenario.
const ROUNDS: usize = 8;
const SMALL: usize = 1_000;
const LARGE: usize = 10_000;
/// Further measurements of a shape that seems to cost more. Beside a commit the agent prepares trees, checks
/// old ones and saves what it found, each at a time of its own. On a busy machine more of it falls into the
/// rounds. A cost of the commit itself comes back every time.
const REPEATS: usize = 2;
/// A count may be this much above its baseline.
const TOLERANCE: f64 = 1.3;
/// A count in the large tree may be this much above that in the small one. The databases write one more level
/// of pages there: some 100 KiB of 350 in deep trees. A cost that follows the tree is ten times as high.
const GROWTH: f64 = 1.5;
/// Differences below this are never a finding: a heartbeat or a batched record falls into a round or not.
const SLACK: Counts = Counts { names: 12.0, listings: 4.0, syncs: 2.0, written_kib: 96.0, sent_kib: 4.0 };

/// Mean of one commit. The agent's calls with names are left out: while commits go on, it prepares further
/// trees beside them and checks old ones, and both cost as much as a tree. The suite `costs` counts them.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Counts {
    /// System calls of the origin with names in the content tree.
    names: f64,
    /// Calls of the origin that list a directory of the content tree.
    listings: f64,
    /// `fsync`, `fdatasync` and `syncfs` of both programs.
    syncs: f64,
    /// KiB that both programs passed to `write` and `pwrite64`, of files and of the databases.
    written_kib: f64,
    /// KiB from the origin to the agent, with TLS.
    sent_kib: f64,
}

impl Counts {
    fn fields(&self) -> [(&'static str, f64); 5] {
        [
            ("names", self.names),
            ("listings", self.listings),
            ("syncs", self.syncs),
            ("written_kib", self.written_kib),
            ("sent_kib", self.sent_kib),
        ]
    }

    /// The lower value of each field.
    fn lower(&self, other: &Counts) -> Counts {
        Counts {
            names: self.names.min(other.names),
            listings: self.listings.min(other.listings),
            syncs: self.syncs.min(other.syncs),
            written_kib: self.written_kib.min(other.written_kib),
            sent_kib: self.sent_kib.min(other.sent_kib),
        }
    }

    /// Fields that are clearly above `factor` times those of `other`.
    fn above(&self, other: &Counts, factor: f64) -> Vec<String> {
        let fields = self.fields().into_iter().zip(other.fields()).zip(SLACK.fields());
        fields
            .filter(|(((_, now), (_, then)), (_, slack))| *now > then * factor && now - then > *slack)
            .map(|(((name, now), (_, then)), _)| format!("{name}: {now} against {then}"))
            .collect()
    }
}

/// Calls of the origin that are counted.
const ORIGIN_CALLS: &str = "%file,getdents64,fsync,fdatasync,syncfs";

/// How the files of a tree lie.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    /// Path of a file.
    place: fn(usize) -> String,
}

const SHAPES: [Shape; 4] = [
    Shape { name: "wide-leaf", place: |number| format!("wide/page-{number}.html") },
    Shape { name: "wide-root", place: |number| format!("section-{number}/page.html") },
    Shape {
        name: "deep",
        // Directories of 25 files in any case: the pages of each directory above a change are written again.
        place: |number| {
            format!("part-{}/{}page-{number}.html", number / 1000, "level/".repeat(1 + number % 40))
        },
    },
    Shape {
        name: "small-directories",
        place: |number| format!("a-{}/b-{}/page-{number}.html", number % 23, number % 529),
    },
];

/// The calls of both programs and the bytes that they write and send, from now on.
///
/// The origin has settled by then: under `strace`, its first scan would take many times as long. The agent,
/// which prepares trees meanwhile, is stopped for its syncs alone.
struct Tally {
    origin: Strace,
    agent_syncs: u64,
    written: u64,
}

impl Tally {
    fn begin(cluster: &Cluster, what: &str) -> Self {
        let origin = Strace::attach(&cluster.scene, cluster.pids[0], what, ORIGIN_CALLS);
        cluster.link.reset();
        Self { origin, agent_syncs: cluster.agent_syncs(), written: cluster.written() }
    }

    /// Means of one commit.
    fn end(self, cluster: &Cluster) -> Counts {
        let (sent, _) = cluster.link.delivered(Instant::now());
        let mut sums = Counts {
            syncs: (cluster.agent_syncs() - self.agent_syncs) as f64,
            written_kib: (cluster.written() - self.written) as f64 / 1024.0,
            sent_kib: sent as f64 / 1024.0,
            ..Counts::default()
        };
        let below = cluster.tree.display().to_string();
        for line in self.origin.finish() {
            // The other half of a call that another thread interrupted has no parenthesis after its name.
            let Some((call, _)) = line.split_once('(') else { continue };
            match call.split_whitespace().last() {
                Some("fsync" | "fdatasync" | "syncfs") => sums.syncs += 1.0,
                Some("getdents64") if line.contains(&below) => sums.listings += 1.0,
                Some(_) if line.contains(&below) => sums.names += 1.0,
                _ => {}
            }
        }
        let mean = |sum: f64| (sum / ROUNDS as f64 * 10.0).round() / 10.0;
        Counts {
            names: mean(sums.names),
            listings: mean(sums.listings),
            syncs: mean(sums.syncs),
            written_kib: mean(sums.written_kib),
            sent_kib: mean(sums.sent_kib),
        }
    }
}

/// Bytes that a process has passed to `write` and its kin so far. Sockets do not count, as they are sent to.
fn written(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).expect("read the counts of a process");
    let line = text.lines().find_map(|line| line.strip_prefix("wchar: "));
    line.and_then(|value| value.trim().parse().ok()).expect("a count of bytes written")
}

/// An origin and an agent on a tree of one shape and size.
struct Cluster {
    scene: Scene,
    shape: Shape,
    size: usize,
    tree: PathBuf,
    origin: Origin,
    agent: Agent,
    /// The origin, and the agent.
    pids: [u32; 2],
    /// Grows by a byte with each sync of the agent.
    agent_syncs: PathBuf,
    link: Link,
}

impl Cluster {
    fn start(shape: Shape, size: usize) -> Self {
        let scene = Scene::in_memory(&format!("counts-{}-{size}", shape.name));
        let tree = scene.path("tree");
        for number in 0..size {
            write(&tree, &(shape.place)(number), format!("<p>page {number}</p>"));
        }
        let mut origin = Origin::started(&scene, &tree);
        let link = Link::new(origin.address(), Line { round_trip: Duration::ZERO, bytes_per_second: 1e9 });
        // Commits that come faster than the grace take new slots, each of which costs as much as the tree.
        let mut agent = Agent::new(&scene, "web1").with_options(&["--grace", "0s"]);
        agent.join(&link.address(), &origin.token()).expect_success();
        let agent_syncs = scene.path("agent.syncs");
        agent.under(&[binary("count-syncs").into(), agent_syncs.clone().into()]);
        agent.start();
        origin.wait_connected(&["web1"]);
        let pids = [origin.daemon().pid(), agent.daemon().pid()];
        let cluster = Self { scene, shape, size, tree, origin, agent, pids, agent_syncs, link };
        // Until every slot has been patched once.
        for round in 0..4 {
            cluster.commit(size / 2, format!("warm {round}"));
        }
        cluster
    }

    /// Writes file `number` and waits until it is live.
    fn commit(&self, number: usize, content: String) {
        write(&self.tree, &(self.shape.place)(number), content);
        self.agent.wait_live(self.origin.commit_live());
    }

    fn agent_syncs(&self) -> u64 {
        fs::metadata(&self.agent_syncs).expect("a file of counts").len()
    }

    /// Bytes that both programs have written so far.
    fn written(&self) -> u64 {
        self.pids.map(written).into_iter().sum()
    }

    /// Counts one commit of `change`, whose argument is the number of the round.
    fn count(&self, what: &str, change: impl Fn(&Self, usize)) -> (String, Counts) {
        wait::until("both spares", || self.agent.try_status().filter(|status| status.spares >= 2));
        let tally = Tally::begin(self, what);
        for round in 0..ROUNDS {
            change(self, round);
        }
        let counts = tally.end(self);
        (format!("{} {what} {}", self.shape.name, self.size), counts)
    }
}

/// Counts of changing and of adding a file in a tree of this shape and size.
fn measure(shape: Shape, size: usize) -> [(String, Counts); 2] {
    let cluster = Cluster::start(shape, size);
    let changed =
        cluster.count("change", |cluster, round| cluster.commit(size / 3, format!("changed {round}")));
    let added = cluster.count("add", |cluster, round| cluster.commit(size + round, format!("added {round}")));
    [changed, added]
}

fn baselines() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/counts.json")
}

/// Counts above their baseline, and counts above those of the small tree of the same shape.
fn findings(now: &BTreeMap<String, Counts>, then: &BTreeMap<String, Counts>) -> Vec<String> {
    let mut findings = Vec::new();
    for (name, counts) in now {
        let above = counts.above(&then[name], TOLERANCE);
        findings.extend(above.iter().map(|what| format!("{name}, baseline: {what}")));
        if let Some(small) = name.strip_suffix(&format!(" {LARGE}")).map(|stem| format!("{stem} {SMALL}")) {
            let above = counts.above(&now[&small], GROWTH);
            findings.extend(above.iter().map(|what| format!("{name}, small tree: {what}")));
        }
    }
    findings
}

/// Measures every shape of which a finding is left once more, and keeps the lower count of both.
fn measure_again(now: &mut BTreeMap<String, Counts>, findings: &[String]) {
    let odd = |shape: &Shape| findings.iter().any(|finding| finding.starts_with(shape.name));
    for shape in SHAPES.into_iter().filter(odd) {
        for (name, counts) in [SMALL, LARGE].into_iter().flat_map(|size| measure(shape, size)) {
            let lower = counts.lower(&now[&name]);
            now.insert(name, lower);
        }
    }
}

#[test]
fn a_change_costs_what_it_did_and_the_same_in_a_large_tree() {
    // Two at once, because a scenario keeps one core busy. A shape with findings is measured again by itself.
    let mut now: BTreeMap<_, _> = std::thread::scope(|scope| {
        let sizes = |shape: &Shape| [SMALL, LARGE].map(|size| measure(*shape, size));
        let lanes: Vec<_> = SHAPES
            .chunks(2)
            .map(|shapes| scope.spawn(move || shapes.iter().flat_map(sizes).flatten().collect::<Vec<_>>()))
            .collect();
        lanes.into_iter().flat_map(|lane| lane.join().expect("measured")).collect()
    });
    let text = serde_json::to_string_pretty(&now).expect("JSON");
    println!("{text}");
    if std::env::var("SYNCD_COUNTS").as_deref() == Ok("update") {
        fs::write(baselines(), text + "\n").expect("write the baselines");
        return;
    }
    let then: BTreeMap<String, Counts> =
        serde_json::from_str(&fs::read_to_string(baselines()).expect("read the baselines")).expect("JSON");
    assert_eq!(then.keys().collect::<Vec<_>>(), now.keys().collect::<Vec<_>>(), "other scenarios");
    let mut found = findings(&now, &then);
    for _ in 0..REPEATS {
        if found.is_empty() {
            break;
        }
        println!("measured again: {found:?}");
        measure_again(&mut now, &found);
        found = findings(&now, &then);
    }
    assert!(found.is_empty(), "{} counts have grown:\n{}", found.len(), found.join("\n"));
}
