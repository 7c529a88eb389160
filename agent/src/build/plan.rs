//! Decides where every file of a part of an update comes from: a link, a copy, or the origin.

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

use syncd_shared::diff::{Change, DirectorySource, Part, Released};
use syncd_shared::limits::{OBJECTS_BATCH_BYTES, OBJECTS_BATCH_MAX};
use syncd_shared::manifest_cursor::ManifestCursor;
use syncd_shared::wire::ObjectsBatch;
use syncd_shared::{ContentHash, ContentTag, Entry, Kind, Progress, RootEntry, RootHash, TreePath};

use crate::build::delta::Bases;
use crate::build::incoming::{Incoming, Wanted};
use crate::build::patch::Supply;
use crate::build::receive::Reception;
use crate::build::receive_budget::ReceiveBudget;
use crate::build::writeback::Writeback;
use crate::build::{Job, StageError};
use crate::source::{FetchError, Frames, Source, all_of};
use crate::state::cursor::{DirCursor, LiveTree, looks_like};
use crate::state::disk::{self, Dir};
use crate::state::hashing::hash_file;
use crate::state::record::Record;
use crate::state::trees::Trees;

/// Threads that copy content which the node has.
const COPIERS_MAX: usize = 4;
/// Smallest number of contents that justifies another copying thread.
const COPIES_LEAST: usize = 512;

/// Source of one changed entry.
#[derive(Debug, Clone)]
enum ContentSource {
    /// Nothing to do, or made directly: directories, symlinks, empty files.
    Made,
    /// The inode at this path of the tree in this slot.
    Link(u64, TreePath),
    /// A file in `staging/incoming`.
    Incoming(ContentHash),
}

/// Plan for one part.
pub(crate) struct Plan<'a> {
    incoming: &'a Incoming,
    part: &'a Part<'a>,
    sources: Vec<ContentSource>,
    wanted: HashMap<ContentHash, Wanted>,
    /// Keys of `wanted`, by first use in path order.
    order: Vec<ContentHash>,
    /// Contents that have not arrived yet.
    lacking: Vec<ContentHash>,
}

/// Places on this node where one thread looks for contents.
struct Elsewhere<'a> {
    trees: &'a Trees,
    copies: &'a HashMap<ContentHash, (u64, &'a TreePath)>,
    released: &'a Released<'a, &'a Record>,
    open: HashMap<u64, Option<DirCursor>>,
}

impl Elsewhere<'_> {
    /// Copies a content to `incoming`. Returns whether it was found.
    fn copy(
        &mut self,
        content: ContentHash,
        wanted: &Wanted,
        incoming: &Incoming,
    ) -> Result<bool, StageError> {
        let own = self.copies.get(&content).map(|(tree, path)| Ok((*tree, (*path).clone())));
        let live = self.trees.live_slot().unwrap_or(0);
        let of_live = self.released.files(content).map(|file| Ok((live, file?.path)));
        for place in own.into_iter().chain(of_live) {
            let (tree, path) = place.map_err(StageError::Diff)?;
            let Some((parent, name)) = path.split_last() else { continue };
            let trees = self.trees;
            let open = || trees.open(tree).ok().map(DirCursor::new);
            let cursor = self.open.entry(tree).or_insert_with(open);
            if let Some(Ok(dir)) = cursor.as_mut().map(|cursor| cursor.at(&parent))
                && incoming.copy(content, wanted, dir, name.as_bytes())?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// A held tree whose files are reused under the same path.
struct Held<'a> {
    slot: u64,
    manifest: ManifestCursor<'a, Record>,
    dirs: DirCursor,
}

/// Trees whose files are reused.
struct Reused<'a> {
    trees: &'a Trees,
    live: Option<LiveTree<'a>>,
    held: Vec<Held<'a>>,
}

