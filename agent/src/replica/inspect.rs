//! Inspects trees that go out of use for files that no manifest explains, and keeps those files.
//!
//! A tree that was live may contain files that visitors wrote or changed. Before it is patched into a spare
//! or discarded, it is compared with its OWN manifest, never with the live tree: a directory that was removed
//! and came back has new inodes in the live tree, although nobody changed anything. Every difference moves to
//! [`crate::state::lost_found`], directories as a whole, and is counted in one report. Trees share inodes, so
//! a file edited in place is edited in all of them. Such a file is kept and reported with the first tree, and
//! removed from the others.
//!
//! ```text
//! held --retire--> retired --inspect--> building (recycled), or trash
//! ```
//!
//! If this process saw the tree's activation, a directory that was not changed since still has the same
//! names, and is not listed. The cost then follows the directories. Files changed in place do not show in
//! their directory, so from time to time, and after a start, every name is checked ([`WHOLE_EVERY`]). A crash
//! leaves the tree retired, to be inspected again.
//!
//! After the record was lost, the generation of a tree is uncertain, and its manifest may be missing. The
//! live manifest may then explain a name as well. A name that neither manifest explains moves to lost+found,
//! and missing names are not reported.

mod drift;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::FileType;
use syncd_shared::diff::DirectorySource as _;
use syncd_shared::directory::Cursor;
use syncd_shared::{Component, Directory, Entry, Kind, ObjectHash, RootEntry, Timestamp, TreePath};

use crate::build::StageError;
use crate::replica::Replica;
use crate::state::cursor::{DirCursor, LiveTree};
use crate::state::disk::{Dir, Stat};
use crate::state::hashing::hash_file;
use crate::state::layout::Layout;
use crate::state::lost_found::{KeepError, LostFound};
use crate::state::record::{Record, RecordError};
use crate::state::slot::{FormerTree, Slot};
use crate::state::trees::Trees;
use crate::status::Drift;

/// Interval at which one retired tree is inspected with every name checked.
const WHOLE_EVERY: Duration = Duration::from_secs(600);

/// Foreign names of one directory that are kept. Others are only counted.
const NAMES_MAX: usize = 64 * 1024;

/// A directory and its manifest.
type Subdirectory = (TreePath, Option<ObjectHash>);

/// Extent of an inspection.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scope<'a> {
    /// Directories that were changed since the tree was activated, if that is known.
    Changed,
    Whole,
    /// The whole tree, in which these files are damaged.
    Damaged(&'a HashSet<TreePath>),
}

/// Findings of an inspection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    /// Number of names that differ from the manifest. A directory that the manifest does not have counts as
    /// one.
    paths: u64,
    /// The first of these names.
    first: Option<TreePath>,
    /// Number of names moved to lost+found.
    kept: u64,
    /// Kept names that no manifest has: the next inspection does not find their place empty.
    strangers: u64,
    /// Number of names that could not be kept.
    lost: u64,
    /// Files already kept from another generation's tree. They are removed from this one, and not counted.
    repeats: HashSet<TreePath>,
    /// One of those generations.
    kept_before: Option<u64>,
}

/// Opens lost+found on first use.
struct Keeper<'a> {
    lost: LostFound<'a>,
    /// The record already notes that something is kept.
    is_announced: bool,
}

/// Inspection of one tree.
struct Inspection<'a> {
    layout: &'a Layout,
    record: &'a Record,
    tree: FormerTree,
    /// Time at which this process last changed the tree; `None`: unknown, so every name is checked.
    finished: Option<Timestamp>,
    /// Check every name in any case.
    whole: bool,
    /// Number of the live generation.
    live: u64,
    /// Files known to be damaged although their metadata is right.
    distrusted: Option<&'a HashSet<TreePath>>,
    /// Nothing moves: a web server may still serve the tree.
    looks_only: bool,
    cancel: &'a AtomicBool,
}

/// A directory being inspected.
struct Place<'a> {
    path: &'a TreePath,
    manifests: &'a Manifests,
    /// Whether nobody changed names in it since the tree became live.
    is_untouched: bool,
}

/// Manifests that may explain the names of a directory.
struct Manifests {
    /// The tree's own manifest; `None`: unknown.
    own: Option<Arc<Directory>>,
    /// The live tree's manifest, if the own one is not certain.
    live: Option<Arc<Directory>>,
}

