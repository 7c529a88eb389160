//! Progress of long work, as messages and the status of both sides have it.

use std::fmt;

use indicatif::HumanBytes;
use serde::{Deserialize, Serialize};

use crate::Totals;
use crate::text::counted_of;

/// Work done and work in total.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub files_done: u64,
    /// Total number of files; 0: unknown.
    pub files_total: u64,
    /// Content bytes done.
    pub bytes_done: u64,
    /// Total number of content bytes; 0: unknown.
    pub bytes_total: u64,
}

impl Progress {
    /// Whether content is still missing.
    pub fn is_fetching(&self) -> bool {
        self.bytes_done < self.bytes_total
    }

    /// Percentage of the bytes: 0 to 100, and 100 only at the end; `None`: the total is unknown.
    pub fn percent(&self) -> Option<u8> {
        let percent =
            u128::from(self.bytes_done).checked_mul(100)?.checked_div(u128::from(self.bytes_total))?;
        u8::try_from(percent.min(100)).ok()
    }

    /// Adds the progress of the next part of the same work.
    #[must_use]
    pub fn and(self, next: Self) -> Self {
        Self {
            files_done: self.files_done.saturating_add(next.files_done),
            files_total: self.files_total.saturating_add(next.files_total),
            bytes_done: self.bytes_done.saturating_add(next.bytes_done),
            bytes_total: self.bytes_total.saturating_add(next.bytes_total),
        }
    }

    /// Caps every figure at the totals of a tree.
    #[must_use]
    pub fn within(self, totals: &Totals) -> Self {
        Self {
            files_done: self.files_done.min(totals.files),
            files_total: self.files_total.min(totals.files),
            bytes_done: self.bytes_done.min(totals.bytes),
            bytes_total: self.bytes_total.min(totals.bytes),
        }
    }
}

/// Written as `652 of 2,594 files, 10.30 MiB of 53.10 MiB, 19 %`, without unknown parts.
impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { files_done, files_total, bytes_done, bytes_total } = *self;
        let files_total = Some(files_total).filter(|total| *total > 0);
        let files = counted_of(files_done, files_total, "file", "files");
        write!(f, "{files}, {}", HumanBytes(bytes_done))?;
        if bytes_total > 0 {
            write!(f, " of {}", HumanBytes(bytes_total))?;
        }
        match self.percent() {
            Some(percent) => write!(f, ", {percent} %"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_reads_without_its_unknown_parts() {
        let mut progress =
            Progress { files_done: 652, files_total: 2_594, bytes_done: 10 << 20, bytes_total: 53 << 20 };
        assert_eq!(progress.to_string(), "652 of 2,594 files, 10.00 MiB of 53.00 MiB, 18 %");
        (progress.files_total, progress.bytes_total) = (0, 0);
        assert_eq!(progress.to_string(), "652 files, 10.00 MiB");
    }

    #[test]
    fn a_percentage_is_100_only_at_the_end() {
        let percent =
            |bytes_done, bytes_total| Progress { bytes_done, bytes_total, ..Progress::default() }.percent();
        assert_eq!(percent(0, 0), None);
        assert_eq!((percent(999, 1_000), percent(1_000, 1_000)), (Some(99), Some(100)));
        assert_eq!((percent(u64::MAX, 3), percent(u64::MAX - 1, u64::MAX)), (Some(100), Some(99)));
    }

    #[test]
    fn no_figure_exceeds_the_totals_of_the_tree() {
        let totals = Totals { files: 5, bytes: 50, ..Totals::default() };
        let huge = Progress { files_done: 9, files_total: 9, bytes_done: 99, bytes_total: 99 };
        let capped = Progress { files_done: 5, files_total: 5, bytes_done: 50, bytes_total: 50 };
        assert_eq!(huge.within(&totals), capped);
    }
}
