//! Collects the inode numbers of a staged tree for the record.

use std::collections::HashMap;
use std::sync::Arc;

use syncd_shared::diff::{Change, Rename};
use syncd_shared::manifest_cursor::ManifestCursor;
use syncd_shared::{Directory, Entry, RootEntry, TreePath};

use crate::state::record::{InodeChanges, Record, RecordError};

/// A directory of the new tree, and its list.
type Listed<'l> = (Arc<Directory>, &'l mut Vec<u64>);

/// Inode lists of every directory in which a name changed: 8 bytes a name.
pub(crate) struct InodeLists<'a> {
    record: &'a Record,
    before: Option<ManifestCursor<'a, Record>>,
    after: ManifestCursor<'a, Record>,
    renames: &'a [Rename],
    lists: HashMap<TreePath, Vec<u64>>,
    removed: Vec<TreePath>,
}

impl<'a> InodeLists<'a> {
    /// Prepares lists for a tree at `to` that is built on an unchanged tree at `from`.
    pub fn new(
        record: &'a Record,
        from: Option<&RootEntry>,
        to: &RootEntry,
        renames: &'a [Rename],
    ) -> Result<Self, RecordError> {
        let after = ManifestCursor::new(record, to)?;
        let before = from.map(|root| ManifestCursor::new(record, root)).transpose()?;
        let (lists, removed) = Default::default();
        let mut new = Self { record, before, after, renames, lists, removed };
        if from.is_none() {
            new.list(&TreePath::root())?;
        }
        Ok(new)
    }

    /// Takes the changes of a part; `placed` has their inode numbers by index.
    pub fn add(&mut self, changes: &[Change], placed: &[u64]) -> Result<(), RecordError> {
        for (change, inode) in changes.iter().zip(placed) {
            let Some((parent, name)) = change.path().split_last() else { continue };
            if let Some((directory, list)) = self.list(&parent)?
                && *inode != 0
                && let Ok(index) = directory.entries().binary_search_by(|entry| entry.name.cmp(&name))
                && let Some(slot) = list.get_mut(index)
            {
                *slot = *inode;
            }
            match change {
                Change::Removed { path, entry } if entry.is_directory() => self.removed.push(path.clone()),
                Change::Added { path, entry }
                    if entry.is_directory()
                        && self.renames.binary_search_by(|rename| rename.to.cmp(path)).is_err() =>
                {
                    self.list(path)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Returns the lists to be recorded.
    pub fn finish(self) -> InodeChanges {
        let mut put: Vec<_> = self.lists.into_iter().collect();
        put.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        InodeChanges {
            clear: self.before.is_none(),
            put,
            moved: self.renames.iter().map(|r| (r.from.clone(), r.to.clone())).collect(),
            removed: self.removed,
        }
    }

    /// A directory of the new tree and its list, which starts from the known numbers. `None`: the new tree
    /// has no such directory.
    fn list(&mut self, path: &TreePath) -> Result<Option<Listed<'_>>, RecordError> {
        let Some((_, directory)) = self.after.directory(path)? else { return Ok(None) };
        if !self.lists.contains_key(path) {
            let list = match &mut self.before {
                Some(before) => {
                    let was = was(self.renames, path);
                    let path = was.as_ref().unwrap_or(path);
                    let old = before.directory(path)?.map(|(_, directory)| directory).unwrap_or_default();
                    carried(&old, &self.record.inodes(path)?.unwrap_or_default(), &directory)
                }
                None => vec![0; directory.entries().len()],
            };
            self.lists.insert(path.clone(), list);
        }
        Ok(self.lists.get_mut(path).map(|list| (directory, list)))
    }
}

/// Former path of a directory that was renamed, or that is below a renamed one.
fn was(renames: &[Rename], path: &TreePath) -> Option<TreePath> {
    let mut above = Some(path.clone()).filter(|_| !renames.is_empty())?;
    loop {
        if let Ok(index) = renames.binary_search_by(|rename| rename.to.cmp(&above)) {
            let Rename { from, to } = renames.get(index)?;
            return path.rebase(to, from);
        }
        above = above.parent()?;
    }
}

/// Carries over the inode numbers of names that both directories have; 0 for other names and for directories.
fn carried(old: &Directory, inodes: &[u64], new: &Directory) -> Vec<u64> {
    let mut known = old.entries().iter().zip(inodes).peekable();
    let inode = |entry: &Entry| {
        while known.next_if(|(old, _)| old.name < entry.name).is_some() {}
        let same = known.next_if(|(old, _)| old.name == entry.name);
        same.map_or(0, |(_, inode)| if entry.is_directory() { 0 } else { *inode })
    };
    new.entries().iter().map(inode).collect()
}
