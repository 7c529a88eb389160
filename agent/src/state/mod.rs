//! What a replica has: its slots and the record of them, behind one owner.
//!
//! [`slots`] changes states, [`trees`] is the view that building works with. Nothing above is imported.

pub(crate) mod cursor;
pub mod disk;
pub(crate) mod hashing;
pub(crate) mod history;
pub mod layout;
pub(crate) mod lost_found;
pub mod record;
pub(crate) mod scan;
pub(crate) mod slot;
pub(crate) mod slots;
pub(crate) mod syncing;
pub(crate) mod trash;
pub(crate) mod trees;

use crate::state::disk::DiskError;
use crate::state::record::RecordError;

/// Why a slot did not change its state.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// A system call failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The record failed.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// The number that a name is, in the one way that numbers are written.
pub(crate) fn number(name: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(name).ok()?;
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}
