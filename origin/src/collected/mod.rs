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

mod adopt;
mod backup;
mod config;
mod contents;
mod index;
mod keeper;
mod refusals;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use syncd_shared::collected::message::Decision;
use syncd_shared::collected::stored::StoredError;
use syncd_shared::collected::{Chain, Change, CollectedName, CollectedRules, Loser, Version};
use syncd_shared::ignore_rules::IgnoreError;
use syncd_shared::{ContentHash, Kind, TreePath};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::events::Event;
use crate::keys::Keys;
use crate::source::SourceLocation;
use crate::store::Store;
use crate::tree_objects::TreeObjects;
pub use adopt::Moved;
pub use config::{CollectConfigError, CollectedOptions, parse};
pub use contents::{Contents, Upload};
use index::{Figures, Index};
use keeper::{Job, Removals, Signals};
use refusals::Refusals;

/// Events that the log may be behind. Older ones are left out.
const NEWS: usize = 1_024;
/// Changes that wait for the keeper.
const QUEUE: usize = 1_024;

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
    #[error("the patterns of a collected directory")]
    Pattern(#[from] IgnoreError),
    #[error("{wanted_bytes} bytes arrive, and {available_bytes} are free for them in DATA: make room")]
    NoSpace { wanted_bytes: u64, available_bytes: u64 },
    #[error("{} is not empty", path.display())]
    NotEmpty { path: PathBuf },
    #[error("the disk failed while the content arrived: send it again")]
    LostInSync,
    #[error("there is no conflict {number}: `syncd-origin collected conflicts` lists them")]
    NoConflict { number: u64 },
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
    rules: CollectedRules,
    refusals: Mutex<Refusals>,
}

impl Ruled {
    fn refusals(&self) -> MutexGuard<'_, Refusals> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Figures of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryFigures {
    pub name: CollectedName,
    /// Current files.
    pub files: u64,
    /// Bytes of all current files.
    pub bytes: u64,
    /// Contents that lost a conflict.
    pub conflicts: u64,
    /// Files of nodes that rules or quota refuse now.
    pub refused: u64,
    /// Changes that rules or quota refused since the start.
    pub refusals: u64,
}

/// A version of a path, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryVersion {
    pub version: Version,
    /// The node that made it; [`AT_ORIGIN`] for a person.
    pub node: String,
    pub since_ms: u64,
    /// `None`: it is current.
    pub until_ms: Option<u64>,
    /// Whether the content is still here.
    pub is_kept: bool,
}

