//! The record: what the agent knows about its trees, in one transactional file.
//!
//! | table | key | value |
//! | --- | --- | --- |
//! | meta | `format`, `live`, `previous` | number, little endian; the slots of `live` and `previous` |
//! | meta | `coming`, `coming_inode` | a pending exchange with `live`: the slot, and the inode number in it |
//! | signed | `accepted` | signature, then the generation's canonical bytes |
//! | slots | K of `slots/K` | its state ([`crate::state::slot::Slot::row`]) |
//! | served | K of `slots/K` | canonical bytes of the roots that the slot served since the on-activate hook last succeeded for it, including that root; none: unknown |
//! | decisions | `good`, `trial`, `refused`, `node`, `ordered` | JSON ([`crate::state::decisions`]) |
//! | directories | object hash | canonical bytes of a directory object |
//! | inodes | path of a directory of the live tree, `//`, hash of a page of its entries | inode numbers in entry order, little endian; 0: a directory |
//! | notes | `drift`, `verification`, `owner` | JSON of local changes, of the progress of background verification, of user and group |
//!
//! Only [`crate::replica`] and its parts open the record. A crash leaves the state of the last durable
//! commit. Directory objects are checked against their hash on every read, and inode numbers against the disk
//! on every use. The whole file is checked when it is opened. A damaged file is moved aside; the trees stay,
//! and the record is rebuilt from them.

#![cfg_attr(
    not(test),
    expect(clippy::disallowed_methods, reason = "the record, which has one name below ROOT/state")
)]

mod decisions;
mod directories;
mod inodes;
mod notes;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use syncd_runtime::write_again::write_again;
use syncd_shared::directory::DecodeDirectoryError;
use syncd_shared::generation::GenerationError;
use syncd_shared::tree::{DecodeRootError, ROOT_ENTRY_BYTES};
use syncd_shared::{ObjectHash, RootEntry, SignedGeneration};

use crate::state::decisions::Decisions;
use crate::state::slot::{RowError, Slot, decode_generation, encode_generation};

use self::decisions::DECISIONS;
#[cfg(test)]
pub(crate) use self::directories::counts;
use self::directories::{DIRECTORIES, PageCache};
#[cfg(feature = "fuzzing")]
pub(crate) use self::inodes::decode_inodes;
use self::inodes::{INODES, apply_inodes};
pub(crate) use self::inodes::{InodeChanges, Leaf};
use self::notes::NOTES;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const SIGNED: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("signed");
const SLOTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("slots");
const SERVED: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("served");

/// Version of these tables.
const FORMAT: u64 = 4;
/// Limit of memory for the database's pages, in bytes.
const CACHE_BYTES: usize = 8 * 1024 * 1024;

