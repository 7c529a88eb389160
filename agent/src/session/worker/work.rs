//! The operations that the worker needs of a replica, with their arguments and results.

use std::fmt;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use indicatif::HumanBytes;
use serde::{Deserialize, Serialize};
use syncd_proto::v1::RetryClass;
use syncd_shared::text::error_chain;
use syncd_shared::wire::Frame;
use syncd_shared::{GenerationNumber, OrderedStanding, Progress, RootHash, SignedGeneration};

use crate::hooks::{Changed, HookError, HookState, Occasion};
use crate::source::Source;
use crate::state::decisions::{Decisions, Named};
use crate::status::Drift;

/// Called before a switch with the changed paths. An error prevents the switch.
pub type BeforeSwitch<'a> = dyn FnMut(Occasion, &Changed<'_>) -> Result<(), HookError> + 'a;

/// Operations of a replica that the session uses. [`crate::replica::Replica`] implements them. Tests use an
/// implementation that fails and delays on demand. Every method blocks.
pub trait ReplicaWork: Send + 'static {
    /// A complete, verified tree that is not live yet.
    type Staged: Send;

    fn state(&self) -> ReplicaState;

    /// Builds and verifies the tree of `generation`. Checks `cancel` between files.
    fn stage(
        &mut self,
        generation: &SignedGeneration,
        inline: Option<Inline>,
        source: &mut dyn Source,
        progress: &dyn Fn(Progress),
        cancel: &AtomicBool,
    ) -> Result<Self::Staged, Failure>;

    /// Like [`Self::stage`], for a held generation that the node goes back to. It will not be on trial.
    fn stage_return(
        &mut self,
        generation: &SignedGeneration,
        source: &mut dyn Source,
        progress: &dyn Fn(Progress),
        cancel: &AtomicBool,
    ) -> Result<Self::Staged, Failure> {
        self.stage(generation, None, source, progress, cancel)
    }

    /// Records a decision, durably.
    fn decide(&mut self, _decision: Decision) -> Result<(), Failure> {
        Ok(())
    }

    /// Makes a tree live, durably. Calls `before` with the changed paths before anything is switched. If it
    /// fails, nothing is switched and the staged tree is returned. Not cancellable.
    fn activate(
        &mut self,
        staged: Self::Staged,
        before: &mut BeforeSwitch<'_>,
    ) -> Result<(), NotActivated<Self::Staged>>;

    /// Whether the result of a failed activation is known: `false` until the record could be opened again.
    fn is_settled(&self) -> bool {
        true
    }

    /// Keeps the trees of all generations from this number on, because a web server may still serve them.
    /// `None`: only the live tree. Called before each command, and right after a switch.
    fn protect(&mut self, _from: Option<u64>) {}

    /// Notes that the on-activate hook has succeeded for a generation. Called once for each run, possibly
    /// late: another generation may be live.
    fn hook_succeeded(&mut self, _generation: u64) {}

    /// Calls `note` with the live generation and every path: whatever a web server has cached may be wrong.
    fn note_live(&self, _note: &mut BeforeSwitch<'_>) -> Result<(), Failure> {
        Ok(())
    }

    /// Limits retired trees when there is no time for [`Self::maintain`]. Called after each report, so that
    /// nobody waits for it.
    fn bound(&mut self) {}

    /// Compares the former with the live generation, for the log. Takes as long as the comparison.
    fn changes(&self, _previous: Option<&SignedGeneration>, _live: &SignedGeneration) -> Option<Changes> {
        None
    }

    /// Called when the process ends in order. Saves what the next start would otherwise have to check again.
    fn end(&mut self) {}

    /// Does one step of maintenance: spares, old trees.
    fn maintain(&mut self, cancel: &AtomicBool) -> Maintenance;

    /// Hashes all files again and heals those that drifted.
    fn verify(
        &mut self,
        source: &mut dyn Source,
        progress: &dyn Fn(Progress),
        cancel: &AtomicBool,
    ) -> Result<Verified, Failure>;
}

