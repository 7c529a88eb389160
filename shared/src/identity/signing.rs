//! The key that signs generations, and its replacement: each new key is signed by its predecessor.
//!
//! A secret key is stored as 64 hexadecimal digits (the ed25519 seed). The signature of a succession covers a
//! domain tag, the tree_id and the new key.

use crate::ed25519::{Signature, SigningKey, VerifyingKey};

use crate::generation::TreeId;

const DOMAIN: &[u8] = b"syncd 2026 signing key succession v1\0";
/// Longest chain of successions: more than one a month for five years.
pub const SUCCESSIONS_MAX: usize = 64;

/// A new signing key, signed by its predecessor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySuccession {
    /// The key that signs generations from here on.
    pub new_key: VerifyingKey,
    /// Made with the old key.
    pub signature: Signature,
}

/// Errors of following a chain of successions.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SuccessionError {
    /// More than [`SUCCESSIONS_MAX`].
    #[error("{wanted} changes of the signing key, the limit is {SUCCESSIONS_MAX}")]
    Length { wanted: usize },
    /// A key is no canonical one of 32 bytes or has small order, or a signature is not 64 bytes.
    #[error("change {index} of the signing key is malformed")]
    Malformed {
        /// Position in the chain, from 0.
        index: usize,
    },
    /// A key is not signed by its predecessor.
    #[error("change {index} of the signing key is not signed by the key before it")]
    Signature {
        /// Position in the chain, from 0.
        index: usize,
    },
    /// The chain does not lead from the trusted key.
    #[error("the changes of the signing key do not lead from the key that this agent trusts: join again")]
    Unrelated,
}

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

impl KeySuccession {
    /// Signs `new_key` with `old` as its successor.
    pub fn sign(tree_id: TreeId, old: &SigningKey, new_key: VerifyingKey) -> Self {
        Self { new_key, signature: old.sign(&message(tree_id, &new_key)) }
    }

    /// Reads the fields of a message. `index` is the position in the chain, for errors.
    pub fn from_parts(new_key: &[u8], signature: &[u8], index: usize) -> Result<Self, SuccessionError> {
        let malformed = SuccessionError::Malformed { index };
        let bytes: &[u8; 32] = new_key.try_into().map_err(|_| malformed.clone())?;
        let new_key = VerifyingKey::from_bytes(bytes).map_err(|_| malformed.clone())?;
        let signature: &[u8; 64] = signature.try_into().map_err(|_| malformed)?;
        Ok(Self { new_key, signature: Signature::from_bytes(signature) })
    }

    fn holds(&self, tree_id: TreeId, old: &VerifyingKey) -> bool {
        old.verify(&message(tree_id, &self.new_key), &self.signature).is_ok()
    }
}

/// Returns the key to trust, following `chain` (oldest first) from `pinned`. The pinned key must have signed
/// the first succession or occur in the chain. An empty chain returns `pinned`.
pub fn verify_successions(
    tree_id: TreeId,
    pinned: VerifyingKey,
    chain: &[KeySuccession],
) -> Result<VerifyingKey, SuccessionError> {
    if chain.len() > SUCCESSIONS_MAX {
        return Err(SuccessionError::Length { wanted: chain.len() });
    }
    let Some(first) = chain.first() else { return Ok(pinned) };
    let start = match chain.iter().rposition(|s| s.new_key == pinned) {
        Some(index) => index + 1,
        None if first.holds(tree_id, &pinned) => 0,
        None => return Err(SuccessionError::Unrelated),
    };
    let mut key = pinned;
    for (index, succession) in chain.iter().enumerate().skip(start) {
        if !succession.holds(tree_id, &key) {
            return Err(SuccessionError::Signature { index });
        }
        key = succession.new_key;
    }
    Ok(key)
}

fn message(tree_id: TreeId, new_key: &VerifyingKey) -> Vec<u8> {
    [DOMAIN, tree_id.as_bytes(), new_key.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: TreeId = TreeId::from_bytes([1; 16]);

    fn keys() -> (Vec<SigningKey>, Vec<KeySuccession>) {
        let keys: Vec<_> = (0..4).map(|_| generate().unwrap()).collect();
        let chain = keys.windows(2).map(|w| KeySuccession::sign(TREE, &w[0], w[1].verifying_key())).collect();
        (keys, chain)
    }

    #[test]
    fn any_key_of_the_chain_leads_to_the_newest() {
        let (keys, chain) = keys();
        for key in &keys {
            let found = verify_successions(TREE, key.verifying_key(), &chain);
            assert_eq!(found, Ok(keys[3].verifying_key()));
        }
        assert_eq!(verify_successions(TREE, keys[0].verifying_key(), &[]), Ok(keys[0].verifying_key()));
    }

    #[test]
    fn a_strange_key_other_tree_or_broken_link_is_refused() {
        let (keys, mut chain) = keys();
        let pinned = keys[0].verifying_key();
        let stranger = generate().unwrap();
        assert_eq!(
            verify_successions(TREE, stranger.verifying_key(), &chain),
            Err(SuccessionError::Unrelated)
        );
        let other = TreeId::from_bytes([2; 16]);
        assert_eq!(verify_successions(other, pinned, &chain), Err(SuccessionError::Unrelated));
        chain[1] = KeySuccession::sign(TREE, &stranger, stranger.verifying_key());
        assert_eq!(verify_successions(TREE, pinned, &chain), Err(SuccessionError::Signature { index: 1 }));
        let long = vec![chain[0].clone(); SUCCESSIONS_MAX + 1];
        assert!(matches!(verify_successions(TREE, pinned, &long), Err(SuccessionError::Length { .. })));
    }

    #[test]
    fn parts_come_back_and_malformed_ones_are_refused() {
        let (_, chain) = keys();
        let (key, signature) = (*chain[0].new_key.as_bytes(), *chain[0].signature.as_bytes());
        assert_eq!(KeySuccession::from_parts(&key, &signature, 0), Ok(chain[0].clone()));
        let malformed = Err(SuccessionError::Malformed { index: 3 });
        assert_eq!(KeySuccession::from_parts(&key[1..], &signature, 3), malformed);
        assert_eq!(KeySuccession::from_parts(&key, &signature[1..], 3), malformed);
        let mut weak = [0; 32];
        weak[0] = 1;
        assert_eq!(KeySuccession::from_parts(&weak, &signature, 3), malformed);
    }
}
