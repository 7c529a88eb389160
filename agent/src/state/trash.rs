//! ROOT/trash: names that are deleted later, a bounded number at a time.
//!
//! ```text
//! trash/N        a file or a tree; numbers are not reused while the process lives
//! trash/stuck/N  contains something that cannot be removed; a bounded number is retried at the next start,
//!                hourly, and when space is short
//! ```
//!
//! Users who can write to a directory of a live tree decide how deep, wide and closed the trees here are. A
//! walk therefore keeps at most [`OPEN_MAX`] directories open. A deeper directory is renamed to `trash/N` and
//! removed on its own, so no path grows. Names are read as they are removed. An entry that cannot be removed
//! holds up only its own tree. A crash leaves names here, and nothing else refers to them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::state::disk::{Dir, DiskError, Listed, Names};
use crate::state::number;

/// Directories of one tree open at a time, each with two descriptors.
const OPEN_MAX: usize = 12;
/// Directory of names that could not be removed.
const STUCK: &[u8] = b"stuck";
/// Stuck names that are retried at a time.
const RETRIED_MAX: usize = 256;

/// The trash of a locked ROOT.
#[derive(Debug)]
pub(crate) struct Trash {
    dir: Dir,
    /// Number of the next name.
    next: AtomicU64,
    /// Number of names to be removed, except stuck ones.
    waiting: AtomicU64,
    stuck: AtomicU64,
    /// No line is logged up to this number of stuck names.
    told: AtomicU64,
}

/// Limits of one walk.
struct Limits<'a> {
    /// Names that may still be removed or renamed.
    left: usize,
    cancel: &'a AtomicBool,
}

impl Limits<'_> {
    fn is_reached(&self) -> bool {
        self.left == 0 || self.cancel.load(Ordering::Relaxed)
    }
}

/// A directory that is being emptied.
struct Level {
    dir: Dir,
    names: Names,
    /// Name in the parent directory.
    name: Vec<u8>,
    /// Whether a name was removed since the listing was started.
    is_moving: bool,
}

impl Level {
    fn open(above: &Dir, name: &[u8]) -> Result<Self, DiskError> {
        let dir = above.open_dir(name)?;
        dir.make_writable()?;
        Ok(Self { names: dir.names()?, dir, name: name.to_vec(), is_moving: false })
    }
}

impl Trash {
    /// Takes the open directory ROOT/trash and counts its names.
    pub fn open(dir: Dir) -> Result<Self, DiskError> {
        if dir.stat(STUCK)?.is_some_and(|stat| stat.kind != FileType::Directory) {
            dir.unlink(STUCK)?;
        }
        let (mut last, mut waiting, mut stuck) = (0, 0, 0);
        for listed in dir.names()? {
            let name = listed?.name;
            waiting += u64::from(name != STUCK);
            last = last.max(number(&name).unwrap_or(0));
        }
        if let Some(shelf) = shelf(&dir)? {
            for listed in shelf.names()? {
                stuck += 1;
                last = last.max(number(&listed?.name).unwrap_or(0));
            }
        }
        let [next, waiting, stuck] = [last + 1, waiting, stuck].map(AtomicU64::new);
        let trash = Self { dir, next, waiting, stuck, told: AtomicU64::new(0) };
        trash.retry_stuck()?;
        Ok(trash)
    }

