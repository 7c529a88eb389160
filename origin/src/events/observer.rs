//! Differences of successive states of the origin, as events. Reads no clock and no file.

use std::collections::HashMap;
use std::sync::Arc;

use syncd_shared::CheckOutcome;

use super::event::Event;
use crate::admin::protocol::GenerationLine;
use crate::commit::{OriginView, State};
use crate::fleet::rollout::{Phase, RolloutStatus};
use crate::fleet::{AgentView, FleetView};
use crate::state::Snapshot;

/// Remembers the last state.
#[derive(Debug)]
pub struct Observer {
    /// Number of the current generation; 0 before the first.
    generation: u64,
    held: Option<HeldBy>,
    fleet: Arc<FleetView>,
    rollout: Option<RolloutAt>,
}

/// Generation, phase and step of a rollout, and whether it is paused.
type RolloutAt = (u64, Phase, usize, bool);

/// Cause of a hold. Its text may change while it lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HeldBy {
    /// A rollback at this time, in milliseconds since 1970.
    Rollback(i64),
    /// The state of the tree, or of DATA.
    Tree,
}

impl Observer {
    pub fn new(now: &Snapshot) -> Self {
        let held = held(&now.origin).flatten().map(|(by, _)| by);
        let rollout = now.rollout.rollout.as_ref().map(place);
        Self { generation: number(&now.origin), held, fleet: now.fleet.clone(), rollout }
    }

    /// Events since the last call. A generation comes before what nodes do with it.
    pub fn observe(&mut self, now: &Snapshot) -> Vec<Event> {
        let mut found = Vec::new();
        if let Some(rollout) = &now.rollout.rollout
            && self.rollout.replace(place(rollout)) != Some(place(rollout))
        {
            found.push(rollout_event(rollout));
        }
        if number(&now.origin) != self.generation
            && let Some(current) = &now.origin.current
        {
            self.generation = number(&now.origin);
            let GenerationLine { generation, root, label, files, bytes, .. } =
                GenerationLine::new(current, true);
            found.push(Event::Sealed { generation, root, label, files, bytes });
        }
        if let Some(held) = held(&now.origin) {
            let by = held.as_ref().map(|(by, _)| *by);
            if by != self.held {
                let withdrawn = now.origin.hold.and_then(|hold| hold.withdrawn);
                found.extend(withdrawn.map(|number| Event::Withdrawn { generation: number.get() }));
                found.push(held.map_or(Event::HoldEnded, |(_, reason)| Event::Held { reason }));
            }
            self.held = by;
        }
        if !Arc::ptr_eq(&self.fleet, &now.fleet) {
            fleet_changes(&self.fleet, &now.fleet, &mut found);
            self.fleet = now.fleet.clone();
        }
        found
    }
}

fn place(rollout: &RolloutStatus) -> RolloutAt {
    (rollout.generation, rollout.phase, rollout.step, rollout.paused)
}

fn rollout_event(rollout: &RolloutStatus) -> Event {
    let RolloutStatus { generation, policy, phase, step, steps, paused, reason, .. } = rollout.clone();
    Event::Rollout { generation, policy, phase, step, steps, paused, reason }
}

fn number(origin: &OriginView) -> u64 {
    origin.current.as_ref().map_or(0, |current| current.number().get())
}

/// The hold with its reason. The outer `None`: unknown, because the tree is being read.
fn held(origin: &OriginView) -> Option<Option<(HeldBy, String)>> {
    if let Some(hold) = origin.hold {
        return Some(Some((HeldBy::Rollback(hold.since_ms), hold.reason())));
    }
    match origin.state {
        State::Scanning => None,
        State::Held => Some(Some((HeldBy::Tree, origin.reason.clone().unwrap_or_default()))),
        State::Ready | State::Waiting | State::Stopped | State::Standby => Some(None),
    }
}

