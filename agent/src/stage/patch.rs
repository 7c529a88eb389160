//! Turns a tree on disk that is exactly one root into exactly another, touching only what differs.
//!
//! Order: directories that are renamed whole step aside, removals deepest first, additions in path order (what stepped
//! aside goes to its place), then the metadata of every directory that changed, children before parents. A tree that
//! this was interrupted in is neither, and is never trusted again: [`crate::stage::conform`] makes a spare of it.

use syncd_shared::diff::{Change, TreeDiff};
use syncd_shared::{Entry, Kind, RootEntry, TreePath};

use crate::disk::{Dir, DiskError, Owners};
use crate::layout::Layout;
use crate::stage::StageError;
use crate::stage::cursor::DirCursor;

/// Puts files and symlinks into the tree.
pub(crate) trait Supply {
    /// Whether [`Supply::put`] replaces what is at the name of this change; else the name is made free before.
    fn replaces(&self, _change: usize) -> bool {
        false
    }

    /// Makes `entry` appear under the name `name` of `dir`, with all its metadata. `change` is its index in the
    /// diff. Returns its inode number.
    fn put(
        &mut self,
        change: usize,
        path: &TreePath,
        entry: &Entry,
        dir: &Dir,
        name: &[u8],
    ) -> Result<u64, StageError>;
}

pub(crate) struct Patch<'a> {
    pub layout: &'a Layout,
    pub owners: Owners,
    /// `building-K` that is patched.
    pub slot: u64,
    pub diff: &'a TreeDiff,
    pub to: &'a RootEntry,
}

impl Patch<'_> {
    /// Patches `tree`. Inode numbers of what was put, by index in the diff; 0 for everything else.
    pub fn run(&self, tree: Dir, supply: &mut dyn Supply) -> Result<Vec<u64>, StageError> {
        let mut cursor = DirCursor::new(tree);
        cursor.at(&TreePath::root())?.make_writable()?;
        self.layout.discard_asides()?;
        self.step_aside(&mut cursor)?;
        self.remove(&mut cursor, supply)?;
        let inodes = self.add(&mut cursor, supply)?;
        self.finish_directories(&mut cursor)?;
        Ok(inodes)
    }

    fn aside(&self, index: usize) -> Vec<u8> {
        format!("aside-{}-{index}", self.slot).into_bytes()
    }

    fn step_aside(&self, cursor: &mut DirCursor) -> Result<(), StageError> {
        for (index, rename) in self.diff.renamed_directories.iter().enumerate() {
            if let Some((parent, name)) = rename.from.split_last() {
                let dir = cursor.at(&parent)?;
                dir.make_writable()?;
                // Its own metadata is set again where it goes: there it counts as added.
                dir.open_dir(name.as_bytes())?.make_writable()?;
                dir.rename_new(name.as_bytes(), &self.layout.staging, &self.aside(index))?;
            }
        }
        cursor.reset();
        Ok(())
    }

    fn remove(&self, cursor: &mut DirCursor, supply: &dyn Supply) -> Result<(), StageError> {
        let renamed = |path: &TreePath| self.diff.renamed_directories.iter().any(|r| r.from == *path);
        for (index, change) in self.diff.changes.iter().enumerate().rev() {
            let (path, entry) = match change {
                Change::Added { .. } => continue,
                Change::Modified { to, .. } if to.is_directory() => continue,
                Change::Modified { from, .. } if !from.is_directory() && supply.replaces(index) => continue,
                Change::Modified { path, from, .. } => (path, from),
                Change::Removed { path, entry } => (path, entry),
            };
            let Some((parent, name)) = path.split_last() else { continue };
            if !entry.is_directory() {
                let dir = cursor.at(&parent)?;
                dir.make_writable()?;
                dir.unlink(name.as_bytes())?;
            } else if !renamed(path) {
                self.remove_directory(cursor.at(&parent)?, name.as_bytes())?;
            }
        }
        cursor.reset();
        Ok(())
    }

    fn remove_directory(&self, dir: &Dir, name: &[u8]) -> Result<(), DiskError> {
        dir.make_writable()?;
        match dir.remove_dir(name) {
            // Something is in it that no manifest has.
            Err(e) if e.source.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
                self.layout.discard(dir, name)
            }
            other => other.map(|_| ()),
        }
    }

    fn add(&self, cursor: &mut DirCursor, supply: &mut dyn Supply) -> Result<Vec<u64>, StageError> {
        let mut inodes = vec![0; self.diff.changes.len()];
        for (index, change) in self.diff.changes.iter().enumerate() {
            let (path, entry, added) = match change {
                Change::Removed { .. } => continue,
                Change::Added { path, entry } => (path, entry, true),
                Change::Modified { path, to, .. } => (path, to, false),
            };
            let Some((parent, name)) = path.split_last() else { continue };
            if !entry.is_directory() {
                let dir = cursor.at(&parent)?;
                dir.make_writable()?;
                inodes[index] = supply.put(index, path, entry, dir, name.as_bytes())?;
            } else if added {
                let dir = cursor.at(&parent)?;
                dir.make_writable()?;
                match self.diff.renamed_directories.iter().position(|r| r.to == *path) {
                    Some(rename) => {
                        self.layout.staging.rename_new(&self.aside(rename), dir, name.as_bytes())?;
                    }
                    None => drop(dir.create_dir(name.as_bytes(), 0o700)?),
                }
            }
        }
        Ok(inodes)
    }

    fn finish_directories(&self, cursor: &mut DirCursor) -> Result<(), StageError> {
        for change in self.diff.changes.iter().rev() {
            if let Change::Added { path, entry } | Change::Modified { path, to: entry, .. } = change
                && let Kind::Directory { .. } = entry.kind
            {
                cursor.at(path)?.set_own_metadata(&entry.metadata, self.owners)?;
            }
        }
        Ok(cursor.at(&TreePath::root())?.set_own_metadata(&self.to.metadata, self.owners)?)
    }
}
