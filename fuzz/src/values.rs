//! Generators of domain values, most of them valid.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use syncd_shared::diff::DirectorySource;
use syncd_shared::directory::{Built, DecodeDirectoryError, Page};
use syncd_shared::ed25519::SigningKey;
use syncd_shared::{
    Component, ContentHash, Directory, Entry, Generation, GenerationNumber, Kind, Metadata, ObjectHash,
    RootEntry, SignedGeneration, Timestamp, Totals, TreeId,
};
use zstd::bulk::Compressor;

use crate::mutation::number;

/// Tree ID of all generated generations.
pub(crate) const TREE: TreeId = TreeId::from_bytes([7; 16]);

/// Key that signs generated generations.
pub(crate) fn signing_key() -> &'static SigningKey {
    static KEY: OnceLock<SigningKey> = OnceLock::new();
    KEY.get_or_init(|| SigningKey::from_bytes(&[3; 32]))
}

pub(crate) fn bytes(u: &mut Unstructured<'_>, most: usize) -> Result<Vec<u8>> {
    let length = u.int_in_range(0..=most)?.min(u.len());
    u.bytes(length).map(<[u8]>::to_vec)
}

/// A mostly valid value.
pub(crate) fn name(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    Ok(match u.int_in_range(0..=15u8)? {
        0 => (*u.choose::<&[u8]>(&[b"", b".", b"..", b"a/b", b"a\0", b"/", b"\xff\n\x1b[2J", b"CON"])?)
            .to_vec(),
        1 => vec![b'n'; u.int_in_range(250..=260)?],
        _ => {
            let mut name = bytes(u, 12)?;
            name.iter_mut().filter(|b| **b == 0 || **b == b'/').for_each(|b| *b = b'x');
            if name.is_empty() { b"name".to_vec() } else { name }
        }
    })
}

pub(crate) fn component(u: &mut Unstructured<'_>) -> Result<Component> {
    let name = name(u)?;
    Ok(Component::new(&name).unwrap_or_else(|_| Component::new(b"name").expect("a name")))
}

pub(crate) fn metadata(u: &mut Unstructured<'_>) -> Result<Metadata> {
    Ok(Metadata {
        mode: if u.ratio(1, 16)? { u.arbitrary()? } else { u.int_in_range(0..=0o1777)? & 0o1777 },
        uid: u.arbitrary()?,
        gid: u.arbitrary()?,
        mtime: Timestamp {
            seconds: u.arbitrary()?,
            nanoseconds: if u.ratio(1, 16)? { u.arbitrary()? } else { u.int_in_range(0..=999_999_999)? },
        },
    })
}

fn totals(u: &mut Unstructured<'_>) -> Result<Totals> {
    Ok(Totals { entries: number(u)?, files: number(u)?, bytes: number(u)? })
}

fn entry(u: &mut Unstructured<'_>) -> Result<Entry> {
    let kind = match u.int_in_range(0..=2u8)? {
        0 => Kind::Directory { object: ObjectHash::from_bytes(u.arbitrary()?), totals: totals(u)? },
        1 => Kind::File { content: ContentHash::from_bytes(u.arbitrary()?), size: number(u)? },
        _ => Kind::Symlink { target: bytes(u, 20)?.into() },
    };
    Ok(Entry { name: component(u)?, metadata: metadata(u)?, kind })
}

pub(crate) fn entries(u: &mut Unstructured<'_>) -> Result<Vec<Entry>> {
    let count = u.int_in_range(0..=6usize)?;
    (0..count).map(|_| entry(u)).collect()
}

/// Names are unique and sorted; everything else may be odd.
pub(crate) fn directory(u: &mut Unstructured<'_>) -> Result<Directory> {
    let mut entries = entries(u)?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    entries.dedup_by(|a, b| a.name == b.name);
    Ok(Directory::new(entries).unwrap_or_default())
}

/// A directory object: entries, or pages that no object has.
pub(crate) fn page(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    if !u.ratio(1, 4)? {
        return Ok(directory(u)?.build().pages.pop().map(|(_, bytes)| bytes).unwrap_or_default());
    }
    let mut bytes = vec![17];
    for name in 0..u.int_in_range(1..=4u8)? {
        bytes.extend([1, b'a' + name]);
        bytes.extend::<[u8; 32]>(u.arbitrary()?);
        for _ in 0..5 {
            bytes.extend((number(u)? >> 8).to_le_bytes());
        }
    }
    Ok(bytes)
}

/// Directory objects in memory.
#[derive(Default)]
pub(crate) struct Pages(HashMap<ObjectHash, Arc<Page>>);

impl DirectorySource for Pages {
    type Error = DecodeDirectoryError;

    fn page(&self, hash: &ObjectHash) -> std::result::Result<Arc<Page>, DecodeDirectoryError> {
        if *hash == RootEntry::empty().object {
            return Ok(Arc::default());
        }
        Ok(self.0[hash].clone())
    }

    fn checks_boundaries(&self) -> bool {
        true
    }
}

