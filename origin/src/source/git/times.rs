//! When each path of a commit last changed: the modification times of `--git-mtime file-commit`.
//!
//! The time of a path is that of the newest commit, on the line of first parents, in which its entry differs
//! from that of the parent. It is a function of the commit alone, so that every clone has the same times.
//! After a push that continues the published line, only the new commits are compared.

use std::collections::BTreeMap;

use syncd_shared::Timestamp;
use syncd_shared::limits::DEPTH_MAX;
use tokio_util::sync::CancellationToken;

use super::error::GitError;
use super::repository::{Id, Item, Repository};
use crate::scan::ScanError;

/// Paths, and the times at which they last changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Touched {
    /// `None` while it is unknown.
    pub time: Option<Timestamp>,
    pub below: BTreeMap<Vec<u8>, Touched>,
    /// Number of unknown times here and below, while a whole history is read.
    unknown: u64,
}

impl Touched {
    /// The node of a name, which a newer commit may have touched already.
    fn touch(&mut self, name: Vec<u8>, time: Timestamp) -> &mut Self {
        self.below.entry(name).or_insert_with(|| Self { time: Some(time), ..Self::default() })
    }

    /// Whether any of these paths has this last name.
    pub(super) fn has_name(&self, name: &[u8]) -> bool {
        self.below.contains_key(name) || self.below.values().any(|below| below.has_name(name))
    }
}

/// Reads histories.
pub(super) struct Histories<'a> {
    pub repository: &'a Repository,
    pub cancel: &'a CancellationToken,
}

/// Names that differ between two trees, with what they were and are.
type Differences = Vec<(Vec<u8>, Option<Item>, Option<Item>)>;

impl Histories<'_> {
    /// Paths touched after `old`, up to `new`. `None` if `new` does not continue the line of `old`.
    pub(super) fn since(&self, old: Id, new: Id) -> Result<Option<Touched>, ScanError> {
        let mut line = Vec::new();
        let mut at = new;
        while at != old {
            self.check_cancelled()?;
            let commit = self.repository.commit(at)?;
            let Some(parent) = commit.parent else { return Ok(None) };
            line.push(commit);
            at = parent;
        }
        let mut touched = Touched::default();
        let mut before = self.repository.commit(old)?.tree;
        // The newest comes first, whose times count.
        let mut trees: Vec<_> = line.iter().map(|commit| (commit.tree, commit.time)).collect();
        trees.reverse();
        let mut pairs = Vec::new();
        for (tree, time) in trees {
            pairs.push((before, tree, time));
            before = tree;
        }
        for (before, after, time) in pairs.into_iter().rev().filter(|(before, after, _)| before != after) {
            touched.time.get_or_insert(time);
            self.touch(&mut touched, Some(before), after, time, 0)?;
        }
        Ok(Some(touched))
    }

    /// All paths of `commit`. Reads the history as far back as the oldest of them.
    pub(super) fn whole(&self, commit: Id) -> Result<Touched, ScanError> {
        let mut commit = self.repository.commit(commit)?;
        let mut paths = self.skeleton(commit.tree, 0)?;
        while paths.unknown > 0 {
            self.check_cancelled()?;
            let parent = commit.parent.map(|id| self.repository.commit(id)).transpose()?;
            let before = parent.as_ref().map(|parent| parent.tree);
            if before != Some(commit.tree) {
                self.assign(&mut paths, before, commit.tree, commit.time)?;
            }
            match parent {
                Some(parent) => commit = parent,
                None => break,
            }
        }
        Ok(paths)
    }

    /// Adds what differs between two trees, except for the paths below names that are gone.
    fn touch(
        &self,
        node: &mut Touched,
        before: Option<Id>,
        after: Id,
        time: Timestamp,
        depth: usize,
    ) -> Result<(), ScanError> {
        for (name, was, is) in self.differences(before, after)? {
            let below = node.touch(name, time);
            if let Some(tree) = is.and_then(Item::tree).filter(|_| depth < DEPTH_MAX) {
                self.touch(below, was.and_then(Item::tree), tree, time, depth + 1)?;
            }
        }
        Ok(())
    }

    /// All paths of a tree, with unknown times.
    fn skeleton(&self, tree: Id, depth: usize) -> Result<Touched, ScanError> {
        self.check_cancelled()?;
        let mut node = Touched { unknown: 1, ..Touched::default() };
        for (name, item) in self.repository.tree(tree)? {
            let below = match item.tree().filter(|_| depth < DEPTH_MAX) {
                Some(tree) => self.skeleton(tree, depth + 1)?,
                None => Touched { unknown: 1, ..Touched::default() },
            };
            node.unknown += below.unknown;
            node.below.insert(name, below);
        }
        Ok(node)
    }

    /// Gives the unknown paths that differ between two trees their time.
    fn assign(
        &self,
        node: &mut Touched,
        before: Option<Id>,
        after: Id,
        time: Timestamp,
    ) -> Result<(), ScanError> {
        let unknown = node.unknown;
        if node.time.is_none() {
            node.time = Some(time);
            node.unknown -= 1;
        }
        for (name, was, is) in self.differences(before, after)? {
            let Some(below) = node.below.get_mut(&name).filter(|below| below.unknown > 0) else { continue };
            let known = below.unknown;
            match is.and_then(Item::tree).filter(|_| !below.below.is_empty()) {
                Some(tree) => self.assign(below, was.and_then(Item::tree), tree, time)?,
                None if below.time.is_none() => {
                    below.time = Some(time);
                    below.unknown -= 1;
                }
                None => {}
            }
            node.unknown -= known - below.unknown;
        }
        debug_assert!(node.unknown <= unknown);
        Ok(())
    }

    fn differences(&self, before: Option<Id>, after: Id) -> Result<Differences, GitError> {
        let read = |tree| Ok::<BTreeMap<_, _>, GitError>(self.repository.tree(tree)?.into_iter().collect());
        let mut before = before.map(read).transpose()?.unwrap_or_default();
        let mut differences: Differences = Vec::new();
        for (name, is) in self.repository.tree(after)? {
            match before.remove(&name) {
                Some(was) if was == is => {}
                was => differences.push((name, was, Some(is))),
            }
        }
        differences.extend(before.into_iter().map(|(name, was)| (name, Some(was), None)));
        Ok(differences)
    }

    fn check_cancelled(&self) -> Result<(), ScanError> {
        if self.cancel.is_cancelled() { Err(ScanError::Cancelled) } else { Ok(()) }
    }
}
