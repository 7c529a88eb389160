//! Builds a complete, verified tree of a target generation beside the live one. [`crate::replica`] says where, and moves
//! slots from state to state; nothing here knows more than [`crate::state::trees::Trees`].
//!
//! ```text
//! manifest   directory objects that are lacking, verified, into the record
//! space      what the difference needs against what is free
//! content    what is lacking under any name, into staging/incoming, verified
//! tree       a spare (or, counted, a new farm of links) is patched where it is
//! ```
//!
//! Of an update that changes very many files, content and tree come in turn, part by part of what differs
//! ([`syncd_shared::diff::Parts`]): memory follows a part, not the update.
//!
//! The first sync has nothing to build on and goes another way: [`fresh`].
//!
//! Until the last step no tree is touched: whatever interrupts it, what arrived stays in `incoming` and is found by the
//! next attempt, for this target or a newer one. After a crash in the last step the tree is neither: new files are taken
//! out of it by hash, and it is made a spare again. Of an update in parts it is recorded as partial meanwhile, which nobody
//! else touches: what came of it is found there by the next attempt.

mod allowance;
pub(crate) mod conform;
pub(crate) mod content;
mod delta;
pub(crate) mod fresh;
pub(crate) mod holes;
pub(crate) mod inodes;
pub(crate) mod manifest;
pub(crate) mod patch;
pub(crate) mod plan;
pub(crate) mod queue;
mod receive;
mod repeats;
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
use syncd_shared::{ContentHash, SignedGeneration, TreePath};

use crate::source::FetchError;
use crate::state::SlotError;
use crate::state::cursor::TreeError;
use crate::state::disk::{Dir, DiskError};
use crate::state::history::Touched;
use crate::state::record::{InodeChanges, RecordError};
use crate::state::syncing::Syncing;

/// Why a target could not be staged. Nothing that is served was touched.
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
    /// The origin did not deliver.
    #[error("fetch from the origin")]
    Fetch(#[source] FetchError),
    /// The manifests could not be compared.
    #[error("compare manifests")]
    Diff(#[from] DiffError<RecordError>),
    /// A frame or patch was damaged.
    #[error("read what the origin sent")]
    Frame(#[source] WireError),
    /// A tree that is nested too deep.
    #[error("invalid path in the manifest")]
    Path {
        /// What is wrong.
        #[source]
        source: TreePathError,
    },
    /// Content is not what its hash says.
    #[error("content hashes to {actual}, expected {expected}")]
    Content {
        /// Hash it was asked for by.
        expected: ContentHash,
        /// Hash of what came.
        actual: ContentHash,
    },
    /// A piece that is not part of its file.
    #[error("piece at {offset} lies outside of content {content} of {size} bytes")]
    PieceOutside {
        /// The file.
        content: ContentHash,
        /// Its length.
        size: u64,
        /// Where the piece was to go.
        offset: u64,
    },
    /// More directory objects than the signed totals allow.
    #[error("the origin sent more than {limit} directory objects")]
    TooManyObjects {
        /// Entries that the tree has.
        limit: u64,
    },
    /// More bytes, or more frames, than what was asked for can take.
    #[error("the origin sent more than {limit_bytes} bytes for what was asked")]
    TooMuch {
        /// What would have been taken.
        limit_bytes: u64,
    },
    /// Content that was asked for did not come.
    #[error("the origin did not send content {content}")]
    Missing {
        /// The content.
        content: ContentHash,
    },
    /// Too little free space; nothing was written.
    #[error(
        "{} are needed on the file system of --root, {} are free, and nothing more may be given up: \
         free space, enlarge it, or keep fewer generations (--keep)",
        HumanBytes(*wanted_bytes), HumanBytes(*available_bytes)
    )]
    NoSpace {
        /// Bytes needed.
        wanted_bytes: u64,
        /// Bytes free, less a reserve.
        available_bytes: u64,
    },
    /// Too few free inodes; nothing was written.
    #[error(
        "{wanted} inodes are needed on the file system of --root, {available} are free: remove files or enlarge it"
    )]
    NoInodes {
        /// Inodes needed.
        wanted: u64,
        /// Inodes free.
        available: u64,
    },
    /// A newer target, or the agent stops.
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

