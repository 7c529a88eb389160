//! Background verification: re-reads the live tree slowly and continuously, to find files that were edited
//! behind its back.
//!
//! A user who owns a file on a node may edit it in place and restore its time. Every tree links that inode,
//! and no check of an update notices. A pass (`--verify-every`, weekly) therefore reads each file of the live
//! tree. That covers every inode once, because spares have no others. Names that no manifest has are reported
//! at the end of the pass and left in place. Any other difference starts a whole verification at once
//! ([`crate::replica::verify`]), which reports, heals and keeps files.
//!
//! A pass yields to all other work: it proceeds in steps of [`STEP_BYTES`] with a pause after each, and an
//! update cancels a step. Its position is kept in the record, and a power cut loses about a minute. A new
//! live generation does not restart it, because an update verifies what it brings. Pages that were not cached
//! before are dropped from the page cache again; pages that were cached stay.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use syncd_shared::diff::DirectorySource;
use syncd_shared::directory::Cursor;
use syncd_shared::{ContentHash, Entry, Kind, RootEntry, TreePath};

use crate::build::StageError;
use crate::replica::Replica;
use crate::replica::maintain::Upkept;
use crate::state::cursor::{DirCursor, looks_like};
use crate::state::disk;
use crate::state::record::{Record, RecordError};
use crate::status::Drift;

/// Limit of bytes read in a step.
const STEP_BYTES: u64 = 4 * 1024 * 1024;
/// Entries visited in a step.
const STEP_ENTRIES: usize = 500;
/// Pause after each step, which limits reading to 8 MiB per second.
const PAUSE: Duration = Duration::from_millis(500);
/// Interval at which the position of a pass is made durable.
const DURABLE_EVERY: Duration = Duration::from_secs(60);
/// Pause before damage that could not be healed is checked again.
const UNHEALED: Duration = Duration::from_secs(3600);

/// Progress of a pass, as kept in the record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pass {
    /// Earliest start of the next pass, in seconds since 1970.
    due_s: u64,
    /// Path of the last entry visited; `None`: no pass is in progress.
    at: Option<Vec<u8>>,
    /// Number of names so far that no manifest has.
    strangers: u64,
    /// The first of these names, escaped.
    first: String,
}

/// State of the background verification in memory.
#[derive(Debug, Default)]
pub(crate) struct Scrub {
    pass: Option<Pass>,
    /// Time of the last step.
    stepped: Option<Instant>,
    /// Time at which the pass was last made durable.
    durable: Option<Instant>,
    /// A file larger than a step, and the position in it.
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

/// Walks the entries of a manifest in path order, directories before their contents.
struct Walk<'a> {
    record: &'a Record,
    levels: Vec<(TreePath, Cursor<&'a Record>)>,
}

impl<'a> Walk<'a> {
    /// Continues after `at`, whether or not it still exists.
    fn after(record: &'a Record, root: &RootEntry, at: &TreePath) -> Result<Self, StageError> {
        let mut levels = vec![(TreePath::root(), Cursor::new(record, Some(root.object))?)];
        for name in at.components() {
            let Some((path, next)) = levels.last_mut() else { break };
            next.seek(&name)?;
            let Some(entry) = next.entry()?.filter(|entry| entry.name == name) else { break };
            let kind = entry.kind.clone();
            next.skip();
            let Kind::Directory { object, .. } = kind else { break };
            let below = path.join(&name).map_err(|source| StageError::Path { source })?;
            levels.push((below, Cursor::new(record, Some(object))?));
        }
        Ok(Self { record, levels })
    }

    fn next(&mut self) -> Result<Option<(TreePath, Entry)>, StageError> {
        while let Some((path, next)) = self.levels.last_mut() {
            let Some(entry) = next.entry()?.cloned() else {
                self.levels.pop();
                continue;
            };
            next.skip();
            let path = path.join(&entry.name).map_err(|source| StageError::Path { source })?;
            if let Kind::Directory { object, .. } = entry.kind {
                self.levels.push((path.clone(), Cursor::new(self.record, Some(object))?));
            }
            return Ok(Some((path, entry)));
        }
        Ok(None)
    }
}

/// Result of reading a file.
enum Read {
    Right,
    Wrong,
    /// The file continues in the next step.
    Begun,
}

impl Replica {
    /// Time until the next step; `None`: there will be none.
    pub(crate) fn scrub_due(&self) -> Option<Duration> {
        self.options.verify_every?;
        self.slots.live()?;
        let scrub = &self.upkeep.scrub;
        let pause =
            scrub.stepped.map_or(Duration::ZERO, |at| PAUSE.saturating_sub(self.options.clock.since(at)));
        // The progress has to be read from the record first.
        let Some(pass) = &scrub.pass else { return Some(pause) };
        let rest = match pass.at {
            Some(_) => Duration::ZERO,
            None => Duration::from_secs(pass.due_s.saturating_sub(now_s())),
        };
        Some(rest.max(pause))
    }

    /// Does one step of the pass if it is due.
    pub(crate) fn scrub(&mut self, cancel: &AtomicBool) -> Result<Option<Upkept>, StageError> {
        let (Some(every), Some(live)) = (self.options.verify_every, self.slots.live().cloned()) else {
            return Ok(None);
        };
        if self.scrub_due() != Some(Duration::ZERO) {
            return Ok(None);
        }
        let mut pass = match self.upkeep.scrub.pass.take() {
            Some(pass) => pass,
            // A tree that has just been synced was verified on arrival.
            None => self.slots.record().verification()?.unwrap_or_else(|| Pass::begin_in(every)),
        };
        // A clock that was once far ahead must not postpone the pass for ever.
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
            // Owner, mode and time of a directory change with its contents.
            Kind::Directory { .. } if stat.kind == rustix::fs::FileType::Directory => Ok(Read::Right),
            kind @ (Kind::Symlink { .. } | Kind::Collected { .. })
                if looks_like(entry, &stat, self.slots.owners()) =>
            {
                let target = self.slots.layout().link_target(kind);
                match Some(&*dir.read_link(name.as_bytes())?) == target.as_deref() {
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

    /// Counts names in a directory that its manifest does not have.
    fn count_strangers(
        &self,
        pass: &mut Pass,
        dirs: &mut DirCursor,
        path: &TreePath,
        object: syncd_shared::ObjectHash,
    ) -> Result<(), StageError> {
        let manifest = self.slots.record().directory(&object)?;
        // If it is not a directory, another check notices.
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

    /// Notes that a whole verification has just read everything. If it could not heal, the next pass comes
    /// soon.
    pub(crate) fn was_verified(&mut self, is_whole: bool) -> Result<(), RecordError> {
        let Some(every) = self.options.verify_every else { return Ok(()) };
        self.upkeep.scrub.large = None;
        self.keep_pass(Pass::begin_in(if is_whole { every } else { every.min(UNHEALED) }))
    }
}

impl Pass {
    /// Whether no pass is in progress.
    #[cfg(test)]
    pub fn is_over(&self) -> bool {
        self.at.is_none()
    }

    fn begin_in(pause: Duration) -> Self {
        Self { due_s: now_s().saturating_add(pause.as_secs()), ..Self::default() }
    }
}

/// Result of a step.
enum Step {
    OnTheWay,
    Ended,
    Damaged(TreePath),
}

/// Reads files, and counts the bytes read.
struct Reader {
    bytes: u64,
    large: Option<Large>,
}

impl Reader {
    /// Reads a file, or continues with it, within the limit of the step.
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
