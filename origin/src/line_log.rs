//! An append-only log of bounded size in DATA: one JSON document a line, in two files.
//!
//! ```text
//! DATA/events        the newest lines
//! DATA/events.old    the lines before them; replaced when `events` is full
//! ```
//!
//! Lines are numbered from 1 without gaps, so that a reader notices which ones are gone. One owner appends;
//! anybody reads, without a lock. A crash leaves at most an incomplete last line, which the next start cuts
//! off.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use syncd_runtime::key_file;
use syncd_shared::text::rfc3339;

/// Size at which a file becomes the old one. A log takes at most twice as much.
const FILE_MAX_BYTES: u64 = 4 << 20;
const OLD: &str = "old";

/// Appending to a log, or reading it, failed.
#[derive(Debug, thiserror::Error)]
pub enum LineLogError {
    #[error("write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
}

/// A line of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbered<T> {
    pub number: u64,
    /// RFC 3339.
    pub at: String,
    #[serde(flatten)]
    pub what: T,
}

/// When an appended line survives a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// On return.
    Synced,
    /// Once the kernel has written it, or after [`LineLog::sync`]. It survives the end of the process at
    /// once.
    Written,
}

/// The owner's side of a log.
#[derive(Debug)]
pub struct LineLog {
    path: PathBuf,
    file: File,
    bytes: u64,
    /// Number of the next line.
    next: u64,
    /// The file has a line that may not be durable.
    is_behind: bool,
    file_max_bytes: u64,
}

impl LineLog {
    /// Opens the log, or creates an empty one. Blocks.
    pub fn open(path: &Path) -> Result<Self, LineLogError> {
        Self::open_inner(path).map_err(|source| LineLogError::Read { path: path.to_owned(), source })
    }

    fn open_inner(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        let length = text.len();
        let text = whole_lines(text);
        let whole = text.len();
        if whole < length {
            file.set_len(whole as u64)?;
        }
        let last = match last_number(&text) {
            Some(last) => Some(last),
            None => read_file(&old(path))?.and_then(|(_, text)| last_number(&text)),
        };
        let next = last.unwrap_or(0).saturating_add(1);
        let (path, bytes) = (path.to_owned(), whole as u64);
        Ok(Self { path, file, bytes, next, is_behind: false, file_max_bytes: FILE_MAX_BYTES })
    }

    /// Appends a line with the time `at_ms`, and returns it. After an error the line may be there or not.
    /// Blocks.
    pub fn append<T: Serialize>(
        &mut self,
        at_ms: i64,
        what: T,
        durability: Durability,
    ) -> Result<Numbered<T>, LineLogError> {
        let line = Numbered { number: self.next, at: rfc3339(at_ms), what };
        self.write(&line, durability)
            .map_err(|source| LineLogError::Write { path: self.path.clone(), source })?;
        self.next = self.next.saturating_add(1);
        Ok(line)
    }

    fn write(&mut self, line: &impl Serialize, durability: Durability) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        let length = text.len() as u64;
        if self.bytes > 0 && self.bytes.saturating_add(length) > self.file_max_bytes {
            self.rotate()?;
        }
        if let Err(error) = self.file.write_all(&text) {
            // A part of the line may be there; the next line must not follow it.
            self.file.set_len(self.bytes)?;
            return Err(error);
        }
        self.bytes = self.bytes.saturating_add(length);
        self.is_behind = true;
        match durability {
            Durability::Synced => self.sync_data(),
            Durability::Written => Ok(()),
        }
    }

    /// Makes every line durable. Blocks.
    pub fn sync(&mut self) -> Result<(), LineLogError> {
        self.sync_data().map_err(|source| LineLogError::Write { path: self.path.clone(), source })
    }

    /// A sync that failed is not repeated: the kernel counts the lines as written then.
    fn sync_data(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.is_behind) { self.file.sync_data() } else { Ok(()) }
    }

    /// Makes the file the old one and starts an empty one.
    fn rotate(&mut self) -> io::Result<()> {
        self.sync_data()?;
        std::fs::rename(&self.path, old(&self.path))?;
        self.file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&self.path)?;
        self.bytes = 0;
        key_file::sync_directory(self.path.parent().unwrap_or(Path::new("."))).map_err(io::Error::other)
    }
}

/// All lines of the log, oldest first; empty if there is none. Lines of another version that are not
/// understood are left out. Blocks.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<Numbered<T>>, LineLogError> {
    let texts = read_files(path)?;
    let lines = texts.iter().flat_map(|(_, text)| text.split_inclusive(|&byte| byte == b'\n'));
    Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

