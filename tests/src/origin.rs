//! `syncd-origin` in a process of its own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::process::{Daemon, Outcome, run};
use crate::{Scene, binary, wait};

/// `syncd-origin status --json`, every field of the contract.
#[derive(Debug, Clone, Deserialize)]
pub struct OriginStatus {
    /// 32 hex digits.
    pub tree_id: String,
    /// The content tree.
    pub tree: Option<PathBuf>,
    /// Where agents dial in.
    pub grpc_address: Option<String>,
    /// Where the health answer is.
    pub http_address: Option<String>,
    /// `ready`, `scanning`, `held`, `waiting` or `stopped`.
    pub state: String,
    /// The newest generation.
    pub generation: Option<u64>,
    /// Its root hash in hex.
    pub root: Option<String>,
    /// Its label.
    pub label: Option<String>,
    /// When it was sealed, RFC 3339.
    pub created: Option<String>,
    /// Its files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The fleet.
    pub agents: Vec<FleetMember>,
}

/// One agent in `syncd-origin status --json`.
#[derive(Debug, Clone, Deserialize)]
pub struct FleetMember {
    /// Its name.
    pub name: String,
    /// Whether its control stream is open.
    pub connected: bool,
    /// Its live generation.
    pub generation: Option<u64>,
    /// The root hash of that.
    pub root: Option<String>,
    /// `empty`, `fetching`, `staging`, `staged`, `live` or `failed`.
    pub state: String,
    /// RFC 3339.
    pub last_seen: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
    pub notes: Vec<String>,
    /// Activations for which no spare was ready, since it started.
    #[serde(default)]
    pub spare_misses: u64,
}

impl OriginStatus {
    /// The agent of this name.
    #[track_caller]
    pub fn agent(&self, name: &str) -> &FleetMember {
        self.agents.iter().find(|a| a.name == name).unwrap_or_else(|| panic!("no agent {name} in {self:?}"))
    }
}

/// The guard against mass deletions is the suite `bad_input`'s.
const WHATEVER: &str = "--allow-mass-deletion";

/// An origin: its data directory, and its `serve` process while that runs.
pub struct Origin {
    /// The content tree.
    pub tree: PathBuf,
    /// DATA.
    pub data: PathBuf,
    options: Vec<String>,
    prefix: Vec<OsString>,
    listen: String,
    logs: PathBuf,
    name: String,
    daemon: Option<Daemon>,
}

impl Origin {
    /// `init` in the scene's directory `origin`; nothing runs yet.
    #[track_caller]
    pub fn create(scene: &Scene, tree: &Path) -> Self {
        Self::create_named(scene, "origin", tree)
    }

    /// [`Self::create`] under another name, for a second origin.
    #[track_caller]
    pub fn create_named(scene: &Scene, name: &str, tree: &Path) -> Self {
        let origin = Self::existing(scene, name, tree);
        origin.cli("init", &["--host", "127.0.0.1"]).expect_success();
        origin
    }

    /// The origin in the scene's directory `name`, which was or will be initialised by the test.
    pub fn existing(scene: &Scene, name: &str, tree: &Path) -> Self {
        Self {
            tree: tree.to_path_buf(),
            data: scene.path(name),
            options: vec!["--trigger".into(), "manual".into()],
            prefix: Vec::new(),
            listen: "127.0.0.1:0".into(),
            logs: scene.directory().to_path_buf(),
            name: name.to_string(),
            daemon: None,
        }
    }

    /// [`Self::create`] and [`Self::start`].
    #[track_caller]
    pub fn started(scene: &Scene, tree: &Path) -> Self {
        let mut origin = Self::create(scene, tree);
        origin.start();
        origin
    }

    /// Replaces the options of `serve` (by default `--trigger manual`).
    pub fn with_options(mut self, options: &[&str]) -> Self {
        self.options = options.iter().map(|s| s.to_string()).collect();
        self
    }

    /// Runs `serve` under another program, which must keep the process id (`strace -D`, `ip netns exec`).
    pub fn under(&mut self, prefix: &[OsString]) {
        self.prefix = prefix.to_vec();
    }

