//! The control stream of one agent.
//!
//! ```text
//!   hello ──> welcome ──> [ new assignment ──> plan the update, 2 s at most ──> announce ]*
//!                         [ the same generation, to be activated now ──> activate ]*
//!                         [ heartbeat ──> heartbeat ]*
//!                         [ progress, staged, activated, hook, failed ──> fleet ]*
//! ```
//!
//! Only the newest value of each kind waits to be sent. An agent that does not read therefore costs nothing,
//! and receives the newest generation when it does.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use syncd_proto::v1;
use syncd_proto::v1::agent_message::Message as FromAgent;
use syncd_proto::v1::origin_message::Message as ToAgent;
use syncd_shared::generation::GenerationError;
use syncd_shared::identity::{PeerIdentity, RootFingerprint, SignedTrust};
use syncd_shared::limits::{HELD_GENERATIONS_MAX, REASON_MAX_BYTES, REFUSED_GENERATIONS_MAX};
use syncd_shared::text::one_line;
use syncd_shared::wire::root_hash;
use syncd_shared::{
    CheckStatus, Generation, GenerationNumber, HookStatus, NodeStanding, OrderedStanding, Progress, RootHash,
    SignedGeneration, Totals,
};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::StreamExt;

use super::error::ServeError;
use super::replication::invalid;
use super::{FromPeer, HEARTBEAT_INTERVAL, PROTOCOL, Services, features, takes_updates};
use crate::fleet::rollout::Assignment;
use crate::fleet::{AgentDrift, AgentProgress, AgentState, Attachment, EndReason, Greeting, Report};
use crate::metrics::{Sent, metrics};
use crate::plan::Planner;
use crate::publish::Locations;

/// Time limit for the agent's hello.
const HELLO: Duration = Duration::from_secs(10);
/// A stream without messages for this long is dead.
const SILENCE: Duration = HEARTBEAT_INTERVAL.saturating_mul(3);
/// Longest time that an announcement waits for an update to carry.
const INLINE_WAIT: Duration = Duration::from_secs(2);
/// Other trees of an agent that its session remembers.
const HELD_KNOWN_MAX: usize = 4;
/// Cap of the updates without a spare that an agent may report.
const SPARE_MISSES_MAX: u64 = u32::MAX as u64;
/// Longest boot ID and agent version, in bytes.
const SHORT_TEXT_MAX_BYTES: usize = 256;
const FINGERPRINT_BYTES: usize = 32;

/// The parts of an announcement beside the generation: an update file, or places that have the bytes.
type Plan = Pin<Box<dyn Future<Output = (Bytes, Vec<String>)> + Send>>;

/// Runs a control stream to its end. `Ok` if the agent closed it. Logs both ends with the agent's name.
pub async fn run(
    services: &Services,
    peer: PeerIdentity,
    incoming: impl FromPeer<v1::AgentMessage>,
    sender: &mpsc::Sender<v1::OriginMessage>,
) -> Result<(), ServeError> {
    let name = peer.name.clone();
    let mut is_attached = false;
    let result = converse(services, peer, incoming, sender, &mut is_attached).await;
    match &result {
        // All streams end at once then, and the log already says that the origin is stopping.
        Err(ServeError::Stopping) => {}
        Err(error) if is_attached => {
            tracing::info!(agent = %name, reason = %crate::error_chain(error), "agent disconnected");
        }
        Err(error) => tracing::info!(agent = %name, reason = %crate::error_chain(error), "agent turned away"),
        Ok(()) => tracing::info!(agent = %name, reason = "it closed the connection", "agent disconnected"),
    }
    result
}

