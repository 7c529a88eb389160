//! One agent as the fleet task keeps it: its connections, and what is shown of it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{HumanBytes, HumanCount};
use syncd_shared::identity::Serial;
use syncd_shared::{
    AgentState, GenerationNumber, HookOutcome, HookStatus, OrderedStanding, SignedGeneration,
};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::fleet::EndReason;
use crate::fleet::first_sync::FirstSyncLog;
use crate::fleet::rollout::Assignment;
use crate::fleet::rollout::participants::Node;
use crate::fleet::roster::{NodeOrders, Told};
use crate::fleet::view::{AgentDrift, AgentView};
use crate::metrics::metrics;

/// Minimum interval, in milliseconds, of writing only a last sign of life.
pub(super) const SEEN_MS: i64 = 60_000;

/// Time for which a note about a cloned certificate is shown, in milliseconds.
const CLONE_NOTE_MS: i64 = 60 * 60 * 1000;

/// Number of takeovers of an agent's connection within [`TAKE_OVERS_MS`] that reveals two machines with one
/// certificate. A node that loses its network also replaces its own connection, but takes longer than this to
/// notice.
const TAKE_OVERS_MAX: usize = 6;

/// Period for [`TAKE_OVERS_MAX`], in milliseconds.
const TAKE_OVERS_MS: i64 = 2 * 60 * 1000;

/// Assigned generations remembered for each connection. An agent may report one after the next is assigned.
const ASSIGNED_MAX: usize = 4;

pub(super) struct Connection {
    pub(super) id: u64,
    pub(super) boot_id: String,
    /// Serial number of the certificate.
    pub(super) serial: Serial,
    pub(super) end: oneshot::Sender<EndReason>,
    pub(super) assignment: watch::Sender<Option<Assignment>>,
    /// Orders that the node must know.
    pub(super) standing: watch::Sender<OrderedStanding>,
    /// The last generations that were assigned, and when, newest last.
    pub(super) assigned: VecDeque<(Arc<SignedGeneration>, Instant)>,
    pub(super) first_sync: FirstSyncLog,
}

impl Connection {
    /// Notes an assigned generation, for the log.
    pub(super) fn note(&mut self, generation: &Arc<SignedGeneration>) {
        if self.assigned.back().is_none_or(|(last, _)| last.number() != generation.number()) {
            self.assigned.push_back((generation.clone(), Instant::now()));
            if self.assigned.len() > ASSIGNED_MAX {
                self.assigned.pop_front();
            }
        }
    }

    /// A generation that was assigned lately, with the time since.
    pub(super) fn assigned(&self, number: GenerationNumber) -> Option<(&SignedGeneration, Duration)> {
        let (generation, at) = self.assigned.iter().rfind(|(assigned, _)| assigned.number() == number)?;
        Some((generation, at.elapsed()))
    }

    /// Passes the assignment to the session, if it differs or `again`.
    fn assign(&mut self, assignment: Option<Assignment>, again: bool) {
        if let Some(assignment) = &assignment {
            self.note(&assignment.generation);
        }
        self.assignment.send_if_modified(|assigned| {
            let differs = *assigned != assignment;
            *assigned = assignment;
            differs || again
        });
    }
}

/// State of an agent beyond its record.
pub(super) struct Agent {
    pub(super) view: AgentView,
    pub(super) connection: Option<Connection>,
    /// Notes about the current connection.
    pub(super) notes: Vec<String>,
    pub(super) cloned: Option<(i64, String)>,
    /// Times of takeovers of live connections, in milliseconds, newest last.
    pub(super) take_overs: VecDeque<i64>,
    pub(super) written: (i64, Told),
}

