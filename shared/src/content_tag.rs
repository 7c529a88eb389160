//! Short content names, for messages between sides that both know the candidate contents.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use bytes::Bytes;

use crate::hash::ContentHash;
use crate::wire::WireError;

/// With 5 bytes, an update of 14,000 files meets two contents with the same tag once in 10,000 updates. A
/// collision costs one fetch.
const TAG_BYTES: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentTag([u8; TAG_BYTES]);

impl ContentTag {
    pub const BYTES: usize = TAG_BYTES;

    pub fn of(content: &ContentHash) -> Self {
        let mut tag = [0; TAG_BYTES];
        tag.copy_from_slice(&content.as_bytes()[..TAG_BYTES]);
        Self(tag)
    }

    pub fn as_bytes(&self) -> &[u8; TAG_BYTES] {
        &self.0
    }

    /// Reads a message field that holds one tag.
    pub(crate) fn read(bytes: &[u8], field: &'static str) -> Result<Self, WireError> {
        bytes.try_into().map(Self).map_err(|_| WireError::Tag { field })
    }

    /// Reads a message field that holds tags end to end.
    pub(crate) fn read_all(bytes: &[u8], field: &'static str) -> Result<Vec<Self>, WireError> {
        let (tags, rest) = bytes.as_chunks::<TAG_BYTES>();
        match rest {
            [] => Ok(tags.iter().copied().map(Self).collect()),
            _ => Err(WireError::Tag { field }),
        }
    }

    pub(crate) fn to_bytes(self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }
}
