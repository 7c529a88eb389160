//! Clock for grace periods and pauses of a replica: the machine's, or one that tests and simulations advance.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use syncd_shared::directory::Timestamp;

/// Monotonic clock.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    given: Option<Arc<Mutex<Given>>>,
}

/// A clock that stands still.
#[derive(Debug)]
struct Given {
    now: Instant,
    wall: SystemTime,
}

impl Clock {
    /// Creates a clock that stands still until [`Self::set`]. Its clones share the time.
    #[cfg(any(test, feature = "testing"))]
    pub fn given(now: Instant) -> Self {
        Self { given: Some(Arc::new(Mutex::new(Given { now, wall: SystemTime::now() }))) }
    }

    /// Advances a clock made by [`Self::given`]. Has no effect on the machine's clock.
    #[cfg(any(test, feature = "testing"))]
    pub fn set(&self, now: Instant) {
        if let Some(given) = &self.given {
            let mut given = given.lock().unwrap_or_else(PoisonError::into_inner);
            let passed = now.saturating_duration_since(given.now);
            given.wall += passed;
            given.now = now;
        }
    }

    pub fn now(&self) -> Instant {
        match &self.given {
            Some(given) => given.lock().unwrap_or_else(PoisonError::into_inner).now,
            None => Instant::now(),
        }
    }

    /// Time of day.
    pub fn wall(&self) -> Timestamp {
        let wall = match &self.given {
            Some(given) => given.lock().unwrap_or_else(PoisonError::into_inner).wall,
            None => SystemTime::now(),
        };
        let since = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanoseconds: since.subsec_nanos(),
        }
    }

    /// Time elapsed since `then`; zero if `then` is in the future.
    pub fn since(&self, then: Instant) -> Duration {
        self.now().saturating_duration_since(then)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_given_clock_stands_still_until_it_is_set_for_all_its_clones() {
        let start = Instant::now();
        let (clock, hour) = (Clock::given(start), Duration::from_secs(3600));
        let clone = clock.clone();
        assert_eq!(clone.now(), start);
        let wall = clone.wall().seconds;
        clock.set(start + hour);
        assert_eq!(clone.since(start), hour);
        assert_eq!(clone.wall().seconds, wall + 3600);
        assert_eq!(clone.since(start + 2 * hour), Duration::ZERO);
    }

    #[test]
    fn the_machines_clock_goes_by_itself() {
        let clock = Clock::default();
        clock.set(Instant::now() + Duration::from_secs(3600));
        assert!(clock.since(Instant::now()) < Duration::from_secs(60));
    }
}
