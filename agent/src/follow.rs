//! Follows a published tree: plays the origin's part of the conversation from what lies in an object store.
//!
//! The session hears what an origin would say: a welcome, and an announcement whenever `head` names another
//! generation. Everything it hears is checked as if it came from an origin. Nothing is reported back.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use syncd_proto::v1;
use syncd_proto::v1::agent_message::Message as ToOrigin;
use syncd_proto::v1::origin_message::Message as FromOrigin;
use syncd_runtime::bucket::{BucketUrl, OpenBucketError};
use syncd_runtime::published::{ReadError, Reader};
use syncd_shared::SignedGeneration;
use syncd_shared::identity::{RootFingerprint, SignedTrust};
use syncd_shared::published;
use syncd_shared::text::error_chain;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::backoff::random_fraction;
use crate::dialer::Dialer;
use crate::identity::{AgentIdentity, IdentityError, Trusted};
use crate::join::{JoinError, check_root, default_name};
use crate::session::event::Event;
use crate::session::messages::PROTOCOL_MAX;
use crate::source::published::{PublishedSource, Released};

/// Time between two looks at `head`, to which up to half is added.
const LOOK: Duration = Duration::from_secs(4);

/// Options of following.
#[derive(Debug, Clone)]
pub struct FollowOptions {
    /// `--follow`.
    pub url: BucketUrl,
    /// `--trust`.
    pub root: RootFingerprint,
    /// `--head-max-age`.
    pub head_max_age: Option<Duration>,
}

