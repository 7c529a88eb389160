//! Health over HTTP ([`syncd_shared::health`]), for load balancers and monitors.
//!
//! `GET /healthz`: 200 while a complete generation is live, whether or not the origin can be reached, since the node
//! serves either way; 503 before the first. The body tells which generation, and whether there is a connection.

use std::io;
use std::net::SocketAddr;

use syncd_shared::health::Health;
use tokio::net::TcpListener;

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

/// What `GET /healthz` answers.
pub fn health(status: &AgentStatus) -> Health {
    let connection = if status.connected { "connected" } else { "not connected" };
    match status.generation {
        Some(generation) => {
            Health { is_well: true, text: format!("ok generation {generation}, {connection}") }
        }
        None => Health { is_well: false, text: format!("no generation yet, {connection}") },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::sample;

    #[test]
    fn healthy_means_a_complete_generation_with_or_without_an_origin() {
        let mut status = sample();
        let ok = |text: &str| Health { is_well: true, text: text.into() };
        assert_eq!(health(&status), ok("ok generation 42, connected"));
        status.connected = false;
        assert_eq!(health(&status), ok("ok generation 42, not connected"));
        status.generation = None;
        assert!(!health(&status).is_well);
    }

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let first = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let error = bind(first.local_addr().unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("choose another with --http"));
    }
}
