//! State of a replica: its slots and their record, behind one owner.
//!
//! [`slots`] changes states. [`trees`] is the read-only view used for building. This module imports nothing
//! from the layers above.

pub(crate) mod cursor;
pub mod decisions;
pub mod disk;
pub(crate) mod hashing;
pub(crate) mod history;
pub mod layout;
pub(crate) mod lost_found;
pub mod record;
pub(crate) mod scan;
pub(crate) mod slot;
pub(crate) mod slots;
pub mod swap;
pub(crate) mod syncing;
pub(crate) mod trash;
pub(crate) mod trees;

use crate::state::disk::DiskError;
use crate::state::record::RecordError;

/// Reason why a slot did not change its state.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// A system call failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The record failed.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Parses a name that is a number in canonical form.
pub(crate) fn number(name: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(name).ok()?;
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}
