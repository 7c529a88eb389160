//! One page of a directory.

use std::sync::Arc;

use super::{DecodeDirectoryError, Directory, Entry, Kind, Reader, Totals, decode_entries, object_hash_of};
use crate::hash::ObjectHash;
use crate::limits::{
    DIRECTORY_ENTRIES_MAX, PAGE_BYTES, PAGE_ITEMS_MAX, PAGE_ITEMS_MIN, PAGE_LEVELS_MAX, PAGE_MAX_BYTES,
    SINGLE_PAGE_BYTES,
};
use crate::tree_path::Component;

/// First byte of a page of entries.
pub(super) const ENTRIES: u8 = 1;
/// First byte of a page of pages, before its level is added.
pub(super) const PAGES: u8 = 16;
/// Bits of a name's hash that each level looks at: one name in 64 ends a page.
const LEVEL_BITS: u32 = 6;

/// Whether a page of this level ends after an item. `items` and `bytes` count from the start of the page,
/// this item included; `last` is the item's (last) name.
pub(super) fn ends_after(level: u8, items: usize, bytes: usize, last: &Component) -> bool {
    items >= PAGE_ITEMS_MAX || bytes >= PAGE_BYTES || (items >= PAGE_ITEMS_MIN && is_end(level, last))
}

fn is_end(level: u8, name: &Component) -> bool {
    let [a, b, c, d, e, f, g, h, ..] = *blake3::hash(name.as_bytes()).as_bytes();
    let shift = u32::from(level).saturating_mul(LEVEL_BITS);
    u64::from_le_bytes([a, b, c, d, e, f, g, h]).unbounded_shr(shift).trailing_zeros() >= LEVEL_BITS
}

/// A page as described by the page above it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRef {
    /// The last name in it.
    pub last: Component,
    pub object: ObjectHash,
    /// Entries of the directory in it.
    pub names: u64,
    /// Canonical bytes of these entries.
    pub bytes: u64,
    pub totals: Totals,
}

impl PageRef {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let name = self.last.as_bytes();
        out.push(name.len() as u8);
        out.extend_from_slice(name);
        out.extend_from_slice(self.object.as_bytes());
        out.extend_from_slice(&self.names.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
        super::encode_totals(&self.totals, out);
    }
}

/// One directory object: the entries of a directory, or of a part of it, or a list of such parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    items: Items,
    names: u64,
    bytes: u64,
    totals: Totals,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Items {
    Entries(Arc<Directory>),
    Pages {
        /// From 1.
        level: u8,
        pages: Vec<PageRef>,
    },
}

