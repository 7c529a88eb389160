//! Chooses the worker's next command, and applies its reports.

use std::time::{Duration, Instant};

use syncd_proto::v1::agent_message::Message as ToOrigin;
use syncd_proto::v1::{self, RetryClass};
use syncd_shared::limits::REASON_MAX_BYTES;
use syncd_shared::text::{counted, one_line};
use syncd_shared::{GenerationNumber, Progress, RootHash};

use super::Machine;
use crate::session::event::Action;
use crate::session::messages;
use crate::session::worker::{Command, Decision, Failure, Outcome, Report, Verified};
use crate::state::decisions::Refusal;

/// The origin gets no progress of an update that takes less than this.
pub(super) const PROGRESS_DELAY: Duration = Duration::from_millis(100);

pub(super) const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Pause between an activation and maintenance.
pub(super) const MAINTAIN_DELAY: Duration = Duration::from_millis(200);

/// Work of the worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Job {
    Update { number: GenerationNumber, root: RootHash },
    Activate,
    Return,
    Decide { is_order: bool, decision: Decision },
    Maintain,
    Verify,
}

impl Machine {
    pub(super) fn reported(&mut self, report: Report, now: Instant, out: &mut Vec<Action>) {
        match report {
            Report::Progress(progress) => self.progressed(progress, out),
            Report::Activating => self.activating = true,
            Report::Done(outcome, replica) => {
                let was_live = self.target_is_live();
                let refusal =
                    self.replica.live.as_ref().and_then(|live| self.replica.decisions.refusal(live));
                let left = refusal.cloned();
                let drift = std::mem::replace(&mut self.replica, *replica).drift;
                if drift != self.replica.drift {
                    self.send(messages::drift(self.replica.drift.as_ref()), out);
                }
                if let Some(hook) = self.replica.hook.take() {
                    self.hook_changed(hook, now);
                }
                let job = self.job.take();
                let cancelled = std::mem::take(&mut self.cancelled);
                self.activating = false;
                self.progress = None;
                self.tell_at = None;
                match (job, outcome) {
                    (Some(Job::Decide { is_order, decision }), outcome) => {
                        self.decided(is_order, decision, outcome, now, out);
                    }
                    (Some(Job::Return), outcome) => self.went_back(left, outcome, now, out),
                    (job, outcome) => self.finished(job, outcome, cancelled, now, out),
                }
                self.drop_refused_target(out);
                self.drop_outdated_target(out);
                if !was_live && self.target_is_live() && self.work_error.take().is_some() {
                    // The failed activation was durable after all, and recovery has finished it.
                    self.retry_at = None;
                    self.say_activated(out);
                }
            }
        }
    }

    fn finished(
        &mut self,
        job: Option<Job>,
        outcome: Outcome,
        cancelled: bool,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        match (job, outcome) {
            (Some(Job::Update { number, root }), Outcome::Staged) => {
                self.staged = Some((number, root));
                self.work_error = None;
            }
            (_, Outcome::Activated) => {
                self.staged = None;
                self.checks.retry_at = None;
                self.work_error = None;
                self.retry.reset();
                self.retry_operator.reset();
                self.maintain_at = Some(now + MAINTAIN_DELAY);
                self.say_activated(out);
            }
            (_, Outcome::Maintained(maintenance)) => {
                // Interrupted maintenance continues soon.
                let again = if cancelled { Some(MAINTAIN_DELAY) } else { maintenance.again };
                self.maintain_at = again.map(|pause| now + pause);
                self.verify_wanted |= maintenance.verify;
                if maintenance.trouble.is_some() || maintenance.whole {
                    self.live_error = maintenance.trouble;
                }
            }
            (_, Outcome::Verified(verified)) => self.verification_ended(verified, now, out),
            (Some(Job::Verify), Outcome::Failed(failure)) => {
                // A verification interrupted by an update starts again after it.
                if failure.retry.is_some() || !cancelled || self.stopping {
                    self.verify_wanted = false;
                    out.push(Action::Verified(Err(failure)));
                }
            }
            (job, Outcome::Failed(failure)) => {
                let what = self.target_of(job);
                self.staged = None;
                self.update_failed(what, failure, cancelled, now, out);
            }
            (job, Outcome::Declined(failure)) => {
                let what = self.target_of(job);
                self.staged = what;
                self.update_failed(what, failure, cancelled, now, out);
            }
            (_, Outcome::Staged | Outcome::Decided) => {}
        }
    }

    /// The node went back to a held generation, or could not. `left`: the refusal of what it left.
    fn went_back(&mut self, left: Option<Refusal>, outcome: Outcome, now: Instant, out: &mut Vec<Action>) {
        self.staged = None;
        match outcome {
            Outcome::Failed(failure) | Outcome::Declined(failure) => {
                let number = self.back().map_or(0, |back| back.number().get());
                let pause = self.retry.pause();
                self.return_at = failure.retry.map(|_| now + pause);
                let reason = format!("can't go back to generation {number}: {}", failure.reason);
                if failure.retry.is_some() {
                    self.failed(number, Failure { reason, ..failure }, out);
                }
            }
            outcome => {
                self.has_returned(left, out);
                self.finished(Some(Job::Return), outcome, false, now, out);
            }
        }
    }

    fn verification_ended(&mut self, verified: Verified, now: Instant, out: &mut Vec<Action>) {
        self.verify_wanted = false;
        self.maintain_at = Some(now + MAINTAIN_DELAY);
        self.live_error = None;
        self.drift_error = (!verified.is_whole()).then(|| {
            let drifted = counted(verified.drifted, "path", "paths");
            let reason = verified.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
            format!("{drifted} of the live tree drifted and could not be healed{reason}")
        });
        out.push(Action::Verified(Ok(verified)));
    }

