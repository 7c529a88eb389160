//! A whole new tree, where the node has nothing to build on: the first sync.
//!
//! ```text
//! walk       directories are made, their files gathered into windows, in path order
//! ask        one batch of contents a window, a few windows ahead of the answers
//! receive    workers verify each content and write it straight to its place
//! settle     once a window is answered: contents in many pieces, copies of equal files; inode numbers to the record
//! finish     owner, mode and times of the directories, when nothing more is put into them
//! ```
//!
//! Memory follows the windows, not the tree. What an interrupted attempt left in `staging/building-K` is hashed before
//! it counts. Until the activation nothing knows of the tree: inode numbers go to the record ahead of it, because no
//! tree is live that they could be mistaken for.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::FileType;
use syncd_shared::diff::DirectorySource;
use syncd_shared::wire::{Frame, ObjectsBatch};
use syncd_shared::{Directory, Entry, Kind, ObjectHash, SignedGeneration, TreePath};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::disk::{self, Dir, DiskError, Owners};
use crate::layout::Layout;
use crate::record::{InodeChanges, Record};
use crate::replica::Replica;
use crate::source::{FetchError, Frames, Source};
use crate::stage::allowance::Allowance;
use crate::stage::content::{Incoming, hash_file};
use crate::stage::manifest;
use crate::stage::repeats::Copies;
use crate::stage::space::Demand;
use crate::stage::window::{Done, Item, Shared, Window, Workers};
use crate::stage::{StageError, StageProgress, Staged, building};

/// Windows that are asked for before the first of them is answered.
const WINDOWS_AHEAD: usize = 3;
/// Inode numbers that are collected before they go to the record.
const PERSIST_INODES: usize = 64 * 1024;

impl Replica {
    /// Builds `target` where nothing is live and no other generation is held.
    pub(crate) fn build_fresh(
        &mut self,
        target: &SignedGeneration,
        source: &mut dyn Source,
        progress: &dyn Fn(StageProgress),
        cancel: &AtomicBool,
        sync: Dir,
    ) -> Result<Staged, StageError> {
        let root = target.generation().root;
        let block_bytes = self.layout.staging.space()?.block_bytes;
        let (demand, repeats) = manifest::obtain_whole(&self.record, &root, block_bytes, source)?;
        let incoming = Incoming::open(&self.layout, self.owners)?;
        let (slot, resumes) = self.fresh_slot()?;
        let tree = self.layout.staging.open_dir(&building(slot))?;
        if demand.check(&self.layout.staging.space()?, Default::default()).is_err() {
            // What interrupted attempts left counts; of other targets it makes room.
            self.empty_trash(cancel)?;
            let mut present = incoming.present()?;
            taken_by(&tree, block_bytes, &mut present)?;
            demand.check(&self.layout.staging.space()?, present)?;
        }
        self.record.clear_inodes()?;
        let shared = Shared::new(&incoming, &tree, self.owners, cancel, root.totals)?;
        let mut walk = Walk {
            layout: &self.layout,
            record: &self.record,
            tree: tree.reopen()?,
            resumes,
            waiting: vec![(TreePath::root(), root.object)],
            current: None,
            entered: Vec::new(),
        };
        let mut build = Build {
            replica: self,
            shared: &shared,
            lists: HashMap::new(),
            whole: Vec::new(),
            whole_inodes: 0,
            copies: Copies::of(repeats),
        };
        build.run(&mut walk, target, source, progress)?;
        finish(&self.record, &tree, &root.object, self.owners)?;
        tree.set_own_metadata(&root.metadata, self.owners)?;
        let done = shared.done();
        incoming.clear(&self.layout)?;
        Ok(Staged {
            target: target.clone(),
            slot: Some(slot),
            sync,
            changed: None,
            durable_basis: false,
            touched: None,
            signed: None,
            inodes: InodeChanges::default(),
            spare_miss: false,
            basis: None,
            fetched: (done.bytes_done, done.files_done),
        })
    }

    /// The tree to build in; whether an earlier attempt was interrupted in it.
    fn fresh_slot(&mut self) -> Result<(u64, bool), StageError> {
        self.reclaim_spares()?;
        self.reclaim_partials()?;
        let buildings = self.buildings()?;
        for slot in buildings.iter().skip(1) {
            self.layout.discard(&self.layout.staging, &building(*slot))?;
        }
        if let Some(slot) = buildings.first() {
            return Ok((*slot, true));
        }
        let slot = self.free_slot()?;
        self.layout.staging.make_dir(&building(slot))?;
        Ok((slot, false))
    }
}

