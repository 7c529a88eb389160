//! Rules for content that is not published: `.syncdignore` files, and names that syncd reserves.
//!
//! A `.syncdignore` has patterns in git's own dialect of gitignore, relative to its directory, which apply to
//! everything below. The deepest file with a matching pattern decides, by its last matching line. `.git` and
//! `.syncdignore` itself are always excluded. Other hidden files are published, and `.gitignore` has no
//! meaning. The result matches git, as shown by `git ls-files -o --exclude-per-directory=.syncdignore`,
//! except that patterns that can never match, and a `.syncdignore` that is not a regular file, are rejected.

mod pattern;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::tree_path::{Component, TreePath};

use pattern::Pattern;
pub use pattern::PatternError;

/// Name of a rules file.
pub const IGNORE_FILE: &str = ".syncdignore";
/// Size limit of a rules file.
pub const IGNORE_FILE_MAX_BYTES: u64 = 1024 * 1024;

/// Reasons to reject a `.syncdignore`.
#[derive(Debug, thiserror::Error)]
pub enum IgnoreError {
    /// A pattern that git accepts and that can never match.
    #[error("line {line} of {path} is no pattern: correct or remove it")]
    Pattern {
        path: TreePath,
        /// Line number, from 1.
        line: usize,
        #[source]
        source: PatternError,
    },
    /// Not a regular file. Its rules are unknown, so nothing is published.
    #[error("{path} is no regular file, so that its rules can't be read: replace it by a file, or remove it")]
    Kind { path: TreePath },
    /// The file has more than [`IGNORE_FILE_MAX_BYTES`].
    #[error("{path} has {actual} bytes, more than {IGNORE_FILE_MAX_BYTES}: shorten it")]
    TooLarge {
        path: TreePath,
        /// Size of the file.
        actual: u64,
    },
}

/// The rules in force in one directory: those of its own file and of all directories above. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct IgnoreRules(Option<Arc<Level>>);

#[derive(Debug)]
struct Level {
    above: IgnoreRules,
    directory: TreePath,
    patterns: Vec<Pattern>,
}

impl Level {
    /// Whether the last matching pattern excludes the entry; `None` if none matches.
    fn verdict(&self, path: &[u8], is_directory: bool) -> Option<bool> {
        let directory = self.directory.as_bytes();
        let below = match directory {
            [] => path,
            _ => path.strip_prefix(directory)?.strip_prefix(b"/")?,
        };
        let last = self.patterns.iter().rfind(|pattern| pattern.matches(below, is_directory))?;
        Some(!last.negated)
    }
}

impl IgnoreRules {
    /// The rules in `directory`: its `.syncdignore` with these bytes, on top of the rules of its parent.
    pub fn with_file(&self, directory: &TreePath, bytes: &[u8]) -> Result<Self, IgnoreError> {
        if bytes.len() as u64 > IGNORE_FILE_MAX_BYTES {
            return Err(IgnoreError::TooLarge { path: file_in(directory), actual: bytes.len() as u64 });
        }
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let mut patterns = Vec::new();
        for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let parsed = Pattern::parse(line).map_err(|source| IgnoreError::Pattern {
                path: file_in(directory),
                line: index + 1,
                source,
            })?;
            patterns.extend(parsed);
        }
        if patterns.is_empty() {
            return Ok(self.clone());
        }
        Ok(Self(Some(Arc::new(Level { above: self.clone(), directory: directory.clone(), patterns }))))
    }

    /// Whether the entry `path`, or a directory above it, is excluded.
    pub fn excludes_within(&self, path: &TreePath, is_directory: bool) -> bool {
        let above = |path: &TreePath| path.split_last().map(|(parent, _)| parent);
        let mut directories = std::iter::successors(above(path), above);
        self.excludes(path, is_directory) || directories.any(|directory| self.excludes(&directory, true))
    }

    /// Whether the entry `path` is excluded. Must not be called for entries below an excluded directory.
    pub fn excludes(&self, path: &TreePath, is_directory: bool) -> bool {
        match path.split_last() {
            None => return false,
            Some((_, name)) if is_own(&name) => return true,
            Some(_) => {}
        }
        let mut level = &self.0;
        while let Some(here) = level {
            match here.verdict(path.as_bytes(), is_directory) {
                Some(is_out) => return is_out,
                None => level = &here.above.0,
            }
        }
        false
    }
}

/// Path of a directory's rules file.
pub fn file_in(directory: &TreePath) -> TreePath {
    let name = Component::new(IGNORE_FILE.as_bytes()).ok();
    name.and_then(|name| directory.join(&name).ok()).unwrap_or_else(|| directory.clone())
}

/// Whether a name is never published, in any directory.
pub fn is_own(name: &Component) -> bool {
    name.as_bytes() == IGNORE_FILE.as_bytes() || name.as_bytes() == b".git"
}
