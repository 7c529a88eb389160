//! Reads trees from directory objects in the store, or in a writer before it seals, for comparisons and
//! lookups by path.

use std::sync::Arc;

use syncd_shared::diff::DirectorySource;
use syncd_shared::directory::{DecodeDirectoryError, Page};
use syncd_shared::{Entry, Kind, ObjectHash, RootEntry, TreePath};

use crate::store::{Store, StoreError, Writer};

/// A source of objects. A missing object is an error.
#[derive(Clone, Copy)]
pub(crate) enum TreeObjects<'a> {
    /// Sealed and saved objects.
    Store(&'a Store),
    /// Also objects added to this writer.
    Writer(&'a Writer),
}

/// Errors of reading an object.
#[derive(Debug, thiserror::Error)]
pub enum TreeObjectError {
    /// Reading the store failed.
    #[error("read the store")]
    Store(#[source] Box<StoreError>),
    /// The object was removed with its generation, or lost.
    #[error("directory object {object} is missing")]
    Missing { object: ObjectHash },
    /// The pages of a directory do not fit together.
    #[error("the pages of a directory do not fit together; run: syncd-origin check")]
    Damaged(#[from] DecodeDirectoryError),
}

impl From<StoreError> for TreeObjectError {
    fn from(error: StoreError) -> Self {
        Self::Store(Box::new(error))
    }
}

impl DirectorySource for TreeObjects<'_> {
    type Error = TreeObjectError;

    /// The empty directory exists without being stored, because the first generation is compared with it.
    fn page(&self, object: &ObjectHash) -> Result<Arc<Page>, TreeObjectError> {
        if *object == RootEntry::empty().object {
            return Ok(Arc::default());
        }
        let found = match self {
            Self::Store(store) => store.page(object)?,
            Self::Writer(writer) => writer.page(object)?,
        };
        found.ok_or(TreeObjectError::Missing { object: *object })
    }
}

impl TreeObjects<'_> {
    /// The entry at `path` of a tree; `None` if the tree has no such path, and for its root. Reads the pages
    /// on the way to it.
    pub(crate) fn entry_at(
        &self,
        tree: &RootEntry,
        path: &TreePath,
    ) -> Result<Option<Entry>, TreeObjectError> {
        let mut object = Some(tree.object);
        let mut found = None;
        for name in path.components() {
            let Some(hash) = object else { return Ok(None) };
            let Some(entry) = self.entry(&hash, &name)? else { return Ok(None) };
            object = match entry.kind {
                Kind::Directory { object, .. } => Some(object),
                Kind::File { .. } | Kind::Symlink { .. } | Kind::Collected { .. } => None,
            };
            found = Some(entry);
        }
        Ok(found)
    }
}
