//! The one thread that touches the replica. Staging, activating, maintaining and verifying block for as long as they
//! take; the session hands over one command at a time and goes on answering the origin.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use indicatif::HumanBytes;
use serde::{Deserialize, Serialize};
use syncd_proto::v1::RetryClass;
use syncd_shared::limits::LABEL_MAX_BYTES;
use syncd_shared::progress::Progress;
use syncd_shared::text::{error_chain, one_line};
use syncd_shared::wire::Frame;
use syncd_shared::{GenerationNumber, RootHash, SignedGeneration};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::hooks::{AfterHook, Changed, Hook, HookError, HookState, Occasion};
use crate::source::Source;
use crate::status::{Drift, StageProgress};

/// What is called before a switch, with the changed paths; its error prevents the switch.
pub type BeforeSwitch<'a> = dyn FnMut(Occasion, &Changed<'_>) -> Result<(), HookError> + 'a;

/// What the session asks of a replica. [`crate::replica::Replica`] answers; tests have one that fails and dawdles on
/// demand. Everything blocks.
pub trait ReplicaWork: Send + 'static {
    /// A complete, verified tree that is not live yet.
    type Staged: Send;

    /// What there is.
    fn state(&self) -> ReplicaState;

    /// Builds and verifies the tree of `generation`. `cancel` is looked at between files.
    fn stage(
        &mut self,
        generation: &SignedGeneration,
        inline: Option<Inline>,
        source: &mut dyn Source,
        progress: &dyn Fn(StageProgress),
        cancel: &AtomicBool,
    ) -> Result<Self::Staged, Failure>;

    /// Makes it live, durably. `before` is called before anything is switched, with the changed paths; where it fails,
    /// nothing is switched and what was staged comes back. Not cancellable.
    fn activate(
        &mut self,
        staged: Self::Staged,
        before: &mut BeforeSwitch<'_>,
    ) -> Result<(), NotActivated<Self::Staged>>;

    /// Whether it is known what an activation that failed has come to: `false` until the record could be opened again.
    fn is_settled(&self) -> bool {
        true
    }

    /// A web server may still serve generations from this number on: their trees stay as they are. `None`: what is live
    /// alone. Called before each command, and between a switch and everything that follows from it.
    fn protect(&mut self, _from: Option<u64>) {}

    /// The on-activate hook has succeeded for this generation. Said once for each run, and late: another one may be live.
    fn hook_succeeded(&mut self, _generation: u64) {}

    /// Files of the live tree were healed, and a web server may have cached what was wrong: calls `note` for what is live,
    /// with every path, so that the on-activate hook runs again.
    fn note_healed(&self, _note: &mut BeforeSwitch<'_>) -> Result<(), Failure> {
        Ok(())
    }

    /// Bounds what piles up where no time is left for [`Self::maintain`]: after each report, for which somebody waits.
    fn bound(&mut self) {}

    /// What differs between what was live before and what is live: for the log. Costs what comparing the two costs.
    fn changes(&self, _previous: Option<&SignedGeneration>, _live: &SignedGeneration) -> Option<Changes> {
        None
    }

    /// The process ends in order: what the next start would have to look at again is left so that it need not.
    fn end(&mut self) {}

    /// Does a step of what can wait: spares, old trees.
    fn maintain(&mut self, cancel: &AtomicBool) -> Maintenance;

    /// Re-hashes everything and heals what drifted.
    fn verify(
        &mut self,
        source: &mut dyn Source,
        progress: &dyn Fn(StageProgress),
        cancel: &AtomicBool,
    ) -> Result<Verified, Failure>;
}

/// What a replica holds.
#[derive(Debug, Clone, Default)]
pub struct ReplicaState {
    /// What the web server reads.
    pub live: Option<SignedGeneration>,
    /// The highest generation ever accepted.
    pub accepted: Option<SignedGeneration>,
    /// Other complete trees.
    pub held: Vec<SignedGeneration>,
    /// Numbers of all complete trees, ascending.
    pub generations: Vec<GenerationNumber>,
    /// Spares that are ready.
    pub spares: u64,
    /// Updates so far that found no spare.
    pub spare_misses: u64,
    /// Local changes that were found last.
    pub drift: Option<Drift>,
    /// How the on-activate hook fares, filled in by the worker; `None`: none is set.
    pub hook: Option<HookState>,
}

