//! Builds a complete, verified tree of a target generation beside the live one.
//!
//! ```text
//! manifest   directory objects that are lacking, verified, into the record
//! space      what the difference needs against what is free
//! content    what is lacking under any name, into staging/incoming, verified
//! tree       a spare (or, counted, a new farm of links) becomes staging/building-K and is patched
//! ```
//!
//! The first sync has nothing to build on and goes another way: [`fresh`].
//!
//! Until the last step no tree is touched: whatever interrupts it, what arrived stays in `incoming` and is found by the
//! next attempt, for this target or a newer one. After a crash in the last step `building-K` is neither tree: new files
//! are taken out of it by hash, and it is made a spare again.

mod allowance;
mod base;
pub(crate) mod conform;
pub(crate) mod content;
pub(crate) mod cursor;
mod delta;
pub(crate) mod draw;
mod fresh;
mod inodes;
mod manifest;
pub(crate) mod patch;
mod plan;
mod receive;
mod released;
mod repeats;
mod space;
mod window;
mod writeback;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use syncd_proto::v1::RetryClass;
use syncd_shared::diff::{Change, DiffError, TreeDiff};
use syncd_shared::generation::GenerationError;
use syncd_shared::tree_path::TreePathError;
use syncd_shared::wire::{Frame, WireError};
use syncd_shared::{ContentHash, Entry, Kind, RootEntry, RootHash, SignedGeneration, TreePath};

use crate::disk::{Dir, DiskError};
use crate::record::{InodeChanges, RecordError};
use crate::replica::Replica;
use crate::source::{FetchError, Source};
use crate::steps::Touched;
use base::Base;
use content::Incoming;
use cursor::ManifestCursor;
use draw::{Draw, Syncing};
use patch::Patch;
use plan::Plan;

pub(crate) use base::{building, drawn, spare};
pub(crate) use manifest::checked_diff;

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
        "{wanted_bytes} bytes are needed, {available_bytes} are free: free space or enlarge the file system"
    )]
    NoSpace {
        /// Bytes needed.
        wanted_bytes: u64,
        /// Bytes free, less a reserve.
        available_bytes: u64,
    },
    /// Too few free inodes; nothing was written.
    #[error("{wanted} inodes are needed, {available} are free: remove files or enlarge the file system")]
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

/// How far staging is.
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

/// A complete, verified tree that waits to be activated. Dropped, it is recycled.
#[derive(Debug)]
pub struct Staged {
    pub(crate) target: SignedGeneration,
    /// `staging/building-K`; `None`: the target is live already.
    pub(crate) slot: Option<u64>,
    /// Opened before the first write.
    pub(crate) sync: Dir,
    pub(crate) changed: Vec<TreePath>,
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
    /// What it is.
    pub fn target(&self) -> &SignedGeneration {
        &self.target
    }

    /// Paths that differ from the live tree.
    pub fn changed_paths(&self) -> &[TreePath] {
        &self.changed
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
        target.may_follow(self.accepted())?;
        self.forget_lost_live()?;
        let sync = self.layout.staging.reopen()?;
        if self.live().is_some_and(|live| live.number() == target.number()) {
            return Ok(Staged {
                target: target.clone(),
                slot: None,
                sync,
                changed: Vec::new(),
                durable_basis: false,
                touched: None,
                signed: None,
                inodes: InodeChanges::default(),
                spare_miss: false,
                basis: Some(target.number().get()),
                fetched: (0, 0),
            });
        }
        if self.live().is_none() && self.generations().is_empty() {
            return self.build_fresh(target, source, progress, cancel, sync);
        }
        self.build(target, inline, source, progress, cancel, &HashSet::new(), sync)
    }

    /// Where the live tree was deleted under the agent, there is nothing to build on: all is staged anew.
    fn forget_lost_live(&mut self) -> Result<(), StageError> {
        let Some(number) = self.live().map(|live| live.number().get()) else { return Ok(()) };
        if self.layout.generations.stat(number.to_string().as_bytes())?.is_none() {
            tracing::warn!(generation = number, "the live tree is gone: it is fetched again");
            self.known.generations.remove(&number);
            self.known.live = None;
            self.upkeep.steps.forget();
            self.record.restore(&self.known)?;
        }
        Ok(())
    }

