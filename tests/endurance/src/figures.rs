//! Figures measured during the run.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Context;
use syncd_tests::{Agent, Origin};
use walkdir::WalkDir;

/// One moment of the run.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// Anonymous memory in KiB.
    pub origin_memory_kib: u64,
    pub origin_descriptors: u64,
    /// Memory of the agent that is never killed.
    pub agent_memory_kib: u64,
    pub agent_descriptors: u64,
    /// Complete and incomplete trees of one agent. This figure and the next ones are the larger value of the
    /// two agents.
    pub trees: u64,
    pub trash_names: u64,
    /// Space used by ROOT. A file with several names counts once.
    pub root_kib: u64,
    /// Space used by DATA.
    pub data_kib: u64,
}

/// Measures all processes and directories. Files that vanish meanwhile do not count.
pub fn sample(origin: &mut Origin, steady: &mut Agent, killed: &Agent) -> anyhow::Result<Sample> {
    let (origin_pid, agent_pid) = (origin.daemon().pid(), steady.daemon().pid());
    let roots = [&steady.root, &killed.root];
    let larger = |figure: fn(&Path) -> u64| roots.iter().map(|root| figure(root)).max().unwrap_or_default();
    Ok(Sample {
        origin_memory_kib: anonymous_kib(origin_pid)?,
        origin_descriptors: descriptors(origin_pid)?,
        agent_memory_kib: anonymous_kib(agent_pid)?,
        agent_descriptors: descriptors(agent_pid)?,
        trees: larger(|root| names(&root.join("slots")) + names(&root.join("staging"))),
        trash_names: larger(|root| names(&root.join("trash"))),
        root_kib: larger(space_kib),
        data_kib: space_kib(&origin.data),
    })
}

fn anonymous_kib(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read a process's status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.with_context(|| format!("the memory of process {pid}"))
}

fn descriptors(pid: u32) -> anyhow::Result<u64> {
    let directory = format!("/proc/{pid}/fd");
    let open = fs::read_dir(&directory).with_context(|| format!("list {directory}"))?;
    Ok(open.count() as u64)
}

fn names(directory: &Path) -> u64 {
    fs::read_dir(directory).map_or(0, |names| names.count() as u64)
}

fn space_kib(directory: &Path) -> u64 {
    let mut counted = HashSet::new();
    let items = WalkDir::new(directory).into_iter().filter_map(|item| item.ok()?.metadata().ok());
    let once = items.filter(|stat| counted.insert((stat.dev(), stat.ino())));
    once.map(|stat| stat.blocks()).sum::<u64>() / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_two_names_takes_its_space_once() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a"), vec![1; 64 * 1024]).unwrap();
        let once = space_kib(directory.path());
        fs::hard_link(directory.path().join("a"), directory.path().join("b")).unwrap();
        assert!(once >= 64);
        assert_eq!(space_kib(directory.path()), once);
    }

    #[test]
    fn this_process_has_memory_and_descriptors() {
        let pid = std::process::id();
        assert!(anonymous_kib(pid).unwrap() > 0 && descriptors(pid).unwrap() >= 3);
    }
}
