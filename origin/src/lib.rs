//! The origin of syncd.

pub mod fleet;
pub mod keys;
pub mod listener;
pub mod plan;
pub mod serve;
