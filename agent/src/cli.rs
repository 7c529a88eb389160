//! The command line, a contract described in the README. Results go to standard output, everything else to
//! standard error.

#![cfg_attr(not(test), expect(clippy::disallowed_methods, reason = "paths of the operator"))]

mod configuration;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, CommandFactory, Parser, Subcommand};
use indicatif::HumanBytes;
use syncd_runtime::bucket::BucketUrl;
use syncd_runtime::local_socket;
use syncd_runtime::manual::Shell;
use syncd_runtime::output::note;
use syncd_runtime::rate::Rate;
use syncd_runtime::settings::ConfigAction;
use syncd_runtime::signals::Signals;
use syncd_runtime::version::version;
use syncd_runtime::{act_as, config_file, manual, output, supervisor};
use syncd_shared::address::listen_address;
use syncd_shared::identity::{AgentName, JoinToken, RootFingerprint};
use syncd_shared::text::{counted, error_chain};
use syncd_shared::time_span::{parse_time, time_or_zero};

use crate::admin::{self, Reply, Request, nobody_serves};
use crate::config::{self, Owner, RunOptions};
use crate::follow::FollowOptions;
use crate::join::{self, JoinOptions, Joined};
use crate::session::worker::{Display, Drifted, Verified};
use crate::state::swap::Swap;
use crate::status::{self, AgentStatus, Verdict};
use crate::{offline, php, service};

/// Configuration file that is read unless another one is named.
const CONFIG: &str = "/etc/syncd/agent.toml";

const EXIT_CODES: &str = "Exit codes: 0 success; 1 failure; 2 wrong usage; 141 standard output was closed. `status --check` \
                          has its own.\nSYNCD_LOG=debug logs more. See also: syncd-origin.";

const JOIN_HELP: &str = "\
Examples:
  SYNCD_TOKEN=syncd1-... syncd-agent join origin.example.org:8873
  syncd-agent join origin.example.org:8873 --token-file - < token

A node whose certificate was revoked joins again with a new token, and keeps its content.";
const RUN_HELP: &str = "\
Examples:
  syncd-agent run
  syncd-agent run --on-activate 'systemctl reload apache2' --owner root:root

TIME is a number with a unit, as in 500ms, 30s or 7d. RATE is bytes per second; K, M and G are \
powers of 1,024.

SIGTERM stops cleanly. SIGHUP does not reload options.";
const TRUST_HELP: &str = "\
Examples:
  syncd-agent trust 6f1d... --root /var/lib/syncd/agent

The keys in use stay trusted until the new root key has signed others.";
const STATUS_HELP: &str = "\
Examples:
  syncd-agent status
  syncd-agent status --check > /dev/null || echo 'look at this node'";
const PHP_INVALIDATE_HELP: &str = "\
Examples:
  syncd-agent run --on-activate 'syncd-agent php-invalidate --fpm /run/php/php8.2-fpm.sock && /usr/local/lib/syncd/apache-live'

Exit codes: 0 success; 1 a PHP-FPM may still run old code.";
const CHECK_PHP_HELP: &str = "\
Examples:
  syncd-agent check-php --fpm /run/php/php8.2-fpm.sock
  syncd-agent check-php --ini /etc/php/8.2/apache2

Exit codes: 0 the settings suit; 1 they do not, or the check failed; 3 warnings only.";
const VERIFY_HELP: &str = "\
Examples:
  syncd-agent verify --json

Exit codes: 0 success, all differences healed; 1 failure, or a file could not be healed.";

const CONFIG_HELP: &str = "\
Examples:
  syncd-agent config check
  syncd-agent config show --config /etc/syncd/agent.toml -- --keep 3";
const COMPLETIONS_HELP: &str = "\
Examples:
  syncd-agent completions bash > /usr/share/bash-completion/completions/syncd-agent";

