//! Slots for answering fetch requests, which bound the memory of all fetch streams together.
//!
//! A slot is held from the first byte read until the kernel has accepted the whole answer, because data
//! queued in HTTP/2 still occupies memory. It covers one request, or two that are answered together while
//! nobody else waits. Each agent has one slot, however many streams it opens; its other streams, and other
//! agents, wait in line. An agent that does not read its answer loses its slot, sooner if others wait.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use syncd_shared::identity::AgentName;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ServeError;
use crate::listener::Written;

/// Maximum number of fetch streams per agent.
pub(super) const STREAMS_PER_AGENT: usize = 4;
/// Number of concurrent answers. Each has up to 3 MiB of messages in memory (one read, one being encoded, and
/// those queued in HTTP/2), and a few MiB of chunk locations. Others wait in line.
pub(super) const FETCH_SLOTS: usize = 32;
/// Timeouts of waiting.
#[derive(Debug, Clone, Copy)]
pub(super) struct SlotTimeouts {
    /// Longest wait for a slot. Shorter than an agent waits for its first frame.
    wait: Duration,
    /// An agent that reads nothing for this long is disconnected.
    stall: Duration,
    /// The same limit while others wait. A message of 1 MiB in this time is 70 kB/s.
    stall_crowded: Duration,
    /// Interval of checks whether others wait.
    look: Duration,
}

impl Default for SlotTimeouts {
    fn default() -> Self {
        let [wait, stall, stall_crowded, look] = [100, 60, 15, 1].map(Duration::from_secs);
        Self { wait, stall, stall_crowded, look }
    }
}

#[derive(Debug)]
struct OfAgent {
    streams: usize,
    slot: Arc<Semaphore>,
}

/// All slots.
#[derive(Clone, Debug)]
pub(super) struct FetchSlots {
    all: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    agents: Arc<Mutex<HashMap<AgentName, OfAgent>>>,
    timeouts: SlotTimeouts,
}

/// Bytes that must be read within the time limit: one message.
const STEP_BYTES: u64 = 1024 * 1024;

impl FetchSlots {
    pub(super) fn new(slots: usize, timeouts: SlotTimeouts) -> Self {
        let all = Arc::new(Semaphore::new(slots));
        Self { all, waiting: Arc::default(), agents: Arc::default(), timeouts }
    }

    /// Opens a stream of this agent on `connection`. It counts until it is dropped.
    pub(super) fn stream(
        &self,
        name: &AgentName,
        connection: Option<Written>,
    ) -> Result<StreamSlots, ServeError> {
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        let of_agent = agents
            .entry(name.clone())
            .or_insert_with(|| OfAgent { streams: 0, slot: Arc::new(Semaphore::new(1)) });
        if of_agent.streams >= STREAMS_PER_AGENT {
            return Err(ServeError::Busy { limit: STREAMS_PER_AGENT, of: "of one agent" });
        }
        of_agent.streams = of_agent.streams.saturating_add(1);
        let own = of_agent.slot.clone();
        Ok(StreamSlots { slots: self.clone(), name: name.clone(), own, connection })
    }
}

#[cfg(feature = "testing")]
impl StreamSlots {
    /// A stream without competitors and without connection, for simulations.
    pub fn alone(name: &AgentName) -> Result<Self, ServeError> {
        FetchSlots::new(FETCH_SLOTS, SlotTimeouts::default()).stream(name, None)
    }
}

/// One stream, which can wait for a slot.
#[derive(Debug)]
pub struct StreamSlots {
    slots: FetchSlots,
    name: AgentName,
    own: Arc<Semaphore>,
    connection: Option<Written>,
}

