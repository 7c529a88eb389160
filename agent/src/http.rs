//! Plain health over HTTP, for load balancers and monitors.
//!
//! `GET /healthz`: 200 while a complete generation is live, whether or not the origin can be reached, since the node
//! serves either way; 503 before the first. The body tells which generation, and whether there is a connection.

use std::io;
use std::net::SocketAddr;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::status::AgentStatus;

/// No place to answer.
#[derive(Debug, thiserror::Error)]
#[error("can't listen for HTTP on {address}: choose another with --http")]
pub struct BindError {
    /// What was tried.
    address: SocketAddr,
    source: io::Error,
}

/// Binds; port 0 picks a free one.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { address, source })
}

/// Answers until `stop`.
pub async fn serve(listener: TcpListener, status: watch::Receiver<AgentStatus>, stop: CancellationToken) {
    let health = get(move || {
        let answer = health(&status.borrow());
        async move { answer }
    });
    let router = Router::new().route("/healthz", health);
    // A client that keeps its connection open must not keep the agent from stopping.
    let served = stop.run_until_cancelled(async { axum::serve(listener, router).await }).await;
    if let Some(Err(error)) = served {
        tracing::error!(%error, "health is not answered any more");
    }
}

fn health(status: &AgentStatus) -> (StatusCode, String) {
    let connection = if status.connected { "connected" } else { "not connected" };
    match status.generation {
        Some(generation) => (StatusCode::OK, format!("ok generation {generation}, {connection}\n")),
        None => (StatusCode::SERVICE_UNAVAILABLE, format!("no generation yet, {connection}\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::sample;

    #[test]
    fn healthy_means_a_complete_generation_with_or_without_an_origin() {
        let mut status = sample();
        assert_eq!(health(&status), (StatusCode::OK, "ok generation 42, connected\n".into()));
        status.connected = false;
        assert_eq!(health(&status), (StatusCode::OK, "ok generation 42, not connected\n".into()));
        status.generation = None;
        assert_eq!(health(&status).0, StatusCode::SERVICE_UNAVAILABLE);
    }

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let first = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let error = bind(first.local_addr().unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("choose another with --http"));
    }
}
