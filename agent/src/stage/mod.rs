//! Builds a complete, verified tree of a target generation beside the live one.
//!
//! ```text
//! manifest   directory objects that are lacking, verified, into the record
//! space      what the difference needs against what is free
//! content    what is lacking under any name, into staging/incoming, verified
//! tree       a spare (or, counted, a new farm of links) is patched where it is
//! ```
//!
//! Of an update that changes very many files, content and tree come in turn, part by part of what differs
//! ([`syncd_shared::diff::Parts`]): memory follows a part, not the update.
//!
//! The first sync has nothing to build on and goes another way: [`fresh`].
//!
//! Until the last step no tree is touched: whatever interrupts it, what arrived stays in `incoming` and is found by the
//! next attempt, for this target or a newer one. After a crash in the last step the tree is neither: new files are taken
//! out of it by hash, and it is made a spare again. Of an update in parts it is recorded as partial meanwhile, which nobody
//! else touches: what came of it is found there by the next attempt.

mod allowance;
mod base;
pub(crate) mod conform;
pub(crate) mod content;
pub(crate) mod cursor;
mod delta;
mod fresh;
pub(crate) mod holes;
mod inodes;
mod manifest;
pub(crate) mod patch;
mod plan;
pub(crate) mod queue;
mod receive;
mod repeats;
mod room;
mod space;
mod window;
mod writeback;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::HumanBytes;
use syncd_proto::v1::RetryClass;
use syncd_shared::diff::{Change, Comparison, DiffError, Released};
use syncd_shared::generation::GenerationError;
use syncd_shared::tree_path::TreePathError;
use syncd_shared::wire::{Frame, WireError};
use syncd_shared::{ContentHash, Kind, RootEntry, RootHash, SignedGeneration, TreePath};

use crate::disk::{Dir, DiskError};
use crate::record::{InodeChanges, Record, RecordError};
use crate::replica::Replica;
use crate::source::{FetchError, Source};
use crate::state::SlotError;
use crate::state::syncing::Syncing;
use crate::state::trees::LiveTreeError;
use crate::steps::Touched;
use base::Base;
use content::Incoming;
use holes::Holes;
use inodes::InodeLists;
use patch::Patch;
use plan::Plan;

/// Why a target could not be staged. Nothing that is served was touched.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The generation may not follow the accepted one.
    #[error("refuse generation")]
    Refused(#[from] GenerationError),
    /// A system call failed.
    #[error("write the replica")]
    Disk(#[from] DiskError),
    /// The record failed.
    #[error("use the record")]
    Record(#[from] RecordError),
    /// The origin did not deliver.
    #[error("fetch from the origin")]
    Fetch(#[source] FetchError),
    /// The manifests could not be compared.
    #[error("compare manifests")]
    Diff(#[from] DiffError<RecordError>),
    /// A frame or patch was damaged.
    #[error("read what the origin sent")]
    Frame(#[source] WireError),
    /// A tree that is nested too deep.
    #[error("invalid path in the manifest")]
    Path {
        /// What is wrong.
        #[source]
        source: TreePathError,
    },
    /// Content is not what its hash says.
    #[error("content hashes to {actual}, expected {expected}")]
    Content {
        /// Hash it was asked for by.
        expected: ContentHash,
        /// Hash of what came.
        actual: ContentHash,
    },
    /// A piece that is not part of its file.
    #[error("piece at {offset} lies outside of content {content} of {size} bytes")]
    PieceOutside {
        /// The file.
        content: ContentHash,
        /// Its length.
        size: u64,
        /// Where the piece was to go.
        offset: u64,
    },
    /// More directory objects than the signed totals allow.
    #[error("the origin sent more than {limit} directory objects")]
    TooManyObjects {
        /// Entries that the tree has.
        limit: u64,
    },
    /// More bytes, or more frames, than what was asked for can take.
    #[error("the origin sent more than {limit_bytes} bytes for what was asked")]
    TooMuch {
        /// What would have been taken.
        limit_bytes: u64,
    },
    /// Content that was asked for did not come.
    #[error("the origin did not send content {content}")]
    Missing {
        /// The content.
        content: ContentHash,
    },
    /// Too little free space; nothing was written.
    #[error(
        "{} are needed on the file system of --root, {} are free, and nothing more may be given up: \
         free space, enlarge it, or keep fewer generations (--keep)",
        HumanBytes(*wanted_bytes), HumanBytes(*available_bytes)
    )]
    NoSpace {
        /// Bytes needed.
        wanted_bytes: u64,
        /// Bytes free, less a reserve.
        available_bytes: u64,
    },
    /// Too few free inodes; nothing was written.
    #[error(
        "{wanted} inodes are needed on the file system of --root, {available} are free: remove files or enlarge it"
    )]
    NoInodes {
        /// Inodes needed.
        wanted: u64,
        /// Inodes free.
        available: u64,
    },
    /// A newer target, or the agent stops.
    #[error("staging was cancelled")]
    Cancelled,
}

impl From<SlotError> for StageError {
    fn from(error: SlotError) -> Self {
        match error {
            SlotError::Disk(e) => e.into(),
            SlotError::Record(e) => e.into(),
        }
    }
}

impl From<LiveTreeError> for StageError {
    fn from(error: LiveTreeError) -> Self {
        match error {
            LiveTreeError::Disk(e) => e.into(),
            LiveTreeError::Record(e) => e.into(),
        }
    }
}

impl StageError {
    /// What the origin and the caller are to make of it.
    pub fn retry_class(&self) -> RetryClass {
        match self {
            Self::Refused(_) | Self::NoSpace { .. } | Self::NoInodes { .. } => RetryClass::Operator,
            Self::Disk(e) if e.is_full() => RetryClass::Operator,
            Self::Disk(_) | Self::Cancelled => RetryClass::Retry,
            Self::Fetch(FetchError::Disconnected(_) | FetchError::Superseded) => RetryClass::Retry,
            Self::Fetch(FetchError::Refused(_)) => RetryClass::Retry,
            _ => RetryClass::Resync,
        }
    }

    /// Whether the same request can succeed later: another way to the target is not to be tried now.
    fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Disk(_)
                | Self::Cancelled
                | Self::Fetch(FetchError::Disconnected(_) | FetchError::Superseded)
                | Self::Record(RecordError::Database { .. })
        )
    }
}

