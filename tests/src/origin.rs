//! `syncd-origin` in a process of its own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::process::{Daemon, Outcome, run};
use crate::{Scene, binary, wait};

/// Output of `syncd-origin status --json`, with every field of the contract.
#[derive(Debug, Clone, Deserialize)]
pub struct OriginStatus {
    /// 32 hexadecimal digits.
    pub tree_id: String,
    pub tree: Option<PathBuf>,
    /// Address that agents dial.
    pub grpc_address: Option<String>,
    /// Address of the health page.
    pub http_address: Option<String>,
    /// `ready`, `scanning`, `held`, `waiting` or `stopped`.
    pub state: String,
    /// Why it is in this state, or what keeps it from publishing.
    pub reason: Option<String>,
    /// Number of the newest generation.
    pub generation: Option<u64>,
    /// Root hash, hexadecimal.
    pub root: Option<String>,
    pub label: Option<String>,
    /// Time of sealing, RFC 3339.
    pub created: Option<String>,
    /// Number of files.
    pub files: u64,
    /// Bytes in these files.
    pub bytes: u64,
    pub agents: Vec<FleetMember>,
}

/// One agent in `syncd-origin status --json`.
#[derive(Debug, Clone, Deserialize)]
pub struct FleetMember {
    pub name: String,
    /// Whether the control stream is open.
    pub connected: bool,
    /// Number of the live generation.
    pub generation: Option<u64>,
    /// Root hash of the live generation.
    pub root: Option<String>,
    /// `empty`, `fetching`, `staging`, `staged`, `live` or `failed`.
    pub state: String,
    /// Time in RFC 3339.
    pub last_seen: Option<String>,
    /// Reason of the last failure.
    pub error: Option<String>,
    pub notes: Vec<String>,
    /// Activations without a ready spare since the agent started.
    #[serde(default)]
    pub spare_misses: u64,
}

impl OriginStatus {
    /// The agent with this name.
    #[track_caller]
    pub fn agent(&self, name: &str) -> &FleetMember {
        self.agents.iter().find(|a| a.name == name).unwrap_or_else(|| panic!("no agent {name} in {self:?}"))
    }
}

/// Always given, because only the suite `bad_input` tests the guard against mass deletions.
const WHATEVER: &str = "--allow-mass-deletion";

/// An origin: its data directory, and its `serve` process while it runs.
pub struct Origin {
    pub tree: PathBuf,
    /// DATA.
    pub data: PathBuf,
    options: Vec<String>,
    environment: Vec<(String, String)>,
    prefix: Vec<OsString>,
    listen: String,
    http: String,
    logs: PathBuf,
    name: String,
    daemon: Option<Daemon>,
}

impl Origin {
    /// Runs `init` in the scene's directory `origin`, without starting `serve`.
    #[track_caller]
    pub fn create(scene: &Scene, tree: &Path) -> Self {
        Self::create_named(scene, "origin", tree)
    }

    /// Like [`Self::create`], under another name, for a second origin.
    #[track_caller]
    pub fn create_named(scene: &Scene, name: &str, tree: &Path) -> Self {
        let origin = Self::existing(scene, name, tree);
        origin.cli("init", &["--host", "127.0.0.1"]).expect_success();
        origin
    }

    /// The origin in the scene's directory `name`. The test initialises it.
    pub fn existing(scene: &Scene, name: &str, tree: &Path) -> Self {
        Self {
            tree: tree.to_path_buf(),
            data: scene.path(name),
            options: vec!["--trigger".into(), "manual".into()],
            environment: Vec::new(),
            prefix: Vec::new(),
            listen: "127.0.0.1:0".into(),
            http: "127.0.0.1:0".into(),
            logs: scene.directory().to_path_buf(),
            name: name.to_string(),
            daemon: None,
        }
    }

    /// Like [`Self::create`], followed by [`Self::start`].
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

    /// Runs all its commands with these variables.
    pub fn with_environment(mut self, environment: &[(String, String)]) -> Self {
        self.environment = environment.to_vec();
        self
    }

    /// Listens on this address for agents, in place of a free port.
    pub fn listening(mut self, address: &str) -> Self {
        self.listen = address.to_owned();
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
        command.args(["--listen", &self.listen, "--http", &self.http]).args(&self.options);
        clean_environment(&mut command);
        command.envs(self.environment.iter().cloned());
        command
    }

