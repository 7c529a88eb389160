//! Background work: spares that are ready for the next update, old trees, the trash.
//!
//! One bounded step a call, so that an update never waits long for it. In order: trees beyond `--keep` that no web server
//! can be on any more ([`crate::state::slots::Slots::may_be_taken`]) and whose grace is over are inspected ([`crate::replica::inspect`]) and become
//! buildings (while spares are lacking) or trash; spares are brought to the live root by what differs;
//! buildings are made spares, every name looked at; with nothing to recycle a farm of links is built; one spare is drawn
//! for the next update; the trash is emptied a little, but not while files are being written: ext4 then searches past
//! the inodes that were just freed and creates new files several times slower. Where commits leave no such pause, each
//! update is followed by a share of it.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use syncd_shared::{RootEntry, TreePath};

use crate::build::StageError;
use crate::replica::Replica;
use crate::state::SlotError;
use crate::state::disk::{Dir, DiskError};
use crate::state::slot::Slot;
use crate::status::Drift;

/// Spares that are kept ready, at the live root.
pub(crate) const SPARES: usize = 2;
/// Trees to build on that are kept at hand at most, where commits came so fast that spares were lacking.
pub(crate) const SPARES_MAX: usize = 8;
/// After so long without a lack one fewer is kept.
const EASE: Duration = Duration::from_secs(3600);
/// Retired trees that wait for their grace at most.
const RETIRED_MAX: usize = 8;
/// Nothing is deleted for this long after files were written for an activation.
const QUIET: Duration = Duration::from_secs(5);
/// Names deleted in one step.
const TRASH_STEP: usize = 2_000;
/// Names deleted after an update, where updates leave no pause: more than an update usually puts into the trash.
const TRASH_SHARE: usize = 64;
/// The same once the trash has not been empty for [`TRASH_PATIENCE`].
const TRASH_SHARE_LATE: usize = 1_000;
const TRASH_PATIENCE: Duration = Duration::from_secs(60);
/// What could not be deleted is tried again after this.
const STUCK_RETRY: Duration = Duration::from_secs(3600);
/// Generations dropped before unused directory objects are swept out of the record.
const SWEEP_AFTER: u32 = 32;

/// What one step of background work did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upkept {
    /// There was nothing to do.
    Nothing,
    /// A retired generation is out of use, and waits to be inspected.
    Retired(u64),
    /// A spare was brought to the live root by what differs.
    CaughtUp,
    /// A spare was made.
    SpareBuilt,
    /// A retired tree was inspected, and recycled or thrown away.
    Inspected {
        /// Local changes that it had.
        drift: Option<Drift>,
    },
    /// The live tree is not what was activated: no spare can be made of it before `verify` healed it.
    LiveDamaged {
        /// How many.
        paths: usize,
        /// The first of them.
        first: Option<TreePath>,
    },
    /// A spare was drawn for the next update.
    Drawn,
    /// Names were deleted from the trash.
    Emptied(usize),
    /// A part of the live tree was read again.
    Reread {
        /// What is damaged: everything is to be verified now.
        damaged: Option<TreePath>,
    },
    /// Directory objects that no tree has were forgotten.
    Swept(u64),
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maintained {
    /// What was done.
    pub did: Upkept,
    /// When to call again; `None`: after the next activation.
    pub next: Option<Duration>,
}

impl Replica {
    /// One step of background work. Blocks; `cancel` stops it between directories.
    pub fn maintain(&mut self, cancel: &AtomicBool) -> Result<Maintained, StageError> {
        let did = self.step(cancel);
        self.publish();
        let did = did?;
        let next = match did {
            Upkept::Nothing | Upkept::LiveDamaged { .. } | Upkept::Reread { .. } => self.next_due(),
            _ => Some(Duration::ZERO),
        };
        Ok(Maintained { did, next })
    }

    fn step(&mut self, cancel: &AtomicBool) -> Result<Upkept, StageError> {
        self.slots.forget_absent(self.options.clock.now())?;
        if let Some(live) = self.slots.live().map(|l| l.generation().root) {
            if let Some(number) = self.retire_oldest()? {
                return Ok(Upkept::Retired(number));
            }
            if let Some((slot, _)) = self.slots.retired().first().copied() {
                return self.dispose(slot, cancel).map(|drift| Upkept::Inspected { drift });
            }
            if let Some(did) = self.ready_spare(&live, cancel)? {
                return Ok(did);
            }
            if self.draw_ahead(&live)? {
                return Ok(Upkept::Drawn);
            }
        }
        if self.upkeep.retired.dropped >= SWEEP_AFTER {
            self.upkeep.retired.dropped = 0;
            return Ok(Upkept::Swept(self.sweep()?));
        }
        if self.is_quiet() {
            let emptied = self.empty_some(TRASH_STEP, cancel)?;
            if emptied > 0 {
                return Ok(Upkept::Emptied(emptied));
            }
            if let Some(did) = self.scrub(cancel)? {
                return Ok(did);
            }
        }
        Ok(Upkept::Nothing)
    }

