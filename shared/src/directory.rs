//! Directory objects: the entries of one directory, in canonical bytes, named by their hash.
//!
//! A directory with more than 8 KiB of entries is a small tree of objects, its pages, and is named by the
//! hash of the root page. An edit makes the pages on the way to the changed names anew, and no others
//! ([`edit()`]). Canonical bytes of a page (all integers little endian):
//!
//! ```text
//! u8  format: 1 entries, 16 + n pages of level n - 1 (n from 1 to 7)
//! per entry, sorted bytewise by name, names unique:
//!   u8 name length, name
//!   u8 kind: 1 directory, 2 file, 3 symlink, 4 collected directory
//!   u16 mode (permission and sticky bits), u32 uid, u32 gid, i64 mtime seconds, u32 mtime nanoseconds
//!   directory: 32 object hash, u64 entries, u64 files, u64 bytes   (totals of all below it)
//!   file:      32 content hash, u64 size in bytes
//!   symlink:   u16 target length, target
//!   collected: u8 name length, name
//! per page, in order of names:
//!   u8 name length, the last name in it
//!   32 object hash, u64 names, u64 bytes of entries, u64 entries, u64 files, u64 bytes   (totals)
//! ```
//!
//! A page ends after a name whose hash says so, if it has at least 16 items, and in any case after 256 items
//! or 64 KiB. The cuts depend on the names (and, for very long entries, on their lengths), never on the order
//! of edits: the hash depends on the entries alone.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

mod build;
pub mod cursor;
mod edit;
pub mod page;
#[cfg(test)]
pub(crate) mod pages_tests;

use crate::collected::CollectedName;
use crate::hash::{ContentHash, ObjectHash, tagged};
use crate::limits::SYMLINK_TARGET_MAX_BYTES;
use crate::tree_path::{Component, TreePathError};

pub use build::{Builder, Built};
pub use cursor::{ChangedLeaves, Cursor, Pair, Pairs};
pub use edit::{Edits, Overlay, edit};
pub use page::{Page, PageRef};

const DOMAIN: &str = "syncd 2026 directory object v1";
/// Permission bits and the sticky bit: setuid and setgid never travel.
pub const MODE_MASK: u16 = 0o1777;

/// Errors of decoding a directory object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeDirectoryError {
    /// The bytes end inside an entry.
    #[error("truncated at byte {at}")]
    Truncated {
        /// Offset where more was expected.
        at: usize,
    },
    /// Larger than [`crate::limits::PAGE_MAX_BYTES`].
    #[error("directory object of {actual} bytes exceeds {limit}")]
    TooLarge {
        /// Bytes given.
        actual: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// More entries than the caller allows.
    #[error("more than the {limit} entries that there can be")]
    TooMany {
        /// Entries allowed.
        limit: u64,
    },
    #[error("unknown format {actual} of a directory object")]
    Format {
        /// Format found.
        actual: u8,
    },
    /// A page is not what the page above says: level, names, bytes, totals, or the order of its names.
    #[error("page {object} of a directory is not what the page above it says")]
    Page {
        /// Hash of the page.
        object: ObjectHash,
    },
    /// A page ends elsewhere than its names say.
    #[error("page {object} of a directory does not end where its names say")]
    Boundary {
        /// Hash of the page.
        object: ObjectHash,
    },
    /// An edit or sum exceeds what there can be.
    #[error("the totals of a directory are too large")]
    Totals,
    #[error("invalid name")]
    Name(#[from] TreePathError),
    /// Names are not sorted, or one is repeated.
    #[error("name {name:?} is out of order or repeated")]
    Order {
        /// The second of the two names.
        name: Component,
    },
    #[error("unknown kind {actual} of entry {name:?}")]
    UnknownKind {
        /// Name of the entry.
        name: Component,
        /// Kind found.
        actual: u8,
    },
    /// A mode with bits that are never replicated, or nanoseconds of 1e9 or more.
    #[error("invalid metadata of entry {name:?}")]
    Metadata {
        /// Name of the entry.
        name: Component,
    },
    /// The name of a collected directory is not one.
    #[error("invalid name of the collected directory at entry {name:?}")]
    Collected {
        /// Name of the entry.
        name: Component,
    },
    /// A symlink target that is empty, too long or contains NUL.
    #[error("invalid symlink target of entry {name:?}")]
    Target {
        /// Name of the entry.
        name: Component,
    },
    /// The hash of the bytes is not the requested one.
    #[error("directory object hashes to {actual}, expected {expected}")]
    Hash {
        /// Hash asked for.
        expected: ObjectHash,
        /// Hash of the bytes.
        actual: ObjectHash,
    },
}

/// A point in time at the resolution of the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    /// Seconds since 1970; negative before.
    pub seconds: i64,
    /// Below 1e9.
    pub nanoseconds: u32,
}