/// Files and symlinks that differ between two generations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    /// New names.
    pub added: u64,
    /// Names that stayed, with another content, target or metadata.
    pub changed: u64,
    /// Names that are gone.
    pub removed: u64,
    /// Content bytes of what is new or changed.
    pub bytes: u64,
}

/// `+1 ~2 -3, 4.50 KiB`
impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { added, changed, removed, bytes } = self;
        write!(f, "+{added} ~{changed} -{removed}, {}", HumanBytes(*bytes))
    }
}

/// An update that came with its announcement.
#[derive(Debug, Clone)]
pub struct Inline {
    /// The root that it starts from.
    pub from: RootHash,
    /// All of it, [`Frame::End`] included.
    pub frames: Vec<Frame>,
}

/// What a verification found: the JSON of `syncd-agent verify --json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Files read.
    pub files: u64,
    /// Bytes read.
    pub bytes: u64,
    /// How many paths had drifted.
    pub drifted: u64,
    /// The first [`DRIFT_SHOWN_MAX`] of them.
    pub drift: Vec<Drifted>,
    /// Whether they are as they should be again.
    pub healed: bool,
    /// Where extra and changed files are now; `None`: nothing is kept.
    pub kept: Option<String>,
}

/// Paths of drift that are named; beyond that they are only counted.
pub const DRIFT_SHOWN_MAX: usize = 10_000;

/// A path whose file is not what the manifest says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drifted {
    /// The path, escaped for reading.
    pub path: String,
    /// `missing`, `extra`, `kind`, `content`, `metadata` or `unreadable`.
    pub what: String,
}

impl Verified {
    /// Whether the live tree is what its manifest says.
    pub fn is_whole(&self) -> bool {
        self.drifted == 0 || self.healed
    }
}

/// What maintenance leaves to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Maintenance {
    /// When there will be more to do; `None`: after the next activation.
    pub again: Option<Duration>,
    /// What a person should know: local changes that were found.
    pub trouble: Option<String>,
    /// The live tree was looked through, and is what was activated: earlier trouble is over.
    pub whole: bool,
    /// Everything is to be re-hashed and healed: a file of the live tree is not what it was.
    pub verify: bool,
}

/// Why the worker did not do what it was told: what the retry code, the origin and a person need of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Failure {
    /// Decides what happens next; `None`: it was cancelled, which is no failure.
    pub retry: Option<RetryClass>,
    /// The chain of causes.
    pub reason: String,
}

impl Failure {
    /// Of an error, with its class.
    pub fn new(retry: RetryClass, error: &(dyn std::error::Error + 'static)) -> Self {
        Self { retry: Some(retry), reason: error_chain(error) }
    }

    /// Cancelled.
    pub fn superseded() -> Self {
        Self { retry: None, reason: "abandoned for a newer generation".into() }
    }
}

/// Why a staged tree is not live.
#[derive(Debug)]
pub struct NotActivated<S> {
    /// What went wrong.
    pub failure: Failure,
    /// The tree, where it is as good as before.
    pub staged: Option<S>,
}

/// What the worker is told.
#[derive(Debug)]
pub enum Command {
    /// Stage, and go on to activate if so told.
    Update {
        /// What is to be built.
        generation: Box<SignedGeneration>,
        /// The update that came with its announcement.
        inline: Option<Inline>,
        /// Go on without being told.
        activate: bool,
    },
    /// Activate what is staged.
    Activate,
    /// Do what can wait.
    Maintain,
    /// Re-hash everything.
    Verify,
}

/// What the worker tells.
#[derive(Debug)]
pub enum Report {
    /// On the way; may be lost.
    Progress(StageProgress),
    /// Staged, and going on to activate.
    Activating,
    /// The command is done; the worker is idle.
    Done(Outcome, Box<ReplicaState>),
}

/// How a command ended.
#[derive(Debug)]
pub enum Outcome {
    /// The tree is complete, and waits.
    Staged,
    /// It is live and durable.
    Activated,
    /// A step of what can wait is done.
    Maintained(Maintenance),
    /// Everything was re-hashed.
    Verified(Verified),
    /// Not done.
    Failed(Failure),
    /// Not activated, and still staged.
    Declined(Failure),
}

/// Ends what the worker is doing, where it may be ended.
#[derive(Debug, Clone, Default)]
pub struct Cancellation {
    flag: Arc<AtomicBool>,
    transfers: CancellationToken,
}

impl Cancellation {
    /// From now on.
    pub fn cancel(&self) {
        self.flag.store(true, Ordering::Relaxed);
        self.transfers.cancel();
    }

