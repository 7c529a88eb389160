//! Refuses a directory that is no ROOT, belongs to an older version, or is in use. These checks come before
//! any change.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, FlockOperation, OFlags};
use rustix::io::Errno;
use syncd_runtime::own_directory::{self, Access, Inspected};
use syncd_shared::text::one_line;

use super::{
    COLLECTED, GENERATIONS, LIVE, LIVE_NEXT, LOST_FOUND, LayoutError, PREVIOUS, PREVIOUS_NEXT, SLOTS,
    STAGING, STATE, TRASH,
};
use crate::state::disk::Dir;
use crate::state::number;
use crate::state::swap::{self, Standing};

/// Number of foreign names that an error lists.
const FOREIGN_SHOWN: usize = 5;

/// How long a start waits for another holder of the lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

const LOCK_RETRY: Duration = Duration::from_millis(20);

pub(super) fn require_exchange(staging: &Dir) -> Result<(), LayoutError> {
    let Some(source) = swap::refused(staging)? else { return Ok(()) };
    let missing_in = match (Errno::from_io_error(&source.source), staging.file_system()) {
        (Some(Errno::NOSYS), _) => "this kernel".to_owned(),
        (_, Some(kind)) => format!("the file system of ROOT ({})", one_line(&kind, 40)),
        _ => "the file system of ROOT".to_owned(),
    };
    Err(LayoutError::NoExchange { missing_in, source })
}

/// Refuses a ROOT of an older build, before anything is changed. Older builds made no slots.
pub(super) fn refuse_older(root: &Dir, path: &Path) -> Result<(), LayoutError> {
    let older = || LayoutError::OlderBuild { root: path.to_path_buf() };
    if root.stat(SLOTS)?.is_some() {
        return Ok(());
    }
    if root.stat(LIVE)?.is_some_and(|stat| stat.kind == FileType::Symlink)
        && root.read_link(LIVE)?.starts_with(b"generations/")
    {
        return Err(older());
    }
    let prefixes = ["spare-", "drawn-", "building-", "partial-", "resting-", "retired-"];
    let is_staged = |name: &[u8]| prefixes.iter().any(|prefix| name.starts_with(prefix.as_bytes()));
    let is_kept = |name: &[u8]| number(name).is_some();
    for (part, is_tree) in [(STAGING, &is_staged as &dyn Fn(&[u8]) -> bool), (GENERATIONS, &is_kept)] {
        let dir = match root.open_dir(part) {
            Ok(dir) => dir,
            Err(e) if e.is_no_directory() => continue,
            Err(e) => return Err(e.into()),
        };
        for listed in dir.list()?.iter().filter(|listed| is_tree(&listed.name)) {
            if dir.stat(&listed.name)?.is_some_and(|stat| stat.kind == FileType::Directory) {
                return Err(older());
            }
        }
    }
    Ok(())
}

pub(super) fn refuse_foreign(root: &Dir, path: &Path) -> Result<(), LayoutError> {
    let names: Vec<Vec<u8>> = root.list()?.into_iter().map(|l| l.name).collect();
    if names.iter().any(|n| n == STATE) {
        return Ok(());
    }
    let ours =
        [LIVE, LIVE_NEXT, PREVIOUS, PREVIOUS_NEXT, SLOTS, GENERATIONS, COLLECTED, STAGING, TRASH, LOST_FOUND];
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

pub(super) fn refuse_occupied(root: &Dir, path: &Path) -> Result<(), LayoutError> {
    let is_marked = match root.open_dir(STATE) {
        Ok(state) => swap::is_marked(&state)?,
        Err(e) if e.is_absent() => false,
        Err(e) => return Err(e.into()),
    };
    for (name, at) in [(LIVE, "live"), (PREVIOUS, "previous")] {
        let ours = match root.stat(name)? {
            None => true,
            Some(stat) if stat.kind == FileType::Symlink => {
                root.read_link(name)?.strip_prefix(b"slots/").and_then(number).is_some()
            }
            Some(stat) if stat.kind == FileType::Directory && name == LIVE => {
                is_marked || Standing::of(root)? == Standing::EmptyDirectory
            }
            Some(_) => false,
        };
        if !ours {
            return Err(LayoutError::LinkOccupied { path: path.join(at) });
        }
    }
    Ok(())
}

/// Refuses ROOT, or a directory in it, if it belongs to another user or is on another file system than ROOT.
pub(super) fn inspect_parts(root: &Dir, path: &Path) -> Result<Vec<Inspected>, LayoutError> {
    let elsewhere = |part| LayoutError::OtherFileSystem { root: path.to_path_buf(), part };
    let mut inspected = vec![own_directory::inspect(path, Access::Served)?];
    let device = root.stat_self()?.device;
    for (name, access) in [
        (STATE, Access::Private),
        (STAGING, Access::Private),
        (TRASH, Access::Private),
        (SLOTS, Access::Open),
        (GENERATIONS, Access::Open),
        (COLLECTED, Access::Open),
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
    if root.stat(LIVE)?.is_some_and(|stat| stat.kind == FileType::Directory)
        && let Err(e) = root.open_dir(LIVE)
    {
        return Err(match e.source.raw_os_error() == Some(Errno::XDEV.raw_os_error()) {
            true => elsewhere(e.path),
            false => e.into(),
        });
    }
    Ok(inspected)
}

pub(super) fn lock(root: &Path) -> Result<File, LayoutError> {
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
    // A command like `status` holds the lock briefly, which must not make a simultaneous `run` fail.
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
