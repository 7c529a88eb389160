//! Interface through which staging gets objects that the node does not have. [`crate::fetch`] implements it
//! over the network, [`published`] reads an object store, and [`chain`] makes one source of several. Tests
//! have their own implementations.

pub(crate) mod chain;
pub(crate) mod located;
pub(crate) mod published;

use syncd_shared::wire::{Frame, ObjectsBatch, WireError};
use syncd_shared::{ContentHash, ObjectHash, RootHash, SignedGeneration, Totals};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// Frames in the order of arrival. `next` blocks. Dropping the iterator ends the transfer.
pub type Frames = Box<dyn Iterator<Item = Result<Frame, FetchError>> + Send>;

/// Places outside the origin that may have a generation, as its announcement says.
#[derive(Debug, Clone, Copy)]
pub struct Elsewhere<'a> {
    /// URLs, not checked.
    pub locations: &'a [String],
    pub generation: &'a SignedGeneration,
}

/// Batches to ask for, in order. The sender adds batches while answers arrive, and limits how many are
/// unanswered.
pub type Batches = UnboundedReceiver<ObjectsBatch>;

/// Turns a complete list of batches into a stream of them.
pub fn all_of(batches: impl IntoIterator<Item = ObjectsBatch>) -> Batches {
    let (sender, receiver) = unbounded_channel();
    // The receiver exists, so sending cannot fail.
    batches.into_iter().for_each(|batch| drop(sender.send(batch)));
    receiver
}

/// Source of objects. All calls block and must not be made from an async task.
pub trait Source: Send {
    /// Sets the signed totals of the trees that answers refer to. Anything that cannot belong to such a tree
    /// is refused before memory is allocated for it. Before this call, only empty directories are accepted.
    fn expect(&mut self, _totals: &Totals) {}

    /// Asks for everything that takes a replica from one root to another. The answer ends with
    /// [`Frame::End`]. If the origin does not know `from`, it returns [`FetchError::UnknownRoot`], and the
    /// general path is used.
    fn update(&mut self, from: RootHash, to: RootHash) -> Result<Frames, FetchError>;

    /// Asks for objects by hash: the general path. Batches are answered in order, and [`Frame::End`] ends
    /// each answer. Every object must be part of `root`. The first batch must be available at the call, and
    /// later ones come from the thread that takes the frames.
    fn objects(&mut self, root: RootHash, batches: Batches) -> Result<Frames, FetchError>;

    /// Reports that the last attempt failed because of what this source sent: it did not match its hash, or
    /// was not what was asked for.
    fn distrust(&mut self) {}
}

/// Reason why the origin did not deliver.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Not connected, or the connection broke. Objects already received and verified are kept.
    #[error("connection to the origin lost")]
    Disconnected(#[source] Option<tonic::Status>),
    /// The origin does not know the root that an update starts from.
    #[error("the origin does not know root {root}")]
    UnknownRoot {
        /// The root asked for.
        root: RootHash,
    },
    /// The source has the tree, and no update that leads to it. It can be fetched by hash.
    #[error("there is no update from root {from}")]
    NoUpdate { from: RootHash },
    /// The origin refused.
    #[error("the origin refused the request")]
    Refused(#[source] tonic::Status),
    /// A received frame is malformed.
    #[error("the origin sent a malformed frame")]
    Malformed(#[from] WireError),
    /// The origin does not have a content that was asked for.
    #[error("the origin has no content {content}")]
    MissingContent {
        /// Hash of the content.
        content: ContentHash,
    },
    /// The origin does not have a directory object that was asked for.
    #[error("the origin has no directory object {object}")]
    MissingDirectory {
        /// Hash of the object.
        object: ObjectHash,
    },
    /// A published tree can't be read.
    #[error("can't read the published tree")]
    Published(#[source] Box<syncd_runtime::published::ReadError>),
    /// A source other than the last failed in the middle of an update. The rest can be fetched by hash.
    #[error("the source failed in the middle of an update")]
    GivenUp,
    /// A newer generation was announced, or the agent stops.
    #[error("abandoned for a newer generation")]
    Superseded,
}