    /// Whether it was.
    pub fn is_cancelled(&self) -> bool {
        self.transfers.is_cancelled()
    }
}

/// The hooks around an activation.
#[derive(Debug, Clone, Default)]
pub struct Hooks {
    /// Has to succeed, or the old generation stays.
    pub before: Option<Hook>,
    /// Is run by a task of its own.
    pub after: Option<Arc<AfterHook>>,
}

impl Hooks {
    /// How the on-activate hook fares; `None`: none is set.
    pub fn state(&self) -> Option<HookState> {
        self.after.as_ref().map(|after| after.state().borrow().clone())
    }
}

/// Makes the source of one command, whose transfers end with the token.
pub type OpenSource = Box<dyn FnMut(CancellationToken) -> Box<dyn Source> + Send>;

/// The session's end of the worker.
pub(crate) struct Worker {
    commands: mpsc::Sender<(Command, Cancellation)>,
    pub(crate) reports: mpsc::Receiver<Report>,
    thread: JoinHandle<()>,
}

impl Worker {
    pub(crate) fn start<R: ReplicaWork>(
        replica: R,
        open_source: OpenSource,
        hooks: Hooks,
    ) -> std::io::Result<Self> {
        let (commands, inbox) = mpsc::channel(1);
        let (outbox, reports) = mpsc::channel(64);
        let bench = Bench::new(replica, open_source, hooks, outbox);
        let thread = thread::Builder::new().name("replica".into()).spawn(move || bench.run(inbox))?;
        Ok(Self { commands, reports, thread })
    }

    /// Hands over a command. The worker must be idle.
    pub(crate) fn start_command(&self, command: Command) -> Cancellation {
        let cancellation = Cancellation::default();
        if self.commands.try_send((command, cancellation.clone())).is_err() {
            tracing::error!("the replica's worker has ended");
        }
        cancellation
    }

    /// Ends the thread. The worker must be idle.
    pub(crate) async fn finish(self) {
        drop(self.commands);
        drop(self.reports);
        if tokio::task::spawn_blocking(move || self.thread.join()).await.is_err() {
            tracing::error!("the replica's worker was not waited for");
        }
    }
}

/// The thread's side: everything blocks.
pub struct Bench<R: ReplicaWork> {
    replica: R,
    staged: Option<R::Staged>,
    open_source: OpenSource,
    hooks: Hooks,
    /// The generation of an activation of which is not known yet whether it happened.
    doubtful: Option<u64>,
    /// When the last update was begun.
    began: Instant,
    /// A switch that the log is to tell of once its report is out: what was live before, and how long it took.
    switched: Option<(Option<SignedGeneration>, Duration)>,
    outbox: mpsc::Sender<Report>,
}

impl<R: ReplicaWork> Bench<R> {
    /// Works on `replica`; reports on the way go to `outbox`.
    pub fn new(replica: R, open_source: OpenSource, hooks: Hooks, outbox: mpsc::Sender<Report>) -> Self {
        Self {
            replica,
            staged: None,
            open_source,
            hooks,
            doubtful: None,
            began: Instant::now(),
            switched: None,
            outbox,
        }
    }