/// Attributes that every kind of entry has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Metadata {
    /// Permission and sticky bits, within [`MODE_MASK`]. 0o777 for symlinks and collected directories.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Modification time.
    pub mtime: Timestamp,
}

/// Sums over everything below a directory, excluding the directory itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Totals {
    /// Files, directories, symlinks and collected directories.
    pub entries: u64,
    pub files: u64,
    /// Content bytes of the files.
    pub bytes: u64,
}

impl Totals {
    /// Sums that neither tree exceeds, counting files and other entries separately.
    pub fn covering(self, other: Totals) -> Totals {
        let others = |of: &Totals| of.entries.saturating_sub(of.files);
        let files = self.files.max(other.files);
        let entries = files.saturating_add(others(&self).max(others(&other)));
        Totals { entries, files, bytes: self.bytes.max(other.bytes) }
    }

    /// Adds another sum, up to the largest numbers.
    pub(crate) fn saturating_add(self, other: Totals) -> Totals {
        Totals {
            entries: self.entries.saturating_add(other.entries),
            files: self.files.saturating_add(other.files),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    /// Adds another sum; `None` on overflow.
    pub fn checked_add(self, other: Totals) -> Option<Totals> {
        Some(Totals {
            entries: self.entries.checked_add(other.entries)?,
            files: self.files.checked_add(other.files)?,
            bytes: self.bytes.checked_add(other.bytes)?,
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Kind {
    Directory {
        /// Its directory object.
        object: ObjectHash,
        /// Sums over the subtree, excluding the directory itself.
        totals: Totals,
    },
    /// A regular file.
    File {
        /// Hash of the whole content.
        content: ContentHash,
        size: u64,
    },
    /// A symbolic link: replicated verbatim, never followed.
    Symlink {
        /// 1 to 4,095 bytes without NUL.
        target: Box<[u8]>,
    },
    /// A directory that nodes write to, outside of the generations ([`crate::collected`]). On a node it is a
    /// symlink to its place there. The owner is that of the symlink and of the directory.
    Collected { name: CollectedName },
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entry {
    pub name: Component,
    pub metadata: Metadata,
    pub kind: Kind,
}

impl Entry {
    pub fn is_directory(&self) -> bool {
        matches!(self.kind, Kind::Directory { .. })
    }

    /// Contribution of this entry to the totals of its parent directory.
    pub fn totals(&self) -> Totals {
        let own = Totals { entries: 1, files: 0, bytes: 0 };
        match &self.kind {
            Kind::Directory { totals, .. } => Totals { entries: totals.entries.saturating_add(1), ..*totals },
            Kind::File { size, .. } => Totals { files: 1, bytes: *size, ..own },
            Kind::Symlink { .. } | Kind::Collected { .. } => own,
        }
    }

    /// Canonical bytes that it takes in a page, rounded up.
    pub fn encoded_bytes(&self) -> usize {
        let below = match &self.kind {
            Kind::Symlink { target } => target.len().saturating_add(2),
            Kind::Collected { name } => name.as_bytes().len().saturating_add(1),
            Kind::Directory { .. } | Kind::File { .. } => 56,
        };
        self.name.as_bytes().len().saturating_add(24).saturating_add(below)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let name = self.name.as_bytes();
        out.push(name.len() as u8);
        out.extend_from_slice(name);
        out.push(match self.kind {
            Kind::Directory { .. } => 1,
            Kind::File { .. } => 2,
            Kind::Symlink { .. } => 3,
            Kind::Collected { .. } => 4,
        });
        encode_metadata(&self.metadata, out);
        match &self.kind {
            Kind::Directory { object, totals } => {
                out.extend_from_slice(object.as_bytes());
                encode_totals(totals, out);
            }
            Kind::File { content, size } => {
                out.extend_from_slice(content.as_bytes());
                out.extend_from_slice(&size.to_le_bytes());
            }
            Kind::Symlink { target } => {
                out.extend_from_slice(&(target.len() as u16).to_le_bytes());
                out.extend_from_slice(target);
            }
            Kind::Collected { name } => {
                out.push(name.as_bytes().len() as u8);
                out.extend_from_slice(name.as_bytes());
            }
        }
    }
}

pub(crate) fn encode_metadata(metadata: &Metadata, out: &mut Vec<u8>) {
    out.extend_from_slice(&metadata.mode.to_le_bytes());
    out.extend_from_slice(&metadata.uid.to_le_bytes());
    out.extend_from_slice(&metadata.gid.to_le_bytes());
    out.extend_from_slice(&metadata.mtime.seconds.to_le_bytes());
    out.extend_from_slice(&metadata.mtime.nanoseconds.to_le_bytes());
}

pub(crate) fn encode_totals(totals: &Totals, out: &mut Vec<u8>) {
    out.extend_from_slice(&totals.entries.to_le_bytes());
    out.extend_from_slice(&totals.files.to_le_bytes());
    out.extend_from_slice(&totals.bytes.to_le_bytes());
}

/// Reads canonical bytes without ever running past their end.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    /// The bytes after the length of the next name.
    fn ahead(&self) -> &'a [u8] {
        self.bytes.get(self.at.saturating_add(1)..).unwrap_or_default()
    }

    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeDirectoryError> {
        let end = self.at.checked_add(length).ok_or(DecodeDirectoryError::Truncated { at: self.at })?;
        let slice = self.bytes.get(self.at..end).ok_or(DecodeDirectoryError::Truncated { at: self.at })?;
        self.at = end;
        Ok(slice)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeDirectoryError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(crate) fn metadata(&mut self) -> Result<Metadata, DecodeDirectoryError> {
        Ok(Metadata {
            mode: u16::from_le_bytes(self.array()?),
            uid: u32::from_le_bytes(self.array()?),
            gid: u32::from_le_bytes(self.array()?),
            mtime: Timestamp {
                seconds: i64::from_le_bytes(self.array()?),
                nanoseconds: u32::from_le_bytes(self.array()?),
            },
        })
    }

    pub(crate) fn totals(&mut self) -> Result<Totals, DecodeDirectoryError> {
        Ok(Totals {
            entries: u64::from_le_bytes(self.array()?),
            files: u64::from_le_bytes(self.array()?),
            bytes: u64::from_le_bytes(self.array()?),
        })
    }

    fn page(&mut self) -> Result<PageRef, DecodeDirectoryError> {
        let [length] = self.array()?;
        Ok(PageRef {
            last: Component::new(self.take(usize::from(length))?)?,
            object: ObjectHash::from_bytes(self.array()?),
            names: u64::from_le_bytes(self.array()?),
            bytes: u64::from_le_bytes(self.array()?),
            totals: self.totals()?,
        })
    }

    fn entry(&mut self) -> Result<Entry, DecodeDirectoryError> {
        let [length] = self.array()?;
        let name = Component::new(self.take(usize::from(length))?)?;
        let [kind] = self.array()?;
        let metadata = self.metadata()?;
        if !metadata.is_valid() {
            return Err(DecodeDirectoryError::Metadata { name });
        }
        let kind = match kind {
            1 => Kind::Directory { object: ObjectHash::from_bytes(self.array()?), totals: self.totals()? },
            2 => Kind::File {
                content: ContentHash::from_bytes(self.array()?),
                size: u64::from_le_bytes(self.array()?),
            },
            3 => {
                let length = usize::from(u16::from_le_bytes(self.array()?));
                let target = self.take(length)?;
                if target.is_empty() || target.len() > SYMLINK_TARGET_MAX_BYTES || target.contains(&0) {
                    return Err(DecodeDirectoryError::Target { name });
                }
                Kind::Symlink { target: target.into() }
            }
            4 => {
                let [length] = self.array()?;
                match CollectedName::new(self.take(usize::from(length))?) {
                    Ok(name) => Kind::Collected { name },
                    Err(_) => return Err(DecodeDirectoryError::Collected { name }),
                }
            }
            actual => return Err(DecodeDirectoryError::UnknownKind { name, actual }),
        };
        Ok(Entry { name, metadata, kind })
    }
}

impl Metadata {
    /// Whether the mode has no forbidden bits and the time is valid.
    pub fn is_valid(&self) -> bool {
        self.mode & !MODE_MASK == 0 && self.mtime.nanoseconds < 1_000_000_000
    }
}

/// The entries of one directory, sorted bytewise by name, names unique.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Directory {
    entries: Vec<Entry>,
}

/// Two entries have the same name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("name {name:?} occurs twice")]
pub struct DuplicateName {
    pub name: Component,
}

impl Directory {
    /// Sorts `entries`.
    pub fn new(mut entries: Vec<Entry>) -> Result<Self, DuplicateName> {
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let mut pairs = entries.iter().zip(entries.iter().skip(1));
        match pairs.find(|(one, next)| one.name == next.name) {
            Some((entry, _)) => Err(DuplicateName { name: entry.name.clone() }),
            None => Ok(Self { entries }),
        }
    }

    /// Sorted by name.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub fn get(&self, name: &Component) -> Option<&Entry> {
        self.entries.binary_search_by(|e| e.name.cmp(name)).ok().and_then(|i| self.entries.get(i))
    }

    /// Replaces the entry with the same name, or adds a new one.
    pub fn put(&mut self, entry: Entry) {
        match self.entries.binary_search_by(|e| e.name.cmp(&entry.name)) {
            Ok(i) => {
                self.entries.splice(i..=i, [entry]);
            }
            Err(i) => self.entries.insert(i, entry),
        }
    }

    /// Removes an entry; returns whether it existed.
    pub fn remove(&mut self, name: &Component) -> bool {
        let found = self.entries.binary_search_by(|e| e.name.cmp(name));
        if let Ok(i) = found {
            self.entries.remove(i);
        }
        found.is_ok()
    }

    /// Sums over all entries and everything below them; `None` on overflow.
    pub fn totals(&self) -> Option<Totals> {
        self.entries.iter().try_fold(Totals::default(), |sum, entry| sum.checked_add(entry.totals()))
    }

    /// All pages of this directory.
    pub fn build(&self) -> Built {
        let mut builder = Builder::default();
        self.entries.iter().for_each(|entry| builder.push(entry));
        builder.finish()
    }

    /// The hash that names this directory. Encodes all of it first.
    pub fn hash(&self) -> ObjectHash {
        self.build().root
    }
}

/// The hash that names a page.
pub fn object_hash_of(canonical: &[u8]) -> ObjectHash {
    ObjectHash::from_bytes(tagged(DOMAIN, canonical))
}

fn decode_entries(
    reader: &mut Reader<'_>,
    entries_max: u64,
    mut take: impl FnMut(Entry),
) -> Result<(), DecodeDirectoryError> {
    let mut last: &[u8] = &[];
    let mut left = entries_max;
    while !reader.is_empty() {
        left = left.checked_sub(1).ok_or(DecodeDirectoryError::TooMany { limit: entries_max })?;
        let name = reader.ahead();
        let entry = reader.entry()?;
        let own = name.get(..entry.name.as_bytes().len()).unwrap_or_default();
        if last >= own {
            return Err(DecodeDirectoryError::Order { name: entry.name });
        }
        last = own;
        take(entry);
    }
    Ok(())
}

/// Canonical bytes of single entries, as in directory patches.
pub fn encode_entries(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        entry.encode(&mut out);
    }
    out
}

/// Reads the output of [`encode_entries`]: at most `entries_max` entries, with sorted, unique names.
pub fn decode_entry_list(bytes: &[u8], entries_max: u64) -> Result<Vec<Entry>, DecodeDirectoryError> {
    let mut entries = Vec::new();
    decode_entries(&mut Reader::new(bytes), entries_max, |entry| entries.push(entry))?;
    Ok(entries)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn entry(name: &str, kind: Kind) -> Entry {
        Entry {
            name: Component::new(name.as_bytes()).expect("a name"),
            metadata: Metadata {
                mode: 0o644,
                uid: 33,
                gid: 33,
                mtime: Timestamp { seconds: 1_700_000_000, nanoseconds: 123_456_789 },
            },
            kind,
        }
    }

    pub(crate) fn file(name: &str, content: &[u8]) -> Entry {
        entry(name, Kind::File { content: ContentHash::of(content), size: content.len() as u64 })
    }

    pub(crate) fn symlink(name: &str, target: &str) -> Entry {
        entry(name, Kind::Symlink { target: target.as_bytes().into() })
    }

    pub(crate) fn any_entry() -> impl Strategy<Value = Entry> {
        let name = proptest::collection::vec(any::<u8>(), 1..20)
            .prop_filter_map("a name", |b| Component::new(&b).ok());
        let metadata = (0u16..=0o777, any::<u32>(), any::<u32>(), any::<i64>(), 0u32..1_000_000_000)
            .prop_map(|(mode, uid, gid, seconds, nanoseconds)| Metadata {
                mode,
                uid,
                gid,
                mtime: Timestamp { seconds, nanoseconds },
            });
        let kind = prop_oneof![
            any::<([u8; 32], u32, u32, u32)>().prop_map(|(h, entries, files, bytes)| Kind::Directory {
                object: ObjectHash::from_bytes(h),
                totals: Totals { entries: entries.into(), files: files.into(), bytes: bytes.into() },
            }),
            any::<([u8; 32], u32)>()
                .prop_map(|(h, size)| Kind::File { content: ContentHash::from_bytes(h), size: size.into() }),
            proptest::collection::vec(1u8.., 1..50).prop_map(|t| Kind::Symlink { target: t.into() }),
            "[a-z0-9][a-z0-9_-]{0,31}"
                .prop_map(|name| Kind::Collected { name: name.parse().expect("a name") }),
        ];
        (name, metadata, kind).prop_map(|(name, metadata, kind)| Entry { name, metadata, kind })
    }

    proptest! {
        #[test]
        fn decoding_returns_what_was_encoded(entries in proptest::collection::vec(any_entry(), 0..20)) {
            let mut unique = entries;
            unique.sort_by(|a, b| a.name.cmp(&b.name));
            unique.dedup_by(|a, b| a.name == b.name);
            let directory = Directory::new(unique).expect("unique names");
            let built = directory.build();
            let [(hash, bytes)] = &built.pages[..] else { panic!("a single page") };
            prop_assert_eq!((built.root, object_hash_of(bytes)), (*hash, *hash));
            let page = Page::decode(bytes).expect("decodes");
            prop_assert_eq!(page.names(), directory.entries().len() as u64);
            prop_assert_eq!(&**page.leaf().expect("entries"), &directory);
        }

        #[test]
        fn random_bytes_are_refused_or_canonical(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(page) = Page::decode(&bytes) {
                prop_assert_eq!(page.encode(), bytes);
            }
        }
    }

    /// Canonical bytes of a directory of one page.
    fn encoded(entries: Vec<Entry>) -> Vec<u8> {
        Directory { entries }.build().pages.remove(0).1
    }

    #[test]
    fn unsorted_repeated_truncated_and_masked_are_refused() {
        let (a, b) = (file("a", b"1"), file("b", b"2"));
        let mut bytes = vec![1];
        bytes.extend(encode_entries(&[b.clone(), a.clone()]));
        assert!(matches!(Page::decode(&bytes), Err(DecodeDirectoryError::Order { .. })));
        let mut bytes = vec![1];
        bytes.extend(encode_entries(&[a.clone(), a.clone()]));
        assert!(matches!(Page::decode(&bytes), Err(DecodeDirectoryError::Order { .. })));
        let good = encoded(vec![a.clone(), b]);
        for end in 2..good.len() {
            if let Ok(page) = Page::decode(&good[..end]) {
                assert_eq!(page.entries(), std::slice::from_ref(&a));
            }
        }
        let mut setuid = a;
        setuid.metadata.mode = 0o4755;
        assert!(Page::decode(&encoded(vec![setuid])).is_err());
    }

    #[test]
    fn a_collected_directory_has_a_valid_name() {
        let name: CollectedName = "uploads".parse().expect("a name");
        let good = encoded(vec![entry("u", Kind::Collected { name })]);
        assert_eq!(&good[good.len() - 8..], b"\x07uploads");
        assert_eq!(Page::decode(&good).expect("decodes").encode(), good);
        let mut bad = good;
        *bad.last_mut().expect("bytes") = b'/';
        assert!(matches!(Page::decode(&bad), Err(DecodeDirectoryError::Collected { .. })));
    }

    #[test]
    fn the_format_is_pinned() {
        let hex: String = encoded(vec![symlink("l", "t")]).iter().map(|b| format!("{b:02x}")).collect();
        // format, name "l", symlink, mode 0644, uid 33, gid 33, seconds, nanoseconds, target "t"
        assert_eq!(
            hex,
            concat!(
                "01",
                "016c",
                "03",
                "a401",
                "21000000",
                "21000000",
                "00f1536500000000",
                "15cd5b07",
                "0100",
                "74"
            )
        );
    }
}
