//! A directory whose files or subdirectories are still being read.

use std::collections::BTreeMap;
use std::sync::Arc;

use syncd_shared::directory::{Edits, Pair};
use syncd_shared::{Component, Directory, Entry, Metadata, ObjectHash, Totals, TreePath};

use super::file_stat::FileStat;
use super::stat_record::StatRecord;
use super::stat_rows::Rows;

/// A directory in the base.
#[derive(Debug, Clone)]
pub(super) struct Previous {
    pub object: ObjectHash,
    pub metadata: Metadata,
    pub totals: Totals,
    pub names: Names,
}

/// Entries of a directory in the base.
#[derive(Debug, Clone)]
pub(super) enum Names {
    All(Arc<Directory>),
    /// Those of the planned names.
    Planned(BTreeMap<Component, Entry>),
}

impl Previous {
    pub(super) fn get(&self, name: &Component) -> Option<&Entry> {
        match &self.names {
            Names::All(directory) => directory.get(name),
            Names::Planned(names) => names.get(name),
        }
    }

    /// All entries; none if only those of the planned names are known.
    pub(super) fn entries(&self) -> &[Entry] {
        match &self.names {
            Names::All(directory) => directory.entries(),
            Names::Planned(_) => &[],
        }
    }
}

/// Entries that were found in a directory.
#[derive(Debug)]
pub(super) enum FoundEntries {
    /// All of them, in any order.
    All(Vec<Entry>),
    /// Those that were looked at. A name without an entry is gone. All others are those of the base.
    Planned(Edits),
}

impl FoundEntries {
    pub(super) fn add(&mut self, entry: Entry) {
        match self {
            Self::All(entries) => entries.push(entry),
            Self::Planned(edits) => drop(edits.insert(entry.name.clone(), Some(entry))),
        }
    }
}

/// The change of a directory's record.
#[derive(Debug)]
pub(super) enum NewRecord {
    /// No file was looked at.
    Unchanged,
    /// It is replaced; its files are in any order. With the rows in the store.
    All(StatRecord, Rows),
    /// The files of the names that were looked at are replaced.
    Planned(StatRecord),
}

impl NewRecord {
    /// The new record, to add files to.
    pub(super) fn files(&mut self) -> Option<&mut StatRecord> {
        match self {
            Self::Unchanged => None,
            Self::All(record, _) | Self::Planned(record) => Some(record),
        }
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
    pub entries: FoundEntries,
    /// Number of files and subdirectories it waits for, plus one for the listing itself.
    pub waiting: usize,
    /// Whether anything but directory times changed here or below.
    pub real: bool,
    pub record: NewRecord,
}

/// Whether anything but the time and object of a directory differs. (Changes inside a subdirectory are found
/// when its object is built.)
pub(super) fn really_differs((before, after): &Pair) -> bool {
    match (before, after) {
        (Some(before), Some(after)) if before.is_directory() && after.is_directory() => {
            !same_but_time(&before.metadata, &after.metadata)
        }
        _ => before != after,
    }
}

/// The names that differ between two lists of entries, sorted by name.
pub(super) fn pairs(before: &[Entry], after: &[Entry]) -> Vec<Pair> {
    let (mut old, mut new) = (before.iter().peekable(), after.iter().peekable());
    let mut pairs = Vec::new();
    loop {
        let pair = match (old.peek(), new.peek()) {
            (None, None) => return pairs,
            (Some(one), Some(other)) if one.name == other.name => (old.next(), new.next()),
            (Some(one), Some(other)) if one.name < other.name => (old.next(), None),
            (Some(_), None) => (old.next(), None),
            (_, Some(_)) => (None, new.next()),
        };
        if pair.0 != pair.1 {
            pairs.push((pair.0.cloned(), pair.1.cloned()));
        }
    }
}

/// Whether two metadata are equal, or differ in time only.
pub(super) fn same_but_time(before: &Metadata, after: &Metadata) -> bool {
    Metadata { mtime: after.mtime, ..*before } == *after
}

#[cfg(test)]
mod tests {
    use super::*;
    use syncd_shared::{ContentHash, Kind, Timestamp};

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
        let really = |before: &[Entry], after: &[Entry]| pairs(before, after).iter().any(really_differs);
        let before = [directory(1, 0o755), file(1)];
        assert!(!really(&before, &[directory(2, 0o755), file(1)]));
        assert!(really(&before, &[directory(1, 0o700), file(1)]));
        assert!(really(&before, &[directory(1, 0o755), file(2)]));
        assert!(really(&before, &[directory(1, 0o755)]));
        let renamed = Entry { name: Component::new(b"e").unwrap(), ..directory(1, 0o755) };
        assert!(really(&before, &[renamed, file(1)]));
    }
}
