//! Holds the agent's conversation with its origin, and starts the work that follows from it.
//!
//! One task owns all state. It waits for the origin, the worker, timers, `verify` requests and the stop
//! signal. Each event is applied at once and without waiting ([`machine`], which is pure) and yields actions
//! that this task performs. The replica lives on a thread of its own ([`worker`]) and gets one command at a
//! time, so that a slow disk never delays a heartbeat. Bulk bytes use a separate connection
//! ([`crate::fetch`]).
//!
//! ```text
//!  origin ==control stream==> link task --+                  +--> link task ==> origin
//!                                         |                  |
//!  timers, verify, renewal, stop ---------+--> this task ----+--> worker thread <== fetch <== origin
//!                                         |   (Machine)
//!  worker thread --progress, outcome------+
//! ```
//!
//! Two state machines run side by side, because an update continues while the connection is down.
//!
//! | connection | event | then |
//! | --- | --- | --- |
//! | down | pause over (200 ms to 9 s, jittered) | dial, send `Hello`: greeting |
//! | greeting | `Welcome` of a known version | pin successors of the signing key: up |
//! | greeting | anything else, or nothing in time | down |
//! | up | `Announce` | check signature, tree and number; the generation replaces the target |
//! | up | `Activate` of the target | the target may go live |
//! | up | interval over | `Heartbeat` |
//! | up | nothing received for three intervals, end of stream, a message no origin sends | down |
//! | any but down | certificate renewed, or joined again | down, and dial at once |
//! | greeting, up | the origin rejects the certificate | down, and renew the certificate |
//!
//! | worker | event | then |
//! | --- | --- | --- |
//! | idle | target not live, no pause after a failure | `Update`; `Activate` if the target is staged and may go live |
//! | idle | otherwise: verification requested, or maintenance due | `Verify`, `Maintain` |
//! | update, not activating | another target, stop | cancel, then idle |
//! | update | takes longer than 100 ms | `Progress`, then once a second |
//! | update | done | `Activated` (or `Staged`, before a barrier): idle, maintenance due |
//! | any | the on-activate hook is due, runs, ended | `HookReport`; live once it has succeeded |
//! | idle | hook fails, and one further generation was activated since | no `Update` before the hook succeeds; `HookReport` names the waiting generation |
//! | update | failed | `Failed` with its retry class: idle, a pause (1 s to 60 s; 15 s to 5 min if a person must act) |
//! | verify, maintain | target not live | cancel, then idle; both continue after the update |
//! | activating | anything | nothing: activation always completes |
//!
//! No state here survives a crash. The next `Hello` is made from the replica's record, and the origin
//! announces again.

pub mod event;
pub mod machine;
pub(crate) mod messages;
pub mod worker;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use syncd_proto::v1;
use syncd_proto::v1::agent_message::Message as ToOrigin;
use syncd_proto::v1::replication_client::ReplicationClient;
use syncd_runtime::channel::ConnectError;
use syncd_runtime::channel::RefusedReason;
use syncd_shared::identity::SignedTrust;
use syncd_shared::limits::CONTROL_MESSAGE_MAX_BYTES;
use syncd_shared::text::{error_chain, rfc3339};
use syncd_shared::{HookStatus, Progress, SignedGeneration};
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use self::event::{Action, Event};
use self::machine::{Machine, Trust};
use self::worker::{
    Cancellation, Decision, Failure, Hooks, OpenSource, ReplicaState, ReplicaWork, Verified, Worker,
};
use crate::check::{Check, Phase};
use crate::dialer::Dialer;
use crate::follow::Follower;
use crate::hooks::{DurableHook, HookState};
use crate::status::{AgentStatus, Refused};

/// Messages to the origin that wait for the connection: more than one conversation ever has at once.
const OUTBOX: usize = 32;
/// Messages of the origin that wait to be applied.
const INBOX: usize = 16;

