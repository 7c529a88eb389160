//! The head: names the generation that followers of a published tree take.
//!
//! A published tree lies in an object store, where any carrier may hold back or replace objects. A follower
//! reads the head, never guesses the next number, and fetches the record that it names. The head moves only
//! when a generation is released to the whole fleet.
//!
//! Canonical bytes, version 1 (integers little endian): `u8 version = 1`, 16 tree_id, `u32 epoch`, `u64
//! number`, `u32 trust document`, 32 root hash, `i64 released` (Unix milliseconds), then the ed25519
//! signature of the signing key, which covers a domain tag and all of it. 137 bytes.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use crate::ed25519::{Signature, SigningKey};
use crate::generation::{GenerationError, GenerationNumber, SignedGeneration, TreeId};
use crate::hash::RootHash;
use crate::identity::TrustDocument;

const VERSION: u8 = 1;
const DOMAIN: &[u8] = b"syncd 2026 head v1\0";
const RECORD_BYTES: usize = 73;
const SIGNATURE_BYTES: usize = 64;
/// Length of every head, with its signature.
pub const HEAD_BYTES: usize = RECORD_BYTES + SIGNATURE_BYTES;

/// The released generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub tree_id: TreeId,
    pub epoch: u32,
    pub number: GenerationNumber,
    /// Number of the trust document that the origin had.
    pub trust: u32,
    pub root: RootHash,
    /// Time of the release, in milliseconds since 1970.
    pub released_ms: i64,
}

impl Head {
    /// The head that releases a generation.
    pub fn of(generation: &SignedGeneration, released_ms: i64) -> Self {
        let of = generation.generation();
        let (tree_id, epoch, number, trust) = (of.tree_id, of.epoch, of.number, of.trust);
        Self { tree_id, epoch, number, trust, root: generation.root_hash(), released_ms }
    }

