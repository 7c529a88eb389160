//! The arguments: commands, options, their checks and their help.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use syncd_runtime::bucket::BucketUrl;
use syncd_runtime::config_file::{self, ConfigError};
use syncd_runtime::manual::Shell;
use syncd_runtime::version::version;
use syncd_shared::generation::{LabelError, check_label};
use syncd_shared::time_span::parse_time;

use super::actions::{
    CommitArgs, NodeArgs, PublishCommand, Report, RollbackArgs, RolloutCommand, TokenAction,
};
use super::collected::CollectedCommand;
use super::configuration::ConfigAction;
use super::help;
use super::key::KeyAction;
use super::serve::Serve;

/// Configuration file that is read unless another one is named.
pub const CONFIG: &str = "/etc/syncd/origin.toml";

const DATA: &str = "/var/lib/syncd/origin";

/// Default of `--listen`.
pub const LISTEN: &str = "0.0.0.0:8873";

/// Longest lifetime of a join token.
const TOKEN_LIFE_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Default of `--http`.
pub const HTTP: &str = "127.0.0.1:8874";

/// Replicates web content: watches a content tree, seals it into signed generations, and serves them to
/// agents.
#[derive(Debug, Parser)]
#[command(name = "syncd-origin", version = version(), max_term_width = 100, after_help = help::EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Args)]
pub(super) struct Data {
    /// Data directory of the origin: keys and store.
    #[arg(long, env = "SYNCD_DATA", default_value = DATA, value_name = "DIR", global = true)]
    pub(super) data: PathBuf,
    /// TOML file with defaults for these options [default: /etc/syncd/origin.toml, if it exists].
    #[arg(long, value_name = "FILE", env = "SYNCD_ORIGIN_CONFIG")]
    pub(super) config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Json {
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create a data directory with new keys and an empty store.
    #[command(after_help = "Examples:\n  syncd-origin init --host origin.example.org")]
    Init {
        #[command(flatten)]
        data: Data,
        /// Host name or IP address at which agents reach this origin, for the join command that is printed.
        /// In a data directory that is initialised already, only this name is replaced.
        #[arg(long, env = "SYNCD_HOST", value_name = "NAME|IP", value_parser = host_name)]
        host: Option<String>,
        /// File with a passphrase that seals the root key. On a terminal it is asked for.
        #[arg(long, value_name = "FILE")]
        root_passphrase_file: Option<PathBuf>,
    },
    /// Watch a content tree, publish its changes and serve agents, until SIGTERM.
    #[command(after_help = help::SERVE)]
    Serve(Box<Serve>),
    /// Print a join token for new agents.
    #[command(after_help = help::TOKEN)]
    Token {
        #[command(flatten)]
        data: Data,
        /// Lifetime of the token, from 1s to 30d.
        #[arg(long, default_value = "1h", value_name = "TIME", value_parser = token_life)]
        ttl: Duration,
        /// Number of agents that may join with the token.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
        #[command(subcommand)]
        action: Option<TokenAction>,
    },
    /// Show and replace the keys of the tree, which the root key signs.
    #[command(after_help = help::KEY)]
    Key {
        #[command(flatten)]
        data: Data,
        #[command(subcommand)]
        action: KeyAction,
    },
    /// Publish the tree as it is now, and print the number of the new generation.
    #[command(after_help = help::COMMIT)]
    Commit(CommitArgs),
    /// Wait until a generation, or a later one, is live on the nodes.
    #[command(after_help = help::WAIT)]
    Wait {
        /// Number of the generation.
        generation: u64,
        #[command(flatten)]
        data: Data,
        /// Time to wait.
        #[arg(long, default_value = "60s", value_name = "TIME", value_parser = parse_time)]
        timeout: Duration,
        /// Fail if an enrolled node is unreachable.
        #[arg(long)]
        require_all: bool,
        #[command(flatten)]
        report: Report,
        #[command(flatten)]
        json: Json,
    },
    /// Show the current generation and the state of every agent.
    #[command(after_help = help::STATUS)]
    Status {
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        json: Json,
        /// Repeat every second.
        #[arg(long)]
        watch: bool,
        /// Exit with 1 if nothing new is published (held, waiting, stopped, or no generation yet). Exit with
        /// 3 if no agent is enrolled, or if an enrolled agent is in trouble or not live on the current
        /// generation.
        #[arg(long, conflicts_with = "watch")]
        check: bool,
    },
    /// List the retained generations.
    #[command(after_help = help::HISTORY)]
    History {
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        json: Json,
    },
    /// List what happened in the fleet: generations, nodes, holds.
    #[command(after_help = help::EVENTS)]
    Events {
        #[command(flatten)]
        data: Data,
        /// Go on and print each event when it happens.
        #[arg(long, short)]
        follow: bool,
        #[command(flatten)]
        json: Json,
    },
    /// List who changed something with this program, and when.
    #[command(after_help = help::AUDIT)]
    Audit {
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        json: Json,
    },
    /// List the paths that differ between two generations.
    #[command(after_help = help::DIFF)]
    Diff {
        #[command(flatten)]
        data: Data,
        /// First generation to compare [default: the one before TO].
        #[arg(value_parser = generation_number)]
        from: Option<u64>,
        /// Second generation to compare [default: the current one].
        #[arg(value_parser = generation_number)]
        to: Option<u64>,
        /// Compare the current generation with the tree: lists what a commit would publish now.
        #[arg(long, conflicts_with_all = ["from", "to"])]
        pending: bool,
        /// Print only the totals.
        #[arg(long)]
        stat: bool,
        #[command(flatten)]
        json: Json,
    },
    /// Publish the tree of an earlier generation again, as a new generation.
    #[command(after_help = help::ROLLBACK)]
    Rollback(RollbackArgs),
    /// Show or steer the rollout that is running.
    #[command(after_help = help::ROLLOUT)]
    Rollout {
        #[command(flatten)]
        data: Data,
        #[command(subcommand)]
        action: RolloutCommand,
    },
    /// Show or restore files of collected directories, which nodes write to.
    #[command(after_help = super::collected::HELP)]
    Collected {
        #[command(flatten)]
        data: Data,
        #[command(subcommand)]
        action: CollectedCommand,
    },
    /// Take a node out of service: its `/readyz` answers 503, and rollouts do not count it.
    #[command(after_help = "Examples:\n  syncd-origin drain web2\n\nIt gets new generations nevertheless.")]
    Drain(NodeArgs),
    /// Put a drained node into service again, once it has what the others have.
    #[command(
        after_help = "Examples:\n  syncd-origin undrain web2\n\nWaits for at most a minute for the node to catch up."
    )]
    Undrain(NodeArgs),
    /// Keep a node at the generation that it has, until `unpin`.
    #[command(
        after_help = "Examples:\n  syncd-origin pin web2\n\n`syncd-agent pin GENERATION` on the node chooses an older one."
    )]
    Pin(NodeArgs),
    /// Let a pinned node follow again.
    #[command(after_help = "Examples:\n  syncd-origin unpin web2")]
    Unpin(NodeArgs),
    /// Put a node into a group, for the steps of rollouts.
    #[command(after_help = "Examples:\n  syncd-origin group web2 canary\n  syncd-origin group web2 ''")]
    Group {
        #[command(flatten)]
        node: NodeArgs,
        /// Name of the group; '' takes the node out of its group.
        group: String,
    },
    /// Remove a node that will not come back from the list, without shutting it out.
    #[command(after_help = "Examples:\n  syncd-origin forget web2")]
    Forget(NodeArgs),
    /// Shut out an agent: its certificate is refused, and its name is free again.
    #[command(after_help = "Examples:\n  syncd-origin revoke web2")]
    Revoke {
        #[command(flatten)]
        data: Data,
        /// Name of the agent.
        agent: String,
    },
    /// Copy the data directory, as it is now, to a new or empty directory.
    #[command(after_help = help::BACKUP)]
    Backup {
        #[command(flatten)]
        data: Data,
        /// Directory for the copy. A running origin writes it, so its user needs access.
        directory: PathBuf,
    },
    /// Read the whole store and verify every byte.
    #[command(after_help = "Examples:\n  syncd-origin check")]
    Check {
        #[command(flatten)]
        data: Data,
    },
    /// Look after the object store of `serve --publish`.
    #[command(after_help = help::PUBLISH)]
    Publish {
        #[command(flatten)]
        data: Data,
        #[command(subcommand)]
        action: PublishCommand,
    },
    /// Make an origin on standby the origin of the tree.
    #[command(after_help = help::PROMOTE)]
    Promote {
        #[command(flatten)]
        data: Data,
    },
    /// Make an origin from its keys and what it had published, and print the restored generation.
    #[command(after_help = help::RESTORE)]
    Restore {
        #[command(flatten)]
        data: Data,
        /// Object store of `serve --publish`.
        #[arg(long, value_name = "URL")]
        from: BucketUrl,
    },
    /// Check or show the configuration of `serve`.
    #[command(after_help = help::CONFIG)]
    Config {
        #[command(subcommand)]
        action: ConfigAction,
    },
    /// Print the address of the page, which shows the fleet in a browser. With `serve --page-listen` it is a
    /// login link, good once and for ten minutes.
    #[command(after_help = help::PAGE)]
    Page {
        #[command(flatten)]
        data: Data,
    },
    /// Print completions for a shell.
    #[command(after_help = help::COMPLETIONS)]
    Completions { shell: Shell },
    /// Write man pages to a directory.
    #[command(hide = true, after_help = "Examples:\n  syncd-origin man .")]
    Man { directory: PathBuf },
}

