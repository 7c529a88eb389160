//! The syncd protocol: messages and gRPC bindings, generated from `syncd/v1/*.proto` and committed.
//!
//! The dialogue, its limits and what an abort means are told in `PROTOCOL.md`. Nothing here is trusted: `syncd-shared`
//! turns messages into domain types and refuses what does not hold.
//!
//! To change the protocol, edit the `.proto` files and run `SYNCD_REGENERATE=1 cargo test -p syncd-proto`.

/// Protocol version 1.
#[path = "gen/syncd.v1.rs"]
#[allow(missing_docs, clippy::all)]
#[rustfmt::skip]
pub mod v1;
