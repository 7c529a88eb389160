//! The files of one collected directory: reads their states, and places versions.
//!
//! Visitors change files at any moment. A version therefore takes the place of a file by an exchange of
//! names. If the file that came out is not the one that was decided on, it is put back.

use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::FileType;
use syncd_shared::collected::{FileState, State};
use syncd_shared::directory::{MODE_MASK, Timestamp};
use syncd_shared::{Component, Metadata, TreePath};

use super::error::CollectedError;
use super::journal::{FINGERPRINT_BYTES, Fingerprint};
use crate::clock::Clock;
use crate::state::disk::{Dir, DiskError, Owners, Stat, drop_cached, stat_file};
use crate::state::hashing::hash_file;
use crate::test_faults::{self, Bug};

/// A file that changed less than this ago may change again within the resolution of its times.
const RACY_SECONDS: i64 = 2;

/// A file that changed less than this ago, and was not reported as closed, may have a writer.
const SETTLED_SECONDS: i64 = 2;

/// More paths than these are made durable by one sync of the file system.
const SYNCED_SINGLY: usize = 4;

const SETUID_SETGID: u32 = 0o6000;

/// Share of the file system that collected files leave to the next generation, at most
/// [`RESERVE_MAX_BYTES`].
const RESERVE_SHARE: u64 = 16;
const RESERVE_MAX_BYTES: u64 = 1024 * 1024 * 1024;

/// Names of versions that arrive, and of files that may be a visitor's.
const NEW: &str = "new-";
const OUT: &str = "out-";

/// The entry found at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    State(State),
    /// A symlink, device, socket, fifo, or a setuid file.
    Untaken,
    /// A file that changed while it was read, or a moment ago.
    Moving,
}

/// The outcome of placing a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placed {
    Done,
    /// Something else stands there now: decide again.
    Changed,
    /// A directory is not empty, or a directory above is no directory.
    Obstructed,
}

/// An open collected directory.
pub(super) struct Files {
    dir: Dir,
    incoming: Dir,
    owners: Owners,
    /// Owner of all files.
    owner: (u32, u32),
    clock: Clock,
}

impl Files {
    pub fn open(dir: Dir, incoming: Dir, owners: Owners, clock: Clock) -> Result<Self, CollectedError> {
        let stat = dir.stat_self()?;
        Ok(Self { dir, incoming, owners, owner: (stat.uid, stat.gid), clock })
    }

