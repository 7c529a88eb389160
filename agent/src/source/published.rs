//! A published tree as a [`Source`]: the answers that an origin would give, read from an object store.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use prost::Message as _;
use syncd_proto::v1;
use syncd_runtime::published::{FrameId, PackIndex, PlainFrames, ReadError, Reader};
use syncd_shared::directory::{Kind, Page};
use syncd_shared::limits::{DIRECTORY_FRAME_BYTES, FRAME_PIECES_MAX};
use syncd_shared::published::Release;
use syncd_shared::published::pack::FrameKind;
use syncd_shared::stored_frame::{Piece, StoredFrame};
use syncd_shared::text::error_chain;
use syncd_shared::update_file::FramePlace;
use syncd_shared::wire::{Frame, ObjectsBatch, WireError};
use syncd_shared::{ContentHash, ContentTag, ObjectHash, RootHash, Totals};
use tokio_util::sync::CancellationToken;

use super::{Batches, FetchError, Frames, Source};

/// The published generation that was seen last, and the tables of its packs once they are needed.
#[derive(Clone, Default)]
pub(crate) struct Released(Arc<Mutex<Option<Known>>>);

#[derive(Clone)]
struct Known {
    root: RootHash,
    release: Arc<Release>,
    index: Option<Arc<PackIndex>>,
}

impl Released {
    /// Takes a verified release.
    pub(crate) fn set(&self, release: Release) {
        let root = release.generation.root.hash();
        *self.lock() = Some(Known { root, release: Arc::new(release), index: None });
    }

    /// Whether this is the tree of the release that was set.
    pub(crate) fn has(&self, root: RootHash) -> bool {
        self.of(root).is_ok()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, root: RootHash) -> Result<Known, FetchError> {
        self.lock().clone().filter(|known| known.root == root).ok_or(FetchError::UnknownRoot { root })
    }

    fn index(&self, reader: &Reader, root: RootHash) -> Result<Arc<PackIndex>, FetchError> {
        let known = self.of(root)?;
        if let Some(index) = known.index {
            return Ok(index);
        }
        let index = Arc::new(reader.index(&known.release)?);
        if let Some(known) = self.lock().as_mut().filter(|known| known.root == root) {
            known.index = Some(index.clone());
        }
        Ok(index)
    }
}

/// See the module.
pub(crate) struct PublishedSource {
    reader: Reader,
    released: Released,
    abandoned: CancellationToken,
    totals: Totals,
}

impl PublishedSource {
    pub(crate) fn new(reader: Reader, released: Released, abandoned: CancellationToken) -> Self {
        Self { reader, released, abandoned, totals: Totals::default() }
    }
}

impl Source for PublishedSource {
    fn expect(&mut self, totals: &Totals) {
        self.totals = *totals;
    }

    fn update(&mut self, from: RootHash, to: RootHash) -> Result<Frames, FetchError> {
        let known = self.released.of(to)?;
        let update = known.release.updates.iter().find(|update| update.from == from);
        let update = *update.ok_or(FetchError::NoUpdate { from })?;
        // Whatever is wrong with an update, everything can be fetched by hash.
        let index = self.reader.update(&update).map_err(|error| {
            tracing::warn!(error = error_chain(&error), "a published update can't be used");
            FetchError::NoUpdate { from }
        })?;
        if (index.from(), index.to()) != (from, to) {
            return Err(FetchError::NoUpdate { from });
        }
        Ok(Box::new(UpdateFrames {
            reader: self.reader.clone(),
            abandoned: self.abandoned.clone(),
            totals: self.totals,
            name: update.name,
            places: index.frames().to_vec(),
            ready: VecDeque::new(),
        }))
    }

    fn objects(&mut self, root: RootHash, batches: Batches) -> Result<Frames, FetchError> {
        Ok(Box::new(Answers {
            reader: self.reader.clone(),
            abandoned: self.abandoned.clone(),
            index: self.released.index(&self.reader, root)?,
            batches,
            pages: PlainFrames::default(),
            lists: PlainFrames::default(),
            answer: None,
            answered: 0,
        }))
    }
}

