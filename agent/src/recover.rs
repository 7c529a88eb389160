//! Opening after anything: names and the record say how far it came. Idempotent, needs no origin.
//!
//! | found | done |
//! | --- | --- |
//! | the record's live generation has its tree, `live` names another | rolled forward: the link is switched |
//! | `generations/K` that the record does not have, not served | an activation that did not commit: a building again |
//! | the same, while the on-activate hook of a generation from K on is due | left until it has succeeded, then a building: a web server may be there |
//! | a generation of the record without its tree | forgotten, but for the accepted number |
//! | `generations/N` that the record has as retired | out of use: `retired-K`, to be inspected |
//! | `retired-K` that the record does not have | a building: nothing is known that it could be compared with |
//! | `spare-K` that the record does not have, `drawn-K` | a building: made a spare again, name by name |
//! | `aside-*`, `live.next` | rubbish |
//! | no record (lost, damaged), `live` names a tree | its signed record is read from `state/signed`, its manifest built from its files; where that gives the signed root all is known again, else it is served and the next target is staged as a first sync |

use syncd_shared::diff::DirectorySource;
use syncd_shared::{Component, Directory, Entry, Kind, Metadata, ObjectHash, Totals, TreePath};

use crate::disk::{Dir, DiskError, Stat};
use crate::layout::{LIVE_NEXT, number, numbered};
use crate::record::{InodeChanges, Known, Record, RecordError, decode_generation};
use crate::replica::{OpenReplicaError, Replica};
use crate::stage::content::hash_file;
use crate::stage::cursor::DirCursor;
use crate::stage::{StageError, building, drawn, resting, retired, spare};
use crate::verify::VerifyError;

impl Replica {
    pub(crate) fn recover(&mut self) -> Result<(), OpenReplicaError> {
        let before = self.record.known()?;
        self.known = before.clone();
        let linked = self.layout.live_number()?;
        if before.accepted.is_none() {
            self.rebuild(linked)?;
        }
        self.recover_generations(linked)?;
        self.recover_staging()?;
        if self.known != before {
            self.record.restore(&self.known)?;
        }
        self.known.accepted_generation = match self.known.accepted {
            Some(number) => match self.known.generations.get(&number) {
                Some(generation) => Some(generation.clone()),
                None => self.signed(number)?,
            },
            None => None,
        };
        match self.known.live {
            // After an error the link may be there and not be durable, and a sync that failed is not to be made again.
            Some(live) if self.upkeep.unsettled || self.layout.live_number()? != Some(live) => {
                self.layout.point_live(live)?;
            }
            // Nor need it be after a kill.
            Some(_) => self.layout.root.sync_names()?,
            None => {}
        }
        self.layout.root.unlink(LIVE_NEXT)?;
        self.recover_signed()?;
        Ok(())
    }

    fn recover_generations(&mut self, linked: Option<u64>) -> Result<(), OpenReplicaError> {
        let mut present = Vec::new();
        for listed in self.layout.generations.list()? {
            match number(&listed.name) {
                Some(number) => present.push(number),
                None => {
                    let path = self.layout.generations.path().join(listed.name.escape_ascii().to_string());
                    tracing::warn!(path = %path.display(), "not a generation: left alone");
                }
            }
        }
        self.known.generations.retain(|number, _| present.contains(number));
        if self.known.live.is_some_and(|live| !self.known.generations.contains_key(&live)) {
            self.known.live = linked.filter(|n| self.known.generations.contains_key(n));
        }
        self.reclaim_generations(present, linked)
    }

    /// Takes trees that recovery left for a web server, because the on-activate hook was due, out of use.
    pub(crate) fn reclaim_unprotected(&mut self) -> Result<(), OpenReplicaError> {
        let listed = self.layout.generations.list()?;
        let present = listed.iter().filter_map(|listed| number(&listed.name)).collect();
        let linked = self.layout.live_number()?;
        self.reclaim_generations(present, linked)
    }

    /// Takes trees that the record does not have and that nobody may be served from out of use.
    fn reclaim_generations(
        &mut self,
        present: Vec<u64>,
        linked: Option<u64>,
    ) -> Result<(), OpenReplicaError> {
        for number in present {
            let served = Some(number) == linked && self.known.live.is_none();
            if !self.known.generations.contains_key(&number) && !served && !self.may_be_served(number) {
                let mut retiring = self.known.retired.iter().filter(|(_, tree)| tree.number == number);
                let to = match retiring.next().map(|(slot, _)| *slot) {
                    Some(slot) if !self.is_in_staging(slot)? => retired(slot),
                    _ => building(self.free_slot()?),
                };
                let name = number.to_string().into_bytes();
                self.layout.generations.rename_new(&name, &self.layout.staging, &to)?;
            }
        }
        Ok(())
    }

    fn is_in_staging(&self, slot: u64) -> Result<bool, DiskError> {
        let staging = &self.layout.staging;
        Ok(staging.stat(&retired(slot))?.is_some() || staging.stat(&resting(slot))?.is_some())
    }

