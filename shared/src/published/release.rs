//! The object of a generation: its signed record, and where its content is.
//!
//! ```text
//! magic    8 bytes
//! record   length, u16 | canonical bytes | signature, 64
//! nonce    16 bytes, drawn by the origin when it started
//! packs    count, u32 | for each: name, 32 | bytes, u64 | table bytes, u32
//! updates  count, u16 | for each: from root, 32 | name, 32 | bytes, u64
//! hash     BLAKE3 of all of the above, 32
//! ```
//!
//! Integers are little-endian. The packs together hold the whole tree. Only the record is signed: what the
//! lists lead to is checked against the record's root.

use super::PublishedError;
use super::pack::{FOOTER_BYTES, TABLE_MAX_BYTES};
use crate::directory::Reader;
use crate::generation::{Generation, SignedGeneration};
use crate::hash::RootHash;
use crate::identity::TrustDocument;
use crate::limits::GENERATION_RECORD_MAX_BYTES;

const MAGIC: [u8; 8] = *b"syncdgn1";
const PACK_ROW_BYTES: usize = 32 + 8 + 4;
const UPDATE_ROW_BYTES: usize = 32 + 32 + 8;
const HASH_BYTES: usize = 32;
/// Packs of one generation.
pub const PACKS_MAX: usize = 1 << 16;
/// Updates to one generation.
pub const UPDATES_MAX: usize = 64;
/// Longest object of a generation.
pub const RELEASE_MAX_BYTES: usize =
    GENERATION_RECORD_MAX_BYTES + 256 + PACKS_MAX * PACK_ROW_BYTES + UPDATES_MAX * UPDATE_ROW_BYTES;

/// Drawn by an origin at its start, to tell its own objects from those of a copy of itself.
pub type Nonce = [u8; 16];

/// A pack of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackRef {
    pub name: [u8; 32],
    /// Length of the object.
    pub bytes: u64,
    pub table_bytes: u32,
}

impl PackRef {
    /// Position of the table in the object.
    pub fn table(&self) -> std::ops::Range<u64> {
        let end = self.bytes.saturating_sub(FOOTER_BYTES as u64);
        end.saturating_sub(u64::from(self.table_bytes))..end
    }
}

/// An update to a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpdateRef {
    pub from: RootHash,
    /// Name of the update file ([`crate::update_file::Index::name`]).
    pub name: [u8; 32],
    /// Length of the object.
    pub bytes: u64,
}

/// The object of a generation. The record's signature has not been verified: see [`Release::verify`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    pub generation: Generation,
    record: Vec<u8>,
    signature: [u8; 64],
    pub nonce: Nonce,
    pub packs: Vec<PackRef>,
    pub updates: Vec<UpdateRef>,
}

impl Release {
    pub fn new(of: &SignedGeneration, nonce: Nonce, packs: Vec<PackRef>, updates: Vec<UpdateRef>) -> Self {
        let (generation, record) = (of.generation().clone(), of.record().to_vec());
        let mut signature = [0; 64];
        signature.copy_from_slice(of.signature());
        Self { generation, record, signature, nonce, packs, updates }
    }

    /// Verifies the record's signature.
    pub fn verify(&self, document: &TrustDocument) -> Result<SignedGeneration, PublishedError> {
        Ok(document.verify_generation(&self.record, &self.signature)?)
    }

    pub fn record(&self) -> &[u8] {
        &self.record
    }

    pub fn signature(&self) -> &[u8; 64] {
        &self.signature
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend((self.record.len() as u16).to_le_bytes());
        out.extend(&self.record);
        out.extend(self.signature);
        out.extend(self.nonce);
        out.extend((self.packs.len() as u32).to_le_bytes());
        for pack in &self.packs {
            out.extend(pack.name);
            out.extend(pack.bytes.to_le_bytes());
            out.extend(pack.table_bytes.to_le_bytes());
        }
        out.extend((self.updates.len() as u16).to_le_bytes());
        for update in &self.updates {
            out.extend(update.from.as_bytes());
            out.extend(update.name);
            out.extend(update.bytes.to_le_bytes());
        }
        let hash = blake3::hash(&out);
        out.extend(hash.as_bytes());
        out
    }

