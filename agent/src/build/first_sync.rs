//! Builds a whole new tree when the node has nothing to build on: the first sync.
//!
//! ```text
//! walk       directories are made, their files gathered into windows, in path order
//! ask        one batch of contents for each window, a few windows ahead of the answers
//! receive    workers verify each content and write it straight to its place
//! settle     once a window is answered: contents in many pieces, copies of equal files; inode numbers to
//!            the record; owner, mode and times of a directory, when nothing more is put into it
//! ```
//!
//! Memory follows the windows, not the tree. Files that an interrupted attempt left are hashed before they
//! count. Nothing refers to the tree until it is activated. Its inode numbers may go to the record earlier,
//! because no other tree is live that they could be mistaken for.

mod walk;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::FileType;
use syncd_shared::diff::DirectorySource as _;
use syncd_shared::directory::Cursor;
use syncd_shared::stored_frame::StoredFrame;
use syncd_shared::wire::{Frame, ObjectsBatch};
use syncd_shared::{Entry, Kind, Metadata, ObjectHash, Progress, SignedGeneration, TreePath};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use self::walk::{Current, Walk};
use crate::build::duplicates::Copies;
use crate::build::incoming::Incoming;
use crate::build::manifest;
use crate::build::receive_budget::ReceiveBudget;
use crate::build::space::Demand;
use crate::build::window::{Done, Item, Shared, Window, Workers};
use crate::build::{Job, StageError};
use crate::source::{FetchError, Frames, Source};
use crate::state::cursor::DirCursor;
use crate::state::disk::{self, Dir, Owners};
use crate::state::hashing::hash_file;
use crate::state::record::{Leaf, Record};
use crate::state::trees::Trees;

/// Windows asked for before the first of them is answered.
const WINDOWS_AHEAD: usize = 3;
/// Approximate number of entries visited and directories made between two frames.
const GATHERED_ENTRIES: usize = 512;
/// Bytes of leftover files whose hashing counts as one entry.
const HASHED_BYTES: u64 = 64 * 1024;
/// Inode numbers collected before they are written to the record.
const PERSIST_INODES: usize = 64 * 1024;

/// A first sync into one slot.
pub(crate) struct FirstSync<'a> {
    pub trees: &'a Trees,
    pub job: Job<'a>,
    pub slot: u64,
    /// An earlier attempt was interrupted in this tree.
    pub resumes: bool,
}

impl FirstSync<'_> {
    /// Builds the tree. `gives_way` frees space when the target does not fit.
    pub fn run(
        &self,
        gives_way: &mut dyn FnMut() -> Result<(), StageError>,
        source: &mut dyn Source,
    ) -> Result<(), StageError> {
        let Self { trees, job, slot, resumes } = *self;
        let root = job.target.generation().root;
        let space = || trees.layout.staging.space();
        let block_bytes = space()?.block_bytes;
        let (demand, duplicates) = manifest::obtain_whole(&trees.record, &root, block_bytes, source)?;
        let incoming = Incoming::open(&trees.layout, trees.owners)?;
        let tree = trees.open(slot)?;
        if demand.check(&space()?, Default::default()).is_err() {
            // Leftovers of this target count as present. `gives_way` removes those of other targets.
            gives_way()?;
            let mut present = incoming.present()?;
            taken_by(&trees.record, tree.reopen()?, root.object, block_bytes, &mut present)?;
            demand.check(&space()?, present)?;
        }
        trees.record.clear_inodes()?;
        let shared = Shared::new(&incoming, &tree, trees.owners, job.cancel, root.totals)?;
        let mut walk = Walk {
            trees,
            tree: tree.reopen()?,
            resumes,
            waiting: vec![(TreePath::root(), root.object, root.metadata)],
            current: None,
            entered: Vec::new(),
        };
        let mut build = Build {
            trees,
            shared: &shared,
            lists: HashMap::new(),
            directories: HashMap::new(),
            next_directory: 0,
            whole: Vec::new(),
            whole_inodes: 0,
            narrow: Vec::new(),
            copies: Copies::of(duplicates),
        };
        build.run(&mut walk, job.target, source, job.progress)?;
        Ok(incoming.clear(&trees.layout)?)
    }
}

/// Inode numbers of a page, and how many are still missing.
struct List {
    /// Ordinal of the directory.
    directory: u32,
    inodes: Vec<u64>,
    left: usize,
}

