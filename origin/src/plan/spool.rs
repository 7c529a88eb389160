//! Stores encoded updates, so that every agent gets the same bytes: small ones in memory, others in
//! DATA/spool.
//!
//! Both are update files ([`syncd_shared::update_file`]). Agents read a file while the rest of it is still
//! being encoded, before it has its table. Files belong to the process that wrote them. They are removed with
//! the last user of their update, and [`Spool::create`] removes files left by a crash.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use bytes::Bytes;
use prost::Message;
use syncd_proto::v1;
use syncd_shared::RootHash;
use syncd_shared::limits::INLINE_UPDATE_MAX_BYTES;
use syncd_shared::update_file::{Builder, FramePlace};
use tokio::sync::watch;

use super::error::PlanError;

const SUFFIX: &str = "update";

/// The directory of spool files, used by one process.
#[derive(Debug)]
pub(super) struct Spool {
    directory: PathBuf,
    next: AtomicU64,
    /// Limit of the size of a file.
    file_max_bytes: u64,
}

impl Spool {
    /// Creates the directory if it is missing, and removes spool files from it.
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

    /// `publish` receives an update that is too large for memory as soon as it can be read.
    pub(super) fn writer<'a>(
        &'a self,
        from: &RootHash,
        to: &RootHash,
        publish: &'a dyn Fn(Arc<EncodedUpdate>),
    ) -> SpoolWriter<'a> {
        let builder = Builder::new(from, to);
        let memory = builder.header().to_vec();
        SpoolWriter { spool: self, publish, builder, memory, places: Vec::new(), spooled: None }
    }
}

/// A spool file, which is removed when nobody reads it any more.
#[derive(Debug)]
struct SpoolFile {
    file: File,
    path: PathBuf,
    frames: RwLock<Vec<Arc<Spooled>>>,
    written: watch::Sender<Written>,
}

/// Progress of writing a spool file.
#[derive(Debug, Clone, Default)]
struct Written {
    items: u64,
    bytes: u64,
    /// `None` while messages are added; then whether the file is complete.
    end: Option<Result<(), Arc<PlanError>>>,
}

/// One frame of a spool file.
#[derive(Debug)]
struct Spooled {
    place: FramePlace,
    /// Shared by agents that are sent the frame at the same time.
    read: Mutex<Weak<Vec<u8>>>,
}

/// A frame in memory while at least one agent is sent it.
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

/// Takes frames in order. Dropping it before [`SpoolWriter::finish`] ends the update for its readers with an
/// error.
pub(super) struct SpoolWriter<'a> {
    spool: &'a Spool,
    publish: &'a dyn Fn(Arc<EncodedUpdate>),
    builder: Builder,
    /// The file so far, until it is spooled.
    memory: Vec<u8>,
    places: Vec<FramePlace>,
    spooled: Option<Arc<EncodedUpdate>>,
}

impl SpoolWriter<'_> {
    pub(super) fn push(&mut self, frame: &v1::FetchFrame) -> Result<(), PlanError> {
        let bytes = frame.encode_to_vec();
        let place = self.builder.add(&bytes)?;
        if self.builder.file_bytes() > self.spool.file_max_bytes {
            return Err(PlanError::TooLarge { limit: self.spool.file_max_bytes });
        }
        if let Some(file) = self.file() {
            file.write(&bytes, place.range().start)?;
            file.add(&[place]);
            return Ok(());
        }
        self.memory.extend(bytes);
        self.places.push(place);
        if self.builder.file_bytes() > INLINE_UPDATE_MAX_BYTES as u64 {
            self.spill()?;
        }
        Ok(())
    }

    fn file(&self) -> Option<&SpoolFile> {
        match self.spooled.as_deref() {
            Some(EncodedUpdate(Place::Spooled(file))) => Some(file),
            _ => None,
        }
    }

    fn spill(&mut self) -> Result<(), PlanError> {
        let number = self.spool.next.fetch_add(1, Ordering::Relaxed);
        let path = self.spool.directory.join(format!("{number}.{SUFFIX}"));
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|source| PlanError::Spool { path: path.clone(), source })?;
        let (frames, written) = Default::default();
        let file = SpoolFile { file, path, frames, written };
        file.write(&std::mem::take(&mut self.memory), 0)?;
        file.add(&std::mem::take(&mut self.places));
        let update = Arc::new(EncodedUpdate(Place::Spooled(file)));
        (self.publish)(update.clone());
        self.spooled = Some(update);
        Ok(())
    }

    /// Ends the update, complete or with an error, which its readers also receive.
    pub(super) fn finish(
        mut self,
        encoded: Result<(), PlanError>,
    ) -> Result<Arc<EncodedUpdate>, Arc<PlanError>> {
        let complete = encoded.and_then(|()| self.complete()).map_err(Arc::new);
        if let Some(file) = self.file() {
            file.end(complete.clone());
        }
        complete?;
        let memory =
            Place::Memory { file: std::mem::take(&mut self.memory).into(), frames: self.places.clone() };
        Ok(self.spooled.take().unwrap_or_else(|| Arc::new(EncodedUpdate(memory))))
    }

    /// Adds the table.
    fn complete(&mut self) -> Result<(), PlanError> {
        let end = self.builder.file_bytes();
        let tail = self.builder.tail();
        match self.file() {
            Some(file) => file.write(&tail, end.saturating_sub(tail.len() as u64)),
            None => {
                self.memory.extend(tail);
                Ok(())
            }
        }
    }
}

