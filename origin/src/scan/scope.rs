//! How much of the tree a scan looks at.

use std::collections::{BTreeMap, BTreeSet};

use syncd_shared::{Component, TreePath};

use crate::watch::Hints;

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
    },
}

impl From<Hints> for Scope {
    fn from(hints: Hints) -> Self {
        match hints.everything {
            Some(_) => Scope::Everything,
            None => Scope::Parts { directories: hints.directories, subtrees: hints.subtrees },
        }
    }
}

impl Scope {
    /// These directories, not what is below them.
    pub fn directories(directories: impl IntoIterator<Item = TreePath>) -> Self {
        Scope::Parts { directories: directories.into_iter().collect(), subtrees: BTreeSet::new() }
    }

    /// Whether there is nothing to look at.
    pub fn is_empty(&self) -> bool {
        matches!(self, Scope::Parts { directories, subtrees } if directories.is_empty() && subtrees.is_empty())
    }

    /// Adds directories, for example [`super::Outcome::times_only`] and [`super::Outcome::racy`] of earlier scans.
    pub fn add(&mut self, more: impl IntoIterator<Item = TreePath>) {
        if let Scope::Parts { directories, .. } = self {
            directories.extend(more);
        }
    }
}

/// A scope as a tree: the directories to list, and those on the way to them.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// This directory is to be listed.
    pub list: bool,
    /// And all below it.
    pub whole: bool,
    /// What is to be done below.
    pub below: BTreeMap<Component, Plan>,
}

impl Plan {
    pub(super) fn of(scope: &Scope) -> Self {
        let mut plan = Plan::default();
        match scope {
            Scope::Everything => plan.add(&TreePath::root(), true),
            Scope::Parts { directories, subtrees } => {
                directories.iter().for_each(|path| plan.add(path, false));
                subtrees.iter().for_each(|path| plan.add(path, true));
            }
        }
        plan
    }

    fn add(&mut self, path: &TreePath, whole: bool) {
        let mut plan = self;
        for name in path.components() {
            plan = plan.below.entry(name).or_default();
        }
        plan.list = true;
        plan.whole |= whole;
    }
}
