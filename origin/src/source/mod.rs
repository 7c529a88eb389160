//! Sources of the trees that are published: a [`WorkTree`] that people and CI write to.
//!
//! A source says when its tree may have changed, keeps by itself what it has to look at, and brings the store
//! up to the tree in a snapshot. The committer decides when to take a snapshot and whether it is sealed; it
//! knows no file system and no watch. A [`GitTree`] publishes the commits of a repository instead.

mod git;
mod look;
mod new_directories;
mod work_tree;

use std::collections::BTreeSet;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use syncd_shared::{RootEntry, TreePath};
use tokio_util::sync::CancellationToken;

use crate::scan::{ScanError, ScanOptions, Withheld};
use crate::store::Writer;
pub use crate::watch::OpenFile;

pub use git::{GitError, GitOptions, GitTree, Lfs, Mtime, Submodules};
pub use look::{Found, SourceLocation};
pub use new_directories::NewDirectories;
pub use work_tree::WorkTree;

/// Changes that a source has noticed, as far as the committer needs them to see when the tree is quiet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Names that may have changed.
    pub names: Vec<TreePath>,
    /// Whether more than these names may have changed.
    pub others: bool,
    /// Whether the source looks at regular intervals, so that this is no sign of a change.
    pub is_poll: bool,
}

/// Arguments of a snapshot.
pub struct SnapshotJob<'a> {
    /// Tree of the last snapshot that was kept.
    pub base: Option<RootEntry>,
    /// Mount points of the last snapshot that was kept.
    pub mounts: &'a BTreeSet<PathBuf>,
    /// Receives objects, contents and the source's records.
    pub writer: &'a Writer,
    pub options: &'a ScanOptions,
    pub cancel: &'a CancellationToken,
}

/// Result of a snapshot.
pub struct Snapshot {
    /// The current tree; its base if nothing changed.
    pub root: RootEntry,
    /// Mount points, if the source has any.
    pub mounts: BTreeSet<PathBuf>,
    /// Whether anything but directory times differs from the base.
    pub changed: bool,
    /// Whether the writer has records to keep although nothing changed.
    pub records_changed: bool,
}

/// Fate of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotFate {
    /// Its result was kept, sealed or not.
    Kept,
    /// The tree could not be read in one state, or a guard refused it.
    Refused,
    /// Its result was lost with the writer.
    Lost,
}

/// A source of trees. All calls but [`TreeSource::changed`] may block, and come one at a time.
/// [`TreeSource::begin`] and [`TreeSource::end`] enclose a snapshot.
pub trait TreeSource: Send + Sync {
    /// Waits until the tree may have changed. Cancel safe.
    fn changed(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// Takes in what has changed, for the next snapshot. Does not block.
    fn take_changes(&mut self) -> Changes;

    /// Files whose writers have not finished, without those that were not written for `idle`. Does not block.
    fn open_files(&self, idle: Duration) -> Vec<OpenFile>;

    /// Takes in all changes made before the call.
    fn catch_up(&mut self);

    /// Makes the next snapshot read the whole tree.
    fn reread(&mut self);

    /// Makes the next snapshot take these files as they were published, and the one after it read them.
    fn withhold(&mut self, files: Withheld);

    /// Begins a snapshot. Returns whether there is anything to look at. `thorough` includes files that were
    /// read so soon after a change that they must be read again.
    fn begin(&mut self, thorough: bool) -> bool;

    /// Brings the store up to the tree. Only after [`TreeSource::begin`] has returned true.
    fn snapshot(&mut self, job: &SnapshotJob<'_>) -> Result<Snapshot, ScanError>;

    /// Ends a snapshot. Whatever was not kept is found again by the next one.
    fn end(&mut self, fate: SnapshotFate);

    /// Whether files were read so soon after a change that they must be read again.
    fn is_racy(&self) -> bool;

    /// Whether there are files whose changes may go unnoticed, so that a snapshot is due from time to time.
    fn has_silent_changes(&self) -> bool;

    /// Whether the next snapshot reads the whole tree.
    fn reads_everything(&self) -> bool;

    /// Paths that the next snapshot is to read; empty if they are not known one by one.
    fn pending(&self) -> Vec<TreePath>;

    /// A file whose presence says that somebody is changing the tree, so that nothing is published by itself.
    /// May block.
    fn held_while(&self) -> Option<TreePath> {
        None
    }

    /// Label for the tree of the last snapshot, if its generation gets no other one.
    fn label(&self) -> String {
        String::new()
    }

    /// Whether each change was meant to be published, so that it ends the hold that a rollback leaves.
    fn is_deliberate(&self) -> bool {
        false
    }
}
