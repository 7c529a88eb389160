//! Disk space of the history: the bytes of packs that the current generation does not need.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata};
use syncd_shared::directory::Kind;
use syncd_shared::directory::Page;
use syncd_shared::hash::{ContentHash, ObjectHash, RootHash};
use syncd_shared::{Generation, GenerationNumber};

use super::error::{StoreError, index, poisoned};
use super::index::{
    CHUNKS, DIRECTORIES, FILES, GENERATIONS, Index, META, META_CURRENT_BYTES, PACKS, location_in,
};
use super::pack::PackId;
use super::paths::short;
use super::read::decode_chunks;
use super::retention::{Retention, keep_order};
use super::writer::WritePermit;
use super::{Store, objects};

/// Weighs trees one after another, in stored bytes. Content shared by several trees counts for the first.
struct Weigher<'t> {
    t: &'t ReadTransaction,
    directories: HashSet<ObjectHash>,
    /// First 8 bytes of each hash.
    contents: HashSet<u64>,
    /// Stored and uncompressed bytes of each pack.
    packs: HashMap<PackId, (u64, u64)>,
}

impl<'t> Weigher<'t> {
    fn open(t: &'t ReadTransaction) -> Result<Self, StoreError> {
        let mut packs = HashMap::new();
        for row in t.open_table(PACKS).map_err(index)?.iter().map_err(index)? {
            let (id, length) = row.map_err(index)?;
            packs.insert(PackId(id.value()), length.value());
        }
        Ok(Self { t, directories: HashSet::new(), contents: HashSet::new(), packs })
    }

    /// Returns the bytes that this tree adds.
    fn add(&mut self, root: ObjectHash) -> Result<u64, StoreError> {
        let directories = self.t.open_table(DIRECTORIES).map_err(index)?;
        let files = self.t.open_table(FILES).map_err(index)?;
        let chunks = self.t.open_table(CHUNKS).map_err(index)?;
        let mut bytes = 0u64;
        let mut stack = vec![root];
        while let Some(hash) = stack.pop() {
            if !self.directories.insert(hash) {
                continue;
            }
            let stored = directories.get(hash.as_bytes()).map_err(index)?;
            let stored = stored.ok_or(StoreError::DirectoryMissing { hash })?;
            let page = Page::decode(&objects::unpack(stored.value(), &hash)?)
                .map_err(|source| StoreError::Directory { hash, source })?;
            stack.extend(page.children());
            for entry in page.entries() {
                match &entry.kind {
                    Kind::File { content, size: 1.. } if self.contents.insert(short(content)) => {
                        let listed = files.get(content.as_bytes()).map_err(index)?;
                        let listed =
                            listed.map(|stored| decode_chunks(content, stored.value())).transpose()?;
                        for chunk in listed.iter().flatten() {
                            if chunk.hash == *content || self.contents.insert(short(&chunk.hash)) {
                                bytes += self.stored_bytes(&chunks, &chunk.hash)?;
                            }
                        }
                        if listed.is_none() {
                            bytes += self.stored_bytes(&chunks, content)?;
                        }
                    }
                    Kind::File { .. }
                    | Kind::Symlink { .. }
                    | Kind::Directory { .. }
                    | Kind::Collected { .. } => {}
                }
            }
        }
        Ok(bytes)
    }

    /// Share of a chunk in the bytes of its pack.
    fn stored_bytes(
        &self,
        chunks: &impl ReadableTable<&'static [u8; 32], &'static [u8; 20]>,
        hash: &ContentHash,
    ) -> Result<u64, StoreError> {
        let Some(location) = location_in(chunks, hash)? else { return Ok(0) };
        let (bytes, content_bytes) = self.packs.get(&location.pack).copied().unwrap_or_default();
        let share = u128::from(location.length) * u128::from(bytes) / u128::from(content_bytes.max(1));
        Ok(u64::try_from(share).unwrap_or(u64::MAX))
    }
}

/// Generations to retire so that the rest take at most `limit` bytes in addition to the newest one.
pub(super) fn beyond(
    t: &ReadTransaction,
    generations: &[Generation],
    retention: Retention,
    keep_roots: &HashSet<RootHash>,
    limit: u64,
) -> Result<Vec<GenerationNumber>, StoreError> {
    let mut weigher = Weigher::open(t)?;
    let (mut used, mut is_over) = (0u64, false);
    let mut retire = Vec::new();
    for (place, kept) in keep_order(generations, retention, keep_roots).into_iter().enumerate() {
        if is_over && kept.may_retire {
            retire.push(kept.generation.number);
            continue;
        }
        let bytes = weigher.add(kept.generation.root.object)?;
        is_over |= kept.may_retire && used.saturating_add(bytes) > limit;
        if is_over && kept.may_retire {
            retire.push(kept.generation.number);
        } else if place > 0 {
            used = used.saturating_add(bytes);
        }
    }
    Ok(retire)
}

/// The last measurement, as stored by an earlier process.
pub(super) fn measured(index_file: &Index) -> Result<Option<u64>, StoreError> {
    index_file.read(|t| {
        let meta = t.open_table(META).map_err(index)?;
        Ok(meta.get(META_CURRENT_BYTES).map_err(index)?.map(|bytes| bytes.value()))
    })
}

impl Store {
    /// Bytes of all packs that the current generation does not need; `None` before the first measurement.
    /// Reads the table of packs. Content sealed since the measurement counts as history.
    pub fn history_bytes(&self) -> Result<Option<u64>, StoreError> {
        let current = *self.current_bytes.lock().map_err(poisoned)?;
        current.map(|current| Ok(self.pack_bytes()?.saturating_sub(current))).transpose()
    }

    /// Measures the bytes that the current generation needs, and stores the result for the next process.
    /// Walks its tree, and blocks.
    pub(super) fn measure_current(self: &Arc<Self>) -> Result<(), StoreError> {
        let Some(latest) = self.latest()? else { return Ok(()) };
        let bytes = self.index.read(|t| Weigher::open(t)?.add(latest.generation.root.object))?;
        let _permit = WritePermit::acquire(self)?;
        self.index.write(|t| {
            t.open_table(META).map_err(index)?.insert(META_CURRENT_BYTES, bytes).map_err(index)?;
            Ok(())
        })?;
        *self.current_bytes.lock().map_err(poisoned)? = Some(bytes);
        Ok(())
    }

    /// Number of retained generations.
    pub fn generation_count(&self) -> Result<u64, StoreError> {
        self.index.read(|t| t.open_table(GENERATIONS).map_err(index)?.len().map_err(index))
    }

    /// Records that the first generation was sealed, so that there is no history.
    pub fn all_is_current(&self) -> Result<(), StoreError> {
        let bytes = self.pack_bytes()?;
        *self.current_bytes.lock().map_err(poisoned)? = Some(bytes);
        Ok(())
    }

    /// Bytes of all packs. Reads the table of packs.
    pub fn pack_bytes(&self) -> Result<u64, StoreError> {
        self.index.read(|t| {
            let mut sum = 0u64;
            for row in t.open_table(PACKS).map_err(index)?.iter().map_err(index)? {
                sum = sum.saturating_add(row.map_err(index)?.1.value().0);
            }
            Ok(sum)
        })
    }
}
