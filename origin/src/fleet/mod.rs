//! All enrolled agents: their identities, their live generations, and the announcements to them.
//!
//! ```text
//!   serve: attach, report, join, renew ──┐                 ┌──> view (watch)
//!   admin: token, revoke ────────────────┼──> owner task ──┼──> admission (watch): who is let in
//!   commit: announce (watch) ───────────┘                  ├──> records in the store, on a blocking thread
//!                                                          └──> sessions: an assignment (watch) for each
//! ```
//!
//! One task owns the roster and the connections. It applies commands synchronously and never waits for the
//! disk. Commands whose effect must be durable (a token used, a certificate issued or revoked) are answered
//! once their records are written. The generations of agents are written behind, every few seconds. A crash
//! loses at most those, and agents report them again.

mod first_sync;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod live_wait;
mod records;
pub mod registry;
pub mod rollout;
mod roster;
mod task;
mod view;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use syncd_shared::generation::GenerationError;
use syncd_shared::identity::authority::AuthorityKey;
use syncd_shared::identity::{AgentName, JoinToken, PeerIdentity, RootFingerprint};
use syncd_shared::{
    CheckStatus, Fork, GenerationNumber, HookStatus, NodeStanding, OrderedStanding, RootHash,
    SignedGeneration,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::now_ms;
use crate::keys::{Keys, KeysError};

#[cfg(feature = "testing")]
pub use records::{NamedRecord, RecordChange};
pub use records::{RecordError, RecordStore};
pub(crate) use roster::token_id;
pub use roster::{Admission, NodeOrder, RosterError, TokenView};
pub use syncd_shared::AgentState;
pub use view::{AgentDrift, AgentProgress, AgentView, FleetView, RETAIN_MS};

use registry::Registry;
use rollout::record::{ROLLOUT, Stored};
use rollout::{Assignment, OrderError, Plan, Publication, RolloutOrder, RolloutView};
use roster::AgentRecord;
use task::{Attached, Command, FleetTask, Save};

/// Length of the owner's command queue.
const COMMANDS: usize = 256;

/// Errors of fleet commands.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The rules forbid it.
    #[error(transparent)]
    Refused(#[from] RosterError),
    /// Reading or writing the records failed.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// Writing the records failed, and the command was undone: a join, a renewal or a new token.
    #[error("writing the records of the fleet failed: see the origin's log, and try again")]
    Save(#[source] Arc<RecordError>),
    /// Writing the records of an order or a revocation failed. It stays in force, and writing is retried.
    #[error(
        "taken and in force, but not durable yet: writing the records of the fleet failed and is retried; until then a \
         restart of the origin forgets it"
    )]
    NotDurable(#[source] Arc<RecordError>),
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// An order does not apply to the rollout.
    #[error(transparent)]
    Rollout(#[from] OrderError),
    /// The origin is stopping.
    #[error("the origin is stopping")]
    Stopping,
}

/// An agent's state when it connects.
#[derive(Debug, Clone, Default)]
pub struct Greeting {
    /// Changes with every boot.
    pub boot_id: String,
    /// Version of the program.
    pub version: String,
    /// Linked generation.
    pub live: Option<SignedGeneration>,
    /// Highest generation ever accepted.
    pub accepted: Option<SignedGeneration>,
    /// Roots that the node does not take: their check failed on it.
    pub refused: Vec<RootHash>,
    /// State of the on-activate hook.
    pub hook: Option<HookStatus>,
    /// Result of its own check.
    pub check: Option<CheckStatus>,
    /// Whether it has a check of its own.
    pub has_check: bool,
    /// Orders given on the node.
    pub standing: NodeStanding,
    /// Locally changed files.
    pub drift: Option<AgentDrift>,
    /// Another root than this origin's under one of its numbers.
    pub fork: Option<Fork>,
    /// The root key that it has pinned.
    pub root_key: Option<RootFingerprint>,
    /// Remarks for an operator.
    pub notes: Vec<String>,
}

/// A report of a connected agent.
#[derive(Debug, Clone)]
pub enum Report {
    /// The agent is alive.
    Heartbeat,
    /// The agent is working on a generation.
    Progress { state: AgentState, progress: AgentProgress },
    /// A complete tree waits for its activation.
    Staged { generation: GenerationNumber, root: RootHash },
    /// A generation is linked and durable on the node.
    Activated {
        generation: GenerationNumber,
        root: RootHash,
        /// Updates without a spare, since the agent started.
        spare_misses: u64,
        /// Whether the generation becomes live only after the on-activate hook succeeds.
        hook_due: bool,
    },
    /// State of the on-activate hook.
    Hook(HookStatus),
    /// Result of the node's own check.
    Check(CheckStatus),
    /// Orders given on the node.
    Standing(NodeStanding),
    /// Locally changed files; `None` ends an earlier report.
    Drift(Option<AgentDrift>),
    /// A task failed.
    Failed {
        /// For a person.
        reason: String,
        /// Whether a person must act.
        needs_operator: bool,
    },
}

/// Reasons to end a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    Revoked,
    /// Another connection with the same certificate replaced it.
    Replaced,
}

/// Handle to the fleet. Cheap to clone.
#[derive(Clone)]
pub struct Fleet {
    keys: Arc<Keys>,
    records: Arc<dyn RecordStore>,
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<Arc<FleetView>>,
    admission: watch::Receiver<Arc<Admission>>,
    rollout: watch::Receiver<Arc<RolloutView>>,
    announced: watch::Sender<Option<Arc<Publication>>>,
}

/// An agent's registration while its control stream is open.
pub struct Attachment {
    name: AgentName,
    connection: u64,
    commands: mpsc::Sender<Command>,
    /// Resolves once, when the connection must end.
    pub ended: oneshot::Receiver<EndReason>,
    /// This agent's assignment: the newest value only.
    pub assignment: watch::Receiver<Option<Assignment>>,
    /// Orders given at the origin that the node must know.
    pub standing: watch::Receiver<OrderedStanding>,
    /// The newest generation of the tree. An agent may know any up to it.
    pub newest: watch::Receiver<Option<Arc<Publication>>>,
}

impl Attachment {
    /// Passes a report to the fleet. Cancel safe: it is delivered completely or not at all.
    pub async fn report(&self, report: Report) {
        let (name, connection) = (self.name.clone(), self.connection);
        // Fails only when the origin stops.
        let _ = self.commands.send(Command::Report { name, connection, report }).await;
    }

    /// Reports that the control stream is closed.
    pub async fn detach(self) {
        let (name, connection) = (self.name, self.connection);
        let _ = self.commands.send(Command::Detach { name, connection }).await;
    }
}

impl Fleet {
    /// Loads the fleet and starts its owner task, which `tasks` tracks and `shutdown` ends. Newer generations
    /// shown by agents and signed by this origin's key are sent to `observed`. Blocks while loading.
    pub fn start(
        records: Arc<dyn RecordStore>,
        keys: Arc<Keys>,
        observed: mpsc::Sender<SignedGeneration>,
        shutdown: CancellationToken,
        tasks: &TaskTracker,
    ) -> Result<Self, FleetError> {
        let stored = Stored::decode(records.load(ROLLOUT)?, &keys)?;
        let roster = Registry::new(records.clone()).load()?;
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let announced = watch::Sender::new(None);
        let saved = records.clone();
        let save: Save = Arc::new(move |changes| saved.save(changes));
        let task = FleetTask::new(roster, save, observed, announced.subscribe(), (stored, shutdown.clone()));
        let (view, admission, rollout) = (task.view(), task.admission(), task.rollout());
        tasks.spawn(task.run(receiver, shutdown));
        Ok(Self { keys, records, commands, view, admission, rollout, announced })
    }

    /// The current state of all agents, updated on changes.
    pub fn view(&self) -> watch::Receiver<Arc<FleetView>> {
        self.view.clone()
    }

    /// The current admission rules, updated on changes.
    pub fn admission(&self) -> watch::Receiver<Arc<Admission>> {
        self.admission.clone()
    }

    /// Whether a verified certificate is neither revoked nor superseded. It need not be valid now. Does not
    /// block.
    pub fn admits(&self, peer: &PeerIdentity) -> bool {
        self.admission.borrow().admits(peer)
    }

    /// State of the newest rollout, updated on changes.
    pub fn rollout(&self) -> watch::Receiver<Arc<RolloutView>> {
        self.rollout.clone()
    }

    /// Roots that garbage collection must keep: those of agents seen within 30 days, and of the rollout. Does
    /// not block.
    pub fn retained_roots(&self) -> HashSet<RootHash> {
        let mut roots = self.view.borrow().retained_roots(now_ms());
        roots.extend(&self.rollout.borrow().retained);
        roots
    }

    /// Announces the newest generation to all agents at once, now or when they connect.
    pub fn announce(&self, generation: SignedGeneration) {
        self.publish(generation, Plan::unwatched());
    }

    /// Announces the newest generation, which goes to the agents as `plan` says.
    pub fn publish(&self, generation: SignedGeneration, plan: Plan) {
        let generation = Arc::new(generation);
        self.announced.send_replace(Some(Arc::new(Publication { generation, plan })));
    }

    /// Announces the current generation again, so that agents at once run an on-activate hook that failed for
    /// it.
    pub fn announce_again(&self) {
        self.announced.send_modify(|_| ());
    }

    /// The number of the announced generation.
    pub fn announced(&self) -> Option<GenerationNumber> {
        self.announced.borrow().as_ref().map(|newest| newest.generation.number())
    }

    /// Verifies a generation shown by an agent: signed by this origin's key or an earlier one.
    pub fn verify(&self, record: &[u8], signature: &[u8]) -> Result<SignedGeneration, GenerationError> {
        self.keys.verify(record, signature)
    }

    /// The fork between this origin's generations and one that an agent shows. `None` also if its number is
    /// not known here any more, or not yet.
    pub async fn fork_with(&self, shown: &SignedGeneration) -> Option<Fork> {
        let newest = self.announced.borrow().as_ref().map(|newest| newest.generation.clone())?;
        let (number, other) = (shown.number(), shown.root_hash());
        if number > newest.number() || (number, other) == (newest.number(), newest.root_hash()) {
            return None;
        }
        let records = self.records.clone();
        let known = tokio::task::spawn_blocking(move || records.root_of(number)).await;
        let known = match known {
            Ok(Ok(known)) => known.filter(|known| *known != other)?,
            Ok(Err(error)) => {
                tracing::warn!(error = %crate::error_chain(&error), "a generation of an agent is not compared");
                return None;
            }
            Err(_) => return None,
        };
        Some(Fork { generation: number.get(), known, other })
    }

    /// Creates a join token, durable on return.
    pub async fn create_token(&self, ttl: Duration, uses: u32) -> Result<JoinToken, FleetError> {
        let token = self.keys.token()?;
        let secret_hash = token.secret_hash();
        self.ask(|reply| Command::AddToken { secret_hash, ttl, uses, reply }).await?;
        Ok(token)
    }

    /// The usable tokens.
    pub async fn tokens(&self) -> Result<Vec<TokenView>, FleetError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Tokens { reply }).await.map_err(|_| FleetError::Stopping)?;
        answer.await.map_err(|_| FleetError::Stopping)
    }

    /// Invalidates a token, durably on return. `id` is the beginning of a [`TokenView::id`].
    pub async fn revoke_token(&self, id: String) -> Result<(), FleetError> {
        self.ask(|reply| Command::RevokeToken { id, reply }).await
    }

    /// The answer that [`Fleet::join`] would give now. Checked before a certificate is signed, because
    /// signing costs more than guessing.
    pub async fn check_join(&self, secret_hash: [u8; 32], name: AgentName) -> Result<(), FleetError> {
        self.ask(|reply| Command::CheckJoin { secret_hash, name, reply }).await
    }

    /// The answer that [`Fleet::renew`] would give now.
    pub async fn check_renewal(&self, peer: PeerIdentity, authority: AuthorityKey) -> Result<(), FleetError> {
        self.ask(|reply| Command::CheckRenewal { peer, authority, reply }).await
    }

    /// Revokes every certificate of an agent. Its streams are closed at once; the record is durable on
    /// return.
    pub async fn revoke(&self, name: String) -> Result<(), FleetError> {
        self.ask(|reply| Command::Revoke { name, reply }).await
    }

    /// Uses a token once and enrols `peer`, for whom a certificate was issued. Both are
    /// durable on return; the certificate must not be handed out before.
    pub async fn join(
        &self,
        secret_hash: [u8; 32],
        peer: PeerIdentity,
        group: Option<AgentName>,
    ) -> Result<(), FleetError> {
        self.ask(|reply| Command::Join { secret_hash, peer, group, reply }).await
    }

    /// Carries out an operator's order for a node, durable on return.
    pub async fn order(&self, name: String, order: NodeOrder) -> Result<(), FleetError> {
        self.ask(|reply| Command::Order { name, order, reply }).await
    }

    /// Removes a node that will not come back, durably on return.
    pub async fn forget(&self, name: String) -> Result<(), FleetError> {
        self.ask(|reply| Command::Forget { name, reply }).await
    }

    /// Carries out an operator's order for the rollout that runs, durable on return.
    pub async fn order_rollout(&self, order: RolloutOrder) -> Result<(), FleetError> {
        self.ask(|reply| Command::OrderRollout { order, reply }).await
    }

    /// Records a new certificate for the agent with certificate `peer`; durable on return.
    pub async fn renew(&self, peer: PeerIdentity, new: PeerIdentity) -> Result<(), FleetError> {
        self.ask(|reply| Command::Renew { peer, new, reply }).await
    }

    /// Registers an open control stream. An existing connection of the agent is ended.
    pub async fn attach(&self, peer: PeerIdentity, greeting: Greeting) -> Result<Attachment, FleetError> {
        let name = peer.name.clone();
        let (reply, answer) = oneshot::channel();
        let command = Command::Attach { peer, greeting: Box::new(greeting), reply };
        self.commands.send(command).await.map_err(|_| FleetError::Stopping)?;
        let Attached { connection, ended, assignment, standing } =
            answer.await.map_err(|_| FleetError::Stopping)??;
        let (commands, newest) = (self.commands.clone(), self.announced.subscribe());
        Ok(Attachment { name, connection, commands, ended, assignment, standing, newest })
    }

    async fn ask(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<(), FleetError>>) -> Command,
    ) -> Result<(), FleetError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| FleetError::Stopping)?;
        answer.await.map_err(|_| FleetError::Stopping)?
    }
}

/// The view of an unconnected agent, from its record.
fn agent_view(name: &AgentName, record: &AgentRecord) -> AgentView {
    let newest = record.certificates.last();
    let generation = record.told.generation.and_then(GenerationNumber::new);
    AgentView {
        name: name.to_string(),
        connected: false,
        generation,
        root: record.told.root.as_ref().and_then(|root| root.parse().ok()),
        staged: None,
        waits_for_check: false,
        hook: record.told.hook.clone(),
        check: None,
        has_check: false,
        standing: NodeStanding::default(),
        orders: record.orders.clone(),
        assigned: None,
        refused: Vec::new(),
        state: if generation.is_some() { AgentState::Live } else { AgentState::Empty },
        enrolled_ms: record.enrolled_ms,
        last_seen_ms: record.last_seen_ms,
        error: None,
        needs_operator: false,
        serial: newest.map(|c| c.serial.to_string()).unwrap_or_default(),
        not_after_ms: newest.map_or(0, |c| c.not_after_ms),
        progress: None,
        version: None,
        spare_misses: 0,
        drift: record.told.drift.clone(),
        fork: None,
        root_key: record.told.root_key.as_ref().and_then(|key| key.parse().ok()),
        notes: Vec::new(),
    }
}