impl Command {
    /// The data directory that the command opens itself if no origin serves it.
    pub(super) fn data_opened(&self) -> Option<&Path> {
        let data = match self {
            Self::Key { action, .. } if action.is_elsewhere() => return None,
            Self::Serve(_) | Self::Config { .. } | Self::Completions { .. } | Self::Man { .. } => {
                return None;
            }
            Self::Init { data, .. }
            | Self::Token { data, .. }
            | Self::Key { data, .. }
            | Self::Commit(CommitArgs { data, .. })
            | Self::Wait { data, .. }
            | Self::Status { data, .. }
            | Self::History { data, .. }
            | Self::Events { data, .. }
            | Self::Audit { data, .. }
            | Self::Diff { data, .. }
            | Self::Rollback(RollbackArgs { data, .. })
            | Self::Rollout { data, .. }
            | Self::Collected { data, .. }
            | Self::Drain(NodeArgs { data, .. })
            | Self::Undrain(NodeArgs { data, .. })
            | Self::Pin(NodeArgs { data, .. })
            | Self::Unpin(NodeArgs { data, .. })
            | Self::Group { node: NodeArgs { data, .. }, .. }
            | Self::Forget(NodeArgs { data, .. })
            | Self::Revoke { data, .. }
            | Self::Backup { data, .. }
            | Self::Publish { data, .. }
            | Self::Promote { data }
            | Self::Restore { data, .. }
            | Self::Page { data }
            | Self::Check { data } => data,
        };
        Some(&data.data)
    }
}

