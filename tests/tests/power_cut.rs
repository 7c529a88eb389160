//! Power cuts: `live` is one complete generation after each, nothing that was reported live is lost, no litter stays.
//!
//! The real agent on an ext4 or xfs of its own. A cut is the file system's shutdown without a flush of its log, together
//! with SIGKILL; then it is unmounted, mounted, and what is on it is compared with what the oracle saw when each
//! generation was sealed. Half of the cuts come at a random moment, half right before a chosen system call
//! (`strace -e inject`). The moments are repeatable as far as timing is: `SYNCD_SEED=N` takes the same; `SYNCD_CUTS=N`
//! makes so many on each file system.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::time::{Duration, Instant};

use syncd_tests::edits::{Edits, small_site, write};
use syncd_tests::mounts::Mount;
use syncd_tests::oracle::{assert_same, fingerprint};
use syncd_tests::process::tool;
use syncd_tests::replica::assert_no_litter;
use syncd_tests::{Agent, Origin, Scene, Seeded, require_program};

/// Cuts on each file system unless `SYNCD_CUTS` says otherwise.
const CUTS: u64 = 30;
/// Of so many cuts one hits a first sync.
const FIRST_SYNC_SHARE: u64 = 5;
/// System calls that make or order something durable, and about how many of each one of the agent's threads makes in a
/// start, an update and the background work after it.
const CALLS: [(&str, u64); 7] = [
    ("renameat2", 6),
    ("renameat", 6),
    ("symlinkat", 1),
    ("syncfs", 3),
    ("fsync", 3),
    ("fdatasync", 5),
    ("linkat", 8),
];

/// How long the background work after an update may take until its chosen call.
const AFTERWARDS: Duration = Duration::from_millis(400);

fn cuts() -> u64 {
    match std::env::var("SYNCD_CUTS") {
        Ok(text) => text.parse().expect("SYNCD_CUTS is a number"),
        Err(_) => CUTS,
    }
}

/// An origin on the machine's disk, and agents on a file system whose power is cut.
struct Node<'a> {
    scene: &'a Scene,
    origin: Origin,
    mount: Mount,
    agent: Agent,
    agents: u32,
    /// What every sealed generation is, as the oracle saw the tree when it was sealed.
    known: BTreeMap<u64, String>,
    /// Nothing older may be live from here on.
    floor: u64,
}

impl<'a> Node<'a> {
    fn new(scene: &'a Scene, mount: Mount) -> Self {
        let tree = scene.path("tree");
        small_site(&tree, 250);
        let origin = Origin::started(scene, &tree);
        let known = BTreeMap::new();
        let agent = Agent::new(scene, "none");
        let mut node = Self { scene, origin, mount, agent, agents: 0, known, floor: 0 };
        node.commit();
        node.replace_agent();
        node
    }

    fn commit(&mut self) -> u64 {
        let print = fingerprint(&self.origin.tree);
        let number = self.origin.commit();
        self.known.insert(number, print);
        number
    }

    fn newest(&self) -> u64 {
        *self.known.keys().next_back().expect("a generation")
    }

    /// Another agent, whose first sync is yet to come.
    fn replace_agent(&mut self) {
        self.agents += 1;
        let name = format!("web{}", self.agents);
        let root = self.mount.directory().join(&name);
        let old = std::mem::replace(
            &mut self.agent,
            Agent::new(self.scene, &name).at(&root).with_options(&["--grace", "300ms"]),
        );
        let _ = fs::remove_dir_all(&old.root);
        self.agent.join(self.origin.address(), &self.origin.token()).expect_success();
        // The cuts are about generations; the identity was there long before.
        tool("sync", [OsString::from("-f"), root.into()]);
        self.floor = 0;
    }

    /// The agent under `strace`, killed right before its thread makes `call` for the `nth` time.
    fn start_doomed(&mut self, call: &str, nth: u64) {
        let strace = require_program("strace", "strace").into_os_string();
        let inject = format!("inject={call}:signal=SIGKILL:when={nth}");
        let trace = format!("trace={call}");
        self.agent.under(&[
            strace,
            "-D".into(),
            "-f".into(),
            "--seccomp-bpf".into(),
            "-q".into(),
            "-o".into(),
            "/dev/null".into(),
            "-e".into(),
            trace.into(),
            "-e".into(),
            inject.into(),
        ]);
        self.agent.start();
        self.agent.under(&[]);
    }

    /// Cuts the power and boots. Half of the time the agent still runs when the disk is already gone: it must not
    /// take what then fails for done.
    #[track_caller]
    fn cut(&mut self, agent_first: bool, what: &str) {
        if agent_first {
            self.agent.kill9();
            self.mount.cut_power();
        } else {
            self.mount.cut_power();
            self.agent.kill9();
        }
        // Whatever was reported was reported before the cut, or in spite of it: it has to be there.
        let status = self.origin.status();
        let reported = status.agents.iter().find(|member| member.name == self.agent.name);
        let reported = reported.and_then(|member| member.generation).unwrap_or(0);
        self.mount.power_up();
        self.floor = self.floor.max(reported);
        self.assert_complete(what);
    }

