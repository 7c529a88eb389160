//! Compares a large file with its basis by their chunks: copies, and changed ranges, each with the
//! corresponding range of the basis.

use std::collections::HashMap;

use syncd_shared::ContentHash;
use syncd_shared::limits::{DELTA_BASES_MAX_BYTES, DELTA_OUTPUT_MAX_BYTES};

use super::reader::ChunkList;

/// Distance that content may have moved within the corresponding range of the basis.
const DRIFT_BYTES: u64 = 512 * 1024;
/// The same distance if both ranges have the same length.
const DRIFT_IN_PLACE_BYTES: u64 = 64 * 1024;

/// A part of a new file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The basis has this range.
    Copy { offset: u64, basis_offset: u64, length_bytes: u64 },
    /// At most [`DELTA_OUTPUT_MAX_BYTES`], with at most [`DELTA_BASES_MAX_BYTES`] of the basis, possibly
    /// none.
    Changed { offset: u64, length_bytes: u32, basis_offset: u64, basis_bytes: u32 },
}

/// The parts of `new`, end to end.
pub(super) fn parts(old: &ChunkList, new: &ChunkList) -> Vec<Part> {
    let copies = copies(old, new);
    let mut parts = Vec::with_capacity(copies.len() * 2);
    let (mut at, mut basis_at) = (0, 0);
    for copy in copies {
        let (offset, basis_offset, length_bytes) = copy;
        // A range that was moved says nothing about the position of its neighbours in the basis.
        let basis_end = if basis_offset >= basis_at { basis_offset } else { basis_at + (offset - at) };
        changed((at, offset), (basis_at, basis_end.min(old.size())), &mut parts);
        parts.push(Part::Copy { offset, basis_offset, length_bytes });
        (at, basis_at) = (offset + length_bytes, basis_offset + length_bytes);
    }
    changed((at, new.size()), (basis_at, old.size()), &mut parts);
    parts
}

/// Bytes of the new file that are copied.
pub(super) fn copied_bytes(parts: &[Part]) -> u64 {
    let copied = |part: &Part| match part {
        Part::Copy { length_bytes, .. } => *length_bytes,
        Part::Changed { .. } => 0,
    };
    parts.iter().map(copied).sum()
}

/// Ranges of whole chunks that both files have: offset, offset in the basis, length.
fn copies(old: &ChunkList, new: &ChunkList) -> Vec<(u64, u64, u64)> {
    let mut index: HashMap<ContentHash, usize> = HashMap::with_capacity(old.chunks.len());
    for (at, chunk) in old.chunks.iter().enumerate() {
        index.entry(chunk.hash).or_insert(at);
    }
    let mut copies: Vec<(u64, u64, u64)> = Vec::new();
    // The chunk of the basis that would continue the last copy.
    let mut next = 0;
    for (chunk, offset) in new.chunks.iter().zip(&new.starts) {
        let goes_on = old.chunks.get(next).filter(|o| o.hash == chunk.hash).map(|_| next);
        let Some(found) = goes_on.or_else(|| index.get(&chunk.hash).copied()) else { continue };
        next = found + 1;
        let (basis_offset, length) = (old.starts[found], u64::from(chunk.length));
        match copies.last_mut() {
            Some((o, b, l)) if *o + *l == *offset && *b + *l == basis_offset => *l += length,
            _ => copies.push((*offset, basis_offset, length)),
        }
    }
    copies
}

