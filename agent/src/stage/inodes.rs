//! What the record is told about the inodes of a tree that was staged.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use syncd_shared::diff::{Change, TreeDiff};
use syncd_shared::{Component, RootEntry, TreePath};

use crate::record::{InodeChanges, Record, RecordError};
use crate::stage::cursor::ManifestCursor;

/// Lists for every directory in which a name changed. `placed` are the inode numbers by index in the diff.
pub(crate) fn inode_changes(
    record: &Record,
    from: Option<&RootEntry>,
    to: &RootEntry,
    diff: &TreeDiff,
    placed: &[u64],
) -> Result<InodeChanges, RecordError> {
    let mut changes = InodeChanges { clear: from.is_none(), ..InodeChanges::default() };
    let mut touched: BTreeMap<TreePath, HashMap<Component, u64>> = BTreeMap::new();
    let mut removed = BTreeSet::new();
    for (change, inode) in diff.changes.iter().zip(placed) {
        let Some((parent, name)) = change.path().split_last() else { continue };
        let names = touched.entry(parent).or_default();
        if *inode != 0 {
            names.insert(name, *inode);
        }
        match change {
            Change::Removed { path, entry } if entry.is_directory() => {
                removed.insert(path.clone());
            }
            Change::Added { path, entry } if entry.is_directory() => {
                let renamed = diff.renamed_directories.iter().any(|r| r.to == *path);
                if !renamed {
                    touched.entry(path.clone()).or_default();
                }
            }
            _ => {}
        }
    }
    if from.is_none() {
        touched.entry(TreePath::root()).or_default();
    }
    let mut after = ManifestCursor::new(record, to)?;
    let mut before = from.map(|root| ManifestCursor::new(record, root)).transpose()?;
    for (path, names) in touched {
        let Some(directory) = after.directory(&path)? else { continue };
        let old = match &mut before {
            Some(before) => before.directory(&path)?.unwrap_or_default(),
            None => Default::default(),
        };
        let old_inodes =
            if before.is_some() { record.inodes(&path)?.unwrap_or_default() } else { Vec::new() };
        let inode = |name: &Component| {
            let known = || {
                let index = old.entries().binary_search_by(|e| e.name.cmp(name)).ok()?;
                old_inodes.get(index).copied()
            };
            names.get(name).copied().or_else(known).unwrap_or(0)
        };
        let list =
            directory.entries().iter().map(|e| if e.is_directory() { 0 } else { inode(&e.name) }).collect();
        changes.put.push((path, list));
    }
    changes.moved = diff.renamed_directories.iter().map(|r| (r.from.clone(), r.to.clone())).collect();
    changes.removed = removed.into_iter().collect();
    Ok(changes)
}