impl Page {
    /// Reads canonical bytes and rejects anything else. Whether the page is a whole directory, and ends where
    /// it should, only its user knows: see [`super::Cursor`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeDirectoryError> {
        if bytes.len() > PAGE_MAX_BYTES {
            return Err(DecodeDirectoryError::TooLarge { actual: bytes.len(), limit: PAGE_MAX_BYTES });
        }
        let mut reader = Reader::new(bytes);
        let [format] = reader.array()?;
        if format == ENTRIES {
            let mut entries = Vec::new();
            decode_entries(&mut reader, u64::MAX, |entry| entries.push(entry))?;
            let bytes = bytes.len().saturating_sub(1) as u64;
            return Self::of_entries(Directory { entries }, bytes);
        }
        let level = format.checked_sub(PAGES).filter(|n| (1..PAGE_LEVELS_MAX as u8).contains(n));
        let level = level.ok_or(DecodeDirectoryError::Format { actual: format })?;
        let mut pages: Vec<PageRef> = Vec::new();
        while !reader.is_empty() {
            let page = reader.page()?;
            if pages.last().is_some_and(|before| before.last >= page.last) {
                return Err(DecodeDirectoryError::Order { name: page.last });
            }
            pages.push(page);
        }
        Self::of_pages(level, pages)
    }

    /// Reads canonical bytes and checks them against the requested hash.
    pub fn decode_verified(bytes: &[u8], expected: ObjectHash) -> Result<Arc<Self>, DecodeDirectoryError> {
        let actual = object_hash_of(bytes);
        if actual != expected {
            return Err(DecodeDirectoryError::Hash { expected, actual });
        }
        Self::decode(bytes).map(Arc::new)
    }

    fn of_entries(directory: Directory, bytes: u64) -> Result<Self, DecodeDirectoryError> {
        let totals = directory.totals().ok_or(DecodeDirectoryError::Totals)?;
        let names = directory.entries().len() as u64;
        Ok(Self { items: Items::Entries(Arc::new(directory)), names, bytes, totals })
    }

    fn of_pages(level: u8, pages: Vec<PageRef>) -> Result<Self, DecodeDirectoryError> {
        let (mut names, mut bytes, mut totals) = (0u64, 0u64, Totals::default());
        for page in &pages {
            names = names.checked_add(page.names).ok_or(DecodeDirectoryError::Totals)?;
            bytes = bytes.checked_add(page.bytes).ok_or(DecodeDirectoryError::Totals)?;
            totals = totals.checked_add(page.totals).ok_or(DecodeDirectoryError::Totals)?;
        }
        if pages.is_empty() || names > DIRECTORY_ENTRIES_MAX {
            return Err(DecodeDirectoryError::TooMany { limit: DIRECTORY_ENTRIES_MAX });
        }
        Ok(Self { items: Items::Pages { level, pages }, names, bytes, totals })
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match &self.items {
            Items::Entries(directory) => {
                out.push(ENTRIES);
                directory.entries().iter().for_each(|entry| entry.encode(&mut out));
            }
            Items::Pages { level, pages } => {
                out.push(PAGES.saturating_add(*level));
                pages.iter().for_each(|page| page.encode(&mut out));
            }
        }
        out
    }

    /// 0 for a page of entries.
    pub fn level(&self) -> u8 {
        match &self.items {
            Items::Entries(_) => 0,
            Items::Pages { level, .. } => *level,
        }
    }

    /// Entries of the directory in this page and below it.
    pub fn names(&self) -> u64 {
        self.names
    }

    /// Sums over these entries and everything below them.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Canonical bytes of these entries.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Its entries; `None` for a page of pages.
    pub fn leaf(&self) -> Option<&Arc<Directory>> {
        match &self.items {
            Items::Entries(directory) => Some(directory),
            Items::Pages { .. } => None,
        }
    }

    /// Its own entries: none for a page of pages.
    pub fn entries(&self) -> &[Entry] {
        self.leaf().map_or(&[], |directory| directory.entries())
    }

    /// The pages in it: none for a page of entries.
    pub fn pages(&self) -> &[PageRef] {
        match &self.items {
            Items::Entries(_) => &[],
            Items::Pages { pages, .. } => pages,
        }
    }

    /// Objects that it names, in order: pages, or subdirectories.
    pub fn children(&self) -> impl DoubleEndedIterator<Item = ObjectHash> {
        let below = self.entries().iter().filter_map(|entry| match entry.kind {
            Kind::Directory { object, .. } => Some(object),
            Kind::File { .. } | Kind::Symlink { .. } | Kind::Collected { .. } => None,
        });
        self.pages().iter().map(|page| page.object).chain(below)
    }

    /// Whether it may be a whole directory: a page of pages is one only with more than
    /// [`SINGLE_PAGE_BYTES`] of entries in at least two pages.
    pub(super) fn check_whole(&self, object: ObjectHash) -> Result<(), DecodeDirectoryError> {
        let is_whole = match &self.items {
            Items::Entries(_) => self.bytes <= SINGLE_PAGE_BYTES || !self.has_inner_end(),
            Items::Pages { pages, .. } => {
                self.bytes > SINGLE_PAGE_BYTES && pages.len() > 1 && !self.has_inner_end()
            }
        };
        if is_whole { Ok(()) } else { Err(DecodeDirectoryError::Boundary { object }) }
    }

    /// Whether it ends as a part of a directory must. `is_last`: no page of its level follows.
    pub(super) fn check_part(&self, object: ObjectHash, is_last: bool) -> Result<(), DecodeDirectoryError> {
        let mut inner = self.ends();
        let ends = inner.next_back().unwrap_or(false);
        let is_right = (ends || is_last) && !inner.any(|end| end);
        if is_right { Ok(()) } else { Err(DecodeDirectoryError::Boundary { object }) }
    }

    fn has_inner_end(&self) -> bool {
        let mut ends = self.ends();
        ends.next_back();
        ends.any(|end| end)
    }

    /// For each item, whether a page ends after it.
    fn ends(&self) -> std::vec::IntoIter<bool> {
        let (level, mut bytes) = (self.level(), 1usize);
        let mut ends = Vec::new();
        let mut buffer = Vec::new();
        for entry in self.entries() {
            buffer.clear();
            entry.encode(&mut buffer);
            bytes = bytes.saturating_add(buffer.len());
            ends.push(ends_after(level, ends.len().saturating_add(1), bytes, &entry.name));
        }
        for page in self.pages() {
            buffer.clear();
            page.encode(&mut buffer);
            bytes = bytes.saturating_add(buffer.len());
            ends.push(ends_after(level, ends.len().saturating_add(1), bytes, &page.last));
        }
        ends.into_iter()
    }

    /// Whether this is the page that `above` describes, one level below `level`, with names after `after`.
    pub(super) fn check(
        &self,
        above: &PageRef,
        level: u8,
        after: Option<&Component>,
    ) -> Result<(), DecodeDirectoryError> {
        let (first, last) = match &self.items {
            Items::Entries(directory) => {
                let entries = directory.entries();
                (entries.first().map(|entry| &entry.name), entries.last().map(|entry| &entry.name))
            }
            Items::Pages { pages, .. } => (None, pages.last().map(|page| &page.last)),
        };
        let is_said = level.checked_sub(1) == Some(self.level())
            && last == Some(&above.last)
            && (self.names, self.bytes, self.totals) == (above.names, above.bytes, above.totals)
            && first.is_none_or(|first| after.is_none_or(|after| after < first));
        if is_said { Ok(()) } else { Err(DecodeDirectoryError::Page { object: above.object }) }
    }
}

impl Default for Page {
    /// The empty directory.
    fn default() -> Self {
        let items = Items::Entries(Arc::default());
        Self { items, names: 0, bytes: 0, totals: Totals::default() }
    }
}
