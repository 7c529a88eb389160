//! `status --watch` on a terminal: one screen, drawn again every second.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use console::{Term, measure_text_width};
use syncd_runtime::local_socket::{self, LocalSocketError};
use syncd_runtime::output;
use syncd_runtime::telemetry::is_colour_wanted;

use super::screen::{Mood, agent_lines, head_lines};
use crate::admin;
use crate::admin::protocol::{Reply, Request};
use crate::admin::status::Status;

const PAUSE: Duration = Duration::from_secs(1);
const CLEAR: &str = "\x1b[2J";
const HOME: &str = "\x1b[H";
const CLEAR_LINE_END: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

/// Room on the terminal.
#[derive(Debug, Clone, Copy)]
struct Room {
    rows: usize,
    columns: usize,
    colour: bool,
}

/// Shows the status until the terminal or the program is closed. An origin that is down is waited for;
/// DATA is not opened, so that it can start again.
pub(super) async fn watch(data: &Path) -> anyhow::Result<ExitCode> {
    let terminal = Term::stdout();
    let mut before = CLEAR;
    loop {
        let (rows, columns) = terminal.size();
        let room = Room { rows: rows.into(), columns: columns.into(), colour: is_colour_wanted() };
        let lines = match status(data).await? {
            Some(status) => screen(&status, room),
            None => vec![cut(&format!("no origin serves {}; waiting", data.display()), room.columns)],
        };
        let lines: Vec<String> = lines.into_iter().map(|line| format!("{line}{CLEAR_LINE_END}")).collect();
        output::line(format_args!("{before}{HOME}{}{CLEAR_BELOW}", lines.join("\n")))?;
        before = "";
        tokio::time::sleep(PAUSE).await;
    }
}

/// `None` while no origin serves `data`.
async fn status(data: &Path) -> anyhow::Result<Option<Box<Status>>> {
    let mut replies =
        match local_socket::request::<_, Reply>(&admin::socket_path(data), &Request::Status).await {
            Err(LocalSocketError::NotServed { .. } | LocalSocketError::Io(_)) => return Ok(None),
            replies => replies.with_context(|| format!("ask the origin that serves {}", data.display()))?,
        };
    match replies.next().await {
        Ok(Some(Reply::Status(status))) => Ok(Some(status)),
        Ok(Some(Reply::Error { message })) => anyhow::bail!(message),
        // The origin is stopping.
        Ok(_) | Err(LocalSocketError::Io(_) | LocalSocketError::Closed) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The lines of one screen. Those of agents that are well go first if there are too many.
fn screen(status: &Status, room: Room) -> Vec<String> {
    let (mut lines, mut agents) = (head_lines(status), agent_lines(status));
    // One row is left for the cursor, and one for the count.
    let free = room.rows.saturating_sub(lines.len().saturating_add(2));
    let hidden = agents.len().saturating_sub(free);
    if hidden > 0 {
        agents.sort_by_key(|(mood, _)| *mood);
        agents.truncate(free);
        agents.push((Mood::Well, format!("  {hidden} more lines: `syncd-origin status`")));
    }
    lines.extend(agents);
    lines.truncate(room.rows.saturating_sub(1).max(1));
    let shown = |(mood, line): (Mood, String)| {
        let line = cut(&line, room.columns);
        if room.colour { mood.colour().paint(&line) } else { line }
    };
    lines.into_iter().map(shown).collect()
}

/// The beginning of a line that fits.
fn cut(line: &str, columns: usize) -> String {
    if measure_text_width(line) <= columns {
        return line.to_owned();
    }
    let mut cut = String::new();
    let mut width = 1usize;
    for c in line.chars() {
        width = width.saturating_add(measure_text_width(c.encode_utf8(&mut [0; 4])));
        if width > columns {
            break;
        }
        cut.push(c);
    }
    cut.push('~');
    cut
}

#[cfg(test)]
mod tests {
    use syncd_shared::AgentState;

    use super::*;
    use crate::admin::status::AgentStatus;
    use crate::admin::status::tests::{agent, status};

    const ROOM: Room = Room { rows: 24, columns: 80, colour: false };

    #[test]
    fn a_screen_fits_and_shows_trouble_first_where_there_is_no_room() {
        let mut agents: Vec<AgentStatus> = (0..100).map(|n| agent(&format!("web{n:03}"))).collect();
        agents[70].error = Some("the disk is full ".repeat(20));
        agents[80].generation = Some(6);
        let lines = screen(&status(agents), ROOM);
        assert_eq!(lines.len(), 23, "{lines:#?}");
        assert!(lines.iter().all(|line| measure_text_width(line) <= 80), "{lines:#?}");
        let first = lines.iter().position(|line| line.contains("web0")).unwrap();
        assert!(lines[first].contains("web070") && lines[first].ends_with('~'), "{lines:#?}");
        assert!(lines[first + 1].contains("web080") && lines[first + 1].contains("1 behind"), "{lines:#?}");
        assert!(lines[22].contains("more lines"), "{lines:#?}");
        assert!(!lines.concat().contains('\x1b'), "no colour was wanted");
        let few = screen(&status(vec![agent("a"), agent("b")]), Room { colour: true, ..ROOM });
        assert!(few[few.len() - 2].contains("  a  ") && few[few.len() - 1].contains("  b  "), "{few:#?}");
    }

    #[test]
    fn trouble_is_red_and_wide_characters_count_twice() {
        let failed = AgentStatus { state: AgentState::Failed, ..agent("a") };
        let lines = screen(&status(vec![failed]), Room { colour: true, ..ROOM });
        assert!(lines.last().unwrap().starts_with("\x1b[31m  a  "), "{lines:#?}");
        assert_eq!(cut("漢字漢字", 5), "漢字~");
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(screen(&status(vec![]), Room { rows: 0, columns: 0, colour: false }).len(), 1);
    }
}
