//! Names in directories, up to the number worth tracking individually.

use std::collections::{BTreeMap, BTreeSet};

use syncd_shared::{Component, TreePath};

/// Names tracked per directory. Beyond that, listing the directory costs no more than looking them up.
const OF_DIRECTORY_MAX: usize = 64;
/// Names tracked in total.
const IN_ALL_MAX: usize = 4096;

/// Names in directories. A directory without names represents its own metadata.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    directories: BTreeMap<TreePath, BTreeSet<Component>>,
    count: usize,
}

impl Names {
    pub fn is_empty(&self) -> bool {
        self.directories.is_empty()
    }

    /// The directories in order, each with its names.
    pub fn iter(&self) -> impl Iterator<Item = (&TreePath, &BTreeSet<Component>)> {
        self.directories.iter()
    }

    pub fn contains(&self, directory: &TreePath, name: &Component) -> bool {
        self.directories.get(directory).is_some_and(|names| names.contains(name))
    }

    /// Adds a directory's own metadata.
    pub(crate) fn add_directory(&mut self, directory: TreePath) {
        self.directories.entry(directory).or_default();
    }

    /// Adds a name. Returns directories that have become too large to track by name.
    pub(super) fn add(&mut self, directory: TreePath, name: Component) -> BTreeSet<TreePath> {
        let names = self.directories.entry(directory.clone()).or_default();
        if !names.insert(name) {
            return BTreeSet::new();
        }
        self.count += 1;
        if names.len() > OF_DIRECTORY_MAX {
            self.remove(&directory);
            return BTreeSet::from([directory]);
        }
        if self.count > IN_ALL_MAX {
            self.count = 0;
            return std::mem::take(&mut self.directories).into_keys().collect();
        }
        BTreeSet::new()
    }

    pub(super) fn remove(&mut self, directory: &TreePath) {
        self.count -= self.directories.remove(directory).map_or(0, |names| names.len());
    }

    /// Removes a name, and its directory if no other name is left.
    pub(super) fn remove_name(&mut self, directory: &TreePath, name: &Component) {
        let Some(names) = self.directories.get_mut(directory) else { return };
        if names.remove(name) {
            self.count -= 1;
            if names.is_empty() {
                self.directories.remove(directory);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn into_directories(self) -> impl Iterator<Item = (TreePath, BTreeSet<Component>)> {
        self.directories.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: usize) -> Component {
        Component::new(number.to_string().as_bytes()).unwrap()
    }

    fn directory(number: usize) -> TreePath {
        TreePath::from_bytes(number.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_directory_with_too_many_names_is_given_back() {
        let mut names = Names::default();
        names.add(directory(1), name(0));
        for number in 0..OF_DIRECTORY_MAX {
            assert!(names.add(directory(0), name(number)).is_empty());
            assert!(names.add(directory(0), name(number)).is_empty());
        }
        assert_eq!(names.add(directory(0), name(OF_DIRECTORY_MAX)), [directory(0)].into());
        assert!(!names.contains(&directory(0), &name(0)) && names.contains(&directory(1), &name(0)));
        names.remove(&directory(1));
        assert_eq!(names, Names::default());
    }

    #[test]
    fn too_many_names_in_all_give_every_directory_back() {
        let mut names = Names::default();
        let back = (0..=IN_ALL_MAX).map(|number| names.add(directory(number / 32), name(number)));
        assert_eq!(back.last().unwrap().len(), IN_ALL_MAX / 32 + 1);
        assert_eq!(names, Names::default());
    }
}
