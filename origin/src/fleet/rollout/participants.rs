//! The nodes as a rollout sees them, and who takes part in which step.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use syncd_shared::{CheckOutcome, RootHash};

use super::policy::{Policy, Step};

/// A generation as rollouts compare it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Target {
    pub number: u64,
    pub root: RootHash,
}

/// Facts about a node at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    pub name: &'a str,
    pub group: &'a str,
    pub connected: bool,
    /// The linked generation.
    pub linked: Option<Target>,
    /// Whether the on-activate hook has succeeded for it.
    pub is_live: bool,
    /// Complete tree that waits for its activation, and not for the node's own check.
    pub staged: Option<Target>,
    /// Newest result of the node's own check, with its last lines.
    pub check: Option<(Target, CheckOutcome, &'a str)>,
    pub refused: &'a [RootHash],
    /// Drained by either side.
    pub drained: bool,
    /// Pinned by either side.
    pub pinned: bool,
    /// The last error.
    pub error: Option<&'a str>,
}

impl Node<'_> {
    /// Whether the node does not take a root: its check failed there. One whose check failed on both refuses
    /// what it returned from, and nothing if it stays.
    pub fn refuses(&self, root: &RootHash) -> bool {
        let failed = |(of, outcome, _): (Target, _, _)| of.root == *root && outcome == CheckOutcome::Failed;
        self.refused.contains(root) || self.check.is_some_and(failed)
    }

    /// Failure of the node's check on a generation, or on its tree under an earlier number if it has it live.
    pub fn failed_on(&self, target: Target) -> Option<&str> {
        let is_of = |of: Target| of == target || of.root == target.root && self.linked == Some(target);
        self.check.filter(|(of, outcome, _)| is_of(*of) && is_failure(*outcome)).map(|(_, _, output)| output)
    }

    /// Whether the node could activate the generation now, or has.
    pub fn is_ready_for(&self, target: Target) -> bool {
        self.connected && (self.staged == Some(target) || self.linked == Some(target))
    }

    /// Whether the generation is live: hook and check, where there are any, have passed.
    pub fn has_live(&self, target: Target) -> bool {
        let passed = self
            .check
            .is_none_or(|(of, outcome, _)| of.root == target.root && outcome == CheckOutcome::Passed);
        self.connected && self.linked == Some(target) && self.is_live && passed
    }

    /// One remark of why the node does not have the generation.
    pub fn why_missing(&self, target: Target) -> String {
        let linked = || match self.linked {
            Some(linked) => format!("still at generation {}", linked.number),
            None => "empty".to_owned(),
        };
        let why = match self.check {
            _ if !self.connected => "not connected".to_owned(),
            Some((_, CheckOutcome::FailedBefore, output)) if self.linked != Some(target) => {
                format!("its check fails on what is live: {output}")
            }
            Some((of, CheckOutcome::Running, _)) if of == target => "its check has not passed yet".to_owned(),
            _ if self.linked == Some(target) => "its hook has not succeeded".to_owned(),
            _ => self.error.map_or_else(linked, str::to_owned),
        };
        format!("{} ({why})", self.name)
    }
}

fn is_failure(outcome: CheckOutcome) -> bool {
    matches!(outcome, CheckOutcome::Failed | CheckOutcome::FailedOnBoth)
}

/// Steps of the participants, by name, as determined at the start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Participants {
    /// Index of the step of each participant, drained ones included.
    steps: BTreeMap<String, usize>,
}

