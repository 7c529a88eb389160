//! Files of the tree whose inode has further names, inside or outside the tree.
//!
//! A write through one name causes an event for that name only. Every scan therefore checks all of these
//! files (`lstat`), which costs their number, not the size of the tree. They are kept in memory: the initial
//! walk finds them all, every scan updates them, and the sealer asks for changed ones.
//!
//! A new name may belong to an inode whose other name was single before, which no event reports. When a
//! partial scan finds an inode with unaccounted names, the whole tree is walked once. Names that are still
//! missing afterwards are outside the tree and are not searched again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, Mode, OFlags};
use syncd_shared::{Component, TreePath};

use super::file_stat::{FileStat, Fingerprint};
use crate::watch::Hints;

type Inode = (u64, u64);

/// The known hard links. See the module documentation. Lives as long as a tree is watched.
#[derive(Debug, Default)]
pub struct Links(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    files: BTreeMap<TreePath, BTreeMap<Component, Linked>>,
    inodes: HashMap<Inode, Names>,
}

/// A name in the state of the last scan.
#[derive(Debug, Clone, Copy)]
struct Linked {
    device: u64,
    fingerprint: Fingerprint,
}

impl Linked {
    fn inode(&self) -> Inode {
        (self.device, self.fingerprint.inode)
    }
}

/// The names of an inode.
#[derive(Debug, Clone, Copy, Default)]
struct Names {
    in_tree: u64,
    outside: u64,
    /// Link count of the file system.
    links: u64,
}

impl Links {
    /// Whether there are no such files.
    pub fn is_empty(&self) -> bool {
        self.known().files.is_empty()
    }

    /// Records a scanned file.
    pub(super) fn saw(&self, directory: &TreePath, name: &Component, stat: &FileStat) {
        let mut known = self.known();
        let linked = Linked { device: stat.device, fingerprint: stat.fingerprint };
        let before = known.files.get(directory).and_then(|names| names.get(name));
        if before.is_none_or(|before| before.inode() != linked.inode()) || stat.links < 2 {
            known.forget(directory, name);
        }
        if stat.links < 2 {
            return;
        }
        let is_new = known.files.entry(directory.clone()).or_default().insert(name.clone(), linked).is_none();
        let names = known.inodes.entry(linked.inode()).or_default();
        names.in_tree += u64::from(is_new);
        names.links = stat.links;
        names.outside = names.outside.min(stat.links.saturating_sub(names.in_tree));
    }

    /// Records that a name is no longer a file of the tree.
    pub(super) fn forget(&self, directory: &TreePath, name: &Component) {
        self.known().forget(directory, name);
    }

    /// Records a listing: the directory has no other names than these.
    pub(super) fn keep_only(&self, directory: &TreePath, names: &BTreeSet<&Component>) {
        let mut known = self.known();
        let gone: Vec<Component> = known
            .files
            .get(directory)
            .into_iter()
            .flat_map(BTreeMap::keys)
            .filter(|name| !names.contains(name))
            .cloned()
            .collect();
        gone.iter().for_each(|name| known.forget(directory, name));
    }

    /// Records that a directory, with everything below it, is no longer in the tree.
    pub(super) fn forget_subtree(&self, path: &TreePath) {
        let mut known = self.known();
        let below: Vec<TreePath> = known
            .files
            .range(path..)
            .take_while(|(at, _)| at.starts_with(path))
            .map(|(at, _)| at.clone())
            .collect();
        for directory in below {
            let names = known.files.get(&directory).into_iter().flat_map(BTreeMap::keys).cloned();
            names.collect::<Vec<_>>().iter().for_each(|name| known.forget(&directory, name));
        }
    }

    /// Whether an inode may have a name in the tree that no scan has found.
    pub(super) fn has_unknown(&self) -> bool {
        self.known().inodes.values().any(|names| names.in_tree + names.outside < names.links)
    }

    /// Records that the whole tree was walked: missing names are outside.
    pub(super) fn all_known(&self) {
        for names in self.known().inodes.values_mut() {
            names.outside = names.links.saturating_sub(names.in_tree);
        }
    }

    /// Checks all files in the tree at `root`. Returns those that changed since they were scanned.
    pub fn changed(&self, root: &Path) -> Hints {
        let mut hints = Hints::default();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for (directory, names) in &self.known().files {
            let Ok(open) = rustix::fs::open(directory.below(root), flags, Mode::empty()) else {
                hints.add_directory(directory.clone());
                continue;
            };
            for (name, linked) in names {
                let now = rustix::fs::statat(&open, name.as_os_str(), AtFlags::SYMLINK_NOFOLLOW);
                let now = now.ok().map(|stat| FileStat::of(&stat)).map(|s| (s.device, s.fingerprint));
                if now != Some((linked.device, linked.fingerprint)) {
                    hints.add_name(directory.clone(), name.clone());
                }
            }
        }
        hints
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn forget(&mut self, directory: &TreePath, name: &Component) {
        let Some(names) = self.files.get_mut(directory) else { return };
        let Some(linked) = names.remove(name) else { return };
        if names.is_empty() {
            self.files.remove(directory);
        }
        if let Some(names) = self.inodes.get_mut(&linked.inode()) {
            names.in_tree -= 1;
            // If the name was only moved out of the tree, the next check of another name corrects the count.
            names.links = names.links.saturating_sub(1);
            if names.in_tree == 0 {
                self.inodes.remove(&linked.inode());
            }
        }
    }
}
