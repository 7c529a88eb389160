//! The agent of syncd: keeps a full, verified, atomically switched replica of the origin's content tree.

pub mod backoff;
pub mod dialer;
pub mod fetch;
pub mod hooks;
pub mod identity;
pub mod reason;
pub mod session;
pub mod source;
pub mod status;
