//! The paths of the published tree at which collected directories appear.

use std::collections::BTreeMap;
use std::sync::Arc;

use syncd_shared::collected::CollectedName;
use syncd_shared::{Entry, Kind, Metadata, Timestamp, TreePath};

/// Entries that are published instead of whatever the content tree has at their paths. Nothing there or below
/// is read or watched.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CollectedPlaces(Arc<BTreeMap<TreePath, Entry>>);

/// A collected directory: its path in the tree, its name, and the user and group that own it.
pub type CollectedPlace = (TreePath, CollectedName, (u32, u32));

impl CollectedPlaces {
    /// The root of a tree cannot be a collected directory, so a place there is left out.
    pub fn new(places: impl IntoIterator<Item = CollectedPlace>) -> Self {
        let entry = |(path, name, (uid, gid)): CollectedPlace| {
            let (_, own) = path.split_last()?;
            let metadata = Metadata { mode: 0o777, uid, gid, mtime: Timestamp::default() };
            Some((path, Entry { name: own, metadata, kind: Kind::Collected { name } }))
        };
        Self(Arc::new(places.into_iter().filter_map(entry).collect()))
    }

    pub fn at(&self, path: &TreePath) -> Option<&Entry> {
        self.0.get(path)
    }

    /// Hash of all places, so that a source notices when they have changed.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for (path, Entry { metadata, kind, .. }) in self.0.iter() {
            let Kind::Collected { name } = kind else { continue };
            let owner = [metadata.uid.to_le_bytes(), metadata.gid.to_le_bytes()].concat();
            for part in [path.as_bytes(), name.as_bytes(), &owner] {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part);
            }
        }
        hasher.finalize().into()
    }

    /// Entries in a directory.
    pub fn in_directory<'a>(&'a self, directory: &'a TreePath) -> impl Iterator<Item = &'a Entry> {
        let is_in = move |path: &TreePath| path.split_last().is_some_and(|(parent, _)| parent == *directory);
        self.0.iter().filter(move |(path, _)| is_in(path)).map(|(_, entry)| entry)
    }
}
