//! Status of an agent, for `syncd-agent status`, the health page and the admin socket.

use std::fmt;

use serde::{Deserialize, Serialize};
use syncd_shared::text::{counted, rfc3339};
use syncd_shared::{
    AgentState, CheckStatus, Fork, HookStatus, NodeStanding, OrderedStanding, Progress, RootHash, TreePath,
};

use crate::collected::CollectedReport;
use crate::state::decisions::Refusal;
use crate::state::swap::Swap;

/// JSON of `syncd-agent status --json`. Scripts depend on the names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// The agent's name at the origin.
    pub name: String,
    /// Fingerprint of the pinned root key.
    pub root_key: String,
    /// Number of the newest trust document.
    pub trust: u32,
    /// ROOT, absolute.
    pub root_directory: String,
    /// Address of the origin, HOST:PORT.
    pub origin: String,
    /// Whether the control stream is up.
    pub connected: bool,
    /// Whether the origin refuses this node's certificate for good: it has to join again.
    pub revoked: bool,
    /// Number of the live generation.
    pub generation: Option<u64>,
    /// Root hash of the live generation, hexadecimal.
    pub root: Option<String>,
    /// Path that the web server reads.
    pub live: String,
    /// Kind of `live`.
    pub swap: Swap,
    /// Current state.
    pub state: AgentState,
    /// The highest generation ever accepted.
    pub accepted: Option<u64>,
    /// Generations with a complete tree, oldest first.
    pub generations: Vec<u64>,
    /// Number of spares that are ready.
    pub spares: u64,
    /// Whether an agent runs on ROOT; `false`: the status was read from the record.
    pub running: bool,
    /// Progress of the current update.
    pub progress: Option<Progress>,
    /// Version of the agent.
    pub version: String,
    /// Version of the origin; `None`: not reached since the agent started.
    pub origin_version: Option<String>,
    /// Whether the origin serves collected directories, by its last `Welcome`.
    #[serde(skip)]
    pub origin_collects: bool,
    /// Time of the last message from the origin, RFC 3339, UTC; `None`: none since the agent started.
    pub last_contact: Option<String>,
    /// With `--follow`: time of the release that was seen last, RFC 3339, UTC.
    pub head: Option<String>,
    /// With `--head-max-age`: time from which the node is not ready, unless a newer release is seen.
    #[serde(default)]
    pub head_due: Option<String>,
    /// The last fault, while it lasts.
    pub error: Option<String>,
    /// Two roots under one number, while the newest announcement is one of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fork: Option<Fork>,
    /// A mode of ROOT that keeps the web server out, with the command that mends it.
    pub warning: Option<String>,
    /// The on-activate hook for the newest activation; `None`: none is set, or none was due since the agent
    /// started.
    pub hook: Option<HookStatus>,
    /// The after-activate hook, likewise. It never decides whether a generation is live.
    #[serde(default)]
    pub after: Option<HookStatus>,
    /// Newest result of the node's own check; `None`: none is set, or none has run since the agent started.
    pub check: Option<CheckStatus>,
    /// Label of the live generation.
    pub label: Option<String>,
    /// Generations that this node refuses, the oldest first.
    pub refused: Vec<Refused>,
    /// Orders given on the node.
    pub node: NodeStanding,
    /// Orders given at the origin.
    pub ordered: OrderedStanding,
    /// Whether other nodes serve a newer generation already, and this one has to follow.
    pub behind: bool,
    /// Local changes found, until a later tree has none.
    pub drift: Option<Drift>,
    /// Changed paths of live trees that were healed since the agent started, for `/metrics`.
    #[serde(skip)]
    pub healed: u64,
    /// Collected directories; `None`: there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collected: Option<CollectedReport>,
    /// Options of the running agent that the web server's settings depend on.
    pub settings: Option<RunSettings>,
}

/// A generation that this node refuses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    pub generation: u64,
    pub root: RootHash,
    /// Failure of the check.
    pub reason: String,
    /// When, RFC 3339, UTC.
    pub since: String,
    /// Another number under which the tree was announced last; `null`: there was none.
    pub announced: Option<u64>,
}

impl Refused {
    pub(crate) fn of(refusal: &Refusal) -> Self {
        let Refusal { generation, reason, since_ms, announced, .. } = refusal;
        let (reason, since) = (reason.clone(), rfc3339(*since_ms));
        Self { generation: generation.number, root: generation.root, reason, since, announced: *announced }
    }
}

