//! Turns events into hints: the part of the watch that does no IO.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use notify::event::{AccessKind, AccessMode, CreateKind, EventKind, ModifyKind, RemoveKind, RenameMode};
use std::os::unix::ffi::OsStrExt;
use syncd_shared::TreePath;

use super::hints::{Hints, PollReason, Reason};
use super::mounts::Mounts;
use super::open_files::OpenFiles;

/// Written by the watcher's thread and shared with [`super::Watch`]. Locked only briefly, so that events
/// never wait.
#[derive(Debug)]
pub(super) struct State {
    /// Number of the current watcher instance. Events of earlier ones are dropped.
    pub instance: u64,
    /// The tree's directory without symlinks; `None` if there is none.
    pub root: Option<PathBuf>,
    /// See [`super::location::Location::turning_points`].
    pub turning_points: BTreeSet<PathBuf>,
    pub cookies: PathBuf,
    /// Number of the newest cookie whose event arrived.
    pub cookie_seen: u64,
    /// Hints that were not taken yet.
    pub hints: Hints,
    /// Directories that have a watch, or are about to get one.
    pub watched: BTreeSet<TreePath>,
    /// Paths whose watches follow a directory that is no longer there.
    pub stale: Vec<PathBuf>,
    /// Whether the watcher's own map of paths may be wrong, so that it must be replaced.
    pub replace: bool,
    /// Files that were written and not closed.
    pub open: OpenFiles,
    /// Names that were made or moved here and not taken by [`super::Watch::newcomers`]; `None` if they are
    /// not collected.
    pub newcomers: Option<BTreeSet<TreePath>>,
    /// Mounts at the last scan, compared with the kernel's table whenever that changes.
    pub mounts: Mounts,
    /// Subtrees whose file system does not report changes.
    pub unreported: BTreeMap<TreePath, PollReason>,
    /// Reason that some directories have no watch.
    pub unwatched: Option<PollReason>,
    /// The last reason logged, so that it is not repeated with every poll.
    pub told: Option<PollReason>,
    /// Time of the last hint at polled subtrees.
    pub polled_at: Instant,
}

impl State {
    pub(super) fn new(cookies: PathBuf) -> Self {
        Self {
            instance: 0,
            root: None,
            turning_points: BTreeSet::new(),
            cookies,
            cookie_seen: 0,
            hints: Hints::everything(Reason::Start),
            watched: BTreeSet::new(),
            stale: Vec::new(),
            replace: false,
            open: OpenFiles::default(),
            newcomers: None,
            mounts: Mounts::default(),
            unreported: BTreeMap::new(),
            unwatched: None,
            told: None,
            polled_at: Instant::now(),
        }
    }

    /// Processes an event of the watcher.
    pub(super) fn apply(&mut self, event: notify::Result<notify::Event>, now: Instant) {
        match event {
            Err(_) => self.lost(Reason::Watcher),
            Ok(event) if event.need_rescan() => self.lost(Reason::Overflow),
            // Both halves of a rename have arrived as separate events.
            Ok(event) if event.kind == EventKind::Modify(ModifyKind::Name(RenameMode::Both)) => {}
            Ok(event) => {
                let tracker = event.tracker().unwrap_or_default();
                event.paths.iter().for_each(|path| self.event(event.kind, path, tracker, now));
            }
        }
    }

    /// Handles lost events. They may include renames, so the watcher's paths may be wrong.
    pub(super) fn lost(&mut self, reason: Reason) {
        self.replace = true;
        self.hints.merge(Hints::everything(reason));
    }

