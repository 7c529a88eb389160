//! The ports of HTTP: health, metrics and the page.

use std::net::SocketAddr;
use std::sync::Arc;

use syncd_runtime::health;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::StartError;
use crate::admin::offline::DataDirectory;
use crate::http::metrics::Sources;
use crate::http::pages;
use crate::keys::KeysError;
use crate::page::login::Logins;
use crate::page::{Access, Page};

/// Listeners of HTTP.
pub(super) struct Ports {
    pub http: Option<TcpListener>,
    pub http_address: Option<SocketAddr>,
    /// Inside TLS.
    pub page: Option<(TcpListener, SocketAddr)>,
}

impl Ports {
    /// Serves until `stop`. Returns the ways to the page.
    pub(super) fn serve(
        self,
        sources: Sources,
        directory: Arc<DataDirectory>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Access, StartError> {
        let (state, data, keys) = (sources.state.clone(), sources.data.clone(), sources.keys.clone());
        let collected = sources.collected.clone();
        let page = Page::open(crate::page::Sources { directory, state, collected, data });
        let mut access = Access::default();
        if let Some(http) = self.http {
            access.loopback = self.http_address.filter(|address| address.ip().is_loopback());
            let pages = pages(sources, page.clone(), self.http_address);
            tasks.spawn(health::serve(http, pages, stop.clone()));
        }
        if let Some((listener, address)) = self.page {
            let tls = keys.page_tls().map_err(KeysError::from)?;
            let logins = Arc::new(Logins::default());
            tasks.spawn(health::serve_tls(listener, tls, page.elsewhere(logins.clone()), stop.clone()));
            tracing::info!(%address, "the page is served to other machines, after a login: syncd-origin page");
            access.elsewhere = Some((address, logins));
        }
        Ok(access)
    }
}
