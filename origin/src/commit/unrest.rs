//! Tracks which names keep changing, and since when. Pure: the caller supplies the time.
//!
//! A name is *active* from a hint until it has been quiet for `--settle`. A name that was written and not
//! closed is active until it is closed or has not been written for `--settle-max`. A file that has been
//! active for `--settle-max-publish` is *busy*: it no longer delays the others, and stays as published until
//! it is quiet. A deployment keeps writing different names, none of which becomes busy. It is therefore never
//! published halfway because it takes long.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use syncd_shared::TreePath;

use crate::source::{Changes, OpenFile};

/// Maximum number of names tracked. More active names at once do not indicate a busy file.
const FOLLOWED_MAX: usize = 4096;

/// Activity of names. See the module documentation.
#[derive(Debug)]
pub(super) struct Unrest {
    quiet: Duration,
    busy_after: Duration,
    names: BTreeMap<TreePath, Activity>,
}

#[derive(Debug, Clone, Copy)]
struct Activity {
    since: Instant,
    last: Instant,
    open: bool,
}

impl Unrest {
    pub(super) fn new(quiet: Duration, busy_after: Duration) -> Self {
        Self { quiet, busy_after, names: BTreeMap::new() }
    }

    /// Records changes, and the files that are open and were written within `--settle-max`. Returns whether
    /// anything but busy files changed.
    pub(super) fn note(&mut self, changes: Changes, open: &[OpenFile], now: Instant) -> bool {
        self.look(open, now);
        let mut others = changes.others;
        for name in changes.names {
            others |= !self.active(name, now);
        }
        others
    }

    /// Forgets names that have become quiet. `open` is the same as for [`Unrest::note`].
    pub(super) fn look(&mut self, open: &[OpenFile], now: Instant) {
        let quiet = self.quiet;
        self.names.iter_mut().for_each(|(path, activity)| {
            activity.open = open.iter().any(|file| file.path == *path);
        });
        self.names
            .retain(|_, activity| activity.open || now.saturating_duration_since(activity.last) < quiet);
        for file in open {
            if self.names.len() < FOLLOWED_MAX {
                let activity = Activity { since: file.since, last: file.written, open: true };
                self.names.entry(file.path.clone()).or_insert(activity);
            }
        }
    }

    /// Records a change of a name. Returns whether it is busy.
    fn active(&mut self, path: TreePath, now: Instant) -> bool {
        if self.names.len() >= FOLLOWED_MAX && !self.names.contains_key(&path) {
            return false;
        }
        let activity = self.names.entry(path).or_insert(Activity { since: now, last: now, open: false });
        activity.last = now;
        now.saturating_duration_since(activity.since) >= self.busy_after
    }

    /// Accounts for the time of a job, during which no events were received: it does not make names quiet.
    pub(super) fn resume(&mut self, took: Duration, now: Instant) {
        self.names.values_mut().for_each(|activity| activity.last = (activity.last + took).min(now));
    }

    /// Names active for so long that they do not delay the others.
    pub(super) fn busy(&self, now: Instant) -> Vec<TreePath> {
        let is_busy = |activity: &Activity| now.saturating_duration_since(activity.since) >= self.busy_after;
        self.names.iter().filter(|(_, activity)| is_busy(activity)).map(|(path, _)| path.clone()).collect()
    }

    /// Names that delay publishing, longest active first.
    pub(super) fn restless(&self) -> Vec<&TreePath> {
        let mut names: Vec<_> = self.names.iter().map(|(path, activity)| (activity.since, path)).collect();
        names.sort();
        names.into_iter().map(|(_, path)| path).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Duration = Duration::from_millis(500);
    const BUSY: Duration = Duration::from_secs(300);

    fn path(path: &str) -> TreePath {
        TreePath::from_bytes(path.as_bytes()).unwrap()
    }

    fn names(names: &[&str]) -> Changes {
        let names = names.iter().map(|name| path(&format!("logs/{name}"))).collect();
        Changes { names, ..Changes::default() }
    }

    fn at(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn a_file_that_keeps_changing_becomes_busy_and_holds_nothing_back_then() {
        let (start, mut unrest) = (Instant::now(), Unrest::new(QUIET, BUSY));
        for ms in (0..BUSY.as_millis() as u64).step_by(400) {
            assert!(unrest.note(names(&["debug.log"]), &[], at(start, ms)), "{ms}");
        }
        let now = start + BUSY;
        assert!(!unrest.note(names(&["debug.log"]), &[], now));
        assert_eq!(unrest.busy(now), [path("logs/debug.log")]);
        assert!(unrest.note(names(&["debug.log", "other"]), &[], now), "another one is no part of it");
        assert!(unrest.note(Changes { others: true, ..Changes::default() }, &[], now));
        // Quiet for once, it is a file as others are.
        unrest.look(&[], now + QUIET);
        assert!(unrest.busy(now + QUIET).is_empty());
        assert!(unrest.note(names(&["debug.log"]), &[], now + QUIET));
    }

    #[test]
    fn a_deployment_of_many_files_never_becomes_busy() {
        let (start, mut unrest) = (Instant::now(), Unrest::new(QUIET, BUSY));
        for n in 0..3_000u64 {
            assert!(unrest.note(names(&[&n.to_string()]), &[], at(start, n * 400)));
            assert!(unrest.busy(at(start, n * 400)).is_empty() && unrest.names.len() <= 2);
        }
    }

    #[test]
    fn an_open_file_is_active_between_its_writes() {
        let (start, mut unrest) = (Instant::now(), Unrest::new(QUIET, BUSY));
        let mut written = start;
        for seconds in (0..=300).step_by(10) {
            written = at(start, seconds * 1_000);
            unrest.note(
                names(&["open.log"]),
                &[OpenFile { path: path("logs/open.log"), since: start, written }],
                written,
            );
        }
        assert_eq!(unrest.restless(), [&path("logs/open.log")]);
        assert_eq!(unrest.busy(written), [path("logs/open.log")]);
        // The watch no longer names it.
        unrest.look(&[], written + QUIET);
        assert!(unrest.restless().is_empty());
    }

    #[test]
    fn a_job_that_takes_long_does_not_make_a_file_quiet() {
        let (start, mut unrest) = (Instant::now(), Unrest::new(QUIET, BUSY));
        unrest.note(names(&["log"]), &[], start);
        unrest.resume(BUSY, start + BUSY);
        unrest.note(names(&["log"]), &[], start + BUSY);
        assert_eq!(unrest.busy(start + BUSY), [path("logs/log")]);
    }

    #[test]
    fn short_jobs_do_not_keep_a_file_from_becoming_quiet() {
        let (start, mut unrest) = (Instant::now(), Unrest::new(QUIET, BUSY));
        unrest.note(names(&["page"]), &[], start);
        let took = Duration::from_millis(10);
        for ms in [200, 400] {
            unrest.resume(took, at(start, ms));
        }
        unrest.look(&[], at(start, 519));
        assert_eq!(unrest.restless(), [&path("logs/page")]);
        unrest.look(&[], at(start, 520));
        assert!(unrest.restless().is_empty());
        // A name that changed when the job ended was not active before it.
        unrest.note(names(&["page"]), &[], at(start, 600));
        unrest.resume(took, at(start, 600));
        unrest.look(&[], at(start, 1_100));
        assert!(unrest.restless().is_empty());
    }
}
