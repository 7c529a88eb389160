//! The agent of syncd: keeps a full, verified, atomically switched replica of the origin's content tree.

pub mod identity;
pub mod source;
