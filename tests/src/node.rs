//! An agent on a file system of its own whose power is cut at chosen calls, with an oracle for the state
//! afterwards.
//!
//! A [`Scenario`] is an image of the file system, and what happens on it. The agent runs on the restored
//! image under the [tracer](crate::tracer) until the chosen call. There every thread is stopped, the file
//! system is shut down without flushing its log, the agent is killed, and the file system is mounted again.
//! The oracle then checks that `live` is one sealed generation, not older than the one reported, and that
//! `previous` is one as well. The agent must recover while the origin does not answer, with older generations
//! intact. Once the origin answers, the agent must converge, `verify` must find nothing, and nothing may be
//! left over.

pub mod returns;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::edits::{closed_directories, remove, small_site, write};
use crate::mounts::Mount;
use crate::oracle::{Facts, differences, try_facts};
use crate::process::{ask_status, processor_time, tool};
use crate::replica::{litter, trash_is_empty};
use crate::tracer::{Point, Policy, Traced, Verdict};
use crate::{Agent, AgentStatus, Origin, OriginStatus, Scene, Seeded};

/// Time without a change after which the agent counts as idle.
const CALM: Duration = Duration::from_millis(700);
/// Deadline that even a debug build on a busy machine meets easily.
const PATIENCE: Duration = Duration::from_secs(40);
/// Limit of the processor time for recovery.
pub const RECOVERY_LIMIT: Duration = Duration::from_millis(250);
/// Number of files in the content tree.
const FILES: usize = 30;
/// Check that fails for the newest generation of the scenarios.
const CHECKED: &str = "[ $SYNCD_GENERATION != 5 ]";
/// More changes than are synced one by one.
const MANY_CHANGES: usize = 60;

/// Initial state of the agent, and its work.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Name for reports.
    pub name: &'static str,
    /// Image of the file system at the start; `None`: unchanged.
    pub image: Option<PathBuf>,
    /// Further options of `run`.
    pub options: Vec<String>,
    /// Live generation in the image; 0: none.
    pub live: u64,
    /// Whether the origin answers meanwhile.
    pub origin_answers: bool,
    /// Whether it ends with an empty trash.
    pub empties_trash: bool,
    /// Whether the check fails for the newest generation, so that the agent returns to `live`.
    pub returns: bool,
}

impl Scenario {
    /// An update from the disk in `image`, where `live` is the live generation, with an origin that answers.
    pub fn from(name: &'static str, image: &Path, live: u64) -> Self {
        Self {
            name,
            image: Some(image.to_path_buf()),
            options: Vec::new(),
            live,
            origin_answers: true,
            empties_trash: false,
            returns: false,
        }
    }

    /// The same with `--keep 1` and no origin, so that the agent only deletes.
    pub fn left_alone(self) -> Self {
        Self { options: vec!["--keep".into(), "1".into()], origin_answers: false, ..self }
    }
}

/// Rights of a [`Node`]'s agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// Root, which no mode stops.
    Root,
    /// A user of its own. The content then has directories whose modes deny their owner something.
    User,
}

/// End of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The power is cut, then the agent is killed.
    PowerCut,
    /// The agent is killed.
    Kill,
}

/// One case of a sweep.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Ordinal of the call.
    pub ordinal: usize,
    /// End right after the call instead of right before it.
    pub after: bool,
    /// Kind of end.
    pub end: End,
    /// Time for other threads to reach their next change.
    pub linger: Duration,
}

/// Result of a case.
#[derive(Debug, Clone)]
pub struct Shown {
    /// Call at which it ended; `None`: the call never came.
    pub point: Option<Point>,
    /// Live generation afterwards.
    pub live: u64,
    /// Time from the start of the agent to the first answer of `status`.
    pub recovery: Duration,
    /// Processor time of the agent until then.
    pub processor: Duration,
}

pub struct Node {
    pub origin: Origin,
    /// Disk of the agent.
    pub mount: Mount,
    pub agent: Agent,
    /// Bug with which the agent is started.
    pub planted: Option<&'static str>,
    /// Time limit of every wait.
    pub patience: Duration,
    /// Sealed generations as this agent should have them.
    known: BTreeMap<u64, Facts>,
    /// Time at which the origin last heard from the agent before the case.
    heard_before: Option<String>,
}

impl Node {
    /// An origin of the tree at `tree`, and an agent that has joined and holds nothing.
    #[track_caller]
    pub fn joined(scene: &Scene, mount: Mount, tree: &Path, rights: Rights) -> Self {
        Self::joined_with(scene, mount, tree, rights, &[])
    }

