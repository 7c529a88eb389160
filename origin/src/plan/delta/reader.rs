//! Reads ranges of files from the store. All threads share recently decompressed frames, because adjacent
//! files are requested together, and small adjacent ones are stored within a few megabytes of each other.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use syncd_shared::{ContentHash, TreePath};

use crate::plan::contents::{Chunk, Contents, FrameId};
use crate::plan::error::PlanError;

/// Number of decompressed frames kept, each at most 1 MiB. Enough for one batch of small contents from either
/// tree, and for the frames that the threads read besides.
const FRAMES_KEPT: usize = 24;
/// Attempts to find a chunk that garbage collection moves.
const LOCATE_ATTEMPTS: usize = 3;

/// The chunks of a file, with their offsets.
#[derive(Debug)]
pub(super) struct ChunkList {
    pub chunks: Vec<Chunk>,
    /// Offset of each chunk in the file, followed by the file's size.
    pub starts: Vec<u64>,
}

impl ChunkList {
    pub(super) fn new(chunks: Vec<Chunk>) -> Self {
        let mut starts = Vec::with_capacity(chunks.len() + 1);
        let mut at = 0;
        starts.push(0);
        for chunk in &chunks {
            at += u64::from(chunk.length);
            starts.push(at);
        }
        Self { chunks, starts }
    }

    /// The chunks of a content; `None` if the store does not have it.
    pub(super) fn load(contents: &dyn Contents, content: &ContentHash) -> Result<Option<Self>, PlanError> {
        Ok(contents.chunks_of(content)?.map(Self::new))
    }

    /// Size of the file in bytes.
    pub(super) fn size(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }
}

/// A range of a file in either tree.
#[derive(Debug, Clone)]
pub(super) struct Stretch {
    pub content: ContentHash,
    /// Path to send if the content alone does not identify the file.
    pub path: Option<TreePath>,
    /// The file's chunks, if already known.
    pub chunks: Option<Arc<ChunkList>>,
    pub offset: u64,
    pub length_bytes: u32,
}

impl Stretch {
    /// The first `length_bytes` of a file.
    pub(super) fn start_of(content: ContentHash, length_bytes: u32) -> Self {
        Self { content, path: None, chunks: None, offset: 0, length_bytes }
    }
}

/// Decompressed frames, most recently used last.
#[derive(Default)]
pub(super) struct KeptFrames(Mutex<VecDeque<(FrameId, Arc<Vec<u8>>)>>);

impl KeptFrames {
    fn lock(&self) -> MutexGuard<'_, VecDeque<(FrameId, Arc<Vec<u8>>)>> {
        // A panic cannot leave the list half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, id: FrameId) -> Option<Arc<Vec<u8>>> {
        let mut kept = self.lock();
        let index = kept.iter().rposition(|(frame, _)| *frame == id)?;
        let found = kept.remove(index)?;
        let bytes = found.1.clone();
        kept.push_back(found);
        Some(bytes)
    }

    /// Takes the memory of the oldest frame for reuse, if enough are kept and nobody reads it.
    fn reclaim(&self) -> Vec<u8> {
        let mut kept = self.lock();
        let oldest = if kept.len() < FRAMES_KEPT { None } else { kept.pop_front() };
        oldest.and_then(|(_, bytes)| Arc::try_unwrap(bytes).ok()).unwrap_or_default()
    }

    fn keep(&self, id: FrameId, bytes: Arc<Vec<u8>>) {
        self.lock().push_back((id, bytes));
    }
}

/// Reads from one store, on one thread.
pub(super) struct Reader<'a> {
    contents: &'a dyn Contents,
    kept: &'a KeptFrames,
    /// The frame read last.
    frame: Option<(FrameId, Arc<Vec<u8>>)>,
    decompressor: zstd::bulk::Decompressor<'static>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(contents: &'a dyn Contents, kept: &'a KeptFrames) -> Result<Self, PlanError> {
        let decompressor = zstd::bulk::Decompressor::new().map_err(PlanError::Compress)?;
        Ok(Self { contents, kept, frame: None, decompressor })
    }

    /// Appends a range to `out`. Returns `false` and leaves `out` unchanged if the store does not have all of
    /// it.
    pub(super) fn read(&mut self, stretch: &Stretch, out: &mut Vec<u8>) -> Result<bool, PlanError> {
        let loaded;
        let list = match &stretch.chunks {
            Some(list) => &**list,
            None => match ChunkList::load(self.contents, &stretch.content)? {
                Some(list) => {
                    loaded = list;
                    &loaded
                }
                None => return Ok(false),
            },
        };
        let before = out.len();
        let end = stretch.offset + u64::from(stretch.length_bytes);
        let first = list.starts.partition_point(|start| *start <= stretch.offset).saturating_sub(1);
        for (chunk, start) in list.chunks.iter().zip(&list.starts).skip(first) {
            if *start >= end {
                break;
            }
            let from = stretch.offset.saturating_sub(*start) as usize;
            let to = u64::from(chunk.length).min(end - start) as usize;
            if !self.chunk(chunk, from, to, out)? {
                out.truncate(before);
                return Ok(false);
            }
        }
        let complete = out.len() - before == stretch.length_bytes as usize;
        if !complete {
            out.truncate(before);
        }
        Ok(complete)
    }

    fn chunk(&mut self, chunk: &Chunk, from: usize, to: usize, out: &mut Vec<u8>) -> Result<bool, PlanError> {
        for _ in 0..LOCATE_ATTEMPTS {
            let Some(place) = self.contents.locate(&chunk.hash)?.filter(|p| p.length == chunk.length) else {
                return Ok(false);
            };
            if self.bring(place.frame)?
                && let Some((_, bytes)) = &self.frame
            {
                let start = place.offset as usize;
                let damaged = || PlanError::Damaged(std::io::ErrorKind::UnexpectedEof.into());
                out.extend_from_slice(bytes.get(start + from..start + to).ok_or_else(damaged)?);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Makes `id` the current frame. `false` if garbage collection has moved its chunks.
    fn bring(&mut self, id: FrameId) -> Result<bool, PlanError> {
        if self.frame.as_ref().is_some_and(|(frame, _)| *frame == id) {
            return Ok(true);
        }
        self.frame = self.kept.find(id).map(|bytes| (id, bytes));
        if self.frame.is_some() {
            return Ok(true);
        }
        let bytes = match self.contents.in_memory(id) {
            Some(bytes) => bytes,
            None => {
                let Some(frame) = self.contents.frame(id)? else { return Ok(false) };
                let mut bytes = self.kept.reclaim();
                bytes.clear();
                bytes.reserve_exact(frame.uncompressed_bytes as usize);
                let decompressed = self.decompressor.decompress_to_buffer(&frame.compressed, &mut bytes);
                decompressed.map_err(PlanError::Damaged)?;
                Arc::new(bytes)
            }
        };
        self.kept.keep(id, bytes.clone());
        self.frame = Some((id, bytes));
        Ok(true)
    }
}
