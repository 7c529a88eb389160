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
//! [`http`] answers monitors.

pub mod admin;
mod backup;
pub mod cli;
mod clock;
pub mod commit;
pub mod fleet;
pub mod http;
pub mod ignore_rules;
pub mod keys;
mod line_budget;
pub mod listener;
#[cfg(test)]
mod namespace;
mod overlap;
pub mod plan;
mod planted;
pub mod scan;
pub mod serve;
pub mod service;
pub mod source;
pub mod state;
pub mod store;
mod tree_objects;
pub mod watch;

pub(crate) use syncd_shared::text::error_chain;
