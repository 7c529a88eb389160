//! Makes a directory on disk, whatever is in it, a copy of the live tree by hard links.
//!
//! An empty directory becomes a farm of links, a retired tree or what a crash left becomes a spare. Every name is
//! looked at: what has not the inode, size and time that the live tree was activated with is replaced, what does not
//! belong there goes. So nothing that was planted, edited or half built comes back to life. Files of visitors were moved
//! away before ([`crate::replica::inspect`]). Cost follows the tree: off the path of a commit, except where a spare is missing.
//!
//! A retired tree of which is known what has changed since ([`crate::state::history`]) is as good as a spare, which is not looked at
//! again either: where a directory is none of those, and was not changed since the tree became live, no name in it was, by
//! nobody, and only directories below are looked at. The cost follows the directories.
//!
//! No directory that the manifest does not have is looked into: it is moved away whole. So neither memory, stack nor
//! descriptors follow what somebody put into a tree.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::FileType;
use syncd_shared::diff::DirectorySource;
use syncd_shared::{Component, Directory, Entry, Kind, Metadata, ObjectHash, RootEntry, Timestamp, TreePath};

use crate::build::StageError;
use crate::build::holes::Holes;
use crate::state::cursor::{DirCursor, looks_like};
use crate::state::disk::{Dir, DiskError, Stat};
use crate::state::history::Touched;
use crate::state::record::RecordError;
use crate::state::trees::Trees;

/// What was found on the way.
#[derive(Debug, Default)]
pub(crate) struct Conformed {
    /// Files and symlinks that could not be linked, because the live tree itself no longer is what was activated.
    pub holes: Holes,
}

pub(crate) struct Conform<'a> {
    pub trees: &'a Trees,
    /// The live tree, where links come from.
    pub live: Dir,
    /// Paths that are not to be linked even if they look right.
    pub distrusted: Option<&'a HashSet<TreePath>>,
    /// What is known of a tree that was retired.
    pub was: Option<Retired>,
    pub cancel: &'a AtomicBool,
}

/// A tree that was live before.
pub(crate) struct Retired {
    /// Its manifest.
    pub root: RootEntry,
    /// What happened since; `None`: not known.
    pub since: Option<Since>,
}

/// What happened since a tree was live.
pub(crate) struct Since {
    /// When this process changed the tree last.
    pub finished: Timestamp,
    /// What activations have changed since.
    pub touched: Touched,
}

/// The tree that is made, and the live tree.
struct Pair {
    made: DirCursor,
    live: DirCursor,
}

/// A directory that is made, and its counterpart in the live tree.
struct Place<'a> {
    path: &'a TreePath,
    dir: &'a Dir,
    /// `None`: it is gone from the live tree, with all that was in it.
    live: Option<&'a Dir>,
    /// It was just made: nothing is in it.
    is_new: bool,
}

/// A directory that is on its way.
struct Entered {
    path: TreePath,
    object: ObjectHash,
    metadata: Metadata,
    manifest: Arc<Directory>,
    /// What the directory was, where no name in it was changed since.
    was: Option<Arc<Directory>>,
    /// Only directories in it are looked at; the directory itself is as it should be.
    is_whole: bool,
    is_new: bool,
    has_live: bool,
    /// Inode numbers of its entries in the live tree.
    inodes: Vec<u64>,
    /// Index of the entry that is next.
    next: usize,
}

/// A directory that comes next.
struct Next<'a> {
    path: TreePath,
    object: &'a ObjectHash,
    metadata: &'a Metadata,
    /// It was just made: nothing is in it.
    is_new: bool,
    /// What it was when the tree was retired.
    was: Option<Was>,
}

/// A directory as a manifest has it.
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
    /// Makes `dir` a copy of `root`, the live tree.
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

    /// Begins with a directory: what the manifest does not have goes.
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
                    // Another owner and mode kept everybody out of it meanwhile.
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

    /// Goes on in a directory up to the next one in it, which is entered. `None`: it is done, with its metadata.
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
        // The root has its own when it is to be live.
        if !entered.is_whole && !entered.path.is_root() {
            dir.set_own_metadata(&entered.metadata, self.trees.owners)?;
        }
        Ok(None)
    }

    fn since(&self) -> Option<&Since> {
        self.was.as_ref()?.since.as_ref()
    }

    /// What a directory was, where no name in it was changed since.
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
        // Not every file system lists all names while some are removed.
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

    /// Makes sure that there is a directory of this name; whether it was just made.
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
                // Somebody else's, in the place of the directory that was activated.
                Err(e) if e.is_denied() => Ok(false),
                other => Ok::<_, DiskError>(other?.as_ref().is_some_and(is_right)),
            },
            None => Ok(false),
        };
        if !place.is_new {
            let there = place.dir.stat(name)?;
            // What is to be healed was hashed where it is live, and nowhere else.
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
            found.holes.add(place.path, object, index);
        }
        Ok(())
    }
}

/// Whether two directories have the same names, files and symlinks; directories may differ in what they have.
fn same_names(was: &Directory, now: &Directory) -> bool {
    let same = |(was, now): (&Entry, &Entry)| {
        was == now || (was.name == now.name && was.is_directory() && now.is_directory())
    };
    was.entries().len() == now.entries().len() && was.entries().iter().zip(now.entries()).all(same)
}

fn join(path: &TreePath, entry: &Entry) -> Result<TreePath, StageError> {
    path.join(&entry.name).map_err(|source| StageError::Path { source })
}
