//! Activates a tree that this node already has: no fetch, no encoding, nothing is built.
//!
//! If the target's root is live, only the tree's number changes
//! ([`crate::state::slots::Slots::rename_live`]). If another slot holds it, that tree is proven and becomes
//! live as it is. A visitor may have changed files of a tree that rests, and no damaged file may come back to
//! life. A tree is proven by these rules:
//!
//! * A file with the same entry and the same inode as in the live tree is as good as the live one.
//! * Every other file is hashed, and every other symlink is read.
//! * Every directory has exactly the names of its manifest, with their metadata.
//! * If this process activated the tree, a directory that was not changed since has the same names. In it,
//!   only names that a later activation touched are looked at ([`crate::state::history`]).
//!
//! It is proven when it is staged, and again right before the switch. The second proof hashes only what was
//! changed since the first, by its ctime, and compares the manifests again only if it finds other inodes. A
//! tree that fails is left alone, and the target is built from the live tree as any other. The failed tree
//! stays held until that switch, so that an interrupted return can be tried again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::FileType;
use syncd_shared::diff::{Change, Comparison, DiffError, DirectorySource, PartLimits};
use syncd_shared::directory::Cursor;
use syncd_shared::{
    Component, ContentHash, Entry, Kind, Metadata, ObjectHash, RootEntry, SignedGeneration, Timestamp,
    TreePath,
};

use crate::build::inodes::InodeLists;
use crate::build::manifest::compare;
use crate::build::{Job, StageError, Staged};
use crate::replica::Replica;
use crate::replica::activate::ActivateError;
use crate::state::cursor::{DirCursor, LiveTree, looks_like};
use crate::state::disk::{Dir, Stat};
use crate::state::hashing::hash_file;
use crate::state::history::{Hashed, Proven, Since, Touched};
use crate::state::record::{InodeChanges, Record, RecordError};
use crate::state::slot::Slot;
use crate::state::trees::Trees;

/// Files and symlinks with another inode than at the same path of the live tree.
type Others = BTreeMap<TreePath, (Entry, u64)>;

/// Directories to visit, with their metadata and the hash of their manifest.
type Below = Vec<(TreePath, Metadata, ObjectHash)>;

/// A held tree that is as its manifest says.
pub(super) struct Sound {
    /// Inode numbers, as changes to those of the live tree.
    pub inodes: InodeChanges,
    /// Whatever is changed later has a later ctime.
    pub proven: Timestamp,
    /// Names that the switch to it changes; `None`: too many.
    pub touched: Option<Touched>,
}

impl Replica {
    /// Takes a tree at the target's root that is complete already; `None`: there is none that can be trusted.
    pub(super) fn stage_held(&mut self, job: Job<'_>, sync: &Dir) -> Result<Option<Staged>, StageError> {
        let (target, root) = (job.target, job.target.generation().root);
        let Some(live) = self.slots.live().cloned() else { return Ok(None) };
        let basis = Some(live.number().get());
        if live.generation().root == root {
            let staged = Staged::new(target, self.slots.live_slot(), basis, sync.reopen()?);
            return Ok(Some(Staged { is_held: true, durable_basis: true, ..staged }));
        }
        for (slot, number) in self.trees_at(target) {
            if self.prove_held(slot, number, &live, &root, job.cancel)?.is_some() {
                let staged = Staged::new(target, Some(slot), basis, sync.reopen()?);
                return Ok(Some(Staged { is_held: true, durable_basis: true, ..staged }));
            }
            tracing::warn!(generation = number, "the tree at hand was changed locally: it is not used");
        }
        Ok(None)
    }

    /// Slots that hold the target's root, with their generations. The tree of the target itself comes first.
    fn trees_at(&self, target: &SignedGeneration) -> Vec<(u64, u64)> {
        let at_root = self.slots.held().filter(|(_, held)| held.root_hash() == target.root_hash());
        let mut trees: Vec<_> =
            at_root.map(|(slot, held)| (held != target, slot, held.number().get())).collect();
        trees.sort_unstable();
        trees.into_iter().map(|(_, slot, number)| (slot, number)).collect()
    }

