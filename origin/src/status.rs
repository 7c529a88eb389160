//! What `status --json` prints: a contract that scripts depend on.

use std::fmt::{self, Write as _};

use indicatif::{HumanBytes, HumanCount};
use serde::{Deserialize, Serialize};
use syncd_shared::progress::percent;
use syncd_shared::text::rfc3339;
use syncd_shared::{GenerationNumber, HookStatus};

use crate::commit::Hold;
use crate::fleet::{AgentDrift, AgentProgress, AgentState, AgentView};

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
    /// Version of the origin.
    #[serde(default)]
    pub version: String,
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
    /// Bytes of the store that the current generation does not need; `None` before they are measured.
    #[serde(default)]
    pub history_bytes: Option<u64>,
    /// Parts of the tree that are polled because they send no events, and why.
    pub polled: Vec<String>,
    /// What an operator must see to in time, as that the tree's authority ends.
    #[serde(default)]
    pub warnings: Vec<String>,
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
    /// How far it is on its way to another generation, where it is on one.
    #[serde(default)]
    pub progress: Option<Progress>,
    /// Last sign of life, RFC 3339; `None`: it never connected.
    pub last_seen: Option<String>,
    /// Its version, where it has connected since this origin started.
    #[serde(default)]
    pub version: Option<String>,
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
    /// Files that were changed on its node, until a later tree there is without any.
    #[serde(default)]
    pub drift: Option<AgentDrift>,
}

/// How far an agent is on its way to a generation, as it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The generation.
    pub generation: u64,
    /// Files that it has.
    pub files_done: u64,
    /// Files that it needs, where known.
    pub files_total: Option<u64>,
    /// Content bytes that it has.
    pub bytes_done: u64,
    /// Content bytes that it needs, where known.
    pub bytes_total: Option<u64>,
    /// Of the bytes, 0 to 100, where known.
    pub percent: Option<u8>,
}

impl Progress {
    fn new(progress: AgentProgress) -> Self {
        let known = |total: u64| Some(total).filter(|&total| total > 0);
        let AgentProgress { generation, files, bytes, files_total, bytes_total } = progress;
        Self {
            generation,
            files_done: files,
            files_total: known(files_total),
            bytes_done: bytes,
            bytes_total: known(bytes_total),
            percent: percent(bytes, bytes_total),
        }
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { generation, files_done, bytes_done, .. } = self;
        write!(f, "generation {generation}: {}", HumanCount(*files_done))?;
        if let Some(total) = self.files_total {
            write!(f, " of {}", HumanCount(total))?;
        }
        write!(f, " files, {}", HumanBytes(*bytes_done))?;
        if let Some(total) = self.bytes_total {
            write!(f, " of {}", HumanBytes(total))?;
        }
        match self.percent {
            Some(percent) => write!(f, ", {percent} %"),
            None => Ok(()),
        }
    }
}

/// What `status --check` ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// 0: the tree is published and live everywhere, as far as the origin knows.
    Well,
    /// 1: nothing new is published: stopped, held, waiting, or no generation yet. A hold after a rollback is
    /// meant, as it is for health.
    NotPublishing,
    /// 3: an enrolled agent does not have the current generation live, or a person must look at it: an error, local
    /// changes, a note.
    NotLiveEverywhere,
}

impl Status {
    /// How the origin and all of its agents are.
    pub fn verdict(&self) -> Verdict {
        let is_well = |agent: &AgentStatus| {
            agent.connected
                && agent.generation == self.generation
                && agent.root == self.root
                && agent.state == state_name(AgentState::Live)
                && agent.error.is_none()
                && agent.drift.is_none()
                && agent.notes.is_empty()
        };
        match self.state {
            State::Ready | State::Scanning if self.generation.is_some() => {
                if self.agents.iter().all(is_well) { Verdict::Well } else { Verdict::NotLiveEverywhere }
            }
            _ => Verdict::NotPublishing,
        }
    }

