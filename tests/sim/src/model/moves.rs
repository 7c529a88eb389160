//! The steps that a state allows, and what they lead to.

use std::collections::HashMap;

use anyhow::Context;
use syncd_agent::session::machine::modelled::{self, Agent, Happens, Pause};
use syncd_origin::fleet::rollout::machine::{Order, Phase, Rollout};
use syncd_origin::fleet::rollout::policy::Policy;
use syncd_proto::v1;
use syncd_proto::v1::origin_message::Message as ToAgent;
use syncd_shared::OrderedStanding;

use super::generations::{BASE, Gen, Generations, ROOTS};
use super::world::{AGENTS, Budget, Event, Facts, Move, Node, Origin, Said, World};
use super::{Model, Planted};

impl Model {
    pub fn new(
        policy: Policy,
        count: usize,
        has_check: bool,
        left: Budget,
        planted: Option<Planted>,
    ) -> anyhow::Result<Self> {
        let mut generations = Generations::new()?;
        let list = |bits: u8| (0..ROOTS).filter(move |root| bits & (1 << root) != 0);
        let roots = (0..=255).map(|bits| list(bits).map(|root| generations.hash(root)).collect()).collect();
        let live = generations.signed(BASE);
        let in_agent = planted.and_then(Planted::in_agent);
        let agent = Agent::new(generations.trust.clone(), &live, has_check, in_agent);
        let node = Node { agent: 0, unheard: Default::default(), facts: Facts::default(), session: None };
        let origin = Origin {
            up: true,
            newest: BASE,
            released: BASE,
            ordered: None,
            disk: None,
            memory: None,
            known: None,
            hold: false,
            queued: false,
            drained: 0,
            pinned: 0,
            observed: 0,
            highest: 1,
            roots: 1,
        };
        let first = World { nodes: [node; AGENTS], origin, left, sealed: Default::default() };
        let mut model = Self {
            policy,
            count,
            planted,
            generations,
            agents: Vec::new(),
            agent_ids: HashMap::new(),
            happened: HashMap::new(),
            rollouts: Vec::new(),
            rollout_ids: HashMap::new(),
            looks: HashMap::new(),
            roots,
            first,
        };
        model.agent_id(agent);
        model.first = model.connected(first)?;
        Ok(model)
    }

    /// The world in which all nodes are connected and the second generation was just sealed.
    fn connected(&mut self, mut world: World) -> anyhow::Result<World> {
        world.note_sealed(BASE);
        for index in 0..self.count {
            world = self.apply(&world, Move::Connect(index)).map_err(anyhow::Error::msg)?;
            while let Some(what) = self.fair(&world).into_iter().next() {
                world = self.apply(&world, what).map_err(anyhow::Error::msg).context("connect")?;
            }
        }
        world.origin.queued = world.left.automatic > 0;
        self.seal_new(&mut world, 2, Some(BASE));
        Ok(world)
    }

    fn agent_id(&mut self, agent: Agent) -> u32 {
        let next = u32::try_from(self.agents.len()).expect("few states of agents");
        *self.agent_ids.entry(agent.key()).or_insert_with(|| {
            self.agents.push(agent);
            next
        })
    }

    pub fn agent(&self, world: &World, index: usize) -> &Agent {
        &self.agents[world.nodes[index].agent as usize]
    }

    /// Has something happen to an agent.
    pub fn happens(&mut self, world: &mut World, index: usize, event: Event) {
        let of = world.nodes[index].agent;
        if !self.happened.contains_key(&(of, event)) {
            let mut agent = self.agents[of as usize].clone();
            let happens = self.real(event);
            let said = agent.happens(happens).into_iter().filter_map(|said| self.said(said)).collect();
            let result = (self.agent_id(agent), said);
            self.happened.insert((of, event), result);
        }
        let (agent, said) = &self.happened[&(of, event)];
        let node = &mut world.nodes[index];
        node.agent = *agent;
        if node.session.is_some() {
            said.iter().for_each(|said| node.say(*said));
        }
    }

