//! Sources of the trees that are published: a [`WorkTree`] that people and CI write to.
//!
//! A source knows by itself what may have changed since the last look, and brings the store up to the tree
//! when it looks. The committer decides when to look and whether the tree is sealed; it knows no file system.

mod work_tree;

use std::collections::BTreeSet;
use std::path::PathBuf;

use syncd_shared::{RootEntry, TreePath};
use tokio_util::sync::CancellationToken;

use crate::scan::{ScanError, ScanOptions, Withheld};
use crate::store::Writer;
use crate::watch::{Hints, Reason};

pub use work_tree::WorkTree;

/// Arguments of a look.
pub struct Look<'a> {
    /// The tree of the last look that was kept.
    pub base: Option<RootEntry>,
    /// Mount points of the last look that was kept.
    pub mounts: &'a BTreeSet<PathBuf>,
    /// Receives objects, contents and the source's records.
    pub writer: &'a Writer,
    pub options: &'a ScanOptions,
    pub cancel: &'a CancellationToken,
}

/// Result of a look.
pub struct Found {
    /// The current tree; its base if nothing changed.
    pub root: RootEntry,
    /// Mount points, if the source has any.
    pub mounts: BTreeSet<PathBuf>,
    /// Whether anything but directory times differs from the base.
    pub changed: bool,
    /// Whether the writer has records to keep although nothing changed.
    pub records_changed: bool,
}

/// Fate of a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookEnd {
    /// Its result was kept, sealed or not.
    Kept,
    /// The tree could not be read in one state, or a guard refused it.
    Refused,
    /// Its result was lost with the writer.
    Lost,
}

/// A source of trees. All calls block, one at a time. [`TreeSource::begin`] and [`TreeSource::end`] enclose a
/// look.
pub trait TreeSource: Send {
    /// Adds changes for the next look.
    fn note(&mut self, hints: Hints);

    /// Collects all changes up to now for the next look.
    fn catch_up(&mut self);

    /// Makes the next look read the whole tree.
    fn reread(&mut self, reason: Reason);

    /// Makes the next look take these files as they were published, and the one after it read them.
    fn withhold(&mut self, files: Withheld);

    /// Begins a look. Returns whether there is anything to look at. `thorough` includes files that were read
    /// so soon after a change that they must be read again.
    fn begin(&mut self, thorough: bool) -> bool;

    /// Brings the store up to the tree. Only after [`TreeSource::begin`] has returned true.
    fn look(&mut self, look: &Look<'_>) -> Result<Found, ScanError>;

    /// Ends a look. Whatever was not kept is found again by the next one.
    fn end(&mut self, end: LookEnd);

    /// Whether files were read so soon after a change that they must be read again.
    fn is_racy(&self) -> bool;

    /// Whether there are files whose changes may go unnoticed, so that a look is due from time to time.
    fn has_silent_changes(&self) -> bool;

    /// Whether the next look reads the whole tree.
    fn reads_everything(&self) -> bool;

    /// Paths that the next look is to read; empty if they are not known one by one.
    fn pending(&self) -> Vec<TreePath>;
}
