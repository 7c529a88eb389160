//! The command line, a contract described in the README. Results go to standard output, everything else to
//! standard error.

#![cfg_attr(not(test), expect(clippy::disallowed_methods, reason = "paths of the operator"))]

mod arguments;
mod configuration;
mod orders;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{CommandFactory, FromArgMatches, Parser};
use indicatif::HumanBytes;
use syncd_runtime::local_socket;
use syncd_runtime::output::note;
use syncd_runtime::signals::Signals;
use syncd_runtime::terminal::{Colour, Terminal};
use syncd_runtime::version::version;
use syncd_runtime::{act_as, config_file, manual, output, supervisor, telemetry};
use syncd_shared::identity::{JoinToken, RootFingerprint};
use syncd_shared::text::{counted, error_chain, one_line};

use self::arguments::{Command, Join, Run};
use crate::admin::{self, Order, Reply, Request, nobody_serves};
use crate::adopt::Outward;
use crate::identity::AgentIdentity;
use crate::join::{self, JoinOptions, Joined};
use crate::session::worker::{Display, Drifted, Verified};
use crate::status::{self, AgentStatus, Verdict};
use crate::trust::{Shown, shown};
use crate::{offline, php, service};

/// Configuration file that is read unless another one is named.
const CONFIG: &str = "/etc/syncd/agent.toml";

/// Column of the values of `status`.
const VALUE_INDENT: usize = 15;

/// Longest path that is shown.
const SHOWN_MAX_BYTES: usize = 1_000;

const EXIT_CODES: &str = "Exit codes: 0 success; 1 failure; 2 wrong usage; 141 standard output was closed. `status --check` \
                          has its own.\nSYNCD_LOG=debug logs more. See also: syncd-origin.";

