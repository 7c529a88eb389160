//! Finds and kills everything that one run of a command started.
//!
//! Killing the command's process group misses a child that made a session of its own (`setsid`, most
//! daemons). Every run therefore has a [`Mark`] in its environment, which all of its processes inherit. At
//! the time limit, `/proc` is searched for processes that carry the mark or descend from one that does. A
//! process escapes only if it clears its environment and leaves its parents as well, as `service NAME start`
//! does on purpose.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};

use crate::supervisor;

/// Variable that marks the processes of a run.
pub const VARIABLE: &str = "SYNCD_HOOK_RUN";
/// Time for killed processes to end. A process in an uninterruptible call can take longer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Value of [`VARIABLE`] for one run, never used twice on a machine.
#[derive(Debug)]
pub struct Mark(String);

impl Mark {
    pub fn unique() -> Self {
        static RUNS: AtomicU64 = AtomicU64::new(0);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        Self(format!("{}-{run}-{}", getpid().as_raw_nonzero(), now.as_nanos()))
    }

    pub fn value(&self) -> &str {
        &self.0
    }

    /// Kills all processes of the run and waits until they are gone. `shell` is the command's first process,
    /// which the caller has not reaped yet. Blocks for about [`PATIENCE`] at most.
    pub fn kill_all(&self, shell: Pid) {
        let started = Instant::now();
        loop {
            // A process forked during the kills also carries the mark, so the next search finds it.
            let left = match search() {
                Ok(processes) => self.select(processes, shell),
                Err(error) => {
                    tracing::warn!(%error, "can't search /proc for processes that a command left behind");
                    return;
                }
            };
            let Some(first) = left.first() else { return };
            if started.elapsed() >= PATIENCE {
                let (count, first) = (left.len(), first.pid.as_raw_nonzero());
                tracing::warn!(count, first, "processes of a command that took too long can't be killed");
                return;
            }
            left.iter().for_each(Process::kill);
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Selects the processes of this run.
    fn select(&self, mut others: Vec<Process>, shell: Pid) -> Vec<Process> {
        let variable = format!("{VARIABLE}={}", self.0);
        let marked = |process: &Process| {
            process.pid == shell
                || process.environment.split(|byte| *byte == 0).any(|v| v == variable.as_bytes())
        };
        others.retain(|process| process.pid != getpid());
        let mut selected: Vec<_> = others.extract_if(.., |process| marked(process)).collect();
        let mut parents: HashSet<_> = selected.iter().map(|process| process.pid).chain([shell]).collect();
        loop {
            let children: Vec<_> = others
                .extract_if(.., |process| process.parent.is_some_and(|parent| parents.contains(&parent)))
                .collect();
            if children.is_empty() {
                return selected;
            }
            parents = children.iter().map(|process| process.pid).collect();
            selected.extend(children);
        }
    }
}

/// Variables of the service that no command inherits: options, secrets (`SYNCD_TOKEN`), and those of the
/// supervisor.
pub fn withheld(names: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    let of_supervisor = |name: &OsString| supervisor::VARIABLES.iter().any(|variable| name == variable);
    names.filter(move |name| name.as_encoded_bytes().starts_with(b"SYNCD_") || of_supervisor(name))
}

/// A running process. Zombies are left out, because they have ended.
#[derive(Debug)]
struct Process {
    pid: Pid,
    parent: Option<Pid>,
    /// Clock ticks between boot and start of the process: distinguishes it from a later process with the same
    /// id.
    started: u64,
    /// NUL-separated; empty if it may not be read.
    environment: Vec<u8>,
}

fn search() -> io::Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        // A process that ended meanwhile is skipped.
        found.extend(pid.and_then(look_at));
    }
    Ok(found)
}

fn look_at(pid: Pid) -> Option<Process> {
    let directory = format!("/proc/{}", pid.as_raw_nonzero());
    let stat = fs::read_to_string(format!("{directory}/stat")).ok()?;
    let (state, parent, started) = fields(&stat)?;
    let environment = fs::read(format!("{directory}/environ")).unwrap_or_default();
    (!matches!(state, "Z" | "X")).then_some(Process { pid, parent, started, environment })
}

/// State, parent and start time in `/proc/PID/stat` (proc(5)). The name before them may contain blanks and
/// parentheses.
fn fields(stat: &str) -> Option<(&str, Option<Pid>, u64)> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let parent = Pid::from_raw(fields.next()?.parse().ok()?);
    Some((state, parent, fields.nth(17)?.parse().ok()?))
}

impl Process {
    fn kill(&self) {
        // The descriptor refers to one process. If that is still the process found, no other one can be hit.
        let Ok(descriptor) = pidfd_open(self.pid, PidfdFlags::empty()) else { return };
        if look_at(self.pid).is_some_and(|now| now.started == self.started) {
            let _ = pidfd_send_signal(descriptor, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_parentheses_does_not_shift_the_fields() {
        let stat = format!("17 (a) S 9 (b)) S 4 {}8125 0", "0 ".repeat(17));
        assert_eq!(fields(&stat), Some(("S", Pid::from_raw(4), 8125)));
    }

    #[test]
    fn this_process_is_found_with_its_parent_and_environment() {
        let own = look_at(getpid()).unwrap();
        assert_eq!(own.parent, rustix::process::getppid());
        assert_eq!(own.environment.is_empty(), std::env::vars_os().next().is_none());
    }

    #[test]
    fn the_mark_and_descent_select_and_nothing_else() {
        let mark = Mark("1-0-7".into());
        let process = |pid, parent, environment: &str| Process {
            pid: Pid::from_raw(pid).unwrap(),
            parent: Pid::from_raw(parent),
            started: 0,
            environment: environment.as_bytes().to_vec(),
        };
        let processes = [
            process(90, 80, ""),
            process(60, 1, "A=b\0SYNCD_HOOK_RUN=1-0-7\0"),
            process(61, 1, "A=b\0SYNCD_HOOK_RUN=1-0-77\0"),
            process(70, 1, "XSYNCD_HOOK_RUN=1-0-7\0"),
            process(80, 60, "cleared=1\0"),
            process(50, 2, ""),
            process(51, 50, ""),
        ];
        let selected = mark.select(processes.into(), Pid::from_raw(50).unwrap());
        let mut pids: Vec<_> = selected.iter().map(|process| process.pid.as_raw_nonzero().get()).collect();
        pids.sort();
        assert_eq!(pids, [50, 51, 60, 80, 90]);
    }

    #[test]
    fn variables_of_the_service_are_withheld_and_others_are_not() {
        let names =
            ["PATH", "SYNCD_TOKEN", "SYNCD_TOKEN_FILE", "MY_SYNCD_KEY", "SYNCD_ROOT", "NOTIFY_SOCKET"];
        let names = names.map(OsString::from);
        let withheld: Vec<_> = withheld(names.into_iter()).collect();
        assert_eq!(withheld, ["SYNCD_TOKEN", "SYNCD_TOKEN_FILE", "SYNCD_ROOT", "NOTIFY_SOCKET"]);
    }
}
