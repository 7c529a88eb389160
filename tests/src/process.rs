//! Runs programs: to their end with a deadline, or in the background with their output in files.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::wait;

/// Deadline of a command of the contract. A longer one hangs.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(120);

/// Result of a finished program.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Program and arguments, for messages.
    pub command: String,
    /// Exit code; `None`: a signal ended it.
    pub code: Option<i32>,
    /// Standard output, with invalid UTF-8 replaced.
    pub stdout: String,
    /// Standard error, with invalid UTF-8 replaced.
    pub stderr: String,
    /// Time from start to exit.
    pub took: Duration,
}

impl Outcome {
    /// Panics and shows everything unless the exit code is `code`.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert!(self.code == Some(code), "expected exit code {code}: {self:#?}");
        self
    }

    /// Panics and shows everything unless the exit code is 0.
    #[track_caller]
    pub fn expect_success(self) -> Self {
        self.expect_code(0)
    }

    /// The only line on standard output.
    #[track_caller]
    pub fn only_line(&self) -> &str {
        let mut lines = self.stdout.lines();
        let (Some(line), None) = (lines.next(), lines.next()) else {
            panic!("expected one line on standard output: {self:#?}");
        };
        line
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {self:#?}"))
    }

    /// Asserts a refusal: exit code 1, nothing on standard output, and one line on standard error that
    /// contains all `words` (compared without case). If the program logs before it fails, the last line
    /// counts.
    #[track_caller]
    pub fn expect_refusal(self, words: &[&str]) -> Self {
        let this = self.expect_code(1);
        assert!(this.stdout.is_empty(), "a refusal says nothing on standard output: {this:#?}");
        assert!(!this.stderr.contains("panicked"), "a refusal is not a panic: {this:#?}");
        let lines: Vec<&str> = this.stderr.lines().filter(|line| !line.trim().is_empty()).collect();
        let Some(last) = lines.last() else { panic!("a refusal says why: {this:#?}") };
        let errors =
            lines.iter().filter(|line| line.starts_with("error") || line.starts_with("syncd-")).count();
        assert!(errors <= 1, "a refusal is one line: {this:#?}");
        let lower = last.to_lowercase();
        for word in words {
            assert!(
                word.split('|').any(|choice| lower.contains(&choice.to_lowercase())),
                "the refusal should say {word:?}: {this:#?}"
            );
        }
        this
    }
}

/// Runs a program to its end, without standard input. Kills it and panics if it takes longer than `limit`.
#[track_caller]
pub fn run_within(command: &mut Command, limit: Duration) -> Outcome {
    let shown = show(command);
    let mut out = tempfile::tempfile().expect("a file for standard output");
    let mut err = tempfile::tempfile().expect("a file for standard error");
    command
        .stdin(Stdio::null())
        .stdout(out.try_clone().expect("share a file"))
        .stderr(err.try_clone().expect("share a file"));
    let started = Instant::now();
    let mut child = command.spawn().unwrap_or_else(|error| panic!("start {shown}: {error}"));
    let status = wait_within(&mut child, limit);
    let took = started.elapsed();
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let outcome = Outcome {
        command: shown,
        code: status.and_then(|s| s.code()),
        stdout: read_back(&mut out),
        stderr: read_back(&mut err),
        took,
    };
    assert!(status.is_some(), "still running after {limit:?}, killed: {outcome:#?}");
    outcome
}

/// Processor time that a running process has used, in steps of 10 ms. It does not depend on the load.
#[track_caller]
pub fn processor_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("read a process's figures");
    // The name in parentheses may contain spaces. User and system time are the 14th and 15th field.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok());
    Duration::from_millis(ticks.sum::<u64>() * 10)
}

/// Like [`run_within`], with [`COMMAND_LIMIT`].
#[track_caller]
pub fn run(command: &mut Command) -> Outcome {
    run_within(command, COMMAND_LIMIT)
}

/// Runs a system tool, which must succeed.
#[track_caller]
pub fn tool<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Outcome {
    run_within(Command::new(program).args(args), Duration::from_secs(600)).expect_success()
}

