//! Encoded updates, kept so that every agent gets the same bytes: small ones in memory, others in DATA/spool.
//!
//! A spool file is a sequence of encoded messages without framing; where each begins is known in memory alone. Files
//! belong to the process that wrote them: they vanish with the last user of their update, and [`Spool::create`] removes
//! what a crash left.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use prost::Message;
use syncd_proto::v1;
use syncd_shared::limits::INLINE_UPDATE_MAX_BYTES;

use super::error::PlanError;

const SUFFIX: &str = "update";
const WRITE_BUFFER_BYTES: usize = 256 * 1024;

/// The directory of spool files. One process uses it.
#[derive(Debug)]
pub(super) struct Spool {
    directory: PathBuf,
    next: AtomicU64,
    /// Largest file that is written, in bytes.
    file_max_bytes: u64,
}

impl Spool {
    /// Makes the directory where it is not there, and empties it of spool files.
    pub(super) fn create(directory: PathBuf, file_max_bytes: u64) -> Result<Self, PlanError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| PlanError::Spool { path, source }
        };
        fs::create_dir_all(&directory).map_err(failed(&directory))?;
        for entry in fs::read_dir(&directory).map_err(failed(&directory))? {
            let path = entry.map_err(failed(&directory))?.path();
            if path.extension().is_some_and(|e| e == SUFFIX) {
                fs::remove_file(&path).map_err(failed(&path))?;
            }
        }
        Ok(Self { directory, next: AtomicU64::new(0), file_max_bytes })
    }

    pub(super) fn writer(&self) -> SpoolWriter<'_> {
        SpoolWriter { spool: self, memory: Vec::new(), bytes: 0, file: None }
    }
}

/// Removes the file when nobody reads it any more.
#[derive(Debug)]
struct SpoolFile {
    file: File,
    path: PathBuf,
    messages: Vec<Spooled>,
}

/// One message of a spool file.
#[derive(Debug)]
struct Spooled {
    /// Where it ends.
    end: u64,
    /// Agents that are sent it at the same time share it.
    read: Mutex<Weak<Vec<u8>>>,
}

/// A message that was read, while somebody is sent it.
struct Shared(Arc<Vec<u8>>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for SpoolFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "removing a spool file failed");
        }
    }
}

/// Takes messages in order. Dropped before [`SpoolWriter::finish`] it leaves nothing.
pub(super) struct SpoolWriter<'a> {
    spool: &'a Spool,
    memory: Vec<Bytes>,
    bytes: u64,
    file: Option<(BufWriter<File>, SpoolFile)>,
}

impl SpoolWriter<'_> {
    pub(super) fn push(&mut self, frame: &v1::FetchFrame) -> Result<(), PlanError> {
        let bytes = Bytes::from(frame.encode_to_vec());
        self.bytes += bytes.len() as u64;
        if self.bytes > self.spool.file_max_bytes {
            return Err(PlanError::TooLarge { limit: self.spool.file_max_bytes });
        }
        if self.file.is_none() && self.bytes <= INLINE_UPDATE_MAX_BYTES as u64 {
            self.memory.push(bytes);
            return Ok(());
        }
        if self.file.is_none() {
            self.spill()?;
        }
        self.write(&bytes)
    }

    fn spill(&mut self) -> Result<(), PlanError> {
        let number = self.spool.next.fetch_add(1, Ordering::Relaxed);
        let path = self.spool.directory.join(format!("{number}.{SUFFIX}"));
        let open = || {
            let file = File::options().read(true).write(true).create_new(true).open(&path)?;
            Ok((file.try_clone()?, file))
        };
        let (writer, file) = open().map_err(|source| PlanError::Spool { path: path.clone(), source })?;
        let writer = BufWriter::with_capacity(WRITE_BUFFER_BYTES, writer);
        self.file = Some((writer, SpoolFile { file, path, messages: Vec::new() }));
        std::mem::take(&mut self.memory).iter().try_for_each(|bytes| self.write(bytes))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), PlanError> {
        let Some((writer, spooled)) = &mut self.file else { return Ok(()) };
        writer.write_all(bytes).map_err(|source| PlanError::Spool { path: spooled.path.clone(), source })?;
        let start = spooled.messages.last().map_or(0, |before| before.end);
        spooled.messages.push(Spooled { end: start + bytes.len() as u64, read: Mutex::default() });
        Ok(())
    }

    pub(super) fn finish(self) -> Result<EncodedUpdate, PlanError> {
        let place = match self.file {
            None => Place::Memory(self.memory),
            Some((mut writer, spooled)) => {
                writer.flush().map_err(|source| PlanError::Spool { path: spooled.path.clone(), source })?;
                Place::Spooled(spooled)
            }
        };
        Ok(EncodedUpdate { place, bytes: self.bytes })
    }
}

#[derive(Debug)]
enum Place {
    Memory(Vec<Bytes>),
    Spooled(SpoolFile),
}

/// Everything that takes a replica from one root to another, encoded once.
#[derive(Debug)]
pub struct EncodedUpdate {
    place: Place,
    bytes: u64,
}

impl EncodedUpdate {
    /// Length of all messages, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of messages.
    pub fn items(&self) -> u64 {
        match &self.place {
            Place::Memory(frames) => frames.len() as u64,
            Place::Spooled(file) => file.messages.len() as u64,
        }
    }

    /// Whether it is kept in memory: at most [`INLINE_UPDATE_MAX_BYTES`].
    pub fn is_inline(&self) -> bool {
        matches!(self.place, Place::Memory(_))
    }

    /// One message; `None` past the end. Reads the spool: blocks.
    pub fn item(&self, item: u64) -> Result<Option<v1::FetchFrame>, PlanError> {
        let Ok(index) = usize::try_from(item) else { return Ok(None) };
        let bytes = match &self.place {
            Place::Memory(frames) => frames.get(index).cloned(),
            Place::Spooled(file) => file.read(index)?,
        };
        bytes.map(|bytes| v1::FetchFrame::decode(bytes).map_err(|_| self.changed())).transpose()
    }

    /// All messages, where it is kept in memory.
    pub fn inline_frames(&self) -> Option<Vec<v1::FetchFrame>> {
        let Place::Memory(frames) = &self.place else { return None };
        frames.iter().map(|bytes| v1::FetchFrame::decode(bytes.clone()).ok()).collect()
    }

    fn changed(&self) -> PlanError {
        let path = match &self.place {
            Place::Memory(_) => PathBuf::new(),
            Place::Spooled(file) => file.path.clone(),
        };
        PlanError::SpoolChanged { path }
    }
}

impl SpoolFile {
    fn read(&self, index: usize) -> Result<Option<Bytes>, PlanError> {
        let Some(message) = self.messages.get(index) else { return Ok(None) };
        let mut read = message.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = read.upgrade() {
            return Ok(Some(Bytes::from_owner(Shared(shared))));
        }
        let start = index.checked_sub(1).map_or(0, |before| self.messages[before].end);
        let mut bytes = vec![0; (message.end - start) as usize];
        self.file
            .read_exact_at(&mut bytes, start)
            .map_err(|source| PlanError::Spool { path: self.path.clone(), source })?;
        let shared = Arc::new(bytes);
        *read = Arc::downgrade(&shared);
        Ok(Some(Bytes::from_owner(Shared(shared))))
    }
}
