//! Runs the check of a policy: a command for `sh -c`, with the rollout in its environment.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use syncd_shared::limits::REASON_MAX_BYTES;
use syncd_shared::text::one_line;
use tokio_util::sync::CancellationToken;

use crate::fleet::rollout::machine::{Phase, Rollout};
use crate::fleet::rollout::participants::Node;

const LIMIT: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);
/// Bytes of the output kept for the report.
const TAIL_BYTES: usize = 1024;

/// Result of a run.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) passed: bool,
    /// Failure and last lines: one line.
    pub(super) output: String,
}

impl Verdict {
    pub(super) fn interrupted() -> Self {
        Self { passed: false, output: "the check was interrupted".to_owned() }
    }
}

/// A check that is to run.
pub(super) struct CheckCommand {
    command: String,
    environment: Vec<(&'static str, String)>,
    /// Ends the run early.
    shutdown: CancellationToken,
}

impl CheckCommand {
    pub(super) fn new(
        command: String,
        rollout: &Rollout,
        nodes: &[Node<'_>],
        shutdown: CancellationToken,
    ) -> Self {
        let switched = nodes.iter().filter(|node| node.linked == Some(rollout.target)).map(|node| node.name);
        let switched: Vec<&str> = switched.collect();
        let phase = if rollout.phase == Phase::Holding { "hold" } else { "before" };
        let environment = vec![
            ("SYNCD_GENERATION", rollout.target.number.to_string()),
            ("SYNCD_ROOT_HASH", rollout.target.root.to_string()),
            ("SYNCD_FROM", rollout.base.number.to_string()),
            ("SYNCD_ROLLOUT", rollout.policy.name.clone()),
            ("SYNCD_PHASE", phase.to_owned()),
            ("SYNCD_STEP", rollout.step.saturating_add(1).to_string()),
            ("SYNCD_STEPS", rollout.policy.steps.len().to_string()),
            ("SYNCD_NODES", switched.join(" ")),
        ];
        Self { command, environment, shutdown }
    }

    /// Blocks until the command has ended, or was killed at its time limit.
    pub(super) fn run(self) -> Verdict {
        let started = Command::new("sh")
            .arg("-c")
            .arg(&self.command)
            .envs(self.environment.iter().map(|(name, value)| (*name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn();
        let mut child = match started {
            Ok(child) => child,
            Err(error) => return Verdict { passed: false, output: format!("start the check: {error}") },
        };
        let tails = (read(child.stdout.take()), read(child.stderr.take()));
        let failure = self.wait(&mut child);
        // The group is gone, unless a process has left it: that one does not delay the result.
        let output = [tails.0, tails.1].map(|tail| tail.recv_timeout(LOOK).unwrap_or_default());
        let output = one_line(output.concat().trim(), REASON_MAX_BYTES);
        match failure {
            None => Verdict { passed: true, output: String::new() },
            Some(failure) if output.is_empty() => Verdict { passed: false, output: failure },
            Some(failure) => Verdict { passed: false, output: format!("{failure}: {output}") },
        }
    }

    /// Waits for the end. `None` after a success.
    fn wait(&self, child: &mut Child) -> Option<String> {
        let started = Instant::now();
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return (!status.success()).then(|| status.to_string()),
                Ok(None) if started.elapsed() < LIMIT && !self.shutdown.is_cancelled() => thread::sleep(LOOK),
                Ok(None) => {
                    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                        let _ = kill_process_group(group, Signal::KILL);
                    }
                    let _ = child.wait();
                    return Some(format!("killed after {} s", started.elapsed().as_secs()));
                }
                Err(error) => return Some(format!("wait for the check: {error}")),
            }
        }
    }
}

/// Reads a pipe to its end on a thread of its own, and sends the last bytes.
fn read(pipe: Option<impl Read + Send + 'static>) -> std::sync::mpsc::Receiver<String> {
    let (sender, tail) = std::sync::mpsc::sync_channel(1);
    thread::spawn(move || {
        let mut kept = Vec::new();
        let mut buffer = [0; 4096];
        if let Some(mut pipe) = pipe {
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                kept.extend(buffer.iter().take(count));
                let excess = kept.len().saturating_sub(TAIL_BYTES);
                kept.drain(..excess);
            }
        }
        let _ = sender.send(String::from_utf8_lossy(&kept).into_owned());
    });
    tail
}
