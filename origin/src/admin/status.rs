//! Output of `status --json`: a contract that scripts depend on.

use std::fmt::{self, Write as _};

use indicatif::HumanBytes;
use serde::{Deserialize, Serialize};
use syncd_shared::text::{counted, rfc3339};
use syncd_shared::{CheckStatus, GenerationNumber, HookStatus, Progress};

use super::collected_requests::CollectedLine;
use crate::commit::{Hold, State};
use crate::fleet::rollout::RolloutStatus;
use crate::fleet::{AgentDrift, AgentProgress, AgentState, AgentView};
use crate::publish::PublishView;
use crate::purge::PurgeView;

/// State of the origin and its fleet at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// 32 hexadecimal digits.
    pub tree_id: String,
    /// The content tree; `None` while no origin serves.
    pub tree: Option<String>,
    /// Bound address for agents.
    pub grpc_address: Option<String>,
    /// Bound address for health checks.
    pub http_address: Option<String>,
    pub state: State,
    /// Version of the origin.
    #[serde(default)]
    pub version: String,
    /// Reason for `held` or `waiting`, with the next step.
    pub reason: Option<String>,
    /// Hold after a rollback: nothing is published automatically until an operator commits.
    #[serde(default)]
    pub hold: Option<HoldStatus>,
    /// The newest rollout, running or ended; `None` if every generation since the origin started went to all
    /// nodes at once.
    #[serde(default)]
    pub rollout: Option<RolloutStatus>,
    /// Number of the current generation.
    pub generation: Option<u64>,
    /// Root hash of the current generation, hexadecimal.
    pub root: Option<String>,
    /// Label of the current generation.
    pub label: Option<String>,
    /// Time of sealing, RFC 3339.
    pub created: Option<String>,
    /// Files in the current generation.
    pub files: u64,
    /// Content bytes in the current generation.
    pub bytes: u64,
    /// Stored bytes that the current generation does not need; `None` before they are measured.
    #[serde(default)]
    pub history_bytes: Option<u64>,
    /// Publishing to an object store; `None` without `--publish`, or while no origin serves.
    #[serde(default)]
    pub publish: Option<PublishStatus>,
    /// Purging caches in front of all nodes; `None` without `--purge`, or while no origin serves.
    #[serde(default)]
    pub purge: Option<PurgeStatus>,
    /// Collected directories; empty while no origin serves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub collected: Vec<CollectedLine>,
    /// Subtrees that are polled because they send no events, with reasons.
    pub polled: Vec<String>,
    /// Problems that an operator must solve in time, such as the expiry of the tree's authority.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// All enrolled agents, by name.
    pub agents: Vec<AgentStatus>,
}

/// State of publishing to an object store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishStatus {
    /// `--publish`.
    pub url: String,
    /// The generation that followers take; `None` before the first one is published.
    pub released: Option<u64>,
    /// The last error, until it works again.
    pub error: Option<String>,
}

impl PublishStatus {
    /// One line, without a line feed.
    pub fn to_text(&self) -> String {
        let Self { url, released, error } = self;
        let released = released.map_or("nothing yet".to_owned(), |number| format!("generation {number}"));
        let error = error.as_ref().map(|error| format!("   {error}")).unwrap_or_default();
        format!("{released} in {url}{error}")
    }
}

impl From<PublishView> for PublishStatus {
    fn from(PublishView { url, released, error }: PublishView) -> Self {
        Self { url, released, error }
    }
}

/// State of purging caches in front of all nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PurgeStatus {
    /// The generation that the caches were last purged for.
    pub generation: Option<u64>,
    /// A generation for which they are to be purged, once its nodes have it.
    pub due: Option<u64>,
    /// Failed attempts in a row.
    pub failures: u32,
    /// The last error, until it works again.
    pub error: Option<String>,
}

impl From<PurgeView> for PurgeStatus {
    fn from(PurgeView { generation, due, failures, error }: PurgeView) -> Self {
        Self { generation, due, failures, error }
    }
}

impl fmt::Display for PurgeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.generation {
            Some(number) => write!(f, "caches are purged for generation {number}")?,
            None => write!(f, "caches were never purged")?,
        }
        if let Some(due) = self.due {
            write!(f, ", due for generation {due}")?;
        }
        match &self.error {
            Some(error) => {
                write!(f, "   {} failed: {error}", counted(self.failures.into(), "attempt", "attempts"))
            }
            None => Ok(()),
        }
    }
}

