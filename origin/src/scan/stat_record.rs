//! The stat record: the state of a directory's files when their content was last read.
//!
//! The store has one record per directory, under its path, whose files may continue in further rows
//! ([`super::stat_rows`]). A file with the recorded fingerprint has the recorded content, unless it is marked
//! racy. Canonical bytes, version 2, integers little endian:
//!
//! ```text
//! u8 version = 2
//! directory itself: u64 device, u64 inode, 12 mtime, 12 ctime    (a time: i64 seconds, u32 nanoseconds)
//! u8 1 and a fingerprint if it has a .syncdignore, otherwise u8 0
//! per file, sorted by name: u8 name length, name, fingerprint, 32 content hash, u8 racy
//! fingerprint: u64 size, 12 mtime, 12 ctime, u64 inode
//! further rows: u8 version, files
//! ```
//!
//! Invalid bytes and other versions count as a missing record: the files are read again.

use syncd_shared::{Component, ContentHash, Timestamp};

use super::file_stat::{FileStat, Fingerprint};

const VERSION: u8 = 2;

/// Identity and times of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Own {
    pub device: u64,
    pub inode: u64,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
}

impl Own {
    pub(super) fn of(stat: &FileStat) -> Self {
        let Fingerprint { mtime, ctime, inode, .. } = stat.fingerprint;
        Self { device: stat.device, inode, mtime, ctime }
    }

    /// Reads only the head of a record.
    pub(super) fn of_record(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        if take::<1>(&mut rest)? != [VERSION] {
            return None;
        }
        take_own(&mut rest)
    }

    /// Whether both are the same directory, whatever its content.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

/// A file whose content was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ReadFile {
    pub name: Component,
    pub fingerprint: Fingerprint,
    pub content: ContentHash,
    /// The file changed so shortly before it was read that a change right after may be invisible.
    pub racy: bool,
}

/// The record of one directory, or a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StatRecord {
    pub own: Own,
    pub ignore_file: Option<Fingerprint>,
    /// Sorted by name.
    pub files: Vec<ReadFile>,
}

impl StatRecord {
    /// The file with this name and fingerprint, if its content is certain.
    pub(super) fn known(&self, name: &Component, fingerprint: &Fingerprint) -> Option<&ReadFile> {
        self.file(name).filter(|file| !file.racy && file.fingerprint == *fingerprint)
    }

    pub(super) fn file(&self, name: &Component) -> Option<&ReadFile> {
        let at = self.files.binary_search_by(|file| file.name.cmp(name)).ok()?;
        Some(&self.files[at])
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn encode(&self) -> Vec<u8> {
        self.encode_with(&self.files)
    }

    /// Encodes the record with these files only.
    pub(super) fn encode_with(&self, files: &[ReadFile]) -> Vec<u8> {
        let mut out = Vec::with_capacity(96 + files.len() * 96);
        out.push(VERSION);
        out.extend_from_slice(&self.own.device.to_le_bytes());
        out.extend_from_slice(&self.own.inode.to_le_bytes());
        put_time(self.own.mtime, &mut out);
        put_time(self.own.ctime, &mut out);
        out.push(u8::from(self.ignore_file.is_some()));
        if let Some(fingerprint) = &self.ignore_file {
            put_fingerprint(fingerprint, &mut out);
        }
        put_files(files, &mut out);
        out
    }

    /// `None` for invalid bytes and other versions.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let rest = &mut rest;
        if take::<1>(rest)? != [VERSION] {
            return None;
        }
        let own = take_own(rest)?;
        let ignore_file = match take::<1>(rest)? {
            [0] => None,
            [1] => Some(take_fingerprint(rest)?),
            _ => return None,
        };
        Some(Self { own, ignore_file, files: take_files(rest)? })
    }
}

/// A row of files without a directory.
pub(super) fn encode_files(files: &[ReadFile]) -> Vec<u8> {
    let mut out = vec![VERSION];
    put_files(files, &mut out);
    out
}

/// `None` for invalid bytes and other versions.
pub(super) fn decode_files(bytes: &[u8]) -> Option<Vec<ReadFile>> {
    let (version, mut files) = bytes.split_first()?;
    if *version == VERSION { take_files(&mut files) } else { None }
}

