//! One pass over the tree: lists the planned directories, has files read, and builds directory objects from
//! the leaves up.
//!
//! The walk is depth-first. A directory is finished when all its files have been read and all its
//! subdirectories are finished. Only directories on the current path, and those that wait for a read, are in
//! memory.

mod finished;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use rustix::fs::FileType;
use syncd_shared::diff::DirectorySource as _;
use syncd_shared::directory::Edits;
use syncd_shared::limits::SYMLINK_TARGET_MAX_BYTES;
use syncd_shared::{Component, Entry, Kind, Metadata, ObjectHash, RootEntry, TreePath};
use tokio_util::sync::CancellationToken;

use super::content::{Content, ContentReader};
use super::error::ScanError;
use super::file_stat::FileStat;
use super::known_directory::KnownDirectory;
use super::links::Links;
use super::listing::{Listed, LookedUp, OpenDirectory};
use super::notices::{Loss, Notices};
use super::pending::{FoundEntries, Names, NewRecord, Pending, Previous};
use super::pool::{Done, Job, Pool};
use super::private_names::looks_private;
use super::scope::{Plan, Scope};
use super::stat_record::{Own, ReadFile, StatRecord};
use super::stat_rows;
use super::symlink_target::leaves_tree;
use super::task::{Known, Place, Task, join};
use super::{MtimePolicy, Progress, ScanOptions, SymlinkPolicy, Withheld};
use crate::store::Writer;
use crate::tree_objects::{TreeObjectError, TreeObjects};
use crate::watch::{Hints, Watch};
use syncd_shared::ignore_rules::{IgnoreRules, is_own};

/// Inputs of a pass.
pub(super) struct Pass<'a> {
    pub root: &'a Path,
    /// Former paths, with stat records, of directories that may have been renamed, by device and inode.
    pub moved: HashMap<(u64, u64), TreePath>,
    pub writer: &'a Writer,
    pub watch: Option<&'a Watch>,
    pub options: &'a ScanOptions,
    pub withheld: &'a Withheld,
    pub links: &'a Links,
    pub notices: &'a Notices,
    pub progress: &'a Progress,
    pub cancel: &'a CancellationToken,
}

/// Finds the stat records of subtrees that were hinted at because they are gone from their paths.
pub(super) fn moved(writer: &Writer, scope: &Scope) -> Result<HashMap<(u64, u64), TreePath>, ScanError> {
    let mut moved = HashMap::new();
    if let Scope::Parts { subtrees, .. } = scope {
        for path in subtrees {
            let bytes = writer.store().stat(path.as_bytes())?;
            if let Some(own) = bytes.as_deref().and_then(Own::of_record) {
                moved.insert((own.device, own.inode), path.clone());
            }
        }
    }
    Ok(moved)
}

/// Result of a pass.
#[derive(Debug, Default)]
pub(super) struct Walked {
    /// `None` if the tree does not exist, or no longer exists.
    pub root: Option<RootEntry>,
    /// Whether anything but directory times changed.
    pub real: bool,
    /// Changes noticed during the pass.
    pub again: Hints,
    /// Files that changed during every attempt to read them.
    pub moving: BTreeSet<TreePath>,
    pub times_only: BTreeSet<TreePath>,
    pub racy: Hints,
    pub skipped: BTreeSet<TreePath>,
    pub files_read: u64,
    pub bytes_read: u64,
    pub directories_listed: u64,
    pub records_changed: bool,
}

/// Makes one pass.
pub(super) fn walk(pass: &Pass<'_>, base: Option<RootEntry>, plan: &Plan) -> Result<Walked, ScanError> {
    std::thread::scope(|scope| {
        let reader = || ContentReader::new(pass.root, pass.writer, pass.notices, pass.progress, pass.cancel);
        let mut walk = Walk {
            pass,
            pool: Some(Pool::new(scope, reader)),
            pending: HashMap::new(),
            next: 0,
            walked: Walked::default(),
        };
        let place = Place {
            path: TreePath::root(),
            parent: None,
            previous: base.map(|root| (root.object, root.metadata)),
            rules: IgnoreRules::default(),
            source: None,
        };
        walk.visit(place, Task::of(plan))?;
        if let Some(pool) = walk.pool.take() {
            let done = pool.finish()?;
            walk.absorb(done)?;
        }
        Ok(walk.walked)
    })
}

