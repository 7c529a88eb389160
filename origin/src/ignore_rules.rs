//! What of a content tree is not published: `.syncdignore` files, and syncd's own.
//!
//! A `.syncdignore` holds patterns in git's own dialect of gitignore, relative to the directory that it is in, which hold
//! for everything below. The deepest file that says something about a name decides, and in it the last line. `.git` and
//! `.syncdignore` itself are always out; other hidden files are published, and `.gitignore` means nothing here. What git
//! leaves out is left out, as `git ls-files -o --exclude-per-directory=.syncdignore` shows; patterns that could never
//! match, and a `.syncdignore` that is no regular file, are refused.

mod pattern;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use syncd_shared::{Component, TreePath};

use pattern::Pattern;
pub use pattern::PatternError;

/// The name of a file with rules.
pub const IGNORE_FILE: &str = ".syncdignore";
/// The largest file with rules that is read, in bytes.
pub const IGNORE_FILE_MAX_BYTES: u64 = 1024 * 1024;

/// Why a `.syncdignore` was refused.
#[derive(Debug, thiserror::Error)]
pub enum IgnoreError {
    /// A pattern that git would take and that could never match.
    #[error("line {line} of {path} is no pattern: correct or remove it")]
    Pattern {
        /// The file.
        path: TreePath,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        #[source]
        source: PatternError,
    },
    /// Not a regular file: whose rules it may stand for can't be known, so nothing is published.
    #[error("{path} is no regular file, so that its rules can't be read: replace it by a file, or remove it")]
    Kind {
        /// The file.
        path: TreePath,
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
    directory: TreePath,
    patterns: Vec<Pattern>,
}

impl Level {
    /// What the last pattern that matches says: whether the entry is left out.
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
    /// The rules in `directory`, whose `.syncdignore` has these bytes, below the rules of its parent.
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

    /// Whether the entry `path` is left out. Nothing below a directory that is left out is asked about.
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

/// The rules file of a directory.
pub(crate) fn file_in(directory: &TreePath) -> TreePath {
    let name = Component::new(IGNORE_FILE.as_bytes()).ok();
    name.and_then(|name| directory.join(&name).ok()).unwrap_or_else(|| directory.clone())
}

/// Whether a name is never published, wherever it is.
pub fn is_own(name: &Component) -> bool {
    name.as_bytes() == IGNORE_FILE.as_bytes() || name.as_bytes() == b".git"
}
