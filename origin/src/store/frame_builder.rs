//! Collects chunks into frames.
//!
//! A chunk of a larger file goes into its thread's next frame, behind those before it. Small contents of all threads are
//! gathered until there are enough of them, put next to those that they resemble, and cut into frames, which the threads
//! compress one by one while they add more: so there is never much more than two gatherings in memory.

use std::sync::{Mutex, MutexGuard};

use syncd_shared::hash::ContentHash;
use syncd_shared::limits::FRAME_MAX_BYTES;

use super::error::{StoreError, poisoned};
use super::pack::{FRAME_MAX_CHUNKS, FrameChunk, ZSTD_LEVEL};
use super::similar::{self, Likeness};
use super::writer::Writer;

/// A content that is larger is not held against others.
const SMALL_MAX_BYTES: usize = 16 * 1024;
/// Small contents that are held against each other, in bytes. More of them find more, but what is asked for together lies
/// in more frames.
const GATHERED_MAX_BYTES: usize = 8 * 1024 * 1024;

/// Chunks, one behind the other.
#[derive(Default)]
struct Chunks {
    content: Vec<u8>,
    chunks: Vec<FrameChunk>,
}

impl Chunks {
    fn has_room_for(&self, bytes: usize) -> bool {
        self.content.len() + bytes <= FRAME_MAX_BYTES && self.chunks.len() < FRAME_MAX_CHUNKS
    }

    fn push(&mut self, hash: &ContentHash, bytes: &[u8]) {
        let (offset, length) = (self.content.len() as u32, bytes.len() as u32);
        self.chunks.push(FrameChunk { hash: *hash, offset, length });
        self.content.extend_from_slice(bytes);
    }

    fn clear(&mut self) {
        self.content.clear();
        self.chunks.clear();
    }
}

/// Small contents of one writer, of all its threads.
#[derive(Default)]
pub(super) struct SmallContents(Mutex<Small>);

#[derive(Default)]
struct Small {
    gathered: Chunks,
    /// Of each that was gathered.
    likeness: Vec<Likeness>,
    /// Frames that nobody has compressed, the next one last.
    frames: Vec<Chunks>,
}

impl SmallContents {
    fn lock(&self) -> Result<MutexGuard<'_, Small>, StoreError> {
        self.0.lock().map_err(poisoned)
    }

    fn push(&self, hash: &ContentHash, bytes: &[u8]) -> Result<(), StoreError> {
        let likeness = Likeness::of(bytes);
        let mut small = self.lock()?;
        small.gathered.push(hash, bytes);
        small.likeness.push(likeness);
        let full = small.gathered.content.len() >= GATHERED_MAX_BYTES;
        drop(small);
        if full { self.cut() } else { Ok(()) }
    }

    /// Makes frames of what was gathered.
    fn cut(&self) -> Result<(), StoreError> {
        let (gathered, likeness) = {
            let mut small = self.lock()?;
            (std::mem::take(&mut small.gathered), std::mem::take(&mut small.likeness))
        };
        let mut frames = vec![Chunks::default()];
        for index in similar::order(likeness.into_iter()) {
            let chunk = &gathered.chunks[index];
            let start = chunk.offset as usize;
            let bytes = &gathered.content[start..start + chunk.length as usize];
            if !frames.last().is_some_and(|frame| frame.has_room_for(bytes.len())) {
                frames.push(Chunks::default());
            }
            if let Some(frame) = frames.last_mut() {
                frame.push(&chunk.hash, bytes);
            }
        }
        frames.reverse();
        self.lock()?.frames.splice(..0, frames);
        Ok(())
    }

    fn next_frame(&self) -> Result<Option<Chunks>, StoreError> {
        Ok(self.lock()?.frames.pop())
    }
}

/// Collects chunks into frames, for one thread of a [`Writer`]. One that is dropped without [`FrameBuilder::finish`]
/// makes the writer's seal fail, because others may count on its chunks.
pub struct FrameBuilder<'a> {
    writer: &'a Writer,
    frame: Chunks,
    compressor: zstd::bulk::Compressor<'static>,
    compressed: Vec<u8>,
}

impl<'a> FrameBuilder<'a> {
    pub(super) fn new(writer: &'a Writer) -> Result<Self, StoreError> {
        let compressor =
            zstd::bulk::Compressor::new(ZSTD_LEVEL).map_err(|source| StoreError::Compress { source })?;
        Ok(Self { writer, frame: Chunks::default(), compressor, compressed: Vec::new() })
    }

    /// Adds a chunk whose hash the caller has computed. Whether it was new: neither in the store nor added by any thread
    /// of this writer.
    pub fn add_chunk(&mut self, hash: &ContentHash, bytes: &[u8]) -> Result<bool, StoreError> {
        let new = self.is_new(hash, bytes)?;
        if new {
            self.push(hash, bytes)?;
        }
        Ok(new)
    }

    /// Adds the only chunk of a content, as [`FrameBuilder::add_chunk`] does; a small one may go elsewhere in the store
    /// than its neighbours.
    pub fn add_content(&mut self, hash: &ContentHash, bytes: &[u8]) -> Result<bool, StoreError> {
        if bytes.len() > SMALL_MAX_BYTES {
            return self.add_chunk(hash, bytes);
        }
        let new = self.is_new(hash, bytes)?;
        if new {
            self.writer.small.push(hash, bytes)?;
        }
        if let Some(frame) = self.writer.small.next_frame()? {
            self.write(&frame)?;
        }
        Ok(new)
    }

    /// Adds a chunk that may be in the store, to lie in another place.
    pub(super) fn move_chunk(&mut self, hash: &ContentHash, bytes: &[u8]) -> Result<(), StoreError> {
        self.writer.claim_again(hash)?;
        self.push(hash, bytes)
    }

    fn is_new(&self, hash: &ContentHash, bytes: &[u8]) -> Result<bool, StoreError> {
        if bytes.len() > FRAME_MAX_BYTES {
            return Err(StoreError::ChunkTooLarge { actual: bytes.len(), limit: FRAME_MAX_BYTES });
        }
        Ok(!bytes.is_empty() && self.writer.claim(hash)?)
    }

    fn push(&mut self, hash: &ContentHash, bytes: &[u8]) -> Result<(), StoreError> {
        if !self.frame.has_room_for(bytes.len()) {
            self.write_own()?;
        }
        self.frame.push(hash, bytes);
        Ok(())
    }

    fn write_own(&mut self) -> Result<(), StoreError> {
        let mut frame = std::mem::take(&mut self.frame);
        self.write(&frame)?;
        frame.clear();
        self.frame = frame;
        Ok(())
    }

    fn write(&mut self, frame: &Chunks) -> Result<(), StoreError> {
        if frame.chunks.is_empty() {
            return Ok(());
        }
        self.compressed.clear();
        self.compressed.reserve(zstd::zstd_safe::compress_bound(frame.content.len()));
        self.compressor
            .compress_to_buffer(&frame.content[..], &mut self.compressed)
            .map_err(|source| StoreError::Compress { source })?;
        self.writer.append(&frame.chunks, frame.content.len() as u32, &self.compressed)
    }

    /// Writes what is left, also of small contents that other threads added.
    pub fn finish(mut self) -> Result<(), StoreError> {
        self.write_own()?;
        self.writer.small.cut()?;
        while let Some(frame) = self.writer.small.next_frame()? {
            self.write(&frame)?;
        }
        Ok(())
    }
}
