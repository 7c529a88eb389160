//! Errors of collected directories on a node.

use syncd_runtime::channel::ConnectError;
use syncd_shared::collected::message::MessageError;
use syncd_shared::collected::stored::StoredError;
use syncd_shared::tree_path::TreePathError;
use tonic::Status;

use crate::state::disk::DiskError;

/// Reasons why a step failed. All are tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CollectedError {
    #[error("change a collected directory")]
    Disk(#[from] DiskError),
    #[error("read a collected file")]
    Read(#[source] std::io::Error),
    #[error("watch a collected directory (raise fs.inotify.max_user_watches)")]
    Watch(#[source] std::io::Error),
    #[error("use the journal of collected directories")]
    Journal(#[source] Box<redb::Error>),
    #[error("the journal of collected directories is damaged")]
    Damaged(#[from] StoredError),
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

impl From<Status> for CollectedError {
    fn from(status: Status) -> Self {
        Self::Origin(Box::new(status))
    }
}
