//! Pack files: append-only sequences of self-describing zstd frames. This module has only the formats; see
//! [`super::pack_reader`] and [`super::pack_writer`] for access.
//!
//! ```text
//! pack:   8 "SYNCDPCK", u32 format = 1, u32 pack id, frames
//! frame:  u32 "SFRM", u32 uncompressed bytes, u32 compressed bytes, u32 chunk count,
//!         per chunk 32 hash, u32 length;  8 checksum (truncated BLAKE3 of the above);  one zstd frame
//! ```
//!
//! Integers are little endian. The uncompressed bytes hold the chunks in this order, without gaps.

use std::fmt;
use std::io;

use bytes::Bytes;
use syncd_shared::hash::ContentHash;
use syncd_shared::limits::FRAME_MAX_BYTES;
use zstd::zstd_safe::CParameter;

pub(super) const PACK_FORMAT: u32 = 1;
/// A pack of this length or more gets no further frames.
pub(super) const PACK_MAX_BYTES: u64 = 256 * 1024 * 1024;
/// Bytes before the first frame.
pub(super) const PACK_HEADER_BYTES: usize = 16;
/// Maximum number of chunks in a frame, which bounds the header.
pub(super) const FRAME_MAX_CHUNKS: usize = 4096;

const PACK_MAGIC: &[u8; 8] = b"SYNCDPCK";
const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"SFRM");
/// Bytes of the fixed part of a frame header.
pub(super) const FRAME_FIXED_BYTES: usize = 16;
const PER_CHUNK_BYTES: usize = 36;
const CHECKSUM_BYTES: usize = 8;

/// Number of a pack; never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId(pub(crate) u32);

impl PackId {
    pub const fn get(self) -> u32 {
        self.0
    }

    pub(super) fn file_name(self) -> String {
        format!("{:08}.pack", self.0)
    }

    pub(super) fn from_file_name(name: &str) -> Option<Self> {
        let id = Self(name.strip_suffix(".pack")?.parse().ok()?);
        (id.file_name() == name).then_some(id)
    }
}

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08}", self.0)
    }
}

impl fmt::Debug for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackId({self})")
    }
}

/// The location of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Location {
    pub pack: PackId,
    /// Start of the frame in the pack.
    pub frame_offset: u64,
    /// Start of the chunk in the uncompressed frame.
    pub offset_in_frame: u32,
    /// Length in bytes.
    pub length: u32,
}

/// Kinds of damage to a pack or one of its frames.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameDamage {
    #[error("the pack has no valid header")]
    PackHeader,
    /// Another version wrote the pack.
    #[error("pack format {actual}, expected {PACK_FORMAT}")]
    PackFormat { actual: u32 },
    #[error("the pack ends inside the frame")]
    Truncated,
    #[error("the frame header is invalid")]
    Header,
    #[error("the frame header has a wrong checksum")]
    Checksum,
    #[error("the content does not decompress")]
    Compressed,
    /// The content has another length than recorded in the header.
    #[error("the content has {actual} bytes, expected {expected}")]
    Length {
        /// Bytes recorded in the header.
        expected: u32,
        /// Bytes after decompression.
        actual: usize,
    },
    /// The frame does not have a chunk that the index places there.
    #[error("chunk {hash} is not in the frame")]
    NoSuchChunk { hash: ContentHash },
    /// The bytes of a chunk do not match its hash.
    #[error("chunk {hash} has other content")]
    Content { hash: ContentHash },
}

/// Compression effort of a frame. STORE-8 in docs/decisions has the figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Effort {
    /// For contents of about 16 KiB to 1 MiB, which gain most for the time, and when nobody is waiting.
    #[default]
    High,
    /// For small contents, which are adjacent to similar ones, and for frames that contain a piece of a large
    /// content.
    Low,
}

impl Effort {
    /// Configures `compressor` for this effort.
    pub fn set(self, compressor: &mut zstd::bulk::Compressor<'_>) -> io::Result<()> {
        // 0 selects the default of the level.
        let (level, least_match) = match self {
            Self::High => (5, 6),
            Self::Low => (3, 0),
        };
        compressor.set_parameter(CParameter::CompressionLevel(level))?;
        compressor.set_parameter(CParameter::MinMatch(least_match))
    }
}

/// The position of a chunk in the uncompressed bytes of its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameChunk {
    pub hash: ContentHash,
    /// Start, in bytes.
    pub offset: u32,
    /// Length, in bytes.
    pub length: u32,
}

/// A frame as stored in a pack. The header has been checked, the content has not.
#[derive(Clone, Debug)]
pub struct PackFrame {
    /// One zstd frame.
    pub compressed: Bytes,
    /// Bytes after decompression, at most [`FRAME_MAX_BYTES`].
    pub uncompressed_bytes: u32,
    /// The chunks in order, without gaps.
    pub chunks: Vec<FrameChunk>,
}

