//! Plain health over HTTP, for monitors and load balancers.

use std::net::SocketAddr;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::commit::OriginView;
use crate::status::State;

/// Binds; the address may have port 0.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Answers `GET /healthz` until `shutdown` is cancelled: 200 while what is published is what the tree says, as far as
/// the origin knows; 503 with the reason while it is held or waits.
pub async fn serve(listener: TcpListener, view: watch::Receiver<OriginView>, shutdown: CancellationToken) {
    let health = get(move || {
        let view = view.clone();
        async move {
            let view = view.borrow();
            let generation = view.current.as_ref().map_or(0, |g| g.number().get());
            match (view.state, &view.reason) {
                (State::Held | State::Waiting | State::Stopped, reason) => (
                    StatusCode::SERVICE_UNAVAILABLE,
                    format!("generation {generation}; {}\n", reason.as_deref().unwrap_or("not publishing")),
                ),
                _ => (StatusCode::OK, format!("ok generation {generation}\n")),
            }
        }
    });
    let router = Router::new().route("/healthz", health);
    let result = axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await;
    if let Err(error) = result {
        tracing::error!(%error, "health is not answered any more");
    }
}
