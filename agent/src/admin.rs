//! Protocol between commands and a running agent, over `ROOT/state/agent.sock`.
//!
//! A request is one line of JSON. The answer consists of lines of JSON. The last one is [`Reply::Verified`],
//! [`Reply::Status`], [`Reply::Ordered`],
//! [`Reply::Adopted`] or [`Reply::Error`]. The socket has mode 0600, and every user who
//! may open it may send requests.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use syncd_runtime::local_socket::{LocalConnection, LocalListener, LocalSocketError};
use syncd_runtime::own_directory;
use syncd_shared::Progress;
use syncd_shared::identity::trust::ParseFingerprintError;
use syncd_shared::text::error_chain;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::collected::CollectedReport;
use crate::renew::Keeper;
use crate::session::Handle;
use crate::session::worker::{Decision, Verified};
use crate::status::AgentStatus;

/// Largest number of clients at a time.
const CLIENTS_MAX: usize = 32;
/// Interval between progress lines.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// Path of the admin socket of the agent on `root`.
pub fn socket_path(root: &Path) -> PathBuf {
    root.join("state").join("agent.sock")
}

/// Whether no agent serves the socket, so that the command may open the replica itself.
pub(crate) fn nobody_serves(error: &LocalSocketError) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    matches!(error, LocalSocketError::NotServed { source, .. } if matches!(source.kind(), NotFound | ConnectionRefused))
}

/// A command's request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// `status`.
    Status,
    /// `verify`.
    Verify,
    /// `drain`, `undrain`, `pin`, `unpin`, `accept`.
    Order(Order),
    /// `trust`.
    PinRoot {
        /// Fingerprint of the root key.
        root: String,
    },
    /// `join`, with a new identity for the running agent.
    Adopt {
        /// The identity's text, as it is stored.
        identity: String,
    },
}

/// An order that a person gives on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum Order {
    Drain,
    Undrain,
    /// `None`: the live generation.
    Pin {
        generation: Option<u64>,
    },
    Unpin,
    /// Forget a refusal.
    Accept {
        generation: u64,
    },
}

/// The order as it is typed.
impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drain => f.write_str("drain"),
            Self::Undrain => f.write_str("undrain"),
            Self::Pin { generation: None } => f.write_str("pin"),
            Self::Pin { generation: Some(number) } => write!(f, "pin {number}"),
            Self::Unpin => f.write_str("unpin"),
            Self::Accept { generation } => write!(f, "accept {generation}"),
        }
    }
}

impl From<Order> for Decision {
    fn from(order: Order) -> Self {
        match order {
            Order::Drain => Self::Drain(true),
            Order::Undrain => Self::Drain(false),
            Order::Pin { generation } => Self::Pin(generation),
            Order::Unpin => Self::Unpin,
            Order::Accept { generation } => Self::Accept(generation),
        }
    }
}

/// One line of an answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// Answer to `status`.
    Status(Box<AgentStatus>),
    /// Progress of `verify`.
    Progress(Progress),
    /// Result of `verify`.
    Verified(Verified),
    /// Answer to `join` and `trust`: the new identity is stored and in use.
    Adopted,
    /// The order is durable.
    Ordered,
    /// The request failed.
    Error {
        /// One line that says what to do next.
        message: String,
    },
}

/// Answers requests until `stop`.
pub async fn serve(
    listener: LocalListener,
    session: Handle,
    keeper: Arc<Keeper>,
    collected: watch::Receiver<Option<CollectedReport>>,
    stop: CancellationToken,
) {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = clients.join_next() => {}
            client = listener.accept(), if clients.len() < CLIENTS_MAX => match client {
                Ok(client) => drop(clients.spawn(answer(client, session.clone(), keeper.clone(), collected.clone()))),
                Err(error) => {
                    tracing::warn!(%error, "admin socket");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            },
        }
    }
}

async fn answer(
    mut client: LocalConnection,
    session: Handle,
    keeper: Arc<Keeper>,
    collected: watch::Receiver<Option<CollectedReport>>,
) {
    let answered = match client.request::<Request>().await {
        Ok(Request::Status) => {
            let (status, collected) = (session.status.borrow().clone(), collected.borrow().clone());
            let status = AgentStatus { collected, ..status };
            client.respond(&Reply::Status(Box::new(with_warning(status, keeper).await))).await
        }
        Ok(Request::Verify) => verify(&mut client, &session).await,
        Ok(Request::Order(order)) => client.respond(&give(order, &session).await).await,
        Ok(Request::PinRoot { root }) => client.respond(&pin_root(keeper, root).await).await,
        Ok(Request::Adopt { identity }) => client.respond(&adopt(keeper, identity).await).await,
        Err(error) => client.respond(&Reply::Error { message: error.to_string() }).await,
    };
    if let Err(error) = answered {
        tracing::debug!(%error, "a client of the admin socket went away");
    }
}

/// Adds what only a look at ROOT shows, so that it is never older than the request.
async fn with_warning(status: AgentStatus, keeper: Arc<Keeper>) -> AgentStatus {
    let looked = tokio::task::spawn_blocking(move || own_directory::closed(keeper.root())).await;
    AgentStatus { warning: looked.unwrap_or_default(), ..status }
}

async fn give(order: Order, session: &Handle) -> Reply {
    match session.order(order.into()).await {
        Some(Ok(())) => {
            tracing::info!(%order, "a person has given an order on this node");
            Reply::Ordered
        }
        Some(Err(failure)) => Reply::Error { message: failure.reason },
        None => Reply::Error { message: "the agent stopped: try again when it runs".into() },
    }
}

async fn pin_root(keeper: Arc<Keeper>, root: String) -> Reply {
    let root = match root.parse() {
        Ok(root) => root,
        Err(error) => return Reply::Error { message: error_chain(&error as &ParseFingerprintError) },
    };
    match tokio::task::spawn_blocking(move || keeper.pin_root(root)).await {
        Ok(Ok(())) => {
            tracing::info!(%root, "the operator has pinned a root key");
            Reply::Adopted
        }
        Ok(Err(error)) => Reply::Error { message: error_chain(&error) },
        Err(_) => Reply::Error { message: "the agent is stopping".into() },
    }
}

async fn adopt(keeper: Arc<Keeper>, identity: String) -> Reply {
    let adopted = tokio::task::spawn_blocking(move || keeper.adopt(&identity)).await;
    match adopted {
        Ok(Ok(())) => {
            tracing::info!("this node has joined again: the new identity is in use");
            Reply::Adopted
        }
        Ok(Err(error)) => Reply::Error { message: error_chain(&error) },
        Err(_) => Reply::Error { message: "the agent is stopping".into() },
    }
}

async fn verify(client: &mut LocalConnection, session: &Handle) -> Result<(), LocalSocketError> {
    let (sender, progress) = watch::channel(Progress::default());
    let verification = session.verify(sender);
    tokio::pin!(verification);
    let mut ticks = tokio::time::interval(PROGRESS_EVERY);
    loop {
        let reply = tokio::select! {
            result = &mut verification => {
                return client.respond(&match result {
                    Some(Ok(verified)) => Reply::Verified(verified),
                    Some(Err(failure)) => Reply::Error { message: failure.reason },
                    None => Reply::Error { message: "the agent stopped: try again when it runs".into() },
                }).await;
            }
            _ = ticks.tick() => {
                let now = *progress.borrow();
                Reply::Progress(now)
            }
        };
        client.respond(&reply).await?;
    }
}