/// Written as one line.
impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { generation, root, reason, since, announced } = self;
        let root = root.to_string();
        let root = root.get(..12).unwrap_or(&root);
        write!(f, "generation {generation} (root {root}) since {since}")?;
        if let Some(number) = announced {
            write!(f, ", announced again as generation {number}")?;
        }
        write!(f, ": {reason}")
    }
}

/// Some options of `run`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSettings {
    /// `--keep`.
    pub keep: u32,
    /// `--grace`, in milliseconds.
    pub grace_ms: u64,
    /// `--on-activate`.
    pub on_activate: Option<String>,
}

/// Local changes found by the last inspection: files on this node that differ from the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drift {
    /// Generation of the tree.
    pub generation: u64,
    /// Number of names that differ. A directory that the manifest does not have counts as one.
    pub paths: u64,
    /// The first of these names, as formatted by [`shown`].
    pub first: String,
    /// Directory where the files are kept; `None`: nothing was kept.
    pub kept: Option<String>,
    /// Number of names not kept: too large, not movable by this user, or deleted later to free space.
    pub lost: u64,
    /// Generation that was live at the inspection.
    pub live: u64,
}

/// Formats a path of a tree for people: escaped, with words for the root.
pub(crate) fn shown(path: &TreePath) -> String {
    if path.is_root() { ROOT_SHOWN.to_owned() } else { path.to_string() }
}

/// Text for the root of a tree.
pub(crate) const ROOT_SHOWN: &str = "the tree's root";

impl fmt::Display for Drift {
    /// Writes one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { generation, paths, first, kept, lost, .. } = self;
        let changes = counted(*paths, "local change", "local changes");
        match generation {
            0 => write!(f, "{changes} in a tree whose record was lost (first {first})")?,
            generation => write!(f, "{changes} in generation {generation} (first {first})")?,
        }
        if let Some(kept) = kept {
            write!(f, ", kept in {kept}")?;
        }
        match lost {
            0 => Ok(()),
            lost => write!(f, ", {lost} not kept"),
        }
    }
}

/// Result of `status --check`, with its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// 0: the newest announced generation is live.
    Well,
    /// 1: no generation is live, or no agent runs.
    NotServing,
    /// 3: a generation is live, but the origin is unreachable, another generation is on its way, or there is
    /// a fault.
    NotFollowing,
}

impl AgentStatus {
    /// Judges the status for `status --check`.
    pub fn verdict(&self) -> Verdict {
        if !self.running || self.generation.is_none() {
            return Verdict::NotServing;
        }
        let follows = self.connected && self.state == AgentState::Live && self.error.is_none();
        if follows { Verdict::Well } else { Verdict::NotFollowing }
    }
}

impl fmt::Display for AgentStatus {
    /// Writes a short summary for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connection = if self.running { self.connection() } else { "agent not running" };
        match self.generation {
            Some(generation) => {
                write!(f, "{}: generation {generation} is {}", self.name, self.reached())?;
                match self.state {
                    AgentState::Live | AgentState::Switched => writeln!(f)?,
                    AgentState::Failed => writeln!(f, ", the next one failed")?,
                    next => writeln!(f, ", the next one is {next}")?,
                }
            }
            None => writeln!(f, "{}: nothing is live yet ({})", self.name, self.state)?,
        }
        if let Some(root) = &self.root {
            writeln!(f, "  root         {root}")?;
        }
        match self.swap {
            Swap::Link => writeln!(f, "  live         {}", self.live)?,
            Swap::Exchange => writeln!(f, "  live         {} (a directory, --swap exchange)", self.live)?,
        }
        if let Some(progress) = &self.progress {
            writeln!(f, "  progress     {progress}")?;
        }
        write!(f, "  origin       {}, {connection}", self.origin)?;
        match &self.last_contact {
            Some(time) => writeln!(f, ", last heard {time}")?,
            None => writeln!(f)?,
        }
        if self.accepted != self.generation
            && let Some(accepted) = self.accepted
        {
            writeln!(f, "  accepted     {accepted}")?;
        }
        let kept: Vec<_> = self.generations.iter().map(u64::to_string).collect();
        let kept = if kept.is_empty() { "none".to_owned() } else { kept.join(", ") };
        writeln!(f, "  generations  {kept}; spares ready: {}", self.spares)?;
        write!(f, "  version      {}", self.version)?;
        match &self.origin_version {
            Some(version) if *version != self.version => write!(f, ", the origin {version}")?,
            _ => {}
        }
        self.write_notes(f)
    }
}

