//! The command line, a contract described in the README. Results go to standard output, everything else to
//! standard error.

use std::ffi::OsString;
use std::fmt;
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;
use syncd_runtime::accounts::group_id;
use syncd_runtime::config_file::{self, ConfigError};
use syncd_runtime::local_socket::{self, LocalSocketError};
use syncd_runtime::output::{self, OutputError, note};
use syncd_runtime::rate::Rate;
use syncd_runtime::signals::Signals;
use syncd_shared::address::listen_address;
use syncd_shared::byte_size::ByteSize;
use syncd_shared::generation::{LabelError, check_label};
use syncd_shared::text::{counted, error_chain};
use syncd_shared::time_span::{parse_time, time_or_zero};

use crate::admin;
use crate::admin::offline::{DataDirectory, join_address};
use crate::admin::protocol::{
    DiffLine, GenerationLine, HistoryLine, NodeLine, Reply, Request, TokenLine, Wait,
};
use crate::admin::status::{Status, Verdict};
use crate::fleet::live_wait::{NodeResult, seconds};
use crate::scan::{MtimePolicy, SymlinkPolicy};
use crate::service::{self, ServeOptions};
use crate::store::Retention;

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

TIME is a number with a unit, as in 500ms, 30s or 5m. SIZE and RATE are bytes, and bytes per second; \
K, M and G are powers of 1,024.

Files named by .syncdignore files in the tree are not published. SIGTERM stops cleanly. SIGHUP does \
not reload options.";
const TOKEN_HELP: &str = "\
Examples:
  syncd-origin token
  syncd-origin token --ttl 1d --uses 10
  syncd-origin token list";
const COMMIT_HELP: &str = "\
Examples:
  syncd-origin commit -m 'release 7' --wait
  syncd-origin commit --wait=5m --require-all --json

A commit ends the hold that a rollback leaves.

Exit codes: 0 success; 1 failure; 3 sealed, but not live on every node that was waited for.";
const STATUS_HELP: &str = "\
Examples:
  syncd-origin status --watch
  syncd-origin status --check > /dev/null || echo 'look at the origin'";
const HISTORY_HELP: &str = "\
Examples:
  syncd-origin history
  syncd-origin history --json | tail -1

An asterisk (*) marks the published generation. Changes are new (+), changed (~) and removed (-) files and directories.";
const DIFF_HELP: &str = "\
Examples:
  syncd-origin diff
  syncd-origin diff 41 43 --stat
  syncd-origin diff --pending";
const ROLLBACK_HELP: &str = "\
Examples:
  syncd-origin rollback 41 --wait

After a rollback nothing is published automatically until the next commit. Exit codes are those of \
commit.";
const BACKUP_HELP: &str = "\
Examples:
  syncd-origin backup /mnt/backup/syncd-origin

To restore, run `syncd-origin serve` with the copy as --data.";

/// Replicates web content: watches a content tree, seals it into signed generations, and serves them to
/// agents.
#[derive(Debug, Parser)]
#[command(name = "syncd-origin", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Data {
    /// Data directory of the origin: keys and store.
    #[arg(long, env = "SYNCD_DATA", default_value = DATA, value_name = "DIR", global = true)]
    data: PathBuf,
    /// TOML file with defaults for these options.
    #[arg(long, value_name = "FILE", env = "SYNCD_ORIGIN_CONFIG")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Json {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct WaitArgs {
    /// Wait until the generation is live on every connected agent, hook included, for at most TIME [default
    /// TIME: 60s]. Exits with 3 if some agent is not live by then.
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "60s", value_parser = parse_time)]
    wait: Option<Duration>,
    /// Exit with 3 also if an enrolled agent is unreachable.
    #[arg(long, requires = "wait")]
    require_all: bool,
}

