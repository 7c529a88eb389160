//! Makes a directory a copy of the live tree by hard links, whatever the directory contains.
//!
//! An empty directory becomes a farm of links. A retired tree, or a tree that a crash left half built,
//! becomes a spare. Every name is checked. An entry that differs in inode, size or time from what was
//! activated is replaced, and an entry that the manifest does not have is removed. No planted, edited or
//! half-built file becomes live again. Files that visitors wrote are moved away before
//! (`crate::replica::inspect`). The cost follows the tree, so this runs off the path of a commit, except
//! when no spare is ready.
//!
//! [`crate::state::history`] may know what has changed since a tree was retired. Then a directory whose ctime
//! is older than the retirement still has its names, and only the changed ones are checked. The cost follows
//! the changed names and the number of directories. The root was opened to nobody and back, so that its ctime
//! proves nothing: all of its names are checked.
//!
//! A directory that the manifest does not have is moved away whole and never read. Memory, stack and
//! descriptors therefore do not grow with what somebody put into a tree.

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::FileType;
use syncd_shared::diff::DirectorySource;
use syncd_shared::directory::{Cursor, Pairs};
use syncd_shared::{Component, Entry, Kind, Metadata, ObjectHash, RootEntry, TreePath};

use crate::build::StageError;
use crate::build::missing_entries::MissingEntries;
use crate::state::cursor::{DirCursor, looks_like};
use crate::state::disk::{Dir, DiskError, Stat};
use crate::state::history::Since;
use crate::state::record::{Leaf, Record, RecordError};
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
struct Entered<'r> {
    path: TreePath,
    metadata: Metadata,
    /// The next entry of its manifest.
    next: Cursor<&'r Record>,
    /// Former object of the directory, when no name in it has changed since.
    was: Option<ObjectHash>,
    /// Only subdirectories are visited: all other names are right.
    is_filled: bool,
    /// Its metadata is right as well.
    is_whole: bool,
    is_new: bool,
    has_live: bool,
    /// Inode numbers of the entries of a page in the live tree.
    inodes: Option<(ObjectHash, Vec<u64>)>,
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
        let mut way = vec![self.enter(first, &mut trees, &mut found)?];
        while let Some(entered) = way.last_mut() {
            match self.go_on(entered, &mut trees, &mut found)? {
                Some(below) => way.push(below),
                None => drop(way.pop()),
            }
        }
        Ok(found)
    }

    /// Enters a directory and removes what the manifest does not have.
    fn enter<'s>(
        &'s self,
        next: Next<'_>,
        trees: &mut Pair,
        found: &mut Conformed,
    ) -> Result<Entered<'s>, StageError> {
        let Next { path, object, metadata, is_new, was } = next;
        let record: &'s Record = &self.trees.record;
        let has_live = trees.live.at(&path).is_ok();
        let dir = trees.made.at(&path)?;
        let same_metadata = was.is_some_and(|was| was.metadata == *metadata);
        let was = self.unchanged(&path, dir, was)?;
        // The root of a retired tree has another owner and mode, which keep everybody out.
        let changed = match was.filter(|_| !path.is_root()) {
            Some(was) => self.changed_names(&path, was, *object)?,
            None => None,
        };
        let is_whole = same_metadata && changed.as_ref().is_some_and(BTreeSet::is_empty);
        if !is_whole && !is_new {
            dir.make_writable()?;
            if changed.is_none() {
                self.remove_strangers(dir, object)?;
            }
        }
        let next = Cursor::new(record, Some(*object))?;
        let is_filled = changed.is_some();
        let mut entered = Entered {
            path,
            metadata: *metadata,
            next,
            was,
            is_filled,
            is_whole,
            is_new,
            has_live,
            inodes: None,
        };
        if let Some(changed) = changed {
            self.put_names(&mut entered, *object, &changed, trees, found)?;
        }
        Ok(entered)
    }

    /// Names that may be wrong in a directory that is otherwise as `was` says; `None`: not known.
    fn changed_names(
        &self,
        path: &TreePath,
        was: ObjectHash,
        object: ObjectHash,
    ) -> Result<Option<BTreeSet<Component>>, StageError> {
        let Some(since) = self.since() else { return Ok(None) };
        let mut changed = match since.touched.names.get(path) {
            None => BTreeSet::new(),
            Some(Some(names)) => names.clone(),
            Some(None) => return Ok(None),
        };
        let mut pairs = Pairs::new(&*self.trees.record, Some(was), Some(object))?;
        while let Some((before, after)) = pairs.next_pair()? {
            let is_directory = |entry: &Option<Entry>| entry.as_ref().is_some_and(Entry::is_directory);
            if !(is_directory(&before) && is_directory(&after)) {
                changed.extend(before.or(after).map(|entry| entry.name));
            }
        }
        Ok(Some(changed))
    }

    /// Makes these names of a directory right, except for what is below subdirectories.
    fn put_names(
        &self,
        entered: &mut Entered<'_>,
        object: ObjectHash,
        names: &BTreeSet<Component>,
        trees: &mut Pair,
        found: &mut Conformed,
    ) -> Result<(), StageError> {
        let live = match entered.has_live {
            true => Some(&**trees.live.at(&entered.path)?),
            false => None,
        };
        let dir = &**trees.made.at(&entered.path)?;
        let place = Place { path: &entered.path, dir, live, is_new: false };
        let mut cursor = Cursor::new(&*self.trees.record, Some(object))?;
        for name in names {
            cursor.seek(name)?;
            let (page, index, entry) = match cursor.leaf()? {
                Some((page, leaf, index)) => (page, index, leaf.entries().get(index).cloned()),
                None => (object, 0, None),
            };
            match entry.filter(|entry| entry.name == *name) {
                Some(entry) if entry.is_directory() => drop(self.child(&place, &entry)?),
                Some(entry) => {
                    let inode = self.inode(&place, &mut entered.inodes, page, index)?;
                    self.leaf(&place, &entry, (&page, index), inode, found)?;
                }
                None if dir.stat(name.as_bytes())?.is_some() => {
                    self.trees.layout.remove(dir, name.as_bytes())?;
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Inode number that an entry has in the live tree; `None`: unknown.
    fn inode(
        &self,
        place: &Place<'_>,
        inodes: &mut Option<(ObjectHash, Vec<u64>)>,
        page: ObjectHash,
        index: usize,
    ) -> Result<Option<u64>, StageError> {
        if inodes.as_ref().is_none_or(|(known, _)| *known != page) {
            let list = self.trees.record.inodes(&Leaf { path: place.path.clone(), page })?;
            *inodes = Some((page, list.unwrap_or_default()));
        }
        let list = inodes.as_ref().map(|(_, list)| list.as_slice()).unwrap_or_default();
        Ok(list.get(index).copied().filter(|inode| *inode != 0))
    }

    /// Continues in a directory and returns the next subdirectory. `None`: the directory is done and has its
    /// metadata.
    fn go_on<'s>(
        &'s self,
        entered: &mut Entered<'s>,
        trees: &mut Pair,
        found: &mut Conformed,
    ) -> Result<Option<Entered<'s>>, StageError> {
        let live = match entered.has_live {
            true => Some(&**trees.live.at(&entered.path)?),
            false => None,
        };
        let dir = &**trees.made.at(&entered.path)?;
        let place = Place { path: &entered.path, dir, live, is_new: entered.is_new };
        loop {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(StageError::Cancelled);
            }
            if entered.is_filled {
                entered.next.directory()?;
            }
            let Some((page, leaf, index)) = entered.next.leaf()? else { break };
            let leaf = leaf.clone();
            entered.next.skip();
            let Some(entry) = leaf.entries().get(index) else { break };
            let Kind::Directory { object, .. } = &entry.kind else {
                let inode = self.inode(&place, &mut entered.inodes, page, index)?;
                self.leaf(&place, entry, (&page, index), inode, found)?;
                continue;
            };
            let path = join(&entered.path, entry)?;
            let is_new = !entered.is_filled && self.child(&place, entry)?;
            let was = match entered.was.filter(|_| !is_new) {
                Some(was) => self.trees.record.entry(&was, &entry.name)?.as_ref().and_then(Was::of),
                None => None,
            };
            let next = Next { path, object, metadata: &entry.metadata, is_new, was };
            return self.enter(next, trees, found).map(Some);
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

    /// The former object of a directory, when no name in it has changed since.
    fn unchanged(
        &self,
        path: &TreePath,
        dir: &Dir,
        was: Option<Was>,
    ) -> Result<Option<ObjectHash>, StageError> {
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
        match self.trees.record.page(&was.object) {
            Ok(_) => Ok(Some(was.object)),
            Err(RecordError::Unknown { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn remove_strangers(&self, dir: &Dir, object: &ObjectHash) -> Result<(), StageError> {
        let manifest = self.trees.record.directory(object)?;
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
        (page, index): (&ObjectHash, usize),
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
            found.missing.add(place.path, page, index);
        }
        Ok(())
    }
}

fn join(path: &TreePath, entry: &Entry) -> Result<TreePath, StageError> {
    path.join(&entry.name).map_err(|source| StageError::Path { source })
}
