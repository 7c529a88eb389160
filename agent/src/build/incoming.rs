//! Keeps content that arrived or was copied in `staging/incoming`: one file for each content, named by its
//! hash.
//!
//! Files here are not part of a tree, so an interrupted transfer touches no tree. The next attempt finds what
//! has arrived, also when it has another target. A file gets its name once it is verified. Files that an
//! earlier process left are hashed again before they count, because a power cut may have emptied them.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

mod partial;
mod remains;

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fs::FileType;
use syncd_shared::wire::WireError;
use syncd_shared::{ContentHash, Metadata};

use crate::build::StageError;
use crate::state::disk::{self, Dir, DiskError, Owners};
use crate::state::hashing::hash_file;
use crate::state::layout::{INCOMING, Layout};

use self::partial::Partial;

/// Number of directories that arriving files are spread over, so that workers do not wait for each other.
const FANS: usize = 16;
const FAN_NAMES: &[u8; FANS] = b"0123456789abcdef";
const BUFFER_BYTES: usize = 128 * 1024;
/// Files of at most this size are copied through memory.
const SMALL_BYTES: u64 = BUFFER_BYTES as u64;
/// Limit of the stretches of one file that wait for bytes before them. Pieces arrive nearly in order, so a
/// few suffice.
const AHEAD_MOST: usize = 32 * 1024;
/// A larger directory is moved to the trash instead of being emptied name by name.
const SMALL_DIRECTORY_BYTES: u64 = 16 * 1024;

/// Content to be obtained.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    /// Length in bytes, never 0.
    pub size: u64,
    /// Metadata of the first user, set while the file is open.
    pub metadata: Metadata,
    /// Number of paths that need it.
    pub users: u32,
}

/// Verified content in `incoming`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrived {
    pub inode: u64,
    /// Metadata that the file already has.
    pub dressed: Option<Metadata>,
}

/// The directory `staging/incoming`. Shared by the workers.
pub(crate) struct Incoming {
    dir: Dir,
    fans: [OnceLock<Dir>; FANS],
    owners: Owners,
    arrived: Mutex<HashMap<ContentHash, Arrived>>,
    /// Complete contents that were written, or that a worker is writing.
    written: Mutex<HashSet<ContentHash>>,
    partial: Mutex<HashMap<ContentHash, Arc<Mutex<Partial>>>>,
    /// Number of partial files begun, which makes their names unique.
    parts: AtomicU64,
    /// Whether the directory may have files that were not yet checked.
    leftovers: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(doing: &'static str, dir: &Dir, name: &str) -> impl Fn(std::io::Error) -> DiskError {
    move |source| dir.failed_at(doing, name.as_bytes(), source)
}

impl Incoming {
    /// Opens the directory. Removes partial files of an earlier process; complete files are hashed when they
    /// are asked for.
    pub fn open(layout: &Layout, owners: Owners) -> Result<Self, DiskError> {
        let dir = layout.own_dir(&layout.staging, INCOMING)?;
        let mut leftovers = false;
        for fan in dir.list()? {
            let fan_dir = match dir.open_dir(&fan.name) {
                Err(e) if e.is_no_directory() => {
                    layout.remove(&dir, &fan.name)?;
                    continue;
                }
                other => other?,
            };
            for file in fan_dir.list()? {
                // A file moved here from a tree may have been replaced by a directory: somebody may have had
                // the tree open.
                let is_file = match file.directory {
                    Some(directory) => !directory,
                    None => fan_dir.stat(&file.name)?.is_some_and(|s| s.kind == FileType::RegularFile),
                };
                match content_named(&file.name).filter(|_| is_file) {
                    Some(_) => leftovers = true,
                    None => layout.remove(&fan_dir, &file.name)?,
                }
            }
        }
        Ok(Self {
            dir,
            fans: Default::default(),
            owners,
            arrived: Mutex::default(),
            written: Mutex::default(),
            partial: Mutex::default(),
            parts: AtomicU64::new(0),
            leftovers: AtomicBool::new(leftovers),
        })
    }

