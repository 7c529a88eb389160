//! Join tokens, carried by an operator from the origin to a new node.
//!
//! Text form, version 1: `syncd1-` and base64url without padding of 16 tree_id, 32 fingerprint of the root
//! key, `u32` number of the newest trust document (little endian), 16 secret, 4 checksum (the first bytes of
//! BLAKE3 of the prefix and all preceding fields). 103 characters.
//!
//! The document itself comes from the origin, and is checked before the secret is sent.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;

use crate::generation::TreeId;
use crate::hash::tagged;

use super::trust::{RootFingerprint, SignedTrust, TrustError};

const PREFIX: &str = "syncd1-";
const PAYLOAD_BYTES: usize = 16 + 32 + 4 + 16;
const CHECKSUM_BYTES: usize = 4;
const SECRET_DOMAIN: &str = "syncd 2026 join token secret v1";

/// Pins the origin and lets agents join. Until it is used up or expires, anybody who reads it can join
/// instead.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    pub tree_id: TreeId,
    /// Fingerprint of the root key, which must have signed the origin's trust document.
    pub root: RootFingerprint,
    /// Number of the trust document that was newest when the token was made. Older ones are refused.
    pub trust: u32,
    /// The origin stores only its [`secret_hash`].
    pub secret: [u8; 16],
}

/// Errors of parsing a join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseTokenError {
    /// The text is something else altogether.
    #[error("this is not a join token: `syncd-origin token` prints one, it begins with {PREFIX}")]
    NotAToken,
    /// A token of another version.
    #[error("this join token is of version {version}, expected 1: update syncd-agent")]
    Version {
        /// Version in the prefix.
        version: u32,
    },
    /// A mistyped or truncated token.
    #[error("this join token is damaged: copy it again, whole")]
    Damaged,
}

impl JoinToken {
    /// Checks the trust document of an origin before it gets the secret.
    pub fn check(&self, document: &[u8]) -> Result<SignedTrust, TrustError> {
        let signed = SignedTrust::verify(document, self.tree_id, self.root)?;
        let offered = signed.number();
        if offered < self.trust { Err(TrustError::Older { known: self.trust, offered }) } else { Ok(signed) }
    }

    /// Generates a token with a random secret.
    pub fn generate(tree_id: TreeId, root: RootFingerprint, trust: u32) -> Result<Self, getrandom::Error> {
        let mut secret = [0; 16];
        getrandom::fill(&mut secret)?;
        Ok(Self { tree_id, root, trust, secret })
    }

    /// [`secret_hash`] of this token's secret, which the origin stores and compares.
    pub fn secret_hash(&self) -> [u8; 32] {
        secret_hash(&self.secret)
    }
}

/// Hash of a secret, as the origin stores it. One plain hash suffices, because a secret has 128 random bits.
pub fn secret_hash(secret: &[u8]) -> [u8; 32] {
    tagged(SECRET_DOMAIN, secret)
}

fn checksum(payload: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(PREFIX.as_bytes()).update(payload);
    let mut sum = [0; CHECKSUM_BYTES];
    hasher.finalize_xof().fill(&mut sum);
    sum
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(PAYLOAD_BYTES + CHECKSUM_BYTES);
        bytes.extend_from_slice(self.tree_id.as_bytes());
        bytes.extend_from_slice(self.root.as_bytes());
        bytes.extend_from_slice(&self.trust.to_le_bytes());
        bytes.extend_from_slice(&self.secret);
        bytes.extend_from_slice(&checksum(&bytes));
        write!(f, "{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
    }
}

/// Omits the secret.
impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}, secret hidden)", self.tree_id)
    }
}

impl FromStr for JoinToken {
    type Err = ParseTokenError;

    /// Ignores whitespace around the token.
    fn from_str(text: &str) -> Result<Self, ParseTokenError> {
        let rest = text.trim().strip_prefix("syncd").ok_or(ParseTokenError::NotAToken)?;
        let (version, body) = rest.split_once('-').ok_or(ParseTokenError::NotAToken)?;
        let (version, written) = (version.parse::<u32>().map_err(|_| ParseTokenError::NotAToken)?, version);
        // Rejects `+1` and `01`, so that a token has only one text.
        if version.to_string() != written {
            return Err(ParseTokenError::NotAToken);
        }
        if version != 1 {
            return Err(ParseTokenError::Version { version });
        }
        let bytes = BASE64URL_NOPAD.decode(body.as_bytes()).map_err(|_| ParseTokenError::Damaged)?;
        let bytes: [u8; PAYLOAD_BYTES + CHECKSUM_BYTES] =
            bytes.try_into().map_err(|_| ParseTokenError::Damaged)?;
        let (payload, sum) = bytes.split_at(PAYLOAD_BYTES);
        if checksum(payload) != sum {
            return Err(ParseTokenError::Damaged);
        }
        let mut fields = payload;
        Ok(Self {
            tree_id: TreeId::from_bytes(take(&mut fields)?),
            root: RootFingerprint::from_bytes(take(&mut fields)?),
            trust: u32::from_le_bytes(take(&mut fields)?),
            secret: take(&mut fields)?,
        })
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], ParseTokenError> {
    let (field, rest) = bytes.split_first_chunk().ok_or(ParseTokenError::Damaged)?;
    *bytes = rest;
    Ok(*field)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken::generate(TreeId::from_bytes([1; 16]), RootFingerprint::from_bytes([2; 32]), 3).unwrap()
    }

    #[test]
    fn text_form_comes_back() {
        let token = token();
        let text = token.to_string();
        assert_eq!(text.parse(), Ok(token.clone()));
        assert_eq!(format!(" {text}\n").parse(), Ok(token.clone()));
        assert!(text.len() == 103 && text.is_ascii());
    }

    #[test]
    fn every_typo_is_seen() {
        let text = token().to_string();
        for at in PREFIX.len()..text.len() {
            let mut typo = text.clone().into_bytes();
            typo[at] = if typo[at] == b'A' { b'B' } else { b'A' };
            let typo = String::from_utf8(typo).unwrap();
            assert_eq!(typo.parse::<JoinToken>(), Err(ParseTokenError::Damaged), "at {at}");
            assert_eq!(text[..at].parse::<JoinToken>(), Err(ParseTokenError::Damaged), "cut at {at}");
        }
        assert_eq!(format!("{text}A").parse::<JoinToken>(), Err(ParseTokenError::Damaged));
    }

    #[test]
    fn other_strings_and_versions_are_told_apart() {
        for other in
            ["", "hello", "syncd", "syncdx-AAAA", "syncd+1-AAAA", "syncd01-AAAA", "https://example.com/"]
        {
            assert_eq!(other.parse::<JoinToken>(), Err(ParseTokenError::NotAToken), "{other}");
        }
        assert_eq!("syncd2-AAAA".parse::<JoinToken>(), Err(ParseTokenError::Version { version: 2 }));
    }

    #[test]
    fn debug_hides_the_secret() {
        let token = token();
        let shown = format!("{token:?}");
        assert!(!shown.contains(&data_encoding::HEXLOWER.encode(&token.secret)));
        assert!(!shown.contains(&token.to_string()));
    }
}
