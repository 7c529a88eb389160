//! Generations: numbered, signed states of a tree.
//!
//! Canonical bytes of a record, version 2 (integers little endian): `u8 version = 2`, 16 tree_id, `u32
//! epoch`, `u64 number`, `u32 trust document`, root entry ([`crate::tree`]), `u64 parent` (0: none), `i64
//! created` (Unix milliseconds), `u16 label length`, label (UTF-8). The ed25519 signature covers the domain
//! tag and all of it.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use std::fmt;
use std::str::FromStr;

use crate::ed25519::{Signature, SigningKey, VerifyingKey};

use crate::directory::{DecodeDirectoryError, Reader};
use crate::hash::RootHash;
use crate::limits::{EPOCHS_PER_KEY, GENERATION_RECORD_MAX_BYTES, LABEL_MAX_BYTES, NUMBERS_PER_KEY};
use crate::text::{is_unprintable, one_line};
use crate::tree::{DecodeRootError, ROOT_ENTRY_BYTES, RootEntry};

const VERSION: u8 = 2;
const DOMAIN: &[u8] = b"syncd 2026 generation record v2\0";
/// The epoch of a tree's first origin.
pub const FIRST_EPOCH: u32 = 1;

/// Names a content tree forever: 16 random bytes, made by `init`, shown as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TreeId([u8; 16]);

impl TreeId {
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The DNS name in the origin's certificate, whatever address the agent dials.
    pub fn origin_name(&self) -> String {
        format!("origin.{self}.syncd")
    }
}

impl fmt::Display for TreeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for TreeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TreeId({self})")
    }
}

/// The string is not 32 hexadecimal digits.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a tree_id has 32 hexadecimal digits")]
pub struct ParseTreeIdError;

impl FromStr for TreeId {
    type Err = ParseTreeIdError;

    fn from_str(text: &str) -> Result<Self, ParseTreeIdError> {
        let bytes =
            data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|_| ParseTreeIdError)?;
        bytes.try_into().map(Self).map_err(|_| ParseTreeIdError)
    }
}

/// Numbers of generations start at 1 and only increase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GenerationNumber(u64);

impl GenerationNumber {
    /// The first generation of a tree.
    pub const FIRST: Self = Self(1);

    /// `None` for 0.
    pub const fn new(number: u64) -> Option<Self> {
        if number == 0 { None } else { Some(Self(number)) }
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    /// `None` at `u64::MAX`.
    pub const fn next(self) -> Option<Self> {
        match self.0.checked_add(1) {
            Some(next) => Some(Self(next)),
            None => None,
        }
    }
}

impl fmt::Display for GenerationNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A range of epochs, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epochs {
    pub first: u32,
    pub last: u32,
}

impl Epochs {
    /// The epochs of a tree's first signing key.
    pub const FIRST: Self = Self { first: FIRST_EPOCH, last: EPOCHS_PER_KEY };

    pub fn contains(&self, epoch: u32) -> bool {
        (self.first..=self.last).contains(&epoch)
    }

    /// The epochs of the next signing key, past all of these. `None` if none are left.
    pub fn next(&self) -> Option<Self> {
        let first = self.last.checked_add(1)?;
        Some(Self { first, last: self.last.checked_add(EPOCHS_PER_KEY)? })
    }
}

impl fmt::Display for Epochs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.first, self.last)
    }
}

/// A range of generation numbers, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbers {
    pub first: GenerationNumber,
    pub last: GenerationNumber,
}

impl Numbers {
    /// The numbers of a tree's first signing key.
    pub const FIRST: Self = Self { first: GenerationNumber::FIRST, last: GenerationNumber(NUMBERS_PER_KEY) };

    pub fn contains(&self, number: GenerationNumber) -> bool {
        (self.first..=self.last).contains(&number)
    }

    /// The numbers of the next signing key, past all of these. `None` if none are left.
    pub fn next(&self) -> Option<Self> {
        let last = self.last.get().checked_add(NUMBERS_PER_KEY)?;
        Some(Self { first: self.last.next()?, last: GenerationNumber(last) })
    }
}

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.first, self.last)
    }
}

