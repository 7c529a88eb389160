//! The trust document: the keys of a tree that agents trust now, signed by the tree's root key.
//!
//! The root key signs nothing else and belongs on another machine. Tokens and agents pin its fingerprint. A
//! document with a higher number replaces an older one. An agent that has seen it accepts no new generation
//! that the superseded signing key signed, and no origin with a certificate of the superseded authority.
//!
//! Canonical bytes, version 1 (integers little endian): `u8 version = 1`, 16 tree_id, 32 root key, `u32
//! number`, 32 signing key, `u32 first epoch`, `u32 last epoch`, `u64 first generation number`, `u64 last
//! generation number`, `i64 issued`, `i64 warn` (Unix milliseconds), `u16 certificate length`, the
//! authority's certificate (DER). A signed document continues with the ed25519 signature of the root key,
//! which covers a domain tag and all of it.
//!
//! As text, which travels between machines, a document is base64 in lines of 64, after lines that begin with
//! `#`. One that waits for its signature is followed by the signed document that it replaces, in lines that
//! begin with `#=`, so that the signer sees what changes.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use std::fmt;

use data_encoding::{BASE64, HEXLOWER};
use rustls_pki_types::CertificateDer;

use super::authority;
use super::root_key::RootKey;
use super::signing::fingerprint;
use crate::directory::{DecodeDirectoryError, Reader};
use crate::ed25519::{Signature, SigningKey, VerifyingKey};
use crate::generation::{Epochs, GenerationError, GenerationNumber, Numbers, SignedGeneration, TreeId};
use crate::limits::{AUTHORITY_CERTIFICATE_MAX_BYTES, TRUST_DOCUMENT_MAX_BYTES};

const VERSION: u8 = 1;
const DOMAIN: &[u8] = b"syncd 2026 trust document v1\0";
/// Canonical bytes before the certificate.
const HEAD_BYTES: usize = 127;
const SIGNATURE_BYTES: usize = 64;
const LINE: usize = 64;
/// Begins the lines of the document that another one replaces.
const BEFORE: &str = "#= ";

/// The fingerprint of a root key, which tokens and agents pin. Shown as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RootFingerprint([u8; 32]);

impl RootFingerprint {
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub fn of(key: &VerifyingKey) -> Self {
        Self(fingerprint(key))
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for RootFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for RootFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RootFingerprint({self})")
    }
}

/// The string is not 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint of a root key has 64 hexadecimal digits: `syncd-origin key show` prints it")]
pub struct ParseFingerprintError;

impl std::str::FromStr for RootFingerprint {
    type Err = ParseFingerprintError;

    fn from_str(text: &str) -> Result<Self, ParseFingerprintError> {
        let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.trim().as_bytes());
        let bytes = bytes.map_err(|_| ParseFingerprintError)?;
        bytes.try_into().map(Self).map_err(|_| ParseFingerprintError)
    }
}

/// The keys of a tree, as its root key signs them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustDocument {
    pub tree_id: TreeId,
    pub root_key: VerifyingKey,
    /// 1 for the first document. A higher number replaces a lower one.
    pub number: u32,
    /// The key that signs generations.
    pub signing_key: VerifyingKey,
    /// Epochs whose generations the signing key may sign.
    pub epochs: Epochs,
    /// Numbers of generations that it may sign. The next signing key gets later epochs and numbers
    /// ([`TrustDocument::replace_signing_key`]), so that a thief of this one can lead no node beyond it.
    pub numbers: Numbers,
    /// Time of making, in milliseconds since 1970.
    pub issued_ms: i64,
    /// Origin and agents warn after this time. Nothing stops.
    pub warn_ms: i64,
    /// The TLS authority of the tree. Only its name and key count, which stay when its life is extended.
    pub authority: CertificateDer<'static>,
}

/// Reasons to refuse a trust document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// Longer than [`TRUST_DOCUMENT_MAX_BYTES`], or the text is not base64.
    #[error("this is not a trust document")]
    NotADocument,
    /// Another format version.
    #[error("trust document version {actual}, expected {VERSION}: update syncd on this side")]
    Version {
        /// Version found.
        actual: u8,
    },
    /// Truncated, with bytes left over, or with invalid fields.
    #[error("the trust document is malformed")]
    Malformed,
    /// A document that waits for its signature.
    #[error("the trust document is not signed yet: `syncd-origin key sign` signs it")]
    Unsigned,
    #[error("the trust document is not signed by the root key that it names")]
    Signature,
    #[error("the trust document is of tree {actual}, expected {expected}")]
    OtherTree { expected: TreeId, actual: TreeId },
    /// A valid document of another root key than the pinned one.
    #[error("the trust document is signed by root key {actual}, expected {expected}")]
    OtherRoot { expected: RootFingerprint, actual: RootFingerprint },
    /// The document names another root key than the one that is to sign it.
    #[error("root key {actual} is not the one of this tree, {expected}")]
    OtherKey { expected: RootFingerprint, actual: RootFingerprint },
    /// An older document than the one known.
    #[error("trust document {offered} is older than {known}, which is known")]
    Older { known: u32, offered: u32 },
}

