//! The search, and the properties of every state, of every step, and of every end.

use super::*;

/// The states that were found.
struct Found {
    worlds: Vec<World>,
    index: HashMap<World, u32>,
    /// The move that led to a state first, and from where.
    from: Vec<(u32, Option<Move>)>,
    /// The state that follows by itself.
    next: Vec<Option<u32>>,
}

impl Found {
    fn path(&self, mut state: u32) -> String {
        let mut moves = Vec::new();
        while let (before, Some(what)) = self.from[state as usize] {
            moves.push(format!("{what:?}"));
            state = before;
        }
        moves.reverse();
        moves.join(" ")
    }

    fn add(&mut self, world: World, from: u32, what: Option<Move>) -> u32 {
        let next = u32::try_from(self.worlds.len()).expect("few states");
        *self.index.entry(world).or_insert_with(|| {
            self.worlds.push(world);
            self.from.push((from, what));
            self.next.push(None);
            next
        })
    }
}

/// Explores every state, and checks them all.
fn explore(name: &str, mut model: Model, left: Budget) {
    let started = std::time::Instant::now();
    let mut found = Found { worlds: vec![], index: HashMap::new(), from: vec![], next: vec![] };
    let world = model.start(left);
    found.add(world, 0, None);
    let mut state = 0;
    while let Some(world) = found.worlds.get(state as usize).copied() {
        let fair = model.fair(&world);
        let count = fair.len();
        for (index, what) in fair.into_iter().chain(model.others(&world)).enumerate() {
            let after = model.apply(&world, what);
            let known = found.add(after, state, Some(what));
            if index == 0 && count > 0 {
                found.next[state as usize] = Some(known);
            }
            if let Err(wrong) = model.check_step(&world, what, &after, index < count) {
                panic!("{name}: {wrong}\n{}\nthen {what:?}\n{after:#?}", found.path(state));
            }
        }
        if let Err(wrong) = model.check_state(&world) {
            panic!("{name}: {wrong}\n{}\n{world:#?}", found.path(state));
        }
        if count == 0
            && let Err(wrong) = model.check_end(&world)
        {
            let rollout = model.get(world.origin.known);
            panic!("{name}: {wrong}\n{}\n{world:#?}\n{rollout:#?}", found.path(state));
        }
        state += 1;
    }
    check_all_end(name, &found);
    model.check_without_agents(name, &found);
    println!("{name}: {} states in {:?}", found.worlds.len(), started.elapsed());
}

/// Every run ends, whatever happened before, once nothing more goes wrong.
fn check_all_end(name: &str, found: &Found) {
    let mut ends = vec![false; found.worlds.len()];
    for first in 0..found.worlds.len() {
        let (mut run, mut at) = (Vec::new(), first);
        while !ends[at] {
            run.push(at);
            assert!(
                run.len() < FAIR_MAX,
                "{name}: no end\n{}\n{:#?}",
                found.path(at as u32),
                found.worlds[at]
            );
            match found.next[at] {
                Some(next) => at = next as usize,
                None => break,
            }
        }
        run.into_iter().for_each(|state| ends[state] = true);
    }
}

impl Model {
    /// Properties of a step.
    fn check_step(&self, before: &World, what: Move, after: &World, is_fair: bool) -> Result<(), String> {
        for (old, new) in before.agents.iter().zip(&after.agents) {
            if new.accepted < old.accepted {
                return Err("accepted fell".to_owned());
            }
        }
        match what {
            Move::Switch(index) => self.check_switch(before, index),
            Move::Return(index) => {
                let Agent { now, passed, .. } = &after.agents[index];
                match passed & bit(now.linked.root) != 0 && now.refused & bit(now.linked.root) == 0 {
                    true => Ok(()),
                    false => Err("returned to what has not passed".to_owned()),
                }
            }
            Move::Late if is_fair => self.check_late(before),
            _ => Ok(()),
        }
    }

