//! The node's own check as the machine sees it: when it runs, and what follows from its result.
//!
//! | phase | when | passes | fails |
//! | --- | --- | --- | --- |
//! | before | a generation is staged, and what is live has passed | it may be switched to | `FAILED_BEFORE`; the tree stays staged; retried |
//! | before | the same, but the content is held since an earlier switch: a rollback | the same | `FAILED_BEFORE`; switched to all the same, *doubted* |
//! | trial | the live generation is on trial, its hook has succeeded | it is good, the trial is over | it is refused: the node returns to the good one at once |
//! | trial | the same, of a doubted one | the same | `FAILED_ON_BOTH`; the node stays, and the trial is over |
//! | trial | the same, but nothing has passed here yet | the same | reported and retried; a newer generation may replace it |
//! | returned | the node has returned after a failure, the hook has succeeded | nothing | `FAILED_ON_BOTH`; the node stays |
//!
//! A return follows from durable state alone: the live generation is refused, and another one is good. So it
//! needs no origin, and a crash at any step of it is made up for at the next start. A newer generation that
//! is staged while another one is on trial waits for the end of the trial, unless the hook fails or nothing
//! has passed here: then the newer one may be the cure. A pin by a person ends a trial.

use std::time::{Duration, Instant};

use syncd_proto::v1;
use syncd_proto::v1::agent_message::Message as ToOrigin;
use syncd_shared::{CheckOutcome, CheckStatus, GenerationNumber, RootHash, SignedGeneration};

use super::Machine;
use crate::backoff::Backoff;
use crate::check::Phase;
use crate::session::event::Action;
use crate::session::messages;
use crate::session::worker::Decision;
use crate::state::decisions::{Named, Refusal};

/// Reason for a refusal without a check.
const STARTED_TOO_OFTEN: &str = "the agent was started twice, and the check had not passed";

/// State of the check.
#[derive(Debug, Clone)]
pub(super) struct Checks {
    /// Whether a check is set.
    pub(super) is_set: bool,
    /// The running check, by the number of its run.
    pub(super) running: Option<(u64, Phase, Named)>,
    pub(super) runs: u64,
    /// The staged generation that may be switched to, because the check has passed on this live root.
    pub(super) cleared: Option<(RootHash, (GenerationNumber, RootHash))>,
    /// Root that was switched to although the check failed before. A failure after it blames neither.
    pub(super) doubted: Option<RootHash>,
    pub(super) retry: Backoff,
    pub(super) retry_at: Option<Instant>,
    /// The failure after which the node has returned, until the check has run for the root it returned to.
    pub(super) returned: Option<(Refusal, RootHash)>,
    pub(super) status: Option<CheckStatus>,
    /// The report last sent to the origin.
    pub(super) told: Option<v1::CheckReport>,
}

impl Checks {
    pub(super) fn new() -> Self {
        Self {
            is_set: false,
            running: None,
            runs: 0,
            cleared: None,
            doubted: None,
            retry: Backoff::new(Duration::from_secs(1), Duration::from_secs(15)),
            retry_at: None,
            returned: None,
            status: None,
            told: None,
        }
    }
}

impl Machine {
    /// The node has a check of its own.
    pub fn checked(mut self, is_set: bool) -> Self {
        self.checks.is_set = is_set;
        self
    }

    pub(super) fn has_check(&self) -> bool {
        self.checks.is_set
    }

    /// Newest result of the check.
    pub fn check_status(&self) -> Option<&CheckStatus> {
        self.checks.status.as_ref()
    }

    /// Whether the announced generation is to be staged first, and activated by a command of its own.
    pub(super) fn stages_first(&self) -> bool {
        self.checks.is_set && self.replica.live.is_some()
    }

