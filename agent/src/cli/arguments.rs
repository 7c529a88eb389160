//! Commands and options, with their help.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use clap::{ArgGroup, Args, Subcommand};
use syncd_runtime::bucket::BucketUrl;
use syncd_runtime::manual::Shell;
use syncd_runtime::rate::Rate;
use syncd_runtime::telemetry::LogFormat;
use syncd_runtime::trusted_file::check_trusted;
use syncd_shared::address::listen_address;
use syncd_shared::identity::{AgentName, RootFingerprint};
use syncd_shared::time_span::{parse_time, time_or_zero};

use super::configuration::ConfigAction;
use crate::check::url::CheckUrl;
use crate::check::{self, Ask, CheckOptions};
use crate::config::{self, Owner, RunOptions};
use crate::follow::FollowOptions;
use crate::php;
use crate::state::swap::Swap;

const JOIN_HELP: &str = "\
Examples:
  SYNCD_TOKEN=syncd1-... syncd-agent join origin.example.org:8873
  syncd-agent join origin.example.org:8873 --token-file - < token
  syncd-agent join origin.example.org:8873 --token-file token --adopt /var/www/html

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
const DRAIN_HELP: &str = "\
Examples:
  syncd-agent drain

The order survives restarts. `syncd-agent undrain` ends it.";
const PIN_HELP: &str = "\
Examples:
  syncd-agent pin
  syncd-agent pin 41

`syncd-agent status` lists the generations that the node holds. The order survives restarts; nothing newer is
fetched before `syncd-agent unpin`.";
const ACCEPT_HELP: &str = "\
Examples:
  syncd-agent accept 42

