//! Records the exact versions measured.

use std::process::Command;

use serde::Serialize;
use syncd_tests::binary;

use crate::processes::total_memory_mib;

/// The machine and the programs.
#[derive(Debug, Serialize)]
pub struct Versions {
    machine: String,
    /// Commit of the binaries, if this is a checkout.
    commit: String,
    /// Time of the measurement in seconds since 1970.
    measured_at_unix_s: u64,
    programs: Vec<String>,
}

impl Versions {
    /// Asks the machine, git, and each installed program.
    pub fn collect() -> Self {
        let cpus = std::thread::available_parallelism().map_or(0, usize::from);
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let model = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = model.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        let model = model.trim_start_matches([' ', '\t', ':']);
        let syncd = binary("syncd-origin").into_os_string().into_string().unwrap_or_default();
        let asked: [&[&str]; 8] = [
            &[&syncd, "--version"],
            &["rsync", "--version"],
            &["lsyncd", "--version"],
            &["casync", "--version"],
            &["syncthing", "--version"],
            &["cp", "--version"],
            &["tar", "--version"],
            &["mkfs.ext4", "-V"],
        ];
        Self {
            machine: format!("{cpus} CPUs ({model}), {} MiB, Linux {}", total_memory_mib(), kernel.trim()),
            commit: commit(),
            measured_at_unix_s: std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs()),
            programs: asked.iter().filter_map(|words| first_line(words)).collect(),
        }
    }
}

impl std::fmt::Display for Versions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}\nsyncd at commit {}", self.machine, self.commit)?;
        self.programs.iter().try_for_each(|program| writeln!(f, "{program}"))
    }
}

fn commit() -> String {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let asked = first_line(&["git", "-C", directory, "describe", "--always", "--dirty", "--abbrev=12"]);
    asked.unwrap_or_else(|| "unknown".into())
}

/// First line that a program prints on either output; `None`: the program is missing.
fn first_line(words: &[&str]) -> Option<String> {
    let output = Command::new(words[0]).args(&words[1..]).output().ok()?;
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&said).lines().next().map(|line| line.trim().to_string())
}
