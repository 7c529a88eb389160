//! Prepares what the bench needs: programs, trees, binaries, and its own network namespace.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, ensure};
use syncd_tests::{binary, is_root};

use crate::bench::{Bench, Scenario};

/// Variable that is set in the measuring process.
const READY: &str = "SYNCD_BENCH_READY";

/// Whether this process measures; otherwise it only prepares.
pub fn are_ready() -> bool {
    std::env::var_os(READY).is_some()
}

/// Installs missing programs, makes the trees and builds the binaries, all of which may need the network.
/// Then runs this program again in a network namespace, where no other traffic is counted.
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

/// Debian packages of missing programs.
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
        // Installing must not start services, because the bench runs its own.
        let mut command = Command::new("apt-get");
        command.args(args).env("RUNLEVEL", "1").env("DEBIAN_FRONTEND", "noninteractive");
        command.stdout(std::process::Stdio::null()).status().is_ok_and(|status| status.success())
    };
    let options = ["install", "-qq", "--yes", "--no-install-recommends"];
    // The package lists may be old: they are updated if the first attempt fails.
    let installed = apt(&[&options[..], packages].concat())
        || (apt(&["update", "-qq"]) && apt(&[&options[..], packages].concat()));
    ensure!(installed, by_hand());
    Ok(())
}
