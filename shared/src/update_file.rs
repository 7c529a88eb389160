//! An encoded update as one file: framed, hashed and seekable.
//!
//! The same bytes travel inside an announcement, lie in the origin's spool, and can lie wherever else an
//! agent reads from. A reader that has the 32 bytes of [`Index::name`] can check each frame by itself.
//!
//! ```text
//! header  magic, 8 bytes | from root, 32 | to root, 32
//! frames  encoded FetchFrame messages, one after another
//! table   for each frame: length in bytes, u32 | BLAKE3 of the frame, 32
//! footer  number of frames, u32 | BLAKE3 of header and table, 32 | magic, 8
//! ```
//!
//! Integers are little-endian. The table comes last, so that a file can be read while it is being written:
//! its writer tells its readers where each frame is.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use std::io;
use std::ops::Range;

use bytes::Bytes;

use crate::hash::RootHash;
use crate::limits::FETCH_MESSAGE_MAX_BYTES;

const MAGIC: [u8; 8] = *b"syncdup1";
const HASH_BYTES: usize = 32;
/// Bytes before the first frame.
const HEADER_BYTES: usize = MAGIC.len() + 2 * HASH_BYTES;
/// Bytes of the table for each frame.
const ROW_BYTES: usize = 4 + HASH_BYTES;
const FOOTER_BYTES: usize = 4 + HASH_BYTES + MAGIC.len();
/// Frames of one file, which bounds the table at 36 MiB.
const FRAMES_MAX: usize = 1 << 20;

/// Reasons to reject an update file.
#[derive(Debug, thiserror::Error)]
pub enum UpdateFileError {
    /// The file does not begin or end as an update file does.
    #[error("not an update file")]
    Magic,
    /// The file is longer or shorter than its table says.
    #[error("an update file of {actual} bytes, where its table says {expected}")]
    Length { expected: u64, actual: u64 },
    /// Header or table differ from their hash in the footer.
    #[error("the table of an update file is damaged")]
    Table,
    /// A frame differs from its hash in the table.
    #[error("frame {frame} of an update file is damaged")]
    Frame { frame: usize },
    #[error("update file: {what}: {actual} exceeds {limit}")]
    Limit {
        /// The limited quantity.
        what: &'static str,
        actual: u64,
        limit: u64,
    },
    #[error("reading an update file failed")]
    Read(#[from] io::Error),
}

/// Position of a frame in its file, and its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FramePlace {
    start: u64,
    length: u32,
    hash: [u8; HASH_BYTES],
}

impl FramePlace {
    /// The frame's bytes in the file.
    pub fn range(&self) -> Range<u64> {
        self.start..self.start.saturating_add(u64::from(self.length))
    }

    /// Whether these are the frame's bytes.
    pub fn is_of(&self, bytes: &[u8]) -> bool {
        bytes.len() as u64 == u64::from(self.length) && *blake3::hash(bytes).as_bytes() == self.hash
    }

    fn row(&self) -> [u8; ROW_BYTES] {
        let mut row = [0; ROW_BYTES];
        let (length, hash) = row.split_at_mut(4);
        length.copy_from_slice(&self.length.to_le_bytes());
        hash.copy_from_slice(&self.hash);
        row
    }
}

/// Makes an update file, without reading or writing anything: the caller stores what the methods return, in
/// this order.
#[derive(Debug)]
pub struct Builder {
    header: [u8; HEADER_BYTES],
    table: Vec<u8>,
    /// Offset of the next frame.
    end: u64,
}

impl Builder {
    /// Begins the update that takes a replica of `from` to `to`.
    pub fn new(from: &RootHash, to: &RootHash) -> Self {
        let mut header = [0; HEADER_BYTES];
        let parts = MAGIC.iter().chain(from.as_bytes()).chain(to.as_bytes());
        header.iter_mut().zip(parts).for_each(|(byte, part)| *byte = *part);
        Self { header, table: Vec::new(), end: HEADER_BYTES as u64 }
    }

    /// The first bytes of the file.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// Length of the file if it ended here, in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.end.saturating_add((self.table.len() as u64).saturating_add(FOOTER_BYTES as u64))
    }

    /// Adds a frame. The caller stores it at the place that this returns.
    pub fn add(&mut self, frame: &[u8]) -> Result<FramePlace, UpdateFileError> {
        let length = bounded("bytes of a frame", frame.len(), FETCH_MESSAGE_MAX_BYTES)?;
        let frames = self.table.len().checked_div(ROW_BYTES).unwrap_or_default();
        bounded("frames", frames.saturating_add(1), FRAMES_MAX)?;
        let place = FramePlace { start: self.end, length, hash: *blake3::hash(frame).as_bytes() };
        self.table.extend(place.row());
        self.end = place.range().end;
        Ok(place)
    }

    /// The table and the footer, which follow the last frame.
    pub fn tail(&self) -> Vec<u8> {
        let frames = self.table.len().checked_div(ROW_BYTES).unwrap_or_default();
        let hash = table_hash(&self.header, &self.table);
        let mut tail = self.table.clone();
        // At most FRAMES_MAX.
        tail.extend(u32::try_from(frames).unwrap_or(u32::MAX).to_le_bytes());
        tail.extend(hash);
        tail.extend(MAGIC);
        tail
    }
}

