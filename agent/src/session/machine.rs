//! Decides what the session does next: events in, actions out. It does no IO, reads no clock and spawns no
//! task. [`super`] describes the states and transitions.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::time::{Duration, Instant};

use syncd_proto::v1;
use syncd_proto::v1::RetryClass;
use syncd_proto::v1::agent_message::Message as ToOrigin;
use syncd_proto::v1::origin_message::Message as FromOrigin;
use syncd_shared::ed25519::VerifyingKey;
use syncd_shared::generation::GenerationError;
use syncd_shared::identity::KeySuccession;
use syncd_shared::identity::signing::verify_successions;
use syncd_shared::limits::REASON_MAX_BYTES;
use syncd_shared::text::{counted, error_chain, one_line};
use syncd_shared::wire::{WireError, root_hash};
use syncd_shared::{
    AgentState, Generation, GenerationNumber, HookStatus, RootHash, SignedGeneration, TreeId,
};

use super::event::{Action, Event, Violation};
use super::messages::{self, PROTOCOL_MAX, PROTOCOL_MIN};
use super::worker::{Command, Failure, Inline, Outcome, ReplicaState, Report};
use crate::backoff::Backoff;
use crate::hooks::{HookState, RunOutcome};
use crate::status::Drift;
use crate::status::StageProgress;

/// Limit from the start of dialling to the origin's `Welcome`.
pub(crate) const GREETING_TIMEOUT: Duration = Duration::from_secs(20);
/// Unanswered heartbeats after which the connection counts as broken.
const MISSED_HEARTBEATS: u32 = 3;
/// Bounds of the heartbeat interval that a `Welcome` may ask for, and the interval if it asks for none.
const HEARTBEAT_SHORTEST: Duration = Duration::from_millis(100);
const HEARTBEAT_LONGEST: Duration = Duration::from_secs(60);
const HEARTBEAT_DEFAULT: Duration = Duration::from_secs(10);
/// A connection that lasted this long was a success, so the next pause is short.
const SETTLED: Duration = Duration::from_secs(5);
/// The origin gets no progress of an update that takes less than this.
const PROGRESS_DELAY: Duration = Duration::from_millis(100);
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// Pause between an activation and maintenance.
const MAINTAIN_DELAY: Duration = Duration::from_millis(200);
/// While the on-activate hook fails, this many generations may be switched without being live: the one for
/// which it fails, and one that may fix it. Their trees are kept, and so is the tree for which the hook last
/// succeeded.
const SWITCHED_MAX_FAILING: usize = 2;
/// The same limit while the hook has not failed but is slower than the commits.
const SWITCHED_MAX: usize = 8;
/// Bytes kept of the origin's version.
const VERSION_MAX_BYTES: usize = 64;

/// The connection to the origin.
#[derive(Debug)]
enum Link {
    Down { redial_at: Instant },
    Greeting { since: Instant },
    Up(Up),
}

#[derive(Debug)]
struct Up {
    since: Instant,
    interval: Duration,
    next_heartbeat: Instant,
    sequence: u64,
    heard: Instant,
}

/// Work of the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Job {
    Update { number: GenerationNumber, root: RootHash },
    Activate,
    Maintain,
    Verify,
}

/// The newest announcement.
#[derive(Debug)]
struct Target {
    generation: SignedGeneration,
    activate: bool,
    inline: Option<Inline>,
}

impl Target {
    fn is(&self, number: GenerationNumber, root: RootHash) -> bool {
        self.generation.number() == number && self.generation.root_hash() == root
    }
}

/// Facts that stay fixed while the agent runs.
#[derive(Debug, Clone)]
pub struct Trust {
    pub tree_id: TreeId,
    /// Key that generations must be signed with.
    pub signing_key: VerifyingKey,
    /// Changes with every boot of the node.
    pub boot_id: String,
}

