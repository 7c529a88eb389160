//! The difference between two trees.
//!
//! Both sides use [`Comparison`]: the origin to find content that an agent is missing, the agent to plan
//! changes to its files. Both must derive the same answer from the same roots; on a mismatch the agent
//! requests missing content by hash. Only pages that differ are read. Differences come in parts of
//! bounded size, in path order, so that memory does not grow with an update that touches every file of a
//! tree.

mod leaves;
mod parts;
mod released;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use crate::directory::{DecodeDirectoryError, Directory, Entry, Kind, Page, Pairs, cursor};
use crate::hash::ObjectHash;
use crate::tree::RootEntry;
use crate::tree_path::{Component, TreePath, TreePathError};

use parts::Collected;
pub use parts::{Part, PartLimits, Parts};
pub use released::{Released, ReleasedFile};

/// A source of directory objects: the origin's store or the agent's record.
pub trait DirectorySource {
    /// Error of reading an object.
    type Error: std::error::Error + From<DecodeDirectoryError> + Send + Sync + 'static;

    /// The directory object with this hash, verified. A missing object is an error.
    fn page(&self, hash: &ObjectHash) -> Result<Arc<Page>, Self::Error>;

    /// Whether pages are checked to end where their names say. Needed once for each page from a peer.
    fn checks_boundaries(&self) -> bool {
        false
    }

    /// All entries of a directory, in memory.
    fn directory(&self, hash: &ObjectHash) -> Result<Arc<Directory>, Self::Error> {
        cursor::whole(&self, hash)
    }

    /// The entry of one name of a directory.
    fn entry(&self, directory: &ObjectHash, name: &Component) -> Result<Option<Entry>, Self::Error> {
        cursor::entry_of(&self, directory, name)
    }
}

impl<S: DirectorySource + ?Sized> DirectorySource for &S {
    type Error = S::Error;

    fn page(&self, hash: &ObjectHash) -> Result<Arc<Page>, S::Error> {
        (**self).page(hash)
    }

    fn checks_boundaries(&self) -> bool {
        (**self).checks_boundaries()
    }
}

/// Errors of comparing two trees.
#[derive(Debug, thiserror::Error)]
pub enum DiffError<E: std::error::Error + 'static> {
    #[error("read directory {path}")]
    Source {
        path: TreePath,
        #[source]
        source: E,
    },
    /// A tree that is nested too deeply.
    #[error("invalid path below {path}")]
    Path {
        /// The directory with the offending name.
        path: TreePath,
        #[source]
        source: TreePathError,
    },
}

/// A path that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Present in the first tree only.
    Removed { path: TreePath, entry: Entry },
    /// Present in the second tree only.
    Added { path: TreePath, entry: Entry },
    /// Present in both. A change of kind between directory, file and symlink is `Removed` plus `Added`.
    Modified { path: TreePath, from: Entry, to: Entry },
}

impl Change {
    pub fn path(&self) -> &TreePath {
        match self {
            Self::Removed { path, .. } | Self::Added { path, .. } | Self::Modified { path, .. } => path,
        }
    }
}

/// A subtree that both trees have, under different names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rename {
    pub from: TreePath,
    pub to: TreePath,
}

/// The difference between two trees of `source`.
#[derive(Debug)]
pub struct Comparison<S> {
    source: S,
    from: RootEntry,
    to: RootEntry,
    limits: PartLimits,
    renamed_directories: Vec<Rename>,
    /// All changes in path order, if they fit one part.
    few: Option<Vec<Change>>,
}

impl<S: DirectorySource> Comparison<S> {
    /// Compares two trees. Reads every directory that differs, except below directories that were renamed
    /// whole.
    pub fn of(
        source: S,
        from: &RootEntry,
        to: &RootEntry,
        limits: PartLimits,
    ) -> Result<Self, DiffError<S::Error>> {
        let few = Some(Collected::default());
        let mut walk = Walk { source: &source, limits, few, whole: BTreeMap::new() };
        walk.directory(&TreePath::root(), Some(from.object), Some(to.object))?;
        let renamed_directories = walk.match_renames()?;
        let few = walk.few.map(|few| {
            let mut changes = few.changes;
            changes.sort_by(|a, b| a.path().cmp(b.path()));
            changes
        });
        Ok(Self { source, from: *from, to: *to, limits, renamed_directories, few })
    }

    /// Reads directories from another source from now on.
    pub fn reading<T: DirectorySource>(self, source: T) -> Comparison<T> {
        let Self { source: _, from, to, limits, renamed_directories, few } = self;
        Comparison { source, from, to, limits, renamed_directories, few }
    }

    /// Directories that were renamed with everything below them, sorted by new path.
    pub fn renamed_directories(&self) -> &[Rename] {
        &self.renamed_directories
    }