    /// Whether the check lets a staged generation be switched to.
    pub(super) fn is_cleared(&self, staged: (GenerationNumber, RootHash)) -> bool {
        let Some(live) = self.replica.live.as_ref().filter(|_| self.checks.is_set) else { return true };
        let decisions = &self.replica.decisions;
        // The content is not changed, or is what the node would return to.
        if live.root_hash() == staged.1 || decisions.good.is_some_and(|good| good.root == staged.1) {
            return true;
        }
        if decisions.is_good(live) {
            return self.checks.cleared == Some((live.root_hash(), staged));
        }
        !self.is_tried(live)
    }

    /// Whether the end of the live generation's trial is waited for.
    fn is_tried(&self, live: &SignedGeneration) -> bool {
        let decisions = &self.replica.decisions;
        let on_trial = decisions.trial.is_some_and(|trial| trial.target == Named::of(live));
        // The tree to return to may be lost or damaged, and a newer generation is then the way out.
        let is_stuck = self.must_return(live) && (self.back().is_none() || self.return_at.is_some());
        on_trial && !is_stuck && decisions.good.is_some() && self.hook_due().is_none()
    }

    /// Whether the node has to return: what is live is refused, and another generation is good.
    fn must_return(&self, live: &SignedGeneration) -> bool {
        let decisions = &self.replica.decisions;
        decisions.refusal(live).is_some() && decisions.good.is_some() && !decisions.is_good(live)
    }

    /// The held generation that the node has to go back to: the pinned one, or the good one.
    pub(super) fn back(&self) -> Option<&SignedGeneration> {
        let (live, decisions) = (self.replica.live.as_ref()?, &self.replica.decisions);
        let mut held = self.replica.held.iter();
        match decisions.node.pinned {
            Some(pin) if pin.generation == live.number().get() => None,
            Some(pin) => held.find(|held| held.number().get() == pin.generation),
            None if self.must_return(live) => held.find(|held| decisions.is_good(held)),
            None => None,
        }
    }

    /// The run of the check that is due.
    fn check_due(&self) -> Option<(Phase, Named)> {
        let live = self.replica.live.as_ref().filter(|_| self.checks.is_set && !self.stopping)?;
        let decisions = &self.replica.decisions;
        if !self.decisions_due.is_empty() || self.is_switching() || self.must_return(live) {
            return None;
        }
        let named = Named::of(live);
        let is_due = |phase| match phase {
            Phase::Trial => decisions.trial.is_some_and(|trial| trial.target == named),
            Phase::Returned => self.checks.returned.as_ref().is_some_and(|(_, to)| *to == named.root),
            Phase::Before => {
                let is_target = |(number, root)| self.target.as_ref().is_some_and(|t| t.is(number, root));
                let waits = self.staged.filter(|staged| is_target(*staged) && !self.is_cleared(*staged));
                waits.is_some() && decisions.is_good(live) && !decisions.is_pinned()
            }
        };
        let is_ready = |phase| phase == Phase::Before || self.hook_due().is_none();
        let phases = [Phase::Trial, Phase::Returned, Phase::Before];
        let phase = phases.into_iter().find(|phase| is_due(*phase) && is_ready(*phase))?;
        let is_running = self.checks.running.is_some_and(|(_, running, of)| (running, of) == (phase, named));
        (is_running || self.checks.retry_at.is_none()).then_some((phase, named))
    }

    /// Starts the check that is due, and stops one that is not.
    pub(super) fn run_check(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.checks.retry_at = self.checks.retry_at.filter(|at| now < *at);
        self.refuse_what_kills();
        let due = self.check_due();
        if self.checks.running.map(|(_, phase, of)| (phase, of)) == due {
            return;
        }
        if self.checks.running.take().is_some() {
            out.push(Action::StopCheck);
        }
        let Some(((phase, named), live)) = due.zip(self.replica.live.clone()) else { return };
        self.checks.runs += 1;
        self.checks.retry_at = None;
        self.checks.running = Some((self.checks.runs, phase, named));
        out.push(Action::Check(self.checks.runs, Box::new(live), phase));
    }

