//! How sealed generations go to the nodes: plans, rollbacks and withdrawals.

use syncd_shared::{GenerationNumber, RootEntry, RootHash, SignedGeneration};

use super::{Parts, Sealer};
use crate::clock::now_ms;
use crate::commit::outcome::{CommitError, Outcome, RollbackShown};
use crate::commit::rollbacks::Rollbacks;
use crate::commit::scan_base::ScanBase;
use crate::fleet::live_wait;
use crate::fleet::rollout::policy::Step;
use crate::fleet::rollout::record::{ROLLOUT, Stored};
use crate::fleet::rollout::view::Withdrawal;
use crate::fleet::rollout::{Kind, Order, Plan, Policy};

/// Whether a scan is followed by sealing.
pub(super) enum Publish {
    /// Never.
    No,
    /// If the tree changed since it was last published.
    Changes,
    /// If the tree differs from the current generation.
    Tree {
        /// Label of the new generation.
        label: String,
        how: How,
    },
}

/// How a generation goes to the nodes.
#[derive(Debug)]
pub(super) enum How {
    /// By the default policy.
    Default,
    /// By a named policy.
    Policy(String),
    /// To every node at once.
    Now,
    Rollback,
    /// As the current one, which is signed again.
    Again,
}

impl Sealer {
    /// The plan of the current generation, and the newest released one, from what an earlier process stored.
    pub(super) fn stored_plan(
        parts: &Parts,
        rollbacks: &Rollbacks,
        current: Option<&SignedGeneration>,
    ) -> Result<(Plan, Option<SignedGeneration>), CommitError> {
        let Some(current) = current else { return Ok((Plan::unwatched(), None)) };
        let stored = Stored::decode(parts.store.records(ROLLOUT, b"")?, &parts.keys)?;
        match stored.plan_of(current.number()) {
            Plan::Rollout(order) => {
                let released = if stored.is_released(current) { current } else { &order.base };
                Ok((Plan::Rollout(order.clone()), Some(released.clone())))
            }
            Plan::Immediate { .. } => {
                let base = Self::base_of(parts, rollbacks, current)?.map(Box::new);
                Ok((Plan::Immediate { base }, Some(current.clone())))
            }
        }
    }

    /// The generation to return to if a node's check fails on the current one, which went to all nodes at
    /// once. `None` if the current one is such a return itself.
    fn base_of(
        parts: &Parts,
        rollbacks: &Rollbacks,
        current: &SignedGeneration,
    ) -> Result<Option<SignedGeneration>, CommitError> {
        if rollbacks.hold().is_some_and(|hold| hold.generation == current.number()) {
            return Ok(None);
        }
        let generations = parts.store.generations()?.into_iter().map(|stored| stored.generation);
        let Some(number) = rollbacks.previous(current.generation(), generations, |_| false) else {
            return Ok(None);
        };
        let stored = parts.store.generation(number)?;
        Ok(stored.map(|stored| parts.keys.verify(&stored.record, &stored.signature)).transpose()?)
    }

    /// The newest generation whose rollout has ended well.
    pub(super) fn released(&self) -> Option<SignedGeneration> {
        let seen = self.parts.fleet.rollout().borrow().released.as_deref().cloned();
        seen.into_iter().chain(self.released.clone()).max_by_key(SignedGeneration::number)
    }

    /// Whether the current generation is superseded if another one is sealed now: its rollout has not ended.
    pub(super) fn supersedes(&self) -> Option<&SignedGeneration> {
        let released = self.released().map(|released| released.number());
        self.current.as_ref().filter(|current| released.is_some_and(|released| released < current.number()))
    }

    /// The current generation, if nothing is to return to it once `next` is sealed, and whether it is
    /// superseded. Otherwise its check failed on a node, and it is not withdrawn yet.
    pub(super) fn puts_aside(&self, next: &SignedGeneration) -> Option<(&SignedGeneration, bool)> {
        let superseded = self.supersedes().map(|current| (current, true));
        let is_failed = |current: &&SignedGeneration| {
            current.root_hash() != next.root_hash() && self.is_refused(&current.root_hash())
        };
        superseded.or_else(|| Some((self.current.as_ref().filter(is_failed)?, false)))
    }