impl Drop for SpoolWriter<'_> {
    fn drop(&mut self) {
        if let Some(file) = self.file() {
            file.end(Err(Arc::new(PlanError::Interrupted)));
        }
    }
}

#[derive(Debug)]
enum Place {
    Memory { file: Bytes, frames: Vec<FramePlace> },
    Spooled(SpoolFile),
}

/// An update from one root to another, encoded once. An update too large for memory can be read before it is
/// complete.
#[derive(Debug)]
pub struct EncodedUpdate(Place);

impl EncodedUpdate {
    /// Length of the file so far, in bytes.
    pub fn bytes(&self) -> u64 {
        match &self.0 {
            Place::Memory { file, .. } => file.len() as u64,
            Place::Spooled(file) => file.written.borrow().bytes,
        }
    }

    /// Whether the update is kept in memory, with at most [`INLINE_UPDATE_MAX_BYTES`].
    pub fn is_inline(&self) -> bool {
        matches!(self.0, Place::Memory { .. })
    }

    /// Whether no further messages will be added.
    pub(super) fn has_ended(&self) -> bool {
        match &self.0 {
            Place::Memory { .. } => true,
            Place::Spooled(file) => file.written.borrow().end.is_some(),
        }
    }

    /// Waits until this message exists or is known not to come. Cancel safe.
    pub async fn reached(&self, item: u64) {
        if let Place::Spooled(file) = &self.0 {
            let there = |written: &Written| written.items > item || written.end.is_some();
            // The channel cannot be closed, because this struct holds the sender.
            let _ = file.written.subscribe().wait_for(there).await;
        }
    }

    /// One message; `None` if it does not exist (yet). Blocks while it reads the spool.
    pub fn item(&self, item: u64) -> Result<Option<v1::FetchFrame>, Arc<PlanError>> {
        let Ok(index) = usize::try_from(item) else { return Ok(None) };
        let bytes = match &self.0 {
            Place::Memory { file, frames } => frames.get(index).map(|place| {
                let std::ops::Range { start, end } = place.range();
                file.slice(start as usize..end as usize)
            }),
            Place::Spooled(file) => file.read(index)?,
        };
        let decoded = bytes.map(|bytes| v1::FetchFrame::decode(bytes).map_err(|_| self.changed()));
        decoded.transpose().map_err(Arc::new)
    }

    /// The update file, if it is kept in memory.
    pub fn inline_file(&self) -> Option<Bytes> {
        match &self.0 {
            Place::Memory { file, .. } => Some(file.clone()),
            Place::Spooled(_) => None,
        }
    }

    fn changed(&self) -> PlanError {
        let path = match &self.0 {
            Place::Memory { .. } => PathBuf::new(),
            Place::Spooled(file) => file.path.clone(),
        };
        PlanError::SpoolChanged { path }
    }
}

impl SpoolFile {
    fn failed(&self, source: std::io::Error) -> PlanError {
        PlanError::Spool { path: self.path.clone(), source }
    }

    /// Called by one writer only.
    fn write(&self, bytes: &[u8], start: u64) -> Result<(), PlanError> {
        self.file.write_all_at(bytes, start).map_err(|source| self.failed(source))
    }

    /// Makes frames visible to readers, once they are written.
    fn add(&self, places: &[FramePlace]) {
        let spooled = |place: &FramePlace| Arc::new(Spooled { place: *place, read: Mutex::default() });
        let mut frames = self.frames.write().unwrap_or_else(PoisonError::into_inner);
        frames.extend(places.iter().map(spooled));
        drop(frames);
        self.written.send_modify(|written| {
            written.items += places.len() as u64;
            written.bytes = places.last().map_or(written.bytes, |place| place.range().end);
        });
    }

