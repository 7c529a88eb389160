//! An agent's local state: its generations, its staging area, its record, behind one owner.
//!
//! All calls block and are made from one thread at a time; [`StatusHandle`] is read from anywhere. Opening recovers
//! ([`crate::state::scan`]); [`crate::build`] builds, [`crate::replica::activate`] switches, [`crate::replica::maintain`] prepares and tidies,
//! [`crate::replica::inspect`] keeps what visitors left in old trees, [`crate::replica::scrub`] reads the live one again,
//! [`crate::replica::verify`] checks and heals. Layout and what a crash leaves: [`crate::state::layout`].

pub mod activate;
mod base;
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
use crate::state::disk::{DiskError, Owners};
use crate::state::history::Steps;
use crate::state::layout::{Layout, LayoutError};
use crate::state::record::{Record, RecordError};
use crate::state::slot::FormerTree;
pub use crate::state::slots::Signers;
use crate::state::slots::{RecoverError, Slots};
use crate::status::Drift;

/// How a replica is kept.
#[derive(Debug, Clone)]
pub struct ReplicaOptions {
    /// Complete generations that are kept, the live one among them; at least 1.
    pub keep: usize,
    /// How long a tree that was live is left alone.
    pub grace: Duration,
    /// Who owns every file, where it is not who the manifest says.
    pub owner: Option<(u32, u32)>,
    /// Whose signatures count in the copies of signed records; `None`: they are not verified again.
    pub signers: Option<Signers>,
    /// Go by the owner that the agent ran with last instead of `owner`, which is remembered otherwise.
    pub owner_as_before: bool,
    /// Of one part of an update, which is held in memory while it is made.
    pub part: PartLimits,
    /// Pause between two slow verifications of the live tree; `None`: there are none.
    pub verify_every: Option<Duration>,
    /// What graces and pauses go by.
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
            verify_every: None,
            part: PartLimits::default(),
            clock: Clock::default(),
        }
    }
}

/// Why a replica could not be opened. Nothing was changed, or only what recovery may change.
#[derive(Debug, thiserror::Error)]
pub enum OpenReplicaError {
    /// ROOT can't be used.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The record can't be used.
    #[error("open the record")]
    Record(#[from] RecordError),
    /// A system call failed in recovery.
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

/// What a replica has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// What the web server reads.
    pub live: Option<SignedGeneration>,
    /// The highest generation ever accepted.
    pub accepted: Option<SignedGeneration>,
    /// Other complete trees, newest first, at most [`HELD_GENERATIONS_MAX`].
    pub held: Vec<SignedGeneration>,
    /// Numbers of all complete trees, ascending, the live one among them.
    pub generations: Vec<u64>,
    /// Spares that are ready.
    pub spares: usize,
    /// Times a new farm of links had to be built since the process started.
    pub spare_misses: u64,
    /// Retired trees that were taken before their grace was over, since the process started.
    pub recycled_early: u64,
    /// Local changes that were found last, until a later tree is without any.
    pub drift: Option<Drift>,
}

/// Reads a replica's status while another thread works on the replica.
#[derive(Debug, Clone)]
pub struct StatusHandle(Arc<Mutex<ReplicaStatus>>);

impl StatusHandle {
    /// What it has now.
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
    /// Local changes that were found last, until a later tree is without any.
    pub(crate) drift: Option<Drift>,
    status: StatusHandle,
    root: PathBuf,
}

/// What background work goes by, by purpose. Lost with the process.
#[derive(Debug, Default)]
pub(crate) struct Upkeep {
    pub spares: SparePolicy,
    pub retired: RetiredTrees,
    /// What the last activations changed.
    pub history: Steps,
    pub trash: TrashPace,
    pub owner: OwnerChange,
    /// The slow verification.
    pub scrub: Scrub,
    /// When files were last written for an activation.
    pub last_write: Option<Instant>,
    /// The live tree was found not to be what was activated: no spare can be made before that is healed.
    pub damaged: bool,
}

/// How many trees to build on are kept at hand.
#[derive(Debug)]
pub(crate) struct SparePolicy {
    /// Times that a new farm of links had to be built.
    pub misses: u64,
    /// More than [`SPARES`] where they were lacking lately.
    pub wanted: usize,
    /// When a spare was lacking, or when one fewer was wanted since.
    pub missed: Option<Instant>,
}

impl Default for SparePolicy {
    fn default() -> Self {
        Self { misses: 0, wanted: SPARES, missed: None }
    }
}

/// What is known of trees that went out of use.
#[derive(Debug, Default)]
pub(crate) struct RetiredTrees {
    /// Trees that were taken before their grace was over.
    pub recycled_early: u64,
    /// When one was last looked at name by name.
    pub inspected_whole: Option<Instant>,
    /// What moved out of those whose inspection is not over, by slot and generation.
    pub inspected: HashMap<(u64, u64), Found>,
    /// What buildings were before they were recycled, by slot.
    pub was: HashMap<u64, FormerTree>,
    /// Generations dropped since directory objects were last swept.
    pub dropped: u32,
}

/// When the trash is emptied.
#[derive(Debug, Default)]
pub(crate) struct TrashPace {
    /// An update was activated, and no share of the trash was deleted for it.
    pub owes_share: bool,
    /// Since when the trash has not been empty after an update.
    pub since: Option<Instant>,
    /// When what can't be deleted was tried last, or this process began.
    pub stuck_tried: Option<Instant>,
}

/// The agent runs with another `--owner` than before.
#[derive(Debug, Default)]
pub(crate) struct OwnerChange {
    /// Files may still have the owner of an earlier run, which is no local change.
    pub differs: bool,
    /// They are to be given the present one by a whole verification.
    pub due: bool,
}

impl Replica {
    /// Opens ROOT, creating what is absent, locks it and recovers. Needs no origin.
    pub fn open(root: &Path, mut options: ReplicaOptions) -> Result<Self, OpenReplicaError> {
        let layout = Layout::open(root)?;
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
            slots: Slots::new(record, layout, Owners::new(options.owner), protected, options.signers.clone()),
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

    /// Opens the record anew and recovers, as at a start, where an error of the disk came in between.
    pub(crate) fn revive(&mut self) -> Result<(), OpenReplicaError> {
        if self.slots.is_unsettled() {
            self.upkeep.history.forget();
            self.slots.reopen(self.options.clock.now())?;
            self.publish();
        }
        Ok(())
    }

    /// Looks whether an error was one after which the record has to be opened anew.
    pub(crate) fn note_failure(&mut self, error: &(dyn std::error::Error + 'static)) {
        let chain = std::iter::successors(Some(error), |error| error.source());
        let mut records = chain.filter_map(|error| error.downcast_ref::<RecordError>());
        if records.any(|error| matches!(error, RecordError::Database { .. })) {
            self.slots.unsettle();
        }
    }

    /// What the replica has.
    pub fn status(&self) -> ReplicaStatus {
        self.status.get()
    }

    /// To read the status from another thread.
    pub fn status_handle(&self) -> StatusHandle {
        self.status.clone()
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

    /// Lets readers of the status see what changed.
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
            live,
        };
        *self.status.0.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

#[cfg(test)]
mod tests;
