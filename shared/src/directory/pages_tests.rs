//! Properties of pages: hashes depend on the entries alone, edits and comparisons read few pages, and names
//! chosen by an enemy hold the bounds.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use proptest::prelude::*;

use super::tests::{any_entry, file, symlink};
use super::*;
use crate::diff::DirectorySource;
use crate::limits::{PAGE_ITEMS_MAX, PAGE_ITEMS_MIN, PAGE_LEVELS_MAX, PAGE_MAX_BYTES, SINGLE_PAGE_BYTES};
use crate::wire::DirectoryPatch;

/// Pages in memory, all of which are checked when they are read.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    pages: HashMap<ObjectHash, Arc<Page>>,
    reads: Cell<usize>,
}

impl DirectorySource for Pages {
    type Error = DecodeDirectoryError;

    fn page(&self, hash: &ObjectHash) -> Result<Arc<Page>, DecodeDirectoryError> {
        self.reads.set(self.reads.get() + 1);
        Ok(self.pages[hash].clone())
    }

    fn checks_boundaries(&self) -> bool {
        true
    }
}

impl Pages {
    pub(crate) fn put(&mut self, directory: &Directory) -> ObjectHash {
        self.keep(&directory.build())
    }

    fn keep(&mut self, built: &Built) -> ObjectHash {
        for (hash, bytes) in &built.pages {
            assert!(bytes.len() <= PAGE_MAX_BYTES);
            let page = Page::decode_verified(bytes, *hash).expect("decodes");
            assert_eq!(page.encode(), *bytes);
            assert!(page.entries().len().max(page.pages().len()) <= PAGE_ITEMS_MAX);
            self.pages.insert(*hash, page);
        }
        built.root
    }

    fn edit(&mut self, from: ObjectHash, edits: &Edits) -> ObjectHash {
        let built = edit(self, Some(from), edits).expect("edits");
        self.keep(&built)
    }

    fn reads(&self, work: impl FnOnce(&Self)) -> usize {
        self.reads.set(0);
        work(self);
        self.reads.get()
    }
}

/// The chain of patches from one directory to another, each checked.
pub(crate) fn patches(pages: &Pages, from: Option<ObjectHash>, to: ObjectHash) -> Vec<DirectoryPatch> {
    let mut patches: Vec<DirectoryPatch> = Vec::new();
    let mut emit = |patch: DirectoryPatch| {
        assert_eq!(patch.from, patches.last().map_or(from, |last| Some(last.to)));
        patches.push(patch);
        Ok::<_, DecodeDirectoryError>(())
    };
    DirectoryPatch::between(pages, from, to, &mut emit).expect("compares");
    assert_eq!(patches.last().map(|last| last.to), Some(to));
    patches
}

/// Hash and levels of a directory, from the definition: each level is cut, until one page is left.
fn naive(entries: &[Entry]) -> (ObjectHash, usize) {
    let encoded: Vec<_> = entries.iter().map(|entry| encode_entries(std::slice::from_ref(entry))).collect();
    let all = encoded.concat();
    if all.len() as u64 <= SINGLE_PAGE_BYTES {
        return (object_hash_of(&[&[1], &all[..]].concat()), 1);
    }
    let mut items: Vec<(PageRef, Vec<u8>)> = Vec::new();
    for (entry, bytes) in entries.iter().zip(encoded) {
        let (last, object) = (entry.name.clone(), ObjectHash::from_bytes([0; 32]));
        let (names, length) = (1, bytes.len() as u64);
        items.push((PageRef { last, object, names, bytes: length, totals: entry.totals() }, bytes));
    }
    for level in 0u8.. {
        let mut pages = Vec::new();
        let mut open: Vec<(PageRef, Vec<u8>)> = Vec::new();
        let count = items.len();
        for (index, item) in items.into_iter().enumerate() {
            open.push(item);
            let bytes = 1 + open.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
            let last = open.last().expect("an item").0.last.clone();
            if page::ends_after(level, open.len(), bytes, &last) || index + 1 == count {
                let format = if level == 0 { 1 } else { 16 + level };
                let bytes: Vec<u8> =
                    std::iter::once(format).chain(open.iter().flat_map(|(_, b)| b.clone())).collect();
                let sum = |of: fn(&PageRef) -> u64| open.iter().map(|(page, _)| of(page)).sum::<u64>();
                let page = PageRef {
                    last,
                    object: object_hash_of(&bytes),
                    names: sum(|page| page.names),
                    bytes: sum(|page| page.bytes),
                    totals: open
                        .iter()
                        .fold(Totals::default(), |all, (page, _)| all.saturating_add(page.totals)),
                };
                let mut encoded = Vec::new();
                page.encode(&mut encoded);
                pages.push((page, encoded));
                open.clear();
            }
        }
        if let [(only, _)] = &pages[..] {
            return (only.object, usize::from(level) + 1);
        }
        items = pages;
    }
    unreachable!()
}

