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
    /// May have been served before the record was lost. Left alone for the grace.
    Unknown(FormerTree),
    /// Was live as this generation, and somebody deleted the directory. Its number waits until no web server can be
    /// pointed at its path.
    Gone(u64),
}

/// A tree that was live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FormerTree {
    /// Generation that it was; 0: not known.
    pub number: u64,
    /// Its manifest; that of an empty tree where the generation is not known.
    pub root: RootEntry,
    /// The record said so. Otherwise it was lost, and the copy of the slot's signed record says so: the tree may also be
    /// of an earlier or a later generation.
    pub is_certain: bool,
}

impl FormerTree {
    /// A tree whose record was lost, by the copy of its slot's signed record.
    pub fn presumed(generation: Option<&SignedGeneration>) -> Self {
        let root = generation.map_or_else(RootEntry::empty, |generation| generation.generation().root);
        let number = generation.map_or(0, |generation| generation.number().get());
        Self { number, root, is_certain: false }
    }
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
const RETIRED_UNKNOWN: u8 = 7;
const GONE: u8 = 8;

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
            Self::Retired(tree) => (if tree.is_certain { RETIRED } else { RETIRED_UNKNOWN }, former(tree)),
            Self::Unknown(tree) => (UNKNOWN, former(tree)),
            Self::Gone(number) => (GONE, number.to_le_bytes().to_vec()),
        };
        Some([&[kind], value.as_slice()].concat())
    }

    /// Reads what [`Self::row`] wrote.
    pub fn decode(row: &[u8]) -> Result<Self, RowError> {
        let (kind, value) = row.split_first().ok_or(RowError::Form)?;
        let former = |is_certain| {
            let (number, root) = value.split_first_chunk::<8>().ok_or(RowError::Form)?;
            let number = u64::from_le_bytes(*number);
            Ok::<_, RowError>(FormerTree { number, root: RootEntry::decode(root)?, is_certain })
        };
        Ok(match *kind {
            PARTIAL => Self::Partial,
            SPARE => Self::Spare(RootEntry::decode(value)?),
            HELD => Self::Held(Box::new(decode_generation(value)?)),
            RESTING => Self::Resting(former(true)?),
            RETIRED => Self::Retired(former(true)?),
            RETIRED_UNKNOWN => Self::Retired(former(false)?),
            UNKNOWN => Self::Unknown(former(false)?),
            GONE => Self::Gone(u64::from_le_bytes(value.try_into().map_err(|_| RowError::Form)?)),
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
