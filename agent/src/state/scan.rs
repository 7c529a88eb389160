//! Builds the manifest of a tree on disk after its record was lost.

use syncd_shared::directory::Page;
use syncd_shared::{
    Component, Directory, Entry, Kind, Metadata, ObjectHash, RootEntry, Timestamp, Totals, TreePath,
};

use crate::state::cursor::DirCursor;
use crate::state::disk::{Dir, DiskError, Stat};
use crate::state::hashing::hash_file;
use crate::state::layout::Layout;
use crate::state::record::{InodeChanges, Leaf, Record, RecordError};

/// Finds the root that the tree `dir` has exactly. If it has one of them, puts its manifest and inodes into
/// the record, durably. Reads the whole tree, once.
pub(crate) fn prove(
    record: &Record,
    layout: &Layout,
    dir: Dir,
    roots: &[RootEntry],
) -> Result<Option<usize>, RecordError> {
    let (scan, proven) = Scan::find(layout, dir, roots);
    if proven.is_some() {
        scan.keep_manifest(record)?;
        scan.keep_inodes(record)?;
    }
    Ok(proven)
}

/// Likewise, for one root and a tree that is not live: the record has inodes of the live tree alone.
pub(crate) fn prove_not_live(
    record: &Record,
    layout: &Layout,
    dir: Dir,
    root: &RootEntry,
) -> Result<bool, RecordError> {
    let (scan, proven) = Scan::find(layout, dir, std::slice::from_ref(root));
    if proven.is_some() {
        scan.keep_manifest(record)?;
    }
    Ok(proven.is_some())
}

/// Manifest of a tree on disk, as far as it was read.
struct Scan<'a> {
    layout: &'a Layout,
    objects: Vec<(ObjectHash, Vec<u8>)>,
    inodes: Vec<(Leaf, Vec<u64>)>,
}

/// Reason why a tree on disk has no manifest.
#[derive(Debug, thiserror::Error)]
enum ScanError {
    #[error("read the tree")]
    Disk(#[from] DiskError),
    #[error("read a file")]
    Read(#[from] std::io::Error),
    #[error("a name or path that no manifest has")]
    Path(#[from] syncd_shared::tree_path::TreePathError),
    #[error("a name that is no file, directory or symlink")]
    Kind,
    #[error("more names than the {expected} that were signed")]
    Surplus { expected: u64 },
}

/// A directory being read.
struct Level {
    path: TreePath,
    /// Entry in the parent directory; not used for the root.
    name: Option<Component>,
    metadata: Metadata,
    /// Names still to be read.
    names: Vec<Component>,
    /// Entries read so far, with their inode numbers.
    found: Vec<(Entry, u64)>,
}

impl<'a> Scan<'a> {
    /// Reads the tree `dir`, and finds which of the roots it has exactly.
    fn find(layout: &'a Layout, dir: Dir, roots: &[RootEntry]) -> (Self, Option<usize>) {
        let mut scan = Self { layout, objects: Vec::new(), inodes: Vec::new() };
        let most = roots.iter().map(|root| root.totals.entries).max().unwrap_or(0);
        let object = scan.tree(dir, most).ok();
        let proven = roots.iter().position(|root| Some(root.object) == object);
        (scan, proven)
    }

    /// Hashes a tree that was signed with `expected` names. Stops as soon as there are more, because then it
    /// is another tree.
    fn tree(&mut self, root: Dir, expected: u64) -> Result<ObjectHash, ScanError> {
        let metadata = metadata_of(&root.stat_self()?);
        let (mut dirs, mut left) = (DirCursor::new(root), expected);
        let mut list = |dir: &Dir| {
            let mut names = Vec::new();
            for listed in dir.names()? {
                left = left.checked_sub(1).ok_or(ScanError::Surplus { expected })?;
                names.push(Component::new(&listed?.name)?);
            }
            Ok::<_, ScanError>(names)
        };
        let names = list(dirs.at(&TreePath::root())?)?;
        let root = Level { path: TreePath::root(), name: None, metadata, names, found: Vec::new() };
        let mut way = vec![root];
        loop {
            let level = way.last_mut().ok_or(ScanError::Kind)?;
            if let Some(name) = level.names.pop() {
                let dir = dirs.at(&level.path)?;
                let stat = dir.stat(name.as_bytes())?.ok_or(ScanError::Kind)?;
                if stat.kind == rustix::fs::FileType::Directory {
                    let (path, metadata) = (level.path.join(&name)?, metadata_of(&stat));
                    let names = list(dirs.at(&path)?)?;
                    way.push(Level { path, name: Some(name), metadata, names, found: Vec::new() });
                } else {
                    let kind = leaf(self.layout, dir, name.as_bytes(), &stat)?;
                    level.found.push((Entry { name, metadata: metadata_of(&stat), kind }, stat.inode));
                }
            } else if let Some(Level { path, name, metadata, found, .. }) = way.pop() {
                let (object, totals) = self.directory(path, found)?;
                let (Some(above), Some(name)) = (way.last_mut(), name) else { return Ok(object) };
                let kind = Kind::Directory { object, totals };
                above.found.push((Entry { name, metadata, kind }, 0));
            }
        }
    }

    /// Stores a directory with all its entries.
    fn directory(
        &mut self,
        path: TreePath,
        mut found: Vec<(Entry, u64)>,
    ) -> Result<(ObjectHash, Totals), ScanError> {
        found.sort_by(|a, b| a.0.name.cmp(&b.0.name));
        let (entries, inodes): (Vec<_>, Vec<_>) = found.into_iter().unzip();
        let directory = Directory::new(entries).map_err(|_| ScanError::Kind)?;
        let totals = directory.totals().ok_or(ScanError::Kind)?;
        let built = directory.build();
        let mut inodes = inodes.as_slice();
        for (page, bytes) in built.pages {
            let names = Page::decode(&bytes).map_or(0, |page| page.entries().len());
            if let Some((own, rest)) = inodes.split_at_checked(names).filter(|_| names > 0) {
                self.inodes.push((Leaf { path: path.clone(), page }, own.to_vec()));
                inodes = rest;
            }
            self.objects.push((page, bytes));
        }
        Ok((built.root, totals))
    }

    fn keep_manifest(&self, record: &Record) -> Result<(), RecordError> {
        record.put_directories(&self.objects, false)
    }

    fn keep_inodes(self, record: &Record) -> Result<(), RecordError> {
        let inodes = InodeChanges { put: self.inodes, clear: true, ..InodeChanges::default() };
        record.set_inodes(&inodes)
    }
}

fn metadata_of(stat: &Stat) -> Metadata {
    let mode = if stat.kind == rustix::fs::FileType::Symlink { 0o777 } else { stat.mode as u16 };
    Metadata { mode, uid: stat.uid, gid: stat.gid, mtime: stat.mtime }
}

fn leaf(layout: &Layout, dir: &Dir, name: &[u8], stat: &Stat) -> Result<Kind, ScanError> {
    match stat.kind {
        rustix::fs::FileType::RegularFile => {
            let content = hash_file(&dir.open_file(name)?)?;
            Ok(Kind::File { content, size: stat.size })
        }
        rustix::fs::FileType::Symlink => {
            let target = dir.read_link(name)?;
            // No link of the content tree has the time 0 and leads here.
            let collected = layout.collected_at(&target).filter(|_| stat.mtime == Timestamp::default());
            Ok(collected.map_or(Kind::Symlink { target: target.into() }, |name| Kind::Collected { name }))
        }
        _ => Err(ScanError::Kind),
    }
}
