//! The operators' interface: requests over the socket in DATA, or to DATA itself while no origin serves it.
//!
//! [`protocol`] has the messages and [`status`] the largest of them. [`server`] answers while the origin
//! serves, [`offline`] has the answers that need only DATA.

pub mod browse;
pub mod collected_requests;
mod differences;
mod key_requests;
pub mod offline;
pub mod protocol;
mod rollout_requests;
pub mod server;
pub mod status;
mod writable;

pub use collected_requests::{CollectedAction, RestoreWhat};
pub use rollout_requests::RolloutAction;
pub use server::{Admin, socket_path};