/// Splits a changed range into parts that fit a frame.
fn changed((start, end): (u64, u64), (basis_start, basis_end): (u64, u64), parts: &mut Vec<Part>) {
    let (length, basis) = (end - start, basis_end.saturating_sub(basis_start));
    let drift = if length == basis { DRIFT_IN_PLACE_BYTES } else { DRIFT_BYTES };
    let mut offset = start;
    while offset < end {
        let step = (end - offset).min(DELTA_OUTPUT_MAX_BYTES as u64);
        let (from, to) = if length <= step && basis <= DELTA_BASES_MAX_BYTES as u64 {
            (basis_start, basis_end.max(basis_start))
        } else {
            // The position in the basis, assuming that changes are spread evenly.
            let scaled = |at: u64| (u128::from(at - start) * u128::from(basis) / u128::from(length)) as u64;
            let from = scaled(offset).saturating_sub(drift);
            let to = scaled(offset + step).saturating_add(drift).min(basis);
            let to = to.min(from + DELTA_BASES_MAX_BYTES as u64);
            (basis_start + from, basis_start + to)
        };
        parts.push(Part::Changed {
            offset,
            length_bytes: step as u32,
            basis_offset: from,
            basis_bytes: (to - from) as u32,
        });
        offset += step;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::contents::Chunk;
    use proptest::prelude::*;

    /// A file of chunks of 64 KiB, each named by a number.
    fn list(numbers: &[u32]) -> ChunkList {
        let chunk = |n: &u32| Chunk { hash: ContentHash::of(&n.to_le_bytes()), length: 65_536 };
        ChunkList::new(numbers.iter().map(chunk).collect())
    }

    const K: u64 = 65_536;

    #[test]
    fn one_changed_chunk_lies_beside_its_old_self() {
        let (old, new) = (list(&[1, 2, 3, 4, 5]), list(&[1, 2, 30, 4, 5]));
        assert_eq!(
            parts(&old, &new),
            [
                Part::Copy { offset: 0, basis_offset: 0, length_bytes: 2 * K },
                Part::Changed {
                    offset: 2 * K,
                    length_bytes: 65_536,
                    basis_offset: 2 * K,
                    basis_bytes: 65_536
                },
                Part::Copy { offset: 3 * K, basis_offset: 3 * K, length_bytes: 2 * K },
            ]
        );
    }

    #[test]
    fn an_insertion_has_no_basis_and_what_follows_is_copied() {
        let (old, new) = (list(&[1, 2, 3]), list(&[1, 9, 2, 3]));
        assert_eq!(
            parts(&old, &new),
            [
                Part::Copy { offset: 0, basis_offset: 0, length_bytes: K },
                Part::Changed { offset: K, length_bytes: 65_536, basis_offset: K, basis_bytes: 0 },
                Part::Copy { offset: 2 * K, basis_offset: K, length_bytes: 2 * K },
            ]
        );
    }

    #[test]
    fn repeated_chunks_are_one_copy_where_the_basis_repeats_them_too() {
        let zeros = list(&[7; 1000]);
        assert_eq!(
            parts(&zeros, &zeros),
            [Part::Copy { offset: 0, basis_offset: 0, length_bytes: 1000 * K }]
        );
    }

    proptest! {
        #[test]
        fn parts_make_the_new_file_and_stay_within_both(
            old in proptest::collection::vec(0u32..60, 0..200),
            new in proptest::collection::vec(0u32..90, 0..200),
        ) {
            let (old, new) = (list(&old), list(&new));
            let mut at = 0;
            for part in parts(&old, &new) {
                let (offset, length, basis_end) = match part {
                    Part::Copy { offset, basis_offset, length_bytes } => {
                        let first = (offset / K) as usize;
                        let basis_first = (basis_offset / K) as usize;
                        for chunk in 0..(length_bytes / K) as usize {
                            prop_assert_eq!(new.chunks[first + chunk], old.chunks[basis_first + chunk]);
                        }
                        (offset, length_bytes, basis_offset + length_bytes)
                    }
                    Part::Changed { offset, length_bytes, basis_offset, basis_bytes } => {
                        prop_assert!(length_bytes as usize <= DELTA_OUTPUT_MAX_BYTES && length_bytes > 0);
                        prop_assert!(basis_bytes as usize <= DELTA_BASES_MAX_BYTES);
                        (offset, u64::from(length_bytes), basis_offset + u64::from(basis_bytes))
                    }
                };
                prop_assert_eq!(offset, at);
                prop_assert!(basis_end <= old.size());
                at += length;
            }
            prop_assert_eq!(at, new.size());
        }
    }
}
