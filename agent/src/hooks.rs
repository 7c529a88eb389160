//! Commands that the operator has run around an activation.
//!
//! They come from the agent's own command line or configuration, never from the wire, and are run by `sh -c` in a
//! process group of their own, which is killed when the time is up. Both get the changed paths on standard input, one a
//! line, relative to the tree; in a name a newline is written `\n` and a backslash `\\`, every other byte as it is. The
//! environment tells the rest ([`Occasion`]).
//!
//! *Before* runs while the old generation is live; if it fails the old one stays. *After* runs at least once for every
//! activation: what is due is written durably to `ROOT/state/on-activate.pending` before the switch, and removed when
//! the hook succeeded. A crash in between leaves the file, and the next start runs the hook. Activations whose hook
//! failed are merged: the next run gets the paths of all of them.
//!
//! `on-activate.pending`: one line of JSON (the [`Occasion`]), then the changed paths as on standard input.

#![cfg_attr(
    not(test),
    expect(
        clippy::disallowed_methods,
        reason = "the record of what a hook is still to be told, below ROOT/state"
    )
)]

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use syncd_shared::{SignedGeneration, TreePath};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::reason;

/// How long a hook may take unless the operator says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of a hook's error output that are kept for the report.
const TAIL_BYTES: usize = 1024;
const PENDING: &str = "on-activate.pending";

/// Why a hook did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// No shell, no process.
    #[error("can't start the hook")]
    Start(#[source] io::Error),
    /// It ended, and not with 0.
    #[error("the hook failed ({status}){}{output}", separator(output))]
    Failed {
        /// Exit code or signal.
        status: ExitStatus,
        /// The end of its error output.
        output: String,
    },
    /// It was killed.
    #[error("the hook took longer than {} s and was killed{}{output}", limit.as_secs(), separator(output))]
    TimedOut {
        /// What it was given.
        limit: Duration,
        /// The end of its error output.
        output: String,
    },
    /// What is due could not be recorded.
    #[error("can't record in {path} that the on-activate hook is due")]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn separator(output: &str) -> &'static str {
    if output.is_empty() { "" } else { ": " }
}

/// The activation that a hook is run for; its environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Occasion {
    /// `SYNCD_GENERATION`.
    pub generation: u64,
    /// `SYNCD_ROOT_HASH`: hexadecimal. (`SYNCD_ROOT` is ROOT, as everywhere.)
    pub root: String,
    /// `SYNCD_LABEL`: may be empty.
    pub label: String,
    /// `SYNCD_PREVIOUS`: the generation that was live before; empty if none was.
    pub previous: Option<u64>,
    /// `SYNCD_TREE`: the generation's own directory; before the switch, where it is staged.
    pub tree: PathBuf,
    /// `SYNCD_LIVE`: what the web server reads.
    pub live: PathBuf,
}

impl Occasion {
    /// For `generation`, whose tree is at `tree`.
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

