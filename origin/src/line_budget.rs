//! Limits log lines that strangers can cause: a number per minute is written, further ones are counted.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Maximum number of lines of one kind within [`PERIOD`].
const LINES_MAX: u32 = 20;
const PERIOD: Duration = Duration::from_secs(60);

/// Budget of one kind of line.
pub struct LineBudget(Mutex<State>);

struct State {
    since: Option<Instant>,
    written: u32,
    left_out: u64,
}

impl LineBudget {
    /// A full budget.
    pub const fn new() -> Self {
        Self(Mutex::new(State { since: None, written: 0, left_out: 0 }))
    }

    /// Whether a line may be written now. `Some` has the number of lines omitted since the last one.
    pub fn admit(&self) -> Option<u64> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.since.is_none_or(|since| now.saturating_duration_since(since) >= PERIOD) {
            (state.since, state.written) = (Some(now), 0);
        }
        if state.written >= LINES_MAX {
            state.left_out = state.left_out.saturating_add(1);
            return None;
        }
        state.written = state.written.saturating_add(1);
        Some(std::mem::take(&mut state.left_out))
    }
}

impl Default for LineBudget {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_the_next_period_says_how_much_was_left_out() {
        let (budget, now) = (LineBudget::new(), Instant::now());
        let written = (0..1000).filter_map(|_| budget.admit_at(now)).collect::<Vec<_>>();
        assert_eq!(written, vec![0; LINES_MAX as usize]);
        assert_eq!(budget.admit_at(now + PERIOD), Some(1000 - u64::from(LINES_MAX)));
        assert_eq!(budget.admit_at(now + PERIOD), Some(0));
    }
}
