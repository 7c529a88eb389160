//! Handles trees whose directories somebody has removed, and the numbers of their slots.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::Slots;
use crate::clock::Clock;
use crate::state::SlotError;
use crate::state::record::Known;
use crate::state::slot::{FormerTree, Slot};

impl Slots {
    /// Forgets trees whose directories are missing. A web server may still be pointed at the path of a tree
    /// that was live, so nothing is built there before [`Self::release_gone`].
    pub fn forget_absent(&mut self, now: Instant) -> Result<(), SlotError> {
        let (present, _) = self.present()?;
        let absent = |slot: &u64| !present.contains(slot) && !self.is_gone(*slot);
        let absent: Vec<u64> = self.known.slots.keys().copied().filter(absent).collect();
        absent.into_iter().try_for_each(|slot| self.forget(slot, now))?;
        let is_back = |slot: &u64| present.contains(slot) && self.is_gone(*slot);
        let back: Vec<u64> = self.known.slots.keys().copied().filter(is_back).collect();
        for slot in back {
            let generation = self.read_signed(slot)?;
            self.set(slot, Slot::Unknown(FormerTree::presumed(generation.as_ref())), true)?;
        }
        Ok(())
    }

    fn forget(&mut self, slot: u64, now: Instant) -> Result<(), SlotError> {
        let was_live = self.known.live == Some(slot);
        if let Some(generation) = self.state(slot).and_then(Slot::held) {
            self.layout.link_generation(generation.number().get(), None)?;
        }
        self.unlink_previous(slot)?;
        match self.state(slot).and_then(gone) {
            Some(gone) => {
                self.set(slot, gone, true)?;
                self.rests.entry(slot).or_insert(now);
            }
            None => {
                self.set(slot, Slot::Building, true)?;
                self.known.slots.remove(&slot);
                self.rests.remove(&slot);
            }
        }
        if was_live {
            self.known.live = None;
            self.rests.remove(&slot);
            self.record.restore(&self.known)?;
        }
        Ok(())
    }

    /// Frees the numbers of removed trees at whose paths no web server can be pointed any more.
    pub fn release_gone(&mut self, clock: &Clock, grace: Duration) -> Result<(), SlotError> {
        for slot in self.gone() {
            if self.may_be_taken(slot, clock, grace) {
                self.set(slot, Slot::Building, true)?;
                self.known.slots.remove(&slot);
                self.rests.remove(&slot);
            }
        }
        Ok(())
    }

    /// Numbers of removed trees.
    pub fn gone(&self) -> Vec<u64> {
        self.in_state(|state| matches!(state, Slot::Gone(_)).then_some(())).map(|(slot, ())| slot).collect()
    }

    pub(super) fn is_gone(&self, slot: u64) -> bool {
        matches!(self.state(slot), Some(Slot::Gone(_)))
    }
}

/// Removes missing slots from what a record knows.
pub(super) fn without_absent(known: &mut Known, present: &BTreeSet<u64>) {
    let absent: Vec<u64> = known.slots.keys().copied().filter(|slot| !present.contains(slot)).collect();
    for slot in absent {
        match known.slots.get(&slot).and_then(gone) {
            Some(gone) => drop(known.slots.insert(slot, gone)),
            None => drop(known.slots.remove(&slot)),
        }
    }
}

/// State of a tree whose directory is missing; `None`: no web server is pointed at it.
pub(super) fn gone(state: &Slot) -> Option<Slot> {
    match state {
        Slot::Held(generation) => Some(Slot::Gone(generation.number().get())),
        Slot::Resting(tree) => Some(Slot::Gone(tree.number)),
        // The number of its generation is uncertain.
        Slot::Unknown(_) => Some(Slot::Gone(u64::MAX)),
        Slot::Gone(number) => Some(Slot::Gone(*number)),
        _ => None,
    }
}
