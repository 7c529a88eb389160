//! Decides when `commit --wait` and `rollback --wait` end: tracks which agents have a generation live. Pure:
//! the caller supplies the state of the fleet and the time waited.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use syncd_shared::{
    CheckOutcome, CheckStatus, GenerationNumber, HookOutcome, HookStatus, RootHash, SignedGeneration,
};

use super::{AgentState, AgentView, FleetView};
use crate::commit::Return;

/// Time in which an agent that had failed before must fail again for the failure to count.
const STALE_FAILURE: Duration = Duration::from_secs(3);
/// Agents that connect within this time count as connected from the start. If none is connected, waiting
/// lasts at least as long. All agents reconnect within it after a restart of the origin.
const FIRST_SECONDS: Duration = Duration::from_secs(5);
/// Reason of a node whose check failed on this tree under an earlier number.
const REFUSES: &str = "it refuses this tree, because its check failed there before: `syncd-agent accept GENERATION` on \
                       the node lifts that, `syncd-agent refused` lists the generations";
/// Maximum number of nodes named in one remark.
const NAMES_MAX: usize = 10;

/// Agents awaited for one generation.
#[derive(Debug)]
pub struct LiveWait {
    number: GenerationNumber,
    root: RootHash,
    require_all: bool,
    /// Names of the awaited agents.
    awaited: BTreeSet<String>,
    live: BTreeSet<String>,
    /// Agents that had already failed at the start, without other news since.
    stale: BTreeSet<String>,
    /// The rollback or withdrawal that replaced the generation.
    replaced: Option<Return>,
}

/// Result of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeResult {
    /// The generation, or a later one, is live.
    Live,
    /// The node could not build the generation or switch to it.
    Failed,
    /// The on-activate hook failed after the switch, or its earlier failure prevents the switch.
    HookFailed,
    /// The node's own check failed on the generation, and the node returned to an earlier one.
    CheckFailed,
    /// The time ran out first.
    Late,
    /// A rollback or a withdrawal replaced the generation before it was live on the node.
    Replaced,
    /// The node is not connected.
    Unreachable,
    /// The node is drained, and nobody waits for it.
    Drained,
    /// The node is pinned, and nobody waits for it.
    Pinned,
}

impl fmt::Display for NodeResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Live => "live",
            Self::Failed => "failed",
            Self::HookFailed => "hook failed",
            Self::CheckFailed => "check failed",
            Self::Late => "late",
            Self::Replaced => "replaced",
            Self::Unreachable => "unreachable",
            Self::Drained => "drained",
            Self::Pinned => "pinned",
        })
    }
}

/// A node that does not have the generation live, as far as was waited for it.
#[derive(Debug)]
pub struct MissingNode {
    pub name: String,
    pub result: NodeResult,
    /// Reason that it is not live, or not waited for.
    pub error: Option<String>,
}

/// Result of waiting.
#[derive(Debug)]
pub struct WaitVerdict {
    pub missing: Vec<MissingNode>,
    /// Whether every awaited agent has the generation live.
    pub success: bool,
    /// Remark for a person.
    pub remark: Option<String>,
}

impl LiveWait {
    /// Starts waiting for a generation. `fleet` determines the agents to wait for.
    pub fn new(generation: &SignedGeneration, require_all: bool, fleet: &FleetView) -> Self {
        let mut wait = Self {
            number: generation.number(),
            root: generation.root_hash(),
            require_all,
            awaited: BTreeSet::new(),
            live: BTreeSet::new(),
            stale: BTreeSet::new(),
            replaced: None,
        };
        for agent in &fleet.agents {
            if (agent.connected || require_all) && !agent.is_out_of_rollouts() {
                wait.awaited.insert(agent.name.clone());
            }
            if wait.has_failed(agent) {
                wait.stale.insert(agent.name.clone());
            }
        }
        wait
    }

    /// Takes the returns known at the origin. Call it before [`Self::update`], with the state that has
    /// `newest`: later generations do not count once the generation is replaced.
    pub fn note_returns(&mut self, returns: &[Return]) {
        self.replaced = Return::replacing(returns, self.number);
    }

