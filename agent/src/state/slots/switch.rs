//! The switch: the staged tree becomes live.
//!
//! With `--swap link` a tree stays at `slots/K`, and `live` is a link to it. With `--swap exchange` the live
//! tree is at `live` itself, as slot 0. A switch exchanges it with the staged tree, and their rows move with
//! them. A slot is a path in both cases:
//!
//! ```text
//!                          live      slots/K   the record
//! staged                   old       new       0: old, K: building
//! commit_switch            old       new       0: new, K: old, coming: K and the inode of `new`
//! finish_switch            new       old       the same
//!                                              0: new, K: old
//! ```
//!
//! After a crash the inode at `live` shows whether the exchange was done. If it was not, recovery does it.
//! Healing and a change of `--swap` use the same steps. `coming` is removed once the names are durable: in a
//! copy of ROOT, inode numbers mean nothing.

use std::time::Instant;

use syncd_shared::{RootEntry, SignedGeneration, Timestamp};

use super::absent::gone;
use super::{RecoverError, Slots};
use crate::state::SlotError;
use crate::state::disk::DiskError;
use crate::state::layout::{LIVE_SLOT, slot_name};
use crate::state::record::{Change, Coming, InodeChanges, Known, RecordError};
use crate::state::slot::{FormerTree, Slot};
use crate::state::swap::{self, Swap};
use crate::test_faults::{self, Bug};

/// Limit of the roots remembered for a slot that was served without a success of the hook. Beyond it they
/// count as unknown.
const SERVED_MAX: usize = 8;

/// Switch to a new live tree.
pub(crate) struct Switch<'a> {
    pub slot: u64,
    pub target: &'a SignedGeneration,
    pub inodes: &'a InodeChanges,
    /// Spares that can no longer be patched by the differences between manifests.
    pub outlived: &'a [u64],
    /// A check has to pass, or the node returns.
    pub on_trial: bool,
}

impl Slots {
    /// Gives the root of a tree its metadata, so that others may enter the tree. Returns the time of the
    /// tree's last change.
    pub fn reveal(&self, slot: u64, root: &RootEntry) -> Result<Timestamp, DiskError> {
        let dir = self.open(slot)?;
        dir.set_own_metadata(&root.metadata, self.owners)?;
        Ok(dir.stat_self()?.ctime)
    }

    /// Slot of a staged tree once it is live.
    pub fn landing(&self, slot: u64) -> u64 {
        match self.swap {
            Swap::Link => slot,
            Swap::Exchange => LIVE_SLOT,
        }
    }

    /// Slot that `live` is or names, if it exists, even if nothing is known about it.
    fn outgoing(&self) -> Option<u64> {
        let is_there = |slot: &u64| self.known.slots.contains_key(slot) && !self.is_gone(*slot);
        self.known.live.or(self.linked).filter(is_there)
    }

    /// Slot of the tree that is live now, once the tree of `slot` is live.
    fn leaving(&self, slot: u64) -> Option<u64> {
        let outgoing = self.outgoing()?;
        Some(if self.landing(slot) == slot { outgoing } else { slot })
    }

    /// Creates the new links under their temporary names, and the link in `generations/`.
    pub fn prepare_switch(&mut self, switch: &Switch<'_>) -> Result<(), DiskError> {
        if self.swap == Swap::Exchange {
            return if self.outgoing().is_none() { self.layout.free_live() } else { Ok(()) };
        }
        let previous = self.outgoing().or(self.known.previous);
        self.layout.prepare_links(switch.slot, previous)?;
        self.layout.link_generation(switch.target.number().get(), Some(switch.slot))
    }

