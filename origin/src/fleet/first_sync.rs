//! Picks the reports of a first sync that are logged: the first, then one for each quarter and half minute.

use std::time::Duration;

use tokio::time::Instant;

use super::view::AgentProgress;

const EVERY: Duration = Duration::from_secs(30);
/// Percentage points between two lines.
const STEP: u8 = 25;

/// The lines logged for one connection.
#[derive(Debug, Default)]
pub(super) struct FirstSyncLog {
    /// Time and step of the last line.
    last: Option<(Instant, u8)>,
}

impl FirstSyncLog {
    /// Returns whether a report is logged. Steps never go back, so an agent cannot fill the log.
    pub(super) fn is_due(&mut self, progress: &AgentProgress, now: Instant) -> bool {
        let step = progress.done.percent().unwrap_or(0) / STEP;
        let is_due = self.last.is_none_or(|(at, before)| step > before || now.duration_since(at) >= EVERY);
        if is_due {
            let before = self.last.map_or(0, |(_, before)| before);
            self.last = Some((now, step.max(before)));
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use syncd_shared::Progress;

    use super::*;

    #[test]
    fn the_start_each_quarter_and_each_half_minute_are_logged() {
        let (start, mut log) = (Instant::now(), FirstSyncLog::default());
        let mut logged = |second: u64, bytes: u64| {
            let done = Progress { bytes_done: bytes, bytes_total: 100, ..Progress::default() };
            let progress = AgentProgress { done, ..AgentProgress::default() };
            log.is_due(&progress, start + Duration::from_secs(second))
        };
        let reports =
            [(0, 0), (1, 1), (2, 24), (3, 25), (4, 10), (5, 49), (6, 51), (35, 60), (36, 60), (66, 60)];
        let lines: Vec<u64> = reports.into_iter().filter(|(s, b)| logged(*s, *b)).map(|(s, _)| s).collect();
        assert_eq!(lines, [0, 3, 6, 36, 66]);
    }
}
