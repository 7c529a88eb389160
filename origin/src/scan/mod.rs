//! Scans the content tree into directory objects and content in the store.
//!
//! [`scan`] examines the parts named by hints of the watch, or the whole tree. It takes the rest from the
//! base, and returns the current root. Only files that differ from their stat record (`stat_record`) are
//! read. A partial scan costs the number of changed names and, in memory, the entries of changed directories
//! and of those above them. A directory is listed if more than a few of its names may have changed or if its
//! state is doubtful (`known_directory`).
//!
//! One pass (`walk`) lists directories, has a few threads read files (`pool`, `content`), and builds
//! directory objects from the leaves up. Anything that changed, vanished or was torn during a pass is
//! examined by another one, until nothing changes.
//!
//! **State.** None of its own. Objects, content and stat records go to the store's writer, and become durable
//! when the caller seals or saves it. **Base.** The base must be the root that the stat records belong to:
//! that of the last scan that was sealed, or saved without a change. After a rollback this is not the newest
//! generation's root. **After a crash** only invisible data of the writer remains.

mod collected_places;
mod content;
mod content_paths;
mod error;
mod file_stat;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub(crate) mod guard;
mod known_directory;
mod links;
mod listing;
mod notices;
mod pending;
mod pool;
mod private_names;
mod scope;
mod stat_record;
mod stat_rows;
mod symlink_target;
mod task;
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use syncd_runtime::progress::Progress;
use syncd_shared::{Entry, RootEntry, TreePath};
use tokio_util::sync::CancellationToken;
use tracing::debug;

pub use collected_places::CollectedPlaces;
pub(crate) use content::ContentWriter;
pub(crate) use content_paths::tell as tell_contents;
pub use error::{Paths, ScanError};
pub use links::Links;
pub(crate) use listing::OpenDirectory;
pub use notices::Notices;
pub use scope::Scope;
pub(crate) use symlink_target::leaves_tree;

use crate::store::Writer;
use crate::tree_objects::TreeObjects;
use crate::watch::{Hints, Prepared, Reason, Watch};
use scope::Plan;
use walk::{Pass, Walked};

/// Number of passes before a scan gives up on a tree that keeps changing.
pub const PASSES_MAX: u32 = 10;
/// Pause before the third pass; doubled for each further pass.
const PAUSE: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// Source of a file's modification time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum MtimePolicy {
    /// The time in the content tree.
    #[default]
    Tree,
    /// The time already published if content and mode are unchanged, otherwise the time in the content
    /// tree.
    Keep,
    /// The time already published if the content is unchanged, otherwise a later second than before, so that
    /// PHP, browsers and caches notice the change.
    Distinct,
}

/// Symlinks to publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum SymlinkPolicy {
    /// All symlinks, unchanged.
    #[default]
    Verbatim,
    /// Only symlinks that stay in the tree: any other makes publishing fail.
    Inside,
}

/// Options of a scan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScanOptions {
    pub mtime: MtimePolicy,
    pub symlinks: SymlinkPolicy,
    /// Published as collected directories, whatever the tree has there.
    pub collected: CollectedPlaces,
    /// Publishes even a tree that has lost most of its content.
    pub allow_mass_deletion: bool,
    /// Reads files again even if their stat records match.
    pub read_all: bool,
    /// Looks without guards at a tree that is not kept: the next scan finds the same again.
    pub preview: bool,
}

/// Inputs of a scan.
#[derive(Clone, Copy)]
pub struct Scan<'a> {
    /// TREE, resolved again by every scan.
    pub tree: &'a Path,
    /// Receives objects, content and stat records.
    pub writer: &'a Writer,
    /// Watches every directory before it is listed, and reports changes meanwhile.
    pub watch: Option<&'a Watch>,
    pub options: &'a ScanOptions,
    /// The mount points of the base's scan ([`Outcome::mounts`]).
    pub mounts: &'a BTreeSet<PathBuf>,
    /// Files that are taken from the current generation, whatever their state; `None` if not published yet.
    pub withheld: &'a Withheld,
    /// Files with several names, known from earlier scans.
    pub links: &'a Links,
    /// Warnings already given.
    pub notices: &'a Notices,
    /// Counts the files to be read.
    pub progress: &'a Progress,
    /// Cancels the scan, which returns [`ScanError::Cancelled`].
    pub cancel: &'a CancellationToken,
}