impl WaitArgs {
    fn request(&self) -> Option<Wait> {
        let wait = self.wait?;
        Some(Wait {
            timeout_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
            require_all: self.require_all,
        })
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a data directory with new keys and an empty store.
    #[command(after_help = "Examples:\n  syncd-origin init --host origin.example.org")]
    Init {
        #[command(flatten)]
        data: Data,
        /// Host name or IP address at which agents reach this origin, for the join command that is printed.
        #[arg(long, env = "SYNCD_HOST", value_name = "NAME|IP")]
        host: Option<String>,
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
        /// Generation whose tree is published again.
        #[arg(value_parser = generation_number)]
        generation: u64,
        #[command(flatten)]
        wait: WaitArgs,
        #[command(flatten)]
        json: Json,
    },
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
}

#[derive(Debug, Subcommand)]
enum TokenAction {
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
struct Serve {
    /// Content tree to publish.
    #[arg(long, env = "SYNCD_TREE", value_name = "DIR")]
    tree: PathBuf,
    #[command(flatten)]
    data: Data,
    /// Address to listen on for agents.
    #[arg(long, env = "SYNCD_LISTEN", default_value = LISTEN, value_name = "ADDR:PORT", value_parser = listen_address)]
    listen: SocketAddr,
    /// Address of the health page [default: 127.0.0.1:8874].
    #[arg(long, env = "SYNCD_ORIGIN_HTTP", value_name = "ADDR:PORT", value_parser = listen_address)]
    http: Option<SocketAddr>,
    /// When to publish changes.
    #[arg(long, env = "SYNCD_TRIGGER", value_enum, default_value = "settle")]
    trigger: TriggerName,
    /// Time without changes after which the tree is published.
    #[arg(long, env = "SYNCD_SETTLE", default_value = "500ms", value_name = "TIME", value_parser = parse_time)]
    settle: Duration,
    /// Time after which a tree that keeps changing causes a warning, which names the path. A file that is
    /// open for writing delays publishing for at most this long after its last write.
    #[arg(long, env = "SYNCD_SETTLE_MAX", default_value = "30s", value_name = "TIME", value_parser = parse_time)]
    settle_max: Duration,
    /// Time after which a file that keeps changing no longer delays the others. They are published, and the
    /// file stays as last published until it is quiet.
    #[arg(long, env = "SYNCD_SETTLE_MAX_PUBLISH", default_value = "5m", value_name = "TIME", value_parser = parse_time)]
    settle_max_publish: Duration,
    /// Interval at which the parts of the tree that send no events, such as network file systems, are walked.
    #[arg(long, env = "SYNCD_POLL", default_value = "10s", value_name = "TIME", value_parser = parse_time)]
    poll: Duration,
    /// Modification time that a file is published with.
    #[arg(long, env = "SYNCD_MTIME", value_enum, default_value = "tree")]
    mtime: MtimePolicy,
    /// Symlinks to publish.
    #[arg(long, env = "SYNCD_SYMLINKS", value_enum, default_value = "verbatim")]
    symlinks: SymlinkPolicy,
    /// Number of newest generations to keep, whatever their age and size.
    #[arg(long, env = "SYNCD_KEEP_GENERATIONS", default_value_t = 10, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..))]
    keep_generations: u32,
    /// Age of the history to keep: every generation of the last hour, one for each hour of the last day, then
    /// one for each day.
    #[arg(long, env = "SYNCD_KEEP_FOR", default_value = "7d", value_name = "TIME", value_parser = time_or_zero)]
    keep_for: Duration,
    /// Space that the history may take, as in 20G. The oldest generations are retired first [default:
    /// unlimited].
    #[arg(long, env = "SYNCD_KEEP_BYTES", value_name = "SIZE")]
    keep_bytes: Option<ByteSize>,
    /// Limit of the bytes per second sent to all agents together, as in 10M [default: unlimited].
    #[arg(long, env = "SYNCD_ORIGIN_BWLIMIT", value_name = "RATE")]
    bwlimit: Option<Rate>,
    /// Group whose members may use every command (commit, token, revoke ...), in addition to root and the
    /// user of this process.
    #[arg(long, env = "SYNCD_ADMIN_GROUP", value_name = "GROUP", value_parser = group_id)]
    admin_group: Option<u32>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TriggerName {
    /// Once the tree has been quiet for --settle.
    Settle,
    /// Only on `syncd-origin commit`.
    Manual,
}

impl Cli {
    /// Parses the command line over environment, configuration file and defaults. Wrong usage ends the
    /// process with 2.
    pub fn from_process() -> Result<Self, ConfigError> {
        Self::from_arguments(std::env::args_os().collect())
            .map(|parsed| parsed.unwrap_or_else(|error| error.exit()))
    }

