//! A published pack: frames that each hold chunks, directory objects or lists of chunks, and a table of them.
//!
//! ```text
//! magic   8 bytes
//! frames  zstd frames, one after another
//! table   for each frame: kind, u8 | compressed bytes, u32 | plain bytes, u32 | BLAKE3 of the frame, 32
//!         | items, u32 | for each item: hash, 32 | length in bytes, u32
//! footer  table bytes, u32 | magic, 8
//! ```
//!
//! Integers are little-endian. The items of a frame follow each other in its plain bytes, without gaps. The
//! pack's name is the BLAKE3 of its table, so a reader that has the table can check every frame by itself. A
//! list of chunks is an item named by the whole content: for each chunk, its hash and its length as in the
//! table.

use std::ops::Range;

use super::PublishedError;
use crate::directory::Reader;
use crate::hash::ContentHash;
use crate::limits::{CHUNK_MAX_BYTES, FETCH_MESSAGE_MAX_BYTES, FRAME_MAX_BYTES};

const MAGIC: [u8; 8] = *b"syncdpk1";
/// Bytes after the table.
pub const FOOTER_BYTES: usize = 4 + MAGIC.len();
/// Bytes of the table for each item, and of a list of chunks for each chunk.
const ITEM_BYTES: usize = 32 + 4;
/// Longest table.
pub const TABLE_MAX_BYTES: usize = 64 * 1024 * 1024;
/// Longest plain content of a frame: a list of chunks may be longer than a stored frame.
pub const PLAIN_MAX_BYTES: usize = FETCH_MESSAGE_MAX_BYTES;

/// The kind of all items of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// Chunks of contents. A content of one chunk has the hash of the chunk.
    Chunks = 0,
    /// Canonical bytes of directory objects.
    Pages = 1,
    /// Lists of the chunks of contents.
    Lists = 2,
}

impl FrameKind {
    fn read(byte: u8) -> Option<Self> {
        [Self::Chunks, Self::Pages, Self::Lists].into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// An item of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    pub hash: [u8; 32],
    /// Start in the plain bytes of the frame.
    pub offset: u32,
    pub length: u32,
}

/// A frame as listed in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameRow {
    pub kind: FrameKind,
    /// Start in the pack.
    pub start: u64,
    pub compressed_bytes: u32,
    pub plain_bytes: u32,
    pub hash: [u8; 32],
    pub items: Vec<Item>,
}

impl FrameRow {
    /// The frame's bytes in the pack.
    pub fn range(&self) -> Range<u64> {
        self.start..self.start.saturating_add(u64::from(self.compressed_bytes))
    }

    /// Whether these are the frame's bytes.
    pub fn is_of(&self, bytes: &[u8]) -> bool {
        *blake3::hash(bytes).as_bytes() == self.hash
    }
}

/// Collects the frames of a pack, in memory.
#[derive(Debug)]
pub struct PackBuilder {
    bytes: Vec<u8>,
    table: Vec<u8>,
}

/// A pack that is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltPack {
    /// BLAKE3 of the table, which names the pack.
    pub hash: [u8; 32],
    pub bytes: Vec<u8>,
    pub table_bytes: u32,
}

impl Default for PackBuilder {
    fn default() -> Self {
        Self { bytes: MAGIC.to_vec(), table: Vec::new() }
    }
}

impl PackBuilder {
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Length of the pack if it ended here.
    pub fn len(&self) -> usize {
        self.bytes.len().saturating_add(self.table.len()).saturating_add(FOOTER_BYTES)
    }

    /// Adds a frame whose items lie in its `plain_bytes` without gaps.
    pub fn add(
        &mut self,
        kind: FrameKind,
        compressed: &[u8],
        plain_bytes: u32,
        items: impl IntoIterator<Item = ([u8; 32], u32)>,
    ) {
        self.table.push(kind as u8);
        self.table.extend((compressed.len() as u32).to_le_bytes());
        self.table.extend(plain_bytes.to_le_bytes());
        self.table.extend(blake3::hash(compressed).as_bytes());
        let (mut rows, mut count) = (Vec::new(), 0u32);
        for (hash, length) in items {
            rows.extend(hash);
            rows.extend(length.to_le_bytes());
            count = count.saturating_add(1);
        }
        self.table.extend(count.to_le_bytes());
        self.table.extend(rows);
        self.bytes.extend(compressed);
    }

    pub fn finish(mut self) -> BuiltPack {
        let table_bytes = self.table.len() as u32;
        let hash = *blake3::hash(&self.table).as_bytes();
        self.bytes.append(&mut self.table);
        self.bytes.extend(table_bytes.to_le_bytes());
        self.bytes.extend(MAGIC);
        BuiltPack { hash, bytes: self.bytes, table_bytes }
    }
}

/// Reads the table of the pack with this name, which has `pack_bytes` bytes.
pub fn read_table(table: &[u8], name: &[u8; 32], pack_bytes: u64) -> Result<Vec<FrameRow>, PublishedError> {
    if blake3::hash(table).as_bytes() != name {
        return Err(PublishedError::Hash { object: "the table of a pack" });
    }
    let mut reader = Reader::new(table);
    let mut start = MAGIC.len() as u64;
    let mut frames = Vec::new();
    while !reader.is_empty() {
        let frame = read_frame(&mut reader, start)?;
        start = frame.range().end;
        frames.push(frame);
    }
    let end = start.saturating_add(table.len() as u64).saturating_add(FOOTER_BYTES as u64);
    if end == pack_bytes { Ok(frames) } else { Err(form()) }
}

