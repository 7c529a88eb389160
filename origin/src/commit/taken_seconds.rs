//! Seconds that earlier generations gave to files and that the current generation does not show. `--mtime
//! distinct` must not give them again.
//!
//! Under `distinct` the time of a path only increases, so a file of the current generation shows which
//! seconds are taken. This table has the other paths: removed ones, and those whose time a rollback set back.
//! The transaction that seals a generation writes it, so a crash leaves both or neither. Only the sealer uses
//! it.
//!
//! One record per path, in the namespace `taken seconds`, at most [`PATHS_MAX`]. Its name is the first 8
//! bytes of the path's BLAKE3 hash; a collision only costs an unnecessary second. The value, little endian:
//! `u64` last generation with that second, `i64` highest second, first 8 bytes of the hash of its content.

use std::collections::HashMap;

use syncd_shared::diff::DiffError;
use syncd_shared::{ContentHash, Entry, GenerationNumber, Kind, RootEntry, TreePath};

use super::file_changes::{self, FileChange, Reach};
use crate::store::{Records, Store, StoreError};
use crate::tree_objects::{TreeObjectError, TreeObjects};

const NAMESPACE: &str = "taken seconds";
/// Number of paths remembered; those that have been gone for the most generations are forgotten first.
const PATHS_MAX: usize = 100_000;

type Name = [u8; 8];

/// The highest second that a path had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Taken {
    generation: u64,
    pub second: i64,
    content: Name,
}

impl Taken {
    pub(super) fn new(generation: u64, second: i64, content: &ContentHash) -> Self {
        Self { generation, second, content: first_bytes(content.as_bytes()) }
    }

    /// Whether the second belongs to this content.
    pub(super) fn is_of(&self, content: &ContentHash) -> bool {
        self.content == first_bytes(content.as_bytes())
    }

    fn encode(&self) -> Vec<u8> {
        [self.generation.to_le_bytes(), self.second.to_le_bytes(), self.content].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let [generation, second, content] = bytes.as_chunks::<8>().0 else { return None };
        let [generation, second] = [generation, second].map(|bytes| u64::from_le_bytes(*bytes));
        (bytes.len() == 24).then_some(Self { generation, second: second.cast_signed(), content: *content })
    }
}

/// The seconds taken by earlier generations. See the module documentation.
#[derive(Debug, Default)]
pub(super) struct TakenSeconds {
    paths: HashMap<Name, Taken>,
}

/// Changes of the table caused by a generation. `None` removes a path.
#[derive(Debug, Default)]
pub(super) struct TakenChanges {
    paths: HashMap<Name, Option<Taken>>,
}

