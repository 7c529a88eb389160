//! Collects chunks into frames.
//!
//! A chunk of a larger file goes into its thread's next frame, behind those before it. Small contents of all threads are
//! gathered until there are enough of them, and go into frames next to those that they resemble. The threads compress these
//! frames one by one while they add more: so there are hardly more than two gatherings in memory.

use std::collections::VecDeque;
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

    fn bytes_of(&self, chunk: &FrameChunk) -> &[u8] {
        let start = chunk.offset as usize;
        &self.content[start..start + chunk.length as usize]
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
    /// Gatherings of which frames are made, the oldest first.
    ordered: VecDeque<Ordered>,
    /// The memory of one that is done, for the next: what is given back and taken again in megabytes fragments the heap.
    spare: Option<Chunks>,
}

/// A gathering, and in what order its chunks go into frames.
struct Ordered {
    gathered: Chunks,
    order: Box<dyn Iterator<Item = usize> + Send>,
    /// The chunk that did not fit into the last frame.
    next: Option<usize>,
}

impl SmallContents {
    fn lock(&self) -> Result<MutexGuard<'_, Small>, StoreError> {
        self.0.lock().map_err(poisoned)
    }

    fn push(&self, hash: &ContentHash, bytes: &[u8]) -> Result<(), StoreError> {
        let likeness = Likeness::of(bytes);
        let mut small = self.lock()?;
        if small.gathered.content.capacity() == 0 {
            small.gathered = small.spare.take().unwrap_or_default();
        }
        small.gathered.push(hash, bytes);
        small.likeness.push(likeness);
        if small.gathered.content.len() + SMALL_MAX_BYTES > GATHERED_MAX_BYTES {
            small.put_in_order();
        }
        Ok(())
    }

    /// Ends the gathering, however little there is.
    fn put_in_order(&self) -> Result<(), StoreError> {
        self.lock()?.put_in_order();
        Ok(())
    }

    /// Fills an empty frame; stays empty when there are no more.
    fn next_frame(&self, frame: &mut Chunks) -> Result<(), StoreError> {
        let mut small = self.lock()?;
        while let Some(ordered) = small.ordered.front_mut() {
            while let Some(index) = ordered.next.take().or_else(|| ordered.order.next()) {
                let chunk = &ordered.gathered.chunks[index];
                if !frame.has_room_for(chunk.length as usize) {
                    ordered.next = Some(index);
                    return Ok(());
                }
                frame.push(&chunk.hash, ordered.gathered.bytes_of(chunk));
            }
            if let Some(mut done) = small.ordered.pop_front() {
                done.gathered.clear();
                small.spare = Some(done.gathered);
            }
            if !frame.chunks.is_empty() {
                break;
            }
        }
        Ok(())
    }
}

impl Small {
    fn put_in_order(&mut self) {
        if self.likeness.is_empty() {
            return;
        }
        let order = Box::new(similar::order(std::mem::take(&mut self.likeness)));
        self.ordered.push_back(Ordered { gathered: std::mem::take(&mut self.gathered), order, next: None });
    }
}

/// Collects chunks into frames, for one thread of a [`Writer`]. One that is dropped without [`FrameBuilder::finish`]
/// makes the writer's seal fail, because others may count on its chunks.
pub struct FrameBuilder<'a> {
    writer: &'a Writer,
    frame: Chunks,
    /// A frame of small contents, while it is made.
    small: Chunks,
    compressor: zstd::bulk::Compressor<'static>,
    compressed: Vec<u8>,
}

impl<'a> FrameBuilder<'a> {
    pub(super) fn new(writer: &'a Writer) -> Result<Self, StoreError> {
        let compressor =
            zstd::bulk::Compressor::new(ZSTD_LEVEL).map_err(|source| StoreError::Compress { source })?;
        let (frame, small, compressed) = Default::default();
        Ok(Self { writer, frame, small, compressor, compressed })
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
        self.write_small()?;
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
            self.write_frame()?;
        }
        self.frame.push(hash, bytes);
        Ok(())
    }

    fn write_frame(&mut self) -> Result<(), StoreError> {
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

    /// Writes one frame of small contents, where one is ready; whether it was.
    fn write_small(&mut self) -> Result<bool, StoreError> {
        let mut frame = std::mem::take(&mut self.small);
        self.writer.small.next_frame(&mut frame)?;
        let ready = !frame.chunks.is_empty();
        self.write(&frame)?;
        frame.clear();
        self.small = frame;
        Ok(ready)
    }

    /// Writes what is left, also of small contents that other threads added.
    pub fn finish(mut self) -> Result<(), StoreError> {
        self.write_frame()?;
        self.writer.small.put_in_order()?;
        while self.write_small()? {}
        Ok(())
    }
}
