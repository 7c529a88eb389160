//! Identities: the tree's own certificate authority, join tokens, the signing key and its successors.
//!
//! [`authority`] issues both kinds of certificates and reads those of peers. [`token`] is the text that an
//! operator carries to a new node. [`signing`] replaces the key that signs generations. [`busy`] is the
//! answer of an origin that has no room for a connection.
//!
//! Fingerprints are BLAKE3-256: of a certificate's DER bytes, or of a signing key's 32 bytes.

pub mod authority;
pub mod busy;
pub mod signing;
pub mod token;

pub use authority::{AgentName, Authority, PeerIdentity, Serial};
pub use busy::Busy;
pub use signing::KeySuccession;
pub use token::JoinToken;
