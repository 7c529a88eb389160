//! All enrolled agents: who they are, what they have live, and what they are told.
//!
//! ```text
//!   serve: attach, report, join, renew ──┐                 ┌──> view (watch)
//!   admin: token, revoke ────────────────┼──> owner task ──┼──> admission (watch): who is let in
//!   commit: announce (watch) ──────────────────> sessions  └──> records in the store, on a blocking thread
//! ```
//!
//! One task owns the roster and the connections; it applies commands synchronously and never waits for the disk. What
//! must be durable before it is told (a token taken, a certificate issued or revoked) is answered once its records are
//! written; what agents have live is written behind, every few seconds. A crash loses at most that, and agents tell it
//! again.

#[doc(hidden)]
pub mod fuzzing;
mod owner;
mod records;
pub mod registry;
mod roster;
mod view;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use syncd_shared::generation::GenerationError;
use syncd_shared::identity::{AgentName, JoinToken, PeerIdentity};
use syncd_shared::{GenerationNumber, HookStatus, RootHash, SignedGeneration};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::keys::{Keys, KeysError};

pub use records::{NamedRecord, RecordChange, RecordError, RecordStore};
pub(crate) use roster::token_id;
pub use roster::{Admission, RosterError, TokenView};
pub use view::{AgentDrift, AgentProgress, AgentState, AgentView, FleetView, RETAIN_MS};

use owner::{Command, Owner, Save};
use registry::Registry;
use roster::AgentRecord;

/// Commands that wait for the owner.
const COMMANDS: usize = 256;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The rules.
    #[error(transparent)]
    Refused(#[from] RosterError),
    /// The records.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// The records could not be written. A join, a renewal and a token are taken back; a revocation stays in force and is
    /// written again.
    #[error("writing the records of the fleet failed: see the origin's log, and try again")]
    Save(#[source] Arc<RecordError>),
    /// The keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The origin stops.
    #[error("the origin is stopping")]
    Stopping,
}

/// What an agent says of itself when it connects.
#[derive(Debug, Clone, Default)]
pub struct Greeting {
    /// Differs after every boot.
    pub boot_id: String,
    /// Version of the program.
    pub version: String,
    /// What is live there.
    pub live: Option<SignedGeneration>,
    /// The highest generation it ever accepted.
    pub accepted: Option<SignedGeneration>,
    /// Its on-activate hook.
    pub hook: Option<HookStatus>,
    /// Files that were changed on its node.
    pub drift: Option<AgentDrift>,
    /// What a person should know of it.
    pub notes: Vec<String>,
}

/// What an agent tells later.
#[derive(Debug, Clone)]
pub enum Report {
    /// It lives.
    Heartbeat,
    /// It is on its way to a generation.
    Progress {
        /// What it does.
        state: AgentState,
        /// How far it is.
        progress: AgentProgress,
    },
    /// A generation is linked and durable there.
    Activated {
        /// Its number.
        generation: GenerationNumber,
        /// Its root.
        root: RootHash,
        /// Updates that found no spare, since the agent started.
        spare_misses: u64,
        /// It is not live before its on-activate hook has succeeded.
        hook_due: bool,
    },
    /// How its on-activate hook fares.
    Hook(HookStatus),
    /// Files were changed on its node; `None`: nothing is to be reported any more.
    Drift(Option<AgentDrift>),
    /// It could not do what it was told.
    Failed {
        /// For a person.
        reason: String,
        /// Whether a person must act.
        needs_operator: bool,
    },
}

/// Why the fleet ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// The agent's certificate was revoked.
    Revoked,
    /// Another connection with the same certificate took its place.
    Replaced,
}

/// The fleet. Cheap to clone.
#[derive(Clone)]
pub struct Fleet {
    keys: Arc<Keys>,
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<Arc<FleetView>>,
    admission: watch::Receiver<Arc<Admission>>,
    announced: watch::Sender<Option<Arc<SignedGeneration>>>,
}

/// One agent's place in the fleet for as long as its control stream is open.
pub struct Attachment {
    name: AgentName,
    connection: u64,
    commands: mpsc::Sender<Command>,
    /// Says once why the connection must end.
    pub ended: oneshot::Receiver<EndReason>,
    /// What to announce: the newest value alone.
    pub announced: watch::Receiver<Option<Arc<SignedGeneration>>>,
}

impl Attachment {
    /// Tells the fleet what the agent said. Cancel safe: it is told or not.
    pub async fn report(&self, report: Report) {
        let (name, connection) = (self.name.clone(), self.connection);
        // Fails only when the origin stops.
        let _ = self.commands.send(Command::Report { name, connection, report }).await;
    }

    /// The control stream is closed.
    pub async fn detach(self) {
        let (name, connection) = (self.name, self.connection);
        let _ = self.commands.send(Command::Detach { name, connection }).await;
    }
}

impl Fleet {
    /// Loads the fleet and starts its owner, which `tasks` tracks and `shutdown` ends. Generations above the announced
    /// one that agents bring, signed by our key, go to `observed`. Blocks while it loads.
    pub fn start(
        records: Arc<dyn RecordStore>,
        keys: Arc<Keys>,
        observed: mpsc::Sender<SignedGeneration>,
        shutdown: CancellationToken,
        tasks: &TaskTracker,
    ) -> Result<Self, FleetError> {
        let roster = Registry::new(records.clone()).load()?;
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let announced = watch::Sender::new(None);
        let save: Save = Arc::new(move |changes| records.save(changes));
        let owner = Owner::new(roster, save, observed, announced.clone());
        let (view, admission) = (owner.view(), owner.admission());
        tasks.spawn(owner.run(receiver, shutdown));
        Ok(Self { keys, commands, view, admission, announced })
    }

