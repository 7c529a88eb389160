//! Write access: one writer at a time, filled by many threads, completed by [`Writer::seal`] or
//! [`Writer::save`].

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use redb::{ReadableTable, ReadableTableMetadata, WriteTransaction};
use syncd_shared::directory::{Built, Page};
use syncd_shared::hash::{ContentHash, ObjectHash};
use syncd_shared::{Directory, GenerationNumber, SignedGeneration, TreePath};

use super::error::{SealError, StoreError, index, poisoned};
use super::frame_builder::{FrameBuilder, Helpers, SmallContents};
use super::index::{DIRECTORIES, GENERATIONS, META, META_NEXT_PACK, PACKS, ROOTS};
use super::pack::{FrameChunk, Location, PackId};
use super::pack_writer::{PackLength, PackWriter};
use super::pending::Pending;
use super::read::{Chunk, StatRow, StoredGeneration, decode_root, encode_root};
use super::records::Records;
use super::{Store, objects};
use crate::metrics::metrics;

/// Entries in memory beyond this size are committed early. Scanning threads wait meanwhile.
const PENDING_MAX_BYTES: usize = 8 * 1024 * 1024;
/// The same limit before the first generation, when no update is encoded at the same time.
const FIRST_PENDING_MAX_BYTES: usize = 16 * 1024 * 1024;

/// The right to change the store, held by one at a time.
pub(super) struct WritePermit {
    pub(super) store: Arc<Store>,
}

impl WritePermit {
    pub(super) fn acquire(store: &Arc<Store>) -> Result<Self, StoreError> {
        let mut writing = store.writing.lock().map_err(poisoned)?;
        while *writing {
            writing = store.written.wait(writing).map_err(poisoned)?;
        }
        *writing = true;
        Ok(Self { store: store.clone() })
    }
}

impl Drop for WritePermit {
    fn drop(&mut self) {
        if let Ok(mut writing) = self.store.writing.lock() {
            *writing = false;
        }
        self.store.written.notify_one();
    }
}

/// Adds to the store. Threads share it by reference, each with its own [`FrameBuilder`]. If it is dropped
/// without [`Writer::seal`] or [`Writer::save`], nothing that it wrote becomes visible.
pub struct Writer {
    packs: Mutex<PackWriter>,
    pending: Mutex<Pending>,
    pub(super) small: SmallContents,
    pub(super) helpers: Helpers,
    pending_max_bytes: usize,
    permit: WritePermit,
}

impl Store {
    /// Opens the writer. Blocks while another exists or garbage collection changes the store.
    pub fn writer(self: &Arc<Self>) -> Result<Writer, StoreError> {
        self.in_place()?;
        Writer::open(WritePermit::acquire(self)?)
    }
}

impl Writer {
    fn open(permit: WritePermit) -> Result<Self, StoreError> {
        Self::open_where(permit, |_| true)
    }

    /// A writer that never appends to `pack`, which is about to be dropped.
    pub(super) fn open_apart_from(permit: WritePermit, pack: PackId) -> Result<Self, StoreError> {
        Self::open_where(permit, |last| last != pack)
    }

    fn open_where(permit: WritePermit, may_append: impl Fn(PackId) -> bool) -> Result<Self, StoreError> {
        let store = &permit.store;
        let (last, next, is_first) = store.index.read(|t| {
            let packs = t.open_table(PACKS).map_err(index)?;
            let last = packs.last().map_err(index)?.map(|(id, length)| {
                let (bytes, content_bytes) = length.value();
                (PackId(id.value()), PackLength { bytes, content_bytes })
            });
            let meta = t.open_table(META).map_err(index)?;
            let next = meta.get(META_NEXT_PACK).map_err(index)?.map(|v| v.value());
            let next = next.and_then(|n| u32::try_from(n).ok()).ok_or(StoreError::Entry { table: "meta" })?;
            Ok((last, next, t.open_table(GENERATIONS).map_err(index)?.is_empty().map_err(index)?))
        })?;
        let last = last.filter(|(id, _)| may_append(*id) && !store.short_packs.contains_key(id));
        let packs = Mutex::new(PackWriter::open(store.packs.directory().to_owned(), last, next)?);
        let (pending, small, helpers) = Default::default();
        let pending_max_bytes = if is_first { FIRST_PENDING_MAX_BYTES } else { PENDING_MAX_BYTES };
        Ok(Self { packs, pending, small, helpers, pending_max_bytes, permit })
    }

