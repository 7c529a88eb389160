//! The agent's side of collected directories: finds local changes, sends them to the origin, and places the
//! versions of other nodes.
//!
//! ```text
//! ROOT/collected/NAME        the files, which visitors write to
//! ROOT/collected/.incoming   versions that arrive, and local files on their way out
//! ROOT/state/collected.redb  the journal
//! ```
//!
//! [`link`] keeps a stream to the origin. [`engine`] is the one owner of journal and files: a thread that
//! takes events of [`watch`] and of the stream. [`syncd_shared::collected::Row`] decides on the next step at
//! each path.
//!
//! **After a crash.** Rows are durable before a change is sent. Local changes and placed files are durable
//! before their rows, and a version is durable before it gets its name. All names are looked at again after
//! every start and after every connection.

mod engine;
mod error;
mod files;
mod journal;
mod link;
mod opening;
mod report;
mod transfer;
mod watch;

#[cfg(feature = "testing")]
pub use {
    crate::state::disk::Owners,
    engine::{Engine, Event, Link, Transfer, Watches},
    error::CollectedError,
    opening::Surroundings,
};

pub use link::serve;
pub use report::CollectedReport;