impl Manifests {
    fn all(&self) -> impl Iterator<Item = &Directory> {
        self.own.iter().chain(&self.live).map(|directory| &**directory)
    }

    /// Entries that a name may match.
    fn entries(&self, name: &Component) -> impl Iterator<Item = &Entry> {
        self.all().filter_map(|directory| directory.get(name))
    }

    /// Names that a manifest has, each once.
    fn names(&self) -> Vec<&Component> {
        let mut names: Vec<_> = self.all().flat_map(Directory::entries).map(|entry| &entry.name).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Subdirectories, with their own objects if known.
    fn below(&self) -> Vec<(&Component, Option<ObjectHash>)> {
        let is_known = |name: &&Component| self.entries(name).any(Entry::is_directory);
        let own = |name| match self.own.as_ref()?.get(name)?.kind {
            Kind::Directory { object, .. } => Some(object),
            _ => None,
        };
        self.names().into_iter().filter(is_known).map(|name| (name, own(name))).collect()
    }

    /// Whether an absent name counts as missing.
    fn is_certain(&self) -> bool {
        self.live.is_none()
    }
}

impl Inspection<'_> {
    /// Inspects the tree `dir`, and adds to `found`, even if it fails. In directories that somebody changed,
    /// inodes are compared with those of `live`.
    fn run(&self, dir: Dir, live: &mut LiveTree<'_>, found: &mut Found) -> Result<(), StageError> {
        let mut keeper = None;
        let mut cursor = DirCursor::new(dir);
        let mut waiting = vec![(TreePath::root(), Some(self.tree.root.object))];
        while let Some((path, object)) = waiting.pop() {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(StageError::Cancelled);
            }
            let dir = match cursor.at(&path) {
                Ok(dir) => dir,
                // Counted with its name in the parent. This user cannot read a directory that is closed to
                // everybody.
                Err(e) if e.is_no_directory() || e.is_denied() => continue,
                Err(e) => return Err(e.into()),
            };
            let ctime = dir.stat_self()?.ctime;
            // Owner and mode of the root were changed, so its ctime proves nothing.
            let is_untouched = self.finished.is_some_and(|finished| ctime <= finished) && !path.is_root();
            if !self.whole
                && is_untouched
                && let Some(object) = object.filter(|_| self.tree.is_certain)
                && let Some(below) = self.below(&path, object)?
            {
                waiting.extend(below.into_iter().rev());
                continue;
            }
            let manifests = self.manifests(&path, object, live)?;
            if self.whole || !is_untouched {
                let place = Place { path: &path, manifests: &manifests, is_untouched };
                match self.names(&place, dir, live, &mut keeper, found) {
                    // A foreign directory in place of the one that was activated.
                    Err(StageError::Disk(e)) if e.is_denied() => {
                        found.note(Some(path.clone()));
                        found.lost += 1;
                    }
                    other => other?,
                }
            }
            for (name, object) in manifests.below().into_iter().rev() {
                waiting.push((join(&path, name)?, object));
            }
        }
        Ok(())
    }

    /// Subdirectories of a directory; `None`: its manifest is missing. Reads only pages that have some.
    fn below(&self, path: &TreePath, object: ObjectHash) -> Result<Option<Vec<Subdirectory>>, StageError> {
        let mut cursor = match Cursor::new(self.record, Some(object)) {
            Err(RecordError::Unknown { .. }) => return Ok(None),
            other => other?,
        };
        let mut below = Vec::new();
        while let Some(entry) = cursor.directory()? {
            if let Kind::Directory { object, .. } = entry.kind {
                below.push((join(path, &entry.name)?, Some(object)));
            }
            cursor.skip();
        }
        Ok(Some(below))
    }

    fn manifests(
        &self,
        path: &TreePath,
        object: Option<ObjectHash>,
        live: &mut LiveTree<'_>,
    ) -> Result<Manifests, RecordError> {
        let own = match object.map(|object| self.record.directory(&object)).transpose() {
            // The record was lost, and the object with it.
            Err(RecordError::Unknown { .. }) => None,
            other => other?,
        };
        let is_certain = self.tree.is_certain && own.is_some();
        let live = if is_certain { None } else { Some(live.directory(path)?.unwrap_or_default()) };
        Ok(Manifests { own, live })
    }

    fn names<'l>(
        &'l self,
        place: &Place<'_>,
        dir: &Dir,
        live: &mut LiveTree<'_>,
        keeper: &mut Option<Keeper<'l>>,
        found: &mut Found,
    ) -> Result<(), StageError> {
        let mut changed: Vec<Vec<u8>> = Vec::new();
        for listed in dir.names()? {
            let listed = listed?;
            let name = Component::new(&listed.name).ok();
            if name.is_some_and(|name| place.manifests.entries(&name).next().is_some()) {
                continue;
            }
            match changed.len() < NAMES_MAX {
                true => changed.push(listed.name),
                false => {
                    found.note(None);
                    found.lost += 1;
                }
            }
        }
        for name in place.manifests.names() {
            match dir.stat(name.as_bytes())? {
                Some(stat) if self.is_explained(place, name, dir, &stat, live)? => {}
                Some(_) => changed.push(name.as_bytes().to_vec()),
                None if place.manifests.is_certain() => found.note_missing(join(place.path, name)?),
                None => {}
            }
        }
        changed.sort_unstable();
        if self.looks_only {
            let path = |name: &Vec<u8>| place.path.join(&Component::new(name).ok()?).ok();
            changed.iter().for_each(|name| found.note(path(name)));
            return Ok(());
        }
        for name in changed {
            let keeper = match &mut *keeper {
                Some(keeper) => keeper,
                none => {
                    let lost = LostFound::open(self.layout, self.cancel)?;
                    none.insert(Keeper { lost, is_announced: false })
                }
            };
            self.take_out(place, dir, &name, keeper, found)?;
        }
        Ok(())
    }

    /// Moves a name that differs from the manifest to lost+found, or removes it if that file is already kept.
    fn take_out(
        &self,
        place: &Place<'_>,
        dir: &Dir,
        name: &[u8],
        keeper: &mut Keeper<'_>,
        found: &mut Found,
    ) -> Result<(), StageError> {
        let component = Component::new(name).ok();
        let path = component.as_ref().and_then(|name| place.path.join(name).ok());
        let holder = keeper.lost.holder(dir, name)?.filter(|holder| *holder != self.tree.number);
        if holder.is_some() && dir.unlink(name).is_ok() {
            found.kept_before = holder;
            found.repeats.extend(path);
            return Ok(());
        }
        found.note(path);
        if !keeper.is_announced {
            // After a crash, no file may be in lost+found without a report.
            let found = Found { kept: 1, ..found.clone() };
            let report = found.report(self.layout, self.tree.number, self.live);
            self.record.set_drift(Some(&report))?;
            keeper.is_announced = true;
        }
        match keeper.lost.keep(self.tree.number, place.path, dir, name) {
            Ok(true) => {
                let manifests = &place.manifests;
                let has_no_place = |name: &Component| manifests.entries(name).next().is_none();
                let is_stranger = !manifests.is_certain() || component.as_ref().is_none_or(has_no_place);
                found.kept += 1;
                found.strangers += u64::from(is_stranger);
            }
            Ok(false) => found.lost += 1,
            Err(KeepError::Disk(e)) if e.is_full() || e.is_denied() => found.lost += 1,
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }

    /// Whether one of the manifests explains a name.
    fn is_explained(
        &self,
        place: &Place<'_>,
        name: &Component,
        dir: &Dir,
        stat: &Stat,
        live: &mut LiveTree<'_>,
    ) -> Result<bool, StageError> {
        for entry in place.manifests.entries(name) {
            if self.is_right(place, entry, dir, stat, live)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a name still matches the manifest. Owner and mode do not count, because they are not data.
    fn is_right(
        &self,
        place: &Place<'_>,
        entry: &Entry,
        dir: &Dir,
        stat: &Stat,
        live: &mut LiveTree<'_>,
    ) -> Result<bool, StageError> {
        let name = entry.name.as_bytes();
        match &entry.kind {
            Kind::Directory { .. } => Ok(stat.kind == FileType::Directory),
            Kind::Symlink { .. } | Kind::Collected { .. } => {
                let target = self.layout.link_target(&entry.kind);
                Ok(stat.kind == FileType::Symlink && Some(&*dir.read_link(name)?) == target.as_deref())
            }
            Kind::File { content, size } => {
                let looks_right = stat.kind == FileType::RegularFile
                    && stat.size == *size
                    && stat.mtime == entry.metadata.mtime;
                let path = join(place.path, &entry.name)?;
                if !looks_right || self.distrusted.is_some_and(|paths| paths.contains(&path)) {
                    return Ok(false);
                }
                // Another file may have been put there with the same time.
                if place.is_untouched || live.inode(&path)? == Some(stat.inode) {
                    return Ok(true);
                }
                Ok(dir.open_file(name).is_ok_and(|file| hash_file(&file).is_ok_and(|hash| hash == *content)))
            }
        }
    }
}

impl Found {
    fn note(&mut self, path: Option<TreePath>) {
        self.paths += 1;
        if self.first.is_none() {
            self.first = path;
        }
    }

    fn note_missing(&mut self, path: TreePath) {
        if !self.repeats.contains(&path) {
            self.note(Some(path));
        }
    }

    /// Whether the tree matched its manifest.
    pub fn is_nothing(&self) -> bool {
        self.paths == 0 && self.repeats.is_empty()
    }

    /// Number of names that could not be kept.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Converts the findings so that the next inspection of the tree can add to them. It will find everything
    /// that moved, except names without a manifest entry, because the other places are now empty. `before` is
    /// what this inspection added to.
    fn moved(self, before: &Self) -> Self {
        let (paths, lost) = (self.strangers, before.lost);
        Self { paths, first: self.first.filter(|_| paths > 0), lost, ..self }
    }

    /// Directory where the findings are kept, from this tree or an earlier one.
    pub fn kept_anywhere(&self, layout: &Layout, generation: u64) -> Option<String> {
        let before = || Some(directory_of(layout, self.kept_before?));
        self.kept_in(layout, generation).or_else(before)
    }

    fn kept_in(&self, layout: &Layout, generation: u64) -> Option<String> {
        (self.kept > 0).then(|| directory_of(layout, generation))
    }

    /// Counts the kept files as lost, because they were deleted to free space.
    pub fn gave_way(&mut self) {
        self.lost += std::mem::take(&mut self.kept);
    }
}

impl Replica {
    /// Inspects a retired tree. Recycles it, or discards it if there are enough trees to build on. Returns
    /// its local changes, and its slot if it is now a building.
    pub(crate) fn inspect_retired(
        &mut self,
        slot: u64,
        recycle: bool,
        cancel: &AtomicBool,
    ) -> Result<Option<Drift>, StageError> {
        let Some(Slot::Retired(tree)) = self.slots.state(slot).cloned() else { return Ok(None) };
        let clock = &self.options.clock;
        let last = self.upkeep.retired.inspected_whole;
        let whole = !tree.is_certain || last.is_none_or(|at| clock.since(at) >= WHOLE_EVERY);
        if whole {
            // Noted even if updates interrupt the inspection, so that other trees get their turn.
            self.upkeep.retired.inspected_whole = Some(clock.now());
        }
        if !tree.is_certain {
            tracing::info!(
                slot,
                "the record of this tree was lost: files that neither its generation nor the live one has are kept"
            );
        }
        self.slots.close(slot)?;
        let dir = self.slots.open(slot)?;
        let drift = self.inspect(slot, tree, dir, whole, cancel)?;
        let found = self.upkeep.retired.inspected.get(&(slot, tree.number)).cloned().unwrap_or_default();
        if drift.is_some() || !found.is_nothing() {
            self.slots.distrust_served(slot)?;
        }
        if recycle {
            self.slots.recycle(slot)?;
            if tree.is_certain {
                self.upkeep.retired.was.insert(slot, tree);
            }
        } else {
            self.slots.discard(slot)?;
        }
        let found = self.upkeep.retired.inspected.remove(&(slot, tree.number)).unwrap_or_default();
        if drift.is_none() && found.repeats.is_empty() && tree.is_certain {
            self.drift_ended(tree.number)?;
        }
        Ok(drift)
    }

    /// Inspects a tree that was live, keeps what it finds and reports it. Files moved before an error are
    /// reported as well, because the next inspection, which adds to the report, does not see them.
    fn inspect(
        &mut self,
        slot: u64,
        tree: FormerTree,
        dir: Dir,
        whole: bool,
        cancel: &AtomicBool,
    ) -> Result<Option<Drift>, StageError> {
        let before = self.upkeep.retired.inspected.get(&(slot, tree.number)).cloned().unwrap_or_default();
        let mut found = before.clone();
        let looked = self.look_through(
            tree,
            dir,
            if whole { Scope::Whole } else { Scope::Changed },
            &mut found,
            cancel,
        );
        let drift = self.drift_of(&tree, &found);
        let is_due = looked.is_ok() || found.kept > before.kept;
        self.upkeep.retired.inspected.insert((slot, tree.number), found.moved(&before));
        if let Some(drift) = drift.as_ref().filter(|drift| is_due && !self.is_told(drift)) {
            self.found_drift(drift.clone())?;
        }
        looked.map(|()| drift)
    }

    /// Inspects a tree that was live, keeps what it finds, and adds it to `found`, even if it fails.
    pub(crate) fn look_through(
        &self,
        tree: FormerTree,
        dir: Dir,
        scope: Scope<'_>,
        found: &mut Found,
        cancel: &AtomicBool,
    ) -> Result<(), StageError> {
        let (whole, distrusted) = match scope {
            Scope::Changed => (false, None),
            Scope::Whole => (true, None),
            Scope::Damaged(distrusted) => (true, Some(distrusted)),
        };
        let trees = self.slots.trees();
        let (live, root) = live_of(&trees, &tree);
        let finished =
            self.upkeep.history.finished(tree.number).filter(|_| distrusted.is_none() && tree.is_certain);
        let (layout, record) = (&*trees.layout, &*trees.record);
        let looks_only = false;
        let inspection =
            Inspection { layout, record, tree, finished, whole, live, distrusted, looks_only, cancel };
        inspection.run(dir, &mut trees.live_tree(&root)?, found)
    }

    /// Looks once at the names of the tree that was live before, and reports what came or went while it was
    /// live. The later inspection keeps that and logs it. Returns whether it looked.
    ///
    /// The cost follows the directories of the tree, so only trees are looked at that this process activated.
    pub(crate) fn look_at_previous(&mut self, cancel: &AtomicBool) -> Result<bool, StageError> {
        let Some(slot) = self.slots.previous() else { return Ok(false) };
        let Some(Slot::Held(held)) = self.slots.state(slot) else { return Ok(false) };
        let (number, root) = (held.number().get(), held.generation().root);
        let finished = self.upkeep.history.finished(number);
        if finished.is_none() || self.upkeep.retired.looked_at == Some(number) {
            return Ok(false);
        }
        let tree = FormerTree { number, root, is_certain: true };
        let (dir, mut found) = (self.slots.open(slot)?, Found::default());
        let trees = self.slots.trees();
        let (live, live_root) = live_of(&trees, &tree);
        let (layout, record) = (&*trees.layout, &*trees.record);
        let (whole, distrusted, looks_only) = (false, None, true);
        let inspection =
            Inspection { layout, record, tree, finished, whole, live, distrusted, looks_only, cancel };
        inspection.run(dir, &mut trees.live_tree(&live_root)?, &mut found)?;
        self.upkeep.retired.looked_at = Some(number);
        if let Some(drift) = self.drift_of(&tree, &found).filter(|drift| !self.is_told(drift)) {
            self.report_drift(drift)?;
        }
        Ok(true)
    }
}

/// Number and root of the live generation; without one, those of a tree that explains nothing.
fn live_of(trees: &Trees, tree: &FormerTree) -> (u64, RootEntry) {
    let live = trees.live().map(|live| live.generation());
    live.map_or((tree.number, RootEntry::empty()), |g| (g.number.get(), g.root))
}

/// Directory in lost+found for files of a generation's tree.
fn directory_of(layout: &Layout, generation: u64) -> String {
    layout.root.path().join("lost+found").join(generation.to_string()).display().to_string()
}

fn join(path: &TreePath, name: &Component) -> Result<TreePath, StageError> {
    path.join(name).map_err(|source| StageError::Path { source })
}
