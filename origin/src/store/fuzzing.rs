//! The store's decoders of data read from disk, as functions over any bytes. Only for fuzz targets.

use syncd_shared::hash::{ContentHash, ObjectHash, RootHash};

use super::index::{decode_location, encode_location, with_checksum};
use super::pack::{
    FRAME_FIXED_BYTES, FrameChunk, FrameFixed, PACK_HEADER_BYTES, PackFrame, PackId, check_pack_header,
    chunk_bytes, encode_frame,
};
use super::read::{StoredGeneration, decode_chunks, decode_root, encode_chunks, encode_root};
use super::{Chunk, objects};

/// Decodes a stored frame and checks its chunks.
pub fn frame(bytes: &[u8]) {
    if let Some(header) = bytes.first_chunk::<PACK_HEADER_BYTES>() {
        let _ = check_pack_header(header, PackId(1));
    }
    let Some((fixed_bytes, rest)) = bytes.split_first_chunk::<FRAME_FIXED_BYTES>() else { return };
    let Ok(fixed) = FrameFixed::decode(fixed_bytes) else { return };
    let Some((table, content)) = rest.split_at_checked(fixed.table_bytes()) else { return };
    let Ok(chunks) = fixed.chunks(fixed_bytes, table) else { return };
    assert_eq!(fixed.frame_bytes(), (bytes.len() - content.len()) as u64 + u64::from(fixed.compressed_bytes));
    let compressed = content.to_vec().into();
    let frame = PackFrame { compressed, uncompressed_bytes: fixed.uncompressed_bytes, chunks };
    let Ok(whole) = frame.decompress() else { return };
    for chunk in &frame.chunks {
        let _ = chunk_bytes(&whole, chunk.offset, chunk.length, &chunk.hash);
        assert!(frame.chunk(&chunk.hash).is_some());
    }
}

/// A frame with a valid checksum and arbitrary other values.
pub fn some_frame(lengths: &[u32], uncompressed_bytes: u32, compressed: &[u8]) -> Vec<u8> {
    let chunk = |length: &u32| FrameChunk { hash: ContentHash::of(b"a"), offset: 0, length: *length };
    encode_frame(&lengths.iter().map(chunk).collect::<Vec<_>>(), uncompressed_bytes, compressed)
}

/// Decodes the chunk list of a file.
pub fn chunk_list(bytes: &[u8]) {
    let file = ContentHash::of(b"file");
    let _ = decode_chunks(&file, bytes);
    if let Ok(chunks) = decode_chunks(&file, &with_checksum("files", file.as_bytes(), bytes)) {
        assert_eq!(encode_chunks(&file, &chunks), with_checksum("files", file.as_bytes(), bytes));
    }
}

/// Encodes a list of chunks of these lengths.
pub fn some_chunk_list(lengths: &[u32]) -> Vec<u8> {
    let chunk = |length: &u32| Chunk { hash: ContentHash::of(b"a"), length: *length };
    encode_chunks(&ContentHash::of(b"file"), &lengths.iter().map(chunk).collect::<Vec<_>>())
}

/// Decodes `u8` table, then a value of it.
pub fn index_entry(bytes: &[u8]) {
    let Some((table, value)) = bytes.split_first() else { return };
    match table % 4 {
        0 => {
            let Some(value) = value.first_chunk::<20>() else { return };
            assert_eq!(encode_location(&decode_location(value)), *value);
        }
        1 => {
            let hash = match value.get(4..).map(syncd_shared::RootEntry::decode) {
                Some(Ok(entry)) => entry.hash(),
                _ => RootHash::from_bytes([1; 32]),
            };
            if let Ok((count, entry)) = decode_root(&hash, value) {
                assert_eq!(encode_root(count, &entry), value);
            }
        }
        2 => {
            let _ = StoredGeneration::decode(1, value);
        }
        _ => {
            let _ = objects::unpack(value, &ObjectHash::from_bytes([1; 32]));
        }
    }
}

/// A directory object as stored in the index.
pub fn packed_object(canonical: &[u8]) -> Vec<u8> {
    objects::pack(canonical)
}
