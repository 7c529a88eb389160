//! Errors of planning an update or answering a request.

use std::io;
use std::path::PathBuf;

use syncd_shared::delta::EncodeError;
use syncd_shared::diff::DiffError;
use syncd_shared::update_file::UpdateFileError;
use syncd_shared::{ContentHash, RootHash};

use super::contents::{DirectoryError, ReadError};

/// Errors of planning an update or answering a request.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The root belongs to no retained generation.
    #[error("root {root} is not of a retained generation")]
    UnknownRoot { root: RootHash },
    #[error("comparing two trees failed")]
    Diff(#[from] DiffError<DirectoryError>),
    /// The new tree has content that is missing in the store.
    #[error("content {content} is not in the store; run: syncd-origin check")]
    MissingContent { content: ContentHash },
    #[error("reading a directory object failed")]
    Directory(#[from] DirectoryError),
    /// The store failed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A stored frame does not match the index.
    #[error("a stored frame is damaged; run: syncd-origin check")]
    Damaged(#[source] io::Error),
    #[error("compressing failed")]
    Compress(#[source] io::Error),
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error(transparent)]
    UpdateFile(#[from] UpdateFileError),
    /// Writing or reading the spool failed.
    #[error("using the spool file {path} failed")]
    Spool {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A spooled message does not decode: the file was changed.
    #[error("the spool file {path} was changed")]
    SpoolChanged { path: PathBuf },
    /// The update exceeds the spool limit. The agent requests missing content by hash.
    #[error("the encoded update exceeds {limit} bytes")]
    TooLarge {
        /// Bytes allowed.
        limit: u64,
    },
    /// The agent does not support deltas. It requests missing content by hash.
    #[error("the agent takes no deltas")]
    NotUnderstood,
    /// The planning thread ended without a result.
    #[error("planning was interrupted")]
    Interrupted,
}

impl PlanError {
    /// Whether agents run into this without anything being wrong: they request missing content by hash then.
    pub fn is_expected(&self) -> bool {
        matches!(self, Self::UnknownRoot { .. } | Self::TooLarge { .. } | Self::NotUnderstood)
    }
}
