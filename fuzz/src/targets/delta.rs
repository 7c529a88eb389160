//! Delta frames: their fields and the data that they restore.

use std::sync::OnceLock;

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use prost::Message;
use syncd_proto::v1;
use syncd_shared::delta::{DeltaEncoding, DeltaFrame, Encoded, Replacement};
use syncd_shared::limits::{DELTA_BASES_MAX_BYTES, DELTA_OUTPUT_MAX_BYTES, DELTA_PLACES_MAX};
use syncd_shared::wire::Frame;

use crate::mutation::{mutate, number};
use crate::values::{self, bytes, compressed, sampled};

pub(super) fn message(places: &[u8]) -> v1::DeltaFrame {
    v1::DeltaFrame {
        encoding: v1::DeltaEncoding::ZstdPrefix.into(),
        compressed: Bytes::new(),
        delta_bytes: 0,
        places_bytes: places.len() as u32,
        places: compressed(places),
    }
}

fn received(message: v1::DeltaFrame) -> Option<DeltaFrame> {
    let frame = v1::FetchFrame { item: 0, frame: Some(v1::fetch_frame::Frame::Delta(message)) };
    match Frame::from_message(frame) {
        Ok(Frame::Delta(frame)) => Some(frame),
        _ => None,
    }
}

/// Asserts the invariants of an accepted frame, before and after the manifests were consulted.
pub(super) fn check(frame: &DeltaFrame) {
    let within = |frame: &DeltaFrame| {
        assert!(frame.output_bytes() <= DELTA_OUTPUT_MAX_BYTES);
        let bases: u64 = frame.bases.iter().map(|basis| u64::from(basis.length_bytes)).sum();
        assert!(bases <= DELTA_BASES_MAX_BYTES as u64);
        for basis in &frame.bases {
            assert!(basis.offset.checked_add(u64::from(basis.length_bytes)).is_some());
        }
        for copy in &frame.copies {
            assert!(copy.length_bytes > 0 && copy.file_offset.checked_add(copy.length_bytes).is_some());
            assert!(copy.basis_offset.checked_add(copy.length_bytes).is_some());
        }
    };
    within(frame);
    let named = frame.bases.len() + frame.pieces.len() + frame.copies.len() + frame.replaced.len();
    assert!(named <= DELTA_PLACES_MAX);
    // A manifest's statement about a replaced content is signed, but the size may be anything.
    let sizes = |bytes: &[u8; 5]| {
        let shift = u32::from(bytes[0] % 65);
        1u64.checked_shl(shift).map_or(u64::MAX, |bit| bit - u64::from(bytes[1] % 2))
    };
    let known = |tag: syncd_shared::ContentTag| {
        let bytes = tag.as_bytes();
        (bytes[4] > 31).then(|| Replacement {
            old: tag,
            old_bytes: sizes(bytes),
            new_bytes: sizes(&[bytes[2], bytes[3], 0, 0, 0]),
        })
    };
    let mut resolved = frame.clone();
    if resolved.resolve(&known).is_ok() {
        assert!(resolved.replaced.is_empty());
        within(&resolved);
    }
}

/// `DeltaPlaces`, uncompressed.
pub(super) fn places(input: &[u8]) {
    let Some(frame) = received(message(input)) else { return };
    check(&frame);
    if !sampled(input, 16) {
        return;
    }
    let again = received(frame.to_message()).expect("it was accepted");
    assert_eq!((again.bases, again.pieces), (frame.bases, frame.pieces));
    assert_eq!((again.copies, again.replaced), (frame.copies, frame.replaced));
}

fn tag(u: &mut Unstructured<'_>) -> Result<Bytes> {
    let length = if u.ratio(1, 24)? { u.int_in_range(0..=9usize)? } else { 5 };
    Ok((0..length).map(|_| u.arbitrary()).collect::<Result<Vec<u8>>>()?.into())
}

