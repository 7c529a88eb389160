//! The store: the origin's own durable copy of the content of the generations it retains, so that they can be served
//! whatever happens to the content tree.
//!
//! ```text
//! DATA/lock                  held by the one process that has the store open; says its pid
//! DATA/index.redb            chunks, files, directory objects, generations, roots, stat records, small records
//! DATA/packs/NNNNNNNN.pack   append-only: compressed frames of chunks (format: pack.rs); numbers are never reused
//! ```
//!
//! **Who may touch it.** One process, under the lock; in it any number of readers, and one [`Writer`] at a time, whose
//! [`FrameBuilder`]s many threads may fill. Garbage collection is a writer for as long as it changes anything. Readers
//! never wait for a writer.
//!
//! **Sealing.** Chunks are appended to packs beyond their durable length, while their index entries are kept in memory.
//! To seal, the packs are synced, and then ONE transaction adds the entries, the directory objects, the stat records, the
//! generation, and the packs' new durable lengths. Where the entries in memory grow too large they are committed early in
//! the same way (packs synced first), without a generation: content that no generation refers to is garbage, and
//! harmless. So whatever the index names was synced before.
//!
//! **What a crash leaves.** The last generation or the new one. Pack bytes beyond the durable length and packs that the
//! index does not know are cut off and removed when the store is opened. Garbage collection commits first and unlinks
//! packs afterwards; what it did not come to unlink is such an unknown pack.
//!
//! **Garbage collection.** Marks what the retained roots refer to without holding anybody up, then, as the writer, marks
//! what was sealed meanwhile, removes the rest from the index in one transaction, and rewrites packs that are less than
//! half live, one by one ([`Store::collect_garbage`]).
//!
//! **Damage.** redb's pages are checked when the store is opened, frame headers when they are read, chunks, directory
//! objects and files against their hashes whenever they are read here. A missing or short pack does not keep the store
//! from opening: its chunks count as absent, so that the next scan that reads them stores them again.

mod ahead;
mod backup;
mod cache;
mod check;
mod collect;
mod error;
#[cfg(test)]
mod fixture;
mod frame_builder;
#[doc(hidden)]
pub mod fuzzing;
mod history;
mod index;
mod lock;
mod objects;
mod pack;
mod pack_reader;
mod pack_writer;
mod paths;
mod pending;
mod read;
mod records;
mod retention;
mod similar;
#[cfg(test)]
mod tests;
mod write_back;
mod writer;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Condvar, Mutex};

use redb::ReadableTable;
use tracing::warn;

pub use backup::BackupStoreError;
pub use check::{CheckProgress, CheckReport, Damage};
pub use collect::CollectReport;
pub use error::{OpenStoreError, SealError, StoreError};
pub use frame_builder::FrameBuilder;
pub use pack::{Effort, FrameChunk, FrameDamage, Location, PackFrame, PackId};
pub use read::{Chunk, ChunkTables, StoredGeneration};
pub use records::{NamedRecord, Records};
pub use retention::{Retention, retired};
pub use writer::Writer;

use ahead::FramesAhead;
use cache::DirectoryCache;
use index::{Index, PACKS};
use lock::DataLock;
use pack::PACK_HEADER_BYTES;
use pack_reader::PackReader;

const DIRECTORY_CACHE_BYTES: usize = 8 * 1024 * 1024;

/// The origin's store. See the module for its layout and rules.
pub struct Store {
    index: Index,
    packs: PackReader,
    directories: Mutex<DirectoryCache>,
    ahead: FramesAhead,
    /// Whether there is a writer.
    writing: Mutex<bool>,
    written: Condvar,
    /// Packs that are shorter than the index says, with the length up to which their frames are complete.
    short_packs: HashMap<PackId, u64>,
    /// Whether there may be entries that no generation refers to.
    orphans: AtomicBool,
    /// Generations that were retired since the store was opened.
    retired: AtomicU64,
    /// Stored bytes that the current generation needs, as measured last.
    current_bytes: Mutex<Option<u64>>,
    data: PathBuf,
    // Last, so that everything is closed when it is released.
    _lock: DataLock,
}

