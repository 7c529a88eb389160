//! The public view of the fleet.

use std::collections::HashSet;
use std::fmt;

use syncd_shared::identity::RootFingerprint;
use syncd_shared::limits::REFUSED_GENERATIONS_MAX;
use syncd_shared::text::counted;
use syncd_shared::{
    AgentState, CheckOutcome, CheckStatus, Fork, GenerationNumber, HookStatus, NodeStanding, Progress,
    RootHash,
};

use super::rollout::participants::{Node, Target};
use super::roster::NodeOrders;

/// Roots held by agents seen within this time are retained, in milliseconds.
pub const RETAIN_MS: i64 = 30 * 24 * 60 * 60 * 1000;

/// Progress of an agent towards a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AgentProgress {
    pub generation: u64,
    pub done: Progress,
}

impl fmt::Display for AgentProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "generation {}: {}", self.generation, self.done)
    }
}

/// Files of a tree that differ from its manifest on an agent's node, as last reported.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AgentDrift {
    /// Generation of the tree.
    pub generation: u64,
    /// Number of affected paths.
    pub paths: u64,
    /// First path, on one line.
    pub first: String,
    /// Directory on the node that keeps the changed files, on one line.
    pub kept: Option<String>,
    /// Paths whose files could not be kept.
    pub lost: u64,
}

impl fmt::Display for AgentDrift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { generation, paths, first, kept, lost } = self;
        let changes = counted(*paths, "local change", "local changes");
        write!(f, "{changes} in generation {generation} (first {first})")?;
        if let Some(kept) = kept {
            write!(f, ", kept in {kept}")?;
        }
        match lost {
            0 => Ok(()),
            lost => write!(f, ", {lost} not kept"),
        }
    }
}

/// One enrolled agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentView {
    pub name: String,
    /// Whether its control stream is open.
    pub connected: bool,
    /// The linked generation, as last reported. It is live once `hook` has succeeded.
    pub generation: Option<GenerationNumber>,
    /// Root of that generation.
    pub root: Option<RootHash>,
    /// Complete tree that waits for its activation, as last reported.
    pub staged: Option<(GenerationNumber, RootHash)>,
    /// Whether the staged tree waits for the node's check on what is live, which has failed since.
    pub waits_for_check: bool,
    /// The on-activate hook, as last reported; `None` if none is set, or none was due since the agent
    /// started.
    pub hook: Option<HookStatus>,
    /// The newest result of its own check, as last reported; `None` if it has none.
    pub check: Option<CheckStatus>,
    /// Whether it has a check of its own.
    pub has_check: bool,
    /// Orders given on the node.
    pub standing: NodeStanding,
    /// Orders given at the origin.
    pub orders: NodeOrders,
    /// Generation that the connected node was assigned, and whether to activate it.
    pub assigned: Option<(GenerationNumber, bool)>,
    /// Roots that the node does not take.
    pub refused: Vec<RootHash>,
    pub state: AgentState,
    /// When it joined, in milliseconds since 1970.
    pub enrolled_ms: i64,
    /// Last sign of life, in milliseconds since 1970; 0 before the first.
    pub last_seen_ms: i64,
    /// The last error, until the agent recovers.
    pub error: Option<String>,
    /// Whether the agent reported that a person must act.
    pub needs_operator: bool,
    /// Serial number of its newest certificate, hexadecimal.
    pub serial: String,
    /// Expiry of that certificate, in milliseconds since 1970.
    pub not_after_ms: i64,
    pub progress: Option<AgentProgress>,
    /// Version of the program when it last connected; unknown before the first connection since this origin
    /// started.
    pub version: Option<String>,
    /// Activations without a ready spare, since the agent started.
    pub spare_misses: u64,
    /// Local changes, until a later tree on the node is free of them.
    pub drift: Option<AgentDrift>,
    /// Another root than this origin's under one of its numbers, as shown when the agent connected. Until it
    /// has a later generation.
    pub fork: Option<Fork>,
    /// The root key that it has pinned, as last reported.
    pub root_key: Option<RootFingerprint>,
    /// Remarks for an operator, for example about a cloned certificate.
    pub notes: Vec<String>,
}

impl AgentView {
    /// Whether balancers are told that the node is not ready, by an order of either side.
    pub fn is_drained(&self) -> bool {
        self.standing.drained || self.orders.drained
    }