/// How far staging is; of an update in parts, what the parts so far fetch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StageProgress {
    /// Contents that arrived and were verified.
    pub files_done: u64,
    /// Contents that are fetched.
    pub files_total: u64,
    /// Content bytes that arrived.
    pub bytes_done: u64,
    /// Content bytes that are fetched.
    pub bytes_total: u64,
}

impl StageProgress {
    /// With what comes after it.
    fn and(self, next: Self) -> Self {
        Self {
            files_done: self.files_done.saturating_add(next.files_done),
            files_total: self.files_total.saturating_add(next.files_total),
            bytes_done: self.bytes_done.saturating_add(next.bytes_done),
            bytes_total: self.bytes_total.saturating_add(next.bytes_total),
        }
    }
}

/// A complete, verified tree that waits to be activated. Dropped, it is recycled.
#[derive(Debug)]
pub struct Staged {
    pub(crate) target: SignedGeneration,
    /// The slot that it is in; `None`: the target is live already.
    pub(crate) slot: Option<u64>,
    /// Opened before the first write.
    pub(crate) sync: Dir,
    /// Paths that differ from the live tree; `None`: too many to be held.
    pub(crate) changed: Option<Vec<TreePath>>,
    /// It was built on a spare, which was durable, and everything that was done to it is at `changed`.
    pub(crate) durable_basis: bool,
    /// What it changes; `None`: not known.
    pub(crate) touched: Option<Touched>,
    /// The copy of its signed record, as the disk gets it; `None`: there is none yet.
    pub(crate) signed: Option<Syncing>,
    pub(crate) inodes: InodeChanges,
    pub(crate) spare_miss: bool,
    /// What the tree was built from, to see that it still is live.
    pub(crate) basis: Option<u64>,
    /// Content bytes and files that came from the origin.
    pub(crate) fetched: (u64, u64),
}

impl Staged {
    /// Of a tree in `slot` that was built from `basis`, as far as nothing more is known about it.
    fn new(target: &SignedGeneration, slot: Option<u64>, basis: Option<u64>, sync: Dir) -> Self {
        Self {
            target: target.clone(),
            slot,
            sync,
            changed: Some(Vec::new()),
            durable_basis: false,
            touched: None,
            signed: None,
            inodes: InodeChanges::default(),
            spare_miss: false,
            basis,
            fetched: (0, 0),
        }
    }

    /// What it is.
    pub fn target(&self) -> &SignedGeneration {
        &self.target
    }

