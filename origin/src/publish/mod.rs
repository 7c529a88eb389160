//! Publishes sealed generations to an object store: see [`syncd_shared::published`].
//!
//! One task follows the rollouts and works on the newest released generation. It never holds up a commit: a
//! store that is slow or down leaves `head` at an older generation, which `status` shows, and the work is
//! retried. [`upload`] puts packs, then updates, then the generation, and `head` last, so that readers meet
//! nothing unfinished. [`contents`] finds what the store does not have yet.
//!
//! DATA/published holds what differs from the last published generation ([`journal`]). A restart goes on
//! from there. [`keeper`] checks the object store and deletes what nobody needs, beside the task.

mod contents;
mod error;
mod fenced;
mod import;
mod journal;
mod keeper;
mod locations;
mod probe;
mod requests;
mod share;
mod take_over;
#[cfg(test)]
mod tests;
mod updates;
mod upload;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use syncd_runtime::bucket::{Bucket, BucketUrl};
use syncd_runtime::rate::Rate;
use syncd_shared::limits::REASON_MAX_BYTES;
use syncd_shared::published::PublishedError;
use syncd_shared::published::fencing::Reason;
use syncd_shared::text::{error_chain, one_line};
use syncd_shared::{GenerationNumber, SignedGeneration};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::fleet::rollout::RolloutView;
use crate::keys::Keys;
use crate::plan::Planner;
use crate::store::Store;
pub use error::PublishError;
pub use fenced::{FenceError, FencedCommits};
use journal::Journal;
use keeper::Keeper;
pub use locations::Locations;
use locations::Placed;
pub use requests::{PublishAction, PublishRequests};
pub use take_over::{Successor, TakeOverError, restore};
use upload::Upload;

/// Pauses between attempts.
const RETRY: [u64; 6] = [1, 2, 5, 15, 30, 60];

/// Pause between two looks at `head` while nothing is committed.
const LOOK: Duration = Duration::from_secs(60);

/// Orders that wait for an attempt to end.
const ORDERS: usize = 4;

/// Options of publishing.
#[derive(Debug, Clone)]
pub struct PublishOptions {
    /// `--publish`.
    pub url: BucketUrl,
    /// `--publish-read`: where agents are told to read.
    pub read: Option<BucketUrl>,
    /// `--fenced`.
    pub fenced: bool,
    /// Set when another origin was found to be promoted.
    pub deposed: Deposed,
    /// `--publish-bwlimit`.
    pub bwlimit: Option<Rate>,
}

/// Whether another origin was found to be promoted. Then this one commits nothing and serves no agent.
#[derive(Debug, Clone, Default)]
pub struct Deposed {
    reason: Arc<OnceLock<Reason>>,
    found: CancellationToken,
}

impl Deposed {
    pub fn reason(&self) -> Option<Reason> {
        self.reason.get().copied()
    }

    /// Completes when it is found. Cancel safe.
    pub async fn found(&self) {
        self.found.cancelled().await;
    }

    fn set(&self, reason: Reason) {
        if self.reason.set(reason).is_ok() {
            self.found.cancel();
        }
    }
}

/// State of publishing, for `status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishView {
    /// Escaped for printing.
    pub url: String,
    /// The generation that `head` names.
    pub released: Option<u64>,
    /// Why the last attempt failed.
    pub error: Option<String>,
}

/// A change of what the object store counts as having, which the task makes between two attempts.
#[derive(Debug)]
pub(crate) enum Order {
    /// The next generation does not list these packs. Content of them that is in use is put again.
    Drop(Vec<[u8; 32]>),
    /// These packs and updates are missing or damaged: the generation is put again without them, at once.
    Lose(Vec<[u8; 32]>),
}

/// Parts of the origin that publishing needs.
pub struct Publisher {
    /// The object store at the URL of the options.
    pub bucket: Arc<dyn Bucket>,
    pub store: Arc<Store>,
    pub keys: Arc<Keys>,
    pub planner: Planner,
    pub data: PathBuf,
    pub options: PublishOptions,
}

