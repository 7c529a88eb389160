//! What of a content tree is not published: `.syncdignore` files, and syncd's own.
//!
//! A `.syncdignore` holds patterns in gitignore syntax, relative to the directory that it is in, which hold for
//! everything below. The deepest file that says something about a name decides, and in it the last line. `.git` and
//! `.syncdignore` itself are always out; other hidden files are published, and `.gitignore` means nothing here.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use syncd_shared::{Component, TreePath};

/// The name of a file with rules.
pub const IGNORE_FILE: &str = ".syncdignore";
/// The largest file with rules that is read, in bytes.
pub const IGNORE_FILE_MAX_BYTES: u64 = 1024 * 1024;

/// Why a `.syncdignore` was refused.
#[derive(Debug, thiserror::Error)]
pub enum IgnoreError {
    /// A pattern that is none.
    #[error("invalid pattern in line {line} of {path}: correct or remove it")]
    Pattern {
        /// The file.
        path: TreePath,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        #[source]
        source: ignore::Error,
    },
    /// The patterns together are too much.
    #[error("cannot compile the patterns of {path}: simplify them")]
    Compile {
        /// The file.
        path: TreePath,
        /// What is wrong.
        #[source]
        source: ignore::Error,
    },
    /// A line that is not UTF-8.
    #[error("line {line} of {path} is not UTF-8: match other names by `?` or `*`")]
    NotUtf8 {
        /// The file.
        path: TreePath,
        /// The line, from 1.
        line: usize,
    },
    /// More than [`IGNORE_FILE_MAX_BYTES`].
    #[error("{path} has {actual} bytes, more than {IGNORE_FILE_MAX_BYTES}: shorten it")]
    TooLarge {
        /// The file.
        path: TreePath,
        /// Its size.
        actual: u64,
    },
}

/// The rules that hold in one directory: those of its own file, and of all above. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct IgnoreRules(Option<Arc<Level>>);

#[derive(Debug)]
struct Level {
    above: IgnoreRules,
    rules: Gitignore,
}

impl IgnoreRules {
    /// The rules in `directory`, whose `.syncdignore` has these bytes, below the rules of its parent.
    pub fn with_file(&self, directory: &TreePath, bytes: &[u8]) -> Result<Self, IgnoreError> {
        let path = || {
            Component::new(IGNORE_FILE.as_bytes())
                .ok()
                .and_then(|name| directory.join(&name).ok())
                .unwrap_or_else(|| directory.clone())
        };
        if bytes.len() as u64 > IGNORE_FILE_MAX_BYTES {
            return Err(IgnoreError::TooLarge { path: path(), actual: bytes.len() as u64 });
        }
        let mut builder = GitignoreBuilder::new(absolute(directory));
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let line_number = index + 1;
            let line = std::str::from_utf8(line)
                .map_err(|_| IgnoreError::NotUtf8 { path: path(), line: line_number })?;
            builder.add_line(None, line).map_err(|source| IgnoreError::Pattern {
                path: path(),
                line: line_number,
                source,
            })?;
        }
        let rules = builder.build().map_err(|source| IgnoreError::Compile { path: path(), source })?;
        if rules.is_empty() {
            return Ok(self.clone());
        }
        Ok(Self(Some(Arc::new(Level { above: self.clone(), rules }))))
    }

    /// Whether the entry `path` is left out. Nothing below a directory that is left out is asked about.
    pub fn excludes(&self, path: &TreePath, is_directory: bool) -> bool {
        match path.split_last() {
            None => return false,
            Some((_, name)) if is_own(&name) => return true,
            Some(_) => {}
        }
        if self.0.is_none() {
            return false;
        }
        let absolute = absolute(path);
        let mut level = &self.0;
        while let Some(here) = level {
            match here.rules.matched(&absolute, is_directory) {
                Match::Ignore(_) => return true,
                Match::Whitelist(_) => return false,
                Match::None => level = &here.above.0,
            }
        }
        false
    }
}

/// Whether a name is never published, wherever it is.
pub fn is_own(name: &Component) -> bool {
    name.as_bytes() == IGNORE_FILE.as_bytes() || name.as_bytes() == b".git"
}

/// As if the tree were the file system's root: the crate wants a root to strip, and must not strip a bare name.
fn absolute(path: &TreePath) -> PathBuf {
    Path::new("/").join(OsStr::from_bytes(path.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(bytes: &[u8]) -> TreePath {
        TreePath::from_bytes(bytes).unwrap()
    }

    fn root_rules(text: &[u8]) -> IgnoreRules {
        IgnoreRules::default().with_file(&TreePath::root(), text).unwrap()
    }

    #[test]
    fn without_rules_only_own_files_are_out() {
        let rules = IgnoreRules::default();
        for out in [".git", "a/.git", ".syncdignore", "a/b/.syncdignore"] {
            assert!(rules.excludes(&path(out.as_bytes()), false), "{out}");
        }
        for published in [".htaccess", ".gitignore", ".github", "a/.well-known", "x.git"] {
            assert!(!rules.excludes(&path(published.as_bytes()), false), "{published}");
        }
        assert!(!rules.excludes(&TreePath::root(), true));
    }

    #[test]
    fn patterns_are_relative_to_their_file_and_hold_below() {
        let rules = root_rules(b"# comment\n*.tmp\n/build\ncache/\nlogs/*.log\r\n");
        let is = |p: &str, dir| rules.excludes(&path(p.as_bytes()), dir);
        assert!(is("x.tmp", false) && is("a/b/x.tmp", false));
        assert!(is("build", true) && !is("a/build", true));
        assert!(is("a/cache", true) && !is("a/cache", false));
        assert!(is("logs/x.log", false) && !is("a/logs/x.log", false));
        let below = IgnoreRules::default().with_file(&path(b"a"), b"/build\nx/y\n").unwrap();
        assert!(below.excludes(&path(b"a/build"), true) && !below.excludes(&path(b"a/b/build"), true));
        assert!(below.excludes(&path(b"a/x/y"), false) && !below.excludes(&path(b"a/b/x/y"), false));
    }

    #[test]
    fn the_deepest_file_decides_and_in_it_the_last_line() {
        let rules = root_rules(b"*.bak\n!keep.bak\n").with_file(&path(b"a"), b"!*.bak\nworst.bak\n").unwrap();
        assert!(rules.excludes(&path(b"b.bak"), false) || rules.0.is_some());
        assert!(!rules.excludes(&path(b"a/b.bak"), false));
        assert!(rules.excludes(&path(b"a/worst.bak"), false));
        assert!(!root_rules(b"*.bak\n!keep.bak\n").excludes(&path(b"keep.bak"), false));
    }

    #[test]
    fn names_that_are_not_utf8_match_wildcards() {
        let rules = root_rules(b"*.tmp\nodd?\n");
        assert!(rules.excludes(&path(b"\xff\xfe.tmp"), false));
        assert!(!rules.excludes(&path(b"\xff\xfe.txt"), false));
    }

    #[test]
    fn a_broken_pattern_is_named_not_ignored() {
        let refused = IgnoreRules::default().with_file(&path(b"a"), b"ok\n[z-a]\n").unwrap_err();
        assert!(matches!(refused, IgnoreError::Pattern { line: 2, .. }));
        assert!(refused.to_string().contains("line 2 of a/.syncdignore"), "{refused}");
        let refused = IgnoreRules::default().with_file(&TreePath::root(), b"\xff\n").unwrap_err();
        assert!(matches!(refused, IgnoreError::NotUtf8 { line: 1, .. }));
    }
}
