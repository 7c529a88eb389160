//! Reads a published tree from an object store: see [`syncd_shared::published`]. All calls block.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use syncd_shared::hash::{ContentHash, ObjectHash};
use syncd_shared::identity::{RootFingerprint, SignedTrust, TrustDocument};
use syncd_shared::published::pack::{FrameKind, FrameRow, Item, read_list, read_table};
use syncd_shared::published::{
    self, HEAD, HEAD_OBJECT_MAX_BYTES, PublishedError, RELEASE_MAX_BYTES, Release, UpdateRef,
};
use syncd_shared::update_file::{FramePlace, Index, UpdateFileError};
use syncd_shared::wire::{WireError, decompress};
use syncd_shared::{Head, SignedGeneration};

use crate::bucket::{Bucket, BucketError};

/// Bytes of neighbouring frames that are read at once.
const READ_BYTES: u64 = 4 * 1024 * 1024;

/// A published tree could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Bucket(#[from] BucketError),
    #[error(transparent)]
    Published(#[from] PublishedError),
    #[error("an update in the object store is damaged")]
    Update(#[from] UpdateFileError),
    #[error("a frame in the object store is damaged")]
    Wire(#[from] WireError),
    /// Nothing is published there, or the object was deleted after a newer generation was released.
    #[error("{name} is not in the object store")]
    Missing { name: String },
}

/// A published tree in an object store.
#[derive(Debug, Clone)]
pub struct Reader {
    bucket: Arc<dyn Bucket>,
}

impl Reader {
    pub fn new(bucket: Arc<dyn Bucket>) -> Self {
        Self { bucket }
    }

    /// The object that names the released generation, not verified.
    pub fn head_object(&self) -> Result<Bytes, ReadError> {
        self.get(HEAD, HEAD_OBJECT_MAX_BYTES)
    }

    /// The trust document beside the head, for a reader that knows only the root key's fingerprint.
    pub fn first_trust(&self, root: RootFingerprint) -> Result<SignedTrust, ReadError> {
        Ok(published::first_trust(&self.head_object()?, root)?)
    }

    /// The released generation and where its content is, verified.
    pub fn release(
        &self,
        head_object: &[u8],
        document: &TrustDocument,
    ) -> Result<(Head, SignedGeneration, Release), ReadError> {
        let head = published::verify_head(head_object, document)?;
        let object = self.get(&published::generation_name(head.number), RELEASE_MAX_BYTES)?;
        let release = Release::decode(&object)?;
        let generation = release.verify(document)?;
        if !head.names(&generation) {
            return Err(PublishedError::OtherGeneration { number: head.number }.into());
        }
        Ok((head, generation, release))
    }

    /// The places of a generation's content. The generation was verified before.
    pub fn release_of(&self, generation: &SignedGeneration) -> Result<Release, ReadError> {
        let number = generation.number();
        let release = Release::decode(&self.get(&published::generation_name(number), RELEASE_MAX_BYTES)?)?;
        if release.record() == generation.record() {
            Ok(release)
        } else {
            Err(PublishedError::OtherGeneration { number }.into())
        }
    }

    fn get(&self, name: &str, limit: usize) -> Result<Bytes, ReadError> {
        self.bucket.get(name, limit)?.ok_or_else(|| ReadError::Missing { name: name.to_owned() })
    }

    fn read(&self, name: &str, range: Range<u64>) -> Result<Bytes, ReadError> {
        self.bucket.read(name, range)?.ok_or_else(|| ReadError::Missing { name: name.to_owned() })
    }

    /// Reads the tables of all packs.
    pub fn index(&self, release: &Release) -> Result<PackIndex, ReadError> {
        let mut index = PackIndex::default();
        for pack in &release.packs {
            let table = self.read(&published::pack_name(&pack.name), pack.table())?;
            index.add(pack.name, read_table(&table, &pack.name, pack.bytes)?);
        }
        Ok(index)
    }

    /// Reads the table of an update.
    pub fn update(&self, update: &UpdateRef) -> Result<Index, ReadError> {
        let name = published::update_name(&update.name);
        let mut failed = None;
        let index = Index::read(update.bytes, |at, buffer| {
            let end = at.saturating_add(buffer.len() as u64);
            match self.read(&name, at..end) {
                Ok(bytes) => buffer.copy_from_slice(&bytes),
                Err(error) => {
                    failed = Some(error);
                    return Err(std::io::ErrorKind::Other.into());
                }
            }
            Ok(())
        });
        if let Some(error) = failed {
            return Err(error);
        }
        let index = index?;
        if *index.name() == update.name {
            Ok(index)
        } else {
            Err(PublishedError::Hash { object: "the table of an update" }.into())
        }
    }

    /// The first of these frames of an update, as many as are read at once, checked.
    pub fn update_frames(&self, name: &[u8; 32], places: &[FramePlace]) -> Result<Vec<Bytes>, ReadError> {
        let Some(first) = places.first() else { return Ok(Vec::new()) };
        let start = first.range().start;
        let near = places.iter().take_while(|place| place.range().end.saturating_sub(start) <= READ_BYTES);
        let count = near.count().max(1);
        let end = places.get(count.saturating_sub(1)).map_or(start, |place| place.range().end);
        let bytes = self.read(&published::update_name(name), start..end)?;
        let frames = places.iter().take(count).enumerate().map(|(frame, place)| {
            let bytes = cut(&bytes, start, &place.range());
            let whole = bytes.filter(|bytes| place.is_of(bytes));
            whole.ok_or(ReadError::Update(UpdateFileError::Frame { frame }))
        });
        frames.collect()
    }

    /// The compressed bytes of frames of packs, checked: as many of the first ones as are read at once.
    pub fn pack_frames(&self, index: &PackIndex, places: &[FrameId]) -> Result<Vec<Bytes>, ReadError> {
        let Some(first) = places.first() else { return Ok(Vec::new()) };
        let start = index.row(*first).start;
        let mut end = start;
        let mut count = 0usize;
        for place in places {
            let range = index.row(*place).range();
            let is_near = place.pack == first.pack
                && range.start >= end
                && range.end.saturating_sub(start) <= READ_BYTES;
            if count > 0 && !is_near {
                break;
            }
            (end, count) = (range.end, count.saturating_add(1));
        }
        let bytes = self.read(&published::pack_name(index.name(*first)), start..end)?;
        let frames = places.iter().take(count).map(|place| {
            let row = index.row(*place);
            let whole = cut(&bytes, start, &row.range()).filter(|bytes| row.is_of(bytes));
            whole.ok_or(ReadError::Published(PublishedError::Hash { object: "a frame of a pack" }))
        });
        frames.collect()
    }

    /// The plain bytes of one frame.
    pub fn plain(&self, index: &PackIndex, frame: FrameId) -> Result<Vec<u8>, ReadError> {
        let bytes = self.pack_frames(index, &[frame])?;
        let bytes = bytes.into_iter().next().unwrap_or_default();
        Ok(decompress(&bytes, index.row(frame).plain_bytes as usize)?)
    }

    /// The chunks of a content, in order. `None`: it is not published.
    pub fn chunks(
        &self,
        index: &PackIndex,
        content: &ContentHash,
        lists: &mut PlainFrames,
    ) -> Result<Option<Vec<(ContentHash, u32)>>, ReadError> {
        if let Some((frame, item)) = index.find(FrameKind::Chunks, content.as_bytes()) {
            return Ok(Some(vec![(*content, index.item(frame, item).length)]));
        }
        let Some((frame, item)) = index.find(FrameKind::Lists, content.as_bytes()) else { return Ok(None) };
        let item = index.item(frame, item);
        Ok(Some(read_list(lists.item(self, index, frame, item)?)?))
    }

    /// Canonical bytes of a directory object. `None`: it is not published.
    pub fn page<'a>(
        &self,
        index: &PackIndex,
        object: &ObjectHash,
        pages: &'a mut PlainFrames,
    ) -> Result<Option<&'a [u8]>, ReadError> {
        let Some((frame, item)) = index.find(FrameKind::Pages, object.as_bytes()) else { return Ok(None) };
        pages.item(self, index, frame, index.item(frame, item)).map(Some)
    }
}

