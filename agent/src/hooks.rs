//! Runs the operator's commands around an activation.
//!
//! The commands come from the agent's own command line or configuration, never from the wire. `sh -c` runs
//! each in a process group of its own. At the time limit, everything that the command started is killed
//! ([`processes`]). Both hooks get the changed paths on standard input, one for each line, relative to the
//! tree. In a name, a newline is written as `\n` and a backslash as `\\`; every other byte is unchanged. The
//! environment describes the activation ([`Occasion`]). Other `SYNCD_` variables of the agent are not passed
//! on.
//!
//! *Before* runs while the old generation is live. If it fails, the old generation stays. *After* runs at
//! least once for every activation: what is due is written durably to `ROOT/state/on-activate.pending` before
//! the switch, and removed once the hook has succeeded. A crash in between leaves the file, and the next
//! start runs the hook. Activations whose hook failed are merged: the next run gets the paths of all of them.
//!
//! A node is *live* once *after* has succeeded. Until then a web server may still serve the generation for
//! which the hook last succeeded, or a later one. The trees of these generations are neither recycled nor
//! deleted ([`AfterHook::protected`]), also after a restart, because the record has their lowest number.
//! [`HookState`] describes the hook to the rest of the agent.
//!
//! A web server that caches files by their full path has to forget, in the live slot, what that slot's path
//! showed before. Those paths are in a separate file, `on-activate.slot-paths.N` for generation N, each
//! followed by a NUL. The file is empty if the paths are unknown, which means all of them. The hook finds the
//! file's name in `SYNCD_SLOT_PATHS`.
//!
//! `on-activate.pending` has one line of JSON (the [`Occasion`], and the generation for which the hook last
//! succeeded), then the changed paths in path order, in the format of standard input. `on-activate.earlier`
//! is the former content of that file while an activation is in progress. Standard input is a file, so the
//! paths are never all in memory. An agent that runs without the hook removes both files ([`forget`]).
//! `on-activate.succeeded` has the command with which the hook last succeeded ([`success`]).

#![cfg_attr(
    not(test),
    expect(
        clippy::disallowed_methods,
        reason = "the record of what a hook is still to be told, below ROOT/state"
    )
)]

mod paths;
mod processes;
mod success;

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use syncd_shared::limits::REASON_MAX_BYTES;
use syncd_shared::text::{error_chain, one_line};
use syncd_shared::{HookStatus, SignedGeneration, TreePath};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

pub(crate) use self::paths::write_lines;
use self::processes::Mark;
pub(crate) use self::success::doubt;
use crate::backoff::Backoff;

/// Default time limit of a hook.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of a hook's error output kept for the report.
const TAIL_BYTES: usize = 1024;
const PENDING: &str = "on-activate.pending";
/// Prefix of the files with paths that a slot's caches have to forget. The generation's number follows.
const SLOT_PATHS: &str = "on-activate.slot-paths.";
/// Temporary file with the paths for the hook before an activation.
const CHANGED: &str = "before-activate.paths";

/// Calls a function with every changed path once, in path order.
pub type Paths<'a> = dyn Fn(&mut dyn FnMut(&TreePath)) -> io::Result<()> + 'a;

/// The two hooks, named by their options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookName {
    /// `--before-activate`.
    BeforeActivate,
    /// `--on-activate`.
    OnActivate,
}

impl fmt::Display for HookName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BeforeActivate => "before-activate",
            Self::OnActivate => "on-activate",
        })
    }
}

/// Changes made by an activation.
pub struct Changed<'a> {
    /// Paths that differ from the live tree.
    pub all: &'a Paths<'a>,
    /// Paths of files and symlinks that differ from what the slot served since the hook last succeeded for
    /// it; none if that is unknown.
    pub slot: &'a Paths<'a>,
    /// Path of the tree once it is live.
    pub tree: &'a Path,
}

