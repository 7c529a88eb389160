//! Runs commands of an operator: hooks, checks, purges of caches.
//!
//! `sh -c` runs each command in a process group of its own, with a time limit. At the limit, everything that
//! the command started is killed ([`processes`]). Everything that it prints goes to the service's own error
//! output, and so to the journal; the end is kept for reports. No `SYNCD_` variable of the service is passed
//! on.

pub mod processes;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, kill_process_group};
use syncd_shared::limits::REASON_MAX_BYTES;
use syncd_shared::text::one_line;
use tokio_util::sync::CancellationToken;

use self::processes::Mark;

/// Bytes of a command's output that are kept for reports, as one line. A report of [`REASON_MAX_BYTES`] has
/// room for the end of the command as well.
pub const OUTPUT_MAX_BYTES: usize = REASON_MAX_BYTES - 128;

/// A command with what it gets.
pub struct ShellCommand<'a> {
    /// For `sh -c`.
    pub command: &'a str,
    pub environment: Vec<(&'a str, OsString)>,
    /// Its standard input, from the current position.
    pub input: File,
    /// At this time it is killed.
    pub limit: Duration,
    /// Kills it early.
    pub stop: CancellationToken,
}

/// The end of a run.
#[derive(Debug)]
pub enum Ended {
    Succeeded,
    /// The command ended with another exit code than 0, or by a signal.
    Failed {
        status: ExitStatus,
        /// End of its output.
        output: String,
    },
    /// It was killed, at its time limit or because nobody needs its result any more.
    Killed {
        /// End of its output.
        output: String,
    },
}

impl ShellCommand<'_> {
    /// Blocks until the command has ended. An error: it could not be started.
    pub fn run(self) -> io::Result<Ended> {
        let mark = Mark::unique();
        let mut command = Command::new("sh");
        for name in processes::withheld(std::env::vars_os().map(|(name, _)| name)) {
            command.env_remove(name);
        }
        let (output, end) = io::pipe()?;
        let child = command
            .arg("-c")
            .arg(self.command)
            .envs(self.environment)
            .env(processes::VARIABLE, mark.value())
            .current_dir("/")
            .stdin(self.input)
            .stdout(end.try_clone()?)
            .stderr(end)
            .process_group(0)
            .spawn();
        // With it go this process's own ends of the pipe, or its end would never be reached.
        drop(command);
        let mut child = child?;
        let output = Output::of(output);
        match wait(&mut child, self.limit, &self.stop, &mark)? {
            Some(status) if status.success() => Ok(Ended::Succeeded),
            Some(status) => Ok(Ended::Failed { status, output: output.tail() }),
            None => Ok(Ended::Killed { output: output.tail() }),
        }
    }
}

/// Standard input of these bytes: a file in memory.
pub fn input_of(bytes: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("input", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}

/// Collects the end of a command's standard and error output. A separate thread reads it, because children of
/// the command may keep the pipe open.
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
                // The command continues even if nobody reads the service's log.
                let _ = io::stderr().write_all(&buffer[..length]);
                let mut tail = lock(&kept);
                tail.extend_from_slice(&buffer[..length]);
                let excess = tail.len().saturating_sub(OUTPUT_MAX_BYTES);
                tail.drain(..excess);
            }
            let _ = sender.send(());
        });
        Self { tail, closed }
    }

    fn tail(&self) -> String {
        // Output of a child that is still running is not waited for.
        let _ = self.closed.recv_timeout(Duration::from_millis(200));
        last_of(String::from_utf8_lossy(&lock(&self.tail)).trim())
    }
}

/// The end of a text on one line. Escapes take room, so that it may be cut.
fn last_of(text: &str) -> String {
    let line = one_line(text, usize::MAX);
    let cut = "...";
    match line.len().checked_sub(OUTPUT_MAX_BYTES) {
        None | Some(0) => line,
        Some(excess) => {
            let from = excess.saturating_add(cut.len());
            let rest = (from..line.len()).find_map(|from| line.get(from..));
            format!("{cut}{}", rest.unwrap_or_default())
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for the command. `None`: its time was up, and everything that carries its `mark` was killed.
fn wait(
    child: &mut Child,
    limit: Duration,
    stop: &CancellationToken,
    mark: &Mark,
) -> io::Result<Option<ExitStatus>> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if started.elapsed() >= limit || stop.is_cancelled() {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn run(command: &str, limit: Duration, stop: &CancellationToken) -> Ended {
        let input = File::open("/dev/null").unwrap();
        let environment = vec![("GIVEN", "value".into())];
        ShellCommand { command, environment, input, limit, stop: stop.clone() }.run().unwrap()
    }

    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn the_end_of_both_streams_is_kept_on_one_line() {
        let stop = CancellationToken::new();
        assert!(matches!(run("test \"$GIVEN\" = value", LONG, &stop), Ended::Succeeded));
        let ended = run("yes x | head -n 5000; echo >&2 last; exit 3", LONG, &stop);
        let Ended::Failed { status, output } = ended else { panic!("{ended:?}") };
        assert_eq!(status.code(), Some(3));
        assert!(output.ends_with("last") && output.len() <= OUTPUT_MAX_BYTES, "{output}");
        assert!(output.starts_with("...") && !output.contains('\n'), "{output}");
        assert_eq!(last_of(&"ä".repeat(OUTPUT_MAX_BYTES)).len(), OUTPUT_MAX_BYTES - 1);
    }

    #[test]
    fn a_command_is_killed_at_its_limit_and_when_the_service_stops() {
        let stop = CancellationToken::new();
        let ended = run("echo begun; setsid sleep 1000 & wait", Duration::from_millis(300), &stop);
        assert!(matches!(&ended, Ended::Killed { .. }), "{ended:?}");
        stop.cancel();
        assert!(matches!(run("sleep 1000", LONG, &stop), Ended::Killed { .. }));
    }
}
