//! Groups files of a new tree whose contents are asked for together, and runs the threads that write them.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};

use syncd_runtime::queue::{Waiting, queue};
use syncd_shared::limits::{OBJECTS_BATCH_BYTES, OBJECTS_BATCH_MAX};
use syncd_shared::stored_frame::{FrameBuffer, Piece, StoredFrame};
use syncd_shared::wire::DirectoryFiles;
use syncd_shared::{
    Component, ContentHash, ContentTag, Entry, Kind, Metadata, ObjectHash, Progress, Totals, TreePath,
};

use crate::build::StageError;
use crate::build::incoming::{Incoming, Wanted, stretch, write_whole};
use crate::build::writeback::Writeback;
use crate::state::disk::{self, Dir, DiskError, Owners};

/// Threads that decompress, hash and write.
const WORKERS_MAX: usize = 4;
/// Frames that wait for each worker, at most 1 MiB compressed each.
const WAITING_FRAMES: usize = 2;
/// Content bytes in the first window of a tree.
const FIRST_BYTES: u64 = if cfg!(test) { 16 * 1024 } else { OBJECTS_BATCH_BYTES / 8 };
/// Directories that a worker keeps open.
const OPEN_DIRECTORIES: usize = 8;

/// A file to put into the tree.
#[derive(Debug)]
pub(crate) struct Item {
    pub path: Arc<TreePath>,
    /// Ordinal of the page of its directory.
    pub page: u32,
    /// Index of the entry in the page.
    pub entry: u32,
    pub name: Component,
    pub content: ContentHash,
    pub size: u64,
    pub metadata: Metadata,
    /// Another file of the tree with the same content: the ordinal of its page and its index there.
    pub same_as: Option<(u32, u32)>,
    /// Inode number of the file in its place; 0: not there yet.
    pub inode: AtomicU64,
}

impl Item {
    /// `None` if the entry is not a file.
    pub fn new(path: &Arc<TreePath>, page: u32, entry: u32, file: &Entry) -> Option<Self> {
        let Kind::File { content, size } = file.kind else { return None };
        let (name, metadata) = (file.name.clone(), file.metadata);
        let (path, inode) = (path.clone(), AtomicU64::new(0));
        Some(Self { path, page, entry, name, content, size, metadata, same_as: None, inode })
    }
}

/// A group of files whose contents are asked for in one batch.
#[derive(Debug)]
pub(crate) struct Window {
    /// Limit of content bytes.
    bytes_most: u64,
    /// Whether no other pending window asks for a content with the same tag.
    pub apart: bool,
    pub items: Vec<Item>,
    /// Tags of the contents asked for -> index of the item.
    pub wanted: HashMap<ContentTag, u32>,
    /// Indexes of the items whose contents are asked for, in path order.
    order: Vec<u32>,
    bytes: u64,
    closed: bool,
    /// Number of frames that workers have not written yet.
    unwritten: Mutex<usize>,
    written: Condvar,
}

impl Window {
    /// The first window of a tree: small, so that the origin starts early.
    pub fn first() -> Self {
        Self::of(FIRST_BYTES)
    }

    /// The next window: twice as large, up to a whole batch.
    pub fn next(&self) -> Self {
        Self::of(self.bytes_most.saturating_mul(2).min(OBJECTS_BATCH_BYTES))
    }

    fn of(bytes_most: u64) -> Self {
        let (items, wanted, order, unwritten, written) = Default::default();
        Self { bytes_most, apart: true, items, wanted, order, bytes: 0, closed: false, unwritten, written }
    }

    /// Whether no more contents should be added.
    pub fn is_full(&self) -> bool {
        self.closed || self.items.len() >= OBJECTS_BATCH_MAX || self.bytes >= self.bytes_most
    }

    /// Content bytes asked for.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Marks the window as full.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Whether another content with the same tag is asked for.
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

    /// Files asked for, grouped by page; `entered` lists the pages by ordinal.
    pub fn files_of(&self, entered: &[(Arc<TreePath>, ObjectHash)]) -> Vec<DirectoryFiles> {
        let items = self.order.iter().filter_map(|index| self.item(*index)).collect::<Vec<_>>();
        let by_page = items.chunk_by(|a, b| a.page == b.page);
        let files = by_page.filter_map(|items| {
            let (_, object) = entered.get(items.first()?.page as usize)?;
            Some(DirectoryFiles::new(*object, items.iter().map(|item| item.entry)))
        });
        files.collect()
    }

