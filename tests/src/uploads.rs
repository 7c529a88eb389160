//! Two nodes that exchange uploads, while the power of one side is cut at chosen calls, with an oracle for
//! what both have afterwards.
//!
//! The cuts follow one another: each round begins where the last one ended. In a round visitors of both nodes
//! add a file, change one and remove one. Changes that the origin had taken before the cut must stand on both
//! nodes in the end. After a cut at a node, its visitors' other changes may be lost, because nobody synced
//! them; after a kill nothing may be lost.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::edits::write;
use crate::mounts::Mount;
use crate::node::{Case, End};
use crate::process::tool;
use crate::tracer::{Point, Policy, Traced, Verdict};
use crate::{Agent, Origin, Scene};

/// Time without a change after which the traced side counts as idle.
const CALM: Duration = Duration::from_millis(700);
const PATIENCE: Duration = Duration::from_secs(60);
const PATH: &str = "uploads";

/// The side whose calls are counted and cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Origin,
    /// The first of the two nodes.
    Node,
}

pub struct Exchange {
    side: Side,
    mount: Mount,
    origin: Origin,
    nodes: [Agent; 2],
    /// Bug with which the traced side is started.
    pub planted: Option<&'static str>,
    /// Time limit of every wait.
    pub patience: Duration,
    round: u32,
    /// The files of both nodes before the round.
    files: BTreeMap<String, String>,
    scratch: PathBuf,
}

/// Contents that may stand at a path in the end; `None`: nothing.
type Allowed = BTreeMap<String, Vec<Option<String>>>;