    fn target_of(&self, job: Option<Job>) -> Option<(GenerationNumber, RootHash)> {
        match job {
            Some(Job::Update { number, root }) => Some((number, root)),
            _ => self.staged,
        }
    }

    fn update_failed(
        &mut self,
        what: Option<(GenerationNumber, RootHash)>,
        failure: Failure,
        cancelled: bool,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let Some((number, root)) = what else { return };
        if let Some(target) = &mut self.target
            && target.is(number, root)
        {
            // The inline update did not fit, or is part of what failed.
            target.inline = None;
        }
        let Some(class) = failure.retry.filter(|_| !cancelled) else { return };
        let backoff = if class == RetryClass::Operator { &mut self.retry_operator } else { &mut self.retry };
        self.retry_at = Some(now + backoff.pause());
        self.failed(number.get(), failure, out);
    }

    /// Reports a failure to the origin, and keeps it for `status`.
    pub(super) fn failed(&mut self, generation: u64, failure: Failure, out: &mut Vec<Action>) {
        tracing::warn!(generation, error = failure.reason, "update failed");
        let retry = failure.retry.unwrap_or(RetryClass::Retry).into();
        let reason = one_line(&failure.reason, REASON_MAX_BYTES);
        self.work_error = Some(failure.reason);
        self.send(ToOrigin::Failed(v1::Failed { generation, retry, reason }), out);
    }

    fn progressed(&mut self, progress: Progress, out: &mut Vec<Action>) {
        self.progress = Some(progress);
        if self.job == Some(Job::Verify) {
            out.push(Action::Verifying(progress));
        }
    }

    /// Reports the progress of an update that has taken long enough.
    pub(super) fn tell(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Some(Job::Update { number, .. }) = self.job else { return };
        if !self.is_connected() || self.tell_at.is_none_or(|at| now < at) {
            return;
        }
        self.tell_at = Some(now + PROGRESS_INTERVAL);
        let progress = self.progress.unwrap_or_default();
        let message = v1::Progress {
            generation: number.get(),
            state: self.state().to_message().into(),
            files_done: progress.files_done,
            bytes_done: progress.bytes_done,
            files_total: progress.files_total,
            bytes_total: progress.bytes_total,
        };
        self.send(ToOrigin::Progress(message), out);
    }

    /// Gives the worker its next command, or cancels the current one for something more important.
    pub(super) fn schedule(&mut self, now: Instant, out: &mut Vec<Action>) {
        for at in [&mut self.retry_at, &mut self.return_at, &mut self.decide_at] {
            *at = at.filter(|at| now < *at);
        }
        if let Some(job) = &self.job {
            if self.should_cancel(job) && !self.cancelled {
                self.cancelled = true;
                out.push(Action::Cancel);
            }
            return;
        }
        if self.stopping {
            out.push(Action::Stopped);
            return;
        }
        let Some((job, command)) = self.next_command(now) else { return };
        self.tell_at = matches!(job, Job::Update { .. }).then(|| now + PROGRESS_DELAY);
        self.job = Some(job);
        self.progress = None;
        out.push(Action::Start(Box::new(command)));
    }

    fn should_cancel(&self, job: &Job) -> bool {
        match job {
            Job::Activate | Job::Decide { .. } => false,
            Job::Update { .. } | Job::Return if self.activating => false,
            _ if self.stopping => true,
            Job::Return => !self.orders_due.is_empty(),
            _ if self.is_interrupted() => true,
            Job::Update { number, root } => !self.target.as_ref().is_some_and(|t| t.is(*number, *root)),
            Job::Verify => self.update_is_due(),
            Job::Maintain => self.update_is_due() || self.verify_wanted,
        }
    }

    /// Whether an announced generation is not live, waits for no barrier, check, hook or pin, and has not
    /// just failed. A pinned node does not even stage: its disk is left to what it serves.
    pub(super) fn update_is_due(&self) -> bool {
        let Some(target) = &self.target else { return false };
        let staged = self.staged.filter(|(number, root)| target.is(*number, *root));
        let waits = staged.is_some_and(|staged| !target.activate || !self.is_cleared(staged));
        let is_pinned = self.replica.decisions.is_pinned();
        !self.is_live(&target.generation)
            && self.retry_at.is_none()
            && !waits
            && !is_pinned
            && self.waits().is_none()
    }

    /// Whether the worker is about to change what is live.
    pub(super) fn is_switching(&self) -> bool {
        self.activating || matches!(self.job, Some(Job::Activate | Job::Return | Job::Decide { .. }))
    }

    fn next_command(&mut self, now: Instant) -> Option<(Job, Command)> {
        if let Some((job, decision)) = self.next_decision() {
            return Some((job, Command::Decide(decision)));
        }
        if let Some(back) = self.back().filter(|_| self.return_at.is_none()) {
            return Some((Job::Return, Command::Return(Box::new(back.clone()))));
        }
        let stages_first = self.stages_first();
        if self.update_is_due() {
            let target = self.target.as_mut()?;
            if self.staged.is_some_and(|(number, root)| target.is(number, root)) {
                return Some((Job::Activate, Command::Activate));
            }
            self.staged = None;
            let generation = Box::new(target.generation.clone());
            let job = Job::Update { number: generation.number(), root: generation.root_hash() };
            let inline = target.inline.take();
            let locations = target.locations.clone();
            let activate = target.activate && !stages_first;
            return Some((job, Command::Update { generation, inline, locations, activate }));
        }
        if self.verify_wanted {
            return Some((Job::Verify, Command::Verify));
        }
        if self.maintain_at.is_some_and(|at| now >= at) && self.staged.is_none() {
            self.maintain_at = None;
            return Some((Job::Maintain, Command::Maintain));
        }
        None
    }
}
