//! Makes directory objects of a commit's tree.
//!
//! Contents that the last published commit has at the same path are taken from the base, all others are read.
//! If it is known which paths were touched since then, only these are looked at, and the pages of their
//! directories are edited as after a scan.
//!
//! A collected directory is an entry of its own at its path, in any directory that the commit has there. The
//! commit's own content at that path is not read.

use std::collections::BTreeMap;

use syncd_shared::diff::DirectorySource;
use syncd_shared::directory::{Edits, edit};
use syncd_shared::limits::SYMLINK_TARGET_MAX_BYTES;
use syncd_shared::{
    Component, Directory, Entry, Kind, Metadata, ObjectHash, RootEntry, Timestamp, Totals, TreePath, marks,
};
use tokio_util::sync::CancellationToken;

use super::error::GitError;
use super::repository::{Id, Item, ItemKind, Repository};
use super::times::Touched;
use super::{GitOptions, Lfs, Submodules};
use crate::scan::{ContentWriter, ScanError, ScanOptions, SymlinkPolicy, leaves_tree, tell_contents};
use crate::store::Writer;
use crate::tree_objects::{TreeObjectError, TreeObjects};
use syncd_shared::ignore_rules::{IGNORE_FILE, IgnoreError, IgnoreRules, file_in};

/// Largest file. Objects of git are unpacked in memory.
const FILE_MAX_BYTES: u64 = 2 * 1024 * 1024 * 1024;
/// A pointer of git-lfs is smaller, and begins with this line.
const POINTER_MAX_BYTES: usize = 1024;
const POINTER_MARK: &[u8] = b"version https://git-lfs.github.com/spec/v1\n";

/// The modification times of a tree.
pub(super) enum Times<'a> {
    /// That of the commit, for every path.
    Commit(Timestamp),
    /// One for each path of the tree.
    All(&'a Touched),
    /// Those of the paths that were touched since the base.
    Since(&'a Touched),
}

/// The last published commit's tree, as git and syncd have it.
#[derive(Clone, Copy)]
pub(super) struct Base {
    pub tree: Id,
    pub object: ObjectHash,
}

/// Builds one tree.
pub(super) struct Build<'a> {
    pub repository: &'a Repository,
    pub writer: &'a Writer,
    pub options: &'a GitOptions,
    pub scan: &'a ScanOptions,
    pub cancel: &'a CancellationToken,
    contents: ContentWriter<'a>,
    /// Blobs read, for the log.
    pub files_read: u64,
    pub bytes_read: u64,
}

/// A directory that is being built.
struct Place<'p> {
    path: &'p TreePath,
    rules: IgnoreRules,
    base: Option<Base>,
    /// Times of the names below; `None` with one time for all.
    touched: Option<&'p Touched>,
    fixed: Option<Timestamp>,
    /// Whether only touched names differ from the base.
    partly: bool,
}

struct Made {
    object: ObjectHash,
    totals: Totals,
}

impl<'a> Build<'a> {
    pub(super) fn new(
        repository: &'a Repository,
        writer: &'a Writer,
        options: &'a GitOptions,
        scan: &'a ScanOptions,
        cancel: &'a CancellationToken,
    ) -> Self {
        let contents = ContentWriter::new(writer);
        Self { repository, writer, options, scan, cancel, contents, files_read: 0, bytes_read: 0 }
    }

    /// Brings the store up to `tree`.
    pub(super) fn root(
        &mut self,
        tree: Id,
        base: Option<(Base, Metadata)>,
        times: &Times<'_>,
    ) -> Result<RootEntry, ScanError> {
        let (touched, fixed) = match times {
            Times::Commit(time) => (None, Some(*time)),
            Times::All(touched) | Times::Since(touched) => (Some(*touched), None),
        };
        let mtime = fixed.or(touched.and_then(|touched| touched.time));
        let kept = base.map(|(_, metadata)| metadata.mtime);
        let root = TreePath::root();
        let place = Place {
            path: &root,
            rules: IgnoreRules::default(),
            base: base.map(|(base, _)| base),
            touched,
            fixed,
            partly: matches!(times, Times::Since(_)),
        };
        let Made { object, totals } = self.directory(&place, tree)?;
        let metadata = Metadata { mode: 0o755, uid: 0, gid: 0, mtime: mtime.or(kept).unwrap_or_default() };
        Ok(RootEntry { object, metadata, totals })
    }

    /// Writes the last contents.
    pub(super) fn finish(self) -> Result<(), ScanError> {
        self.contents.finish()
    }