/// State of the session. See [`super`].
#[derive(Debug)]
pub struct Machine {
    trust: Trust,
    replica: ReplicaState,
    link: Link,
    /// The live generation sent in the last hello.
    shown: Option<(GenerationNumber, RootHash)>,
    /// `None`: no on-activate hook is set.
    hook: Option<HookState>,
    /// The hook report last sent to the origin.
    hook_told: Option<v1::HookReport>,
    /// Number of the announced generation for which waiting for the hook was logged.
    waits_logged: Option<u64>,
    /// Attempt of the hook whose failure led to an immediate retry.
    retried: Option<u32>,
    /// Local changes last reported to the origin.
    shown_drift: Option<Drift>,
    redial: Backoff,
    target: Option<Target>,
    staged: Option<(GenerationNumber, RootHash)>,
    job: Option<Job>,
    cancelled: bool,
    activating: bool,
    progress: Option<StageProgress>,
    /// Time at which the progress of the current update is reported next.
    tell_at: Option<Instant>,
    retry: Backoff,
    retry_operator: Backoff,
    retry_at: Option<Instant>,
    verify_wanted: bool,
    maintain_at: Option<Instant>,
    stopping: bool,
    origin_version: Option<String>,
    link_error: Option<String>,
    /// Whether the origin has refused the certificate for good, and was not reached with it since.
    is_revoked: bool,
    work_error: Option<String>,
    drift_error: Option<String>,
    /// Fault found in the live tree by maintenance. Cleared once the tree is whole.
    live_error: Option<String>,
}

impl Machine {
    /// Creates a machine without a target. It dials at the first event.
    pub fn new(trust: Trust, replica: ReplicaState, now: Instant) -> Self {
        Self {
            trust,
            link: Link::Down { redial_at: now },
            shown: None,
            hook: replica.hook.clone(),
            replica,
            hook_told: None,
            waits_logged: None,
            retried: None,
            shown_drift: None,
            redial: Backoff::new(Duration::from_millis(200), Duration::from_secs(15)),
            target: None,
            staged: None,
            job: None,
            cancelled: false,
            activating: false,
            progress: None,
            tell_at: None,
            retry: Backoff::new(Duration::from_secs(1), Duration::from_secs(60)),
            retry_operator: Backoff::new(Duration::from_secs(15), Duration::from_secs(300)),
            retry_at: None,
            verify_wanted: false,
            maintain_at: Some(now + MAINTAIN_DELAY),
            stopping: false,
            origin_version: None,
            link_error: None,
            is_revoked: false,
            work_error: None,
            drift_error: None,
            live_error: None,
        }
    }

    /// Takes jitter from `seed` instead of the machine's randomness.
    #[cfg(feature = "testing")]
    pub fn seeded(mut self, seed: u64) -> Self {
        let pauses = [&mut self.redial, &mut self.retry, &mut self.retry_operator];
        for (pause, own) in pauses.into_iter().zip(0..) {
            *pause = pause.clone().seeded(seed ^ own);
        }
        self
    }

    /// Applies one event and returns the resulting actions.
    pub fn apply(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let mut out = Vec::new();
        match event {
            Event::Message(message) => {
                if let Err(violation) = self.hear(message, now, &mut out) {
                    self.hang(error_chain(&violation), now, &mut out);
                }
            }
            Event::Lost(reason) => self.lost(reason, now),
            Event::Revoked(reason) => {
                self.is_revoked = true;
                self.lost(reason, now);
            }
            Event::Report(report) => self.reported(report, now, &mut out),
            Event::Hook(state) => self.hook_changed(state, now),
            Event::Verify => self.verify_wanted = true,
            Event::Renewed => self.renewed(now, &mut out),
            Event::Tick => {}
            Event::Stop => self.stopping = true,
        }
        self.keep_link(now, &mut out);
        self.schedule(now, &mut out);
        self.tell(now, &mut out);
        self.tell_hook(&mut out);
        out
    }

    /// Latest time for the next [`Event::Tick`].
    pub fn deadline(&self) -> Option<Instant> {
        let link = match &self.link {
            _ if self.stopping => None,
            Link::Down { redial_at } => Some(*redial_at),
            Link::Greeting { since } => Some(*since + GREETING_TIMEOUT),
            Link::Up(up) => Some(up.next_heartbeat.min(up.heard + up.interval * MISSED_HEARTBEATS)),
        };
        let retry = self.retry_at.filter(|_| !self.stopping);
        let may_maintain = self.job.is_none() && self.staged.is_none() && !self.stopping;
        let maintain = self.maintain_at.filter(|_| may_maintain);
        let tell = self.tell_at.filter(|_| self.is_connected());
        [link, retry, maintain, tell].into_iter().flatten().min()
    }