    /// Commits the switch: recovery completes it after a crash. The tree and the copy of its signed record
    /// are durable.
    pub fn commit_switch(&mut self, switch: &Switch<'_>) -> Result<(), SlotError> {
        let Switch { slot, target, inodes, outlived, on_trial } = *switch;
        let (landing, leaving) = (self.landing(slot), self.leaving(slot));
        let state = Slot::Held(Box::new(target.clone()));
        let mut slots: Vec<_> = outlived.iter().map(|outlived| (*outlived, &Slot::Building)).collect();
        let left = leaving.filter(|_| landing != slot).and_then(|_| self.known.slots.get(&landing).cloned());
        if landing != slot {
            slots.push((slot, left.as_ref().unwrap_or(&Slot::Building)));
        }
        slots.push((landing, &state));
        let served = self.served_with(landing, target.generation().root);
        let coming = self.coming(slot)?;
        let decisions = self.known.decisions.switched(target, on_trial);
        let former = self.state(slot).and_then(Slot::held).map(|held| held.number());
        let replaced = self.replaced_by(switch);
        slots.extend(replaced.iter().map(|(slot, state)| (*slot, state)));
        self.record.apply(
            &Change {
                slots,
                live: Some(landing),
                accepted: Some(target).filter(|target| self.is_newest(target)),
                previous: leaving.map(Some),
                coming: coming.filter(|_| !test_faults::has(Bug::NoComing)).map(Some),
                inodes: Some(inodes),
                served: Some((landing, &served)),
                decisions: Some(&decisions),
            },
            true,
        )?;
        self.known.decisions = decisions;
        self.known.slots.extend(outlived.iter().map(|outlived| (*outlived, Slot::Building)));
        if landing != slot {
            self.known.slots.remove(&slot);
            self.known.slots.extend(left.map(|left| (slot, left)));
        }
        self.known.slots.extend(replaced);
        self.known.slots.insert(landing, state);
        self.known.live = Some(landing);
        if self.is_newest(target) {
            self.known.accepted = Some(target.clone());
        }
        self.known.previous = leaving.or(self.known.previous);
        self.know_served(landing, served);
        for slot in [Some(slot), leaving].into_iter().flatten() {
            self.rests.remove(&slot);
        }
        if let Some(former) = former.filter(|former| *former != target.number()) {
            self.layout.link_generation(former.get(), None)?;
        }
        Ok(())
    }

    /// Other trees of the target, which rest from the switch on, so that no two trees have one number. Until
    /// then the node knows what it can return to.
    fn replaced_by(&self, switch: &Switch<'_>) -> Vec<(u64, Slot)> {
        let others = self.held().filter(|(slot, held)| *slot != switch.slot && *held == switch.target);
        let resting = |held: &SignedGeneration| {
            let (number, root) = (held.number().get(), held.generation().root);
            Slot::Resting(FormerTree { number, root, is_certain: true })
        };
        others.map(|(slot, held)| (slot, resting(held))).collect()
    }

    /// Whether a generation becomes the accepted one. Returns to an earlier generation leave it as it is.
    fn is_newest(&self, target: &SignedGeneration) -> bool {
        self.known.accepted.as_ref().is_none_or(|accepted| accepted.number() <= target.number())
    }

    /// Makes the live tree that of another generation with the same root: one durable commit, and no switch.
    pub fn rename_live(&mut self, target: &SignedGeneration) -> Result<(), SlotError> {
        let (Some(slot), Some(former)) = (self.known.live, self.live().map(SignedGeneration::number)) else {
            return Ok(());
        };
        // The copy first: recovery makes it match the record again.
        self.keep_signed(slot, target)?.wait()?;
        let state = Slot::Held(Box::new(target.clone()));
        let accepted = Some(target).filter(|target| self.is_newest(target));
        let decisions = self.known.decisions.renamed(target);
        let change = Change {
            slots: vec![(slot, &state)],
            accepted,
            decisions: Some(&decisions),
            ..Change::default()
        };
        self.record.apply(&change, true)?;
        self.known.decisions = decisions;
        if self.is_newest(target) {
            self.known.accepted = Some(target.clone());
        }
        self.known.slots.insert(slot, state);
        self.layout.link_generation(former.get(), None)?;
        Ok(self.layout.link_generation(target.number().get(), Some(slot))?)
    }

    /// Roots whose files a web server may have cached of a slot that serves one more root.
    fn served_with(&self, slot: u64, root: RootEntry) -> Vec<RootEntry> {
        let mut served = self.known.served.get(&slot).cloned().unwrap_or_default();
        if !served.is_empty() && served.len() <= SERVED_MAX {
            served.push(root);
        } else {
            served.clear();
        }
        served
    }

