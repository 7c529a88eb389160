//! Bounds the bytes and frames that an origin may send in answer to a request.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use syncd_shared::Totals;
use syncd_shared::wire::Frame;

use crate::build::StageError;

/// Each frame counts as at least this many bytes, so that frames without content also use the budget up.
const FRAME_LEAST_BYTES: u64 = 4 * 1024;
/// Granted on top of every request: a frame is sent whole when most of it is wanted.
const SLACK_BYTES: u64 = 16 * 1024 * 1024;
/// Upper bound of the canonical bytes of one entry: name, symlink target, metadata.
const ENTRY_MOST_BYTES: u64 = 4 * 1024 + 512;

/// Compares what has arrived with what may arrive.
#[derive(Debug, Default)]
pub(super) struct ReceiveBudget {
    limit: u64,
    spent: u64,
}

impl ReceiveBudget {
    /// Allows answers that carry these contents. `bytes` is the sum of their lengths.
    pub fn of_contents(files: u64, bytes: u64) -> Self {
        Self::of(bytes.saturating_mul(2), files, 2 * FRAME_LEAST_BYTES)
    }

    /// Extends the budget by a later request on the same stream.
    pub fn add(&mut self, other: Self) {
        self.limit = self.limit.saturating_add(other.limit);
    }

    /// Allows answers that carry a manifest with these totals.
    pub fn of_manifest(totals: &Totals) -> Self {
        Self::of(0, totals.entries, ENTRY_MOST_BYTES + FRAME_LEAST_BYTES)
    }

    fn of(bytes: u64, count: u64, each: u64) -> Self {
        let limit = count.saturating_mul(each).saturating_add(bytes).saturating_add(SLACK_BYTES);
        Self { limit, spent: 0 }
    }

    /// Like [`ReceiveBudget::take`], but returns the frame.
    pub fn taken(&mut self, frame: Frame) -> Result<Frame, StageError> {
        self.take(&frame)?;
        Ok(frame)
    }

    /// Counts a frame. Fails with [`StageError::TooMuch`] once the limit is exceeded.
    pub fn take(&mut self, frame: &Frame) -> Result<(), StageError> {
        let bytes = match frame {
            Frame::Directories(objects) => objects.iter().map(Vec::len).sum(),
            Frame::Stored(frame) => frame.compressed.len(),
            Frame::Delta(frame) => frame.encoded.compressed.len(),
            Frame::Patches(patches) => patches.len(),
            Frame::Local { .. } | Frame::PartEnd | Frame::End { .. } => 0,
        };
        self.spent = self.spent.saturating_add(FRAME_LEAST_BYTES.max(bytes as u64));
        if self.spent > self.limit { Err(StageError::TooMuch { limit_bytes: self.limit }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_that_bring_nothing_end_sooner_or_later() {
        let mut budget = ReceiveBudget::of_contents(1, 100);
        let taken = (0..1_000_000).take_while(|_| budget.take(&Frame::Directories(Vec::new())).is_ok());
        assert!((4096..5000).contains(&taken.count()));
    }

    #[test]
    fn totals_at_the_end_of_numbers_do_not_overflow() {
        let totals = Totals { entries: u64::MAX, files: u64::MAX, bytes: u64::MAX };
        assert!(ReceiveBudget::of_manifest(&totals).take(&Frame::Patches(Vec::new())).is_ok());
        assert!(ReceiveBudget::of_contents(u64::MAX, u64::MAX).take(&Frame::Patches(Vec::new())).is_ok());
    }
}