impl AgentStatus {
    /// Writes the lines that not every node has.
    fn write_notes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(drift) = &self.drift {
            write!(f, "\n  drift        {drift}")?;
        }
        if let Some(hook) = self.hook.as_ref().and_then(HookStatus::line) {
            write!(f, "\n  hook         {hook}")?;
        }
        if let Some(after) = self.after.as_ref().filter(|after| after.has_failed()) {
            let HookStatus { output, attempt, .. } = after;
            write!(f, "\n  after        after-activate failed: {output} (attempt {attempt})")?;
        }
        if let Some(check) = self.check.as_ref().and_then(CheckStatus::line) {
            write!(f, "\n  check        {check}")?;
        }
        if let Some(collected) = &self.collected {
            write!(f, "\n  collected    {collected}")?;
        }
        for refused in &self.refused {
            write!(f, "\n  refused      {refused}")?;
        }
        for order in self.orders() {
            write!(f, "\n  order        {order}")?;
        }
        // The line of the hook has it already.
        let trouble = self.hook.as_ref().and_then(HookStatus::trouble);
        if let Some(error) = self.error.as_ref().filter(|error| trouble.as_ref() != Some(*error)) {
            write!(f, "\n  error        {error}")?;
        }
        if let Some(warning) = &self.warning {
            write!(f, "\n  warning      {warning}")?;
        }
        Ok(())
    }

    /// Orders that hold for this node, each on one line.
    fn orders(&self) -> Vec<String> {
        let mut orders = Vec::new();
        if self.node.drained {
            orders.push("drained here: `syncd-agent undrain` ends it".to_owned());
        }
        if let Some(pin) = self.node.pinned {
            let since = rfc3339(pin.since_ms);
            orders.push(format!(
                "pinned here to generation {} since {since}: `syncd-agent unpin` ends it",
                pin.generation
            ));
        }
        if self.ordered.drained {
            orders.push("drained by the origin".to_owned());
        }
        if self.ordered.pinned {
            orders.push("pinned by the origin: it stays where it is".to_owned());
        }
        orders
    }

    /// The running agent's relation to its origin, in words.
    pub fn connection(&self) -> &'static str {
        match (self.connected, self.revoked) {
            (true, _) => "connected",
            (false, true) => "revoked: join again with a new token",
            (false, false) => "not connected",
        }
    }

    /// How far the current [`Self::generation`] is: `switched` while the on-activate hook is due, otherwise
    /// `live`.
    pub fn reached(&self) -> AgentState {
        if self.hook.as_ref().is_some_and(|hook| !hook.is_live()) {
            AgentState::Switched
        } else {
            AgentState::Live
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> AgentStatus {
        AgentStatus {
            root_key: "0".repeat(64),
            trust: 1,
            name: "web1".into(),
            root_directory: "/srv/replica".into(),
            origin: "host:8873".into(),
            connected: true,
            revoked: false,
            generation: Some(42),
            root: Some("ab".repeat(32)),
            live: "/srv/replica/live".into(),
            swap: Swap::Link,
            state: AgentState::Live,
            accepted: Some(42),
            generations: vec![41, 42],
            spares: 2,
            running: true,
            progress: None,
            version: "1.0".into(),
            origin_version: Some("1.0".into()),
            origin_collects: false,
            last_contact: Some("2026-11-23T04:12:02.000Z".into()),
            head: None,
            head_due: None,
            error: None,
            fork: None,
            warning: None,
            drift: None,
            healed: 0,
            collected: None,
            hook: None,
            after: None,
            check: None,
            label: Some("release".into()),
            refused: Vec::new(),
            node: NodeStanding::default(),
            ordered: OrderedStanding::default(),
            behind: false,
            settings: None,
        }
    }

    /// Status in which the hook has failed for the generation of [`sample`].
    pub(crate) fn failing() -> AgentStatus {
        let hook = HookStatus {
            generation: 42,
            outcome: syncd_shared::HookOutcome::Failed,
            duration_ms: 12,
            output: "exit status: 1: AH00526".into(),
            attempt: 2,
            succeeded: Some(41),
            waits: None,
        };
        AgentStatus { state: AgentState::Switched, error: hook.trouble(), hook: Some(hook), ..sample() }
    }

    #[test]
    fn a_failing_hook_is_told_and_nothing_is_called_live() {
        let text = failing().to_string();
        assert!(text.starts_with("web1: generation 42 is switched\n"), "{text}");
        let hook = "hook         hook failed: exit status: 1: AH00526 (attempt 2); the web server may still serve generation 41";
        assert!(text.contains(hook), "{text}");
        assert_eq!(text.matches("AH00526").count(), 1, "{text}");
        // The same while the next generation is on its way.
        let text = AgentStatus { state: AgentState::Fetching, ..failing() }.to_string();
        assert!(text.starts_with("web1: generation 42 is switched, the next one is fetching\n"), "{text}");
    }

    #[test]
    fn one_local_change_is_told_in_the_singular_and_the_root_in_words() {
        let first = shown(&TreePath::root());
        let mut drift = Drift { generation: 7, paths: 1, first, kept: None, lost: 0, live: 8 };
        assert_eq!(drift.to_string(), "1 local change in generation 7 (first the tree's root)");
        drift.paths = 2_000;
        assert!(drift.to_string().starts_with("2,000 local changes in"), "{drift}");
    }

    #[test]
    fn json_has_the_names_that_scripts_depend_on() {
        let json = serde_json::to_string(&sample()).unwrap();
        let (root, key) = ("ab".repeat(32), "00".repeat(32));
        let expected = format!(
            r#"{{"name":"web1","root_key":"{key}","trust":1,"root_directory":"/srv/replica","origin":"host:8873","connected":true,"revoked":false,"generation":42,"root":"{root}","live":"/srv/replica/live","swap":"link","state":"live","accepted":42,"generations":[41,42],"spares":2,"running":true,"progress":null,"version":"1.0","origin_version":"1.0","last_contact":"2026-11-23T04:12:02.000Z","head":null,"head_due":null,"error":null,"warning":null,"hook":null,"after":null,"check":null,"label":"release","refused":[],"node":{{"drained":false,"pinned":null}},"ordered":{{"drained":false,"pinned":false}},"behind":false,"drift":null,"settings":null}}"#
        );
        assert_eq!(json, expected);
    }

    #[test]
    fn a_person_reads_the_generation_first() {
        let text = sample().to_string();
        assert!(text.starts_with("web1: generation 42 is live\n"), "{text}");
        assert!(text.contains("host:8873, connected"), "{text}");
        let idle = AgentStatus { running: false, generations: Vec::new(), ..sample() }.to_string();
        assert!(idle.contains("host:8873, agent not running"), "{idle}");
        assert!(idle.contains("generations  none; spares"), "{idle}");
        let refused = AgentStatus { connected: false, revoked: true, ..sample() }.to_string();
        assert!(refused.contains("host:8873, revoked: join again with a new token"), "{refused}");
        let progress =
            Progress { files_done: 1, files_total: 2_000, bytes_done: 1 << 20, bytes_total: 4 << 20 };
        let busy = AgentStatus { progress: Some(progress), origin_version: Some("2.0".into()), ..sample() };
        let busy = busy.to_string();
        assert!(busy.contains("progress     1 of 2,000 files, 1.00 MiB of 4.00 MiB, 25 %\n"), "{busy}");
        assert!(busy.contains("version      1.0, the origin 2.0"), "{busy}");
    }

    #[test]
    fn the_verdict_tells_what_serves_from_what_follows() {
        assert_eq!(sample().verdict(), Verdict::Well);
        for late in [
            AgentStatus { connected: false, ..sample() },
            AgentStatus { state: AgentState::Fetching, ..sample() },
            AgentStatus { error: Some("no space".into()), ..sample() },
        ] {
            assert_eq!(late.verdict(), Verdict::NotFollowing);
        }
        for down in [AgentStatus { running: false, ..sample() }, AgentStatus { generation: None, ..sample() }]
        {
            assert_eq!(down.verdict(), Verdict::NotServing);
        }
    }
}