    /// Exchange that makes the tree of a slot live; `None`: a link does it.
    fn coming(&self, slot: u64) -> Result<Option<Coming>, DiskError> {
        match self.landing(slot) == slot {
            true => Ok(None),
            false => Ok(Some(Coming { slot, inode: self.open(slot)?.stat_self()?.inode })),
        }
    }

    /// Renames the links into place, or exchanges the trees, durably. The tree that was live rests from then
    /// on: if this fails, it is served until recovery has finished the switch.
    pub fn finish_switch(&mut self, switch: &Switch<'_>, now: Instant) -> Result<(), SlotError> {
        match self.swap {
            Swap::Link => self.layout.switch_links(self.known.previous.is_some())?,
            Swap::Exchange => self.switch_directories(switch)?,
        }
        self.linked = self.known.live;
        let resting = self.in_state(|state| matches!(state, Slot::Resting(_)).then_some(()));
        let left: Vec<u64> = resting.map(|(slot, ())| slot).chain(self.known.previous).collect();
        for left in left {
            self.rests.entry(left).or_insert(now);
        }
        Ok(())
    }

    fn switch_directories(&mut self, switch: &Switch<'_>) -> Result<(), SlotError> {
        let Switch { slot, target, .. } = *switch;
        let left = self.known.previous.filter(|previous| *previous == slot);
        if left.is_some() {
            // Before the exchange: pages of the old tree then find their files here without a gap.
            self.layout.point_previous(slot)?;
        }
        self.exchange_live(&self.known, slot)?;
        self.exchange_signed(slot)?;
        if let Some(left) = self.state(slot).and_then(Slot::held) {
            self.layout.link_generation(left.number().get(), Some(slot))?;
        }
        self.layout.link_generation(target.number().get(), Some(LIVE_SLOT))?;
        Ok(self.forget_coming()?)
    }

    /// Ends a pending exchange whose names are durable. Need not be durable itself.
    fn forget_coming(&self) -> Result<(), RecordError> {
        self.record.apply(&Change { coming: Some(None), ..Change::default() }, false)
    }

    /// Exchanges a tree with the live tree, and makes it the tree of that generation. The former live tree
    /// rests in the other slot.
    ///
    /// Everything is durable on return. The tree itself must have been made durable before.
    pub fn exchange(&mut self, slot: u64, inodes: &InodeChanges, now: Instant) -> Result<(), SlotError> {
        let (Some(live), Some(generation)) = (self.known.live, self.live()) else { return Ok(()) };
        let (number, root) = (generation.number().get(), generation.generation().root);
        let resting = Slot::Resting(FormerTree { number, root, is_certain: true });
        let coming = self.coming(slot)?;
        // Recorded before the exchange: a tree with this row always counts as in use. No damaged file
        // counts as the recorded one.
        let gone = inodes.put.iter().map(|(leaf, _)| leaf.clone()).collect();
        let doubtful = InodeChanges { gone, ..InodeChanges::default() };
        let change = Change {
            slots: vec![(slot, &resting)],
            coming: coming.map(Some),
            inodes: Some(&doubtful),
            ..Change::default()
        };
        self.record.apply(&change, true)?;
        self.known.slots.insert(slot, resting);
        self.rests.remove(&slot);
        match live {
            LIVE_SLOT => self.exchange_live(&self.known, slot)?,
            _ => {
                let slots = &self.layout.slots;
                slots.exchange(&slot_name(slot), slots, &slot_name(live))?;
                slots.sync_names()?;
            }
        }
        self.rests.insert(slot, now);
        let spares: Vec<u64> = self.spares().map(|(slot, _)| slot).collect();
        let change = Change {
            slots: spares.iter().map(|slot| (*slot, &Slot::Building)).collect(),
            coming: coming.map(|_| None),
            inodes: Some(inodes),
            // A web server may have cached a damaged file, so it has to forget every file of the slot.
            served: Some((live, &[])),
            ..Change::default()
        };
        self.record.apply(&change, true)?;
        self.known.served.remove(&live);
        self.known.slots.extend(spares.into_iter().map(|slot| (slot, Slot::Building)));
        Ok(())
    }

