//! Bytes of chains, rows and losers in the databases of origins and agents.
//!
//! All integers are little endian. Every value ends with a checksum of its key and itself, because redb
//! checks its pages only when it opens a file.
//!
//! ```text
//! state:   u8 kind: 0 absent, 1 directory, 2 file; a directory: u16 mode;
//!          a file: 32 content hash, u64 size, u16 mode, i64 mtime seconds, u32 mtime nanoseconds
//! version: u64 number, state
//! chain:   version, u64 since, u32 count, per past version: version, u64 since,
//!          u64 until
//! row:     u8 flags: 1 base, 2 newest, 4 sent; the versions base and newest, the state sent
//! loser:   state, u64 at, u16 length, name of the node, path
//! ```

use super::{Chain, FileState, Loser, Past, Row, State, Version, VersionNumber};
use crate::directory::{MODE_MASK, Timestamp};
use crate::hash::ContentHash;
use crate::tree_path::{TreePath, TreePathError};

const CHECKSUM_BYTES: usize = 8;

/// A value that nobody wrote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoredError {
    #[error("a stored value fails its checksum")]
    Checksum,
    #[error("a stored value ends early")]
    Truncated,
    #[error("a stored value has kind {actual}")]
    Kind { actual: u8 },
    #[error("a stored value has invalid metadata")]
    Metadata,
    #[error("a stored value has an invalid name")]
    Name,
    #[error("a stored value has an invalid path")]
    Path(#[from] TreePathError),
}

/// Adds the checksum of a value and its key.
pub fn with_checksum(key: &[u8], mut value: Vec<u8>) -> Vec<u8> {
    let sum = checksum(key, &value);
    value.extend_from_slice(&sum);
    value
}

/// Reverses [`with_checksum`].
pub fn without_checksum<'a>(key: &[u8], stored: &'a [u8]) -> Result<&'a [u8], StoredError> {
    let at = stored.len().checked_sub(CHECKSUM_BYTES).ok_or(StoredError::Truncated)?;
    let (value, sum) = stored.split_at_checked(at).ok_or(StoredError::Truncated)?;
    if checksum(key, value) == sum { Ok(value) } else { Err(StoredError::Checksum) }
}

fn checksum(key: &[u8], value: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(key.len() as u64).to_le_bytes()).update(key).update(value);
    let mut sum = [0; CHECKSUM_BYTES];
    hasher.finalize_xof().fill(&mut sum);
    sum
}

impl Chain {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_version(&mut out, &self.current());
        out.extend_from_slice(&self.since_ms().to_le_bytes());
        out.extend_from_slice(&(self.past().len() as u32).to_le_bytes());
        for past in self.past() {
            put_version(&mut out, &past.version);
            out.extend_from_slice(&past.since_ms.to_le_bytes());
            out.extend_from_slice(&past.until_ms.to_le_bytes());
            out.extend_from_slice(&past.until.get().to_le_bytes());
            out.push(u8::from(past.is_kept));
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, StoredError> {
        let mut reader = Reader(bytes);
        let (current, since_ms) = (reader.version()?, reader.u64()?);
        let count = u32::from_le_bytes(reader.take()?);
        let past = (0..count).map(|_| reader.past());
        let past = past.collect::<Result<Vec<_>, StoredError>>()?;
        Ok(Self::from_parts(current, since_ms, past))
    }
}

impl Row {
    pub fn encode(&self) -> Vec<u8> {
        let (base, newest, sent) = (self.base(), self.newest(), self.sent());
        let flag = |is_there: bool, bit: u8| if is_there { bit } else { 0 };
        let mut out = vec![flag(base.is_some(), 1) | flag(newest.is_some(), 2) | flag(sent.is_some(), 4)];
        base.iter().chain(&newest).for_each(|version| put_version(&mut out, version));
        sent.iter().for_each(|state| put_state(&mut out, state));
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, StoredError> {
        let mut reader = Reader(bytes);
        let [flags] = reader.take()?;
        let base = (flags & 1 != 0).then(|| reader.version()).transpose()?;
        let newest = (flags & 2 != 0).then(|| reader.version()).transpose()?;
        let sent = (flags & 4 != 0).then(|| reader.state()).transpose()?;
        Ok(Self::from_parts(base, newest, sent))
    }
}

impl Loser {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_state(&mut out, &State::File(self.file));
        out.extend_from_slice(&self.at_ms.to_le_bytes());
        out.extend_from_slice(&(self.node.len() as u16).to_le_bytes());
        out.extend_from_slice(self.node.as_bytes());
        out.extend_from_slice(self.path.as_bytes());
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, StoredError> {
        let mut reader = Reader(bytes);
        let State::File(file) = reader.state()? else { return Err(StoredError::Kind { actual: 0 }) };
        let at_ms = reader.u64()?;
        let length = usize::from(u16::from_le_bytes(reader.take()?));
        let (node, path) = reader.0.split_at_checked(length).ok_or(StoredError::Truncated)?;
        let node = std::str::from_utf8(node).map_err(|_| StoredError::Name)?.to_owned();
        Ok(Self { path: TreePath::from_bytes(path)?, file, node, at_ms })
    }
}

/// Appends a state.
pub fn put_state(out: &mut Vec<u8>, state: &State) {
    match state {
        State::Absent => out.push(0),
        State::Directory { mode } => {
            out.push(1);
            out.extend_from_slice(&mode.to_le_bytes());
        }
        State::File(file) => {
            out.push(2);
            out.extend_from_slice(file.content.as_bytes());
            out.extend_from_slice(&file.size.to_le_bytes());
            out.extend_from_slice(&file.mode.to_le_bytes());
            out.extend_from_slice(&file.mtime.seconds.to_le_bytes());
            out.extend_from_slice(&file.mtime.nanoseconds.to_le_bytes());
        }
    }
}

fn put_version(out: &mut Vec<u8>, version: &Version) {
    out.extend_from_slice(&version.number.get().to_le_bytes());
    put_state(out, &version.state);
}

/// Reads a state, and returns the bytes behind it.
pub fn take_state(bytes: &[u8]) -> Result<(State, &[u8]), StoredError> {
    let mut reader = Reader(bytes);
    let state = reader.state()?;
    Ok((state, reader.0))
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], StoredError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(StoredError::Truncated)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u64(&mut self) -> Result<u64, StoredError> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    fn version(&mut self) -> Result<Version, StoredError> {
        Ok(Version { number: VersionNumber::new(self.u64()?), state: self.state()? })
    }

