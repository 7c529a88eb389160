//! Reasons why a generation is not published.

use std::path::PathBuf;

use syncd_runtime::bucket::BucketError;
use syncd_shared::published::PublishedError;
use syncd_shared::published::fencing::Reason;
use syncd_shared::{ContentHash, ObjectHash};

use crate::store::StoreError;

#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error(transparent)]
    Bucket(#[from] BucketError),
    #[error("read the store")]
    Store(#[from] StoreError),
    /// An object of the store is not what this origin, or another of its tree, has put there.
    #[error("the object store has something else than this tree")]
    Published(#[from] PublishedError),
    /// Bytes of the object have changed in the object store.
    #[error("{name} in the object store is damaged")]
    Damaged { name: String, source: PublishedError },
    #[error("object {name} is missing in the object store: it is put again")]
    Missing { name: String },
    /// The pack was put, and then nobody listed it for longer than the grace.
    #[error("{name} is about to be deleted: it is put again under another name")]
    Garbage { name: String },
    #[error("nothing is published in the object store yet")]
    NothingPublished,
    #[error(transparent)]
    Held(#[from] Reason),
    /// The tree was retired meanwhile, or the store is damaged.
    #[error("content {content} is not in the store")]
    ContentMissing { content: ContentHash },
    #[error("directory object {object} is not in the store")]
    DirectoryMissing { object: ObjectHash },
    #[error("directory object {object} is damaged; run: syncd-origin check")]
    DirectoryDamaged { object: ObjectHash },
    #[error("compress a frame")]
    Compress(#[source] std::io::Error),
    #[error("draw a random number")]
    Random(#[source] getrandom::Error),
    #[error("write {}", path.display())]
    Journal {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the origin is stopping")]
    Stopped,
}
