//! Read access: generations, directory objects, chunk manifests, frames and whole files.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Bound;
use std::sync::Arc;

use redb::{ReadOnlyTable, ReadTransaction, ReadableTable};
use syncd_shared::directory::Page;
use syncd_shared::generation::GenerationError;
use syncd_shared::hash::{ContentHash, ObjectHash, RootHash};
use syncd_shared::limits::CHUNK_MAX_BYTES;
use syncd_shared::{Generation, GenerationNumber, RootEntry, SignedGeneration, TreeId};

use super::error::{StoreError, index, poisoned};
use super::index::{
    CHUNKS, DIRECTORIES, FILES, GENERATIONS, ROOTS, STAT, location_in, with_checksum, without_checksum,
};
use super::pack::{Location, PackFrame, PackId, chunk_bytes};
use super::{Store, objects};

/// Key and value of one of the scanner's records.
pub type StatRow = (Vec<u8>, Vec<u8>);

/// A part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Chunk {
    pub hash: ContentHash,
    /// Length in bytes.
    pub length: u32,
}

/// A sealed generation whose signature has not been verified: see [`StoredGeneration::verify`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredGeneration {
    pub generation: Generation,
    /// Canonical bytes of the record.
    pub record: Vec<u8>,
    /// Signature of the record.
    pub signature: [u8; 64],
}

impl StoredGeneration {
    /// Verifies the signature.
    pub fn verify(
        &self,
        tree_id: TreeId,
        key: &syncd_shared::ed25519::VerifyingKey,
    ) -> Result<SignedGeneration, GenerationError> {
        SignedGeneration::verify(&self.record, &self.signature, tree_id, key)
    }

    pub(super) fn encode(signed: &SignedGeneration) -> Vec<u8> {
        [&signed.signature()[..], signed.record()].concat()
    }

    pub(super) fn decode(number: u64, stored: &[u8]) -> Result<Self, StoreError> {
        let (signature, record) =
            stored.split_first_chunk::<64>().ok_or(StoreError::Entry { table: "generations" })?;
        let generation =
            Generation::decode(record).map_err(|source| StoreError::Generation { number, source })?;
        if generation.number.get() != number {
            return Err(StoreError::Entry { table: "generations" });
        }
        Ok(Self { generation, record: record.to_vec(), signature: *signature })
    }
}

/// Encodes a value of [`FILES`].
pub(super) fn encode_chunks(file: &ContentHash, chunks: &[Chunk]) -> Vec<u8> {
    let mut out = Vec::with_capacity(chunks.len() * 36 + 8);
    for chunk in chunks {
        out.extend_from_slice(chunk.hash.as_bytes());
        out.extend_from_slice(&chunk.length.to_le_bytes());
    }
    with_checksum("files", file.as_bytes(), &out)
}

/// Decodes a value of [`FILES`].
pub(super) fn decode_chunks(file: &ContentHash, stored: &[u8]) -> Result<Vec<Chunk>, StoreError> {
    let bytes = without_checksum("files", file.as_bytes(), stored)?;
    let (chunks, rest) = bytes.as_chunks::<36>();
    if !rest.is_empty() {
        return Err(StoreError::Entry { table: "files" });
    }
    let chunk = |entry: &[u8; 36]| {
        let (hash, length) = entry.split_at(32);
        let length = length.try_into().map(u32::from_le_bytes);
        Some(Chunk { hash: hash.try_into().ok()?, length: length.ok()? })
    };
    chunks.iter().map(chunk).collect::<Option<_>>().ok_or(StoreError::Entry { table: "files" })
}

/// Decodes a value of [`ROOTS`]: reference count and entry.
pub(super) fn decode_root(hash: &RootHash, stored: &[u8]) -> Result<(u32, RootEntry), StoreError> {
    let damaged = || StoreError::Root { hash: *hash };
    let (count, entry) = stored.split_first_chunk::<4>().ok_or_else(damaged)?;
    let entry = RootEntry::decode(entry).map_err(|_| damaged())?;
    if entry.hash() != *hash {
        return Err(damaged());
    }
    Ok((u32::from_le_bytes(*count), entry))
}

