//! Remembers which directories the last activations changed, so that a retired tree need not be inspected as
//! a whole.
//!
//! In a tree that was live, every name that no later activation touched still links the same inode as in the
//! live tree. The memory is lost with the process, and cleared when the live tree is exchanged or found
//! damaged.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use syncd_shared::diff::{Change, Comparison, DiffError};
use syncd_shared::{Component, Timestamp, TreePath};

use crate::state::record::{Record, RecordError};

/// Number of activations remembered: more than the trees that wait to be recycled.
const STEPS_MAX: usize = 16;
/// Limit of the directories remembered for one activation.
const DIRECTORIES_MAX: usize = 4_096;
/// Limit of the names remembered for one directory.
const NAMES_MAX: usize = 32;

/// The remembered activations, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Steps(VecDeque<Step>);

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
        let is_within = |touched: &Self| touched.names.len() + touched.remade.len() <= DIRECTORIES_MAX;
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
            is_within(&touched)
        })?;
        Ok(Some(touched).filter(is_within))
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
        let (Some(touched), Some(finished)) = (touched, finished) else { return self.forget() };
        if self.0.len() == STEPS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(Step { from, to, finished, touched });
    }

    /// Time at which this process last changed the tree of a generation.
    pub fn finished(&self, generation: u64) -> Option<Timestamp> {
        self.0.iter().find(|step| step.to == generation).map(|step| step.finished)
    }

    /// Forgets everything.
    pub fn forget(&mut self) {
        self.0.clear();
    }

    /// All changes between two generations; `None`: unknown.
    pub fn between(&self, from: u64, to: u64) -> Option<Touched> {
        let mut at = from;
        let mut all = Touched::default();
        for step in self.0.iter().skip_while(|step| step.from != from) {
            if at == to {
                break;
            }
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
    fn a_way_with_a_gap_is_not_known() {
        let mut steps = Steps::default();
        steps.add(1, 2, at(2), Some(touched(&["a"])));
        steps.add(3, 4, at(4), Some(touched(&["b"])));
        assert_eq!(steps.between(1, 4), None);
        assert_eq!(steps.between(0, 4), None);
        assert_eq!(steps.between(3, 5), None);
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
