//! Makes every call that changes or syncs a file, by directory descriptor and single name.
//!
//! No call follows a symlink, crosses a mount, or opens anything outside the given directory. A hostile
//! manifest therefore cannot make the agent write elsewhere, and a mount inside a tree is never emptied. Each
//! call says what survives a power cut. A call that says nothing guarantees nothing until
//! [`Dir::sync_file_system`] has returned.
//!
//! An agent without privileges owns its files, but their modes may deny it access (0311, 0000). A call that
//! the kernel refuses for this reason is repeated with the owner's bits set for its duration
//! ([`with_access`]), so callers need not know modes. The bits of group and others never change. A crash
//! during such a call leaves the owner's bits set, and `verify` reports this.

mod content;
pub(crate) mod fault;
mod lifting;
mod stat;

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Timespec, Timestamps, UTIME_NOW,
    Uid,
};
use rustix::io::Errno;
use syncd_shared::{Metadata, Timestamp};

pub use self::content::{
    copy, drop_cached, drop_cached_at, read_at_random, read_cached_at, will_read, write_sparse_at,
};
use self::lifting::{by_descriptor, set_mode, with_access};
pub use self::stat::{DiskError, Space, Stat};
use crate::test_faults::{self, Bug};

/// Decides who owns replicated files.
#[derive(Debug, Clone, Copy)]
pub struct Owners {
    fixed: Option<(u32, u32)>,
    may_chown: bool,
}

impl Owners {
    /// Gives everything to `fixed`, or to the owner in the manifest. Without the privilege to change owners,
    /// everything belongs to the agent's user.
    pub fn new(fixed: Option<(u32, u32)>) -> Self {
        Self { fixed, may_chown: rustix::process::geteuid().is_root() }
    }

    /// User and group of an entry on this node; `None`: the agent's user.
    pub fn of(&self, metadata: &Metadata) -> Option<(u32, u32)> {
        self.may_chown.then(|| self.fixed.unwrap_or((metadata.uid, metadata.gid)))
    }

    /// Whether a file has the right owner and mode.
    pub fn agree(&self, stat: &Stat, metadata: &Metadata) -> bool {
        let owner = self.of(metadata).is_none_or(|owner| owner == (stat.uid, stat.gid));
        owner && (stat.kind == FileType::Symlink || stat.mode == u32::from(metadata.mode))
    }
}

/// An open directory.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    path: PathBuf,
    /// The mode denies this user to list the directory, so the descriptor is an `O_PATH` one.
    is_unlisted: bool,
}

/// A name in a directory listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub name: Vec<u8>,
    /// Whether the entry is a directory; `None`: the listing does not say.
    pub directory: Option<bool>,
}

/// The names in a directory, read on demand, so that memory does not follow their number.
#[derive(Debug)]
pub struct Names {
    stream: rustix::fs::Dir,
    path: PathBuf,
}

impl Iterator for Names {
    type Item = Result<Listed, DiskError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let entry = match self.stream.next()? {
                Ok(entry) => entry,
                Err(e) => {
                    let path = self.path.clone();
                    return Some(Err(DiskError { doing: "list", path, source: e.into() }));
                }
            };
            let name = CStr::to_bytes(entry.file_name());
            if name != b"." && name != b".." {
                let directory = match entry.file_type() {
                    FileType::Unknown => None,
                    kind => Some(kind == FileType::Directory),
                };
                return Some(Ok(Listed { name: name.to_vec(), directory }));
            }
        }
    }
}

fn times(mtime: Timestamp) -> Timestamps {
    let spec = Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanoseconds.into() };
    Timestamps { last_access: spec, last_modification: spec }
}