    /// Panics unless `live` is exactly one known generation, and not an older one than may be.
    #[track_caller]
    fn assert_complete(&mut self, what: &str) {
        let Some(number) = self.agent.live_generation() else {
            assert_eq!(self.floor, 0, "{what}: the live link is gone");
            return;
        };
        assert!(number >= self.floor, "{what}: generation {} was live, now it is {number}", self.floor);
        self.floor = number;
        let live = self.agent.live();
        assert!(live.exists(), "{what}: live leads to generation {number}, which is not there");
        let actual = fingerprint(&live);
        assert!(self.known.get(&number) == Some(&actual), "{what}: live says {number}, but is not that");
    }
}

/// Waits a random part of `span`: the moment of the cut.
fn pass(random: &mut Seeded, span: Duration) {
    let moment = Duration::from_micros(random.below(span.as_micros() as u64 + 1));
    std::thread::sleep(moment);
}

/// Cuts the power again and again; `mount` is fresh.
fn survive(scene: &Scene, mount: Mount, random: &mut Seeded) {
    let mut node = Node::new(scene, mount);
    let mut edits = Edits::new(&node.origin.tree, random.next_u64());
    node.agent.start();
    node.agent.wait_live(1);
    edits.round(30);
    let started = Instant::now();
    let second = node.commit();
    node.agent.wait_live(second);
    // From a commit to somewhat after it is live.
    let span = (started.elapsed() * 2).clamp(Duration::from_millis(50), Duration::from_secs(1));
    println!("cuts are spread over {span:?}");
    let (mut fired, mut seen) = (0, BTreeMap::new());
    for cut in 0..cuts() {
        let mut what = format!("cut {cut}");
        if cut % FIRST_SYNC_SHARE == FIRST_SYNC_SHARE - 1 {
            if node.agent.is_running() {
                node.agent.kill9();
            }
            node.replace_agent();
            what.push_str(" in a first sync");
        }
        let agent_first = random.one_in(2);
        if random.one_in(2) {
            let (call, most) = CALLS[random.below(CALLS.len() as u64) as usize];
            let nth = 1 + random.below(most);
            what.push_str(&format!(" before {call} {nth}"));
            if node.agent.is_running() {
                node.agent.kill9();
            }
            edits.round(30);
            let number = node.commit();
            node.start_doomed(call, nth);
            let mut deadline = Instant::now() + Duration::from_secs(2);
            let mut live = false;
            while Instant::now() < deadline && node.agent.daemon().ended().is_none() {
                if !live && node.agent.live_generation() == Some(number) {
                    // The call may be one of the background work's.
                    (live, deadline) = (true, Instant::now() + AFTERWARDS);
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            fired += u32::from(node.agent.daemon().ended().is_some());
        } else {
            if !node.agent.is_running() {
                node.agent.start();
            }
            edits.round(30);
            node.commit();
            if random.one_in(3) {
                // The moment after it was reported.
                node.origin.cli("commit", &["--wait=5s"]);
            }
            pass(random, span);
        }
        node.cut(agent_first, &what);
        *seen.entry(node.floor).or_insert(0) += 1;
        if random.one_in(4) {
            node.agent.start();
            node.agent.wait_live(node.newest());
            node.assert_complete(&format!("after {what}"));
        }
    }
    println!("{} cuts, {fired} right before a chosen call, saw {} generations live", cuts(), seen.len());
    if !node.agent.is_running() {
        node.agent.start();
    }
    write(&node.origin.tree, "last.html", "after all cuts");
    let last = node.commit();
    node.agent.wait_live(last);
    assert_same(&node.origin.tree, &node.agent.live());
    assert_no_litter(&node.agent);
    let verified = node.agent.cli("verify", &[]);
    assert_eq!(verified.code, Some(0), "{verified:#?}");
    node.agent.stop();
}

#[test]
fn power_cuts_on_ext4_leave_one_complete_generation_live() {
    let mut random = Seeded::announced("power cuts on ext4");
    let scene = Scene::new("power-ext4");
    let mount = Mount::ext4(&scene.path("disk"), 192);
    survive(&scene, mount, &mut random);
}

#[test]
fn power_cuts_on_xfs_leave_one_complete_generation_live() {
    let mut random = Seeded::announced("power cuts on xfs");
    let scene = Scene::new("power-xfs");
    let mount = Mount::xfs(&scene.path("disk"), 320);
    survive(&scene, mount, &mut random);
}