/// The frames of an update that are still to be read.
struct UpdateFrames {
    reader: Reader,
    abandoned: CancellationToken,
    totals: Totals,
    name: [u8; 32],
    /// In order, the next one first.
    places: Vec<FramePlace>,
    ready: VecDeque<Bytes>,
}

impl UpdateFrames {
    fn take(&mut self) -> Result<Option<Frame>, FetchError> {
        if self.abandoned.is_cancelled() {
            return Err(FetchError::Superseded);
        }
        if self.ready.is_empty() {
            let read = self.reader.update_frames(&self.name, &self.places).map_err(|error| {
                tracing::warn!(error = error_chain(&error), "a published update can't be used");
                FetchError::GivenUp
            })?;
            self.places.drain(..read.len());
            self.ready = read.into();
        }
        let Some(bytes) = self.ready.pop_front() else { return Ok(None) };
        let message = v1::FetchFrame::decode(bytes).map_err(WireError::from)?;
        Ok(Some(Frame::from_message_within(message, &self.totals)?))
    }
}

impl Iterator for UpdateFrames {
    type Item = Result<Frame, FetchError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.take().transpose()
    }
}

/// Answers to requests by hash.
struct Answers {
    reader: Reader,
    abandoned: CancellationToken,
    index: Arc<PackIndex>,
    batches: Batches,
    pages: PlainFrames,
    lists: PlainFrames,
    answer: Option<Answer>,
    answered: u64,
}

/// The answer to one batch.
struct Answer {
    recursive: bool,
    /// Directory objects to be sent, the next one last.
    directories: Vec<ObjectHash>,
    sent: HashSet<ObjectHash>,
    /// `Some` until they are looked up.
    asked: Option<ObjectsBatch>,
    /// Frames to be read, in order, and the pieces wanted of each.
    groups: VecDeque<(FrameId, Vec<Piece>)>,
    /// Compressed bytes of the first groups.
    read: VecDeque<Bytes>,
    missing: Vec<[u8; 32]>,
}

impl Answer {
    fn new(batch: ObjectsBatch) -> Self {
        let mut directories = batch.directories.clone();
        directories.reverse();
        Self {
            recursive: batch.recursive,
            directories,
            sent: HashSet::new(),
            asked: Some(batch),
            groups: VecDeque::new(),
            read: VecDeque::new(),
            missing: Vec::new(),
        }
    }
}

impl Answers {
    fn take(&mut self) -> Result<Option<Frame>, FetchError> {
        loop {
            if self.abandoned.is_cancelled() {
                return Err(FetchError::Superseded);
            }
            let mut answer = match self.answer.take() {
                Some(answer) => answer,
                // Further batches come from the thread that takes the frames.
                None => match self.batches.try_recv() {
                    Ok(batch) => Answer::new(batch),
                    Err(_) => return Ok(None),
                },
            };
            if !answer.directories.is_empty() {
                let objects = self.directories(&mut answer)?;
                self.answer = Some(answer);
                if !objects.is_empty() {
                    return Ok(Some(Frame::Directories(objects)));
                }
                continue;
            }
            if let Some(batch) = answer.asked.take() {
                self.look_up(&batch, &mut answer)?;
            }
            if let Some(frame) = self.content(&mut answer)? {
                self.answer = Some(answer);
                return Ok(Some(frame));
            }
            let request = self.answered;
            self.answered = request.saturating_add(1);
            return Ok(Some(Frame::End { request, missing: answer.missing }));
        }
    }

    /// Reads directory objects for one frame.
    fn directories(&mut self, answer: &mut Answer) -> Result<Vec<Vec<u8>>, FetchError> {
        let (mut objects, mut sum) = (Vec::new(), 0usize);
        while let Some(object) = answer.directories.pop() {
            if !answer.sent.insert(object) {
                continue;
            }
            let Some(bytes) = self.reader.page(&self.index, &object, &mut self.pages)? else {
                answer.missing.push(*object.as_bytes());
                continue;
            };
            if answer.recursive {
                // Its receiver finds what is wrong with it.
                let children =
                    Page::decode_verified(bytes, object).map(|page| page.children().collect::<Vec<_>>());
                answer.directories.extend(children.unwrap_or_default().into_iter().rev());
            }
            sum = sum.saturating_add(bytes.len()).saturating_add(4);
            objects.push(bytes.to_vec());
            if sum >= DIRECTORY_FRAME_BYTES / 2 {
                break;
            }
        }
        Ok(objects)
    }

