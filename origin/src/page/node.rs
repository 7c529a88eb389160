//! A node: its row in a table, and its own board.

use maud::{Markup, html};
use syncd_shared::{CheckStatus, HookStatus};

use super::board::{Board, Fragment, View};
use super::command::{Commands, command};
use super::standing::{Standing, Stood};
use super::text::time;
use crate::admin::status::{AgentStatus, ProgressLine, Status};

/// A table of nodes with one fragment for each row.
pub fn table(id: &str, heading: &Markup, status: &Status, rows: &[&Stood<'_>]) -> Vec<Fragment> {
    let parts: Vec<Fragment> =
        rows.iter().map(|node| Fragment::new(&row_id(node.agent), row(node, status))).collect();
    let title = format!("{id}-title");
    let markup = html! {
        section #(id) aria-labelledby=(title) {
            @if !rows.is_empty() {
                h2 #(title) { (heading) }
                table {
                    thead { tr { th scope="col" { "Node" } th scope="col" { "Generation" } th scope="col" { "State" } } }
                    tbody { @for node in rows { (row(node, status)) } }
                }
            } @else {
                h2.quiet #(title) { (heading) }
            }
        }
    };
    // The order of the rows, and everything around them.
    let names: Vec<&str> = rows.iter().map(|node| node.agent.name.as_str()).collect();
    let frame = format!("{}\n{}", heading.0, names.join("\n"));
    let mut fragments = vec![Fragment::with_parts(id, markup, &frame, parts.len())];
    fragments.extend(parts);
    fragments
}

fn row_id(agent: &AgentStatus) -> String {
    format!("n-{}", agent.name)
}

fn row(node: &Stood<'_>, status: &Status) -> Markup {
    let Stood { agent, standing } = node;
    html! {
        tr id=(row_id(agent)) {
            th scope="row" {
                a href={ "/node/" (agent.name) } { (agent.name) }
                @if !agent.group.is_empty() { " " small { (agent.group) } }
            }
            td { (generation(agent, status)) }
            td { (state(agent, *standing)) (remarks(agent, status)) }
        }
    }
}

fn generation(agent: &AgentStatus, status: &Status) -> Markup {
    let behind = match (status.generation, agent.generation) {
        (Some(current), Some(has)) if current > has => Some(current - has),
        _ => None,
    };
    html! {
        @match agent.generation { Some(number) => (number), None => "–" }
        @if let Some(behind) = behind { " " small { (behind) " behind" } }
    }
}

/// The standing, with the exact state where it says more.
fn state(agent: &AgentStatus, standing: Standing) -> Markup {
    let word = match standing {
        Standing::Moving if agent.generation.is_some() && !agent.is_live() => "switched, hook due".to_owned(),
        Standing::Moving => agent.state.to_string(),
        Standing::New => "never connected".to_owned(),
        standing => standing.word().to_owned(),
    };
    html! {
        span.state data-s=(standing.word()) { span aria-hidden="true" { (standing.sign()) } " " (word) }
    }
}

/// Progress, and everything that a person should read about the node.
fn remarks(agent: &AgentStatus, status: &Status) -> Markup {
    let check = agent.check.as_ref().and_then(CheckStatus::line);
    html! {
        @if agent.drained { " " span.tag { "drained" } }
        @if let Some(pin) = &agent.pinned {
            " " span.tag title={ "since " (pin.since) } { "pinned by the " (pin.by) }
        }
        @if let Some(progress) = &agent.progress { (progress_bar(progress)) }
        @if let Some(check) = check { p.error { (check) } }
        @if let (false, Some(seen)) = (agent.connected, &agent.last_seen) {
            p { "last seen " (time(seen)) }
        }
        @if let Some(version) = agent.version.as_ref().filter(|version| **version != status.version) {
            p { "runs syncd " (version) }
        }
        @if let Some(error) = &agent.error { p.error { (error) } }
        @if let Some(drift) = &agent.drift { p.error { (drift) } }
        @for note in &agent.notes { p.error { (note) } }
    }
}

