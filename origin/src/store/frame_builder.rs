//! Collects chunks into frames.
//!
//! A chunk of a larger file goes into its thread's next frame, after the preceding ones. Small contents of
//! all threads are gathered into batches. A full batch is sorted into frames, so that similar contents are
//! adjacent, and the threads compress those frames one by one while they add more. Hardly more than two
//! batches are in memory at a time.
//!
//! A large file is read by one thread. Helpers, one for each further core in total, compress its frames
//! meanwhile. When no helper is idle, the thread compresses the frame itself.

use std::collections::VecDeque;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Mutex, MutexGuard, PoisonError};

use syncd_runtime::queue::{Waiting, queue};
use syncd_shared::hash::ContentHash;
use syncd_shared::limits::FRAME_MAX_BYTES;

use super::error::{StoreError, poisoned};
use super::pack::{Effort, FRAME_MAX_CHUNKS, FrameChunk};
use super::similar::{self, Likeness};
use super::writer::Writer;

/// Larger contents are not compared for similarity.
const SMALL_MAX_BYTES: usize = 16 * 1024;
/// Bytes of small contents that are compared with each other. A larger batch finds more similarities, but
/// spreads contents that are requested together over more frames.
const GATHERED_MAX_BYTES: usize = 8 * 1024 * 1024;

/// Size from which a content is worth the start of helpers.
const LARGE_MIN_BYTES: u64 = 8 * 1024 * 1024;
/// Maximum number of helpers of one writer.
const HELPERS_MAX: usize = 7;

/// Consecutive chunks.
#[derive(Default)]
struct Chunks {
    content: Vec<u8>,
    chunks: Vec<FrameChunk>,
    effort: Effort,
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
        self.effort = Effort::default();
    }
}

/// The small contents of one writer, added by all its threads.
#[derive(Default)]
pub(super) struct SmallContents(Mutex<Small>);

#[derive(Default)]
struct Small {
    gathered: Chunks,
    /// Similarity of each gathered chunk.
    likeness: Vec<Likeness>,
    /// Full batches being turned into frames, oldest first.
    ordered: VecDeque<Ordered>,
    /// Memory of a finished batch, for reuse: freeing and allocating megabytes fragments the heap.
    spare: Option<Chunks>,
}

/// A full batch, and the order of its chunks in frames.
struct Ordered {
    gathered: Chunks,
    order: Box<dyn Iterator<Item = usize> + Send>,
    /// The chunk that did not fit the last frame.
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

    /// Closes the current batch, however small.
    fn put_in_order(&self) -> Result<(), StoreError> {
        self.lock()?.put_in_order();
        Ok(())
    }

    /// Fills an empty frame. The frame stays empty if nothing is left.
    fn next_frame(&self, frame: &mut Chunks) -> Result<(), StoreError> {
        let mut small = self.lock()?;
        frame.effort = Effort::Low;
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

/// Number of idle helpers of one writer.
pub(super) struct Helpers(Mutex<usize>);

impl Default for Helpers {
    fn default() -> Self {
        Self(Mutex::new(syncd_runtime::threads::at_most(HELPERS_MAX + 1) - 1))
    }
}

/// Borrowed helpers, returned on drop.
struct Borrowed<'a>(&'a Helpers, usize);

impl Helpers {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Borrows all idle helpers if a content of `size` bytes is worth it.
    fn borrow(&self, size: u64) -> Borrowed<'_> {
        let count = if size < LARGE_MIN_BYTES { 0 } else { std::mem::take(&mut *self.lock()) };
        Borrowed(self, count)
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        *self.0.lock() += self.1;
    }
}

/// Compresses and writes frames on one thread.
struct FrameWriter<'a> {
    writer: &'a Writer,
    compressor: zstd::bulk::Compressor<'static>,
    compressed: Vec<u8>,
}

impl<'a> FrameWriter<'a> {
    fn new(writer: &'a Writer) -> Result<Self, StoreError> {
        let compressor = zstd::bulk::Compressor::default();
        Ok(Self { writer, compressor, compressed: Vec::new() })
    }

    fn write(&mut self, frame: &Chunks) -> Result<(), StoreError> {
        if frame.chunks.is_empty() {
            return Ok(());
        }
        self.compressed.clear();
        self.compressed.reserve(zstd::zstd_safe::compress_bound(frame.content.len()));
        frame
            .effort
            .set(&mut self.compressor)
            .and_then(|()| self.compressor.compress_to_buffer(&frame.content[..], &mut self.compressed))
            .map_err(|source| StoreError::Compress { source })?;
        self.writer.append(&frame.chunks, frame.content.len() as u32, &self.compressed)
    }

    /// Writes received frames until the sender is dropped.
    fn help(mut self, mut frames: Waiting<Chunks>) -> Result<(), StoreError> {
        frames.try_for_each(|frame| self.write(&frame))
    }
}

