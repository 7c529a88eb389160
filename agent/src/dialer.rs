//! How the agent reaches its origin: an address, and the certificate that is current.

use std::sync::Arc;

use syncd_shared::identity::{AgentName, ClientTls, ConnectError, connect_limited};
use syncd_shared::rate::{Bucket, Rate};
use tokio::sync::{Notify, watch};
use tonic::transport::Channel;

/// Where to go, and who goes there. Replaced as one when the certificate is renewed or the node joins again.
#[derive(Debug, Clone)]
pub struct Route {
    /// The origin, HOST:PORT.
    pub address: String,
    /// This agent's name there.
    pub name: AgentName,
    /// What to show, and whom to trust.
    pub tls: ClientTls,
}

/// Makes connections to the origin. Clones share nothing but where to go: each call of [`Dialer::dial`] is a TCP
/// connection of its own.
#[derive(Debug, Clone)]
pub struct Dialer {
    route: watch::Receiver<Route>,
    expired: Arc<Notify>,
    limit: Option<Arc<Bucket>>,
}

impl Dialer {
    /// By the newest route. `expired` wakes who renews the certificate.
    pub fn new(route: watch::Receiver<Route>, expired: Arc<Notify>) -> Self {
        Self { route, expired, limit: None }
    }

    /// Reads from connections no faster than this bucket allows, all clones together.
    pub fn limited(self, limit: Option<Rate>) -> Self {
        Self { limit: limit.map(|rate| Arc::new(Bucket::new(rate))), ..self }
    }

    /// The newest route, whether it was dialled or not.
    pub fn route(&self) -> Route {
        self.route.borrow().clone()
    }

    /// Whether the route has changed since this dialer (this clone) dialled last.
    pub fn is_outdated(&self) -> bool {
        self.route.has_changed().unwrap_or(false)
    }

    /// Waits for a new route; for ever where nothing changes it any more. Cancel safe.
    pub async fn outdated(&mut self) {
        if self.route.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// Reports that the origin said of this agent's certificate that it does not hold: it is renewed at once.
    pub fn report_expired(&self) {
        self.expired.notify_one();
    }

    /// Connects. Cancel safe.
    pub async fn dial(&mut self) -> Result<Channel, ConnectError> {
        let Route { address, tls, .. } = self.route.borrow_and_update().clone();
        connect_limited(&address, tls, self.limit.clone()).await
    }
}
