//! The on-activate and the after-activate hook: notes that one is due, runs it until it succeeds, and shows
//! its state.

use std::fs::{self, File};
use std::io::{self, BufRead, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use syncd_shared::TreePath;
use syncd_shared::limits::REASON_MAX_BYTES;
use syncd_shared::text::{error_chain, one_line};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::error::HookError;
use super::pending::{self, Due, Pending, SLOT_PATHS, encode_pending, load, remove_slot_paths};
use super::run::Hook;
use super::success::remove;
use super::{Changed, HookName, Occasion, Paths, success};
use crate::backoff::Backoff;
use crate::hooks::paths::write_lines;

/// One run of the hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookRun {
    /// Generation for which it ran.
    pub generation: u64,
    /// Whether it has ended, and how.
    pub outcome: RunOutcome,
    /// Duration of the last run that ended, in milliseconds.
    pub duration_ms: u64,
    /// Reason why the last run failed: one line of bounded length, empty after a success.
    pub output: String,
    /// Number of runs for this generation since the agent started, including this one.
    pub attempt: u32,
}

/// Outcome of a [`HookRun`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunOutcome {
    /// The run has not ended.
    Running,
    /// The command exited with 0.
    Ok,
    /// The command failed, and will run again.
    Failed,
}

/// State of the hook.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HookState {
    /// Increases with every change: the state with the higher revision is newer.
    pub revision: u64,
    /// Generation that is switched but for which the hook has not succeeded. `None`: the switched generation
    /// is live.
    pub due: Option<u64>,
    /// Generation for which the hook last succeeded, if known. A web server may still serve it.
    pub succeeded: Option<u64>,
    /// The current run, or the last one.
    pub run: Option<HookRun>,
    /// The last run failed, or an earlier process left the hook due: the next run may fail as well.
    pub failing: bool,
}

/// A hook with its record of what is due. Shared by the worker, which notes activations, and the task that
/// runs the hook.
#[derive(Debug)]
pub struct DurableHook {
    pub(super) hook: Hook,
    record: PathBuf,
    notified: Notify,
    /// Held while the record is read, merged or removed, and while the state changes.
    inner: Mutex<Inner>,
    state: watch::Sender<HookState>,
    /// The hook that has to succeed first; `None`: none.
    first: Option<watch::Receiver<HookState>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The current activation: noted, but not settled.
    under_way: Option<UnderWay>,
    /// Whether the record describes an activation that succeeded in this process.
    witnessed: bool,
    /// Generation for which the hook has succeeded since the last call of [`DurableHook::take_success`].
    success: Option<u64>,
    /// Lowest generation that a web server may serve, if an earlier process left the hook due and nothing is
    /// live now.
    left: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct UnderWay {
    generation: u64,
    succeeded: Option<u64>,
}

impl DurableHook {
    /// Reads what an earlier process left due. `live` is the generation that is linked now.
    pub fn new(hook: Hook, live: Option<u64>) -> Self {
        let record = pending::record(&hook.state, hook.name);
        let mut inner = Inner::default();
        let state = match load(&record) {
            Ok(None) => HookState::default(),
            due => {
                let succeeded = due.ok().flatten().and_then(|due| due.pending.succeeded);
                inner.left = live.is_none().then_some(succeeded.unwrap_or(0));
                HookState { due: live, succeeded, failing: live.is_some(), ..HookState::default() }
            }
        };
        Self {
            record,
            hook,
            notified: Notify::new(),
            inner: Mutex::new(inner),
            state: watch::Sender::new(state),
            first: None,
        }
    }

    /// Runs only while nothing is due for the hook of this state.
    #[must_use]
    pub fn following(self, first: Option<watch::Receiver<HookState>>) -> Self {
        Self { first, ..self }
    }

    /// Whether a web server forgets by this hook what it has cached.
    fn ends_caches(&self) -> bool {
        self.hook.name == HookName::OnActivate
    }

    /// Whether nothing makes sure that the hook runs for `live`: it has not succeeded for it with its present
    /// command and is not due, or files were healed since.
    pub(crate) fn is_missing(&self, live: &Occasion) -> bool {
        let Hook { state, command, .. } = &self.hook;
        let is_due = self.state.borrow().due.is_some();
        success::is_doubted(state) || (!is_due && !success::has_succeeded(state, live, command))
    }

    /// The state of the hook, and its changes.
    pub fn state(&self) -> watch::Receiver<HookState> {
        self.state.subscribe()
    }

