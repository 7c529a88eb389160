//! The command line, a contract described in the README. Results go to standard output, everything else to
//! standard error.

mod actions;
mod arguments;
mod collected;
mod configuration;
mod help;
mod key;
mod passphrase;
mod printer;
mod reach;
mod screen;
mod serve;
mod summary;
mod watch;

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::CommandFactory as _;
use syncd_runtime::act_as;
use syncd_runtime::bucket::BucketUrl;
use syncd_runtime::local_socket;
use syncd_runtime::manual::{self, Shell};
use syncd_runtime::output::{self, note};

use crate::admin;
use crate::admin::offline::join_address;
use crate::admin::protocol::{NodeRequest, Reply, Request, Wait};
use crate::commit::RollbackShown;
use crate::fleet::live_wait;
use crate::keys::Keys;
use crate::service;

use self::actions::{CommitArgs, NodeArgs, Report, RollbackArgs, TokenAction};
pub use self::arguments::{Cli, HTTP, LISTEN, join_wait};
use self::arguments::{Command, Json};
use self::printer::{Print, Printer, described};
use self::reach::{Reached, reach};
use self::serve::serve_until_signal;
use self::summary::Summary;

/// Runs a parsed command line to its end.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    if let Some(data) = cli.command.data_opened()
        && (matches!(cli.command, Command::Init { .. })
            || !local_socket::is_served(&admin::socket_path(data)))
    {
        act_as::owner_of(data).with_context(|| format!("act as the owner of {}", data.display()))?;
    }
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
        Command::Init { data, host, root_passphrase_file } => {
            init(&data.data, host.as_deref(), root_passphrase_file.as_deref())
        }
        Command::Key { data, action } => key::run(&data.data, action).await,
        Command::Serve(serve) => serve_until_signal(*serve).await,
        Command::Token { data, ttl, uses, action } => {
            let new = || (Request::Token { ttl_s: ttl.as_secs(), uses }, Print::default());
            let (request, print) = action.map_or_else(new, TokenAction::request);
            ask(&data.data, request, print).await
        }
        Command::Backup { data, directory } => back_up(&data.data, &directory).await,
        Command::Commit(commit) => self::commit(commit).await,
        Command::Wait { generation, data, timeout, require_all, report, json } => {
            let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
            let request = Request::Wait { generation, wait: Wait { timeout_ms, require_all } };
            reported(&data.data, request, &report, &json).await
        }
        Command::Status { data, json, watch, check } => {
            status(&data.data, watch, Print { check, ..Print::of(&json) }).await
        }
        Command::History { data, json } => ask(&data.data, Request::History, Print::of(&json)).await,
        Command::Events { data, follow, json } => {
            ask(&data.data, Request::Events { follow }, Print::of(&json)).await
        }
        Command::Audit { data, json } => ask(&data.data, Request::Audit, Print::of(&json)).await,
        Command::Diff { data, from, to, pending, stat, json } => {
            let print = Print { stat, ..Print::of(&json) };
            ask(&data.data, Request::Diff { from, to, pending }, print).await
        }
        Command::Rollback(rollback) => roll_back(rollback).await,
        Command::Rollout { data, action } => {
            let (request, print) = action.request();
            ask(&data.data, request, print).await
        }
        Command::Collected { data, action } => {
            let (request, print) = action.request()?;
            ask(&data.data, request, print).await
        }
        Command::Drain(node) => order(node, NodeRequest::Drain).await,
        Command::Undrain(node) => order(node, NodeRequest::Undrain).await,
        Command::Pin(node) => order(node, NodeRequest::Pin).await,
        Command::Unpin(node) => order(node, NodeRequest::Unpin).await,
        Command::Group { node, group } => order(node, NodeRequest::Group { group }).await,
        Command::Forget(node) => order(node, NodeRequest::Forget).await,
        Command::Revoke { data, agent } => ask(&data.data, Request::Revoke { agent }, Print::default()).await,
        Command::Page { data } => ask(&data.data, Request::Page, Print::default()).await,
        Command::Check { data } => ask(&data.data, Request::Check, Print::default()).await,
        Command::Publish { data, action } => {
            let (request, print) = action.request();
            ask(&data.data, request, print).await
        }
        Command::Promote { data } => ask(&data.data, Request::Promote, Print::default()).await,
        Command::Restore { data, from } => restore(data.data, from).await,
        Command::Config { action } => configuration::run(action),
        Command::Completions { shell } => print_completions(shell),
        Command::Man { directory } => write_manual(&directory),
    }
}

fn print_completions(shell: Shell) -> anyhow::Result<ExitCode> {
    manual::print_completions(Cli::command(), shell)?;
    Ok(ExitCode::SUCCESS)
}