    fn from_arguments(given: Vec<OsString>) -> Result<Result<Self, clap::Error>, ConfigError> {
        let command = Self::command();
        let arguments = config_file::arguments_with_config(given.iter().cloned(), &command)?;
        let parsed = Self::try_parse_from(join_wait(arguments));
        Ok(parsed.map_err(|error| config_file::explain(error, &command, &given)))
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

fn generation_number(text: &str) -> Result<u64, &'static str> {
    text.parse().map_err(|_| "generations are numbers: `syncd-origin history` lists them")
}

/// Trims the label, for example of a line feed added by a shell.
fn label(text: &str) -> Result<String, LabelError> {
    let label = text.trim();
    check_label(label)?;
    Ok(label.to_owned())
}

/// Runs a parsed command line to its end.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let mut runtime = match cli.command {
        Command::Serve(_) => tokio::runtime::Builder::new_multi_thread(),
        // These commands send one request and wait for the answer.
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = runtime.enable_all().build()?;
    let result = runtime.block_on(dispatch(cli.command));
    // Threads that are still blocked were told to stop and have had their time.
    runtime.shutdown_timeout(Duration::from_secs(5));
    result
}

async fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Init { data, host } => init(&data.data, host.as_deref()),
        Command::Serve(serve) => serve_until_signal(*serve).await,
        Command::Token { data, ttl, uses, action } => match action {
            None => ask(&data.data, Request::Token { ttl_s: ttl.as_secs(), uses }, Print::default()).await,
            Some(TokenAction::List { json }) => ask(&data.data, Request::Tokens, Print::of(&json)).await,
            Some(TokenAction::Revoke { id }) => {
                ask(&data.data, Request::RevokeToken { id }, Print::default()).await
            }
        },
        Command::Backup { data, directory } => {
            let directory = std::path::absolute(directory).context("the directory for the backup")?;
            let code =
                ask(&data.data, Request::Backup { directory: directory.clone() }, Print::default()).await?;
            check_backup_is_here(&directory)?;
            Ok(code)
        }
        Command::Commit { data, label, wait, allow_mass_deletion, rescan, json } => {
            let request = Request::Commit { label, allow_mass_deletion, rescan, wait: wait.request() };
            ask(&data.data, request, Print::of(&json)).await
        }
        Command::Status { data, json, watch, check } => loop {
            // A terminal is redrawn; in a pipe or file the statuses follow each other.
            if watch && !json.json && std::io::stdout().is_terminal() {
                output::line("\x1b[2J\x1b[H")?;
            }
            let print = Print { check, ..Print::of(&json) };
            let code = ask(&data.data, Request::Status, print).await?;
            if !watch {
                return Ok(code);
            }
            if !json.json && !std::io::stdout().is_terminal() {
                output::line("")?;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        },
        Command::History { data, json } => ask(&data.data, Request::History, Print::of(&json)).await,
        Command::Diff { data, from, to, pending, stat, json } => {
            let print = Print { stat, ..Print::of(&json) };
            ask(&data.data, Request::Diff { from, to, pending }, print).await
        }
        Command::Rollback { data, generation, wait, json } => {
            let request = Request::Rollback { generation, wait: wait.request() };
            ask(&data.data, request, Print::of(&json)).await
        }
        Command::Revoke { data, agent } => ask(&data.data, Request::Revoke { agent }, Print::default()).await,
        Command::Check { data } => ask(&data.data, Request::Check, Print::default()).await,
    }
}

/// Rejects a backup that only the serving origin can see, because its unit may have a private /tmp.
fn check_backup_is_here(directory: &Path) -> anyhow::Result<()> {
    // A user without permission to look, such as a member of the admin group, cannot tell.
    let is_missing = directory.join("keys").try_exists().is_ok_and(|exists| !exists);
    anyhow::ensure!(
        !is_missing,
        "the origin wrote its copy where only it can see it, {} has none: its unit hides that directory \
         (PrivateTmp=): give one outside of /tmp and /var/tmp, and list it in the unit's ReadWritePaths=",
        directory.display()
    );
    Ok(())
}

fn init(data: &Path, host: Option<&str>) -> anyhow::Result<ExitCode> {
    let keys = service::init(data)?;
    if let Some(host) = host {
        keys.set_host(host)?;
    }
    let address = join_address(keys.host(), None);
    let shown = data.display();
    // The result comes last, because a reader of the result may close the pipe after it.
    note(format_args!(
        "The origin's keys and store are in {shown}. Anyone who has these files can act as this origin. Back them up now,\n\
         and after each `revoke` (or everything at any time: syncd-origin backup DIR --data {shown}):"
    ));
    for file in keys.backup_files() {
        note(format_args!("  {}", file.display()));
    }
    note(format_args!(
        "\nNext, on this machine, with your own tree in place of /srv/site:\n  syncd-origin serve --tree /srv/site --data {shown}"
    ));
    note(format_args!("  syncd-origin token --data {shown}"));
    note("Then, on every web node, with that token. The port is the one that `serve` listens on:");
    note(format_args!("  SYNCD_TOKEN=... syncd-agent join {address} --root /var/lib/syncd/agent"));
    note("  syncd-agent run --root /var/lib/syncd/agent");
    output::line(format_args!("tree_id {}", keys.tree_id()))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve_until_signal(serve: Serve) -> anyhow::Result<ExitCode> {
    let trigger = match serve.trigger {
        TriggerName::Manual => crate::commit::Trigger::Manual,
        TriggerName::Settle => crate::commit::Trigger::Settle {
            quiet: serve.settle,
            max: serve.settle_max,
            busy_after: serve.settle_max_publish,
        },
    };
    let options = ServeOptions {
        tree: std::path::absolute(&serve.tree).context("the directory that --tree is relative to")?,
        data: serve.data.data,
        listen: serve.listen,
        http_required: serve.http.is_some(),
        http: match serve.http {
            Some(http) => http,
            None => HTTP.parse().context("the default of --http")?,
        },
        trigger,
        poll: serve.poll,
        mtime: serve.mtime,
        symlinks: serve.symlinks,
        retention: Retention {
            generations: usize::try_from(serve.keep_generations).unwrap_or(usize::MAX),
            age: serve.keep_for,
            bytes: serve.keep_bytes.map(ByteSize::bytes),
        },
        bwlimit: serve.bwlimit,
        admin_group: serve.admin_group,
    };
    // Before anything is opened, so that from here on a SIGTERM shuts down in order.
    let mut signals = Signals::listen()?;
    let running = service::start(options).await?;
    tokio::select! {
        () = signals.stop() => {}
        () = running.ended() => bail!("the origin stopped by itself; the log above says why"),
    }
    tracing::info!("stopping");
    running.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// How results are printed.
#[derive(Clone, Copy, Default)]
struct Print {
    /// `--json`.
    json: bool,
    /// `--stat`: prints only the sums of a list.
    stat: bool,
    /// `--check`: sets the exit code from the state.
    check: bool,
}

impl Print {
    fn of(json: &Json) -> Self {
        Self { json: json.json, ..Self::default() }
    }
}

/// Sends the request to the origin that serves `data`, or answers it from `data` if none does.
async fn ask(data: &Path, request: Request, print: Print) -> anyhow::Result<ExitCode> {
    let mut printer = Printer::new(print, &request);
    match local_socket::request::<_, Reply>(&admin::socket_path(data), &request).await {
        Ok(mut replies) => {
            while let Some(reply) = replies.next().await? {
                if let Some(code) = printer.take(reply)? {
                    return Ok(code);
                }
            }
            bail!("the origin stopped before it had answered")
        }
        Err(LocalSocketError::NotServed { .. }) => {
            let data = data.to_owned();
            tokio::task::spawn_blocking(move || {
                let directory = DataDirectory::open(&data)?;
                let mut failed = None;
                let last = directory.answer(request, &mut |line| match printer.take(line) {
                    Ok(_) => true,
                    Err(error) => {
                        failed = Some(error);
                        false
                    }
                });
                match failed {
                    Some(error) => Err(error),
                    None => printer.take(last)?.context("the last line of an answer ends it"),
                }
            })
            .await?
        }
        Err(error) => Err(error).with_context(|| format!("ask the origin that serves {}", data.display())),
    }
}

/// Output of `commit --json` and `rollback --json`.
#[derive(Serialize)]
struct Published<'a> {
    #[serde(flatten)]
    generation: Option<&'a GenerationLine>,
    nodes: &'a [NodeLine],
}

/// Output of `diff --stat`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
struct DiffStat {
    added: u64,
    removed: u64,
    modified: u64,
    metadata: u64,
    renamed: u64,
    /// Bytes of added and modified files.
    bytes: u64,
}

impl DiffStat {
    fn count(&mut self, line: &DiffLine) {
        let is_new = matches!(line.change.as_str(), "added" | "modified");
        self.bytes += line.size.filter(|_| is_new).unwrap_or(0);
        *match line.change.as_str() {
            "added" => &mut self.added,
            "removed" => &mut self.removed,
            "modified" => &mut self.modified,
            "renamed" => &mut self.renamed,
            _ => &mut self.metadata,
        } += 1;
    }
}

impl fmt::Display for DiffStat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { added, removed, modified, metadata, renamed, bytes } = *self;
        let counts = [
            (added, "added"),
            (modified, "modified"),
            (removed, "removed"),
            (metadata, "with other metadata"),
        ];
        let counts = counts.into_iter().chain([(renamed, "renamed")]).filter(|(count, _)| *count > 0);
        let counts: Vec<String> =
            counts.map(|(count, what)| format!("{} {what}", HumanCount(count))).collect();
        if counts.is_empty() {
            return f.write_str("no difference");
        }
        let counts = counts.join(", ");
        write!(f, "files and directories: {counts}; {} in added and modified files", HumanBytes(bytes))
    }
}

/// Prints replies as they arrive. `--json` prints one document, or one line for each generation or path.
struct Printer {
    print: Print,
    /// Whether the request publishes a generation.
    publishes: bool,
    /// Whether the request lists differences.
    compares: bool,
    /// `-m`.
    label: Option<String>,
    generation: Option<GenerationLine>,
    nodes: Vec<NodeLine>,
    stat: DiffStat,
    /// Lines of the list so far.
    lines: u64,
    verdict: Option<Verdict>,
    /// Error of writing the generation's number.
    unwritten: Option<OutputError>,
}

impl Printer {
    fn new(print: Print, request: &Request) -> Self {
        let label = match request {
            Request::Commit { label, .. } => Some(label.clone()).filter(|label| !label.is_empty()),
            _ => None,
        };
        Self {
            print,
            publishes: matches!(request, Request::Commit { .. } | Request::Rollback { .. }),
            compares: matches!(request, Request::Diff { .. }),
            label,
            generation: None,
            nodes: Vec::new(),
            stat: DiffStat::default(),
            lines: 0,
            verdict: None,
            unwritten: None,
        }
    }

