//! The file of a tree's root key, which signs trust documents and belongs on another machine.
//!
//! ```text
//! syncd root key 1
//! tree_id <32 hexadecimal digits>
//! public <64 hexadecimal digits>
//! key <64 hexadecimal digits>                           without a passphrase: the ed25519 seed
//! sealed <rounds> <32 digits of salt> <96 digits>       with one
//! ```
//!
//! A sealed key is the seed under ChaCha20-Poly1305. The key of that comes from the passphrase by
//! PBKDF2-HMAC-SHA256; it is new with each salt, so the nonce is 0. The lines before it are authenticated.

use std::num::NonZeroU32;

use data_encoding::HEXLOWER;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::pbkdf2;

use super::signing;
use super::trust::RootFingerprint;
use crate::ed25519::SigningKey;
use crate::generation::TreeId;

const HEAD: &str = "syncd root key 1";
/// Rounds of PBKDF2 for a new file, as OWASP recommends for HMAC-SHA256.
const ROUNDS: u32 = 600_000;
/// Most rounds that are read: about a minute.
const ROUNDS_MAX: u32 = 50_000_000;
/// Longest file, in bytes.
pub const ROOT_KEY_FILE_MAX_BYTES: usize = 4096;

/// The root key of a tree.
#[derive(Debug, Clone)]
pub struct RootKey {
    pub tree_id: TreeId,
    pub key: SigningKey,
}

/// Errors of reading or writing a root key.
#[derive(Debug, thiserror::Error)]
pub enum RootKeyError {
    #[error("this is not the file of a root key, or it is damaged")]
    Damaged,
    #[error("the root key has a passphrase: give it with --root-passphrase-file FILE")]
    PassphraseMissing,
    #[error("the passphrase does not open this root key")]
    PassphraseWrong,
    /// The kernel's random number generator failed.
    #[error("reading random numbers failed")]
    Random(#[from] getrandom::Error),
}

impl RootKey {
    /// Generates a random root key.
    pub fn generate(tree_id: TreeId) -> Result<Self, RootKeyError> {
        Ok(Self { tree_id, key: signing::generate()? })
    }

    pub fn fingerprint(&self) -> RootFingerprint {
        RootFingerprint::of(&self.key.verifying_key())
    }

    /// The file's text. With a passphrase, deriving its key takes about half a second.
    pub fn to_text(&self, passphrase: Option<&str>) -> Result<String, RootKeyError> {
        self.to_text_with(passphrase, ROUNDS)
    }

    fn to_text_with(&self, passphrase: Option<&str>, rounds: u32) -> Result<String, RootKeyError> {
        let head = self.head();
        let Some(passphrase) = passphrase else {
            return Ok(format!("{head}key {}\n", HEXLOWER.encode(self.key.as_bytes())));
        };
        let mut salt = [0; 16];
        getrandom::fill(&mut salt)?;
        let mut sealed = self.key.as_bytes().to_vec();
        let rounds = NonZeroU32::new(rounds).ok_or(RootKeyError::Damaged)?;
        cipher(passphrase, &salt, rounds)
            .seal_in_place_append_tag(nonce(), Aad::from(&head), &mut sealed)
            .map_err(|_| RootKeyError::Damaged)?;
        Ok(format!("{head}sealed {rounds} {} {}\n", HEXLOWER.encode(&salt), HEXLOWER.encode(&sealed)))
    }

    fn head(&self) -> String {
        let public = HEXLOWER.encode(self.key.verifying_key().as_bytes());
        format!("{HEAD}\ntree_id {}\npublic {public}\n", self.tree_id)
    }

    /// Whether reading this text needs a passphrase.
    pub fn is_sealed(text: &str) -> bool {
        text.lines().nth(3).is_some_and(|line| line.starts_with("sealed "))
    }