    fn recover_staging(&mut self) -> Result<(), OpenReplicaError> {
        let staging = &self.layout.staging;
        self.upkeep.drawn.clear();
        let (mut spares, mut retired_slots) = (Vec::new(), Vec::new());
        for listed in staging.list()? {
            if listed.name.starts_with(b"aside-") {
                self.layout.discard(staging, &listed.name)?;
            } else if let Some(slot) = numbered(&listed.name, "resting-") {
                retired_slots.push(slot);
                self.upkeep.resting.insert(slot, self.options.clock.now());
            } else if let Some(slot) = numbered(&listed.name, "retired-") {
                match self.known.retired.contains_key(&slot) {
                    true => retired_slots.push(slot),
                    false => staging.rename_new(&retired(slot), staging, &building(slot))?,
                }
            } else if let Some(slot) = numbered(&listed.name, "spare-") {
                match self.known.spares.contains_key(&slot) {
                    true => spares.push(slot),
                    false => staging.rename_new(&spare(slot), staging, &building(slot))?,
                }
            } else if let Some(slot) = numbered(&listed.name, "drawn-") {
                staging.rename_new(&drawn(slot), staging, &building(slot))?;
            }
        }
        self.known.spares.retain(|slot, _| spares.contains(slot));
        self.known.retired.retain(|slot, _| retired_slots.contains(slot));
        Ok(())
    }

    /// Signed records of generations whose trees are gone go too, but for the accepted one.
    fn recover_signed(&self) -> Result<(), DiskError> {
        for listed in self.layout.signed.list()? {
            let known = number(&listed.name).is_some_and(|n| {
                self.known.generations.contains_key(&n)
                    || self.known.accepted == Some(n)
                    || self.known.live.is_none()
            });
            if !known {
                self.layout.signed.unlink(&listed.name)?;
            }
        }
        Ok(())
    }

    fn signed(&self, number: u64) -> Result<Option<syncd_shared::SignedGeneration>, DiskError> {
        let name = number.to_string();
        let file = match self.layout.signed.open_file(name.as_bytes()) {
            Ok(file) => file,
            Err(e) if e.is_absent() => return Ok(None),
            Err(e) => return Err(e),
        };
        let mut bytes = Vec::new();
        let limit = 64 + syncd_shared::limits::GENERATION_RECORD_MAX_BYTES as u64;
        std::io::Read::read_to_end(&mut std::io::Read::take(file, limit), &mut bytes).map_err(|source| {
            DiskError { doing: "read", path: self.layout.signed.path().join(&name), source }
        })?;
        Ok(decode_generation(&bytes).ok().filter(|g| g.number().get() == number))
    }

    /// Records the inodes that the live tree has now. It must have been verified.
    pub(crate) fn adopt_live_inodes(&mut self) -> Result<(), VerifyError> {
        let live = self.live().ok_or(VerifyError::NothingLive)?;
        let dir = self.layout.generations.open_dir(live.number().to_string().as_bytes())?;
        let mut inodes = InodeChanges { clear: true, ..InodeChanges::default() };
        let mut dirs = DirCursor::new(dir);
        let mut waiting = vec![(TreePath::root(), live.generation().root.object)];
        while let Some((path, object)) = waiting.pop() {
            let dir = dirs.at(&path)?;
            let mut list = Vec::new();
            for entry in self.record.directory(&object)?.entries() {
                if let Kind::Directory { object, .. } = entry.kind {
                    let path = path.join(&entry.name).map_err(|source| StageError::Path { source })?;
                    waiting.push((path, object));
                    list.push(0);
                } else {
                    list.push(dir.stat(entry.name.as_bytes())?.map_or(0, |s| s.inode));
                }
            }
            inodes.put.push((path, list));
        }
        Ok(self.record.activate(None, &inodes, &[])?)
    }

    /// Builds the record from what is on disk, as far as that proves anything.
    fn rebuild(&mut self, linked: Option<u64>) -> Result<(), OpenReplicaError> {
        let Some(linked) = linked else { return Ok(()) };
        // What was activated under this number is all that is known of the accepted one: a signed record of a higher
        // number may be of an activation that never committed, but lower numbers were accepted.
        let mut known = Known::default();
        if let Some(generation) = self.signed(linked)? {
            known.accepted = Some(linked);
            let name = linked.to_string().into_bytes();
            let dir = match self.layout.generations.open_dir(&name) {
                Ok(dir) => dir,
                Err(e) if e.is_absent() => {
                    self.known = known;
                    return Ok(());
                }
                Err(e) => return Err(e.into()),
            };
            tracing::info!(generation = linked, "building the record from the live tree");
            let mut scan = Scan::default();
            let root = generation.generation().root;
            let object = scan.tree(dir, root.totals.entries);
            if matches!(object, Ok(object) if object == root.object) {
                scan.keep(&self.record)?;
                known.live = Some(linked);
                known.generations.insert(linked, generation);
            } else {
                tracing::warn!(
                    generation = linked,
                    "the live tree is served, but is not exactly what was signed: the next update fetches all"
                );
            }
        }
        self.known = known;
        Ok(())
    }
}

