//! Publishes sealed generations to an object store: see [`syncd_shared::published`].
//!
//! One task follows the committer and works on the newest generation. It never holds up a commit: a store
//! that is slow or down leaves `head` at an older generation, which `status` shows, and the work is retried.
//! [`upload`] puts packs, then updates, then the generation, and `head` last, so that readers meet nothing
//! unfinished. [`contents`] finds what the store does not have yet.
//!
//! DATA/published holds the packs that were put since the last generation was, one a line. A restart goes on
//! from there.

mod contents;
mod error;
mod journal;
mod updates;
mod upload;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use syncd_runtime::bucket::{Bucket, BucketUrl};
use syncd_runtime::rate::Rate;
use syncd_shared::SignedGeneration;
use syncd_shared::limits::REASON_MAX_BYTES;
use syncd_shared::text::{error_chain, one_line};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::commit::OriginView;
use crate::keys::Keys;
use crate::plan::Planner;
use crate::store::Store;
pub use error::PublishError;
use upload::Upload;

/// Pauses between attempts.
const RETRY: [u64; 6] = [1, 2, 5, 15, 30, 60];

/// Options of publishing.
#[derive(Debug, Clone)]
pub struct PublishOptions {
    /// `--publish`.
    pub url: BucketUrl,
    /// `--publish-bwlimit`.
    pub bwlimit: Option<Rate>,
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

/// Parts of the origin that publishing needs.
pub struct Publisher {
    pub store: Arc<Store>,
    pub keys: Arc<Keys>,
    pub planner: Planner,
    pub data: PathBuf,
    pub options: PublishOptions,
}

impl Publisher {
    /// Starts the task. It publishes each generation that `origin` shows, or a later one, until `shutdown`.
    pub fn start(
        self,
        origin: watch::Receiver<OriginView>,
        shutdown: CancellationToken,
    ) -> (watch::Receiver<PublishView>, impl Future<Output = ()> + Send + 'static) {
        let url = self.options.url.to_string();
        let (sender, view) = watch::channel(PublishView { url, released: None, error: None });
        (view, self.run(origin, sender, shutdown))
    }

    async fn run(
        self,
        mut origin: watch::Receiver<OriginView>,
        view: watch::Sender<PublishView>,
        shutdown: CancellationToken,
    ) {
        let bucket = self.options.url.open();
        let mut upload = None;
        let mut failures = 0;
        loop {
            let current = origin.borrow_and_update().current.clone();
            let published = match current {
                Some(generation) if view.borrow().released == Some(generation.number().get()) => Ok(None),
                Some(generation) => self.publish(&bucket, &mut upload, &generation, &shutdown).await,
                None => Ok(None),
            };
            if shutdown.is_cancelled() {
                return;
            }
            failures = show(&view, published, failures);
            let changed = shutdown.run_until_cancelled(origin.changed());
            let ended = match failures {
                0 => !matches!(changed.await, Some(Ok(()))),
                _ => tokio::time::timeout(pause(failures), changed)
                    .await
                    .is_ok_and(|c| !matches!(c, Some(Ok(())))),
            };
            if ended {
                return;
            }
        }
    }

    /// Publishes one generation. `upload` is kept from one call to the next, and read from the store again
    /// after an error.
    async fn publish(
        &self,
        bucket: &Arc<dyn Bucket>,
        upload: &mut Option<Upload>,
        generation: &SignedGeneration,
        shutdown: &CancellationToken,
    ) -> Result<Option<u64>, PublishError> {
        let parts = upload::Parts {
            bucket: bucket.clone(),
            store: self.store.clone(),
            keys: self.keys.clone(),
            data: self.data.clone(),
            bwlimit: self.options.bwlimit,
            stop: shutdown.clone(),
        };
        let (kept, of) = (upload.take(), generation.clone());
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
            updates.extend(updates::encode(&self.planner, from, generation.root_hash()).await);
        }
        let of = generation.clone();
        let open = blocking(move || {
            open.publish(&of, updates)?;
            Ok(open)
        })
        .await?;
        *upload = Some(open);
        Ok(Some(generation.number().get()))
    }
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