    /// Updates the state after `waited`. `newest` is the newest generation of this origin. Returns agents
    /// that arrived since the last call.
    pub fn update(&mut self, fleet: &FleetView, newest: GenerationNumber, waited: Duration) -> Vec<String> {
        let enrolled: BTreeSet<&String> = fleet.agents.iter().map(|a| &a.name).collect();
        // Revoked agents are no longer awaited.
        self.awaited.retain(|name| enrolled.contains(name));
        let mut arrived = Vec::new();
        for agent in &fleet.agents {
            if agent.is_out_of_rollouts() {
                self.awaited.remove(&agent.name);
            } else if self.require_all || (agent.connected && waited < FIRST_SECONDS) {
                self.awaited.insert(agent.name.clone());
            }
            if !self.has_failed(agent) {
                self.stale.remove(&agent.name);
            }
            // The state of an unreachable agent is only its last known one.
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

    /// Whether an agent has the generation live: linked, its check passed, its hook succeeded. While the hook
    /// has not succeeded, the generation of its last success counts. A later generation suffices unless this
    /// one was replaced, but a number above the newest belongs to another history: this origin was restored
    /// from an older copy.
    fn is_there(&self, agent: &AgentView, newest: GenerationNumber) -> bool {
        let of_this = agent.check.as_ref().filter(|check| check.generation == self.number.get());
        if of_this.is_some_and(|check| check.outcome != CheckOutcome::Passed) {
            return false;
        }
        let is_later = |has: u64| self.replaced.is_none() && has > self.number.get() && has <= newest.get();
        match agent.hook.as_ref().filter(|hook| !hook.is_live()) {
            None => {
                agent.has_passed_check()
                    && agent.generation.is_some_and(|has| {
                        (has == self.number && agent.root == Some(self.root)) || is_later(has.get())
                    })
            }
            Some(hook) => hook.succeeded.is_some_and(|n| n == self.number.get() || is_later(n)),
        }
    }

    /// Whether an agent needs help to arrive: it needs a person, or its hook failed for this or a later
    /// generation, or the hook prevents the activation of this one.
    fn has_failed(&self, agent: &AgentView) -> bool {
        let hook = agent.hook.as_ref().filter(|hook| hook.outcome == HookOutcome::Failed);
        let number = self.number.get();
        if self.refuses(agent) || self.failed_check(agent).is_some() {
            return true;
        }
        let of_this = |hook: &HookStatus| hook.generation.max(hook.waits.unwrap_or(0)) >= number;
        agent.state == AgentState::Failed && agent.needs_operator || hook.is_some_and(of_this)
    }

    /// Whether an agent does not take this tree, until a person lifts that on the node.
    fn refuses(&self, agent: &AgentView) -> bool {
        agent.refused.contains(&self.root)
    }

    /// Failure of an agent's own check on this generation.
    fn failed_check<'a>(&self, agent: &'a AgentView) -> Option<&'a CheckStatus> {
        let check = agent.check.as_ref().filter(|check| check.generation == self.number.get())?;
        matches!(check.outcome, CheckOutcome::Failed | CheckOutcome::FailedOnBoth).then_some(check)
    }

    /// Whether a rollback or a withdrawal replaced the generation.
    pub fn is_replaced(&self) -> bool {
        self.replaced.is_some()
    }

    /// Number of the awaited generation.
    pub fn number(&self) -> u64 {
        self.number.get()
    }

    /// Whether a failed hook keeps an awaited agent from arriving.
    pub fn awaits_a_hook(&self, fleet: &FleetView) -> bool {
        let has_failed =
            |agent: &AgentView| agent.hook.as_ref().is_some_and(|hook| hook.outcome == HookOutcome::Failed);
        self.absent(fleet).any(has_failed)
    }

    /// Whether further waiting is pointless, because every agent has arrived or failed.
    pub fn is_decided(&self, fleet: &FleetView, waited: Duration) -> bool {
        if self.replaced.is_some() {
            return true;
        }
        if self.awaited.is_empty() && !fleet.agents.is_empty() && waited < FIRST_SECONDS {
            return false;
        }
        let is_lost = |agent: &AgentView| {
            self.refuses(agent)
                || self.has_failed(agent) && (waited >= STALE_FAILURE || !self.stale.contains(&agent.name))
        };
        self.absent(fleet).all(is_lost)
    }

