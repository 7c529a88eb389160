//! Files of a new tree that are asked for together, and the threads that write them.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};

use syncd_shared::limits::{OBJECTS_BATCH_BYTES, OBJECTS_BATCH_MAX};
use syncd_shared::stored_frame::{FrameBuffer, Piece, StoredFrame};
use syncd_shared::wire::DirectoryFiles;
use syncd_shared::{Component, ContentHash, ContentTag, Entry, Kind, Metadata, ObjectHash, Totals, TreePath};

use crate::build::content::{Incoming, Wanted, stretch, write_whole};
use crate::build::queue::{Waiting, queue};
use crate::build::writeback::Writeback;
use crate::build::{StageError, StageProgress};
use crate::state::disk::{self, Dir, DiskError, Owners};

/// Threads that decompress, hash and write.
const WORKERS_MAX: usize = 4;
/// Frames that wait for each worker, at most 1 MiB compressed each.
const WAITING_FRAMES: usize = 2;
/// Content bytes that the first window of a tree takes.
const FIRST_BYTES: u64 = if cfg!(test) { 16 * 1024 } else { OBJECTS_BATCH_BYTES / 8 };
/// Directories that a worker keeps open.
const OPEN_DIRECTORIES: usize = 8;

/// A file that is to be put into the tree.
#[derive(Debug)]
pub(crate) struct Item {
    /// Its directory.
    pub path: Arc<TreePath>,
    /// Ordinal of its directory.
    pub directory: u32,
    /// Index in its directory.
    pub entry: u32,
    pub name: Component,
    pub content: ContentHash,
    pub size: u64,
    pub metadata: Metadata,
    /// Another file of the tree, by ordinal of its directory and index in it, that has this content.
    pub same_as: Option<(u32, u32)>,
    /// Inode number of what was put there; 0: nothing yet.
    pub inode: AtomicU64,
}

