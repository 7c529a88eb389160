//! Tells which contents a new tree has more than once, in memory that does not follow the tree.
//!
//! A first sync fetches a content once and copies it to its other places. Most contents have one place. Two
//! bits for each content, set while the manifest is read, rule those out. Only the places of contents that
//! may repeat are remembered.

use std::collections::HashMap;

use syncd_shared::ContentHash;

use crate::build::window::Item;

/// Bits for each file: in a tree without duplicates, one file in sixteen is remembered needlessly.
const BITS_A_FILE: u64 = 16;
/// Largest size of one filter, 4 MiB: enough for two million files.
const BITS_MAX: u64 = 32 * 1024 * 1024;
/// Limit of remembered places. A repeat beyond it is fetched again, unless its content is being fetched at
/// that moment.
const PLACES_MAX: usize = if cfg!(test) { 1_000 } else { 400_000 };

/// A set of contents, each represented by a few bits of its hash.
#[derive(Debug)]
struct Filter(Vec<u64>);

impl Filter {
    fn new(bits: u64) -> Self {
        Self(vec![0; (bits / 64) as usize])
    }

    /// Index of the word, and the bit in it.
    fn place(&self, content: &ContentHash) -> (usize, u64) {
        let bits = prefix(content);
        // The number of words is a power of two.
        ((bits / 64) as usize & self.0.len().saturating_sub(1), 1 << (bits % 64))
    }

    fn has(&self, content: &ContentHash) -> bool {
        let (word, bit) = self.place(content);
        self.0.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Adds a content. Returns whether it, or another content with the same bits, was in the set.
    fn add(&mut self, content: &ContentHash) -> bool {
        let (word, bit) = self.place(content);
        let Some(word) = self.0.get_mut(word) else { return false };
        let there = *word & bit != 0;
        *word |= bit;
        there
    }
}

/// Contents that may have several places in a tree: every one that has, and a few others.
#[derive(Debug)]
pub(crate) struct Duplicates {
    once: Filter,
    again: Filter,
}

impl Duplicates {
    /// Starts empty for a tree with `files` files.
    pub fn of(files: u64) -> Self {
        let bits = files.saturating_mul(BITS_A_FILE).clamp(64, BITS_MAX).next_power_of_two();
        Self { once: Filter::new(bits), again: Filter::new(bits) }
    }

    /// Notes a file of the tree.
    pub fn see(&mut self, content: &ContentHash) {
        if self.once.add(content) {
            self.again.add(content);
        }
    }
}

/// Places of contents that may repeat, either already in place or on their way. A few bytes each: a place
/// found here has to be checked against the manifest.
#[derive(Debug)]
pub(crate) struct Copies {
    repeated: Filter,
    placed: HashMap<u64, (u32, u32)>,
    /// Contents asked for or in `incoming`, until they are in place, so that no content is asked for twice at
    /// once.
    under_way: HashMap<u64, (u32, u32)>,
}

impl Copies {
    /// Starts with no content in place.
    pub fn of(duplicates: Duplicates) -> Self {
        Self { repeated: duplicates.again, placed: HashMap::new(), under_way: HashMap::new() }
    }

    /// Returns the directory and entry that may have this content, or may soon have it. If there is none,
    /// remembers `item` for later duplicates.
    pub fn find(&mut self, item: &Item) -> Option<(u32, u32)> {
        if !self.repeated.has(&item.content) {
            return None;
        }
        let key = prefix(&item.content);
        let there = self.placed.get(&key).or_else(|| self.under_way.get(&key)).copied();
        if there.is_none() && self.placed.len() < PLACES_MAX {
            self.placed.insert(key, (item.page, item.entry));
        }
        there
    }

    /// Notes that the item's content was asked for, or is in `incoming`.
    pub fn expect(&mut self, item: &Item) {
        if self.repeated.has(&item.content) {
            self.under_way.entry(prefix(&item.content)).or_insert((item.page, item.entry));
        }
    }

    /// Notes that the item is in place.
    pub fn came(&mut self, item: &Item) {
        let key = prefix(&item.content);
        if self.under_way.get(&key) == Some(&(item.page, item.entry)) {
            self.under_way.remove(&key);
        }
    }
}

fn prefix(content: &ContentHash) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *content.as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use syncd_shared::{Component, Entry, Kind, Metadata, Timestamp, TreePath};

    use super::*;

    fn content(number: u64) -> ContentHash {
        ContentHash::of(&number.to_le_bytes())
    }

    fn item(number: u64, entry: u32) -> Item {
        let entry_of_it = Entry {
            name: Component::new(b"file").unwrap(),
            metadata: Metadata { mode: 0o644, uid: 0, gid: 0, mtime: Timestamp::default() },
            kind: Kind::File { content: content(number), size: 8 },
        };
        Item::new(&Arc::new(TreePath::root()), 0, entry, &entry_of_it).unwrap()
    }

    #[test]
    fn every_content_that_comes_again_is_found_where_it_was_first() {
        let mut duplicates = Duplicates::of(3000);
        for number in (0..900).chain(0..900).chain(5000..6000) {
            duplicates.see(&content(number));
        }
        let mut copies = Copies::of(duplicates);
        for number in 0..900 {
            assert_eq!(copies.find(&item(number, number as u32)), None);
        }
        for number in 0..900 {
            assert_eq!(copies.find(&item(number, 7)), Some((0, number as u32)));
        }
    }

    #[test]
    fn what_has_one_place_is_hardly_ever_remembered() {
        let mut duplicates = Duplicates::of(10_000);
        (0..10_000).for_each(|number| duplicates.see(&content(number)));
        let copies = Copies::of(duplicates);
        let in_vain = (0..10_000).filter(|number| copies.repeated.has(&content(*number))).count();
        assert!(in_vain < 10_000 / 8, "{in_vain} would be remembered");
    }

    #[test]
    fn memory_does_not_follow_the_tree() {
        let duplicates = Duplicates::of(u64::MAX);
        assert_eq!(duplicates.once.0.len() * 64, BITS_MAX as usize);
        let mut copies = Copies::of(duplicates);
        copies.repeated.0.fill(u64::MAX);
        for number in 0..PLACES_MAX as u64 + 1000 {
            let item = item(number, 0);
            assert_eq!(copies.find(&item), None);
            copies.expect(&item);
            assert_eq!(copies.find(&item), Some((0, 0)), "placed, or under way");
            copies.came(&item);
        }
        assert_eq!((copies.placed.len(), copies.under_way.len()), (PLACES_MAX, 0));
        assert_eq!(copies.find(&item(PLACES_MAX as u64 + 1, 0)), None, "fetched again");
    }
}