impl<'a> Plan<'a> {
    /// Makes a plan and copies contents that this node has to `incoming`, verified.
    pub fn make(
        trees: &Trees,
        from: Option<&RootEntry>,
        part: &'a Part<'a>,
        released: &mut Released<'_, &Record>,
        incoming: &'a Incoming,
        are_missing: bool,
    ) -> Result<Self, StageError> {
        let live = from.map(|root| trees.live_tree(root)).transpose()?;
        let mut reused = Reused { trees, live, held: held_trees(trees) };
        let live_slot = trees.live_slot().unwrap_or(0);
        let mut plan = Self {
            incoming,
            part,
            sources: Vec::new(),
            wanted: HashMap::new(),
            order: Vec::new(),
            lacking: Vec::new(),
        };
        let mut copies: HashMap<ContentHash, (u64, &TreePath)> = HashMap::new();
        for change in part.changes.iter() {
            let source = match change {
                Change::Removed { .. } => ContentSource::Made,
                Change::Added { path, entry } | Change::Modified { path, to: entry, .. } => {
                    if let Kind::File { content, .. } = &entry.kind
                        && (are_missing || has_other_metadata(change))
                    {
                        // The hole may be only in inode or metadata, so the content is still worth a copy.
                        // Copies are verified by hash.
                        copies.entry(*content).or_insert((live_slot, path));
                    }
                    plan.source_of(path, entry, &mut reused, released, &mut copies)?
                }
            };
            plan.sources.push(source);
        }
        plan.copy(trees, &copies, released)?;
        Ok(plan)
    }