    /// For a person: the current generation, then a line for each agent.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        let state = serde_json::to_value(self.state).ok().and_then(|v| v.as_str().map(str::to_owned));
        let _ = write!(out, "origin   {}   syncd {}", state.unwrap_or_default(), self.version);
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
        for warning in &self.warnings {
            let _ = writeln!(out, "warning  {warning}");
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
        if let Some(bytes) = self.history_bytes {
            let _ = writeln!(out, "history  {} besides the current generation", indicatif::HumanBytes(bytes));
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
            let link = match (agent.connected, &agent.last_seen) {
                (true, _) => "connected",
                (false, Some(_)) => "unreachable",
                (false, None) => {
                    let _ = writeln!(out, "  {:width$}  never connected", agent.name);
                    continue;
                }
            };
            let _ = write!(
                out,
                "  {:width$}  {link:11}  generation {generation:>4}  {}{behind}",
                agent.name, agent.state
            );
            if let Some(progress) = &agent.progress {
                let _ = write!(out, "   {progress}");
            }
            if let Some(version) = agent.version.as_ref().filter(|version| **version != self.version) {
                let _ = write!(out, "   syncd {version}");
            }
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
            if let Some(drift) = &agent.drift {
                let _ = writeln!(out, "  {:width$}  {drift}", "");
            }
            for note in &agent.notes {
                let _ = writeln!(out, "  {:width$}  {note}", "");
            }
        }
        out
    }
}

fn is_under_way(agent: &AgentView) -> bool {
    let is_busy = matches!(agent.state, AgentState::Fetching | AgentState::Staging | AgentState::Staged);
    agent.connected && is_busy
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
            progress: agent.progress.filter(|_| is_under_way(agent)).map(Progress::new),
            last_seen: (agent.last_seen_ms > 0).then(|| rfc3339(agent.last_seen_ms)),
            version: agent.version.clone(),
            error: agent.error.clone().or_else(|| agent.hook.as_ref().and_then(HookStatus::trouble)),
            hook: agent.hook.clone(),
            notes: agent.notes.clone(),
            spare_misses: agent.spare_misses,
            drift: agent.drift.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(name: &str) -> AgentStatus {
        AgentStatus {
            name: name.into(),
            connected: true,
            generation: Some(7),
            root: Some("ab".into()),
            state: "live".into(),
            progress: None,
            last_seen: Some(rfc3339(1_790_000_000_000)),
            version: Some("1.0".into()),
            error: None,
            hook: None,
            notes: Vec::new(),
            spare_misses: 0,
            drift: None,
        }
    }

    fn status(agents: Vec<AgentStatus>) -> Status {
        Status {
            tree_id: String::new(),
            tree: None,
            grpc_address: None,
            http_address: None,
            state: State::Ready,
            version: "1.0".into(),
            reason: None,
            hold: None,
            generation: Some(7),
            root: Some("ab".into()),
            label: None,
            created: None,
            files: 0,
            bytes: 0,
            history_bytes: None,
            polled: Vec::new(),
            warnings: Vec::new(),
            agents,
        }
    }

    #[test]
    fn a_person_sees_how_far_an_agent_is_and_who_never_came() {
        let progress = AgentProgress {
            generation: 7,
            files: 652,
            bytes: 10 << 20,
            files_total: 2_594,
            bytes_total: 53 << 20,
        };
        let busy = AgentStatus {
            generation: Some(6),
            state: "fetching".into(),
            progress: Some(Progress::new(progress)),
            version: Some("0.9".into()),
            ..agent("web1")
        };
        let new = AgentStatus { connected: false, generation: None, last_seen: None, ..agent("web2") };
        let text = status(vec![busy, new]).to_text();
        let expected = "fetching   1 behind   generation 7: 652 of 2,594 files, 10.00 MiB of 53.00 MiB, 18 %   syncd 0.9";
        assert!(text.contains(expected), "{text}");
        assert!(text.contains("  web2  never connected\n"), "{text}");
        let unknown = Progress::new(AgentProgress { generation: 7, ..AgentProgress::default() });
        assert_eq!(unknown.to_string(), "generation 7: 0 files, 0 B");
    }

    #[test]
    fn the_verdict_tells_what_is_not_published_from_what_is_not_live() {
        assert_eq!(status(vec![agent("a")]).verdict(), Verdict::Well);
        let drift = AgentDrift { generation: 7, paths: 1, first: "index.php".into(), kept: None, lost: 0 };
        for bad in [
            AgentStatus { connected: false, ..agent("b") },
            AgentStatus { generation: Some(6), ..agent("b") },
            AgentStatus { error: Some("hook failed".into()), ..agent("b") },
            AgentStatus { state: "staging".into(), ..agent("b") },
            AgentStatus { notes: vec!["two machines share one certificate".into()], ..agent("b") },
            AgentStatus { drift: Some(drift), ..agent("b") },
        ] {
            assert_eq!(status(vec![agent("a"), bad]).verdict(), Verdict::NotLiveEverywhere);
        }
        for state in [State::Held, State::Waiting, State::Stopped] {
            assert_eq!(Status { state, ..status(vec![]) }.verdict(), Verdict::NotPublishing);
        }
        assert_eq!(Status { generation: None, ..status(vec![]) }.verdict(), Verdict::NotPublishing);
    }
}
