//! Reads a manifest in path order without reading a directory twice.

use std::sync::Arc;

use crate::diff::DirectorySource;
use crate::directory::{Directory, Entry, Kind};
use crate::hash::ObjectHash;
use crate::tree::RootEntry;
use crate::tree_path::{Component, TreePath};

/// Holds the directory objects from the root down to the last requested path.
#[derive(Debug)]
pub struct ManifestCursor<'a, S> {
    source: &'a S,
    root: (ObjectHash, Arc<Directory>),
    stack: Vec<(Component, ObjectHash, Arc<Directory>)>,
}

impl<'a, S: DirectorySource> ManifestCursor<'a, S> {
    /// Starts at the root.
    pub fn new(source: &'a S, root: &RootEntry) -> Result<Self, S::Error> {
        Ok(Self { source, root: (root.object, source.directory(&root.object)?), stack: Vec::new() })
    }

    /// The directory object at `path` and its hash, if the tree has a directory there.
    pub fn directory(&mut self, path: &TreePath) -> Result<Option<(ObjectHash, Arc<Directory>)>, S::Error> {
        let mut depth = 0;
        for name in path.components() {
            if self.stack.get(depth).is_none_or(|(open, ..)| *open != name) {
                self.stack.truncate(depth);
                let parent = self.stack.last().map_or(&self.root.1, |(.., directory)| directory);
                let Some(Entry { kind: Kind::Directory { object, .. }, .. }) = parent.get(&name) else {
                    return Ok(None);
                };
                let (object, directory) = (*object, self.source.directory(object)?);
                self.stack.push((name, object, directory));
            }
            depth += 1;
        }
        self.stack.truncate(depth);
        let last = self.stack.last().map(|(_, object, directory)| (*object, directory.clone()));
        Ok(Some(last.unwrap_or_else(|| self.root.clone())))
    }

    /// The entry at `path`, if the tree has one there.
    pub fn entry(&mut self, path: &TreePath) -> Result<Option<Entry>, S::Error> {
        let Some((parent, name)) = path.split_last() else { return Ok(None) };
        Ok(self.directory(&parent)?.and_then(|(_, d)| d.get(&name).cloned()))
    }
}
