//! The scheduler: one queue of events by virtual milliseconds, and everything that they affect.
//!
//! ```text
//! deeds ──┐                       ┌──> session machine ──actions──┐
//! ticks ──┼──> queue ──> handle ──┤    worker, until it waits     ├──> queue: messages, frames, ticks
//! wire  ──┘   (time, sequence)    └──> origin's conversations ────┘
//! ```
//!
//! The tokio runtime has one thread and a paused clock. The clock advances only when every task of the origin
//! waits, including threads of the blocking pool. The origin is therefore always idle before the next event.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::path::PathBuf;
use std::time::Duration;

use syncd_agent::clock::Clock;
use syncd_agent::session::event::Event as Heard;
use syncd_agent::session::machine::Machine;
use syncd_agent::session::worker::{Cancellation, Report};
use syncd_agent::source::Batches;
use syncd_origin::serve::ServeError;
use syncd_proto::v1;
use syncd_shared::diff::PartLimits;
use syncd_shared::identity::PeerIdentity;
use syncd_shared::{GenerationNumber, RootHash};
use syncd_tests::Seeded;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::Status;

use crate::node::Worker;
use crate::origin::Origin;
use crate::plant::Plant;
use crate::site::Site;

/// A broken rule, or a run that got stuck.
#[derive(Debug, thiserror::Error)]
#[error("at {at_ms} ms: {what}")]
pub struct Violation {
    pub at_ms: u64,
    pub what: String,
}

/// An event.
pub enum Event {
    Deed,
    Tick {
        node: usize,
        at_ms: u64,
    },
    Dialled {
        node: usize,
        connection: u64,
        hello: Box<v1::Hello>,
    },
    ToAgent {
        node: usize,
        connection: u64,
        message: Box<v1::OriginMessage>,
    },
    ToOrigin {
        node: usize,
        connection: u64,
        message: Box<v1::AgentMessage>,
    },
    Lost {
        node: usize,
        connection: u64,
    },
    Frame {
        node: usize,
        life: u64,
        transfer: u64,
        since: u64,
    },
    Report {
        node: usize,
        life: u64,
        report: Box<Report>,
    },
    /// The node's own check has ended.
    Checked {
        node: usize,
        life: u64,
        run: u64,
        root: RootHash,
        is_trial: bool,
    },
    Start {
        node: usize,
    },
    /// Continues an activation.
    Go {
        node: usize,
        life: u64,
    },
    OriginUp,
}

/// Control stream of one agent, from both ends.
pub struct Control {
    pub connection: u64,
    pub to_session: mpsc::Sender<Result<v1::AgentMessage, Status>>,
    pub from_session: mpsc::Receiver<v1::OriginMessage>,
    pub session: JoinHandle<Result<(), ServeError>>,
    /// Arrival of the last message in each direction. Later messages arrive later.
    pub up_ms: u64,
    pub down_ms: u64,
    pub ended: bool,
}

/// Fetch stream of one agent.
pub struct Transfer {
    pub root: RootHash,
    pub is_update: bool,
    pub batches: Option<Batches>,
    pub requests: Option<mpsc::UnboundedSender<Result<v1::FetchRequest, Status>>>,
    pub frames: mpsc::Receiver<v1::FetchFrame>,
    pub answer: JoinHandle<Result<(), ServeError>>,
    pub random: Seeded,
    /// The answer was falsified, so the amount still read depends on threads.
    pub tampered: bool,
    /// The end was falsified, so no more frames may arrive.
    pub end_lost: bool,
    pub next_item: u64,
}

/// A node: its directory, and its process.
pub struct Node {
    pub root: PathBuf,
    pub peer: PeerIdentity,
    pub clock: Clock,
    pub boots: u64,
    pub life: u64,
    pub running: Option<Running>,
    /// Number of the current connection.
    pub connections: u64,
    /// Time of the session machine's next tick.
    pub tick_ms: u64,
    pub control: Option<Control>,
    /// End of the partition. Nothing passes before; messages arrive afterwards.
    pub partitioned_until: u64,
    /// End of the process's stop.
    pub stalled_until: u64,
    pub said: Vec<v1::AgentMessage>,
    // Memory of the oracle.
    pub live: Option<(u64, RootHash)>,
    pub accepted: Option<GenerationNumber>,
    pub damaged: BTreeSet<u64>,
    /// The running command received an update unfalsified and to its end.
    pub intact_update: bool,
    /// A command is done, but the session has not been told.
    pub unreported: bool,
    /// Roots that passed the node's check after a switch.
    pub passed: BTreeSet<RootHash>,
    /// Roots that the node has refused.
    pub refused: BTreeSet<RootHash>,
}

