//! The one word for a node, from its status and the current generation.

use crate::admin::status::{AgentStatus, Status};
use crate::fleet::AgentState;

/// Standing of a node, the most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    /// It reported an error.
    Failed,
    /// Its control stream is not open.
    Unreachable,
    /// It has an older generation and is not moving.
    Behind,
    /// It is on its way to a generation.
    Moving,
    /// It has joined and never connected.
    New,
    /// It has the current generation live.
    Live,
}

impl Standing {
    pub const ALL: [Self; 6] =
        [Self::Live, Self::Moving, Self::Behind, Self::Unreachable, Self::Failed, Self::New];

    pub fn of(agent: &AgentStatus, status: &Status) -> Self {
        let is_current = agent.generation == status.generation && agent.root == status.root;
        let is_moving = matches!(
            agent.state,
            AgentState::Fetching | AgentState::Staging | AgentState::Staged | AgentState::Switched
        );
        match agent {
            AgentStatus { connected: false, last_seen: None, .. } => Self::New,
            AgentStatus { connected: false, .. } => Self::Unreachable,
            agent if agent.error.is_some() || agent.state == AgentState::Failed => Self::Failed,
            agent if is_current && agent.is_live() => Self::Live,
            _ if is_moving || is_current => Self::Moving,
            _ => Self::Behind,
        }
    }

    /// For the style sheet and for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Unreachable => "unreachable",
            Self::Behind => "behind",
            Self::Moving => "moving",
            Self::New => "new",
            Self::Live => "live",
        }
    }

    /// Shape beside the word, so that no meaning rests on a colour.
    pub fn sign(self) -> &'static str {
        match self {
            Self::Failed => "▲",
            Self::Unreachable => "✕",
            Self::Behind => "◆",
            Self::Moving => "◐",
            Self::New => "○",
            Self::Live => "●",
        }
    }
}

/// A node with its standing.
pub struct Stood<'a> {
    pub agent: &'a AgentStatus,
    pub standing: Standing,
}

impl Stood<'_> {
    /// Whether a person should look at it.
    pub fn needs_attention(&self) -> bool {
        let is_quiet = matches!(self.standing, Standing::Live | Standing::Moving | Standing::New);
        !is_quiet || self.agent.drift.is_some() || !self.agent.notes.is_empty()
    }
}

/// All nodes by name, with their standings.
pub fn nodes(status: &Status) -> Vec<Stood<'_>> {
    let stood = |agent| Stood { agent, standing: Standing::of(agent, status) };
    status.agents.iter().map(stood).collect()
}
