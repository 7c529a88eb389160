//! The journal: what this node knows of each path, in a database of its own.
//!
//! Losing it loses no file. Without it the node removes nothing, and offers everything that it has.

use std::path::Path;

use redb::{Database, Durability, ReadableDatabase, TableDefinition};
use syncd_shared::TreePath;
use syncd_shared::collected::stored::{put_state, take_state, with_checksum, without_checksum};
use syncd_shared::collected::{CollectedName, Row, State};

use super::error::CollectedError;

const CACHE_BYTES: usize = 8 * 1024 * 1024;

/// Directory and path -> u16 length, row; u8 flags: 1 seen, 2 refused; fingerprint and state seen; state
/// refused.
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
    /// A local state that the origin refused. It stays on this node until it changes.
    pub refused: Option<State>,
}

impl Known {
    fn encode(&self) -> Vec<u8> {
        let row = self.row.encode();
        let mut out = (row.len() as u16).to_le_bytes().to_vec();
        out.extend_from_slice(&row);
        out.push(u8::from(self.seen.is_some()) | u8::from(self.refused.is_some()) << 1);
        if let Some((fingerprint, state)) = &self.seen {
            out.extend_from_slice(fingerprint);
            put_state(&mut out, state);
        }
        self.refused.iter().for_each(|state| put_state(&mut out, state));
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (length, rest) = bytes.split_first_chunk()?;
        let (row, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
        let (flags, rest) = rest.split_first()?;
        let (seen, rest) = match flags & 1 {
            0 => (None, rest),
            _ => {
                let (fingerprint, rest) = rest.split_first_chunk()?;
                let (state, rest) = take_state(rest).ok()?;
                (Some((*fingerprint, state)), rest)
            }
        };
        let refused = if flags & 2 == 0 { None } else { Some(take_state(rest).ok()?.0) };
        Some(Self { row: Row::decode(row).ok()?, seen, refused })
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
}

impl Journal {
    /// Opens the journal. An unreadable one is replaced by an empty one: no file is lost by that.
    pub fn open(path: &Path) -> Result<Self, CollectedError> {
        let database = redb::Builder::new().set_cache_size(CACHE_BYTES).create(path).map_err(failed)?;
        let transaction = database.begin_write().map_err(failed)?;
        transaction.open_table(ROWS).map_err(failed)?;
        transaction.open_table(POSITIONS).map_err(failed)?;
        transaction.commit().map_err(failed)?;
        Ok(Self { database })
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
            refused: Some(state),
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
}
