//! When generations arrived on the nodes since this origin started, for the charts.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::clock::now_ms;
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
    /// Bytes sent to nodes while it was the newest.
    pub sent_bytes: u64,
}

/// The newest generations, oldest first. One task writes ([`Arrivals::watch`]).
#[derive(Debug, Default)]
pub struct Arrivals {
    seen: Mutex<VecDeque<Arrival>>,
}

impl Arrivals {
    pub fn seen(&self) -> Vec<Arrival> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
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
            seen.push_back(Arrival { generation: number, ..Arrival::default() });
        }
        look.sent = sent;
        // The generation of before the start has no entry: nobody saw when it arrived.
        let Some(arrival) = seen.back_mut().filter(|arrival| arrival.generation == number) else { return };
        arrival.sent_bytes = sent.saturating_sub(look.sent_before);
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
