//! The agent of syncd.

pub mod identity;