    /// With every node there and everything told, only a step whose nodes were all taken away is waited for.
    fn check_late(&self, before: &World) -> Result<(), String> {
        let Some(rollout) = self.get(before.origin.memory) else { return Ok(()) };
        let is_empty = rollout.participants.counted(rollout.step, &self.nodes(before)).is_empty();
        match rollout.phase {
            Phase::Staging | Phase::Flipping if !is_empty => {
                Err("only the deadline ends this, although every node is there".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn check_switch(&self, before: &World, index: usize) -> Result<(), String> {
        let to = before.agents[index].now.staged.expect("staged");
        if to.number > before.origin.newest.number {
            return Err("a generation that was not sealed".to_owned());
        }
        if before.agents[index].now.refused & bit(to.root) != 0 {
            return Err("a generation that it refuses".to_owned());
        }
        match before.origin.ordered {
            Some(_) if to == before.origin.newest && !self.has_flipped(before, index) => {
                Err("its step has not flipped, or nothing durable says so".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// Whether the durable state lets the node serve the newest generation.
    fn has_flipped(&self, world: &World, index: usize) -> bool {
        self.get(world.origin.disk).filter(|disk| disk.target == world.origin.newest.target()).is_some_and(
            |disk| {
                let step = disk.participants.step_of(&self.node(world, index), &disk.policy);
                disk.phase == Phase::Released || step < disk.flipped
            },
        )
    }

    /// Properties of a state.
    fn check_state(&self, world: &World) -> Result<(), String> {
        for (index, agent) in world.agents.iter().enumerate().take(self.agents) {
            let Agent { now, accepted, good, passed, .. } = agent;
            let refuses = now.refused & bit(now.linked.root) != 0;
            if refuses && *good == now.linked {
                return Err(format!("{} serves what it refuses", NAMES[index]));
            }
            if now.linked.number > *accepted || passed & bit(good.root) == 0 {
                return Err(format!("{} has forgotten what it accepted or what passed", NAMES[index]));
            }
            if world.origin.ordered.is_some()
                && now.linked == world.origin.newest
                && !self.has_flipped(world, index)
            {
                return Err(format!("{} is ahead of its step", NAMES[index]));
            }
        }
        self.check_barrier(world)
    }

    /// Once a step is over, none of its nodes is ready on anything older.
    fn check_barrier(&self, world: &World) -> Result<(), String> {
        let Some(known) = self.get(world.origin.known).filter(|known| known.policy.flip == Flip::Together)
        else {
            return Ok(());
        };
        for (index, agent) in world.agents.iter().enumerate().take(self.agents) {
            let node = self.node(world, index);
            let step = known.participants.step_of(&node, &known.policy);
            let is_over = known.phase == Phase::Released
                || known.phase.is_running()
                    && (step < known.step || step == known.step && known.phase == Phase::Holding);
            let refuses = agent.now.refused & bit(world.origin.newest.root) != 0;
            let is_there = agent.connected && !node.pinned && !refuses && !node.refuses(&known.target.root);
            let is_behind = agent.now.linked != world.origin.newest;
            let is_told = agent.told.is_some_and(|told| told.flipped);
            if is_over && is_there && is_behind && !is_told && self.news(world, index).is_none() {
                return Err(format!("{} is ready on an older generation", NAMES[index]));
            }
        }
        Ok(())
    }

    /// Properties of a state in which nothing is left to do.
    fn check_end(&self, world: &World) -> Result<(), String> {
        let World { agents, origin, .. } = world;
        if self.is_running(world) || self.is_failed(world) {
            return Err("the rollout has not ended".to_owned());
        }
        if origin.released != origin.newest {
            return Err("what is newest is not released".to_owned());
        }
        if origin.queued && !origin.hold {
            return Err("an automatic commit starves".to_owned());
        }
        for (index, agent) in agents.iter().enumerate().take(self.agents) {
            let refuses = agent.now.refused & bit(origin.newest.root) != 0;
            if !has(origin.pinned, index) && !refuses && agent.now.linked != origin.newest {
                return Err(format!("{} does not have the newest generation", NAMES[index]));
            }
        }
        Ok(())
    }

    /// With every node away for ever, a rollout ends at its deadlines.
    fn check_without_agents(&mut self, name: &str, found: &Found) {
        let mut ended = BTreeSet::new();
        for first in 0..found.worlds.len() {
            let mut world = found.worlds[first];
            world.left = Budget::default();
            for agent in &mut world.agents {
                agent.connected = false;
                (agent.told, agent.now) = (None, agent.shown);
            }
            for step in 0.. {
                let key = (world.origin.memory, world.origin.known, world.origin.newest, world.origin.up);
                if !self.is_running(&world) && world.origin.up && !self.is_failed(&world)
                    || !ended.insert((key, world.agents.map(|agent| agent.shown.linked)))
                {
                    break;
                }
                assert!(step < 50, "{name}: no end without nodes\n{}\n{world:#?}", found.path(first as u32));
                let alone = |what: &Move| {
                    matches!(
                        what,
                        Move::Start | Move::Save | Move::Withdraw | Move::Asked(true) | Move::Resume
                    )
                };
                let what = self.fair(&world).into_iter().find(alone);
                let what = what.or_else(|| self.runs_out(&world).then_some(Move::Late));
                let Some(what) = what else {
                    panic!("{name}: stuck without nodes\n{}\n{world:#?}", found.path(first as u32))
                };
                world = self.apply(&world, what);
            }
        }
    }
}

fn steps(steps: &[Step], flip: Flip) -> Policy {
    let steps = steps.iter().cloned().chain([Step::Rest]).collect();
    Policy { name: "test".into(), steps, flip, hold_ms: 1, deadline_ms: 2, ..Policy::together() }
}

#[test]
fn together_holds_whatever_crashes() {
    let budget = Budget { origin_crashes: 1, agent_crashes: 1, cuts: 1, ..Budget::default() };
    explore("together", Model::new(steps(&[], Flip::Together), 2, false), budget);
}

#[test]
fn a_straggler_that_refuses_what_was_released_holds_up_nothing() {
    let policy = Policy { quorum_percent: 50, ..steps(&[], Flip::Together) };
    let budget = Budget { failures: 1, late: 2, automatic: 1, ..Budget::default() };
    explore("straggler", Model::new(policy, 2, true), budget);
}

#[test]
fn a_canary_whose_check_fails_is_withdrawn_whatever_crashes() {
    let budget = Budget { origin_crashes: 1, agent_crashes: 1, failures: 1, ..Budget::default() };
    explore("canary", Model::new(steps(&[Step::Nodes(1)], Flip::Together), 2, true), budget);
}

#[test]
fn orders_of_people_leave_no_node_behind() {
    let model = || Model::new(steps(&[Step::Nodes(1)], Flip::Together), 2, true);
    explore("orders", model(), Budget { orders: 2, cuts: 1, ..Budget::default() });
    explore("drains and pins", model(), Budget { failures: 1, drains: 2, pins: 1, ..Budget::default() });
    let budget = Budget { failures: 1, supersedes: 1, automatic: 1, ..Budget::default() };
    explore("supersession", model(), budget);
    let budget = Budget { rollbacks: 1, cuts: 1, automatic: 1, ..Budget::default() };
    explore("rollback", model(), budget);
}

#[test]
fn three_nodes_in_three_steps() {
    let three = || steps(&[Step::Nodes(1), Step::Nodes(1)], Flip::Each);
    explore("three steps", Model::new(three(), 3, true), Budget { failures: 1, ..Budget::default() });
    explore(
        "three crashes",
        Model::new(three(), 3, false),
        Budget { origin_crashes: 1, ..Budget::default() },
    );
}