fn read_frame(reader: &mut Reader<'_>, start: u64) -> Result<FrameRow, PublishedError> {
    let [kind] = reader.array()?;
    let kind = FrameKind::read(kind).ok_or_else(form)?;
    let compressed_bytes = u32::from_le_bytes(reader.array()?);
    let plain_bytes = u32::from_le_bytes(reader.array()?);
    let longest = if kind == FrameKind::Chunks { FRAME_MAX_BYTES } else { PLAIN_MAX_BYTES };
    limit("bytes of a published frame", u64::from(plain_bytes), longest)?;
    limit("bytes of a published frame", u64::from(compressed_bytes), PLAIN_MAX_BYTES)?;
    let hash = reader.array()?;
    let count = u32::from_le_bytes(reader.array()?) as usize;
    // Taken as a whole first, so that memory follows what is there.
    let rows = reader.take(count.saturating_mul(ITEM_BYTES))?;
    let (mut items, mut offset) = (Vec::with_capacity(count), 0u32);
    let mut rows = Reader::new(rows);
    for _ in 0..count {
        let item = Item { hash: rows.array()?, offset, length: u32::from_le_bytes(rows.array()?) };
        offset = offset.checked_add(item.length).ok_or_else(form)?;
        items.push(item);
    }
    if offset != plain_bytes {
        return Err(form());
    }
    Ok(FrameRow { kind, start, compressed_bytes, plain_bytes, hash, items })
}

/// Encodes a list of chunks.
pub fn encode_list(chunks: impl IntoIterator<Item = (ContentHash, u32)>) -> Vec<u8> {
    let mut out = Vec::new();
    for (hash, length) in chunks {
        out.extend(hash.as_bytes());
        out.extend(length.to_le_bytes());
    }
    out
}

/// Reads a list of chunks.
pub fn read_list(bytes: &[u8]) -> Result<Vec<(ContentHash, u32)>, PublishedError> {
    let mut reader = Reader::new(bytes);
    let mut chunks = Vec::with_capacity(bytes.len().checked_div(ITEM_BYTES).unwrap_or_default());
    while !reader.is_empty() {
        let hash = ContentHash::from_bytes(reader.array()?);
        let length = u32::from_le_bytes(reader.array()?);
        limit("bytes of a chunk", u64::from(length), CHUNK_MAX_BYTES)?;
        chunks.push((hash, length));
    }
    Ok(chunks)
}

fn form() -> PublishedError {
    PublishedError::Form { object: "a pack" }
}

fn limit(what: &'static str, actual: u64, limit: usize) -> Result<(), PublishedError> {
    let limit = limit as u64;
    if actual > limit { Err(PublishedError::Limit { what, actual, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built() -> BuiltPack {
        let mut builder = PackBuilder::default();
        builder.add(FrameKind::Chunks, b"frame one", 8, [([1; 32], 5), ([2; 32], 3)]);
        builder.add(FrameKind::Pages, b"two", 4, [([3; 32], 4)]);
        builder.finish()
    }

    fn table(pack: &BuiltPack) -> &[u8] {
        let end = pack.bytes.len() - FOOTER_BYTES;
        &pack.bytes[end - pack.table_bytes as usize..end]
    }

    #[test]
    fn frames_lie_where_the_table_says() {
        let pack = built();
        let frames = read_table(table(&pack), &pack.hash, pack.bytes.len() as u64).unwrap();
        let bytes = |frame: &FrameRow| &pack.bytes[frame.start as usize..frame.range().end as usize];
        assert_eq!(bytes(&frames[0]), b"frame one");
        assert_eq!(bytes(&frames[1]), b"two");
        assert!(frames[1].is_of(b"two") && !frames[1].is_of(b"one"));
        assert_eq!(frames[0].items[1], Item { hash: [2; 32], offset: 5, length: 3 });
        assert_eq!(frames[1].kind, FrameKind::Pages);
    }

    #[test]
    fn a_changed_byte_or_another_length_is_refused() {
        let pack = built();
        let bytes = pack.bytes.len() as u64;
        for at in 0..table(&pack).len() {
            let mut changed = table(&pack).to_vec();
            changed[at] ^= 1;
            assert!(read_table(&changed, &pack.hash, bytes).is_err(), "byte {at}");
        }
        for other in [bytes - 1, bytes + 1] {
            assert!(read_table(table(&pack), &pack.hash, other).is_err());
        }
    }

    #[test]
    fn a_table_with_its_own_hash_may_still_not_lie() {
        let lie = |change: &dyn Fn(&mut Vec<u8>)| {
            let pack = built();
            let mut changed = table(&pack).to_vec();
            change(&mut changed);
            let name = *blake3::hash(&changed).as_bytes();
            read_table(&changed, &name, pack.bytes.len() as u64)
        };
        assert!(lie(&|_| ()).is_ok());
        assert!(lie(&|table| table[0] = 9).is_err(), "unknown kind");
        assert!(lie(&|table| table[5] = 7).is_err(), "items that do not fill the frame");
        assert!(lie(&|table| table[41..45].fill(255)).is_err(), "more items than the table has");
        assert!(lie(&|table| table.truncate(20)).is_err());
    }

    #[test]
    fn a_list_of_chunks_comes_back() {
        let chunks = vec![(ContentHash::of(b"a"), 1), (ContentHash::of(b"b"), 2)];
        let bytes = encode_list(chunks.clone());
        assert_eq!(read_list(&bytes).unwrap(), chunks);
        assert!(read_list(&bytes[1..]).is_err());
    }
}
