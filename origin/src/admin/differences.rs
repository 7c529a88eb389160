//! Answers to `diff`: the paths that differ between two trees.

use std::collections::HashSet;
use std::sync::Arc;

use syncd_shared::diff::{Change, Comparison, DiffError, DirectorySource, PartLimits};
use syncd_shared::directory::Page;
use syncd_shared::{Kind, ObjectHash, RootEntry, SignedGeneration, TreePath};

use super::offline::{AnswerError, DataDirectory};
use super::protocol::{ChangeCounts, DiffLine, Reply};
use crate::commit::{Preview, is_indistinct};
use crate::store::UnsavedDirectories;

impl DataDirectory {
    /// Number of changes from a generation's parent; `None` if the parent is not retained.
    pub fn changes(&self, generation: &SignedGeneration) -> Result<Option<ChangeCounts>, AnswerError> {
        let generation = generation.generation();
        let mut counts = ChangeCounts::default();
        let Some(parent) = generation.parent else {
            return Ok(Some(ChangeCounts { added: generation.root.totals.entries, ..counts }));
        };
        let Some(parent) = self.store.generation(parent)? else { return Ok(None) };
        let parent = self.keys.verify(&parent.record, &parent.signature)?.generation().root;
        compare(self, &parent, &generation.root, |change, _| {
            match change {
                Change::Added { .. } => counts.added += 1,
                Change::Removed { .. } => counts.removed += 1,
                Change::Modified { from, to, .. } => {
                    counts.changed += 1;
                    counts.indistinct += u64::from(is_indistinct(from, to));
                }
            }
            true
        })?;
        Ok(Some(counts))
    }

    pub(super) fn diff(
        &self,
        from: Option<u64>,
        to: Option<u64>,
        lines: &mut dyn FnMut(Reply) -> bool,
    ) -> Result<u8, AnswerError> {
        let to = match to {
            Some(number) => self.generation(number)?,
            None => self.latest()?.ok_or(AnswerError::NoGeneration)?,
        };
        let empty = RootEntry::empty();
        let from = match (from, to.generation().parent) {
            (Some(number), _) => self.generation(number)?.generation().root,
            (None, Some(parent)) => self.generation(parent.get())?.generation().root,
            (None, None) => empty,
        };
        diff_roots(self, &from, &to.generation().root, lines)
    }

    /// Lists each path that differs between a generation's tree and the tree as it is now.
    pub fn diff_pending(
        &self,
        from: &RootEntry,
        found: &Preview,
        lines: &mut dyn FnMut(Reply) -> bool,
    ) -> Result<u8, AnswerError> {
        diff_roots(&WithUnsaved { data: self, unsaved: &found.unsaved }, from, &found.root, lines)
    }
}

/// The store, and directories of a tree that is not kept.
struct WithUnsaved<'a> {
    data: &'a DataDirectory,
    unsaved: &'a UnsavedDirectories,
}

impl DirectorySource for WithUnsaved<'_> {
    type Error = AnswerError;

    fn page(&self, hash: &ObjectHash) -> Result<Arc<Page>, AnswerError> {
        match self.unsaved.page(hash)? {
            Some(page) => Ok(page),
            None => self.data.page(hash),
        }
    }
}

/// Lists each path that differs between two trees.
fn diff_roots(
    source: &impl DirectorySource<Error = AnswerError>,
    from: &RootEntry,
    to: &RootEntry,
    lines: &mut dyn FnMut(Reply) -> bool,
) -> Result<u8, AnswerError> {
    compare(source, from, to, |change, renamed_from| {
        let mut line = diff_line(change);
        if let Some(from) = renamed_from {
            line.change = "renamed".into();
            line.from = Some(from.to_string());
        }
        lines(Reply::Diff(line))
    })?;
    Ok(0)
}

/// Iterates over differences until `each` returns `false`. A directory renamed whole is one addition, with
/// its former path.
pub(super) fn compare(
    source: &impl DirectorySource<Error = AnswerError>,
    from: &RootEntry,
    to: &RootEntry,
    mut each: impl FnMut(&Change, Option<&TreePath>) -> bool,
) -> Result<(), AnswerError> {
    let failed = |error| match error {
        DiffError::Source { source, .. } => source,
        DiffError::Path { path, source } => AnswerError::Path { path, source },
    };
    let comparison = Comparison::of(source, from, to, PartLimits::default()).map_err(failed)?;
    let renames = comparison.renamed_directories();
    let gone: HashSet<&TreePath> = renames.iter().map(|rename| &rename.from).collect();
    let told = comparison.each(|change| {
        let renamed = match change {
            Change::Removed { path, .. } if gone.contains(path) => return true,
            Change::Added { path, .. } => renames.binary_search_by(|rename| rename.to.cmp(path)).ok(),
            _ => None,
        };
        each(change, renamed.and_then(|index| renames.get(index)).map(|rename| &rename.from))
    });
    told.map_err(failed)
}

pub(super) fn diff_line(change: &Change) -> DiffLine {
    let (name, entry) = match change {
        Change::Removed { entry, .. } => ("removed", entry),
        Change::Added { entry, .. } => ("added", entry),
        Change::Modified { from, to, .. }
            if from.metadata != to.metadata && same_content(&from.kind, &to.kind) =>
        {
            ("metadata", to)
        }
        Change::Modified { to, .. } => ("modified", to),
    };
    let size = match entry.kind {
        Kind::File { size, .. } => Some(size),
        _ => None,
    };
    let kind = match entry.kind {
        Kind::File { .. } => "file",
        Kind::Directory { .. } => "directory",
        Kind::Symlink { .. } => "symlink",
        Kind::Collected { .. } => "collected",
    };
    let indistinct = matches!(change, Change::Modified { from, to, .. } if is_indistinct(from, to));
    let path = change.path().to_string();
    DiffLine { change: name.into(), kind: kind.into(), path, from: None, size, indistinct }
}

fn same_content(a: &Kind, b: &Kind) -> bool {
    match (a, b) {
        (Kind::File { content: a, .. }, Kind::File { content: b, .. }) => a == b,
        (Kind::Directory { .. }, Kind::Directory { .. }) => true,
        (a, b) => a == b,
    }
}
