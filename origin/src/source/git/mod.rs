//! A git repository as the source of trees: the commit that a reference leads to, never uncommitted files.
//!
//! ```text
//!   reference ──moved──> commit ──> times: what was touched since the last one (`times`)
//!                                    └──> build: touched names to directory objects, blobs to contents
//! ```
//!
//! **State.** `record` says which commit the base is, in the transaction that keeps the base. **After a
//! crash** the reference is read again, and whatever the record does not cover is looked at. Objects never
//! change, so that nothing here is racy, open or withheld.

mod build;
mod error;
mod record;
mod reference_watch;
mod repository;
mod times;

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::{Duration, Instant};

use syncd_shared::{RootEntry, TreePath};

use super::{Changes, Found, OpenFile, Snapshot, SnapshotFate, SnapshotJob, TreeSource};
use crate::scan::{ScanError, Withheld, guard};
use crate::tree_objects::TreeObjects;
use build::{Base, Build, Times};
pub use error::GitError;
use record::Record;
use reference_watch::ReferenceWatch;
use repository::{Commit, Id, ItemKind, Repository};
use syncd_shared::ignore_rules::IGNORE_FILE;
use times::Histories;

/// Options of a git repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitOptions {
    /// Name of the reference, in full or as git completes it.
    pub reference: String,
    pub mtime: Mtime,
    pub submodules: Submodules,
    pub lfs: Lfs,
}

/// Source of modification times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Mtime {
    /// The time of the last commit that changed the path.
    #[default]
    FileCommit,
    /// The time of the published commit, for every path. Each commit then changes every file's time.
    Commit,
}

/// Fate of submodules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Submodules {
    /// A submodule makes publishing fail.
    #[default]
    Refuse,
    /// Submodules are left out.
    Ignore,
}

/// Fate of pointers of git-lfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Lfs {
    /// A pointer makes publishing fail.
    #[default]
    Refuse,
    /// The pointer is published as a file.
    Pointer,
}

/// Looks up a path in the commit of `options.reference`. A submodule counts as nothing.
pub(super) fn look(repository: &Path, options: &GitOptions, path: &TreePath) -> Result<Found, GitError> {
    let repository = Repository::open(repository)?;
    let mut tree = repository.commit(repository.resolve(&options.reference)?)?.tree;
    let mut found = Found::Directory { is_empty: repository.tree(tree)?.is_empty() };
    for component in path.components() {
        if !matches!(found, Found::Directory { .. }) {
            return Ok(Found::Nothing);
        }
        let names = repository.tree(tree)?;
        let item = names.into_iter().find(|(name, _)| name == component.as_bytes());
        found = match item.map(|(_, item)| (item.kind, item.id)) {
            Some((ItemKind::Directory, id)) => {
                tree = id;
                Found::Directory { is_empty: false }
            }
            Some((ItemKind::File | ItemKind::Executable, _)) => Found::File,
            Some((ItemKind::Symlink, _)) => Found::Symlink,
            Some((ItemKind::Submodule, _)) | None => Found::Nothing,
        };
    }
    Ok(found)
}

/// See the module.
pub struct GitTree {
    path: PathBuf,
    options: GitOptions,
    watch: ReferenceWatch,
    /// The next snapshot looks at the whole commit.
    whole: bool,
    /// The commit of the last snapshot that was kept.
    kept: Option<Id>,
    /// The commit of the snapshot that has begun.
    begun: Option<Result<Id, GitError>>,
    /// The commit that the snapshot that has begun took.
    taken: Option<Id>,
    label: String,
}

impl GitTree {
    /// The repository at `path`, whose reference is also read every `poll`.
    pub fn open(path: PathBuf, options: GitOptions, poll: Duration) -> io::Result<Self> {
        let watch = ReferenceWatch::start(path.clone(), options.reference.clone(), poll)?;
        let label = String::new();
        Ok(Self { path, options, watch, whole: false, kept: None, begun: None, taken: None, label })
    }

    fn resolve(&self) -> Result<Id, GitError> {
        Repository::open(&self.path)?.resolve(&self.options.reference)
    }