/// The part of a view that is stored.
pub(super) fn told(view: &AgentView) -> Told {
    let hook = view.hook.clone().filter(|hook| hook.outcome != HookOutcome::Ok);
    Told {
        generation: view.generation.map(GenerationNumber::get),
        root: view.root.map(|root| root.to_string()),
        // Each attempt would be another record.
        hook: hook.map(|hook| {
            let outcome = match hook.outcome {
                HookOutcome::Running if hook.output.is_empty() => HookOutcome::Due,
                HookOutcome::Running => HookOutcome::Failed,
                outcome => outcome,
            };
            HookStatus { outcome, duration_ms: 0, attempt: 0, ..hook }
        }),
        drift: view.drift.clone(),
        root_key: view.root_key.map(|key| key.to_string()),
    }
}

/// The state of an agent whose changes are logged.
#[derive(PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) generation: Option<GenerationNumber>,
    pub(super) is_live: bool,
    /// Generation for which the hook failed.
    pub(super) hook_failed: Option<u64>,
    pub(super) error: Option<String>,
}

impl Standing {
    pub(super) fn of(view: &AgentView) -> Self {
        Self {
            generation: view.generation,
            is_live: view.generation.is_some() && !view.is_hook_due() && !view.is_on_trial(),
            hook_failed: view.hook.as_ref().filter(|hook| hook.has_failed()).map(|hook| hook.generation),
            error: view.error.clone(),
        }
    }

    /// Logs one line for each switch, failure, and hook that succeeded. `self` is the state before;
    /// `assigned` is the linked generation, with the time since this agent was told of it.
    pub(super) fn log_change(self, view: &AgentView, assigned: Option<(&SignedGeneration, Duration)>) {
        let now = Self::of(view);
        if now == self {
            return;
        }
        let generation = now.generation.map_or(0, GenerationNumber::get);
        let has_switched = now.generation != self.generation;
        if now.is_live && (has_switched || !self.is_live) {
            if let Some((_, took)) = assigned {
                metrics().live(took);
            }
            let totals = assigned.map(|(signed, _)| signed.generation().root.totals);
            tracing::info!(
                agent = %view.name,
                generation,
                label = assigned.map(|(signed, _)| signed.generation().label.as_str()),
                files = totals.map(|totals| display(HumanCount(totals.files))),
                bytes = totals.map(|totals| display(HumanBytes(totals.bytes))),
                seconds = assigned.map(|(_, took)| display(format!("{:.2}", took.as_secs_f64()))),
                "live"
            );
        } else if has_switched {
            let due = if view.is_hook_due() { "the on-activate hook is due" } else { "its check runs" };
            tracing::info!(agent = %view.name, generation, "switched, {due}");
        }
        if now.hook_failed.is_some() && now.hook_failed != self.hook_failed {
            let reason = view.hook.as_ref().and_then(HookStatus::failure).unwrap_or_default();
            tracing::warn!(agent = %view.name, generation, reason, "hook failed");
        }
        if let Some(reason) = now.error.filter(|error| Some(error) != self.error.as_ref()) {
            tracing::warn!(agent = %view.name, reason, "update failed");
        }
    }
}

impl Agent {
    /// Ends the existing connection, if any.
    pub(super) fn displace(&mut self, boot_id: &str, serial: Serial, now: i64) {
        let Some(old) = self.connection.take() else { return };
        // A node that has renewed its certificate keeps its boot ID.
        let is_shared = old.serial == serial || old.boot_id == boot_id;
        if !is_shared && !old.end.is_closed() {
            let note = "two machines have this name, with certificates of their own: a forgotten node is back. \
                        `syncd-origin revoke` shuts out both; then join each with a name of its own";
            tracing::warn!(agent = %self.view.name, "{note}");
            self.cloned = Some((now, note.to_owned()));
        } else if old.boot_id != boot_id && !old.end.is_closed() {
            let note = format!(
                "two connections with one certificate (boot {boot_id} after boot {}): unless this node was just \
                 rebooted, the machine was cloned: join the copy under a name of its own",
                old.boot_id
            );
            tracing::warn!(agent = %self.view.name, "{note}");
            self.cloned = Some((now, note));
        }
        if is_shared && !old.end.is_closed() {
            self.count_take_over(now);
        }
        let _ = old.end.send(EndReason::Replaced);
    }

