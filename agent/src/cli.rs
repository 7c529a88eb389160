//! The command line: a contract, see the README. Results go to standard output, everything else to standard error.

#![cfg_attr(not(test), expect(clippy::disallowed_methods, reason = "paths of the operator"))]

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use indicatif::HumanBytes;
use syncd_shared::address::listen_address;
use syncd_shared::identity::{AgentName, JoinToken};
use syncd_shared::local_socket;
use syncd_shared::output::note;
use syncd_shared::rate::Rate;
use syncd_shared::signals::Signals;
use syncd_shared::text::{counted, error_chain};
use syncd_shared::time_span::{ParseTimeError, parse_time};
use syncd_shared::{config_file, output};

use crate::admin::{self, Reply, Request, nobody_serves};
use crate::config::{self, Owner, RunOptions};
use crate::join::{self, JoinOptions, Joined};
use crate::session::worker::{Display, Drifted, Verified};
use crate::status::{self, AgentStatus, Verdict};
use crate::{offline, php, service};

const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed; 2 wrong usage; 141 nobody reads the output; `status --check` has \
                          its own.\nSYNCD_LOG=debug logs more. See also: syncd-origin.";

/// Keeps a full, verified, atomically switched replica of an origin's content tree.
#[derive(Debug, Parser)]
#[command(name = "syncd-agent", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Place {
    /// Where the agent keeps its replica; the web server reads ROOT/live.
    #[arg(long, env = "SYNCD_ROOT", default_value = config::ROOT, value_name = "DIR")]
    root: PathBuf,
    /// TOML file with defaults for these options.
    #[arg(long, value_name = "FILE", env = "SYNCD_AGENT_CONFIG")]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Enrol this node. Run again with a new token, once its name was revoked, it enrols the node anew and keeps its
    /// content.
    #[command(
        after_help = "Examples:\n  SYNCD_TOKEN=syncd1-... syncd-agent join origin.example.org:8873\n  syncd-agent join origin.example.org:8873 --token-file - < token"
    )]
    Join(Join),
    /// Follow the origin and keep the replica, until SIGTERM.
    #[command(
        after_help = "Examples:\n  syncd-agent run\n  syncd-agent run --on-activate 'systemctl reload apache2' --owner root:root\n\nSIGTERM stops in order; SIGHUP changes nothing."
    )]
    Run(Box<Run>),
    /// Show what is live, and how the agent is.
    #[command(
        after_help = "Examples:\n  syncd-agent status\n  syncd-agent status --check > /dev/null || echo look"
    )]
    Status {
        #[command(flatten)]
        place: Place,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// Exit with 1 if nothing is live or no agent runs, with 3 if what is live is not known to be the newest.
        #[arg(long)]
        check: bool,
    },
    /// Have PHP-FPM forget the code that the tree no longer has; for the on-activate hook.
    #[command(
        after_help = "Examples:\n  syncd-agent run --on-activate 'syncd-agent php-invalidate --fpm /run/php/php8.2-fpm.sock && /usr/local/lib/syncd/apache-live'\n\nExit code 1: a PHP-FPM may still run old code."
    )]
    PhpInvalidate(php::invalidate::Invalidate),
    /// Check that the settings of PHP suit the replica that a running agent keeps.
    #[command(
        after_help = "Examples:\n  syncd-agent check-php --fpm /run/php/php8.2-fpm.sock\n  syncd-agent check-php --ini /etc/php/8.2/apache2\n\nExit codes: 0 well; 1 refused or failed; 3 warnings."
    )]
    CheckPhp {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        check: php::check::Check,
    },
    /// Hash every file of the replica, and heal what drifted.
    #[command(
        after_help = "Examples:\n  syncd-agent verify --json\n\nExit code 1: something drifted and could not be healed."
    )]
    Verify {
        #[command(flatten)]
        place: Place,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct Join {
    /// Where the origin listens.
    #[arg(value_name = "HOST:PORT")]
    address: String,
    #[command(flatten)]
    place: Place,
    /// The token; other users see it in the process list, unlike SYNCD_TOKEN and --token-file.
    #[arg(long, env = "SYNCD_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,
    /// File that holds the token; `-` is standard input.
    #[arg(long, value_name = "FILE", env = "SYNCD_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// The agent's name [default: the one ROOT has, or else the host's name].
    #[arg(long, env = "SYNCD_NAME")]
    name: Option<AgentName>,
    /// Join again under another name than ROOT has; the old one stays enrolled until it is revoked.
    #[arg(long)]
    rename: bool,
}

#[derive(Debug, Args)]
struct Run {
    #[command(flatten)]
    place: Place,
    /// The origin [default: where this node joined].
    #[arg(long, env = "SYNCD_ORIGIN", value_name = "HOST:PORT")]
    origin: Option<String>,
    /// Where health is answered [default: 127.0.0.1:8875].
    #[arg(long, env = "SYNCD_AGENT_HTTP", value_name = "ADDR:PORT", value_parser = listen_address)]
    http: Option<SocketAddr>,
    /// How `live` is switched.
    #[arg(long, env = "SYNCD_SWAP", value_enum, default_value = "symlink")]
    swap: Swap,
    /// Generations that are kept.
    #[arg(long, env = "SYNCD_KEEP", default_value_t = config::KEEP, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=64))]
    keep: u32,
    /// How long a tree is left alone after it was live.
    #[arg(long, env = "SYNCD_GRACE", default_value = "150s", value_name = "TIME",
          value_parser = parse_time)]
    grace: Duration,
    /// How often every file of the live tree is read again, slowly, to find and heal what was edited on the node; 0: never.
    #[arg(long, env = "SYNCD_VERIFY_EVERY", default_value = "7d", value_name = "TIME", value_parser = every)]
    verify_every: Duration,
    /// Give everything to this owner instead of the tree's.
    #[arg(long, env = "SYNCD_OWNER", value_name = "USER:GROUP")]
    owner: Option<Owner>,
    /// Run by `sh -c` after each activation, with the changed paths on standard input.
    #[arg(long, env = "SYNCD_ON_ACTIVATE", value_name = "CMD")]
    on_activate: Option<String>,
    /// Run by `sh -c` before each activation; if it fails, the old generation stays live.
    #[arg(long, env = "SYNCD_BEFORE_ACTIVATE", value_name = "CMD")]
    before_activate: Option<String>,
    /// How long a hook may take.
    #[arg(long, env = "SYNCD_HOOK_TIMEOUT", default_value = "60s", value_name = "TIME",
          value_parser = parse_time)]
    hook_timeout: Duration,
    /// Bytes a second to receive at most, as in 10M. They come compressed: the progress shown counts content.
    #[arg(long, env = "SYNCD_AGENT_BWLIMIT", value_name = "RATE")]
    bwlimit: Option<Rate>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Swap {
    /// `live` is a symlink.
    Symlink,
}