impl From<DecodeDirectoryError> for TrustError {
    fn from(_: DecodeDirectoryError) -> Self {
        Self::Malformed
    }
}

impl TrustDocument {
    /// The first document of a tree.
    pub fn first(
        root: &RootKey,
        signing_key: VerifyingKey,
        authority: &CertificateDer<'static>,
        issued_ms: i64,
        warn_ms: i64,
    ) -> SignedTrust {
        let document = Self {
            tree_id: root.tree_id,
            root_key: root.key.verifying_key(),
            number: 1,
            signing_key,
            epochs: Epochs::FIRST,
            numbers: Numbers::FIRST,
            issued_ms,
            warn_ms,
            authority: authority.clone(),
        };
        document.sign(&root.key).expect("it names this root key")
    }

    pub fn root_fingerprint(&self) -> RootFingerprint {
        RootFingerprint::of(&self.root_key)
    }

    /// Names another signing key, with epochs and numbers past those of the former one. `None` if no more are
    /// left.
    pub fn replace_signing_key(&mut self, key: VerifyingKey) -> Option<()> {
        self.skip_signing_keys(1)?;
        self.signing_key = key;
        Some(())
    }

    /// Moves the ranges past those of `keys` signing keys that came between and are not known here.
    pub fn skip_signing_keys(&mut self, keys: u32) -> Option<()> {
        for _ in 0..keys {
            (self.epochs, self.numbers) = (self.epochs.next()?, self.numbers.next()?);
        }
        Some(())
    }

    /// Whether another document, with another signing key, can follow.
    pub fn can_be_followed(&self) -> bool {
        let has_number = self.number < u32::MAX;
        has_number && self.epochs.next().is_some() && self.numbers.next().is_some()
    }

    /// Checks that the signing key may sign a generation of this epoch with this number.
    pub fn check_place(&self, epoch: u32, number: GenerationNumber) -> Result<(), GenerationError> {
        if !self.epochs.contains(epoch) {
            return Err(GenerationError::Epoch { actual: epoch, expected: self.epochs });
        }
        if !self.numbers.contains(number) {
            return Err(GenerationError::Number { actual: number, expected: self.numbers });
        }
        Ok(())
    }

    /// Canonical bytes, without a signature.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(1024);
        out.push(VERSION);
        out.extend_from_slice(self.tree_id.as_bytes());
        out.extend_from_slice(self.root_key.as_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(self.signing_key.as_bytes());
        out.extend_from_slice(&self.epochs.first.to_le_bytes());
        out.extend_from_slice(&self.epochs.last.to_le_bytes());
        out.extend_from_slice(&self.numbers.first.get().to_le_bytes());
        out.extend_from_slice(&self.numbers.last.get().to_le_bytes());
        out.extend_from_slice(&self.issued_ms.to_le_bytes());
        out.extend_from_slice(&self.warn_ms.to_le_bytes());
        out.extend_from_slice(&(self.authority.len() as u16).to_le_bytes());
        out.extend_from_slice(&self.authority);
        out
    }

