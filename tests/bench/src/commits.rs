//! Commits in a large tree: of nothing, and of one changed file to two agents.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use syncd_tests::corpora::{self, Corpus};
use syncd_tests::oracle::assert_same;
use syncd_tests::{Agent, Origin, Scene, wait};

use crate::proc_figures::{cpu_seconds, peak_memory_mib};
use crate::report::Report;

const SMALL_TREE: usize = 1000;
const NOTHING_COMMITS: usize = 20;
const IDLE: Duration = Duration::from_secs(10);

/// Measures in a tree of `files` files; where one-file commits are wanted also in a small one.
pub fn measure(report: &mut Report, files: usize, nothing: bool, one_file: Option<usize>) {
    let mut medians = Vec::new();
    let sizes = if one_file.is_some() { vec![files, SMALL_TREE] } else { vec![files] };
    for size in sizes {
        eprintln!("commits: a tree of {size} files");
        let mut site = Site::new(size);
        if nothing && size == files {
            site.nothing(report);
        }
        if let Some(commits) = one_file {
            medians.push(site.one_file(report, commits));
        }
    }
    if let [large, small] = medians[..] {
        report.target(format!("one changed file of {files}, to live on two agents"), "ms", 100.0, large);
        report.target(format!("the same, times that in {SMALL_TREE} files"), "x", 1.5, large / small);
    }
}

struct Site {
    origin: Origin,
    agents: [Agent; 2],
    files: usize,
    _scene: Scene,
}

impl Site {
    fn new(files: usize) -> Self {
        let scene = Scene::new("bench-commits");
        let tree = scene.path("tree");
        Corpus::copy(&corpora::many(files).a(), &tree);
        let origin = Origin::started(&scene, &tree);
        origin.commit();
        let agents = ["node1", "node2"].map(|name| Agent::started(&scene, &origin, name));
        origin.wait_connected(&["node1", "node2"]);
        let mut site = Self { origin, agents, files, _scene: scene };
        site.rest();
        site
    }

    /// Waits until both agents are live and have a spare: what comes next is nobody's preparation.
    /// Until both agents have a spare and do nothing more in the background, and nobody's write-back is under way.
    fn rest(&mut self) {
        let generation = self.origin.status().generation;
        for agent in &self.agents {
            wait::within(Duration::from_secs(600), "an agent with a spare", || {
                agent.try_status().filter(|status| status.generation == generation && status.spares >= 1)
            });
        }
        let pids: Vec<_> = self.agents.iter_mut().map(|agent| agent.daemon().pid()).collect();
        let busy = || -> f64 { pids.iter().map(|pid| cpu_seconds(*pid)).sum() };
        wait::within(Duration::from_secs(600), "idle agents", || {
            let before = busy();
            std::thread::sleep(Duration::from_secs(1));
            (busy() - before < 0.02).then_some(())
        });
        let synced = std::process::Command::new("sync").status().expect("run sync");
        assert!(synced.success(), "sync failed");
    }

    fn nothing(&mut self, report: &mut Report) {
        let files = self.files;
        let pid = self.origin.daemon().pid();
        self.origin.commit();
        // Each commit is a process of its own: what the origin itself spends is counted.
        let before = cpu_seconds(pid);
        let mut walls = Vec::new();
        for _ in 0..NOTHING_COMMITS {
            let started = Instant::now();
            self.origin.commit();
            walls.push(started.elapsed().as_secs_f64() * 1e3);
        }
        let per_commit = (cpu_seconds(pid) - before) * 1e3 / NOTHING_COMMITS as f64;
        report.add(format!("commit of nothing, {files} files"), "ms", walls);
        report.add("origin CPU of a commit of nothing (mean)", "ms", vec![per_commit]);
        report.target(format!("origin CPU of a commit of nothing, {files} files"), "ms", 50.0, per_commit);
        let before = cpu_seconds(pid);
        std::thread::sleep(IDLE);
        let idle = (cpu_seconds(pid) - before) * 1e3;
        report.add("origin CPU of 10 idle seconds, two agents connected", "ms", vec![idle]);
        report.target("origin CPU of 10 idle seconds", "ms", 10.0, idle);
        report.add(format!("peak memory of the origin, {files} files"), "MiB", vec![peak_memory_mib(pid)]);
    }

    fn one_file(&mut self, report: &mut Report, commits: usize) -> f64 {
        let mut walls = Vec::new();
        for commit in 0..=commits {
            let number = commit * 7919 % self.files;
            let page = format!("{:02}/{:03}/page-{number}.html", number / 200 % 32, number / 200);
            edit(&self.origin.tree.join(page), commit);
            let started = Instant::now();
            self.origin.commit_live();
            if commit > 0 {
                walls.push(started.elapsed().as_secs_f64() * 1e3);
            }
            self.rest();
        }
        for agent in &self.agents {
            assert_same(&self.origin.tree, &agent.live());
        }
        report.add(format!("one changed file of {}, commit --wait, two agents", self.files), "ms", walls)
    }
}

fn edit(page: &Path, commit: usize) {
    let mut content = fs::read(page).expect("read a page");
    content.extend_from_slice(format!("edit {commit}\n").as_bytes());
    fs::write(page, content).expect("write a page");
}
