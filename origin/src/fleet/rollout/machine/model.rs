//! Exhaustive check of the rollout machine together with up to three abstract agents: every interleaving
//! of reports, orders, crashes and lost connections within a budget, each explored once (breadth first).
//!
//! The agents are the shortest description of real ones: they stage, switch, pass or fail their check,
//! refuse, and return. The origin is the driver in `fleet/task/rollouts.rs` with its records, and the
//! committer as far as it seals, withdraws and queues. Time is a single fact: whether the deadline has
//! passed.

use std::collections::{BTreeSet, HashMap};

use syncd_shared::{CheckOutcome, RootHash};

use super::*;
use crate::fleet::rollout::policy::Step;

const AGENTS: usize = 3;
const NAMES: [&str; AGENTS] = ["a", "b", "c"];
const BASE: Gen = Gen { number: 1, root: 1 };
/// Time for nodes to reconnect after a start of the origin.
const RECONNECT_MS: i64 = 5_000;
/// A run that has not ended after this many fair steps goes in circles.
const FAIR_MAX: usize = 500;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Gen {
    number: u8,
    root: u8,
}

impl Gen {
    fn target(self) -> Target {
        Target { number: self.number.into(), root: RootHash::from_bytes([self.root; 32]) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Check {
    Running,
    Passed,
    Failed,
}

/// Reports of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Facts {
    linked: Gen,
    staged: Option<Gen>,
    check: Option<(Gen, Check)>,
    /// Bits of refused roots, which are reported with a hello only.
    refused: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Told {
    generation: Gen,
    activate: bool,
    flipped: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Agent {
    running: bool,
    connected: bool,
    /// Durable, but for `staged`.
    now: Facts,
    accepted: u8,
    good: Gen,
    told: Option<Told>,
    /// The origin's knowledge.
    shown: Facts,
    /// Bits of the roots that have passed here.
    passed: u8,
}

/// Events that may still happen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Budget {
    origin_crashes: u8,
    agent_crashes: u8,
    cuts: u8,
    failures: u8,
    late: u8,
    supersedes: u8,
    orders: u8,
    rollbacks: u8,
    drains: u8,
    pins: u8,
    automatic: u8,
}

/// An interned [`Rollout`].
type Id = u16;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Origin {
    up: bool,
    newest: Gen,
    released: Gen,
    /// Durable: the base of the newest generation's rollout, and whether it is a rollback.
    ordered: Option<(Gen, bool)>,
    /// The saved state, the newest one, and the one that assignments follow.
    disk: Option<Id>,
    memory: Option<Id>,
    known: Option<Id>,
    hold: bool,
    queued: bool,
    drained: u8,
    pinned: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct World {
    agents: [Agent; AGENTS],
    origin: Origin,
    left: Budget,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Move {
    Start,
    Save,
    Withdraw,
    Boot(usize),
    Connect(usize),
    Report(usize),
    Hear(usize),
    Return(usize),
    Pass(usize),
    Stage(usize),
    Switch(usize),
    Asked(bool),
    Resume,
    Automatic,
    Late,
    // Faults and people.
    Fail(usize),
    Cut(usize),
    Crash(usize),
    CrashOrigin { written: bool },
    Supersede,
    Now,
    Rollback,
    Order(Order),
    Drain(usize),
    Pin(usize),
}

struct Model {
    policy: Policy,
    agents: usize,
    /// Whether agents have a check.
    checks: bool,
    rollouts: Vec<Rollout>,
    ids: HashMap<Rollout, Id>,
    /// Lists of roots, by their bits.
    roots: Vec<Vec<RootHash>>,
}

fn bit(index: u8) -> u8 {
    1 << index
}

fn has(bits: u8, agent: usize) -> bool {
    bits & (1 << agent) != 0
}

impl Model {
    fn new(policy: Policy, agents: usize, checks: bool) -> Self {
        let list = |bits: u8| (0..8u8).filter(move |root| bits & bit(*root) != 0);
        let hashes = |bits: u8| list(bits).map(|root| RootHash::from_bytes([root; 32])).collect();
        let roots = (0..=255).map(hashes).collect();
        Self { policy, agents, checks, rollouts: Vec::new(), ids: HashMap::new(), roots }
    }

    fn intern(&mut self, rollout: Rollout) -> Id {
        let next = Id::try_from(self.rollouts.len()).expect("few states");
        *self.ids.entry(rollout).or_insert_with_key(|rollout| {
            self.rollouts.push(rollout.clone());
            next
        })
    }

    fn get(&self, id: Option<Id>) -> Option<&Rollout> {
        id.map(|id| &self.rollouts[usize::from(id)])
    }

    /// The world in which the second generation was just sealed.
    fn start(&mut self, left: Budget) -> World {
        let facts = Facts { linked: BASE, staged: None, check: None, refused: 0 };
        let agent = Agent {
            running: true,
            connected: true,
            now: facts,
            accepted: 1,
            good: BASE,
            told: None,
            shown: facts,
            passed: bit(BASE.root),
        };
        let origin = Origin {
            up: true,
            newest: BASE,
            released: BASE,
            ordered: None,
            disk: None,
            memory: None,
            known: None,
            hold: false,
            queued: left.automatic > 0,
            drained: 0,
            pinned: 0,
        };
        let mut world = World { agents: [agent; AGENTS], origin, left };
        self.seal(&mut world, Gen { number: 2, root: 2 }, Some((BASE, false)));
        world
    }

    fn seal(&mut self, world: &mut World, generation: Gen, ordered: Option<(Gen, bool)>) {
        let origin = &mut world.origin;
        (origin.newest, origin.ordered) = (generation, ordered);
        (origin.memory, origin.known) = (None, None);
        if ordered.is_none() {
            origin.released = generation;
        }
        self.begin(world, None, 0);
    }

    /// Takes up the newest generation's rollout, as the driver does.
    fn begin(&mut self, world: &mut World, stored: Option<Rollout>, until_ms: i64) {
        let Some((base, rollback)) = world.origin.ordered else { return };
        let (kind, policy) = match rollback {
            true => (Kind::Rollback, Policy::rollback()),
            false => (Kind::Commit, self.policy.clone()),
        };
        let target = world.origin.newest.target();
        let mut rollout = stored.unwrap_or_else(|| Rollout::start(kind, target, base.target(), policy, 0));
        if rollout.phase.is_running() {
            rollout.resume_at(0, until_ms);
        }
        world.origin.released = if rollout.phase == Phase::Released { world.origin.newest } else { base };
        let id = self.intern(rollout);
        (world.origin.known, world.origin.memory) = (Some(id), Some(id));
        self.look(world);
    }

    fn nodes(&self, world: &World) -> Vec<Node<'_>> {
        (0..self.agents).map(|agent| self.node(world, agent)).collect()
    }

    fn node(&self, world: &World, index: usize) -> Node<'_> {
        let agent = &world.agents[index];
        let shown = &agent.shown;
        let check = shown.check.map(|(of, check)| {
            let outcome = match check {
                Check::Running => CheckOutcome::Running,
                Check::Passed => CheckOutcome::Passed,
                Check::Failed => CheckOutcome::Failed,
            };
            (of.target(), outcome, "")
        });
        Node {
            name: NAMES[index],
            group: "",
            connected: agent.connected,
            linked: Some(shown.linked.target()),
            is_live: true,
            staged: shown.staged.map(Gen::target),
            check,
            refused: &self.roots[usize::from(shown.refused)],
            drained: has(world.origin.drained, index),
            pinned: has(world.origin.pinned, index),
            error: None,
        }
    }

    /// Changes the newest state, and looks.
    fn change(&mut self, world: &mut World, change: impl FnOnce(&mut Rollout)) {
        let Some(mut rollout) = self.get(world.origin.memory).cloned() else { return };
        change(&mut rollout);
        rollout.look(&self.nodes(world), 0);
        rollout.since_ms = 0;
        world.origin.memory = Some(self.intern(rollout));
    }

    fn look(&mut self, world: &mut World) {
        if world.origin.up {
            self.change(world, |_| ());
        }
    }

    /// The assignment of a connected agent.
    fn want(&self, world: &World, index: usize) -> Option<Told> {
        let (origin, node) = (&world.origin, self.node(world, index));
        let Some(rollout) = self.get(origin.known) else {
            return (!node.pinned).then_some(Told {
                generation: origin.newest,
                activate: true,
                flipped: false,
            });
        };
        match rollout.want(&node) {
            Want::Nothing => None,
            Want::Base => {
                let (base, _) = origin.ordered.expect("there is a rollout");
                Some(Told { generation: base, activate: true, flipped: true })
            }
            Want::New { activate, flipped } => Some(Told { generation: origin.newest, activate, flipped }),
        }
    }

    /// The assignment that would change what the agent was told. One below what it accepted is not sent.
    fn news(&self, world: &World, index: usize) -> Option<Told> {
        let agent = &world.agents[index];
        let want = self.want(world, index).filter(|_| world.origin.up && agent.connected)?;
        (Some(want) != agent.told && want.generation.number >= agent.accepted).then_some(want)
    }

    fn is_running(&self, world: &World) -> bool {
        let known = self.get(world.origin.known).is_some_and(|rollout| rollout.phase.is_running());
        known || world.origin.memory != world.origin.known
    }

    fn is_failed(&self, world: &World) -> bool {
        self.get(world.origin.known).is_some_and(|rollout| rollout.phase.has_failed())
    }

    fn can_switch(&self, agent: &Agent) -> Option<Gen> {
        let told = agent.told.filter(|told| told.activate && agent.running)?;
        let on_trial = self.checks && agent.now.linked != agent.good;
        (agent.now.staged == Some(told.generation) && !on_trial).then_some(told.generation)
    }

    /// Moves that come by themselves in the end, most urgent first. Time passes last.
    fn fair(&self, world: &World) -> Vec<Move> {
        let World { agents, origin, .. } = world;
        let mut moves = Vec::new();
        let mut add = |is_possible: bool, what: Move| moves.extend(is_possible.then_some(what));
        let memory = self.get(origin.memory).filter(|_| origin.up);
        add(!origin.up, Move::Start);
        add(origin.up && origin.memory != origin.known, Move::Save);
        add(origin.up && self.is_failed(world), Move::Withdraw);
        for (index, agent) in agents.iter().enumerate().take(self.agents) {
            let Agent { now, shown, running, connected, .. } = *agent;
            let stages = |told: Told| {
                told.generation.number >= agent.accepted
                    && told.generation != now.linked
                    && now.staged != Some(told.generation)
                    && now.refused & bit(told.generation.root) == 0
            };
            let refused = now.refused & bit(now.linked.root) != 0;
            add(!running, Move::Boot(index));
            add(running && origin.up && !connected, Move::Connect(index));
            add(connected && shown != (Facts { refused: shown.refused, ..now }), Move::Report(index));
            add(self.news(world, index).is_some(), Move::Hear(index));
            add(running && refused && agent.good != now.linked, Move::Return(index));
            add(running && now.check == Some((now.linked, Check::Running)), Move::Pass(index));
            add(running && !refused && agent.told.is_some_and(stages), Move::Stage(index));
            add(self.can_switch(agent).is_some(), Move::Switch(index));
        }
        add(memory.is_some_and(Rollout::wants_check) && !self.has_asked(memory), Move::Asked(true));
        add(memory.is_some_and(|memory| memory.paused_ms.is_some()), Move::Resume);
        let waits = self.is_running(world) || self.is_failed(world) || origin.hold;
        add(origin.up && origin.queued && !waits, Move::Automatic);
        let waits_for_time = memory.is_some_and(|m| matches!(m.phase, Phase::Gathering | Phase::Holding));
        if waits_for_time || moves.is_empty() {
            moves.extend(self.runs_out(world).then_some(Move::Late));
        }
        moves
    }

    fn has_asked(&self, rollout: Option<&Rollout>) -> bool {
        rollout.is_some_and(|rollout| rollout.asked == Asked::Passed)
    }

    /// Whether a deadline lies ahead.
    fn runs_out(&self, world: &World) -> bool {
        let memory = self.get(world.origin.memory).filter(|_| world.origin.up);
        memory.and_then(Rollout::next_ms).is_some_and(|at| at > 0)
    }

    /// Faults, and what people do, within the budget.
    fn others(&self, world: &World) -> Vec<Move> {
        let World { agents, origin, left } = world;
        let mut moves = Vec::new();
        let mut add = |is_possible: bool, what: Move| moves.extend(is_possible.then_some(what));
        for (index, agent) in agents.iter().enumerate().take(self.agents) {
            let is_tried = agent.now.check == Some((agent.now.linked, Check::Running));
            add(left.failures > 0 && agent.running && is_tried, Move::Fail(index));
            add(left.cuts > 0 && agent.connected, Move::Cut(index));
            add(left.agent_crashes > 0 && agent.running, Move::Crash(index));
            add(left.drains > 0 && origin.up, Move::Drain(index));
            add(left.pins > 0 && origin.up, Move::Pin(index));
        }
        let memory = self.get(origin.memory).filter(|_| origin.up);
        add(left.failures > 0 && memory.is_some_and(Rollout::wants_check), Move::Asked(false));
        add(left.late > 0 && self.runs_out(world), Move::Late);
        add(left.origin_crashes > 0 && origin.up, Move::CrashOrigin { written: false });
        let is_ahead = origin.memory != origin.known;
        add(left.origin_crashes > 0 && origin.up && is_ahead, Move::CrashOrigin { written: true });
        add(left.supersedes > 0 && origin.up, Move::Supersede);
        add(left.supersedes > 0 && origin.up, Move::Now);
        add(left.rollbacks > 0 && origin.up, Move::Rollback);
        let takes_orders = left.orders > 0 && memory.is_some_and(|memory| memory.phase.is_running());
        for order in [Order::Pause, Order::Advance, Order::Abort, Order::Now] {
            add(takes_orders, Move::Order(order));
        }
        moves
    }

    fn apply(&mut self, world: &World, what: Move) -> World {
        let mut next = *world;
        match what {
            Move::Boot(agent) => next.agents[agent].running = true,
            Move::Connect(agent) => next.agents[agent].connect(),
            Move::Report(agent) => {
                let agent = &mut next.agents[agent];
                agent.shown = Facts { refused: agent.shown.refused, ..agent.now };
            }
            Move::Hear(agent) => next.agents[agent].told = self.want(world, agent),
            Move::Return(agent) => next.agents[agent].go_back(),
            Move::Pass(agent) => next.agents[agent].pass(),
            Move::Stage(agent) => {
                let agent = &mut next.agents[agent];
                agent.now.staged = agent.told.map(|told| told.generation);
            }
            Move::Switch(agent) => next.agents[agent].switch(self.checks),
            Move::Fail(agent) => {
                next.left.failures -= 1;
                next.agents[agent].fail();
            }
            Move::Cut(agent) => {
                next.left.cuts -= 1;
                next.agents[agent].connected = false;
            }
            Move::Crash(agent) => {
                next.left.agent_crashes -= 1;
                let agent = &mut next.agents[agent];
                (agent.running, agent.connected, agent.told, agent.now.staged) = (false, false, None, None);
                // The failure is kept as a refusal only.
                agent.now.check = agent.now.check.filter(|(_, check)| *check != Check::Failed);
            }
            _ => self.apply_to_origin(&mut next, what),
        }
        self.look(&mut next);
        next
    }

    fn apply_to_origin(&mut self, next: &mut World, what: Move) {
        let number = next.origin.newest.number + 1;
        match what {
            Move::Start => self.start_origin(next),
            Move::Save => {
                next.origin.disk = next.origin.memory;
                next.origin.known = next.origin.memory;
                if self.get(next.origin.known).is_some_and(|known| known.phase == Phase::Released) {
                    next.origin.released = next.origin.newest;
                }
            }
            Move::Withdraw => {
                let (base, _) = next.origin.ordered.expect("there is a rollout");
                next.origin.hold = true;
                self.seal(next, Gen { number, root: base.root }, None);
            }
            Move::Asked(passed) => {
                next.left.failures -= u8::from(!passed);
                self.change(next, |memory| memory.checked(memory.phase, passed, String::new(), 0));
            }
            Move::Resume => self.change(next, |memory| _ = memory.order(Order::Resume, 0)),
            Move::Order(order) => {
                next.left.orders -= 1;
                self.change(next, |memory| _ = memory.order(order, 0));
            }
            Move::Late => {
                next.left.late = next.left.late.saturating_sub(1);
                self.change(next, |memory| memory.deadline_ms = 0);
            }
            Move::Automatic => {
                next.origin.queued = false;
                let base = next.origin.released;
                self.seal(next, Gen { number, root: number }, Some((base, false)));
            }
            Move::Supersede | Move::Now => {
                next.left.supersedes -= 1;
                next.origin.hold = false;
                let ordered = (what == Move::Supersede).then_some((next.origin.released, false));
                self.seal(next, Gen { number, root: number }, ordered);
            }
            Move::Rollback => {
                next.left.rollbacks -= 1;
                next.origin.hold = true;
                let base = next.origin.released;
                self.seal(next, Gen { number, root: BASE.root }, Some((base, true)));
            }
            Move::Drain(agent) => {
                next.left.drains -= 1;
                next.origin.drained ^= 1 << agent;
            }
            Move::Pin(agent) => {
                next.left.pins -= 1;
                next.origin.pinned ^= 1 << agent;
            }
            Move::CrashOrigin { written } => {
                next.left.origin_crashes -= 1;
                if written {
                    next.origin.disk = next.origin.memory;
                }
                (next.origin.up, next.origin.memory, next.origin.known) = (false, None, None);
                next.agents.iter_mut().for_each(|agent| agent.connected = false);
            }
            _ => unreachable!("a move of an agent"),
        }
    }

    fn start_origin(&mut self, next: &mut World) {
        next.origin.up = true;
        for agent in &mut next.agents {
            // The roster knows what was linked, and nothing else.
            agent.shown = Facts { linked: agent.shown.linked, staged: None, check: None, refused: 0 };
        }
        let newest = next.origin.newest.target();
        let stored = self.get(next.origin.disk).filter(|stored| stored.target == newest).cloned();
        self.begin(next, stored, RECONNECT_MS);
    }
}

impl Agent {
    fn connect(&mut self) {
        self.connected = true;
        self.shown = Facts { staged: None, ..self.now };
    }

    fn switch(&mut self, checks: bool) {
        let generation = self.now.staged.take().expect("it may switch");
        (self.now.linked, self.accepted) = (generation, generation.number);
        let has_passed = !checks || generation.root == self.good.root;
        self.now.check = checks.then_some((generation, Check::Running));
        if has_passed {
            self.pass();
            self.now.check = self.now.check.filter(|_| checks);
        }
    }

    fn pass(&mut self) {
        let generation = self.now.linked;
        self.now.check = Some((generation, Check::Passed));
        self.good = generation;
        self.passed |= bit(generation.root);
    }

    fn fail(&mut self) {
        let generation = self.now.linked;
        self.now.check = Some((generation, Check::Failed));
        self.now.refused |= bit(generation.root);
        self.now.staged = None;
    }

    fn go_back(&mut self) {
        self.now.linked = self.good;
    }
}

#[path = "model/explore.rs"]
mod explore;