/// The hold left by a rollback until the next commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldStatus {
    /// Reason and next step.
    pub reason: String,
    /// Start of the hold, RFC 3339.
    pub since: String,
    /// Generation in effect.
    pub generation: u64,
}

impl From<Hold> for HoldStatus {
    fn from(hold: Hold) -> Self {
        let since = rfc3339(hold.since_ms);
        Self { reason: hold.reason(), since, generation: hold.generation.get() }
    }
}

/// One enrolled agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    pub name: String,
    /// Whether its control stream is open.
    pub connected: bool,
    /// The linked generation, which is live once `hook` has succeeded.
    pub generation: Option<u64>,
    /// Root hash of that generation, hexadecimal.
    pub root: Option<String>,
    pub state: AgentState,
    /// Progress towards another generation, if one is in progress.
    #[serde(default)]
    pub progress: Option<ProgressLine>,
    /// Last sign of life, RFC 3339; `None` if it never connected.
    pub last_seen: Option<String>,
    /// Version, if it has connected since this origin started.
    #[serde(default)]
    pub version: Option<String>,
    /// The last error, until the agent recovers.
    pub error: Option<String>,
    /// The on-activate hook of the newest activation; `None` if none is set, or none was due since the agent
    /// started.
    #[serde(default)]
    pub hook: Option<HookStatus>,
    /// The node's own check; `None` if it has none, or none has run since the agent started.
    #[serde(default)]
    pub check: Option<CheckStatus>,
    /// Group for the steps of rollouts; empty: none.
    #[serde(default)]
    pub group: String,
    /// Whether balancers are told that the node is not ready, by an order of either side.
    #[serde(default)]
    pub drained: bool,
    /// Order by which the node stays where it is.
    #[serde(default)]
    pub pinned: Option<PinStatus>,
    /// Further remarks for a person, for example that its certificate was seen on two nodes.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Activations without a ready spare, since the agent started.
    #[serde(default)]
    pub spare_misses: u64,
    /// Local changes, until a later tree on the node is free of them.
    #[serde(default)]
    pub drift: Option<AgentDrift>,
}

/// An order by which a node stays where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinStatus {
    /// Side that gave it: `origin` or `node`.
    pub by: String,
    /// Since when, RFC 3339.
    pub since: String,
}

impl PinStatus {
    fn of(agent: &AgentView) -> Option<Self> {
        let of_node = agent.standing.pinned.map(|pin| ("node", pin.since_ms));
        let of_origin = agent.orders.pinned_since_ms.map(|since| ("origin", since));
        let (by, since) = of_node.or(of_origin)?;
        Some(Self { by: by.to_owned(), since: rfc3339(since) })
    }
}

/// [`AgentProgress`] in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressLine {
    pub generation: u64,
    /// Completed files.
    pub files_done: u64,
    /// Files needed, if known.
    pub files_total: Option<u64>,
    /// Completed content bytes.
    pub bytes_done: u64,
    /// Content bytes needed, if known.
    pub bytes_total: Option<u64>,
    /// Percentage of bytes, 0 to 100, if known.
    pub percent: Option<u8>,
}

impl ProgressLine {
    fn new(AgentProgress { generation, done }: AgentProgress) -> Self {
        let known = |total: u64| Some(total).filter(|&total| total > 0);
        Self {
            generation,
            files_done: done.files_done,
            files_total: known(done.files_total),
            bytes_done: done.bytes_done,
            bytes_total: known(done.bytes_total),
            percent: done.percent(),
        }
    }
}

impl fmt::Display for ProgressLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = Progress {
            files_done: self.files_done,
            files_total: self.files_total.unwrap_or(0),
            bytes_done: self.bytes_done,
            bytes_total: self.bytes_total.unwrap_or(0),
        };
        AgentProgress { generation: self.generation, done }.fmt(f)
    }
}

/// Result of `status --check`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Exit code 0: the tree is published and live everywhere, as far as the origin knows.
    Well,
    /// Exit code 1: nothing new is published, because the origin is stopped, held (also after a rollback)
    /// or waiting, or has no generation yet.
    NotPublishing,
    /// Exit code 3: an enrolled agent does not have the current generation live, or needs attention because
    /// of an error, local changes or a note. Also if a file that the next start needs is gone, or if no agent
    /// is enrolled, for example after only the keys were restored, because then no node has it live. Also if
    /// a collected directory is full, or refuses files.
    NotLiveEverywhere,
}

