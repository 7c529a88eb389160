//! The last scanned tree, which the stat records describe. It may differ from the published tree.
//!
//! Stored among the stat records, under a name that no path can have, so that both change in one transaction.
//! Bytes: `u8 version = 2`, `u8` whether something is unpublished, `u32` number of mount points, each with
//! its `u32` length, root entry. Integers little endian.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use syncd_shared::RootEntry;

use crate::store::{CheckReport, Damage, Store, StoreError, Writer};

const NAME: &[u8] = b"\0scan base";
const VERSION: u8 = 2;

/// The state that the stat records describe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ScanBase {
    /// The scanned tree.
    pub root: RootEntry,
    /// Whether it has changes that were never published. A tree replaced by a rollback has none.
    pub unpublished: bool,
    /// Absolute mount points in the tree and of the tree itself.
    pub mounts: BTreeSet<PathBuf>,
}

impl ScanBase {
    /// Loads the base. `None` before the first scan, or if it cannot be decoded; then everything is scanned
    /// again.
    pub(super) fn load(store: &Store) -> Result<Option<Self>, StoreError> {
        Ok(store.stat(NAME)?.and_then(|bytes| Self::decode(&bytes)))
    }

    /// Adds the base to the data that `writer` seals or saves.
    pub(super) fn put(&self, writer: &Writer) -> Result<(), StoreError> {
        writer.put_stat(NAME, &self.encode())
    }

    /// Removes the base, so that everything is scanned again.
    pub(super) fn remove(writer: &Writer) -> Result<(), StoreError> {
        writer.remove_stat(NAME)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION, u8::from(self.unpublished)];
        let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes();
        bytes.extend(length(self.mounts.len()));
        for mount in &self.mounts {
            bytes.extend(length(mount.as_os_str().len()));
            bytes.extend(mount.as_os_str().as_bytes());
        }
        bytes.extend(self.root.encode());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let [VERSION, unpublished @ (0 | 1), rest @ ..] = bytes else { return None };
        let mut rest = rest;
        let mut mounts = BTreeSet::new();
        for _ in 0..take_length(&mut rest)? {
            let length = usize::try_from(take_length(&mut rest)?).ok()?;
            let (mount, after) = rest.split_at_checked(length)?;
            rest = after;
            let mount = PathBuf::from(OsStr::from_bytes(mount));
            if mounts.last().is_some_and(|last| *last >= mount) {
                return None;
            }
            mounts.insert(mount);
        }
        Some(Self { root: RootEntry::decode(rest).ok()?, unpublished: *unpublished == 1, mounts })
    }
}

fn take_length(rest: &mut &[u8]) -> Option<u32> {
    let (taken, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u32::from_le_bytes(*taken))
}

/// Removes damaged content from the store, so that the next scan reads the whole tree and stores again what
/// is still there. Whether the tree is published remains known, unless a directory object is lost; then it is
/// compared again.
pub(crate) fn forget_damaged(store: &Arc<Store>, report: &CheckReport) -> Result<(), StoreError> {
    let base = ScanBase::load(store)?;
    store.forget_damaged(report)?;
    let writer = store.writer()?;
    writer.remove_stat_subtree(b"")?;
    let directories_lost = report.damage.iter().any(|damage| matches!(damage, Damage::Directory { .. }));
    match base.filter(|_| !directories_lost) {
        Some(base) => base.put(&writer)?,
        None => ScanBase::remove(&writer)?,
    }
    writer.save()
}
