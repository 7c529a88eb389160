//! How the agent reaches its origin: an address, and the certificate that is current.

use std::sync::Arc;

use syncd_shared::identity::{ClientTls, ConnectError, connect_limited};
use syncd_shared::rate::{Bucket, Rate};
use tokio::sync::watch;
use tonic::transport::Channel;

/// Makes connections to the origin. Clones share nothing but where to go: each call of [`Dialer::dial`] is a TCP
/// connection of its own.
#[derive(Debug, Clone)]
pub struct Dialer {
    address: String,
    tls: watch::Receiver<ClientTls>,
    limit: Option<Arc<Bucket>>,
}

impl Dialer {
    /// To the origin at `address` (HOST:PORT), with the newest certificate that `tls` holds.
    pub fn new(address: String, tls: watch::Receiver<ClientTls>) -> Self {
        Self { address, tls, limit: None }
    }

    /// Reads from connections no faster than this bucket allows, all clones together.
    pub fn limited(self, limit: Option<Rate>) -> Self {
        Self { limit: limit.map(|rate| Arc::new(Bucket::new(rate))), ..self }
    }

    /// HOST:PORT.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether the certificate was renewed since this dialer (this clone) dialled last.
    pub fn is_outdated(&self) -> bool {
        self.tls.has_changed().unwrap_or(false)
    }

    /// Waits for a renewed certificate; for ever where nothing renews it any more. Cancel safe.
    pub async fn outdated(&mut self) {
        if self.tls.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// Connects. Cancel safe.
    pub async fn dial(&mut self) -> Result<Channel, ConnectError> {
        let tls = self.tls.borrow_and_update().clone();
        connect_limited(&self.address, tls, self.limit.clone()).await
    }
}