    /// Sets the size from which entries are committed early.
    #[cfg(test)]
    pub(super) fn set_pending_max_bytes(&mut self, bytes: usize) {
        self.pending_max_bytes = bytes;
    }

    pub fn store(&self) -> &Arc<Store> {
        &self.permit.store
    }

    /// Creates a frame builder for one thread.
    pub fn batch(&self) -> Result<FrameBuilder<'_>, StoreError> {
        FrameBuilder::new(self)
    }

    /// Adds a file's chunk manifest, after its chunks. Does nothing for files of less than two chunks.
    pub fn put_file(&self, file: &ContentHash, chunks: &[Chunk]) -> Result<(), StoreError> {
        if chunks.len() < 2 {
            return Ok(());
        }
        let size = chunks.iter().map(|chunk| u64::from(chunk.length)).sum();
        // A complete manifest is kept, even from another chunker version; a damaged one is replaced.
        match self.store().has_content(file, size) {
            Ok(true) => return Ok(()),
            Ok(false) | Err(StoreError::Entry { .. }) => {}
            Err(other) => return Err(other),
        }
        self.pending.lock().map_err(poisoned)?.put_file(*file, chunks);
        self.flush_if_large()
    }

    /// Adds the pages of a directory and returns its hash.
    pub fn put_directory(&self, directory: &Directory) -> Result<ObjectHash, StoreError> {
        self.put_pages(&directory.build())
    }

    /// Adds the pages that were made for a directory, and returns its hash.
    pub fn put_pages(&self, built: &Built) -> Result<ObjectHash, StoreError> {
        for (hash, canonical) in &built.pages {
            if !matches!(self.store().page_bytes(hash), Ok(Some(_))) {
                let packed = objects::pack(canonical);
                self.pending.lock().map_err(poisoned)?.put_directory(*hash, packed);
                self.flush_if_large()?;
            }
        }
        Ok(built.root)
    }

    /// A directory object, including those just added.
    pub fn page(&self, hash: &ObjectHash) -> Result<Option<Arc<Page>>, StoreError> {
        let pending = self.pending.lock().map_err(poisoned)?.directories.get(hash).cloned();
        let Some(packed) = pending else { return self.store().page(hash) };
        unpacked(&packed, hash).map(Some)
    }

    /// Whether the store has, or this writer has added, all of a file's content.
    pub fn has_content(&self, file: &ContentHash, size: u64) -> Result<bool, StoreError> {
        if size == 0 {
            return Ok(true);
        }
        {
            let pending = self.pending.lock().map_err(poisoned)?;
            if pending.files.contains_key(file) || pending.chunks.contains_key(file) {
                return Ok(true);
            }
        }
        self.store().has_content(file, size)
    }

    /// The scanner's record of a directory, including uncommitted changes.
    pub fn stat(&self, path: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let pending = self.pending.lock().map_err(poisoned)?.stat(path)?.map(|v| v.map(Cow::into_owned));
        match pending {
            Some(value) => Ok(value),
            None => self.store().stat(path),
        }
    }

    /// All of the scanner's records whose keys begin with `prefix`, a path and more, including uncommitted
    /// changes.
    pub fn stats_of(&self, prefix: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, StoreError> {
        let pending = self.pending.lock().map_err(poisoned)?;
        let mut found = match pending.is_stat_removed(prefix) {
            true => BTreeMap::new(),
            false => self.store().stats_of(prefix)?,
        };
        let changes = pending.stats_in((Bound::Included(prefix), Bound::Unbounded));
        for (key, value) in changes.take_while(|(key, _)| key.starts_with(prefix)) {
            match value {
                Some(value) => found.insert(key.to_vec(), value.unpack()?.into_owned()),
                None => found.remove(key),
            };
        }
        Ok(found)
    }

    /// The last of the scanner's records from key `first` to key `last`, and its key, including uncommitted
    /// changes.
    pub fn last_stat(&self, first: &[u8], last: &[u8]) -> Result<Option<StatRow>, StoreError> {
        let pending = self.pending.lock().map_err(poisoned)?;
        let within = |end| (Bound::Included(first), end);
        let mut stored = None;
        if !pending.is_stat_removed(first) {
            stored = self.store().last_stat(within(Bound::Included(last)))?;
            // Rows that this writer removes or replaces do not count.
            while let Some((key, _)) = stored.clone()
                && pending.stat(&key)?.is_some()
            {
                stored = self.store().last_stat((Bound::Included(first), Bound::Excluded(key.as_slice())))?;
            }
        }
        let added = pending
            .stats_in(within(Bound::Included(last)))
            .rev()
            .find_map(|(key, value)| Some((key, value?)));
        match added {
            Some((key, value)) if stored.as_ref().is_none_or(|(stored, _)| stored.as_slice() < key) => {
                Ok(Some((key.to_vec(), value.unpack()?.into_owned())))
            }
            _ => Ok(stored),
        }
    }

    /// Records the path of a file with this content, for [`Store::path_of`].
    pub fn put_path(&self, content: &ContentHash, size: u64, path: &TreePath) -> Result<(), StoreError> {
        self.pending.lock().map_err(poisoned)?.put_path(content, size, path);
        Ok(())
    }

    /// Records that the tree no longer has this content at this path.
    pub fn lose_path(&self, content: &ContentHash, size: u64, path: &TreePath) -> Result<(), StoreError> {
        self.pending.lock().map_err(poisoned)?.lose_path(content, size, path);
        Ok(())
    }

    /// Stores the scanner's record of a directory.
    pub fn put_stat(&self, path: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.pending.lock().map_err(poisoned)?.put_stat(path, Some(value));
        Ok(())
    }

    /// Removes the scanner's record of a directory.
    pub fn remove_stat(&self, path: &[u8]) -> Result<(), StoreError> {
        self.pending.lock().map_err(poisoned)?.put_stat(path, None);
        Ok(())
    }

    /// Removes the records of a directory and everything below it; all records for the empty path.
    pub fn remove_stat_subtree(&self, path: &[u8]) -> Result<(), StoreError> {
        self.pending.lock().map_err(poisoned)?.remove_stat_subtree(path);
        Ok(())
    }

    /// Makes everything added, and the generation, durable and visible at once. After an error the store is
    /// unchanged.
    pub fn seal(self, signed: &SignedGeneration) -> Result<(), SealError> {
        self.seal_with(signed, |_| Ok(()))
    }

    /// Like [`Writer::seal`], and changes records in the same transaction. `change` must be short.
    pub fn seal_with(
        self,
        signed: &SignedGeneration,
        change: impl FnOnce(&mut Records<'_>) -> Result<(), SealError>,
    ) -> Result<(), SealError> {
        let started = Instant::now();
        let sealed = self.finish(|t| {
            insert_generation(t, signed)?;
            change(&mut Records::open(t)?)
        });
        metrics().sealed(started.elapsed());
        sealed
    }

    /// Drops everything that was added except for the directory objects, which stay readable in memory. They
    /// take at most [`PENDING_MAX_BYTES`]; what was committed early is in the store.
    pub fn into_unsaved_directories(self) -> Result<UnsavedDirectories, StoreError> {
        let mut pending = self.pending.lock().map_err(poisoned)?;
        Ok(UnsavedDirectories(std::mem::take(&mut pending.directories)))
    }

    /// Makes everything added durable and visible without a generation: for stat records whose content is
    /// already in the store. The next garbage collection removes content that no generation refers to.
    pub fn save(self) -> Result<(), StoreError> {
        self.finish(|_| Ok::<_, StoreError>(()))
    }

    fn finish<E: From<StoreError>>(
        self,
        also: impl FnOnce(&WriteTransaction) -> Result<(), E>,
    ) -> Result<(), E> {
        let pending = self.pending.lock().map_err(poisoned)?;
        let count = pending.unwritten();
        if count > 0 {
            return Err(StoreError::Unwritten { count }.into());
        }
        let mut packs = self.packs.lock().map_err(poisoned)?;
        let grown = packs.grown();
        self.store().index.write(|t| {
            // The disk writes the packs while the transaction is built. It is committed after they are
            // durable.
            let packs = &mut *packs;
            std::thread::scope(|scope| {
                let syncing = scope.spawn(move || packs.sync());
                let lost = pending.lost_little();
                if lost.is_empty() {
                    self.store().read_ahead(&[]);
                } else {
                    scope.spawn(|| self.store().read_ahead(lost));
                }
                pending.write_content(t, &grown)?;
                pending.write_stats(t)?;
                pending.write_paths(t)?;
                also(t)?;
                syncing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                Ok(())
            })
        })
    }

    /// Claims a chunk for the calling worker. `false` if it is in the store or claimed by another worker.
    pub(super) fn claim(&self, hash: &ContentHash) -> Result<bool, StoreError> {
        if self.pending.lock().map_err(poisoned)?.chunks.contains_key(hash) {
            return Ok(false);
        }
        if self.store().locate(hash)?.is_some_and(|location| self.store().is_present(&location)) {
            return Ok(false);
        }
        Ok(self.pending.lock().map_err(poisoned)?.chunks.insert_if_absent(*hash))
    }

    /// Claims a chunk for the calling worker, wherever it is.
    pub(super) fn claim_again(&self, hash: &ContentHash) -> Result<(), StoreError> {
        self.pending.lock().map_err(poisoned)?.chunks.insert(*hash, None);
        Ok(())
    }

    pub(super) fn append(
        &self,
        chunks: &[FrameChunk],
        uncompressed_bytes: u32,
        compressed: &[u8],
    ) -> Result<(), StoreError> {
        let (pack, frame_offset) =
            self.packs.lock().map_err(poisoned)?.append(chunks, uncompressed_bytes, compressed)?;
        let mut pending = self.pending.lock().map_err(poisoned)?;
        for chunk in chunks {
            let location =
                Location { pack, frame_offset, offset_in_frame: chunk.offset, length: chunk.length };
            pending.chunks.insert(chunk.hash, Some(location));
        }
        drop(pending);
        self.flush_if_large()
    }

    /// Commits content entries early to bound memory. Packs come first: everything that the index refers to
    /// is synced.
    fn flush_if_large(&self) -> Result<(), StoreError> {
        let mut pending = self.pending.lock().map_err(poisoned)?;
        if pending.content_bytes() <= self.pending_max_bytes {
            return Ok(());
        }
        self.store().orphans.store(true, Ordering::Release);
        let grown = {
            let mut packs = self.packs.lock().map_err(poisoned)?;
            let grown = packs.grown();
            packs.sync()?;
            grown
        };
        self.store().index.write(|t| {
            pending.write_content(t, &grown)?;
            pending.write_paths(t)
        })?;
        pending.clear_content();
        Ok(())
    }

    /// Commits the appended chunks together with the other changes of a transaction.
    pub(super) fn finish_with(
        self,
        also: impl FnOnce(&WriteTransaction) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.finish(also)
    }
}

/// Directory objects of a tree that was scanned and not kept, packed as in the index.
#[derive(Debug, Default)]
pub struct UnsavedDirectories(HashMap<ObjectHash, Vec<u8>>);

impl UnsavedDirectories {
    /// A directory object; `None` if it is not one of these.
    pub fn page(&self, hash: &ObjectHash) -> Result<Option<Arc<Page>>, StoreError> {
        self.0.get(hash).map(|packed| unpacked(packed, hash)).transpose()
    }
}

fn unpacked(packed: &[u8], hash: &ObjectHash) -> Result<Arc<Page>, StoreError> {
    let decoded = Page::decode(&objects::unpack(packed, hash)?);
    decoded.map(Arc::new).map_err(|source| StoreError::Directory { hash: *hash, source })
}

trait Claims {
    fn insert_if_absent(&mut self, hash: ContentHash) -> bool;
}

impl Claims for HashMap<ContentHash, Option<Location>> {
    fn insert_if_absent(&mut self, hash: ContentHash) -> bool {
        match self.entry(hash) {
            std::collections::hash_map::Entry::Occupied(_) => false,
            std::collections::hash_map::Entry::Vacant(vacant) => {
                vacant.insert(None);
                true
            }
        }
    }
}

fn insert_generation(t: &WriteTransaction, signed: &SignedGeneration) -> Result<(), SealError> {
    let root = &signed.generation().root;
    let (number, object) = (signed.number(), root.object);
    let mut generations = t.open_table(GENERATIONS).map_err(index)?;
    let latest = generations.last().map_err(index)?.map_or(0, |(latest, _)| latest.value());
    if let Some(latest) = GenerationNumber::new(latest).filter(|latest| *latest >= number) {
        return Err(SealError::NotAbove { offered: number, latest });
    }
    let directories = t.open_table(DIRECTORIES).map_err(index)?;
    if directories.get(object.as_bytes()).map_err(index)?.is_none() {
        return Err(SealError::RootMissing { number, object });
    }
    generations.insert(number.get(), StoredGeneration::encode(signed).as_slice()).map_err(index)?;
    let hash = signed.root_hash();
    let mut roots = t.open_table(ROOTS).map_err(index)?;
    let known = match roots.get(hash.as_bytes()).map_err(index)? {
        Some(stored) => decode_root(&hash, stored.value())?.0,
        None => 0,
    };
    roots.insert(hash.as_bytes(), encode_root(known.saturating_add(1), root).as_slice()).map_err(index)?;
    Ok(())
}
