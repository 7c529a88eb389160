//! The origin of syncd: watches one content tree, seals it into signed generations, and serves them to
//! agents.
//!
//! ```text
//!   watch ──> scan ──> store ──> commit ──> plan ──> serve ──> agents
//!   hints     what     packs     signed,    encoded   gRPC
//!             changed  + index   numbered   once
//! ```
//!
//! [`service`] assembles these parts. [`fleet`] tracks the agents. [`admin`] and [`cli`] answer operators,
//! [`http`] answers monitors, [`page`] people.

mod backup;
pub mod cli;
mod clock;
pub mod collected;
mod events;
mod http;
mod line_budget;
mod line_log;
mod listener;
mod metrics;
#[cfg(test)]
mod namespace;
mod on_rollout;
mod overlap;
mod page;
mod purge;
pub mod service;
mod state;
mod test_faults;
mod tree_objects;

// Crates that test syncd open these modules with the feature `testing`. For the programs they are private,
// so that rustc reports unused code.
#[cfg(not(feature = "testing"))]
mod admin;
#[cfg(feature = "testing")]
pub mod admin;
#[cfg(not(feature = "testing"))]
mod audit;
#[cfg(feature = "testing")]
pub mod audit;
#[cfg(not(feature = "testing"))]
mod commit;
#[cfg(feature = "testing")]
pub mod commit;
#[cfg(not(feature = "testing"))]
mod fleet;
#[cfg(feature = "testing")]
pub mod fleet;
#[cfg(not(feature = "testing"))]
mod keys;
#[cfg(feature = "testing")]
pub mod keys;
#[cfg(not(feature = "testing"))]
mod plan;
#[cfg(feature = "testing")]
pub mod plan;
#[cfg(not(feature = "testing"))]
mod publish;
#[cfg(feature = "testing")]
pub mod publish;
#[cfg(not(feature = "testing"))]
mod scan;
#[cfg(feature = "testing")]
pub mod scan;
#[cfg(not(feature = "testing"))]
mod serve;
#[cfg(feature = "testing")]
pub mod serve;
#[cfg(not(feature = "testing"))]
mod source;
#[cfg(feature = "testing")]
pub mod source;
#[cfg(not(feature = "testing"))]
mod store;
#[cfg(feature = "testing")]
pub mod store;
#[cfg(not(feature = "testing"))]
mod watch;
#[cfg(feature = "testing")]
pub mod watch;

pub(crate) use syncd_shared::text::error_chain;
