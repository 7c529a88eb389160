//! Copies one consistent state of the store while it is in use.
//!
//! The index is copied row by row from one read transaction, the packs up to the lengths recorded there.
//! Packs only grow, and the caller holds off garbage collection, so nothing that the index refers to moves
//! meanwhile. Commits continue.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::path::Path;

use redb::{
    Key, ReadTransaction, ReadableTable, TableDefinition, TableError, TableHandle, Value, WriteTransaction,
};

use super::error::{OpenStoreError, StoreError, index};
use super::index::{
    CHUNKS, DIRECTORIES, FILES, GENERATIONS, Index, META, PACKS, PATHS, RECORDS, ROOTS, STAT,
};
use super::pack::PackId;
use super::{Store, index_path, packs_path};

/// Errors of copying the store.
#[derive(Debug, thiserror::Error)]
pub enum BackupStoreError {
    /// The store could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The new index could not be created.
    #[error(transparent)]
    Create(#[from] OpenStoreError),
    /// A file could not be read or written.
    #[error("copying to {} failed", path.display())]
    Io {
        /// Path of the copy.
        path: std::path::PathBuf,
        source: io::Error,
    },
    /// A pack is shorter than recorded in the index.
    #[error("{pack} of the store is missing or too short: run `syncd-origin check`")]
    Pack { pack: PackId },
    /// The index has a table unknown to this program.
    #[error("the index has a table {name:?} that can't be copied: use the syncd-origin that made it")]
    Table { name: String },
}

impl Store {
    /// Copies the store to `to`, an existing directory. The copy is durable except for the name of `to`
    /// itself. `progress` receives the pack bytes copied and in total. The caller must hold off garbage
    /// collection. Blocks.
    pub fn backup(&self, to: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<(), BackupStoreError> {
        let packs = self.index.copy_to(&index_path(to))?;
        let directory = packs_path(to);
        let failed = |path: &Path, source| BackupStoreError::Io { path: path.to_owned(), source };
        std::fs::create_dir(&directory).map_err(|e| failed(&directory, e))?;
        let total = packs.iter().map(|(_, length)| length).sum();
        let mut copied = 0u64;
        for (pack, length) in packs {
            let name = pack.file_name();
            let target = directory.join(&name);
            match copy(&self.packs.directory().join(&name), &target, length) {
                Ok(bytes) if bytes == length => copied = copied.saturating_add(bytes),
                Ok(_) => return Err(BackupStoreError::Pack { pack }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(BackupStoreError::Pack { pack });
                }
                Err(error) => return Err(failed(&target, error)),
            }
            progress(copied, total);
        }
        for directory in [directory.as_path(), to] {
            File::open(directory).and_then(|d| d.sync_all()).map_err(|e| failed(directory, e))?;
        }
        Ok(())
    }
}

/// Copies the first `length` bytes into a new file, durably. Returns the number of bytes copied.
fn copy(from: &Path, to: &Path, length: u64) -> io::Result<u64> {
    let source = File::open(from)?;
    let mut target = OpenOptions::new().write(true).create_new(true).open(to)?;
    let bytes = io::copy(&mut source.take(length), &mut target)?;
    target.sync_all()?;
    Ok(bytes)
}

impl Index {
    /// Copies one consistent state into a new file, durably. Returns its packs with their lengths.
    fn copy_to(&self, path: &Path) -> Result<Vec<(PackId, u64)>, BackupStoreError> {
        let copy = Self::create(path)?;
        let mut unknown = None;
        let packs = self.read(|from| {
            let known = [
                CHUNKS.name(),
                FILES.name(),
                DIRECTORIES.name(),
                GENERATIONS.name(),
                ROOTS.name(),
                STAT.name(),
                RECORDS.name(),
                PACKS.name(),
                PATHS.name(),
                META.name(),
            ];
            let mut names = from.list_tables().map_err(index)?;
            unknown = names.find(|table| !known.contains(&table.name())).map(|table| table.name().to_owned());
            if unknown.is_some() {
                return Ok(Vec::new());
            }
            copy.write(|to| {
                copy_table(from, to, CHUNKS)?;
                copy_table(from, to, FILES)?;
                copy_table(from, to, DIRECTORIES)?;
                copy_table(from, to, GENERATIONS)?;
                copy_table(from, to, ROOTS)?;
                copy_table(from, to, STAT)?;
                copy_table(from, to, RECORDS)?;
                copy_table(from, to, PACKS)?;
                copy_table(from, to, PATHS)?;
                copy_table(from, to, META)
            })?;
            let table = from.open_table(PACKS).map_err(index)?;
            let mut packs = Vec::new();
            for row in table.iter().map_err(index)? {
                let (pack, lengths) = row.map_err(index)?;
                packs.push((PackId(pack.value()), lengths.value().0));
            }
            Ok(packs)
        })?;
        match unknown {
            Some(name) => Err(BackupStoreError::Table { name }),
            None => Ok(packs),
        }
    }
}

fn copy_table<K: Key + 'static, V: Value + 'static>(
    from: &ReadTransaction,
    to: &WriteTransaction,
    definition: TableDefinition<'static, K, V>,
) -> Result<(), StoreError> {
    let source = match from.open_table(definition) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(()),
        source => source.map_err(index)?,
    };
    let mut target = to.open_table(definition).map_err(index)?;
    for row in source.iter().map_err(index)? {
        let (key, value) = row.map_err(index)?;
        target.insert(key.value(), value.value()).map_err(index)?;
    }
    Ok(())
}