/// Errors of [`check_label`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// Longer than [`LABEL_MAX_BYTES`].
    #[error("label of {actual} bytes exceeds {LABEL_MAX_BYTES}")]
    Length {
        /// Bytes given.
        actual: usize,
    },
    /// The label would not stay on its line in a terminal or log.
    #[error("a label is one line of printable text, not \"{shown}\"")]
    Unprintable {
        /// The label, escaped.
        shown: String,
    },
}

/// Accepts labels of at most [`LABEL_MAX_BYTES`] without unprintable characters
/// ([`crate::text::is_unprintable`]).
pub fn check_label(label: &str) -> Result<(), LabelError> {
    if label.len() > LABEL_MAX_BYTES {
        return Err(LabelError::Length { actual: label.len() });
    }
    if label.contains(is_unprintable) {
        return Err(LabelError::Unprintable { shown: one_line(label, 100) });
    }
    Ok(())
}

/// One sealed state of the tree. Never changes, and its number is never reused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    pub tree_id: TreeId,
    /// The line of origins that wrote it, from 1. Another origin that takes over raises it.
    pub epoch: u32,
    pub number: GenerationNumber,
    /// Number of the origin's trust document at the time of sealing.
    pub trust: u32,
    pub root: RootEntry,
    /// The current generation at the time of sealing.
    pub parent: Option<GenerationNumber>,
    /// Time of sealing, in milliseconds since 1970, UTC.
    pub created_ms: i64,
    /// Set by the committer; may be empty.
    pub label: String,
}

/// Errors of decoding or accepting a generation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GenerationError {
    /// The record ends too early.
    #[error("generation record is truncated")]
    Truncated(#[from] DecodeDirectoryError),
    /// The root entry in the record is invalid.
    #[error("generation record has an invalid root entry")]
    Root(#[from] DecodeRootError),
    /// The record has another format version.
    #[error("generation record version {actual}, expected {VERSION}: update syncd on this side")]
    Version {
        /// Version found.
        actual: u8,
    },
    /// Longer than [`GENERATION_RECORD_MAX_BYTES`], or with bytes left over.
    #[error("generation record has an invalid length")]
    Length,
    /// Number 0, epoch 0, trust document 0, or a label that is too long or not UTF-8.
    #[error("generation record has an invalid number, epoch or label")]
    Invalid,
    /// Not signed by the trusted key.
    #[error("generation is not signed by the signing key of the newest trust document")]
    Signature,
    /// The trust document does not let its key sign generations of this epoch.
    #[error("generation is of epoch {actual}, the trust document allows {expected}")]
    Epoch {
        /// Epochs of the trust document.
        expected: Epochs,
        /// Epoch of the generation.
        actual: u32,
    },
    /// The trust document does not let its key sign a generation of this number.
    #[error("generation {actual} is not one that the trust document allows: {expected}")]
    Number {
        /// Numbers of the trust document.
        expected: Numbers,
        /// Number of the generation.
        actual: GenerationNumber,
    },
    /// The generation belongs to another content tree.
    #[error("generation is of tree {actual}, expected {expected}")]
    OtherTree {
        /// The tree that this agent follows.
        expected: TreeId,
        /// The tree of the generation.
        actual: TreeId,
    },
    /// Older than the accepted generation.
    #[error("generation {offered} is older than the accepted generation {accepted}")]
    Stale { offered: GenerationNumber, accepted: GenerationNumber },
    /// The generation belongs to a line of origins that another one has replaced.
    #[error("generation {offered} is of epoch {epoch}, older than the accepted epoch {accepted}")]
    StaleEpoch { offered: GenerationNumber, epoch: u32, accepted: u32 },
    /// A known number with another root.
    #[error(transparent)]
    Fork(#[from] Fork),
}

/// One number with two roots, both signed: the log of generations has two branches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, thiserror::Error)]
#[error(
    "generation {generation} has two roots, {} here and {} there: two origins write this tree, or one was restored \
     from an older copy",
    short(.known),
    short(.other)
)]
pub struct Fork {
    pub generation: u64,
    /// The root that this side knows.
    pub known: RootHash,
    /// The root that the other side has shown.
    pub other: RootHash,
}

/// The first digits.
fn short(root: &RootHash) -> String {
    root.to_string().chars().take(12).collect()
}

