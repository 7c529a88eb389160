//! From a scanned tree to a decision: nothing, an adopted generation, a new one, or a refusal.

use std::collections::BTreeSet;

use syncd_shared::{RootEntry, SignedGeneration};

use super::Sealer;
use super::publication::{How, Publish};
use crate::commit::brought_back;
use crate::commit::observed::Observed;
use crate::commit::outcome::{CommitError, Outcome};
use crate::commit::scan_base::ScanBase;
use crate::fleet::rollout::Plan;
use crate::metrics::metrics;
use crate::scan::{ScanError, guard};
use crate::source::{Snapshot, SnapshotFate, SnapshotJob};
use crate::store::{StoreError, Writer};
use crate::tree_objects::TreeObjects;

impl Sealer {
    /// Looks at changes of the tree and draws the conclusion.
    pub(super) fn run(&mut self, publish: Publish) -> Result<Outcome, CommitError> {
        self.resolve_doubt()?;
        self.sign_again()?;
        self.note_refusal()?;
        let result = if self.parts.source.begin(matches!(publish, Publish::No)) {
            let started = std::time::Instant::now();
            let scanned = self.scanned(&publish);
            syncd_allocator::give_back_after(started);
            scanned
        } else {
            self.without_changes(&publish)
        };
        self.parts.source.end(match &result {
            Ok(_) => SnapshotFate::Kept,
            Err(CommitError::Scan(_)) => SnapshotFate::Refused,
            Err(_) => SnapshotFate::Lost,
        });
        result
    }

    /// Handles a job without changes: no walk, and no writer unless something is sealed.
    fn without_changes(&mut self, publish: &Publish) -> Result<Outcome, CommitError> {
        match self.base.clone() {
            Some(base) => self.conclude(None, base, publish),
            None => Ok(Outcome::Scanned),
        }
    }

    /// Takes a snapshot. The writer holds what it found.
    pub(super) fn snapshot(&mut self) -> Result<(Snapshot, Writer), CommitError> {
        let writer = self.parts.store.writer()?;
        let no_mounts = BTreeSet::new();
        let job = SnapshotJob {
            base: self.base.as_ref().map(|base| base.root),
            mounts: self.base.as_ref().map_or(&no_mounts, |base| &base.mounts),
            writer: &writer,
            options: &self.parts.options,
            cancel: &self.parts.cancel,
        };
        let started = std::time::Instant::now();
        let snapshot = self.parts.source.snapshot(&job)?;
        metrics().scanned(started.elapsed());
        Ok((snapshot, writer))
    }

    fn scanned(&mut self, publish: &Publish) -> Result<Outcome, CommitError> {
        let (Snapshot { root, mounts, changed, records_changed }, writer) = self.snapshot()?;
        let unpublished = changed || self.base.as_ref().is_none_or(|b| b.unpublished);
        let unpublished = unpublished && !self.is_current(&root);
        let base = ScanBase { root, unpublished, mounts };
        let news = records_changed || self.base.as_ref() != Some(&base);
        self.conclude(news.then_some(writer), base, publish)
    }

    /// Decides what to do with the scanned tree. `writer` holds its changes, if any.
    fn conclude(
        &mut self,
        writer: Option<Writer>,
        base: ScanBase,
        publish: &Publish,
    ) -> Result<Outcome, CommitError> {
        if let Some(observed) = self.adoptable(&base.root) {
            let unpublished = base.unpublished && observed.root_hash() != base.root.hash();
            tracing::info!(generation = %observed.number(), "adopted a generation that the fleet has and that still equals the tree");
            let base = ScanBase { unpublished, ..base };
            return self.seal(self.or_open(writer)?, Some(base), observed, (None, Plan::unwatched()));
        }
        let lost = self.lost_most(writer.as_ref(), &base, publish);
        if matches!(publish, Publish::Changes) && lost.is_none() && self.label(publish, &base).is_some() {
            self.check_refusals(&base.root.hash())?;
        }
        let (base, writer) = match lost {
            None => self.with_distinct_times(base, writer, publish)?,
            Some(_) => (base, writer),
        };
        if lost.is_none()
            && let Some(label) = self.label(publish, &base)
        {
            return self.seal_tree(writer, base, label, publish);
        }
        if let Some(writer) = writer {
            base.put(&writer)?;
            writer.save()?;
        }
        let root = base.root.hash();
        self.base = Some(base);
        if lost.is_none() && matches!(publish, Publish::Tree { .. }) {
            self.keep_rollbacks(self.rollbacks.committed(&root))?;
        }
        match (lost, &self.current) {
            (Some(error), _) => Err(error.into()),
            (None, Some(current)) if !matches!(publish, Publish::No) => {
                Ok(Outcome::Unchanged(current.clone()))
            }
            _ => Ok(Outcome::Scanned),
        }
    }

