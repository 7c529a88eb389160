//! Turns the content tree, as it is, into generations.
//!
//! One owner task ([`Committer::start`]) takes what may cause a commit: hints of the watch, requests of operators,
//! timers, and generations that agents hold and this origin does not know. It decides; [`sealer::Sealer`] does the
//! blocking work, one job at a time, on a thread of the blocking pool.
//!
//! ```text
//!   hints ──┐  quiet for --settle            ┌─ sealed ──> view, fleet
//!   requests├──> schedule ──> job ──> Sealer ┤
//!   timers ─┤                                ├─ unchanged
//!   observed┘                                └─ held | waiting | failed: the last generation stands
//! ```
//!
//! A crash at any point leaves the previous generation or the new one; what was pending is found again by the stat walk
//! at the next start.

mod scan_base;
mod schedule;
mod sealer;

use std::sync::Arc;
use std::time::{Duration, Instant};

use syncd_shared::{GenerationNumber, SignedGeneration};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

pub use sealer::{CommitError, Outcome, Sealer};

use crate::scan::ScanError;
use crate::status::State;
use crate::watch::{Hints, Reason, Watch};
use schedule::{Due, Schedule};

/// When the tree is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// When it was quiet for `quiet`; after `max` of unrest the status names what keeps changing.
    Settle {
        /// `--settle`.
        quiet: Duration,
        /// `--settle-max`.
        max: Duration,
    },
    /// When an operator says so.
    Manual,
}

/// What the origin is doing, for `status`.
#[derive(Debug, Clone)]
pub struct OriginView {
    /// What it does.
    pub state: State,
    /// Why it is held or waiting, and what to do.
    pub reason: Option<String>,
    /// The current generation.
    pub current: Option<SignedGeneration>,
}

/// What an operator asks for.
#[derive(Debug)]
pub enum Request {
    /// `syncd-origin commit`.
    Commit {
        /// `-m`.
        label: String,
        /// `--allow-mass-deletion`.
        allow_mass_deletion: bool,
        /// Answered when it is sealed.
        reply: oneshot::Sender<Result<Outcome, CommitError>>,
    },
    /// `syncd-origin rollback`.
    Rollback {
        /// The generation whose tree is wanted back.
        number: GenerationNumber,
        /// Answered when it is sealed.
        reply: oneshot::Sender<Result<Outcome, CommitError>>,
    },
}

/// Handle to the owner task. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Committer {
    requests: mpsc::Sender<Request>,
    view: watch::Receiver<OriginView>,
}

impl Committer {
    /// Starts the owner task. It ends when `shutdown` is cancelled and the job in flight is done; the returned handle
    /// of the task is to be awaited then.
    pub fn start(
        sealer: Sealer,
        watch: Arc<Watch>,
        trigger: Trigger,
        observed: mpsc::Receiver<SignedGeneration>,
        shutdown: CancellationToken,
    ) -> (Self, tokio::task::JoinHandle<()>) {
        let (requests, receiver) = mpsc::channel(16);
        let current = sealer.current().cloned();
        let (view_sender, view) =
            watch::channel(OriginView { state: State::Scanning, reason: None, current });
        let owner = Owner {
            sealer: Some(sealer),
            schedule: Schedule::new(trigger, Instant::now()),
            watch,
            view: view_sender,
            pending: Hints::default(),
            shutdown,
        };
        let task = tokio::spawn(owner.run(receiver, observed));
        (Self { requests, view }, task)
    }

    /// What the origin is doing.
    pub fn view(&self) -> watch::Receiver<OriginView> {
        self.view.clone()
    }

    /// Publishes the tree as it is now. Cancel safe: once accepted, it is carried out.
    pub async fn commit(&self, label: String, allow_mass_deletion: bool) -> Result<Outcome, CommitError> {
        self.ask(|reply| Request::Commit { label, allow_mass_deletion, reply }).await
    }

    /// Publishes the tree of an earlier generation as a new one. Cancel safe: once accepted, it is carried out.
    pub async fn rollback(&self, number: GenerationNumber) -> Result<Outcome, CommitError> {
        self.ask(|reply| Request::Rollback { number, reply }).await
    }

    async fn ask(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<Outcome, CommitError>>) -> Request,
    ) -> Result<Outcome, CommitError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| CommitError::Stopping)?;
        answer.await.map_err(|_| CommitError::Stopping)?
    }
}

/// A job for the sealer.
enum Job {
    /// Bring stat records and store up to the tree; publish nothing.
    Scan,
    /// Bring them up to the tree and publish it if it differs.
    Publish,
    /// An operator's request.
    Request(Request),
    /// A generation of ours that an agent knows and we don't.
    Observed(Box<SignedGeneration>),
    /// Retention and garbage collection.
    Collect,
}

/// What a job left.
struct Done {
    sealer: Sealer,
    result: Result<Outcome, CommitError>,
    reply: Option<oneshot::Sender<Result<Outcome, CommitError>>>,
    /// Hints that the job did not get to.
    unserved: Hints,
    collected: bool,
}

struct Owner {
    /// Away while a job runs.
    sealer: Option<Sealer>,
    watch: Arc<Watch>,
    schedule: Schedule,
    view: watch::Sender<OriginView>,
    /// What is dirty and not yet scanned.
    pending: Hints,
    shutdown: CancellationToken,
}

