//! What gives way where a target does not fit.
//!
//! In this order, each step only while there still is too little: what waits to be deleted, lost+found, trees to build
//! on but the one that the update needs, retired trees, kept generations, oldest first. Never the live tree, and never one
//! that a web server may still read or the node would return to: one that was live within the grace, or that a failing
//! hook left it on. So the newest other one goes last, once the live one has stood for the grace with its hook succeeded:
//! a disk that two generations fill must not end all updates. Where nothing more may go the target is refused.

use std::sync::atomic::AtomicBool;

use crate::build::StageError;
use crate::replica::Replica;
use crate::replica::inspect::Found;
use crate::state::lost_found;

impl Replica {
    /// Makes room until `fits`. Its error where nothing more may go. `base` is the spare that the update is built on.
    pub(crate) fn make_room(
        &mut self,
        base: Option<u64>,
        fits: &dyn Fn(&Self) -> Result<(), StageError>,
        cancel: &AtomicBool,
    ) -> Result<(), StageError> {
        self.empty_trash(cancel)?;
        if fits(self).is_ok() {
            return Ok(());
        }
        if self.lost_found_gives_way(cancel)? && fits(self).is_ok() {
            return Ok(());
        }
        let given_up = self.give_up_spares(base)?;
        if given_up > 0 {
            tracing::warn!(trees = given_up, "space is needed: spares are given up");
            self.empty_trash(cancel)?;
            if fits(self).is_ok() {
                return Ok(());
            }
        }
        loop {
            if let Some((slot, _)) = self.slots.retired().first() {
                self.inspect_retired(*slot, false, cancel)?;
            } else if let Some((number, slot)) = self.oldest_dispensable() {
                tracing::warn!(generation = number, "space is needed: an old generation is no longer kept");
                self.retire(slot)?;
                continue;
            } else {
                return fits(self);
            }
            // What was found in it goes the way of everything else there.
            self.lost_found_gives_way(cancel)?;
            if fits(self).is_ok() {
                return Ok(());
            }
        }
    }

    /// Deletes what lost+found and the trash have; whether lost+found had anything. The report of local changes then
    /// counts it as not kept.
    pub(super) fn lost_found_gives_way(&mut self, cancel: &AtomicBool) -> Result<bool, StageError> {
        let had_any = lost_found::give_way(self.slots.layout())?;
        // First: the record needs space, too.
        self.empty_trash(cancel)?;
        self.upkeep.retired.inspected.values_mut().for_each(Found::gave_way);
        if let Some(drift) = &mut self.drift
            && drift.kept.take().is_some()
        {
            drift.lost = drift.paths;
            self.slots.record().set_drift(Some(drift))?;
            self.publish();
        }
        Ok(had_any)
    }

    /// Throws away all trees to build on but one. How many.
    fn give_up_spares(&mut self, base: Option<u64>) -> Result<usize, StageError> {
        let live = self.slots.live().map(|live| live.generation().root);
        let ready = live.and_then(|root| self.slots.spare_at(&root));
        let kept = base.or(ready).or_else(|| self.slots.spares().next().map(|(slot, _)| slot));
        let others: Vec<u64> =
            self.slots.spares().map(|(slot, _)| slot).filter(|slot| Some(*slot) != kept).collect();
        for slot in &others {
            self.slots.open_up(*slot)?;
        }
        let mut buildings = self.slots.buildings();
        if kept.is_none() && live.is_some() && !buildings.is_empty() {
            // Cheaper than a new farm of links.
            buildings.remove(0);
        }
        for slot in &buildings {
            self.slots.discard(*slot)?;
        }
        Ok(buildings.len())
    }

    /// The oldest generation that may go although it is to be kept, and its slot.
    fn oldest_dispensable(&mut self) -> Option<(u64, u64)> {
        let (clock, grace) = (self.options.clock.clone(), self.options.grace);
        // Of all that are no longer live the grace has begun.
        self.slots.excess(1, clock.now());
        let generations = self.slots.generations();
        generations.into_iter().find(|(_, slot)| self.slots.may_be_taken(*slot, &clock, grace))
    }
}
