//! The origin of syncd.

pub mod keys;
pub mod listener;
