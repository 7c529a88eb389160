//! `syncd-agent` in a process of its own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::origin::clean_environment;
use crate::process::{Daemon, Outcome, run};
use crate::{Origin, Scene, binary, wait};

/// `syncd-agent status --json`, every field of the contract.
#[derive(Debug, Clone, Deserialize)]
pub struct AgentStatus {
    /// Its name.
    pub name: String,
    /// ROOT.
    pub root_directory: PathBuf,
    /// `HOST:PORT`.
    pub origin: String,
    /// Whether its control stream is open.
    pub connected: bool,
    /// The live generation.
    pub generation: Option<u64>,
    /// The root hash of that, in hex.
    pub root: Option<String>,
    /// The path of the live link.
    pub live: PathBuf,
    /// `empty`, `fetching`, `staging`, `staged`, `live` or `failed`.
    pub state: String,
    /// The highest number accepted.
    pub accepted: Option<u64>,
    /// The numbers of the complete trees.
    pub generations: Vec<u64>,
    /// Trees ready to be patched.
    pub spares: u64,
    /// RFC 3339.
    pub last_contact: Option<String>,
    /// Why the last update failed.
    pub error: Option<String>,
}

/// An agent: its replica, and its `run` process while that runs.
pub struct Agent {
    /// Its name in the fleet.
    pub name: String,
    /// ROOT.
    pub root: PathBuf,
    options: Vec<String>,
    prefix: Vec<OsString>,
    logs: PathBuf,
    daemon: Option<Daemon>,
}

impl Agent {
    /// An agent in the scene's directory NAME that has not joined.
    pub fn new(scene: &Scene, name: &str) -> Self {
        Self {
            name: name.to_string(),
            root: scene.path(name),
            options: Vec::new(),
            prefix: Vec::new(),
            logs: scene.directory().to_path_buf(),
            daemon: None,
        }
    }

    /// Joins with a fresh token; does not run yet.
    #[track_caller]
    pub fn joined(scene: &Scene, origin: &Origin, name: &str) -> Self {
        let agent = Self::new(scene, name);
        agent.join(origin.address(), &origin.token()).expect_success();
        agent
    }

    /// Joins and runs.
    #[track_caller]
    pub fn started(scene: &Scene, origin: &Origin, name: &str) -> Self {
        let mut agent = Self::joined(scene, origin, name);
        agent.start();
        agent
    }

    /// Adds options of `run`.
    pub fn with_options(mut self, options: &[&str]) -> Self {
        self.options.extend(options.iter().map(|s| s.to_string()));
        self
    }

    /// The replica elsewhere than in the scene.
    pub fn at(mut self, root: &Path) -> Self {
        self.root = root.to_path_buf();
        self
    }

    /// `join HOST:PORT --token TOKEN --name NAME`.
    #[track_caller]
    pub fn join(&self, address: &str, token: &str) -> Outcome {
        let mut command = Command::new(binary("syncd-agent"));
        command.args(["join", address, "--token", token, "--name", &self.name, "--root"]).arg(&self.root);
        clean_environment(&mut command);
        run(&mut command)
    }

    /// Runs `run` under another program, which must keep the process id.
    pub fn under(&mut self, prefix: &[OsString]) {
        self.prefix = prefix.to_vec();
    }

    /// The command line of `run`.
    pub fn run_command(&self) -> Command {
        let mut words = self.prefix.iter().cloned().chain([binary("syncd-agent").into_os_string()]);
        let mut command = Command::new(words.next().expect("a program"));
        command
            .args(words)
            .arg("run")
            .arg("--root")
            .arg(&self.root)
            .args(["--http", "127.0.0.1:0"])
            .args(&self.options);
        clean_environment(&mut command);
        command
    }

    /// Starts `run`; does not wait for anything.
    #[track_caller]
    pub fn start(&mut self) {
        assert!(self.daemon.is_none(), "the agent runs already");
        self.daemon = Some(Daemon::start(&mut self.run_command(), &self.logs, &self.name));
    }

    /// The running `run`.
    #[track_caller]
    pub fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("the agent runs")
    }

    /// Whether `run` was started and not stopped by the test.
    pub fn is_running(&self) -> bool {
        self.daemon.is_some()
    }

    /// SIGKILL.
    #[track_caller]
    pub fn kill9(&mut self) {
        self.daemon().kill9();
        self.daemon = None;
    }

    /// SIGTERM; it must end with exit code 0.
    #[track_caller]
    pub fn stop(&mut self) {
        let code = self.daemon().stop();
        assert_eq!(code, Some(0), "SIGTERM drains and stops; log:\n{}", self.daemon().log());
        self.daemon = None;
    }

    /// [`Self::stop`] and [`Self::start`].
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop();
        self.start();
    }

    /// A subcommand with `--root ROOT` and `args`.
    pub fn command(&self, subcommand: &str, args: &[&str]) -> Command {
        let mut command = Command::new(binary("syncd-agent"));
        command.arg(subcommand).arg("--root").arg(&self.root).args(args);
        clean_environment(&mut command);
        command
    }

    /// Runs [`Self::command`].
    #[track_caller]
    pub fn cli(&self, subcommand: &str, args: &[&str]) -> Outcome {
        run(&mut self.command(subcommand, args))
    }

    /// `status --json`; `None` where that fails, as it may while the agent starts.
    pub fn try_status(&self) -> Option<AgentStatus> {
        let outcome = self.cli("status", &["--json"]);
        if outcome.code == Some(0) { serde_json::from_str(&outcome.stdout).ok() } else { None }
    }

    /// `status --json`.
    #[track_caller]
    pub fn status(&self) -> AgentStatus {
        let outcome = self.cli("status", &["--json"]).expect_success();
        serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {outcome:#?}"))
    }

    /// The live link.
    pub fn live(&self) -> PathBuf {
        self.root.join("live")
    }

    /// The generation that `live` leads to on disk; `None` where there is no link.
    #[track_caller]
    pub fn live_generation(&self) -> Option<u64> {
        let target = std::fs::read_link(self.live()).ok()?;
        let number = target.strip_prefix("generations").ok().and_then(|n| n.to_str()?.parse().ok());
        Some(number.unwrap_or_else(|| panic!("live leads to {}, not to a generation", target.display())))
    }

    /// Waits until a generation of at least this number is live, on disk and in `status`; its number.
    #[track_caller]
    pub fn wait_live(&self, number: u64) -> u64 {
        wait::until_ok(&format!("{} to have generation {number} live", self.name), || {
            let on_disk = self.live_generation();
            let status = self.try_status();
            let said = status.as_ref().and_then(|s| s.generation);
            match on_disk {
                Some(n) if n >= number && said == on_disk => Ok(n),
                _ => Err(format!("on disk {on_disk:?}, status {status:?}")),
            }
        })
    }
}
