//! Who is who: the tree's own certificate authority, join tokens, the signing key and its successors, and TLS.
//!
//! [`authority`] issues the two kinds of certificate there are and reads a peer's; [`token`] is what an operator carries
//! to a node; [`signing`] changes the key that signs generations; [`tls`] has every TLS configuration (TLS 1.3 with the
//! ring provider, nothing else), [`channel`] the client's connection over them, [`busy`] what it hears where there is no
//! room for it. [`files`] writes keys to disk.
//!
//! Fingerprints are BLAKE3-256: of a certificate's DER bytes, of a signing key's 32 bytes.

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
