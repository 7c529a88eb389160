//! Durations on command lines and in configuration: always with a unit, as `90s`, `15m` or `30d`.

use std::time::Duration;

/// A text is no time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a time is a whole number with its unit, as in 500ms, 90s, 15m, 2h or 30d")]
pub struct ParseTimeError;

/// A number with its unit, or several of them: `500ms`, `1h 30m`.
pub fn parse_time(text: &str) -> Result<Duration, ParseTimeError> {
    humantime::parse_duration(text).map_err(|_| ParseTimeError)
}

/// Like [`parse_time`]; `0` needs no unit.
pub fn time_or_zero(text: &str) -> Result<Duration, ParseTimeError> {
    if text == "0" { Ok(Duration::ZERO) } else { parse_time(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit_and_what_is_none_is_told_by_example() {
        assert_eq!(parse_time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_time("1h 30m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(parse_time("90d"), Ok(Duration::from_secs(90 * 86_400)));
        assert_eq!((time_or_zero("0"), time_or_zero("7")), (Ok(Duration::ZERO), Err(ParseTimeError)));
        for bad in ["bogus", "30", "", "-1s", "1.5.s"] {
            assert!(parse_time(bad).unwrap_err().to_string().contains("as in 500ms"), "{bad}");
        }
    }
}
