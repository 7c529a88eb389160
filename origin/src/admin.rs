//! What operators ask of an origin, over the socket in DATA or, while nothing serves, of DATA itself.
//!
//! A request is one line of JSON, answered by any number of [`Reply`] lines; the last is [`Reply::Done`] or
//! [`Reply::Error`]. The socket is `DATA/admin.sock`, mode 0600: whoever may open it may do everything.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use syncd_shared::local_socket::{LocalConnection, LocalListener};
use syncd_shared::{GenerationNumber, SignedGeneration};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::commit::{Committer, Outcome};
use crate::desk::Desk;
use crate::error_chain;
use crate::fleet::{AgentState, AgentView, Fleet};
use crate::status::{AgentStatus, Status};

/// Commands that may be under way at once.
const CLIENTS_MAX: usize = 64;
const SOCKET: &str = "admin.sock";

/// Where the socket of a data directory is.
pub fn socket_path(data: &Path) -> PathBuf {
    data.join(SOCKET)
}

/// What an operator asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// `status`.
    Status,
    /// `commit`.
    Commit {
        /// `-m`.
        label: String,
        /// `--allow-mass-deletion`.
        allow_mass_deletion: bool,
        /// `--wait`, `--require-all`.
        wait: Option<Wait>,
    },
    /// `rollback`.
    Rollback {
        /// The generation whose tree is wanted back.
        generation: u64,
        /// `--wait`.
        wait: Option<Wait>,
    },
    /// `token`.
    Token {
        /// `--ttl`, seconds.
        ttl_s: u64,
        /// `--uses`.
        uses: u32,
    },
    /// `history`.
    History,
    /// `diff`.
    Diff {
        /// Number; the parent of `to` where absent.
        from: Option<u64>,
        /// Number; the current generation where absent.
        to: Option<u64>,
    },
    /// `revoke`.
    Revoke {
        /// Name of the agent.
        agent: String,
    },
    /// `check`.
    Check,
}

/// `--wait` and `--require-all`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Wait {
    /// Milliseconds.
    pub timeout_ms: u64,
    /// Enrolled but unreachable nodes fail it too.
    pub require_all: bool,
}

/// One line of an answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// To `status`.
    Status(Box<Status>),
    /// A generation is sealed, or was found to be current already.
    Generation(GenerationLine),
    /// To `commit --wait`: one node.
    Node(NodeLine),
    /// To `token`.
    Token {
        /// The token, in its text form.
        token: String,
    },
    /// To `history`: one generation, oldest first.
    History(GenerationLine),
    /// To `diff`: one path.
    Diff(DiffLine),
    /// Long work goes on.
    Progress {
        /// Bytes done.
        bytes: u64,
        /// Bytes in all.
        total_bytes: u64,
    },
    /// To `check`: one damage.
    Damage {
        /// What and where.
        damage: String,
    },
    /// For a person: a remark that is no result.
    Remark {
        /// One line.
        text: String,
    },
    /// The end: exit code 0, 1 or 3.
    Done {
        /// Exit code.
        code: u8,
    },
    /// The end: it failed.
    Error {
        /// One line that says what to do next.
        message: String,
    },
}

/// A generation, for `history` and `commit`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GenerationLine {
    /// Its number.
    pub generation: u64,
    /// Root hash, hexadecimal.
    pub root: String,
    /// Its label.
    pub label: String,
    /// When it was sealed, RFC 3339.
    pub created: String,
    /// Files in it.
    pub files: u64,
    /// Content bytes in it.
    pub bytes: u64,
    /// Whether it was sealed by this very request.
    pub changed: bool,
}

impl GenerationLine {
    /// Describes a generation.
    pub fn new(signed: &SignedGeneration, changed: bool) -> Self {
        let generation = signed.generation();
        Self {
            generation: generation.number.get(),
            root: signed.root_hash().to_string(),
            label: generation.label.clone(),
            created: crate::status::rfc3339(generation.created_ms),
            files: generation.root.totals.files,
            bytes: generation.root.totals.bytes,
            changed,
        }
    }
}

/// A node, for `commit --wait`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeLine {
    /// Name of the agent.
    pub name: String,
    /// How it went.
    pub result: NodeResult,
    /// Why it failed.
    pub error: Option<String>,
}