    /// Content bytes that came from the origin.
    pub fn fetched_bytes(&self) -> u64 {
        self.fetched.0
    }

    /// Contents that came from the origin.
    pub fn fetched_files(&self) -> u64 {
        self.fetched.1
    }

    /// Whether no spare was ready.
    pub fn is_spare_miss(&self) -> bool {
        self.spare_miss
    }
}

impl Replica {
    /// Builds `target` beside the live tree. `inline` is an update that came with the announcement, and the root that it
    /// starts from. Blocks; `cancel` is looked at often.
    ///
    /// An error leaves the live tree as it was and keeps what arrived.
    pub fn stage(
        &mut self,
        target: &SignedGeneration,
        inline: Option<(RootHash, Vec<Frame>)>,
        source: &mut dyn Source,
        progress: &dyn Fn(StageProgress),
        cancel: &AtomicBool,
    ) -> Result<Staged, StageError> {
        target.may_follow(self.slots.accepted())?;
        self.forget_lost_live()?;
        let sync = self.slots.layout().staging.reopen()?;
        if self.slots.live().is_some_and(|live| live.number() == target.number()) {
            return Ok(Staged::new(target, None, Some(target.number().get()), sync));
        }
        if self.slots.held().next().is_none() {
            let built = self.build_fresh(target, source, progress, cancel, sync);
            if matches!(&built, Err(StageError::Disk(error)) if error.is_denied()) {
                // Something in what was left of a tree is another user's: the next attempt begins with nothing.
                self.discard_buildings()?;
            }
            return built;
        }
        self.build(target, inline, source, progress, cancel, None, sync)
    }

    /// Where the live tree was deleted under the agent, there is nothing to build on: all is staged anew.
    fn forget_lost_live(&mut self) -> Result<(), StageError> {
        let live = self.slots.live().map(|live| live.number().get());
        self.slots.forget_absent()?;
        if let (Some(live), None) = (live, self.slots.live()) {
            tracing::warn!(generation = live, "the live tree is gone: it is fetched again");
            self.upkeep.steps.forget();
        }
        Ok(())
    }

