//! The syncd protocol: messages and gRPC bindings, generated from `syncd/v1/*.proto` and committed.
//!
//! `PROTOCOL.md` describes the message flow, the limits and the meaning of each status. Messages are
//! untrusted: `syncd-shared` turns them into domain types and rejects invalid ones.
//!
//! To change the protocol, edit the `.proto` files and run `SYNCD_REGENERATE=1 cargo test -p syncd-proto`.

/// Protocol version 1.
#[path = "gen/syncd.v1.rs"]
#[allow(missing_docs, clippy::all)]
#[rustfmt::skip]
pub mod v1;