    fn parent(&self, path: &TreePath) -> Result<Option<(Dir, Component)>, CollectedError> {
        let Some((parent, name)) = path.split_last() else { return Ok(None) };
        let opened = if parent.is_root() { self.dir.reopen() } else { self.dir.open_dir(parent.as_bytes()) };
        match opened {
            Ok(dir) => Ok(Some((dir, name))),
            Err(e) if e.is_no_directory() => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether the entry at a path is a directory; `None`: there is none.
    pub fn is_directory(&self, path: &TreePath) -> Result<Option<bool>, CollectedError> {
        let Some((dir, name)) = self.parent(path)? else { return Ok(None) };
        Ok(dir.stat(name.as_bytes())?.map(|stat| stat.kind == FileType::Directory))
    }

    /// Fails if a file of `bytes` bytes would take room that the next generation may need.
    pub fn check_room(&self, bytes: u64) -> Result<(), CollectedError> {
        let space = self.incoming.space()?;
        let reserve = (space.total_bytes / RESERVE_SHARE).min(RESERVE_MAX_BYTES);
        match space.free_bytes.saturating_sub(reserve) {
            available_bytes if available_bytes < bytes => {
                Err(CollectedError::NoSpace { wanted_bytes: bytes, available_bytes })
            }
            _ => Ok(()),
        }
    }

    /// Number of files in `.incoming` that may be a visitor's.
    pub fn kept_aside(&self) -> Result<u64, CollectedError> {
        let listed = self.incoming.list()?;
        Ok(listed.iter().filter(|listed| listed.name.starts_with(OUT.as_bytes())).count() as u64)
    }

    /// Reads the state of a path. `seen` saves reading a file that has not changed since. `is_closed`: a file
    /// was reported as closed, so that its age does not matter. Returns the fingerprint if it may be trusted
    /// from now on.
    pub fn state(
        &self,
        path: &TreePath,
        seen: Option<&(Fingerprint, State)>,
        is_closed: bool,
    ) -> Result<(Found, Option<Fingerprint>), CollectedError> {
        let absent = (Found::State(State::Absent), None);
        let Some((dir, name)) = self.parent(path)? else { return Ok(absent) };
        let Some(stat) = dir.stat(name.as_bytes())? else { return Ok(absent) };
        match stat.kind {
            FileType::Directory => Ok((Found::State(State::Directory { mode: mode(&stat) }), None)),
            // A program that runs as its owner does not travel.
            FileType::RegularFile if stat.mode & SETUID_SETGID != 0 => Ok((Found::Untaken, None)),
            FileType::RegularFile => {
                let mark = fingerprint(&stat);
                if let Some((_, state)) = seen.filter(|(seen, _)| *seen == mark) {
                    return Ok((Found::State(*state), Some(mark)));
                }
                // The clock may have been set back.
                let age = self.clock.wall().seconds.saturating_sub(stat.ctime.seconds);
                if !is_closed && (0..SETTLED_SECONDS).contains(&age) {
                    return Ok((Found::Moving, None));
                }
                match dir.open_file(name.as_bytes()) {
                    Ok(file) => read_state(&file, &stat, self.clock.wall()),
                    Err(e) if e.is_absent() => Ok(absent),
                    Err(e) => Err(e.into()),
                }
            }
            _ => Ok((Found::Untaken, None)),
        }
    }

    /// Makes what stands at these paths durable, also that nothing does.
    pub fn sync(&self, paths: &[TreePath]) -> Result<(), CollectedError> {
        if test_faults::has(Bug::UnsyncedUploads) {
            return Ok(());
        }
        if paths.len() > SYNCED_SINGLY {
            return Ok(self.dir.sync_file_system()?);
        }
        paths.iter().try_for_each(|path| self.sync_one(path))
    }

    fn sync_one(&self, path: &TreePath) -> Result<(), CollectedError> {
        if let Some((dir, name)) = self.parent(path)?
            && let Some(stat) = dir.stat(name.as_bytes())?
        {
            let synced = match stat.kind {
                FileType::RegularFile => dir.sync_file(name.as_bytes()),
                // Its mode.
                FileType::Directory => dir.open_dir(name.as_bytes()).and_then(|own| own.sync_names()),
                _ => Ok(()),
            };
            match synced {
                Err(e) if !e.is_no_directory() => return Err(e.into()),
                _ => {}
            }
        }
        // All names above may be new, or gone.
        let mut above = path.split_last();
        while let Some((directory, _)) = above {
            let opened = match directory.is_root() {
                true => self.dir.reopen(),
                false => self.dir.open_dir(directory.as_bytes()),
            };
            match opened {
                Ok(dir) => dir.sync_names()?,
                Err(e) if e.is_no_directory() => {}
                Err(e) => return Err(e.into()),
            }
            above = directory.split_last();
        }
        Ok(())
    }

    /// Opens a file to send its content.
    pub fn open_file(&self, path: &TreePath) -> Result<Option<File>, CollectedError> {
        let Some((dir, name)) = self.parent(path)? else { return Ok(None) };
        match dir.open_file(name.as_bytes()) {
            Ok(file) => Ok(Some(file)),
            Err(e) if e.is_absent() => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Has a file read from the disk the next time.
    pub fn drop_cached(&self, path: &TreePath) {
        if let Ok(Some(file)) = self.open_file(path) {
            drop_cached(&file);
        }
    }

    /// Creates a file in which a version arrives. It is removed by [`Self::put`] or [`Self::give_up`].
    pub fn begin(&self) -> Result<(Vec<u8>, File), CollectedError> {
        let arriving = self.temporary(NEW);
        let file = self.incoming.create_file(&arriving)?;
        Ok((arriving, file))
    }

    /// Checks a version that has arrived, and gives it its metadata. Not durable on return.
    pub fn complete(&self, arriving: &[u8], from: &File, file: &FileState) -> Result<(), CollectedError> {
        if hash_file(from).map_err(CollectedError::Read)? != file.content {
            return Err(CollectedError::Content);
        }
        let metadata = self.metadata(file.mode, file.mtime);
        Ok(self.incoming.set_metadata(arriving, &metadata, self.owners, false)?)
    }

    /// Makes versions that have arrived durable, before they get their names.
    pub fn sync_arrived(&self, arrived: &[&[u8]]) -> Result<(), CollectedError> {
        if test_faults::has(Bug::UnsyncedVersions) {
            return Ok(());
        }
        if arrived.len() > SYNCED_SINGLY {
            return Ok(self.incoming.sync_file_system()?);
        }
        Ok(arrived.iter().try_for_each(|name| self.incoming.sync_file(name))?)
    }

    /// Removes a version that has arrived in part.
    pub fn give_up(&self, arriving: &[u8]) -> Result<(), CollectedError> {
        self.incoming.unlink(arriving)?;
        Ok(())
    }

    /// Has a version that has arrived stand at a path, if `local` does now. Durable after [`Self::sync`].
    pub fn put(&self, path: &TreePath, local: &State, arrived: &[u8]) -> Result<Placed, CollectedError> {
        let placed = self.put_arrived(path, local, arrived);
        // Another name has it, if it is in place.
        self.give_up(arrived)?;
        placed
    }

    fn put_arrived(&self, path: &TreePath, local: &State, arrived: &[u8]) -> Result<Placed, CollectedError> {
        let Some((dir, name)) = self.parent_made(path)? else { return Ok(Placed::Obstructed) };
        let local = match local {
            State::Directory { .. } => match self.remove(&dir, &name, local)? {
                Placed::Done => &State::Absent,
                other => return Ok(other),
            },
            local => local,
        };
        let own = self.identity(arrived)?;
        // From here on the name may be that of a visitor's file.
        let out = self.temporary(OUT);
        self.incoming.rename_new(arrived, &self.incoming, &out)?;
        let placed = self.swap_in(&out, &dir, &name, local);
        let left = self.identity(&out)?;
        // A visitor may have put another file there while the names were exchanged.
        if matches!(placed, Ok(Placed::Done)) || left == own {
            self.incoming.unlink(&out)?;
        } else if left.is_some() {
            self.keep_aside();
        }
        placed
    }

    /// Tells a file apart from others that may have its name.
    fn identity(&self, name: &[u8]) -> Result<Option<(u64, u64, Timestamp)>, CollectedError> {
        Ok(self.incoming.stat(name)?.map(|stat| (stat.inode, stat.size, stat.mtime)))
    }

    fn keep_aside(&self) {
        tracing::warn!(kept = %self.incoming.path().display(), "two files of one name within a moment: one is kept aside");
    }

    /// Has a directory stand at a path, if `local` does now. Durable after [`Self::sync`].
    pub fn put_directory(&self, path: &TreePath, local: &State, mode: u16) -> Result<Placed, CollectedError> {
        let Some((dir, name)) = self.parent_made(path)? else { return Ok(Placed::Obstructed) };
        if matches!(local, State::File(_)) {
            match self.remove(&dir, &name, local)? {
                Placed::Done => {}
                other => return Ok(other),
            }
        }
        let made = dir.ensure_dir(name.as_bytes(), 0o755)?;
        made.set_own_metadata(&self.metadata(mode, self.clock.wall()), self.owners)?;
        Ok(Placed::Done)
    }

    /// Removes what stands at a path, if it is `local`. Durable after [`Self::sync`].
    pub fn take_away(&self, path: &TreePath, local: &State) -> Result<Placed, CollectedError> {
        match self.parent(path)? {
            Some((dir, name)) => self.remove(&dir, &name, local),
            None => Ok(Placed::Obstructed),
        }
    }

    /// Opens the directory above a path, and makes those that are missing. `None`: one of the names above is
    /// not a directory.
    fn parent_made(&self, path: &TreePath) -> Result<Option<(Dir, Component)>, CollectedError> {
        match self.make_parents(path)? {
            true => self.parent(path),
            false => Ok(None),
        }
    }

    /// Makes the directories above a path. False: one of the names is not a directory.
    fn make_parents(&self, path: &TreePath) -> Result<bool, CollectedError> {
        let Some((parent, _)) = path.split_last() else { return Ok(false) };
        let mut dir = self.dir.reopen()?;
        for name in parent.components() {
            dir = match dir.open_dir(name.as_bytes()) {
                Ok(below) => below,
                Err(e) if e.is_absent() => {
                    let below = dir.create_dir(name.as_bytes(), 0o755)?;
                    below.set_own_metadata(&self.metadata(0o755, self.clock.wall()), self.owners)?;
                    below
                }
                Err(e) if e.is_no_directory() => return Ok(false),
                Err(e) => return Err(e.into()),
            };
        }
        Ok(true)
    }

    fn metadata(&self, mode: u16, mtime: Timestamp) -> Metadata {
        let (uid, gid) = self.owner;
        Metadata { mode, uid, gid, mtime }
    }

    /// Gives the complete file its name, if `local` still stands there.
    fn swap_in(
        &self,
        temporary: &[u8],
        dir: &Dir,
        name: &Component,
        local: &State,
    ) -> Result<Placed, CollectedError> {
        if *local == State::Absent {
            return match self.incoming.rename_new(temporary, dir, name.as_bytes()) {
                Ok(()) => Ok(Placed::Done),
                Err(e) if e.source.kind() == std::io::ErrorKind::AlreadyExists => Ok(Placed::Changed),
                Err(e) => Err(e.into()),
            };
        }
        match self.incoming.exchange(temporary, dir, name.as_bytes()) {
            Ok(()) => {}
            Err(e) if e.is_absent() => return Ok(Placed::Changed),
            Err(e) => return Err(e.into()),
        }
        if self.is_still(temporary, local)? {
            return Ok(Placed::Done);
        }
        self.incoming.exchange(temporary, dir, name.as_bytes())?;
        Ok(Placed::Changed)
    }

    /// Removes what stands at a name, if it is `local`.
    fn remove(&self, dir: &Dir, name: &Component, local: &State) -> Result<Placed, CollectedError> {
        match local {
            State::Absent => return Ok(Placed::Done),
            State::Directory { .. } => {
                return match dir.remove_dir(name.as_bytes()) {
                    Ok(_) => Ok(Placed::Done),
                    Err(e) if e.is_denied() => Ok(Placed::Obstructed),
                    Err(e) if e.is_no_directory() => Ok(Placed::Changed),
                    Err(e) => Err(e.into()),
                };
            }
            State::File(_) => {}
        }
        let temporary = self.temporary(OUT);
        match dir.rename_new(name.as_bytes(), &self.incoming, &temporary) {
            Ok(()) => {}
            Err(e) if e.is_absent() => return Ok(Placed::Changed),
            Err(e) => return Err(e.into()),
        }
        if self.is_still(&temporary, local)? {
            self.incoming.unlink(&temporary)?;
            return Ok(Placed::Done);
        }
        self.put_back(&temporary, dir, name)?;
        Ok(Placed::Changed)
    }

    /// A file that appeared meanwhile under the name is newer: what was taken out then stays in `.incoming`.
    fn put_back(&self, temporary: &[u8], dir: &Dir, name: &Component) -> Result<(), DiskError> {
        match self.incoming.rename_new(temporary, dir, name.as_bytes()) {
            Err(e) if e.source.kind() == std::io::ErrorKind::AlreadyExists => {
                self.keep_aside();
                Ok(())
            }
            other => other,
        }
    }

    /// Whether a file that was taken out is the one that was decided on.
    fn is_still(&self, temporary: &[u8], local: &State) -> Result<bool, CollectedError> {
        let Some(stat) = self.incoming.stat(temporary)? else { return Ok(false) };
        if stat.kind != FileType::RegularFile {
            return Ok(false);
        }
        let (found, _) = read_state(&self.incoming.open_file(temporary)?, &stat, self.clock.wall())?;
        Ok(found == Found::State(*local))
    }

    fn temporary(&self, kind: &str) -> Vec<u8> {
        // All directories share `.incoming`, and another process may have had this process's ID.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let (seconds, process) = (self.clock.wall().seconds, std::process::id());
        format!("{kind}{seconds}-{process}-{}", NEXT.fetch_add(1, Ordering::Relaxed)).into_bytes()
    }

    /// Removes versions that arrived in part before a crash. A file that was on its way out stays: a visitor
    /// may have written it at that moment.
    pub fn tidy(incoming: &Dir) -> Result<(), CollectedError> {
        for listed in incoming.list()? {
            if listed.name.starts_with(NEW.as_bytes()) {
                incoming.unlink(&listed.name)?;
            } else {
                let name = listed.name.escape_ascii().to_string();
                tracing::warn!(%name, directory = %incoming.path().display(), "a file was taken out when the agent was killed: it is kept there");
            }
        }
        Ok(())
    }

    /// Names in a directory, and whether each may be a directory. None if there is no directory.
    pub fn names(&self, directory: &TreePath) -> Result<Vec<(TreePath, bool)>, CollectedError> {
        let opened = match directory.is_root() {
            true => self.dir.reopen(),
            false => self.dir.open_dir(directory.as_bytes()),
        };
        let dir = match opened {
            Ok(dir) => dir,
            Err(e) if e.is_no_directory() || e.is_denied() => return Ok(Vec::new()),
            Err(e) => return Err(e.into()),
        };
        let mut found = Vec::new();
        for listed in dir.names()? {
            let listed = listed?;
            // A name that no path can have is not taken.
            if let Ok(child) = Component::new(&listed.name).and_then(|name| directory.join(&name)) {
                found.push((child, listed.directory != Some(false)));
            }
        }
        Ok(found)
    }
}

fn mode(stat: &Stat) -> u16 {
    stat.mode as u16 & MODE_MASK
}

fn fingerprint(stat: &Stat) -> Fingerprint {
    let mut out = Vec::with_capacity(FINGERPRINT_BYTES);
    out.extend_from_slice(&stat.inode.to_le_bytes());
    out.extend_from_slice(&stat.size.to_le_bytes());
    for time in [stat.ctime, stat.mtime] {
        out.extend_from_slice(&time.seconds.to_le_bytes());
        out.extend_from_slice(&time.nanoseconds.to_le_bytes());
    }
    let mut fixed = [0; FINGERPRINT_BYTES];
    fixed.iter_mut().zip(out).for_each(|(to, from)| *to = from);
    fixed
}

fn read_state(
    file: &File,
    before: &Stat,
    now: Timestamp,
) -> Result<(Found, Option<Fingerprint>), CollectedError> {
    let content = hash_file(file).map_err(CollectedError::Read)?;
    let after = stat_file(file).map_err(CollectedError::Read)?;
    let (mark, is_racy) = (fingerprint(&after), after.ctime.seconds + RACY_SECONDS >= now.seconds);
    if after.kind != FileType::RegularFile || (after.size, after.mtime) != (before.size, before.mtime) {
        return Ok((Found::Moving, None));
    }
    let state = FileState { content, size: after.size, mode: mode(&after), mtime: after.mtime };
    Ok((Found::State(State::File(state)), Some(mark).filter(|_| !is_racy)))
}

/// Reads the next piece of a file.
pub(super) fn next_piece(file: &mut File, buffer: &mut [u8]) -> Result<usize, CollectedError> {
    file.read(buffer).map_err(CollectedError::Read)
}