impl Exchange {
    /// An origin with a collected directory, and two nodes that are linked to it. The traced side is stopped.
    #[track_caller]
    pub fn new(scene: &Scene, mount: Mount, side: Side) -> Self {
        let (tree, config) = (scene.path("tree"), scene.path("origin.toml"));
        write(&tree, "index.html", "a site");
        let owner =
            format!("{}:{}", rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        write(
            config.parent().expect("a directory"),
            "origin.toml",
            format!("[collect.uploads]\npath = '{PATH}'\nowner = '{owner}'\n"),
        );
        let data = if side == Side::Origin { "disk/data" } else { "data" };
        let options = ["--trigger", "manual", "--config", &config.display().to_string()];
        let mut origin = Origin::create_named(scene, data, &tree).with_options(&options);
        origin.start();
        let number = origin.commit();
        let first = if side == Side::Node { mount.directory().join("web1") } else { scene.path("web1") };
        let mut nodes = [Agent::new(scene, "web1").at(&first), Agent::new(scene, "web2")];
        for node in &mut nodes {
            node.join(origin.address(), &origin.token()).expect_success();
            node.start();
            node.wait_live(number);
        }
        let scratch = scene.path("released");
        let files = BTreeMap::new();
        let mut exchange =
            Self { side, mount, origin, nodes, planted: None, patience: PATIENCE, round: 0, files, scratch };
        // The files of the first round.
        let visited = exchange.visit();
        exchange.converge(&visited).unwrap_or_else(|complaint| panic!("{complaint}"));
        exchange.stop();
        exchange
    }

    fn directory(&self, node: usize) -> PathBuf {
        self.nodes[node].root.join("collected").join(PATH)
    }

    /// Stops the traced side.
    fn stop(&mut self) {
        match self.side {
            Side::Origin if self.origin.is_running() => self.origin.stop(),
            Side::Node if self.nodes[0].is_running() => self.nodes[0].stop(),
            _ => {}
        }
        tool("sync", ["-f".as_ref(), self.mount.directory()]);
    }

    /// Visitors of both nodes add, change and remove a file. Returns what stands there once all is exchanged.
    fn visit(&mut self) -> Allowed {
        self.round += 1;
        let round = self.round;
        let mut allowed = Allowed::new();
        for (path, content) in &self.files {
            allowed.insert(path.clone(), vec![Some(content.clone())]);
        }
        for node in 0..2 {
            let at = self.directory(node);
            // Each round has sizes of its own.
            let (new, changed) = (format!("{round}/new-{node}.jpg"), format!("changed-{node}.jpg"));
            let removed = format!("{}/new-{node}.jpg", round - 1);
            for path in [&new, &changed] {
                let content = format!("{path} of round {round:06}, {}", "x".repeat(20_000 + round as usize));
                write(&at, path, &content);
                allowed.insert(path.clone(), vec![Some(content)]);
            }
            if std::fs::remove_file(at.join(&removed)).is_ok() {
                allowed.insert(removed, vec![None]);
            }
        }
        allowed
    }

    /// Counts the calls of a round.
    #[track_caller]
    pub fn count(&mut self) -> Vec<Point> {
        let (_, points) = self.cut(Box::new(|_| Verdict::Pass), End::Kill, Duration::ZERO);
        points.unwrap_or_else(|complaint| panic!("{complaint}"))
    }

    /// Runs one round. Returns the call at which it ended, if that came. Err: the oracle's complaint.
    pub fn run(&mut self, case: Case) -> Result<Option<Point>, String> {
        let policy = move |point: &Point| match (point.ordinal == case.ordinal, case.after) {
            (false, _) => Verdict::Pass,
            (true, false) => Verdict::FreezeBefore,
            (true, true) => Verdict::FreezeAfter,
        };
        let (frozen, points) = self.cut(Box::new(policy), case.end, case.linger);
        let point = points.as_ref().ok().filter(|_| frozen);
        let point = point.and_then(|points| points.get(case.ordinal - 1)).cloned();
        let label = point.as_ref().map_or("at its end".to_owned(), Point::label);
        points.map_err(|complaint| format!("{:?}, {case:?} {label}: {complaint}", self.side))?;
        Ok(point)
    }

    /// Runs one round up to the first call that is meant, and cuts the power some time after it. Err: the
    /// oracle's complaint.
    pub fn run_after(
        &mut self,
        is_meant: impl Fn(&Point) -> bool + Send + 'static,
        linger: Duration,
    ) -> Result<(), String> {
        let policy = move |point: &Point| match is_meant(point) {
            true => Verdict::FreezeAfter,
            false => Verdict::Pass,
        };
        let (frozen, points) = self.cut(Box::new(policy), End::PowerCut, linger);
        assert!(frozen, "the call that is meant did not come");
        points.map(drop)
    }

    fn trace(&self, policy: Policy) -> Traced {
        let mut command = match self.side {
            Side::Origin => self.origin.serve_command(),
            Side::Node => self.nodes[0].run_command(),
        };
        if let Some(planted) = self.planted {
            command.env("SYNCD_PLANTED", planted);
        }
        Traced::start(&command, self.mount.directory(), policy)
    }

    /// Runs one round until the policy freezes the traced side. Returns whether it did, and all calls.
    fn cut(&mut self, policy: Policy, end: End, linger: Duration) -> (bool, Result<Vec<Point>, String>) {
        let mut traced = self.trace(policy);
        traced.wait(PATIENCE, |_| self.is_connected());
        let mut allowed = self.visit();
        let is_done = |traced: &Traced| {
            traced.idle().is_some_and(|idle| idle > CALM) && self.is_exchanged(&allowed).is_ok()
        };
        let frozen = traced.wait(PATIENCE, is_done);
        std::thread::sleep(linger);
        if end == End::PowerCut {
            self.mount.cut_power();
        }
        traced.kill();
        let mut placed = Ok(());
        if end == End::PowerCut {
            self.mount.power_up();
            if self.side == Side::Node {
                placed = self.is_placed_whole(&allowed);
                self.may_be_undone(&mut allowed);
            }
        }
        let points = traced.points();
        match self.side {
            Side::Origin => self.origin.start(),
            Side::Node => self.nodes[0].start(),
        }
        let converged = placed.and_then(|()| self.converge(&allowed));
        self.stop();
        (frozen, converged.map(|()| points))
    }

    /// Visitors get the files of the other node as they were before the round or as they are now, also while
    /// the agent has not been started again.
    fn is_placed_whole(&self, allowed: &Allowed) -> Result<(), String> {
        let there = contents(&self.directory(0));
        for (path, states) in allowed.iter().filter(|(path, _)| path.contains("-1.")) {
            let (now, before) = (there.get(path).cloned(), self.files.get(path).cloned());
            if now != before && !states.contains(&now) {
                return Err(format!(
                    "after the cut, {path} has {:?} bytes",
                    now.map(|content| content.len())
                ));
            }
        }
        Ok(())
    }

    /// Changes on the first node that the origin has not taken may be undone by a power cut.
    fn may_be_undone(&self, allowed: &mut Allowed) {
        for (path, states) in allowed {
            if !path.contains("-0.") {
                continue;
            }
            let before = self.files.get(path).cloned();
            let is_taken = |state: &Option<String>| {
                self.newest(path) == state.as_ref().map(|content| content.len() as u64)
            };
            if !states.contains(&before) && !states.iter().any(is_taken) {
                // A file that was not written back is empty.
                states.extend([before, Some(String::new())]);
            }
        }
    }

    /// Bytes of the origin's current version; `None`: there is none.
    fn newest(&self, path: &str) -> Option<u64> {
        let history = self.origin.cli("collected", &["history", "uploads", path, "--json"]);
        let last = history.stdout.lines().last().map(serde_json::from_str::<Value>)?.ok()?;
        last["bytes"].as_u64()
    }

    fn is_connected(&self) -> bool {
        self.nodes.iter().all(|node| self.report(node).is_some_and(|report| report["connected"] == true))
    }

    /// The part of a node's status on collected directories.
    fn report(&self, node: &Agent) -> Option<Value> {
        let status: Value = crate::process::ask_status(&node.root.join("state/agent.sock"))?;
        Some(status["collected"].clone())
    }

    fn is_exchanged(&self, allowed: &Allowed) -> Result<BTreeMap<String, String>, String> {
        let [first, second] = [0, 1].map(|node| contents(&self.directory(node)));
        if first != second {
            let differ = first.iter().chain(&second).map(|(path, _)| path);
            let differ: Vec<_> = differ.filter(|path| first.get(*path) != second.get(*path)).collect();
            return Err(format!("the nodes differ in {differ:?}"));
        }
        let paths = allowed.keys().chain(first.keys());
        let wrong = paths.into_iter().find(|path| {
            let there = first.get(*path).cloned();
            !allowed.get(*path).is_some_and(|states| states.contains(&there))
        });
        match wrong {
            None => Ok(first),
            Some(path) => {
                let there = first.get(path).map(|content| content.len());
                Err(format!("{path} has {there:?} bytes on both nodes, origin: {:?}", self.newest(path)))
            }
        }
    }

    /// Waits until both nodes have the same, and it is allowed. Both sides run.
    fn converge(&mut self, allowed: &Allowed) -> Result<(), String> {
        let started = Instant::now();
        let files = loop {
            let idle = self.nodes.iter().all(|node| {
                self.report(node).is_some_and(|report| report["connected"] == true && report["waiting"] == 0)
            });
            match self.is_exchanged(allowed) {
                Ok(files) if idle => break files,
                Ok(_) if started.elapsed() > self.patience => {
                    return Err("the nodes do not come to rest".into());
                }
                Err(complaint) if started.elapsed() > self.patience => return Err(complaint),
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        // The origin has the same, and every content.
        let _ = std::fs::remove_dir_all(&self.scratch);
        let to = self.scratch.display().to_string();
        let released = self.origin.cli("collected", &["release", "uploads", &to]);
        if released.code != Some(0) || contents(&self.scratch) != files {
            return Err(format!("the origin has something else: {released:?}"));
        }
        self.files = files;
        Ok(())
    }
}

fn contents(directory: &Path) -> BTreeMap<String, String> {
    let files = walkdir::WalkDir::new(directory).into_iter().filter_map(Result::ok);
    let files = files.filter(|file| file.file_type().is_file());
    let named = files.filter_map(|file| {
        let name = file.path().strip_prefix(directory).ok()?.display().to_string();
        Some((name, std::fs::read_to_string(file.path()).ok()?))
    });
    named.collect()
}
