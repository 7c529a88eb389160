//! A rollout as `status` and `rollout status` show it.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use syncd_shared::text::rfc3339;
use syncd_shared::{RootHash, SignedGeneration};

use super::machine::{Asked, Kind, Phase, Rollout};
use super::participants::Node;

/// State of publication to the fleet, for the committer and for status.
#[derive(Debug, Clone, Default)]
pub struct RolloutView {
    /// Number of the newest generation that the fleet was given.
    pub newest: Option<u64>,
    /// The newest generation whose rollout has ended well.
    pub released: Option<Arc<SignedGeneration>>,
    /// The newest rollout that needed coordination, running or ended.
    pub rollout: Option<RolloutStatus>,
    /// A generation that the origin must withdraw.
    pub withdrawal: Option<Withdrawal>,
    /// Trees that nodes may still ask for.
    pub retained: Vec<RootHash>,
}

/// Order to publish the base of a failed rollout again.
#[derive(Debug, Clone)]
pub struct Withdrawal {
    /// The failed generation.
    pub number: u64,
    pub base: Arc<SignedGeneration>,
    /// One line.
    pub reason: String,
}

impl RolloutView {
    /// The rollout that is running.
    pub fn running(&self) -> Option<&RolloutStatus> {
        self.rollout.as_ref().filter(|rollout| rollout.phase.is_running())
    }

    /// The rollout of a generation.
    pub fn of(&self, generation: u64) -> Option<&RolloutStatus> {
        self.rollout.as_ref().filter(|rollout| rollout.generation == generation)
    }
}

/// The `rollout` object in JSON. Scripts depend on the field names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutStatus {
    pub generation: u64,
    /// Generation that nodes have until their step flips.
    pub from: u64,
    /// Name of the policy.
    pub policy: String,
    pub kind: Kind,
    pub phase: Phase,
    pub paused: bool,
    /// The current step, from 1.
    pub step: usize,
    pub steps: usize,
    /// Description of the current step.
    pub what: String,
    /// Start of the phase, RFC 3339.
    pub since: String,
    /// End of the phase at the latest, RFC 3339; `None` if it is paused or ended.
    pub until: Option<String>,
    /// Result of the check at the origin, if the policy has one.
    pub check: Option<Asked>,
    /// Last lines of that check.
    pub answer: String,
    /// Why it failed, or was released early.
    pub reason: Option<String>,
    /// Participants without the generation at the end, with reasons.
    pub missing: Vec<String>,
    pub nodes: Vec<NodeProgress>,
}

/// A participant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeProgress {
    pub name: String,
    /// From 1.
    pub step: usize,
    /// Whether the node counts: it is neither drained nor pinned.
    pub counted: bool,
    pub state: NodePhase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodePhase {
    /// It has not staged the generation yet.
    Waiting,
    Staged,
    Live,
    /// Its check failed on the generation.
    Failed,
    Unreachable,
}

impl NodePhase {
    pub const ALL: [Self; 5] = [Self::Waiting, Self::Staged, Self::Live, Self::Failed, Self::Unreachable];

    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Staged => "staged",
            Self::Live => "live",
            Self::Failed => "failed",
            Self::Unreachable => "unreachable",
        }
    }

    fn of(node: &Node<'_>, rollout: &Rollout) -> Self {
        match node {
            node if node.failed_on(rollout.target).is_some() => Self::Failed,
            node if !node.connected => Self::Unreachable,
            node if node.has_live(rollout.target) => Self::Live,
            node if node.is_ready_for(rollout.target) => Self::Staged,
            _ => Self::Waiting,
        }
    }
}

impl RolloutStatus {
    pub fn new(rollout: &Rollout, nodes: &[Node<'_>]) -> Self {
        let is_running = rollout.phase.is_running();
        let participants = nodes.iter().filter(|node| rollout.participants.has(node.name));
        let progress = |node: &Node<'_>| NodeProgress {
            name: node.name.to_owned(),
            step: rollout.participants.step_of(node, &rollout.policy).saturating_add(1),
            counted: !node.drained && !node.pinned,
            state: NodePhase::of(node, rollout),
        };
        let until = rollout.next_ms().map(rfc3339);
        Self {
            generation: rollout.target.number,
            from: rollout.base.number,
            policy: rollout.policy.name.clone(),
            kind: rollout.kind,
            phase: rollout.phase,
            paused: rollout.paused_ms.is_some(),
            step: rollout.step.saturating_add(1),
            steps: rollout.policy.steps.len(),
            what: rollout.policy.steps.get(rollout.step).map(ToString::to_string).unwrap_or_default(),
            since: rfc3339(rollout.since_ms),
            until,
            check: rollout.policy.check.is_some().then_some(rollout.asked),
            answer: rollout.answer.clone(),
            reason: rollout.reason.clone(),
            missing: rollout.missing.clone(),
            nodes: if is_running { participants.map(progress).collect() } else { Vec::new() },
        }
    }

    /// Text for a person: a line for the rollout, then one for each participant.
    pub fn to_text(&self) -> String {
        let mut out = self.to_string();
        out.push('\n');
        let width = self.nodes.iter().map(|node| node.name.len()).max().unwrap_or(0);
        for NodeProgress { name, step, counted, state } in &self.nodes {
            let state = serde_json::to_value(state).ok().and_then(|v| v.as_str().map(str::to_owned));
            let uncounted = if *counted { "" } else { "   not counted" };
            let _ = writeln!(out, "  {name:width$}  step {step}   {}{uncounted}", state.unwrap_or_default());
        }
        for missing in &self.missing {
            let _ = writeln!(out, "  missing: {missing}");
        }
        out
    }
}

impl fmt::Display for RolloutStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let phase = serde_json::to_value(self.phase).ok().and_then(|v| v.as_str().map(str::to_owned));
        write!(f, "generation {} ({}) {}", self.generation, self.policy, phase.unwrap_or_default())?;
        if self.phase.is_running() && self.steps > 1 {
            write!(f, ", step {} of {} ({})", self.step, self.steps, self.what)?;
        }
        if self.paused {
            write!(f, ", paused")?;
        }
        if let Some(until) = &self.until {
            write!(f, ", until {until} at the latest")?;
        }
        match &self.reason {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}
