//! Directory objects in the record: checked against their hash on every read, cached in memory, and swept
//! once no tree needs them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use redb::{ReadableDatabase, ReadableTable, TableDefinition};
use syncd_shared::diff::DirectorySource;
use syncd_shared::directory::Page;
use syncd_shared::{ObjectHash, RootEntry};

use super::{Record, RecordError, commit};

pub(super) const DIRECTORIES: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("directories");

/// Directory objects removed by one transaction of a sweep.
const SWEPT_AT_ONCE: usize = 512;
/// Limit of cached pages, in entries.
const CACHED_ENTRIES: usize = 20_000;
/// The same while a [`ManyPages`] lives: about 20 MB.
const MANY_ENTRIES: usize = 128 * 1024;

#[derive(Default)]
pub(super) struct PageCache {
    pub(super) pages: HashMap<ObjectHash, Arc<Page>>,
    pub(super) items: usize,
    holds_many: bool,
}

impl PageCache {
    fn limit(&self) -> usize {
        if self.holds_many { MANY_ENTRIES } else { CACHED_ENTRIES }
    }

    fn clear(&mut self) {
        *self = Self { holds_many: self.holds_many, ..Self::default() };
    }
}

/// Keeps more pages in memory while it lives, for work that reads the same pages several times.
pub(crate) struct ManyPages<'a>(&'a Record);

impl Drop for ManyPages<'_> {
    fn drop(&mut self) {
        let mut cache = self.0.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.holds_many = false;
        if cache.items > cache.limit() {
            cache.clear();
        }
    }
}

impl Record {
    /// Stores verified directory objects. Unless `durable`, they become durable with the next durable commit.
    pub fn put_directories(
        &self,
        objects: &[(ObjectHash, Vec<u8>)],
        durable: bool,
    ) -> Result<(), RecordError> {
        let doing = RecordError::database::<redb::Error>("keep directory objects");
        let write = self.begin(durable)?;
        {
            let mut table = write.open_table(DIRECTORIES).map_err(|e| doing(e.into()))?;
            for (hash, bytes) in objects {
                table.insert(hash.as_bytes(), bytes.as_slice()).map_err(|e| doing(e.into()))?;
            }
        }
        commit(write)
    }

    /// Whether a directory object is stored.
    pub fn has_directory(&self, hash: &ObjectHash) -> Result<bool, RecordError> {
        let doing = RecordError::database::<redb::Error>("look for a directory object");
        let read = self.database.begin_read().map_err(|e| doing(e.into()))?;
        let table = read.open_table(DIRECTORIES).map_err(|e| doing(e.into()))?;
        Ok(table.get(hash.as_bytes()).map_err(|e| doing(e.into()))?.is_some())
    }