impl PackFrame {
    /// The uncompressed bytes. Chunks in them are not checked against their hashes.
    pub fn decompress(&self) -> Result<Vec<u8>, FrameDamage> {
        let mut out = vec![0; self.uncompressed_bytes as usize];
        let actual = zstd::bulk::decompress_to_buffer(&self.compressed[..], &mut out)
            .map_err(|_| FrameDamage::Compressed)?;
        if actual != out.len() {
            return Err(FrameDamage::Length { expected: self.uncompressed_bytes, actual });
        }
        Ok(out)
    }

    /// The position of a chunk, if the frame has it.
    pub fn chunk(&self, hash: &ContentHash) -> Option<&FrameChunk> {
        self.chunks.iter().find(|chunk| chunk.hash == *hash)
    }
}

/// A chunk's bytes in its uncompressed frame, checked against its hash.
pub(super) fn chunk_bytes<'a>(
    uncompressed: &'a [u8],
    offset: u32,
    length: u32,
    hash: &ContentHash,
) -> Result<&'a [u8], FrameDamage> {
    let start = offset as usize;
    let bytes = start
        .checked_add(length as usize)
        .and_then(|end| uncompressed.get(start..end))
        .ok_or(FrameDamage::NoSuchChunk { hash: *hash })?;
    if ContentHash::of(bytes) != *hash {
        return Err(FrameDamage::Content { hash: *hash });
    }
    Ok(bytes)
}

/// The header of a pack.
pub(super) fn pack_header(id: PackId) -> [u8; PACK_HEADER_BYTES] {
    let mut out = [0; PACK_HEADER_BYTES];
    out[..8].copy_from_slice(PACK_MAGIC);
    out[8..12].copy_from_slice(&PACK_FORMAT.to_le_bytes());
    out[12..].copy_from_slice(&id.0.to_le_bytes());
    out
}

/// Checks that the header is that of pack `id`.
pub(super) fn check_pack_header(bytes: &[u8; PACK_HEADER_BYTES], id: PackId) -> Result<(), FrameDamage> {
    let format = u32_at(bytes, 8);
    if &bytes[..8] != PACK_MAGIC || u32_at(bytes, 12) != id.0 {
        return Err(FrameDamage::PackHeader);
    }
    if format != PACK_FORMAT {
        return Err(FrameDamage::PackFormat { actual: format });
    }
    Ok(())
}

/// Encodes a frame: header and content.
pub(super) fn encode_frame(chunks: &[FrameChunk], uncompressed_bytes: u32, compressed: &[u8]) -> Vec<u8> {
    let header = FRAME_FIXED_BYTES + chunks.len() * PER_CHUNK_BYTES + CHECKSUM_BYTES;
    let mut out = Vec::with_capacity(header + compressed.len());
    out.extend_from_slice(&FRAME_MAGIC.to_le_bytes());
    out.extend_from_slice(&uncompressed_bytes.to_le_bytes());
    out.extend_from_slice(&(compressed.len() as u32).to_le_bytes());
    out.extend_from_slice(&(chunks.len() as u32).to_le_bytes());
    for chunk in chunks {
        out.extend_from_slice(chunk.hash.as_bytes());
        out.extend_from_slice(&chunk.length.to_le_bytes());
    }
    let checksum = checksum(&out);
    out.extend_from_slice(&checksum);
    out.extend_from_slice(compressed);
    out
}

/// The fixed part of a frame header.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameFixed {
    pub(super) uncompressed_bytes: u32,
    pub(super) compressed_bytes: u32,
    count: u32,
}

impl FrameFixed {
    /// Decodes the fixed part and checks its bounds, so that no reader allocates more than a frame may have.
    pub(super) fn decode(bytes: &[u8; FRAME_FIXED_BYTES]) -> Result<Self, FrameDamage> {
        let fixed = Self {
            uncompressed_bytes: u32_at(bytes, 4),
            compressed_bytes: u32_at(bytes, 8),
            count: u32_at(bytes, 12),
        };
        let possible = u32_at(bytes, 0) == FRAME_MAGIC
            && fixed.uncompressed_bytes as usize <= FRAME_MAX_BYTES
            && fixed.compressed_bytes as usize <= zstd::zstd_safe::compress_bound(FRAME_MAX_BYTES)
            && (1..=FRAME_MAX_CHUNKS).contains(&(fixed.count as usize));
        if possible { Ok(fixed) } else { Err(FrameDamage::Header) }
    }

