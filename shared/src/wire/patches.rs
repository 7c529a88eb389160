//! Decodes lists of directory patches one by one. Names are counted before they are decoded, because a
//! message of many tiny parts takes a hundred times its size in memory.

use bytes::Bytes;
use prost::Message;
use syncd_proto::v1;

use super::fields::Fields;
use super::{DirectoryPatch, WireError, limit};
use crate::limits::DIRECTORY_FRAME_BYTES;

/// Field of `DirectoryPatchList`.
const PATCHES: u32 = 1;
/// Field of `DirectoryPatch`.
const REMOVED_NAMES: u32 = 3;

/// Uncompressed bytes of a frame of patches. Twice the target, because senders estimate the size.
pub(super) const PATCHES_MAX_BYTES: usize = 2 * DIRECTORY_FRAME_BYTES;

/// The patches of a `DirectoryPatchList` between trees of at most `entries_max` entries.
pub(super) fn decode_list(list: &[u8], entries_max: u64) -> Result<Vec<DirectoryPatch>, WireError> {
    // Each entry is removed from one tree and added to the other at most once.
    let mut left = entries_max.saturating_mul(2);
    let mut patches = Vec::new();
    for field in Fields::of(list) {
        let (PATCHES, patch) = field? else { continue };
        let removed = Fields::count_of(patch, &[REMOVED_NAMES])?;
        limit("names of a patch", removed, usize::try_from(left).unwrap_or(usize::MAX))?;
        left = left.saturating_sub(removed as u64);
        let message = v1::DirectoryPatch::decode(Bytes::copy_from_slice(patch))?;
        let patch = DirectoryPatch::from_message(message, left)?;
        left = left.saturating_sub(patch.entries.len() as u64);
        patches.push(patch);
    }
    Ok(patches)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Directory;
    use crate::directory::pages_tests::{Pages, patches};
    use crate::directory::tests::file;

    fn patch(names: usize) -> DirectoryPatch {
        let entries: Vec<_> = (0..names).map(|n| file(&format!("page-{n:04}"), b"x")).collect();
        let to = Directory::new(entries).expect("unique names");
        let mut pages = Pages::default();
        let object = pages.put(&to);
        let mut patch = patches(&pages, None, object).pop().expect("a patch");
        patch.removed = (0..names).map(|n| file(&format!("old-{n:04}"), b"x").name).collect();
        patch
    }

    fn encoded(patches: &[DirectoryPatch]) -> Vec<u8> {
        v1::DirectoryPatchList { patches: patches.iter().map(DirectoryPatch::to_message).collect() }
            .encode_to_vec()
    }

    #[test]
    fn a_list_is_read_as_it_was_written() {
        let patches = [patch(3), patch(0), patch(40)];
        assert_eq!(decode_list(&encoded(&patches), 43).expect("within its bounds"), patches);
        // The same names may not go and come more often than the trees have entries.
        assert!(matches!(decode_list(&encoded(&patches), 42), Err(WireError::Entries(_))));
        assert!(matches!(decode_list(&encoded(&[patch(90)]), 40), Err(WireError::Limit { .. })));
    }

    #[test]
    fn many_empty_parts_are_refused_before_they_are_decoded() {
        // An empty patch names no object.
        assert!(decode_list(&[0x0a, 0x00].repeat(1_000_000), u64::MAX).is_err());
        let names = [0x1a, 0x00].repeat(1_000_000);
        let mut list = vec![0x0a];
        prost::encoding::encode_varint(names.len() as u64, &mut list);
        list.extend(names);
        assert!(matches!(decode_list(&list, 1000), Err(WireError::Limit { actual: 1_000_000, .. })));
    }

    #[test]
    fn what_is_cut_or_flipped_never_panics() {
        let whole = encoded(&[patch(2), patch(5)]);
        for end in 0..whole.len() {
            let _ = decode_list(&whole[..end], 100);
            let mut flipped = whole.clone();
            flipped[end] ^= 0x81;
            let _ = decode_list(&flipped, 100);
        }
    }
}
