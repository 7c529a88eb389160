//! An origin in place of another one, from what that one has published: restored on a new host, or on
//! standby until it is promoted.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use syncd_runtime::bucket::{Bucket, BucketError, OpenBucketError};
use syncd_runtime::published::{ReadError, Reader};
use syncd_shared::identity::SignedTrust;
use syncd_shared::published::{self, PublishedError, RELEASE_MAX_BYTES, Release};
use syncd_shared::text::error_chain;
use syncd_shared::{GenerationNumber, Head, SignedGeneration};

use super::import::{ImportError, import};
use crate::commit::Promotion;
use crate::keys::{Keys, KeysError};
use crate::store::{OpenStoreError, Store, StoreError};

/// Reasons why an origin does not take the place of another one.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error(transparent)]
    OpenStore(#[from] OpenStoreError),
    #[error("read the store")]
    Store(#[from] StoreError),
    #[error(transparent)]
    OpenBucket(#[from] OpenBucketError),
    #[error("read the published tree")]
    Read(#[from] ReadError),
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error(
        "{data} has no keys of the tree: put `format` and `keys` of the old origin there, owned by the user of the \
         origin. `syncd-origin init` would make new keys, which no node trusts",
        data = data.display()
    )]
    NoKeys { data: PathBuf },
    #[error("{data} has generations already: `syncd-origin serve` uses it as it is", data = data.display())]
    NotEmpty { data: PathBuf },
    #[error("keys were replaced since these were copied: nodes trust document {published}, here is {here}")]
    KeysTooOld { here: u32, published: u32 },
    #[error(
        "no epoch or number can follow under this signing key: replace it with `syncd-origin key rotate --signing`"
    )]
    NoPlaceLeft,
    #[error("there is no generation yet that this origin could go on from")]
    NoGeneration,
}

impl From<BucketError> for TakeOverError {
    fn from(error: BucketError) -> Self {
        Self::Read(error.into())
    }
}

impl From<PublishedError> for TakeOverError {
    fn from(error: PublishedError) -> Self {
        Self::Read(error.into())
    }
}

/// A published tree and the keys that it is checked with. All calls block.
pub struct Successor {
    bucket: Arc<dyn Bucket>,
    keys: Arc<Keys>,
    store: Arc<Store>,
}

impl Successor {
    /// Opens `data`, which holds the keys of the tree. Creates the store if there is none.
    pub fn open(data: &Path, bucket: Arc<dyn Bucket>) -> Result<Self, TakeOverError> {
        let keys = Arc::new(Keys::open(data).map_err(|error| match error {
            KeysError::NotInitialised { data } => TakeOverError::NoKeys { data },
            error => error.into(),
        })?);
        let store = if Store::exists(data) { Store::open(data)? } else { Store::create(data)? };
        Ok(Self { bucket, keys, store: Arc::new(store) })
    }

    pub fn keys(&self) -> &Arc<Keys> {
        &self.keys
    }

    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The last generation that the store has.
    fn latest(&self) -> Result<Option<(u32, GenerationNumber)>, StoreError> {
        let latest = self.store.latest()?;
        Ok(latest.map(|latest| (latest.generation.epoch, latest.generation.number)))
    }

    fn head(&self, reader: &Reader) -> Result<(Head, SignedGeneration, Release), TakeOverError> {
        let object = reader.head_object()?;
        let trust = SignedTrust::of_tree(published::trust_bytes(&object)?, self.keys.tree_id());
        let (here, published) = (self.keys.trust().number(), trust.map_err(PublishedError::from)?.number());
        if published > here {
            return Err(TakeOverError::KeysTooOld { here, published });
        }
        Ok(reader.release(&object, self.keys.trust().document())?)
    }

