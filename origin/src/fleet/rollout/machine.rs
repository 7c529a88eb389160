//! The rollout of one generation, as a pure state machine: facts and orders in, phases and assignments out.
//! It does no IO and reads no clock.
//!
//! ```text
//!   gathering ──> staging ──> flipping ──> holding ──> staging of the next step ...
//!   (who takes     │  deadline    │ deadline    │ check fails
//!    part)         │ no quorum    │ no quorum   │
//!                  ├──────────────┴─────────────┴──> failed      (the origin withdraws the generation)
//!                  └── abort ──────────────────────> aborted     (likewise)
//!                                 last step live ──> released
//! ```
//!
//! All of [`Rollout`] is durable. Assignments depend on a saved state alone, so a crash of the origin repeats
//! at most what was ordered already. Everything else is read from the nodes' reports.

use serde::{Deserialize, Serialize};

use super::participants::{Node, Participants, Target, required};
use super::policy::{Flip, Policy};

/// Nodes named in one text.
const NAMES_MAX: usize = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Participants are not known: the origin has just started, and nodes reconnect.
    Gathering,
    /// Nodes stage. Those of the current step wait for each other, and for the check.
    Staging,
    /// The nodes of the current step were told to activate.
    Flipping,
    /// The current step is live, and the hold runs.
    Holding,
    /// Every node takes the generation as soon as it can.
    Released,
    Failed,
    Aborted,
}

impl Phase {
    pub const ALL: [Self; 7] = [
        Self::Gathering,
        Self::Staging,
        Self::Flipping,
        Self::Holding,
        Self::Released,
        Self::Failed,
        Self::Aborted,
    ];

    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gathering => "gathering",
            Self::Staging => "staging",
            Self::Flipping => "flipping",
            Self::Holding => "holding",
            Self::Released => "released",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
        }
    }

    pub fn is_running(self) -> bool {
        !matches!(self, Self::Released | Self::Failed | Self::Aborted)
    }

    /// Whether the origin withdraws the generation.
    pub fn has_failed(self) -> bool {
        matches!(self, Self::Failed | Self::Aborted)
    }
}

/// Kind of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Commit,
    /// Never fails: what it replaces is worse. Its deadlines release it.
    Rollback,
}

/// Result of the policy's check at the origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Asked {
    /// Not since the phase began.
    Never,
    Passed,
    Failed,
}

/// State of a rollout. See the module.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rollout {
    pub kind: Kind,
    pub target: Target,
    /// The generation that nodes have until their step flips.
    pub base: Target,
    pub policy: Policy,
    pub participants: Participants,
    pub phase: Phase,
    /// The current step.
    pub step: usize,
    /// Number of steps that were told to activate.
    pub flipped: usize,
    /// Start of the phase, in milliseconds since 1970.
    pub since_ms: i64,
    /// End of the phase at the latest. A hold ends here.
    pub deadline_ms: i64,
    /// Time that was left of the phase when an operator paused the rollout.
    pub paused_ms: Option<i64>,
    pub asked: Asked,
    /// Last lines of the policy's check.
    pub answer: String,
    /// Why it failed or was released early, in one line.
    pub reason: Option<String>,
    /// Participants that did not have the generation at the end, with reasons.
    pub missing: Vec<String>,
    /// Every node in service refused the tree.
    #[serde(default)]
    pub refused: bool,
}

/// The generation that a node is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Want {
    /// Leave it as it is.
    Nothing,
    /// The base, activated at once.
    Base,
    /// The new generation. `flipped`: others serve it already.
    New { activate: bool, flipped: bool },
}

/// Orders of an operator for a running rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    Pause,
    Resume,
    Advance,
    Abort,
    /// `commit --now` of the same tree.
    Now,
}

