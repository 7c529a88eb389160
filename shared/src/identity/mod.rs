//! Identities: the tree's own certificate authority, join tokens, the signing key, and the root key above
//! them.
//!
//! [`authority`] issues both kinds of certificates and reads those of peers. [`token`] is the text that an
//! operator carries to a new node. [`trust`] is the document that names the authority and the key that signs
//! generations ([`signing`]); the root key signs it ([`root_key`]). [`busy`] is the answer of an origin that
//! has no room for a connection.
//!
//! Fingerprints are BLAKE3-256: of a certificate's DER bytes, or of a public key's 32 bytes.

pub mod authority;
pub mod busy;
pub mod root_key;
pub mod signing;
pub mod token;
pub mod trust;

pub use authority::{AgentName, Authority, PeerIdentity, Serial};
pub use busy::Busy;
pub use root_key::RootKey;
pub use token::JoinToken;
pub use trust::{RootFingerprint, SignedTrust, TrustDocument};
