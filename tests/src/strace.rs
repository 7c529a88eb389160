//! `strace` attached to a running program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::Daemon;
use crate::{Scene, require_program, wait};

/// See the module documentation. Dropping this detaches.
pub struct Strace {
    daemon: Daemon,
    file: PathBuf,
}

impl Strace {
    /// Traces the program's calls of these kinds, as in `fsync,openat`, on all threads from now on.
    #[track_caller]
    pub fn attach(scene: &Scene, pid: u32, name: &str, calls: &str) -> Self {
        let file = scene.path(&format!("{name}.trace"));
        let mut command = Command::new(require_program("strace", "strace"));
        command.args(["-f", "-y", "-s", "200", "-e", &format!("trace={calls}")]);
        command.arg("-o").arg(&file).args(["-p", &pid.to_string()]);
        let daemon = Daemon::start(&mut command, scene.directory(), name);
        wait::until("strace to attach", || daemon.log().contains("attached").then_some(()));
        Self { daemon, file }
    }

    /// Detaches, and returns the calls, one in a line.
    #[track_caller]
    pub fn finish(mut self) -> Vec<String> {
        self.daemon.interrupt();
        lines(&self.file)
    }
}

/// Lines of a file that `strace` has written.
#[track_caller]
pub fn lines(trace: &Path) -> Vec<String> {
    let text = fs::read(trace).expect("read a trace");
    String::from_utf8_lossy(&text).lines().map(str::to_string).collect()
}

/// Calls that name a path below `directory`.
pub fn below(calls: Vec<String>, directory: &Path) -> Vec<String> {
    let below = format!("{}/", directory.display());
    calls.into_iter().filter(|call| call.contains(&below)).collect()
}
