//! Turns the current content tree into generations.
//!
//! One owner task ([`Committer::start`]) receives everything that may cause a commit: changes of the source,
//! requests of operators, timers, and generations that agents hold but this origin does not know. It makes
//! the decisions. [`sealer::Sealer`] does the blocking work, one job at a time, on a thread of the blocking
//! pool.
//!
//! ```text
//!   changes ┐  quiet for --settle            ┌─ sealed ──> view, fleet
//!   requests├──> schedule ──> job ──> Sealer ┤
//!   timers ─┤                                ├─ unchanged
//!   observed┘                                └─ held | waiting | failed: the last generation stands
//! ```
//!
//! A crash at any point leaves the previous generation or the new one. The stat walk at the next start finds
//! pending changes again.

mod brought_back;
mod changed_times;
mod closed_tree;
mod collection_gate;
mod distinct;
mod file_changes;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod observed;
mod outcome;
mod rollbacks;
mod scan_base;
mod schedule;
mod sealer;
mod taken_seconds;
#[cfg(test)]
mod tests;
mod unrest;

use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::HumanCount;
use serde::{Deserialize, Serialize};
use syncd_shared::identity::SignedTrust;
use syncd_shared::{GenerationNumber, SignedGeneration, TreePath};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

pub use changed_times::{ChangedTimes, SomeFiles};
pub(crate) use changed_times::{is_indistinct, status_warning};
pub use collection_gate::CollectionGate;
pub use outcome::{CommitError, CommitOptions, Outcome, Preview};
pub use rollbacks::Hold;
pub(crate) use rollbacks::Rollbacks;
pub(crate) use scan_base::forget_damaged;
pub use sealer::{Parts, Sealer};

use crate::clock::now_ms;
use crate::fleet::{FleetView, RETAIN_MS};
use crate::scan::ScanError;
use crate::source::{OpenFile, TreeSource};
use crate::store::CheckReport;
use schedule::{Due, Leftover, Schedule};
use unrest::Unrest;

/// After a start nothing is published automatically until all agents have reported what they hold, or for
/// this long: slightly more than their longest retry pause. An origin that was restored from a backup thus
/// learns of it in time.
const HEARING: Duration = Duration::from_secs(16);

type Reply = oneshot::Sender<Answer>;

/// Reply to an operator's request.
#[derive(Debug)]
pub struct Answer {
    pub result: Result<Outcome, CommitError>,
    /// For a person, one line each.
    pub remarks: Vec<String>,
    /// Report on the times of the sealed generation.
    pub times: ChangedTimes,
}

/// Condition for publishing the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// After it was quiet for `quiet`. A file that keeps changing does not delay the others forever.
    Settle {
        /// `--settle`.
        quiet: Duration,
        /// `--settle-max`: after this much unrest the status names the changing paths. A file that was
        /// written and not closed delays publishing for as long after its last write.
        max: Duration,
        /// `--settle-max-publish`: a file that changes for this long no longer delays the others.
        busy_after: Duration,
    },
    /// Only on request of an operator.
    Manual,
}

/// State of the origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The tree equals the current generation, as far as events show.
    Ready,
    /// The tree is being read.
    Scanning,
    /// The tree does not look like a deployment, or a rollback replaced it. The last generation stays in
    /// effect.
    Held,
    /// Waiting for the tree to become quiet, or for an operator.
    Waiting,
    /// No origin serves this data directory.
    Stopped,
}

/// State of the origin, for `status`.
#[derive(Debug, Clone)]
pub struct OriginView {
    pub state: State,
    /// Reason for being held or waiting, with the next step.
    pub reason: Option<String>,
    pub current: Option<SignedGeneration>,
    /// Hold left by a rollback.
    pub hold: Option<Hold>,
}

/// A request of an operator.
#[derive(Debug)]
pub enum Request {
    /// `syncd-origin commit`.
    Commit {
        options: CommitOptions,
        /// Answered after sealing.
        reply: Reply,
    },
    /// `syncd-origin key take`, and the end of `key sign`.
    TakeTrust {
        document: Box<SignedTrust>,
        /// Answered once its keys are in force.
        reply: Reply,
    },
    /// `syncd-origin rollback`.
    Rollback {
        /// The generation whose tree is published again.
        number: GenerationNumber,
        /// Answered after sealing.
        reply: Reply,
    },
    /// `syncd-origin diff --pending`.
    Preview {
        /// Answered after scanning.
        reply: Reply,
    },
    /// `syncd-origin check` found damage.
    Mend {
        report: CheckReport,
        /// Answered after the whole tree was read again.
        reply: Reply,
    },
}

/// Handle to the owner task. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Committer {
    requests: mpsc::Sender<Request>,
    view: watch::Receiver<OriginView>,
}

