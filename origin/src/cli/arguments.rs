//! The arguments: commands, options, their checks and their help.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use syncd_runtime::accounts::group_id;
use syncd_runtime::bucket::BucketUrl;
use syncd_runtime::config_file::{self, ConfigError};
use syncd_runtime::manual::Shell;
use syncd_runtime::rate::Rate;
use syncd_runtime::settings::ConfigAction;
use syncd_runtime::telemetry::LogFormat;
use syncd_runtime::version::version;
use syncd_shared::TreePath;
use syncd_shared::address::listen_address;
use syncd_shared::byte_size::ByteSize;
use syncd_shared::generation::{LabelError, check_label};
use syncd_shared::time_span::{parse_time, time_or_zero};
use syncd_shared::tree_path::TreePathError;

use super::collected::{CollectedCommand, no_option};
use super::key::KeyAction;
use super::printer::Print;
use crate::admin::protocol::{Request, Wait};
use crate::publish::PublishAction;
use crate::scan::{MtimePolicy, SymlinkPolicy};
use crate::source::{GitOptions, Lfs, Mtime, Submodules};

/// Configuration file that is read unless another one is named.
pub const CONFIG: &str = "/etc/syncd/origin.toml";

const DATA: &str = "/var/lib/syncd/origin";

/// Default of `--listen`.
pub const LISTEN: &str = "0.0.0.0:8873";

/// Longest lifetime of a join token.
const TOKEN_LIFE_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Default of `--http`.
pub const HTTP: &str = "127.0.0.1:8874";

const EXIT_CODES: &str = "Exit codes: 0 success; 1 failure; 2 wrong usage; 3 sealed, but not live on every node that was \
                          waited for; 141 standard output was closed.\n\
                          SYNCD_LOG=debug logs more. See also: syncd-agent.";

const SERVE_HELP: &str = "\
Examples:
  syncd-origin serve --tree /srv/site
  syncd-origin serve --tree /srv/site --trigger manual --admin-group deploy
  syncd-origin serve --tree /srv/site.git --trigger git --git-ref main

TIME is a number with a unit, as in 500ms, 30s or 5m. SIZE and RATE are bytes, and bytes per second; \
K, M and G are powers of 1,024.

Files named by .syncdignore files in the tree are not published. SIGTERM stops cleanly. SIGHUP does \
not reload options.";

const TOKEN_HELP: &str = "\
Examples:
  syncd-origin token
  syncd-origin token --ttl 1d --uses 10
  syncd-origin token list";
const KEY_HELP: &str = "\
Examples:
  syncd-origin key show
  syncd-origin key rotate --signing > document
  syncd-origin key sign --root-key /media/usb/root.key";
const COMMIT_HELP: &str = "\
Examples:
  syncd-origin commit -m 'release 7' --wait
  syncd-origin commit --wait=5m --require-all --json
  syncd-origin commit --rollout together --wait

A commit ends the hold that a rollback leaves.

Exit codes: 0 success; 1 failure, nothing was sealed; 2 wrong usage; 3 sealed, but not live on every node that \
was waited for. With --dry-run: 0 a commit would be taken, 1 it would be refused.";
const WAIT_HELP: &str = "\
Examples:
  number=$(syncd-origin commit) && syncd-origin wait $number
  syncd-origin wait 42 --timeout 10m --summary \"$GITHUB_STEP_SUMMARY\"

Exit codes: 0 the generation or a later one is live on every node that was waited for; 1 failure; 3 it is not.";

const STATUS_HELP: &str = "\
Examples:
  syncd-origin status --watch
  syncd-origin status --check > /dev/null || echo 'look at the origin'";
const HISTORY_HELP: &str = "\
Examples:
  syncd-origin history
  syncd-origin history --json | tail -1

An asterisk (*) marks the published generation. Changes are new (+), changed (~) and removed (-) files and directories.";

const EVENTS_HELP: &str = "\
Examples:
  syncd-origin events --follow
  syncd-origin events --json | jq 'select(.event == \"failed\")'

Events are lines in DATA/events and DATA/events.old, the oldest are dropped. What happens while no origin serves is \
not seen.";
const AUDIT_HELP: &str = "\
Examples:
  syncd-origin audit | tail

