//! Owns the slots of a replica: makes every change of a tree's state, in the record, in memory and in the
//! links.
//!
//! A tree lives in `slots/K` and keeps that path. With `--swap exchange` the live tree is at `live`, as slot
//! 0 ([`switch`]). The record has its state. A directory without a row is a
//! building, and a row without a directory is forgotten ([`recovery`]). No other module writes rows, or
//! creates or links slots.
//!
//! | from | what happens | to | durable when it returns |
//! | --- | --- | --- | --- |
//! | | [`Slots::make`] | building | nothing: the content is synced before it counts |
//! | building | [`Slots::begin_parts`], [`Slots::end_parts`] | partial, and back | the row; the end need not be |
//! | building | [`Slots::complete`] at the live root | spare | the tree, then its row |
//! | spare | [`Slots::reserve`], ahead of need | reserved | the removal of its row |
//! | reserved | [`Slots::reserve`] of another, [`Slots::end`] | spare | its row |
//! | spare, reserved | [`Slots::open_up`], before it is changed | building | the removal of its row |
//! | spare, reserved | an activation outlives it, or heals | building | the removal of its row |
//! | building | [`Slots::stage`], everything is verified | staged | nothing |
//! | staged | [`Slots::unstage`]: another target is staged, or the live tree healed | building | nothing |
//! | staged | [`Slots::prepare_switch`], `commit_switch`, `finish_switch` | held, live | the tree first; then row, accepted and live at once; then the links |
//! | held | another is activated | held | `previous` names it |
//! | held | the switch, as from staged: a generation with this root is activated again | held, live | row, accepted and live at once; then the links |
//! | held, live | [`Slots::rename_live`]: another generation has this root | held, live | its row and accepted at once |
//! | held | the switch to another tree of its generation: it was changed locally | resting | its row, with the switch |
//! | held | [`Slots::retire`] | retired | `previous` no longer names it; its row |
//! | building, beside a damaged live tree | [`Slots::exchange`] of the two directories | resting | its row, before they are exchanged |
//! | resting | [`Slots::end_rest`] | retired | its row |
//! | retired | [`Slots::recycle`], inspected | building | the removal of its row |
//! | unknown | [`Slots::end_rest`] | retired | its row |
//! | any but held | [`Slots::discard`] | | the removal of its row, first |
//! | held, resting, unknown | [`Slots::forget_absent`]: its directory is missing | gone | its row |
//! | the live slot, by link | `adopt_swap` moves its tree to `live` | gone | its row, before they are exchanged |
//! | any other | [`Slots::forget_absent`]: its directory is missing | | the removal of its row |
//! | gone | [`Slots::release_gone`]: no web server can be pointed at its path | | the removal of its row |
//! | gone | [`Slots::forget_absent`]: its directory is back | unknown | its row |
//!
//! A row is removed durably before its tree is changed, and before another tree may get its number. Otherwise
//! a crash would leave a tree that contradicts its row.

mod absent;
mod decisions;
mod recovery;
mod signed;
mod switch;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use syncd_shared::generation::GenerationError;
use syncd_shared::{RootEntry, SignedGeneration};

use crate::clock::Clock;
use crate::state::SlotError;
use crate::state::disk::{Dir, DiskError, Owners};
use crate::state::layout::{LIVE, Layout, PREVIOUS, slot_name};
use crate::state::record::{Change, Known, Record, RecordError};
use crate::state::slot::{FormerTree, Slot};
use crate::state::swap::Swap;
use crate::state::trees::Trees;
use crate::test_faults::{self, Bug};

pub(crate) use recovery::RecoverError;
pub use signed::Signers;
pub(crate) use switch::Switch;

/// The slots of a replica and their record.
#[derive(Debug)]
pub(crate) struct Slots {
    // Dropped before `layout`, which releases the lock of ROOT: the next process opens the record at once.
    record: Arc<Record>,
    layout: Arc<Layout>,
    owners: Owners,
    /// Wanted kind of `live`; `None`: as it is.
    wanted: Option<Swap>,
    swap: Swap,
    known: Known,
    /// Time at which a tree stopped being live, or a damaged one was exchanged, if this process knows it.
    rests: HashMap<u64, Instant>,
    /// Lowest generation that a web server may still serve, because the on-activate hook is due.
    protected: Option<u64>,
    /// Keys whose signatures count in copies of signed records.
    signers: Option<Signers>,
    /// Slot that `live` is, or names on disk. Differs from the record's live slot if nothing is known about
    /// that slot.
    linked: Option<u64>,
    /// Memory may differ from the disk: [`Slots::reopen`] must come first.
    unsettled: bool,
}

