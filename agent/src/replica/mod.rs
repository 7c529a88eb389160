//! An agent's local state behind one owner: generations, staging area and record.
//!
//! All calls block, and all are made from one thread at a time. Any thread may read the [`StatusHandle`].
//! Opening recovers ([`crate::state::scan`]), and [`crate::build`] builds trees. [`crate::replica::activate`]
//! switches to a tree, [`crate::replica::maintain`] prepares spares and tidies up, and
//! [`crate::replica::inspect`] keeps files that visitors left in old trees. [`crate::replica::scrub`]
//! re-reads the live tree, and [`crate::replica::verify`] checks and heals it. [`crate::state::layout`]
//! describes the files in ROOT, and what a crash leaves.

pub mod activate;
mod base;
pub mod decide;
mod held;
mod inspect;
pub mod maintain;
mod room;
pub mod scrub;
mod stage;
pub mod verify;
pub(crate) mod work;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use syncd_shared::SignedGeneration;
use syncd_shared::diff::PartLimits;
use syncd_shared::limits::HELD_GENERATIONS_MAX;

use crate::clock::Clock;
use crate::replica::inspect::Found;
use crate::replica::maintain::{SPARES, SPARES_MAX};
use crate::replica::scrub::Scrub;
use crate::state::decisions::Decisions;
use crate::state::disk::{DiskError, Owners};
use crate::state::history::Steps;
use crate::state::layout::{Layout, LayoutError};
use crate::state::record::{Record, RecordError};
use crate::state::slot::FormerTree;
pub use crate::state::slots::Signers;
use crate::state::slots::{RecoverError, Slots};
pub use crate::state::swap::Swap;
use crate::status::Drift;

/// Options of a replica.
#[derive(Debug, Clone)]
pub struct ReplicaOptions {
    /// Number of complete generations to keep, including the live one; at least 1.
    pub keep: usize,
    /// Grace period during which a tree that was live is left alone.
    pub grace: Duration,
    /// Owner of all files; `None`: the owner in the manifest.
    pub owner: Option<(u32, u32)>,
    /// Keys to verify the copies of signed records; `None`: the copies are not verified.
    pub signers: Option<Signers>,
    /// Use the owner of the agent's last run instead of `owner`. Otherwise `owner` is remembered.
    pub owner_as_before: bool,
    /// How `live` is switched; `None`: as before.
    pub swap: Option<Swap>,
    /// Every activation is on trial until a check has passed.
    pub checks: bool,
    /// Limits of one part of an update, which is kept in memory while it is applied.
    pub part: PartLimits,
    /// Pause between two background verifications of the live tree; `None`: there are none.
    pub verify_every: Option<Duration>,
    /// Clock for grace periods and pauses.
    pub clock: Clock,
}

impl Default for ReplicaOptions {
    fn default() -> Self {
        Self {
            keep: 2,
            grace: Duration::from_secs(150),
            owner: None,
            signers: None,
            owner_as_before: false,
            swap: None,
            checks: false,
            verify_every: None,
            part: PartLimits::default(),
            clock: Clock::default(),
        }
    }
}

