//! Facts about names and file systems, as the kernel reports them, and the error of a system call.

use std::io;
use std::path::PathBuf;

use rustix::fs::FileType;
use rustix::io::Errno;
use syncd_shared::Timestamp;

/// Failure of a system call.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {}", path.display())]
pub struct DiskError {
    /// Operation, as the start of a message.
    pub doing: &'static str,
    /// Path of the file, for messages.
    pub path: PathBuf,
    /// Error of the kernel.
    #[source]
    pub source: io::Error,
}

impl DiskError {
    /// Whether space, inodes or quota ran out.
    pub fn is_full(&self) -> bool {
        [Errno::NOSPC, Errno::DQUOT].iter().any(|e| self.source.raw_os_error() == Some(e.raw_os_error()))
    }

    /// Whether the kernel failed to write: nothing written since the last sync may be trusted.
    pub fn is_write_back(&self) -> bool {
        self.source.raw_os_error() == Some(Errno::IO.raw_os_error())
    }

    /// Whether the name does not exist.
    pub fn is_absent(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }

    /// Whether this user may not do it, or another user prevents it: a foreign directory, a mount, or names
    /// that appear while a directory is emptied.
    pub fn is_denied(&self) -> bool {
        let errno = Errno::from_io_error(&self.source);
        matches!(errno, Some(Errno::ACCESS | Errno::PERM | Errno::BUSY | Errno::XDEV | Errno::NOTEMPTY))
    }

    /// Whether another process changed the names meanwhile, or [prevents](Self::is_denied) the change.
    pub fn is_disturbed(&self) -> bool {
        let errno = Errno::from_io_error(&self.source);
        let changed = [Errno::NOENT, Errno::NOTDIR, Errno::LOOP, Errno::EXIST, Errno::ISDIR];
        self.is_denied() || errno.is_some_and(|errno| changed.contains(&errno))
    }

    /// Whether the name is missing or is not a directory.
    pub fn is_no_directory(&self) -> bool {
        let errno = Errno::from_io_error(&self.source);
        matches!(errno, Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP))
    }
}

/// Metadata of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Kind of file.
    pub kind: FileType,
    /// Number of the file system.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Content bytes.
    pub size: u64,
    /// Permission, sticky and set-id bits.
    pub mode: u32,
    /// User id of the owner.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Modification time.
    pub mtime: Timestamp,
    /// Time of the last change of any kind, which no program can set.
    pub ctime: Timestamp,
    /// Number of names of the inode.
    pub links: u64,
    /// Bytes allocated on disk: less than the size if the file has holes.
    pub allocated_bytes: u64,
}

impl Stat {
    pub(super) fn from_kernel(stat: &rustix::fs::Stat) -> Self {
        Self {
            kind: FileType::from_raw_mode(stat.st_mode),
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size as u64,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: Timestamp { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec as u32 },
            ctime: Timestamp { seconds: stat.st_ctime, nanoseconds: stat.st_ctime_nsec as u32 },
            links: stat.st_nlink,
            // The kernel counts in units of 512 bytes on every file system.
            allocated_bytes: (stat.st_blocks as u64).saturating_mul(512),
        }
    }
}

/// Free space of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Size of the file system in bytes.
    pub total_bytes: u64,
    /// Bytes that this process may still use.
    pub free_bytes: u64,
    /// Allocation unit in bytes.
    pub block_bytes: u64,
    /// Inodes that may still be created; `None`: the file system has no limit.
    pub free_inodes: Option<u64>,
}
