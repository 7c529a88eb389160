//! `syncd-agent php-invalidate`: OPcache forgets the code that a slot served before and serves no more.
//!
//! Needed if OPcache does not look at the times of files (`opcache.validate_timestamps=0`). The on-activate
//! hook runs it before the web server is pointed at the slot. The slot's cached code is then that of the new
//! generation. All other code stays cached.

#![cfg_attr(
    not(test),
    expect(clippy::disallowed_methods, reason = "looks at a tree that the agent has made")
)]

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::iter::Peekable;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde::Deserialize;
use syncd_runtime::output::{line, note};
use syncd_shared::text::{counted, error_chain};

use super::fastcgi::Address;
use super::fpm::{self, FpmError, Masters, Question};
use crate::state::layout::LIVE;

/// Bytes of paths in one request. PHP takes `post_max_size` (8 MiB).
const BATCH_BYTES: usize = 256 * 1024;

// Kinds of path, as the script takes them: nothing or no directory, a directory, a file in a directory.
const CHANGED: u8 = b'-';
const DIRECTORY: u8 = b'd';
const ALIAS: u8 = b'a';

/// `syncd-agent php-invalidate`.
#[derive(Debug, Args)]
pub struct Invalidate {
    #[command(flatten)]
    masters: Masters,
    /// Tree that is about to be served. Set in the environment of hooks.
    #[arg(long, env = "SYNCD_TREE", value_name = "DIR")]
    tree: PathBuf,
    /// File with the NUL-separated paths whose code changed [default: every path of the tree]. Set in the
    /// environment of hooks.
    #[arg(long, env = "SYNCD_SLOT_PATHS", value_name = "FILE")]
    paths: Option<PathBuf>,
}