async fn converse(
    services: &Services,
    peer: PeerIdentity,
    mut incoming: impl FromPeer<v1::AgentMessage>,
    sender: &mpsc::Sender<v1::OriginMessage>,
    is_attached: &mut bool,
) -> Result<(), ServeError> {
    let silent = ServeError::Silent { what: "hello", seconds: HELLO.as_secs() };
    let first = tokio::time::timeout(HELLO, receive(&mut incoming)).await.map_err(|_| silent)??;
    let Some(FromAgent::Hello(hello)) = first else {
        return Err(ServeError::OutOfOrder { what: "a message before hello" });
    };
    let takes_updates = takes_updates(&hello.features);
    let (known, newest) = (hello.trust, services.keys.trust().number());
    let held = held_roots(&hello.held);
    let mut greeting = greet(|record, signature| services.fleet.verify(record, signature), hello)?;
    if let Some(hook) = &mut greeting.hook {
        hook.waits = announced_only(hook.waits, services.fleet.announced());
    }
    if known > newest {
        greeting.notes.push(format!(
            "it knows trust document {known}, newer than {newest} here: this origin was restored from an older copy, \
             restore its newest keys, or replace them with `syncd-origin key rotate`"
        ));
    }
    for shown in [&greeting.accepted, &greeting.live].into_iter().flatten() {
        greeting.fork = greeting.fork.or(services.fleet.fork_with(shown).await);
    }
    let live = greeting.live.as_ref().map(SignedGeneration::root_hash);
    let reported = greeting.live.as_ref().map(SignedGeneration::number);
    let accepted = greeting.accepted.as_ref().map(SignedGeneration::number).or(reported);
    // Before the welcome is made, so that no document is missed.
    let trust = services.keys.trust_changes();
    let (holder, keys) = (peer.clone(), services.keys.clone());
    let invalid = Box::pin(async move { invalid(&holder, &keys).await });
    let pinned = greeting.standing.pinned.map(|pin| pin.generation);
    let mut attachment = services.fleet.attach(peer, greeting).await?;
    let standing = *attachment.standing.borrow_and_update();
    *is_attached = true;
    services.keys.note_number(known);
    let mut session = Session {
        planner: services.planner.clone(),
        locations: services.locations.clone(),
        live,
        held,
        reported,
        goes_back_to: pinned,
        staged: None,
        most: Totals::default(),
        takes_updates,
        accepted,
        outbox: Outbox { welcome: Some(welcome(services, standing)), ..Outbox::default() },
        plan: None,
        assigned: None,
        last_heard: Instant::now(),
        invalid,
        trust,
        attachment,
    };
    let result = session.run(&mut incoming, sender).await;
    session.attachment.detach().await;
    result
}

async fn receive(incoming: &mut impl FromPeer<v1::AgentMessage>) -> Result<Option<FromAgent>, ServeError> {
    match incoming.next().await {
        Some(Ok(message)) => message.message.map(Some).ok_or(ServeError::Missing { field: "message" }),
        None => Ok(None),
        Some(Err(status)) => Err(ServeError::received(status)),
    }
}

/// Roots of the newest held generations, the newest last. Signatures are not checked: a wrong root costs only
/// the agent that named it, and that a request.
fn held_roots(shown: &[v1::SignedGeneration]) -> Vec<RootHash> {
    let newest = shown.iter().take(HELD_KNOWN_MAX).rev();
    newest.filter_map(|held| Some(Generation::decode(&held.record).ok()?.root_hash())).collect()
}

fn limit(what: &'static str, actual: usize, limit: usize) -> Result<(), ServeError> {
    if actual > limit { Err(ServeError::Limit { what, actual, limit }) } else { Ok(()) }
}

