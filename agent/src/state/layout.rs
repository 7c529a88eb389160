//! Layout of ROOT: what its names mean, and who may open them.
//!
//! ```text
//! ROOT/live                     -> slots/K, the web server's document root; or the tree itself, as slot 0
//! ROOT/previous                 -> slots/J, the tree that was live before, while it is kept; never changed
//! ROOT/live.next, previous.next the links that are about to be renamed over them
//! ROOT/slots/K                  a tree; it keeps this path in every state ([`crate::state::slots`])
//! ROOT/generations/N            -> ../slots/K or ../live, for people: made again at each start
//! ROOT/collected/NAME           a collected directory, which visitors write to ([`collected`])
//! ROOT/staging/aside-K-I        temporarily renamed out of the tree of slot K
//! ROOT/staging/incoming/H/HASH  complete content, verified when it got this name; HASH.part while it arrives
//! ROOT/trash/K                  deleted later ([`crate::state::trash`])
//! ROOT/lost+found/N/PATH        files of visitors that were in a tree ([`crate::state::lost_found`])
//! ROOT/lost+found/0/NAME        was at a name that the agent creates itself ([`foreign`])
//! ROOT/state/lock               locked while an agent runs, contains its pid
//! ROOT/state/record.redb        the record
//! ROOT/state/exchange           `live` may be a directory ([`crate::state::swap`])
//! ROOT/state/refused            refused generations, if the record is lost ([`crate::state::decisions`])
//! ROOT/state/signed/K           record and signature of the generation in slot K, in case the record is lost
//! ```
//!
//! The root directory of a tree that is not served belongs to the agent and has mode 0700
//! ([`Layout::close`]), so that users who can read `slots/` cannot enter it.
//!
//! One process holds the lock, and only that process changes anything here. After a crash the names show how
//! far it came ([`crate::state::scan`]).

#![cfg_attr(
    not(test),
    expect(clippy::disallowed_methods, reason = "ROOT, which the operator names, and the lock in it")
)]

mod collected;
pub(crate) mod foreign;
mod guard;
mod links;

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use syncd_runtime::own_directory::{self, Access, DirectoryError, Inspected};
use syncd_shared::marks::{self, Mark};

use crate::state::disk::{Dir, DiskError};
use crate::state::swap::{self, Swap};
use crate::state::trash::Trash;

use self::guard::{inspect_parts, lock, refuse_foreign, refuse_occupied, refuse_older, require_exchange};

/// The document root: a symlink, or the live tree itself.
pub(crate) const LIVE: &[u8] = b"live";
/// Number of the tree at `live` itself. No directory in `slots/` has it.
pub(crate) const LIVE_SLOT: u64 = 0;
/// Temporary name of the new `live`.
pub(crate) const LIVE_NEXT: &[u8] = b"live.next";
/// The tree that was live before, a symlink.
pub(crate) const PREVIOUS: &[u8] = b"previous";
/// Temporary name of the new `previous`.
pub(crate) const PREVIOUS_NEXT: &[u8] = b"previous.next";
const SLOTS: &[u8] = b"slots";
/// Parent of the collected directories.
const COLLECTED: &[u8] = b"collected";
const GENERATIONS: &[u8] = b"generations";
const STAGING: &[u8] = b"staging";
const TRASH: &[u8] = b"trash";
const STATE: &[u8] = b"state";
/// Directory for files that visitors left in trees ([`crate::state::lost_found`]).
pub(crate) const LOST_FOUND: &[u8] = b"lost+found";
/// Directory for arriving content, in [`Layout::staging`].
pub(crate) const INCOMING: &[u8] = b"incoming";
/// Directory of the signed generation records, in `ROOT/state`.
pub(crate) const SIGNED: &[u8] = b"signed";
/// Name of the record, in `ROOT/state`.
pub(crate) const RECORD: &str = "record.redb";