    fn said(&self, said: modelled::Said) -> Option<Said> {
        Some(match said {
            modelled::Said::Staged(name) => Said::Staged(self.generations.of(name)),
            modelled::Said::Activated(name) => Said::Activated(self.generations.of(name)),
            modelled::Said::Failed => Said::Failed,
            modelled::Said::Check(check) => Said::Check(self.check_of(check)?),
            modelled::Said::Standing { drained, pinned } => {
                Said::Standing(drained, pinned.and_then(|number| u8::try_from(number).ok()))
            }
            modelled::Said::Hangs => Said::Hangs,
        })
    }

    fn real(&mut self, event: Event) -> Happens {
        let standing = |drained, pinned| v1::OrderedStanding::from(OrderedStanding { drained, pinned });
        match event {
            Event::Work => Happens::Work,
            Event::WorkFails => Happens::WorkFails,
            Event::Declines => Happens::Declines,
            Event::Checked(passes) => Happens::Checked(passes),
            Event::Wakes(pause) => Happens::Wakes(pause),
            Event::Lost => Happens::Lost,
            Event::Welcome(drained, pinned) => Happens::Hears(ToAgent::Welcome(v1::Welcome {
                protocol: 1,
                standing: Some(standing(drained, pinned)),
                ..v1::Welcome::default()
            })),
            Event::Announce(assignment) => Happens::Hears(ToAgent::Announce(v1::Announce {
                generation: Some(self.generations.message(assignment.generation)),
                activate_when_staged: assignment.activate,
                flipped: assignment.flipped,
                ..v1::Announce::default()
            })),
            Event::Activate(of, flipped) => {
                let root = self.generations.hash(of.root);
                let root = bytes::Bytes::copy_from_slice(root.as_bytes());
                Happens::Hears(ToAgent::Activate(v1::Activate {
                    generation: of.number.into(),
                    root,
                    flipped,
                }))
            }
            Event::Standing(drained, pinned) => Happens::Hears(ToAgent::Standing(standing(drained, pinned))),
            Event::Dies { loses_record } => Happens::Dies { loses_record },
            Event::Boots => Happens::Boots,
        }
    }

    /// Steps that come by themselves in the end, most urgent first. Time passes last.
    pub fn fair(&self, world: &World) -> Vec<Move> {
        let origin = &world.origin;
        let mut moves = Vec::new();
        let mut add = |is_possible: bool, what: Move| moves.extend(is_possible.then_some(what));
        let memory = self.get(origin.memory).filter(|_| origin.up);
        add(!origin.up, Move::Start);
        add(origin.up && origin.memory != origin.known, Move::Save);
        add(origin.up && self.is_failed(world), Move::Withdraw);
        for (index, node) in world.nodes.iter().enumerate().take(self.count) {
            let agent = self.agent(world, index);
            add(!agent.is_running(), Move::Agent(index, Event::Boots));
            add(origin.up && agent.greeting().is_some(), Move::Connect(index));
            add(node.unheard[0].is_some(), Move::Hear(index));
            let has_news = node.session.as_ref().is_some_and(|session| self.has_news(session));
            let goes_on = node.goes_on();
            add(has_news && agent.is_connected() && goes_on, Move::Tell(index));
            add(agent.works() && goes_on, Move::Agent(index, Event::Work));
            add(agent.is_checking() && goes_on, Move::Agent(index, Event::Checked(true)));
        }
        add(memory.is_some_and(wants_check), Move::Asked(true));
        add(memory.is_some_and(|memory| memory.paused_ms.is_some()), Move::Resume);
        let waits = self.is_running(world) || self.is_failed(world) || origin.hold;
        add(origin.up && origin.queued && !waits && origin.observed == 0, Move::Automatic);
        add(origin.up && origin.observed > 0, Move::Past);
        for index in 0..self.count {
            for pause in self.agent(world, index).pauses() {
                // Nobody answers before.
                let waits = pause == Pause::Redial && !origin.up;
                let waits = waits || !world.nodes[index].goes_on();
                add(!waits, Move::Agent(index, Event::Wakes(pause)));
            }
        }
        let waits_for_time = memory.is_some_and(|m| matches!(m.phase, Phase::Gathering | Phase::Holding));
        if waits_for_time || moves.is_empty() {
            moves.extend(self.runs_out(world).then_some(Move::Late));
        }
        moves
    }

