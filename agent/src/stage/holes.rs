//! What the tree that is built on lacks, because the live tree no longer is what was activated.

use std::collections::HashSet;

use syncd_shared::diff::{Change, Part, Rename};
use syncd_shared::manifest_cursor::ManifestCursor;
use syncd_shared::{Entry, RootEntry, TreePath};

use crate::record::{Record, RecordError};

/// See the module.
pub(super) struct Holes<'a> {
    /// Where the live tree has them.
    of_live: HashSet<TreePath>,
    /// Where the target has them, the next one last.
    waiting: Vec<(TreePath, Entry)>,
    to: ManifestCursor<'a, Record>,
}

impl<'a> Holes<'a> {
    /// `holes` are paths of the live tree; `to` is the target.
    pub fn new(
        holes: Vec<(TreePath, Entry)>,
        record: &'a Record,
        renames: &[Rename],
        to: &RootEntry,
    ) -> Result<Self, RecordError> {
        let of_live = holes.iter().map(|(path, _)| path.clone()).collect();
        let moved = |(path, entry): (TreePath, Entry)| {
            let renamed = renames.iter().find_map(|rename| path.rebase(&rename.from, &rename.to));
            (renamed.unwrap_or(path), entry)
        };
        let mut waiting: Vec<_> = holes.into_iter().map(moved).collect();
        waiting.sort_by(|(a, _), (b, _)| b.cmp(a));
        Ok(Self { of_live, waiting, to: ManifestCursor::new(record, to)? })
    }

    /// Paths of the live tree.
    pub fn of_live(&self) -> &HashSet<TreePath> {
        &self.of_live
    }

    /// Adds to a part of an update what is lacking there though the manifests agree on it.
    pub fn fill(&mut self, part: &mut Part<'_>) -> Result<(), RecordError> {
        let end = part.changes.last().map(|change| change.path().clone()).filter(|_| !part.is_last);
        let is_due = |(path, _): &(TreePath, Entry)| end.as_ref().is_none_or(|end| path <= end);
        if !self.waiting.last().is_some_and(is_due) {
            return Ok(());
        }
        let changes = part.changes.to_mut();
        let mut changed: HashSet<TreePath> = changes.iter().map(|change| change.path().clone()).collect();
        while let Some((path, entry)) = self.waiting.pop_if(|hole| is_due(hole)) {
            if changed.contains(&path) || self.to.entry(&path)?.as_ref() != Some(&entry) {
                continue;
            }
            // What is put there changes the time of its directory, which then has to be set again.
            if let Some(parent) = path.parent()
                && changed.insert(parent.clone())
                && let Some(entry) = self.to.entry(&parent)?
            {
                changes.push(Change::Modified { path: parent, from: entry.clone(), to: entry });
            }
            changes.push(Change::Added { path, entry });
        }
        // Stable: a removal stays before the addition at its path.
        changes.sort_by(|a, b| a.path().cmp(b.path()));
        Ok(())
    }
}
