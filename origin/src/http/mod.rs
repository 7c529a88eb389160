//! The origin's HTTP interface.

pub mod health;
pub mod metrics;
pub mod standby;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;

use crate::page::Page;

/// The pages of the HTTP port: health, metrics, and on a loopback address the page for people. Elsewhere that
/// page would need a password.
pub fn pages(sources: metrics::Sources, page: Arc<Page>, address: Option<SocketAddr>) -> Router {
    let state = sources.state.clone();
    let health = syncd_runtime::health::page(move || health::health(&state.snapshot()));
    let pages = health.merge(syncd_runtime::metrics::page(move || metrics::registry(&sources)));
    match address {
        Some(address) if address.ip().is_loopback() => pages.merge(page.on_loopback()),
        _ => pages,
    }
}