    /// Finds the frames of all contents of a batch, in order of first use.
    fn look_up(&mut self, batch: &ObjectsBatch, answer: &mut Answer) -> Result<(), FetchError> {
        let mut seen: HashSet<ContentHash> = HashSet::new();
        let mut contents: Vec<ContentHash> = batch.files.clone();
        for of in &batch.files_of {
            let page = self.reader.page(&self.index, &of.directory, &mut self.pages)?;
            let page = page.and_then(|bytes| Page::decode_verified(bytes, of.directory).ok());
            let Some(page) = page else {
                // The directory stands for its files.
                answer.missing.push(*of.directory.as_bytes());
                continue;
            };
            contents.extend(of.of(page.entries()).filter_map(|entry| match entry.kind {
                Kind::File { content, size: 1.. } => Some(content),
                _ => None,
            }));
        }
        let mut places: HashMap<FrameId, usize> = HashMap::new();
        for content in contents.into_iter().filter(|content| seen.insert(*content)) {
            if !self.locate(&content, &mut places, answer)? {
                answer.missing.push(*content.as_bytes());
            }
        }
        Ok(())
    }

    /// Adds the pieces of one content. `false`: it is not published.
    fn locate(
        &mut self,
        content: &ContentHash,
        places: &mut HashMap<FrameId, usize>,
        answer: &mut Answer,
    ) -> Result<bool, FetchError> {
        let Some(chunks) = self.reader.chunks(&self.index, content, &mut self.lists)? else {
            return Ok(false);
        };
        let found = chunks.iter().map(|(hash, _)| self.index.find(FrameKind::Chunks, hash.as_bytes()));
        let Some(found) = found.collect::<Option<Vec<_>>>() else { return Ok(false) };
        let (file, mut file_offset) = (ContentTag::of(content), 0u64);
        for (frame, item) in found {
            let item = self.index.item(frame, item);
            let at = *places.entry(frame).or_insert_with(|| {
                answer.groups.push_back((frame, Vec::new()));
                answer.groups.len().saturating_sub(1)
            });
            let piece = Piece { file, file_offset, frame_offset: item.offset, length_bytes: item.length };
            if let Some((_, pieces)) = answer.groups.get_mut(at) {
                pieces.push(piece);
            }
            file_offset = file_offset.saturating_add(item.length.into());
        }
        Ok(true)
    }

    /// The next frame of content.
    fn content(&mut self, answer: &mut Answer) -> Result<Option<Frame>, FetchError> {
        let Some((frame, pieces)) = answer.groups.front_mut() else { return Ok(None) };
        let uncompressed_bytes = self.index.row(*frame).plain_bytes as usize;
        if answer.read.is_empty() {
            let next: Vec<_> = answer.groups.iter().take(64).map(|(frame, _)| *frame).collect();
            answer.read = self.reader.pack_frames(&self.index, &next)?.into();
            return self.content(answer);
        }
        let Some(compressed) = answer.read.front().cloned() else { return Ok(None) };
        let rest = pieces.split_off(pieces.len().min(FRAME_PIECES_MAX));
        let pieces = std::mem::replace(pieces, rest);
        if answer.groups.front().is_some_and(|(_, rest)| rest.is_empty()) {
            answer.groups.pop_front();
            answer.read.pop_front();
        }
        Ok(Some(Frame::Stored(StoredFrame { compressed, uncompressed_bytes, pieces })))
    }
}

impl Iterator for Answers {
    type Item = Result<Frame, FetchError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.take().transpose()
    }
}

impl From<ReadError> for FetchError {
    fn from(error: ReadError) -> Self {
        Self::Published(Box::new(error))
    }
}
