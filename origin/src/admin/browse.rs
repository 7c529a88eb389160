//! Reads of history for the page: parts of it, the changes of one generation, and the two versions of a file.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use syncd_shared::diff::Change;
use syncd_shared::{Entry, Kind, RootEntry, SignedGeneration, TreePath};

use super::differences::{compare, diff_line};
use super::offline::{AnswerError, DataDirectory};
use super::protocol::{ChangeCounts, DiffLine};
use crate::commit::is_indistinct;
use crate::tree_objects::{TreeObjectError, TreeObjects};

/// Largest file whose content is shown.
pub const TEXT_MAX_BYTES: u64 = 256 * 1024;
/// A comparison gives up after this time, with the counts until then.
const COMPARISON_MAX: Duration = Duration::from_secs(2);

/// Errors of comparing the versions of a file.
#[derive(Debug, thiserror::Error)]
pub enum VersionsError {
    #[error(transparent)]
    Answer(#[from] AnswerError),
    #[error(transparent)]
    Tree(#[from] TreeObjectError),
}

/// Changes from one generation to another.
pub struct Changes {
    pub counts: ChangeCounts,
    /// The first changes, in path order.
    pub first: Vec<ChangedPath>,
    /// Whether the comparison took too long to count all changes.
    pub is_cut: bool,
}

/// One changed path.
pub struct ChangedPath {
    pub line: DiffLine,
    /// The path, if it is UTF-8.
    pub path: Option<String>,
}

/// A path in one generation.
pub struct Version {
    pub entry: Entry,
    pub content: Content,
}

/// Content that can be compared by lines.
pub enum Content {
    Text(String),
    /// A directory, or a file that is not UTF-8 or has a NUL.
    NotText,
    /// A file of more than [`TEXT_MAX_BYTES`].
    Large,
    /// Not every user of this machine may read it in the tree.
    Closed,
}

impl DataDirectory {
    /// At most `limit` generations before the one with this number, newest first, verified.
    pub fn history_before(&self, before: u64, limit: usize) -> Result<Vec<SignedGeneration>, AnswerError> {
        let stored = self.store.generations_before(before, limit)?;
        stored.iter().map(|g| Ok(self.keys.verify(&g.record, &g.signature)?)).collect()
    }

    /// The changes between two trees, with the first `limit` of them. Blocks for at most about
    /// [`COMPARISON_MAX`].
    pub fn changes_between(
        &self,
        from: &RootEntry,
        to: &RootEntry,
        limit: usize,
    ) -> Result<Changes, AnswerError> {
        let began = Instant::now();
        let mut changes = Changes { counts: ChangeCounts::default(), first: Vec::new(), is_cut: false };
        compare(self, from, to, |change, renamed_from| {
            let counts = &mut changes.counts;
            match change {
                Change::Added { .. } => counts.added += 1,
                Change::Removed { .. } => counts.removed += 1,
                Change::Modified { from, to, .. } => {
                    counts.changed += 1;
                    counts.indistinct += u64::from(is_indistinct(from, to));
                }
            }
            if changes.first.len() < limit {
                let mut line = diff_line(change);
                if let Some(from) = renamed_from {
                    (line.change, line.from) = ("renamed".to_owned(), Some(from.to_string()));
                }
                let path = str::from_utf8(change.path().as_bytes()).ok().map(str::to_owned);
                changes.first.push(ChangedPath { line, path });
            }
            changes.is_cut = began.elapsed() > COMPARISON_MAX;
            !changes.is_cut
        })?;
        Ok(changes)
    }

    /// A path of a tree; `None` if the tree does not have it.
    pub fn version(&self, tree: &RootEntry, path: &TreePath) -> Result<Option<Version>, VersionsError> {
        let Some(entry) = TreeObjects::Store(&self.store).entry_at(tree, path)? else { return Ok(None) };
        let content = match &entry.kind {
            Kind::Directory { .. } | Kind::Collected { .. } => Content::NotText,
            _ if !self.is_open(tree, path, &entry)? => Content::Closed,
            Kind::Symlink { target } => text(target.to_vec()),
            Kind::File { size, .. } if *size > TEXT_MAX_BYTES => Content::Large,
            Kind::File { content, size } => {
                let mut bytes = Vec::new();
                self.store.read_file(content, *size, &mut bytes).map_err(AnswerError::from)?;
                text(bytes)
            }
        };
        Ok(Some(Version { entry, content }))
    }

    /// Whether every user of this machine may read the path, by its modes in the generation and by those of
    /// the directories above the content tree. The page has no password on loopback, so it shows nobody more
    /// than that.
    fn is_open(&self, tree: &RootEntry, path: &TreePath, entry: &Entry) -> Result<bool, TreeObjectError> {
        let may_enter = |mode: u16| mode & 0o001 != 0;
        let is_readable = matches!(entry.kind, Kind::Symlink { .. }) || entry.metadata.mode & 0o004 != 0;
        if !is_readable || !may_enter(tree.metadata.mode) {
            return Ok(false);
        }
        let mut above = path.parent();
        while let Some(directory) = above.filter(|directory| !directory.is_root()) {
            let entry = TreeObjects::Store(&self.store).entry_at(tree, &directory)?;
            if !entry.is_some_and(|entry| may_enter(entry.metadata.mode)) {
                return Ok(false);
            }
            above = directory.parent();
        }
        Ok(self.location.as_ref().is_some_and(|location| may_reach(&location.tree)))
    }
}

/// Whether every user may enter the directories above `tree`.
fn may_reach(tree: &Path) -> bool {
    let Ok(tree) = tree.canonicalize() else { return false };
    let mut above = tree.ancestors().skip(1);
    above.all(|directory| directory.metadata().is_ok_and(|found| found.mode() & 0o001 != 0))
}

fn text(bytes: Vec<u8>) -> Content {
    match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Content::Text(text),
        _ => Content::NotText,
    }
}