    pub fn replica(&self) -> &ReplicaState {
        &self.replica
    }

    /// Whether the origin refuses this node's certificate for good.
    pub fn is_revoked(&self) -> bool {
        self.is_revoked
    }

    /// Whether the origin has answered with a `Welcome`.
    pub fn is_connected(&self) -> bool {
        matches!(self.link, Link::Up(_))
    }

    /// Progress of the current update.
    pub fn progress(&self) -> Option<StageProgress> {
        self.progress.filter(|_| matches!(self.job, Some(Job::Update { .. })))
    }

    /// Version of the origin, taken from its last `Welcome`.
    pub fn origin_version(&self) -> Option<&str> {
        self.origin_version.as_deref()
    }

    /// The last fault that still lasts.
    pub fn error(&self) -> Option<String> {
        let hook = || self.hook_status()?.trouble();
        let local = || self.drift_error.clone().or_else(|| self.live_error.clone());
        let others = || local().or_else(|| self.link_error.clone());
        self.work_error.clone().or_else(hook).or_else(others)
    }

    /// Status of the on-activate hook; `None`: it was never due.
    pub fn hook_status(&self) -> Option<HookStatus> {
        HookStatus::from_report(&self.hook_report()?).ok()
    }

    fn hook_report(&self) -> Option<v1::HookReport> {
        let mut report = messages::hook_report(self.hook.as_ref()?, self.waits())?;
        if report.outcome() == v1::HookOutcome::Failed && self.retried == Some(report.attempt) {
            // The hook is about to run, so the old failure is no answer to the new announcement.
            report.set_outcome(v1::HookOutcome::Running);
        }
        Some(report)
    }

    /// State for the status.
    pub fn state(&self) -> AgentState {
        match (self.job, self.progress) {
            (Some(Job::Update { .. }), _) if self.activating => AgentState::Staged,
            (Some(Job::Update { .. }), Some(progress)) if progress.is_fetching() => AgentState::Fetching,
            (Some(Job::Update { .. }), _) => AgentState::Staging,
            (Some(Job::Activate), _) => AgentState::Staged,
            _ if self.work_error.is_some() => AgentState::Failed,
            _ if self.staged.is_some() => AgentState::Staged,
            _ if self.replica.live.is_some() && self.hook_due().is_some() => AgentState::Switched,
            _ if self.replica.live.is_some() => AgentState::Live,
            _ => AgentState::Empty,
        }
    }

    fn hear(
        &mut self,
        message: v1::OriginMessage,
        now: Instant,
        out: &mut Vec<Action>,
    ) -> Result<(), Violation> {
        let message = message.message.ok_or(Violation::Empty)?;
        if let Link::Up(up) = &mut self.link {
            up.heard = now;
        }
        match (message, self.is_connected()) {
            (FromOrigin::Welcome(welcome), false) => self.welcomed(&welcome, now, out),
            (FromOrigin::Announce(announce), true) => self.announced(announce, out),
            (FromOrigin::Activate(activate), true) => self.told_to_activate(&activate),
            (FromOrigin::Heartbeat(_), true) => Ok(()),
            _ => Err(Violation::Order),
        }
    }

