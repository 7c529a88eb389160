//! Reads directories page by page.

use std::cmp::Ordering;
use std::sync::Arc;

use super::{Directory, Entry, Page, PageRef};
use crate::diff::DirectorySource;
use crate::hash::ObjectHash;
use crate::tree_path::Component;

/// A position in a directory. Pages are read when the position comes to them.
#[derive(Debug)]
pub struct Cursor<S> {
    source: S,
    /// The pages from the root page to the position.
    stack: Vec<Open>,
}

#[derive(Debug)]
struct Open {
    object: ObjectHash,
    page: Arc<Page>,
    /// The next item.
    at: usize,
    /// No page of its level follows.
    is_last: bool,
    /// The last name before this page.
    after: Option<Component>,
}

impl Open {
    fn page_ref(&self) -> Option<&PageRef> {
        self.page.pages().get(self.at)
    }

    fn len(&self) -> usize {
        self.page.entries().len().max(self.page.pages().len())
    }
}

/// A page of entries, its object, and the index of the next entry in it.
pub type Leaf<'a> = (ObjectHash, &'a Arc<Directory>, usize);

/// The item at the position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Item<'a> {
    End,
    Page(u8, &'a PageRef),
    Entry(&'a Entry),
}

impl<S: DirectorySource> Cursor<S> {
    /// Starts before the first name of a directory; with `None`, of the empty one.
    pub fn new(source: S, object: Option<ObjectHash>) -> Result<Self, S::Error> {
        let mut stack = Vec::new();
        if let Some(object) = object {
            let page = source.page(&object)?;
            if source.checks_boundaries() {
                page.check_whole(object)?;
            }
            stack.push(Open { object, page, at: 0, is_last: true, after: None });
        }
        let mut cursor = Self { source, stack };
        cursor.settle();
        Ok(cursor)
    }

    /// Moves to the first entry whose name is not below this one. Only forwards.
    pub fn seek(&mut self, name: &Component) -> Result<(), S::Error> {
        while let Some(open) = self.stack.last_mut() {
            if open.page_ref().is_some() {
                let skipped = open.page.pages().partition_point(|page| page.last < *name);
                open.at = open.at.max(skipped);
                self.settle();
                // Another page may be at the position now.
                match self.item() {
                    Item::Page(_, page) if page.last >= *name => self.open()?,
                    _ => {}
                }
                continue;
            }
            let skipped = open.page.entries().partition_point(|entry| entry.name < *name);
            open.at = open.at.max(skipped);
            if open.at < open.len() {
                return Ok(());
            }
            self.settle();
        }
        Ok(())
    }

    /// The entry at the position; `None` at the end.
    pub fn entry(&mut self) -> Result<Option<&Entry>, S::Error> {
        while matches!(self.item(), Item::Page(..)) {
            self.open()?;
        }
        Ok(match self.item() {
            Item::Entry(entry) => Some(entry),
            Item::Page(..) | Item::End => None,
        })
    }

    /// Moves to the next subdirectory and returns its entry; `None` at the end. Pages that have only files
    /// are not read.
    pub fn directory(&mut self) -> Result<Option<&Entry>, S::Error> {
        loop {
            match self.item() {
                Item::End => return Ok(None),
                Item::Page(_, page) if page.totals.entries == page.totals.files => self.skip(),
                Item::Page(..) => self.open()?,
                Item::Entry(entry) if entry.is_directory() => break,
                Item::Entry(_) => self.skip(),
            }
        }
        self.entry()
    }

    /// The page of entries at the position; `None` at the end.
    pub fn leaf(&mut self) -> Result<Option<Leaf<'_>>, S::Error> {
        self.entry()?;
        let open = self.stack.last();
        Ok(open.and_then(|open| Some((open.object, open.page.leaf()?, open.at))))
    }

    /// Moves behind the entry or page at the position.
    pub fn skip(&mut self) {
        if let Some(open) = self.stack.last_mut() {
            open.at = open.at.saturating_add(1);
        }
        self.settle();
    }

    /// Moves behind the page of entries at the position.
    pub fn skip_leaf(&mut self) {
        if let Some(open) = self.stack.last_mut() {
            open.at = open.len();
        }
        self.settle();
    }

    fn item(&self) -> Item<'_> {
        let Some(open) = self.stack.last() else { return Item::End };
        match (open.page_ref(), open.page.entries().get(open.at)) {
            (Some(page), _) => Item::Page(open.page.level(), page),
            (_, Some(entry)) => Item::Entry(entry),
            (None, None) => Item::End,
        }
    }

    /// Leaves the pages that have ended.
    fn settle(&mut self) {
        while self.stack.last().is_some_and(|open| open.at >= open.len()) {
            self.stack.pop();
        }
    }

    /// Enters the page at the position.
    fn open(&mut self) -> Result<(), S::Error> {
        let Some(open) = self.stack.last_mut() else { return Ok(()) };
        let Some(above) = open.page_ref() else { return Ok(()) };
        let object = above.object;
        let before = open.at.checked_sub(1).and_then(|before| open.page.pages().get(before));
        let after = before.map(|page| &page.last).or(open.after.as_ref()).cloned();
        let is_last = open.is_last && open.at.saturating_add(1) == open.len();
        let page = load(&self.source, above, open.page.level(), after.as_ref(), is_last)?;
        open.at = open.at.saturating_add(1);
        self.stack.push(Open { object, page, at: 0, is_last, after });
        Ok(())
    }
}