/// A slot, held while a request is answered.
#[derive(Debug)]
pub(super) struct FetchSlot {
    _own: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl StreamSlots {
    /// Waits for a slot. Cancel safe.
    pub(super) async fn take(&self) -> Result<FetchSlot, ServeError> {
        let busy = |_| ServeError::Busy { limit: FETCH_SLOTS, of: "in all: try again later" };
        let slot = async {
            // The agent's own limit comes first, so that each agent waits in the common line only once.
            let own = self.own.clone().acquire_owned().await.map_err(|_| ServeError::Stopping)?;
            self.slots.waiting.fetch_add(1, Ordering::Relaxed);
            let waiting = Waiting(&self.slots.waiting);
            let of_all = self.slots.all.clone().acquire_owned().await.map_err(|_| ServeError::Stopping)?;
            drop(waiting);
            Ok(FetchSlot { _own: own, _of_all: of_all })
        };
        tokio::time::timeout(self.slots.timeouts.wait, slot).await.map_err(busy)?
    }

    /// Whether other agents wait for a slot.
    pub(super) fn others_wait(&self) -> bool {
        self.slots.waiting.load(Ordering::Relaxed) > 0
    }

    /// Waits for `taken`, which completes when the agent reads. Not cancel safe.
    pub(super) async fn taken<T>(&self, taken: impl Future<Output = T>) -> Result<T, ServeError> {
        tokio::pin!(taken);
        let SlotTimeouts { stall, stall_crowded, look, .. } = self.slots.timeouts;
        let started = Instant::now();
        loop {
            if let Ok(value) = tokio::time::timeout(look, &mut taken).await {
                return Ok(value);
            }
            let waited = started.elapsed();
            let crowded = self.others_wait();
            if waited >= if crowded { stall_crowded } else { stall } {
                return Err(ServeError::Stalled { seconds: waited.as_secs() });
            }
        }
    }
}

impl StreamSlots {
    /// Bytes written by the connection.
    pub(super) fn written_bytes(&self) -> u64 {
        self.connection.as_ref().map_or(0, Written::bytes)
    }

    /// Waits until the connection has written this many bytes. Not cancel safe.
    pub(super) async fn written(&self, bytes: u64) -> Result<(), ServeError> {
        let Some(connection) = &self.connection else { return Ok(()) };
        loop {
            let step = connection.bytes().saturating_add(STEP_BYTES).min(bytes);
            self.taken(connection.reach(step)).await?;
            if step == bytes {
                return Ok(());
            }
        }
    }
}

impl Drop for StreamSlots {
    fn drop(&mut self) {
        let mut agents = self.slots.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_agent) = agents.get_mut(&self.name) {
            of_agent.streams = of_agent.streams.saturating_sub(1);
            if of_agent.streams == 0 {
                agents.remove(&self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> AgentName {
        text.parse().unwrap()
    }

    fn slots(slots: usize) -> FetchSlots {
        let [wait, stall, stall_crowded, look] = [5_000, 2_000, 50, 10].map(Duration::from_millis);
        FetchSlots::new(slots, SlotTimeouts { wait, stall, stall_crowded, look })
    }

    #[tokio::test]
    async fn one_agent_has_one_slot_and_others_theirs() {
        let slots = slots(2);
        let [a, again, b] = ["a", "a", "b"].map(|agent| slots.stream(&name(agent), None).unwrap());
        let first = a.take().await.unwrap();
        let soon = Duration::from_millis(50);
        assert!(tokio::time::timeout(soon, again.take()).await.is_err());
        let _other = b.take().await.unwrap();
        drop(first);
        assert!(again.take().await.is_ok());
    }

    #[tokio::test]
    async fn who_takes_nothing_is_cut_off_sooner_where_others_wait() {
        let slots = slots(1);
        let [a, b] = ["a", "b"].map(|agent| slots.stream(&name(agent), None).unwrap());
        let slot = a.take().await.unwrap();
        let waits = tokio::spawn(async move { b.take().await.is_ok() });
        let started = Instant::now();
        assert!(matches!(a.taken(std::future::pending::<()>()).await, Err(ServeError::Stalled { .. })));
        assert!(started.elapsed() < Duration::from_secs(2), "not after two");
        drop(slot);
        assert!(waits.await.unwrap());
        assert_eq!(a.taken(std::future::ready(5)).await.unwrap(), 5);
    }

    #[tokio::test]
    async fn a_fifth_stream_of_one_agent_is_refused_until_one_ends() {
        let slots = slots(1);
        let mut streams: Vec<_> =
            (0..STREAMS_PER_AGENT).map(|_| slots.stream(&name("a"), None).unwrap()).collect();
        assert!(matches!(slots.stream(&name("a"), None), Err(ServeError::Busy { .. })));
        streams.pop();
        assert!(slots.stream(&name("a"), None).is_ok());
    }
}