impl Slots {
    /// Takes an opened record and layout. Nothing is known before [`Slots::recover`].
    pub fn new(
        record: Record,
        layout: Layout,
        owners: Owners,
        swap: Option<Swap>,
        protected: Option<u64>,
        signers: Option<Signers>,
    ) -> Self {
        Self {
            record: Arc::new(record),
            layout: Arc::new(layout),
            owners,
            wanted: swap,
            swap: swap.unwrap_or_default(),
            known: Known::default(),
            rests: HashMap::new(),
            protected,
            signers,
            linked: None,
            unsettled: false,
        }
    }

    pub fn record(&self) -> &Arc<Record> {
        &self.record
    }

    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    pub fn owners(&self) -> Owners {
        self.owners
    }

    /// How `live` is switched.
    pub fn swap(&self) -> Swap {
        self.swap
    }

    /// Returns the view of the current moment, for building and reading.
    pub fn trees(&self) -> Trees {
        let held = self.held().map(|(slot, generation)| (slot, generation.clone())).collect();
        Trees::new(self.record.clone(), self.layout.clone(), self.owners, self.known.live, held)
    }

    // Queries.

    pub fn state(&self, slot: u64) -> Option<&Slot> {
        self.known.slots.get(&slot)
    }

    pub fn live_slot(&self) -> Option<u64> {
        self.known.live
    }

    /// The slot that `previous` names.
    pub fn previous(&self) -> Option<u64> {
        self.known.previous
    }

    pub fn live(&self) -> Option<&SignedGeneration> {
        self.state(self.known.live?)?.held()
    }

    /// The highest generation ever accepted.
    pub fn accepted(&self) -> Option<&SignedGeneration> {
        self.known.accepted.as_ref()
    }

    /// Whether a generation may be activated: one that may follow the accepted one, or one that is held.
    pub fn may_activate(&self, target: &SignedGeneration) -> Result<(), GenerationError> {
        if self.held().any(|(_, held)| held == target) {
            return Ok(());
        }
        target.may_follow(self.accepted())
    }

