//! `status` and `history` on a terminal: lines that fit, and their colours.

use indicatif::{HumanBytes, HumanCount};
use syncd_runtime::terminal::{Colour, Terminal};
use syncd_shared::AgentState;

use crate::admin::protocol::HistoryLine;
use crate::admin::status::{AgentStatus, Status};
use crate::commit::State;

/// Column of the values in the lines before those of the agents.
const HEAD_INDENT: usize = 9;
/// Columns from which `history` is the same as in a pipe.
const WIDE: usize = 110;
/// Column of a label of `history` that is below its row.
const LABEL_INDENT: usize = 9;

/// State of a line. The most urgent ones are kept when there is no room for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mood {
    Trouble,
    Busy,
    Well,
}

impl Mood {
    fn of(agent: &AgentStatus, current: Option<u64>) -> Self {
        let is_quiet = agent.error.is_none() && agent.drift.is_none() && agent.notes.is_empty();
        match agent.state {
            _ if !is_quiet || !agent.connected => Self::Trouble,
            AgentState::Failed => Self::Trouble,
            AgentState::Live if agent.generation == current && agent.is_live() => Self::Well,
            _ => Self::Busy,
        }
    }

    pub(super) fn colour(self) -> Colour {
        match self {
            Self::Trouble => Colour::Red,
            Self::Busy => Colour::Yellow,
            Self::Well => Colour::Plain,
        }
    }
}

/// The lines before those of the agents.
pub(super) fn head_lines(status: &Status) -> Vec<(Mood, String)> {
    let of_state = match status.state {
        State::Held | State::Stopped => Mood::Trouble,
        State::Waiting => Mood::Busy,
        State::Ready | State::Scanning | State::Standby => Mood::Well,
    };
    let mood = |line: &str| match line.split_whitespace().next() {
        // The reason of the state has no name.
        Some("origin") => of_state,
        _ if line.starts_with(' ') => of_state,
        Some("warning") => Mood::Trouble,
        Some("hold") => Mood::Busy,
        _ => Mood::Well,
    };
    status.head().lines().map(|line| (mood(line), line.to_owned())).collect()
}

/// The lines of all agents.
pub(super) fn agent_lines(status: &Status) -> Vec<(Mood, String)> {
    let width = status.name_width();
    let lines = |agent| {
        let (mood, mut text) = (Mood::of(agent, status.generation), String::new());
        status.write_agent(agent, width, &mut text);
        text.lines().map(|line| (mood, line.to_owned())).collect::<Vec<_>>()
    };
    status.agents.iter().flat_map(lines).collect()
}

/// The whole status, without a line feed at its end.
pub(super) fn status_text(status: &Status, terminal: Terminal) -> String {
    let fit = |indent: usize| move |(mood, line): (Mood, String)| terminal.fit(&line, indent, mood.colour());
    let head = head_lines(status).into_iter().map(fit(HEAD_INDENT));
    // Names are short, and an indent beyond half of the rows would waste them.
    let indent = status.name_width().saturating_add(4).min(terminal.columns / 2);
    let agents = agent_lines(status).into_iter().map(fit(indent));
    head.chain(agents).collect::<Vec<_>>().join("\n")
}

/// The header of `history`. `terminal`: `None` in a pipe.
pub(super) fn history_header(terminal: Option<Terminal>) -> &'static str {
    match terminal {
        Some(terminal) if terminal.columns < WIDE => {
            "    gen  created                files        size  changes       label"
        }
        _ => {
            "  generation  created                        files        size  changes           root          label"
        }
    }
}

