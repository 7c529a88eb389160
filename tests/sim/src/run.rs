//! Runs one seed, from an empty directory to a converged fleet.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use syncd_agent::clock::Clock;
use syncd_agent::identity::Trusted;
use syncd_origin::fleet::rollout::RolloutOrder;
use syncd_origin::service::init;
use syncd_shared::AgentState;
use syncd_shared::diff::PartLimits;
use syncd_shared::identity::authority::AuthorityKey;
use syncd_shared::identity::authority::Serial;
use syncd_shared::identity::{AgentName, PeerIdentity};
use syncd_tests::Seeded;
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::origin::Origin;
use crate::plant::Plant;
use crate::site::Site;
use crate::world::{Event, Node, Tally, Temper, Violation, World};

/// Time to connect after the last fault: longer than the longest pauses and timeouts of both sides together.
const CONNECT_MS: u64 = 240_000;
/// Time from the last commit until it is live everywhere.
const CONVERGE_MS: u64 = 900_000;
/// Time for maintenance to finish.
const REST_MS: u64 = 120_000;

/// Changes in one part of an update, by turns, so that most updates have several parts, or one.
const PART_SIZES: [usize; 4] = [1, 3, 8, 1_000];

/// Result of a run.
pub struct Run {
    pub seed: u64,
    pub trace: String,
    pub violation: Option<Violation>,
    pub tally: Tally,
    pub virtual_ms: u64,
    pub log: Option<Vec<String>>,
}

/// Options of a run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    pub plant: Option<Plant>,
    pub log: bool,
    /// Nodes have checks, and generations go by policies.
    pub rolls: bool,
    /// Number of nodes; otherwise the seed decides.
    pub nodes: Option<usize>,
}

/// Runs a seed in a new directory below `directory`.
pub fn run(seed: u64, directory: &Path, options: Options) -> anyhow::Result<Run> {
    let place = tempfile::Builder::new().prefix(&format!("syncd-sim-{seed}-")).tempdir_in(directory)?;
    // With one thread for blocking work, a rollout's write and an update that is encoded don't race.
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).max_blocking_threads(1).build()?;
    let run = runtime.block_on(async {
        let mut world = create(seed, place.path(), options)?;
        let violation = live_through(&mut world).await.err();
        if violation.is_none() {
            world.tally.insert("seeds that held", 1);
        }
        for n in 0..world.nodes.len() {
            world.kill_node(n);
        }
        let virtual_ms = world.now_ms();
        let trace = world.trace.finalize().to_hex().to_string();
        let ended = world.stop_origin(true).await;
        let violation = violation.or(ended.err());
        anyhow::Ok(Run { seed, trace, violation, tally: world.tally, virtual_ms, log: world.log })
    })?;
    if std::env::var_os("SYNCD_KEEP").is_some() {
        println!("seed {seed}: keeping {}", place.keep().display());
    }
    Ok(run)
}

/// The world of a seed, before its first event.
pub fn create(seed: u64, place: &Path, options: Options) -> anyhow::Result<World> {
    let mut random = Seeded::new(seed);
    let (tree, data) = (place.join("tree"), place.join("data"));
    let site = Site::create(&tree, random.next_u64()).context("make a tree")?;
    let keys = init(&data).context("make an origin")?;
    let rate = |random: &mut Seeded| *random.pick(&[0, 0, 30, 8]).unwrap_or(&0);
    let temper =
        Temper { lies: rate(&mut random), bad_frames: rate(&mut random), latency_ms: 1 + random.below(60) };
    let nodes = 1 + random.below(4) as usize;
    let nodes = options.nodes.unwrap_or(nodes);
    let mut world = World {
        queue: BinaryHeap::new(),
        sequence: 0,
        start: Instant::now(),
        temper,
        origin: None,
        keys: Trusted::new(keys.root_fingerprint(), (*keys.trust()).clone()),
        nodes: (0..nodes)
            .map(|n| node(place, n, keys.authority().key_id()))
            .collect::<anyhow::Result<_>>()?,
        abandoned: Vec::new(),
        heard: Vec::new(),
        other_frame: None,
        fingerprints: BTreeMap::new(),
        sealed: BTreeSet::new(),
        restored: false,
        rolls: options.rolls,
        bad: BTreeSet::new(),
        plant: options.plant,
        trace: blake3::Hasher::new(),
        log: options.log.then(Vec::new),
        tally: Tally::new(),
        deeds_left: 12 + random.below(30),
        keep: 1 + random.below(3) as usize,
        grace: if random.one_in(2) { Duration::ZERO } else { Duration::from_secs(random.below(200)) },
        part: PartLimits { changes: PART_SIZES[(seed % 4) as usize], ..PartLimits::default() },
        backup: place.join("backup"),
        tree,
        data,
        site,
        random,
    };
    world.origin = Some(Origin::start(&world.tree, &world.data, world.part)?);
    world
        .note(format!("seed {seed}: {nodes} nodes, {temper:?}, keep {} grace {:?}", world.keep, world.grace));
    Ok(world)
}

fn node(place: &Path, n: usize, issuer: AuthorityKey) -> anyhow::Result<Node> {
    let day = time::Duration::days(10);
    let now = OffsetDateTime::now_utc();
    let name: AgentName = format!("web{n}").parse()?;
    let serial = Serial::from_bytes([n as u8 + 1; 16]);
    Ok(Node {
        root: place.join(format!("node-{n}")),
        peer: PeerIdentity {
            name,
            serial,
            fingerprint: [n as u8 + 1; 32],
            not_before: now - day,
            not_after: now + day,
            issuer,
        },
        clock: Clock::given(Instant::now().into_std()),
        boots: 0,
        life: 0,
        running: None,
        connections: 0,
        tick_ms: 0,
        control: None,
        partitioned_until: 0,
        stalled_until: 0,
        said: Vec::new(),
        live: None,
        accepted: None,
        damaged: BTreeSet::new(),
        intact_update: false,
        unreported: false,
        passed: BTreeSet::new(),
        refused: BTreeSet::new(),
    })
}

