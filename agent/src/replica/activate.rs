//! Makes a staged generation live.
//!
//! Order: (descriptor for the sync opened before the first write, staged, verified) -> hook -> the root of
//! the tree gets its metadata -> the new links under their temporary names -> `syncfs`, or a sync of each of
//! a few paths -> one commit of the record: what the slot holds, live, accepted -> links renamed over
//! `previous` and `live` -> ROOT synced -> reported.
//!
//! The tree keeps its path. A crash before the commit leaves the old generation. A crash after it is rolled
//! forward when the replica is opened. If the sync fails, the staged tree is discarded: pages that could not
//! be written are marked clean, so a second sync would succeed without them.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;

use rustix::fs::FileType;
use syncd_proto::v1::RetryClass;
use syncd_shared::diff::{Change, Comparison, DiffError, PartLimits};
use syncd_shared::generation::GenerationError;
use syncd_shared::manifest_cursor::ManifestCursor;
use syncd_shared::{Entry, RootEntry, SignedGeneration, Timestamp, TreePath};

use crate::build::{StageError, Staged};
use crate::replica::Replica;
use crate::session::worker::Changes;
use crate::state::SlotError;
use crate::state::disk::DiskError;
use crate::state::history::Touched;
use crate::state::record::{Record, RecordError};
use crate::state::slot::Slot;
use crate::state::slots::Switch;
use crate::test_faults::{self, Bug};

/// Number of changed paths up to which each is synced separately.
const SYNC_EACH_MAX: usize = 48;

/// Reason why a hook failed.
pub type HookFailure = Box<dyn std::error::Error + Send + Sync>;

/// Description of an activation for a hook.
#[derive(Debug)]
pub struct ActivationContext<'a> {
    /// The generation to activate.
    pub target: &'a SignedGeneration,
    /// The live generation.
    pub previous: Option<&'a SignedGeneration>,
    /// Paths that differ between them.
    pub changed_paths: ChangedPaths<'a>,
    /// Paths that differ from what the slot served, as far as a web server may have cached them.
    pub slot_paths: SlotPaths<'a>,
    /// Path of the staged tree.
    pub staged_tree: PathBuf,
    /// Path of the tree once it is live.
    pub live_tree: PathBuf,
}

/// Files and symlinks at which the manifests of two generations differ, read on demand.
#[derive(Debug)]
pub struct ChangedPaths<'a> {
    record: &'a Record,
    from: RootEntry,
    to: RootEntry,
    part: PartLimits,
}

impl<'a> ChangedPaths<'a> {
    /// Every path of a tree.
    pub(super) fn everything(record: &'a Record, to: RootEntry, part: PartLimits) -> Self {
        Self { record, from: RootEntry::empty(), to, part }
    }

    /// Shows each file and symlink once, in path order, deletions included. One below a renamed directory is
    /// shown under both names.
    pub fn each(&self, show: &mut dyn FnMut(&TreePath)) -> Result<(), DiffError<RecordError>> {
        Comparison::of(self.record, &self.from, &self.to, self.part)?.each_leaf(show)
    }
}

/// Paths of files and symlinks at which a slot's new tree differs from those that were served under its path
/// since the on-activate hook last succeeded for it. Read on demand.
#[derive(Debug)]
pub struct SlotPaths<'a> {
    record: &'a Record,
    served: &'a [RootEntry],
    to: RootEntry,
    part: PartLimits,
}

impl SlotPaths<'_> {
    /// Shows each path, including removed ones; some are shown more than once. Shows none if it is unknown
    /// what was served.
    pub fn each(&self, show: &mut dyn FnMut(&TreePath)) -> Result<(), DiffError<RecordError>> {
        self.served.iter().try_for_each(|from| {
            Comparison::of(self.record, from, &self.to, self.part)?.each_leaf(&mut *show)
        })
    }
}

