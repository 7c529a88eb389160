//! Background work: spares for the next update, old trees, and the trash.
//!
//! Each call does one bounded step, so that an update never waits long for it. In order:
//!
//! 1. Trees beyond `--keep` that no web server can serve ([`crate::state::slots::Slots::may_be_taken`]) are
//!    inspected after their grace period ([`crate::replica::inspect`]). They become buildings while spares
//!    are missing, and trash otherwise.
//! 2. Spares are updated to the live root by the differences.
//! 3. Buildings are made spares, with every name checked. If there is nothing to recycle, a farm of links is
//!    built.
//! 4. One spare is reserved for the next update.
//! 5. Part of the trash is deleted, but not while files are being written: ext4 would then search past the
//!    inodes just freed, and create new files several times slower. If commits leave no pause, a share is
//!    deleted after each update.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use syncd_shared::{RootEntry, TreePath};

use crate::build::StageError;
use crate::replica::Replica;
use crate::state::SlotError;
use crate::state::disk::{Dir, DiskError};
use crate::state::slot::Slot;
use crate::status::Drift;

/// Number of spares to keep ready at the live root.
pub(crate) const SPARES: usize = 2;
/// Limit of the trees to build on, if fast commits have left too few spares.
pub(crate) const SPARES_MAX: usize = 8;
/// Time without a missing spare after which one fewer is kept.
const EASE: Duration = Duration::from_secs(3600);
/// Limit of the retired trees that wait for their grace period.
const RETIRED_MAX: usize = 8;
/// Time after writing files for an activation during which nothing is deleted.
const QUIET: Duration = Duration::from_secs(5);
/// Names deleted in one step.
const TRASH_STEP: usize = 2_000;
/// Names deleted after an update if updates leave no pause: more than an update usually moves to the trash.
const TRASH_SHARE: usize = 64;
/// The same once the trash has not been empty for [`TRASH_PATIENCE`].
const TRASH_SHARE_LATE: usize = 1_000;
const TRASH_PATIENCE: Duration = Duration::from_secs(60);
/// Pause before stuck names are retried.
const STUCK_RETRY: Duration = Duration::from_secs(3600);
/// Generations dropped between two sweeps of unused directory objects.
const SWEEP_AFTER: u32 = 32;

/// Result of one step of background work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upkept {
    /// There was nothing to do.
    Nothing,
    /// A retired generation is out of use, and waits to be inspected.
    Retired(u64),
    /// A spare was updated to the live root by the differences.
    CaughtUp,
    /// A spare was made.
    SpareBuilt,
    /// A retired tree was inspected, and recycled or discarded.
    Inspected {
        /// Local changes found in the tree.
        drift: Option<Drift>,
    },
    /// The live tree is not what was activated, so no spare can be made before `verify` has healed it.
    LiveDamaged {
        /// Number of paths that differ.
        paths: usize,
        /// The first of these paths.
        first: Option<TreePath>,
    },
    /// A spare was reserved for the next update.
    Drawn,
    /// The tree that was live before was looked at.
    Looked,
    /// Names were deleted from the trash.
    Emptied(usize),
    /// Part of the live tree was read again.
    Reread {
        /// A damaged path: a whole verification is needed now.
        damaged: Option<TreePath>,
    },
    /// Unused directory objects were removed.
    Swept(u64),
}

/// Result of a call, and the time of the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maintained {
    /// The step that was done.
    pub did: Upkept,
    /// Pause before the next call; `None`: none is needed before the next activation.
    pub next: Option<Duration>,
}

impl Replica {
    /// Does one step of background work. Blocks; `cancel` stops it between directories.
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
            if self.reserve_ahead(&live)? {
                return Ok(Upkept::Drawn);
            }
            if self.look_at_previous(cancel)? {
                return Ok(Upkept::Looked);
            }
        }
        if self.upkeep.retired.dropped >= SWEEP_AFTER {
            let swept = self.sweep(cancel)?;
            self.upkeep.retired.dropped = 0;
            return Ok(Upkept::Swept(swept));
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

    /// Empties the whole trash now.
    pub(crate) fn empty_trash(&self, cancel: &AtomicBool) -> Result<(), DiskError> {
        let trash = &self.slots.layout().trash;
        trash.retry_stuck()?;
        trash.empty(usize::MAX, cancel).map(drop)
    }

    /// Deletes a share of the trash after an update, for updates that come without a pause and leave no time
    /// for background work.
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

    /// Number of trees to build on that should be ready.
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

    /// Trees beyond those that are kept, oldest first, without those that a web server may still serve.
    fn excess(&mut self) -> Vec<u64> {
        self.slots.excess(self.options.keep, self.options.clock.now())
    }

    /// Reserves the lowest spare at the live root for the next update. Returns whether that is new.
    fn reserve_ahead(&mut self, live: &RootEntry) -> Result<bool, StageError> {
        let lowest = self.slots.spare_at(live);
        match lowest.filter(|slot| matches!(self.slots.state(*slot), Some(Slot::Spare(_)))) {
            Some(slot) => Ok(self.slots.reserve(slot).map(|()| true)?),
            None => Ok(false),
        }
    }

    /// Recycles retired trees beyond the limit after an update, when updates leave no time for background
    /// work.
    pub(crate) fn bound_retired(&mut self) {
        let bounded = match self.excess().len() > RETIRED_MAX {
            true => self.retire_oldest().map(drop),
            false => Ok(()),
        };
        // This limit always makes progress. Its cost follows the directories of one tree.
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

    /// Inspects a retired tree. Recycles it while spares are missing, and discards it otherwise.
    fn dispose(&mut self, slot: u64, cancel: &AtomicBool) -> Result<Option<Drift>, StageError> {
        let at_hand = self.slots.spares().count() + self.slots.buildings().len();
        let recycle = at_hand < self.spares_wanted();
        self.inspect_retired(slot, recycle, cancel)
    }

    /// Takes one tree out of use if possible; it then waits to be inspected. Returns its generation if it was
    /// a kept one.
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

    /// Does one step towards enough spares at the live root; `None`: there are enough, or none can be made
    /// now.
    fn ready_spare(&mut self, live: &RootEntry, cancel: &AtomicBool) -> Result<Option<Upkept>, StageError> {
        self.slots.layout().discard_asides()?;
        let sync = self.slots.layout().staging.reopen()?;
        let behind = self.slots.spares().find(|(_, root)| *root != live).map(|(s, r)| (s, *r));
        let ready = self.slots.spares().filter(|(_, root)| *root == live).count();
        // Spares beyond that are updated only once commits pause, because they hold old content until then.
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
            // Enough trees will be recycled soon.
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
                // A farm that does not fit must not block the next update.
                self.slots.discard(slot)?;
                return Err(e.into());
            }
            other => other?,
        };
        if !conformed.missing.is_empty() {
            self.upkeep.damaged = true;
            let (paths, first) = (conformed.missing.len(), conformed.missing.first(self.slots.record())?);
            tracing::warn!(paths, "the live tree is not what was activated: run verify");
            return Ok(Upkept::LiveDamaged { paths, first });
        }
        self.slots.complete(slot, live, sync)?;
        Ok(Upkept::SpareBuilt)
    }

    fn sweep(&self, cancel: &AtomicBool) -> Result<u64, StageError> {
        let is_cancelled = || cancel.load(Ordering::Relaxed);
        self.slots.record().sweep(&self.slots.roots(), &is_cancelled)?.ok_or(StageError::Cancelled)
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