impl Store {
    /// Makes an empty store in `data`, which is created where it is missing.
    pub fn create(data: &Path) -> Result<Self, OpenStoreError> {
        let io = |doing, path: &Path, source| OpenStoreError::Io { doing, path: path.to_owned(), source };
        fs::create_dir_all(data).map_err(|e| io("create", data, e))?;
        let lock = DataLock::acquire(data)?;
        let path = index_path(data);
        if path.try_exists().map_err(|e| io("read", &path, e))? {
            return Err(OpenStoreError::Exists { path: data.to_owned() });
        }
        let packs = packs_path(data);
        fs::create_dir_all(&packs).map_err(|e| io("create", &packs, e))?;
        // Under its name only once it is complete.
        let unfinished = data.join("index.redb.new");
        match fs::remove_file(&unfinished) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io("remove", &unfinished, e)),
            _ => {}
        }
        drop(Index::create(&unfinished)?);
        fs::rename(&unfinished, &path).map_err(|e| io("create", &path, e))?;
        File::open(data).and_then(|d| d.sync_all()).map_err(|e| io("sync", data, e))?;
        Self::open_locked(data, lock)
    }

    /// Whether there is a store in `data`, of whatever format or state; also where that can't be told.
    pub fn exists(data: &Path) -> bool {
        index_path(data).try_exists().unwrap_or(true)
    }

    /// Opens the store in `data`. Reads the whole index once; removes what a crash left in the packs.
    pub fn open(data: &Path) -> Result<Self, OpenStoreError> {
        let missing = || OpenStoreError::Missing { path: data.to_owned() };
        if !index_path(data).try_exists().map_err(|_| missing())? {
            return Err(missing());
        }
        Self::open_locked(data, DataLock::acquire(data)?)
    }

    fn open_locked(data: &Path, lock: DataLock) -> Result<Self, OpenStoreError> {
        let index = Index::open(&index_path(data))?;
        let packs = PackReader::new(packs_path(data));
        let short_packs = clean_packs(&index, &packs)?;
        let measured = history::measured(&index)?;
        Ok(Self {
            index,
            packs,
            directories: Mutex::new(DirectoryCache::new(DIRECTORY_CACHE_BYTES)),
            ahead: FramesAhead::default(),
            writing: Mutex::new(false),
            written: Condvar::new(),
            short_packs,
            orphans: AtomicBool::new(true),
            retired: AtomicU64::new(0),
            current_bytes: Mutex::new(measured),
            data: data.to_owned(),
            _lock: lock,
        })
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Whether the data directory is still there, as it was opened. Blocks for a look at it.
    pub fn in_place(&self) -> Result<(), StoreError> {
        self.index.in_place()
    }

    /// Whether the pack still has the frame that begins there, as far as its length tells.
    fn is_present(&self, location: &Location) -> bool {
        self.short_packs.get(&location.pack).is_none_or(|&length| location.frame_offset < length)
    }
}

fn index_path(data: &Path) -> PathBuf {
    data.join("index.redb")
}

fn packs_path(data: &Path) -> PathBuf {
    data.join("packs")
}

/// Where the first frame of a short pack starts that is not all there.
fn complete_bytes(packs: &PackReader, id: PackId) -> u64 {
    let mut offset = PACK_HEADER_BYTES as u64;
    while let Ok((_, next)) = packs.frame(id, offset) {
        offset = next;
    }
    offset
}

/// Cuts packs to their durable length and removes those that the index does not know. Returns those that are
/// shorter, with the length up to which their frames are complete.
fn clean_packs(index: &Index, packs: &PackReader) -> Result<HashMap<PackId, u64>, OpenStoreError> {
    let known: HashMap<PackId, u64> = index.read(|t| {
        let table = t.open_table(PACKS).map_err(error::index)?;
        let mut known = HashMap::new();
        for row in table.iter().map_err(error::index)? {
            let (id, length) = row.map_err(error::index)?;
            known.insert(PackId(id.value()), length.value().0);
        }
        Ok(known)
    })?;
    let io = |doing, path: &Path, source| OpenStoreError::Io { doing, path: path.to_owned(), source };
    let directory = packs.directory();
    fs::create_dir_all(directory).map_err(|e| io("create", directory, e))?;
    let mut found = HashMap::new();
    for entry in fs::read_dir(directory).map_err(|e| io("read", directory, e))? {
        let entry = entry.map_err(|e| io("read", directory, e))?;
        let path = entry.path();
        let Some(id) = entry.file_name().to_str().and_then(PackId::from_file_name) else { continue };
        let length = entry.metadata().map_err(|e| io("read", &path, e))?.len();
        match known.get(&id) {
            None => fs::remove_file(&path).map_err(|e| io("remove", &path, e))?,
            Some(&durable) if length > durable => {
                File::options()
                    .write(true)
                    .open(&path)
                    .and_then(|file| file.set_len(durable))
                    .map_err(|e| io("truncate", &path, e))?;
                found.insert(id, durable);
            }
            Some(_) => {
                found.insert(id, length);
            }
        }
    }
    let mut short = HashMap::new();
    for (id, durable) in known {
        let length = found.get(&id).copied().unwrap_or(0);
        if length < durable {
            warn!(pack = %id, length, durable, "pack is missing or too short; run: syncd-origin check");
            short.insert(id, complete_bytes(packs, id));
        }
    }
    Ok(short)
}