    /// Starts `serve` and waits until it answers. A restart listens on the same address, so that agents find
    /// it.
    #[track_caller]
    pub fn start(&mut self) {
        assert!(self.daemon.is_none(), "the origin runs already");
        let mut daemon = Daemon::start(&mut self.serve_command(), &self.logs, &self.name);
        let address = wait::until("the origin to serve", || {
            if let Some(status) = daemon.ended() {
                panic!("the origin ended at once, {status}:\n{}", daemon.log());
            }
            // Before `serve` listens on its socket, `status` would wait for the lock of DATA.
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

    /// Has a restart answer HTTP at the same address, too, for a page that is open meanwhile.
    #[track_caller]
    pub fn keep_http_address(&mut self) {
        self.http = self.status().http_address.expect("an address");
    }

    /// Starts `serve` with `--standby` among its options, and waits until it stands by.
    #[track_caller]
    pub fn stand_by(&mut self) {
        let mut daemon = Daemon::start(&mut self.serve_command(), &self.logs, &self.name);
        wait::until("the origin to stand by", || {
            if let Some(status) = daemon.ended() {
                panic!("the origin ended at once, {status}:\n{}", daemon.log());
            }
            self.data
                .join("admin.sock")
                .exists()
                .then(|| self.try_status())
                .flatten()
                .filter(|s| s.state == "standby")
        });
        self.daemon = Some(daemon);
    }

    /// `HOST:PORT` for `join`.
    pub fn address(&self) -> &str {
        &self.listen
    }

    /// The `serve` process.
    #[track_caller]
    pub fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("the origin runs")
    }

    /// Whether `serve` was started and not stopped by the test.
    pub fn is_running(&self) -> bool {
        self.daemon.is_some()
    }

    /// Sends SIGKILL.
    #[track_caller]
    pub fn kill9(&mut self) {
        self.daemon().kill9();
        self.daemon = None;
    }

    /// Sends SIGTERM and asserts exit code 0.
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
        command.envs(self.environment.iter().cloned());
        command
    }

    /// Runs [`Self::command`].
    #[track_caller]
    pub fn cli(&self, subcommand: &str, args: &[&str]) -> Outcome {
        run(&mut self.command(subcommand, args))
    }

    /// Runs `commit` without waiting for agents and with any deletions. Returns the number.
    #[track_caller]
    pub fn commit(&self) -> u64 {
        number(&self.cli("commit", &[WHATEVER]).expect_success())
    }

    /// Runs `commit --wait`, which ends when the generation is live on every connected agent. Returns the
    /// number.
    #[track_caller]
    pub fn commit_live(&self) -> u64 {
        number(&self.cli("commit", &[WHATEVER, "--wait"]).expect_success())
    }

    /// Runs `token`.
    #[track_caller]
    pub fn token(&self) -> String {
        self.cli("token", &[]).expect_success().only_line().to_string()
    }

    /// `status --json`; `None` if that fails or does not have the form of the contract yet.
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

    /// Waits until these agents are connected.
    #[track_caller]
    pub fn wait_connected(&self, agents: &[&str]) {
        wait::until_ok("agents to connect", || {
            let status = self.status();
            let connected =
                |name: &&str| status.agents.iter().any(|member| member.name == **name && member.connected);
            if agents.iter().all(connected) { Ok(()) } else { Err(format!("{:?}", status.agents)) }
        });
    }

    /// Waits until a generation of at least this number is sealed. Returns its number.
    #[track_caller]
    pub fn wait_generation(&self, number: u64) -> u64 {
        wait::until("a generation to be sealed", || {
            self.try_status().and_then(|s| s.generation).filter(|n| *n >= number)
        })
    }
}

/// The generation's number, which is the only line on standard output.
#[track_caller]
fn number(outcome: &Outcome) -> u64 {
    outcome.only_line().parse().unwrap_or_else(|_| panic!("expected a number alone: {outcome:#?}"))
}

/// Removes variables that would change the meaning of a command.
pub(crate) fn clean_environment(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SYNCD_") {
            command.env_remove(name);
        }
    }
    command.env("NO_COLOR", "1");
}
