//! `syncd-agent join`: enrols a node as an agent, or enrols it again.
//!
//! The token pins the root key of the tree. Before the secret is sent, the origin's trust document must be
//! signed by it, and the origin must prove that it has the authority of that document. Only the identity file
//! is written. An existing replica stays as it is, so a node whose certificate was revoked continues where it
//! was, under its former name. While an agent runs on ROOT, the agent owns the identity file: it gets the new
//! identity, stores it and connects with it.

#![cfg_attr(not(test), expect(clippy::disallowed_methods, reason = "ROOT, which the operator names"))]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use syncd_proto::v1;
use syncd_proto::v1::enrolment_client::EnrolmentClient;
use syncd_runtime::channel::{ConnectError, connect};
use syncd_runtime::local_socket::{self, LocalSocketError};
use syncd_runtime::own_directory::{self, Access, DirectoryError};
use syncd_runtime::tls::ClientTls;
use syncd_runtime::tls::TlsError;
use syncd_shared::TreeId;
use syncd_shared::identity::{AgentName, JoinToken, SignedTrust};
use syncd_shared::marks::{self, Mark};
use tonic::transport::Channel;

use crate::admin::{Reply, Request, nobody_serves, socket_path};
use crate::adopt::{self, AdoptError, Adopted};
use crate::backoff::Backoff;
use crate::identity::{AgentIdentity, IdentityError, PendingKey};
use crate::trust::ask_trust_on;

/// Longest wait for a free place, when many nodes join at once.
const PATIENCE: Duration = Duration::from_secs(20);
/// Shortest and longest pause between attempts.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(2)];

/// Input of [`join`].
#[derive(Debug, Clone)]
pub struct JoinOptions {
    /// Address of the origin, HOST:PORT. Stored in the identity.
    pub address: String,
    /// ROOT. Created if it is missing.
    pub root: PathBuf,
    /// Token from `syncd-origin token`.
    pub token: JoinToken,
    /// Requested name. By default the name that ROOT has, or this machine's host name.
    pub name: Option<AgentName>,
    /// Whether the name may differ from the one that ROOT has.
    pub rename: bool,
    /// Group of the node in the fleet, for rollouts.
    pub group: Option<String>,
    /// Directory whose contents need not be fetched.
    pub adopt: Option<PathBuf>,
}

/// Result of [`join`].
#[derive(Debug)]
pub struct Joined {
    /// The new identity.
    pub identity: AgentIdentity,
    /// Former name, if the node had joined before.
    pub earlier_name: Option<AgentName>,
    /// Whether an agent runs on ROOT. It already uses the new identity.
    pub is_running: bool,
    /// Contents taken over from [`JoinOptions::adopt`].
    pub adopted: Option<Adopted>,
}

