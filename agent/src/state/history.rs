//! Remembers which directories the last activations changed, so that a retired tree need not be inspected as
//! a whole.
//!
//! In a tree that was live, every name that no later activation touched still links the same inode as in the
//! live tree. The memory is lost with the process, and cleared when the live tree is exchanged or found
//! damaged.
//!
//! The last proof of a held tree is remembered too, so that a second one looks only at what changed since.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use syncd_shared::diff::{Change, Comparison, DiffError};
use syncd_shared::{Component, ContentHash, Timestamp, TreePath};

use crate::state::record::{InodeChanges, Record, RecordError};

/// Number of activations remembered: more than the trees that wait to be recycled.
const STEPS_MAX: usize = 16;
/// Limit of the directories remembered for one activation.
const DIRECTORIES_MAX: usize = 4_096;
/// Limit of the names remembered for one directory.
const NAMES_MAX: usize = 32;

/// The remembered activations and the last proof.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    /// Oldest first.
    steps: VecDeque<Step>,
    proven: Option<Proven>,
}

/// Changes since a tree was known to be right.
#[derive(Debug, Clone)]
pub(crate) struct Since {
    /// A directory with a later ctime may have other names.
    pub finished: Timestamp,
    /// Names that may have another inode than in the live tree.
    pub touched: Touched,
}

/// A held tree that was found to be right beside a live tree.
#[derive(Debug)]
pub(crate) struct Proven {
    pub generation: u64,
    /// Number of the live generation.
    pub live: u64,
    /// `None`: too many names have another inode than in the live tree.
    pub since: Option<Since>,
    pub hashed: Hashed,
    /// Files and symlinks with another inode than at the same path of the live tree.
    pub others: BTreeMap<TreePath, u64>,
    /// Inode numbers of the tree, as changes to those of the live tree.
    pub inodes: InodeChanges,
}

/// Files that were hashed by inode, with their ctime at that time. Those changed during the proof are left
/// out.
pub(crate) type Hashed = HashMap<u64, (Timestamp, ContentHash)>;

#[derive(Debug)]
struct Step {
    from: u64,
    to: u64,
    finished: Timestamp,
    touched: Touched,
}

/// Directories changed by activations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Touched {
    /// Directories in which names were added, removed or changed.
    pub names: HashMap<TreePath, Names>,
    /// Directories that were added, removed, or were another kind of file before.
    pub remade: HashSet<TreePath>,
}

/// Changed names of a directory; `None`: many.
pub(crate) type Names = Option<BTreeSet<Component>>;

impl Touched {
    /// Directories changed by an update; `None`: too many, or directories were renamed whole.
    pub fn by(comparison: &Comparison<&Record>) -> Result<Option<Self>, DiffError<RecordError>> {
        if !comparison.is_small() || !comparison.renamed_directories().is_empty() {
            return Ok(None);
        }
        let mut touched = Self::default();
        comparison.each(|change| {
            let (path, directories) = match change {
                Change::Added { path, entry } | Change::Removed { path, entry } => {
                    (path, entry.is_directory())
                }
                // Only its metadata changed, which is checked in any case.
                Change::Modified { from, to, .. } if from.is_directory() && to.is_directory() => return true,
                Change::Modified { path, from, to } => (path, from.is_directory() || to.is_directory()),
            };
            if let Some((parent, name)) = path.split_last() {
                touched.note(parent, Some(BTreeSet::from([name])));
            }
            if directories {
                touched.remade.insert(path.clone());
            }
            touched.is_within()
        })?;
        Ok(Some(touched).filter(Self::is_within))
    }

    /// Adds files and symlinks that have other inodes; `None`: too many directories.
    pub fn with<'a>(mut self, paths: impl Iterator<Item = &'a TreePath>) -> Option<Self> {
        for (parent, name) in paths.filter_map(TreePath::split_last) {
            self.note(parent, Some(BTreeSet::from([name])));
            if !self.is_within() {
                return None;
            }
        }
        Some(self)
    }

    fn is_within(&self) -> bool {
        self.names.len() + self.remade.len() <= DIRECTORIES_MAX
    }

    fn note(&mut self, directory: TreePath, names: Names) {
        let known = self.names.entry(directory).or_insert_with(|| Some(BTreeSet::new()));
        *known = known.take().zip(names).map(|(known, names)| known.union(&names).cloned().collect());
        known.take_if(|names| names.len() > NAMES_MAX);
    }

    fn add(&mut self, other: &Self) {
        other.names.iter().for_each(|(path, names)| self.note(path.clone(), names.clone()));
        self.remade.extend(other.remade.iter().cloned());
    }
}

impl Steps {
    /// Notes that generation `to`, last changed at `finished`, replaced `from`. `None`: unknown.
    pub fn add(&mut self, from: u64, to: u64, finished: Option<Timestamp>, touched: Option<Touched>) {
        self.proven = None;
        let (Some(touched), Some(finished)) = (touched, finished) else { return self.forget() };
        if self.steps.len() == STEPS_MAX {
            self.steps.pop_front();
        }
        self.steps.push_back(Step { from, to, finished, touched });
    }

    /// Notes the result of a proof.
    pub fn prove(&mut self, proven: Proven) {
        self.proven = Some(proven);
    }

    /// The last proof, if it was of this tree beside this live tree.
    pub fn proven(&self, generation: u64, live: u64) -> Option<&Proven> {
        self.proven.as_ref().filter(|proven| (proven.generation, proven.live) == (generation, live))
    }

    /// Changes in the tree of a generation since it was last known to be right; `None`: unknown.
    pub fn since(&self, generation: u64, live: u64) -> Option<Since> {
        let activated = || {
            let (finished, touched) = self.finished(generation).zip(self.between(generation, live))?;
            Some(Since { finished, touched })
        };
        self.proven(generation, live).and_then(|proven| proven.since.clone()).or_else(activated)
    }

