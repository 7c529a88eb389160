//! The store as plans read it.

use std::sync::Arc;

use bytes::Bytes;
use syncd_shared::{ContentHash, Directory, ObjectHash, RootEntry, RootHash, TreePath};

use super::contents::{Chunk, Contents, Frame, FrameId, Place, PlacedChunk, ReadError};
use crate::store::{Location, PackId, Store, StoreError};

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
        Ok(chunks.map(|chunks| chunks.into_iter().map(chunk).collect()))
    }

    fn find(
        &self,
        files: &mut dyn Iterator<Item = ContentHash>,
        found: &mut dyn FnMut(ContentHash, Option<Vec<PlacedChunk>>) -> bool,
    ) -> Result<(), ReadError> {
        let found = &mut |file, chunks: Option<Vec<_>>| {
            let located = |(c, location): (_, Option<_>)| (chunk(c), location.map(place));
            found(file, chunks.map(|chunks| chunks.into_iter().map(located).collect()))
        };
        self.locate_contents(files, found).map_err(failed)
    }

    fn locate(&self, chunk: &ContentHash) -> Result<Option<Place>, ReadError> {
        Ok(Store::locate(self, chunk).map_err(failed)?.map(place))
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
