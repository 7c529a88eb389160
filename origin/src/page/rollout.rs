//! The rollout in progress, and the last one if it failed.

use maud::{Markup, html};

use super::command::{Commands, command};
use super::text::time;
use crate::fleet::rollout::view::NodePhase;
use crate::fleet::rollout::{Kind, RolloutStatus};

/// The fragment of a rollout. It is empty if there is nothing to watch.
pub fn rollout(status: Option<&RolloutStatus>, commands: &Commands) -> Markup {
    let shown = status.filter(|rollout| rollout.phase.is_running() || rollout.phase.has_failed());
    html! {
        section #rollout aria-label="Rollout" {
            @if let Some(rollout) = shown { (card(rollout, commands)) }
        }
    }
}

fn card(rollout: &RolloutStatus, commands: &Commands) -> Markup {
    let is_running = rollout.phase.is_running();
    let what = match rollout.kind {
        Kind::Commit => "Rollout of generation ",
        Kind::Rollback => "Rollback, generation ",
    };
    html! {
        div.card data-phase=(word(&rollout.phase)) {
            div.headline {
                h2 { (what) (rollout.generation) }
                p.label { (rollout.policy) }
                span.pill data-state=[rollout.phase.has_failed().then_some("held")] {
                    (word(&rollout.phase)) @if rollout.paused { ", paused" }
                }
            }
            @if let Some(reason) = &rollout.reason { p.error { (reason) } }
            @if is_running { (steps(rollout)) (nodes(rollout)) }
            @if !rollout.answer.is_empty() { p { "Check: " (rollout.answer) } }
            @for missing in &rollout.missing { p { "Missing: " (missing) } }
            (orders(rollout, commands))
        }
    }
}

fn steps(rollout: &RolloutStatus) -> Markup {
    html! {
        ol.steps {
            @for step in 1..=rollout.steps {
                li data-step=(if step < rollout.step { "done" } else if step == rollout.step { "now" } else { "later" })
                    aria-current=[(step == rollout.step).then_some("step")] {
                    "Step " (step)
                    @if step == rollout.step && !rollout.what.is_empty() { ": " (rollout.what) }
                }
            }
        }
        p {
            "began " (time(&rollout.since))
            @if let Some(until) = &rollout.until { ", ends " (time(until)) " at the latest" }
        }
    }
}

/// Participants by state. Those that a person may want to look at are named.
fn nodes(rollout: &RolloutStatus) -> Markup {
    let states =
        [NodePhase::Live, NodePhase::Staged, NodePhase::Waiting, NodePhase::Unreachable, NodePhase::Failed];
    html! {
        ul.legend {
            @for state in states {
                @let of: Vec<&str> = rollout.nodes.iter().filter(|node| node.state == state)
                    .map(|node| node.name.as_str()).collect();
                @if !of.is_empty() {
                    li data-s=(standing(state)) {
                        (of.len()) " " (word(&state))
                        @if of.len() <= 5 { " (" (of.join(", ")) ")" }
                    }
                }
            }
        }
    }
}

fn standing(state: NodePhase) -> &'static str {
    match state {
        NodePhase::Live => "live",
        NodePhase::Staged => "moving",
        NodePhase::Waiting => "new",
        NodePhase::Unreachable => "unreachable",
        NodePhase::Failed => "failed",
    }
}

fn orders(rollout: &RolloutStatus, commands: &Commands) -> Markup {
    let pause = if rollout.paused { "resume" } else { "pause" };
    html! {
        p {
            (command(&commands.origin(&["rollout", "status"])))
            @if rollout.phase.is_running() {
                @for action in [pause, "advance", "abort"] { (command(&commands.origin(&["rollout", action]))) }
            }
        }
    }
}

/// The word of JSON.
fn word(value: &impl serde::Serialize) -> String {
    let value = serde_json::to_value(value).ok();
    value.and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}
