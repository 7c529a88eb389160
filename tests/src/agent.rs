//! `syncd-agent` in a process of its own.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::oracle::{self, Facts};
use crate::origin::clean_environment;
use crate::process::{Daemon, Outcome, run, tool};
use crate::{Origin, Scene, binary, is_root, wait};

/// User of agents without privileges.
const SOMEBODY: &str = "nobody:nogroup";

/// Output of `syncd-agent status --json`, with every field of the contract.
#[derive(Debug, Clone, Deserialize)]
pub struct AgentStatus {
    pub name: String,
    /// ROOT.
    pub root_directory: PathBuf,
    /// `HOST:PORT`.
    pub origin: String,
    /// Whether the control stream is open.
    pub connected: bool,
    /// The live generation.
    pub generation: Option<u64>,
    /// Root hash of the live generation, hexadecimal.
    pub root: Option<String>,
    /// Path of the link `live`.
    pub live: PathBuf,
    /// `empty`, `fetching`, `staging`, `staged`, `live` or `failed`.
    pub state: String,
    /// The highest number accepted.
    pub accepted: Option<u64>,
    /// Numbers of the complete trees.
    pub generations: Vec<u64>,
    /// Number of trees ready to be patched.
    pub spares: u64,
    /// Time in RFC 3339.
    pub last_contact: Option<String>,
    /// Reason why the last update failed.
    pub error: Option<String>,
    /// Generations whose check failed.
    pub refused: Vec<Refused>,
}

/// A generation that an agent refuses.
#[derive(Debug, Clone, Deserialize)]
pub struct Refused {
    pub generation: u64,
}

/// An agent: its replica, and its `run` process while it runs.
pub struct Agent {
    /// Name in the fleet.
    pub name: String,
    /// ROOT.
    pub root: PathBuf,
    options: Vec<String>,
    environment: Vec<(String, String)>,
    /// Prefix that runs its commands as another user; empty: this process's user.
    account: Vec<OsString>,
    program: PathBuf,
    prefix: Vec<OsString>,
    logs: PathBuf,
    daemon: Option<Daemon>,
}

impl Agent {
    /// An agent in the scene's directory `name` that has not joined.
    pub fn new(scene: &Scene, name: &str) -> Self {
        Self {
            name: name.to_string(),
            root: scene.path(name),
            options: Vec::new(),
            environment: Vec::new(),
            account: Vec::new(),
            program: binary("syncd-agent"),
            prefix: Vec::new(),
            logs: scene.directory().to_path_buf(),
            daemon: None,
        }
    }

    /// Joins with a new token, without running.
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

    /// Makes the agent join and run without privileges, as a user of its own, even if this process is root.
    /// That user cannot give files away, so everything in its replica belongs to it.
    #[track_caller]
    pub fn unprivileged(mut self, scene: &Scene) -> Self {
        if is_root() {
            // The build directory may be closed to other users.
            self.program = scene.path("syncd-agent");
            if !self.program.exists() {
                std::fs::copy(binary("syncd-agent"), &self.program).expect("copy the program");
            }
            std::fs::create_dir_all(&self.root).expect("create the root");
            tool("chown", [SOMEBODY.into(), self.root.as_os_str().to_os_string()]);
            let (user, group) = SOMEBODY.split_once(':').expect("user and group");
            let words =
                ["setpriv", &format!("--reuid={user}"), &format!("--regid={group}"), "--clear-groups"];
            self.account = words.map(OsString::from).to_vec();
        }
        self
    }

    /// Adds options of `run`.
    pub fn with_options(mut self, options: &[&str]) -> Self {
        self.options.extend(options.iter().map(|s| s.to_string()));
        self
    }

    /// Runs all its commands with these variables.
    pub fn with_environment(mut self, environment: &[(String, String)]) -> Self {
        self.environment = environment.to_vec();
        self
    }

    /// Places the replica outside the scene.
    pub fn at(mut self, root: &Path) -> Self {
        self.root = root.to_path_buf();
        self
    }

    /// `join HOST:PORT --token TOKEN --name NAME`.
    #[track_caller]
    pub fn join(&self, address: &str, token: &str) -> Outcome {
        self.join_with(address, token, &["--name", &self.name])
    }

    /// Like [`Self::join`], with other options than the name.
    pub fn join_with(&self, address: &str, token: &str, options: &[&str]) -> Outcome {
        let mut command = self.program();
        command.args(["join", address, "--token", token, "--root"]).arg(&self.root).args(options);
        clean_environment(&mut command);
        run(&mut command)
    }

    /// Runs `run` under another program, which must keep the process id.
    pub fn under(&mut self, prefix: &[OsString]) {
        self.prefix = prefix.to_vec();
    }

    /// The command line of `run`.
    pub fn run_command(&self) -> Command {
        let mut command = self.program_under(&self.prefix);
        command.arg("run").arg("--root").arg(&self.root).args(["--http", "127.0.0.1:0"]);
        if !self.options.iter().any(|option| option == "--hook-timeout") {
            // Hooks that reload a web server take longer than by default on a busy machine.
            command.args(["--hook-timeout", "60s"]);
        }
        command.args(&self.options);
        clean_environment(&mut command);
        command.envs(self.environment.iter().cloned());
        command
    }