    /// Builds `target` from the live tree, not trusting its files at `distrusted`.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn build(
        &mut self,
        target: &SignedGeneration,
        inline: Option<(RootHash, Vec<Frame>)>,
        source: &mut dyn Source,
        progress: &dyn Fn(StageProgress),
        cancel: &AtomicBool,
        distrusted: &HashSet<TreePath>,
        sync: Dir,
    ) -> Result<Staged, StageError> {
        let from = self.live().map(|live| live.generation().root);
        let mut draw = None;
        // For a large update, which takes its time to come, none is drawn here: a crash meanwhile would cost a second spare.
        if let (Some(root), true, true) = (from, inline.is_some(), distrusted.is_empty()) {
            self.reclaim_spares()?;
            if let Some(slot) = self.spare_at(&root) {
                draw = Some(self.draw(slot, target)?);
            }
        }
        let built =
            self.build_on(&mut draw, from, target, inline, source, progress, cancel, distrusted, sync);
        if let (Err(_), Some(draw)) = (&built, draw)
            && let Err(error) = self.give_back(draw, target)
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "a spare was lost");
        }
        built
    }

    /// [`Self::build`] on what was drawn, if anything was: taken from `draw` before it is touched.
    #[allow(clippy::too_many_arguments)]
    fn build_on(
        &mut self,
        draw: &mut Option<Draw>,
        from: Option<RootEntry>,
        target: &SignedGeneration,
        inline: Option<(RootHash, Vec<Frame>)>,
        source: &mut dyn Source,
        progress: &dyn Fn(StageProgress),
        cancel: &AtomicBool,
        distrusted: &HashSet<TreePath>,
        sync: Dir,
    ) -> Result<Staged, StageError> {
        let to = target.generation().root;
        let manifest = manifest::obtain(&self.record, from.as_ref(), &to, inline, source)?;
        let mut diff = manifest.diff;
        let mut update = manifest.update;
        let incoming = Incoming::open(&self.layout, self.owners)?;
        self.check_space(&diff, from.as_ref(), &incoming, cancel)?;
        self.salvage(&diff, &incoming)?;
        let base = match draw {
            Some(draw) => Base::Spare(draw.slot),
            None => self.base(from.as_ref(), distrusted, cancel)?,
        };
        let spare_miss = distrusted.is_empty() && matches!(base, Base::Building { farm: true, .. });
        if spare_miss {
            self.count_spare_miss();
        }
        if let Base::Building { holes, .. } = &base
            && !holes.is_empty()
        {
            tracing::warn!(paths = holes.len(), "live files are not what was activated: fetched again");
            self.fill_holes(&mut diff, holes, &to)?;
            // The update brings only what differs; the general path brings all.
            update = None;
        }
        let holes = match &base {
            Base::Building { holes, .. } => holes.iter().map(|(path, _)| path.clone()).collect(),
            Base::Spare(_) => HashSet::new(),
        };
        let mut plan = Plan::make(self, from.as_ref(), &diff, &incoming, distrusted, &holes)?;
        let fetched = plan.fetch(self, target.root_hash(), update, source, progress, cancel)?;
        if cancel.load(Ordering::Relaxed) {
            return Err(StageError::Cancelled);
        }
        let durable_basis = matches!(base, Base::Spare(_)) && diff.renamed_directories.is_empty();
        let (slot, signed) = match base {
            Base::Building { slot, .. } => (slot, None),
            Base::Spare(slot) => {
                let drawn = match draw.take() {
                    Some(drawn) => drawn,
                    None => self.draw(slot, target)?,
                };
                let (slot, signed) = self.take(drawn)?;
                (slot, Some(signed))
            }
        };
        let touched = Touched::by(&diff);
        let tree = self.layout.staging.open_dir(&building(slot))?;
        let patch = Patch { layout: &self.layout, owners: self.owners, slot, diff: &diff, to: &to };
        let placed = patch.run(tree, &mut plan.supply(self)?)?;
        drop(plan);
        incoming.clear(&self.layout)?;
        let inodes = inodes::inode_changes(&self.record, from.as_ref(), &to, &diff, &placed)?;
        let mut changed: Vec<TreePath> = diff.changes.iter().map(|c| c.path().clone()).collect();
        changed.dedup();
        Ok(Staged {
            target: target.clone(),
            slot: Some(slot),
            sync,
            changed,
            durable_basis,
            touched,
            signed,
            inodes,
            spare_miss,
            basis: self.live().map(|live| live.number().get()),
            fetched,
        })
    }

    fn check_space(
        &self,
        diff: &TreeDiff,
        from: Option<&RootEntry>,
        incoming: &Incoming,
        cancel: &AtomicBool,
    ) -> Result<(), StageError> {
        let space = self.layout.staging.space()?;
        let mut demand = space::Demand::of(diff, space.block_bytes);
        if let Some(from) = from
            && self.spares().is_empty()
            && self.buildings()?.is_empty()
        {
            demand.add_farm(from, space.block_bytes);
        }
        if demand.check(&space, space::Demand::default()).is_ok() {
            return Ok(());
        }
        // What interrupted attempts left of this target counts, what they left of others makes room.
        self.salvage(diff, incoming)?;
        incoming.purge(&space::contents(diff))?;
        if from.is_none() {
            for slot in self.buildings()? {
                self.layout.discard(&self.layout.staging, &building(slot))?;
            }
        }
        self.empty_trash(cancel)?;
        demand.check(&self.layout.staging.space()?, incoming.present()?)
    }

    /// Takes new files out of trees that an earlier attempt was interrupted in.
    fn salvage(&self, diff: &TreeDiff, incoming: &Incoming) -> Result<(), StageError> {
        for slot in self.buildings()? {
            let mut tree = cursor::DirCursor::new(self.layout.staging.open_dir(&building(slot))?);
            for change in &diff.changes {
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
        Ok(())
    }

    /// Adds to the diff what the base lacks though the manifests agree on it.
    fn fill_holes(
        &self,
        diff: &mut TreeDiff,
        holes: &[(TreePath, Entry)],
        to: &RootEntry,
    ) -> Result<(), StageError> {
        let mut changed: HashSet<TreePath> = diff.changes.iter().map(|c| c.path().clone()).collect();
        let mut manifest = ManifestCursor::new(&self.record, to)?;
        for (path, entry) in holes {
            let renamed = diff.renamed_directories.iter().find_map(|r| path.rebase(&r.from, &r.to));
            let path = renamed.unwrap_or_else(|| path.clone());
            if !changed.contains(&path) && manifest.entry(&path)?.as_ref() == Some(entry) {
                // What is put there changes the time of its directory, which then has to be set again.
                if let Some(parent) = path.parent()
                    && changed.insert(parent.clone())
                    && let Some(entry) = manifest.entry(&parent)?
                {
                    diff.changes.push(Change::Modified { path: parent, from: entry.clone(), to: entry });
                }
                diff.changes.push(Change::Added { path, entry: entry.clone() });
            }
        }
        // Stable: a removal stays before the addition at its path.
        diff.changes.sort_by(|a, b| a.path().cmp(b.path()));
        Ok(())
    }
}
