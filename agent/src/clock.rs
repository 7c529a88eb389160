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