impl Generation {
    pub fn root_hash(&self) -> RootHash {
        self.root.hash()
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(192);
        out.push(VERSION);
        out.extend_from_slice(self.tree_id.as_bytes());
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&self.number.get().to_le_bytes());
        out.extend_from_slice(&self.trust.to_le_bytes());
        out.extend_from_slice(&self.root.encode());
        out.extend_from_slice(&self.parent.map_or(0, GenerationNumber::get).to_le_bytes());
        out.extend_from_slice(&self.created_ms.to_le_bytes());
        out.extend_from_slice(&(self.label.len() as u16).to_le_bytes());
        out.extend_from_slice(self.label.as_bytes());
        out
    }

    /// Reads canonical bytes. Verifies no signature.
    pub fn decode(bytes: &[u8]) -> Result<Self, GenerationError> {
        if bytes.len() > GENERATION_RECORD_MAX_BYTES {
            return Err(GenerationError::Length);
        }
        let mut reader = Reader::new(bytes);
        let [version] = reader.array()?;
        if version != VERSION {
            return Err(GenerationError::Version { actual: version });
        }
        let tree_id = TreeId(reader.array()?);
        let epoch = u32::from_le_bytes(reader.array()?);
        let number = u64::from_le_bytes(reader.array()?);
        let trust = u32::from_le_bytes(reader.array()?);
        let root = RootEntry::decode(reader.take(ROOT_ENTRY_BYTES)?)?;
        let parent = u64::from_le_bytes(reader.array()?);
        let created_ms = i64::from_le_bytes(reader.array()?);
        let label_bytes = usize::from(u16::from_le_bytes(reader.array()?));
        let label = std::str::from_utf8(reader.take(label_bytes)?).map_err(|_| GenerationError::Invalid)?;
        if !reader.is_empty() {
            return Err(GenerationError::Length);
        }
        if label.len() > LABEL_MAX_BYTES || parent >= number || epoch == 0 || trust == 0 {
            return Err(GenerationError::Invalid);
        }
        let number = GenerationNumber::new(number).ok_or(GenerationError::Invalid)?;
        let parent = GenerationNumber::new(parent);
        Ok(Self { tree_id, epoch, number, trust, root, parent, created_ms, label: label.to_owned() })
    }

    pub fn sign(self, key: &SigningKey) -> SignedGeneration {
        let record = self.encode();
        let signature = *key.sign(&message(&record)).as_bytes();
        SignedGeneration { generation: self, record, signature }
    }
}

fn message(record: &[u8]) -> Vec<u8> {
    [DOMAIN, record].concat()
}

/// A generation with the origin's signature, which was verified on construction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedGeneration {
    generation: Generation,
    record: Vec<u8>,
    signature: [u8; 64],
}

impl SignedGeneration {
    /// Takes a record from outside. Verifies the signature before it reads anything else.
    pub fn verify(
        record: &[u8],
        signature: &[u8],
        tree_id: TreeId,
        key: &VerifyingKey,
    ) -> Result<Self, GenerationError> {
        let signature: [u8; 64] = signature.try_into().map_err(|_| GenerationError::Signature)?;
        if record.len() > GENERATION_RECORD_MAX_BYTES {
            return Err(GenerationError::Length);
        }
        key.verify(&message(record), &Signature::from_bytes(&signature))
            .map_err(|_| GenerationError::Signature)?;
        let generation = Generation::decode(record)?;
        if generation.tree_id != tree_id {
            return Err(GenerationError::OtherTree { expected: tree_id, actual: generation.tree_id });
        }
        Ok(Self { generation, record: record.to_vec(), signature })
    }

    /// Reads a record from this node's own store, which holds only results of [`SignedGeneration::verify`]
    /// and [`Generation::sign`]. The signature is not verified again.
    pub fn from_store(record: &[u8], signature: [u8; 64]) -> Result<Self, GenerationError> {
        Ok(Self { generation: Generation::decode(record)?, record: record.to_vec(), signature })
    }

    pub fn generation(&self) -> &Generation {
        &self.generation
    }

    /// Canonical bytes of the record, as signed.
    pub fn record(&self) -> &[u8] {
        &self.record
    }

    pub fn signature(&self) -> &[u8; 64] {
        &self.signature
    }

    pub fn number(&self) -> GenerationNumber {
        self.generation.number
    }

    pub fn epoch(&self) -> u32 {
        self.generation.epoch
    }

