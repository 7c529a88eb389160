//! The task of a pass for one directory, and the knowledge it starts from.

use syncd_shared::{Component, Metadata, ObjectHash, TreePath};

use super::error::ScanError;
use super::pending::Previous;
use super::scope::Plan;
use super::stat_record::StatRecord;
use syncd_shared::ignore_rules::IgnoreRules;

/// The task for a directory.
#[derive(Clone, Copy)]
pub(super) struct Task<'p> {
    /// List the directory, whatever is known about it.
    pub list: bool,
    /// List everything below it as well.
    pub whole: bool,
    /// Plan for its subdirectories.
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

/// The state that the names of a directory are compared with.
pub(super) struct Known {
    pub previous: Option<Previous>,
    pub record: Option<StatRecord>,
    /// Former path, if the directory or one above it was renamed.
    pub source: Option<TreePath>,
    /// Nothing below the directory is known.
    pub whole: bool,
}

/// A directory to visit.
pub(super) struct Place {
    pub path: TreePath,
    pub parent: Option<(u64, Component)>,
    pub previous: Option<(ObjectHash, Metadata)>,
    /// Ignore rules of the parent.
    pub rules: IgnoreRules,
    /// Former path, if a directory above was renamed.
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
