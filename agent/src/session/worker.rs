//! Runs the only thread that touches the replica. Staging, activation, maintenance and verification block it.
//! The session hands over one command at a time and keeps answering the origin.

mod display;
mod work;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use syncd_proto::v1::RetryClass;
use syncd_shared::limits::LABEL_MAX_BYTES;
use syncd_shared::text::{error_chain, one_line};
use syncd_shared::{Progress, SignedGeneration};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::hooks::{Changed, DurableHook, Hook, HookError, HookState, Occasion};
use crate::source::{Elsewhere, Source};

pub(crate) use self::display::Display;
pub use self::work::{
    BeforeSwitch, Changes, DRIFT_SHOWN_MAX, Decision, Drifted, Failure, Inline, Maintenance, NotActivated,
    ReplicaState, ReplicaWork, Verified,
};

/// Command for the worker.
#[derive(Debug, Clone)]
pub enum Command {
    /// Stage a generation, and activate it if `activate` is set.
    Update {
        /// Generation to build.
        generation: Box<SignedGeneration>,
        /// Update that came with the announcement.
        inline: Option<Inline>,
        /// Places outside the origin that may have it.
        locations: Vec<String>,
        /// Activate without a further command.
        activate: bool,
    },
    /// Activate the staged tree.
    Activate,
    /// Go back to a held generation. The hook before an activation is not asked.
    Return(Box<SignedGeneration>),
    /// Record a decision.
    Decide(Decision),
    /// Do a step of maintenance.
    Maintain,
    /// Hash everything again.
    Verify,
}

/// Report of the worker.
#[derive(Debug)]
pub enum Report {
    /// Progress of a command; may be lost.
    Progress(Progress),
    /// The tree is staged and is now being activated.
    Activating,
    /// The command ended; the worker is idle.
    Done(Outcome, Box<ReplicaState>),
}

/// Result of a command.
#[derive(Debug)]
pub enum Outcome {
    /// The tree is complete and waits.
    Staged,
    /// The tree is live and durable.
    Activated,
    /// The decision is durable.
    Decided,
    /// A step of maintenance is done.
    Maintained(Maintenance),
    /// Everything was hashed again.
    Verified(Verified),
    /// The command failed.
    Failed(Failure),
    /// The activation was refused; the tree is still staged.
    Declined(Failure),
}

/// Cancels the worker's command, unless it is activating.
#[derive(Debug, Clone, Default)]
pub struct Cancellation {
    flag: Arc<AtomicBool>,
    transfers: CancellationToken,
}

impl Cancellation {
    pub fn cancel(&self) {
        self.flag.store(true, Ordering::Relaxed);
        self.transfers.cancel();
    }

    #[cfg(feature = "testing")]
    pub fn is_cancelled(&self) -> bool {
        self.transfers.is_cancelled()
    }
}

#[derive(Debug, Clone, Default)]
pub struct Hooks {
    /// Must succeed, or the old generation stays.
    pub before: Option<Hook>,
    /// Must succeed, or the new generation is not live. Runs in a task of its own.
    pub on: Option<Arc<DurableHook>>,
    /// Runs once the generation is live, in a task of its own.
    pub after: Option<Arc<DurableHook>>,
}

impl Hooks {
    /// Has the on-activate hook run for the live generation where it was set or changed since it last
    /// succeeded, or files were healed since.
    pub(crate) fn run_missing(&self, replica: &impl ReplicaWork) {
        let Some(on) = &self.on else { return };
        let mut is_noted = false;
        let noted = replica.note_live(&mut |occasion, changed| {
            if !on.is_missing(&occasion) {
                return Ok(());
            }
            is_noted = true;
            let generation = occasion.generation;
            tracing::info!(generation, "the on-activate hook runs again, for every path of the live tree");
            on.note(occasion, changed)
        });
        if is_noted {
            on.settle(noted.is_ok());
        }
        if let Err(failure) = noted {
            tracing::warn!(
                error = failure.reason,
                "the on-activate hook is not run for the live tree: a web server may have cached what was wrong"
            );
        }
    }

    /// State of the on-activate hook; `None`: none is set.
    pub fn state(&self) -> Option<HookState> {
        self.on.as_ref().map(|on| on.state().borrow().clone())
    }

    /// Notes an activation for the hooks that follow it. Only the failure of *on* prevents the switch.
    fn note(&self, occasion: Occasion, changed: &Changed<'_>) -> Result<(), HookError> {
        if let Some(after) = &self.after
            && let Err(error) = after.note(occasion.clone(), changed)
        {
            tracing::warn!(error = error_chain(&error), "the after-activate hook will not run");
        }
        self.on.as_ref().map_or(Ok(()), |on| on.note(occasion, changed))
    }

    /// The activation has ended.
    fn settle(&self, activated: bool) {
        // *After* waits for what is due for *on*.
        [&self.on, &self.after].into_iter().flatten().for_each(|hook| hook.settle(activated));
    }

    /// The live tree belongs to another generation from now on.
    fn renamed(&self, occasion: &Occasion) {
        [&self.on, &self.after].into_iter().flatten().for_each(|hook| hook.renamed(occasion));
    }
}