/// Keeps a full, verified, atomically switched replica of an origin's content tree.
#[derive(Debug, Parser)]
#[command(name = "syncd-agent", version = version(), max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
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
        let matches = config_file::typed_first(command.clone(), &given).try_get_matches_from(arguments);
        matches
            .and_then(|mut matches| Self::from_arg_matches_mut(&mut matches))
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
            Command::Drain { place } => orders::order(&place.root, Order::Drain).await,
            Command::Undrain { place } => orders::order(&place.root, Order::Undrain).await,
            Command::Pin { generation, place } => orders::order(&place.root, Order::Pin { generation }).await,
            Command::Unpin { place } => orders::order(&place.root, Order::Unpin).await,
            Command::Accept { generation, place } => {
                orders::order(&place.root, Order::Accept { generation }).await
            }
            Command::Refused { place } => orders::refused(&place.root).await,
            Command::Check { place } => orders::ready(&place.root).await,
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
        group: join.group,
        adopt: join.adopt.clone(),
    };
    let Joined { identity, earlier_name, is_running, adopted } = join::join(options).await?;
    output::line(identity.name())?;
    let next = if is_running { "the running agent uses the new identity" } else { "next:" };
    note(format_args!("joined tree {} as {}; {next}", identity.tree_id(), identity.name()));
    if !is_running {
        note(format_args!("  syncd-agent run --root {}", root.display()));
    }
    if let (Some(adopted), Some(from)) = (adopted, &join.adopt) {
        let files = counted(adopted.files, "file", "files");
        let (bytes, from) = (HumanBytes(adopted.bytes), from.display());
        note(format_args!("{files}, {bytes}, of {from} need not be fetched; {from} stays as it is"));
        note_outward(&adopted.outward);
        let live = root.join("live");
        note(format_args!("once a generation is live: diff -rq --no-dereference {from} {}/", live.display()));
    }
    if let Some(earlier) = earlier_name.filter(|earlier| earlier != identity.name()) {
        let revoke = format_args!("syncd-origin revoke {earlier}");
        note(format_args!("{earlier} stays enrolled until it is revoked, at the origin: {revoke}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Lists links of an adopted directory that lead elsewhere.
fn note_outward(outward: &Outward) {
    if outward.links == 0 {
        return;
    }
    let links = counted(outward.links, "symlink leads", "symlinks lead");
    note(format_args!(
        "{links} out of it. Content behind them is not taken, and comes only with the origin's tree:"
    ));
    for (name, target) in &outward.first {
        let shown = |path: &Path| one_line(&path.to_string_lossy(), SHOWN_MAX_BYTES);
        note(format_args!("  {} -> {}", shown(name), shown(target)));
    }
    let more = outward.links.saturating_sub(outward.first.len() as u64);
    if more > 0 {
        note(format_args!("  and {more} more: find DIR -type l"));
    }
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

async fn run_until_signal(run: Run) -> anyhow::Result<ExitCode> {
    telemetry::set_format(run.log_format);
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
    compare_with_origin(root, fingerprint).await?;
    Ok(ExitCode::SUCCESS)
}

/// Reports whether the root key that was pinned is that of the document that the origin shows.
async fn compare_with_origin(root: &Path, fingerprint: RootFingerprint) -> anyhow::Result<()> {
    let identity = AgentIdentity::load(root)?;
    let running = running_status(root).await?;
    let address = running.map_or_else(|| identity.origin_address().to_owned(), |status| status.origin);
    if address.contains("://") {
        // A published tree, whose documents the follower checks by itself.
        return Ok(());
    }
    match shown(&address, identity.tree_id(), fingerprint).await {
        Ok(Shown::Same(number)) => {
            note(format_args!("trust document {number} of the origin is of this root key"))
        }
        Ok(Shown::Other(number)) => note(format_args!(
            "warning: trust document {number}, which the origin shows, is of another root key. If the new root key has signed \
             there, the fingerprint is wrong: compare it with `syncd-origin key show`, and run `syncd-agent trust` again"
        )),
        Err(error) => note(format_args!(
            "the fingerprint was not compared with the origin's: {}. `syncd-origin key show` prints it",
            error_chain(&error)
        )),
    }
    Ok(())
}

/// Status of the running agent, or of the replica.
async fn current_status(root: &Path) -> anyhow::Result<AgentStatus> {
    match running_status(root).await? {
        Some(status) => Ok(status),
        None => {
            let root = std::path::absolute(root)?;
            Ok(tokio::task::spawn_blocking(move || offline::status(&root)).await??)
        }
    }
}

async fn check_php(root: &Path, check: php::check::Check) -> anyhow::Result<ExitCode> {
    let running = running_status(root).await?;
    let Some((swap, settings)) = running.and_then(|status| Some((status.swap, status.settings?))) else {
        bail!("no agent runs on {}: start it, its options are part of what is checked", root.display())
    };
    php::check::run(check, root, swap, settings).await
}

async fn status(root: &Path, json: bool, check: bool) -> anyhow::Result<ExitCode> {
    let status = current_status(root).await?;
    print_status(&status, json)?;
    Ok(match status.verdict() {
        Verdict::NotServing if check => ExitCode::FAILURE,
        Verdict::NotFollowing if check => ExitCode::from(3),
        _ => ExitCode::SUCCESS,
    })
}

fn print_status(status: &AgentStatus, json: bool) -> anyhow::Result<()> {
    match Terminal::of_output() {
        _ if json => output::line(serde_json::to_string(status)?)?,
        Some(terminal) => output::line(on_terminal(status, terminal))?,
        None => output::line(status)?,
    }
    Ok(())
}

/// The status in lines that fit, with colours.
fn on_terminal(status: &AgentStatus, terminal: Terminal) -> String {
    let first = match status.verdict() {
        Verdict::Well => Colour::Plain,
        Verdict::NotFollowing => Colour::Yellow,
        Verdict::NotServing => Colour::Red,
    };
    let text = status.to_string();
    let colour = |index: usize, line: &str| match line.split_whitespace().next() {
        _ if index == 0 => first,
        Some("error" | "after") => Colour::Red,
        Some("drift" | "refused" | "warning") => Colour::Yellow,
        _ => Colour::Plain,
    };
    let fit = |(index, line)| terminal.fit(line, VALUE_INDENT, colour(index, line));
    text.lines().enumerate().map(fit).collect::<Vec<_>>().join("\n")
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
                    Some(Reply::Status(_) | Reply::Adopted | Reply::Ordered) => {
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
    use crate::config::{self, Owner, RunOptions};
    use crate::state::swap::Swap;

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
    fn keys_of_the_file_are_for_run_and_leave_other_commands_alone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let keys = "check = 'http://127.0.0.1/'\ncheck-text = 'ok'\norigin = 'a:1'\ntrust = 'x'\nroot = '/r'";
        std::fs::write(file.path(), keys).unwrap();
        let parse = |line: &str| parse(&format!("{line} --config {}", file.path().display()));
        for line in ["status", "status --check", "check", "verify", "drain", "join a:1", "refused"] {
            parse(&format!("syncd-agent {line}")).unwrap();
        }
        let Command::Status { check, place, .. } = parse("syncd-agent status").unwrap().command else {
            panic!()
        };
        assert_eq!((check, place.root.to_str()), (false, Some("/r")));
        for wrong in ["json = true", "wait = '5s'"] {
            std::fs::write(file.path(), wrong).unwrap();
            assert!(parse("syncd-agent run").is_err(), "{wrong}");
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
    fn a_status_fits_its_terminal_and_shows_trouble_in_colour() {
        let failing = status::tests::failing();
        let terminal = Terminal { columns: 80, colour: false };
        let text = on_terminal(&failing, terminal);
        assert!(text.lines().all(|row| row.len() <= 80), "{text}");
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&text), words(&failing.to_string()));
        let warned = AgentStatus { warning: Some("chmod 711".into()), ..failing };
        let text = on_terminal(&warned, Terminal { colour: true, ..terminal });
        assert!(text.starts_with("\x1b[33mweb1:") && text.contains("\n\x1b[33m  warning "), "{text:?}");
    }

    #[test]
    fn what_is_not_built_is_wrong_usage() {
        assert_eq!(parse("syncd-agent join").unwrap_err().exit_code(), 2);
        assert_eq!(parse("syncd-agent run --keep 0").unwrap_err().exit_code(), 2);
        let error = parse("syncd-agent run --http 8875").unwrap_err();
        assert_eq!((error.exit_code(), error.to_string().contains("localhost:8873")), (2, true), "{error}");
    }
}
