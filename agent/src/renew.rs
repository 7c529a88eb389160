//! The agent's identity while it runs: read by everything that connects, replaced when the certificate is renewed or
//! the origin's signing key changes.
//!
//! Renewal begins at two thirds of the certificate's life, with up to a twentieth of it as jitter, and is tried again
//! until it works; meanwhile the replica serves. Whoever watches [`Keeper::tls`] reconnects with the new certificate.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::VerifyingKey;
use syncd_proto::v1;
use syncd_proto::v1::enrolment_client::EnrolmentClient;
use syncd_shared::identity::tls::TlsError;
use syncd_shared::identity::{ClientTls, ConnectError};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::backoff::{Backoff, random_fraction};
use crate::dialer::Dialer;
use crate::identity::{AgentIdentity, IdentityError, PendingKey};
use crate::reason;

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
    /// The parts don't belong together.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The one owner of the identity file while the agent runs.
#[derive(Debug)]
pub struct Keeper {
    root: PathBuf,
    identity: Mutex<AgentIdentity>,
    tls: watch::Sender<ClientTls>,
}

impl Keeper {
    /// Keeps the identity of `root`.
    pub fn new(root: PathBuf, identity: AgentIdentity) -> Result<Self, TlsError> {
        let tls = watch::Sender::new(identity.tls()?);
        Ok(Self { root, identity: Mutex::new(identity), tls })
    }

    /// The newest certificate.
    pub fn tls(&self) -> watch::Receiver<ClientTls> {
        self.tls.subscribe()
    }

    /// Trusts a successor of the signing key, also after a restart. Blocks for a few milliseconds.
    pub fn pin(&self, key: VerifyingKey) -> Result<(), IdentityError> {
        let mut identity = self.identity();
        identity.set_signing_key(key);
        identity.store(&self.root)
    }

    /// Renews whenever it is due, until `stop`.
    pub async fn serve(&self, mut dialer: Dialer, stop: CancellationToken) {
        let jitter = random_fraction();
        let mut backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(600));
        loop {
            let pause = if self.is_due(OffsetDateTime::now_utc(), jitter) {
                match stop.run_until_cancelled(self.renew(&mut dialer)).await {
                    None => return,
                    Some(Ok(())) => {
                        tracing::info!("certificate renewed");
                        backoff.reset();
                        LOOK
                    }
                    Some(Err(error)) => {
                        tracing::warn!(error = reason::of(&error), "certificate not renewed, will try again");
                        backoff.pause()
                    }
                }
            } else {
                self.pause(OffsetDateTime::now_utc(), jitter)
            };
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
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
        let tls = {
            let mut identity = self.identity();
            let renewed = identity.renewed(pending, &answer.into_inner().certificate)?;
            let tls = renewed.tls()?;
            renewed.store(&self.root)?;
            *identity = renewed;
            tls
        };
        self.tls.send_replace(tls);
        Ok(())
    }

    fn identity(&self) -> MutexGuard<'_, AgentIdentity> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
