//! Decides when caches in front of the fleet are told to forget, and the difference to which trees. Pure.
//!
//! A cache may hold pages of every tree that a node has served since the last purge. It is purged once the
//! nodes that can be waited for serve the newest generation. Nodes that still serve another tree may fill it
//! again with pages of that tree: when the last of them has left it, the cache is purged again.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use syncd_shared::RootHash;

/// Time without a node that arrives, after which the others are no longer waited for.
pub(super) const QUIET_MS: i64 = 60_000;
/// Time after a start in which nodes reconnect.
const RECONNECT_MS: i64 = 5_000;
/// Trees that are remembered. Beyond that everything is purged.
const TREES_MAX: usize = 64;

/// A generation, or the tree of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Target {
    pub number: u64,
    pub root: RootHash,
}

/// State of the caches, as far as it is known. Durable.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    /// The generation that the caches were last purged for; `None`: never, so that they may hold anything.
    pub done: Option<Target>,
    /// Other trees whose pages may have got in since.
    pub others: BTreeSet<RootHash>,
}

/// A node that serves visitors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Serving {
    pub root: RootHash,
    /// The web server may still serve the tree before: its hook has not succeeded.
    pub is_switching: bool,
    /// Connected and not pinned: it will come along.
    pub is_awaited: bool,
}

/// The fleet at one moment.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    /// The newest generation that nodes were given.
    pub newest: Target,
    /// A rollout of it is under way.
    pub is_rolling: bool,
    pub nodes: Vec<Serving>,
    /// Trees of the generations after `done`; `None` if one of them is no longer known.
    pub sealed: Option<BTreeSet<RootHash>>,
}

/// Trees from which a change is purged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum From {
    Everything,
    Trees(BTreeSet<RootHash>),
}

/// A purge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Work {
    pub target: Target,
    pub from: From,
    /// Trees that nodes serve meanwhile.
    held: BTreeSet<RootHash>,
}

/// Next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    Nothing,
    /// Nodes are waited for, until this time at most; `None`: for a rollout.
    Wait(Option<i64>),
    Purge(Work),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Purging {
    pub known: Known,
    /// Nodes that had the newest generation at the last look, and since when.
    arrived: (u64, usize),
    since_ms: i64,
    /// No purge before.
    earliest_ms: i64,
}

impl Purging {
    pub fn new(known: Known, now_ms: i64) -> Self {
        Self { known, arrived: (0, 0), since_ms: now_ms, earliest_ms: now_ms.saturating_add(RECONNECT_MS) }
    }

    /// Looks at the fleet. `known` may have changed afterwards, and is then to be made durable.
    pub fn look(&mut self, facts: &Facts, now_ms: i64) -> Next {
        let there = facts.nodes.iter().filter(|node| node.is_there(facts)).count();
        if self.arrived != (facts.newest.number, there) {
            (self.arrived, self.since_ms) = ((facts.newest.number, there), now_ms);
        }
        if there == 0 {
            return Next::Nothing;
        }
        let held = self.held(facts);
        let from = match self.known.done {
            Some(done) if done == facts.newest => {
                self.known.others.extend(&held);
                From::Trees(self.known.others.difference(&held).copied().collect())
            }
            _ => self.since_done(facts, &held),
        };
        if matches!(&from, From::Trees(trees) if trees.is_empty()) {
            // The same tree under another number, or nothing has changed.
            if !facts.is_rolling && self.known.done != Some(facts.newest) {
                self.known = Known { done: Some(facts.newest), others: held };
            }
            return Next::Nothing;
        }
        if facts.is_rolling {
            return Next::Wait(None);
        }
        if now_ms < self.earliest_ms {
            return Next::Wait(Some(self.earliest_ms));
        }
        let quiet_at = self.since_ms.saturating_add(QUIET_MS);
        let all_there = facts.nodes.iter().all(|node| !node.is_awaited || node.is_there(facts));
        if !all_there && now_ms < quiet_at {
            return Next::Wait(Some(quiet_at));
        }
        Next::Purge(Work { target: facts.newest, from, held })
    }

    /// A purge has succeeded.
    pub fn done(&mut self, work: &Work) {
        self.known = Known { done: Some(work.target), others: work.held.clone() };
    }