struct Walk<'scope, 'env, F> {
    pass: &'env Pass<'env>,
    pool: Option<Pool<'scope, 'env, F>>,
    pending: HashMap<u64, Pending>,
    next: u64,
    walked: Walked,
}

/// The directory whose names are processed.
struct Here<'a> {
    id: u64,
    path: &'a TreePath,
    known: &'a Known,
    task: Task<'a>,
    rules: &'a IgnoreRules,
}

impl Here<'_> {
    /// The entry of a name in the base.
    fn before(&self, name: &Component) -> Option<&Entry> {
        self.known.previous.as_ref().and_then(|previous| previous.get(name))
    }
}

/// Object and metadata of an entry that is a directory.
fn directory_of(entry: Option<&Entry>) -> Option<(ObjectHash, Metadata)> {
    entry.and_then(|entry| match entry.kind {
        Kind::Directory { object, .. } => Some((object, entry.metadata)),
        Kind::File { .. } | Kind::Symlink { .. } | Kind::Collected { .. } => None,
    })
}

impl<'scope, 'env, F> Walk<'scope, 'env, F>
where
    F: Fn() -> ContentReader<'env> + Clone + Send + 'scope,
{
    /// Visits a directory: lists it, or only descends. Returns whether it existed.
    fn visit(&mut self, place: Place, task: Task<'_>) -> Result<bool, ScanError> {
        if self.pass.cancel.is_cancelled() {
            return Err(ScanError::Cancelled);
        }
        let Place { path, parent, previous, rules, source } = place;
        if task.list || previous.is_none() {
            self.watch(&path);
        }
        let Some(open) = OpenDirectory::open(self.pass.root, &path)? else { return Ok(false) };
        let own = open.stat()?;
        if !task.list
            && let Some(plan) = task.plan
            && let Some((object, metadata)) = previous
        {
            let previous = Some(self.planned(&path, object, metadata, plan)?);
            let record = stat_rows::of_names(self.pass.writer, &path, plan.names.iter())?;
            let (path, parent) = (path.clone(), parent.clone());
            let seen = KnownDirectory { path, parent, own, previous, record, moved: None };
            let ignore_file = if seen.is_known(plan) { open.ignore_file()? } else { None };
            if seen.is_known(plan)
                && seen.has_rules(ignore_file.as_ref().map(|file| file.stat))
                && let Some(names) = open.look_up_all(&plan.names)?
                && seen.is_told_by(&names)
            {
                let rules = match &ignore_file {
                    Some(file) => rules.with_file(&seen.path, &file.bytes)?,
                    None => rules,
                };
                return self.pass_through(seen, names, task, &rules).map(|()| true);
            }
        }
        self.watch(&path);
        let previous =
            previous.map(|(object, metadata)| self.previous(&path, object, metadata)).transpose()?;
        let (record, rows) = stat_rows::whole(self.pass.writer, &path)?;
        let moved = self.moved_record(record.as_ref(), &own, source)?;
        let seen = KnownDirectory { path, parent, own, previous, record, moved };
        self.list(seen, rows, open, task, rules).map(|()| true)
    }

    /// The record of a renamed directory under its former path. Renaming it changed none of its files.
    fn moved_record(
        &self,
        record: Option<&StatRecord>,
        own: &FileStat,
        source: Option<TreePath>,
    ) -> Result<Option<(TreePath, StatRecord)>, ScanError> {
        let own = Own::of(own);
        if record.is_some_and(|record| record.own.is_same(&own)) {
            return Ok(None);
        }
        let source = source.or_else(|| self.pass.moved.get(&(own.device, own.inode)).cloned());
        let Some(source) = source else { return Ok(None) };
        // Not from the writer: this pass may already have removed or replaced the record.
        let record = stat_rows::stored(self.pass.writer.store(), &source)?;
        Ok(record.filter(|record| record.own.is_same(&own)).map(|record| (source, record)))
    }

    fn previous(
        &self,
        path: &TreePath,
        object: ObjectHash,
        metadata: Metadata,
    ) -> Result<Previous, ScanError> {
        let objects = TreeObjects::Writer(self.pass.writer);
        let directory = objects.directory(&object).map_err(failed(path))?;
        let totals = objects.page(&object).map_err(failed(path))?.totals();
        Ok(Previous { object, metadata, totals, names: Names::All(directory) })
    }

    /// The same with the entries of the planned names only.
    fn planned(
        &self,
        path: &TreePath,
        object: ObjectHash,
        metadata: Metadata,
        plan: &Plan,
    ) -> Result<Previous, ScanError> {
        let objects = TreeObjects::Writer(self.pass.writer);
        let totals = objects.page(&object).map_err(failed(path))?.totals();
        let mut names = BTreeMap::new();
        for name in plan.names.iter().chain(plan.below.keys()) {
            if let Some(entry) = objects.entry(&object, name).map_err(failed(path))? {
                names.insert(name.clone(), entry);
            }
        }
        Ok(Previous { object, metadata, totals, names: Names::Planned(names) })
    }

    fn watch(&self, path: &TreePath) {
        if let Some(watch) = self.pass.watch {
            watch.directory(path);
        }
    }

    /// Takes everything from the base except these names and the planned subdirectories.
    fn pass_through(
        &mut self,
        mut seen: KnownDirectory,
        names: Vec<LookedUp>,
        task: Task<'_>,
        rules: &IgnoreRules,
    ) -> Result<(), ScanError> {
        let (path, previous) = (seen.path.clone(), seen.previous.clone());
        let before = seen.record.take();
        // The record is unchanged if no name is looked up.
        let record = match before.as_ref().filter(|_| !names.is_empty()) {
            Some(before) => NewRecord::Planned(StatRecord {
                own: Own::of(&seen.own),
                ignore_file: before.ignore_file,
                files: Vec::new(),
            }),
            None => NewRecord::Unchanged,
        };
        let mut planned: Edits = names.iter().map(|(name, _)| (name.clone(), None)).collect();
        let below = task.plan.iter().flat_map(|plan| &plan.below);
        let collected = |name: &Component| Ok::<_, ScanError>(self.collected(&join(&path, name)?).cloned());
        let mut below: Vec<_> = below.filter(|(name, _)| !planned.contains_key(*name)).collect();
        below.retain(|(name, _)| !matches!(collected(name), Ok(Some(_))));
        for (name, entry) in &mut planned {
            *entry = collected(name)?;
        }
        planned.extend(below.iter().map(|(name, _)| ((*name).clone(), None)));
        let id = self.begin(seen, FoundEntries::Planned(planned), record);
        for (name, plan) in below {
            let entry = previous.as_ref().and_then(|previous| previous.get(name));
            let place = Place {
                path: join(&path, name)?,
                parent: Some((id, name.clone())),
                previous: directory_of(entry),
                rules: rules.clone(),
                source: None,
            };
            self.descend(id, place, Task::of(plan))?;
        }
        for (name, _) in names.iter().filter(|(_, listed)| listed.is_none()) {
            self.pass.links.forget(&path, name);
        }
        let names = names.into_iter().filter_map(|(_, listed)| listed).collect();
        let known = Known { previous, record: before, source: None, whole: false };
        self.names(&Here { id, path: &path, known: &known, task, rules }, names)?;
        self.release(id)
    }

    fn list(
        &mut self,
        mut seen: KnownDirectory,
        rows: stat_rows::Rows,
        open: OpenDirectory,
        task: Task<'_>,
        rules: IgnoreRules,
    ) -> Result<(), ScanError> {
        open.tell_attributes(self.pass.notices);
        let listing = open.list()?;
        let path = seen.path.clone();
        if let Some(mark) = listing.mark {
            return Err(ScanError::Marked { path, mark });
        }
        self.walked.directories_listed += 1;
        if listing.torn {
            self.walked.again.add_directory(path.clone());
        }
        seen.own = listing.own;
        let own = Own::of(&listing.own);
        let ignore_file = listing.ignore_file.as_ref().map(|file| file.stat.fingerprint);
        // With another directory under this name, or other rules, nothing below is known any more.
        let whole = task.whole
            || seen.previous.is_none()
            || seen.record.as_ref().is_some_and(|r| !r.own.is_same(&own) || r.ignore_file != ignore_file);
        let rules = match &listing.ignore_file {
            Some(file) => rules.with_file(&path, &file.bytes)?,
            None => rules,
        };
        let (source, moved) = seen.moved.take().unzip();
        let record = moved.or(seen.record.take());
        let known = Known { previous: seen.previous.clone(), record, source, whole };
        self.pass.links.keep_only(&path, &listing.names.iter().map(|listed| &listed.name).collect());
        let record = NewRecord::All(StatRecord { own, ignore_file, files: Vec::new() }, rows);
        let placed = self.pass.options.collected.in_directory(&path).cloned().collect();
        let id = self.begin(seen, FoundEntries::All(placed), record);
        self.names(&Here { id, path: &path, known: &known, task, rules: &rules }, listing.names)?;
        self.release(id)
    }

    /// Processes the current names of a directory.
    fn names(&mut self, here: &Here<'_>, names: Vec<Listed>) -> Result<(), ScanError> {
        let mut directories = Vec::new();
        for listed in names {
            if is_own(&listed.name) {
                continue;
            }
            let child = join(here.path, &listed.name)?;
            if self.collected(&child).is_some() || here.rules.excludes(&child, listed.stat.is_directory()) {
                continue;
            }
            if listed.stat.full_mode & 0o6000 != 0 && listed.stat.kind != FileType::Symlink {
                self.pass.notices.tell(Loss::SetId, &child);
            }
            if here.before(&listed.name).is_none() && looks_private(listed.name.as_bytes()) {
                self.pass.notices.looks_private(&child);
            }
            if listed.stat.is_directory() {
                directories.push((child, listed));
            } else {
                self.leaf(here, child, listed)?;
            }
        }
        directories.into_iter().try_for_each(|(child, listed)| self.subdirectory(here, child, listed))
    }

    /// Processes a name that is no directory.
    fn leaf(&mut self, here: &Here<'_>, child: TreePath, listed: Listed) -> Result<(), ScanError> {
        let before = here.before(&listed.name);
        match listed.stat.kind {
            FileType::RegularFile => {
                if let Some(published) = self.pass.withheld.get(&child) {
                    // Without a record, so that the file is read once it is quiet.
                    if let Some(entry) = published.as_ref().filter(|entry| !entry.is_directory()) {
                        self.add(here.id, entry.clone());
                    }
                    return Ok(());
                }
                self.pass.links.saw(here.path, &listed.name, &listed.stat);
                self.file(here, child, listed)
            }
            FileType::Symlink => self.symlink(here.id, child, listed, before),
            _ => {
                self.pass.notices.tell(Loss::Special, &child);
                self.walked.skipped.insert(child);
                Ok(())
            }
        }
    }

    /// Descends into a subdirectory, or takes it as it was.
    fn subdirectory(&mut self, here: &Here<'_>, child: TreePath, listed: Listed) -> Result<(), ScanError> {
        let (known, plan) = (here.known, here.task.below(&listed.name));
        let before = here.before(&listed.name).filter(|entry| entry.is_directory());
        let whole = known.whole || before.is_none() || plan.is_some_and(|plan| plan.whole);
        match before {
            Some(entry) if !whole && plan.is_none() && self.is_unchanged(&child, &listed.stat)? => {
                self.add(here.id, Entry { metadata: listed.stat.metadata(), ..entry.clone() });
                Ok(())
            }
            _ => {
                let list = whole || plan.is_none_or(|plan| plan.list);
                let place = Place {
                    path: child,
                    previous: directory_of(before),
                    rules: here.rules.clone(),
                    source: known.source.as_ref().and_then(|source| source.join(&listed.name).ok()),
                    parent: Some((here.id, listed.name)),
                };
                self.descend(here.id, place, Task { list, whole, plan })
            }
        }
    }

    /// The collected directory that is published at a path.
    fn collected(&self, path: &TreePath) -> Option<&'env Entry> {
        self.pass.options.collected.at(path)
    }

    /// Whether this is the last listed directory, with the same names.
    fn is_unchanged(&self, path: &TreePath, stat: &FileStat) -> Result<bool, ScanError> {
        let record = self.pass.writer.stat(path.as_bytes())?;
        Ok(record.as_deref().and_then(Own::of_record) == Some(Own::of(stat)))
    }

    /// Visits a subdirectory of the directory with this ID.
    fn descend(&mut self, id: u64, place: Place, task: Task<'_>) -> Result<(), ScanError> {
        self.wait(id);
        if !self.visit(place, task)? {
            // The subdirectory vanished, so its parent must be listed again.
            if let Some(pending) = self.pending.get(&id) {
                self.walked.again.add_directory(pending.path.clone());
            }
            self.release(id)?;
        }
        Ok(())
    }

    fn file(&mut self, here: &Here<'_>, path: TreePath, listed: Listed) -> Result<(), ScanError> {
        let (id, before) = (here.id, here.before(&listed.name));
        let fingerprint = listed.stat.fingerprint;
        let known = here.known.record.as_ref().and_then(|record| record.known(&listed.name, &fingerprint));
        if let Some(known) = known
            && !self.pass.options.read_all
            && self.is_stored(known, before)?
        {
            let known = known.clone();
            let kind = Kind::File { content: known.content, size: fingerprint.size };
            let entry = self.entry(listed.name, &listed.stat, kind, before);
            if let Some(record) = self.pending.get_mut(&id).and_then(|pending| pending.record.files()) {
                record.files.push(known);
            }
            self.add(id, entry);
            return Ok(());
        }
        self.wait(id);
        self.pass.progress.grow_total(1, fingerprint.size);
        let job = Job { directory: id, name: listed.name, path };
        let done = match self.pool.as_mut() {
            Some(pool) => pool.submit(job, fingerprint.size)?,
            None => Vec::new(),
        };
        self.absorb(done)
    }

    /// Whether the content of a file read earlier is still in the store. Garbage collection may have removed
    /// it if no generation refers to it.
    fn is_stored(&self, known: &ReadFile, before: Option<&Entry>) -> Result<bool, ScanError> {
        let in_base = before.is_some_and(|entry| match entry.kind {
            Kind::File { content, size } => content == known.content && size == known.fingerprint.size,
            Kind::Directory { .. } | Kind::Symlink { .. } | Kind::Collected { .. } => false,
        });
        Ok(in_base || self.pass.writer.has_content(&known.content, known.fingerprint.size)?)
    }

    fn symlink(
        &mut self,
        id: u64,
        path: TreePath,
        listed: Listed,
        before: Option<&Entry>,
    ) -> Result<(), ScanError> {
        let target = listed.target.unwrap_or_default();
        if target.len() > SYMLINK_TARGET_MAX_BYTES {
            let (actual, limit) = (target.len(), SYMLINK_TARGET_MAX_BYTES);
            return Err(ScanError::SymlinkTarget { path, actual, limit });
        }
        if self.pass.options.symlinks == SymlinkPolicy::Inside && leaves_tree(&path, &target) {
            return Err(ScanError::SymlinkLeaves { path });
        }
        let entry = self.entry(listed.name, &listed.stat, Kind::Symlink { target }, before);
        self.add(id, entry);
        Ok(())
    }

    /// An entry with the modification time chosen by the policy.
    fn entry(&self, name: Component, stat: &FileStat, kind: Kind, before: Option<&Entry>) -> Entry {
        let mut metadata = stat.metadata();
        let keeps = |before: &&Entry| match self.pass.options.mtime {
            MtimePolicy::Tree => false,
            MtimePolicy::Keep => before.kind == kind && before.metadata.mode == metadata.mode,
            MtimePolicy::Distinct => before.kind == kind,
        };
        if let Some(before) = before.filter(keeps) {
            metadata.mtime = before.metadata.mtime;
        }
        Entry { name, metadata, kind }
    }

    /// Processes results of reading.
    fn absorb(&mut self, done: Vec<Done>) -> Result<(), ScanError> {
        for Done { job: Job { directory: id, name, path }, content } in done {
            let Some(pending) = self.pending.get(&id) else { continue };
            match content {
                Content::Gone => {
                    self.walked.again.add_directory(pending.path.clone());
                }
                Content::Torn => {
                    self.walked.again.add_directory(pending.path.clone());
                    self.walked.moving.insert(path);
                }
                Content::Read { stat, hash, racy } => {
                    let fingerprint = stat.fingerprint;
                    self.walked.files_read += 1;
                    self.walked.bytes_read += fingerprint.size;
                    if racy {
                        self.walked.racy.add_name(pending.path.clone(), name.clone());
                    }
                    let kind = Kind::File { content: hash, size: fingerprint.size };
                    let before = pending.previous.as_ref().and_then(|previous| previous.get(&name));
                    let entry = self.entry(name.clone(), &stat, kind, before);
                    if let Some(pending) = self.pending.get_mut(&id) {
                        pending.entries.add(entry);
                        if let Some(record) = pending.record.files() {
                            record.files.push(ReadFile { name, fingerprint, content: hash, racy });
                        }
                    }
                }
            }
            self.release(id)?;
        }
        Ok(())
    }

    fn begin(&mut self, seen: KnownDirectory, entries: FoundEntries, record: NewRecord) -> u64 {
        self.next += 1;
        let KnownDirectory { path, parent, own, previous, .. } = seen;
        let pending = Pending { path, parent, own, previous, entries, waiting: 1, real: false, record };
        self.pending.insert(self.next, pending);
        self.next
    }

    fn add(&mut self, id: u64, entry: Entry) {
        if let Some(pending) = self.pending.get_mut(&id) {
            pending.entries.add(entry);
        }
    }

    fn wait(&mut self, id: u64) {
        if let Some(pending) = self.pending.get_mut(&id) {
            pending.waiting += 1;
        }
    }

    /// Decrements the count that a directory waits for. At zero, finishes the directory and possibly those
    /// above.
    fn release(&mut self, id: u64) -> Result<(), ScanError> {
        let mut id = id;
        loop {
            let Some(pending) = self.pending.get_mut(&id) else { return Ok(()) };
            pending.waiting -= 1;
            if pending.waiting > 0 {
                return Ok(());
            }
            let Some(pending) = self.pending.remove(&id) else { return Ok(()) };
            match self.finish(pending)? {
                Some(parent) => id = parent,
                None => return Ok(()),
            }
        }
    }
}

fn failed(path: &TreePath) -> impl Fn(TreeObjectError) -> ScanError {
    let path = path.clone();
    move |source| match source {
        TreeObjectError::Missing { .. } => ScanError::BaseMissing { path: path.clone() },
        source => ScanError::Objects { path: path.clone(), source },
    }
}
