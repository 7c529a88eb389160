//! ROOT: what is in it, who may open it, and what its names mean.
//!
//! ```text
//! ROOT/live                     -> generations/N, the web server's document root
//! ROOT/live.next                the link that is about to be renamed over live
//! ROOT/generations/N            complete trees
//! ROOT/staging/spare-K          complete tree, not live; the record says of which root
//! ROOT/staging/drawn-K          a spare that this process may change at any time, and no other one trusts
//! ROOT/staging/building-K       being built, or left half built by a crash: never trusted
//! ROOT/staging/partial-K        being made of an update in parts, or left so: taken from, never trusted
//! ROOT/staging/aside-K-I        renamed out of building-K for a moment
//! ROOT/staging/resting-K        was in live's place until it was healed: left alone for the grace
//! ROOT/staging/retired-K        was live, and is out of use: inspected before it is built on or thrown away
//! ROOT/staging/incoming/H/HASH  whole content that was verified when it got this name; HASH.part while it arrives
//! ROOT/trash/K                  deleted later ([`crate::trash`])
//! ROOT/lost+found/N/PATH        files of visitors that were in a tree ([`crate::lost_found`])
//! ROOT/state/lock               locked while an agent runs, holds its pid
//! ROOT/state/record.redb        the record
//! ROOT/state/signed/N           record and signature of generation N, in case the record is lost
//! ```
//!
//! One process holds the lock and only it changes anything here. After a crash names tell how far it came
//! ([`crate::recover`]).

#![cfg_attr(
    not(test),
    expect(clippy::disallowed_methods, reason = "ROOT, which the operator names, and the lock in it")
)]

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, FlockOperation, OFlags};
use rustix::io::Errno;
use syncd_shared::marks::{self, Mark};
use syncd_shared::own_directory::{self, Access, DirectoryError, Inspected};

use crate::disk::{Dir, DiskError};
use crate::planted::{self, Bug};
use crate::trash::Trash;

/// The document root, a symlink.
pub(crate) const LIVE: &[u8] = b"live";
/// Its successor, for a moment.
pub(crate) const LIVE_NEXT: &[u8] = b"live.next";
const GENERATIONS: &[u8] = b"generations";
const STAGING: &[u8] = b"staging";
const TRASH: &[u8] = b"trash";
const STATE: &[u8] = b"state";
/// Files that visitors left in trees ([`crate::lost_found`]).
pub(crate) const LOST_FOUND: &[u8] = b"lost+found";
/// Content that arrived, in [`Layout::staging`].
pub(crate) const INCOMING: &[u8] = b"incoming";
/// Signed generation records, in `ROOT/state`.
pub(crate) const SIGNED: &[u8] = b"signed";
/// The record, in `ROOT/state`.
pub(crate) const RECORD: &str = "record.redb";
/// Foreign names that an error lists.
const FOREIGN_SHOWN: usize = 5;

