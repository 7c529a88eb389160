//! Requests that changed something, with user and process: the log `DATA/audit`, for `syncd-origin audit`.
//!
//! A line is durable before its deed begins, so that no deed is missing; a request that then fails is there
//! as well. While the log can't be written, nothing is done. Requests that only read are not recorded.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use syncd_runtime::local_socket::Peer;
use syncd_shared::text::one_line;

use crate::admin::protocol::Request;
use crate::clock::now_ms;
use crate::line_log::{self, Durability, LineLog, LineLogError, Numbered};

/// Fields of requests that are secret or long.
const LEFT_OUT: [&str; 2] = ["passphrase", "document"];
/// Longest value that is shown.
const SHOWN_MAX_BYTES: usize = 200;

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

/// A deed of an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deed {
    #[serde(flatten)]
    pub by: Peer,
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
        Ok(Self { by, request })
    }
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.request.get("request").and_then(Value::as_str).unwrap_or("?");
        write!(f, "{}  {}", self.by, one_line(name, SHOWN_MAX_BYTES))?;
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

fn path(data: &Path) -> PathBuf {
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

    /// Makes a line durable, unless the request only reads. Blocks.
    pub fn record(&self, by: Peer, request: &Request) -> Result<(), AuditError> {
        if request.only_reads() {
            return Ok(());
        }
        let deed = Deed::new(by, request)?;
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.append(now_ms(), deed, Durability::Synced)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::protocol::RotateKeys;

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
        for request in [commit, Request::Status, Request::History, Request::RotateKeys(keys)] {
            audit.record(peer(), &request).unwrap();
        }
        audit.record(peer(), &Request::TakeTrust { document: "long".into() }).unwrap();
        let deeds = read(data.path()).unwrap();
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
}
