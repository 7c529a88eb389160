//! A bandwidth limit: `--bwlimit RATE`.

use std::str::FromStr;
use std::time::Duration;

use tokio::time::Instant;

/// Bytes a second, at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(u64);

/// A string is no rate.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a rate is a number of bytes a second, with K, M or G for powers of 1024 (for example 10M)")]
pub struct ParseRateError;

impl Rate {
    /// The rate; `None` for 0.
    pub const fn new(bytes_per_second: u64) -> Option<Self> {
        if bytes_per_second == 0 { None } else { Some(Self(bytes_per_second)) }
    }

    /// Bytes a second.
    pub const fn bytes_per_second(self) -> u64 {
        self.0
    }
}

impl FromStr for Rate {
    type Err = ParseRateError;

    fn from_str(text: &str) -> Result<Self, ParseRateError> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let factor: u64 = match &text[digits.len()..] {
            "" | "B" => 1,
            "k" | "K" | "KiB" => 1 << 10,
            "m" | "M" | "MiB" => 1 << 20,
            "g" | "G" | "GiB" => 1 << 30,
            _ => return Err(ParseRateError),
        };
        let number: f64 = digits.parse().map_err(|_| ParseRateError)?;
        if !number.is_finite() || number < 0.0 {
            return Err(ParseRateError);
        }
        Rate::new((number * factor as f64) as u64).ok_or(ParseRateError)
    }
}

/// A token bucket: a quarter of a second may be taken at once, more has to be waited for.
#[derive(Debug)]
pub struct Bucket {
    rate: Rate,
    /// When everything that was taken so far is paid for.
    paid_at: Instant,
}

const BURST: Duration = Duration::from_millis(250);

impl Bucket {
    /// A full bucket.
    pub fn new(rate: Rate) -> Self {
        Self { rate, paid_at: Instant::now() }
    }

    /// Takes `bytes`, and waits until they were allowed. Cancel safe: what was taken stays taken.
    pub async fn take(&mut self, bytes: usize) {
        let pause = self.charge(bytes, Instant::now());
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }

    fn charge(&mut self, bytes: usize, now: Instant) -> Duration {
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let cost = Duration::from_secs_f64(bytes as f64 / self.rate.0 as f64);
        self.paid_at = self.paid_at.max(earliest) + cost;
        self.paid_at.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_binary_suffixes() {
        assert_eq!("10M".parse(), Ok(Rate(10 << 20)));
        assert_eq!("1.5K".parse(), Ok(Rate(1_536)));
        assert_eq!("800".parse(), Ok(Rate(800)));
        for bad in ["", "0", "M", "-1", "1T", "inf", "NaN", "1 M"] {
            assert_eq!(bad.parse::<Rate>(), Err(ParseRateError), "{bad}");
        }
    }

    #[test]
    fn a_bucket_holds_the_average_after_its_burst() {
        let mut bucket = Bucket::new(Rate(1_000));
        let now = Instant::now();
        bucket.paid_at = now.checked_sub(BURST).expect("the machine is up for longer");
        assert_eq!(bucket.charge(250, now), Duration::ZERO);
        assert_eq!(bucket.charge(1_000, now), Duration::from_secs(1));
        assert_eq!(bucket.charge(0, now + Duration::from_secs(1)), Duration::ZERO);
    }
}
