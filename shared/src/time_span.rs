//! Times on command lines.

use std::time::Duration;

/// A text is no time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a time is a whole number with its unit, as in 500ms, 30s, 5m or 7days")]
pub struct ParseTimeError;

/// A number with its unit, or several of them: `500ms`, `1h 30m`.
pub fn parse_time(text: &str) -> Result<Duration, ParseTimeError> {
    humantime::parse_duration(text).map_err(|_| ParseTimeError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit_and_what_is_none_is_told_by_example() {
        assert_eq!(parse_time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_time("1h 30m"), Ok(Duration::from_secs(5_400)));
        for bad in ["bogus", "30", "", "-1s", "1.5.s"] {
            assert!(parse_time(bad).unwrap_err().to_string().contains("as in 500ms"), "{bad}");
        }
    }
}
