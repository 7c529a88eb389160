//! Makes a directory on disk, whatever is in it, a copy of the live tree by hard links.
//!
//! An empty directory becomes a farm of links, a retired tree or what a crash left becomes a spare. Every name is
//! looked at: what has not the inode, size and time that the live tree was activated with is replaced, what does not
//! belong there goes. So nothing that was planted, edited or half built comes back to life. Cost follows the tree: off
//! the path of a commit, except where a spare is missing.
//!
//! A retired tree of which is known what has changed since ([`crate::steps`]) is as good as a spare, which is not looked at
//! again either: where a directory is none of those, and was not changed since the tree became live, no name in it was, by
//! nobody, and only directories below are looked at. The cost follows the directories.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::FileType;
use syncd_shared::diff::DirectorySource;
use syncd_shared::manifest_cursor::ManifestCursor;
use syncd_shared::{Component, Directory, Entry, Kind, Metadata, ObjectHash, RootEntry, Timestamp, TreePath};

use crate::disk::{Dir, DiskError, Owners, Stat};
use crate::layout::Layout;
use crate::record::{Record, RecordError};
use crate::stage::StageError;
use crate::stage::cursor::looks_like;
use crate::stage::holes::Holes;
use crate::steps::Touched;

/// What was found on the way.
#[derive(Debug, Default)]
pub(crate) struct Conformed {
    /// Files and symlinks that could not be linked, because the live tree itself no longer is what was activated.
    pub holes: Holes,
    /// Names that had to be replaced, removed or made in a retired tree though the manifests don't say so; not what is below
    /// a new directory.
    pub drift: Vec<TreePath>,
}

pub(crate) struct Conform<'a> {
    pub layout: &'a Layout,
    pub record: &'a Record,
    pub owners: Owners,
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

/// The manifests of a retired tree and of the live one.
struct Manifests<'a> {
    was: ManifestCursor<'a, Record>,
    now: ManifestCursor<'a, Record>,
}

/// What is found on the way, and what explains it.
struct Findings<'a> {
    conformed: Conformed,
    /// `None`: nothing is to be explained.
    manifests: Option<Manifests<'a>>,
}

impl Findings<'_> {
    /// A name was replaced, removed or made.
    fn replaced(&mut self, path: TreePath) {
        if let Some(Manifests { was, now }) = &mut self.manifests
            && let (Ok(was), Ok(now)) = (was.entry(&path), now.entry(&path))
            && was == now
        {
            self.conformed.drift.push(path);
        }
    }
}