    fn directory(&mut self, place: &Place<'_>, tree: Id) -> Result<Made, ScanError> {
        if self.cancel.is_cancelled() {
            return Err(ScanError::Cancelled);
        }
        let names: BTreeMap<Vec<u8>, Item> = self.repository.tree(tree)?.into_iter().collect();
        let before: BTreeMap<Vec<u8>, Item> = match place.base {
            Some(base) => self.repository.tree(base.tree)?.into_iter().collect(),
            None => BTreeMap::new(),
        };
        let rules = self.rules(place, &names)?;
        let place = Place { rules, ..*place };
        match (place.base, place.touched) {
            (Some(base), Some(touched)) if place.partly => {
                self.edited(&place, base, touched, &names, &before)
            }
            _ => self.whole(&place, &names, &before),
        }
    }

    /// Looks at the touched names. All others are those of the base.
    fn edited(
        &mut self,
        place: &Place<'_>,
        base: Base,
        touched: &Touched,
        names: &BTreeMap<Vec<u8>, Item>,
        before: &BTreeMap<Vec<u8>, Item>,
    ) -> Result<Made, ScanError> {
        let mut edits = Edits::new();
        for name in touched.below.keys() {
            let component = self.component(place.path, name)?;
            let known = self.known(place, &component)?;
            let entry = match names.get(name) {
                Some(item) => {
                    self.entry(place, &component, *item, before.get(name).copied(), known.as_ref())?
                }
                None => self.scan.collected.at(&join(place.path, &component)?).cloned(),
            };
            if entry != known {
                tell_contents(self.writer, place.path, &(known, entry.clone()))?;
                edits.insert(component, entry);
            }
        }
        let failed = failed(place.path);
        let objects = TreeObjects::Writer(self.writer);
        let mut object = base.object;
        if !edits.is_empty() {
            let built = edit(&objects, Some(base.object), &edits).map_err(&failed)?;
            object = self.writer.put_pages(&built)?;
        }
        Ok(Made { object, totals: objects.page(&object).map_err(&failed)?.totals() })
    }

    /// Looks at all names.
    fn whole(
        &mut self,
        place: &Place<'_>,
        names: &BTreeMap<Vec<u8>, Item>,
        before: &BTreeMap<Vec<u8>, Item>,
    ) -> Result<Made, ScanError> {
        let mut known: BTreeMap<Component, Entry> = BTreeMap::new();
        if let Some(base) = place.base {
            let directory = TreeObjects::Writer(self.writer).directory(&base.object);
            let directory = directory.map_err(failed(place.path))?;
            known.extend(directory.entries().iter().map(|entry| (entry.name.clone(), entry.clone())));
        }
        let mut entries = Vec::new();
        for (name, item) in names {
            let component = self.component(place.path, name)?;
            let known = known.remove(&component);
            let entry = self.entry(place, &component, *item, before.get(name).copied(), known.as_ref())?;
            tell_contents(self.writer, place.path, &(known, entry.clone()))?;
            entries.extend(entry);
        }
        let placed = self.scan.collected.in_directory(place.path);
        entries.extend(placed.filter(|entry| !names.contains_key(entry.name.as_bytes())).cloned());
        for (_, gone) in known {
            tell_contents(self.writer, place.path, &(Some(gone), None))?;
        }
        let directory = Directory::new(entries)
            .map_err(|source| ScanError::Duplicate { directory: place.path.clone(), source })?;
        let totals = directory.totals().ok_or_else(|| ScanError::Totals { directory: place.path.clone() })?;
        Ok(Made { object: self.writer.put_directory(&directory)?, totals })
    }

