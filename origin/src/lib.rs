//! The origin of syncd.

pub mod ignore_rules;
#[cfg(test)]
mod namespace;
pub mod scan;
pub mod store;
pub mod watch;