/// Reason why ROOT cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// A system call failed.
    #[error("open the replica")]
    Disk(#[from] DiskError),
    /// ROOT or a directory in it could not be created.
    #[error("create {}", path.display())]
    Create {
        /// Path of the directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// ROOT contains foreign files.
    #[error("{} holds other files ({}): give an empty directory as --root", root.display(), names.join(", "))]
    Foreign {
        /// ROOT.
        root: PathBuf,
        /// Some of these names.
        names: Vec<String>,
    },
    /// ROOT lies in a directory that another origin or agent manages.
    #[error("{} lies inside {}, {mark}: give a --root outside of it", root.display(), above.display())]
    Inside {
        /// ROOT.
        root: PathBuf,
        /// The managed directory above ROOT.
        above: PathBuf,
        /// Manager of that directory: an origin or an agent.
        mark: Mark,
    },
    /// ROOT contains names that only older builds made.
    #[error(
        "{} was written by an older build of syncd: move it away and join again, nothing was changed",
        root.display()
    )]
    OlderBuild {
        /// ROOT.
        root: PathBuf,
    },
    /// `live` or `previous` exists, but syncd did not make it.
    #[error("{} is not syncd's: move it away, nothing was changed", path.display())]
    LinkOccupied {
        /// Path of the name.
        path: PathBuf,
    },
    /// The kernel or the file system cannot exchange two directories.
    #[error(
        "--swap exchange needs the call renameat2 with RENAME_EXCHANGE, which {missing_in} does not have: \
         use --swap link, or a --root on ext4, xfs, btrfs or tmpfs"
    )]
    NoExchange {
        /// The kernel, or the file system.
        missing_in: String,
        /// The kernel's answer.
        #[source]
        source: DiskError,
    },
    /// ROOT, or a directory in it, belongs to another user.
    #[error(transparent)]
    Own(#[from] DirectoryError),
    /// Another agent runs on this ROOT.
    #[error("{} is in use by another agent (pid {pid})", root.display())]
    Locked {
        /// ROOT.
        root: PathBuf,
        /// Process id of that agent, as written in the lock file; 0 if it cannot be read.
        pid: u32,
    },
    /// Parts of ROOT are on different file systems, so files cannot be renamed or linked between them.
    #[error("{} is on another file system than {}: both must be on one", part.display(), root.display())]
    OtherFileSystem {
        /// ROOT.
        root: PathBuf,
        /// The part on another file system.
        part: PathBuf,
    },
}

/// Open directories of a locked ROOT.
#[derive(Debug)]
pub(crate) struct Layout {
    pub root: Dir,
    pub slots: Dir,
    pub generations: Dir,
    pub staging: Dir,
    pub trash: Trash,
    pub signed: Dir,
    pub state: Dir,
    path: PathBuf,
    _lock: File,
}

impl Layout {
    /// Opens ROOT, or creates it. Changes nothing that existed if it fails. `swap`: what `live` is to be;
    /// `None`: what it is.
    pub fn open(path: &Path, swap: Option<Swap>) -> Result<Self, LayoutError> {
        let create = |e| LayoutError::Create { path: path.to_path_buf(), source: e };
        if let Some((above, mark)) = marks::above(path).map_err(create)? {
            return Err(LayoutError::Inside { root: path.to_path_buf(), above, mark });
        }
        if !path.try_exists().map_err(create)? {
            own_directory::claim(path, Access::Served)?;
        }
        let root = Dir::open_path(path)?;
        refuse_foreign(&root, path)?;
        let inspected = inspect_parts(&root, path)?;
        refuse_older(&root, path)?;
        refuse_occupied(&root, path)?;
        let state = root.ensure_dir(STATE, 0o700)?;
        let lock = lock(path)?;
        // No check fails from here on.
        inspected.into_iter().try_for_each(Inspected::mend)?;
        let slots = root.ensure_dir(SLOTS, 0o755)?;
        let generations = root.ensure_dir(GENERATIONS, 0o755)?;
        let staging = root.ensure_dir(STAGING, 0o700)?;
        let trash = Trash::open(root.ensure_dir(TRASH, 0o700)?)?;
        let signed = state.ensure_dir(SIGNED, 0o700)?;
        if swap == Some(Swap::Exchange) {
            require_exchange(&staging)?;
            swap::mark(&state)?;
        }
        // Links to collected directories are absolute.
        let path = std::path::absolute(path).map_err(create)?;
        Ok(Self { root, slots, generations, staging, trash, signed, state, path, _lock: lock })
    }

    pub fn record_path(&self) -> PathBuf {
        self.path.join("state").join(RECORD)
    }

    /// Directory and name of the tree of a slot. No other function knows where the live tree is.
    pub fn place(&self, slot: u64) -> (&Dir, Vec<u8>) {
        match slot {
            LIVE_SLOT => (&self.root, LIVE.to_vec()),
            _ => (&self.slots, slot_name(slot)),
        }
    }

    /// Opens the directory of a slot.
    pub fn slot(&self, slot: u64) -> Result<Dir, DiskError> {
        let (dir, name) = self.place(slot);
        dir.open_dir(&name)
    }

    /// Path of a slot.
    pub fn slot_path(&self, slot: u64) -> PathBuf {
        let (dir, name) = self.place(slot);
        dir.path().join(String::from_utf8_lossy(&name).as_ref())
    }

    /// Closes the tree of a slot to other users. Its root gets its real metadata when the tree is activated.
    pub fn close(&self, slot: u64) -> Result<(), DiskError> {
        self.slot(slot)?.make_private()
    }

    /// Whether only the agent may enter the tree of a slot.
    pub fn is_closed(&self, slot: u64) -> Result<bool, DiskError> {
        let stat = self.slot(slot)?.stat_self()?;
        Ok(stat.mode == 0o700 && stat.uid == rustix::process::geteuid().as_raw())
    }

    /// Moves what a failed patch had set aside to the trash.
    pub fn discard_asides(&self) -> Result<(), DiskError> {
        for listed in self.staging.list()? {
            if listed.name.starts_with(b"aside-") {
                self.discard(&self.staging, &listed.name)?;
            }
        }
        Ok(())
    }

