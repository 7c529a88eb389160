//! The merge of collected directories: directories that every node may write to. No IO, no clock.
//!
//! The origin is the one place of order. For each path it keeps a [`Chain`]: the current version, and what
//! came before it. A [`Change`] names the version that the node saw; the origin judges it ([`Verdict`]).
//! Each node keeps a [`Row`] for each path in its journal, which says what it does next ([`Action`]).
//!
//! ```text
//! node: local file, Row ──Change──> origin: Chain, Losers
//!                       <─Answer──
//!                       <─Version── (to every node, in order of numbers)
//! ```
//!
//! A session of a node and its origin keeps four rules, on which the proofs in `model.rs` rest:
//! * The origin makes a verdict durable before it answers. A new session of a node ends the old one first.
//! * A node learns all versions up to the origin's newest before its first change of a session.
//! * A node has at most one unanswered change for each path, and records it durably before it is sent.
//! * A node replaces or removes a file only if the file is still the one that the action was chosen for.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

mod chain;
mod losers;
pub mod message;
#[cfg(test)]
mod model;
mod name;
mod row;
mod rules;
pub mod stored;

use std::fmt;

use crate::directory::Timestamp;
use crate::hash::ContentHash;

pub use chain::{Around, Chain, Past, Verdict};
pub use losers::{Loser, Losers};
pub use name::{CollectedName, CollectedNameError, NAME_MAX_BYTES};
pub use row::{Action, Answer, Row};
pub use rules::{CollectedRules, Ruling};

/// Counts the changes that the origin took in one collected directory. Versions are ordered by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct VersionNumber(u64);

impl VersionNumber {
    /// Before any version of a path.
    pub const NONE: Self = Self(0);

    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for VersionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The entry at a path, if there is one. Owners are not part of it: each node gives all files the
/// configured owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum State {
    #[default]
    Absent,
    Directory {
        /// Within [`crate::directory::MODE_MASK`].
        mode: u16,
    },
    File(FileState),
}

/// A regular file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileState {
    pub content: ContentHash,
    pub size: u64,
    /// Within [`crate::directory::MODE_MASK`].
    pub mode: u16,
    pub mtime: Timestamp,
}

impl State {
    /// Hash of the content of a file.
    pub fn content(&self) -> Option<ContentHash> {
        match self {
            Self::File(file) => Some(file.content),
            Self::Absent | Self::Directory { .. } => None,
        }
    }

    /// Whether both are the same kind, and files have the same content.
    pub fn has_content_of(&self, other: &State) -> bool {
        match (self, other) {
            (Self::Absent, Self::Absent) | (Self::Directory { .. }, Self::Directory { .. }) => true,
            (Self::File(one), Self::File(other)) => one.content == other.content,
            _ => false,
        }
    }
}

/// The origin's `number`-th change, as it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Version {
    pub number: VersionNumber,
    pub state: State,
}

/// A local change that a node found at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Change {
    /// The version that the node saw; [`VersionNumber::NONE`] if it saw none.
    pub base: VersionNumber,
    pub state: State,
}
