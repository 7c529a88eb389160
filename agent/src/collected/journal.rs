//! The journal: what this node knows of each path, in a database of its own.
//!
//! Losing it loses no file. Without it the node removes nothing, and offers everything that it has. A damaged
//! journal is therefore replaced by an empty one.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use redb::{Database, Durability, ReadableDatabase, TableDefinition};
use syncd_shared::TreePath;
use syncd_shared::collected::stored::{put_state, take_state, with_checksum, without_checksum};
use syncd_shared::collected::{CollectedName, Row, State};
use syncd_shared::text::error_chain;

use super::error::CollectedError;
use crate::state::disk::Dir;

const CACHE_BYTES: usize = 8 * 1024 * 1024;

/// Directory and path -> u16 length, row; u8: 1 if a fingerprint and the state seen follow.
const ROWS: TableDefinition<'_, (&str, &[u8]), &[u8]> = TableDefinition::new("rows");
/// Directory -> newest version received, line of the origin's numbers.
const POSITIONS: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("positions");

/// Marks of a file that change with its content: inode, size, time of change and time of modification.
pub(crate) type Fingerprint = [u8; FINGERPRINT_BYTES];
pub(crate) const FINGERPRINT_BYTES: usize = 40;

/// The journal's knowledge of a path.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Known {
    pub row: Row,
    /// The state that was read from the file with this fingerprint.
    pub seen: Option<(Fingerprint, State)>,
}

impl Known {
    fn encode(&self) -> Vec<u8> {
        let row = self.row.encode();
        let mut out = (row.len() as u16).to_le_bytes().to_vec();
        out.extend_from_slice(&row);
        out.push(u8::from(self.seen.is_some()));
        if let Some((fingerprint, state)) = &self.seen {
            out.extend_from_slice(fingerprint);
            put_state(&mut out, state);
        }
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (length, rest) = bytes.split_first_chunk()?;
        let (row, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
        let (flags, rest) = rest.split_first()?;
        let seen = match flags {
            0 => None,
            _ => {
                let (fingerprint, rest) = rest.split_first_chunk()?;
                Some((*fingerprint, take_state(rest).ok()?.0))
            }
        };
        Some(Self { row: Row::decode(row).ok()?, seen })
    }
}

fn failed(error: impl Into<redb::Error>) -> CollectedError {
    CollectedError::Journal(Box::new(error.into()))
}

fn key(name: &CollectedName, path: &TreePath) -> Vec<u8> {
    [name.as_bytes(), b"\0", path.as_bytes()].concat()
}

/// Position in the versions of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Position {
    pub after: u64,
    pub line: Vec<u8>,
}

pub(crate) struct Journal {
    database: Database,
    path: PathBuf,
}

impl Journal {
    /// Opens or creates the journal. A damaged one is replaced.
    pub fn open(path: &Path) -> Result<Self, CollectedError> {
        match Self::open_sound(path) {
            Err(error) if error.is_damage() => Self::begin_anew(path, &error),
            opened => opened,
        }
    }

    /// Replaces the journal, which turned out to be damaged, by an empty one.
    pub fn replace(&mut self, damage: &CollectedError) -> Result<(), CollectedError> {
        *self = Self::begin_anew(&self.path, damage)?;
        Ok(())
    }

    fn begin_anew(path: &Path, damage: &CollectedError) -> Result<Self, CollectedError> {
        tracing::error!(
            path = %path.display(),
            error = error_chain(damage),
            "the journal of collected directories is replaced: this node removes nothing, and offers what it has"
        );
        if let (Some(parent), Some(name)) = (path.parent(), path.file_name()) {
            Dir::open_path(parent)?.unlink(name.as_bytes())?;
        }
        Self::open_sound(path)
    }

    fn open_sound(path: &Path) -> Result<Self, CollectedError> {
        let database = redb::Builder::new().set_cache_size(CACHE_BYTES).create(path).map_err(failed)?;
        let transaction = database.begin_write().map_err(failed)?;
        transaction.open_table(ROWS).map_err(failed)?;
        transaction.open_table(POSITIONS).map_err(failed)?;
        transaction.commit().map_err(failed)?;
        Ok(Self { database, path: path.to_owned() })
    }

