//! Walks through trees in path order without opening or reading a directory twice.

use std::sync::Arc;

use rustix::fs::FileType;
use syncd_shared::diff::DirectorySource;
use syncd_shared::manifest_cursor::{ManifestCursor, Place};
use syncd_shared::{Component, Directory, Entry, Kind, RootEntry, TreePath};

use crate::state::disk::{Dir, DiskError, Owners, Stat};
use crate::state::record::{Leaf, Record, RecordError};

/// Reason why a held tree could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TreeError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Directories below the root that a cursor keeps open.
const OPEN_MAX: usize = 8;

/// Open directories of a tree: the root, and the last few on the path of the last call. The number of
/// descriptors does not follow the tree's depth.
pub(crate) struct DirCursor {
    root: Arc<Dir>,
    /// Names from the root down, with their directories. Only the last [`OPEN_MAX`] may be open; the others
    /// are `None`.
    stack: Vec<(Component, Option<Arc<Dir>>)>,
    /// Index of the first open directory; the length of `stack` if none is open.
    open_from: usize,
}

impl DirCursor {
    pub fn new(root: Dir) -> Self {
        Self { root: Arc::new(root), stack: Vec::new(), open_from: 0 }
    }

    /// Opens the directory at `path`.
    pub fn at(&mut self, path: &TreePath) -> Result<&Arc<Dir>, DiskError> {
        let mut depth = 0;
        for name in path.components() {
            if self.stack.get(depth).is_none_or(|(there, _)| *there != name) {
                self.truncate(depth);
                let dir = Arc::new(self.last()?.open_dir(name.as_bytes())?);
                self.stack.push((name, Some(dir)));
                if self.stack.len() - self.open_from > OPEN_MAX {
                    self.stack[self.open_from].1 = None;
                    self.open_from += 1;
                }
            }
            depth += 1;
        }
        self.truncate(depth);
        self.last()
    }

    fn truncate(&mut self, depth: usize) {
        self.stack.truncate(depth);
        self.open_from = self.open_from.min(depth);
    }

    /// The directory at the end of the stack. Opens it again if it was closed to save descriptors.
    fn last(&mut self) -> Result<&Arc<Dir>, DiskError> {
        if self.open_from == self.stack.len()
            && let Some(last) = self.stack.len().checked_sub(1)
        {
            let path = self.stack.iter().map(|(name, _)| name.as_bytes()).collect::<Vec<_>>().join(&b'/');
            self.stack[last].1 = Some(Arc::new(self.root.open_dir(&path)?));
            self.open_from = last;
        }
        Ok(self.stack.last().and_then(|(_, dir)| dir.as_ref()).unwrap_or(&self.root))
    }

    /// Closes all directories. Needed after a directory was moved or replaced.
    pub fn reset(&mut self) {
        self.truncate(0);
    }
}

/// Whether a file on disk may be what the entry describes, judged by its metadata.
pub(crate) fn looks_like(entry: &Entry, stat: &Stat, owners: Owners) -> bool {
    let kind = match &entry.kind {
        Kind::File { size, .. } => stat.kind == FileType::RegularFile && stat.size == *size,
        Kind::Symlink { target } => stat.kind == FileType::Symlink && stat.size == target.len() as u64,
        // Callers that need certainty compare the target, which depends on ROOT.
        Kind::Collected { .. } => stat.kind == FileType::Symlink,
        Kind::Directory { .. } => false,
    };
    kind && stat.mtime == entry.metadata.mtime && owners.agree(stat, &entry.metadata)
}

/// The live tree as a source of links: its files, their manifest, and the inodes that were activated.
pub(crate) struct LiveTree<'a> {
    record: &'a Record,
    dirs: DirCursor,
    manifest: ManifestCursor<'a, Record>,
    owners: Owners,
    /// Inode numbers of the page of the last path.
    current: Option<(Leaf, Vec<u64>)>,
}

impl<'a> LiveTree<'a> {
    pub fn open(record: &'a Record, root: &RootEntry, dir: Dir, owners: Owners) -> Result<Self, RecordError> {
        let manifest = ManifestCursor::new(record, root)?;
        Ok(Self { record, dirs: DirCursor::new(dir), manifest, owners, current: None })
    }

    /// Manifest of the directory at `path`; `None`: the live tree has no such directory.
    pub fn directory(&mut self, path: &TreePath) -> Result<Option<Arc<Directory>>, RecordError> {
        self.manifest.object(path)?.map(|object| self.record.directory(&object)).transpose()
    }

    /// Inode activated at `path`; `None`: unknown.
    pub fn inode(&mut self, path: &TreePath) -> Result<Option<u64>, RecordError> {
        let Some(place) = self.manifest.place(path)? else { return Ok(None) };
        self.inode_at(path, &place)
    }

    /// Whether `entry` was activated at `path`, with this inode.
    pub fn has(&mut self, path: &TreePath, entry: &Entry, inode: u64) -> Result<bool, RecordError> {
        let Some(place) = self.manifest.place(path)? else { return Ok(false) };
        Ok(place.leaf.entries().get(place.index) == Some(entry)
            && self.inode_at(path, &place)? == Some(inode))
    }

    fn inode_at(&mut self, path: &TreePath, place: &Place) -> Result<Option<u64>, RecordError> {
        let Some(parent) = path.parent() else { return Ok(None) };
        let leaf = Leaf { path: parent, page: place.page };
        if self.current.as_ref().is_none_or(|(at, _)| *at != leaf) {
            let inodes = self.record.inodes(&leaf)?.unwrap_or_default();
            self.current = Some((leaf, inodes));
        }
        let inodes = self.current.as_ref().map(|(_, inodes)| inodes.as_slice()).unwrap_or_default();
        Ok(inodes.get(place.index).copied().filter(|inode| *inode != 0))
    }

    /// Links the file or symlink at `path` into `to` if it is still what was activated. Returns its inode
    /// number.
    pub fn link(
        &mut self,
        path: &TreePath,
        entry: &Entry,
        to: &Dir,
        name: &[u8],
    ) -> Result<Option<u64>, TreeError> {
        let Some(inode) = self.checked(path, entry)? else { return Ok(None) };
        let Some((parent, own)) = path.split_last() else { return Ok(None) };
        self.dirs.at(&parent)?.link(own.as_bytes(), to, name)?;
        Ok(Some(inode))
    }

    /// Inode of the file or symlink at `path`, if inode, size, time, owner and mode are still as activated.
    pub fn checked(&mut self, path: &TreePath, entry: &Entry) -> Result<Option<u64>, TreeError> {
        let Some((parent, name)) = path.split_last() else { return Ok(None) };
        let Some(inode) = self.inode(path)? else { return Ok(None) };
        let dir = match self.dirs.at(&parent) {
            Ok(dir) => dir,
            Err(_) => return Ok(None),
        };
        let stat = match dir.stat(name.as_bytes()) {
            // A foreign directory in place of the one that was activated.
            Err(e) if e.is_denied() => None,
            other => other?,
        };
        Ok(stat.filter(|s| s.inode == inode && looks_like(entry, s, self.owners)).map(|_| inode))
    }

    /// Opens the directory at `path` for reading.
    pub fn dir(&mut self, path: &TreePath) -> Result<&Dir, DiskError> {
        Ok(&**self.dirs.at(path)?)
    }
}
