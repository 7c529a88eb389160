//! Who has a generation live: what `commit --wait` and `rollback --wait` go by. Pure: the caller gives what the fleet
//! looks like, and how long it has waited.

use std::collections::BTreeSet;
use std::time::Duration;

use syncd_shared::{GenerationNumber, RootHash, SignedGeneration};

use crate::dialogue::{NodeLine, NodeResult};
use crate::fleet::{AgentState, AgentView, FleetView};
use crate::status::state_name;

/// An agent that had failed before gets this long to show that it fails again.
const STALE_FAILURE: Duration = Duration::from_secs(3);

/// Agents on their way to one generation.
#[derive(Debug)]
pub struct Arrivals {
    number: GenerationNumber,
    root: RootHash,
    require_all: bool,
    /// Whose arrival is waited for.
    awaited: BTreeSet<String>,
    live: BTreeSet<String>,
    /// Those that had failed already when it was sealed, and were not heard of otherwise since.
    stale: BTreeSet<String>,
}

impl Arrivals {
    /// Of a generation that was just sealed, or is waited for again: `fleet` says who is connected.
    pub fn new(generation: &SignedGeneration, require_all: bool, fleet: &FleetView) -> Self {
        let names = |of: &dyn Fn(&AgentView) -> bool| {
            fleet.agents.iter().filter(|a| of(a)).map(|a| a.name.clone()).collect()
        };
        Self {
            number: generation.number(),
            root: generation.root_hash(),
            require_all,
            awaited: names(&|a| a.connected || require_all),
            live: BTreeSet::new(),
            stale: names(&has_failed),
        }
    }

    /// Takes in what the fleet looks like; `newest` is the newest generation of this origin. Returns who has arrived
    /// since the last call.
    pub fn update(&mut self, fleet: &FleetView, newest: GenerationNumber) -> Vec<String> {
        let enrolled: BTreeSet<&String> = fleet.agents.iter().map(|a| &a.name).collect();
        // Whom an operator revoked is not waited for any more.
        self.awaited.retain(|name| enrolled.contains(name));
        let mut arrived = Vec::new();
        for agent in &fleet.agents {
            if self.require_all {
                self.awaited.insert(agent.name.clone());
            }
            if !has_failed(agent) {
                self.stale.remove(&agent.name);
            }
            // Of an unreachable agent it is only known what it had.
            let was_reached = agent.connected || !self.require_all;
            if was_reached
                && self.awaited.contains(&agent.name)
                && self.is_there(agent, newest)
                && self.live.insert(agent.name.clone())
            {
                arrived.push(agent.name.clone());
            }
        }
        arrived
    }

    /// A number above the newest is of another history: this origin was restored from an older copy.
    fn is_there(&self, agent: &AgentView, newest: GenerationNumber) -> bool {
        agent.generation.is_some_and(|has| {
            (has == self.number && agent.root == Some(self.root)) || (has > self.number && has <= newest)
        })
    }

    /// Whether waiting longer changes nothing: everybody has arrived, or needs a person.
    pub fn is_decided(&self, fleet: &FleetView, waited: Duration) -> bool {
        let is_lost = |agent: &AgentView| {
            has_failed(agent) && (waited >= STALE_FAILURE || !self.stale.contains(&agent.name))
        };
        fleet
            .agents
            .iter()
            .filter(|a| self.awaited.contains(&a.name) && !self.live.contains(&a.name))
            .all(is_lost)
    }

    /// When a failure from before counts.
    pub fn looks_again_at(&self) -> Option<Duration> {
        (!self.stale.is_empty()).then_some(STALE_FAILURE)
    }

    /// The end: who has not arrived, and whether it is a success.
    pub fn close(&self, fleet: &FleetView, waited: Duration) -> (Vec<NodeLine>, bool) {
        let mut missing = Vec::new();
        let mut success = !self.live.is_empty();
        for agent in fleet.agents.iter().filter(|a| !self.live.contains(&a.name)) {
            let is_awaited = self.awaited.contains(&agent.name);
            if !is_awaited && agent.connected {
                // It came later.
                continue;
            }
            success &= !is_awaited;
            let result = if agent.connected { NodeResult::Failed } else { NodeResult::Unreachable };
            let error = agent.error.clone().or_else(|| {
                agent.connected.then(|| {
                    format!("not live after {:.1} s, state {}", waited.as_secs_f64(), state_name(agent.state))
                })
            });
            missing.push(NodeLine { name: agent.name.clone(), result, error });
        }
        (missing, success)
    }
}

