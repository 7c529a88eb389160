//! The command line: a contract, see the README. Results go to standard output, everything else to standard error.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use syncd_shared::generation::{LabelError, check_label};
use syncd_shared::local_socket::{self, LocalSocketError};
use syncd_shared::output::{self, OutputError, note};
use syncd_shared::rate::Rate;
use syncd_shared::signals::Signals;
use syncd_shared::text::error_chain;

use crate::admin;
use crate::arrivals::seconds;
use crate::desk::Desk;
use crate::dialogue::{GenerationLine, NodeLine, NodeResult, Reply, Request, Wait};
use crate::scan::{MtimePolicy, SymlinkPolicy};
use crate::service::{self, ServeOptions};
use crate::status::Status;

const DATA: &str = "/var/lib/syncd/origin";
/// Default of `--listen`.
pub const LISTEN: &str = "0.0.0.0:8873";
/// Default of `--http`.
pub const HTTP: &str = "127.0.0.1:8874";

/// Push replication of web content: watches one content tree, seals it into signed generations, serves them to agents.
#[derive(Debug, Parser)]
#[command(name = "syncd-origin", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Data {
    /// Where the origin keeps its keys and its store.
    #[arg(long, env = "SYNCD_DATA", default_value = DATA, value_name = "DIR")]
    data: PathBuf,
    /// TOML file with defaults for these options.
    #[arg(long, value_name = "FILE", env = "SYNCD_CONFIG")]
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
    /// Wait until every connected agent has the generation live, its hook included, at most this long; 60s where no TIME
    /// is given. Exit code 3: not all have.
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "60s", value_parser = humantime::parse_duration)]
    wait: Option<Duration>,
    /// Enrolled but unreachable agents fail it too.
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
    /// Make keys and an empty store.
    Init {
        #[command(flatten)]
        data: Data,
        /// Name or address that agents will dial, for the printed join command.
        #[arg(long, env = "SYNCD_HOST", value_name = "NAME|IP")]
        host: Option<String>,
    },
    /// Watch the tree, seal it, serve agents.
    Serve(Box<Serve>),
    /// Print a join token for new agents.
    Token {
        #[command(flatten)]
        data: Data,
        /// How long it is good for.
        #[arg(long, default_value = "1h", value_name = "TIME", value_parser = humantime::parse_duration)]
        ttl: Duration,
        /// How many agents may join with it.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
    },
    /// Publish the tree as it is now; prints the generation's number. Ends the hold that a rollback left.
    Commit {
        #[command(flatten)]
        data: Data,
        /// Label of the generation: one line of text.
        #[arg(short = 'm', long = "label", default_value = "", value_name = "LABEL", value_parser = label)]
        label: String,
        #[command(flatten)]
        wait: WaitArgs,
        /// Publish even if the tree became empty, lost more than half of its entries (of at least 20) or of its bytes (in
        /// at least 20 files), or lost a mount.
        #[arg(long)]
        allow_mass_deletion: bool,
        #[command(flatten)]
        json: Json,
    },
    /// Show the generation, the agents and how far they are.
    Status {
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        json: Json,
        /// Show it again every second.
        #[arg(long)]
        watch: bool,
    },
    /// List the retained generations.
    History {
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        json: Json,
    },
    /// List the paths that differ between two generations.
    Diff {
        #[command(flatten)]
        data: Data,
        /// Generation; the one before TO if absent.
        from: Option<u64>,
        /// Generation; the current one if absent.
        to: Option<u64>,
        #[command(flatten)]
        json: Json,
    },
    /// Publish the tree of an earlier generation as a new generation; then nothing is published automatically until the
    /// next commit.
    Rollback {
        #[command(flatten)]
        data: Data,
        /// The generation whose tree is wanted back.
        generation: u64,
        #[command(flatten)]
        wait: WaitArgs,
        #[command(flatten)]
        json: Json,
    },
    /// Shut an agent out; its name is free again.
    Revoke {
        #[command(flatten)]
        data: Data,
        /// Name of the agent.
        agent: String,
    },
    /// Verify every byte of the store.
    Check {
        #[command(flatten)]
        data: Data,
    },
}

