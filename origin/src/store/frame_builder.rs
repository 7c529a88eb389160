//! Collects chunks into frames.
//!
//! A chunk of a larger file goes into its thread's next frame, behind those before it. Small contents of all threads are
//! gathered until there are enough of them, and go into frames next to those that they resemble. The threads compress these
//! frames one by one while they add more: so there are hardly more than two gatherings in memory.
//!
//! A large file is read by one thread. Helpers, as many in all as there are further cores, compress its frames meanwhile; what
//! finds none of them idle the thread compresses itself.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};

use syncd_shared::hash::ContentHash;
use syncd_shared::limits::FRAME_MAX_BYTES;

use super::error::{StoreError, poisoned};
use super::pack::{Effort, FRAME_MAX_CHUNKS, FrameChunk};
use super::similar::{self, Likeness};
use super::writer::Writer;

/// A content that is larger is not held against others.
const SMALL_MAX_BYTES: usize = 16 * 1024;
/// Small contents that are held against each other, in bytes. More of them find more, but what is asked for together lies
/// in more frames.
const GATHERED_MAX_BYTES: usize = 8 * 1024 * 1024;

/// A content of at least so many bytes is worth the start of helpers.
const LARGE_MIN_BYTES: u64 = 8 * 1024 * 1024;
/// Helpers of one writer at most.
const HELPERS_MAX: usize = 7;

/// Chunks, one behind the other.
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

/// Helpers of one writer that nobody has.
pub(super) struct Helpers(Mutex<usize>);

impl Default for Helpers {
    fn default() -> Self {
        Self(Mutex::new(syncd_shared::threads::at_most(HELPERS_MAX + 1) - 1))
    }
}

/// Helpers that are given back when this is dropped.
struct Borrowed<'a>(&'a Helpers, usize);

impl Helpers {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that there are, for a content of `size` bytes.
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

/// Compresses frames, on one thread.
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

    /// Writes what comes, as a helper.
    fn help(mut self, frames: &Mutex<Receiver<Chunks>>) -> Result<(), StoreError> {
        let next = || frames.lock().unwrap_or_else(PoisonError::into_inner).recv();
        while let Ok(frame) = next() {
            self.write(&frame)?;
        }
        Ok(())
    }
}

/// Collects chunks into frames, for one thread of a [`Writer`]. One that is dropped without [`FrameBuilder::finish`]
/// makes the writer's seal fail, because others may count on its chunks.
pub struct FrameBuilder<'a> {
    frames: FrameWriter<'a>,
    frame: Chunks,
    /// A frame of small contents, while it is made.
    small: Chunks,
}

/// Adds the chunks of one content, of which helpers compress the frames.
pub struct LargeContent<'b, 'a> {
    builder: &'b mut FrameBuilder<'a>,
    full: SyncSender<Chunks>,
}

impl LargeContent<'_, '_> {
    /// Adds a chunk whose hash the caller has computed, as [`FrameBuilder::add_chunk`] does.
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

    /// Has `add` add the chunks of a content of `size` bytes.
    pub fn add_large<T, E: From<StoreError>>(
        &mut self,
        size: u64,
        add: impl FnOnce(LargeContent<'_, 'a>) -> Result<T, E>,
    ) -> Result<T, E> {
        let writer = self.frames.writer;
        let borrowed = writer.helpers.borrow(size);
        // Each helper has one frame at hand, and one waits for it.
        let (full, frames) = sync_channel(borrowed.1);
        let frames = Mutex::new(frames);
        std::thread::scope(|scope| {
            let frames = &frames;
            let help = || scope.spawn(move || FrameWriter::new(writer)?.help(frames));
            let helpers: Vec<_> = (0..borrowed.1).map(|_| help()).collect();
            // Dropped when it ends, by whatever way: that ends the helpers.
            let added = add(LargeContent { builder: self, full });
            for helper in helpers {
                helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            added
        })
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
            self.frames.writer.small.push(hash, bytes)?;
        }
        self.write_small()?;
        Ok(new)
    }

    /// Adds a chunk that may be in the store, to lie in another place.
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

    /// Writes one frame of small contents, where one is ready; whether it was.
    fn write_small(&mut self) -> Result<bool, StoreError> {
        let mut frame = std::mem::take(&mut self.small);
        self.frames.writer.small.next_frame(&mut frame)?;
        let ready = !frame.chunks.is_empty();
        self.frames.write(&frame)?;
        frame.clear();
        self.small = frame;
        Ok(ready)
    }

    /// Writes what is left, also of small contents that other threads added.
    pub fn finish(mut self) -> Result<(), StoreError> {
        self.write_frame()?;
        self.frames.writer.small.put_in_order()?;
        while self.write_small()? {}
        Ok(())
    }
}
