//! The owner task: decides which job runs next, and applies its result.

use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::HumanCount;
use syncd_shared::{SignedGeneration, TreePath};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::job::{Done, Job};
use super::outcome::{CommitError, Outcome, Preview};
use super::rollbacks::{Hold, Return};
use super::schedule::{Due, Leftover, Schedule};
use super::sealer::Sealer;
use super::unrest::Unrest;
use super::{Answer, OriginView, Request, State, Trigger};
use crate::clock::now_ms;
use crate::fleet::rollout::view::Withdrawal;
use crate::fleet::rollout::{RolloutStatus, RolloutView};
use crate::fleet::{AgentView, FleetView, RETAIN_MS};
use crate::scan::ScanError;
use crate::source::{OpenFile, TreeSource};

/// Pause before a withdrawal is tried again.
const WITHDRAW_AGAIN: Duration = Duration::from_secs(2);

pub(super) struct CommitterTask {
    /// The queue of requests.
    pub(super) requests: mpsc::WeakSender<Request>,
    /// `None` while a job runs.
    pub(super) sealer: Option<Sealer>,
    pub(super) schedule: Schedule,
    pub(super) view: watch::Sender<OriginView>,
    /// Whether the whole tree is being walked.
    pub(super) scanning: bool,
    /// Error of the last job.
    pub(super) trouble: Option<(State, String)>,
    /// Reason for waiting for an operator.
    pub(super) waits: Option<String>,
    /// Hold left by a rollback.
    pub(super) hold: Option<Hold>,
    /// Rollbacks and withdrawals, oldest first.
    pub(super) returns: Arc<[Return]>,
    /// Description of paths that keep changing.
    pub(super) unrest: Option<String>,
    /// Names that keep changing; `None` if nothing is published without an operator.
    pub(super) changing: Option<Changing>,
    /// State of the newest generation's rollout.
    pub(super) rollout: watch::Receiver<Arc<RolloutView>>,
    /// Time before which a withdrawal that failed is not repeated.
    pub(super) withdraw_at: Instant,
    pub(super) shutdown: CancellationToken,
}

impl CommitterTask {
    pub(super) async fn run(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        mut observed: mpsc::Receiver<SignedGeneration>,
        mut fleet: watch::Receiver<Arc<FleetView>>,
    ) {
        // At first the whole tree counts as changed.
        self.source().take_changes();
        let mut running = Some(self.spawn(Job::Scan(Vec::new())));
        loop {
            if let Some(withdrawal) = self.due_withdrawal() {
                running = Some(self.spawn(Job::Withdraw(Box::new(withdrawal))));
            }
            let idle = running.is_none();
            self.queue_behind_rollout();
            let wake = self.schedule.next();
            tokio::select! {
                biased;
                done = async { running.as_mut().expect("checked by the condition").await }, if !idle => {
                    running = None;
                    match done {
                        Ok(done) => self.apply(done),
                        Err(error) => {
                            // The sealer was lost with its thread, so nothing can be published any more.
                            tracing::error!(%error, "the sealing thread died: restart syncd-origin serve");
                            return;
                        }
                    }
                }
                () = self.shutdown.cancelled(), if idle => return,
                request = requests.recv(), if idle => match request {
                    Some(request) => running = Some(self.spawn(Job::Request(request))),
                    None => return,
                },
                Some(generation) = observed.recv(), if idle => {
                    running = Some(self.spawn(Job::Observed(Box::new(generation))));
                }
                // Jobs take the changes that come while they run, and a commit those from before it.
                () = changed(self.sealer.as_ref()), if idle => self.tree_changed(),
                Ok(()) = self.rollout.changed() => {
                    let current = self.view.borrow().current.clone();
                    self.show(current);
                }
                _ = async { fleet.wait_for(|fleet| all_heard(fleet)).await.is_ok() }, if self.schedule.is_held_back() => {
                    self.schedule.release();
                }
                () = tokio::time::sleep_until(wake.into()), if idle => {
                    running = self.due_job(Instant::now()).map(|job| self.spawn(job));
                }
            }
        }
    }