    /// Prints a line, after a header on the first call. `*` marks the published generation.
    fn history(&mut self, line: &HistoryLine) -> Result<(), OutputError> {
        if self.lines == 0 {
            output::line(
                "  generation  created                        files        size  changes           root          label",
            )?;
        }
        self.lines += 1;
        output::line(format_args!(
            "{} {:>10}  {:24}  {:>10}  {:>10}  {:16}  {:.12}  {}",
            if line.current { '*' } else { ' ' },
            line.generation,
            line.created,
            HumanCount(line.files).to_string(),
            HumanBytes(line.bytes).to_string(),
            line.changes.map_or("?".to_owned(), |changes| changes.to_string()),
            line.root,
            line.label
        ))
    }

    /// Prints the rest of the output after the last reply, and returns the exit code.
    fn end(&mut self, code: u8) -> anyhow::Result<ExitCode> {
        let Print { json, stat, check } = self.print;
        if self.publishes && json {
            let published = Published { generation: self.generation.as_ref(), nodes: &self.nodes };
            output::line(serde_json::to_string(&published)?)?;
        }
        match (self.compares, stat, json) {
            (true, true, true) => output::line(serde_json::to_string(&self.stat)?)?,
            (true, true, false) => output::line(self.stat)?,
            (true, false, false) => note(self.stat),
            _ => {}
        }
        let code = match self.verdict {
            Some(Verdict::NotPublishing) if check => 1,
            Some(Verdict::NotLiveEverywhere) if check => 3,
            _ => code,
        };
        match self.unwritten.take() {
            Some(error) if code == 0 => Err(error.into()),
            _ => Ok(ExitCode::from(code)),
        }
    }