/// A directory into which files are still put.
struct Filled {
    path: Arc<TreePath>,
    metadata: Metadata,
    /// Files that are still missing, including those that are not gathered yet.
    left: u64,
}

/// Windows asked for but not answered, the oldest first, and the window being gathered.
struct Asked {
    windows: VecDeque<Arc<Window>>,
    gathered: Window,
    ask: UnboundedSender<ObjectsBatch>,
    /// Limit of the answers to everything asked for so far.
    budget: ReceiveBudget,
}

impl Asked {
    fn new(ask: UnboundedSender<ObjectsBatch>) -> Self {
        let (windows, budget) = (VecDeque::new(), ReceiveBudget::default());
        Self { windows, gathered: Window::first(), ask, budget }
    }

    /// Asks for the gathered window and begins the next one.
    fn ask(&mut self, walk: &Walk<'_>) {
        let next = self.gathered.next();
        let window = std::mem::replace(&mut self.gathered, next);
        if window.items.is_empty() {
            return;
        }
        if !window.wanted.is_empty() {
            self.budget.add(ReceiveBudget::of_contents(window.items.len() as u64, window.bytes()));
            let (files_of, early) = (window.files_of(&walk.entered), window.apart);
            // A broken stream is reported where its answers are read.
            let _ = self.ask.send(ObjectsBatch { files_of, early, ..ObjectsBatch::default() });
        }
        self.windows.push_back(Arc::new(window));
    }
}

struct Build<'a> {
    trees: &'a Trees,
    shared: &'a Shared<'a>,
    lists: HashMap<u32, List>,
    directories: HashMap<u32, Filled>,
    /// Ordinal of the next directory.
    next_directory: u32,
    /// Complete lists that are not yet in the record.
    whole: Vec<(Leaf, Vec<u64>)>,
    whole_inodes: usize,
    /// Complete directories whose mode denies their owner access: only root could still reach what is below
    /// them.
    narrow: Vec<(Arc<TreePath>, Metadata)>,
    copies: Copies,
}