The generation is taken again when the origin announces it.";
const CHECK_HELP: &str = "\
Examples:
  syncd-agent check
  vrrp_script syncd { script \"/usr/bin/syncd-agent check\" }    (in keepalived.conf)

Exit codes: 0 ready; 1 not ready, or no agent runs.";
const VERIFY_HELP: &str = "\
Examples:
  syncd-agent verify --json

Exit codes: 0 success, all differences healed; 1 failure, or a file could not be healed.";

const CONFIG_HELP: &str = "\
Examples:
  syncd-agent config check
  syncd-agent config show";
pub(super) const CONFIG_CHECK_HELP: &str = "\
Examples:
  syncd-agent config check
  syncd-agent config check --config new.toml -- --keep 3";
pub(super) const CONFIG_SHOW_HELP: &str = "\
Examples:
  syncd-agent config show
  syncd-agent config show --config /etc/syncd/agent.toml -- --keep 3";
const COMPLETIONS_HELP: &str = "\
Examples:
  syncd-agent completions bash > /usr/share/bash-completion/completions/syncd-agent";

#[derive(Debug, Args)]
pub(super) struct Place {
    /// Directory of the replica. The web server reads ROOT/live.
    #[arg(long, env = "SYNCD_ROOT", default_value = config::ROOT, value_name = "DIR")]
    pub(super) root: PathBuf,
    /// TOML file with defaults for these options [default: /etc/syncd/agent.toml, if it exists].
    #[arg(long, value_name = "FILE", env = "SYNCD_AGENT_CONFIG")]
    pub(super) config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
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
    /// Tell load balancers that this node is not ready. It goes on following the origin.
    #[command(after_help = DRAIN_HELP)]
    Drain {
        #[command(flatten)]
        place: Place,
    },
    /// End `drain`.
    #[command(after_help = "Examples:\n  syncd-agent undrain")]
    Undrain {
        #[command(flatten)]
        place: Place,
    },
    /// Stay at a generation that this node holds, until `unpin`. Needs no origin.
    #[command(after_help = PIN_HELP)]
    Pin {
        /// Number of the generation [default: the live one].
        generation: Option<u64>,
        #[command(flatten)]
        place: Place,
    },
    /// End `pin`, and follow the origin again.
    #[command(after_help = "Examples:\n  syncd-agent unpin")]
    Unpin {
        #[command(flatten)]
        place: Place,
    },
    /// List the generations that this node refuses, because their check failed here.
    #[command(after_help = "Examples:\n  syncd-agent refused")]
    Refused {
        #[command(flatten)]
        place: Place,
    },
    /// Forget that this node refuses a generation.
    #[command(after_help = ACCEPT_HELP)]
    Accept {
        /// Number of the generation.
        generation: u64,
        #[command(flatten)]
        place: Place,
    },
    /// Say whether this node should get visitors, as `/readyz` does. For keepalived and scripts.
    #[command(after_help = CHECK_HELP)]
    Check {
        #[command(flatten)]
        place: Place,
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
pub(super) struct Join {
    /// Address of the origin.
    #[arg(value_name = "HOST:PORT")]
    pub(super) address: String,
    #[command(flatten)]
    pub(super) place: Place,
    /// Join token. Other users can see it in the process list: prefer SYNCD_TOKEN or --token-file.
    #[arg(long, env = "SYNCD_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub(super) token: Option<String>,
    /// File with the join token; `-` is standard input.
    #[arg(long, value_name = "FILE", env = "SYNCD_TOKEN_FILE", conflicts_with = "token")]
    pub(super) token_file: Option<PathBuf>,
    /// Name of the agent [default: the name that ROOT has, otherwise the host name].
    #[arg(long, env = "SYNCD_NAME")]
    pub(super) name: Option<AgentName>,
    /// Allow another name than ROOT has. The old name stays enrolled until it is revoked.
    #[arg(long)]
    pub(super) rename: bool,
    /// Group of this node, which rollouts can name. The operator of the origin can change it.
    #[arg(long, env = "SYNCD_GROUP", value_name = "NAME")]
    pub(super) group: Option<String>,
    /// Directory that this node serves already: what the origin's tree has of it by content is not fetched.
    /// It is copied, and stays as it is.
    #[arg(long, value_name = "DIR")]
    pub(super) adopt: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("peer").args(["follow", "origin"]).multiple(true))]
pub(super) struct Run {
    #[command(flatten)]
    pub(super) place: Place,
    /// Address of the origin [default: the address that this node joined]. Several, separated by commas, are
    /// tried in this order: an origin and those on standby for it.
    #[arg(long, env = "SYNCD_ORIGIN", value_name = "HOST:PORT")]
    pub(super) origin: Option<String>,
    /// Published tree to follow in place of the origin, without a join: the URL of `syncd-origin serve
    /// --publish`, as in file:///srv/published.
    #[arg(long, env = "SYNCD_FOLLOW", value_name = "URL", requires = "trust", conflicts_with = "origin")]
    pub(super) follow: Option<BucketUrl>,
    /// Fingerprint of the root key whose tree is followed, as printed by `syncd-origin key show`.
    /// Has no effect with --origin.
    #[arg(long, env = "SYNCD_TRUST", value_name = "FINGERPRINT", requires = "peer")]
    pub(super) trust: Option<RootFingerprint>,
    /// Age of the release that was seen last from which this node is not ready, as in 2d. It serves on
    /// [default: no limit]. Has no effect with --origin.
    #[arg(long, env = "SYNCD_HEAD_MAX_AGE", value_name = "TIME", requires = "peer",
        value_parser = parse_time)]
    pub(super) head_max_age: Option<Duration>,
    /// Address of the health page [default: 127.0.0.1:8875].
    #[arg(long, env = "SYNCD_AGENT_HTTP", value_name = "ADDR:PORT", value_parser = listen_address)]
    pub(super) http: Option<SocketAddr>,
    /// Another address with /healthz, /readyz and /generation, for load balancers on other hosts.
    #[arg(long, env = "SYNCD_HEALTH_LISTEN", value_name = "ADDR:PORT", value_parser = listen_address)]
    pub(super) health_listen: Option<SocketAddr>,
    /// How ROOT/live is switched.
    #[arg(long, env = "SYNCD_SWAP", value_enum, default_value = "link")]
    pub(super) swap: Swap,
    /// Number of generations to keep, the live one included.
    #[arg(long, env = "SYNCD_KEEP", default_value_t = config::KEEP, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(super) keep: u32,
    /// Time for which a tree is not reused after it was live.
    #[arg(long, env = "SYNCD_GRACE", default_value = "150s", value_name = "TIME",
          value_parser = parse_time)]
    pub(super) grace: Duration,
    /// Interval at which every file of the live tree is hashed in the background, and healed if it was edited
    /// on the node. 0 means never.
    #[arg(long, env = "SYNCD_VERIFY_EVERY", default_value = "7d", value_name = "TIME", value_parser = time_or_zero)]
    pub(super) verify_every: Duration,
    /// Owner of all files, as in www-data:www-data or 33:33 [default: the owners in the content tree].
    #[arg(long, env = "SYNCD_OWNER", value_name = "USER:GROUP")]
    pub(super) owner: Option<Owner>,
    /// Command to run with `sh -c` after each activation. Gets the changed paths on standard input.
    #[arg(long, env = "SYNCD_ON_ACTIVATE", value_name = "CMD")]
    pub(super) on_activate: Option<String>,
    /// Command to run with `sh -c` before each activation. If it fails, the old generation stays live.
    #[arg(long, env = "SYNCD_BEFORE_ACTIVATE", value_name = "CMD")]
    pub(super) before_activate: Option<String>,
    /// Command to run with `sh -c` once a generation is live. Gets the changed paths on standard input. Its
    /// failure changes nothing.
    #[arg(long, env = "SYNCD_AFTER_ACTIVATE", value_name = "CMD")]
    pub(super) after_activate: Option<String>,
    /// Time limit of each hook. A hook that takes longer is killed and counts as failed [default: 30s for
    /// --before-activate, 5s for --on-activate, 60s for --after-activate].
    #[arg(long, env = "SYNCD_HOOK_TIMEOUT", value_name = "TIME", value_parser = parse_time)]
    pub(super) hook_timeout: Option<Duration>,
    /// Check of the live generation: a command for `sh -c`, or an http URL of this node. It must pass before
    /// and after each switch. If it fails after one, the node returns to the last generation that passed.
    #[arg(long, env = "SYNCD_CHECK", value_name = "CMD|URL")]
    pub(super) check: Option<String>,
    /// Status that the URL of --check must answer [default: any from 200 to 299].
    #[arg(long, env = "SYNCD_CHECK_STATUS", value_name = "STATUS", requires = "check",
          value_parser = clap::value_parser!(u16).range(100..=599))]
    pub(super) check_status: Option<u16>,
    /// Text that the answer of the URL of --check must contain.
    #[arg(long, env = "SYNCD_CHECK_TEXT", value_name = "TEXT", requires = "check")]
    pub(super) check_text: Option<String>,
    /// Passes in a row after a switch.
    #[arg(long, env = "SYNCD_CHECK_TIMES", default_value_t = check::TIMES, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) check_times: u32,
    /// Pause between two passes.
    #[arg(long, env = "SYNCD_CHECK_INTERVAL", default_value = "1s", value_name = "TIME",
          value_parser = time_or_zero)]
    pub(super) check_interval: Duration,
    /// Time limit of one pass. A check that takes longer has failed.
    #[arg(long, env = "SYNCD_CHECK_TIMEOUT", default_value = "10s", value_name = "TIME",
          value_parser = parse_time)]
    pub(super) check_timeout: Duration,
    /// Limit of the bytes per second received, as in 10M [default: unlimited]. Counts compressed bytes; the
    /// progress shown counts content.
    #[arg(long, env = "SYNCD_AGENT_BWLIMIT", value_name = "RATE")]
    pub(super) bwlimit: Option<Rate>,
    /// Format of the log on standard error.
    #[arg(long, env = "SYNCD_LOG_FORMAT", value_enum, default_value = "text")]
    pub(super) log_format: LogFormat,
}

