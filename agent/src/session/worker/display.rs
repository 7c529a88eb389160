//! The progress bar of an errand, on terminals only.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use syncd_runtime::progress;
use syncd_shared::Progress;

/// Shows progress to people, for work that takes longer than a moment.
pub(crate) struct Display {
    pub(super) action: &'static str,
    pub(super) started: Instant,
    pub(super) shown: Mutex<Option<progress::Progress>>,
}

impl Display {
    const PATIENCE: Duration = Duration::from_secs(2);

    pub(crate) fn new(action: &'static str) -> Self {
        Self { action, started: Instant::now(), shown: Mutex::new(None) }
    }

    pub(crate) fn show(&self, now: Progress) {
        if self.started.elapsed() < Self::PATIENCE {
            return;
        }
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = shown.get_or_insert_with(|| progress::Progress::start(self.action, None));
        let before = shown.snapshot();
        if now.files_total > 0 && before.total_bytes != Some(now.bytes_total) {
            shown.set_total(now.files_total, now.bytes_total);
        }
        shown.add_files(now.files_done.saturating_sub(before.files));
        shown.add_bytes(now.bytes_done.saturating_sub(before.bytes));
    }
}

impl Display {
    /// Marks the work as complete. Dropping the display without this call shows it as interrupted.
    pub(crate) fn finish(&self) {
        if let Some(shown) = self.shown.lock().unwrap_or_else(PoisonError::into_inner).take() {
            shown.finish();
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Some(shown) = self.shown.lock().unwrap_or_else(PoisonError::into_inner).take() {
            shown.interrupt();
        }
    }
}
