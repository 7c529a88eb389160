//! Reads the live tree again, slowly and for ever, so that files that were edited behind its back are found.
//!
//! Whoever owns a file on a node may edit it in place and put its time back; every tree links that inode, and nothing
//! that an update looks at has changed. So a pass (`--verify-every`, weekly) reads each file of the live tree, which is
//! each inode once: spares have no others. Names that no manifest has are reported when the pass ends, and left where
//! they are. Anything else starts a whole verification at once ([`crate::replica::verify`]), which reports, heals and keeps.
//!
//! A pass yields to everything: it goes on in steps of [`STEP_BYTES`] with a pause after each, which an update cancels.
//! Where it is stands in the record: lost with a power cut is a minute of it, a generation that becomes live meanwhile
//! changes nothing about it, because an update verifies what it brings. What was not in the page cache is dropped from
//! it again, what was there stays.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use syncd_shared::diff::DirectorySource;
use syncd_shared::{ContentHash, Directory, Entry, Kind, RootEntry, TreePath};

use crate::build::StageError;
use crate::replica::Replica;
use crate::replica::maintain::Upkept;
use crate::state::cursor::{DirCursor, looks_like};
use crate::state::disk;
use crate::state::record::{Record, RecordError};
use crate::status::Drift;

/// Bytes that a step reads at most.
const STEP_BYTES: u64 = 4 * 1024 * 1024;
/// Entries that a step looks at.
const STEP_ENTRIES: usize = 500;
/// After each step: 8 MiB a second at most.
const PAUSE: Duration = Duration::from_millis(500);
/// Where a pass is is made durable this often.
const DURABLE_EVERY: Duration = Duration::from_secs(60);
/// Damage that could not be healed is looked at again after this long.
const UNHEALED: Duration = Duration::from_secs(3600);

/// How far the pass is, as the record keeps it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pass {
    /// When the next one may begin, in seconds since 1970.
    due_s: u64,
    /// Path of the last entry that was looked at; `None`: between two passes.
    at: Option<Vec<u8>>,
    /// Names so far that no manifest has.
    strangers: u64,
    /// The first of them, escaped.
    first: String,
}

/// What a pass goes by in memory.
#[derive(Debug, Default)]
pub(crate) struct Scrub {
    pass: Option<Pass>,
    /// The last step.
    stepped: Option<Instant>,
    /// When the pass was last made durable.
    durable: Option<Instant>,
    /// A file larger than a step, and how far it is.
    large: Option<Large>,
}

struct Large {
    path: TreePath,
    inode: u64,
    offset: u64,
    hasher: blake3::Hasher,
}

impl std::fmt::Debug for Large {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Large").field("path", &self.path).field("offset", &self.offset).finish()
    }
}

/// Entries of a manifest in path order, directories before what is in them.
struct Walk<'a> {
    record: &'a Record,
    levels: Vec<(TreePath, Arc<Directory>, usize)>,
}

impl<'a> Walk<'a> {
    /// Goes on after `at`, whether or not that is still there.
    fn after(record: &'a Record, root: &RootEntry, at: &TreePath) -> Result<Self, StageError> {
        let mut levels = vec![(TreePath::root(), record.directory(&root.object)?, 0)];
        for name in at.components() {
            let Some((path, directory, next)) = levels.last_mut() else { break };
            let index = directory.entries().partition_point(|entry| entry.name < name);
            *next = index;
            let Some(entry) = directory.entries().get(index).filter(|entry| entry.name == name) else {
                break;
            };
            *next += 1;
            let Kind::Directory { object, .. } = entry.kind else { break };
            let below = path.join(&name).map_err(|source| StageError::Path { source })?;
            levels.push((below, record.directory(&object)?, 0));
        }
        Ok(Self { record, levels })
    }

    fn next(&mut self) -> Result<Option<(TreePath, Entry)>, StageError> {
        while let Some((path, directory, next)) = self.levels.last_mut() {
            let Some(entry) = directory.entries().get(*next).cloned() else {
                self.levels.pop();
                continue;
            };
            *next += 1;
            let path = path.join(&entry.name).map_err(|source| StageError::Path { source })?;
            if let Kind::Directory { object, .. } = entry.kind {
                self.levels.push((path.clone(), self.record.directory(&object)?, 0));
            }
            return Ok(Some((path, entry)));
        }
        Ok(None)
    }
}

/// What became of a file.
enum Read {
    Right,
    Wrong,
    /// There is more of it.
    Begun,
}