    /// Whether the trees are equal below their roots.
    pub fn is_empty(&self) -> bool {
        self.few.as_ref().is_some_and(Vec::is_empty)
    }

    /// Whether all changes fit one part.
    pub fn is_small(&self) -> bool {
        self.few.is_some()
    }

    /// All changes in path order, a directory before its children; at least one part. A directory renamed
    /// whole is one `Removed` and one `Added`, without the paths below it.
    pub fn parts(&self) -> Parts<'_, S> {
        Parts::of(self)
    }

    /// Passes all changes to `show` in path order, until it returns `false`.
    pub fn each(&self, mut show: impl FnMut(&Change) -> bool) -> Result<(), DiffError<S::Error>> {
        for part in self.parts() {
            if !part?.changes.iter().all(&mut show) {
                break;
            }
        }
        Ok(())
    }

    /// Files of the first tree whose content is no longer at their path.
    pub fn released(&self) -> Result<Released<'_, S>, DiffError<S::Error>> {
        Released::of(self)
    }
}

/// Directories present in one of the trees, at paths where the other has none.
#[derive(Default)]
struct Whole {
    removed: Vec<(TreePath, ObjectHash)>,
    added: Vec<(TreePath, ObjectHash)>,
}

struct Walk<'a, S> {
    source: &'a S,
    limits: PartLimits,
    /// `None` once there are too many changes for one part.
    few: Option<Collected>,
    /// Directories not read yet, by the number of entries below them.
    whole: BTreeMap<u64, Whole>,
}