    fn past(&mut self) -> Result<Past, StoredError> {
        let (version, since_ms, until_ms) = (self.version()?, self.u64()?, self.u64()?);
        let until = VersionNumber::new(self.u64()?);
        let is_kept = match self.take()? {
            [0] => false,
            [1] => true,
            _ => return Err(StoredError::Metadata),
        };
        Ok(Past { version, since_ms, until_ms, until, is_kept })
    }

    fn mode(&mut self) -> Result<u16, StoredError> {
        let mode = u16::from_le_bytes(self.take()?);
        if mode & !MODE_MASK == 0 { Ok(mode) } else { Err(StoredError::Metadata) }
    }

    fn state(&mut self) -> Result<State, StoredError> {
        match self.take()? {
            [0] => Ok(State::Absent),
            [1] => Ok(State::Directory { mode: self.mode()? }),
            [2] => {
                let (content, size) = (ContentHash::from_bytes(self.take()?), self.u64()?);
                let mode = self.mode()?;
                let (seconds, nanoseconds) =
                    (i64::from_le_bytes(self.take()?), u32::from_le_bytes(self.take()?));
                let mtime = Timestamp { seconds, nanoseconds };
                Ok(State::File(FileState { content, size, mode, mtime }))
            }
            [actual] => Err(StoredError::Kind { actual }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::file;
    use super::*;

    fn version(number: u64, state: State) -> Version {
        Version { number: VersionNumber::new(number), state }
    }

    #[test]
    fn decoding_returns_what_was_encoded() {
        let mut chain = Chain::default();
        for (number, state) in [(1, file(1)), (2, State::Absent), (3, State::Directory { mode: 0o750 })] {
            chain.take(version(number, state), number * 10);
            chain.give_up(VersionNumber::new(2));
            assert_eq!(Chain::decode(&chain.encode()), Ok(chain.clone()));
        }
        let versions = [None, Some(version(1, file(1))), Some(version(2, State::Absent))];
        for (base, newest) in versions.into_iter().flat_map(|base| versions.map(|newest| (base, newest))) {
            for sent in [None, Some(file(3))] {
                let row = Row::from_parts(base, newest, sent);
                assert_eq!(Row::decode(&row.encode()), Ok(row));
            }
        }
        let State::File(file) = file(7) else { panic!("a file") };
        let path = TreePath::from_bytes(b"a/b").expect("a path");
        let loser = Loser { path, file, node: "web-1".into(), at_ms: 5 };
        assert_eq!(Loser::decode(&loser.encode()), Ok(loser));
    }

    #[test]
    fn damage_is_noticed() {
        let mut chain = Chain::default();
        chain.take(version(1, file(1)), 1);
        chain.take(version(2, file(2)), 2);
        let good = chain.encode();
        (0..good.len()).for_each(|end| assert!(Chain::decode(&good[..end]).is_err(), "{end}"));
        let stored = with_checksum(b"key", good.clone());
        assert_eq!(without_checksum(b"key", &stored), Ok(&*good));
        assert!(without_checksum(b"other", &stored).is_err());
        for at in 0..stored.len() {
            let mut bad = stored.clone();
            bad[at] ^= 1;
            assert!(without_checksum(b"key", &bad).is_err(), "{at}");
        }
    }
}
