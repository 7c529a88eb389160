//! What a pass has to do with a directory, and what it knows of it.

use syncd_shared::{Component, Metadata, ObjectHash, TreePath};

use super::error::ScanError;
use super::pending::Previous;
use super::scope::Plan;
use super::stat_record::StatRecord;
use crate::ignore_rules::IgnoreRules;

/// What is to be done with a directory.
#[derive(Clone, Copy)]
pub(super) struct Task<'p> {
    /// List it, whatever is known of it.
    pub list: bool,
    /// And all below it.
    pub whole: bool,
    /// What is to be done below.
    pub plan: Option<&'p Plan>,
}

impl<'p> Task<'p> {
    pub(super) fn of(plan: &'p Plan) -> Self {
        Self { list: plan.list, whole: plan.whole, plan: Some(plan) }
    }

    pub(super) fn below(self, name: &Component) -> Option<&'p Plan> {
        self.plan.and_then(|plan| plan.below.get(name))
    }
}

/// What the names of a directory are held against.
pub(super) struct Known {
    pub previous: Option<Previous>,
    pub record: Option<StatRecord>,
    /// Where the directory was before it, or one above it, was renamed.
    pub source: Option<TreePath>,
    /// Nothing is known of what is below.
    pub whole: bool,
}

/// A directory to visit.
pub(super) struct Place {
    pub path: TreePath,
    pub parent: Option<(u64, Component)>,
    pub previous: Option<(ObjectHash, Metadata)>,
    /// Those of the parent.
    pub rules: IgnoreRules,
    /// Where it was before one above it was renamed.
    pub source: Option<TreePath>,
}

/// The path of a name in a directory of the tree.
pub(super) fn join(directory: &TreePath, name: &Component) -> Result<TreePath, ScanError> {
    directory.join(name).map_err(|source| ScanError::Name {
        directory: directory.clone(),
        name: name.clone(),
        source,
    })
}
