//! `syncd-agent join --adopt DIR`: takes over the contents of a directory that the node serves already, so
//! that the first sync does not fetch them.
//!
//! Contents are copied to `staging/incoming` under their hashes, as if they had arrived. The first sync
//! hashes them again and uses those that its generation has, under whatever name. The directory itself is
//! only read: it is the way back, and keeps what the generation does not have. Symlinks are neither followed
//! nor taken. Those that lead out of the directory are listed: content behind them is in the replica only if
//! the origin has it.

#![cfg_attr(not(test), expect(clippy::disallowed_methods, reason = "directories that the operator names"))]

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use syncd_shared::marks::{self, Mark};
use syncd_shared::{Metadata, Timestamp};
use walkdir::WalkDir;

use crate::build::StageError;
use crate::build::incoming::{Incoming, Wanted};
use crate::build::space::Demand;
use crate::state::disk::{Dir, DiskError, Owners};
use crate::state::layout::{Layout, LayoutError};

/// Maximum number of links that are listed.
const LINKS_MAX: usize = 10;

/// Contents taken over.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Adopted {
    /// Files with different contents.
    pub files: u64,
    /// Bytes of these files.
    pub bytes: u64,
    pub outward: Outward,
}

/// Symlinks that lead out of the adopted directory, or to nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outward {
    pub links: u64,
    /// The first of them, by path: path below the directory, and target.
    pub first: Vec<(PathBuf, PathBuf)>,
}

