//! Recovers from any state on disk: makes the links match the record. Idempotent; needs no origin.
//!
//! | found | done |
//! | --- | --- |
//! | a slot without a row | becomes a building: an activation did not commit, or a crash left it |
//! | a row without its slot | forgotten, except for the accepted generation; its number stays reserved while a web server may be pointed at it |
//! | `live`, `previous` or `generations/N` differ from the record | rolled forward to match it |
//! | a pending exchange with `live` was not done | done |
//! | `live` is not what `--swap` asks for | converted |
//! | refused generations that only the record or only `state/refused` has | are in both |
//! | `aside-*`, `*.next`, links in `slots/` | deleted |
//! | no record (lost, damaged), or one that does not hold the existing tree that `live` names | the signed record is read from `state/signed`, and the manifest is built from the files. If it has the signed root, the tree is held again. Otherwise the tree is served, and the next target is staged as a first sync. Other trees are unknown: a web server may serve them, and they may have files of visitors |
//! | the same, and `state/refused` has the live generation | the tree to return to is held again as well, if it has the signed root |

use std::collections::BTreeSet;
use std::time::Instant;

use rustix::fs::FileType;
use syncd_shared::SignedGeneration;

use super::Slots;
use super::absent::without_absent;
use crate::state::decisions::{Decisions, Named, read_refused};
use crate::state::disk::DiskError;
use crate::state::layout::{LIVE_NEXT, LIVE_SLOT, PREVIOUS, PREVIOUS_NEXT, generation_target};
use crate::state::record::{Known, Record, RecordError};
use crate::state::scan::{prove, prove_not_live};
use crate::state::slot::{FormerTree, Slot};
use crate::state::swap::{self, Swap};
use crate::state::{SlotError, number};

/// Reason why recovery failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecoverError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl From<SlotError> for RecoverError {
    fn from(error: SlotError) -> Self {
        match error {
            SlotError::Disk(e) => e.into(),
            SlotError::Record(e) => e.into(),
        }
    }
}

impl Slots {
    /// Reopens the record and recovers, as at a start.
    pub fn reopen(&mut self, now: Instant) -> Result<(), RecoverError> {
        Record::reopen(&mut self.record, &self.layout.record_path())?;
        self.recover(now)?;
        self.unsettled = false;
        Ok(())
    }

    /// Recovers as described in the module.
    pub fn recover(&mut self, now: Instant) -> Result<(), RecoverError> {
        let before = self.record.known()?;
        self.finish_exchange(&before)?;
        let linked = self.find_live(&before)?;
        self.discard_links()?;
        let (mut present, others) = self.present()?;
        for name in others {
            let path = self.layout.slots.path().join(name.escape_ascii().to_string());
            tracing::warn!(path = %path.display(), "not a slot: left alone");
        }
        if linked != Some(LIVE_SLOT) {
            present.remove(&LIVE_SLOT);
        }
        self.swap = self.wanted.map_or_else(|| self.swap_as_it_is(linked), Ok)?;
        let mut known = Known { coming: None, ..before.clone() };
        if let Some(linked) = linked.filter(|linked| is_lost(&before, *linked, &present)) {
            known = self.rebuild(linked, &present, &before)?;
        }
        without_absent(&mut known, &present);
        let is_held = |known: &Known, slot: u64| matches!(known.slots.get(&slot), Some(Slot::Held(_)));
        let held = |slot: &u64| is_held(&known, *slot);
        known.live = known.live.filter(held).or(linked.filter(held));
        let kept = |known: &Known, slot: u64| {
            is_held(known, slot) || matches!(known.slots.get(&slot), Some(Slot::Unknown(_)))
        };
        known.previous = known.previous.filter(|slot| known.live != Some(*slot) && kept(&known, *slot));
        if known != before {
            self.record.restore(&known)?;
        }
        for slot in present {
            known.slots.entry(slot).or_insert(Slot::Building);
        }
        self.known = known;
        self.linked = self.known.live.or(linked);
        self.recover_refused()?;
        self.recover_rests(now);
        self.recover_links()?;
        // An activation may have opened its tree to others without committing.
        self.buildings().into_iter().try_for_each(|slot| self.layout.close(slot))?;
        self.layout.discard_asides()?;
        self.adopt_swap()?;
        Ok(self.recover_signed()?)
    }

