//! Builds a complete, verified tree of a target generation beside the live one. [`crate::replica`] chooses
//! the slot and changes slots' states; this module knows only [`crate::state::trees::Trees`].
//!
//! ```text
//! manifest   missing directory objects, verified, into the record
//! space      what the difference needs against what is free
//! content    content that is missing under any name, into staging/incoming, verified
//! tree       a spare (or, counted, a new farm of links) is patched in place
//! ```
//!
//! An update that changes very many files alternates between content and tree, part by part
//! ([`syncd_shared::diff::Parts`]): memory follows a part, not the update.
//!
//! The first sync has nothing to build on and works differently: [`first_sync`].
//!
//! No tree is touched before the last step. After an interruption, content that arrived stays in `incoming`,
//! and the next attempt finds it, for this target or a newer one. After a crash in the last step the tree is
//! neither old nor new. Its new files are taken out by hash, and it is made a spare again. The tree of an
//! update in parts is recorded as partial meanwhile. Nothing else uses a partial tree, and the next attempt
//! finds the finished parts in it.

pub(crate) mod conform;
mod delta;
mod duplicates;
pub(crate) mod first_sync;
pub(crate) mod incoming;
pub(crate) mod inodes;
pub(crate) mod manifest;
pub(crate) mod missing_entries;
pub(crate) mod patch;
pub(crate) mod plan;
mod receive;
mod receive_budget;
pub(crate) mod space;
mod window;
mod writeback;

use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::HumanBytes;
use syncd_proto::v1::RetryClass;
use syncd_shared::diff::DiffError;
use syncd_shared::generation::GenerationError;
use syncd_shared::tree_path::TreePathError;
use syncd_shared::wire::WireError;
use syncd_shared::{ContentHash, Progress, SignedGeneration, Timestamp, TreePath};

use crate::source::FetchError;
use crate::state::SlotError;
use crate::state::cursor::TreeError;
use crate::state::disk::{Dir, DiskError};
use crate::state::history::Touched;
use crate::state::lost_found::KeepError;
use crate::state::record::{InodeChanges, RecordError};
use crate::state::syncing::Syncing;

/// Reason why a target could not be staged. Nothing that is served was touched.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The generation may not follow the accepted one.
    #[error("refuse generation")]
    Refused(#[from] GenerationError),
    /// A system call failed.
    #[error("write the replica")]
    Disk(#[from] DiskError),
    /// The record failed.
    #[error("use the record")]
    Record(#[from] RecordError),
    /// The origin failed to deliver.
    #[error("fetch from the origin")]
    Fetch(#[source] FetchError),
    /// The manifests could not be compared.
    #[error("compare manifests")]
    Diff(#[from] DiffError<RecordError>),
    /// A frame or patch was damaged.
    #[error("read what the origin sent")]
    Frame(#[source] WireError),
    /// The tree is nested too deep.
    #[error("invalid path in the manifest")]
    Path {
        /// The defect of the path.
        #[source]
        source: TreePathError,
    },
    /// Content does not have the expected hash.
    #[error("content hashes to {actual}, expected {expected}")]
    Content {
        /// Hash that was asked for.
        expected: ContentHash,
        /// Hash of the content that arrived.
        actual: ContentHash,
    },
    /// A piece lies outside its file.
    #[error("piece at {offset} lies outside of content {content} of {size} bytes")]
    PieceOutside {
        /// Hash of the file.
        content: ContentHash,
        /// Length of the file in bytes.
        size: u64,
        /// Offset of the piece in bytes.
        offset: u64,
    },
    /// The origin sent more directory objects than the signed totals allow.
    #[error("the origin sent more than {limit} directory objects")]
    TooManyObjects {
        /// Number of entries of the tree.
        limit: u64,
    },
    /// The origin sent more bytes or frames than an answer can take.
    #[error("the origin sent more than {limit_bytes} bytes for what was asked")]
    TooMuch {
        /// Largest number of bytes accepted.
        limit_bytes: u64,
    },
    /// The origin did not send content that was asked for.
    #[error("the origin did not send content {content}")]
    Missing {
        /// Hash of the content.
        content: ContentHash,
    },
    /// Too little free space. Nothing was written.
    #[error(
        "{} are needed on the file system of --root, {} are free, and nothing more can be freed by syncd: \
         free space, enlarge it, or keep fewer generations (--keep)",
        HumanBytes(*wanted_bytes), HumanBytes(*available_bytes)
    )]
    NoSpace {
        /// Bytes needed.
        wanted_bytes: u64,
        /// Bytes free, minus a reserve.
        available_bytes: u64,
    },
    /// Too few free inodes. Nothing was written.
    #[error(
        "{wanted} inodes are needed on the file system of --root, {available} are free: remove files or enlarge it"
    )]
    NoInodes {
        /// Inodes needed.
        wanted: u64,
        /// Inodes free.
        available: u64,
    },
    /// Staging was cancelled by a newer target or by shutdown.
    #[error("staging was cancelled")]
    Cancelled,
}

impl From<SlotError> for StageError {
    fn from(error: SlotError) -> Self {
        match error {
            SlotError::Disk(e) => e.into(),
            SlotError::Record(e) => e.into(),
        }
    }
}

impl From<KeepError> for StageError {
    fn from(error: KeepError) -> Self {
        match error {
            KeepError::Disk(e) => e.into(),
            KeepError::Cancelled => Self::Cancelled,
        }
    }
}

impl From<TreeError> for StageError {
    fn from(error: TreeError) -> Self {
        match error {
            TreeError::Disk(e) => e.into(),
            TreeError::Record(e) => e.into(),
        }
    }
}

impl StageError {
    /// How the origin and the caller should react to the error.
    pub fn retry_class(&self) -> RetryClass {
        match self {
            Self::Refused(_) | Self::NoSpace { .. } | Self::NoInodes { .. } => RetryClass::Operator,
            Self::Disk(e) if e.is_full() => RetryClass::Operator,
            Self::Disk(_) | Self::Cancelled => RetryClass::Retry,
            Self::Fetch(FetchError::Disconnected(_) | FetchError::Superseded) => RetryClass::Retry,
            Self::Fetch(FetchError::Refused(_) | FetchError::Published(_)) => RetryClass::Retry,
            _ => RetryClass::Resync,
        }
    }

    /// Whether the same request may succeed later. If so, the other way to the target is not tried now.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Disk(_)
                | Self::Cancelled
                | Self::Fetch(FetchError::Disconnected(_) | FetchError::Superseded)
                | Self::Record(RecordError::Database { .. })
        )
    }
}