/// Files that are still being written, with their entries in the current generation.
pub type Withheld = BTreeMap<TreePath, Option<Entry>>;

/// Result of a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The current tree, or the base if nothing changed.
    pub root: RootEntry,
    /// Whether anything but directory times differs from the base. If so, seal `root`; otherwise, save the
    /// writer if `records_changed`.
    pub changed: bool,
    /// Directories whose times alone changed. To be added to the scope of the next scan
    /// ([`Scope::add_metadata_of`]). Empty if `changed`.
    pub times_only: BTreeSet<TreePath>,
    /// Files that changed so shortly before they were read that a further change may be invisible. To be
    /// scanned again after [`RACY_DELAY`].
    pub racy: Hints,
    pub records_changed: bool,
    /// Mount points in the tree and the one of the tree itself. Empty without a watch.
    pub mounts: BTreeSet<PathBuf>,
    /// Whether the whole tree was walked without being requested, and why.
    pub walked: Option<Reason>,
    /// Files read, in all passes.
    pub files_read: u64,
    /// Bytes read from them.
    pub bytes_read: u64,
    /// Directories listed, in all passes.
    pub directories_listed: u64,
    /// Devices, sockets and fifos. A warning was given once for each.
    pub skipped: BTreeSet<TreePath>,
    /// Number of passes.
    pub passes: u32,
}

/// Time after which no timestamp is ambiguous, even on file systems that store whole seconds.
pub const RACY_DELAY: Duration = Duration::from_millis(2_100);

/// Scans the tree. Blocks for long, so it needs its own thread.
///
/// After an error or a preview the watch holds the scope of the scan and the hints that the scan had taken.
///
/// # Errors
/// See [`ScanError`]. The writer must be dropped then.
pub fn scan(scan: &Scan<'_>, base: Option<RootEntry>, scope: Scope) -> Result<Outcome, ScanError> {
    let mut taken = hints_of(&scope);
    let result = settle(scan, base, scope, &mut taken);
    let is_kept = result.is_ok() && !scan.options.preview;
    if is_kept {
        scan.notices.tell_private();
    } else {
        scan.notices.forget_private();
    }
    if let Some(watch) = scan.watch.filter(|_| !is_kept) {
        watch.put_back(taken);
    }
    result
}

fn hints_of(scope: &Scope) -> Hints {
    match scope {
        Scope::Everything => Hints::everything(Reason::Start),
        Scope::Parts { directories, subtrees, names } => Hints {
            directories: directories.clone(),
            subtrees: subtrees.clone(),
            names: names.clone(),
            everything: None,
        },
    }
}

/// Makes passes until nothing changes any more.
fn settle(
    scan: &Scan<'_>,
    base: Option<RootEntry>,
    scope: Scope,
    taken: &mut Hints,
) -> Result<Outcome, ScanError> {
    let mut scope = scope;
    let mut sum = Sum::default();
    let mut current = base;
    let mut mounts = scan.mounts.clone();
    for pass in 1..=PASSES_MAX {
        if pass > 2 {
            pause(PAUSE.saturating_mul(1 << (pass - 3)).min(PAUSE_MAX), scan.cancel)?;
        }
        let prepared = prepare(scan, matches!(scope, Scope::Everything) || pass == 1)?;
        mounts = prepared.mounts.unwrap_or(mounts);
        let directory = prepared.root;
        if let Some(reason) = prepared.everything {
            scope = Scope::Everything;
            taken.merge(Hints::everything(reason));
            sum.walked = sum.walked.or(Some(reason));
        }
        let walked = one_pass(scan, &directory, current, &scope)?;
        let again = walked.again.clone();
        let moving = walked.moving.clone();
        let root = walked.root.ok_or_else(|| missing(scan.tree, rustix::io::Errno::NOENT.into()))?;
        current = Some(root);
        sum.add(walked, pass);
        let mut hints = moved_meanwhile(scan.watch)?;
        if matches!(scope, Scope::Everything) {
            scan.links.all_known();
        } else if scan.links.has_unknown() {
            hints.merge(Hints::everything(Reason::HardLinks));
        }
        taken.merge(hints.clone());
        hints.merge(again);
        // Withheld files keep changing and are not read.
        scan.withheld.keys().for_each(|path| hints.remove_name(path));
        if hints.is_empty() {
            if let Some(base) = base.filter(|_| !scan.options.allow_mass_deletion && !scan.options.preview) {
                let objects = TreeObjects::Writer(scan.writer);
                guard::check_mounts(objects, &directory, (scan.mounts, &mounts), (&base, &root))?;
                guard::check_totals(objects, &base, &root)?;
            }
            return Ok(sum.outcome(base, root, mounts));
        }
        debug!(pass, ?hints, "the tree changed while it was scanned");
        if pass == PASSES_MAX {
            return Err(unsettled(&hints, moving));
        }
        sum.walked = sum.walked.or(hints.everything);
        scope = hints.into();
    }
    Err(unsettled(&Hints::default(), BTreeSet::new()))
}

