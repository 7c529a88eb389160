//! Inode numbers of the live tree: a list for each page of a directory, in entry order.

use redb::{ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use syncd_shared::{ObjectHash, TreePath};

use super::{Change, Record, RecordError, commit};

pub(super) const INODES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("inodes");

/// Change of the live tree's inode numbers.
#[derive(Debug, Clone, Default)]
pub(crate) struct InodeChanges {
    /// Directories that were renamed with everything below them.
    pub moved: Vec<(TreePath, TreePath)>,
    /// Directories that were removed, each one listed.
    pub removed: Vec<TreePath>,
    /// Pages that their directories no longer have.
    pub gone: Vec<Leaf>,
    /// New lists.
    pub put: Vec<(Leaf, Vec<u64>)>,
    /// Removes all earlier lists first.
    pub clear: bool,
}

/// A page of entries of a directory of the live tree.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Leaf {
    /// The directory.
    pub path: TreePath,
    pub page: ObjectHash,
}

impl Leaf {
    fn key(&self) -> Vec<u8> {
        [&leaves_of(&self.path)[..], self.page.as_bytes()].concat()
    }
}

/// Start of the keys of a directory's pages. No path has an empty component.
fn leaves_of(path: &TreePath) -> Vec<u8> {
    [path.as_bytes(), b"//"].concat()
}

impl Record {
    /// Replaces or adds inode numbers of the live tree, durably.
    pub fn set_inodes(&self, inodes: &InodeChanges) -> Result<(), RecordError> {
        self.apply(&Change { inodes: Some(inodes), ..Change::default() }, true)
    }

    /// Inode numbers of a page of the live tree, in entry order; `None`: unknown.
    pub fn inodes(&self, leaf: &Leaf) -> Result<Option<Vec<u64>>, RecordError> {
        let doing = RecordError::database::<redb::Error>("read inode numbers");
        let read = self.database.begin_read().map_err(|e| doing(e.into()))?;
        let table = read.open_table(INODES).map_err(|e| doing(e.into()))?;
        let found = table.get(leaf.key().as_slice()).map_err(|e| doing(e.into()))?;
        Ok(found.map(|v| decode_inodes(v.value())))
    }

    /// Removes all inode numbers, when no tree is live. Becomes durable with the next durable commit.
    pub fn clear_inodes(&self) -> Result<(), RecordError> {
        let write = self.begin(false)?;
        let changes = InodeChanges { clear: true, ..InodeChanges::default() };
        apply_inodes(&write, &changes).map_err(RecordError::database("forget inode numbers"))?;
        commit(write)
    }

    /// Stores inode numbers for a tree that will be live. Becomes durable with the next durable commit.
    pub fn put_inodes(&self, lists: Vec<(Leaf, Vec<u64>)>) -> Result<(), RecordError> {
        let write = self.begin(false)?;
        let changes = InodeChanges { put: lists, ..InodeChanges::default() };
        apply_inodes(&write, &changes).map_err(RecordError::database("record inode numbers"))?;
        commit(write)
    }
}

pub(super) fn apply_inodes(write: &WriteTransaction, changes: &InodeChanges) -> Result<(), redb::Error> {
    let mut table = write.open_table(INODES)?;
    if changes.clear {
        table.retain(|_, _| false)?;
    }
    let mut moved: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for (from, to) in &changes.moved {
        let first = moved.len();
        // Both the pages of the directory and everything below it.
        let (start, below) = (from.as_bytes(), [from.as_bytes(), b"/"].concat());
        for item in table.range(below.as_slice()..)? {
            let (key, value) = item?;
            if !key.value().starts_with(&below) {
                break;
            }
            moved.push((key.value().to_vec(), value.value().to_vec()));
        }
        for (key, _) in &mut moved[first..] {
            table.remove(key.as_slice())?;
            *key = [to.as_bytes(), &key[start.len()..]].concat();
        }
    }
    for path in &changes.removed {
        let (from, to) = (leaves_of(path), [path.as_bytes(), b"/0"].concat());
        table.retain_in(from.as_slice()..to.as_slice(), |_, _| false)?;
    }
    for (key, value) in &moved {
        table.insert(key.as_slice(), value.as_slice())?;
    }
    for leaf in &changes.gone {
        table.remove(leaf.key().as_slice())?;
    }
    for (leaf, inodes) in &changes.put {
        let bytes: Vec<u8> = inodes.iter().flat_map(|i| i.to_le_bytes()).collect();
        table.insert(leaf.key().as_slice(), bytes.as_slice())?;
    }
    Ok(())
}

pub(crate) fn decode_inodes(bytes: &[u8]) -> Vec<u64> {
    bytes.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect()
}
