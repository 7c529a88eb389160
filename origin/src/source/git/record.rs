//! The commit that the store was brought up to, among the stat records.
//!
//! Bytes: `u8 version = 2`, hash of the options (32), root hash (32), name of the commit. The record counts
//! only for the same root and the same options: after anything else the whole commit is looked at.

use syncd_shared::{RootEntry, RootHash};

use super::repository::Id;
use super::{GitOptions, Lfs, Mtime, Submodules};
use crate::scan::{ScanError, ScanOptions, SymlinkPolicy};
use crate::store::Writer;

/// A name that no path can have.
const NAME: &[u8] = b"\0git";
const VERSION: u8 = 2;

/// Hash of the options that decide how a commit becomes a tree.
pub(super) type Shape = [u8; 32];

pub(super) fn shape(options: &GitOptions, scan: &ScanOptions) -> Shape {
    let flags = [
        options.mtime == Mtime::Commit,
        options.submodules == Submodules::Ignore,
        options.lfs == Lfs::Pointer,
        scan.symlinks == SymlinkPolicy::Inside,
    ];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&flags.map(u8::from));
    hasher.update(&scan.collected.digest());
    hasher.finalize().into()
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub shape: Shape,
    pub root: RootHash,
    pub commit: Id,
}

impl Record {
    pub(super) fn load(writer: &Writer) -> Result<Option<Self>, ScanError> {
        Ok(writer.stat(NAME)?.and_then(|bytes| Self::decode(&bytes)))
    }

    pub(super) fn put(&self, writer: &Writer) -> Result<(), ScanError> {
        Ok(writer.put_stat(NAME, &self.encode())?)
    }

    /// Whether the commit's tree is `base`, made with these options.
    pub(super) fn describes(&self, base: &RootEntry, shape: Shape) -> bool {
        self.root == base.hash() && self.shape == shape
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend(self.shape);
        bytes.extend(self.root.as_bytes());
        bytes.extend(self.commit.as_slice());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let [VERSION, rest @ ..] = bytes else { return None };
        let (shape, rest) = rest.split_first_chunk()?;
        let (root, rest) = rest.split_first_chunk()?;
        Some(Self { shape: *shape, root: RootHash::from_bytes(*root), commit: Id::try_from(rest).ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_its_bytes_and_another_version_does_not_count() {
        let commit = Id::try_from(&[7; 20][..]).unwrap();
        let record = Record { shape: [1; 32], root: RootHash::from_bytes([9; 32]), commit };
        let mut bytes = record.encode();
        assert_eq!(Record::decode(&bytes), Some(record));
        assert_eq!(Record::decode(&bytes[..bytes.len() - 1]), None);
        bytes[0] = 1;
        assert_eq!(Record::decode(&bytes), None);
    }
}