    /// The same activation once it is done: the tree has its name.
    #[must_use]
    pub fn after_switch(self) -> Self {
        let tree = self.directory().join("generations").join(self.generation.to_string());
        Self { tree, ..self }
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

/// One line a path: newline and backslash escaped, everything else as it is.
fn lines(paths: &[TreePath]) -> Vec<u8> {
    let mut out = Vec::new();
    for path in paths {
        for byte in path.as_bytes() {
            match byte {
                b'\n' => out.extend_from_slice(b"\\n"),
                b'\\' => out.extend_from_slice(b"\\\\"),
                other => out.push(*other),
            }
        }
        out.push(b'\n');
    }
    out
}

/// One command of the operator's.
#[derive(Debug, Clone)]
pub struct Hook {
    command: String,
    timeout: Duration,
}

impl Hook {
    /// `command` is given to `sh -c`.
    pub fn new(command: String, timeout: Duration) -> Self {
        Self { command, timeout }
    }

    /// Runs it and waits. Blocks up to its timeout.
    pub fn run(&self, occasion: &Occasion, paths: &[TreePath]) -> Result<(), HookError> {
        self.run_with_input(occasion, lines(paths))
    }

    fn run_with_input(&self, occasion: &Occasion, input: Vec<u8>) -> Result<(), HookError> {
        let mut child = Command::new("sh")
            .arg("-c")
            .arg(&self.command)
            .envs(occasion.environment())
            .current_dir("/")
            .stdin(Stdio::piped())
            // Standard output is for results of syncd-agent itself.
            .stdout(io::stderr())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(HookError::Start)?;
        feed(&mut child, input);
        let output = Output::of(&mut child);
        match wait(&mut child, self.timeout).map_err(HookError::Start)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(HookError::Failed { status, output: output.tail() }),
            None => Err(HookError::TimedOut { limit: self.timeout, output: output.tail() }),
        }
    }
}

/// Writes standard input from a thread of its own: a hook that reads nothing must not block the agent.
fn feed(child: &mut Child, input: Vec<u8>) {
    if let Some(mut stdin) = child.stdin.take() {
        // A hook that does not care closes the pipe: no error.
        thread::spawn(move || drop(stdin.write_all(&input)));
    }
}

/// The end of a hook's error output, read by a thread that outlives a hook which leaves children behind.
struct Output {
    tail: Arc<Mutex<Vec<u8>>>,
    closed: mpsc::Receiver<()>,
}

impl Output {
    fn of(child: &mut Child) -> Self {
        let tail = Arc::new(Mutex::new(Vec::new()));
        let (sender, closed) = mpsc::sync_channel(1);
        if let Some(mut stderr) = child.stderr.take() {
            let tail = tail.clone();
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = stderr.read(&mut buffer) {
                    let mut tail = lock(&tail);
                    tail.extend_from_slice(&buffer[..length]);
                    let excess = tail.len().saturating_sub(TAIL_BYTES);
                    tail.drain(..excess);
                }
                let _ = sender.send(());
            });
        }
        Self { tail, closed }
    }

    fn tail(&self) -> String {
        // What a child left behind still writes is not waited for.
        let _ = self.closed.recv_timeout(Duration::from_millis(200));
        reason::bounded(String::from_utf8_lossy(&lock(&self.tail)).trim())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `None`: it took too long, and its process group is gone.
fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if started.elapsed() >= limit {
            if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                // The leader is not reaped yet, so that the id is still its own.
                let _ = kill_process_group(group, Signal::KILL);
            }
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// The on-activate hook with its record of what is due. Shared by the worker, which notes activations, and the task
/// that runs the hook.
#[derive(Debug)]
pub struct AfterHook {
    hook: Hook,
    record: PathBuf,
    due: Notify,
    /// Held while the record is read, merged or removed. Has what was due before an activation that is under way.
    under_way: Mutex<Option<Before>>,
    /// Whether the record speaks of an activation that this process saw succeed.
    witnessed: AtomicBool,
}

/// What was due before an activation.
#[derive(Debug)]
struct Before(Option<Due>);

/// What is due.
#[derive(Debug)]
pub(crate) struct Due {
    pub(crate) occasion: Occasion,
    /// As on standard input, sorted.
    pub(crate) lines: Vec<Vec<u8>>,
}

impl Due {
    /// A line of JSON, then the lines.
    pub(crate) fn encode(&self) -> serde_json::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec(&self.occasion)?;
        bytes.push(b'\n');
        bytes.extend(self.lines.concat());
        Ok(bytes)
    }

    pub(crate) fn decode(bytes: &[u8]) -> serde_json::Result<Self> {
        let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
        let occasion = serde_json::from_slice(lines.next().unwrap_or_default())?;
        Ok(Self { occasion, lines: lines.map(<[u8]>::to_vec).collect() })
    }
}

impl AfterHook {
    /// `state` is `ROOT/state`.
    pub fn new(hook: Hook, state: &Path) -> Self {
        Self {
            hook,
            record: state.join(PENDING),
            due: Notify::new(),
            under_way: Mutex::new(None),
            witnessed: AtomicBool::new(false),
        }
    }