    fn event(&mut self, kind: EventKind, path: &Path, tracker: usize, now: Instant) {
        if let Ok(name) = path.strip_prefix(&self.cookies) {
            if matches!(kind, EventKind::Create(_)) {
                let number = name.to_str().and_then(|name| name.parse().ok()).unwrap_or(0);
                self.cookie_seen = self.cookie_seen.max(number);
            }
            return;
        }
        let structural = matches!(
            kind,
            EventKind::Create(_) | EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_))
        );
        let is_root = self.root.as_deref() == Some(path);
        if structural && (is_root || self.turning_points.contains(path)) {
            return self.lost(Reason::TreeReplaced);
        }
        if kind == EventKind::Remove(RemoveKind::Other) {
            return self.lost(Reason::Mounts);
        }
        let Some(below) = self.root.as_deref().and_then(|root| path.strip_prefix(root).ok()) else { return };
        let Ok(path) = TreePath::from_bytes(below.as_os_str().as_bytes()) else {
            // No generation may have this name; the scan of its directory reports it.
            return self.lost(Reason::Watcher);
        };
        self.follow(kind, &path, tracker, now);
        let is_newcomer = matches!(
            kind,
            EventKind::Create(CreateKind::Folder) | EventKind::Modify(ModifyKind::Name(RenameMode::To))
        );
        if let Some(newcomers) = self.newcomers.as_mut().filter(|_| is_newcomer) {
            newcomers.insert(path.clone());
        }
        let mut whole = false;
        match kind {
            EventKind::Modify(ModifyKind::Name(RenameMode::From)) if self.watched.contains(&path) => {
                // The watches of everything below follow the directory to its new name, or out of the tree.
                self.forget(&path);
                self.add_subtree(path.clone());
                whole = true;
            }
            EventKind::Remove(RemoveKind::Folder) if self.watched.remove(&path) => {
                self.add_subtree(path.clone());
                whole = true;
            }
            EventKind::Access(AccessKind::Open(_) | AccessKind::Read) => return,
            _ => {}
        }
        let Some((directory, name)) = path.split_last() else {
            return self.hints.add_directory(path);
        };
        // A file that was written and then removed may have been another name of a file that remains.
        let written_and_gone =
            matches!(kind, EventKind::Remove(_)) && self.hints.names.contains(&directory, &name);
        if whole || written_and_gone {
            self.hints.add_directory(directory);
        } else {
            self.hints.add_name(directory, name);
        }
    }

    /// Updates the files being written.
    fn follow(&mut self, kind: EventKind, path: &TreePath, tracker: usize, now: Instant) {
        match kind {
            EventKind::Modify(ModifyKind::Data(_)) => self.open.written(path.clone(), now),
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => self.open.closed(path),
            EventKind::Remove(_) => self.open.gone(path),
            EventKind::Modify(ModifyKind::Name(RenameMode::From)) => {
                self.open.renamed_from(path.clone(), tracker);
            }
            EventKind::Modify(ModifyKind::Name(RenameMode::To)) => self.open.renamed_to(path, tracker),
            _ => {}
        }
    }

    fn add_subtree(&mut self, path: TreePath) {
        self.hints.merge(Hints { subtrees: [path].into(), ..Hints::default() });
    }

    /// Marks the watches of a directory and everything below it for removal by the next scan.
    pub(super) fn forget(&mut self, path: &TreePath) {
        let below: Vec<TreePath> =
            self.watched.range(path..).take_while(|watched| watched.starts_with(path)).cloned().collect();
        for path in below {
            self.watched.remove(&path);
            if let Some(root) = &self.root {
                self.stale.push(path.below(root));
            }
        }
    }

    /// Whether anything is polled.
    pub(super) fn is_polled(&self) -> bool {
        self.unwatched.is_some() || !self.unreported.is_empty()
    }

    /// Hints at every polled subtree.
    pub(super) fn poll(&mut self, now: Instant) {
        self.polled_at = now;
        if self.unwatched.is_some() || self.unreported.contains_key(&TreePath::root()) {
            self.hints.merge(Hints::everything(Reason::Polling));
        } else {
            let subtrees = self.unreported.keys().cloned().collect();
            self.hints.merge(Hints { subtrees, ..Hints::default() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use notify::event::{DataChange, MetadataKind};
    use syncd_shared::Component;

    fn path(p: &str) -> TreePath {
        TreePath::from_bytes(p.as_bytes()).unwrap()
    }

    fn state() -> State {
        let mut state = State::new("/data/cookies".into());
        state.root = Some("/srv/real".into());
        state.turning_points = ["/srv/link".into(), "/srv/real".into()].into();
        state.watched = ["", "a", "a/b", "a-b"].map(path).into();
        state.hints = Hints::default();
        state
    }

    fn after(kind: EventKind, at: &str) -> State {
        let mut state = state();
        state.apply(Ok(notify::Event::new(kind).add_path(at.into())), Instant::now());
        state
    }

    const FROM: EventKind = EventKind::Modify(ModifyKind::Name(RenameMode::From));

    #[test]
    fn a_changed_file_dirties_its_name_only() {
        let state = after(EventKind::Modify(ModifyKind::Data(DataChange::Any)), "/srv/real/a/b/f");
        assert!(state.hints.names.contains(&path("a/b"), &Component::new(b"f").unwrap()));
        assert_eq!(state.hints.places().count(), 1);
        let state = after(EventKind::Modify(ModifyKind::Metadata(MetadataKind::Any)), "/srv/real");
        assert_eq!(state.hints, Hints { directories: [path("")].into(), ..Hints::default() });
    }

    #[test]
    fn a_directory_moved_away_loses_the_watches_below_it() {
        let state = after(FROM, "/srv/real/a");
        assert_eq!(state.hints.subtrees, [path("a")].into());
        assert_eq!(state.hints.directories, [path("")].into());
        assert_eq!(state.watched, ["", "a-b"].map(path).into());
        assert_eq!(state.stale, ["/srv/real/a", "/srv/real/a/b"].map(PathBuf::from));
        assert!(after(FROM, "/srv/real/file").hints.subtrees.is_empty());
    }

    #[test]
    fn a_name_that_was_written_and_removed_dirties_its_directory() {
        let mut state = after(EventKind::Remove(RemoveKind::File), "/srv/real/a/f");
        assert!(state.hints.directories.is_empty());
        for kind in
            [EventKind::Modify(ModifyKind::Data(DataChange::Any)), EventKind::Remove(RemoveKind::File)]
        {
            state.apply(Ok(notify::Event::new(kind).add_path("/srv/real/a/g".into())), Instant::now());
        }
        assert_eq!(state.hints.directories, [path("a")].into());
        assert!(state.hints.names.is_empty());
    }

    #[test]
    fn directories_that_are_made_and_names_that_are_moved_here_are_newcomers_if_somebody_asks() {
        let to = EventKind::Modify(ModifyKind::Name(RenameMode::To));
        assert_eq!(after(to, "/srv/real/a/new").newcomers, None);
        let mut state = state();
        state.newcomers = Some(BTreeSet::new());
        for (kind, at) in [
            (to, "/srv/real/moved"),
            (EventKind::Create(CreateKind::Folder), "/srv/real/a/made"),
            (EventKind::Create(CreateKind::File), "/srv/real/a/file"),
            (FROM, "/srv/real/a/b"),
        ] {
            state.apply(Ok(notify::Event::new(kind).add_path(at.into())), Instant::now());
        }
        assert_eq!(state.newcomers, Some(["a/made", "moved"].map(path).into()));
    }

    #[test]
    fn a_replaced_tree_means_everything() {
        for at in ["/srv/link", "/srv/real"] {
            let state = after(EventKind::Create(CreateKind::Any), at);
            assert!(state.replace);
            assert_eq!(state.hints, Hints::everything(Reason::TreeReplaced));
        }
        assert!(after(EventKind::Create(CreateKind::Any), "/srv/other").hints.is_empty());
    }

    #[test]
    fn lost_events_mean_everything() {
        let mut overflowed = state();
        overflowed.apply(
            Ok(notify::Event::new(EventKind::Other).set_flag(notify::event::Flag::Rescan)),
            Instant::now(),
        );
        assert_eq!(overflowed.hints, Hints::everything(Reason::Overflow));
        let mut failed = state();
        failed.apply(Err(notify::Error::generic("x")), Instant::now());
        assert!(failed.replace && failed.hints.everything == Some(Reason::Watcher));
    }

    #[test]
    fn cookies_are_counted_and_hint_at_nothing() {
        let state = after(EventKind::Create(CreateKind::File), "/data/cookies/17");
        assert_eq!((state.cookie_seen, state.hints.is_empty()), (17, true));
    }
}
