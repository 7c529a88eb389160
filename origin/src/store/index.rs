//! The index: one redb database with everything except file content.
//!
//! Values that no hash or signature covers carry a checksum of key and value, because redb checks its own
//! pages only when it opens a file. redb panics on a damaged page; that panic is caught here and becomes an
//! error.

use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use redb::{
    Builder, Database, DatabaseError, Durability, ReadTransaction, ReadableDatabase, ReadableTable,
    StorageError, TableDefinition, WriteTransaction,
};
use syncd_runtime::write_again::write_again;
use syncd_shared::hash::ContentHash;

use super::error::{OpenStoreError, StoreError, index, poisoned};
use super::pack::{Location, PackId};
use crate::test_faults;

/// Format version of everything that the store writes under DATA.
pub(super) const STORE_FORMAT: u32 = 1;
const CACHE_BYTES: usize = 16 * 1024 * 1024;

/// Chunk hash -> location.
pub(super) const CHUNKS: TableDefinition<'_, &[u8; 32], &[u8; 20]> = TableDefinition::new("chunks");
/// File hash -> chunks. Files of one chunk are not listed, because their hash is that of the chunk.
pub(super) const FILES: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("files");
/// Directory object hash -> canonical bytes, packed by [`super::objects`].
pub(super) const DIRECTORIES: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("directories");
/// Generation number -> 64 signature, record.
pub(super) const GENERATIONS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("generations");
/// Root hash -> u32 number of generations with this root, root entry.
pub(super) const ROOTS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("roots");
/// Directory path -> the scanner's record.
pub(super) const STAT: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("stat");
/// Namespace and name -> value.
pub(super) const RECORDS: TableDefinition<'_, (&str, &[u8]), &[u8]> = TableDefinition::new("records");
/// Pack number -> durable length, uncompressed bytes of its frames.
pub(super) const PACKS: TableDefinition<'_, u32, (u64, u64)> = TableDefinition::new("packs");
/// First 8 bytes of a content hash -> path in the tree: see [`super::paths`].
pub(super) const PATHS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("paths");
/// The store's own values.
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// Key in [`META`]: [`STORE_FORMAT`].
pub(super) const META_FORMAT: &str = "format";
/// Key in [`META`]: number of the next new pack.
pub(super) const META_NEXT_PACK: &str = "next_pack";

/// Key in [`META`]: stored bytes that the current generation needs, as last measured.
pub(super) const META_CURRENT_BYTES: &str = "current_bytes";

/// Time that reopening the database waits for its readers.
const REOPEN_PATIENCE: Duration = Duration::from_secs(5);

/// The index. See the module documentation.
pub(super) struct Index {
    /// `None` after a failed reopening.
    database: Mutex<Option<Arc<Database>>>,
    /// Set after a disk error: the database then refuses everything, even once the disk works again.
    failed: AtomicBool,
    path: PathBuf,
    /// Device and inode of the open file.
    file: (u64, u64),
}

impl Index {
    /// Creates a new index in a file that does not exist yet.
    pub(super) fn create(path: &Path) -> Result<Self, OpenStoreError> {
        let database = caught(|| Ok(Builder::new().set_cache_size(CACHE_BYTES).create(path)))
            .map_err(|_| OpenStoreError::Unreadable { path: path.to_owned() })?
            .map_err(|e| open_error(path, e))?;
        let created = Self::of(database, path)?;
        created.write(|t| {
            t.open_table(CHUNKS).map_err(index)?;
            t.open_table(FILES).map_err(index)?;
            t.open_table(DIRECTORIES).map_err(index)?;
            t.open_table(GENERATIONS).map_err(index)?;
            t.open_table(ROOTS).map_err(index)?;
            t.open_table(STAT).map_err(index)?;
            t.open_table(RECORDS).map_err(index)?;
            t.open_table(PACKS).map_err(index)?;
            let mut meta = t.open_table(META).map_err(index)?;
            meta.insert(META_FORMAT, u64::from(STORE_FORMAT)).map_err(index)?;
            meta.insert(META_NEXT_PACK, 1).map_err(index)?;
            Ok::<_, StoreError>(())
        })?;
        Ok(created)
    }

