//! The slots of a replica: every change of what a tree is, in the record, in memory and in the links.
//!
//! A tree lives in `slots/K` and keeps that path. What it is stands in the record; a directory without a row is a
//! building, a row without a directory is forgotten ([`recovery`]). Nobody else writes rows, makes or links slots.
//!
//! | from | what happens | to | durable when it returns |
//! | --- | --- | --- | --- |
//! | | [`Slots::make`] | building | nothing: what is built there is synced before it counts |
//! | building | [`Slots::begin_parts`], [`Slots::end_parts`] | partial, and back | its row; its end need not be |
//! | building | [`Slots::complete`] at the live root | spare | the tree, then its row |
//! | spare | [`Slots::draw`], ahead of need | drawn | its row is gone |
//! | drawn | [`Slots::draw`] of another, [`Slots::end`] | spare | its row |
//! | spare, drawn | [`Slots::open_up`], before it is changed | building | its row is gone |
//! | spare, drawn | an activation outlives it, or heals | building | its row is gone |
//! | building | [`Slots::stage`], all of it is verified | staged | nothing |
//! | staged | [`Slots::unstage`]: another target is staged, or the live tree healed | building | nothing |
//! | staged | [`Slots::prepare_switch`], `commit_switch`, `finish_switch` | held, live | the tree, before; row, accepted and live, at once; then the links |
//! | held | another is activated | held | `previous` names it |
//! | held | [`Slots::retire`] | retired | `previous` does not name it; its row |
//! | building, beside a damaged live tree | [`Slots::exchange`] of the two directories | resting | its row, before they are exchanged |
//! | resting | [`Slots::end_rest`] | retired | its row |
//! | retired | [`Slots::recycle`], inspected | building | its row is gone |
//! | unknown | [`Slots::end_rest`] | retired | its row |
//! | any but held | [`Slots::discard`] | | its row is gone, before |
//! | held, resting, unknown | [`Slots::forget_absent`]: its directory is gone | gone | its row |
//! | any other | [`Slots::forget_absent`]: its directory is gone | | its row is gone |
//! | gone | [`Slots::release_gone`]: no web server can be pointed at its path | | its row is gone |
//! | gone | [`Slots::forget_absent`]: its directory is back | unknown | its row |
//!
//! A row is gone durably before the tree is changed, and before another tree may have its number: else a crash would
//! leave a tree that the record calls something that it is not.

mod absent;
mod recovery;
mod signed;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use syncd_shared::{RootEntry, SignedGeneration, Timestamp};

use crate::clock::Clock;
use crate::planted::{self, Bug};
use crate::state::SlotError;
use crate::state::disk::{Dir, DiskError, Owners};
use crate::state::layout::{LIVE, Layout, PREVIOUS, slot_name};
use crate::state::record::{Change, InodeChanges, Known, Record, RecordError};
use crate::state::slot::{FormerTree, Slot};
use crate::state::trees::Trees;

pub(crate) use recovery::RecoverError;
pub use signed::Signers;

/// Roots that are remembered of a slot that was served without the hook's success. Beyond, it is not known any more.
const SERVED_MAX: usize = 8;

/// See the module.
#[derive(Debug)]
pub(crate) struct Slots {
    // Closed before the lock of ROOT is given up with `layout`: who waits for that opens the record at once.
    record: Arc<Record>,
    layout: Arc<Layout>,
    owners: Owners,
    known: Known,
    /// When a tree stopped being live, or a damaged one was exchanged, as far as this process knows.
    rests: HashMap<u64, Instant>,
    /// A web server may still serve generations from this number on: the on-activate hook is due.
    protected: Option<u64>,
    /// Whose signatures count in copies of signed records.
    signers: Option<Signers>,
    /// The slot that `live` names on disk: another than the record's live one where nothing is known about that.
    linked: Option<u64>,
    /// What is known in memory may not be what is on disk: [`Slots::reopen`] comes before anything else.
    unsettled: bool,
}

/// A tree that becomes live.
pub(crate) struct Switch<'a> {
    pub slot: u64,
    pub target: &'a SignedGeneration,
    pub inodes: &'a InodeChanges,
    /// Spares that can't be patched any more by what differs between manifests.
    pub outlived: &'a [u64],
}

