//! The key that signs generations. Its secret half is stored as 64 hexadecimal digits (the ed25519 seed).

use crate::ed25519::{SigningKey, VerifyingKey};

/// Generates a random signing key.
pub fn generate() -> Result<SigningKey, getrandom::Error> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed)?;
    Ok(SigningKey::from_bytes(&seed))
}

/// BLAKE3-256 of the key's 32 bytes.
pub fn fingerprint(key: &VerifyingKey) -> [u8; 32] {
    *blake3::hash(key.as_bytes()).as_bytes()
}