    fn record(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_BYTES);
        out.push(VERSION);
        out.extend_from_slice(self.tree_id.as_bytes());
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&self.number.get().to_le_bytes());
        out.extend_from_slice(&self.trust.to_le_bytes());
        out.extend_from_slice(self.root.as_bytes());
        out.extend_from_slice(&self.released_ms.to_le_bytes());
        out
    }

    /// Canonical bytes with the signature of `key`.
    pub fn sign(&self, key: &SigningKey) -> Vec<u8> {
        let mut out = self.record();
        let signature = key.sign(&[DOMAIN, &out].concat());
        out.extend_from_slice(signature.as_bytes());
        out
    }

    /// Takes a head from outside: signed as `document` says, with an epoch and a number of it. Verifies the
    /// signature before it reads anything else.
    pub fn verify(bytes: &[u8], document: &TrustDocument) -> Result<Self, GenerationError> {
        if bytes.len() != HEAD_BYTES {
            return Err(GenerationError::Length);
        }
        let (record, signature) = bytes.split_at_checked(RECORD_BYTES).ok_or(GenerationError::Length)?;
        let signature = signature.try_into().map_err(|_| GenerationError::Length)?;
        let message = [DOMAIN, record].concat();
        let signature = Signature::from_bytes(signature);
        document.signing_key.verify(&message, &signature).map_err(|_| GenerationError::Signature)?;
        let head = Self::decode(record)?;
        if head.tree_id != document.tree_id {
            return Err(GenerationError::OtherTree { expected: document.tree_id, actual: head.tree_id });
        }
        document.check_place(head.epoch, head.number)?;
        Ok(head)
    }

    /// The tree that a head says it is of, before any of it is verified.
    pub(crate) fn tree_id_unverified(bytes: &[u8]) -> Result<TreeId, GenerationError> {
        let mut rest = bytes;
        let [_version] = take(&mut rest)?;
        Ok(TreeId::from_bytes(take(&mut rest)?))
    }

    fn decode(record: &[u8]) -> Result<Self, GenerationError> {
        let mut rest = record;
        let [version] = take(&mut rest)?;
        if version != VERSION {
            return Err(GenerationError::Version { actual: version });
        }
        let tree_id = TreeId::from_bytes(take(&mut rest)?);
        let epoch = u32::from_le_bytes(take(&mut rest)?);
        let number = u64::from_le_bytes(take(&mut rest)?);
        let trust = u32::from_le_bytes(take(&mut rest)?);
        let root = RootHash::from_bytes(take(&mut rest)?);
        let released_ms = i64::from_le_bytes(take(&mut rest)?);
        let number = GenerationNumber::new(number).ok_or(GenerationError::Invalid)?;
        if epoch == 0 || trust == 0 {
            return Err(GenerationError::Invalid);
        }
        Ok(Self { tree_id, epoch, number, trust, root, released_ms })
    }

    /// Whether this head names the generation.
    pub fn names(&self, generation: &SignedGeneration) -> bool {
        let key = (generation.epoch(), generation.number(), generation.root_hash());
        key == (self.epoch, self.number, self.root)
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], GenerationError> {
    let (field, rest) = bytes.split_first_chunk().ok_or(GenerationError::Length)?;
    *bytes = rest;
    Ok(*field)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::{Epochs, Generation};
    use crate::identity::{Authority, RootKey};
    use crate::tree::RootEntry;
    use time::OffsetDateTime;

    const TREE: TreeId = TreeId::from_bytes([7; 16]);

    fn document(key: &SigningKey) -> TrustDocument {
        let root = RootKey { tree_id: TREE, key: SigningKey::from_bytes(&[4; 32]) };
        let authority = Authority::create(TREE, OffsetDateTime::now_utc()).unwrap();
        TrustDocument::first(&root, key.verifying_key(), authority.certificate(), 0, 0).document().clone()
    }

    fn generation(number: u64, key: &SigningKey) -> SignedGeneration {
        Generation {
            tree_id: TREE,
            epoch: 1,
            number: GenerationNumber::new(number).unwrap(),
            trust: 1,
            root: RootEntry::empty(),
            parent: None,
            created_ms: 0,
            label: String::new(),
        }
        .sign(key)
    }

    #[test]
    fn a_head_comes_back_and_names_its_generation_alone() {
        let key = SigningKey::from_bytes(&[3; 32]);
        let head = Head::of(&generation(5, &key), 1_790_000_000_000);
        let bytes = head.sign(&key);
        assert_eq!(bytes.len(), HEAD_BYTES);
        assert_eq!(Head::verify(&bytes, &document(&key)), Ok(head));
        assert!(head.names(&generation(5, &key)) && !head.names(&generation(6, &key)));
    }

    #[test]
    fn any_flipped_bit_other_key_tree_epoch_or_length_is_refused() {
        let key = SigningKey::from_bytes(&[3; 32]);
        let document = document(&key);
        let head = Head::of(&generation(5, &key), 0);
        let bytes = head.sign(&key);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Head::verify(&flipped, &document), Err(GenerationError::Signature), "bit {bit}");
        }
        assert_eq!(Head::verify(&bytes[1..], &document), Err(GenerationError::Length));
        let refused = |head: Head, key: &SigningKey| Head::verify(&head.sign(key), &document).unwrap_err();
        assert_eq!(refused(head, &SigningKey::from_bytes(&[9; 32])), GenerationError::Signature);
        let elsewhere = Head { tree_id: TreeId::from_bytes([8; 16]), ..head };
        assert!(matches!(refused(elsewhere, &key), GenerationError::OtherTree { .. }));
        assert_eq!(refused(Head { epoch: 0, ..head }, &key), GenerationError::Invalid);
        let later = TrustDocument { epochs: Epochs { first: 2, last: 9 }, ..document.clone() };
        let refused = Head::verify(&bytes, &later);
        assert!(matches!(refused, Err(GenerationError::Epoch { .. })));
    }
}
