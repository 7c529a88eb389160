//! Computes pauses between attempts: doubled each time, capped, jittered, reset on success.

use std::time::Duration;

/// Doubling pauses between two bounds.
#[derive(Debug, Clone)]
pub struct Backoff {
    shortest: Duration,
    longest: Duration,
    attempts: u32,
    /// State of the jitter's generator; `None`: the machine's randomness.
    given: Option<u64>,
}

impl Backoff {
    /// Sets the bounds, before jitter.
    pub const fn new(shortest: Duration, longest: Duration) -> Self {
        Self { shortest, longest, attempts: 0, given: None }
    }

    /// Takes jitter from this seed instead of the machine's randomness.
    #[cfg(any(test, feature = "testing"))]
    pub const fn seeded(self, seed: u64) -> Self {
        Self { given: Some(seed), ..self }
    }

    /// The next pause: half to all of the doubled pause, so that the agents of a fleet do not return at the
    /// same time.
    pub fn pause(&mut self) -> Duration {
        let whole = self.shortest.saturating_mul(1 << self.attempts.min(20)).min(self.longest);
        self.attempts = self.attempts.saturating_add(1);
        crate::test_faults::pause(whole.mul_f64(0.5 + self.fraction() / 2.0))
    }

    fn fraction(&mut self) -> f64 {
        let Some(state) = &mut self.given else { return random_fraction() };
        // Knuth's multiplier. The high bits are the random ones.
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 32) as f64 / (f64::from(u32::MAX) + 1.0)
    }

    /// Makes the next pause a short one again.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

/// A random number of at least 0 and less than 1. One half if there is no source of randomness.
pub fn random_fraction() -> f64 {
    getrandom::u32().map_or(0.5, |n| f64::from(n) / (f64::from(u32::MAX) + 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_cap_and_start_over() {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(15));
        for expected_ms in [200, 400, 800, 1_600, 3_200, 6_400, 12_800, 15_000, 15_000] {
            let pause = backoff.pause().as_millis();
            assert!((expected_ms / 2..=expected_ms).contains(&pause), "{pause} of {expected_ms}");
        }
        backoff.reset();
        assert!(backoff.pause() <= Duration::from_millis(200));
    }

    #[test]
    fn given_jitter_can_be_repeated() {
        let pauses = |seed| {
            let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(15)).seeded(seed);
            (0..8).map(|_| backoff.pause()).collect::<Vec<_>>()
        };
        assert_eq!(pauses(7), pauses(7));
        assert_ne!(pauses(7), pauses(8));
        assert!(pauses(7).iter().all(|pause| *pause >= Duration::from_millis(100)));
    }
}
