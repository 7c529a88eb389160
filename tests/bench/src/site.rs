//! syncd: an origin and agents, release binaries in processes of their own, nearly always each on a file system of its
//! own.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use syncd_tests::corpora::Corpus;
use syncd_tests::mounts::Mount;
use syncd_tests::{Agent, Daemon, Origin, Scene, wait};

use crate::noise::settle;
use crate::processes::{complete, cpu_seconds, peak_memory_mib};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(1800);
/// How often `live` is looked at.
const LOOK: Duration = Duration::from_micros(300);

/// A fresh ext4 (sparse; unlinked when it is dropped), so that nobody writes where another deleted.
pub fn fresh_disk(scene: &Scene, name: &str) -> Mount {
    // Inodes for two trees of a million files (a peer's source and target), at mkfs.ext4's one for 16 KiB.
    const MEBIBYTES: u64 = 40 * 1024;
    Mount::ext4(&scene.path(name), MEBIBYTES)
}

/// What `work` gives for a new directory on a fresh disk, which is gone afterwards.
pub fn on_fresh_disk<T>(scene: &Scene, work: impl FnOnce(&Path) -> T) -> T {
    let disk = fresh_disk(scene, "peer-disk");
    let directory = disk.directory().join("replica");
    std::fs::create_dir(&directory).expect("create a directory on a fresh disk");
    work(&directory)
}

/// An origin and its fleet. Agents end before the origin, and all before their disks.
pub struct Site {
    /// The nodes, in the order in which they joined.
    pub nodes: VecDeque<Node>,
    /// The origin.
    pub origin: Origin,
    /// `None`: on the machine's own.
    disk: Option<Mount>,
    /// Logs and mount points; last, or it would delete what is on the disks.
    pub scene: Scene,
}

/// What the first seal of a tree took.
pub struct FirstSeal {
    /// The generation.
    pub number: u64,
    /// From the start of `serve`, which scans at once, to the answer to `commit`: sealed and durable.
    pub took_s: f64,
    /// The origin's.
    pub cpu_s: f64,
    /// The origin's.
    pub peak_mib: f64,
}

/// An agent on a disk of its own.
pub struct Node {
    /// It.
    pub agent: Agent,
    _disk: Option<Mount>,
}

impl Site {
    /// An origin with a copy of `version`, on a disk of its own; it serves, and nothing is committed yet.
    pub fn new(name: &str, version: &Path) -> Self {
        let mut site = Self::stopped(name, |tree| Corpus::copy(version, tree));
        site.origin.start();
        site
    }

    /// The same with all of it on the machine's own file system: the syncs of a loop device take more than twice as long,
    /// which counts where nothing but a few syncs is waited for.
    pub fn on_machine(name: &str, version: &Path) -> Self {
        const TMPFS_MAGIC: i64 = 0x0102_1994;
        let scene = Scene::new(&format!("bench-{name}"));
        let file_system = rustix::fs::statfs(scene.directory()).expect("ask for the file system");
        let in_memory = file_system.f_type == TMPFS_MAGIC;
        assert!(
            !in_memory,
            "{} is in memory: set TMPDIR to a directory on a disk",
            scene.directory().display()
        );
        let tree = scene.path("origin-disk/tree");
        std::fs::create_dir(scene.path("origin-disk")).expect("create the origin's directory");
        Corpus::copy(version, &tree);
        let origin = Origin::create_named(&scene, "origin-disk/data", &tree);
        let mut site = Self { nodes: VecDeque::new(), origin, scene, disk: None };
        site.origin.start();
        site
    }

    /// An origin on a tree that `make` makes (the path is not there yet), on a disk of its own; it does not run yet.
    pub fn stopped(name: &str, make: impl FnOnce(&Path)) -> Self {
        let scene = Scene::new(&format!("bench-{name}"));
        let disk = fresh_disk(&scene, "origin-disk");
        let tree = disk.directory().join("tree");
        make(&tree);
        let origin = Origin::create_named(&scene, "origin-disk/data", &tree);
        Self { nodes: VecDeque::new(), origin, scene, disk: Some(disk) }
    }

    /// The first start and the first commit of an origin that does not run; afterwards it does not run either.
    pub fn first_seal(&mut self) -> FirstSeal {
        settle();
        let started = Instant::now();
        let mut serve = Daemon::start(&mut self.origin.serve_command(), self.scene.directory(), "first-seal");
        // Not by asking it for its status: that waits for the lock of DATA where nobody answers yet.
        wait::within(PATIENCE, "the origin to serve", || serve.log().contains(" serving ").then_some(()));
        let number = self.commit();
        let took_s = started.elapsed().as_secs_f64();
        let pid = serve.pid();
        let seal = FirstSeal { number, took_s, cpu_s: cpu_seconds(pid), peak_mib: peak_memory_mib(pid) };
        assert_eq!(serve.stop(), Some(0), "SIGTERM stops the origin:\n{}", serve.log());
        seal
    }

    /// The content tree.
    pub fn tree(&self) -> PathBuf {
        self.origin.tree.clone()
    }

