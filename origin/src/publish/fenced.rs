//! `serve --fenced`: a commit is the creation of the generation's object, which the object store grants to
//! one origin. See [`syncd_shared::published::fencing`].
//!
//! The object lists nothing at first, and no reader asks for it: `head` does not name it. Publishing replaces
//! it by one that lists the content. A number whose local seal fails after that is used up.
//!
//! The record `publish`/`nonces` has the nonces of all starts, 16 bytes each, the newest last.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use syncd_runtime::bucket::{Bucket, BucketError};
use syncd_shared::published::fencing::{Author, Fence, PROMOTION_JUMP, Reason, Verdict};
use syncd_shared::published::{self, Nonce, PublishedError, RELEASE_MAX_BYTES, Release};
use syncd_shared::text::error_chain;
use syncd_shared::{GenerationNumber, SignedGeneration};

use super::probe::{ProbeError, probe};
use crate::commit::Promotion;
use crate::keys::Keys;
use crate::store::{Store, StoreError};

const NAMESPACE: &str = "publish";
const NAME: &[u8] = b"nonces";
/// Nonces that are remembered. Late requests of before more starts than this would hold the origin.
const NONCES_MAX: usize = 4096;
/// See [`FencedCommits::deadline`].
const DEADLINE: Duration = Duration::from_secs(20);
/// Pause before a request is repeated.
const PAUSE: Duration = Duration::from_millis(250);

