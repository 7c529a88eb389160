//! Sends file contents as frames. Contents stored together are sent together, without recompression if
//! possible.
//!
//! Contents are taken in windows of bounded size. Within a window, pieces are grouped by frame, in order of
//! first use. A frame is sent unchanged if at least 13/16 of it are wanted (15/16 in an update, which is
//! encoded once for all agents). Otherwise the wanted chunks are gathered into new frames. If the agent's
//! next request is known, a frame that both requests need is sent once, unchanged, for both.

mod border;

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use bytes::Bytes;
use syncd_proto::v1;
use syncd_proto::v1::fetch_frame::Frame as Message;
use syncd_shared::limits::{FRAME_MAX_BYTES, FRAME_PIECES_MAX};
use syncd_shared::stored_frame::{Piece, StoredFrame};
use syncd_shared::{ContentHash, ContentTag};

use self::border::BorderFrames;
use super::contents::{Chunk, Chunks, Contents, Frame, FrameId, Place, ReadError};
use super::error::PlanError;
use crate::store::Effort;

/// Pieces in one window, which take a few megabytes of memory.
const WINDOW_PIECES: usize = 32 * 1024;
/// Bytes of content in one window.
const WINDOW_BYTES: u64 = 256 * 1024 * 1024;
/// Attempts to find a chunk that garbage collection moves.
const LOCATE_ATTEMPTS: usize = 3;

/// A chunk of a wanted file, with its position in the file.
#[derive(Debug, Clone, Copy)]
struct Want {
    file: ContentHash,
    file_offset: u64,
    chunk: Chunk,
    /// Whether this is the last chunk of the file.
    is_last: bool,
}

/// All wanted chunks in one frame.
struct Group {
    frame: FrameId,
    /// Positions in the frame with the wants they serve, in order of first use.
    wants: Vec<(Place, Want)>,
    /// Wanted bytes of the frame, counting each chunk once.
    wanted_bytes: u64,
}

impl Group {
    fn count(&mut self) {
        let mut offsets: Vec<_> = self.wants.iter().map(|(p, _)| (p.offset, p.length)).collect();
        offsets.sort_unstable();
        offsets.dedup();
        self.wanted_bytes = offsets.iter().map(|(_, length)| u64::from(*length)).sum();
    }

    /// Whether the group may follow everything else: it has the end of every file that it contains a part of.
    fn can_be_last(&self) -> bool {
        let next = self.wants.iter().skip(1).map(|(_, want)| Some(want.file)).chain([None]);
        self.wants.iter().zip(next).all(|((_, want), next)| want.is_last || next == Some(want.file))
    }

    /// Whether the group may precede everything else: it has the start of every file that it contains a part
    /// of.
    fn can_be_first(&self) -> bool {
        let before = [None].into_iter().chain(self.wants.iter().map(|(_, want)| Some(want.file)));
        self.wants
            .iter()
            .zip(before)
            .all(|((_, want), before)| want.file_offset == 0 || before == Some(want.file))
    }
}

/// Groups being collected.
#[derive(Default)]
struct Window {
    /// In order of first use.
    groups: Vec<Group>,
    by_frame: HashMap<FrameId, usize>,
    pieces: usize,
    bytes: u64,
}

impl Window {
    fn is_full(&self) -> bool {
        self.pieces >= WINDOW_PIECES || self.bytes >= WINDOW_BYTES
    }

    fn add(&mut self, place: Place, want: Want) {
        self.pieces += 1;
        self.bytes += u64::from(place.length);
        let groups = &mut self.groups;
        let index = *self.by_frame.entry(place.frame).or_insert_with(|| {
            groups.push(Group { frame: place.frame, wants: Vec::new(), wanted_bytes: 0 });
            groups.len() - 1
        });
        groups[index].wants.push((place, want));
    }

    /// The groups in reverse order, the next one last.
    fn groups(self) -> Vec<Group> {
        let mut groups = self.groups;
        groups.iter_mut().for_each(Group::count);
        groups.reverse();
        groups
    }
}

/// Turns contents into messages, a few at a time.
pub(super) struct ContentFrames {
    /// Contents still to be sent, the next one last.
    files: Vec<ContentHash>,
    /// Remaining chunks of a file that did not fit the window.
    rest: Vec<Want>,
    /// Groups of the current window, the next one last.
    groups: Vec<Group>,
    border: BorderFrames,
    gather: Gather,
    missing: Vec<ContentHash>,
    /// Sixteenths of a frame that must be wanted to send it unchanged.
    whole_share: u64,
}

impl ContentFrames {
    /// For these contents in this order, each named once.
    pub(super) fn new(mut files: Vec<ContentHash>) -> Self {
        files.reverse();
        Self {
            files,
            rest: Vec::new(),
            groups: Vec::new(),
            border: BorderFrames::default(),
            gather: Gather::default(),
            missing: Vec::new(),
            whole_share: 13,
        }
    }

