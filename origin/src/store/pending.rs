//! Entries of a writer that are not in the index yet.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use redb::{ReadableTable, WriteTransaction};
use syncd_shared::TreePath;
use syncd_shared::hash::{ContentHash, ObjectHash};

use super::error::{StoreError, index};
use super::index::{
    CHUNKS, DIRECTORIES, FILES, META, META_NEXT_PACK, PACKS, STAT, encode_location, with_checksum,
};
use super::objects;
use super::pack::Location;
use super::pack_writer::Grown;
use super::paths::PendingPaths;
use super::read::{Chunk, encode_chunks};

/// Estimated memory of a hash map entry without its heap data.
const ENTRY_BYTES: usize = 100;
/// Stat records beyond this size are packed in memory.
const STATS_PLAIN_BYTES: usize = 4 * 1024 * 1024;
/// Number of lost contents remembered.
const LOST_MAX: usize = 4;

/// Uncommitted entries of a writer. See the module documentation.
#[derive(Default)]
pub(super) struct Pending {
    /// `None` if claimed by a worker that has not written it yet.
    pub(super) chunks: HashMap<ContentHash, Option<Location>>,
    pub(super) files: HashMap<ContentHash, Vec<Chunk>>,
    /// Packed as in the index.
    pub(super) directories: HashMap<ObjectHash, Vec<u8>>,
    stats: BTreeMap<Vec<u8>, Option<StatValue>>,
    /// Bytes of all values added, as held in memory.
    stats_bytes: usize,
    removed_subtrees: Vec<Vec<u8>>,
    paths: PendingPaths,
    /// The first contents that the tree lost at some path.
    lost: Vec<ContentHash>,
    bytes: usize,
}

/// A stat record held until a seal.
pub(super) enum StatValue {
    Plain(Vec<u8>),
    /// Packed like directory objects in the index.
    Packed(Vec<u8>),
}

impl StatValue {
    pub(super) fn unpack(&self) -> Result<Cow<'_, [u8]>, StoreError> {
        match self {
            Self::Plain(value) => Ok(Cow::Borrowed(value)),
            Self::Packed(packed) => objects::unpack_bytes(packed, "stat").map(Cow::Owned),
        }
    }
}

impl Pending {
    /// Bytes of memory used by content entries. Stat records are not counted, because only a seal commits
    /// them.
    pub(super) fn content_bytes(&self) -> usize {
        self.bytes + self.chunks.len() * ENTRY_BYTES
    }

    /// The lost contents if they are few, in which case a small update will soon be made from them.
    pub(super) fn lost_little(&self) -> &[ContentHash] {
        if self.lost.len() > LOST_MAX { &[] } else { &self.lost }
    }

    /// Number of chunks claimed and not written.
    pub(super) fn unwritten(&self) -> usize {
        self.chunks.values().filter(|location| location.is_none()).count()
    }

    pub(super) fn put_file(&mut self, file: ContentHash, chunks: &[Chunk]) {
        self.bytes += ENTRY_BYTES + size_of_val(chunks);
        self.files.insert(file, chunks.to_vec());
    }

    pub(super) fn put_directory(&mut self, hash: ObjectHash, packed: Vec<u8>) {
        self.bytes += ENTRY_BYTES + packed.len();
        self.directories.insert(hash, packed);
    }

    pub(super) fn put_path(&mut self, content: &ContentHash, size: u64, path: &TreePath) {
        self.bytes += self.paths.put(content, size, path);
    }

    pub(super) fn lose_path(&mut self, content: &ContentHash, size: u64, path: &TreePath) {
        self.bytes += self.paths.lose(content, size, path);
        if self.lost.len() <= LOST_MAX {
            self.lost.push(*content);
        }
    }

