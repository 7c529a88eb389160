//! Changes some names of a directory. Reads and makes the pages on the way to them, and no other.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::cursor::load;
use super::{Builder, Built, Cursor, DecodeDirectoryError, Entry, Page};
use crate::diff::DirectorySource;
use crate::hash::ObjectHash;
use crate::limits::SINGLE_PAGE_BYTES;
use crate::tree_path::Component;

/// New entries by name; `None` removes the name.
pub type Edits = BTreeMap<Component, Option<Entry>>;

type Slice<'e> = &'e [(&'e Component, Option<&'e Entry>)];

/// The directory `from` (`None`: the empty one) with these names changed. `Built::pages` has the pages that
/// were made anew, some of which `from` may have.
pub fn edit<S: DirectorySource>(
    source: &S,
    from: Option<ObjectHash>,
    edits: &Edits,
) -> Result<Built, S::Error> {
    let edits: Vec<_> = edits.iter().map(|(name, entry)| (name, entry.as_ref())).collect();
    let mut editor = Editor { source, builder: Builder::default() };
    match from {
        Some(from) => {
            let page = source.page(&from)?;
            editor.page(&page, &edits, None, true)?;
        }
        None => edits.iter().filter_map(|(_, entry)| *entry).for_each(|entry| editor.builder.push(entry)),
    }
    let (root, pages) = editor.builder.finish_edit();
    let (totals, level, bytes) = (root.totals, root.level, root.bytes);
    let mut built = Built { root: root.object, totals, pages };
    if level > 0 {
        // These pages need not be cut as those of a whole directory before this is done.
        let overlay = Overlay { checks_boundaries: false, ..Overlay::of(source, &built.pages)? };
        if bytes <= SINGLE_PAGE_BYTES {
            let mut cursor = Cursor::new(&overlay, Some(built.root))?;
            let mut builder = Builder::default();
            while let Some(entry) = cursor.entry()? {
                builder.push(entry);
                cursor.skip();
            }
            return Ok(builder.finish());
        }
        // The last page of a level may be all that is left of it.
        loop {
            let page = overlay.page(&built.root)?;
            let [only] = page.pages() else { break };
            built.root = only.object;
        }
    }
    Ok(built)
}

struct Editor<'a, S> {
    source: &'a S,
    builder: Builder,
}

impl<S: DirectorySource> Editor<'_, S> {
    fn page(
        &mut self,
        page: &Page,
        edits: Slice<'_>,
        after: Option<&Component>,
        is_last: bool,
    ) -> Result<(), S::Error> {
        if let Some(directory) = page.leaf() {
            self.merge(directory.entries(), edits);
            return Ok(());
        }
        let (mut edits, mut after) = (edits, after);
        for (index, above) in page.pages().iter().enumerate() {
            let is_end = index.saturating_add(1) == page.pages().len();
            let here = match is_end {
                true => edits.len(),
                false => edits.partition_point(|(name, _)| **name <= above.last),
            };
            let (own, rest) = edits.split_at(here);
            edits = rest;
            let level = page.level().saturating_sub(1);
            if own.is_empty() && self.builder.is_aligned(level) {
                // Everything before it is in whole pages, so it would be cut in the same way again.
                self.builder.push_page(above.clone(), level);
            } else {
                let is_last = is_last && is_end;
                let below = load(self.source, above, page.level(), after, is_last)?;
                self.page(&below, own, after, is_last)?;
            }
            after = Some(&above.last);
        }
        Ok(())
    }

    fn merge(&mut self, entries: &[Entry], edits: Slice<'_>) {
        let mut edits = edits.iter().peekable();
        for entry in entries {
            while let Some((_, new)) = edits.next_if(|(name, _)| **name < entry.name) {
                new.iter().for_each(|entry| self.builder.push(entry));
            }
            match edits.next_if(|(name, _)| **name == entry.name) {
                Some((_, new)) => new.iter().for_each(|entry| self.builder.push(entry)),
                None => self.builder.push(entry),
            }
        }
        edits.filter_map(|(_, new)| *new).for_each(|entry| self.builder.push(entry));
    }
}

/// A source with further pages in memory.
#[derive(Debug)]
pub struct Overlay<S> {
    source: S,
    pages: HashMap<ObjectHash, Arc<Page>>,
    checks_boundaries: bool,
}

impl<S: DirectorySource> Overlay<S> {
    pub fn of(source: S, pages: &[(ObjectHash, Vec<u8>)]) -> Result<Self, DecodeDirectoryError> {
        let mut overlay = Self::new(source);
        overlay.add(pages)?;
        Ok(overlay)
    }

    pub fn new(source: S) -> Self {
        let checks_boundaries = source.checks_boundaries();
        Self { source, pages: HashMap::new(), checks_boundaries }
    }

    /// Adds a page whose hash is right.
    pub fn put(&mut self, hash: ObjectHash, page: Page) {
        self.pages.insert(hash, Arc::new(page));
    }

    /// Adds pages whose hashes are right.
    pub fn add(&mut self, pages: &[(ObjectHash, Vec<u8>)]) -> Result<(), DecodeDirectoryError> {
        for (hash, bytes) in pages {
            self.pages.insert(*hash, Arc::new(Page::decode(bytes)?));
        }
        Ok(())
    }
}

impl<S: DirectorySource> DirectorySource for Overlay<S> {
    type Error = S::Error;

    fn page(&self, hash: &ObjectHash) -> Result<Arc<Page>, S::Error> {
        match self.pages.get(hash) {
            Some(page) => Ok(page.clone()),
            None => self.source.page(hash),
        }
    }

    fn checks_boundaries(&self) -> bool {
        self.checks_boundaries
    }
}