/// Checks a hello. A generation not signed by this origin is not an error: the agent may have followed an
/// origin whose keys were lost, and a person must see that.
pub(super) fn greet(
    verify: impl Fn(&[u8], &[u8]) -> Result<SignedGeneration, GenerationError>,
    hello: v1::Hello,
) -> Result<Greeting, ServeError> {
    let (from, to) = (hello.protocol_min, hello.protocol_max);
    if !(from..=to).contains(&PROTOCOL) {
        return Err(ServeError::Protocol { ours: PROTOCOL, from, to });
    }
    limit("generations held", hello.held.len(), HELD_GENERATIONS_MAX)?;
    limit("generations refused", hello.refused.len(), REFUSED_GENERATIONS_MAX)?;
    let refused = hello.refused.iter().map(|refused| root_hash(&refused.root, "refused root"));
    let refused = refused.collect::<Result<Vec<_>, _>>()?;
    limit("boot id", hello.boot_id.len(), SHORT_TEXT_MAX_BYTES)?;
    limit("root key", hello.root_key.len(), FINGERPRINT_BYTES)?;
    let root_key = <[u8; FINGERPRINT_BYTES]>::try_from(&hello.root_key[..]).ok();
    let root_key = root_key.map(RootFingerprint::from_bytes);
    limit("agent version", hello.agent_version.len(), SHORT_TEXT_MAX_BYTES)?;
    let mut notes = Vec::new();
    let mut check = |shown: Option<v1::SignedGeneration>, what: &str| {
        let shown = shown?;
        match verify(&shown.record, &shown.signature) {
            Ok(generation) => Some(generation),
            Err(error) => {
                notes.push(format!("its {what} generation is not ours: {error}"));
                None
            }
        }
    };
    let live = check(hello.live, "live");
    let accepted = check(hello.accepted, "accepted");
    let hook = hello.hook.as_ref().map(|report| hook_of(report, live.as_ref().map(SignedGeneration::number)));
    // The hook of a foreign generation is also unknown.
    let hook = if live.is_some() { hook.transpose()? } else { None };
    // Untrusted text, which logs and `status` show.
    let boot_id = one_line(&hello.boot_id, SHORT_TEXT_MAX_BYTES);
    let version = one_line(&hello.agent_version, SHORT_TEXT_MAX_BYTES);
    let drift = hello.drift.map(drift_of).transpose()?.flatten();
    let check = hello.check.as_ref().map(CheckStatus::from_report).transpose()?;
    let standing = hello.standing.as_ref().map(NodeStanding::from).unwrap_or_default();
    let has_check = hello.has_check;
    Ok(Greeting {
        boot_id,
        version,
        live,
        accepted,
        refused,
        hook,
        check,
        has_check,
        standing,
        drift,
        fork: None,
        root_key,
        notes,
    })
}

/// Checks a hook report against `linked`, the reported linked generation. After ROOT was restored from a
/// backup, it may name a later success, which is dropped: the hook then counts as never having succeeded.
fn hook_of(report: &v1::HookReport, linked: Option<GenerationNumber>) -> Result<HookStatus, ServeError> {
    let mut hook = HookStatus::from_report(report)?;
    let generation =
        GenerationNumber::new(hook.generation).ok_or(ServeError::Missing { field: "generation" })?;
    if linked.is_none_or(|linked| generation > linked) {
        return Err(ServeError::Unshown { generation });
    }
    hook.succeeded = announced_only(hook.succeeded, linked);
    Ok(hook)
}

/// Drops a number that was not announced.
fn announced_only(number: Option<u64>, announced: Option<GenerationNumber>) -> Option<u64> {
    number.filter(|number| announced.is_some_and(|announced| *number <= announced.get()))
}

fn welcome(services: &Services, standing: OrderedStanding) -> v1::Welcome {
    v1::Welcome {
        protocol: PROTOCOL,
        features: features(services.collected.is_some()),
        heartbeat_interval_ms: HEARTBEAT_INTERVAL.as_millis() as u32,
        trust_document: Bytes::copy_from_slice(services.keys.trust().bytes()),
        origin_version: env!("CARGO_PKG_VERSION").to_owned(),
        standing: Some(standing.into()),
    }
}

/// The newest unsent value of each kind.
#[derive(Default)]
struct Outbox {
    welcome: Option<v1::Welcome>,
    trust: Option<Bytes>,
    heartbeat: Option<u64>,
    standing: Option<v1::OrderedStanding>,
    announce: Option<v1::Announce>,
    activate: Option<v1::Activate>,
}

impl Outbox {
    fn is_empty(&self) -> bool {
        let Self { welcome, trust, heartbeat, standing, announce, activate } = self;
        let has_news = standing.is_some() || announce.is_some() || activate.is_some();
        welcome.is_none() && trust.is_none() && heartbeat.is_none() && !has_news
    }

    fn take(&mut self) -> Option<v1::OriginMessage> {
        let welcome = self.welcome.take().map(ToAgent::Welcome);
        let heartbeat =
            || self.heartbeat.take().map(|sequence| ToAgent::Heartbeat(v1::Heartbeat { sequence }));
        let standing = || self.standing.take().map(ToAgent::Standing);
        let announce = || self.announce.take().map(ToAgent::Announce);
        let activate = || self.activate.take().map(ToAgent::Activate);
        let trust = || self.trust.take().map(ToAgent::TrustDocument);
        let message = welcome.or_else(trust).or_else(heartbeat).or_else(standing);
        let message = message.or_else(announce).or_else(activate);
        message.map(|message| v1::OriginMessage { message: Some(message) })
    }
}

