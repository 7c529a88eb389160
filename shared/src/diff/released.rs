//! Files that an update removes or replaces, indexed by content, to find renamed files and sources for
//! copies.
//!
//! Each file takes only a few bytes, because an update may touch all files of a tree: its content prefix and
//! its position in the first tree's manifest.

use super::{Change, Comparison, DiffError, DirectorySource};
use crate::directory::{Kind, Metadata};
use crate::hash::{ContentHash, ObjectHash};
use crate::manifest_cursor::{ManifestCursor, Place};
use crate::tree_path::TreePath;

/// If very many files share a content, only this many are examined for a rename. The rest are copied.
const LOOKED_AT_MAX: usize = 64;

/// Index of the released files. See the module documentation.
#[derive(Debug)]
pub struct Released<'a, S> {
    source: &'a S,
    /// Directories of the first tree with such files, in path order, and the pages of them that have the
    /// files. A page may appear twice.
    pages: Vec<(TreePath, ObjectHash)>,
    /// Ascending.
    files: Vec<Indexed>,
    /// By index in `files`: whether the inode was reused under another name.
    taken: Vec<bool>,
}

/// First bytes of the content hash, index of the page, index of the entry in it.
type Indexed = (u64, u32, u32);

/// A file that the update removes or replaces.
#[derive(Debug)]
pub struct ReleasedFile {
    /// Its path in the first tree.
    pub path: TreePath,
    /// Its metadata in the first tree.
    pub metadata: Metadata,
    at: usize,
}

fn prefix(content: &ContentHash) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *content.as_bytes();
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

impl<'a, S: DirectorySource> Released<'a, S> {
    /// Files of the first tree whose content is no longer at their path.
    pub(super) fn of(comparison: &'a Comparison<S>) -> Result<Self, DiffError<S::Error>> {
        let source = &comparison.source;
        let mut released = Self { source, pages: Vec::new(), files: Vec::new(), taken: Vec::new() };
        let failed = |path: &TreePath| {
            let path = path.clone();
            move |source| DiffError::Source { path, source }
        };
        let root = &TreePath::root();
        let mut cursor = ManifestCursor::new(source, &comparison.from).map_err(failed(root))?;
        for part in comparison.parts() {
            for change in part?.changes.iter() {
                let (path, content) = match change {
                    Change::Removed { path, entry } => match entry.kind {
                        Kind::File { content, size: 1.. } => (path, content),
                        _ => continue,
                    },
                    Change::Modified { path, from, to } => match (&from.kind, &to.kind) {
                        (Kind::File { content, size: 1.. }, Kind::File { content: new, .. })
                            if content != new =>
                        {
                            (path, *content)
                        }
                        _ => continue,
                    },
                    Change::Added { .. } => continue,
                };
                let Some(parent) = path.parent() else { continue };
                let Some(Place { page, index: entry, .. }) = cursor.place(path).map_err(failed(path))? else {
                    continue;
                };
                if released.pages.last().is_none_or(|(last, object)| (last, object) != (&parent, &page)) {
                    released.pages.push((parent, page));
                }
                let ordinal = released.pages.len() as u32 - 1;
                released.files.push((prefix(&content), ordinal, entry as u32));
            }
        }
        released.files.sort_unstable();
        released.files.shrink_to_fit();
        released.taken = vec![false; released.files.len()];
        Ok(released)
    }

    /// Paths of this content in the first tree, in order of path.
    pub fn files(
        &self,
        content: ContentHash,
    ) -> impl Iterator<Item = Result<ReleasedFile, DiffError<S::Error>>> {
        self.places(&content).filter_map(move |(at, place)| self.file(at, place, &content).transpose())
    }

    /// Indices and places of all contents with the same prefix.
    fn places(&self, content: &ContentHash) -> impl Iterator<Item = (usize, &Indexed)> + use<'_, 'a, S> {
        let key = prefix(content);
        let start = self.files.partition_point(|(other, ..)| *other < key);
        self.files.iter().enumerate().skip(start).take_while(move |(_, (other, ..))| *other == key)
    }

    fn file(
        &self,
        at: usize,
        &(_, page, entry): &Indexed,
        content: &ContentHash,
    ) -> Result<Option<ReleasedFile>, DiffError<S::Error>> {
        let Some((parent, object)) = self.pages.get(page as usize) else { return Ok(None) };
        let failed = |source| DiffError::Source { path: parent.clone(), source };
        let page = self.source.page(object).map_err(failed)?;
        let Some(entry) = page.entries().get(entry as usize) else { return Ok(None) };
        if !matches!(&entry.kind, Kind::File { content: found, .. } if found == content) {
            return Ok(None);
        }
        let path =
            parent.join(&entry.name).map_err(|source| DiffError::Path { path: parent.clone(), source })?;
        Ok(Some(ReleasedFile { path, metadata: entry.metadata, at }))
    }

    /// A file with this content and metadata that has not been reused. [`Self::take`] marks it as reused.
    pub fn like(
        &self,
        content: ContentHash,
        metadata: &Metadata,
    ) -> Result<Option<ReleasedFile>, DiffError<S::Error>> {
        let left = self.places(&content).filter(|(at, _)| !self.taken[*at]).take(LOOKED_AT_MAX);
        for (at, place) in left {
            if let Some(file) = self.file(at, place, &content)?.filter(|file| file.metadata == *metadata) {
                return Ok(Some(file));
            }
        }
        Ok(None)
    }

    /// Marks this file's inode as reused.
    pub fn take(&mut self, file: &ReleasedFile) {
        self.taken[file.at] = true;
    }

    /// Makes every file available again.
    pub fn give_back(&mut self) {
        self.taken.fill(false);
    }
}