impl Committer {
    /// Starts the owner task. It ends after `shutdown` is cancelled and the running job has finished. The
    /// caller must then await the returned task handle.
    pub fn start(
        sealer: Sealer,
        trigger: Trigger,
        observed: mpsc::Receiver<SignedGeneration>,
        shutdown: CancellationToken,
    ) -> (Self, tokio::task::JoinHandle<()>) {
        let (requests, receiver) = mpsc::channel(16);
        let current = sealer.current().cloned();
        let fleet = sealer.fleet().view();
        let mut schedule = Schedule::new(trigger, Instant::now());
        if !all_heard(&fleet.borrow()) {
            schedule.hold_back(Instant::now() + HEARING);
        }
        let hold = sealer.hold();
        let (view_sender, view) =
            watch::channel(OriginView { state: State::Scanning, reason: None, current, hold });
        let committer = CommitterTask {
            requests: requests.downgrade(),
            sealer: Some(sealer),
            schedule,
            view: view_sender,
            scanning: true,
            trouble: None,
            waits: None,
            hold,
            unrest: None,
            changing: Changing::of(trigger),
            shutdown,
        };
        let task = tokio::spawn(committer.run(receiver, observed, fleet));
        (Self { requests, view }, task)
    }

    /// State of the origin.
    pub fn view(&self) -> watch::Receiver<OriginView> {
        self.view.clone()
    }

    /// Publishes the current tree. Cancel safe: once accepted, the request is carried out.
    pub async fn commit(&self, options: CommitOptions) -> Answer {
        self.ask(|reply| Request::Commit { options, reply }).await
    }

    /// Publishes the tree of an earlier generation as a new one. Cancel safe: once accepted, the request is
    /// carried out.
    pub async fn rollback(&self, number: GenerationNumber) -> Answer {
        self.ask(|reply| Request::Rollback { number, reply }).await
    }

    /// Takes a signed trust document. Cancel safe: once accepted, the request is carried out.
    pub async fn take_trust(&self, document: SignedTrust) -> Answer {
        self.ask(|reply| Request::TakeTrust { document: Box::new(document), reply }).await
    }

    /// Scans the current tree and publishes nothing: [`Outcome::Found`]. Cancel safe: once accepted, the
    /// request is carried out.
    pub async fn preview(&self) -> Answer {
        self.ask(|reply| Request::Preview { reply }).await
    }

    /// Stores content again that a check found damaged and the tree still has, reading the whole tree. Cancel
    /// safe: once accepted, the request is carried out.
    pub async fn mend(&self, report: CheckReport) -> Answer {
        self.ask(|reply| Request::Mend { report, reply }).await
    }

    async fn ask(&self, request: impl FnOnce(Reply) -> Request) -> Answer {
        let (reply, answer) = oneshot::channel();
        // If the owner has ended, the reply is dropped with the request.
        let _ = self.requests.send(request(reply)).await;
        answer.await.unwrap_or(Answer {
            result: Err(CommitError::Stopping),
            remarks: Vec::new(),
            times: ChangedTimes::default(),
        })
    }
}

/// A job for the sealer.
enum Job {
    /// Scan the tree except for busy files; publish nothing.
    Scan(Vec<TreePath>),
    /// Scan the tree except for busy files, and publish it if it differs.
    Publish(Vec<TreePath>),
    /// An operator's request.
    Request(Request),
    /// Handle a generation of this origin that an agent holds and the store does not have.
    Observed(Box<SignedGeneration>),
    /// Apply retention and collect garbage, until a request waits.
    Collect(mpsc::WeakSender<Request>),
}

impl Job {
    /// Whether the job scans changes, so that its success clears errors about the tree.
    fn scans(&self) -> bool {
        let request = matches!(self, Self::Request(Request::Rollback { .. } | Request::TakeTrust { .. }));
        !request && !matches!(self, Self::Collect(_))
    }

    /// Runs the job. Blocks.
    fn run(self, sealer: &mut Sealer) -> (Result<Outcome, CommitError>, Option<Reply>) {
        let (result, reply) = match self {
            Self::Scan(busy) => (sealer.withhold(&busy).and_then(|()| sealer.scan()), None),
            Self::Publish(busy) => (sealer.withhold(&busy).and_then(|()| sealer.publish()), None),
            Self::Observed(generation) => (sealer.observe(*generation), None),
            Self::Collect(requests) => (sealer.collect_garbage(&|| is_used(&requests)), None),
            Self::Request(Request::Commit { options, reply }) => (sealer.commit(options), Some(reply)),
            Self::Request(Request::Rollback { number, reply }) => (sealer.rollback(number), Some(reply)),
            Self::Request(Request::TakeTrust { document, reply }) => {
                (sealer.take_trust(&document), Some(reply))
            }
            Self::Request(Request::Preview { reply }) => (sealer.preview(), Some(reply)),
            Self::Request(Request::Mend { report, reply }) => (sealer.mend(&report), Some(reply)),
        };
        let result = result.map_err(|error| match error {
            CommitError::Scan(ScanError::Cancelled) => CommitError::Stopping,
            other => other,
        });
        (result, reply)
    }
}