/// A process on a node.
pub struct Running {
    pub machine: Machine,
    pub worker: Worker,
    pub command: Option<Cancellation>,
    pub transfers: BTreeMap<u64, Transfer>,
}

/// Frequency of each fault: one in this number; 0: never.
#[derive(Debug, Clone, Copy, Default)]
pub struct Temper {
    pub lies: u64,
    pub bad_frames: u64,
    pub latency_ms: u64,
}

/// Number of times each event was caused.
pub type Tally = BTreeMap<&'static str, u64>;

/// The whole simulation.
pub struct World {
    pub queue: BinaryHeap<Reverse<Due>>,
    pub sequence: u64,
    pub start: Instant,
    pub random: Seeded,
    pub temper: Temper,
    pub tree: PathBuf,
    pub data: PathBuf,
    pub backup: PathBuf,
    pub site: Site,
    pub origin: Option<Origin>,
    pub keys: syncd_agent::identity::Trusted,
    pub nodes: Vec<Node>,
    /// Half-open connections: the agent is gone, and the origin has not noticed.
    pub abandoned: Vec<Control>,
    pub heard: Vec<v1::OriginMessage>,
    pub other_frame: Option<v1::FetchFrame>,
    pub fingerprints: BTreeMap<RootHash, String>,
    pub sealed: BTreeSet<(u64, RootHash)>,
    pub restored: bool,
    /// Nodes have checks, and generations go by policies.
    pub rolls: bool,
    /// Roots on which every check fails.
    pub bad: BTreeSet<RootHash>,
    pub plant: Option<Plant>,
    pub trace: blake3::Hasher,
    pub log: Option<Vec<String>>,
    pub tally: Tally,
    pub deeds_left: u64,
    pub keep: usize,
    pub grace: Duration,
    /// Limits of a part, small enough that most updates have many parts.
    pub part: PartLimits,
}

/// Position of an event in the queue.
pub struct Due {
    at_ms: u64,
    sequence: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_ms, self.sequence).cmp(&(other.at_ms, other.sequence))
    }
}

impl World {
    pub fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    pub fn violation(&self, what: impl Into<String>) -> Violation {
        Violation { at_ms: self.now_ms(), what: what.into() }
    }

    /// Adds a line to the trace, which must be equal in two runs of one seed.
    pub fn note(&mut self, line: impl AsRef<str>) {
        let line = format!("{:>8} {}\n", self.now_ms(), line.as_ref());
        self.trace.update(line.as_bytes());
        if let Some(log) = &mut self.log {
            log.push(line);
        }
    }

    pub fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    pub fn after(&mut self, delay_ms: u64, event: Event) {
        self.at(self.now_ms() + delay_ms, event);
    }