/// Reads a page that `above`, an item of a page of this level, describes.
pub(super) fn load<S: DirectorySource>(
    source: &S,
    above: &PageRef,
    level: u8,
    after: Option<&Component>,
    is_last: bool,
) -> Result<Arc<Page>, S::Error> {
    let page = source.page(&above.object)?;
    page.check(above, level, after)?;
    if source.checks_boundaries() {
        page.check_part(above.object, is_last)?;
    }
    Ok(page)
}

/// Reads a whole directory into memory.
pub(crate) fn whole<S: DirectorySource>(source: &S, object: &ObjectHash) -> Result<Arc<Directory>, S::Error> {
    let mut cursor = Cursor::new(source, Some(*object))?;
    if let Some(directory) = cursor.stack.first().and_then(|open| open.page.leaf()) {
        return Ok(directory.clone());
    }
    let mut entries = Vec::new();
    while let Some((_, leaf, _)) = cursor.leaf()? {
        entries.extend_from_slice(leaf.entries());
        cursor.skip_leaf();
    }
    Ok(Arc::new(Directory { entries }))
}

/// The entry of a name. Reads one page of each level.
pub(crate) fn entry_of<S: DirectorySource>(
    source: &S,
    object: &ObjectHash,
    name: &Component,
) -> Result<Option<Entry>, S::Error> {
    let mut page = source.page(object)?;
    loop {
        let Some(pages) = Some(page.pages()).filter(|pages| !pages.is_empty()) else {
            return Ok(page.leaf().and_then(|directory| directory.get(name)).cloned());
        };
        let Some(above) = pages.get(pages.partition_point(|page| page.last < *name)) else { return Ok(None) };
        page = load_part(source, above, page.level())?;
    }
}

fn load_part<S: DirectorySource>(source: &S, above: &PageRef, level: u8) -> Result<Arc<Page>, S::Error> {
    let page = source.page(&above.object)?;
    page.check(above, level, None)?;
    Ok(page)
}

/// A name that differs between two directories, with its entry in each.
pub type Pair = (Option<Entry>, Option<Entry>);

/// The names that differ between two directories, in order. Pages that both have are not read.
#[derive(Debug)]
pub struct Pairs<S> {
    before: Cursor<S>,
    after: Cursor<S>,
}

impl<S: DirectorySource + Copy> Pairs<S> {
    /// Compares two directories; `None` is the empty one.
    pub fn new(source: S, before: Option<ObjectHash>, after: Option<ObjectHash>) -> Result<Self, S::Error> {
        let (before, after) = match before == after {
            true => (None, None),
            false => (before, after),
        };
        Ok(Self { before: Cursor::new(source, before)?, after: Cursor::new(source, after)? })
    }

    /// The next name that differs.
    pub fn next_pair(&mut self) -> Result<Option<Pair>, S::Error> {
        loop {
            match (self.before.item(), self.after.item()) {
                (Item::End, Item::End) => return Ok(None),
                // In another place, the page may be out of order or must not end there.
                (Item::Page(old_level, old), Item::Page(level, new))
                    if old_level == level
                        && old == new
                        && (!self.after.source.checks_boundaries()
                            || self.before.edge() == self.after.edge()) =>
                {
                    self.skip(true, true);
                }
                (Item::Page(old, _), Item::Page(new, _)) => {
                    if old >= new {
                        self.before.open()?;
                    }
                    if new >= old {
                        self.after.open()?;
                    }
                }
                (Item::Page(..), _) => self.before.open()?,
                (_, Item::Page(..)) => self.after.open()?,
                (Item::Entry(old), Item::Entry(new)) => match old.name.cmp(&new.name) {
                    Ordering::Equal if old == new => self.skip(true, true),
                    Ordering::Equal => {
                        let pair = (Some(old.clone()), Some(new.clone()));
                        self.skip(true, true);
                        return Ok(Some(pair));
                    }
                    Ordering::Less => return Ok(Some(self.removed())),
                    Ordering::Greater => return Ok(Some(self.added())),
                },
                (Item::Entry(_), Item::End) => return Ok(Some(self.removed())),
                (Item::End, Item::Entry(_)) => return Ok(Some(self.added())),
            }
        }
    }

