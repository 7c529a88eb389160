//! Collects the inode numbers of a staged tree for the record.

use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeSet, HashMap};

use syncd_shared::diff::{Change, Rename};
use syncd_shared::directory::{ChangedLeaves, Cursor};
use syncd_shared::manifest_cursor::{ManifestCursor, Place};
use syncd_shared::{Directory, ObjectHash, RootEntry, TreePath};

use crate::state::record::{InodeChanges, Leaf, Record, RecordError};

/// Inode lists of every page in which a name changed: 8 bytes a name.
pub(crate) struct InodeLists<'a> {
    record: &'a Record,
    before: Option<ManifestCursor<'a, Record>>,
    after: ManifestCursor<'a, Record>,
    renames: &'a [Rename],
    lists: HashMap<Leaf, Vec<u64>>,
    /// Directories in which a name changed.
    touched: BTreeSet<TreePath>,
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
        let touched = from.is_none().then(TreePath::root).into_iter().collect();
        Ok(Self { record, before, after, renames, lists, touched, removed })
    }

    /// Takes the changes of a part; `placed` has their inode numbers by index.
    pub fn add(&mut self, changes: &[Change], placed: &[u64]) -> Result<(), RecordError> {
        for (change, inode) in changes.iter().zip(placed) {
            let path = change.path();
            let Some(parent) = path.parent() else { continue };
            if *inode != 0
                && let Some(Place { page, leaf, index }) = self.after.place(path)?
                && let Some(slot) = self.list(&parent, page, &leaf)?.get_mut(index)
            {
                *slot = *inode;
            }
            match change {
                Change::Removed { path, entry } if entry.is_directory() => self.removed.push(path.clone()),
                Change::Added { path, entry }
                    if entry.is_directory()
                        && self.renames.binary_search_by(|rename| rename.to.cmp(path)).is_err() =>
                {
                    self.touched.insert(path.clone());
                }
                _ => {}
            }
            self.touched.insert(parent);
        }
        Ok(())
    }

    /// Returns the lists to be recorded: of all pages that the tree at `from` did not have, too.
    pub fn finish(mut self) -> Result<InodeChanges, RecordError> {
        let mut gone = Vec::new();
        for path in std::mem::take(&mut self.touched) {
            let (before, after) = (self.object_before(&path)?, self.after.object(&path)?);
            let changed = ChangedLeaves::between(self.record, before, after)?;
            for (page, leaf) in changed.new {
                self.list(&path, page, &leaf)?;
            }
            gone.extend(changed.gone.into_iter().map(|page| Leaf { path: path.clone(), page }));
        }
        let mut put: Vec<_> = self.lists.into_iter().collect();
        put.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        Ok(InodeChanges {
            clear: self.before.is_none(),
            put,
            gone,
            moved: self.renames.iter().map(|r| (r.from.clone(), r.to.clone())).collect(),
            removed: self.removed,
        })
    }

    /// The list of a page of the new tree, which starts from the known numbers.
    fn list(
        &mut self,
        path: &TreePath,
        page: ObjectHash,
        leaf: &Directory,
    ) -> Result<&mut Vec<u64>, RecordError> {
        let key = Leaf { path: path.clone(), page };
        if !self.lists.contains_key(&key) {
            let carried = self.carried(path, leaf)?;
            self.lists.insert(key.clone(), carried);
        }
        match self.lists.entry(key) {
            Slot::Occupied(list) => Ok(list.into_mut()),
            Slot::Vacant(none) => Ok(none.insert(Vec::new())),
        }
    }

    fn object_before(&mut self, path: &TreePath) -> Result<Option<ObjectHash>, RecordError> {
        let was = was(self.renames, path);
        match &mut self.before {
            Some(before) => before.object(was.as_ref().unwrap_or(path)),
            None => Ok(None),
        }
    }

    /// Carries over the inode numbers of names that the directory had before; 0 for other names and for
    /// directories.
    fn carried(&mut self, path: &TreePath, leaf: &Directory) -> Result<Vec<u64>, RecordError> {
        let mut list = vec![0; leaf.entries().len()];
        let (Some(object), Some(first)) = (self.object_before(path)?, leaf.entries().first()) else {
            return Ok(list);
        };
        let was = was(self.renames, path).unwrap_or_else(|| path.clone());
        let mut old = Cursor::new(self.record, Some(object))?;
        old.seek(&first.name)?;
        let mut known: Option<(Leaf, Vec<u64>)> = None;
        for (entry, slot) in leaf.entries().iter().zip(&mut list) {
            old.seek(&entry.name)?;
            let Some((page, there, index)) = old.leaf()? else { break };
            if entry.is_directory() || there.entries().get(index).is_none_or(|old| old.name != entry.name) {
                continue;
            }
            if known.as_ref().is_none_or(|(leaf, _)| leaf.page != page) {
                let leaf = Leaf { path: was.clone(), page };
                let inodes = self.record.inodes(&leaf)?.unwrap_or_default();
                known = Some((leaf, inodes));
            }
            *slot = known.as_ref().and_then(|(_, inodes)| inodes.get(index)).copied().unwrap_or(0);
        }
        Ok(list)
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