    /// Whether a node refuses a tree, because its check failed there.
    fn is_refused(&self, root: &RootHash) -> bool {
        !self.parts.fleet.view().borrow().refusing(root).is_empty()
    }

    /// The generation to return to if the next one fails: the newest released one that no node refuses.
    fn base(&self) -> Result<Option<SignedGeneration>, CommitError> {
        self.released().map(|released| self.or_before(released)).transpose()
    }

    /// A generation to return to, or an earlier one if a node refuses it. Without any, itself.
    fn or_before(&self, base: SignedGeneration) -> Result<SignedGeneration, CommitError> {
        if !self.is_refused(&base.root_hash()) {
            return Ok(base);
        }
        let Some(number) = self.before(&base)? else { return Ok(base) };
        let stored = self.parts.store.generation(number)?;
        let earlier = stored.map(|stored| self.parts.keys.verify(&stored.record, &stored.signature));
        Ok(earlier.transpose()?.unwrap_or(base))
    }

    /// The plan for the next generation. The first one goes to every node at once.
    pub(super) fn plan(&self, how: &How) -> Result<Plan, CommitError> {
        let (kind, policy) = match how {
            How::Default => (Kind::Commit, self.parts.policies.default_policy().clone()),
            How::Policy(name) => (Kind::Commit, self.parts.policies.get(name)?.clone()),
            How::Now => return self.watched(),
            How::Rollback => (Kind::Rollback, Policy::rollback()),
            // The rollout starts again under the new number.
            How::Again if self.supersedes().is_some() => return Ok(self.plan.clone()),
            How::Again => return Ok(Plan::unwatched()),
        };
        self.check_groups(&policy)?;
        match self.base()? {
            Some(base) if !policy.is_immediate() => Ok(Plan::Rollout(Box::new(Order { kind, policy, base }))),
            _ => self.watched(),
        }
    }

    /// To every node at once, and back if a node's own check fails.
    fn watched(&self) -> Result<Plan, CommitError> {
        Ok(Plan::Immediate { base: self.base()?.map(Box::new) })
    }

    /// Checks that the groups of a policy exist.
    fn check_groups(&self, policy: &Policy) -> Result<(), CommitError> {
        let fleet = self.parts.fleet.view();
        let fleet = fleet.borrow();
        let is_known = |group: &String| fleet.agents.iter().any(|agent| agent.orders.group == *group);
        let groups = policy
            .steps
            .iter()
            .filter_map(|step| if let Step::Group(group) = step { Some(group) } else { None });
        match groups.into_iter().find(|group| !is_known(group)) {
            Some(group) => Err(CommitError::NoGroup { policy: policy.name.clone(), group: group.clone() }),
            None => Ok(()),
        }
    }

    /// Checks that no node refuses a tree that is to be published without an operator.
    pub(super) fn check_refusals(&self, root: &RootHash) -> Result<(), CommitError> {
        let fleet = self.parts.fleet.view();
        let fleet = fleet.borrow();
        let refusing = fleet.refusing(root);
        if refusing.is_empty() {
            return Ok(());
        }
        let nodes = live_wait::names(&refusing);
        Err(CommitError::RefusedByNodes { nodes })
    }

    /// The generation that `rollback` without a number returns to.
    fn previous(&self) -> Result<GenerationNumber, CommitError> {
        let current = self.current.as_ref().ok_or(CommitError::NothingPublished)?;
        self.before(current)?.ok_or(CommitError::NothingBefore { current: current.number() })
    }

    /// The newest generation before another one that is a place to return to.
    fn before(&self, generation: &SignedGeneration) -> Result<Option<GenerationNumber>, CommitError> {
        let generations = self.parts.store.generations()?.into_iter().map(|stored| stored.generation);
        let is_refused = |root: &RootHash| self.is_refused(root);
        Ok(self.rollbacks.previous(generation.generation(), generations, is_refused))
    }

