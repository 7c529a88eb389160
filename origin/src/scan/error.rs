//! What can keep a scan from ending.

use std::fmt;
use std::io;
use std::path::PathBuf;

use syncd_shared::diff::DiffError;
use syncd_shared::directory::DuplicateName;
use syncd_shared::marks::Mark;
use syncd_shared::tree_path::TreePathError;
use syncd_shared::{Component, TreePath};

use crate::ignore_rules::IgnoreError;
use crate::store::StoreError;
use crate::tree_objects::TreeObjectError;
use crate::watch::CookieError;

/// Why a scan failed. Nothing is to be sealed then: the last generation stands.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// There is no directory at TREE.
    #[error("the content tree {path} is missing: bring it back, or start serve with another --tree")]
    TreeMissing {
        /// TREE.
        path: PathBuf,
        /// What the file system says.
        #[source]
        source: io::Error,
    },
    /// A mount point in the tree, of the tree, or above it is none any more, and what is there differs.
    #[error(
        "nothing is mounted at {path} any more: mount it again, or publish what is there now with commit --allow-mass-deletion"
    )]
    Unmounted {
        /// The mount point.
        path: PathBuf,
    },
    /// The tree has become empty.
    #[error(
        "the content tree has become empty, it had {before} entries: if that is meant, publish it with commit --allow-mass-deletion"
    )]
    Emptied {
        /// Entries before.
        before: u64,
    },
    /// The tree lost more than half of its bytes, in at least [`super::MASS_DELETION_MIN_FILES`] files.
    #[error(
        "the content tree went from {before} to {after} bytes, and at least 20 files went or shrank: if that is meant, publish it with commit --allow-mass-deletion"
    )]
    MassByteLoss {
        /// Bytes before.
        before: u64,
        /// Bytes now.
        after: u64,
    },
    /// What was lost can't be told.
    #[error("compare the tree with what it was; run: syncd-origin check")]
    Guard {
        /// Why.
        #[source]
        source: DiffError<TreeObjectError>,
    },
    /// The tree lost more than half of at least [`super::MASS_DELETION_MIN_ENTRIES`] entries.
    #[error(
        "the content tree went from {before} to {after} entries: if that is meant, publish it with commit --allow-mass-deletion"
    )]
    MassDeletion {
        /// Entries in the base.
        before: u64,
        /// Entries now.
        after: u64,
    },
    /// A file or directory can't be read.
    #[error(
        "cannot read {path}: make it readable for the user that syncd-origin runs as, or list it in .syncdignore"
    )]
    Unreadable {
        /// The path in the tree.
        path: TreePath,
        /// What the file system says.
        #[source]
        source: io::Error,
    },
    /// A directory in the tree is syncd's own.
    #[error(
        "{path} is {mark}, which holds private keys: move it out of the content tree, or list it in .syncdignore"
    )]
    Marked {
        /// The directory.
        path: TreePath,
        /// What it is.
        mark: Mark,
    },
    /// A file in the tree is one of syncd's private files, or a copy of one.
    #[error(
        "{path} is a private file of syncd (a key, an identity, or a copy): move it out of the content tree"
    )]
    PrivateFile {
        /// The file.
        path: TreePath,
    },
    /// A path that no generation may have.
    #[error("cannot publish {name} in {directory}: shorten the path, or list it in .syncdignore")]
    Name {
        /// The directory.
        directory: TreePath,
        /// The name in it.
        name: Component,
        /// The limit.
        #[source]
        source: TreePathError,
    },
    /// `--symlinks inside` and a symlink that leaves the tree.
    #[error(
        "symlink {path} leaves the tree: remove it, list it in .syncdignore, or serve with --symlinks verbatim"
    )]
    SymlinkLeaves {
        /// The symlink.
        path: TreePath,
    },
    /// A symlink whose target is too long for a generation.
    #[error("the target of symlink {path} has {actual} bytes, more than {limit}: shorten it")]
    SymlinkTarget {
        /// The symlink.
        path: TreePath,
        /// Bytes of the target.
        actual: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// A broken `.syncdignore`.
    #[error(transparent)]
    Ignore(#[from] IgnoreError),
    /// Something keeps changing while it is scanned.
    #[error(
        "the tree keeps changing while it is scanned: {paths}: commit again when the writer has finished, or list them in .syncdignore"
    )]
    Unsettled {
        /// What changes.
        paths: Paths,
    },
    /// Whether the tree changed while it was scanned can't be known.
    #[error(transparent)]
    Cookie(#[from] CookieError),
    /// The sums over the tree exceed what can be counted.
    #[error("the sizes of the files in {directory} exceed what can be counted")]
    Totals {
        /// Their directory.
        directory: TreePath,
    },
    /// A directory has one name twice, which only a damaged file system has.
    #[error("directory {directory} is damaged: check its file system")]
    Duplicate {
        /// The directory.
        directory: TreePath,
        /// The name.
        #[source]
        source: DuplicateName,
    },
    /// A directory object of the base is not in the store.
    #[error("the store has lost the directory object of {path}; run: syncd-origin check")]
    BaseMissing {
        /// The directory.
        path: TreePath,
    },
    /// The store failed.
    #[error("cannot store what was scanned")]
    Store(#[from] StoreError),
    /// A thread could not be started.
    #[error("cannot start a thread to read files: raise the limit of processes (ulimit -u)")]
    Thread {
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// It was told to stop.
    #[error("the scan was stopped")]
    Cancelled,
}

/// A few paths, for a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths(pub Vec<TreePath>);

/// Paths that a message names.
const NAMED_MAX: usize = 5;

impl fmt::Display for Paths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, path) in self.0.iter().take(NAMED_MAX).enumerate() {
            write!(f, "{}{path}", if index > 0 { ", " } else { "" })?;
        }
        match self.0.len().saturating_sub(NAMED_MAX) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}
