//! Uploads on one node until they are readable on another: 2 MB, and a burst of small files. Both nodes and
//! the origin are on the machine's own file system.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use syncd_tests::edits::write;
use syncd_tests::{Agent, Origin, Scene, Seeded, wait};

use crate::bench::Bench;
use crate::noise::sync_all;
use crate::report::Report;

/// Number of large uploads in each requested run.
const UPLOADS_A_RUN: usize = 4;
const LARGE_BYTES: usize = 2_000_000;
const SMALL_BYTES: usize = 4_000;
/// Files in each directory of the burst.
const FILES_A_DIRECTORY: usize = 100;
const PATIENCE: Duration = Duration::from_secs(600);
/// Interval between looks at the other node.
const LOOK: Duration = Duration::from_micros(300);
const LARGE: &str = "2 MB, closed on one node to read on the other";
const BURST: &str = "small files, the first written to the last read";
const TIME: &str = "time";

pub fn measure(bench: &Bench) -> Report {
    let mut report = bench.report("uploads", "Uploads from one node to another", []);
    let cluster = Cluster::new();
    let runs = bench.runs() * UPLOADS_A_RUN;
    for run in 0..=runs {
        report.begin(run, runs);
        let took = cluster.large(run);
        report.sample(TIME, "ms", LARGE, took.as_secs_f64() * 1e3);
    }
    let files = if bench.quick { 1_000 } else { 10_000 };
    let bursts = bench.runs().min(3);
    for run in 0..=bursts {
        report.begin(run, bursts);
        let took = cluster.burst(run, files);
        report.sample("burst", "s", BURST, took.as_secs_f64());
    }
    let (large, burst) = (report.median(TIME, LARGE), report.median("burst", BURST));
    report.target("2 MB, readable on the other node", "ms", 100.0, large);
    report.target(&format!("{files} files of {SMALL_BYTES} bytes on the other node"), "s", 10.0, burst);
    report
}

struct Cluster {
    /// Dropped in this order.
    nodes: [Agent; 2],
    _origin: Origin,
    _scene: Scene,
}

impl Cluster {
    fn new() -> Self {
        let scene = Scene::new("bench-uploads");
        let (tree, config) = (scene.path("tree"), scene.path("origin.toml"));
        write(&tree, "index.html", "a site");
        fs::write(&config, "[collect.uploads]\npath = 'uploads'\nowner = '0:0'\nmax_bytes = '100G'\n")
            .expect("write the configuration");
        let options = ["--trigger", "manual", "--config", &config.display().to_string()];
        let mut origin = Origin::create(&scene, &tree).with_options(&options);
        origin.start();
        origin.commit();
        let nodes = ["node1", "node2"].map(|name| Agent::started(&scene, &origin, name));
        let cluster = Self { nodes, _origin: origin, _scene: scene };
        for node in &cluster.nodes {
            wait::until("the link", || node.live().join("uploads").is_dir().then_some(()));
        }
        cluster.arrives(&cluster.put("first.txt", b"connected"), b"connected");
        cluster
    }

    fn directory(&self, node: usize) -> PathBuf {
        self.nodes[node].live().join("uploads")
    }

    /// Writes a file on the first node. Returns its path on the second.
    fn put(&self, path: &str, content: &[u8]) -> PathBuf {
        write(&self.directory(0), path, content);
        self.directory(1).join(path)
    }

    fn arrives(&self, at: &Path, content: &[u8]) {
        let started = Instant::now();
        // Read once it may be whole.
        let is_there = || fs::metadata(at).is_ok_and(|found| found.len() == content.len() as u64);
        while !is_there() || fs::read(at).ok().as_deref() != Some(content) {
            assert!(started.elapsed() < PATIENCE, "{} did not arrive", at.display());
            std::thread::sleep(LOOK);
        }
    }

    fn large(&self, run: usize) -> Duration {
        let content = Seeded::new(run as u64).bytes(LARGE_BYTES);
        sync_all();
        let started = Instant::now();
        let at = self.put(&format!("large/{run}.jpg"), &content);
        self.arrives(&at, &content);
        started.elapsed()
    }

    fn burst(&self, run: usize, files: usize) -> Duration {
        let content = |file: usize| {
            let mut bytes = Seeded::new(run as u64).bytes(SMALL_BYTES);
            bytes.splice(..0, format!("{run} {file} ").into_bytes());
            bytes
        };
        let contents: Vec<Vec<u8>> = (0..files).map(content).collect();
        sync_all();
        let started = Instant::now();
        let path = |file: usize| format!("burst-{run}/{}/{file}.jpg", file / FILES_A_DIRECTORY);
        let paths: Vec<PathBuf> =
            contents.iter().enumerate().map(|(file, content)| self.put(&path(file), content)).collect();
        for (at, content) in paths.iter().zip(&contents) {
            self.arrives(at, content);
        }
        started.elapsed()
    }
}
