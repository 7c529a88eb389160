//! The files that differ between two trees, path by path. A directory that was renamed whole counts as all of
//! its files, removed and added.

use std::sync::Arc;

use syncd_shared::diff::{DiffError, DirectorySource};
use syncd_shared::{Directory, Entry, Kind, ObjectHash, RootEntry, TreePath};

use crate::tree_objects::{TreeObjectError, TreeObjects};

/// Directories whose files are included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// Directories that both trees have.
    Common,
    /// Also directories that only the first tree has.
    Gone,
    /// Also directories that only one of the trees has.
    Whole,
}

/// A path that is a file in at least one of the trees.
pub(super) struct FileChange<'a> {
    pub path: &'a TreePath,
    /// The entry in the first tree, if it is a file.
    pub from: Option<&'a Entry>,
    /// The entry in the second tree, if it is a file.
    pub to: Option<&'a Entry>,
}

/// Passes each file that differs to `show`. Reads the directories that differ, and those that `reach`
/// includes.
pub(super) fn each(
    objects: TreeObjects<'_>,
    from: &RootEntry,
    to: &RootEntry,
    reach: Reach,
    show: &mut dyn FnMut(&FileChange<'_>),
) -> Result<(), DiffError<TreeObjectError>> {
    Walk { objects, reach, show }.directory(&TreePath::root(), Some(from.object), Some(to.object))
}

struct Walk<'a> {
    objects: TreeObjects<'a>,
    reach: Reach,
    show: &'a mut dyn FnMut(&FileChange<'_>),
}

impl Walk<'_> {
    fn directory(
        &mut self,
        path: &TreePath,
        from: Option<ObjectHash>,
        to: Option<ObjectHash>,
    ) -> Result<(), DiffError<TreeObjectError>> {
        let is_reached = match (from, to) {
            (Some(from), Some(to)) => from != to,
            (Some(_), None) => self.reach != Reach::Common,
            (None, _) => self.reach == Reach::Whole,
        };
        if !is_reached {
            return Ok(());
        }
        let (before, after) = (self.load(path, from)?, self.load(path, to)?);
        for old in before.entries() {
            self.entry(path, Some(old), after.get(&old.name))?;
        }
        for new in after.entries().iter().filter(|new| before.get(&new.name).is_none()) {
            self.entry(path, None, Some(new))?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        parent: &TreePath,
        from: Option<&Entry>,
        to: Option<&Entry>,
    ) -> Result<(), DiffError<TreeObjectError>> {
        let Some(entry) = from.or(to).filter(|_| from != to) else { return Ok(()) };
        let path =
            parent.join(&entry.name).map_err(|source| DiffError::Path { path: parent.clone(), source })?;
        let file = |entry: &&Entry| matches!(entry.kind, Kind::File { .. });
        let (old, new) = (from.filter(file), to.filter(file));
        if old.is_some() || new.is_some() {
            (self.show)(&FileChange { path: &path, from: old, to: new });
        }
        self.directory(&path, from.and_then(object), to.and_then(object))
    }

    fn load(
        &self,
        path: &TreePath,
        object: Option<ObjectHash>,
    ) -> Result<Arc<Directory>, DiffError<TreeObjectError>> {
        let Some(object) = object else { return Ok(Arc::default()) };
        let loaded = self.objects.directory(&object);
        loaded.map_err(|source| DiffError::Source { path: path.clone(), source })
    }
}

/// The object of a directory; `None` for other entries.
pub(super) fn object(entry: &Entry) -> Option<ObjectHash> {
    match entry.kind {
        Kind::Directory { object, .. } => Some(object),
        Kind::File { .. } | Kind::Symlink { .. } => None,
    }
}
