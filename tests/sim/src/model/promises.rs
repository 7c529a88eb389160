//! Promises of every step, of every state, and of every end.

use syncd_agent::session::machine::modelled::Agent;
use syncd_origin::fleet::rollout::machine::Phase;
use syncd_origin::fleet::rollout::policy::Flip;

use super::generations::Gen;
use super::world::{Move, World};
use super::{Model, NAMES};

impl Model {
    fn live(&self, world: &World, index: usize) -> Option<Gen> {
        self.agent(world, index).live().map(|live| self.generations.of(live))
    }

    /// Promises of a step.
    pub fn check_step(&self, before: &World, what: Move, after: &World, is_fair: bool) -> Result<(), String> {
        for (index, name) in NAMES.iter().enumerate().take(self.count) {
            let (old, new) = (self.agent(before, index), self.agent(after, index));
            if after.nodes[index].is_full() {
                return Err(format!("messages of {name} pile up"));
            }
            if new.accepted() < old.accepted() {
                return Err(format!("{name}: accepted fell"));
            }
            if old.live() != new.live() {
                self.check_switch(before, after, index)?;
            }
        }
        match what {
            Move::Late if is_fair => self.check_late(before),
            _ => Ok(()),
        }
    }

    fn check_switch(&self, before: &World, after: &World, index: usize) -> Result<(), String> {
        let name = NAMES[index];
        let Some(to) = self.live(after, index) else { return Err(format!("{name} lost its tree")) };
        let (old, root) = (self.agent(before, index), self.generations.hash(to.root));
        if !after.is_sealed(to) {
            return Err(format!("{name} serves what was not sealed"));
        }
        let is_same_tree = self.live(before, index).is_some_and(|live| live.root == to.root);
        if old.has_refused(&root) && !is_same_tree {
            return Err(format!("{name} switches to what it refuses"));
        }
        if self.live(before, index).is_some_and(|live| to.number < live.number) && !old.has_passed(&root) {
            return Err(format!("{name} returns to what has not passed"));
        }
        Ok(())
    }

    /// With every node there and everything told, only a step whose nodes were all taken away is waited for,
    /// and one whose check fails on what it has.
    fn check_late(&self, before: &World) -> Result<(), String> {
        let Some(rollout) = self.get(before.origin.memory) else { return Ok(()) };
        let seen = self.all_seen(before);
        let counted = rollout.participants.counted(rollout.step, &seen);
        let has_failed = counted.iter().any(|node| node.failed_on(rollout.target).is_some());
        match rollout.phase {
            Phase::Staging | Phase::Flipping if !counted.is_empty() && !has_failed => {
                Err("only the deadline ends this, although every node is there".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// Promises of a state.
    pub fn check_state(&self, world: &World) -> Result<(), String> {
        for (index, name) in NAMES.iter().enumerate().take(self.count) {
            let (agent, live) = (self.agent(world, index), self.live(world, index));
            let Some(live) = live else { return Err(format!("{name} serves nothing")) };
            let root = self.generations.hash(live.root);
            if agent.refuses(&root) && agent.good() == Some(root) {
                return Err(format!("{name} takes what it refuses for good"));
            }
            if u64::from(live.number) > agent.accepted() {
                return Err(format!("{name} has forgotten what it accepted"));
            }
            if agent.good().is_some_and(|good| !agent.has_passed(&good)) {
                return Err(format!("{name} takes for good what has not passed there"));
            }
            if world.origin.ordered.is_some()
                && live == world.origin.newest
                && !self.has_flipped(world, index)
            {
                return Err(format!("{name} is ahead of its step"));
            }
        }
        self.check_barrier(world)
    }

    /// Whether the durable state lets the node serve the newest generation.
    fn has_flipped(&self, world: &World, index: usize) -> bool {
        let disk = self.get(world.origin.disk);
        disk.filter(|disk| disk.target == self.target(world.origin.newest)).is_some_and(|disk| {
            let step = disk.participants.step_of(&self.seen(world, index), &disk.policy);
            disk.phase == Phase::Released || step < disk.flipped
        })
    }

    /// Once a step is over, none of its nodes is ready on anything older.
    fn check_barrier(&self, world: &World) -> Result<(), String> {
        let known = self.get(world.origin.known).filter(|known| known.policy.flip == Flip::Together);
        let Some(known) = known.filter(|_| world.origin.up) else { return Ok(()) };
        let newest = world.origin.newest;
        let root = self.generations.hash(newest.root);
        for (index, name) in NAMES.iter().enumerate().take(self.count) {
            let (agent, seen, node) =
                (self.agent(world, index), self.seen(world, index), &world.nodes[index]);
            let step = known.participants.step_of(&seen, &known.policy);
            let is_over = known.phase == Phase::Released
                || known.phase.is_running()
                    && (step < known.step || step == known.step && known.phase == Phase::Holding);
            let refuses = agent.refuses(&root) || seen.refuses(&known.target.root);
            let is_told = node.session.as_ref().is_some_and(|session| !self.has_news(session))
                && node.unheard[0].is_none()
                && agent.is_connected();
            let is_out = seen.pinned || agent.is_pinned() || refuses;
            if is_over
                && is_told
                && !is_out
                && self.live(world, index) != Some(newest)
                && agent.is_ready()
                && !Agent::is_switching(agent)
                && world.origin.observed == 0
            {
                return Err(format!("{name} is ready on an older generation"));
            }
        }
        Ok(())
    }

    /// Promises of a state in which nothing is left to do.
    pub fn check_end(&self, world: &World) -> Result<(), String> {
        let origin = &world.origin;
        if self.is_running(world) || self.is_failed(world) {
            return Err("the rollout has not ended".to_owned());
        }
        let rollout = self.get(origin.known);
        if origin.released != origin.newest && !rollout.is_some_and(|rollout| rollout.refused) {
            return Err("what is newest is not released".to_owned());
        }
        if origin.queued && !origin.hold {
            return Err("an automatic commit starves".to_owned());
        }
        let root = self.generations.hash(origin.newest.root);
        for (index, name) in NAMES.iter().enumerate().take(self.count) {
            let agent = self.agent(world, index);
            let is_out = self.is_pinned(world, index) || agent.refuses(&root);
            if !is_out && self.live(world, index) != Some(origin.newest) {
                return Err(format!("{name} does not have the newest generation"));
            }
            if !is_out && !self.is_drained(world, index) && !agent.is_ready() {
                return Err(format!("{name} is not ready in the end"));
            }
        }
        Ok(())
    }
}