    /// Time at which this process last changed or proved the tree of a generation.
    pub fn finished(&self, generation: u64) -> Option<Timestamp> {
        self.steps.iter().rfind(|step| step.to == generation).map(|step| step.finished)
    }

    /// Whether a remembered step is about this generation.
    pub fn knows(&self, generation: u64) -> bool {
        self.steps.iter().any(|step| [step.from, step.to].contains(&generation))
    }

    /// Forgets everything.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// All changes since `from` was last live, up to the live generation `to`; `None`: unknown.
    fn between(&self, from: u64, to: u64) -> Option<Touched> {
        let mut at = from;
        let mut all = Touched::default();
        let left = self.steps.iter().rposition(|step| step.from == from).unwrap_or(self.steps.len());
        for step in self.steps.iter().skip(left).filter(|_| from != to) {
            if step.from != at {
                return None;
            }
            all.add(&step.touched);
            at = step.to;
        }
        (at == to).then_some(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> TreePath {
        TreePath::from_bytes(name.as_bytes()).unwrap()
    }

    fn touched(names: &[&str]) -> Touched {
        let name = || Some(BTreeSet::from([Component::new(b"n").unwrap()]));
        Touched { names: names.iter().map(|path_| (path(path_), name())).collect(), ..Touched::default() }
    }

    fn at(seconds: u64) -> Option<Timestamp> {
        Some(Timestamp { seconds: seconds as i64, nanoseconds: 0 })
    }

    #[test]
    fn what_changed_adds_up_along_the_way() {
        let mut steps = Steps::default();
        steps.add(1, 2, at(2), Some(touched(&["a"])));
        steps.add(2, 5, at(5), Some(Touched { remade: HashSet::from([path("c")]), ..touched(&["b"]) }));
        steps.add(5, 6, at(6), Some(touched(&["d", "b"])));
        let expected = Touched { remade: HashSet::from([path("c")]), ..touched(&["b", "d"]) };
        assert_eq!(steps.between(2, 6), Some(expected));
        assert_eq!(steps.between(6, 6), Some(Touched::default()));
        assert_eq!((steps.finished(5), steps.finished(1)), (at(5), None));
    }

    #[test]
    fn names_of_a_directory_add_up_until_they_are_many() {
        let mut all = Touched::default();
        for number in 0..=NAMES_MAX {
            let name = Component::new(number.to_string().as_bytes()).unwrap();
            let one = HashMap::from([(path("a"), Some(BTreeSet::from([name])))]);
            assert_eq!(all.names.get(&path("a")).map_or(0, |names| names.as_ref().unwrap().len()), number);
            all.add(&Touched { names: one, ..Touched::default() });
        }
        assert_eq!(all.names.get(&path("a")), Some(&None));
        all.add(&touched(&["a"]));
        assert_eq!(all.names.get(&path("a")), Some(&None));
    }

    #[test]
    fn a_tree_that_was_live_twice_differs_by_what_changed_since_the_second_time() {
        let mut steps = Steps::default();
        steps.add(1, 2, at(2), Some(touched(&["a"])));
        steps.add(2, 1, at(3), Some(touched(&["a", "b"])));
        steps.add(1, 4, at(4), Some(touched(&["c"])));
        let since = steps.since(1, 4).unwrap();
        assert_eq!((Some(since.finished), since.touched), (at(3), touched(&["c"])));
        assert_eq!(steps.between(2, 4), Some(touched(&["a", "b", "c"])));
    }

    #[test]
    fn a_proof_counts_for_its_two_trees_until_all_is_forgotten() {
        let mut steps = Steps::default();
        steps.add(1, 2, at(2), Some(touched(&["a"])));
        let proof = |since| Proven {
            generation: 1,
            live: 2,
            since,
            hashed: Hashed::new(),
            others: BTreeMap::new(),
            inodes: InodeChanges::default(),
        };
        steps.prove(proof(at(9).map(|finished| Since { finished, touched: touched(&["b"]) })));
        let since = steps.since(1, 2).unwrap();
        assert_eq!((Some(since.finished), since.touched), (at(9), touched(&["b"])));
        assert!(steps.proven(1, 2).is_some() && steps.proven(1, 3).is_none() && steps.proven(2, 2).is_none());
        assert_eq!(steps.since(2, 2).map(|since| since.touched), Some(Touched::default()));
        // Very many names differ: what the activations tell.
        steps.prove(proof(None));
        assert_eq!(steps.since(1, 2).map(|since| since.touched), None, "when 1 was made is not known");
        steps.forget();
        assert!(steps.proven(1, 2).is_none() && steps.since(2, 2).is_none());
    }

    #[test]
    fn a_way_with_a_gap_is_not_known() {
        let mut steps = Steps::default();
        steps.add(1, 2, at(2), Some(touched(&["a"])));
        steps.add(3, 4, at(4), Some(touched(&["b"])));
        assert_eq!(steps.between(1, 4), None);
        assert_eq!(steps.between(0, 4), None);
        assert_eq!(steps.between(3, 5), None);
        assert!(steps.knows(1) && steps.knows(4) && !steps.knows(5));
        steps.add(4, 5, at(5), None);
        assert_eq!(steps.between(3, 4), None);
    }

    #[test]
    fn old_activations_are_forgotten() {
        let mut steps = Steps::default();
        for number in 1..40 {
            steps.add(number, number + 1, at(number), Some(touched(&["a"])));
        }
        assert_eq!(steps.between(1, 40), None);
        assert!(steps.between(30, 40).is_some());
    }
}
