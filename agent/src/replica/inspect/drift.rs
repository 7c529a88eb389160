//! The report of local changes: what `status` and the origin show of an inspection.

use super::Found;
use crate::build::StageError;
use crate::replica::Replica;
use crate::state::layout::Layout;
use crate::state::lost_found;
use crate::state::record::RecordError;
use crate::state::slot::FormerTree;
use crate::status::{Drift, shown};

impl Replica {
    /// Report of a tree's local changes; `None`: there are none.
    pub(crate) fn drift_of(&self, tree: &FormerTree, found: &Found) -> Option<Drift> {
        let live = self.slots.live().map_or(tree.number, |live| live.number().get());
        (found.paths > 0).then(|| found.report(self.slots.layout(), tree.number, live))
    }

    /// Whether the same was reported last, under any live generation.
    pub(super) fn is_told(&self, drift: &Drift) -> bool {
        self.drift.as_ref().is_some_and(|told| Drift { live: told.live, ..drift.clone() } == *told)
    }

    /// Stores the local changes, and logs them once.
    pub(crate) fn found_drift(&mut self, drift: Drift) -> Result<(), RecordError> {
        let Drift { generation, paths, first, kept, lost, .. } = &drift;
        let kept = kept.as_deref();
        tracing::warn!(generation, paths, first, kept, lost, "files of the replica were changed locally");
        self.report_drift(drift)
    }

    pub(super) fn report_drift(&mut self, drift: Drift) -> Result<(), RecordError> {
        self.drift = Some(drift.clone());
        self.publish();
        self.slots.record().set_drift(Some(&drift))
    }

    /// Ends an earlier report when a later tree has no local changes. A report of files that are kept stays
    /// while they are there, so that somebody sees it.
    pub(super) fn drift_ended(&mut self, number: u64) -> Result<(), StageError> {
        let Some(drift) = self.drift.as_ref().filter(|drift| number > drift.live) else { return Ok(()) };
        let kept = drift.kept.as_deref().and_then(|kept| kept.rsplit('/').next());
        if kept.map_or(Ok(false), |kept| lost_found::has(self.slots.layout(), kept))? {
            return Ok(());
        }
        Ok(self.acknowledge_drift()?)
    }

    /// Clears the last report.
    pub(crate) fn acknowledge_drift(&mut self) -> Result<(), RecordError> {
        if self.drift.take().is_some() {
            self.slots.record().set_drift::<Drift>(None)?;
            self.publish();
        }
        Ok(())
    }
}

impl Found {
    /// The report of a generation's tree that was inspected while `live` was live.
    pub(super) fn report(&self, layout: &Layout, generation: u64, live: u64) -> Drift {
        Drift {
            generation,
            paths: self.paths,
            first: self.first.as_ref().map(shown).unwrap_or_default(),
            kept: self.kept_in(layout, generation),
            lost: self.lost,
            live,
        }
    }
}