/// The checked header and table of an update file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    from: RootHash,
    to: RootHash,
    name: [u8; HASH_BYTES],
    frames: Vec<FramePlace>,
}

impl Index {
    /// Reads header, table and footer of a file of `file_bytes` bytes. `read_at` fills its buffer from a
    /// position in the file.
    pub fn read(
        file_bytes: u64,
        mut read_at: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> Result<Self, UpdateFileError> {
        let (mut header, mut footer) = ([0; HEADER_BYTES], [0; FOOTER_BYTES]);
        let footer_at = file_bytes.checked_sub(FOOTER_BYTES as u64).ok_or(UpdateFileError::Magic)?;
        if footer_at < HEADER_BYTES as u64 {
            return Err(UpdateFileError::Magic);
        }
        read_at(0, &mut header)?;
        read_at(footer_at, &mut footer)?;
        let (magic, roots) = header.split_at(MAGIC.len());
        let (from, to) = roots.split_at(HASH_BYTES);
        let (count, rest) = footer.split_at(4);
        let (name, end) = rest.split_at(HASH_BYTES);
        if magic != MAGIC || end != MAGIC {
            return Err(UpdateFileError::Magic);
        }
        let frames = u32::from_le_bytes(array(count)?) as usize;
        bounded("frames", frames, FRAMES_MAX)?;
        let table_bytes = frames.saturating_mul(ROW_BYTES);
        let table_at = footer_at.checked_sub(table_bytes as u64).filter(|at| *at >= HEADER_BYTES as u64);
        let table_at = table_at.ok_or_else(|| UpdateFileError::Length {
            expected: (table_bytes.saturating_add(HEADER_BYTES).saturating_add(FOOTER_BYTES)) as u64,
            actual: file_bytes,
        })?;
        let mut table = vec![0; table_bytes];
        read_at(table_at, &mut table)?;
        if table_hash(&header, &table) != *name {
            return Err(UpdateFileError::Table);
        }
        let frames = places(&table, table_at)?;
        let (from, to) = (RootHash::from_bytes(array(from)?), RootHash::from_bytes(array(to)?));
        Ok(Self { from, to, name: array(name)?, frames })
    }

    /// The root that the update starts from.
    pub fn from(&self) -> RootHash {
        self.from
    }

    /// The root that the update ends with.
    pub fn to(&self) -> RootHash {
        self.to
    }

    /// BLAKE3 of header and table, which names the whole file.
    pub fn name(&self) -> &[u8; HASH_BYTES] {
        &self.name
    }

    /// Places of the frames, in order.
    pub fn frames(&self) -> &[FramePlace] {
        &self.frames
    }
}

/// An update file of these frames, in memory.
pub fn write_whole<F: AsRef<[u8]>>(
    from: &RootHash,
    to: &RootHash,
    frames: &[F],
) -> Result<Bytes, UpdateFileError> {
    let mut builder = Builder::new(from, to);
    let mut file = builder.header().to_vec();
    for frame in frames {
        builder.add(frame.as_ref())?;
        file.extend(frame.as_ref());
    }
    file.extend(builder.tail());
    Ok(file.into())
}

/// Reads an update file that is in memory: its index and all its frames, checked.
pub fn read_whole(file: &Bytes) -> Result<(Index, Vec<Bytes>), UpdateFileError> {
    let slice = |range: Range<u64>| {
        let range = usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?;
        file.get(range.clone()).map(|_| file.slice(range))
    };
    let index = Index::read(file.len() as u64, |at, buffer| {
        let end = at.saturating_add(buffer.len() as u64);
        let bytes = slice(at..end).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(&bytes);
        Ok(())
    })?;
    let frames = index.frames.iter().enumerate().map(|(frame, place)| {
        let bytes = slice(place.range()).filter(|bytes| place.is_of(bytes));
        bytes.ok_or(UpdateFileError::Frame { frame })
    });
    let frames = frames.collect::<Result<_, _>>()?;
    Ok((index, frames))
}

fn places(table: &[u8], table_at: u64) -> Result<Vec<FramePlace>, UpdateFileError> {
    let mut start = HEADER_BYTES as u64;
    let mut frames = Vec::with_capacity(table.len().checked_div(ROW_BYTES).unwrap_or_default());
    for row in table.chunks_exact(ROW_BYTES) {
        let (length, hash) = row.split_at(4);
        let length = u32::from_le_bytes(array(length)?);
        bounded("bytes of a frame", length as usize, FETCH_MESSAGE_MAX_BYTES)?;
        let place = FramePlace { start, length, hash: array(hash)? };
        start = place.range().end;
        frames.push(place);
    }
    if start != table_at {
        let tail = (table.len() as u64).saturating_add(FOOTER_BYTES as u64);
        let (expected, actual) = (start.saturating_add(tail), table_at.saturating_add(tail));
        return Err(UpdateFileError::Length { expected, actual });
    }
    Ok(frames)
}

fn table_hash(header: &[u8], table: &[u8]) -> [u8; HASH_BYTES] {
    *blake3::Hasher::new().update(header).update(table).finalize().as_bytes()
}

fn array<const N: usize>(bytes: &[u8]) -> Result<[u8; N], UpdateFileError> {
    bytes.try_into().map_err(|_| UpdateFileError::Magic)
}

fn bounded(what: &'static str, actual: usize, limit: usize) -> Result<u32, UpdateFileError> {
    match u32::try_from(actual) {
        Ok(fits) if actual <= limit => Ok(fits),
        _ => Err(UpdateFileError::Limit { what, actual: actual as u64, limit: limit as u64 }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn roots() -> (RootHash, RootHash) {
        (RootHash::from_bytes([1; 32]), RootHash::from_bytes([2; 32]))
    }

    fn file_of(frames: &[Vec<u8>]) -> (Vec<u8>, Vec<FramePlace>) {
        let (from, to) = roots();
        let mut builder = Builder::new(&from, &to);
        let mut file = builder.header().to_vec();
        let mut places = Vec::new();
        for frame in frames {
            let place = builder.add(frame).expect("within the limits");
            assert_eq!(place.range().start, file.len() as u64);
            file.extend(frame);
            places.push(place);
        }
        let bytes = builder.file_bytes();
        file.extend(builder.tail());
        assert_eq!(file.len() as u64, bytes);
        (file, places)
    }

    proptest! {
        #[test]
        fn frames_come_back_and_no_change_of_a_byte_passes(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8),
            position in any::<prop::sample::Index>(),
            flip in 1..=255u8,
        ) {
            let (mut file, places) = file_of(&frames);
            let (index, read) = read_whole(&Bytes::from(file.clone())).expect("an update file");
            prop_assert_eq!((index.from(), index.to()), roots());
            prop_assert_eq!(index.frames(), &places[..]);
            prop_assert_eq!(read, frames);
            let position = position.index(file.len());
            file[position] ^= flip;
            prop_assert!(read_whole(&Bytes::from(file)).is_err(), "byte {}", position);
        }

        #[test]
        fn no_part_of_a_file_passes_for_one(cut in any::<prop::sample::Index>(), more in any::<bool>()) {
            let (mut file, _) = file_of(&[b"one".to_vec(), b"two".to_vec()]);
            if more {
                file.push(0);
            } else {
                file.truncate(cut.index(file.len()));
            }
            prop_assert!(read_whole(&Bytes::from(file)).is_err());
        }
    }

    #[test]
    fn a_single_frame_is_found_and_checked_without_the_others() {
        let (mut file, places) = file_of(&[b"one".to_vec(), b"two".to_vec()]);
        let position = usize::try_from(places[0].range().start).expect("a position");
        file[position] ^= 1;
        let mut reads = 0;
        let index = Index::read(file.len() as u64, |at, buffer| {
            reads += 1;
            let at = usize::try_from(at).expect("a position");
            buffer.copy_from_slice(&file[at..][..buffer.len()]);
            Ok(())
        });
        let index = index.expect("the table is intact");
        assert_eq!(reads, 3, "header, footer and table");
        assert!(index.frames()[1].is_of(b"two") && !index.frames()[0].is_of(b"nne"));
        let whole = read_whole(&Bytes::from(file));
        assert!(matches!(whole, Err(UpdateFileError::Frame { frame: 0 })), "{whole:?}");
    }

    #[test]
    fn a_table_that_claims_more_than_the_file_is_refused_before_memory_is_taken() {
        let (file, _) = file_of(&[]);
        for frames in [1, u32::MAX] {
            let mut lie = file.clone();
            let at = lie.len() - FOOTER_BYTES;
            lie[at..][..4].copy_from_slice(&frames.to_le_bytes());
            read_whole(&Bytes::from(lie)).expect_err("there is no such frame");
        }
    }
}