    fn empty_some(&mut self, most: usize, cancel: &AtomicBool) -> Result<usize, DiskError> {
        let clock = &self.options.clock;
        let trash = &self.slots.layout().trash;
        let tried = &mut self.upkeep.trash.stuck_tried;
        if trash.is_stuck() && tried.is_none_or(|at| clock.since(at) >= STUCK_RETRY) {
            *tried = Some(clock.now());
            trash.retry_stuck()?;
        }
        let emptied = trash.empty(most, cancel)?;
        if trash.is_empty() {
            self.upkeep.trash.since = None;
        }
        Ok(emptied)
    }

    /// Deletes all of it, now.
    pub(crate) fn empty_trash(&self, cancel: &AtomicBool) -> Result<(), DiskError> {
        let trash = &self.slots.layout().trash;
        trash.retry_stuck()?;
        trash.empty(usize::MAX, cancel).map(drop)
    }

    /// Updates that come without a pause leave no time for background work: after each, a share of the trash is deleted.
    pub(crate) fn bound_trash(&mut self) {
        if !std::mem::take(&mut self.upkeep.trash.owes_share) || self.slots.layout().trash.is_empty() {
            return;
        }
        let clock = &self.options.clock;
        let since = *self.upkeep.trash.since.get_or_insert_with(|| clock.now());
        let late = clock.since(since) >= TRASH_PATIENCE;
        let share = if late { TRASH_SHARE_LATE } else { TRASH_SHARE };
        if let Err(error) = self.empty_some(share, &AtomicBool::new(false)) {
            tracing::warn!(error = &error as &dyn std::error::Error, "the trash could not be emptied");
        }
    }

    /// Trees to build on that are kept at hand.
    fn spares_wanted(&mut self) -> usize {
        let upkeep = &mut self.upkeep;
        if upkeep.spares.missed.is_some_and(|at| self.options.clock.since(at) >= EASE) {
            upkeep.spares.wanted = upkeep.spares.wanted.saturating_sub(1).max(SPARES);
            upkeep.spares.missed = (upkeep.spares.wanted > SPARES).then(|| self.options.clock.now());
        }
        upkeep.spares.wanted
    }

    fn is_quiet(&self) -> bool {
        self.upkeep.last_write.is_none_or(|at| self.options.clock.since(at) >= QUIET)
    }

    /// Trees beyond those that are kept, oldest first. Those that a web server may still serve are none of them.
    fn excess(&mut self) -> Vec<u64> {
        self.slots.excess(self.options.keep, self.options.clock.now())
    }

    /// Draws the lowest spare at the live root for the next update, where it is not; whether it did.
    fn draw_ahead(&mut self, live: &RootEntry) -> Result<bool, StageError> {
        let lowest = self.slots.spare_at(live);
        match lowest.filter(|slot| matches!(self.slots.state(*slot), Some(Slot::Spare(_)))) {
            Some(slot) => Ok(self.slots.draw(slot).map(|()| true)?),
            None => Ok(false),
        }
    }

    /// Updates that come without a pause leave no time for background work: what waits is bounded all the same.
    pub(crate) fn bound_retired(&mut self) {
        let bounded = match self.excess().len() > RETIRED_MAX {
            true => self.retire_oldest().map(drop),
            false => Ok(()),
        };
        // A floor that always makes progress: the cost follows the directories of one tree.
        let retired = self.slots.retired();
        let waiting = retired.first().filter(|_| retired.len() > RETIRED_MAX);
        let bounded = bounded.and_then(|()| match waiting {
            Some((slot, _)) => self.dispose(*slot, &AtomicBool::new(false)).map(drop),
            None => Ok(()),
        });
        if let Err(error) = bounded {
            tracing::warn!(error = &error as &dyn std::error::Error, "a retired tree could not be recycled");
        }
    }

    /// Inspects a retired tree; it is recycled while spares are lacking, else thrown away.
    fn dispose(&mut self, slot: u64, cancel: &AtomicBool) -> Result<Option<Drift>, StageError> {
        let at_hand = self.slots.spares().count() + self.slots.buildings().len();
        let recycle = at_hand < self.spares_wanted();
        self.inspect_retired(slot, recycle, cancel)
    }