    /// Opens an index and reads all of it once to check every page.
    pub(super) fn open(path: &Path) -> Result<Self, OpenStoreError> {
        let database = caught(|| Ok(open_checked(path)))
            .map_err(|_| OpenStoreError::Unreadable { path: path.to_owned() })?
            .map_err(|e| open_error(path, e))?;
        let opened = Self::of(database, path)?;
        let format = opened
            .read(|t| {
                let meta = t.open_table(META).map_err(index)?;
                Ok(meta.get(META_FORMAT).map_err(index)?.map(|v| v.value()))
            })
            .map_err(|e| match e {
                StoreError::Index(source) => OpenStoreError::Damaged { path: path.to_owned(), source },
                _ => OpenStoreError::Unreadable { path: path.to_owned() },
            })?
            .unwrap_or(0);
        if format != u64::from(STORE_FORMAT) {
            let actual = u32::try_from(format).unwrap_or(u32::MAX);
            return Err(OpenStoreError::Format { path: path.to_owned(), actual, expected: STORE_FORMAT });
        }
        Ok(opened)
    }

    /// Reads one consistent state.
    pub(super) fn read<T>(
        &self,
        read: impl FnOnce(&ReadTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let database = self.database()?;
        self.noted(caught(|| read(&database.begin_read().map_err(index)?)))
    }

    /// Applies a change completely or, on an error, not at all. Durable on `Ok`: the change survives a power
    /// cut.
    ///
    /// Does not use redb's quick repair, which writes the allocator's state, as large as the index, with each
    /// commit. It would only save the walk after a crash that [`Index::open`] performs anyway.
    pub(super) fn write<T, E: From<StoreError>>(
        &self,
        write: impl FnOnce(&WriteTransaction) -> Result<T, E>,
    ) -> Result<T, E> {
        let durability = if test_faults::answers_early() { Durability::None } else { Durability::Immediate };
        self.write_with(durability, write)
    }

    /// Like [`Self::write`], but durable only with the next durable change. Costs no sync.
    pub(super) fn write_later<T>(
        &self,
        write: impl FnOnce(&WriteTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.write_with(Durability::None, write)
    }

    fn write_with<T, E: From<StoreError>>(
        &self,
        durability: Durability,
        write: impl FnOnce(&WriteTransaction) -> Result<T, E>,
    ) -> Result<T, E> {
        // Writing to an unlinked file would succeed and lose the data.
        self.in_place()?;
        let database = self.database()?;
        let written = caught(|| {
            let mut transaction = database.begin_write().map_err(index)?;
            transaction.set_durability(durability).map_err(index)?;
            let out = match write(&transaction) {
                Ok(out) => out,
                Err(error) => {
                    transaction.abort().map_err(index)?;
                    return Ok(Err(error));
                }
            };
            transaction.commit().map_err(index)?;
            Ok(Ok(out))
        });
        self.noted(written)?
    }

    fn of(database: Database, path: &Path) -> Result<Self, OpenStoreError> {
        let file = identity(path).map_err(|source| OpenStoreError::Io {
            doing: "look at",
            path: path.to_owned(),
            source,
        })?;
        let database = Mutex::new(Some(Arc::new(database)));
        Ok(Self { database, failed: AtomicBool::new(false), path: path.to_owned(), file })
    }

    /// Checks that the open file is still the one at this path. Blocks for one system call.
    pub(super) fn in_place(&self) -> Result<(), StoreError> {
        match identity(&self.path) {
            Ok(found) if found == self.file => Ok(()),
            _ => Err(StoreError::Gone { path: self.path.clone() }),
        }
    }

    /// The database, reopened after a disk error.
    fn database(&self) -> Result<Arc<Database>, StoreError> {
        let mut database = self.database.lock().map_err(poisoned)?;
        if self.failed.load(Ordering::SeqCst) {
            self.reopen(&mut database)?;
        }
        database.clone().ok_or(StoreError::IndexUnreadable)
    }

    fn noted<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(StoreError::Index(error)) = &result
            && matches!(**error, redb::Error::Io(_) | redb::Error::PreviousIo)
        {
            self.failed.store(true, Ordering::SeqCst);
        }
        result
    }

    /// Reopens the database without concurrent readers: new ones wait, and existing ones are waited for. The
    /// whole file is rewritten first. After a failed sync the kernel marks unwritten pages as clean, and
    /// reads return data that the disk does not have.
    fn reopen(&self, database: &mut Option<Arc<Database>>) -> Result<(), StoreError> {
        let started = Instant::now();
        while database.as_ref().is_some_and(|database| Arc::strong_count(database) > 1) {
            if started.elapsed() > REOPEN_PATIENCE {
                return Err(index(redb::Error::PreviousIo));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        *database = None;
        write_again(&self.path).map_err(|error| index(redb::Error::Io(error)))?;
        let opened = caught(|| open_checked(&self.path).map_err(index))?;
        *database = Some(Arc::new(opened));
        self.failed.store(false, Ordering::SeqCst);
        tracing::warn!("the index of the store was opened anew after an error of the disk");
        Ok(())
    }
}

pub(super) fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    let found = std::fs::metadata(path)?;
    Ok((found.dev(), found.ino()))
}

fn open_checked(path: &Path) -> Result<Database, DatabaseError> {
    Builder::new().set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true).open(path)
}

fn caught<T>(f: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or(Err(StoreError::IndexUnreadable))
}

fn open_error(path: &Path, error: DatabaseError) -> OpenStoreError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenStoreError::Held { path, pid: None },
        DatabaseError::Storage(StorageError::Io(source)) if source.raw_os_error().is_some() => {
            OpenStoreError::Io { doing: "open", path, source }
        }
        other => OpenStoreError::Damaged { path, source: Box::new(other.into()) },
    }
}

