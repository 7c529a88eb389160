//! syncd under measurement: an origin and agents, release binaries in separate processes, usually each on its
//! own file system.

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

/// Deadline of every wait.
const PATIENCE: Duration = Duration::from_secs(1800);
/// Interval between looks at `live`.
const LOOK: Duration = Duration::from_micros(300);

/// A new ext4 (sparse, deleted when dropped), so that no program writes where another has deleted.
pub fn fresh_disk(scene: &Scene, name: &str) -> Mount {
    // Enough inodes for two trees of a million files (a peer's source and target), at mkfs.ext4's one for 16
    // KiB.
    const MEBIBYTES: u64 = 40 * 1024;
    Mount::ext4(&scene.path(name), MEBIBYTES)
}

/// Runs `work` in a new directory on a new disk, and removes the disk.
pub fn on_fresh_disk<T>(scene: &Scene, work: impl FnOnce(&Path) -> T) -> T {
    let disk = fresh_disk(scene, "peer-disk");
    let directory = disk.directory().join("replica");
    std::fs::create_dir(&directory).expect("create a directory on a fresh disk");
    work(&directory)
}

/// An origin and its fleet. Dropped in this order: agents, origin, disks.
pub struct Site {
    /// The nodes, in the order of joining.
    pub nodes: VecDeque<Node>,
    pub origin: Origin,
    /// Disk of the origin; `None`: the machine's own.
    disk: Option<Mount>,
    /// Logs and mount points. Last, because dropping it deletes what is on the disks.
    pub scene: Scene,
}

/// Result of a first seal.
pub struct FirstSeal {
    /// Number of the generation.
    pub number: u64,
    /// Seconds from the start of `serve`, which scans at once, to the answer of `commit`: sealed and durable.
    pub took_s: f64,
    /// CPU seconds of the origin.
    pub cpu_s: f64,
    /// Peak memory of the origin in MiB.
    pub peak_mib: f64,
}

/// An agent on a disk of its own.
pub struct Node {
    pub agent: Agent,
    _disk: Option<Mount>,
}

impl Site {
    /// An origin with a copy of `version`, on its own disk. It serves, and nothing is committed yet.
    pub fn new(name: &str, version: &Path) -> Self {
        let mut site = Self::stopped(name, |tree| Corpus::copy(version, tree));
        site.origin.start();
        site
    }

    /// The same on the machine's own file system. Syncs of a loop device take more than twice as long, which
    /// matters if only a few syncs are waited for.
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

    /// An origin on a tree made by `make`, whose path does not exist yet, on its own disk. It does not run.
    pub fn stopped(name: &str, make: impl FnOnce(&Path)) -> Self {
        let scene = Scene::new(&format!("bench-{name}"));
        let disk = fresh_disk(&scene, "origin-disk");
        let tree = disk.directory().join("tree");
        make(&tree);
        let origin = Origin::create_named(&scene, "origin-disk/data", &tree);
        Self { nodes: VecDeque::new(), origin, scene, disk: Some(disk) }
    }

    /// First start and first commit of an origin that does not run. It is stopped afterwards.
    pub fn first_seal(&mut self) -> FirstSeal {
        settle();
        let started = Instant::now();
        let mut serve = Daemon::start(&mut self.origin.serve_command(), self.scene.directory(), "first-seal");
        // Without asking for the status, which would wait for the lock of DATA as long as nobody answers.
        wait::within(PATIENCE, "the origin to serve", || serve.log().contains(" serving ").then_some(()));
        let number = self.commit();
        let took_s = started.elapsed().as_secs_f64();
        let pid = serve.pid();
        let seal = FirstSeal { number, took_s, cpu_s: cpu_seconds(pid), peak_mib: peak_memory_mib(pid) };
        assert_eq!(serve.stop(), Some(0), "SIGTERM stops the origin:\n{}", serve.log());
        seal
    }

    /// Path of the content tree.
    pub fn tree(&self) -> PathBuf {
        self.origin.tree.clone()
    }

    /// A node that joined but does not run, on its own disk if the origin has one.
    pub fn join(&mut self, name: &str) -> &mut Node {
        if self.disk.is_none() {
            let root = self.scene.path(name);
            return self.add(name, &root, None);
        }
        let disk = fresh_disk(&self.scene, &format!("{name}-disk"));
        let root = disk.directory().join("replica");
        self.add(name, &root, Some(disk))
    }

    /// The same, on a disk that outlives the node.
    pub fn join_at(&mut self, name: &str, root: &Path) -> &mut Node {
        self.add(name, root, None)
    }

    fn add(&mut self, name: &str, root: &Path, disk: Option<Mount>) -> &mut Node {
        let agent = Agent::new(&self.scene, name).at(root);
        agent.join(self.origin.address(), &self.origin.token()).expect_success();
        self.nodes.push_back(Node { agent, _disk: disk });
        self.nodes.back_mut().expect("a node was added")
    }

    /// Starts nodes and waits until they are live and idle.
    pub fn join_all(&mut self, names: &[&str]) {
        for name in names {
            self.join(name).agent.start();
        }
        self.rest();
    }

    /// Waits until the newest generation is live on all nodes, a spare is ready and nothing is left to do.
    /// Then waits for write-back, so that the next measurement pays for nothing else.
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

    /// Runs `commit`, which ends when the generation is sealed. Returns its number.
    pub fn commit(&self) -> u64 {
        number(&complete(&mut self.origin.command("commit", &[])))
    }

    /// Runs `commit --wait`, which ends when the generation is live on every node. Returns its number.
    pub fn commit_live(&self) -> u64 {
        number(&complete(&mut self.origin.command("commit", &["--wait=600s"])))
    }

    /// Runs `rollback --wait`, which ends when the tree before is live on every node again.
    pub fn rollback_live(&self) {
        complete(&mut self.origin.command("rollback", &["--wait=600s", "--yes"]));
    }

    /// Starts `commit` and measures the seconds until `live` of the first `nodes` is the new generation. Also
    /// returns its number.
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

    /// Peak memory of the origin in MiB.
    pub fn origin_peak_mib(&mut self) -> f64 {
        peak_memory_mib(self.origin.daemon().pid())
    }

    /// Largest peak memory of a node in MiB.
    pub fn agents_peak_mib(&mut self) -> f64 {
        self.nodes.iter_mut().map(Node::peak_mib).fold(0.0, f64::max)
    }

    /// Changes one small file in the middle of the tree, differently in every round.
    pub fn edit(path: &Path, round: usize) {
        let mut content = std::fs::read(path).expect("read a page");
        content.extend_from_slice(format!("edit {round}\n").as_bytes());
        std::fs::write(path, content).expect("write a page");
    }
}

impl Node {
    /// Waits until `live` is at least this generation. Polls often, and reads only the link.
    pub fn wait_live(&self, number: u64) {
        let started = Instant::now();
        while self.agent.live_generation().is_none_or(|live| live < number) {
            assert!(started.elapsed() < PATIENCE, "{}: generation {number} is not live", self.agent.name);
            std::thread::sleep(LOOK);
        }
    }

    /// Stops the process, still connected, until [`Self::thaw`]. The origin gives up on it after 25 s.
    pub fn freeze(&mut self) {
        self.agent.daemon().signal(Signal::STOP);
    }

    /// Continues the process.
    pub fn thaw(&mut self) {
        self.agent.daemon().signal(Signal::CONT);
    }

    /// Peak memory in MiB.
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

/// Renames a directory, and waits for write-back.
pub fn rename(from: &Path, to: &Path) {
    complete(Command::new("mv").arg("-T").arg(from).arg(to));
    settle();
}
