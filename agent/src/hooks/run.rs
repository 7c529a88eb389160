//! One run of a hook: its command, its standard input, its environment, and the end of its output.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use syncd_runtime::command::processes::{self, Mark};
use syncd_shared::limits::REASON_MAX_BYTES;
use syncd_shared::text::one_line;

use super::error::HookError;
use super::{HookName, Occasion, Paths};
use crate::hooks::paths::write_lines;

/// Bytes of a hook's error output kept for the report.
const TAIL_BYTES: usize = 1024;

/// Temporary file with the paths for the hook before an activation.
const CHANGED: &str = "before-activate.paths";

/// One hook with its command.
#[derive(Debug, Clone)]
pub struct Hook {
    pub(super) name: HookName,
    pub(super) command: String,
    pub(super) timeout: Duration,
    /// `ROOT/state`.
    pub(super) state: PathBuf,
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

    /// Runs the command as the node's check. Blocks until the time limit at most.
    pub(crate) fn check(&self, occasion: &Occasion, phase: &str) -> Result<(), HookError> {
        let hook = self.name;
        let input = File::open("/dev/null").map_err(|source| HookError::Start { hook, source })?;
        self.run_with_input(occasion, input, Some(("SYNCD_PHASE", phase.as_ref())))
    }

    /// Reads `input` from its current position. `more`: another variable of its environment.
    pub(super) fn run_with_input(
        &self,
        occasion: &Occasion,
        input: File,
        more: Option<(&str, &Path)>,
    ) -> Result<(), HookError> {
        let hook = self.name;
        let failed = |source| HookError::Start { hook, source };
        let mark = Mark::unique();
        let mut command = Command::new("sh");
        for name in processes::withheld(std::env::vars_os().map(|(name, _)| name)) {
            command.env_remove(name);
        }
        let (output, end) = io::pipe().map_err(failed)?;
        let child = command
            .arg("-c")
            .arg(&self.command)
            .envs(occasion.environment())
            .envs(more)
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
    pub(super) fn of(mut output: io::PipeReader) -> Self {
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

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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
