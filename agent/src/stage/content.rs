//! Content that arrived or was copied: `staging/incoming`, one file for each content, verified when it gets its name.
//!
//! Nothing here is part of a tree yet, so an interrupted transfer touches no tree, and the next attempt, also for
//! another target, finds what came. What an earlier process left is hashed again before it counts: a power cut may
//! have emptied it.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::io::{Read, Seek};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use syncd_shared::diff::{Change, Comparison};
use syncd_shared::stored_frame::{FrameBuffer, StoredFrame};
use syncd_shared::wire::WireError;
use syncd_shared::{ContentHash, ContentTag, Kind, Metadata};

use crate::disk::{self, Dir, DiskError, Owners};
use crate::layout::{INCOMING, Layout};
use crate::record::Record;
use crate::stage::StageError;
use crate::stage::space::Demand;

/// Directories that arriving files are spread over, so that workers don't wait for each other.
const FANS: usize = 16;
const FAN_NAMES: &[u8; FANS] = b"0123456789abcdef";
const BUFFER_BYTES: usize = 128 * 1024;
/// Files up to this are copied by way of memory.
const SMALL_BYTES: u64 = BUFFER_BYTES as u64;
/// A directory above this is not emptied name by name.
const SMALL_DIRECTORY_BYTES: u64 = 16 * 1024;

/// Content that is wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    /// Its length in bytes, never 0.
    pub size: u64,
    /// What its first user will look like: set while the file is open anyway.
    pub metadata: Metadata,
    /// Paths that need it.
    pub users: u32,
}

/// Content that is there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrived {
    /// Inode of its file.
    pub inode: u64,
    /// Metadata that the file has already.
    pub dressed: Option<Metadata>,
}

/// A file of which pieces come one by one.
struct Partial {
    hasher: blake3::Hasher,
    /// Bytes hashed, in order.
    hashed: u64,
    /// Bytes written, in any order.
    written: u64,
}

