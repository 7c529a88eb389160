//! The origin: the driver of rollouts with its records, the conversations, and the committer as far as it
//! seals, withdraws and queues.

use syncd_agent::session::machine::modelled::Greeting;
use syncd_origin::fleet::rollout::machine::{Kind, Order, Phase, Rollout, Want};
use syncd_origin::fleet::rollout::participants::{Node as Seen, Target};
use syncd_origin::fleet::rollout::policy::Policy;

use super::generations::Gen;
use super::world::{AGENTS, Assignment, Check, Facts, Id, Said, Session, World, has};
use super::{Model, NAMES, Planted};

/// Time for nodes to reconnect after a start of the origin.
const RECONNECT_MS: i64 = 5_000;

impl Model {
    fn intern(&mut self, rollout: Rollout) -> Id {
        let next = Id::try_from(self.rollouts.len()).expect("few states of rollouts");
        *self.rollout_ids.entry(rollout).or_insert_with_key(|rollout| {
            self.rollouts.push(rollout.clone());
            next
        })
    }

    pub fn get(&self, id: Option<Id>) -> Option<&Rollout> {
        id.map(|id| &self.rollouts[usize::from(id)])
    }

    pub fn target(&self, of: Gen) -> Target {
        Target { number: of.number.into(), root: self.generations.hash(of.root) }
    }

    pub fn seal(&mut self, world: &mut World, generation: Gen, ordered: Option<(Gen, bool)>) {
        world.note_sealed(generation);
        let origin = &mut world.origin;
        (origin.newest, origin.ordered) = (generation, ordered);
        (origin.memory, origin.known, origin.observed) = (None, None, 0);
        origin.highest = origin.highest.max(generation.number);
        if ordered.is_none() {
            origin.released = generation;
        }
        self.begin(world, None, 0);
        self.assign(world);
    }

    /// A generation with a tree that was never there.
    pub fn seal_new(&mut self, world: &mut World, number: u8, base: Option<Gen>) {
        world.origin.roots += 1;
        let generation = Gen { number, root: world.origin.roots };
        self.seal(world, generation, base.map(|base| (base, false)));
    }

    /// Takes up the newest generation's rollout.
    fn begin(&mut self, world: &mut World, stored: Option<Rollout>, until_ms: i64) {
        let Some((base, rollback)) = world.origin.ordered else { return };
        let (kind, policy) = match rollback {
            true => (Kind::Rollback, Policy::rollback()),
            false => (Kind::Commit, self.policy.clone()),
        };
        let (target, base_target) = (self.target(world.origin.newest), self.target(base));
        let mut rollout = stored.unwrap_or_else(|| Rollout::start(kind, target, base_target, policy, 0));
        if rollout.phase.is_running() {
            rollout.resume_at(0, until_ms);
        }
        world.origin.released = if rollout.phase == Phase::Released { world.origin.newest } else { base };
        let id = self.intern(rollout);
        (world.origin.known, world.origin.memory) = (Some(id), Some(id));
        self.look(world);
    }

    pub fn start_origin(&mut self, world: &mut World) {
        world.origin.up = true;
        for node in &mut world.nodes {
            // The roster knows what was linked, and nothing else.
            node.facts = Facts { linked: node.facts.linked, ..Facts::default() };
        }
        let newest = self.target(world.origin.newest);
        let stored = self.get(world.origin.disk).filter(|stored| stored.target == newest).cloned();
        self.begin(world, stored, RECONNECT_MS);
    }

    pub fn is_drained(&self, world: &World, index: usize) -> bool {
        has(world.origin.drained, index) || world.nodes[index].facts.drained
    }

    pub fn is_pinned(&self, world: &World, index: usize) -> bool {
        has(world.origin.pinned, index) || world.nodes[index].facts.pinned
    }

