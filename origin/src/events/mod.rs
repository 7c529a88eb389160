//! Records changes of the fleet, for `syncd-origin events`.
//!
//! [`observer`] compares successive states of the origin. Collected directories report theirs. One task, the
//! owner of the log `DATA/events`, appends what it finds and passes it on to commands that follow. Nothing is
//! synced: a power cut loses the last seconds. Changes while the origin is stopped have no events, and of two
//! changes of one node in a moment only the later one may be seen.

mod event;
mod observer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use event::Event;
use observer::Observer;

use crate::clock::now_ms;
use crate::error_chain;
use crate::line_budget::LineBudget;
use crate::line_log::{self, Durability, LineLog, LineLogError, Numbered};
use crate::metrics::metrics;
use crate::state::OriginState;

/// Events that a follower may be behind before it reads the file again.
const BEHIND_MAX: usize = 1024;

/// Limits log lines about events that could not be written.
static UNWRITTEN: LineBudget = LineBudget::new();

/// Path of the log of a data directory.
pub fn path(data: &Path) -> PathBuf {
    data.join("events")
}

/// All events of a data directory, oldest first. Blocks.
pub fn read(data: &Path) -> Result<Vec<Numbered<Event>>, LineLogError> {
    line_log::read(&path(data))
}

/// New events of a serving origin. Cheap to clone.
#[derive(Clone)]
pub struct Events {
    news: broadcast::Sender<Arc<Numbered<Event>>>,
}

impl Events {
    /// Starts the owner of the log, which `tasks` tracks and `shutdown` ends. Blocks to open the log.
    pub fn start(
        data: &Path,
        state: OriginState,
        collected: Option<broadcast::Receiver<Event>>,
        shutdown: CancellationToken,
        tasks: &TaskTracker,
    ) -> Result<Self, LineLogError> {
        let log = LineLog::open(&path(data))?;
        let events = Self { news: broadcast::Sender::new(BEHIND_MAX) };
        tasks.spawn(events.clone().run(log, state, collected, shutdown));
        Ok(events)
    }

    /// Events from now on. A receiver that lags behind reads the file again.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Numbered<Event>>> {
        self.news.subscribe()
    }

    async fn run(
        self,
        mut log: LineLog,
        mut state: OriginState,
        mut collected: Option<broadcast::Receiver<Event>>,
        shutdown: CancellationToken,
    ) {
        let mut observer = Observer::new(&state.snapshot());
        let mut found = vec![Event::Started { version: env!("CARGO_PKG_VERSION").to_owned() }];
        loop {
            if !found.is_empty() {
                let appended = tokio::task::spawn_blocking(move || append(log, found)).await;
                let Ok((owned, lines)) = appended else { return };
                log = owned;
                // Fails only while nobody follows.
                lines.into_iter().for_each(|line| drop(self.news.send(Arc::new(line))));
            }
            tokio::select! {
                changed = state.changed(&shutdown) => {
                    if !changed {
                        return;
                    }
                    found = observer.observe(&state.snapshot());
                    found.iter().for_each(count);
                }
                event = next(&mut collected) => found = vec![event],
            }
        }
    }
}

/// The next event of collected directories. Cancel safe.
async fn next(collected: &mut Option<broadcast::Receiver<Event>>) -> Event {
    while let Some(news) = collected {
        match news.recv().await {
            Ok(event) => return event,
            Err(broadcast::error::RecvError::Lagged(left_out)) => {
                tracing::warn!(left_out, "events of collected directories were not recorded");
            }
            Err(broadcast::error::RecvError::Closed) => *collected = None,
        }
    }
    std::future::pending().await
}

/// Counts ends of rollouts, and forks.
fn count(event: &Event) {
    match event {
        Event::Rollout { phase, .. } if !phase.is_running() => metrics().rollout_ended(*phase),
        Event::Fork { .. } => metrics().forked(),
        _ => {}
    }
}

/// Appends events, and returns those that were written.
fn append(mut log: LineLog, events: Vec<Event>) -> (LineLog, Vec<Numbered<Event>>) {
    let at = now_ms();
    let lines = events.into_iter().filter_map(|event| append_one(&mut log, at, event)).collect();
    (log, lines)
}

fn append_one(log: &mut LineLog, at_ms: i64, event: Event) -> Option<Numbered<Event>> {
    match log.append(at_ms, event, Durability::Written) {
        Ok(line) => Some(line),
        Err(error) => {
            if let Some(left_out) = UNWRITTEN.admit() {
                tracing::warn!(error = %error_chain(&error), left_out, "an event was not recorded");
            }
            None
        }
    }
}

/// The log of an origin on standby, which has no state to compare: it records its events itself. Cheap to
/// clone.
#[derive(Clone)]
pub struct StandbyEvents {
    log: Arc<Mutex<LineLog>>,
}

impl StandbyEvents {
    /// Opens the log. Blocks.
    pub fn open(data: &Path) -> Result<Self, LineLogError> {
        Ok(Self { log: Arc::new(Mutex::new(LineLog::open(&path(data))?)) })
    }

    /// Appends an event, or logs why that failed. Blocks.
    pub fn record(&self, event: Event) {
        append_one(&mut self.log.lock().unwrap_or_else(PoisonError::into_inner), now_ms(), event);
    }
}