/// The directory, and what is in it. Shared by the workers.
pub(crate) struct Incoming {
    dir: Dir,
    fans: [OnceLock<Dir>; FANS],
    owners: Owners,
    arrived: Mutex<HashMap<ContentHash, Arrived>>,
    /// Whole contents that were written, or are being written by a worker.
    written: Mutex<HashSet<ContentHash>>,
    partial: Mutex<HashMap<ContentHash, std::sync::Arc<Mutex<Partial>>>>,
    /// Whether files may be there that nobody has looked at.
    leftovers: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(doing: &'static str, dir: &Dir, name: &str) -> impl Fn(std::io::Error) -> DiskError {
    move |source| dir.failed_at(doing, name.as_bytes(), source)
}

impl Incoming {
    /// Opens it; half files of an earlier process go, whole ones wait to be hashed.
    pub fn open(layout: &Layout, owners: Owners) -> Result<Self, DiskError> {
        let dir = layout.staging.ensure_dir(INCOMING, 0o700)?;
        let mut leftovers = false;
        for fan in dir.list()? {
            let fan_dir = dir.open_dir(&fan.name)?;
            for file in fan_dir.list()? {
                match content_named(&file.name) {
                    Some(_) => leftovers = true,
                    None => drop(fan_dir.unlink(&file.name)?),
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
        // Two workers may come here at once.
        let dir = match self.dir.ensure_dir(name, 0o700) {
            Err(e) if e.source.kind() == std::io::ErrorKind::AlreadyExists => self.dir.open_dir(name),
            other => other,
        }?;
        Ok(fan.get_or_init(|| dir))
    }

    /// Whether content is there, verified. What an earlier attempt left is hashed now.
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
        if stat.size == size && hash_file(&file).map_err(failed("read", fan, &name))? == hash {
            lock(&self.arrived).insert(hash, Arrived { inode: stat.inode, dressed: None });
            return Ok(true);
        }
        fan.unlink(name.as_bytes())?;
        Ok(false)
    }

    /// What is known about content that is there.
    pub fn arrived(&self, hash: ContentHash) -> Option<Arrived> {
        lock(&self.arrived).get(&hash).copied()
    }

    /// Writes one whole content that was verified in memory, under its name at once: what a crash leaves is hashed before
    /// it counts. `false`: another worker does.
    fn put_whole(&self, hash: ContentHash, bytes: &[u8], wanted: &Wanted) -> Result<bool, StageError> {
        if !lock(&self.written).insert(hash) {
            return Ok(false);
        }
        let (fan, name) = (self.fan(hash)?, hash.to_string());
        let file = create_anew(fan, &name, wanted.metadata.mode)?;
        file.write_all_at(bytes, 0).map_err(failed("write", fan, &name))?;
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
        name: &str,
        wanted: &Wanted,
    ) -> Result<(), StageError> {
        let inode = disk::dress(file, &wanted.metadata, self.owners).map_err(failed(
            "set the metadata of",
            fan,
            part,
        ))?;
        fan.rename(part.as_bytes(), fan, name.as_bytes())?;
        lock(&self.arrived).insert(hash, Arrived { inode, dressed: Some(wanted.metadata) });
        Ok(())
    }

    /// Takes the wanted pieces of a frame. Returns the contents that are whole now, and bytes taken.
    pub fn store(
        &self,
        frame: &StoredFrame,
        buffer: &mut FrameBuffer,
        content: &dyn Fn(ContentTag) -> Option<ContentHash>,
        wanted: &HashMap<ContentHash, Wanted>,
    ) -> Result<(u64, u64), StageError> {
        let bytes = buffer.decompress(frame).map_err(StageError::Frame)?;
        let (mut whole, mut taken) = (0u64, 0u64);
        for piece in &frame.pieces {
            let slice = stretch(bytes, piece.frame_offset as usize, piece.length_bytes as usize)?;
            let Some(file) = content(piece.file) else { continue };
            let (contents, bytes) = self.put(file, piece.file_offset, slice, wanted)?;
            whole = contents.saturating_add(whole);
            taken = bytes.saturating_add(taken);
        }
        Ok((whole, taken))
    }

    /// Takes a stretch of a content, if it is wanted and lacking. Returns the contents that are whole now, and bytes
    /// taken.
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

    /// Forgets the stretches that came of a content that was not made whole: the next one starts it anew.
    pub fn drop_part(&self, hash: ContentHash) {
        lock(&self.partial).remove(&hash);
    }

    /// [`Incoming::drop_part`] of all contents.
    pub fn drop_parts(&self) {
        lock(&self.partial).clear();
    }

    /// Writes a stretch of a content; whether it is whole now, and verified.
    pub fn put_piece(
        &self,
        hash: ContentHash,
        offset: u64,
        bytes: &[u8],
        want: &Wanted,
    ) -> Result<bool, StageError> {
        let outside = || StageError::PieceOutside { content: hash, size: want.size, offset };
        let end = offset.checked_add(bytes.len() as u64).ok_or_else(outside)?;
        if end > want.size {
            return Err(outside());
        }
        let (fan, name) = (self.fan(hash)?, hash.to_string());
        let part = format!("{name}.part");
        let mut created = false;
        let shared = lock(&self.partial)
            .entry(hash)
            .or_insert_with(|| {
                created = true;
                let hasher = blake3::Hasher::new();
                std::sync::Arc::new(Mutex::new(Partial { hasher, hashed: 0, written: 0 }))
            })
            .clone();
        let mut partial = lock(&shared);
        if partial.written >= want.size {
            return Err(outside());
        }
        let file = match partial.written {
            0 => create_anew(fan, &part, want.metadata.mode)?,
            _ => fan.open_file_for_write(part.as_bytes())?,
        };
        file.write_all_at(bytes, offset).map_err(failed("write", fan, &part))?;
        partial.written = partial.written.saturating_add(bytes.len() as u64);
        if partial.hashed == offset {
            partial.hasher.update(bytes);
            partial.hashed = end;
        }
        if partial.written < want.size {
            return Ok(false);
        }
        let actual = match partial.hashed == want.size {
            true => ContentHash::finish(&partial.hasher),
            false => hash_file(&file).map_err(failed("read", fan, &part))?,
        };
        lock(&self.partial).remove(&hash);
        if actual != hash {
            fan.unlink(part.as_bytes())?;
            return Err(StageError::Content { expected: hash, actual });
        }
        self.finish(hash, fan, &file, &part, &name, want)?;
        Ok(true)
    }

    /// Copies content that this node has under another name, verified on the way; whether it was that content. Contents
    /// that differ may be copied at the same time.
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
            Ok(s) if s.kind == rustix::fs::FileType::RegularFile && s.size == wanted.size => {}
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
        self.finish(hash, fan, &file, &part, &own, wanted)?;
        Ok(true)
    }

    /// Takes a file out of a tree that an interrupted attempt left, if it is this content; whether it was.
    pub fn salvage(&self, hash: ContentHash, size: u64, dir: &Dir, name: &[u8]) -> Result<bool, StageError> {
        let Some(stat) = dir.stat(name)? else { return Ok(false) };
        if stat.kind != rustix::fs::FileType::RegularFile || stat.size != size || stat.links != 1 {
            return Ok(false);
        }
        let Ok(file) = dir.open_file(name) else { return Ok(false) };
        disk::drop_cached(&file);
        if hash_file(&file).map_err(failed("read", dir, &String::from_utf8_lossy(name)))? != hash {
            return Ok(false);
        }
        dir.make_writable()?;
        dir.rename(name, self.fan(hash)?, hash.to_string().as_bytes())?;
        // Hashed once more when it is needed: what is known of each takes memory.
        self.leftovers.store(true, Ordering::Relaxed);
        Ok(true)
    }

    /// All that arrived is in its place: what comes again is written again.
    pub fn end_part(&self) {
        lock(&self.written).clear();
        lock(&self.partial).clear();
    }

    /// Puts content into a tree: the file itself for its last user, in the place of what is at the name, else a copy under
    /// a free name. The inode number of what is there now.
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

    /// Bytes and files that are in it, whatever they are worth.
    pub fn present(&self) -> Result<Demand, DiskError> {
        let mut present = Demand::default();
        for fan in self.dir.list()? {
            let fan_dir = self.dir.open_dir(&fan.name)?;
            for file in fan_dir.list()? {
                let size = fan_dir.stat(&file.name)?.map_or(0, |s| s.size);
                present.bytes = present.bytes.saturating_add(size);
                present.inodes = present.inodes.saturating_add(1);
            }
        }
        Ok(present)
    }

    /// Removes content that the second tree does not need where the first has other: what was left of another target.
    pub fn purge(&self, comparison: &Comparison<&Record>) -> Result<(), StageError> {
        let mut there = HashSet::new();
        for fan in self.dir.list()? {
            let names = self.dir.open_dir(&fan.name)?.list()?;
            there.extend(names.iter().filter_map(|file| content_named(&file.name)));
        }
        if there.is_empty() {
            return Ok(());
        }
        comparison.each(|change| {
            if let Change::Added { entry, .. } | Change::Modified { to: entry, .. } = change
                && let Kind::File { content, .. } = entry.kind
            {
                there.remove(&content);
            }
            true
        })?;
        for hash in there {
            self.fan(hash)?.unlink(hash.to_string().as_bytes())?;
            lock(&self.arrived).remove(&hash);
        }
        Ok(())
    }

    /// Removes everything that is in it. A directory never shrinks on ext4, and listing one that once held many names
    /// costs milliseconds for ever: none is kept, and large ones are left to the trash.
    pub fn clear(self, layout: &Layout) -> Result<(), DiskError> {
        for fan in self.dir.list()? {
            let fan_dir = self.dir.open_dir(&fan.name)?;
            if fan_dir.stat_self()?.size > SMALL_DIRECTORY_BYTES {
                return layout.discard(&layout.staging, INCOMING);
            }
            for file in fan_dir.list()? {
                fan_dir.unlink(&file.name)?;
            }
            self.dir.remove_dir(&fan.name)?;
        }
        Ok(())
    }
}

/// A stretch of what a frame brought. That it lies inside was checked when the frame was read.
pub(crate) fn stretch(bytes: &[u8], start: usize, length: usize) -> Result<&[u8], StageError> {
    let stretch = bytes.get(start..).and_then(|bytes| bytes.get(..length));
    stretch.ok_or(StageError::Frame(WireError::PieceRange))
}

/// The content that a file is named by.
fn content_named(name: &[u8]) -> Option<ContentHash> {
    std::str::from_utf8(name).ok()?.parse().ok()
}

/// A new file for content that arrives, in the place of one that was cut off.
fn create_anew(fan: &Dir, name: &str, mode: u16) -> Result<std::fs::File, DiskError> {
    match fan.create_file_with(name.as_bytes(), mode.into()) {
        Err(e) if e.source.kind() == std::io::ErrorKind::AlreadyExists => {
            fan.unlink(name.as_bytes())?;
            fan.create_file_with(name.as_bytes(), mode.into())
        }
        other => other,
    }
}

/// Hashes a file from its start, without mapping it: a mapped file that is truncated kills its reader.
pub(crate) fn hash_file(mut file: &std::fs::File) -> std::io::Result<ContentHash> {
    thread_local! {
        // Memory for each call costs more than hashing a small file.
        static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER_BYTES]);
    }
    file.rewind()?;
    let mut hasher = blake3::Hasher::new();
    BUFFER.with_borrow_mut(|buffer| {
        loop {
            match file.read(buffer) {
                Ok(0) => return Ok(ContentHash::finish(&hasher)),
                Ok(n) => drop(hasher.update(buffer.get(..n).unwrap_or(buffer))),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    })
}