/// Reason why a node did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The root directory could not be created or read.
    #[error("can't make the root directory {}", path.display())]
    Root {
        /// Path of the directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The root directory contains foreign files.
    #[error("{} holds files that are not syncd's: give an empty directory with --root", path.display())]
    ForeignFiles {
        /// Path of the directory.
        path: PathBuf,
    },
    /// ROOT lies in a directory that another origin or agent manages.
    #[error("{} lies inside {}, {mark}: give a --root outside of it", path.display(), above.display())]
    Inside {
        /// ROOT.
        path: PathBuf,
        /// The managed directory above ROOT.
        above: PathBuf,
        /// Manager of that directory: an origin or an agent.
        mark: Mark,
    },
    /// The replica belongs to another tree.
    #[error("{} is a replica of tree {has}, the token is for tree {wants}: give another --root", path.display())]
    OtherTree {
        /// Path of the replica.
        path: PathBuf,
        /// Tree of the replica.
        has: TreeId,
        /// Tree of the token.
        wants: TreeId,
    },
    /// The name would change, which needs `--rename`: the old name stays enrolled.
    #[error(
        "{} is {has} already: leave out --name to stay {has}, or add --rename to become {wants} (then {has} stays enrolled \
         until `syncd-origin revoke {has}`)",
        path.display()
    )]
    OtherName {
        /// ROOT.
        path: PathBuf,
        /// Current name.
        has: AgentName,
        /// Requested name.
        wants: AgentName,
    },
    /// Neither ROOT nor this machine has a valid name.
    #[error("this host has no usable name: give one with --name")]
    NoName,
    /// An agent runs on ROOT and could not be reached. The new identity is stored.
    #[error("joined, but the running agent does not use the new identity yet: restart it")]
    HandOver(#[source] LocalSocketError),
    /// The running agent refused the new identity.
    #[error("joined, but the running agent refused the new identity: {message}")]
    NotAdopted {
        /// Reply of the agent.
        message: String,
    },
    /// The root directory belongs to another user.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The origin had no free place for the whole wait.
    #[error("too many nodes join at once from this address, or in all: join again when they are done")]
    Crowded(#[source] ConnectError),
    /// Another origin answered than the token names, or it has not the authority of its trust document.
    #[error(
        "this token was made by another origin than the one at {address}: run `syncd-origin token` there, or check the address"
    )]
    OtherOrigin {
        /// Address that was dialled.
        address: String,
        /// The check that failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The connection failed.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The TLS configuration is invalid.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The origin refused.
    #[error("the origin refused to let this node join")]
    Refused(#[source] tonic::Status),
    /// The origin's answer is invalid, or could not be stored.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The directory of `--adopt` is refused. Nothing was changed.
    #[error(transparent)]
    Adopt(#[from] AdoptError),
    /// The node has joined, and contents of the directory were not copied.
    #[error("joined, but {} is not adopted in full: what is missing will be fetched", from.display())]
    AdoptedInPart {
        /// The directory of `--adopt`.
        from: PathBuf,
        /// The cause.
        source: AdoptError,
    },
}

/// Joins, and stores the identity durably. Not cancel safe: the token may be used up before the identity is
/// stored.
pub async fn join(options: JoinOptions) -> Result<Joined, JoinError> {
    let before = check_root(&options.root, options.token.tree_id)?;
    if let Some(from) = &options.adopt {
        adopt::check(&options.root, from)?;
    }
    let document = trust_of(&options).await?;
    if let Some(before) = before.as_ref().map(AgentIdentity::trust)
        && before.root == options.token.root
        && let Err(error) = before.newer(document.bytes())
    {
        return Err(JoinError::OtherOrigin { address: options.address.clone(), source: Box::new(error) });
    }
    let earlier_name = before.map(|before| before.name().clone());
    let name = choose_name(&options, earlier_name.as_ref())?;
    let tls = ClientTls::joining(options.token.tree_id, &document.document().authority)?;
    let channel = connect_in_turn(&options.address, tls).await?;
    let pending = PendingKey::generate()?;
    let request = v1::JoinRequest {
        tree_id: Bytes::copy_from_slice(options.token.tree_id.as_bytes()),
        secret: Bytes::copy_from_slice(&options.token.secret),
        name: Bytes::copy_from_slice(name.as_str().as_bytes()),
        certificate_request: Bytes::copy_from_slice(pending.request()),
        group: options.group.clone().unwrap_or_default(),
    };
    // Errors that would prevent storing the identity are found before the token is used up.
    let _leftovers = Leftovers::of(options.root.join("state"));
    own_directory::claim(&options.root, Access::Served)?;
    own_directory::claim_inside(&options.root.join("state"), Access::Private)?;
    if let Some(closed) = own_directory::closed(&options.root) {
        tracing::warn!("{closed}");
    }
    let answer = EnrolmentClient::new(channel).join(request).await.map_err(JoinError::Refused)?.into_inner();
    let identity =
        AgentIdentity::joined(&options.token, &options.address, pending, &answer.certificate, document)?;
    let is_running = hand_over(&options.root, &identity).await?;
    let adopted = adopt_contents(options.root, options.adopt).await?;
    Ok(Joined { identity, earlier_name, is_running, adopted })
}

/// Takes over the contents of `from`, on a thread that may block.
async fn adopt_contents(root: PathBuf, from: Option<PathBuf>) -> Result<Option<Adopted>, JoinError> {
    let Some(from) = from else { return Ok(None) };
    let path = from.clone();
    let adopting = tokio::task::spawn_blocking(move || adopt::adopt(&root, &path));
    let adopted = adopting.await.expect("adopting does not panic");
    adopted.map(Some).map_err(|source| JoinError::AdoptedInPart { from, source })
}

/// The trust document of the origin, checked against the token.
async fn trust_of(options: &JoinOptions) -> Result<SignedTrust, JoinError> {
    let JoinOptions { address, token, .. } = options;
    let other = |source| JoinError::OtherOrigin { address: address.clone(), source };
    let channel = connect_in_turn(address, ClientTls::untrusting(token.tree_id)?).await?;
    let document = ask_trust_on(channel, token.tree_id).await.map_err(|status| match status.code() {
        tonic::Code::FailedPrecondition => other(Box::new(status)),
        _ => JoinError::Refused(status),
    })?;
    token.check(&document).map_err(|error| other(Box::new(error)))
}

/// Directories that were created, deepest first. Dropping this removes those that are still empty, so a
/// refused join leaves nothing behind.
struct Leftovers(Vec<PathBuf>);

impl Leftovers {
    fn of(path: PathBuf) -> Self {
        let missing = path.ancestors().take_while(|above| above.symlink_metadata().is_err());
        Self(missing.map(Path::to_owned).collect())
    }
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        // A stored identity keeps its directories from being removed.
        let _ = self.0.iter().try_for_each(fs::remove_dir);
    }
}

fn choose_name(options: &JoinOptions, has: Option<&AgentName>) -> Result<AgentName, JoinError> {
    match (has, &options.name) {
        (Some(has), Some(wants)) if has != wants && !options.rename => {
            Err(JoinError::OtherName { path: options.root.clone(), has: has.clone(), wants: wants.clone() })
        }
        (has, wants) => wants.as_ref().or(has).cloned().or_else(default_name).ok_or(JoinError::NoName),
    }
}

/// Hands a new identity to the agent that runs on `root`, or stores it if none runs. Returns whether one
/// runs.
async fn hand_over(root: &Path, identity: &AgentIdentity) -> Result<bool, JoinError> {
    match ask_to_adopt(root, identity).await {
        Ok(()) => return Ok(true),
        Err(JoinError::HandOver(error)) if nobody_serves(&error) => identity.store(root)?,
        // The token is used up, so the identity must not be lost.
        Err(error @ JoinError::HandOver(_)) => {
            identity.store(root)?;
            return Err(error);
        }
        Err(error) => return Err(error),
    }
    // An agent started meanwhile may have read the old file or the new one, so it is asked again.
    match ask_to_adopt(root, identity).await {
        Err(JoinError::HandOver(error)) if nobody_serves(&error) => Ok(false),
        asked => asked.map(|()| true),
    }
}

async fn ask_to_adopt(root: &Path, identity: &AgentIdentity) -> Result<(), JoinError> {
    let request = Request::Adopt { identity: identity.to_text() };
    match local_socket::request_one::<_, Reply>(&socket_path(root), &request).await {
        Ok(Reply::Adopted) => Ok(()),
        Ok(Reply::Error { message }) => Err(JoinError::NotAdopted { message }),
        Ok(_) => Err(JoinError::NotAdopted { message: "it is of another version: restart it".into() }),
        Err(error) => Err(JoinError::HandOver(error)),
    }
}

/// Connects. Waits for a free place if the origin has none. Cancel safe.
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
                tracing::info!(%error, "waiting for a free place at the origin");
                tokio::time::sleep(pauses.pause()).await;
            }
            Err(source @ ConnectError::WrongOrigin { .. }) => {
                return Err(JoinError::OtherOrigin { address: address.to_owned(), source: source.into() });
            }
            connected => return Ok(connected?),
        }
    }
}

/// Refuses a foreign directory and a replica of another tree. Returns the identity found there.
pub(crate) fn check_root(root: &Path, wants: TreeId) -> Result<Option<AgentIdentity>, JoinError> {
    let read_error = |source| JoinError::Root { path: root.to_owned(), source };
    if let Some((above, mark)) = marks::above(root).map_err(read_error)? {
        return Err(JoinError::Inside { path: root.to_owned(), above, mark });
    }
    match AgentIdentity::load(root) {
        Ok(before) if before.tree_id() != wants => {
            return Err(JoinError::OtherTree { path: root.to_owned(), has: before.tree_id(), wants });
        }
        Ok(before) => return Ok(Some(before)),
        // Joining again replaces a damaged identity.
        Err(IdentityError::Damaged { .. }) => return Ok(None),
        Err(IdentityError::NotJoined { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(read_error(error)),
    };
    for entry in entries {
        let name = entry.map_err(read_error)?.file_name();
        // The root of a file system has this directory.
        if name != "lost+found" && name != "state" {
            return Err(JoinError::ForeignFiles { path: root.to_owned() });
        }
    }
    Ok(None)
}

/// Turns the host name into an agent's name: the part before the first dot, with "-" in place of invalid
/// characters.
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
