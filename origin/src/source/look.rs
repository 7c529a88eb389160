//! Looks at single paths of what would be published now, without a snapshot.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use syncd_shared::TreePath;

use super::{GitError, GitOptions, git};

/// The directory or repository that trees are published from.
#[derive(Debug, Clone)]
pub struct SourceLocation {
    pub tree: PathBuf,
    /// `tree` is a git repository.
    pub git: Option<GitOptions>,
}

/// Content of a path. A directory of the file system that cannot be listed counts as one with names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing, or neither file, directory nor symlink.
    Nothing,
    File,
    Symlink,
    Directory {
        is_empty: bool,
    },
}

impl SourceLocation {
    /// Fails only if `tree` is a repository whose reference or objects cannot be read.
    pub fn look(&self, path: &TreePath) -> Result<Found, GitError> {
        match &self.git {
            Some(options) => git::look(&self.tree, options, path),
            None => Ok(look_at(&self.place(path))),
        }
    }

    /// Whether the path is a directory. Symlinks in a file system are followed.
    pub fn is_directory(&self, path: &TreePath) -> Result<bool, GitError> {
        match &self.git {
            Some(_) => Ok(matches!(self.look(path)?, Found::Directory { .. })),
            None => Ok(self.place(path).is_dir()),
        }
    }

    /// The path in the directory, or in the work tree of the repository if it has one.
    pub fn place(&self, path: &TreePath) -> PathBuf {
        self.tree.join(OsStr::from_bytes(path.as_bytes()))
    }
}

impl fmt::Display for SourceLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.git {
            Some(options) => write!(f, "{} of the repository {}", options.reference, self.tree.display()),
            None => write!(f, "{}", self.tree.display()),
        }
    }
}

fn look_at(path: &Path) -> Found {
    match path.symlink_metadata() {
        Ok(found) if found.is_dir() => Found::Directory { is_empty: is_empty(path).unwrap_or(false) },
        Ok(found) if found.is_file() => Found::File,
        Ok(found) if found.is_symlink() => Found::Symlink,
        _ => Found::Nothing,
    }
}

fn is_empty(directory: &Path) -> io::Result<bool> {
    Ok(std::fs::read_dir(directory)?.next().is_none())
}
