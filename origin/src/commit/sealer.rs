//! The blocking part of a commit: flush, scan, store, sign, seal. One job at a time; all calls block.

mod publication;
mod scanned;
mod signing;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use syncd_shared::diff::DiffError;
use syncd_shared::generation::check_label;
use syncd_shared::{RootEntry, SignedGeneration, TreePath};

use tokio_util::sync::CancellationToken;

use self::publication::{How, Publish};
use super::changed_times::{ChangedTimes, SomeFiles};
use super::closed_tree;
use super::collection_gate::CollectionGate;
use super::distinct::DistinctTimes;
use super::observed::{Observed, is_news};
use super::outcome::{CommitError, CommitOptions, Outcome, Preview};
use super::promotion::Promotion;
use super::rollbacks::{Hold, Return, Rollbacks};
use super::scan_base::{ScanBase, forget_damaged};
use crate::audit::Audit;
use crate::clock::now_ms;
use crate::fleet::Fleet;
use crate::fleet::rollout::record::{ORDER, ROLLOUT};
use crate::fleet::rollout::{Plan, Policies};
use crate::keys::Keys;
use crate::publish::{Deposed, FencedCommits};
use crate::scan::{ScanError, ScanOptions, Withheld};
use crate::source::{Snapshot, SnapshotFate, TreeSource};
use crate::store::{CheckReport, Retention, SealError, Store, StoreError, Writer};
use crate::test_faults;
use crate::tree_objects::TreeObjects;

/// Dependencies of the sealer.
pub struct Parts {
    pub source: Box<dyn TreeSource>,
    pub options: ScanOptions,
    pub store: Arc<Store>,
    pub keys: Arc<Keys>,
    /// Has the requests that the sealer carries out; durable before what they change.
    pub audit: Audit,
    /// Extent of the history.
    pub retention: Retention,
    /// How generations go to the nodes.
    pub policies: Arc<Policies>,
    /// Receives sealed generations.
    pub fleet: Fleet,
    /// Held while the whole store is read.
    pub gate: CollectionGate,
    /// Cancels a running scan.
    pub cancel: CancellationToken,
}

/// Scans the tree and seals generations.
pub struct Sealer {
    parts: Parts,
    /// The last scanned tree, which may be unpublished.
    base: Option<ScanBase>,
    current: Option<SignedGeneration>,
    /// How the current generation goes to the nodes.
    plan: Plan,
    /// The newest generation known to be released.
    released: Option<SignedGeneration>,
    /// The highest generation of this origin that an agent holds and the store does not have. Also stored
    /// (`observed`).
    observed: Option<Observed>,
    /// Whether the outcome of a failed seal is unknown. After a disk error it may be durable.
    doubtful: bool,
    rollbacks: Rollbacks,
    /// Place of the first generation after this origin was promoted or restored.
    promotion: Option<Promotion>,
    /// `None` unless `--fenced`.
    fence: Option<FencedCommits>,
    /// Set when another origin was found to be promoted: nothing is committed from then on.
    deposed: Deposed,
    /// `None` unless `--mtime distinct`.
    distinct: Option<DistinctTimes>,
    /// Files that got a later second in the tree that is about to be sealed.
    retimed: SomeFiles,
    /// Report on the last sealed generation, until it is taken.
    times: ChangedTimes,
    /// Remarks for the operator whose request is carried out.
    remarks: Vec<String>,
    /// The last collection of garbage gave way.
    owes_collection: bool,
}