/// Reason why a hook failed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// The shell could not be started.
    #[error("can't start the {hook} hook")]
    Start {
        /// Name of the hook.
        hook: HookName,
        /// The cause.
        source: io::Error,
    },
    /// The changed paths could not be written.
    #[error("can't list the changed paths for the {hook} hook in {path}")]
    List {
        /// Name of the hook.
        hook: HookName,
        /// Path of the list.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The command ended with another exit code than 0.
    #[error("{hook} hook failed: {}", self.brief())]
    Failed {
        /// Name of the hook.
        hook: HookName,
        /// Exit code or signal.
        status: ExitStatus,
        /// End of the error output.
        output: String,
    },
    /// The command was killed at its time limit.
    #[error("{hook} hook failed: {}", self.brief())]
    TimedOut {
        /// Name of the hook.
        hook: HookName,
        /// The time limit.
        limit: Duration,
        /// End of the error output.
        output: String,
    },
    /// The record of what is due could not be written.
    #[error("can't record in {path} that the on-activate hook is due")]
    Record {
        /// Path of the record.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The record of what is due could not be read.
    #[error(
        "can't read {path}, which says what the on-activate hook is due for: remove the file and run the hook's \
         command by hand; the next activation runs it again"
    )]
    Unreadable {
        /// Path of the record.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

fn separator(output: &str) -> &'static str {
    if output.is_empty() { "" } else { ": " }
}

impl HookError {
    /// Describes the failure on one line without the hook's name: exit code or signal, and the end of the
    /// error output.
    fn brief(&self) -> String {
        match self {
            Self::Failed { status, output, .. } => format!("{status}{}{output}", separator(output)),
            Self::TimedOut { limit, output, .. } => {
                format!("killed after {} s{}{output}", limit.as_secs(), separator(output))
            }
            other => error_chain(other),
        }
    }
}

/// The activation for which a hook runs. Passed in its environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Occasion {
    /// `SYNCD_GENERATION`.
    pub generation: u64,
    /// `SYNCD_ROOT_HASH`, hexadecimal. (`SYNCD_ROOT` is ROOT everywhere.)
    pub root: String,
    /// `SYNCD_LABEL`; may be empty.
    pub label: String,
    /// `SYNCD_PREVIOUS`: the generation that was live before; empty if none was.
    pub previous: Option<u64>,
    /// `SYNCD_TREE`: path of the tree, also before the switch.
    pub tree: PathBuf,
    /// `SYNCD_LIVE`: path that the web server reads.
    pub live: PathBuf,
}

impl Occasion {
    /// Describes the activation of `generation`, whose tree is at `tree`.
    pub fn of(generation: &SignedGeneration, previous: Option<u64>, tree: PathBuf, live: PathBuf) -> Self {
        Self {
            generation: generation.number().get(),
            root: generation.root_hash().to_string(),
            label: generation.generation().label.clone(),
            previous,
            tree,
            live,
        }
    }

    /// ROOT.
    fn directory(&self) -> &Path {
        self.live.parent().unwrap_or(Path::new("/"))
    }

    fn environment(&self) -> [(&'static str, OsString); 7] {
        let previous = self.previous.map(|number| number.to_string()).unwrap_or_default();
        [
            ("SYNCD_GENERATION", self.generation.to_string().into()),
            ("SYNCD_ROOT_HASH", self.root.clone().into()),
            ("SYNCD_ROOT", self.directory().into()),
            ("SYNCD_LABEL", self.label.clone().into()),
            ("SYNCD_PREVIOUS", previous.into()),
            ("SYNCD_TREE", self.tree.clone().into_os_string()),
            ("SYNCD_LIVE", self.live.clone().into_os_string()),
        ]
    }
}

/// One hook with its command.
#[derive(Debug, Clone)]
pub struct Hook {
    name: HookName,
    command: String,
    timeout: Duration,
    /// `ROOT/state`.
    state: PathBuf,
}

impl Hook {
    /// Creates a hook whose `command` is given to `sh -c`. `state` is `ROOT/state`.
    pub fn new(name: HookName, command: String, timeout: Duration, state: &Path) -> Self {
        Self { name, command, timeout, state: state.to_path_buf() }
    }

    /// Runs the hook and waits for it. Blocks until the time limit at most.
    pub fn run(&self, occasion: &Occasion, paths: &Paths<'_>) -> Result<(), HookError> {
        let path = self.state.join(CHANGED);
        let listed = || {
            let mut out = BufWriter::new(
                File::options().read(true).write(true).create(true).truncate(true).open(&path)?,
            );
            // The file stays until the last process closes it.
            fs::remove_file(&path)?;
            write_lines(&mut out, paths, None)?;
            let mut file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.rewind()?;
            Ok(file)
        };
        let hook = self.name;
        let input = listed().map_err(|source| HookError::List { hook, path: path.clone(), source })?;
        self.run_with_input(occasion, input, None)
    }