    /// The entry of a name; `None` if it is not published.
    fn entry(
        &mut self,
        place: &Place<'_>,
        name: &Component,
        item: Item,
        before: Option<Item>,
        known: Option<&Entry>,
    ) -> Result<Option<Entry>, ScanError> {
        let path = join(place.path, name)?;
        if let Some(collected) = self.scan.collected.at(&path) {
            tracing::warn!(
                %path,
                "the commit has something in the place of a collected directory, which is not published: remove it \
                 from the repository"
            );
            return Ok(Some(collected.clone()));
        }
        if place.rules.excludes(&path, item.kind == ItemKind::Directory) {
            return Ok(None);
        }
        let below = place.touched.and_then(|touched| touched.below.get(name.as_bytes()));
        let time = place.fixed.or(below.and_then(|below| below.time));
        let mtime = time.or(known.map(|known| known.metadata.mtime)).unwrap_or_default();
        let (mode, kind) = match item.kind {
            ItemKind::Submodule if self.options.submodules == Submodules::Ignore => return Ok(None),
            ItemKind::Submodule => return Err(GitError::Submodule { path }.into()),
            ItemKind::Symlink => (0o777, self.symlink(path, item.id)?),
            ItemKind::File | ItemKind::Executable => {
                let mode = if item.kind == ItemKind::Executable { 0o755 } else { 0o644 };
                let kept = known.filter(|_| before.is_some_and(|before| before.id == item.id));
                match kept.map(|kept| &kept.kind) {
                    Some(kind @ Kind::File { .. }) => (mode, kind.clone()),
                    _ => (mode, self.file(path, item.id)?),
                }
            }
            ItemKind::Directory => {
                let object = known.and_then(|known| match known.kind {
                    Kind::Directory { object, .. } => Some(object),
                    Kind::File { .. } | Kind::Symlink { .. } | Kind::Collected { .. } => None,
                });
                let base = before.and_then(Item::tree).zip(object);
                let base = base.map(|(tree, object)| Base { tree, object });
                let below = Place { path: &path, rules: place.rules.clone(), base, touched: below, ..*place };
                let Made { object, totals } = self.directory(&below, item.id)?;
                (0o755, Kind::Directory { object, totals })
            }
        };
        Ok(Some(Entry { name: name.clone(), metadata: Metadata { mode, uid: 0, gid: 0, mtime }, kind }))
    }

    fn file(&mut self, path: TreePath, id: Id) -> Result<Kind, ScanError> {
        let size = self.repository.size(id)?;
        if size > FILE_MAX_BYTES {
            return Err(GitError::TooLarge { path, actual: size, limit: FILE_MAX_BYTES }.into());
        }
        let bytes = self.repository.blob(id)?;
        if marks::is_private(&bytes) {
            return Err(ScanError::PrivateFile { path });
        }
        if self.options.lfs == Lfs::Refuse
            && bytes.len() < POINTER_MAX_BYTES
            && bytes.starts_with(POINTER_MARK)
        {
            return Err(GitError::LfsPointer { path }.into());
        }
        self.files_read += 1;
        self.bytes_read += bytes.len() as u64;
        let content = self.contents.add(&bytes)?;
        Ok(Kind::File { content, size: bytes.len() as u64 })
    }

    fn symlink(&self, path: TreePath, id: Id) -> Result<Kind, ScanError> {
        let actual = self.repository.size(id)?;
        if actual > SYMLINK_TARGET_MAX_BYTES as u64 {
            let (actual, limit) = (actual as usize, SYMLINK_TARGET_MAX_BYTES);
            return Err(ScanError::SymlinkTarget { path, actual, limit });
        }
        let target = self.repository.blob(id)?;
        if self.scan.symlinks == SymlinkPolicy::Inside && leaves_tree(&path, &target) {
            return Err(ScanError::SymlinkLeaves { path });
        }
        Ok(Kind::Symlink { target: target.into() })
    }

    /// The rules in a directory.
    fn rules(&self, place: &Place<'_>, names: &BTreeMap<Vec<u8>, Item>) -> Result<IgnoreRules, ScanError> {
        let Some(item) = names.get(IGNORE_FILE.as_bytes()) else { return Ok(place.rules.clone()) };
        if !matches!(item.kind, ItemKind::File | ItemKind::Executable) {
            return Err(IgnoreError::Kind { path: file_in(place.path) }.into());
        }
        Ok(place.rules.with_file(place.path, &self.repository.blob(item.id)?)?)
    }

    /// The base's entry of a name.
    fn known(&self, place: &Place<'_>, name: &Component) -> Result<Option<Entry>, ScanError> {
        let Some(base) = place.base else { return Ok(None) };
        TreeObjects::Writer(self.writer).entry(&base.object, name).map_err(failed(place.path))
    }

    fn component(&self, directory: &TreePath, name: &[u8]) -> Result<Component, ScanError> {
        Component::new(name).map_err(|source| ScanError::GitName { directory: directory.clone(), source })
    }
}

fn join(directory: &TreePath, name: &Component) -> Result<TreePath, ScanError> {
    directory.join(name).map_err(|source| ScanError::Name {
        directory: directory.clone(),
        name: name.clone(),
        source,
    })
}

fn failed(path: &TreePath) -> impl Fn(TreeObjectError) -> ScanError {
    let path = path.clone();
    move |source| match source {
        TreeObjectError::Missing { .. } => ScanError::BaseMissing { path: path.clone() },
        source => ScanError::Objects { path: path.clone(), source },
    }
}
