//! A published tree: objects in an object store or on a web server, from which agents take bytes without
//! asking the origin.
//!
//! ```text
//! head           the signed head, then the signed trust document; replaced when a generation is released
//! gen/NUMBER     a generation: its signed record, and the packs and updates that hold its content
//! pack/HASH      stored frames, and a table of what each holds
//! update/HASH    an encoded update: an update file
//! garbage        names of objects that are about to be deleted; readers ignore it
//! ```
//!
//! Every object but `head` and `garbage` has one content for ever, so caches may keep it. Readers begin
//! at `head` and ask for nothing that it does not lead to. Nobody needs to trust the carrier: `head`, records
//! and trust documents are signed, tables are named by their hashes, and frames are listed with theirs.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

pub mod fencing;
pub mod garbage;
pub mod pack;
mod release;

use crate::directory::DecodeDirectoryError;
use crate::generation::{GenerationError, GenerationNumber};
use crate::head::{HEAD_BYTES, Head};
use crate::identity::trust::TrustError;
use crate::identity::{RootFingerprint, SignedTrust, TrustDocument};

pub use release::{Nonce, PackRef, RELEASE_MAX_BYTES, Release, UpdateRef};

/// Name of the object that names the released generation.
pub const HEAD: &str = "head";
/// Longest object at [`HEAD`].
pub const HEAD_OBJECT_MAX_BYTES: usize = HEAD_BYTES + crate::limits::TRUST_DOCUMENT_MAX_BYTES;
/// Prefixes of the names of all other objects.
pub const PREFIXES: [&str; 3] = ["gen/", "pack/", "update/"];

/// Reasons to refuse an object of a published tree.
#[derive(Debug, thiserror::Error)]
pub enum PublishedError {
    /// The object does not begin as its kind does, or has another length than it says.
    #[error("{object} is not what its name says")]
    Form { object: &'static str },
    /// Bytes that do not have the hash that names or lists them.
    #[error("{object} has other content than its hash says")]
    Hash { object: &'static str },
    #[error("{what}: {actual} exceeds {limit}")]
    Limit { what: &'static str, actual: u64, limit: u64 },
    #[error("the published generation does not hold")]
    Generation(#[from] GenerationError),
    #[error("the published trust document does not hold")]
    Trust(#[from] TrustError),
    /// The generation at the head's number is another one than the head names.
    #[error("the head names generation {number} with another root than is published there")]
    OtherGeneration { number: GenerationNumber },
}

impl From<DecodeDirectoryError> for PublishedError {
    fn from(_: DecodeDirectoryError) -> Self {
        Self::Form { object: "a published object" }
    }
}

/// Name of a generation's object. Names sort as the numbers do.
pub fn generation_name(number: GenerationNumber) -> String {
    format!("gen/{number:020}", number = number.get())
}

/// The number in a name made by [`generation_name`].
pub fn generation_of_name(name: &str) -> Option<GenerationNumber> {
    let number = GenerationNumber::new(name.strip_prefix("gen/")?.parse().ok()?)?;
    (generation_name(number) == name).then_some(number)
}

/// Name of a pack's object.
pub fn pack_name(hash: &[u8; 32]) -> String {
    format!("pack/{}", blake3::Hash::from_bytes(*hash).to_hex())
}

/// Name of an update's object.
pub fn update_name(hash: &[u8; 32]) -> String {
    format!("update/{}", blake3::Hash::from_bytes(*hash).to_hex())
}

/// The object at [`HEAD`].
pub fn head_object(head: &[u8], trust: &SignedTrust) -> Vec<u8> {
    [head, trust.bytes()].concat()
}

/// Cuts the object at [`HEAD`] into the head and the trust document. Verifies nothing.
fn split_head(object: &[u8]) -> Result<(&[u8], &[u8]), PublishedError> {
    let form = PublishedError::Form { object: HEAD };
    if object.len() > HEAD_OBJECT_MAX_BYTES {
        Err(form)
    } else {
        object.split_at_checked(HEAD_BYTES).ok_or(form)
    }
}

/// The trust document in the object at [`HEAD`], for a reader that knows only the root key's fingerprint.
pub fn first_trust(object: &[u8], root: RootFingerprint) -> Result<SignedTrust, PublishedError> {
    let (head, document) = split_head(object)?;
    // The tree is whichever this root key made: it signs the documents of one tree.
    let tree_id = Head::tree_id_unverified(head)?;
    let trust = SignedTrust::verify(document, tree_id, root)?;
    Head::verify(head, trust.document())?;
    Ok(trust)
}

/// The bytes of the trust document in the object at [`HEAD`], not verified.
pub fn trust_bytes(object: &[u8]) -> Result<&[u8], PublishedError> {
    split_head(object).map(|(_, document)| document)
}

/// Verifies the head in the object at [`HEAD`].
pub fn verify_head(object: &[u8], document: &TrustDocument) -> Result<Head, PublishedError> {
    Ok(Head::verify(split_head(object)?.0, document)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_generations_sort_as_numbers_and_come_back() {
        let number = |n| GenerationNumber::new(n).unwrap();
        assert_eq!(generation_name(number(7)), "gen/00000000000000000007");
        assert!(generation_name(number(9)) < generation_name(number(10)));
        for n in [1, 10, u64::MAX] {
            assert_eq!(generation_of_name(&generation_name(number(n))), Some(number(n)));
        }
        for other in
            ["gen/7", "gen/00000000000000000000", "pack/00000000000000000007", "gen/+0000000000000000007"]
        {
            assert_eq!(generation_of_name(other), None, "{other}");
        }
    }
}