impl Replica {
    /// How long until the next step; `None`: none will come.
    pub(crate) fn scrub_due(&self) -> Option<Duration> {
        self.options.verify_every?;
        self.slots.live()?;
        let scrub = &self.upkeep.scrub;
        let pause =
            scrub.stepped.map_or(Duration::ZERO, |at| PAUSE.saturating_sub(self.options.clock.since(at)));
        // How far it is has to be read first.
        let Some(pass) = &scrub.pass else { return Some(pause) };
        let rest = match pass.at {
            Some(_) => Duration::ZERO,
            None => Duration::from_secs(pass.due_s.saturating_sub(now_s())),
        };
        Some(rest.max(pause))
    }

    /// One step of the pass, where it is due.
    pub(crate) fn scrub(&mut self, cancel: &AtomicBool) -> Result<Option<Upkept>, StageError> {
        let (Some(every), Some(live)) = (self.options.verify_every, self.slots.live().cloned()) else {
            return Ok(None);
        };
        if self.scrub_due() != Some(Duration::ZERO) {
            return Ok(None);
        }
        let mut pass = match self.upkeep.scrub.pass.take() {
            Some(pass) => pass,
            // What was just synced was verified when it came.
            None => self.slots.record().verification()?.unwrap_or_else(|| Pass::begin_in(every)),
        };
        // A clock that was far ahead once must not put it off for ever.
        pass.due_s = pass.due_s.min(now_s().saturating_add(every.as_secs()));
        if pass.at.is_none() && pass.due_s > now_s() {
            self.keep_pass(pass)?;
            return Ok(None);
        }
        self.upkeep.scrub.stepped = Some(self.options.clock.now());
        let root = live.generation().root;
        let stepped = self.scrub_from(&mut pass, &root, cancel);
        if matches!(stepped, Ok(Step::Ended)) {
            tracing::debug!(strangers = pass.strangers, "every file of the live tree was read again");
            self.end_pass(&pass, live.number().get())?;
            pass = Pass::begin_in(every);
        }
        self.keep_pass(pass)?;
        let damaged = match stepped? {
            Step::Damaged(path) => Some(path),
            Step::Ended | Step::OnTheWay => None,
        };
        Ok(Some(Upkept::Reread { damaged }))
    }

    fn scrub_from(
        &mut self,
        pass: &mut Pass,
        root: &RootEntry,
        cancel: &AtomicBool,
    ) -> Result<Step, StageError> {
        let large = self.upkeep.scrub.large.take();
        let mut reader = Reader { bytes: 0, large };
        let mut dirs = DirCursor::new(self.slots.trees().open_live()?);
        let at =
            pass.at.as_deref().and_then(|at| TreePath::from_bytes(at).ok()).unwrap_or_else(TreePath::root);
        if pass.at.is_none() {
            self.count_strangers(pass, &mut dirs, &TreePath::root(), root.object)?;
        }
        pass.at = Some(at.as_bytes().to_vec());
        let mut walk = Walk::after(self.slots.record(), root, &at)?;
        for _ in 0..STEP_ENTRIES {
            if cancel.load(Ordering::Relaxed) || reader.bytes >= STEP_BYTES {
                break;
            }
            let Some((path, entry)) = walk.next()? else { return Ok(Step::Ended) };
            if let Kind::Directory { object, .. } = entry.kind {
                self.count_strangers(pass, &mut dirs, &path, object)?;
            }
            match self.reread(&mut reader, &mut dirs, &path, &entry, cancel)? {
                Read::Right => pass.at = Some(path.as_bytes().to_vec()),
                Read::Wrong => {
                    pass.at = Some(path.as_bytes().to_vec());
                    return Ok(Step::Damaged(path));
                }
                Read::Begun => break,
            }
        }
        self.upkeep.scrub.large = reader.large;
        Ok(Step::OnTheWay)
    }

    fn reread(
        &self,
        reader: &mut Reader,
        dirs: &mut DirCursor,
        path: &TreePath,
        entry: &Entry,
        cancel: &AtomicBool,
    ) -> Result<Read, StageError> {
        let Some((parent, name)) = path.split_last() else { return Ok(Read::Right) };
        let dir = match dirs.at(&parent) {
            Ok(dir) => dir,
            Err(e) if e.is_no_directory() => return Ok(Read::Wrong),
            Err(e) => return Err(e.into()),
        };
        let Some(stat) = dir.stat(name.as_bytes())? else { return Ok(Read::Wrong) };
        match &entry.kind {
            // Its owner, mode and time follow what is done in it.
            Kind::Directory { .. } if stat.kind == rustix::fs::FileType::Directory => Ok(Read::Right),
            Kind::Symlink { target } if looks_like(entry, &stat, self.slots.owners()) => {
                match dir.read_link(name.as_bytes())? == **target {
                    true => Ok(Read::Right),
                    false => Ok(Read::Wrong),
                }
            }
            Kind::File { content, .. } if looks_like(entry, &stat, self.slots.owners()) => {
                let Ok(file) = dir.open_file(name.as_bytes()) else { return Ok(Read::Wrong) };
                reader.read(&file, path, stat.inode, *content, cancel).map_or(Ok(Read::Wrong), Ok)
            }
            _ => Ok(Read::Wrong),
        }
    }

