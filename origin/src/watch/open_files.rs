//! Files of the tree that were written and not closed since, according to events.
//!
//! A close by one writer counts for all; another active writer is noticed at its next write. After a close
//! without an event (lost events, `truncate` by path) a file stays here until it has not been written for a
//! while.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use syncd_shared::TreePath;

/// Maximum number of tracked files; further ones are not waited for.
const OPEN_MAX: usize = 4096;

/// A file that was written and not closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenFile {
    /// Its current path.
    pub path: TreePath,
    /// Time of the first observed write.
    pub since: Instant,
    /// Time of the last observed write.
    pub written: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Writes {
    since: Instant,
    written: Instant,
}

/// The files being written. See the module documentation.
#[derive(Debug, Default)]
pub(super) struct OpenFiles {
    files: BTreeMap<TreePath, Writes>,
    leaving: Option<Leaving>,
}

/// Files moved by a rename. The new name follows at once, unless it lies outside the tree.
#[derive(Debug)]
struct Leaving {
    tracker: usize,
    from: TreePath,
    files: Vec<(TreePath, Writes)>,
}

impl OpenFiles {
    pub(super) fn written(&mut self, path: TreePath, now: Instant) {
        if self.files.len() < OPEN_MAX || self.files.contains_key(&path) {
            self.files.entry(path).or_insert(Writes { since: now, written: now }).written = now;
        }
    }

    /// Records what is known of the files at and below `path` beyond events: those that are open for writing,
    /// with the time of their last write. `all`: no other file there is.
    pub(super) fn found(&mut self, path: &TreePath, open: &BTreeMap<TreePath, Instant>, all: bool) {
        let below = self.take(path).into_iter();
        self.files.extend(below.filter(|(at, _)| !all || open.contains_key(at)));
        let here = open.iter().filter(|(at, _)| at.starts_with(path));
        for (at, written) in here.take(OPEN_MAX.saturating_sub(self.files.len())) {
            let writes = Writes { since: *written, written: *written };
            self.files.entry(at.clone()).or_insert(writes);
        }
    }

    pub(super) fn closed(&mut self, path: &TreePath) {
        self.files.remove(path);
    }

    /// Removes a file, or a directory with everything below it.
    pub(super) fn gone(&mut self, path: &TreePath) {
        self.take(path);
    }

    pub(super) fn renamed_from(&mut self, from: TreePath, tracker: usize) {
        let files = self.take(&from);
        self.leaving = Some(Leaving { tracker, from, files });
    }

    pub(super) fn renamed_to(&mut self, to: &TreePath, tracker: usize) {
        self.take(to);
        let Some(leaving) = self.leaving.take_if(|leaving| leaving.tracker == tracker) else { return };
        let moved = leaving.files.into_iter();
        self.files.extend(moved.filter_map(|(path, writes)| Some((path.rebase(&leaving.from, to)?, writes))));
    }

    /// Forgets files that were not written for `idle`; returns the others.
    pub(super) fn within(&mut self, idle: Duration, now: Instant) -> Vec<OpenFile> {
        self.files.retain(|_, writes| now.saturating_duration_since(writes.written) < idle);
        let files = self.files.iter();
        files.map(|(path, w)| OpenFile { path: path.clone(), since: w.since, written: w.written }).collect()
    }

    fn take(&mut self, path: &TreePath) -> Vec<(TreePath, Writes)> {
        if self.files.is_empty() {
            return Vec::new();
        }
        let below = self.files.range(path..).take_while(|(at, _)| at.starts_with(path));
        let below: Vec<_> = below.map(|(at, writes)| (at.clone(), *writes)).collect();
        below.iter().for_each(|(at, _)| {
            self.files.remove(at);
        });
        below
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(path: &str) -> TreePath {
        TreePath::from_bytes(path.as_bytes()).unwrap()
    }

    fn open(files: &mut OpenFiles, now: Instant) -> Vec<String> {
        files.within(Duration::from_secs(30), now).iter().map(|file| file.path.to_string()).collect()
    }

    #[test]
    fn a_file_is_open_from_a_write_to_its_close_or_until_it_is_idle() {
        let (now, mut files) = (Instant::now(), OpenFiles::default());
        for name in ["a", "b", "d/c"] {
            files.written(path(name), now);
        }
        files.closed(&path("a"));
        assert_eq!(open(&mut files, now), ["b", "d/c"]);
        let later = now + Duration::from_secs(29);
        files.written(path("b"), later);
        files.gone(&path("d"));
        assert_eq!(open(&mut files, later), ["b"]);
        let file = files.within(Duration::from_secs(30), later).remove(0);
        assert_eq!((file.since, file.written), (now, later));
        assert!(open(&mut files, later + Duration::from_secs(30)).is_empty());
    }

    #[test]
    fn a_look_adds_what_events_did_not_tell_and_drops_the_rest_if_it_saw_everything() {
        let (now, mut files) = (Instant::now(), OpenFiles::default());
        for name in ["moved/closed", "moved/open", "elsewhere"] {
            files.written(path(name), now);
        }
        let seen = BTreeMap::from(["moved/open", "moved/new", "else"].map(|name| (path(name), now)));
        files.found(&path("moved"), &seen, false);
        assert_eq!(open(&mut files, now), ["elsewhere", "moved/closed", "moved/new", "moved/open"]);
        files.found(&path("moved"), &seen, true);
        assert_eq!(open(&mut files, now), ["elsewhere", "moved/new", "moved/open"]);
    }

    #[test]
    fn renames_are_followed_with_all_below_and_out_of_the_tree() {
        let (now, mut files) = (Instant::now(), OpenFiles::default());
        files.written(path("up/.big.tmp"), now);
        files.written(path("up/other"), now);
        files.written(path("big"), now);
        files.renamed_from(path("up/.big.tmp"), 1);
        files.renamed_to(&path("big"), 1);
        assert_eq!(open(&mut files, now), ["big", "up/other"]);
        files.renamed_from(path("up"), 2);
        files.renamed_to(&path("down"), 2);
        assert_eq!(open(&mut files, now), ["big", "down/other"]);
        files.renamed_from(path("big"), 3);
        files.renamed_to(&path("from outside"), 4);
        assert_eq!(open(&mut files, now), ["down/other"]);
    }
}