impl Item {
    /// `None` for what is no file.
    pub fn new(path: &Arc<TreePath>, directory: u32, entry: u32, file: &Entry) -> Option<Self> {
        let Kind::File { content, size } = file.kind else { return None };
        let (name, metadata) = (file.name.clone(), file.metadata);
        let (path, inode) = (path.clone(), AtomicU64::new(0));
        Some(Self { path, directory, entry, name, content, size, metadata, same_as: None, inode })
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Window {
    /// Content bytes that it takes.
    bytes_most: u64,
    /// Whether no other window that is under way has a content of the same name in frames.
    pub apart: bool,
    pub items: Vec<Item>,
    /// Contents that are asked for -> the item that they are for.
    pub wanted: HashMap<ContentTag, u32>,
    /// The items that contents are asked for, in path order.
    order: Vec<u32>,
    bytes: u64,
    closed: bool,
    /// Frames that workers have not written.
    unwritten: Mutex<usize>,
    written: Condvar,
}

impl Window {
    /// The first one of a tree: small, so that the origin has something to do soon.
    pub fn first() -> Self {
        Self::of(FIRST_BYTES)
    }

    /// The one after this: twice as large, up to a whole batch.
    pub fn next(&self) -> Self {
        Self::of(self.bytes_most.saturating_mul(2).min(OBJECTS_BATCH_BYTES))
    }

    fn of(bytes_most: u64) -> Self {
        let (items, wanted, order, unwritten, written) = Default::default();
        Self { bytes_most, apart: true, items, wanted, order, bytes: 0, closed: false, unwritten, written }
    }

    /// Whether no more should be asked for together.
    pub fn is_full(&self) -> bool {
        self.closed || self.items.len() >= OBJECTS_BATCH_MAX || self.bytes >= self.bytes_most
    }

    /// Content bytes that are asked for.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes no more.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Whether another content is asked for that answers would name like this one.
    pub fn has_tag_of_another(&self, item: &Item) -> bool {
        let asked = self.wanted.get(&ContentTag::of(&item.content));
        asked.and_then(|index| self.item(*index)).is_some_and(|asked| asked.content != item.content)
    }

    fn item(&self, index: u32) -> Option<&Item> {
        self.items.get(index as usize)
    }

    fn item_of(&self, piece: &Piece) -> Option<&Item> {
        self.wanted.get(&piece.file).and_then(|index| self.item(*index))
    }

    /// What is asked for, by directory; `entered` has the directories by ordinal.
    pub fn files_of(&self, entered: &[(Arc<TreePath>, ObjectHash)]) -> Vec<DirectoryFiles> {
        let items = self.order.iter().filter_map(|index| self.item(*index)).collect::<Vec<_>>();
        let by_directory = items.chunk_by(|a, b| a.directory == b.directory);
        let files = by_directory.filter_map(|items| {
            let (_, object) = entered.get(items.first()?.directory as usize)?;
            Some(DirectoryFiles::new(*object, items.iter().map(|item| item.entry)))
        });
        files.collect()
    }

    /// Takes a file whose content is to be asked for.
    pub fn ask(&mut self, item: Item) {
        let index = self.items.len() as u32;
        self.wanted.insert(ContentTag::of(&item.content), index);
        self.order.push(index);
        self.bytes = self.bytes.saturating_add(item.size);
        self.items.push(item);
    }

    /// Blocks until everything that was handed to workers is written.
    pub fn wait(&self) {
        let mut unwritten = lock(&self.unwritten);
        while *unwritten > 0 {
            unwritten = self.written.wait(unwritten).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn begin(&self) {
        let mut unwritten = lock(&self.unwritten);
        *unwritten = unwritten.saturating_add(1);
    }

    fn end(&self) {
        let mut unwritten = lock(&self.unwritten);
        *unwritten = unwritten.saturating_sub(1);
        self.written.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What all who build a tree share.
pub(crate) struct Shared<'a> {
    pub incoming: &'a Incoming,
    pub cancel: &'a AtomicBool,
    tree: &'a Dir,
    owners: Owners,
    totals: Totals,
    files_done: AtomicU64,
    bytes_done: AtomicU64,
    writeback: Writeback,
    failed: AtomicBool,
}

impl<'a> Shared<'a> {
    pub fn new(
        incoming: &'a Incoming,
        tree: &'a Dir,
        owners: Owners,
        cancel: &'a AtomicBool,
        totals: Totals,
    ) -> Result<Self, DiskError> {
        let (files_done, bytes_done) = Default::default();
        Ok(Self {
            incoming,
            cancel,
            tree,
            owners,
            totals,
            files_done,
            bytes_done,
            writeback: Writeback::new(tree)?,
            failed: AtomicBool::new(false),
        })
    }

    /// How far it is.
    pub fn done(&self) -> StageProgress {
        StageProgress {
            files_done: self.files_done.load(Ordering::Relaxed),
            files_total: self.totals.files,
            bytes_done: self.bytes_done.load(Ordering::Relaxed),
            bytes_total: self.totals.bytes,
        }
    }

    /// A file was there already.
    pub fn found(&self, bytes: u64) {
        self.files_done.fetch_add(1, Ordering::Relaxed);
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether a worker gave up.
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    fn store(&self, job: &Job, bench: &mut Workbench) -> Result<(), StageError> {
        let frame = &job.frame;
        let bytes = bench.buffer.decompress(frame).map_err(StageError::Frame)?;
        let item = |piece: &Piece| job.windows.iter().find_map(|window| window.item_of(piece));
        let mut pieces: Vec<_> = frame.pieces.iter().filter_map(|p| Some((item(p)?, p))).collect();
        // What lies together because it resembles each other is of many directories: each is opened once. Pieces of one
        // file stay in order.
        pieces.sort_by_key(|(item, _)| item.directory);
        for (item, piece) in pieces {
            if item.inode.load(Ordering::Relaxed) != 0 {
                continue;
            }
            let slice = stretch(bytes, piece.frame_offset as usize, piece.length_bytes as usize)?;
            if slice.len() as u64 != item.size || piece.file_offset != 0 {
                let wanted = Wanted { size: item.size, metadata: item.metadata, users: 1 };
                if self.incoming.put_piece(item.content, piece.file_offset, slice, &wanted)? {
                    self.found(item.size);
                    self.writeback.wrote(item.size);
                }
                continue;
            }
            let actual = ContentHash::of(slice);
            if actual != item.content {
                return Err(StageError::Content { expected: item.content, actual });
            }
            let dir = bench.open.at(self.tree, item)?;
            let inode = self.put(dir, item, slice)?;
            self.writeback.wrote(item.size);
            item.inode.store(inode, Ordering::Relaxed);
            self.found(item.size);
        }
        Ok(())
    }

    fn put(&self, dir: &Dir, item: &Item, bytes: &[u8]) -> Result<u64, DiskError> {
        let name = item.name.as_bytes();
        let file = dir.create_file_with(name, item.metadata.mode.into())?;
        write_whole(&file, bytes).map_err(|e| dir.failed_at("write", name, e))?;
        let dressed = disk::dress(&file, &item.metadata, self.owners);
        dressed.map_err(|e| dir.failed_at("set the metadata of", name, e))
    }
}

/// What a worker keeps from frame to frame.
#[derive(Default)]
struct Workbench {
    buffer: FrameBuffer,
    open: OpenDirectories,
}

/// Directories that a worker was in lately, the latest last.
#[derive(Default)]
struct OpenDirectories(Vec<(u32, Dir)>);

impl OpenDirectories {
    fn at<'d>(&'d mut self, tree: &'d Dir, item: &Item) -> Result<&'d Dir, DiskError> {
        match self.0.iter().position(|(ordinal, _)| *ordinal == item.directory) {
            Some(last) if last.saturating_add(1) == self.0.len() => {}
            Some(index) => {
                let open = self.0.remove(index);
                self.0.push(open);
            }
            None => {
                let dir = match item.path.is_root() {
                    true => tree.reopen()?,
                    false => tree.open_dir(item.path.as_bytes())?,
                };
                if self.0.len() == OPEN_DIRECTORIES {
                    self.0.remove(0);
                }
                self.0.push((item.directory, dir));
            }
        }
        Ok(self.0.last().map_or(tree, |(_, dir)| dir))
    }
}

/// Whether a frame was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    Taken,
    /// No worker is left: [`Workers::finish`] says why.
    Failed,
}

/// A frame of some windows, unwritten until this is dropped.
struct Job {
    frame: StoredFrame,
    windows: Vec<Arc<Window>>,
}

impl Job {
    fn new<'w>(frame: StoredFrame, windows: impl Iterator<Item = &'w Arc<Window>>) -> Self {
        let has_some =
            |window: &&Arc<Window>| frame.pieces.iter().any(|piece| window.item_of(piece).is_some());
        let windows: Vec<_> = windows.filter(has_some).cloned().collect();
        windows.iter().for_each(|window| window.begin());
        Self { frame, windows }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.windows.iter().for_each(|window| window.end());
    }
}

/// Threads that write frames.
pub(crate) struct Workers<'scope> {
    sender: SyncSender<Job>,
    handles: Vec<ScopedJoinHandle<'scope, Result<(), StageError>>>,
}

impl<'scope> Workers<'scope> {
    pub fn start<'env>(scope: &'scope Scope<'scope, 'env>, shared: &'env Shared<'env>) -> Self {
        let count = syncd_shared::threads::at_most(WORKERS_MAX);
        let (sender, waiting) = queue::<Job>(WAITING_FRAMES.saturating_mul(count));
        let work = |waiting: Waiting<Job>| {
            let mut bench = Workbench::default();
            let mut result = Ok(());
            // Also after an error everything is taken, so that nobody waits for it.
            for job in waiting {
                if result.is_ok() {
                    result = shared.store(&job, &mut bench);
                    if result.is_err() {
                        shared.failed.store(true, Ordering::Relaxed);
                    }
                }
            }
            result
        };
        let start = |_| {
            let waiting = waiting.clone();
            scope.spawn(move || work(waiting))
        };
        Self { sender, handles: (0..count).map(start).collect() }
    }

    /// Gives a frame that has contents of these windows to a worker; blocks while all are busy and enough wait.
    pub fn take<'w>(&self, frame: StoredFrame, windows: impl Iterator<Item = &'w Arc<Window>>) -> Done {
        match self.sender.send(Job::new(frame, windows)) {
            Ok(()) => Done::Taken,
            Err(_) => Done::Failed,
        }
    }

    /// Waits for the workers; the first error of one.
    pub fn finish(self) -> Result<(), StageError> {
        drop(self.sender);
        for handle in self.handles {
            match handle.join() {
                Ok(result) => result?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(())
    }
}