/// State of a replica.
#[derive(Debug, Clone, Default)]
pub struct ReplicaState {
    /// The live generation.
    pub live: Option<SignedGeneration>,
    /// The highest generation ever accepted.
    pub accepted: Option<SignedGeneration>,
    /// Generations of other complete trees.
    pub held: Vec<SignedGeneration>,
    /// Numbers of all complete trees, ascending.
    pub generations: Vec<GenerationNumber>,
    /// Number of spares that are ready.
    pub spares: u64,
    /// Number of updates so far that found no spare.
    pub spare_misses: u64,
    /// Local changes found by the last inspection.
    pub drift: Option<Drift>,
    /// Number of changed paths of live trees that were healed so far.
    pub healed: u64,
    pub decisions: Decisions,
    /// State of the on-activate hook, filled in by the worker; `None`: none is set.
    pub hook: Option<HookState>,
}

/// A change of the node's decisions ([`crate::state::decisions`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The generation has passed its check. Nothing is recorded if another root is live now.
    Pass(Named),
    /// The generation has failed its check, with this failure.
    Refuse(Named, String),
    /// The trial of the generation is over, without a result.
    Stay(Named),
    /// The tree of this refused generation was announced under another number.
    Announced(Named, u64),
    /// The refusals of this number are forgotten.
    Accept(u64),
    /// `drain` and `undrain` on the node.
    Drain(bool),
    /// `pin` on the node, to this generation or to the live one. A trial is over.
    Pin(Option<u64>),
    /// `unpin` on the node.
    Unpin,
    /// The origin's orders.
    Ordered(OrderedStanding),
}

/// Paths that differ between two generations: files, symlinks and directories, as in `syncd-origin history`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    pub added: u64,
    /// Names with another content, target or metadata.
    pub changed: u64,
    pub removed: u64,
    /// Content bytes of added and changed files.
    pub bytes: u64,
}

/// Written as `+1 ~2 -3 files and directories, 4.50 KiB`.
impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { added, changed, removed, bytes } = self;
        write!(f, "+{added} ~{changed} -{removed} files and directories, {}", HumanBytes(*bytes))
    }
}

/// An update that came with its announcement.
#[derive(Debug, Clone)]
pub struct Inline {
    /// The root that it starts from.
    pub from: RootHash,
    /// All frames of the update, including [`Frame::End`].
    pub frames: Vec<Frame>,
}

/// Result of a verification: the JSON of `syncd-agent verify --json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Files read.
    pub files: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Number of paths that had drifted.
    pub drifted: u64,
    /// The first [`DRIFT_SHOWN_MAX`] of these paths.
    pub drift: Vec<Drifted>,
    /// Whether all of them were healed.
    pub healed: bool,
    /// Directory with the extra and changed files; `None`: nothing was kept.
    pub kept: Option<String>,
    /// Reason that the origin could not heal it, if it was asked.
    pub error: Option<String>,
}

/// Limit of drifted paths that are named. Others are only counted.
pub const DRIFT_SHOWN_MAX: usize = 10_000;

/// A path whose file differs from the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drifted {
    /// The path, escaped for display.
    pub path: String,
    /// `missing`, `extra`, `kind`, `content`, `metadata` or `unreadable`.
    pub what: String,
}

impl Verified {
    /// Whether the live tree now matches its manifest.
    pub fn is_whole(&self) -> bool {
        self.drifted == 0 || self.healed
    }
}

/// Result of a maintenance step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Maintenance {
    /// Pause before the next step; `None`: none is due before the next activation.
    pub again: Option<Duration>,
    /// Local changes that were found, for people.
    pub trouble: Option<String>,
    /// The live tree was inspected and is as activated, so an earlier fault is over.
    pub whole: bool,
    /// A file of the live tree was changed, so everything has to be hashed again and healed.
    pub verify: bool,
}

/// Reason why the worker did not complete a command, for retries, the origin and people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Failure {
    /// Decides how to retry; `None`: the command was cancelled, which is no failure.
    pub retry: Option<RetryClass>,
    /// The error and its causes, in one text.
    pub reason: String,
}

impl Failure {
    /// Describes an error and its retry class.
    pub fn new(retry: RetryClass, error: &(dyn std::error::Error + 'static)) -> Self {
        Self { retry: Some(retry), reason: error_chain(error) }
    }

    /// Describes a cancelled command.
    pub fn superseded() -> Self {
        Self { retry: None, reason: "abandoned for a newer generation".into() }
    }
}

/// Reason why a staged tree is not live.
#[derive(Debug)]
pub struct NotActivated<S> {
    pub failure: Failure,
    /// The staged tree, if it can still be activated.
    pub staged: Option<S>,
}
