//! The current state of one directory: its names with their attributes, read through one descriptor.
//!
//! All names are looked up in the opened directory, so that a listing never mixes two directories, whatever
//! is renamed meanwhile.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use syncd_shared::marks::{self, Mark};
use syncd_shared::{Component, TreePath};

use super::error::ScanError;
use super::file_stat::FileStat;
use super::notices::Notices;
use syncd_shared::ignore_rules::{IGNORE_FILE, IGNORE_FILE_MAX_BYTES, IgnoreError, file_in};

/// A listed directory.
#[derive(Debug)]
pub(crate) struct Listing {
    /// The directory itself, from before its names were read.
    pub own: FileStat,
    /// Sorted by name.
    pub names: Vec<Listed>,
    /// Its `.syncdignore`.
    pub ignore_file: Option<IgnoreFile>,
    /// Mark of a directory of syncd.
    pub mark: Option<Mark>,
    /// A name vanished during the listing.
    pub torn: bool,
}

/// One name.
#[derive(Debug)]
pub(crate) struct Listed {
    pub name: Component,
    pub stat: FileStat,
    /// Target of a symlink.
    pub target: Option<Box<[u8]>>,
}

/// A name that was looked up; `None` if it does not exist.
pub(super) type LookedUp = (Component, Option<Listed>);

/// A `.syncdignore` file.
#[derive(Debug)]
pub(crate) struct IgnoreFile {
    pub stat: FileStat,
    pub bytes: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct OpenDirectory {
    fd: OwnedFd,
    path: TreePath,
}

/// Whether an error means that the name has changed, as opposed to being unreadable.
pub(super) fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE | Errno::NXIO | Errno::NODEV)
}

