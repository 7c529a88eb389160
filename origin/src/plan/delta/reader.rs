//! Reads stretches of files from the store. Frames that were decompressed last are kept, for all threads: files that lie
//! together are asked for together, and small ones that lie together lie among a few megabytes of others.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use syncd_shared::{ContentHash, TreePath};

use crate::plan::contents::{Chunk, Contents, FrameId};
use crate::plan::error::PlanError;

/// Decompressed frames that are kept, each at most 1 MiB: of two trees, what is gathered to be put in order before it is
/// stored, and what the threads read besides.
const FRAMES_KEPT: usize = 24;
/// How often a chunk that garbage collection moves is looked for.
const LOCATE_ATTEMPTS: usize = 3;

/// The chunks of a file, with where each starts.
#[derive(Debug)]
pub(super) struct ChunkList {
    pub chunks: Vec<Chunk>,
    /// Offset of each chunk in the file; one more at the end, the file's size.
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

    /// The chunks of a content, `None` where the store lacks it.
    pub(super) fn load(contents: &dyn Contents, content: &ContentHash) -> Result<Option<Self>, PlanError> {
        Ok(contents.chunks_of(content)?.map(Self::new))
    }

    /// The file's size in bytes.
    pub(super) fn size(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }
}

/// A stretch of a file of either tree.
#[derive(Debug, Clone)]
pub(super) struct Stretch {
    pub content: ContentHash,
    /// Named on the wire where the content alone does not tell.
    pub path: Option<TreePath>,
    /// Where they are known already.
    pub chunks: Option<Arc<ChunkList>>,
    pub offset: u64,
    pub length_bytes: u32,
}

impl Stretch {
    /// A file from its start on.
    pub(super) fn start_of(content: ContentHash, length_bytes: u32) -> Self {
        Self { content, path: None, chunks: None, offset: 0, length_bytes }
    }
}

/// Decompressed frames, the one used last comes last.
#[derive(Default)]
pub(super) struct KeptFrames(Mutex<VecDeque<(FrameId, Arc<Vec<u8>>)>>);

impl KeptFrames {
    fn lock(&self) -> MutexGuard<'_, VecDeque<(FrameId, Arc<Vec<u8>>)>> {
        // Nothing in it can be half changed.
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

    /// Memory of a frame that has to go, where there are enough and nobody reads it.
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

    /// Appends a stretch to `out`. `false`: the store does not have all of it (any more), and `out` is as it was.
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

    /// Makes a frame the one read last; `false` where garbage collection has moved it.
    fn bring(&mut self, id: FrameId) -> Result<bool, PlanError> {
        if self.frame.as_ref().is_some_and(|(frame, _)| *frame == id) {
            return Ok(true);
        }
        self.frame = self.kept.find(id).map(|bytes| (id, bytes));
        if self.frame.is_some() {
            return Ok(true);
        }
        let bytes = match self.contents.take_ahead(id) {
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
