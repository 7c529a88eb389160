//! The walk over the manifest.

use std::sync::Arc;

use rustix::fs::FileType;
use syncd_shared::diff::DirectorySource as _;
use syncd_shared::directory::Cursor;
use syncd_shared::{Entry, Kind, Metadata, ObjectHash, TreePath};

use crate::build::StageError;
use crate::state::disk::{Dir, DiskError};
use crate::state::record::Record;
use crate::state::trees::Trees;

/// Walks the manifest in path order, makes directories and gathers their files.
pub(super) struct Walk<'a> {
    pub(super) trees: &'a Trees,
    pub(super) tree: Dir,
    pub(super) resumes: bool,
    /// Directories still to be entered, the next one last.
    pub(super) waiting: Vec<(TreePath, ObjectHash, Metadata)>,
    /// The directory in which the last window ended.
    pub(super) current: Option<Current<'a>>,
    /// Pages of entries entered, by ordinal, with their directories.
    pub(super) entered: Vec<(Arc<TreePath>, ObjectHash)>,
}

/// A directory whose files are being gathered.
pub(super) struct Current<'a> {
    pub(super) path: Arc<TreePath>,
    /// Ordinal of the directory's list.
    pub(super) directory: u32,
    /// The next entry.
    pub(super) cursor: Cursor<&'a Record>,
    /// The page that was entered last.
    pub(super) page: Option<ObjectHash>,
}

impl<'a> Walk<'a> {
    /// Makes the subdirectories of a directory. Returns their number.
    pub(super) fn enter(
        &mut self,
        path: TreePath,
        object: ObjectHash,
        directory: u32,
    ) -> Result<usize, StageError> {
        let record: &'a Record = &self.trees.record;
        if self.resumes {
            self.remove_strangers(&path, object)?;
        }
        let dir = self.open(&path)?;
        let mut below = Vec::new();
        let mut cursor = Cursor::new(record, Some(object))?;
        while let Some(entry) = cursor.directory()? {
            if let Kind::Directory { object, .. } = entry.kind {
                let metadata = entry.metadata;
                match dir.make_dir(entry.name.as_bytes()) {
                    Err(e) if e.source.kind() == std::io::ErrorKind::AlreadyExists => {}
                    other => other?,
                }
                let path = path.join(&entry.name).map_err(|source| StageError::Path { source })?;
                below.push((path, object, metadata));
            }
            cursor.skip();
        }
        let made = below.len();
        self.waiting.extend(below.into_iter().rev());
        let (path, cursor) = (Arc::new(path), Cursor::new(record, Some(object))?);
        self.current = Some(Current { path, directory, cursor, page: None });
        Ok(made)
    }

    pub(super) fn open(&self, path: &TreePath) -> Result<Dir, DiskError> {
        Ok(if path.is_root() { self.tree.reopen()? } else { self.tree.open_dir(path.as_bytes())? })
    }

    /// Removes what an interrupted attempt left for another target, and what somebody put there.
    pub(super) fn remove_strangers(&self, path: &TreePath, object: ObjectHash) -> Result<(), StageError> {
        let directory = self.trees.record.directory(&object)?;
        let dir = self.open(path)?;
        dir.make_writable()?;
        for listed in dir.names()? {
            let listed = listed?;
            let expected = syncd_shared::Component::new(&listed.name)
                .ok()
                .and_then(|name| directory.get(&name).map(Entry::is_directory));
            let stat = dir.stat(&listed.name)?;
            let is_directory = stat.is_some_and(|s| s.kind == FileType::Directory);
            if expected == Some(is_directory) {
                continue;
            }
            self.trees.layout.remove(&dir, &listed.name)?;
        }
        Ok(())
    }
}

impl Walk<'_> {
    /// The entry with this page ordinal and index.
    pub(super) fn entry(&self, (page, entry): (u32, u32)) -> Result<Option<(&TreePath, Entry)>, StageError> {
        let Some((path, object)) = self.entered.get(page as usize) else { return Ok(None) };
        let page = self.trees.record.page(object)?;
        Ok(page.entries().get(entry as usize).map(|entry| (&**path, entry.clone())))
    }
}
