//! Collected directories: a table on the fleet's page, and a board for each with its conflicts.
//!
//! Names of files come from visitors. They are escaped as for a terminal, and cut.

use maud::{Markup, html};
use syncd_shared::collected::CollectedName;
use syncd_shared::text::{counted, one_line};

use super::board::{Board, Fragment, View};
use super::command::{Commands, command};
use super::text::{bytes, count, time};
use crate::admin::collected_requests::{CollectedLine, ConflictLine};
use crate::admin::status::Status;
use crate::collected::Collection;
use crate::error_chain;

/// Conflicts that a board lists.
pub const CONFLICTS_MAX: usize = 100;
/// Bytes of a path that are shown.
const PATH_SHOWN_BYTES: usize = 250;

/// The table of the fleet's page; empty if no directory is collected.
pub fn collected(lines: &[CollectedLine], commands: &Commands) -> Markup {
    html! {
        section #collected aria-labelledby=[(!lines.is_empty()).then_some("collected-title")] {
            @if !lines.is_empty() {
                h2 #collected-title { "Collected directories" }
                table.collected {
                    thead { tr {
                        th scope="col" { "Directory" } th scope="col" { "Files" } th scope="col" { "Content" }
                        th scope="col" { "Refused" } th scope="col" { "Conflicts" }
                    } }
                    tbody { @for line in lines { (row(line)) } }
                }
                p { (command(&commands.origin(&["collected", "list"]))) }
            }
        }
    }
}

fn row(line: &CollectedLine) -> Markup {
    html! {
        tr {
            th scope="row" {
                a href={ "/collected/" (line.name) } { (line.name) }
                " " small { (place(line)) }
                @if let Some(reason) = &line.withheld { p.error { (reason) } }
            }
            td.number { (count(line.files)) }
            td { (content(line)) }
            td.number data-s=[(line.refused > 0).then_some("failed")] { (count(line.refused)) }
            td.number data-s=[(line.conflicts > 0).then_some("behind")] { (count(line.conflicts)) }
        }
    }
}

fn place(line: &CollectedLine) -> &str {
    line.path.as_deref().unwrap_or("not configured")
}

/// Bytes, and how much of the limit they are.
fn content(line: &CollectedLine) -> Markup {
    html! {
        (bytes(line.bytes))
        @if let Some(most) = line.max_bytes { " " small { "of " (bytes(most)) } }
    }
}

/// The newest conflicts of a directory; `None` if there is no such directory. Blocks for reads of the index.
pub fn conflicts(collection: &Collection, name: &str) -> Option<Vec<ConflictLine>> {
    let name = name.parse::<CollectedName>().ok()?;
    let losers = collection.newest_losers(&name, CONFLICTS_MAX).unwrap_or_else(|error| {
        tracing::error!(error = error_chain(&error), "the conflicts of a collected directory can't be read");
        Vec::new()
    });
    Some(losers.iter().map(|loser| ConflictLine::new(&name, loser)).collect())
}

/// The board of `/collected/NAME`; `None` if there is no such directory.
pub fn board(status: &Status, commands: &Commands, name: &str, conflicts: &[ConflictLine]) -> Option<Board> {
    let line = status.collected.iter().find(|line| line.name == name)?;
    let fragments = vec![
        Fragment::new("directory", about(line, commands)),
        Fragment::new("conflicts", table(line, conflicts, commands)),
    ];
    Some(Board::new(View::Collected(name.to_owned()), name.to_owned(), status, fragments))
}

fn about(line: &CollectedLine, commands: &Commands) -> Markup {
    let conflicts = counted(line.conflicts, "conflict", "conflicts");
    let spoken = format!("{}: {conflicts}, {} refused", line.name, count(line.refused));
    html! {
        section.card #directory aria-labelledby="directory-title" data-say=(spoken) {
            div.headline {
                h1 #directory-title { (line.name) }
                p.label { (place(line)) }
            }
            @if let Some(reason) = &line.withheld { p.error { (reason) } }
            dl.facts {
                div { dt { "Files" } dd { (count(line.files)) } }
                div { dt { "Content" } dd { (content(line)) } }
                div { dt { "Refused" } dd { (counted(line.refused, "file", "files")) } }
                div { dt { "Conflicts" } dd { (count(line.conflicts)) } }
            }
            @if line.refused > 0 {
                dl.orders {
                    dt { "On the origin: list the refused files, with the reason" }
                    dd { (command(&commands.origin(&["events"]))) }
                }
            }
        }
    }
}