/// Reason why the record could not be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The database failed.
    #[error("{doing} in the record")]
    Database {
        /// Operation, as the start of a message.
        doing: &'static str,
        /// The cause.
        #[source]
        source: Box<redb::Error>,
    },
    /// Another version of syncd wrote the record.
    #[error("the record has format {actual}, this agent reads {FORMAT}: use the agent that wrote it")]
    Format {
        /// Format found.
        actual: u64,
    },
    /// An older build wrote the record, whose trees this build cannot use.
    #[error("the record was written by an older build of syncd: move ROOT away and join again")]
    OlderBuild,
    /// The state of a slot cannot be decoded.
    #[error("read the state of a slot from the record")]
    Row(#[from] RowError),
    /// A decision cannot be decoded.
    #[error("read the row {key} of the decisions in the record")]
    Decision {
        /// Name of the row.
        key: &'static str,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A damaged record could not be moved aside.
    #[error("move the damaged record {} aside", path.display())]
    MoveAside {
        /// Path of the record.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A stored generation is invalid.
    #[error("read a generation from the record")]
    Generation(#[from] GenerationError),
    /// A stored root entry is invalid.
    #[error("read a root entry from the record")]
    Root(#[from] DecodeRootError),
    /// A stored directory object is damaged.
    #[error("read a directory object from the record")]
    Directory(#[from] DecodeDirectoryError),
    /// The entries of a directory do not add up to the totals in its parent.
    #[error("directory object {object} has other totals than its parent says")]
    Totals {
        /// Hash of the directory object.
        object: ObjectHash,
    },
    /// A directory object is missing.
    #[error("the record has no directory object {object}")]
    Unknown {
        /// Hash of the directory object.
        object: ObjectHash,
    },
}

impl RecordError {
    fn database<E: Into<redb::Error>>(doing: &'static str) -> impl Fn(E) -> Self {
        move |e| Self::Database { doing, source: Box::new(e.into()) }
    }
}

/// State that is kept in memory as well.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    /// Slot that `live` names.
    pub live: Option<u64>,
    /// Slot that `previous` names.
    pub previous: Option<u64>,
    /// Pending exchange with `live`.
    pub coming: Option<Coming>,
    /// The highest generation ever accepted.
    pub accepted: Option<SignedGeneration>,
    pub slots: BTreeMap<u64, Slot>,
    /// Roots that a slot served since the on-activate hook last succeeded for it, including that root.
    /// Missing: unknown.
    pub served: BTreeMap<u64, Vec<RootEntry>>,
    pub decisions: Decisions,
}

/// Pending exchange of `slots/K` with `live`. The names do not show whether it was done; the inode does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Coming {
    /// K.
    pub slot: u64,
    /// Inode number at `slots/K` before the exchange, and at `live` after it.
    pub inode: u64,
}

/// Change of [`Known`] in one transaction.
#[derive(Debug, Default)]
pub(crate) struct Change<'a> {
    /// New states. A state without a row removes the old row.
    pub slots: Vec<(u64, &'a Slot)>,
    /// New slot of `live`.
    pub live: Option<u64>,
    /// New accepted generation.
    pub accepted: Option<&'a SignedGeneration>,
    /// New slot of `previous`, or its removal.
    pub previous: Option<Option<u64>>,
    /// New pending exchange with `live`, or its end.
    pub coming: Option<Option<Coming>>,
    /// Change of the live tree's inodes.
    pub inodes: Option<&'a InodeChanges>,
    /// New list of the roots that a slot served.
    pub served: Option<(u64, &'a [RootEntry])>,
    /// New decisions, as a whole.
    pub decisions: Option<&'a Decisions>,
}

/// The open record.
pub(crate) struct Record {
    database: Database,
    cache: Mutex<PageCache>,
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Record")
    }
}

fn open_checked(path: &Path) -> Result<Database, redb::DatabaseError> {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder.create(path)
}

impl Record {
    /// Opens the record, or creates an empty one. A damaged record is moved aside and replaced by an empty
    /// one. Returns its new name.
    pub fn open(path: &Path) -> Result<(Self, Option<PathBuf>), RecordError> {
        let mut moved = None;
        let database = match open_checked(path) {
            Ok(database) => database,
            Err(redb::DatabaseError::Storage(redb::StorageError::Io(e)))
                if e.kind() != std::io::ErrorKind::InvalidData
                    && e.kind() != std::io::ErrorKind::UnexpectedEof =>
            {
                return Err(RecordError::database("open")(redb::StorageError::Io(e)));
            }
            Err(
                redb::DatabaseError::Storage(redb::StorageError::Corrupted(_) | redb::StorageError::Io(_))
                | redb::DatabaseError::RepairAborted,
            ) => {
                moved = Some(move_aside(path)?);
                open_checked(path).map_err(RecordError::database("open"))?
            }
            Err(e) => return Err(RecordError::database("open")(e)),
        };
        let record = Self { database, cache: Mutex::default() };
        record.prepare()?;
        Ok((record, moved))
    }

    /// Closes and reopens the file. After a disk error the database refuses every operation, even once there
    /// is space again. If this fails, the record must not be used before a later call succeeds.
    pub fn reopen(record: &mut Arc<Self>, path: &Path) -> Result<(), RecordError> {
        let nothing = redb::backends::InMemoryBackend::new();
        // The old database holds a lock on the file, so it is closed first.
        let database =
            Database::builder().create_with_backend(nothing).map_err(RecordError::database("close"))?;
        *record = Arc::new(Self { database, cache: Mutex::default() });
        match write_again(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(RecordError::database("write")(redb::StorageError::Io(error)));
            }
            _ => {}
        }
        let (opened, moved) = Self::open(path)?;
        if let Some(moved) = &moved {
            tracing::warn!(path = %moved.display(), "the record was damaged and moved aside");
        }
        *record = Arc::new(opened);
        Ok(())
    }

    fn prepare(&self) -> Result<(), RecordError> {
        let doing = RecordError::database::<redb::Error>("prepare");
        let write = self.begin(true)?;
        let format = {
            let mut meta = write.open_table(META).map_err(|e| doing(e.into()))?;
            write.open_table(SIGNED).map_err(|e| doing(e.into()))?;
            write.open_table(SLOTS).map_err(|e| doing(e.into()))?;
            write.open_table(SERVED).map_err(|e| doing(e.into()))?;
            write.open_table(DECISIONS).map_err(|e| doing(e.into()))?;
            write.open_table(DIRECTORIES).map_err(|e| doing(e.into()))?;
            write.open_table(INODES).map_err(|e| doing(e.into()))?;
            write.open_table(NOTES).map_err(|e| doing(e.into()))?;
            let found = meta.get("format").map_err(|e| doing(e.into()))?.map(|v| v.value());
            if found.is_none() {
                meta.insert("format", FORMAT).map_err(|e| doing(e.into()))?;
            }
            found
        };
        match format {
            None => commit(write),
            Some(FORMAT) => Ok(()),
            Some(..FORMAT) => Err(RecordError::OlderBuild),
            Some(actual) => Err(RecordError::Format { actual }),
        }
    }

    fn begin(&self, durable: bool) -> Result<WriteTransaction, RecordError> {
        let mut write = self.database.begin_write().map_err(RecordError::database("begin"))?;
        if !durable {
            write
                .set_durability(Durability::None)
                .map_err(|e| RecordError::database("begin")(redb_error(e)))?;
        }
        Ok(write)
    }

    /// Reads all of [`Known`].
    pub fn known(&self) -> Result<Known, RecordError> {
        let doing = RecordError::database::<redb::Error>("read what is known");
        let read = self.database.begin_read().map_err(|e| doing(e.into()))?;
        let meta = read.open_table(META).map_err(|e| doing(e.into()))?;
        let mut known = Known {
            live: meta.get("live").map_err(|e| doing(e.into()))?.map(|v| v.value()),
            previous: meta.get("previous").map_err(|e| doing(e.into()))?.map(|v| v.value()),
            coming: read_coming(&meta).map_err(|e| doing(e.into()))?,
            ..Known::default()
        };
        let signed = read.open_table(SIGNED).map_err(|e| doing(e.into()))?;
        if let Some(accepted) = signed.get("accepted").map_err(|e| doing(e.into()))? {
            known.accepted = Some(decode_generation(accepted.value())?);
        }
        let slots = read.open_table(SLOTS).map_err(|e| doing(e.into()))?;
        for item in slots.iter().map_err(|e| doing(e.into()))? {
            let (slot, row) = item.map_err(|e| doing(e.into()))?;
            known.slots.insert(slot.value(), Slot::decode(row.value())?);
        }
        let served = read.open_table(SERVED).map_err(|e| doing(e.into()))?;
        for item in served.iter().map_err(|e| doing(e.into()))? {
            let (slot, roots) = item.map_err(|e| doing(e.into()))?;
            let roots = roots.value().chunks(ROOT_ENTRY_BYTES).map(RootEntry::decode);
            known.served.insert(slot.value(), roots.collect::<Result<_, _>>()?);
        }
        known.decisions = decisions::read(&read.open_table(DECISIONS).map_err(|e| doing(e.into()))?)?;
        Ok(known)
    }

    /// Applies one change atomically. A change that is not durable becomes so with the next durable one.
    pub fn apply(&self, change: &Change<'_>, durable: bool) -> Result<(), RecordError> {
        let write = self.begin(durable)?;
        apply_change(&write, change).map_err(RecordError::database("change what is known"))?;
        commit(write)
    }

    /// Replaces [`Known`] by the result of recovery, durably.
    pub fn restore(&self, known: &Known) -> Result<(), RecordError> {
        let write = self.begin(true)?;
        restore_known(&write, known).map_err(RecordError::database("restore what is known"))?;
        commit(write)
    }
}

fn redb_error(_: redb::SetDurabilityError) -> redb::Error {
    redb::Error::Corrupted("durability of a transaction with savepoints".into())
}

fn commit(write: WriteTransaction) -> Result<(), RecordError> {
    crate::state::disk::fault::point()
        .map_err(|e| RecordError::database("commit")(redb::StorageError::Io(e.into())))?;
    write.commit().map_err(RecordError::database("commit"))
}

fn apply_change(write: &WriteTransaction, change: &Change<'_>) -> Result<(), redb::Error> {
    let mut slots = write.open_table(SLOTS)?;
    for (slot, state) in &change.slots {
        match state.row() {
            Some(row) => drop(slots.insert(slot, row.as_slice())?),
            None => drop(slots.remove(slot)?),
        }
    }
    let mut meta = write.open_table(META)?;
    if let Some(slot) = change.live {
        meta.insert("live", slot)?;
    }
    if let Some(accepted) = change.accepted {
        let mut signed = write.open_table(SIGNED)?;
        signed.insert("accepted", encode_generation(accepted).as_slice())?;
    }
    match change.previous {
        Some(Some(slot)) => drop(meta.insert("previous", slot)?),
        Some(None) => drop(meta.remove("previous")?),
        None => {}
    }
    if let Some(coming) = change.coming {
        put_coming(&mut meta, coming)?;
    }
    if let Some((slot, roots)) = change.served {
        let mut served = write.open_table(SERVED)?;
        match roots.is_empty() {
            true => drop(served.remove(slot)?),
            false => drop(served.insert(slot, encode_roots(roots).as_slice())?),
        }
    }
    change.decisions.map_or(Ok(()), |decisions| decisions::put(write, decisions))?;
    change.inodes.map_or(Ok(()), |inodes| apply_inodes(write, inodes))
}

fn restore_known(write: &WriteTransaction, known: &Known) -> Result<(), redb::Error> {
    let mut meta = write.open_table(META)?;
    for (key, value) in [("live", known.live), ("previous", known.previous)] {
        match value {
            Some(slot) => drop(meta.insert(key, slot)?),
            None => drop(meta.remove(key)?),
        }
    }
    put_coming(&mut meta, known.coming)?;
    let mut signed = write.open_table(SIGNED)?;
    match &known.accepted {
        Some(accepted) => drop(signed.insert("accepted", encode_generation(accepted).as_slice())?),
        None => drop(signed.remove("accepted")?),
    }
    let mut slots = write.open_table(SLOTS)?;
    slots.retain(|_, _| false)?;
    for (slot, state) in &known.slots {
        if let Some(row) = state.row() {
            slots.insert(slot, row.as_slice())?;
        }
    }
    let mut served = write.open_table(SERVED)?;
    served.retain(|_, _| false)?;
    for (slot, roots) in &known.served {
        served.insert(slot, encode_roots(roots).as_slice())?;
    }
    decisions::put(write, &known.decisions)
}

fn read_coming(meta: &impl ReadableTable<&'static str, u64>) -> Result<Option<Coming>, redb::StorageError> {
    let (slot, inode) = (meta.get("coming")?, meta.get("coming_inode")?);
    Ok(slot.zip(inode).map(|(slot, inode)| Coming { slot: slot.value(), inode: inode.value() }))
}

fn put_coming(meta: &mut redb::Table<'_, &str, u64>, coming: Option<Coming>) -> Result<(), redb::Error> {
    match coming {
        Some(Coming { slot, inode }) => {
            meta.insert("coming", slot)?;
            meta.insert("coming_inode", inode)?;
        }
        None => {
            meta.remove("coming")?;
            meta.remove("coming_inode")?;
        }
    }
    Ok(())
}

fn encode_roots(roots: &[RootEntry]) -> Vec<u8> {
    roots.iter().flat_map(RootEntry::encode).collect()
}

fn move_aside(path: &Path) -> Result<PathBuf, RecordError> {
    let to = (1u64..)
        .map(|n| path.with_extension(format!("redb.damaged-{n}")))
        .find(|p| !p.exists())
        .unwrap_or_else(|| path.with_extension("redb.damaged"));
    std::fs::rename(path, &to)
        .map_err(|source| RecordError::MoveAside { path: path.to_path_buf(), source })?;
    Ok(to)
}

#[cfg(test)]
mod tests {
    use syncd_shared::TreePath;

    use super::*;

    fn path(text: &str) -> TreePath {
        TreePath::from_bytes(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_renamed_directory_takes_its_inodes_along() {
        let temp = tempfile::tempdir().unwrap();
        let (record, _) = Record::open(&temp.path().join("r")).unwrap();
        let leaf = |p: &str| Leaf { path: path(p), page: ObjectHash::from_bytes([b'/'; 32]) };
        let put =
            ["a", "a/b", "a/b/c", "a.x", "z"].iter().zip(1..).map(|(p, i)| (leaf(p), vec![i])).collect();
        record.set_inodes(&InodeChanges { put, ..Default::default() }).unwrap();
        let moved = vec![(path("a/b"), path("q")), (path("z"), path("a/b"))];
        record.set_inodes(&InodeChanges { moved, ..Default::default() }).unwrap();
        let read = |p| record.inodes(&leaf(p)).unwrap();
        assert_eq!(read("q"), Some(vec![2]));
        assert_eq!(read("q/c"), Some(vec![3]));
        assert_eq!(read("a/b"), Some(vec![5]));
        assert_eq!(read("a/b/c"), None);
        assert_eq!(read("a.x"), Some(vec![4]));
        assert_eq!(read("z"), None);
        record.set_inodes(&InodeChanges { removed: vec![path("a")], ..Default::default() }).unwrap();
        assert_eq!((read("a"), read("a/b"), read("a.x")), (None, Some(vec![5]), Some(vec![4])));
    }

    #[test]
    fn a_damaged_record_is_moved_aside() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("record.redb");
        let (record, moved) = Record::open(&file).unwrap();
        assert_eq!(moved, None);
        let objects: Vec<_> =
            (0..200u32).map(|i| (ObjectHash::from_bytes([i as u8; 32]), vec![i as u8; 2000])).collect();
        record.put_directories(&objects, true).unwrap();
        drop(record);
        let whole = std::fs::read(&file).unwrap();
        let mut flipped = whole.clone();
        for at in (8192..flipped.len()).step_by(512) {
            flipped[at] ^= 0x55;
        }
        for damaged in [&whole[..whole.len() / 2], &whole[..100], b"not a record", &flipped] {
            std::fs::write(&file, damaged).unwrap();
            let (record, moved) = Record::open(&file).unwrap();
            assert!(moved.is_some_and(|m| m.exists()));
            assert!(record.known().unwrap().slots.is_empty());
            drop(record);
        }
    }

    /// Bytes that this thread has passed to the kernel for writing.
    fn written_by_this_thread() -> u64 {
        let io = std::fs::read_to_string("/proc/thread-self/io").unwrap();
        io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap().parse().unwrap()
    }

    #[test]
    fn a_reopened_record_has_what_was_durable_and_all_of_it_is_written_again() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("record.redb");
        let mut record = Arc::new(Record::open(&file).unwrap().0);
        let object = |n: u32| (ObjectHash::from_bytes([n as u8; 32]), vec![n as u8; 20_000]);
        record.put_directories(&(0..100).map(object).collect::<Vec<_>>(), true).unwrap();
        // The disk fails during a commit.
        crate::state::disk::fault::arm(Some(0));
        let refused = record.put_directories(&[object(200)], true);
        crate::state::disk::fault::arm(None);
        assert!(matches!(refused, Err(RecordError::Database { .. })), "{refused:?}");

        let before = written_by_this_thread();
        Record::reopen(&mut record, &file).unwrap();
        let length = std::fs::metadata(&file).unwrap().len();
        let written = written_by_this_thread() - before;
        assert!(length > 2_000_000 && written >= length, "{written} of {length} bytes");
        assert!((0..100).all(|n| record.has_directory(&object(n).0).unwrap()));
        assert!(!record.has_directory(&object(200).0).unwrap());
        record.put_directories(&[object(200)], true).unwrap();
        drop(record);
        let (record, moved) = Record::open(&file).unwrap();
        assert!(moved.is_none() && record.has_directory(&object(200).0).unwrap());
    }

    #[test]
    fn a_record_that_can_not_be_reopened_knows_nothing_until_it_can() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("record.redb");
        let mut record = Arc::new(Record::open(&file).unwrap().0);
        let object = (ObjectHash::from_bytes([1; 32]), vec![1; 2000]);
        record.put_directories(std::slice::from_ref(&object), true).unwrap();
        // A directory in place of the file prevents opening it.
        let away = temp.path().join("away");
        std::fs::rename(&file, &away).unwrap();
        std::fs::create_dir(&file).unwrap();
        assert!(Record::reopen(&mut record, &file).is_err());
        assert!(!record.has_directory(&object.0).unwrap_or(false));
        std::fs::remove_dir(&file).unwrap();
        std::fs::rename(&away, &file).unwrap();
        Record::reopen(&mut record, &file).unwrap();
        assert!(record.has_directory(&object.0).unwrap());
    }
}