/// Encodes a value of [`ROOTS`].
pub(super) fn encode_root(count: u32, entry: &RootEntry) -> Vec<u8> {
    [&count.to_le_bytes()[..], &entry.encode()].concat()
}

/// The chunks of a file in one state of the index.
pub(super) fn chunks_of_in(
    t: &ReadTransaction,
    file: &ContentHash,
    size: u64,
) -> Result<Option<Vec<Chunk>>, StoreError> {
    if size == 0 {
        return Ok(Some(Vec::new()));
    }
    if size <= CHUNK_MAX_BYTES as u64 {
        let chunks = t.open_table(CHUNKS).map_err(index)?;
        if let Some(location) = location_in(&chunks, file)?.filter(|l| u64::from(l.length) == size) {
            return Ok(Some(vec![Chunk { hash: *file, length: location.length }]));
        }
    }
    let files = t.open_table(FILES).map_err(index)?;
    let Some(stored) = files.get(file.as_bytes()).map_err(index)? else { return Ok(None) };
    let chunks = decode_chunks(file, stored.value())?;
    let total: u64 = chunks.iter().map(|chunk| u64::from(chunk.length)).sum();
    Ok((total == size).then_some(chunks))
}

/// The tables that locate contents, in one consistent state.
pub struct ChunkTables {
    files: ReadOnlyTable<&'static [u8; 32], &'static [u8]>,
    chunks: ReadOnlyTable<&'static [u8; 32], &'static [u8; 20]>,
}

impl ChunkTables {
    /// Like [`Store::chunks_of_content`].
    pub fn chunks_of_content(&self, file: &ContentHash) -> Result<Option<Vec<Chunk>>, StoreError> {
        if let Some(location) = self.locate(file)? {
            return Ok(Some(vec![Chunk { hash: *file, length: location.length }]));
        }
        let stored = self.files.get(file.as_bytes()).map_err(index)?;
        stored.map(|stored| decode_chunks(file, stored.value())).transpose()
    }

    /// Like [`Store::locate`].
    pub fn locate(&self, chunk: &ContentHash) -> Result<Option<Location>, StoreError> {
        location_in(&self.chunks, chunk)
    }
}

impl Store {
    /// Canonical bytes of a directory object, checked against its hash.
    pub fn page_bytes(&self, hash: &ObjectHash) -> Result<Option<Vec<u8>>, StoreError> {
        self.index.read(|t| {
            let table = t.open_table(DIRECTORIES).map_err(index)?;
            let found = table.get(hash.as_bytes()).map_err(index)?;
            found.map(|stored| objects::unpack(stored.value(), hash)).transpose()
        })
    }

    /// A directory object. Recently used ones are cached in decoded form.
    pub fn page(&self, hash: &ObjectHash) -> Result<Option<Arc<Page>>, StoreError> {
        if let Some(cached) = self.directories.lock().map_err(poisoned)?.get(hash) {
            return Ok(Some(cached));
        }
        let Some(bytes) = self.page_bytes(hash)? else { return Ok(None) };
        let page = Page::decode(&bytes).map_err(|source| StoreError::Directory { hash: *hash, source })?;
        let page = Arc::new(page);
        self.directories.lock().map_err(poisoned)?.put(*hash, &page, bytes.len());
        Ok(Some(page))
    }

    pub fn generation(&self, number: GenerationNumber) -> Result<Option<StoredGeneration>, StoreError> {
        self.index.read(|t| {
            let table = t.open_table(GENERATIONS).map_err(index)?;
            let found = table.get(number.get()).map_err(index)?;
            found.map(|stored| StoredGeneration::decode(number.get(), stored.value())).transpose()
        })
    }

    /// The generation with the highest number; `None` before the first seal.
    pub fn latest(&self) -> Result<Option<StoredGeneration>, StoreError> {
        self.index.read(|t| {
            let table = t.open_table(GENERATIONS).map_err(index)?;
            let last = table.last().map_err(index)?;
            last.map(|(number, stored)| StoredGeneration::decode(number.value(), stored.value())).transpose()
        })
    }