    /// Handles a reply. Returns the exit code with the last one.
    fn take(&mut self, reply: Reply) -> anyhow::Result<Option<ExitCode>> {
        let Print { json, stat, .. } = self.print;
        match reply {
            Reply::Status(status) => {
                self.verdict = Some(status.verdict());
                if json {
                    output::line(serde_json::to_string(&status)?)?;
                } else {
                    output::line(Status::to_text(&status).trim_end())?;
                }
            }
            Reply::Generation(line) => {
                if !json && let Err(error) = output::line(line.generation) {
                    // The generation is sealed even if nobody reads its number, and is still waited for.
                    if !error.is_reader_gone() {
                        note(format_args!("generation {}: {}", line.generation, error_chain(&error)));
                    }
                    self.unwritten = Some(error);
                }
                if !line.changed {
                    let unused =
                        self.label.as_ref().map(|label| format!(": the label \"{label}\" was not used"));
                    let unused = unused.unwrap_or_default();
                    note(format_args!("nothing changed since generation {}{unused}", line.generation));
                }
                self.generation = Some(line);
            }
            Reply::Node(node) => {
                let result = match node.result {
                    NodeResult::Live => " live",
                    NodeResult::Failed => " failed",
                    NodeResult::HookFailed => " hook failed",
                    NodeResult::Late => "",
                    NodeResult::Unreachable => " unreachable",
                };
                let error = node.error.as_ref().map(|e| format!(": {e}"));
                let after = || {
                    let is_live = node.result == NodeResult::Live;
                    is_live.then(|| format!(" after {}", seconds(Duration::from_millis(node.after_ms))))
                };
                note(format_args!("{}{result}{}", node.name, error.or_else(after).unwrap_or_default()));
                self.nodes.push(node);
            }
            Reply::Token { token, about, address } => {
                let TokenLine { id, expires, uses_left, .. } = about;
                let agents = counted(uses_left.into(), "agent", "agents");
                note(format_args!("token {id}, for {agents} until {expires}; on the web node:"));
                note(format_args!(
                    "  SYNCD_TOKEN={token} syncd-agent join {address} --root /var/lib/syncd/agent"
                ));
                output::line(token)
                    .context("the token was made but not printed: it expires on its own; make another one")?;
            }
            Reply::TokenListed(token) if json => output::line(serde_json::to_string(&token)?)?,
            Reply::TokenListed(token) => output::line(format_args!(
                "{}  expires {}  uses left {}",
                token.id, token.expires, token.uses_left
            ))?,
            Reply::History(line) if json => output::line(serde_json::to_string(&line)?)?,
            Reply::History(line) => self.history(&line)?,
            Reply::Diff(line) => {
                self.stat.count(&line);
                if json && !stat {
                    output::line(serde_json::to_string(&line)?)?;
                } else if !stat {
                    let slash = if line.kind == "directory" { "/" } else { "" };
                    let from = line.from.map(|from| format!("{from}{slash} -> ")).unwrap_or_default();
                    let second = if line.indistinct { "  (same second as before)" } else { "" };
                    output::line(format_args!("{:9} {from}{}{slash}{second}", line.change, line.path))?;
                }
            }
            Reply::Progress { bytes, total_bytes } => {
                note(format_args!("{} of {}", HumanBytes(bytes), HumanBytes(total_bytes)));
            }
            Reply::Damage { damage } => output::line(format_args!("damaged: {damage}"))?,
            Reply::Remark { text } => note(text),
            Reply::Done { code } => return Ok(Some(self.end(code)?)),
            Reply::Error { message } => bail!(message),
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_holds_and_every_command_has_examples() {
        Cli::command().debug_assert();
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains(&format!("syncd-origin {}", command.get_name())), "{}", command.get_name());
        }
    }