    /// Reads `input` from its current position.
    fn run_with_input(
        &self,
        occasion: &Occasion,
        input: File,
        slot_paths: Option<&Path>,
    ) -> Result<(), HookError> {
        let hook = self.name;
        let failed = |source| HookError::Start { hook, source };
        let mark = Mark::new();
        let mut command = Command::new("sh");
        for name in processes::withheld(std::env::vars_os().map(|(name, _)| name)) {
            command.env_remove(name);
        }
        let (output, end) = io::pipe().map_err(failed)?;
        let child = command
            .arg("-c")
            .arg(&self.command)
            .envs(occasion.environment())
            .envs(slot_paths.map(|path| ("SYNCD_SLOT_PATHS", path)))
            .env(processes::VARIABLE, mark.value())
            .current_dir("/")
            .stdin(input)
            .stdout(end.try_clone().map_err(failed)?)
            .stderr(end)
            .process_group(0)
            .spawn();
        // With it go this process's own ends of the pipe, or its end would never be reached.
        drop(command);
        let mut child = child.map_err(failed)?;
        let output = Output::of(output);
        match wait(&mut child, self.timeout, &mark).map_err(failed)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(HookError::Failed { hook, status, output: output.tail() }),
            None => Err(HookError::TimedOut { hook, limit: self.timeout, output: output.tail() }),
        }
    }
}

/// Collects the end of a hook's standard and error output. A separate thread reads it, because children of
/// the hook may keep the pipe open. All of it also goes to the agent's own error output, and so to the
/// journal.
struct Output {
    tail: Arc<Mutex<Vec<u8>>>,
    closed: mpsc::Receiver<()>,
}