/// Reason why nothing is followed.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The settings for `--follow` do not fit together.
    #[error(transparent)]
    Open(#[from] OpenBucketError),
    /// The first contact failed: without it the node does not know what to trust.
    #[error("can't read the published tree for the first time")]
    First(#[from] ReadError),
    /// The node trusts another root key.
    #[error("this node trusts root key {has}, and --trust names {wants}: `syncd-agent trust` changes it")]
    OtherRoot { has: RootFingerprint, wants: RootFingerprint },
    /// ROOT can't become a replica of this tree.
    #[error(transparent)]
    Root(#[from] JoinError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("this machine has no name that could be the agent's: give it a host name")]
    NoName,
    #[error("the agent is stopping")]
    Stopping,
}

/// The identity of a node that follows: its own if it has one, otherwise one that trusts what the root key
/// has signed.
pub(crate) async fn identity(root: &Path, follow: FollowOptions) -> Result<AgentIdentity, FollowError> {
    let root = root.to_owned();
    let identity = tokio::task::spawn_blocking(move || load_or_make(&root, &follow));
    identity.await.map_err(|_| FollowError::Stopping)?
}

fn load_or_make(root: &Path, follow: &FollowOptions) -> Result<AgentIdentity, FollowError> {
    let identity = match AgentIdentity::load(root) {
        Err(IdentityError::NotJoined { .. }) => {
            let trust = Reader::new(follow.url.open()?).first_trust(follow.root)?;
            check_root(root, trust.document().tree_id)?;
            let name = default_name().ok_or(FollowError::NoName)?;
            let trusted = Trusted::new(follow.root, trust);
            let identity = AgentIdentity::following(&name, &follow.url.to_string(), trusted)?;
            identity.store(root)?;
            identity
        }
        identity => identity?,
    };
    let has = identity.trust().root;
    if has == follow.root { Ok(identity) } else { Err(FollowError::OtherRoot { has, wants: follow.root }) }
}

/// Reads `head` for one agent. Clones share what they have seen.
#[derive(Clone)]
pub(crate) struct Follower {
    reader: Reader,
    released: Released,
    /// Time of the release that was seen last, in milliseconds since 1970.
    head_ms: Arc<watch::Sender<Option<i64>>>,
    /// Time of the start, in milliseconds since 1970.
    started_ms: i64,
    max_age: Option<Duration>,
}

impl Follower {
    pub(crate) fn new(follow: &FollowOptions) -> Result<Self, FollowError> {
        let now = time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000;
        Ok(Self {
            reader: Reader::new(follow.url.open()?),
            released: Released::default(),
            head_ms: Arc::new(watch::Sender::new(None)),
            started_ms: now as i64,
            max_age: follow.head_max_age,
        })
    }

    /// The source of the released generation, until `abandoned` is cancelled.
    pub(crate) fn source(&self, abandoned: CancellationToken) -> PublishedSource {
        PublishedSource::new(self.reader.clone(), self.released.clone(), abandoned)
    }

    /// Time of the release that was seen last, in milliseconds since 1970.
    pub(crate) fn head_ms(&self) -> Option<i64> {
        *self.head_ms.borrow()
    }

    /// Time at which the release that was seen last is too old, in milliseconds since 1970. Counts from the
    /// start until one is seen. `None`: without `--head-max-age`.
    pub(crate) fn head_due_ms(&self) -> Option<i64> {
        let since = self.head_ms().unwrap_or(self.started_ms);
        self.max_age.map(|age| since.saturating_add(i64::try_from(age.as_millis()).unwrap_or(i64::MAX)))
    }

    /// Sends what an origin would send, until the store can't be read.
    pub(crate) async fn converse(
        self,
        dialer: Dialer,
        mut to_send: mpsc::Receiver<v1::AgentMessage>,
        events: mpsc::Sender<Event>,
    ) {
        let mut seen = None;
        let lost = loop {
            let trust = dialer.route().trust;
            let looking = (self.clone(), trust, seen.clone());
            let look = tokio::task::spawn_blocking(move || {
                let (follower, trust, seen) = looking;
                follower.look(&trust, seen.as_ref())
            });
            let messages = match look.await {
                Ok(Ok(None)) => Vec::new(),
                Ok(Ok(Some((object, messages)))) => {
                    seen = Some(object);
                    messages
                }
                Ok(Err(error)) => break error_chain(&error),
                Err(_) => return,
            };
            for message in messages {
                let message = v1::OriginMessage { message: Some(message) };
                if events.send(Event::Message(message)).await.is_err() {
                    return;
                }
            }
            let pause = LOOK + LOOK.mul_f64(random_fraction() / 2.0);
            if tokio::time::timeout(pause, answer_heartbeats(&mut to_send, &events)).await.is_ok() {
                return;
            }
        };
        let _ = events.send(Event::Lost(lost)).await;
    }

    /// Reads `head`. `None`: it is the one that was seen.
    fn look(
        &self,
        trust: &Trusted,
        seen: Option<&Bytes>,
    ) -> Result<Option<(Bytes, Vec<FromOrigin>)>, ReadError> {
        let object = self.reader.head_object()?;
        if seen == Some(&object) {
            return Ok(None);
        }
        let document = newest(trust, &object)?;
        let (head, generation, release) = self.reader.release(&object, document.document())?;
        self.released.set(release);
        self.head_ms.send_replace(Some(head.released_ms));
        let bytes = Bytes::copy_from_slice(document.bytes());
        let trust = match seen {
            None => FromOrigin::Welcome(welcome(bytes)),
            Some(_) => FromOrigin::TrustDocument(bytes),
        };
        Ok(Some((object, vec![trust, FromOrigin::Announce(announce(&generation))])))
    }
}

/// The newest of the known trust document and the one beside the head.
fn newest(trust: &Trusted, object: &[u8]) -> Result<Arc<SignedTrust>, ReadError> {
    let offered = trust.newer(published::trust_bytes(object)?);
    Ok(offered.ok().flatten().map_or_else(|| trust.document.clone(), Arc::new))
}

fn welcome(trust_document: Bytes) -> v1::Welcome {
    v1::Welcome {
        protocol: PROTOCOL_MAX,
        features: Vec::new(),
        heartbeat_interval_ms: 0,
        trust_document,
        origin_version: String::new(),
        standing: None,
    }
}

fn announce(generation: &SignedGeneration) -> v1::Announce {
    let signed = v1::SignedGeneration {
        record: Bytes::copy_from_slice(generation.record()),
        signature: Bytes::copy_from_slice(generation.signature()),
    };
    v1::Announce {
        generation: Some(signed),
        activate_when_staged: true,
        update_file: Bytes::new(),
        locations: Vec::new(),
        flipped: false,
    }
}

/// Answers heartbeats until the session ends the conversation. Cancel safe.
async fn answer_heartbeats(to_send: &mut mpsc::Receiver<v1::AgentMessage>, events: &mpsc::Sender<Event>) {
    while let Some(message) = to_send.recv().await {
        if let Some(ToOrigin::Heartbeat(heartbeat)) = message.message {
            let message = v1::OriginMessage { message: Some(FromOrigin::Heartbeat(heartbeat)) };
            if events.send(Event::Message(message)).await.is_err() {
                return;
            }
        }
    }
}