    /// Whether the published tree goes on from where this origin was promoted, or before: no origin was
    /// promoted since.
    pub fn is_promoted(&self) -> Result<bool, TakeOverError> {
        let Some(promotion) = Promotion::load(&self.store)? else { return Ok(false) };
        match self.head(&Reader::new(self.bucket.clone())) {
            Ok((head, ..)) => Ok(head.epoch <= promotion.epoch),
            // A promoted origin serves, whatever the object store does.
            Err(TakeOverError::Read(_)) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Takes the released generation, if it is newer than what the store has. Returns its number then.
    pub fn follow(&self) -> Result<Option<GenerationNumber>, TakeOverError> {
        let reader = Reader::new(self.bucket.clone());
        let (head, generation, release) = self.head(&reader)?;
        if self.latest()?.is_some_and(|latest| latest >= (head.epoch, head.number)) {
            return Ok(None);
        }
        let index = reader.index(&release)?;
        import(&reader, &index, &self.store, &generation, |_| Ok(()))?;
        Ok(Some(head.number))
    }

    /// The first place after everything that is in the store, or was published.
    fn place(&self) -> Result<Promotion, TakeOverError> {
        let (mut epoch, mut number) = self.latest()?.ok_or(TakeOverError::NoGeneration)?;
        if let Some(earlier) = Promotion::load(&self.store)? {
            (epoch, number) = (epoch.max(earlier.epoch), number.max(earlier.number));
        }
        match self.highest() {
            Ok(Some((published_epoch, last))) => {
                (epoch, number) = (epoch.max(published_epoch), number.max(last));
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(
                error = error_chain(&error),
                "the object store is not read: this origin goes on from what it has"
            ),
        }
        Promotion::after(epoch, number, self.keys.trust().document()).ok_or(TakeOverError::NoPlaceLeft)
    }

    /// Epoch and number of the last published generation, released or not. Objects that this tree's keys
    /// have not signed count for nothing, whatever their name says.
    fn highest(&self) -> Result<Option<(u32, GenerationNumber)>, TakeOverError> {
        let listed = self.bucket.list("gen/")?;
        let mut numbers: Vec<_> =
            listed.iter().filter_map(|object| published::generation_of_name(&object.name)).collect();
        numbers.sort_unstable();
        for number in numbers.into_iter().rev() {
            let name = published::generation_name(number);
            let Some(object) = self.bucket.get(&name, RELEASE_MAX_BYTES)? else { continue };
            match self.verified(&object, number) {
                Ok(epoch) => return Ok(Some((epoch, number))),
                Err(error) => {
                    let error = error_chain(&error);
                    tracing::warn!(name, error, "this is no generation of this tree: delete it");
                }
            }
        }
        Ok(None)
    }

    /// The epoch of a published generation.
    fn verified(&self, object: &[u8], number: GenerationNumber) -> Result<u32, PublishedError> {
        let release = Release::decode(object)?;
        self.keys.verify(release.record(), release.signature())?;
        if release.generation.number != number {
            return Err(PublishedError::Form { object: "a published generation" });
        }
        Ok(release.generation.epoch)
    }

    /// Makes this the origin of the tree from its next start on, durably. Returns the place of its first
    /// generation.
    pub fn promote(&self) -> Result<Promotion, TakeOverError> {
        let promotion = self.place()?;
        self.store.update_records(|records| promotion.put(records))?;
        Ok(promotion)
    }
}

/// Makes an origin in `data`, which holds the keys of the tree and nothing else, from a published tree.
/// Returns the restored generation and the place of the next one. Can be repeated after a failure.
pub fn restore(data: &Path, bucket: Arc<dyn Bucket>) -> Result<(GenerationNumber, Promotion), TakeOverError> {
    let successor = Successor::open(data, bucket)?;
    if successor.store.latest()?.is_some() {
        return Err(TakeOverError::NotEmpty { data: data.to_owned() });
    }
    let reader = Reader::new(successor.bucket.clone());
    let (head, generation, release) = successor.head(&reader)?;
    let (epoch, number) = successor.highest()?.unwrap_or((head.epoch, head.number));
    let document = successor.keys.trust();
    let place = Promotion::after(epoch.max(head.epoch), number.max(head.number), document.document());
    let promotion = place.ok_or(TakeOverError::NoPlaceLeft)?;
    let index = reader.index(&release)?;
    import(&reader, &index, &successor.store, &generation, |records| promotion.put(records))?;
    Ok((head.number, promotion))
}