    /// Trees other than the newest that nodes may serve. One whose hook is due may serve any.
    fn held(&self, facts: &Facts) -> BTreeSet<RootHash> {
        let mut held: BTreeSet<RootHash> = facts.nodes.iter().map(|node| node.root).collect();
        if facts.nodes.iter().any(|node| node.is_switching) {
            held.extend(&self.known.others);
            held.extend(self.known.done.iter().map(|done| done.root));
            held.extend(facts.sealed.iter().flatten());
        }
        held.remove(&facts.newest.root);
        held
    }

    /// Trees that caches may have pages of.
    fn since_done(&self, facts: &Facts, held: &BTreeSet<RootHash>) -> From {
        let (Some(done), Some(sealed)) = (self.known.done, &facts.sealed) else { return From::Everything };
        let all = self.known.others.iter().chain(held).chain(sealed).chain([&done.root]);
        let trees: BTreeSet<RootHash> = all.copied().filter(|root| *root != facts.newest.root).collect();
        if trees.len() > TREES_MAX { From::Everything } else { From::Trees(trees) }
    }
}

impl Serving {
    fn is_there(&self, facts: &Facts) -> bool {
        self.root == facts.newest.root && !self.is_switching
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(n: u8) -> RootHash {
        RootHash::from_bytes([n; 32])
    }

    fn target(n: u8) -> Target {
        Target { number: n.into(), root: root(n) }
    }

    fn trees(numbers: &[u8]) -> BTreeSet<RootHash> {
        numbers.iter().map(|n| root(*n)).collect()
    }

    fn at(n: u8) -> Serving {
        Serving { root: root(n), is_switching: false, is_awaited: true }
    }

    fn away(n: u8) -> Serving {
        Serving { is_awaited: false, ..at(n) }
    }

    fn facts(newest: u8, nodes: &[Serving], sealed: &[u8]) -> Facts {
        let sealed = Some(trees(sealed));
        Facts { newest: target(newest), is_rolling: false, nodes: nodes.to_vec(), sealed }
    }

    fn purged(newest: u8) -> Purging {
        Purging::new(Known { done: Some(target(newest)), others: BTreeSet::new() }, -RECONNECT_MS)
    }

    #[track_caller]
    fn purge(purging: &mut Purging, facts: &Facts, now: i64) -> From {
        let Next::Purge(work) = purging.look(facts, now) else { panic!("{:?}", purging.look(facts, now)) };
        assert_eq!(work.target, facts.newest);
        purging.done(&work);
        work.from
    }

    #[test]
    fn the_first_purge_is_of_everything() {
        let mut purging = Purging::new(Known::default(), -RECONNECT_MS);
        assert_eq!(purging.look(&facts(1, &[], &[]), 0), Next::Nothing, "nobody serves it");
        assert_eq!(purge(&mut purging, &facts(1, &[at(1)], &[]), 0), From::Everything);
        assert_eq!(purging.look(&facts(1, &[at(1)], &[]), 1), Next::Nothing);
    }

    #[test]
    fn after_a_start_nodes_may_reconnect_first() {
        let mut purging = Purging { earliest_ms: 100, ..purged(1) };
        assert_eq!(purging.look(&facts(2, &[at(2), away(1)], &[2]), 99), Next::Wait(Some(100)));
        assert_eq!(purge(&mut purging, &facts(2, &[at(2), at(2)], &[2]), 100), From::Trees(trees(&[1])));
        assert_eq!(purging.known.others, trees(&[]));
    }

    #[test]
    fn it_waits_for_the_last_node_that_is_connected_but_not_for_ever() {
        let mut purging = purged(1);
        assert_eq!(purging.look(&facts(2, &[at(1), at(1)], &[2]), 0), Next::Nothing);
        let half = facts(2, &[at(2), at(1)], &[2]);
        assert_eq!(purging.look(&half, 1_000), Next::Wait(Some(1_000 + QUIET_MS)));
        assert_eq!(purging.look(&half, QUIET_MS), Next::Wait(Some(1_000 + QUIET_MS)));
        assert_eq!(purge(&mut purged(1), &facts(2, &[at(2), at(2)], &[2]), 5), From::Trees(trees(&[1])));
        // The node that was too late is a straggler from then on.
        assert_eq!(purge(&mut purging, &half, 1_000 + QUIET_MS), From::Trees(trees(&[1])));
        assert_eq!(purging.look(&half, 1_001 + QUIET_MS), Next::Nothing);
        let all = facts(2, &[at(2), at(2)], &[]);
        assert_eq!(purge(&mut purging, &all, 2_000_000), From::Trees(trees(&[1])));
        assert_eq!(purging.look(&all, 2_000_001), Next::Nothing);
    }

    #[test]
    fn stragglers_cause_another_purge_when_the_last_has_left_its_tree() {
        let mut purging = purged(3);
        // One node is unreachable and another is pinned, at older trees.
        let before = facts(4, &[at(4), away(2), away(2), away(1)], &[4]);
        assert_eq!(purge(&mut purging, &before, 0), From::Trees(trees(&[1, 2, 3])));
        assert_eq!(purging.known.others, trees(&[1, 2]));
        assert_eq!(purging.look(&facts(4, &[at(4), at(4), away(2), away(1)], &[]), 1), Next::Nothing);
        let left = facts(4, &[at(4), at(4), at(4), away(1)], &[]);
        assert_eq!(purge(&mut purging, &left, 2), From::Trees(trees(&[2])));
        assert_eq!(purging.known.others, trees(&[1]));
        // A node comes back with a tree that nobody knew of, and leaves it.
        let stranger = facts(4, &[at(4), at(9)], &[]);
        assert!(matches!(purging.look(&stranger, 3), Next::Wait(_)));
        assert_eq!(purging.known.others, trees(&[1, 9]));
        assert_eq!(purge(&mut purging, &facts(4, &[at(4), at(4)], &[]), 4), From::Trees(trees(&[1, 9])));
    }

    #[test]
    fn a_rollout_that_failed_is_purged_after_the_return() {
        let mut purging = purged(1);
        let canary = Facts { is_rolling: true, ..facts(2, &[at(2), at(1)], &[2]) };
        assert_eq!(purging.look(&canary, 0), Next::Wait(None));
        assert_eq!(purging.look(&canary, 10 * QUIET_MS), Next::Wait(None));
        // Generation 3 is the tree of generation 1 again.
        let returned =
            Facts { newest: Target { number: 3, root: root(1) }, ..facts(1, &[at(1), at(1)], &[2, 1]) };
        assert_eq!(purge(&mut purging, &returned, 1), From::Trees(trees(&[2])));
    }

    #[test]
    fn a_tree_under_another_number_is_not_purged() {
        let mut purging = purged(1);
        let again = Facts { newest: Target { number: 2, root: root(1) }, ..facts(1, &[at(1)], &[1]) };
        assert_eq!(purging.look(&again, 0), Next::Nothing);
        assert_eq!(purging.known.done, Some(again.newest));
    }

    #[test]
    fn a_node_whose_hook_has_not_succeeded_may_serve_the_tree_before() {
        let mut purging = purged(1);
        let switching = Serving { is_switching: true, ..at(2) };
        let half = facts(2, &[at(2), switching], &[2]);
        assert!(matches!(purging.look(&half, 0), Next::Wait(Some(_))));
        assert_eq!(purge(&mut purging, &half, QUIET_MS), From::Trees(trees(&[1])));
        assert_eq!(purging.look(&half, QUIET_MS + 1), Next::Nothing);
        assert_eq!(
            purge(&mut purging, &facts(2, &[at(2), at(2)], &[]), QUIET_MS + 2),
            From::Trees(trees(&[1]))
        );
    }

    #[test]
    fn what_is_not_known_any_more_is_everything() {
        let forgotten = Facts { sealed: None, ..facts(9, &[at(9)], &[]) };
        assert_eq!(purge(&mut purged(1), &forgotten, 0), From::Everything);
        let many: Vec<u8> = (2..=200).collect();
        assert_eq!(purge(&mut purged(1), &facts(200, &[at(200)], &many), 0), From::Everything);
    }
}