/// A directory that is made, and its counterpart in the live tree.
struct Place<'a> {
    path: &'a TreePath,
    dir: &'a Dir,
    /// `None`: it is gone from the live tree, with all that was in it.
    live: Option<&'a Dir>,
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
        let manifests = self.was.as_ref().and_then(|retired| {
            let was = ManifestCursor::new(self.record, &retired.root).ok()?;
            Some(Manifests { was, now: ManifestCursor::new(self.record, root).ok()? })
        });
        let mut found = Findings { conformed: Conformed::default(), manifests };
        let path = &TreePath::root();
        let was = self.was.as_ref().map(|was| Was { object: was.root.object, metadata: was.root.metadata });
        let place = Place { path, dir, live: Some(&self.live), is_new: dir.list()?.is_empty(), was };
        self.directory(&place, &root.object, &root.metadata, &mut found)?;
        Ok(found.conformed)
    }

    /// The directory, with its metadata.
    fn directory(
        &self,
        place: &Place<'_>,
        object: &ObjectHash,
        metadata: &Metadata,
        found: &mut Findings<'_>,
    ) -> Result<(), StageError> {
        let manifest = self.record.directory(object)?;
        let was = self.unchanged(place)?;
        if let (Some(was), Some(since)) = (&was, self.since())
            && !since.touched.names.contains(place.path)
            // Its own entry in generations/ came and went.
            && !place.path.is_root()
            && place.was.is_some_and(|was| was.metadata == *metadata)
            && same_names(was, &manifest)
        {
            return self.below(place, was, &manifest, found);
        }
        if !place.is_new {
            place.dir.make_writable()?;
            self.remove_strangers(place, &manifest, found)?;
        }
        let inodes = self.record.inodes(place.path)?.unwrap_or_default();
        for (index, entry) in manifest.entries().iter().enumerate() {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(StageError::Cancelled);
            }
            match &entry.kind {
                Kind::Directory { object, .. } => {
                    let path = &join(place.path, entry)?;
                    let (child, is_new) = self.child(place, path, entry, found)?;
                    let live = place.live.and_then(|live| live.open_dir(entry.name.as_bytes()).ok());
                    let was = was.as_ref().filter(|_| !is_new).and_then(|was| Was::of(was.get(&entry.name)?));
                    let below = Place { path, dir: &child, live: live.as_ref(), is_new, was };
                    self.directory(&below, object, &entry.metadata, found)?;
                }
                Kind::File { .. } | Kind::Symlink { .. } => {
                    let inode = inodes.get(index).copied().filter(|inode| *inode != 0);
                    self.leaf(place, entry, (object, index), inode, found)?;
                }
            }
        }
        Ok(place.dir.set_own_metadata(metadata, self.owners)?)
    }

    fn since(&self) -> Option<&Since> {
        self.was.as_ref()?.since.as_ref()
    }

    /// What the directory was, where no name in it was changed since.
    fn unchanged(&self, place: &Place<'_>) -> Result<Option<Arc<Directory>>, StageError> {
        let (Some(was), Some(since)) = (place.was, self.since()) else { return Ok(None) };
        if since.touched.remade.contains(place.path) {
            return Ok(None);
        }
        let stat = place.dir.stat_self()?;
        if !place.path.is_root() && stat.ctime > since.finished {
            return Ok(None);
        }
        if stat.mtime != was.metadata.mtime || !self.owners.agree(&stat, &was.metadata) {
            return Ok(None);
        }
        match self.record.directory(&was.object) {
            Ok(directory) => Ok(Some(directory)),
            Err(RecordError::Unknown { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The directories in one whose own names are as they should be.
    fn below(
        &self,
        place: &Place<'_>,
        was: &Directory,
        manifest: &Directory,
        found: &mut Findings<'_>,
    ) -> Result<(), StageError> {
        for (entry, was) in manifest.entries().iter().zip(was.entries()) {
            let Kind::Directory { object, .. } = &entry.kind else { continue };
            if self.cancel.load(Ordering::Relaxed) {
                return Err(StageError::Cancelled);
            }
            let path = &join(place.path, entry)?;
            let child = place.dir.open_dir(entry.name.as_bytes())?;
            let live = place.live.and_then(|live| live.open_dir(entry.name.as_bytes()).ok());
            let below = Place { path, dir: &child, live: live.as_ref(), is_new: false, was: Was::of(was) };
            self.directory(&below, object, &entry.metadata, found)?;
        }
        Ok(())
    }

    fn remove_strangers(
        &self,
        place: &Place<'_>,
        manifest: &Directory,
        found: &mut Findings<'_>,
    ) -> Result<(), StageError> {
        for listed in place.dir.list()? {
            let name = Component::new(&listed.name).ok();
            if name.as_ref().is_some_and(|name| manifest.get(name).is_some()) {
                continue;
            }
            if let Some(path) = name.and_then(|name| place.path.join(&name).ok()) {
                found.replaced(path);
            }
            self.remove(place.dir, &listed.name)?;
        }
        Ok(())
    }

    fn remove(&self, dir: &Dir, name: &[u8]) -> Result<(), StageError> {
        match dir.stat(name)? {
            Some(stat) if stat.kind == FileType::Directory => self.layout.discard(dir, name)?,
            Some(_) => drop(dir.unlink(name)?),
            None => {}
        }
        Ok(())
    }

    /// The directory of this name, and whether it was just made.
    fn child(
        &self,
        place: &Place<'_>,
        path: &TreePath,
        entry: &Entry,
        found: &mut Findings<'_>,
    ) -> Result<(Dir, bool), StageError> {
        let name = entry.name.as_bytes();
        if !place.is_new {
            match place.dir.stat(name)? {
                Some(stat) if stat.kind == FileType::Directory => {
                    return Ok((place.dir.open_dir(name)?, false));
                }
                Some(_) => drop(place.dir.unlink(name)?),
                None => {}
            }
            found.replaced(path.clone());
        }
        Ok((place.dir.create_dir(name, 0o700)?, true))
    }

    fn leaf(
        &self,
        place: &Place<'_>,
        entry: &Entry,
        (object, index): (&ObjectHash, usize),
        inode: Option<u64>,
        found: &mut Findings<'_>,
    ) -> Result<(), StageError> {
        let name = entry.name.as_bytes();
        let distrusted = match self.distrusted {
            Some(distrusted) => distrusted.contains(&join(place.path, entry)?),
            None => false,
        };
        let is_right =
            |stat: &Stat| inode == Some(stat.inode) && !distrusted && looks_like(entry, stat, self.owners);
        let live_is_right = || match place.live {
            Some(live) => Ok::<_, DiskError>(live.stat(name)?.as_ref().is_some_and(is_right)),
            None => Ok(false),
        };
        if !place.is_new {
            let there = place.dir.stat(name)?;
            // What is to be healed was hashed where it is live, and nowhere else.
            if there.as_ref().is_some_and(is_right) && (self.distrusted.is_none() || live_is_right()?) {
                return Ok(());
            }
            found.replaced(join(place.path, entry)?);
            if there.is_some() {
                self.remove(place.dir, name)?;
            }
        }
        if let Some(live) = place.live
            && live_is_right()?
        {
            live.link(name, place.dir, name)?;
        } else {
            found.conformed.holes.add(place.path, object, index);
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
