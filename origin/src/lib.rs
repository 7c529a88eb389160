//! The origin of syncd.

pub mod ignore_rules;
pub mod watch;
