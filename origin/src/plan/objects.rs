//! Answers an objects request: the general path, by which an agent gets anything that it lacks under any name.

use std::collections::{HashSet, VecDeque};

use bytes::Bytes;
use syncd_proto::v1;
use syncd_proto::v1::fetch_frame::Frame as Message;
use syncd_shared::directory::{Directory, Kind};
use syncd_shared::limits::{DIRECTORY_FRAME_BYTES, OBJECTS_BATCH_MAX};
use syncd_shared::wire::{DirectoryFiles, ObjectsBatch, directories_message};
use syncd_shared::{ContentHash, ObjectHash};

use super::contents::{Contents, DirectoryError};
use super::error::PlanError;
use super::stored::{ContentFrames, end};

/// The answer to one objects request, message by message, in bounded memory. Blocks while it reads the store.
pub struct ObjectsAnswer {
    contents: std::sync::Arc<dyn Contents>,
    request: u64,
    recursive: bool,
    /// Directories still to be sent, the next one last.
    directories: Vec<ObjectHash>,
    sent: HashSet<ObjectHash>,
    /// Directories whose files are still to be sent, the next one last.
    files_of: Vec<DirectoryFiles>,
    /// Their contents.
    listed: Vec<ContentHash>,
    /// Contents that were asked for.
    seen: HashSet<ContentHash>,
    files: ContentFrames,
    missing: Vec<[u8; 32]>,
    ready: VecDeque<Message>,
    item: u64,
    ended: bool,
}

impl ObjectsAnswer {
    pub(super) fn new(contents: std::sync::Arc<dyn Contents>, request: u64, batch: ObjectsBatch) -> Self {
        let mut directories = batch.directories;
        directories.reverse();
        let mut seen = HashSet::new();
        let files = batch.files.into_iter().filter(|file| seen.insert(*file)).collect();
        let mut files_of = batch.files_of;
        files_of.reverse();
        Self {
            contents,
            request,
            recursive: batch.recursive,
            directories,
            sent: HashSet::new(),
            files_of,
            listed: Vec::new(),
            seen,
            files: ContentFrames::new(files),
            missing: Vec::new(),
            ready: VecDeque::new(),
            item: 0,
            ended: false,
        }
    }

    fn advance(&mut self) -> Result<(), PlanError> {
        if !self.directories.is_empty() {
            return self.advance_directories();
        }
        if let Some(of) = self.files_of.pop() {
            return self.look_up(&of);
        }
        let mut out = Vec::new();
        let more = self.files.advance(&*self.contents, &mut out)?;
        self.ready.extend(out);
        if !more {
            let files = self.files.take_missing();
            self.missing.extend(files.iter().map(|file| *file.as_bytes()));
            self.missing.truncate(OBJECTS_BATCH_MAX);
            self.ready.push_back(end(self.request, std::mem::take(&mut self.missing)));
            self.ended = true;
        }
        Ok(())
    }

    /// One frame of directory objects. With `recursive` in the order of a walk, each once.
    fn advance_directories(&mut self) -> Result<(), PlanError> {
        let mut batch: Vec<Bytes> = Vec::new();
        let mut batch_bytes = 0;
        while let Some(hash) = self.directories.pop() {
            if self.sent.contains(&hash) {
                continue;
            }
            let Some(bytes) = self.contents.directory_bytes(&hash)? else {
                self.sent.insert(hash);
                self.missing.push(*hash.as_bytes());
                continue;
            };
            if batch_bytes + bytes.len() + 4 > DIRECTORY_FRAME_BYTES && !batch.is_empty() {
                self.directories.push(hash);
                break;
            }
            self.sent.insert(hash);
            if self.recursive {
                let damaged = |source| DirectoryError::Damaged { object: hash, source: Box::new(source) };
                let directory = Directory::decode(&bytes).map_err(damaged)?;
                self.directories.extend(children(&directory).rev());
            }
            batch_bytes += bytes.len() + 4;
            batch.push(bytes);
        }
        if !batch.is_empty() {
            let message = directories_message(batch.iter().map(|bytes| &bytes[..]));
            self.ready.push_back(Message::Directories(message));
        }
        Ok(())
    }

    /// Files that are asked for by their directory: by then they are known, no more of them than the request may have.
    fn look_up(&mut self, of: &DirectoryFiles) -> Result<(), PlanError> {
        let Some(directory) = self.contents.directory(&of.directory)? else {
            // It answers for its files.
            self.missing.push(*of.directory.as_bytes());
            self.files_of.clear();
            return Ok(());
        };
        for entry in of.of(directory.entries()) {
            if let Kind::File { content, size: 1.. } = entry.kind
                && self.seen.insert(content)
            {
                self.listed.push(content);
            }
        }
        if self.files_of.is_empty() {
            self.files.append(std::mem::take(&mut self.listed));
        }
        Ok(())
    }
}

fn children(directory: &Directory) -> impl DoubleEndedIterator<Item = ObjectHash> {
    directory.entries().iter().filter_map(|entry| match entry.kind {
        Kind::Directory { object, .. } => Some(object),
        _ => None,
    })
}

impl Iterator for ObjectsAnswer {
    type Item = Result<v1::FetchFrame, PlanError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.ready.is_empty() {
            if self.ended {
                return None;
            }
            if let Err(error) = self.advance() {
                self.ended = true;
                return Some(Err(error));
            }
        }
        let frame = v1::FetchFrame { item: self.item, frame: self.ready.pop_front() };
        self.item += 1;
        Some(Ok(frame))
    }
}