    /// Whether the node stays where it is, by an order of either side.
    pub fn is_pinned(&self) -> bool {
        self.standing.pinned.is_some() || self.orders.pinned_since_ms.is_some()
    }

    /// Whether nobody waits for the node: it is drained or pinned.
    pub fn is_out_of_rollouts(&self) -> bool {
        self.is_drained() || self.is_pinned()
    }

    /// Whether the node's check failed on the generation that it names.
    pub(super) fn has_failed_check(&self) -> bool {
        let failed =
            |check: &CheckStatus| matches!(check.outcome, CheckOutcome::Failed | CheckOutcome::FailedOnBoth);
        self.check.as_ref().is_some_and(failed)
    }

    /// Whether the node's own check has passed on the linked generation, where it has one. After a return the
    /// linked one had passed before.
    pub fn has_passed_check(&self) -> bool {
        match &self.check {
            None => !self.has_check,
            Some(check) if check.outcome == CheckOutcome::Passed => Some(check.root) == self.root,
            Some(check) => {
                let returned_to = check.returned_to.and_then(GenerationNumber::new);
                check.outcome == CheckOutcome::Failed
                    && returned_to.is_some()
                    && returned_to == self.generation
            }
        }
    }

    /// Whether the node's own check has yet to end on the linked generation.
    pub fn is_on_trial(&self) -> bool {
        let is_of_linked = |check: &CheckStatus| GenerationNumber::new(check.generation) == self.generation;
        match &self.check {
            None => self.has_check,
            Some(check) => check.outcome == CheckOutcome::Running && is_of_linked(check),
        }
    }

    /// Takes the newest result of the node's check. A node that returned refuses the tree from then on.
    pub(super) fn note_check(&mut self, check: CheckStatus) {
        if check.returned_to.is_some() && !self.refused.contains(&check.root) {
            let excess = (self.refused.len() + 1).saturating_sub(REFUSED_GENERATIONS_MAX);
            self.refused.drain(..excess);
            self.refused.push(check.root);
        }
        self.waits_for_check = check.outcome == CheckOutcome::FailedBefore;
        self.check = Some(check);
    }

    /// The node as rollouts see it.
    pub(super) fn node(&self) -> Node<'_> {
        let target = |(number, root): (GenerationNumber, RootHash)| Target { number: number.get(), root };
        let check = self.check.as_ref().map(|check| {
            let of = Target { number: check.generation, root: check.root };
            (of, check.outcome, check.output.as_str())
        });
        let linked = self.generation.zip(self.root).map(target);
        // A node with a check that does not report it has not passed.
        let silent = linked.filter(|_| self.has_check).map(|of| (of, CheckOutcome::Running, ""));
        Node {
            name: &self.name,
            group: &self.orders.group,
            connected: self.connected,
            linked,
            is_live: !self.is_hook_due(),
            staged: self.staged.filter(|_| !self.waits_for_check).map(target),
            check: check.or(silent),
            refused: &self.refused,
            drained: self.is_drained(),
            pinned: self.is_pinned(),
            error: self.error.as_deref(),
        }
    }

    /// Whether the on-activate hook has yet to succeed for the linked generation.
    pub fn is_hook_due(&self) -> bool {
        self.hook.as_ref().is_some_and(|hook| !hook.is_live())
    }
}

/// All enrolled agents, sorted by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FleetView {
    /// Includes agents that have not connected since this origin started.
    pub agents: Vec<AgentView>,
}

impl FleetView {
    /// Roots held by agents that were seen within [`RETAIN_MS`] of `now_ms`.
    pub fn retained_roots(&self, now_ms: i64) -> HashSet<RootHash> {
        let recent = |agent: &&AgentView| agent.connected || now_ms - agent.last_seen_ms <= RETAIN_MS;
        self.agents.iter().filter(recent).filter_map(|agent| agent.root).collect()
    }

    /// Names of the agents that refuse a tree, because their check failed there.
    pub fn refusing(&self, root: &RootHash) -> Vec<&str> {
        let refusing = self.agents.iter().filter(|agent| agent.refused.contains(root));
        refusing.map(|agent| agent.name.as_str()).collect()
    }

    /// Connected agents whose on-activate hook has failed and not succeeded since, with the failure.
    pub fn failing_hooks(&self) -> impl Iterator<Item = (&str, String)> {
        let connected = self.agents.iter().filter(|agent| agent.connected);
        connected.filter_map(|agent| Some((agent.name.as_str(), agent.hook.as_ref()?.failure()?)))
    }
}