/// Resolves the tree. The result includes a reason if everything must be examined.
fn prepare(scan: &Scan<'_>, look: bool) -> Result<Prepared, ScanError> {
    let prepared = match scan.watch {
        Some(watch) if look => watch.prepare(),
        _ => scan.tree.canonicalize().map(|root| Prepared { root, everything: None, mounts: None }),
    };
    prepared.map_err(|source| missing(scan.tree, source))
}

fn missing(tree: &Path, source: std::io::Error) -> ScanError {
    ScanError::TreeMissing { path: tree.to_path_buf(), source }
}

fn one_pass(
    scan: &Scan<'_>,
    root: &Path,
    base: Option<RootEntry>,
    scope: &Scope,
) -> Result<Walked, ScanError> {
    let pass = Pass {
        root,
        moved: walk::moved(scan.writer, scope)?,
        writer: scan.writer,
        watch: scan.watch,
        options: scan.options,
        withheld: scan.withheld,
        links: scan.links,
        notices: scan.notices,
        progress: scan.progress,
        cancel: scan.cancel,
    };
    walk::walk(&pass, base, &Plan::of(scope))
}

/// Hints since the last call. An error means that changes are unknown; it is not a sign of unrest in the
/// tree.
fn moved_meanwhile(watch: Option<&Watch>) -> Result<Hints, ScanError> {
    let Some(watch) = watch else { return Ok(Hints::default()) };
    watch.barrier()?;
    watch.look_at_mounts();
    Ok(watch.take())
}

fn pause(duration: Duration, cancel: &CancellationToken) -> Result<(), ScanError> {
    let until = Instant::now() + duration;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        if cancel.is_cancelled() {
            return Err(ScanError::Cancelled);
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
    Ok(())
}

fn unsettled(hints: &Hints, moving: BTreeSet<TreePath>) -> ScanError {
    let mut paths: Vec<TreePath> = moving.into_iter().collect();
    paths.extend(hints.places().cloned());
    if hints.everything.is_some() {
        paths.push(TreePath::root());
    }
    ScanError::Unsettled { paths: Paths(paths) }
}

/// Sums over the passes of one scan.
#[derive(Default)]
struct Sum {
    real: bool,
    times_only: BTreeSet<TreePath>,
    racy: Hints,
    skipped: BTreeSet<TreePath>,
    records_changed: bool,
    walked: Option<Reason>,
    files_read: u64,
    bytes_read: u64,
    directories_listed: u64,
    passes: u32,
}

impl Sum {
    fn add(&mut self, walked: Walked, pass: u32) {
        self.passes = pass;
        self.real |= walked.real;
        self.records_changed |= walked.records_changed;
        self.times_only.extend(walked.times_only);
        self.racy.merge(walked.racy);
        self.skipped.extend(walked.skipped);
        self.files_read += walked.files_read;
        self.bytes_read += walked.bytes_read;
        self.directories_listed += walked.directories_listed;
    }

    fn outcome(self, base: Option<RootEntry>, root: RootEntry, mounts: BTreeSet<PathBuf>) -> Outcome {
        let changed = base.is_none() || (self.real && base != Some(root));
        Outcome {
            root: base.filter(|_| !changed).unwrap_or(root),
            changed,
            times_only: if changed { BTreeSet::new() } else { self.times_only },
            racy: self.racy,
            records_changed: self.records_changed,
            mounts,
            walked: self.walked,
            files_read: self.files_read,
            bytes_read: self.bytes_read,
            directories_listed: self.directories_listed,
            skipped: self.skipped,
            passes: self.passes,
        }
    }
}

#[cfg(test)]
mod tests;
