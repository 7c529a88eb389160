//! The tree as it was last scanned, which is not always what is published: what the stat records belong to.
//!
//! Kept among the stat records, under a name that no path has, so that both change in one transaction. Bytes:
//! `u8 version = 1`, `u8` whether something is unpublished, root entry.

use syncd_shared::RootEntry;

use crate::store::{Store, StoreError, Writer};

const NAME: &[u8] = b"\0scan base";
const VERSION: u8 = 1;

/// What the stat records describe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ScanBase {
    /// The tree.
    pub root: RootEntry,
    /// Whether it has changes that were never published. A tree that a rollback put aside has none.
    pub unpublished: bool,
}

impl ScanBase {
    /// What the last scan left; `None` before the first, or where it can't be read: then everything is scanned anew.
    pub(super) fn load(store: &Store) -> Result<Option<Self>, StoreError> {
        Ok(store.stat(NAME)?.and_then(|bytes| Self::decode(&bytes)))
    }

    /// Goes along with what `writer` seals or saves.
    pub(super) fn put(&self, writer: &Writer) -> Result<(), StoreError> {
        writer.put_stat(NAME, &self.encode())
    }

    /// Has everything scanned anew.
    pub(super) fn remove(writer: &Writer) -> Result<(), StoreError> {
        writer.remove_stat(NAME)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION, u8::from(self.unpublished)];
        bytes.extend(self.root.encode());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [VERSION, unpublished @ (0 | 1), root @ ..] => {
                Some(Self { root: RootEntry::decode(root).ok()?, unpublished: *unpublished == 1 })
            }
            _ => None,
        }
    }
}