/// Encodes a value of [`CHUNKS`].
pub(super) fn encode_location(location: &Location) -> [u8; 20] {
    let mut out = [0; 20];
    out[..4].copy_from_slice(&location.pack.0.to_le_bytes());
    out[4..12].copy_from_slice(&location.frame_offset.to_le_bytes());
    out[12..16].copy_from_slice(&location.offset_in_frame.to_le_bytes());
    out[16..].copy_from_slice(&location.length.to_le_bytes());
    out
}

/// Decodes a value of [`CHUNKS`].
pub(super) fn decode_location(bytes: &[u8; 20]) -> Location {
    let [p0, p1, p2, p3, f0, f1, f2, f3, f4, f5, f6, f7, o0, o1, o2, o3, l0, l1, l2, l3] = *bytes;
    Location {
        pack: PackId(u32::from_le_bytes([p0, p1, p2, p3])),
        frame_offset: u64::from_le_bytes([f0, f1, f2, f3, f4, f5, f6, f7]),
        offset_in_frame: u32::from_le_bytes([o0, o1, o2, o3]),
        length: u32::from_le_bytes([l0, l1, l2, l3]),
    }
}

/// Looks up a chunk in an open table.
pub(super) fn location_in(
    chunks: &impl ReadableTable<&'static [u8; 32], &'static [u8; 20]>,
    hash: &ContentHash,
) -> Result<Option<Location>, StoreError> {
    let found = chunks.get(hash.as_bytes()).map_err(index)?;
    Ok(found.map(|value| decode_location(value.value())))
}

const CHECKSUM_BYTES: usize = 8;

fn checksum(table: &'static str, key: &[u8], value: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(table.as_bytes());
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    let mut out = [0; CHECKSUM_BYTES];
    out.copy_from_slice(&hasher.finalize().as_bytes()[..CHECKSUM_BYTES]);
    out
}

/// Appends the checksum to a value.
pub(super) fn with_checksum(table: &'static str, key: &[u8], value: &[u8]) -> Vec<u8> {
    [value, &checksum(table, key, value)].concat()
}

