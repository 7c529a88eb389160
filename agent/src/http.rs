//! Health over HTTP ([`syncd_runtime::health`]), for load balancers and monitors.
//!
//! `GET /healthz` returns 200 while a complete generation is linked, and 503 before the first one. Whether
//! the origin can be reached or the on-activate hook succeeds does not matter, since the node serves either
//! way. The body names the generation and says whether it is live or only switched, and whether the agent is
//! connected.

use std::io;
use std::net::SocketAddr;

use syncd_runtime::health::Health;
use syncd_shared::{AgentState, HookStatus};
use tokio::net::TcpListener;

use crate::status::AgentStatus;

/// The address could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("can't listen for HTTP on {address}: choose another with --http")]
pub struct BindError {
    /// Address that was tried.
    address: SocketAddr,
    source: io::Error,
}

/// Binds the address. Port 0 picks a free port.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { address, source })
}

/// Answer to `GET /healthz`.
pub fn health(status: &AgentStatus) -> Health {
    let connection = status.connection();
    let hook = status.hook.as_ref().and_then(HookStatus::line);
    match status.generation {
        Some(generation) if status.reached() == AgentState::Switched => {
            let hook = hook.unwrap_or_default();
            let text = format!("switched to generation {generation}, not live: {hook}; {connection}");
            Health { is_well: true, text }
        }
        Some(generation) => {
            Health { is_well: true, text: format!("ok generation {generation}, {connection}") }
        }
        None => Health { is_well: false, text: format!("no generation yet, {connection}") },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::{failing, sample};

    #[test]
    fn healthy_means_a_complete_generation_with_or_without_an_origin() {
        let mut status = sample();
        let ok = |text: &str| Health { is_well: true, text: text.into() };
        assert_eq!(health(&status), ok("ok generation 42, connected"));
        status.connected = false;
        assert_eq!(health(&status), ok("ok generation 42, not connected"));
        status.revoked = true;
        assert_eq!(health(&status), ok("ok generation 42, revoked: join again with a new token"));
        status.generation = None;
        assert!(!health(&status).is_well);
    }

    #[test]
    fn a_hook_that_fails_takes_no_node_out_of_service_and_is_not_called_ok() {
        let Health { is_well, text } = health(&failing());
        assert!(is_well);
        assert!(
            text.starts_with("switched to generation 42, not live: hook failed: exit status: 1"),
            "{text}"
        );
        assert!(text.ends_with("; connected"), "{text}");
    }

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let first = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let error = bind(first.local_addr().unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("choose another with --http"));
    }
}
