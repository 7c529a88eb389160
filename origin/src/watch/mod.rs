//! Watches the content tree for names that may have changed, so that a scan need not look at the others.
//!
//! Events are hints: they name a possible change in a directory, or only the directory. The scan determines
//! the truth. One instance of the kernel's notification interface has one non-recursive watch per directory,
//! which the scan installs right BEFORE it lists that directory, as well as watches on DATA/cookies and on
//! the parents of TREE's turning points (`location`). Events arrive in the order of the changes. The event of
//! a cookie (a file created in DATA/cookies) therefore proves that all earlier ones have arrived
//! ([`Watch::flush`]).
//!
//! **Access.** The watcher's own thread calls `state::State::apply` and never waits. The scan calls
//! [`Watch::prepare`], [`Watch::directory`], [`Watch::forget_subtree`] and [`Watch::barrier`] from its
//! thread. One task waits in [`Watch::changed`]. Locks are taken in the order watcher, state. Nothing here is
//! persistent: after a start everything counts as changed, and a crash leaves at most a cookie, which the
//! next start removes.
//!
//! **Fallbacks.** The whole tree is walked after lost events, an error of the watcher, a replaced TREE, or
//! changed mounts. The watcher is then replaced, because the paths of its watches may be wrong. Subtrees on
//! file systems that do not report changes are polled, and so is the whole tree when watches run out.

#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod hints;
mod location;
mod mount_events;
pub(crate) mod mounts;
mod names;
mod open_files;
mod state;
mod writers;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use notify::event::EventKindMask;
use notify::{ErrorKind, INotifyWatcher, RecursiveMode, WatchPathConfig, Watcher};
use syncd_shared::TreePath;
use tokio::sync::Notify;
use tracing::{debug, info, warn};

pub use hints::{Hints, PollReason, Polled, Reason};

use crate::metrics::metrics;
use location::Location;
use mount_events::MountEvents;
use mounts::Mounts;
pub use names::Names;
pub use open_files::OpenFile;
use open_files::OpenFiles;
use state::State;

/// Directory of cookies in DATA.
pub const COOKIES_DIRECTORY: &str = "cookies";
/// Time after which a walk is cheaper than waiting for a cookie's event.
pub const COOKIE_DEADLINE: Duration = Duration::from_secs(10);

