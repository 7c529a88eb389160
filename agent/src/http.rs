//! Health over HTTP ([`syncd_runtime::health`]), for load balancers and monitors. Every answer comes from the
//! published status, so that neither the disk nor the worker delays it.
//!
//! `GET /generation` names the live generation as JSON. `GET /readyz` returns 503 while the node should get
//! no visitors: nothing is live, it is drained, or other nodes serve a newer generation already. It returns
//! 200 on trial, after a return, while pinned, while a generation waits, and without a connection.
//!
//! `GET /healthz` returns 200 while a complete generation is linked, and 503 before the first one. Whether
//! the origin can be reached or the on-activate hook succeeds does not matter, since the node serves either
//! way. The body names the generation and says whether it is live or only switched, and whether the agent is
//! connected.

use std::io;
use std::net::SocketAddr;

use syncd_runtime::health::{self, Health, Router};
use syncd_shared::{AgentState, HookStatus};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::status::AgentStatus;

/// The address could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("can't listen for HTTP on {address}: choose another with --http or --health-listen")]
pub struct BindError {
    /// Address that was tried.
    address: SocketAddr,
    source: io::Error,
}

/// Binds the address. Port 0 picks a free port.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { address, source })
}

/// All pages, answered from `status`.
pub fn pages(status: &watch::Receiver<AgentStatus>) -> Router {
    const TEXT: &str = "text/plain; charset=utf-8";
    let page = |path, media, answer: fn(&AgentStatus) -> Health| {
        let status = status.clone();
        health::line(path, media, move || answer(&status.borrow()))
    };
    page("/healthz", TEXT, healthiness).merge(page("/readyz", TEXT, readiness)).merge(page(
        "/generation",
        "application/json",
        generation,
    ))
}

/// Answer to `GET /readyz`, and of `syncd-agent check`.
pub fn readiness(status: &AgentStatus) -> Health {
    let not_ready = |why: &str| Health { is_well: false, text: format!("not ready: {why}") };
    let due = status.head_due.as_ref().and_then(|at| OffsetDateTime::parse(at, &Rfc3339).ok());
    let is_old = due.is_some_and(|due| OffsetDateTime::now_utc() >= due);
    match status.generation {
        None => not_ready("no generation yet"),
        Some(_) if is_old => not_ready("the release that was seen last is older than --head-max-age"),
        Some(_) if status.node.drained => not_ready("drained on this node"),
        Some(_) if status.ordered.drained => not_ready("drained by the origin"),
        Some(generation) if status.behind => {
            not_ready(&format!("other nodes serve a newer generation than {generation}"))
        }
        Some(generation) => Health { is_well: true, text: format!("ready: generation {generation}") },
    }
}

/// Answer to `GET /generation`.
pub fn generation(status: &AgentStatus) -> Health {
    let AgentStatus { generation, root, label, .. } = status;
    let text = serde_json::json!({ "number": generation, "root": root, "label": label }).to_string();
    Health { is_well: generation.is_some(), text }
}

/// Answer to `GET /healthz`.
pub fn healthiness(status: &AgentStatus) -> Health {
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
        assert_eq!(healthiness(&status), ok("ok generation 42, connected"));
        status.connected = false;
        assert_eq!(healthiness(&status), ok("ok generation 42, not connected"));
        status.revoked = true;
        assert_eq!(healthiness(&status), ok("ok generation 42, revoked: join again with a new token"));
        status.generation = None;
        assert!(!healthiness(&status).is_well);
    }

    #[test]
    fn a_hook_that_fails_takes_no_node_out_of_service_and_is_not_called_ok() {
        let Health { is_well, text } = healthiness(&failing());
        assert!(is_well);
        assert!(
            text.starts_with("switched to generation 42, not live: hook failed: exit status: 1"),
            "{text}"
        );
        assert!(text.ends_with("; connected"), "{text}");
    }

    #[test]
    fn ready_is_a_node_that_should_get_visitors() {
        type Change = fn(&mut AgentStatus);
        let ready = |change: Change| {
            let mut status = sample();
            change(&mut status);
            readiness(&status).is_well
        };
        let pinned = |status: &mut AgentStatus| {
            status.node.pinned = Some(syncd_shared::Pin { generation: 42, since_ms: 0 });
        };
        let well: [Change; 7] = [
            |status| status.head_due = Some("2999-01-01T00:00:00Z".into()),
            |_| {},
            |status| status.connected = false,
            |status| status.state = AgentState::Staged,
            |status| status.ordered.pinned = true,
            |status| status.error = Some("no space".into()),
            pinned,
        ];
        let not: [Change; 5] = [
            |status| status.head_due = Some("2026-01-01T00:00:00.000Z".into()),
            |status| status.generation = None,
            |status| status.node.drained = true,
            |status| status.ordered.drained = true,
            |status| status.behind = true,
        ];
        assert!(well.into_iter().all(ready) && !not.into_iter().any(ready));
        assert!(readiness(&failing()).is_well, "the web server serves the generation before");
    }

    #[test]
    fn the_live_generation_is_named_in_json() {
        let expected = format!(r#"{{"label":"release","number":42,"root":"{}"}}"#, "ab".repeat(32));
        assert_eq!(generation(&sample()), Health { is_well: true, text: expected });
        let empty = AgentStatus { generation: None, root: None, label: None, ..sample() };
        let expected = r#"{"label":null,"number":null,"root":null}"#;
        assert_eq!(generation(&empty), Health { is_well: false, text: expected.into() });
    }

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let first = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let error = bind(first.local_addr().unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("choose another with --http or --health-listen"));
    }
}
