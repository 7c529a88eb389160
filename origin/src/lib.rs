//! The origin of syncd.

pub mod ignore_rules;
pub mod scan;
pub mod store;
pub mod watch;
