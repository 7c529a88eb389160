//! Origins, an origin on standby and followers, with an object store between them (`syncd-sim --store`).
//!
//! Real are the fence, the publisher with its journal, the standby, promotion, import, sealer and stores. A
//! follower decides by an agent's rules, and checks a whole tree as a standby does. The object store, its
//! faults and all times are the simulation's.
//!
//! These rules hold at every step. A number has one root, wherever it is found. A generation that a fenced
//! origin has sealed is in the object store, and stays there as it was. A follower never goes back. In the
//! end one origin commits, every follower has that generation whole, and an origin that was replaced commits
//! nothing.

mod cloud;
mod host;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use syncd_origin::commit::{CommitOptions, Outcome};
use syncd_origin::publish::Successor;
use syncd_origin::service::init;
use syncd_shared::published::{self, RELEASE_MAX_BYTES, Release};
use syncd_shared::text::error_chain;
use syncd_shared::{RootHash, SignedGeneration};
use syncd_tests::Seeded;
use tokio::time::Instant;

use self::cloud::{Cloud, Reach};
use self::host::{Follower, Host, Looked, Running, copy_keys};
use crate::origin::copy_directory;
use crate::run::Run;
use crate::site::Site;
use crate::world::{Tally, Violation};

/// Longer than all pauses of a publisher together: 60 s between two attempts, and between two looks.
const SETTLE: Duration = Duration::from_secs(300);
/// Faults of the object store: one request in this number; 0: none.
const FAULTS: [u64; 5] = [0, 3, 8, 25, 100];
/// Reasons of an origin that commits nothing: the store is away, or the origin was replaced.
const REFUSALS: [&str; 3] = ["does not answer", "deposed", "two origins run from one backup"];

/// How the second origin comes to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Second {
    /// It stands by, and is promoted while the first one may go on.
    Promoted,
    /// It runs from a copy of the first one's data.
    Copy,
}

struct World {
    start: Instant,
    random: Seeded,
    place: PathBuf,
    cloud: Arc<Cloud>,
    second: Second,
    fenced: bool,
    hosts: [Host; 2],
    /// The second one is an origin.
    two_origins: bool,
    followers: Vec<Follower>,
    roots: BTreeMap<u64, RootHash>,
    /// Records of generations that fenced origins have sealed.
    committed: BTreeMap<u64, Vec<u8>>,
    trace: blake3::Hasher,
    log: Vec<String>,
    tally: Tally,
}

/// Runs a seed in a new directory below `directory`.
pub fn run(seed: u64, directory: &Path) -> anyhow::Result<Run> {
    let place = tempfile::Builder::new().prefix(&format!("syncd-sim-store-{seed}-")).tempdir_in(directory)?;
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).max_blocking_threads(1).build()?;
    runtime.block_on(async {
        let mut world = World::new(seed, place.path())?;
        let violation = world.live_through().await.err();
        if violation.is_none() {
            world.count("seeds that held");
        }
        let faults = world.cloud.faults();
        world.tally.insert("requests to the store that failed", faults);
        let virtual_ms = world.now_ms();
        for host in &mut world.hosts {
            host.end().await?;
        }
        let trace = world.trace.finalize().to_hex().to_string();
        Ok(Run { seed, trace, violation, tally: world.tally, virtual_ms, log: Some(world.log) })
    })
}

impl World {
    fn new(seed: u64, place: &Path) -> anyhow::Result<Self> {
        let mut random = Seeded::new(seed);
        let cloud = Arc::new(Cloud::new(random.next_u64()));
        let (first, second) = (place.join("first"), place.join("second"));
        let keys = init(&first).context("make an origin")?;
        copy_keys(&first, &second)?;
        let kind = if random.one_in(3) { Second::Copy } else { Second::Promoted };
        // Without fences, copies fork.
        let fenced = kind == Second::Copy || !random.one_in(3);
        let mut host = |name: &str, data: PathBuf| {
            let tree = place.join(format!("tree-{name}"));
            let site = Site::create(&tree, random.next_u64())?;
            anyhow::Ok(Host { tree, data, site, reach: Reach::new(&cloud), running: Running::Off })
        };
        let hosts = [host("first", first.clone())?, host("second", second)?];
        let followers = (0..1 + random.below(2)).map(|n| {
            let data = place.join(format!("follower-{n}"));
            copy_keys(&first, &data)?;
            Follower::new(&data, Reach::new(&cloud), keys.trust())
        });
        let followers = followers.collect::<anyhow::Result<Vec<_>>>()?;
        let mut world = Self {
            start: Instant::now(),
            random,
            place: place.to_path_buf(),
            cloud,
            second: kind,
            fenced,
            hosts,
            two_origins: false,
            followers,
            roots: BTreeMap::new(),
            committed: BTreeMap::new(),
            trace: blake3::Hasher::new(),
            log: Vec::new(),
            tally: Tally::new(),
        };
        world.note(format!("seed {seed}: {kind:?}, fenced {fenced}"));
        Ok(world)
    }

    fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    fn note(&mut self, line: impl AsRef<str>) {
        let line = format!("{:>8} {}\n", self.now_ms(), line.as_ref());
        self.trace.update(line.as_bytes());
        self.log.push(line);
    }

    /// A line that is not part of the trace, because it has paths or random names.
    fn remark(&mut self, line: impl AsRef<str>) {
        self.log.push(format!("         ({})\n", line.as_ref()));
    }

    fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    fn violation(&self, what: impl Into<String>) -> Violation {
        Violation { at_ms: self.now_ms(), what: what.into() }
    }

    fn sure<T>(&self, what: &str, result: anyhow::Result<T>) -> Result<T, Violation> {
        result.map_err(|error| self.violation(format!("{what}: {error:#}")))
    }

    async fn live_through(&mut self) -> Result<(), Violation> {
        self.serve(0)?;
        if self.second == Second::Promoted {
            self.stand_by()?;
        }
        for _ in 0..20 + self.random.below(40) {
            self.deed().await?;
            let longest = if self.random.one_in(4) { 70_000 } else { 1_500 };
            let pause = 1 + self.random.below(longest);
            self.pass(Duration::from_millis(pause)).await?;
        }
        self.end_well().await
    }

    /// Lets time pass, and looks after every rule.
    async fn pass(&mut self, time: Duration) -> Result<(), Violation> {
        tokio::time::sleep(time).await;
        for h in 0..self.hosts.len() {
            if self.hosts[h].reach.is_dead() {
                self.crash(h).await?;
            }
        }
        self.check()
    }

    async fn deed(&mut self) -> Result<(), Violation> {
        match self.random.below(100) {
            0..=24 => self.commit(0).map(drop),
            25..=39 => self.commit(1).map(drop),
            40..=54 => (0..self.followers.len()).try_for_each(|n| self.look(n)),
            55..=62 => self.follow(),
            63..=66 => self.second_origin().await,
            67..=72 => {
                let h = self.random.below(2) as usize;
                self.crash(h).await
            }
            73..=79 => {
                let (h, write, after) =
                    (self.random.below(2) as usize, 1 + self.random.below(8), self.random.one_in(2));
                self.note(format!("host {h} dies at write {write} to the store, after it: {after}"));
                self.hosts[h].reach.dies_at(write, after);
                Ok(())
            }
            80..=84 => {
                let is_down = self.random.one_in(2);
                self.note(format!("the store is down: {is_down}"));
                self.cloud.set_down(is_down);
                Ok(())
            }
            85..=89 => {
                let (h, is_cut) = (self.random.below(2) as usize, self.random.one_in(2));
                self.note(format!("host {h} is cut off from the store: {is_cut}"));
                self.hosts[h].reach.cut(is_cut);
                Ok(())
            }
            90..=93 => {
                let fault = self.random.pick(&FAULTS).copied().unwrap_or(0);
                self.note(format!("one request in {fault} fails"));
                self.cloud.set_fault(fault);
                Ok(())
            }
            _ => {
                if self.cloud.land() {
                    self.count("late writes");
                    self.note("a late write takes effect");
                }
                Ok(())
            }
        }
    }

    fn serve(&mut self, h: usize) -> Result<(), Violation> {
        let (cloud, fenced) = (self.cloud.clone(), self.fenced);
        let served = self.hosts[h].serve(&cloud, fenced);
        self.sure(&format!("host {h} does not start"), served)?;
        self.note(format!("host {h} serves"));
        self.scan(h)
    }

