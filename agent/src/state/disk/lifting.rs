//! Sets the owner's bits of inodes for the moment of one call, for an agent without privileges.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FileType, Mode};
use rustix::io::Errno;

use super::Stat;

/// A path that names an open file, even one opened with `O_PATH`.
pub(super) fn by_descriptor(fd: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

pub(super) fn set_mode(fd: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    // fchmod refuses `O_PATH` descriptors.
    rustix::fs::chmod(by_descriptor(&fd), Mode::from_raw_mode(mode))
}

/// An inode whose owner has full access until this is dropped.
struct Lifted<'a> {
    fd: BorrowedFd<'a>,
    mode: u32,
}

impl<'a> Lifted<'a> {
    /// `None`: the mode denies the owner nothing, or the inode belongs to another user.
    fn lift(fd: BorrowedFd<'a>) -> Option<Self> {
        let stat = Stat::from_kernel(&rustix::fs::fstat(fd).ok()?);
        let wanted = match stat.kind {
            FileType::Directory => 0o700,
            FileType::RegularFile => 0o600,
            _ => return None,
        };
        if stat.mode & wanted == wanted {
            return None;
        }
        set_mode(fd, stat.mode | wanted).ok()?;
        Some(Self { fd, mode: stat.mode })
    }
}

impl Drop for Lifted<'_> {
    fn drop(&mut self) {
        if let Err(error) = set_mode(self.fd, self.mode) {
            tracing::warn!(%error, mode = self.mode, "a mode could not be restored");
        }
    }
}

/// Repeats a refused call with the owner's bits of some inodes set, and restores their modes afterwards. Only
/// one call at a time, because another thread must not mistake a temporary mode for the real one.
pub(super) fn with_access<T>(
    inodes: &[BorrowedFd<'_>],
    call: impl FnOnce() -> Result<T, Errno>,
) -> Result<T, Errno> {
    static LIFTING: Mutex<()> = Mutex::new(());
    let _one = LIFTING.lock().unwrap_or_else(PoisonError::into_inner);
    let _lifted: Vec<Lifted<'_>> = inodes.iter().filter_map(|fd| Lifted::lift(*fd)).collect();
    call()
}