    /// The job that the schedule wants now, if any.
    fn due_job(&mut self, now: Instant) -> Option<Job> {
        let open_until = self.open_until(now);
        match self.schedule.due(now, open_until) {
            Some(Due::Publish) => Some(Job::Publish(self.busy(now))),
            Some(Due::Scan) => Some(Job::Scan(self.busy(now))),
            Some(Due::Reconcile) => {
                // Changes found by it are published after the usual quiet time.
                self.source().reread();
                Some(Job::Scan(self.busy(now)))
            }
            Some(Due::Collect) => Some(Job::Collect(self.requests.clone())),
            // The trouble may be over although nothing is published before the file is closed.
            None if open_until.is_some() && self.trouble.is_some() => Some(Job::Scan(self.busy(now))),
            None => None,
        }
    }

    /// A failed rollout of the current generation, which must be withdrawn. `None` while a job runs.
    fn due_withdrawal(&mut self) -> Option<Withdrawal> {
        let current = self.sealer.as_ref()?.current()?.number().get();
        let withdrawal = self.rollout.borrow().withdrawal.clone().filter(|w| w.number == current)?;
        if Instant::now() < self.withdraw_at {
            self.schedule.wake_at(self.withdraw_at);
            return None;
        }
        self.withdraw_at = Instant::now() + WITHDRAW_AGAIN;
        Some(withdrawal)
    }

    /// Publishes nothing automatically while a rollout runs, and the newest tree after it.
    fn queue_behind_rollout(&mut self) {
        let Some(sealer) = &self.sealer else { return };
        let current = sealer.current().map(|current| current.number().get());
        let view = self.rollout.borrow_and_update();
        let is_behind = view.running().is_some()
            || view.newest != current
            || view.withdrawal.as_ref().is_some_and(|w| Some(w.number) == current);
        drop(view);
        self.schedule.queue(is_behind);
    }

    /// The source of the tree. No job runs.
    fn source(&mut self) -> &mut dyn TreeSource {
        self.sealer.as_mut().expect("no job runs").source()
    }

    /// A few of the paths that are to be scanned. No job runs.
    fn examples(&mut self) -> String {
        let paths = self.source().pending();
        if paths.is_empty() { "many places".into() } else { some(paths.iter()) }
    }

    fn tree_changed(&mut self) {
        let (changes, now) = (self.source().take_changes(), Instant::now());
        let is_poll = changes.is_poll;
        let open = self.open_files();
        let others = self.changing.as_mut().is_none_or(|changing| changing.unrest.note(changes, &open, now));
        if is_poll {
            self.schedule.polled(now);
        } else if others {
            self.schedule.hinted(now);
        } else {
            self.schedule.busy(now);
        }
        if self.schedule.restless(now) {
            self.note_unrest();
        }
    }

    /// Files whose writers have not finished; none if nothing is published without an operator. No job runs.
    fn open_files(&mut self) -> Vec<OpenFile> {
        match self.changing.as_ref().map(|changing| changing.open_for) {
            Some(idle) => self.source().open_files(idle),
            None => Vec::new(),
        }
    }

    /// Files that keep changing and do not delay the others.
    fn busy(&self, now: Instant) -> Vec<TreePath> {
        self.changing.as_ref().map(|changing| changing.unrest.busy(now)).unwrap_or_default()
    }

    /// Time until which an open file delays due work. Also reported in the status.
    fn open_until(&mut self, now: Instant) -> Option<Instant> {
        let (until, reason) = self.delayed(now)?;
        if self.unrest.is_none() || !self.schedule.restless(now) {
            self.unrest = Some(reason);
            let current = self.view.borrow().current.clone();
            self.show(current);
        }
        Some(until)
    }