    /// Whether a deadline lies ahead.
    pub fn runs_out(&self, world: &World) -> bool {
        let memory = self.get(world.origin.memory).filter(|_| world.origin.up);
        memory.and_then(Rollout::next_ms).is_some_and(|at| at > 0)
    }

    /// Faults, and what people do, within the budget.
    pub fn others(&self, world: &World) -> Vec<Move> {
        let World { nodes, origin, left, .. } = world;
        let mut moves = Vec::new();
        let mut add = |is_possible: bool, what: Move| moves.extend(is_possible.then_some(what));
        for (index, node) in nodes.iter().enumerate().take(self.count) {
            let agent = self.agent(world, index);
            let goes_on = node.goes_on();
            let mut happens =
                |is_possible: bool, event| add(is_possible && goes_on, Move::Agent(index, event));
            happens(left.failed_checks > 0 && agent.is_checking(), Event::Checked(false));
            happens(left.failed_work > 0 && agent.may_fail(), Event::WorkFails);
            happens(left.refusing_hooks > 0 && agent.may_decline(), Event::Declines);
            happens(left.agent_crashes > 0 && agent.is_running(), Event::Dies { loses_record: false });
            happens(left.lost_records > 0 && agent.is_running(), Event::Dies { loses_record: true });
            add(left.cuts > 0 && node.session.is_some(), Move::Cut(index));
            add(left.drains > 0 && origin.up, Move::Drain(index));
            add(left.pins > 0 && origin.up, Move::Pin(index));
        }
        let memory = self.get(origin.memory).filter(|_| origin.up);
        add(left.failed_checks > 0 && memory.is_some_and(Rollout::wants_check), Move::Asked(false));
        add(left.late > 0 && self.runs_out(world), Move::Late);
        add(left.origin_crashes > 0 && origin.up, Move::CrashOrigin { written: false });
        let is_ahead = origin.memory != origin.known;
        add(left.origin_crashes > 0 && origin.up && is_ahead, Move::CrashOrigin { written: true });
        add(left.restores > 0 && origin.up && origin.newest != BASE, Move::Restore);
        let is_known = origin.up && origin.observed == 0;
        add(left.supersedes > 0 && is_known, Move::Supersede);
        add(left.supersedes > 0 && is_known, Move::Now);
        add(left.rollbacks > 0 && is_known && origin.newest != BASE, Move::Rollback);
        let takes_orders = left.orders > 0 && memory.is_some_and(|memory| memory.phase.is_running());
        for order in [Order::Pause, Order::Advance, Order::Abort, Order::Now] {
            add(takes_orders, Move::Order(order));
        }
        moves
    }

    /// The state after a step.
    ///
    /// # Errors
    /// A message breaks the protocol.
    pub fn apply(&mut self, world: &World, what: Move) -> Result<World, String> {
        let mut next = *world;
        match what {
            Move::Agent(index, event) => {
                spend(&mut next.left, event);
                if matches!(event, Event::Dies { .. }) {
                    self.detach(&mut next, index);
                }
                self.happens(&mut next, index, event);
            }
            Move::Connect(index) => {
                let greeting = self.agent(world, index).greeting().cloned();
                if let Some(greeting) = greeting {
                    self.attach(&mut next, index, &greeting);
                    let (drained, pinned) =
                        next.nodes[index].session.map_or((false, false), |session| session.standing_told);
                    self.happens(&mut next, index, Event::Welcome(drained, pinned));
                }
            }
            Move::Hear(index) => self.hear(&mut next, index)?,
            Move::Tell(index) => self.tell(&mut next, index),
            Move::Cut(index) => {
                next.left.cuts -= 1;
                self.detach(&mut next, index);
                self.happens(&mut next, index, Event::Lost);
            }
            Move::CrashOrigin { written } => {
                next.left.origin_crashes -= 1;
                if written {
                    next.origin.disk = next.origin.memory;
                }
                self.stop_origin(&mut next);
            }
            Move::Restore => {
                next.left.restores -= 1;
                self.stop_origin(&mut next);
                let origin = &mut next.origin;
                (origin.newest, origin.released, origin.ordered, origin.disk) = (BASE, BASE, None, None);
                (origin.hold, origin.queued) = (false, false);
            }
            _ => self.apply_to_origin(&mut next, what),
        }
        Ok(next)
    }

