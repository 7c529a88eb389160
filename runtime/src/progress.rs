//! Progress of long work, for people: files, bytes, rate and time left.
//!
//! Shown as a bar on standard error if it is a terminal. Otherwise logged, at most every ten seconds and once
//! at the end. Counting is atomic and cheap, from any thread. [`crate::telemetry`] writes its lines above the
//! bars.

use std::fmt::{self, Write};
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanDuration, MultiProgress, ProgressBar, ProgressState, ProgressStyle};

use syncd_shared::text::{counted, counted_of};

const LOG_EVERY: Duration = Duration::from_secs(10);
/// Rate and time left are not shown before this.
const PACE_AFTER: Duration = Duration::from_secs(1);
const UNKNOWN: u64 = u64::MAX;

/// All bars of this process. Log lines are written above them.
pub(crate) fn bars() -> &'static MultiProgress {
    static BARS: OnceLock<MultiProgress> = OnceLock::new();
    BARS.get_or_init(MultiProgress::new)
}

/// A handle on one piece of long work; clones count together. The work ends with [`Progress::finish`] or
/// [`Progress::interrupt`], or silently when the last clone is dropped.
#[derive(Clone)]
pub struct Progress {
    work: Arc<Work>,
}

struct Work {
    action: &'static str,
    counts: Arc<Counts>,
    bar: Option<ProgressBar>,
    finished: AtomicBool,
}

struct Counts {
    started: Instant,
    files: AtomicU64,
    bytes: AtomicU64,
    total_files: AtomicU64,
    total_bytes: AtomicU64,
    /// Milliseconds after `started` at which the next line is due.
    next_line_ms: AtomicU64,
}

/// Total amount of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Total {
    pub files: u64,
    pub bytes: u64,
}

/// Work done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    pub files: u64,
    pub bytes: u64,
    /// Total number of files, if known.
    pub total_files: Option<u64>,
    /// Total content bytes, if known.
    pub total_bytes: Option<u64>,
    /// Time since the work began.
    pub elapsed: Duration,
}

impl Progress {
    /// Begins work. `action`, such as "scan", begins every line. `total` may be unknown and set later.
    pub fn start(action: &'static str, total: Option<Total>) -> Self {
        let progress = Self::new(action, std::io::stderr().is_terminal());
        if let Some(Total { files, bytes }) = total {
            progress.set_total(files, bytes);
        }
        progress
    }

    /// Counts without showing anything, for work that is usually short, and for tests.
    pub fn hidden() -> Self {
        let progress = Self::new("", false);
        progress.work.counts.next_line_ms.store(UNKNOWN, Relaxed);
        progress
    }

    fn new(action: &'static str, bar: bool) -> Self {
        let counts = Arc::new(Counts {
            started: Instant::now(),
            files: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            total_files: AtomicU64::new(UNKNOWN),
            total_bytes: AtomicU64::new(UNKNOWN),
            next_line_ms: AtomicU64::new(millis(LOG_EVERY)),
        });
        let bar = bar.then(|| bars().add(ProgressBar::no_length().with_style(style(action, counts.clone()))));
        if let Some(bar) = &bar {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Self { work: Arc::new(Work { action, counts, bar, finished: AtomicBool::new(false) }) }
    }

    /// Sets the total amount of work. May be called again when it changes.
    pub fn set_total(&self, files: u64, bytes: u64) {
        self.work.counts.total_files.store(files, Relaxed);
        self.work.counts.total_bytes.store(bytes, Relaxed);
        if let Some(bar) = &self.work.bar {
            bar.set_length(bytes.max(1));
        }
    }

    /// Adds to the total amount of work as more is found.
    pub fn grow_total(&self, files: u64, bytes: u64) {
        let grow = |total: &AtomicU64, by: u64| {
            let known = total.load(Relaxed);
            let grown = if known == UNKNOWN { by } else { known.saturating_add(by) };
            total.store(grown, Relaxed);
            grown
        };
        grow(&self.work.counts.total_files, files);
        let bytes = grow(&self.work.counts.total_bytes, bytes);
        if let Some(bar) = &self.work.bar {
            bar.set_length(bytes.max(1));
        }
    }

    /// Adds to the completed files.
    pub fn add_files(&self, files: u64) {
        self.work.counts.files.fetch_add(files, Relaxed);
        self.log_if_due();
    }

    /// Adds to the completed content bytes.
    pub fn add_bytes(&self, bytes: u64) {
        self.work.counts.bytes.fetch_add(bytes, Relaxed);
        if let Some(bar) = &self.work.bar {
            bar.inc(bytes);
        }
        self.log_if_due();
    }

    pub fn snapshot(&self) -> Snapshot {
        self.work.counts.snapshot()
    }

    /// Ends the work: removes the bar and logs one line with the totals.
    pub fn finish(&self) {
        if self.end() {
            tracing::info!("{} done: {}", self.work.action, Done(self.snapshot()));
        }
    }

    /// Ends incomplete work: like [`Self::finish`], with another line.
    pub fn interrupt(&self) {
        if self.end() {
            tracing::info!("{} interrupted: {}", self.work.action, self.snapshot());
        }
    }

    /// Returns whether a line is to be logged.
    fn end(&self) -> bool {
        let is_first = !self.work.finished.swap(true, Relaxed);
        if is_first {
            self.work.clear();
        }
        is_first && self.work.counts.next_line_ms.load(Relaxed) != UNKNOWN
    }

    fn log_if_due(&self) {
        let (work, counts) = (&self.work, &self.work.counts);
        if work.bar.is_some() {
            return;
        }
        let (now, due) = (millis(counts.started.elapsed()), counts.next_line_ms.load(Relaxed));
        let next = now.saturating_add(millis(LOG_EVERY)).min(UNKNOWN - 1);
        if now >= due && counts.next_line_ms.compare_exchange(due, next, Relaxed, Relaxed).is_ok() {
            tracing::info!("{}: {}", work.action, self.snapshot());
        }
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Progress({}: {})", self.work.action, self.snapshot())
    }
}

impl Work {
    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
            bars().remove(bar);
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Counts {
    fn snapshot(&self) -> Snapshot {
        let known = |total: &AtomicU64| Some(total.load(Relaxed)).filter(|&total| total != UNKNOWN);
        Snapshot {
            files: self.files.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            total_files: known(&self.total_files),
            total_bytes: known(&self.total_bytes),
            elapsed: self.started.elapsed(),
        }
    }
}

impl Snapshot {
    /// Average bytes per second since the work began.
    pub fn rate(&self) -> u64 {
        (self.bytes as f64 / self.elapsed.as_secs_f64().max(0.001)) as u64
    }

