//! Detects losses that are too large to be taken for a deployment.
//!
//! A scan fails, until the files are back or `commit --allow-mass-deletion` confirms the loss, if
//!
//! * the tree has become empty;
//! * it lost more than half of its entries, and had at least [`MASS_DELETION_MIN_ENTRIES`];
//! * it lost more than half of its bytes, in at least [`MASS_DELETION_MIN_FILES`] removed or shrunk files;
//! * anything differs at a mount point that is no longer mounted, including TREE and its file system;
//! * a mount point in the tree has become empty, whatever is mounted there now.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use syncd_shared::diff::{Change, Comparison, DiffError, PartLimits};
use syncd_shared::{Kind, RootEntry, TreePath};

use super::error::ScanError;
use crate::tree_objects::{TreeObjectError, TreeObjects};

/// A smaller tree may lose any entries except the last one.
pub const MASS_DELETION_MIN_ENTRIES: u64 = 20;
/// Fewer files may be removed or shrink, however large they are.
pub const MASS_DELETION_MIN_FILES: u64 = 20;

/// Compares the previous tree with the current one.
pub(crate) fn check_totals(
    objects: TreeObjects<'_>,
    before: &RootEntry,
    after: &RootEntry,
) -> Result<(), ScanError> {
    let (was, is) = (before.totals, after.totals);
    if was.entries > 0 && is.entries == 0 {
        return Err(ScanError::Emptied { before: was.entries });
    }
    if was.entries >= MASS_DELETION_MIN_ENTRIES && is.entries < was.entries.div_ceil(2) {
        return Err(ScanError::MassDeletion { before: was.entries, after: is.entries });
    }
    if is.bytes < was.bytes.div_ceil(2) && was.files >= MASS_DELETION_MIN_FILES {
        let files = files_lost(objects, before, after).map_err(|source| ScanError::Guard { source })?;
        if files >= MASS_DELETION_MIN_FILES {
            return Err(ScanError::MassByteLoss { before: was.bytes, after: is.bytes });
        }
    }
    Ok(())
}

/// Counts removed or shrunk files, up to [`MASS_DELETION_MIN_FILES`]. Reads the directories that differ.
fn files_lost(
    objects: TreeObjects<'_>,
    before: &RootEntry,
    after: &RootEntry,
) -> Result<u64, DiffError<TreeObjectError>> {
    let size = |kind: &Kind| match kind {
        Kind::File { size, .. } => Some(*size),
        Kind::Directory { .. } | Kind::Symlink { .. } | Kind::Collected { .. } => None,
    };
    let mut lost = 0;
    Comparison::of(objects, before, after, PartLimits::default())?.each(|change| {
        let is_lost = match change {
            Change::Removed { entry, .. } => size(&entry.kind).is_some(),
            Change::Modified { from, to, .. } => size(&to.kind) < size(&from.kind),
            Change::Added { .. } => false,
        };
        lost += u64::from(is_lost);
        lost < MASS_DELETION_MIN_FILES
    })?;
    Ok(lost)
}

/// Compares the mount points of the previous scan of the tree at `root` with the current ones.
pub(super) fn check_mounts(
    objects: TreeObjects<'_>,
    root: &Path,
    (was, is): (&BTreeSet<PathBuf>, &BTreeSet<PathBuf>),
    (before, after): (&RootEntry, &RootEntry),
) -> Result<(), ScanError> {
    for point in was.union(is) {
        let is_mounted = is.contains(point);
        match point.strip_prefix(root) {
            Ok(below) if !below.as_os_str().is_empty() => {
                let Ok(path) = TreePath::from_bytes(below.as_os_str().as_bytes()) else { continue };
                let kind = |tree| objects.entry_at(tree, &path).map(|entry| entry.map(|entry| entry.kind));
                let failed =
                    |source| ScanError::Guard { source: DiffError::Source { path: path.clone(), source } };
                let (was, is) = (kind(before).map_err(failed)?, kind(after).map_err(failed)?);
                let (entries, left) = (entries_below(was.as_ref()), entries_below(is.as_ref()));
                if !is_mounted && was != is {
                    return Err(ScanError::Unmounted { path: point.clone() });
                }
                if is_mounted && entries > 0 && left == 0 {
                    return Err(ScanError::EmptiedMount { path: point.clone(), before: entries });
                }
            }
            // TREE itself, or the file system below it. Another TREE than before may be on any file system.
            _ if !is_mounted && root.starts_with(point) && before.object != after.object => {
                return Err(ScanError::Unmounted { path: point.clone() });
            }
            _ => {}
        }
    }
    Ok(())
}

fn entries_below(kind: Option<&Kind>) -> u64 {
    match kind {
        Some(Kind::Directory { totals, .. }) => totals.entries,
        _ => 0,
    }
}