fn progress_bar(progress: &ProgressLine) -> Markup {
    let percent = progress.percent.map(|percent| percent.to_string());
    html! {
        p.progress {
            progress max="100" value=[percent] aria-label={ "Progress to generation " (progress.generation) } {}
            " " (progress)
        }
    }
}

/// The board of `/node/NAME`; `None` if no such node has joined.
pub fn board(status: &Status, commands: &Commands, name: &str) -> Option<Board> {
    let agent = status.agents.iter().find(|agent| agent.name == name)?;
    let standing = Standing::of(agent, status);
    let fragments = vec![
        Fragment::new("node", about(agent, standing, status)),
        Fragment::new("orders", orders(agent, standing, commands)),
    ];
    Some(Board::new(View::Node(name.to_owned()), name.to_owned(), status, fragments))
}

fn about(agent: &AgentStatus, standing: Standing, status: &Status) -> Markup {
    let spoken = format!("{}: {}", agent.name, standing.word());
    html! {
        section.card #node aria-labelledby="node-title" data-say=(spoken) {
            div.headline {
                h1 #node-title { (agent.name) }
                (state(agent, standing))
            }
            (remarks(agent, status))
            dl.facts {
                div { dt { "Generation" } dd { (generation(agent, status)) } }
                @if let Some(root) = &agent.root {
                    div { dt { "Root" } dd { code title=(root) { (root.get(..12).unwrap_or(root)) } } }
                }
                @if let Some(version) = &agent.version { div { dt { "Version" } dd { (version) } } }
                @if !agent.group.is_empty() { div { dt { "Group" } dd { (agent.group) } } }
                @if let Some(check) = &agent.check {
                    div {
                        dt { "Check" }
                        dd { (check.line().unwrap_or_else(|| format!("passed on generation {}", check.generation))) }
                    }
                }
                @if let Some(hook) = &agent.hook { div { dt { "Hook" } dd { (hook_line(hook)) } } }
                div { dt { "Spare misses" } dd { (agent.spare_misses) } }
            }
        }
    }
}

fn hook_line(hook: &HookStatus) -> String {
    hook.line().unwrap_or_else(|| format!("succeeded for generation {}", hook.generation))
}

/// Commands about the node, each under the machine to run it on.
fn orders(agent: &AgentStatus, standing: Standing, commands: &Commands) -> Markup {
    html! {
        section #orders aria-labelledby="orders-title" {
            h2 #orders-title { "Commands" }
            dl.orders {
                dt { "On the node: what it is doing" }
                dd { (command("syncd-agent status")) }
                @if standing == Standing::Unreachable || standing == Standing::New {
                    dt { "On the node: whether the agent runs, and what it logged" }
                    dd { (command("systemctl status syncd-agent")) (command("journalctl -u syncd-agent -n 50")) }
                }
                @if agent.drift.is_some() {
                    dt { "On the node: list what differs" }
                    dd { (command("syncd-agent verify")) }
                }
                @if agent.drained {
                    dt { "On the origin: put the node into service again" }
                    dd { (command(&commands.origin(&["undrain", &agent.name]))) }
                } @else {
                    dt { "On the origin: take the node out of service" }
                    dd { (command(&commands.origin(&["drain", &agent.name]))) }
                }
                @if agent.pinned.is_some() {
                    dt { "On the origin: let the node follow again" }
                    dd { (command(&commands.origin(&["unpin", &agent.name]))) }
                } @else {
                    dt { "On the origin: keep the node at its generation" }
                    dd { (command(&commands.origin(&["pin", &agent.name]))) }
                }
                dt { "On the origin: shut the node out, for ever" }
                dd { (command(&commands.origin(&["revoke", &agent.name]))) }
            }
        }
    }
}