/// Parts that a session is assembled from.
pub struct Parts<R> {
    /// The replica. From now on only the session's worker uses it.
    pub replica: R,
    /// Opens the source of missing objects.
    pub open_source: OpenSource,
    /// Commands around an activation.
    pub hooks: Hooks,
    /// The node's own check; `None`: none is set.
    pub check: Option<Check>,
    /// Connects to the origin.
    pub dialer: Dialer,
    /// Takes the origin's place, from a published tree.
    pub(crate) follower: Option<Follower>,
    /// Makes a newer trust document survive a restart.
    pub follow: Box<dyn FnMut(SignedTrust) + Send>,
    /// Fields of the status that the session does not change, such as paths and names.
    pub about: AgentStatus,
}

/// A request to verify the replica.
#[derive(Debug)]
pub struct VerifyRequest {
    /// Receives progress.
    pub progress: watch::Sender<Progress>,
    /// Receives the result.
    pub result: oneshot::Sender<Result<Verified, Failure>>,
}

/// An order that a person gives on the node.
#[derive(Debug)]
pub struct OrderRequest {
    pub order: Decision,
    /// Receives the result once the order is durable.
    pub result: oneshot::Sender<Result<(), Failure>>,
}

/// Gives others access to the session: its status, and requests to it.
#[derive(Debug, Clone)]
pub struct Handle {
    /// The current status.
    pub status: watch::Receiver<AgentStatus>,
    /// The live generation.
    pub live: watch::Receiver<Option<SignedGeneration>>,
    verify: mpsc::Sender<VerifyRequest>,
    orders: mpsc::Sender<OrderRequest>,
}

impl Handle {
    /// Verifies the replica once the worker is free; starts over after an update. `None`: the agent stopped.
    /// Cancel safe; the verification itself continues.
    pub async fn verify(&self, progress: watch::Sender<Progress>) -> Option<Result<Verified, Failure>> {
        let (result, answer) = oneshot::channel();
        self.verify.send(VerifyRequest { progress, result }).await.ok()?;
        answer.await.ok()
    }

    /// Has an order recorded, ahead of all other work. `None`: the agent stopped. Cancel safe; the order
    /// stands.
    pub async fn order(&self, order: Decision) -> Option<Result<(), Failure>> {
        let (result, answer) = oneshot::channel();
        self.orders.send(OrderRequest { order, result }).await.ok()?;
        answer.await.ok()
    }
}

/// Reason why a session ended on its own.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The worker thread could not be started.
    #[error("can't start the replica's thread")]
    Thread(#[source] std::io::Error),
    /// The worker thread panicked, which is a defect.
    #[error("the replica's thread has ended unexpectedly: start the agent again and report this")]
    WorkerEnded,
}

/// State of the session task.
pub struct Session {
    machine: Machine,
    worker: Worker,
    running: Option<Cancellation>,
    link: Option<Link>,
    dialer: Dialer,
    follower: Option<Follower>,
    follow: Box<dyn FnMut(SignedTrust) + Send>,
    status: watch::Sender<AgentStatus>,
    live: watch::Sender<Option<SignedGeneration>>,
    /// The on-activate hook; `None`: none is set.
    on: Option<Arc<DurableHook>>,
    hook: Option<watch::Receiver<HookState>>,
    /// State of the after-activate hook; `None`: none is set.
    after: Option<watch::Receiver<HookState>>,
    check: Option<Arc<Check>>,
    /// The running check, with the number of its run.
    checking: Option<(u64, JoinHandle<Result<(), String>>)>,
    requests: mpsc::Receiver<VerifyRequest>,
    waiting: Vec<VerifyRequest>,
    order_requests: mpsc::Receiver<OrderRequest>,
    orders: VecDeque<OrderRequest>,
    last_contact: Option<OffsetDateTime>,
}

/// Input of the session task.
enum Input {
    Event(Event),
    Verify(VerifyRequest),
    Order(OrderRequest),
    WorkerEnded,
}

