//! When generations arrived on the nodes, for the charts.
//!
//! This origin watches the fleet ([`Arrivals::watch`]). Earlier arrivals come from the log of events, which
//! has no counts of bytes ([`recalled`]).

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::admin::offline::DataDirectory;
use crate::clock::now_ms;
use crate::error_chain;
use crate::events::{self, Event};
use crate::line_log::Numbered;
use crate::metrics::metrics;
use crate::state::OriginState;

/// Maximum number of generations remembered.
const ARRIVALS_MAX: usize = 60;
/// Pause between two looks at the fleet. It is the error of the times.
const PAUSE: Duration = Duration::from_millis(20);

/// One generation on its way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Arrival {
    pub generation: u64,
    /// Time from sealing until the first node had it live, in milliseconds.
    pub first_ms: Option<u64>,
    /// The same for the last node so far.
    pub last_ms: Option<u64>,
    pub nodes: usize,
    /// Bytes sent to nodes while it was the newest; `None`: not known, from before the origin's start.
    pub sent_bytes: Option<u64>,
}

/// The newest generations. One task writes ([`Arrivals::watch`]).
#[derive(Debug)]
pub struct Arrivals {
    /// Generations since the start, oldest first.
    seen: Mutex<VecDeque<Arrival>>,
    /// Those of before, oldest first.
    recalled: OnceLock<Vec<Arrival>>,
    /// The start, in milliseconds since 1970.
    since_ms: i64,
}

impl Default for Arrivals {
    fn default() -> Self {
        Self { seen: Mutex::default(), recalled: OnceLock::new(), since_ms: now_ms() }
    }
}

impl Arrivals {
    /// The start of the origin, in milliseconds since 1970.
    pub fn since_ms(&self) -> i64 {
        self.since_ms
    }

    /// The newest generations, oldest first. Blocks; the first call reads the log of events in `data`.
    pub fn all(&self, directory: &DataDirectory, data: &Path) -> Vec<Arrival> {
        let recalled = self.recalled.get_or_init(|| recall(directory, data, self.since_ms));
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let known = recalled.len() + seen.len();
        recalled.iter().chain(seen.iter()).skip(known.saturating_sub(ARRIVALS_MAX)).cloned().collect()
    }