    /// Next time at which the decision may change without news.
    pub fn recheck_after(&self, waited: Duration) -> Option<Duration> {
        [STALE_FAILURE, FIRST_SECONDS].into_iter().find(|at| *at > waited)
    }

    /// Awaited agents that have not arrived.
    fn absent<'a>(&'a self, fleet: &'a FleetView) -> impl Iterator<Item = &'a AgentView> {
        fleet.agents.iter().filter(|a| self.awaited.contains(&a.name) && !self.live.contains(&a.name))
    }

    /// Remark for a watching person about agents still awaited.
    pub fn remark(&self, fleet: &FleetView) -> Option<String> {
        let absent: Vec<_> = self.absent(fleet).collect();
        if absent.is_empty() {
            let nobody = || out_of_service(fleet).unwrap_or_else(|| "no agent is connected yet".to_owned());
            return self.awaited.is_empty().then(nobody);
        }
        let shown = absent.iter().take(NAMES_MAX).map(|agent| {
            let does = if agent.connected { agent.state.to_string() } else { "unreachable".to_owned() };
            format!("{} ({does}, {})", agent.name, still_at(agent))
        });
        let shown: Vec<_> = shown.collect();
        let more = if absent.len() > NAMES_MAX { ", ..." } else { "" };
        Some(format!("waiting for {} of {}: {}{more}", absent.len(), self.awaited.len(), shown.join(", ")))
    }

    /// Ends waiting: reports the missing agents and whether it succeeded.
    pub fn verdict(&self, fleet: &FleetView, waited: Duration) -> WaitVerdict {
        let mut missing = Vec::new();
        let mut success = !self.live.is_empty();
        let mut down = Vec::new();
        for agent in fleet.agents.iter().filter(|a| !self.live.contains(&a.name)) {
            if agent.is_out_of_rollouts() {
                missing.push(left_out(agent));
                continue;
            }
            let is_awaited = self.awaited.contains(&agent.name);
            if !is_awaited && agent.connected {
                // Connected after waiting began.
                continue;
            }
            success &= !is_awaited;
            if !is_awaited {
                down.push(agent.name.as_str());
            }
            let (result, error) = self.outcome(agent, waited);
            missing.push(MissingNode { name: agent.name.clone(), result, error });
        }
        let replaced = self
            .replaced
            .filter(|_| !success)
            .map(|back| format!("generation {} is not live on every node: {}", self.number, back.describe()));
        let remark = match (fleet.agents.is_empty(), self.live.is_empty(), down.len()) {
            (true, ..) => Some("no agent is enrolled: `syncd-origin token` makes a join token".to_owned()),
            (false, true, _) if self.awaited.is_empty() && out_of_service(fleet).is_some() => {
                out_of_service(fleet)
            }
            (false, true, 1..) if self.awaited.is_empty() => {
                Some(format!("no agent is connected: nobody had generation {} live", self.number))
            }
            (false, false, 1..) if success => Some(format!(
                "{} not waited for, since {} down: --require-all makes that a failure",
                names(&down),
                if down.len() == 1 { "it is" } else { "they are" }
            )),
            _ => None,
        };
        WaitVerdict { missing, success, remark: replaced.or(remark) }
    }

    /// Reason that an agent has not arrived.
    fn outcome(&self, agent: &AgentView, waited: Duration) -> (NodeResult, Option<String>) {
        if !agent.connected {
            let known = agent.generation.map(|number| format!("generation {number} when it was last heard"));
            return (NodeResult::Unreachable, agent.error.clone().or(known));
        }
        if let Some(check) = self.failed_check(agent) {
            return (NodeResult::CheckFailed, check.line());
        }
        if self.refuses(agent) {
            return (NodeResult::CheckFailed, Some(REFUSES.to_owned()));
        }
        if let Some(back) = self.replaced {
            return (NodeResult::Replaced, Some(back.describe()));
        }
        if let Some(failure) =
            agent.hook.as_ref().filter(|_| self.is_held_by_hook(agent)).and_then(HookStatus::failure)
        {
            return (NodeResult::HookFailed, Some(failure));
        }
        match &agent.error {
            Some(error) => (NodeResult::Failed, Some(error.clone())),
            None => {
                let (still, waited) = (still_at(agent), seconds(waited));
                let hook = agent.hook.as_ref().filter(|hook| hook.outcome == HookOutcome::Running);
                let hook = hook.map(|hook| format!(", the hook of generation {} runs", hook.generation));
                let check = || agent.is_on_trial().then(|| ", its check has not passed yet".to_owned());
                let why = hook.or_else(check).unwrap_or_default();
                (NodeResult::Late, Some(format!("still at {still} after {waited}{why}")))
            }
        }
    }