async fn live_through(world: &mut World) -> Result<(), Violation> {
    world.commit(true)?;
    for n in 0..world.nodes.len() {
        let delay = world.random.below(3_000);
        world.after(delay, Event::Start { node: n });
    }
    world.after(500, Event::Deed);
    while world.deeds_left > 0 {
        let next = world.now_ms() + 1_000;
        world.run_until(next, |world| world.deeds_left == 0).await?;
    }
    world.note("the faults end");
    world.order(RolloutOrder::Resume).await;
    let now = world.now_ms();
    world.temper.lies = 0;
    world.temper.bad_frames = 0;
    for node in &mut world.nodes {
        node.partitioned_until = node.partitioned_until.min(now + 1);
    }
    world.start_origin()?;
    // A stopped process still counts as connected.
    let stopped = world.nodes.iter().map(|node| node.stalled_until).max().unwrap_or(0);
    world.run_until(stopped + 1_000, |_| false).await?;
    let connect = world.now_ms() + CONNECT_MS;
    world.run_until(connect, all_connected).await?;
    if !all_connected(world) {
        return Err(world.violation("not all agents came back after the faults had ended"));
    }
    // A restored origin has been told by now what the fleet has.
    let settled = world.now_ms() + 20_000;
    world.run_until(settled, |_| false).await?;
    world.edit()?;
    world.commit(true)?;
    converge(world).await?;
    let rest = world.now_ms() + REST_MS + world.grace.as_millis() as u64;
    world.run_until(rest, |_| false).await?;
    for n in 0..world.nodes.len() {
        world.check_node(n)?;
        world.check_rest(n)?;
    }
    check_origin(world)
}

fn all_connected(world: &World) -> bool {
    world.nodes.iter().all(|node| node.running.as_ref().is_some_and(|r| r.machine.is_connected()))
}

/// Waits until the newest generation is live everywhere, and does once what `status` asks for. A node that
/// was cut off takes itself for connected until it misses heartbeats. It may therefore tell a restored origin
/// only after the commit what it holds.
async fn converge(world: &mut World) -> Result<(), Violation> {
    let until = world.now_ms() + CONVERGE_MS;
    let is_over = |world: &World| all_live(world) && !world.is_rolling();
    world.run_until(until, |world| is_over(world) || all_heard(world) && waits_for_operator(world)).await?;
    if world.is_rolling() && !(all_heard(world) && waits_for_operator(world)) {
        return Err(world.violation("a rollout does not end"));
    }
    if world.is_held() {
        // A node was late, so that the rollout was withdrawn.
        world.count("rollouts withdrawn at the end");
        world.commit_now()?;
        let until = world.now_ms() + CONVERGE_MS;
        world.run_until(until, all_live).await?;
    }
    if world.restored && waits_for_operator(world) {
        world.count("commits past what nodes had");
        world.commit(true)?;
        let until = world.now_ms() + CONVERGE_MS;
        world.run_until(until, all_live).await?;
    }
    if !all_live(world) {
        let states: Vec<String> = world.nodes.iter().map(state).collect();
        return Err(
            world.violation(format!("one commit after the faults the fleet did not converge: {states:?}"))
        );
    }
    Ok(())
}

/// Whether every node has told this origin what it holds.
fn all_heard(world: &World) -> bool {
    world.origin.as_ref().is_some_and(|origin| {
        let view = origin.services.fleet.view();
        let heard = view.borrow().agents.iter().filter(|agent| agent.connected).count();
        heard == world.nodes.len()
    })
}

fn waits_for_operator(world: &World) -> bool {
    world.origin.as_ref().is_some_and(|origin| origin.sealer.waits_for_operator().is_some())
}

fn all_live(world: &World) -> bool {
    let newest = world.origin.as_ref().and_then(|origin| origin.sealer.current());
    let newest = newest.map(|generation| (generation.number().get(), generation.root_hash()));
    world.nodes.iter().all(|node| node.live == newest)
}

fn state(node: &Node) -> String {
    let machine = node.running.as_ref().map(|r| &r.machine);
    let error = machine.and_then(|m| m.error()).unwrap_or_else(|| "no error".to_owned());
    format!("{:?} {:?} {error}", node.live.map(|(number, _)| number), machine.map(|m| m.state()))
}

/// Checks that the origin knows the fleet's generations, and that its store is intact.
fn check_origin(world: &mut World) -> Result<(), Violation> {
    let Some(origin) = &world.origin else { return Err(world.violation("no origin at the end")) };
    let newest = origin.sealer.current().map(|g| g.number());
    let view = origin.services.fleet.view().borrow().clone();
    for agent in &view.agents {
        if !agent.connected || agent.generation != newest || agent.error.is_some() {
            return Err(world.violation(format!(
                "the origin takes {} to have {:?}: {agent:?}",
                agent.name, agent.generation
            )));
        }
    }
    if let Some(damage) = origin.store.check(|_| {}).damage.first() {
        return Err(world.violation(format!("the origin's store is damaged: {damage}")));
    }
    let failed = world
        .nodes
        .iter()
        .find(|n| n.running.as_ref().is_some_and(|r| r.machine.state() != AgentState::Live));
    match failed {
        Some(node) => Err(world.violation(format!("a node is not well at the end: {}", state(node)))),
        None => Ok(()),
    }
}