    /// Removes directory objects that none of these trees needs, and returns their number; `None` once it is
    /// cancelled. The cost follows the record's size, and no transaction has more than [`SWEPT_AT_ONCE`] of
    /// them.
    pub fn sweep(
        &self,
        roots: &[RootEntry],
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<u64>, RecordError> {
        let mut keep = HashSet::new();
        let mut wanted: Vec<ObjectHash> = roots.iter().map(|r| r.object).collect();
        while let Some(hash) = wanted.pop() {
            if is_cancelled() {
                return Ok(None);
            }
            if !keep.insert(hash) {
                continue;
            }
            match self.page(&hash) {
                Ok(page) => wanted.extend(page.children()),
                Err(RecordError::Unknown { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        let doing = RecordError::database::<redb::Error>("forget directory objects");
        let mut gone: Vec<[u8; 32]> = Vec::new();
        let read = self.database.begin_read().map_err(|e| doing(e.into()))?;
        let table = read.open_table(DIRECTORIES).map_err(|e| doing(e.into()))?;
        for item in table.iter().map_err(|e| doing(e.into()))? {
            let hash = *item.map_err(|e| doing(e.into()))?.0.value();
            if !keep.contains(&ObjectHash::from_bytes(hash)) {
                gone.push(hash);
            }
        }
        drop((table, read));
        // A cached page counts as stored.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).clear();
        for some in gone.chunks(SWEPT_AT_ONCE) {
            if is_cancelled() {
                return Ok(None);
            }
            let write = self.begin(false)?;
            {
                let mut table = write.open_table(DIRECTORIES).map_err(|e| doing(e.into()))?;
                for hash in some {
                    table.remove(hash).map_err(|e| doing(e.into()))?;
                }
            }
            commit(write)?;
        }
        Ok(Some(gone.len() as u64))
    }

    /// Keeps more pages in memory while the result lives.
    pub fn hold_many_pages(&self) -> ManyPages<'_> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).holds_many = true;
        ManyPages(self)
    }

    fn remember(&self, hash: ObjectHash, page: &Arc<Page>) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let items = page.entries().len() + page.pages().len() + 1;
        if cache.items + items > cache.limit() {
            cache.clear();
        }
        cache.items += items;
        cache.pages.insert(hash, page.clone());
    }
}

impl DirectorySource for Record {
    type Error = RecordError;

    fn page(&self, hash: &ObjectHash) -> Result<Arc<Page>, RecordError> {
        let cached = |cache: &Mutex<PageCache>| {
            cache.lock().unwrap_or_else(PoisonError::into_inner).pages.get(hash).cloned()
        };
        #[cfg(test)]
        counts::ASKED.with(|asked| asked.set(asked.get() + 1));
        if let Some(page) = cached(&self.cache) {
            return Ok(page);
        }
        #[cfg(test)]
        counts::READ.with(|read| read.set(read.get() + 1));
        let doing = RecordError::database::<redb::Error>("read a directory object");
        let read = self.database.begin_read().map_err(|e| doing(e.into()))?;
        let table = read.open_table(DIRECTORIES).map_err(|e| doing(e.into()))?;
        let page = match table.get(hash.as_bytes()).map_err(|e| doing(e.into()))? {
            Some(bytes) => Page::decode_verified(bytes.value(), *hash)?,
            None if *hash == RootEntry::empty().object => Arc::default(),
            None => return Err(RecordError::Unknown { object: *hash }),
        };
        self.remember(*hash, &page);
        Ok(page)
    }
}

/// Pages that this thread has asked for, and those of them that were not in memory.
#[cfg(test)]
pub(crate) mod counts {
    use std::cell::Cell;

    thread_local! {
        pub(super) static ASKED: Cell<u64> = const { Cell::new(0) };
        pub(super) static READ: Cell<u64> = const { Cell::new(0) };
    }

    pub(crate) fn asked() -> u64 {
        ASKED.get()
    }

    pub(crate) fn read() -> u64 {
        READ.get()
    }
}

#[cfg(test)]
mod tests {
    use syncd_shared::{Component, ContentHash, Directory, Entry, Kind, Metadata, Timestamp};

    use super::*;

    fn file(number: u32) -> Entry {
        let mtime = Timestamp { seconds: 1, nanoseconds: 0 };
        Entry {
            name: Component::new(number.to_string().as_bytes()).unwrap(),
            metadata: Metadata { mode: 0o644, uid: 0, gid: 0, mtime },
            kind: Kind::File { size: 1, content: ContentHash::of(&number.to_le_bytes()) },
        }
    }

    #[test]
    fn more_pages_stay_in_memory_while_they_are_held_and_not_longer() {
        let temp = tempfile::tempdir().unwrap();
        let (record, _) = Record::open(&temp.path().join("r")).unwrap();
        let files = CACHED_ENTRIES as u32 + 5_000;
        let built = Directory::new((0..files).map(file).collect()).unwrap().build();
        record.put_directories(&built.pages, true).unwrap();
        let read_all = || {
            let before = counts::read();
            assert_eq!(record.directory(&built.root).unwrap().entries().len(), files as usize);
            counts::read() - before
        };
        read_all();
        assert!(read_all() > 0, "all pages are in memory");
        let held = record.hold_many_pages();
        read_all();
        assert_eq!(read_all(), 0, "pages are read again");
        drop(held);
        assert!(record.cache.lock().unwrap().items <= CACHED_ENTRIES);
    }
}