impl Output {
    fn of(mut output: io::PipeReader) -> Self {
        let tail = Arc::new(Mutex::new(Vec::new()));
        let (sender, closed) = mpsc::sync_channel(1);
        let kept = tail.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut buffer) {
                // The hook continues even if nobody reads the agent's log.
                let _ = io::stderr().write_all(&buffer[..length]);
                let mut tail = lock(&kept);
                tail.extend_from_slice(&buffer[..length]);
                let excess = tail.len().saturating_sub(TAIL_BYTES);
                tail.drain(..excess);
            }
            let _ = sender.send(());
        });
        Self { tail, closed }
    }

    fn tail(&self) -> String {
        // Output of a child that is still running is not waited for.
        let _ = self.closed.recv_timeout(Duration::from_millis(200));
        one_line(String::from_utf8_lossy(&lock(&self.tail)).trim(), REASON_MAX_BYTES)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for the hook. `None`: the limit passed, and everything that carries its `mark` was killed.
fn wait(child: &mut Child, limit: Duration, mark: &Mark) -> io::Result<Option<ExitStatus>> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if started.elapsed() >= limit {
            if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                // The leader is not reaped yet, so no other process can have its id.
                let _ = kill_process_group(group, Signal::KILL);
                mark.kill_all(group);
            }
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// One run of the on-activate hook.
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

/// State of the on-activate hook.
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

/// The on-activate hook with its record of what is due. Shared by the worker, which notes activations, and
/// the task that runs the hook.
#[derive(Debug)]
pub struct AfterHook {
    hook: Hook,
    record: PathBuf,
    notified: Notify,
    /// Held while the record is read, merged or removed, and while the state changes.
    inner: Mutex<Inner>,
    state: watch::Sender<HookState>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The current activation: noted, but not settled.
    under_way: Option<UnderWay>,
    /// Whether the record describes an activation that succeeded in this process.
    witnessed: bool,
    /// Generation for which the hook has succeeded since the last call of [`AfterHook::take_success`].
    success: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct UnderWay {
    generation: u64,
    succeeded: Option<u64>,
}

/// A hook that is due.
#[derive(Debug)]
struct Due {
    pending: Pending,
    /// Positioned at the first line.
    lines: BufReader<File>,
    /// Device and inode of the record.
    id: (u64, u64),
}

/// First line of a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pending {
    #[serde(flatten)]
    pub occasion: Occasion,
    /// Generation for which the hook last succeeded; `None`: none is known.
    pub succeeded: Option<u64>,
}

/// Parses the first line of a record. The lines after it are paths.
pub(crate) fn decode_pending(line: &[u8]) -> serde_json::Result<Pending> {
    serde_json::from_slice(line)
}

pub(crate) fn encode_pending(pending: &Pending) -> serde_json::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(pending)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Lowest generation that a web server may still serve, as recorded in `state` (`ROOT/state`); `None`: no
/// hook is due. An unreadable record protects everything.
pub(crate) fn protected(state: &Path) -> Option<u64> {
    match load(&state.join(PENDING)) {
        Ok(due) => due.map(|due| due.pending.succeeded.unwrap_or(0)),
        Err(error) => {
            tracing::warn!(error = error_chain(&error), "the record of the on-activate hook can't be read");
            Some(0)
        }
    }
}

/// Status of the hook that an earlier process left due in `state` (`ROOT/state`), for the live generation.
pub(crate) fn left_due(state: &Path, live: Option<u64>) -> Option<HookStatus> {
    let succeeded = match protected(state) {
        None if success::is_doubted(state) => live,
        protected => Some(protected?).filter(|succeeded| *succeeded > 0),
    };
    Some(HookStatus::due(live?, succeeded))
}

/// Drops what is due in `state` (`ROOT/state`), because the agent runs without the hook.
pub(crate) fn forget(state: &Path) -> io::Result<()> {
    let record = state.join(PENDING);
    if record.try_exists()? {
        tracing::info!("no --on-activate: the hook that was due is dropped");
    }
    remove(&record)?;
    remove(&record.with_extension("earlier"))?;
    success::forget(state)?;
    remove_slot_paths(state, None)
}

/// Removes the lists of paths for which no hook is due: all except the list of generation `but`.
fn remove_slot_paths(state: &Path, but: Option<u64>) -> io::Result<()> {
    for item in fs::read_dir(state)? {
        let name = item?.file_name();
        let of = name.to_str().and_then(|name| name.strip_prefix(SLOT_PATHS)).map(str::parse::<u64>);
        if of.is_some_and(|of| of.ok() != but) {
            remove(&state.join(name))?;
        }
    }
    Ok(())
}

impl AfterHook {
    /// Reads what an earlier process left due. `live` is the generation that is linked now.
    pub fn new(hook: Hook, live: Option<u64>) -> Self {
        let record = hook.state.join(PENDING);
        let state = match load(&record) {
            Ok(None) => HookState::default(),
            due => HookState {
                due: live,
                succeeded: due.ok().flatten().and_then(|due| due.pending.succeeded),
                failing: live.is_some(),
                ..HookState::default()
            },
        };
        Self {
            record,
            hook,
            notified: Notify::new(),
            inner: Mutex::default(),
            state: watch::Sender::new(state),
        }
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
            return None;
        }
        // A web server only goes forward, so each of these numbers is a lower bound.
        Some(state.succeeded.max(under_way.and_then(|u| u.succeeded)).unwrap_or(0))
    }

    /// Takes the generation for which the hook has succeeded since the last call.
    pub fn take_success(&self) -> Option<u64> {
        lock(&self.inner).success.take()
    }

    /// Records that the hook is due, durably. Call it before the switch, and [`AfterHook::settle`] after it.
    /// An earlier activation stays due.
    pub fn note(&self, occasion: Occasion, changed: &Changed<'_>) -> Result<(), HookError> {
        let mut inner = lock(&self.inner);
        let mut before = self.load(&self.record)?;
        let succeeded = {
            let state = self.state.borrow();
            // If nothing is due, the hook has succeeded for the live generation, or was not set at that time.
            if state.due.is_some() { state.succeeded } else { occasion.previous }
        };
        let pending = Pending { occasion: Occasion { tree: changed.tree.to_owned(), ..occasion }, succeeded };
        let mut noted = || {
            remove(&self.earlier())?;
            if before.is_some() {
                fs::hard_link(&self.record, self.earlier())?;
            }
            self.save_slot_paths(pending.occasion.generation, changed.slot)?;
            self.save(&pending, changed.all, before.as_mut().map(|due| &mut due.lines as &mut dyn BufRead))
        };
        noted().map_err(|source| self.record_error(source))?;
        inner.under_way = Some(UnderWay { generation: pending.occasion.generation, succeeded });
        Ok(())
    }

    /// Call it when the activation has ended: runs the hook, or forgets the activation if it failed.
    pub fn settle(&self, activated: bool) {
        let mut inner = lock(&self.inner);
        inner.witnessed |= activated;
        if let Some(under_way) = inner.under_way.take() {
            let settled = match activated {
                true => remove(&self.earlier()),
                false => match remove(&self.slot_paths(under_way.generation))
                    .and_then(|()| fs::rename(self.earlier(), &self.record))
                {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => remove(&self.record),
                    restored => restored,
                },
            };
            if let Err(error) = settled {
                // The hook then runs once more than needed, which is allowed.
                tracing::warn!(error = error_chain(&error), "on-activate record not restored");
            }
            if activated {
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

    /// Runs a due hook now, without the pause after a failure.
    pub fn retry(&self) {
        self.notified.notify_one();
    }

    /// Runs the hook whenever it is due, until `stop`. `live` returns the actual live generation, because
    /// after a crash the record may describe an activation that never happened. Failures are retried and
    /// reported by [`AfterHook::state`].
    pub async fn serve(
        self: Arc<Self>,
        live: impl Fn() -> Option<Occasion> + Send + Sync + 'static,
        stop: CancellationToken,
    ) {
        let live = Arc::new(live);
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
                        "on-activate hook failed and will be retried"
                    );
                    Some(backoff.pause())
                }
                Err(_) => Some(backoff.pause()),
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.notified.notified() => {}
                () = pause_or_never(pause) => {}
            }
        }
    }

    /// Runs the hook if it is due. Returns whether it was.
    fn run_due(&self, live: Option<Occasion>) -> Result<bool, HookError> {
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
        if inner.under_way.is_some() {
            // The record belongs to a switch that has not happened yet.
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
            Some(live) if live.generation == recorded.generation => Some(recorded),
            live => live,
        };
        Ok(occasion.map(|occasion| (occasion, due)))
    }

    fn run_taken(&self, occasion: &Occasion, due: Due, started: Instant) -> Result<(), HookError> {
        let failed = |source| self.record_error(source);
        let lines = due.lines.into_inner();
        // Kept open so that no other record can get its inode number.
        let _held = lines.try_clone().map_err(failed)?;
        let mut slot_paths = self.slot_paths(occasion.generation);
        if !slot_paths.try_exists().map_err(failed)? {
            // Nobody noted this activation, so every path may have changed.
            slot_paths = PathBuf::from("/dev/null");
        }
        let (state, command) = (&self.hook.state, &self.hook.command);
        let before = success::Before::open(state);
        self.hook.run_with_input(occasion, lines, Some(&slot_paths))?;
        let elapsed = started.elapsed();
        let mut inner = lock(&self.inner);
        // An activation noted during the run stays due with all its paths, so that the hook runs at least
        // once.
        if let Err(error) = success::keep(state, &before, occasion, command) {
            tracing::warn!(error = error_chain(&error), "the on-activate hook runs again at the next start");
        }
        let told = if inner.under_way.is_some() { self.earlier() } else { self.record.clone() };
        let is_newest = match self.load(&told)? {
            Some(now) if now.id == due.id => {
                remove(&told).map_err(failed)?;
                let under_way = inner.under_way.as_ref().map(|under_way| under_way.generation);
                remove_slot_paths(&self.hook.state, under_way).map_err(failed)?;
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
        let (number, took) = (occasion.generation, elapsed.as_secs_f64());
        tracing::info!("generation {number} is live: the on-activate hook succeeded after {took:.2} s");
        Ok(())
    }

    /// Notes that a run begins. The result of the last run stays until this one ends.
    fn started(&self, generation: u64) {
        let _inner = lock(&self.inner);
        self.change(|state| {
            let again = state.run.take().filter(|run| run.generation == generation);
            let attempt = again.as_ref().map_or(0, |run| run.attempt).saturating_add(1);
            let (duration_ms, output) = again.map(|run| (run.duration_ms, run.output)).unwrap_or_default();
            let outcome = RunOutcome::Running;
            state.run = Some(HookRun { generation, outcome, duration_ms, output, attempt });
        });
    }

    fn failed(&self, generation: u64, elapsed: Duration, error: &HookError) {
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

    fn slot_paths(&self, generation: u64) -> PathBuf {
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

    fn earlier(&self) -> PathBuf {
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

    fn load(&self, record: &Path) -> Result<Option<Due>, HookError> {
        load(record).map_err(|source| HookError::Unreadable { path: record.to_owned(), source })
    }

    fn record_error(&self, source: io::Error) -> HookError {
        HookError::Record { path: self.record.clone(), source }
    }
}

fn load(record: &Path) -> io::Result<Option<Due>> {
    let file = match File::open(record) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let stat = file.metadata()?;
    let mut lines = BufReader::new(file);
    let mut first = Vec::new();
    lines.read_until(b'\n', &mut first)?;
    let pending = decode_pending(&first)?;
    // The hook starts reading here, whatever was buffered.
    lines.seek(SeekFrom::Start(first.len() as u64))?;
    Ok(Some(Due { pending, lines, id: (stat.dev(), stat.ino()) }))
}

fn milliseconds(elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

async fn pause_or_never(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
