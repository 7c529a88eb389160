//! The origin's side of collected directories: the versions of all paths, and their contents.
//!
//! ```text
//! DATA/collected/index.redb       chains, losers, counts of uses; every commit is durable
//! DATA/collected/contents/H/HASH  contents that a version or a loser has, and uploads not yet judged
//! DATA/collected/incoming/N       uploads that arrive
//! DATA/collected/line             names the line of version numbers; a backup leaves it out
//! ```
//!
//! **Order.** One thread, the keeper, judges all changes, in batches of one transaction. It answers after the
//! commit, which comes after the contents are synced. Contents that nothing uses any more are removed after
//! the commit as well, by the same thread.
//!
//! **After a crash.** The index has whole batches. Contents that it does not use were never acknowledged, and
//! are removed when it is opened.
//!
//! **Line.** Version numbers go up within a line. An origin that lost versions (restored from a backup)
//! begins another line, and each node then offers what it has, as after a lost journal.

mod contents;
mod index;
mod keeper;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use syncd_shared::collected::message::Decision;
use syncd_shared::collected::stored::StoredError;
use syncd_shared::collected::{Change, CollectedName, Loser, Version};
use syncd_shared::{ContentHash, TreePath};
use tokio::sync::{mpsc, oneshot, watch};

use crate::ignore_rules::IgnoreRules;
pub use contents::{Contents, Upload};
use index::Index;
use keeper::Job;

/// Changes that wait for the keeper.
const QUEUE: usize = 1_024;

/// Settings of a collected directory.
#[derive(Debug, Clone)]
pub struct CollectedOptions {
    pub name: CollectedName,
    /// Path in the published tree.
    pub path: TreePath,
    /// User and group of its files on the nodes.
    pub owner: (u32, u32),
    /// Files that are refused, in the syntax of `.syncdignore`.
    pub deny: Vec<String>,
    /// Most bytes of all current files.
    pub max_bytes: u64,
    /// Most bytes of contents that lost a conflict.
    pub losers_max_bytes: u64,
}

