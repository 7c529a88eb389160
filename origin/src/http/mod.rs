//! The origin's HTTP interface.

pub mod health;
pub mod metrics;
