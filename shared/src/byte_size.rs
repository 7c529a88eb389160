//! Parses sizes given on a command line.

use std::str::FromStr;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteSize(u64);

impl ByteSize {
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

/// The string is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a size is a whole number of bytes, with K, M, G or T for the powers of 1,024 (as in 500M or 20G)")]
pub struct ParseByteSizeError;

impl FromStr for ByteSize {
    type Err = ParseByteSizeError;

    fn from_str(text: &str) -> Result<Self, ParseByteSizeError> {
        let shifts = [("K", 10), ("M", 20), ("G", 30), ("T", 40), ("k", 10), ("m", 20), ("g", 30), ("t", 40)];
        let (digits, shift) = shifts
            .iter()
            .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)))
            .unwrap_or((text, 0));
        // `parse` alone would accept a sign.
        let digits = Some(digits).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let number: u64 = digits.and_then(|digits| digits.parse().ok()).ok_or(ParseByteSizeError)?;
        number.checked_mul(1 << shift).map(Self).ok_or(ParseByteSizeError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_numbers_with_a_unit() {
        let bytes = |text: &str| text.parse::<ByteSize>().map(ByteSize::bytes);
        assert_eq!(bytes("0"), Ok(0));
        assert_eq!(bytes("500M"), Ok(500 << 20));
        assert_eq!(bytes("20g"), Ok(20 << 30));
        assert_eq!(bytes("1T"), Ok(1 << 40));
        for wrong in ["", "G", "-1", "+1K", "1.5G", "1 G", "1GB", "99999999T", "x"] {
            assert_eq!(bytes(wrong), Err(ParseByteSizeError), "{wrong}");
        }
    }
}