    fn welcomed(
        &mut self,
        welcome: &v1::Welcome,
        now: Instant,
        out: &mut Vec<Action>,
    ) -> Result<(), Violation> {
        if !(PROTOCOL_MIN..=PROTOCOL_MAX).contains(&welcome.protocol) {
            return Err(Violation::Protocol { actual: welcome.protocol });
        }
        let chain = welcome.key_successions.iter().enumerate();
        let chain = chain
            .map(|(index, s)| KeySuccession::from_parts(&s.new_key, &s.signature, index))
            .collect::<Result<Vec<_>, _>>()?;
        let key = verify_successions(self.trust.tree_id, self.trust.signing_key, &chain)?;
        if key != self.trust.signing_key {
            self.trust.signing_key = key;
            out.push(Action::Pin(key));
        }
        let interval = match welcome.heartbeat_interval_ms {
            0 => HEARTBEAT_DEFAULT,
            ms => Duration::from_millis(ms.into()).clamp(HEARTBEAT_SHORTEST, HEARTBEAT_LONGEST),
        };
        let next_heartbeat = now + interval;
        self.link = Link::Up(Up { since: now, interval, next_heartbeat, sequence: 0, heard: now });
        self.link_error = None;
        self.is_revoked = false;
        // Damage that was found while the origin could not be reached.
        self.verify_wanted |= self.drift_error.is_some();
        let version = one_line(&welcome.origin_version, VERSION_MAX_BYTES);
        self.origin_version = Some(version).filter(|version| !version.is_empty());
        let generation = self.replica.live.as_ref().map_or(0, |live| live.number().get());
        tracing::info!(generation, "connected to the origin");
        self.tell_at = self.tell_at.map(|_| now);
        if self.replica.live.as_ref().map(|l| (l.number(), l.root_hash())) != self.shown {
            // It was activated after the hello was sent.
            self.say_activated(out);
        }
        if self.replica.drift != self.shown_drift {
            self.send(messages::drift(self.replica.drift.as_ref()), out);
        }
        Ok(())
    }

    fn announced(&mut self, announce: v1::Announce, out: &mut Vec<Action>) -> Result<(), Violation> {
        let message = announce.generation.ok_or(WireError::Missing { field: "generation" })?;
        let generation = match self.verified(&message) {
            Ok(generation) => generation,
            Err(error) => {
                // The number is not verified; it only names the generation in the report.
                let number = Generation::decode(&message.record).map_or(0, |g| g.number.get());
                self.failed(number, Failure::new(RetryClass::Operator, &error), out);
                return Ok(());
            }
        };
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
        self.target = Some(Target { generation, activate: announce.activate_when_staged, inline });
        self.retry_hook(out);
        self.say_staged(out);
        Ok(())
    }