/// Reasons that an order does not apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    #[error("no rollout is running")]
    NotRunning,
    #[error("the rollout is paused already: `rollout resume` continues it")]
    Paused,
    #[error("the rollout is not paused")]
    NotPaused,
    #[error(
        "the nodes of the step are still staging: `rollout advance` ends a hold; `commit --now` skips all steps"
    )]
    Staging,
    #[error("the nodes of the step are activating: `rollout advance` ends the hold after it")]
    Flipping,
    #[error("a rollback is not aborted: publish with `commit`, or `rollback` to another generation")]
    Rollback,
}

impl Rollout {
    /// Starts a rollout. Participants are determined at `gather_until_ms`, or as soon as every enrolled node
    /// is connected.
    pub fn start(kind: Kind, target: Target, base: Target, policy: Policy, now_ms: i64) -> Self {
        Self {
            kind,
            target,
            base,
            policy,
            participants: Participants::default(),
            phase: Phase::Gathering,
            step: 0,
            flipped: 0,
            since_ms: now_ms,
            deadline_ms: now_ms,
            paused_ms: None,
            asked: Asked::Never,
            answer: String::new(),
            reason: None,
            missing: Vec::new(),
            refused: false,
        }
    }

    /// Whether the generation may leave the fleet, to followers: it was released, and some node took it.
    pub fn is_released(&self) -> bool {
        self.phase == Phase::Released && !self.refused
    }

    /// Continues after a restart of the origin, or gives nodes until `until_ms` to connect. The time of the
    /// phase begins again, because nobody could report meanwhile.
    pub fn resume_at(&mut self, now_ms: i64, until_ms: i64) {
        self.deadline_ms = match self.phase {
            Phase::Gathering => until_ms,
            Phase::Holding => self.deadline_ms.min(now_ms.saturating_add(self.policy.hold_ms)).max(until_ms),
            _ => now_ms.saturating_add(self.policy.deadline_ms).max(until_ms),
        };
        self.asked = Asked::Never;
    }

