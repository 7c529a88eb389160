//! Contents of collected files, as files named by their hash.
//!
//! They are not in the store's packs: uploads are compressed already, a pack has to be rewritten to be rid of
//! one content, and a scan may hold the store's only writer for minutes.
//!
//! Uploads are not synced one by one. The keeper syncs those that a batch of changes needs together, before
//! it commits the batch.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use syncd_shared::ContentHash;

use super::{CollectError, io_error};
use crate::test_faults;

/// Share of the file system that uploads leave to the store, at most [`RESERVE_MAX_BYTES`].
const RESERVE_SHARE: u64 = 16;
const RESERVE_MAX_BYTES: u64 = 1024 * 1024 * 1024;

/// More contents than these are made durable by one sync of the file system.
const SYNCED_SINGLY: usize = 4;

/// Directory of contents. See the module documentation.
#[derive(Debug)]
pub struct Contents {
    complete: PathBuf,
    incoming: PathBuf,
    next: AtomicU64,
    unsynced: Mutex<Unsynced>,
    /// `complete`, open since before the first upload: a sync reports failures from then on.
    directory: File,
}

/// Contents that a power cut might damage. Nothing durable refers to them.
#[derive(Debug, Default)]
struct Unsynced {
    contents: HashSet<ContentHash>,
    /// Number of failed syncs. Uploads that arrived meanwhile may be damaged, and no later sync says so.
    failures: u64,
    /// Contents that a failed sync may have damaged, and that could not be removed.
    damaged: HashSet<ContentHash>,
}

impl Contents {
    /// Opens or creates the directories. Removes uploads that a crash interrupted.
    pub(super) fn open(parent: &Path) -> Result<Self, CollectError> {
        let (complete, incoming) = (parent.join("contents"), parent.join("incoming"));
        if incoming.try_exists().map_err(io_error("read", &incoming))? {
            fs::remove_dir_all(&incoming).map_err(io_error("remove", &incoming))?;
        }
        for dir in [&complete, &incoming] {
            fs::create_dir_all(dir).map_err(io_error("create", dir))?;
        }
        for shard in 0..=u8::MAX {
            let dir = complete.join(format!("{shard:02x}"));
            match fs::create_dir(&dir) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(io_error("create", &dir)(e));
                }
                _ => {}
            }
        }
        sync_directory(&complete)?;
        sync_directory(parent)?;
        let directory = File::open(&complete).map_err(io_error("read", &complete))?;
        let unsynced = Mutex::default();
        Ok(Self { complete, incoming, next: AtomicU64::new(0), unsynced, directory })
    }

    fn unsynced(&self) -> MutexGuard<'_, Unsynced> {
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shard(&self, content: &ContentHash) -> PathBuf {
        let [first, ..] = content.as_bytes();
        self.complete.join(format!("{first:02x}"))
    }

    fn path(&self, content: &ContentHash) -> PathBuf {
        self.shard(content).join(content.to_string())
    }

    /// Whether the content is here. It may not be durable yet ([`Self::sync`]).
    pub fn has(&self, content: &ContentHash, size: u64) -> bool {
        self.has_usable(&self.unsynced(), content, size)
    }

    fn has_usable(&self, unsynced: &Unsynced, content: &ContentHash, size: u64) -> bool {
        let is_whole = |found: fs::Metadata| found.is_file() && found.len() == size;
        !unsynced.damaged.contains(content) && fs::symlink_metadata(self.path(content)).is_ok_and(is_whole)
    }

    pub fn open_content(&self, content: &ContentHash) -> Result<File, CollectError> {
        let path = self.path(content);
        File::open(&path).map_err(io_error("read", &path))
    }

    /// Makes these contents durable, with their names. After a failure no upload that is not durable is here
    /// any more, because a second sync would not report what the first one lost.
    pub(super) fn sync(&self, contents: &BTreeSet<ContentHash>) -> Result<(), CollectError> {
        let due: HashSet<ContentHash> = {
            let unsynced = self.unsynced();
            contents.iter().filter(|content| unsynced.contents.contains(*content)).copied().collect()
        };
        if due.is_empty() || test_faults::leaves_contents_unsynced() {
            return Ok(());
        }
        let synced = match due.len() > SYNCED_SINGLY {
            true => {
                rustix::fs::syncfs(&self.directory).map_err(|e| io_error("sync", &self.complete)(e.into()))
            }
            false => due.iter().try_for_each(|content| self.sync_one(content)),
        };
        let mut unsynced = self.unsynced();
        if synced.is_ok() {
            unsynced.contents.retain(|content| !due.contains(content));
        } else {
            unsynced.failures = unsynced.failures.saturating_add(1);
            for content in std::mem::take(&mut unsynced.contents) {
                if fs::remove_file(self.path(&content)).is_err() {
                    unsynced.damaged.insert(content);
                }
            }
        }
        synced
    }

    fn sync_one(&self, content: &ContentHash) -> Result<(), CollectError> {
        let path = self.path(content);
        File::open(&path).and_then(|file| file.sync_all()).map_err(io_error("sync", &path))?;
        sync_directory(&self.shard(content))
    }

    /// Removes a content that nothing uses.
    pub(super) fn remove(&self, content: &ContentHash) -> Result<(), CollectError> {
        let path = self.path(content);
        self.unsynced().contents.remove(content);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &path)(e)),
            _ => Ok(()),
        }
    }

    /// Removes all contents but those that are used.
    pub(super) fn keep_only(
        &self,
        is_used: impl Fn(&ContentHash) -> Result<bool, CollectError>,
    ) -> Result<(), CollectError> {
        for shard in 0..=u8::MAX {
            let dir = self.complete.join(format!("{shard:02x}"));
            for listed in fs::read_dir(&dir).map_err(io_error("read", &dir))? {
                let name = listed.map_err(io_error("read", &dir))?.file_name();
                let Some(content) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
                if !is_used(&content)? {
                    self.remove(&content)?;
                }
            }
        }
        Ok(())
    }

    /// Writes copies of contents to another directory of this kind. `copied` receives the bytes of each.
    pub(super) fn copy_to(
        &self,
        contents: &[ContentHash],
        to: &Path,
        copied: &mut dyn FnMut(u64),
    ) -> Result<(), CollectError> {
        let other = Self::open(to)?;
        for content in contents {
            let (from, to) = (self.path(content), other.path(content));
            copied(fs::copy(&from, &to).map_err(io_error("copy", &from))?);
        }
        // All bytes and names at once.
        rustix::fs::syncfs(&other.directory).map_err(|e| io_error("sync", &other.complete)(e.into()))
    }

    /// Fails if DATA has no room for this many bytes.
    fn check_room(&self, wanted_bytes: u64) -> Result<(), CollectError> {
        let disk = rustix::fs::statvfs(&self.incoming);
        let disk = disk.map_err(|e| io_error("ask for free space of", &self.incoming)(e.into()))?;
        let total = disk.f_blocks.saturating_mul(disk.f_frsize);
        let reserve = (total / RESERVE_SHARE).min(RESERVE_MAX_BYTES);
        let available_bytes = disk.f_bavail.saturating_mul(disk.f_frsize).saturating_sub(reserve);
        match available_bytes < wanted_bytes {
            true => Err(CollectError::NoSpace { wanted_bytes, available_bytes }),
            false => Ok(()),
        }
    }

    /// Begins to receive a content. Fails if there is no room for it.
    pub fn upload(&self, content: ContentHash, size: u64) -> Result<Upload<'_>, CollectError> {
        self.check_room(size)?;
        let failed_syncs = self.unsynced().failures;
        let path = self.incoming.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        let file = File::create_new(&path).map_err(io_error("create", &path))?;
        let (contents, hasher) = (self, blake3::Hasher::new());
        Ok(Upload { contents, content, size, received: 0, hasher, file, path, failed_syncs })
    }
}