    fn stop_origin(&mut self, next: &mut World) {
        let origin = &mut next.origin;
        (origin.up, origin.memory, origin.known, origin.observed) = (false, None, None, 0);
        for index in 0..self.count {
            if next.nodes[index].session.is_some() {
                next.nodes[index].disconnect();
                self.happens(next, index, Event::Lost);
            }
        }
    }

    /// The conversation sends its next message, which the agent hears.
    fn tell(&mut self, next: &mut World, index: usize) {
        let Some(mut session) = next.nodes[index].session else { return };
        self.take_up(&mut session);
        let event = if session.standing != session.standing_told {
            session.standing_told = session.standing;
            Event::Standing(session.standing.0, session.standing.1)
        } else if let Some(announce) = session.announce.take() {
            Event::Announce(announce)
        } else if let Some((of, flipped)) = session.activate.take() {
            Event::Activate(of, flipped)
        } else {
            return;
        };
        next.nodes[index].session = Some(session);
        self.happens(next, index, event);
    }

    fn apply_to_origin(&mut self, next: &mut World, what: Move) {
        let number = next.origin.highest + 1;
        match what {
            Move::Start => self.start_origin(next),
            Move::Save => self.saved(next),
            Move::Withdraw => {
                let base = next.origin.ordered.map_or(BASE, |(base, _)| base);
                next.origin.hold = true;
                self.seal(next, Gen { number, root: base.root }, None);
            }
            Move::Asked(passed) => {
                next.left.failed_checks -= u8::from(!passed);
                self.change(next, |memory| memory.checked(memory.phase, passed, String::new(), 0));
                self.assign(next);
            }
            Move::Resume => self.order(next, Order::Resume),
            Move::Order(order) => {
                next.left.orders -= 1;
                self.order(next, order);
            }
            Move::Late => {
                next.left.late = next.left.late.saturating_sub(1);
                self.change(next, |memory| memory.deadline_ms = 0);
                self.assign(next);
            }
            Move::Automatic | Move::Past => {
                next.origin.queued &= what == Move::Past;
                let base = next.origin.released;
                self.seal_new(next, number, Some(base));
            }
            Move::Supersede | Move::Now => {
                next.left.supersedes -= 1;
                next.origin.hold = false;
                let base = (what == Move::Supersede).then_some(next.origin.released);
                self.seal_new(next, number, base);
            }
            Move::Rollback => {
                next.left.rollbacks -= 1;
                next.origin.hold = true;
                let base = next.origin.released;
                self.seal(next, Gen { number, root: BASE.root }, Some((base, true)));
            }
            Move::Drain(index) => {
                next.left.drains -= 1;
                next.origin.drained ^= 1 << index;
                self.obey(next);
            }
            Move::Pin(index) => {
                next.left.pins -= 1;
                next.origin.pinned ^= 1 << index;
                self.obey(next);
            }
            _ => {}
        }
    }
}

/// Whether the check at the origin is due and has not passed.
fn wants_check(rollout: &Rollout) -> bool {
    rollout.wants_check() && rollout.asked != syncd_origin::fleet::rollout::machine::Asked::Passed
}

fn spend(left: &mut Budget, event: Event) {
    match event {
        Event::WorkFails => left.failed_work -= 1,
        Event::Declines => left.refusing_hooks -= 1,
        Event::Checked(false) => left.failed_checks -= 1,
        Event::Dies { loses_record: false } => left.agent_crashes -= 1,
        Event::Dies { loses_record: true } => left.lost_records -= 1,
        _ => {}
    }
}
