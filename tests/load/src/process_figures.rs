//! Reads figures of processes from /proc, and raises this process's limit of open files.

use std::fs;

use anyhow::{Context, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Clock ticks per second in /proc/PID/stat (USER_HZ).
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU seconds so far, user and system, of all threads, with a resolution of 10 ms.
pub fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("read a process's stat")?;
    // The name in parentheses may contain spaces, so fields are counted from its end.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|f| f.parse::<f64>().ok()).context("ticks");
    Ok((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND)
}

/// Resident anonymous memory in KiB, which is what connections cost.
pub fn anonymous_kib(pid: u32) -> anyhow::Result<f64> {
    field(pid, "RssAnon:")
}

/// Peak resident memory in KiB.
pub fn peak_kib(pid: u32) -> anyhow::Result<f64> {
    field(pid, "VmHWM:")
}

fn field(pid: u32, key: &str) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read a process's status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let number = line.and_then(|rest| rest.split_whitespace().next()).and_then(|n| n.parse().ok());
    number.with_context(|| format!("{key} of process {pid}"))
}

/// Raises the limit of open files of this process and its children to at least `wanted`.
pub fn raise_open_files(wanted: u64) -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    let maximum = limit.maximum.map(|maximum| maximum.max(wanted));
    let raised = Rlimit { current: Some(wanted), maximum };
    if setrlimit(Resource::Nofile, raised).is_err() {
        let allowed = limit.maximum.unwrap_or_default();
        bail!("{wanted} open files are needed, {allowed} allowed: run as root, or raise `ulimit -Hn`");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_figures() {
        let pid = std::process::id();
        assert!(cpu_seconds(pid).unwrap() >= 0.0);
        assert!(peak_kib(pid).unwrap() >= anonymous_kib(pid).unwrap());
        raise_open_files(64).unwrap();
    }
}