impl Session {
    /// Starts the worker. The conversation begins with [`Session::run`].
    pub fn new<R: ReplicaWork>(parts: Parts<R>) -> Result<(Self, Handle), SessionError> {
        let on = parts.hooks.on.clone();
        let hook = on.as_ref().map(|on| on.state());
        let after = parts.hooks.after.as_ref().map(|after| after.state());
        let replica = ReplicaState { hook: parts.hooks.state(), ..parts.replica.state() };
        let trust = Trust { keys: parts.dialer.route().trust, boot_id: boot_id() };
        let worker =
            Worker::start(parts.replica, parts.open_source, parts.hooks).map_err(SessionError::Thread)?;
        let (live, live_reader) = watch::channel(replica.live.clone());
        let (status, status_reader) = watch::channel(parts.about);
        let (verify, requests) = mpsc::channel(4);
        let (orders, order_requests) = mpsc::channel(4);
        let check = parts.check.map(Arc::new);
        let session = Self {
            machine: Machine::new(trust, replica, Instant::now()).checked(check.is_some()),
            worker,
            running: None,
            link: None,
            dialer: parts.dialer,
            follower: parts.follower,
            follow: parts.follow,
            status,
            live,
            on,
            hook,
            after,
            check,
            checking: None,
            requests,
            waiting: Vec::new(),
            order_requests,
            orders: VecDeque::new(),
            last_contact: None,
        };
        session.publish();
        let handle = Handle { status: status_reader, live: live_reader, verify, orders };
        Ok((session, handle))
    }

