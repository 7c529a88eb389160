//! The task that follows the fleet and purges when it is time.

use std::collections::BTreeSet;
use std::time::Duration;

use syncd_shared::limits::REASON_MAX_BYTES;
use syncd_shared::text::{error_chain, one_line};
use syncd_shared::{RootHash, SignedGeneration};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::job::Job;
use super::machine::{Facts, Known, Next, Purging, Serving, Target, Work};
use super::{PurgeError, PurgeView, Purger, record};
use crate::clock::now_ms;
use crate::fleet::AgentView;
use crate::store::{Store, StoreError};

/// Pauses between attempts, in seconds.
const RETRY: [u64; 8] = [1, 2, 5, 15, 30, 60, 120, 300];

type Running = Option<JoinHandle<(Job, Result<(), PurgeError>)>>;

/// The task's state.
pub(super) struct Task {
    purger: Purger,
    purging: Purging,
    /// The purge that runs or failed.
    job: Option<Job>,
    running: Running,
    /// Time of the next attempt, or of the next look without news.
    wake_at: Option<Instant>,
    view: watch::Sender<PurgeView>,
}

impl Task {
    pub(super) fn new(purger: Purger, known: Known, view: watch::Sender<PurgeView>) -> Self {
        let purging = Purging::new(known, now_ms());
        Self { purger, purging, job: None, running: None, wake_at: None, view }
    }

    pub(super) async fn run(mut self) {
        loop {
            if self.running.is_none() && !self.is_pausing() {
                self.advance().await;
            }
            let Purger { fleet, rollout, committer, shutdown, .. } = &mut self.purger;
            let is_over = tokio::select! {
                () = shutdown.cancelled() => true,
                changed = fleet.changed() => changed.is_err(),
                changed = rollout.changed() => changed.is_err(),
                changed = committer.changed() => changed.is_err(),
                () = until(self.wake_at) => {
                    self.wake_at = None;
                    false
                }
                ended = finished(&mut self.running) => {
                    match ended {
                        Some((job, result)) => self.ended(job, result).await,
                        None => self.failed(&PurgeError::Interrupted),
                    }
                    false
                }
            };
            if is_over {
                break;
            }
        }
        // The command is killed by the same token.
        if let Some(running) = self.running.take() {
            let _ = running.await;
        }
    }

    /// Whether a failed attempt is to be repeated later.
    fn is_pausing(&self) -> bool {
        self.view.borrow().failures > 0 && self.wake_at.is_some()
    }

    /// Looks at the fleet, and starts a purge when it is time.
    async fn advance(&mut self) {
        self.wake_at = None;
        let before = self.purging.known.clone();
        let next = match self.facts().await {
            Ok(Some(facts)) => self.purging.look(&facts, now_ms()),
            Ok(None) => return,
            Err(error) => return self.failed(&error),
        };
        if self.purging.known != before
            && let Err(error) = self.save().await
        {
            return self.failed(&error);
        }
        let due = match &next {
            Next::Nothing => None,
            Next::Wait(_) => self.newest().map(|newest| newest.number),
            Next::Purge(work) => Some(work.target.number),
        };
        let generation = self.purging.known.done.map(|done| done.number);
        self.view.send_if_modified(|view| {
            let changed = (view.generation, view.due) != (generation, due);
            (view.generation, view.due) = (generation, due);
            changed
        });
        match next {
            Next::Nothing | Next::Wait(None) => {}
            Next::Wait(Some(at_ms)) => {
                let pause = u64::try_from(at_ms.saturating_sub(now_ms())).unwrap_or(0);
                self.wake_at = Some(Instant::now() + Duration::from_millis(pause.saturating_add(1)));
            }
            Next::Purge(work) => self.start(work),
        }
    }

    fn newest(&self) -> Option<Target> {
        let committer = self.purger.committer.borrow();
        committer.current.as_ref().map(target)
    }