fn fleet_changes(before: &FleetView, now: &FleetView, found: &mut Vec<Event>) {
    let known: HashMap<&str, &AgentView> =
        before.agents.iter().map(|agent| (agent.name.as_str(), agent)).collect();
    let there: HashMap<&str, &AgentView> =
        now.agents.iter().map(|agent| (agent.name.as_str(), agent)).collect();
    let gone = before.agents.iter().filter(|agent| !there.contains_key(agent.name.as_str()));
    found.extend(gone.map(|agent| Event::Removed { node: agent.name.clone() }));
    for agent in &now.agents {
        match known.get(agent.name.as_str()) {
            Some(before) => agent_changes(before, agent, found),
            None => found.push(Event::Joined { node: agent.name.clone() }),
        }
    }
}

fn agent_changes(before: &AgentView, now: &AgentView, found: &mut Vec<Event>) {
    let node = || now.name.clone();
    if before.connected != now.connected {
        found.push(match now.connected {
            true => Event::Connected { node: node(), version: now.version.clone() },
            false => Event::Unreachable { node: node() },
        });
    }
    match (trouble(before), trouble(now)) {
        (None, Some(error)) => found.push(Event::Failed { node: node(), error }),
        (Some(_), None) => found.push(Event::Recovered { node: node() }),
        _ => {}
    }
    check_changes(before, now, found);
    if let Some(fork) = now.fork.filter(|_| now.fork != before.fork) {
        found.push(Event::Fork { node: node(), fork });
    }
    if let Some(generation) = live(now).filter(|live| Some(*live) != self::live(before)) {
        found.push(Event::Live { node: node(), generation });
    }
    if let Some(drift) = now.drift.as_ref().filter(|_| before.drift.is_none()) {
        let (generation, paths) = (drift.generation, drift.paths);
        found.push(Event::ChangedLocally { node: node(), generation, paths });
    }
    match (before.is_drained(), now.is_drained()) {
        (false, true) => found.push(Event::Drained { node: node() }),
        (true, false) => found.push(Event::Undrained { node: node() }),
        _ => {}
    }
    match (before.is_pinned(), now.is_pinned()) {
        (false, true) => found.push(Event::Pinned { node: node() }),
        (true, false) => found.push(Event::Unpinned { node: node() }),
        _ => {}
    }
}

fn check_changes(before: &AgentView, now: &AgentView, found: &mut Vec<Event>) {
    let failure = |agent: &AgentView| {
        let has_failed = |outcome| !matches!(outcome, CheckOutcome::Running | CheckOutcome::Passed);
        let check = agent.check.clone().filter(|check| has_failed(check.outcome))?;
        Some((check.generation, check.returned_to, check.output))
    };
    if let Some((generation, returned_to, error)) = failure(now)
        && failure(before).is_none_or(|before| (before.0, before.1) != (generation, returned_to))
    {
        found.push(Event::CheckFailed { node: now.name.clone(), generation, returned_to, error });
    }
}

fn trouble(agent: &AgentView) -> Option<String> {
    agent.error.clone().or_else(|| agent.hook.as_ref()?.failure())
}