fn has_failed(agent: &AgentView) -> bool {
    agent.state == AgentState::Failed && agent.needs_operator
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::SigningKey;
    use syncd_shared::{Generation, RootEntry, TreeId};

    const NOW: Duration = Duration::ZERO;

    fn number(n: u64) -> GenerationNumber {
        GenerationNumber::new(n).unwrap()
    }

    fn generation(n: u64) -> SignedGeneration {
        Generation {
            tree_id: TreeId::from_bytes([1; 16]),
            number: number(n),
            root: RootEntry::empty(),
            parent: None,
            created_ms: 0,
            label: String::new(),
        }
        .sign(&SigningKey::from_bytes(&[1; 32]))
    }

    /// `+web1=5`: connected, has generation 5; `-`: unreachable; `!` at the end: failed and needs an operator.
    fn fleet(agents: &str) -> FleetView {
        let agent = |text: &str| {
            let (connected, text) = (text.starts_with('+'), &text[1..]);
            let failed = text.ends_with('!');
            let (name, has) = text.trim_end_matches('!').split_once('=').unwrap();
            let generation = has.parse().ok().and_then(GenerationNumber::new);
            AgentView {
                name: name.into(),
                connected,
                generation,
                root: generation.map(|_| RootEntry::empty().hash()),
                state: if failed { AgentState::Failed } else { AgentState::Live },
                last_seen_ms: 1,
                error: failed.then(|| "no space left".into()),
                needs_operator: failed,
                serial: String::new(),
                not_after_ms: 0,
                progress: None,
                spare_misses: 0,
                notes: Vec::new(),
            }
        };
        FleetView { agents: agents.split_whitespace().map(agent).collect() }
    }

    /// Runs through views of the fleet; the names that arrived, whether it was decided at the end, and what it came to.
    fn wait(require_all: bool, views: &[&str]) -> (Vec<String>, bool, Vec<(String, NodeResult)>, bool) {
        let mut arrivals = Arrivals::new(&generation(5), require_all, &fleet(views[0]));
        let mut arrived = Vec::new();
        for view in views {
            arrived.extend(arrivals.update(&fleet(view), number(6)));
        }
        let last = fleet(views[views.len() - 1]);
        let (missing, success) = arrivals.close(&last, NOW);
        let missing = missing.into_iter().map(|line| (line.name, line.result)).collect();
        (arrived, arrivals.is_decided(&last, NOW), missing, success)
    }

    #[test]
    fn everybody_who_was_connected_is_waited_for_and_a_later_generation_will_do() {
        let (arrived, decided, _, success) = wait(false, &["+a=4 +b=4", "+a=5 +b=4"]);
        assert_eq!((arrived, decided, success), (vec!["a".to_owned()], false, false));
        let (arrived, decided, missing, success) =
            wait(false, &["+a=4 +b=4", "+a=5 +b=4", "+a=5 +b=6 +late=1"]);
        assert_eq!(arrived, ["a", "b"]);
        assert!(decided && success && missing.is_empty());
    }

    #[test]
    fn one_that_is_away_for_a_moment_is_waited_for() {
        let (_, decided, missing, success) = wait(false, &["+a=4 +b=5", "-a=4 +b=5"]);
        assert!(!decided && !success);
        assert_eq!(missing, [("a".to_owned(), NodeResult::Unreachable)]);
        let (_, decided, _, success) = wait(false, &["+a=4 +b=5", "-a=4 +b=5", "+a=5 +b=5"]);
        assert!(decided && success);
    }

    #[test]
    fn the_unreachable_are_listed_and_fail_it_only_where_all_are_required() {
        let (_, decided, missing, success) = wait(false, &["+a=5 -b=3"]);
        assert!(decided && success);
        assert_eq!(missing, [("b".to_owned(), NodeResult::Unreachable)]);
        let (_, decided, missing, success) = wait(true, &["+a=5 -b=5"]);
        assert!(!decided && !success && missing.len() == 1);
        let (_, decided, _, success) = wait(true, &["+a=5 -b=3", "+a=5 +b=5"]);
        assert!(decided && success);
    }

    #[test]
    fn nobody_connected_is_no_success() {
        for nobody in ["", "-a=5 -b=4"] {
            let (_, decided, _, success) = wait(false, &[nobody]);
            assert!(decided && !success);
        }
    }

    #[test]
    fn a_number_of_another_history_is_not_this_generation() {
        let (arrived, decided, ..) = wait(false, &["+a=9"]);
        assert!(arrived.is_empty() && !decided);
    }

    #[test]
    fn one_that_needs_a_person_ends_the_wait_but_an_old_failure_only_after_a_moment() {
        let (_, decided, missing, success) = wait(false, &["+a=4 +b=5", "+a=4! +b=5"]);
        assert!(decided && !success);
        assert_eq!(missing, [("a".to_owned(), NodeResult::Failed)]);
        let before = fleet("+a=4!");
        let mut arrivals = Arrivals::new(&generation(5), false, &before);
        arrivals.update(&before, number(5));
        assert!(!arrivals.is_decided(&before, NOW));
        assert!(arrivals.is_decided(&before, arrivals.looks_again_at().unwrap()));
        assert_eq!(arrivals.update(&fleet("+a=5"), number(5)), ["a"]);
    }

    #[test]
    fn one_that_is_revoked_is_not_waited_for() {
        let (_, decided, _, success) = wait(false, &["+a=4 +b=5", "+b=5"]);
        assert!(decided && success);
    }
}