    pub fn root_hash(&self) -> RootHash {
        self.generation.root_hash()
    }

    /// Refuses another root under a number that is known.
    pub fn agrees_with(&self, known: &SignedGeneration) -> Result<(), Fork> {
        let (known, other) = ((known.number(), known.root_hash()), self.root_hash());
        let is_fork = known.0 == self.number() && known.1 != other;
        if is_fork { Err(Fork { generation: known.0.get(), known: known.1, other }) } else { Ok(()) }
    }

    /// Whether an agent that accepted `accepted` may move to this generation. Requires an epoch that is not
    /// lower, and a higher number, or the same number with the same root. The trust document bounds how far
    /// both can rise.
    pub fn may_follow(&self, accepted: Option<&SignedGeneration>) -> Result<(), GenerationError> {
        let offered = self.number();
        match accepted {
            Some(a) if a.epoch() > self.epoch() => {
                Err(GenerationError::StaleEpoch { offered, epoch: self.epoch(), accepted: a.epoch() })
            }
            Some(a) if a.number() > offered => Err(GenerationError::Stale { offered, accepted: a.number() }),
            Some(a) => Ok(self.agrees_with(a)?),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(number: u64) -> Generation {
        Generation {
            tree_id: TreeId::from_bytes([7; 16]),
            epoch: 2,
            trust: 1,
            number: GenerationNumber::new(number).expect("not 0"),
            root: RootEntry::empty(),
            parent: None,
            created_ms: 1_790_000_000_000,
            label: "release".into(),
        }
    }

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[3; 32])
    }

    #[test]
    fn a_label_is_one_printable_line() {
        assert_eq!(check_label("release 7: Größe, 日本"), Ok(()));
        assert_eq!(check_label(""), Ok(()));
        for bad in ["a\nb", "a\u{1b}[2J", "a\u{202e}b", "\u{9b}"] {
            assert!(matches!(check_label(bad), Err(LabelError::Unprintable { .. })), "{bad:?}");
        }
        let long = check_label(&"x".repeat(LABEL_MAX_BYTES + 1));
        assert_eq!(long, Err(LabelError::Length { actual: LABEL_MAX_BYTES + 1 }));
    }

    #[test]
    fn any_flipped_bit_is_refused() {
        let signed = sample(3).sign(&key());
        let verify = |record: &[u8], signature: &[u8]| {
            SignedGeneration::verify(record, signature, TreeId::from_bytes([7; 16]), &key().verifying_key())
        };
        assert_eq!(verify(signed.record(), signed.signature()).as_ref(), Ok(&signed));
        for bit in 0..signed.record().len() * 8 {
            let mut record = signed.record().to_vec();
            record[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(verify(&record, signed.signature()), Err(GenerationError::Signature));
        }
        assert_eq!(verify(signed.record(), &[0; 63]), Err(GenerationError::Signature));
        let other = SignedGeneration::verify(
            signed.record(),
            signed.signature(),
            TreeId::from_bytes([8; 16]),
            &key().verifying_key(),
        );
        assert!(matches!(other, Err(GenerationError::OtherTree { .. })));
    }

    #[test]
    fn numbers_only_go_up() {
        let signed = |number| sample(number).sign(&key());
        let mut other = sample(5);
        other.root.metadata.mode = 0o700;
        let other = other.sign(&key());
        assert!(signed(5).may_follow(None).is_ok());
        assert!(signed(6).may_follow(Some(&signed(5))).is_ok());
        assert!(signed(5).may_follow(Some(&signed(5))).is_ok());
        assert!(matches!(other.may_follow(Some(&signed(5))), Err(GenerationError::Fork(_))));
        assert!(matches!(signed(4).may_follow(Some(&signed(5))), Err(GenerationError::Stale { .. })));
        let of_epoch = |epoch, number| Generation { epoch, ..sample(number) }.sign(&key());
        assert!(of_epoch(3, 6).may_follow(Some(&signed(5))).is_ok());
        let replaced = of_epoch(1, 6).may_follow(Some(&signed(5)));
        assert!(matches!(replaced, Err(GenerationError::StaleEpoch { .. })));
        // Numbers are never used twice, so a higher epoch does not lower them.
        assert!(matches!(of_epoch(3, 4).may_follow(Some(&signed(5))), Err(GenerationError::Stale { .. })));
    }
}