/// How long a holder of the lock may keep a newcomer waiting before it is refused.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// Why ROOT can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// A system call failed.
    #[error("open the replica")]
    Disk(#[from] DiskError),
    /// ROOT or a directory in it could not be made.
    #[error("create {}", path.display())]
    Create {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// ROOT has files that are not syncd's.
    #[error("{} holds other files ({}): give an empty directory as --root", root.display(), names.join(", "))]
    Foreign {
        /// ROOT.
        root: PathBuf,
        /// Some of them.
        names: Vec<String>,
    },
    /// ROOT lies in a directory that another origin or agent manages.
    #[error("{} lies inside {}, {mark}: give a --root outside of it", root.display(), above.display())]
    Inside {
        /// ROOT.
        root: PathBuf,
        /// The other directory.
        above: PathBuf,
        /// What it is.
        mark: Mark,
    },
    /// `live` is something else than the symlink that syncd makes.
    #[error("{} is not a symlink of syncd's: move it away, nothing was changed", path.display())]
    LiveOccupied {
        /// ROOT/live.
        path: PathBuf,
    },
    /// Others own it.
    #[error(transparent)]
    Own(#[from] DirectoryError),
    /// Another agent runs on this ROOT.
    #[error("{} is in use by another agent (pid {pid})", root.display())]
    Locked {
        /// ROOT.
        root: PathBuf,
        /// Its process id, as it wrote it; 0 where it can't be read.
        pid: u32,
    },
    /// Parts of ROOT are on different file systems, so that nothing can be renamed or linked between them.
    #[error("{} is on another file system than {}: both must be on one", part.display(), root.display())]
    OtherFileSystem {
        /// ROOT.
        root: PathBuf,
        /// The part.
        part: PathBuf,
    },
}

/// Open directories of a locked ROOT.
#[derive(Debug)]
pub(crate) struct Layout {
    pub root: Dir,
    pub generations: Dir,
    pub staging: Dir,
    pub trash: Trash,
    pub signed: Dir,
    path: PathBuf,
    _lock: File,
}

impl Layout {
    /// Opens ROOT, or makes it. Changes nothing where it refuses.
    pub fn open(path: &Path) -> Result<Self, LayoutError> {
        let create = |e| LayoutError::Create { path: path.to_path_buf(), source: e };
        if let Some((above, mark)) = marks::above(path).map_err(create)? {
            return Err(LayoutError::Inside { root: path.to_path_buf(), above, mark });
        }
        if !path.try_exists().map_err(create)? {
            own_directory::claim(path, Access::Served)?;
        }
        let root = Dir::open_path(path)?;
        refuse_foreign(&root, path)?;
        refuse_occupied_live(&root, path)?;
        let inspected = inspect_parts(&root, path)?;
        let state = root.ensure_dir(STATE, 0o700)?;
        let lock = lock(path)?;
        // Nothing is refused from here on.
        inspected.into_iter().try_for_each(Inspected::mend)?;
        let generations = root.ensure_dir(GENERATIONS, 0o755)?;
        let staging = root.ensure_dir(STAGING, 0o700)?;
        let trash = Trash::open(root.ensure_dir(TRASH, 0o700)?)?;
        let signed = state.ensure_dir(SIGNED, 0o700)?;
        Ok(Self { root, generations, staging, trash, signed, path: path.to_path_buf(), _lock: lock })
    }

    /// Where the record is.
    pub fn record_path(&self) -> PathBuf {
        self.path.join("state").join(RECORD)
    }

    /// The generation that `live` names, if it is a link that syncd made.
    pub fn live_number(&self) -> Result<Option<u64>, DiskError> {
        match self.root.stat(LIVE)? {
            Some(stat) if stat.kind == FileType::Symlink => {
                Ok(self.root.read_link(LIVE)?.strip_prefix(b"generations/").and_then(number))
            }
            _ => Ok(None),
        }
    }

    /// Makes `live` name a generation. The link is durable and all that it names must be; the switch itself is
    /// durable when this returns.
    pub fn point_live(&self, number: u64) -> Result<(), DiskError> {
        self.prepare_link(number)?;
        self.switch_link()
    }

    /// The new link under its temporary name.
    pub fn prepare_link(&self, number: u64) -> Result<(), DiskError> {
        self.root.unlink(LIVE_NEXT)?;
        self.root.symlink(format!("generations/{number}").as_bytes(), LIVE_NEXT)
    }

    /// Renames the prepared link over `live` and makes that durable.
    pub fn switch_link(&self) -> Result<(), DiskError> {
        if self.root.stat(LIVE)?.is_some_and(|s| s.kind == FileType::Directory) {
            // Empty, or opening would have been refused.
            self.root.remove_dir(LIVE)?;
        }
        self.root.rename(LIVE_NEXT, &self.root, LIVE)?;
        if planted::has(Bug::NoRootSync) {
            return Ok(());
        }
        self.root.sync_names()
    }

    /// Throws away what a patch that failed had moved out of its tree for a moment.
    pub fn discard_asides(&self) -> Result<(), DiskError> {
        for listed in self.staging.list()? {
            if listed.name.starts_with(b"aside-") {
                self.discard(&self.staging, &listed.name)?;
            }
        }
        Ok(())
    }

    /// Removes a name: a directory goes to the trash whole.
    pub fn remove(&self, dir: &Dir, name: &[u8]) -> Result<(), DiskError> {
        match dir.unlink(name) {
            Err(e) if e.source.raw_os_error() == Some(Errno::ISDIR.raw_os_error()) => self.discard(dir, name),
            other => other.map(drop),
        }
    }

    /// Moves a name to the trash, whatever is below it. The cost does not depend on that.
    pub fn discard(&self, dir: &Dir, name: &[u8]) -> Result<(), DiskError> {
        self.trash.take(dir, name)
    }
}

/// The number that a name is, in the one way that numbers are written.
pub(crate) fn number(name: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(name).ok()?;
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

/// The number after a prefix.
pub(crate) fn numbered(name: &[u8], prefix: &str) -> Option<u64> {
    number(name.strip_prefix(prefix.as_bytes())?)
}

fn refuse_foreign(root: &Dir, path: &Path) -> Result<(), LayoutError> {
    let names: Vec<Vec<u8>> = root.list()?.into_iter().map(|l| l.name).collect();
    if names.iter().any(|n| n == STATE) {
        return Ok(());
    }
    let ours = [LIVE, LIVE_NEXT, GENERATIONS, STAGING, TRASH, LOST_FOUND];
    let mut foreign: Vec<String> = names
        .iter()
        .filter(|n| !ours.contains(&n.as_slice()))
        .map(|n| n.escape_ascii().to_string())
        .collect();
    foreign.sort_unstable();
    foreign.truncate(FOREIGN_SHOWN);
    match foreign.is_empty() {
        true => Ok(()),
        false => Err(LayoutError::Foreign { root: path.to_path_buf(), names: foreign }),
    }
}

fn refuse_occupied_live(root: &Dir, path: &Path) -> Result<(), LayoutError> {
    let ours = match root.stat(LIVE)? {
        None => true,
        Some(stat) if stat.kind == FileType::Symlink => {
            root.read_link(LIVE)?.strip_prefix(b"generations/").and_then(number).is_some()
        }
        Some(stat) if stat.kind == FileType::Directory => root.open_dir(LIVE)?.list()?.is_empty(),
        Some(_) => false,
    };
    match ours {
        true => Ok(()),
        false => Err(LayoutError::LiveOccupied { path: path.join("live") }),
    }
}

/// Refuses ROOT, and directories in it, that belong to another user or lie on another file system than ROOT.
fn inspect_parts(root: &Dir, path: &Path) -> Result<Vec<Inspected>, LayoutError> {
    let elsewhere = |part| LayoutError::OtherFileSystem { root: path.to_path_buf(), part };
    let mut inspected = vec![own_directory::inspect(path, Access::Served)?];
    let device = root.stat_self()?.device;
    for (name, access) in [
        (STATE, Access::Private),
        (STAGING, Access::Private),
        (TRASH, Access::Private),
        (GENERATIONS, Access::Served),
    ] {
        let part = match root.open_dir(name) {
            Ok(part) => part,
            Err(e) if e.is_absent() => continue,
            Err(e) if e.source.raw_os_error() == Some(Errno::XDEV.raw_os_error()) => {
                return Err(elsewhere(e.path));
            }
            Err(e) => return Err(e.into()),
        };
        if part.stat_self()?.device != device {
            return Err(elsewhere(part.path().to_path_buf()));
        }
        inspected.push(own_directory::inspect(part.path(), access)?);
    }
    Ok(inspected)
}

fn lock(root: &Path) -> Result<File, LayoutError> {
    let path = root.join("state").join("lock");
    let failed = |source| LayoutError::Create { path: path.clone(), source };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(&path)
        .map_err(failed)?;
    // A command like `status` holds the lock for a moment: it must not fail a `run` that starts at the same time.
    let deadline = Instant::now() + LOCK_PATIENCE;
    let result = loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => thread::sleep(LOCK_RETRY),
            result => break result,
        }
    };
    if let Err(e) = result {
        if e != rustix::io::Errno::WOULDBLOCK {
            return Err(failed(e.into()));
        }
        let mut text = String::new();
        let _ = file.read_to_string(&mut text);
        let pid = text.trim().parse().unwrap_or(0);
        return Err(LayoutError::Locked { root: root.to_path_buf(), pid });
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_absent_root_is_made_and_a_second_agent_is_told_who_holds_it() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("new/agent");
        let layout = Layout::open(&path).unwrap();
        assert_eq!(layout.live_number().unwrap(), None);
        match Layout::open(&path) {
            Err(LayoutError::Locked { pid, .. }) => assert_eq!(pid, std::process::id()),
            other => panic!("{other:?}"),
        }
        drop(layout);
        assert!(Layout::open(&path).is_ok());
    }

    #[test]
    fn a_root_that_is_refused_keeps_its_modes() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("agent");
        let layout = Layout::open(&path).unwrap();
        let loose = |name: &str| {
            std::fs::set_permissions(path.join(name), PermissionsExt::from_mode(0o777)).unwrap();
        };
        let mode = |name: &str| std::fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777;
        ["", "state", "generations"].iter().for_each(|name| loose(name));
        assert!(matches!(Layout::open(&path), Err(LayoutError::Locked { .. })));
        assert_eq!(["", "state", "generations"].map(mode), [0o777; 3]);
        drop(layout);
        drop(Layout::open(&path).unwrap());
        assert_eq!(["", "state", "generations"].map(mode), [0o755, 0o700, 0o755]);
    }

    #[test]
    fn a_root_is_recognised_and_takes_no_other_root_into_it() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("agent");
        drop(Layout::open(&path).unwrap());
        assert_eq!(marks::of(&path), Some(Mark::AgentRoot));
        let inside = path.join("generations/1/agent");
        let error = Layout::open(&inside).unwrap_err();
        assert!(matches!(error, LayoutError::Inside { mark: Mark::AgentRoot, .. }), "{error}");
        assert!(!inside.exists(), "nothing is made where it is refused");
    }

    #[test]
    fn what_someone_else_keeps_there_is_refused_and_untouched() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("thesis.txt"), "x").unwrap();
        std::fs::set_permissions(temp.path(), PermissionsExt::from_mode(0o775)).unwrap();
        let error = Layout::open(temp.path()).unwrap_err();
        assert!(matches!(&error, LayoutError::Foreign { names, .. } if names == &["thesis.txt"]), "{error}");
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 1);
        assert_eq!(std::fs::metadata(temp.path()).unwrap().permissions().mode() & 0o777, 0o775);

        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("live")).unwrap();
        assert!(Layout::open(temp.path()).is_ok());
        std::fs::write(temp.path().join("live/index.html"), "x").unwrap();
        assert!(matches!(Layout::open(temp.path()), Err(LayoutError::LiveOccupied { .. })));
        assert!(temp.path().join("live/index.html").exists());
    }
}
