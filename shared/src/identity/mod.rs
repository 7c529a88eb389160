//! Identities: the tree's own certificate authority, join tokens, the signing key and its successors, and
//! TLS.
//!
//! [`authority`] issues both kinds of certificates and reads those of peers. [`token`] is the text that an
//! operator carries to a new node. [`signing`] replaces the key that signs generations. [`tls`] holds every
//! TLS configuration (TLS 1.3 with the ring provider only). [`channel`] is the client's connection over TLS,
//! and [`busy`] the refusal it receives from an origin without room. [`files`] writes keys to disk.
//!
//! Fingerprints are BLAKE3-256: of a certificate's DER bytes, or of a signing key's 32 bytes.

pub mod authority;
pub mod busy;
pub mod channel;
pub mod files;
pub mod signing;
pub mod tls;
pub mod token;

pub use authority::{AgentName, Authority, PeerIdentity, Serial};
pub use busy::Busy;
pub use channel::{ConnectError, connect, connect_limited};
pub use signing::KeySuccession;
pub use tls::{Admit, ClientTls, TlsError};
pub use token::JoinToken;
