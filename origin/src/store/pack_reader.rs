//! Reads frames from packs with positional reads and a bounded number of open files.
//!
//! An open pack stays readable after garbage collection unlinks it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::error::{StoreError, poisoned};
use super::pack::{
    FRAME_FIXED_BYTES, FrameDamage, FrameFixed, PACK_HEADER_BYTES, PackFrame, PackId, check_pack_header,
};

const OPEN_PACKS_MAX: usize = 64;

/// Reader of packs. See the module documentation.
pub(super) struct PackReader {
    directory: PathBuf,
    open: Mutex<OpenPacks>,
}

#[derive(Default)]
struct OpenPacks {
    files: HashMap<PackId, (Arc<File>, u64)>,
    uses: u64,
}

impl PackReader {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory, open: Mutex::default() }
    }

    pub(super) fn path(&self, pack: PackId) -> PathBuf {
        self.directory.join(pack.file_name())
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Closes a pack that was unlinked. Reads in progress continue.
    pub(super) fn forget(&self, pack: PackId) {
        if let Ok(mut open) = self.open.lock() {
            open.files.remove(&pack);
        }
    }

    fn file(&self, pack: PackId) -> Result<Arc<File>, StoreError> {
        let mut open = self.open.lock().map_err(poisoned)?;
        open.uses += 1;
        let now = open.uses;
        if let Some((file, used)) = open.files.get_mut(&pack) {
            *used = now;
            return Ok(file.clone());
        }
        let file = Arc::new(self.open_checked(pack)?);
        if open.files.len() >= OPEN_PACKS_MAX {
            let oldest = open.files.iter().min_by_key(|(_, (_, used))| *used).map(|(id, _)| *id);
            oldest.map(|id| open.files.remove(&id));
        }
        open.files.insert(pack, (file.clone(), now));
        Ok(file)
    }

    fn open_checked(&self, pack: PackId) -> Result<File, StoreError> {
        let path = self.path(pack);
        let file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::PackMissing { pack, path });
            }
            other => other.map_err(|source| StoreError::Io { doing: "open", path, source })?,
        };
        let mut header = [0; PACK_HEADER_BYTES];
        self.read_exact(pack, &file, &mut header, 0, 0)?;
        check_pack_header(&header, pack).map_err(|source| StoreError::Frame { pack, offset: 0, source })?;
        Ok(file)
    }

    fn read_exact(
        &self,
        pack: PackId,
        file: &File,
        out: &mut [u8],
        at: u64,
        frame: u64,
    ) -> Result<(), StoreError> {
        match file.read_exact_at(out, at) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                Err(StoreError::Frame { pack, offset: frame, source: FrameDamage::Truncated })
            }
            other => other.map_err(|source| StoreError::Io { doing: "read", path: self.path(pack), source }),
        }
    }

    /// Reads a frame and checks its header, not its content. Also returns the start of the next frame.
    pub(super) fn frame(&self, pack: PackId, offset: u64) -> Result<(PackFrame, u64), StoreError> {
        let damaged = |source| StoreError::Frame { pack, offset, source };
        let file = self.file(pack)?;
        let mut fixed_bytes = [0; FRAME_FIXED_BYTES];
        self.read_exact(pack, &file, &mut fixed_bytes, offset, offset)?;
        let fixed = FrameFixed::decode(&fixed_bytes).map_err(damaged)?;
        let end = offset.checked_add(fixed.frame_bytes()).ok_or_else(|| damaged(FrameDamage::Header))?;
        let mut rest = vec![0; fixed.table_bytes() + fixed.compressed_bytes as usize];
        self.read_exact(pack, &file, &mut rest, offset + FRAME_FIXED_BYTES as u64, offset)?;
        let chunks = fixed.chunks(&fixed_bytes, &rest[..fixed.table_bytes()]).map_err(damaged)?;
        let compressed = Bytes::from(rest).slice(fixed.table_bytes()..);
        Ok((PackFrame { compressed, uncompressed_bytes: fixed.uncompressed_bytes, chunks }, end))
    }
}
