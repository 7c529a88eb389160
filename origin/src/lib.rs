//! The origin of syncd: watches one content tree, seals it into signed generations, serves them to agents.
//!
//! ```text
//!   watch ──> scan ──> store ──> commit ──> plan ──> serve ──> agents
//!   hints     what     packs     signed,    encoded   gRPC
//!             changed  + index   numbered   once
//! ```
//!
//! [`service`] assembles them; [`fleet`] knows the agents; [`admin`], [`desk`] and [`cli`] are how people ask.

pub mod fleet;
pub mod ignore_rules;
pub mod keys;
pub mod listener;
mod namespace;
pub mod plan;
pub mod scan;
pub mod serve;
pub mod store;
pub mod watch;
#[cfg(test)]
