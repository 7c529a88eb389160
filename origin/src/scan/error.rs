//! Errors of a scan.

use std::fmt;
use std::io;
use std::path::PathBuf;

use syncd_shared::diff::DiffError;
use syncd_shared::directory::DuplicateName;
use syncd_shared::marks::Mark;
use syncd_shared::tree_path::TreePathError;
use syncd_shared::{Component, TreePath};

use crate::source::GitError;
use crate::store::StoreError;
use crate::tree_objects::TreeObjectError;
use crate::watch::CookieError;
use syncd_shared::ignore_rules::IgnoreError;

/// Reasons that a scan failed. Nothing may be sealed then, and the last generation stays current.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// TREE is not a directory.
    #[error("the content tree {path} is missing: bring it back, or start serve with another --tree")]
    TreeMissing {
        /// TREE.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A mount point in, of or above the tree is no longer mounted, and its content differs.
    #[error(
        "nothing is mounted at {path} any more: mount it again, or publish what is there now with commit --allow-mass-deletion"
    )]
    Unmounted { path: PathBuf },
    /// A file system in the tree has become empty, or an empty one was mounted over published content.
    #[error(
        "the file system mounted at {path} is empty, the tree had {before} entries there: mount the right one, or publish that with commit --allow-mass-deletion"
    )]
    EmptiedMount {
        path: PathBuf,
        /// Entries before.
        before: u64,
    },
    /// The tree has become empty.
    #[error(
        "the content tree has become empty, it had {before} entries: if that is meant, publish it with commit --allow-mass-deletion"
    )]
    Emptied {
        /// Entries before.
        before: u64,
    },
    /// The tree lost more than half of its bytes, in at least [`super::guard::MASS_DELETION_MIN_FILES`]
    /// files.
    #[error(
        "the content tree went from {before} to {after} bytes, and at least 20 files went or shrank: if that is meant, publish it with commit --allow-mass-deletion"
    )]
    MassByteLoss {
        /// Bytes before.
        before: u64,
        /// Bytes now.
        after: u64,
    },
    /// The losses cannot be determined.
    #[error("compare the tree with what it was; run: syncd-origin check")]
    Guard {
        #[source]
        source: DiffError<TreeObjectError>,
    },
    /// The tree lost more than half of at least [`super::guard::MASS_DELETION_MIN_ENTRIES`] entries.
    #[error(
        "the content tree went from {before} to {after} entries: if that is meant, publish it with commit --allow-mass-deletion"
    )]
    MassDeletion {
        /// Entries in the base.
        before: u64,
        /// Entries now.
        after: u64,
    },
    /// A file or directory cannot be read.
    #[error(
        "cannot read {path}: make it readable for the user that syncd-origin runs as, or list it in .syncdignore"
    )]
    Unreadable {
        path: TreePath,
        #[source]
        source: io::Error,
    },
    /// A directory in the tree is a directory of syncd.
    #[error(
        "{path} is {mark}, which holds private keys: move it out of the content tree, or list it in .syncdignore"
    )]
    Marked {
        path: TreePath,
        /// Kind of the directory.
        mark: Mark,
    },
    /// A file in the tree is one of syncd's private files, or a copy of one.
    #[error(
        "{path} is a private file of syncd (a key, an identity, or a copy): move it out of the content tree"
    )]
    PrivateFile { path: TreePath },
    /// A path that no generation may have.
    #[error("cannot publish {name} in {directory}: shorten the path, or list it in .syncdignore")]
    Name {
        directory: TreePath,
        /// Name in the directory.
        name: Component,
        /// The violated limit.
        #[source]
        source: TreePathError,
    },
    /// A name in a git tree that no file can have.
    #[error("a name in {directory} of the repository cannot be published")]
    GitName {
        directory: TreePath,
        #[source]
        source: TreePathError,
    },
    /// The commit cannot be published.
    #[error(transparent)]
    Git(#[from] GitError),
    /// A symlink leads out of the tree, which `--symlinks inside` forbids.
    #[error(
        "symlink {path} leaves the tree: remove it, list it in .syncdignore, or serve with --symlinks verbatim"
    )]
    SymlinkLeaves { path: TreePath },
    /// The target of a symlink is too long.
    #[error("the target of symlink {path} has {actual} bytes, more than {limit}: shorten it")]
    SymlinkTarget { path: TreePath, actual: usize, limit: usize },
    /// An invalid `.syncdignore`.
    #[error(transparent)]
    Ignore(#[from] IgnoreError),
    /// A file says that somebody is changing the tree.
    #[error(
        "{path} exists, so the tree is being changed: it is published once that file is gone, or is 10 minutes old, or by `syncd-origin commit`"
    )]
    HeldWhile { path: TreePath },
    /// The tree keeps changing while it is scanned.
    #[error(
        "the tree keeps changing while it is scanned: {paths}: commit again when the writer has finished, or list them in .syncdignore"
    )]
    Unsettled {
        /// Changing paths.
        paths: Paths,
    },
    /// It is unknown whether the tree changed while it was scanned.
    #[error(transparent)]
    Cookie(#[from] CookieError),
    /// The sums over the tree exceed the countable range.
    #[error("the sizes of the files in {directory} exceed what can be counted")]
    Totals {
        /// Directory of the files.
        directory: TreePath,
    },
    /// A directory has two entries with the same name, which only a damaged file system has.
    #[error("directory {directory} is damaged: check its file system")]
    Duplicate {
        directory: TreePath,
        #[source]
        source: DuplicateName,
    },
    /// A directory object cannot be read.
    #[error("read the directory objects of {path}")]
    Objects {
        path: TreePath,
        #[source]
        source: TreeObjectError,
    },
    /// A directory object of the base is missing in the store.
    #[error("the store has lost the directory object of {path}; run: syncd-origin check")]
    BaseMissing { path: TreePath },
    #[error("cannot store what was scanned")]
    Store(#[from] StoreError),
    #[error("cannot start a thread to read files: raise the limit of processes (ulimit -u)")]
    Thread {
        #[source]
        source: io::Error,
    },
    /// The scan was cancelled.
    #[error("the scan was stopped")]
    Cancelled,
}

impl ScanError {
    /// Whether a guard found that the tree lost too much to be taken for a deployment.
    pub fn is_loss(&self) -> bool {
        matches!(
            self,
            Self::Emptied { .. }
                | Self::MassDeletion { .. }
                | Self::MassByteLoss { .. }
                | Self::Unmounted { .. }
        )
    }
}

/// Paths shown in a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths(pub Vec<TreePath>);

/// Maximum number of paths named in a message.
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