    /// Seals the scanned tree as the next generation, and remarks on a tree that was rolled back before.
    fn seal_tree(
        &mut self,
        writer: Option<Writer>,
        base: ScanBase,
        label: String,
        publish: &Publish,
    ) -> Result<Outcome, CommitError> {
        let how = match publish {
            Publish::Tree { how, .. } => how,
            _ => &How::Default,
        };
        let plan = self.plan(how)?;
        let generation = self.next_generation(base.root, label)?;
        let base = ScanBase { unpublished: false, ..base };
        let before = (self.rollbacks.clone(), self.current.clone());
        // Under a hold, an automatic commit comes this far only if the source is deliberate.
        let ends_hold = matches!(publish, Publish::Tree { .. }) || self.rollbacks.hold().is_some();
        let mut rollbacks = ends_hold.then(|| self.rollbacks.committed(&generation.root_hash()));
        if let Some((replaced, superseded)) = self.puts_aside(&generation) {
            let known = rollbacks.as_ref().unwrap_or(&self.rollbacks);
            rollbacks = Some(known.replaced(replaced, superseded));
        }
        let root = base.root;
        let outcome = self.seal(self.or_open(writer)?, Some(base), generation, (rollbacks, plan))?;
        let back = brought_back::remark(&self.parts.store, &before.0, before.1.as_ref(), &root);
        self.remarks.extend(back);
        Ok(outcome)
    }

    /// Under `--mtime distinct`, gives a tree that is to be published its published times.
    fn with_distinct_times(
        &mut self,
        base: ScanBase,
        writer: Option<Writer>,
        publish: &Publish,
    ) -> Result<(ScanBase, Option<Writer>), CommitError> {
        let (Some(distinct), Some(current), Some(_)) =
            (&self.distinct, &self.current, self.label(publish, &base))
        else {
            return Ok((base, writer));
        };
        let writer = self.or_open(writer)?;
        let (root, given) = distinct.give(&writer, &current.generation().root, base.root)?;
        self.retimed = given;
        let unpublished = base.unpublished && !self.is_current(&root);
        Ok((ScanBase { root, unpublished, ..base }, Some(writer)))
    }

    /// An observed generation that equals the tree or the current generation, and that no node refuses.
    fn adoptable(&self, tree: &RootEntry) -> Option<SignedGeneration> {
        let Observed { generation: observed, is_refused } = self.observed.as_ref()?;
        self.parts.keys.verify_newest(observed.record(), observed.signature()).ok()?;
        let ours = self.current.as_ref();
        let is_above = ours.is_none_or(|ours| observed.number() > ours.number());
        let is_here = observed.root_hash() == tree.hash()
            || ours.is_some_and(|ours| ours.root_hash() == observed.root_hash());
        let is_taken = !is_refused && self.check_refusals(&observed.root_hash()).is_ok();
        (is_above && is_here && is_taken).then(|| observed.clone())
    }

    /// The scan's guard compares with the previous scan. A tree that disappears bit by bit is only noticed by
    /// comparing it with the published tree.
    pub(super) fn lost_most(
        &self,
        writer: Option<&Writer>,
        base: &ScanBase,
        publish: &Publish,
    ) -> Option<ScanError> {
        let before = &self.current.as_ref()?.generation().root;
        let is_meant = self.parts.options.allow_mass_deletion
            || !(base.unpublished || matches!(publish, Publish::Tree { .. }));
        if is_meant {
            return None;
        }
        let objects = writer.map_or(TreeObjects::Store(&self.parts.store), TreeObjects::Writer);
        guard::check_totals(objects, before, &base.root).err()
    }

    /// The label to seal with, or `None` if nothing is to be sealed.
    pub(super) fn label(&self, publish: &Publish, base: &ScanBase) -> Option<String> {
        let differs = !self.is_current(&base.root);
        match publish {
            Publish::No => None,
            Publish::Changes => (differs && base.unpublished).then(|| self.parts.source.label()),
            // An operator's commit also supersedes unknown generations held by agents.
            Publish::Tree { label, .. } => {
                let or_its_own = || if label.is_empty() { self.parts.source.label() } else { label.clone() };
                (differs || self.observed.is_some() || self.is_promoted()).then(or_its_own)
            }
        }
    }

    pub(super) fn is_current(&self, root: &RootEntry) -> bool {
        self.current.as_ref().is_some_and(|current| current.root_hash() == root.hash())
    }

    pub(super) fn or_open(&self, writer: Option<Writer>) -> Result<Writer, StoreError> {
        writer.map_or_else(|| self.parts.store.writer(), Ok)
    }
}