/// Keeps a full, verified, atomically switched replica of an origin's content tree.
#[derive(Debug, Parser)]
#[command(name = "syncd-agent", version = version(), max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Place {
    /// Directory of the replica. The web server reads ROOT/live.
    #[arg(long, env = "SYNCD_ROOT", default_value = config::ROOT, value_name = "DIR")]
    root: PathBuf,
    /// TOML file with defaults for these options [default: /etc/syncd/agent.toml, if it exists].
    #[arg(long, value_name = "FILE", env = "SYNCD_AGENT_CONFIG")]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Enrol this node with a token from `syncd-origin token`.
    #[command(after_help = JOIN_HELP)]
    Join(Join),
    /// Follow the origin and keep the replica up to date, until SIGTERM.
    #[command(after_help = RUN_HELP)]
    Run(Box<Run>),
    /// Trust another root key of the tree, after the loss of the old one.
    #[command(after_help = TRUST_HELP)]
    Trust {
        /// Fingerprint of the root key, as printed by `syncd-origin key show`.
        fingerprint: RootFingerprint,
        #[command(flatten)]
        place: Place,
    },
    /// Show the live generation and the state of the agent.
    #[command(after_help = STATUS_HELP)]
    Status {
        #[command(flatten)]
        place: Place,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// Exit with 1 if nothing is live or no agent runs. Exit with 3 if a newer generation may exist, or
        /// if something is wrong.
        #[arg(long)]
        check: bool,
    },
    /// Make PHP-FPM forget cached code that has changed. For use in the on-activate hook.
    #[command(after_help = PHP_INVALIDATE_HELP)]
    PhpInvalidate(php::invalidate::Invalidate),
    /// Check that the settings of PHP suit the replica of the running agent.
    #[command(after_help = CHECK_PHP_HELP)]
    CheckPhp {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        check: php::check::Check,
    },
    /// Hash every file of the replica, and heal files that differ from the manifest.
    #[command(after_help = VERIFY_HELP)]
    Verify {
        #[command(flatten)]
        place: Place,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check or show the configuration of `run`.
    #[command(after_help = CONFIG_HELP)]
    Config {
        #[command(subcommand)]
        action: ConfigAction,
    },
    /// Print completions for a shell.
    #[command(after_help = COMPLETIONS_HELP)]
    Completions { shell: Shell },
    /// Write man pages to a directory.
    #[command(hide = true, after_help = "Examples:\n  syncd-agent man .")]
    Man { directory: PathBuf },
}

#[derive(Debug, Args)]
struct Join {
    /// Address of the origin.
    #[arg(value_name = "HOST:PORT")]
    address: String,
    #[command(flatten)]
    place: Place,
    /// Join token. Other users can see it in the process list: prefer SYNCD_TOKEN or --token-file.
    #[arg(long, env = "SYNCD_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,
    /// File with the join token; `-` is standard input.
    #[arg(long, value_name = "FILE", env = "SYNCD_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Name of the agent [default: the name that ROOT has, otherwise the host name].
    #[arg(long, env = "SYNCD_NAME")]
    name: Option<AgentName>,
    /// Allow another name than ROOT has. The old name stays enrolled until it is revoked.
    #[arg(long)]
    rename: bool,
}

#[derive(Debug, Args)]
struct Run {
    #[command(flatten)]
    place: Place,
    /// Address of the origin [default: the address that this node joined].
    #[arg(long, env = "SYNCD_ORIGIN", value_name = "HOST:PORT")]
    origin: Option<String>,
    /// Published tree to follow in place of the origin, without a join: the URL of `syncd-origin serve
    /// --publish`, as in file:///srv/published.
    #[arg(long, env = "SYNCD_FOLLOW", value_name = "URL", requires = "trust", conflicts_with = "origin")]
    follow: Option<BucketUrl>,
    /// Fingerprint of the root key whose tree is followed, as printed by `syncd-origin key show`.
    #[arg(long, env = "SYNCD_TRUST", value_name = "FINGERPRINT", requires = "follow")]
    trust: Option<RootFingerprint>,
    /// Address of the health page [default: 127.0.0.1:8875].
    #[arg(long, env = "SYNCD_AGENT_HTTP", value_name = "ADDR:PORT", value_parser = listen_address)]
    http: Option<SocketAddr>,
    /// How ROOT/live is switched.
    #[arg(long, env = "SYNCD_SWAP", value_enum, default_value = "link")]
    swap: Swap,
    /// Number of generations to keep, the live one included.
    #[arg(long, env = "SYNCD_KEEP", default_value_t = config::KEEP, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=64))]
    keep: u32,
    /// Time for which a tree is not reused after it was live.
    #[arg(long, env = "SYNCD_GRACE", default_value = "150s", value_name = "TIME",
          value_parser = parse_time)]
    grace: Duration,
    /// Interval at which every file of the live tree is hashed in the background, and healed if it was edited
    /// on the node. 0 means never.
    #[arg(long, env = "SYNCD_VERIFY_EVERY", default_value = "7d", value_name = "TIME", value_parser = time_or_zero)]
    verify_every: Duration,
    /// Owner of all files, as in www-data:www-data or 33:33 [default: the owners in the content tree].
    #[arg(long, env = "SYNCD_OWNER", value_name = "USER:GROUP")]
    owner: Option<Owner>,
    /// Command to run with `sh -c` after each activation. Gets the changed paths on standard input.
    #[arg(long, env = "SYNCD_ON_ACTIVATE", value_name = "CMD")]
    on_activate: Option<String>,
    /// Command to run with `sh -c` before each activation. If it fails, the old generation stays live.
    #[arg(long, env = "SYNCD_BEFORE_ACTIVATE", value_name = "CMD")]
    before_activate: Option<String>,
    /// Time limit of a hook. A hook that takes longer is killed and counts as failed.
    #[arg(long, env = "SYNCD_HOOK_TIMEOUT", default_value = "60s", value_name = "TIME",
          value_parser = parse_time)]
    hook_timeout: Duration,
    /// Limit of the bytes per second received, as in 10M [default: unlimited]. Counts compressed bytes; the
    /// progress shown counts content.
    #[arg(long, env = "SYNCD_AGENT_BWLIMIT", value_name = "RATE")]
    bwlimit: Option<Rate>,
}

