//! Time from the start of an agent to its answer after a power cut in each of its activities, without an
//! origin.
//!
//! By default this runs untimed on a small tree with directories that deny their owner something, with an
//! agent without privileges. The figures of docs/reliability.md come from 34,851 files, a release build, and
//! a file system that is mounted again before the agent starts. Its image is in memory. The bytes that an
//! agent reads are shown, because reading takes longer on a disk.
//!
//! ```text
//! SYNCD_RECOVERY=docs cargo test --release -p syncd-tests --test recovery -- --nocapture
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use syncd_tests::corpora::{self, Corpus};
use syncd_tests::edits::{closed_directories, remove, small_site, write};
use syncd_tests::mounts::Mount;
use syncd_tests::node::{Node, Rights, Scenario};
use syncd_tests::process::processor_time;
use syncd_tests::tracer::{Point, Verdict};
use syncd_tests::{Scene, Seeded};

/// Deadline of a traced run of a large tree.
const PATIENCE: Duration = Duration::from_secs(300);
/// Number of paths after which a large tree's crash happens; in small trees it happens early.
const DEEP: usize = 9_000;

/// A moment in a scenario.
struct Moment {
    what: &'static str,
    scenario: Scenario,
    /// Number of matching calls before it.
    skip: usize,
    fits: fn(&Point) -> bool,
    /// Generations that may be live afterwards.
    live: [u64; 2],
}

/// Freezes the agent at the moment and cuts the power. Err: the moment never came.
fn cut_at(node: &mut Node, moment: &Moment) -> Result<(), String> {
    let seen = Arc::new(AtomicUsize::new(0));
    let (counted, fits, skip) = (seen.clone(), moment.fits, moment.skip);
    let policy = move |point: &Point| {
        if fits(point) && counted.fetch_add(1, Ordering::Relaxed) == skip {
            Verdict::FreezeBefore
        } else {
            Verdict::Pass
        }
    };
    let mut traced = node.trace(&moment.scenario, Box::new(policy));
    let frozen = traced.wait(PATIENCE, |_| false);
    node.mount.cut_power();
    traced.kill();
    node.mount.power_up_cold();
    if frozen { Ok(()) } else { Err(format!("{} calls fitted", seen.load(Ordering::Relaxed))) }
}

/// Content of two generations, in `tree`.
struct Content {
    tree: PathBuf,
    corpus: Option<Corpus>,
}

impl Content {
    fn first(tree: PathBuf) -> Self {
        let large = std::env::var("SYNCD_RECOVERY").is_ok_and(|which| which == "docs");
        let corpus = large.then(corpora::docs);
        match &corpus {
            Some(corpus) => Corpus::copy(&corpus.a(), &tree),
            None => {
                small_site(&tree, 60);
                write(&tree, "large.bin", Seeded::new(3).bytes(300_000));
                closed_directories(&tree, 0);
            }
        }
        Self { tree, corpus }
    }

    fn second(&self) {
        match &self.corpus {
            Some(corpus) => Corpus::deploy(&corpus.b(), &self.tree),
            None => {
                for number in 0..80 {
                    write(&self.tree, &format!("new/page-{number}.html"), format!("page {number}"));
                }
                remove(&self.tree.join("section-3"));
                closed_directories(&self.tree, 1);
            }
        }
    }

    /// The figures of the docs are those of an agent that runs as root.
    fn rights(&self) -> Rights {
        if self.corpus.is_some() { Rights::Root } else { Rights::User }
    }

    fn skip(&self) -> usize {
        if self.corpus.is_some() { DEEP } else { 20 }
    }
}

fn in_building(point: &Point) -> bool {
    point.path.contains("slots/")
}