    /// Slot that `live` is or names. An empty directory is a slot only if a generation without files is live.
    fn find_live(&self, known: &Known) -> Result<Option<u64>, DiskError> {
        let is_held = |known: &Known| matches!(known.slots.get(&LIVE_SLOT), Some(Slot::Held(_)));
        match self.layout.live_slot()? {
            None if is_held(known) && self.layout.live_tree_stands()? => Ok(Some(LIVE_SLOT)),
            found => Ok(found),
        }
    }

    fn swap_as_it_is(&self, linked: Option<u64>) -> Result<Swap, DiskError> {
        let is_exchanged = match linked {
            Some(slot) => slot == LIVE_SLOT,
            None => swap::is_marked(&self.layout.state)?,
        };
        Ok(if is_exchanged { Swap::Exchange } else { Swap::Link })
    }

    /// Removes links that an exchange with `live` left.
    fn discard_links(&self) -> Result<(), DiskError> {
        let listed = self.layout.slots.list()?;
        listed.iter().try_for_each(|listed| self.layout.discard_link(&listed.name))
    }

    /// Existing slots, and the names beside them. A name that is not a directory is not a slot.
    pub(super) fn present(&self) -> Result<(BTreeSet<u64>, Vec<Vec<u8>>), DiskError> {
        let (mut present, mut others) = (BTreeSet::new(), Vec::new());
        present.extend(self.layout.live_tree_stands()?.then_some(LIVE_SLOT));
        for listed in self.layout.slots.list()? {
            let stat = self.layout.slots.stat(&listed.name)?;
            let is_directory = stat.is_some_and(|stat| stat.kind == FileType::Directory);
            match number(&listed.name).filter(|number| *number > 0 && is_directory) {
                Some(slot) => drop(present.insert(slot)),
                None => others.push(listed.name),
            }
        }
        Ok((present, others))
    }

    /// Rebuilds [`Known`] from what is proved by the disk. Accepts the highest generation among the copies of
    /// signed records, because after a power cut `live` may name an older one.
    fn rebuild(&self, linked: u64, present: &BTreeSet<u64>, before: &Known) -> Result<Known, RecoverError> {
        let (accepted, decisions) = (before.accepted.clone(), before.decisions.clone());
        let mut known = Known { accepted, decisions, ..Known::default() };
        for slot in present {
            let generation = self.read_signed(*slot)?;
            // A closed tree without a copy was never about to be activated, so it is a building.
            if *slot == linked || generation.is_some() || !self.layout.is_closed(*slot)? {
                known.slots.insert(*slot, Slot::Unknown(FormerTree::presumed(generation.as_ref())));
            }
        }
        let candidates = self.copies_of_live(linked)?;
        let roots: Vec<_> = candidates.iter().map(|copy| copy.generation().root).collect();
        let proven = match present.contains(&linked) && !candidates.is_empty() {
            true => prove(&self.record, &self.layout, self.open(linked)?, &roots)?,
            false => None,
        };
        let linked_generation = candidates.into_iter().nth(proven.unwrap_or(0));
        let copies = self.verified_copies()?;
        for generation in linked_generation.iter().chain(&copies) {
            if known.accepted.as_ref().is_none_or(|accepted| accepted.number() < generation.number()) {
                known.accepted = Some(generation.clone());
            }
        }
        let Some(generation) = linked_generation else { return Ok(known) };
        let number = generation.number().get();
        if present.contains(&linked) {
            tracing::info!(generation = number, "building the record from the live tree");
            if proven.is_some() {
                known.live = Some(linked);
                known.slots.insert(linked, Slot::Held(Box::new(generation.clone())));
                self.find_return(&mut known, &generation)?;
            } else {
                tracing::warn!(
                    generation = number,
                    "the live tree is served, but is not exactly what was signed: the next update fetches everything"
                );
            }
        }
        Ok(known)
    }

