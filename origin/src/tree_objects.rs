//! Directory objects of the store, or of a writer before it seals, as trees: compared, and looked up by path.

use std::sync::Arc;

use syncd_shared::diff::DirectorySource;
use syncd_shared::{Directory, Entry, Kind, ObjectHash, RootEntry, TreePath};

use crate::store::{Store, StoreError, Writer};

/// Where objects come from. All that are asked for must be there.
#[derive(Clone, Copy)]
pub(crate) enum TreeObjects<'a> {
    /// What is sealed or saved.
    Store(&'a Store),
    /// Also what was put into this writer.
    Writer(&'a Writer),
}

/// Why an object could not be had.
#[derive(Debug, thiserror::Error)]
pub enum TreeObjectError {
    /// The store could not be read.
    #[error("read the store")]
    Store(#[source] Box<StoreError>),
    /// It went with its generation, or was lost.
    #[error("directory object {object} is missing")]
    Missing {
        /// Its hash.
        object: ObjectHash,
    },
}

impl From<StoreError> for TreeObjectError {
    fn from(error: StoreError) -> Self {
        Self::Store(Box::new(error))
    }
}

impl DirectorySource for TreeObjects<'_> {
    type Error = TreeObjectError;

    fn directory(&self, object: &ObjectHash) -> Result<Arc<Directory>, TreeObjectError> {
        let found = match self {
            Self::Store(store) => store.directory(object)?,
            Self::Writer(writer) => writer.directory(object)?,
        };
        found.ok_or(TreeObjectError::Missing { object: *object })
    }
}

impl TreeObjects<'_> {
    /// The entry at `path` of a tree; `None` where the tree has no such path, and for its root. Reads one object for
    /// each component.
    pub(crate) fn entry_at(
        &self,
        tree: &RootEntry,
        path: &TreePath,
    ) -> Result<Option<Entry>, TreeObjectError> {
        let mut object = Some(tree.object);
        let mut found = None;
        for name in path.components() {
            let Some(hash) = object else { return Ok(None) };
            let directory = self.directory(&hash)?;
            let Some(entry) = directory.get(&name) else { return Ok(None) };
            object = match entry.kind {
                Kind::Directory { object, .. } => Some(object),
                Kind::File { .. } | Kind::Symlink { .. } => None,
            };
            found = Some(entry.clone());
        }
        Ok(found)
    }
}
