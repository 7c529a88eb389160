//! What an update is built on: spares, trees that are being made spares, and their names in `staging`.
//!
//! | name | is |
//! | --- | --- |
//! | `spare-K` | complete, at the root that the record says |
//! | `drawn-K` | the same to this process; it may be changed at any time ([`super::draw`]) |
//! | `partial-K` | being made part by part: it has content that is nowhere else, and is left alone until the next attempt has taken that |
//! | `retired-K` | was live, and still has to be inspected ([`crate::inspect`]) |
//! | `building-K` | being changed, or left so by a crash: looked at name by name before it is a spare again |

use std::collections::HashSet;
use std::sync::atomic::AtomicBool;

use syncd_shared::{Entry, RootEntry, TreePath};

use crate::disk::{Dir, DiskError};
use crate::layout::numbered;
use crate::replica::Replica;
use crate::stage::StageError;
use crate::stage::conform::{Conform, Conformed, Retired, Since};
use crate::stage::cursor::LiveTree;
use crate::stage::holes::Holes;
use crate::stage::manifest::compare;
use crate::stage::patch::{Patch, Supply};

/// What the tree is built on.
pub(super) enum Base {
    /// `spare-K` at the live root.
    Spare(u64),
    /// `building-K`, at the live root but for holes; `farm`: every name of it was looked at.
    Building { slot: u64, holes: Holes, farm: bool },
}

impl Replica {
    /// Something to build on: a spare at the live root, else a farm of links.
    pub(super) fn base(
        &mut self,
        from: Option<&RootEntry>,
        distrusted: Option<&HashSet<TreePath>>,
        cancel: &AtomicBool,
    ) -> Result<Base, StageError> {
        self.reclaim_spares()?;
        let Some(from) = from else {
            self.discard_buildings()?;
            let slot = self.free_slot()?;
            self.layout.staging.make_dir(&building(slot))?;
            return Ok(Base::Building { slot, holes: Holes::default(), farm: false });
        };
        if distrusted.is_none() {
            if let Some(slot) = self.spare_at(from) {
                return Ok(Base::Spare(slot));
            }
            if let Some((slot, root)) = self.spares().iter().next_back().map(|(s, r)| (*s, *r)) {
                self.demote(slot)?;
                if self.catch_up(slot, &root, from)? {
                    return Ok(Base::Building { slot, holes: Holes::default(), farm: false });
                }
            }
        }
        let slot = match self.buildings()?.first() {
            Some(slot) => *slot,
            None => match (self.spares().keys().next().copied(), self.out_of_use()) {
                (Some(spare), _) => self.demote(spare)?,
                // Cheaper than a new farm, and every name is looked at in either.
                (None, Some(slot)) => {
                    self.inspect_retired(slot, true, cancel)?;
                    slot
                }
                (None, None) => {
                    let slot = self.free_slot()?;
                    self.layout.staging.make_dir(&building(slot))?;
                    slot
                }
            },
        };
        let conformed = self.conform(slot, from, distrusted, cancel)?;
        Ok(Base::Building { slot, holes: conformed.holes, farm: true })
    }

