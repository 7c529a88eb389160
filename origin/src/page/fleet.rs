//! The fleet at a glance.

use maud::{Markup, html};

use super::board::{Board, Fragment, View};
use super::collected::collected;
use super::command::{Commands, command};
use super::node;
use super::rollout::rollout;
use super::standing::{Standing, Stood, nodes};
use super::text::{bytes, count, counted, time};
use crate::admin::status::Status;
use crate::commit::State;

/// Maximum number of nodes in one table. A larger fleet shows those that need attention, and pages.
pub const ROWS_MAX: usize = 200;
/// Maximum number of nodes on the map.
const TILES_MAX: usize = 4_000;

/// The board of `/`.
pub fn board(status: &Status, commands: &Commands, charts: Markup) -> Board {
    let nodes = nodes(status);
    let mut fragments = vec![
        Fragment::new("now", now(status, &nodes)),
        Fragment::new("notices", notices(status, commands)),
        Fragment::new("rollout", rollout(status.rollout.as_ref(), commands)),
        Fragment::new("map", map(&nodes)),
        Fragment::new("charts", charts),
        Fragment::new("collected", collected(&status.collected, commands)),
    ];
    fragments.extend(table(status, &nodes));
    let title = status.generation.map_or("syncd".to_owned(), |number| format!("Generation {number}"));
    Board::new(View::Fleet, title, status, fragments)
}

/// The board of `/nodes/NUMBER`; `None` beyond the last.
pub fn nodes_board(status: &Status, number: usize) -> Option<Board> {
    let nodes = nodes(status);
    let rows: Vec<&Stood<'_>> =
        nodes.iter().skip(number.checked_sub(1)?.saturating_mul(ROWS_MAX)).take(ROWS_MAX).collect();
    if rows.is_empty() {
        return None;
    }
    let heading = html! { "Nodes " (rows[0].agent.name) " to " (rows[rows.len() - 1].agent.name) };
    let mut fragments = node::table("nodes", &heading, status, &rows);
    fragments.push(Fragment::new("pages", pages(nodes.len(), Some(number))));
    Some(Board::new(View::Nodes(number), format!("Nodes {number}"), status, fragments))
}

fn count_of(nodes: &[Stood<'_>], standing: Standing) -> usize {
    nodes.iter().filter(|node| node.standing == standing).count()
}

/// The generation, and how much of the fleet has it.
fn now(status: &Status, nodes: &[Stood<'_>]) -> Markup {
    let live = count_of(nodes, Standing::Live);
    let state = state_word(status.state);
    let spoken = match status.generation {
        Some(number) => {
            format!("Generation {number}, live on {live} of {}", counted(nodes.len(), "node", "nodes"))
        }
        None => "No generation yet".to_owned(),
    };
    html! {
        section.card #now aria-labelledby="now-title" data-say=(spoken) {
            div.headline {
                h1 #now-title {
                    @match status.generation {
                        Some(number) => { span { "Generation " } (number) },
                        None => "No generation yet",
                    }
                }
                @if let Some(label) = status.label.as_deref().filter(|label| !label.is_empty()) {
                    p.label { (label) }
                }
                span.pill data-state=(state) { (state) }
            }
            p.reach {
                @if nodes.is_empty() { "No node has joined." } @else {
                    b { (count(live as u64)) } " of " (counted(nodes.len(), "node", "nodes")) " live"
                }
            }
            (bar(nodes))
            ul.legend {
                @for standing in Standing::ALL {
                    @let number = count_of(nodes, standing);
                    @if number > 0 {
                        li data-s=(standing.word()) { (standing.sign()) " " (count(number as u64)) " " (standing.word()) }
                    }
                }
            }
            (facts(status))
        }
    }
}

/// A bar of the standings in proportion. The legend below says the same in words.
fn bar(nodes: &[Stood<'_>]) -> Markup {
    let mut x = 0.0;
    let parts = Standing::ALL.map(|standing| {
        let width = count_of(nodes, standing) as f64 * 100.0 / nodes.len().max(1) as f64;
        let part = (standing, x, width);
        x += width;
        part
    });
    html! {
        svg.bar viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true" {
            @for (standing, x, width) in parts {
                @if width > 0.0 {
                    rect data-s=(standing.word()) x=(format!("{x:.3}")) width=(format!("{width:.3}")) height="1" {}
                }
            }
        }
    }
}

