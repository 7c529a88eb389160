//! Files below the tree that processes have open for writing, from /proc.
//!
//! Needed where no event can have told: in a directory that was not watched yet. A file is found by its path
//! in this mount namespace; writers through a memory map whose descriptor is closed are not found.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use syncd_shared::TreePath;

/// Open files.
#[derive(Debug)]
pub(super) struct Writers {
    found: Vec<Writer>,
    /// Whether every process could be looked at.
    pub all: bool,
}

#[derive(Debug)]
struct Writer {
    /// The descriptor, a link in /proc.
    descriptor: PathBuf,
    /// The file.
    target: PathBuf,
    path: TreePath,
    written: Instant,
}

impl Writers {
    /// The files, with the times of their last writes.
    pub(super) fn open(&self) -> BTreeMap<TreePath, Instant> {
        self.found.iter().map(|writer| (writer.path.clone(), writer.written)).collect()
    }

    /// Drops files that were closed since. Returns whether there were any.
    pub(super) fn forget_closed(&mut self) -> bool {
        let before = self.found.len();
        self.found.retain(|writer| fs::read_link(&writer.descriptor).is_ok_and(|now| now == writer.target));
        self.found.len() < before
    }
}

/// Looks at all processes for files below `root`.
pub(super) fn of(root: &Path) -> Writers {
    let mut writers = Writers { found: Vec::new(), all: true };
    let Ok(processes) = fs::read_dir("/proc") else { return Writers { all: false, ..writers } };
    // A mount of /proc that hides the processes of others (hidepid) hides the first one.
    writers.all = Path::new("/proc/1").exists();
    for process in processes.flatten() {
        let is_process = process.file_name().as_bytes().iter().all(u8::is_ascii_digit);
        if is_process && let Err(error) = writers.look(&process.path(), root) {
            // Others end meanwhile.
            writers.all &= error.kind() != io::ErrorKind::PermissionDenied;
        }
    }
    writers
}

impl Writers {
    fn look(&mut self, process: &Path, root: &Path) -> io::Result<()> {
        for descriptor in fs::read_dir(process.join("fd"))? {
            let descriptor = descriptor?.path();
            let Ok(target) = fs::read_link(&descriptor) else { continue };
            let below = target.strip_prefix(root).ok().map(|below| below.as_os_str().as_bytes());
            let Some(path) = below.and_then(|below| TreePath::from_bytes(below).ok()) else { continue };
            let Ok(metadata) = fs::symlink_metadata(&target) else { continue };
            if metadata.is_file() && is_written(process, &descriptor) {
                let written = metadata.modified().ok().and_then(instant).unwrap_or_else(Instant::now);
                self.found.push(Writer { descriptor, target, path, written });
            }
        }
        Ok(())
    }
}

/// Whether a descriptor was opened for writing.
fn is_written(process: &Path, descriptor: &Path) -> bool {
    let Some(number) = descriptor.file_name() else { return false };
    let info = fs::read_to_string(process.join("fdinfo").join(number)).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    // O_WRONLY or O_RDWR.
    flags.is_some_and(|flags| flags & 0o3 != 0)
}

fn instant(time: SystemTime) -> Option<Instant> {
    let now = Instant::now();
    match SystemTime::now().duration_since(time) {
        Ok(age) => now.checked_sub(age),
        Err(_) => Some(now),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;

    #[test]
    fn files_open_for_writing_are_found_until_they_are_closed() {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().canonicalize().unwrap();
        fs::write(root.join("read"), "1").unwrap();
        let mut written = File::create(root.join("written")).unwrap();
        written.write_all(b"1").unwrap();
        let _read = File::open(root.join("read")).unwrap();
        let mut found = of(&root);
        let paths =
            |found: &Writers| found.open().into_keys().map(|path| path.to_string()).collect::<Vec<_>>();
        assert_eq!(paths(&found), ["written"]);
        assert!(!found.forget_closed());
        drop(written);
        assert!(found.forget_closed());
        assert!(paths(&found).is_empty());
        assert!(paths(&of(&root)).is_empty());
    }
}
