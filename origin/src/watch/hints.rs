//! Results of watching: names that may have changed, and reasons for a complete walk.

use std::collections::BTreeSet;
use std::fmt;

use syncd_shared::{Component, TreePath};

use super::names::Names;

/// Possible changes since hints were last taken. Hints determine where to look, never the result.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hints {
    /// Directories whose names, files or metadata may have changed.
    pub directories: BTreeSet<TreePath>,
    /// Directories below which anything may have changed.
    pub subtrees: BTreeSet<TreePath>,
    /// Names that may have changed, in directories without other changes.
    pub names: Names,
    /// Reason to walk the whole tree, in which case the other fields are empty.
    pub everything: Option<Reason>,
}

impl Hints {
    pub fn is_empty(&self) -> bool {
        self.directories.is_empty()
            && self.subtrees.is_empty()
            && self.names.is_empty()
            && self.everything.is_none()
    }

    /// A hint that everything may have changed.
    pub fn everything(reason: Reason) -> Self {
        Self { everything: Some(reason), ..Self::default() }
    }

    /// Adds other hints, for example those of a failed scan.
    pub fn merge(&mut self, other: Hints) {
        if let Some(reason) = other.everything {
            self.everything.get_or_insert(reason);
        }
        if self.everything.is_some() {
            self.directories.clear();
            self.subtrees.clear();
            self.names.clear();
            return;
        }
        other.directories.into_iter().for_each(|directory| self.add_directory(directory));
        self.subtrees.extend(other.subtrees);
        for (directory, names) in other.names.into_directories() {
            if self.directories.contains(&directory) {
                continue;
            }
            self.names.add_directory(directory.clone());
            names.into_iter().for_each(|name| self.add_name(directory.clone(), name));
        }
    }

    /// Adds a directory in which any name may have changed.
    pub fn add_directory(&mut self, directory: TreePath) {
        if self.everything.is_none() {
            self.names.remove(&directory);
            self.directories.insert(directory);
        }
    }

    /// Adds a name that may have changed. If there are too many, whole directories are added instead.
    pub fn add_name(&mut self, directory: TreePath, name: Component) {
        if self.everything.is_none() && !self.directories.contains(&directory) {
            self.directories.extend(self.names.add(directory, name));
        }
    }

    /// Removes a name that was added by itself.
    pub fn remove_name(&mut self, path: &TreePath) {
        if let Some((directory, name)) = path.split_last() {
            self.names.remove_name(&directory, &name);
        }
    }

    /// Adds the name of a path.
    pub fn add_path(&mut self, path: &TreePath) {
        if let Some((directory, name)) = path.split_last() {
            self.add_name(directory, name);
        }
    }

    /// All directories in which something may have changed.
    pub fn places(&self) -> impl Iterator<Item = &TreePath> {
        self.names.iter().map(|(directory, _)| directory).chain(&self.directories).chain(&self.subtrees)
    }
}

/// Reasons to walk the whole tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Nothing is known yet.
    Start,
    /// The kernel's queue overflowed, and events were lost.
    Overflow,
    /// The watcher reported an error.
    Watcher,
    /// TREE is another directory than before, because it was replaced or its symlink was changed.
    TreeReplaced,
    Mounts,
    /// A cookie's event was late, so earlier events may be missing as well.
    CookieLost,
    /// Events do not report every change here: see [`PollReason`].
    Polling,
    /// A periodic walk, or a wish of an operator or of a repair.
    Requested,
    /// A file got another name. The tree may have further names of it that caused no event.
    HardLinks,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Start => "start",
            Reason::Overflow => "file system events were lost: raise fs.inotify.max_queued_events",
            Reason::Watcher => "the file system watcher failed",
            Reason::TreeReplaced => "the tree is another directory than before",
            Reason::Mounts => "a file system was mounted or unmounted inside the tree",
            Reason::CookieLost => "file system events did not come in time",
            Reason::Polling => "the tree is polled",
            Reason::Requested => "the whole tree was to be read",
            Reason::HardLinks => "a file got a further name",
        })
    }
}

