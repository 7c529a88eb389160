//! Reads one file into the store: its content hash and chunks, both guaranteed to be of the same state of the
//! file.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use syncd_shared::chunker::{self, BUFFER_BYTES, Chunker};
use syncd_shared::{ContentHash, TreePath, marks};
use tokio_util::sync::CancellationToken;

use super::Progress;
use super::error::ScanError;
use super::file_stat::FileStat;
use super::listing::is_gone;
use super::notices::{Loss, Notices};
use crate::store::{Chunk, FrameBuilder, Writer};

/// Attempts to read a file that changes while it is read, before giving up for this pass.
const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(2);

/// Result of reading a file.
#[derive(Debug)]
pub(super) enum Content {
    /// The content is in the store.
    Read { stat: FileStat, hash: ContentHash, racy: bool },
    /// The file no longer exists.
    Gone,
    /// The file changed during every attempt.
    Torn,
}

enum Attempt {
    Done(Content),
    Torn,
}

/// Reads files one after another, on one thread.
pub(super) struct ContentReader<'a> {
    pub root: &'a Path,
    pub writer: &'a Writer,
    pub notices: &'a Notices,
    pub progress: &'a Progress,
    pub cancel: &'a CancellationToken,
    builder: Option<FrameBuilder<'a>>,
    buffer: Vec<u8>,
}

impl<'a> ContentReader<'a> {
    pub(super) fn new(
        root: &'a Path,
        writer: &'a Writer,
        notices: &'a Notices,
        progress: &'a Progress,
        cancel: &'a CancellationToken,
    ) -> Self {
        Self { root, writer, notices, progress, cancel, builder: None, buffer: Vec::new() }
    }

    /// Reads a file of the tree.
    pub(super) fn read(&mut self, path: &TreePath) -> Result<Content, ScanError> {
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                std::thread::sleep(PAUSE * 2u32.pow(attempt));
            }
            if self.cancel.is_cancelled() {
                return Err(ScanError::Cancelled);
            }
            if let Attempt::Done(content) = self.attempt(path)? {
                self.progress.add_files(1);
                return Ok(content);
            }
        }
        Ok(Content::Torn)
    }

    /// Writes the rest of the last frame.
    pub(super) fn finish(self) -> Result<(), ScanError> {
        self.builder.map_or(Ok(()), |builder| builder.finish().map_err(ScanError::from))
    }

    fn attempt(&mut self, path: &TreePath) -> Result<Attempt, ScanError> {
        let unreadable = |source: io::Error| ScanError::Unreadable { path: path.clone(), source };
        // NONBLOCK, so that a fifo in the file's place cannot block.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::open(path.below(self.root), flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(errno) if is_gone(errno) => return Ok(Attempt::Done(Content::Gone)),
            Err(errno) => return Err(unreadable(errno.into())),
        };
        let stat = |file: &File| {
            rustix::fs::fstat(file).map(|s| FileStat::of(&s)).map_err(|e: Errno| unreadable(e.into()))
        };
        let before = stat(&file)?;
        if before.kind != FileType::RegularFile {
            return Ok(Attempt::Done(Content::Gone));
        }
        self.notices.attributes(&file, path);
        if before.links > 1 {
            self.notices.tell(Loss::HardLink, path);
        }
        let size = before.fingerprint.size;
        let in_memory = size <= BUFFER_BYTES as u64;
        let streamed = if in_memory {
            read_whole(&file, size, &mut self.buffer).map_err(unreadable)?;
            if marks::is_private(&self.buffer) {
                return Err(ScanError::PrivateFile { path: path.clone() });
            }
            None
        } else {
            let Some(streamed) = self.stream(&file, size, path)? else { return Ok(Attempt::Torn) };
            Some(streamed)
        };
        let at = SystemTime::now();
        let after = stat(&file)?;
        let length = streamed.as_ref().map_or(self.buffer.len() as u64, |_| size);
        if before.fingerprint != after.fingerprint || length != size {
            return Ok(Attempt::Torn);
        }
        let (hash, chunks) = match streamed {
            Some(streamed) => streamed,
            None => self.keep()?,
        };
        self.writer.put_file(&hash, &chunks)?;
        let racy = after.fingerprint.is_racy(at);
        Ok(Attempt::Done(Content::Read { stat: after, hash, racy }))
    }

    /// Adds the buffer to the store. The buffer is known to be complete, so nothing of a torn read gets
    /// there.
    fn keep(&mut self) -> Result<(ContentHash, Vec<Chunk>), ScanError> {
        let bytes = std::mem::take(&mut self.buffer);
        self.progress.add_bytes(bytes.len() as u64);
        let (hash, chunks) = add(builder(&mut self.builder, self.writer)?, &bytes)?;
        self.buffer = bytes;
        Ok((hash, chunks))
    }

    /// Reads a large file and stores each chunk at once. Chunks of a torn read remain as garbage. `None` if
    /// the file's size has changed.
    fn stream(
        &mut self,
        file: &File,
        size: u64,
        path: &TreePath,
    ) -> Result<Option<(ContentHash, Vec<Chunk>)>, ScanError> {
        let mut whole = blake3::Hasher::new();
        let mut chunks = Vec::new();
        let mut length = 0u64;
        // One additional byte detects growth, and a growing file cannot keep this loop busy.
        let mut chunker = Chunker::new(file.take(size.saturating_add(1)), std::mem::take(&mut self.buffer));
        builder(&mut self.builder, self.writer)?.add_large(size, |mut content| {
            while let Some(bytes) =
                chunker.next_chunk().map_err(|source| ScanError::Unreadable { path: path.clone(), source })?
            {
                if self.cancel.is_cancelled() {
                    return Err(ScanError::Cancelled);
                }
                whole.update(bytes);
                let hash = ContentHash::of(bytes);
                content.add_chunk(&hash, bytes)?;
                chunks.push(Chunk { hash, length: bytes.len() as u32 });
                length += bytes.len() as u64;
                self.progress.add_bytes(bytes.len() as u64);
            }
            Ok(())
        })?;
        self.buffer = chunker.into_buffer();
        Ok((length == size).then(|| (ContentHash::finish(&whole), chunks)))
    }
}