    /// Names in a directory that its manifest does not have.
    fn count_strangers(
        &self,
        pass: &mut Pass,
        dirs: &mut DirCursor,
        path: &TreePath,
        object: syncd_shared::ObjectHash,
    ) -> Result<(), StageError> {
        let manifest = self.slots.record().directory(&object)?;
        // What is there instead of it is seen elsewhere.
        let Ok(dir) = dirs.at(path) else { return Ok(()) };
        for listed in dir.names()? {
            let listed = listed?;
            let name = syncd_shared::Component::new(&listed.name).ok();
            if name.as_ref().is_some_and(|name| manifest.get(name).is_some()) {
                continue;
            }
            if pass.strangers == 0
                && let Some(path) = name.and_then(|name| path.join(&name).ok())
            {
                pass.first = path.to_string();
            }
            pass.strangers += 1;
        }
        Ok(())
    }

    fn end_pass(&mut self, pass: &Pass, live: u64) -> Result<(), RecordError> {
        if pass.strangers == 0 {
            return self.acknowledge_drift();
        }
        let (paths, first) = (pass.strangers, pass.first.clone());
        let is_told = self
            .drift
            .as_ref()
            .is_some_and(|drift| drift.generation == live && (drift.paths, &drift.first) == (paths, &first));
        match is_told {
            true => Ok(()),
            false => self.found_drift(Drift { generation: live, paths, first, kept: None, lost: 0, live }),
        }
    }

    fn keep_pass(&mut self, pass: Pass) -> Result<(), RecordError> {
        let clock = &self.options.clock;
        let scrub = &mut self.upkeep.scrub;
        let durable = pass.at.is_none() || scrub.durable.is_none_or(|at| clock.since(at) >= DURABLE_EVERY);
        self.slots.record().set_verification(&pass, durable)?;
        if durable {
            scrub.durable = Some(clock.now());
        }
        scrub.pass = Some(pass);
        Ok(())
    }

    /// Everything was read just now, by a whole verification. Where it could not heal, the next pass comes soon.
    pub(crate) fn was_verified(&mut self, is_whole: bool) -> Result<(), RecordError> {
        let Some(every) = self.options.verify_every else { return Ok(()) };
        self.upkeep.scrub.large = None;
        self.keep_pass(Pass::begin_in(if is_whole { every } else { every.min(UNHEALED) }))
    }
}

impl Pass {
    /// Whether none is under way.
    #[cfg(test)]
    pub fn is_over(&self) -> bool {
        self.at.is_none()
    }

    fn begin_in(pause: Duration) -> Self {
        Self { due_s: now_s().saturating_add(pause.as_secs()), ..Self::default() }
    }
}

/// How a step ended.
enum Step {
    OnTheWay,
    Ended,
    Damaged(TreePath),
}

/// Reads files, and counts what was read.
struct Reader {
    bytes: u64,
    large: Option<Large>,
}

impl Reader {
    /// Reads a file, or goes on with it, as far as the step may.
    fn read(
        &mut self,
        file: &File,
        path: &TreePath,
        inode: u64,
        content: ContentHash,
        cancel: &AtomicBool,
    ) -> std::io::Result<Read> {
        let begun = self.large.take().filter(|large| large.path == *path && large.inode == inode);
        let (mut offset, mut hasher) =
            begun.map_or_else(|| (0, blake3::Hasher::new()), |large| (large.offset, large.hasher));
        disk::read_at_random(file);
        let mut buffer = vec![0; 128 * 1024];
        loop {
            if self.bytes >= STEP_BYTES || cancel.load(Ordering::Relaxed) {
                self.large = Some(Large { path: path.clone(), inode, offset, hasher });
                return Ok(Read::Begun);
            }
            let read = match disk::read_cached_at(file, &mut buffer, offset)? {
                Some(read) => read,
                None => {
                    let read = file.read_at(&mut buffer, offset)?;
                    disk::drop_cached_at(file, offset, read as u64);
                    read
                }
            };
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
            offset += read as u64;
            self.bytes += read as u64;
        }
        Ok(if ContentHash::finish(&hasher) == content { Read::Right } else { Read::Wrong })
    }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
