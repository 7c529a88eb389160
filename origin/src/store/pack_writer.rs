//! Appends frames to packs.
//!
//! Owned by the one [`super::Writer`]. It continues at the durable length of the last pack, and thus
//! overwrites bytes left by a writer that was dropped or killed. Appended frames count only after
//! [`PackWriter::sync`] has returned and the lengths of [`PackWriter::grown`] have been committed to the
//! index.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::error::StoreError;
use super::pack::{FrameChunk, PACK_HEADER_BYTES, PACK_MAX_BYTES, PackId, encode_frame, pack_header};
use super::write_back::WriteBack;

/// Length of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PackLength {
    /// Bytes of the file.
    pub(super) bytes: u64,
    /// Uncompressed bytes of its frames.
    pub(super) content_bytes: u64,
}

/// Appends frames. See the module documentation.
pub(super) struct PackWriter {
    directory: PathBuf,
    current: Option<Current>,
    next: u32,
    /// Packs that grew since the last sync and are full now.
    full: Vec<Current>,
    directory_changed: bool,
    dirty: bool,
    failed: bool,
    write_back: WriteBack,
}

struct Current {
    id: PackId,
    file: File,
    length: PackLength,
}

/// The packs that grew since the last sync.
#[derive(Debug, Default)]
pub(super) struct Grown {
    pub(super) packs: BTreeMap<PackId, PackLength>,
    /// Number of the next new pack.
    pub(super) next: u32,
}

impl PackWriter {
    /// Continues in `last` if it has room, otherwise with pack `next`.
    pub(super) fn open(
        directory: PathBuf,
        last: Option<(PackId, PackLength)>,
        next: u32,
    ) -> Result<Self, StoreError> {
        let mut writer = Self {
            directory,
            current: None,
            next,
            full: Vec::new(),
            directory_changed: false,
            dirty: false,
            failed: false,
            write_back: WriteBack::default(),
        };
        if let Some((id, length)) = last.filter(|(_, length)| length.bytes < PACK_MAX_BYTES) {
            let path = writer.path(id);
            let file = OpenOptions::new().write(true).open(&path).map_err(|source| StoreError::Io {
                doing: "open",
                path: path.clone(),
                source,
            })?;
            file.set_len(length.bytes).map_err(|source| StoreError::Io {
                doing: "truncate",
                path,
                source,
            })?;
            writer.current = Some(Current { id, file, length });
        }
        Ok(writer)
    }

    fn path(&self, id: PackId) -> PathBuf {
        self.directory.join(id.file_name())
    }

    fn create(&mut self) -> Result<Current, StoreError> {
        let id = PackId(self.next);
        let path = self.path(id);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .map_err(|source| StoreError::Io { doing: "create", path: path.clone(), source })?;
        file.write_all_at(&pack_header(id), 0).map_err(|source| StoreError::Io {
            doing: "write",
            path,
            source,
        })?;
        self.next += 1;
        self.directory_changed = true;
        let length = PackLength { bytes: PACK_HEADER_BYTES as u64, content_bytes: 0 };
        Ok(Current { id, file, length })
    }

    /// Appends one frame and returns its location. After an error the frame does not count.
    pub(super) fn append(
        &mut self,
        chunks: &[FrameChunk],
        uncompressed_bytes: u32,
        compressed: &[u8],
    ) -> Result<(PackId, u64), StoreError> {
        let frame = encode_frame(chunks, uncompressed_bytes, compressed);
        let mut current = match self.current.take() {
            Some(current) if current.length.bytes < PACK_MAX_BYTES => current,
            full => {
                self.full.extend(full);
                self.create()?
            }
        };
        let (id, offset) = (current.id, current.length.bytes);
        let written = current.file.write_all_at(&frame, offset);
        if written.is_ok() {
            current.length.bytes += frame.len() as u64;
            current.length.content_bytes += u64::from(uncompressed_bytes);
            self.dirty = true;
            self.write_back.appended(&self.directory, id, frame.len() as u64);
        }
        self.current = Some(current);
        written.map_err(|source| StoreError::Io { doing: "write", path: self.path(id), source })?;
        Ok((id, offset))
    }

    /// The new lengths for the index. Must not be committed before [`Self::sync`] has returned.
    pub(super) fn grown(&self) -> Grown {
        let packs = self.full.iter().chain(&self.current).filter(|_| self.dirty);
        Grown { packs: packs.map(|pack| (pack.id, pack.length)).collect(), next: self.next }
    }

    /// Makes everything appended durable: the packs and, if one is new, their directory. An error is final
    /// and the writer must be dropped, because the kernel reports a failed write only once.
    pub(super) fn sync(&mut self) -> Result<(), StoreError> {
        if self.failed {
            return Err(StoreError::SyncFailed);
        }
        let synced = self.try_sync();
        self.failed = synced.is_err();
        synced
    }

    fn try_sync(&mut self) -> Result<(), StoreError> {
        if self.dirty {
            for pack in self.full.iter().chain(&self.current) {
                pack.file.sync_data().map_err(|source| StoreError::Io {
                    doing: "sync",
                    path: self.path(pack.id),
                    source,
                })?;
            }
        }
        if self.directory_changed {
            let path = self.directory.clone();
            File::open(&path).and_then(|d| d.sync_all()).map_err(|source| StoreError::Io {
                doing: "sync",
                path,
                source,
            })?;
        }
        self.full.clear();
        self.dirty = false;
        self.directory_changed = false;
        Ok(())
    }
}
