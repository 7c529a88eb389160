//! Requests that changed something, with user and process, and joins of nodes: the log `DATA/audit`, for
//! `syncd-origin audit`.
//!
//! A line is durable before its deed begins, or before the generation that its deed seals, so that no deed is
//! missing; a request that then fails is there as well. While the log can't be written, nothing is done.
//! Requests that only read are not recorded.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use syncd_runtime::local_socket::{LocalConnection, Peer};
use syncd_shared::identity::AgentName;
use syncd_shared::text::one_line;

use crate::admin::protocol::Request;
use crate::clock::now_ms;
use crate::line_log::{self, Durability, LineLog, LineLogError, Numbered};
use crate::metrics::metrics;

/// Fields of requests that are secret or long.
const LEFT_OUT: [&str; 2] = ["passphrase", "document"];
/// Longest value that is shown.
const SHOWN_MAX_BYTES: usize = 200;

/// Names of requests that are recorded, and of joins.
pub const ACTIONS: [&str; 16] = [
    "backup",
    "check",
    "collected",
    "commit",
    "join",
    "node",
    "page",
    "promote",
    "publish",
    "revoke",
    "revoke_token",
    "rollback",
    "rollout",
    "rotate_keys",
    "take_trust",
    "token",
];

/// Errors of recording a deed.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error(
        "nothing was done, because it can't be recorded: free space on the disk of DATA, or mend its permissions"
    )]
    Write(#[from] LineLogError),
    #[error("nothing was done, because the request can't be recorded")]
    Request(#[from] serde_json::Error),
    #[error("nothing was done, because it is not known who asks")]
    Peer(#[source] std::io::Error),
    #[error("nothing was done: the origin is stopping")]
    Stopping,
}

/// A deed of an operator, or the join of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deed {
    /// The operator; `None`: a node.
    #[serde(flatten)]
    pub by: Option<Peer>,
    /// The request and its fields.
    #[serde(flatten)]
    pub request: Map<String, Value>,
}

impl Deed {
    fn new(by: Peer, request: &Request) -> Result<Self, serde_json::Error> {
        let mut request = match serde_json::to_value(request)? {
            Value::Object(request) => request,
            other => Map::from_iter([("request".to_owned(), other)]),
        };
        request.retain(|_, value| !value.is_null());
        for field in LEFT_OUT {
            if let Some(value) = request.get_mut(field) {
                *value = "(left out)".into();
            }
        }
        Ok(Self { by: Some(by), request })
    }

    /// Name of the request, or `join`.
    fn action(&self) -> &str {
        self.request.get("request").and_then(Value::as_str).unwrap_or("?")
    }

    /// A join with the token of this ID.
    fn join(node: &AgentName, address: Option<SocketAddr>, token: &str) -> Self {
        let fields = [
            ("request", Some("join".to_owned())),
            ("node", Some(node.to_string())),
            ("address", address.map(|address| address.to_string())),
            ("token", Some(token.to_owned())),
        ];
        let fields = fields.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?.into())));
        Self { by: None, request: fields.collect() }
    }
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let action = one_line(self.action(), SHOWN_MAX_BYTES);
        match &self.by {
            Some(by) => write!(f, "{by}  {action}")?,
            None => write!(f, "a node  {action}")?,
        }
        let fields = self.request.iter().filter(|(key, value)| {
            let is_unset = matches!(value, Value::Bool(false)) || value.as_str() == Some("");
            key.as_str() != "request" && !is_unset
        });
        for (key, value) in fields {
            write!(
                f,
                "  {}={}",
                one_line(key, SHOWN_MAX_BYTES),
                one_line(&value.to_string(), SHOWN_MAX_BYTES)
            )?;
        }
        Ok(())
    }
}

/// Path of the log of a data directory.
pub fn path(data: &Path) -> PathBuf {
    data.join("audit")
}

/// All recorded deeds of a data directory, oldest first. Blocks.
pub fn read(data: &Path) -> Result<Vec<Numbered<Deed>>, LineLogError> {
    line_log::read(&path(data))
}

/// The log of a data directory whose lock is held. Cheap to clone.
#[derive(Clone)]
pub struct Audit {
    log: Arc<Mutex<LineLog>>,
}

impl Audit {
    /// Opens the log. Blocks.
    pub fn open(data: &Path) -> Result<Self, LineLogError> {
        Ok(Self { log: Arc::new(Mutex::new(LineLog::open(&path(data))?)) })
    }