#[derive(Debug, Args)]
struct Serve {
    /// The content tree.
    #[arg(long, env = "SYNCD_TREE", value_name = "DIR")]
    tree: PathBuf,
    #[command(flatten)]
    data: Data,
    /// Where agents dial.
    #[arg(long, env = "SYNCD_LISTEN", default_value = LISTEN, value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// Where health is answered [default: 127.0.0.1:8874].
    #[arg(long, env = "SYNCD_HTTP", value_name = "ADDR:PORT")]
    http: Option<SocketAddr>,
    /// When changes are published.
    #[arg(long, env = "SYNCD_TRIGGER", value_enum, default_value = "settle")]
    trigger: TriggerName,
    /// The tree is published when it was quiet for this long.
    #[arg(long, env = "SYNCD_SETTLE", default_value = "500ms", value_name = "TIME", value_parser = humantime::parse_duration)]
    settle: Duration,
    /// After this much unrest the status names what keeps changing.
    #[arg(long, env = "SYNCD_SETTLE_MAX", default_value = "30s", value_name = "TIME", value_parser = humantime::parse_duration)]
    settle_max: Duration,
    /// How often parts of the tree that send no events (network file systems) are walked.
    #[arg(long, env = "SYNCD_POLL", default_value = "10s", value_name = "TIME", value_parser = humantime::parse_duration)]
    poll: Duration,
    /// `keep`: a file whose content and mode did not change keeps the time it had.
    #[arg(long, env = "SYNCD_MTIME", value_enum, default_value = "tree")]
    mtime: MtimePolicy,
    /// `inside`: refuse symlinks that leave the tree.
    #[arg(long, env = "SYNCD_SYMLINKS", value_enum, default_value = "verbatim")]
    symlinks: SymlinkPolicy,
    /// Bytes a second to all agents together, as in 10M.
    #[arg(long, env = "SYNCD_BWLIMIT", value_name = "RATE")]
    bwlimit: Option<Rate>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TriggerName {
    /// When the tree has been quiet.
    Settle,
    /// On `syncd-origin commit`.
    Manual,
}

/// `-m`: blanks around it, as a line feed that a shell left, are not part of it.
fn label(text: &str) -> Result<String, LabelError> {
    let label = text.trim();
    check_label(label)?;
    Ok(label.to_owned())
}

/// Runs a parsed command line to its end.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let mut runtime = match cli.command {
        Command::Serve(_) => tokio::runtime::Builder::new_multi_thread(),
        // Asks, and waits for an answer.
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = runtime.enable_all().build()?;
    let result = runtime.block_on(dispatch(cli.command));
    // What still blocks a thread was told to stop and has had its time.
    runtime.shutdown_timeout(Duration::from_secs(5));
    result
}

async fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Init { data, host } => init(&data.data, host.as_deref()),
        Command::Serve(serve) => serve_until_signal(*serve).await,
        Command::Token { data, ttl, uses } => {
            ask(&data.data, Request::Token { ttl_s: ttl.as_secs(), uses }, Print::Text).await
        }
        Command::Commit { data, label, wait, allow_mass_deletion, json } => {
            let request = Request::Commit { label, allow_mass_deletion, wait: wait.request() };
            ask(&data.data, request, Print::of(&json)).await
        }
        Command::Status { data, json, watch } => loop {
            // A screen is drawn again; in a pipe or file one status follows the other.
            if watch && !json.json && std::io::stdout().is_terminal() {
                output::line("\x1b[2J\x1b[H")?;
            }
            let code = ask(&data.data, Request::Status, Print::of(&json)).await?;
            if !watch {
                return Ok(code);
            }
            if !json.json && !std::io::stdout().is_terminal() {
                output::line("")?;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        },
        Command::History { data, json } => ask(&data.data, Request::History, Print::of(&json)).await,
        Command::Diff { data, from, to, json } => {
            ask(&data.data, Request::Diff { from, to }, Print::of(&json)).await
        }
        Command::Rollback { data, generation, wait, json } => {
            let request = Request::Rollback { generation, wait: wait.request() };
            ask(&data.data, request, Print::of(&json)).await
        }
        Command::Revoke { data, agent } => ask(&data.data, Request::Revoke { agent }, Print::Text).await,
        Command::Check { data } => ask(&data.data, Request::Check, Print::Text).await,
    }
}

