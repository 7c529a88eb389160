//! Determines when the next job is due. Pure: the caller supplies the time.

use std::time::{Duration, Instant};

use super::Trigger;
use crate::test_faults;

/// Interval of complete stat walks, in case an event was lost unnoticed.
const RECONCILE: Duration = Duration::from_secs(3600);
/// Delay before files with ambiguous timestamps are read again.
const RACY: Duration = crate::scan::RACY_DELAY;
/// Delay before a failed attempt is repeated without an event.
const RETRY: Duration = Duration::from_secs(10);
/// Interval between garbage collections.
const COLLECT: Duration = Duration::from_secs(600);
/// Delay after which a garbage collection that gave way goes on.
const COLLECT_ON: Duration = Duration::from_secs(10);
/// Delay of the first garbage collection after a start.
const COLLECT_FIRST: Duration = Duration::from_secs(300);
/// Interval in settle mode at which files with several names are checked, because a write through another
/// name may cause no event.
const LINKED: Duration = Duration::from_secs(10);
/// Wake-up delay when nothing is due.
const NEVER: Duration = Duration::from_secs(24 * 3600);

/// Kind of the due job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// The tree has been quiet for long enough, or a failed attempt is to be repeated.
    Publish,
    /// Stat records must be updated.
    Scan,
    /// The whole tree must be walked.
    Reconcile,
    /// Garbage must be collected.
    Collect,
}

/// Timers of the committer.
#[derive(Debug)]
pub(super) struct Schedule {
    trigger: Trigger,
    first_hint: Option<Instant>,
    publish_at: Option<Instant>,
    /// Time at which a file that keeps changing will have been quiet for long enough.
    busy_at: Option<Instant>,
    scan_at: Option<Instant>,
    reconcile_at: Instant,
    collect_at: Instant,
    /// Nothing is published automatically before this.
    hold_until: Option<Instant>,
    /// Nothing is published automatically while a rollout runs.
    is_queued: bool,
    wake_at: Option<Instant>,
    now: Instant,
}

/// Work left by a successful job.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Leftover {
    /// Everything that was to be published has been handled.
    pub published: bool,
    /// There are unpublished changes that may be published.
    pub unpublished: bool,
    /// Files must be read again.
    pub racy: bool,
    /// Files have several names.
    pub linked: bool,
}

impl Schedule {
    pub(super) fn new(trigger: Trigger, now: Instant) -> Self {
        Self {
            trigger,
            first_hint: None,
            publish_at: None,
            busy_at: None,
            scan_at: None,
            reconcile_at: now + RECONCILE,
            collect_at: now + test_faults::collect_first(COLLECT_FIRST),
            hold_until: None,
            is_queued: false,
            wake_at: None,
            now,
        }
    }

    /// Whether changes are published without an operator.
    pub(super) fn publishes(&self) -> bool {
        matches!(self.trigger, Trigger::Settle { .. })
    }

    /// Postpones automatic publishing.
    pub(super) fn hold_back(&mut self, until: Instant) {
        self.hold_until = Some(until);
    }

    /// Ends [`Schedule::hold_back`].
    pub(super) fn release(&mut self) {
        self.hold_until = None;
    }

    /// Whether publishing is postponed.
    pub(super) fn is_held_back(&self) -> bool {
        self.hold_until.is_some()
    }

    /// Whether something is to be published.
    pub(super) fn is_pending(&self) -> bool {
        self.publish_at.is_some() || self.busy_at.is_some()
    }

    /// Has automatic publishing wait behind a rollout, or ends that.
    pub(super) fn queue(&mut self, is_queued: bool) {
        self.is_queued = is_queued;
    }

    /// Whether changes wait behind a rollout.
    pub(super) fn is_queued(&self) -> bool {
        self.is_queued && self.publish_at.or(self.busy_at).is_some()
    }

    /// Has [`Schedule::next`] return no later than `at`, once.
    pub(super) fn wake_at(&mut self, at: Instant) {
        self.wake_at = Some(at);
    }

    fn publish_due(&self) -> Option<Instant> {
        if self.is_queued {
            return None;
        }
        let at = self.publish_at.into_iter().chain(self.busy_at).min()?;
        Some(at.max(self.hold_until.unwrap_or(self.now)))
    }

    /// Time of the next call to [`Schedule::due`].
    pub(super) fn next(&self) -> Instant {
        [self.publish_due(), self.scan_at, Some(self.reconcile_at), Some(self.collect_at), self.wake_at]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(self.now + NEVER)
    }