    pub fn decode(object: &[u8]) -> Result<Self, PublishedError> {
        let form = || PublishedError::Form { object: "a published generation" };
        if object.len() > RELEASE_MAX_BYTES {
            return Err(form());
        }
        // A shorter object has no hash, which is as wrong as a false one.
        let (bytes, hash) = object.split_at(object.len().saturating_sub(HASH_BYTES));
        if blake3::hash(bytes).as_bytes() != hash {
            return Err(PublishedError::Hash { object: "a published generation" });
        }
        let mut reader = Reader::new(bytes);
        if reader.array()? != MAGIC {
            return Err(form());
        }
        let record_bytes = usize::from(u16::from_le_bytes(reader.array()?));
        let record = reader.take(record_bytes)?.to_vec();
        let (signature, nonce) = (reader.array()?, reader.array()?);
        let packs = read_packs(&mut reader)?;
        let updates = read_updates(&mut reader)?;
        if !reader.is_empty() {
            return Err(form());
        }
        let generation = Generation::decode(&record)?;
        Ok(Self { generation, record, signature, nonce, packs, updates })
    }
}

fn read_packs(reader: &mut Reader<'_>) -> Result<Vec<PackRef>, PublishedError> {
    let count = u32::from_le_bytes(reader.array()?) as usize;
    limit("packs of a generation", count as u64, PACKS_MAX)?;
    let mut rows = Reader::new(reader.take(count.saturating_mul(PACK_ROW_BYTES))?);
    let mut packs = Vec::with_capacity(count);
    for _ in 0..count {
        let (name, bytes) = (rows.array()?, u64::from_le_bytes(rows.array()?));
        let table_bytes = u32::from_le_bytes(rows.array()?);
        limit("bytes of the table of a pack", u64::from(table_bytes), TABLE_MAX_BYTES)?;
        packs.push(PackRef { name, bytes, table_bytes });
    }
    Ok(packs)
}

fn read_updates(reader: &mut Reader<'_>) -> Result<Vec<UpdateRef>, PublishedError> {
    let count = usize::from(u16::from_le_bytes(reader.array()?));
    limit("updates to a generation", count as u64, UPDATES_MAX)?;
    let mut rows = Reader::new(reader.take(count.saturating_mul(UPDATE_ROW_BYTES))?);
    let mut updates = Vec::with_capacity(count);
    for _ in 0..count {
        let (from, name) = (RootHash::from_bytes(rows.array()?), rows.array()?);
        updates.push(UpdateRef { from, name, bytes: u64::from_le_bytes(rows.array()?) });
    }
    Ok(updates)
}

fn limit(what: &'static str, actual: u64, limit: usize) -> Result<(), PublishedError> {
    let limit = limit as u64;
    if actual > limit { Err(PublishedError::Limit { what, actual, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ed25519::SigningKey;
    use crate::generation::{GenerationNumber, TreeId};
    use crate::tree::RootEntry;

    fn release() -> Release {
        let generation = Generation {
            tree_id: TreeId::from_bytes([7; 16]),
            epoch: 1,
            number: GenerationNumber::FIRST,
            trust: 1,
            root: RootEntry::empty(),
            parent: None,
            created_ms: 5,
            label: "release".into(),
        };
        let packs = vec![PackRef { name: [1; 32], bytes: 1000, table_bytes: 88 }];
        let updates = vec![UpdateRef { from: RootHash::from_bytes([2; 32]), name: [3; 32], bytes: 9 }];
        Release::new(&generation.sign(&SigningKey::from_bytes(&[3; 32])), [4; 16], packs, updates)
    }

    #[test]
    fn a_release_comes_back_and_no_change_of_it_passes() {
        let release = release();
        let bytes = release.encode();
        assert_eq!(Release::decode(&bytes).unwrap(), release);
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(Release::decode(&changed).is_err(), "byte {at}");
            assert!(Release::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
        assert_eq!(release.packs[0].table(), 900..988);
    }

    #[test]
    fn counts_that_the_object_does_not_hold_are_refused() {
        let bytes = release().encode();
        let count_at = 8 + 2 + release().record().len() + 64 + 16;
        for count in [2u32, u32::MAX] {
            let mut lie = bytes[..bytes.len() - HASH_BYTES].to_vec();
            lie[count_at..][..4].copy_from_slice(&count.to_le_bytes());
            let hash = blake3::hash(&lie);
            lie.extend(hash.as_bytes());
            assert!(Release::decode(&lie).is_err());
        }
    }
}
