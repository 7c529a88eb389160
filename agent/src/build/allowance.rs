//! How much an origin may send for what was asked, so that an answer without end ends.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use syncd_shared::Totals;
use syncd_shared::wire::Frame;

use crate::build::StageError;

/// What a frame counts at least: one that brings nothing is not for nothing.
const FRAME_LEAST_BYTES: u64 = 4 * 1024;
/// Sent beyond what was asked, without being refused: frames go out whole where most of them is wanted.
const SLACK_BYTES: u64 = 16 * 1024 * 1024;
/// Canonical bytes of the longest entry: a name, a symlink's target, and what goes with them.
const ENTRY_MOST_BYTES: u64 = 4 * 1024 + 512;

/// Counts what came against what may come.
#[derive(Debug, Default)]
pub(super) struct Allowance {
    limit: u64,
    spent: u64,
}

impl Allowance {
    /// For the answers that bring these contents.
    pub fn of_contents(files: u64, bytes: u64) -> Self {
        Self::of(bytes.saturating_mul(2), files, 2 * FRAME_LEAST_BYTES)
    }

    /// For what was asked for on the same stream later, too.
    pub fn add(&mut self, other: Self) {
        self.limit = self.limit.saturating_add(other.limit);
    }

    /// For the answers that bring a manifest with these totals.
    pub fn of_manifest(totals: &Totals) -> Self {
        Self::of(0, totals.entries, ENTRY_MOST_BYTES + FRAME_LEAST_BYTES)
    }

    fn of(bytes: u64, count: u64, each: u64) -> Self {
        let limit = count.saturating_mul(each).saturating_add(bytes).saturating_add(SLACK_BYTES);
        Self { limit, spent: 0 }
    }

    /// [`Allowance::take`], and the frame back.
    pub fn taken(&mut self, frame: Frame) -> Result<Frame, StageError> {
        self.take(&frame)?;
        Ok(frame)
    }

    /// Counts a frame; an error once there were too many.
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
        let mut allowance = Allowance::of_contents(1, 100);
        let taken = (0..1_000_000).take_while(|_| allowance.take(&Frame::Directories(Vec::new())).is_ok());
        assert!((4096..5000).contains(&taken.count()));
    }

    #[test]
    fn totals_at_the_end_of_numbers_do_not_overflow() {
        let totals = Totals { entries: u64::MAX, files: u64::MAX, bytes: u64::MAX };
        assert!(Allowance::of_manifest(&totals).take(&Frame::Patches(Vec::new())).is_ok());
        assert!(Allowance::of_contents(u64::MAX, u64::MAX).take(&Frame::Patches(Vec::new())).is_ok());
    }
}
