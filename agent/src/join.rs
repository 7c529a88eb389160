//! `syncd-agent join`: how a node becomes an agent, or becomes it again.
//!
//! The origin is pinned by the token before the secret is sent. Only the identity file is written; a replica that is
//! there stays as it is, so that a node whose certificate was revoked or expired goes on where it was.

#![cfg_attr(not(test), expect(clippy::disallowed_methods, reason = "ROOT, which the operator names"))]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use syncd_proto::v1;
use syncd_proto::v1::enrolment_client::EnrolmentClient;
use syncd_shared::TreeId;
use syncd_shared::identity::tls::TlsError;
use syncd_shared::identity::{AgentName, ClientTls, ConnectError, JoinToken, connect};
use syncd_shared::marks::{self, Mark};
use tonic::transport::Channel;

use crate::backoff::Backoff;
use crate::identity::{AgentIdentity, IdentityError, PendingKey};

/// How long a node waits for its turn where many join at once.
const PATIENCE: Duration = Duration::from_secs(20);
/// Pauses between its attempts.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(2)];

/// What joining takes.
#[derive(Debug, Clone)]
pub struct JoinOptions {
    /// The origin, HOST:PORT; remembered.
    pub address: String,
    /// ROOT; made if it is missing.
    pub root: PathBuf,
    /// From `syncd-origin token`.
    pub token: JoinToken,
    /// The name wished for.
    pub name: AgentName,
}

/// Why a node did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The root directory is not what it must be.
    #[error("can't make the root directory {}", path.display())]
    Root {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Someone else's files.
    #[error("{} holds files that are not syncd's: give an empty directory with --root", path.display())]
    ForeignFiles {
        /// The directory.
        path: PathBuf,
    },
    /// ROOT lies in a directory that another origin or agent manages.
    #[error("{} lies inside {}, {mark}: give a --root outside of it", path.display(), above.display())]
    Inside {
        /// ROOT.
        path: PathBuf,
        /// The other directory.
        above: PathBuf,
        /// What it is.
        mark: Mark,
    },
    /// The replica is of another tree.
    #[error("{} is a replica of tree {has}, the token is for tree {wants}: give another --root", path.display())]
    OtherTree {
        /// The directory.
        path: PathBuf,
        /// What it is a replica of.
        has: TreeId,
        /// What the token is for.
        wants: TreeId,
    },
    /// Others were before it for all of the time.
    #[error("too many nodes join at once from this address, or in all: join again when they are done")]
    Crowded(#[source] ConnectError),
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// No TLS configuration.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The origin said no.
    #[error("the origin refused to let this node join")]
    Refused(#[source] tonic::Status),
    /// Its answer does not hold, or can't be stored.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Joins, and stores the identity durably. Not cancel safe: a token may be spent without the identity being stored.
pub async fn join(options: JoinOptions) -> Result<AgentIdentity, JoinError> {
    check_root(&options.root, options.token.tree_id)?;
    let tls = ClientTls::join(&options.token)?;
    let channel = connect_in_turn(&options.address, tls).await?;
    let pending = PendingKey::generate()?;
    let request = v1::JoinRequest {
        tree_id: Bytes::copy_from_slice(options.token.tree_id.as_bytes()),
        secret: Bytes::copy_from_slice(&options.token.secret),
        name: options.name.to_string(),
        certificate_request: Bytes::copy_from_slice(pending.request()),
    };
    // Before the token is spent: what would keep the identity from being stored.
    fs::create_dir_all(&options.root)
        .map_err(|source| JoinError::Root { path: options.root.clone(), source })?;
    let answer = EnrolmentClient::new(channel).join(request).await.map_err(JoinError::Refused)?.into_inner();
    let identity = AgentIdentity::joined(
        &options.token,
        &options.address,
        pending,
        &answer.certificate,
        &answer.ca_certificate,
        &answer.signing_key,
    )?;
    identity.store(&options.root)?;
    Ok(identity)
}

/// Connects, and waits for its turn where the origin has no room. Cancel safe.
async fn connect_in_turn(address: &str, tls: ClientTls) -> Result<Channel, JoinError> {
    let started = Instant::now();
    let [shortest, longest] = PAUSES;
    let mut pauses = Backoff::new(shortest, longest);
    loop {
        match connect(address, tls.clone()).await {
            Err(error @ ConnectError::Busy { .. }) if started.elapsed() >= PATIENCE => {
                return Err(JoinError::Crowded(error));
            }
            Err(error @ ConnectError::Busy { .. }) => {
                tracing::info!(%error, "waiting for a turn");
                tokio::time::sleep(pauses.pause()).await;
            }
            connected => return Ok(connected?),
        }
    }
}

/// Refuses a directory of someone else's, and a replica of another tree.
fn check_root(root: &Path, wants: TreeId) -> Result<(), JoinError> {
    let read_error = |source| JoinError::Root { path: root.to_owned(), source };
    if let Some((above, mark)) = marks::above(root).map_err(read_error)? {
        return Err(JoinError::Inside { path: root.to_owned(), above, mark });
    }
    match AgentIdentity::load(root) {
        Ok(before) if before.tree_id() != wants => {
            return Err(JoinError::OtherTree { path: root.to_owned(), has: before.tree_id(), wants });
        }
        // A damaged identity is what joining again is for.
        Ok(_) | Err(IdentityError::Damaged { .. }) => return Ok(()),
        Err(IdentityError::NotJoined { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(read_error(error)),
    };
    for entry in entries {
        let name = entry.map_err(read_error)?.file_name();
        // A file system of its own has this directory.
        if name != "lost+found" && name != "state" {
            return Err(JoinError::ForeignFiles { path: root.to_owned() });
        }
    }
    Ok(())
}

/// The name of this machine, as far as it may be an agent's: up to the first dot, other characters as "-".
pub fn default_name() -> Option<AgentName> {
    let system = rustix::system::uname();
    let node = system.nodename().to_string_lossy().to_ascii_lowercase();
    let short = node.split('.').next().unwrap_or_default();
    let clean: String = short.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    clean.trim_matches('-').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: TreeId = TreeId::from_bytes([5; 16]);

    #[test]
    fn a_directory_of_someone_else_is_refused_and_stays() {
        let scratch = tempfile::tempdir().unwrap();
        assert!(check_root(scratch.path(), TREE).is_ok());
        assert!(check_root(&scratch.path().join("missing"), TREE).is_ok());
        fs::write(scratch.path().join("index.html"), "precious").unwrap();
        assert!(matches!(check_root(scratch.path(), TREE), Err(JoinError::ForeignFiles { .. })));
        assert_eq!(fs::read(scratch.path().join("index.html")).unwrap(), b"precious");
    }

    #[test]
    fn this_machine_has_a_name() {
        assert!(default_name().is_none_or(|name| !name.as_str().contains('.')));
    }
}
