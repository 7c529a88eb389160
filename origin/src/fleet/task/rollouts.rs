//! Drives the rollout of the newest generation: facts in, durable states and assignments out.
//!
//! Two copies of the state exist: the newest, and the one that is saved. Assignments come from the saved one.

use std::sync::Arc;

use syncd_shared::SignedGeneration;
use tokio::sync::{oneshot, watch};
use tokio::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

use super::FleetTask;
use super::agent::Agent;
use super::check_command::{CheckCommand, CheckRun, Verdict};
use crate::clock::now_ms;
use crate::fleet::FleetError;
use crate::fleet::records::RecordChange;
use crate::fleet::rollout::machine::{Phase, Rollout, Want};
use crate::fleet::rollout::participants::{Node, Target};
use crate::fleet::rollout::record::{ROLLOUT, STATE, Stored, encode_state};
use crate::fleet::rollout::view::Withdrawal;
use crate::fleet::rollout::{Assignment, Order, Plan, Publication, RolloutOrder, RolloutStatus, RolloutView};
use crate::fleet::roster::Undo;

/// Time after a start in which nodes reconnect, before participants are determined.
const RECONNECT_MS: i64 = 5_000;
/// Shortest and longest pause between two runs of a policy's check.
const CHECK_PAUSE_MS: (i64, i64) = (250, 10_000);
/// Age at which a generation that went to every node at once is no longer withdrawn.
const WATCH_MS: i64 = 3_600_000;
/// Pause before a look that nothing else causes.
const LOOK_AGAIN_MS: i64 = 1_000;

/// The rollout of the newest generation.
struct Current {
    order: Order,
    target: Arc<SignedGeneration>,
    base: Arc<SignedGeneration>,
    /// The newest state.
    rollout: Rollout,
    /// The state that was last queued for writing.
    queued: Rollout,
    /// The state being written.
    saving: Option<Rollout>,
    /// The state that is durable.
    durable: Rollout,
}

/// A generation that went to every node at once, while the nodes' own checks can still withdraw it.
struct Watched {
    generation: Arc<SignedGeneration>,
    base: Arc<SignedGeneration>,
}

/// See the module.
pub(super) struct Steering {
    stored: Stored,
    current: Option<Current>,
    watched: Option<Watched>,
    /// Order to withdraw the newest generation, which was watched.
    withdrawal: Option<Withdrawal>,
    released: Option<Arc<SignedGeneration>>,
    newest: Option<u64>,
    /// The newest rollout that has ended, of an earlier generation.
    last: Option<RolloutStatus>,
    view: watch::Sender<Arc<RolloutView>>,
    check: Option<CheckRun>,
    /// Time of the next run of the check.
    check_at_ms: i64,
    wake_at: Option<Instant>,
    /// Wall clock at `started`. From then on only elapsed time counts.
    started_ms: i64,
    started: Instant,
    shutdown: CancellationToken,
}

fn target(generation: &SignedGeneration) -> Target {
    Target { number: generation.number().get(), root: generation.root_hash() }
}

impl Steering {
    pub(super) fn new(stored: Stored, shutdown: CancellationToken) -> Self {
        Self {
            stored,
            current: None,
            watched: None,
            withdrawal: None,
            released: None,
            newest: None,
            last: None,
            view: watch::Sender::new(Arc::default()),
            check: None,
            check_at_ms: 0,
            wake_at: None,
            started_ms: now_ms(),
            started: Instant::now(),
            shutdown,
        }
    }

    pub(super) fn view(&self) -> watch::Receiver<Arc<RolloutView>> {
        self.view.subscribe()
    }

    fn now_ms(&self) -> i64 {
        let elapsed = i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.started_ms.saturating_add(elapsed)
    }

    /// Whether assignments depend on what nodes report.
    pub(super) fn is_running(&self) -> bool {
        self.current
            .as_ref()
            .is_some_and(|current| current.durable.phase.is_running() || current.is_unsaved())
    }

