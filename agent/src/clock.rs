//! The clock that graces and pauses of a replica go by: the machine's, or one that somebody else moves.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Tells the time since some moment; never goes back.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    given: Option<Arc<Mutex<Instant>>>,
}

impl Clock {
    /// Stands still until [`Self::set`], for all its clones.
    pub fn given(now: Instant) -> Self {
        Self { given: Some(Arc::new(Mutex::new(now))) }
    }

    /// Moves a given clock on; the machine's goes by itself.
    pub fn set(&self, now: Instant) {
        if let Some(given) = &self.given {
            *given.lock().unwrap_or_else(PoisonError::into_inner) = now;
        }
    }

    /// The time.
    pub fn now(&self) -> Instant {
        match &self.given {
            Some(given) => *given.lock().unwrap_or_else(PoisonError::into_inner),
            None => Instant::now(),
        }
    }

    /// Time gone by since `then`.
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
