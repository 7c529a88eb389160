//! The replica as the session's worker uses it.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use syncd_proto::v1::RetryClass;
use syncd_shared::{GenerationNumber, SignedGeneration, TreePath};

use crate::activate::{ActivateError, ActivationContext};
use crate::config::RunOptions;
use crate::hooks::{HookError, Occasion};
use crate::reason;
use crate::replica::{OpenReplicaError, Replica, ReplicaOptions};
use crate::session::worker::{
    Failure, Inline, NotActivated, ReplicaState, ReplicaWork, StageProgress, Verified,
};
use crate::source::Source;
use crate::stage::{self, StageError, Staged};

/// Opens the replica that `options` speak of, and recovers it.
pub(crate) fn open(options: &RunOptions) -> Result<Replica, OpenReplicaError> {
    let replica_options = ReplicaOptions {
        keep: usize::try_from(options.keep).unwrap_or(usize::MAX),
        grace: options.grace,
        owner: options.owner.map(|owner| (owner.uid, owner.gid)),
    };
    Replica::open(&options.root, replica_options)
}

fn stage_failure(error: &StageError) -> Failure {
    match error {
        StageError::Cancelled => Failure::superseded(),
        error => Failure::new(error.retry_class(), error),
    }
}

fn progress_of(progress: stage::StageProgress) -> StageProgress {
    let stage::StageProgress { files_done, files_total, bytes_done, bytes_total } = progress;
    StageProgress { files_done, files_total, bytes_done, bytes_total }
}

impl ReplicaWork for Replica {
    type Staged = Staged;

    fn state(&self) -> ReplicaState {
        let status = self.status();
        ReplicaState {
            live: status.live,
            accepted: status.accepted,
            held: status.held,
            generations: status.generations.into_iter().filter_map(GenerationNumber::new).collect(),
            spares: status.spares as u64,
            spare_misses: status.spare_misses,
        }
    }

    fn stage(
        &mut self,
        generation: &SignedGeneration,
        inline: Option<Inline>,
        source: &mut dyn Source,
        progress: &dyn Fn(StageProgress),
        cancel: &AtomicBool,
    ) -> Result<Staged, Failure> {
        let inline = inline.map(|inline| (inline.from, inline.frames));
        let progress = |now| progress(progress_of(now));
        self.stage(generation, inline, source, &progress, cancel).map_err(|error| stage_failure(&error))
    }

    fn activate(
        &mut self,
        staged: Staged,
        before: &mut dyn FnMut(Occasion, &[TreePath]) -> Result<(), HookError>,
    ) -> Result<(), NotActivated<Staged>> {
        let live: PathBuf = self.root().join("live");
        let mut told = |context: &ActivationContext<'_>| {
            let previous = context.previous.map(|generation| generation.number().get());
            let occasion = Occasion::of(context.target, previous, context.staged_tree.clone(), live.clone());
            Ok(before(occasion, context.changed_paths)?)
        };
        match self.activate(staged, &mut told) {
            Ok(_) => Ok(()),
            Err(ActivateError::Hook { source, staged }) => {
                let failure =
                    Failure { retry: Some(RetryClass::Retry), reason: reason::of(source.as_ref()) };
                Err(NotActivated { failure, staged: Some(*staged) })
            }
            Err(error) => {
                Err(NotActivated { failure: Failure::new(error.retry_class(), &error), staged: None })
            }
        }
    }

    fn maintain(&mut self, cancel: &AtomicBool) -> Option<Duration> {
        todo_maintain(self, cancel)
    }

    fn verify(
        &mut self,
        source: &mut dyn Source,
        progress: &dyn Fn(StageProgress),
        cancel: &AtomicBool,
    ) -> Result<Verified, Failure> {
        todo_verify(self, source, progress, cancel)
    }
}
