//! Announcements, checked against the trusted keys and the accepted generation, and orders to activate.

use syncd_proto::v1::agent_message::Message as ToOrigin;
use syncd_proto::v1::{self, RetryClass};
use syncd_shared::generation::GenerationError;
use syncd_shared::text::error_chain;
use syncd_shared::wire::{WireError, root_hash};
use syncd_shared::{Generation, GenerationNumber, RootHash, SignedGeneration};

use super::Machine;
use super::schedule::Job;
use crate::session::event::{Action, Violation};
use crate::session::messages;
use crate::session::worker::{Failure, Inline};

/// The newest announcement.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) generation: SignedGeneration,
    pub(super) activate: bool,
    pub(super) inline: Option<Inline>,
    /// Places outside the origin that may have it.
    pub(super) locations: Vec<String>,
    /// Other nodes serve it already.
    pub(super) flipped: bool,
    /// Other nodes flip together with this one, or have. It is not behind before its own activation fails or
    /// has to wait.
    pub(super) flips_along: bool,
}

impl Target {
    pub(super) fn is(&self, number: GenerationNumber, root: RootHash) -> bool {
        self.generation.number() == number && self.generation.root_hash() == root
    }
}

impl Machine {
    pub(super) fn announced(
        &mut self,
        announce: v1::Announce,
        out: &mut Vec<Action>,
    ) -> Result<(), Violation> {
        messages::check_locations(&announce.locations)?;
        let message = announce.generation.ok_or(WireError::Missing { field: "generation" })?;
        let generation = match self.verified(&message) {
            Ok(generation) => generation,
            Err(error) => {
                if let GenerationError::Fork(fork) = &error {
                    self.fork = Some(*fork);
                }
                // The number is not verified; it only names the generation in the report.
                let number = Generation::decode(&message.record).map_or(0, |g| g.number.get());
                self.failed(number, Failure::new(RetryClass::Operator, &error), out);
                return Ok(());
            }
        };
        self.fork = None;
        if let Some(refusal) = self.replica.decisions.refusal(&generation).cloned() {
            self.leave_out(generation.number().get(), &refusal, out);
            return Ok(());
        }
        let live = self.replica.live.as_ref().map(|live| live.generation().root.totals);
        let totals = generation.generation().root.totals.covering(live.unwrap_or_default());
        let file = Some(announce.update_file).filter(|file| !file.is_empty());
        let root = generation.root_hash();
        let inline = file.map(|file| messages::inline_update(&file, &root, &totals)).transpose();
        let inline = inline.unwrap_or_else(|error| {
            self.drop_inline(generation.number(), &Violation::Update(error), out);
            None
        });
        self.work_error = None;
        self.retry.reset();
        self.retry_operator.reset();
        self.retry_at = None;
        if self.is_live(&generation) {
            self.say_activated(out);
        }
        let (activate, flipped) = (announce.activate_when_staged, announce.flipped);
        let locations = announce.locations;
        let flips_along = false;
        self.target = Some(Target { generation, activate, inline, locations, flipped, flips_along });
        self.retry_hook(out);
        // Answers the announcement, even where it was reported before.
        self.said_staged = None;
        Ok(())
    }

    /// Drops an announced update that does not decode: everything can be fetched by hash. The announcement
    /// stands, because the origin would send the same again after a reconnect.
    fn drop_inline(&self, generation: GenerationNumber, error: &Violation, out: &mut Vec<Action>) {
        let reason = error_chain(error);
        tracing::warn!(%generation, error = reason, "the update is dropped: missing objects are fetched by hash");
        let (generation, retry) = (generation.get(), RetryClass::Resync.into());
        self.send(ToOrigin::Failed(v1::Failed { generation, retry, reason }), out);
    }

    /// Drops a target that may no longer follow: it was announced while a newer generation was being
    /// activated.
    pub(super) fn drop_outdated_target(&mut self, out: &mut Vec<Action>) {
        let Some(target) = &self.target else { return };
        if let Err(error) = target.generation.may_follow(self.replica.accepted.as_ref()) {
            let number = target.generation.number().get();
            self.target = None;
            self.failed(number, Failure::new(RetryClass::Operator, &error), out);
        }
    }

    /// Checks everything that can be checked before the file system is touched.
    pub(super) fn verified(
        &self,
        message: &v1::SignedGeneration,
    ) -> Result<SignedGeneration, GenerationError> {
        let document = self.trust.keys.document.document();
        let generation = document.verify_generation(&message.record, &message.signature)?;
        let known = self.replica.live.iter().chain(&self.replica.held).chain(&self.replica.accepted);
        known.into_iter().try_for_each(|known| generation.agrees_with(known))?;
        generation.may_follow(self.replica.accepted.as_ref())?;
        Ok(generation)
    }

    pub(super) fn told_to_activate(&mut self, activate: &v1::Activate) -> Result<(), Violation> {
        let root = root_hash(&activate.root, "root")?;
        match &mut self.target {
            Some(target)
                if target.generation.number().get() == activate.generation
                    && target.generation.root_hash() == root =>
            {
                target.activate = true;
                target.flips_along = activate.flipped;
            }
            // Refers to a generation that was superseded meanwhile.
            _ => tracing::debug!(
                generation = activate.generation,
                "asked to activate a generation that was not announced"
            ),
        }
        Ok(())
    }

    /// Notes that this node is behind the others, because its part of a flip has failed or has to wait.
    pub(super) fn note_straggler(&mut self) {
        let Some(target) = self.target.as_ref().filter(|target| target.flips_along) else { return };
        let is_staged = self.staged.is_some_and(|(number, root)| target.is(number, root));
        let flips = self.job == Some(Job::Activate) || is_staged && self.update_is_due();
        let is_live = self.target_is_live();
        if let Some(target) = self.target.as_mut().filter(|_| is_live || !flips) {
            (target.flips_along, target.flipped) = (false, !is_live);
        }
    }

    pub(super) fn is_live(&self, generation: &SignedGeneration) -> bool {
        let live = self.replica.live.as_ref();
        live.is_some_and(|l| l.number() == generation.number() && l.root_hash() == generation.root_hash())
    }

    pub(super) fn target_is_live(&self) -> bool {
        self.target.as_ref().is_some_and(|target| self.is_live(&target.generation))
    }

    /// Reports the live generation. A trial is reported first, so that nobody counts it as live meanwhile.
    pub(super) fn say_activated(&mut self, out: &mut Vec<Action>) {
        self.note_trial();
        self.tell_check(out);
        if let Some(live) = &self.replica.live {
            let hook_due = self.hook_due().is_some();
            self.send(messages::activated(live, self.replica.spare_misses, hook_due), out);
            let is_told = |report: &v1::HookReport| {
                report.generation == live.number().get() && report.outcome() == v1::HookOutcome::Due
            };
            if self.is_connected() && self.waits().is_none() {
                self.hook_told = self.hook_report().filter(is_told).or_else(|| self.hook_told.take());
            }
        }
    }
}
