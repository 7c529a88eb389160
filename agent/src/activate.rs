//! Makes a staged generation live.
//!
//! Order: (descriptor for the sync opened before the first write, staged, verified) -> hook -> rename into
//! `generations/N` -> the new link under its temporary name -> `syncfs`, or each of a few paths -> record and accepted generation durable ->
//! link renamed over `live` -> ROOT synced -> reported. A crash before the record's commit leaves the old generation, a
//! crash after it is rolled forward when the replica is opened. An error of the sync throws away what was staged:
//! pages that could not be written are clean afterwards, and a second sync would succeed without them.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::FileType;
use syncd_proto::v1::RetryClass;
use syncd_shared::diff::{Change, Comparison, DiffError, PartLimits};
use syncd_shared::generation::GenerationError;
use syncd_shared::manifest_cursor::ManifestCursor;
use syncd_shared::{Entry, RootEntry, SignedGeneration, Timestamp, TreePath};

use crate::disk::DiskError;
use crate::planted::{self, Bug};
use crate::record::{Record, RecordError, RetiredTree, encode_generation};
use crate::replica::Replica;
use crate::session::worker::Changes;
use crate::stage::draw::Syncing;
use crate::stage::{Staged, building, partial, resting};

/// Up to this many changed paths are synced one by one.
const SYNC_EACH_MAX: usize = 48;

/// Why a hook failed.
pub type HookFailure = Box<dyn std::error::Error + Send + Sync>;

/// What a hook is told before activation.
#[derive(Debug)]
pub struct ActivationContext<'a> {
    /// What is about to be live.
    pub target: &'a SignedGeneration,
    /// What is live.
    pub previous: Option<&'a SignedGeneration>,
    /// Paths that differ.
    pub changed_paths: ChangedPaths<'a>,
    /// Where the staged tree is, for checks.
    pub staged_tree: PathBuf,
}

/// Paths at which the manifests of what is live and of what is about to be differ, read when they are asked for.
#[derive(Debug)]
pub struct ChangedPaths<'a> {
    record: &'a Record,
    from: RootEntry,
    to: RootEntry,
    part: PartLimits,
}

impl ChangedPaths<'_> {
    /// Shows each once, in path order. A directory that is renamed whole is shown under both names, and not what is in it.
    pub fn each(&self, show: &mut dyn FnMut(&TreePath)) -> Result<(), DiffError<RecordError>> {
        let mut last = None;
        Comparison::of(self.record, &self.from, &self.to, self.part)?.each(|change| {
            let path = change.path();
            if last.as_ref() != Some(path) {
                show(path);
                last = Some(path.clone());
            }
            true
        })
    }
}

/// What was activated.
#[derive(Debug, Clone)]
pub struct Activated {
    /// What is live now.
    pub generation: SignedGeneration,
    /// What was live before.
    pub previous: Option<SignedGeneration>,
    /// No spare had been ready.
    pub spare_miss: bool,
}