    /// Time left at the average pace, measured in bytes, or in files if there are no bytes. `None` without a
    /// total.
    pub fn time_left(&self) -> Option<Duration> {
        let by = |done: u64, total: Option<u64>| {
            let left = total?.saturating_sub(done);
            let seconds = left as f64 * self.elapsed.as_secs_f64() / done as f64;
            Duration::try_from_secs_f64(seconds).ok()
        };
        match self.total_bytes {
            Some(1..) => by(self.bytes, self.total_bytes),
            _ => by(self.files, self.total_files),
        }
    }
}

/// `120 of 34,851 files, 1.50 MiB of 587.68 MiB, 3.00 MiB/s, 3 minutes left`, without the unknown parts.
impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = counted_of(self.files, self.total_files, "file", "files");
        write!(f, "{files}, {}", HumanBytes(self.bytes))?;
        if let Some(total) = self.total_bytes {
            write!(f, " of {}", HumanBytes(total))?;
        }
        if self.elapsed < PACE_AFTER {
            // A rate this early would be misleading.
            return Ok(());
        }
        write!(f, ", {}/s", HumanBytes(self.rate()))?;
        match self.time_left() {
            Some(left) => write!(f, ", {} left", HumanDuration(left)),
            None => Ok(()),
        }
    }
}

struct Done(Snapshot);

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Snapshot { files, bytes, elapsed, .. } = self.0;
        let elapsed = Duration::from_millis(millis(elapsed));
        let (bytes, rate) = (HumanBytes(bytes), HumanBytes(self.0.rate()));
        let files = counted(files, "file", "files");
        write!(f, "{files}, {bytes} in {}, {rate}/s", humantime::format_duration(elapsed))
    }
}

fn style(action: &'static str, counts: Arc<Counts>) -> ProgressStyle {
    let show = move |_: &ProgressState, out: &mut dyn Write| {
        // A bar that cannot be drawn does no harm.
        let _ = write!(out, "{}", counts.snapshot());
    };
    ProgressStyle::with_template("{spinner} {action} [{bar:24}] {counts}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
        .with_key("action", move |_: &ProgressState, out: &mut dyn Write| {
            let _ = out.write_str(action);
        })
        .with_key("counts", show)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(UNKNOWN - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_count_together() {
        for progress in [Progress::hidden(), Progress::new("testing", true)] {
            progress.set_total(4_000, 40_000);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    let progress = progress.clone();
                    scope.spawn(move || {
                        for _ in 0..1_000 {
                            progress.add_files(1);
                            progress.add_bytes(10);
                        }
                    });
                }
            });
            let done = progress.snapshot();
            assert_eq!((done.files, done.bytes), (4_000, 40_000));
            assert_eq!((done.total_files, done.total_bytes), (Some(4_000), Some(40_000)));
            progress.finish();
            progress.finish();
        }
    }

    #[test]
    fn a_snapshot_reads_at_a_glance() {
        let mut snapshot = Snapshot {
            files: 120,
            bytes: 3 << 20,
            total_files: Some(34_851),
            total_bytes: Some(183 << 20),
            elapsed: Duration::from_secs(1),
        };
        let expected = "120 of 34,851 files, 3.00 MiB of 183.00 MiB, 3.00 MiB/s, 60 seconds left";
        assert_eq!(snapshot.to_string(), expected);
        (snapshot.total_files, snapshot.total_bytes) = (None, None);
        assert_eq!(snapshot.to_string(), "120 files, 3.00 MiB, 3.00 MiB/s");
        let early = Snapshot { elapsed: Duration::from_millis(1), ..snapshot };
        assert_eq!(early.to_string(), "120 files, 3.00 MiB");
        assert_eq!(Done(snapshot).to_string(), "120 files, 3.00 MiB in 1s, 3.00 MiB/s");
        let one = Snapshot { files: 1, ..snapshot };
        assert_eq!(Done(one).to_string(), "1 file, 3.00 MiB in 1s, 3.00 MiB/s");
    }

    #[test]
    fn time_left_needs_a_pace_and_a_total() {
        let snapshot = |files, bytes, total_files, total_bytes| {
            let elapsed = Duration::from_secs(10);
            Snapshot { files, bytes, total_files, total_bytes, elapsed }.time_left()
        };
        assert_eq!(snapshot(0, 0, Some(5), Some(5)), None);
        assert_eq!(snapshot(5, 0, None, None), None);
        assert_eq!(snapshot(5, 0, Some(10), Some(0)), Some(Duration::from_secs(10)));
        assert_eq!(snapshot(1, 25, Some(10), Some(100)), Some(Duration::from_secs(30)));
    }
}
