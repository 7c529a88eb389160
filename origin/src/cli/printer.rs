//! Prints the daemon's replies, as text or as JSON.

use std::fmt;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;
use syncd_runtime::output::{self, OutputError, note};
use syncd_runtime::terminal::Terminal;
use syncd_shared::text::{counted, error_chain};

use super::arguments::Json;
use super::summary::Summary;
use super::{key, screen};
use crate::admin::protocol::{
    DiffLine, GenerationLine, HistoryLine, NodeLine, PageLine, Reply, Request, TokenLine,
};
use crate::admin::status::{Status, Verdict};
use crate::fleet::live_wait::{NodeResult, seconds};

/// How results are printed.
#[derive(Clone, Copy, Default)]
pub(super) struct Print {
    /// `--json`.
    pub(super) json: bool,
    /// `--stat`: prints only the sums of a list.
    pub(super) stat: bool,
    /// `--check`: sets the exit code from the state.
    pub(super) check: bool,
    /// `--events`: prints each event as a line of JSON.
    pub(super) events: bool,
    /// `--dry-run`: a commit that would be refused sets the exit code.
    pub(super) dry_run: bool,
}

impl Print {
    pub(super) fn of(json: &Json) -> Self {
        Self { json: json.json, ..Self::default() }
    }
}

/// Output of `commit --json` and `rollback --json`.
#[derive(Serialize)]
struct Published<'a> {
    #[serde(flatten)]
    generation: Option<&'a GenerationLine>,
    nodes: &'a [NodeLine],
}

