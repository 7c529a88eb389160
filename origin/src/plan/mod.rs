//! Encodes updates from one root to another once for all agents, and answers requests for single objects.
//!
//! [`Planner`] owns the encoded updates: those up to 256 KiB in memory, others in files under DATA/spool.
//! Both are limited by a budget, and the least recently used are dropped first. A plan runs on its own
//! blocking thread. Callers wait until it is complete or can be read from its file, and a caller that stops
//! waiting does not stop the plan. Nothing here is durable: the next start removes spool files left by a
//! crash.

mod contents;
mod delta;
mod duplicates;
mod error;
mod objects;
mod reached;
mod sealed;
mod spool;
mod stored;
mod tally;
mod update;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use syncd_shared::RootHash;
use syncd_shared::delta::DeltaEffort;
use syncd_shared::diff::PartLimits;
use syncd_shared::wire::ObjectsBatch;
use tokio::sync::{Semaphore, watch};

pub use contents::Contents;
pub use error::PlanError;
use objects::LastTree;
pub use objects::ObjectsAnswer;
use reached::Reached;
pub use spool::EncodedUpdate;

use spool::Spool;

/// Directory of spool files in DATA.
pub(crate) const SPOOL_DIRECTORY: &str = "spool";
/// Updates encoded at the same time; others wait.
const PLANS_AT_ONCE: usize = 2;

/// Limits of encoded updates.
#[derive(Debug, Clone, Copy)]
pub struct PlanBudget {
    /// Bytes in files, which also limits a single update.
    pub disk_bytes: u64,
    /// Bytes in memory.
    pub memory_bytes: u64,
    /// Number of updates, each of which may hold a file descriptor.
    pub updates: usize,
    /// Limits of one part of an update, which is held in memory while it is encoded.
    pub part: PartLimits,
}

impl Default for PlanBudget {
    fn default() -> Self {
        Self { disk_bytes: 1 << 30, memory_bytes: 16 << 20, updates: 128, part: PartLimits::default() }
    }
}

/// Decides the effort of an encoding when it begins.
pub type EffortRule = Box<dyn Fn() -> DeltaEffort + Send + Sync>;

type Key = (RootHash, RootHash);
type Outcome = Result<Arc<EncodedUpdate>, Arc<PlanError>>;

/// Plans updates and answers requests for objects. Cheap to clone.
#[derive(Clone)]
pub struct Planner {
    inner: Arc<Inner>,
}

struct Inner {
    contents: Arc<dyn Contents>,
    spool: Spool,
    budget: PlanBudget,
    effort: EffortRule,
    cache: Mutex<Cache>,
    last_tree: Arc<LastTree>,
    reached: Arc<Reached>,
    slots: Arc<Semaphore>,
    stopped: AtomicBool,
}

#[derive(Default)]
struct Cache {
    plans: HashMap<Key, Plan>,
    /// Use counter, for [`Plan::used`].
    clock: u64,
}

struct Plan {
    outcome: watch::Receiver<Option<Outcome>>,
    used: u64,
}

impl Plan {
    /// `None` while the plan is running; then the update, or `Some(None)` if it failed.
    fn encoded(&self) -> Option<Option<Arc<EncodedUpdate>>> {
        let outcome = self.outcome.borrow();
        let update = outcome.as_ref()?.as_ref().ok();
        update.is_none_or(|update| update.has_ended()).then(|| update.cloned())
    }
}

impl Planner {
    /// Like [`Planner::with_effort`], with little effort.
    #[cfg(any(test, feature = "testing"))]
    pub fn new(contents: Arc<dyn Contents>, data: &Path, budget: PlanBudget) -> Result<Self, PlanError> {
        Self::with_effort(contents, data, budget, Box::new(DeltaEffort::default))
    }

    /// Plans from `contents`, and spools under the data directory `data` within `budget`. Each update is
    /// encoded with the effort that `effort` says.
    pub fn with_effort(
        contents: Arc<dyn Contents>,
        data: &Path,
        budget: PlanBudget,
        effort: EffortRule,
    ) -> Result<Self, PlanError> {
        let spool = Spool::create(data.join(SPOOL_DIRECTORY), budget.disk_bytes)?;
        let inner = Inner {
            contents,
            spool,
            budget,
            effort,
            cache: Mutex::default(),
            last_tree: Arc::default(),
            reached: Arc::default(),
            slots: Arc::new(Semaphore::new(PLANS_AT_ONCE)),
            stopped: AtomicBool::new(false),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Returns the update between two roots, and encodes it if necessary. Concurrent callers share one
    /// encoding. An update too large for memory is returned once its first messages can be read. Cancel safe:
    /// the encoding continues without the caller.
    pub async fn update(&self, from: RootHash, to: RootHash) -> Outcome {
        let mut outcome = self.plan(from, to);
        match outcome.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(outcome)) => outcome.clone(),
            _ => Err(Arc::new(PlanError::Interrupted)),
        }
    }