/// A content that arrives. It is removed when dropped before it was finished.
pub struct Upload<'a> {
    contents: &'a Contents,
    content: ContentHash,
    size: u64,
    received: u64,
    hasher: blake3::Hasher,
    file: File,
    path: PathBuf,
    /// Number of failed syncs before it began.
    failed_syncs: u64,
}

impl Upload<'_> {
    /// Takes the next bytes. Fails beyond the announced size.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), CollectError> {
        let actual = self.received.saturating_add(bytes.len() as u64);
        if actual > self.size {
            return Err(CollectError::Size { expected: self.size, actual });
        }
        self.received = actual;
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(io_error("write", &self.path))
    }

    /// Checks the content, and gives it its name. It is durable once a change that needs it is answered.
    pub fn finish(self) -> Result<(), CollectError> {
        if self.received != self.size {
            return Err(CollectError::Size { expected: self.size, actual: self.received });
        }
        let actual = ContentHash::from_bytes(self.hasher.finalize().into());
        if actual != self.content {
            return Err(CollectError::Content { expected: self.content, actual });
        }
        let path = self.contents.path(&self.content);
        let mut unsynced = self.contents.unsynced();
        // One that is here may be durable already.
        if self.contents.has_usable(&unsynced, &self.content, self.size) {
            return Ok(());
        }
        if unsynced.failures != self.failed_syncs {
            return Err(CollectError::LostInSync);
        }
        fs::rename(&self.path, &path).map_err(io_error("create", &path))?;
        unsynced.damaged.remove(&self.content);
        unsynced.contents.insert(self.content);
        Ok(())
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn sync_directory(path: &Path) -> Result<(), CollectError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(io_error("sync", path))
}

/// Replaces a small file, durably.
pub(super) fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), CollectError> {
    let new = path.with_extension("new");
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(io_error("write", path))?;
    path.parent().map_or(Ok(()), sync_directory)
}
