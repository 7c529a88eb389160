//! Reads lists of directory patches one by one: what a message of many tiny parts takes in memory is a hundred times its
//! bytes, so the parts are counted before they are decoded.

use bytes::Bytes;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use syncd_proto::v1;

use super::{DirectoryPatch, WireError, limit};

/// Field of `DirectoryPatchList`.
const PATCHES: u32 = 1;
/// Field of `DirectoryPatch`.
const REMOVED_NAMES: u32 = 3;

/// The patches of a `DirectoryPatchList` between trees of at most so many entries.
pub(super) fn decode_list(bytes: &[u8], entries_max: u64) -> Result<Vec<DirectoryPatch>, WireError> {
    // Every entry goes from one tree and comes to the other at most once.
    let mut left = entries_max.saturating_mul(2);
    let mut patches = Vec::new();
    each_field(bytes, PATCHES, |patch| {
        let mut removed = 0u64;
        each_field(patch, REMOVED_NAMES, |_| {
            removed = removed.saturating_add(1);
            limit("names of a patch", usize::try_from(removed).unwrap_or(usize::MAX), size(left))
        })?;
        left = left.saturating_sub(removed);
        let message = v1::DirectoryPatch::decode(Bytes::copy_from_slice(patch))?;
        let patch = DirectoryPatch::from_message(message, left)?;
        left = left.saturating_sub(patch.entries.len() as u64);
        patches.push(patch);
        Ok(())
    })?;
    Ok(patches)
}

fn size(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// Calls `each` with the bytes of every field of this number.
fn each_field(
    mut bytes: &[u8],
    number: u32,
    mut each: impl FnMut(&[u8]) -> Result<(), WireError>,
) -> Result<(), WireError> {
    while !bytes.is_empty() {
        let (field, wire_type) = decode_key(&mut bytes)?;
        if (field, wire_type) != (number, WireType::LengthDelimited) {
            skip_field(wire_type, field, &mut bytes, DecodeContext::default())?;
            continue;
        }
        let length = size(decode_varint(&mut bytes)?);
        let cut = || WireError::Length { expected: length, actual: bytes.len() };
        let (value, rest) = bytes.split_at_checked(length).ok_or_else(cut)?;
        each(value)?;
        bytes = rest;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Directory;
    use crate::directory::tests::file;

    fn patch(names: usize) -> DirectoryPatch {
        let entries: Vec<_> = (0..names).map(|n| file(&format!("page-{n:04}"), b"x")).collect();
        let to = Directory::new(entries).expect("unique names");
        let mut patch = DirectoryPatch::between(None, (to.hash(), &to));
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
        assert!(matches!(decode_list(&list, 1000), Err(WireError::Limit { actual: 2001, .. })));
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