    /// Reads a document, and returns what follows it. Verifies no signature.
    fn decode(bytes: &[u8]) -> Result<(Self, &[u8]), TrustError> {
        if bytes.len() > TRUST_DOCUMENT_MAX_BYTES {
            return Err(TrustError::NotADocument);
        }
        let mut reader = Reader::new(bytes);
        let [version] = reader.array()?;
        if version != VERSION {
            return Err(TrustError::Version { actual: version });
        }
        let tree_id = TreeId::from_bytes(reader.array()?);
        let key = |bytes: [u8; 32]| VerifyingKey::from_bytes(&bytes).map_err(|_| TrustError::Malformed);
        let root_key = key(reader.array()?)?;
        let number = u32::from_le_bytes(reader.array()?);
        let signing_key = key(reader.array()?)?;
        let first = u32::from_le_bytes(reader.array()?);
        let last = u32::from_le_bytes(reader.array()?);
        let mut number_of_generation =
            || Ok::<_, TrustError>(GenerationNumber::new(u64::from_le_bytes(reader.array()?)));
        let (Some(first_number), Some(last_number)) = (number_of_generation()?, number_of_generation()?)
        else {
            return Err(TrustError::Malformed);
        };
        let numbers = Numbers { first: first_number, last: last_number };
        let issued_ms = i64::from_le_bytes(reader.array()?);
        let warn_ms = i64::from_le_bytes(reader.array()?);
        let length = usize::from(u16::from_le_bytes(reader.array()?));
        let has_places = first > 0 && first <= last && numbers.first <= numbers.last;
        if number == 0 || !has_places || length > AUTHORITY_CERTIFICATE_MAX_BYTES {
            return Err(TrustError::Malformed);
        }
        let authority = CertificateDer::from(reader.take(length)?.to_vec());
        authority::key_of_authority(&authority).map_err(|_| TrustError::Malformed)?;
        let epochs = Epochs { first, last };
        let document =
            Self { tree_id, root_key, number, signing_key, epochs, numbers, issued_ms, warn_ms, authority };
        Ok((document, bytes.get(HEAD_BYTES.saturating_add(length)..).unwrap_or_default()))
    }

    /// Signs the document with the root key that it names.
    pub fn sign(self, root: &SigningKey) -> Result<SignedTrust, TrustError> {
        if root.verifying_key() != self.root_key {
            let actual = RootFingerprint::of(&root.verifying_key());
            return Err(TrustError::OtherKey { expected: self.root_fingerprint(), actual });
        }
        let mut bytes = self.encode();
        let signature = root.sign(&message(&bytes));
        bytes.extend_from_slice(signature.as_bytes());
        Ok(SignedTrust { document: self, bytes })
    }

    /// The text of a document that waits for its signature.
    pub fn to_text(&self) -> String {
        to_text(
            &format!("trust document {} of tree {}, not signed yet", self.number, self.tree_id),
            &self.encode(),
        )
    }

    /// The text of a document that waits for its signature, with the one that it replaces.
    pub fn to_text_after(&self, before: &SignedTrust) -> String {
        let title = format!("# syncd: the document before it, {}\n", before.number());
        let body = lines(before.bytes()).iter().fold(title, |text, line| text + BEFORE + line + "\n");
        self.to_text() + &body
    }

    /// Reads the document that the one in this text replaces. `None` if the text has none.
    pub fn before_in_text(text: &str, tree_id: TreeId) -> Result<Option<SignedTrust>, TrustError> {
        let body: String = text.lines().filter_map(|line| line.trim().strip_prefix(BEFORE)).collect();
        if body.is_empty() {
            return Ok(None);
        }
        let bytes = BASE64.decode(body.as_bytes()).map_err(|_| TrustError::NotADocument)?;
        SignedTrust::of_tree(&bytes, tree_id).map(Some)
    }

    /// Reads the text of a document, signed or not.
    pub fn from_text(text: &str) -> Result<Self, TrustError> {
        let bytes = bytes_of_text(text)?;
        let (document, rest) = Self::decode(&bytes)?;
        if matches!(rest.len(), 0 | SIGNATURE_BYTES) { Ok(document) } else { Err(TrustError::Malformed) }
    }

    /// Verifies a generation's record: signed by this document's signing key, with an epoch and a number
    /// that the key may use.
    pub fn verify_generation(
        &self,
        record: &[u8],
        signature: &[u8],
    ) -> Result<SignedGeneration, GenerationError> {
        let signed = SignedGeneration::verify(record, signature, self.tree_id, &self.signing_key)?;
        self.check_place(signed.epoch(), signed.number())?;
        Ok(signed)
    }
}

/// A trust document with the signature of the root key that it names, verified on construction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedTrust {
    document: TrustDocument,
    bytes: Vec<u8>,
}

impl SignedTrust {
    /// Takes a document from outside: of this tree, signed by the root key with this fingerprint.
    pub fn verify(bytes: &[u8], tree_id: TreeId, root: RootFingerprint) -> Result<Self, TrustError> {
        let signed = Self::of_tree(bytes, tree_id)?;
        let actual = signed.document.root_fingerprint();
        if actual == root { Ok(signed) } else { Err(TrustError::OtherRoot { expected: root, actual }) }
    }

