//! Finds the objects of a tree that an object store does not have, and cuts them into packs.
//!
//! The walk skips every directory object whose whole subtree is published, so its cost follows the changed
//! pages. Frames of chunks go as the store has them. Directory objects and lists of chunks are gathered.

use std::collections::HashSet;

use syncd_shared::directory::{Kind, Page};
use syncd_shared::limits::DIRECTORY_FRAME_BYTES;
use syncd_shared::published::pack::{BuiltPack, FrameKind, FrameRow, PackBuilder, encode_list};
use syncd_shared::{ContentHash, ObjectHash};

use super::error::PublishError;
use crate::store::Store;

/// A pack of this length gets no further frames. It is held in memory while it is made.
const PACK_BYTES: usize = 16 * 1024 * 1024;
/// Plain bytes of a gathered frame.
const GATHERED_BYTES: usize = DIRECTORY_FRAME_BYTES / 4;
const ZSTD_LEVEL: i32 = 9;
/// Bytes of a hash that are remembered: 16 never collide by chance.
const KEY_BYTES: usize = 16;

pub(super) type Key = (u8, [u8; KEY_BYTES]);

pub(super) fn key(kind: FrameKind, hash: &[u8; 32]) -> Key {
    let mut key = [0; KEY_BYTES];
    key.copy_from_slice(&hash[..KEY_BYTES]);
    (kind as u8, key)
}

/// Objects in the object store. Takes about 40 bytes of memory for each.
#[derive(Default)]
pub(super) struct Present {
    items: HashSet<Key>,
    /// Directory objects whose whole subtree is there.
    complete: HashSet<Key>,
}

impl Present {
    /// Adds the objects of a pack. `is_listed`: a published generation lists it, and thus has whole trees.
    pub(super) fn add(&mut self, frames: &[FrameRow], is_listed: bool) {
        for frame in frames {
            let keys = frame.items.iter().map(|item| key(frame.kind, &item.hash));
            if is_listed && frame.kind == FrameKind::Pages {
                self.complete.extend(keys.clone());
            }
            self.items.extend(keys);
        }
    }

    /// Records that a generation lists everything.
    pub(super) fn complete_all(&mut self) {
        let pages = self.items.iter().filter(|(kind, _)| *kind == FrameKind::Pages as u8);
        self.complete.extend(pages);
    }

    fn insert(&mut self, kind: FrameKind, hash: &[u8; 32]) -> bool {
        self.items.insert(key(kind, hash))
    }

    fn has(&self, kind: FrameKind, hash: &[u8; 32]) -> bool {
        self.items.contains(&key(kind, hash))
    }
}

/// Items that are gathered into one frame.
#[derive(Default)]
struct Gathered {
    plain: Vec<u8>,
    items: Vec<([u8; 32], u32)>,
}

impl Gathered {
    fn push(&mut self, hash: [u8; 32], bytes: &[u8]) {
        self.plain.extend_from_slice(bytes);
        self.items.push((hash, bytes.len() as u32));
    }

    fn write(&mut self, kind: FrameKind, pack: &mut PackBuilder) -> Result<(), PublishError> {
        if self.items.is_empty() {
            return Ok(());
        }
        let compressed = zstd::bulk::compress(&self.plain, ZSTD_LEVEL).map_err(PublishError::Compress)?;
        pack.add(kind, &compressed, self.plain.len() as u32, self.items.drain(..));
        self.plain.clear();
        Ok(())
    }
}

/// Walks a tree and passes packs to `sink`.
pub(super) struct Collector<'a> {
    store: &'a Store,
    present: &'a mut Present,
    sink: &'a mut dyn FnMut(BuiltPack) -> Result<(), PublishError>,
    pack: PackBuilder,
    pages: Gathered,
    lists: Gathered,
    /// Makes the names of all packs new.
    salt: Option<[u8; 32]>,
}

impl<'a> Collector<'a> {
    pub(super) fn new(
        store: &'a Store,
        present: &'a mut Present,
        sink: &'a mut dyn FnMut(BuiltPack) -> Result<(), PublishError>,
        salt: Option<[u8; 32]>,
    ) -> Self {
        let (pages, lists) = Default::default();
        Self { store, present, sink, pack: PackBuilder::default(), pages, lists, salt }
    }

