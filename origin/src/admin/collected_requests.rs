//! Requests about collected directories.

use std::path::PathBuf;
use std::sync::Arc;

use indicatif::HumanBytes;
use serde::{Deserialize, Serialize};
use syncd_shared::TreePath;
use syncd_shared::collected::{CollectedName, CollectedNameError, Loser, State};
use syncd_shared::text::{counted, rfc3339};
use syncd_shared::tree_path::TreePathError;

use super::protocol::Reply;
use crate::collected::{CollectError, CollectedOptions, Collection, HistoryVersion, Moved, OnNodes};
use crate::error_chain;
use crate::source::SourceLocation;

/// Paths left out that an answer names.
const NAMED_MAX: usize = 20;

/// `collected`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum CollectedAction {
    List,
    Conflicts { name: Option<String> },
    History { name: String, path: String },
    Restore { name: String, what: RestoreWhat },
    Dismiss { name: String, conflicts: Vec<u64> },
    Adopt { name: String, directory: Option<PathBuf> },
    Release { name: String, directory: PathBuf },
}

impl CollectedAction {
    pub fn only_reads(&self) -> bool {
        matches!(self, Self::List | Self::Conflicts { .. } | Self::History { .. })
    }
}

/// The versions that become current again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "restore", rename_all = "snake_case")]
pub enum RestoreWhat {
    /// A version of a path.
    Version { path: String, number: u64 },
    /// A content that lost a conflict.
    Conflict { number: u64 },
    /// The states at a moment, at a path and below it.
    Before {
        path: Option<String>,
        at_ms: u64,
        /// Only where this node made the current version.
        node: Option<String>,
    },
}

/// Reasons that a request failed.
#[derive(Debug, thiserror::Error)]
pub enum CollectedRequestError {
    #[error("this origin collects no directory: a table [collect.NAME] of its configuration sets one up")]
    None,
    #[error(transparent)]
    Name(#[from] CollectedNameError),
    #[error("the path")]
    Path(#[from] TreePathError),
    #[error(transparent)]
    Collect(#[from] CollectError),
    #[error(transparent)]
    Shared(#[from] Arc<CollectError>),
    #[error("{path} has no version {number}: `syncd-origin collected history` lists them")]
    NoVersion { path: TreePath, number: u64 },
    #[error(
        "the repository {tree} has no work tree to take {path} from: write it to a directory by `git -C {tree} archive \
         {reference} {path} | tar -x -C DIR`, then run `syncd-origin collected adopt {name} DIR/{path}`"
    )]
    NoCheckout { name: CollectedName, path: TreePath, reference: String, tree: String },
    #[error("no origin serves this data directory: start `syncd-origin serve` first")]
    NotServing,
}

/// A collected directory, for `status` and `collected list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectedLine {
    pub name: String,
    /// Path in the tree; `None`: no table of the configuration has the name.
    pub path: Option<String>,
    /// Current files.
    pub files: u64,
    /// Bytes of all current files.
    pub bytes: u64,
    pub max_bytes: Option<u64>,
    /// Contents that lost a conflict.
    pub conflicts: u64,
    /// Files of nodes that rules or quota refuse now.
    pub refused: u64,
    /// Reason that the nodes have no link to it yet.
    pub withheld: Option<String>,
}

impl CollectedLine {
    /// Whether everything that nodes offer is taken.
    pub fn takes_everything(&self) -> bool {
        self.refused == 0 && self.max_bytes.is_none_or(|most| self.bytes < most)
    }

    /// One line, without a line feed.
    pub fn to_text(&self) -> String {
        let Self { name, path, files, bytes, max_bytes, conflicts, refused, withheld } = self;
        let of = max_bytes.map(|most| format!(" of {}", HumanBytes(most))).unwrap_or_default();
        let path = path.as_deref().unwrap_or("not configured");
        let files = counted(*files, "file", "files");
        let mut text = format!("{name} ({path})   {files}, {}{of}", HumanBytes(*bytes));
        for (number, one, many) in
            [(*conflicts, "conflict", "conflicts"), (*refused, "refused file", "refused files")]
        {
            if number > 0 {
                text += &format!("   {}", counted(number, one, many));
            }
        }
        if let Some(reason) = withheld {
            text += &format!("   {reason}");
        }
        text
    }
}

/// A content that lost a conflict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictLine {
    /// As accepted by `collected restore --conflict`.
    pub conflict: u64,
    pub name: String,
    pub path: String,
    /// The node that sent it.
    pub node: String,
    pub bytes: u64,
    /// When it arrived, RFC 3339.
    pub at: String,
    pub content: String,
}