    fn source_of(
        &mut self,
        path: &'a TreePath,
        entry: &Entry,
        reused: &mut Reused<'_>,
        released: &mut Released<'_, &Record>,
        copies: &mut HashMap<ContentHash, (u64, &'a TreePath)>,
    ) -> Result<ContentSource, StageError> {
        let Reused { trees, live, held } = reused;
        let Kind::File { content, size } = entry.kind else { return Ok(ContentSource::Made) };
        if size == 0 {
            return Ok(ContentSource::Made);
        }
        // A renamed file loses its old name, so its inode can be linked under the new one, once.
        if let Some(live) = live
            && let Some(old) = released.like(content, &entry.metadata)?
            && live.checked(&old.path, entry)?.is_some()
        {
            released.take(&old);
            return Ok(ContentSource::Link(trees.live_slot().unwrap_or(0), old.path));
        }
        for index in 0..held.len() {
            let tree = &mut held[index];
            let slot = tree.slot;
            match tree.manifest.entry(path)? {
                Some(there)
                    if there == *entry
                        && tree.is_intact(path, entry, trees)?
                        && is_only_there(held, index, path)? =>
                {
                    return Ok(ContentSource::Link(slot, path.clone()));
                }
                Some(Entry { kind: Kind::File { content: c, .. }, .. }) if c == content => {
                    copies.entry(content).or_insert((slot, path));
                }
                _ => {}
            }
        }
        let wanted = self.wanted.entry(content).or_insert_with(|| {
            self.order.push(content);
            Wanted { size, metadata: entry.metadata, users: 0 }
        });
        if wanted.size != size {
            return Err(StageError::Missing { content });
        }
        wanted.users += 1;
        Ok(ContentSource::Incoming(content))
    }

    /// Copies contents that the node has elsewhere. The rest stays missing.
    fn copy(
        &mut self,
        trees: &Trees,
        copies: &HashMap<ContentHash, (u64, &TreePath)>,
        released: &Released<'_, &Record>,
    ) -> Result<(), StageError> {
        let Self { incoming, wanted, order, .. } = self;
        let copy = |contents: &[ContentHash]| {
            let mut elsewhere = Elsewhere { trees, copies, released, open: HashMap::new() };
            let mut lacking = Vec::new();
            for content in contents {
                if let Some(wanted) = wanted.get(content)
                    && !incoming.has(*content, wanted.size)?
                    && !elsewhere.copy(*content, wanted, incoming)?
                {
                    lacking.push(*content);
                }
            }
            Ok::<_, StageError>(lacking)
        };
        let each = order.len().div_ceil(syncd_runtime::threads::at_most(COPIERS_MAX)).max(COPIES_LEAST);
        if order.len() <= each {
            self.lacking = copy(order)?;
            return Ok(());
        }
        let copied = std::thread::scope(|scope| {
            let copiers: Vec<_> =
                order.chunks(each).map(|contents| scope.spawn(move || copy(contents))).collect();
            let join = |copier: std::thread::ScopedJoinHandle<'_, _>| {
                copier.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            copiers.into_iter().map(join).collect::<Result<Vec<_>, _>>()
        });
        self.lacking = copied?.concat();
        Ok(())
    }

    /// Fetches the missing contents. Returns what arrived. Reads this part from `update`, and sets `update`
    /// to `None` when it has ended or was refused.
    pub fn fetch(
        &mut self,
        trees: &Trees,
        job: Job<'_>,
        update: &mut Option<Frames>,
        source: &mut dyn Source,
    ) -> Result<Progress, StageError> {
        let Job { progress, cancel, .. } = job;
        let root = job.target.root_hash();
        if self.lacking.is_empty() && (self.part.is_last || update.is_none()) {
            return Ok(Progress::default());
        }
        let bytes_total = self.lacking.iter().filter_map(|c| self.wanted.get(c)).map(|w| w.size).sum();
        let live = trees.live_root();
        let mut reception = Reception {
            incoming: self.incoming,
            wanted: &self.wanted,
            cancel,
            files_done: AtomicU64::new(0),
            bytes_done: AtomicU64::new(0),
            files_total: self.lacking.len() as u64,
            bytes_total,
            writeback: Writeback::new(&trees.layout.staging)?,
            bases: live.map(|live| Bases::new(trees, live, &self.part.changes)),
            tags: OnceLock::new(),
        };
        progress(reception.done());
        if let Some(frames) = update.take() {
            *update = self.receive_update(trees, &mut reception, frames, progress)?;
        }
        // The general path cannot use pieces of incomplete contents.
        self.incoming.drop_parts();
        let mut lacking = std::mem::take(&mut self.lacking);
        lacking.retain(|content| self.incoming.arrived(*content).is_none());
        if !lacking.is_empty() {
            lacking = copy_from_live(trees, self.incoming, &self.wanted, lacking)?;
        }
        if !lacking.is_empty() {
            // The origin answers an agent's requests one by one, so the rest of the update would delay this
            // request.
            *update = None;
        }
        self.fetch_by_hash(root, &mut reception, &lacking, source, progress)?;
        let done = reception.done();
        progress(done);
        match lacking.iter().find(|c| self.incoming.arrived(**c).is_none()) {
            Some(content) => Err(StageError::Missing { content: *content }),
            None => Ok(done),
        }
    }

    /// Receives this part of an update. Returns the frames of the next part, or `None` if the update has
    /// ended or does not fit: everything can be fetched by hash.
    fn receive_update(
        &self,
        trees: &Trees,
        reception: &mut Reception<'_>,
        mut frames: Frames,
        progress: &dyn Fn(Progress),
    ) -> Result<Option<Frames>, StageError> {
        match reception.receive(&mut frames, 1, budget_of(self.part), progress) {
            Ok(not_sent) => {
                copy_named(trees, self.incoming, &self.wanted, &not_sent.local)?;
                Ok(not_sent.more.then_some(frames))
            }
            Err(e) if e.is_transient() => Err(e),
            Err(e) => {
                tracing::warn!(error = &e as &dyn std::error::Error, "update refused, fetching by hash");
                Ok(None)
            }
        }
    }

    /// Fetches contents by hash. Two contents with the same tag are never asked for at once.
    fn fetch_by_hash(
        &self,
        root: RootHash,
        reception: &mut Reception<'_>,
        contents: &[ContentHash],
        source: &mut dyn Source,
        progress: &dyn Fn(Progress),
    ) -> Result<(), StageError> {
        let mut waiting = contents.to_vec();
        while !waiting.is_empty() {
            let mut tags = HashMap::new();
            let (round, rest): (Vec<_>, Vec<_>) = waiting
                .into_iter()
                .partition(|content| *tags.entry(ContentTag::of(content)).or_insert(*content) == *content);
            waiting = rest;
            reception.tags = OnceLock::from(tags);
            let batches = batches(&round, &self.wanted);
            let answers = batches.len();
            let mut frames = source.objects(root, all_of(batches)).map_err(StageError::Fetch)?;
            let sizes = round.iter().filter_map(|content| self.wanted.get(content)).map(|wanted| wanted.size);
            let budget = ReceiveBudget::of_contents(round.len() as u64, sizes.sum());
            let not_sent = reception.receive(&mut frames, answers, budget, progress)?;
            if let Some(content) = not_sent.missing.first() {
                let content = ContentHash::from_bytes(*content);
                return Err(StageError::Fetch(FetchError::MissingContent { content }));
            }
        }
        Ok(())
    }

    /// Returns the supply that puts the files into the tree.
    pub fn supply<'b>(&'b mut self, trees: &'b Trees) -> Result<PlanSupply<'b>, StageError> {
        let mut open = HashMap::new();
        for source in &self.sources {
            if let ContentSource::Link(tree, _) = source
                && !open.contains_key(tree)
            {
                open.insert(*tree, DirCursor::new(trees.open(*tree)?));
            }
        }
        Ok(PlanSupply {
            incoming: self.incoming,
            sources: &self.sources,
            wanted: &mut self.wanted,
            open,
            trees,
        })
    }
}

/// Supplies files and symlinks according to the plan.
pub(crate) struct PlanSupply<'a> {
    incoming: &'a Incoming,
    sources: &'a [ContentSource],
    wanted: &'a mut HashMap<ContentHash, Wanted>,
    open: HashMap<u64, DirCursor>,
    trees: &'a Trees,
}

