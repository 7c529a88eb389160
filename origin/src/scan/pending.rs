//! A directory whose files or subdirectories are still being read.

use std::cmp::Ordering;
use std::sync::Arc;

use syncd_shared::{Component, Directory, Entry, Kind, Metadata, ObjectHash, TreePath};

use super::file_stat::FileStat;
use super::stat_record::StatRecord;

/// A directory in the base.
#[derive(Debug, Clone)]
pub(super) struct Previous {
    pub object: ObjectHash,
    pub metadata: Metadata,
    pub directory: Arc<Directory>,
}

impl Previous {
    pub(super) fn get(&self, name: &Component) -> Option<&Entry> {
        self.directory.get(name)
    }
}

/// A directory in progress. See the module documentation.
#[derive(Debug)]
pub(super) struct Pending {
    pub path: TreePath,
    /// `None` for the root.
    pub parent: Option<(u64, Component)>,
    pub own: FileStat,
    pub previous: Option<Previous>,
    /// In any order.
    pub entries: Vec<Entry>,
    /// Number of files and subdirectories it waits for, plus one for the listing itself.
    pub waiting: usize,
    /// Whether anything but directory times changed here or below.
    pub real: bool,
    /// Record of a listed directory; its files are in any order.
    pub record: Option<StatRecord>,
    /// The record in the store.
    pub record_before: Option<Vec<u8>>,
}

/// Whether anything but the times and objects of directories differs. (Changes inside a subdirectory are
/// found when its object is built.)
pub(super) fn really_differs(before: &Directory, after: &Directory) -> bool {
    let (before, after) = (before.entries(), after.entries());
    before.len() != after.len()
        || before
            .iter()
            .zip(after)
            .any(|(b, a)| b.name.cmp(&a.name) != Ordering::Equal || entry_differs(b, a))
}

fn entry_differs(before: &Entry, after: &Entry) -> bool {
    match (&before.kind, &after.kind) {
        (Kind::Directory { .. }, Kind::Directory { .. }) => !same_but_time(&before.metadata, &after.metadata),
        _ => before != after,
    }
}

/// Whether two metadata are equal, or differ in time only.
pub(super) fn same_but_time(before: &Metadata, after: &Metadata) -> bool {
    Metadata { mtime: after.mtime, ..*before } == *after
}

#[cfg(test)]
mod tests {
    use super::*;
    use syncd_shared::{ContentHash, Timestamp, Totals};

    fn metadata(seconds: i64, mode: u16) -> Metadata {
        Metadata { mode, uid: 0, gid: 0, mtime: Timestamp { seconds, nanoseconds: 0 } }
    }

    fn directory(time: i64, mode: u16) -> Entry {
        let kind = Kind::Directory { object: Directory::default().hash(), totals: Totals::default() };
        Entry { name: Component::new(b"d").unwrap(), metadata: metadata(time, mode), kind }
    }

    fn file(time: i64) -> Entry {
        let kind = Kind::File { content: ContentHash::of(b""), size: 0 };
        Entry { name: Component::new(b"f").unwrap(), metadata: metadata(time, 0o644), kind }
    }

    #[test]
    fn directory_times_alone_are_no_difference() {
        let of = |entries: &[Entry]| Directory::new(entries.to_vec()).unwrap();
        let before = of(&[directory(1, 0o755), file(1)]);
        assert!(!really_differs(&before, &of(&[directory(2, 0o755), file(1)])));
        assert!(really_differs(&before, &of(&[directory(1, 0o700), file(1)])));
        assert!(really_differs(&before, &of(&[directory(1, 0o755), file(2)])));
        assert!(really_differs(&before, &of(&[directory(1, 0o755)])));
        let renamed = Entry { name: Component::new(b"e").unwrap(), ..directory(1, 0o755) };
        assert!(really_differs(&before, &of(&[renamed, file(1)])));
    }
}