impl OpenDirectory {
    /// Opens `path` of the tree at `root`; `None` if it is not, or no longer, a directory.
    pub(crate) fn open(root: &Path, path: &TreePath) -> Result<Option<Self>, ScanError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::open(path.below(root), flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Self { fd, path: path.clone() })),
            Err(errno) if is_gone(errno) => Ok(None),
            Err(errno) => Err(unreadable(path, errno)),
        }
    }

    /// Result of `fstat`.
    pub(super) fn stat(&self) -> Result<FileStat, ScanError> {
        rustix::fs::fstat(&self.fd).map(|stat| FileStat::of(&stat)).map_err(|e| unreadable(&self.path, e))
    }

    /// Warns about attributes that are not replicated.
    pub(super) fn tell_attributes(&self, notices: &Notices) {
        notices.attributes(&self.fd, &self.path);
    }

    /// Reads its `.syncdignore`.
    pub(crate) fn ignore_file(&self) -> Result<Option<IgnoreFile>, ScanError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let path = || file_in(&self.path);
        let fd = match rustix::fs::openat(&self.fd, IGNORE_FILE, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::STALE) => return Ok(None),
            // A symlink or a socket.
            Err(Errno::LOOP | Errno::NXIO | Errno::NODEV) => {
                return Err(IgnoreError::Kind { path: path() }.into());
            }
            Err(errno) => return Err(unreadable(&path(), errno)),
        };
        let stat = rustix::fs::fstat(&fd).map_err(|errno| unreadable(&path(), errno))?;
        let stat = FileStat::of(&stat);
        if stat.kind != FileType::RegularFile {
            return Err(IgnoreError::Kind { path: path() }.into());
        }
        let mut bytes = Vec::new();
        let mut limited = io::Read::take(std::fs::File::from(fd), IGNORE_FILE_MAX_BYTES + 1);
        io::Read::read_to_end(&mut limited, &mut bytes)
            .map_err(|source| ScanError::Unreadable { path: path(), source })?;
        Ok(Some(IgnoreFile { stat, bytes }))
    }

    pub(crate) fn list(self) -> Result<Listing, ScanError> {
        let own = self.stat()?;
        let ignore_file = self.ignore_file()?;
        let mut names = Vec::new();
        let mut torn = false;
        let entries = Dir::read_from(&self.fd).map_err(|errno| unreadable(&self.path, errno))?;
        for entry in entries {
            let entry = entry.map_err(|errno| unreadable(&self.path, errno))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let component =
                Component::new(name.to_bytes()).map_err(|_| unreadable(&self.path, Errno::NAMETOOLONG))?;
            match self.look_up(component) {
                Ok(listed) => names.push(listed),
                Err((_, errno)) if is_gone(errno) || errno == Errno::INVAL => torn = true,
                Err((name, errno)) => {
                    let path = self.path.join(&name).unwrap_or_else(|_| self.path.clone());
                    return Err(unreadable(&path, errno));
                }
            }
        }
        names.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        // A name that is renamed during the listing may appear twice.
        names.dedup_by(|a, b| a.name == b.name);
        let mark = marks::of_names(|name| {
            let at = names.binary_search_by(|listed| listed.name.as_bytes().cmp(name.as_bytes())).ok()?;
            names.get(at).map(|listed| listed.stat.is_directory())
        });
        Ok(Listing { own, names, ignore_file, mark, torn })
    }

    /// Looks up names, with `None` for missing ones. Returns `None` if any of them changed meanwhile.
    pub(super) fn look_up_all(
        &self,
        names: &BTreeSet<Component>,
    ) -> Result<Option<Vec<LookedUp>>, ScanError> {
        let mut found = Vec::with_capacity(names.len());
        for name in names {
            found.push(match self.look_up(name.clone()) {
                Ok(listed) => (name.clone(), Some(listed)),
                Err((_, Errno::NOENT)) => (name.clone(), None),
                Err((_, errno)) if is_gone(errno) || errno == Errno::INVAL => return Ok(None),
                Err((name, errno)) => {
                    let path = self.path.join(&name).unwrap_or_else(|_| self.path.clone());
                    return Err(unreadable(&path, errno));
                }
            });
        }
        Ok(Some(found))
    }

    fn look_up(&self, name: Component) -> Result<Listed, (Component, Errno)> {
        let stat = match rustix::fs::statat(&self.fd, name.as_os_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => FileStat::of(&stat),
            Err(errno) => return Err((name, errno)),
        };
        let target = if stat.kind == FileType::Symlink {
            match rustix::fs::readlinkat(&self.fd, name.as_os_str(), Vec::new()) {
                Ok(target) => Some(target.into_bytes().into_boxed_slice()),
                Err(errno) => return Err((name, errno)),
            }
        } else {
            None
        };
        Ok(Listed { name, stat, target })
    }
}

fn unreadable(path: &TreePath, errno: Errno) -> ScanError {
    ScanError::Unreadable { path: path.clone(), source: errno.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_listing_is_sorted_and_follows_no_symlink() {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("b"), "1").unwrap();
        fs::create_dir(tree.path().join("a")).unwrap();
        std::os::unix::fs::symlink("/etc", tree.path().join("c")).unwrap();
        fs::write(tree.path().join(IGNORE_FILE), "x\n").unwrap();
        let listing = OpenDirectory::open(tree.path(), &TreePath::root()).unwrap().unwrap().list().unwrap();
        let names: Vec<_> = listing.names.iter().map(|l| (l.name.as_bytes(), l.stat.kind)).collect();
        assert_eq!(
            names,
            [
                (&b".syncdignore"[..], FileType::RegularFile),
                (b"a", FileType::Directory),
                (b"b", FileType::RegularFile),
                (b"c", FileType::Symlink)
            ]
        );
        assert_eq!(listing.names[3].target.as_deref(), Some(&b"/etc"[..]));
        assert_eq!(listing.ignore_file.unwrap().bytes, b"x\n");
        for gone in ["b", "c", "d", "b/x"] {
            let path = TreePath::from_bytes(gone.as_bytes()).unwrap();
            assert!(OpenDirectory::open(tree.path(), &path).unwrap().is_none(), "{gone}");
        }
    }
}