    fn is_held_by_hook(&self, agent: &AgentView) -> bool {
        agent
            .hook
            .as_ref()
            .is_some_and(|hook| hook.generation.max(hook.waits.unwrap_or(0)) >= self.number.get())
    }
}

/// A node that is drained or pinned, with the generation that it has.
fn left_out(agent: &AgentView) -> MissingNode {
    let result = if agent.is_pinned() { NodeResult::Pinned } else { NodeResult::Drained };
    let away = if agent.connected { "" } else { " when it was last heard" };
    let error = Some(format!("not waited for, at {}{away}", still_at(agent)));
    MissingNode { name: agent.name.clone(), result, error }
}

/// Remark if every connected node is drained or pinned.
fn out_of_service(fleet: &FleetView) -> Option<String> {
    let mut connected = fleet.agents.iter().filter(|agent| agent.connected).peekable();
    connected.peek()?;
    let what = match () {
        () if fleet.agents.iter().filter(|agent| agent.connected).all(AgentView::is_drained) => "drained",
        () if connected.all(AgentView::is_out_of_rollouts) => "drained or pinned",
        () => return None,
    };
    Some(format!("no node is in service: every connected one is {what}, and nobody waits for those"))
}

/// The generation that a node is known to serve: while its hook is due, that of the hook's last success.
fn still_at(agent: &AgentView) -> String {
    let linked = agent.generation.map(GenerationNumber::get);
    let serves = match agent.hook.as_ref().filter(|hook| !hook.is_live()) {
        Some(hook) => hook.succeeded,
        None => linked,
    };
    serves.map_or_else(|| "no generation".to_owned(), |number| format!("generation {number}"))
}

/// Formats as `6 s` or `0.3 s`.
pub fn seconds(time: Duration) -> String {
    let text = format!("{:.1}", time.as_secs_f64());
    format!("{} s", text.strip_suffix(".0").unwrap_or(&text))
}