fn wait_within(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let started = Instant::now();
    let mut pause = Duration::from_micros(200);
    loop {
        if let Some(status) = child.try_wait().expect("wait for a child") {
            return Some(status);
        }
        if started.elapsed() > limit {
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

fn read_back(file: &mut File) -> String {
    use std::io::{Read, Seek};
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("read captured output");
    String::from_utf8_lossy(&bytes).into_owned()
}

fn show(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Asks a running program for its status over its socket. Gives the same answer as the command, without
/// starting a process, for tests that ask thousands of times. `None`: there is no answer.
pub fn ask_status<T: serde::de::DeserializeOwned>(socket: &Path) -> Option<T> {
    use std::io::{BufRead, BufReader, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    stream.write_all(b"{\"request\":\"status\"}\n").ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    serde_json::from_str(&line).ok()
}

/// A program in the background. Dropping this kills it. A panic of the test prints its log.
pub struct Daemon {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Daemon {
    /// Starts it, and appends its output to `NAME.out` and `NAME.err` in `directory`.
    #[track_caller]
    pub fn start(command: &mut Command, directory: &Path, name: &str) -> Self {
        let name: String = name.replace('/', "-").chars().take(40).collect();
        let stdout = directory.join(format!("{name}.out"));
        let stderr = directory.join(format!("{name}.err"));
        let append = |path: &Path| {
            OpenOptions::new().create(true).append(true).open(path).expect("open a log file of the test")
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(append(&stdout))
            .stderr(append(&stderr))
            .spawn()
            .unwrap_or_else(|error| panic!("start {}: {error}", show(command)));
        Self { child, stdout, stderr }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Sends SIGKILL and waits until the process is gone.
    pub fn kill9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends SIGTERM and waits for the exit code. Panics if the process does not stop within 30 s. A process
    /// that has just started gets time to install its handler.
    #[track_caller]
    pub fn stop(&mut self) -> Option<i32> {
        let deadline = Instant::now() + Duration::from_secs(5);
        while !self.catches_term() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.signal(Signal::TERM);
        self.exit_code(Duration::from_secs(30))
    }

    /// Whether the process handles SIGTERM, or is already gone.
    fn catches_term(&self) -> bool {
        let Ok(status) = std::fs::read_to_string(format!("/proc/{}/status", self.pid())) else { return true };
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).map(str::trim);
        let bits = caught.and_then(|bits| u64::from_str_radix(bits, 16).ok());
        bits.is_none_or(|bits| bits & (1 << (Signal::TERM.as_raw() - 1)) != 0)
    }

    /// Sends SIGINT and waits for the exit code.
    #[track_caller]
    pub fn interrupt(&mut self) -> Option<i32> {
        self.signal(Signal::INT);
        self.exit_code(Duration::from_secs(30))
    }

    /// Waits until the process exits on its own. Kills it and panics after `limit`.
    #[track_caller]
    pub fn exit_code(&mut self, limit: Duration) -> Option<i32> {
        match wait_within(&mut self.child, limit) {
            Some(status) => status.code(),
            None => {
                self.kill9();
                panic!("process still running after {limit:?}; its log:\n{}", self.log());
            }
        }
    }

    /// Exit status, if the process has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("look at a child")
    }

    /// Standard error so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stderr).unwrap_or_default()).into_owned()
    }

    /// Waits until the log has these words. A program may act a moment before it says so.
    #[track_caller]
    pub fn wait_logged(&self, words: &str) {
        let is_there = || if self.log().contains(words) { Ok(()) } else { Err(self.log()) };
        wait::until_ok(&format!("the log to have {words:?}"), is_there);
    }

    /// Standard output so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stdout).unwrap_or_default()).into_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(60)..];
            println!("---- the end of {} ----\n{}\n----", self.stderr.display(), tail.join("\n"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finished_program_is_captured() {
        let outcome = run(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]));
        assert_eq!(
            (outcome.code, outcome.stdout.as_str(), outcome.stderr.as_str()),
            (Some(3), "out\n", "err\n")
        );
    }

    #[test]
    fn a_refusal_needs_its_words_on_one_line() {
        let refusal =
            |line: &str| run(Command::new("sh").args(["-c", &format!("echo '{line}' >&2; exit 1")]));
        refusal("error: port 1 is taken: choose another").expect_refusal(&["port", "choose|pick"]);
        assert!(std::panic::catch_unwind(|| refusal("error: no").expect_refusal(&["port"])).is_err());
    }

    #[test]
    fn a_background_program_stops_when_told() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut daemon = Daemon::start(
            Command::new("sh").args(["-c", "trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done"]),
            directory.path(),
            "sh",
        );
        crate::wait::until("its first line", || daemon.output().contains("up").then_some(()));
        assert_eq!(daemon.stop(), Some(7));
    }
}