    /// Holds the tree that the node has to return to, because it refuses the live generation. Without it, the
    /// node stays on what it refuses until a newer generation comes.
    fn find_return(&self, known: &mut Known, live: &SignedGeneration) -> Result<(), RecoverError> {
        let refused = Decisions { refused: read_refused(&self.layout.state)?, ..Decisions::default() };
        let Some(back) = refused.refusal(live).and_then(|refusal| refusal.back) else { return Ok(()) };
        let unknown = known.slots.iter().filter(|(_, state)| matches!(state, Slot::Unknown(_)));
        for slot in unknown.map(|(slot, _)| *slot).collect::<Vec<_>>() {
            let Some(copy) = self.read_signed(slot)?.filter(|copy| Named::of(copy) == back) else { continue };
            if prove_not_live(&self.record, &self.layout, self.open(slot)?, &copy.generation().root)? {
                known.decisions.good = Some(back);
                known.slots.insert(slot, Slot::Held(Box::new(copy)));
                return Ok(());
            }
        }
        let (refused, back) = (live.number().get(), back.number);
        tracing::warn!(
            "generation {refused} is refused and stays live: no tree of {back}, the last that passed, is left as it was"
        );
        Ok(())
    }

    /// Keeps the grace periods that this process knows. All others begin now.
    fn recover_rests(&mut self, now: Instant) {
        let mut rests = std::mem::take(&mut self.rests);
        rests.retain(|slot, _| {
            let state = self.state(*slot);
            !self.is_in_use(*slot)
                && matches!(state, Some(Slot::Held(_) | Slot::Resting(_) | Slot::Unknown(_) | Slot::Gone(_)))
        });
        self.rests = rests;
        self.protect_from(self.protected, now);
    }

    fn recover_links(&mut self) -> Result<(), DiskError> {
        let (layout, known) = (&self.layout, &self.known);
        match known.previous {
            None => {
                if layout.root.stat(PREVIOUS)?.is_some_and(|stat| stat.kind == FileType::Symlink) {
                    layout.root.unlink(PREVIOUS)?;
                }
            }
            Some(slot) if layout.linked_slot(PREVIOUS)? != Some(slot) => layout.point_previous(slot)?,
            Some(_) => {}
        }
        let mut generations = self.generations();
        for listed in layout.generations.list()? {
            let slot = number(&listed.name).and_then(|number| generations.remove(&number).zip(Some(number)));
            let target = slot.map(|(slot, _)| generation_target(slot));
            let is_right = target.is_some() && layout.generations.read_link(&listed.name).ok() == target;
            match (slot, number(&listed.name)) {
                _ if is_right => {}
                (Some((slot, number)), _) => layout.link_generation(number, Some(slot))?,
                (None, Some(number)) => layout.link_generation(number, None)?,
                (None, None) => {
                    let path = layout.generations.path().join(listed.name.escape_ascii().to_string());
                    tracing::warn!(path = %path.display(), "not a generation: left alone");
                }
            }
        }
        for (number, slot) in generations {
            layout.link_generation(number, Some(slot))?;
        }
        layout.free(&layout.root, PREVIOUS_NEXT)?;
        match known.live {
            // After an error the link may exist without being durable, and a failed sync must not be
            // repeated.
            Some(live) if live != LIVE_SLOT && (self.unsettled || layout.live_slot()? != Some(live)) => {
                layout.prepare_links(live, None)?;
                layout.switch_links(false)?;
            }
            // After a kill the link may not be durable either.
            _ => layout.root.sync_names()?,
        }
        layout.free(&layout.root, LIVE_NEXT)
    }

    /// Removes copies of signed records whose slots are gone. Writes those again that a power cut left under
    /// another name.
    fn recover_signed(&self) -> Result<(), DiskError> {
        for (slot, generation) in self.held() {
            if self.read_signed(slot)?.as_ref() != Some(generation) {
                self.write_signed(slot, generation)?;
            }
        }
        let linked = self.layout.live_slot()?;
        for listed in self.layout.signed.list()? {
            let slot = number(&listed.name);
            if !slot.is_some_and(|slot| self.known.slots.contains_key(&slot) || Some(slot) == linked) {
                self.layout.remove(&self.layout.signed, &listed.name)?;
            }
        }
        Ok(())
    }
}

/// Whether the record does not describe these trees: the tree that `live` names exists, but the record does
/// not hold it.
fn is_lost(known: &Known, linked: u64, present: &BTreeSet<u64>) -> bool {
    let is_served = matches!(known.slots.get(&linked), Some(Slot::Held(_) | Slot::Unknown(_)));
    known.accepted.is_none() || (present.contains(&linked) && !is_served)
}