    /// Detects clones that share a boot ID, such as containers on one host, by how often they replace each
    /// other's connections.
    fn count_take_over(&mut self, now: i64) {
        self.take_overs.push_back(now);
        self.take_overs.retain(|at| (now.saturating_sub(TAKE_OVERS_MS)..=now).contains(at));
        if self.take_overs.len() < TAKE_OVERS_MAX {
            return;
        }
        let note = format!(
            "its connection was taken over {} times within {} minutes: two machines share one certificate; join the copy \
             under a name of its own",
            self.take_overs.len(),
            TAKE_OVERS_MS / 60_000
        );
        if self.cloned.as_ref().is_none_or(|(at, _)| now.saturating_sub(*at) > TAKE_OVERS_MS) {
            tracing::warn!(agent = %self.view.name, "{note}");
        }
        self.cloned = Some((now, note));
    }

    /// The node as rollouts see it.
    pub(super) fn node(&self) -> Node<'_> {
        self.view.node()
    }

    /// Passes an assignment to the session.
    pub(super) fn assign(&mut self, assignment: Option<Assignment>, again: bool) {
        self.view.assigned = assignment.as_ref().map(|a| (a.generation.number(), a.activate));
        if let Some(connection) = &mut self.connection {
            connection.assign(assignment, again);
        }
    }

    /// Takes over an operator's orders, and tells the node.
    pub(super) fn obey(&mut self, orders: &NodeOrders) {
        if self.view.orders == *orders {
            return;
        }
        self.view.orders = orders.clone();
        if let Some(connection) = &self.connection {
            connection.standing.send_if_modified(|known| {
                let differs = *known != orders.standing();
                *known = orders.standing();
                differs
            });
        }
    }

    pub(super) fn disconnect(&mut self) {
        self.connection = None;
        self.view.assigned = None;
        self.view.connected = false;
        self.view.progress = None;
    }

    pub(super) fn shown(&self, ours: Option<GenerationNumber>, now: i64) -> AgentView {
        let mut view = self.view.clone();
        if view.state == AgentState::Live && view.is_hook_due() {
            view.state = AgentState::Switched;
        }
        view.notes.clone_from(&self.notes);
        if let Some((at, note)) = &self.cloned
            && now - at <= CLONE_NOTE_MS
        {
            view.notes.push(note.clone());
        }
        view.notes.extend(view.fork.map(|fork| fork.to_string()));
        if let (Some(ours), Some(theirs)) = (ours, view.generation)
            && theirs > ours
        {
            view.notes.push(format!(
                "it has generation {theirs}, above this origin's {ours}: was the origin restored from a backup?"
            ));
        }
        view
    }
}

/// The state of an agent's hook after it has switched to `generation`. Keeps a state that the agent has
/// already reported.
pub(super) fn due_hook(
    known: Option<HookStatus>,
    generation: GenerationNumber,
    is_due: bool,
) -> Option<HookStatus> {
    match known {
        Some(hook) if !is_due && hook.is_live() => Some(hook),
        _ if !is_due => None,
        Some(hook) if !hook.is_live() && hook.generation == generation.get() => Some(hook),
        other => Some(HookStatus::due(generation.get(), other.and_then(|hook| hook.succeeded))),
    }
}

/// Shows a state that ends progress and errors.
pub(super) fn note_reached(view: &mut AgentView, state: AgentState) {
    view.state = state;
    view.progress = None;
    view.error = None;
    view.needs_operator = false;
}

/// Shows an agent's local changes, and logs each report once.
pub(super) fn note_drift(view: &mut AgentView, drift: Option<AgentDrift>) {
    if let Some(drift) = drift.as_ref().filter(|drift| view.drift.as_ref() != Some(drift)) {
        tracing::warn!(agent = view.name, "{drift}");
    }
    view.drift = drift;
}