    /// Writes a line, unless the request only reads. It is durable on return, unless the request seals a
    /// generation. Blocks.
    pub fn record(&self, by: Peer, request: &Request) -> Result<(), AuditError> {
        if request.only_reads() {
            return Ok(());
        }
        let durability = if request.seals() { Durability::Written } else { Durability::Synced };
        self.append(Deed::new(by, request)?, durability)
    }

    /// Makes every line durable. Does nothing if they are. Blocks.
    pub fn sync(&self) -> Result<(), AuditError> {
        Ok(self.log.lock().unwrap_or_else(PoisonError::into_inner).sync()?)
    }

    /// Like [`Self::record`], for the operator at the other end of a connection. Not cancel safe: the line
    /// may be written after it was cancelled.
    pub async fn record_of(&self, client: &LocalConnection, request: &Request) -> Result<(), AuditError> {
        let (audit, request) = (self.clone(), request.clone());
        let peer = client.peer().map_err(AuditError::Peer)?;
        let recorded = tokio::task::spawn_blocking(move || audit.record(peer, &request)).await;
        recorded.unwrap_or(Err(AuditError::Stopping))
    }

    /// Like [`Self::sync`], on another thread.
    pub async fn synced(&self) -> Result<(), AuditError> {
        let audit = self.clone();
        tokio::task::spawn_blocking(move || audit.sync()).await.unwrap_or(Err(AuditError::Stopping))
    }

    /// Makes a line durable for a node that is about to join. Not cancel safe, as [`Self::record_of`].
    pub async fn record_join(
        &self,
        node: &AgentName,
        address: Option<SocketAddr>,
        token: &str,
    ) -> Result<(), AuditError> {
        let (audit, deed) = (self.clone(), Deed::join(node, address, token));
        let recorded = tokio::task::spawn_blocking(move || audit.append(deed, Durability::Synced)).await;
        recorded.unwrap_or(Err(AuditError::Stopping))
    }

    fn append(&self, deed: Deed, durability: Durability) -> Result<(), AuditError> {
        let action = deed.action().to_owned();
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.append(now_ms(), deed, durability)?;
        metrics().audited(action);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::protocol::{RotateKeys, Wait};

    fn peer() -> Peer {
        Peer { uid: 33, login: Some(1000), pid: Some(7) }
    }

    #[test]
    fn a_deed_is_recorded_without_secrets_and_a_question_is_not() {
        let data = tempfile::tempdir().unwrap();
        let audit = Audit::open(data.path()).unwrap();
        let label = "a \"b\"\u{202e}".to_owned();
        let (rollout, now, wait) = (None, false, None);
        let commit = Request::Commit { label, allow_mass_deletion: true, rescan: false, rollout, now, wait };
        let keys = RotateKeys { root: true, passphrase: Some("secret".into()), ..RotateKeys::default() };
        let waits = Request::Wait { generation: 1, wait: Wait { timeout_ms: 1, require_all: false } };
        for request in [commit, Request::Status, waits, Request::History, Request::RotateKeys(keys)] {
            audit.record(peer(), &request).unwrap();
        }
        audit.record(peer(), &Request::TakeTrust { document: "long".into() }).unwrap();
        let deeds = read(data.path()).unwrap();
        assert!(deeds.iter().all(|deed| ACTIONS.contains(&deed.what.action())), "{deeds:?}");
        let shown: Vec<String> = deeds.iter().map(|deed| deed.what.to_string()).collect();
        assert_eq!(
            shown,
            [
                "uid 33, login 1000, pid 7  commit  allow_mass_deletion=true  label=\"a \\\"b\\\"\\u{202e}\"",
                "uid 33, login 1000, pid 7  rotate_keys  passphrase=\"(left out)\"  root=true",
                "uid 33, login 1000, pid 7  take_trust  document=\"(left out)\"",
            ]
        );
        let text = std::fs::read_to_string(path(data.path())).unwrap();
        assert!(!text.contains("secret") && !text.contains("long"), "{text}");
    }

    #[tokio::test]
    async fn a_join_is_recorded_with_address_and_token() {
        let data = tempfile::tempdir().unwrap();
        let audit = Audit::open(data.path()).unwrap();
        let (node, address) = ("web1".parse().unwrap(), "[2001:db8::7]:4711".parse().unwrap());
        audit.record_join(&node, Some(address), "0a1b2c3d").await.unwrap();
        audit.record(peer(), &Request::Promote).unwrap();
        let deeds = read(data.path()).unwrap();
        let shown: Vec<String> = deeds.iter().map(|deed| deed.what.to_string()).collect();
        let join = r#"a node  join  address="[2001:db8::7]:4711"  node="web1"  token="0a1b2c3d""#;
        assert_eq!(shown, [join, "uid 33, login 1000, pid 7  promote"]);
    }
}
