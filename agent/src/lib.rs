//! The agent of syncd keeps a full, verified, atomically switched replica of the origin's content tree.
//!
//! [`service`] runs an agent. [`session`] follows the origin and commands its worker, [`fetch`] transfers
//! bulk bytes, [`hooks`] runs commands around an activation, and [`renew`] keeps the certificate current.
//! [`follow`] takes the origin's part where only an object store is reached. [`admin`] and [`http`] answer
//! questions. [`join`] enrols a node.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

pub mod adopt;
pub mod cli;
mod config;
mod dialer;
#[cfg(test)]
mod fixture;
mod follow;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod http;
pub mod join;
mod metrics;
mod offline;
mod php;
mod renew;
pub mod service;
mod state;
mod test_faults;
mod trust;

// Crates that test syncd open these modules with the feature `testing`. For the programs they are private,
// so that rustc reports unused code.
#[cfg(not(feature = "testing"))]
mod admin;
#[cfg(feature = "testing")]
pub mod admin;
#[cfg(not(feature = "testing"))]
mod backoff;
#[cfg(feature = "testing")]
pub mod backoff;
#[cfg(not(feature = "testing"))]
mod build;
#[cfg(feature = "testing")]
pub mod build;
#[cfg(not(feature = "testing"))]
mod check;
#[cfg(feature = "testing")]
pub mod check;
#[cfg(not(feature = "testing"))]
mod clock;
#[cfg(feature = "testing")]
pub mod clock;
#[cfg(not(feature = "testing"))]
mod collected;
#[cfg(feature = "testing")]
pub mod collected;
#[cfg(not(feature = "testing"))]
mod fetch;
#[cfg(feature = "testing")]
pub mod fetch;
#[cfg(not(feature = "testing"))]
mod hooks;
#[cfg(feature = "testing")]
pub mod hooks;
#[cfg(not(feature = "testing"))]
mod identity;
#[cfg(feature = "testing")]
pub mod identity;
#[cfg(not(feature = "testing"))]
mod replica;
#[cfg(feature = "testing")]
pub mod replica;
#[cfg(not(feature = "testing"))]
mod session;
#[cfg(feature = "testing")]
pub mod session;
#[cfg(not(feature = "testing"))]
mod source;
#[cfg(feature = "testing")]
pub mod source;
#[cfg(not(feature = "testing"))]
mod status;
#[cfg(feature = "testing")]
pub mod status;