impl Supply for PlanSupply<'_> {
    fn replaces(&self, change: usize) -> bool {
        // The file itself is renamed into place. Copies for several users are made under free names.
        match &self.sources[change] {
            ContentSource::Incoming(content) => {
                self.wanted.get(content).is_some_and(|wanted| wanted.users == 1)
            }
            _ => false,
        }
    }

    fn put(
        &mut self,
        change: usize,
        _: &TreePath,
        entry: &Entry,
        dir: &Dir,
        name: &[u8],
    ) -> Result<u64, StageError> {
        match (&self.sources[change], &entry.kind) {
            (ContentSource::Link(tree, from), _) => {
                if let Some((parent, own)) = from.split_last()
                    && let Some(cursor) = self.open.get_mut(tree)
                {
                    cursor.at(&parent)?.link(own.as_bytes(), dir, name)?;
                }
            }
            (ContentSource::Incoming(content), _) => {
                let wanted = self.wanted.get_mut(content).ok_or(StageError::Missing { content: *content })?;
                wanted.users = wanted.users.saturating_sub(1);
                return self.incoming.place(*content, &entry.metadata, wanted.users == 0, dir, name);
            }
            (_, Kind::Symlink { .. } | Kind::Collected { .. }) => self.trees.link(dir, name, entry)?,
            _ => {
                drop(dir.create_file(name)?);
                dir.set_metadata(name, &entry.metadata, self.trees.owners, false)?;
            }
        }
        Ok(dir.stat(name)?.map_or(0, |s| s.inode))
    }
}

/// Allows everything that a part may bring, including content that this node has, because the part is read to
/// its end.
fn budget_of(part: &Part<'_>) -> ReceiveBudget {
    let sizes = part.changes.iter().filter_map(|change| match change {
        Change::Added { entry, .. } | Change::Modified { to: entry, .. } => match entry.kind {
            Kind::File { size, .. } => Some(size),
            _ => None,
        },
        Change::Removed { .. } => None,
    });
    let (files, bytes) = sizes
        .fold((0u64, 0u64), |(files, bytes), size| (files.saturating_add(1), bytes.saturating_add(size)));
    ReceiveBudget::of_contents(files, bytes)
}

/// Whether a change affects only the metadata of a file.
fn has_other_metadata(change: &Change) -> bool {
    let Change::Modified { from, to, .. } = change else { return false };
    matches!(
        (&from.kind, &to.kind),
        (Kind::File { content, .. }, Kind::File { content: other, .. }) if content == other
    )
}

/// Whether the inode that `held[index]` has at `path` has no other name in the held trees. An inode with
/// another name may already be in the new tree under another path, and two names of one tree never share an
/// inode.
fn is_only_there(held: &mut [Held<'_>], index: usize, path: &TreePath) -> Result<bool, StageError> {
    let Some(stat) = held[index].stat(path)? else { return Ok(false) };
    let mut names = 0;
    for tree in held {
        names += u64::from(tree.stat(path)?.is_some_and(|s| s.inode == stat.inode));
    }
    Ok(names == stat.links)
}

impl Held<'_> {
    fn stat(&mut self, path: &TreePath) -> Result<Option<disk::Stat>, StageError> {
        let Some((parent, name)) = path.split_last() else { return Ok(None) };
        match self.dirs.at(&parent) {
            // A directory that this user may not read is not used.
            Ok(dir) => {
                Ok(dir.stat(name.as_bytes()).or_else(|e| if e.is_denied() { Ok(None) } else { Err(e) })?)
            }
            // The path is missing, or is not a directory.
            Err(_) => Ok(None),
        }
    }

    /// Whether the file at `path` has the content and metadata given by the manifest. Reads the file.
    fn is_intact(&mut self, path: &TreePath, entry: &Entry, trees: &Trees) -> Result<bool, StageError> {
        let (Some((parent, name)), Kind::File { content, .. }) = (path.split_last(), &entry.kind) else {
            return Ok(false);
        };
        let Ok(dir) = self.dirs.at(&parent) else { return Ok(false) };
        let Ok(there) = dir.stat(name.as_bytes()) else { return Ok(false) };
        if !there.is_some_and(|s| looks_like(entry, &s, trees.owners)) {
            return Ok(false);
        }
        let Ok(file) = dir.open_file(name.as_bytes()) else { return Ok(false) };
        Ok(hash_file(&file).is_ok_and(|hash| hash == *content))
    }
}