    fn joined_with(scene: &Scene, mount: Mount, tree: &Path, rights: Rights, options: &[&str]) -> Self {
        let origin = Origin::started(scene, tree);
        let root = mount.directory().join("web1");
        let mut agent =
            Agent::new(scene, "web1").at(&root).with_options(&["--grace", "0s"]).with_options(options);
        if rights == Rights::User {
            agent = agent.unprivileged(scene);
        }
        agent.join(origin.address(), &origin.token()).expect_success();
        tool("sync", ["-f".as_ref(), root.as_path()]);
        Self {
            origin,
            mount,
            agent,
            planted: None,
            patience: PATIENCE,
            known: BTreeMap::new(),
            heard_before: None,
        }
    }

    /// Makes generations 1 to 5 at the origin, and the scenarios that lead to the last one.
    #[track_caller]
    pub fn new(scene: &Scene, mount: Mount, rights: Rights) -> (Self, Vec<Scenario>) {
        Self::with_options(scene, mount, rights, &[])
    }

    /// The same with further options of the agent.
    #[track_caller]
    pub fn with_options(
        scene: &Scene,
        mount: Mount,
        rights: Rights,
        options: &[&str],
    ) -> (Self, Vec<Scenario>) {
        let tree = scene.path("tree");
        small_site(&tree, FILES);
        write(&tree, "large.bin", Seeded::new(3).bytes(300_000));
        let close = |round| {
            if rights == Rights::User {
                closed_directories(&tree, round);
            }
        };
        close(0);
        let mut node = Self::joined_with(scene, mount, &tree, rights, options);
        let joined = node.mount.save("joined.image");
        node.commit();
        for number in 2..=3 {
            node.settle_at(number - 1);
            write(&tree, "index.html", format!("generation {number}"));
            node.commit();
        }
        node.settle_at(3);
        let three = node.save("three.image");
        many_changes(&tree);
        close(1);
        node.commit();
        node.settle_at(4);
        let four = node.save("four.image");
        few_changes(&tree);
        close(2);
        node.commit();
        let deletion = Scenario::from("deletion", &four, 4).left_alone();
        let scenarios = vec![
            Scenario::from("first sync", &joined, 0),
            Scenario::from("large update", &three, 3),
            Scenario::from("small update", &four, 4),
            Scenario { empties_trash: true, ..deletion },
        ];
        (node, scenarios)
    }

    /// Live generation at the end of every scenario.
    pub fn newest(&self) -> u64 {
        *self.known.keys().next_back().expect("a generation")
    }

    /// Seals the current tree.
    #[track_caller]
    pub fn commit(&mut self) -> u64 {
        let expected = self.agent.expects(&self.origin.tree);
        let number = self.origin.commit();
        self.known.insert(number, expected);
        number
    }

    /// Runs the agent until generation `number` is live and its spares are ready.
    #[track_caller]
    pub fn settle_at(&mut self, number: u64) {
        if !self.agent.is_running() {
            self.agent.start();
        }
        self.poll("the agent to settle", |node| {
            let status = node.status().ok_or("no status")?;
            node.settled(&status, number)
        })
        .unwrap_or_else(|complaint| panic!("{complaint}"));
    }

    /// Stops the agent and copies its disk.
    #[track_caller]
    pub fn save(&mut self, name: &str) -> PathBuf {
        if self.agent.is_running() {
            self.agent.stop();
        }
        self.mount.save(name)
    }

    /// Status of the agent.
    pub fn status(&self) -> Option<AgentStatus> {
        ask_status(&self.agent.root.join("state/agent.sock"))
    }

    /// Whether this generation is live according to `status` and disk, and nothing is left to do. Err: the
    /// reason why not. There are two spares, and another one if two were missing: two kills in quick
    /// succession cost a spare each.
    pub fn settled(&self, status: &AgentStatus, number: u64) -> Result<(), String> {
        if status.generation != Some(number) || status.spares < 2 {
            return Err(format!("{status:?}"));
        }
        litter(&self.agent.root, status)
    }