fn facts(status: &Status) -> Markup {
    html! {
        dl.facts {
            @if let (Some(created), Some(root)) = (&status.created, &status.root) {
                div { dt { "Sealed" } dd { (time(created)) } }
                div { dt { "Files" } dd { (count(status.files)) } }
                div { dt { "Content" } dd { (bytes(status.bytes)) } }
                div { dt { "Root" } dd { code title=(root) { (root.get(..12).unwrap_or(root)) } } }
            }
            @if let Some(history) = status.history_bytes {
                div { dt { "History" } dd { (bytes(history)) } }
            }
            @if let Some(publish) = &status.publish {
                div {
                    dt { "Published" }
                    dd {
                        @match publish.released {
                            Some(number) => { "generation " (number) },
                            None => "nothing yet",
                        }
                        " in " (publish.url)
                    }
                }
            }
        }
    }
}

pub fn state_word(state: State) -> &'static str {
    match state {
        State::Ready => "ready",
        State::Scanning => "scanning",
        State::Held => "held",
        State::Waiting => "waiting",
        State::Stopped => "stopped",
        State::Standby => "standby",
    }
}

/// Everything at the origin that a person should know, with the command that acts on it.
fn notices(status: &Status, commands: &Commands) -> Markup {
    let hold = status.hold.as_ref();
    let reason = status.reason.as_ref().filter(|reason| hold.is_none_or(|hold| hold.reason != **reason));
    html! {
        section #notices aria-label="Notices" {
            @if let Some(hold) = hold {
                (notice("Held", html! {
                    (hold.reason) " Since " (time(&hold.since)) "."
                }, &[commands.origin(&["diff", "--pending"]), commands.origin(&["commit"])]))
            }
            @if let Some(reason) = reason {
                (notice(if status.state == State::Waiting { "Waiting" } else { "Not publishing" },
                    html! { (reason) }, &[commands.origin(&["status"])]))
            }
            @if let Some(error) = status.publish.as_ref().and_then(|publish| publish.error.as_ref()) {
                (notice("Publishing", html! { (error) }, &[]))
            }
            @for warning in &status.warnings {
                (notice("Warning", html! { (warning) }, &[]))
            }
            @for polled in &status.polled {
                (notice("Polled", html! { (polled) }, &[]))
            }
            @if status.agents.is_empty() {
                (notice("Next", html! { "Make a join token for the first node." }, &[commands.origin(&["token"])]))
            }
        }
    }
}

fn notice(kind: &str, text: Markup, lines: &[String]) -> Markup {
    html! {
        div.notice {
            strong { (kind) }
            div {
                p { (text) }
                @for line in lines { (command(line)) }
            }
        }
    }
}

/// A tile for each node. The tables say the same in words.
fn map(nodes: &[Stood<'_>]) -> Markup {
    // A few nodes are better seen in the table.
    let is_useful = (12..=TILES_MAX).contains(&nodes.len());
    html! {
        div #map aria-hidden="true" {
            @if is_useful {
                @for node in nodes {
                    i data-s=(node.standing.word()) title={ (node.agent.name) " · " (node.standing.word()) } {}
                }
            }
        }
    }
}