struct Session {
    planner: Planner,
    /// Places that agents ask for larger updates, before they ask the origin.
    locations: Option<Locations>,
    attachment: Attachment,
    /// The newest trust document. One that is taken later is sent before what it signs.
    trust: watch::Receiver<Arc<SignedTrust>>,
    /// Root of the agent's live tree, as last reported.
    live: Option<RootHash>,
    /// Roots of other trees that the agent probably has, the newest last. It named them in its hello, or left
    /// them since.
    held: Vec<RootHash>,
    /// Number of the live generation, as last reported.
    reported: Option<GenerationNumber>,
    /// Lower number that the agent may report next: it returned there, or was pinned there.
    goes_back_to: Option<u64>,
    /// Root of the tree that the agent reported as staged.
    staged: Option<RootHash>,
    /// Bounds on the totals of all generations announced here.
    most: Totals,
    /// Whether announcements to this agent may carry updates.
    takes_updates: bool,
    /// Highest number accepted by the agent, as last reported.
    accepted: Option<GenerationNumber>,
    outbox: Outbox,
    /// The next announcement, with the update being planned for it.
    plan: Option<(Assignment, Plan)>,
    /// The assignment that the agent was told, or is about to be told.
    assigned: Option<Assignment>,
    last_heard: Instant,
    /// Completes when the agent's certificate becomes invalid.
    invalid: Pin<Box<dyn Future<Output = ServeError> + Send>>,
}

impl Session {
    async fn run(
        &mut self,
        incoming: &mut impl FromPeer<v1::AgentMessage>,
        sender: &mpsc::Sender<v1::OriginMessage>,
    ) -> Result<(), ServeError> {
        self.attachment.assignment.mark_changed();
        loop {
            tokio::select! {
                reason = &mut self.attachment.ended => {
                    return Err(match reason {
                        Ok(EndReason::Revoked) => ServeError::Revoked,
                        Ok(EndReason::Replaced) => ServeError::Replaced,
                        Err(_) => ServeError::Stopping,
                    });
                }
                error = &mut self.invalid => return Err(error),
                message = receive(incoming) => {
                    let Some(message) = message? else { return Ok(()) };
                    self.last_heard = Instant::now();
                    self.heard(message).await?;
                }
                Ok(()) = self.trust.changed() => {
                    let trust = self.trust.borrow_and_update().clone();
                    self.outbox.trust = Some(Bytes::copy_from_slice(trust.bytes()));
                }
                Ok(()) = self.attachment.standing.changed() => {
                    let standing = *self.attachment.standing.borrow_and_update();
                    self.outbox.standing = Some(standing.into());
                }
                Ok(()) = self.attachment.assignment.changed() => self.reassigned(),
                update = planned(&mut self.plan) => self.announce(update),
                room = sender.reserve(), if !self.outbox.is_empty() => {
                    let Ok(room) = room else { return Ok(()) };
                    if let Some(message) = self.outbox.take() {
                        room.send(message);
                    }
                }
                () = tokio::time::sleep(SILENCE.saturating_sub(self.last_heard.elapsed())) => {
                    return Err(ServeError::Silent { what: "a heartbeat", seconds: SILENCE.as_secs() });
                }
            }
        }
    }

    /// Handles a new assignment: unsent data of older ones is dropped.
    fn reassigned(&mut self) {
        let assignment = self.attachment.assignment.borrow_and_update().clone();
        let before = std::mem::replace(&mut self.assigned, assignment.clone());
        if let (Some(before), Some(assignment)) = (before, &assignment)
            && !before.activate
            && assignment.activate
            && before.generation == assignment.generation
            && (self.staged == Some(assignment.generation.root_hash()) || !assignment.flipped)
        {
            return self.activate(assignment.clone());
        }
        self.outbox.announce = None;
        self.outbox.activate = None;
        self.plan = None;
        // It stays where it is.
        let Some(assignment) = assignment else { return };
        let generation = &assignment.generation;
        if self.accepted.is_some_and(|accepted| accepted > generation.number()) {
            // The agent would refuse it. The committer was warned.
            return;
        }
        let to = generation.root_hash();
        // Nothing is encoded for a tree that the agent has. If it can't use the tree, it asks for the update.
        let is_there = self.live == Some(to) || self.held.contains(&to);
        let from = self.live.filter(|_| !is_there && self.takes_updates);
        let (planner, locations) = (self.planner.clone(), self.locations.clone());
        let number = generation.number();
        let plan = async move {
            let update = match from {
                Some(from) => tokio::time::timeout(INLINE_WAIT, planner.update(from, to)).await.ok(),
                None => None,
            };
            let file = update.and_then(Result::ok).and_then(|update| update.inline_file());
            match (file, locations) {
                (None, Some(locations)) if !is_there => (Bytes::new(), locations.of(number).await),
                (file, _) => (file.unwrap_or_default(), Vec::new()),
            }
        };
        self.plan = Some((assignment, Box::pin(plan)));
    }