/// Goes through the manifest in path order, makes directories, and gathers their files.
struct Walk<'a> {
    layout: &'a Layout,
    record: &'a Record,
    tree: Dir,
    resumes: bool,
    /// Directories still to be entered, the next one last.
    waiting: Vec<(TreePath, ObjectHash)>,
    /// The directory that the last window ended in, and its next entry.
    current: Option<(Arc<TreePath>, Arc<Directory>, usize)>,
    /// Directories entered, by ordinal.
    entered: Vec<(Arc<TreePath>, ObjectHash)>,
}

impl Walk<'_> {
    fn enter(&mut self, path: TreePath, object: ObjectHash) -> Result<(), StageError> {
        let directory = self.record.directory(&object)?;
        if self.resumes {
            self.remove_strangers(&path, &directory)?;
        }
        let dir = self.open(&path)?;
        let mut below = Vec::new();
        for entry in directory.entries() {
            if let Kind::Directory { object, .. } = entry.kind {
                match dir.make_dir(entry.name.as_bytes()) {
                    Err(e) if e.source.kind() == std::io::ErrorKind::AlreadyExists => {}
                    other => other?,
                }
                let path = path.join(&entry.name).map_err(|source| StageError::Path { source })?;
                below.push((path, object));
            }
        }
        self.waiting.extend(below.into_iter().rev());
        let path = Arc::new(path);
        self.entered.push((path.clone(), object));
        self.current = Some((path, directory, 0));
        Ok(())
    }

    fn open(&self, path: &TreePath) -> Result<Dir, StageError> {
        Ok(if path.is_root() { self.tree.reopen()? } else { self.tree.open_dir(path.as_bytes())? })
    }

    /// What an interrupted attempt left for another target, or what somebody put there.
    fn remove_strangers(&self, path: &TreePath, directory: &Directory) -> Result<(), StageError> {
        let dir = self.open(path)?;
        dir.make_writable()?;
        for listed in dir.list()? {
            let expected = syncd_shared::Component::new(&listed.name)
                .ok()
                .and_then(|name| directory.get(&name).map(Entry::is_directory));
            let stat = dir.stat(&listed.name)?;
            let is_directory = stat.is_some_and(|s| s.kind == FileType::Directory);
            if expected == Some(is_directory) {
                continue;
            }
            match is_directory {
                true => self.layout.discard(&dir, &listed.name)?,
                false => drop(dir.unlink(&listed.name)?),
            }
        }
        Ok(())
    }
}

impl Walk<'_> {
    /// The entry that has this ordinal and index.
    fn entry(&self, (directory, entry): (u32, u32)) -> Result<Option<(&TreePath, Entry)>, StageError> {
        let Some((path, object)) = self.entered.get(directory as usize) else { return Ok(None) };
        let manifest = self.record.directory(object)?;
        Ok(manifest.entries().get(entry as usize).map(|entry| (&**path, entry.clone())))
    }
}

/// Inode numbers of a directory, and how many are still to come.
struct List {
    path: Arc<TreePath>,
    inodes: Vec<u64>,
    left: usize,
}

struct Build<'a> {
    replica: &'a Replica,
    shared: &'a Shared<'a>,
    lists: HashMap<u32, List>,
    /// Lists that are complete and not in the record.
    whole: Vec<(TreePath, Vec<u64>)>,
    whole_inodes: usize,
    copies: Copies,
}

