//! Why an update was not planned or a request not answered.

use std::io;
use std::path::PathBuf;

use syncd_shared::delta::EncodeError;
use syncd_shared::diff::DiffError;
use syncd_shared::{ContentHash, RootHash};

use super::contents::{DirectoryError, ReadError};

/// Why an update was not planned or a request not answered.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Not the root of a retained generation.
    #[error("root {root} is not of a retained generation")]
    UnknownRoot {
        /// The root.
        root: RootHash,
    },
    /// The trees could not be compared.
    #[error("comparing two trees failed")]
    Diff(#[from] DiffError<DirectoryError>),
    /// The tree that the update leads to has content that the store lacks.
    #[error("content {content} is not in the store; run: syncd-origin check")]
    MissingContent {
        /// The content.
        content: ContentHash,
    },
    /// A directory object could not be read.
    #[error("reading a directory object failed")]
    Directory(#[from] DirectoryError),
    /// The store failed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A stored frame is not what its index says.
    #[error("a stored frame is damaged; run: syncd-origin check")]
    Damaged(#[source] io::Error),
    /// Compressing failed.
    #[error("compressing failed")]
    Compress(#[source] io::Error),
    /// Encoding a delta failed.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The spool could not be written or read.
    #[error("using the spool file {path} failed")]
    Spool {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A spooled message is none: the file was changed.
    #[error("the spool file {path} was changed")]
    SpoolChanged {
        /// The file.
        path: PathBuf,
    },
    /// More than may be spooled: the agent asks for what it lacks by hash.
    #[error("the encoded update exceeds {limit} bytes")]
    TooLarge {
        /// Bytes allowed.
        limit: u64,
    },
    /// The agent knows fewer kinds of messages than updates are made of: it asks for what it lacks by hash.
    #[error("the agent takes no deltas")]
    NotUnderstood,
    /// The planning thread ended without a result.
    #[error("planning was interrupted")]
    Interrupted,
}