/// Reason why a directory is not adopted.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// A path cannot be read.
    #[error("can't read {}", path.display())]
    Read {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The path is not a directory.
    #[error("{} is no directory: give the document root that this node serves", path.display())]
    NoDirectory {
        /// The path.
        path: PathBuf,
    },
    /// One of the two directories is inside the other.
    #[error("{} and {} overlap: give a --root outside of the directory", from.display(), root.display())]
    Overlap {
        /// The directory to adopt.
        from: PathBuf,
        /// ROOT.
        root: PathBuf,
    },
    /// The directory belongs to an origin or an agent.
    #[error("{} belongs to {}, {mark}: only a directory that syncd does not manage is adopted", from.display(), marked.display())]
    Managed {
        /// The directory to adopt.
        from: PathBuf,
        /// That directory, or one above it.
        marked: PathBuf,
        /// Its manager.
        mark: Mark,
    },
    /// ROOT has a replica already.
    #[error("{} has a replica already, which keeps its content: join without --adopt", root.display())]
    HasReplica {
        /// ROOT.
        root: PathBuf,
    },
    /// The contents do not fit.
    #[error("no room at {} for a copy of {}: join without --adopt, or give another --root", root.display(), from.display())]
    NoRoom {
        /// The directory to adopt.
        from: PathBuf,
        /// ROOT.
        root: PathBuf,
        /// Both figures.
        source: Box<StageError>,
    },
    /// ROOT cannot be opened.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A file could not be copied.
    #[error(transparent)]
    Copy(#[from] Box<StageError>),
}

impl From<DiskError> for AdoptError {
    fn from(error: DiskError) -> Self {
        Self::Copy(Box::new(error.into()))
    }
}

/// Refuses a directory that cannot be adopted safely, and one that does not fit. Changes nothing.
pub(crate) fn check(root: &Path, from: &Path) -> Result<(), AdoptError> {
    let read = |path: &Path| {
        let path = path.to_owned();
        move |source| AdoptError::Read { path, source }
    };
    if !fs::metadata(from).map_err(read(from))?.is_dir() {
        return Err(AdoptError::NoDirectory { path: from.to_owned() });
    }
    let real_from = from.canonicalize().map_err(read(from))?;
    let real_root = marks::resolve(root).map_err(read(root))?;
    if real_from.starts_with(&real_root) || real_root.starts_with(&real_from) {
        return Err(AdoptError::Overlap { from: from.to_owned(), root: root.to_owned() });
    }
    if let Some((marked, mark)) = real_from.ancestors().find_map(|above| Some((above, marks::of(above)?))) {
        return Err(AdoptError::Managed { from: from.to_owned(), marked: marked.to_owned(), mark });
    }
    let has_slots = fs::read_dir(root.join("slots")).is_ok_and(|mut slots| slots.next().is_some());
    if has_slots || root.join("live").symlink_metadata().is_ok() {
        return Err(AdoptError::HasReplica { root: root.to_owned() });
    }
    let above = real_root.ancestors().find(|above| above.is_dir()).unwrap_or(Path::new("/"));
    let space = Dir::open_path(above)?.space()?;
    demand(from, space.block_bytes)?.check(&space, Demand::default()).map_err(|error| AdoptError::NoRoom {
        from: from.to_owned(),
        root: root.to_owned(),
        source: Box::new(error),
    })
}

/// Copies the contents of `from` to the incoming directory of ROOT. [`check`] must have passed. Interrupted,
/// it leaves contents that the first sync uses or removes.
pub(crate) fn adopt(root: &Path, from: &Path) -> Result<Adopted, AdoptError> {
    let layout = Layout::open(root, None)?;
    let incoming = Incoming::open(&layout, Owners::new(None))?;
    let dir = Dir::open_path(from)?;
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let metadata = Metadata { mode: 0o600, uid, gid, mtime: Timestamp::default() };
    let mut adopted = Adopted::default();
    for file in files(from) {
        let (path, size) = file?;
        let Ok(name) = path.strip_prefix(from) else { continue };
        let wanted = Wanted { size, metadata, users: 1 };
        let taken = incoming.adopt(&wanted, &dir, name.as_os_str().as_bytes()).map_err(Box::new)?;
        adopted.files += u64::from(taken);
        adopted.bytes += if taken { size } else { 0 };
    }
    adopted.outward = outward(from);
    Ok(adopted)
}

/// Finds the links that lead out of a directory. A link that can't be read, or changes meanwhile, counts as
/// one.
fn outward(from: &Path) -> Outward {
    let mut outward = Outward::default();
    let Ok(real) = from.canonicalize() else { return outward };
    let found = WalkDir::new(from).min_depth(1).sort_by_file_name().into_iter().filter_map(Result::ok);
    for link in found.filter(walkdir::DirEntry::path_is_symlink) {
        if link.path().canonicalize().is_ok_and(|target| target.starts_with(&real)) {
            continue;
        }
        outward.links += 1;
        if outward.first.len() < LINKS_MAX {
            let name = link.path().strip_prefix(from).unwrap_or(link.path()).to_owned();
            outward.first.push((name, fs::read_link(link.path()).unwrap_or_default()));
        }
    }
    outward
}

fn demand(from: &Path, block_bytes: u64) -> Result<Demand, AdoptError> {
    let mut demand = Demand::default();
    for file in files(from) {
        demand.add(file?.1, block_bytes);
    }
    Ok(demand)
}

/// Regular files below a directory that are not empty, with their sizes. Files that disappear meanwhile are
/// left out.
fn files(from: &Path) -> impl Iterator<Item = Result<(PathBuf, u64), AdoptError>> {
    let failed = |error: walkdir::Error, from: &Path| {
        let path = error.path().unwrap_or(from).to_owned();
        AdoptError::Read { path, source: error.into() }
    };
    let from = from.to_owned();
    WalkDir::new(&from).into_iter().filter_map(move |found| {
        let is_gone = |error: &walkdir::Error| {
            error.io_error().is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
        };
        let file = found.and_then(|entry| Ok((entry.metadata()?, entry.into_path())));
        match file {
            Ok((metadata, path)) if metadata.is_file() && metadata.len() > 0 => {
                Some(Ok((path, metadata.len())))
            }
            Ok(_) => None,
            Err(error) if is_gone(&error) => None,
            Err(error) => Some(Err(failed(error, &from))),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scene() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let temp = tempfile::tempdir().unwrap();
        let (root, from) = (temp.path().join("agent"), temp.path().join("site"));
        fs::create_dir_all(from.join("images")).unwrap();
        fs::write(from.join("index.html"), "hello").unwrap();
        fs::write(from.join("images/same.html"), "hello").unwrap();
        fs::write(from.join("images/large.bin"), vec![7; 300_000]).unwrap();
        fs::write(from.join("empty"), "").unwrap();
        (temp, root, from)
    }

    #[test]
    fn contents_are_taken_once_and_links_are_not_followed() {
        let (temp, root, from) = scene();
        fs::write(temp.path().join("secret"), "secret").unwrap();
        std::os::unix::fs::symlink(temp.path(), from.join("out")).unwrap();
        std::os::unix::fs::symlink(temp.path().join("secret"), from.join("secret")).unwrap();
        check(&root, &from).unwrap();
        assert!(!root.exists(), "a check makes nothing");
        std::os::unix::fs::symlink("../index.html", from.join("images/inward")).unwrap();
        let out = (PathBuf::from("out"), temp.path().to_owned());
        let secret = (PathBuf::from("secret"), temp.path().join("secret"));
        let outward = Outward { links: 2, first: vec![out, secret] };
        assert_eq!(adopt(&root, &from).unwrap(), Adopted { files: 2, bytes: 300_005, outward });
        let incoming = WalkDir::new(root.join("staging/incoming")).into_iter();
        let names = incoming.map(|entry| entry.unwrap()).filter(|entry| entry.file_type().is_file());
        assert_eq!(names.count(), 2);
        assert_eq!(fs::read_link(from.join("secret")).unwrap(), temp.path().join("secret"), "it stays");
        // An interrupted one is repeated.
        check(&root, &from).unwrap();
        adopt(&root, &from).unwrap();
    }

    #[test]
    fn what_is_unsafe_is_refused() {
        let (temp, root, from) = scene();
        assert!(matches!(check(&root, &root), Err(AdoptError::Read { .. })));
        assert!(matches!(check(&root, &from.join("index.html")), Err(AdoptError::NoDirectory { .. })));
        assert!(matches!(check(&from.join("agent"), &from), Err(AdoptError::Overlap { .. })));
        assert!(matches!(check(temp.path(), &from), Err(AdoptError::Overlap { .. })));
        let link = temp.path().join("link");
        std::os::unix::fs::symlink(&from, &link).unwrap();
        assert!(matches!(check(&from.join("agent"), &link), Err(AdoptError::Overlap { .. })));
        let other = temp.path().join("other");
        drop(Layout::open(&other, None).unwrap());
        assert!(matches!(check(&root, &other.join("slots")), Err(AdoptError::Managed { .. })));
        fs::create_dir_all(root.join("slots/1")).unwrap();
        assert!(matches!(check(&root, &from), Err(AdoptError::HasReplica { .. })));
    }

    #[test]
    fn a_copy_that_does_not_fit_is_refused_before_anything_is_written() {
        let (_temp, root, from) = scene();
        // A hole counts as if it were written.
        let file = fs::File::create(from.join("sparse")).unwrap();
        if file.set_len(1 << 43).is_ok() {
            let error = check(&root, &from).unwrap_err();
            assert!(matches!(error, AdoptError::NoRoom { .. }), "{error}");
        }
    }
}
