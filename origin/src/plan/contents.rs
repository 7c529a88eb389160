//! What plans are made from: the store, as the planner reads it.

use std::sync::Arc;

use bytes::Bytes;
use syncd_shared::diff::DirectorySource;
use syncd_shared::directory::DecodeDirectoryError;
use syncd_shared::{ContentHash, Directory, ObjectHash, RootEntry, RootHash, TreePath};

/// Reading failed. Not to have something is no failure.
#[derive(Debug, thiserror::Error)]
#[error("reading the store failed")]
pub struct ReadError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// Names a frame for as long as garbage collection does not move what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameId {
    /// The pack.
    pub pack: u32,
    /// Where the frame starts in it, in bytes.
    pub offset: u64,
}

/// Where a chunk lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its frame.
    pub frame: FrameId,
    /// Where it starts in the uncompressed frame, in bytes.
    pub offset: u32,
    /// Its length in bytes.
    pub length: u32,
}

/// One chunk of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Its hash.
    pub hash: ContentHash,
    /// Its length in bytes.
    pub length: u32,
}

/// A frame as it is stored.
#[derive(Debug, Clone)]
pub struct Frame {
    /// One zstd frame.
    pub compressed: Bytes,
    /// Bytes that it decompresses to.
    pub uncompressed_bytes: u32,
}

/// Where contents lie. `None`: the store does not have it (any more).
pub trait Chunks {
    /// The chunks of a file, in order.
    fn chunks_of(&self, content: &ContentHash) -> Result<Option<Vec<Chunk>>, ReadError>;
    /// Where a chunk lies now.
    fn locate(&self, chunk: &ContentHash) -> Result<Option<Place>, ReadError>;
}

/// The store, as far as plans need it. `None`: it does not have it (any more). All calls block.
pub trait Contents: Chunks + Send + Sync + 'static {
    /// The root entry with this hash, of a retained generation.
    fn root(&self, hash: &RootHash) -> Result<Option<RootEntry>, ReadError>;
    /// A directory object.
    fn directory(&self, hash: &ObjectHash) -> Result<Option<Arc<Directory>>, ReadError>;
    /// Canonical bytes of a directory object.
    fn directory_bytes(&self, hash: &ObjectHash) -> Result<Option<Bytes>, ReadError>;
    /// Generations that were retired so far: what they alone had may not be asked for any more.
    fn retired(&self) -> u64 {
        0
    }
    /// Has `work` look up chunks of many files in one state of the store.
    fn look_up(&self, work: &mut dyn FnMut(&dyn Chunks) -> Result<(), ReadError>) -> Result<(), ReadError>;
    /// Where the tree had a file of this content when it was last scanned: a hint, to be held against a manifest.
    fn path_of(&self, _content: &ContentHash) -> Result<Option<TreePath>, ReadError> {
        Ok(None)
    }
    /// The content of a frame, where it was read ahead of need; it is given away once.
    fn take_ahead(&self, _frame: FrameId) -> Option<Arc<Vec<u8>>> {
        None
    }
    /// A frame; `None` also where garbage collection has just moved what was in it: locate again.
    fn frame(&self, frame: FrameId) -> Result<Option<Frame>, ReadError>;
}

/// A directory object was not read.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// A tree without one of its directories is none.
    #[error("directory object {object} is not in the store")]
    Missing {
        /// The object.
        object: ObjectHash,
    },
    /// Its bytes have their hash and are no directory.
    #[error("directory object {object} is damaged; run: syncd-origin check")]
    Damaged {
        /// The object.
        object: ObjectHash,
        /// Why it is none.
        source: Box<DecodeDirectoryError>,
    },
    /// The store failed.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Directories for [`syncd_shared::diff::diff`].
pub(super) struct Directories<'a>(pub &'a dyn Contents);

impl DirectorySource for Directories<'_> {
    type Error = DirectoryError;

    fn directory(&self, hash: &ObjectHash) -> Result<Arc<Directory>, DirectoryError> {
        self.0.directory(hash)?.ok_or(DirectoryError::Missing { object: *hash })
    }
}