    /// Waits until `check` succeeds, at most [`Self::patience`]. Err: the last complaint.
    pub fn poll<T>(
        &mut self,
        what: &str,
        mut check: impl FnMut(&mut Self) -> Result<T, String>,
    ) -> Result<T, String> {
        let started = Instant::now();
        loop {
            match check(self) {
                Ok(value) => return Ok(value),
                Err(complaint) if started.elapsed() > self.patience => {
                    return Err(format!("waited {:?} for {what}: {complaint}", self.patience));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Resumes or stops the origin's process.
    pub fn origin_answers(&mut self, answers: bool) {
        let signal = if answers { Signal::CONT } else { Signal::STOP };
        self.origin.daemon().signal(signal);
    }

    /// Starts the agent of a scenario under the tracer, on the restored image.
    #[track_caller]
    pub fn trace(&mut self, scenario: &Scenario, policy: Policy) -> Traced {
        if let Some(image) = &scenario.image {
            self.mount.restore(image);
        }
        if !scenario.origin_answers {
            self.origin_answers(false);
        }
        let mut command = self.agent.run_command();
        command.args(&scenario.options);
        command.env("SYNCD_HASTY", "1");
        if let Some(planted) = self.planted {
            command.env("SYNCD_PLANTED", planted);
        }
        Traced::start(&command, self.mount.directory(), policy)
    }

    fn is_done(&self, scenario: &Scenario, traced: &Traced) -> bool {
        let stays = scenario.returns || !scenario.origin_answers;
        let live = if stays { scenario.live } else { self.newest() };
        traced.idle().is_some_and(|idle| idle > CALM)
            && self.agent.live_generation() == Some(live)
            && (!scenario.empties_trash || trash_is_empty(&self.agent.root))
            && (!scenario.returns || self.agent.root.join("state/refused").exists())
            // Background work that a busy machine holds up looks like calm.
            && (!scenario.origin_answers || self.status().is_some_and(|status| status.spares >= 2))
    }

    /// All calls of the scenario that change something, in the order of one complete run.
    #[track_caller]
    pub fn count(&mut self, scenario: &Scenario) -> Vec<Point> {
        let mut traced = self.trace(scenario, Box::new(|_| Verdict::Pass));
        traced.wait(PATIENCE, |traced| self.is_done(scenario, traced));
        assert!(traced.ended().is_none(), "{}: the agent ended by itself", scenario.name);
        assert!(self.is_done(scenario, &traced), "{}: not done in {PATIENCE:?}", scenario.name);
        traced.kill();
        self.origin_answers(true);
        traced.points()
    }

    /// Runs the scenario up to the case's call, ends it there, and runs the oracle. Err: the oracle's
    /// complaint.
    pub fn run(&mut self, scenario: &Scenario, case: Case) -> Result<Shown, String> {
        let point = self.end_at(scenario, case);
        let reported = self.reported(scenario)?;
        if case.end == End::PowerCut {
            self.mount.power_up();
        }
        let shown = self.judge(scenario, reported, point.clone());
        if self.agent.is_running() {
            self.agent.kill9();
        }
        self.origin_answers(true);
        shown.map_err(|complaint| {
            let at = point.map_or("at its end".to_owned(), |p| {
                format!("at {} {} ({})", p.ordinal, p.label(), p.thread)
            });
            format!("{}, {case:?} {at}: {complaint}", scenario.name)
        })
    }

    /// Saves the disk after a scenario that ended at this call, as the start of another scenario.
    #[track_caller]
    pub fn crashed(&mut self, scenario: &Scenario, ordinal: usize, name: &str) -> PathBuf {
        self.end_at(scenario, Case { ordinal, after: false, end: End::PowerCut, linger: Duration::ZERO });
        self.mount.power_up();
        self.mount.save(name)
    }

    fn end_at(&mut self, scenario: &Scenario, case: Case) -> Option<Point> {
        self.cut_at(scenario, case).0
    }

    /// Runs the scenario up to the case's call. Returns the call, and all that were made.
    fn cut_at(&mut self, scenario: &Scenario, case: Case) -> (Option<Point>, Vec<Point>) {
        let policy = move |point: &Point| match (point.ordinal == case.ordinal, case.after) {
            (false, _) => Verdict::Pass,
            (true, false) => Verdict::FreezeBefore,
            (true, true) => Verdict::FreezeAfter,
        };
        let heard =
            self.poll("the origin to see no agent", |node| node.heard().ok_or("it is connected".into()));
        self.heard_before = heard.unwrap_or_else(|complaint| panic!("{complaint}")).0;
        let mut traced = self.trace(scenario, Box::new(policy));
        let frozen = traced.wait(PATIENCE, |traced| self.is_done(scenario, traced));
        std::thread::sleep(case.linger);
        if case.end == End::PowerCut {
            self.mount.cut_power();
        }
        traced.kill();
        self.origin_answers(true);
        let mut made = traced.points();
        if !frozen {
            return (None, made);
        }
        let point = made.get(case.ordinal - 1).cloned();
        made.truncate(if case.after { case.ordinal } else { case.ordinal - 1 });
        (point, made)
    }

    /// Time at which the origin last heard from the agent, and the live generation reported then; `None`: it
    /// is connected.
    fn heard(&self) -> Option<(Option<String>, u64)> {
        let status: OriginStatus = ask_status(&self.origin.data.join("admin.sock"))?;
        let member = status.agents.iter().find(|member| member.name == self.agent.name)?;
        (!member.connected).then(|| (member.last_seen.clone(), member.generation.unwrap_or(0)))
    }

    /// Generation that the agent reported live in the case; 0: none.
    fn reported(&mut self, scenario: &Scenario) -> Result<u64, String> {
        let (heard, generation) = self
            .poll("the origin to see the agent gone", |node| node.heard().ok_or("it is connected".into()))?;
        if heard == self.heard_before || !scenario.origin_answers { Ok(0) } else { Ok(generation) }
    }

    /// Runs the oracle.
    fn judge(&mut self, scenario: &Scenario, reported: u64, point: Option<Point>) -> Result<Shown, String> {
        let floor = scenario.live.max(reported);
        let live = self.complete(floor)?;
        self.previous_is_whole()?;
        // The agent recovers without help.
        let (status, recovery) = self.recover()?;
        let processor = processor_time(self.agent.daemon().pid());
        let recovered = self.complete(live)?;
        if status.generation.unwrap_or(0) != recovered {
            return Err(format!("generation {recovered} is live, status says {status:?}"));
        }
        if status.accepted.unwrap_or(0) < recovered {
            return Err(format!("generation {recovered} is live, but {:?} accepted", status.accepted));
        }
        self.has_generations()?;
        // The agent converges.
        self.origin_answers(true);
        let newest = self.newest();
        self.poll("the agent to converge", |node| {
            let status = node.status().ok_or("no status")?;
            node.settled(&status, newest)
        })?;
        self.complete(newest)?;
        self.verifies()?;
        Ok(Shown { point, live, recovery, processor })
    }

    /// Starts the agent while its origin does not answer, and waits for its status. Returns the status and
    /// the time taken.
    pub fn recover(&mut self) -> Result<(AgentStatus, Duration), String> {
        self.origin_answers(false);
        let started = Instant::now();
        self.agent.start();
        let status = self.poll("the agent to answer", |node| match node.agent.daemon().ended() {
            Some(status) => Err(format!("it ended, {status}")),
            None => node.status().ok_or("no status".into()),
        })?;
        Ok((status, started.elapsed()))
    }

    /// Asserts that `verify` finds nothing, except modes that a crash left changed, once.
    pub(crate) fn verifies(&mut self) -> Result<(), String> {
        let mut verified = self.agent.cli("verify", &["--json"]);
        if self.agent.is_unprivileged() && verified.code == Some(0) && verified.json()["drifted"] != 0 {
            verified = self.agent.cli("verify", &["--json"]);
        }
        if verified.code != Some(0) || verified.json()["drifted"] != 0 {
            return Err(format!("verify: {verified:?}"));
        }
        let live = self.agent.live_generation().ok_or("nothing is live")?;
        // Background work may change a mode for a moment.
        self.poll("the modes that were published", |node| {
            let actual = try_facts(&node.tree(live)).map_err(|error| error.to_string())?;
            match differences(node.expected(live)?, &actual).as_slice() {
                [] => Ok(()),
                differences => Err(differences.join(", ")),
            }
        })
    }

    fn tree(&self, number: u64) -> PathBuf {
        self.agent.root.join(format!("generations/{number}"))
    }

    /// Asserts that the generations listed in `status` exist. The status lags one step behind the agent: a
    /// tree being retired is listed until the record has forgotten it. A tree that stays listed is lost.
    pub(crate) fn has_generations(&mut self) -> Result<(), String> {
        self.poll("the listed generations", |node| {
            let status = node.status().ok_or("no status")?;
            let absent = status.generations.iter().copied().find(|number| !node.tree(*number).exists());
            absent.map_or(Ok(status), |number| Err(format!("generation {number} is listed, and gone")))
        })
        .and_then(|status| {
            status.generations.iter().try_for_each(|number| match self.is_generation(*number) {
                // Retired meanwhile.
                Err(_) if !self.tree(*number).exists() => Ok(()),
                checked => checked,
            })
        })
    }

    pub(crate) fn is_generation(&self, number: u64) -> Result<(), String> {
        let differences = self.agent.differences(self.expected(number)?, &self.tree(number));
        match differences.map_err(|error| format!("generation {number}: {error}"))?.as_slice() {
            [] => Ok(()),
            differences => Err(format!("generation {number} is damaged: {}", differences.join(", "))),
        }
    }

    fn expected(&self, number: u64) -> Result<&Facts, String> {
        self.known.get(&number).ok_or(format!("generation {number} was never sealed"))
    }

    /// The live generation, which must be sealed and not older than `floor`.
    pub fn complete(&self, floor: u64) -> Result<u64, String> {
        let link = || self.agent.live_target();
        let Some((slot, inode)) = link() else {
            return match floor {
                0 => Ok(0),
                _ => Err(format!("generation {floor} was live, now nothing is")),
            };
        };
        match self.newest_of(&self.agent.root.join(&slot)) {
            Ok(Some(number)) if number >= floor => Ok(number),
            // A slot that is no longer live may be changed during the walk.
            _ if link().is_some_and(|now| now != (slot.clone(), inode)) => self.complete(floor),
            Ok(Some(number)) => Err(format!("generation {floor} was live, now {number} is")),
            Ok(None) => Err(format!("what is live was never sealed: {}", self.nearest(&slot))),
            Err(error) => Err(error),
        }
    }

    /// Asserts that `previous`, if it exists, is a sealed generation.
    fn previous_is_whole(&self) -> Result<(), String> {
        let previous = self.agent.root.join("previous");
        match previous.is_symlink() {
            true => self.newest_of(&previous)?.map(drop).ok_or("previous was never sealed".into()),
            false => Ok(()),
        }
    }

    /// Names the generation that a slot resembles most, and the differences.
    fn nearest(&self, slot: &Path) -> String {
        let Ok(actual) = try_facts(&self.agent.root.join(slot)) else { return "it can't be walked".into() };
        let known = self.known.iter();
        let differ = known.map(|(number, expected)| {
            (self.agent.differences_of(expected, actual.clone()), number, slot.display())
        });
        let nearest = differ.min_by_key(|(differences, ..)| differences.len());
        nearest.map_or_else(String::new, |(differences, number, slot)| {
            format!("{slot} is nearest to {number}, {}", differences.join(", "))
        })
    }

    /// The newest generation that equals this tree. An exchange on XFS changes the time of the root, which
    /// the agent sets again some calls later: only [`Self::verifies`] compares it.
    fn newest_of(&self, tree: &Path) -> Result<Option<u64>, String> {
        let actual = try_facts(tree).map_err(|error| format!("{}: {error}", tree.display()))?;
        let is_exchanged = !self.agent.live().is_symlink();
        let is_it = |expected: &Facts| {
            let mut actual = actual.clone();
            let root = Path::new("");
            if let (true, Some(now), Some(meant)) = (is_exchanged, actual.get_mut(root), expected.get(root)) {
                now.mtime = meant.mtime;
            }
            self.agent.differences_of(expected, actual).is_empty()
        };
        Ok(self.known.iter().rev().find(|(_, expected)| is_it(expected)).map(|(number, _)| *number))
    }
}

/// Makes more changes than the agent syncs one by one, of every kind.
fn many_changes(tree: &Path) {
    for number in 0..MANY_CHANGES {
        write(tree, &format!("new/{}/page-{number}.html", number % 5), format!("page {number}"));
    }
    for number in 0..10 {
        write(tree, &format!("section-{number}/page-{number}.html"), format!("changed {number}"));
    }
    remove(&tree.join("section-11"));
    std::fs::rename(tree.join("section-10"), tree.join("renamed")).expect("rename a directory");
    let mut large = std::fs::read(tree.join("large.bin")).expect("read a file");
    large.splice(1000..1000, *b"an insertion");
    write(tree, "large.bin", large);
}

/// Makes few enough changes to be synced one by one.
fn few_changes(tree: &Path) {
    write(tree, "index.html", "the last generation");
    write(tree, "section-1/new.html", "new");
    remove(&tree.join("section-2/page-2.html"));
    std::fs::rename(tree.join("section-3/page-3.html"), tree.join("section-4/moved.html")).expect("rename");
}
