//! Read-only view of a replica's trees for building and reading: the live tree, the other held trees, and
//! their manifests.
//!
//! The view describes one moment and keeps the record open, so it must be dropped before the record is
//! reopened.

use std::sync::Arc;

use syncd_shared::{Entry, Kind, RootEntry, SignedGeneration};

use crate::state::cursor::{LiveTree, TreeError};
use crate::state::disk::{Dir, DiskError, Owners};
use crate::state::layout::Layout;
use crate::state::record::Record;

/// View of a replica's trees.
#[derive(Debug, Clone)]
pub(crate) struct Trees {
    pub record: Arc<Record>,
    pub layout: Arc<Layout>,
    pub owners: Owners,
    live: Option<u64>,
    held: Vec<(u64, SignedGeneration)>,
}

impl Trees {
    pub(super) fn new(
        record: Arc<Record>,
        layout: Arc<Layout>,
        owners: Owners,
        live: Option<u64>,
        held: Vec<(u64, SignedGeneration)>,
    ) -> Self {
        Self { record, layout, owners, live, held }
    }

    pub fn live(&self) -> Option<&SignedGeneration> {
        self.held.iter().find(|(slot, _)| Some(*slot) == self.live).map(|(_, generation)| generation)
    }

    pub fn live_root(&self) -> Option<RootEntry> {
        self.live().map(|live| live.generation().root)
    }

    pub fn live_slot(&self) -> Option<u64> {
        self.live
    }

    /// Other held generations with their slots, the newest first.
    pub fn others(&self) -> Vec<&(u64, SignedGeneration)> {
        let mut others: Vec<_> = self.held.iter().filter(|(slot, _)| Some(*slot) != self.live).collect();
        others.sort_unstable_by_key(|(_, generation)| std::cmp::Reverse(generation.number()));
        others
    }

    /// Makes the symlink of an entry under a free name, and the collected directory that it may lead to.
    pub fn link(&self, dir: &Dir, name: &[u8], entry: &Entry) -> Result<(), DiskError> {
        if let Kind::Collected { name } = &entry.kind {
            self.layout.ensure_collected(name, &entry.metadata)?;
        }
        let target = self.layout.link_target(&entry.kind).unwrap_or_default();
        dir.symlink(&target, name)?;
        dir.set_metadata(name, &entry.metadata, self.owners, true)
    }

    pub fn open(&self, slot: u64) -> Result<Dir, DiskError> {
        self.layout.slot(slot)
    }

    /// Opens the live tree, which must exist.
    pub fn open_live(&self) -> Result<Dir, DiskError> {
        self.open(self.live.unwrap_or(0))
    }

    /// The live tree as a source of links; `root` is its root.
    pub fn live_tree(&self, root: &RootEntry) -> Result<LiveTree<'_>, TreeError> {
        Ok(LiveTree::open(&self.record, root, self.open_live()?, self.owners)?)
    }
}
