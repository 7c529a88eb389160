//! Directory objects, root entries and generation records.

use arbitrary::{Result, Unstructured};
use syncd_shared::directory::{decode_entry_list, encode_entries};
use syncd_shared::{Directory, Generation, Head, Kind, ObjectHash, RootEntry, SignedGeneration};

use crate::identities::identities;
use crate::mutation::mutate;
use crate::values::{self, TREE, sampled, signing_key};

/// A directory object, which must be canonical or rejected.
pub(super) fn directory(input: &[u8]) {
    if let Ok(entries) = decode_entry_list(input, u64::MAX) {
        assert_eq!(encode_entries(&entries), input);
    }
    let decoded = Directory::decode(input);
    assert!(Directory::decode_verified(input, ObjectHash::from_bytes([0; 32])).is_err());
    let Ok(directory) = decoded else { return };
    assert_eq!(directory.encode(), input);
    assert_eq!(*Directory::decode_verified(input, directory.hash()).expect("it decodes"), directory);
    let _ = directory.totals();
    for pair in directory.entries().windows(2) {
        assert!(pair[0].name < pair[1].name);
    }
    for entry in directory.entries() {
        assert!(entry.metadata.is_valid(), "no setuid, no setgid, no time that is none");
        assert_eq!(directory.get(&entry.name), Some(entry));
        if let Kind::Symlink { target } = &entry.kind {
            assert!(!target.is_empty() && !target.contains(&0));
        }
    }
}

pub(super) fn any_directory(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let bytes = values::directory(u)?.encode();
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