/// Adds contents that are in memory to the store, on one thread.
pub(crate) struct ContentWriter<'a> {
    writer: &'a Writer,
    builder: Option<FrameBuilder<'a>>,
}

impl<'a> ContentWriter<'a> {
    pub(crate) fn new(writer: &'a Writer) -> Self {
        Self { writer, builder: None }
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) -> Result<ContentHash, ScanError> {
        let (hash, chunks) = add(builder(&mut self.builder, self.writer)?, bytes)?;
        self.writer.put_file(&hash, &chunks)?;
        Ok(hash)
    }

    /// Writes the rest of the last frame.
    pub(crate) fn finish(self) -> Result<(), ScanError> {
        self.builder.map_or(Ok(()), |builder| builder.finish().map_err(ScanError::from))
    }
}

/// Adds a whole content, and returns its hash and chunks.
fn add(builder: &mut FrameBuilder<'_>, bytes: &[u8]) -> Result<(ContentHash, Vec<Chunk>), ScanError> {
    let hash = ContentHash::of(bytes);
    let mut chunks = Vec::new();
    let lengths: Vec<usize> = chunker::cut(bytes).collect();
    if let [length] = lengths[..] {
        builder.add_content(&hash, bytes)?;
        chunks.push(Chunk { hash, length: length as u32 });
        return Ok((hash, chunks));
    }
    let mut rest = bytes;
    for length in lengths {
        let (part, after) = rest.split_at(length);
        rest = after;
        let hash = ContentHash::of(part);
        builder.add_chunk(&hash, part)?;
        chunks.push(Chunk { hash, length: length as u32 });
    }
    Ok((hash, chunks))
}

fn builder<'b, 'a>(
    slot: &'b mut Option<FrameBuilder<'a>>,
    writer: &'a Writer,
) -> Result<&'b mut FrameBuilder<'a>, ScanError> {
    match slot {
        Some(builder) => Ok(builder),
        None => Ok(slot.insert(writer.batch()?)),
    }
}

/// Reads up to one byte more than `size`, usually with one call. A read that returns fewer bytes than
/// requested has reached the end; the following `fstat` shows whether that is still the end.
fn read_whole(mut file: &File, size: u64, buffer: &mut Vec<u8>) -> io::Result<()> {
    let size = size as usize;
    if buffer.len() < size + 1 {
        buffer.resize(size + 1, 0);
    }
    let mut length = 0;
    while length < size {
        match file.read(&mut buffer[length..=size]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer.truncate(length);
    Ok(())
}