    /// Proves a held tree once more, right before the switch to it. It may have waited for the origin's order
    /// for hours, while visitors could write into it.
    pub(super) fn prove_again(&mut self, staged: &mut Staged, slot: u64) -> Result<(), ActivateError> {
        let (number, root) = (staged.target.number().get(), staged.target.generation().root);
        let held = self.slots.state(slot).and_then(Slot::held).map(|held| held.number().get());
        let Some((live, held)) = self.slots.live().cloned().zip(held) else {
            return Err(ActivateError::Outdated { number });
        };
        let sound = self.prove_held(slot, held, &live, &root, &AtomicBool::new(false));
        let unproven = |source| ActivateError::Unproven { number, source: Box::new(source) };
        let sound = sound.map_err(unproven)?.ok_or(ActivateError::Changed { number })?;
        (staged.inodes, staged.touched) = (sound.inodes, sound.touched);
        staged.proven = Some(sound.proven);
        Ok(())
    }

    /// Proves that the tree of a slot is what `root` says; `None`: it is not, or it differs from the live
    /// tree in more than one part. Remembers the proof.
    fn prove_held(
        &mut self,
        slot: u64,
        number: u64,
        live: &SignedGeneration,
        root: &RootEntry,
        cancel: &AtomicBool,
    ) -> Result<Option<Sound>, StageError> {
        let (trees, live_root) = (self.slots.trees(), live.generation().root);
        let record = &*trees.record;
        let _pages = record.hold_many_pages();
        let (history, live) = (&mut self.upkeep.history, live.number().get());
        let last = history.proven(number, live);
        let compared = || compare_small(record, &live_root, root, self.options.part);
        let comparison = if last.is_none() { compared()? } else { None };
        if last.is_none() && comparison.is_none() {
            return Ok(None);
        }
        let began = self.slots.layout().staging.moment()?;
        let mut proof = Proof {
            began,
            since: history.since(number, live),
            known: last.map(|proven| &proven.hashed),
            live: trees.live_tree(&live_root)?,
            others: Others::new(),
            hashed: Hashed::new(),
            trees: &trees,
            cancel,
        };
        if !proof.run(trees.open(slot)?, root)? {
            return Ok(None);
        }
        let Proof { others, hashed, .. } = proof;
        let inodes_of: BTreeMap<_, _> =
            others.iter().map(|(path, (_, inode))| (path.clone(), *inode)).collect();
        let (inodes, touched) = match last.filter(|last| last.others == inodes_of) {
            Some(last) => (last.inodes.clone(), last.since.clone().map(|since| since.touched)),
            None => {
                let comparison = if comparison.is_some() { comparison } else { compared()? };
                let Some(comparison) = comparison else { return Ok(None) };
                match differences(record, &comparison, (&live_root, root), others)? {
                    Some(differences) => differences,
                    None => return Ok(None),
                }
            }
        };
        let since = touched.clone().map(|touched| Since { finished: began, touched });
        let (others, kept) = (inodes_of, inodes.clone());
        history.prove(Proven { generation: number, live, since, hashed, others, inodes: kept });
        Ok(Some(Sound { inodes, proven: began, touched }))
    }
}

