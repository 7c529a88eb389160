//! Clock for grace periods and pauses of a replica: the machine's, or one that tests and simulations advance.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Monotonic clock.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    given: Option<Arc<Mutex<Instant>>>,
}

impl Clock {
    /// Creates a clock that stands still until [`Self::set`]. Its clones share the time.
    #[cfg(any(test, feature = "testing"))]
    pub fn given(now: Instant) -> Self {
        Self { given: Some(Arc::new(Mutex::new(now))) }
    }

    /// Advances a clock made by [`Self::given`]. Has no effect on the machine's clock.
    #[cfg(any(test, feature = "testing"))]
    pub fn set(&self, now: Instant) {
        if let Some(given) = &self.given {
            *given.lock().unwrap_or_else(PoisonError::into_inner) = now;
        }
    }

    pub fn now(&self) -> Instant {
        match &self.given {
            Some(given) => *given.lock().unwrap_or_else(PoisonError::into_inner),
            None => Instant::now(),
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
        clock.set(start + hour);
        assert_eq!(clone.since(start), hour);
        assert_eq!(clone.since(start + 2 * hour), Duration::ZERO);
    }

    #[test]
    fn the_machines_clock_goes_by_itself() {
        let clock = Clock::default();
        clock.set(Instant::now() + Duration::from_secs(3600));
        assert!(clock.since(Instant::now()) < Duration::from_secs(60));
    }
}