/// Errors of starting a watch.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// DATA/cookies cannot be created or emptied.
    #[error("cannot prepare {path}: check that the data directory is writable")]
    Cookies {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The path of the tree is relative and the current directory is gone.
    #[error("cannot make {path} absolute: give --tree an absolute path")]
    Tree {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A cookie could not be created, so it is unknown whether all events have arrived.
#[derive(Debug, thiserror::Error)]
#[error("cannot make {path}: check that the data directory is writable")]
pub struct CookieError {
    /// Path of the cookie.
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Watches one content tree.
#[derive(Debug)]
pub struct Watch {
    tree: PathBuf,
    cookies: PathBuf,
    poll: Duration,
    watcher: Mutex<Instance>,
    shared: Arc<Shared>,
    /// `None` if the kernel's table cannot be read.
    _mount_events: Option<MountEvents>,
}

#[derive(Debug, Default)]
struct Instance {
    watcher: Option<INotifyWatcher>,
    cookies_watched: bool,
    cookies_made: u64,
    identity: Option<(u64, u64)>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    cookie: Condvar,
    hinted: Notify,
    newcomer: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies an event of one inotify instance, unless another has taken its place.
    fn heard(&self, instance: u64, event: notify::Result<notify::Event>) {
        let mut state = self.state();
        if state.instance != instance {
            return;
        }
        let cookie = state.cookie_seen;
        state.apply(event, Instant::now());
        if state.cookie_seen != cookie || state.replace {
            self.cookie.notify_all();
        }
        if !state.hints.is_empty() {
            self.hinted.notify_one();
        }
        if state.newcomers.as_ref().is_some_and(|newcomers| !newcomers.is_empty()) {
            self.newcomer.notify_all();
        }
    }

    /// Hints at everything if the mounts have changed since the last scan.
    fn look_at_mounts(&self) {
        let Some(root) = self.state().root.clone() else { return };
        let mounts = Mounts::of(&root);
        let mut state = self.state();
        // A concurrent scan has just replaced the compared value, or detects the change itself.
        if state.root.as_ref() == Some(&root) && state.mounts != mounts && !state.replace {
            state.lost(Reason::Mounts);
            self.hinted.notify_one();
        }
    }
}

/// The location of the tree at the start of a scan.
#[derive(Debug)]
pub struct Prepared {
    /// Its directory, without symlinks.
    pub root: PathBuf,
    /// Reason that this scan must look at everything, whatever the hints.
    pub everything: Option<Reason>,
    /// Absolute mount points in the tree and of the tree itself; `None` if they were not read.
    pub mounts: Option<BTreeSet<PathBuf>>,
}

impl Watch {
    /// Watches `tree`, which need not exist yet, with cookies in `data`. Initially hints at everything.
    /// `poll` is the interval at which [`Watch::changed`] hints at polled subtrees.
    pub fn start(tree: &Path, data: &Path, poll: Duration) -> Result<Self, WatchError> {
        let tree = std::path::absolute(tree)
            .map_err(|source| WatchError::Tree { path: tree.to_path_buf(), source })?;
        let cookies = data.join(COOKIES_DIRECTORY);
        let cookies = prepare_cookies(&cookies)
            .map_err(|source| WatchError::Cookies { path: cookies.clone(), source })?;
        let mut state = State::new(cookies.clone());
        state.replace = true;
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            cookie: Condvar::new(),
            hinted: Notify::new(),
            newcomer: Condvar::new(),
        });
        let of_mounts = Arc::clone(&shared);
        let mount_events = MountEvents::start(move || of_mounts.look_at_mounts())
            .inspect_err(|error| warn!(%error, "mounts are compared at each commit only"));
        let watcher = Mutex::default();
        let watch = Self { tree, cookies, poll, watcher, shared, _mount_events: mount_events.ok() };
        // If the tree does not exist yet, this installs the watches that detect its creation.
        let _ = watch.prepare();
        Ok(watch)
    }

    /// Resolves the tree again, and replaces the watcher if its paths may be wrong. Every scan starts with
    /// this.
    ///
    /// # Errors
    /// TREE is not a directory or cannot be resolved.
    pub fn prepare(&self) -> io::Result<Prepared> {
        let mut instance = self.instance();
        let location = Location::of(&self.tree);
        let identity = location.root.as_ref().ok().and_then(|root| identity(root));
        let mounts = location.root.as_ref().ok().map(|root| Mounts::of(root));
        let mut everything = None;
        let (replace, news) = {
            let mut state = self.shared.state();
            let moved = state.turning_points != location.turning_points
                || state.root.as_ref() != location.root.as_ref().ok()
                || instance.identity != identity;
            // Directories below a new mount differ from the ones that are watched under their paths.
            let news = mounts.clone().filter(|mounts| moved || state.mounts != *mounts);
            if moved {
                everything = Some(Reason::TreeReplaced);
            } else if news.is_some() {
                everything = Some(Reason::Mounts);
            } else if state.replace {
                everything = Some(Reason::Watcher);
            }
            match state.unwatched.take() {
                // The walk retries the missing watches. Polling ends once none is refused.
                Some(_) => everything = everything.or(Some(Reason::Polling)),
                None if state.told.take().is_some() => info!("no longer polling the whole tree"),
                None => {}
            }
            let broken = instance.watcher.is_none() || !instance.cookies_watched;
            if let Some(news) = &news {
                state.unreported = news.polled();
                state.mounts = news.clone();
            }
            (state.replace || moved || broken || news.is_some(), news)
        };
        if replace {
            self.replace(&mut instance, &location, identity);
        }
        let root = location.root?;
        if let Some(news) = news {
            for (path, reason) in news.polled() {
                warn!(%path, every = ?self.poll, "polling, and walking before every commit: {reason}");
            }
        }
        Ok(Prepared { root, everything, mounts: mounts.map(|mounts| mounts.points().clone()) })
    }

    /// Watches a directory of the tree. Must be called before it is listed. Cheap if it is already watched.
    /// Failures are not errors: a directory that cannot be watched is polled, and one that is gone is noticed
    /// when it is listed.
    pub fn directory(&self, path: &TreePath) {
        let mut instance = self.instance();
        let (stale, absolute) = {
            let mut state = self.shared.state();
            let stale = std::mem::take(&mut state.stale);
            let Some(root) = state.root.clone() else { return };
            let refused = matches!(
                state.unwatched,
                Some(PollReason::OutOfWatches { .. } | PollReason::OutOfInstances { .. })
            );
            // Inserted before the watch is installed, because an event that removes the watch must find the
            // entry.
            let wanted = !refused && !state.watched.contains(path);
            if wanted {
                state.watched.insert(path.clone());
            }
            (stale, wanted.then(|| path.below(&root)))
        };
        let Some(watcher) = instance.watcher.as_mut() else { return };
        for path in stale {
            // Fails for most of them, whose watches are gone already.
            let _ = watcher.unwatch(&path);
        }
        let Some(absolute) = absolute else { return };
        if let Err(error) = watch_one(watcher, &absolute) {
            self.refused(path, &error);
        }
    }

    /// Drops the watches of a directory that is no longer in the tree, and of everything below it.
    pub fn forget_subtree(&self, path: &TreePath) {
        self.shared.state().forget(path);
    }

    /// Takes the hints collected since the last call.
    pub fn take(&self) -> Hints {
        std::mem::take(&mut self.shared.state().hints)
    }

    /// Returns hints that could not be followed, for example because a scan failed. Wakes nobody.
    pub fn put_back(&self, hints: Hints) {
        self.shared.state().hints.merge(hints);
    }

    /// Files that were written and not closed, without those unwritten for `idle`.
    pub fn open_files(&self, idle: Duration) -> Vec<OpenFile> {
        self.shared.state().open.within(idle, Instant::now())
    }

    /// Collects newcomers from now on, or no longer, which ends [`Watch::newcomers`].
    pub fn collect_newcomers(&self, collect: bool) {
        self.shared.state().newcomers = collect.then(BTreeSet::new);
        self.shared.newcomer.notify_all();
    }

    /// Waits for directories that were made, and names that were moved into a watched directory. Blocks until
    /// there are some; `None` if they are not collected.
    pub fn newcomers(&self) -> Option<BTreeSet<TreePath>> {
        let mut state = self.shared.state();
        loop {
            match state.newcomers.as_mut() {
                None => return None,
                Some(newcomers) if !newcomers.is_empty() => return Some(std::mem::take(newcomers)),
                Some(_) => {}
            }
            state = self.shared.newcomer.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The tree's directory without symlinks, as of the last scan; `None` if there was none.
    pub fn root(&self) -> Option<PathBuf> {
        self.shared.state().root.clone()
    }

    /// Looks for processes that have files at and below these paths open for writing, of which no event may
    /// have told. Files that are no longer open are forgotten, if this process may look at all others.
    pub fn look_for_writers(&self, paths: &BTreeSet<TreePath>) {
        let Some(root) = self.root() else { return };
        let mut found = writers::of(&root);
        let add = |found: &writers::Writers| {
            let mut state = self.shared.state();
            paths.iter().for_each(|path| state.open.found(path, &found.open(), found.all));
        };
        add(&found);
        // An event of a close before that is lost.
        if found.forget_closed() {
            add(&found);
        }
    }

    /// Looks for files of the tree that were opened for writing before there were watches. A process of
    /// another container is not seen, so files that events know of are not forgotten.
    pub fn look_for_earlier_writers(&self) {
        let Some(root) = self.root() else { return };
        let mut found = writers::of(&root);
        let everywhere = TreePath::root();
        self.shared.state().open.found(&everywhere, &found.open(), false);
        // An event of a close before that is lost.
        let before = found.open();
        if found.forget_closed() {
            let now = found.open();
            let mut state = self.shared.state();
            before.keys().filter(|path| !now.contains_key(*path)).for_each(|path| state.open.closed(path));
        }
    }

    /// Polled subtrees with reasons. Empty if events report every change.
    pub fn polled(&self) -> Vec<Polled> {
        let state = self.shared.state();
        let whole =
            state.unwatched.iter().map(|reason| Polled { path: TreePath::root(), reason: reason.clone() });
        let parts = state
            .unreported
            .iter()
            .map(|(path, reason)| Polled { path: path.clone(), reason: reason.clone() });
        whole.chain(parts).collect()
    }

    /// Limit of inotify watches of this user; 0 if it cannot be read.
    pub fn limit(&self) -> u64 {
        sysctl("max_user_watches")
    }

    /// Number of watched directories.
    pub fn watched(&self) -> usize {
        self.shared.state().watched.len()
    }

    /// Waits for hints. Polled subtrees cause one every `poll`. Cancel safe. For one task at a time.
    pub async fn changed(&self) {
        loop {
            let due = {
                let mut state = self.shared.state();
                if !state.hints.is_empty() {
                    return;
                }
                let due = state.is_polled().then(|| state.polled_at + self.poll);
                if due.is_some_and(|due| due <= Instant::now()) {
                    state.poll(Instant::now());
                    metrics().polled();
                    return;
                }
                due
            };
            match due {
                None => self.shared.hinted.notified().await,
                Some(due) => {
                    let _ = tokio::time::timeout_at(due.into(), self.shared.hinted.notified()).await;
                }
            }
        }
    }

    /// Returns once every change made before the call is hinted at: waits for a cookie, and hints at all
    /// polled subtrees. Blocks for at most [`COOKIE_DEADLINE`], usually well under a millisecond.
    pub fn flush(&self) {
        let made = self.barrier();
        self.look_at_mounts();
        let mut state = self.shared.state();
        if let Err(error) = made {
            warn!(error = crate::error_chain(&error), "walking the whole tree");
            state.lost(Reason::CookieLost);
        }
        if state.is_polled() {
            state.poll(Instant::now());
        }
    }

    /// Like [`Watch::flush`], without polled subtrees. Hints at everything if the cookie's event does not
    /// arrive.
    ///
    /// # Errors
    /// The cookie could not be created. Hints are unchanged.
    pub fn barrier(&self) -> Result<(), CookieError> {
        let cookie = {
            let mut instance = self.instance();
            if instance.watcher.is_none() || !instance.cookies_watched {
                None
            } else {
                instance.cookies_made += 1;
                Some(instance.cookies_made)
            }
        };
        let Some(number) = cookie else {
            // Without a watcher there are no ordered events. The tree is then polled, and flushing walks it.
            return Ok(());
        };
        let path = self.cookies.join(number.to_string());
        let seen = fs::write(&path, []).map(|()| self.wait_for(number));
        let _ = fs::remove_file(&path);
        match seen {
            Ok(true) => Ok(()),
            Ok(false) => {
                warn!(path = %path.display(), "the event of a cookie did not come: walking the whole tree");
                self.shared.state().lost(Reason::CookieLost);
                Ok(())
            }
            Err(source) => Err(CookieError { path, source }),
        }
    }

    /// Waits for the event. Also returns `true` if the watcher reported lost events, because everything is
    /// hinted at then.
    fn wait_for(&self, number: u64) -> bool {
        let deadline = Instant::now() + COOKIE_DEADLINE;
        let mut state = self.shared.state();
        while state.cookie_seen < number && !state.replace {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
            state = self.shared.cookie.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Hints at everything if the mounts have changed since the last scan.
    pub fn look_at_mounts(&self) {
        self.shared.look_at_mounts();
    }

    fn instance(&self) -> MutexGuard<'_, Instance> {
        self.watcher.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts over with a new watcher. The next scan must be complete, and installs the watches of
    /// directories.
    fn replace(&self, instance: &mut Instance, location: &Location, identity: Option<(u64, u64)>) {
        // First, so that two instances never count against fs.inotify.max_user_instances.
        instance.watcher = None;
        instance.cookies_watched = false;
        instance.identity = identity;
        let number = {
            let mut state = self.shared.state();
            state.instance += 1;
            state.watched.clear();
            state.stale.clear();
            state.replace = false;
            if state.root.as_ref() != location.root.as_ref().ok() {
                state.open = OpenFiles::default();
            }
            state.root = location.root.as_ref().ok().cloned();
            state.turning_points = location.turning_points.clone();
            state.instance
        };
        let shared = Arc::clone(&self.shared);
        let handler = move |event| shared.heard(number, event);
        // Without ACCESS_OPEN and ACCESS_CLOSE_NOWRITE, because reads by this process are irrelevant.
        // ACCESS_CLOSE is the end of a write, and the only event caused by a writer through a memory map.
        let config = notify::Config::default()
            .with_follow_symlinks(false)
            .with_event_kinds(EventKindMask::CORE | EventKindMask::ACCESS_CLOSE);
        let mut watcher = match INotifyWatcher::new(handler, config) {
            Ok(watcher) => watcher,
            Err(error) => {
                let limit = sysctl("max_user_instances");
                warn!(%error, "no file system watcher");
                return self.unwatched(PollReason::OutOfInstances { limit });
            }
        };
        instance.cookies_watched = match watch_one(&mut watcher, &self.cookies) {
            Ok(()) => true,
            Err(error) => {
                self.refused(&TreePath::root(), &error);
                false
            }
        };
        let parents: BTreeSet<&Path> =
            location.turning_points.iter().filter_map(|point| point.parent()).collect();
        for parent in parents {
            // An unreadable parent can be ignored, because every scan resolves TREE again.
            match watch_one(&mut watcher, parent) {
                Err(error) if matches!(error.kind, ErrorKind::MaxFilesWatch) => {
                    self.refused(&TreePath::root(), &error);
                }
                Err(error) => debug!(path = %parent.display(), %error, "not watched"),
                Ok(()) => {}
            }
        }
        instance.watcher = Some(watcher);
    }

    fn refused(&self, path: &TreePath, error: &notify::Error) {
        self.shared.state().watched.remove(path);
        let reason = match &error.kind {
            ErrorKind::PathNotFound => return,
            ErrorKind::MaxFilesWatch => PollReason::OutOfWatches { limit: sysctl("max_user_watches") },
            ErrorKind::Io(source) => PollReason::Refused { kind: source.kind() },
            _ => PollReason::Refused { kind: io::ErrorKind::Other },
        };
        self.unwatched(reason);
    }

    fn unwatched(&self, reason: PollReason) {
        let mut state = self.shared.state();
        if state.unwatched.is_none() {
            if state.told.as_ref() != Some(&reason) {
                warn!(every = ?self.poll, "polling the whole tree, and walking it before every commit: {reason}");
                state.told = Some(reason.clone());
            }
            state.polled_at = Instant::now();
            state.unwatched = Some(reason);
        }
    }
}

fn prepare_cookies(path: &Path) -> io::Result<PathBuf> {
    fs::create_dir_all(path)?;
    for entry in fs::read_dir(path)? {
        fs::remove_file(entry?.path())?;
    }
    path.canonicalize()
}

fn watch_one(watcher: &mut INotifyWatcher, path: &Path) -> notify::Result<()> {
    let config = WatchPathConfig::new(RecursiveMode::NonRecursive).with_dereference_symlinks(false);
    watcher.watch_with(path, config)
}

fn identity(root: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    root.symlink_metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

fn sysctl(name: &str) -> u64 {
    let path = Path::new("/proc/sys/fs/inotify").join(name);
    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests;