/// A generation below [`history_header`]. `*` marks the published one.
pub(super) fn history_text(line: &HistoryLine, terminal: Option<Terminal>) -> String {
    let mark = if line.current { '*' } else { ' ' };
    let HistoryLine { generation, created, root, label, .. } = line;
    let (files, size) = (HumanCount(line.files).to_string(), HumanBytes(line.bytes).to_string());
    let changes = line.changes.map_or("?".to_owned(), |changes| changes.to_string());
    let Some(terminal) = terminal else {
        return format!(
            "{mark} {generation:>10}  {created:24}  {files:>10}  {size:>10}  {changes:16}  {root:.12}  {label}"
        );
    };
    let colour = if line.current { Colour::Green } else { Colour::Plain };
    let text = if terminal.columns < WIDE {
        let created = minute(created);
        format!("{mark}{generation:>6}  {created:17}  {files:>9}  {size:>10}  {changes:12}  {label}")
    } else {
        history_text(line, None)
    };
    terminal.fit(text.trim_end(), LABEL_INDENT, colour)
}

/// A time in RFC 3339 without its seconds, as in `2026-11-30T12:00Z`.
fn minute(time: &str) -> String {
    time.get(..16).map_or_else(|| time.to_owned(), |minute| format!("{minute}Z"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::protocol::ChangeCounts;
    use crate::admin::status::tests::{agent, status};

    const NARROW: Terminal = Terminal { columns: 80, colour: false };

    fn line(label: &str) -> HistoryLine {
        HistoryLine {
            generation: 1_234,
            current: true,
            created: "2026-11-30T12:34:56.789Z".into(),
            files: 1_234_567,
            bytes: 123 << 20,
            changes: Some(ChangeCounts { added: 6, changed: 12, removed: 100, indistinct: 0 }),
            root: "ab".repeat(32),
            label: label.into(),
        }
    }

    #[test]
    fn a_narrow_history_fits_and_keeps_its_labels() {
        let header = history_header(Some(NARROW));
        let row = history_text(&line("release 7"), Some(NARROW));
        assert_eq!(row, "*  1234  2026-11-30T12:34Z  1,234,567  123.00 MiB  +6 ~12 -100   release 7");
        assert_eq!((header.find("label"), header.find("changes")), (row.find("release"), row.find('+')));
        let long = "a label that says at some length what was released on this day, and why it was";
        let rows = history_text(&line(long), Some(NARROW));
        assert_eq!(rows.lines().map(str::trim).skip(1).collect::<Vec<_>>().join(" "), long);
        assert!(rows.lines().all(|row| row.len() <= 80), "{rows}");
        assert!(!history_text(&line(""), Some(NARROW)).ends_with(' '));
        let coloured = history_text(&line(""), Some(Terminal { colour: true, ..NARROW }));
        assert!(coloured.starts_with("\x1b[32m*"), "{coloured:?}");
    }

    #[test]
    fn a_wide_history_is_that_of_a_pipe() {
        let wide = Some(Terminal { columns: 200, colour: false });
        assert_eq!(history_text(&line("x"), wide), history_text(&line("x"), None));
        assert_eq!(history_header(wide), history_header(None));
    }

    #[test]
    fn a_narrow_status_fits_and_loses_nothing() {
        let failed = AgentStatus {
            state: AgentState::Failed,
            error: Some("the disk is full, free some space below /srv/replica and restart it ".repeat(3)),
            ..agent("web1")
        };
        let status = Status {
            created: Some("2026-11-30T12:34:56.789Z".into()),
            root: Some("ab".repeat(32)),
            label: Some("a release with a label of some length".into()),
            warnings: vec![
                "the authority expires: `syncd-origin key rotate --authority` makes a new one".into(),
            ],
            ..status(vec![failed, agent("web2")])
        };
        let text = status_text(&status, NARROW);
        assert!(text.lines().all(|row| row.len() <= 80), "{text}");
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&text), words(&status.to_text()));
        assert!(text.contains("\n         2026-11-30T12:34:56.789Z   root abababababab\n"), "{text}");
        let coloured = status_text(&status, Terminal { colour: true, ..NARROW });
        assert!(coloured.contains("\x1b[31mwarning") && coloured.contains("\x1b[31m  web1"), "{coloured}");
        assert!(coloured.contains("\n  web2"), "{coloured}");
    }
}
