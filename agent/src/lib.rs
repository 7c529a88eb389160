//! The agent of syncd keeps a full, verified, atomically switched replica of the origin's content tree.
//!
//! [`service`] runs an agent. [`session`] follows the origin and commands its worker, [`fetch`] transfers
//! bulk bytes, [`hooks`] runs commands around an activation, and [`renew`] keeps the certificate current.
//! [`admin`] and [`http`] answer questions. [`join`] enrols a node.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

pub mod admin;
pub mod backoff;
pub mod build;
pub mod cli;
pub mod clock;
pub mod config;
pub mod dialer;
pub mod fetch;
#[cfg(test)]
mod fixture;
#[doc(hidden)]
pub mod fuzzing;
pub mod hooks;
pub mod http;
pub mod identity;
pub mod join;
pub mod offline;
pub mod php;
mod planted;
pub mod renew;
pub mod replica;
pub mod service;
pub mod session;
pub mod source;
mod state;
pub mod status;
