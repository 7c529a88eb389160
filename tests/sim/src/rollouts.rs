//! Rollouts and checks: policies, generations on which every check fails, withdrawals, orders.
//!
//! Whether a check passes depends on the root alone. The oracle's rules are in [`crate::oracle`]: a node goes
//! back only from a root that it refuses, to one that passed there, and never takes what it refused.

use syncd_agent::check::Phase;
use syncd_agent::session::event::Event as Heard;
use syncd_origin::commit::CommitOptions;
use syncd_origin::fleet::rollout::RolloutOrder;
use syncd_shared::RootHash;

use crate::world::{Event, Violation, World};

/// Policies of commits. The empty name stands for the default.
const POLICIES: [&str; 5] = ["", "each", "together", "canary", "half"];

impl World {
    /// Options of the next commit.
    pub fn commit_options(&mut self) -> CommitOptions {
        let options = CommitOptions { allow_mass_deletion: true, ..CommitOptions::default() };
        if !self.rolls {
            return options;
        }
        let now = self.random.one_in(10);
        let policy = self.random.pick(&POLICIES).copied().filter(|name| !name.is_empty() && !now);
        self.note(format!("policy {policy:?}, now {now}"));
        CommitOptions { rollout: policy.map(str::to_owned), now, ..options }
    }

    /// Decides whether checks fail on a root that is new.
    pub fn judge(&mut self, root: RootHash, may_be_bad: bool) {
        if self.rolls && may_be_bad && self.random.one_in(4) {
            self.count("bad generations");
            self.note(format!("checks fail on {root}"));
            self.bad.insert(root);
        }
    }

    pub fn start_check(&mut self, n: usize, run: u64, root: RootHash, phase: Phase) {
        self.count("checks");
        let longest = if self.random.one_in(8) { 9_000 } else { 300 };
        let delay = 1 + self.random.below(longest);
        let (life, is_trial) = (self.nodes[n].life, phase == Phase::Trial);
        self.note(format!("node {n} checks {root} {phase:?}"));
        self.after(delay, Event::Checked { node: n, life, run, root, is_trial });
    }

    pub async fn checked(
        &mut self,
        n: usize,
        run: u64,
        root: RootHash,
        is_trial: bool,
    ) -> Result<(), Violation> {
        let failed = self.bad.contains(&root);
        if failed {
            self.count("failed checks");
        } else if is_trial {
            self.nodes[n].passed.insert(root);
        }
        self.note(format!("node {n} has checked {root}, failed {failed}"));
        let result = if failed { Err("502".to_owned()) } else { Ok(()) };
        self.apply(n, Heard::Checked(run, result)).await
    }

    /// Withdraws a generation that has failed, sooner or later, as the committer does.
    pub fn withdraw(&mut self) -> Result<(), Violation> {
        let Some(origin) = &mut self.origin else { return Ok(()) };
        let due = origin.services.fleet.rollout().borrow().withdrawal.clone();
        let current = origin.sealer.current().map(|current| current.number().get());
        let Some(withdrawal) = due.filter(|due| Some(due.number) == current) else { return Ok(()) };
        if self.deeds_left > 0 && !self.random.one_in(3) {
            return Ok(());
        }
        let Some(origin) = &mut self.origin else { return Ok(()) };
        let result = origin.sealer.withdraw(&withdrawal);
        self.count("withdrawals");
        self.sealed("withdrawal", result.map_err(|e| e.to_string()), false)
    }

    /// An operator's order. Most come when no rollout runs, and are refused.
    pub async fn order(&mut self, order: RolloutOrder) {
        let Some(origin) = self.origin.as_ref().filter(|_| self.rolls) else { return };
        let fleet = origin.services.fleet.clone();
        let is_taken = fleet.order_rollout(order).await.is_ok();
        if is_taken {
            self.count("orders to rollouts");
        }
        self.note(format!("order {order:?}: {is_taken}"));
    }

    /// Whether nothing is published automatically.
    pub fn is_held(&self) -> bool {
        self.rolls && self.origin.as_ref().is_some_and(|origin| origin.sealer.hold().is_some())
    }

    /// `commit --now`.
    pub fn commit_now(&mut self) -> Result<(), Violation> {
        let options = CommitOptions { allow_mass_deletion: true, now: true, ..CommitOptions::default() };
        let Some(origin) = &mut self.origin else { return Err(self.violation("no origin to commit with")) };
        let result = origin.sealer.commit(options);
        self.sealed("commit", result.map_err(|e| e.to_string()), true)
    }

    pub fn is_rolling(&self) -> bool {
        let running = |origin: &crate::origin::Origin| {
            let view = origin.services.fleet.rollout();
            let view = view.borrow();
            view.running().is_some()
        };
        self.origin.as_ref().is_some_and(running)
    }
}
