//! Owns the agent's identity while it runs. Every connection reads it. It is replaced when the certificate is
//! renewed, when the origin shows a newer trust document, or when the node joins again.
//!
//! An agent that was away while the authority was replaced trusts no certificate that the origin shows. It
//! then asks for the trust document over a connection that proves nothing, and believes the root key's
//! signature.
//!
//! Renewal starts after two thirds of the certificate's life, plus a jitter of at most a twentieth, or when
//! the origin rejects the certificate. It is retried until it succeeds; the replica keeps serving meanwhile.
//! An expired certificate can still be renewed unless it was revoked. Users of the [`Route`] reconnect with
//! the new certificate.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use syncd_proto::v1;
use syncd_proto::v1::enrolment_client::EnrolmentClient;
use syncd_runtime::channel::ConnectError;
use syncd_runtime::tls::TlsError;
use syncd_shared::TreeId;
use syncd_shared::identity::trust::TrustError;
use syncd_shared::identity::{RootFingerprint, SignedTrust};
use syncd_shared::text::error_chain;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::backoff::{Backoff, random_fraction};
use crate::dialer::{Dialer, Route, Wanted};
use crate::identity::{AgentIdentity, IdentityError, PendingKey};
use crate::trust::{AskTrustError, answer_within, ask_trust};

/// Interval between checks of the clock, which may be set at any time.
const LOOK: Duration = Duration::from_secs(600);
/// Interval of warnings about the date in the trust document.
const WARN_EVERY: Duration = Duration::from_secs(24 * 60 * 60);

/// Reason why a certificate was not renewed.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The connection failed.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The origin refused.
    #[error(
        "the origin refused to renew this agent's certificate: if it was revoked, join again with a new token"
    )]
    Refused(#[source] tonic::Status),
    /// The origin's answer is invalid, or could not be stored.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Reason why a new identity was refused.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The replica belongs to another tree.
    #[error("this agent follows tree {has}, the new identity is for tree {wants}")]
    OtherTree {
        /// Tree of the replica.
        has: TreeId,
        /// Tree of the new identity.
        wants: TreeId,
    },
    /// The new identity is malformed, or could not be stored.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Reason why no other trust document is followed.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Ask(#[from] AskTrustError),
    /// The document does not hold.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// It could not be stored.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Owner of the identity file while the agent runs.
#[derive(Debug)]
pub struct Keeper {
    root: PathBuf,
    /// `--origin`, which takes precedence over the address in the identity.
    origin: Option<String>,
    identity: Mutex<AgentIdentity>,
    route: watch::Sender<Route>,
    wanted: Arc<Wanted>,
}

impl Keeper {
    /// Keeps the identity of `root`. The origin is at `origin`, or at the address in the identity.
    pub fn new(root: PathBuf, identity: AgentIdentity, origin: Option<String>) -> Result<Self, TlsError> {
        let route = watch::Sender::new(route(&identity, origin.as_deref())?);
        Ok(Self { root, origin, identity: Mutex::new(identity), route, wanted: Arc::default() })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// End of the life of the newest certificate.
    pub fn certificate_end(&self) -> OffsetDateTime {
        self.identity().certificate_end()
    }

    /// Returns a dialer that always uses the newest identity.
    pub fn dialer(&self) -> Dialer {
        Dialer::new(self.route.subscribe(), self.wanted.clone())
    }

    /// Takes over the identity of a repeated join: stores it, and makes every connection use it. `text` is
    /// the output of [`AgentIdentity::to_text`]. Blocks for a few milliseconds.
    pub fn adopt(&self, text: &str) -> Result<(), AdoptError> {
        let new = AgentIdentity::from_text(text, Path::new("the new identity"))?;
        let mut identity = self.identity();
        if new.tree_id() != identity.tree_id() {
            return Err(AdoptError::OtherTree { has: identity.tree_id(), wants: new.tree_id() });
        }
        Ok(self.replace(&mut identity, new)?)
    }

    fn replace(&self, identity: &mut AgentIdentity, new: AgentIdentity) -> Result<(), IdentityError> {
        let route = route(&new, self.origin.as_deref())?;
        new.store(&self.root)?;
        *identity = new;
        self.route.send_replace(route);
        Ok(())
    }

    /// Trusts a newer document ([`Trusted::newer`](crate::identity::Trusted::newer)), also after a restart.
    /// If it names another authority, every connection is made again. Blocks for a few milliseconds.
    pub fn follow(&self, document: SignedTrust) -> Result<(), IdentityError> {
        let mut identity = self.identity();
        // Meanwhile another connection may have brought a newer one, or the operator may have pinned another
        // root.
        let Ok(Some(document)) = identity.trust().newer(document.bytes()) else { return Ok(()) };
        let before = identity.trust().clone();
        let authority = before.document.document().authority.clone();
        tracing::info!(document = document.number(), "following a newer trust document of the origin");
        identity.follow(document);
        if let Err(error) = identity.store(&self.root) {
            identity.restore_trust(before);
            return Err(error);
        }
        let reconnects = identity.trust().document.document().authority != authority;
        let route = route(&identity, self.origin.as_deref())?;
        self.route.send_if_modified(|current| {
            *current = route;
            reconnects
        });
        if identity.is_superseded() {
            self.wanted.renewal.notify_one();
        }
        Ok(())
    }

    /// Pins another root key, after the loss of the old one, and connects again. Blocks for a few
    /// milliseconds.
    pub fn pin_root(&self, root: RootFingerprint) -> Result<(), IdentityError> {
        let mut identity = self.identity();
        identity.pin_root(root);
        identity.store(&self.root)?;
        self.route.send_replace(route(&identity, self.origin.as_deref())?);
        Ok(())
    }

    /// Asks the origin for its trust document, and follows a newer one. Cancel safe.
    async fn look_for_document(&self) -> Result<(), LookError> {
        let Route { address, trust, .. } = self.route.borrow().clone();
        let document = ask_trust(&address, trust.document.document().tree_id).await?;
        if let Some(newer) = trust.newer(&document)? {
            self.follow(newer)?;
        }
        Ok(())
    }

    /// Warns if the trust document should have been replaced by now.
    fn warn_of_date(&self, now: OffsetDateTime) {
        let trust = self.route.borrow().trust.document.clone();
        let document = trust.document();
        if now.unix_timestamp().saturating_mul(1000) > document.warn_ms {
            tracing::warn!(
                document = document.number,
                "the origin's trust document should have been replaced by now; nothing stops without it"
            );
        }
    }

    /// Renews the certificate when it is due or the origin rejects it, until `stop`.
    pub async fn serve(&self, stop: CancellationToken) {
        let mut dialer = self.dialer();
        let jitter = random_fraction();
        let mut backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(600));
        let mut expired = false;
        let mut warned: Option<Instant> = None;
        loop {
            if warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
                self.warn_of_date(OffsetDateTime::now_utc());
                warned = Some(Instant::now());
            }
            let pause = if expired || self.is_due(OffsetDateTime::now_utc(), jitter) {
                match stop.run_until_cancelled(self.renew(&mut dialer)).await {
                    None => return,
                    Some(Ok(())) => {
                        tracing::info!("certificate renewed");
                        backoff.reset();
                        LOOK
                    }
                    Some(Err(error)) => {
                        tracing::warn!(
                            error = error_chain(&error),
                            "the certificate was not renewed; the agent retries"
                        );
                        // A request to renew that arrives during the pause is handled after it.
                        if stop.run_until_cancelled(tokio::time::sleep(backoff.pause())).await.is_none() {
                            return;
                        }
                        Duration::ZERO
                    }
                }
            } else {
                self.pause(OffsetDateTime::now_utc(), jitter)
            };
            expired = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.wanted.renewal.notified() => true,
                () = self.wanted.document.notified() => {
                    if let Some(Err(error)) = stop.run_until_cancelled(self.look_for_document()).await {
                        tracing::warn!(error = error_chain(&error), "the origin shows no trust document to follow");
                    }
                    false
                }
                () = tokio::time::sleep(pause) => false,
            };
        }
    }

    fn due_at(&self, jitter: f64) -> OffsetDateTime {
        let identity = self.identity();
        let own = identity.certificate();
        identity.renewal_time() + (own.not_after - own.not_before) * (jitter / 20.0)
    }

    fn is_due(&self, now: OffsetDateTime, jitter: f64) -> bool {
        now >= self.due_at(jitter) || self.identity().is_superseded()
    }

    fn pause(&self, now: OffsetDateTime, jitter: f64) -> Duration {
        Duration::try_from(self.due_at(jitter) - now)
            .unwrap_or_default()
            .clamp(Duration::from_millis(100), LOOK)
    }

    /// Obtains a certificate for a new key, and stores both. Cancel safe: the old certificate is used until
    /// then.
    async fn renew(&self, dialer: &mut Dialer) -> Result<(), RenewError> {
        let pending = PendingKey::generate()?;
        let channel = dialer.dial().await?;
        let request = v1::RenewRequest { certificate_request: Bytes::copy_from_slice(pending.request()) };
        let mut client = EnrolmentClient::new(channel);
        let answer = answer_within(client.renew(request)).await.map_err(RenewError::Refused)?;
        let mut identity = self.identity();
        let renewed = identity.renewed(pending, &answer.into_inner().certificate)?;
        Ok(self.replace(&mut identity, renewed)?)
    }

    fn identity(&self) -> MutexGuard<'_, AgentIdentity> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn route(identity: &AgentIdentity, origin: Option<&str>) -> Result<Route, TlsError> {
    let address = origin.unwrap_or_else(|| identity.origin_address()).to_owned();
    let trust = identity.trust().clone();
    Ok(Route { address, name: identity.name().clone(), tls: identity.tls()?, trust })
}

