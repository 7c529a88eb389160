//! What can go wrong in the store.

use std::io;
use std::path::PathBuf;

use syncd_shared::GenerationNumber;
use syncd_shared::directory::DecodeDirectoryError;
use syncd_shared::generation::GenerationError;
use syncd_shared::hash::{ContentHash, ObjectHash, RootHash};

use super::pack::{FrameDamage, PackId};

/// Why a store could not be created or opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenStoreError {
    /// There is a store already.
    #[error("{path} holds a store already; use it, or choose another data directory")]
    Exists {
        /// The data directory.
        path: PathBuf,
    },
    /// There is no store.
    #[error("{path} holds no store; create one with: syncd-origin init --data {path}")]
    Missing {
        /// The data directory.
        path: PathBuf,
    },
    /// Another process has it open.
    #[error(
        "{path} is in use by another process ({holder}); stop it first, or ask the running origin",
        holder = .pid.map_or("pid unknown".to_owned(), |pid| format!("pid {pid}"))
    )]
    Held {
        /// The data directory.
        path: PathBuf,
        /// Who holds it, where it said so.
        pid: Option<u32>,
    },
    /// Written by another version of syncd.
    #[error(
        "{path} has store format {actual}, expected {expected}; use the syncd that wrote it, or init a new one"
    )]
    Format {
        /// The index.
        path: PathBuf,
        /// Format found.
        actual: u32,
        /// Format that this version reads and writes.
        expected: u32,
    },
    /// The index is no index, or damaged.
    #[error("the index {path} is damaged; restore the data directory from a copy, or init a new one")]
    Damaged {
        /// The index.
        path: PathBuf,
        /// What the database says.
        #[source]
        source: Box<redb::Error>,
    },
    /// The database code gave up on what it read.
    #[error(
        "the index {path} is damaged beyond reading; restore the data directory from a copy, or init a new one"
    )]
    Unreadable {
        /// The index.
        path: PathBuf,
    },
    /// A file system call failed.
    #[error("cannot {doing} {path}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Reading the index failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why something could not be read from or written to the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database failed.
    #[error("the index of the store failed; run: syncd-origin check")]
    Index(#[source] Box<redb::Error>),
    /// The database code gave up on what it read.
    #[error("the index of the store is damaged beyond reading; restore the data directory from a copy")]
    IndexUnreadable,
    /// The data directory was removed, replaced or unmounted under the running origin.
    #[error(
        "{path} is not there any more: bring the data directory back, or restore it, and restart the origin"
    )]
    Gone {
        /// The index.
        path: PathBuf,
    },
    /// A value in the index is not what was written.
    #[error("an entry of table {table} in the index of the store is damaged; run: syncd-origin check")]
    Entry {
        /// The table.
        table: &'static str,
    },
    /// A pack that the index names is gone. Where garbage collection took it, locating the chunk again helps.
    #[error("pack {pack} of the store is missing ({path})")]
    PackMissing {
        /// The pack.
        pack: PackId,
        /// Where it should be.
        path: PathBuf,
    },
    /// A frame is not what was written.
    #[error("frame at byte {offset} of pack {pack} is damaged")]
    Frame {
        /// The pack.
        pack: PackId,
        /// Where the frame starts.
        offset: u64,
        /// What is wrong with it.
        #[source]
        source: FrameDamage,
    },
    /// Content is not, or no longer, what its hash says.
    #[error("stored content {expected} hashes to {actual}")]
    Mismatch {
        /// Hash it was stored under.
        expected: ContentHash,
        /// Hash of what was read.
        actual: ContentHash,
    },
    /// Content that is not in the store.
    #[error("content {hash} is not in the store")]
    ContentMissing {
        /// Its hash.
        hash: ContentHash,
    },
    /// A directory object that is not in the store.
    #[error("directory object {hash} is not in the store")]
    DirectoryMissing {
        /// Its hash.
        hash: ObjectHash,
    },
    /// A directory object that is not what was written.
    #[error("directory object {hash} in the store is damaged")]
    Directory {
        /// Its hash.
        hash: ObjectHash,
        /// What is wrong with it.
        #[source]
        source: DecodeDirectoryError,
    },
    /// A generation record that is not what was written.
    #[error("the record of generation {number} in the store is damaged")]
    Generation {
        /// Its number.
        number: u64,
        /// What is wrong with it.
        #[source]
        source: GenerationError,
    },
    /// A root entry that is not what was written.
    #[error("root entry {hash} in the store is damaged")]
    Root {
        /// Its hash.
        hash: RootHash,
    },
    /// More bytes than a frame holds.
    #[error("chunk of {actual} bytes exceeds {limit}")]
    ChunkTooLarge {
        /// Bytes given.
        actual: usize,
        /// Bytes that fit.
        limit: usize,
    },
    /// A worker claimed a chunk and never wrote it, or failed to.
    #[error("{count} chunks were begun and not written")]
    Unwritten {
        /// How many.
        count: usize,
    },
    /// zstd failed.
    #[error("cannot compress a frame")]
    Compress {
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A sync failed; the kernel says so only once, so that nothing that was written since can be trusted.
    #[error("an earlier sync of the store failed; commit again")]
    SyncFailed,
    /// A file system call failed.
    #[error("cannot {doing} {path}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The reader of the content gave up.
    #[error("cannot hand out content {hash}")]
    Sink {
        /// Content that was read.
        hash: ContentHash,
        /// What the reader says.
        #[source]
        source: io::Error,
    },
    /// A thread panicked while it held a part of the store.
    #[error("the store is unusable after an internal failure; restart syncd-origin")]
    Poisoned,
}

/// Why a generation was not sealed. The store stays as it was.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Numbers only go up.
    #[error("generation {offered} is not above the latest generation {latest}")]
    NotAbove {
        /// Number offered.
        offered: GenerationNumber,
        /// Latest number sealed.
        latest: GenerationNumber,
    },
    /// The tree's root directory was never put.
    #[error("root directory {object} of generation {number} is not in the store")]
    RootMissing {
        /// Number offered.
        number: GenerationNumber,
        /// The directory object.
        object: ObjectHash,
    },
    /// Anything else.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Wraps what redb says; its operations have an error type each.
pub(super) fn index(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Index(Box::new(error.into()))
}

/// A panic of another thread under a lock leaves what it guards in doubt.
pub(super) fn poisoned<T>(_: std::sync::PoisonError<T>) -> StoreError {
    StoreError::Poisoned
}