    /// Whether the trash has nothing that can be removed.
    pub fn is_empty(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) == 0
    }

    /// Whether something could not be removed.
    pub fn is_stuck(&self) -> bool {
        self.stuck.load(Ordering::Relaxed) > 0
    }

    /// Moves a name here. A missing name is not an error.
    pub fn take(&self, dir: &Dir, name: &[u8]) -> Result<(), DiskError> {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed).to_string();
            match dir.rename_new(name, &self.dir, number.as_bytes()) {
                Ok(()) => {
                    self.waiting.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                Err(e) if e.is_absent() => return Ok(()),
                Err(e) if e.source.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Makes stuck names removable again, at most [`RETRIED_MAX`] of them.
    pub fn retry_stuck(&self) -> Result<(), DiskError> {
        let Some(shelf) = shelf(&self.dir)? else {
            self.stuck.store(0, Ordering::Relaxed);
            return Ok(());
        };
        for listed in shelf.names()?.take(RETRIED_MAX) {
            self.take(&shelf, &listed?.name)?;
        }
        let left = shelf.names()?.count() as u64;
        self.stuck.store(left, Ordering::Relaxed);
        if left == 0 {
            self.dir.remove_dir(STUCK)?;
        }
        Ok(())
    }

    /// Removes at most `most` names, including those in directories, and returns their number. It is less
    /// than `most` if only stuck names are left, or if `cancel` was set. Fails only if nothing at all can be
    /// removed.
    pub fn empty(&self, most: usize, cancel: &AtomicBool) -> Result<usize, DiskError> {
        let mut limits = Limits { left: most, cancel };
        // Directories renamed to here meanwhile may not have been listed.
        while !self.is_empty() && !limits.is_reached() {
            let before = limits.left;
            for listed in self.dir.names()? {
                let listed = listed?;
                if listed.name == STUCK {
                    continue;
                }
                if limits.is_reached() {
                    break;
                }
                match self.remove(&listed, &mut limits) {
                    Ok(true) => drop(self.waiting.fetch_sub(1, Ordering::Relaxed)),
                    Ok(false) => {}
                    Err(error) => self.set_aside(&listed.name, error)?,
                }
            }
            if limits.left == before && !limits.is_reached() {
                // The count was wrong, because somebody else removed names here.
                self.waiting.store(0, Ordering::Relaxed);
            }
        }
        Ok(most - limits.left)
    }

    /// Moves a name to the stuck ones so that the rest can be removed. Returns `error` if that fails.
    fn set_aside(&self, name: &[u8], error: DiskError) -> Result<(), DiskError> {
        let shelf = self.dir.ensure_dir(STUCK, 0o700);
        if shelf.and_then(|shelf| self.dir.rename_new(name, &shelf, name)).is_err() {
            return Err(error);
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        let stuck = self.stuck.fetch_add(1, Ordering::Relaxed) + 1;
        if stuck > self.told.load(Ordering::Relaxed) {
            // A line for each would fill the log of a node where somebody plants in every tree.
            self.told.store(stuck * 2 - 1, Ordering::Relaxed);
            let path = self.dir.path().join("stuck");
            let error = &error as &dyn std::error::Error;
            tracing::warn!(path = %path.display(), trees = stuck, error, "can't be deleted: remove it by hand");
        }
        Ok(())
    }

    /// Removes one name of the trash and everything below it. Returns `false` if a limit was reached first.
    /// Returns the first error, but removes everything that can be removed.
    fn remove(&self, listed: &Listed, limits: &mut Limits<'_>) -> Result<bool, DiskError> {
        let (mut open, mut failed) = (Vec::<Level>::new(), None);
        match self.remove_or_open(&self.dir, listed, true, limits)? {
            Some(level) => open.push(level),
            None => return Ok(true),
        }
        while let Some(mut level) = open.pop() {
            if limits.is_reached() {
                return Ok(false);
            }
            match level.names.next() {
                Some(Ok(listed)) => {
                    let below = self.remove_or_open(&level.dir, &listed, open.len() + 1 < OPEN_MAX, limits);
                    level.is_moving |= matches!(below, Ok(None));
                    open.push(level);
                    match below {
                        Ok(below) => open.extend(below),
                        Err(error) => drop(failed.get_or_insert(error)),
                    }
                }
                ended => {
                    if let Some(Err(error)) = ended {
                        failed.get_or_insert(error);
                    }
                    let above = open.last().map_or(&self.dir, |above| &above.dir);
                    match above.remove_dir(&level.name) {
                        Ok(_) => {
                            limits.left = limits.left.saturating_sub(1);
                            open.iter_mut().last().into_iter().for_each(|above| above.is_moving = true);
                        }
                        // Some file systems skip names in a listing while others are being removed.
                        Err(error) if errno(&error) == Some(Errno::NOTEMPTY) && level.is_moving => {
                            level.is_moving = false;
                            level.names = level.dir.names()?;
                            open.push(level);
                        }
                        Err(error) => drop(failed.get_or_insert(error)),
                    }
                }
            }
        }
        failed.map_or(Ok(true), Err)
    }

    /// Removes a name, or opens it if it is a directory. A directory that may not be opened is moved up to
    /// the trash.
    fn remove_or_open(
        &self,
        dir: &Dir,
        listed: &Listed,
        may_open: bool,
        limits: &mut Limits<'_>,
    ) -> Result<Option<Level>, DiskError> {
        let name = &listed.name;
        let mut removed = match listed.directory {
            Some(true) => dir.remove_dir(name),
            _ => dir.unlink(name),
        };
        // The listing gives no kind, or the name has changed since.
        removed = match removed {
            Err(e) if errno(&e) == Some(Errno::ISDIR) => dir.remove_dir(name),
            Err(e) if errno(&e) == Some(Errno::NOTDIR) => dir.unlink(name),
            other => other,
        };
        match removed {
            Err(e) if errno(&e) == Some(Errno::NOTEMPTY) => {
                if may_open {
                    return Level::open(dir, name).map(Some);
                }
                self.take(dir, name)?;
            }
            other => drop(other?),
        }
        limits.left = limits.left.saturating_sub(1);
        Ok(None)
    }
}

/// The directory of stuck names, if there is one.
fn shelf(dir: &Dir) -> Result<Option<Dir>, DiskError> {
    match dir.open_dir(STUCK) {
        Err(e) if e.is_no_directory() => Ok(None),
        other => other.map(Some),
    }
}

fn errno(error: &DiskError) -> Option<Errno> {
    Errno::from_io_error(&error.source)
}

#[cfg(test)]
mod tests;