impl Slots {
    /// Of a record and a layout that were just opened: nothing is known before [`Slots::recover`].
    pub fn new(
        record: Record,
        layout: Layout,
        owners: Owners,
        protected: Option<u64>,
        signers: Option<Signers>,
    ) -> Self {
        Self {
            record: Arc::new(record),
            layout: Arc::new(layout),
            owners,
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

    /// What building and reading works with: as it is now, and no later.
    pub fn trees(&self) -> Trees {
        let held = self.held().map(|(slot, generation)| (slot, generation.clone())).collect();
        Trees::new(self.record.clone(), self.layout.clone(), self.owners, self.known.live, held)
    }

    // What there is.

    pub fn state(&self, slot: u64) -> Option<&Slot> {
        self.known.slots.get(&slot)
    }

    pub fn live_slot(&self) -> Option<u64> {
        self.known.live
    }

    pub fn live(&self) -> Option<&SignedGeneration> {
        self.state(self.known.live?)?.held()
    }

    /// The highest generation ever accepted.
    pub fn accepted(&self) -> Option<&SignedGeneration> {
        self.known.accepted.as_ref()
    }

    fn in_state<'a, T>(
        &'a self,
        of: impl Fn(&'a Slot) -> Option<T> + 'a,
    ) -> impl Iterator<Item = (u64, T)> + 'a {
        self.known.slots.iter().filter_map(move |(slot, state)| Some((*slot, of(state)?)))
    }

    /// Generations whose trees are complete, the live one among them.
    pub fn held(&self) -> impl Iterator<Item = (u64, &SignedGeneration)> {
        self.in_state(Slot::held)
    }

    /// Held generations by number, and their slots.
    pub fn generations(&self) -> BTreeMap<u64, u64> {
        self.held().map(|(slot, generation)| (generation.number().get(), slot)).collect()
    }

    /// Spares, drawn or not, the lowest slot first.
    pub fn spares(&self) -> impl Iterator<Item = (u64, &RootEntry)> {
        self.in_state(Slot::spare)
    }

    /// The lowest spare at this root.
    pub fn spare_at(&self, root: &RootEntry) -> Option<u64> {
        self.spares().find(|(_, at)| *at == root).map(|(slot, _)| slot)
    }

    /// The lowest spare, whatever root it is at.
    pub fn lowest_spare(&self) -> Option<(u64, RootEntry)> {
        self.spares().next().map(|(slot, root)| (slot, *root))
    }

    pub fn buildings(&self) -> Vec<u64> {
        self.in_state(|state| (*state == Slot::Building).then_some(())).map(|(slot, ())| slot).collect()
    }

    pub fn partials(&self) -> Vec<u64> {
        self.in_state(|state| (*state == Slot::Partial).then_some(())).map(|(slot, ())| slot).collect()
    }

    /// Trees that were live and still have their own manifest to be compared with.
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

    /// Trees that nobody may touch before their grace is over, though they are no generations that are kept.
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

    /// The record, or a link, may not be as it is known to be.
    pub fn unsettle(&mut self) {
        self.unsettled = true;
    }

    // Who may be touched.

    /// From now on a web server may serve generations from this number on; `None`: what is live alone. The grace of
    /// trees that it has left begins now.
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

    /// Whether `live` names it, or will.
    fn is_in_use(&self, slot: u64) -> bool {
        [self.known.live, self.linked].contains(&Some(slot))
    }

    /// Whether a web server may still serve this tree although another is live: the on-activate hook has not succeeded
    /// since. Such a tree is never changed, whatever else is lacking.
    pub fn may_be_served(&self, slot: u64) -> bool {
        let Some(from) = self.protected.filter(|_| !planted::has(Bug::Unprotected)) else { return false };
        match self.state(slot) {
            Some(Slot::Held(generation)) => generation.number().get() >= from,
            Some(Slot::Gone(number)) => *number >= from,
            Some(Slot::Unknown(_)) => true,
            _ => false,
        }
    }

    /// How long a tree still rests; `None`: it is in use, or nobody knows when it went out of use.
    pub fn rest(&self, slot: u64, clock: &Clock, grace: Duration) -> Option<Duration> {
        Some(grace.saturating_sub(clock.since(*self.rests.get(&slot)?)))
    }

    /// Whether a tree that was served may be changed: another is live, no hook has left a web server on it, and it has
    /// rested for the grace. The one place that decides it.
    pub fn may_be_taken(&self, slot: u64, clock: &Clock, grace: Duration) -> bool {
        !self.is_in_use(slot)
            && !self.may_be_served(slot)
            && self.rest(slot, clock, grace) == Some(Duration::ZERO)
    }

    /// Trees beyond the `keep` newest that no web server may be on, the oldest first. Their grace begins here where it is
    /// not known.
    pub fn excess(&mut self, keep: usize, now: Instant) -> Vec<u64> {
        let live = self.known.live;
        let others: Vec<u64> = self.generations().into_values().filter(|slot| Some(*slot) != live).collect();
        let kept = keep.saturating_sub(1);
        let mut excess = others[..others.len().saturating_sub(kept)].to_vec();
        excess.retain(|slot| !self.may_be_served(*slot));
        for slot in &excess {
            self.rests.entry(*slot).or_insert(now);
        }
        excess
    }

    // Buildings and spares.

    /// A new, empty tree under the lowest number that is free.
    pub fn make(&mut self) -> Result<u64, DiskError> {
        let linked = [self.layout.linked_slot(LIVE)?, self.layout.linked_slot(PREVIOUS)?];
        let mut slot = 0;
        loop {
            slot += 1;
            if self.known.slots.contains_key(&slot) || linked.contains(&Some(slot)) {
                continue;
            }
            match self.layout.slots.make_dir(&slot_name(slot)) {
                // Somebody else's.
                Err(e) if e.source.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
                Ok(()) => break,
            }
        }
        self.known.slots.insert(slot, Slot::Building);
        Ok(slot)
    }

    /// Records a new state, and knows it once that is done.
    fn set(&mut self, slot: u64, state: Slot, durable: bool) -> Result<(), RecordError> {
        let change = Change { slots: vec![(slot, &state)], ..Change::default() };
        self.record.apply(&change, durable)?;
        self.known.slots.insert(slot, state);
        Ok(())
    }

    /// A spare is about to be changed: from here on, and after a crash, nobody trusts it.
    pub fn open_up(&mut self, slot: u64) -> Result<(), SlotError> {
        match self.state(slot) {
            Some(Slot::Drawn(_)) => drop(self.known.slots.insert(slot, Slot::Building)),
            _ => self.set(slot, Slot::Building, !planted::has(Bug::RowLate))?,
        }
        Ok(())
    }

    /// A building is complete at `root`. `sync` was opened before it was begun. One that can't be made durable is thrown
    /// away.
    pub fn complete(&mut self, slot: u64, root: &RootEntry, sync: &Dir) -> Result<(), SlotError> {
        if let Err(e) = sync.sync_file_system() {
            self.discard(slot)?;
            return Err(e.into());
        }
        Ok(self.set(slot, Slot::Spare(*root), true)?)
    }

    /// Draws a spare for an update that is still to come. Others that were drawn are spares again.
    pub fn draw(&mut self, slot: u64) -> Result<(), RecordError> {
        let Some(root) = self.state(slot).and_then(Slot::spare).copied() else { return Ok(()) };
        let mut states = self.undrawn();
        states.push((slot, Slot::Drawn(root)));
        self.set_all(states)
    }

    /// The process ends in order: drawn spares have their rows again, so that the next start knows them.
    pub fn end(&mut self) -> Result<(), RecordError> {
        let states = self.undrawn();
        if states.is_empty() { Ok(()) } else { self.set_all(states) }
    }

    fn undrawn(&self) -> Vec<(u64, Slot)> {
        let drawn = |state: &Slot| match state {
            Slot::Drawn(root) => Some(Slot::Spare(*root)),
            _ => None,
        };
        self.in_state(drawn).collect()
    }

    fn set_all(&mut self, states: Vec<(u64, Slot)>) -> Result<(), RecordError> {
        let slots = states.iter().map(|(slot, state)| (*slot, state)).collect();
        self.record.apply(&Change { slots, ..Change::default() }, true)?;
        self.known.slots.extend(states);
        Ok(())
    }

    /// A building gets content, part by part, that is nowhere else.
    pub fn begin_parts(&mut self, slot: u64) -> Result<(), RecordError> {
        self.set(slot, Slot::Partial, true)
    }

    /// A building is complete and verified. Until it is activated, or [`Slots::unstage`], nobody builds in it.
    pub fn stage(&mut self, slot: u64) {
        self.known.slots.insert(slot, Slot::Staged);
    }

    /// What is staged is a building like all others, and can't be activated any more.
    pub fn unstage(&mut self) {
        for state in self.known.slots.values_mut().filter(|state| **state == Slot::Staged) {
            *state = Slot::Building;
        }
    }

    /// What was made part by part is a building like all others.
    pub fn end_parts(&mut self) -> Result<(), RecordError> {
        self.partials().into_iter().try_for_each(|slot| self.set(slot, Slot::Building, false))
    }

    /// Moves a tree to the trash, and frees its number.
    pub fn discard(&mut self, slot: u64) -> Result<(), SlotError> {
        if self.state(slot).is_some_and(|state| state.row().is_some()) {
            self.set(slot, Slot::Building, true)?;
        }
        self.layout.discard(&self.layout.slots, &slot_name(slot))?;
        self.known.slots.remove(&slot);
        Ok(())
    }

    /// Puts an empty directory in the place of a building.
    pub fn begin_anew(&mut self, slot: u64) -> Result<(), DiskError> {
        self.layout.discard(&self.layout.slots, &slot_name(slot))?;
        self.known.slots.remove(&slot);
        self.layout.slots.make_dir(&slot_name(slot))?;
        self.known.slots.insert(slot, Slot::Building);
        Ok(())
    }

    // The switch.

    /// Gives the root of a tree its metadata: from here on others may enter it. When anything in the tree was changed last.
    pub fn reveal(&self, slot: u64, root: &RootEntry) -> Result<Timestamp, DiskError> {
        let dir = self.open(slot)?;
        dir.set_own_metadata(&root.metadata, self.owners)?;
        Ok(dir.stat_self()?.ctime)
    }

    /// What `live` names, also where nothing is known about it, and is there.
    fn outgoing(&self) -> Option<u64> {
        let is_there = |slot: &u64| self.known.slots.contains_key(slot) && !self.is_gone(*slot);
        self.known.live.or(self.linked).filter(is_there)
    }

    /// Makes the new links under their temporary names, and the one for people.
    pub fn prepare_switch(&mut self, switch: &Switch<'_>) -> Result<(), DiskError> {
        let previous = self.outgoing().or(self.known.previous);
        self.layout.prepare_links(switch.slot, previous)?;
        self.layout.link_generation(switch.target.number().get(), Some(switch.slot))
    }

    /// Commits the switch: a crash after this is rolled forward. The tree, and its signed record's copy, are durable.
    pub fn commit_switch(&mut self, switch: &Switch<'_>, now: Instant) -> Result<(), SlotError> {
        let Switch { slot, target, inodes, outlived } = *switch;
        let outgoing = self.outgoing();
        let state = Slot::Held(Box::new(target.clone()));
        let mut slots: Vec<_> = outlived.iter().map(|outlived| (*outlived, &Slot::Building)).collect();
        slots.push((slot, &state));
        let mut served = self.known.served.get(&slot).cloned().unwrap_or_default();
        if !served.is_empty() && served.len() <= SERVED_MAX {
            served.push(target.generation().root);
        } else {
            served.clear();
        }
        self.record.apply(
            &Change {
                slots,
                live: Some((slot, target)),
                previous: outgoing.map(Some),
                inodes: Some(inodes),
                served: Some((slot, &served)),
            },
            true,
        )?;
        self.known.slots.extend(outlived.iter().map(|outlived| (*outlived, Slot::Building)));
        self.known.slots.insert(slot, state);
        self.known.live = Some(slot);
        self.known.accepted = Some(target.clone());
        self.known.previous = outgoing.or(self.known.previous);
        self.know_served(slot, served);
        self.rests.remove(&slot);
        self.rests.extend(outgoing.map(|outgoing| (outgoing, now)));
        Ok(())
    }

    /// Renames the links to where they belong, durably.
    pub fn finish_switch(&mut self) -> Result<(), DiskError> {
        self.layout.switch_links(self.known.previous.is_some())?;
        self.linked = self.known.live;
        Ok(())
    }

    /// Puts a tree in the place of the live tree, whose generation it is, too. What was there rests in its slot.
    ///
    /// All is durable but the tree itself, which was made so before.
    pub fn exchange(&mut self, slot: u64, inodes: &InodeChanges, now: Instant) -> Result<(), SlotError> {
        let (Some(live), Some(generation)) = (self.known.live, self.live()) else { return Ok(()) };
        let (number, root) = (generation.number().get(), generation.generation().root);
        // Before they are exchanged: what has this row is never taken for anything but a tree in use.
        self.set(slot, Slot::Resting(FormerTree { number, root, is_certain: true }), true)?;
        self.rests.insert(slot, now);
        let slots = &self.layout.slots;
        slots.exchange(&slot_name(slot), slots, &slot_name(live))?;
        slots.sync_names()?;
        let spares: Vec<u64> = self.spares().map(|(slot, _)| slot).collect();
        let change = Change {
            slots: spares.iter().map(|slot| (*slot, &Slot::Building)).collect(),
            inodes: Some(inodes),
            // Whoever cached a damaged file is to forget it.
            served: Some((live, &[])),
            ..Change::default()
        };
        self.record.apply(&change, true)?;
        self.known.served.remove(&live);
        self.known.slots.extend(spares.into_iter().map(|slot| (slot, Slot::Building)));
        Ok(())
    }

    // Trees that were live.

    /// Takes a generation that nobody is served from any more out of use: it waits to be inspected, and is closed then. A
    /// crash that leaves it held must not leave it closed.
    pub fn retire(&mut self, slot: u64) -> Result<(), SlotError> {
        let Some(generation) = self.state(slot).and_then(Slot::held) else { return Ok(()) };
        let (number, root) = (generation.number().get(), generation.generation().root);
        self.unlink_previous(slot)?;
        self.layout.link_generation(number, None)?;
        self.set(slot, Slot::Retired(FormerTree { number, root, is_certain: true }), true)?;
        self.rests.remove(&slot);
        Ok(())
    }

    /// `previous` does not name this slot any more, durably.
    fn unlink_previous(&mut self, slot: u64) -> Result<(), SlotError> {
        if self.known.previous != Some(slot) || planted::has(Bug::PreviousStays) {
            return Ok(());
        }
        self.layout.free(&self.layout.root, PREVIOUS)?;
        self.layout.root.sync_names()?;
        self.record.apply(&Change { previous: Some(None), ..Change::default() }, true)?;
        self.known.previous = None;
        Ok(())
    }

    /// The grace of a tree that was no generation any more is over.
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

    /// Nobody else may enter a tree that is about to be inspected: what is found out stays so.
    pub fn close(&self, slot: u64) -> Result<(), DiskError> {
        self.layout.close(slot)
    }

    /// Files were changed behind this slot's path: nobody knows what a web server has cached of them. Durable.
    pub fn distrust_served(&mut self, slot: u64) -> Result<(), RecordError> {
        if self.served(slot).is_some() {
            self.record.apply(&Change { served: Some((slot, &[])), ..Change::default() }, true)?;
            self.known.served.remove(&slot);
        }
        Ok(())
    }

    /// A tree that was inspected may be built on.
    pub fn recycle(&mut self, slot: u64) -> Result<(), RecordError> {
        self.set(slot, Slot::Building, true)
    }

    // What a slot served.

    fn know_served(&mut self, slot: u64, roots: Vec<RootEntry>) {
        match roots.is_empty() {
            true => self.known.served.remove(&slot),
            false => self.known.served.insert(slot, roots),
        };
    }

    /// Roots that a web server may have cached files of under this slot's path; `None`: nobody knows.
    pub fn served(&self, slot: u64) -> Option<&[RootEntry]> {
        self.known.served.get(&slot).map(Vec::as_slice)
    }

    /// The on-activate hook has succeeded for a generation: if it is live, what else was cached of its slot is known no
    /// more. Need not be durable: what is not known is more than what is.
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