    /// Takes the most urgent due job. Nothing is published before `open_until`, if a file is open until then.
    pub(super) fn due(&mut self, now: Instant, open_until: Option<Instant>) -> Option<Due> {
        let past = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        self.wake_at = self.wake_at.filter(|at| *at > now);
        if past(self.publish_due())
            && let Some(until) = open_until
        {
            self.first_hint.get_or_insert(now);
            (self.publish_at, self.busy_at) = (Some(until), None);
            None
        } else if past(self.publish_due()) {
            (self.publish_at, self.busy_at, self.first_hint, self.hold_until) = (None, None, None, None);
            Some(Due::Publish)
        } else if past(self.scan_at) {
            self.scan_at = None;
            Some(Due::Scan)
        } else if self.reconcile_at <= now {
            self.reconcile_at = now + RECONCILE;
            Some(Due::Reconcile)
        } else if self.collect_at <= now {
            self.collect_at = now + COLLECT;
            Some(Due::Collect)
        } else {
            None
        }
    }

    /// Records a change in the tree.
    pub(super) fn hinted(&mut self, now: Instant) {
        if let Trigger::Settle { quiet, .. } = self.trigger {
            self.first_hint.get_or_insert(now);
            self.publish_at = Some(now + quiet);
        }
    }

    /// Records changes of busy files only, which do not delay the others.
    pub(super) fn busy(&mut self, now: Instant) {
        if let Trigger::Settle { quiet, .. } = self.trigger {
            self.busy_at = Some(now + quiet);
        }
    }

    /// Records that polled subtrees are due. Not a sign of unrest.
    pub(super) fn polled(&mut self, now: Instant) {
        if let Trigger::Settle { quiet, .. } = self.trigger {
            self.publish_at.get_or_insert(now + quiet);
        }
    }

    /// Whether the tree has been changing for longer than `--settle-max`.
    pub(super) fn restless(&self, now: Instant) -> bool {
        match (self.trigger, self.first_hint) {
            (Trigger::Settle { max, .. }, Some(first)) => now.saturating_duration_since(first) > max,
            _ => false,
        }
    }

    /// Records the success of a job.
    pub(super) fn settled(&mut self, left: Leftover, now: Instant) {
        if left.published {
            (self.publish_at, self.busy_at, self.first_hint) = (None, None, None);
        }
        if let (true, Trigger::Settle { quiet, .. }) = (left.unpublished, self.trigger) {
            self.publish_at.get_or_insert(now + quiet);
        }
        if left.racy {
            self.scan_at.get_or_insert(now + RACY);
        }
        if left.linked && self.publishes() {
            self.scan_at.get_or_insert(now + LINKED);
        }
    }

    /// Records that a collection gave way.
    pub(super) fn owes_collection(&mut self, now: Instant) {
        self.collect_at = self.collect_at.min(now + COLLECT_ON);
    }