    /// The replica.
    pub fn replica(&self) -> &R {
        &self.replica
    }

    fn run(mut self, mut inbox: mpsc::Receiver<(Command, Cancellation)>) {
        while let Some((command, cancellation)) = inbox.blocking_recv() {
            let done = self.perform(command, &cancellation);
            if self.outbox.blocking_send(done).is_err() {
                break;
            }
            self.bound();
        }
        self.replica.end();
    }

    /// To be called after each [`Self::perform`], once its report is out.
    pub fn bound(&mut self) {
        if let Some((previous, took)) = self.switched.take() {
            self.log_switch(previous.as_ref(), took);
        }
        self.replica.bound();
    }

    fn log_switch(&self, previous: Option<&SignedGeneration>, took: Duration) {
        let Some(live) = self.replica.state().live else { return };
        let changes = self.replica.changes(previous, &live).map(|changes| format!("{changes}, "));
        let label = match live.generation().label.as_str() {
            "" => String::new(),
            label => format!(" ({})", one_line(label, LABEL_MAX_BYTES)),
        };
        let reached = match self.hooks.after {
            Some(_) => "switched, its on-activate hook is due",
            None => "live",
        };
        let (number, changes) = (live.number(), changes.unwrap_or_default());
        tracing::info!("generation {number}{label} is {reached}: {changes}{:.2} s", took.as_secs_f64());
    }

    /// Does what it is told; [`Report::Done`].
    pub fn perform(&mut self, command: Command, cancellation: &Cancellation) -> Report {
        self.protect();
        let outcome = self.execute(command, cancellation).unwrap_or_else(Outcome::Failed);
        let mut state = Box::new(self.replica.state());
        self.resolve_doubt(&state);
        state.hook = self.hooks.state();
        Report::Done(outcome, state)
    }

    /// Passes on which trees a web server may still serve. A hook that succeeds meanwhile only makes them fewer.
    fn protect(&mut self) {
        let Some(after) = &self.hooks.after else { return self.replica.protect(None) };
        let from = after.protected();
        self.replica.protect(from);
        // A run that has succeeded, not the mere absence of one that is due: without one nothing was invalidated.
        if let Some(generation) = after.take_success() {
            self.replica.hook_succeeded(generation);
        }
    }

    fn execute(&mut self, command: Command, cancellation: &Cancellation) -> Result<Outcome, Failure> {
        let shown = Display::new(if matches!(command, Command::Verify) { "verification" } else { "update" });
        let done = self.execute_shown(command, cancellation, &shown);
        if done.is_ok() {
            shown.finish();
        }
        done
    }

    fn execute_shown(
        &mut self,
        command: Command,
        cancellation: &Cancellation,
        shown: &Display,
    ) -> Result<Outcome, Failure> {
        let cancel = cancellation.flag.as_ref();
        let outbox = self.outbox.clone();
        let progress = move |progress| {
            shown.show(progress);
            // The next one tells more.
            let _ = outbox.try_send(Report::Progress(progress));
        };
        match command {
            Command::Update { generation, inline, activate } => {
                self.staged = None;
                self.began = Instant::now();
                if self.replica.state().live.is_none() {
                    let totals = generation.generation().root.totals;
                    tracing::info!(
                        generation = generation.number().get(),
                        files = totals.files,
                        bytes = totals.bytes,
                        "first sync"
                    );
                }
                let mut source = (self.open_source)(cancellation.transfers.clone());
                let staged = self.replica.stage(&generation, inline, source.as_mut(), &progress, cancel)?;
                if cancel.load(Ordering::Relaxed) {
                    return Err(Failure::superseded());
                }
                if !activate {
                    self.staged = Some(staged);
                    return Ok(Outcome::Staged);
                }
                let _ = self.outbox.blocking_send(Report::Activating);
                self.activate(staged)
            }
            Command::Activate => match self.staged.take() {
                Some(staged) => self.activate(staged),
                // Told to stage anew.
                None => Err(Failure { retry: Some(RetryClass::Retry), reason: "nothing is staged".into() }),
            },
            Command::Maintain => Ok(Outcome::Maintained(self.replica.maintain(cancel))),
            Command::Verify => {
                let mut source = (self.open_source)(cancellation.transfers.clone());
                let verified = self.replica.verify(source.as_mut(), &progress, cancel)?;
                if verified.healed {
                    self.run_hook_after_healing();
                }
                Ok(Outcome::Verified(verified))
            }
        }
    }

