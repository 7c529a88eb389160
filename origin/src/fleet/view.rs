//! The fleet as others see it.

use std::collections::HashSet;

use syncd_shared::{GenerationNumber, HookStatus, RootHash};

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
    /// What it was last told of is linked and durable there, and its on-activate hook has not succeeded yet.
    Switched,
    /// What it was last told of is live.
    Live,
    /// It could not do what it was told.
    Failed,
}

/// How far an agent is on its way to a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AgentProgress {
    /// The generation.
    pub generation: u64,
    /// Files that are done.
    pub files: u64,
    /// Bytes that are done.
    pub bytes: u64,
    /// Files in all; 0: not known.
    pub files_total: u64,
    /// Bytes in all; 0: not known.
    pub bytes_total: u64,
}

/// Files of a tree on an agent's node that are not what the manifest says, as the agent found them last.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AgentDrift {
    /// Generation that the tree was.
    pub generation: u64,
    /// How many names.
    pub paths: u64,
    /// The first of them, on one line.
    pub first: String,
    /// Directory on the node that keeps them, on one line.
    pub kept: Option<String>,
    /// Names that could not be kept.
    pub lost: u64,
}

impl std::fmt::Display for AgentDrift {
    /// One line.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { generation, paths, first, kept, lost } = self;
        write!(f, "{paths} local changes in generation {generation} (first {first})")?;
        if let Some(kept) = kept {
            write!(f, ", kept in {kept}")?;
        }
        match lost {
            0 => Ok(()),
            lost => write!(f, ", {lost} not kept"),
        }
    }
}

/// One enrolled agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentView {
    /// Its name.
    pub name: String,
    /// Whether its control stream is open.
    pub connected: bool,
    /// What is linked there, as last heard: live, once `hook` allows it.
    pub generation: Option<GenerationNumber>,
    /// The root of it.
    pub root: Option<RootHash>,
    /// Its on-activate hook, as last heard; `None`: none is set, or none was due since it started.
    pub hook: Option<HookStatus>,
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
    /// Version of the program, as it said when it connected last; not known before that since this origin started.
    pub version: Option<String>,
    /// Activations for which no spare was ready, since the agent started.
    pub spare_misses: u64,
    /// Files that were changed on its node, until a later tree there is without any.
    pub drift: Option<AgentDrift>,
    /// What a person should know of it: a cloned certificate, for example.
    pub notes: Vec<String>,
}

impl AgentView {
    /// Whether the on-activate hook has still to succeed for what is linked there.
    pub fn is_hook_due(&self) -> bool {
        self.hook.as_ref().is_some_and(|hook| !hook.is_live())
    }
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

    /// Connected agents whose on-activate hook has failed and has not succeeded since, with what is wrong.
    pub fn failing_hooks(&self) -> impl Iterator<Item = (&str, String)> {
        let connected = self.agents.iter().filter(|agent| agent.connected);
        connected.filter_map(|agent| Some((agent.name.as_str(), agent.hook.as_ref()?.failure()?)))
    }
}