    /// Adds contents after the others. Must precede the first message.
    pub(super) fn append(&mut self, mut files: Vec<ContentHash>) {
        files.reverse();
        self.files.splice(..0, files);
    }

    /// Sends fewer unwanted bytes, and recompresses more often.
    pub(super) fn frugal(self) -> Self {
        Self { whole_share: 15, ..self }
    }

    /// A next request will want the rest of frames that this one wants in part.
    pub(super) fn expect_next(mut self) -> Self {
        self.border.expect_next();
        self
    }

    /// Whether only border frames are left, so that it is time to share them with the next request.
    pub(super) fn is_at_border(&self) -> bool {
        self.groups.is_empty() && self.files.is_empty() && self.rest.is_empty() && !self.border.is_empty()
    }

    /// Sends the contents of `next` that lie in border frames.
    pub(super) fn share_border(&mut self, next: &mut Self, contents: &dyn Contents) -> Result<(), PlanError> {
        if next.groups.is_empty() {
            next.window(contents)?;
        }
        self.border.share(&mut next.groups);
        Ok(())
    }

    /// Returns contents that turned out to be missing in the store.
    pub(super) fn take_missing(&mut self) -> Vec<ContentHash> {
        std::mem::take(&mut self.missing)
    }

    /// Appends the next messages, at most those of one stored frame. Returns `false` at the end.
    pub(super) fn advance(
        &mut self,
        contents: &dyn Contents,
        out: &mut Vec<Message>,
    ) -> Result<bool, PlanError> {
        if let Some(group) = self.groups.pop() {
            self.send(contents, group, out)?;
            return Ok(true);
        }
        if !self.files.is_empty() || !self.rest.is_empty() {
            self.window(contents)?;
            return Ok(true);
        }
        if let Some(group) = self.border.pop() {
            self.send(contents, group, out)?;
            return Ok(true);
        }
        self.gather.flush(out)?;
        Ok(false)
    }

    /// Fills a window and groups it by frame.
    fn window(&mut self, contents: &dyn Contents) -> Result<(), PlanError> {
        let mut window = Window::default();
        contents.look_up(&mut |chunks| {
            while !window.is_full() {
                let Some(want) = self.next_want(chunks)? else { break };
                let place = chunks.locate(&want.chunk.hash)?;
                match place.filter(|place| place.length == want.chunk.length) {
                    Some(place) => window.add(place, want),
                    None => self.give_up(want.file),
                }
            }
            Ok(())
        })?;
        self.groups = window.groups();
        Ok(())
    }

    /// The next chunk in file order.
    fn next_want(&mut self, chunks: &dyn Chunks) -> Result<Option<Want>, ReadError> {
        while self.rest.is_empty() {
            let Some(file) = self.files.pop() else { return Ok(None) };
            match chunks.chunks_of(&file)? {
                None => self.missing.push(file),
                Some(chunks) => {
                    let mut file_offset = 0;
                    let want = |chunk: Chunk| {
                        let want = Want { file, file_offset, chunk, is_last: false };
                        file_offset += u64::from(chunk.length);
                        want
                    };
                    self.rest = chunks.into_iter().map(want).collect();
                    self.rest.last_mut().into_iter().for_each(|want| want.is_last = true);
                    self.rest.reverse();
                }
            }
        }
        Ok(self.rest.pop())
    }

    /// A chunk of this file is missing, so the rest of it is useless.
    fn give_up(&mut self, file: ContentHash) {
        self.rest.clear();
        if self.missing.last() != Some(&file) {
            self.missing.push(file);
        }
    }

    fn send(
        &mut self,
        contents: &dyn Contents,
        group: Group,
        out: &mut Vec<Message>,
    ) -> Result<(), PlanError> {
        let Some(frame) = contents.frame(group.frame)? else {
            return self.send_moved(contents, group.wants, out);
        };
        if group.wanted_bytes * 16 >= u64::from(frame.uncompressed_bytes) * self.whole_share {
            // Keeps the pieces of a file in order if possible.
            if group.wants.iter().any(|(_, want)| self.gather.has(&want.file)) {
                self.gather.flush(out)?;
            }
            let pieces = group.wants.iter().map(|(place, want)| piece(want, place.offset)).collect();
            push_frame(frame.compressed, frame.uncompressed_bytes as usize, pieces, out);
            return Ok(());
        }
        let Some(group) = self.border.put_off(group) else { return Ok(()) };
        let bytes = decompress(&frame)?;
        for (place, want) in group.wants {
            self.gather.add(&want, chunk_bytes(&bytes, &place)?, out)?;
        }
        Ok(())
    }

