//! Connects to the origin, with its current address and the current certificate.

use std::sync::Arc;

use syncd_runtime::channel::{ConnectError, connect_limited};
use syncd_runtime::rate::{Bucket, Rate};
use syncd_runtime::tls::ClientTls;
use syncd_shared::identity::AgentName;
use tokio::sync::{Notify, watch};
use tonic::transport::Channel;

use crate::identity::Trusted;

/// Address and credentials for the origin. Replaced as a whole when the certificate is renewed or the node
/// joins again.
#[derive(Debug, Clone)]
pub struct Route {
    /// Address of the origin, HOST:PORT.
    pub address: String,
    /// Name under which this agent is enrolled.
    pub name: AgentName,
    /// Own certificate and key, and the authority to trust.
    pub tls: ClientTls,
    /// Root key and newest trust document.
    pub trust: Trusted,
}

/// Wakes the owner of the identity.
#[derive(Debug, Default)]
pub struct Wanted {
    /// The certificate must be renewed now.
    pub renewal: Notify,
    /// The origin must be asked for its trust document.
    pub document: Notify,
}

/// Connects to the origin. Clones share only the route: each call of [`Dialer::dial`] opens its own TCP
/// connection.
#[derive(Debug, Clone)]
pub struct Dialer {
    route: watch::Receiver<Route>,
    wanted: Arc<Wanted>,
    limit: Option<Arc<Bucket>>,
}

impl Dialer {
    /// Uses the newest route.
    pub fn new(route: watch::Receiver<Route>, wanted: Arc<Wanted>) -> Self {
        Self { route, wanted, limit: None }
    }

    /// Limits the rate at which connections are read, for all clones together.
    pub fn limited(self, limit: Option<Rate>) -> Self {
        Self { limit: limit.map(|rate| Arc::new(Bucket::new(rate))), ..self }
    }

    /// The newest route, dialled or not.
    pub fn route(&self) -> Route {
        self.route.borrow().clone()
    }

    /// Whether the route has changed since this clone last dialled.
    pub fn is_outdated(&self) -> bool {
        self.route.has_changed().unwrap_or(false)
    }

    /// Waits for a new route. Waits for ever if the route can no longer change. Cancel safe.
    pub async fn outdated(&mut self) {
        if self.route.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// Reports that the origin rejected this agent's certificate, so that it is renewed at once.
    pub fn report_expired(&self) {
        self.wanted.renewal.notify_one();
    }

    /// Reports that the origin shows a certificate of another authority, so that its trust document is asked
    /// for: it may name that one.
    pub fn report_other_authority(&self) {
        self.wanted.document.notify_one();
    }

    pub async fn dial(&mut self) -> Result<Channel, ConnectError> {
        let Route { address, tls, .. } = self.route.borrow_and_update().clone();
        connect_limited(&address, tls, self.limit.clone()).await
    }
}