    /// Checks that a rollback does what the question before it said.
    pub fn confirm(&self, shown: &RollbackShown) -> Result<(), CommitError> {
        let current = self.current.as_ref().ok_or(CommitError::NothingPublished)?.number();
        if current.get() != shown.from {
            return Err(CommitError::CurrentSince { shown: shown.from, current });
        }
        let number = GenerationNumber::new(shown.to);
        let target = number.map(|number| self.parts.store.generation(number)).transpose()?.flatten();
        let Some(target) = target else { return Ok(()) };
        let fleet = self.parts.fleet.view();
        let fleet = fleet.borrow();
        let mut refusing = fleet.refusing(&target.generation.root.hash());
        refusing.retain(|name| !shown.refused_by.iter().any(|shown| shown == name));
        match refusing.as_slice() {
            [] => Ok(()),
            refusing => {
                let (nodes, number) = (live_wait::names(refusing), target.generation.number);
                Err(CommitError::RefusedSince { nodes, number })
            }
        }
    }

    /// Publishes the tree of an earlier generation under a new number. Afterwards nothing is published
    /// automatically until an operator commits, not even after a restart.
    pub fn rollback(&mut self, number: Option<GenerationNumber>) -> Result<Outcome, CommitError> {
        let is_chosen = number.is_none();
        let number = number.map_or_else(|| self.previous(), Ok)?;
        let target = self.parts.store.generation(number)?.ok_or(CommitError::UnknownGeneration { number })?;
        let target = self.parts.keys.verify(&target.record, &target.signature)?;
        if let Some(current) = &self.current
            && self.observed.is_none()
            && current.root_hash() == target.root_hash()
        {
            // The generation stays current, whatever the state of the tree.
            let current = current.clone();
            let rollbacks = self.rollbacks.rolled_back(number, &current, None, now_ms());
            self.keep_rollbacks(rollbacks)?;
            self.remarks.extend(self.hold().map(|hold| hold.reason()));
            return Ok(Outcome::Unchanged(current));
        }
        let generation = self.next_generation(target.generation().root, format!("rollback to {number}"))?;
        let since_ms = generation.generation().created_ms;
        let rollbacks = self.rollbacks.rolled_back(number, &generation, self.current.as_ref(), since_ms);
        let plan = self.plan(&How::Rollback)?;
        if is_chosen {
            self.remarks.push(format!("rolled back to the tree of generation {number}"));
        }
        let outcome =
            self.seal(self.parts.store.writer()?, self.base_kept(), generation, (Some(rollbacks), plan))?;
        self.remarks.extend(self.hold().map(|hold| hold.reason()));
        Ok(outcome)
    }

    /// The scanned tree, which an operator's next commit publishes.
    fn base_kept(&self) -> Option<ScanBase> {
        self.base.clone().map(|base| ScanBase { unpublished: false, ..base })
    }

    /// Publishes the base of a failed rollout again, to every node at once. Nothing is published
    /// automatically afterwards until an operator commits. Does nothing if the failed generation was replaced
    /// meanwhile.
    pub fn withdraw(&mut self, withdrawal: &Withdrawal) -> Result<Outcome, CommitError> {
        self.resolve_doubt()?;
        let Some(failed) = self.current.clone().filter(|current| current.number().get() == withdrawal.number)
        else {
            return Ok(Outcome::Scanned);
        };
        let base = self.or_before((*withdrawal.base).clone())?;
        let root: RootEntry = base.generation().root;
        let label = format!("back to {}: {} was withdrawn", base.number(), failed.number());
        let generation = self.next_generation(root, label)?;
        tracing::warn!(
            generation = %failed.number(), to = %base.number(), reason = withdrawal.reason, "withdrawn"
        );
        let rollbacks = self.rollbacks.withdrawn(base.number(), &generation, &failed);
        self.seal(
            self.parts.store.writer()?,
            self.base_kept(),
            generation,
            (Some(rollbacks), Plan::unwatched()),
        )
    }
}