    fn run_hook_after_healing(&self) {
        let Some(after) = &self.hooks.after else { return };
        let noted = self.replica.note_healed(&mut |occasion, changed| after.note(occasion, changed));
        after.settle(noted.is_ok());
        if let Err(failure) = noted {
            tracing::warn!(
                error = failure.reason,
                "the on-activate hook is not run after healing: a web server may have cached what was wrong"
            );
        }
    }

    /// The hook of an activation that failed half way runs once recovery has finished it, and not where it took it back.
    fn resolve_doubt(&mut self, state: &ReplicaState) {
        if self.doubtful.is_some() && self.replica.is_settled() {
            let live = state.live.as_ref().map(|live| live.number().get());
            if let Some(after) = &self.hooks.after {
                after.settle(live == self.doubtful);
            }
            self.doubtful = None;
        }
    }

    fn activate(&mut self, staged: R::Staged) -> Result<Outcome, Failure> {
        let hooks = &self.hooks;
        let mut noted = None;
        let mut before = |occasion: Occasion, changed: &Changed<'_>| {
            noted = Some(occasion.generation);
            if let Some(hook) = &hooks.before {
                hook.run(&occasion, changed.all)?;
            }
            match &hooks.after {
                Some(after) => after.note(occasion, changed),
                None => Ok(()),
            }
        };
        let previous = self.replica.state().live;
        let activated = self.replica.activate(staged, &mut before);
        if activated.is_ok() {
            self.switched = Some((previous, self.began.elapsed()));
        }
        // Before the hook is run: the grace of what was live begins when it has succeeded.
        self.protect();
        self.doubtful = noted.filter(|_| activated.is_err() && !self.replica.is_settled());
        if let (Some(after), None) = (&self.hooks.after, self.doubtful) {
            after.settle(activated.is_ok());
        }
        match activated {
            Ok(()) => Ok(Outcome::Activated),
            Err(NotActivated { failure, staged: None }) => Err(failure),
            Err(NotActivated { failure, staged }) => {
                self.staged = staged;
                Ok(Outcome::Declined(failure))
            }
        }
    }
}

/// Progress for people: of work that takes longer than a moment only.
pub(crate) struct Display {
    action: &'static str,
    started: Instant,
    shown: Mutex<Option<Progress>>,
}

impl Display {
    const PATIENCE: Duration = Duration::from_secs(2);

    pub(crate) fn new(action: &'static str) -> Self {
        Self { action, started: Instant::now(), shown: Mutex::new(None) }
    }

    pub(crate) fn show(&self, now: StageProgress) {
        if self.started.elapsed() < Self::PATIENCE {
            return;
        }
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = shown.get_or_insert_with(|| Progress::start(self.action, None));
        let before = shown.snapshot();
        if now.files_total > 0 && before.total_bytes != Some(now.bytes_total) {
            shown.set_total(now.files_total, now.bytes_total);
        }
        shown.add_files(now.files_done.saturating_sub(before.files));
        shown.add_bytes(now.bytes_done.saturating_sub(before.bytes));
    }
}

impl Display {
    /// The work is complete. Dropped without this, it was interrupted.
    pub(crate) fn finish(&self) {
        if let Some(shown) = self.shown.lock().unwrap_or_else(PoisonError::into_inner).take() {
            shown.finish();
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Some(shown) = self.shown.lock().unwrap_or_else(PoisonError::into_inner).take() {
            shown.interrupt();
        }
    }
}
