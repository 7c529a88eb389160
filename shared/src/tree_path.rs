//! Paths inside a tree: relative, made of bytes, valid by construction.
//!
//! Nothing that came over the wire reaches a system call except as a [`Component`] or a [`TreePath`].

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::limits::{COMPONENT_MAX_BYTES, DEPTH_MAX, PATH_MAX_BYTES};
use crate::text::write_escaped;

/// Errors of checking a name or path of a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreePathError {
    /// An empty name, or `//`.
    #[error("empty name")]
    Empty,
    /// `.` or `..`.
    #[error("name '.' or '..'")]
    Dots,
    /// A slash inside a name.
    #[error("name contains '/'")]
    Slash,
    /// A NUL byte.
    #[error("name contains NUL")]
    Nul,
    #[error("name of {actual} bytes exceeds {limit}")]
    ComponentTooLong {
        /// Bytes given.
        actual: usize,
        /// [`COMPONENT_MAX_BYTES`].
        limit: usize,
    },
    #[error("path of {actual} bytes exceeds {limit}")]
    PathTooLong {
        /// Bytes given.
        actual: usize,
        /// [`PATH_MAX_BYTES`].
        limit: usize,
    },
    #[error("path of {actual} names exceeds {limit}")]
    TooDeep {
        /// Names given.
        actual: usize,
        /// [`DEPTH_MAX`].
        limit: usize,
    },
}

/// One name in a directory: 1 to 255 bytes, without slash or NUL, and not `.` or `..`. Need not be UTF-8.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Component(Box<[u8]>);

impl Component {
    pub fn new(name: &[u8]) -> Result<Self, TreePathError> {
        check_component(name)?;
        Ok(Self(name.into()))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The name, for a system call.
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }
}

fn check_component(name: &[u8]) -> Result<(), TreePathError> {
    match name {
        b"" => Err(TreePathError::Empty),
        b"." | b".." => Err(TreePathError::Dots),
        _ if name.len() > COMPONENT_MAX_BYTES => {
            Err(TreePathError::ComponentTooLong { actual: name.len(), limit: COMPONENT_MAX_BYTES })
        }
        _ if name.contains(&b'/') => Err(TreePathError::Slash),
        _ if name.contains(&0) => Err(TreePathError::Nul),
        _ => Ok(()),
    }
}

/// A path relative to a tree's root; the root itself is the empty path. Ordered bytewise by component, so
/// that a directory comes right before its content.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct TreePath(Vec<u8>);

impl TreePath {
    pub const fn root() -> Self {
        Self(Vec::new())
    }

    /// Parses names separated by single slashes. The empty slice is the root.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TreePathError> {
        if bytes.is_empty() {
            return Ok(Self::root());
        }
        if bytes.len() > PATH_MAX_BYTES {
            return Err(TreePathError::PathTooLong { actual: bytes.len(), limit: PATH_MAX_BYTES });
        }
        let mut depth = 0;
        for name in bytes.split(|b| *b == b'/') {
            check_component(name)?;
            depth += 1;
        }
        if depth > DEPTH_MAX {
            return Err(TreePathError::TooDeep { actual: depth, limit: DEPTH_MAX });
        }
        Ok(Self(bytes.to_vec()))
    }

    /// The path of `name` inside this directory.
    pub fn join(&self, name: &Component) -> Result<Self, TreePathError> {
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + name.0.len());
        bytes.extend_from_slice(&self.0);
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(&name.0);
        if bytes.len() > PATH_MAX_BYTES {
            return Err(TreePathError::PathTooLong { actual: bytes.len(), limit: PATH_MAX_BYTES });
        }
        let depth = self.depth() + 1;
        if depth > DEPTH_MAX {
            return Err(TreePathError::TooDeep { actual: depth, limit: DEPTH_MAX });
        }
        Ok(Self(bytes))
    }

    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of names; 0 for the root.
    pub fn depth(&self) -> usize {
        if self.0.is_empty() { 0 } else { 1 + self.0.iter().filter(|b| **b == b'/').count() }
    }

    /// The names separated by slashes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The names, outermost first.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = Component> + '_ {
        self.0.split(|b| *b == b'/').filter(|c| !c.is_empty()).map(|c| Component(c.into()))
    }

    /// The parent directory, and the name in it; `None` for the root.
    pub fn split_last(&self) -> Option<(TreePath, Component)> {
        if self.0.is_empty() {
            return None;
        }
        Some(match self.0.iter().rposition(|b| *b == b'/') {
            Some(slash) => (Self(self.0[..slash].to_vec()), Component(self.0[slash + 1..].into())),
            None => (Self::root(), Component(self.0.as_slice().into())),
        })
    }

    /// `None` for the root.
    pub fn parent(&self) -> Option<TreePath> {
        self.split_last().map(|(parent, _)| parent)
    }

    /// Whether this is `ancestor` or below it.
    pub fn starts_with(&self, ancestor: &TreePath) -> bool {
        ancestor.is_root()
            || (self.0.starts_with(&ancestor.0)
                && (self.0.len() == ancestor.0.len() || self.0[ancestor.0.len()] == b'/'))
    }

    /// Replaces the leading `from` with `to`; `None` if this path does not start with `from`.
    pub fn rebase(&self, from: &TreePath, to: &TreePath) -> Option<TreePath> {
        if !self.starts_with(from) {
            return None;
        }
        let rest = self.0[from.0.len()..].strip_prefix(b"/").unwrap_or(&self.0[from.0.len()..]);
        Some(match (to.is_root(), rest.is_empty()) {
            (_, true) => to.clone(),
            (true, false) => Self(rest.to_vec()),
            (false, false) => Self([to.as_bytes(), b"/", rest].concat()),
        })
    }

    /// The path below a base directory. Only for the origin's own tree.
    pub fn below(&self, base: &Path) -> PathBuf {
        if self.0.is_empty() { base.to_path_buf() } else { base.join(OsStr::from_bytes(&self.0)) }
    }
}

