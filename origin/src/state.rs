//! The state of a serving origin at one moment. The status and health are views of it.

use std::net::SocketAddr;
use std::sync::Arc;

use syncd_shared::limits::REASON_MAX_BYTES;
use syncd_shared::text::one_line;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::commit::{OriginView, State};
use crate::fleet::FleetView;
use crate::fleet::rollout::RolloutView;
use crate::publish::{Deposed, PublishRequests, PublishView};
use crate::purge::PurgeView;
use crate::watch::Watch;

/// Reads the state of every part. Cheap to clone.
#[derive(Clone)]
pub struct OriginState {
    /// The content tree, escaped for printing.
    pub tree: String,
    pub grpc_address: SocketAddr,
    /// `None` if the default port was occupied.
    pub http_address: Option<SocketAddr>,
    pub committer: watch::Receiver<OriginView>,
    pub fleet: watch::Receiver<Arc<FleetView>>,
    pub rollout: watch::Receiver<Arc<RolloutView>>,
    pub data_trouble: watch::Receiver<Option<DataTrouble>>,
    pub deposed: Deposed,
    /// `None` without `--publish`.
    pub publish: Option<PublishRequests>,
    /// `None` without `--purge`.
    pub purge: Option<watch::Receiver<PurgeView>>,
    /// `None` if no directory is watched.
    pub watch: Option<Arc<Watch>>,
}

/// A part of DATA that is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataTrouble {
    /// Nothing can be published, for this reason.
    Store(String),
    /// The origin goes on, and can't be started again, for this reason.
    Keys(String),
}

/// See the module. Taken from memory alone: it costs no access to DATA.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub tree: String,
    pub grpc_address: SocketAddr,
    pub http_address: Option<SocketAddr>,
    /// The committer's view, with what is wrong with DATA: held without the store, otherwise with the reason.
    pub origin: OriginView,
    pub fleet: Arc<FleetView>,
    /// `None` without `--publish`.
    pub publish: Option<PublishView>,
    /// `None` without `--purge`.
    pub purge: Option<PurgeView>,
    pub rollout: Arc<RolloutView>,
    /// Subtrees that send no events, and why, escaped for printing.
    pub polled: Vec<String>,
}

impl OriginState {
    /// Waits for a change of the tree's state, of the fleet or of the rollout. False once the origin stops.
    /// Cancel safe.
    pub async fn changed(&mut self, shutdown: &CancellationToken) -> bool {
        tokio::select! {
            () = shutdown.cancelled() => false,
            changed = self.committer.changed() => changed.is_ok(),
            changed = self.fleet.changed() => changed.is_ok(),
            changed = self.rollout.changed() => changed.is_ok(),
        }
    }

    /// The state now.
    pub fn snapshot(&self) -> Snapshot {
        let polled = self.watch.as_ref().map(|watch| watch.polled()).unwrap_or_default();
        let mut origin = held_by(self.committer.borrow().clone(), self.data_trouble.borrow().clone());
        if let Some(reason) = self.deposed.reason() {
            (origin.state, origin.reason) = (State::Held, Some(reason.to_string()));
        }
        let publish = self.publish.as_ref().map(PublishRequests::view);
        if publish.as_ref().is_some_and(|publish| publish.error.is_some()) {
            origin.reason.get_or_insert_with(|| "publishing to the object store fails".to_owned());
        }
        Snapshot {
            tree: self.tree.clone(),
            grpc_address: self.grpc_address,
            http_address: self.http_address,
            origin,
            fleet: self.fleet.borrow().clone(),
            publish,
            purge: self.purge.as_ref().map(|purge| purge.borrow().clone()),
            rollout: self.rollout.borrow().clone(),
            polled: polled.iter().map(|polled| one_line(&polled.to_string(), REASON_MAX_BYTES)).collect(),
        }
    }
}

/// Without the store nothing can be published, whatever the committer knows.
fn held_by(view: OriginView, data_trouble: Option<DataTrouble>) -> OriginView {
    match data_trouble {
        Some(DataTrouble::Store(reason)) => OriginView { state: State::Held, reason: Some(reason), ..view },
        Some(DataTrouble::Keys(reason)) => OriginView { reason: view.reason.or(Some(reason)), ..view },
        None => view,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_without_its_data_is_held() {
        let view = OriginView {
            state: State::Ready,
            reason: None,
            current: None,
            hold: None,
            returns: Arc::default(),
        };
        let held = held_by(view.clone(), Some(DataTrouble::Store("DATA is gone".into())));
        assert_eq!((held.state, held.reason.as_deref()), (State::Held, Some("DATA is gone")));
        let warned = held_by(view.clone(), Some(DataTrouble::Keys("a key is gone".into())));
        assert_eq!((warned.state, warned.reason.as_deref()), (State::Ready, Some("a key is gone")));
        assert_eq!(held_by(view, None).state, State::Ready);
    }
}
