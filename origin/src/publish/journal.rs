//! DATA/published: what differs between the object store and the packs that the last published generation
//! lists.
//!
//! ```text
//! pack NAME BYTES TABLE-BYTES    put since, and listed by no generation yet
//! drop NAME                      not to be listed by the next generation: most of it is out of use
//! lost NAME                      missing or damaged: the last generation must be listed anew, without it
//! ```
//!
//! A crash leaves whole lines, and at most one that is cut, which is ignored.

use std::collections::HashSet;
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

/// Content of the journal.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pending {
    pub(super) packs: Vec<PackRef>,
    pub(super) dropped: HashSet<[u8; 32]>,
    /// Packs and updates.
    pub(super) lost: HashSet<[u8; 32]>,
}

impl Pending {
    /// Whether a pack that a generation lists is not to be listed again.
    pub(super) fn leaves_out(&self, name: &[u8; 32]) -> bool {
        self.dropped.contains(name) || self.lost.contains(name)
    }

    fn read_line(&mut self, line: &str) -> Option<()> {
        let mut words = line.strip_suffix('\n')?.split(' ');
        let (kind, name) = (words.next()?, HEXLOWER.decode(words.next()?.as_bytes()).ok()?.try_into().ok()?);
        match kind {
            "pack" => {
                let (bytes, table_bytes) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
                self.packs.push(PackRef { name, bytes, table_bytes });
            }
            "drop" => _ = self.dropped.insert(name),
            "lost" => _ = self.lost.insert(name),
            _ => return None,
        }
        Some(())
    }
}

impl Journal {
    pub(super) fn new(data: &Path) -> Self {
        Self { path: data.join(FILE) }
    }

    fn failed(&self) -> impl FnOnce(io::Error) -> PublishError {
        let path = self.path.clone();
        |source| PublishError::Journal { path, source }
    }

    /// The journal, as far as its lines are whole.
    pub(super) fn read(&self) -> Result<Pending, PublishError> {
        let text = match fs::read_to_string(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            read => read.map_err(self.failed())?,
        };
        let mut pending = Pending::default();
        text.split_inclusive('\n').for_each(|line| _ = pending.read_line(line));
        Ok(pending)
    }

    /// Notes a pack that was put. Durable on return, as are the other notes.
    pub(super) fn add(&self, pack: &PackRef) -> Result<(), PublishError> {
        self.append(&format!("pack {} {} {}\n", HEXLOWER.encode(&pack.name), pack.bytes, pack.table_bytes))
    }

    /// Notes packs that the next generation does not list.
    pub(super) fn drop_packs(&self, names: &[[u8; 32]]) -> Result<(), PublishError> {
        self.append(&names.iter().map(|name| format!("drop {}\n", HEXLOWER.encode(name))).collect::<String>())
    }

    /// Notes packs and updates that must be put again.
    pub(super) fn lose(&self, names: &[[u8; 32]]) -> Result<(), PublishError> {
        self.append(&names.iter().map(|name| format!("lost {}\n", HEXLOWER.encode(name))).collect::<String>())
    }

    fn append(&self, lines: &str) -> Result<(), PublishError> {
        let mut file = File::options().create(true).append(true).open(&self.path).map_err(self.failed())?;
        file.write_all(lines.as_bytes()).and_then(|()| file.sync_data()).map_err(self.failed())
    }

    /// Forgets everything: a generation was published that lists what is there.
    pub(super) fn clear(&self) -> Result<(), PublishError> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(self.failed()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_come_back_without_a_line_that_was_cut() {
        let data = tempfile::tempdir().unwrap();
        let journal = Journal::new(data.path());
        assert_eq!(journal.read().unwrap(), Pending::default());
        let pack = |n: u8| PackRef { name: [n; 32], bytes: 9 + u64::from(n), table_bytes: n.into() };
        journal.add(&pack(1)).unwrap();
        journal.drop_packs(&[[3; 32], [4; 32]]).unwrap();
        journal.lose(&[[5; 32]]).unwrap();
        journal.add(&pack(2)).unwrap();
        let read = journal.read().unwrap();
        assert_eq!(read.packs, [pack(1), pack(2)]);
        assert!(read.leaves_out(&[4; 32]) && read.leaves_out(&[5; 32]) && !read.leaves_out(&[1; 32]));
        assert_eq!(read.lost, HashSet::from([[5; 32]]));
        let path = data.path().join(FILE);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, &text[..text.len() - 1]).unwrap();
        assert_eq!(journal.read().unwrap().packs, [pack(1)]);
        journal.clear().unwrap();
        assert_eq!(journal.read().unwrap(), Pending::default());
    }
}