    /// Records the failure of a job, whose work remains pending.
    pub(super) fn failed(&mut self, now: Instant) {
        let slot = if self.publishes() { &mut self.publish_at } else { &mut self.scan_at };
        slot.get_or_insert(now + RETRY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTLE: Trigger = Trigger::Settle {
        quiet: Duration::from_millis(500),
        max: Duration::from_secs(30),
        busy_after: Duration::from_secs(300),
    };

    fn at(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn every_hint_puts_publishing_off_until_it_is_quiet() {
        let start = Instant::now();
        let mut schedule = Schedule::new(SETTLE, start);
        schedule.hinted(at(start, 0));
        schedule.hinted(at(start, 400));
        assert_eq!(schedule.due(at(start, 600), None), None);
        assert_eq!(schedule.next(), at(start, 900));
        assert_eq!(schedule.due(at(start, 900), None), Some(Due::Publish));
        assert_eq!(schedule.due(at(start, 901), None), None);
    }

    #[test]
    fn unrest_is_told_after_settle_max_and_never_published() {
        let start = Instant::now();
        let mut schedule = Schedule::new(SETTLE, start);
        for ms in (0..40_000).step_by(400) {
            schedule.hinted(at(start, ms));
            assert_eq!(schedule.due(at(start, ms + 399), None), None);
        }
        assert!(schedule.restless(at(start, 40_000)));
    }

    #[test]
    fn manual_publishes_nothing_by_itself() {
        let start = Instant::now();
        let mut schedule = Schedule::new(Trigger::Manual, start);
        schedule.hinted(start);
        schedule.settled(Leftover { published: false, unpublished: true, racy: true, linked: true }, start);
        assert_eq!(schedule.due(start + RACY, None), Some(Due::Scan));
        assert_eq!(schedule.due(at(start, 9_999), None), None);
        assert_eq!(schedule.due(start + RECONCILE, None), Some(Due::Reconcile));
        assert_eq!(schedule.due(start + RECONCILE, None), Some(Due::Collect));
        assert_eq!(schedule.due(start + RECONCILE, None), None);
    }

    #[test]
    fn a_collection_that_gave_way_goes_on_soon() {
        let start = Instant::now();
        let mut schedule = Schedule::new(SETTLE, start);
        schedule.owes_collection(start);
        assert_eq!(schedule.due(start, None), None);
        assert_eq!(schedule.due(start + COLLECT_ON, None), Some(Due::Collect));
        assert_eq!(schedule.due(start + 2 * COLLECT_ON, None), None);
    }

    #[test]
    fn an_open_file_puts_publishing_off_and_busy_ones_do_not() {
        let start = Instant::now();
        let mut schedule = Schedule::new(SETTLE, start);
        schedule.hinted(start);
        assert_eq!(schedule.due(at(start, 500), Some(at(start, 29_000))), None);
        schedule.hinted(at(start, 10_000));
        assert_eq!(schedule.due(at(start, 10_500), None), Some(Due::Publish));
        schedule.hinted(at(start, 20_000));
        for ms in (20_000..20_500).step_by(100) {
            schedule.busy(at(start, ms));
        }
        assert_eq!(schedule.due(at(start, 20_500), None), Some(Due::Publish));
        schedule.busy(at(start, 21_000));
        assert_eq!(schedule.due(at(start, 21_499), None), None);
        assert_eq!(schedule.due(at(start, 21_500), None), Some(Due::Publish), "it is quiet by now");
        assert!(!schedule.restless(at(start, 90_000)));
    }

    #[test]
    fn files_with_further_names_are_looked_at_again_in_settle_mode() {
        let start = Instant::now();
        for (trigger, due) in [(SETTLE, Some(Due::Scan)), (Trigger::Manual, None)] {
            let mut schedule = Schedule::new(trigger, start);
            schedule.settled(Leftover { linked: true, ..Leftover::default() }, start);
            assert_eq!(schedule.due(start + LINKED / 2, None), None);
            assert_eq!(schedule.due(start + LINKED, None), due);
        }
    }

    #[test]
    fn what_is_held_back_is_published_when_released_or_in_time() {
        let start = Instant::now();
        let mut schedule = Schedule::new(SETTLE, start);
        schedule.hold_back(at(start, 5_000));
        schedule.hinted(start);
        assert_eq!(schedule.due(at(start, 4_999), None), None);
        assert_eq!(schedule.next(), at(start, 5_000));
        assert_eq!(schedule.due(at(start, 5_000), None), Some(Due::Publish));
        schedule.hold_back(at(start, 20_000));
        schedule.hinted(at(start, 6_000));
        schedule.release();
        assert_eq!(schedule.due(at(start, 6_500), None), Some(Due::Publish));
    }

    #[test]
    fn polling_more_often_than_the_tree_settles_does_not_put_publishing_off() {
        let start = Instant::now();
        let mut schedule = Schedule::new(SETTLE, start);
        for ms in (0..500).step_by(100) {
            schedule.polled(at(start, ms));
        }
        assert_eq!(schedule.due(at(start, 500), None), Some(Due::Publish));
        assert!(!schedule.restless(at(start, 60_000)));
    }

    #[test]
    fn a_failed_attempt_is_repeated_later_and_not_at_once() {
        let start = Instant::now();
        for (trigger, due) in [(SETTLE, Due::Publish), (Trigger::Manual, Due::Scan)] {
            let mut schedule = Schedule::new(trigger, start);
            schedule.failed(start);
            assert_eq!(schedule.due(start + RETRY / 2, None), None);
            assert_eq!(schedule.due(start + RETRY, None), Some(due));
            assert_eq!(schedule.due(start + RETRY, None), None);
        }
    }

    #[test]
    fn an_operators_commit_ends_the_unrest() {
        let start = Instant::now();
        let mut schedule = Schedule::new(SETTLE, start);
        (0..40_000).step_by(400).for_each(|ms| schedule.hinted(at(start, ms)));
        schedule.settled(Leftover { published: true, ..Leftover::default() }, at(start, 40_000));
        assert!(!schedule.restless(at(start, 50_000)));
        assert_eq!(schedule.due(at(start, 50_000), None), None);
    }
}