impl Build<'_> {
    fn run(
        &mut self,
        walk: &mut Walk<'_>,
        target: &SignedGeneration,
        source: &mut dyn Source,
        progress: &dyn Fn(StageProgress),
    ) -> Result<(), StageError> {
        let (ask, batches) = unbounded_channel();
        let (mut batches, mut frames) = (Some(batches), None);
        let shared = self.shared;
        std::thread::scope(|scope| {
            let mut workers = Workers::start(scope, shared);
            let mut asked: VecDeque<Arc<Window>> = VecDeque::new();
            let mut answered: Option<Arc<Window>> = None;
            loop {
                while asked.len() < WINDOWS_AHEAD
                    && let Some(window) = self.gather(walk, &ask)?
                {
                    asked.push_back(window);
                }
                let Some(window) = asked.pop_front() else { break };
                if !window.wanted.is_empty() {
                    let frames = match &mut frames {
                        Some(frames) => frames,
                        none => {
                            let batches = batches.take().ok_or(FetchError::Disconnected(None));
                            let batches = batches.map_err(StageError::Fetch)?;
                            let started = source.objects(target.root_hash(), batches);
                            none.insert(started.map_err(StageError::Fetch)?)
                        }
                    };
                    receive(frames, &window, &mut workers, shared, progress)?;
                }
                if shared.failed() {
                    break;
                }
                // The window before: its frames are written while this one came.
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
        progress(shared.done());
        Ok(())
    }

    /// The next window of files, asked for. What an earlier attempt left, empty files and symlinks are dealt with on the
    /// way.
    fn gather(
        &mut self,
        walk: &mut Walk<'_>,
        ask: &UnboundedSender<ObjectsBatch>,
    ) -> Result<Option<Arc<Window>>, StageError> {
        let mut window = Window::default();
        while !window.is_full() {
            if self.shared.cancel.load(Ordering::Relaxed) {
                return Err(StageError::Cancelled);
            }
            if walk.current.is_none() {
                let Some((path, object)) = walk.waiting.pop() else { break };
                walk.enter(path, object)?;
                self.open_list(walk)?;
            }
            self.gather_directory(walk, &mut window)?;
        }
        if window.items.is_empty() {
            return Ok(None);
        }
        if !window.wanted.is_empty() {
            // A stream that broke says so where it is read.
            let _ = ask
                .send(ObjectsBatch { files_of: window.files_of(&walk.entered), ..ObjectsBatch::default() });
        }
        Ok(Some(Arc::new(window)))
    }

    fn open_list(&mut self, walk: &Walk<'_>) -> Result<(), StageError> {
        let Some((path, directory, _)) = &walk.current else { return Ok(()) };
        let ordinal = walk.entered.len() as u32 - 1;
        let left = directory.entries().iter().filter(|e| !e.is_directory()).count();
        let list = List { path: path.clone(), inodes: vec![0; directory.entries().len()], left };
        if left == 0 {
            return self.keep(list);
        }
        self.lists.insert(ordinal, list);
        Ok(())
    }

    /// Takes entries of the current directory until the window is full or the directory at its end.
    fn gather_directory(&mut self, walk: &mut Walk<'_>, window: &mut Window) -> Result<(), StageError> {
        let Some((path, directory, start)) = walk.current.take() else { return Ok(()) };
        let ordinal = walk.entered.len() as u32 - 1;
        let mut dir = None;
        for (index, entry) in directory.entries().iter().enumerate().skip(start) {
            if window.is_full() {
                walk.current = Some((path, directory.clone(), index));
                return Ok(());
            }
            if entry.is_directory() {
                continue;
            }
            if walk.resumes || !matches!(entry.kind, Kind::File { size: 1.., .. }) {
                let dir = match &mut dir {
                    Some(dir) => dir,
                    none => none.insert(walk.open(&path)?),
                };
                if let Some(inode) = self.made_at_once(dir, entry, walk.resumes)? {
                    self.list_inode(ordinal, index as u32, inode)?;
                    continue;
                }
            }
            if let Some(item) = Item::new(&path, ordinal, index as u32, entry) {
                if window.has_tag_of_another(&item) {
                    // Contents of one tag are not asked for at once.
                    window.close();
                    walk.current = Some((path, directory.clone(), index));
                    return Ok(());
                }
                self.add(item, walk, window)?;
            }
        }
        Ok(())
    }

    /// Takes a file whose content is to be fetched, unless another of the tree or an earlier attempt has it.
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

    /// Symlinks, empty files, and what an earlier attempt left. The inode number of what is there now.
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
            Kind::Symlink { target } => dir.symlink(target, name)?,
            Kind::File { .. } => drop(dir.create_file(name)?),
        }
        dir.set_metadata(
            name,
            &entry.metadata,
            self.replica.owners,
            matches!(entry.kind, Kind::Symlink { .. }),
        )?;
        Ok(Some(dir.stat(name)?.map_or(0, |s| s.inode)))
    }

    /// The inode number of a file that an earlier attempt left whole.
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
        dir.set_metadata(name, &entry.metadata, self.replica.owners, false)?;
        self.shared.found(size);
        Ok(Some(stat.inode))
    }

    /// Completes a window that was answered.
    fn settle(&mut self, window: &Window, walk: &Walk<'_>) -> Result<(), StageError> {
        window.wait();
        if self.shared.failed() {
            // Told by the end of the worker that failed.
            return Ok(());
        }
        for item in &window.items {
            let mut inode = item.inode.load(Ordering::Relaxed);
            if inode == 0 {
                let dir = walk.open(&item.path)?;
                let name = item.name.as_bytes();
                inode = match item.same_as {
                    Some(twin) => copy_placed(walk, item, twin, &dir, self.replica.owners)?,
                    // It came in pieces, or waited in incoming.
                    None => self.shared.incoming.place(item.content, &item.metadata, true, &dir, name)?,
                };
            }
            self.copies.came(item);
            self.list_inode(item.directory, item.entry, inode)?;
        }
        Ok(())
    }

    fn list_inode(&mut self, directory: u32, entry: u32, inode: u64) -> Result<(), StageError> {
        let Some(list) = self.lists.get_mut(&directory) else { return Ok(()) };
        if let Some(slot) = list.inodes.get_mut(entry as usize) {
            *slot = inode;
        }
        list.left = list.left.saturating_sub(1);
        match list.left {
            0 => self.lists.remove(&directory).map_or(Ok(()), |list| self.keep(list)),
            _ => Ok(()),
        }
    }

    fn keep(&mut self, list: List) -> Result<(), StageError> {
        self.whole_inodes += list.inodes.len();
        self.whole.push((TreePath::clone(&list.path), list.inodes));
        if self.whole_inodes >= PERSIST_INODES { self.persist() } else { Ok(()) }
    }

    fn persist(&mut self) -> Result<(), StageError> {
        self.whole_inodes = 0;
        Ok(self.replica.record.put_inodes(std::mem::take(&mut self.whole))?)
    }
}