fn cut(bytes: &Bytes, start: u64, range: &Range<u64>) -> Option<Bytes> {
    let from = usize::try_from(range.start.checked_sub(start)?).ok()?;
    let to = usize::try_from(range.end.checked_sub(start)?).ok()?;
    bytes.get(from..to).map(|_| bytes.slice(from..to))
}

/// Names a frame in a [`PackIndex`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FrameId {
    pub pack: u32,
    pub frame: u32,
}

/// The places of everything in a generation. Takes about 80 bytes of memory for each chunk.
#[derive(Debug, Default)]
pub struct PackIndex {
    packs: Vec<([u8; 32], Vec<FrameRow>)>,
    items: HashMap<(u8, [u8; 16]), (FrameId, u32)>,
}

impl PackIndex {
    fn add(&mut self, name: [u8; 32], frames: Vec<FrameRow>) {
        let pack = self.packs.len() as u32;
        for (at, frame) in frames.iter().enumerate() {
            let id = FrameId { pack, frame: at as u32 };
            for (item, found) in frame.items.iter().enumerate() {
                self.items.entry(key(frame.kind, &found.hash)).or_insert((id, item as u32));
            }
        }
        self.packs.push((name, frames));
    }

    /// Finds an item: its frame, and its place among the frame's items.
    pub fn find(&self, kind: FrameKind, hash: &[u8; 32]) -> Option<(FrameId, u32)> {
        self.items.get(&key(kind, hash)).copied()
    }