    /// Builds `target` from the live tree. To heal that, every name is looked at, and its files at `distrusted` are not trusted.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn build(
        &mut self,
        target: &SignedGeneration,
        inline: Option<(RootHash, Vec<Frame>)>,
        source: &mut dyn Source,
        progress: &dyn Fn(StageProgress),
        cancel: &AtomicBool,
        distrusted: Option<&HashSet<TreePath>>,
        sync: Dir,
    ) -> Result<Staged, StageError> {
        let from = self.slots.live().map(|live| live.generation().root);
        // The signed record's copy is written ahead of what else an update that came inside its announcement takes.
        let spare = from.filter(|_| inline.is_some() && distrusted.is_none());
        let mut early = None;
        if let Some(slot) = spare.and_then(|root| self.slots.spare_at(&root)) {
            early = Some((slot, self.slots.keep_signed(slot, target)?));
        }
        let to = target.generation().root;
        let record = &*self.slots.record().clone();
        let limits = self.options.part;
        let manifest = manifest::obtain(record, from.as_ref(), &to, limits, inline, source)?;
        let (comparison, mut update) = (manifest.comparison, manifest.update);
        let mut released = comparison.released()?;
        let incoming = Incoming::open(self.slots.layout(), self.slots.owners())?;
        self.salvage(&comparison, &incoming)?;
        self.slots.end_parts()?;
        let kept = early.as_ref().map(|(slot, _)| *slot);
        self.check_space(&comparison, &mut released, from.as_ref(), kept, &incoming, cancel)?;
        let base = match kept {
            Some(slot) => Base::Spare(slot),
            None => self.base(from.as_ref(), distrusted, cancel)?,
        };
        let trees = self.slots.trees();
        let spare_miss = distrusted.is_none() && matches!(base, Base::Building { farm: true, .. });
        if spare_miss {
            self.count_spare_miss();
        }
        let (spare, mut slot, holes) = match base {
            Base::Spare(slot) => (Some(slot), None, Holes::default()),
            Base::Building { slot, holes, .. } => (None, Some(slot), holes),
        };
        if !holes.is_empty() {
            tracing::warn!(paths = holes.len(), "live files are not what was activated: fetched again");
            // The update brings only what differs; the general path brings all.
            update = None;
        }
        let touched = if holes.is_empty() { Touched::by(&comparison)? } else { None };
        let renames = comparison.renamed_directories();
        let mut inodes = InodeLists::new(record, from.as_ref(), &to, renames)?;
        let mut done = StageProgress::default();
        let (mut signed, mut patch, mut changed) = (None, None, None);
        let of_update = comparison.parts().map(|part| Ok::<_, StageError>((part?, false)));
        let filling = holes.parts(record, renames, &to, limits)?.map(|part| Ok((part?, true)));
        for part in of_update.chain(filling) {
            let (part, are_holes) = part?;
            let mut plan = Plan::make(&trees, from.as_ref(), &part, &mut released, &incoming, are_holes)?;
            let so_far = |now| progress(done.and(now));
            let came = plan.fetch(&trees, target.root_hash(), &mut update, source, &so_far, cancel)?;
            done = done.and(came);
            if cancel.load(Ordering::Relaxed) {
                return Err(StageError::Cancelled);
            }
            if let (Some(spare), None) = (spare, slot) {
                signed = match early.take() {
                    Some((_, syncing)) => Some(syncing),
                    None => Some(self.slots.keep_signed(spare, target)?),
                };
                self.slots.open_up(spare)?;
                slot = Some(spare);
            }
            let patch = match (&mut patch, slot) {
                (Some(patch), _) => patch,
                (none, slot) => {
                    let slot = slot.unwrap_or_default();
                    let tree = trees.open(slot)?;
                    if !part.is_last || !holes.is_empty() {
                        self.slots.begin_parts(slot)?;
                    }
                    none.insert(Patch::start(&trees.layout, trees.owners, slot, renames, tree)?)
                }
            };
            let placed = patch.part(&trees.layout, &part.changes, &mut plan.supply(&trees)?)?;
            incoming.end_part();
            inodes.add(&part.changes, &placed)?;
            if comparison.is_small() && !are_holes {
                let mut paths: Vec<_> = part.changes.iter().map(|change| change.path().clone()).collect();
                paths.dedup();
                changed = Some(paths);
            }
        }
        if let Some(patch) = patch {
            patch.finish()?;
        }
        self.slots.end_parts()?;
        incoming.clear(&trees.layout)?;
        let basis = self.slots.live().map(|live| live.number().get());
        Ok(Staged {
            durable_basis: spare.is_some() && renames.is_empty(),
            changed,
            touched,
            signed,
            inodes: inodes.finish(),
            spare_miss,
            fetched: (done.bytes_done, done.files_done),
            ..Staged::new(target, slot, basis, sync)
        })
    }

    fn check_space(
        &mut self,
        comparison: &Comparison<&Record>,
        released: &mut Released<'_, &Record>,
        from: Option<&RootEntry>,
        kept: Option<u64>,
        incoming: &Incoming,
        cancel: &AtomicBool,
    ) -> Result<(), StageError> {
        let space = self.slots.layout().staging.space()?;
        let mut demand = space::Demand::of(comparison, released, space.block_bytes)?;
        if let Some(from) = from
            && self.slots.spares().next().is_none()
            && self.slots.buildings().is_empty()
        {
            demand.add_farm(from, space.block_bytes);
        }
        if demand.check(&space, space::Demand::default()).is_ok() {
            return Ok(());
        }
        // What interrupted attempts left of this target counts, what they left of others makes room.
        incoming.purge(self.slots.layout(), comparison)?;
        if from.is_none() {
            self.discard_buildings()?;
        }
        let fits =
            |replica: &Self| demand.check(&replica.slots.layout().staging.space()?, incoming.present()?);
        self.make_room(kept, &fits, cancel)
    }

    /// Takes new files out of trees that an earlier attempt was interrupted in.
    fn salvage(&self, comparison: &Comparison<&Record>, incoming: &Incoming) -> Result<(), StageError> {
        for slot in self.slots.buildings().into_iter().chain(self.slots.partials()) {
            let mut tree = cursor::DirCursor::new(self.slots.open(slot)?);
            for part in comparison.parts() {
                for change in part?.changes.iter() {
                    let (Change::Added { path, entry } | Change::Modified { path, to: entry, .. }) = change
                    else {
                        continue;
                    };
                    if let Kind::File { content, size } = entry.kind
                        && size > 0
                        && let Some((parent, name)) = path.split_last()
                        && let Ok(dir) = tree.at(&parent)
                        && !incoming.has(content, size)?
                    {
                        incoming.salvage(content, size, dir, name.as_bytes())?;
                    }
                }
            }
        }
        Ok(())
    }
}
