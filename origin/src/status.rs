//! What `status --json` prints: a contract that scripts depend on.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use syncd_shared::{GenerationNumber, HookStatus};

use crate::commit::Hold;
use crate::fleet::{AgentState, AgentView};

/// The origin and its fleet at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// 32 hexadecimal digits.
    pub tree_id: String,
    /// The content tree; `None` while no origin serves.
    pub tree: Option<String>,
    /// Where agents dial, as bound.
    pub grpc_address: Option<String>,
    /// Where health is answered, as bound.
    pub http_address: Option<String>,
    /// What the origin does.
    pub state: State,
    /// Why it is `held` or `waiting`, and what to do.
    pub reason: Option<String>,
    /// Nothing is published automatically until an operator commits.
    #[serde(default)]
    pub hold: Option<HoldStatus>,
    /// Number of the current generation.
    pub generation: Option<u64>,
    /// Root hash of the current generation, hexadecimal.
    pub root: Option<String>,
    /// Label of the current generation.
    pub label: Option<String>,
    /// When it was sealed, RFC 3339.
    pub created: Option<String>,
    /// Files in it.
    pub files: u64,
    /// Content bytes in it.
    pub bytes: u64,
    /// Parts of the tree that are polled because they send no events, and why.
    pub polled: Vec<String>,
    /// All enrolled agents, by name.
    pub agents: Vec<AgentStatus>,
}

/// What a rollback leaves until the next commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldStatus {
    /// Why, and what to do.
    pub reason: String,
    /// Since when, RFC 3339.
    pub since: String,
    /// The generation that stays in effect.
    pub generation: u64,
}

impl From<Hold> for HoldStatus {
    fn from(hold: Hold) -> Self {
        let since = rfc3339(hold.since_ms);
        Self { reason: hold.reason(), since, generation: hold.generation.get() }
    }
}

/// What the origin does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The tree is as the current generation says, as far as events tell.
    Ready,
    /// The tree is being read.
    Scanning,
    /// What is there does not look like a deployment, or a rollback put it aside; the last generation stands.
    Held,
    /// For the tree to become quiet, or for an operator.
    Waiting,
    /// No origin serves this data directory.
    Stopped,
}

/// One enrolled agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Its name.
    pub name: String,
    /// Whether its control stream is open.
    pub connected: bool,
    /// Generation that is linked there: live, once `hook` has succeeded.
    pub generation: Option<u64>,
    /// Its root hash, hexadecimal.
    pub root: Option<String>,
    /// `empty`, `fetching`, `staging`, `staged`, `switched`, `live` or `failed`.
    pub state: String,
    /// Last sign of life, RFC 3339.
    pub last_seen: Option<String>,
    /// What went wrong last, until it goes well again.
    pub error: Option<String>,
    /// The on-activate hook of its newest activation; `None`: none is set, or none was due since it started.
    #[serde(default)]
    pub hook: Option<HookStatus>,
    /// What a person should know besides, as that its certificate was seen on two nodes.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Activations for which no spare was ready, since the agent started.
    #[serde(default)]
    pub spare_misses: u64,
}

/// Milliseconds since 1970 as RFC 3339 in UTC.
pub fn rfc3339(unix_ms: i64) -> String {
    time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000)
        .ok()
        .and_then(|t| t.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_else(|| format!("{unix_ms} ms since 1970"))
}

