//! Resolves TREE, which may be or contain symlinks and may lead elsewhere at any time.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

/// Number of symlinks that the kernel follows in one path.
const SYMLINKS_MAX: usize = 40;

/// One resolution of TREE.
#[derive(Debug)]
pub(super) struct Location {
    /// The directory without symlinks, or the reason that there is none.
    pub root: io::Result<PathBuf>,
    /// Names whose replacement makes TREE another directory: every symlink on the path, the directory itself,
    /// and a missing name. Their parents exist.
    pub turning_points: BTreeSet<PathBuf>,
}

impl Location {
    /// Resolves an absolute path.
    pub(super) fn of(tree: &Path) -> Self {
        let mut turning_points = BTreeSet::new();
        let root = resolve(tree, &mut turning_points);
        Self { root, turning_points }
    }
}

fn names(path: &Path) -> impl DoubleEndedIterator<Item = OsString> + '_ {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_os_string()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

fn resolve(tree: &Path, turning_points: &mut BTreeSet<PathBuf>) -> io::Result<PathBuf> {
    let mut pending: VecDeque<OsString> = names(tree).collect();
    let mut here = PathBuf::from("/");
    let mut symlinks = 0;
    while let Some(name) = pending.pop_front() {
        if name == ".." {
            here.pop();
            continue;
        }
        let next = here.join(&name);
        let metadata = next.symlink_metadata().inspect_err(|_| {
            turning_points.insert(next.clone());
        })?;
        if metadata.is_symlink() {
            turning_points.insert(next.clone());
            symlinks += 1;
            if symlinks > SYMLINKS_MAX {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let target = next.read_link()?;
            if target.is_absolute() {
                here = PathBuf::from("/");
            }
            for name in names(&target).rev() {
                pending.push_front(name);
            }
        } else if metadata.is_dir() {
            here = next;
        } else {
            turning_points.insert(next);
            return Err(io::ErrorKind::NotADirectory.into());
        }
    }
    if here.parent().is_some() {
        turning_points.insert(here.clone());
    }
    Ok(here)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn every_symlink_on_the_way_is_a_turning_point() {
        let base = tempfile::tempdir().unwrap();
        let base = base.path().canonicalize().unwrap();
        fs::create_dir_all(base.join("releases/1/site")).unwrap();
        symlink("releases/1", base.join("current")).unwrap();
        symlink(base.join("current/site"), base.join("tree")).unwrap();
        let location = Location::of(&base.join("tree"));
        assert_eq!(location.root.unwrap(), base.join("releases/1/site"));
        let expected = ["tree", "current", "releases/1/site"].map(|p| base.join(p));
        assert_eq!(location.turning_points, BTreeSet::from(expected));
    }

    #[test]
    fn what_is_missing_is_a_turning_point() {
        let base = tempfile::tempdir().unwrap();
        let base = base.path().canonicalize().unwrap();
        let location = Location::of(&base.join("a/b"));
        assert_eq!(location.root.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(location.turning_points, BTreeSet::from([base.join("a")]));
        symlink("loop", base.join("loop")).unwrap();
        assert!(Location::of(&base.join("loop")).root.is_err());
        fs::write(base.join("file"), "").unwrap();
        assert_eq!(Location::of(&base.join("file")).root.unwrap_err().kind(), io::ErrorKind::NotADirectory);
    }
}