impl Command {
    /// The replica that the command may change, besides an agent that runs.
    fn root_opened(&self) -> Option<&Path> {
        match self {
            Self::Join(Join { place, .. })
            | Self::Trust { place, .. }
            | Self::Status { place, .. }
            | Self::Verify { place, .. } => Some(&place.root),
            _ => None,
        }
    }
}

impl Cli {
    /// Parses the command line over environment, configuration file and defaults. Wrong usage ends the
    /// process with 2.
    pub fn from_process() -> Self {
        Self::from_arguments(std::env::args_os()).unwrap_or_else(|error| error.exit())
    }

    fn from_arguments(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut command = Self::command();
        let given: Vec<OsString> = arguments.into_iter().collect();
        let arguments =
            config_file::arguments_with_config(given.iter().cloned(), &command, Some(Path::new(CONFIG)))
                .map_err(|error| command.error(clap::error::ErrorKind::Io, error_chain(&error)))?;
        Self::try_parse_from(arguments)
            .map_err(|error| config_file::explain(error, &command, &given, Some(Path::new(CONFIG))))
    }
}

/// Runs a parsed command line to its end.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    if let Some(root) = cli.command.root_opened() {
        act_as::owner_of(root).with_context(|| format!("act as the owner of {}", root.display()))?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        match cli.command {
            Command::Join(join) => enrol(join).await,
            Command::Run(run) => run_until_signal(*run).await,
            Command::Trust { fingerprint, place } => trust(&place.root, fingerprint).await,
            Command::Status { place, json, check } => status(&place.root, json, check).await,
            Command::PhpInvalidate(options) => php::invalidate::run(options).await,
            Command::CheckPhp { place, check } => check_php(&place.root, check).await,
            Command::Verify { place, json } => verify(&place.root, json).await,
            Command::Config { action } => configuration::run(action),
            Command::Completions { shell } => {
                manual::print_completions(Cli::command(), shell)?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Man { directory } => {
                manual::write_pages(Cli::command(), &directory).context("write the man pages")?;
                Ok(ExitCode::SUCCESS)
            }
        }
    });
    // Threads that are still blocked were told to stop and have had their time.
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

async fn enrol(join: Join) -> anyhow::Result<ExitCode> {
    let token = read_token(&join)?;
    let root = join.place.root;
    let options = JoinOptions {
        address: join.address,
        root: root.clone(),
        token,
        name: join.name,
        rename: join.rename,
    };
    let Joined { identity, earlier_name, is_running } = join::join(options).await?;
    output::line(identity.name())?;
    let next = if is_running { "the running agent uses the new identity" } else { "next:" };
    note(format_args!("joined tree {} as {}; {next}", identity.tree_id(), identity.name()));
    if !is_running {
        note(format_args!("  syncd-agent run --root {}", root.display()));
    }
    if let Some(earlier) = earlier_name.filter(|earlier| earlier != identity.name()) {
        let revoke = format_args!("syncd-origin revoke {earlier}");
        note(format_args!("{earlier} stays enrolled until it is revoked, at the origin: {revoke}"));
    }
    Ok(ExitCode::SUCCESS)
}