/// The manifest of a tree on disk.
#[derive(Default)]
struct Scan {
    objects: Vec<(ObjectHash, Vec<u8>)>,
    inodes: Vec<(TreePath, Vec<u64>)>,
}

/// A tree on disk that no manifest describes.
#[derive(Debug, thiserror::Error)]
enum ScanError {
    #[error("read the tree")]
    Disk(#[from] DiskError),
    #[error("read a file")]
    Read(#[from] std::io::Error),
    #[error("a name or path that no manifest has")]
    Path(#[from] syncd_shared::tree_path::TreePathError),
    #[error("a name that is no file, directory or symlink")]
    Kind,
    #[error("more names than the {expected} that were signed")]
    Surplus { expected: u64 },
}

/// A directory that is being read.
struct Level {
    path: TreePath,
    /// Its entry in the directory above; that of the root is not looked at.
    name: Option<Component>,
    metadata: Metadata,
    /// Names still to be looked at.
    names: Vec<Component>,
    /// Entries that were looked at, and their inode numbers.
    found: Vec<(Entry, u64)>,
}

impl Scan {
    /// The hash of a tree that was signed with so many names: with more it is another, however many they are.
    fn tree(&mut self, root: Dir, expected: u64) -> Result<ObjectHash, ScanError> {
        let metadata = metadata_of(&root.stat_self()?);
        let (mut dirs, mut left) = (DirCursor::new(root), expected);
        let mut list = |dir: &Dir| {
            let mut names = Vec::new();
            for listed in dir.names()? {
                left = left.checked_sub(1).ok_or(ScanError::Surplus { expected })?;
                names.push(Component::new(&listed?.name)?);
            }
            Ok::<_, ScanError>(names)
        };
        let names = list(dirs.at(&TreePath::root())?)?;
        let root = Level { path: TreePath::root(), name: None, metadata, names, found: Vec::new() };
        let mut way = vec![root];
        loop {
            let level = way.last_mut().ok_or(ScanError::Kind)?;
            if let Some(name) = level.names.pop() {
                let dir = dirs.at(&level.path)?;
                let stat = dir.stat(name.as_bytes())?.ok_or(ScanError::Kind)?;
                if stat.kind == rustix::fs::FileType::Directory {
                    let (path, metadata) = (level.path.join(&name)?, metadata_of(&stat));
                    let names = list(dirs.at(&path)?)?;
                    way.push(Level { path, name: Some(name), metadata, names, found: Vec::new() });
                } else {
                    let kind = leaf(dir, name.as_bytes(), &stat)?;
                    level.found.push((Entry { name, metadata: metadata_of(&stat), kind }, stat.inode));
                }
            } else if let Some(Level { path, name, metadata, found, .. }) = way.pop() {
                let (object, totals) = self.directory(path, found)?;
                let (Some(above), Some(name)) = (way.last_mut(), name) else { return Ok(object) };
                let kind = Kind::Directory { object, totals };
                above.found.push((Entry { name, metadata, kind }, 0));
            }
        }
    }

    /// A directory with all its entries.
    fn directory(
        &mut self,
        path: TreePath,
        mut found: Vec<(Entry, u64)>,
    ) -> Result<(ObjectHash, Totals), ScanError> {
        found.sort_by(|a, b| a.0.name.cmp(&b.0.name));
        let (entries, inodes): (Vec<_>, Vec<_>) = found.into_iter().unzip();
        let directory = Directory::new(entries).map_err(|_| ScanError::Kind)?;
        let totals = directory.totals().ok_or(ScanError::Kind)?;
        let bytes = directory.encode();
        let hash = Directory::hash_of(&bytes);
        self.objects.push((hash, bytes));
        self.inodes.push((path, inodes));
        Ok((hash, totals))
    }

    fn keep(self, record: &Record) -> Result<(), RecordError> {
        record.put_directories(&self.objects, false)?;
        let inodes = InodeChanges { put: self.inodes, clear: true, ..InodeChanges::default() };
        record.activate(None, &inodes, &[])
    }
}

fn metadata_of(stat: &Stat) -> Metadata {
    let mode = if stat.kind == rustix::fs::FileType::Symlink { 0o777 } else { stat.mode as u16 };
    Metadata { mode, uid: stat.uid, gid: stat.gid, mtime: stat.mtime }
}

fn leaf(dir: &Dir, name: &[u8], stat: &Stat) -> Result<Kind, ScanError> {
    match stat.kind {
        rustix::fs::FileType::RegularFile => {
            let content = hash_file(&dir.open_file(name)?)?;
            Ok(Kind::File { content, size: stat.size })
        }
        rustix::fs::FileType::Symlink => Ok(Kind::Symlink { target: dir.read_link(name)?.into() }),
        _ => Err(ScanError::Kind),
    }
}