impl Cli {
    /// Parses the command line over environment, configuration file and defaults. Wrong usage ends the process with 2.
    pub fn from_process() -> Self {
        Self::from_arguments(std::env::args_os()).unwrap_or_else(|error| error.exit())
    }

    fn from_arguments(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut command = Self::command();
        let given: Vec<OsString> = arguments.into_iter().collect();
        let arguments = config_file::arguments_with_config(given.iter().cloned(), &command)
            .map_err(|error| command.error(clap::error::ErrorKind::Io, error_chain(&error)))?;
        Self::try_parse_from(arguments).map_err(|error| config_file::explain(error, &command, &given))
    }
}

/// Runs a parsed command line to its end.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        match cli.command {
            Command::Join(join) => enrol(join).await,
            Command::Run(run) => run_until_signal(*run).await,
            Command::Status { place, json, check } => status(&place.root, json, check).await,
            Command::PhpInvalidate(options) => php::invalidate::run(options).await,
            Command::CheckPhp { place, check } => check_php(&place.root, check).await,
            Command::Verify { place, json } => verify(&place.root, json).await,
        }
    });
    // What still blocks a thread was told to stop and has had its time.
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
    let next = if is_running { "the running agent has taken it up" } else { "next:" };
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

/// A time, or 0.
fn every(text: &str) -> Result<Duration, ParseTimeError> {
    if text == "0" { Ok(Duration::ZERO) } else { parse_time(text) }
}

impl Run {
    fn options(self) -> anyhow::Result<RunOptions> {
        let Swap::Symlink = self.swap;
        if let (Some(file), true) =
            (&self.place.config, self.on_activate.is_some() || self.before_activate.is_some())
        {
            config::check_trusted(file)?;
        }
        Ok(RunOptions {
            root: std::path::absolute(&self.place.root)?,
            origin: self.origin,
            http: self.http.unwrap_or(config::HTTP),
            http_required: self.http.is_some(),
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
    tokio::select! {
        () = signals.stop() => {}
        ended = agent.ended() => {
            ended?;
            bail!("the agent stopped by itself; the log above says why");
        }
    }
    tracing::info!("stopping");
    agent.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// The status of the running agent; `None`: none runs.
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

async fn check_php(root: &Path, check: php::check::Check) -> anyhow::Result<ExitCode> {
    let settings = running_status(root).await?.and_then(|status| status.settings);
    let Some(settings) = settings else {
        bail!("no agent runs on {}: start it, its options are part of what is checked", root.display())
    };
    php::check::run(check, root, settings).await
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
        note("not healed: verify again when the origin can be reached");
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
    fn what_is_not_built_is_wrong_usage() {
        let error = parse("syncd-agent run --root /r --swap exchange").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert_eq!(parse("syncd-agent join").unwrap_err().exit_code(), 2);
        assert_eq!(parse("syncd-agent run --keep 0").unwrap_err().exit_code(), 2);
        let error = parse("syncd-agent run --http 8875").unwrap_err();
        assert_eq!((error.exit_code(), error.to_string().contains("localhost:8873")), (2, true), "{error}");
    }
}