    /// Lowest generation that a web server may still serve besides the live one; `None`: none.
    pub fn protected(&self) -> Option<u64> {
        let inner = lock(&self.inner);
        let state = self.state.borrow();
        let under_way = inner.under_way.as_ref();
        if state.due.is_none() && under_way.is_none() {
            return inner.left;
        }
        // A web server only goes forward, so each of these numbers is a lower bound.
        Some(state.succeeded.max(under_way.and_then(|u| u.succeeded)).unwrap_or(0))
    }

    /// Takes the generation for which the hook has succeeded since the last call.
    pub fn take_success(&self) -> Option<u64> {
        lock(&self.inner).success.take()
    }

    /// Records that the hook is due, durably. Call it before the switch, and [`DurableHook::settle`] after
    /// that. An earlier activation stays due.
    pub fn note(&self, occasion: Occasion, changed: &Changed<'_>) -> Result<(), HookError> {
        let mut inner = lock(&self.inner);
        let mut before = self.load(&self.record)?;
        let succeeded = self.succeeded_before(&occasion);
        let pending = Pending { occasion: Occasion { tree: changed.tree.to_owned(), ..occasion }, succeeded };
        let mut noted = || {
            remove(&self.earlier())?;
            if before.is_some() {
                fs::hard_link(&self.record, self.earlier())?;
            }
            if self.ends_caches() {
                self.save_slot_paths(pending.occasion.generation, changed.slot)?;
            }
            self.save(&pending, changed.all, before.as_mut().map(|due| &mut due.lines as &mut dyn BufRead))
        };
        noted().map_err(|source| self.record_error(source))?;
        inner.under_way = Some(UnderWay { generation: pending.occasion.generation, succeeded });
        Ok(())
    }

    /// Generation for which the hook last succeeded, if known.
    fn succeeded_before(&self, occasion: &Occasion) -> Option<u64> {
        let state = self.state.borrow();
        let is_live = occasion.previous == Some(occasion.generation);
        match occasion.previous {
            _ if state.due.is_some() => state.succeeded,
            previous if !self.ends_caches() => previous,
            // It may never have succeeded for what is live: an agent without the hook has run meanwhile.
            _ if is_live && !success::is_doubted(&self.hook.state) => success::generation(&self.hook.state),
            previous => previous,
        }
    }

    /// Call it when the activation has ended: runs the hook, or forgets the activation if it failed.
    pub fn settle(&self, activated: bool) {
        let mut inner = lock(&self.inner);
        inner.witnessed |= activated;
        if let Some(under_way) = inner.under_way.take() {
            let settled = match activated {
                true => remove(&self.earlier()),
                false => self.restore_earlier(under_way.generation),
            };
            if let Err(error) = settled {
                // The hook then runs once more than needed, which is allowed.
                tracing::warn!(error = error_chain(&error), "{} record not restored", self.hook.name);
            }
            if activated {
                inner.left = None;
                self.change(|state| {
                    state.due = Some(under_way.generation);
                    // A run for an earlier generation may have succeeded meanwhile.
                    state.succeeded = state.succeeded.max(under_way.succeeded);
                });
            }
        }
        drop(inner);
        self.retry();
    }

    /// Forgets an activation that failed.
    fn restore_earlier(&self, generation: u64) -> io::Result<()> {
        if self.ends_caches() {
            remove(&self.slot_paths(generation))?;
        }
        match fs::rename(self.earlier(), &self.record) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => remove(&self.record),
            restored => restored,
        }
    }

    /// The live tree belongs to another generation from now on, and no file of it has changed. A due hook is
    /// due for that generation, with the paths that it is due for already.
    pub(crate) fn renamed(&self, occasion: &Occasion) {
        if self.state.borrow().due.is_some() {
            let nothing = |_: &mut dyn FnMut(&TreePath)| Ok(());
            let changed = Changed { all: &nothing, slot: &nothing, tree: &occasion.tree };
            match self.note(occasion.clone(), &changed) {
                Ok(()) => return self.settle(true),
                Err(error) => {
                    tracing::warn!(
                        error = error_chain(&error),
                        "the {} hook stays due as it was",
                        self.hook.name
                    );
                }
            }
            return;
        }
        let Hook { state, command, .. } = &self.hook;
        let _inner = lock(&self.inner);
        if self.ends_caches()
            && let Err(error) = success::rename(state, occasion, command)
        {
            tracing::warn!(error = error_chain(&error), "the on-activate hook runs again at the next start");
        }
        self.change(|state| {
            state.succeeded = state.succeeded.map(|_| occasion.generation);
            if let Some(run) = state.run.as_mut().filter(|run| run.outcome == RunOutcome::Ok) {
                run.generation = occasion.generation;
            }
        });
    }

