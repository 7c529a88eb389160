//! What differs between two trees, and how a tree is patched from one to the other.
//!
//! [`diff`] walks only directories that differ. [`TreeDiff`] is what both sides go by: the origin to see which content
//! an agent lacks, the agent to see what to do to its files. Both must come to the same answer from the same roots,
//! and where they don't, the agent asks for what it lacks by hash.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::directory::{Directory, Entry, Kind};
use crate::hash::{ContentHash, ObjectHash};
use crate::tree::RootEntry;
use crate::tree_path::{TreePath, TreePathError};

/// Where directory objects come from: the origin's store, the agent's record.
pub trait DirectorySource {
    /// Why one could not be read.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The directory object with this hash, verified; not to have it is an error.
    fn directory(&self, hash: &ObjectHash) -> Result<Arc<Directory>, Self::Error>;
}

impl<S: DirectorySource + ?Sized> DirectorySource for &S {
    type Error = S::Error;

    fn directory(&self, hash: &ObjectHash) -> Result<Arc<Directory>, S::Error> {
        (**self).directory(hash)
    }
}

/// Why two trees could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum DiffError<E: std::error::Error + 'static> {
    /// A directory object could not be read.
    #[error("read directory {path}")]
    Source {
        /// The directory.
        path: TreePath,
        /// Why.
        #[source]
        source: E,
    },
    /// A tree that is nested too deep.
    #[error("invalid path below {path}")]
    Path {
        /// The directory.
        path: TreePath,
        /// What is wrong.
        #[source]
        source: TreePathError,
    },
}

/// One path that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It is in the first tree only.
    Removed {
        /// Where.
        path: TreePath,
        /// What it was.
        entry: Entry,
    },
    /// It is in the second tree only.
    Added {
        /// Where.
        path: TreePath,
        /// What it is.
        entry: Entry,
    },
    /// It is in both. A change of kind between directory, file and symlink is `Removed` and `Added`.
    Modified {
        /// Where.
        path: TreePath,
        /// What it was.
        from: Entry,
        /// What it is.
        to: Entry,
    },
}

impl Change {
    /// Where.
    pub fn path(&self) -> &TreePath {
        match self {
            Self::Removed { path, .. } | Self::Added { path, .. } | Self::Modified { path, .. } => path,
        }
    }
}

/// A subtree that is in both trees under different names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rename {
    /// Where it was.
    pub from: TreePath,
    /// Where it is.
    pub to: TreePath,
}

/// Everything that differs between two trees.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TreeDiff {
    /// In path order, a directory before what is in it. Directories that are renamed whole are one `Removed` and one
    /// `Added`: what is below them is not listed.
    pub changes: Vec<Change>,
    /// Directories that are renamed whole, with everything below them.
    pub renamed_directories: Vec<Rename>,
}

impl TreeDiff {
    /// Whether nothing differs below the root.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// File contents that are needed at paths where the first tree has other content, with their sizes, in path order
    /// of first use, each once. What is renamed with its directory is not among them.
    pub fn wanted_contents(&self) -> Vec<(ContentHash, u64)> {
        let mut seen = HashSet::new();
        let mut wanted = Vec::new();
        for change in &self.changes {
            let (from, to) = match change {
                Change::Removed { .. } => continue,
                Change::Added { entry, .. } => (None, entry),
                Change::Modified { from, to, .. } => (Some(from), to),
            };
            let Kind::File { content, size } = to.kind else { continue };
            let same =
                matches!(from, Some(Entry { kind: Kind::File { content: c, .. }, .. }) if *c == content);
            if !same && size > 0 && seen.insert(content) {
                wanted.push((content, size));
            }
        }
        wanted
    }

    /// Where the first tree has each content that the diff removes or replaces: what renamed files are matched by.
    /// The first path in path order.
    pub fn released_contents(&self) -> HashMap<ContentHash, TreePath> {
        let mut released = HashMap::new();
        for change in &self.changes {
            if let Change::Removed { path, entry: from } | Change::Modified { path, from, .. } = change
                && let Kind::File { content, .. } = from.kind
            {
                released.entry(content).or_insert_with(|| path.clone());
            }
        }
        released
    }
}

/// Compares two trees. Cost follows the directories that differ; what is below a directory that is renamed whole is not
/// looked at.
pub fn diff<S: DirectorySource>(
    source: &S,
    from: &RootEntry,
    to: &RootEntry,
) -> Result<TreeDiff, DiffError<S::Error>> {
    let mut walk = Walk { source, changes: Vec::new(), whole: BTreeMap::new() };
    walk.directory(&TreePath::root(), Some(from.object), Some(to.object))?;
    let renamed_directories = walk.match_renames()?;
    let mut changes = walk.changes;
    changes.sort_by(|a, b| a.path().cmp(b.path()));
    Ok(TreeDiff { changes, renamed_directories })
}

/// Directories that one of the trees has at a path where the other has none.
#[derive(Default)]
struct Whole {
    removed: Vec<(TreePath, ObjectHash)>,
    added: Vec<(TreePath, ObjectHash)>,
}

