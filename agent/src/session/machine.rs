//! Decides what the session does next: events in, actions out. It does no IO, reads no clock and spawns no
//! task. [`super`] describes the states and transitions.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

mod check;
mod hook;
mod link;
#[cfg(feature = "testing")]
pub mod modelled;
mod orders;
mod schedule;
mod target;
mod trust;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use syncd_proto::v1;
use syncd_shared::text::error_chain;
use syncd_shared::{AgentState, Fork, GenerationNumber, NodeStanding, Progress, RootHash};

use crate::backoff::Backoff;
use crate::hooks::HookState;
use crate::identity::Trusted;
use crate::session::event::{Action, Event};
use crate::session::worker::{Decision, ReplicaState};
use crate::status::Drift;

use self::check::Checks;
use self::link::{Link, MISSED_HEARTBEATS};
use self::schedule::{Job, MAINTAIN_DELAY};
use self::target::Target;

/// Limit from the start of dialling to the origin's `Welcome`.
pub(crate) const GREETING_TIMEOUT: Duration = Duration::from_secs(20);

/// The keys that the agent trusts, and the boot that it runs in.
#[derive(Debug, Clone)]
pub struct Trust {
    /// Generations must be signed as its document says.
    pub keys: Trusted,
    /// Changes with every boot of the node.
    pub boot_id: String,
}

/// State of the session. See [`super`].
#[derive(Debug, Clone)]
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
    /// The staged generation last reported on this connection.
    said_staged: Option<(GenerationNumber, RootHash)>,
    checks: Checks,
    /// Decisions to be recorded, in order.
    decisions_due: VecDeque<Decision>,
    decide_at: Option<Instant>,
    /// Orders given on the node, to be recorded and answered in order.
    orders_due: VecDeque<Decision>,
    /// Orders of the node that the origin knows.
    standing_told: NodeStanding,
    /// Time of the next attempt to go back to a held generation, after a failure.
    return_at: Option<Instant>,
    job: Option<Job>,
    cancelled: bool,
    activating: bool,
    progress: Option<Progress>,
    /// Time at which the progress of the current update is reported next.
    tell_at: Option<Instant>,
    retry: Backoff,
    retry_operator: Backoff,
    retry_at: Option<Instant>,
    verify_wanted: bool,
    maintain_at: Option<Instant>,
    stopping: bool,
    origin_version: Option<String>,
    origin_collects: bool,
    link_error: Option<String>,
    /// The connected origin shows a trust document that this agent does not follow.
    trust_error: Option<String>,
    /// Whether the origin has refused the certificate for good, and was not reached with it since.
    is_revoked: bool,
    work_error: Option<String>,
    drift_error: Option<String>,
    /// The newest announcement has a known number with another root.
    fork: Option<Fork>,
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
            redial: Backoff::new(Duration::from_millis(200), Duration::from_secs(9)),
            target: None,
            staged: None,
            said_staged: None,
            checks: Checks::new(),
            decisions_due: VecDeque::new(),
            decide_at: None,
            orders_due: VecDeque::new(),
            standing_told: NodeStanding::default(),
            return_at: None,
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
            origin_collects: false,
            link_error: None,
            trust_error: None,
            is_revoked: false,
            work_error: None,
            drift_error: None,
            fork: None,
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
            Event::Checked(run, result) => self.checked_live(run, result, now),
            Event::Order(decision) => self.ordered_here(decision),
            Event::Verify => self.verify_wanted = true,
            Event::Renewed(keys) => {
                self.trust.keys = *keys;
                self.drop_superseded_target();
                self.renewed(now, &mut out);
            }
            Event::Tick => {}
            Event::Stop => self.stopping = true,
        }
        self.passed();
        self.note_trial();
        self.keep_link(now, &mut out);
        self.run_check(now, &mut out);
        self.schedule(now, &mut out);
        self.note_straggler();
        self.say_staged(&mut out);
        self.tell(now, &mut out);
        self.tell_hook(&mut out);
        self.tell_check(&mut out);
        self.tell_standing(&mut out);
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
        let pauses = [self.retry_at, self.return_at, self.decide_at, self.checks.retry_at];
        let retry = pauses.into_iter().flatten().min().filter(|_| !self.stopping);
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
    pub fn progress(&self) -> Option<Progress> {
        self.progress.filter(|_| matches!(self.job, Some(Job::Update { .. })))
    }

    /// Version of the origin, taken from its last `Welcome`.
    pub fn origin_version(&self) -> Option<&str> {
        self.origin_version.as_deref()
    }

    /// Whether the origin serves collected directories, taken from its last `Welcome`.
    pub fn origin_collects(&self) -> bool {
        self.origin_collects
    }

    /// Two roots under one number, as long as the newest announcement is one of them.
    pub fn fork(&self) -> Option<Fork> {
        self.fork
    }

    /// The last fault that still lasts.
    pub fn error(&self) -> Option<String> {
        let hook = || self.hook_status()?.trouble();
        let local = || self.drift_error.clone().or_else(|| self.live_error.clone());
        let others = || local().or_else(|| self.link_error.clone());
        // An origin that is not trusted explains why its generations are refused.
        self.trust_error.clone().or_else(|| self.work_error.clone()).or_else(hook).or_else(others)
    }

    /// State for the status.
    pub fn state(&self) -> AgentState {
        match (&self.job, self.progress) {
            (Some(Job::Update { .. }), _) if self.activating => AgentState::Staged,
            (Some(Job::Update { .. }), Some(progress)) if progress.is_fetching() => AgentState::Fetching,
            (Some(Job::Update { .. }), _) => AgentState::Staging,
            (Some(Job::Activate | Job::Return), _) => AgentState::Staged,
            _ if self.work_error.is_some() => AgentState::Failed,
            _ if self.staged.is_some() => AgentState::Staged,
            _ if self.replica.live.is_some() && self.hook_due().is_some() => AgentState::Switched,
            _ if self.replica.live.is_some() => AgentState::Live,
            _ => AgentState::Empty,
        }
    }
}

#[cfg(test)]
mod check_tests;
#[cfg(test)]
mod tests;
