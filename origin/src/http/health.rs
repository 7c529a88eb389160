//! The origin's health over HTTP ([`syncd_shared::health`]).
//!
//! Status 200 while the published generation matches the tree, as far as the origin knows. Status 503 with
//! the reason while publishing is held or waiting, before the first generation, and when DATA is gone.

use std::sync::Arc;
use std::time::Duration;

use syncd_shared::health::Health;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::commit::{OriginView, State};
use crate::error_chain;
use crate::fleet::FleetView;
use crate::store::Store;

/// Maximum number of nodes named in an answer.
const NAMES_MAX: usize = 10;
/// Interval of checks of DATA.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Checks DATA until `shutdown` and publishes what is wrong with it. Logs changes.
pub async fn watch_data(store: Arc<Store>, gone: watch::Sender<Option<String>>, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        let store = store.clone();
        let Ok(looked) = tokio::task::spawn_blocking(move || store.in_place()).await else { return };
        let now = looked.err().map(|error| error_chain(&error));
        gone.send_if_modified(|shown| {
            let changed = *shown != now;
            if changed {
                match &now {
                    Some(reason) => tracing::error!("nothing can be published: {reason}"),
                    None => tracing::info!("the data directory is back"),
                }
                *shown = now;
            }
            changed
        });
    }
}

/// The answer to `GET /healthz`. Names nodes whose on-activate hook fails, without counting that as a failure
/// of the origin.
pub fn health(view: &OriginView, fleet: &FleetView, gone: Option<&str>) -> Health {
    let hooks = failing_hooks(fleet);
    let generation = view.current.as_ref().map(|current| current.number());
    let shown = generation.map_or("no generation yet".to_owned(), |number| format!("generation {number}"));
    let trouble = match (gone, view.state) {
        (Some(gone), _) => Some(gone),
        (None, State::Held | State::Waiting | State::Stopped) => {
            Some(view.reason.as_deref().unwrap_or("not publishing"))
        }
        (None, State::Ready | State::Scanning) => None,
    };
    match (trouble, generation) {
        (Some(reason), _) => Health { is_well: false, text: format!("{shown}; {reason}{hooks}") },
        (None, None) => Health { is_well: false, text: shown },
        (None, Some(_)) => {
            // Manual mode: nothing would be published anyway.
            let hold = view.hold.map(|hold| format!("; {}", hold.reason())).unwrap_or_default();
            Health { is_well: true, text: format!("ok {shown}{hold}{hooks}") }
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
    use super::*;
    use ed25519_dalek::SigningKey;
    use syncd_shared::{Generation, GenerationNumber, RootEntry, SignedGeneration, TreeId};

    fn generation(number: u64) -> SignedGeneration {
        Generation {
            tree_id: TreeId::from_bytes([1; 16]),
            number: GenerationNumber::new(number).unwrap(),
            root: RootEntry::empty(),
            parent: None,
            created_ms: 0,
            label: String::new(),
        }
        .sign(&SigningKey::from_bytes(&[1; 32]))
    }

    fn told(state: State, reason: Option<&str>, number: Option<u64>, gone: Option<&str>) -> (bool, String) {
        let current = number.map(generation);
        let view = OriginView { state, reason: reason.map(str::to_owned), current, hold: None };
        let Health { is_well, text } = health(&view, &FleetView::default(), gone);
        (is_well, text)
    }

    #[test]
    fn healthy_means_published_and_kept() {
        assert_eq!(told(State::Ready, None, Some(7), None), (true, "ok generation 7".into()));
        assert_eq!(told(State::Scanning, None, Some(7), None), (true, "ok generation 7".into()));
        assert_eq!(told(State::Ready, None, None, None), (false, "no generation yet".into()));
        let held = told(State::Held, Some("the tree is gone"), Some(7), None);
        assert_eq!(held, (false, "generation 7; the tree is gone".into()));
        let lost = told(State::Ready, None, Some(7), Some("DATA is gone"));
        assert_eq!(lost, (false, "generation 7; DATA is gone".into()));
    }
}