    #[cfg_attr(not(test), expect(clippy::indexing_slicing, reason = "one for each value of half a byte"))]
    fn fan(&self, hash: ContentHash) -> Result<&Dir, DiskError> {
        let index = usize::from(hash.as_bytes()[0] >> 4);
        let (fan, name) = (&self.fans[index], &FAN_NAMES[index..=index]);
        if let Some(dir) = fan.get() {
            return Ok(dir);
        }
        // Two workers may create it at the same time.
        let dir = match self.dir.ensure_dir(name, 0o700) {
            Err(e) if e.source.kind() == std::io::ErrorKind::AlreadyExists => self.dir.open_dir(name),
            other => other,
        }?;
        Ok(fan.get_or_init(|| dir))
    }

    /// Whether verified content is here. Hashes a file that an earlier attempt left.
    pub fn has(&self, hash: ContentHash, size: u64) -> Result<bool, StageError> {
        if lock(&self.arrived).contains_key(&hash) {
            return Ok(true);
        }
        if !self.leftovers.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let (fan, name) = (self.fan(hash)?, hash.to_string());
        let file = match fan.open_file(name.as_bytes()) {
            Err(e) if e.is_absent() => return Ok(false),
            other => other?,
        };
        disk::drop_cached(&file);
        let stat = disk::stat_file(&file).map_err(failed("inspect", fan, &name))?;
        if stat.kind == FileType::Directory {
            // The next attempt removes it when it opens the directory.
            return Err(fan
                .failed_at("read", name.as_bytes(), std::io::ErrorKind::IsADirectory.into())
                .into());
        }
        if stat.size == size && hash_file(&file).map_err(failed("read", fan, &name))? == hash {
            lock(&self.arrived).insert(hash, Arrived { inode: stat.inode, dressed: None });
            return Ok(true);
        }
        fan.unlink(name.as_bytes())?;
        Ok(false)
    }

    /// Describes content that is here.
    pub fn arrived(&self, hash: ContentHash) -> Option<Arrived> {
        lock(&self.arrived).get(&hash).copied()
    }

    /// Writes one complete content, verified in memory, directly under its name: after a crash it is hashed
    /// again before it counts. Returns `false` when another worker writes it.
    fn put_whole(&self, hash: ContentHash, bytes: &[u8], wanted: &Wanted) -> Result<bool, StageError> {
        if !lock(&self.written).insert(hash) {
            return Ok(false);
        }
        let (fan, name) = (self.fan(hash)?, hash.to_string());
        let file = create_anew(fan, &name, wanted.metadata.mode)?;
        write_whole(&file, bytes).map_err(failed("write", fan, &name))?;
        let inode = disk::dress(&file, &wanted.metadata, self.owners).map_err(failed(
            "set the metadata of",
            fan,
            &name,
        ))?;
        lock(&self.arrived).insert(hash, Arrived { inode, dressed: Some(wanted.metadata) });
        Ok(true)
    }

    fn finish(
        &self,
        hash: ContentHash,
        fan: &Dir,
        file: &std::fs::File,
        part: &str,
        wanted: &Wanted,
    ) -> Result<(), StageError> {
        let inode = disk::dress(file, &wanted.metadata, self.owners).map_err(failed(
            "set the metadata of",
            fan,
            part,
        ))?;
        fan.rename(part.as_bytes(), fan, hash.to_string().as_bytes())?;
        lock(&self.arrived).insert(hash, Arrived { inode, dressed: Some(wanted.metadata) });
        Ok(())
    }

    /// Stores a stretch of a content that is wanted and missing. Returns the number of contents completed and
    /// of bytes stored.
    pub fn put(
        &self,
        hash: ContentHash,
        offset: u64,
        bytes: &[u8],
        wanted: &HashMap<ContentHash, Wanted>,
    ) -> Result<(u64, u64), StageError> {
        let Some(want) = wanted.get(&hash) else { return Ok((0, 0)) };
        if lock(&self.arrived).contains_key(&hash) {
            return Ok((0, 0));
        }
        let taken = bytes.len() as u64;
        if taken == want.size && offset == 0 {
            let actual = ContentHash::of(bytes);
            if actual != hash {
                return Err(StageError::Content { expected: hash, actual });
            }
            return Ok(if self.put_whole(hash, bytes, want)? { (1, taken) } else { (0, 0) });
        }
        Ok((u64::from(self.put_piece(hash, offset, bytes, want)?), taken))
    }

