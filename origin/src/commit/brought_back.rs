//! Measures how much of a rolled-back change a tree still contains.

use syncd_shared::diff::{Change, Comparison, DiffError, PartLimits};
use syncd_shared::text::counted_of;
use syncd_shared::{Entry, Metadata, RootEntry, SignedGeneration, TreePath};

use super::rollbacks::Rollbacks;
use crate::store::Store;
use crate::tree_objects::{TreeObjectError, TreeObjects};

/// Number of changes of a rollback examined; of a larger one, the first in path order.
const LOOKED_AT_MAX: u64 = 10_000;

/// Counts over the paths changed by a rollback: files, links, renamed directories, and directories of another
/// mode or owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct BroughtBack {
    /// Paths that are as they were before the rollback.
    back: u64,
    /// Paths examined, at most [`LOOKED_AT_MAX`].
    of: u64,
}

impl BroughtBack {
    fn note(&mut self, is_back: bool) {
        self.of += 1;
        self.back += u64::from(is_back);
    }
}

/// A remark if the published tree, or a part of it, had been rolled back. `rollbacks` and `current` are from
/// before the commit.
pub(super) fn remark(
    store: &Store,
    rollbacks: &Rollbacks,
    current: Option<&SignedGeneration>,
    tree: &RootEntry,
) -> Option<String> {
    let again =
        |number, part: &str| format!("this publishes again {part}what was rolled back: generation {number}");
    if let Some(number) = rollbacks.put_aside(&tree.hash()) {
        tracing::warn!(rolled_back = %number, "what was rolled back is published again");
        return Some(again(number, ""));
    }
    let (aside, current) = (rollbacks.held_back()?, current?);
    let before = store.generation(aside.number).ok().flatten()?.generation;
    if before.root_hash() != aside.root {
        // Retired meanwhile: then only the complete tree is recognised.
        return None;
    }
    match count(store, &before.root, &current.generation().root, tree) {
        Ok(BroughtBack { back: 0, .. }) => None,
        Ok(found) if found.back == found.of => Some(again(aside.number, "")),
        Ok(found) => {
            let text = again(aside.number, "a part of ");
            Some(format!("{text} ({})", counted_of(found.back, Some(found.of), "path", "paths")))
        }
        Err(error) => {
            tracing::warn!("compare with generation {}: {}", aside.number, crate::error_chain(&error));
            None
        }
    }
}

/// Compares `tree` with the changes of a rollback from `before` to `after`. Costs the difference of those
/// two, and a lookup in `tree` for each path.
fn count(
    store: &Store,
    before: &RootEntry,
    after: &RootEntry,
    tree: &RootEntry,
) -> Result<BroughtBack, DiffError<TreeObjectError>> {
    let objects = TreeObjects::Store(store);
    let comparison = Comparison::of(objects, after, before, PartLimits::default())?;
    let renames = comparison.renamed_directories();
    let is_renamed =
        |path: &TreePath| renames.iter().any(|rename| rename.to == *path || rename.from == *path);
    let mut found = BroughtBack::default();
    // The root of a tree is no entry of it.
    if access(&before.metadata) != access(&after.metadata) {
        found.note(access(&before.metadata) == access(&tree.metadata));
    }
    let mut failed = None;
    comparison.each(|change| {
        // The content of other directories is listed by itself.
        let counts = match change {
            Change::Removed { entry, path } | Change::Added { entry, path } => {
                !entry.is_directory() || is_renamed(path)
            }
            Change::Modified { from, to, .. } => {
                !to.is_directory() || access(&from.metadata) != access(&to.metadata)
            }
        };
        if !counts {
            return true;
        }
        match objects.entry_at(tree, change.path()) {
            Ok(now) => found.note(is_back(change, now.as_ref())),
            Err(source) => failed = Some(DiffError::Source { path: change.path().clone(), source }),
        }
        failed.is_none() && found.of < LOOKED_AT_MAX
    })?;
    failed.map_or(Ok(found), Err)
}

/// Whether `now` is the state of the path before the rollback.
fn is_back(change: &Change, now: Option<&Entry>) -> bool {
    match change {
        Change::Removed { .. } => now.is_none(),
        Change::Modified { to: was, .. } if was.is_directory() => {
            now.is_some_and(|now| now.is_directory() && access(&now.metadata) == access(&was.metadata))
        }
        Change::Added { entry: was, .. } | Change::Modified { to: was, .. } => now
            .is_some_and(|now| now.kind == was.kind && (was.is_directory() || now.metadata == was.metadata)),
    }
}

/// Mode and owner. The time of a directory changes with its content.
fn access(metadata: &Metadata) -> (u16, u32, u32) {
    (metadata.mode, metadata.uid, metadata.gid)
}
