//! A directory as the source of trees: hints of the watch say where to look, the scan looks.

use std::collections::BTreeSet;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use syncd_runtime::progress::Progress;
use syncd_shared::TreePath;

use super::{Changes, OpenFile, Snapshot, SnapshotFate, SnapshotJob, TreeSource};
use crate::scan::{self, Links, Notices, Scan, ScanError, Scope, Withheld};
use crate::watch::{Hints, Reason, Watch};

/// Age from which a file of `--hold-while` is a leftover. WordPress counts the same time.
const HOLD_MAX: Duration = Duration::from_secs(600);
/// Marks a tree of WordPress, which has a file `.maintenance` while it installs anything.
const WORDPRESS: &str = "wp-includes/version.php";
const WORDPRESS_HOLDS_WHILE: &str = ".maintenance";

/// See the module.
pub struct WorkTree {
    tree: PathBuf,
    hold_while: Option<TreePath>,
    watch: Arc<Watch>,
    notices: Notices,
    links: Links,
    /// Changes for the next snapshot.
    pending: Hints,
    /// Scope of the snapshot that has begun.
    scope: Scope,
    /// Files to withhold in the next snapshot.
    withheld: Withheld,
    /// Directories whose times alone changed. They are included in the next scan of anything else.
    times_only: BTreeSet<TreePath>,
    /// Files that must be read again.
    racy: Hints,
    /// Whether the watches are new with the snapshot that has begun, or have lost events.
    watches_anew: bool,
}

impl WorkTree {
    /// The directory `tree`, whose changes `watch` reports.
    pub fn new(tree: PathBuf, watch: Arc<Watch>) -> Self {
        Self {
            tree,
            hold_while: None,
            watch,
            notices: Notices::default(),
            links: Links::default(),
            pending: Hints::default(),
            scope: Hints::default().into(),
            withheld: Withheld::new(),
            times_only: BTreeSet::new(),
            racy: Hints::default(),
            watches_anew: false,
        }
    }
}

impl WorkTree {
    /// Publishes nothing by itself while this file exists. Without one, a tree of WordPress has its own.
    pub fn hold_while(self, hold_while: Option<TreePath>) -> Self {
        Self { hold_while, ..self }
    }
}

/// The names among the hints, and whether there is more.
fn changes_of(hints: &Hints) -> Changes {
    let Hints { directories, subtrees, names, everything } = hints;
    let mut changes = Changes {
        names: Vec::new(),
        others: everything.is_some() || !directories.is_empty() || !subtrees.is_empty(),
        is_poll: *everything == Some(Reason::Polling),
    };
    for (directory, names) in names.iter() {
        changes.others |= names.is_empty();
        changes.names.extend(names.iter().filter_map(|name| directory.join(name).ok()));
    }
    changes
}

impl TreeSource for WorkTree {
    fn changed(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.watch.changed())
    }

    fn take_changes(&mut self) -> Changes {
        let hints = self.watch.take();
        let changes = changes_of(&hints);
        self.pending.merge(hints);
        changes
    }

    fn open_files(&self, idle: Duration) -> Vec<OpenFile> {
        self.watch.open_files(idle)
    }

    fn catch_up(&mut self) {
        self.watch.flush();
        self.pending.merge(self.watch.take());
    }

    fn reread(&mut self) {
        self.pending.merge(Hints::everything(Reason::Requested));
    }

    fn withhold(&mut self, files: Withheld) {
        files.keys().for_each(|path| self.pending.add_path(path));
        self.withheld = files;
    }

    fn begin(&mut self, thorough: bool) -> bool {
        self.watches_anew = self.pending.everything.is_some_and(|reason| reason != Reason::Polling);
        let mut scope = Scope::from(std::mem::take(&mut self.pending));
        if !self.links.is_empty() && !matches!(scope, Scope::Everything) {
            // If TREE is missing, the scan reports it.
            scope.add(self.tree.canonicalize().map(|root| self.links.changed(&root)).unwrap_or_default());
        }
        if thorough || !scope.is_empty() {
            scope.add(std::mem::take(&mut self.racy));
        }
        self.scope = scope;
        !self.scope.is_empty()
    }

    fn snapshot(&mut self, job: &SnapshotJob<'_>) -> Result<Snapshot, ScanError> {
        let started = Instant::now();
        let mut scope = std::mem::replace(&mut self.scope, Hints::default().into());
        scope.add_metadata_of(std::mem::take(&mut self.times_only));
        let everything = matches!(scope, Scope::Everything);
        let progress = if everything { Progress::start("scanning", None) } else { Progress::hidden() };
        let scan = Scan {
            tree: &self.tree,
            writer: job.writer,
            watch: Some(&self.watch),
            options: job.options,
            mounts: job.mounts,
            withheld: &self.withheld,
            links: &self.links,
            notices: &self.notices,
            progress: &progress,
            cancel: job.cancel,
        };
        let outcome = scan::scan(&scan, job.base, scope)?;
        progress.finish();
        if self.watches_anew && !job.options.preview {
            self.watch.look_for_earlier_writers();
        }
        tracing::debug!(
            files_read = outcome.files_read,
            bytes_read = outcome.bytes_read,
            directories = outcome.directories_listed,
            changed = outcome.changed,
            elapsed_ms = started.elapsed().as_millis() as u64,
            "scanned"
        );
        if !job.options.preview {
            self.racy = outcome.racy;
            self.times_only = outcome.times_only;
        }
        let scan::Outcome { root, mounts, changed, records_changed, .. } = outcome;
        Ok(Snapshot { root, mounts, changed, records_changed })
    }

    fn end(&mut self, fate: SnapshotFate) {
        // Withheld files are scanned again, whatever the result.
        std::mem::take(&mut self.withheld).keys().for_each(|path| self.pending.add_path(path));
        match fate {
            SnapshotFate::Kept => {}
            // A failed scan returns its scope to the watch.
            SnapshotFate::Refused => self.pending.merge(self.watch.take()),
            SnapshotFate::Lost => self.reread(),
        }
    }

    fn is_racy(&self) -> bool {
        !self.racy.is_empty()
    }

    fn has_silent_changes(&self) -> bool {
        !self.links.is_empty()
    }

    fn reads_everything(&self) -> bool {
        self.pending.everything.is_some()
    }

    fn pending(&self) -> Vec<TreePath> {
        let Hints { names, directories, subtrees, .. } = &self.pending;
        let names = names
            .iter()
            .flat_map(|(directory, names)| names.iter().filter_map(|name| directory.join(name).ok()));
        names.chain(directories.iter().cloned()).chain(subtrees.iter().cloned()).collect()
    }

    fn held_while(&self) -> Option<TreePath> {
        let of_wordpress =
            || TreePath::from_bytes(WORDPRESS_HOLDS_WHILE.as_bytes()).ok().filter(|_| self.is_wordpress());
        let path = self.hold_while.clone().or_else(of_wordpress)?;
        let changed = path.below(&self.tree).symlink_metadata().ok()?.modified().ok()?;
        // A time in the future counts as now.
        (changed.elapsed().unwrap_or_default() < HOLD_MAX).then_some(path)
    }
}

impl WorkTree {
    fn is_wordpress(&self) -> bool {
        self.tree.join(WORDPRESS).is_file()
    }
}