    /// Copies content that this node has under another name and verifies it on the way. Returns whether it
    /// had that hash. Different contents may be copied concurrently.
    pub fn copy(
        &self,
        hash: ContentHash,
        wanted: &Wanted,
        dir: &Dir,
        name: &[u8],
    ) -> Result<bool, StageError> {
        let (fan, own) = (self.fan(hash)?, hash.to_string());
        let part = format!("{own}.part");
        let Ok(from) = dir.open_file(name) else { return Ok(false) };
        match disk::stat_file(&from) {
            Ok(s) if s.kind == FileType::RegularFile && s.size == wanted.size => {}
            _ => return Ok(false),
        }
        if wanted.size <= SMALL_BYTES {
            let mut bytes = Vec::with_capacity(wanted.size as usize);
            (&from).take(wanted.size).read_to_end(&mut bytes).map_err(failed("read", dir, &own))?;
            return Ok(ContentHash::of(&bytes) == hash && self.put_whole(hash, &bytes, wanted)?);
        }
        let file = create_anew(fan, &part, wanted.metadata.mode)?;
        disk::copy(&from, &file).map_err(failed("copy to", fan, &part))?;
        if hash_file(&file).map_err(failed("read", fan, &part))? != hash {
            fan.unlink(part.as_bytes())?;
            return Ok(false);
        }
        self.finish(hash, fan, &file, &part, wanted)?;
        Ok(true)
    }

    /// Copies a file from any directory, unless its content is here. Returns whether it was copied: not if it
    /// changes or disappears meanwhile.
    pub fn adopt(&self, wanted: &Wanted, dir: &Dir, name: &[u8]) -> Result<bool, StageError> {
        let Ok(file) = dir.open_file(name) else { return Ok(false) };
        let hash = hash_file(&file).map_err(failed("read", dir, &String::from_utf8_lossy(name)))?;
        Ok(self.arrived(hash).is_none() && self.copy(hash, wanted, dir, name)?)
    }

    /// Moves a file here from a tree that an interrupted attempt left, if it has this content. Returns
    /// whether it had.
    pub fn salvage(&self, hash: ContentHash, size: u64, dir: &Dir, name: &[u8]) -> Result<bool, StageError> {
        let Some(stat) = dir.stat(name)? else { return Ok(false) };
        if stat.kind != FileType::RegularFile || stat.size != size || stat.links != 1 {
            return Ok(false);
        }
        let Ok(file) = dir.open_file(name) else { return Ok(false) };
        disk::drop_cached(&file);
        if hash_file(&file).map_err(failed("read", dir, &String::from_utf8_lossy(name)))? != hash {
            return Ok(false);
        }
        dir.make_writable()?;
        dir.rename(name, self.fan(hash)?, hash.to_string().as_bytes())?;
        // The file is hashed again when it is needed, because remembering each one takes memory.
        self.leftovers.store(true, Ordering::Relaxed);
        Ok(true)
    }