impl Participants {
    /// Chooses the participants: connected, not pinned, and not refusing the generation. Drained ones
    /// activate with the last step.
    ///
    /// # Errors
    /// Name of a group of the policy that has no counted participant.
    pub fn choose(policy: &Policy, target: Target, nodes: &[Node<'_>]) -> Result<Self, String> {
        let takes_part = |node: &&Node<'_>| node.connected && !node.pinned && !node.refuses(&target.root);
        let mut counted: Vec<&Node<'_>> =
            nodes.iter().filter(takes_part).filter(|node| !node.drained).collect();
        counted.sort_by_key(|node| node.name);
        let mut participants = Self::default();
        let last = policy.steps.len().saturating_sub(1);
        for node in nodes.iter().filter(takes_part).filter(|node| node.drained) {
            participants.steps.insert(node.name.to_owned(), last);
        }
        for step in &policy.steps {
            if let Step::Group(group) = step
                && !counted.is_empty()
                && !counted.iter().any(|node| node.group == group)
            {
                return Err(group.clone());
            }
        }
        let total = counted.len();
        for (index, step) in policy.steps.iter().enumerate() {
            let limit = match step {
                Step::Nodes(nodes) => *nodes,
                Step::Percent(percent) => share(total, *percent).max(1),
                Step::Group(_) | Step::Rest => usize::MAX,
            };
            let is_of = |node: &Node<'_>| !matches!(step, Step::Group(group) if node.group != group);
            let mut taken = 0;
            counted.retain(|node| {
                let takes = taken < limit && is_of(node);
                if takes {
                    taken += 1;
                    participants.steps.insert(node.name.to_owned(), index);
                }
                !takes
            });
        }
        Ok(participants)
    }

    pub fn has(&self, name: &str) -> bool {
        self.steps.contains_key(name)
    }

    /// Step of a node. Nodes that came later belong to the step of their group, or to the last one.
    pub fn step_of(&self, node: &Node<'_>, policy: &Policy) -> usize {
        let of_group =
            || policy.steps.iter().position(|step| matches!(step, Step::Group(g) if g == node.group));
        let last = policy.steps.len().saturating_sub(1);
        self.steps.get(node.name).copied().unwrap_or_else(|| of_group().unwrap_or(last))
    }

    /// Whether a step had participants at the start.
    pub fn has_step(&self, step: usize) -> bool {
        self.steps.values().any(|of| *of == step)
    }

    /// Participants of a step that count: enrolled, and neither drained nor pinned since.
    pub fn counted<'n>(&self, step: usize, nodes: &'n [Node<'n>]) -> Vec<&'n Node<'n>> {
        let counts =
            |node: &&Node<'_>| self.steps.get(node.name) == Some(&step) && !node.drained && !node.pinned;
        nodes.iter().filter(counts).collect()
    }
}

/// A percentage of a number, rounded up.
fn share(total: usize, percent: u8) -> usize {
    total.saturating_mul(usize::from(percent)).div_ceil(100)
}

/// Number of nodes, of those that count, that suffice at a deadline: at least one.
pub fn required(counted: usize, quorum_percent: u8) -> usize {
    share(counted, quorum_percent).max(1)
}

#[cfg(test)]
mod tests {
    use super::super::machine::tests::{GOOD, NEW, node};
    use super::*;

    fn steps(policy: Vec<Step>, nodes: &[Node<'_>]) -> Result<Vec<(String, usize)>, String> {
        let policy = Policy { steps: policy, ..Policy::together() };
        Participants::choose(&policy, NEW, nodes).map(|chosen| chosen.steps.into_iter().collect())
    }

    fn of(names: &[(&str, usize)]) -> Vec<(String, usize)> {
        names.iter().map(|(name, step)| ((*name).to_owned(), *step)).collect()
    }

    #[test]
    fn percentages_are_of_the_starting_set_rounded_up_and_at_least_one() {
        let names = ["a", "b", "c", "d", "e"];
        let nodes = names.map(node);
        let policy = vec![Step::Nodes(1), Step::Percent(25), Step::Rest];
        let expected = of(&[("a", 0), ("b", 1), ("c", 1), ("d", 2), ("e", 2)]);
        assert_eq!(steps(policy.clone(), &nodes), Ok(expected));
        assert_eq!(steps(vec![Step::Percent(1), Step::Rest], &nodes[..2]), Ok(of(&[("a", 0), ("b", 1)])));
        assert_eq!((required(10, 90), required(3, 90), required(5, 0), required(0, 100)), (9, 3, 1, 1));
    }

    #[test]
    fn who_is_away_pinned_or_refuses_takes_no_part_and_drained_nodes_come_last() {
        let mut nodes = ["a", "b", "c", "d", "e"].map(node);
        nodes[0].connected = false;
        nodes[1].pinned = true;
        let refused = [NEW.root];
        nodes[2].refused = &refused;
        nodes[3].drained = true;
        assert_eq!(steps(vec![Step::Nodes(1), Step::Rest], &nodes), Ok(of(&[("d", 1), ("e", 0)])));
        assert!(nodes[2].refuses(&NEW.root) && !nodes[2].refuses(&GOOD.root));
    }

    #[test]
    fn a_group_takes_its_members_and_one_that_nobody_is_in_is_named() {
        let mut nodes = ["a", "b", "c"].map(node);
        nodes[1].group = "eu";
        let canary = |group: &str| vec![Step::Group(group.into()), Step::Rest];
        assert_eq!(steps(canary("eu"), &nodes), Ok(of(&[("a", 1), ("b", 0), ("c", 1)])));
        assert_eq!(steps(canary("us"), &nodes), Err("us".into()));
        nodes[1].connected = false;
        assert_eq!(steps(canary("eu"), &nodes), Err("eu".into()), "nobody of it is connected");
        assert_eq!(steps(canary("eu"), &[]), Ok(Vec::new()));
    }
}
