//! Contents gained and lost by a directory, for the store's index of paths.

use std::cmp::Ordering;

use syncd_shared::{ContentHash, Directory, Entry, Kind, TreePath};

use super::error::ScanError;
use super::task::join;
use crate::store::Writer;

/// Reports the differences between the previous and current state of a directory to the writer.
pub(super) fn tell(
    writer: &Writer,
    path: &TreePath,
    before: Option<&Directory>,
    after: &Directory,
) -> Result<(), ScanError> {
    let mut before = before.map_or(&[][..], Directory::entries).iter().peekable();
    for entry in after.entries() {
        while let Some(gone) = before.next_if(|b| b.name.cmp(&entry.name) == Ordering::Less) {
            lose(writer, path, gone)?;
        }
        let was = before.next_if(|b| b.name == entry.name);
        if was.and_then(content) == content(entry) {
            continue;
        }
        if let Some(was) = was {
            lose(writer, path, was)?;
        }
        if let Some((content, size)) = content(entry) {
            writer.put_path(&content, size, &join(path, &entry.name)?)?;
        }
    }
    before.try_for_each(|gone| lose(writer, path, gone))
}

fn lose(writer: &Writer, path: &TreePath, entry: &Entry) -> Result<(), ScanError> {
    match content(entry) {
        Some((content, size)) => Ok(writer.lose_path(&content, size, &join(path, &entry.name)?)?),
        None => Ok(()),
    }
}

fn content(entry: &Entry) -> Option<(ContentHash, u64)> {
    match entry.kind {
        Kind::File { content, size } => Some((content, size)),
        Kind::Directory { .. } | Kind::Symlink { .. } => None,
    }
}