/// All nodes, or those of a large fleet that need attention. Those come first in both cases.
fn table(status: &Status, nodes: &[Stood<'_>]) -> Vec<Fragment> {
    let is_large = nodes.len() > ROWS_MAX;
    let mut rows: Vec<&Stood<'_>> = nodes.iter().collect();
    if is_large {
        rows.retain(|node| node.needs_attention());
    }
    // Stable, so that names stay in order.
    rows.sort_by_key(|node| (!node.needs_attention(), node.standing));
    let all = rows.len();
    rows.truncate(ROWS_MAX);
    let heading = match (is_large, all > ROWS_MAX) {
        (false, _) => html! { "Nodes" },
        (true, false) => html! { (counted(all, "node needs", "nodes need")) " attention" },
        (true, true) => html! { "The first " (ROWS_MAX) " of " (all) " nodes that need attention" },
    };
    let mut fragments = vec![Fragment::new("pages", pages(if is_large { nodes.len() } else { 0 }, None))];
    fragments.extend(node::table("nodes", &heading, status, &rows));
    fragments
}

/// Links to the pages of a large fleet.
fn pages(nodes: usize, here: Option<usize>) -> Markup {
    html! {
        nav.pages #pages aria-label="All nodes" {
            @if nodes > ROWS_MAX {
                span { "All nodes by name" }
                @for number in 1..=nodes.div_ceil(ROWS_MAX) {
                    a href={ "/nodes/" (number) } aria-current=[(here == Some(number)).then_some("page")] {
                        ((number - 1) * ROWS_MAX + 1) "–" (nodes.min(number * ROWS_MAX))
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::admin::status::{AgentStatus, ProgressLine};
    use crate::fleet::AgentState;
    use crate::page::document::document;

    const HOSTILE: &str = "\"><script>alert(1)</script><img src=x onerror=alert(1)>";

    fn agent(number: usize) -> AgentStatus {
        AgentStatus {
            name: format!("web{number:03}"),
            connected: true,
            generation: Some(41),
            root: Some("ab".repeat(32)),
            state: AgentState::Live,
            progress: None,
            last_seen: Some("2026-11-30T07:14:20.123Z".into()),
            version: Some("1.0".into()),
            error: None,
            hook: None,
            check: None,
            group: String::new(),
            drained: false,
            pinned: None,
            notes: Vec::new(),
            spare_misses: 0,
            drift: None,
        }
    }

    fn status(agents: Vec<AgentStatus>) -> Status {
        Status {
            tree_id: "00".repeat(16),
            tree: Some("/srv/site".into()),
            grpc_address: None,
            http_address: None,
            state: State::Ready,
            version: "1.0".into(),
            reason: None,
            hold: None,
            rollout: None,
            generation: Some(42),
            root: Some("cd".repeat(32)),
            label: Some("release 7".into()),
            created: Some("2026-11-30T07:14:20.123Z".into()),
            files: 34_851,
            bytes: 616_228_683,
            history_bytes: Some(1 << 30),
            publish: None,
            purge: None,
            collected: Vec::new(),
            polled: Vec::new(),
            warnings: Vec::new(),
            agents,
        }
    }

    fn commands() -> Commands {
        Commands::new(Path::new("/var/lib/syncd/origin"))
    }

    #[test]
    fn five_hundred_nodes_in_trouble_fit_the_page() {
        let progress = || ProgressLine {
            generation: 42,
            files_done: 652,
            files_total: Some(2_594),
            bytes_done: 10 << 20,
            bytes_total: Some(53 << 20),
            percent: Some(18),
        };
        let error = "the check failed on generation 42: exit status: 1: 502 Bad Gateway".to_owned();
        let failed =
            |number| AgentStatus { error: Some(error.clone()), progress: Some(progress()), ..agent(number) };
        let status = status((0..500).map(failed).collect());
        for board in [board(&status, &commands(), html! {}), nodes_board(&status, 1).unwrap()] {
            let bytes = document(&board).into_string().len();
            assert!(bytes < 200_000, "{bytes} bytes");
        }
        assert!(nodes_board(&status, 3).is_some());
        assert!(nodes_board(&status, 4).is_none() && nodes_board(&status, 0).is_none());
        assert!(nodes_board(&status, usize::MAX).is_none());
    }

    #[test]
    fn hostile_text_stays_text() {
        let hostile = AgentStatus {
            error: Some(HOSTILE.into()),
            notes: vec![HOSTILE.into()],
            version: Some(HOSTILE.into()),
            ..agent(1)
        };
        let mut status = status(vec![hostile]);
        status.label = Some(HOSTILE.into());
        status.tree = Some(HOSTILE.into());
        status.reason = Some(HOSTILE.into());
        status.warnings = vec![HOSTILE.into()];
        let of_node = node::board(&status, &commands(), "web001").unwrap();
        for board in [board(&status, &commands(), html! {}), of_node] {
            let html = document(&board).into_string();
            assert!(html.contains("&lt;script&gt;alert(1)"), "{html}");
            assert!(!html.contains("<script>") && !html.contains("<img"), "{html}");
        }
    }

    #[test]
    fn a_change_of_one_node_replaces_one_row() {
        let agents = || (0..3).map(agent).collect::<Vec<_>>();
        let before = board(&status(agents()), &commands(), html! {});
        let mut changed = agents();
        changed[1].notes.push("a remark".into());
        changed[0].notes.push("first".into());
        changed[2].notes.push("third".into());
        // All need attention before and after, so the order stays.
        let after = board(&status(changed), &commands(), html! {});
        let versions = |board: &Board| board.fragments.iter().map(|f| f.version).collect::<Vec<_>>();
        let (before, after) = (versions(&before), versions(&after));
        // The table, then its rows.
        let table = before.len() - 4;
        assert_eq!(before[..=table], after[..=table]);
        assert!((table + 1..before.len()).all(|row| before[row] != after[row]));
    }
}