    /// The answer to an objects request under a root. `request` is its ordinal on its stream.
    pub fn objects(&self, request: u64, root: RootHash, batch: ObjectsBatch) -> ObjectsAnswer {
        let Inner { contents, last_tree, reached, .. } = &*self.inner;
        ObjectsAnswer::new(contents.clone(), last_tree.clone(), reached.clone(), request, root, batch)
    }

    /// Cancels running plans and refuses new ones.
    pub fn stop(&self) {
        self.inner.stopped.store(true, Ordering::Relaxed);
    }

    fn plan(&self, from: RootHash, to: RootHash) -> watch::Receiver<Option<Outcome>> {
        let mut cache = self.inner.cache();
        cache.clock += 1;
        let used = cache.clock;
        if let Some(plan) = cache.plans.get_mut(&(from, to)) {
            plan.used = used;
            return plan.outcome.clone();
        }
        let (done, outcome) = watch::channel(None);
        cache.plans.insert((from, to), Plan { outcome: outcome.clone(), used });
        tokio::spawn(self.inner.clone().run(from, to, done));
        outcome
    }
}

impl Inner {
    fn cache(&self) -> MutexGuard<'_, Cache> {
        // A panic cannot leave the cache half changed.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(self: Arc<Self>, from: RootHash, to: RootHash, done: watch::Sender<Option<Outcome>>) {
        let _slot = self.slots.clone().acquire_owned().await;
        let (inner, early) = (self.clone(), done.clone());
        let started = Instant::now();
        let encoded = tokio::task::spawn_blocking(move || {
            inner.encode(from, to, &|update| drop(early.send_replace(Some(Ok(update)))))
        });
        let outcome = encoded.await.unwrap_or_else(|_| Err(Arc::new(PlanError::Interrupted)));
        if let Err(error) = &outcome {
            tracing::debug!(%from, %to, %error, "no update was planned");
            // Kept: an update that is too large now will be too large again, and finding out is expensive.
            if !matches!(**error, PlanError::TooLarge { .. }) {
                self.cache().plans.remove(&(from, to));
            }
        }
        done.send_replace(Some(outcome));
        crate::metrics::metrics().encoded(started.elapsed());
        self.evict();
        drop(tokio::task::spawn_blocking(move || syncd_allocator::give_back_after(started)));
    }

    fn encode(&self, from: RootHash, to: RootHash, publish: &dyn Fn(Arc<EncodedUpdate>)) -> Outcome {
        if let Ok(Some(root)) = self.contents.root(&to) {
            self.last_tree.forget_others(&root.object);
        }
        let mut writer = self.spool.writer(&from, &to, publish);
        let (part, effort) = (self.budget.part, (self.effort)());
        let encoded = update::encode(&*self.contents, from, to, part, effort, &mut |frame| {
            if self.stopped.load(Ordering::Relaxed) {
                return Err(PlanError::Interrupted);
            }
            writer.push(&frame)
        });
        writer.finish(encoded)
    }

    /// Drops the least recently used updates until the rest is within the budget. The newest is always kept.
    fn evict(&self) {
        let mut cache = self.cache();
        let mut done: Vec<_> = cache
            .plans
            .iter()
            .filter_map(|(key, plan)| plan.encoded().map(|encoded| (plan.used, *key, encoded)))
            .collect();
        done.sort_unstable_by_key(|(used, ..)| std::cmp::Reverse(*used));
        let (mut disk, mut memory) = (0, 0);
        for (place, (_, key, encoded)) in done.iter().enumerate() {
            let bytes = encoded.as_ref().map_or(0, |e| e.bytes());
            let sum = if encoded.as_ref().is_none_or(|e| e.is_inline()) { &mut memory } else { &mut disk };
            *sum += bytes;
            let within = disk <= self.budget.disk_bytes
                && memory <= self.budget.memory_bytes
                && place < self.budget.updates;
            if !within && place > 0 {
                cache.plans.remove(key);
                let sum =
                    if encoded.as_ref().is_none_or(|e| e.is_inline()) { &mut memory } else { &mut disk };
                *sum -= bytes;
            }
        }
        // Files are removed after the lock is released.
        drop(cache);
    }
}

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