    /// The tree of `commit`. The base counts as far as the record describes it.
    fn tree_of(
        &self,
        repository: &Repository,
        id: Id,
        job: &SnapshotJob<'_>,
    ) -> Result<RootEntry, ScanError> {
        let shape = record::shape(&self.options, job.options);
        let record = Record::load(job.writer)?;
        let described = job.base.zip(record).filter(|(base, record)| record.describes(base, shape));
        let described = described.filter(|_| !self.whole);
        if described.is_none() {
            // Those of a scanned directory do not belong to this tree.
            job.writer.remove_stat_subtree(b"")?;
        }
        let root = match described {
            Some((base, record)) if record.commit == id => base,
            described => {
                let described = described.map(|(base, record)| (base, record.commit));
                self.built(repository, id, described, job)?
            }
        };
        Record { shape, root: root.hash(), commit: id }.put(job.writer)?;
        Ok(root)
    }

    fn built(
        &self,
        repository: &Repository,
        id: Id,
        described: Option<(RootEntry, Id)>,
        job: &SnapshotJob<'_>,
    ) -> Result<RootEntry, ScanError> {
        let started = Instant::now();
        let commit = repository.commit(id)?;
        // A commit that was pushed over may be gone.
        let old = described.and_then(|(base, old)| Some((base, old, repository.commit(old).ok()?)));
        let histories = Histories { repository, cancel: job.cancel };
        let times_of_all;
        let since = match &old {
            Some((_, old, _)) if self.options.mtime == Mtime::FileCommit => {
                let since = histories.since(*old, id)?;
                since.filter(|touched| !touched.has_name(IGNORE_FILE.as_bytes()))
            }
            _ => None,
        };
        let times = match (&since, self.options.mtime) {
            (_, Mtime::Commit) => Times::Commit(commit.time),
            (Some(since), Mtime::FileCommit) => Times::Since(since),
            (None, Mtime::FileCommit) => {
                times_of_all = histories.whole(id)?;
                Times::All(&times_of_all)
            }
        };
        let mut build = Build::new(repository, job.writer, &self.options, job.options, job.cancel);
        let base =
            old.map(|(base, _, Commit { tree, .. })| (Base { tree, object: base.object }, base.metadata));
        let root = build.root(commit.tree, base, &times)?;
        tracing::debug!(
            commit = %id,
            files_read = build.files_read,
            bytes_read = build.bytes_read,
            partly = matches!(times, Times::Since(_)),
            elapsed_ms = started.elapsed().as_millis() as u64,
            "read the commit"
        );
        build.finish()?;
        Ok(root)
    }
}

impl TreeSource for GitTree {
    fn changed(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.watch.moved())
    }

    fn take_changes(&mut self) -> Changes {
        self.watch.forget();
        Changes { others: true, ..Changes::default() }
    }

    fn open_files(&self, _: Duration) -> Vec<OpenFile> {
        Vec::new()
    }

    fn catch_up(&mut self) {}

    fn reread(&mut self) {
        self.whole = true;
    }

    fn withhold(&mut self, _: Withheld) {}

    fn begin(&mut self, _thorough: bool) -> bool {
        self.watch.forget();
        let found = self.resolve();
        let is_kept = found.as_ref().is_ok_and(|id| Some(*id) == self.kept);
        self.begun = Some(found);
        !is_kept || self.whole
    }

    fn snapshot(&mut self, job: &SnapshotJob<'_>) -> Result<Snapshot, ScanError> {
        let id = self.begun.take().unwrap_or_else(|| self.resolve())?;
        let repository = Repository::open(&self.path)?;
        if self.options.mtime == Mtime::FileCommit && repository.is_shallow() {
            return Err(repository.shallow().into());
        }
        let root = self.tree_of(&repository, id, job)?;
        if let Some(base) = job.base.filter(|_| !job.options.allow_mass_deletion && !job.options.preview) {
            guard::check_totals(TreeObjects::Writer(job.writer), &base, &root)?;
        }
        self.label = repository.commit(id)?.label;
        self.taken = Some(id);
        Ok(Snapshot { root, mounts: BTreeSet::new(), changed: job.base != Some(root), records_changed: true })
    }

    fn end(&mut self, fate: SnapshotFate) {
        let taken = self.taken.take();
        match fate {
            SnapshotFate::Kept => {
                self.kept = taken.or(self.kept);
                self.whole &= taken.is_none();
            }
            SnapshotFate::Refused => self.kept = None,
            SnapshotFate::Lost => (self.kept, self.whole) = (None, true),
        }
    }

    fn is_racy(&self) -> bool {
        false
    }

    fn has_silent_changes(&self) -> bool {
        false
    }

    fn reads_everything(&self) -> bool {
        self.whole
    }

    fn pending(&self) -> Vec<TreePath> {
        Vec::new()
    }

    fn label(&self) -> String {
        self.label.clone()
    }

    fn is_deliberate(&self) -> bool {
        true
    }
}