    /// To be called before the switch; survives a power cut. What was due before stays due. [`AfterHook::settle`] must
    /// follow.
    pub fn note(&self, occasion: Occasion, paths: &[TreePath]) -> Result<(), HookError> {
        let mut under_way = lock(&self.under_way);
        let before = self.load()?;
        let new = lines(paths);
        let new = new.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec);
        let old = before.iter().flat_map(|due| due.lines.iter().cloned());
        let mut lines: Vec<_> = old.chain(new).collect();
        lines.sort_unstable();
        lines.dedup();
        self.save(&Due { occasion, lines })?;
        *under_way = Some(Before(before));
        Ok(())
    }

    /// To be called when the activation ended: runs what is due, and forgets the activation if it failed.
    pub fn settle(&self, activated: bool) {
        if activated {
            self.witnessed.store(true, Ordering::SeqCst);
        }
        if let (Some(Before(before)), false) = (lock(&self.under_way).take(), activated) {
            let restored = match before {
                Some(due) => self.save(&due),
                None => self.remove(),
            };
            if let Err(error) = restored {
                // The hook then runs once more than it should: allowed.
                tracing::warn!(error = reason::of(&error), "on-activate record not restored");
            }
        }
        self.due.notify_one();
    }

    /// Runs the hook whenever it is due, until `stop`. `live` says what is live really: after a crash the record may
    /// speak of an activation that never came. Failures are handed to `report` and tried again.
    pub async fn serve(
        self: Arc<Self>,
        live: impl Fn() -> Option<Occasion> + Send + Sync + 'static,
        report: impl Fn(Result<(), HookError>) + Send + Sync + 'static,
        stop: CancellationToken,
    ) {
        let live = Arc::new(live);
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        loop {
            let (hook, occasion) = (self.clone(), live.clone());
            let outcome = tokio::task::spawn_blocking(move || hook.run_due(occasion())).await;
            let pause = match outcome {
                Ok(Ok(ran)) => {
                    backoff.reset();
                    if ran {
                        report(Ok(()));
                    }
                    None
                }
                Ok(Err(error)) => {
                    tracing::warn!(
                        error = reason::of(&error),
                        "on-activate hook failed, it will be tried again"
                    );
                    report(Err(error));
                    Some(backoff.pause())
                }
                Err(_) => Some(backoff.pause()),
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.due.notified() => {}
                () = pause_or_never(pause) => {}
            }
        }
    }

    /// Runs the hook if it is due. Returns whether it was.
    fn run_due(&self, live: Option<Occasion>) -> Result<bool, HookError> {
        let due = match &*lock(&self.under_way) {
            // Whatever is recorded belongs to a switch that is still to come.
            Some(_) => return Ok(false),
            None => self.load()?,
        };
        let Some(due) = due else { return Ok(false) };
        let occasion = match live {
            _ if self.witnessed.load(Ordering::SeqCst) => due.occasion.clone(),
            Some(live) if live.generation == due.occasion.generation => due.occasion.clone(),
            Some(live) => live,
            None => return Ok(false),
        };
        self.hook.run_with_input(&occasion, due.lines.concat())?;
        let mut under_way = lock(&self.under_way);
        let is_same = |now: &Due| now.occasion == due.occasion && now.lines == due.lines;
        // An activation that was noted meanwhile stays due, with all paths: at least once.
        if let Some(Before(before)) = &mut *under_way {
            *before = before.take().filter(|now| !is_same(now));
        } else if self.load()?.as_ref().is_some_and(is_same) {
            self.remove()?;
        }
        Ok(true)
    }

    fn remove(&self) -> Result<(), HookError> {
        match fs::remove_file(&self.record) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.record_error(error)),
            _ => Ok(()),
        }
    }

    fn load(&self) -> Result<Option<Due>, HookError> {
        let bytes = match fs::read(&self.record) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(self.record_error(source)),
        };
        Due::decode(&bytes).map(Some).map_err(|error| self.record_error(error.into()))
    }

    /// Replaces the record; it is on disk, under its name, when this returns.
    fn save(&self, due: &Due) -> Result<(), HookError> {
        let temporary = self.record.with_extension("tmp");
        let written = || {
            let mut file = File::create(&temporary)?;
            file.write_all(&due.encode()?)?;
            file.sync_all()?;
            fs::rename(&temporary, &self.record)?;
            File::open(self.record.parent().unwrap_or(Path::new(".")))?.sync_all()
        };
        written().map_err(|source| self.record_error(source))
    }

    fn record_error(&self, source: io::Error) -> HookError {
        HookError::Record { path: self.record.clone(), source }
    }
}