    #[test]
    fn a_time_after_wait_belongs_to_it_and_a_generation_does_not() {
        let joined = |line: &str| {
            let words = join_wait(line.split(' ').map(OsString::from).collect());
            words.join(std::ffi::OsStr::new(" ")).into_string().unwrap()
        };
        assert_eq!(joined("syncd-origin commit --wait 5s -m x"), "syncd-origin commit --wait=5s -m x");
        for same in ["rollback --wait 41", "commit --wait -m 5s", "commit --wait=5s 5s"] {
            assert_eq!(joined(same), same);
        }
    }

    #[test]
    fn wrong_values_are_refused_with_what_is_right() {
        for (line, word) in [
            ("syncd-origin diff abc", "history"),
            ("syncd-origin token --ttl 0s", "whole seconds"),
            ("syncd-origin token --ttl 1500ms", "whole seconds"),
            ("syncd-origin token --ttl 90d", "at most 30d"),
            ("syncd-origin token --ttl 10years", "at most 30d"),
            ("syncd-origin serve --tree / --keep-for 7", "as in"),
            ("syncd-origin serve --tree / --listen 8873", "0.0.0.0:8873"),
            ("syncd-origin serve --tree / --admin-group no-such-group", "/etc/group"),
        ] {
            let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(word), "{line}: {error}");
        }
        for (label, good) in [("release 7\n", true), ("a\nb", false), ("\u{1b}[2J", false)] {
            assert_eq!(
                Cli::try_parse_from(["syncd-origin", "commit", "-m", label]).is_ok(),
                good,
                "{label:?}"
            );
        }
    }

    #[test]
    fn a_summary_names_what_there_is() {
        let mut stat = DiffStat::default();
        assert_eq!(stat.to_string(), "no difference");
        for (change, size) in
            [("added", Some(2_048)), ("added", None), ("removed", Some(9)), ("metadata", Some(7))]
        {
            let (change, kind, path) = (change.into(), "file".into(), "x".into());
            let line = DiffLine { change, kind, path, from: None, size, indistinct: false };
            stat.count(&line);
        }
        let expected = "files and directories: 2 added, 1 removed, 1 with other metadata; 2.00 KiB in added and modified files";
        assert_eq!(stat.to_string(), expected);
    }
}
