//! Turns a tree on disk from exactly one root into exactly another, and touches only what differs.
//!
//! First, directories that are renamed whole are moved aside. Then, for each part, removals run deepest first
//! and additions in path order, which includes the directories that were moved aside. At the end every
//! changed directory gets its metadata, children before parents. After an interruption the tree is neither
//! root and is never trusted again: [`crate::build::conform`] makes it a spare.

use std::collections::HashSet;

use syncd_shared::diff::{Change, Rename};
use syncd_shared::{Entry, Metadata, TreePath};

use crate::build::StageError;
use crate::state::cursor::DirCursor;
use crate::state::disk::{Dir, DiskError, Owners};
use crate::state::layout::Layout;

pub(crate) trait Supply {
    /// Whether [`Supply::put`] replaces an existing file for this change. Otherwise the name is freed first.
    fn replaces(&self, _change: usize) -> bool {
        false
    }

    /// Creates `entry` under `name` in `dir`, with all its metadata. `change` is its index in the part.
    /// Returns the inode number.
    fn put(
        &mut self,
        change: usize,
        path: &TreePath,
        entry: &Entry,
        dir: &Dir,
        name: &[u8],
    ) -> Result<u64, StageError>;
}

/// Patches one tree, part by part.
pub(crate) struct Patch<'a> {
    owners: Owners,
    /// Slot of the tree.
    slot: u64,
    renames: &'a [Rename],
    renamed_from: HashSet<&'a TreePath>,
    cursor: DirCursor,
    /// A directory that was removed whole, whose remaining entries are named by later parts.
    gone: Option<TreePath>,
    /// Directories whose metadata is set once nothing more is put into them.
    directories: Vec<(TreePath, Metadata)>,
}

impl<'a> Patch<'a> {
    /// Starts on `tree` and moves aside the directories that are renamed whole.
    pub fn start(
        layout: &Layout,
        owners: Owners,
        slot: u64,
        renames: &'a [Rename],
        tree: Dir,
    ) -> Result<Self, StageError> {
        let renamed_from = renames.iter().map(|rename| &rename.from).collect();
        let (cursor, gone, directories) = (DirCursor::new(tree), None, Vec::new());
        let mut patch = Self { owners, slot, renames, renamed_from, cursor, gone, directories };
        patch.cursor.at(&TreePath::root())?.make_writable()?;
        layout.discard_asides()?;
        patch.step_aside(layout)?;
        Ok(patch)
    }

    /// Applies a part. Returns the inode numbers of new files by index in `changes`, 0 for every other
    /// change.
    pub fn part(
        &mut self,
        layout: &Layout,
        changes: &[Change],
        supply: &mut dyn Supply,
    ) -> Result<Vec<u64>, StageError> {
        self.remove(layout, changes, supply)?;
        let inodes = self.add(layout, changes, supply)?;
        self.directories.extend(changes.iter().filter_map(|change| match change {
            Change::Added { path, entry } | Change::Modified { path, to: entry, .. }
                if entry.is_directory() =>
            {
                Some((path.clone(), entry.metadata))
            }
            _ => None,
        }));
        Ok(inodes)
    }

    /// Sets the metadata of all changed directories except the root, which gets its metadata when it is
    /// activated.
    pub fn finish(mut self) -> Result<(), StageError> {
        self.directories.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        for (path, metadata) in self.directories.iter().rev() {
            self.cursor.at(path)?.set_own_metadata(metadata, self.owners)?;
        }
        Ok(())
    }

    fn aside(&self, index: usize) -> Vec<u8> {
        format!("aside-{}-{index}", self.slot).into_bytes()
    }

    fn step_aside(&mut self, layout: &Layout) -> Result<(), StageError> {
        for (index, rename) in self.renames.iter().enumerate() {
            if let Some((parent, name)) = rename.from.split_last() {
                let aside = self.aside(index);
                let dir = self.cursor.at(&parent)?;
                dir.make_writable()?;
                // The metadata is set again at the new path, where the directory counts as added.
                dir.open_dir(name.as_bytes())?.make_writable()?;
                dir.rename_new(name.as_bytes(), &layout.staging, &aside)?;
            }
        }
        self.cursor.reset();
        Ok(())
    }

    fn remove(&mut self, layout: &Layout, changes: &[Change], supply: &dyn Supply) -> Result<(), StageError> {
        let gone = self.gone.take();
        let is_gone = |path: &TreePath| gone.as_ref().is_some_and(|gone| path.starts_with(gone));
        for (index, change) in changes.iter().enumerate().rev() {
            let (path, entry) = match change {
                Change::Added { .. } => continue,
                Change::Modified { to, .. } if to.is_directory() => continue,
                Change::Modified { from, .. } if !from.is_directory() && supply.replaces(index) => continue,
                Change::Modified { path, from, .. } => (path, from),
                Change::Removed { path, .. } if is_gone(path) => continue,
                Change::Removed { path, entry } => (path, entry),
            };
            let Some((parent, name)) = path.split_last() else { continue };
            if !entry.is_directory() {
                let dir = self.cursor.at(&parent)?;
                dir.make_writable()?;
                dir.unlink(name.as_bytes())?;
            } else if !self.renamed_from.contains(path) {
                remove_directory(layout, self.cursor.at(&parent)?, name.as_bytes())?;
            }
        }
        self.cursor.reset();
        self.gone = changes.last().and_then(|last| removed_with(changes, last.path(), gone));
        Ok(())
    }

    fn add(
        &mut self,
        layout: &Layout,
        changes: &[Change],
        supply: &mut dyn Supply,
    ) -> Result<Vec<u64>, StageError> {
        let mut inodes = vec![0; changes.len()];
        for (index, change) in changes.iter().enumerate() {
            let (path, entry, added) = match change {
                Change::Removed { .. } => continue,
                Change::Added { path, entry } => (path, entry, true),
                Change::Modified { path, to, .. } => (path, to, false),
            };
            let Some((parent, name)) = path.split_last() else { continue };
            if !entry.is_directory() {
                let dir = self.cursor.at(&parent)?;
                dir.make_writable()?;
                inodes[index] = supply.put(index, path, entry, dir, name.as_bytes())?;
            } else if added {
                let rename = self.renames.binary_search_by(|rename| rename.to.cmp(path)).ok();
                let aside = rename.map(|rename| self.aside(rename));
                let dir = self.cursor.at(&parent)?;
                dir.make_writable()?;
                match aside {
                    Some(aside) => layout.staging.rename_new(&aside, dir, name.as_bytes())?,
                    None => dir.make_dir(name.as_bytes())?,
                }
            }
        }
        Ok(inodes)
    }
}

/// The removed directory that contains the last path of a part.
fn removed_with(changes: &[Change], last: &TreePath, before: Option<TreePath>) -> Option<TreePath> {
    if before.as_ref().is_some_and(|gone| last.starts_with(gone)) {
        return before;
    }
    let removed = changes.iter().find(|change| {
        matches!(change, Change::Removed { path, entry } if entry.is_directory() && last.starts_with(path))
    });
    removed.map(|change| change.path().clone())
}

fn remove_directory(layout: &Layout, dir: &Dir, name: &[u8]) -> Result<(), DiskError> {
    dir.make_writable()?;
    match dir.remove_dir(name) {
        // The directory holds an entry that no manifest has, or one that a later part names.
        Err(e) if e.source.kind() == std::io::ErrorKind::DirectoryNotEmpty => layout.discard(dir, name),
        other => other.map(|_| ()),
    }
}