fn write_manual(directory: &Path) -> anyhow::Result<ExitCode> {
    manual::write_pages(Cli::command(), directory).context("write the man pages")?;
    Ok(ExitCode::SUCCESS)
}

async fn back_up(data: &Path, directory: &Path) -> anyhow::Result<ExitCode> {
    let directory = std::path::absolute(directory).context("the directory for the backup")?;
    let code = ask(data, Request::Backup { directory: directory.clone() }, Print::default()).await?;
    check_backup_is_here(&directory)?;
    Ok(code)
}

async fn commit(commit: CommitArgs) -> anyhow::Result<ExitCode> {
    let CommitArgs { data, label, wait, allow_mass_deletion, rescan, rollout, now, .. } = commit;
    if commit.dry_run {
        let request = Request::Diff { from: None, to: None, pending: true };
        return ask(&data.data, request, Print { dry_run: true, ..Print::of(&commit.json) }).await;
    }
    let wait = wait.request();
    let request = Request::Commit { label, allow_mass_deletion, rescan, rollout, now, wait };
    reported(&data.data, request, &commit.report, &commit.json).await
}

async fn roll_back(rollback: RollbackArgs) -> anyhow::Result<ExitCode> {
    let RollbackArgs { data, generation, yes, wait, json } = rollback;
    let shown = match confirmed(&data.data, generation, yes).await? {
        Confirmed::Unasked => None,
        Confirmed::Yes(shown) => Some(shown),
        Confirmed::No => return Ok(ExitCode::FAILURE),
    };
    let generation = shown.as_ref().map(|shown| shown.to).or(generation);
    ask(&data.data, Request::Rollback { generation, shown, wait: wait.request() }, Print::of(&json)).await
}