    /// The generation that the agent was told to stage may go live. An announcement that is not sent yet is
    /// changed instead.
    fn activate(&mut self, assignment: Assignment) {
        if let Some((planned, _)) = &mut self.plan {
            *planned = assignment;
        } else if let Some(announce) = &mut self.outbox.announce {
            announce.activate_when_staged = true;
            announce.flipped = assignment.flipped;
        } else {
            let (generation, root) =
                (assignment.generation.number().get(), assignment.generation.root_hash());
            let root = Bytes::copy_from_slice(root.as_bytes());
            let flipped = assignment.flipped;
            self.outbox.activate = Some(v1::Activate { generation, root, flipped });
        }
    }

    fn announce(&mut self, planned: (Assignment, (Bytes, Vec<String>))) {
        let (Assignment { generation, activate, flipped }, (file, locations)) = planned;
        metrics().sent(Sent::Announced, file.len());
        let generation = v1::SignedGeneration {
            record: Bytes::copy_from_slice(generation.record()),
            signature: Bytes::copy_from_slice(generation.signature()),
        };
        self.outbox.announce = Some(v1::Announce {
            generation: Some(generation),
            activate_when_staged: activate,
            update_file: file,
            locations,
            flipped,
        });
    }

    /// Checks that a reported generation was announced here. A higher number was announced by an origin from
    /// whose backup this one was restored. Only its signed record counts, which the next hello shows.
    fn known_here(&self, generation: GenerationNumber, root: RootHash) -> Result<(), ServeError> {
        let announced = self.attachment.newest.borrow();
        let is_known = announced.as_ref().map(|newest| &newest.generation).is_some_and(|ours| {
            generation < ours.number() || generation == ours.number() && root == ours.root_hash()
        });
        if is_known { Ok(()) } else { Err(ServeError::Unshown { generation }) }
    }

    fn newest(&self) -> Option<GenerationNumber> {
        self.attachment.newest.borrow().as_ref().map(|newest| newest.generation.number())
    }

    /// Checks reported progress and caps it at the announced totals. `None` if the generation was never
    /// announced here, which happens after this origin was restored from a backup.
    fn progress(&mut self, said: AgentProgress) -> Option<AgentProgress> {
        let announced = self.attachment.newest.borrow().as_ref().map(|newest| newest.generation.clone())?;
        // A superseded generation that is still in progress can be larger.
        self.most = self.most.covering(announced.generation().root.totals);
        let is_known = (1..=announced.number().get()).contains(&said.generation);
        is_known.then_some(AgentProgress { done: said.done.within(&self.most), ..said })
    }

    fn on_its_way(state: AgentState, progress: Option<AgentProgress>) -> Report {
        progress.map_or(Report::Heartbeat, |progress| Report::Progress { state, progress })
    }

    fn staged(&mut self, staged: &v1::Staged) -> Result<Report, ServeError> {
        let root = root_hash(&staged.root, "root")?;
        let generation = GenerationNumber::new(staged.generation);
        match generation.filter(|generation| self.known_here(*generation, root).is_ok()) {
            Some(generation) => {
                self.staged = Some(root);
                Ok(Report::Staged { generation, root })
            }
            // Announced by an origin from whose backup this one was restored.
            None => Ok(Report::Heartbeat),
        }
    }

