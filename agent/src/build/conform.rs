//! Makes a directory a copy of the live tree by hard links, whatever the directory contains.
//!
//! An empty directory becomes a farm of links. A retired tree, or a tree that a crash left half built,
//! becomes a spare. Every name is checked. An entry that differs in inode, size or time from what was
//! activated is replaced, and an entry that the manifest does not have is removed. No planted, edited or
//! half-built file becomes live again. Files that visitors wrote are moved away before
//! (`crate::replica::inspect`). The cost follows the tree, so this runs off the path of a commit, except
//! when no spare is ready.
//!
//! [`crate::state::history`] may know what has changed since a tree was retired. Then only directories are
//! checked: a directory that no change has touched, and whose ctime is older than the retirement, still has
//! its names. The cost follows the number of directories.
//!
//! A directory that the manifest does not have is moved away whole and never read. Memory, stack and
//! descriptors therefore do not grow with what somebody put into a tree.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::FileType;
use syncd_shared::diff::DirectorySource;
use syncd_shared::{Component, Directory, Entry, Kind, Metadata, ObjectHash, RootEntry, Timestamp, TreePath};

use crate::build::StageError;
use crate::build::missing_entries::MissingEntries;
use crate::state::cursor::{DirCursor, looks_like};
use crate::state::disk::{Dir, DiskError, Stat};
use crate::state::history::Touched;
use crate::state::record::RecordError;
use crate::state::trees::Trees;

#[derive(Debug, Default)]
pub(crate) struct Conformed {
    /// Files and symlinks that could not be linked: the live tree itself no longer has what was activated.
    pub missing: MissingEntries,
}

pub(crate) struct Conform<'a> {
    pub trees: &'a Trees,
    /// Source of the links.
    pub live: Dir,
    /// Paths to replace even where they look right.
    pub distrusted: Option<&'a HashSet<TreePath>>,
    /// History of the directory, when it is a retired tree.
    pub was: Option<Retired>,
    pub cancel: &'a AtomicBool,
}

/// A tree that was live before.
pub(crate) struct Retired {
    /// Manifest of the tree.
    pub root: RootEntry,
    /// Changes since the tree was retired; `None`: unknown.
    pub since: Option<Since>,
}

/// Changes since a tree was live.
pub(crate) struct Since {
    /// Time at which this process last changed the tree.
    pub finished: Timestamp,
    /// Changes made by activations since.
    pub touched: Touched,
}

/// Cursors into the tree being made and the live tree.
struct Pair {
    made: DirCursor,
    live: DirCursor,
}

/// A directory of the tree being made, with its counterpart in the live tree.
struct Place<'a> {
    path: &'a TreePath,
    dir: &'a Dir,
    /// `None`: the live tree no longer has the directory.
    live: Option<&'a Dir>,
    /// The directory was just created, so it is empty.
    is_new: bool,
}

/// A directory whose entries are being visited.
struct Entered {
    path: TreePath,
    object: ObjectHash,
    metadata: Metadata,
    manifest: Arc<Directory>,
    /// Former manifest entry of the directory, when no name in it has changed since.
    was: Option<Arc<Directory>>,
    /// Only subdirectories are visited: the directory itself is already right.
    is_whole: bool,
    is_new: bool,
    has_live: bool,
    /// Inode numbers of the entries in the live tree.
    inodes: Vec<u64>,
    /// Index of the next entry.
    next: usize,
}

/// A directory to enter next.
struct Next<'a> {
    path: TreePath,
    object: &'a ObjectHash,
    metadata: &'a Metadata,
    /// The directory was just created, so it is empty.
    is_new: bool,
    /// Former state of the directory, when the tree was retired.
    was: Option<Was>,
}

/// A directory as described by a manifest.
#[derive(Clone, Copy)]
struct Was {
    object: ObjectHash,
    metadata: Metadata,
}

impl Was {
    fn of(entry: &Entry) -> Option<Self> {
        match entry.kind {
            Kind::Directory { object, .. } => Some(Self { object, metadata: entry.metadata }),
            _ => None,
        }
    }
}