impl Command {
    /// The replica that the command may change, besides an agent that runs.
    pub(super) fn root_opened(&self) -> Option<&Path> {
        match self {
            Self::Join(Join { place, .. })
            | Self::Trust { place, .. }
            | Self::Status { place, .. }
            | Self::Drain { place }
            | Self::Undrain { place }
            | Self::Pin { place, .. }
            | Self::Unpin { place }
            | Self::Refused { place }
            | Self::Accept { place, .. }
            | Self::Check { place }
            | Self::Verify { place, .. } => Some(&place.root),
            _ => None,
        }
    }
}

impl Run {
    pub(super) fn options(self) -> anyhow::Result<RunOptions> {
        let check = self.check()?;
        let runs_commands = self.on_activate.is_some()
            || self.before_activate.is_some()
            || self.after_activate.is_some()
            || matches!(&check, Some(CheckOptions { ask: Ask::Command(_), .. }));
        if let (Some(file), true) = (&self.place.config, runs_commands) {
            check_trusted(file)?;
        }
        let follow = self.follow.zip(self.trust);
        let head_max_age = self.head_max_age;
        let follow = follow.map(|(url, root)| FollowOptions { url, root, head_max_age });
        Ok(RunOptions {
            root: std::path::absolute(&self.place.root)?,
            origin: self.origin,
            follow,
            http: self.http.unwrap_or(config::HTTP),
            http_required: self.http.is_some(),
            swap: Some(self.swap),
            keep: self.keep,
            grace: self.grace,
            verify_every: self.verify_every,
            owner: self.owner,
            before_activate: self.before_activate,
            on_activate: self.on_activate,
            after_activate: self.after_activate,
            check,
            health_listen: self.health_listen,
            hook_timeout: self.hook_timeout,
            bwlimit: self.bwlimit,
        })
    }

    fn check(&self) -> anyhow::Result<Option<CheckOptions>> {
        let Some(check) = &self.check else { return Ok(None) };
        let ask = if check::url::is_url(check) {
            Ask::Url(CheckUrl::new(check, self.check_status, self.check_text.clone())?)
        } else if self.check_status.is_some() || self.check_text.is_some() {
            bail!("--check-status and --check-text need a URL as --check: a command decides by its exit code")
        } else {
            Ask::Command(check.clone())
        };
        let (times, interval, timeout) = (self.check_times, self.check_interval, self.check_timeout);
        Ok(Some(CheckOptions { ask, times, interval, timeout }))
    }
}