    /// Records that no further frames will be added. Only the first call counts.
    fn end(&self, end: Result<(), Arc<PlanError>>) {
        self.written.send_modify(|written| {
            written.end.get_or_insert(end);
        });
    }

    fn read(&self, index: usize) -> Result<Option<Bytes>, Arc<PlanError>> {
        // A failed file has no further use, and takes disk space until nobody reads it.
        if let Some(Err(error)) = &self.written.borrow().end {
            return Err(error.clone());
        }
        let frame = self.frames.read().unwrap_or_else(PoisonError::into_inner).get(index).cloned();
        let Some(frame) = frame else { return Ok(None) };
        let mut read = frame.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = read.upgrade() {
            return Ok(Some(Bytes::from_owner(Shared(shared))));
        }
        let std::ops::Range { start, end } = frame.place.range();
        let mut bytes = vec![0; (end - start) as usize];
        self.file.read_exact_at(&mut bytes, start).map_err(|source| Arc::new(self.failed(source)))?;
        if !frame.place.is_of(&bytes) {
            return Err(Arc::new(PlanError::SpoolChanged { path: self.path.clone() }));
        }
        let shared = Arc::new(bytes);
        *read = Arc::downgrade(&shared);
        Ok(Some(Bytes::from_owner(Shared(shared))))
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use syncd_shared::limits::FETCH_MESSAGE_MAX_BYTES;
    use tempfile::TempDir;

    use super::*;

    fn frame(item: u64) -> v1::FetchFrame {
        let compressed = Bytes::from(vec![item as u8; INLINE_UPDATE_MAX_BYTES / 2]);
        let objects = v1::DirectoryObjects { compressed, uncompressed_bytes: 1 };
        v1::FetchFrame { item, frame: Some(v1::fetch_frame::Frame::Directories(objects)) }
    }

    fn empty_spool() -> (TempDir, Spool) {
        let data = TempDir::new().unwrap();
        let spool = Spool::create(data.path().to_owned(), FETCH_MESSAGE_MAX_BYTES as u64).unwrap();
        (data, spool)
    }

    /// An update with `items` messages written so far, and its writer.
    fn growing<'a>(spool: &'a Spool, publish: &'a dyn Fn(Arc<EncodedUpdate>), items: u64) -> SpoolWriter<'a> {
        let (from, to) = (RootHash::from_bytes([1; 32]), RootHash::from_bytes([2; 32]));
        let mut writer = spool.writer(&from, &to, publish);
        (0..items).for_each(|item| writer.push(&frame(item)).unwrap());
        writer
    }

    #[test]
    fn what_is_spooled_is_read_while_the_rest_is_written() {
        let (_data, spool) = empty_spool();
        let published = Mutex::new(None);
        let publish = |update| *published.lock().unwrap() = Some(update);
        let mut writer = growing(&spool, &publish, 1);
        assert!(published.lock().unwrap().is_none(), "it may stay small");
        writer.push(&frame(1)).unwrap();
        let update = published.lock().unwrap().clone().unwrap();
        assert_eq!(update.item(1).unwrap(), Some(frame(1)));
        assert_eq!(update.item(2).unwrap(), None, "not yet");
        assert!(update.reached(1).now_or_never().is_some());
        assert!(update.reached(2).now_or_never().is_none());
        writer.push(&frame(2)).unwrap();
        assert!(update.reached(2).now_or_never().is_some() && !update.has_ended());
        writer.finish(Ok(())).unwrap();
        assert!(update.reached(3).now_or_never().is_some() && update.has_ended());
        assert_eq!(
            (0..4).filter_map(|item| update.item(item).unwrap()).collect::<Vec<_>>(),
            [0, 1, 2].map(frame)
        );
    }

    #[test]
    fn who_reads_what_fails_is_told_why() {
        let (data, spool) = empty_spool();
        let published = Mutex::new(None);
        let publish = |update| *published.lock().unwrap() = Some(update);
        for is_dropped in [false, true] {
            let writer = growing(&spool, &publish, 3);
            if is_dropped {
                drop(writer);
            } else {
                writer.finish(Err(PlanError::TooLarge { limit: 7 })).unwrap_err();
            }
            let update: Arc<EncodedUpdate> = published.lock().unwrap().take().unwrap();
            assert!(update.reached(3).now_or_never().is_some());
            match &*update.item(2).unwrap_err() {
                PlanError::Interrupted => assert!(is_dropped),
                PlanError::TooLarge { limit: 7 } => assert!(!is_dropped),
                other => panic!("{other}"),
            }
        }
        assert_eq!(fs::read_dir(data.path()).unwrap().count(), 0);
    }
}