impl Conform<'_> {
    /// Makes `dir` a copy of `root`, which is the manifest of the live tree.
    pub fn run(&self, dir: &Dir, root: &RootEntry) -> Result<Conformed, StageError> {
        let mut found = Conformed::default();
        let (made, live) = (DirCursor::new(dir.reopen()?), DirCursor::new(self.live.reopen()?));
        let mut trees = Pair { made, live };
        let first = Next {
            path: TreePath::root(),
            object: &root.object,
            metadata: &root.metadata,
            is_new: dir.names()?.next().is_none(),
            was: self.was.as_ref().map(|was| Was { object: was.root.object, metadata: was.root.metadata }),
        };
        let mut way = vec![self.enter(first, &mut trees)?];
        while let Some(entered) = way.last_mut() {
            match self.go_on(entered, &mut trees, &mut found)? {
                Some(below) => way.push(below),
                None => drop(way.pop()),
            }
        }
        Ok(found)
    }

    /// Enters a directory and removes what the manifest does not have.
    fn enter(&self, next: Next<'_>, trees: &mut Pair) -> Result<Entered, StageError> {
        let Next { path, object, metadata, is_new, was } = next;
        let manifest = self.trees.record.directory(object)?;
        let dir = trees.made.at(&path)?;
        let has_live = trees.live.at(&path).is_ok();
        let same_metadata = was.is_some_and(|was| was.metadata == *metadata);
        let was = self.unchanged(&path, dir, was)?;
        let is_whole = match (&was, self.since()) {
            (Some(was), Some(since)) => {
                !since.touched.names.contains(&path)
                    // The root of a retired tree has another owner and mode, which keep everybody out.
                    && !path.is_root()
                    && same_metadata
                    && same_names(was, &manifest)
            }
            _ => false,
        };
        let mut inodes = Vec::new();
        if !is_whole {
            if !is_new {
                dir.make_writable()?;
                self.remove_strangers(dir, &manifest)?;
            }
            inodes = self.trees.record.inodes(&path)?.unwrap_or_default();
        }
        let (object, metadata) = (*object, *metadata);
        Ok(Entered { path, object, metadata, manifest, was, is_whole, is_new, has_live, inodes, next: 0 })
    }

    /// Continues in a directory and returns the next subdirectory. `None`: the directory is done and has its
    /// metadata.
    fn go_on(
        &self,
        entered: &mut Entered,
        trees: &mut Pair,
        found: &mut Conformed,
    ) -> Result<Option<Entered>, StageError> {
        let manifest = entered.manifest.clone();
        let live = match entered.has_live {
            true => Some(&**trees.live.at(&entered.path)?),
            false => None,
        };
        let dir = &**trees.made.at(&entered.path)?;
        let place = Place { path: &entered.path, dir, live, is_new: entered.is_new };
        while let Some(entry) = manifest.entries().get(entered.next) {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(StageError::Cancelled);
            }
            let index = entered.next;
            entered.next += 1;
            let Kind::Directory { object, .. } = &entry.kind else {
                if !entered.is_whole {
                    let inode = entered.inodes.get(index).copied().filter(|inode| *inode != 0);
                    self.leaf(&place, entry, (&entered.object, index), inode, found)?;
                }
                continue;
            };
            let path = join(&entered.path, entry)?;
            let is_new = !entered.is_whole && self.child(&place, entry)?;
            let was = entered.was.as_ref().filter(|_| !is_new);
            let was = was.and_then(|was| Was::of(was.get(&entry.name)?));
            let next = Next { path, object, metadata: &entry.metadata, is_new, was };
            return self.enter(next, trees).map(Some);
        }
        // The root gets its metadata when the tree is activated.
        if !entered.is_whole && !entered.path.is_root() {
            dir.set_own_metadata(&entered.metadata, self.trees.owners)?;
        }
        Ok(None)
    }

    fn since(&self) -> Option<&Since> {
        self.was.as_ref()?.since.as_ref()
    }

    /// The former manifest of a directory, when no name in it has changed since.
    fn unchanged(
        &self,
        path: &TreePath,
        dir: &Dir,
        was: Option<Was>,
    ) -> Result<Option<Arc<Directory>>, StageError> {
        let (Some(was), Some(since)) = (was, self.since()) else { return Ok(None) };
        if since.touched.remade.contains(path) {
            return Ok(None);
        }
        let stat = dir.stat_self()?;
        if !path.is_root() && stat.ctime > since.finished {
            return Ok(None);
        }
        if stat.mtime != was.metadata.mtime
            || !path.is_root() && !self.trees.owners.agree(&stat, &was.metadata)
        {
            return Ok(None);
        }
        match self.trees.record.directory(&was.object) {
            Ok(directory) => Ok(Some(directory)),
            Err(RecordError::Unknown { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn remove_strangers(&self, dir: &Dir, manifest: &Directory) -> Result<(), StageError> {
        // Some file systems skip names in a listing while others are being removed, so the directory is
        // listed twice.
        for _ in 0..2 {
            let mut removed = false;
            for listed in dir.names()? {
                let listed = listed?;
                let name = Component::new(&listed.name).ok();
                if name.as_ref().is_some_and(|name| manifest.get(name).is_some()) {
                    continue;
                }
                self.trees.layout.remove(dir, &listed.name)?;
                removed = true;
            }
            if !removed {
                break;
            }
        }
        Ok(())
    }

    /// Makes sure that a directory of this name exists. Returns whether it was just created.
    fn child(&self, place: &Place<'_>, entry: &Entry) -> Result<bool, StageError> {
        let name = entry.name.as_bytes();
        if !place.is_new {
            match place.dir.stat(name)? {
                Some(stat) if stat.kind == FileType::Directory => return Ok(false),
                Some(_) => drop(place.dir.unlink(name)?),
                None => {}
            }
        }
        place.dir.make_dir(name)?;
        Ok(true)
    }

    fn leaf(
        &self,
        place: &Place<'_>,
        entry: &Entry,
        (object, index): (&ObjectHash, usize),
        inode: Option<u64>,
        found: &mut Conformed,
    ) -> Result<(), StageError> {
        let name = entry.name.as_bytes();
        let distrusted = match self.distrusted {
            Some(distrusted) => distrusted.contains(&join(place.path, entry)?),
            None => false,
        };
        let is_right = |stat: &Stat| {
            inode == Some(stat.inode) && !distrusted && looks_like(entry, stat, self.trees.owners)
        };
        let live_is_right = || match place.live {
            Some(live) => match live.stat(name) {
                // A foreign directory, mounted or moved over the one that was activated.
                Err(e) if e.is_denied() => Ok(false),
                other => Ok::<_, DiskError>(other?.as_ref().is_some_and(is_right)),
            },
            None => Ok(false),
        };
        if !place.is_new {
            let there = place.dir.stat(name)?;
            // Healing hashed only the live files, so a file counts only while the live tree has the same
            // inode.
            if there.as_ref().is_some_and(is_right) && (self.distrusted.is_none() || live_is_right()?) {
                return Ok(());
            }
            if there.is_some() {
                self.trees.layout.remove(place.dir, name)?;
            }
        }
        if let Some(live) = place.live
            && live_is_right()?
        {
            live.link(name, place.dir, name)?;
        } else {
            found.missing.add(place.path, object, index);
        }
        Ok(())
    }
}

/// Whether two directories have the same names, files and symlinks. Subdirectories may differ in their
/// contents.
fn same_names(was: &Directory, now: &Directory) -> bool {
    let same = |(was, now): (&Entry, &Entry)| {
        was == now || (was.name == now.name && was.is_directory() && now.is_directory())
    };
    was.entries().len() == now.entries().len() && was.entries().iter().zip(now.entries()).all(same)
}

fn join(path: &TreePath, entry: &Entry) -> Result<TreePath, StageError> {
    path.join(&entry.name).map_err(|source| StageError::Path { source })
}
