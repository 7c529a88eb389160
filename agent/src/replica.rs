//! An agent's local state: its generations, its staging area, its record, behind one owner.
//!
//! All calls block and are made from one thread at a time; [`StatusHandle`] is read from anywhere. Opening recovers
//! ([`crate::recover`]); [`crate::stage`] builds, [`crate::activate`] switches, [`crate::spares`] prepares and tidies,
//! [`crate::inspect`] keeps what visitors left in old trees, [`crate::scrub`] reads the live one again,
//! [`crate::verify`] checks and heals. Layout and what a crash leaves: [`crate::layout`].

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use syncd_shared::SignedGeneration;
use syncd_shared::diff::PartLimits;
use syncd_shared::limits::HELD_GENERATIONS_MAX;

use crate::clock::Clock;
use crate::disk::{DiskError, Owners};
use crate::inspect::Found;
use crate::layout::{Layout, LayoutError};
use crate::record::{Record, RecordError};
use crate::scrub::Scrub;
use crate::spares::{SPARES, SPARES_MAX};
use crate::state::slot::FormerTree;
use crate::state::slots::{RecoverError, Slots};
use crate::status::Drift;
use crate::steps::Steps;

/// How a replica is kept.
#[derive(Debug, Clone)]
pub struct ReplicaOptions {
    /// Complete generations that are kept, the live one among them; at least 1.
    pub keep: usize,
    /// How long a tree that was live is left alone.
    pub grace: Duration,
    /// Who owns every file, where it is not who the manifest says.
    pub owner: Option<(u32, u32)>,
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

/// What background work goes by. Lost with the process.
#[derive(Debug)]
pub(crate) struct Upkeep {
    pub spare_misses: u64,
    pub recycled_early: u64,
    /// Trees to build on that are kept at hand: more where they were lacking lately.
    pub spares_wanted: usize,
    /// When a spare was lacking, or when one fewer was wanted since.
    pub missed: Option<Instant>,
    /// The slow verification.
    pub scrub: Scrub,
    /// When a retired tree was last looked at name by name.
    pub inspected_whole: Option<Instant>,
    /// What moved out of retired trees whose inspection is not over, by slot and generation.
    pub inspected: HashMap<(u64, u64), Found>,
    /// What buildings were before they were recycled, by slot.
    pub was: HashMap<u64, FormerTree>,
    /// What the last activations changed.
    pub steps: Steps,
    /// When files were last written for an activation.
    pub last_write: Option<Instant>,
    /// An update was activated, and no share of the trash was deleted for it.
    pub owes_share: bool,
    /// Since when the trash has not been empty after an update.
    pub trash_since: Option<Instant>,
    /// When what can't be deleted was tried last.
    pub stuck_tried: Instant,
    /// The live tree was found not to be what was activated: no spare can be made before that is healed.
    pub damaged: bool,
    /// Files may still have the owner of an earlier run, which is no local change.
    pub owner_differs: bool,
    /// They are to be given the present one by a whole verification.
    pub owner_due: bool,
    /// Generations dropped since directory objects were last swept.
    pub dropped: u32,
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
            spare_misses: 0,
            recycled_early: 0,
            spares_wanted: SPARES,
            missed: None,
            scrub: Scrub::default(),
            inspected_whole: None,
            inspected: HashMap::new(),
            was: HashMap::new(),
            steps: Steps::default(),
            last_write: None,
            owes_share: false,
            trash_since: None,
            stuck_tried: options.clock.now(),
            damaged: false,
            owner_differs,
            owner_due: owner_differs,
            dropped: 0,
        };
        let drift = record.drift()?;
        let protected = crate::hooks::protected(&root.join("state"));
        let mut replica = Self {
            slots: Slots::new(record, layout, Owners::new(options.owner), protected),
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
            self.upkeep.steps.forget();
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
        self.upkeep.spare_misses += 1;
        self.upkeep.missed = Some(self.options.clock.now());
        self.upkeep.spares_wanted = (self.upkeep.spares_wanted + 1).min(SPARES_MAX);
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
            spare_misses: self.upkeep.spare_misses,
            recycled_early: self.upkeep.recycled_early,
            drift: self.drift.clone(),
            live,
        };
        *self.status.0.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

#[cfg(test)]
mod tests;
