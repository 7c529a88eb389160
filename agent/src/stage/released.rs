//! Which files a diff takes away or changes, by content: what is renamed is found by it, and what may be copied.
//!
//! A few bytes for each change, since a fresh checkout may touch all files of a tree: an index into the diff, in the order of
//! the contents.

use syncd_shared::diff::{Change, TreeDiff};
use syncd_shared::{ContentHash, Kind, Metadata, TreePath};

/// Of a content that very many files have so many are looked at for one that is renamed; the others are copied.
const LOOKED_AT_MAX: usize = 64;

/// See the module.
pub(crate) struct Released<'a> {
    diff: &'a TreeDiff,
    /// Content, index in the diff; ascending.
    by_content: Vec<(ContentHash, u32)>,
    /// By index in `by_content`: an inode goes on under another name.
    taken: Vec<bool>,
}

impl<'a> Released<'a> {
    /// Files of the first tree whose content goes away or gets other metadata, but for those that are not `trusted`.
    pub fn by(diff: &'a TreeDiff, trusted: impl Fn(&TreePath) -> bool) -> Self {
        let files = diff.changes.iter().zip(0u32..).filter_map(|(change, index)| {
            let (Change::Removed { path, entry: from } | Change::Modified { path, from, .. }) = change else {
                return None;
            };
            match from.kind {
                Kind::File { content, size: 1.. } if trusted(path) => Some((content, index)),
                _ => None,
            }
        });
        let mut by_content: Vec<_> = files.collect();
        by_content.sort_unstable();
        Self { diff, taken: vec![false; by_content.len()], by_content }
    }

    fn range(&self, content: &ContentHash) -> std::ops::Range<usize> {
        let start = self.by_content.partition_point(|(other, _)| other < content);
        let same = self.by_content[start..].partition_point(|(other, _)| other == content);
        start..start + same
    }

    fn file(&self, at: usize) -> Option<(&'a TreePath, &'a Metadata)> {
        match self.diff.changes.get(self.by_content[at].1 as usize)? {
            Change::Removed { path, entry: from } | Change::Modified { path, from, .. } => {
                Some((path, &from.metadata))
            }
            Change::Added { .. } => None,
        }
    }

    /// A file with this content and metadata that was not taken; [`Self::take`] takes it.
    pub fn like(&self, content: &ContentHash, metadata: &Metadata) -> Option<(usize, &'a TreePath)> {
        self.range(content).filter(|at| !self.taken[*at]).take(LOOKED_AT_MAX).find_map(|at| {
            let (path, own) = self.file(at)?;
            (own == metadata).then_some((at, path))
        })
    }

    /// Its inode goes on under another name.
    pub fn take(&mut self, at: usize) {
        self.taken[at] = true;
    }

    /// Where the first tree has this content, in path order.
    pub fn paths(&self, content: &ContentHash) -> impl Iterator<Item = &'a TreePath> {
        self.range(content).filter_map(|at| Some(self.file(at)?.0))
    }
}

#[cfg(test)]
mod tests {
    use syncd_shared::{Component, Entry, Timestamp};

    use super::*;

    fn file(text: &str, mode: u16) -> Entry {
        Entry {
            name: Component::new(b"name").unwrap(),
            metadata: Metadata { mode, uid: 0, gid: 0, mtime: Timestamp::default() },
            kind: Kind::File { content: ContentHash::of(text.as_bytes()), size: text.len() as u64 },
        }
    }

    #[test]
    fn files_are_found_by_content_and_metadata_and_taken_once() {
        let path = |text: &str| TreePath::from_bytes(text.as_bytes()).unwrap();
        let removed =
            |name: &str, text: &str, mode| Change::Removed { path: path(name), entry: file(text, mode) };
        let changes = vec![
            removed("a", "one", 0o644),
            removed("b", "one", 0o600),
            Change::Modified { path: path("c"), from: file("one", 0o644), to: file("two", 0o644) },
            Change::Added { path: path("d"), entry: file("one", 0o644) },
            removed("e", "", 0o644),
            removed("f", "one", 0o644),
        ];
        let diff = TreeDiff { changes, renamed_directories: Vec::new() };
        let mut released = Released::by(&diff, |path| path.as_bytes() != b"f");
        let one = ContentHash::of(b"one");
        let metadata = file("one", 0o644).metadata;
        assert_eq!(released.paths(&one).cloned().collect::<Vec<_>>(), [path("a"), path("b"), path("c")]);
        for expected in ["a", "c"] {
            let (at, found) = released.like(&one, &metadata).unwrap();
            assert_eq!(*found, path(expected));
            released.take(at);
        }
        assert!(released.like(&one, &metadata).is_none());
        assert!(released.like(&ContentHash::of(b"two"), &metadata).is_none());
        assert_eq!(released.paths(&one).count(), 3, "also what was taken can be copied");
        assert_eq!(released.paths(&ContentHash::of(b"")).count(), 0);
    }
}
