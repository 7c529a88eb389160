//! Entries that the tree being patched does not have, because the live tree is no longer what was activated.

use syncd_shared::diff::{Change, DirectorySource, Part, PartLimits, Rename};
use syncd_shared::manifest_cursor::ManifestCursor;
use syncd_shared::{Entry, ObjectHash, RootEntry, TreePath};

use crate::build::StageError;
use crate::state::record::{Record, RecordError};

/// Missing files and symlinks of the live tree's manifest: 8 bytes each, plus their pages.
#[derive(Debug, Default)]
pub(crate) struct MissingEntries {
    /// Directories and pages of their entries, in the order in which they were found; a page may occur again.
    pages: Vec<(TreePath, ObjectHash)>,
    /// Index of the page, index of the entry in it.
    entries: Vec<(u32, u32)>,
}

impl MissingEntries {
    /// Adds an entry of a page of a directory.
    pub fn add(&mut self, directory: &TreePath, page: &ObjectHash, entry: usize) {
        if self.pages.last().is_none_or(|(last, object)| (last, object) != (directory, page)) {
            self.pages.push((directory.clone(), *page));
        }
        self.entries.push((self.pages.len() as u32 - 1, entry as u32));
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Path of the first missing entry.
    pub fn first(&self, record: &Record) -> Result<Option<TreePath>, StageError> {
        Ok(self.get(record, 0)?.map(|(path, _)| path))
    }

    fn get(&self, record: &Record, at: usize) -> Result<Option<(TreePath, Entry)>, StageError> {
        let Some(&(page, entry)) = self.entries.get(at) else { return Ok(None) };
        let Some((parent, object)) = self.pages.get(page as usize) else { return Ok(None) };
        let page = record.page(object)?;
        let Some(entry) = page.entries().get(entry as usize) else { return Ok(None) };
        let path = parent.join(&entry.name).map_err(|source| StageError::Path { source })?;
        Ok(Some((path, entry.clone())))
    }

    /// Parts with the entries that a tree at `to` still misses after it is patched: those on which both
    /// manifests agree.
    pub fn parts<'a>(
        &'a self,
        record: &'a Record,
        renames: &'a [Rename],
        to: &RootEntry,
        limits: PartLimits,
    ) -> Result<Filling<'a>, RecordError> {
        let to = ManifestCursor::new(record, to)?;
        Ok(Filling { missing: self, record, renames, to, limits, next: 0 })
    }
}

/// Iterates over parts of the missing entries.
pub(crate) struct Filling<'a> {
    missing: &'a MissingEntries,
    record: &'a Record,
    renames: &'a [Rename],
    to: ManifestCursor<'a, Record>,
    limits: PartLimits,
    next: usize,
}

impl Filling<'_> {
    fn part(&mut self) -> Result<Part<'static>, StageError> {
        let mut changes = Vec::new();
        let mut parent: Option<TreePath> = None;
        while changes.len() < self.limits.changes
            && let Some((path, entry)) = self.missing.get(self.record, self.next)?
        {
            self.next += 1;
            let moved = self.renames.iter().find_map(|rename| path.rebase(&rename.from, &rename.to));
            let path = moved.unwrap_or(path);
            if self.to.entry(&path)?.as_ref() != Some(&entry) {
                continue;
            }
            // Putting a file there changes the time of its directory, so the directory's metadata is set
            // again.
            let own = path.parent();
            if own != parent {
                if let Some(path) = &own
                    && let Some(entry) = self.to.entry(path)?
                {
                    changes.push(Change::Modified { path: path.clone(), from: entry.clone(), to: entry });
                }
                parent = own;
            }
            changes.push(Change::Added { path, entry });
        }
        Ok(Part { changes: changes.into(), is_last: self.next >= self.missing.len() })
    }
}

impl Iterator for Filling<'_> {
    type Item = Result<Part<'static>, StageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.missing.len() {
            return None;
        }
        let part = self.part();
        if part.is_err() {
            self.next = self.missing.len();
        }
        Some(part)
    }
}