    /// All retained generations, sorted by number.
    pub fn generations(&self) -> Result<Vec<StoredGeneration>, StoreError> {
        self.index.read(|t| {
            let table = t.open_table(GENERATIONS).map_err(index)?;
            let rows = table.iter().map_err(index)?;
            rows.map(|row| {
                let (number, stored) = row.map_err(index)?;
                StoredGeneration::decode(number.value(), stored.value())
            })
            .collect()
        })
    }

    /// At most `limit` generations with numbers below `before`, newest first.
    pub fn generations_before(&self, before: u64, limit: usize) -> Result<Vec<StoredGeneration>, StoreError> {
        self.index.read(|t| {
            let table = t.open_table(GENERATIONS).map_err(index)?;
            let rows = table.range(..before).map_err(index)?.rev().take(limit);
            rows.map(|row| {
                let (number, stored) = row.map_err(index)?;
                StoredGeneration::decode(number.value(), stored.value())
            })
            .collect()
        })
    }

    pub fn root(&self, hash: &RootHash) -> Result<Option<RootEntry>, StoreError> {
        self.index.read(|t| {
            let table = t.open_table(ROOTS).map_err(index)?;
            let found = table.get(hash.as_bytes()).map_err(index)?;
            found.map(|stored| decode_root(hash, stored.value()).map(|(_, entry)| entry)).transpose()
        })
    }

