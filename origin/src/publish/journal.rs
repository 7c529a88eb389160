//! DATA/published: packs in the object store that no published generation lists yet.
//!
//! A crash leaves whole lines, and at most one that is cut, which is ignored.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use syncd_shared::published::PackRef;

use super::error::PublishError;

const FILE: &str = "published";

pub(super) struct Journal {
    path: PathBuf,
}

impl Journal {
    pub(super) fn new(data: &Path) -> Self {
        Self { path: data.join(FILE) }
    }

    fn failed(&self) -> impl FnOnce(io::Error) -> PublishError {
        let path = self.path.clone();
        |source| PublishError::Journal { path, source }
    }

    /// The packs, as far as the lines are whole.
    pub(super) fn read(&self) -> Result<Vec<PackRef>, PublishError> {
        match fs::read_to_string(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            read => Ok(read.map_err(self.failed())?.split_inclusive('\n').filter_map(pack).collect()),
        }
    }

    pub(super) fn add(&self, pack: &PackRef) -> Result<(), PublishError> {
        let line = format!("{} {} {}\n", HEXLOWER.encode(&pack.name), pack.bytes, pack.table_bytes);
        let mut file = File::options().create(true).append(true).open(&self.path).map_err(self.failed())?;
        file.write_all(line.as_bytes()).and_then(|()| file.sync_data()).map_err(self.failed())
    }

    /// Forgets all packs: a published generation lists them.
    pub(super) fn clear(&self) -> Result<(), PublishError> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(self.failed()),
        }
    }
}

fn pack(line: &str) -> Option<PackRef> {
    let mut words = line.strip_suffix('\n')?.split(' ');
    let name = HEXLOWER.decode(words.next()?.as_bytes()).ok()?.try_into().ok()?;
    let (bytes, table_bytes) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some(PackRef { name, bytes, table_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_come_back_without_a_line_that_was_cut() {
        let data = tempfile::tempdir().unwrap();
        let journal = Journal::new(data.path());
        assert!(journal.read().unwrap().is_empty());
        let pack = |n: u8| PackRef { name: [n; 32], bytes: 9 + u64::from(n), table_bytes: n.into() };
        journal.add(&pack(1)).unwrap();
        journal.add(&pack(2)).unwrap();
        assert_eq!(journal.read().unwrap(), [pack(1), pack(2)]);
        let path = data.path().join(FILE);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, &text[..text.len() - 1]).unwrap();
        assert_eq!(journal.read().unwrap(), [pack(1)]);
        journal.clear().unwrap();
        assert!(journal.read().unwrap().is_empty());
    }
}
