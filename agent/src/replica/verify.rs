//! Hashes the live tree again, reports drift, and heals it.
//!
//! Nothing is repaired in place. A new tree is staged in which every damaged name is replaced, and exchanged
//! atomically with the live one under the same number. Extra and changed files move to
//! [`crate::state::lost_found`]. The damaged tree rests for the grace period, and is then recycled.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::FileType;
use syncd_runtime::queue::{self, queue};
use syncd_shared::diff::DirectorySource;
use syncd_shared::directory::Cursor;
use syncd_shared::{
    ContentHash, Entry, Kind, Metadata, ObjectHash, Progress, RootEntry, RootHash, Totals, TreePath,
};

use crate::build::{Job, StageError};
use crate::replica::Replica;
use crate::replica::activate::ActivateError;
use crate::replica::inspect::{Found, Scope};
use crate::session::worker::DRIFT_SHOWN_MAX;
use crate::source::{Batches, FetchError, Frames, Source};
use crate::state::cursor::DirCursor;
use crate::state::disk::{Dir, DiskError, Stat};
use crate::state::hashing::hash_file;
use crate::state::record::{InodeChanges, Leaf, RecordError};
use crate::state::slot::Slot;
use crate::state::trees::Trees;
use crate::status;

/// Threads that hash.
const WORKERS_MAX: usize = 4;
/// Files that wait for these threads; each keeps its directory open.
const WAITING_FILES: usize = 32;

/// Kind of a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// The name is missing.
    Missing,
    /// No manifest has the name.
    Extra,
    /// The name is another kind of file.
    Kind,
    /// The content, or the target of a symlink, differs.
    Content,
    /// Mode, owner or time differ.
    Metadata,
    /// The file could not be read.
    Unreadable,
}

/// A path that differs from the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drift {
    pub path: TreePath,
    /// Kind of the difference.
    pub what: Damage,
}

/// Result of a check.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Files checked: all files of the manifest, including missing and damaged ones.
    pub files: u64,
    /// Bytes of these files, by the manifest.
    pub bytes: u64,
    /// Number of paths that differed.
    pub drifted: u64,
    /// Differences in path order, at most [`DRIFT_SHOWN_MAX`].
    pub drift: Vec<Drift>,
    /// Whether the live tree was replaced by a whole one.
    pub healed: bool,
    /// Directory of the extra and changed files that were kept.
    pub kept: Option<String>,
}

/// Result of a check, with the files that must not be linked again although their metadata is right.
#[derive(Default)]
struct Checked {
    report: VerifyReport,
    distrusted: HashSet<TreePath>,
}

