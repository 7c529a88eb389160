//! The configurations that are explored, and the bugs that have to be found.

use std::time::Instant;

use syncd_agent::session::machine::modelled::Plant;
use syncd_origin::fleet::rollout::policy::{Flip, Policy, Step};

use super::Model;
use super::explore::seconds;
use super::world::Budget;

/// A bug that is planted in the model. The programs contain none of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Planted {
    /// A crash of an agent forgets what was accepted.
    ForgetsAccepted,
    /// A refusal is lost with the record.
    ForgetsRefused,
    /// A generation passes without its check.
    PassesUntried,
    /// A tree that is staged anew is not reported anew.
    StagesOnce,
    /// An agent never takes itself for behind.
    NeverBehind,
    /// The origin tells no straggler that others have flipped.
    NoStragglers,
    /// Assignments follow a state that is not saved.
    UnsavedState,
}

impl Planted {
    pub fn in_agent(self) -> Option<Plant> {
        Some(match self {
            Self::ForgetsAccepted => Plant::ForgetsAccepted,
            Self::ForgetsRefused => Plant::ForgetsRefused,
            Self::PassesUntried => Plant::PassesUntried,
            Self::StagesOnce => Plant::StagesOnce,
            Self::NeverBehind => Plant::NeverBehind,
            Self::NoStragglers | Self::UnsavedState => return None,
        })
    }
}

/// One configuration.
struct Scenario {
    name: &'static str,
    policy: Policy,
    count: usize,
    has_check: bool,
    left: Budget,
}

fn steps(steps: &[Step], flip: Flip) -> Policy {
    let steps = steps.iter().cloned().chain([Step::Rest]).collect();
    Policy { name: "test".into(), steps, flip, hold_ms: 1, deadline_ms: 2, ..Policy::together() }
}

/// Configurations of two nodes, in the order of their size.
fn pairs() -> Vec<Scenario> {
    let none = Budget::default();
    let together = || steps(&[], Flip::Together);
    let canary = || steps(&[Step::Nodes(1)], Flip::Together);
    let half = || Policy { quorum_percent: 50, ..together() };
    let pair = |name, policy, has_check, left| Scenario { name, policy, count: 2, has_check, left };
    vec![
        pair("pins", together(), false, Budget { pins: 2, ..none }),
        pair("cuts", together(), true, Budget { cuts: 1, ..none }),
        pair("crashes of the origin", canary(), false, Budget { origin_crashes: 1, ..none }),
        pair("a restored origin", together(), false, Budget { restores: 1, ..none }),
        pair("supersession", together(), false, Budget { supersedes: 1, automatic: 1, ..none }),
        pair("orders", canary(), false, Budget { orders: 1, refusing_hooks: 1, ..none }),
        pair("checks", canary(), true, Budget { failed_checks: 2, ..none }),
        pair("refusing hooks", half(), false, Budget { refusing_hooks: 1, late: 1, ..none }),
        pair("drains", together(), false, Budget { drains: 2, ..none }),
        pair("a rollback", together(), true, Budget { rollbacks: 1, ..none }),
        pair("crashes of a node", together(), true, Budget { agent_crashes: 1, ..none }),
        pair("a lost record of two", together(), true, Budget { lost_records: 1, ..none }),
    ]
}

/// Configurations of one node with more faults, and of three.
fn others() -> Vec<Scenario> {
    let none = Budget::default();
    let together = || steps(&[], Flip::Together);
    let one = |name, left| Scenario { name, policy: together(), count: 1, has_check: true, left };
    let three = |name, policy| Scenario { name, policy, count: 3, has_check: false, left: none };
    vec![
        one("crashes among failing checks", Budget { agent_crashes: 1, failed_checks: 2, ..none }),
        one("a lost record", Budget { lost_records: 1, failed_checks: 2, late: 1, ..none }),
        one("failing work", Budget { failed_work: 2, failed_checks: 1, ..none }),
        one("rollbacks", Budget { rollbacks: 2, failed_checks: 3, ..none }),
        three("three nodes, each", steps(&[Step::Nodes(1)], Flip::Each)),
        three("three nodes together", together()),
    ]
}

/// Configurations that take minutes.
fn large() -> Vec<Scenario> {
    let none = Budget::default();
    let together = || steps(&[], Flip::Together);
    let scenario =
        |name, count, has_check, left| Scenario { name, policy: together(), count, has_check, left };
    vec![
        scenario("a drain and a check", 2, true, Budget { drains: 1, failed_checks: 1, ..none }),
        scenario("a rollback and a check", 2, true, Budget { rollbacks: 1, failed_checks: 1, ..none }),
        scenario("three nodes, a hook", 3, false, Budget { refusing_hooks: 1, late: 1, ..none }),
        scenario(
            "two nodes, crash and check",
            2,
            true,
            Budget { agent_crashes: 1, failed_checks: 1, ..none },
        ),
        scenario(
            "two nodes, record and check",
            2,
            true,
            Budget { lost_records: 1, failed_checks: 1, ..none },
        ),
        scenario("on both", 2, true, Budget { rollbacks: 2, failed_checks: 2, ..none }),
        scenario(
            "all faults",
            1,
            true,
            Budget {
                origin_crashes: 1,
                agent_crashes: 1,
                cuts: 1,
                failed_checks: 2,
                refusing_hooks: 1,
                ..none
            },
        ),
    ]
}

/// Explores all scenarios, with a planted bug until it is found. Returns what was broken.
pub fn run(planted: Option<Planted>, only: Option<&str>) -> anyhow::Result<Option<String>> {
    let is_full = std::env::var("SYNCD_MODEL").is_ok_and(|size| size == "full");
    let (started, mut sum) = (Instant::now(), 0);
    let all = pairs().into_iter().chain(others()).chain(if is_full { large() } else { Vec::new() });
    for scenario in all {
        if only.is_some_and(|only| !scenario.name.contains(only)) {
            continue;
        }
        let Scenario { name, policy, count, has_check, left } = scenario;
        let began = Instant::now();
        let mut model = Model::new(policy, count, has_check, left, planted)?;
        match model.explore() {
            Ok(states) => {
                sum += states;
                println!("{states:>9} states, {:.1} s: {name}", seconds(began));
            }
            Err(wrong) => return Ok(Some(format!("{name}: {wrong}"))),
        }
    }
    println!("{sum:>9} states in {:.1} s", seconds(started));
    Ok(None)
}