/// Checks and removes the checksum of a value.
pub(super) fn without_checksum<'a>(
    table: &'static str,
    key: &[u8],
    stored: &'a [u8],
) -> Result<&'a [u8], StoreError> {
    stored
        .split_last_chunk::<CHECKSUM_BYTES>()
        .filter(|(value, sum)| checksum(table, key, value) == **sum)
        .map(|(value, _)| value)
        .ok_or(StoreError::Entry { table })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_round_trip() {
        let location =
            Location { pack: PackId(7), frame_offset: 1 << 40, offset_in_frame: 99, length: 65_536 };
        assert_eq!(decode_location(&encode_location(&location)), location);
    }

    #[test]
    fn a_value_of_another_key_is_refused() {
        let stored = with_checksum("stat", b"a", b"value");
        assert_eq!(without_checksum("stat", b"a", &stored).unwrap(), b"value");
        assert!(without_checksum("stat", b"b", &stored).is_err());
        assert!(without_checksum("stat", b"a", &stored[1..]).is_err());
        assert!(without_checksum("stat", b"a", b"").is_err());
    }

    #[test]
    fn a_panic_inside_becomes_an_error() {
        let error = caught::<()>(|| panic!("as a damaged page makes redb do")).unwrap_err();
        assert!(matches!(error, StoreError::IndexUnreadable));
    }

    fn put(index_: &Index, key: &str, value: u64) {
        let put = |t: &WriteTransaction| {
            t.open_table(META).map_err(index)?.insert(key, value).map_err(index)?;
            Ok::<_, StoreError>(())
        };
        index_.write(put).unwrap();
    }

    fn get(index_: &Index, key: &str) -> Option<u64> {
        let get = |t: &ReadTransaction| {
            Ok(t.open_table(META).map_err(index)?.get(key).map_err(index)?.map(|v| v.value()))
        };
        index_.read(get).unwrap()
    }

    /// Bytes that this thread has handed to the kernel to write.
    fn written_by_this_thread() -> u64 {
        let io = std::fs::read_to_string("/proc/thread-self/io").unwrap();
        io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap().parse().unwrap()
    }

    #[test]
    fn after_an_error_of_the_disk_all_of_it_is_written_again_before_it_is_read() {
        let temp = tempfile::tempdir().unwrap();
        let opened = Index::create(&temp.path().join("index.redb")).unwrap();
        put(&opened, "before", 1);
        let failed: Result<(), _> =
            opened.read(|_| Err(index(redb::Error::Io(std::io::Error::other("disk")))));
        assert!(failed.is_err());
        let before = written_by_this_thread();
        assert_eq!(get(&opened, "before"), Some(1));
        let length = std::fs::metadata(&opened.path).unwrap().len();
        assert!(written_by_this_thread() - before >= length);
        // Once: the next one finds it well.
        let before = written_by_this_thread();
        assert_eq!(get(&opened, "before"), Some(1));
        assert!(written_by_this_thread() - before < length);
        put(&opened, "after", 2);
        assert_eq!(get(&opened, "after"), Some(2));
    }

    #[test]
    fn an_error_that_is_not_the_disks_leaves_it_open() {
        let temp = tempfile::tempdir().unwrap();
        let opened = Index::create(&temp.path().join("index.redb")).unwrap();
        let failed: Result<(), _> = opened.read(|_| Err(StoreError::Entry { table: "meta" }));
        assert!(failed.is_err() && !opened.failed.load(Ordering::SeqCst));
    }

    #[test]
    fn an_index_that_can_not_be_reopened_is_tried_again_by_the_next_who_asks() {
        let temp = tempfile::tempdir().unwrap();
        let opened = Index::create(&temp.path().join("index.redb")).unwrap();
        put(&opened, "before", 1);
        let _: Result<(), _> = opened.read(|_| Err(index(redb::Error::PreviousIo)));
        let away = temp.path().join("away");
        std::fs::rename(&opened.path, &away).unwrap();
        assert!(opened.read(|_| Ok(())).is_err());
        assert!(opened.read(|_| Ok(())).is_err());
        std::fs::rename(&away, &opened.path).unwrap();
        assert_eq!(get(&opened, "before"), Some(1));
    }
}
