//! Paths of contents in the tree, one for each, by which a plan finds content that a replica has under
//! another name.
//!
//! Paths are hints: a path was correct when it was stored, and its user must check it. Paths are stored for
//! contents of added or changed files. A stored path is replaced only if it is known to be lost, or if its
//! directory has no stat record any more, so that a copy does not replace its original. Unused paths are
//! removed by garbage collection together with their content. Keys are the first 8 bytes of the content hash.

use redb::{ReadableTable, WriteTransaction};
use syncd_shared::TreePath;
use syncd_shared::hash::ContentHash;

use super::Store;
use super::error::{StoreError, index};
use super::index::{PATHS, STAT};

/// Shorter files are not worth a message with their path.
const SIZE_MIN_BYTES: u64 = 128;

/// The key of a content.
pub(super) fn short(hash: &ContentHash) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *hash.as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// Changes to paths collected by a writer.
#[derive(Default)]
pub(super) struct PendingPaths {
    found: Paths,
    lost: Paths,
}

/// Keys and paths in a compact form, because the first seal has one for each file.
#[derive(Default)]
struct Paths {
    /// Keys, each with the start of its path in `bytes`.
    keys: Vec<(u64, usize)>,
    /// Paths, each preceded by its length (`u16`, little endian).
    bytes: Vec<u8>,
}

impl Paths {
    /// Returns the bytes of memory used. Skips a path that is too long for its length field.
    fn push(&mut self, key: u64, path: &TreePath) -> usize {
        let Ok(length) = u16::try_from(path.as_bytes().len()) else { return 0 };
        self.keys.push((key, self.bytes.len()));
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(path.as_bytes());
        size_of::<(u64, usize)>() + usize::from(length) + 2
    }

    fn path(&self, at: usize) -> &[u8] {
        let Some((length, rest)) = self.bytes[at..].split_first_chunk::<2>() else { return &[] };
        &rest[..usize::from(u16::from_le_bytes(*length))]
    }

    /// Sorted by key, and by insertion among equal keys.
    fn sorted(&self) -> Vec<(u64, usize)> {
        let mut keys = self.keys.clone();
        keys.sort_unstable();
        keys
    }
}

impl PendingPaths {
    /// Records that a file with this content exists. Returns the bytes of memory used.
    pub(super) fn put(&mut self, content: &ContentHash, size: u64, path: &TreePath) -> usize {
        if size < SIZE_MIN_BYTES { 0 } else { self.found.push(short(content), path) }
    }

    /// Records that the file with this content was removed or changed. Returns the bytes of memory used.
    pub(super) fn lose(&mut self, content: &ContentHash, size: u64, path: &TreePath) -> usize {
        if size < SIZE_MIN_BYTES { 0 } else { self.lost.push(short(content), path) }
    }

    /// Writes the changes. Must follow the stat records.
    pub(super) fn write(&self, t: &WriteTransaction) -> Result<(), StoreError> {
        let mut table = t.open_table(PATHS).map_err(index)?;
        for (key, at) in self.lost.sorted() {
            let path = self.lost.path(at);
            if table.get(key).map_err(index)?.is_some_and(|known| known.value() == path) {
                table.remove(key).map_err(index)?;
            }
        }
        let stats = t.open_table(STAT).map_err(index)?;
        let mut found = self.found.sorted();
        found.dedup_by_key(|(key, _)| *key);
        for (key, at) in found {
            let known = table.get(key).map_err(index)?.map(|known| known.value().to_vec());
            let holds = match &known {
                Some(known) => stats.get(directory_of(known)).map_err(index)?.is_some(),
                None => false,
            };
            if !holds {
                table.insert(key, self.found.path(at)).map_err(index)?;
            }
        }
        Ok(())
    }
}

fn directory_of(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(&[], |at| &path[..at])
}

impl Store {
    /// The path where the tree last had a file of this content. A hint only.
    pub fn path_of(&self, content: &ContentHash) -> Result<Option<TreePath>, StoreError> {
        self.index.read(|t| {
            let table = match t.open_table(PATHS) {
                Ok(table) => table,
                // The store is older than this table.
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
                Err(error) => return Err(index(error)),
            };
            let found = table.get(short(content)).map_err(index)?;
            Ok(found.and_then(|path| TreePath::from_bytes(path.value()).ok()))
        })
    }
}

/// Drops the paths of contents that are no longer live.
pub(super) fn retain(t: &WriteTransaction, is_live: impl Fn(u64) -> bool) -> Result<(), StoreError> {
    let mut table = t.open_table(PATHS).map_err(index)?;
    table.retain(|key, _| is_live(key)).map_err(index)
}
