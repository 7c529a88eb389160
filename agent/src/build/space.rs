//! Checks whether a target fits before its first byte is written.

use syncd_shared::diff::{Change, Comparison, Released};
use syncd_shared::{Kind, RootEntry};

use crate::build::StageError;
use crate::state::disk::Space;
use crate::state::record::Record;

/// Fraction of the file system that stays free, at most [`RESERVE_MAX_BYTES`].
const RESERVE_SHARE: u64 = 64;
const RESERVE_MAX_BYTES: u64 = 64 * 1024 * 1024;

/// Space that staging will take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Demand {
    pub bytes: u64,
    pub inodes: u64,
}

impl Demand {
    /// Computes an upper bound for an update: each changed file counts as new, unless it is only renamed.
    /// On return, nothing of `released` is taken.
    pub fn of(
        comparison: &Comparison<&Record>,
        released: &mut Released<'_, &Record>,
        block_bytes: u64,
    ) -> Result<Self, StageError> {
        let mut demand = Self::default();
        for part in comparison.parts() {
            for change in part?.changes.iter() {
                let (Change::Added { entry, .. } | Change::Modified { to: entry, .. }) = change else {
                    continue;
                };
                match (&entry.kind, change) {
                    (Kind::File { content, size }, _) => match released.like(*content, &entry.metadata)? {
                        Some(file) => released.take(&file),
                        None => demand.add(*size, block_bytes),
                    },
                    (Kind::Symlink { .. } | Kind::Collected { .. }, _) => demand.add(0, block_bytes),
                    (Kind::Directory { .. }, Change::Added { .. }) => demand.add(1, block_bytes),
                    (Kind::Directory { .. }, _) => {}
                }
            }
        }
        released.give_back();
        Ok(demand)
    }

    /// Adds the directories of a farm of links.
    pub fn add_farm(&mut self, live: &RootEntry, block_bytes: u64) {
        let directories = live.totals.entries.saturating_sub(live.totals.files);
        self.inodes = self.inodes.saturating_add(directories);
        self.bytes = self.bytes.saturating_add(directories.saturating_mul(block_bytes));
    }

    /// Adds a file of `bytes` bytes.
    pub fn add(&mut self, bytes: u64, block_bytes: u64) {
        let blocks = bytes.div_ceil(block_bytes).saturating_mul(block_bytes);
        self.bytes = self.bytes.saturating_add(blocks);
        self.inodes = self.inodes.saturating_add(1);
    }

    /// Fails if the demand does not fit. `present` is the part that is already on disk.
    pub fn check(&self, space: &Space, present: Self) -> Result<(), StageError> {
        let reserve = (space.total_bytes / RESERVE_SHARE).min(RESERVE_MAX_BYTES);
        let wanted_bytes = self.bytes.saturating_sub(present.bytes);
        let available_bytes = space.free_bytes.saturating_sub(reserve);
        if wanted_bytes > available_bytes {
            return Err(StageError::NoSpace { wanted_bytes, available_bytes });
        }
        match space.free_inodes {
            Some(available) if self.inodes.saturating_sub(present.inodes) > available => {
                Err(StageError::NoInodes { wanted: self.inodes, available })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_both_figures() {
        let space =
            Space { total_bytes: 64_000, free_bytes: 10_000, block_bytes: 4096, free_inodes: Some(3) };
        let demand = |bytes, inodes| Demand { bytes, inodes };
        let nothing = Demand::default();
        assert!(demand(9_000, 3).check(&space, nothing).is_ok());
        let error = demand(9_001, 1).check(&space, nothing).unwrap_err();
        assert!(matches!(error, StageError::NoSpace { wanted_bytes: 9_001, available_bytes: 9_000 }));
        assert!(demand(12_000, 1).check(&space, demand(4_000, 0)).is_ok());
        let error = demand(1, 4).check(&space, nothing).unwrap_err();
        assert!(matches!(error, StageError::NoInodes { wanted: 4, available: 3 }));
    }
}