/// Reason why a check did not complete.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// Nothing is live, or nothing is known about the live tree.
    #[error("no generation is live: run the agent until one is")]
    NothingLive,
    /// The record failed.
    #[error("read the manifest")]
    Record(#[from] RecordError),
    /// The live tree could not be read.
    #[error("read the live tree")]
    Disk(#[from] DiskError),
    /// The replacement tree could not be built.
    #[error("stage a whole tree")]
    Stage(#[from] StageError),
    /// The switch to the replacement tree failed.
    #[error("switch to the whole tree")]
    Activate(#[from] ActivateError),
    /// The agent stops.
    #[error("the check was cancelled")]
    Cancelled,
}

/// Source for verification without an origin: only what the node itself has.
struct NoSource;

impl Source for NoSource {
    fn update(&mut self, from: RootHash, _: RootHash) -> Result<Frames, FetchError> {
        Err(FetchError::UnknownRoot { root: from })
    }

    fn objects(&mut self, _: RootHash, _: Batches) -> Result<Frames, FetchError> {
        Err(FetchError::Disconnected(None))
    }
}

/// A file to be hashed.
struct FileJob {
    dir: Arc<Dir>,
    path: TreePath,
    entry: Entry,
}

/// Counts checked files, from any thread.
#[derive(Default)]
struct CheckedFiles {
    files: AtomicU64,
    bytes: AtomicU64,
}

impl CheckedFiles {
    fn add(&self, totals: Totals) {
        self.files.fetch_add(totals.files, Ordering::Relaxed);
        self.bytes.fetch_add(totals.bytes, Ordering::Relaxed);
    }
}

fn hash_files(
    waiting: queue::Waiting<FileJob>,
    found: &(dyn Fn(&TreePath, Damage) + Sync),
    checked_files: &CheckedFiles,
) {
    for job in waiting {
        let Kind::File { content, .. } = job.entry.kind else { continue };
        if let Some(what) = content_damage(&job, content) {
            found(&job.path, what);
        }
        checked_files.add(job.entry.totals());
    }
}

impl Replica {
    /// Records the current inodes of the live tree, which must have been verified.
    fn adopt_live_inodes(&mut self) -> Result<(), VerifyError> {
        let trees = self.slots.trees();
        let root = trees.live_root().ok_or(VerifyError::NothingLive)?;
        let mut inodes = InodeChanges { clear: true, ..InodeChanges::default() };
        let mut dirs = DirCursor::new(trees.open_live()?);
        let mut waiting = vec![(TreePath::root(), root.object)];
        while let Some((path, object)) = waiting.pop() {
            let dir = dirs.at(&path)?;
            let mut cursor = Cursor::new(&*trees.record, Some(object))?;
            while let Some((page, leaf, _)) = cursor.leaf()? {
                let mut list = Vec::new();
                for entry in leaf.entries() {
                    if let Kind::Directory { object, .. } = entry.kind {
                        let path = path.join(&entry.name).map_err(|source| StageError::Path { source })?;
                        waiting.push((path, object));
                        list.push(0);
                    } else {
                        list.push(dir.stat(entry.name.as_bytes())?.map_or(0, |s| s.inode));
                    }
                }
                inodes.put.push((Leaf { path: path.clone(), page }, list));
                cursor.skip_leaf();
            }
        }
        Ok(trees.record.set_inodes(&inodes)?)
    }

    /// Checks every byte and attribute of the live tree, and heals what it can. Without a source, it heals
    /// from what the node has elsewhere. Owners are checked only if this process may set them.
    pub fn verify(
        &mut self,
        source: Option<&mut dyn Source>,
        progress: &dyn Fn(Progress),
        cancel: &AtomicBool,
    ) -> Result<VerifyReport, VerifyError> {
        let Checked { mut report, distrusted } = self.check(progress, cancel)?;
        if report.drifted == 0 {
            if self.upkeep.damaged {
                // The content is right, but the inodes differ from the record: the tree was copied, or healed
                // just before a crash.
                self.adopt_live_inodes()?;
                self.upkeep.history.forget();
            }
            self.upkeep.damaged = false;
            self.upkeep.owner.differs = false;
            self.acknowledge_drift()?;
            self.was_verified(true)?;
            return Ok(report);
        }
        let mut nothing = NoSource;
        let without = source.is_none();
        let source = source.unwrap_or(&mut nothing);
        let healed = match self.heal(&distrusted, source, cancel) {
            Err(VerifyError::Stage(StageError::Fetch(FetchError::Disconnected(None)))) if without => None,
            healed => Some(healed?),
        };
        report.healed = healed.is_some();
        let given = healed.is_some() && std::mem::take(&mut self.upkeep.owner.differs);
        let metadata_only = report.drift.iter().all(|drift| drift.what == Damage::Metadata);
        if given && metadata_only && distrusted.is_empty() && matches!(healed, Some(None)) {
            // The owner is that of an earlier run, so nobody changed anything.
            self.was_verified(true)?;
            return Ok(report);
        }
        if report.healed {
            self.upkeep.healed = self.upkeep.healed.saturating_add(report.drifted);
        }
        let live = self.slots.live().map_or(0, |live| live.number().get());
        let found = healed.flatten().unwrap_or_default();
        let (kept, lost) = (found.kept_anywhere(self.slots.layout(), live), found.lost());
        report.kept = kept.clone();
        // The time of a directory also differs when a name in it was changed.
        let changed = report.drift.iter().find(|drift| drift.what != Damage::Metadata);
        let first = changed.or_else(|| report.drift.first());
        self.found_drift(status::Drift {
            generation: live,
            paths: report.drifted,
            first: first.map(|drift| status::shown(&drift.path)).unwrap_or_default(),
            kept,
            lost,
            live,
        })?;
        self.was_verified(report.healed)?;
        Ok(report)
    }

    fn check(&self, progress: &dyn Fn(Progress), cancel: &AtomicBool) -> Result<Checked, VerifyError> {
        let trees = self.slots.trees();
        let root = trees.live_root().ok_or(VerifyError::NothingLive)?;
        let dir = trees.open_live()?;
        let workers = syncd_runtime::threads::at_most(WORKERS_MAX);
        let checked_files = CheckedFiles::default();
        let checked = Mutex::new(Checked::default());
        let (sender, waiting) = queue::<FileJob>(WAITING_FILES);
        let found = |path: &TreePath, what| {
            let mut checked = checked.lock().unwrap_or_else(PoisonError::into_inner);
            checked.report.drifted += 1;
            if checked.report.drift.len() < DRIFT_SHOWN_MAX {
                checked.report.drift.push(Drift { path: path.clone(), what });
            }
            // Other kinds of damage show in the metadata.
            if matches!(what, Damage::Content | Damage::Unreadable) {
                checked.distrusted.insert(path.clone());
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..workers {
                let waiting = waiting.clone();
                let (found, checked_files) = (&found, &checked_files);
                scope.spawn(move || hash_files(waiting, found, checked_files));
            }
            // The walk must end when all workers have. The scope reports their panic.
            drop(waiting);
            let walk = Walk {
                trees: &trees,
                found: &found,
                checked_files: &checked_files,
                jobs: &sender,
                cancel,
                tick: &|| {
                    progress(Progress {
                        files_done: checked_files.files.load(Ordering::Relaxed),
                        files_total: root.totals.files,
                        bytes_done: checked_files.bytes.load(Ordering::Relaxed),
                        bytes_total: root.totals.bytes,
                    });
                },
            };
            let walked = walk.tree(dir, &root);
            drop(sender);
            walked
        })?;
        let mut checked = checked.into_inner().unwrap_or_else(PoisonError::into_inner);
        checked.report.drift.sort_by(|a, b| a.path.cmp(&b.path));
        checked.report.files = checked_files.files.into_inner();
        checked.report.bytes = checked_files.bytes.into_inner();
        Ok(checked)
    }

    fn heal(
        &mut self,
        distrusted: &HashSet<TreePath>,
        source: &mut dyn Source,
        cancel: &AtomicBool,
    ) -> Result<Option<Found>, VerifyError> {
        let live = self.slots.live().cloned().ok_or(VerifyError::NothingLive)?;
        let sync = self.slots.layout().staging.reopen().map_err(StageError::from)?;
        // The staged tree and the spares link the same inodes, so every name of them is checked again.
        self.slots.unstage();
        for slot in self.slots.spares().map(|(slot, _)| slot).collect::<Vec<_>>() {
            self.slots.open_up(slot).map_err(StageError::from)?;
        }
        let progress = |_: Progress| {};
        let job = Job { target: &live, progress: &progress, cancel };
        let staged = self.build(job, None, source, Some(distrusted), sync)?;
        let mut found = None;
        if let Some(slot) = staged.slot {
            // A web server may have cached what was wrong, and the process may end before anybody notes that.
            let state = self.root().join("state");
            crate::hooks::doubt(&state).map_err(|source| DiskError {
                doing: "note the healing in",
                path: state,
                source,
            })?;
            self.exchange(&staged, slot)?;
            found = self.keep_damaged(slot, distrusted).unwrap_or_else(|error| {
                // The tree is inspected again when its grace period is over.
                tracing::warn!(error = &error as &dyn std::error::Error, "damaged files were not kept");
                None
            });
        }
        // Trees retired earlier contain the damaged files as well.
        self.upkeep.history.forget();
        self.upkeep.damaged = false;
        self.publish();
        Ok(found)
    }

    /// Moves what was wrong out of the tree that was live. Names that its manifest has stay in place, for
    /// users that still have it open.
    fn keep_damaged(&self, slot: u64, distrusted: &HashSet<TreePath>) -> Result<Option<Found>, StageError> {
        let Some(Slot::Resting(tree)) = self.slots.state(slot).cloned() else { return Ok(None) };
        let dir = self.slots.open(slot)?;
        let (mut found, cancel) = (Found::default(), AtomicBool::new(false));
        if let Err(error) = self.look_through(tree, dir, Scope::Damaged(distrusted), &mut found, &cancel) {
            // The tree is inspected again when its grace period is over.
            tracing::warn!(error = &error as &dyn std::error::Error, "damaged files were not all kept");
        }
        Ok(Some(found).filter(|found| !found.is_nothing()))
    }
}

struct Walk<'a> {
    trees: &'a Trees,
    found: &'a dyn Fn(&TreePath, Damage),
    checked_files: &'a CheckedFiles,
    jobs: &'a std::sync::mpsc::SyncSender<FileJob>,
    cancel: &'a AtomicBool,
    tick: &'a dyn Fn(),
}

/// A directory still to be visited.
struct Waiting {
    path: TreePath,
    object: ObjectHash,
    metadata: Metadata,
    totals: Totals,
}

impl Walk<'_> {
    /// Visits every name of the tree. Directories that the manifest does not have are not entered.
    fn tree(&self, dir: Dir, root: &RootEntry) -> Result<(), VerifyError> {
        let mut dirs = DirCursor::new(dir);
        let RootEntry { object, metadata, totals } = *root;
        let mut waiting = vec![Waiting { path: TreePath::root(), object, metadata, totals }];
        while let Some(next) = waiting.pop() {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(VerifyError::Cancelled);
            }
            (self.tick)();
            match dirs.at(&next.path).cloned() {
                Ok(dir) => {
                    let first = waiting.len();
                    self.directory(&next, &dir, &mut waiting)?;
                    waiting[first..].reverse();
                }
                Err(_) => self.damaged(&next.path, next.totals, Damage::Unreadable),
            }
        }
        Ok(())
    }

    /// Reports a name. Its files in the manifest count as checked.
    fn damaged(&self, path: &TreePath, totals: Totals, what: Damage) {
        (self.found)(path, what);
        self.checked_files.add(totals);
    }

    fn has_metadata(&self, stat: &Stat, metadata: &Metadata) -> Result<(), Damage> {
        let has = stat.mtime == metadata.mtime && self.trees.owners.agree(stat, metadata);
        if has { Ok(()) } else { Err(Damage::Metadata) }
    }

    /// Checks the names of one directory, and adds its subdirectories to `waiting`.
    fn directory(
        &self,
        Waiting { path, object, metadata, .. }: &Waiting,
        dir: &Arc<Dir>,
        waiting: &mut Vec<Waiting>,
    ) -> Result<(), VerifyError> {
        let stat = dir.stat_self()?;
        self.has_metadata(&stat, metadata).unwrap_or_else(|damage| (self.found)(path, damage));
        let manifest = self.trees.record.directory(object)?;
        if self.strangers(path, dir, &manifest).is_err() {
            (self.found)(path, Damage::Unreadable);
        }
        for entry in manifest.entries() {
            let path = path.join(&entry.name).map_err(|source| StageError::Path { source })?;
            let name = entry.name.as_bytes();
            let stat = match dir.stat(name) {
                Ok(Some(stat)) => stat,
                Ok(None) => {
                    self.damaged(&path, entry.totals(), Damage::Missing);
                    continue;
                }
                Err(_) => {
                    self.damaged(&path, entry.totals(), Damage::Unreadable);
                    continue;
                }
            };
            match (&entry.kind, stat.kind) {
                (Kind::Directory { object, .. }, FileType::Directory) => {
                    let (object, metadata, totals) = (*object, entry.metadata, entry.totals());
                    waiting.push(Waiting { path, object, metadata, totals });
                }
                (Kind::File { size, .. }, FileType::RegularFile) if *size == stat.size => {
                    let metadata = self.has_metadata(&stat, &entry.metadata);
                    metadata.unwrap_or_else(|damage| (self.found)(&path, damage));
                    // If all workers have ended, the scope reports the reason.
                    let _ = self.jobs.send(FileJob { dir: dir.clone(), path, entry: entry.clone() });
                }
                (Kind::File { .. }, FileType::RegularFile) => {
                    self.damaged(&path, entry.totals(), Damage::Content);
                }
                (Kind::Symlink { .. } | Kind::Collected { .. }, FileType::Symlink) => {
                    let target = self.trees.layout.link_target(&entry.kind);
                    let damage = match dir.read_link(name) {
                        Err(_) => Some(Damage::Unreadable),
                        Ok(points_to) if Some(&*points_to) != target.as_deref() => Some(Damage::Content),
                        Ok(_) => self.has_metadata(&stat, &entry.metadata).err(),
                    };
                    damage.into_iter().for_each(|damage| (self.found)(&path, damage));
                }
                _ => self.damaged(&path, entry.totals(), Damage::Kind),
            }
        }
        Ok(())
    }

    fn strangers(
        &self,
        path: &TreePath,
        dir: &Dir,
        manifest: &syncd_shared::Directory,
    ) -> Result<(), DiskError> {
        for listed in dir.names()? {
            let Ok(name) = syncd_shared::Component::new(&listed?.name) else { continue };
            if manifest.get(&name).is_none() {
                let extra = path.join(&name).unwrap_or_else(|_| path.clone());
                (self.found)(&extra, Damage::Extra);
            }
        }
        Ok(())
    }
}

fn content_damage(job: &FileJob, expected: ContentHash) -> Option<Damage> {
    let Ok(file) = job.dir.open_file(job.entry.name.as_bytes()) else { return Some(Damage::Unreadable) };
    crate::state::disk::drop_cached(&file);
    match hash_file(&file) {
        Ok(actual) if actual == expected => None,
        Ok(_) => Some(Damage::Content),
        Err(_) => Some(Damage::Unreadable),
    }
}
