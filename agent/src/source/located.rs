//! Places outside the origin that an announcement names, as [`Source`]s before the origin.
//!
//! A place is asked for the object of the announced generation, which lists packs and updates. Only one that
//! has the same record as the announcement counts. A place that fails is not asked for a minute.

use std::time::{Duration, Instant};

use std::sync::{Arc, Mutex, PoisonError};

use syncd_runtime::bucket::BucketUrl;
use syncd_runtime::published::Reader;
use syncd_shared::text::{error_chain, one_line};
use syncd_shared::{RootHash, SignedGeneration, Totals};
use tokio_util::sync::CancellationToken;

use super::published::{PublishedSource, Released};
use super::{Batches, Elsewhere, FetchError, Frames, Source};

/// Names for the log, and the most places that are asked.
const NAMES: [&str; 2] = ["first location", "second location"];
/// Time for which a place that failed is not asked.
const AVOIDED: Duration = Duration::from_secs(60);
/// Bytes of a URL that are shown.
const SHOWN_BYTES: usize = 200;

/// The places that were named last. Kept from one attempt to the next, with what they listed.
#[derive(Default)]
pub(crate) struct Places {
    known: Vec<(String, Place)>,
}

#[derive(Clone)]
struct Place {
    reader: Reader,
    released: Released,
    avoid_until: Arc<Mutex<Option<Instant>>>,
}

impl Places {
    /// Sources for one attempt, until `abandoned` is cancelled.
    pub(crate) fn sources(
        &mut self,
        elsewhere: &Elsewhere<'_>,
        abandoned: &CancellationToken,
    ) -> Vec<(&'static str, Box<dyn Source>)> {
        self.known.retain(|(url, _)| elsewhere.locations.contains(url));
        let mut sources: Vec<(&'static str, Box<dyn Source>)> = Vec::new();
        for (url, name) in elsewhere.locations.iter().zip(NAMES) {
            let Some(place) = self.place(url) else { continue };
            if lock(&place.avoid_until).is_some_and(|until| Instant::now() < until) {
                continue;
            }
            let published =
                PublishedSource::new(place.reader.clone(), place.released.clone(), abandoned.clone());
            let generation = elsewhere.generation.clone();
            sources.push((name, Box::new(Located { place, generation, published })));
        }
        sources
    }

    /// `None`: this agent reads nothing from there.
    fn place(&mut self, url: &str) -> Option<Place> {
        if let Some((_, place)) = self.known.iter().find(|(known, _)| known == url) {
            return Some(place.clone());
        }
        let parsed: Option<BucketUrl> = url.parse().ok();
        // The origin names no directories of this machine.
        let opened = parsed.filter(BucketUrl::is_remote)?.open();
        let bucket = opened
            .inspect_err(|error| {
                let url = one_line(url, SHOWN_BYTES);
                tracing::warn!(url, error = error_chain(error), "the announced location is not used");
            })
            .ok()?;
        let place =
            Place { reader: Reader::new(bucket), released: Released::default(), avoid_until: Arc::default() };
        self.known.push((url.to_owned(), place.clone()));
        Some(place)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// See the module.
struct Located {
    place: Place,
    generation: SignedGeneration,
    published: PublishedSource,
}

impl Located {
    /// Reads what the place lists for the generation, once.
    fn open(&self, root: RootHash) -> Result<(), FetchError> {
        if self.generation.root_hash() != root {
            return Err(FetchError::UnknownRoot { root });
        }
        if self.place.released.has(root) {
            return Ok(());
        }
        let release = self.place.reader.release_of(&self.generation).inspect_err(|_| {
            *lock(&self.place.avoid_until) = Instant::now().checked_add(AVOIDED);
        })?;
        self.place.released.set(release);
        Ok(())
    }
}

impl Source for Located {
    fn expect(&mut self, totals: &Totals) {
        self.published.expect(totals);
    }

    fn update(&mut self, from: RootHash, to: RootHash) -> Result<Frames, FetchError> {
        self.open(to)?;
        self.published.update(from, to)
    }

    fn objects(&mut self, root: RootHash, batches: Batches) -> Result<Frames, FetchError> {
        self.open(root)?;
        self.published.objects(root, batches)
    }
}
