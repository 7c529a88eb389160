//! The files that differ between two trees, path by path. A directory that was renamed whole counts as all of
//! its files, removed and added.

use syncd_shared::diff::DiffError;
use syncd_shared::directory::Pairs;
use syncd_shared::{Entry, Kind, ObjectHash, RootEntry, TreePath};

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
        let failed = |source| DiffError::Source { path: path.clone(), source };
        let mut pairs = Pairs::new(self.objects, from, to).map_err(failed)?;
        while let Some((old, new)) = pairs.next_pair().map_err(failed)? {
            self.entry(path, old.as_ref(), new.as_ref())?;
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
}

/// The object of a directory; `None` for other entries.
pub(super) fn object(entry: &Entry) -> Option<ObjectHash> {
    match entry.kind {
        Kind::Directory { object, .. } => Some(object),
        Kind::File { .. } | Kind::Symlink { .. } | Kind::Collected { .. } => None,
    }
}