    /// The look of an origin at its tree after its start. It ends the epoch of the one before where it was
    /// promoted.
    fn scan(&mut self, h: usize) -> Result<(), Violation> {
        let Some(origin) = self.hosts[h].origin() else { return Ok(()) };
        match origin.sealer.scan() {
            Ok(_) => Ok(()),
            Err(error) => self.refused(h, "look", &error_chain(&error)),
        }
    }

    /// Commits a changed tree. Returns the generation, if it was sealed.
    fn commit(&mut self, h: usize) -> Result<Option<SignedGeneration>, Violation> {
        let host = &mut self.hosts[h];
        let edited = host.site.round();
        let Some(origin) = host.origin() else { return Ok(None) };
        let options = CommitOptions { allow_mass_deletion: true, ..CommitOptions::default() };
        let outcome = origin.sealer.commit(options);
        self.sure("edit the tree", edited.map_err(Into::into))?;
        self.count("commits");
        match outcome {
            Ok(Outcome::Sealed(generation)) => {
                self.count("commits that were sealed");
                self.note(format!("host {h} seals {} {}", generation.number(), generation.root_hash()));
                self.check()?;
                Ok(Some(generation))
            }
            Ok(outcome) => {
                self.note(format!("host {h} seals nothing"));
                self.remark(format!("{outcome:?}"));
                Ok(None)
            }
            Err(error) => self.refused(h, "commit", &error_chain(&error)).map(|()| None),
        }
    }

    fn refused(&mut self, h: usize, what: &str, error: &str) -> Result<(), Violation> {
        let Some(reason) = REFUSALS.iter().find(|reason| error.contains(**reason)) else {
            return Err(self.violation(format!("host {h}: {what} failed: {error}")));
        };
        self.note(format!("host {h}: {what}: {reason}"));
        self.count("commits that were refused");
        Ok(())
    }

    fn look(&mut self, n: usize) -> Result<(), Violation> {
        match self.followers[n].look() {
            Looked::Nothing => Ok(()),
            Looked::Accepted(generation) => {
                self.count("generations that followers took");
                self.note(format!("follower {n} has {} {}", generation.number(), generation.root_hash()));
                match self.roots.get(&generation.number().get()) {
                    Some(root) if *root == generation.root_hash() => Ok(()),
                    known => Err(self.violation(format!(
                        "follower {n} took {} with root {}, known is {known:?}",
                        generation.number(),
                        generation.root_hash()
                    ))),
                }
            }
            Looked::Failed(error) => {
                self.note(format!("follower {n} takes nothing"));
                self.remark(error);
                Ok(())
            }
            Looked::Stale => {
                self.count("earlier heads that followers refused");
                self.note(format!("follower {n} is shown an earlier generation"));
                Ok(())
            }
            Looked::Forked(fork) => Err(self.violation(format!("follower {n}: {fork}"))),
        }
    }

    fn stand_by(&mut self) -> Result<(), Violation> {
        let reach = Reach::new(&self.cloud);
        let host = &mut self.hosts[1];
        let opened = Successor::open(&host.data, reach.clone());
        let result = opened.map(|successor| {
            host.reach = reach;
            host.running = Running::Standby(successor);
        });
        self.sure("the standby does not start", result.map_err(Into::into))
    }

    fn follow(&mut self) -> Result<(), Violation> {
        let Running::Standby(successor) = &self.hosts[1].running else { return Ok(()) };
        let followed = successor.follow();
        match followed {
            Ok(Some(number)) => self.note(format!("the standby has {number}")),
            Ok(None) => {}
            Err(error) => self.remark(format!("the standby takes nothing: {}", error_chain(&error))),
        }
        Ok(())
    }