fn init(data: &std::path::Path, host: Option<&str>) -> anyhow::Result<ExitCode> {
    let keys = service::init(data)?;
    let host = host.map_or_else(|| "THIS-HOST".to_owned(), str::to_owned);
    let shown = data.display();
    // The result last: who reads only that may be gone by then.
    note(format_args!(
        "The origin's keys and store are in {shown}. Back these up; whoever has them is this origin:"
    ));
    for file in keys.backup_files() {
        note(format_args!("  {}", file.display()));
    }
    note(format_args!("\nNext, here:\n  syncd-origin serve --tree /srv/site --data {shown}"));
    note(format_args!("  syncd-origin token --data {shown}"));
    note("then on every web node, with that token:");
    note(format_args!("  SYNCD_TOKEN=... syncd-agent join {host}:8873 --root /var/lib/syncd/agent"));
    note("  syncd-agent run --root /var/lib/syncd/agent");
    output::line(format_args!("tree_id {}", keys.tree_id()))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve_until_signal(serve: Serve) -> anyhow::Result<ExitCode> {
    let trigger = match serve.trigger {
        TriggerName::Manual => crate::commit::Trigger::Manual,
        TriggerName::Settle => crate::commit::Trigger::Settle { quiet: serve.settle, max: serve.settle_max },
    };
    let options = ServeOptions {
        tree: serve.tree,
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
        bwlimit: serve.bwlimit,
    };
    // Before anything is opened: from here on a SIGTERM is waited for and ends things in order.
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
#[derive(Clone, Copy, PartialEq, Eq)]
enum Print {
    Text,
    Json,
}

impl Print {
    fn of(json: &Json) -> Self {
        if json.json { Self::Json } else { Self::Text }
    }
}

/// Asks the origin that serves `data`, or `data` itself while none does.
async fn ask(data: &std::path::Path, request: Request, print: Print) -> anyhow::Result<ExitCode> {
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
                let desk = Desk::open(&data)?;
                let mut failed = None;
                let last = desk.answer(request, &mut |line| match printer.take(line) {
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

/// Prints replies as they come; `--json` prints one document, or one line for each generation and path.
struct Printer {
    print: Print,
    quiet_number: bool,
    generation: Option<GenerationLine>,
    nodes: Vec<NodeLine>,
    /// Why the number could not be written.
    unwritten: Option<OutputError>,
}

impl Printer {
    fn new(print: Print, request: &Request) -> Self {
        let quiet_number = !matches!(request, Request::Commit { .. } | Request::Rollback { .. });
        Self { print, quiet_number, generation: None, nodes: Vec::new(), unwritten: None }
    }

    /// Returns the exit code with the last reply.
    fn take(&mut self, reply: Reply) -> anyhow::Result<Option<ExitCode>> {
        let json = self.print == Print::Json;
        match reply {
            Reply::Status(status) if json => output::line(serde_json::to_string(&status)?)?,
            Reply::Status(status) => output::line(Status::to_text(&status).trim_end())?,
            Reply::Generation(line) => {
                if !json && let Err(error) = output::line(line.generation) {
                    // It is sealed whoever reads of it, and waited for all the same.
                    if !error.is_reader_gone() {
                        note(format_args!("generation {}: {}", line.generation, error_chain(&error)));
                    }
                    self.unwritten = Some(error);
                }
                if !line.changed {
                    note(format_args!("nothing changed since generation {}", line.generation));
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
            Reply::Token { token } => output::line(token)
                .context("the token was made, and is lost: it expires by itself, ask for another")?,
            Reply::History(line) if json => output::line(serde_json::to_string(&line)?)?,
            Reply::History(line) => output::line(format_args!(
                "{:>6}  {}  {:>9} files  {:>10}  {:.12}  {}",
                line.generation,
                line.created,
                indicatif::HumanCount(line.files).to_string(),
                indicatif::HumanBytes(line.bytes).to_string(),
                line.root,
                line.label
            ))?,
            Reply::Diff(line) if json => output::line(serde_json::to_string(&line)?)?,
            Reply::Diff(line) => {
                let from = line.from.map(|f| format!("{f} -> ")).unwrap_or_default();
                output::line(format_args!("{:9} {from}{}", line.change, line.path))?;
            }
            Reply::Progress { bytes, total_bytes } => {
                let (bytes, total_bytes) = (indicatif::HumanBytes(bytes), indicatif::HumanBytes(total_bytes));
                note(format_args!("{bytes} of {total_bytes}"));
            }
            Reply::Damage { damage } => output::line(format_args!("damaged: {damage}"))?,
            Reply::Remark { text } => note(text),
            Reply::Done { code } => {
                if json && !self.quiet_number {
                    let mut document = serde_json::to_value(&self.generation)?;
                    document["nodes"] = serde_json::to_value(&self.nodes)?;
                    output::line(document)?;
                }
                return match self.unwritten.take() {
                    Some(error) if code == 0 => Err(error.into()),
                    _ => Ok(Some(ExitCode::from(code))),
                };
            }
            Reply::Error { message } => bail!(message),
        }
        Ok(None)
    }
}
