//! Transfer rates: `--bwlimit`, and the bucket that enforces it.

use std::str::FromStr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Bytes per second, at least 1,024.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(u64);

impl Rate {
    pub const fn bytes_per_second(self) -> u64 {
        self.0
    }
}

/// The string is not a rate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a rate is bytes a second: a whole number with K, M or G for the powers of 1,024, at least 1K (as in 512K or 10M)"
)]
pub struct ParseRateError;

impl FromStr for Rate {
    type Err = ParseRateError;

    fn from_str(text: &str) -> Result<Self, ParseRateError> {
        let (digits, shift) = match text.as_bytes().last() {
            Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
            Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
            Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
            _ => (text, 0),
        };
        let number: u64 = digits.parse().map_err(|_| ParseRateError)?;
        let bytes = number.checked_mul(1 << shift).ok_or(ParseRateError)?;
        if bytes < 1024 { Err(ParseRateError) } else { Ok(Self(bytes)) }
    }
}

/// Limits bytes to a [`Rate`], with bursts of at most 100 ms. Shared by all streams of a process.
#[derive(Debug)]
pub struct Bucket {
    rate: Rate,
    /// Time by which all bytes taken so far will have passed at the rate.
    paid: Mutex<Instant>,
}

impl Bucket {
    const BURST: Duration = Duration::from_millis(100);

    /// A full bucket.
    pub fn new(rate: Rate) -> Self {
        Self { rate, paid: Mutex::new(Instant::now()) }
    }

    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Takes `bytes` at `now`. Returns the time to wait before they may pass.
    pub fn take(&self, bytes: usize, now: Instant) -> Duration {
        let cost = Duration::from_secs_f64(bytes as f64 / self.rate.0 as f64);
        let mut paid = self.paid.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let start = (*paid).max(now.checked_sub(Self::BURST).unwrap_or(now));
        *paid = start + cost;
        paid.saturating_duration_since(now)
    }

    /// Waits until `bytes` may pass. Not cancel safe: taken bytes stay taken.
    pub async fn pass(&self, bytes: usize) {
        let wait = self.take(bytes, Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_units() {
        assert_eq!("10M".parse(), Ok(Rate(10 << 20)));
        assert_eq!("4096".parse(), Ok(Rate(4096)));
        for bad in ["", "M", "0", "-1", "1T", "1.5M", "99999999999G"] {
            assert_eq!(bad.parse::<Rate>(), Err(ParseRateError), "{bad}");
        }
    }

    #[test]
    fn the_bucket_keeps_to_its_rate() {
        let bucket = Bucket::new("1M".parse().expect("a rate"));
        let start = Instant::now();
        let waits: Duration = (0..10).map(|_| bucket.take(1 << 20, start)).max().unwrap_or_default();
        assert!((waits.as_secs_f64() - 9.9).abs() < 0.2, "{waits:?}");
    }
}
