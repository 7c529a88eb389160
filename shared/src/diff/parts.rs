//! The difference between two trees, split into parts of bounded size.

use std::borrow::Cow;
use std::collections::HashSet;

use super::{Change, Changed, Comparison, DiffError, DirectorySource};
use crate::directory::{Entry, Kind, Pairs};
use crate::hash::ObjectHash;
use crate::limits::{PART_BYTES_MAX, PART_CHANGES_MAX};
use crate::tree_path::TreePath;

/// Size limits of a part. Origin and agents must use the same limits: otherwise an update in parts gains
/// nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartLimits {
    pub changes: usize,
    /// Bytes of paths, names and symlink targets.
    pub bytes: usize,
}

impl Default for PartLimits {
    fn default() -> Self {
        Self { changes: PART_CHANGES_MAX, bytes: PART_BYTES_MAX }
    }
}

/// A part of the difference between two trees.
#[derive(Debug)]
pub struct Part<'a> {
    /// In path order.
    pub changes: Cow<'a, [Change]>,
    pub is_last: bool,
}

/// Changes of an incomplete part.
#[derive(Debug, Default)]
pub(super) struct Collected {
    pub changes: Vec<Change>,
    bytes: usize,
}

impl Collected {
    /// Adds a change; `None` if that exceeds the limits, whatever the order of changes.
    pub fn with(mut self, change: Change, limits: &PartLimits) -> Option<Self> {
        self.add(change);
        Some(self).filter(|all| all.changes.len() <= limits.changes && all.bytes <= limits.bytes)
    }

    fn is_full(&self, limits: &PartLimits) -> bool {
        self.changes.len() >= limits.changes || self.bytes >= limits.bytes
    }

    fn add(&mut self, change: Change) {
        let of = |entry: &Entry| match &entry.kind {
            Kind::Symlink { target } => entry.name.as_bytes().len() + target.len(),
            _ => entry.name.as_bytes().len(),
        };
        self.bytes += change.path().as_bytes().len()
            + match &change {
                Change::Removed { entry, .. } | Change::Added { entry, .. } => of(entry),
                Change::Modified { from, to, .. } => of(from) + of(to),
            };
        self.changes.push(change);
    }
}

/// Iterates over the parts in path order. Ends with the first error.
#[derive(Debug)]
pub struct Parts<'a, S> {
    comparison: &'a Comparison<S>,
    /// Old and new paths of renamed directories, which are not descended into.
    renamed: HashSet<&'a TreePath>,
    stack: Vec<Level<'a, S>>,
    /// The next changes to return.
    next: [Option<Change>; 2],
    ended: bool,
}

/// A directory being compared.
#[derive(Debug)]
struct Level<'a, S> {
    path: TreePath,
    pairs: Pairs<&'a S>,
}

impl<'a, S: DirectorySource> Parts<'a, S> {
    pub(super) fn of(comparison: &'a Comparison<S>) -> Self {
        let renamed = comparison.renamed_directories.iter().flat_map(|r| [&r.from, &r.to]).collect();
        Self { comparison, renamed, stack: Vec::new(), next: [None, None], ended: false }
    }

    fn part(&mut self) -> Result<Part<'a>, DiffError<S::Error>> {
        if let Some(few) = &self.comparison.few {
            return Ok(Part { changes: Cow::Borrowed(few), is_last: true });
        }
        if self.stack.is_empty() && self.next[0].is_none() {
            let Comparison { from, to, .. } = self.comparison;
            self.enter(TreePath::root(), Some(from.object), Some(to.object))?;
            self.advance()?;
        }
        let mut part = Collected::default();
        while !part.is_full(&self.comparison.limits)
            && let Some(change) = self.next[0].take()
        {
            part.add(change);
            self.next.swap(0, 1);
            if self.next[0].is_none() {
                self.advance()?;
            }
        }
        Ok(Part { changes: Cow::Owned(part.changes), is_last: self.next[0].is_none() })
    }

    fn enter(
        &mut self,
        path: TreePath,
        from: Option<ObjectHash>,
        to: Option<ObjectHash>,
    ) -> Result<(), DiffError<S::Error>> {
        let pairs = Pairs::new(&self.comparison.source, from, to);
        let pairs = pairs.map_err(|source| DiffError::Source { path: path.clone(), source })?;
        self.stack.push(Level { path, pairs });
        Ok(())
    }

    /// Advances to the next name that differs.
    fn advance(&mut self) -> Result<(), DiffError<S::Error>> {
        while let Some(level) = self.stack.last_mut() {
            let next = level.pairs.next_pair();
            let failed = |source| DiffError::Source { path: level.path.clone(), source };
            let Some((old, new)) = next.map_err(failed)? else {
                self.stack.pop();
                continue;
            };
            let changed = Changed::between(&level.path, old.as_ref(), new.as_ref())?;
            let Some(Changed { path, changes, below: (from, to) }) = changed else { continue };
            let (from, to) = (from.map(|(object, _)| object), to.map(|(object, _)| object));
            let whole = from.is_none() != to.is_none() && self.renamed.contains(&path);
            if from != to && !whole {
                self.enter(path, from, to)?;
            }
            self.next = changes;
            if self.next[0].is_none() {
                self.next.swap(0, 1);
            }
            return Ok(());
        }
        Ok(())
    }
}

impl<'a, S: DirectorySource> Iterator for Parts<'a, S> {
    type Item = Result<Part<'a>, DiffError<S::Error>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let part = self.part();
        self.ended = part.as_ref().map_or(true, |part| part.is_last);
        Some(part)
    }
}