/// How it went on one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeResult {
    /// The generation, or a later one, is live there.
    Live,
    /// It is not, though the node is connected.
    Failed,
    /// The node is not connected.
    Unreachable,
}

/// One path that differs between two generations.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DiffLine {
    /// `added`, `removed`, `modified`, `metadata` or `renamed`.
    pub change: String,
    /// The path, escaped where it is not text.
    pub path: String,
    /// Where it was, if renamed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Size in bytes, of files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

/// Where the lines of an answer go. A client that has gone away gets nothing, and what it asked for is done.
struct Replies {
    client: LocalConnection,
}

impl Replies {
    async fn send(&mut self, reply: Reply) {
        if let Err(error) = self.client.respond(&reply).await {
            tracing::debug!(%error, "answer a command");
        }
    }
}

/// Everything that answering takes while the origin serves.
#[derive(Clone)]
pub struct Admin {
    /// What needs only the store.
    pub desk: Arc<Desk>,
    /// Seals.
    pub committer: Committer,
    /// Knows the agents.
    pub fleet: Fleet,
    /// Fills in what only the service knows.
    pub status: Arc<dyn Fn() -> Status + Send + Sync>,
}

impl Admin {
    /// Answers requests until `shutdown` is cancelled.
    pub async fn serve(self, listener: LocalListener, shutdown: CancellationToken) {
        let clients = TaskTracker::new();
        loop {
            let client = tokio::select! {
                () = shutdown.cancelled() => break,
                client = listener.accept() => client,
            };
            match client {
                Ok(client) if clients.len() < CLIENTS_MAX => {
                    clients.spawn(self.clone().attend(client, shutdown.clone()));
                }
                Ok(_) => tracing::warn!("more than {CLIENTS_MAX} commands at once: one was turned away"),
                Err(error) => {
                    tracing::warn!(%error, "accept a command");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        clients.close();
        clients.wait().await;
    }

    /// One client, until it is answered, goes away, or the origin stops.
    async fn attend(self, client: LocalConnection, shutdown: CancellationToken) {
        let mut replies = Replies { client };
        let request = match replies.client.request().await {
            Ok(request) => request,
            Err(error) => return replies.send(Reply::Error { message: error_chain(&error) }).await,
        };
        tokio::select! {
            () = self.answer(request, &mut replies) => {}
            () = shutdown.cancelled() => {}
        }
    }

    async fn answer(&self, request: Request, replies: &mut Replies) {
        let end = match request {
            Request::Status => {
                replies.send(Reply::Status(Box::new((self.status)()))).await;
                Reply::Done { code: 0 }
            }
            Request::Commit { label, allow_mass_deletion, wait } => {
                let outcome = self.committer.commit(label, allow_mass_deletion).await;
                self.published(outcome.map_err(|e| error_chain(&e)), wait, replies).await
            }
            Request::Rollback { generation, wait } => match GenerationNumber::new(generation) {
                None => Reply::Error { message: "generations are numbered from 1".into() },
                Some(number) => {
                    let outcome = self.committer.rollback(number).await;
                    self.published(outcome.map_err(|e| error_chain(&e)), wait, replies).await
                }
            },
            Request::Token { ttl_s, uses } => {
                match self.fleet.create_token(Duration::from_secs(ttl_s), uses).await {
                    Ok(token) => {
                        replies.send(Reply::Token { token: token.to_string() }).await;
                        Reply::Done { code: 0 }
                    }
                    Err(error) => Reply::Error { message: error_chain(&error) },
                }
            }
            Request::Revoke { agent } => match self.fleet.revoke(agent).await {
                Ok(()) => Reply::Done { code: 0 },
                Err(error) => Reply::Error { message: error_chain(&error) },
            },
            request => {
                let desk = self.desk.clone();
                let (sender, mut lines) = mpsc::channel(64);
                let work = tokio::task::spawn_blocking(move || {
                    desk.answer(request, &mut |line| sender.blocking_send(line).is_ok())
                });
                while let Some(line) = lines.recv().await {
                    replies.send(line).await;
                }
                work.await.unwrap_or_else(|e| Reply::Error { message: e.to_string() })
            }
        };
        replies.send(end).await;
    }

    async fn published(
        &self,
        outcome: Result<Outcome, String>,
        wait: Option<Wait>,
        replies: &mut Replies,
    ) -> Reply {
        let (generation, changed) = match outcome {
            Err(message) => return Reply::Error { message },
            Ok(Outcome::Sealed(generation)) => (generation, true),
            Ok(Outcome::Unchanged(generation)) => (generation, false),
            Ok(Outcome::Scanned { .. }) => {
                return Reply::Error { message: "nothing was sealed: see `syncd-origin status`".into() };
            }
        };
        replies.send(Reply::Generation(GenerationLine::new(&generation, changed))).await;
        match wait {
            None => Reply::Done { code: 0 },
            Some(wait) => Reply::Done { code: self.wait(&generation, wait, replies).await },
        }
    }

    /// Waits until every agent that is connected now has `generation`, or a later one, live. Returns the exit code.
    async fn wait(&self, generation: &SignedGeneration, wait: Wait, replies: &mut Replies) -> u8 {
        let mut view = self.fleet.view();
        let number = generation.number();
        let has_it = |agent: &AgentView| agent.generation.is_some_and(|g| g >= number);
        let connected: Vec<String> =
            view.borrow().agents.iter().filter(|a| a.connected).map(|a| a.name.clone()).collect();
        let deadline = tokio::time::sleep(Duration::from_millis(wait.timeout_ms));
        tokio::pin!(deadline);
        let mut live: BTreeMap<String, ()> = BTreeMap::new();
        loop {
            let news: Vec<String> = {
                let fleet = view.borrow_and_update();
                let awaited = fleet.agents.iter().filter(|a| wait.require_all || connected.contains(&a.name));
                awaited.filter(|a| has_it(a) && !live.contains_key(&a.name)).map(|a| a.name.clone()).collect()
            };
            for name in news {
                live.insert(name.clone(), ());
                replies.send(Reply::Node(NodeLine { name, result: NodeResult::Live, error: None })).await;
            }
            let complete = {
                let fleet = view.borrow();
                let mut awaited = fleet.agents.iter().filter(|a| {
                    if wait.require_all {
                        a.connected || !live.contains_key(&a.name)
                    } else {
                        connected.contains(&a.name)
                    }
                });
                awaited.all(|a| {
                    live.contains_key(&a.name) || a.needs_operator || (!a.connected && !wait.require_all)
                })
            };
            if complete {
                break;
            }
            tokio::select! {
                changed = view.changed() => if changed.is_err() { break },
                () = &mut deadline => break,
            }
        }
        let fleet = view.borrow().clone();
        let mut failed = live.is_empty();
        for agent in fleet.agents.iter().filter(|a| !live.contains_key(&a.name)) {
            let was_connected = connected.contains(&agent.name);
            if !was_connected && !wait.require_all && has_it(agent) {
                continue;
            }
            failed |= was_connected || wait.require_all;
            let result = if agent.connected { NodeResult::Failed } else { NodeResult::Unreachable };
            let error = agent.error.clone().or_else(|| {
                agent.connected.then(|| {
                    format!("not live after {} ms, state {}", wait.timeout_ms, state_name(agent.state))
                })
            });
            replies.send(Reply::Node(NodeLine { name: agent.name.clone(), result, error })).await;
        }
        if fleet.agents.is_empty() {
            let text = "no agent is enrolled: `syncd-origin token` makes a join token".to_owned();
            replies.send(Reply::Remark { text }).await;
        }
        if failed { 3 } else { 0 }
    }
}

/// As `status --json` spells it.
pub fn state_name(state: AgentState) -> &'static str {
    match state {
        AgentState::Empty => "empty",
        AgentState::Fetching => "fetching",
        AgentState::Staging => "staging",
        AgentState::Staged => "staged",
        AgentState::Live => "live",
        AgentState::Failed => "failed",
    }
}

impl AgentStatus {
    /// Describes an agent.
    pub fn new(agent: &AgentView) -> Self {
        Self {
            name: agent.name.to_string(),
            connected: agent.connected,
            generation: agent.generation.map(GenerationNumber::get),
            root: agent.root.map(|r| r.to_string()),
            state: state_name(agent.state).to_owned(),
            last_seen: (agent.last_seen_ms > 0).then(|| crate::status::rfc3339(agent.last_seen_ms)),
            error: agent.error.clone(),
        }
    }
}
