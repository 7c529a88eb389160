//! Makes a directory on disk, whatever is in it, a copy of the live tree by hard links.
//!
//! An empty directory becomes a farm of links, a retired tree or what a crash left becomes a spare. Every name is
//! looked at: what has not the inode, size and time that the live tree was activated with is replaced, what does not
//! belong there goes. So nothing that was planted, edited or half built comes back to life. Cost follows the tree: off
//! the path of a commit, except where a spare is missing.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::FileType;
use syncd_shared::diff::DirectorySource;
use syncd_shared::{Directory, Entry, Kind, ObjectHash, RootEntry, TreePath};

use crate::disk::{Dir, Owners};
use crate::layout::Layout;
use crate::record::Record;
use crate::stage::StageError;
use crate::stage::cursor::{LiveTree, looks_like};

/// What was found on the way.
#[derive(Debug, Default)]
pub(crate) struct Conformed {
    /// Files and symlinks that could not be linked, because the live tree itself no longer is what was activated.
    pub holes: Vec<(TreePath, Entry)>,
    /// Names that had to be replaced, removed or made.
    pub replaced: Vec<TreePath>,
}

pub(crate) struct Conform<'a> {
    pub layout: &'a Layout,
    pub record: &'a Record,
    pub owners: Owners,
    /// Where links come from.
    pub live: LiveTree<'a>,
    /// Paths that are not to be linked even if they look right.
    pub distrusted: HashSet<TreePath>,
    pub cancel: &'a AtomicBool,
}

impl Conform<'_> {
    /// Makes `dir` a copy of `root`, the live tree.
    pub fn run(&mut self, dir: &Dir, root: &RootEntry) -> Result<Conformed, StageError> {
        let mut found = Conformed::default();
        self.directory(&TreePath::root(), dir, &root.object, &mut found)?;
        dir.set_own_metadata(&root.metadata, self.owners)?;
        Ok(found)
    }

    fn directory(
        &mut self,
        path: &TreePath,
        dir: &Dir,
        object: &ObjectHash,
        found: &mut Conformed,
    ) -> Result<(), StageError> {
        dir.make_writable()?;
        let manifest = self.record.directory(object)?;
        self.remove_strangers(path, dir, &manifest, found)?;
        for entry in manifest.entries() {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(StageError::Cancelled);
            }
            let path = path.join(&entry.name).map_err(|source| StageError::Path { source })?;
            match &entry.kind {
                Kind::Directory { object, .. } => {
                    let child = self.child(&path, dir, entry, found)?;
                    self.directory(&path, &child, object, found)?;
                    child.set_own_metadata(&entry.metadata, self.owners)?;
                }
                Kind::File { .. } | Kind::Symlink { .. } => self.leaf(&path, dir, entry, found)?,
            }
        }
        Ok(())
    }

    fn remove_strangers(
        &self,
        path: &TreePath,
        dir: &Dir,
        manifest: &Directory,
        found: &mut Conformed,
    ) -> Result<(), StageError> {
        let known: HashMap<&[u8], ()> = manifest.entries().iter().map(|e| (e.name.as_bytes(), ())).collect();
        for listed in dir.list()? {
            if known.contains_key(listed.name.as_slice()) {
                continue;
            }
            if let Ok(name) = syncd_shared::Component::new(&listed.name)
                && let Ok(path) = path.join(&name)
            {
                found.replaced.push(path);
            }
            self.remove(dir, &listed.name)?;
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

    fn child(
        &self,
        path: &TreePath,
        dir: &Dir,
        entry: &Entry,
        found: &mut Conformed,
    ) -> Result<Dir, StageError> {
        let name = entry.name.as_bytes();
        match dir.stat(name)? {
            Some(stat) if stat.kind == FileType::Directory => return Ok(dir.open_dir(name)?),
            Some(_) => {
                found.replaced.push(path.clone());
                dir.unlink(name)?;
            }
            None => found.replaced.push(path.clone()),
        }
        Ok(dir.create_dir(name, 0o700)?)
    }

    fn leaf(
        &mut self,
        path: &TreePath,
        dir: &Dir,
        entry: &Entry,
        found: &mut Conformed,
    ) -> Result<(), StageError> {
        let name = entry.name.as_bytes();
        let distrusted = self.distrusted.contains(path);
        let there = dir.stat(name)?;
        if let Some(stat) = &there
            && !distrusted
            && self.live.inode(path)? == Some(stat.inode)
            && looks_like(entry, stat, self.owners)
        {
            return Ok(());
        }
        found.replaced.push(path.clone());
        if there.is_some() {
            self.remove(dir, name)?;
        }
        if distrusted || self.live.link(path, entry, dir, name)?.is_none() {
            found.holes.push((path.clone(), entry.clone()));
        }
        Ok(())
    }
}