fn read_token(join: &Join) -> anyhow::Result<JoinToken> {
    let text = match (&join.token, &join.token_file) {
        (Some(token), _) => token.clone(),
        (None, Some(file)) if file == Path::new("-") => std::io::read_to_string(std::io::stdin())?,
        (None, Some(file)) => std::fs::read_to_string(file)
            .with_context(|| format!("can't read the token file {}", file.display()))?,
        (None, None) => bail!(
            "no token: get one with `syncd-origin token` and give it as SYNCD_TOKEN, --token-file or --token"
        ),
    };
    Ok(text.trim().parse()?)
}

impl Run {
    fn options(self) -> anyhow::Result<RunOptions> {
        if let (Some(file), true) =
            (&self.place.config, self.on_activate.is_some() || self.before_activate.is_some())
        {
            config::check_trusted(file)?;
        }
        Ok(RunOptions {
            root: std::path::absolute(&self.place.root)?,
            origin: self.origin,
            follow: self.follow.zip(self.trust).map(|(url, root)| FollowOptions { url, root }),
            http: self.http.unwrap_or(config::HTTP),
            http_required: self.http.is_some(),
            swap: Some(self.swap),
            keep: self.keep,
            grace: self.grace,
            verify_every: self.verify_every,
            owner: self.owner,
            before_activate: self.before_activate,
            on_activate: self.on_activate,
            hook_timeout: self.hook_timeout,
            bwlimit: self.bwlimit,
        })
    }
}

