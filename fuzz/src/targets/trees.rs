//! Directory objects, root entries and generation records.

use arbitrary::{Result, Unstructured};
use std::collections::BTreeMap;

use syncd_shared::diff::DirectorySource as _;
use syncd_shared::directory::{Edits, Page, Pairs, decode_entry_list, edit, encode_entries, object_hash_of};
use syncd_shared::{
    Component, ContentHash, Directory, Entry, Generation, Head, Kind, ObjectHash, RootEntry, SignedGeneration,
};

use crate::identities::identities;
use crate::mutation::mutate;
use crate::values::{self, Pages, TREE, sampled, signing_key};

/// A directory object, which must be canonical or rejected.
pub(super) fn directory(input: &[u8]) {
    if let Ok(entries) = decode_entry_list(input, u64::MAX) {
        assert_eq!(encode_entries(&entries), input);
    }
    assert!(Page::decode_verified(input, ObjectHash::from_bytes([0; 32])).is_err());
    let Ok(page) = Page::decode(input) else { return };
    assert_eq!(page.encode(), input);
    assert_eq!(*Page::decode_verified(input, object_hash_of(input)).expect("it decodes"), page);
    for pair in page.entries().windows(2) {
        assert!(pair[0].name < pair[1].name);
    }
    for entry in page.entries() {
        assert!(entry.metadata.is_valid(), "no setuid, no setgid, no time that is none");
        assert_eq!(page.leaf().expect("entries").get(&entry.name), Some(entry));
        if let Kind::Symlink { target } = &entry.kind {
            assert!(!target.is_empty() && !target.contains(&0));
        }
    }
    assert_eq!(page.pages().is_empty(), page.level() == 0);
    assert!(page.pages().windows(2).all(|pair| pair[0].last < pair[1].last));
}

/// Edits of a directory of many pages: the hash depends on the entries alone, and what is read is what was
/// written. Each edit is a byte for the name, and one for what becomes of it.
pub(super) fn edits(input: &[u8]) {
    let mut pages = Pages::default();
    let mut expected = BTreeMap::new();
    let mut root = RootEntry::empty().object;
    // A start of up to 2,040 entries, and edits in groups.
    let (start, rest) = input.split_at(input.len().min(1));
    let start: Edits =
        (0..u32::from(start.first().copied().unwrap_or(0)) * 8).map(|n| edit_of(n * 32, 1)).collect();
    let groups = rest.chunks(24).map(|group| {
        group
            .chunks_exact(3)
            .map(|edit| edit_of(u32::from(u16::from_le_bytes([edit[0], edit[1]])), edit[2]))
            .collect::<Edits>()
    });
    for edits in std::iter::once(start).chain(groups) {
        let before = root;
        let built = edit(&pages, Some(root), &edits).expect("reads");
        root = pages.keep(&built).expect("decodes");
        for (name, entry) in edits {
            match entry {
                Some(entry) => drop(expected.insert(name, entry)),
                None => drop(expected.remove(&name)),
            }
        }
        let mut pairs = Pairs::new(&pages, Some(before), Some(root)).expect("reads");
        while let Some((_, new)) = pairs.next_pair().expect("reads") {
            assert!(new.is_none_or(|new| expected.get(&new.name) == Some(&new)));
        }
    }
    let entries: Vec<_> = expected.into_values().collect();
    assert_eq!(pages.directory(&root).expect("reads").entries(), entries);
    assert_eq!(Directory::new(entries).expect("unique names").hash(), root);
}

fn edit_of(number: u32, what: u8) -> (Component, Option<Entry>) {
    let name = Component::new(format!("name-{number:06}").as_bytes()).expect("a name");
    let metadata = RootEntry::empty().metadata;
    let kind = match what % 8 {
        0..=2 => return (name, None),
        3 => Kind::Symlink { target: vec![b't'; 1 + usize::from(what) * 15].into() },
        _ => Kind::File { content: ContentHash::of(&[what]), size: what.into() },
    };
    (name.clone(), Some(Entry { name, metadata, kind }))
}

pub(super) fn any_edits(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    values::bytes(u, 600)
}

pub(super) fn any_directory(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let bytes = values::page(u)?;
    let start = usize::from(u.ratio(1, 4)?);
    mutate(u, bytes[start..].to_vec())
}

/// A signature of 64 bytes, then a generation record.
pub(super) fn generation(input: &[u8]) {
    if let Ok(root) = RootEntry::decode(input) {
        assert_eq!(root.encode(), input);
    }
    if let Ok(head) = Head::verify(input, identities().trust.document()) {
        assert_eq!(head.sign(signing_key()), input);
    }
    let Some((signature, record)) = input.split_first_chunk::<64>() else { return };
    let Ok(generation) = Generation::decode(record) else { return };
    assert_eq!(generation.encode(), record);
    assert!(generation.parent.is_none_or(|parent| parent < generation.number));
    if let Ok(stored) = SignedGeneration::from_store(record, *signature) {
        assert_eq!(stored.record(), record);
    }
    // A signature takes as long as fifty records.
    if !sampled(input, 16) {
        return;
    }
    let key = signing_key().verifying_key();
    let Ok(signed) = SignedGeneration::verify(record, signature, TREE, &key) else { return };
    assert_eq!(generation.tree_id, TREE);
    assert_eq!(signed.generation(), &generation);
    // ed25519 signatures are deterministic, and strict verification accepts no other.
    assert_eq!(signed, generation.sign(signing_key()));
    let _ = signed.may_follow(None);
    let _ = signed.may_follow(Some(&signed));
}

pub(super) fn any_generation(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    if u.ratio(1, 8)? {
        let bytes = values::root(u)?.encode();
        return mutate(u, bytes);
    }
    let signed = values::signed(u)?;
    if u.ratio(1, 8)? {
        let head = Head::of(&signed, u.arbitrary()?).sign(signing_key());
        return mutate(u, head);
    }
    mutate(u, [signed.signature().as_slice(), signed.record()].concat())
}