    /// Reads a document of this tree, signed by whichever root key it names. The caller must compare the root
    /// key, unless the document is its own.
    pub fn of_tree(bytes: &[u8], tree_id: TreeId) -> Result<Self, TrustError> {
        let (document, rest) = TrustDocument::decode(bytes)?;
        if rest.is_empty() {
            return Err(TrustError::Unsigned);
        }
        let signature: &[u8; SIGNATURE_BYTES] = rest.try_into().map_err(|_| TrustError::Malformed)?;
        let payload = bytes.strip_suffix(signature).unwrap_or_default();
        document
            .root_key
            .verify(&message(payload), &Signature::from_bytes(signature))
            .map_err(|_| TrustError::Signature)?;
        if document.tree_id != tree_id {
            return Err(TrustError::OtherTree { expected: tree_id, actual: document.tree_id });
        }
        Ok(Self { document, bytes: bytes.to_vec() })
    }

    pub fn document(&self) -> &TrustDocument {
        &self.document
    }

    pub fn number(&self) -> u32 {
        self.document.number
    }

    /// Canonical bytes and signature.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn to_text(&self) -> String {
        let TrustDocument { number, tree_id, .. } = &self.document;
        to_text(&format!("trust document {number} of tree {tree_id}, signed"), &self.bytes)
    }

    /// Reads the text of a document of this tree, signed by whichever root key it names: see
    /// [`SignedTrust::of_tree`].
    pub fn from_text(text: &str, tree_id: TreeId) -> Result<Self, TrustError> {
        Self::of_tree(&bytes_of_text(text)?, tree_id)
    }
}

fn message(payload: &[u8]) -> Vec<u8> {
    [DOMAIN, payload].concat()
}

fn to_text(title: &str, bytes: &[u8]) -> String {
    format!("# syncd: {title}\n{}\n", lines(bytes).join("\n"))
}

/// Base64, in lines.
fn lines(bytes: &[u8]) -> Vec<String> {
    let body = BASE64.encode(bytes);
    body.as_bytes().chunks(LINE).map(|line| String::from_utf8_lossy(line).into_owned()).collect()
}