    /// A frame that this index has named.
    pub fn row(&self, id: FrameId) -> &FrameRow {
        &self.packs[id.pack as usize].1[id.frame as usize]
    }

    /// An item that this index has named.
    pub fn item(&self, id: FrameId, item: u32) -> Item {
        self.row(id).items[item as usize]
    }

    /// Number of frames of a pack that this index has named.
    pub fn frames_of(&self, pack: u32) -> u32 {
        self.packs[pack as usize].1.len() as u32
    }

    fn name(&self, id: FrameId) -> &[u8; 32] {
        &self.packs[id.pack as usize].0
    }
}

fn key(kind: FrameKind, hash: &[u8; 32]) -> (u8, [u8; 16]) {
    let mut key = [0; 16];
    key.copy_from_slice(&hash[..16]);
    (kind as u8, key)
}

/// The plain frames used last, because neighbours in a tree lie in one frame.
#[derive(Debug, Default)]
pub struct PlainFrames {
    /// The frame used last comes last.
    frames: Vec<(FrameId, Vec<u8>)>,
}

impl PlainFrames {
    const KEPT: usize = 8;

    fn item(
        &mut self,
        reader: &Reader,
        index: &PackIndex,
        frame: FrameId,
        item: Item,
    ) -> Result<&[u8], ReadError> {
        let found = match self.frames.iter().position(|(id, _)| *id == frame) {
            Some(at) => self.frames.remove(at),
            None => (frame, reader.plain(index, frame)?),
        };
        if self.frames.len() >= Self::KEPT {
            self.frames.remove(0);
        }
        self.frames.push(found);
        let plain = self.frames.last().map(|(_, plain)| &plain[..]).unwrap_or_default();
        let start = item.offset as usize;
        let bytes = plain.get(start..start.saturating_add(item.length as usize));
        // The table says that the items fill the frame.
        bytes.ok_or(ReadError::Published(PublishedError::Form { object: "a pack" }))
    }
}