/// Reasons why nothing is committed in fenced mode, with the next step.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    #[error("{0}. Stop it, or start it with --standby")]
    Held(#[from] Reason),
    #[error("the object store does not answer, and --fenced publishes nothing without it; it is retried")]
    Unanswered(#[source] BucketError),
    #[error("the object store has something else under the next number, {number}")]
    Foreign { number: u64, source: PublishedError },
    #[error("read or write the nonces of this origin")]
    Store(#[from] StoreError),
    #[error("draw a random number")]
    Random(#[from] getrandom::Error),
    #[error("the object store can't fence: start without --fenced, or publish elsewhere")]
    Probe(#[from] ProbeError),
    /// The signing key has no number left.
    #[error("the next number, {number}, is beyond those of the signing key")]
    NoNumberLeft { number: u64 },
}

/// The right of this origin to commit. All calls block.
#[derive(Debug)]
pub struct FencedCommits {
    bucket: Arc<dyn Bucket>,
    /// Whether the store has shown that it can fence.
    probed: AtomicBool,
    keys: Arc<Keys>,
    earlier: Vec<Nonce>,
    nonce: Nonce,
    /// `None` until the first commit, which decides the epoch.
    fence: Mutex<Option<Fence>>,
    /// Time within which the object store must have answered.
    deadline: Duration,
}

impl FencedCommits {
    /// Draws a nonce, which is durable on return. Probes the object store: with the first commit, if it does
    /// not answer now.
    pub fn open(bucket: Arc<dyn Bucket>, store: &Store, keys: Arc<Keys>) -> Result<Self, FenceError> {
        let probed = match probe(&*bucket) {
            Err(ProbeError::Bucket(error)) => {
                let error = error_chain(&error);
                tracing::warn!(
                    error,
                    "the object store does not answer: agents are served, and nothing is committed"
                );
                false
            }
            probed => probed.map(|()| true)?,
        };
        let stored = store.record(NAMESPACE, NAME)?.unwrap_or_default();
        let (earlier, _) = stored.as_chunks::<16>();
        let skipped = earlier.len().saturating_sub(NONCES_MAX);
        let earlier = earlier.get(skipped..).unwrap_or_default().to_vec();
        let mut nonce = Nonce::default();
        getrandom::fill(&mut nonce)?;
        let all = [earlier.concat(), nonce.to_vec()].concat();
        store.update_records(|records| records.put(NAMESPACE, NAME, &all))?;
        let (probed, fence) = (AtomicBool::new(probed), Mutex::default());
        Ok(Self { bucket, probed, keys, earlier, nonce, fence, deadline: DEADLINE })
    }

    /// Waits for an answer for this long.
    #[cfg(any(test, feature = "testing"))]
    pub fn within(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// Commits `wanted` under the next number, which is at least its own: signs it again where that differs.
    /// `current` is the generation before.
    pub fn commit(
        &self,
        wanted: SignedGeneration,
        current: Option<&SignedGeneration>,
        promotion: Option<Promotion>,
    ) -> Result<SignedGeneration, FenceError> {
        if !self.probed.load(Ordering::Relaxed) {
            probe(&*self.bucket)?;
            self.probed.store(true, Ordering::Relaxed);
        }
        let mut fence = self.fence.lock().unwrap_or_else(PoisonError::into_inner);
        let known = fence.take().filter(|fence| fence.author().epoch == wanted.epoch());
        let fence = fence.insert(known.unwrap_or_else(|| self.fence(&wanted, current, promotion)));
        fence.at_least(wanted.number().get());
        loop {
            let number = fence.offer()?;
            let offered = self.numbered(&wanted, number)?;
            if self.create(fence, &offered)? == Verdict::Committed {
                return Ok(offered);
            }
            tracing::warn!(number, "the number is used already: it is skipped");
        }
    }

    fn fence(
        &self,
        wanted: &SignedGeneration,
        current: Option<&SignedGeneration>,
        promotion: Option<Promotion>,
    ) -> Fence {
        let own = Author { epoch: wanted.epoch(), nonce: self.nonce };
        let last = current.map_or(0, |current| current.number().get());
        let takes_over = promotion.is_some_and(|promotion| {
            promotion.epoch == wanted.epoch()
                && current.is_some_and(|current| current.epoch() < promotion.epoch)
        });
        match takes_over {
            true => Fence::promoted(own, self.earlier.clone(), last, PROMOTION_JUMP),
            false => Fence::started(own, self.earlier.clone(), last),
        }
    }

    fn numbered(&self, wanted: &SignedGeneration, number: u64) -> Result<SignedGeneration, FenceError> {
        if wanted.number().get() == number {
            return Ok(wanted.clone());
        }
        let left = FenceError::NoNumberLeft { number };
        let Some(number) = GenerationNumber::new(number) else { return Err(left) };
        let trust = self.keys.trust();
        trust.document().check_place(wanted.epoch(), number).map_err(|_| left)?;
        let mut generation = wanted.generation().clone();
        generation.number = number;
        Ok(self.keys.sign(generation))
    }

    /// Creates the object, until its fate is known.
    fn create(&self, fence: &mut Fence, offered: &SignedGeneration) -> Result<Verdict, FenceError> {
        let object = Release::new(offered, self.nonce, Vec::new(), Vec::new()).encode();
        let name = published::generation_name(offered.number());
        let started = Instant::now();
        loop {
            let (verdict, failed) = match self.bucket.create(&name, object.clone().into()) {
                Ok(true) => (fence.created(), None),
                Ok(false) => (self.read_back(fence, offered)?, None),
                Err(error) => match self.read_back(fence, offered) {
                    Err(FenceError::Unanswered(_)) => (Verdict::Retry, Some(error)),
                    verdict => (verdict?, Some(error)),
                },
            };
            match verdict {
                Verdict::Held(reason) => return Err(reason.into()),
                Verdict::Retry if started.elapsed() < self.deadline => std::thread::sleep(PAUSE),
                Verdict::Retry => {
                    let failed = failed.unwrap_or_else(|| BucketError::unanswered("create", &name));
                    return Err(FenceError::Unanswered(failed));
                }
                Verdict::Committed | Verdict::Skipped => return Ok(verdict),
            }
        }
    }

    fn read_back(&self, fence: &mut Fence, offered: &SignedGeneration) -> Result<Verdict, FenceError> {
        let name = published::generation_name(offered.number());
        let object = self.bucket.get(&name, RELEASE_MAX_BYTES).map_err(FenceError::Unanswered)?;
        let Some(object) = object else { return Ok(fence.found(None, false)) };
        let foreign = |source| FenceError::Foreign { number: offered.number().get(), source };
        let there = Release::decode(&object).map_err(foreign)?;
        // Nobody else may depose this origin, even with the right to write to the store.
        let signed = self.keys.verify(there.record(), there.signature());
        signed.map_err(|error| foreign(error.into()))?;
        let author = Author { epoch: there.generation.epoch, nonce: there.nonce };
        Ok(fence.found(Some(author), there.record() == offered.record()))
    }
}