    /// Puts content into a tree and returns the inode number at `name`. The last user gets the file itself,
    /// in place of what is at the name. Other users get a copy under a free name.
    pub fn place(
        &self,
        hash: ContentHash,
        metadata: &Metadata,
        last: bool,
        to: &Dir,
        name: &[u8],
    ) -> Result<u64, StageError> {
        let arrived = self.arrived(hash).ok_or(StageError::Missing { content: hash })?;
        let (fan, own) = (self.fan(hash)?, hash.to_string());
        if last {
            fan.rename(own.as_bytes(), to, name)?;
            lock(&self.arrived).remove(&hash);
            if arrived.dressed != Some(*metadata) {
                to.set_metadata(name, metadata, self.owners, false)?;
            }
            return Ok(arrived.inode);
        }
        let from = fan.open_file(own.as_bytes())?;
        let file = to.create_file(name)?;
        disk::copy(&from, &file).map_err(failed("copy to", to, &String::from_utf8_lossy(name)))?;
        Ok(disk::dress(&file, metadata, self.owners).map_err(failed(
            "set the metadata of",
            to,
            &String::from_utf8_lossy(name),
        ))?)
    }
}

/// A stretch of a decoded frame. The bounds were checked when the frame was read.
pub(crate) fn stretch(bytes: &[u8], start: usize, length: usize) -> Result<&[u8], StageError> {
    let stretch = bytes.get(start..).and_then(|bytes| bytes.get(..length));
    stretch.ok_or(StageError::Frame(WireError::PieceRange))
}

/// Parses the content hash from a file name.
fn content_named(name: &[u8]) -> Option<ContentHash> {
    std::str::from_utf8(name).ok()?.parse().ok()
}

/// Writes a complete content to a new file and leaves holes in place of zeros.
pub(crate) fn write_whole(file: &std::fs::File, bytes: &[u8]) -> std::io::Result<()> {
    disk::write_sparse_at(file, bytes, 0)?;
    // The last block may be a hole, which does not extend the file.
    if bytes.last() == Some(&0) { file.set_len(bytes.len() as u64) } else { Ok(()) }
}

/// Creates a file for arriving content, in place of one that was cut off.
fn create_anew(fan: &Dir, name: &str, mode: u16) -> Result<std::fs::File, DiskError> {
    match fan.create_file_with(name.as_bytes(), mode.into()) {
        Err(e) if e.source.kind() == std::io::ErrorKind::AlreadyExists => {
            fan.unlink(name.as_bytes())?;
            fan.create_file_with(name.as_bytes(), mode.into())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use syncd_shared::Timestamp;

    use super::*;

    fn incoming() -> (tempfile::TempDir, Incoming) {
        let temp = tempfile::tempdir().unwrap();
        let layout = Layout::open(temp.path(), None).unwrap();
        let incoming = Incoming::open(&layout, Owners::new(None)).unwrap();
        (temp, incoming)
    }

    fn wanted(size: u64, mode: u16) -> Wanted {
        let metadata = Metadata { mode, uid: 0, gid: 0, mtime: Timestamp::default() };
        Wanted { size, metadata, users: 1 }
    }

    /// Names and contents of the files in the directory.
    fn files(temp: &tempfile::TempDir) -> Vec<(String, Vec<u8>)> {
        let fans = std::fs::read_dir(temp.path().join("staging/incoming")).unwrap();
        let files = fans.flat_map(|fan| std::fs::read_dir(fan.unwrap().path()).unwrap());
        let file = |file: std::io::Result<std::fs::DirEntry>| {
            let path = file.unwrap().path();
            (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(path).unwrap())
        };
        files.map(file).collect()
    }

    /// Bytes that the files in the directory occupy on disk.
    fn allocated(temp: &tempfile::TempDir) -> u64 {
        use std::os::unix::fs::MetadataExt;
        let fans = std::fs::read_dir(temp.path().join("staging/incoming")).unwrap();
        let files = fans.flat_map(|fan| std::fs::read_dir(fan.unwrap().path()).unwrap());
        files.map(|file| file.unwrap().metadata().unwrap().blocks() * 512).sum()
    }

    #[test]
    fn holes_stay_holes_whole_in_pieces_and_copied() {
        let mut content = vec![0u8; 3_000_001];
        for at in [5_000, 1_000_000, 2_000_003] {
            content[at..at + 3].copy_from_slice(b"abc");
        }
        let (hash, wanted) = (ContentHash::of(&content), wanted(content.len() as u64, 0o600));
        let is_right = |temp: &tempfile::TempDir, how: &str| {
            assert_eq!(files(temp), [(hash.to_string(), content.clone())], "{how}");
            assert!(allocated(temp) <= 8 * 4096, "{how}: {}", allocated(temp));
        };
        let (temp, whole) = incoming();
        whole.put_whole(hash, &content, &wanted).unwrap();
        is_right(&temp, "whole");
        for pieces in [[0, 1, 2, 3], [3, 1, 0, 2]] {
            let (temp, incoming) = incoming();
            for piece in pieces {
                let start = piece * 750_001;
                let end = content.len().min(start + 750_001);
                incoming.put_piece(hash, start as u64, &content[start..end], &wanted).unwrap();
            }
            is_right(&temp, "pieces");
        }
        let (copied_temp, copied) = incoming();
        let fan = Dir::open_path(&temp.path().join("staging/incoming").join(&hash.to_string()[..1])).unwrap();
        assert!(copied.copy(hash, &wanted, &fan, hash.to_string().as_bytes()).unwrap());
        is_right(&copied_temp, "copied");
        // Zeros alone, of several blocks and of less than one.
        for bytes in [vec![0u8; 8192], vec![0u8; 100]] {
            let (temp, incoming) = self::incoming();
            let hash = ContentHash::of(&bytes);
            incoming.put_whole(hash, &bytes, &wanted).unwrap();
            assert_eq!(files(&temp), [(hash.to_string(), bytes)]);
        }
    }

    #[test]
    fn what_was_hashed_is_not_written_again() {
        let content = b"0123456789abcdefghij";
        let hash = ContentHash::of(content);
        let (hello, other) = (&content[..10], &content[10..]);
        let pieces: [&[(u64, &[u8], bool)]; 4] = [
            &[(0, hello, true), (0, b"junk!", false), (10, other, true)],
            &[(10, other, true), (12, b"junk!", false), (5, b"junk!!", false), (0, hello, true)],
            &[(0, hello, true), (9, b"J", false), (10, b"", false), (19, b"JJ", false), (10, other, true)],
            &[
                (15, &content[15..], true),
                (5, &content[5..10], true),
                (4, b"JJ", false),
                (0, &content[..5], true),
                (9, b"JJ", false),
                (10, &content[10..15], true),
                (0, b"J", true),
            ],
        ];
        for pieces in pieces {
            let (temp, incoming) = incoming();
            for (offset, bytes, taken) in pieces {
                let put = incoming.put_piece(hash, *offset, bytes, &wanted(20, 0o444));
                assert_eq!(put.is_ok(), *taken, "{offset}: {put:?}");
            }
            assert!(incoming.arrived(hash).is_some());
            assert_eq!(files(&temp), [(hash.to_string(), content.to_vec())]);
        }
    }

    #[test]
    fn a_part_that_was_given_up_or_is_wrong_starts_anew() {
        let content = vec![7; 300_000];
        let (hash, wanted) = (ContentHash::of(&content), wanted(300_000, 0o640));
        let (temp, incoming) = incoming();
        assert!(!incoming.put_piece(hash, 100_000, &content[100_000..200_000], &wanted).unwrap());
        incoming.drop_part(hash);
        assert!(files(&temp).is_empty());
        let wrong = vec![8; 300_000];
        assert!(!incoming.put_piece(hash, 0, &wrong[..150_000], &wanted).unwrap());
        assert!(incoming.put_piece(hash, 150_000, &wrong[150_000..], &wanted).is_err());
        assert!(files(&temp).is_empty());
        for start in [200_000, 0, 100_000] {
            let whole =
                incoming.put_piece(hash, start as u64, &content[start..start + 100_000], &wanted).unwrap();
            assert_eq!(whole, start == 100_000);
        }
        assert_eq!(files(&temp), [(hash.to_string(), content)]);
    }

    #[test]
    fn threads_that_give_up_and_begin_at_once_leave_nothing_unverified() {
        let content: Vec<u8> = (0..400_000u32).map(|i| (i / 700) as u8).collect();
        let (hash, wanted) = (ContentHash::of(&content), wanted(400_000, 0o600));
        let (temp, incoming) = incoming();
        std::thread::scope(|scope| {
            for thread in 0..4usize {
                let (incoming, content) = (&incoming, &content);
                scope.spawn(move || {
                    for round in 0..200usize {
                        let start = (thread + round) % 4 * 100_000;
                        // A stretch that another thread wrote is refused; no other error may occur.
                        match incoming.put_piece(
                            hash,
                            start as u64,
                            &content[start..start + 100_000],
                            &wanted,
                        ) {
                            Ok(_) | Err(StageError::PieceOutside { .. }) => {}
                            Err(error) => panic!("{error:?}"),
                        }
                        if round % 7 == thread {
                            incoming.drop_part(hash);
                        }
                    }
                });
            }
        });
        for start in [0, 100_000, 200_000, 300_000] {
            let _ = incoming.put_piece(hash, start as u64, &content[start..start + 100_000], &wanted);
        }
        let whole = files(&temp).into_iter().find(|(name, _)| *name == hash.to_string());
        assert_eq!(whole.map(|(_, bytes)| bytes == content), Some(true));
    }
}