Lists requests by user and process, as DATA/audit and DATA/audit.old have them. The oldest are dropped. A request that \
failed is listed too.";
const DIFF_HELP: &str = "\
Examples:
  syncd-origin diff
  syncd-origin diff 41 43 --stat
  syncd-origin diff --pending";
const ROLLOUT_HELP: &str = "\
Examples:
  syncd-origin rollout status
  syncd-origin rollout pause
  syncd-origin rollout abort";
const ROLLBACK_HELP: &str = "\
Examples:
  syncd-origin rollback --wait
  syncd-origin rollback 41 --wait --yes

After a rollback nothing is published automatically until the next commit. Exit codes are those of \
commit.";

const CONFIG_HELP: &str = "\
Examples:
  syncd-origin config check
  syncd-origin config show --config /etc/syncd/origin.toml -- --settle 2s";
const PAGE_HELP: &str = "\
Examples:
  syncd-origin page

A login lasts for 12 hours, or until the origin is restarted.";
const COMPLETIONS_HELP: &str = "\
Examples:
  syncd-origin completions bash > /usr/share/bash-completion/completions/syncd-origin";

const PUBLISH_HELP: &str = "\
Examples:
  syncd-origin publish status
  syncd-origin publish check
  syncd-origin publish gc --grace 2h";

const PROMOTE_HELP: &str = "\
Examples:
  syncd-origin promote

Stop the origin that served before, or cut it off. Nothing is published until `syncd-origin commit`.";

const RESTORE_HELP: &str = "\
Examples:
  syncd-origin restore --from file:///mnt/shared/site

The data directory must hold the keys: `format` and `keys` from a backup.";

const BACKUP_HELP: &str = "\
Examples:
  syncd-origin backup /mnt/backup/syncd-origin

To restore, run `syncd-origin serve` with the copy as --data.";

/// Replicates web content: watches a content tree, seals it into signed generations, and serves them to
/// agents.
#[derive(Debug, Parser)]
#[command(name = "syncd-origin", version = version(), max_term_width = 100, after_help = EXIT_CODES)]
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

#[derive(Debug, Args)]
pub(super) struct WaitArgs {
    /// Wait until the generation is live on every connected agent, hook included, for at most TIME [default
    /// TIME: 60s]. Exits with 3 if some agent is not live by then.
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "60s", value_parser = parse_time)]
    pub(super) wait: Option<Duration>,
    /// Exit with 3 also if an enrolled agent is unreachable.
    #[arg(long, requires = "wait")]
    pub(super) require_all: bool,
}