fn bytes_of_text(text: &str) -> Result<Vec<u8>, TrustError> {
    // Two documents in base64.
    if text.len() > TRUST_DOCUMENT_MAX_BYTES.saturating_mul(4) {
        return Err(TrustError::NotADocument);
    }
    let body: String = text.lines().map(str::trim).filter(|line| !line.starts_with('#')).collect();
    BASE64.decode(body.as_bytes()).map_err(|_| TrustError::NotADocument)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::Generation;
    use crate::identity::{Authority, signing};
    use crate::tree::RootEntry;
    use time::OffsetDateTime;

    const TREE: TreeId = TreeId::from_bytes([7; 16]);

    fn number(number: u64) -> GenerationNumber {
        GenerationNumber::new(number).unwrap()
    }

    fn document(root: &SigningKey, signing: &SigningKey) -> TrustDocument {
        let authority = Authority::create(TREE, OffsetDateTime::now_utc()).unwrap();
        TrustDocument {
            tree_id: TREE,
            root_key: root.verifying_key(),
            number: 3,
            signing_key: signing.verifying_key(),
            epochs: Epochs { first: 2, last: 5 },
            numbers: Numbers { first: number(10), last: number(20) },
            issued_ms: 1,
            warn_ms: 2,
            authority: authority.certificate().clone(),
        }
    }

    #[test]
    fn a_document_comes_back_from_bytes_and_text_signed_or_not() {
        let (root, signing) = (signing::generate().unwrap(), signing::generate().unwrap());
        let document = document(&root, &signing);
        assert_eq!(TrustDocument::from_text(&document.to_text()), Ok(document.clone()));
        let unsigned = SignedTrust::from_text(&document.to_text(), TREE);
        assert_eq!(unsigned, Err(TrustError::Unsigned));
        let signed = document.clone().sign(&root).unwrap();
        let pin = RootFingerprint::of(&root.verifying_key());
        assert_eq!(SignedTrust::verify(signed.bytes(), TREE, pin).as_ref(), Ok(&signed));
        assert_eq!(SignedTrust::from_text(&signed.to_text(), TREE).as_ref(), Ok(&signed));
        assert_eq!(TrustDocument::from_text(&signed.to_text()), Ok(document));
        assert!(signed.to_text().lines().all(|line| line.len() <= 80));
        assert_eq!(pin.to_string().parse(), Ok(pin));
    }

    #[test]
    fn a_document_that_waits_carries_the_one_that_it_replaces() {
        let (root, signing) = (signing::generate().unwrap(), signing::generate().unwrap());
        let before = document(&root, &signing).sign(&root).unwrap();
        let mut next = before.document().clone();
        next.number = 4;
        let text = next.to_text_after(&before);
        assert_eq!(TrustDocument::from_text(&text), Ok(next.clone()));
        assert_eq!(TrustDocument::before_in_text(&text, TREE), Ok(Some(before.clone())));
        assert_eq!(TrustDocument::before_in_text(&next.to_text(), TREE), Ok(None));
        // Anybody can write there, and nothing is believed that no root key has signed.
        let at = text.rfind(BEFORE).unwrap() + BEFORE.len();
        let posed = format!("{}AAAA{}", &text[..at], &text[at + 4..]);
        assert!(TrustDocument::before_in_text(&posed, TREE).is_err());
    }

    #[test]
    fn any_flipped_bit_another_root_or_another_tree_is_refused() {
        let (root, other, signing) =
            (signing::generate().unwrap(), signing::generate().unwrap(), signing::generate().unwrap());
        let signed = document(&root, &signing).sign(&root).unwrap();
        let pin = RootFingerprint::of(&root.verifying_key());
        for bit in 0..signed.bytes().len() * 8 {
            let mut bytes = signed.bytes().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(SignedTrust::verify(&bytes, TREE, pin).is_err(), "bit {bit}");
        }
        for length in 0..signed.bytes().len() {
            assert!(SignedTrust::verify(&signed.bytes()[..length], TREE, pin).is_err(), "length {length}");
        }
        let elsewhere = SignedTrust::verify(signed.bytes(), TreeId::from_bytes([8; 16]), pin);
        assert!(matches!(elsewhere, Err(TrustError::OtherTree { .. })));
        let foreign = document(&other, &signing).sign(&other).unwrap();
        let refused = SignedTrust::verify(foreign.bytes(), TREE, pin);
        assert!(matches!(refused, Err(TrustError::OtherRoot { .. })));
        assert!(matches!(document(&root, &signing).sign(&other), Err(TrustError::OtherKey { .. })));
    }

    #[test]
    fn generations_of_another_key_epoch_or_number_are_refused() {
        let (root, old, new) =
            (signing::generate().unwrap(), signing::generate().unwrap(), signing::generate().unwrap());
        let document = document(&root, &new);
        let generation = |epoch, of: u64, key: &SigningKey| {
            Generation {
                tree_id: TREE,
                epoch,
                number: number(of),
                trust: 3,
                root: RootEntry::empty(),
                parent: None,
                created_ms: 0,
                label: String::new(),
            }
            .sign(key)
        };
        let verify =
            |signed: SignedGeneration| document.verify_generation(signed.record(), signed.signature());
        assert!(verify(generation(2, 10, &new)).is_ok());
        assert!(verify(generation(5, 20, &new)).is_ok());
        assert_eq!(verify(generation(2, 10, &old)), Err(GenerationError::Signature));
        for epoch in [1, 6] {
            let refused = verify(generation(epoch, 10, &new));
            assert!(matches!(refused, Err(GenerationError::Epoch { .. })), "{epoch}");
        }
        for number in [9, 21] {
            let refused = verify(generation(2, number, &new));
            assert!(matches!(refused, Err(GenerationError::Number { .. })), "{number}");
        }
    }

    #[test]
    fn a_new_signing_key_is_past_everything_that_a_thief_of_the_former_one_can_sign() {
        let (root, stolen, new) =
            (signing::generate().unwrap(), signing::generate().unwrap(), signing::generate().unwrap());
        let before = document(&root, &stolen);
        let mut after = before.clone();
        after.replace_signing_key(new.verifying_key()).unwrap();
        let signed = |epoch, number, key: &SigningKey| {
            let (root, label) = (RootEntry::empty(), String::new());
            Generation { tree_id: TREE, epoch, number, trust: 3, root, parent: None, created_ms: 0, label }
                .sign(key)
        };
        let worst = signed(before.epochs.last, before.numbers.last, &stolen);
        assert!(before.verify_generation(worst.record(), worst.signature()).is_ok());
        let next = signed(after.epochs.first, after.numbers.first, &new);
        assert!(after.verify_generation(next.record(), next.signature()).is_ok());
        assert_eq!(next.may_follow(Some(&worst)), Ok(()));
        assert!(before.can_be_followed());
        // Nothing wraps around in the end.
        after.epochs.last = u32::MAX;
        assert_eq!(after.replace_signing_key(new.verifying_key()), None);
        assert!(!after.can_be_followed());
        assert!(!TrustDocument { number: u32::MAX, ..before.clone() }.can_be_followed());
        after = TrustDocument { numbers: Numbers { last: number(u64::MAX), ..before.numbers }, ..before };
        assert_eq!(after.replace_signing_key(new.verifying_key()), None);
    }
}