impl From<TreeError> for StageError {
    fn from(error: TreeError) -> Self {
        match error {
            TreeError::Disk(e) => e.into(),
            TreeError::Record(e) => e.into(),
        }
    }
}

impl StageError {
    /// What the origin and the caller are to make of it.
    pub fn retry_class(&self) -> RetryClass {
        match self {
            Self::Refused(_) | Self::NoSpace { .. } | Self::NoInodes { .. } => RetryClass::Operator,
            Self::Disk(e) if e.is_full() => RetryClass::Operator,
            Self::Disk(_) | Self::Cancelled => RetryClass::Retry,
            Self::Fetch(FetchError::Disconnected(_) | FetchError::Superseded) => RetryClass::Retry,
            Self::Fetch(FetchError::Refused(_)) => RetryClass::Retry,
            _ => RetryClass::Resync,
        }
    }

    /// Whether the same request can succeed later: another way to the target is not to be tried now.
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

/// How far staging is; of an update in parts, what the parts so far fetch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StageProgress {
    /// Contents that arrived and were verified.
    pub files_done: u64,
    /// Contents that are fetched.
    pub files_total: u64,
    /// Content bytes that arrived.
    pub bytes_done: u64,
    /// Content bytes that are fetched.
    pub bytes_total: u64,
}

impl StageProgress {
    /// With what comes after it.
    pub(crate) fn and(self, next: Self) -> Self {
        Self {
            files_done: self.files_done.saturating_add(next.files_done),
            files_total: self.files_total.saturating_add(next.files_total),
            bytes_done: self.bytes_done.saturating_add(next.bytes_done),
            bytes_total: self.bytes_total.saturating_add(next.bytes_total),
        }
    }
}

/// What is to be built.
#[derive(Clone, Copy)]
pub(crate) struct Job<'a> {
    pub target: &'a SignedGeneration,
    pub progress: &'a dyn Fn(StageProgress),
    /// Looked at often.
    pub cancel: &'a AtomicBool,
}

impl Job<'_> {
    /// Fails where it was cancelled.
    pub fn go_on(&self) -> Result<(), StageError> {
        if self.cancel.load(Ordering::Relaxed) { Err(StageError::Cancelled) } else { Ok(()) }
    }
}

/// A complete, verified tree that waits to be activated. Dropped, it is recycled.
#[derive(Debug)]
pub struct Staged {
    pub(crate) target: SignedGeneration,
    /// The slot that it is in; `None`: the target is live already.
    pub(crate) slot: Option<u64>,
    /// Opened before the first write.
    pub(crate) sync: Dir,
    /// Paths that differ from the live tree; `None`: too many to be held.
    pub(crate) changed: Option<Vec<TreePath>>,
    /// It was built on a spare, which was durable, and everything that was done to it is at `changed`.
    pub(crate) durable_basis: bool,
    /// What it changes; `None`: not known.
    pub(crate) touched: Option<Touched>,
    /// The copy of its signed record, as the disk gets it; `None`: there is none yet.
    pub(crate) signed: Option<Syncing>,
    pub(crate) inodes: InodeChanges,
    pub(crate) spare_miss: bool,
    /// What the tree was built from, to see that it still is live.
    pub(crate) basis: Option<u64>,
    /// Content bytes and files that came from the origin.
    pub(crate) fetched: (u64, u64),
}

impl Staged {
    /// Of a tree in `slot` that was built from `basis`, as far as nothing more is known about it.
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
            spare_miss: false,
            basis,
            fetched: (0, 0),
        }
    }

    /// What it is.
    pub fn target(&self) -> &SignedGeneration {
        &self.target
    }

    /// Content bytes that came from the origin.
    pub fn fetched_bytes(&self) -> u64 {
        self.fetched.0
    }

    /// Contents that came from the origin.
    pub fn fetched_files(&self) -> u64 {
        self.fetched.1
    }

    /// Whether no spare was ready.
    pub fn is_spare_miss(&self) -> bool {
        self.spare_miss
    }
}