/// A host name or an IP address, without a port.
fn host_name(text: &str) -> Result<String, &'static str> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if text.parse::<IpAddr>().is_ok() || (!text.is_empty() && text.len() <= 253 && text.chars().all(is_name))
    {
        return Ok(text.to_owned());
    }
    Err("give a host name or an IP address without a port, as in origin.example.org")
}

fn token_life(text: &str) -> Result<Duration, String> {
    let life = parse_time(text).map_err(|error| error.to_string())?;
    if life > TOKEN_LIFE_MAX {
        return Err("a token is good for at most 30d: make another one later".into());
    }
    // The origin counts whole seconds.
    if life.is_zero() || life.subsec_nanos() > 0 {
        return Err("a token is good for whole seconds: from 1s to 30d".into());
    }
    Ok(life)
}

impl Cli {
    /// Parses the command line over environment, configuration file and defaults. Wrong usage ends the
    /// process with 2.
    pub fn from_process() -> Result<Self, ConfigError> {
        Self::from_arguments(std::env::args_os().collect())
            .map(|parsed| parsed.unwrap_or_else(|error| error.exit()))
    }

    pub(super) fn from_arguments(given: Vec<OsString>) -> Result<Result<Self, clap::Error>, ConfigError> {
        let command = Self::command();
        let arguments =
            config_file::arguments_with_config(given.iter().cloned(), &command, Some(Path::new(CONFIG)))?;
        let matches =
            config_file::typed_first(command.clone(), &given).try_get_matches_from(join_wait(arguments));
        let parsed = matches
            .and_then(|mut matches| Self::from_arg_matches_mut(&mut matches))
            .map_err(|error| with_unit(error, &given));
        Ok(parsed.map_err(|error| config_file::explain(error, &command, &given, Some(Path::new(CONFIG)))))
    }
}

/// Explains a number after `--wait` that is no argument of the command.
fn with_unit(mut error: clap::Error, given: &[OsString]) -> clap::Error {
    let number = given.windows(2).find_map(|pair| match pair {
        [option, value] if option == "--wait" => value.to_str()?.parse::<u32>().ok(),
        _ => None,
    });
    if let Some(number) = number.filter(|_| error.kind() == ErrorKind::UnknownArgument) {
        let tip = StyledStr::from(format!("a time has a unit: --wait={number}s"));
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
    }
    error
}

/// Turns `--wait 5s` into `--wait=5s`. A time has a unit and is therefore neither a generation nor an option.
pub fn join_wait(arguments: Vec<OsString>) -> Vec<OsString> {
    let mut joined: Vec<OsString> = Vec::with_capacity(arguments.len());
    for argument in arguments {
        let is_time = |text: &str| parse_time(text).is_ok();
        match joined.last_mut() {
            Some(last) if last == "--wait" && argument.to_str().is_some_and(is_time) => {
                last.push("=");
                last.push(argument);
            }
            _ => joined.push(argument),
        }
    }
    joined
}

pub(super) fn generation_number(text: &str) -> Result<u64, &'static str> {
    text.parse().map_err(|_| "generations are numbers: `syncd-origin history` lists them")
}

/// Trims the label, for example of a line feed added by a shell.
pub(super) fn label(text: &str) -> Result<String, LabelError> {
    let label = text.trim();
    check_label(label)?;
    Ok(label.to_owned())
}