impl WaitArgs {
    pub(super) fn request(&self) -> Option<Wait> {
        let wait = self.wait?;
        Some(Wait {
            timeout_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
            require_all: self.require_all,
        })
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create a data directory with new keys and an empty store.
    #[command(after_help = "Examples:\n  syncd-origin init --host origin.example.org")]
    Init {
        #[command(flatten)]
        data: Data,
        /// Host name or IP address at which agents reach this origin, for the join command that is printed.
        #[arg(long, env = "SYNCD_HOST", value_name = "NAME|IP")]
        host: Option<String>,
        /// File with a passphrase that seals the root key. On a terminal it is asked for.
        #[arg(long, value_name = "FILE")]
        root_passphrase_file: Option<PathBuf>,
    },
    /// Watch a content tree, publish its changes and serve agents, until SIGTERM.
    #[command(after_help = SERVE_HELP)]
    Serve(Box<Serve>),
    /// Print a join token for new agents.
    #[command(after_help = TOKEN_HELP)]
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
    #[command(after_help = KEY_HELP)]
    Key {
        #[command(flatten)]
        data: Data,
        #[command(subcommand)]
        action: KeyAction,
    },
    /// Publish the tree as it is now, and print the number of the new generation.
    #[command(after_help = COMMIT_HELP)]
    Commit {
        #[command(flatten)]
        data: Data,
        /// Label of the generation: one line of text.
        #[arg(short = 'm', long = "label", default_value = "", hide_default_value = true, value_name = "LABEL", value_parser = label)]
        label: String,
        #[command(flatten)]
        wait: WaitArgs,
        /// Publish even if the tree became empty, lost more than half of its entries (if it had at least 20)
        /// or of its bytes (if it had at least 20 files), or lost a mount.
        #[arg(long)]
        allow_mass_deletion: bool,
        /// Read every file, even if its times are unchanged. Finds changes that cause no event, such as
        /// writes through a memory map. Takes as long as reading the whole tree.
        #[arg(long)]
        rescan: bool,
        /// Policy by which the generation goes to the nodes: `each`, `together`, or a table `[rollout.NAME]`
        /// of the origin's configuration file [default: that of `serve`]. Ends a rollout that is running.
        #[arg(long, value_name = "POLICY")]
        rollout: Option<String>,
        /// Give the generation to all nodes at once, without steps and checks. Ends a rollout that is
        /// running.
        #[arg(long, conflicts_with = "rollout")]
        now: bool,
        /// Publish nothing: list what a commit would change, with the sum, and say whether it would be
        /// refused.
        #[arg(long, conflicts_with_all = ["wait", "rollout", "now", "rescan", "label", "events", "summary"])]
        dry_run: bool,
        #[command(flatten)]
        report: Report,
        #[command(flatten)]
        json: Json,
    },
    /// Wait until a generation, or a later one, is live on the nodes.
    #[command(after_help = WAIT_HELP)]
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
    #[command(after_help = STATUS_HELP)]
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
    #[command(after_help = HISTORY_HELP)]
    History {
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        json: Json,
    },
    /// List what happened in the fleet: generations, nodes, holds.
    #[command(after_help = EVENTS_HELP)]
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
    #[command(after_help = AUDIT_HELP)]
    Audit {
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        json: Json,
    },
    /// List the paths that differ between two generations.
    #[command(after_help = DIFF_HELP)]
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
    #[command(after_help = ROLLBACK_HELP)]
    Rollback {
        #[command(flatten)]
        data: Data,
        /// Generation whose tree is published again [default: the one before the generation in effect that
        /// was released and not rolled back].
        #[arg(value_parser = generation_number)]
        generation: Option<u64>,
        /// Do not ask on a terminal.
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        wait: WaitArgs,
        #[command(flatten)]
        json: Json,
    },
    /// Show or steer the rollout that is running.
    #[command(after_help = ROLLOUT_HELP)]
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
    #[command(after_help = BACKUP_HELP)]
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
    #[command(after_help = PUBLISH_HELP)]
    Publish {
        #[command(flatten)]
        data: Data,
        #[command(subcommand)]
        action: PublishCommand,
    },
    /// Make an origin on standby the origin of the tree.
    #[command(after_help = PROMOTE_HELP)]
    Promote {
        #[command(flatten)]
        data: Data,
    },
    /// Make an origin from its keys and what it had published, and print the restored generation.
    #[command(after_help = RESTORE_HELP)]
    Restore {
        #[command(flatten)]
        data: Data,
        /// Object store of `serve --publish`.
        #[arg(long, value_name = "URL")]
        from: BucketUrl,
    },
    /// Check or show the configuration of `serve`.
    #[command(after_help = CONFIG_HELP)]
    Config {
        #[command(subcommand)]
        action: ConfigAction,
    },
    /// Print the address of the page, which shows the fleet in a browser. With `serve --page-listen` it is a
    /// login link, good once and for ten minutes.
    #[command(after_help = PAGE_HELP)]
    Page {
        #[command(flatten)]
        data: Data,
    },
    /// Print completions for a shell.
    #[command(after_help = COMPLETIONS_HELP)]
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
            | Self::Commit { data, .. }
            | Self::Wait { data, .. }
            | Self::Status { data, .. }
            | Self::History { data, .. }
            | Self::Events { data, .. }
            | Self::Audit { data, .. }
            | Self::Diff { data, .. }
            | Self::Rollback { data, .. }
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

/// Reports of a commit for the steps of a pipeline.
#[derive(Debug, Args)]
pub(super) struct Report {
    /// Print each event as a line of JSON when it happens: the generation, each node, and the end.
    #[arg(long, conflicts_with = "json")]
    pub(super) events: bool,
    /// File to which a report in Markdown is appended.
    #[arg(long, value_name = "FILE")]
    pub(super) summary: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct NodeArgs {
    #[command(flatten)]
    pub(super) data: Data,
    /// Name of the node.
    pub(super) node: String,
}

#[derive(Debug, Subcommand)]
pub(super) enum RolloutCommand {
    /// Show the newest rollout, with its nodes.
    Status {
        #[command(flatten)]
        json: Json,
    },
    /// Flip no further nodes until `resume`. Times do not run meanwhile.
    Pause,
    /// Continue a paused rollout.
    Resume,
    /// End the hold, and begin the next step.
    Promote,
    /// End the rollout: the tree of before is published again, and nothing automatically until `commit`.
    Abort,
}

#[derive(Debug, Subcommand)]
pub(super) enum PublishCommand {
    /// Show the generation that followers get, and what keeps a later one from them.
    Status {
        #[command(flatten)]
        json: Json,
    },
    /// Read and verify everything that followers may read, and put damaged objects again.
    Check,
    /// Delete what followers no longer need. The first run lists it, and a run after the grace deletes it.
    Gc {
        /// Time between the two runs, which must be longer than the slowest transfer of a follower.
        #[arg(long, default_value = "1h", value_name = "TIME", value_parser = parse_time)]
        grace: Duration,
        /// Number of newest generations to keep.
        #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        keep: u32,
    },
}

impl PublishCommand {
    /// The request, and how its answer is printed.
    pub(super) fn request(&self) -> (Request, Print) {
        let (action, print) = match self {
            Self::Status { json } => (PublishAction::Status, Print::of(json)),
            Self::Check => (PublishAction::Check, Print::default()),
            Self::Gc { grace, keep } => {
                let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
                let keep = usize::try_from(*keep).unwrap_or(usize::MAX);
                (PublishAction::Gc { grace_ms, keep }, Print::default())
            }
        };
        (Request::Publish { action }, print)
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum TokenAction {
    /// List the valid tokens, without their secrets.
    List {
        #[command(flatten)]
        json: Json,
    },
    /// Make a token invalid.
    Revoke {
        /// ID of the token, as shown by `token list`, or the start of the ID.
        id: String,
    },
}

/// The address of a site, without the slash at its end.
fn site(text: &str) -> Result<String, String> {
    let is_site = ["https://", "http://"].iter().any(|scheme| {
        text.strip_prefix(scheme)
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '['))
    });
    if !is_site || text.contains(|c: char| c.is_whitespace() || c.is_control() || "?#".contains(c)) {
        return Err("give an address as in https://www.example.org".into());
    }
    Ok(text.trim_end_matches('/').to_owned())
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

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Content tree to publish.
    #[arg(long, env = "SYNCD_TREE", value_name = "DIR")]
    pub(super) tree: PathBuf,
    #[command(flatten)]
    pub(super) data: Data,
    /// Address to listen on for agents.
    #[arg(long, env = "SYNCD_LISTEN", default_value = LISTEN, value_name = "ADDR:PORT", value_parser = listen_address)]
    pub(super) listen: SocketAddr,
    /// Address of the health page [default: 127.0.0.1:8874].
    #[arg(long, env = "SYNCD_ORIGIN_HTTP", value_name = "ADDR:PORT", value_parser = listen_address)]
    pub(super) http: Option<SocketAddr>,
    /// Address of the page for other machines, with TLS and a login: see `syncd-origin page`. Without it the
    /// page is served with the health page alone, to this machine.
    #[arg(long, env = "SYNCD_PAGE_LISTEN", value_name = "ADDR:PORT", value_parser = listen_address)]
    pub(super) page_listen: Option<SocketAddr>,
    /// When to publish changes.
    #[arg(long, env = "SYNCD_TRIGGER", value_enum, default_value = "settle")]
    pub(super) trigger: TriggerName,
    /// File in the tree whose presence, for at most 10 minutes, delays publishing: somebody is changing the
    /// tree. A tree of WordPress has .maintenance by default.
    #[arg(long, env = "SYNCD_HOLD_WHILE", value_name = "PATH", value_parser = tree_path)]
    pub(super) hold_while: Option<TreePath>,
    #[command(flatten)]
    pub(super) git: GitArgs,
    /// Time without changes after which the tree is published.
    #[arg(long, env = "SYNCD_SETTLE", default_value = "500ms", value_name = "TIME", value_parser = parse_time)]
    pub(super) settle: Duration,
    /// Time after which a tree that keeps changing causes a warning, which names the path. A file that is
    /// open for writing delays publishing for at most this long after its last write.
    #[arg(long, env = "SYNCD_SETTLE_MAX", default_value = "30s", value_name = "TIME", value_parser = parse_time)]
    pub(super) settle_max: Duration,
    /// Time after which a file that keeps changing no longer delays the others. They are published, and the
    /// file stays as last published until it is quiet.
    #[arg(long, env = "SYNCD_SETTLE_MAX_PUBLISH", default_value = "5m", value_name = "TIME", value_parser = parse_time)]
    pub(super) settle_max_publish: Duration,
    /// Interval at which the parts of the tree that send no events, such as network file systems, are walked.
    #[arg(long, env = "SYNCD_POLL", default_value = "10s", value_name = "TIME", value_parser = parse_time)]
    pub(super) poll: Duration,
    /// Modification time that a file is published with.
    #[arg(long, env = "SYNCD_MTIME", value_enum, default_value = "tree")]
    pub(super) mtime: MtimePolicy,
    /// Symlinks to publish.
    #[arg(long, env = "SYNCD_SYMLINKS", value_enum, default_value = "verbatim")]
    pub(super) symlinks: SymlinkPolicy,
    /// Number of newest generations to keep, whatever their age and size.
    #[arg(long, env = "SYNCD_KEEP_GENERATIONS", default_value_t = 10, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) keep_generations: u32,
    /// Age of the history to keep: every generation of the last hour, one for each hour of the last day, then
    /// one for each day.
    #[arg(long, env = "SYNCD_KEEP_FOR", default_value = "7d", value_name = "TIME", value_parser = time_or_zero)]
    pub(super) keep_for: Duration,
    /// Space that the history may take, as in 20G. The oldest generations are retired first [default:
    /// unlimited].
    #[arg(long, env = "SYNCD_KEEP_BYTES", value_name = "SIZE")]
    pub(super) keep_bytes: Option<ByteSize>,
    /// Limit of the bytes per second sent to all agents together, as in 10M [default: unlimited].
    #[arg(long, env = "SYNCD_ORIGIN_BWLIMIT", value_name = "RATE")]
    pub(super) bwlimit: Option<Rate>,
    /// Object store that every generation is also put into, for agents that follow it, as in
    /// s3://BUCKET/PREFIX or file:///srv/published. It never delays a commit.
    #[arg(long, env = "SYNCD_PUBLISH", value_name = "URL", value_parser = BucketUrl::writable)]
    pub(super) publish: Option<BucketUrl>,
    /// URL at which agents read the object store, as in https://cdn.example.org/site. Joined agents get the
    /// bytes of larger updates there, and from the origin if that fails.
    #[arg(long, env = "SYNCD_PUBLISH_READ", value_name = "URL", requires = "publish",
        value_parser = BucketUrl::remote)]
    pub(super) publish_read: Option<BucketUrl>,
    /// Commit through the object store, so that of several origins with the same keys only one can. Commits
    /// wait for the store, and fail while it is down.
    #[arg(long, env = "SYNCD_FENCED", requires = "publish")]
    pub(super) fenced: bool,
    /// Stand by: follow what another origin with the same keys publishes there, until `syncd-origin promote`.
    #[arg(long, env = "SYNCD_STANDBY", requires = "publish")]
    pub(super) standby: bool,
    /// Limit of the bytes per second sent to the object store, as in 10M [default: unlimited].
    #[arg(long, env = "SYNCD_PUBLISH_BWLIMIT", value_name = "RATE", requires = "publish")]
    pub(super) publish_bwlimit: Option<Rate>,
    /// Command that makes caches in front of all nodes, such as a CDN, forget what has changed. `sh -c` runs
    /// it once the nodes have a generation, and again after stragglers, with the changed paths on standard
    /// input.
    #[arg(long, env = "SYNCD_PURGE", value_name = "CMD")]
    pub(super) purge: Option<String>,
    /// Address of the site, as in `https://www.example.org`. The command of --purge then gets URLs below it,
    /// not paths. May be repeated.
    #[arg(long, env = "SYNCD_PURGE_SITE", value_name = "URL", requires = "purge", value_delimiter = ',',
          value_parser = site)]
    pub(super) purge_site: Vec<String>,
    /// Command for `sh -c` when a rollout fails or is aborted, or publication is held. It gets the JSON of
    /// `rollout status` on standard input.
    #[arg(long, env = "SYNCD_ON_ROLLOUT", value_name = "CMD")]
    pub(super) on_rollout: Option<String>,
    /// Policy by which generations go to the nodes: `each`, `together`, or a table `[rollout.NAME]` of the
    /// configuration file. In that file, `default = "NAME"` in the table `[rollout]` chooses it.
    #[arg(long, env = "SYNCD_ROLLOUT", value_name = "POLICY")]
    pub(super) rollout: Option<String>,
    /// Stands for the tables `[collect.NAME]` of the configuration file.
    #[arg(long, hide = true, value_parser = no_option)]
    pub(super) collect: Option<String>,
    /// Group whose members may use every command (commit, token, revoke ...), in addition to root and the
    /// user of this process.
    #[arg(long, env = "SYNCD_ADMIN_GROUP", value_name = "GROUP", value_parser = group_id)]
    pub(super) admin_group: Option<u32>,
    /// Format of the log on standard error.
    #[arg(long, env = "SYNCD_LOG_FORMAT", value_enum, default_value = "text")]
    pub(super) log_format: LogFormat,
}