    pub fn at(&mut self, at_ms: u64, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse(Due { at_ms, sequence: self.sequence, event }));
    }

    /// Time of one message on the wire.
    pub fn latency(&mut self) -> u64 {
        let slow = if self.random.one_in(30) { 40 } else { 1 };
        1 + self.random.below(self.temper.latency_ms) * slow
    }

    /// Handles events until `until_ms` or until `done` returns true.
    pub async fn run_until(&mut self, until_ms: u64, done: impl Fn(&Self) -> bool) -> Result<(), Violation> {
        while !done(self) && self.queue.peek().is_some_and(|Reverse(due)| due.at_ms <= until_ms) {
            let Some(Reverse(due)) = self.queue.pop() else { break };
            if let Some(resumed) = self.stalled(&due) {
                self.at(resumed, due.event);
                continue;
            }
            tokio::time::sleep_until(self.start + Duration::from_millis(due.at_ms)).await;
            self.handle(due.event).await?;
            self.settle().await?;
        }
        let until = self.start + Duration::from_millis(until_ms);
        if !done(self) && Instant::now() < until {
            tokio::time::sleep_until(until).await;
            self.settle().await?;
        }
        Ok(())
    }

    /// Time at which a stopped process sees this event; `None`: it is not stopped.
    fn stalled(&self, due: &Due) -> Option<u64> {
        let node = match &due.event {
            Event::Tick { node, .. } | Event::ToAgent { node, .. } | Event::Lost { node, .. } => *node,
            Event::Frame { node, .. } | Event::Report { node, .. } | Event::Go { node, .. } => *node,
            Event::Checked { node, .. } => *node,
            _ => return None,
        };
        let until = self.nodes[node].stalled_until;
        (until > self.now_ms().max(due.at_ms)).then_some(until)
    }

    async fn handle(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Deed => self.deed().await,
            // Only the last of several ticks counts.
            Event::Tick { node, at_ms } if self.nodes[node].tick_ms == at_ms => {
                self.nodes[node].tick_ms = 0;
                self.apply(node, Heard::Tick).await
            }
            Event::Tick { .. } => Ok(()),
            Event::Dialled { node, connection, hello } => {
                self.dialled(node, connection, *hello);
                Ok(())
            }
            Event::ToAgent { node, connection, message } => {
                if self.nodes[node].connections != connection || self.nodes[node].control.is_none() {
                    return Ok(());
                }
                self.note(format!("node {node} hears {}", crate::lies::name_of_origins(&message)));
                self.apply(node, Heard::Message(*message)).await
            }
            Event::ToOrigin { node, connection, message } => {
                let control = &self.nodes[node].control;
                let now = control.as_ref().filter(|c| c.connection == connection);
                let control = now.or_else(|| self.abandoned.iter().find(|c| c.connection == connection));
                if let Some(control) = control {
                    // A session that does not read was disconnected.
                    let _ = control.to_session.try_send(Ok(*message));
                }
                Ok(())
            }
            Event::Lost { node, connection } => {
                if self.nodes[node].connections != connection || self.nodes[node].running.is_none() {
                    return Ok(());
                }
                self.note(format!("node {node} loses connection {connection}"));
                self.nodes[node].control = None;
                self.apply(node, Heard::Lost("cut".into())).await
            }
            Event::Frame { node, life, transfer, since } => self.frame_due(node, life, transfer, since).await,
            Event::Checked { node, life, run, root, is_trial } if self.nodes[node].life == life => {
                self.checked(node, run, root, is_trial).await
            }
            Event::Checked { .. } => Ok(()),
            Event::Report { node, life, report } => self.reported(node, life, *report).await,
            Event::Go { node, life } if self.nodes[node].life == life => {
                self.resume(node);
                self.drive(node).await
            }
            Event::Go { .. } => Ok(()),
            Event::Start { node } => self.start_node(node).await,
            Event::OriginUp => self.start_origin(),
        }
    }

    /// Lets the origin become idle, and puts its messages on the wire.
    pub async fn settle(&mut self) -> Result<(), Violation> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        for node in 0..self.nodes.len() {
            self.collect(node);
        }
        self.abandoned.retain(|control| !control.session.is_finished());
        self.observe().await?;
        self.withdraw()
    }

    fn collect(&mut self, node: usize) {
        let Some(mut control) = self.nodes[node].control.take() else { return };
        let mut messages = Vec::new();
        while let Ok(message) = control.from_session.try_recv() {
            messages.push(message);
        }
        for message in messages {
            for message in self.told(message) {
                let at = self.arrival(node, control.down_ms);
                control.down_ms = at;
                let connection = control.connection;
                self.at(at, Event::ToAgent { node, connection, message: Box::new(message) });
            }
        }
        if control.session.is_finished() && !control.ended {
            control.ended = true;
            let at = self.arrival(node, control.down_ms);
            self.at(at, Event::Lost { node, connection: control.connection });
        }
        self.nodes[node].control = Some(control);
    }

    /// Arrival time of a message sent now: in order, and not during a partition.
    pub fn arrival(&mut self, node: usize, not_before: u64) -> u64 {
        let sent = self.now_ms().max(self.nodes[node].partitioned_until);
        (sent + self.latency()).max(not_before + 1)
    }

    /// Messages that reach an agent in place of this one.
    fn told(&mut self, message: v1::OriginMessage) -> Vec<v1::OriginMessage> {
        if matches!(message.message, Some(v1::origin_message::Message::Announce(_))) {
            self.heard.push(message.clone());
        }
        if self.temper.lies == 0 || !self.random.one_in(self.temper.lies) {
            return vec![message];
        }
        self.count("lies to agents");
        crate::lies::to_agent(&message, &self.heard, &mut self.random)
    }
}
