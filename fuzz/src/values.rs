//! Valid values of the domain, mostly.

use std::sync::OnceLock;

use arbitrary::{Result, Unstructured};
use ed25519_dalek::SigningKey;
use syncd_shared::{
    Component, ContentHash, Directory, Entry, Generation, GenerationNumber, Kind, Metadata, ObjectHash,
    RootEntry, SignedGeneration, Timestamp, Totals, TreeId,
};

use crate::mutation::number;

/// The tree of all generated generations.
pub(crate) const TREE: TreeId = TreeId::from_bytes([7; 16]);

/// Who signs them.
pub(crate) fn signing_key() -> &'static SigningKey {
    static KEY: OnceLock<SigningKey> = OnceLock::new();
    KEY.get_or_init(|| SigningKey::from_bytes(&[3; 32]))
}

pub(crate) fn bytes(u: &mut Unstructured<'_>, most: usize) -> Result<Vec<u8>> {
    let length = u.int_in_range(0..=most)?.min(u.len());
    u.bytes(length).map(<[u8]>::to_vec)
}

/// Mostly valid.
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

/// Names are unique and sorted; all else may be odd.
pub(crate) fn directory(u: &mut Unstructured<'_>) -> Result<Directory> {
    let mut entries = entries(u)?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    entries.dedup_by(|a, b| a.name == b.name);
    Ok(Directory::new(entries).unwrap_or_default())
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
        number,
        root: root(u)?,
        parent: GenerationNumber::new(u.int_in_range(0..=number.get())?),
        created_ms: u.arbitrary()?,
        label: String::from_utf8_lossy(&bytes(u, 40)?).into_owned(),
    })
}

pub(crate) fn signed(u: &mut Unstructured<'_>) -> Result<SignedGeneration> {
    Ok(generation(u)?.sign(signing_key()))
}

/// As compact as the wire has it, at the least cost.
pub(crate) fn compressed(bytes: &[u8]) -> bytes::Bytes {
    zstd::bulk::compress(bytes, -5).expect("compressing memory into memory does not fail").into()
}