impl Status {
    /// Judges the origin and all of its agents.
    pub fn verdict(&self) -> Verdict {
        let is_well = |agent: &AgentStatus| {
            agent.connected
                && agent.generation == self.generation
                && agent.root == self.root
                && agent.state == AgentState::Live
                && agent.error.is_none()
                && agent.drift.is_none()
                && agent.notes.is_empty()
        };
        match self.state {
            State::Ready | State::Scanning if self.generation.is_some() => {
                let is_live = !self.agents.is_empty() && self.agents.iter().all(is_well);
                let is_taken = self.collected.iter().all(CollectedLine::takes_everything);
                if is_live && is_taken && self.reason.is_none() {
                    Verdict::Well
                } else {
                    Verdict::NotLiveEverywhere
                }
            }
            _ => Verdict::NotPublishing,
        }
    }

    /// Text for a person: the current generation, then a line for each agent.
    pub fn to_text(&self) -> String {
        let mut out = self.head();
        let width = self.name_width();
        self.agents.iter().for_each(|agent| self.write_agent(agent, width, &mut out));
        out
    }

    /// Length of the longest name of an agent.
    pub fn name_width(&self) -> usize {
        self.agents.iter().map(|agent| agent.name.len()).max().unwrap_or(0)
    }

    /// The lines before those of the agents.
    pub fn head(&self) -> String {
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
            // Omitted if it is the reason just printed.
            let reason = Some(&hold.reason).filter(|reason| self.reason.as_ref() != Some(reason));
            let reason = reason.map(|reason| format!("{reason}   ")).unwrap_or_default();
            let _ = writeln!(out, "hold     {reason}since {}", hold.since);
        }
        if let Some(rollout) = &self.rollout {
            let _ = writeln!(out, "rollout  {rollout}");
        }
        for warning in &self.warnings {
            let _ = writeln!(out, "warning  {warning}");
        }
        for polled in &self.polled {
            let _ = writeln!(out, "polled   {polled}");
        }
        self.write_current(&mut out);
        if let Some(bytes) = self.history_bytes {
            let _ = writeln!(out, "history  {} besides the current generation", HumanBytes(bytes));
        }
        if let Some(publish) = &self.publish {
            let _ = writeln!(out, "publish  {}", publish.to_text());
        }
        if let Some(purge) = &self.purge {
            let _ = writeln!(out, "purge    {purge}");
        }
        for collected in &self.collected {
            let _ = writeln!(out, "collect  {}", collected.to_text());
        }
        let has_live = |a: &&AgentStatus| a.generation == self.generation && a.is_live();
        let live = self.agents.iter().filter(has_live).count();
        let _ = match self.agents.len() {
            0 => writeln!(out, "agents   none is enrolled: `syncd-origin token` makes a join token"),
            all => writeln!(out, "agents   {live} of {all} have it live"),
        };
        out
    }

    /// Writes the line of the current generation.
    fn write_current(&self, out: &mut String) {
        match (self.generation, &self.created, &self.root) {
            (Some(number), Some(created), Some(root)) => {
                let label = self.label.as_deref().filter(|l| !l.is_empty());
                let _ = writeln!(
                    out,
                    "current  generation {number}{}   {}, {}   {created}   root {:.12}",
                    label.map(|l| format!(" ({l})")).unwrap_or_default(),
                    counted(self.files, "file", "files"),
                    HumanBytes(self.bytes),
                    root,
                );
            }
            // Only with a manual trigger is an origin without a generation ready.
            _ if self.state == State::Ready => {
                out.push_str("current  no generation yet: run `syncd-origin commit`\n");
            }
            _ => out.push_str("current  no generation yet\n"),
        }
    }

    /// Writes the lines of one agent. Names are padded to `width`.
    pub fn write_agent(&self, agent: &AgentStatus, width: usize, out: &mut String) {
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
                return;
            }
        };
        let _ = write!(
            out,
            "  {:width$}  {link:11}  generation {generation:>4}  {}{behind}",
            agent.name, agent.state
        );
        if !agent.group.is_empty() {
            let _ = write!(out, "   group {}", agent.group);
        }
        if agent.drained {
            out.push_str("   drained");
        }
        if let Some(PinStatus { by, since }) = &agent.pinned {
            let _ = write!(out, "   pinned by the {by} since {since}");
        }
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
        if let Some(check) = agent.check.as_ref().and_then(CheckStatus::line) {
            let _ = write!(out, "   {check}");
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
}

fn is_under_way(agent: &AgentView) -> bool {
    let is_busy = matches!(agent.state, AgentState::Fetching | AgentState::Staging | AgentState::Staged);
    agent.connected && is_busy
}

