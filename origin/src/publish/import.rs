//! Takes a published generation into the store: for a restored origin, and for one on standby.
//!
//! Everything is checked against its hash, as if a stranger had sent it. Content that the store has is not
//! read. A crash leaves content without a generation, which the next attempt finds there.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use syncd_runtime::published::{FrameId, PackIndex, PlainFrames, ReadError, Reader};
use syncd_shared::directory::{Built, Kind, Page};
use syncd_shared::published::pack::FrameKind;
use syncd_shared::wire::{WireError, decompress};
use syncd_shared::{ContentHash, ObjectHash, SignedGeneration, Totals};

use crate::store::{Chunk, FrameBuilder, Records, SealError, Store, StoreError, Writer};

/// Frames that are asked for at once, as far as they follow each other.
const FRAMES: u32 = 64;

/// Reasons why a published generation is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("read the published tree")]
    Read(#[from] ReadError),
    #[error("read or write the store")]
    Store(#[from] StoreError),
    #[error("keep the published generation")]
    Seal(#[from] SealError),
    #[error("a published frame is damaged")]
    Frame(#[from] WireError),
    #[error("the published tree has no directory object {object}")]
    DirectoryMissing { object: ObjectHash },
    #[error("directory object {object} of the published tree is damaged")]
    DirectoryDamaged { object: ObjectHash },
    #[error("the published tree has no content {content}")]
    ContentMissing { content: ContentHash },
    #[error("content {content} of the published tree is damaged")]
    ContentDamaged { content: ContentHash },
}

/// Takes `generation`, durable on return. `change` writes records in the same transaction.
pub fn import(
    reader: &Reader,
    index: &PackIndex,
    store: &Arc<Store>,
    generation: &SignedGeneration,
    change: impl FnOnce(&mut Records<'_>) -> Result<(), StoreError>,
) -> Result<(), ImportError> {
    let writer = store.writer()?;
    let mut batch = writer.batch()?;
    let mut import = Import {
        reader,
        index,
        writer: &writer,
        batch: &mut batch,
        pages: PlainFrames::default(),
        lists: PlainFrames::default(),
        frames: HashMap::new(),
        plain: None,
    };
    import.tree(generation.generation().root.object)?;
    batch.finish()?;
    Ok(writer.seal_with(generation, |records| Ok(change(records)?))?)
}

struct Import<'i, 'w> {
    reader: &'i Reader,
    index: &'i PackIndex,
    writer: &'w Writer,
    batch: &'i mut FrameBuilder<'w>,
    pages: PlainFrames,
    lists: PlainFrames,
    /// Compressed frames that were read with the last request.
    frames: HashMap<FrameId, Bytes>,
    /// The frame used last.
    plain: Option<(FrameId, Vec<u8>)>,
}

impl Import<'_, '_> {
    fn tree(&mut self, root: ObjectHash) -> Result<(), ImportError> {
        let (mut seen, mut open) = (HashSet::new(), vec![root]);
        while let Some(object) = open.pop() {
            if !seen.insert(object) {
                continue;
            }
            let bytes = self.reader.page(self.index, &object, &mut self.pages)?;
            let bytes = bytes.ok_or(ImportError::DirectoryMissing { object })?.to_vec();
            let damaged = |_| ImportError::DirectoryDamaged { object };
            let page = Page::decode_verified(&bytes, object).map_err(damaged)?;
            self.writer.put_pages(&Built {
                root: object,
                totals: Totals::default(),
                pages: vec![(object, bytes)],
            })?;
            for entry in page.entries() {
                if let Kind::File { content, size: size @ 1.. } = entry.kind {
                    self.content(content, size)?;
                }
            }
            open.extend(page.children().rev());
        }
        Ok(())
    }

    fn content(&mut self, content: ContentHash, size: u64) -> Result<(), ImportError> {
        if self.writer.has_content(&content, size)? {
            return Ok(());
        }
        let chunks = self.reader.chunks(self.index, &content, &mut self.lists)?;
        let chunks = chunks.ok_or(ImportError::ContentMissing { content })?;
        let mut whole = blake3::Hasher::new();
        for (hash, _) in &chunks {
            let bytes = self.chunk(*hash)?;
            whole.update(&bytes);
            self.batch.add_chunk(hash, &bytes)?;
        }
        if ContentHash::from_bytes(*whole.finalize().as_bytes()) != content {
            return Err(ImportError::ContentDamaged { content });
        }
        let chunks: Vec<Chunk> = chunks.iter().map(|&(hash, length)| Chunk { hash, length }).collect();
        Ok(self.writer.put_file(&content, &chunks)?)
    }

    fn chunk(&mut self, chunk: ContentHash) -> Result<Vec<u8>, ImportError> {
        let missing = ImportError::ContentMissing { content: chunk };
        let (frame, item) = self.index.find(FrameKind::Chunks, chunk.as_bytes()).ok_or(missing)?;
        let item = self.index.item(frame, item);
        let start = item.offset as usize;
        let plain = self.plain(frame)?;
        let bytes = plain.get(start..start.saturating_add(item.length as usize)).unwrap_or_default().to_vec();
        if ContentHash::of(&bytes) == chunk {
            Ok(bytes)
        } else {
            Err(ImportError::ContentDamaged { content: chunk })
        }
    }

    fn plain(&mut self, frame: FrameId) -> Result<&[u8], ImportError> {
        if self.plain.as_ref().is_none_or(|(id, _)| *id != frame) {
            let compressed = match self.frames.remove(&frame) {
                Some(compressed) => compressed,
                None => self.read(frame)?,
            };
            let plain = decompress(&compressed, self.index.row(frame).plain_bytes as usize)?;
            self.plain = Some((frame, plain));
        }
        Ok(self.plain.as_ref().map(|(_, plain)| &plain[..]).unwrap_or_default())
    }

    /// Reads a frame, and those after it in the pack, which is the order in which they are used.
    fn read(&mut self, frame: FrameId) -> Result<Bytes, ImportError> {
        let last = self.index.frames_of(frame.pack).min(frame.frame.saturating_add(FRAMES));
        let wanted: Vec<FrameId> = (frame.frame..last).map(|n| FrameId { frame: n, ..frame }).collect();
        let read = self.reader.pack_frames(self.index, &wanted)?;
        self.frames = wanted.into_iter().zip(read).collect();
        self.frames.remove(&frame).ok_or(ImportError::Read(ReadError::Missing { name: "a frame".into() }))
    }
}
