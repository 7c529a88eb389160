//! Content as the store keeps it: one zstd frame, and the contents that its pieces belong to.
//!
//! Contents are named by their tags, because both sides know which contents an answer is about. A request by
//! hash never asks for two contents with the same tag at once. In an update, where that can happen, the wrong
//! content fails its hash check.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use bytes::Bytes;
use prost::Message;
use syncd_proto::v1;

use crate::content_tag::ContentTag;
use crate::limits::{FRAME_MAX_BYTES, FRAME_PIECES_MAX, FRAME_PLACES_MAX_BYTES};
use crate::wire::{WireError, compress, decompress, limit};

/// A zstd frame and the destinations of its pieces.
#[derive(Debug, Clone)]
pub struct StoredFrame {
    pub compressed: Bytes,
    /// At most [`FRAME_MAX_BYTES`].
    pub uncompressed_bytes: usize,
    /// Each piece lies within the frame; at most [`FRAME_PIECES_MAX`].
    pub pieces: Vec<Piece>,
}

/// A range of a frame that belongs to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    pub file: ContentTag,
    /// Start of the range in the file, in bytes.
    pub file_offset: u64,
    /// Start of the range in the frame, in bytes.
    pub frame_offset: u32,
    pub length_bytes: u32,
}

/// Decompresses one frame after another into the same memory.
#[derive(Default)]
pub struct FrameBuffer {
    decompressor: zstd::bulk::Decompressor<'static>,
    bytes: Vec<u8>,
}

impl FrameBuffer {
    /// Returns the frame's bytes, valid until the next call.
    pub fn decompress(&mut self, frame: &StoredFrame) -> Result<&[u8], WireError> {
        let expected = frame.uncompressed_bytes;
        self.bytes.clear();
        self.bytes.reserve_exact(expected);
        let decompressed = self.decompressor.decompress_to_buffer(&frame.compressed[..], &mut self.bytes);
        let actual = decompressed.map_err(WireError::Compression)?;
        if actual != expected {
            return Err(WireError::Length { expected, actual });
        }
        Ok(&self.bytes)
    }
}

impl StoredFrame {
    pub fn to_message(&self) -> v1::StoredFrame {
        let mut places = v1::StoredPlaces::default();
        let mut files = Vec::with_capacity(self.pieces.len().saturating_mul(ContentTag::BYTES));
        let mut end = 0i64;
        for piece in &self.pieces {
            files.extend_from_slice(piece.file.as_bytes());
            places.file_offsets.push(piece.file_offset);
            places.gaps.push(i64::from(piece.frame_offset).saturating_sub(end));
            places.lengths.push(piece.length_bytes);
            end = i64::from(piece.frame_offset).saturating_add(i64::from(piece.length_bytes));
        }
        places.files = files.into();
        let places = places.encode_to_vec();
        v1::StoredFrame {
            compressed: self.compressed.clone(),
            uncompressed_bytes: self.uncompressed_bytes as u32,
            places_bytes: places.len() as u32,
            places: compress(&places),
        }
    }

    /// Checks the form of a message: lengths, ranges and limits.
    pub(crate) fn from_message(message: v1::StoredFrame) -> Result<Self, WireError> {
        let uncompressed_bytes = message.uncompressed_bytes as usize;
        limit("stored frame", uncompressed_bytes, FRAME_MAX_BYTES)?;
        let places_bytes = message.places_bytes as usize;
        limit("places of a frame", places_bytes, FRAME_PLACES_MAX_BYTES)?;
        let places = v1::StoredPlaces::decode(decompress(&message.places, places_bytes)?.as_slice())?;
        let files = ContentTag::read_all(&places.files, "files")?;
        limit("pieces of a frame", files.len(), FRAME_PIECES_MAX)?;
        let count = [places.file_offsets.len(), places.gaps.len(), places.lengths.len()];
        if count.iter().any(|count| *count != files.len()) {
            return Err(WireError::PieceRange);
        }
        let mut pieces = Vec::with_capacity(files.len());
        let mut end = 0i64;
        let places = places.file_offsets.into_iter().zip(places.lengths).zip(places.gaps);
        for (file, ((file_offset, length_bytes), gap)) in files.into_iter().zip(places) {
            let start = end.checked_add(gap).ok_or(WireError::PieceRange)?;
            let frame_offset = u32::try_from(start).map_err(|_| WireError::PieceRange)?;
            end = start.checked_add(i64::from(length_bytes)).ok_or(WireError::PieceRange)?;
            file_offset.checked_add(u64::from(length_bytes)).ok_or(WireError::PieceRange)?;
            if length_bytes == 0 || end > uncompressed_bytes as i64 {
                return Err(WireError::PieceRange);
            }
            pieces.push(Piece { file, file_offset, frame_offset, length_bytes });
        }
        Ok(Self { compressed: message.compressed, uncompressed_bytes, pieces })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::ContentHash;
    use proptest::prelude::*;

    fn frame(bytes: &[u8], pieces: Vec<Piece>) -> StoredFrame {
        StoredFrame { compressed: compress(bytes), uncompressed_bytes: bytes.len(), pieces }
    }

    fn piece(frame_offset: u32, length_bytes: u32) -> Piece {
        let file = ContentTag::of(&ContentHash::of(&frame_offset.to_le_bytes()));
        Piece { file, file_offset: 0, frame_offset, length_bytes }
    }

    #[test]
    fn lying_lengths_and_ranges_are_refused() {
        let bytes = vec![7u8; 1000];
        let message = |piece| frame(&bytes, vec![piece]).to_message();
        assert!(StoredFrame::from_message(message(piece(0, 1000))).is_ok());
        let outside = Piece { file_offset: u64::MAX, ..piece(0, 2) };
        for bad in [piece(1, 1000), piece(u32::MAX, 2), piece(0, 0), outside] {
            assert!(matches!(StoredFrame::from_message(message(bad)), Err(WireError::PieceRange)));
        }
        let mut large = message(piece(0, 1));
        large.uncompressed_bytes = FRAME_MAX_BYTES as u32 + 1;
        assert!(matches!(StoredFrame::from_message(large), Err(WireError::Limit { .. })));
        let mut lying = message(piece(0, 1));
        lying.places_bytes += 1;
        assert!(StoredFrame::from_message(lying).is_err());
    }

    #[test]
    fn frames_of_other_lengths_follow_each_other_in_one_buffer() {
        let mut buffer = FrameBuffer::default();
        for length in [10, 100_000, 1, 5_000] {
            let bytes: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            assert_eq!(buffer.decompress(&frame(&bytes, vec![])).expect("as it was compressed"), bytes);
            for lie in [length - 1, length + 1] {
                let lying = StoredFrame { uncompressed_bytes: lie, ..frame(&bytes, vec![]) };
                assert!(buffer.decompress(&lying).is_err(), "{length} bytes as {lie}");
            }
        }
    }

    proptest! {
        #[test]
        fn pieces_come_back_in_their_order(places in proptest::collection::vec((0u32..900, 1u32..100), 0..40)) {
            let pieces: Vec<Piece> = places.into_iter().map(|(offset, length)| piece(offset, length)).collect();
            let read = StoredFrame::from_message(frame(&[1; 1000], pieces.clone()).to_message()).expect("well-formed");
            prop_assert_eq!(read.pieces, pieces);
        }
    }
}