/// Opens the source for one command. Cancelling the token ends its transfers.
pub type OpenSource = Box<dyn FnMut(Option<Elsewhere<'_>>, CancellationToken) -> Box<dyn Source> + Send>;

/// The session's handle to the worker thread.
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

/// The worker thread's state. Every method blocks.
pub struct Bench<R: ReplicaWork> {
    replica: R,
    staged: Option<R::Staged>,
    open_source: OpenSource,
    hooks: Hooks,
    /// Generation of an activation whose result is not yet known.
    doubtful: Option<u64>,
    /// Start of the last update.
    began: Instant,
    /// A switch to be logged once its report is sent: the former generation, and the duration.
    switched: Option<(Option<SignedGeneration>, Duration)>,
    outbox: mpsc::Sender<Report>,
}

impl<R: ReplicaWork> Bench<R> {
    /// Works on `replica` and sends progress to `outbox`.
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

    #[cfg(feature = "testing")]
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

    /// Does what can follow a report. Call it after each [`Self::perform`], once the report is sent.
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
        let reached = match self.hooks.on {
            Some(_) => "switched, its on-activate hook is due",
            None => "live",
        };
        let (number, changes) = (live.number(), changes.unwrap_or_default());
        tracing::info!("generation {number}{label} is {reached}: {changes}{:.2} s", took.as_secs_f64());
    }

    /// Executes a command and returns [`Report::Done`].
    pub fn perform(&mut self, command: Command, cancellation: &Cancellation) -> Report {
        self.protect();
        let outcome = self.execute(command, cancellation).unwrap_or_else(Outcome::Failed);
        let mut state = Box::new(self.replica.state());
        self.resolve_doubt(&state);
        state.hook = self.hooks.state();
        Report::Done(outcome, state)
    }

    /// Tells the replica which trees a web server may still serve. A success of the hook meanwhile only
    /// reduces their number.
    fn protect(&mut self) {
        let Some(on) = &self.hooks.on else { return self.replica.protect(None) };
        let from = on.protected();
        self.replica.protect(from);
        // Only a run that succeeded counts. Without a run nothing was invalidated, even if none is due.
        if let Some(generation) = on.take_success() {
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
            // Progress may be lost: the next report supersedes it.
            let _ = outbox.try_send(Report::Progress(progress));
        };
        match command {
            Command::Update { generation, inline, locations, activate } => {
                self.staged = None;
                self.began = Instant::now();
                if self.replica.state().live.is_none() {
                    log_first_sync(&generation);
                }
                let elsewhere = Elsewhere { locations: &locations, generation: &generation };
                let mut source = (self.open_source)(Some(elsewhere), cancellation.transfers.clone());
                let staged = self.replica.stage(&generation, inline, source.as_mut(), &progress, cancel)?;
                if cancel.load(Ordering::Relaxed) {
                    return Err(Failure::superseded());
                }
                if !activate {
                    self.staged = Some(staged);
                    return Ok(Outcome::Staged);
                }
                let _ = self.outbox.blocking_send(Report::Activating);
                self.activate(staged, self.hooks.before.clone())
            }
            Command::Return(generation) => {
                self.staged = None;
                self.began = Instant::now();
                let mut source = (self.open_source)(None, cancellation.transfers.clone());
                let staged = self.replica.stage_return(&generation, source.as_mut(), &progress, cancel)?;
                let _ = self.outbox.blocking_send(Report::Activating);
                self.activate(staged, None)
            }
            Command::Decide(decision) => self.replica.decide(decision).map(|()| Outcome::Decided),
            Command::Activate => match self.staged.take() {
                Some(staged) => self.activate(staged, self.hooks.before.clone()),
                // The origin's next command stages anew.
                None => Err(Failure { retry: Some(RetryClass::Retry), reason: "nothing is staged".into() }),
            },
            Command::Maintain => Ok(Outcome::Maintained(self.replica.maintain(cancel))),
            Command::Verify => {
                let mut source = (self.open_source)(None, cancellation.transfers.clone());
                let verified = self.replica.verify(source.as_mut(), &progress, cancel);
                // It may have healed files before it failed.
                self.hooks.run_missing(&self.replica);
                Ok(Outcome::Verified(verified?))
            }
        }
    }

    /// Settles the hook of an activation that failed half way: it runs if recovery finished the activation,
    /// and is dropped if recovery undid it.
    fn resolve_doubt(&mut self, state: &ReplicaState) {
        if self.doubtful.is_some() && self.replica.is_settled() {
            let live = state.live.as_ref().map(|live| live.number().get());
            self.hooks.settle(live == self.doubtful);
            self.doubtful = None;
        }
    }

    /// The live tree has another number than before, or the same: no hook was noted for it.
    fn renamed(&self) {
        if self.hooks.on.is_none() && self.hooks.after.is_none() {
            return;
        }
        let told = self.replica.note_live(&mut |occasion, _| {
            self.hooks.renamed(&occasion);
            Ok(())
        });
        if let Err(error) = told {
            tracing::warn!(error = error.reason, "the hooks were not told of the live generation");
        }
    }

    /// Makes a staged tree live. `first`: the hook that may refuse it.
    fn activate(&mut self, staged: R::Staged, first: Option<Hook>) -> Result<Outcome, Failure> {
        let hooks = &self.hooks;
        let mut noted = None;
        let mut before = |occasion: Occasion, changed: &Changed<'_>| {
            noted = Some(occasion.generation);
            if let Some(hook) = &first {
                hook.run(&occasion, changed.all)?;
            }
            hooks.note(occasion, changed)
        };
        let previous = self.replica.state().live;
        let activated = self.replica.activate(staged, &mut before);
        if activated.is_ok() {
            self.switched = Some((previous, self.began.elapsed()));
        }
        // Called before the hook runs, because the grace period of the former trees begins when it has
        // succeeded.
        self.protect();
        self.doubtful = noted.filter(|_| activated.is_err() && !self.replica.is_settled());
        if self.doubtful.is_none() {
            self.hooks.settle(activated.is_ok());
            if activated.is_ok() && noted.is_none() {
                self.renamed();
            }
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

fn log_first_sync(generation: &SignedGeneration) {
    let totals = generation.generation().root.totals;
    tracing::info!(
        generation = generation.number().get(),
        files = totals.files,
        bytes = totals.bytes,
        "first sync"
    );
}
