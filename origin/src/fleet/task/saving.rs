//! Saving of changed records, and publishing of the view.
//!
//! Answers wait until the records that they depend on are durable. The live generations of agents are written
//! behind. The view is published after a short pause that grows with the fleet.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::agent::{SEEN_MS, told};
use super::{FleetTask, Reply};
use crate::clock::now_ms;
use crate::fleet::FleetError;
use crate::fleet::records::RecordError;
use crate::fleet::roster::{RosterError, Undo};
use crate::fleet::view::FleetView;

/// Interval of writing the generations of agents.
pub(super) const WRITE_BEHIND: Duration = Duration::from_secs(5);

/// Publishing costs time in proportion to the fleet, and so do the pauses between publications. It takes at
/// most a few percent of one core, and with a handful of agents every change is shown at once.
const PUBLISH_PAUSE_PER_AGENT: Duration = Duration::from_micros(20);

/// Longest pause between publications.
const PUBLISH_PAUSE_MAX: Duration = Duration::from_millis(100);

/// Longest delay before a mere sign of life is shown.
pub(super) const SEEN_PAUSE: Duration = Duration::from_secs(2);

impl FleetTask {
    /// Answers refused commands at once, and others when their records are written.
    pub(super) fn durable(&mut self, result: Result<(), RosterError>, undo: Undo, reply: Reply) {
        match result {
            Ok(()) => {
                self.roster_changed();
                self.waiting.push((reply, undo));
                self.paused = false;
            }
            Err(error) => {
                let _ = reply.send(Err(error.into()));
            }
        }
    }

    pub(super) fn tick(&mut self) {
        for agent in self.agents.values_mut() {
            if agent.connection.as_ref().is_some_and(|c| c.end.is_closed()) {
                agent.disconnect();
            }
        }
        self.write_behind(false);
        self.paused = false;
        // Notes expire.
        self.publish_after(Duration::ZERO);
    }

    pub(super) fn write_behind(&mut self, all: bool) {
        for (name, agent) in &mut self.agents {
            let (seen, told) = (agent.view.last_seen_ms, told(&agent.view));
            let newer = seen > agent.written.0;
            let due = newer && (all || seen - agent.written.0 >= SEEN_MS);
            if due || told != agent.written.1 {
                self.roster.seen(name, seen, told.clone());
                agent.written = (seen, told);
            }
        }
        self.unsaved.extend(self.roster.take_changes());
    }

    pub(super) fn start_saving(&mut self) {
        if self.saving.is_some() || self.unsaved.is_empty() {
            return;
        }
        let changes = std::mem::take(&mut self.unsaved);
        self.in_flight = (changes.clone(), std::mem::take(&mut self.waiting));
        self.steering.saving();
        let save = self.save.clone();
        self.saving = Some(tokio::task::spawn_blocking(move || save(&changes)));
    }

    pub(super) fn saved(&mut self, result: Result<(), RecordError>) {
        self.saving = None;
        let (mut changes, waiting) = std::mem::take(&mut self.in_flight);
        match result {
            Ok(()) => {
                self.reassign |= self.steering.saved();
                waiting.into_iter().for_each(|(reply, _)| {
                    let _ = reply.send(Ok(()));
                });
            }
            Err(error) => {
                tracing::error!(%error, "writing the records of the fleet failed");
                let error = Arc::new(error);
                // Retried together with the next changes, in order. This includes the changes that undo
                // reported failures, so that a failed join neither uses a token nor takes a name.
                changes.append(&mut self.unsaved);
                self.unsaved = changes;
                for (reply, undo) in waiting {
                    let failure = match undo {
                        Undo::Nothing => FleetError::NotDurable(error.clone()),
                        _ => FleetError::Save(error.clone()),
                    };
                    self.roster.undo(undo);
                    let _ = reply.send(Err(failure));
                }
                self.roster_changed();
                self.follow_roster();
                self.publish_after(self.publish_pause());
                self.paused = true;
            }
        }
    }

    pub(super) fn publish_pause(&self) -> Duration {
        let agents = u32::try_from(self.agents.len()).unwrap_or(u32::MAX);
        PUBLISH_PAUSE_PER_AGENT.saturating_mul(agents).min(PUBLISH_PAUSE_MAX)
    }

    /// Schedules a publication `pause` after the last one, unless an earlier one is scheduled.
    pub(super) fn publish_after(&mut self, pause: Duration) {
        let at = self.published + pause;
        self.publish_at = Some(self.publish_at.map_or(at, |before| before.min(at)));
    }

    pub(super) fn publish(&mut self) {
        self.publish_at = None;
        self.published = Instant::now();
        let now = now_ms();
        let ours = self.newest.borrow().as_ref().map(|newest| newest.generation.number());
        let agents = self.agents.values().map(|agent| agent.shown(ours, now)).collect();
        let view = FleetView { agents };
        self.view.send_if_modified(|shown| {
            let changed = **shown != view;
            if changed {
                *shown = Arc::new(view);
            }
            changed
        });
    }
}

pub(super) async fn due(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Waits for the write to finish. Cancel safe: the handle is kept until then.
pub(super) async fn finished(
    saving: &mut Option<JoinHandle<Result<(), RecordError>>>,
) -> Result<(), RecordError> {
    match saving {
        Some(handle) => handle.await.unwrap_or(Err(RecordError::Interrupted)),
        None => std::future::pending().await,
    }
}