    async fn facts(&self) -> Result<Option<Facts>, PurgeError> {
        let Some(newest) = self.newest() else { return Ok(None) };
        let is_rolling = {
            let rollout = self.purger.rollout.borrow();
            rollout.running().is_some() || rollout.withdrawal.is_some()
        };
        let nodes = self.purger.fleet.borrow().agents.iter().filter_map(serving).collect();
        let sealed = match self.purging.known.done {
            Some(done) if done != newest => {
                let store = self.purger.store.clone();
                blocking(move || sealed_since(&store, done.number)).await?
            }
            _ => None,
        };
        Ok(Some(Facts { newest, is_rolling, nodes, sealed }))
    }

    /// Starts a purge, or goes on with the one that failed.
    fn start(&mut self, work: Work) {
        let Purger { store, options, shutdown, .. } = &self.purger;
        let (store, options, stop) = (store.clone(), options.clone(), shutdown.clone());
        let kept = self.job.take().filter(|job| job.work == work);
        self.running = Some(tokio::task::spawn_blocking(move || {
            let mut job = kept.unwrap_or_else(|| Job::new(work, &store, &options.sites));
            let result = job.run(&options.command, &stop);
            (job, result)
        }));
    }

    async fn ended(&mut self, job: Job, result: Result<(), PurgeError>) {
        if let Err(error) = result {
            self.job = Some(job);
            return self.failed(&error);
        }
        let before = self.purging.known.clone();
        self.purging.done(&job.work);
        if let Err(error) = self.save().await {
            self.purging.known = before;
            self.job = Some(job);
            return self.failed(&error);
        }
        let generation = job.work.target.number;
        tracing::info!(generation, purged = job.summary(), "caches in front of the fleet were purged");
        let view = PurgeView { generation: Some(generation), ..PurgeView::default() };
        self.view.send_replace(view);
    }

    fn failed(&mut self, error: &PurgeError) {
        if self.purger.shutdown.is_cancelled() {
            return;
        }
        let text = one_line(&error_chain(error), REASON_MAX_BYTES);
        tracing::warn!(error = text, "purging caches in front of the fleet failed and will be retried");
        let failures = self.view.borrow().failures;
        let pause = RETRY[usize::try_from(failures).unwrap_or(usize::MAX).min(RETRY.len() - 1)];
        self.wake_at = Some(Instant::now() + Duration::from_secs(pause));
        self.view.send_modify(|view| {
            view.failures = failures.saturating_add(1);
            view.error = Some(text);
        });
    }

    async fn save(&self) -> Result<(), PurgeError> {
        let (store, known) = (self.purger.store.clone(), self.purging.known.clone());
        blocking(move || record::save(&store, known)).await
    }
}

fn target(generation: &SignedGeneration) -> Target {
    Target { number: generation.number().get(), root: generation.root_hash() }
}

/// `None`: it serves nothing yet.
fn serving(agent: &AgentView) -> Option<Serving> {
    let is_awaited = agent.connected && !agent.is_pinned();
    Some(Serving { root: agent.root?, is_switching: agent.is_hook_due(), is_awaited })
}

/// Trees of the generations after this one; `None` if they may not all be known any more.
fn sealed_since(store: &Store, number: u64) -> Result<Option<BTreeSet<RootHash>>, StoreError> {
    let generations = store.generations()?;
    let is_complete = generations.first().is_some_and(|first| first.generation.number.get() <= number);
    let later = generations.iter().filter(|stored| stored.generation.number.get() > number);
    Ok(is_complete.then(|| later.map(|stored| stored.generation.root.hash()).collect()))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, PurgeError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(PurgeError::Interrupted),
    }
}

/// Never returns for `None`.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Waits for the purge that runs. Cancel safe.
async fn finished(running: &mut Running) -> Option<(Job, Result<(), PurgeError>)> {
    let Some(run) = running else { return std::future::pending().await };
    let ended = run.await.ok();
    *running = None;
    ended
}
