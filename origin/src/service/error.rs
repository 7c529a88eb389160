//! Errors of the start.

use std::net::SocketAddr;
use std::path::PathBuf;

use syncd_runtime::bucket::OpenBucketError;
use syncd_runtime::local_socket::LocalSocketError;

use crate::collected::CollectError;
use crate::commit::CommitError;
use crate::keys::KeysError;
use crate::line_log::LineLogError;
use crate::overlap::OverlapError;
use crate::store::{OpenStoreError, StoreError};
use crate::watch::WatchError;

/// Reasons that an origin does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The keys are unreadable, or DATA is not an origin's data directory.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// TREE and DATA overlap.
    #[error(transparent)]
    Overlap(#[from] OverlapError),
    /// Opening the store failed.
    #[error(transparent)]
    OpenStore(#[from] OpenStoreError),
    /// The settings for `--publish` do not fit together.
    #[error(transparent)]
    Bucket(#[from] OpenBucketError),
    /// Collected directories failed to open.
    #[error(transparent)]
    Collect(#[from] CollectError),
    /// Reading the store failed.
    #[error("read the store")]
    Store(#[from] StoreError),
    /// The runtime is shutting down.
    #[error("the start was interrupted")]
    Interrupted,
    /// There is neither a tree nor a generation.
    #[error("content tree {tree} can't be read and there is no generation yet to serve: give the right --tree", tree = tree.display())]
    NoTree {
        tree: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// Fencing is asked for and not possible.
    #[error(transparent)]
    Fence(#[from] crate::publish::FenceError),
    /// Following the origin that this one stands by for failed.
    #[error(transparent)]
    TakeOver(#[from] crate::publish::TakeOverError),
    /// Starting the watch failed.
    #[error(transparent)]
    Watch(#[from] WatchError),
    #[error("start a thread")]
    Thread(#[source] std::io::Error),
    /// Listening on a port failed.
    #[error("listen on {address}: {hint}")]
    Listen {
        address: SocketAddr,
        /// The next step.
        hint: &'static str,
        #[source]
        source: std::io::Error,
    },
    /// Creating the admin socket failed.
    #[error(transparent)]
    Socket(#[from] LocalSocketError),
    /// Giving `--admin-group` access, or taking it away, failed.
    #[error("let the admin group into {path}: start the origin as root, or as a member of that group", path = path.display())]
    AdminGroup {
        /// DATA.
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// Loading the fleet's records failed.
    #[error("load the fleet")]
    Fleet(#[from] crate::fleet::FleetError),
    /// Loading the last generation failed.
    #[error(transparent)]
    Sealer(#[from] CommitError),
    /// Preparing the spool of encoded updates failed.
    #[error(transparent)]
    Plan(#[from] crate::plan::PlanError),
    /// Opening the log of events or of the audit failed.
    #[error(transparent)]
    Log(#[from] LineLogError),
    #[error("set up TLS")]
    Tls(#[from] syncd_runtime::tls::TlsError),
}
