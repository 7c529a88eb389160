//! Reads a manifest by path, without looking for a directory twice.

use std::sync::Arc;

use crate::diff::DirectorySource;
use crate::directory::{Cursor, Directory, Entry, Kind};
use crate::hash::ObjectHash;
use crate::tree::RootEntry;
use crate::tree_path::{Component, TreePath};

/// Holds the directories from the root down to the last requested path.
#[derive(Debug)]
pub struct ManifestCursor<'a, S> {
    source: &'a S,
    root: ObjectHash,
    stack: Vec<(Component, ObjectHash)>,
}

/// The place of an entry in the manifest.
#[derive(Debug, Clone)]
pub struct Place {
    /// The page that has it.
    pub page: ObjectHash,
    /// The entries of that page.
    pub leaf: Arc<Directory>,
    /// Its index in the page.
    pub index: usize,
}

impl<'a, S: DirectorySource> ManifestCursor<'a, S> {
    /// Starts at the root.
    pub fn new(source: &'a S, root: &RootEntry) -> Result<Self, S::Error> {
        source.page(&root.object)?;
        Ok(Self { source, root: root.object, stack: Vec::new() })
    }

    /// The directory object of `path`, if the tree has a directory there.
    pub fn object(&mut self, path: &TreePath) -> Result<Option<ObjectHash>, S::Error> {
        let mut depth = 0;
        for name in path.components() {
            if self.stack.get(depth).is_none_or(|(open, _)| *open != name) {
                self.stack.truncate(depth);
                let parent = self.stack.last().map_or(self.root, |(_, object)| *object);
                let entry = self.source.entry(&parent, &name)?;
                let Some(Entry { kind: Kind::Directory { object, .. }, .. }) = entry else { return Ok(None) };
                self.stack.push((name, object));
            }
            depth += 1;
        }
        self.stack.truncate(depth);
        Ok(Some(self.stack.last().map_or(self.root, |(_, object)| *object)))
    }

    /// The entry at `path`, if the tree has one there.
    pub fn entry(&mut self, path: &TreePath) -> Result<Option<Entry>, S::Error> {
        let Some((parent, name)) = path.split_last() else { return Ok(None) };
        match self.object(&parent)? {
            Some(object) => self.source.entry(&object, &name),
            None => Ok(None),
        }
    }

    /// The place of the entry at `path`, if the tree has one there.
    pub fn place(&mut self, path: &TreePath) -> Result<Option<Place>, S::Error> {
        let Some((parent, name)) = path.split_last() else { return Ok(None) };
        let Some(object) = self.object(&parent)? else { return Ok(None) };
        let mut cursor = Cursor::new(self.source, Some(object))?;
        cursor.seek(&name)?;
        let Some((page, leaf, index)) = cursor.leaf()? else { return Ok(None) };
        let is_it = leaf.entries().get(index).is_some_and(|entry| entry.name == name);
        Ok(is_it.then(|| Place { page, leaf: leaf.clone(), index }))
    }
}