    /// Time until which open files delay due work, and their description. No job runs.
    fn delayed(&mut self, now: Instant) -> Option<(Instant, String)> {
        let open = self.open_files();
        let changing = self.changing.as_mut()?;
        changing.unrest.look(&open, now);
        let busy = changing.unrest.busy(now);
        let holding: Vec<_> = open.into_iter().filter(|file| !busy.contains(&file.path)).collect();
        let until = holding.iter().map(|file| file.written + changing.open_for).max()?;
        let reason = format!(
            "{} is written and not closed yet: the tree is published when it is, or {} after the last write",
            some(holding.iter().map(|file| &file.path)),
            humantime::format_duration(changing.open_for),
        );
        Some((until, reason))
    }

    fn spawn(&mut self, job: Job) -> tokio::task::JoinHandle<Done> {
        let mut sealer = self.sealer.take().expect("one job at a time");
        let scans = job.scans();
        self.scanning = scans && sealer.source().reads_everything();
        self.show(sealer.current().cloned());
        let started = Instant::now();
        tokio::task::spawn_blocking(move || {
            let (result, reply) = job.run(&mut sealer);
            Done { sealer, result, reply, scans, started }
        })
    }

    fn apply(&mut self, mut done: Done) {
        let now = Instant::now();
        if let Some(changing) = &mut self.changing {
            changing.unrest.resume(now.saturating_duration_since(done.started), now);
        }
        self.scanning = false;
        self.waits = done.sealer.waits_for_operator();
        (self.hold, self.returns) = (done.sealer.hold(), done.sealer.returns());
        if done.sealer.takes_owed_collection() {
            self.schedule.owes_collection(now);
        }
        match &done.result {
            // A look that keeps nothing and mends nothing.
            Ok(Outcome::Found(Preview { refused: Some(reason), .. })) => {
                self.refused(State::Held, reason.clone(), now);
            }
            Ok(outcome) => {
                if done.scans {
                    self.trouble = None;
                }
                let published = done.scans && !matches!(outcome, Outcome::Scanned | Outcome::Found(_));
                let left = Leftover {
                    published,
                    unpublished: done.sealer.has_unpublished(),
                    racy: done.sealer.source().is_racy(),
                    linked: done.sealer.source().has_silent_changes(),
                };
                self.schedule.settled(left, now);
                if let Outcome::Sealed(generation) = outcome {
                    tracing::info!(
                        generation = %generation.number(),
                        label = generation.generation().label,
                        files = %HumanCount(generation.generation().root.totals.files),
                        root = format!("{:.12}", generation.root_hash().to_string()),
                        "sealed"
                    );
                }
            }
            Err(error) if error.is_of_request() && done.reply.is_some() => {}
            Err(error) => self.failed(error, now),
        }
        // Always taken, so that the next request does not receive them.
        let (mut remarks, times) = (done.sealer.take_remarks(), done.sealer.take_times());
        remarks.extend(times.remarks());
        let current = done.sealer.current().cloned();
        self.sealer = Some(done.sealer);
        self.note_delays(now);
        self.show(current);
        if let Some(reply) = done.reply {
            // The requester may be gone; a sealed generation remains.
            let _ = reply.send(Answer { result: done.result, remarks, times });
        }
    }

    fn failed(&mut self, error: &CommitError, now: Instant) {
        let state = match error {
            CommitError::Scan(ScanError::Unsettled { .. } | ScanError::HeldWhile { .. }) => State::Waiting,
            _ => State::Held,
        };
        self.refused(state, crate::error_chain(error), now);
    }

    fn refused(&mut self, state: State, text: String, now: Instant) {
        let trouble = Some((state, text));
        if self.trouble != trouble {
            let text = trouble.as_ref().map(|(_, text)| text.as_str()).unwrap_or_default();
            tracing::warn!("not published: {text}");
        }
        self.trouble = trouble;
        if state == State::Waiting {
            self.schedule.hinted(now);
        }
        self.schedule.failed(now);
    }