fn held_trees(trees: &Trees) -> Vec<Held<'_>> {
    let mut held = Vec::new();
    for (slot, generation) in trees.others() {
        // A tree that is damaged, or has no readable manifest, is not used.
        if let Ok(manifest) = ManifestCursor::new(&*trees.record, &generation.generation().root)
            && let Ok(dir) = trees.open(*slot)
        {
            held.push(Held { slot: *slot, manifest, dirs: DirCursor::new(dir) });
        }
    }
    held
}

/// Copies the contents that the origin says are in the live tree.
fn copy_named(
    trees: &Trees,
    incoming: &Incoming,
    wanted: &HashMap<ContentHash, Wanted>,
    named: &[(ContentHash, TreePath)],
) -> Result<(), StageError> {
    let Some(live) = trees.live_root() else { return Ok(()) };
    let mut tree = trees.live_tree(&live)?;
    for (content, path) in named {
        if let Some(want) = wanted.get(content)
            && incoming.arrived(*content).is_none()
            && let Some((parent, name)) = path.split_last()
            && let Ok(dir) = tree.dir(&parent)
        {
            incoming.copy(*content, want, dir, name.as_bytes())?;
        }
    }
    Ok(())
}

/// Searches the live tree's manifest for contents, and copies them. Returns those still missing. The cost
/// follows the tree, so this runs only where the origin could not name the differences.
fn copy_from_live(
    trees: &Trees,
    incoming: &Incoming,
    wanted: &HashMap<ContentHash, Wanted>,
    lacking: Vec<ContentHash>,
) -> Result<Vec<ContentHash>, StageError> {
    let Some(live) = trees.live_root() else { return Ok(lacking) };
    let mut sought: HashSet<ContentHash> = lacking.iter().copied().collect();
    let mut found = Vec::new();
    let mut waiting = vec![(TreePath::root(), live.object)];
    while let Some((path, object)) = waiting.pop() {
        if sought.is_empty() {
            break;
        }
        let Ok(directory) = trees.record.directory(&object) else { continue };
        for entry in directory.entries() {
            let path = path.join(&entry.name).map_err(|source| StageError::Path { source })?;
            match entry.kind {
                Kind::Directory { object, .. } => waiting.push((path, object)),
                Kind::File { content, .. } if sought.remove(&content) => found.push((content, path)),
                _ => {}
            }
        }
    }
    found.sort_by(|a, b| a.1.cmp(&b.1));
    copy_named(trees, incoming, wanted, &found)?;
    Ok(lacking.into_iter().filter(|c| incoming.arrived(*c).is_none()).collect())
}

/// Splits a request into batches of bounded number and size.
fn batches(lacking: &[ContentHash], wanted: &HashMap<ContentHash, Wanted>) -> Vec<ObjectsBatch> {
    let mut batches = Vec::new();
    let (mut files, mut bytes) = (Vec::new(), 0u64);
    for content in lacking {
        let size = wanted.get(content).map_or(0, |w| w.size);
        if !files.is_empty()
            && (files.len() == OBJECTS_BATCH_MAX || bytes.saturating_add(size) > OBJECTS_BATCH_BYTES)
        {
            let files = std::mem::take(&mut files);
            batches.push(ObjectsBatch { files, ..ObjectsBatch::default() });
            bytes = 0;
        }
        files.push(*content);
        bytes = bytes.saturating_add(size);
    }
    if !files.is_empty() {
        batches.push(ObjectsBatch { files, ..ObjectsBatch::default() });
    }
    batches
}