    pub fn get(&self, name: &CollectedName, path: &TreePath) -> Result<Known, CollectedError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let rows = transaction.open_table(ROWS).map_err(failed)?;
        let Some(stored) = rows.get((name.as_str(), path.as_bytes())).map_err(failed)? else {
            return Ok(Known::default());
        };
        // A damaged row is a lost one.
        let value = without_checksum(&key(name, path), stored.value()).ok();
        Ok(value.and_then(Known::decode).unwrap_or_default())
    }

    /// All paths with a row.
    pub fn paths(&self, name: &CollectedName) -> Result<Vec<TreePath>, CollectedError> {
        self.paths_with(name, b"")
    }

    /// Paths with a row below a directory.
    pub fn paths_below(
        &self,
        name: &CollectedName,
        path: &TreePath,
    ) -> Result<Vec<TreePath>, CollectedError> {
        self.paths_with(name, &[path.as_bytes(), b"/"].concat())
    }

    fn paths_with(&self, name: &CollectedName, prefix: &[u8]) -> Result<Vec<TreePath>, CollectedError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let rows = transaction.open_table(ROWS).map_err(failed)?;
        let mut paths = Vec::new();
        for row in rows.range((name.as_str(), prefix)..).map_err(failed)? {
            let (found, _) = row.map_err(failed)?;
            let (directory, path) = found.value();
            if directory != name.as_str() || !path.starts_with(prefix) {
                break;
            }
            paths.extend(TreePath::from_bytes(path));
        }
        Ok(paths)
    }

    pub fn position(&self, name: &CollectedName) -> Result<Position, CollectedError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let positions = transaction.open_table(POSITIONS).map_err(failed)?;
        let found = positions.get(name.as_str()).map_err(failed)?;
        Ok(found.map_or_else(Position::default, |found| {
            let (after, line) = found.value();
            Position { after, line: line.to_vec() }
        }))
    }

    /// Replaces rows and positions, durably.
    pub fn put<'a>(
        &self,
        rows: impl IntoIterator<Item = (&'a (CollectedName, TreePath), &'a Known)>,
        positions: impl IntoIterator<Item = (&'a CollectedName, &'a Position)>,
    ) -> Result<(), CollectedError> {
        let mut transaction = self.database.begin_write().map_err(failed)?;
        transaction.set_durability(Durability::Immediate).map_err(failed)?;
        {
            let mut table = transaction.open_table(ROWS).map_err(failed)?;
            for ((name, path), known) in rows {
                let value = with_checksum(&key(name, path), known.encode());
                table.insert((name.as_str(), path.as_bytes()), value.as_slice()).map_err(failed)?;
            }
            let mut table = transaction.open_table(POSITIONS).map_err(failed)?;
            for (name, position) in positions {
                table.insert(name.as_str(), (position.after, position.line.as_slice())).map_err(failed)?;
            }
        }
        transaction.commit().map_err(failed)
    }

    /// Forgets everything of a directory, and begins at `position`.
    pub fn clear(&self, name: &CollectedName, position: &Position) -> Result<(), CollectedError> {
        let transaction = self.database.begin_write().map_err(failed)?;
        {
            let mut rows = transaction.open_table(ROWS).map_err(failed)?;
            let (first, end) = ((name.as_str(), b"".as_slice()), format!("{name}\0"));
            rows.retain_in(first..(end.as_str(), b"".as_slice()), |_, _| false).map_err(failed)?;
            let mut table = transaction.open_table(POSITIONS).map_err(failed)?;
            table.insert(name.as_str(), (position.after, position.line.as_slice())).map_err(failed)?;
        }
        transaction.commit().map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use syncd_shared::collected::{Version, VersionNumber};

    use super::*;

    #[test]
    fn a_row_survives_and_is_forgotten_with_its_directory() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("journal.redb");
        let journal = Journal::open(&path).unwrap();
        let [uploads, other]: [CollectedName; 2] = ["uploads", "uploads2"].map(|name| name.parse().unwrap());
        let at = TreePath::from_bytes(b"a/b").unwrap();
        let state = State::Directory { mode: 0o755 };
        let version = Version { number: VersionNumber::new(3), state };
        let known = Known {
            row: Row::from_parts(Some(version), None, Some(State::Absent)),
            seen: Some(([7; FINGERPRINT_BYTES], state)),
        };
        let position = Position { after: 3, line: vec![1, 2] };
        let rows =
            [((uploads.clone(), at.clone()), known.clone()), ((other.clone(), at.clone()), known.clone())];
        journal.put(rows.iter().map(|(key, known)| (key, known)), [(&uploads, &position)]).unwrap();
        drop(journal);
        let journal = Journal::open(&path).unwrap();
        assert_eq!(journal.get(&uploads, &at).unwrap(), known);
        assert_eq!(journal.position(&uploads).unwrap(), position);
        assert_eq!(journal.paths(&uploads).unwrap(), std::slice::from_ref(&at));
        journal.clear(&uploads, &Position::default()).unwrap();
        assert_eq!(journal.get(&uploads, &at).unwrap(), Known::default());
        assert_eq!(journal.get(&other, &at).unwrap(), known);
    }

    #[test]
    fn a_damaged_journal_is_replaced_by_an_empty_one() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("journal.redb");
        let name: CollectedName = "uploads".parse().unwrap();
        let position = Position { after: 3, line: vec![1, 2] };
        for damage in [&b"not a database"[..], &[0; 8192]] {
            let journal = Journal::open(&path).unwrap();
            journal.put([], [(&name, &position)]).unwrap();
            drop(journal);
            std::fs::write(&path, damage).unwrap();
            let journal = Journal::open(&path).unwrap();
            assert_eq!(journal.position(&name).unwrap(), Position::default());
        }
    }
}