/// Why a staged generation is not live.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The hook said no. The tree stays staged.
    #[error("the hook before activation of generation {} failed", staged.target.number())]
    Hook {
        /// What it said.
        #[source]
        source: HookFailure,
        /// To try again.
        staged: Box<Staged>,
    },
    /// Another generation became live since it was staged: stage again.
    #[error("generation {number} was staged on another live generation")]
    Outdated {
        /// Its number.
        number: u64,
    },
    /// It may not follow the accepted generation.
    #[error("refuse generation")]
    Refused(#[from] GenerationError),
    /// The kernel could not write what was staged; it was thrown away.
    #[error("make generation {number} durable")]
    Sync {
        /// Its number.
        number: u64,
        /// What the kernel said.
        #[source]
        source: DiskError,
    },
    /// A system call failed.
    #[error("switch to the staged generation")]
    Disk(#[from] DiskError),
    /// The record failed. Open the replica again.
    #[error("record the activation")]
    Record(#[from] RecordError),
}

impl ActivateError {
    /// What the origin and the caller are to make of it.
    pub fn retry_class(&self) -> RetryClass {
        match self {
            Self::Refused(_) => RetryClass::Operator,
            Self::Disk(e) if e.is_full() => RetryClass::Operator,
            Self::Sync { source, .. } if source.is_full() => RetryClass::Operator,
            Self::Record(_) => RetryClass::Operator,
            Self::Hook { .. } | Self::Outdated { .. } | Self::Disk(_) | Self::Sync { .. } => {
                RetryClass::Retry
            }
        }
    }
}

impl Replica {
    /// Makes a staged generation live; durable when this returns. Not cancellable. `before` is called once everything is
    /// verified; its error keeps the old generation live.
    pub fn activate(
        &mut self,
        mut staged: Staged,
        before: &mut dyn FnMut(&ActivationContext<'_>) -> Result<(), HookFailure>,
    ) -> Result<Activated, ActivateError> {
        let number = staged.target.number().get();
        staged.target.may_follow(self.accepted())?;
        let Some(slot) = staged.slot else {
            return Ok(self.activated(staged, None));
        };
        let tree = building(slot);
        if staged.basis != self.known.live || self.layout.staging.stat(&tree)?.is_none() {
            return Err(ActivateError::Outdated { number });
        }
        let context = ActivationContext {
            target: &staged.target,
            previous: self.live(),
            changed_paths: ChangedPaths {
                record: &self.record,
                from: self.live().map_or_else(RootEntry::empty, |live| live.generation().root),
                to: staged.target.generation().root,
                part: self.options.part,
            },
            staged_tree: self.layout.staging.path().join(format!("building-{slot}")),
        };
        if let Err(source) = before(&context) {
            return Err(ActivateError::Hook { source, staged: Box::new(staged) });
        }
        self.upkeep.last_write = Some(self.options.clock.now());
        self.upkeep.owes_share = true;
        if staged.signed.is_none() {
            self.keep_signed(&staged.target)?;
        }
        let name = number.to_string();
        let finished = if self.layout.live_number()? == Some(number)
            && self.layout.generations.stat(name.as_bytes())?.is_some()
        {
            // A tree of this number is served although the record knows nothing of it.
            self.exchange(&staged, slot)?;
            None
        } else {
            let switched = self.switch(&mut staged, slot);
            // The record may have it already: recovery then finishes the switch.
            self.upkeep.unsettled |= switched.is_err();
            switched?
        };
        let previous = self.live().cloned();
        self.known.generations.insert(number, staged.target.clone());
        self.known.live = Some(number);
        self.known.accepted_generation = Some(staged.target.clone());
        match &previous {
            Some(previous) => {
                let from = previous.number().get();
                self.upkeep.steps.add(from, number, finished, staged.touched.take());
            }
            None => self.upkeep.steps.forget(),
        }
        if let Some(previous) = &previous {
            self.upkeep.retired.insert(previous.number().get(), self.options.clock.now());
        }
        self.upkeep.damaged = false;
        self.publish();
        Ok(self.activated(staged, previous))
    }

    /// What differs between two generations that the record has. Without an earlier one everything is new.
    pub(crate) fn changes_between(
        &self,
        previous: Option<&SignedGeneration>,
        live: &SignedGeneration,
    ) -> Result<Changes, DiffError<RecordError>> {
        let to = live.generation().root;
        let Some(previous) = previous else {
            let (added, bytes) = (to.totals.files, to.totals.bytes);
            return Ok(Changes { added, bytes, ..Changes::default() });
        };
        let record = &*self.record;
        let comparison = Comparison::of(record, &previous.generation().root, &to, self.options.part)?;
        let mut changes = Changes::default();
        comparison.each(|change| {
            // Of a directory that moved as a whole the files are counted, of others each comes by itself.
            let files = |path: &TreePath, entry: &Entry| match entry.is_directory() {
                false => 1,
                true => {
                    let moved = comparison.renamed_directories().iter();
                    let mut moved = moved.filter(|moved| moved.from == *path || moved.to == *path);
                    moved.next().map_or(0, |_| entry.totals().files)
                }
            };
            match change {
                Change::Added { path, entry } => {
                    changes.added += files(path, entry);
                    changes.bytes += if entry.is_directory() { 0 } else { entry.totals().bytes };
                }
                Change::Removed { path, entry } => changes.removed += files(path, entry),
                Change::Modified { to, .. } if !to.is_directory() => {
                    changes.changed += 1;
                    changes.bytes += to.totals().bytes;
                }
                Change::Modified { .. } => {}
            }
            true
        })?;
        Ok(changes)
    }

    fn activated(&self, staged: Staged, previous: Option<SignedGeneration>) -> Activated {
        Activated { previous, spare_miss: staged.spare_miss, generation: staged.target }
    }

    /// When the tree was changed last, before anybody could reach it.
    fn switch(&mut self, staged: &mut Staged, slot: u64) -> Result<Option<Timestamp>, ActivateError> {
        let number = staged.target.number().get();
        let name = number.to_string().into_bytes();
        let outlived = self.outlived_spares(staged)?;
        let Self { layout, .. } = &*self;
        // What an activation that failed left.
        layout.discard(&layout.generations, &name)?;
        layout.staging.rename_new(&building(slot), &layout.generations, &name)?;
        let finished = layout.generations.stat(&name)?.map(|stat| stat.ctime);
        layout.prepare_link(number)?;
        if planted::has(Bug::SwapFirst) {
            layout.switch_link()?;
            layout.prepare_link(number)?;
        }
        if let Err(source) = self.make_durable(staged) {
            layout.discard(&layout.generations, &name)?;
            self.distrust_staging()?;
            return Err(ActivateError::Sync { number, source });
        }
        self.record.activate(Some(&staged.target), &staged.inodes, &outlived)?;
        outlived.into_iter().for_each(|slot| self.forget_spare(slot));
        self.layout.switch_link()?;
        Ok(finished)
    }

    /// Spares that were left behind and have, under a name that this activation changes, what the target has there, in
    /// another inode: what differs between the manifests no longer says what differs between the trees.
    fn outlived_spares(&self, staged: &Staged) -> Result<Vec<u64>, RecordError> {
        let from = self.live().map(|live| live.generation().root);
        let behind = self.known.spares.iter().filter(|(_, root)| Some(**root) != from);
        let mut outlived = Vec::new();
        for (slot, root) in behind {
            // Directories that moved as a whole are not looked into, nor are very many changes.
            if staged.touched.is_none() || self.came_back(staged, root)? {
                outlived.push(*slot);
            }
        }
        Ok(outlived)
    }

    /// Whether a tree has one of the changed names as the target has it.
    fn came_back(&self, staged: &Staged, root: &RootEntry) -> Result<bool, RecordError> {
        let record = &*self.record;
        let mut before = ManifestCursor::new(record, root)?;
        let mut after = ManifestCursor::new(record, &staged.target.generation().root)?;
        for path in staged.changed.iter().flatten() {
            let Some((parent, name)) = path.split_last() else { continue };
            let (Some((_, before)), Some((_, after))) =
                (before.directory(&parent)?, after.directory(&parent)?)
            else {
                continue;
            };
            let entry = after.get(&name).filter(|entry| !entry.is_directory());
            if entry.is_some() && before.get(&name) == entry {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Makes `generations/N` durable, with its name and its signed record. Where only a few paths of a spare changed they
    /// are synced one by one: `syncfs` also waits for what everybody else on the file system has written.
    fn make_durable(&self, staged: &mut Staged) -> Result<(), DiskError> {
        let signed = staged.signed.take();
        let few = staged.changed.as_deref().filter(|changed| changed.len() <= SYNC_EACH_MAX);
        let Some(changed) = few.filter(|_| staged.durable_basis) else {
            signed.map_or(Ok(()), Syncing::wait)?;
            return staged.sync.sync_file_system();
        };
        let number = staged.target.number().to_string().into_bytes();
        let Self { layout, .. } = self;
        let tree = layout.generations.open_dir(&number)?;
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
                    // Symlinks and what is gone are a matter of the directory alone.
                    _ => {}
                },
                // Gone with it: a matter of the nearest directory that is not.
                Err(e) if e.is_no_directory() => {}
                Err(e) => return Err(e),
            }
            directories.insert(parent);
        }
        // Deepest first, so that nothing durable leads to what is not.
        for path in directories.iter().rev() {
            match open(path) {
                Ok(directory) => directory.sync_names()?,
                Err(e) if e.is_no_directory() => {}
                Err(e) => return Err(e),
            }
        }
        match signed {
            Some(signed) => signed.wait()?,
            None => {
                layout.signed.sync_file(&number)?;
                layout.signed.sync_names()?;
            }
        }
        layout.staging.sync_names()?;
        layout.generations.sync_names()
    }

    /// Puts a tree in the place of the live tree of the same number. What was there rests in staging.
    pub(crate) fn exchange(&mut self, staged: &Staged, slot: u64) -> Result<(), ActivateError> {
        let number = staged.target.number().get();
        if let Err(source) = staged.sync.sync_file_system() {
            self.distrust_staging()?;
            return Err(ActivateError::Sync { number, source });
        }
        let exchanged = self.exchange_synced(staged, slot);
        self.upkeep.unsettled |= exchanged.is_err();
        exchanged
    }

    fn exchange_synced(&mut self, staged: &Staged, slot: u64) -> Result<(), ActivateError> {
        let number = staged.target.number().get();
        let layout = &self.layout;
        let resting = resting(slot);
        // Recorded and named before it is exchanged: what is under this name is never taken for anything but a tree in use.
        let before = self.known.generations.get(&number).map(|g| g.generation().root);
        let before = before.map(|root| RetiredTree { number, root });
        if before.is_some() {
            self.record.set_retired(slot, before.as_ref())?;
        }
        layout.staging.rename_new(&building(slot), &layout.staging, &resting)?;
        layout.staging.exchange(&resting, &layout.generations, number.to_string().as_bytes())?;
        layout.generations.sync_names()?;
        layout.staging.sync_names()?;
        self.upkeep.resting.insert(slot, self.options.clock.now());
        self.known.retired.extend(before.map(|tree| (slot, tree)));
        let spares: Vec<u64> = self.known.spares.keys().copied().collect();
        self.record.activate(Some(&staged.target), &staged.inodes, &spares)?;
        spares.into_iter().for_each(|slot| self.forget_spare(slot));
        Ok(())
    }

    /// Throws away everything that was written for an activation and not synced.
    fn distrust_staging(&mut self) -> Result<(), DiskError> {
        for slot in self.buildings()? {
            self.layout.discard(&self.layout.staging, &building(slot))?;
        }
        for slot in self.partials()? {
            self.layout.discard(&self.layout.staging, &partial(slot))?;
        }
        self.layout.discard(&self.layout.staging, crate::layout::INCOMING)
    }

    /// Keeps a copy of the signed record beside the record. Durable with the next sync of it.
    pub(crate) fn keep_signed(&self, generation: &SignedGeneration) -> Result<(), DiskError> {
        let name = generation.number().to_string().into_bytes();
        let signed = &self.layout.signed;
        signed.unlink(&name)?;
        let file = signed.create_file(&name)?;
        file.write_all_at(&encode_generation(generation), 0).map_err(|source| DiskError {
            doing: "write",
            path: signed.path().join(generation.number().to_string()),
            source,
        })
    }
}
