//! Errors of collected directories on a node.

use std::io;
use std::time::Duration;

use syncd_runtime::channel::ConnectError;
use syncd_shared::collected::message::MessageError;
use syncd_shared::ignore_rules::IgnoreError;
use syncd_shared::tree_path::TreePathError;
use tonic::{Code, Status};

use crate::state::disk::DiskError;

/// Reasons why a step failed. All are tried again.
#[derive(Debug, thiserror::Error)]
pub enum CollectedError {
    #[error("change a collected directory")]
    Disk(#[from] DiskError),
    #[error("read a collected file")]
    Read(#[source] std::io::Error),
    #[error("watch a collected directory (raise fs.inotify.max_user_watches)")]
    Watch(#[source] std::io::Error),
    #[error("use the journal of collected directories")]
    Journal(#[source] Box<redb::Error>),
    #[error("the patterns from the origin")]
    Rules(#[from] IgnoreError),
    #[error(
        "{wanted_bytes} bytes are to be placed, and {available_bytes} are free for collected files: make room"
    )]
    NoSpace { wanted_bytes: u64, available_bytes: u64 },
    #[error("the origin sent a malformed message")]
    Message(#[from] MessageError),
    #[error("a name of the directory is invalid")]
    Path(#[from] TreePathError),
    #[error("reach the origin")]
    Connect(#[source] Box<ConnectError>),
    #[error("the origin answered")]
    Origin(#[source] Box<Status>),
    #[error("the content that arrived is not the announced one")]
    Content,
    #[error("the connection to the origin ended")]
    Disconnected,
}

/// Pause before a path is looked at again.
pub(super) const AGAIN: Duration = Duration::from_millis(500);
/// The same, if somebody has to make room.
const AGAIN_LATER: Duration = Duration::from_secs(5);

impl CollectedError {
    /// Whether the journal can't be read and has to be replaced.
    pub fn is_damage(&self) -> bool {
        let Self::Journal(error) = self else { return false };
        match &**error {
            redb::Error::Corrupted(_) | redb::Error::UpgradeRequired(_) => true,
            redb::Error::TableTypeMismatch { .. } | redb::Error::TypeDefinitionChanged { .. } => true,
            redb::Error::Io(error) => {
                matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
            }
            _ => false,
        }
    }

    /// Whether further calls over the same connection would fail as well.
    pub fn is_cut(&self) -> bool {
        const CUT: [Code; 4] = [Code::Unavailable, Code::Unknown, Code::Cancelled, Code::DeadlineExceeded];
        match self {
            Self::Disconnected | Self::Connect(_) => true,
            Self::Origin(status) => CUT.contains(&status.code()),
            _ => false,
        }
    }

    /// Pause before the next attempt.
    pub fn pause(&self) -> Duration {
        match self {
            Self::NoSpace { .. } => AGAIN_LATER,
            Self::Origin(status) if status.code() == Code::ResourceExhausted => AGAIN_LATER,
            _ => AGAIN,
        }
    }
}

impl From<Status> for CollectedError {
    fn from(status: Status) -> Self {
        Self::Origin(Box::new(status))
    }
}