fn numbered(number: u32) -> Entry {
    match number % 16 {
        0 => symlink(&format!("page-{number:07}.html"), &"t".repeat(1 + number as usize % 300)),
        _ => file(&format!("page-{number:07}.html"), &number.to_le_bytes()),
    }
}

fn directory(entries: impl IntoIterator<Item = Entry>) -> Directory {
    Directory::new(entries.into_iter().collect()).expect("unique names")
}

fn all(pages: &Pages, root: ObjectHash) -> Vec<Entry> {
    pages.directory(&root).expect("reads").entries().to_vec()
}

#[test]
fn a_directory_that_shrinks_to_one_page_while_its_first_page_stays() {
    let entries: Vec<_> = (0..94).map(|n| numbered(n * 2)).collect();
    let mut pages = Pages::default();
    let root = pages.put(&directory(entries.clone()));
    let gone = entries[80..].iter().map(|entry| (entry.name.clone(), None)).collect();
    assert_eq!(pages.edit(root, &gone), naive(&entries[..80]).0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_edits_gives_the_hash_of_the_entries(
        start in 0u32..1500,
        steps in proptest::collection::vec(proptest::collection::vec((0u32..3000, 0u8..4), 1..40), 1..12),
        cut in proptest::option::of(0u32..3000),
    ) {
        let mut pages = Pages::default();
        let mut expected: BTreeMap<Component, Entry> =
            (0..start).map(|n| numbered(n * 2)).map(|e| (e.name.clone(), e)).collect();
        let mut root = pages.put(&directory(expected.values().cloned()));
        let mut steps: Vec<Edits> = steps.into_iter().map(|step| step.into_iter().map(|(number, what)| {
            let mut entry = numbered(number);
            entry.metadata.mtime.seconds += i64::from(what);
            (entry.name.clone(), (what > 0).then_some(entry))
        }).collect()).collect();
        if let Some(cut) = cut {
            // Removes nearly everything, and then adds some names again.
            let gone = expected.keys().filter(|name| **name > numbered(cut).name);
            steps.insert(steps.len() / 2, gone.map(|name| (name.clone(), None)).collect());
        }
        for edits in steps {
            let before = (root, expected.clone());
            for (name, entry) in &edits {
                match entry {
                    Some(entry) => drop(expected.insert(name.clone(), entry.clone())),
                    None => drop(expected.remove(name)),
                }
            }
            root = pages.edit(root, &edits);
            let entries: Vec<_> = expected.values().cloned().collect();
            prop_assert_eq!(root, naive(&entries).0);
            prop_assert_eq!(root, directory(entries.clone()).hash());
            prop_assert_eq!(&all(&pages, root), &entries);
            for (name, entry) in edits {
                prop_assert_eq!(pages.entry(&root, &name).expect("reads"), expected.get(&name).cloned());
                let mut cursor = Cursor::new(&pages, Some(root)).expect("reads");
                cursor.seek(&name).expect("reads");
                let next = expected.range(&name..).next().map(|(_, entry)| entry);
                prop_assert_eq!(cursor.entry().expect("reads"), next);
                drop(entry);
            }
            let mut pairs = Pairs::new(&pages, Some(before.0), Some(root)).expect("reads");
            let mut found = Vec::new();
            while let Some((old, new)) = pairs.next_pair().expect("reads") {
                let name = old.as_ref().or(new.as_ref()).expect("a side").name.clone();
                prop_assert_eq!(&old, &before.1.get(&name).cloned());
                prop_assert_eq!(&new, &expected.get(&name).cloned());
                found.push(name);
            }
            let leaves = |root| {
                let mut cursor = Cursor::new(&pages, Some(root)).expect("reads");
                let mut leaves = Vec::new();
                while let Some((object, ..)) = cursor.leaf().expect("reads") {
                    leaves.push(object);
                    cursor.skip_leaf();
                }
                leaves
            };
            let changed = ChangedLeaves::between(&pages, Some(before.0), Some(root)).expect("reads");
            let (old, new) = (leaves(before.0), leaves(root));
            let only = |one: &[ObjectHash], other: &[ObjectHash]| {
                one.iter().filter(|object| !other.contains(object)).copied().collect::<Vec<_>>()
            };
            prop_assert_eq!(&changed.gone, &only(&old, &new));
            prop_assert_eq!(changed.new.iter().map(|(object, _)| *object).collect::<Vec<_>>(), only(&new, &old));
            let mut names: Vec<_> = before.1.keys().chain(expected.keys()).cloned().collect();
            names.sort();
            names.dedup();
            names.retain(|name| before.1.get(name) != expected.get(name));
            prop_assert_eq!(found, names);
        }
    }

    #[test]
    fn entries_of_any_kind_and_length_are_cut_alike(
        entries in proptest::collection::vec(any_entry(), 0..400),
        target in 1usize..4000,
    ) {
        let mut unique: BTreeMap<Component, Entry> = entries.into_iter().map(|e| (e.name.clone(), e)).collect();
        for entry in unique.values_mut() {
            if let Kind::Symlink { target: to } = &mut entry.kind {
                *to = vec![b't'; target].into();
            }
        }
        let mut pages = Pages::default();
        let entries: Vec<_> = unique.into_values().collect();
        let root = pages.put(&directory(entries.clone()));
        prop_assert_eq!(root, naive(&entries).0);
        prop_assert_eq!(all(&pages, root), entries);
    }
}

#[test]
fn one_name_costs_a_page_of_each_level() {
    for count in [1_000, 100_000u32] {
        let mut pages = Pages::default();
        let root = pages.put(&directory((0..count).map(|n| numbered(2 * n))));
        let levels = naive(&(0..count).map(|n| numbered(2 * n)).collect::<Vec<_>>()).1;
        assert!((2..=4).contains(&levels), "{levels}");
        let (mut most, mut sum) = (0, 0);
        for number in (1..2 * count).step_by(count as usize / 20) {
            let entry = numbered(number | 1);
            let edits = Edits::from([(entry.name.clone(), Some(entry.clone()))]);
            let mut made = Built { root, totals: Totals::default(), pages: Vec::new() };
            let reads = pages.reads(|pages| made = edit(pages, Some(root), &edits).expect("edits"));
            let bytes: usize = made.pages.iter().map(|(_, bytes)| bytes.len()).sum();
            assert!(
                reads <= 2 * levels + 4 && made.pages.len() <= 2 * levels + 4,
                "{reads} {}",
                made.pages.len()
            );
            most = most.max(bytes);
            sum += bytes;
            let new = pages.keep(&made);
            let reads = pages.reads(|pages| assert_eq!(patches(pages, Some(root), new).len(), 1));
            assert!(reads <= 4 * levels + 8, "{reads}");
            assert!(pages.reads(|pages| drop(pages.entry(&new, &entry.name))) <= levels);
        }
        println!("{count}: at most {most} bytes, {} on average, {levels} levels", sum / 20);
        assert!(most < 150_000, "{most}");
    }
}

#[test]
fn names_chosen_to_end_every_page_or_none_hold_the_bounds() {
    for ends in [true, false] {
        let chosen = (0u32..).map(|n| file(&format!("n{n:07}"), b"x")).filter(|entry| {
            let is_end = page::ends_after(0, PAGE_ITEMS_MIN, 0, &entry.name);
            is_end == ends
        });
        let entries: Vec<_> = chosen.take(5_000).collect();
        let mut pages = Pages::default();
        let root = pages.put(&directory(entries.clone()));
        let (expected, levels) = naive(&entries);
        assert_eq!(root, expected);
        assert!(levels <= PAGE_LEVELS_MAX / 2, "{levels}");
        let size = if ends { PAGE_ITEMS_MIN } else { PAGE_ITEMS_MAX };
        let leaves = pages.pages.values().filter(|page| page.level() == 0).count();
        assert_eq!(leaves, entries.len().div_ceil(size));
        // An edit may move every cut, and still ends in the right tree.
        let first = Edits::from([(entries[0].name.clone(), None)]);
        assert_eq!(pages.edit(root, &first), naive(&entries[1..]).0);
    }
}

#[test]
fn a_large_change_is_a_chain_of_bounded_patches() {
    let mut pages = Pages::default();
    let from = pages.put(&directory((0..9_000).map(numbered)));
    let to = pages.put(&directory((4_000..20_000).step_by(2).map(numbered)));
    for (from, to) in [(Some(from), to), (None, to), (Some(to), from)] {
        let chain = patches(&pages, from, to);
        assert!(chain.len() > 1);
        let mut at = from;
        for patch in chain {
            assert_eq!(patch.from, at);
            let built = patch.apply(&pages).expect("applies");
            patch.check(&built).expect("what it promises");
            at = Some(pages.keep(&built));
        }
        assert_eq!(at, Some(to));
    }
}

#[test]
fn pages_that_are_cut_elsewhere_or_lie_are_refused() {
    let mut pages = Pages::default();
    let root = pages.put(&directory((0..1_000).map(numbered)));
    let top = pages.pages[&root].clone();
    assert_eq!(top.level(), 1);
    let read = |pages: &Pages, root| pages.directory(&root).map(|directory| directory.entries().len());
    assert_eq!(read(&pages, root), Ok(1_000));
    let put = |pages: &mut Pages, format: u8, items: Vec<Vec<u8>>| {
        let bytes = [&[format], &items.concat()[..]].concat();
        let object = object_hash_of(&bytes);
        pages.pages.insert(object, Page::decode_verified(&bytes, object).expect("decodes"));
        object
    };
    let encoded = |page: &PageRef| {
        let mut out = Vec::new();
        page.encode(&mut out);
        out
    };
    let refs = |change: &dyn Fn(&mut Vec<PageRef>)| {
        let mut list = top.pages().to_vec();
        change(&mut list);
        list.iter().map(encoded).collect::<Vec<_>>()
    };
    type Lie = fn(&mut Vec<PageRef>);
    let lies: [(&str, Lie); 7] = [
        ("names", |list| list[1].names += 1),
        ("bytes", |list| list[1].bytes += 1),
        ("files", |list| list[1].totals.files += 1),
        ("last name", |list| {
            let longer = [list[1].last.as_bytes(), b"x"].concat();
            list[1].last = Component::new(&longer).expect("a name");
        }),
        ("one page left out, another twice", |list| list[2].object = list[1].object),
        ("pages in another order", |list| {
            let (one, two) = (list[1].object, list[2].object);
            (list[1].object, list[2].object) = (two, one);
        }),
        ("a single page", |list| list.truncate(1)),
    ];
    for (what, lie) in lies {
        let items = refs(&lie);
        let root = put(&mut pages, 17, items);
        let refused = read(&pages, root);
        let is_refused =
            matches!(refused, Err(DecodeDirectoryError::Page { .. } | DecodeDirectoryError::Boundary { .. }));
        assert!(is_refused, "{what}: {refused:?}");
    }
    // Two pages in one, and one page in two.
    let entries = |from: usize, to: usize| {
        let entries = all(&pages, root);
        entries[from..to].iter().map(|e| encode_entries(std::slice::from_ref(e))).collect::<Vec<_>>()
    };
    let (first, second) = (top.pages()[0].names as usize, top.pages()[1].names as usize);
    let joined = entries(0, first + second);
    let halves = (entries(0, first / 2), entries(first / 2, first));
    let describe = |pages: &Pages, object: ObjectHash| {
        let page = &pages.pages[&object];
        let last = page.entries().last().expect("an entry").name.clone();
        PageRef { last, object, names: page.names(), bytes: page.bytes(), totals: page.totals() }
    };
    let joined = put(&mut pages, 1, joined);
    let halves = [put(&mut pages, 1, halves.0), put(&mut pages, 1, halves.1)];
    for (made, replaces) in [(vec![joined], 2), (halves.to_vec(), 1)] {
        let made: Vec<_> = made.into_iter().map(|object| describe(&pages, object)).collect();
        let items = refs(&|list| drop(list.splice(..replaces, made.iter().cloned())));
        let root = put(&mut pages, 17, items);
        assert!(matches!(read(&pages, root), Err(DecodeDirectoryError::Boundary { .. })));
    }
}

#[test]
fn the_format_of_a_page_of_pages_is_pinned() {
    let page = PageRef {
        last: Component::new(b"z").unwrap(),
        object: ObjectHash::from_bytes([0xab; 32]),
        names: 2,
        bytes: 3,
        totals: Totals { entries: 4, files: 5, bytes: 6 },
    };
    let mut bytes = vec![17];
    page.encode(&mut bytes);
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let number = |n: u64| format!("{n:02x}{}", "00".repeat(7));
    // format: pages of level 1's objects; last name "z"; object; names, bytes; totals
    let expected = ["11017a", &"ab".repeat(32), &(2..=6).map(number).collect::<String>()].concat();
    assert_eq!(hex, expected);
    assert_eq!(Page::decode(&bytes).expect("decodes").pages(), [page]);
}