    /// Removes a name. A directory is moved to the trash as a whole.
    pub fn remove(&self, dir: &Dir, name: &[u8]) -> Result<(), DiskError> {
        match dir.unlink(name) {
            Err(e) if e.source.raw_os_error() == Some(Errno::ISDIR.raw_os_error()) => self.discard(dir, name),
            other => other.map(drop),
        }
    }

    /// Moves a name to the trash. The cost does not depend on what is below it.
    pub fn discard(&self, dir: &Dir, name: &[u8]) -> Result<(), DiskError> {
        self.trash.take(dir, name)
    }
}

/// Name of a slot in [`Layout::slots`] and [`Layout::signed`].
pub(crate) fn slot_name(slot: u64) -> Vec<u8> {
    slot.to_string().into_bytes()
}

/// Target of the link `generations/N` of a slot.
pub(crate) fn generation_target(slot: u64) -> Vec<u8> {
    match slot {
        LIVE_SLOT => b"../live".to_vec(),
        _ => format!("../slots/{slot}").into_bytes(),
    }
}

/// Path of the tree that the link `live` names; the link itself if it cannot be read.
pub(crate) fn live_tree(link: &Path) -> PathBuf {
    let target = std::fs::read_link(link).ok();
    target.and_then(|target| Some(link.parent()?.join(target))).unwrap_or_else(|| link.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_absent_root_is_made_and_a_second_agent_is_told_who_holds_it() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("new/agent");
        let layout = Layout::open(&path, None).unwrap();
        assert_eq!(layout.live_slot().unwrap(), None);
        match Layout::open(&path, None) {
            Err(LayoutError::Locked { pid, .. }) => assert_eq!(pid, std::process::id()),
            other => panic!("{other:?}"),
        }
        drop(layout);
        assert!(Layout::open(&path, None).is_ok());
    }

    #[test]
    fn a_root_that_is_refused_keeps_its_modes() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("agent");
        let layout = Layout::open(&path, None).unwrap();
        let loose = |name: &str| {
            std::fs::set_permissions(path.join(name), PermissionsExt::from_mode(0o777)).unwrap();
        };
        let mode = |name: &str| std::fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777;
        ["", "state", "generations"].iter().for_each(|name| loose(name));
        assert!(matches!(Layout::open(&path, None), Err(LayoutError::Locked { .. })));
        assert_eq!(["", "state", "generations"].map(mode), [0o777; 3]);
        drop(layout);
        drop(Layout::open(&path, None).unwrap());
        assert_eq!(["", "state", "generations"].map(mode), [0o755, 0o700, 0o755]);
    }

    #[test]
    fn a_root_is_recognised_and_takes_no_other_root_into_it() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("agent");
        drop(Layout::open(&path, None).unwrap());
        assert_eq!(marks::of(&path), Some(Mark::AgentRoot));
        let inside = path.join("slots/1/agent");
        let error = Layout::open(&inside, None).unwrap_err();
        assert!(matches!(error, LayoutError::Inside { mark: Mark::AgentRoot, .. }), "{error}");
        assert!(!inside.exists(), "nothing is made where it is refused");
    }

    #[test]
    fn what_an_older_build_left_is_refused_and_untouched() {
        let older: [fn(&Path); 3] = [
            |root| std::os::unix::fs::symlink("generations/7", root.join("live")).unwrap(),
            |root| std::fs::create_dir_all(root.join("generations/7")).unwrap(),
            |root| std::fs::create_dir_all(root.join("staging/spare-1")).unwrap(),
        ];
        for leave in older {
            let temp = tempfile::tempdir().unwrap();
            std::fs::create_dir(temp.path().join("state")).unwrap();
            leave(temp.path());
            let before = std::fs::read_dir(temp.path()).unwrap().count();
            let error = Layout::open(temp.path(), None).unwrap_err();
            assert!(matches!(error, LayoutError::OlderBuild { .. }), "{error}");
            assert!(error.to_string().contains("move it away and join again"), "{error}");
            assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), before);
        }
    }

    #[test]
    fn what_someone_else_keeps_there_is_refused_and_untouched() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("thesis.txt"), "x").unwrap();
        std::fs::set_permissions(temp.path(), PermissionsExt::from_mode(0o775)).unwrap();
        let error = Layout::open(temp.path(), None).unwrap_err();
        assert!(matches!(&error, LayoutError::Foreign { names, .. } if names == &["thesis.txt"]), "{error}");
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 1);
        assert_eq!(std::fs::metadata(temp.path()).unwrap().permissions().mode() & 0o777, 0o775);

        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("live")).unwrap();
        assert!(Layout::open(temp.path(), None).is_ok());
        std::fs::write(temp.path().join("live/index.html"), "x").unwrap();
        assert!(matches!(Layout::open(temp.path(), None), Err(LayoutError::LinkOccupied { .. })));
        assert!(temp.path().join("live/index.html").exists());
    }
}