#[derive(Debug, Args)]
pub(super) struct GitArgs {
    /// Branch, tag or other reference to publish with --trigger git [default: HEAD].
    #[arg(long, env = "SYNCD_GIT_REF", value_name = "REF")]
    git_ref: Option<String>,
    /// Modification time of files with --trigger git [default: file-commit].
    #[arg(long, env = "SYNCD_GIT_MTIME", value_enum)]
    git_mtime: Option<Mtime>,
    /// Fate of submodules with --trigger git [default: refuse].
    #[arg(long, env = "SYNCD_GIT_SUBMODULES", value_enum)]
    git_submodules: Option<Submodules>,
    /// Fate of pointers of git-lfs with --trigger git [default: refuse].
    #[arg(long, env = "SYNCD_GIT_LFS", value_enum)]
    git_lfs: Option<Lfs>,
}

impl GitArgs {
    /// The options with `--trigger git`; `None` with any other.
    pub(super) fn options(
        self,
        serve: TriggerName,
        mtime: MtimePolicy,
    ) -> Result<Option<GitOptions>, &'static str> {
        let Self { git_ref, git_mtime, git_submodules, git_lfs } = self;
        if !matches!(serve, TriggerName::Git) {
            let is_given =
                git_ref.is_some() || git_mtime.is_some() || git_submodules.is_some() || git_lfs.is_some();
            return if is_given {
                Err("--git-ref and the other --git options need --trigger git")
            } else {
                Ok(None)
            };
        }
        if mtime != MtimePolicy::Tree {
            return Err(
                "--mtime is for directories: with --trigger git, --git-mtime says which times are published",
            );
        }
        Ok(Some(GitOptions {
            reference: git_ref.unwrap_or_else(|| "HEAD".into()),
            mtime: git_mtime.unwrap_or_default(),
            submodules: git_submodules.unwrap_or_default(),
            lfs: git_lfs.unwrap_or_default(),
        }))
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum TriggerName {
    /// Once the tree has been quiet for --settle.
    Settle,
    /// Only on `syncd-origin commit`.
    Manual,
    /// When --git-ref moves. --tree is a work tree or a bare repository.
    Git,
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
        let parsed = Self::try_parse_from(join_wait(arguments));
        Ok(parsed.map_err(|error| config_file::explain(error, &command, &given, Some(Path::new(CONFIG)))))
    }
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

fn tree_path(text: &str) -> Result<TreePath, TreePathError> {
    TreePath::from_bytes(text.as_bytes())
}

fn generation_number(text: &str) -> Result<u64, &'static str> {
    text.parse().map_err(|_| "generations are numbers: `syncd-origin history` lists them")
}

/// Trims the label, for example of a line feed added by a shell.
pub(super) fn label(text: &str) -> Result<String, LabelError> {
    let label = text.trim();
    check_label(label)?;
    Ok(label.to_owned())
}
