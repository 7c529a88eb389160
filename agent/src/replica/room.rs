//! Frees space when a target does not fit.
//!
//! Each step runs only while space is still missing. In order: the trash, lost+found, spares other than the
//! one that the update needs, retired trees, and kept generations from the oldest. The live tree never goes.
//! Neither does a tree that a web server may still read: one that was live within the grace period, or that a
//! failing hook may have left it on. The newest other generation goes last, once the live one has been live
//! for the grace period and its hook has succeeded. Without this last step, a disk that two generations fill
//! would block all updates. If nothing more may go, the target is refused.

use std::sync::atomic::AtomicBool;

use crate::build::StageError;
use crate::replica::Replica;
use crate::replica::inspect::Found;
use crate::state::lost_found;

impl Replica {
    /// Frees space until `fits` succeeds. Returns its error if nothing more may go. `base` is the spare that
    /// the update is built on.
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
            // Its findings go the same way as the rest of lost+found.
            self.lost_found_gives_way(cancel)?;
            if fits(self).is_ok() {
                return Ok(());
            }
        }
    }

    /// Deletes the contents of lost+found and of the trash. Returns whether lost+found had any. The report of
    /// local changes then counts them as not kept.
    pub(super) fn lost_found_gives_way(&mut self, cancel: &AtomicBool) -> Result<bool, StageError> {
        let had_any = lost_found::give_way(self.slots.layout())?;
        // Comes first, because the record needs space as well.
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

    /// Discards all trees to build on except one. Returns their number.
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

    /// The oldest generation that may go although it should be kept, and its slot.
    fn oldest_dispensable(&mut self) -> Option<(u64, u64)> {
        let (clock, grace) = (self.options.clock.clone(), self.options.grace);
        // Starts the grace period of every generation that is not live.
        self.slots.excess(1, clock.now());
        let generations = self.slots.generations();
        generations.into_iter().find(|(_, slot)| self.slots.may_be_taken(*slot, &clock, grace))
    }
}
