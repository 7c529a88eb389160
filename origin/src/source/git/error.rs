//! Errors of a git repository.

use std::path::PathBuf;

use syncd_shared::TreePath;

/// Error of the library.
pub(super) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Reasons that a commit cannot be published. The last generation stays current.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// Neither a work tree nor a bare repository, or of a kind that cannot be read.
    #[error("cannot open the git repository {path}: check that it exists and is readable for the user of syncd-origin", path = path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: Cause,
    },
    /// The references are in a reftable.
    #[error(
        "the repository {path} keeps its references in a reftable, which syncd cannot read: run `git refs migrate --ref-format=files` in it",
        path = path.display()
    )]
    Reftable { path: PathBuf },
    /// Nothing has this name.
    #[error("the repository {path} has no {reference}: push it, or start serve with another --git-ref", path = path.display())]
    NoReference { path: PathBuf, reference: String },
    /// The reference cannot be read, or does not lead to a commit.
    #[error("{reference} leads to no commit: push it again, or start serve with another --git-ref")]
    Reference {
        reference: String,
        #[source]
        source: Cause,
    },
    /// The history is cut, so that times would differ between clones.
    #[error(
        "the repository {path} is a shallow clone, whose history does not tell when files changed: run `git fetch --unshallow` in it, or start serve with --git-mtime commit",
        path = path.display()
    )]
    Shallow { path: PathBuf },
    /// An object is missing, or cannot be read. A repository being repacked is read again later.
    #[error(
        "cannot read object {id} of the repository, which is retried: if this stays, run `git fsck` in it"
    )]
    Object {
        id: String,
        #[source]
        source: Cause,
    },
    /// The bytes of an object are not those that its name says, or are malformed.
    #[error("object {id} of the repository is damaged: run `git fsck` in it")]
    Damaged { id: String },
    /// A submodule, which has its content in another repository.
    #[error(
        "{path} is a submodule, whose files are in another repository: add them to this one, or start serve with --git-submodules ignore"
    )]
    Submodule { path: TreePath },
    /// A pointer of git-lfs in the place of a file.
    #[error(
        "{path} is a pointer of git-lfs, whose content is not in the repository: publish a checkout (--trigger manual), or start serve with --git-lfs pointer"
    )]
    LfsPointer { path: TreePath },
    /// A file that is too large to be held in memory.
    #[error("{path} has {actual} bytes, more than the {limit} that a file in a git repository may have")]
    TooLarge { path: TreePath, actual: u64, limit: u64 },
}