/// Reason why a replica could not be opened. Nothing was changed, except by recovery.
#[derive(Debug, thiserror::Error)]
pub enum OpenReplicaError {
    /// ROOT cannot be used.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The record cannot be used.
    #[error("open the record")]
    Record(#[from] RecordError),
    /// A system call failed during recovery.
    #[error("recover the replica")]
    Disk(#[from] DiskError),
}

impl From<RecoverError> for OpenReplicaError {
    fn from(error: RecoverError) -> Self {
        match error {
            RecoverError::Disk(e) => e.into(),
            RecoverError::Record(e) => e.into(),
        }
    }
}

/// Status of a replica.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// The live generation.
    pub live: Option<SignedGeneration>,
    /// The highest generation ever accepted.
    pub accepted: Option<SignedGeneration>,
    /// Generations of other complete trees, newest first, at most [`HELD_GENERATIONS_MAX`].
    pub held: Vec<SignedGeneration>,
    /// Numbers of all complete trees, ascending, including the live one.
    pub generations: Vec<u64>,
    /// Number of spares that are ready.
    pub spares: usize,
    /// Number of farms of links built because no spare was ready, since the process started.
    pub spare_misses: u64,
    /// Number of retired trees reused before their grace period was over, since the process started.
    pub recycled_early: u64,
    /// Local changes found by the last inspection, until a later tree has none.
    pub drift: Option<Drift>,
    /// Number of changed paths of live trees that were healed, since the process started.
    pub healed: u64,
    pub decisions: Decisions,
}

/// Reads a replica's status while another thread works on the replica.
#[derive(Debug, Clone)]
pub struct StatusHandle(Arc<Mutex<ReplicaStatus>>);

impl StatusHandle {
    /// The current status.
    pub fn get(&self) -> ReplicaStatus {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A locked ROOT.
#[derive(Debug)]
pub struct Replica {
    pub(crate) slots: Slots,
    pub(crate) options: ReplicaOptions,
    pub(crate) upkeep: Upkeep,
    /// Local changes found by the last inspection, until a later tree has none.
    pub(crate) drift: Option<Drift>,
    status: StatusHandle,
    root: PathBuf,
}

/// State of background work, by purpose. Lost with the process.
#[derive(Debug, Default)]
pub(crate) struct Upkeep {
    pub spares: SparePolicy,
    pub retired: RetiredTrees,
    /// Changes made by the last activations.
    pub history: Steps,
    pub trash: TrashPace,
    pub owner: OwnerChange,
    /// State of the background verification.
    pub scrub: Scrub,
    /// Time at which files were last written for an activation.
    pub last_write: Option<Instant>,
    /// The live tree is not what was activated, so no spare can be made before it is healed.
    pub damaged: bool,
    /// The last update failed because another process changed the tree that it was built in. The next one
    /// is built in a new tree, whose directories nobody else can have open.
    pub disturbed: bool,
    /// Number of changed paths of live trees that were healed.
    pub healed: u64,
}

/// Number of spares to keep ready.
#[derive(Debug)]
pub(crate) struct SparePolicy {
    /// Number of farms of links built because no spare was ready.
    pub misses: u64,
    /// Number of spares to keep ready. Exceeds [`SPARES`] if there were recently too few.
    pub wanted: usize,
    /// Time at which a spare was last missing, or at which the number was last reduced.
    pub missed: Option<Instant>,
}

impl Default for SparePolicy {
    fn default() -> Self {
        Self { misses: 0, wanted: SPARES, missed: None }
    }
}

/// State of trees that went out of use.
#[derive(Debug, Default)]
pub(crate) struct RetiredTrees {
    /// Number of trees reused before their grace period was over.
    pub recycled_early: u64,
    /// Time of the last inspection that visited every name.
    pub inspected_whole: Option<Instant>,
    /// Findings of unfinished inspections, by slot and generation.
    pub inspected: HashMap<(u64, u64), Found>,
    /// Former state of buildings before they were recycled, by slot.
    pub was: HashMap<u64, FormerTree>,
    /// The generation whose tree was last looked at while it was kept.
    pub looked_at: Option<u64>,
    /// Generations dropped since directory objects were last swept.
    pub dropped: u32,
}

/// State of emptying the trash.
#[derive(Debug, Default)]
pub(crate) struct TrashPace {
    /// An update was activated, and no share of the trash was deleted for it.
    pub owes_share: bool,
    /// Time since which the trash has not been empty after an update.
    pub since: Option<Instant>,
    /// Time of the last attempt to delete stuck names, or start of this process.
    pub stuck_tried: Option<Instant>,
}

/// The agent runs with another `--owner` than before.
#[derive(Debug, Default)]
pub(crate) struct OwnerChange {
    /// Files may still have the owner of an earlier run, which is not a local change.
    pub differs: bool,
    /// A whole verification has to give the files their new owner.
    pub due: bool,
}

impl Replica {
    /// Opens ROOT, creates what is missing, locks it and recovers. Needs no origin.
    pub fn open(root: &Path, mut options: ReplicaOptions) -> Result<Self, OpenReplicaError> {
        let layout = Layout::open(root, options.swap)?;
        let (record, damaged) = Record::open(&layout.record_path())?;
        if let Some(moved) = &damaged {
            tracing::warn!(path = %moved.display(), "the record was damaged and moved aside");
        }
        let mut owner_differs = false;
        let owner_before = record.owner()?;
        if options.owner_as_before {
            options.owner = owner_before;
        } else if options.owner != owner_before {
            record.set_owner(options.owner)?;
            owner_differs = record.known()?.live.is_some();
        }
        let upkeep = Upkeep {
            owner: OwnerChange { differs: owner_differs, due: owner_differs },
            trash: TrashPace { stuck_tried: Some(options.clock.now()), ..TrashPace::default() },
            ..Upkeep::default()
        };
        let drift = record.drift()?;
        let protected = crate::hooks::protected(&root.join("state"));
        let mut replica = Self {
            slots: Slots::new(
                record,
                layout,
                Owners::new(options.owner),
                options.swap,
                protected,
                options.signers.clone(),
            ),
            options,
            upkeep,
            drift,
            status: StatusHandle(Arc::default()),
            root: root.to_path_buf(),
        };
        replica.slots.recover(replica.options.clock.now())?;
        replica.publish();
        Ok(replica)
    }

    /// Reopens the record and recovers, as at a start, if there was a disk error.
    pub(crate) fn revive(&mut self) -> Result<(), OpenReplicaError> {
        if self.slots.is_unsettled() {
            self.upkeep.history.forget();
            self.slots.reopen(self.options.clock.now())?;
            self.publish();
        }
        Ok(())
    }

    /// Notes whether an error requires reopening the record.
    pub(crate) fn note_failure(&mut self, error: &(dyn std::error::Error + 'static)) {
        let chain = std::iter::successors(Some(error), |error| error.source());
        let mut records = chain.filter_map(|error| error.downcast_ref::<RecordError>());
        if records.any(|error| matches!(error, RecordError::Database { .. })) {
            self.slots.unsettle();
        }
    }

    pub fn status(&self) -> ReplicaStatus {
        self.status.get()
    }

    /// How `live` is switched.
    pub fn swap(&self) -> Swap {
        self.slots.swap()
    }

    /// ROOT.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn count_spare_miss(&mut self) {
        self.upkeep.spares.misses += 1;
        self.upkeep.spares.missed = Some(self.options.clock.now());
        self.upkeep.spares.wanted = (self.upkeep.spares.wanted + 1).min(SPARES_MAX);
        self.publish();
    }

    /// Publishes the current status to its readers.
    pub(crate) fn publish(&self) {
        let live = self.slots.live().cloned();
        let mut held: Vec<_> = self.slots.held().map(|(_, generation)| generation.clone()).collect();
        held.sort_unstable_by_key(|generation| std::cmp::Reverse(generation.number()));
        let generations = held.iter().rev().map(|generation| generation.number().get()).collect();
        held.retain(|generation| Some(generation) != live.as_ref());
        held.truncate(HELD_GENERATIONS_MAX);
        let status = ReplicaStatus {
            accepted: self.slots.accepted().cloned(),
            held,
            generations,
            spares: self.slots.spares().count(),
            spare_misses: self.upkeep.spares.misses,
            recycled_early: self.upkeep.retired.recycled_early,
            drift: self.drift.clone(),
            healed: self.upkeep.healed,
            decisions: self.slots.decisions().clone(),
            live,
        };
        *self.status.0.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

#[cfg(test)]
mod tests;