/// Reason why a staged generation is not live.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The hook refused. The tree stays staged.
    #[error("the hook before activation of generation {} failed", staged.target.number())]
    Hook {
        /// Error of the hook.
        #[source]
        source: HookFailure,
        /// The staged tree, for a retry.
        staged: Box<Staged>,
    },
    /// Another generation became live since staging: stage again.
    #[error("generation {number} was staged on another live generation")]
    Outdated {
        /// Number of the generation.
        number: u64,
    },
    /// The tree at hand was changed since staging: stage again.
    #[error("the tree at hand of generation {number} was changed locally after it was staged")]
    Changed {
        /// Number of the generation.
        number: u64,
    },
    /// The tree at hand could not be read.
    #[error("check the tree at hand of generation {number} before the switch")]
    Unproven {
        /// Number of the generation.
        number: u64,
        /// Reason.
        #[source]
        source: Box<StageError>,
    },
    /// The generation may not follow the accepted one.
    #[error("refuse generation")]
    Refused(#[from] GenerationError),
    /// The kernel could not write the staged tree, which was discarded.
    #[error("make generation {number} durable")]
    Sync {
        /// Number of the generation.
        number: u64,
        /// Error of the kernel.
        #[source]
        source: DiskError,
    },
    /// A system call failed.
    #[error("switch to the staged generation")]
    Disk(#[from] DiskError),
    /// The record failed. The replica has to be reopened.
    #[error("record the activation")]
    Record(#[from] RecordError),
}

impl From<SlotError> for ActivateError {
    fn from(error: SlotError) -> Self {
        match error {
            SlotError::Disk(e) => e.into(),
            SlotError::Record(e) => e.into(),
        }
    }
}

impl ActivateError {
    /// How the origin and the caller should react to the error.
    pub fn retry_class(&self) -> RetryClass {
        match self {
            Self::Refused(_) => RetryClass::Operator,
            Self::Disk(e) if e.is_full() => RetryClass::Operator,
            Self::Sync { source, .. } if source.is_full() => RetryClass::Operator,
            Self::Record(_) => RetryClass::Operator,
            Self::Unproven { source, .. } => source.retry_class(),
            Self::Hook { .. }
            | Self::Outdated { .. }
            | Self::Changed { .. }
            | Self::Disk(_)
            | Self::Sync { .. } => RetryClass::Retry,
        }
    }
}

impl Replica {
    /// Makes a staged generation live, durably. Not cancellable. Calls `before` once everything is verified;
    /// its error keeps the old generation live.
    pub fn activate(
        &mut self,
        mut staged: Staged,
        before: &mut dyn FnMut(&ActivationContext<'_>) -> Result<(), HookFailure>,
    ) -> Result<(), ActivateError> {
        let number = staged.target.number().get();
        if !staged.is_return {
            // A return was allowed when it was staged.
            self.slots.may_activate(&staged.target)?;
        }
        let Some(slot) = staged.slot else {
            return Ok(());
        };
        let live = self.slots.live().map(|live| live.number().get());
        if staged.basis != live || !self.is_ready(&staged, slot) {
            return Err(ActivateError::Outdated { number });
        }
        if self.slots.live_slot() == Some(slot) {
            return self.rename_live(&staged.target);
        }
        if let Err(source) = before(&self.context(&staged, slot)) {
            return Err(ActivateError::Hook { source, staged: Box::new(staged) });
        }
        if staged.is_held {
            self.prove_again(&mut staged, slot)?;
        }
        self.upkeep.last_write = Some(self.options.clock.now());
        self.upkeep.trash.owes_share = true;
        let previous = self.slots.live().cloned();
        let switched = self.switch(&mut staged, slot);
        if switched.is_err() {
            // The record may already have the switch: recovery then completes it.
            self.slots.unsettle();
        }
        let revealed = switched?;
        // A number that was live before would have a second tree.
        let is_one_tree = staged.is_held || !self.upkeep.history.knows(number);
        let is_only_tree = self.slots.held().count() == 1 && self.slots.former().next().is_none();
        let history = &mut self.upkeep.history;
        match &previous {
            Some(previous) => {
                let touched = staged.touched.take().filter(|_| is_one_tree);
                let finished = Some(staged.proven.unwrap_or(revealed));
                history.add(previous.number().get(), number, finished, touched);
            }
            None => {
                history.forget();
                if is_only_tree {
                    // No generation has the number 0.
                    history.add(0, number, Some(revealed), Some(Touched::default()));
                }
            }
        }
        self.upkeep.damaged = false;
        self.publish();
        Ok(())
    }

    /// Whether the tree of a staged generation is still what was staged.
    fn is_ready(&self, staged: &Staged, slot: u64) -> bool {
        match self.slots.state(slot) {
            Some(Slot::Staged) => !staged.is_held,
            Some(Slot::Held(held)) => {
                staged.is_held && held.generation().root == staged.target.generation().root
            }
            _ => false,
        }
    }

    /// Gives the live tree, which has the target's root, the target's number. Nothing is switched, and no
    /// hook is due for it.
    fn rename_live(&mut self, target: &SignedGeneration) -> Result<(), ActivateError> {
        let before = self.slots.live().map_or(0, |live| live.number().get());
        if let Err(error) = self.slots.rename_live(target) {
            self.slots.unsettle();
            return Err(error.into());
        }
        let finished = self.upkeep.history.finished(before);
        self.upkeep.history.add(before, target.number().get(), finished, Some(Touched::default()));
        self.publish();
        Ok(())
    }

    fn context<'a>(&'a self, staged: &'a Staged, slot: u64) -> ActivationContext<'a> {
        let (record, part) = (&**self.slots.record(), self.options.part);
        let (live, to) = (self.slots.live(), staged.target.generation().root);
        let from = live.map_or_else(RootEntry::empty, |live| live.generation().root);
        let landing = self.slots.landing(slot);
        let served = self.slots.served(landing).unwrap_or_default();
        ActivationContext {
            target: &staged.target,
            previous: live,
            changed_paths: ChangedPaths { record, from, to, part },
            slot_paths: SlotPaths { record, served, to, part },
            staged_tree: self.slots.path(slot),
            live_tree: self.slots.path(landing),
        }
    }

    /// Counts the differences between two generations in the record. Without an earlier one everything is
    /// new.
    pub(crate) fn changes_between(
        &self,
        previous: Option<&SignedGeneration>,
        live: &SignedGeneration,
    ) -> Result<Changes, DiffError<RecordError>> {
        let to = live.generation().root;
        let Some(previous) = previous else {
            let (added, bytes) = (to.totals.entries, to.totals.bytes);
            return Ok(Changes { added, bytes, ..Changes::default() });
        };
        let record = &**self.slots.record();
        let comparison = Comparison::of(record, &previous.generation().root, &to, self.options.part)?;
        let mut changes = Changes::default();
        let moved_from: HashSet<&TreePath> =
            comparison.renamed_directories().iter().map(|moved| &moved.from).collect();
        let bytes = |entry: &Entry| if entry.is_directory() { 0 } else { entry.totals().bytes };
        comparison.each(|change| {
            match change {
                Change::Added { entry, .. } => {
                    changes.added += 1;
                    changes.bytes += bytes(entry);
                }
                // A directory that moved as a whole is one addition.
                Change::Removed { path, .. } if moved_from.contains(path) => {}
                Change::Removed { .. } => changes.removed += 1,
                Change::Modified { to, .. } => {
                    changes.changed += 1;
                    changes.bytes += bytes(to);
                }
            }
            true
        })?;
        Ok(changes)
    }

    /// Switches to the tree. Returns the time of its last change before anybody could enter it.
    fn switch(&mut self, staged: &mut Staged, slot: u64) -> Result<Timestamp, ActivateError> {
        let number = staged.target.number().get();
        let outlived = self.outlived_spares(staged)?;
        if staged.is_held {
            staged.signed = Some(self.slots.keep_signed(slot, &staged.target)?);
        }
        if staged.signed.is_none() {
            // Synced with the tree: only a tree built on a spare is synced path by path.
            self.slots.write_signed(slot, &staged.target)?;
        }
        let finished = self.slots.reveal(slot, &staged.target.generation().root)?;
        let durable = match test_faults::has(Bug::SwapFirst) {
            true => Ok(()),
            false => self.make_durable(staged, slot),
        };
        if let Err(source) = durable {
            self.distrust_staged()?;
            return Err(ActivateError::Sync { number, source });
        }
        let on_trial = self.options.checks && !staged.is_return;
        let switch =
            Switch { slot, target: &staged.target, inodes: &staged.inodes, outlived: &outlived, on_trial };
        self.slots.prepare_switch(&switch)?;
        self.slots.commit_switch(&switch)?;
        self.slots.finish_switch(&switch, self.options.clock.now())?;
        if test_faults::has(Bug::SwapFirst) {
            self.make_durable(staged, slot)?;
        }
        Ok(finished)
    }

    /// Spares at an older root that have, under a changed name, the same entry as the target, but another
    /// inode. For these, the differences between manifests no longer describe the differences between trees.
    fn outlived_spares(&self, staged: &Staged) -> Result<Vec<u64>, RecordError> {
        if staged.is_held {
            // It may have the same entries under other inodes.
            return Ok(self.slots.spares().map(|(slot, _)| slot).collect());
        }
        let from = self.slots.live().map(|live| live.generation().root);
        let behind = self.slots.spares().filter(|(_, root)| Some(**root) != from);
        let mut outlived = Vec::new();
        for (slot, root) in behind {
            // Directories that were renamed whole, and very many changes, are not examined.
            if staged.touched.is_none() || self.came_back(staged, root)? {
                outlived.push(slot);
            }
        }
        Ok(outlived)
    }

    /// Whether a tree has one of the changed names as the target has it.
    fn came_back(&self, staged: &Staged, root: &RootEntry) -> Result<bool, RecordError> {
        let record = &**self.slots.record();
        let mut before = ManifestCursor::new(record, root)?;
        let mut after = ManifestCursor::new(record, &staged.target.generation().root)?;
        for path in staged.changed.iter().flatten() {
            let entry = after.entry(path)?.filter(|entry| !entry.is_directory());
            if entry.is_some() && before.entry(path)? == entry {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Makes the tree of a slot durable, with its signed record. If only a few paths of a spare changed, each
    /// is synced: `syncfs` would also wait for writes of everybody else on the file system.
    fn make_durable(&self, staged: &mut Staged, slot: u64) -> Result<(), DiskError> {
        let is_kept = staged.signed.is_some();
        staged.signed.take().unwrap_or_default().wait()?;
        let few = staged.changed.as_deref().filter(|changed| changed.len() <= SYNC_EACH_MAX);
        let Some(changed) = few.filter(|_| staged.durable_basis && is_kept) else {
            return staged.sync.sync_file_system();
        };
        let tree = self.slots.open(slot)?;
        let open = |path: &TreePath| match path.is_root() {
            true => tree.reopen(),
            false => tree.open_dir(path.as_bytes()),
        };
        let mut directories = BTreeSet::from([TreePath::root()]);
        for path in changed {
            let Some((parent, name)) = path.split_last() else { continue };
            match open(&parent) {
                Ok(directory) => match directory.stat(name.as_bytes())?.map(|stat| stat.kind) {
                    Some(FileType::RegularFile) => directory.sync_file(name.as_bytes())?,
                    Some(FileType::Directory) => directories.extend([path.clone()]),
                    // For symlinks and removed names, syncing the directory is enough.
                    _ => {}
                },
                // The directory was removed as well: the nearest existing one is synced.
                Err(e) if e.is_no_directory() => {}
                Err(e) => return Err(e),
            }
            directories.insert(parent);
        }
        // Deepest first, so that nothing durable refers to something that is not.
        for path in directories.iter().rev() {
            match open(path) {
                Ok(directory) => directory.sync_names()?,
                Err(e) if e.is_no_directory() => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Exchanges a tree with the live tree of the same number. The former live tree rests in the other slot.
    pub(crate) fn exchange(&mut self, staged: &Staged, slot: u64) -> Result<(), ActivateError> {
        let number = staged.target.number().get();
        self.slots.reveal(slot, &staged.target.generation().root)?;
        if let Err(source) = staged.sync.sync_file_system() {
            self.distrust_staged()?;
            return Err(ActivateError::Sync { number, source });
        }
        let exchanged = self.slots.exchange(slot, &staged.inodes, self.options.clock.now());
        if exchanged.is_err() {
            self.slots.unsettle();
        }
        Ok(exchanged?)
    }

    /// Discards everything that was written for an activation and not synced.
    fn distrust_staged(&mut self) -> Result<(), SlotError> {
        self.slots.unstage();
        for slot in self.slots.buildings().into_iter().chain(self.slots.partials()) {
            self.slots.discard(slot)?;
        }
        let layout = self.slots.layout();
        Ok(layout.discard(&layout.staging, crate::state::layout::INCOMING)?)
    }
}
