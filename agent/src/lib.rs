//! The agent of syncd: keeps a full, verified, atomically switched replica of the origin's content tree.

pub mod activate;
pub mod disk;
#[cfg(test)]
mod fixture;
pub mod identity;
pub mod layout;
pub mod record;
mod recover;
pub mod replica;
pub mod source;
pub mod spares;
pub mod stage;
pub mod verify;