/// Whether a future is ready now.
fn is_ready(mut future: Pin<Box<dyn Future<Output = ()> + Send + '_>>) -> bool {
    future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

impl Sealer {
    /// Continues from the state in the store.
    pub fn open(parts: Parts) -> Result<Self, CommitError> {
        let base = ScanBase::load(&parts.store)?;
        let current =
            parts.store.latest()?.map(|g| parts.keys.verify(&g.record, &g.signature)).transpose()?;
        let observed = Observed::load(&parts.store, &parts.keys)?;
        let rollbacks = Rollbacks::load(&parts.store)?;
        let promotion = Promotion::load(&parts.store)?;
        let distinct = DistinctTimes::load(&parts.store, parts.options.mtime)?;
        let (plan, released) = Self::stored_plan(&parts, &rollbacks, current.as_ref())?;
        Ok(Self {
            parts,
            plan,
            released,
            base,
            observed: observed.filter(|observed| observed.is_news(current.as_ref())),
            current,
            doubtful: false,
            rollbacks,
            promotion,
            fence: None,
            deposed: Deposed::default(),
            distinct,
            retimed: SomeFiles::default(),
            times: ChangedTimes::default(),
            remarks: Vec::new(),
            owes_collection: false,
        })
    }

    /// Commits through the object store from now on, where there is a fence, and nothing once it is deposed.
    pub fn with_fence(self, fence: Option<FencedCommits>, deposed: Deposed) -> Self {
        Self { fence, deposed, ..self }
    }

    pub fn current(&self) -> Option<&SignedGeneration> {
        self.current.as_ref()
    }

    /// How the current generation goes to the nodes.
    pub fn current_plan(&self) -> &Plan {
        &self.plan
    }

    /// Waits until the tree may have changed. Cancel safe.
    pub(super) async fn changed(&self) {
        self.parts.source.changed().await;
    }

    /// The source of the tree.
    pub fn source(&mut self) -> &mut dyn TreeSource {
        &mut *self.parts.source
    }

    /// Whether there are unpublished changes that need no operator to publish.
    pub fn has_unpublished(&self) -> bool {
        self.publishes_by_itself()
            && self.base.as_ref().is_some_and(|base| base.unpublished && !self.is_current(&base.root))
    }

    pub(super) fn fleet(&self) -> &Fleet {
        &self.parts.fleet
    }

    /// Reason to wait for an operator before anything is published automatically.
    pub fn waits_for_operator(&self) -> Option<String> {
        let Some(observed) = self.observed.as_ref() else {
            let text = "this origin took the place of another one: compare the tree (`syncd-origin diff --pending`). \
                        Nothing is published until `syncd-origin commit`";
            return self.is_promoted().then(|| text.to_owned());
        };
        let refused = match observed.is_refused {
            true => {
                ". A node refuses that generation, because its check failed there: compare the tree first"
            }
            false => "",
        };
        Some(format!(
            "agents hold a generation {} that this origin does not know: it was restored from an older copy. Nothing is \
             published until `syncd-origin commit` publishes the tree as it is now, numbered past it{refused}",
            observed.generation.number()
        ))
    }

    /// Hold left by a rollback: nothing is published automatically before an operator's commit.
    pub fn hold(&self) -> Option<Hold> {
        self.rollbacks.hold()
    }

    /// Rollbacks and withdrawals, oldest first.
    pub fn returns(&self) -> Arc<[Return]> {
        self.rollbacks.returns().into()
    }

    /// Makes the next [`Sealer::scan`] or [`Sealer::publish`] take these files from the current generation.
    pub(super) fn withhold(&mut self, busy: &[TreePath]) -> Result<(), CommitError> {
        self.parts.source.withhold(Withheld::new());
        let objects = TreeObjects::Store(&self.parts.store);
        let root = self.current.as_ref().map(|current| current.generation().root);
        let mut withheld = Withheld::new();
        for path in busy {
            let entry = root.map(|root| objects.entry_at(&root, path)).transpose();
            let entry = entry.map_err(|source| {
                let source = DiffError::Source { path: path.clone(), source };
                ScanError::Guard { source }
            })?;
            withheld.insert(path.clone(), entry.flatten());
        }
        self.parts.source.withhold(withheld);
        Ok(())
    }

    /// Takes the remarks for the operator of the last request, one line each.
    pub fn take_remarks(&mut self) -> Vec<String> {
        std::mem::take(&mut self.remarks)
    }

    /// Takes the report on the times of the last sealed generation.
    pub fn take_times(&mut self) -> ChangedTimes {
        std::mem::take(&mut self.times)
    }

    fn publishes_by_itself(&self) -> bool {
        let is_held = self.rollbacks.hold().is_some() && !self.parts.source.is_deliberate();
        self.observed.is_none() && !is_held && !self.is_promoted()
    }

    /// Whether this origin took the place of another one, and no operator has committed since.
    fn is_promoted(&self) -> bool {
        let number = self.current.as_ref().map(SignedGeneration::number);
        self.promotion.is_some_and(|promotion| number.is_none_or(|number| number <= promotion.number))
    }

    /// Brings the store up to the tree.
    pub fn scan(&mut self) -> Result<Outcome, CommitError> {
        if self.base.is_none() || self.current.is_none() {
            self.parts.source.reread();
        }
        self.run(Publish::No)
    }

    /// Publishes changes since the last scan, unless an operator is required.
    pub fn publish(&mut self) -> Result<Outcome, CommitError> {
        if let Some(path) = self.parts.source.held_while() {
            return Err(ScanError::HeldWhile { path }.into());
        }
        let publish = if self.publishes_by_itself() { Publish::Changes } else { Publish::No };
        self.run(publish)
    }

    /// Publishes the tree as of the time of the call.
    pub fn commit(&mut self, options: CommitOptions) -> Result<Outcome, CommitError> {
        // An earlier job may have failed before its scan.
        self.parts.source.withhold(Withheld::new());
        let CommitOptions { label, allow_mass_deletion, rescan, rollout, now } = options;
        check_label(&label)?;
        let how = match rollout {
            _ if now => How::Now,
            Some(name) => How::Policy(name),
            None => How::Default,
        };
        self.plan(&how)?;
        self.parts.source.catch_up();
        if rescan {
            self.parts.source.reread();
        }
        (self.parts.options.allow_mass_deletion, self.parts.options.read_all) = (allow_mass_deletion, rescan);
        let result = self.run(Publish::Tree { label, how });
        (self.parts.options.allow_mass_deletion, self.parts.options.read_all) = (false, false);
        result
    }

    /// Scans the tree as of the time of the call and publishes nothing.
    pub fn preview(&mut self) -> Result<Outcome, CommitError> {
        self.parts.source.catch_up();
        match self.scan() {
            Ok(outcome) => {
                let base = self.base.as_ref();
                Ok(base.map_or(outcome, |base| Outcome::Found(Preview::of(base.root))))
            }
            Err(CommitError::Scan(loss)) if loss.is_loss() => self.preview_of_loss(&loss),
            Err(error) => Err(error),
        }
    }

    /// Looks at a tree that a guard has refused, and keeps nothing of it: the guard refuses it again.
    fn preview_of_loss(&mut self, loss: &ScanError) -> Result<Outcome, CommitError> {
        let refused = Some(crate::error_chain(loss));
        if !self.parts.source.begin(true) {
            // It was kept, and differs too much from the published tree.
            let root = self.base.as_ref().map_or(RootEntry::empty(), |base| base.root);
            return Ok(Outcome::Found(Preview { refused, ..Preview::of(root) }));
        }
        self.parts.options.preview = true;
        let taken = self.snapshot();
        self.parts.options.preview = false;
        self.parts.source.end(SnapshotFate::Refused);
        let (Snapshot { root, .. }, writer) = taken?;
        let unsaved = Arc::new(writer.into_unsaved_directories()?);
        Ok(Outcome::Found(Preview { root, unsaved, refused }))
    }

    /// Makes a change of the hold durable without sealing a generation.
    fn keep_rollbacks(&mut self, rollbacks: Rollbacks) -> Result<(), CommitError> {
        if rollbacks != self.rollbacks {
            self.parts.audit.sync()?;
            self.parts.store.update_records(|records| rollbacks.put(records))?;
            self.rollbacks = rollbacks;
        }
        Ok(())
    }

    /// Handles a generation that an agent holds, signed by this origin's key and unknown to its store. Its
    /// number is never reused, not even after a restart. If the tree matches it, its record is restored.
    pub fn observe(&mut self, observed: SignedGeneration) -> Result<Outcome, CommitError> {
        // Nothing new counts that a superseded key has signed.
        let newest = self.parts.keys.verify_newest(observed.record(), observed.signature());
        if newest.is_err()
            || !is_news(self.current.as_ref(), &observed)
            || self.observed.as_ref().is_some_and(|o| o.generation.number() >= observed.number())
        {
            // The agent may be the first that refuses it.
            self.note_refusal()?;
            return Ok(Outcome::Scanned);
        }
        tracing::warn!(
            generation = %observed.number(),
            "an agent holds a generation that this origin signed and does not know: restored from an older copy?"
        );
        let is_refused = self.check_refusals(&observed.root_hash()).is_err();
        let observed = Observed { generation: observed, is_refused };
        observed.save(&self.parts.store)?;
        self.observed = Some(observed);
        self.run(Publish::No)
    }

    /// Notes durably that a node refuses the observed generation. The node may be away after a restart.
    pub(super) fn note_refusal(&mut self) -> Result<(), StoreError> {
        let Some(observed) = self.observed.as_ref().filter(|observed| !observed.is_refused) else {
            return Ok(());
        };
        if self.check_refusals(&observed.generation.root_hash()).is_err() {
            let refused = Observed { generation: observed.generation.clone(), is_refused: true };
            refused.save(&self.parts.store)?;
            self.observed = Some(refused);
        }
        Ok(())
    }

    /// Stores again, after a check found damage, the content that the tree still has.
    pub fn mend(&mut self, report: &CheckReport) -> Result<Outcome, CommitError> {
        forget_damaged(&self.parts.store, report)?;
        self.base = ScanBase::load(&self.parts.store)?;
        self.parts.source.reread();
        self.run(Publish::No)
    }

    /// Retires old generations and rewrites packs with little live data. Does nothing while the whole store
    /// is being read. Ends early when a request waits or the tree changes.
    pub fn collect_garbage(&mut self, has_requests: &dyn Fn() -> bool) -> Result<Outcome, CommitError> {
        let gate = self.parts.gate.clone();
        let Some(_open) = gate.pass() else { return Ok(Outcome::Scanned) };
        let now = now_ms();
        let keep = self.parts.fleet.retained_roots();
        let tree = self.base.as_ref().map(|b| b.root);
        let report = self.parts.store.collect_garbage(
            test_faults::retention(self.parts.retention),
            &keep,
            tree.as_ref(),
            now,
            &|| has_requests() || is_ready(self.parts.source.changed()),
        )?;
        self.owes_collection = report.gave_way;
        if !report.damaged_packs.is_empty() {
            tracing::error!(packs = ?report.damaged_packs, "the store is damaged: run `syncd-origin check`");
        }
        tracing::debug!(?report, "collected garbage");
        Ok(Outcome::Scanned)
    }

    /// Whether the last collection gave way. Forgets it.
    pub fn takes_owed_collection(&mut self) -> bool {
        std::mem::take(&mut self.owes_collection)
    }

    /// Reloads the state from the store after a failed seal.
    fn resolve_doubt(&mut self) -> Result<(), CommitError> {
        if !self.doubtful {
            return Ok(());
        }
        let Parts { store, keys, .. } = &self.parts;
        let current = store.latest()?.map(|g| keys.verify(&g.record, &g.signature)).transpose()?;
        self.base = ScanBase::load(store)?;
        self.rollbacks = Rollbacks::load(store)?;
        self.distinct = DistinctTimes::load(store, self.parts.options.mtime)?;
        self.doubtful = false;
        if current != self.current
            && let Some(current) = &current
        {
            self.observed = self.observed.take().filter(|observed| observed.is_news(Some(current)));
            (self.plan, self.released) = Self::stored_plan(&self.parts, &self.rollbacks, Some(current))?;
            self.parts.fleet.publish(current.clone(), self.plan.clone());
        }
        self.current = current;
        Ok(())
    }

    /// Makes the generation durable together with its plan, and then announces it. `rollbacks` is the new
    /// state of the rollback record.
    fn seal(
        &mut self,
        writer: Writer,
        base: Option<ScanBase>,
        generation: SignedGeneration,
        (rollbacks, plan): (Option<Rollbacks>, Plan),
    ) -> Result<Outcome, CommitError> {
        if let Some(base) = &base {
            base.put(&writer)?;
        }
        let taken = self
            .distinct
            .as_ref()
            .map(|distinct| distinct.changes(&writer, self.current.as_ref(), &generation.generation().root));
        let sealed = writer.seal_with(&generation, |records| {
            // At the same time as the packs, so that the disk is waited for once.
            self.parts.audit.sync().map_err(|error| SealError::Before(error.into()))?;
            if let Some(rollbacks) = rollbacks.as_ref().filter(|rollbacks| **rollbacks != self.rollbacks) {
                rollbacks.put(records)?;
            }
            if let Plan::Rollout(order) = &plan {
                records.put(ROLLOUT, ORDER, &order.encode(generation.number()))?;
            }
            Ok(taken.as_ref().map_or(Ok(()), |taken| taken.put(records))?)
        });
        if let Err(error) = sealed {
            self.doubtful = true;
            // If the store is readable again, this determines the outcome at once.
            let _ = self.resolve_doubt();
            if self.current.as_ref() != Some(&generation) {
                return Err(error.into());
            }
            tracing::warn!(generation = %generation.number(), "sealed despite a disk error");
            return Ok(Outcome::Sealed(generation));
        }
        if self.current.is_none() {
            // Only a statistic, which must not fail a completed seal.
            let _ = self.parts.store.all_is_current();
        }
        self.base = base;
        self.rollbacks = rollbacks.unwrap_or_else(|| std::mem::take(&mut self.rollbacks));
        if let (Some(distinct), Some(taken)) = (&mut self.distinct, taken) {
            distinct.sealed(taken);
        }
        let before = self.current.replace(generation.clone());
        self.observed = self.observed.take().filter(|observed| observed.is_news(Some(&generation)));
        if matches!(plan, Plan::Immediate { .. }) {
            self.released = Some(generation.clone());
        }
        self.plan = plan.clone();
        self.parts.fleet.publish(generation.clone(), plan);
        let retimed = std::mem::take(&mut self.retimed);
        if let Some(remark) =
            closed_tree::remark(before.as_ref().map(|b| &b.generation().root), &generation.generation().root)
        {
            tracing::warn!("{remark}");
            self.remarks.push(remark);
        }
        self.times = ChangedTimes::of_sealed(&self.parts.store, before.as_ref(), &generation, retimed);
        Ok(Outcome::Sealed(generation))
    }
}