#[cfg(test)]
mod tests {
    use super::*;
    use syncd_shared::identity::{Authority, JoinToken, RootKey, TrustDocument, signing};

    #[test]
    fn a_stale_answer_loses_against_the_document_that_another_connection_brought() {
        let (now, tree) = (OffsetDateTime::now_utc(), TreeId::from_bytes([9; 16]));
        let authority = Authority::create(tree, now).unwrap();
        let root = RootKey::generate(tree).unwrap();
        let key = signing::generate().unwrap().verifying_key();
        let first = TrustDocument::first(&root, key, authority.certificate(), 0, 0);
        let numbered = |number| TrustDocument { number, ..first.document().clone() }.sign(&root.key).unwrap();
        let token = JoinToken::generate(tree, root.fingerprint(), 1).unwrap();
        let pending = PendingKey::generate().unwrap();
        let (certificate, _) =
            authority.issue_agent(&"web1".parse().unwrap(), pending.request(), now).unwrap();
        let identity =
            AgentIdentity::joined(&token, "[::1]:8873", pending, &certificate, first.clone()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        identity.store(directory.path()).unwrap();
        let keeper = Keeper::new(directory.path().to_owned(), identity, None).unwrap();
        let followed = || {
            let stored = AgentIdentity::load(directory.path()).unwrap().trust().document.number();
            (keeper.route.borrow().trust.document.number(), stored)
        };
        keeper.follow(numbered(3)).unwrap();
        assert_eq!(followed(), (3, 3));
        keeper.follow(numbered(2)).unwrap();
        assert_eq!(followed(), (3, 3));
    }
}
