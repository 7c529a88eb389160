//! The store: the origin's own durable copy of the content of retained generations, which it can serve
//! whatever happens to the content tree.
//!
//! ```text
//! DATA/lock                  held by the one process that has the store open; contains its process ID
//! DATA/index.redb            chunks, files, directory objects, generations, roots, records
//! DATA/packs/NNNNNNNN.pack   append-only: compressed frames of chunks (pack.rs); numbers are never reused
//! ```
//!
//! **Access.** One process has access, under the lock. It may have any number of readers, and one [`Writer`]
//! at a time, whose [`FrameBuilder`]s can be filled by many threads. Garbage collection is a writer while it
//! changes anything. Readers never wait for a writer.
//!
//! **Sealing.** Chunks are appended to packs beyond their durable length, while their index entries stay in
//! memory. Sealing syncs the packs. ONE transaction then adds the entries, the directory objects, the stat
//! records, the generation, and the new durable lengths of the packs. If the entries in memory grow too
//! large, they are committed early in the same way (packs synced first), without a generation. Content that
//! no generation refers to is harmless garbage. Everything that the index refers to has therefore been synced
//! before.
//!
//! **After a crash.** The store has the last generation or the new one. Opening it truncates packs to their
//! durable length and removes packs that the index does not know. Garbage collection commits first and
//! unlinks packs afterwards; a pack that it did not unlink is such an unknown pack.
//!
//! **Garbage collection.** Marks everything that the retained roots refer to without blocking anybody. Then,
//! as the writer, marks content sealed meanwhile, removes the rest from the index in one transaction, and
//! rewrites packs that are less than half live, one by one ([`Store::collect_garbage`]).
//!
//! **Damage.** redb's pages are checked when the store is opened, and frame headers when they are read.
//! Chunks, directory objects and files are checked against their hashes whenever they are read here. A
//! missing or short pack does not prevent opening the store: its chunks count as missing, and the next scan
//! that reads them stores them again.

mod ahead;
mod backup;
mod cache;
mod check;
mod collect;
mod error;
#[cfg(test)]
pub(crate) mod fixture;
mod frame_builder;
#[cfg(feature = "fuzzing")]
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
pub use check::{CheckReport, Damage};
pub use error::{OpenStoreError, SealError, StoreError};
pub use frame_builder::FrameBuilder;
pub use pack::{Effort, Location, PackId};
pub use read::{Chunk, ChunkTables, StatRow};
pub use records::Records;
pub use retention::Retention;
pub use writer::{UnsavedDirectories, Writer};

use ahead::FramesAhead;
use cache::DirectoryCache;
use index::{Index, PACKS};
use lock::DataLock;
use pack::PACK_HEADER_BYTES;
use pack_reader::PackReader;

const DIRECTORY_CACHE_BYTES: usize = 8 * 1024 * 1024;

/// The origin's store. See the module documentation for its layout and rules.
pub struct Store {
    index: Index,
    packs: PackReader,
    /// Device and inode of the directory of packs.
    packs_directory: Option<(u64, u64)>,
    directories: Mutex<DirectoryCache>,
    ahead: FramesAhead,
    /// Whether a writer exists.
    writing: Mutex<bool>,
    written: Condvar,
    /// Packs shorter than recorded, with the length up to which their frames are complete.
    short_packs: HashMap<PackId, u64>,
    /// Marks of a collection that gave way.
    marking: Mutex<Option<collect::Marks>>,
    /// Whether there may be content that no generation refers to.
    orphans: AtomicBool,
    /// Generations retired since the store was opened.
    retired: AtomicU64,
    /// Stored bytes that the current generation needs, as last measured.
    current_bytes: Mutex<Option<u64>>,
    data: PathBuf,
    // Last, so that everything is closed before the lock is released.
    _lock: DataLock,
}

impl Store {
    /// Creates an empty store in `data`, and `data` itself if it is missing.
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
        // The index gets its final name only once it is complete.
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

    /// Whether `data` holds a store of any format or state. `true` if that cannot be determined.
    pub fn exists(data: &Path) -> bool {
        index_path(data).try_exists().unwrap_or(true)
    }

    /// Opens the store in `data`. Reads the whole index once and removes remains of a crash from the packs.
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
            packs_directory: index::identity(&packs_path(data)).ok(),
            directories: Mutex::new(DirectoryCache::new(DIRECTORY_CACHE_BYTES)),
            ahead: FramesAhead::default(),
            writing: Mutex::new(false),
            written: Condvar::new(),
            short_packs,
            marking: Mutex::new(None),
            orphans: AtomicBool::new(true),
            retired: AtomicU64::new(0),
            current_bytes: Mutex::new(measured),
            data: data.to_owned(),
            _lock: lock,
        })
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Checks that index and packs are still the ones that were opened. Blocks for two system calls.
    pub fn in_place(&self) -> Result<(), StoreError> {
        self.index.in_place()?;
        let path = packs_path(&self.data);
        match index::identity(&path).ok() == self.packs_directory {
            true => Ok(()),
            false => Err(StoreError::Gone { path }),
        }
    }

    /// Whether the pack is long enough to have the frame at this location.
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

/// Start of the first incomplete frame of a short pack.
fn complete_bytes(packs: &PackReader, id: PackId) -> u64 {
    let mut offset = PACK_HEADER_BYTES as u64;
    while let Ok((_, next)) = packs.frame(id, offset) {
        offset = next;
    }
    offset
}

/// Truncates packs to their durable length and removes unknown ones. Returns the packs that are too short,
/// with the length up to which their frames are complete.
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