fn moments(content: &Content, joined: &Path, one: &Path, two: &Path) -> Vec<Moment> {
    let first = Scenario::from("first sync", joined, 0);
    let update = Scenario::from("update", one, 1);
    let idle = Scenario::from("idle", two, 2).left_alone();
    let recycling = Scenario { options: idle.options.clone(), ..update.clone() };
    let moment = |what, scenario: &Scenario, skip, fits, live| Moment {
        what,
        scenario: scenario.clone(),
        skip,
        fits,
        live,
    };
    let deep = content.skip();
    vec![
        moment("first sync, in its tree", &first, deep, in_building as fn(&Point) -> bool, [0, 0]),
        moment("update, in its tree", &update, 30, |p| p.thread == "replica" && in_building(p), [1, 1]),
        moment(
            "before the record of the switch",
            &update,
            0,
            |p| p.thread == "replica" && p.call == "symlinkat" && p.path.contains("live.next"),
            [1, 1],
        ),
        moment(
            "before the switch",
            &update,
            0,
            |p| p.call == "renameat" && p.path.contains("live.next"),
            [1, 2],
        ),
        moment("after the switch", &update, 0, |p| p.thread == "background" && in_building(p), [2, 2]),
        moment("new spares", &first, deep, |p| p.thread == "background" && in_building(p), [2, 2]),
        moment("catching up of a spare", &update, 30, |p| p.thread == "background" && in_building(p), [2, 2]),
        moment(
            "recycling of an old tree",
            &recycling,
            40,
            |p| p.thread == "background" && in_building(p),
            [2, 2],
        ),
        moment(
            "deletion of an old tree",
            &idle,
            deep / 9,
            |p| p.call == "unlinkat" && p.path.contains("trash/"),
            [2, 2],
        ),
    ]
}

/// Time until the agent answered, and the resources used.
fn cost(node: &mut Node, took: Duration) -> String {
    let pid = node.agent.daemon().pid();
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let io = read("io");
    let bytes = io.lines().find_map(|line| line.strip_prefix("read_bytes: ")?.parse::<u64>().ok());
    let milliseconds = took.as_secs_f64() * 1000.0;
    let (cpu, mebibytes) = (processor_time(pid).as_millis(), bytes.unwrap_or(0) as f64 / f64::from(1 << 20));
    format!("{milliseconds:.0} ms, {cpu} ms of processor so far, {mebibytes:.1} MiB read")
}

#[test]
fn a_replica_recovers_after_a_cut_in_whatever_it_does_without_its_origin() {
    let scene = Scene::in_memory("recovery");
    let content = Content::first(scene.path("tree"));
    let mount = Mount::ext4(&scene.path("disk"), 6 * 1024);
    let mut node = Node::joined(&scene, mount, &content.tree, content.rights());
    node.patience = PATIENCE;
    let joined = node.mount.save("joined.image");
    node.commit();
    node.settle_at(1);
    let one = node.save("one.image");
    content.second();
    node.commit();
    node.settle_at(2);
    let two = node.save("two.image");
    println!("ready");
    for (name, image) in [("nothing, one generation", &one), ("nothing, two generations", &two)] {
        node.mount.restore(image);
        node.mount.power_up_cold();
        let (status, took) = node.recover().expect("it answers");
        println!("{name:32} generation {:?} live after {}", status.generation, cost(&mut node, took));
        node.agent.kill9();
        node.origin_answers(true);
    }
    for moment in moments(&content, &joined, &one, &two) {
        let started = Instant::now();
        cut_at(&mut node, &moment).unwrap_or_else(|why| panic!("{}: it never came, {why}", moment.what));
        let (status, took) = node.recover().unwrap_or_else(|why| panic!("{}: {why}", moment.what));
        let live = node.complete(moment.live[0]).unwrap_or_else(|why| panic!("{}: {why}", moment.what));
        assert!(moment.live.contains(&live), "{}: {live} is live", moment.what);
        assert_eq!(status.generation.unwrap_or(0), live, "{}: {status:?}", moment.what);
        let cost = cost(&mut node, took);
        let case = started.elapsed().as_secs_f64();
        println!("{:32} generation {live} live after {cost} (case of {case:.0} s)", moment.what);
        node.agent.kill9();
        node.origin_answers(true);
    }
}
