//! Finds content that the old tree has under a name that the update does not touch.

use syncd_shared::diff::DirectorySource;
use syncd_shared::{ContentHash, Kind, RootEntry, TreePath};

use super::contents::{Contents, Directories};
use super::error::PlanError;

/// A path of this content in the tree: the store's hint, if the tree confirms it.
pub(super) fn path_in(
    contents: &dyn Contents,
    tree: &RootEntry,
    content: &ContentHash,
) -> Result<Option<TreePath>, PlanError> {
    let Some(path) = contents.path_of(content)? else { return Ok(None) };
    let source = Directories(contents);
    let mut object = Some(tree.object);
    let mut is_there = false;
    for name in path.components() {
        let Some(above) = object.take() else { return Ok(None) };
        match source.entry(&above, &name)?.map(|entry| entry.kind) {
            Some(Kind::Directory { object: below, .. }) => object = Some(below),
            Some(Kind::File { content: found, .. }) => is_there = found == *content,
            Some(Kind::Symlink { .. } | Kind::Collected { .. }) | None => return Ok(None),
        }
    }
    Ok(Some(path).filter(|_| is_there))
}
