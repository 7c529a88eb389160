//! Hashes, with one type for each kind of named object.

use std::fmt;
use std::str::FromStr;

/// The string is not 64 hexadecimal digits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a hash has 64 hexadecimal digits")]
pub struct ParseHashError;

macro_rules! hash_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// Wraps the 32 bytes of such a hash.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = ParseHashError;

            fn try_from(bytes: &[u8]) -> Result<Self, ParseHashError> {
                bytes.try_into().map(Self).map_err(|_| ParseHashError)
            }
        }

        impl FromStr for $name {
            type Err = ParseHashError;

            fn from_str(text: &str) -> Result<Self, ParseHashError> {
                blake3::Hash::from_hex(text).map(|h| Self(*h.as_bytes())).map_err(|_| ParseHashError)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
            }
        }

        /// As text.
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:.12})", stringify!($name), blake3::Hash::from_bytes(self.0).to_hex().as_str())
            }
        }
    };
}

hash_type! {
    /// BLAKE3-256 of plain bytes: a whole file (as printed by `b3sum`) or one chunk. A file of one chunk has
    /// the same hash for both.
    ContentHash
}
hash_type! {
    /// Names a directory object: BLAKE3-256 of its canonical bytes under a domain tag.
    ObjectHash
}
hash_type! {
    /// Names a whole tree: BLAKE3-256 of its root entry's canonical bytes under a domain tag.
    RootHash
}

impl ContentHash {
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The hash of everything fed to `hasher`, which must come from `blake3::Hasher::new`.
    pub fn finish(hasher: &blake3::Hasher) -> Self {
        Self(*hasher.finalize().as_bytes())
    }
}

/// Hashes under a domain tag, so that bytes of one kind never pass for another.
pub(crate) fn tagged(domain: &str, bytes: &[u8]) -> [u8; 32] {
    blake3::derive_key(domain, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_hash_is_what_b3sum_prints() {
        let hash = ContentHash::of(b"hello\n");
        assert_eq!(hash.to_string(), blake3::hash(b"hello\n").to_hex().as_str());
        assert_eq!(hash.to_string().parse(), Ok(hash));
        assert_eq!("abc".parse::<ContentHash>(), Err(ParseHashError));
        assert_eq!(ContentHash::try_from(&[0u8; 31][..]), Err(ParseHashError));
    }
}
