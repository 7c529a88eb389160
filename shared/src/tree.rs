//! A whole tree, named by its root entry.
//!
//! Canonical bytes of a root entry, version 1 (integers little endian): `u8 version = 1`, 32 object hash,
//! metadata and totals as in a directory object ([`crate::directory`]).

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use crate::directory::{
    DecodeDirectoryError, Directory, Metadata, Reader, Timestamp, Totals, encode_metadata, encode_totals,
};
use crate::hash::{ObjectHash, RootHash, tagged};

const VERSION: u8 = 1;
const DOMAIN: &str = "syncd 2026 root entry v1";

/// The root directory of a tree with its own metadata. Two trees with the same [`RootHash`] are identical in
/// every byte and in every attribute that syncd replicates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RootEntry {
    pub object: ObjectHash,
    pub metadata: Metadata,
    /// Sums over the whole tree, excluding the root itself.
    pub totals: Totals,
}

/// Length of the canonical bytes of a root entry.
pub const ROOT_ENTRY_BYTES: usize = 1 + 32 + 2 + 4 + 4 + 8 + 4 + 24;

impl RootEntry {
    /// An empty directory. Every replica starts from it.
    pub fn empty() -> Self {
        let metadata = Metadata { mode: 0o755, uid: 0, gid: 0, mtime: Timestamp::default() };
        Self { object: Directory::default().hash(), metadata, totals: Totals::default() }
    }

    pub fn hash(&self) -> RootHash {
        RootHash::from_bytes(tagged(DOMAIN, &self.encode()))
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(ROOT_ENTRY_BYTES);
        out.push(VERSION);
        out.extend_from_slice(self.object.as_bytes());
        encode_metadata(&self.metadata, &mut out);
        encode_totals(&self.totals, &mut out);
        out
    }

    /// Reads canonical bytes and rejects anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeRootError> {
        let mut reader = Reader::new(bytes);
        let [version] = reader.array()?;
        let root = Self {
            object: ObjectHash::from_bytes(reader.array()?),
            metadata: reader.metadata()?,
            totals: reader.totals()?,
        };
        if version != VERSION || !reader.is_empty() || !root.metadata.is_valid() {
            return Err(DecodeRootError::Invalid);
        }
        Ok(root)
    }
}

/// Errors of decoding a root entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeRootError {
    /// The bytes end too early.
    #[error("root entry is truncated")]
    Truncated(#[from] DecodeDirectoryError),
    /// Another version, bytes left over, or invalid metadata.
    #[error("invalid root entry")]
    Invalid,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_hash_covers_metadata_and_totals() {
        let root = RootEntry::empty();
        assert_eq!(RootEntry::decode(&root.encode()), Ok(root));
        assert_eq!(root.encode().len(), ROOT_ENTRY_BYTES);
        let mut other = root;
        other.metadata.mode = 0o700;
        assert_ne!(root.hash(), other.hash());
        assert!(RootEntry::decode(&root.encode()[1..]).is_err());
    }
}
