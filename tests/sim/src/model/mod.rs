//! Exhaustive check of rollouts: every order of events within a budget of faults, each state explored once
//! (breadth first). `SYNCD_MODEL=full` explores more faults and three nodes.
//!
//! The origin's rollout and the agents' session machine with their decisions are the real ones
//! ([`syncd_agent::session::machine::modelled`]). The fleet's task, the conversation at the origin and the
//! committer are written again here, in [`origin`], as short as they can be. A message is lost with its
//! connection, and comes late where others are explored before it. Time is what may end: pauses of agents,
//! and the deadline of the rollout.

mod explore;
mod generations;
mod moves;
mod origin;
mod promises;
mod scenarios;
mod world;

use std::collections::HashMap;

use syncd_agent::session::machine::modelled::Agent;
use syncd_origin::fleet::rollout::machine::Rollout;
use syncd_origin::fleet::rollout::policy::Policy;
use syncd_shared::RootHash;

use generations::Generations;
use world::{Event, Facts, Said, World};

pub use scenarios::{Planted, run};

const NAMES: [&str; world::AGENTS] = ["a", "b", "c"];

/// A node as the rollout's state machine sees it, by values.
type Seen = (Facts, bool, bool, bool);

/// The model: policy, and everything that is kept by number.
struct Model {
    policy: Policy,
    /// Number of nodes.
    count: usize,
    planted: Option<Planted>,
    generations: Generations,
    agents: Vec<Agent>,
    agent_ids: HashMap<Vec<u8>, u32>,
    /// Results of what happened to agents before.
    happened: HashMap<(u32, Event), (u32, Vec<Said>)>,
    rollouts: Vec<Rollout>,
    rollout_ids: HashMap<Rollout, u16>,
    looks: HashMap<(u16, [Seen; world::AGENTS]), u16>,
    /// Lists of roots, by their bits.
    roots: Vec<Vec<RootHash>>,
    first: World,
}