fn put_files(files: &[ReadFile], out: &mut Vec<u8>) {
    for file in files {
        let name = file.name.as_bytes();
        out.push(name.len() as u8);
        out.extend_from_slice(name);
        put_fingerprint(&file.fingerprint, out);
        out.extend_from_slice(file.content.as_bytes());
        out.push(u8::from(file.racy));
    }
}

fn take_files(rest: &mut &[u8]) -> Option<Vec<ReadFile>> {
    let mut files: Vec<ReadFile> = Vec::new();
    while !rest.is_empty() {
        let [length] = take(rest)?;
        let (name, after) = rest.split_at_checked(usize::from(length))?;
        *rest = after;
        let name = Component::new(name).ok()?;
        let fingerprint = take_fingerprint(rest)?;
        let content = ContentHash::from_bytes(take(rest)?);
        let racy = take::<1>(rest)? != [0];
        if files.last().is_some_and(|last| last.name >= name) {
            return None;
        }
        files.push(ReadFile { name, fingerprint, content, racy });
    }
    Some(files)
}

fn put_time(time: Timestamp, out: &mut Vec<u8>) {
    out.extend_from_slice(&time.seconds.to_le_bytes());
    out.extend_from_slice(&time.nanoseconds.to_le_bytes());
}

fn put_fingerprint(fingerprint: &Fingerprint, out: &mut Vec<u8>) {
    out.extend_from_slice(&fingerprint.size.to_le_bytes());
    put_time(fingerprint.mtime, out);
    put_time(fingerprint.ctime, out);
    out.extend_from_slice(&fingerprint.inode.to_le_bytes());
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*taken)
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    take(rest).map(u64::from_le_bytes)
}

fn take_own(rest: &mut &[u8]) -> Option<Own> {
    let (device, inode) = (take_u64(rest)?, take_u64(rest)?);
    Some(Own { device, inode, mtime: take_time(rest)?, ctime: take_time(rest)? })
}

fn take_time(rest: &mut &[u8]) -> Option<Timestamp> {
    let seconds = i64::from_le_bytes(take(rest)?);
    Some(Timestamp { seconds, nanoseconds: u32::from_le_bytes(take(rest)?) })
}

fn take_fingerprint(rest: &mut &[u8]) -> Option<Fingerprint> {
    let size = take_u64(rest)?;
    let (mtime, ctime) = (take_time(rest)?, take_time(rest)?);
    Some(Fingerprint { size, mtime, ctime, inode: take_u64(rest)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> StatRecord {
        let time = |nanoseconds| Timestamp { seconds: -5, nanoseconds };
        let file = |name: &[u8], racy| ReadFile {
            name: Component::new(name).unwrap(),
            fingerprint: Fingerprint { size: 9, mtime: time(1), ctime: time(2), inode: 3 },
            content: ContentHash::of(name),
            racy,
        };
        StatRecord {
            own: Own { device: 1, inode: 2, mtime: time(3), ctime: time(4) },
            ignore_file: Some(file(b"x", false).fingerprint),
            files: vec![file(b"a", false), file(b"b\xff", true)],
        }
    }

    #[test]
    fn decoding_returns_what_was_encoded() {
        for ignore_file in [None, record().ignore_file] {
            let record = StatRecord { ignore_file, ..record() };
            assert_eq!(Own::of_record(&record.encode()), Some(record.own));
            assert_eq!(StatRecord::decode(&record.encode()), Some(record));
        }
    }

    #[test]
    fn other_bytes_are_no_record() {
        let bytes = record().encode();
        let whole = record().files.len();
        for end in 0..bytes.len() {
            // Cut between two files it is a record that knows less.
            assert!(StatRecord::decode(&bytes[..end]).is_none_or(|record| record.files.len() < whole));
        }
        let mut other = bytes;
        other[0] = 1;
        assert_eq!(StatRecord::decode(&other), None);
    }

    #[test]
    fn racy_files_and_other_fingerprints_are_not_known() {
        let record = record();
        let [a, b] = &record.files[..] else { panic!("two files") };
        assert_eq!(record.known(&a.name, &a.fingerprint), Some(a));
        assert_eq!(record.known(&b.name, &b.fingerprint), None);
        assert_eq!(record.known(&a.name, &Fingerprint { inode: 4, ..a.fingerprint }), None);
    }
}