async fn pause_or_never(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn occasion(generation: u64) -> Occasion {
        Occasion {
            generation,
            root: "ab".repeat(32),
            label: "release".into(),
            previous: generation.checked_sub(1),
            tree: format!("/replica/generations/{generation}").into(),
            live: "/replica/live".into(),
        }
    }

    fn paths(names: &[&[u8]]) -> Vec<TreePath> {
        names.iter().map(|name| TreePath::from_bytes(name).unwrap()).collect()
    }

    fn hook(command: &str) -> Hook {
        Hook::new(command.into(), Duration::from_secs(20))
    }

    #[test]
    fn a_hook_gets_paths_and_environment() {
        let scratch = tempfile::tempdir().unwrap();
        let out = scratch.path().join("out");
        let command = format!(
            "cat > {0}; echo $SYNCD_GENERATION,$SYNCD_PREVIOUS,$SYNCD_LABEL,$SYNCD_TREE,$SYNCD_LIVE >> {0}",
            out.display()
        );
        hook(&command)
            .run(&occasion(42), &paths(&[b"a/b.html", b"two\nlines", b"back\\slash", b"\xff"]))
            .unwrap();
        let expected =
            b"a/b.html\ntwo\\nlines\nback\\\\slash\n\xff\n42,41,release,/replica/generations/42,/replica/live\n";
        assert_eq!(fs::read(out).unwrap(), expected);
    }

    #[test]
    fn a_hook_that_reads_nothing_of_a_long_list_succeeds() {
        let names: Vec<_> =
            (0..20_000).map(|n| TreePath::from_bytes(format!("{n}.html").as_bytes()).unwrap()).collect();
        hook("exec true").run(&occasion(1), &names).unwrap();
    }

    #[test]
    fn a_failure_tells_exit_code_and_last_words() {
        let error = hook("echo syntax error >&2; exit 3").run(&occasion(1), &[]).unwrap_err();
        assert_eq!(error.to_string(), "the hook failed (exit status: 3): syntax error");
    }

    #[test]
    fn a_hook_that_hangs_is_killed_with_its_children() {
        let scratch = tempfile::tempdir().unwrap();
        let survivor = scratch.path().join("survivor");
        let command = format!("(sleep 2; touch {}) & sleep 60", survivor.display());
        let started = Instant::now();
        let error = Hook::new(command, Duration::from_millis(100)).run(&occasion(1), &[]).unwrap_err();
        assert!(matches!(error, HookError::TimedOut { .. }));
        assert!(started.elapsed() < Duration::from_secs(2));
        thread::sleep(Duration::from_secs(2).saturating_sub(started.elapsed()) + Duration::from_millis(300));
        assert!(!survivor.exists());
    }

    #[test]
    fn what_failed_stays_due_with_the_paths_of_every_activation() {
        let scratch = tempfile::tempdir().unwrap();
        let out = scratch.path().join("out");
        let failing = AfterHook::new(hook("exit 1"), scratch.path());
        failing.note(occasion(1), &paths(&[b"a", b"b"])).unwrap();
        assert!(!failing.run_due(None).unwrap(), "not before the switch");
        failing.settle(true);
        assert!(failing.run_due(Some(occasion(1))).is_err());
        // The agent starts again, and activates another generation.
        let command = format!("cat > {0}; echo $SYNCD_GENERATION >> {0}", out.display());
        let working = AfterHook::new(hook(&command), scratch.path());
        working.note(occasion(2), &paths(&[b"b", b"c"])).unwrap();
        working.settle(true);
        assert!(working.run_due(Some(occasion(2))).unwrap());
        assert_eq!(fs::read_to_string(&out).unwrap(), "a\nb\nc\n2\n");
        assert!(!working.run_due(Some(occasion(2))).unwrap());
    }

    #[test]
    fn after_a_switch_that_never_came_the_hook_is_told_what_is_live() {
        let scratch = tempfile::tempdir().unwrap();
        let out = scratch.path().join("out");
        let after =
            AfterHook::new(hook(&format!("echo $SYNCD_GENERATION > {}", out.display())), scratch.path());
        after.note(occasion(7), &paths(&[b"a"])).unwrap();
        // A crash: the agent starts again.
        let after = AfterHook::new(after.hook.clone(), scratch.path());
        after.run_due(Some(occasion(6))).unwrap();
        assert_eq!(fs::read_to_string(out).unwrap(), "6\n");
    }

    #[test]
    fn an_activation_that_fails_leaves_nothing_due() {
        let scratch = tempfile::tempdir().unwrap();
        let after = AfterHook::new(hook("true"), scratch.path());
        after.note(occasion(7), &paths(&[b"a"])).unwrap();
        after.settle(false);
        assert!(!after.run_due(Some(occasion(6))).unwrap());
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    }
}