/// Reasons to walk a subtree every `--poll` and before every commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PollReason {
    /// A network file system, or one that is not known to report changes.
    FileSystem {
        /// File system type, as in /proc/self/mountinfo.
        kind: String,
    },
    /// A file system is mounted twice inside the tree, and events name only one of the places.
    MountedTwice,
    /// The user's watches are exhausted.
    OutOfWatches {
        /// The value of fs.inotify.max_user_watches; 0 if it cannot be read.
        limit: u64,
    },
    /// The user's watch instances, or the descriptors of the process, are exhausted.
    OutOfInstances {
        /// The value of fs.inotify.max_user_instances; 0 if it cannot be read.
        limit: u64,
    },
    /// The kernel refused the watch.
    Refused { kind: std::io::ErrorKind },
}

impl fmt::Display for PollReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PollReason::FileSystem { kind } => write!(f, "{kind} does not report changes"),
            PollReason::MountedTwice => f.write_str("the same file system is mounted twice in the tree"),
            PollReason::OutOfWatches { limit } => {
                let wanted = limit.saturating_mul(4).max(1_048_576);
                write!(
                    f,
                    "out of watches: raise fs.inotify.max_user_watches ({limit}), for example to {wanted}"
                )
            }
            PollReason::OutOfInstances { limit } => {
                let wanted = limit.saturating_mul(4).max(1_024);
                write!(
                    f,
                    "out of watch instances: raise fs.inotify.max_user_instances ({limit}), for example to {wanted}"
                )
            }
            PollReason::Refused { kind } => write!(f, "it cannot be watched: {kind}"),
        }
    }
}

/// A subtree for which events do not report every change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Polled {
    pub path: TreePath,
    pub reason: PollReason,
}

impl fmt::Display for Polled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_swallows_the_rest_and_keeps_the_first_reason() {
        let mut hints = Hints::default();
        assert!(hints.is_empty());
        hints.merge(Hints { directories: [TreePath::root()].into(), ..Hints::default() });
        hints.merge(Hints::everything(Reason::Overflow));
        hints.merge(Hints::everything(Reason::Polling));
        hints.merge(Hints { subtrees: [TreePath::root()].into(), ..Hints::default() });
        assert_eq!(hints, Hints::everything(Reason::Overflow));
    }

    #[test]
    fn a_directory_stands_for_its_names() {
        let path = |p: &str| TreePath::from_bytes(p.as_bytes()).unwrap();
        let name = |n: &str| Component::new(n.as_bytes()).unwrap();
        let mut hints = Hints::default();
        hints.add_name(path("a"), name("f"));
        let mut other = Hints::default();
        other.add_name(path("a"), name("g"));
        other.add_name(path("b"), name("f"));
        hints.merge(other);
        hints.add_directory(path("a"));
        hints.add_name(path("a"), name("h"));
        assert_eq!(hints.places().collect::<Vec<_>>(), [&path("b"), &path("a")]);
        assert!(hints.directories.contains(&path("a")) && hints.names.contains(&path("b"), &name("f")));
        (0..65).for_each(|number| hints.add_name(path("b"), name(&number.to_string())));
        assert!(hints.names.is_empty() && hints.directories.contains(&path("b")));
        hints.merge(Hints::everything(Reason::Overflow));
        hints.add_name(path("c"), name("f"));
        hints.add_directory(path("c"));
        assert_eq!(hints, Hints::everything(Reason::Overflow));
    }

    #[test]
    fn running_out_names_the_sysctl_and_a_value() {
        let text = PollReason::OutOfWatches { limit: 500_000 }.to_string();
        assert!(text.contains("fs.inotify.max_user_watches (500000), for example to 2000000"), "{text}");
    }
}