    /// All agents, now and whenever something changes.
    pub fn view(&self) -> watch::Receiver<Arc<FleetView>> {
        self.view.clone()
    }

    /// Whom to let in, now and whenever that changes.
    pub fn admission(&self) -> watch::Receiver<Arc<Admission>> {
        self.admission.clone()
    }

    /// Whether a verified certificate was not revoked or superseded; it need not hold today. Does not block.
    pub fn admits(&self, peer: &PeerIdentity) -> bool {
        self.admission.borrow().admits(peer)
    }

    /// Roots that garbage collection must leave: those of agents seen within 30 days. Does not block.
    pub fn retained_roots(&self) -> HashSet<RootHash> {
        self.view.borrow().retained_roots(now_ms())
    }

    /// Tells every agent, now or when it connects. Only the newest is ever told.
    pub fn announce(&self, generation: SignedGeneration) {
        self.announced.send_replace(Some(Arc::new(generation)));
    }

    /// The generation that agents are told of now.
    pub fn announced(&self) -> Option<GenerationNumber> {
        self.announced.borrow().as_ref().map(|generation| generation.number())
    }

    /// Checks a generation that an agent shows: signed by this origin's key, or one before it.
    pub fn verify(&self, record: &[u8], signature: &[u8]) -> Result<SignedGeneration, GenerationError> {
        self.keys.verify(record, signature)
    }

    /// A join token, durable when this returns.
    pub async fn create_token(&self, ttl: Duration, uses: u32) -> Result<JoinToken, FleetError> {
        let token = self.keys.token()?;
        let secret_hash = token.secret_hash();
        self.ask(|reply| Command::AddToken { secret_hash, ttl, uses, reply }).await?;
        Ok(token)
    }

    /// The tokens that are good.
    pub async fn tokens(&self) -> Result<Vec<TokenView>, FleetError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Tokens { reply }).await.map_err(|_| FleetError::Stopping)?;
        answer.await.map_err(|_| FleetError::Stopping)
    }

    /// Makes a token worthless, durably when this returns. `id` is the beginning of a [`TokenView::id`].
    pub async fn revoke_token(&self, id: String) -> Result<(), FleetError> {
        self.ask(|reply| Command::RevokeToken { id, reply }).await
    }

    /// What [`Fleet::join`] would answer now: asked before a certificate is signed, which costs more than to guess.
    pub async fn check_join(&self, secret_hash: [u8; 32], name: AgentName) -> Result<(), FleetError> {
        self.ask(|reply| Command::CheckJoin { secret_hash, name, reply }).await
    }

    /// What [`Fleet::renew`] would answer now.
    pub async fn check_renewal(&self, peer: PeerIdentity) -> Result<(), FleetError> {
        self.ask(|reply| Command::CheckRenewal { peer, reply }).await
    }

    /// Revokes every certificate of an agent: its streams are closed at once, the record is durable when this returns.
    pub async fn revoke(&self, name: String) -> Result<(), FleetError> {
        self.ask(|reply| Command::Revoke { name, reply }).await
    }

    /// Takes one use of a token and enrols `peer`, to whom a certificate with this fingerprint was made. Both are
    /// durable when this returns; only then may the certificate be handed out.
    pub async fn join(
        &self,
        secret_hash: [u8; 32],
        peer: PeerIdentity,
        fingerprint: [u8; 32],
    ) -> Result<(), FleetError> {
        self.ask(|reply| Command::Join { secret_hash, peer, fingerprint, reply }).await
    }

    /// Notes a new certificate for an agent that showed `peer`; durable when this returns.
    pub async fn renew(
        &self,
        peer: PeerIdentity,
        new: PeerIdentity,
        fingerprint: [u8; 32],
    ) -> Result<(), FleetError> {
        self.ask(|reply| Command::Renew { peer, new, fingerprint, reply }).await
    }

    /// An agent's control stream is open. A connection that it has already is ended.
    pub async fn attach(&self, peer: PeerIdentity, greeting: Greeting) -> Result<Attachment, FleetError> {
        let name = peer.name.clone();
        let (reply, answer) = oneshot::channel();
        let command = Command::Attach { peer, greeting: Box::new(greeting), reply };
        self.commands.send(command).await.map_err(|_| FleetError::Stopping)?;
        let (connection, ended) = answer.await.map_err(|_| FleetError::Stopping)??;
        let announced = self.announced.subscribe();
        Ok(Attachment { name, connection, commands: self.commands.clone(), ended, announced })
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

/// Milliseconds since 1970 by this machine's clock.
fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// An agent that is not connected, as its record has it.
fn agent_view(name: &AgentName, record: &AgentRecord) -> AgentView {
    let newest = record.certificates.last();
    let generation = record.generation.and_then(GenerationNumber::new);
    AgentView {
        name: name.to_string(),
        connected: false,
        generation,
        root: record.root.as_ref().and_then(|root| root.parse().ok()),
        hook: None,
        state: if generation.is_some() { AgentState::Live } else { AgentState::Empty },
        last_seen_ms: record.last_seen_ms,
        error: None,
        needs_operator: false,
        serial: newest.map(|c| c.serial.to_string()).unwrap_or_default(),
        not_after_ms: newest.map_or(0, |c| c.not_after_ms),
        progress: None,
        version: None,
        spare_misses: 0,
        drift: None,
        notes: Vec::new(),
    }
}
