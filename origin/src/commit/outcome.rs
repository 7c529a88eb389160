//! Options of a commit, and the results of the sealer's jobs.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use syncd_shared::generation::{GenerationError, LabelError};
use syncd_shared::{GenerationNumber, RootEntry, SignedGeneration};

use crate::audit::AuditError;
use crate::fleet::RecordError;
use crate::fleet::rollout::PolicyError;
use crate::keys::KeysError;
use crate::publish::FenceError;
use crate::scan::ScanError;
use crate::store::{SealError, StoreError, UnsavedDirectories};

/// Reasons that nothing was sealed. The last generation stays current.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The tree could not be read in one consistent state.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// Reading the store failed.
    #[error("read the store")]
    Store(#[from] StoreError),
    /// The store has a generation that this origin did not sign.
    #[error("read a generation of the store")]
    Generation(#[from] GenerationError),
    /// The generation could not be made durable.
    #[error("seal the generation")]
    Seal(#[from] SealError),
    /// A trust document was refused, or its keys could not be put in force.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// No such generation is retained.
    #[error("generation {number} is not retained; `syncd-origin history` lists those that are")]
    UnknownGeneration { number: GenerationNumber },
    /// No earlier generation is left to return to.
    #[error(
        "there is no generation to return to before {current}: none is retained that was released and not rolled back;          `syncd-origin history` lists them, `syncd-origin rollback GENERATION` names one"
    )]
    NothingBefore { current: GenerationNumber },
    #[error("nothing was published yet")]
    NothingPublished,
    /// Another generation was published while the question before a rollback was shown.
    #[error(
        "generation {current} is in effect by now, and no longer {shown}: nothing was done; run the command again"
    )]
    CurrentSince { shown: u64, current: GenerationNumber },
    /// Nodes have refused the target of a rollback while the question before it was shown.
    #[error(
        "{nodes} refused the tree of generation {number} since the question was asked: nothing was done; run the command again"
    )]
    RefusedSince { nodes: String, number: GenerationNumber },
    /// Nodes have refused this tree.
    #[error(
        "{nodes} refused this tree, because its check failed there: change the tree, or publish it nevertheless with \
         `syncd-origin commit`"
    )]
    RefusedByNodes { nodes: String },
    /// A step of the policy is for a group that nobody is in.
    #[error(
        "rollout policy {policy}: no node is in group {group}: `syncd-origin group NODE {group}` puts one into it"
    )]
    NoGroup { policy: String, group: String },
    /// The records of rollouts are unreadable.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// There is no such policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The label is not allowed.
    #[error(transparent)]
    Label(#[from] LabelError),
    /// The signing key's epochs or numbers are used up, by a thief of the key if not by age.
    #[error(
        "no generation can follow {last} under this signing key: replace it with `syncd-origin key rotate --signing`"
    )]
    NoNumberLeft {
        /// The last number.
        last: GenerationNumber,
    },
    /// The request is not in the audit.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// Another origin may commit, or the object store does not answer.
    #[error(transparent)]
    Fence(#[from] FenceError),
    /// The origin is stopping.
    #[error("the origin is stopping; try again when it is back")]
    Stopping,
}

impl CommitError {
    /// Whether the request was invalid, as opposed to a problem with the tree or the store.
    pub(super) fn is_of_request(&self) -> bool {
        matches!(
            self,
            Self::Keys(
                KeysError::NotPending { .. } | KeysError::DamagedDocument { .. } | KeysError::Trust(_)
            ) | Self::UnknownGeneration { .. }
                | Self::NothingBefore { .. }
                | Self::NothingPublished
                | Self::CurrentSince { .. }
                | Self::RefusedSince { .. }
                | Self::Policy(_)
                | Self::NoGroup { .. }
                | Self::Label { .. }
                | Self::NoNumberLeft { .. }
                | Self::Stopping
        )
    }
}

/// Result of a job.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// A new generation is durable and announced.
    Sealed(SignedGeneration),
    /// The tree equals the current generation.
    Unchanged(SignedGeneration),
    /// The job succeeded and published nothing.
    Scanned,
    /// The tree as it is now, published or not.
    Found(Preview),
}

/// A tree that was read for `diff --pending`.
#[derive(Debug, Clone)]
pub struct Preview {
    pub root: RootEntry,
    /// Its directory objects that are not in the store.
    pub unsaved: Arc<UnsavedDirectories>,
    /// Reason that a guard does not let it be published.
    pub refused: Option<String>,
}

impl Preview {
    /// A tree whose objects are in the store.
    pub(super) fn of(root: RootEntry) -> Self {
        Self { root, unsaved: Arc::default(), refused: None }
    }
}

/// Content of the question before a rollback.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackShown {
    /// Number of the generation in effect.
    pub from: u64,
    /// Number of the generation whose tree would be published.
    pub to: u64,
    /// Names of nodes that refuse that tree.
    pub refused_by: Vec<String>,
}

/// Options of a commit request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CommitOptions {
    /// `-m`.
    pub label: String,
    pub allow_mass_deletion: bool,
    /// `--rescan`: reads every file, whatever its stat record.
    pub rescan: bool,
    /// `--rollout`: name of a policy.
    pub rollout: Option<String>,
    /// `--now`: to all nodes at once.
    pub now: bool,
}