/// The conflicts, newest first. `conflicts` may be older or newer than `line`.
fn table(line: &CollectedLine, conflicts: &[ConflictLine], commands: &Commands) -> Markup {
    let more = line.conflicts.saturating_sub(conflicts.len() as u64);
    html! {
        section #conflicts aria-labelledby="conflicts-title" {
            h2 #conflicts-title { "Conflicts" }
            @if conflicts.is_empty() { p.after { "No content lost a conflict." } } @else {
                p.after { "Two nodes changed one file. The change that came first is live; these contents came second." }
                table.conflicts {
                    thead { tr {
                        th scope="col" { "Path" } th scope="col" { "Lost" } th scope="col" { "Size" }
                        th scope="col" { "Make this content current" }
                    } }
                    tbody { @for conflict in conflicts { (conflict_row(conflict, commands)) } }
                }
                p.after {
                    "To settle conflicts as they stand, give their numbers: "
                    code { (commands.origin(&["collected", "dismiss", &line.name, "N"])) }
                }
            }
            @if more > 0 {
                p.after { "The newest " (conflicts.len()) ". " (count(more)) " more are not shown." }
            }
            p { (command(&commands.origin(&["collected", "conflicts", &line.name]))) }
        }
    }
}

fn conflict_row(conflict: &ConflictLine, commands: &Commands) -> Markup {
    let ConflictLine { conflict: number, name, path, node, bytes: size, at, .. } = conflict;
    let restore = ["collected", "restore", name, "--conflict", &number.to_string()];
    html! {
        tr {
            th scope="row" { (one_line(path, PATH_SHOWN_BYTES)) }
            td { (node) " " small { (time(at)) } }
            td.number { (bytes(*size)) }
            td { (command(&commands.origin(&restore))) }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::admin::status::tests::status;
    use crate::page::document::document;

    const HOSTILE: &str = "\"><script>alert(1)</script><img src=x onerror=alert(1)>";

    fn line(conflicts: u64) -> CollectedLine {
        CollectedLine {
            name: "uploads".into(),
            path: Some("wp-content/uploads".into()),
            files: 12_345,
            bytes: 3 << 30,
            max_bytes: Some(20 << 30),
            conflicts,
            refused: 2,
            withheld: Some(HOSTILE.into()),
        }
    }

    fn conflict(number: u64, path: &str) -> ConflictLine {
        ConflictLine {
            conflict: number,
            name: "uploads".into(),
            path: path.into(),
            node: "web2".into(),
            bytes: 2_048,
            at: "2026-11-30T07:14:20Z".into(),
            content: "ab".repeat(32),
        }
    }

    fn shown(all: u64, conflicts: &[ConflictLine]) -> String {
        let mut status = status(Vec::new());
        status.collected = vec![line(all)];
        let commands = Commands::new(Path::new("/srv/data"));
        let board = board(&status, &commands, "uploads", conflicts).expect("a board");
        assert!(super::board(&status, &commands, "other", conflicts).is_none());
        document(&board).into_string()
    }

    #[test]
    fn a_conflict_stands_beside_the_command_that_settles_it() {
        let html = shown(1, &[conflict(7, "2026/11/image.jpg")]);
        for text in ["2026/11/image.jpg", "web2", "2.00 KiB", "12,345", "3.00 GiB", "20.00 GiB", "2 files"] {
            assert!(html.contains(text), "{text}: {html}");
        }
        let restore = "syncd-origin collected restore uploads --conflict 7 --data /srv/data";
        assert!(html.contains(&format!("data-copy=\"{restore}\"")), "{html}");
        assert!(html.contains("syncd-origin collected conflicts uploads --data /srv/data"), "{html}");
        assert!(html.contains("syncd-origin collected dismiss uploads N --data /srv/data"), "{html}");
        assert!(!html.contains("are not shown"), "{html}");
        assert!(shown(0, &[]).contains("No content lost a conflict."));
    }

    #[test]
    fn a_hundred_conflicts_with_hostile_names_fit_the_page() {
        let path = HOSTILE.repeat(50);
        let conflicts: Vec<ConflictLine> = (1..=100).map(|number| conflict(number, &path)).collect();
        let html = shown(12_103, &conflicts);
        assert!(html.contains("The newest 100. 12,003 more are not shown."), "{html}");
        assert!(html.contains("&lt;script&gt;alert(1)"), "{html}");
        assert!(!html.contains("<script>") && !html.contains("<img"), "{html}");
        assert!(html.len() < 250_000, "{} bytes", html.len());
    }

    #[test]
    fn the_fleet_shows_directories_where_there_are_any() {
        let commands = Commands::new(Path::new("/var/lib/syncd/origin"));
        let html = collected(&[line(3)], &commands).into_string();
        assert!(html.contains("href=\"/collected/uploads\"") && !html.contains("<img"), "{html}");
        let empty = collected(&[], &commands).into_string();
        assert!(!empty.contains("table") && empty.contains("id=\"collected\""), "{empty}");
    }
}
