//! Marks that identify syncd's own directories and private files, whichever installation they belong to.
//!
//! An origin publishes nothing that carries a mark, because a node that holds another machine's keys can act
//! as that machine. Directories are recognised by the names in them, private files by their first line. Both
//! survive a copy: `cp -a` of DATA, of ROOT, or of a single key file is still recognised.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// First line of every private file: keys, identities and the files beside them.
pub const PRIVATE_LINE: &str =
    "syncd private file: it lets its holder act as this origin or node, never publish it\n";

/// Kind of a directory that belongs to syncd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// DATA of an origin: keys, store, records.
    OriginData,
    /// ROOT of an agent: identity and replica.
    AgentRoot,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mark::OriginData => "the data directory of a syncd origin",
            Mark::AgentRoot => "the replica of a syncd agent",
        })
    }
}

/// Names in DATA: the first is a regular file, the others are directories.
const ORIGIN_DATA: (&str, &[&str]) = ("index.redb", &["packs"]);
/// Directories in ROOT.
const AGENT_ROOT: &[&str] = &["generations", "staging", "state", "trash"];

/// Whether a file that begins with `content` is private.
pub fn is_private(content: &[u8]) -> bool {
    content.starts_with(PRIVATE_LINE.as_bytes())
}

/// Whether this name can contribute to a mark.
pub fn is_mark_name(name: &[u8]) -> bool {
    let (file, directories) = ORIGIN_DATA;
    [file].iter().chain(directories).chain(AGENT_ROOT).any(|known| name == known.as_bytes())
}

/// The mark of a directory. `is_directory` reports whether a name in it is a directory, or `None` if the name
/// is missing.
pub fn of_names(is_directory: impl Fn(&str) -> Option<bool>) -> Option<Mark> {
    let all = |names: &[&str]| names.iter().all(|name| is_directory(name) == Some(true));
    let (file, directories) = ORIGIN_DATA;
    if is_directory(file) == Some(false) && all(directories) {
        return Some(Mark::OriginData);
    }
    all(AGENT_ROOT).then_some(Mark::AgentRoot)
}

/// The mark of the directory at `path`. `None` if it cannot be searched.
pub fn of(path: &Path) -> Option<Mark> {
    of_names(|name| path.join(name).symlink_metadata().ok().map(|metadata| metadata.is_dir()))
}

/// The nearest marked directory strictly above `path`, with symlinks resolved. `path` itself need not exist
/// yet.
///
/// # Errors
/// The path cannot be resolved.
pub fn above(path: &Path) -> io::Result<Option<(PathBuf, Mark)>> {
    let resolved = resolve(path)?;
    Ok(resolved.ancestors().skip(1).find_map(|above| Some((above.to_owned(), of(above)?))))
}

/// Resolves symlinks in the existing part of `path` and appends the missing part unchanged.
pub fn resolve(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    let mut missing = Vec::new();
    let mut existing = path.as_path();
    loop {
        match existing.canonicalize() {
            Ok(mut resolved) => {
                resolved.extend(missing.iter().rev());
                return Ok(resolved);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match (existing.parent(), existing.file_name()) {
                    (Some(parent), Some(name)) => {
                        missing.push(name);
                        existing = parent;
                    }
                    _ => return Err(error),
                }
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn make(base: &Path, directories: &[&str]) {
        for name in directories {
            fs::create_dir_all(base.join(name)).unwrap();
        }
    }

    #[test]
    fn data_and_root_are_recognised_by_their_names_and_a_site_is_not() {
        let base = tempfile::tempdir().unwrap();
        make(base.path(), &["data/packs", "root/state", "root/generations", "root/staging", "root/trash"]);
        fs::write(base.path().join("data/index.redb"), "").unwrap();
        assert_eq!(of(&base.path().join("data")), Some(Mark::OriginData));
        assert_eq!(of(&base.path().join("root")), Some(Mark::AgentRoot));
        make(base.path(), &["site/state", "site/generations", "site/packs", "site/index.redb"]);
        assert_eq!(of(&base.path().join("site")), None);
        assert_eq!(of(&base.path().join("missing")), None);
        assert!(is_mark_name(b"packs") && is_mark_name(b"state") && !is_mark_name(b"index.html"));
    }

    #[test]
    fn a_mark_above_is_found_through_symlinks_and_for_what_is_not_there_yet() {
        let base = tempfile::tempdir().unwrap();
        let data = base.path().canonicalize().unwrap().join("data");
        make(&data, &["packs"]);
        fs::write(data.join("index.redb"), "").unwrap();
        std::os::unix::fs::symlink(data.join("packs"), base.path().join("link")).unwrap();
        let found = Some((data.clone(), Mark::OriginData));
        assert_eq!(above(&data.join("agent")).unwrap(), found);
        assert_eq!(above(&base.path().join("link/new/agent")).unwrap(), found);
        assert_eq!(above(&data).unwrap(), None, "a directory is not above itself");
        assert_eq!(above(&base.path().join("agent")).unwrap(), None);
    }
}