/// The target to build, with progress and cancellation.
#[derive(Clone, Copy)]
pub(crate) struct Job<'a> {
    pub target: &'a SignedGeneration,
    /// For an update in parts, the totals count the parts so far.
    pub progress: &'a dyn Fn(Progress),
    /// Checked often.
    pub cancel: &'a AtomicBool,
}

impl Job<'_> {
    /// Fails with [`StageError::Cancelled`] if the job was cancelled.
    pub fn go_on(&self) -> Result<(), StageError> {
        if self.cancel.load(Ordering::Relaxed) { Err(StageError::Cancelled) } else { Ok(()) }
    }
}

/// A complete, verified tree that waits to be activated. It is recycled when dropped.
#[derive(Debug)]
pub struct Staged {
    pub(crate) target: SignedGeneration,
    /// Slot of the tree; `None`: the target is already live.
    pub(crate) slot: Option<u64>,
    /// Opened before the first write, so that syncing it reports every write error.
    pub(crate) sync: Dir,
    /// Paths that differ from the live tree; `None`: too many to keep.
    pub(crate) changed: Option<Vec<TreePath>>,
    /// The tree was built on a durable spare, and every change to it is listed in `changed`.
    pub(crate) durable_basis: bool,
    /// Names that the activation changes; `None`: unknown.
    pub(crate) touched: Option<Touched>,
    /// Copy of the signed generation, on its way to the disk; `None`: there is none yet.
    pub(crate) signed: Option<Syncing>,
    pub(crate) inodes: InodeChanges,
    /// Generation of the tree that this one was built from, to check that it is still live.
    pub(crate) basis: Option<u64>,
    /// The slot holds this root already, or is live at it: nothing was built.
    pub(crate) is_held: bool,
    /// When the held tree was last proven: whatever was changed later has a later ctime.
    pub(crate) proven: Option<Timestamp>,
    /// The node returns to it, or a person has chosen it: it is not on trial.
    pub(crate) is_return: bool,
}

impl Staged {
    /// Describes a tree in `slot` built from `basis`. The other fields have their defaults.
    pub(crate) fn new(target: &SignedGeneration, slot: Option<u64>, basis: Option<u64>, sync: Dir) -> Self {
        Self {
            target: target.clone(),
            slot,
            sync,
            changed: Some(Vec::new()),
            durable_basis: false,
            touched: None,
            signed: None,
            inodes: InodeChanges::default(),
            basis,
            is_held: false,
            proven: None,
            is_return: false,
        }
    }
}
