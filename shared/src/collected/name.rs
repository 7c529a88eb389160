//! Names of collected directories.

use std::fmt;
use std::str::FromStr;

/// Longest name, in bytes.
pub const NAME_MAX_BYTES: usize = 32;

/// The name of a collected directory: 1 to 32 lower-case letters, digits, `-` and `_`, the first one a letter
/// or digit. It is safe as a file name and as a label of a metric.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CollectedName(Box<str>);

/// The text is not a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "names of collected directories have 1 to {NAME_MAX_BYTES} lower-case letters, digits, - and _, and begin \
     with a letter or digit"
)]
pub struct CollectedNameError;

impl CollectedName {
    pub fn new(name: &[u8]) -> Result<Self, CollectedNameError> {
        let is_first = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let is_other = |byte: &u8| is_first(byte) || matches!(byte, b'-' | b'_');
        let is_valid = name.len() <= NAME_MAX_BYTES && name.first().is_some_and(is_first);
        let text = std::str::from_utf8(name).ok().filter(|_| is_valid && name.iter().all(is_other));
        text.map(|text| Self(text.into())).ok_or(CollectedNameError)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl FromStr for CollectedName {
    type Err = CollectedNameError;

    fn from_str(text: &str) -> Result<Self, CollectedNameError> {
        Self::new(text.as_bytes())
    }
}

impl fmt::Display for CollectedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_safe_as_a_file_name() {
        let longest = "a".repeat(NAME_MAX_BYTES);
        for good in ["uploads", "a", "0", "wp-content_2", &longest] {
            assert_eq!(good.parse::<CollectedName>().expect(good).as_str(), good);
        }
        let long = "a".repeat(NAME_MAX_BYTES + 1);
        for bad in ["", ".", "..", "-a", "_a", "A", "a/b", "a.b", "a\0", "ä", &long] {
            assert!(bad.parse::<CollectedName>().is_err(), "{bad:?}");
        }
    }
}