    /// Time of the next look without news.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.wake_at
    }

    /// Takes up a generation, which supersedes the one before.
    fn begin(&mut self, publication: &Publication) {
        let generation = &publication.generation;
        let now = self.now_ms();
        // One that is superseded while it runs has no result to show.
        let ended = self.current.take().filter(|current| !current.rollout.phase.is_running());
        self.last = ended.map(|current| RolloutStatus::new(&current.rollout, &[])).or(self.last.take());
        self.newest = Some(generation.number().get());
        (self.watched, self.withdrawal) = (None, None);
        let order = match &publication.plan {
            Plan::Rollout(order) => order,
            Plan::Immediate { base } => {
                let (generation, base) = (generation.clone(), base.as_deref().cloned().map(Arc::new));
                self.watched = base.map(|base| Watched { generation: generation.clone(), base });
                self.released = Some(generation);
                return;
            }
        };
        let base = Arc::new(order.base.clone());
        let started =
            Rollout::start(order.kind, target(generation), target(&base), order.policy.clone(), now);
        let mut durable = self.stored.state_of(generation).cloned().unwrap_or(started);
        if durable.phase.is_running() {
            durable.resume_at(now, self.started_ms.saturating_add(RECONNECT_MS).max(now));
        }
        let is_released = durable.is_released();
        self.released = Some(if is_released { generation.clone() } else { base.clone() });
        self.check_at_ms = now;
        self.current = Some(Current {
            order: (**order).clone(),
            target: generation.clone(),
            base,
            rollout: durable.clone(),
            queued: durable.clone(),
            saving: None,
            durable,
        });
    }

    /// The assignment of a node to `newest`.
    pub(super) fn assignment(&self, node: &Node<'_>, newest: &Arc<SignedGeneration>) -> Option<Assignment> {
        let Some(current) = self.current.as_ref() else {
            // A node that refuses the tree gets it too, and reports the refusal.
            let generation = newest.clone();
            return (!node.pinned).then_some(Assignment { generation, activate: true, flipped: false });
        };
        match current.durable.want(node) {
            Want::Nothing => None,
            Want::Base => {
                Some(Assignment { generation: current.base.clone(), activate: true, flipped: true })
            }
            Want::New { activate, flipped } => {
                Some(Assignment { generation: current.target.clone(), activate, flipped })
            }
        }
    }

    /// Looks at the facts. Returns the state to write, if it changed.
    fn look(&mut self, nodes: &[Node<'_>]) -> Option<Vec<u8>> {
        let now = self.now_ms();
        let Some(current) = self.current.as_mut() else {
            (self.wake_at, self.check) = (None, None);
            self.watch(nodes, now);
            self.publish(nodes);
            return None;
        };
        current.rollout.look(nodes, now);
        let next = current.rollout.next_ms().map(|at| if at <= now { now + LOOK_AGAIN_MS } else { at });
        let changed = current.rollout != current.queued;
        if changed {
            current.log_change();
            current.queued = current.rollout.clone();
        }
        let record = changed.then(|| encode_state(&current.queued));
        let of = (current.rollout.target.number, current.rollout.phase);
        self.check.take_if(|check| (check.number, check.phase) != of);
        let wants_check = current.rollout.wants_check() && self.check.is_none();
        if wants_check && now >= self.check_at_ms {
            self.start_check(nodes);
        }
        let check = wants_check.then_some(self.check_at_ms).filter(|at| *at > now);
        let next = next.into_iter().chain(check).min();
        self.wake_at = next.map(|at| {
            self.started
                + Duration::from_millis(u64::try_from(at.saturating_sub(self.started_ms)).unwrap_or(0))
        });
        self.publish(nodes);
        record
    }

    /// Whether a generation that went to every node at once may still be withdrawn.
    pub(super) fn is_watching(&self) -> bool {
        self.watched.is_some()
    }

    /// Withdraws the watched generation if a node's own check fails on it. Ends watching when every node in
    /// service has passed, or the generation is old: a node that comes much later fails alone.
    fn watch(&mut self, nodes: &[Node<'_>], now: i64) {
        let Some(Watched { generation, base }) = &self.watched else { return };
        let of = target(generation);
        let has_aged = now.saturating_sub(generation.generation().created_ms) > WATCH_MS;
        let serves = |node: &&Node<'_>| node.connected && !node.pinned && !node.drained;
        let mut serving = nodes.iter().filter(serves).peekable();
        if has_aged || serving.peek().is_some() && serving.all(|node| node.has_live(of)) {
            self.watched = None;
        } else if let Some(failed) = Rollout::failed_at_once(of, target(base), nodes, now) {
            let reason = failed.reason.clone().unwrap_or_default();
            self.withdrawal = Some(Withdrawal { number: of.number, base: base.clone(), reason });
            self.last = Some(RolloutStatus::new(&failed, nodes));
            self.watched = None;
        }
    }

    fn start_check(&mut self, nodes: &[Node<'_>]) {
        let Some(current) = &self.current else { return };
        let Some(command) = current.rollout.policy.check.clone() else { return };
        let of = (current.rollout.target.number, current.rollout.phase);
        let command = CheckCommand::new(command, &current.rollout, nodes);
        self.check = Some(CheckRun::start(command, of, &self.shutdown));
    }

    /// Waits for the check that runs. Cancel safe.
    pub(super) async fn check_ended(&mut self) -> Verdict {
        match &mut self.check {
            Some(check) => check.ended().await,
            None => std::future::pending().await,
        }
    }

    pub(super) fn checked(&mut self, verdict: Verdict) {
        let now = self.now_ms();
        let Some(check) = self.check.take() else { return };
        let Some(current) = self.current.as_mut().filter(|c| c.rollout.target.number == check.number) else {
            return;
        };
        let pause = (current.rollout.policy.hold_ms / 3).clamp(CHECK_PAUSE_MS.0, CHECK_PAUSE_MS.1);
        self.check_at_ms = now.saturating_add(pause);
        if !verdict.passed {
            tracing::warn!(
                generation = check.number,
                reason = verdict.output,
                "the check of the rollout failed"
            );
        }
        current.rollout.checked(check.phase, verdict.passed, verdict.output, now);
    }

    fn publish(&mut self, nodes: &[Node<'_>]) {
        let current = self.current.as_ref();
        let of_current = current.map(|current| RolloutStatus::new(&current.durable, nodes));
        let withdrawal =
            current.filter(|current| current.durable.phase.has_failed()).map(|current| Withdrawal {
                number: current.durable.target.number,
                base: current.base.clone(),
                reason: current.durable.reason.clone().unwrap_or_default(),
            });
        let roots = current.map(|current| vec![current.base.root_hash(), current.target.root_hash()]);
        let view = RolloutView {
            newest: self.newest,
            released: self.released.clone(),
            rollout: of_current.or_else(|| self.last.clone()),
            withdrawal: withdrawal.or_else(|| self.withdrawal.clone()),
            retained: roots.unwrap_or_default(),
        };
        self.view.send_if_modified(|shown| {
            let number = |w: &Option<Withdrawal>| w.as_ref().map(|w| w.number);
            let released = |view: &RolloutView| view.released.as_ref().map(|r| r.number());
            let changed = (shown.newest, released(shown), number(&shown.withdrawal), &shown.rollout)
                != (view.newest, released(&view), number(&view.withdrawal), &view.rollout);
            if changed {
                *shown = Arc::new(view);
            }
            changed
        });
    }

    /// The queued state is being written.
    pub(super) fn saving(&mut self) {
        if let Some(current) = &mut self.current {
            current.saving = Some(current.queued.clone());
        }
    }

    /// The state that was being written is durable. Returns whether assignments may change.
    pub(super) fn saved(&mut self) -> bool {
        let Some(current) = &mut self.current else { return false };
        let Some(saved) = current.saving.take().filter(|saved| *saved != current.durable) else {
            return false;
        };
        current.durable = saved;
        if current.durable.is_released() {
            self.released = Some(current.target.clone());
        }
        true
    }
}

impl Current {
    fn is_unsaved(&self) -> bool {
        self.rollout != self.durable
    }

    /// Logs one line for each change of phase.
    fn log_change(&self) {
        let Rollout { phase, step, .. } = self.rollout;
        if (phase, step) == (self.queued.phase, self.queued.step) {
            return;
        }
        let generation = self.rollout.target.number;
        let reason = self.rollout.reason.as_deref();
        let missing = self.rollout.missing.join(", ");
        let missing = Some(missing).filter(|missing| !missing.is_empty());
        let (policy, step) = (&self.order.policy.name, step.saturating_add(1));
        match phase {
            Phase::Failed | Phase::Aborted => {
                tracing::error!(generation, policy, step, reason, missing, "the rollout ended: {phase:?}");
            }
            phase => tracing::info!(generation, policy, step, reason, missing, "rollout: {phase:?}"),
        }
    }
}

impl FleetTask {
    /// Takes up the newest generation. The same one once more is assigned again to every agent.
    pub(super) fn announced(&mut self) {
        let Some(newest) = self.newest.borrow_and_update().clone() else { return };
        let key = |generation: &SignedGeneration| (generation.number(), generation.root_hash());
        let again = self.assigned.as_ref().map(|g| key(g)) == Some(key(&newest.generation));
        self.assigned = Some(newest.generation.clone());
        if !again {
            self.steering.begin(&newest);
        }
        self.steer();
        self.assign(again);
    }

    /// Looks whether the rollout moves on, and queues its state for writing.
    pub(super) fn steer(&mut self) {
        let nodes: Vec<Node<'_>> = self.agents.values().map(Agent::node).collect();
        if let Some(value) = self.steering.look(&nodes) {
            let (name, value) = (STATE.to_vec(), Some(value));
            self.unsaved.push(RecordChange { namespace: ROLLOUT, name, value });
            self.paused = false;
        }
    }

    /// Passes on assignments that differ, or all of them `again`.
    pub(super) fn assign(&mut self, again: bool) {
        let Some(newest) = self.assigned.clone() else { return };
        for agent in self.agents.values_mut() {
            if agent.connection.is_some() {
                let assignment = self.steering.assignment(&agent.node(), &newest);
                agent.assign(assignment, again);
            }
        }
    }

    /// Carries out an operator's order for the rollout, and answers once it is durable.
    pub(super) fn order_rollout(
        &mut self,
        order: RolloutOrder,
        reply: oneshot::Sender<Result<(), FleetError>>,
    ) {
        let now = self.steering.now_ms();
        let done = match &mut self.steering.current {
            Some(current) => current.rollout.order(order, now),
            None => Err(crate::fleet::rollout::OrderError::NotRunning),
        };
        match done {
            Ok(()) => {
                self.steer();
                self.waiting.push((reply, Undo::Nothing));
            }
            Err(error) => drop(reply.send(Err(error.into()))),
        }
    }
}