    fn note_unrest(&mut self) {
        let changing = self.changing.as_ref().map(|changing| changing.unrest.restless()).unwrap_or_default();
        let reason = format!(
            "the tree has not been quiet for long enough to be published; it keeps changing at {}. List in .syncdignore \
             what is no content; writers that pause need --trigger manual",
            if changing.is_empty() { self.examples() } else { some(changing.into_iter()) }
        );
        if self.unrest.is_none() {
            tracing::warn!("{reason}");
        }
        self.unrest = Some(reason);
        // A separate statement, because a borrow locks the value until the end of its statement.
        let current = self.view.borrow().current.clone();
        self.show(current);
    }

    /// Describes, after a job, what delays publishing: open files, or else files that stay as published.
    fn note_delays(&mut self, now: Instant) {
        if self.schedule.restless(now) {
            return;
        }
        let delayed = if self.schedule.is_pending() { self.delayed(now) } else { None };
        self.unrest = delayed.map(|(_, reason)| reason).or_else(|| self.note_busy(now));
    }

    /// Describes, after a job, the files that stay as published. Logs new ones.
    fn note_busy(&self, now: Instant) -> Option<String> {
        let busy = self.busy(now);
        if busy.is_empty() {
            return None;
        }
        let reason = format!(
            "{} keeps changing and stays as it was published until it is quiet, all else is published: list it in \
             .syncdignore if it is no content, or `syncd-origin commit`",
            some(busy.iter())
        );
        if self.unrest.as_ref() != Some(&reason) {
            tracing::warn!("{reason}");
        }
        Some(reason)
    }

    /// Publishes the state of the origin, choosing the worst reason.
    fn show(&self, current: Option<SignedGeneration>) {
        let waiting = |reason: &String| (State::Waiting, Some(reason.clone()));
        let queued =
            self.schedule.is_queued().then(|| self.rollout.borrow().running().map(queued_reason)).flatten();
        let unrest = queued.as_ref().or(self.unrest.as_ref());
        let (state, reason) = match (&self.trouble, &self.waits, self.hold, unrest) {
            (Some((state, reason)), ..) => (*state, Some(reason.clone())),
            (None, Some(reason), ..) => waiting(reason),
            (None, None, Some(hold), _) => (State::Held, Some(hold.reason())),
            (None, None, None, Some(reason)) => waiting(reason),
            (None, None, None, None) if self.scanning => (State::Scanning, None),
            (None, None, None, None) => (State::Ready, None),
        };
        self.view.send_replace(OriginView {
            state,
            reason,
            current,
            hold: self.hold,
            returns: self.returns.clone(),
        });
    }
}

/// Why changes are not published yet.
fn queued_reason(rollout: &RolloutStatus) -> String {
    format!(
        "changes are published after the rollout of {rollout}; `syncd-origin commit` publishes them at once"
    )
}

/// Waits until the tree may have changed; for ever while a job has the sealer. Cancel safe.
async fn changed(sealer: Option<&Sealer>) {
    match sealer {
        Some(sealer) => sealer.changed().await,
        None => std::future::pending().await,
    }
}

/// Whether every agent that joined or was seen within 30 days has reported what it holds since this origin
/// started. A time of joining is durable before the agent connects, and what was last seen is not.
pub(super) fn all_heard(fleet: &FleetView) -> bool {
    let now_ms = now_ms();
    let is_gone = |a: &AgentView| now_ms.saturating_sub(a.last_seen_ms.max(a.enrolled_ms)) > RETAIN_MS;
    fleet.agents.iter().all(|agent| agent.connected || is_gone(agent))
}

/// Changing names, in settle mode.
#[derive(Debug)]
pub(super) struct Changing {
    unrest: Unrest,
    /// Time after its last write for which an open file delays publishing.
    open_for: Duration,
}

impl Changing {
    pub(super) fn of(trigger: Trigger) -> Option<Self> {
        match trigger {
            Trigger::Settle { quiet, max, busy_after } => {
                Some(Self { unrest: Unrest::new(quiet, busy_after), open_for: max })
            }
            Trigger::Manual => None,
        }
    }
}

/// A few paths, for people.
fn some<'a>(paths: impl Iterator<Item = &'a TreePath>) -> String {
    crate::scan::Paths(paths.cloned().collect()).to_string()
}
