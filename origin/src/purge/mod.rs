//! Tells caches in front of the whole fleet, a CDN or a common Varnish, what to forget: `serve --purge`.
//!
//! A purge by each node would be too early: the cache would be filled again by a node that is still old. One
//! task follows the fleet, and [`machine`] decides when it is time. The command of the operator gets the
//! changed paths or URLs ([`lines`]) in batches, and a failure is retried with growing pauses. The record
//! `state` in the namespace `purge` says what the caches were last purged for. It is written after a success,
//! so that a crash repeats the purge.

mod job;
mod lines;
mod machine;
mod record;
mod task;

use std::io;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::commit::OriginView;
use crate::fleet::FleetView;
use crate::fleet::rollout::RolloutView;
use crate::store::{Store, StoreError};
use task::Task;

/// Options of purging.
#[derive(Debug, Clone)]
pub struct PurgeOptions {
    /// `--purge`, for `sh -c`.
    pub command: String,
    /// `--purge-site`: bases of URLs. Empty: the command gets paths.
    pub sites: Vec<String>,
}

/// State of purging, for `status`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PurgeView {
    /// The generation that the caches were last purged for.
    pub generation: Option<u64>,
    /// A generation for which they are to be purged, as soon as its nodes have it.
    pub due: Option<u64>,
    /// Failed attempts in a row.
    pub failures: u32,
    /// Why the last attempt failed.
    pub error: Option<String>,
}

/// Errors of a purge.
#[derive(Debug, thiserror::Error)]
enum PurgeError {
    #[error("read the generations")]
    Store(#[from] StoreError),
    #[error("start the command")]
    Start(#[source] io::Error),
    #[error("{0}")]
    Command(String),
    #[error("interrupted")]
    Interrupted,
}

/// Parts of the origin that purging needs.
pub struct Purger {
    pub store: Arc<Store>,
    pub options: PurgeOptions,
    pub fleet: watch::Receiver<Arc<FleetView>>,
    pub rollout: watch::Receiver<Arc<RolloutView>>,
    /// With the newest generation.
    pub committer: watch::Receiver<OriginView>,
    pub shutdown: CancellationToken,
}

impl Purger {
    /// Reads the record. The task purges until `shutdown`. Blocks.
    pub fn start(
        self,
    ) -> Result<(watch::Receiver<PurgeView>, impl Future<Output = ()> + Send + 'static), StoreError> {
        let known = record::load(&self.store)?;
        let generation = known.done.map(|done| done.number);
        let (view, shown) = watch::channel(PurgeView { generation, ..PurgeView::default() });
        Ok((shown, Task::new(self, known, view).run()))
    }
}
