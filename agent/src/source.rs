//! Where staging gets what the node lacks. The network side is [`crate::fetch`]; tests give their own.

use syncd_shared::wire::{Frame, ObjectsBatch, WireError};
use syncd_shared::{ContentHash, ObjectHash, RootHash};

/// Frames in the order they came. Dropping it ends the transfer. `next` blocks.
pub type Frames = Box<dyn Iterator<Item = Result<Frame, FetchError>> + Send>;

/// The origin, as staging sees it. All calls block: never call from an async task.
pub trait Source: Send {
    /// Everything that takes a replica from one root to another. Ends with [`Frame::End`]; an origin that does not know
    /// `from` answers [`FetchError::UnknownRoot`], and the general path serves.
    fn update(&mut self, from: RootHash, to: RootHash) -> Result<Frames, FetchError>;

    /// The general path: batches are asked for in turn and answered in order, each answer closed by [`Frame::End`].
    /// Everything asked for is part of `root`.
    fn objects(&mut self, root: RootHash, batches: Vec<ObjectsBatch>) -> Result<Frames, FetchError>;
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