impl Build<'_> {
    fn run(
        &mut self,
        walk: &mut Walk<'_>,
        target: &SignedGeneration,
        source: &mut dyn Source,
        progress: &dyn Fn(Progress),
    ) -> Result<(), StageError> {
        let (ask, batches) = unbounded_channel();
        let (mut batches, mut frames) = (Some(batches), None);
        let mut asked = Asked::new(ask);
        let shared = self.shared;
        std::thread::scope(|scope| {
            let workers = Workers::start(scope, shared);
            let mut answered: Option<Arc<Window>> = None;
            loop {
                // The next window is asked for as well, so that a frame with contents of both arrives once.
                while asked.windows.len() < 2 && self.gather(walk, &mut asked)? {}
                let Some(window) = asked.windows.front().cloned() else { break };
                if !window.wanted.is_empty() {
                    let frames = match &mut frames {
                        Some(frames) => frames,
                        none => {
                            let batches = batches.take().ok_or(FetchError::Disconnected(None));
                            let started = batches.and_then(|b| source.objects(target.root_hash(), b));
                            none.insert(started.map_err(StageError::Fetch)?)
                        }
                    };
                    while !shared.failed()
                        && let Some(frame) = next_of(frames, &mut asked.budget, shared)?
                        && workers.take(frame, asked.windows.iter()) == Done::Taken
                    {
                        progress(shared.done());
                        if asked.windows.len() < WINDOWS_AHEAD {
                            self.gather(walk, &mut asked)?;
                        }
                    }
                }
                if shared.failed() {
                    break;
                }
                asked.windows.pop_front();
                // The frames of the window before were written while this one arrived.
                if let Some(before) = answered.replace(window) {
                    self.settle(&before, walk)?;
                }
            }
            if let (Some(last), false) = (answered, shared.failed()) {
                self.settle(&last, walk)?;
            }
            workers.finish()
        })?;
        self.persist()?;
        self.narrow(walk)?;
        progress(shared.done());
        Ok(())
    }

    /// Sets the metadata of directories that this user could not have written to with it.
    fn narrow(&mut self, walk: &Walk<'_>) -> Result<(), StageError> {
        // Children come later in path order, so they are set first.
        self.narrow.sort_by(|a, b| b.0.as_bytes().cmp(a.0.as_bytes()));
        for (path, metadata) in std::mem::take(&mut self.narrow) {
            walk.open(&path)?.set_own_metadata(&metadata, self.trees.owners)?;
        }
        Ok(())
    }

    /// Adds some entries to the window being gathered, and asks for it when it is full or the tree ends.
    /// Leftover files, empty files and symlinks are handled directly. Returns whether there is more to
    /// gather.
    fn gather(&mut self, walk: &mut Walk<'_>, asked: &mut Asked) -> Result<bool, StageError> {
        if self.shared.cancel.load(Ordering::Relaxed) {
            return Err(StageError::Cancelled);
        }
        let mut left = GATHERED_ENTRIES;
        while left > 0 && !asked.gathered.is_full() {
            if walk.current.is_none() {
                let Some((path, object, metadata)) = walk.waiting.pop() else {
                    asked.ask(walk);
                    return Ok(false);
                };
                left = left.saturating_sub(walk.enter(path, object, self.next_directory)?.saturating_add(1));
                self.open_directory(walk, object, metadata)?;
            }
            self.gather_directory(walk, asked, &mut left)?;
        }
        if asked.gathered.is_full() {
            asked.ask(walk);
        }
        Ok(true)
    }

    fn open_directory(
        &mut self,
        walk: &Walk<'_>,
        object: ObjectHash,
        metadata: Metadata,
    ) -> Result<(), StageError> {
        let Some(Current { path, directory, .. }) = &walk.current else { return Ok(()) };
        let page = self.trees.record.page(&object)?;
        // Subdirectories are not counted, and neither is what is below them.
        let mut left = 0;
        let mut cursor = Cursor::new(&*self.trees.record, Some(object))?;
        while cursor.directory()?.is_some() {
            left += 1;
            cursor.skip();
        }
        let filled = Filled { path: path.clone(), metadata, left: page.names().saturating_sub(left) };
        self.next_directory = directory.saturating_add(1);
        if filled.left == 0 {
            self.directories.insert(*directory, filled);
            return self.filled(*directory, walk);
        }
        self.directories.insert(*directory, filled);
        Ok(())
    }

    /// Takes at most a given number of entries of the current directory, until the window is full or the
    /// directory ends.
    fn gather_directory(
        &mut self,
        walk: &mut Walk<'_>,
        asked: &mut Asked,
        left: &mut usize,
    ) -> Result<(), StageError> {
        let window = &mut asked.gathered;
        let Some(mut current) = walk.current.take() else { return Ok(()) };
        let mut dir = None;
        while let Some((page, leaf, index)) = current.cursor.leaf()? {
            let Some(entry) = leaf.entries().get(index) else { break };
            if window.is_full() || *left == 0 {
                walk.current = Some(current);
                return Ok(());
            }
            *left = left.saturating_sub(1);
            if current.page != Some(page) {
                current.page = Some(page);
                walk.entered.push((current.path.clone(), page));
                self.list(current.directory, leaf.entries(), walk)?;
            }
            let ordinal = walk.entered.len() as u32 - 1;
            if entry.is_directory() {
                current.cursor.skip();
                continue;
            }
            if walk.resumes || !matches!(entry.kind, Kind::File { size: 1.., .. }) {
                let dir = match &mut dir {
                    Some(dir) => dir,
                    none => none.insert(walk.open(&current.path)?),
                };
                if let (true, Kind::File { size, .. }) = (walk.resumes, &entry.kind) {
                    *left = left.saturating_sub((*size / HASHED_BYTES) as usize);
                }
                if let Some(inode) = self.made_at_once(dir, entry, walk.resumes)? {
                    self.list_inode(ordinal, index as u32, inode, walk)?;
                    current.cursor.skip();
                    continue;
                }
            }
            if let Some(item) = Item::new(&current.path, ordinal, index as u32, entry) {
                window.apart &= !asked.windows.iter().any(|window| window.has_tag_of_another(&item));
                if window.has_tag_of_another(&item) {
                    // Two contents with the same tag are not asked for at once.
                    window.close();
                    walk.current = Some(current);
                    return Ok(());
                }
                self.add(item, walk, window)?;
            }
            current.cursor.skip();
        }
        Ok(())
    }

    /// Begins the list of inode numbers of the page that was entered last.
    fn list(&mut self, directory: u32, entries: &[Entry], walk: &Walk<'_>) -> Result<(), StageError> {
        let left = entries.iter().filter(|e| !e.is_directory()).count();
        let list = List { directory, inodes: vec![0; entries.len()], left };
        let ordinal = walk.entered.len() as u32 - 1;
        match left {
            0 => self.keep(ordinal, list, walk),
            _ => {
                self.lists.insert(ordinal, list);
                Ok(())
            }
        }
    }

    /// Adds a file to fetch, unless another file of the tree or an earlier attempt has its content.
    fn add(&mut self, mut item: Item, walk: &Walk<'_>, window: &mut Window) -> Result<(), StageError> {
        if let Some(twin) = self.copies.find(&item)
            && let Some((_, there)) = walk.entry(twin)?
            && matches!(there.kind, Kind::File { content, .. } if content == item.content)
        {
            item.same_as = Some(twin);
            window.items.push(item);
            return Ok(());
        }
        self.copies.expect(&item);
        if self.shared.incoming.has(item.content, item.size)? {
            self.shared.found(item.size);
            window.items.push(item);
        } else {
            window.ask(item);
        }
        Ok(())
    }

    /// Makes symlinks and empty files, and takes over leftover files. Returns the inode number of what is
    /// there now.
    fn made_at_once(&mut self, dir: &Dir, entry: &Entry, resumes: bool) -> Result<Option<u64>, StageError> {
        let name = entry.name.as_bytes();
        if resumes {
            if let Some(inode) = self.left_there(dir, entry)? {
                return Ok(Some(inode));
            }
            dir.unlink(name)?;
        }
        match &entry.kind {
            Kind::File { size: 1.., .. } | Kind::Directory { .. } => return Ok(None),
            Kind::Symlink { .. } | Kind::Collected { .. } => {
                self.trees.link(dir, name, entry)?;
                return Ok(Some(dir.stat(name)?.map_or(0, |s| s.inode)));
            }
            Kind::File { .. } => drop(dir.create_file(name)?),
        }
        dir.set_metadata(name, &entry.metadata, self.trees.owners, false)?;
        Ok(Some(dir.stat(name)?.map_or(0, |s| s.inode)))
    }

    /// Inode number of a complete file that an earlier attempt left.
    fn left_there(&self, dir: &Dir, entry: &Entry) -> Result<Option<u64>, StageError> {
        let name = entry.name.as_bytes();
        let Kind::File { content, size } = entry.kind else { return Ok(None) };
        let Some(stat) = dir.stat(name)? else { return Ok(None) };
        if size == 0 || stat.kind != FileType::RegularFile || (stat.size, stat.links) != (size, 1) {
            return Ok(None);
        }
        let Ok(file) = dir.open_file(name) else { return Ok(None) };
        disk::drop_cached(&file);
        if !hash_file(&file).is_ok_and(|hash| hash == content) {
            return Ok(None);
        }
        dir.set_metadata(name, &entry.metadata, self.trees.owners, false)?;
        self.shared.found(size);
        Ok(Some(stat.inode))
    }

    /// Completes a window that was answered.
    fn settle(&mut self, window: &Window, walk: &Walk<'_>) -> Result<(), StageError> {
        window.wait();
        if self.shared.failed() {
            // The worker that failed reports the error when it is joined.
            return Ok(());
        }
        for item in &window.items {
            let mut inode = item.inode.load(Ordering::Relaxed);
            if inode == 0 {
                let dir = walk.open(&item.path)?;
                let name = item.name.as_bytes();
                inode = match item.same_as {
                    Some(twin) => copy_placed(walk, item, twin, &dir, self.trees.owners)?,
                    // The content arrived in pieces, or was already in `incoming`.
                    None => self.shared.incoming.place(item.content, &item.metadata, true, &dir, name)?,
                };
            }
            self.copies.came(item);
            self.list_inode(item.page, item.entry, inode, walk)?;
        }
        Ok(())
    }

    fn list_inode(&mut self, page: u32, entry: u32, inode: u64, walk: &Walk<'_>) -> Result<(), StageError> {
        let Some(list) = self.lists.get_mut(&page) else { return Ok(()) };
        if let Some(slot) = list.inodes.get_mut(entry as usize) {
            *slot = inode;
        }
        list.left = list.left.saturating_sub(1);
        let (directory, is_whole) = (list.directory, list.left == 0);
        if is_whole && let Some(list) = self.lists.remove(&page) {
            self.keep(page, list, walk)?;
        }
        let Some(filled) = self.directories.get_mut(&directory) else { return Ok(()) };
        filled.left = filled.left.saturating_sub(1);
        if filled.left == 0 { self.filled(directory, walk) } else { Ok(()) }
    }

    /// Takes a directory whose entries are all in place.
    fn filled(&mut self, directory: u32, walk: &Walk<'_>) -> Result<(), StageError> {
        let Some(Filled { path, metadata, .. }) = self.directories.remove(&directory) else { return Ok(()) };
        if path.is_root() {
            // The root gets its metadata when the tree is activated.
        } else if metadata.mode & 0o700 == 0o700 || rustix::process::geteuid().is_root() {
            walk.open(&path)?.set_own_metadata(&metadata, self.trees.owners)?;
        } else {
            self.narrow.push((path, metadata));
        }
        Ok(())
    }

    /// Takes the list of a page whose entries are all in place.
    fn keep(&mut self, page: u32, list: List, walk: &Walk<'_>) -> Result<(), StageError> {
        let Some((path, page)) = walk.entered.get(page as usize) else { return Ok(()) };
        self.whole_inodes += list.inodes.len();
        self.whole.push((Leaf { path: TreePath::clone(path), page: *page }, list.inodes));
        if self.whole_inodes >= PERSIST_INODES { self.persist() } else { Ok(()) }
    }

    fn persist(&mut self) -> Result<(), StageError> {
        self.whole_inodes = 0;
        Ok(self.trees.record.put_inodes(std::mem::take(&mut self.whole))?)
    }
}

