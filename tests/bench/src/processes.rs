//! Reads figures of processes from /proc.

use std::fs;
use std::ops::Range;
use std::process::{Command, Stdio};

/// Runs a program, which must succeed, and returns its standard output. Waits in the kernel, because polling
/// would add milliseconds to the measurement.
pub fn complete(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{errors}", output.status);
    String::from_utf8_lossy(&output.stdout).trim().to_string()
}

/// Clock ticks per second in /proc/PID/stat (USER_HZ), the same on every supported Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU seconds of a process so far, user and system, of all threads and ended children, in steps of 10 ms.
pub fn cpu_seconds(pid: u32) -> f64 {
    stat_seconds(pid, 11..15)
}

/// CPU seconds so far of ended children of this process.
pub fn ended_children_cpu_seconds() -> f64 {
    stat_seconds(std::process::id(), 13..15)
}

fn stat_seconds(pid: u32, fields_from_state: Range<usize>) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("read a process's stat");
    // The name in parentheses may contain spaces, so fields are counted from its end.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|f| f.parse::<f64>().ok()).expect("ticks");
    fields_from_state.map(ticks).sum::<f64>() / TICKS_PER_SECOND
}

/// Whether a process has children.
pub fn has_children(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).is_ok_and(|list| !list.trim().is_empty())
}

/// Peak resident memory of a process in MiB.
pub fn peak_memory_mib(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("read a process's status");
    kibibytes(&status, "VmHWM:") / 1024.0
}

/// Memory of this machine in MiB.
pub fn total_memory_mib() -> u64 {
    (kibibytes(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemTotal:") / 1024.0) as u64
}

fn kibibytes(text: &str, key: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.split_whitespace().next()).and_then(|n| n.parse().ok()).unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_used_is_known_when_it_has_ended() {
        let before = ended_children_cpu_seconds();
        complete(Command::new("sh").args(["-c", "i=0; while [ $i -lt 200000 ]; do i=$((i + 1)); done"]));
        assert!(ended_children_cpu_seconds() > before);
    }

    #[test]
    fn this_process_has_figures() {
        assert!(cpu_seconds(std::process::id()) >= 0.0);
        assert!(peak_memory_mib(std::process::id()) > 0.5);
        assert!(total_memory_mib() > 100);
    }
}