/// Hands out frames until the window is answered.
fn receive(
    frames: &mut Frames,
    window: &Arc<Window>,
    workers: &mut Workers<'_>,
    shared: &Shared<'_>,
    progress: &dyn Fn(StageProgress),
) -> Result<(), StageError> {
    let mut allowance = Allowance::of_contents(window.items.len() as u64, window.bytes());
    loop {
        if shared.cancel.load(Ordering::Relaxed) {
            return Err(StageError::Cancelled);
        }
        if shared.failed() {
            return Ok(());
        }
        let frame = frames.next().unwrap_or(Err(FetchError::Disconnected(None)));
        match allowance.taken(frame.map_err(StageError::Fetch)?)? {
            Frame::Stored(frame) => {
                if workers.take(frame, window) == Done::Failed {
                    return Ok(());
                }
                progress(shared.done());
            }
            Frame::End { missing, .. } => {
                return match missing.first() {
                    None => Ok(()),
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

/// Copies the file that another entry has, which is in its place already. The inode number of the copy.
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

/// What a tree that was interrupted takes up already.
fn taken_by(dir: &Dir, block_bytes: u64, taken: &mut Demand) -> Result<(), DiskError> {
    for listed in dir.list()? {
        let Some(stat) = dir.stat(&listed.name)? else { continue };
        if stat.kind == FileType::Directory {
            taken.add(1, block_bytes);
            taken_by(&dir.open_dir(&listed.name)?, block_bytes, taken)?;
        } else {
            taken.add(if stat.kind == FileType::RegularFile { stat.size } else { 0 }, block_bytes);
        }
    }
    Ok(())
}

/// Gives every directory its owner, mode and times, children first.
fn finish(record: &Record, dir: &Dir, object: &ObjectHash, owners: Owners) -> Result<(), StageError> {
    for entry in record.directory(object)?.entries() {
        if let Kind::Directory { object, .. } = &entry.kind {
            let child = dir.open_dir(entry.name.as_bytes())?;
            finish(record, &child, object, owners)?;
            child.set_own_metadata(&entry.metadata, owners)?;
        }
    }
    Ok(())
}
