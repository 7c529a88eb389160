//! Contents gained and lost by a directory, for the store's index of paths.

use syncd_shared::directory::Pair;
use syncd_shared::{ContentHash, Entry, Kind, TreePath};

use super::error::ScanError;
use super::task::join;
use crate::store::Writer;

/// Reports a name that differs between the previous and current state of a directory to the writer.
pub(crate) fn tell(writer: &Writer, path: &TreePath, (before, after): &Pair) -> Result<(), ScanError> {
    let (old, new) = (before.as_ref().and_then(content), after.as_ref().and_then(content));
    let Some(entry) = before.as_ref().or(after.as_ref()).filter(|_| old != new) else { return Ok(()) };
    let path = join(path, &entry.name)?;
    if let Some((content, size)) = old {
        writer.lose_path(&content, size, &path)?;
    }
    if let Some((content, size)) = new {
        writer.put_path(&content, size, &path)?;
    }
    Ok(())
}

fn content(entry: &Entry) -> Option<(ContentHash, u64)> {
    match entry.kind {
        Kind::File { content, size } => Some((content, size)),
        Kind::Directory { .. } | Kind::Symlink { .. } | Kind::Collected { .. } => None,
    }
}
