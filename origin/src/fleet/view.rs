//! The fleet as others see it.

use std::collections::HashSet;

use syncd_shared::{GenerationNumber, RootHash};

/// A root that an agent seen within this time holds is retained, in milliseconds.
pub const RETAIN_MS: i64 = 30 * 24 * 60 * 60 * 1000;

/// What an agent does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AgentState {
    /// It has no generation yet, or was not heard of since this origin started.
    #[default]
    Empty,
    /// It fetches what it lacks.
    Fetching,
    /// It builds a tree.
    Staging,
    /// A tree is complete and waits to be activated.
    Staged,
    /// What it was last told of is live.
    Live,
    /// It could not do what it was told.
    Failed,
}

/// How far an agent is on its way to a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgentProgress {
    /// The generation.
    pub generation: u64,
    /// Files that are done.
    pub files: u64,
    /// Bytes that are done.
    pub bytes: u64,
}

/// One enrolled agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentView {
    /// Its name.
    pub name: String,
    /// Whether its control stream is open.
    pub connected: bool,
    /// What is live there, as last heard.
    pub generation: Option<GenerationNumber>,
    /// The root of it.
    pub root: Option<RootHash>,
    /// What it does.
    pub state: AgentState,
    /// Last sign of life, in milliseconds since 1970; 0 before the first.
    pub last_seen_ms: i64,
    /// What went wrong last, until it goes well again.
    pub error: Option<String>,
    /// Whether it said that a person must act.
    pub needs_operator: bool,
    /// Serial number of its newest certificate, hexadecimal.
    pub serial: String,
    /// When that expires, in milliseconds since 1970.
    pub not_after_ms: i64,
    /// How far it is.
    pub progress: Option<AgentProgress>,
    /// Activations for which no spare was ready, since the agent started.
    pub spare_misses: u64,
    /// What a person should know of it: a cloned certificate, for example.
    pub notes: Vec<String>,
}

/// All enrolled agents, sorted by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FleetView {
    /// Also those that never connected since this origin started.
    pub agents: Vec<AgentView>,
}

impl FleetView {
    /// Roots that agents hold which were seen within [`RETAIN_MS`] of `now_ms`.
    pub fn retained_roots(&self, now_ms: i64) -> HashSet<RootHash> {
        let recent = |agent: &&AgentView| agent.connected || now_ms - agent.last_seen_ms <= RETAIN_MS;
        self.agents.iter().filter(recent).filter_map(|agent| agent.root).collect()
    }
}