    /// Reads the text of a file. Blocks for about half a second if it is sealed.
    pub fn from_text(text: &str, passphrase: Option<&str>) -> Result<Self, RootKeyError> {
        let damaged = || RootKeyError::Damaged;
        if text.len() > ROOT_KEY_FILE_MAX_BYTES {
            return Err(damaged());
        }
        let mut lines = text.lines();
        if lines.next() != Some(HEAD) {
            return Err(damaged());
        }
        let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
        let tree_id = field("tree_id").and_then(|id| id.parse().ok()).ok_or_else(damaged)?;
        let public = field("public").ok_or_else(damaged)?.to_owned();
        let last = lines.next().ok_or_else(damaged)?;
        if lines.any(|line| !line.trim().is_empty()) {
            return Err(damaged());
        }
        let seed = match (last.strip_prefix("key "), last.strip_prefix("sealed ")) {
            (Some(seed), _) => HEXLOWER.decode(seed.as_bytes()).map_err(|_| damaged())?,
            (_, Some(sealed)) => {
                let head = format!("{HEAD}\ntree_id {tree_id}\npublic {public}\n");
                open(sealed, &head, passphrase.ok_or(RootKeyError::PassphraseMissing)?)?
            }
            (None, None) => return Err(damaged()),
        };
        let key = SigningKey::from_bytes(&seed.try_into().map_err(|_| damaged())?);
        let found = HEXLOWER.encode(key.verifying_key().as_bytes());
        if found == public { Ok(Self { tree_id, key }) } else { Err(damaged()) }
    }
}

fn open(sealed: &str, head: &str, passphrase: &str) -> Result<Vec<u8>, RootKeyError> {
    let damaged = || RootKeyError::Damaged;
    let mut words = sealed.split(' ');
    let rounds: u32 = words.next().and_then(|word| word.parse().ok()).ok_or_else(damaged)?;
    let rounds = NonZeroU32::new(rounds).filter(|rounds| rounds.get() <= ROUNDS_MAX).ok_or_else(damaged)?;
    let mut hex = || words.next().and_then(|word| HEXLOWER.decode(word.as_bytes()).ok()).ok_or_else(damaged);
    let (salt, mut sealed) = (hex()?, hex()?);
    let key = cipher(passphrase, &salt, rounds);
    let seed = key.open_in_place(nonce(), Aad::from(head), &mut sealed);
    Ok(seed.map_err(|_| RootKeyError::PassphraseWrong)?.to_vec())
}

fn cipher(passphrase: &str, salt: &[u8], rounds: NonZeroU32) -> LessSafeKey {
    let mut key = [0; 32];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, salt, passphrase.as_bytes(), &mut key);
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &key).expect("a key of its length"))
}

fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> RootKey {
        RootKey::generate(TreeId::from_bytes([3; 16])).unwrap()
    }

    #[test]
    fn a_root_key_comes_back_with_and_without_a_passphrase() {
        let root = root();
        for passphrase in [None, Some("correct horse")] {
            let text = root.to_text(passphrase).unwrap();
            assert_eq!(RootKey::is_sealed(&text), passphrase.is_some());
            let again = RootKey::from_text(&text, passphrase).unwrap();
            assert_eq!((again.tree_id, again.fingerprint()), (root.tree_id, root.fingerprint()));
        }
    }

    #[test]
    fn a_sealed_key_shows_nothing_and_opens_with_its_passphrase_alone() {
        let root = root();
        let text = root.to_text_with(Some("correct horse"), 1000).unwrap();
        assert!(!text.contains(&HEXLOWER.encode(root.key.as_bytes())));
        assert!(matches!(RootKey::from_text(&text, None), Err(RootKeyError::PassphraseMissing)));
        let wrong = RootKey::from_text(&text, Some("correct horse "));
        assert!(matches!(wrong, Err(RootKeyError::PassphraseWrong)));
        let moved = text.replace("0303", "0304");
        assert!(RootKey::from_text(&moved, Some("correct horse")).is_err(), "the lines before it count");
        let endless = text.replace("sealed 1000 ", "sealed 4000000000 ");
        assert!(matches!(RootKey::from_text(&endless, Some("x")), Err(RootKeyError::Damaged)));
        for cut in 0..text.len() - 1 {
            assert!(RootKey::from_text(&text[..cut], Some("correct horse")).is_err(), "cut at {cut}");
        }
    }
}