impl AgentStatus {
    /// Whether the linked generation is live: its hook, if any, has succeeded.
    pub fn is_live(&self) -> bool {
        self.generation.is_some() && self.hook.as_ref().is_none_or(HookStatus::is_live)
    }

    fn hook_trouble(&self) -> Option<String> {
        self.hook.as_ref().and_then(HookStatus::trouble)
    }

    pub fn new(agent: &AgentView) -> Self {
        Self {
            name: agent.name.to_string(),
            connected: agent.connected,
            generation: agent.generation.map(GenerationNumber::get),
            root: agent.root.map(|r| r.to_string()),
            state: agent.state,
            progress: agent.progress.filter(|_| is_under_way(agent)).map(ProgressLine::new),
            last_seen: (agent.last_seen_ms > 0).then(|| rfc3339(agent.last_seen_ms)),
            version: agent.version.clone(),
            error: agent.error.clone().or_else(|| agent.hook.as_ref().and_then(HookStatus::trouble)),
            hook: agent.hook.clone(),
            check: agent.check.clone(),
            group: agent.orders.group.clone(),
            drained: agent.is_drained(),
            pinned: PinStatus::of(agent),
            notes: agent.notes.clone(),
            spare_misses: agent.spare_misses,
            drift: agent.drift.clone(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn agent(name: &str) -> AgentStatus {
        AgentStatus {
            name: name.into(),
            connected: true,
            generation: Some(7),
            root: Some("ab".into()),
            state: AgentState::Live,
            progress: None,
            last_seen: Some(rfc3339(1_790_000_000_000)),
            version: Some("1.0".into()),
            error: None,
            hook: None,
            check: None,
            group: String::new(),
            drained: false,
            pinned: None,
            notes: Vec::new(),
            spare_misses: 0,
            drift: None,
        }
    }

    pub(crate) fn status(agents: Vec<AgentStatus>) -> Status {
        Status {
            tree_id: String::new(),
            tree: None,
            grpc_address: None,
            http_address: None,
            state: State::Ready,
            version: "1.0".into(),
            reason: None,
            hold: None,
            rollout: None,
            generation: Some(7),
            root: Some("ab".into()),
            label: None,
            created: None,
            files: 0,
            bytes: 0,
            history_bytes: None,
            publish: None,
            purge: None,
            collected: Vec::new(),
            polled: Vec::new(),
            warnings: Vec::new(),
            agents,
        }
    }

    #[test]
    fn a_person_sees_how_far_an_agent_is_and_who_never_came() {
        let progress = AgentProgress {
            generation: 7,
            done: Progress {
                files_done: 652,
                files_total: 2_594,
                bytes_done: 10 << 20,
                bytes_total: 53 << 20,
            },
        };
        let busy = AgentStatus {
            generation: Some(6),
            state: AgentState::Fetching,
            progress: Some(ProgressLine::new(progress)),
            version: Some("0.9".into()),
            ..agent("web1")
        };
        let new = AgentStatus { connected: false, generation: None, last_seen: None, ..agent("web2") };
        let text = status(vec![busy, new]).to_text();
        let expected = "fetching   1 behind   generation 7: 652 of 2,594 files, 10.00 MiB of 53.00 MiB, 18 %   syncd 0.9";
        assert!(text.contains(expected), "{text}");
        assert!(text.contains("  web2  never connected\n"), "{text}");
        let unknown = ProgressLine::new(AgentProgress { generation: 7, ..AgentProgress::default() });
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
            AgentStatus { state: AgentState::Staging, ..agent("b") },
            AgentStatus { notes: vec!["two machines share one certificate".into()], ..agent("b") },
            AgentStatus { drift: Some(drift), ..agent("b") },
        ] {
            assert_eq!(status(vec![agent("a"), bad]).verdict(), Verdict::NotLiveEverywhere);
        }
        for state in [State::Held, State::Waiting, State::Stopped] {
            assert_eq!(Status { state, ..status(vec![]) }.verdict(), Verdict::NotPublishing);
        }
        assert_eq!(Status { generation: None, ..status(vec![]) }.verdict(), Verdict::NotPublishing);
        // As after the keys alone were restored.
        let nobody = status(vec![]);
        assert_eq!(nobody.verdict(), Verdict::NotLiveEverywhere);
        assert!(nobody.to_text().contains("agents   none is enrolled: `syncd-origin token`"));
    }
}