    /// Sends chunks that garbage collection moved between locating and reading them.
    fn send_moved(
        &mut self,
        contents: &dyn Contents,
        wants: Vec<(Place, Want)>,
        out: &mut Vec<Message>,
    ) -> Result<(), PlanError> {
        for (_, want) in wants {
            match chunk_anywhere(contents, &want.chunk.hash)? {
                Some(bytes) => self.gather.add(&want, &bytes, out)?,
                None if self.missing.contains(&want.file) => {}
                None => self.missing.push(want.file),
            }
        }
        Ok(())
    }
}

fn chunk_anywhere(contents: &dyn Contents, chunk: &ContentHash) -> Result<Option<Vec<u8>>, PlanError> {
    for _ in 0..LOCATE_ATTEMPTS {
        let Some(place) = contents.locate(chunk)? else { return Ok(None) };
        if let Some(frame) = contents.frame(place.frame)? {
            return Ok(Some(chunk_bytes(&decompress(&frame)?, &place)?.to_vec()));
        }
    }
    Ok(None)
}

fn decompress(frame: &Frame) -> Result<Vec<u8>, PlanError> {
    zstd::bulk::decompress(&frame.compressed, frame.uncompressed_bytes as usize).map_err(PlanError::Damaged)
}

fn chunk_bytes<'a>(frame: &'a [u8], place: &Place) -> Result<&'a [u8], PlanError> {
    let start = place.offset as usize;
    start
        .checked_add(place.length as usize)
        .and_then(|end| frame.get(start..end))
        .ok_or_else(|| PlanError::Damaged(std::io::ErrorKind::UnexpectedEof.into()))
}

fn piece(want: &Want, frame_offset: u32) -> Piece {
    let (file, file_offset) = (ContentTag::of(&want.file), want.file_offset);
    Piece { file, file_offset, frame_offset, length_bytes: want.chunk.length }
}

/// Merges chunks that are adjacent both in the file and in the frame into one piece.
fn joined(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut joined: Vec<Piece> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        match joined.last_mut() {
            Some(last)
                if last.file == piece.file
                    && last.file_offset + u64::from(last.length_bytes) == piece.file_offset
                    && last.frame_offset + last.length_bytes == piece.frame_offset =>
            {
                last.length_bytes += piece.length_bytes;
            }
            _ => joined.push(piece),
        }
    }
    joined
}

/// Sends a frame, several times if it has more pieces than a message may have.
fn push_frame(compressed: Bytes, uncompressed_bytes: usize, pieces: Vec<Piece>, out: &mut Vec<Message>) {
    let pieces = joined(pieces);
    for pieces in pieces.chunks(FRAME_PIECES_MAX) {
        let frame =
            StoredFrame { compressed: compressed.clone(), uncompressed_bytes, pieces: pieces.to_vec() };
        out.push(Message::Stored(frame.to_message()));
    }
}

/// Chunks from frames that are not worth sending whole.
#[derive(Default)]
struct Gather {
    bytes: Vec<u8>,
    pieces: Vec<Piece>,
    offsets: HashMap<ContentHash, u32>,
}

impl Gather {
    fn has(&self, file: &ContentHash) -> bool {
        let tag = ContentTag::of(file);
        self.pieces.iter().any(|piece| piece.file == tag)
    }

    fn add(&mut self, want: &Want, bytes: &[u8], out: &mut Vec<Message>) -> Result<(), PlanError> {
        let full = self.bytes.len() + bytes.len() > FRAME_MAX_BYTES || self.pieces.len() >= FRAME_PIECES_MAX;
        if full && !self.offsets.contains_key(&want.chunk.hash) {
            self.flush(out)?;
        }
        let offset = match self.offsets.entry(want.chunk.hash) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                let offset = self.bytes.len() as u32;
                self.bytes.extend_from_slice(bytes);
                *new.insert(offset)
            }
        };
        self.pieces.push(piece(want, offset));
        Ok(())
    }

    fn flush(&mut self, out: &mut Vec<Message>) -> Result<(), PlanError> {
        if self.pieces.is_empty() {
            return Ok(());
        }
        let mut compressor = zstd::bulk::Compressor::default();
        let compressed = Effort::High.set(&mut compressor).and_then(|()| compressor.compress(&self.bytes));
        let compressed = compressed.map_err(PlanError::Compress)?;
        push_frame(compressed.into(), self.bytes.len(), std::mem::take(&mut self.pieces), out);
        self.bytes.clear();
        self.offsets.clear();
        Ok(())
    }
}

pub(super) fn end(request: u64, missing: impl IntoIterator<Item = [u8; 32]>) -> Message {
    let missing = missing.into_iter().map(|hash| Bytes::copy_from_slice(&hash)).collect();
    Message::End(v1::BatchEnd { request, missing, more: false })
}

/// The end of a part of an update, except the last one.
pub(super) fn part_end() -> Message {
    Message::End(v1::BatchEnd { more: true, ..v1::BatchEnd::default() })
}