/// A reason that PHP may still run old code.
#[derive(Debug, thiserror::Error)]
pub enum InvalidateError {
    /// No such tree.
    #[error("can't read the tree {}", path.display())]
    Tree {
        /// `--tree`.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// No such list.
    #[error("can't read the list of paths {}", path.display())]
    Paths {
        /// `--paths`.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A master did not do it.
    #[error(transparent)]
    Fpm(#[from] FpmError),
}

/// The work of one master.
#[derive(Debug, Default)]
struct Report {
    paths: u64,
    forgotten: u64,
}

#[derive(Deserialize)]
struct Forgotten {
    forgotten: u64,
}

/// Asks every master, also after one has failed.
pub async fn run(options: Invalidate) -> anyhow::Result<ExitCode> {
    let masters = &options.masters.addresses;
    anyhow::ensure!(!masters.is_empty(), "no PHP-FPM: name each master with --fpm");
    // Code is cached under the path that links lead to.
    let tree = fs::canonicalize(&options.tree)
        .map_err(|source| InvalidateError::Tree { path: options.tree.clone(), source })?;
    let mut code = ExitCode::SUCCESS;
    for address in masters {
        match invalidate(address, &options, &tree).await {
            Ok(Report { paths, forgotten }) => line(format_args!(
                "{address}: {}, OPcache forgot {}",
                counted(paths, "changed path", "changed paths"),
                counted(forgotten, "script", "scripts"),
            ))?,
            Err(error) => {
                note(format_args!("syncd-agent: {}", error_chain(&error)));
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

async fn invalidate(address: &Address, options: &Invalidate, tree: &Path) -> Result<Report, InvalidateError> {
    let mut report = Report::default();
    let ask_of = async |scope, tree: &Path, body: &[u8]| {
        let question = Question { task: "invalidate", scope, tree, body };
        Ok::<u64, FpmError>(
            fpm::ask::<Forgotten>(address, &options.masters.script, question).await?.forgotten,
        )
    };
    let ask = async |scope, body: &[u8]| ask_of(scope, tree, body).await;
    if let Some(slots) = slots_beside(tree) {
        report.forgotten = ask_of("tree", &slots, b"").await?;
    }
    let Some(path) = &options.paths else {
        report.forgotten += ask("tree", b"").await?;
        return Ok(report);
    };
    let failed = |source| InvalidateError::Paths { path: path.clone(), source };
    let file = BufReader::new(File::open(path).map_err(failed)?);
    let mut batches = Batches { tree, names: file.split(0).peekable(), paths: 0 };
    while let Some(batch) = batches.next().map_err(failed)? {
        report.forgotten += match &batch {
            Batch::Paths(names) => ask("paths", names).await?,
            Batch::Everything => ask("all", b"").await?,
        };
    }
    report.paths = batches.paths;
    // A slot that PHP never served lists nothing. Its path may have had another tree before.
    if report.paths == 0 {
        report.forgotten += ask("tree", b"").await?;
    }
    Ok(report)
}

/// Directory of the slots if `tree` is the directory `live`. A request that runs during an exchange finds its
/// working directory there: relative paths that it includes are then cached as those of a slot, which later
/// holds another tree.
fn slots_beside(tree: &Path) -> Option<PathBuf> {
    (tree.file_name()?.as_bytes() == LIVE).then(|| tree.with_file_name("slots"))
}

/// The subject of one request.
#[derive(Debug, PartialEq, Eq)]
enum Batch {
    /// As the script takes them: what is there now, the name, and NUL.
    Paths(Vec<u8>),
    /// A symlink changed. OPcache remembers which script a path through it led to, and does not show that.
    Everything,
}

/// Splits the list of changed paths, which is in path order.
struct Batches<'a, I: Iterator<Item = io::Result<Vec<u8>>>> {
    tree: &'a Path,
    names: Peekable<I>,
    /// Names so far.
    paths: u64,
}

impl<I: Iterator<Item = io::Result<Vec<u8>>>> Batches<'_, I> {
    fn next(&mut self) -> io::Result<Option<Batch>> {
        let mut batch = Vec::new();
        while batch.len() < BATCH_BYTES {
            let Some(name) = self.names.next().transpose()? else { break };
            self.paths += 1;
            match fs::symlink_metadata(self.full(&name)) {
                Ok(found) if found.is_symlink() => return Ok(Some(Batch::Everything)),
                Ok(found) if found.is_dir() => self.directory(&name, &mut batch)?,
                Ok(_) => push(&mut batch, CHANGED, &name),
                Err(error) if is_missing(&error) => push(&mut batch, CHANGED, &name),
                Err(error) => return Err(error),
            }
        }
        Ok((!batch.is_empty()).then_some(Batch::Paths(batch)))
    }

    /// A directory that was renamed as a whole is listed without what is in it, as is one whose times alone
    /// changed. If it replaced a symlink, OPcache may know its files by the symlink's target.
    fn directory(&mut self, name: &[u8], batch: &mut Vec<u8>) -> io::Result<()> {
        push(batch, DIRECTORY, name);
        let is_below = |next: &io::Result<Vec<u8>>| {
            next.as_ref()
                .is_ok_and(|next| next.strip_prefix(name).is_some_and(|rest| rest.first() == Some(&b'/')))
        };
        if name.is_empty() || self.names.peek().is_some_and(is_below) {
            return Ok(());
        }
        let mut directories = vec![name.to_vec()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(self.full(&directory))? {
                let entry = entry?;
                let below = [&*directory, b"/", entry.file_name().as_bytes()].concat();
                if entry.file_type()?.is_dir() {
                    directories.push(below);
                } else {
                    push(batch, ALIAS, &below);
                }
            }
        }
        Ok(())
    }

    fn full(&self, name: &[u8]) -> PathBuf {
        self.tree.join(PathBuf::from(std::ffi::OsString::from_vec(name.to_vec())))
    }
}

fn push(batch: &mut Vec<u8>, kind: u8, name: &[u8]) {
    batch.push(kind);
    batch.extend_from_slice(name);
    batch.push(0);
}

/// Whether the path is gone, or what was above it is a directory no more.
fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn batches(tree: &Path, names: &[&str]) -> Vec<Batch> {
        let names = names.iter().map(|name| Ok(name.as_bytes().to_vec())).peekable();
        let mut batches = Batches { tree, names, paths: 0 };
        std::iter::from_fn(|| batches.next().unwrap()).collect()
    }

    fn tree() -> tempfile::TempDir {
        let scratch = tempfile::tempdir().unwrap();
        for directory in ["lib/deep", "moved"] {
            fs::create_dir_all(scratch.path().join(directory)).unwrap();
        }
        for file in ["index.php", "lib/a.php", "lib/deep/b.php", "moved/c.php"] {
            fs::write(scratch.path().join(file), "").unwrap();
        }
        scratch
    }

    #[test]
    fn directories_stand_for_themselves_where_what_changed_in_them_is_listed() {
        let scratch = tree();
        let listed = ["", "gone", "gone.php", "index.php", "lib", "lib/a.php", "lib/a.php/x"];
        let expected = b"d\0-gone\0-gone.php\0-index.php\0dlib\0-lib/a.php\0-lib/a.php/x\0".to_vec();
        assert_eq!(batches(scratch.path(), &listed), [Batch::Paths(expected)]);
        assert_eq!(batches(scratch.path(), &[]), []);
    }

    #[test]
    fn a_directory_without_listed_paths_is_looked_through() {
        let scratch = tree();
        let found = batches(scratch.path(), &["lib", "lib-2", "moved"]);
        let expected = b"dlib\0alib/a.php\0alib/deep/b.php\0-lib-2\0dmoved\0amoved/c.php\0".to_vec();
        assert_eq!(found, [Batch::Paths(expected)]);
    }

    #[test]
    fn a_changed_symlink_means_everything() {
        let scratch = tree();
        symlink("lib", scratch.path().join("current")).unwrap();
        let found = batches(scratch.path(), &["current"]);
        assert_eq!(found, [Batch::Everything]);
    }

    #[test]
    fn long_lists_are_split() {
        let scratch = tree();
        let names: Vec<_> = (0..4000).map(|n| format!("{n:0200}.php")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let found = batches(scratch.path(), &names);
        assert_eq!(found.len(), 4);
        let length = |batch: &Batch| match batch {
            Batch::Paths(names) => names.len(),
            Batch::Everything => panic!("no symlink"),
        };
        assert_eq!(found.iter().map(length).sum::<usize>(), 4000 * 206);
    }
}
