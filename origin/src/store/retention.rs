//! Rules for keeping generations.
//!
//! The newest few are kept whatever their age, and so are those whose root an agent holds. Among the others,
//! all of the last hour are kept, then the last of each hour for a day, then the last of each day. Labelled
//! ones are not thinned out. Generations older than the retention age are retired. If the history takes more
//! bytes than allowed, its oldest ones are retired as well.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use syncd_shared::hash::RootHash;
use syncd_shared::{Generation, GenerationNumber};

const HOUR_MS: i64 = 60 * 60 * 1_000;
const DAY_MS: i64 = 24 * HOUR_MS;

/// Extent of the history. The latest generation is never retired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Number of newest generations that are always kept.
    pub generations: usize,
    /// Age up to which older generations are kept, thinned out.
    pub age: Duration,
    /// Stored bytes allowed for the history in addition to the newest generation; `None` for no limit.
    pub bytes: Option<u64>,
}

impl Default for Retention {
    fn default() -> Self {
        Self { generations: 10, age: Duration::from_secs(7 * 24 * 60 * 60), bytes: None }
    }
}

impl Retention {
    /// Index of the first of the newest generations.
    fn newest(&self, count: usize) -> usize {
        count.saturating_sub(self.generations.max(1))
    }
}

/// Generations to retire because of their age. `generations` must be complete and sorted by number.
/// Generations with a root in `keep_roots` are kept. Times are milliseconds since 1970. A generation sealed
/// after `now_ms` (the clock was set back) counts as young.
pub fn retired(
    generations: &[Generation],
    retention: Retention,
    keep_roots: &HashSet<RootHash>,
    now_ms: i64,
) -> Vec<GenerationNumber> {
    let age_ms = i64::try_from(retention.age.as_millis()).unwrap_or(i64::MAX);
    // The last generation of each hour and day by clock time, so that the choice does not change as time
    // passes.
    let mut last_of: HashMap<(i64, i64), GenerationNumber> = HashMap::new();
    for generation in generations {
        for width_ms in [HOUR_MS, DAY_MS] {
            last_of.insert((width_ms, generation.created_ms.div_euclid(width_ms)), generation.number);
        }
    }
    let is_last = |generation: &Generation, width_ms: i64| {
        last_of.get(&(width_ms, generation.created_ms.div_euclid(width_ms))) == Some(&generation.number)
    };
    let stays = |generation: &Generation| match now_ms.saturating_sub(generation.created_ms) {
        age if age > age_ms => false,
        age if age <= HOUR_MS || !generation.label.is_empty() => true,
        age if age <= DAY_MS => is_last(generation, HOUR_MS),
        _ => is_last(generation, DAY_MS),
    };
    generations[..retention.newest(generations.len())]
        .iter()
        .filter(|generation| !stays(generation) && !keep_roots.contains(&generation.root_hash()))
        .map(|generation| generation.number)
        .collect()
}

/// A generation, and whether it may be retired to save space.
pub(super) struct Kept<'a> {
    pub generation: &'a Generation,
    pub may_retire: bool,
}

/// All generations in order of priority for space: the latest, then those that are always kept, then labelled
/// ones, then the rest; newer before older.
pub(super) fn keep_order<'a>(
    generations: &'a [Generation],
    retention: Retention,
    keep_roots: &HashSet<RootHash>,
) -> Vec<Kept<'a>> {
    let newest = retention.newest(generations.len());
    let kept = |(at, generation): (usize, &'a Generation)| {
        let may_retire = at < newest && !keep_roots.contains(&generation.root_hash());
        Kept { generation, may_retire }
    };
    let mut order: Vec<_> = generations.iter().enumerate().rev().map(kept).collect();
    order.sort_by_key(|kept| (kept.may_retire, kept.may_retire && kept.generation.label.is_empty()));
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use syncd_shared::{RootEntry, TreeId};

    fn generations(created_ms: &[i64]) -> Vec<Generation> {
        let generation = |(i, created_ms): (usize, &i64)| Generation {
            tree_id: TreeId::from_bytes([1; 16]),
            epoch: 1,
            trust: 1,
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
        let retention = Retention { generations: 2, age: Duration::from_millis(100), bytes: None };
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
        let retention = Retention { generations: 0, age: Duration::ZERO, bytes: None };
        assert_eq!(numbers(retired(&generations(&[0, 0]), retention, &HashSet::new(), 9)), [1]);
        assert!(retired(&[], retention, &HashSet::new(), 9).is_empty());
    }

    const MINUTE_MS: i64 = HOUR_MS / 60;

    #[test]
    fn history_is_thinned_by_the_hour_and_then_by_the_day() {
        // A generation every 20 minutes for nine days, the last one just now, at noon.
        let now_ms = 1_000 * DAY_MS + 12 * HOUR_MS;
        let ages: Vec<i64> = (0..9 * 72).map(|i| i * 20 * MINUTE_MS).rev().collect();
        let all = generations(&ages.iter().map(|age| now_ms - age).collect::<Vec<_>>());
        let retention = Retention { generations: 1, ..Retention::default() };
        let gone: HashSet<_> = retired(&all, retention, &HashSet::new(), now_ms).into_iter().collect();
        let kept: Vec<_> = all.iter().filter(|g| !gone.contains(&g.number)).collect();
        let within = |from: i64, to: i64| {
            kept.iter().filter(|g| (from..to).contains(&(now_ms - g.created_ms))).count()
        };
        assert_eq!(within(0, HOUR_MS + 1), 4, "all of the last hour");
        assert_eq!(within(HOUR_MS + 1, DAY_MS + 1), 23, "one an hour");
        assert_eq!(within(DAY_MS + 1, 9 * DAY_MS), 6, "one a day, and none beyond seven days");
        let last_hour_of_day = |g: &&&Generation| g.created_ms.rem_euclid(DAY_MS) >= DAY_MS - HOUR_MS;
        assert_eq!(
            kept.iter().filter(|g| now_ms - g.created_ms > DAY_MS).filter(last_hour_of_day).count(),
            6
        );
        // Thinning is stable: a generation kept by one run is not dropped early by a later one.
        let left: Vec<Generation> = kept.into_iter().cloned().collect();
        assert!(retired(&left, retention, &HashSet::new(), now_ms).is_empty());
    }

    #[test]
    fn the_newest_labelled_ones_and_those_of_agents_are_not_thinned() {
        let now_ms = 1_000 * DAY_MS;
        let mut all = generations(&[now_ms - 2 * DAY_MS; 15]);
        all[1].label = "release".into();
        let held = HashSet::from([all[2].root_hash()]);
        assert_eq!(numbers(retired(&all, Retention::default(), &held, now_ms)), [1, 4, 5]);
        let newest = Retention { age: Duration::ZERO, ..Retention::default() };
        assert_eq!(
            numbers(retired(&all, newest, &held, now_ms)),
            [1, 2, 4, 5],
            "labels do not outlive the history"
        );
    }

    #[test]
    fn bytes_go_to_the_latest_then_to_what_stays_anyway_then_to_labels() {
        let mut all = generations(&[0; 7]);
        all[1].label = "release".into();
        let held = HashSet::from([all[2].root_hash()]);
        let retention = Retention { generations: 2, ..Retention::default() };
        let order = keep_order(&all, retention, &held);
        let told: Vec<_> = order.iter().map(|kept| (kept.generation.number.get(), kept.may_retire)).collect();
        assert_eq!(told, [(7, false), (6, false), (3, false), (2, true), (5, true), (4, true), (1, true)]);
    }
}
