//! Implements the session worker's interface to a replica.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use syncd_proto::v1::RetryClass;
use syncd_shared::text::{counted, error_chain};
use syncd_shared::{GenerationNumber, Progress, RootEntry, SignedGeneration, TreePath};

use crate::build::{StageError, Staged};
use crate::config::RunOptions;
use crate::hooks::{Changed, Occasion};
use crate::identity::AgentIdentity;
use crate::replica::activate::{ActivateError, ActivationContext, ChangedPaths};
use crate::replica::maintain::{Maintained, Upkept};
use crate::replica::verify::{Damage, VerifyError, VerifyReport};
use crate::replica::{OpenReplicaError, Replica, ReplicaOptions, Signers};
use crate::session::worker::{
    BeforeSwitch, Changes, Decision, Drifted, Failure, Inline, Maintenance, NotActivated, ReplicaState,
    ReplicaWork, Verified,
};
use crate::source::{FetchError, Source};
use crate::test_faults;

/// Priority of background work; 19 is the lowest.
const BACKGROUND_NICE: i32 = 19;
/// Pause after failed maintenance.
const MAINTAIN_RETRY: Duration = Duration::from_secs(30);

/// Opens the replica of `options` and recovers it. Raises this process's limit of open files to the hard
/// limit.
pub(crate) fn open(options: &RunOptions, signers: Signers) -> Result<Replica, OpenReplicaError> {
    syncd_runtime::open_files::raise_limit();
    let mut replica = Replica::open(&options.root, replica_options(options, signers))?;
    replica.started()?;
    Ok(replica)
}

/// Like [`open`], for a command while no agent runs: keeps the owner of the agent's last run.
pub(crate) fn open_as_before(options: &RunOptions, signers: Signers) -> Result<Replica, OpenReplicaError> {
    syncd_runtime::open_files::raise_limit();
    let as_before = ReplicaOptions { owner_as_before: true, ..replica_options(options, signers) };
    Replica::open(&options.root, as_before)
}

/// The tree and all keys that this node trusts or has trusted.
pub(crate) fn signers(identity: &AgentIdentity) -> Signers {
    Signers { tree_id: identity.tree_id(), keys: identity.signing_keys().copied().collect() }
}

pub(super) fn replica_options(options: &RunOptions, signers: Signers) -> ReplicaOptions {
    ReplicaOptions {
        signers: Some(signers),
        keep: usize::try_from(options.keep).unwrap_or(usize::MAX),
        grace: options.grace,
        owner: options.owner.map(|owner| (owner.uid, owner.gid)),
        verify_every: Some(options.verify_every).filter(|every| !every.is_zero()),
        swap: options.swap,
        checks: options.check.is_some(),
        ..ReplicaOptions::default()
    }
}