impl TakenSeconds {
    /// Reads the whole table.
    pub(super) fn load(store: &Store) -> Result<Self, StoreError> {
        let damaged = StoreError::Entry { table: "records" };
        let rows = store.records(NAMESPACE, b"")?.into_iter();
        let row =
            |(name, value): (Vec<u8>, Vec<u8>)| Some((Name::try_from(name).ok()?, Taken::decode(&value)?));
        Ok(Self { paths: rows.map(row).collect::<Option<_>>().ok_or(damaged)? })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    pub(super) fn get(&self, path: &TreePath) -> Option<Taken> {
        self.paths.get(&name(path)).copied()
    }

    /// Changes of the table if `to` replaces `from`, the generation with this number. Reads the directories
    /// that differ, and removed ones.
    pub(super) fn changes(
        &self,
        objects: TreeObjects<'_>,
        (number, from): (GenerationNumber, &RootEntry),
        to: &RootEntry,
    ) -> Result<TakenChanges, DiffError<TreeObjectError>> {
        let mut changes = TakenChanges::default();
        // New paths matter only if one of them may be in the table.
        let reach = if self.is_empty() { Reach::Gone } else { Reach::Whole };
        file_changes::each(objects, from, to, reach, &mut |change| {
            if changes.paths.len() < PATHS_MAX {
                self.note(number, change, &mut changes);
            }
        })?;
        self.forget_oldest(&mut changes);
        Ok(changes)
    }

    fn note(&self, number: GenerationNumber, change: &FileChange<'_>, changes: &mut TakenChanges) {
        let name = name(change.path);
        let before = change.from.and_then(|from| taken(number, from));
        let known = self.paths.get(&name).copied();
        let highest = before.into_iter().chain(known).max_by_key(|taken| taken.second);
        let Some(highest) = highest else { return };
        match change.to {
            Some(to) if to.metadata.mtime.seconds >= highest.second => {
                if known.is_some() {
                    changes.paths.insert(name, None);
                }
            }
            _ if known == Some(highest) => {}
            _ => {
                changes.paths.insert(name, Some(highest));
            }
        }
    }

    /// Removes the oldest paths beyond the limit of the resulting table.
    fn forget_oldest(&self, changes: &mut TakenChanges) {
        let kept = |(name, taken): (&Name, &Taken)| {
            (!changes.paths.contains_key(name)).then_some((taken.generation, *name))
        };
        let added = changes.paths.values().flatten().count();
        let mut kept: Vec<(u64, Name)> = self.paths.iter().filter_map(kept).collect();
        let excess = (kept.len() + added).saturating_sub(PATHS_MAX);
        if excess > 0 {
            kept.sort_unstable();
            changes.paths.extend(kept.into_iter().take(excess).map(|(_, name)| (name, None)));
        }
    }

    /// Applies changes that have become durable.
    pub(super) fn apply(&mut self, changes: TakenChanges) {
        for (name, taken) in changes.paths {
            match taken {
                Some(taken) => self.paths.insert(name, taken),
                None => self.paths.remove(&name),
            };
        }
    }
}

impl TakenChanges {
    /// Writes the changes in the transaction that seals.
    pub(super) fn put(&self, records: &mut Records<'_>) -> Result<(), StoreError> {
        for (name, taken) in &self.paths {
            match taken {
                Some(taken) => records.put(NAMESPACE, name, &taken.encode())?,
                None => {
                    records.remove(NAMESPACE, name)?;
                }
            }
        }
        Ok(())
    }
}

fn taken(number: GenerationNumber, entry: &Entry) -> Option<Taken> {
    match entry.kind {
        Kind::File { content, .. } => Some(Taken::new(number.get(), entry.metadata.mtime.seconds, &content)),
        Kind::Directory { .. } | Kind::Symlink { .. } | Kind::Collected { .. } => None,
    }
}

fn name(path: &TreePath) -> Name {
    first_bytes(blake3::hash(path.as_bytes()).as_bytes())
}

fn first_bytes(hash: &[u8; 32]) -> Name {
    let [a, b, c, d, e, f, g, h, ..] = *hash;
    [a, b, c, d, e, f, g, h]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(n: usize) -> TreePath {
        TreePath::from_bytes(format!("f{n}").as_bytes()).unwrap()
    }

    #[test]
    fn records_survive_and_other_bytes_are_none() {
        let taken = Taken::new(7, -5, &ContentHash::of(b"x"));
        assert_eq!(Taken::decode(&taken.encode()), Some(taken));
        assert!(taken.is_of(&ContentHash::of(b"x")) && !taken.is_of(&ContentHash::of(b"y")));
        for length in (0..40).filter(|length| *length != 24) {
            assert_eq!(Taken::decode(&vec![1; length]), None, "{length}");
        }
    }

    #[test]
    fn the_table_is_bounded_and_the_oldest_paths_are_forgotten_first() {
        let mut table = TakenSeconds::default();
        let of = |n: usize| Taken::new(n as u64, 1, &ContentHash::of(b"x"));
        table.paths.extend((0..PATHS_MAX).map(|n| (name(&path(n)), of(n))));
        let mut changes = TakenChanges::default();
        changes.paths.extend((PATHS_MAX..PATHS_MAX + 3).map(|n| (name(&path(n)), Some(of(n)))));
        changes.paths.insert(name(&path(1)), None);
        table.forget_oldest(&mut changes);
        table.apply(changes);
        assert_eq!(table.paths.len(), PATHS_MAX);
        assert_eq!([0, 1, 2, 3].map(|n| table.get(&path(n)).is_some()), [false, false, false, true]);
        assert!(table.get(&path(PATHS_MAX + 2)).is_some());
    }
}
