//! Chooses the tree that an update is built on: a spare at the live root, otherwise a tree that is turned
//! into one, otherwise a farm of links.

use std::collections::HashSet;
use std::sync::atomic::AtomicBool;

use syncd_shared::{Entry, RootEntry, TreePath};

use crate::build::StageError;
use crate::build::conform::{Conform, Conformed, Retired};
use crate::build::manifest::compare;
use crate::build::missing_entries::MissingEntries;
use crate::build::patch::{Patch, Supply};
use crate::replica::Replica;
use crate::state::cursor::LiveTree;
use crate::state::disk::Dir;

/// Base of an update.
pub(super) enum Base {
    /// A spare at the live root.
    Spare(u64),
    /// A building at the live root, except for missing entries. `farm`: every name of it was checked.
    Building { slot: u64, missing: MissingEntries, farm: bool },
}

impl Replica {
    /// Obtains a base: a spare at the live root, otherwise a farm of links.
    pub(super) fn base(
        &mut self,
        from: Option<&RootEntry>,
        distrusted: Option<&HashSet<TreePath>>,
        cancel: &AtomicBool,
    ) -> Result<Base, StageError> {
        let Some(from) = from else {
            self.discard_buildings()?;
            let slot = self.slots.make()?;
            return Ok(Base::Building { slot, missing: MissingEntries::default(), farm: false });
        };
        if distrusted.is_none() && !self.upkeep.disturbed {
            if let Some(slot) = self.slots.spare_at(from) {
                return Ok(Base::Spare(slot));
            }
            if let Some((slot, root)) = self.slots.lowest_spare() {
                self.slots.open_up(slot)?;
                if self.catch_up(slot, &root, from)? {
                    return Ok(Base::Building { slot, missing: MissingEntries::default(), farm: false });
                }
            }
        }
        let slot = self.something_to_conform(cancel)?;
        let conformed = self.conform(slot, from, distrusted, cancel)?;
        Ok(Base::Building { slot, missing: conformed.missing, farm: true })
    }

    /// The building that takes the least work to become a copy of the live tree.
    fn something_to_conform(&mut self, cancel: &AtomicBool) -> Result<u64, StageError> {
        if self.upkeep.disturbed {
            // Content that arrived was taken out of the buildings before.
            self.discard_buildings()?;
            return Ok(self.slots.make()?);
        }
        if let Some(slot) = self.slots.buildings().first() {
            return Ok(*slot);
        }
        if let Some((slot, _)) = self.slots.lowest_spare() {
            self.slots.open_up(slot)?;
            return Ok(slot);
        }
        // Cheaper than a new farm. Every name is checked in both cases.
        if let Some((slot, _)) = self.slots.retired().first() {
            self.inspect_retired(*slot, true, cancel)?;
            return Ok(*slot);
        }
        Ok(self.slots.make()?)
    }

    /// Makes a building a copy of the live tree by links.
    pub(crate) fn conform(
        &mut self,
        slot: u64,
        live_root: &RootEntry,
        distrusted: Option<&HashSet<TreePath>>,
        cancel: &AtomicBool,
    ) -> Result<Conformed, StageError> {
        let number = self.slots.live().map_or(0, |live| live.number().get());
        // Used only once, because an interrupted attempt leaves another tree.
        let was = self.upkeep.retired.was.remove(&slot).filter(|_| distrusted.is_none());
        let was = was.map(|tree| {
            let since = self.upkeep.history.since(tree.number, number);
            Retired { root: tree.root, since }
        });
        let trees = self.slots.trees();
        let conform = Conform { trees: &trees, live: trees.open_live()?, distrusted, was, cancel };
        match conform.run(&trees.open(slot)?, live_root) {
            Err(StageError::Disk(error)) if error.is_disturbed() => {
                // A foreign directory or a mount cannot be removed, and a web user may have directories open
                // that were once live. A new farm of links has none of these.
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "a tree can't be reused: another is started");
                self.slots.begin_anew(slot)?;
                Conform { was: None, ..conform }.run(&trees.open(slot)?, live_root)
            }
            other => other,
        }
    }

    /// Updates a building from exactly `from` to the live root by links alone. Returns `false` if the live
    /// tree is not what was activated: the building is then at neither root.
    pub(crate) fn catch_up(&self, slot: u64, from: &RootEntry, to: &RootEntry) -> Result<bool, StageError> {
        let trees = self.slots.trees();
        let comparison = compare(&trees.record, from, to, self.options.part)?;
        let mut links = LinkSupply { live: trees.live_tree(to)?, damaged: false };
        let renames = comparison.renamed_directories();
        let mut patch = Patch::start(&trees.layout, trees.owners, slot, renames, trees.open(slot)?)?;
        for part in comparison.parts() {
            patch.part(&trees.layout, &part?.changes, &mut links)?;
        }
        patch.finish()?;
        Ok(!links.damaged)
    }

    /// Discards all buildings.
    pub(crate) fn discard_buildings(&mut self) -> Result<(), StageError> {
        self.slots.buildings().into_iter().try_for_each(|slot| Ok(self.slots.discard(slot)?))
    }
}

/// Supplies everything from the live tree under the same path.
struct LinkSupply<'a> {
    live: LiveTree<'a>,
    damaged: bool,
}

impl Supply for LinkSupply<'_> {
    fn put(
        &mut self,
        _: usize,
        path: &TreePath,
        entry: &Entry,
        dir: &Dir,
        name: &[u8],
    ) -> Result<u64, StageError> {
        let linked = self.live.link(path, entry, dir, name)?;
        self.damaged |= linked.is_none();
        Ok(linked.unwrap_or(0))
    }
}
