//! Which generations are kept.

use std::collections::HashSet;
use std::time::Duration;

use syncd_shared::hash::RootHash;
use syncd_shared::{Generation, GenerationNumber};

/// A generation is retired once it is neither among the newest nor young. The latest never is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// This many of the newest stay.
    pub generations: usize,
    /// What was sealed within this time stays.
    pub age: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self { generations: 10, age: Duration::from_secs(7 * 24 * 60 * 60) }
    }
}

/// The generations to retire, of all that there are, sorted by number. Those with a root of `keep_roots` stay. Times are
/// milliseconds since 1970; one that was sealed after `now_ms` (the clock was set back) is young.
pub fn retired(
    generations: &[Generation],
    retention: Retention,
    keep_roots: &HashSet<RootHash>,
    now_ms: i64,
) -> Vec<GenerationNumber> {
    let old = generations.len().saturating_sub(retention.generations.max(1));
    let age_ms = i64::try_from(retention.age.as_millis()).unwrap_or(i64::MAX);
    generations[..old]
        .iter()
        .filter(|g| now_ms.saturating_sub(g.created_ms) > age_ms && !keep_roots.contains(&g.root_hash()))
        .map(|g| g.number)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use syncd_shared::{RootEntry, TreeId};

    fn generations(created_ms: &[i64]) -> Vec<Generation> {
        let generation = |(i, created_ms): (usize, &i64)| Generation {
            tree_id: TreeId::from_bytes([1; 16]),
            number: GenerationNumber::new(i as u64 + 1).unwrap(),
            root: RootEntry { totals: Default::default(), ..root(i as u32) },
            parent: None,
            created_ms: *created_ms,
            label: String::new(),
        };
        created_ms.iter().enumerate().map(generation).collect()
    }

    fn root(uid: u32) -> RootEntry {
        let mut root = RootEntry::empty();
        root.metadata.uid = uid;
        root
    }

    fn numbers(retired: Vec<GenerationNumber>) -> Vec<u64> {
        retired.into_iter().map(GenerationNumber::get).collect()
    }

    #[test]
    fn only_what_is_old_by_count_and_by_age_is_retired() {
        let retention = Retention { generations: 2, age: Duration::from_millis(100) };
        let all = generations(&[0, 10, 500, 20, 30]);
        let none = HashSet::new();
        assert_eq!(numbers(retired(&all, retention, &none, 550)), [1, 2]);
        assert_eq!(numbers(retired(&all, retention, &none, 700)), [1, 2, 3]);
        assert_eq!(numbers(retired(&all, retention, &none, 50)), [] as [u64; 0]);
        let held = HashSet::from([all[1].root_hash()]);
        assert_eq!(numbers(retired(&all, retention, &held, 700)), [1, 3]);
    }

    #[test]
    fn the_latest_is_never_retired() {
        let retention = Retention { generations: 0, age: Duration::ZERO };
        assert_eq!(numbers(retired(&generations(&[0, 0]), retention, &HashSet::new(), 9)), [1]);
        assert!(retired(&[], retention, &HashSet::new(), 9).is_empty());
    }
}