fn stage_failure(error: &StageError) -> Failure {
    match error {
        StageError::Cancelled => Failure::superseded(),
        error => Failure::new(error.retry_class(), error),
    }
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
            drift: status.drift,
            healed: status.healed,
            decisions: status.decisions,
            hook: None,
        }
    }

    fn stage(
        &mut self,
        generation: &SignedGeneration,
        inline: Option<Inline>,
        source: &mut dyn Source,
        progress: &dyn Fn(Progress),
        cancel: &AtomicBool,
    ) -> Result<Staged, Failure> {
        self.revive().map_err(|error| Failure::new(RetryClass::Retry, &error))?;
        let inline = inline.map(|inline| (inline.from, inline.frames));
        self.stage(generation, inline, source, progress, cancel).map_err(|error| {
            if error.retry_class() == RetryClass::Resync {
                source.distrust();
            }
            self.note_failure(&error);
            stage_failure(&error)
        })
    }

    fn stage_return(
        &mut self,
        generation: &SignedGeneration,
        source: &mut dyn Source,
        progress: &dyn Fn(Progress),
        cancel: &AtomicBool,
    ) -> Result<Staged, Failure> {
        let staged = ReplicaWork::stage(self, generation, None, source, progress, cancel)?;
        Ok(Staged { is_return: true, ..staged })
    }

    fn decide(&mut self, decision: Decision) -> Result<(), Failure> {
        self.revive().map_err(|error| Failure::new(RetryClass::Retry, &error))?;
        self.decide(decision).map_err(|error| {
            self.note_failure(&error);
            Failure::new(RetryClass::Retry, &error)
        })
    }

    fn activate(
        &mut self,
        staged: Staged,
        before: &mut BeforeSwitch<'_>,
    ) -> Result<(), NotActivated<Staged>> {
        let live: PathBuf = self.root().join("live");
        let mut told = |context: &ActivationContext<'_>| {
            let previous = context.previous.map(|generation| generation.number().get());
            let occasion = Occasion::of(context.target, previous, context.staged_tree.clone(), live.clone());
            let all =
                |show: &mut dyn FnMut(&TreePath)| context.changed_paths.each(show).map_err(io::Error::other);
            let slot =
                |show: &mut dyn FnMut(&TreePath)| context.slot_paths.each(show).map_err(io::Error::other);
            Ok(before(occasion, &Changed { all: &all, slot: &slot, tree: &context.live_tree })?)
        };
        let target = staged.target.clone();
        match self.activate(staged, &mut told) {
            Ok(()) => Ok(()),
            Err(ActivateError::Hook { source, staged }) => {
                let failure =
                    Failure { retry: Some(RetryClass::Retry), reason: error_chain(source.as_ref()) };
                Err(NotActivated { failure, staged: Some(*staged) })
            }
            Err(error) => {
                self.note_failure(&error);
                // The switch may have progressed far enough to be completed.
                if self.slots.is_unsettled() && self.revive().is_ok() && self.slots.live() == Some(&target) {
                    tracing::warn!(
                        error = error_chain(&error),
                        "the switch reported an error, but is complete"
                    );
                    return Ok(());
                }
                Err(NotActivated { failure: Failure::new(error.retry_class(), &error), staged: None })
            }
        }
    }

    fn is_settled(&self) -> bool {
        !self.slots.is_unsettled()
    }

    fn protect(&mut self, from: Option<u64>) {
        self.slots.protect_from(from, self.options.clock.now());
        if from.is_none() {
            self.live_without_check();
        }
    }

    fn hook_succeeded(&mut self, generation: u64) {
        if let Err(error) = self.slots.hook_succeeded(generation) {
            tracing::warn!(
                error = error_chain(&error),
                "the paths that a slot served could not be reduced: the next hook gets more than it needs"
            );
        }
    }

    fn note_live(&self, note: &mut BeforeSwitch<'_>) -> Result<(), Failure> {
        let Some((occasion, root)) = self.live_occasion() else { return Ok(()) };
        let paths = ChangedPaths::everything(self.slots.record(), root, self.options.part);
        let all = |show: &mut dyn FnMut(&TreePath)| paths.each(show).map_err(io::Error::other);
        let unknown = |_: &mut dyn FnMut(&TreePath)| Ok(());
        let tree = occasion.tree.clone();
        note(occasion, &Changed { all: &all, slot: &unknown, tree: &tree })
            .map_err(|error| Failure::new(RetryClass::Retry, &error))
    }

    fn changes(&self, previous: Option<&SignedGeneration>, live: &SignedGeneration) -> Option<Changes> {
        self.changes_between(previous, live)
            .map_err(|error| {
                tracing::debug!(
                    error = error_chain(&error),
                    "the generations could not be compared for the log"
                )
            })
            .ok()
    }

    fn bound(&mut self) {
        if self.slots.is_unsettled() {
            return;
        }
        self.bound_retired();
        self.bound_trash();
    }

    fn end(&mut self) {
        if self.slots.is_unsettled() {
            return;
        }
        if let Err(error) = self.slots.end() {
            tracing::warn!(error = error_chain(&error), "a spare will have to be checked again");
        }
    }

    fn maintain(&mut self, cancel: &AtomicBool) -> Maintenance {
        if let Err(error) = self.revive() {
            tracing::warn!(error = error_chain(&error), "the record can't be opened; the agent retries");
            return Maintenance { again: Some(test_faults::pause(MAINTAIN_RETRY)), ..Maintenance::default() };
        }
        match maintain_quietly(self, cancel) {
            Ok(Maintained { did, next }) => {
                let verify = owner_is_due(self) || is_damaged(&did);
                let whole = did == Upkept::SpareBuilt;
                Maintenance { again: next, trouble: trouble(&did), whole, verify }
            }
            Err(StageError::Cancelled) => {
                Maintenance { again: Some(Duration::ZERO), ..Maintenance::default() }
            }
            Err(error) => {
                self.note_failure(&error);
                tracing::warn!(error = error_chain(&error), "maintenance failed and will be retried");
                Maintenance { again: Some(test_faults::pause(MAINTAIN_RETRY)), ..Maintenance::default() }
            }
        }
    }

    fn verify(
        &mut self,
        source: &mut dyn Source,
        progress: &dyn Fn(Progress),
        cancel: &AtomicBool,
    ) -> Result<Verified, Failure> {
        self.revive().map_err(|error| Failure::new(RetryClass::Retry, &error))?;
        let mut not_healed = None;
        let report = match self.verify(Some(source), progress, cancel) {
            // Drift is reported even if the origin cannot be reached.
            Err(VerifyError::Stage(StageError::Fetch(error))) if !matches!(error, FetchError::Superseded) => {
                tracing::warn!(error = error_chain(&error), "drift can't be healed from the origin");
                not_healed = Some(error_chain(&error));
                self.verify(None, progress, cancel)
            }
            report => report,
        };
        report.map(|report| verified(report, not_healed)).map_err(|error| match error {
            VerifyError::Cancelled | VerifyError::Stage(StageError::Cancelled) => Failure::superseded(),
            error => {
                self.note_failure(&error);
                Failure::new(RetryClass::Operator, &error)
            }
        })
    }
}