impl ConflictLine {
    pub fn new(name: &CollectedName, (number, loser): &(u64, Loser)) -> Self {
        Self {
            conflict: *number,
            name: name.to_string(),
            path: loser.path.to_string(),
            node: loser.node.clone(),
            bytes: loser.file.size,
            at: time(loser.at_ms),
            content: loser.file.content.to_string(),
        }
    }

    pub fn to_text(&self) -> String {
        let Self { conflict, name, path, node, bytes, at, .. } = self;
        format!("{conflict:6}  {at}  {:>11}  {node}  {name}/{path}", HumanBytes(*bytes).to_string())
    }
}

/// A version of a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionLine {
    /// As accepted by `collected restore --version`.
    pub version: u64,
    /// `file`, `directory` or `absent`.
    pub kind: String,
    pub bytes: Option<u64>,
    /// Hash of the content, hexadecimal.
    pub content: Option<String>,
    /// The node that made it.
    pub node: String,
    /// RFC 3339.
    pub since: String,
    /// RFC 3339; `None`: it is current.
    pub until: Option<String>,
    /// Whether the content is still here.
    pub kept: bool,
}

impl VersionLine {
    fn new(of: &HistoryVersion) -> Self {
        let (kind, bytes) = match of.version.state {
            State::Absent => ("absent", None),
            State::Directory { .. } => ("directory", None),
            State::File(file) => ("file", Some(file.size)),
        };
        Self {
            version: of.version.number.get(),
            kind: kind.to_owned(),
            bytes,
            content: of.version.state.content().map(|content| content.to_string()),
            node: of.node.clone(),
            since: time(of.since_ms),
            until: of.until_ms.map(time),
            kept: of.is_kept,
        }
    }

    pub fn to_text(&self) -> String {
        let Self { version, kind, bytes, node, since, until, kept, .. } = self;
        let bytes = bytes.map_or_else(|| kind.clone(), |bytes| HumanBytes(bytes).to_string());
        let until = until.as_ref().map_or("current".to_owned(), |until| format!("until {until}"));
        let given_up = if *kept { "" } else { ", given up for lack of room" };
        format!("{version:6}  {since}  {bytes:>11}  {node}  {until}{given_up}")
    }
}

fn time(ms: u64) -> String {
    rfc3339(i64::try_from(ms - ms % 1000).unwrap_or(i64::MAX))
}

/// The tree that an origin serves.
#[derive(Clone, Copy)]
pub struct Served<'a> {
    pub location: &'a SourceLocation,
    pub on_nodes: &'a dyn Fn(&CollectedOptions) -> OnNodes,
}

/// Describes all directories. `served`: `None` while no origin serves.
pub fn describe(
    collection: &Collection,
    served: Option<Served<'_>>,
) -> Result<Vec<CollectedLine>, CollectError> {
    let line = |name: &CollectedName| {
        let (figures, options) = (collection.figures(name)?, collection.directory(name).ok());
        let withheld = options.zip(served).and_then(|(options, Served { location, on_nodes })| {
            let missing = options.check_parent(location).err().map(|error| error_chain(&error));
            missing.or_else(|| collection.withheld(options, location, || on_nodes(options)))
        });
        Ok(CollectedLine {
            name: name.to_string(),
            path: options.map(|options| options.path.to_string()),
            files: figures.files,
            bytes: figures.bytes,
            max_bytes: options.map(|options| options.max_bytes),
            conflicts: figures.conflicts,
            refused: figures.refused,
            withheld,
        })
    };
    collection.names()?.iter().map(line).collect()
}