    /// Starts `run` without waiting.
    #[track_caller]
    pub fn start(&mut self) {
        assert!(self.daemon.is_none(), "the agent runs already");
        self.daemon = Some(Daemon::start(&mut self.run_command(), &self.logs, &self.name));
    }

    /// The `run` process.
    #[track_caller]
    pub fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("the agent runs")
    }

    /// Whether `run` was started and not stopped by the test.
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

    /// [`Self::stop`] and [`Self::start`].
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop();
        self.start();
    }

    fn program(&self) -> Command {
        self.program_under(&[])
    }

    fn program_under(&self, prefix: &[OsString]) -> Command {
        let program = self.program.as_os_str().to_os_string();
        let mut words = prefix.iter().chain(&self.account).cloned().chain([program]);
        let mut command = Command::new(words.next().expect("a program"));
        command.args(words);
        command
    }

    /// The tree as this agent should have it: a user who cannot give files away owns all of them.
    #[track_caller]
    pub fn expects(&self, tree: &Path) -> Facts {
        let mut facts = oracle::facts(tree);
        if !self.account.is_empty() {
            let root = std::fs::metadata(&self.root).expect("the root");
            facts.values_mut().for_each(|fact| fact.owner = (root.uid(), root.gid()));
        }
        facts
    }

    /// Panics unless the live tree equals `tree`, as far as this agent can make it so.
    #[track_caller]
    pub fn assert_live_is(&self, tree: &Path) {
        if self.account.is_empty() {
            return oracle::assert_same(tree, &self.live());
        }
        let expected = self.expects(tree);
        // Background work may lift a mode at this moment.
        wait::until_ok(&format!("{} to be as published", self.name), || {
            let differences = oracle::differences(&expected, &oracle::facts(&self.live()));
            if differences.is_empty() { Ok(()) } else { Err(differences.join("\n")) }
        });
        oracle::assert_no_shared_inode(&self.live());
    }

    /// Differences between `expected` and `tree`, which may be removed at any time. An agent without
    /// privileges sets the owner's bits of a closed directory or file while it works there, and a kill leaves
    /// them set until `verify` runs, so they do not count.
    pub fn differences(&self, expected: &Facts, tree: &Path) -> std::io::Result<Vec<String>> {
        Ok(self.differences_of(expected, oracle::try_facts(tree)?))
    }

    /// Like [`Self::differences`], for a tree that was already walked.
    pub fn differences_of(&self, expected: &Facts, mut actual: Facts) -> Vec<String> {
        if self.is_unprivileged() {
            oracle::close_lifted(expected, &mut actual);
        }
        oracle::differences(expected, &actual)
    }

    /// Whether it runs as a user of its own.
    pub fn is_unprivileged(&self) -> bool {
        !self.account.is_empty()
    }

    /// A subcommand with `--root ROOT` and `args`.
    pub fn command(&self, subcommand: &str, args: &[&str]) -> Command {
        let mut command = self.program();
        command.arg(subcommand).arg("--root").arg(&self.root).args(args);
        clean_environment(&mut command);
        command.envs(self.environment.iter().cloned());
        command
    }

    /// Runs [`Self::command`].
    #[track_caller]
    pub fn cli(&self, subcommand: &str, args: &[&str]) -> Outcome {
        run(&mut self.command(subcommand, args))
    }

    /// `status --json`; `None` if that fails, as it may while the agent starts.
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

    /// Path of the link `live`.
    pub fn live(&self) -> PathBuf {
        self.root.join("live")
    }

    /// Target of the link `live`, or `live` itself if that is a directory, and the inode number of the tree.
    pub fn live_target(&self) -> Option<(PathBuf, u64)> {
        let itself = |_| self.live().is_dir().then(|| PathBuf::from("live")).ok_or(());
        let target = std::fs::read_link(self.live()).or_else(itself).ok()?;
        Some((target, std::fs::metadata(self.live()).map_or(0, |live| live.ino())))
    }

    /// The generation that `live` leads to on disk; `None`: there is no link. The agent must have run since
    /// the last power cut, because the links in `generations/` may be outdated until then.
    #[track_caller]
    pub fn live_generation(&self) -> Option<u64> {
        let (target, _) = self.live_target()?;
        assert!(
            target.starts_with("slots") || target == Path::new("live"),
            "live leads to {}, not to a slot",
            target.display()
        );
        let slot = Path::new("..").join(target);
        let links = std::fs::read_dir(self.root.join("generations")).ok()?.filter_map(Result::ok);
        let is_live = |link: &PathBuf| std::fs::read_link(link).is_ok_and(|target| target == slot);
        let numbers = links.map(|link| link.path()).filter(is_live);
        numbers.filter_map(|link| link.file_name()?.to_str()?.parse().ok()).max()
    }

    /// Waits until a generation of at least this number is live, on disk and in `status`. Returns its number.
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