/// Formats as `web1, web2 and 3 more`.
pub fn names(all: &[&str]) -> String {
    let shown = all.iter().take(NAMES_MAX).copied().collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(NAMES_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use syncd_shared::ed25519::SigningKey;
    use syncd_shared::{Generation, RootEntry, TreeId};

    const NOW: Duration = Duration::ZERO;
    /// Agents that connect from here on are not awaited.
    const LATER: Duration = FIRST_SECONDS;

    fn number(n: u64) -> GenerationNumber {
        GenerationNumber::new(n).unwrap()
    }

    fn generation(n: u64) -> SignedGeneration {
        Generation {
            tree_id: TreeId::from_bytes([1; 16]),
            epoch: 1,
            trust: 1,
            number: number(n),
            root: RootEntry::empty(),
            parent: None,
            created_ms: 0,
            label: String::new(),
        }
        .sign(&SigningKey::from_bytes(&[1; 32]))
    }

    /// `+web1=5`: connected, has generation 5; `-`: unreachable; trailing `!`: failed and needs an operator.
    /// A hook that last succeeded for generation 4 is due (`?`), runs (`~`), failed (`#`), or failed and
    /// delays generation 5 (`#w`).
    fn fleet(agents: &str) -> FleetView {
        let agent = |text: &str| {
            let (connected, text) = (text.starts_with('+'), &text[1..]);
            let failed = text.ends_with('!');
            let at = text.find(['!', '?', '~', '#']).unwrap_or(text.len());
            let (text, mark) = text.split_at(at);
            let (name, has) = text.split_once('=').unwrap();
            let outcome = match mark.chars().next() {
                Some('?') => Some(HookOutcome::Due),
                Some('~') => Some(HookOutcome::Running),
                Some('#') => Some(HookOutcome::Failed),
                _ => None,
            };
            let hook = outcome.map(|outcome| HookStatus {
                outcome,
                output: if outcome == HookOutcome::Failed { "exit status: 1".into() } else { String::new() },
                waits: mark.ends_with('w').then_some(5),
                ..HookStatus::due(has.parse().unwrap(), Some(4))
            });
            let generation = has.parse().ok().and_then(GenerationNumber::new);
            AgentView {
                name: name.into(),
                connected,
                generation,
                root: generation.map(|_| RootEntry::empty().hash()),
                staged: None,
                waits_for_check: false,
                hook,
                check: None,
                has_check: false,
                standing: syncd_shared::NodeStanding::default(),
                orders: Default::default(),
                assigned: None,
                refused: Vec::new(),
                state: if failed { AgentState::Failed } else { AgentState::Live },
                enrolled_ms: 1,
                last_seen_ms: 1,
                error: failed.then(|| "no space left".into()),
                needs_operator: failed,
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
        };
        FleetView { agents: agents.split_whitespace().map(agent).collect() }
    }

    /// Applies views of the fleet in order. Returns arrived names, whether it was decided, and the outcome.
    fn wait(require_all: bool, views: &[&str]) -> (Vec<String>, bool, Vec<(String, NodeResult)>, bool) {
        let mut wait = LiveWait::new(&generation(5), require_all, &fleet(views[0]));
        let mut arrived = Vec::new();
        for view in views {
            arrived.extend(wait.update(&fleet(view), number(6), LATER));
        }
        let last = fleet(views[views.len() - 1]);
        let WaitVerdict { missing, success, .. } = wait.verdict(&last, LATER);
        let missing = missing.into_iter().map(|line| (line.name, line.result)).collect();
        (arrived, wait.is_decided(&last, LATER), missing, success)
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
        let mut wait = LiveWait::new(&generation(5), false, &before);
        wait.update(&before, number(5), NOW);
        assert!(!wait.is_decided(&before, NOW));
        assert!(wait.is_decided(&before, wait.recheck_after(NOW).unwrap()));
        assert_eq!(wait.update(&fleet("+a=5"), number(5), NOW), ["a"]);
    }

    #[test]
    fn one_that_is_revoked_is_not_waited_for() {
        let (_, decided, _, success) = wait(false, &["+a=4 +b=5", "+b=5"]);
        assert!(decided && success);
    }

    /// One connected node with generation 5 linked, and a report of its check.
    fn checked(
        generation: u64,
        root: RootHash,
        outcome: CheckOutcome,
        returned_to: Option<u64>,
    ) -> FleetView {
        let mut fleet = fleet("+a=5");
        fleet.agents[0].has_check = true;
        fleet.agents[0].check =
            Some(CheckStatus { generation, root, outcome, returned_to, output: String::new() });
        fleet
    }

    #[test]
    fn a_node_with_a_check_is_live_once_the_check_has_passed_there() {
        let (root, earlier) = (RootEntry::empty().hash(), RootHash::from_bytes([9; 32]));
        let mut silent = fleet("+a=5");
        silent.agents[0].has_check = true;
        let unfinished = [
            silent,
            checked(4, earlier, CheckOutcome::Passed, None),
            checked(5, root, CheckOutcome::Running, None),
        ];
        for (case, fleet) in unfinished.iter().enumerate() {
            let mut wait = LiveWait::new(&generation(5), false, fleet);
            assert!(wait.update(fleet, number(6), NOW).is_empty(), "{case}");
            assert!(!wait.is_decided(fleet, LATER), "{case}");
        }
        let passed = checked(5, root, CheckOutcome::Passed, None);
        let back = checked(6, earlier, CheckOutcome::Failed, Some(5));
        for fleet in [passed, back] {
            assert_eq!(LiveWait::new(&generation(5), false, &fleet).update(&fleet, number(6), NOW), ["a"]);
        }
    }

    #[test]
    fn a_fleet_that_is_drained_is_not_called_disconnected() {
        let mut drained = fleet("+a=4 +b=4 -c=4");
        drained.agents.iter_mut().for_each(|agent| agent.orders.drained = true);
        let wait = LiveWait::new(&generation(5), false, &drained);
        let remark = "no node is in service: every connected one is drained, and nobody waits for those";
        assert_eq!(wait.remark(&drained).as_deref(), Some(remark));
        let verdict = wait.verdict(&drained, LATER);
        assert_eq!((verdict.success, verdict.remark.as_deref()), (false, Some(remark)));
    }

    #[test]
    fn drained_and_pinned_nodes_are_named_and_no_failure() {
        let mut some = fleet("+a=5 +b=5 +c=4 -d=3 +e=5");
        some.agents[1].orders.drained = true;
        some.agents[2].orders.pinned_since_ms = Some(1);
        some.agents[3].standing.drained = true;
        let mut wait = LiveWait::new(&generation(5), true, &some);
        assert_eq!(wait.update(&some, number(5), NOW), ["a", "e"]);
        // Drained after it was live.
        some.agents[4].orders.drained = true;
        assert!(wait.update(&some, number(5), NOW).is_empty() && wait.is_decided(&some, NOW));
        let WaitVerdict { missing, success, remark } = wait.verdict(&some, LATER);
        assert_eq!((success, remark), (true, None));
        let lines: Vec<_> = missing
            .iter()
            .map(|node| (node.name.as_str(), node.result, node.error.as_deref().unwrap()))
            .collect();
        assert_eq!(
            lines,
            [
                ("b", NodeResult::Drained, "not waited for, at generation 5"),
                ("c", NodeResult::Pinned, "not waited for, at generation 4"),
                ("d", NodeResult::Drained, "not waited for, at generation 3 when it was last heard"),
            ]
        );
    }

    #[test]
    fn a_node_that_refuses_the_tree_ends_the_wait_at_once_with_the_next_step() {
        let mut refusing = fleet("+a=4");
        refusing.agents[0].refused = vec![RootEntry::empty().hash()];
        let mut wait = LiveWait::new(&generation(5), false, &refusing);
        wait.update(&refusing, number(5), NOW);
        assert!(wait.is_decided(&refusing, NOW));
        let verdict = wait.verdict(&refusing, NOW);
        assert_eq!((verdict.success, verdict.missing[0].result), (false, NodeResult::CheckFailed));
        assert!(verdict.missing[0].error.as_ref().unwrap().contains("`syncd-agent accept GENERATION`"));
    }

    #[test]
    fn a_generation_that_was_replaced_is_live_only_where_it_was() {
        let back = |target, generation| Return {
            target: number(target),
            generation: number(generation),
            withdrew: false,
        };
        let fleet = fleet("+a=5 +b=6 +c=4");
        let mut wait = LiveWait::new(&generation(5), false, &fleet);
        wait.note_returns(&[back(4, 6)]);
        assert_eq!(wait.update(&fleet, number(6), NOW), ["a"]);
        assert!(wait.is_decided(&fleet, NOW), "nothing is left to wait for");
        let WaitVerdict { missing, success, remark } = wait.verdict(&fleet, NOW);
        assert!(!success);
        let results: Vec<_> = missing.iter().map(|node| (node.name.as_str(), node.result)).collect();
        assert_eq!(results, [("b", NodeResult::Replaced), ("c", NodeResult::Replaced)]);
        let replaced = "generation 6 replaced it by a rollback, with the tree of 4";
        assert_eq!(missing[0].error.as_deref(), Some(replaced));
        assert!(remark.unwrap().ends_with(replaced));
        // A rollback to a later one has gone forward again.
        let mut wait = LiveWait::new(&generation(5), false, &fleet);
        wait.note_returns(&[back(5, 6)]);
        assert_eq!(wait.update(&fleet, number(6), NOW), ["a", "b"]);
    }

    #[test]
    fn linked_is_not_live_before_the_hook_has_succeeded() {
        for unfinished in ["+a=4 +b=5", "+a=5? +b=5", "+a=5~ +b=5", "+a=6~ +b=5"] {
            let (arrived, decided, ..) = wait(false, &["+a=4 +b=4", unfinished]);
            assert_eq!((arrived, decided), (vec!["b".to_owned()], false), "{unfinished}");
        }
        let (arrived, decided, _, success) = wait(false, &["+a=4", "+a=5~", "+a=5"]);
        assert!(arrived == ["a"] && decided && success);
    }

    #[test]
    fn the_first_failure_of_a_hook_for_this_generation_ends_the_wait() {
        let views: [&[&str]; 3] =
            [&["+a=4 +b=5", "+a=5# +b=5"], &["+a=4 +b=5", "+a=6# +b=5"], &["+a=3# +b=5", "+a=4#w +b=5"]];
        for views in views {
            let (_, decided, missing, success) = wait(false, views);
            assert!(decided && !success, "{views:?}");
            assert_eq!(missing, [("a".to_owned(), NodeResult::HookFailed)], "{views:?}");
        }
        // It failed for the one before: this one may mend it.
        assert!(!wait(false, &["+a=4# +b=5"]).1);
        // An old failure counts only after a moment; one that comes after another run counts at once.
        let before = fleet("+a=5#");
        let mut wait = LiveWait::new(&generation(5), false, &before);
        wait.update(&before, number(5), NOW);
        assert!(!wait.is_decided(&before, NOW) && wait.is_decided(&before, STALE_FAILURE));
        wait.update(&fleet("+a=5~"), number(5), NOW);
        assert!(wait.is_decided(&before, NOW));
        let verdict = wait.verdict(&before, NOW);
        assert_eq!(verdict.missing[0].error.as_deref(), Some("exit status: 1"));
    }

    #[test]
    fn one_that_connects_in_the_first_seconds_counts_and_somebody_is_waited_for_as_long() {
        let mut wait = LiveWait::new(&generation(5), false, &fleet("-a=4 +b=5"));
        wait.update(&fleet("-a=4 +b=5"), number(5), NOW);
        wait.update(&fleet("+a=4 +b=5"), number(5), NOW);
        assert!(!wait.is_decided(&fleet("+a=4 +b=5"), NOW));
        assert_eq!(wait.update(&fleet("+a=5 +b=5"), number(5), LATER), ["a"]);
        let nobody = fleet("-a=4");
        let mut wait = LiveWait::new(&generation(5), false, &nobody);
        wait.update(&nobody, number(5), NOW);
        assert!(!wait.is_decided(&nobody, NOW), "after a restart of the origin all come back in a moment");
        assert_eq!(wait.recheck_after(STALE_FAILURE), Some(FIRST_SECONDS));
        assert!(wait.is_decided(&nobody, FIRST_SECONDS));
        assert!(wait.verdict(&nobody, LATER).remark.unwrap().starts_with("no agent is connected"));
        assert!(LiveWait::new(&generation(5), false, &fleet("")).is_decided(&fleet(""), NOW));
    }

    #[test]
    fn a_person_reads_what_a_late_node_serves_and_who_was_not_waited_for() {
        let late = fleet("+a=4 +b=5 +c=5~ -d=3");
        let mut wait = LiveWait::new(&generation(5), false, &fleet("+a=4 +b=4 +c=4 -d=3"));
        wait.update(&late, number(5), LATER);
        let remark = wait.remark(&late).unwrap();
        assert_eq!(remark, "waiting for 2 of 3: a (live, generation 4), c (live, generation 4)");
        let lines = wait.verdict(&late, Duration::from_secs(6)).missing;
        let errors: Vec<_> = lines.iter().map(|line| (line.result, line.error.as_deref().unwrap())).collect();
        assert_eq!(
            errors,
            [
                (NodeResult::Late, "still at generation 4 after 6 s"),
                (NodeResult::Late, "still at generation 4 after 6 s, the hook of generation 5 runs"),
                (NodeResult::Unreachable, "generation 3 when it was last heard"),
            ]
        );
        let mut wait = LiveWait::new(&generation(5), false, &fleet("+b=4 -d=3"));
        wait.update(&fleet("+b=5 -d=3"), number(5), LATER);
        let verdict = wait.verdict(&fleet("+b=5 -d=3"), LATER);
        assert!(verdict.success);
        let remark = verdict.remark.unwrap();
        assert_eq!(remark, "d not waited for, since it is down: --require-all makes that a failure");
    }
}