    /// A node that joined and does not run yet, on a disk of its own where the origin has one.
    pub fn join(&mut self, name: &str) -> &mut Node {
        if self.disk.is_none() {
            let root = self.scene.path(name);
            return self.add(name, &root, None);
        }
        let disk = fresh_disk(&self.scene, &format!("{name}-disk"));
        let root = disk.directory().join("replica");
        self.add(name, &root, Some(disk))
    }

    /// The same, on a disk that outlives it.
    pub fn join_at(&mut self, name: &str, root: &Path) -> &mut Node {
        self.add(name, root, None)
    }

    fn add(&mut self, name: &str, root: &Path, disk: Option<Mount>) -> &mut Node {
        let agent = Agent::new(&self.scene, name).at(root);
        agent.join(self.origin.address(), &self.origin.token()).expect_success();
        self.nodes.push_back(Node { agent, _disk: disk });
        self.nodes.back_mut().expect("a node was added")
    }

    /// Nodes that are live and have nothing more to do.
    pub fn join_all(&mut self, names: &[&str]) {
        for name in names {
            self.join(name).agent.start();
        }
        self.rest();
    }

    /// Waits until all nodes have the newest generation live, a spare, and nothing to do; then no write-back is under
    /// way either: what comes next is nobody's preparation.
    pub fn rest(&mut self) {
        let generation = self.origin.status().generation;
        for node in &self.nodes {
            wait::within(PATIENCE, "an agent with a spare", || {
                node.agent.try_status().filter(|status| status.generation == generation && status.spares >= 1)
            });
        }
        let mut pids: Vec<_> = self.nodes.iter_mut().map(|node| node.agent.daemon().pid()).collect();
        pids.push(self.origin.daemon().pid());
        let busy = || -> f64 { pids.iter().map(|pid| cpu_seconds(*pid)).sum() };
        let few = 0.02 + 0.002 * pids.len() as f64;
        wait::within(PATIENCE, "idle agents", || {
            let before = busy();
            std::thread::sleep(Duration::from_millis(500));
            (busy() - before <= few).then_some(())
        });
        settle();
    }

    /// `commit`: sealed; the number.
    pub fn commit(&self) -> u64 {
        number(&complete(&mut self.origin.command("commit", &[])))
    }

    /// `commit --wait`: live on every node; the number.
    pub fn commit_live(&self) -> u64 {
        number(&complete(&mut self.origin.command("commit", &["--wait=600s"])))
    }

    /// Seconds from now, when `commit` starts, until `live` of the first `nodes` is the new generation; its number.
    pub fn commit_to_live(&self, nodes: usize) -> (f64, u64) {
        let started = Instant::now();
        let number = self.commit();
        for node in self.nodes.iter().take(nodes) {
            node.wait_live(number);
        }
        (started.elapsed().as_secs_f64(), number)
    }

    /// CPU seconds of the origin so far.
    pub fn origin_cpu_seconds(&mut self) -> f64 {
        cpu_seconds(self.origin.daemon().pid())
    }

    /// Peak memory of the origin.
    pub fn origin_peak_mib(&mut self) -> f64 {
        peak_memory_mib(self.origin.daemon().pid())
    }

    /// The largest peak memory of a node.
    pub fn agents_peak_mib(&mut self) -> f64 {
        self.nodes.iter_mut().map(Node::peak_mib).fold(0.0, f64::max)
    }

    /// Changes one small file in the middle of the tree; different in every round.
    pub fn edit(path: &Path, round: usize) {
        let mut content = std::fs::read(path).expect("read a page");
        content.extend_from_slice(format!("edit {round}\n").as_bytes());
        std::fs::write(path, content).expect("write a page");
    }
}

impl Node {
    /// Waits until `live` is at least this generation; looks often, and at nothing but the link.
    pub fn wait_live(&self, number: u64) {
        let started = Instant::now();
        while self.agent.live_generation().is_none_or(|live| live < number) {
            assert!(started.elapsed() < PATIENCE, "{}: generation {number} is not live", self.agent.name);
            std::thread::sleep(LOOK);
        }
    }

    /// Stands still, connected, until [`Self::thaw`]; the origin gives up on it after 25 s.
    pub fn freeze(&mut self) {
        self.agent.daemon().signal(Signal::STOP);
    }

    /// Goes on.
    pub fn thaw(&mut self) {
        self.agent.daemon().signal(Signal::CONT);
    }

    /// Peak memory.
    pub fn peak_mib(&mut self) -> f64 {
        peak_memory_mib(self.agent.daemon().pid())
    }
}

fn number(said: &str) -> u64 {
    said.parse().unwrap_or_else(|_| panic!("commit said {said:?}"))
}

/// Turns `tree` into `version`, and waits for write-back.
pub fn deploy(version: &Path, tree: &Path) {
    Corpus::deploy(version, tree);
    settle();
}

/// `mv`, then waits for write-back.
pub fn rename(from: &Path, to: &Path) {
    complete(Command::new("mv").arg("-T").arg(from).arg(to));
    settle();
}
