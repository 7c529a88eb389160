//! Files of the tree whose inode has further names, in the tree or outside.
//!
//! A write through one name is an event of that name alone, so all of these files are looked at (`lstat`) whenever the
//! tree is scanned: the cost is their number, not the tree's. Only in memory: the walk at the start finds them all. The
//! walk of a scan keeps them up to date, and the sealer asks for those that changed.
//!
//! A new name may be that of an inode whose other names were single before, which no event tells. Where a partial scan
//! meets an inode of which not all names are accounted for, the whole tree is walked once. Names that are still missing
//! after that are outside, and are not looked for again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, Mode, OFlags};
use syncd_shared::{Component, TreePath};

use super::file_stat::{FileStat, Fingerprint};
use crate::watch::Hints;

type Inode = (u64, u64);

/// See the module. One for as long as a tree is watched.
#[derive(Debug, Default)]
pub struct Links(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    files: BTreeMap<TreePath, BTreeMap<Component, Linked>>,
    inodes: HashMap<Inode, Names>,
}

/// A name, as it was when it was last scanned.
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
    /// As the file system counts them.
    links: u64,
}

impl Links {
    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        self.known().files.is_empty()
    }

    /// A file was looked at in a scan.
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

    /// A name is no file of the tree any more.
    pub(super) fn forget(&self, directory: &TreePath, name: &Component) {
        self.known().forget(directory, name);
    }

    /// A directory was listed: it has no others than these.
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

    /// A directory is no longer in the tree, nor what was below it.
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

    /// Whether an inode may have a name in the tree that no scan has told.
    pub(super) fn has_unknown(&self) -> bool {
        self.known().inodes.values().any(|names| names.in_tree + names.outside < names.links)
    }

    /// The whole tree was walked: names that are missing are outside.
    pub(super) fn all_known(&self) {
        for names in self.known().inodes.values_mut() {
            names.outside = names.links.saturating_sub(names.in_tree);
        }
    }

    /// Looks at all of them, in the tree at `root`; those that are not as they were scanned.
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
            // Where it only left the tree, the next look at another name of it says so.
            names.links = names.links.saturating_sub(1);
            if names.in_tree == 0 {
                self.inodes.remove(&linked.inode());
            }
        }
    }
}
