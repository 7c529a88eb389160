//! Short names of contents, for answers whose both sides know which contents they are about.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use bytes::Bytes;

use crate::hash::ContentHash;
use crate::wire::WireError;

/// One update of 14,000 files in 10,000 has two contents of one tag: that costs a fetch.
const TAG_BYTES: usize = 5;

/// The first bytes of a content's hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentTag([u8; TAG_BYTES]);

impl ContentTag {
    /// Its length in bytes.
    pub const BYTES: usize = TAG_BYTES;

    /// The tag of a content.
    pub fn of(content: &ContentHash) -> Self {
        let mut tag = [0; TAG_BYTES];
        tag.copy_from_slice(&content.as_bytes()[..TAG_BYTES]);
        Self(tag)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; TAG_BYTES] {
        &self.0
    }

    /// From a field.
    pub(crate) fn read(bytes: &[u8], field: &'static str) -> Result<Self, WireError> {
        bytes.try_into().map(Self).map_err(|_| WireError::Tag { field })
    }

    /// From a field that has one after the other.
    pub(crate) fn read_all(bytes: &[u8], field: &'static str) -> Result<Vec<Self>, WireError> {
        let (tags, rest) = bytes.as_chunks::<TAG_BYTES>();
        match rest {
            [] => Ok(tags.iter().copied().map(Self).collect()),
            _ => Err(WireError::Tag { field }),
        }
    }

    /// For a field.
    pub(crate) fn to_bytes(self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }
}
