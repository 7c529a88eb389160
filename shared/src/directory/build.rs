//! Cuts the entries of a directory into pages, in order and in memory that does not grow with the directory.

use super::page::{ENTRIES, PAGES, ends_after};
use super::{Entry, PageRef, Totals, object_hash_of};
use crate::hash::ObjectHash;
use crate::limits::SINGLE_PAGE_BYTES;
use crate::tree_path::Component;

/// Takes entries in order of names, and makes their pages.
#[derive(Debug, Default)]
pub struct Builder {
    /// Entries that fit a single page so far, and their bytes. `None` once they do not.
    held: Held,
    /// The page being filled on each level.
    levels: Vec<Level>,
    /// Finished pages, children first.
    made: Vec<(ObjectHash, Vec<u8>)>,
}

/// Result of a builder or an edit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// The root page, which names the directory.
    pub root: ObjectHash,
    pub totals: Totals,
    /// Canonical bytes of the pages that were made, children first.
    pub pages: Vec<(ObjectHash, Vec<u8>)>,
}

#[derive(Debug)]
enum Held {
    Entries(Vec<Entry>, u64),
    Released,
}

impl Default for Held {
    fn default() -> Self {
        Self::Entries(Vec::new(), 0)
    }
}

/// A page being filled.
#[derive(Debug, Default)]
struct Level {
    /// Canonical bytes without the format.
    encoded: Vec<u8>,
    items: usize,
    names: u64,
    bytes: u64,
    totals: Totals,
    last: Option<Component>,
    /// Whether a page of this level was finished or taken over before.
    has_ended: bool,
    /// The item that was added last, on levels of pages.
    newest: Option<PageRef>,
}

impl Builder {
    /// Adds the next entry.
    pub fn push(&mut self, entry: &Entry) {
        if let Held::Entries(held, bytes) = &mut self.held {
            let mut encoded = Vec::new();
            entry.encode(&mut encoded);
            *bytes = bytes.saturating_add(encoded.len() as u64);
            held.push(entry.clone());
            if *bytes > SINGLE_PAGE_BYTES {
                self.release();
            }
            return;
        }
        self.push_entry(entry);
    }

    /// Whether a page would begin with the next entry, on this level and all below.
    pub(super) fn is_aligned(&mut self, level: u8) -> bool {
        self.levels.iter().take(usize::from(level).saturating_add(1)).all(|level| level.items == 0)
            && match &self.held {
                Held::Released => true,
                Held::Entries(held, _) => held.is_empty(),
            }
    }

    /// Takes over a page of this level. The builder must be aligned.
    pub(super) fn push_page(&mut self, page: PageRef, level: u8) {
        self.release();
        self.end(usize::from(level), page);
    }

    /// Pages that are finished, and have not been taken yet.
    pub fn take_made(&mut self) -> Vec<(ObjectHash, Vec<u8>)> {
        std::mem::take(&mut self.made)
    }

    pub fn finish(mut self) -> Built {
        let root = self.finish_page();
        Built { root: root.object, totals: root.totals, pages: self.made }
    }

    /// Ends all pages and returns the root page.
    fn finish_page(&mut self) -> RootPage {
        if let Held::Entries(held, _) = std::mem::replace(&mut self.held, Held::Released) {
            return self.single(&held);
        }
        let mut level = 0usize;
        loop {
            let is_top = level.saturating_add(1) >= self.levels.len();
            let Some(open) = self.levels.get_mut(level) else { return self.single(&[]) };
            if is_top
                && !open.has_ended
                && open.items == 1
                && let Some(only) = open.newest.take()
            {
                let below = level.saturating_sub(1) as u8;
                return RootPage {
                    object: only.object,
                    level: below,
                    bytes: only.bytes,
                    totals: only.totals,
                };
            }
            if open.items > 0 {
                self.end_page(level);
            }
            level = level.saturating_add(1);
        }
    }

    /// Like [`Self::finish`], for an edit: also the level of the root page and the bytes of all entries.
    pub(super) fn finish_edit(mut self) -> (RootPage, Vec<(ObjectHash, Vec<u8>)>) {
        let root = self.finish_page();
        (root, self.made)
    }

    fn single(&mut self, entries: &[Entry]) -> RootPage {
        let mut encoded = vec![ENTRIES];
        let mut totals = Totals::default();
        for entry in entries {
            entry.encode(&mut encoded);
            totals = totals.saturating_add(entry.totals());
        }
        let object = object_hash_of(&encoded);
        let bytes = encoded.len().saturating_sub(1) as u64;
        self.made.push((object, encoded));
        RootPage { object, level: 0, bytes, totals }
    }

    /// Gives up a single page.
    fn release(&mut self) {
        if let Held::Entries(held, _) = std::mem::replace(&mut self.held, Held::Released) {
            held.iter().for_each(|entry| self.push_entry(entry));
        }
    }

    fn push_entry(&mut self, entry: &Entry) {
        let level = self.level(0);
        let before = level.encoded.len();
        entry.encode(&mut level.encoded);
        let bytes = level.encoded.len().saturating_sub(before) as u64;
        level.add(1, bytes, entry.totals());
        level.last = Some(entry.name.clone());
        if ends_after(0, level.items, level.encoded.len().saturating_add(1), &entry.name) {
            self.end_page(0);
        }
    }

    fn level(&mut self, level: usize) -> &mut Level {
        while self.levels.len() <= level {
            self.levels.push(Level::default());
        }
        #[expect(clippy::indexing_slicing, reason = "filled up to this index just above")]
        &mut self.levels[level]
    }

    fn end_page(&mut self, level: usize) {
        let open = std::mem::take(self.level(level));
        let Some(last) = open.last else { return };
        let format = if level == 0 { ENTRIES } else { PAGES.saturating_add(level as u8) };
        let encoded = [&[format], &open.encoded[..]].concat();
        let object = object_hash_of(&encoded);
        self.made.push((object, encoded));
        let page = PageRef { last, object, names: open.names, bytes: open.bytes, totals: open.totals };
        self.end(level, page);
    }

    /// Adds a page of this level to the level above.
    fn end(&mut self, level: usize, page: PageRef) {
        self.level(level).has_ended = true;
        let above = level.saturating_add(1);
        let open = self.level(above);
        page.encode(&mut open.encoded);
        open.add(page.names, page.bytes, page.totals);
        open.last = Some(page.last.clone());
        let ends = ends_after(above as u8, open.items, open.encoded.len().saturating_add(1), &page.last);
        open.newest = Some(page);
        if ends {
            self.end_page(above);
        }
    }
}

/// The root page of what was built.
#[derive(Debug)]
pub(super) struct RootPage {
    pub object: ObjectHash,
    pub level: u8,
    /// Canonical bytes of all entries.
    pub bytes: u64,
    pub totals: Totals,
}

impl Level {
    fn add(&mut self, names: u64, bytes: u64, totals: Totals) {
        self.items = self.items.saturating_add(1);
        self.names = self.names.saturating_add(names);
        self.bytes = self.bytes.saturating_add(bytes);
        self.totals = self.totals.saturating_add(totals);
    }
}