    /// Follows the origin until `stop`. Finishes an activation that has begun. Not cancel safe.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), SessionError> {
        let mut stopping = false;
        let mut event = Event::Tick;
        loop {
            for action in self.machine.apply(event, Instant::now()) {
                if matches!(action, Action::Stopped) {
                    self.link = None;
                    self.worker.finish().await;
                    return Ok(());
                }
                self.perform(action);
            }
            self.publish();
            event = match self.input(&stop, stopping).await {
                Input::Event(event) => event,
                Input::Verify(request) => {
                    self.waiting.push(request);
                    Event::Verify
                }
                Input::Order(request) => {
                    let order = request.order.clone();
                    self.orders.push_back(request);
                    Event::Order(order)
                }
                Input::WorkerEnded => return Err(SessionError::WorkerEnded),
            };
            match &event {
                Event::Stop => stopping = true,
                Event::Lost(_) | Event::Revoked(_) => self.link = None,
                Event::Message(_) => self.last_contact = Some(OffsetDateTime::now_utc()),
                _ => {}
            }
        }
    }

    /// Waits for the next event. Cancel safe.
    async fn input(&mut self, stop: &CancellationToken, stopping: bool) -> Input {
        let deadline = self.machine.deadline();
        tokio::select! {
            () = stop.cancelled(), if !stopping => Input::Event(Event::Stop),
            report = self.worker.reports.recv() => match report {
                Some(report) => Input::Event(Event::Report(report)),
                None => Input::WorkerEnded,
            },
            event = hear(&mut self.link) => Input::Event(event),
            Some(request) = self.requests.recv() => Input::Verify(request),
            Some(request) = self.order_requests.recv() => Input::Order(request),
            (run, result) = ended(&mut self.checking) => Input::Event(Event::Checked(run, result)),
            state = hook_changed(&mut self.hook) => Input::Event(Event::Hook(state)),
            // Only shown.
            _ = hook_changed(&mut self.after) => Input::Event(Event::Tick),
            () = self.dialer.outdated() => Input::Event(Event::Renewed(Box::new(self.dialer.route().trust))),
            () = until(deadline) => Input::Event(Event::Tick),
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Dial(hello) => {
                self.link = Some(Link::open(self.dialer.clone(), self.follower.clone(), *hello));
            }
            Action::Hang => self.link = None,
            Action::Send(message) => {
                if let Some(link) = &self.link {
                    link.send(message);
                }
            }
            Action::Start(command) => self.running = Some(self.worker.start_command(*command)),
            Action::Cancel => {
                if let Some(running) = &self.running {
                    running.cancel();
                }
            }
            Action::RetryHook => {
                if let Some(on) = &self.on {
                    on.retry();
                }
            }
            Action::Check(run, live, phase) => self.start_check(run, *live, phase),
            Action::StopCheck => {
                if let Some((_, checking)) = self.checking.take() {
                    checking.abort();
                }
            }
            Action::Ordered(result) => {
                if let Some(order) = self.orders.pop_front() {
                    // The requester may be gone.
                    let _ = order.result.send(result);
                }
            }
            Action::Follow(document) => (self.follow)(*document),
            Action::Verifying(progress) => {
                for request in &self.waiting {
                    request.progress.send_replace(progress);
                }
            }
            Action::Verified(result) => {
                for request in self.waiting.drain(..) {
                    // The requester may be gone.
                    let _ = request.result.send(result.clone());
                }
            }
            Action::Stopped => {}
        }
    }

    fn start_check(&mut self, run: u64, live: SignedGeneration, phase: Phase) {
        let Some(check) = self.check.clone() else { return };
        self.checking = Some((run, tokio::spawn(check.run(live, phase))));
    }

    fn publish(&self) {
        let replica = self.machine.replica();
        let route = self.dialer.route();
        self.status.send_if_modified(|status| {
            let new = AgentStatus {
                name: route.name.to_string(),
                root_key: route.trust.root.to_string(),
                trust: route.trust.document.number(),
                origin: route.address,
                connected: self.machine.is_connected(),
                revoked: self.machine.is_revoked(),
                generation: replica.live.as_ref().map(|g| g.number().get()),
                root: replica.live.as_ref().map(|g| g.root_hash().to_string()),
                state: self.machine.state(),
                accepted: replica.accepted.as_ref().map(|g| g.number().get()),
                generations: replica.generations.iter().map(|n| n.get()).collect(),
                spares: replica.spares,
                progress: self.machine.progress(),
                origin_version: self.machine.origin_version().map(str::to_owned),
                origin_collects: self.machine.origin_collects(),
                last_contact: self
                    .last_contact
                    .map(|time| rfc3339((time.unix_timestamp_nanos() / 1_000_000) as i64)),
                error: self.machine.error(),
                fork: self.machine.fork(),
                drift: replica.drift.clone(),
                healed: replica.healed,
                head: self.follower.as_ref().and_then(Follower::head_ms).map(rfc3339),
                head_due: self.follower.as_ref().and_then(Follower::head_due_ms).map(rfc3339),
                hook: self.machine.hook_status(),
                after: self.after.as_ref().and_then(|after| after_status(&after.borrow())),
                check: self.machine.check_status().cloned(),
                label: replica.live.as_ref().map(|g| g.generation().label.clone()),
                refused: replica.decisions.refused.iter().map(Refused::of).collect(),
                node: replica.decisions.node,
                ordered: replica.decisions.ordered,
                behind: self.machine.is_behind(),
                ..status.clone()
            };
            let modified = *status != new;
            *status = new;
            modified
        });
        self.live.send_if_modified(|live| {
            let modified = *live != replica.live;
            live.clone_from(&replica.live);
            modified
        });
    }
}

/// Waits for the end of the running check. Cancel safe.
async fn ended(checking: &mut Option<(u64, JoinHandle<Result<(), String>>)>) -> (u64, Result<(), String>) {
    let Some((run, running)) = checking else { return std::future::pending().await };
    let (run, done) = (*run, running.await);
    *checking = None;
    (run, done.unwrap_or_else(|_| Err("the check has ended unexpectedly: report this".to_owned())))
}

/// Status of the after-activate hook; `None`: it was never due.
fn after_status(state: &HookState) -> Option<HookStatus> {
    HookStatus::from_report(&messages::hook_report(state, None)?).ok()
}