    /// Runs a failed hook at once: whoever commits, or waits for the linked generation, may have fixed the
    /// cause.
    fn retry_hook(&mut self, out: &mut Vec<Action>) {
        let Some(hook) = &self.hook else { return };
        let run = hook.run.as_ref();
        let has_failed = hook.due.is_some() && run.is_some_and(|run| run.outcome == RunOutcome::Failed);
        let is_live = self.target.as_ref().is_some_and(|target| self.is_live(&target.generation));
        if (has_failed && is_live) || self.waits().is_some() {
            self.retried = run.map(|run| run.attempt);
            out.push(Action::RetryHook);
        }
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
    fn drop_outdated_target(&mut self, out: &mut Vec<Action>) {
        let Some(target) = &self.target else { return };
        if let Err(error) = target.generation.may_follow(self.replica.accepted.as_ref()) {
            let number = target.generation.number().get();
            self.target = None;
            self.failed(number, Failure::new(RetryClass::Operator, &error), out);
        }
    }

    /// Checks everything that can be checked before the file system is touched.
    fn verified(&self, message: &v1::SignedGeneration) -> Result<SignedGeneration, GenerationError> {
        let Trust { tree_id, signing_key, .. } = &self.trust;
        let generation =
            SignedGeneration::verify(&message.record, &message.signature, *tree_id, signing_key)?;
        generation.may_follow(self.replica.accepted.as_ref())?;
        Ok(generation)
    }

    fn told_to_activate(&mut self, activate: &v1::Activate) -> Result<(), Violation> {
        let root = root_hash(&activate.root, "root")?;
        match &mut self.target {
            Some(target)
                if target.generation.number().get() == activate.generation
                    && target.generation.root_hash() == root =>
            {
                target.activate = true;
            }
            // Refers to a generation that was superseded meanwhile.
            _ => tracing::debug!(
                generation = activate.generation,
                "asked to activate a generation that was not announced"
            ),
        }
        Ok(())
    }

    fn reported(&mut self, report: Report, now: Instant, out: &mut Vec<Action>) {
        match report {
            Report::Progress(progress) => self.progressed(progress, out),
            Report::Activating => self.activating = true,
            Report::Done(outcome, replica) => {
                let was_live = self.target_is_live();
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
                self.finished(job, outcome, cancelled, now, out);
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
                self.send(messages::staged(number, root), out);
            }
            (_, Outcome::Activated) => {
                self.staged = None;
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
            (_, Outcome::Verified(verified)) => {
                self.verify_wanted = false;
                self.maintain_at = Some(now + MAINTAIN_DELAY);
                self.live_error = None;
                self.drift_error = (!verified.is_whole()).then(|| {
                    let drifted = counted(verified.drifted, "path", "paths");
                    let reason =
                        verified.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
                    format!("{drifted} of the live tree drifted and could not be healed{reason}")
                });
                out.push(Action::Verified(Ok(verified)));
            }
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
            (_, Outcome::Staged) => {}
        }
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
    fn failed(&mut self, generation: u64, failure: Failure, out: &mut Vec<Action>) {
        tracing::warn!(generation, error = failure.reason, "update failed");
        let retry = failure.retry.unwrap_or(RetryClass::Retry).into();
        let reason = one_line(&failure.reason, REASON_MAX_BYTES);
        self.work_error = Some(failure.reason);
        self.send(ToOrigin::Failed(v1::Failed { generation, retry, reason }), out);
    }

    fn progressed(&mut self, progress: StageProgress, out: &mut Vec<Action>) {
        self.progress = Some(progress);
        if self.job == Some(Job::Verify) {
            out.push(Action::Verifying(progress));
        }
    }

    /// Reports the progress of an update that has taken long enough.
    fn tell(&mut self, now: Instant, out: &mut Vec<Action>) {
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

    fn lost(&mut self, reason: String, now: Instant) {
        match &self.link {
            Link::Down { .. } => return,
            Link::Up(up) if now >= up.since + SETTLED => self.redial.reset(),
            _ => {}
        }
        let was_up = self.is_connected();
        if was_up && !self.stopping {
            tracing::info!(
                reason,
                "disconnected from the origin: the live generation stays, and the agent reconnects"
            );
        } else if !self.stopping && self.link_error.as_ref() != Some(&reason) {
            tracing::warn!(error = reason, "not connected to the origin");
        }
        self.link_error = Some(reason);
        self.link = Link::Down { redial_at: now + self.redial.pause() };
    }

    fn hang(&mut self, reason: String, now: Instant, out: &mut Vec<Action>) {
        out.push(Action::Hang);
        self.lost(reason, now);
    }

    fn renewed(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.is_revoked = false;
        if !matches!(self.link, Link::Down { .. }) {
            tracing::info!("reconnecting to the origin with a new certificate");
            out.push(Action::Hang);
        }
        self.link = Link::Down { redial_at: now };
    }

    fn keep_link(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.stopping {
            return;
        }
        let mut heartbeat = None;
        let mut silence = None;
        match &mut self.link {
            Link::Down { redial_at } if now >= *redial_at => {
                self.hook_told = self.hook_report();
                let hook = self.hook_told.clone();
                out.push(Action::Dial(Box::new(messages::hello(&self.trust.boot_id, &self.replica, hook))));
                self.shown = self.replica.live.as_ref().map(|l| (l.number(), l.root_hash()));
                self.shown_drift = self.replica.drift.clone();
                self.link = Link::Greeting { since: now };
            }
            Link::Greeting { since } if now >= *since + GREETING_TIMEOUT => {
                silence = Some("the origin does not answer");
            }
            Link::Up(up) if now >= up.heard + up.interval * MISSED_HEARTBEATS => {
                silence = Some("the origin has fallen silent");
            }
            Link::Up(up) if now >= up.next_heartbeat => {
                up.next_heartbeat = now + up.interval;
                up.sequence += 1;
                heartbeat = Some(up.sequence);
            }
            _ => {}
        }
        if let Some(reason) = silence {
            self.hang(reason.to_owned(), now, out);
        }
        if let Some(sequence) = heartbeat {
            self.send(ToOrigin::Heartbeat(v1::Heartbeat { sequence }), out);
        }
    }

    /// Gives the worker its next command, or cancels the current one for something more important.
    fn schedule(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.retry_at = self.retry_at.filter(|at| now < *at);
        if let Some(job) = self.job {
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
        self.job = Some(job);
        self.progress = None;
        self.tell_at = matches!(job, Job::Update { .. }).then(|| now + PROGRESS_DELAY);
        out.push(Action::Start(Box::new(command)));
    }

    fn should_cancel(&self, job: Job) -> bool {
        match job {
            Job::Activate => false,
            Job::Update { .. } if self.activating => false,
            _ if self.stopping => true,
            Job::Update { number, root } => self.target.as_ref().is_some_and(|t| !t.is(number, root)),
            Job::Verify => self.update_is_due(),
            Job::Maintain => self.update_is_due() || self.verify_wanted,
        }
    }

    /// Whether an announced generation is not live, waits for no barrier or hook, and has not just failed.
    fn update_is_due(&self) -> bool {
        let Some(target) = &self.target else { return false };
        let waits = !target.activate && self.staged.is_some_and(|(number, root)| target.is(number, root));
        !self.is_live(&target.generation) && self.retry_at.is_none() && !waits && self.waits().is_none()
    }

    /// The generation that is switched but not live, because the hook has not succeeded for it.
    fn hook_due(&self) -> Option<u64> {
        self.hook.as_ref()?.due
    }

    /// The announced generation, when it may not even be staged before the hook succeeds. Trees that the web
    /// server may still serve are kept, and their number is limited.
    fn waits(&self) -> Option<u64> {
        let hook = self.hook.as_ref()?;
        let target = self.target.as_ref().filter(|target| !self.is_live(&target.generation))?;
        hook.due?;
        let succeeded = hook.succeeded.unwrap_or(0);
        let switched = self.replica.generations.iter().filter(|number| number.get() > succeeded).count();
        let most = if hook.failing { SWITCHED_MAX_FAILING } else { SWITCHED_MAX };
        (switched >= most).then(|| target.generation.number().get())
    }

    /// Takes the hook's state from its task or from the worker's report, whichever is newer.
    fn hook_changed(&mut self, state: HookState, now: Instant) {
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
    fn tell_hook(&mut self, out: &mut Vec<Action>) {
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

    fn next_command(&mut self, now: Instant) -> Option<(Job, Command)> {
        if self.update_is_due() {
            let target = self.target.as_mut()?;
            if self.staged.is_some_and(|(number, root)| target.is(number, root)) {
                return Some((Job::Activate, Command::Activate));
            }
            self.staged = None;
            let generation = Box::new(target.generation.clone());
            let job = Job::Update { number: generation.number(), root: generation.root_hash() };
            let inline = target.inline.take();
            return Some((job, Command::Update { generation, inline, activate: target.activate }));
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

    fn is_live(&self, generation: &SignedGeneration) -> bool {
        let live = self.replica.live.as_ref();
        live.is_some_and(|l| l.number() == generation.number() && l.root_hash() == generation.root_hash())
    }

    fn target_is_live(&self) -> bool {
        self.target.as_ref().is_some_and(|target| self.is_live(&target.generation))
    }

    fn say_activated(&mut self, out: &mut Vec<Action>) {
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

    /// Reports again, after a reconnect, that the tree is staged.
    fn say_staged(&self, out: &mut Vec<Action>) {
        if let (Some((number, root)), Some(target)) = (self.staged, &self.target)
            && target.is(number, root)
        {
            self.send(messages::staged(number, root), out);
        }
    }

    fn send(&self, message: ToOrigin, out: &mut Vec<Action>) {
        // A message lost here is covered by the next `Hello` and the answer to its announcement.
        if self.is_connected() {
            out.push(Action::Send(message));
        }
    }
}

#[cfg(test)]
mod tests;