    /// Runs a due hook now, without the pause after a failure.
    pub fn retry(&self) {
        self.notified.notify_one();
    }

    /// Runs the hook whenever it is due, until `stop`. `live` returns the actual live generation, because
    /// after a crash the record may describe an activation that never happened. Failures are retried and
    /// reported by [`DurableHook::state`].
    pub async fn serve(
        self: Arc<Self>,
        live: impl Fn() -> Option<Occasion> + Send + Sync + 'static,
        stop: CancellationToken,
    ) {
        let live = Arc::new(live);
        let mut first = self.first.clone();
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        loop {
            let (hook, occasion) = (self.clone(), live.clone());
            let outcome = tokio::task::spawn_blocking(move || hook.run_due(occasion())).await;
            let pause = match outcome {
                Ok(Ok(_)) => {
                    backoff.reset();
                    None
                }
                Ok(Err(error)) => {
                    tracing::warn!(
                        error = one_line(&error.brief(), REASON_MAX_BYTES),
                        "{} hook failed and will be retried",
                        self.hook.name
                    );
                    Some(backoff.pause())
                }
                Err(_) => Some(backoff.pause()),
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.notified.notified() => {}
                () = changed_or_never(&mut first) => {}
                () = pause_or_never(pause) => {}
            }
        }
    }

    /// Runs the hook if it is due. Returns whether it was.
    pub(super) fn run_due(&self, live: Option<Occasion>) -> Result<bool, HookError> {
        let linked = live.as_ref().map(|live| live.generation);
        let started = Instant::now();
        let (occasion, due) = match self.take_due(live) {
            Ok(Some(taken)) => taken,
            Ok(None) => return Ok(false),
            Err(error) => {
                let generation = self.state.borrow().due.or(linked);
                self.failed(generation.unwrap_or(0), started.elapsed(), &error);
                return Err(error);
            }
        };
        let generation = occasion.generation;
        self.started(generation);
        let started = Instant::now();
        let done = self.run_taken(&occasion, due, started);
        if let Err(error) = &done {
            self.failed(generation, started.elapsed(), error);
        }
        done.map(|()| true)
    }

    /// Takes what is due, with the activation to run for.
    fn take_due(&self, live: Option<Occasion>) -> Result<Option<(Occasion, Due)>, HookError> {
        let inner = lock(&self.inner);
        let is_early = self.first.as_ref().is_some_and(|first| first.borrow().due.is_some());
        if inner.under_way.is_some() || is_early {
            // The record belongs to a switch that has not happened yet, or the node is not live yet.
            return Ok(None);
        }
        let due = self.load(&self.record)?;
        let Some(due) = due else {
            // Nothing is due, or somebody has removed the record.
            if self.state.borrow().due.is_some() {
                self.change(|state| (state.due, state.failing) = (None, false));
            }
            return Ok(None);
        };
        let recorded = due.pending.occasion.clone();
        let occasion = match live {
            _ if inner.witnessed => Some(recorded),
            // A change of `--swap` moves the tree.
            Some(live) if live.generation == recorded.generation => {
                Some(Occasion { tree: live.tree, ..recorded })
            }
            live => live,
        };
        Ok(occasion.map(|occasion| (occasion, due)))
    }

    fn run_taken(&self, occasion: &Occasion, due: Due, started: Instant) -> Result<(), HookError> {
        let failed = |source| self.record_error(source);
        let lines = due.lines.into_inner();
        // Kept open so that no other record can get its inode number.
        let _held = lines.try_clone().map_err(failed)?;
        let (state, command) = (&self.hook.state, &self.hook.command);
        let before = success::Before::open(state);
        let slot_paths = match self.ends_caches() {
            true => Some(self.noted_slot_paths(occasion, &due.pending).map_err(failed)?),
            false => None,
        };
        let more = slot_paths.as_deref().map(|path| ("SYNCD_SLOT_PATHS", path));
        self.hook.run_with_input(occasion, lines, more, &CancellationToken::new())?;
        let elapsed = started.elapsed();
        let mut inner = lock(&self.inner);
        // An activation noted during the run stays due with all its paths, so that the hook runs at least
        // once.
        if self.ends_caches()
            && let Err(error) = success::keep(state, &before, occasion, command)
        {
            tracing::warn!(error = error_chain(&error), "the on-activate hook runs again at the next start");
        }
        let told = if inner.under_way.is_some() { self.earlier() } else { self.record.clone() };
        let is_newest = match self.load(&told)? {
            Some(now) if now.id == due.id => {
                remove(&told).map_err(failed)?;
                if self.ends_caches() {
                    let under_way = inner.under_way.as_ref().map(|under_way| under_way.generation);
                    remove_slot_paths(&self.hook.state, under_way).map_err(failed)?;
                }
                true
            }
            other => other.is_none(),
        };
        inner.success = Some(occasion.generation);
        self.change(|state| {
            if is_newest {
                state.due = None;
            }
            state.succeeded = Some(occasion.generation);
            state.failing = false;
            if let Some(run) = &mut state.run {
                (run.outcome, run.duration_ms) = (RunOutcome::Ok, milliseconds(elapsed));
                run.output.clear();
            }
        });
        let (number, took, name) = (occasion.generation, elapsed.as_secs_f64(), self.hook.name);
        tracing::info!("generation {number} is live: the {name} hook succeeded after {took:.2} s");
        Ok(())
    }