    pub fn seen(&self, world: &World, index: usize) -> Seen<'_> {
        let node = &world.nodes[index];
        self.seen_by(
            index,
            node.facts,
            node.session.is_some(),
            self.is_drained(world, index),
            self.is_pinned(world, index),
        )
    }

    fn seen_by(&self, index: usize, facts: Facts, connected: bool, drained: bool, pinned: bool) -> Seen<'_> {
        let silent = facts.linked.filter(|_| facts.has_check);
        let silent = silent.map(|of| (self.target(of), syncd_shared::CheckOutcome::Running, ""));
        let check = facts.check.map(|check| (self.target(check.of), check.outcome.real(), ""));
        Seen {
            name: NAMES[index],
            group: "",
            connected,
            linked: facts.linked.map(|of| self.target(of)),
            is_live: true,
            staged: facts.staged.filter(|_| !facts.waits_for_check).map(|of| self.target(of)),
            check: check.or(silent),
            refused: &self.roots[usize::from(facts.refused)],
            drained,
            pinned,
            error: None,
        }
    }

    pub fn all_seen(&self, world: &World) -> Vec<Seen<'_>> {
        (0..self.count).map(|index| self.seen(world, index)).collect()
    }

    /// Changes the newest state, and looks.
    pub fn change(&mut self, world: &mut World, change: impl FnOnce(&mut Rollout)) {
        let Some(mut rollout) = self.get(world.origin.memory).cloned() else { return };
        change(&mut rollout);
        rollout.look(&self.all_seen(world), 0);
        rollout.since_ms = 0;
        world.origin.memory = Some(self.intern(rollout));
    }

    pub fn look(&mut self, world: &mut World) {
        let Some(memory) = world.origin.memory.filter(|_| world.origin.up) else { return };
        let seen: [super::Seen; AGENTS] = std::array::from_fn(|index| {
            let node = &world.nodes[index];
            let orders = (self.is_drained(world, index), self.is_pinned(world, index));
            (node.facts, node.session.is_some(), orders.0, orders.1)
        });
        if let Some(known) = self.looks.get(&(memory, seen)) {
            world.origin.memory = Some(*known);
            return;
        }
        self.change(world, |_| ());
        self.looks.insert((memory, seen), world.origin.memory.unwrap_or(memory));
    }

    /// Whether assignments depend on what nodes report.
    pub fn is_running(&self, world: &World) -> bool {
        let known = self.get(world.origin.known).is_some_and(|rollout| rollout.phase.is_running());
        known || world.origin.memory != world.origin.known
    }

    pub fn is_failed(&self, world: &World) -> bool {
        self.get(world.origin.known).is_some_and(|rollout| rollout.phase.has_failed())
    }

    fn assignment(&self, world: &World, index: usize) -> Option<Assignment> {
        let (origin, seen) = (&world.origin, self.seen(world, index));
        let generation = origin.newest;
        let is_early = self.planted == Some(Planted::UnsavedState);
        let Some(rollout) = self.get(if is_early { origin.memory } else { origin.known }) else {
            return (!seen.pinned).then_some(Assignment { generation, activate: true, flipped: false });
        };
        match rollout.want(&seen) {
            Want::Nothing => None,
            Want::Base => {
                let (base, _) = origin.ordered?;
                Some(Assignment { generation: base, activate: true, flipped: true })
            }
            Want::New { activate, flipped } => {
                let flipped = flipped && self.planted != Some(Planted::NoStragglers);
                Some(Assignment { generation, activate, flipped })
            }
        }
    }

    /// Passes on assignments that differ.
    pub fn assign(&mut self, world: &mut World) {
        for index in 0..self.count {
            let assignment = self.assignment(world, index);
            if let Some(session) = &mut world.nodes[index].session {
                session.watched = assignment;
            }
        }
    }

    /// Looks and assigns, as after a report while a rollout runs.
    fn reassign(&mut self, world: &mut World, is_needed: bool) {
        if is_needed || self.is_running(world) {
            self.look(world);
            self.assign(world);
        }
    }

    pub fn saved(&mut self, world: &mut World) {
        world.origin.disk = world.origin.memory;
        world.origin.known = world.origin.memory;
        if self.get(world.origin.known).is_some_and(Rollout::is_released) {
            world.origin.released = world.origin.newest;
        }
        self.look(world);
        self.assign(world);
    }

    pub fn obey(&mut self, world: &mut World) {
        for index in 0..self.count {
            let orders = (has(world.origin.drained, index), has(world.origin.pinned, index));
            if let Some(session) = &mut world.nodes[index].session {
                session.standing = orders;
            }
        }
        self.look(world);
        self.assign(world);
    }

    pub fn attach(&mut self, world: &mut World, index: usize, greeting: &Greeting) {
        let of = |name| self.generations.of(name);
        let (live, accepted) = (greeting.live.map(of), greeting.accepted.map(of));
        let check = greeting.check.and_then(|check| self.check_of(check));
        let refused = greeting.refused.iter().fold(0, |bits, root| bits | 1 << self.generations.root(root));
        let newest = world.origin.newest;
        for shown in live.iter().chain(&accepted) {
            if *shown != newest && shown.number >= newest.number {
                world.origin.observed = world.origin.observed.max(shown.number);
            }
        }
        let orders = (has(world.origin.drained, index), has(world.origin.pinned, index));
        let node = &mut world.nodes[index];
        node.disconnect();
        node.facts = Facts {
            linked: live,
            staged: None,
            waits_for_check: false,
            check,
            has_check: greeting.has_check,
            refused,
            drained: greeting.drained,
            pinned: greeting.pinned.is_some(),
        };
        let reported = live.map_or(0, |live| live.number);
        node.session = Some(Session {
            standing: orders,
            standing_told: orders,
            accepted: accepted.map_or(reported, |accepted| accepted.number),
            reported,
            goes_back_to: greeting.pinned.and_then(|number| u8::try_from(number).ok()),
            ..Session::default()
        });
        let first = self.assignment(world, index);
        if let Some(session) = &mut world.nodes[index].session {
            session.watched = first;
        }
        self.reassign(world, false);
    }

    pub fn detach(&mut self, world: &mut World, index: usize) {
        world.nodes[index].disconnect();
        if world.origin.up {
            self.reassign(world, false);
        }
    }

    /// Hears the oldest message of a node.
    ///
    /// # Errors
    /// The message breaks the protocol.
    pub fn hear(&mut self, world: &mut World, index: usize) -> Result<(), String> {
        let newest = world.origin.newest;
        let is_known = |of: Gen| of.number < newest.number || of == newest;
        let node = &mut world.nodes[index];
        let Some(said) = node.hear() else { return Ok(()) };
        let (Some(session), facts) = (&mut node.session, &mut node.facts) else { return Ok(()) };
        let mut is_needed = false;
        match said {
            Said::Hangs => {
                self.detach(world, index);
                return Ok(());
            }
            Said::Staged(of) if is_known(of) => {
                session.staged = Some(of.root);
                (facts.staged, facts.waits_for_check) = (Some(of), false);
            }
            Said::Staged(_) => {}
            Said::Activated(of) if !is_known(of) => {
                // It shows the signed record when it comes back.
                self.detach(world, index);
                self.happens(world, index, super::world::Event::Lost);
                return Ok(());
            }
            Said::Activated(of) => {
                if of.number < session.reported && session.goes_back_to != Some(of.number) {
                    return Err(format!("{} goes back without saying why", NAMES[index]));
                }
                (session.reported, session.staged) = (of.number, None);
                session.accepted = session.accepted.max(of.number);
                (facts.linked, facts.staged) = (Some(of), None);
                is_needed = facts.check.is_some_and(|check| check.is_failure());
            }
            Said::Check(check) => {
                session.goes_back_to = check.returned_to.or(session.goes_back_to);
                if check.returned_to.is_some() {
                    facts.refused |= 1 << check.of.root;
                }
                facts.waits_for_check = check.outcome == super::world::Outcome::FailedBefore;
                facts.check = Some(check);
                is_needed = true;
            }
            Said::Standing(drained, pinned) => {
                session.goes_back_to = pinned.or(session.goes_back_to);
                (facts.drained, facts.pinned) = (drained, pinned.is_some());
                is_needed = true;
            }
            Said::Failed => facts.staged = None,
        }
        self.reassign(world, is_needed);
        Ok(())
    }

    /// The conversation takes up a new assignment.
    pub fn take_up(&self, session: &mut Session) {
        if session.watched == session.assigned {
            return;
        }
        let before = std::mem::replace(&mut session.assigned, session.watched);
        if let (Some(before), Some(now)) = (before, session.assigned)
            && !before.activate
            && now.activate
            && before.generation == now.generation
            && (session.staged == Some(now.generation.root) || !now.flipped)
        {
            match &mut session.announce {
                Some(announce) => (announce.activate, announce.flipped) = (true, now.flipped),
                None => session.activate = Some((now.generation, now.flipped)),
            }
            return;
        }
        (session.announce, session.activate) = (None, None);
        session.announce = session.assigned.filter(|now| session.accepted <= now.generation.number);
    }

    /// Whether the conversation has something for the agent.
    pub fn has_news(&self, session: &Session) -> bool {
        let mut next = *session;
        self.take_up(&mut next);
        next.standing != next.standing_told || next.announce.is_some() || next.activate.is_some()
    }

    pub fn check_of(&self, check: syncd_agent::session::machine::modelled::CheckReport) -> Option<Check> {
        use super::world::Outcome;
        let outcome = match syncd_proto::v1::CheckOutcome::try_from(check.outcome) {
            Ok(syncd_proto::v1::CheckOutcome::Running) => Outcome::Running,
            Ok(syncd_proto::v1::CheckOutcome::Passed) => Outcome::Passed,
            Ok(syncd_proto::v1::CheckOutcome::Failed) => Outcome::Failed,
            Ok(syncd_proto::v1::CheckOutcome::FailedBefore) => Outcome::FailedBefore,
            Ok(syncd_proto::v1::CheckOutcome::FailedOnBoth) => Outcome::FailedOnBoth,
            _ => return None,
        };
        let returned_to = check.returned_to.and_then(|number| u8::try_from(number).ok());
        Some(Check { of: self.generations.of(check.of), outcome, returned_to })
    }

    pub fn order(&mut self, world: &mut World, order: Order) {
        self.change(world, |memory| _ = memory.order(order, 0));
        self.assign(world);
    }
}

impl Check {
    fn is_failure(&self) -> bool {
        use super::world::Outcome;
        matches!(self.outcome, Outcome::Failed | Outcome::FailedOnBoth)
    }
}