impl Owner {
    async fn run(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        mut observed: mpsc::Receiver<SignedGeneration>,
    ) {
        // At the start the watch hints at everything.
        self.pending.merge(self.watch.take());
        let mut running = Some(self.spawn(Job::Scan));
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
                            // The sealer is lost with its thread: nothing can be published any more.
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
                // A job takes the hints of what moves while it runs, and a commit those from before it: they are its own.
                () = self.watch.changed(), if idle => {
                    let hints = self.watch.take();
                    self.schedule.hinted(Instant::now());
                    self.pending.merge(hints);
                    self.note_unrest();
                }
                () = tokio::time::sleep_until(wake.into()), if idle => {
                    match self.schedule.due(Instant::now()) {
                        Some(Due::Publish) => running = Some(self.spawn(Job::Publish)),
                        Some(Due::Scan) => running = Some(self.spawn(Job::Scan)),
                        Some(Due::Reconcile) => {
                            self.pending.merge(Hints::everything(Reason::Reconcile));
                            running = Some(self.spawn(if self.schedule.publishes() { Job::Publish } else { Job::Scan }));
                        }
                        Some(Due::Collect) => running = Some(self.spawn(Job::Collect)),
                        None => {}
                    }
                }
            }
        }
    }

    fn spawn(&mut self, job: Job) -> tokio::task::JoinHandle<Done> {
        let mut sealer = self.sealer.take().expect("one job at a time");
        let mut hints = std::mem::take(&mut self.pending);
        if hints.everything.is_some() {
            self.view.send_modify(|view| view.state = State::Scanning);
        }
        tokio::task::spawn_blocking(move || {
            let mut collected = false;
            let (result, reply) = match job {
                Job::Scan => (sealer.scan(&mut hints), None),
                Job::Publish => (sealer.publish(&mut hints), None),
                Job::Observed(generation) => (sealer.observe(*generation, &mut hints), None),
                Job::Collect => {
                    collected = true;
                    (sealer.collect_garbage(), None)
                }
                Job::Request(Request::Commit { label, allow_mass_deletion, reply }) => {
                    (sealer.commit(&mut hints, label, allow_mass_deletion), Some(reply))
                }
                Job::Request(Request::Rollback { number, reply }) => (sealer.rollback(number), Some(reply)),
            };
            Done { sealer, result, reply, unserved: hints, collected }
        })
    }

    fn apply(&mut self, done: Done) {
        let now = Instant::now();
        self.pending.merge(done.unserved);
        let current = done.sealer.current().cloned();
        let (mut state, mut reason) = (State::Ready, None);
        if let Some(explanation) = done.sealer.waits_for_operator() {
            (state, reason) = (State::Waiting, Some(explanation));
        }
        match &done.result {
            Ok(outcome) => {
                self.schedule.settled(outcome, done.sealer.racy(), done.collected, now);
                if let Outcome::Sealed(generation) = outcome {
                    tracing::info!(
                        generation = %generation.number(),
                        root = %generation.root_hash(),
                        files = generation.generation().root.totals.files,
                        "sealed"
                    );
                }
            }
            Err(CommitError::Scan(error)) => {
                let text = crate::error_chain(error);
                state = match error {
                    ScanError::Unsettled { .. } => State::Waiting,
                    _ => State::Held,
                };
                if reason.as_ref() != Some(&text) && self.view.borrow().reason.as_ref() != Some(&text) {
                    tracing::warn!("not published: {text}");
                }
                reason = Some(text);
                if state == State::Waiting {
                    self.schedule.hinted(now);
                }
                self.schedule.failed(now);
            }
            Err(error) => {
                if done.reply.is_none() {
                    tracing::error!("not published: {}", crate::error_chain(error));
                    (state, reason) = (State::Held, Some(crate::error_chain(error)));
                    self.schedule.failed(now);
                } else {
                    (state, reason) = {
                        let view = self.view.borrow();
                        (
                            if view.state == State::Scanning { state } else { view.state },
                            view.reason.clone().or(reason),
                        )
                    };
                }
            }
        }
        self.view.send_replace(OriginView { state, reason, current });
        self.sealer = Some(done.sealer);
        if let Some(reply) = done.reply {
            // The asker may be gone; what was sealed stays sealed.
            let _ = reply.send(done.result);
        }
    }

    fn note_unrest(&mut self) {
        if !self.schedule.restless(Instant::now()) {
            return;
        }
        let reason = format!(
            "the tree has not been quiet for long enough to be published; it keeps changing at {}. Writers that pause \
             need --trigger manual",
            examples(&self.pending)
        );
        self.view.send_if_modified(|view| {
            let news = view.state != State::Waiting;
            if news {
                tracing::warn!("{reason}");
            }
            view.state = State::Waiting;
            view.reason = Some(reason);
            news
        });
    }
}

/// A few of the places that hints name.
fn examples(hints: &Hints) -> String {
    let places: Vec<String> =
        hints.directories.iter().chain(&hints.subtrees).take(3).map(ToString::to_string).collect();
    if places.is_empty() { "many places".into() } else { places.join(", ") }
}
