//! Implements the planner's read access for the store.

use std::sync::Arc;

use bytes::Bytes;
use syncd_shared::directory::Page;
use syncd_shared::{ContentHash, ObjectHash, RootEntry, RootHash, TreePath};

use super::contents::{Chunk, Chunks, Contents, Frame, FrameId, Place, ReadError};
use crate::store::{ChunkTables, Location, PackId, Store, StoreError};

fn failed(error: StoreError) -> ReadError {
    ReadError(Box::new(error))
}

fn chunk(chunk: crate::store::Chunk) -> Chunk {
    Chunk { hash: chunk.hash, length: chunk.length }
}

fn place(location: Location) -> Place {
    let frame = FrameId { pack: location.pack.get(), offset: location.frame_offset };
    Place { frame, offset: location.offset_in_frame, length: location.length }
}

impl Chunks for Store {
    fn chunks_of(&self, content: &ContentHash) -> Result<Option<Vec<Chunk>>, ReadError> {
        let chunks = self.chunks_of_content(content).map_err(failed)?;
        Ok(chunks.map(|chunks| chunks.into_iter().map(chunk).collect()))
    }

    fn locate(&self, chunk: &ContentHash) -> Result<Option<Place>, ReadError> {
        Ok(Store::locate(self, chunk).map_err(failed)?.map(place))
    }
}

impl Chunks for ChunkTables {
    fn chunks_of(&self, content: &ContentHash) -> Result<Option<Vec<Chunk>>, ReadError> {
        let chunks = self.chunks_of_content(content).map_err(failed)?;
        Ok(chunks.map(|chunks| chunks.into_iter().map(chunk).collect()))
    }

    fn locate(&self, chunk: &ContentHash) -> Result<Option<Place>, ReadError> {
        Ok(ChunkTables::locate(self, chunk).map_err(failed)?.map(place))
    }
}

impl Contents for Store {
    fn root(&self, hash: &RootHash) -> Result<Option<RootEntry>, ReadError> {
        Store::root(self, hash).map_err(failed)
    }

    fn page(&self, hash: &ObjectHash) -> Result<Option<Arc<Page>>, ReadError> {
        Store::page(self, hash).map_err(failed)
    }

    fn page_bytes(&self, hash: &ObjectHash) -> Result<Option<Bytes>, ReadError> {
        Store::page_bytes(self, hash).map(|found| found.map(Bytes::from)).map_err(failed)
    }

    fn retired(&self) -> u64 {
        self.retired_generations()
    }

    fn look_up(&self, work: &mut dyn FnMut(&dyn Chunks) -> Result<(), ReadError>) -> Result<(), ReadError> {
        let mut other = None;
        let looked_up = self.look_up_chunks(|chunks| match work(chunks).map_err(|e| e.0.downcast()) {
            Ok(()) => Ok(()),
            // Returned as the store's own error, so that the store can react to it.
            Err(Ok(error)) => Err(*error),
            Err(Err(error)) => {
                other = Some(ReadError(error));
                Ok(())
            }
        });
        looked_up.map_err(failed)?;
        other.map_or(Ok(()), Err)
    }

    fn path_of(&self, content: &ContentHash) -> Result<Option<TreePath>, ReadError> {
        Store::path_of(self, content).map_err(failed)
    }

    fn in_memory(&self, frame: FrameId) -> Option<Arc<Vec<u8>>> {
        Store::frame_in_memory(self, PackId(frame.pack), frame.offset)
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
