//! The planner's read access to the store.

use std::sync::Arc;

use bytes::Bytes;
use syncd_shared::diff::DirectorySource;
use syncd_shared::directory::{DecodeDirectoryError, Page};
use syncd_shared::{ContentHash, ObjectHash, RootEntry, RootHash, TreePath};

/// Reading failed. A missing object is not an error.
#[derive(Debug, thiserror::Error)]
#[error("reading the store failed")]
pub struct ReadError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// Names a frame until garbage collection moves its chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameId {
    /// Number of the pack.
    pub pack: u32,
    /// Start of the frame in the pack, in bytes.
    pub offset: u64,
}

/// The location of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub frame: FrameId,
    /// Start of the chunk in the uncompressed frame, in bytes.
    pub offset: u32,
    /// Length in bytes.
    pub length: u32,
}

/// One chunk of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    pub hash: ContentHash,
    /// Length in bytes.
    pub length: u32,
}

/// A frame as stored.
#[derive(Debug, Clone)]
pub struct Frame {
    /// One zstd frame.
    pub compressed: Bytes,
    /// Bytes after decompression.
    pub uncompressed_bytes: u32,
}

/// Locates contents. `None` means that the store does not have them, or no longer has them.
pub trait Chunks {
    /// The chunks of a file, in order.
    fn chunks_of(&self, content: &ContentHash) -> Result<Option<Vec<Chunk>>, ReadError>;
    /// The current location of a chunk.
    fn locate(&self, chunk: &ContentHash) -> Result<Option<Place>, ReadError>;
}

/// The parts of the store that plans need. `None` means that the store does not have an object, or no longer
/// has it. All calls block.
pub trait Contents: Chunks + Send + Sync + 'static {
    /// The root entry with this hash, if a retained generation has it.
    fn root(&self, hash: &RootHash) -> Result<Option<RootEntry>, ReadError>;
    /// A directory object.
    fn page(&self, hash: &ObjectHash) -> Result<Option<Arc<Page>>, ReadError>;
    /// Canonical bytes of a directory object.
    fn page_bytes(&self, hash: &ObjectHash) -> Result<Option<Bytes>, ReadError>;
    /// Number of generations retired so far. Content that only they had may no longer be requested.
    fn retired(&self) -> u64 {
        0
    }
    /// Runs `work`, which looks up chunks of many files in one state of the store.
    fn look_up(&self, work: &mut dyn FnMut(&dyn Chunks) -> Result<(), ReadError>) -> Result<(), ReadError>;
    /// The path where the last scan found a file of this content. A hint, to be checked against a manifest.
    fn path_of(&self, _content: &ContentHash) -> Result<Option<TreePath>, ReadError> {
        Ok(None)
    }
    /// The decompressed content of a frame, if it is in memory.
    fn in_memory(&self, _frame: FrameId) -> Option<Arc<Vec<u8>>> {
        None
    }
    /// A frame. `None` also if garbage collection has just moved its chunks: the caller must locate them
    /// again.
    fn frame(&self, frame: FrameId) -> Result<Option<Frame>, ReadError>;
}

/// Errors of reading a directory object.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The object is missing, which makes its tree incomplete.
    #[error("directory object {object} is not in the store")]
    Missing { object: ObjectHash },
    /// The bytes match their hash but do not decode.
    #[error("directory object {object} is damaged; run: syncd-origin check")]
    Damaged { object: ObjectHash, source: Box<DecodeDirectoryError> },
    /// The pages of a directory do not fit together.
    #[error("the pages of a directory do not fit together; run: syncd-origin check")]
    Pages(#[from] DecodeDirectoryError),
    /// The store failed.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// A source of directories for [`syncd_shared::diff::Comparison`].
pub(super) struct Directories<'a>(pub &'a dyn Contents);

impl DirectorySource for Directories<'_> {
    type Error = DirectoryError;

    fn page(&self, hash: &ObjectHash) -> Result<Arc<Page>, DirectoryError> {
        self.0.page(hash)?.ok_or(DirectoryError::Missing { object: *hash })
    }
}