    /// All of the scanner's records whose keys begin with `prefix`.
    pub fn stats_of(&self, prefix: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, StoreError> {
        self.index.read(|t| {
            let mut found = BTreeMap::new();
            for row in t.open_table(STAT).map_err(index)?.range(prefix..).map_err(index)? {
                let (key, value) = row.map_err(index)?;
                let key = key.value();
                if !key.starts_with(prefix) {
                    break;
                }
                found.insert(key.to_vec(), without_checksum("stat", key, value.value())?.to_vec());
            }
            Ok(found)
        })
    }

    /// The last of the scanner's records in a range of keys, and its key.
    pub(super) fn last_stat(
        &self,
        range: (Bound<&[u8]>, Bound<&[u8]>),
    ) -> Result<Option<StatRow>, StoreError> {
        self.index.read(|t| {
            let table = t.open_table(STAT).map_err(index)?;
            let Some(row) = table.range::<&[u8]>(range).map_err(index)?.next_back() else { return Ok(None) };
            let (key, value) = row.map_err(index)?;
            let key = key.value();
            Ok(Some((key.to_vec(), without_checksum("stat", key, value.value())?.to_vec())))
        })
    }

    /// The scanner's record of a directory.
    pub fn stat(&self, path: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.index.read(|t| {
            let table = t.open_table(STAT).map_err(index)?;
            let found = table.get(path).map_err(index)?;
            found.map(|v| without_checksum("stat", path, v.value()).map(<[u8]>::to_vec)).transpose()
        })
    }

    /// The chunks of a file of `size` bytes, in order; `None` if the file is not in the store.
    pub fn chunks_of(&self, file: &ContentHash, size: u64) -> Result<Option<Vec<Chunk>>, StoreError> {
        self.index.read(|t| chunks_of_in(t, file, size))
    }

    /// Like [`Store::chunks_of`], for an unknown size.
    pub fn chunks_of_content(&self, file: &ContentHash) -> Result<Option<Vec<Chunk>>, StoreError> {
        self.look_up_chunks(|tables| tables.chunks_of_content(file))
    }

    /// Looks up many contents in one consistent state.
    pub fn look_up_chunks<T>(
        &self,
        look_up: impl FnOnce(&ChunkTables) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.index.read(|t| {
            let files = t.open_table(FILES).map_err(index)?;
            let chunks = t.open_table(CHUNKS).map_err(index)?;
            look_up(&ChunkTables { files, chunks })
        })
    }

    /// Whether the store has all of a file's content, judging by the index and the lengths of packs.
    pub fn has_content(&self, file: &ContentHash, size: u64) -> Result<bool, StoreError> {
        self.index.read(|t| {
            let Some(chunks) = chunks_of_in(t, file, size)? else { return Ok(false) };
            let table = t.open_table(CHUNKS).map_err(index)?;
            for chunk in chunks {
                if !location_in(&table, &chunk.hash)?.is_some_and(|l| self.is_present(&l)) {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// The location of a chunk. Garbage collection may move the chunk; reading then fails with
    /// [`StoreError::PackMissing`], and the caller must locate it again.
    pub fn locate(&self, chunk: &ContentHash) -> Result<Option<Location>, StoreError> {
        self.index.read(|t| location_in(&t.open_table(CHUNKS).map_err(index)?, chunk))
    }

    /// Like [`Store::locate`] for many chunks, in one consistent state.
    pub fn locate_all(&self, chunks: &[Chunk]) -> Result<Vec<Option<Location>>, StoreError> {
        self.index.read(|t| {
            let table = t.open_table(CHUNKS).map_err(index)?;
            chunks.iter().map(|chunk| location_in(&table, &chunk.hash)).collect()
        })
    }

    /// Reads a frame as stored and checks its header, not its content.
    pub fn frame(&self, pack: PackId, frame_offset: u64) -> Result<PackFrame, StoreError> {
        self.packs.frame(pack, frame_offset).map(|(frame, _)| frame)
    }

    /// Locates a chunk and reads its frame, following moves by garbage collection.
    pub fn frame_of(&self, chunk: &ContentHash) -> Result<Option<(Location, PackFrame)>, StoreError> {
        let mut gone = None;
        loop {
            let Some(location) = self.locate(chunk)? else { return Ok(None) };
            match self.frame(location.pack, location.frame_offset) {
                Err(StoreError::PackMissing { .. }) if gone != Some(location) => gone = Some(location),
                other => return other.map(|frame| Some((location, frame))),
            }
        }
    }

    /// Writes a file's content to `sink`. Every chunk is checked against its hash before it is written, and
    /// the whole against the file's hash at the end. After an error the caller must discard the output.
    pub fn read_file(&self, file: &ContentHash, size: u64, mut sink: impl Write) -> Result<(), StoreError> {
        let chunks = self.chunks_of(file, size)?.ok_or(StoreError::ContentMissing { hash: *file })?;
        let mut whole = blake3::Hasher::new();
        let mut frame: Option<(PackId, u64, Vec<u8>)> = None;
        for chunk in chunks {
            let (location, uncompressed) = self.uncompressed_frame(&chunk.hash, frame.take())?;
            let (pack, offset) = (location.pack, location.frame_offset);
            let bytes = chunk_bytes(&uncompressed, location.offset_in_frame, location.length, &chunk.hash)
                .map_err(|source| StoreError::Frame { pack, offset, source })?;
            whole.update(bytes);
            sink.write_all(bytes).map_err(|source| StoreError::Sink { hash: *file, source })?;
            frame = Some((pack, offset, uncompressed));
        }
        let actual = ContentHash::finish(&whole);
        if actual != *file {
            return Err(StoreError::Mismatch { expected: *file, actual });
        }
        Ok(())
    }

    /// The uncompressed frame that holds a chunk. Reuses `last` if it is the same frame.
    fn uncompressed_frame(
        &self,
        chunk: &ContentHash,
        last: Option<(PackId, u64, Vec<u8>)>,
    ) -> Result<(Location, Vec<u8>), StoreError> {
        let missing = || StoreError::ContentMissing { hash: *chunk };
        let location = self.locate(chunk)?.ok_or_else(missing)?;
        if let Some((_, _, bytes)) =
            last.filter(|(pack, offset, _)| (*pack, *offset) == (location.pack, location.frame_offset))
        {
            return Ok((location, bytes));
        }
        let (location, frame) = self.frame_of(chunk)?.ok_or_else(missing)?;
        let (pack, offset) = (location.pack, location.frame_offset);
        let bytes = frame.decompress().map_err(|source| StoreError::Frame { pack, offset, source })?;
        Ok((location, bytes))
    }
}