    /// The second origin begins to serve.
    async fn second_origin(&mut self) -> Result<(), Violation> {
        if self.two_origins {
            return Ok(());
        }
        match self.second {
            Second::Promoted => {
                let Running::Standby(successor) = &self.hosts[1].running else { return Ok(()) };
                let promoted = successor.promote();
                match promoted {
                    Ok(place) => self.note(format!("promoted: {} {}", place.epoch, place.number)),
                    // It has nothing yet, or the store is away.
                    Err(error) => {
                        self.remark(error_chain(&error));
                        return Ok(());
                    }
                }
                self.count("promotions");
            }
            Second::Copy => {
                self.check()?;
                let ended = self.hosts[0].end().await;
                self.sure("end a process", ended)?;
                let [first, second] = &self.hosts;
                let copied = copy_directory(&first.data, &second.data)
                    .and_then(|()| copy_directory(&first.tree, &second.tree));
                self.sure("copy the first origin", copied)?;
                self.count("copies");
                self.note("the first origin is copied");
                self.serve(0)?;
            }
        }
        self.two_origins = true;
        self.hosts[1].running = Running::Off;
        self.serve(1)
    }

    /// A process dies, and starts again.
    async fn crash(&mut self, h: usize) -> Result<(), Violation> {
        let was = match self.hosts[h].running {
            Running::Off => return Ok(()),
            Running::Standby(_) => false,
            Running::Origin(_) => true,
        };
        self.check()?;
        self.count("processes killed");
        self.note(format!("host {h} is killed"));
        let ended = self.hosts[h].end().await;
        self.sure("end a process", ended)?;
        if was { self.serve(h) } else { self.stand_by() }
    }

    /// Looks after the rules that hold at every step.
    fn check(&mut self) -> Result<(), Violation> {
        for h in 0..self.hosts.len() {
            let generations = self.hosts[h].generations();
            let generations = self.sure("read the generations of an origin", generations)?;
            let seals = self.fenced && self.hosts[h].origin().is_some();
            for generation in generations {
                let (number, root) = (generation.number().get(), generation.root_hash());
                let known = *self.roots.entry(number).or_insert(root);
                if known != root {
                    return Err(
                        self.violation(format!("host {h} has {number} with {root}, known is {known}"))
                    );
                }
                if seals {
                    self.committed.entry(number).or_insert_with(|| generation.record().to_vec());
                }
            }
        }
        for (number, record) in &self.committed {
            let number = syncd_shared::GenerationNumber::new(*number).ok_or_else(|| self.violation("0"))?;
            let object = self.cloud.object(&published::generation_name(number));
            let object = object.filter(|object| object.len() <= RELEASE_MAX_BYTES);
            let there = object.and_then(|object| Release::decode(&object).ok());
            if there.is_none_or(|there| there.record() != record) {
                return Err(self.violation(format!("the committed generation {number} is lost")));
            }
        }
        Ok(())
    }

    /// The faults end, and one origin goes on.
    async fn end_well(&mut self) -> Result<(), Violation> {
        self.note("the faults end");
        self.cloud.set_fault(0);
        self.cloud.set_down(false);
        while self.cloud.land() {
            self.count("late writes");
        }
        for h in 0..2 {
            self.hosts[h].reach.cut(false);
            self.hosts[h].reach.dies_at(0, false);
        }
        self.pass(SETTLE).await?;
        for h in 0..2 {
            self.scan(h)?;
        }
        self.pass(SETTLE).await?;
        let newest = self.last_commit().await?;
        self.pass(SETTLE).await?;
        for n in 0..self.followers.len() {
            self.look(n)?;
            let accepted = self.followers[n].accepted.clone();
            if accepted.as_ref().is_none_or(|accepted| accepted.record() != newest.record()) {
                let accepted = accepted.map(|accepted| accepted.number());
                return Err(self.violation(format!(
                    "follower {n} has {accepted:?} at the end, and {} was committed",
                    newest.number()
                )));
            }
        }
        self.check()
    }

    /// One of the two origins commits, and the other one does not.
    async fn last_commit(&mut self) -> Result<SignedGeneration, Violation> {
        let order = match self.second {
            Second::Promoted if self.two_origins => [1, 0],
            _ => [0, 1],
        };
        let mut sealed = Vec::new();
        for h in order {
            sealed.extend(self.commit(h)?);
        }
        let place = self.place.display().to_string();
        match (sealed.pop(), sealed.pop()) {
            (Some(generation), None) => Ok(generation),
            (None, _) => {
                self.remark(place);
                Err(self.violation("no origin commits after the faults"))
            }
            (Some(one), Some(other)) => Err(self.violation(format!(
                "two origins commit after the faults: {} and {}",
                one.number(),
                other.number()
            ))),
        }
    }
}