impl Publisher {
    /// Starts the task. It publishes each generation whose rollout has ended well, or a later one, until
    /// `shutdown`.
    pub fn start(
        self,
        rollout: watch::Receiver<Arc<RolloutView>>,
        shutdown: CancellationToken,
    ) -> (PublishRequests, impl Future<Output = ()> + Send + 'static) {
        let url = self.options.url.to_string();
        let (sender, view) = watch::channel(PublishView { url, released: None, error: None });
        let (orders, receiver) = mpsc::channel(ORDERS);
        let (store, keys, data) = (self.store.clone(), self.keys.clone(), self.data.clone());
        let keeper = Arc::new(Keeper { bucket: self.bucket.clone(), store, keys, data });
        let placed = watch::Sender::new(Placed::default());
        let read = self.options.read.as_ref();
        let locations = read.map(|url| Locations::new(url, placed.subscribe()));
        let requests = PublishRequests { keeper: keeper.clone(), view, orders, locations };
        let task =
            Task { publisher: self, keeper, upload: None, whole: None, view: sender, placed, shutdown };
        (requests, task.run(rollout, receiver))
    }
}

/// The task that publishes.
struct Task {
    publisher: Publisher,
    keeper: Arc<Keeper>,
    /// Kept from one generation to the next, and read from the store again after an error.
    upload: Option<Upload>,
    /// The generation that was seen to be published whole since the start.
    whole: Option<u64>,
    view: watch::Sender<PublishView>,
    placed: watch::Sender<Placed>,
    shutdown: CancellationToken,
}

