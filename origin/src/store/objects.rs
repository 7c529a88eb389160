//! Format of directory objects in the index: `u8 0` and canonical bytes, or `u8 1`, `u32` length and their
//! zstd.

use std::cell::RefCell;

use syncd_shared::directory::{DecodeDirectoryError, object_hash_of};
use syncd_shared::hash::ObjectHash;
use zstd::bulk::Decompressor;

use super::error::StoreError;

const RAW: u8 = 0;
const ZSTD: u8 = 1;
/// Below this size, compression saves too little for its time.
const COMPRESS_MIN_BYTES: usize = 256;
const LEVEL: i32 = 1;
/// Longest value that is packed, in bytes: a page of a directory, or a row of a stat record.
pub(super) const PACKED_MAX_BYTES: usize = 1024 * 1024;

/// Packs canonical bytes for the index.
pub(super) fn pack(canonical: &[u8]) -> Vec<u8> {
    if canonical.len() >= COMPRESS_MIN_BYTES
        && let Ok(compressed) = zstd::bulk::compress(canonical, LEVEL)
        && compressed.len() + 4 < canonical.len()
    {
        let mut out = Vec::with_capacity(compressed.len() + 5);
        out.push(ZSTD);
        out.extend_from_slice(&(canonical.len() as u32).to_le_bytes());
        out.extend_from_slice(&compressed);
        return out;
    }
    [&[RAW], canonical].concat()
}

/// Reverses [`pack`]. `table` is only used in errors.
pub(super) fn unpack_bytes(stored: &[u8], table: &'static str) -> Result<Vec<u8>, StoreError> {
    let damaged = || StoreError::Entry { table };
    match stored.split_first().ok_or_else(damaged)? {
        (&RAW, bytes) => Ok(bytes.to_vec()),
        (&ZSTD, rest) => {
            let (length, compressed) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
            let length = u32::from_le_bytes(*length) as usize;
            if length > PACKED_MAX_BYTES {
                return Err(damaged());
            }
            // Creating a decompressor takes longer than decompressing a small directory.
            thread_local! { static KEPT: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) } }
            KEPT.with_borrow_mut(|kept| match kept {
                Some(decompressor) => decompressor.decompress(compressed, length),
                None => kept.insert(Decompressor::new()?).decompress(compressed, length),
            })
            .map_err(|_| damaged())
        }
        _ => Err(damaged()),
    }
}

/// Canonical bytes from the index, checked against their hash.
pub(super) fn unpack(stored: &[u8], hash: &ObjectHash) -> Result<Vec<u8>, StoreError> {
    let canonical = unpack_bytes(stored, "directories")?;
    let actual = object_hash_of(&canonical);
    if actual != *hash {
        let source = DecodeDirectoryError::Hash { expected: *hash, actual };
        return Err(StoreError::Directory { hash: *hash, source });
    }
    Ok(canonical)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_large_objects_round_trip_and_damage_is_seen() {
        for length in [1, 100, 5_000] {
            let canonical: Vec<u8> = (0..length).map(|i| (i % 7) as u8).collect();
            let hash = object_hash_of(&canonical);
            let stored = pack(&canonical);
            assert_eq!(unpack(&stored, &hash).unwrap(), canonical);
            for bit in 0..stored.len() * 8 {
                let mut bad = stored.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                if let Ok(other) = unpack(&bad, &hash) {
                    assert_eq!(other, canonical);
                }
            }
            assert!(unpack(&stored[..stored.len() - 1], &hash).is_err());
        }
    }
}