/// Reasons why collected directories cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    #[error("{doing} {}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("read a content")]
    Read(#[source] io::Error),
    #[error("use the index of collected directories")]
    Index(#[source] Box<redb::Error>),
    #[error("the index of collected directories is damaged")]
    Damaged(#[from] StoredError),
    #[error("the index of collected directories has format {actual}, expected {expected}")]
    Format { actual: u64, expected: u64 },
    #[error("the content hashes to {actual}, announced was {expected}")]
    Content { expected: ContentHash, actual: ContentHash },
    #[error("the content has {actual} bytes, announced were {expected}")]
    Size { expected: u64, actual: u64 },
    #[error("invalid pattern in deny")]
    Pattern(#[source] Box<crate::scan::ScanError>),
    #[error("no directory is collected under this name")]
    UnknownDirectory,
    #[error("the keeper of collected directories has ended")]
    Ended,
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CollectError {
    let path = path.to_owned();
    move |source| CollectError::Io { doing, path, source }
}

/// A change of a node.
#[derive(Debug, Clone)]
pub struct NodeChange {
    pub directory: CollectedName,
    pub node: String,
    pub path: TreePath,
    pub change: Change,
}

/// A directory with its rules.
struct Ruled {
    options: CollectedOptions,
    denied: IgnoreRules,
}

/// All collected directories of an origin. Clones share them.
#[derive(Clone)]
pub struct Collection {
    shared: Arc<Shared>,
}

struct Shared {
    directories: BTreeMap<CollectedName, Ruled>,
    index: Index,
    contents: Contents,
    line: Mutex<[u8; LINE_BYTES]>,
    line_path: PathBuf,
    jobs: mpsc::Sender<Job>,
    /// Counts batches that made versions.
    changes: watch::Receiver<u64>,
}

const LINE_BYTES: usize = 16;

impl Collection {
    /// Opens the collected directories in DATA, or creates them, and starts the keeper. Blocks: removes
    /// contents that nothing uses.
    pub fn open(data: &Path, directories: Vec<CollectedOptions>) -> Result<Self, CollectError> {
        let own = data.join("collected");
        fs::create_dir_all(&own).map_err(io_error("create", &own))?;
        let (index, contents) = (Index::open(&own.join("index.redb"))?, Contents::open(&own)?);
        contents.keep_only(|content| index.is_used(content))?;
        let line_path = own.join("line");
        let line = match fs::read(&line_path) {
            Ok(bytes) => <[u8; LINE_BYTES]>::try_from(bytes.as_slice()).ok(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(io_error("read", &line_path)(e)),
        };
        let line = line.map_or_else(|| new_line(&line_path), Ok)?;
        let directories = directories.into_iter().map(|options| {
            let rules = options.deny.join("\n");
            let denied = IgnoreRules::default().with_file(&TreePath::root(), rules.as_bytes());
            let denied = denied.map_err(|e| CollectError::Pattern(Box::new(e.into())))?;
            Ok((options.name.clone(), Ruled { options, denied }))
        });
        let directories = directories.collect::<Result<_, CollectError>>()?;
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (changed, changes) = watch::channel(0);
        let line = Mutex::new(line);
        let shared = Arc::new(Shared { directories, index, contents, line, line_path, jobs, changes });
        keeper::start(Arc::downgrade(&shared), queue, changed).map_err(io_error("start", &own))?;
        Ok(Self { shared })
    }

    pub fn directories(&self) -> impl Iterator<Item = &CollectedOptions> {
        self.shared.directories.values().map(|ruled| &ruled.options)
    }

    pub fn directory(&self, name: &CollectedName) -> Result<&CollectedOptions, CollectError> {
        let ruled = self.shared.directories.get(name).ok_or(CollectError::UnknownDirectory)?;
        Ok(&ruled.options)
    }

    pub fn contents(&self) -> &Contents {
        &self.shared.contents
    }

    /// Names the line of version numbers.
    pub fn line(&self) -> [u8; LINE_BYTES] {
        *self.shared.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins another line: a node has seen versions that this origin does not have.
    pub fn begin_line(&self) -> Result<(), CollectError> {
        let mut line = self.shared.line.lock().unwrap_or_else(PoisonError::into_inner);
        *line = new_line(&self.shared.line_path)?;
        Ok(())
    }

    /// Number of the newest version of a directory; 0 if there is none.
    pub fn newest(&self, name: &CollectedName) -> Result<u64, CollectError> {
        self.shared.index.newest(name)
    }

    /// The current versions of paths that changed after number `after`, in order of numbers, at most `limit`.
    pub fn versions(
        &self,
        name: &CollectedName,
        after: u64,
        limit: usize,
    ) -> Result<Vec<(TreePath, Version)>, CollectError> {
        self.shared.index.versions(name, after, limit)
    }

    /// Contents that lost a conflict, oldest first.
    pub fn losers(&self, name: &CollectedName) -> Result<Vec<Loser>, CollectError> {
        self.shared.index.losers(name)
    }

    /// Changes whenever there are newer versions.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.clone()
    }

    /// Has a change judged. The answer is durable. If the future is dropped, the change may be judged or not.
    pub async fn submit(&self, change: NodeChange) -> Result<Decision, Arc<CollectError>> {
        let (reply, answer) = oneshot::channel();
        let ended = |_| Arc::new(CollectError::Ended);
        self.shared.jobs.send(Job::Judge(Box::new(change), reply)).await.map_err(|_| ended(()))?;
        answer.await.map_err(|_| ended(()))?
    }

    /// Returns once everything that was submitted before is judged.
    pub async fn barrier(&self) {
        let (reply, passed) = oneshot::channel();
        if self.shared.jobs.send(Job::Barrier(reply)).await.is_ok() {
            let _ = passed.await;
        }
    }
}

fn new_line(path: &Path) -> Result<[u8; LINE_BYTES], CollectError> {
    let mut line = [0; LINE_BYTES];
    let failed = |e: getrandom::Error| io_error("make", path)(io::Error::other(e));
    getrandom::fill(&mut line).map_err(failed)?;
    contents::write_durably(path, &line)?;
    Ok(line)
}