    /// Watches the fleet until the origin stops.
    pub async fn watch(self: Arc<Self>, state: OriginState) {
        let (mut committer, mut fleet) = (state.committer.clone(), state.fleet.clone());
        let mut look = Look { newest: current_of(&state), ..Look::default() };
        loop {
            tokio::select! {
                changed = committer.changed() => if changed.is_err() { return },
                changed = fleet.changed() => if changed.is_err() { return },
            }
            self.note(&mut look, &state);
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn note(&self, look: &mut Look, state: &OriginState) {
        let sent = metrics().sent_bytes();
        let origin = state.committer.borrow().clone();
        let Some(current) = origin.current else { return };
        let generation = current.generation();
        let number = generation.number.get();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if look.newest != Some(number) {
            // An update is sent before the committer shows its generation.
            *look = Look { newest: Some(number), sent_before: look.sent, sent, live: HashSet::new() };
            if seen.len() >= ARRIVALS_MAX {
                seen.pop_front();
            }
            seen.push_back(Arrival { generation: number, sent_bytes: Some(0), ..Arrival::default() });
        }
        look.sent = sent;
        // The generation of before the start has no entry here.
        let Some(arrival) = seen.back_mut().filter(|arrival| arrival.generation == number) else { return };
        arrival.sent_bytes = Some(sent.saturating_sub(look.sent_before));
        let elapsed = u64::try_from(now_ms() - generation.created_ms).unwrap_or_default();
        for agent in &state.fleet.borrow().agents {
            let has_it =
                agent.generation == Some(generation.number) && !agent.is_hook_due() && !agent.is_on_trial();
            if agent.connected && has_it && look.live.insert(agent.name.clone()) {
                arrival.first_ms.get_or_insert(elapsed);
                arrival.last_ms = Some(elapsed);
                arrival.nodes = look.live.len();
            }
        }
    }
}

/// The newest generation as the task knows it.
#[derive(Default)]
struct Look {
    newest: Option<u64>,
    /// Bytes sent before it.
    sent_before: u64,
    /// Bytes sent until the last look.
    sent: u64,
    /// Names of nodes that have it live.
    live: HashSet<String>,
}

fn current_of(state: &OriginState) -> Option<u64> {
    state.committer.borrow().current.as_ref().map(|current| current.number().get())
}

/// Arrivals before `until_ms`; none if the log or the history can't be read. Blocks.
fn recall(directory: &DataDirectory, data: &Path, until_ms: i64) -> Vec<Arrival> {
    let history = directory.history_before(u64::MAX, ARRIVALS_MAX).unwrap_or_default();
    let sealed_ms = history.iter().map(|sealed| (sealed.number().get(), sealed.generation().created_ms));
    let events = events::read(data).unwrap_or_else(|error| {
        tracing::warn!(error = error_chain(&error), "charts begin with this start");
        Vec::new()
    });
    recalled(&events, &sealed_ms.collect(), until_ms)
}

/// Arrivals of the generations in `sealed_ms` (number, time of sealing), oldest first. A restart ends those
/// of a generation: nobody saw when it arrived meanwhile.
fn recalled(events: &[Numbered<Event>], sealed_ms: &HashMap<u64, i64>, until_ms: i64) -> Vec<Arrival> {
    let mut found: Vec<Arrival> = Vec::new();
    let (mut newest, mut live) = (None, HashSet::new());
    for Numbered { at, what, .. } in events {
        let Ok(at) = OffsetDateTime::parse(at, &Rfc3339) else { continue };
        let at_ms = i64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX);
        if at_ms >= until_ms {
            break;
        }
        match what {
            Event::Started { .. } => newest = None,
            Event::Sealed { generation, .. } => {
                newest = sealed_ms.get(generation).map(|sealed_ms| (*generation, *sealed_ms));
                live.clear();
                found.extend(newest.map(|_| Arrival { generation: *generation, ..Arrival::default() }));
            }
            Event::Live { node, generation } => {
                let Some((_, sealed_ms)) = newest.filter(|(number, _)| number == generation) else {
                    continue;
                };
                let Some(arrival) = found.last_mut().filter(|_| live.insert(node)) else { continue };
                let elapsed = u64::try_from(at_ms - sealed_ms).unwrap_or_default();
                arrival.first_ms.get_or_insert(elapsed);
                arrival.last_ms = Some(elapsed);
                arrival.nodes = live.len();
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use syncd_shared::text::rfc3339;

    use super::*;

    #[test]
    fn the_log_tells_of_arrivals_before_the_start() {
        const BEGIN: i64 = 1_790_000_000_000;
        let sealed = |generation| {
            let (root, label) = (String::new(), String::new());
            Event::Sealed { generation, root, label, files: 1, bytes: 1 }
        };
        let live = |node: &str, generation| Event::Live { node: node.into(), generation };
        let told = [
            (0, sealed(1)),
            (50, live("web1", 1)),
            (1_000, sealed(2)),
            (1_080, live("web1", 2)),
            (1_090, live("web9", 1)),
            (1_300, live("web2", 2)),
            (1_400, live("web2", 2)),
            (2_000, sealed(3)),
            (3_000, Event::Started { version: "1.0".into() }),
            (9_000, live("web1", 3)),
            (10_000, sealed(4)),
            (10_100, live("web1", 4)),
            (20_000, Event::Started { version: "1.0".into() }),
            (20_500, sealed(5)),
        ];
        let line = |(ms, what): (i64, Event)| Numbered { number: 1, at: rfc3339(BEGIN + ms), what };
        let events: Vec<_> = told.into_iter().map(line).collect();
        // Generation 1 is no longer retained. Sealing is told a moment later.
        let sealed_ms = [(2, 990), (3, 1_990), (4, 10_000), (5, 20_500)];
        let sealed_ms = sealed_ms.map(|(number, ms)| (number, BEGIN + ms)).into();
        let found = recalled(&events, &sealed_ms, BEGIN + 20_000);
        let shown: Vec<_> = found.iter().map(|a| (a.generation, a.first_ms, a.last_ms, a.nodes)).collect();
        assert_eq!(shown, [(2, Some(90), Some(310), 2), (3, None, None, 0), (4, Some(100), Some(100), 1)]);
        assert!(found.iter().all(|arrival| arrival.sent_bytes.is_none()));
    }
}