    /// Bytes between the fixed part and the content.
    pub(super) fn table_bytes(self) -> usize {
        self.count as usize * PER_CHUNK_BYTES + CHECKSUM_BYTES
    }

    /// Bytes of the whole frame.
    pub(super) fn frame_bytes(self) -> u64 {
        (FRAME_FIXED_BYTES + self.table_bytes()) as u64 + u64::from(self.compressed_bytes)
    }

    /// Decodes the chunks. `fixed` and `table` must be the two parts of one header.
    pub(super) fn chunks(
        self,
        fixed: &[u8; FRAME_FIXED_BYTES],
        table: &[u8],
    ) -> Result<Vec<FrameChunk>, FrameDamage> {
        let (entries, expected) =
            table.split_at_checked(self.count as usize * PER_CHUNK_BYTES).ok_or(FrameDamage::Truncated)?;
        if checksum(&[&fixed[..], entries].concat()) != *expected {
            return Err(FrameDamage::Checksum);
        }
        let mut offset = 0u32;
        let mut chunks = Vec::with_capacity(self.count as usize);
        for entry in entries.chunks_exact(PER_CHUNK_BYTES) {
            let hash = ContentHash::try_from(&entry[..32]).map_err(|_| FrameDamage::Header)?;
            let length = u32_at(entry, 32);
            chunks.push(FrameChunk { hash, offset, length });
            offset = offset.checked_add(length).ok_or(FrameDamage::Header)?;
        }
        if offset != self.uncompressed_bytes {
            return Err(FrameDamage::Header);
        }
        Ok(chunks)
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut out = [0; CHECKSUM_BYTES];
    out.copy_from_slice(&blake3::hash(bytes).as_bytes()[..CHECKSUM_BYTES]);
    out
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut out = [0; 4];
    out.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(out)
}

#[cfg(test)]
mod tests {
    use super::super::index::encode_location;
    use super::super::read::encode_root;
    use super::*;
    use syncd_shared::format_pages::{check, example};

    fn frame() -> Vec<u8> {
        let hash = ContentHash::of(b"hello");
        let compressed = zstd::bulk::compress(b"hello", 3).unwrap();
        encode_frame(&[FrameChunk { hash, offset: 0, length: 5 }], 5, &compressed)
    }

    fn decode(bytes: &[u8]) -> Result<Vec<FrameChunk>, FrameDamage> {
        let fixed: &[u8; FRAME_FIXED_BYTES] = bytes[..FRAME_FIXED_BYTES].try_into().unwrap();
        let header = FrameFixed::decode(fixed)?;
        let table = bytes
            .get(FRAME_FIXED_BYTES..FRAME_FIXED_BYTES + header.table_bytes())
            .ok_or(FrameDamage::Truncated)?;
        header.chunks(fixed, table)
    }

    #[test]
    fn any_flipped_bit_of_a_header_is_refused() {
        let good = frame();
        assert_eq!(decode(&good).unwrap()[0].hash, ContentHash::of(b"hello"));
        let header = FRAME_FIXED_BYTES + PER_CHUNK_BYTES + CHECKSUM_BYTES;
        for bit in 0..header * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn the_format_is_that_of_the_page() {
        let page = include_str!("../../../docs/formats/packs-and-index.md");
        let header = pack_header(PackId(7));
        check(page, "pack", &header, &[(8, "magic"), (4, "format"), (4, "pack 7")]);
        assert!(check_pack_header(&header, PackId(7)).is_ok());
        assert_eq!(check_pack_header(&header, PackId(8)), Err(FrameDamage::PackHeader));
        let fields = [
            (4, "magic"),
            (8, "5 bytes, 14 compressed"),
            (4, "chunks"),
            (32, "content hash of hello"),
            (4, "length"),
            (8, "checksum"),
            (14, "zstd frame"),
        ];
        check(page, "frame", &frame(), &fields);
        assert_eq!(decode(&example(page, "frame").unwrap()).unwrap()[0].length, 5);
        let location = Location { pack: PackId(7), frame_offset: 16, offset_in_frame: 0, length: 5 };
        let fields = [(4, "pack 7"), (8, "offset of the frame"), (4, "offset in it"), (4, "length")];
        check(page, "chunks", &encode_location(&location), &fields);
        let root = syncd_shared::RootEntry::empty();
        check(page, "roots", &encode_root(2, &root), &[(4, "generations"), (79, "root entry")]);
    }

    #[test]
    fn pack_names_round_trip() {
        assert_eq!(PackId::from_file_name("00000012.pack"), Some(PackId(12)));
        for other in ["12.pack", "00000012.pac", "x.pack", "+0000012.pack"] {
            assert_eq!(PackId::from_file_name(other), None);
        }
    }
}