fn live(agent: &AgentView) -> Option<u64> {
    agent
        .generation
        .filter(|_| !agent.is_hook_due() && !agent.is_on_trial())
        .map(|generation| generation.get())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::Hold;
    use crate::fleet::rollout::{Kind, RolloutView};
    use syncd_shared::ed25519::SigningKey;
    use syncd_shared::{
        AgentState, CheckStatus, Generation, GenerationNumber, HookStatus, NodeStanding, RootEntry, RootHash,
        SignedGeneration, TreeId,
    };

    fn sealed(number: u64) -> SignedGeneration {
        let (tree_id, root) = (TreeId::from_bytes([1; 16]), RootEntry::empty());
        let number = GenerationNumber::new(number).unwrap();
        let (parent, label) = (None, "release".to_owned());
        Generation { tree_id, epoch: 1, number, trust: 1, root, parent, created_ms: 0, label }
            .sign(&SigningKey::from_bytes(&[1; 32]))
    }

    fn snapshot(agents: Vec<AgentView>) -> Snapshot {
        let address = ([127, 0, 0, 1], 1).into();
        Snapshot {
            tree: String::new(),
            grpc_address: address,
            http_address: None,
            origin: OriginView {
                state: State::Ready,
                reason: None,
                current: None,
                hold: None,
                returns: Arc::default(),
            },
            fleet: Arc::new(FleetView { agents }),
            publish: None,
            rollout: Arc::default(),
            purge: None,
            polled: Vec::new(),
        }
    }

    fn agent(name: &str, generation: u64) -> AgentView {
        AgentView {
            name: name.into(),
            connected: true,
            generation: GenerationNumber::new(generation),
            root: None,
            staged: None,
            waits_for_check: false,
            hook: None,
            check: None,
            has_check: false,
            standing: NodeStanding::default(),
            orders: Default::default(),
            assigned: None,
            refused: Vec::new(),
            state: AgentState::Live,
            enrolled_ms: 0,
            last_seen_ms: 0,
            error: None,
            needs_operator: false,
            serial: String::new(),
            not_after_ms: 0,
            progress: None,
            version: None,
            spare_misses: 0,
            drift: None,
            fork: None,
            root_key: None,
            notes: Vec::new(),
        }
    }

    fn names(events: &[Event]) -> Vec<String> {
        events
            .iter()
            .map(|event| event.to_string().split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    }

    #[test]
    fn a_generation_is_live_once_its_check_has_passed() {
        let with = |generation: u64, outcome| {
            let (root, output) = (RootHash::from_bytes([1; 32]), String::new());
            let check = CheckStatus { generation, root, outcome, returned_to: None, output };
            AgentView { has_check: true, check: Some(check), ..agent("web1", 2) }
        };
        let mut observer = Observer::new(&snapshot(vec![agent("web1", 1)]));
        assert!(observer.observe(&snapshot(vec![with(2, CheckOutcome::Running)])).is_empty());
        let found = observer.observe(&snapshot(vec![with(2, CheckOutcome::Passed)]));
        assert_eq!(found, [Event::Live { node: "web1".into(), generation: 2 }]);
    }

    #[test]
    fn a_node_joins_fails_gets_it_live_and_is_removed() {
        let mut observer = Observer::new(&snapshot(vec![agent("web1", 1)]));
        let new = AgentView { connected: false, ..agent("web2", 0) };
        let found = observer.observe(&snapshot(vec![agent("web1", 1), new.clone()]));
        assert_eq!(names(&found), ["joined web2"]);
        let failing = AgentView { error: Some("disk full".into()), ..agent("web1", 1) };
        let found = observer.observe(&snapshot(vec![failing.clone(), agent("web2", 2)]));
        assert_eq!(names(&found), ["failed web1 disk full", "connected web2", "live web2 generation 2"]);
        let other = AgentView { error: Some("disk still full".into()), ..failing };
        assert_eq!(names(&observer.observe(&snapshot(vec![other, agent("web2", 2)]))), [""; 0]);
        let lost = AgentView { connected: false, ..agent("web2", 2) };
        let found = observer.observe(&snapshot(vec![agent("web1", 2), lost]));
        assert_eq!(names(&found), ["recovered web1", "live web1 generation 2", "unreachable web2"]);
        assert_eq!(
            names(&observer.observe(&snapshot(vec![agent("web2", 2)]))),
            ["removed web1", "connected web2"]
        );
    }

    #[test]
    fn a_generation_is_live_once_its_hook_has_succeeded() {
        let mut observer = Observer::new(&snapshot(vec![agent("web1", 1)]));
        let due = AgentView { hook: Some(HookStatus::due(2, Some(1))), ..agent("web1", 2) };
        assert_eq!(observer.observe(&snapshot(vec![due])), []);
        let found = observer.observe(&snapshot(vec![agent("web1", 2)]));
        assert_eq!(names(&found), ["live web1 generation 2"]);
    }

    #[test]
    fn a_failed_check_and_orders_of_the_node_are_told_once() {
        let mut observer = Observer::new(&snapshot(vec![agent("web1", 1)]));
        let check = CheckStatus {
            generation: 2,
            root: RootHash::from_bytes([1; 32]),
            outcome: CheckOutcome::Failed,
            returned_to: Some(1),
            output: "500".into(),
        };
        let standing = NodeStanding { drained: true, pinned: None };
        let failed = AgentView { check: Some(check), standing, ..agent("web1", 1) };
        let found = observer.observe(&snapshot(vec![failed.clone()]));
        assert_eq!(names(&found), ["check failed web1 generation 2, returned to 1: 500", "drained web1"]);
        let later = AgentView { last_seen_ms: 7, ..failed };
        assert_eq!(observer.observe(&snapshot(vec![later])), []);
        assert_eq!(names(&observer.observe(&snapshot(vec![agent("web1", 1)]))), ["undrained web1"]);
    }

    #[test]
    fn a_fork_is_told_once() {
        let mut observer = Observer::new(&snapshot(vec![agent("web1", 5)]));
        let [known, other] = [1, 2].map(|byte| RootHash::from_bytes([byte; 32]));
        let fork = Some(syncd_shared::Fork { generation: 5, known, other });
        let forked = AgentView { fork, ..agent("web1", 5) };
        let told = "fork web1 generation 5 has two roots, 010101010101 here and 020202020202 there: two origins \
                    write this tree, or one was restored from an older copy";
        assert_eq!(names(&observer.observe(&snapshot(vec![forked.clone()]))), [told]);
        let later = AgentView { last_seen_ms: 7, ..forked };
        assert_eq!(observer.observe(&snapshot(vec![later])), []);
    }

    #[test]
    fn a_hold_lasts_while_the_tree_is_read_and_whatever_its_text() {
        let mut observer = Observer::new(&snapshot(vec![]));
        let mut at = |state, reason: &str, hold| {
            let origin = OriginView {
                state,
                reason: Some(reason.to_owned()),
                current: Some(sealed(3)),
                hold,
                returns: Arc::default(),
            };
            names(&observer.observe(&Snapshot { origin, ..snapshot(vec![]) }))
        };
        assert_eq!(
            at(State::Held, "300 files are gone", None),
            ["sealed generation 3 (release): 0 files, 0 B", "held 300 files are gone"]
        );
        for (state, reason) in [(State::Scanning, "reading"), (State::Held, "301 files are gone")] {
            assert_eq!(at(state, reason, None), [""; 0]);
        }
        let number = GenerationNumber::new(2).unwrap();
        let hold = Hold { target: number, generation: number, since_ms: 5, withdrawn: None };
        assert_eq!(
            at(State::Held, "x", Some(hold)),
            ["held held after rollback to 2: fix the tree, then commit"]
        );
        let withdrawn = Hold { since_ms: 6, withdrawn: Some(number), ..hold };
        assert_eq!(at(State::Held, "x", Some(withdrawn))[0], "withdrawn generation 2");
        assert_eq!(at(State::Ready, "", None), ["hold_ended the hold or the wait is over"]);
    }

    #[test]
    fn a_rollout_is_told_of_step_by_step() {
        let mut observer = Observer::new(&snapshot(vec![]));
        let mut at = |phase, step, until: &str, reason: Option<&str>| {
            let rollout = RolloutStatus {
                generation: 5,
                from: 4,
                policy: "careful".into(),
                kind: Kind::Commit,
                phase,
                paused: false,
                step,
                steps: 3,
                what: String::new(),
                since: String::new(),
                until: Some(until.into()),
                check: None,
                answer: String::new(),
                reason: reason.map(str::to_owned),
                missing: Vec::new(),
                nodes: Vec::new(),
            };
            let rollout = Arc::new(RolloutView { rollout: Some(rollout), ..RolloutView::default() });
            names(&observer.observe(&Snapshot { rollout, ..snapshot(vec![]) }))
        };
        assert_eq!(at(Phase::Staging, 1, "a", None), ["rollout generation 5 (careful) staging, step 1 of 3"]);
        assert_eq!(at(Phase::Staging, 1, "b", None), [""; 0]);
        assert_eq!(at(Phase::Staging, 2, "b", None), ["rollout generation 5 (careful) staging, step 2 of 3"]);
        assert_eq!(
            at(Phase::Failed, 2, "b", Some("web1 failed")),
            ["rollout generation 5 (careful) failed: web1 failed"]
        );
    }
}