    /// Adds a file whose content is to be asked for.
    pub fn ask(&mut self, item: Item) {
        let index = self.items.len() as u32;
        self.wanted.insert(ContentTag::of(&item.content), index);
        self.order.push(index);
        self.bytes = self.bytes.saturating_add(item.size);
        self.items.push(item);
    }

    /// Blocks until every frame handed to the workers is written.
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

/// State shared by the threads that build a tree.
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

    pub fn done(&self) -> Progress {
        Progress {
            files_done: self.files_done.load(Ordering::Relaxed),
            files_total: self.totals.files,
            bytes_done: self.bytes_done.load(Ordering::Relaxed).min(self.totals.bytes),
            bytes_total: self.totals.bytes,
        }
    }

    /// Counts a file that was already there.
    pub fn found(&self, bytes: u64) {
        self.arrived(1, bytes);
    }

    /// Counts bytes that were stored, and the files that they completed.
    fn arrived(&self, files: u64, bytes: u64) {
        self.files_done.fetch_add(files, Ordering::Relaxed);
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether a worker failed.
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    fn store(&self, job: &Job, bench: &mut Workbench) -> Result<(), StageError> {
        let frame = &job.frame;
        let bytes = bench.buffer.decompress(frame).map_err(StageError::Frame)?;
        let item = |piece: &Piece| job.windows.iter().find_map(|window| window.item_of(piece));
        let mut pieces: Vec<_> = frame.pieces.iter().filter_map(|p| Some((item(p)?, p))).collect();
        // A frame groups similar contents, often of many directories. Sorting opens each directory once and
        // keeps the pieces of a file in order.
        pieces.sort_by_key(|(item, _)| item.page);
        for (item, piece) in pieces {
            if item.inode.load(Ordering::Relaxed) != 0 {
                continue;
            }
            let slice = stretch(bytes, piece.frame_offset as usize, piece.length_bytes as usize)?;
            if slice.len() as u64 != item.size || piece.file_offset != 0 {
                let wanted = Wanted { size: item.size, metadata: item.metadata, users: 1 };
                let is_whole = self.incoming.put_piece(item.content, piece.file_offset, slice, &wanted)?;
                self.arrived(u64::from(is_whole), slice.len() as u64);
                self.writeback.wrote(slice.len() as u64);
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

/// State that a worker keeps between frames.
#[derive(Default)]
struct Workbench {
    buffer: FrameBuffer,
    open: OpenDirectories,
}

/// Directories that a worker used last, the latest at the end.
#[derive(Default)]
struct OpenDirectories(Vec<(Arc<TreePath>, Dir)>);

impl OpenDirectories {
    fn at<'d>(&'d mut self, tree: &'d Dir, item: &Item) -> Result<&'d Dir, DiskError> {
        match self.0.iter().position(|(path, _)| Arc::ptr_eq(path, &item.path)) {
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
                self.0.push((item.path.clone(), dir));
            }
        }
        Ok(self.0.last().map_or(tree, |(_, dir)| dir))
    }
}

/// Whether a worker took a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    Taken,
    /// No worker is left; [`Workers::finish`] returns the error.
    Failed,
}

/// A frame for some windows. Counts as unwritten until it is dropped.
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

/// The threads that write frames.
pub(crate) struct Workers<'scope> {
    sender: SyncSender<Job>,
    handles: Vec<ScopedJoinHandle<'scope, Result<(), StageError>>>,
}

impl<'scope> Workers<'scope> {
    pub fn start<'env>(scope: &'scope Scope<'scope, 'env>, shared: &'env Shared<'env>) -> Self {
        let count = syncd_runtime::threads::at_most(WORKERS_MAX);
        let (sender, waiting) = queue::<Job>(WAITING_FRAMES.saturating_mul(count));
        let work = |waiting: Waiting<Job>| {
            let mut bench = Workbench::default();
            let mut result = Ok(());
            // After an error the remaining frames are still taken, so that no sender blocks.
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

    /// Hands a frame with contents of these windows to a worker. Blocks while the queue is full.
    pub fn take<'w>(&self, frame: StoredFrame, windows: impl Iterator<Item = &'w Arc<Window>>) -> Done {
        match self.sender.send(Job::new(frame, windows)) {
            Ok(()) => Done::Taken,
            Err(_) => Done::Failed,
        }
    }

    /// Waits for the workers. Returns the first error.
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