    fn in_state<'a, T>(
        &'a self,
        of: impl Fn(&'a Slot) -> Option<T> + 'a,
    ) -> impl Iterator<Item = (u64, T)> + 'a {
        self.known.slots.iter().filter_map(move |(slot, state)| Some((*slot, of(state)?)))
    }

    /// Generations with complete trees, including the live one.
    pub fn held(&self) -> impl Iterator<Item = (u64, &SignedGeneration)> {
        self.in_state(Slot::held)
    }

    /// Numbers of held generations -> slots.
    pub fn generations(&self) -> BTreeMap<u64, u64> {
        self.held().map(|(slot, generation)| (generation.number().get(), slot)).collect()
    }

    /// Spares, reserved or not, the lowest slot first.
    pub fn spares(&self) -> impl Iterator<Item = (u64, &RootEntry)> {
        self.in_state(Slot::spare)
    }

    /// The lowest slot with a spare at this root.
    pub fn spare_at(&self, root: &RootEntry) -> Option<u64> {
        self.spares().find(|(_, at)| *at == root).map(|(slot, _)| slot)
    }

    /// The lowest slot with a spare, and its root.
    pub fn lowest_spare(&self) -> Option<(u64, RootEntry)> {
        self.spares().next().map(|(slot, root)| (slot, *root))
    }

    pub fn buildings(&self) -> Vec<u64> {
        self.in_state(|state| (*state == Slot::Building).then_some(())).map(|(slot, ())| slot).collect()
    }

    pub fn partials(&self) -> Vec<u64> {
        self.in_state(|state| (*state == Slot::Partial).then_some(())).map(|(slot, ())| slot).collect()
    }

    /// Trees that were live, whose manifests are still needed for comparison.
    pub fn former(&self) -> impl Iterator<Item = (u64, FormerTree)> {
        self.in_state(|state| match state {
            Slot::Resting(tree) | Slot::Retired(tree) | Slot::Unknown(tree) => Some(*tree),
            _ => None,
        })
    }

    /// Trees that wait to be inspected, the oldest first.
    pub fn retired(&self) -> Vec<(u64, FormerTree)> {
        let retired = |state: &Slot| match state {
            Slot::Retired(tree) => Some(*tree),
            _ => None,
        };
        let mut trees: Vec<_> = self.in_state(retired).collect();
        trees.sort_unstable_by_key(|(_, tree)| tree.number);
        trees
    }

    /// Trees that must not be changed before their grace period is over, although they are not kept
    /// generations.
    pub fn resting(&self) -> Vec<u64> {
        let resting = |state: &Slot| matches!(state, Slot::Resting(_) | Slot::Unknown(_)).then_some(());
        self.in_state(resting).map(|(slot, ())| slot).collect()
    }

    /// Roots whose directory objects are still needed.
    pub fn roots(&self) -> Vec<RootEntry> {
        let held = self.held().map(|(_, generation)| generation.generation().root);
        let spares = self.spares().map(|(_, root)| *root);
        let former = self.former().map(|(_, tree)| tree.root);
        held.chain(spares).chain(former).chain(self.known.served.values().flatten().copied()).collect()
    }

    pub fn open(&self, slot: u64) -> Result<Dir, DiskError> {
        self.layout.slot(slot)
    }

    pub fn path(&self, slot: u64) -> PathBuf {
        self.layout.slot_path(slot)
    }

    pub fn is_unsettled(&self) -> bool {
        self.unsettled
    }

    /// Notes that the record or a link may differ from memory.
    pub fn unsettle(&mut self) {
        self.unsettled = true;
    }

    // Protection of trees that may be served.

    /// Notes that a web server may still serve generations from this number on; `None`: only the live one.
    /// The grace period of trees that it no longer serves begins now.
    pub fn protect_from(&mut self, from: Option<u64>, now: Instant) {
        self.protected = from;
        let former: Vec<u64> =
            self.generations().into_values().chain(self.resting()).chain(self.gone()).collect();
        for slot in former {
            if self.is_in_use(slot) || self.may_be_served(slot) {
                self.rests.remove(&slot);
            } else {
                self.rests.entry(slot).or_insert(now);
            }
        }
    }

    /// Whether `live` names this slot, or will name it.
    fn is_in_use(&self, slot: u64) -> bool {
        [self.known.live, self.linked].contains(&Some(slot))
    }

    /// Whether a web server may still serve this tree although another one is live, because the on-activate
    /// hook has not succeeded since. Such a tree is never changed, even to free space.
    pub fn may_be_served(&self, slot: u64) -> bool {
        let Some(from) = self.protected.filter(|_| !test_faults::has(Bug::Unprotected)) else { return false };
        match self.state(slot) {
            Some(Slot::Held(generation)) => generation.number().get() >= from,
            Some(Slot::Gone(number)) => *number >= from,
            Some(Slot::Unknown(_)) => true,
            _ => false,
        }
    }

    /// Remaining grace period of a tree; `None`: it is in use, or its start is unknown.
    pub fn rest(&self, slot: u64, clock: &Clock, grace: Duration) -> Option<Duration> {
        Some(grace.saturating_sub(clock.since(*self.rests.get(&slot)?)))
    }

    /// Whether a tree that was served may be changed: another one is live, no due hook may have left a web
    /// server on it, and its grace period is over. Only this function decides that.
    pub fn may_be_taken(&self, slot: u64, clock: &Clock, grace: Duration) -> bool {
        !self.is_in_use(slot)
            && !self.may_be_served(slot)
            && !self.is_kept_by_decision(slot)
            && self.rest(slot, clock, grace) == Some(Duration::ZERO)
    }

    /// Trees beyond the `keep` newest that no web server can serve, the oldest first. Starts their grace
    /// period if its start is unknown.
    pub fn excess(&mut self, keep: usize, now: Instant) -> Vec<u64> {
        let live = self.known.live;
        let others: Vec<u64> = self.generations().into_values().filter(|slot| Some(*slot) != live).collect();
        let kept = keep.saturating_sub(1);
        let mut excess = others[..others.len().saturating_sub(kept)].to_vec();
        excess.retain(|slot| !self.may_be_served(*slot) && !self.is_kept_by_decision(*slot));
        for slot in &excess {
            self.rests.entry(*slot).or_insert(now);
        }
        excess
    }

    // Buildings and spares.

    /// Creates an empty tree under the lowest free number.
    pub fn make(&mut self) -> Result<u64, DiskError> {
        let slot = self.lowest_free(|slot| self.layout.slots.make_dir(&slot_name(slot)))?;
        self.known.slots.insert(slot, Slot::Building);
        Ok(slot)
    }

    /// The lowest free number under which `make` could create a name.
    fn lowest_free(&self, make: impl Fn(u64) -> Result<(), DiskError>) -> Result<u64, DiskError> {
        let linked = [self.layout.linked_slot(LIVE)?, self.layout.linked_slot(PREVIOUS)?];
        let mut slot = 0;
        loop {
            slot += 1;
            if self.known.slots.contains_key(&slot) || linked.contains(&Some(slot)) {
                continue;
            }
            match make(slot) {
                // A foreign name.
                Err(e) if e.source.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
                Ok(()) => return Ok(slot),
            }
        }
    }

    /// Records a new state, and adopts it in memory afterwards.
    fn set(&mut self, slot: u64, state: Slot, durable: bool) -> Result<(), RecordError> {
        let change = Change { slots: vec![(slot, &state)], ..Change::default() };
        self.record.apply(&change, durable)?;
        self.known.slots.insert(slot, state);
        Ok(())
    }

    /// Marks a spare as a building before it is changed, so that nobody trusts it, also after a crash.
    pub fn open_up(&mut self, slot: u64) -> Result<(), SlotError> {
        match self.state(slot) {
            Some(Slot::Reserved(_)) => drop(self.known.slots.insert(slot, Slot::Building)),
            _ => self.set(slot, Slot::Building, !test_faults::has(Bug::RowLate))?,
        }
        Ok(())
    }

    /// Marks a building as a complete spare at `root`. `sync` must have been opened before the building was
    /// started. A building that cannot be made durable is discarded.
    pub fn complete(&mut self, slot: u64, root: &RootEntry, sync: &Dir) -> Result<(), SlotError> {
        if let Err(e) = sync.sync_file_system() {
            self.discard(slot)?;
            return Err(e.into());
        }
        Ok(self.set(slot, Slot::Spare(*root), true)?)
    }

    /// Reserves a spare for the next update. Other reserved spares become plain spares again.
    pub fn reserve(&mut self, slot: u64) -> Result<(), RecordError> {
        let Some(root) = self.state(slot).and_then(Slot::spare).copied() else { return Ok(()) };
        let mut states = self.unreserved();
        states.push((slot, Slot::Reserved(root)));
        self.set_all(states)
    }

    /// Gives reserved spares their rows back, so that the next start knows them. Called when the process ends
    /// in order.
    pub fn end(&mut self) -> Result<(), RecordError> {
        let states = self.unreserved();
        if states.is_empty() { Ok(()) } else { self.set_all(states) }
    }

    fn unreserved(&self) -> Vec<(u64, Slot)> {
        let reserved = |state: &Slot| match state {
            Slot::Reserved(root) => Some(Slot::Spare(*root)),
            _ => None,
        };
        self.in_state(reserved).collect()
    }

    fn set_all(&mut self, states: Vec<(u64, Slot)>) -> Result<(), RecordError> {
        let slots = states.iter().map(|(slot, state)| (*slot, state)).collect();
        self.record.apply(&Change { slots, ..Change::default() }, true)?;
        self.known.slots.extend(states);
        Ok(())
    }

    /// Marks a building that gets content which is nowhere else, part by part.
    pub fn begin_parts(&mut self, slot: u64) -> Result<(), RecordError> {
        self.set(slot, Slot::Partial, true)
    }

    /// Marks a building as complete and verified. Nothing builds in it until it is activated, or until
    /// [`Slots::unstage`].
    pub fn stage(&mut self, slot: u64) {
        self.known.slots.insert(slot, Slot::Staged);
    }

    /// Turns the staged tree back into a building, which cannot be activated.
    pub fn unstage(&mut self) {
        for state in self.known.slots.values_mut().filter(|state| **state == Slot::Staged) {
            *state = Slot::Building;
        }
    }

    /// Turns partial trees back into buildings.
    pub fn end_parts(&mut self) -> Result<(), RecordError> {
        self.partials().into_iter().try_for_each(|slot| self.set(slot, Slot::Building, false))
    }

    /// Moves a tree to the trash and frees its number.
    pub fn discard(&mut self, slot: u64) -> Result<(), SlotError> {
        if self.state(slot).is_some_and(|state| state.row().is_some()) {
            self.set(slot, Slot::Building, true)?;
        }
        self.layout.discard(&self.layout.slots, &slot_name(slot))?;
        self.known.slots.remove(&slot);
        Ok(())
    }

    /// Replaces a building by an empty directory.
    pub fn begin_anew(&mut self, slot: u64) -> Result<(), DiskError> {
        self.layout.discard(&self.layout.slots, &slot_name(slot))?;
        self.known.slots.remove(&slot);
        self.layout.slots.make_dir(&slot_name(slot))?;
        self.known.slots.insert(slot, Slot::Building);
        Ok(())
    }

    // Trees that were live.

    /// Takes a generation out of use that no web server serves. The tree waits to be inspected, and is closed
    /// at that time: after a crash it may still be held, and must not be closed.
    pub fn retire(&mut self, slot: u64) -> Result<(), SlotError> {
        let Some(generation) = self.state(slot).and_then(Slot::held) else { return Ok(()) };
        let (number, root) = (generation.number().get(), generation.generation().root);
        self.unlink_previous(slot)?;
        self.layout.link_generation(number, None)?;
        self.set(slot, Slot::Retired(FormerTree { number, root, is_certain: true }), true)?;
        self.rests.remove(&slot);
        Ok(())
    }

    /// Removes `previous` if it names this slot, durably.
    fn unlink_previous(&mut self, slot: u64) -> Result<(), SlotError> {
        if self.known.previous != Some(slot) || test_faults::has(Bug::PreviousStays) {
            return Ok(());
        }
        self.layout.free(&self.layout.root, PREVIOUS)?;
        self.layout.root.sync_names()?;
        self.record.apply(&Change { previous: Some(None), ..Change::default() }, true)?;
        self.known.previous = None;
        Ok(())
    }

    /// Ends the grace period of a tree that was no longer a generation.
    pub fn end_rest(&mut self, slot: u64) -> Result<(), SlotError> {
        self.unlink_previous(slot)?;
        let state = match self.state(slot) {
            Some(Slot::Resting(tree) | Slot::Unknown(tree)) => Slot::Retired(*tree),
            _ => return Ok(()),
        };
        self.set(slot, state, true)?;
        self.rests.remove(&slot);
        Ok(())
    }

    /// Closes a tree to other users before it is inspected, so that the result stays true.
    pub fn close(&self, slot: u64) -> Result<(), DiskError> {
        self.layout.close(slot)
    }

    /// Notes that files were changed in the tree of this slot, so that nothing is known about what a web
    /// server has cached at the path where it was served. Durable.
    pub fn distrust_served(&mut self, slot: u64) -> Result<(), RecordError> {
        let slot = self.landing(slot);
        if self.served(slot).is_some() {
            self.record.apply(&Change { served: Some((slot, &[])), ..Change::default() }, true)?;
            self.known.served.remove(&slot);
        }
        Ok(())
    }

    /// Makes an inspected tree available for building.
    pub fn recycle(&mut self, slot: u64) -> Result<(), RecordError> {
        self.set(slot, Slot::Building, true)
    }

    // Roots served by a slot.

    fn know_served(&mut self, slot: u64, roots: Vec<RootEntry>) {
        match roots.is_empty() {
            true => self.known.served.remove(&slot),
            false => self.known.served.insert(slot, roots),
        };
    }

    /// Roots whose files a web server may have cached under this slot's path; `None`: unknown.
    pub fn served(&self, slot: u64) -> Option<&[RootEntry]> {
        self.known.served.get(&slot).map(Vec::as_slice)
    }

    /// Notes that the on-activate hook has succeeded for a generation. If it is live, a web server caches
    /// nothing else of its slot. Need not be durable: if it is lost, more paths than needed are forgotten.
    pub fn hook_succeeded(&mut self, generation: u64) -> Result<(), RecordError> {
        let (Some(slot), Some(live)) = (self.known.live, self.live()) else { return Ok(()) };
        if live.number().get() != generation {
            return Ok(());
        }
        let served = vec![live.generation().root];
        if self.served(slot) != Some(&served) {
            self.record.apply(&Change { served: Some((slot, &served)), ..Change::default() }, false)?;
            self.know_served(slot, served);
        }
        Ok(())
    }
}