    /// Shows that the live generation is on trial, unless its check has failed already. Called before the
    /// switch to it is reported and before a hello, so that nobody takes an earlier result for one of it.
    pub(super) fn note_trial(&mut self) {
        let Some(live) = self.replica.live.as_ref().filter(|_| self.checks.is_set) else { return };
        let named = Named::of(live);
        let is_tried = self.replica.decisions.trial.is_some_and(|trial| trial.target == named);
        // Also under an earlier number: the tree may have got another one while its check ran.
        let is_known = |status: &CheckStatus| {
            status.root == named.root
                && status.returned_to.is_none()
                && matches!(status.outcome, CheckOutcome::Failed | CheckOutcome::FailedOnBoth)
        };
        if is_tried && !self.checks.status.as_ref().is_some_and(is_known) {
            self.set_check(named, CheckOutcome::Running, None, String::new());
        }
    }

    fn set_check(&mut self, named: Named, outcome: CheckOutcome, returned_to: Option<u64>, output: String) {
        let Named { number: generation, root, .. } = named;
        self.checks.status = Some(CheckStatus { generation, root, outcome, returned_to, output });
    }

    /// Refuses a generation on trial for which the agent was started too often.
    fn refuse_what_kills(&mut self) {
        let Some(live) = self.replica.live.as_ref() else { return };
        let decisions = &self.replica.decisions;
        let is_over = |trial: crate::state::decisions::Trial| {
            trial.starts_left == 0 && trial.target == Named::of(live) && decisions.good.is_some()
        };
        if decisions.trial.is_some_and(is_over)
            && decisions.refusal(live).is_none()
            && self.decisions_due.is_empty()
            && !self.is_deciding()
        {
            let decision = Decision::Refuse(Named::of(live), STARTED_TOO_OFTEN.to_owned());
            self.decisions_due.push_back(decision);
        }
    }

    /// Takes the result of a run of the check.
    pub(super) fn checked_live(&mut self, run: u64, result: Result<(), String>, now: Instant) {
        let Some((_, phase, named)) = self.checks.running.filter(|(running, ..)| *running == run) else {
            return;
        };
        self.checks.running = None;
        match (phase, result) {
            (Phase::Trial, Ok(())) => {
                self.checks.retry.reset();
                self.decisions_due.push_back(Decision::Pass(named));
            }
            (Phase::Trial, Err(output)) => {
                tracing::warn!(generation = named.number, error = output, "the check failed");
                if self.checks.doubted == Some(named.root) {
                    self.set_check(named, CheckOutcome::FailedOnBoth, None, output);
                    return self.decisions_due.push_back(Decision::Stay(named));
                }
                self.set_check(named, CheckOutcome::Failed, None, output.clone());
                match self.replica.decisions.good {
                    Some(_) => self.decisions_due.push_back(Decision::Refuse(named, output)),
                    None => self.checks.retry_at = Some(now + self.checks.retry.pause()),
                }
            }
            (Phase::Before, Ok(())) => {
                self.checks.retry.reset();
                self.clear_staged(named, None);
                self.set_check(named, CheckOutcome::Passed, None, String::new());
            }
            (Phase::Before, Err(output)) => {
                tracing::warn!(generation = named.number, error = output, "the check fails on what is live");
                self.set_check(named, CheckOutcome::FailedBefore, None, output);
                let held = self.staged.map(|staged| staged.1).filter(|root| self.is_held(*root));
                if held.is_some() {
                    return self.clear_staged(named, held);
                }
                self.checks.retry_at = Some(now + self.checks.retry.pause());
            }
            (Phase::Returned, Ok(())) => self.checks.returned = None,
            (Phase::Returned, Err(output)) => {
                tracing::warn!(generation = named.number, error = output, "the check fails on both");
                if let Some((refusal, _)) = self.checks.returned.take() {
                    let returned_to = Some(named.number);
                    self.set_check(refusal.generation, CheckOutcome::FailedOnBoth, returned_to, output);
                }
            }
        }
    }

