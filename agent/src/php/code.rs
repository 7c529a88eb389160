//! How much PHP code a tree has.

#![cfg_attr(
    not(test),
    expect(clippy::disallowed_methods, reason = "looks at a tree that the agent has made")
)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Bytes that OPcache needs for one byte of source: 3.1 for all of WordPress 6.4.
const COMPILED_PER_SOURCE: u64 = 3;

/// The PHP code in a tree, run or not.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Code {
    /// PHP files.
    pub files: u64,
    /// Their bytes.
    pub source_bytes: u64,
    /// The first symlink, relative to the tree, that leads to code or to a directory in the same tree.
    pub link: Option<PathBuf>,
}

impl Code {
    /// Looks at every file that PHP can name. Visitors may have nested directories until their paths are too
    /// long for the kernel, for this program as for PHP. Blocks.
    pub fn of(tree: &Path) -> io::Result<Self> {
        let tree = fs::canonicalize(tree)?;
        let mut code = Self::default();
        let mut directories = vec![tree.clone()];
        while let Some(directory) = directories.pop() {
            let entries = match fs::read_dir(&directory) {
                Err(error) if error.kind() == io::ErrorKind::InvalidFilename => continue,
                entries => entries?,
            };
            for entry in entries {
                let entry = entry?;
                let (path, kind) = (entry.path(), entry.file_type()?);
                if kind.is_dir() {
                    directories.push(path);
                } else if kind.is_symlink() {
                    let leads_to_code = fs::canonicalize(&path)
                        .is_ok_and(|to| to.starts_with(&tree) && (to.is_dir() || is_php(&to)));
                    if leads_to_code && code.link.is_none() {
                        code.link = path.strip_prefix(&tree).ok().map(Path::to_owned);
                    }
                } else if is_php(&path) {
                    code.files += 1;
                    code.source_bytes += entry.metadata()?.len();
                }
            }
        }
        Ok(code)
    }

    /// Bytes of OPcache if all of it were run.
    pub fn compiled_bytes(&self) -> u64 {
        self.source_bytes.saturating_mul(COMPILED_PER_SOURCE)
    }
}

fn is_php(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default();
    ["php", "phtml", "inc", "phar"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn code_is_counted_and_links_to_it_are_found() {
        let scratch = tempfile::tempdir().unwrap();
        let path = |name: &str| scratch.path().join(name);
        fs::create_dir_all(path("lib/deep")).unwrap();
        for (file, text) in [("index.php", "12345"), ("lib/deep/A.INC", "123"), ("page.html", "1234567")] {
            fs::write(path(file), text).unwrap();
        }
        symlink("/usr", path("outside")).unwrap();
        symlink("nowhere", path("dangling")).unwrap();
        symlink("page.html", path("page")).unwrap();
        let found = Code::of(scratch.path()).unwrap();
        assert_eq!(found, Code { files: 2, source_bytes: 8, link: None });
        assert_eq!(found.compiled_bytes(), 24);
        symlink("lib", path("current")).unwrap();
        assert_eq!(Code::of(scratch.path()).unwrap().link, Some("current".into()));
        assert!(Code::of(&path("none")).is_err());
    }

    #[test]
    fn directories_nested_too_deep_for_php_do_not_count() {
        let scratch = tempfile::tempdir().unwrap();
        fs::write(scratch.path().join("index.php"), "12345").unwrap();
        crate::fixture::deepen(scratch.path(), 100, &[b'd'; 200]);
        let found = Code::of(scratch.path()).unwrap();
        assert_eq!(found, Code { files: 1, source_bytes: 5, link: None });
    }
}
