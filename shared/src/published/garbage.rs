//! Decides which objects of a published tree may be deleted.
//!
//! An object is deleted in two looks, a grace apart. The first look writes the names of what no kept
//! generation lists to the object at [`GARBAGE`]. A later look reads the generations again, and deletes what
//! was named then and is still not listed. In between, publishers put nothing under a name that is written
//! there, and readers end the transfers that they have begun.
//!
//! ```text
//! listed MILLISECONDS    time of the first look, since 1970, by the origin's clock
//! NAME                   an object
//! ```
//!
//! The object is not signed: whoever can write it can delete objects anyway. `head` is never deleted.
//!
//! This module does no IO.

use std::collections::{BTreeSet, HashSet};

use super::PREFIXES;

/// Name of the object that names what is about to be deleted.
pub const GARBAGE: &str = "garbage";
/// Longest object at [`GARBAGE`].
pub const GARBAGE_MAX_BYTES: usize = 64 * 1024 * 1024;
/// Names in one object at [`GARBAGE`]. Further objects wait for the next one.
const NAMES_MAX: usize = GARBAGE_MAX_BYTES / 128;

/// An object in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub name: String,
    pub bytes: u64,
    /// When it was written, by the store's clock, in milliseconds since 1970.
    pub modified_ms: i64,
}

/// The content of the object at [`GARBAGE`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GarbageList {
    pub listed_ms: i64,
    pub names: BTreeSet<String>,
}

impl GarbageList {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = format!("listed {}\n", self.listed_ms);
        self.names.iter().for_each(|name| out.extend([name.as_str(), "\n"]));
        out.into_bytes()
    }

    /// Reads a list. Anything else gives `None`, and counts as no list.
    pub fn decode(object: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(object).ok()?.strip_suffix('\n')?;
        let mut lines = text.lines();
        let listed_ms = lines.next()?.strip_prefix("listed ")?.parse().ok()?;
        let names: BTreeSet<String> = lines.map(str::to_owned).collect();
        names.iter().all(|name| may_be_deleted(name)).then_some(Self { listed_ms, names })
    }
}

fn may_be_deleted(name: &str) -> bool {
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Result of one look.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// To be deleted now, generations first: nobody finds the way to what goes after them.
    pub delete: Vec<Stored>,
    /// The list to be written. `None`: the one that is there stays.
    pub list: Option<GarbageList>,
    /// Objects on the list that stay for now.
    pub waiting: Vec<Stored>,
    /// When they may be deleted, by the origin's clock.
    pub due_ms: Option<i64>,
}

/// Looks once. `needed` are the names that kept generations or this origin's journal list. The list of an
/// earlier look is due when it is older than `grace_ms`.
pub fn look(
    objects: &[Stored],
    needed: &HashSet<String>,
    earlier: Option<&GarbageList>,
    now_ms: i64,
    grace_ms: i64,
) -> Look {
    let unneeded =
        || objects.iter().filter(|object| may_be_deleted(&object.name) && !needed.contains(&object.name));
    let age = |since: i64| now_ms.saturating_sub(since);
    if let Some(earlier) = earlier.filter(|earlier| (0..grace_ms).contains(&age(earlier.listed_ms))) {
        let waiting = unneeded().filter(|object| earlier.names.contains(&object.name)).cloned().collect();
        let due_ms = Some(earlier.listed_ms.saturating_add(grace_ms));
        return Look { waiting, due_ms, ..Look::default() };
    }
    // A list from the future is of a wrong clock: it is replaced, and the grace begins again.
    let due = earlier.filter(|earlier| age(earlier.listed_ms) >= grace_ms);
    let is_due = |object: &&Stored| due.is_some_and(|due| due.names.contains(&object.name));
    let mut delete: Vec<Stored> = unneeded().filter(is_due).cloned().collect();
    delete.sort_by_key(|object| !object.name.starts_with("gen/"));
    // A young object that nobody lists may be of an upload that goes on.
    let is_old = |object: &&Stored| age(object.modified_ms) >= grace_ms;
    let waiting: Vec<Stored> =
        unneeded().filter(|object| is_old(object) && !is_due(object)).take(NAMES_MAX).cloned().collect();
    let names = waiting.iter().map(|object| object.name.clone()).collect();
    let due_ms = (!waiting.is_empty()).then(|| now_ms.saturating_add(grace_ms));
    Look { delete, list: Some(GarbageList { listed_ms: now_ms, names }), waiting, due_ms }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: i64 = 1000;

    fn objects(names: &[&str], modified_ms: i64) -> Vec<Stored> {
        names.iter().map(|name| Stored { name: (*name).into(), bytes: 1, modified_ms }).collect()
    }

    fn needed(names: &[&str]) -> HashSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn names(objects: &[Stored]) -> Vec<&str> {
        objects.iter().map(|object| object.name.as_str()).collect()
    }

    #[test]
    fn an_object_is_deleted_by_the_second_look_after_the_grace() {
        let there = objects(&["pack/a", "pack/b", "gen/1", "head", "other"], 0);
        let first = look(&there, &needed(&["pack/b"]), None, 5000, GRACE);
        assert!(first.delete.is_empty());
        assert_eq!(names(&first.waiting), ["pack/a", "gen/1"]);
        let list = first.list.unwrap();
        let early = look(&there, &needed(&["pack/b"]), Some(&list), 5999, GRACE);
        assert!(early.delete.is_empty() && early.list.is_none());
        assert_eq!(early.due_ms, Some(6000));
        let second = look(&there, &needed(&["pack/b"]), Some(&list), 6000, GRACE);
        assert_eq!(names(&second.delete), ["gen/1", "pack/a"], "generations first");
        assert!(second.list.unwrap().names.is_empty());
    }

    #[test]
    fn what_a_generation_lists_again_stays() {
        let there = objects(&["pack/a"], 0);
        let list = look(&there, &needed(&[]), None, 5000, GRACE).list.unwrap();
        let second = look(&there, &needed(&["pack/a"]), Some(&list), 9000, GRACE);
        assert_eq!(
            second,
            Look { list: Some(GarbageList { listed_ms: 9000, ..Default::default() }), ..Look::default() }
        );
    }

    #[test]
    fn young_objects_are_left_alone_and_a_list_from_the_future_counts_as_none() {
        let there = objects(&["pack/a"], 4500);
        assert!(look(&there, &needed(&[]), None, 5000, GRACE).waiting.is_empty());
        let future = GarbageList { listed_ms: 90_000, names: ["pack/a".to_owned()].into() };
        let found = look(&there, &needed(&[]), Some(&future), 6000, GRACE);
        assert!(found.delete.is_empty());
        assert_eq!(found.list.unwrap().listed_ms, 6000);
    }

    #[test]
    fn a_list_comes_back_and_names_nothing_else() {
        let list = GarbageList { listed_ms: 7, names: ["gen/1".to_owned(), "pack/a".to_owned()].into() };
        assert_eq!(GarbageList::decode(&list.encode()), Some(list));
        for other in ["listed 7\nhead\n", "listed x\n", "", "listed 7", "listed 7\n../pack/a\n"] {
            assert_eq!(GarbageList::decode(other.as_bytes()), None, "{other}");
        }
    }
}