/// Waits for a change of the hook's state. Cancel safe.
async fn hook_changed(hook: &mut Option<watch::Receiver<HookState>>) -> HookState {
    if let Some(hook) = hook
        && hook.changed().await.is_ok()
    {
        return hook.borrow_and_update().clone();
    }
    std::future::pending().await
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// Identifies the current boot of the node.
#[cfg_attr(not(test), expect(clippy::disallowed_methods, reason = "a file of the kernel"))]
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// The control stream. Dropping it closes the connection.
struct Link {
    outbox: mpsc::Sender<v1::AgentMessage>,
    inbox: mpsc::Receiver<Event>,
    task: AbortHandle,
}

impl Link {
    fn open(dialer: Dialer, follower: Option<Follower>, hello: v1::Hello) -> Self {
        let (outbox, to_send) = mpsc::channel(OUTBOX);
        let (events, inbox) = mpsc::channel(INBOX);
        let task = match follower {
            Some(follower) => tokio::spawn(follower.converse(dialer, to_send, events)),
            None => tokio::spawn(converse(dialer, to_send, events)),
        };
        let link = Self { task: task.abort_handle(), outbox, inbox };
        link.send(ToOrigin::Hello(hello));
        link
    }

    fn send(&self, message: ToOrigin) {
        let message = v1::AgentMessage { message: Some(message) };
        if self.outbox.try_send(message).is_err() {
            // The connection is dead or stuck; the heartbeat will notice.
            tracing::debug!("message to the origin dropped");
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn hear(link: &mut Option<Link>) -> Event {
    match link {
        Some(link) => {
            link.inbox.recv().await.unwrap_or_else(|| Event::Lost("the connection was closed".into()))
        }
        None => std::future::pending().await,
    }
}

/// Connects, sends the outbox and passes on what arrives. Ends with [`Event::Lost`] or [`Event::Revoked`].
async fn converse(
    mut dialer: Dialer,
    to_send: mpsc::Receiver<v1::AgentMessage>,
    events: mpsc::Sender<Event>,
) {
    let lost = match subscribe(&mut dialer, to_send).await {
        Err(lost) => lost,
        Ok(mut stream) => loop {
            match stream.message().await {
                Ok(Some(message)) => {
                    if events.send(Event::Message(message)).await.is_err() {
                        return;
                    }
                }
                Ok(None) => break Event::Lost("the origin ended the conversation".to_owned()),
                Err(status) => break lost(&dialer, &status),
            }
        },
    };
    let _ = events.send(lost).await;
}

/// The end of a connection by a status, described for people. A status made by the transport has a source;
/// one sent by the origin has none.
fn lost(dialer: &Dialer, status: &tonic::Status) -> Event {
    if std::error::Error::source(status).is_some() {
        tracing::debug!(error = error_chain(status), "control stream");
        return Event::Lost("the connection to the origin broke".to_owned());
    }
    let reason = format!("the origin ended the conversation: {}", error_chain(status));
    match status.code() {
        tonic::Code::PermissionDenied => return Event::Revoked(reason),
        tonic::Code::Unauthenticated => dialer.report_expired(),
        _ => {}
    }
    Event::Lost(reason)
}

/// The failure of a dial, described for people.
fn not_reached(dialer: &Dialer, error: &ConnectError) -> Event {
    let reason = error_chain(error);
    match error {
        ConnectError::Refused { reason: RefusedReason::Revoked, .. } => Event::Revoked(reason),
        ConnectError::WrongOrigin { .. } => {
            dialer.report_other_authority();
            Event::Lost(reason)
        }
        _ => Event::Lost(reason),
    }
}

async fn subscribe(
    dialer: &mut Dialer,
    to_send: mpsc::Receiver<v1::AgentMessage>,
) -> Result<tonic::Streaming<v1::OriginMessage>, Event> {
    let channel = dialer.dial().await.map_err(|error| not_reached(dialer, &error))?;
    let mut client = ReplicationClient::new(channel)
        .max_decoding_message_size(CONTROL_MESSAGE_MAX_BYTES)
        .max_encoding_message_size(CONTROL_MESSAGE_MAX_BYTES);
    let answer =
        client.subscribe(ReceiverStream::new(to_send)).await.map_err(|status| lost(dialer, &status))?;
    Ok(answer.into_inner())
}