/// With `watch`, follows the status until a signal stops the command: on a screen of its own on a terminal,
/// otherwise with one status after the other.
async fn status(data: &Path, watch: bool, print: Print) -> anyhow::Result<ExitCode> {
    if watch && !print.json && std::io::stdout().is_terminal() {
        return watch::watch(data).await;
    }
    loop {
        let code = ask(data, Request::Status, print).await?;
        if !watch {
            return Ok(code);
        }
        if !print.json {
            output::line("")?;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Like [`ask`], with what a pipeline wants to know of a commit.
async fn reported(data: &Path, request: Request, report: &Report, json: &Json) -> anyhow::Result<ExitCode> {
    let summary = report.summary.as_deref().map(Summary::open).transpose()?;
    let print = Print { events: report.events, ..Print::of(json) };
    ask_with(data, request, print, summary).await
}

async fn order(node: NodeArgs, order: NodeRequest) -> anyhow::Result<ExitCode> {
    ask(&node.data.data, Request::Node { agent: node.node, order }, Print::default()).await
}

/// Answer to the question before a rollback.
enum Confirmed {
    /// There was no question.
    Unasked,
    /// To what was shown.
    Yes(RollbackShown),
    No,
}

/// Asks on a terminal from which generation to which the rollback goes.
async fn confirmed(data: &Path, generation: Option<u64>, yes: bool) -> anyhow::Result<Confirmed> {
    if yes || !std::io::stdin().is_terminal() {
        return Ok(Confirmed::Unasked);
    }
    for line in answers(data, Request::RollbackTarget { generation }).await? {
        if let Reply::RollbackTarget { from, to, refused_by } = line {
            let refused = refused_note(&refused_by);
            note(format_args!("roll back from {} to {}?{refused} [y/N]", described(&from), described(&to)));
            let mut answer = String::new();
            std::io::stdin().read_line(&mut answer).context("read the answer")?;
            let is_yes = ["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str());
            let shown = RollbackShown { from: from.generation, to: to.generation, refused_by };
            return Ok(if is_yes { Confirmed::Yes(shown) } else { Confirmed::No });
        }
    }
    bail!("the origin did not say what the rollback would do")
}

/// Names the nodes that will not take part in a rollback; empty: all will.
fn refused_note(refused_by: &[String]) -> String {
    let names: Vec<&str> = refused_by.iter().map(String::as_str).collect();
    match names.as_slice() {
        [] => String::new(),
        [name] => {
            format!(" {name} refuses that tree, because its check failed there, and stays where it is.")
        }
        all => format!(
            " {} refuse that tree, because their check failed there, and stay where they are.",
            live_wait::names(all)
        ),
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

fn init(data: &Path, host: Option<&str>, passphrase_file: Option<&Path>) -> anyhow::Result<ExitCode> {
    if let Some(host) = host
        && service::is_complete(data)
    {
        // The file is replaced as a whole, and a serving origin reads it for each token.
        Keys::set_host_of(data, host)?;
        note(format_args!(
            "{} is initialised already. Its join commands name {host} from now on",
            data.display()
        ));
        return Ok(ExitCode::SUCCESS);
    }
    let keys = service::init_sealed(data, || passphrase::for_new_key(passphrase_file))?;
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
    if let Some(path) = keys.root_key_here() {
        note(format_args!(
            "\nThe root key is in {}. Move it off this machine, to a safe place. It alone can replace the other keys,\n\
             and nothing else needs it.",
            path.display()
        ));
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

async fn restore(data: PathBuf, from: BucketUrl) -> anyhow::Result<ExitCode> {
    let shown = data.display().to_string();
    let restored = tokio::task::spawn_blocking(move || service::restore(&data, from.open()?));
    let (generation, promotion) = restored.await.context("the restore was interrupted")??;
    note(format_args!(
        "{shown} has generation {generation} now, and numbers its own from {} on, with epoch {}. Next:\n  \
         syncd-origin serve --tree DIR --data {shown}   with the options that the origin had\n\
         Nodes get the restored generation at once. Nothing is published until `syncd-origin commit`: compare the tree\n\
         first (`syncd-origin diff --pending`).",
        promotion.number, promotion.epoch
    ));
    output::line(generation)?;
    Ok(ExitCode::SUCCESS)
}

/// Like [`ask`], and returns the lines of the answer.
async fn answers(data: &Path, request: Request) -> anyhow::Result<Vec<Reply>> {
    let mut lines = Vec::new();
    match reach(data, &request).await? {
        Reached::Served { first, mut replies } => {
            let mut next = first.map(|reply| *reply);
            while let Some(reply) = next {
                match reply {
                    Reply::Done { .. } => return Ok(lines),
                    Reply::Error { message } => bail!(message),
                    line => lines.push(line),
                }
                next = replies.next().await?;
            }
            bail!("the origin stopped before it had answered")
        }
        Reached::Opened(directory) => {
            let last = directory.answer_recorded(request, &mut |line| {
                lines.push(line);
                true
            });
            match last {
                Reply::Error { message } => bail!(message),
                _ => Ok(lines),
            }
        }
    }
}

/// Sends the request to the origin that serves `data`, or answers it from `data` if none does.
async fn ask(data: &Path, request: Request, print: Print) -> anyhow::Result<ExitCode> {
    ask_with(data, request, print, None).await
}

async fn ask_with(
    data: &Path,
    request: Request,
    print: Print,
    summary: Option<Summary>,
) -> anyhow::Result<ExitCode> {
    let mut printer = Printer::new(print, &request);
    printer.summary = summary;
    match reach(data, &request).await? {
        Reached::Served { first, mut replies } => {
            let mut next = first.map(|reply| *reply);
            while let Some(reply) = next {
                if let Some(code) = printer.take(reply)? {
                    return Ok(code);
                }
                next = replies.next().await?;
            }
            bail!("the origin stopped before it had answered")
        }
        Reached::Opened(directory) => {
            tokio::task::spawn_blocking(move || {
                let mut failed = None;
                let last = directory.answer_recorded(request, &mut |line| match printer.take(line) {
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
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use clap::{CommandFactory, Parser};

    use super::printer::DiffStat;
    use super::*;
    use crate::admin::protocol::DiffLine;

    #[test]
    fn the_definition_holds_and_every_command_has_examples() {
        Cli::command().debug_assert();
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains(&format!("syncd-origin {}", command.get_name())), "{}", command.get_name());
        }
    }

    #[test]
    fn keys_of_the_file_are_for_serve_and_leave_other_commands_alone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let parse = |keys: &str, line: &str| {
            std::fs::write(file.path(), keys).unwrap();
            let line = format!("syncd-origin {line} --config {}", file.path().display());
            Cli::from_arguments(line.split(' ').map(OsString::from).collect())
                .is_ok_and(|parsed| parsed.is_ok())
        };
        assert!(parse("tree = '/t'\n[collect.uploads]\npath = 'uploads'", "serve"), "a table of tables");
        let policy = "[rollout]\ndefault = 'careful'\n[rollout.careful]\nsteps = []\n";
        for line in ["commit --now", "commit --dry-run", "commit --rollout each", "commit", "status --check"]
        {
            assert!(parse(policy, line), "{line}");
        }
        let words = ["syncd-origin", "commit", "--wait", "5", "--config", "/dev/null"].map(OsString::from);
        let error = Cli::from_arguments(words.to_vec()).unwrap().unwrap_err().to_string();
        assert!(error.contains("--wait=5s"), "{error}");
        assert!(!parse("check = true", "status"), "an unknown key");
        assert!(!parse("check = true", "serve --tree /t"), "an unknown key");
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
            ("syncd-origin init --host origin.example.org:8873", "without a port"),
            ("syncd-origin init --host https://origin.example.org", "without a port"),
            ("syncd-origin init --host [::1]", "without a port"),
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