    fn removed(&mut self) -> Pair {
        let old = self.before.entry_here();
        self.skip(true, false);
        (old, None)
    }

    fn added(&mut self) -> Pair {
        let new = self.after.entry_here();
        self.skip(false, true);
        (None, new)
    }

    fn skip(&mut self, before: bool, after: bool) {
        if before {
            self.before.skip();
        }
        if after {
            self.after.skip();
        }
    }
}

impl<S: DirectorySource> Cursor<S> {
    fn entry_here(&self) -> Option<Entry> {
        match self.item() {
            Item::Entry(entry) => Some(entry.clone()),
            Item::Page(..) | Item::End => None,
        }
    }
}

/// The pages of entries that differ between two directories.
#[derive(Debug, Default)]
pub struct ChangedLeaves {
    /// Those that only the first one has.
    pub gone: Vec<ObjectHash>,
    /// Those that only the second one has, with their entries.
    pub new: Vec<(ObjectHash, Arc<Directory>)>,
}

impl ChangedLeaves {
    /// Compares two directories; `None` is the empty one. Pages that both have are not read.
    pub fn between<S: DirectorySource + Copy>(
        source: S,
        before: Option<ObjectHash>,
        after: Option<ObjectHash>,
    ) -> Result<Self, S::Error> {
        let mut changed = Self::default();
        if before == after {
            return Ok(changed);
        }
        let (mut old, mut new) = (Cursor::new(source, before)?, Cursor::new(source, after)?);
        if old.is_in_leaf() || new.is_in_leaf() {
            return Self::of_small(old, new);
        }
        loop {
            let (old_level, new_level) = match (old.item(), new.item()) {
                (Item::Page(_, one), Item::Page(_, other)) if one.object == other.object => {
                    old.skip();
                    new.skip();
                    continue;
                }
                (Item::Page(1, one), Item::Page(1, other)) => {
                    let order = one.last.cmp(&other.last);
                    if order != Ordering::Greater {
                        changed.gone.push(one.object);
                        old.skip();
                    }
                    if order != Ordering::Less {
                        changed.take(&mut new)?;
                    }
                    continue;
                }
                (Item::Page(old, _), Item::Page(new, _)) => (old, new),
                (Item::Page(1, one), _) => {
                    changed.gone.push(one.object);
                    old.skip();
                    continue;
                }
                (_, Item::Page(1, _)) => {
                    changed.take(&mut new)?;
                    continue;
                }
                (Item::Page(old, _), _) => (old, 0),
                (_, Item::Page(new, _)) => (0, new),
                _ => return Ok(changed),
            };
            if old_level >= new_level {
                old.open()?;
            }
            if new_level >= old_level {
                new.open()?;
            }
        }
    }

    /// Takes the page of entries at the position.
    fn take<S: DirectorySource>(&mut self, new: &mut Cursor<S>) -> Result<(), S::Error> {
        if let Some((object, leaf, _)) = new.leaf()? {
            self.new.push((object, leaf.clone()));
        }
        new.skip_leaf();
        Ok(())
    }

    fn of_small<S: DirectorySource>(mut old: Cursor<S>, mut new: Cursor<S>) -> Result<Self, S::Error> {
        let mut changed = Self::default();
        while new.leaf()?.is_some() {
            changed.take(&mut new)?;
        }
        while let Some((object, ..)) = old.leaf()? {
            changed.gone.push(object);
            old.skip_leaf();
        }
        let (gone, kept) =
            (changed.gone.clone(), changed.new.iter().map(|(new, _)| *new).collect::<Vec<_>>());
        changed.gone.retain(|object| !kept.contains(object));
        changed.new.retain(|(object, _)| !gone.contains(object));
        Ok(changed)
    }
}

impl<S: DirectorySource> Cursor<S> {
    fn is_in_leaf(&self) -> bool {
        self.stack.first().is_none_or(|open| open.page.leaf().is_some())
    }

    /// The last name before the page at the position, and whether that page is the last of its level.
    fn edge(&self) -> Option<(Option<&Component>, bool)> {
        let open = self.stack.last()?;
        let before = open.at.checked_sub(1).and_then(|before| open.page.pages().get(before));
        let is_last = open.is_last && open.at.saturating_add(1) == open.len();
        Some((before.map(|page| &page.last).or(open.after.as_ref()), is_last))
    }
}