    /// Exchanges `live` with the tree of a slot, durably.
    fn exchange_live(&self, known: &Known, slot: u64) -> Result<(), DiskError> {
        self.layout.exchange_live(slot)?;
        self.restore_times(known, slot)?;
        self.layout.sync_exchange()
    }

    /// Gives the roots of both trees their metadata again: XFS changes the time of a directory that gets
    /// another parent.
    fn restore_times(&self, known: &Known, slot: u64) -> Result<(), DiskError> {
        for slot in [LIVE_SLOT, slot] {
            let Some(generation) = known.slots.get(&slot).and_then(Slot::held) else { continue };
            match self.open(slot) {
                Ok(dir) => dir.set_own_metadata(&generation.generation().root.metadata, self.owners)?,
                // Removed by hand.
                Err(e) if e.is_no_directory() => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Finishes the pending exchange. One that was done is not taken back, because visitors may have seen it.
    pub(super) fn finish_exchange(&self, known: &Known) -> Result<(), DiskError> {
        let Some(Coming { slot, inode }) = known.coming else { return Ok(()) };
        if self.layout.live_inode()? == Some(inode) {
            self.restore_times(known, slot)?;
            return if self.unsettled { self.layout.sync_exchange_again() } else { Ok(()) };
        }
        match self.layout.slots.stat(&slot_name(slot))? {
            Some(stat) if stat.inode == inode => self.exchange_live(known, slot),
            _ => Ok(()),
        }
    }

    /// Makes `live` what `--swap` asks for, by one exchange of a link and a directory. It leads to the same
    /// tree at every instant.
    pub(super) fn adopt_swap(&mut self) -> Result<(), RecoverError> {
        match (self.swap, self.outgoing()) {
            (Swap::Exchange, Some(linked)) if linked != LIVE_SLOT => {
                self.move_tree(linked, LIVE_SLOT, linked)?
            }
            (Swap::Link, Some(LIVE_SLOT)) => {
                let slot = self.make_link_in_slots()?;
                self.move_tree(LIVE_SLOT, slot, slot)?;
            }
            _ => {}
        }
        match self.swap {
            Swap::Link => Ok(swap::unmark(&self.layout.state)?),
            Swap::Exchange => Ok(()),
        }
    }

    /// Moves the tree of the slot `linked` to the slot `landing`, by an exchange of `live` with `slots/SLOT`.
    fn move_tree(&mut self, linked: u64, landing: u64, slot: u64) -> Result<(), RecoverError> {
        let inode = self.layout.slots.stat(&slot_name(slot))?.map_or(0, |stat| stat.inode);
        let mut known = self.known.clone();
        let state = known.slots.remove(&linked).unwrap_or(Slot::Unknown(FormerTree::presumed(None)));
        if linked != LIVE_SLOT {
            // Until the hook has succeeded, a web server may be pointed at the path that the tree leaves.
            known.slots.extend(gone(&state).map(|gone| (linked, gone)));
        }
        known.slots.insert(landing, state);
        known.live = known.live.map(|_| landing);
        // Nothing was served at the new path.
        known.served.retain(|slot, _| ![linked, landing].contains(slot));
        known.coming = Some(Coming { slot, inode });
        self.record.restore(&known)?;
        self.exchange_live(&known, slot)?;
        self.known = known;
        self.known.coming = None;
        self.linked = Some(landing);
        if let Some(generation) = self.state(landing).and_then(Slot::held) {
            self.layout.link_generation(generation.number().get(), Some(landing))?;
        }
        self.forget_coming()?;
        tracing::info!(path = %self.path(landing).display(), "the live tree has another path now, by --swap");
        Ok(())
    }

    /// Creates a link under the lowest free number, durably. It names itself until the exchange with `live`.
    fn make_link_in_slots(&self) -> Result<u64, DiskError> {
        let slots = &self.layout.slots;
        let slot = self.lowest_free(|slot| {
            let name = slot_name(slot);
            slots.symlink(&[b"slots/", &*name].concat(), &name)
        })?;
        slots.sync_names()?;
        Ok(slot)
    }
}