/// Answers a request. `served`: `None` while no origin serves. Blocks.
pub fn answer(
    collection: Option<Collection>,
    served: Option<Served<'_>>,
    action: CollectedAction,
    lines: &mut dyn FnMut(Reply) -> bool,
) -> Result<(), CollectedRequestError> {
    let collection = collection.ok_or(CollectedRequestError::None)?;
    match action {
        CollectedAction::List => {
            for line in describe(&collection, served)? {
                lines(Reply::Collected(line));
            }
        }
        CollectedAction::Conflicts { name } => {
            let names = match name {
                Some(name) => vec![name.parse()?],
                None => collection.names()?,
            };
            for name in names {
                for loser in collection.losers(&name)? {
                    lines(Reply::Conflict(ConflictLine::new(&name, &loser)));
                }
            }
        }
        CollectedAction::History { name, path } => {
            for version in collection.history(&name.parse()?, &TreePath::from_bytes(path.as_bytes())?)? {
                lines(Reply::Version(VersionLine::new(&version)));
            }
        }
        CollectedAction::Restore { name, what } => {
            served.ok_or(CollectedRequestError::NotServing)?;
            let name = name.parse()?;
            let changes = restored(&collection, &name, what)?;
            let moved = collection.submit_all(&name, changes)?;
            collection.restored(&name, moved.files);
            told(&moved, "restored", lines);
        }
        CollectedAction::Dismiss { name, mut conflicts } => {
            served.ok_or(CollectedRequestError::NotServing)?;
            conflicts.sort_unstable();
            conflicts.dedup();
            let count = conflicts.len() as u64;
            collection.dismiss(&name.parse()?, conflicts)?;
            lines(Reply::Remark { text: format!("{}: dismissed", counted(count, "conflict", "conflicts")) });
        }
        CollectedAction::Adopt { name, directory } => {
            let (served, name) = (served.ok_or(CollectedRequestError::NotServing)?, name.parse()?);
            let options = collection.directory(&name)?;
            let from = directory.map_or_else(|| usual_place(options, served.location), Ok)?;
            told(&collection.adopt(&name, &from)?, "adopted", lines);
        }
        CollectedAction::Release { name, directory } => {
            told(&collection.release(&name.parse()?, &directory)?, "written", lines);
        }
    }
    Ok(())
}

/// The place in the tree. A bare repository has none.
fn usual_place(
    options: &CollectedOptions,
    location: &SourceLocation,
) -> Result<PathBuf, CollectedRequestError> {
    let (name, path, tree) = (options.name.clone(), &options.path, location.tree.display().to_string());
    let place = location.place(path);
    match &location.git {
        Some(git) if !place.is_dir() => {
            let (reference, path) = (git.reference.clone(), path.clone());
            Err(CollectedRequestError::NoCheckout { name, path, reference, tree })
        }
        _ => Ok(place),
    }
}

fn told(moved: &Moved, done: &str, lines: &mut dyn FnMut(Reply) -> bool) {
    for text in moved.left_out.iter().take(NAMED_MAX) {
        lines(Reply::Remark { text: format!("left out: {text}") });
    }
    let more = moved.left_out.len().saturating_sub(NAMED_MAX) as u64;
    if more > 0 {
        lines(Reply::Remark { text: format!("left out: {} more", counted(more, "path", "paths")) });
    }
    lines(Reply::Remark { text: format!("{}: {done}", counted(moved.files, "file", "files")) });
}

/// The changes that a restore makes. Removals come first, the deepest before the others.
fn restored(
    collection: &Collection,
    name: &CollectedName,
    what: RestoreWhat,
) -> Result<Vec<(TreePath, State)>, CollectedRequestError> {
    match what {
        RestoreWhat::Version { path, number } => {
            let path = TreePath::from_bytes(path.as_bytes())?;
            let history = collection.history(name, &path)?;
            let found = history.iter().find(|one| one.version.number.get() == number);
            let state = found.map(|one| one.version.state);
            let state = state.ok_or(CollectedRequestError::NoVersion { path: path.clone(), number })?;
            Ok(vec![(path, state)])
        }
        RestoreWhat::Conflict { number } => {
            let loser = collection.loser(name, number)?;
            Ok(vec![(loser.path, State::File(loser.file))])
        }
        RestoreWhat::Before { path, at_ms, node } => {
            let below = path.map_or(Ok(TreePath::root()), |path| TreePath::from_bytes(path.as_bytes()))?;
            let (mut removed, mut made) = (Vec::new(), Vec::new());
            for (path, chain, by) in collection.chains(name, &below)? {
                let (now, then) = (chain.current().state, chain.state_at(at_ms));
                if now == then || node.as_ref().is_some_and(|node| *node != by) {
                    continue;
                }
                if then == State::Absent { &mut removed } else { &mut made }.push((path, then));
            }
            removed.reverse();
            removed.extend(made);
            Ok(removed)
        }
    }
}