impl Replica {
    /// The live generation as described to a hook that runs again, and its root.
    fn live_occasion(&self) -> Option<(Occasion, RootEntry)> {
        let live = self.slots.live()?;
        let tree = self.slots.path(self.slots.live_slot()?);
        let occasion = Occasion::of(live, Some(live.number().get()), tree, self.root().join("live"));
        Some((occasion, live.generation().root))
    }
}

/// Does a step of background work on a new thread with the lowest priority. A thread without privileges can
/// lower its priority, but not raise it again.
fn maintain_quietly(replica: &mut Replica, cancel: &AtomicBool) -> Result<Maintained, StageError> {
    std::thread::scope(|scope| {
        let quiet = std::thread::Builder::new().name("background".into()).spawn_scoped(scope, || {
            // The kernel derives the priority of disk requests from it as well.
            let own = Some(rustix::thread::gettid());
            if let Err(error) = rustix::process::setpriority_process(own, BACKGROUND_NICE) {
                tracing::debug!(error = %error, "background work has normal priority");
            }
            replica.maintain(cancel)
        });
        match quiet.map(|thread| thread.join()) {
            Ok(Ok(done)) => done,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            // No thread could be started. The next attempt may succeed.
            Err(_) => Err(StageError::Cancelled),
        }
    })
}

fn verified(report: VerifyReport, not_healed: Option<String>) -> Verified {
    let what = |damage| match damage {
        Damage::Missing => "missing",
        Damage::Extra => "extra",
        Damage::Kind => "kind",
        Damage::Content => "content",
        Damage::Metadata => "metadata",
        Damage::Unreadable => "unreadable",
    };
    let shown = report.drift.iter();
    Verified {
        files: report.files,
        bytes: report.bytes,
        drifted: report.drifted,
        drift: shown.map(|d| Drifted { path: d.path.to_string(), what: what(d.what).to_owned() }).collect(),
        healed: report.healed,
        kept: report.kept,
        error: not_healed.filter(|_| !report.healed),
    }
}

/// Whether a maintenance step found a changed file in the live tree.
fn is_damaged(did: &Upkept) -> bool {
    let Upkept::Reread { damaged: Some(path) } = did else { return false };
    tracing::warn!(%path, "a file of the live tree was changed behind its back: everything is verified now");
    true
}

/// Whether files have to be given another owner. Returns `true` once; background verification retries what
/// fails.
fn owner_is_due(replica: &mut Replica) -> bool {
    let due = std::mem::take(&mut replica.upkeep.owner.due);
    if due {
        tracing::info!(
            "the agent runs with another owner than before: everything is verified and given to it now"
        );
    }
    due
}

/// Trouble found by a maintenance step, for people.
fn trouble(did: &Upkept) -> Option<String> {
    match did {
        Upkept::LiveDamaged { paths, first } => Some(format!(
            "{} of the live tree changed locally (first {}): run `syncd-agent verify`",
            counted(*paths as u64, "path", "paths"),
            first.as_ref()?
        )),
        _ => None,
    }
}