/// Result of a job.
struct Done {
    sealer: Sealer,
    result: Result<Outcome, CommitError>,
    reply: Option<Reply>,
    scans: bool,
    started: Instant,
}

/// Whether something waits in a queue.
fn is_used<T>(queue: &mpsc::WeakSender<T>) -> bool {
    queue.upgrade().is_some_and(|queue| queue.capacity() < queue.max_capacity())
}

struct CommitterTask {
    /// The queue of requests.
    requests: mpsc::WeakSender<Request>,
    /// `None` while a job runs.
    sealer: Option<Sealer>,
    schedule: Schedule,
    view: watch::Sender<OriginView>,
    /// Whether the whole tree is being walked.
    scanning: bool,
    /// Error of the last job.
    trouble: Option<(State, String)>,
    /// Reason for waiting for an operator.
    waits: Option<String>,
    /// Hold left by a rollback.
    hold: Option<Hold>,
    /// Description of paths that keep changing.
    unrest: Option<String>,
    /// Names that keep changing; `None` if nothing is published without an operator.
    changing: Option<Changing>,
    shutdown: CancellationToken,
}

impl CommitterTask {
    async fn run(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        mut observed: mpsc::Receiver<SignedGeneration>,
        mut fleet: watch::Receiver<Arc<FleetView>>,
    ) {
        // At first the whole tree counts as changed.
        self.source().take_changes();
        let mut running = Some(self.spawn(Job::Scan(Vec::new())));
        loop {
            let idle = running.is_none();
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
                _ = async { fleet.wait_for(|fleet| all_heard(fleet)).await.is_ok() }, if self.schedule.is_held_back() => {
                    self.schedule.release();
                }
                () = tokio::time::sleep_until(wake.into()), if idle => {
                    let now = Instant::now();
                    let open_until = self.open_until(now);
                    match self.schedule.due(now, open_until) {
                        Some(Due::Publish) => running = Some(self.spawn(Job::Publish(self.busy(now)))),
                        Some(Due::Scan) => running = Some(self.spawn(Job::Scan(self.busy(now)))),
                        Some(Due::Reconcile) => {
                            // Changes found by it are published after the usual quiet time.
                            self.source().reread();
                            running = Some(self.spawn(Job::Scan(self.busy(now))));
                        }
                        Some(Due::Collect) => running = Some(self.spawn(Job::Collect(self.requests.clone()))),
                        // The trouble may be over although nothing is published before the file is closed.
                        None if open_until.is_some() && self.trouble.is_some() => {
                            running = Some(self.spawn(Job::Scan(self.busy(now))));
                        }
                        None => {}
                    }
                }
            }
        }
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
        self.hold = done.sealer.hold();
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
            Err(error) if error.is_of_request() => {}
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
        // If nothing is published automatically anyway, a hold has no effect.
        let hold = self.hold.filter(|_| self.schedule.publishes());
        let (state, reason) = match (&self.trouble, &self.waits, hold, &self.unrest) {
            (Some((state, reason)), ..) => (*state, Some(reason.clone())),
            (None, Some(reason), ..) => waiting(reason),
            (None, None, Some(hold), _) => (State::Held, Some(hold.reason())),
            (None, None, None, Some(reason)) => waiting(reason),
            (None, None, None, None) if self.scanning => (State::Scanning, None),
            (None, None, None, None) => (State::Ready, None),
        };
        self.view.send_replace(OriginView { state, reason, current, hold: self.hold });
    }
}

/// Waits until the tree may have changed; for ever while a job has the sealer. Cancel safe.
async fn changed(sealer: Option<&Sealer>) {
    match sealer {
        Some(sealer) => sealer.changed().await,
        None => std::future::pending().await,
    }
}

/// Whether every agent seen within 30 days has reported what it holds since this origin started.
fn all_heard(fleet: &FleetView) -> bool {
    let now_ms = now_ms();
    fleet.agents.iter().all(|a| a.connected || now_ms.saturating_sub(a.last_seen_ms) > RETAIN_MS)
}

/// Changing names, in settle mode.
#[derive(Debug)]
struct Changing {
    unrest: Unrest,
    /// Time after its last write for which an open file delays publishing.
    open_for: Duration,
}

impl Changing {
    fn of(trigger: Trigger) -> Option<Self> {
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