    /// Lets the staged generation be switched to from `live`.
    fn clear_staged(&mut self, live: Named, doubted: Option<RootHash>) {
        self.checks.cleared = self.staged.map(|staged| (live.root, staged));
        self.checks.doubted = doubted;
    }

    /// Whether a tree that was live before has this root.
    fn is_held(&self, root: RootHash) -> bool {
        self.replica.held.iter().any(|held| held.root_hash() == root)
    }

    /// The live generation has passed, or has another number and had passed before.
    pub(super) fn passed(&mut self) {
        let Some(live) = self.replica.live.as_ref() else { return };
        let named = Named::of(live);
        if self.checks.is_set && self.replica.decisions.good == Some(named) && !self.must_return(live) {
            let is_known = |status: &CheckStatus| {
                status.generation == named.number || status.returned_to == Some(named.number)
            };
            if !self.checks.status.as_ref().is_some_and(is_known) {
                self.set_check(named, CheckOutcome::Passed, None, String::new());
            }
        }
    }

    /// Forgets a failure for which nothing is refused any more. Rollouts would take it for one of the next
    /// run.
    pub(super) fn lift_failure(&mut self) {
        let is_live = |root| self.replica.live.as_ref().is_some_and(|live| live.root_hash() == root);
        let is_refused =
            |root| self.replica.decisions.refused.iter().any(|refusal| refusal.generation.root == root);
        if self.checks.returned.as_ref().is_some_and(|(refusal, _)| !is_refused(refusal.generation.root)) {
            self.checks.returned = None;
        }
        let failed = self
            .checks
            .status
            .as_ref()
            .filter(|status| matches!(status.outcome, CheckOutcome::Failed | CheckOutcome::FailedOnBoth));
        if failed.is_some_and(|status| !is_live(status.root) && !is_refused(status.root)) {
            self.checks.status = None;
        }
    }

    /// The decision that a generation has passed is durable, if it is live still.
    pub(super) fn trial_passed(&mut self, passed: Named) {
        let live = self.replica.live.as_ref().map(Named::of).filter(|live| live.root == passed.root);
        if let Some(named) = live {
            tracing::info!(generation = named.number, "the check passed");
            self.set_check(named, CheckOutcome::Passed, None, String::new());
        }
    }

    /// The node has returned from `failed`: reported before the switch is.
    pub(super) fn has_returned(&mut self, failed: Option<Refusal>, out: &mut Vec<Action>) {
        let (Some(refusal), Some(live)) = (failed, self.replica.live.as_ref()) else { return };
        let (to, root) = (live.number().get(), live.root_hash());
        let generation = refusal.generation.number;
        tracing::warn!(generation, error = refusal.reason, "returned to generation {to}");
        self.set_check(refusal.generation, CheckOutcome::Failed, Some(to), refusal.reason.clone());
        self.checks.returned = Some((refusal, root)).filter(|_| self.checks.is_set);
        self.tell_check(out);
    }

    /// Sends the origin what has changed about the check.
    pub(super) fn tell_check(&mut self, out: &mut Vec<Action>) {
        let report = self.checks.status.as_ref().map(CheckStatus::to_report);
        if self.is_connected() && report.is_some() && report != self.checks.told {
            self.checks.told.clone_from(&report);
            report.into_iter().for_each(|report| self.send(ToOrigin::Check(report), out));
        }
    }

    /// Reports a staged generation once nothing but the origin's order is missing. The check comes first: one
    /// that failed before does not hold back what is reported after it.
    pub(super) fn say_staged(&mut self, out: &mut Vec<Action>) {
        let is_target = |(number, root)| self.target.as_ref().is_some_and(|target| target.is(number, root));
        let staged = self.staged.filter(|staged| is_target(*staged) && self.is_cleared(*staged));
        if !self.is_connected() || staged == self.said_staged {
            return;
        }
        // A tree that is staged anew, or has waited for the check again, is reported anew.
        self.said_staged = staged;
        if let Some((number, root)) = staged {
            self.tell_check(out);
            self.send(messages::staged(number, root), out);
        }
    }
}