impl<S: DirectorySource> Walk<'_, S> {
    /// Pairs added directories with removed ones that have the same object, and descends into all others. A
    /// directory without entries is not worth a rename. The largest come first: once a size is reached, all
    /// directories of that size are known, because each enclosing directory is larger and has been read.
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

    fn directory(
        &mut self,
        path: &TreePath,
        from: Option<ObjectHash>,
        to: Option<ObjectHash>,
    ) -> Result<(), DiffError<S::Error>> {
        if from == to {
            return Ok(());
        }
        let failed = |source| DiffError::Source { path: path.clone(), source };
        let mut pairs = Pairs::new(self.source, from, to).map_err(failed)?;
        while let Some((old, new)) = pairs.next_pair().map_err(failed)? {
            self.entry(path, old.as_ref(), new.as_ref())?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        parent: &TreePath,
        old: Option<&Entry>,
        new: Option<&Entry>,
    ) -> Result<(), DiffError<S::Error>> {
        let Some(changed) = Changed::between(parent, old, new)? else { return Ok(()) };
        let Changed { path, changes, below: (from, to) } = changed;
        for change in changes.into_iter().flatten() {
            self.few = self.few.take().and_then(|few| few.with(change, &self.limits));
        }
        match (from, to) {
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

/// A directory object and the number of entries below it.
type Below = Option<(ObjectHash, u64)>;

/// A name that differs between two directories.
struct Changed {
    path: TreePath,
    changes: [Option<Change>; 2],
    /// The subdirectories with this name, before and after.
    below: (Below, Below),
}

impl Changed {
    /// `None` if nothing differs.
    fn between<E: std::error::Error>(
        parent: &TreePath,
        old: Option<&Entry>,
        new: Option<&Entry>,
    ) -> Result<Option<Self>, DiffError<E>> {
        let Some(name) = old.or(new).map(|e| &e.name).filter(|_| old != new) else { return Ok(None) };
        let path = parent.join(name).map_err(|source| DiffError::Path { path: parent.clone(), source })?;
        let object = |entry: Option<&Entry>| match entry.map(|e| &e.kind) {
            Some(Kind::Directory { object, totals }) => Some((*object, totals.entries)),
            _ => None,
        };
        let below = (object(old), object(new));
        let changes = match (old, new) {
            (Some(x), Some(y)) if std::mem::discriminant(&x.kind) == std::mem::discriminant(&y.kind) => {
                [Some(Change::Modified { path: path.clone(), from: x.clone(), to: y.clone() }), None]
            }
            _ => {
                let of = |entry: &Entry| (path.clone(), entry.clone());
                [
                    old.map(of).map(|(path, entry)| Change::Removed { path, entry }),
                    new.map(of).map(|(path, entry)| Change::Added { path, entry }),
                ]
            }
        };
        Ok(Some(Self { path, changes, below }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::tests::{entry, file, symlink};
    use crate::hash::ContentHash;

    #[derive(Debug, Default)]
    struct Objects(HashMap<ObjectHash, Arc<Page>>);

    impl DirectorySource for Objects {
        type Error = DecodeDirectoryError;

        fn page(&self, hash: &ObjectHash) -> Result<Arc<Page>, DecodeDirectoryError> {
            Ok(self.0[hash].clone())
        }
    }

    impl Objects {
        fn put(&mut self, entries: Vec<Entry>) -> Kind {
            let directory = Directory::new(entries).expect("unique names");
            let built = directory.build();
            self.0.extend(
                built
                    .pages
                    .iter()
                    .map(|(hash, bytes)| (*hash, Page::decode_verified(bytes, *hash).expect("decodes"))),
            );
            Kind::Directory { object: built.root, totals: built.totals }
        }

        fn root(&mut self, entries: Vec<Entry>) -> RootEntry {
            let Kind::Directory { object, totals } = self.put(entries) else { panic!("a directory") };
            RootEntry { object, totals, ..RootEntry::empty() }
        }
    }

    fn path(text: &str) -> TreePath {
        TreePath::from_bytes(text.as_bytes()).expect("a valid path")
    }

    fn compare<'a>(objects: &'a Objects, from: &RootEntry, to: &RootEntry) -> Comparison<&'a Objects> {
        let all = Comparison::of(objects, from, to, PartLimits::default()).expect("compares");
        assert!(all.is_small());
        let expected = changes(&all);
        for limit in 1..expected.len() {
            let limits = PartLimits { changes: limit, ..PartLimits::default() };
            let limited = Comparison::of(objects, from, to, limits).expect("compares");
            assert_eq!(limited.renamed_directories(), all.renamed_directories());
            assert!(!limited.is_small());
            let sizes: Vec<_> = limited.parts().map(|part| part.expect("a part").changes.len()).collect();
            let (last, others) = sizes.split_last().expect("a part");
            assert!(others.iter().all(|size| *size == limit) && (1..=limit).contains(last), "{sizes:?}");
            assert_eq!(changes(&limited), expected);
        }
        all
    }

    fn changes(comparison: &Comparison<&Objects>) -> Vec<Change> {
        let mut changes = Vec::new();
        comparison
            .each(|change| {
                changes.push(change.clone());
                true
            })
            .expect("compares");
        changes
    }

    fn names(comparison: &Comparison<&Objects>) -> Vec<String> {
        let line = |change: &Change| match change {
            Change::Removed { path, .. } => format!("- {path}"),
            Change::Added { path, .. } => format!("+ {path}"),
            Change::Modified { path, .. } => format!("~ {path}"),
        };
        changes(comparison).iter().map(line).collect()
    }

    fn leaves(comparison: &Comparison<&Objects>) -> Vec<String> {
        let mut leaves = Vec::new();
        comparison.each_leaf(|path| leaves.push(path.to_string())).expect("compares");
        leaves
    }

    fn released(comparison: &Comparison<&Objects>, content: &[u8]) -> Vec<TreePath> {
        let released = comparison.released().expect("reads");
        released.files(ContentHash::of(content)).map(|file| file.expect("reads").path).collect()
    }

    #[test]
    fn a_directory_renamed_whole_is_one_rename() {
        let mut objects = Objects::default();
        let leaf = objects.put(vec![file("x", b"1"), file("y", b"2")]);
        let docs = objects.put(vec![entry("leaf", leaf), file("z", b"3")]);
        let from = objects.root(vec![entry("docs", docs.clone()), file("i", b"0")]);
        let to = objects.root(vec![entry("manual", docs), file("i", b"0")]);
        let diff = compare(&objects, &from, &to);
        assert_eq!(names(&diff), ["- docs", "+ manual"]);
        assert_eq!(diff.renamed_directories(), [Rename { from: path("docs"), to: path("manual") }]);
        let all = ["docs/leaf/x", "docs/leaf/y", "docs/z", "manual/leaf/x", "manual/leaf/y", "manual/z"];
        assert_eq!(leaves(&diff), all);
    }

    #[test]
    fn leaves_are_files_and_symlinks_in_path_order_once() {
        let mut objects = Objects::default();
        let moved = objects.put(vec![file("x", b"1")]);
        let before = objects.put(vec![file("same", b"1"), file("gone", b"2"), file("kept", b"old")]);
        let after = objects.put(vec![file("same", b"1"), file("kept", b"new"), symlink("new", "kept")]);
        let from = objects.root(vec![entry("a", moved.clone()), entry("b", before)]);
        let to = objects.root(vec![file("a", b"a file now"), entry("b", after), entry("c", moved)]);
        let diff = compare(&objects, &from, &to);
        assert_eq!(leaves(&diff), ["a", "a/x", "b/gone", "b/kept", "b/new", "c/x"]);
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
        assert_eq!(names(&compare(&objects, &from, &to)), ["- docs", "+ manual"]);
    }

    #[test]
    fn a_directory_that_moves_out_of_one_that_goes_is_renamed() {
        let mut objects = Objects::default();
        let leaf = objects.put(vec![file("x", b"1"), file("y", b"2")]);
        let old = objects.put(vec![entry("leaf", leaf.clone()), file("z", b"3")]);
        let from = objects.root(vec![entry("old", old)]);
        let new = objects.put(vec![entry("deep", leaf), file("w", b"4"), file("v", b"5")]);
        let to = objects.root(vec![entry("new", new)]);
        let diff = compare(&objects, &from, &to);
        assert_eq!(
            names(&diff),
            ["+ new", "+ new/deep", "+ new/v", "+ new/w", "- old", "- old/leaf", "- old/z"]
        );
        assert_eq!(diff.renamed_directories(), [Rename { from: path("old/leaf"), to: path("new/deep") }]);
    }

    #[test]
    fn one_subtree_in_two_new_places_is_one_rename_and_one_addition() {
        let mut objects = Objects::default();
        let leaf = objects.put(vec![file("x", b"1")]);
        let from = objects.root(vec![entry("a", leaf.clone())]);
        let to = objects.root(vec![entry("b", leaf.clone()), entry("c", leaf)]);
        let diff = compare(&objects, &from, &to);
        assert_eq!(names(&diff), ["- a", "+ b", "+ c", "+ c/x"]);
        assert_eq!(diff.renamed_directories(), [Rename { from: path("a"), to: path("b") }]);
    }

    #[test]
    fn a_change_of_kind_removes_and_adds() {
        let mut objects = Objects::default();
        let leaf = objects.put(vec![file("x", b"1")]);
        let from = objects.root(vec![entry("a", leaf), symlink("b", "a"), file("c", b"2")]);
        let other = objects.put(vec![file("y", b"3")]);
        let to = objects.root(vec![file("a", b"1"), entry("b", other), symlink("c", "a")]);
        let diff = compare(&objects, &from, &to);
        assert_eq!(names(&diff), ["- a", "+ a", "- a/x", "- b", "+ b", "+ b/y", "- c", "+ c"]);
        assert_eq!(released(&diff, b"1"), [path("a/x")]);
    }

    #[test]
    fn released_is_what_goes_or_is_replaced() {
        let mut objects = Objects::default();
        let deep = objects.put(vec![file("same", b"1"), file("z", b"4")]);
        let from = objects.root(vec![file("a", b"1"), file("b", b"2"), entry("d", deep), file("e", b"")]);
        let mut touched = file("b", b"2");
        touched.metadata.mtime.seconds += 1;
        let deep = objects.put(vec![file("new", b"1")]);
        let to = objects.root(vec![file("a", b"3"), touched, entry("d", deep)]);
        let diff = compare(&objects, &from, &to);
        assert_eq!(names(&diff), ["~ a", "~ b", "~ d", "+ d/new", "- d/same", "- d/z", "- e"]);
        assert_eq!(released(&diff, b"1"), [path("a"), path("d/same")]);
        assert_eq!(released(&diff, b"4"), [path("d/z")]);
        for content in [b"2".as_slice(), b"3", b""] {
            assert!(released(&diff, content).is_empty());
        }
    }

    #[test]
    fn files_are_found_by_content_and_metadata_and_taken_once() {
        let mut objects = Objects::default();
        let mut other = file("b", b"1");
        other.metadata.mode = 0o600;
        let metadata = file("a", b"1").metadata;
        let from = objects.root(vec![file("a", b"1"), other, file("c", b"1")]);
        let to = objects.root(vec![file("c", b"2")]);
        let diff = compare(&objects, &from, &to);
        let mut released = diff.released().expect("reads");
        let one = ContentHash::of(b"1");
        for expected in ["a", "c"] {
            let found = released.like(one, &metadata).expect("reads").expect("is there");
            assert_eq!(found.path, path(expected));
            released.take(&found);
        }
        assert!(released.like(one, &metadata).expect("reads").is_none());
        assert_eq!(released.files(one).count(), 3, "also what was taken can be copied");
    }

    #[test]
    fn trees_that_are_alike_differ_in_one_empty_part() {
        let mut objects = Objects::default();
        let root = objects.root(vec![file("a", b"1")]);
        let same = compare(&objects, &root, &root);
        assert!(same.is_empty());
        assert_eq!(same.parts().count(), 1);
    }

    #[test]
    fn paths_that_are_long_make_parts_small() {
        let mut objects = Objects::default();
        let long = "n".repeat(200);
        let from = objects.root(Vec::new());
        let to = objects.root((0..9).map(|i| file(&format!("{long}{i}"), b"1")).collect());
        let limits = PartLimits { bytes: 1000, ..PartLimits::default() };
        let diff = Comparison::of(&objects, &from, &to, limits).expect("compares");
        let sizes: Vec<_> = diff.parts().map(|part| part.expect("a part").changes.len()).collect();
        assert_eq!(sizes, [3, 3, 3]);
        let last: Vec<_> = diff.parts().map(|part| part.expect("a part").is_last).collect();
        assert_eq!(last, [false, false, true]);
    }
}