impl PartialOrd for TreePath {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for TreePath {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // A slash sorts before every byte of a name, so that a directory is followed at once by its content.
        let key = |b: &u8| if *b == b'/' { 0u16 } else { u16::from(*b) + 1 };
        self.0.iter().map(key).cmp(other.0.iter().map(key))
    }
}

/// Prints bytes as text. Printable characters ([`crate::text::is_unprintable`]) appear unchanged, other
/// characters and the backslash are escaped, and invalid UTF-8 appears as `\xNN`.
struct Escaped<'a>(&'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                if c == '\\' {
                    f.write_str("\\\\")?;
                } else {
                    write_escaped(f, c)?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Escaped(&self.0).fmt(f)
    }
}

impl fmt::Debug for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", Escaped(&self.0))
    }
}

impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() { f.write_str(".") } else { Escaped(&self.0).fmt(f) }
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> TreePath {
        TreePath::from_bytes(text.as_bytes()).expect("a valid path")
    }

    #[test]
    fn what_could_leave_the_tree_is_refused() {
        for bad in ["..", "a/../b", "/a", "a/", "a//b", ".", "a/.", "a\0b", "/"] {
            assert!(TreePath::from_bytes(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(Component::new(b"a/b").is_err());
        assert!(Component::new(&[b'a'; 256]).is_err());
        assert!(Component::new(&[b'a'; 255]).is_ok());
        assert!(TreePath::from_bytes(&vec![b'a'; 5000]).is_err());
        assert!(TreePath::from_bytes("a/".repeat(65).trim_end_matches('/').as_bytes()).is_err());
    }

    #[test]
    fn a_directory_sorts_right_before_what_is_in_it() {
        let mut paths = vec![path("a.b"), path("a/z"), path("a"), path("a!"), path("b")];
        paths.sort();
        assert_eq!(paths, [path("a"), path("a/z"), path("a!"), path("a.b"), path("b")]);
    }

    #[test]
    fn rebase_moves_a_subtree() {
        assert_eq!(path("a/b/c").rebase(&path("a/b"), &path("x")), Some(path("x/c")));
        assert_eq!(path("a/b").rebase(&path("a/b"), &path("x")), Some(path("x")));
        assert_eq!(path("a/bc").rebase(&path("a/b"), &path("x")), None);
        assert_eq!(path("a/b").rebase(&path("a"), &TreePath::root()), Some(path("b")));
        assert_eq!(path("a/b").rebase(&TreePath::root(), &path("x")), Some(path("x/a/b")));
    }

    #[test]
    fn names_that_are_not_text_are_escaped_for_people() {
        assert_eq!(TreePath::from_bytes(b"a\nb/\xff\xc3\xa4").expect("valid").to_string(), "a\\nb/\\xffä");
        assert_eq!(path("a\\\u{202e}gpj.exe").to_string(), "a\\\\\\u{202e}gpj.exe");
    }
}
