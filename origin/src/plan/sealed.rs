//! The store as plans read it.

use std::sync::Arc;

use bytes::Bytes;
use syncd_shared::{ContentHash, Directory, ObjectHash, RootEntry, RootHash, TreePath};

use super::contents::{Chunk, Contents, Frame, FrameId, Place, ReadError};
use crate::store::{PackId, Store, StoreError};

fn failed(error: StoreError) -> ReadError {
    ReadError(Box::new(error))
}

impl Contents for Store {
    fn root(&self, hash: &RootHash) -> Result<Option<RootEntry>, ReadError> {
        Store::root(self, hash).map_err(failed)
    }

    fn directory(&self, hash: &ObjectHash) -> Result<Option<Arc<Directory>>, ReadError> {
        Store::directory(self, hash).map_err(failed)
    }

    fn directory_bytes(&self, hash: &ObjectHash) -> Result<Option<Bytes>, ReadError> {
        Store::directory_bytes(self, hash).map(|found| found.map(Bytes::from)).map_err(failed)
    }

    fn chunks_of(&self, content: &ContentHash) -> Result<Option<Vec<Chunk>>, ReadError> {
        let chunks = self.chunks_of_content(content).map_err(failed)?;
        let chunk = |c: crate::store::Chunk| Chunk { hash: c.hash, length: c.length };
        Ok(chunks.map(|chunks| chunks.into_iter().map(chunk).collect()))
    }

    fn locate(&self, chunk: &ContentHash) -> Result<Option<Place>, ReadError> {
        let found = Store::locate(self, chunk).map_err(failed)?;
        Ok(found.map(|l| {
            let frame = FrameId { pack: l.pack.get(), offset: l.frame_offset };
            Place { frame, offset: l.offset_in_frame, length: l.length }
        }))
    }

    fn path_of(&self, content: &ContentHash) -> Result<Option<TreePath>, ReadError> {
        Store::path_of(self, content).map_err(failed)
    }

    fn take_ahead(&self, frame: FrameId) -> Option<Arc<Vec<u8>>> {
        Store::take_ahead(self, PackId(frame.pack), frame.offset)
    }

    fn frame(&self, frame: FrameId) -> Result<Option<Frame>, ReadError> {
        match Store::frame(self, PackId(frame.pack), frame.offset) {
            Ok(found) => {
                let uncompressed_bytes = found.uncompressed_bytes;
                Ok(Some(Frame { compressed: found.compressed, uncompressed_bytes }))
            }
            Err(StoreError::PackMissing { .. }) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }
}
