//! The files and symlinks that differ between two trees, those below renamed directories included.

use std::collections::HashSet;

use super::{Change, Comparison, DiffError, DirectorySource};
use crate::directory::{Entry, Kind, cursor::Cursor};
use crate::hash::ObjectHash;
use crate::tree_path::TreePath;

/// A renamed directory whose content is still to be shown.
type Moved = Option<(TreePath, ObjectHash)>;

impl<S: DirectorySource> Comparison<S> {
    /// Passes each path that is a file or symlink in one of the trees, and differs, to `show` in path order.
    /// A file below a renamed directory is shown under both of its paths.
    pub fn each_leaf(&self, mut show: impl FnMut(&TreePath)) -> Result<(), DiffError<S::Error>> {
        let renames = self.renamed_directories();
        let moved: HashSet<&TreePath> = renames.iter().flat_map(|r| [&r.from, &r.to]).collect();
        let mut last: Option<TreePath> = None;
        let mut content: Moved = None;
        for part in self.parts() {
            for change in part?.changes.iter() {
                let path = change.path();
                if content.as_ref().is_some_and(|(directory, _)| directory != path) {
                    self.each_below(content.take(), &mut show)?;
                }
                for entry in entries(change) {
                    match entry.kind {
                        Kind::Directory { object, .. } if moved.contains(path) => {
                            content = Some((path.clone(), object));
                        }
                        Kind::Directory { .. } => {}
                        _ if last.as_ref() == Some(path) => {}
                        _ => {
                            show(path);
                            last = Some(path.clone());
                        }
                    }
                }
            }
        }
        self.each_below(content, &mut show)
    }

    fn each_below(
        &self,
        directory: Moved,
        show: &mut impl FnMut(&TreePath),
    ) -> Result<(), DiffError<S::Error>> {
        let open = |(path, object): (TreePath, ObjectHash)| match Cursor::new(&self.source, Some(object)) {
            Ok(cursor) => Ok((path, cursor)),
            Err(source) => Err(DiffError::Source { path, source }),
        };
        let mut stack: Vec<_> = directory.map(open).transpose()?.into_iter().collect();
        while let Some((directory, cursor)) = stack.last_mut() {
            let found = cursor.entry().map(Option::<&Entry>::cloned);
            let found = found.map_err(|source| DiffError::Source { path: directory.clone(), source })?;
            let Some(entry) = found else {
                stack.pop();
                continue;
            };
            cursor.skip();
            let path = directory
                .join(&entry.name)
                .map_err(|source| DiffError::Path { path: directory.clone(), source })?;
            match entry.kind {
                Kind::Directory { object, .. } => stack.push(open((path, object))?),
                _ => show(&path),
            }
        }
        Ok(())
    }
}

fn entries(change: &Change) -> impl Iterator<Item = &Entry> {
    let (before, after) = match change {
        Change::Removed { entry, .. } | Change::Added { entry, .. } => (entry, None),
        Change::Modified { from, to, .. } => (from, Some(to)),
    };
    std::iter::once(before).chain(after)
}
