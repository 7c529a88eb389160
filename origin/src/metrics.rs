//! Counters and histograms of this process, for `/metrics` ([`crate::http::metrics`]).
//!
//! There is one set for the process, so that a part that counts needs no handle. Gauges are not kept here:
//! they are read from the state when somebody asks.

use std::sync::LazyLock;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use syncd_runtime::metrics::durations;

use crate::audit::ACTIONS;
use crate::fleet::rollout::Phase;

/// One label and its value.
type Label = [(&'static str, &'static str); 1];

/// See the module.
pub struct Metrics {
    scan: Histogram,
    seal: Histogram,
    encode: Histogram,
    live: Histogram,
    sent: Family<Label, Counter>,
    refused: Family<Label, Counter>,
    rollouts: Family<Label, Counter>,
    forks: Counter,
    polls: Counter,
    audit: Family<[(&'static str, String); 1], Counter>,
}

/// The set of this process.
pub fn metrics() -> &'static Metrics {
    static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);
    &METRICS
}

/// Bytes that go to agents.
#[derive(Debug, Clone, Copy)]
pub enum Sent {
    /// An update small enough to come with its announcement.
    Announced,
    Update,
    /// Objects that an agent asked for one by one, as in a first sync.
    Objects,
}

impl Sent {
    const ALL: [Self; 3] = [Self::Announced, Self::Update, Self::Objects];

    fn label(self) -> Label {
        let kind = match self {
            Self::Announced => "announced",
            Self::Update => "update",
            Self::Objects => "objects",
        };
        [("kind", kind)]
    }
}

/// Peers that were turned away.
#[derive(Debug, Clone, Copy)]
pub enum Refused {
    Connection,
    Handshake,
    Join,
}

impl Refused {
    const ALL: [Self; 3] = [Self::Connection, Self::Handshake, Self::Join];

    fn label(self) -> Label {
        let reason = match self {
            Self::Connection => "connection",
            Self::Handshake => "handshake",
            Self::Join => "join",
        };
        [("reason", reason)]
    }
}

impl Metrics {
    fn new() -> Self {
        let metrics = Self {
            scan: durations(),
            seal: durations(),
            encode: durations(),
            live: durations(),
            sent: Family::default(),
            refused: Family::default(),
            rollouts: Family::default(),
            forks: Counter::default(),
            polls: Counter::default(),
            audit: Family::default(),
        };
        // A series that begins at 0 shows its first event as an increase.
        Sent::ALL.iter().for_each(|kind| drop(metrics.sent.get_or_create(&kind.label())));
        Refused::ALL.iter().for_each(|reason| drop(metrics.refused.get_or_create(&reason.label())));
        let ends = Phase::ALL.into_iter().filter(|phase| !phase.is_running());
        ends.for_each(|end| drop(metrics.rollouts.get_or_create(&[("result", end.name())])));
        let actions = ACTIONS.map(|action| [("action", action.to_owned())]);
        actions.iter().for_each(|action| drop(metrics.audit.get_or_create(action)));
        metrics
    }

    pub fn scanned(&self, took: Duration) {
        self.scan.observe(took.as_secs_f64());
    }

    pub fn sealed(&self, took: Duration) {
        self.seal.observe(took.as_secs_f64());
    }

    pub fn encoded(&self, took: Duration) {
        self.encode.observe(took.as_secs_f64());
    }

    /// An agent has a generation live, this long after it was told of it.
    pub fn live(&self, took: Duration) {
        self.live.observe(took.as_secs_f64());
    }

    pub fn sent(&self, kind: Sent, bytes: usize) {
        self.sent.get_or_create(&kind.label()).inc_by(bytes as u64);
    }

    /// Bytes sent since the start, of all kinds.
    pub fn sent_bytes(&self) -> u64 {
        Sent::ALL.iter().map(|kind| self.sent.get_or_create(&kind.label()).get()).sum()
    }

    pub fn refused(&self, reason: Refused) {
        self.refused.get_or_create(&reason.label()).inc();
    }

    /// A rollout ended in this phase.
    pub fn rollout_ended(&self, phase: Phase) {
        self.rollouts.get_or_create(&[("result", phase.name())]).inc();
    }

    /// An agent has shown another root under one number.
    pub fn forked(&self) {
        self.forks.inc();
    }

    /// A request that changes something, or a join, was recorded.
    pub fn audited(&self, action: String) {
        self.audit.get_or_create(&[("action", action)]).inc();
    }

    /// A polled subtree was walked.
    pub fn polled(&self) {
        self.polls.inc();
    }

    /// Adds everything to the registry of one answer.
    pub fn register(&self, registry: &mut Registry) {
        let stages = [
            ("commit_scan", "Time of reading the changes of the tree", &self.scan),
            ("commit_seal", "Time of making a generation durable", &self.seal),
            ("update_encode", "Time of encoding an update between two generations", &self.encode),
            (
                "announce_to_live",
                "Time from telling an agent of a generation until it is live there",
                &self.live,
            ),
        ];
        for (name, help, histogram) in stages {
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        }
        let help = "Bytes of updates and content sent to agents, before TLS";
        registry.register_with_unit("sent", help, Unit::Bytes, self.sent.clone());
        registry.register("refused", "Peers that were turned away", self.refused.clone());
        registry.register("rollouts", "Rollouts that have ended, by result", self.rollouts.clone());
        let help = "Agents that have shown another root than this origin's under one number";
        registry.register("forks", help, self.forks.clone());
        registry.register("polls", "Walks of subtrees that send no events", self.polls.clone());
        let help = "Requests that change something, and joins, as `syncd-origin audit` lists them";
        registry.register("audit", help, self.audit.clone());
    }
}
