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

#[derive(Default)]
pub(super) struct PageCache {
    pub(super) pages: HashMap<ObjectHash, Arc<Page>>,
    pub(super) items: usize,
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
        *self.cache.lock().unwrap_or_else(PoisonError::into_inner) = PageCache::default();
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

    fn remember(&self, hash: ObjectHash, page: &Arc<Page>) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let items = page.entries().len() + page.pages().len() + 1;
        if cache.items + items > CACHED_ENTRIES {
            *cache = PageCache::default();
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
        if let Some(page) = cached(&self.cache) {
            return Ok(page);
        }
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