/// Copies a log, whose owner may append meanwhile, to `to`. Contents are durable on return, names are not.
/// Blocks.
pub fn copy(path: &Path, to: &Path) -> Result<(), LineLogError> {
    for (is_old, text) in read_files(path)? {
        let target = if is_old { old(to) } else { to.to_owned() };
        let options = OpenOptions::new().write(true).create_new(true).mode(0o600).clone();
        let written = options.open(&target).and_then(|mut file| {
            file.write_all(&text)?;
            file.sync_all()
        });
        written.map_err(|source| LineLogError::Write { path: target, source })?;
    }
    Ok(())
}

/// Whole lines of the files that exist, the old one first, and whether it is that one.
fn read_files(path: &Path) -> Result<Vec<(bool, Vec<u8>)>, LineLogError> {
    let failed = |source| LineLogError::Read { path: path.to_owned(), source };
    let newest = read_file(path).map_err(failed)?;
    // If the owner rotates in between, both names lead to one file.
    let before = read_file(&old(path)).map_err(failed)?;
    let before = before.filter(|(inode, _)| newest.as_ref().is_none_or(|(newest, _)| inode != newest));
    let files = [before.map(|(_, text)| (true, text)), newest.map(|(_, text)| (false, text))];
    Ok(files.into_iter().flatten().map(|(is_old, text)| (is_old, whole_lines(text))).collect())
}

/// Without an incomplete last line.
fn whole_lines(mut text: Vec<u8>) -> Vec<u8> {
    text.truncate(text.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at.saturating_add(1)));
    text
}

fn old(path: &Path) -> PathBuf {
    path.with_extension(OLD)
}

/// Inode and content of a file; `None` if it is missing.
fn read_file(path: &Path) -> io::Result<Option<(u64, Vec<u8>)>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut text)?;
    Ok(Some((file.metadata()?.ino(), text)))
}

fn last_number(text: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Line {
        number: u64,
    }
    let lines = text.split(|&byte| byte == b'\n').rev();
    lines.filter_map(|line| serde_json::from_slice::<Line>(line).ok()).map(|line| line.number).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    struct Word {
        word: String,
    }

    fn word(word: &str) -> Word {
        Word { word: word.to_owned() }
    }

    fn append(log: &mut LineLog, text: &str) -> u64 {
        log.append(0, word(text), Durability::Written).unwrap().number
    }

    fn numbers(path: &Path) -> Vec<u64> {
        read::<Word>(path).unwrap().iter().map(|line| line.number).collect()
    }

    #[test]
    fn a_sync_is_not_repeated_without_a_new_line() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = LineLog::open(&directory.path().join("audit")).unwrap();
        assert!(!log.is_behind);
        append(&mut log, "written");
        assert!(log.is_behind);
        log.sync().unwrap();
        assert!(!log.is_behind);
        log.append(0, word("synced"), Durability::Synced).unwrap();
        assert!(!log.is_behind);
    }

    #[test]
    fn the_newest_lines_are_kept_and_numbers_go_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        assert!(numbers(&path).is_empty());
        let mut log = LineLog::open(&path).unwrap();
        log.file_max_bytes = 1000;
        for expected in 1..=100 {
            assert_eq!(append(&mut log, "some text"), expected);
        }
        let kept = numbers(&path);
        assert!(kept.len() > 15 && kept.len() < 35, "{kept:?}");
        assert!(kept.windows(2).all(|pair| pair[1] == pair[0] + 1) && kept.last() == Some(&100), "{kept:?}");
        let sizes = [path.clone(), old(&path)].map(|path| std::fs::metadata(path).unwrap().len());
        assert!(sizes.iter().all(|size| *size <= 1000), "{sizes:?}");
        drop(log);
        assert_eq!(append(&mut LineLog::open(&path).unwrap(), "after a restart"), 101);
    }

    #[test]
    fn a_cut_line_goes_and_a_foreign_one_is_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        append(&mut LineLog::open(&path).unwrap(), "one");
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"number\":2,\"at\":\"x\",\"other\":1}\n{\"number\":3,\"at\":").unwrap();
        assert_eq!(numbers(&path), [1]);
        let mut log = LineLog::open(&path).unwrap();
        assert_eq!(append(&mut log, "two"), 3);
        assert_eq!(numbers(&path), [1, 3]);
        // A restart right after the rotation.
        std::fs::rename(&path, old(&path)).unwrap();
        let mut log = LineLog::open(&path).unwrap();
        assert_eq!(append(&mut log, "three"), 4);
        assert_eq!(numbers(&path), [1, 3, 4]);
        // A copy has both files, and not a line that is being written.
        log.file.write_all(b"{\"number\":5,\"at\":").unwrap();
        let copied = directory.path().join("copy");
        copy(&path, &copied).unwrap();
        assert_eq!(numbers(&copied), [1, 3, 4]);
        assert_eq!(append(&mut LineLog::open(&copied).unwrap(), "in the copy"), 5);
    }
}