/// Compares two trees of the record; `None`: more than one part differs, or a manifest is not complete.
fn compare_small<'a>(
    record: &'a Record,
    from: &RootEntry,
    to: &RootEntry,
    part: PartLimits,
) -> Result<Option<Comparison<&'a Record>>, StageError> {
    match compare(record, from, to, part) {
        Ok(comparison) => Ok(Some(comparison).filter(Comparison::is_small)),
        Err(DiffError::Source { source: RecordError::Unknown { .. }, .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Inode numbers of a proven tree as changes to those of the live tree, and the names that have another one.
/// `None`: a name that should have been proven was not.
fn differences(
    record: &Record,
    comparison: &Comparison<&Record>,
    (live, root): (&RootEntry, &RootEntry),
    mut others: Others,
) -> Result<Option<(InodeChanges, Option<Touched>)>, StageError> {
    let mut inodes = InodeLists::new(record, Some(live), root, comparison.renamed_directories())?;
    for part in comparison.parts() {
        let changes = part?.changes;
        let mut placed = Vec::with_capacity(changes.len());
        for change in changes.iter() {
            match inode_of(change, &mut others) {
                Some(inode) => placed.push(inode),
                None => return Ok(None),
            }
        }
        inodes.add(&changes, &placed)?;
    }
    let touched = Touched::by(comparison)?.and_then(|touched| touched.with(others.keys()));
    // The same entries with other inodes: they came back after a generation without them.
    let (same, placed): (Vec<_>, Vec<_>) = others
        .into_iter()
        .map(|(path, (entry, inode))| (Change::Modified { path, from: entry.clone(), to: entry }, inode))
        .unzip();
    inodes.add(&same, &placed)?;
    Ok(Some((inodes.finish()?, touched)))
}

/// Inode number that a change puts at its path; 0: none. `None`: the path was not proven.
fn inode_of(change: &Change, others: &mut Others) -> Option<u64> {
    let (Change::Added { entry, .. } | Change::Modified { to: entry, .. }) = change else { return Some(0) };
    if entry.is_directory() {
        return Some(0);
    }
    others.remove(change.path()).map(|(_, inode)| inode)
}

/// Proof of one tree against its manifest and the live tree.
struct Proof<'a> {
    trees: &'a Trees,
    /// Whatever is changed later has a later ctime.
    began: Timestamp,
    live: LiveTree<'a>,
    /// `None`: every name is looked at.
    since: Option<Since>,
    /// Files hashed by the last proof.
    known: Option<&'a Hashed>,
    others: Others,
    hashed: Hashed,
    cancel: &'a AtomicBool,
}

impl Proof<'_> {
    /// Visits the tree `dir`. Returns whether it is what `root` says.
    fn run(&mut self, dir: Dir, root: &RootEntry) -> Result<bool, StageError> {
        let mut cursor = DirCursor::new(dir);
        let mut waiting = vec![(TreePath::root(), root.metadata, root.object)];
        while let Some((path, metadata, object)) = waiting.pop() {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(StageError::Cancelled);
            }
            let dir = match cursor.at(&path) {
                Ok(dir) => dir.clone(),
                Err(e) if e.is_no_directory() || e.is_denied() => return Ok(false),
                Err(e) => return Err(e.into()),
            };
            let stat = dir.stat_self()?;
            // The root gets its metadata when the tree is activated.
            if !path.is_root() && !self.is_dressed(&stat, &metadata) {
                return Ok(false);
            }
            let below = match self.touched(&path, &stat) {
                Some(touched) => self.touched_names(&path, object, &dir, &touched)?,
                None => self.all_names(&path, object, &dir)?,
            };
            let Some(below) = below else { return Ok(false) };
            waiting.extend(below.into_iter().rev());
        }
        Ok(true)
    }

    /// Whether a directory has this metadata.
    fn is_dressed(&self, stat: &Stat, metadata: &Metadata) -> bool {
        stat.mtime == metadata.mtime && self.trees.owners.agree(stat, metadata)
    }

    /// Names of a directory that may be wrong; `None`: all.
    fn touched(&self, path: &TreePath, stat: &Stat) -> Option<Vec<Component>> {
        let Since { finished, touched } = self.since.as_ref()?;
        // Owner and mode of the root were changed, so its ctime proves nothing.
        if path.is_root() || touched.remade.contains(path) || stat.ctime > *finished {
            return None;
        }
        match touched.names.get(path) {
            None => Some(Vec::new()),
            Some(names) => names.as_ref().map(|names| names.iter().cloned().collect()),
        }
    }

    /// Looks at some names of a directory. Returns its subdirectories; `None`: a name is wrong.
    fn touched_names(
        &mut self,
        path: &TreePath,
        object: ObjectHash,
        dir: &Dir,
        touched: &[Component],
    ) -> Result<Option<Below>, StageError> {
        let record: &Record = &self.trees.record;
        for name in touched {
            let mut cursor = Cursor::new(record, Some(object))?;
            cursor.seek(name)?;
            let entry = cursor.entry()?.filter(|entry| entry.name == *name).cloned();
            // A later generation may have a name that this one does not have.
            if let Some(entry) = entry
                && !self.is_right(&join(path, name)?, &entry, dir)?
            {
                return Ok(None);
            }
        }
        let (mut cursor, mut below) = (Cursor::new(record, Some(object))?, Below::new());
        while let Some(entry) = cursor.directory()? {
            if let Kind::Directory { object, .. } = entry.kind {
                below.push((join(path, &entry.name)?, entry.metadata, object));
            }
            cursor.skip();
        }
        Ok(Some(below))
    }

    /// Looks at every name of a directory. Returns its subdirectories; `None`: a name is wrong.
    fn all_names(
        &mut self,
        path: &TreePath,
        object: ObjectHash,
        dir: &Dir,
    ) -> Result<Option<Below>, StageError> {
        let directory = self.trees.record.directory(&object)?;
        for listed in dir.names()? {
            let listed = listed?;
            if Component::new(&listed.name).ok().and_then(|name| directory.get(&name)).is_none() {
                return Ok(None);
            }
        }
        let mut below = Below::new();
        for entry in directory.entries() {
            let at = join(path, &entry.name)?;
            if !self.is_right(&at, entry, dir)? {
                return Ok(None);
            }
            if let Kind::Directory { object, .. } = entry.kind {
                below.push((at, entry.metadata, object));
            }
        }
        Ok(Some(below))
    }

    /// Whether a name is what its entry says. Notes the inode of a file that the live tree does not share.
    fn is_right(&mut self, path: &TreePath, entry: &Entry, dir: &Dir) -> Result<bool, StageError> {
        let (name, owners) = (entry.name.as_bytes(), self.trees.owners);
        let stat = match dir.stat(name) {
            Ok(Some(stat)) => stat,
            Ok(None) => return Ok(false),
            Err(e) if e.is_denied() => return Ok(false),
            Err(e) => return Err(e.into()),
        };
        if entry.is_directory() {
            return Ok(stat.kind == FileType::Directory && self.is_dressed(&stat, &entry.metadata));
        }
        if !looks_like(entry, &stat, owners) {
            return Ok(false);
        }
        if self.live.has(path, entry, stat.inode)? {
            return Ok(true);
        }
        self.others.insert(path.clone(), (entry.clone(), stat.inode));
        Ok(match &entry.kind {
            Kind::File { content, .. } => self.has_content(dir, name, &stat, content),
            Kind::Symlink { .. } | Kind::Collected { .. } => {
                Some(&*dir.read_link(name)?) == self.trees.layout.link_target(&entry.kind).as_deref()
            }
            Kind::Directory { .. } => false,
        })
    }

    /// Whether a file has this content. Reads it, unless the last proof did and it was not changed since.
    fn has_content(&mut self, dir: &Dir, name: &[u8], stat: &Stat, content: &ContentHash) -> bool {
        let read = (stat.ctime, *content);
        let is_known = self.known.is_some_and(|known| known.get(&stat.inode) == Some(&read));
        let is_right = is_known
            || dir.open_file(name).is_ok_and(|file| hash_file(&file).is_ok_and(|hash| hash == *content));
        if is_right && stat.ctime <= self.began {
            self.hashed.insert(stat.inode, read);
        }
        is_right
    }
}

fn join(path: &TreePath, name: &Component) -> Result<TreePath, StageError> {
    path.join(name).map_err(|source| StageError::Path { source })
}