    /// The file with the paths of the live slot's caches; an empty one means every path.
    fn noted_slot_paths(&self, occasion: &Occasion, pending: &Pending) -> io::Result<PathBuf> {
        let noted = self.slot_paths(occasion.generation);
        // If nobody noted this activation at this path, every path may have changed.
        let is_noted = pending.occasion.tree == occasion.tree && noted.try_exists()?;
        Ok(if is_noted { noted } else { PathBuf::from("/dev/null") })
    }

    /// Notes that a run begins. The result of the last run stays until this one ends.
    pub(super) fn started(&self, generation: u64) {
        let _inner = lock(&self.inner);
        self.change(|state| {
            let again = state.run.take().filter(|run| run.generation == generation);
            let attempt = again.as_ref().map_or(0, |run| run.attempt).saturating_add(1);
            let (duration_ms, output) = again.map(|run| (run.duration_ms, run.output)).unwrap_or_default();
            let outcome = RunOutcome::Running;
            state.run = Some(HookRun { generation, outcome, duration_ms, output, attempt });
        });
    }

    pub(super) fn failed(&self, generation: u64, elapsed: Duration, error: &HookError) {
        let _inner = lock(&self.inner);
        self.change(|state| {
            let attempt = state.run.as_ref().filter(|run| run.generation == generation);
            state.run = Some(HookRun {
                generation,
                outcome: RunOutcome::Failed,
                duration_ms: milliseconds(elapsed),
                output: one_line(&error.brief(), REASON_MAX_BYTES),
                attempt: attempt.map_or(1, |run| run.attempt),
            });
            state.failing = true;
        });
    }

    /// Changes the state. The caller holds the lock of `inner`.
    fn change(&self, change: impl FnOnce(&mut HookState)) {
        self.state.send_modify(|state| {
            state.revision += 1;
            change(state);
        });
    }

    pub(super) fn slot_paths(&self, generation: u64) -> PathBuf {
        self.hook.state.join(format!("{SLOT_PATHS}{generation}"))
    }

    /// Saves the paths durably. The file's name becomes durable with the record's.
    fn save_slot_paths(&self, generation: u64, paths: &Paths<'_>) -> io::Result<()> {
        let mut out = BufWriter::new(File::create(self.slot_paths(generation))?);
        let mut written = Ok(());
        paths(&mut |path| {
            if written.is_ok() {
                written = out.write_all(path.as_bytes()).and_then(|()| out.write_all(b"\0"));
            }
        })?;
        written?;
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    }

    pub(super) fn earlier(&self) -> PathBuf {
        self.record.with_extension("earlier")
    }

    /// Replaces the record durably, with its name.
    fn save(
        &self,
        pending: &Pending,
        paths: &Paths<'_>,
        earlier: Option<&mut dyn BufRead>,
    ) -> io::Result<()> {
        let temporary = self.record.with_extension("tmp");
        let mut out = BufWriter::new(File::create(&temporary)?);
        out.write_all(&encode_pending(pending)?)?;
        write_lines(&mut out, paths, earlier)?;
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&temporary, &self.record)?;
        File::open(self.record.parent().unwrap_or(Path::new(".")))?.sync_all()
    }

    pub(super) fn load(&self, record: &Path) -> Result<Option<Due>, HookError> {
        load(record).map_err(|source| HookError::Unreadable {
            hook: self.hook.name,
            path: record.to_owned(),
            source,
        })
    }

    fn record_error(&self, source: io::Error) -> HookError {
        HookError::Record { hook: self.hook.name, path: self.record.clone(), source }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn milliseconds(elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

/// Waits for a change of another hook's state. Cancel safe.
async fn changed_or_never(first: &mut Option<watch::Receiver<HookState>>) {
    if let Some(first) = first
        && first.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

async fn pause_or_never(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}