/// Collects chunks into frames, for one thread of a [`Writer`]. Dropping it without [`FrameBuilder::finish`]
/// makes the writer's seal fail, because other threads may rely on its chunks.
pub struct FrameBuilder<'a> {
    frames: FrameWriter<'a>,
    frame: Chunks,
    /// Memory of a frame of small contents.
    small: Chunks,
}

/// Adds the chunks of one content, whose frames are compressed by helpers.
pub struct LargeContent<'b, 'a> {
    builder: &'b mut FrameBuilder<'a>,
    full: SyncSender<Chunks>,
}

impl LargeContent<'_, '_> {
    /// Like [`FrameBuilder::add_chunk`].
    pub fn add_chunk(&mut self, hash: &ContentHash, bytes: &[u8]) -> Result<bool, StoreError> {
        let builder = &mut *self.builder;
        let new = builder.is_new(hash, bytes)?;
        if new {
            if !builder.frame.has_room_for(bytes.len()) {
                match self.full.try_send(std::mem::take(&mut builder.frame)) {
                    Ok(()) => builder.frame.content.reserve(FRAME_MAX_BYTES),
                    Err(TrySendError::Full(frame) | TrySendError::Disconnected(frame)) => {
                        builder.frame = frame;
                        builder.write_frame()?;
                    }
                }
            }
            builder.frame.push(hash, bytes);
            builder.frame.effort = Effort::Low;
        }
        Ok(new)
    }
}

impl<'a> FrameBuilder<'a> {
    pub(super) fn new(writer: &'a Writer) -> Result<Self, StoreError> {
        let (frame, small) = Default::default();
        Ok(Self { frames: FrameWriter::new(writer)?, frame, small })
    }

    /// Calls `add` to add the chunks of a content of `size` bytes.
    pub fn add_large<T, E: From<StoreError>>(
        &mut self,
        size: u64,
        add: impl FnOnce(LargeContent<'_, 'a>) -> Result<T, E>,
    ) -> Result<T, E> {
        let writer = self.frames.writer;
        let borrowed = writer.helpers.borrow(size);
        // For each helper, one frame may wait besides the one it is compressing.
        let (full, frames) = queue(borrowed.1);
        std::thread::scope(|scope| {
            let help = |frames| scope.spawn(move || FrameWriter::new(writer)?.help(frames));
            let helpers: Vec<_> = std::iter::repeat_n(frames, borrowed.1).map(help).collect();
            // Dropped on every return from `add`, which ends the helpers.
            let added = add(LargeContent { builder: self, full });
            for helper in helpers {
                helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            added
        })
    }

    /// Adds a chunk whose hash the caller has computed. Returns whether it was new: neither in the store nor
    /// added by any thread of this writer.
    pub fn add_chunk(&mut self, hash: &ContentHash, bytes: &[u8]) -> Result<bool, StoreError> {
        let new = self.is_new(hash, bytes)?;
        if new {
            self.push(hash, bytes)?;
        }
        Ok(new)
    }

    /// Adds the only chunk of a content, like [`FrameBuilder::add_chunk`]. A small one may be stored apart
    /// from its neighbours.
    pub fn add_content(&mut self, hash: &ContentHash, bytes: &[u8]) -> Result<bool, StoreError> {
        if bytes.len() > SMALL_MAX_BYTES {
            return self.add_chunk(hash, bytes);
        }
        let new = self.is_new(hash, bytes)?;
        if new {
            self.frames.writer.small.push(hash, bytes)?;
        }
        self.write_small()?;
        Ok(new)
    }

    /// Adds a chunk that may be in the store already, so that it is stored in a new place.
    pub(super) fn move_chunk(&mut self, hash: &ContentHash, bytes: &[u8]) -> Result<(), StoreError> {
        self.frames.writer.claim_again(hash)?;
        self.push(hash, bytes)
    }

    fn is_new(&self, hash: &ContentHash, bytes: &[u8]) -> Result<bool, StoreError> {
        if bytes.len() > FRAME_MAX_BYTES {
            return Err(StoreError::ChunkTooLarge { actual: bytes.len(), limit: FRAME_MAX_BYTES });
        }
        Ok(!bytes.is_empty() && self.frames.writer.claim(hash)?)
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
        self.frames.write(&frame)?;
        frame.clear();
        self.frame = frame;
        Ok(())
    }

    /// Writes one frame of small contents, if one is ready. Returns whether it was.
    fn write_small(&mut self) -> Result<bool, StoreError> {
        let mut frame = std::mem::take(&mut self.small);
        self.frames.writer.small.next_frame(&mut frame)?;
        let ready = !frame.chunks.is_empty();
        self.frames.write(&frame)?;
        frame.clear();
        self.small = frame;
        Ok(ready)
    }

    /// Writes the remaining frames, including small contents added by other threads.
    pub fn finish(mut self) -> Result<(), StoreError> {
        self.write_frame()?;
        self.frames.writer.small.put_in_order()?;
        while self.write_small()? {}
        Ok(())
    }
}
