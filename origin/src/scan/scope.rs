//! The part of the tree that a scan examines.

use std::collections::{BTreeMap, BTreeSet};

use syncd_shared::{Component, TreePath};

use crate::watch::{Hints, Names};

/// The part of the tree that a scan examines. The rest is taken from the base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// The whole tree. Files whose stat record matches are still not read.
    Everything,
    /// Some directories.
    Parts {
        /// Directories to list.
        directories: BTreeSet<TreePath>,
        /// Directories to list with everything below them.
        subtrees: BTreeSet<TreePath>,
        /// Names to look up, in directories that need not be listed. A directory without names stands for
        /// itself.
        names: Names,
    },
}

impl From<Hints> for Scope {
    fn from(hints: Hints) -> Self {
        match hints.everything {
            Some(_) => Scope::Everything,
            None => {
                Scope::Parts { directories: hints.directories, subtrees: hints.subtrees, names: hints.names }
            }
        }
    }
}

impl Scope {
    /// These directories, without their subdirectories.
    #[cfg(test)]
    pub fn directories(directories: impl IntoIterator<Item = TreePath>) -> Self {
        let directories = directories.into_iter().collect();
        Scope::Parts { directories, subtrees: BTreeSet::new(), names: Names::default() }
    }

    pub fn is_empty(&self) -> bool {
        match self {
            Scope::Everything => false,
            Scope::Parts { directories, subtrees, names } => {
                directories.is_empty() && subtrees.is_empty() && names.is_empty()
            }
        }
    }

    /// Adds the names of hints, for example [`super::Outcome::racy`] of an earlier scan.
    pub fn add(&mut self, more: Hints) {
        let mut hints = match self {
            Scope::Everything => return,
            Scope::Parts { directories, subtrees, names } => Hints {
                directories: std::mem::take(directories),
                subtrees: std::mem::take(subtrees),
                names: std::mem::take(names),
                everything: None,
            },
        };
        hints.merge(more);
        *self = hints.into();
    }

    /// Adds directories whose own metadata must be examined, for example [`super::Outcome::times_only`] of
    /// earlier scans.
    pub fn add_metadata_of(&mut self, more: impl IntoIterator<Item = TreePath>) {
        let mut names = Names::default();
        more.into_iter().for_each(|directory| names.add_directory(directory));
        self.add(Hints { names, ..Hints::default() });
    }
}

/// A scope as a tree: directories to list, and those on the way to them.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Whether to list this directory.
    pub list: bool,
    /// Whether to list everything below it as well.
    pub whole: bool,
    /// Names to look up in this directory if it is not listed.
    pub names: BTreeSet<Component>,
    /// Plans for subdirectories.
    pub below: BTreeMap<Component, Plan>,
}

impl Plan {
    pub(super) fn of(scope: &Scope) -> Self {
        let mut plan = Plan::default();
        match scope {
            Scope::Everything => plan.list(&TreePath::root(), true),
            Scope::Parts { directories, subtrees, names } => {
                directories.iter().for_each(|path| plan.list(path, false));
                subtrees.iter().for_each(|path| plan.list(path, true));
                names.iter().for_each(|(path, names)| plan.at(path).names.extend(names.iter().cloned()));
            }
        }
        plan
    }

    fn list(&mut self, path: &TreePath, whole: bool) {
        let plan = self.at(path);
        plan.list = true;
        plan.whole |= whole;
    }

    fn at(&mut self, path: &TreePath) -> &mut Plan {
        let mut plan = self;
        for name in path.components() {
            plan = plan.below.entry(name).or_default();
        }
        plan
    }
}