impl Dir {
    /// Opens a directory by any path: used for ROOT itself.
    pub fn open_path(path: &Path) -> Result<Self, DiskError> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
            Ok(fd) => Ok(Self { fd, path: path.to_path_buf(), is_unlisted: false }),
            Err(e) => Err(DiskError { doing: "open directory", path: path.into(), source: e.into() }),
        }
    }

    /// Path at the time of opening, for messages only.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn at(&self, name: &[u8]) -> PathBuf {
        self.path.join(std::ffi::OsStr::from_bytes(name))
    }

    fn failed(&self, doing: &'static str, name: &[u8], e: Errno) -> DiskError {
        DiskError { doing, path: self.at(name), source: e.into() }
    }

    fn open_at(&self, name: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        retry(|| {
            rustix::fs::openat2(&self.fd, name, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, mode, resolve)
        })
    }

    /// Makes a call that looks up, creates or removes a name in this directory, even if the mode denies that
    /// to the owner.
    fn inside<T>(&self, call: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
        match call() {
            Err(Errno::ACCESS) => with_access(&[self.fd.as_fd()], call),
            other => other,
        }
    }

    /// Opens a subdirectory, whatever its mode. `name` may be a path of several names.
    pub fn open_dir(&self, name: &[u8]) -> Result<Self, DiskError> {
        self.enter(name).map_err(|e| self.failed("open directory", name, e))
    }

    fn enter(&self, name: &[u8]) -> Result<Self, Errno> {
        let open = |fd, is_unlisted| Self { fd, path: self.at(name), is_unlisted };
        match self.open_at(name, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()) {
            Err(Errno::ACCESS) => {}
            other => return other.map(|fd| open(fd, false)),
        }
        // A directory on the way may be the one that denies access.
        if let Some(end) = name.iter().position(|byte| *byte == b'/') {
            let (first, rest) = name.split_at(end);
            return self.enter(first)?.enter(&rest[1..]);
        }
        match self.inside(|| self.open_at(name, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty())) {
            Err(Errno::ACCESS) => self
                .inside(|| self.open_at(name, OFlags::DIRECTORY | OFlags::PATH, Mode::empty()))
                .map(|fd| open(fd, true)),
            other => other.map(|fd| open(fd, false)),
        }
    }

    /// Opens the directory again. The new descriptor reports write-back errors from now on.
    pub fn reopen(&self) -> Result<Self, DiskError> {
        self.open_dir(b".")
    }

    /// Opens a regular file for reading.
    pub fn open_file(&self, name: &[u8]) -> Result<File, DiskError> {
        self.open_any(name, OFlags::RDONLY | OFlags::NONBLOCK)
            .map(File::from)
            .map_err(|e| self.failed("open", name, e))
    }

    /// Opens a file, whatever its mode.
    fn open_any(&self, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        match self.open_at(name, flags, Mode::empty()) {
            Err(Errno::ACCESS) => {}
            other => return other,
        }
        let file = self.inside(|| self.open_at(name, OFlags::PATH, Mode::empty()))?;
        let flags = flags | OFlags::CLOEXEC;
        with_access(&[file.as_fd()], || rustix::fs::openat(CWD, by_descriptor(&file), flags, Mode::empty()))
    }

    /// Opens a regular file for writing. The file must never have been in a live tree.
    pub fn open_file_for_write(&self, name: &[u8]) -> Result<File, DiskError> {
        fault::point().map_err(|e| self.failed("open", name, e))?;
        self.open_any(name, OFlags::RDWR).map(File::from).map_err(|e| self.failed("open", name, e))
    }

    /// Creates a file, readable and writable by this user. The name must be free.
    pub fn create_file(&self, name: &[u8]) -> Result<File, DiskError> {
        self.create_file_with(name, 0o600)
    }

    /// Creates a file in a tree that nobody else can enter. The name must be free. The umask applies to
    /// `mode`.
    pub fn create_file_with(&self, name: &[u8], mode: u32) -> Result<File, DiskError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        fault::point()
            .and_then(|()| {
                self.inside(|| one_at_a_time(|| self.open_at(name, flags, Mode::from_raw_mode(mode & 0o777))))
            })
            .map(File::from)
            .map_err(|e| self.failed("create", name, e))
    }

    /// Builds the error of an operation on the open file `name`.
    pub fn failed_at(&self, doing: &'static str, name: &[u8], source: io::Error) -> DiskError {
        DiskError { doing, path: self.at(name), source }
    }

    /// Creates a directory with mode 0700, without opening it.
    pub fn make_dir(&self, name: &[u8]) -> Result<(), DiskError> {
        fault::point()
            .and_then(|()| {
                let mode = Mode::from_raw_mode(0o700);
                self.inside(|| one_at_a_time(|| rustix::fs::mkdirat(&self.fd, name, mode)))
            })
            .map_err(|e| self.failed("create directory", name, e))
    }

    /// Creates a directory with the given mode, whatever the umask.
    pub fn create_dir(&self, name: &[u8], mode: u32) -> Result<Self, DiskError> {
        self.make_dir(name)?;
        let dir = self.open_dir(name)?;
        if mode != 0o700 {
            rustix::fs::fchmod(&dir.fd, Mode::from_raw_mode(mode))
                .map_err(|e| self.failed("set the mode of", name, e))?;
        }
        Ok(dir)
    }

    /// Opens a directory, or creates it.
    pub fn ensure_dir(&self, name: &[u8], mode: u32) -> Result<Self, DiskError> {
        match self.open_dir(name) {
            Err(e) if e.is_absent() => self.create_dir(name, mode),
            other => other,
        }
    }

    /// Gives the inode of `name` another name, which must be free. A symlink is linked, not followed.
    pub fn link(&self, name: &[u8], to: &Dir, to_name: &[u8]) -> Result<(), DiskError> {
        fault::point()
            .and_then(|()| {
                let link = || rustix::fs::linkat(&self.fd, name, &to.fd, to_name, AtFlags::empty());
                match link() {
                    Err(Errno::ACCESS) => with_access(&[self.fd.as_fd(), to.fd.as_fd()], link),
                    other => other,
                }
            })
            .map_err(|e| to.failed("link", to_name, e))
    }

    /// Renames atomically and replaces an existing name. Durable once both directories are synced.
    pub fn rename(&self, name: &[u8], to: &Dir, to_name: &[u8]) -> Result<(), DiskError> {
        fault::point()
            .and_then(|()| self.moving(name, to, to_name, RenameFlags::empty()))
            .map_err(|e| to.failed("rename to", to_name, e))
    }

    /// Renames to a name that must be free.
    pub fn rename_new(&self, name: &[u8], to: &Dir, to_name: &[u8]) -> Result<(), DiskError> {
        fault::point()
            .and_then(|()| self.moving(name, to, to_name, RenameFlags::NOREPLACE))
            .map_err(|e| to.failed("rename to", to_name, e))
    }

    /// Exchanges two names atomically. Durable once both directories are synced.
    pub fn exchange(&self, name: &[u8], other: &Dir, other_name: &[u8]) -> Result<(), DiskError> {
        fault::point()
            .and_then(|()| self.moving(name, other, other_name, RenameFlags::EXCHANGE))
            .map_err(|e| other.failed("exchange", other_name, e))
    }

    /// Renames. A directory that moves to another parent must be writable itself.
    fn moving(&self, name: &[u8], to: &Dir, to_name: &[u8], flags: RenameFlags) -> Result<(), Errno> {
        let rename = || match flags.is_empty() {
            true => rustix::fs::renameat(&self.fd, name, &to.fd, to_name),
            false => rustix::fs::renameat_with(&self.fd, name, &to.fd, to_name, flags),
        };
        match rename() {
            Err(Errno::ACCESS) => {}
            other => return other,
        }
        let flags = OFlags::DIRECTORY | OFlags::PATH;
        let moved = [(self, name), (to, to_name)]
            .map(|(dir, name)| dir.inside(|| dir.open_at(name, flags, Mode::empty())).ok());
        let mut inodes = vec![self.fd.as_fd(), to.fd.as_fd()];
        inodes.extend(moved.iter().flatten().map(AsFd::as_fd));
        with_access(&inodes, rename)
    }

    /// Removes a name that is not a directory. Returns whether it existed.
    pub fn unlink(&self, name: &[u8]) -> Result<bool, DiskError> {
        self.unlink_with(name, AtFlags::empty())
    }

    /// Removes an empty directory. Returns whether it existed.
    pub fn remove_dir(&self, name: &[u8]) -> Result<bool, DiskError> {
        self.unlink_with(name, AtFlags::REMOVEDIR)
    }

    fn unlink_with(&self, name: &[u8], flags: AtFlags) -> Result<bool, DiskError> {
        let unlink = || rustix::fs::unlinkat(&self.fd, name, flags);
        match fault::point().and_then(|()| self.inside(unlink)) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(self.failed("remove", name, e)),
        }
    }

    /// Creates a symlink. The name must be free.
    pub fn symlink(&self, target: &[u8], name: &[u8]) -> Result<(), DiskError> {
        fault::point()
            .and_then(|()| self.inside(|| one_at_a_time(|| rustix::fs::symlinkat(target, &self.fd, name))))
            .map_err(|e| self.failed("create symlink", name, e))
    }

    /// Target of a symlink.
    pub fn read_link(&self, name: &[u8]) -> Result<Vec<u8>, DiskError> {
        self.inside(|| rustix::fs::readlinkat(&self.fd, name, Vec::new()))
            .map(|target| target.into_bytes())
            .map_err(|e| self.failed("read symlink", name, e))
    }

    /// Metadata of a name, without following symlinks; `None`: the name does not exist.
    pub fn stat(&self, name: &[u8]) -> Result<Option<Stat>, DiskError> {
        match self.inside(|| rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)) {
            Ok(stat) => Ok(Some(Stat::from_kernel(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(self.failed("inspect", name, e)),
        }
    }

    /// Returns a time before that of every later change on this file system, by the clock that sets a ctime.
    /// Sets the times of this directory.
    pub fn moment(&self) -> Result<Timestamp, DiskError> {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let now = Timestamps { last_access: now, last_modification: now };
        fault::point()
            .and_then(|()| self.listed(|fd| rustix::fs::futimens(fd, &now)))
            .map_err(|e| self.failed("set the times of", b"", e))?;
        // Something else may be changed in the same tick of the clock.
        let Timestamp { seconds, nanoseconds } = self.stat_self()?.ctime;
        Ok(match nanoseconds.checked_sub(1) {
            Some(nanoseconds) => Timestamp { seconds, nanoseconds },
            None => Timestamp { seconds: seconds.saturating_sub(1), nanoseconds: 999_999_999 },
        })
    }

    pub fn stat_self(&self) -> Result<Stat, DiskError> {
        rustix::fs::fstat(&self.fd).map(|s| Stat::from_kernel(&s)).map_err(|e| self.failed("inspect", b"", e))
    }

    /// Lists all names, unordered. For directories that only this user changes; use [`Dir::names`] for
    /// others.
    pub fn list(&self) -> Result<Vec<Listed>, DiskError> {
        self.names()?.collect()
    }

    /// Iterates over the names, unordered. A name created or removed meanwhile may be included or not.
    pub fn names(&self) -> Result<Names, DiskError> {
        // A new descriptor is needed: this one shares its position with all its users, and may be an `O_PATH`
        // one.
        let flags = OFlags::DIRECTORY | OFlags::RDONLY;
        self.inside(|| self.open_at(b".", flags, Mode::empty()))
            .and_then(rustix::fs::Dir::new)
            .map(|stream| Names { stream, path: self.path.clone() })
            .map_err(|e| self.failed("list", b"", e))
    }

    /// Sets owner, mode and, last, times of a name that has never been in a live tree.
    pub fn set_metadata(
        &self,
        name: &[u8],
        metadata: &Metadata,
        owners: Owners,
        symlink: bool,
    ) -> Result<(), DiskError> {
        let failed = |e| self.failed("set the metadata of", name, e);
        if !symlink {
            // By descriptor, because changing the mode by name would follow a symlink put there meanwhile.
            let file = self.open_file(name)?;
            return set_metadata_of(file.as_fd(), metadata, owners).map_err(failed);
        }
        fault::point().map_err(failed)?;
        if let Some((uid, gid)) = owners.of(metadata) {
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            let chown = || rustix::fs::chownat(&self.fd, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
            self.inside(chown).map_err(failed)?;
        }
        let times = times(metadata.mtime);
        self.inside(|| rustix::fs::utimensat(&self.fd, name, &times, AtFlags::SYMLINK_NOFOLLOW))
            .map_err(failed)
    }

    /// Sets owner, mode and, last, times of this directory.
    pub fn set_own_metadata(&self, metadata: &Metadata, owners: Owners) -> Result<(), DiskError> {
        self.listed(|fd| set_metadata_of(fd, metadata, owners))
            .map_err(|e| self.failed("set the metadata of", b"", e))
    }

    /// Makes a call that needs a descriptor with which the directory can be read.
    fn listed<T>(&self, call: impl FnOnce(BorrowedFd<'_>) -> Result<T, Errno>) -> Result<T, Errno> {
        match self.is_unlisted {
            false => call(self.fd.as_fd()),
            true => call(self.enter(b".")?.fd.as_fd()),
        }
    }

    /// Gives this user write access to a directory of a tree that nobody else uses. Its metadata is set again
    /// at the end. This saves every later call the detour through [`with_access`]. A foreign directory is
    /// left unchanged.
    pub fn make_writable(&self) -> Result<(), DiskError> {
        if rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let stat = self.stat_self()?;
        if stat.mode & 0o700 == 0o700 {
            return Ok(());
        }
        match set_mode(self.fd.as_fd(), stat.mode | 0o700) {
            Err(Errno::PERM) => Ok(()),
            other => other.map_err(|e| self.failed("set the mode of", b"", e)),
        }
    }

    /// Closes this directory to other users: sets this user as owner, and mode 0700.
    pub fn make_private(&self) -> Result<(), DiskError> {
        let failed = |e| self.failed("set the mode of", b"", e);
        let user = rustix::process::geteuid();
        fault::point().map_err(failed)?;
        if user.is_root() {
            let group = rustix::process::getegid();
            self.listed(|fd| rustix::fs::fchown(fd, Some(user), Some(group))).map_err(failed)?;
        }
        match set_mode(self.fd.as_fd(), 0o700) {
            // A foreign directory, which an agent without privileges did not create.
            Err(Errno::PERM) => Ok(()),
            other => other.map_err(failed),
        }
    }

    /// Type of the directory's file system, such as `ext4`; `None`: unknown.
    pub fn file_system(&self) -> Option<String> {
        let read = |path: &str| {
            let proc = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
            io::read_to_string(File::from(proc)).ok()
        };
        let open = read(&format!("/proc/self/fdinfo/{}", self.fd.as_raw_fd()))?;
        let mount = open.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim();
        let mounts = read("/proc/self/mountinfo")?;
        let line = mounts.lines().find(|line| line.split(' ').next() == Some(mount))?;
        line.split_once(" - ")?.1.split(' ').next().map(str::to_owned)
    }

    /// Free space of the directory's file system.
    pub fn space(&self) -> Result<Space, DiskError> {
        let s = rustix::fs::fstatvfs(&self.fd).map_err(|e| self.failed("ask for free space of", b"", e))?;
        Ok(Space {
            total_bytes: s.f_blocks.saturating_mul(s.f_frsize),
            free_bytes: s.f_bavail.saturating_mul(s.f_frsize),
            block_bytes: s.f_frsize.max(512),
            free_inodes: (s.f_files > 0).then_some(s.f_favail),
        })
    }

    /// Makes a file's content and metadata durable. [`Dir::sync_names`] of its directory does the same for
    /// its name. Reports write-back errors not reported before.
    pub fn sync_file(&self, name: &[u8]) -> Result<(), DiskError> {
        let file = self.open_file(name)?;
        fault::point()
            .and_then(|()| retry(|| rustix::fs::fsync(&file)))
            .map_err(|e| self.failed("sync", name, e))
    }

    /// Makes a file's content durable, but not its name or times.
    pub fn sync_content(&self, name: &[u8]) -> Result<(), DiskError> {
        let file = self.open_file(name)?;
        fault::point()
            .and_then(|()| retry(|| rustix::fs::fdatasync(&file)))
            .map_err(|e| self.failed("sync", name, e))
    }

    /// Makes the names in this directory durable, but not the files that they refer to.
    pub fn sync_names(&self) -> Result<(), DiskError> {
        fault::point()
            .and_then(|()| self.listed(|fd| retry(|| rustix::fs::fsync(fd))))
            .map_err(|e| self.failed("sync directory", b"", e))
    }

    /// Makes everything written to this file system before the call durable. Reports, once, write-back errors
    /// since THIS descriptor was opened. After an error nothing written since then may be trusted, even if a
    /// second call succeeds.
    pub fn sync_file_system(&self) -> Result<(), DiskError> {
        if test_faults::has(Bug::NoSyncfs) {
            return Ok(());
        }
        let synced = fault::point().and_then(|()| retry(|| rustix::fs::syncfs(&self.fd)));
        let synced = match synced {
            Err(_) if test_faults::has(Bug::SyncAgain) => rustix::fs::syncfs(&self.fd),
            other => other,
        };
        synced.map_err(|e| self.failed("sync the file system of", b"", e))
    }
}

/// Sets owner, mode and, last, times of an open file or directory.
fn set_metadata_of(fd: BorrowedFd<'_>, metadata: &Metadata, owners: Owners) -> Result<(), Errno> {
    fault::point()?;
    if let Some((uid, gid)) = owners.of(metadata) {
        rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    rustix::fs::fchmod(fd, Mode::from_raw_mode(metadata.mode.into()))?;
    rustix::fs::futimens(fd, &times(metadata.mtime))
}

/// Sets those parts of the metadata of an open file that differ. The file must never have been in a live
/// tree. Returns its inode number.
pub fn dress(file: &File, metadata: &Metadata, owners: Owners) -> io::Result<u64> {
    fault::point()?;
    let stat = Stat::from_kernel(&rustix::fs::fstat(file)?);
    if !owners.agree(&stat, metadata) {
        set_metadata_of(file.as_fd(), metadata, owners)?;
    } else if stat.mtime != metadata.mtime {
        rustix::fs::futimens(file, &times(metadata.mtime))?;
    }
    Ok(stat.inode)
}

/// Metadata of an open file.
pub fn stat_file(file: &File) -> io::Result<Stat> {
    Ok(Stat::from_kernel(&rustix::fs::fstat(file)?))
}

/// Lets one thread at a time create an inode. If two threads create inodes in one block of the inode table,
/// ext4 takes the other thread's inode for an existing one. It then reads the block from disk, which has to
/// wait for all pending writes.
fn one_at_a_time<T>(make: impl FnOnce() -> T) -> T {
    static MAKING: Mutex<()> = Mutex::new(());
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    make()
}

/// Limit of retries after EAGAIN.
const AGAIN_RETRIES: u32 = 100;
/// Number of retries without a pause. Later retries follow a pause.
const AGAIN_AT_ONCE: u32 = 10;
const AGAIN_PAUSE: Duration = Duration::from_micros(100);

/// Retries an interrupted call. Retries EAGAIN at most [`AGAIN_RETRIES`] times, then returns it.
fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    let mut tries = 0;
    loop {
        match call() {
            Err(Errno::INTR) => {}
            // openat2 returns EAGAIN if a rename elsewhere races with RESOLVE_BENEATH. It also does so while
            // another process has a lease on the file, for any length of time.
            Err(Errno::AGAIN) if tries < AGAIN_RETRIES => {
                tries += 1;
                match tries < AGAIN_AT_ONCE {
                    true => std::thread::yield_now(),
                    false => std::thread::sleep(AGAIN_PAUSE),
                }
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests;