impl Status {
    /// For a person: the current generation, then a line for each agent.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        let state = serde_json::to_value(self.state).ok().and_then(|v| v.as_str().map(str::to_owned));
        let _ = write!(out, "origin   {}", state.unwrap_or_default());
        if let Some(tree) = &self.tree {
            let _ = write!(out, "   {tree}");
        }
        if let Some(address) = &self.grpc_address {
            let _ = write!(out, "   {address}");
        }
        out.push('\n');
        if let Some(reason) = &self.reason {
            let _ = writeln!(out, "         {reason}");
        }
        if let Some(hold) = &self.hold {
            // Where it is the reason, it was just said.
            let reason = Some(&hold.reason).filter(|reason| self.reason.as_ref() != Some(reason));
            let reason = reason.map(|reason| format!("{reason}   ")).unwrap_or_default();
            let _ = writeln!(out, "hold     {reason}since {}", hold.since);
        }
        for polled in &self.polled {
            let _ = writeln!(out, "polled   {polled}");
        }
        match (self.generation, &self.created, &self.root) {
            (Some(number), Some(created), Some(root)) => {
                let label = self.label.as_deref().filter(|l| !l.is_empty());
                let _ = writeln!(
                    out,
                    "current  generation {number}{}   {} files, {}   {created}   root {:.12}",
                    label.map(|l| format!(" ({l})")).unwrap_or_default(),
                    indicatif::HumanCount(self.files),
                    indicatif::HumanBytes(self.bytes),
                    root,
                );
            }
            _ => out.push_str("current  no generation yet\n"),
        }
        let has_live = |a: &&AgentStatus| a.generation == self.generation && a.is_live();
        let live = self.agents.iter().filter(has_live).count();
        let _ = writeln!(out, "agents   {live} of {} have it live", self.agents.len());
        let width = self.agents.iter().map(|a| a.name.len()).max().unwrap_or(0);
        for agent in &self.agents {
            let generation = agent.generation.map_or("-".to_owned(), |g| g.to_string());
            let behind = match (self.generation, agent.generation) {
                (Some(current), Some(has)) if current > has => format!("   {} behind", current - has),
                _ => String::new(),
            };
            let link = if agent.connected { "connected" } else { "unreachable" };
            let _ = write!(
                out,
                "  {:width$}  {link:11}  generation {generation:>4}  {}{behind}",
                agent.name, agent.state
            );
            if !agent.connected
                && let Some(seen) = &agent.last_seen
            {
                let _ = write!(out, "   last seen {seen}");
            }
            if let Some(hook) = agent.hook.as_ref().and_then(HookStatus::line) {
                let _ = write!(out, "   {hook}");
            }
            if let Some(error) =
                agent.error.as_ref().filter(|error| Some(*error) != agent.hook_trouble().as_ref())
            {
                let _ = write!(out, "   {error}");
            }
            out.push('\n');
            for note in &agent.notes {
                let _ = writeln!(out, "  {:width$}  {note}", "");
            }
        }
        out
    }
}

/// As `status --json` spells it.
pub fn state_name(state: AgentState) -> &'static str {
    match state {
        AgentState::Empty => "empty",
        AgentState::Fetching => "fetching",
        AgentState::Staging => "staging",
        AgentState::Staged => "staged",
        AgentState::Switched => "switched",
        AgentState::Live => "live",
        AgentState::Failed => "failed",
    }
}

impl AgentStatus {
    /// Whether what it has linked is live: its hook, where it has one, has succeeded.
    pub fn is_live(&self) -> bool {
        self.generation.is_some() && self.hook.as_ref().is_none_or(HookStatus::is_live)
    }

    fn hook_trouble(&self) -> Option<String> {
        self.hook.as_ref().and_then(HookStatus::trouble)
    }

    /// Describes an agent.
    pub fn new(agent: &AgentView) -> Self {
        Self {
            name: agent.name.to_string(),
            connected: agent.connected,
            generation: agent.generation.map(GenerationNumber::get),
            root: agent.root.map(|r| r.to_string()),
            state: state_name(agent.state).to_owned(),
            last_seen: (agent.last_seen_ms > 0).then(|| rfc3339(agent.last_seen_ms)),
            error: agent.error.clone().or_else(|| agent.hook.as_ref().and_then(HookStatus::trouble)),
            hook: agent.hook.clone(),
            notes: agent.notes.clone(),
            spare_misses: agent.spare_misses,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(rfc3339(1_790_000_000_123), "2026-09-21T14:13:20.123Z");
    }
}
