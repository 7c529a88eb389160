//! How much of the tree a scan looks at.

use std::collections::{BTreeMap, BTreeSet};

use syncd_shared::{Component, TreePath};

use crate::watch::{Hints, Names};

/// How much of the tree a scan looks at. What it is not told to look at is taken from the base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// All of it. Files whose stat record fits are still not read.
    Everything,
    /// Some directories.
    Parts {
        /// To be listed.
        directories: BTreeSet<TreePath>,
        /// To be listed with all below them.
        subtrees: BTreeSet<TreePath>,
        /// To be looked up, in directories that need not be listed; without a name the directory itself.
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
    /// These directories, not what is below them.
    pub fn directories(directories: impl IntoIterator<Item = TreePath>) -> Self {
        let directories = directories.into_iter().collect();
        Scope::Parts { directories, subtrees: BTreeSet::new(), names: Names::default() }
    }

    /// Whether there is nothing to look at.
    pub fn is_empty(&self) -> bool {
        match self {
            Scope::Everything => false,
            Scope::Parts { directories, subtrees, names } => {
                directories.is_empty() && subtrees.is_empty() && names.is_empty()
            }
        }
    }

    /// Adds what hints name, for example [`super::Outcome::racy`] of an earlier scan.
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

    /// Adds directories whose own metadata is to be looked at, for example [`super::Outcome::times_only`] of earlier
    /// scans.
    pub fn add_metadata_of(&mut self, more: impl IntoIterator<Item = TreePath>) {
        let mut names = Names::default();
        more.into_iter().for_each(|directory| names.add_directory(directory));
        self.add(Hints { names, ..Hints::default() });
    }
}

/// A scope as a tree: the directories to list, and those on the way to them.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// This directory is to be listed.
    pub list: bool,
    /// And all below it.
    pub whole: bool,
    /// These names in it are to be looked up, if it is not to be listed.
    pub names: BTreeSet<Component>,
    /// What is to be done below.
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