impl Pages {
    /// Keeps what was built, unless a page does not decode.
    pub(crate) fn keep(&mut self, built: &Built) -> Option<ObjectHash> {
        for (hash, bytes) in &built.pages {
            self.0.insert(*hash, Page::decode_verified(bytes, *hash).ok()?);
        }
        Some(built.root)
    }
}

pub(crate) fn root(u: &mut Unstructured<'_>) -> Result<RootEntry> {
    Ok(RootEntry {
        object: ObjectHash::from_bytes(u.arbitrary()?),
        metadata: metadata(u)?,
        totals: totals(u)?,
    })
}

pub(crate) fn generation(u: &mut Unstructured<'_>) -> Result<Generation> {
    let number = GenerationNumber::new(number(u)?).unwrap_or(GenerationNumber::FIRST);
    Ok(Generation {
        tree_id: if u.ratio(1, 8)? { TreeId::from_bytes(u.arbitrary()?) } else { TREE },
        epoch: if u.ratio(1, 8)? { 2 } else { 1 },
        trust: 1,
        number,
        root: root(u)?,
        parent: GenerationNumber::new(u.int_in_range(0..=number.get())?),
        created_ms: u.arbitrary()?,
        label: String::from_utf8_lossy(&bytes(u, 40)?).into_owned(),
    })
}

/// Usually one of those signed at the start, because signing takes longer than most decoders.
pub(crate) fn signed(u: &mut Unstructured<'_>) -> Result<SignedGeneration> {
    static SIGNED: OnceLock<Vec<SignedGeneration>> = OnceLock::new();
    // In this order, because `ratio` returns `true` for an input without bytes left.
    if !u.ratio(15, 16)? {
        return Ok(generation(u)?.sign(signing_key()));
    }
    let before = SIGNED.get_or_init(|| (0..64).filter_map(signed_before).collect());
    u.choose(before).cloned()
}

/// Several of each number, so that they follow and contradict each other. `None` stands for one that no
/// origin would sign.
fn signed_before(index: u8) -> Option<SignedGeneration> {
    let mut noise = [0; 1024];
    blake3::Hasher::new().update(&[index]).finalize_xof().fill(&mut noise);
    let mut generation = generation(&mut Unstructured::new(&noise)).ok()?;
    if !index.is_multiple_of(8) {
        (generation.tree_id, generation.epoch) = (TREE, 1);
        generation.number = GenerationNumber::new(u64::from(index / 4) + 1)?;
        generation.parent = GenerationNumber::new(u64::from(index / 4));
    }
    let tree = generation.tree_id;
    let signed = generation.sign(signing_key());
    let key = signing_key().verifying_key();
    SignedGeneration::verify(signed.record(), signed.signature(), tree, &key).ok()
}

/// Whether this input is one of a few that also get an expensive check. Deterministic for each input.
pub(crate) fn sampled(input: &[u8], one_in: u32) -> bool {
    let hash =
        input.iter().fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    (hash ^ hash >> 15) % one_in == 0
}

/// A zstd frame of these bytes, only sometimes compressed, because compression takes most of the time.
pub(crate) fn compressed(bytes: &[u8]) -> Bytes {
    thread_local! {
        static COMPRESSOR: RefCell<Compressor<'static>> =
            RefCell::new(Compressor::new(-5).expect("memory for a small context"));
    }
    if !sampled(bytes, 16) {
        return uncompressed(bytes).into();
    }
    COMPRESSOR.with_borrow_mut(|compressor| {
        compressor.compress(bytes).expect("compressing memory into memory does not fail").into()
    })
}

/// RFC 8878: the header of a single-segment frame with a size of four bytes, and raw blocks.
fn uncompressed(bytes: &[u8]) -> Vec<u8> {
    const BLOCK_MAX_BYTES: usize = 128 * 1024;
    let mut out = vec![0x28, 0xb5, 0x2f, 0xfd, 0xa0];
    out.extend((bytes.len() as u32).to_le_bytes());
    let mut rest = bytes;
    loop {
        let (block, after) = rest.split_at(rest.len().min(BLOCK_MAX_BYTES));
        let header = (block.len() as u32) << 3 | u32::from(after.is_empty());
        out.extend(&header.to_le_bytes()[..3]);
        out.extend(block);
        if after.is_empty() {
            return out;
        }
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_either_kind_decompress_to_what_they_hold() {
        for length in [0, 1, 300, 128 * 1024, 300_000] {
            let bytes: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            for frame in [uncompressed(&bytes).into(), compressed(&bytes)] {
                let whole = zstd::bulk::decompress(&frame, bytes.len()).expect("a frame");
                assert_eq!(whole, bytes);
            }
        }
    }

    #[test]
    fn most_of_what_is_signed_before_could_be_an_origins() {
        let numbers: Vec<u64> =
            (0..64).filter_map(signed_before).map(|signed| signed.number().get()).collect();
        assert!(numbers.len() >= 40, "{}", numbers.len());
        assert!((1..=16).all(|number| numbers.contains(&number)), "{numbers:?}");
    }
}