    /// Packs everything of a tree that is not present.
    pub(super) fn tree(mut self, root: ObjectHash) -> Result<(), PublishError> {
        let mut seen = HashSet::new();
        let mut open = vec![root];
        while let Some(object) = open.pop() {
            if self.present.complete.contains(&key(FrameKind::Pages, object.as_bytes()))
                || !seen.insert(object)
            {
                continue;
            }
            let bytes = self.store.page_bytes(&object)?.ok_or(PublishError::DirectoryMissing { object })?;
            let page = Page::decode(&bytes).map_err(|_| PublishError::DirectoryDamaged { object })?;
            for entry in page.entries() {
                if let Kind::File { content, size: size @ 1.. } = entry.kind {
                    self.content(content, size)?;
                }
            }
            self.page(object, &bytes)?;
            open.extend(page.children().rev());
        }
        self.end_pack()
    }

    fn page(&mut self, object: ObjectHash, bytes: &[u8]) -> Result<(), PublishError> {
        if self.present.insert(FrameKind::Pages, object.as_bytes()) {
            self.pages.push(*object.as_bytes(), bytes);
            if self.pages.plain.len() >= GATHERED_BYTES {
                self.pages.write(FrameKind::Pages, &mut self.pack)?;
            }
        }
        self.end_full_pack()
    }

    fn content(&mut self, content: ContentHash, size: u64) -> Result<(), PublishError> {
        // Whatever has the list of a content's chunks has the chunks.
        let hash = content.as_bytes();
        if self.present.has(FrameKind::Chunks, hash) || self.present.has(FrameKind::Lists, hash) {
            return Ok(());
        }
        let chunks = self.store.chunks_of(&content, size)?;
        let chunks = chunks.ok_or(PublishError::ContentMissing { content })?;
        for chunk in &chunks {
            self.chunk(chunk.hash)?;
        }
        if chunks.len() > 1 {
            self.present.insert(FrameKind::Lists, hash);
            self.lists.push(*hash, &encode_list(chunks.iter().map(|chunk| (chunk.hash, chunk.length))));
            if self.lists.plain.len() >= GATHERED_BYTES {
                self.lists.write(FrameKind::Lists, &mut self.pack)?;
            }
        }
        Ok(())
    }

    fn chunk(&mut self, chunk: ContentHash) -> Result<(), PublishError> {
        if self.present.has(FrameKind::Chunks, chunk.as_bytes()) {
            return Ok(());
        }
        let found = self.store.frame_of(&chunk)?;
        let (_, frame) = found.ok_or(PublishError::ContentMissing { content: chunk })?;
        let items = frame.chunks.iter().map(|chunk| (*chunk.hash.as_bytes(), chunk.length));
        self.pack.add(FrameKind::Chunks, &frame.compressed, frame.uncompressed_bytes, items);
        for chunk in &frame.chunks {
            self.present.insert(FrameKind::Chunks, chunk.hash.as_bytes());
        }
        self.end_full_pack()
    }

    fn end_full_pack(&mut self) -> Result<(), PublishError> {
        if self.pack.len() >= PACK_BYTES { self.end_pack() } else { Ok(()) }
    }

    /// Ends the pack. A list of chunks goes into the pack of its last chunk, or a later one.
    fn end_pack(&mut self) -> Result<(), PublishError> {
        self.lists.write(FrameKind::Lists, &mut self.pack)?;
        self.pages.write(FrameKind::Pages, &mut self.pack)?;
        if self.pack.is_empty() {
            return Ok(());
        }
        if let Some(salt) = self.salt {
            let nothing = zstd::bulk::compress(&[], ZSTD_LEVEL).map_err(PublishError::Compress)?;
            self.pack.add(FrameKind::Chunks, &nothing, 0, [(salt, 0)]);
        }
        (self.sink)(std::mem::take(&mut self.pack).finish())
    }
}