pub(super) fn some_places(u: &mut Unstructured<'_>) -> Result<v1::DeltaPlaces> {
    let mut places = v1::DeltaPlaces::default();
    for _ in 0..u.int_in_range(0..=3usize)? {
        let path = if u.arbitrary()? { Bytes::new() } else { values::name(u)?.into() };
        let (content, offset) = (tag(u)?, number(u)?);
        places.bases.push(v1::DeltaBasis { content, path, offset, length_bytes: number(u)? as u32 });
    }
    for _ in 0..u.int_in_range(0..=3usize)? {
        let (file, file_offset) = (tag(u)?, number(u)?);
        places.pieces.push(v1::DeltaPiece { file, file_offset, length_bytes: number(u)? as u32 });
    }
    for _ in 0..u.int_in_range(0..=2usize)? {
        places.copies.push(v1::DeltaCopy {
            file: tag(u)?,
            file_offset: number(u)?,
            basis_content: tag(u)?,
            basis_path: values::name(u)?.into(),
            basis_offset: number(u)?,
            length_bytes: number(u)?,
        });
    }
    places.replaced = bytes(u, 4)?.iter().flat_map(|b| [*b, 1, b ^ 3, 0, 1]).collect::<Vec<u8>>().into();
    Ok(places)
}

pub(super) fn any_places(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let places = some_places(u)?.encode_to_vec();
    mutate(u, places)
}

/// `u8` encoding, `u32` output bytes, `u32` bytes of the rsync delta, `u16` prefix bytes, prefix, encoded
/// bytes. The encoding is 0 for zstd, 1 for rsync, and 2 for an rsync delta that is compressed here.
pub(super) fn restore(input: &[u8]) {
    let Some((head, rest)) = input.split_first_chunk::<11>() else { return };
    let [how, l0, l1, l2, l3, d0, d1, d2, d3, p0, p1] = *head;
    let length = (u32::from_le_bytes([l0, l1, l2, l3]) as usize).min(DELTA_OUTPUT_MAX_BYTES);
    let said = u32::from_le_bytes([d0, d1, d2, d3]) as usize;
    let (prefix, encoded) = rest.split_at(usize::from(u16::from_le_bytes([p0, p1])).min(rest.len()));
    let delta_bytes = said.min(DELTA_OUTPUT_MAX_BYTES);
    let (encoding, compressed) = match how % 3 {
        0 => (DeltaEncoding::ZstdPrefix, Bytes::copy_from_slice(encoded)),
        1 => (DeltaEncoding::Rsync { delta_bytes }, Bytes::copy_from_slice(encoded)),
        _ => (DeltaEncoding::Rsync { delta_bytes: encoded.len() }, compressed(encoded)),
    };
    if let Ok(out) = (Encoded { encoding, compressed }).restore(prefix, length) {
        assert_eq!(out.len(), length);
    }
}

/// Usually one of those encoded at the start, because encoding takes a hundred times as long as restoring.
pub(super) fn any_encoded(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    static ENCODED: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    let out = if u.ratio(63, 64)? {
        let before = ENCODED.get_or_init(|| (0..64).filter_map(|index| encoded_before(index).ok()).collect());
        u.choose(before)?.clone()
    } else {
        encoded(u)?
    };
    mutate(u, out)
}

fn encoded_before(index: u8) -> Result<Vec<u8>> {
    let mut noise = [0; 1024];
    blake3::Hasher::new().update(&[index]).finalize_xof().fill(&mut noise);
    encoded(&mut Unstructured::new(&noise))
}

fn encoded(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let prefix = bytes(u, 600)?;
    let mut data = prefix.clone();
    data.extend(bytes(u, 100)?);
    let data = mutate(u, data)?;
    let encoded = match u.arbitrary()? {
        true => Encoded::by_zstd(&prefix, &data).ok(),
        false => Encoded::by_rsync(&prefix, &data),
    };
    let Some(encoded) = encoded else { return Ok(Vec::new()) };
    assert_eq!(encoded.restore(&prefix, data.len()).expect("what was encoded"), data);
    let (how, delta_bytes) = match encoded.encoding {
        DeltaEncoding::ZstdPrefix => (0, 0),
        DeltaEncoding::Rsync { delta_bytes } => (1, delta_bytes as u32),
    };
    let mut out = vec![how];
    out.extend((data.len() as u32).to_le_bytes());
    out.extend(delta_bytes.to_le_bytes());
    out.extend((prefix.len() as u16).to_le_bytes());
    out.extend(prefix);
    out.extend(encoded.compressed);
    Ok(out)
}