struct Walk<'a, S> {
    source: &'a S,
    changes: Vec<Change>,
    /// Those that were not looked into, by the number of entries below them.
    whole: BTreeMap<u64, Whole>,
}

impl<S: DirectorySource> Walk<'_, S> {
    /// Pairs added directories with removed ones that have the same object, and looks into all others. What holds no file
    /// is not worth a rename. The largest come first: by then all of a size are known, because what encloses one is
    /// larger, and has been looked into.
    fn match_renames(&mut self) -> Result<Vec<Rename>, DiffError<S::Error>> {
        let mut renames = Vec::new();
        while let Some((entries, Whole { mut removed, mut added })) = self.whole.pop_last() {
            removed.sort_unstable();
            added.sort_unstable();
            let mut candidates: HashMap<ObjectHash, VecDeque<TreePath>> = HashMap::new();
            for (path, object) in removed {
                candidates.entry(object).or_default().push_back(path);
            }
            for (to, object) in added {
                match candidates.get_mut(&object).filter(|_| entries > 0).and_then(VecDeque::pop_front) {
                    Some(from) => renames.push(Rename { from, to }),
                    None => self.directory(&to, None, Some(object))?,
                }
            }
            for (object, paths) in candidates {
                for path in paths {
                    self.directory(&path, Some(object), None)?;
                }
            }
        }
        renames.sort_unstable_by(|a, b| a.to.cmp(&b.to));
        Ok(renames)
    }

    fn load(&self, path: &TreePath, hash: Option<ObjectHash>) -> Result<Arc<Directory>, DiffError<S::Error>> {
        match hash {
            None => Ok(Arc::default()),
            Some(hash) => self
                .source
                .directory(&hash)
                .map_err(|source| DiffError::Source { path: path.clone(), source }),
        }
    }

    fn directory(
        &mut self,
        path: &TreePath,
        from: Option<ObjectHash>,
        to: Option<ObjectHash>,
    ) -> Result<(), DiffError<S::Error>> {
        if from == to {
            return Ok(());
        }
        let (before, after) = (self.load(path, from)?, self.load(path, to)?);
        let (mut a, mut b) = (before.entries().iter().peekable(), after.entries().iter().peekable());
        loop {
            let (old, new) = match (a.peek(), b.peek()) {
                (None, None) => return Ok(()),
                (Some(x), Some(y)) if x.name == y.name => (a.next(), b.next()),
                (Some(x), Some(y)) if x.name < y.name => (a.next(), None),
                (Some(_), None) => (a.next(), None),
                _ => (None, b.next()),
            };
            self.entry(path, old, new)?;
        }
    }

    fn entry(
        &mut self,
        parent: &TreePath,
        old: Option<&Entry>,
        new: Option<&Entry>,
    ) -> Result<(), DiffError<S::Error>> {
        if old == new {
            return Ok(());
        }
        let Some(name) = old.or(new).map(|e| &e.name) else { return Ok(()) };
        let path = parent.join(name).map_err(|source| DiffError::Path { path: parent.clone(), source })?;
        let object = |entry: Option<&Entry>| match entry.map(|e| &e.kind) {
            Some(Kind::Directory { object, totals }) => Some((*object, totals.entries)),
            _ => None,
        };
        let (from_object, to_object) = (object(old), object(new));
        match (old, new) {
            (Some(x), Some(y)) if std::mem::discriminant(&x.kind) == std::mem::discriminant(&y.kind) => {
                self.changes.push(Change::Modified { path: path.clone(), from: x.clone(), to: y.clone() });
            }
            _ => {
                if let Some(entry) = old.cloned() {
                    self.changes.push(Change::Removed { path: path.clone(), entry });
                }
                if let Some(entry) = new.cloned() {
                    self.changes.push(Change::Added { path: path.clone(), entry });
                }
            }
        }
        match (from_object, to_object) {
            (Some((from, _)), Some((to, _))) => self.directory(&path, Some(from), Some(to))?,
            (Some((from, entries)), None) => {
                self.whole.entry(entries).or_default().removed.push((path, from));
            }
            (None, Some((to, entries))) => self.whole.entry(entries).or_default().added.push((path, to)),
            (None, None) => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::directory::tests::{entry, file, symlink};

    #[derive(Default)]
    struct Objects(HashMap<ObjectHash, Arc<Directory>>);

    impl DirectorySource for Objects {
        type Error = Infallible;

        fn directory(&self, hash: &ObjectHash) -> Result<Arc<Directory>, Infallible> {
            Ok(self.0[hash].clone())
        }
    }

    impl Objects {
        fn put(&mut self, entries: Vec<Entry>) -> Kind {
            let directory = Directory::new(entries).expect("unique names");
            let (object, totals) = (directory.hash(), directory.totals().expect("small"));
            self.0.insert(object, Arc::new(directory));
            Kind::Directory { object, totals }
        }

        fn root(&mut self, entries: Vec<Entry>) -> RootEntry {
            let Kind::Directory { object, totals } = self.put(entries) else { panic!("a directory") };
            RootEntry { object, totals, ..RootEntry::empty() }
        }
    }

    fn path(text: &str) -> TreePath {
        TreePath::from_bytes(text.as_bytes()).expect("a valid path")
    }

    fn names(diff: &TreeDiff) -> Vec<String> {
        let line = |change: &Change| match change {
            Change::Removed { path, .. } => format!("- {path}"),
            Change::Added { path, .. } => format!("+ {path}"),
            Change::Modified { path, .. } => format!("~ {path}"),
        };
        diff.changes.iter().map(line).collect()
    }

    #[test]
    fn a_directory_renamed_whole_is_one_rename() {
        let mut objects = Objects::default();
        let leaf = objects.put(vec![file("x", b"1"), file("y", b"2")]);
        let docs = objects.put(vec![entry("leaf", leaf), file("z", b"3")]);
        let from = objects.root(vec![entry("docs", docs.clone()), file("i", b"0")]);
        let to = objects.root(vec![entry("manual", docs), file("i", b"0")]);
        let diff = diff(&objects, &from, &to).expect("compares");
        assert_eq!(names(&diff), ["- docs", "+ manual"]);
        assert_eq!(diff.renamed_directories, [Rename { from: path("docs"), to: path("manual") }]);
        assert!(diff.wanted_contents().is_empty());
    }

    #[test]
    fn what_is_below_a_renamed_directory_is_not_looked_at() {
        let mut objects = Objects::default();
        let leaf = objects.put(vec![file("x", b"1")]);
        let docs = objects.put(vec![entry("leaf", leaf.clone()), file("z", b"3")]);
        let from = objects.root(vec![entry("docs", docs.clone())]);
        let to = objects.root(vec![entry("manual", docs.clone())]);
        for kind in [leaf, docs] {
            let Kind::Directory { object, .. } = kind else { panic!("a directory") };
            objects.0.remove(&object);
        }
        assert_eq!(names(&diff(&objects, &from, &to).expect("compares")), ["- docs", "+ manual"]);
    }

    #[test]
    fn a_directory_that_moves_out_of_one_that_goes_is_renamed() {
        let mut objects = Objects::default();
        let leaf = objects.put(vec![file("x", b"1"), file("y", b"2")]);
        let old = objects.put(vec![entry("leaf", leaf.clone()), file("z", b"3")]);
        let from = objects.root(vec![entry("old", old)]);
        let new = objects.put(vec![entry("deep", leaf), file("w", b"4"), file("v", b"5")]);
        let to = objects.root(vec![entry("new", new)]);
        let diff = diff(&objects, &from, &to).expect("compares");
        assert_eq!(
            names(&diff),
            ["+ new", "+ new/deep", "+ new/v", "+ new/w", "- old", "- old/leaf", "- old/z"]
        );
        assert_eq!(diff.renamed_directories, [Rename { from: path("old/leaf"), to: path("new/deep") }]);
    }

    #[test]
    fn one_subtree_in_two_new_places_is_one_rename_and_one_addition() {
        let mut objects = Objects::default();
        let leaf = objects.put(vec![file("x", b"1")]);
        let from = objects.root(vec![entry("a", leaf.clone())]);
        let to = objects.root(vec![entry("b", leaf.clone()), entry("c", leaf)]);
        let diff = diff(&objects, &from, &to).expect("compares");
        assert_eq!(names(&diff), ["- a", "+ b", "+ c", "+ c/x"]);
        assert_eq!(diff.renamed_directories, [Rename { from: path("a"), to: path("b") }]);
        assert_eq!(diff.wanted_contents(), [(ContentHash::of(b"1"), 1)]);
    }

    #[test]
    fn a_change_of_kind_removes_and_adds() {
        let mut objects = Objects::default();
        let leaf = objects.put(vec![file("x", b"1")]);
        let from = objects.root(vec![entry("a", leaf), symlink("b", "a"), file("c", b"2")]);
        let other = objects.put(vec![file("y", b"3")]);
        let to = objects.root(vec![file("a", b"1"), entry("b", other), symlink("c", "a")]);
        let diff = diff(&objects, &from, &to).expect("compares");
        assert_eq!(names(&diff), ["- a", "+ a", "- a/x", "- b", "+ b", "+ b/y", "- c", "+ c"]);
        assert_eq!(diff.released_contents()[&ContentHash::of(b"1")], path("a/x"));
    }

    #[test]
    fn only_what_changed_is_wanted() {
        let mut objects = Objects::default();
        let from = objects.root(vec![file("a", b"1"), file("b", b"2")]);
        let mut touched = file("a", b"1");
        touched.metadata.mtime.seconds += 1;
        let to = objects.root(vec![touched, file("b", b"3"), file("c", b"3"), file("e", b"")]);
        let diff = diff(&objects, &from, &to).expect("compares");
        assert_eq!(names(&diff), ["~ a", "~ b", "+ c", "+ e"]);
        assert_eq!(diff.wanted_contents(), [(ContentHash::of(b"3"), 1)]);
    }
}