    /// The command line of `serve`.
    pub fn serve_command(&self) -> Command {
        let mut words = self.prefix.iter().cloned().chain([binary("syncd-origin").into_os_string()]);
        let mut command = Command::new(words.next().expect("a program"));
        command.args(words).arg("serve").arg("--tree").arg(&self.tree).arg("--data").arg(&self.data);
        command.args(["--listen", &self.listen, "--http", "127.0.0.1:0"]).args(&self.options);
        clean_environment(&mut command);
        command
    }

    /// Starts `serve` and waits until it answers. A restart listens at the same address, so that agents find it.
    #[track_caller]
    pub fn start(&mut self) {
        assert!(self.daemon.is_none(), "the origin runs already");
        let mut daemon = Daemon::start(&mut self.serve_command(), &self.logs, &self.name);
        let address = wait::until("the origin to serve", || {
            if let Some(status) = daemon.ended() {
                panic!("the origin ended at once, {status}:\n{}", daemon.log());
            }
            // Before it listens there, `status` would wait for the lock of DATA itself.
            let socket = std::os::unix::net::UnixStream::connect(self.data.join("admin.sock"));
            if socket.is_err_and(|error| error.kind() != std::io::ErrorKind::InvalidInput) {
                return None;
            }
            let status = self.try_status()?;
            let settled = ["ready", "held", "waiting"].contains(&status.state.as_str());
            settled.then_some(status.grpc_address).flatten()
        });
        self.listen = address;
        self.daemon = Some(daemon);
    }

    /// `HOST:PORT` for `join`.
    pub fn address(&self) -> &str {
        &self.listen
    }

    /// The running `serve`.
    #[track_caller]
    pub fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("the origin runs")
    }

    /// Whether `serve` was started and not stopped by the test.
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

    /// A subcommand with `--data DATA` and `args`.
    pub fn command(&self, subcommand: &str, args: &[&str]) -> Command {
        let mut command = Command::new(binary("syncd-origin"));
        command.arg(subcommand).arg("--data").arg(&self.data).args(args);
        clean_environment(&mut command);
        command
    }

    /// Runs [`Self::command`].
    #[track_caller]
    pub fn cli(&self, subcommand: &str, args: &[&str]) -> Outcome {
        run(&mut self.command(subcommand, args))
    }

    /// `commit` without waiting for agents, whatever random edits deleted; the number.
    #[track_caller]
    pub fn commit(&self) -> u64 {
        number(&self.cli("commit", &[WHATEVER]).expect_success())
    }

    /// `commit --wait`: live on every connected agent; the number.
    #[track_caller]
    pub fn commit_live(&self) -> u64 {
        number(&self.cli("commit", &[WHATEVER, "--wait"]).expect_success())
    }

    /// `token`.
    #[track_caller]
    pub fn token(&self) -> String {
        self.cli("token", &[]).expect_success().only_line().to_string()
    }

    /// `status --json`; `None` where that fails, or is no JSON of the contract's shape yet.
    pub fn try_status(&self) -> Option<OriginStatus> {
        let outcome = self.cli("status", &["--json"]);
        if outcome.code == Some(0) { serde_json::from_str(&outcome.stdout).ok() } else { None }
    }

    /// `status --json`.
    #[track_caller]
    pub fn status(&self) -> OriginStatus {
        let outcome = self.cli("status", &["--json"]).expect_success();
        serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {outcome:#?}"))
    }

    /// Waits until the origin sees `agents` connected.
    #[track_caller]
    pub fn wait_connected(&self, agents: &[&str]) {
        wait::until_ok("agents to connect", || {
            let status = self.status();
            let connected =
                |name: &&str| status.agents.iter().any(|member| member.name == **name && member.connected);
            if agents.iter().all(connected) { Ok(()) } else { Err(format!("{:?}", status.agents)) }
        });
    }

    /// Waits until a generation of at least this number is sealed; its number.
    #[track_caller]
    pub fn wait_generation(&self, number: u64) -> u64 {
        wait::until("a generation to be sealed", || {
            self.try_status().and_then(|s| s.generation).filter(|n| *n >= number)
        })
    }
}

/// A generation's number, alone on standard output.
#[track_caller]
fn number(outcome: &Outcome) -> u64 {
    outcome.only_line().parse().unwrap_or_else(|_| panic!("expected a number alone: {outcome:#?}"))
}

/// Nothing of the caller's environment changes what a command means.
pub(crate) fn clean_environment(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SYNCD_") {
            command.env_remove(name);
        }
    }
    command.env("NO_COLOR", "1");
}
