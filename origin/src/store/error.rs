//! Errors of the store.

use std::io;
use std::path::PathBuf;

use syncd_shared::GenerationNumber;
use syncd_shared::directory::DecodeDirectoryError;
use syncd_shared::generation::GenerationError;
use syncd_shared::hash::{ContentHash, ObjectHash, RootHash};

use super::pack::{FrameDamage, PackId};

/// Errors of creating or opening a store.
#[derive(Debug, thiserror::Error)]
pub enum OpenStoreError {
    /// A store exists already.
    #[error("{path} holds a store already; use it, or choose another data directory")]
    Exists {
        /// The data directory.
        path: PathBuf,
    },
    /// No store exists.
    #[error("{path} holds no store; create one with: syncd-origin init --data {path}")]
    Missing {
        /// The data directory.
        path: PathBuf,
    },
    /// Another process has the store open.
    #[error(
        "{path} is in use by another process ({holder}); stop it first, or ask the running origin",
        holder = .pid.map_or("pid unknown".to_owned(), |pid| format!("pid {pid}"))
    )]
    Held {
        /// The data directory.
        path: PathBuf,
        /// Process that holds the lock, if known.
        pid: Option<u32>,
    },
    /// Written by another version of syncd.
    #[error(
        "{path} has store format {actual}, expected {expected}; use the syncd that wrote it, or init a new one"
    )]
    Format {
        /// Path of the index.
        path: PathBuf,
        actual: u32,
        /// Format that this version reads and writes.
        expected: u32,
    },
    /// The index is damaged or not an index.
    #[error("the index {path} is damaged; restore the data directory from a copy, or init a new one")]
    Damaged {
        /// Path of the index.
        path: PathBuf,
        #[source]
        source: Box<redb::Error>,
    },
    /// The database code panicked on the file's content.
    #[error(
        "the index {path} is damaged beyond reading; restore the data directory from a copy, or init a new one"
    )]
    Unreadable {
        /// Path of the index.
        path: PathBuf,
    },
    /// A file system call failed.
    #[error("cannot {doing} {path}")]
    Io {
        /// Verb of the message.
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Reading the index failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Errors of reading from or writing to the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database failed.
    #[error("the index of the store failed; run: syncd-origin check")]
    Index(#[source] Box<redb::Error>),
    /// The database code panicked on the file's content.
    #[error("the index of the store is damaged beyond reading; restore the data directory from a copy")]
    IndexUnreadable,
    /// The data directory, or a part of it, was removed, replaced or unmounted under the running origin.
    #[error(
        "{path} is not there any more: bring the data directory back, or restore it, and restart the origin"
    )]
    Gone {
        /// Path of the index, or of the packs.
        path: PathBuf,
    },
    /// A value in the index does not match its checksum.
    #[error("an entry of table {table} in the index of the store is damaged; run: syncd-origin check")]
    Entry { table: &'static str },
    /// A record that another build wrote, in a form that this one does not read.
    #[error(
        "the record of {record} has version {actual}, expected {expected}: another build of syncd-origin wrote it; use \
         that build, or begin anew with `syncd-origin init` in another data directory"
    )]
    RecordVersion { record: &'static str, actual: u8, expected: u8 },
    /// A pack that the index refers to is missing. If garbage collection removed it, locating the chunk again
    /// helps.
    #[error("pack {pack} of the store is missing ({path})")]
    PackMissing {
        pack: PackId,
        /// Expected path.
        path: PathBuf,
    },
    /// A frame does not match its header or checksums.
    #[error("frame at byte {offset} of pack {pack} is damaged")]
    Frame {
        pack: PackId,
        /// Start of the frame.
        offset: u64,
        #[source]
        source: FrameDamage,
    },
    /// Content does not match its hash.
    #[error("stored content {expected} hashes to {actual}")]
    Mismatch {
        /// Hash that it was stored under.
        expected: ContentHash,
        /// Hash of the bytes read.
        actual: ContentHash,
    },
    /// Content that is not in the store.
    #[error("content {hash} is not in the store")]
    ContentMissing { hash: ContentHash },
    /// A directory object that is not in the store.
    #[error("directory object {hash} is not in the store")]
    DirectoryMissing { hash: ObjectHash },
    /// A directory object is damaged.
    #[error("directory object {hash} in the store is damaged")]
    Directory {
        hash: ObjectHash,
        #[source]
        source: DecodeDirectoryError,
    },
    /// A generation record is damaged.
    #[error("the record of generation {number} in the store is damaged")]
    Generation {
        number: u64,
        #[source]
        source: GenerationError,
    },
    /// A root entry is damaged.
    #[error("root entry {hash} in the store is damaged")]
    Root { hash: RootHash },
    /// A chunk is larger than a frame.
    #[error("chunk of {actual} bytes exceeds {limit}")]
    ChunkTooLarge { actual: usize, limit: usize },
    /// A worker claimed chunks and never wrote them, or failed to.
    #[error("{count} chunks were begun and not written")]
    Unwritten {
        /// Number of chunks.
        count: usize,
    },
    /// zstd failed.
    #[error("cannot compress a frame")]
    Compress {
        #[source]
        source: io::Error,
    },
    /// An earlier sync failed. The kernel reports that only once, so nothing written since can be trusted.
    #[error("an earlier sync of the store failed; commit again")]
    SyncFailed,
    /// A file system call failed.
    #[error("cannot {doing} {path}")]
    Io {
        /// Verb of the message.
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The consumer of the content failed.
    #[error("cannot hand out content {hash}")]
    Sink {
        /// Content being read.
        hash: ContentHash,
        /// Error of the consumer.
        #[source]
        source: io::Error,
    },
    /// A thread panicked while it held a lock of the store.
    #[error("the store is unusable after an internal failure; restart syncd-origin")]
    Poisoned,
}

/// Reasons that a generation was not sealed. The store is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Numbers must increase.
    #[error("generation {offered} is not above the latest generation {latest}")]
    NotAbove {
        offered: GenerationNumber,
        /// Highest sealed number.
        latest: GenerationNumber,
    },
    /// The tree's root directory was never added.
    #[error("root directory {object} of generation {number} is not in the store")]
    RootMissing { number: GenerationNumber, object: ObjectHash },
    /// Any other failure.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The caller had to make something else durable first, and could not.
    #[error(transparent)]
    Before(Box<dyn std::error::Error + Send + Sync>),
}

/// Wraps an error of redb, each of whose operations has its own type.
pub(super) fn index(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Index(Box::new(error.into()))
}

/// The data guarded by a lock is unreliable after a panic of its holder.
pub(super) fn poisoned<T>(_: std::sync::PoisonError<T>) -> StoreError {
    StoreError::Poisoned
}
