//! The state of one slot, and how the record spells it.

use syncd_shared::generation::GenerationError;
use syncd_shared::tree::DecodeRootError;
use syncd_shared::{RootEntry, SignedGeneration};

/// What the tree of a slot is. [`super::slots`] has the transitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Slot {
    /// Being built or patched, or left so by a crash. Never trusted: files are taken from it by hash alone. No row.
    Building,
    /// Complete and verified, and waits to be activated: nobody builds in it meanwhile. No row.
    Staged,
    /// Built part by part: it has content that is nowhere else, and background work leaves it alone.
    Partial,
    /// Complete, at this root, never linked.
    Spare(RootEntry),
    /// A spare whose row is gone, durably: this process may change it at any time, and the next one won't trust it. No row.
    Drawn(RootEntry),
    /// The tree of a generation: live, or kept after it was.
    Held(Box<SignedGeneration>),
    /// Was in the live tree's place until that was healed. Left alone for the grace.
    Resting(FormerTree),
    /// Was live; its grace is over, and it waits to be inspected.
    Retired(FormerTree),
    /// May have been served before the record was lost: nothing is known about it. Left alone for the grace.
    Unknown,
}

/// A tree that was live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FormerTree {
    /// Generation that it was.
    pub number: u64,
    /// Its manifest.
    pub root: RootEntry,
}

/// Why a row of the record is no state.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    /// A generation in it is none.
    #[error("read a generation")]
    Generation(#[from] GenerationError),
    /// A root entry in it is none.
    #[error("read a root entry")]
    Root(#[from] DecodeRootError),
    /// It is too short, or of no kind that there is.
    #[error("no state has this form")]
    Form,
}

const PARTIAL: u8 = 1;
const SPARE: u8 = 2;
const HELD: u8 = 3;
const RESTING: u8 = 4;
const RETIRED: u8 = 5;
const UNKNOWN: u8 = 6;

impl Slot {
    /// The row of the record; `None`: a slot in this state has none.
    pub fn row(&self) -> Option<Vec<u8>> {
        let former = |tree: &FormerTree| [&tree.number.to_le_bytes()[..], &tree.root.encode()].concat();
        let (kind, value) = match self {
            Self::Building | Self::Staged | Self::Drawn(_) => return None,
            Self::Partial => (PARTIAL, Vec::new()),
            Self::Spare(root) => (SPARE, root.encode()),
            Self::Held(generation) => (HELD, encode_generation(generation)),
            Self::Resting(tree) => (RESTING, former(tree)),
            Self::Retired(tree) => (RETIRED, former(tree)),
            Self::Unknown => (UNKNOWN, Vec::new()),
        };
        Some([&[kind], value.as_slice()].concat())
    }

    /// Reads what [`Self::row`] wrote.
    pub fn decode(row: &[u8]) -> Result<Self, RowError> {
        let (kind, value) = row.split_first().ok_or(RowError::Form)?;
        let former = || {
            let (number, root) = value.split_first_chunk::<8>().ok_or(RowError::Form)?;
            let number = u64::from_le_bytes(*number);
            Ok::<_, RowError>(FormerTree { number, root: RootEntry::decode(root)? })
        };
        Ok(match *kind {
            PARTIAL => Self::Partial,
            SPARE => Self::Spare(RootEntry::decode(value)?),
            HELD => Self::Held(Box::new(decode_generation(value)?)),
            RESTING => Self::Resting(former()?),
            RETIRED => Self::Retired(former()?),
            UNKNOWN => Self::Unknown,
            _ => return Err(RowError::Form),
        })
    }

    /// The root that a spare is at.
    pub fn spare(&self) -> Option<&RootEntry> {
        match self {
            Self::Spare(root) | Self::Drawn(root) => Some(root),
            _ => None,
        }
    }

    /// The generation that is held.
    pub fn held(&self) -> Option<&SignedGeneration> {
        match self {
            Self::Held(generation) => Some(generation),
            _ => None,
        }
    }
}

/// Signature and canonical bytes, as the record and `state/signed` keep them.
pub(crate) fn encode_generation(generation: &SignedGeneration) -> Vec<u8> {
    [generation.signature().as_slice(), generation.record()].concat()
}

/// Reads what [`encode_generation`] wrote.
pub(crate) fn decode_generation(bytes: &[u8]) -> Result<SignedGeneration, GenerationError> {
    let (signature, record) = bytes.split_first_chunk::<64>().ok_or(GenerationError::Length)?;
    SignedGeneration::from_store(record, *signature)
}
