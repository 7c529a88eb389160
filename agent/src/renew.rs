//! The agent's identity while it runs: read by everything that connects, replaced when the certificate is renewed, when
//! the origin's signing key changes, or when the node joins again.
//!
//! Renewal begins at two thirds of the certificate's life, with up to a twentieth of it as jitter, or when the origin
//! says that the certificate does not hold, and is retried until it works; meanwhile the replica serves. A certificate
//! that has expired is renewed like any other, unless it was revoked. Whoever watches the [`Route`] reconnects with the
//! new certificate.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::VerifyingKey;
use syncd_proto::v1;
use syncd_proto::v1::enrolment_client::EnrolmentClient;
use syncd_shared::TreeId;
use syncd_shared::identity::ConnectError;
use syncd_shared::identity::tls::TlsError;
use syncd_shared::text::error_chain;
use time::OffsetDateTime;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::backoff::{Backoff, random_fraction};
use crate::dialer::{Dialer, Route};
use crate::identity::{AgentIdentity, IdentityError, PendingKey};

/// The clock is looked at so often, since it may be set at any time.
const LOOK: Duration = Duration::from_secs(600);

/// Why a certificate was not renewed.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The origin said no.
    #[error(
        "the origin refused to renew this agent's certificate: if it was revoked, join again with a new token"
    )]
    Refused(#[source] tonic::Status),
    /// Its answer does not hold, or can't be stored.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Why a new identity was not taken up.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The replica is of another tree.
    #[error("this agent follows tree {has}, the new identity is for tree {wants}")]
    OtherTree {
        /// The tree of the replica.
        has: TreeId,
        /// The tree of the identity.
        wants: TreeId,
    },
    /// It is malformed, or can't be stored.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// The one owner of the identity file while the agent runs.
#[derive(Debug)]
pub struct Keeper {
    root: PathBuf,
    /// `--origin`, which wins over where the node joined.
    origin: Option<String>,
    identity: Mutex<AgentIdentity>,
    route: watch::Sender<Route>,
    expired: Arc<Notify>,
}

impl Keeper {
    /// Keeps the identity of `root`, whose origin is at `origin` or, without one, where the node joined.
    pub fn new(root: PathBuf, identity: AgentIdentity, origin: Option<String>) -> Result<Self, TlsError> {
        let route = watch::Sender::new(route(&identity, origin.as_deref())?);
        Ok(Self { root, origin, identity: Mutex::new(identity), route, expired: Arc::default() })
    }

    /// Dials by the newest identity.
    pub fn dialer(&self) -> Dialer {
        Dialer::new(self.route.subscribe(), self.expired.clone())
    }

    /// Takes up the identity with which this node joined again: stores it, and has everything reconnect with it. `text`
    /// is what [`AgentIdentity::to_text`] made. Blocks for a few milliseconds.
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

    /// Trusts a successor of the signing key, also after a restart. Blocks for a few milliseconds.
    pub fn pin(&self, key: VerifyingKey) -> Result<(), IdentityError> {
        let mut identity = self.identity();
        identity.set_signing_key(key);
        identity.store(&self.root)
    }

    /// Renews whenever it is due or the origin asks for it, until `stop`.
    pub async fn serve(&self, stop: CancellationToken) {
        let mut dialer = self.dialer();
        let jitter = random_fraction();
        let mut backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(600));
        let mut expired = false;
        loop {
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
                            "certificate not renewed, will try again"
                        );
                        // What the origin says meanwhile is heard afterwards.
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
                () = self.expired.notified() => true,
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
        now >= self.due_at(jitter)
    }

    fn pause(&self, now: OffsetDateTime, jitter: f64) -> Duration {
        Duration::try_from(self.due_at(jitter) - now)
            .unwrap_or_default()
            .clamp(Duration::from_millis(100), LOOK)
    }

    /// Gets a new certificate for a new key, and stores both. Cancel safe: until it is stored the old one serves.
    async fn renew(&self, dialer: &mut Dialer) -> Result<(), RenewError> {
        let pending = PendingKey::generate()?;
        let channel = dialer.dial().await?;
        let request = v1::RenewRequest { certificate_request: Bytes::copy_from_slice(pending.request()) };
        let answer = EnrolmentClient::new(channel).renew(request).await.map_err(RenewError::Refused)?;
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
    Ok(Route { address, name: identity.name().clone(), tls: identity.tls()? })
}
