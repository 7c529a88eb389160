//! The trees of a replica as building and reading them see them: what is live, what else is held, their manifests.
//!
//! A view of one moment, which changes nothing. It keeps the record open: nobody holds it while that is opened anew.

use std::sync::Arc;

use syncd_shared::{RootEntry, SignedGeneration};

use crate::state::cursor::{LiveTree, TreeError};
use crate::state::disk::{Dir, DiskError, Owners};
use crate::state::layout::Layout;
use crate::state::record::Record;

/// See the module.
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

    /// Other generations that are held, and their slots, the newest first.
    pub fn others(&self) -> Vec<&(u64, SignedGeneration)> {
        let mut others: Vec<_> = self.held.iter().filter(|(slot, _)| Some(*slot) != self.live).collect();
        others.sort_unstable_by_key(|(_, generation)| std::cmp::Reverse(generation.number()));
        others
    }

    pub fn open(&self, slot: u64) -> Result<Dir, DiskError> {
        self.layout.slot(slot)
    }

    /// The directory of the live tree. There must be one.
    pub fn open_live(&self) -> Result<Dir, DiskError> {
        self.open(self.live.unwrap_or(0))
    }

    /// The live tree as something to link from; `root` is its root.
    pub fn live_tree(&self, root: &RootEntry) -> Result<LiveTree<'_>, TreeError> {
        Ok(LiveTree::open(&self.record, root, self.open_live()?, self.owners)?)
    }
}
