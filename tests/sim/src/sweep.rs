//! The origin dies at each durable step of a rollout, one by one: right before the write, and right after it.
//!
//! Two nodes and a canary have a good generation. A second one is rolled out, on which checks pass or fail.
//! The origin is killed once, and starts again. Whatever the step, every node ends with the same generation:
//! the new one, or after a failure the tree of before.

use std::path::Path;

use anyhow::Context;
use syncd_origin::commit::{CommitOptions, Outcome};
use syncd_shared::RootHash;

use crate::run::{Options, create};
use crate::world::{Event, Temper, Violation, World};

const NODES: usize = 3;
/// More than a rollout takes, deadlines and reconnections included.
const PATIENCE_MS: u64 = 1_200_000;

/// One rollout with one death.
#[derive(Debug, Clone, Copy)]
struct Case {
    policy: &'static str,
    /// Checks fail on the generation.
    fails: bool,
    /// Write at which the origin dies; 0: it dies when the generation is sealed, and nobody knows of it.
    step: u64,
    /// The write is done.
    after: bool,
}

/// Runs all cases. Returns their number.
pub fn sweep(directory: &Path) -> anyhow::Result<u64> {
    let mut cases = 0;
    for policy in ["together", "canary", "half"] {
        for (fails, after) in [(false, false), (false, true), (true, false), (true, true)] {
            for step in 0.. {
                let case = Case { policy, fails, step, after };
                if !run(directory, case).with_context(|| format!("{case:?}"))? {
                    anyhow::ensure!(step > 2, "{case:?}: a rollout has more durable steps");
                    break;
                }
                cases += 1;
            }
        }
    }
    Ok(cases)
}

/// Runs a case. Returns whether the origin died.
fn run(directory: &Path, case: Case) -> anyhow::Result<bool> {
    let place = tempfile::Builder::new().prefix("syncd-sim-sweep-").tempdir_in(directory)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()?;
    runtime.block_on(async {
        let mut world =
            create(1, place.path(), Options { nodes: Some(NODES), log: true, ..Options::default() })?;
        let lived = live_through(&mut world, case).await;
        for n in 0..world.nodes.len() {
            world.kill_node(n);
        }
        let ended = world.stop_origin(true).await;
        if lived.is_err() {
            world.log.iter().flatten().for_each(|line| print!("{line}"));
        }
        ended.map_err(anyhow::Error::from).and(lived.map_err(anyhow::Error::from))
    })
}

async fn live_through(world: &mut World, case: Case) -> Result<bool, Violation> {
    (world.temper, world.deeds_left, world.rolls) = (Temper { latency_ms: 5, ..Temper::default() }, 0, true);
    let old = seal(world, CommitOptions { now: true, ..CommitOptions::default() })?;
    for node in 0..world.nodes.len() {
        world.after(1, Event::Start { node });
    }
    let until = world.now_ms() + PATIENCE_MS;
    world.run_until(until, |world| has_everywhere(world, old) && all_passed(world, old)).await?;
    world.edit()?;
    if let Some(origin) = &world.origin {
        origin.dies_at(case.step, case.after);
    }
    let policy = Some(case.policy.to_owned());
    let new = seal(world, CommitOptions { rollout: policy, ..CommitOptions::default() })?;
    if case.fails {
        world.bad.insert(new);
    }
    let mut died = case.step == 0;
    if !died {
        let until = world.now_ms() + PATIENCE_MS;
        world.run_until(until, |world| is_dead(world) || is_over(world, new)).await?;
        died = is_dead(world);
    }
    if died {
        world.stop_origin(false).await?;
        world.after(300, Event::OriginUp);
        let until = world.now_ms() + PATIENCE_MS;
        world.run_until(until, |world| is_over(world, new)).await?;
    }
    let expected = if case.fails { old } else { new };
    if !is_over(world, new) || !has_everywhere(world, expected) {
        let live: Vec<_> = world.nodes.iter().map(|node| node.live).collect();
        return Err(world.violation(format!("the rollout did not end as it should: {live:?}")));
    }
    Ok(died)
}

fn seal(world: &mut World, options: CommitOptions) -> Result<RootHash, Violation> {
    let Some(origin) = &mut world.origin else { return Err(world.violation("no origin")) };
    match origin.sealer.commit(CommitOptions { allow_mass_deletion: true, ..options }) {
        Ok(Outcome::Sealed(generation)) => {
            world.note(format!("seals {}", generation.number()));
            world.remember(&generation, true)?;
            Ok(generation.root_hash())
        }
        other => Err(world.violation(format!("commit: {other:?}"))),
    }
}

fn is_dead(world: &World) -> bool {
    world.origin.as_ref().is_some_and(crate::origin::Origin::is_dead)
}

fn has_everywhere(world: &World, root: RootHash) -> bool {
    world.nodes.iter().all(|node| node.live.is_some_and(|live| live.1 == root))
}

fn all_passed(world: &World, root: RootHash) -> bool {
    world.nodes.iter().all(|node| {
        let replica = node.running.as_ref().map(|running| running.machine.replica());
        replica.is_some_and(|replica| replica.decisions.good.is_some_and(|good| good.root == root))
    })
}

/// The rollout of `new` has ended, and every node has what the origin has.
fn is_over(world: &World, new: RootHash) -> bool {
    let Some(origin) = &world.origin else { return false };
    let Some(current) = origin.sealer.current() else { return false };
    let view = origin.services.fleet.rollout();
    let view = view.borrow();
    let is_known = view.newest == Some(current.number().get());
    let is_ended = view.running().is_none() && view.withdrawal.is_none();
    let is_everywhere = world.nodes.iter().all(|node| {
        node.live == Some((current.number().get(), current.root_hash()))
            && node.running.as_ref().is_some_and(|running| running.machine.is_connected())
    });
    let has_moved = current.root_hash() == new || current.number().get() > 2;
    is_known && is_ended && is_everywhere && has_moved
}
