//! State of a slot, and its encoding in the record.

use syncd_shared::generation::GenerationError;
use syncd_shared::tree::DecodeRootError;
use syncd_shared::{RootEntry, SignedGeneration};

/// State of the tree in a slot. [`super::slots`] has the transitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Slot {
    /// Being built or patched, or left so by a crash. Never trusted: only files whose hash is right are taken
    /// from it. No row.
    Building,
    /// Complete, verified and waiting to be activated. Nothing builds in it meanwhile. No row.
    Staged,
    /// Built part by part. It has content that is nowhere else, so background work leaves it alone.
    Partial,
    /// Complete at this root, but never linked.
    Spare(RootEntry),
    /// A spare whose row was durably removed: this process may change it at any time, and the next process
    /// does not trust it. No row.
    Reserved(RootEntry),
    /// The tree of a generation: live, or kept since it was live.
    Held(Box<SignedGeneration>),
    /// Was in the live tree's place before that was healed. Left alone for the grace period.
    Resting(FormerTree),
    /// Was live, and its grace period is over. It waits to be inspected.
    Retired(FormerTree),
    /// May have been served before the record was lost. Left alone for the grace period.
    Unknown(FormerTree),
    /// Was live as this generation, and somebody removed its directory. The slot's number stays reserved
    /// until no web server can be pointed at its path.
    Gone(u64),
}

/// A tree that was live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FormerTree {
    /// Number of its generation; 0: unknown.
    pub number: u64,
    /// Root of its manifest; an empty tree if the generation is unknown.
    pub root: RootEntry,
    /// Whether the record confirms the generation. Otherwise the record was lost, and the generation comes
    /// from the copy of the slot's signed record. The tree may then be that of an earlier or later
    /// generation.
    pub is_certain: bool,
}

impl FormerTree {
    /// Describes a tree whose record was lost, from the copy of its slot's signed record.
    pub fn presumed(generation: Option<&SignedGeneration>) -> Self {
        let root = generation.map_or_else(RootEntry::empty, |generation| generation.generation().root);
        let number = generation.map_or(0, |generation| generation.number().get());
        Self { number, root, is_certain: false }
    }
}

/// Reason why a row of the record cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    /// The row contains an invalid generation.
    #[error("read a generation")]
    Generation(#[from] GenerationError),
    /// The row contains an invalid root entry.
    #[error("read a root entry")]
    Root(#[from] DecodeRootError),
    /// The row is too short or has an unknown kind.
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
    /// Encodes the row for the record; `None`: slots in this state have no row.
    pub fn row(&self) -> Option<Vec<u8>> {
        let former = |tree: &FormerTree| [&tree.number.to_le_bytes()[..], &tree.root.encode()].concat();
        let (kind, value) = match self {
            Self::Building | Self::Staged | Self::Reserved(_) => return None,
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

    /// Decodes a row made by [`Self::row`].
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

    /// Root of a spare.
    pub fn spare(&self) -> Option<&RootEntry> {
        match self {
            Self::Spare(root) | Self::Reserved(root) => Some(root),
            _ => None,
        }
    }

    /// The held generation.
    pub fn held(&self) -> Option<&SignedGeneration> {
        match self {
            Self::Held(generation) => Some(generation),
            _ => None,
        }
    }
}

/// Encodes signature and canonical bytes, as in the record and in `state/signed`.
pub(crate) fn encode_generation(generation: &SignedGeneration) -> Vec<u8> {
    [generation.signature().as_slice(), generation.record()].concat()
}

/// Decodes the output of [`encode_generation`].
pub(crate) fn decode_generation(bytes: &[u8]) -> Result<SignedGeneration, GenerationError> {
    let (signature, record) = bytes.split_first_chunk::<64>().ok_or(GenerationError::Length)?;
    SignedGeneration::from_store(record, *signature)
}

#[cfg(test)]
mod tests {
    use super::*;
    use syncd_shared::format_pages::{check, example};

    #[test]
    fn rows_are_those_of_the_page() {
        let page = include_str!("../../../docs/formats/agent-record.md");
        let root = RootEntry::empty();
        let tree = FormerTree { number: 3, root, is_certain: true };
        let fields: [&[(usize, &str)]; 3] = [
            &[(1, "state"), (79, "root entry")],
            &[(1, "state"), (8, "number 3"), (79, "root entry")],
            &[(1, "state"), (8, "number 3")],
        ];
        let slots = [("spare", Slot::Spare(root)), ("retired", Slot::Retired(tree)), ("gone", Slot::Gone(3))];
        for ((name, slot), fields) in slots.into_iter().zip(fields) {
            check(page, name, &slot.row().unwrap(), fields);
            assert_eq!(Slot::decode(&example(page, name).unwrap()).unwrap(), slot);
        }
    }
}