impl Task {
    async fn run(
        mut self,
        mut rollout: watch::Receiver<Arc<RolloutView>>,
        mut orders: mpsc::Receiver<Order>,
    ) {
        let mut failures = 0;
        self.show_head().await;
        loop {
            let view = rollout.borrow_and_update().clone();
            let published = match self.place(&view).await {
                Ok(()) => self.release(&view).await,
                failed => failed.map(|()| None),
            };
            if self.shutdown.is_cancelled() {
                return;
            }
            if let Err(PublishError::Held(reason @ Reason::Deposed { .. })) = &published {
                self.publisher.options.deposed.set(*reason);
            }
            if let Ok(Some(number)) = published {
                self.whole = Some(number);
            }
            failures = show(&self.view, published, failures);
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                changed = rollout.changed() => if changed.is_err() { return },
                Some(order) = orders.recv() => self.take(order),
                () = tokio::time::sleep(pause(failures)), if failures > 0 => {}
                () = tokio::time::sleep(LOOK), if failures == 0 => self.look().await,
            }
        }
    }

    /// Puts the newest generation if agents are told where it is, before they are told.
    async fn place(&mut self, view: &RolloutView) -> Result<(), PublishError> {
        let newest = view.newest.filter(|_| self.publisher.options.read.is_some());
        let Some(number) = newest.filter(|number| !self.placed.borrow().has(*number)) else { return Ok(()) };
        let placed = self.put_newest(number).await;
        self.placed.send_modify(|known| known.note(number, placed.is_ok()));
        placed
    }

    async fn put_newest(&mut self, number: u64) -> Result<(), PublishError> {
        let Some(number) = GenerationNumber::new(number) else { return Ok(()) };
        let store = self.publisher.store.clone();
        let stored = blocking(move || Ok(store.generation(number)?)).await?;
        let Some(stored) = stored else { return Ok(()) };
        let signed = self.publisher.keys.verify(&stored.record, &stored.signature);
        self.publish(&signed.map_err(PublishedError::from)?, Until::Placed).await
    }

    /// Publishes the newest generation whose rollout has ended. Returns its number if it was not yet.
    async fn release(&mut self, view: &RolloutView) -> Result<Option<u64>, PublishError> {
        let Some(generation) = view.released.as_deref() else { return Ok(None) };
        let number = generation.number().get();
        if self.whole == Some(number) {
            return Ok(None);
        }
        self.publish(generation, Until::Released).await?;
        self.placed.send_modify(|known| known.note(number, true));
        Ok(Some(number))
    }

    /// Shows which generation followers get before anything is published. An object store that does not
    /// answer is noticed by the first attempt.
    async fn show_head(&self) {
        let keeper = self.keeper.clone();
        let head = tokio::task::spawn_blocking(move || keeper.head()).await;
        if let Ok(Ok(head)) = head {
            self.view.send_modify(|view| view.released = Some(head.number.get()));
        }
    }

    /// Publishes again unless `head` names what was published: the store may be emptied, or gone.
    async fn look(&mut self) {
        let keeper = self.keeper.clone();
        let head = tokio::task::spawn_blocking(move || keeper.head()).await;
        let named = head.ok().and_then(Result::ok).map(|head| head.number.get());
        if named != self.whole {
            (self.whole, self.upload) = (None, None);
        }
    }

    /// Carries out an order with the next attempt, which begins at once.
    fn take(&mut self, order: Order) {
        let journal = Journal::new(&self.publisher.data);
        let noted = match order {
            Order::Drop(names) => journal.drop_packs(&names),
            Order::Lose(names) => {
                self.whole = None;
                journal.lose(&names)
            }
        };
        self.upload = None;
        show(&self.view, noted.map(|()| None), 0);
    }

    /// Publishes one generation.
    async fn publish(&mut self, generation: &SignedGeneration, until: Until) -> Result<(), PublishError> {
        let Publisher { bucket, store, keys, planner, data, options } = &self.publisher;
        let parts = upload::Parts {
            bucket: bucket.clone(),
            store: store.clone(),
            keys: keys.clone(),
            data: data.clone(),
            bwlimit: options.bwlimit,
            stop: self.shutdown.clone(),
        };
        let (kept, of) = (self.upload.take(), generation.clone());
        let (mut open, bases) = blocking(move || {
            let open = match kept {
                Some(open) => open,
                None => Upload::open(parts, &of)?,
            };
            let bases = open.bases(&of)?;
            Ok((open, bases))
        })
        .await?;
        let mut updates = Vec::new();
        for from in bases {
            updates.extend(updates::encode(planner, from, generation.root_hash()).await);
        }
        let of = generation.clone();
        let open = blocking(move || {
            open.place(&of, updates)?;
            if until == Until::Released {
                open.move_head(&of)?;
            }
            Ok(open)
        })
        .await?;
        self.upload = Some(open);
        Ok(())
    }
}

/// The last step of publishing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    /// Everything is there, and `head` does not name it.
    Placed,
    Released,
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PublishError> + Send + 'static,
) -> Result<T, PublishError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(PublishError::Stopped))
}

/// Shows and logs the result. Returns the number of failures in a row.
fn show(
    view: &watch::Sender<PublishView>,
    published: Result<Option<u64>, PublishError>,
    failures: usize,
) -> usize {
    match published {
        Ok(None) => 0,
        Ok(released) => {
            view.send_modify(|view| (view.released, view.error) = (released, None));
            tracing::info!(generation = released, "published");
            0
        }
        Err(error) => {
            let text = one_line(&error_chain(&error), REASON_MAX_BYTES);
            if view.borrow().error.as_ref() != Some(&text) {
                tracing::warn!(error = text, "publishing failed; the origin serves on, and it is retried");
            }
            view.send_modify(|view| view.error = Some(text));
            failures.saturating_add(1)
        }
    }
}

fn pause(failures: usize) -> Duration {
    let last = RETRY.len() - 1;
    Duration::from_secs(RETRY[failures.saturating_sub(1).min(last)])
}