/// The next frame of a window; `None` once the window is answered.
fn next_of(
    frames: &mut Frames,
    budget: &mut ReceiveBudget,
    shared: &Shared<'_>,
) -> Result<Option<StoredFrame>, StageError> {
    loop {
        if shared.cancel.load(Ordering::Relaxed) {
            return Err(StageError::Cancelled);
        }
        let frame = frames.next().unwrap_or(Err(FetchError::Disconnected(None)));
        match budget.taken(frame.map_err(StageError::Fetch)?)? {
            Frame::Stored(frame) => return Ok(Some(frame)),
            Frame::End { missing, .. } => {
                return match missing.first() {
                    None => Ok(None),
                    Some(content) => {
                        let content = syncd_shared::ContentHash::from_bytes(*content);
                        Err(StageError::Fetch(FetchError::MissingContent { content }))
                    }
                };
            }
            _ => {}
        }
    }
}

/// Copies the file of another entry that is already in place. Returns the inode number of the copy.
fn copy_placed(
    walk: &Walk<'_>,
    item: &Item,
    twin: (u32, u32),
    to: &Dir,
    owners: Owners,
) -> Result<u64, StageError> {
    let missing = || StageError::Missing { content: item.content };
    let (path, there) = walk.entry(twin)?.ok_or_else(missing)?;
    let from = walk.open(path)?.open_file(there.name.as_bytes())?;
    let file = to.create_file_with(item.name.as_bytes(), item.metadata.mode.into())?;
    disk::copy(&from, &file).map_err(|e| to.failed_at("copy to", item.name.as_bytes(), e))?;
    let dressed = disk::dress(&file, &item.metadata, owners);
    Ok(dressed.map_err(|e| to.failed_at("set the metadata of", item.name.as_bytes(), e))?)
}

/// Bytes and inodes that an interrupted tree already takes up. Names that the target does not have do not
/// count.
fn taken_by(
    record: &Record,
    tree: Dir,
    root: ObjectHash,
    block_bytes: u64,
    taken: &mut Demand,
) -> Result<(), StageError> {
    let mut dirs = DirCursor::new(tree);
    let mut waiting = vec![(TreePath::root(), root)];
    while let Some((path, object)) = waiting.pop() {
        let Ok(dir) = dirs.at(&path) else { continue };
        let mut cursor = Cursor::new(record, Some(object))?;
        while let Some(entry) = cursor.entry()?.cloned() {
            cursor.skip();
            let Ok(Some(stat)) = dir.stat(entry.name.as_bytes()) else { continue };
            if let Kind::Directory { object, .. } = entry.kind {
                taken.add(1, block_bytes);
                waiting.push((path.join(&entry.name).map_err(|source| StageError::Path { source })?, object));
            } else {
                taken.add(if stat.kind == FileType::RegularFile { stat.size } else { 0 }, block_bytes);
            }
        }
    }
    Ok(())
}
