//! Kinds of `live`: a symlink, or a directory that is exchanged with another.
//!
//! `state/exchange` marks a ROOT whose `live` may be a directory of syncd's. It is made durable before the
//! first tree gets that name, and removed when `live` is a symlink again. A directory `live` without it is
//! foreign.

use rustix::fs::FileType;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::state::disk::{Dir, DiskError};
use crate::state::layout::LIVE;

/// Marks a ROOT, in `ROOT/state`.
const MARK: &[u8] = b"exchange";
/// Names in `ROOT/staging` that are exchanged to see whether that works. Recovery discards all of `aside-*`.
const TRIAL: [&[u8]; 2] = [b"aside-trial-1", b"aside-trial-2"];

/// Kind of `live`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Swap {
    /// ROOT/live is a symlink, which is replaced.
    #[default]
    Link,
    /// ROOT/live is a directory, which is exchanged with another; for chroots, FTP servers and mounts.
    Exchange,
}

/// Kind of file at the name `live`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Nothing,
    Link,
    /// A directory with something in it.
    Tree,
    EmptyDirectory,
    /// A foreign file.
    Other,
}

impl Standing {
    pub fn of(root: &Dir) -> Result<Self, DiskError> {
        Ok(match root.stat(LIVE)?.map(|stat| stat.kind) {
            None => Self::Nothing,
            Some(FileType::Symlink) => Self::Link,
            Some(FileType::Directory) => match root.open_dir(LIVE)?.names()?.next() {
                None => Self::EmptyDirectory,
                Some(_) => Self::Tree,
            },
            Some(_) => Self::Other,
        })
    }
}

/// Whether a directory `live` is syncd's. `state` is `ROOT/state`.
pub(crate) fn is_marked(state: &Dir) -> Result<bool, DiskError> {
    Ok(state.stat(MARK)?.is_some())
}

/// Marks a ROOT, durably.
pub(crate) fn mark(state: &Dir) -> Result<(), DiskError> {
    if is_marked(state)? {
        return Ok(());
    }
    drop(state.create_file(MARK)?);
    state.sync_names()
}

/// Removes the mark. Not durable: with a mark that stays, a foreign directory is not refused.
pub(crate) fn unmark(state: &Dir) -> Result<(), DiskError> {
    if is_marked(state)? { state.unlink(MARK).map(drop) } else { Ok(()) }
}

/// Exchanges two empty directories in `staging`. Returns the error if the kernel or the file system cannot.
pub(crate) fn refused(staging: &Dir) -> Result<Option<DiskError>, DiskError> {
    for name in TRIAL {
        staging.remove_dir(name)?;
        staging.make_dir(name)?;
    }
    let tried = staging.exchange(TRIAL[0], staging, TRIAL[1]);
    TRIAL.iter().try_for_each(|name| staging.remove_dir(name).map(drop))?;
    match tried {
        Ok(()) => Ok(None),
        Err(e) if is_missing(&e) => Ok(Some(e)),
        Err(e) => Err(e),
    }
}

/// Whether an error says that there is no such call here.
fn is_missing(error: &DiskError) -> bool {
    let errno = Errno::from_io_error(&error.source);
    matches!(errno, Some(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::XDEV))
}
