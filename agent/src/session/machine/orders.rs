//! Decisions that wait to be recorded: orders of people and of the origin, and results of the check.

use std::time::{Duration, Instant};

use syncd_proto::v1;
use syncd_proto::v1::RetryClass;
use syncd_proto::v1::agent_message::Message as ToOrigin;
use syncd_shared::OrderedStanding;

use super::Machine;
use super::schedule::Job;
use crate::session::event::Action;
use crate::session::worker::{Decision, Failure, Outcome};
use crate::state::decisions::Refusal;

/// Pause before a decision that was not recorded is tried again.
const DECIDE_RETRY: Duration = Duration::from_secs(1);

impl Machine {
    /// Whether a decision is being recorded.
    pub(super) fn is_deciding(&self) -> bool {
        matches!(self.job, Some(Job::Decide { .. }))
    }

    /// Takes an order that a person gave on the node. Its result is an [`Action::Ordered`].
    pub(super) fn ordered_here(&mut self, decision: Decision) {
        // The list of refusals may not know the newest number yet.
        let known = |due: &Decision| match (due, &decision) {
            (Decision::Announced(refused, announced), Decision::Accept(number)) if number == announced => {
                Some(Decision::Accept(refused.number))
            }
            _ => None,
        };
        let known = self.decisions_due.iter().find_map(known);
        self.orders_due.push_back(known.unwrap_or(decision));
    }

    /// Takes the origin's orders for this node.
    pub(super) fn ordered_there(&mut self, standing: Option<&v1::OrderedStanding>) {
        let ordered = standing.map(OrderedStanding::from).unwrap_or_default();
        self.decisions_due.retain(|decision| !matches!(decision, Decision::Ordered(_)));
        // An older order may be on its way to the record.
        let is_recording =
            matches!(self.job, Some(Job::Decide { decision: Decision::Ordered(_), is_order: false }));
        if is_recording || ordered != self.replica.decisions.ordered {
            self.decisions_due.push_back(Decision::Ordered(ordered));
        }
    }

    /// Whether something more important than an update waits for the worker.
    pub(super) fn is_interrupted(&self) -> bool {
        !self.orders_due.is_empty() || self.may_decide() || self.back_is_due()
    }

    fn may_decide(&self) -> bool {
        !self.decisions_due.is_empty() && self.decide_at.is_none()
    }

    pub(super) fn back_is_due(&self) -> bool {
        self.return_at.is_none() && self.back().is_some()
    }

    pub(super) fn next_decision(&mut self) -> Option<(Job, Decision)> {
        if let Some(order) = self.orders_due.pop_front() {
            return Some((Job::Decide { is_order: true, decision: order.clone() }, order));
        }
        if self.decide_at.is_some() {
            return None;
        }
        let decision = self.decisions_due.pop_front()?;
        Some((Job::Decide { is_order: false, decision: decision.clone() }, decision))
    }

    /// Takes the end of recording a decision.
    pub(super) fn decided(
        &mut self,
        is_order: bool,
        decision: Decision,
        outcome: Outcome,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        match outcome {
            Outcome::Failed(failure) if is_order => out.push(Action::Ordered(Err(failure))),
            Outcome::Failed(failure) => {
                tracing::warn!(error = failure.reason, "a decision was not recorded, which is retried");
                self.decide_at = Some(now + DECIDE_RETRY);
                let is_newer_due =
                    |due: &Decision| matches!((due, &decision), (Decision::Ordered(_), Decision::Ordered(_)));
                if !self.decisions_due.iter().any(is_newer_due) {
                    self.decisions_due.push_front(decision);
                }
            }
            _ => {
                if is_order {
                    out.push(Action::Ordered(Ok(())));
                }
                match decision {
                    Decision::Pass(passed) => self.trial_passed(passed),
                    // `Hello` says what is refused, and the origin announces again.
                    Decision::Accept(_) => {
                        self.lift_failure();
                        self.redial(now, out);
                    }
                    _ => {}
                }
                self.retry_at = None;
                self.return_at = None;
            }
        }
    }

    /// Drops the target if this node refuses it, and reports why.
    pub(super) fn drop_refused_target(&mut self, out: &mut Vec<Action>) {
        let Some(target) = &self.target else { return };
        if let Some(refusal) = self.replica.decisions.refusal(&target.generation).cloned() {
            let number = target.generation.number().get();
            self.leave_out(number, &refusal, out);
        }
    }

    /// Drops the target with this number, which this node refuses, and reports why.
    pub(super) fn leave_out(&mut self, number: u64, refusal: &Refusal, out: &mut Vec<Action>) {
        self.target = None;
        if !refusal.is_named(number) {
            self.decisions_due.retain(|due| !matches!(due, Decision::Announced(..)));
            self.decisions_due.push_back(Decision::Announced(refusal.generation, number));
        }
        self.failed(number, refused(number, refusal), out);
    }

    /// Tells the origin of orders that were given on the node.
    pub(super) fn tell_standing(&mut self, out: &mut Vec<Action>) {
        let standing = self.replica.decisions.node;
        if self.is_connected() && standing != self.standing_told {
            self.standing_told = standing;
            self.send(ToOrigin::Standing(v1::NodeStanding::from(standing)), out);
        }
    }

    /// Whether other nodes serve the announced generation, and this one does not yet.
    pub fn is_behind(&self) -> bool {
        let is_behind = |target: &super::Target| {
            target.flipped && (!self.is_live(&target.generation) || self.hook_due().is_some())
        };
        self.target.as_ref().is_some_and(is_behind) && !self.replica.decisions.is_pinned()
    }
}

/// Reason why this node does not take a generation.
fn refused(number: u64, refusal: &Refusal) -> Failure {
    let failed = match refusal.generation.number {
        same if same == number => "its check failed".to_owned(),
        earlier => format!("its tree failed the check as generation {earlier}"),
    };
    let reason = format!(
        "generation {number} is refused on this node: {failed}: {}; commit another tree, or run \
         `syncd-agent accept {number}` on the node",
        refusal.reason
    );
    Failure { retry: Some(RetryClass::Operator), reason }
}
