//! Table of the system calls that change a file system.

use std::fs;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::libc;
use nix::unistd::Pid;

/// Longest name read from a traced program, in bytes.
const NAME_MAX: usize = 4096;
const FICLONE: u64 = 0x4004_9409;
const FICLONERANGE: u64 = 0x4020_940d;

/// A system call as made by a thread.
pub(crate) struct Call {
    /// Number of the call.
    pub number: i64,
    pub arguments: [u64; 6],
}

/// Position of the changed object in a call's arguments.
#[derive(Clone, Copy)]
enum Shape {
    /// An open file or directory.
    File(usize),
    /// An open directory, and a name in it.
    At(usize, usize),
    /// A path.
    Path(usize),
    /// Two names in open directories.
    Pair([usize; 4]),
}

/// Every call that changes a file, a name, or what is durable of them. Calls that open are included if they
/// create or truncate.
const CHANGES: &[(i64, &str, Shape)] = &[
    (libc::SYS_write, "write", Shape::File(0)),
    (libc::SYS_pwrite64, "pwrite64", Shape::File(0)),
    (libc::SYS_writev, "writev", Shape::File(0)),
    (libc::SYS_pwritev, "pwritev", Shape::File(0)),
    (libc::SYS_pwritev2, "pwritev2", Shape::File(0)),
    (libc::SYS_sendfile, "sendfile", Shape::File(0)),
    (libc::SYS_copy_file_range, "copy_file_range", Shape::File(2)),
    (libc::SYS_ioctl, "ioctl", Shape::File(0)),
    (libc::SYS_ftruncate, "ftruncate", Shape::File(0)),
    (libc::SYS_fallocate, "fallocate", Shape::File(0)),
    (libc::SYS_fsync, "fsync", Shape::File(0)),
    (libc::SYS_fdatasync, "fdatasync", Shape::File(0)),
    (libc::SYS_syncfs, "syncfs", Shape::File(0)),
    (libc::SYS_sync_file_range, "sync_file_range", Shape::File(0)),
    (libc::SYS_fchmod, "fchmod", Shape::File(0)),
    (libc::SYS_fchown, "fchown", Shape::File(0)),
    (libc::SYS_open, "open", Shape::Path(0)),
    (libc::SYS_openat, "openat", Shape::At(0, 1)),
    (libc::SYS_openat2, "openat2", Shape::At(0, 1)),
    (libc::SYS_mkdir, "mkdir", Shape::Path(0)),
    (libc::SYS_mkdirat, "mkdirat", Shape::At(0, 1)),
    (libc::SYS_unlink, "unlink", Shape::Path(0)),
    (libc::SYS_rmdir, "rmdir", Shape::Path(0)),
    (libc::SYS_unlinkat, "unlinkat", Shape::At(0, 1)),
    (libc::SYS_symlink, "symlink", Shape::Path(1)),
    (libc::SYS_symlinkat, "symlinkat", Shape::At(1, 2)),
    (libc::SYS_link, "link", Shape::Path(1)),
    (libc::SYS_linkat, "linkat", Shape::Pair([0, 1, 2, 3])),
    (libc::SYS_rename, "rename", Shape::Path(1)),
    (libc::SYS_renameat, "renameat", Shape::Pair([0, 1, 2, 3])),
    (libc::SYS_renameat2, "renameat2", Shape::Pair([0, 1, 2, 3])),
    (libc::SYS_chmod, "chmod", Shape::Path(0)),
    (libc::SYS_fchmodat, "fchmodat", Shape::At(0, 1)),
    (libc::SYS_chown, "chown", Shape::Path(0)),
    (libc::SYS_lchown, "lchown", Shape::Path(0)),
    (libc::SYS_fchownat, "fchownat", Shape::At(0, 1)),
    (libc::SYS_truncate, "truncate", Shape::Path(0)),
    (libc::SYS_utimensat, "utimensat", Shape::At(0, 1)),
];

/// Name of the call and the path below `watched` that it changes; `None`: none.
pub(crate) fn change(who: Pid, call: &Call, watched: &Path) -> Option<(&'static str, String)> {
    let (_, name, shape) = CHANGES.iter().find(|(number, ..)| *number == call.number)?;
    let argument = |index: usize| call.arguments.get(index).copied().unwrap_or(0);
    let alters = match *name {
        "open" => creates(argument(1)),
        "openat" => creates(argument(2)),
        "openat2" => creates(word(who, argument(2))?),
        "ioctl" => [FICLONE, FICLONERANGE].contains(&(argument(1) & 0xffff_ffff)),
        _ => true,
    };
    if !alters {
        return None;
    }
    let paths = match *shape {
        Shape::File(fd) => vec![opened(who, argument(fd))?],
        Shape::At(fd, path) => vec![at(who, argument(fd), argument(path))?],
        Shape::Path(path) => vec![at(who, libc::AT_FDCWD as u32 as u64, argument(path))?],
        Shape::Pair([fd, path, to_fd, to_path]) => {
            vec![at(who, argument(fd), argument(path))?, at(who, argument(to_fd), argument(to_path))?]
        }
    };
    if !paths.iter().any(|path| path.starts_with(watched)) {
        return None;
    }
    let shown = paths.iter().map(|path| path.strip_prefix(watched).unwrap_or(path).to_string_lossy());
    Some((name, shown.collect::<Vec<_>>().join(" to ")))
}

fn creates(flags: u64) -> bool {
    flags & (libc::O_CREAT | libc::O_TRUNC) as u64 != 0
        || flags & libc::O_TMPFILE as u64 == libc::O_TMPFILE as u64
}

fn opened(who: Pid, fd: u64) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{who}/fd/{}", fd as i32)).ok()
}

/// A null `name` refers to the open file itself.
fn at(who: Pid, fd: u64, name: u64) -> Option<PathBuf> {
    let directory = || match fd as i32 {
        libc::AT_FDCWD => fs::read_link(format!("/proc/{who}/cwd")).ok(),
        _ => opened(who, fd),
    };
    if name == 0 {
        return directory();
    }
    let name = PathBuf::from(text(who, name)?);
    if name.is_absolute() { Some(name) } else { Some(directory()?.join(name)) }
}

fn memory(who: Pid) -> Option<File> {
    File::open(format!("/proc/{who}/mem")).ok()
}

fn word(who: Pid, address: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    memory(who)?.read_exact_at(&mut bytes, address).ok()?;
    Some(u64::from_ne_bytes(bytes))
}

fn text(who: Pid, address: u64) -> Option<String> {
    let memory = memory(who)?;
    let mut bytes = Vec::new();
    let mut block = [0; 64];
    while bytes.len() < NAME_MAX {
        let got = memory.read_at(&mut block, address + bytes.len() as u64).ok().filter(|n| *n > 0)?;
        match block[..got].iter().position(|b| *b == 0) {
            Some(end) => {
                bytes.extend_from_slice(&block[..end]);
                return Some(String::from_utf8_lossy(&bytes).into_owned());
            }
            None => bytes.extend_from_slice(&block[..got]),
        }
    }
    None
}