/// Stands for a node in changes that a person makes at the origin.
pub const AT_ORIGIN: &str = "(origin)";

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
    removals: Removals,
    /// Counts batches that made versions.
    changes: watch::Receiver<u64>,
    /// Counts batches that may have changed a figure.
    figures: watch::Receiver<u64>,
    news: broadcast::Sender<Event>,
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
            let rules = CollectedRules::new(&options.ignore, &options.deny)?;
            Ok((options.name.clone(), Ruled { options, rules, refusals: Mutex::default() }))
        });
        let directories = directories.collect::<Result<_, CollectError>>()?;
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (changed, changes) = watch::channel(0);
        let (moved, figures) = watch::channel(0);
        let line = Mutex::new(line);
        let removals = Removals::default();
        let news = broadcast::Sender::new(NEWS);
        let shared = Arc::new(Shared {
            directories,
            index,
            contents,
            line,
            line_path,
            jobs,
            removals,
            changes,
            figures,
            news,
        });
        let signals = Signals { versions: changed, figures: moved };
        keeper::start(Arc::downgrade(&shared), queue, signals).map_err(io_error("start", &own))?;
        Ok(Self { shared })
    }

    /// Opens what an origin without these settings left in DATA; `None`: there is nothing.
    pub fn open_existing(data: &Path) -> Result<Option<Self>, CollectError> {
        let own = data.join("collected");
        match own.try_exists().map_err(io_error("read", &own))? {
            true => Self::open(data, Vec::new()).map(Some),
            false => Ok(None),
        }
    }

    /// Names of all directories that have or had versions, or are configured.
    pub fn names(&self) -> Result<Vec<CollectedName>, CollectError> {
        let mut names = self.shared.index.names()?;
        names.extend(self.directories().map(|options| options.name.clone()));
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    pub fn figures(&self, name: &CollectedName) -> Result<DirectoryFigures, CollectError> {
        let Figures { files, bytes, losers: conflicts } = self.shared.index.figures(name)?;
        let ruled = self.shared.directories.get(name);
        let (refused, refusals) = ruled.map_or((0, 0), |ruled| {
            let mut refusals = ruled.refusals();
            (refusals.now(keeper::now_ms()), refusals.count())
        });
        Ok(DirectoryFigures { name: name.clone(), files, bytes, conflicts, refused, refusals })
    }

    /// The versions of a path, oldest first.
    pub fn history(
        &self,
        name: &CollectedName,
        path: &TreePath,
    ) -> Result<Vec<HistoryVersion>, CollectError> {
        self.shared.index.history(name, path)
    }

    /// The chains of a path and of everything below it, in order of paths, with the node of each current
    /// version.
    pub fn chains(
        &self,
        name: &CollectedName,
        below: &TreePath,
    ) -> Result<Vec<(TreePath, Chain, String)>, CollectError> {
        self.shared.index.chains(name, below)
    }

    /// Forgets what ended more than a year ago among some paths from `from` on. Returns where to go on.
    pub async fn expire(&self, from: Vec<u8>) -> Result<Option<Vec<u8>>, Arc<CollectError>> {
        let (reply, answer) = oneshot::channel();
        let ended = |_| Arc::new(CollectError::Ended);
        self.shared.jobs.send(Job::Expire(from, reply)).await.map_err(|_| ended(()))?;
        answer.await.map_err(|_| ended(()))?
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

    /// The content that lost the conflict with a number.
    pub fn loser(&self, name: &CollectedName, number: u64) -> Result<Loser, CollectError> {
        self.shared.index.loser(name, number)
    }

    /// Gives up contents that lost a conflict: all of them, or none. Blocks.
    pub fn dismiss(&self, name: &CollectedName, numbers: Vec<u64>) -> Result<(), Arc<CollectError>> {
        let (reply, answer) = oneshot::channel();
        let ended = |_| Arc::new(CollectError::Ended);
        self.shared.jobs.blocking_send(Job::Dismiss(name.clone(), numbers, reply)).map_err(|_| ended(()))?;
        answer.blocking_recv().map_err(|_| ended(()))?
    }

    /// Contents that lost a conflict, with their numbers, oldest first.
    pub fn losers(&self, name: &CollectedName) -> Result<Vec<(u64, Loser)>, CollectError> {
        self.shared.index.losers(name)
    }

    /// At most `limit` contents that lost a conflict, with their numbers, newest first.
    pub fn newest_losers(
        &self,
        name: &CollectedName,
        limit: usize,
    ) -> Result<Vec<(u64, Loser)>, CollectError> {
        self.shared.index.newest_losers(name, limit)
    }

    /// The reason that a directory must not be published yet. `None`: nothing would be lost by it.
    pub fn withheld(
        &self,
        options: &CollectedOptions,
        location: &SourceLocation,
        on_nodes: impl FnOnce() -> OnNodes,
    ) -> Option<String> {
        let name = &options.name;
        let is_empty = self.newest(name).is_ok_and(|newest| newest == 0);
        let is_withheld = is_empty
            && match on_nodes() {
                // After a loss of DATA/collected, nodes still have the files of visitors.
                OnNodes::Link => false,
                OnNodes::Nothing => options.has_files(location).unwrap_or(false),
                OnNodes::Files => options.has_files(location).unwrap_or(true),
            };
        is_withheld.then(|| {
            let path = &options.path;
            format!(
                "not linked on the nodes yet: the tree has files in {path}; run `syncd-origin collected adopt {name}`, \
                 then restart the origin"
            )
        })
    }

    /// Changes whenever there are newer versions.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.clone()
    }

    /// Changes whenever [`Self::figures`] of a directory may have changed. Refused files that are no longer
    /// offered go without a signal.
    pub fn figure_changes(&self) -> watch::Receiver<u64> {
        self.shared.figures.clone()
    }

    /// Conflicts, refusals and restores from now on.
    pub fn news(&self) -> broadcast::Receiver<Event> {
        self.shared.news.subscribe()
    }

    /// A person made earlier states current again.
    pub fn restored(&self, name: &CollectedName, files: u64) {
        // Fails only while nobody listens.
        let _ = self.shared.news.send(Event::CollectedRestored { directory: name.to_string(), files });
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

/// Content of the current generation at the path of a collected directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnNodes {
    Link,
    /// A file, or a directory of the tree.
    Files,
    Nothing,
}

impl OnNodes {
    /// An unreadable generation counts as having the link: then nothing is published anyway.
    pub fn of(store: &Store, keys: &Keys, options: &CollectedOptions) -> Self {
        let Ok(latest) = store.latest() else { return Self::Link };
        let Some(latest) = latest else { return Self::Nothing };
        let Ok(latest) = keys.verify(&latest.record, &latest.signature) else { return Self::Link };
        let entry = TreeObjects::Store(store).entry_at(&latest.generation().root, &options.path);
        match entry.map(|entry| entry.map(|entry| entry.kind)) {
            Ok(Some(Kind::Collected { .. })) | Err(_) => Self::Link,
            Ok(Some(Kind::Directory { .. } | Kind::File { .. })) => Self::Files,
            Ok(Some(Kind::Symlink { .. }) | None) => Self::Nothing,
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
