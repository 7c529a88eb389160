//! The on-activate hook as the machine sees it: generations that wait for it, and reports to the origin.

use std::time::Instant;

use syncd_proto::v1;
use syncd_proto::v1::agent_message::Message as ToOrigin;
use syncd_shared::HookStatus;

use super::Machine;
use super::schedule::MAINTAIN_DELAY;
use crate::hooks::{HookState, RunOutcome};
use crate::session::event::Action;
use crate::session::messages;

/// While the on-activate hook fails, this many generations may be switched without being live: the one for
/// which it fails, and one that may fix it. Their trees are kept, and so is the tree for which the hook last
/// succeeded.
const SWITCHED_MAX_FAILING: usize = 2;

/// The same limit while the hook has not failed but is slower than the commits.
pub(super) const SWITCHED_MAX: usize = 8;

impl Machine {
    /// Status of the on-activate hook; `None`: it was never due.
    pub fn hook_status(&self) -> Option<HookStatus> {
        HookStatus::from_report(&self.hook_report()?).ok()
    }

    pub(super) fn hook_report(&self) -> Option<v1::HookReport> {
        let mut report = messages::hook_report(self.hook.as_ref()?, self.waits())?;
        if report.outcome() == v1::HookOutcome::Failed && self.retried == Some(report.attempt) {
            // The hook is about to run, so the old failure is no answer to the new announcement.
            report.set_outcome(v1::HookOutcome::Running);
        }
        Some(report)
    }

    /// Runs a failed hook at once: whoever commits, or waits for the linked generation, may have fixed the
    /// cause.
    pub(super) fn retry_hook(&mut self, out: &mut Vec<Action>) {
        let Some(hook) = &self.hook else { return };
        let run = hook.run.as_ref();
        let has_failed = hook.due.is_some() && run.is_some_and(|run| run.outcome == RunOutcome::Failed);
        let is_live = self.target.as_ref().is_some_and(|target| self.is_live(&target.generation));
        if (has_failed && is_live) || self.waits().is_some() {
            self.retried = run.map(|run| run.attempt);
            out.push(Action::RetryHook);
        }
    }

    /// The generation that is switched but not live, because the hook has not succeeded for it.
    pub(super) fn hook_due(&self) -> Option<u64> {
        self.hook.as_ref()?.due
    }

    /// The announced generation, when it may not even be staged before the hook succeeds. Trees that the web
    /// server may still serve are kept, and their number is limited.
    pub(super) fn waits(&self) -> Option<u64> {
        let hook = self.hook.as_ref()?;
        let target = self.target.as_ref().filter(|target| !self.is_live(&target.generation))?;
        hook.due?;
        let succeeded = hook.succeeded.unwrap_or(0);
        let switched = self.replica.generations.iter().filter(|number| number.get() > succeeded).count();
        let most = if hook.failing { SWITCHED_MAX_FAILING } else { SWITCHED_MAX };
        (switched >= most).then(|| target.generation.number().get())
    }

    /// Takes the hook's state from its task or from the worker's report, whichever is newer.
    pub(super) fn hook_changed(&mut self, state: HookState, now: Instant) {
        if self.hook.as_ref().is_some_and(|known| known.revision >= state.revision) {
            return;
        }
        if state.due.is_none() && self.hook_due().is_some() {
            // The grace period of the trees that the web server no longer uses begins.
            let soon = now + MAINTAIN_DELAY;
            self.maintain_at = Some(self.maintain_at.map_or(soon, |at| at.min(soon)));
        }
        if state.run.as_ref().map(|run| run.attempt) != self.retried {
            self.retried = None;
        }
        self.hook = Some(state);
    }

    /// Sends the origin what has changed about the hook.
    pub(super) fn tell_hook(&mut self, out: &mut Vec<Action>) {
        let Some(report) = self.hook_report() else { return };
        if let Some(number) = self.waits()
            && self.waits_logged.replace(number) != Some(number)
        {
            let error = self.hook_status().and_then(|hook| hook.trouble()).unwrap_or_default();
            tracing::warn!(generation = number, error, "not activated");
        }
        let live = self.replica.live.as_ref().map(|live| live.number().get());
        // A switch that is being reported comes first; the hook follows it.
        if !self.is_connected() || live < Some(report.generation) || self.hook_told.as_ref() == Some(&report)
        {
            return;
        }
        self.hook_told = Some(report.clone());
        self.send(ToOrigin::Hook(report), out);
    }
}