    /// Moves on as far as the facts allow. Call it after reports and at [`Self::next_ms`].
    pub fn look(&mut self, nodes: &[Node<'_>], now_ms: i64) {
        loop {
            let before = (self.phase, self.step);
            if self.phase.is_running() && self.phase != Phase::Gathering {
                self.look_at_checks(nodes, now_ms);
            }
            match self.phase {
                _ if self.paused_ms.is_some() => {}
                Phase::Gathering => self.gather(nodes, now_ms),
                Phase::Staging => self.stage(nodes, now_ms),
                Phase::Flipping => self.flip(nodes, now_ms),
                Phase::Holding => self.hold(nodes, now_ms),
                Phase::Released | Phase::Failed | Phase::Aborted => {}
            }
            if before == (self.phase, self.step) {
                return;
            }
        }
    }

    /// A participant that returned from the generation fails the rollout. One whose check fails there and
    /// that has nothing to return to counts as missing: it fails the rollout if the quorum needs it.
    fn look_at_checks(&mut self, nodes: &[Node<'_>], now_ms: i64) {
        let participants = || nodes.iter().filter(|node| self.participants.has(node.name));
        // The result itself is lost if the node was restarted since.
        let refuses = |node: &&Node<'_>| !node.drained && node.refused.contains(&self.target.root);
        let returned = participants().filter(|node| node.linked != Some(self.target));
        let failed = failed_check(returned, self.target).or_else(|| self.too_many_stay(nodes));
        if let Some((reason, missing)) = failed {
            self.fail(reason, missing, now_ms);
        } else if let Some(Node { name, .. }) = participants().find(refuses) {
            let missing = vec![format!("{name} (it refuses this tree)")];
            self.fail(format!("the check failed on {name}"), missing, now_ms);
        }
    }

    /// The failed check of a node that has the generation, if the quorum of the step can't be reached without
    /// such nodes.
    fn too_many_stay(&self, nodes: &[Node<'_>]) -> Option<(String, Vec<String>)> {
        let counted = self.participants.counted(self.step, nodes);
        let has_failed = |node: &&&Node<'_>| node.failed_on(self.target).is_some();
        let left = counted.iter().filter(|node| !has_failed(node)).count();
        if left >= required(counted.len(), self.policy.quorum_percent) {
            return None;
        }
        failed_check(counted.into_iter(), self.target)
    }

    /// The failed rollout of a generation that went to every node at once; `None` unless the check of one in
    /// service failed on it, and the node returned. One on which nothing has passed yet does not return.
    pub fn failed_at_once(target: Target, base: Target, nodes: &[Node<'_>], now_ms: i64) -> Option<Self> {
        let returned = nodes.iter().filter(|node| node.linked != Some(target));
        let (reason, missing) = failed_check(returned, target)?;
        let mut rollout = Self::start(Kind::Commit, target, base, Policy::each(), now_ms);
        rollout.fail(reason, missing, now_ms);
        Some(rollout)
    }

    fn gather(&mut self, nodes: &[Node<'_>], now_ms: i64) {
        if now_ms < self.deadline_ms && nodes.iter().any(|node| !node.connected) {
            return;
        }
        match Participants::choose(&self.policy, self.target, nodes) {
            Ok(participants) => self.participants = participants,
            Err(group) => {
                let reason = format!(
                    "no node of group {group} is connected: `syncd-origin status` shows the groups, `syncd-origin group NODE \
                     {group}` puts a node into one"
                );
                return self.fail(reason, Vec::new(), now_ms);
            }
        }
        let serves = |node: &Node<'_>| node.connected && !node.pinned && !node.drained;
        if nodes.iter().any(|node| self.participants.has(node.name) && !node.drained) {
            self.enter(Phase::Staging, self.policy.deadline_ms, now_ms);
        } else if nodes.iter().any(serves) {
            self.refused = true;
            self.fail(
                "every node refuses this tree: its check failed there before".to_owned(),
                Vec::new(),
                now_ms,
            );
        } else {
            let reason = "no node is in service: nodes take it when they come".to_owned();
            self.end(Phase::Released, Some(reason), now_ms);
        }
    }

    fn stage(&mut self, nodes: &[Node<'_>], now_ms: i64) {
        if !self.participants.has_step(self.step) {
            return self.next_step(nodes, now_ms);
        }
        let counted = self.participants.counted(self.step, nodes);
        let ready = counted.iter().filter(|node| node.is_ready_for(self.target)).count();
        let is_late = now_ms >= self.deadline_ms;
        let is_full = !counted.is_empty() && ready == counted.len();
        let suffices = is_full || is_late && ready >= required(counted.len(), self.policy.quorum_percent);
        let may_flip = self.policy.flip == Flip::Each && !counted.is_empty() || suffices;
        let is_asked = self.policy.check.is_none() || self.asked == Asked::Passed || self.flipped > 0;
        if self.has_only_drained(nodes) || may_flip && is_asked {
            self.flipped = self.step + 1;
            self.enter(Phase::Flipping, self.policy.deadline_ms, now_ms);
        } else if is_late {
            let reason = if may_flip {
                format!("the check at the origin has not passed: {}", self.answer_or_none())
            } else {
                self.without_quorum("staged", ready, &counted)
            };
            let target = self.target;
            let missing = counted.iter().filter(|node| !node.is_ready_for(target));
            let missing = missing.map(|node| node.why_missing(target)).collect();
            self.fail(reason, missing, now_ms);
        }
    }

    /// Whether a step consists of drained nodes alone, which nobody waits for. It never had others.
    fn has_only_drained(&self, nodes: &[Node<'_>]) -> bool {
        let of_step = |node: &&Node<'_>| {
            self.participants.has(node.name) && self.participants.step_of(node, &self.policy) == self.step
        };
        let is_last = self.step + 1 == self.policy.steps.len();
        let mut of_step = nodes.iter().filter(of_step).peekable();
        is_last && self.flipped > 0 && of_step.peek().is_some() && of_step.all(|node| node.drained)
    }

    fn answer_or_none(&self) -> &str {
        if self.answer.is_empty() { "it did not end in time" } else { &self.answer }
    }

    fn without_quorum(&self, what: &str, have: usize, counted: &[&Node<'_>]) -> String {
        if counted.is_empty() {
            return format!("nobody is left of step {}", self.step + 1);
        }
        let needed = required(counted.len(), self.policy.quorum_percent);
        let of = counted.len();
        format!(
            "{have} of {of} nodes of step {} have {what} it within the deadline, {needed} are needed",
            self.step + 1
        )
    }

    fn flip(&mut self, nodes: &[Node<'_>], now_ms: i64) {
        let counted = self.participants.counted(self.step, nodes);
        let live = counted.iter().filter(|node| node.has_live(self.target)).count();
        let is_full = !counted.is_empty() && live == counted.len();
        let is_late = now_ms >= self.deadline_ms;
        if is_full
            || self.has_only_drained(nodes)
            || is_late && live >= required(counted.len(), self.policy.quorum_percent)
        {
            self.next_step(nodes, now_ms);
        } else if is_late {
            let reason = self.without_quorum("activated", live, &counted);
            let missing = self.not_live(&counted);
            self.fail(reason, missing, now_ms);
        }
    }

    fn not_live(&self, counted: &[&Node<'_>]) -> Vec<String> {
        let missing = counted.iter().filter(|node| !node.has_live(self.target));
        missing.map(|node| node.why_missing(self.target)).collect()
    }

    /// The current step is live, or nobody is in it.
    fn next_step(&mut self, nodes: &[Node<'_>], now_ms: i64) {
        let next = (self.step + 1..self.policy.steps.len()).find(|step| self.participants.has_step(*step));
        match next {
            None => {
                let counted = self.participants.counted(self.step, nodes);
                self.missing = self.not_live(&counted);
                self.end(Phase::Released, None, now_ms);
            }
            Some(_) if self.phase == Phase::Flipping && self.policy.hold_ms > 0 => {
                self.enter(Phase::Holding, self.policy.hold_ms, now_ms);
            }
            Some(next) => {
                self.step = next;
                self.enter(Phase::Staging, self.policy.deadline_ms, now_ms);
            }
        }
    }

    fn hold(&mut self, nodes: &[Node<'_>], now_ms: i64) {
        let is_asked = self.policy.check.is_none() || self.asked == Asked::Passed;
        if now_ms >= self.deadline_ms && is_asked {
            self.next_step(nodes, now_ms);
        }
    }

    fn enter(&mut self, phase: Phase, time_ms: i64, now_ms: i64) {
        self.phase = phase;
        self.since_ms = now_ms;
        self.deadline_ms = now_ms.saturating_add(time_ms);
        if phase == Phase::Holding {
            self.asked = Asked::Never;
        }
    }

    fn end(&mut self, phase: Phase, reason: Option<String>, now_ms: i64) {
        (self.phase, self.reason, self.paused_ms) = (phase, reason, None);
        (self.since_ms, self.deadline_ms) = (now_ms, now_ms);
        if phase == Phase::Released {
            self.flipped = self.policy.steps.len();
        }
    }

    fn fail(&mut self, reason: String, mut missing: Vec<String>, now_ms: i64) {
        let excess = missing.len().saturating_sub(NAMES_MAX);
        if excess > 0 {
            missing.truncate(NAMES_MAX);
            missing.push(format!("and {excess} more"));
        }
        self.missing = missing;
        let phase = if self.kind == Kind::Rollback { Phase::Released } else { Phase::Failed };
        self.end(phase, Some(reason), now_ms);
    }

    /// Whether the policy's check is to run now: until it passed before the first flip, and during holds.
    pub fn wants_check(&self) -> bool {
        let asks = match self.phase {
            Phase::Staging => self.flipped == 0 && self.asked != Asked::Passed,
            Phase::Holding => true,
            _ => false,
        };
        asks && self.policy.check.is_some() && self.paused_ms.is_none()
    }

    /// Takes the result of the policy's check that began in `phase`. Before the first flip a failure is no
    /// fault of the generation: the check is repeated until the deadline.
    pub fn checked(&mut self, phase: Phase, passed: bool, answer: String, now_ms: i64) {
        if self.phase != phase || !self.phase.is_running() {
            return;
        }
        self.asked = if passed { Asked::Passed } else { Asked::Failed };
        self.answer = answer;
        if !passed && phase == Phase::Holding {
            let reason = format!(
                "the check at the origin failed after step {}: {}",
                self.step + 1,
                self.answer_or_none()
            );
            self.fail(reason, Vec::new(), now_ms);
        }
    }

    /// Carries out an order. The caller then [looks](Self::look).
    pub fn order(&mut self, order: Order, now_ms: i64) -> Result<(), OrderError> {
        if !self.phase.is_running() {
            return Err(OrderError::NotRunning);
        }
        match order {
            Order::Pause if self.paused_ms.is_some() => return Err(OrderError::Paused),
            Order::Pause => self.paused_ms = Some(self.deadline_ms.saturating_sub(now_ms).max(0)),
            Order::Resume => {
                let left = self.paused_ms.take().ok_or(OrderError::NotPaused)?;
                self.deadline_ms = now_ms.saturating_add(left);
            }
            Order::Advance => match self.phase {
                Phase::Holding => {
                    (self.paused_ms, self.deadline_ms, self.asked) = (None, now_ms, Asked::Passed);
                }
                Phase::Flipping => return Err(OrderError::Flipping),
                _ => return Err(OrderError::Staging),
            },
            Order::Abort if self.kind == Kind::Rollback => return Err(OrderError::Rollback),
            Order::Abort => self.end(Phase::Aborted, Some("an operator aborted it".to_owned()), now_ms),
            Order::Now => {
                let reason = "an operator gave it to all nodes at once".to_owned();
                self.end(Phase::Released, Some(reason), now_ms);
            }
        }
        Ok(())
    }

    /// Time of the next [`Self::look`] without news.
    pub fn next_ms(&self) -> Option<i64> {
        (self.phase.is_running() && self.paused_ms.is_none()).then_some(self.deadline_ms)
    }

    /// Whether the node is to count as behind the others until it has the generation. One that takes part in
    /// the flip does not: all of a step would stop being ready at once.
    fn leaves_behind(&self, node: &Node<'_>) -> bool {
        let step = self.participants.step_of(node, &self.policy);
        let flips_along =
            self.phase == Phase::Flipping && step == self.step && node.is_ready_for(self.target);
        self.policy.flip == Flip::Together && node.linked != Some(self.target) && !flips_along
    }

    /// The generation that a node is to have in this state.
    pub fn want(&self, node: &Node<'_>) -> Want {
        if node.pinned {
            return Want::Nothing;
        }
        let has_base = node.linked.is_some_and(|linked| linked.number >= self.base.number);
        if self.phase != Phase::Released
            && !has_base
            && !node.refuses(&self.base.root)
            && self.participants.step_of(node, &self.policy) >= self.flipped
        {
            return Want::Base;
        }
        if node.refuses(&self.target.root) {
            return Want::Nothing;
        }
        let has_it = node.linked == Some(self.target);
        // The withdrawal of a failed rollout is on its way.
        let is_on = self.phase.is_running() || self.phase == Phase::Released;
        if is_on
            && (self.phase == Phase::Released || self.participants.step_of(node, &self.policy) < self.flipped)
        {
            return Want::New { activate: true, flipped: self.leaves_behind(node) };
        }
        Want::New { activate: has_it, flipped: false }
    }
}

/// Reason and missing node, if the check of one in service failed on a generation.
fn failed_check<'n>(
    mut nodes: impl Iterator<Item = &'n Node<'n>>,
    target: Target,
) -> Option<(String, Vec<String>)> {
    let failed = |node: &'n Node<'n>| Some((node.name, node.failed_on(target).filter(|_| !node.drained)?));
    let (name, output) = nodes.find_map(failed)?;
    Some((format!("the check failed on {name}: {output}"), vec![format!("{name} (its check failed)")]))
}

#[cfg(test)]
mod model;
#[cfg(test)]
pub(crate) mod tests;