    /// Makes `building-K` a copy of the live tree by links.
    pub(crate) fn conform(
        &mut self,
        slot: u64,
        live_root: &RootEntry,
        distrusted: Option<&HashSet<TreePath>>,
        cancel: &AtomicBool,
    ) -> Result<Conformed, StageError> {
        let dir = self.layout.staging.open_dir(&building(slot))?;
        let number = self.live().map_or(0, |live| live.number().get());
        // Once: an interrupted attempt leaves another tree.
        let was = self.upkeep.was.remove(&slot).filter(|_| distrusted.is_none());
        let steps = &self.upkeep.steps;
        let was = was.map(|(from, root)| {
            let since = steps.finished(from).zip(steps.between(from, number));
            Retired { root, since: since.map(|(finished, touched)| Since { finished, touched }) }
        });
        let live = self.layout.generations.open_dir(number.to_string().as_bytes())?;
        let (layout, record, owners) = (&self.layout, &*self.record, self.owners);
        let conform = Conform { layout, record, owners, live, distrusted, was, cancel };
        match conform.run(&dir, live_root) {
            Err(StageError::Disk(error)) if error.is_denied() => {
                // Another user's directory can't be moved out of it, nor can a mount: a farm of links has neither.
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "a tree can't be built on, another is begun");
                layout.discard(&layout.staging, &building(slot))?;
                let dir = layout.staging.create_dir(&building(slot), 0o700)?;
                Conform { was: None, ..conform }.run(&dir, live_root)
            }
            other => other,
        }
    }

    /// The live tree as something to link from.
    pub(crate) fn live_tree(&self, root: &RootEntry) -> Result<LiveTree<'_>, StageError> {
        let number = self.live().map_or(0, |live| live.number().get());
        let dir = self.layout.generations.open_dir(number.to_string().as_bytes())?;
        Ok(LiveTree::open(&self.record, root, dir, self.owners)?)
    }

    /// Brings `building-K` from exactly `from` to the live root by links alone. `false`: the live tree is not what was
    /// activated, and the building is neither.
    pub(crate) fn catch_up(&self, slot: u64, from: &RootEntry, to: &RootEntry) -> Result<bool, StageError> {
        let comparison = compare(&self.record, from, to, self.options.part)?;
        let dir = self.layout.staging.open_dir(&building(slot))?;
        let mut links = LinkSupply { live: self.live_tree(to)?, damaged: false };
        let renames = comparison.renamed_directories();
        let mut patch = Patch::start(&self.layout, self.owners, slot, renames, dir)?;
        for part in comparison.parts() {
            patch.part(&self.layout, &part?.changes, &mut links)?;
        }
        patch.finish(to)?;
        Ok(!links.damaged)
    }

    /// A spare at this root, drawn if there is one.
    pub(super) fn spare_at(&self, root: &RootEntry) -> Option<u64> {
        let there = self.spares().iter().filter(|(_, at)| *at == root).map(|(slot, _)| *slot);
        there.max_by_key(|slot| self.upkeep.drawn.contains(slot))
    }

    /// Spares that could not be recorded are buildings.
    pub(crate) fn reclaim_spares(&self) -> Result<(), DiskError> {
        let staging = &self.layout.staging;
        for listed in staging.list()? {
            let slot = numbered(&listed.name, "spare-").or_else(|| numbered(&listed.name, "drawn-"));
            if let Some(slot) = slot.filter(|slot| !self.known.spares.contains_key(slot)) {
                staging.rename_new(&listed.name, staging, &building(slot))?;
            }
        }
        Ok(())
    }

    /// Slots of trees that are being built, or were when something interrupted it.
    pub(crate) fn buildings(&self) -> Result<Vec<u64>, DiskError> {
        let mut slots: Vec<u64> =
            self.layout.staging.list()?.iter().filter_map(|l| numbered(&l.name, "building-")).collect();
        slots.sort_unstable();
        Ok(slots)
    }

    /// Throws away all trees that are being built.
    pub(crate) fn discard_buildings(&self) -> Result<(), DiskError> {
        for slot in self.buildings()? {
            self.layout.discard(&self.layout.staging, &building(slot))?;
        }
        Ok(())
    }

    /// Slots of trees that are being made part by part, or were when something interrupted it.
    pub(crate) fn partials(&self) -> Result<Vec<u64>, DiskError> {
        Ok(self.layout.staging.list()?.iter().filter_map(|l| numbered(&l.name, "partial-")).collect())
    }

    /// What was made part by part is a building like all others from here on.
    pub(super) fn reclaim_partials(&self) -> Result<(), DiskError> {
        let staging = &self.layout.staging;
        for slot in self.partials()? {
            staging.rename_new(&partial(slot), staging, &building(slot))?;
        }
        Ok(())
    }

    /// The oldest tree that waits to be inspected, past its grace.
    pub(crate) fn out_of_use(&self) -> Option<u64> {
        let waiting = |slot: &u64| !self.upkeep.resting.contains_key(slot);
        let mut trees: Vec<_> = self.known.retired.iter().filter(|(slot, _)| waiting(slot)).collect();
        trees.sort_unstable_by_key(|(_, tree)| tree.number);
        trees.first().map(|(slot, _)| **slot)
    }

    /// A slot number that no name in staging has.
    pub(crate) fn free_slot(&self) -> Result<u64, DiskError> {
        let names = self.layout.staging.list()?;
        let used = names.iter().filter_map(|l| {
            ["building-", "partial-", "spare-", "drawn-", "resting-", "retired-"]
                .iter()
                .find_map(|p| numbered(&l.name, p))
        });
        Ok(used.max().unwrap_or(0) + 1)
    }
}

/// Name of a tree that is being built.
pub(crate) fn building(slot: u64) -> Vec<u8> {
    format!("building-{slot}").into_bytes()
}

/// Name of a tree that is being made part by part.
pub(crate) fn partial(slot: u64) -> Vec<u8> {
    format!("partial-{slot}").into_bytes()
}

/// Name of a tree that was live, and was not inspected yet.
pub(crate) fn retired(slot: u64) -> Vec<u8> {
    format!("retired-{slot}").into_bytes()
}

/// Name of a tree that was in the live tree's place until that was healed.
pub(crate) fn resting(slot: u64) -> Vec<u8> {
    format!("resting-{slot}").into_bytes()
}

/// Name of a spare.
pub(crate) fn spare(slot: u64) -> Vec<u8> {
    format!("spare-{slot}").into_bytes()
}

/// Name of a spare that is about to be changed, for all that others know.
pub(crate) fn drawn(slot: u64) -> Vec<u8> {
    format!("drawn-{slot}").into_bytes()
}

/// Everything is in the live tree under the same path.
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