/// One line of `--events`.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Event<'a> {
    Generation(&'a GenerationLine),
    Node(&'a NodeLine),
    Waiting { text: &'a str },
    Remark { text: &'a str },
    Done { code: u8 },
    Error { message: &'a str },
}

/// Output of `diff --stat`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct DiffStat {
    pub(super) added: u64,
    pub(super) removed: u64,
    pub(super) modified: u64,
    pub(super) metadata: u64,
    pub(super) renamed: u64,
    /// Bytes of added and modified files.
    pub(super) bytes: u64,
}

impl DiffStat {
    pub(super) fn count(&mut self, line: &DiffLine) {
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

/// Names a generation for a question.
pub(super) fn described(line: &GenerationLine) -> String {
    let label = Some(&line.label).filter(|label| !label.is_empty());
    let label = label.map(|label| format!(" ({label})")).unwrap_or_default();
    format!("generation {}{label} of {}", line.generation, line.created)
}

/// Prints replies as they arrive. `--json` prints one document, or one line for each generation or path.
pub(super) struct Printer {
    pub(super) print: Print,
    /// Whether the request publishes a generation.
    pub(super) publishes: bool,
    /// Whether the request lists differences.
    pub(super) compares: bool,
    /// `-m`.
    pub(super) label: Option<String>,
    pub(super) generation: Option<GenerationLine>,
    pub(super) nodes: Vec<NodeLine>,
    pub(super) stat: DiffStat,
    /// Lines of the list so far.
    pub(super) lines: u64,
    pub(super) verdict: Option<Verdict>,
    /// Error of writing the generation's number.
    pub(super) unwritten: Option<OutputError>,
    /// `--summary`.
    pub(super) summary: Option<Summary>,
    pub(super) remarks: Vec<String>,
    /// Reason why a commit would be refused.
    refused: bool,
    /// Whether the line of the terminal is one that the next one replaces.
    is_line_open: bool,
    /// The terminal of standard output, if it is one.
    terminal: Option<Terminal>,
}

impl Printer {
    pub(super) fn new(print: Print, request: &Request) -> Self {
        let label = match request {
            Request::Commit { label, .. } => Some(label.clone()).filter(|label| !label.is_empty()),
            _ => None,
        };
        Self {
            print,
            publishes: matches!(
                request,
                Request::Commit { .. } | Request::Rollback { .. } | Request::Wait { .. }
            ),
            compares: matches!(request, Request::Diff { .. }),
            label,
            generation: None,
            nodes: Vec::new(),
            stat: DiffStat::default(),
            lines: 0,
            verdict: None,
            unwritten: None,
            summary: None,
            remarks: Vec::new(),
            refused: false,
            is_line_open: false,
            terminal: Terminal::of_output(),
        }
    }

    /// Prints a line of `--events`. Without it, does nothing.
    fn event(&self, event: &Event<'_>) -> anyhow::Result<()> {
        if self.print.events {
            output::line(serde_json::to_string(event)?)?;
        }
        Ok(())
    }

    /// Prints a line for a person, in place of one that was to be replaced.
    fn note(&mut self, text: impl fmt::Display) {
        if std::mem::take(&mut self.is_line_open) {
            eprint!("\r\x1b[K");
        }
        note(text);
    }

    /// Shows what is waited for: on a terminal in one line that changes.
    fn waiting(&mut self, text: &str) -> anyhow::Result<()> {
        self.event(&Event::Waiting { text })?;
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K{text}");
            self.is_line_open = true;
        } else {
            note(text);
        }
        Ok(())
    }

    /// Prints a line, after a header on the first call. `*` marks the published generation.
    pub(super) fn history(&mut self, line: &HistoryLine) -> Result<(), OutputError> {
        if self.lines == 0 {
            output::line(screen::history_header(self.terminal))?;
        }
        self.lines += 1;
        output::line(screen::history_text(line, self.terminal))
    }

    /// Prints the number of a generation, alone, and remarks on standard error.
    fn generation(&mut self, line: GenerationLine) {
        if !self.print.json
            && !self.print.events
            && let Err(error) = output::line(line.generation)
        {
            // The generation is sealed even if nobody reads its number, and is still waited for.
            if !error.is_reader_gone() {
                note(format_args!("generation {}: {}", line.generation, error_chain(&error)));
            }
            self.unwritten = Some(error);
        }
        if !line.changed {
            let unused = self.label.as_ref().map(|label| format!(": the label \"{label}\" was not used"));
            let unused = unused.unwrap_or_default();
            note(format_args!("nothing changed since generation {}{unused}", line.generation));
        }
        self.generation = Some(line);
    }

    fn node(&mut self, node: NodeLine) {
        let result = match node.result {
            NodeResult::Late | NodeResult::Replaced => String::new(),
            result => format!(" {result}"),
        };
        let error = node.error.as_ref().map(|e| format!(": {e}"));
        let after = || {
            let is_live = node.result == NodeResult::Live;
            is_live.then(|| format!(" after {}", seconds(Duration::from_millis(node.after_ms))))
        };
        self.note(format_args!("{}{result}{}", node.name, error.or_else(after).unwrap_or_default()));
        self.nodes.push(node);
    }

    fn difference(&mut self, line: &DiffLine) -> anyhow::Result<()> {
        let Print { json, stat, .. } = self.print;
        self.stat.count(line);
        if json && !stat {
            output::line(serde_json::to_string(line)?)?;
        } else if !stat {
            let slash = if line.kind == "directory" { "/" } else { "" };
            let from = line.from.as_ref().map(|from| format!("{from}{slash} -> ")).unwrap_or_default();
            let second = if line.indistinct { "  (same second as before)" } else { "" };
            output::line(format_args!("{:9} {from}{}{slash}{second}", line.change, line.path))?;
        }
        Ok(())
    }

    /// Prints the rest of the output after the last reply, and returns the exit code.
    fn end(&mut self, code: u8) -> anyhow::Result<ExitCode> {
        let Print { json, stat, check, dry_run, .. } = self.print;
        let code = if dry_run && self.refused { 1 } else { code };
        self.event(&Event::Done { code })?;
        if let Some(summary) = self.summary.take() {
            summary.write(self.generation.as_ref(), &self.nodes, &self.remarks, code)?;
        }
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
    pub(super) fn take(&mut self, reply: Reply) -> anyhow::Result<Option<ExitCode>> {
        match reply {
            Reply::Generation(line) => {
                self.event(&Event::Generation(&line))?;
                self.generation(line);
            }
            Reply::Node(node) => {
                self.event(&Event::Node(&node))?;
                self.node(node);
            }
            Reply::Waiting { text } => self.waiting(&text)?,
            Reply::WouldHold { reason } => {
                self.refused = true;
                note(format_args!("not published: {reason}"));
            }
            Reply::Status(status) => {
                self.verdict = Some(status.verdict());
                self.answer(Reply::Status(status))?;
            }
            Reply::History(line) if !self.print.json => self.history(&line)?,
            Reply::Diff(line) => self.difference(&line)?,
            Reply::Remark { text } => {
                self.event(&Event::Remark { text: &text })?;
                self.note(&text);
                self.remarks.push(text);
            }
            Reply::Done { code } => {
                if std::mem::take(&mut self.is_line_open) {
                    eprint!("\r\x1b[K");
                }
                return Ok(Some(self.end(code)?));
            }
            Reply::Error { message } => {
                self.event(&Event::Error { message: &message })?;
                if let Some(summary) = self.summary.take() {
                    summary.write(None, &[], std::slice::from_ref(&message), 1)?;
                }
                bail!(message)
            }
            reply => self.answer(reply)?,
        }
        Ok(None)
    }

    /// Prints a reply that changes nothing here.
    fn answer(&self, reply: Reply) -> anyhow::Result<()> {
        if self.print.json
            && let Some(line) = json(&reply)?
        {
            return Ok(output::line(line)?);
        }
        match reply {
            Reply::Status(status) => match self.terminal {
                Some(terminal) => output::line(screen::status_text(&status, terminal))?,
                None => output::line(Status::to_text(&status).trim_end())?,
            },
            Reply::Token { token, about, address } => issued(&token, &about, &address)?,
            Reply::Publish(publish) => output::line(publish.to_text())?,
            Reply::Collected(line) => output::line(line.to_text())?,
            Reply::Conflict(line) => output::line(line.to_text())?,
            Reply::Version(line) => output::line(line.to_text())?,
            Reply::Rollout { rollout: None } => note("nothing was rolled out in steps or together"),
            Reply::Rollout { rollout: Some(rollout) } => output::line(rollout.to_text().trim_end())?,
            Reply::RollbackTarget { from, to, .. } => {
                note(format_args!("from {} to {}", described(&from), described(&to)));
            }
            Reply::Keys(keys) => output::line(key::shown(&keys))?,
            Reply::Page(page) => page_link(page)?,
            Reply::Document { text } => output::line(text.trim_end())?,
            Reply::TokenListed(token) => output::line(format_args!(
                "{}  expires {}  uses left {}",
                token.id, token.expires, token.uses_left
            ))?,
            Reply::Event(line) => output::line(format_args!("{}  {}", line.at, line.what))?,
            Reply::Deed(line) => output::line(format_args!("{}  {}", line.at, line.what))?,
            Reply::Progress { bytes, total_bytes } => {
                note(format_args!("{} of {}", HumanBytes(bytes), HumanBytes(total_bytes)));
            }
            Reply::Damage { damage } => output::line(format_args!("damaged: {damage}"))?,
            // Taken before.
            Reply::Generation(_)
            | Reply::Node(_)
            | Reply::Waiting { .. }
            | Reply::WouldHold { .. }
            | Reply::History(_)
            | Reply::Diff(_)
            | Reply::Remark { .. }
            | Reply::Done { .. }
            | Reply::Error { .. } => {}
        }
        Ok(())
    }
}

/// The line of `--json`; `None` for a reply that has only text.
fn json(reply: &Reply) -> Result<Option<String>, serde_json::Error> {
    let line = match reply {
        Reply::Status(status) => serde_json::to_string(status)?,
        Reply::Publish(publish) => serde_json::to_string(publish)?,
        Reply::Collected(line) => serde_json::to_string(line)?,
        Reply::Conflict(line) => serde_json::to_string(line)?,
        Reply::Version(line) => serde_json::to_string(line)?,
        Reply::Rollout { rollout } => serde_json::to_string(rollout)?,
        Reply::Keys(keys) => serde_json::to_string(keys)?,
        Reply::TokenListed(token) => serde_json::to_string(token)?,
        Reply::History(line) => serde_json::to_string(line)?,
        Reply::Event(line) => serde_json::to_string(line)?,
        Reply::Deed(line) => serde_json::to_string(line)?,
        _ => return Ok(None),
    };
    Ok(Some(line))
}

/// Prints a new token, and on standard error how it is used.
fn issued(token: &str, about: &TokenLine, address: &str) -> anyhow::Result<()> {
    let TokenLine { id, expires, uses_left, .. } = about;
    let agents = counted((*uses_left).into(), "agent", "agents");
    note(format_args!("token {id}, for {agents} until {expires}; on the web node:"));
    note(format_args!("  SYNCD_TOKEN={token} syncd-agent join {address} --root /var/lib/syncd/agent"));
    output::line(token).context("the token was made but not printed: it expires on its own; make another one")
}

fn page_link(PageLine { link, sha256, expires }: PageLine) -> Result<(), OutputError> {
    if let (Some(sha256), Some(expires)) = (sha256, expires) {
        note(format_args!("good once, until {expires}. The browser warns of the certificate: compare"));
        note(format_args!("  SHA-256 {sha256}"));
    }
    output::line(link)
}