async fn run_until_signal(run: Run) -> anyhow::Result<ExitCode> {
    let options = run.options()?;
    let mut signals = Signals::listen()?;
    let mut agent = service::start(options).await?;
    {
        let status = agent.status();
        let status = status.borrow();
        tracing::info!(name = status.name, origin = status.origin, live = status.generation, "agent runs");
        if let Some(address) = agent.http_address() {
            tracing::info!("health on http://{address}/healthz");
        }
    }
    let ready = supervisor::ready();
    tokio::select! {
        () = signals.stop() => {}
        ended = agent.ended() => {
            ended?;
            bail!("the agent stopped by itself; the log above says why");
        }
    }
    tracing::info!("stopping");
    drop(ready);
    agent.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// Status of the running agent; `None`: no agent runs.
async fn running_status(root: &Path) -> anyhow::Result<Option<AgentStatus>> {
    let socket = admin::socket_path(root);
    match local_socket::request_one::<_, Reply>(&socket, &Request::Status).await {
        Ok(Reply::Status(status)) => Ok(Some(*status)),
        Ok(Reply::Error { message }) => bail!("{message}"),
        Ok(_) => bail!("the running agent is of another version: restart it"),
        Err(error) if nobody_serves(&error) => Ok(None),
        Err(error) => Err(error).context("can't ask the running agent"),
    }
}

async fn trust(root: &Path, fingerprint: RootFingerprint) -> anyhow::Result<ExitCode> {
    let request = Request::PinRoot { root: fingerprint.to_string() };
    match local_socket::request_one::<_, Reply>(&admin::socket_path(root), &request).await {
        Ok(Reply::Adopted) => {}
        Ok(Reply::Error { message }) => bail!("{message}"),
        Ok(_) => bail!("the running agent is of another version: restart it"),
        Err(error) if nobody_serves(&error) => offline::pin_root(root, fingerprint)?,
        Err(error) => return Err(error).context("can't ask the running agent"),
    }
    note(format_args!("trust documents of root key {fingerprint} are followed from now on"));
    Ok(ExitCode::SUCCESS)
}

async fn check_php(root: &Path, check: php::check::Check) -> anyhow::Result<ExitCode> {
    let running = running_status(root).await?;
    let Some((swap, settings)) = running.and_then(|status| Some((status.swap, status.settings?))) else {
        bail!("no agent runs on {}: start it, its options are part of what is checked", root.display())
    };
    php::check::run(check, root, swap, settings).await
}

async fn status(root: &Path, json: bool, check: bool) -> anyhow::Result<ExitCode> {
    let status = match running_status(root).await? {
        Some(status) => status,
        None => {
            let root = std::path::absolute(root)?;
            tokio::task::spawn_blocking(move || offline::status(&root)).await??
        }
    };
    print_status(&status, json)?;
    Ok(match status.verdict() {
        Verdict::NotServing if check => ExitCode::FAILURE,
        Verdict::NotFollowing if check => ExitCode::from(3),
        _ => ExitCode::SUCCESS,
    })
}

fn print_status(status: &AgentStatus, json: bool) -> anyhow::Result<()> {
    if json {
        output::line(serde_json::to_string(status)?)?;
    } else {
        output::line(status)?;
    }
    Ok(())
}

async fn verify(root: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let socket = admin::socket_path(root);
    let verified = match local_socket::request::<_, Reply>(&socket, &Request::Verify).await {
        Ok(mut replies) => {
            let shown = Display::new("verifying");
            loop {
                match replies.next().await? {
                    Some(Reply::Progress(progress)) => shown.show(progress),
                    Some(Reply::Verified(verified)) => {
                        shown.finish();
                        break verified;
                    }
                    Some(Reply::Error { message }) => bail!("{message}"),
                    Some(Reply::Status(_) | Reply::Adopted) => {
                        bail!("the running agent is of another version: restart it")
                    }
                    None => bail!("the agent stopped before it had answered"),
                }
            }
        }
        Err(error) if nobody_serves(&error) => offline::verify(&std::path::absolute(root)?).await?,
        Err(error) => return Err(error).context("can't ask the running agent"),
    };
    print_verified(&verified, json)?;
    Ok(if verified.is_whole() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_verified(verified: &Verified, json: bool) -> anyhow::Result<()> {
    if json {
        output::line(serde_json::to_string(verified)?)?;
        return Ok(());
    }
    for Drifted { path, what } in &verified.drift {
        // No name in a tree is ".".
        let path = if path == "." { status::ROOT_SHOWN } else { path };
        output::line(format_args!("{what:<10}  {path}"))?;
    }
    let Verified { files, bytes, drifted, healed, kept, .. } = verified;
    let drift = match (*drifted, healed) {
        (0, _) => "no drift".to_owned(),
        (drifted, true) => format!("{} drifted, healed", counted(drifted, "path", "paths")),
        (drifted, false) => format!("{} drifted, not healed", counted(drifted, "path", "paths")),
    };
    let files = counted(*files, "file", "files");
    output::line(format_args!("{files}, {} verified: {drift}", HumanBytes(*bytes)))?;
    if let Some(kept) = kept {
        output::line(format_args!("extra and changed files are kept in {kept}"))?;
    }
    if !verified.is_whole() {
        let reason = "verify again when the origin can be reached";
        note(format_args!("not healed: {}", verified.error.as_deref().unwrap_or(reason)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::from_arguments(line.split(' ').map(OsString::from))
    }

    fn run_options(line: &str) -> RunOptions {
        match parse(line).unwrap().command {
            Command::Run(run) => run.options().unwrap(),
            _ => panic!("no run"),
        }
    }

    #[test]
    fn the_definition_holds() {
        Cli::command().debug_assert();
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains(&format!("syncd-agent {}", command.get_name())), "{}", command.get_name());
        }
    }

    #[test]
    fn a_defaulted_port_is_not_required_and_one_that_was_asked_for_is() {
        let options = run_options("syncd-agent run --root /r");
        assert_eq!((options.http, options.http_required), (config::HTTP, false));
        assert_eq!((options.keep, options.grace), (2, Duration::from_secs(150)));
        assert_eq!(options.verify_every, Duration::from_secs(7 * 86_400));
        let options = run_options("syncd-agent run --root /r --verify-every 0");
        assert_eq!(options.verify_every, Duration::ZERO);
        let options =
            run_options("syncd-agent run --root /r --http 127.0.0.1:8875 --bwlimit 10M --owner 33:33");
        assert!(options.http_required);
        assert_eq!(options.owner, Some(Owner { uid: 33, gid: 33 }));
    }

    #[test]
    fn live_is_a_symlink_unless_it_is_to_be_exchanged() {
        let swap = |more| run_options(&format!("syncd-agent run --root /r{more}")).swap;
        assert_eq!(swap(""), Some(Swap::Link));
        assert_eq!(swap(" --swap exchange"), Some(Swap::Exchange));
        assert_eq!(parse("syncd-agent run --root /r --swap symlink").unwrap_err().exit_code(), 2);
    }

    #[test]
    fn what_is_not_built_is_wrong_usage() {
        assert_eq!(parse("syncd-agent join").unwrap_err().exit_code(), 2);
        assert_eq!(parse("syncd-agent run --keep 0").unwrap_err().exit_code(), 2);
        let error = parse("syncd-agent run --http 8875").unwrap_err();
        assert_eq!((error.exit_code(), error.to_string().contains("localhost:8873")), (2, true), "{error}");
    }
}
