//! One event, in JSON and as text.

use std::fmt;

use indicatif::{HumanBytes, HumanCount};
use serde::{Deserialize, Serialize};
use syncd_shared::Fork;
use syncd_shared::text::counted;

use crate::fleet::rollout::Phase;

/// Something that happened. `--json` prints it, so scripts depend on its shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The origin started to serve.
    Started {
        version: String,
    },
    /// This origin began to stand by for another one.
    StandingBy {
        version: String,
    },
    /// A generation of the other origin is here as well.
    Followed {
        generation: u64,
    },
    /// This origin is the origin of the tree from now on.
    Promoted {
        epoch: u32,
        /// Number of its first generation.
        first: u64,
    },
    /// A generation is published.
    Sealed {
        generation: u64,
        root: String,
        label: String,
        files: u64,
        bytes: u64,
    },
    /// Nothing is published until a person decides.
    Held {
        reason: String,
    },
    /// Publishing goes on.
    HoldEnded,
    /// The rollout of a generation began, went on to another step or phase, or ended.
    Rollout {
        generation: u64,
        policy: String,
        phase: Phase,
        step: usize,
        steps: usize,
        paused: bool,
        reason: Option<String>,
    },
    /// The rollout of a generation failed, and the one before is published again.
    Withdrawn {
        generation: u64,
    },
    /// A node is enrolled.
    Joined {
        node: String,
    },
    /// A node was revoked or forgotten: the audit says which.
    Removed {
        node: String,
    },
    Connected {
        node: String,
        version: Option<String>,
    },
    Unreachable {
        node: String,
    },
    /// A generation is live on a node, hook included.
    Live {
        node: String,
        generation: u64,
    },
    /// An update or a hook failed on a node.
    Failed {
        node: String,
        error: String,
    },
    /// The error is over.
    Recovered {
        node: String,
    },
    /// A node's own check failed on a generation.
    CheckFailed {
        node: String,
        generation: u64,
        /// `None`: the node stays.
        returned_to: Option<u64>,
        error: String,
    },
    /// A node has another root than this origin under one number: two origins write this tree, or one was
    /// restored from an older copy.
    Fork {
        node: String,
        #[serde(flatten)]
        fork: Fork,
    },
    /// Files were changed on a node. They are healed and kept.
    ChangedLocally {
        node: String,
        generation: u64,
        paths: u64,
    },
    /// Balancers are told that a node is not ready.
    Drained {
        node: String,
    },
    Undrained {
        node: String,
    },
    /// A node stays where it is.
    Pinned {
        node: String,
    },
    Unpinned {
        node: String,
    },
    /// A change of a node came second. Its content is kept.
    CollectedConflict {
        directory: String,
        path: String,
        node: String,
    },
    /// A file of a node is not taken, and `more` others at the same moment.
    CollectedRefused {
        directory: String,
        path: String,
        node: String,
        reason: String,
        more: u64,
    },
    /// A person made earlier states of files current again.
    CollectedRestored {
        directory: String,
        files: u64,
    },
}

impl Event {
    /// The name in JSON, with spaces.
    fn name(&self) -> &'static str {
        match self {
            Self::Started { .. } => "started",
            Self::StandingBy { .. } => "standing by",
            Self::Followed { .. } => "followed",
            Self::Promoted { .. } => "promoted",
            Self::Sealed { .. } => "sealed",
            Self::Held { .. } => "held",
            Self::HoldEnded => "hold_ended",
            Self::Joined { .. } => "joined",
            Self::Rollout { .. } => "rollout",
            Self::Withdrawn { .. } => "withdrawn",
            Self::Removed { .. } => "removed",
            Self::Connected { .. } => "connected",
            Self::Unreachable { .. } => "unreachable",
            Self::Live { .. } => "live",
            Self::Failed { .. } => "failed",
            Self::Recovered { .. } => "recovered",
            Self::CheckFailed { .. } => "check failed",
            Self::Fork { .. } => "fork",
            Self::ChangedLocally { .. } => "changed locally",
            Self::Drained { .. } => "drained",
            Self::Undrained { .. } => "undrained",
            Self::Pinned { .. } => "pinned",
            Self::Unpinned { .. } => "unpinned",
            Self::CollectedConflict { .. } => "collected conflict",
            Self::CollectedRefused { .. } => "collected refused",
            Self::CollectedRestored { .. } => "collected restored",
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:12}", self.name())?;
        match self {
            Self::Started { version } | Self::StandingBy { version } => write!(f, "  syncd {version}"),
            Self::Promoted { epoch, first } => write!(f, "  epoch {epoch}, generations from {first} on"),
            Self::Sealed { generation, label, files, bytes, .. } => {
                let label = if label.is_empty() { String::new() } else { format!(" ({label})") };
                let files = HumanCount(*files);
                write!(f, "  generation {generation}{label}: {files} files, {}", HumanBytes(*bytes))
            }
            Self::Held { reason } => write!(f, "  {reason}"),
            Self::HoldEnded => f.write_str("  the hold or the wait is over"),
            Self::Rollout { generation, policy, phase, step, steps, paused, reason } => {
                write!(f, "  generation {generation} ({policy}) {}", phase.name())?;
                if phase.is_running() && *steps > 1 {
                    write!(f, ", step {step} of {steps}")?;
                }
                let paused = if *paused { ", paused" } else { "" };
                let reason = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
                write!(f, "{paused}{reason}")
            }
            Self::Followed { generation } | Self::Withdrawn { generation } => {
                write!(f, "  generation {generation}")
            }
            Self::Connected { node, version: Some(version) } => write!(f, "  {node}  syncd {version}"),
            Self::Live { node, generation } => write!(f, "  {node}  generation {generation}"),
            Self::Failed { node, error } => write!(f, "  {node}  {error}"),
            Self::CheckFailed { node, generation, returned_to, error } => {
                write!(f, "  {node}  generation {generation}")?;
                match returned_to {
                    Some(returned_to) => write!(f, ", returned to {returned_to}: {error}"),
                    None => write!(f, ": {error}"),
                }
            }
            Self::Fork { node, fork } => write!(f, "  {node}  {fork}"),
            Self::ChangedLocally { node, generation, paths } => {
                write!(f, "  {node}  {} in generation {generation}", counted(*paths, "path", "paths"))
            }
            Self::CollectedConflict { directory, path, node } => {
                write!(f, "  {directory}/{path} from {node}: another change came first, this content is kept")
            }
            Self::CollectedRefused { directory, path, node, reason, more } => {
                write!(f, "  {directory}/{path} from {node}: {reason}")?;
                match more {
                    0 => Ok(()),
                    more => write!(f, ", and {}", counted(*more, "other file", "other files")),
                }
            }
            Self::CollectedRestored { directory, files } => {
                write!(f, "  {directory}: {}", counted(*files, "file", "files"))
            }
            Self::Joined { node }
            | Self::Removed { node }
            | Self::Connected { node, .. }
            | Self::Unreachable { node }
            | Self::Recovered { node }
            | Self::Drained { node }
            | Self::Undrained { node }
            | Self::Pinned { node }
            | Self::Unpinned { node } => write!(f, "  {node}"),
        }
    }
}
