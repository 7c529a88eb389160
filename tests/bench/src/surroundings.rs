//! What the bench needs around it: programs, trees, binaries, and a network namespace of its own.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, ensure};
use syncd_tests::{binary, is_root};

use crate::bench::{Bench, Scenario};

/// Set in the process that measures.
const READY: &str = "SYNCD_BENCH_READY";

/// Whether this process measures; else it only prepares.
pub fn are_ready() -> bool {
    std::env::var_os(READY).is_some()
}

/// Installs what is missing, makes the trees, builds the binaries (all of which may need the network), then runs this
/// program again in a network namespace, where nobody else's bytes are.
pub fn enter(bench: &Bench) -> anyhow::Result<ExitCode> {
    ensure!(
        is_root(),
        "this needs root, for fresh file systems and a network namespace: sudo -E, or a container"
    );
    install(&missing(bench))?;
    bench.prepare();
    let _ = binary("syncd-origin");
    let executable = std::env::current_exe().context("find this program")?;
    let mut command = Command::new("unshare");
    command.args(["--net", "--", "sh", "-c", "ip link set lo up && exec \"$@\"", "sh"]).arg(executable);
    command.args(std::env::args_os().skip(1)).env(READY, "1").env("SYNCD_TESTS_BUILT", "1");
    Err(command.exec()).context("run unshare")
}

/// Debian packages of programs that are not there.
fn missing(bench: &Bench) -> Vec<&'static str> {
    let wanted = bench.wanted();
    let mut programs = vec![
        ("rsync", "rsync"),
        ("mkfs.ext4", "e2fsprogs"),
        ("unshare", "util-linux"),
        ("ip", "iproute2"),
        ("tar", "tar"),
        ("npm", "npm"),
        ("unzip", "unzip"),
    ];
    for (scenario, program, package) in [
        (Scenario::FirstSync, "casync", "casync"),
        (Scenario::OneFile, "lsyncd", "lsyncd"),
        (Scenario::Big, "sqlite3", "sqlite3"),
        (Scenario::Big, "strace", "strace"),
    ] {
        if wanted.contains(&scenario) {
            programs.push((program, package));
        }
    }
    if bench.slow_peers {
        programs.push(("syncthing", "syncthing"));
    }
    let mut packages: Vec<_> = programs.iter().filter(|(name, _)| !is_there(name)).map(|(_, p)| *p).collect();
    packages.dedup();
    packages
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(Into::into);
    std::env::split_paths(&path)
        .chain(system)
        .any(|directory: std::path::PathBuf| directory.join(program).is_file())
}

fn install(packages: &[&str]) -> anyhow::Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let by_hand = || format!("missing, install them first: apt-get install {}", packages.join(" "));
    ensure!(Path::new("/usr/bin/apt-get").exists(), by_hand());
    eprintln!("installing {}", packages.join(" "));
    let apt = |args: &[&str]| {
        // No service is to be started by what is installed: the bench runs its own.
        let mut command = Command::new("apt-get");
        command.args(args).env("RUNLEVEL", "1").env("DEBIAN_FRONTEND", "noninteractive");
        command.stdout(std::process::Stdio::null()).status().is_ok_and(|status| status.success())
    };
    let options = ["install", "-qq", "--yes", "--no-install-recommends"];
    // Lists may be old: where the first attempt fails they are fetched.
    let installed = apt(&[&options[..], packages].concat())
        || (apt(&["update", "-qq"]) && apt(&[&options[..], packages].concat()));
    ensure!(installed, by_hand());
    Ok(())
}
