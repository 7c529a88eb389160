//! The origin's health over HTTP ([`syncd_runtime::health`]).
//!
//! Status 200 while the published generation matches the tree, as far as the origin knows. Status 503 with
//! the reason while publishing is held or waiting, before the first generation, and when a part of DATA is
//! gone.

use syncd_runtime::health::Health;

use crate::commit::State;
use crate::fleet::FleetView;
use crate::state::Snapshot;

/// Maximum number of nodes named in an answer.
const NAMES_MAX: usize = 10;

/// The answer to `GET /healthz`. Names nodes whose on-activate hook fails, without counting that as a failure
/// of the origin.
pub fn health(now: &Snapshot) -> Health {
    let view = &now.origin;
    let hooks = failing_hooks(&now.fleet);
    let generation = view.current.as_ref().map(|current| current.number());
    let shown = generation.map_or("no generation yet".to_owned(), |number| format!("generation {number}"));
    match (view.state, generation) {
        (State::Held | State::Waiting | State::Stopped | State::Standby, _) => {
            let reason = view.reason.as_deref().unwrap_or("not publishing");
            Health { is_well: false, text: format!("{shown}; {reason}{hooks}") }
        }
        // Only with a manual trigger is an origin without a generation ready.
        (State::Ready, None) => {
            Health { is_well: false, text: format!("{shown}: run `syncd-origin commit`") }
        }
        (State::Scanning, None) => Health { is_well: false, text: shown },
        (State::Ready | State::Scanning, Some(_)) if view.reason.is_some() => {
            let reason = view.reason.as_deref().unwrap_or_default();
            Health { is_well: false, text: format!("{shown}; {reason}{hooks}") }
        }
        (State::Ready | State::Scanning, Some(_)) => {
            Health { is_well: true, text: format!("ok {shown}{hooks}") }
        }
    }
}

/// Formats as `; not live on 2 nodes, hook failed: web1, web2`, naming the first nodes. Empty if there are
/// none.
fn failing_hooks(fleet: &FleetView) -> String {
    let names: Vec<&str> = fleet.failing_hooks().map(|(name, _)| name).collect();
    let shown = names.iter().take(NAMES_MAX).copied().collect::<Vec<_>>().join(", ");
    let more = if names.len() > NAMES_MAX { ", ..." } else { "" };
    match names.len() {
        0 => String::new(),
        1 => format!("; not live on 1 node, hook failed: {shown}"),
        count => format!("; not live on {count} nodes, hook failed: {shown}{more}"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::commit::OriginView;
    use syncd_shared::ed25519::SigningKey;
    use syncd_shared::{Generation, GenerationNumber, RootEntry, SignedGeneration, TreeId};

    fn generation(number: u64) -> SignedGeneration {
        Generation {
            tree_id: TreeId::from_bytes([1; 16]),
            epoch: 1,
            trust: 1,
            number: GenerationNumber::new(number).unwrap(),
            root: RootEntry::empty(),
            parent: None,
            created_ms: 0,
            label: String::new(),
        }
        .sign(&SigningKey::from_bytes(&[1; 32]))
    }

    fn told(state: State, reason: Option<&str>, number: Option<u64>) -> (bool, String) {
        let (reason, current) = (reason.map(str::to_owned), number.map(generation));
        let Health { is_well, text } = health(&Snapshot {
            tree: String::new(),
            grpc_address: ([127, 0, 0, 1], 1).into(),
            http_address: None,
            origin: OriginView { state, reason, current, hold: None, returns: Arc::default() },
            fleet: Arc::default(),
            publish: None,
            purge: None,
            rollout: Arc::default(),
            polled: Vec::new(),
        });
        (is_well, text)
    }

    #[test]
    fn healthy_means_published_and_kept() {
        assert_eq!(told(State::Ready, None, Some(7)), (true, "ok generation 7".into()));
        assert_eq!(told(State::Scanning, None, Some(7)), (true, "ok generation 7".into()));
        let commit = "no generation yet: run `syncd-origin commit`";
        assert_eq!(told(State::Ready, None, None), (false, commit.into()));
        assert_eq!(told(State::Scanning, None, None), (false, "no generation yet".into()));
        let held = told(State::Held, Some("the tree is gone"), Some(7));
        assert_eq!(held, (false, "generation 7; the tree is gone".into()));
        let warned = told(State::Ready, Some("a key is gone"), Some(7));
        assert_eq!(warned, (false, "generation 7; a key is gone".into()));
    }
}