    fn activated(&mut self, activated: &v1::Activated) -> Result<Report, ServeError> {
        let generation =
            GenerationNumber::new(activated.generation).ok_or(ServeError::Missing { field: "generation" })?;
        let root = root_hash(&activated.root, "root")?;
        self.known_here(generation, root)?;
        if let Some(before) = self.reported.filter(|before| generation < *before)
            && self.goes_back_to != Some(generation.get())
        {
            return Err(ServeError::Backwards { generation, before });
        }
        let left = self.live.replace(root).filter(|left| *left != root);
        self.held.retain(|held| *held != root && Some(*held) != left);
        self.held.extend(left);
        self.held.drain(..self.held.len().saturating_sub(HELD_KNOWN_MAX));
        (self.reported, self.staged) = (Some(generation), None);
        self.accepted = self.accepted.max(Some(generation));
        let spare_misses = activated.spare_misses.min(SPARE_MISSES_MAX);
        Ok(Report::Activated { generation, root, spare_misses, hook_due: activated.hook_due })
    }

    async fn heard(&mut self, message: FromAgent) -> Result<(), ServeError> {
        let report = match message {
            FromAgent::Hello(_) => return Err(ServeError::OutOfOrder { what: "a second hello" }),
            FromAgent::Heartbeat(heartbeat) => {
                self.outbox.heartbeat = Some(heartbeat.sequence);
                Report::Heartbeat
            }
            FromAgent::Progress(p) => {
                let done = Progress {
                    files_done: p.files_done,
                    files_total: p.files_total,
                    bytes_done: p.bytes_done,
                    bytes_total: p.bytes_total,
                };
                let progress = AgentProgress { generation: p.generation, done };
                Self::on_its_way(AgentState::from_message(p.state)?, self.progress(progress))
            }
            FromAgent::Staged(staged) => self.staged(&staged)?,
            FromAgent::Activated(activated) => self.activated(&activated)?,
            // The linked generation is foreign.
            FromAgent::Hook(_) if self.reported.is_none() => Report::Heartbeat,
            FromAgent::Hook(report) => {
                let mut hook = hook_of(&report, self.reported)?;
                hook.waits = announced_only(hook.waits, self.newest());
                Report::Hook(hook)
            }
            FromAgent::Drift(drift) => Report::Drift(drift_of(drift)?),
            FromAgent::Check(report) => {
                let check = CheckStatus::from_report(&report)?;
                self.goes_back_to = check.returned_to.or(self.goes_back_to);
                Report::Check(check)
            }
            FromAgent::Standing(standing) => {
                let standing = NodeStanding::from(&standing);
                self.goes_back_to = standing.pinned.map(|pin| pin.generation).or(self.goes_back_to);
                Report::Standing(standing)
            }
            FromAgent::Failed(f) => {
                limit("reason", f.reason.len(), REASON_MAX_BYTES)?;
                let needs_operator = match v1::RetryClass::try_from(f.retry) {
                    Ok(v1::RetryClass::Operator) => true,
                    Ok(v1::RetryClass::Retry | v1::RetryClass::Resync) => false,
                    _ => return Err(ServeError::Missing { field: "retry" }),
                };
                Report::Failed { reason: one_line(&f.reason, REASON_MAX_BYTES), needs_operator }
            }
        };
        self.attachment.report(report).await;
        Ok(())
    }
}

/// Returns the next announcement once its update is planned, or known not to come. Cancel safe: the plan is
/// kept.
async fn planned(plan: &mut Option<(Assignment, Plan)>) -> (Assignment, (Bytes, Vec<String>)) {
    let Some((assignment, future)) = plan else { return std::future::pending().await };
    let update = future.await;
    let assignment = assignment.clone();
    *plan = None;
    (assignment, update)
}

/// `None` if the report ends an earlier one.
fn drift_of(drift: v1::DriftReport) -> Result<Option<AgentDrift>, ServeError> {
    limit("first path", drift.first_path.len(), REASON_MAX_BYTES)?;
    limit("place of lost files", drift.kept.len(), REASON_MAX_BYTES)?;
    let v1::DriftReport { generation, paths, first_path, kept, lost } = drift;
    let kept = (!kept.is_empty()).then(|| one_line(&kept, REASON_MAX_BYTES));
    let first = one_line(&first_path, REASON_MAX_BYTES);
    Ok((paths > 0).then_some(AgentDrift { generation, paths, first, kept, lost }))
}
