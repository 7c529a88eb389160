//! Where staging gets what the node lacks. The network side is [`crate::fetch`]; tests give their own.

use syncd_shared::wire::{Frame, ObjectsBatch, WireError};
use syncd_shared::{ContentHash, ObjectHash, RootHash, Totals};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// Frames in the order they came. Dropping it ends the transfer. `next` blocks.
pub type Frames = Box<dyn Iterator<Item = Result<Frame, FetchError>> + Send>;

/// What is asked for, in turn. Whoever asks says more while answers come, and bounds what is unanswered.
pub type Batches = UnboundedReceiver<ObjectsBatch>;

/// Batches that are all known.
pub fn all_of(batches: impl IntoIterator<Item = ObjectsBatch>) -> Batches {
    let (sender, receiver) = unbounded_channel();
    // The receiver is at hand: nothing is refused.
    batches.into_iter().for_each(|batch| drop(sender.send(batch)));
    receiver
}

/// The origin, as staging sees it. All calls block: never call from an async task.
pub trait Source: Send {
    /// From now on no tree that answers are about exceeds these totals, which are signed: what can't be part of it is
    /// refused before memory is taken for it. Until then no directory is taken that has entries.
    fn expect(&mut self, _totals: &Totals) {}

    /// Everything that takes a replica from one root to another. Ends with [`Frame::End`]; an origin that does not know
    /// `from` answers [`FetchError::UnknownRoot`], and the general path serves.
    fn update(&mut self, from: RootHash, to: RootHash) -> Result<Frames, FetchError>;

    /// The general path: batches are asked for in turn and answered in order, each answer closed by [`Frame::End`].
    /// Everything asked for is part of `root`. The first batch is to be there at the call.
    fn objects(&mut self, root: RootHash, batches: Batches) -> Result<Frames, FetchError>;
}

/// Why the origin did not deliver.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Not connected, or the connection broke; what was received and verified stays.
    #[error("connection to the origin lost")]
    Disconnected(#[source] Option<tonic::Status>),
    /// The origin does not know the root that an update starts from.
    #[error("the origin does not know root {root}")]
    UnknownRoot {
        /// The root asked for.
        root: RootHash,
    },
    /// The origin refused.
    #[error("the origin refused the request")]
    Refused(#[source] tonic::Status),
    /// What came is no well-formed frame.
    #[error("the origin sent a malformed frame")]
    Malformed(#[from] WireError),
    /// A content that the origin should have is gone.
    #[error("the origin has no content {content}")]
    MissingContent {
        /// The content asked for.
        content: ContentHash,
    },
    /// A directory object that the origin should have is gone.
    #[error("the origin has no directory object {object}")]
    MissingDirectory {
        /// The object asked for.
        object: ObjectHash,
    },
    /// A newer generation was announced, or the agent stops.
    #[error("abandoned for a newer generation")]
    Superseded,
}