    /// Takes one tree out of use that may be: it then waits to be inspected. Its generation, where that was kept.
    fn retire_oldest(&mut self) -> Result<Option<u64>, StageError> {
        let (clock, grace) = (self.options.clock.clone(), self.options.grace);
        self.slots.release_gone(&clock, grace)?;
        for slot in self.slots.resting() {
            if self.slots.may_be_taken(slot, &clock, grace) {
                self.slots.end_rest(slot)?;
            }
        }
        let excess = self.excess();
        let Some(oldest) = excess.first().copied() else { return Ok(None) };
        if !self.slots.may_be_taken(oldest, &clock, grace) {
            if excess.len() <= RETIRED_MAX {
                return Ok(None);
            }
            self.upkeep.retired.recycled_early += 1;
        }
        let number = self.slots.state(oldest).and_then(Slot::held).map(|held| held.number().get());
        self.retire(oldest)?;
        Ok(number)
    }

    /// Makes a generation a retired tree, which waits to be inspected.
    pub(crate) fn retire(&mut self, slot: u64) -> Result<(), SlotError> {
        self.upkeep.retired.dropped += 1;
        self.slots.retire(slot)
    }

    /// One step towards enough spares at the live root; `None`: there are enough, or none can be made now.
    fn ready_spare(&mut self, live: &RootEntry, cancel: &AtomicBool) -> Result<Option<Upkept>, StageError> {
        self.slots.layout().discard_asides()?;
        let sync = self.slots.layout().staging.reopen()?;
        let behind = self.slots.spares().find(|(_, root)| *root != live).map(|(s, r)| (s, *r));
        let ready = self.slots.spares().filter(|(_, root)| *root == live).count();
        // Further ones only when commits have come to rest: they keep old content until then.
        if let Some((slot, root)) = behind.filter(|_| ready < SPARES || self.is_quiet()) {
            self.slots.open_up(slot)?;
            if self.catch_up(slot, &root, live)? {
                self.slots.complete(slot, live, &sync)?;
                return Ok(Some(Upkept::CaughtUp));
            }
        }
        let spares = self.slots.spares().count();
        let wanted = self.spares_wanted();
        let highest = self.slots.spares().last().map(|(slot, _)| slot);
        if let Some(slot) = highest.filter(|_| spares > wanted) {
            self.slots.open_up(slot)?;
        }
        if spares >= wanted {
            self.discard_buildings()?;
            return Ok(None);
        }
        if self.upkeep.damaged {
            return Ok(None);
        }
        let slot = match self.slots.buildings().first() {
            Some(slot) => *slot,
            // Enough trees are about to be recycled.
            None if spares > 0 && spares + self.excess().len() >= wanted => return Ok(None),
            None => self.slots.make()?,
        };
        self.make_spare(slot, live, &sync, cancel).map(Some)
    }

    fn make_spare(
        &mut self,
        slot: u64,
        live: &RootEntry,
        sync: &Dir,
        cancel: &AtomicBool,
    ) -> Result<Upkept, StageError> {
        let conformed = match self.conform(slot, live, None, cancel) {
            Err(StageError::Disk(e)) if e.is_full() => {
                // A farm that does not fit must not stand in the way of the next update.
                self.slots.discard(slot)?;
                return Err(e.into());
            }
            other => other?,
        };
        if !conformed.holes.is_empty() {
            self.upkeep.damaged = true;
            let (paths, first) = (conformed.holes.len(), conformed.holes.first(self.slots.record())?);
            tracing::warn!(paths, "the live tree is not what was activated: run verify");
            return Ok(Upkept::LiveDamaged { paths, first });
        }
        self.slots.complete(slot, live, sync)?;
        Ok(Upkept::SpareBuilt)
    }

    fn sweep(&self) -> Result<u64, StageError> {
        Ok(self.slots.record().sweep(&self.slots.roots())?)
    }

    fn next_due(&mut self) -> Option<Duration> {
        let excess = self.excess();
        let (clock, grace) = (&self.options.clock, self.options.grace);
        let rest = |slot: &u64| self.slots.rest(*slot, clock, grace);
        let retired = excess.first().and_then(rest);
        let resting = self.slots.resting().iter().chain(&self.slots.gone()).filter_map(rest).min();
        let live = self.slots.live().map(|live| live.generation().root);
        let behind = self.slots.spares().any(|(_, root)| Some(*root) != live);
        let trash = (behind || !self.slots.layout().trash.is_empty())
            .then(|| self.upkeep.last_write.map_or(QUIET, |at| QUIET.saturating_sub(clock.since(at))));
        [self.scrub_due(), retired, resting, trash]
            .into_iter()
            .flatten()
            .min()
            .map(|d| d.max(Duration::from_millis(10)))
    }
}