    /// `Some(None)` if removed, `None` if unchanged from the index.
    pub(super) fn stat(&self, path: &[u8]) -> Result<Option<Option<Cow<'_, [u8]>>>, StoreError> {
        if let Some(value) = self.stats.get(path) {
            return value.as_ref().map(StatValue::unpack).transpose().map(Some);
        }
        Ok(self.is_stat_removed(path).then_some(None))
    }

    /// Changes of stat records whose keys are in this range, by key.
    pub(super) fn stats_in(
        &self,
        range: (Bound<&[u8]>, Bound<&[u8]>),
    ) -> impl DoubleEndedIterator<Item = (&[u8], Option<&StatValue>)> {
        self.stats.range::<[u8], _>(range).map(|(key, value)| (key.as_slice(), value.as_ref()))
    }

    /// Whether the index's stat record of this path, or of a path above it, was removed.
    pub(super) fn is_stat_removed(&self, path: &[u8]) -> bool {
        self.removed_subtrees.iter().any(|top| is_within(path, top))
    }

    pub(super) fn put_stat(&mut self, path: &[u8], value: Option<&[u8]>) {
        let is_much = self.stats_bytes > STATS_PLAIN_BYTES;
        let value = value.map(|value| match is_much && value.len() <= objects::PACKED_MAX_BYTES {
            true => StatValue::Packed(objects::pack(value)),
            false => StatValue::Plain(value.to_vec()),
        });
        if let Some(StatValue::Plain(bytes) | StatValue::Packed(bytes)) = &value {
            self.stats_bytes += bytes.len();
        }
        self.stats.insert(path.to_vec(), value);
    }

    pub(super) fn remove_stat_subtree(&mut self, top: &[u8]) {
        if top.is_empty() {
            self.stats.clear();
        } else {
            self.stats.remove(top);
            let (from, to) = subtree_range(top);
            let below: Vec<Vec<u8>> = self.stats.range(from..to).map(|(path, _)| path.clone()).collect();
            for path in below {
                self.stats.remove(&path);
            }
        }
        self.removed_subtrees.push(top.to_vec());
    }

    /// Writes content entries and lengths of packs. The packs must be synced before `t` is committed.
    pub(super) fn write_content(&self, t: &WriteTransaction, grown: &Grown) -> Result<(), StoreError> {
        let mut table = t.open_table(PACKS).map_err(index)?;
        for (id, length) in &grown.packs {
            table.insert(id.get(), (length.bytes, length.content_bytes)).map_err(index)?;
        }
        t.open_table(META).map_err(index)?.insert(META_NEXT_PACK, u64::from(grown.next)).map_err(index)?;
        let mut table = t.open_table(CHUNKS).map_err(index)?;
        // Sorted by key, because neighbours share pages.
        let mut chunks: Vec<_> = self.chunks.iter().filter_map(|(h, l)| Some((h, l.as_ref()?))).collect();
        chunks.sort_unstable_by_key(|(hash, _)| **hash);
        for (hash, location) in chunks {
            table.insert(hash.as_bytes(), &encode_location(location)).map_err(index)?;
        }
        let mut table = t.open_table(FILES).map_err(index)?;
        for (file, chunks) in &self.files {
            table.insert(file.as_bytes(), encode_chunks(file, chunks).as_slice()).map_err(index)?;
        }
        let mut table = t.open_table(DIRECTORIES).map_err(index)?;
        let mut directories: Vec<_> = self.directories.iter().collect();
        directories.sort_unstable_by_key(|(hash, _)| **hash);
        for (hash, packed) in directories {
            table.insert(hash.as_bytes(), packed.as_slice()).map_err(index)?;
        }
        Ok(())
    }

    /// Forgets the entries written by [`Pending::write_content`] and [`Pending::write_paths`]. Claims remain.
    pub(super) fn clear_content(&mut self) {
        self.chunks.retain(|_, location| location.is_none());
        self.chunks.shrink_to(1024);
        self.files = HashMap::new();
        self.directories = HashMap::new();
        self.paths = PendingPaths::default();
        self.bytes = 0;
    }

    pub(super) fn write_stats(&self, t: &WriteTransaction) -> Result<(), StoreError> {
        let mut table = t.open_table(STAT).map_err(index)?;
        for top in &self.removed_subtrees {
            for path in stat_paths(&table, top)? {
                table.remove(path.as_slice()).map_err(index)?;
            }
        }
        for (path, value) in &self.stats {
            match value {
                Some(value) => {
                    let stored = with_checksum("stat", path, &value.unpack()?);
                    table.insert(path.as_slice(), stored.as_slice()).map_err(index)?;
                }
                None => {
                    table.remove(path.as_slice()).map_err(index)?;
                }
            }
        }
        Ok(())
    }

    /// Writes the paths of contents. Must follow the stat records.
    pub(super) fn write_paths(&self, t: &WriteTransaction) -> Result<(), StoreError> {
        self.paths.write(t)
    }
}

/// The recorded paths at and below a directory.
fn stat_paths(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    top: &[u8],
) -> Result<Vec<Vec<u8>>, StoreError> {
    let mut paths = Vec::new();
    if top.is_empty() {
        for row in table.iter().map_err(index)? {
            paths.push(row.map_err(index)?.0.value().to_vec());
        }
        return Ok(paths);
    }
    paths.push(top.to_vec());
    let (from, to) = subtree_range(top);
    for row in table.range(from.as_slice()..to.as_slice()).map_err(index)? {
        paths.push(row.map_err(index)?.0.value().to_vec());
    }
    Ok(paths)
}

/// The range of keys that begin with `top/`.
fn subtree_range(top: &[u8]) -> (Vec<u8>, Vec<u8>) {
    ([top, b"/"].concat(), [top, &[b'/' + 1]].concat())
}

fn is_within(path: &[u8], top: &[u8]) -> bool {
    top.is_empty() || path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removing_a_subtree_leaves_its_neighbours_and_what_comes_after() {
        let mut pending = Pending::default();
        for path in [&b"a"[..], b"a/b", b"a-b", b"ab", b"a0"] {
            pending.put_stat(path, Some(b"x"));
        }
        pending.remove_stat_subtree(b"a");
        let stat =
            |pending: &Pending, path: &[u8]| pending.stat(path).unwrap().map(|v| v.map(Cow::into_owned));
        assert_eq!(stat(&pending, b"a"), Some(None));
        assert_eq!(stat(&pending, b"a/b"), Some(None));
        assert_eq!(stat(&pending, b"a/c/d"), Some(None));
        for path in [&b"a-b"[..], b"ab", b"a0"] {
            assert_eq!(stat(&pending, path), Some(Some(b"x".to_vec())));
        }
        pending.put_stat(b"a/b", Some(b"y"));
        assert_eq!(stat(&pending, b"a/b"), Some(Some(b"y".to_vec())));
        assert_eq!(stat(&pending, b"z"), None);
        pending.remove_stat_subtree(b"");
        assert_eq!(stat(&pending, b"ab"), Some(None));
    }

    #[test]
    fn many_stat_records_are_held_packed_and_come_back_as_they_were() {
        let mut pending = Pending::default();
        let value = |number: u32| number.to_le_bytes().repeat(5_000);
        for number in 0..1_000u32 {
            pending.put_stat(&number.to_le_bytes(), Some(&value(number)));
        }
        assert!((STATS_PLAIN_BYTES..5_000_000).contains(&pending.stats_bytes), "{}", pending.stats_bytes);
        for number in 0..1_000u32 {
            let there = pending.stat(&number.to_le_bytes()).unwrap().flatten().unwrap();
            assert!(*there == value(number));
        }
    }
}
