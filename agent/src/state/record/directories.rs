//! Directory objects in the record: checked against their hash on every read, cached in memory, and swept
//! once no tree needs them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use redb::{ReadableDatabase, TableDefinition};
use syncd_shared::diff::DirectorySource;
use syncd_shared::{Directory, ObjectHash, RootEntry};

use super::{Record, RecordError, commit};

pub(super) const DIRECTORIES: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("directories");

/// Limit of cached directories, in entries.
const CACHED_ENTRIES: usize = 20_000;

#[derive(Default)]
pub(super) struct DirectoryCache {
    pub(super) directories: HashMap<ObjectHash, Arc<Directory>>,
    pub(super) entries: usize,
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

    /// Removes directory objects that none of these trees needs, and returns their number. The cost follows
    /// the record's size.
    pub fn sweep(&self, roots: &[RootEntry]) -> Result<u64, RecordError> {
        let mut keep = HashSet::new();
        let mut wanted: Vec<ObjectHash> = roots.iter().map(|r| r.object).collect();
        while let Some(hash) = wanted.pop() {
            if !keep.insert(hash) {
                continue;
            }
            match self.directory(&hash) {
                Ok(directory) => wanted.extend(directory.entries().iter().filter_map(|e| match e.kind {
                    syncd_shared::Kind::Directory { object, .. } => Some(object),
                    _ => None,
                })),
                Err(RecordError::Unknown { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        let doing = RecordError::database::<redb::Error>("forget directory objects");
        let write = self.begin(true)?;
        let mut gone = 0;
        write
            .open_table(DIRECTORIES)
            .map_err(|e| doing(e.into()))?
            .retain(|hash, _| {
                let kept = keep.contains(&ObjectHash::from_bytes(*hash));
                gone += u64::from(!kept);
                kept
            })
            .map_err(|e| doing(e.into()))?;
        commit(write)?;
        Ok(gone)
    }

    fn remember(&self, hash: ObjectHash, directory: &Arc<Directory>) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.entries + directory.entries().len() > CACHED_ENTRIES {
            *cache = DirectoryCache::default();
        }
        cache.entries += directory.entries().len() + 1;
        cache.directories.insert(hash, directory.clone());
    }
}

impl DirectorySource for Record {
    type Error = RecordError;

    fn directory(&self, hash: &ObjectHash) -> Result<Arc<Directory>, RecordError> {
        let cached = |cache: &Mutex<DirectoryCache>| {
            cache.lock().unwrap_or_else(PoisonError::into_inner).directories.get(hash).cloned()
        };
        if let Some(directory) = cached(&self.cache) {
            return Ok(directory);
        }
        let doing = RecordError::database::<redb::Error>("read a directory object");
        let read = self.database.begin_read().map_err(|e| doing(e.into()))?;
        let table = read.open_table(DIRECTORIES).map_err(|e| doing(e.into()))?;
        let directory = match table.get(hash.as_bytes()).map_err(|e| doing(e.into()))? {
            Some(bytes) => Directory::decode_verified(bytes.value(), *hash)?,
            None if *hash == Directory::default().hash() => Arc::default(),
            None => return Err(RecordError::Unknown { object: *hash }),
        };
        self.remember(*hash, &directory);
        Ok(directory)
    }
}
