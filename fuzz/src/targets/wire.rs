//! Messages of the fetch streams.

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use prost::Message;
use syncd_proto::v1;
use syncd_proto::v1::fetch_frame::Frame as F;
use syncd_shared::Kind;
use syncd_shared::diff::DirectorySource as _;
use syncd_shared::directory::Page;
use syncd_shared::limits::{FRAME_MAX_BYTES, FRAME_PIECES_MAX, OBJECTS_BATCH_MAX};
use syncd_shared::stored_frame::FrameBuffer;
use syncd_shared::wire::{DirectoryPatch, Frame, ObjectsBatch, WireError};
use syncd_shared::{ObjectHash, RootEntry, RootHash, update_file};

use crate::mutation::{mutate, number};
use crate::values::{self, Pages, bytes, compressed, sampled};

fn received(frame: F) -> std::result::Result<Frame, WireError> {
    Frame::from_message(v1::FetchFrame { item: 0, frame: Some(frame) })
}

/// A whole message, as received.
pub(super) fn fetch_frame(input: &[u8]) {
    let Ok(message) = v1::FetchFrame::decode(input) else { return };
    match Frame::from_message(message) {
        Ok(Frame::Stored(frame)) => {
            let _ = FrameBuffer::default().decompress(&frame);
        }
        Ok(Frame::Patches(patches)) => patches.iter().for_each(apply),
        Ok(Frame::Directories(objects)) => {
            for object in &objects {
                let _ = Page::decode(object);
            }
        }
        Ok(Frame::Delta(delta)) => super::delta::check(&delta),
        Ok(Frame::End { missing, .. }) => assert!(missing.len() <= OBJECTS_BATCH_MAX),
        Ok(Frame::Local { .. } | Frame::PartEnd) | Err(_) => {}
    }
}

/// An update file in memory.
pub(super) fn update_file(input: &[u8]) {
    let Ok((index, frames)) = update_file::read_whole(&Bytes::copy_from_slice(input)) else { return };
    assert!(frames.iter().zip(index.frames()).all(|(frame, place)| place.is_of(frame)));
    let again =
        update_file::write_whole(&index.from(), &index.to(), &frames).expect("it was within the limits");
    assert_eq!(&again[..], input);
}

pub(super) fn any_update_file(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let (from, to) = (RootHash::from_bytes(u.arbitrary()?), RootHash::from_bytes(u.arbitrary()?));
    let mut frames = Vec::new();
    for _ in 0..u.int_in_range(0..=4u8)? {
        frames.push(bytes(u, 100)?);
    }
    let file = update_file::write_whole(&from, &to, &frames).expect("fits");
    mutate(u, file.to_vec())
}

pub(super) fn any_fetch_frame(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let frame = match u.int_in_range(0..=5u8)? {
        0 => {
            let mut objects = Vec::new();
            for object in [values::page(u)?, values::page(u)?] {
                objects.extend((object.len() as u32).to_le_bytes());
                objects.extend(object);
            }
            let length = if u.ratio(1, 4)? { number(u)? as u32 } else { objects.len() as u32 };
            F::Directories(v1::DirectoryObjects {
                compressed: compressed(&objects),
                uncompressed_bytes: length,
            })
        }
        1 => F::Patches(patches_message(&patch_list(u)?.encode_to_vec())),
        2 => F::Stored(stored_message(&bytes(u, 200)?, &stored_places(u)?.encode_to_vec())),
        3 => F::Local(v1::LocalContent { file: hash(u)?, source_path: values::name(u)?.into() }),
        4 => F::Delta(super::delta::message(&super::delta::some_places(u)?.encode_to_vec())),
        _ => F::End(v1::BatchEnd { request: number(u)?, missing: vec![hash(u)?], more: u.arbitrary()? }),
    };
    let item = number(u)?;
    mutate(u, v1::FetchFrame { item, frame: Some(frame) }.encode_to_vec())
}

/// Mostly 32 bytes.
pub(super) fn hash(u: &mut Unstructured<'_>) -> Result<Bytes> {
    let length = if u.ratio(1, 16)? { u.int_in_range(0..=40usize)? } else { 32 };
    Ok((0..length).map(|_| u.arbitrary()).collect::<Result<Vec<u8>>>()?.into())
}

fn stored_message(content: &[u8], places: &[u8]) -> v1::StoredFrame {
    v1::StoredFrame {
        compressed: compressed(content),
        uncompressed_bytes: content.len() as u32,
        places: compressed(places),
        places_bytes: places.len() as u32,
    }
}

/// `u16` length of the content, then the content; the rest is `StoredPlaces`, uncompressed.
pub(super) fn stored_frame(input: &[u8]) {
    let Some((length, rest)) = input.split_first_chunk::<2>() else { return };
    let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
    let (content, places) = rest.split_at(length);
    let raw = v1::StoredFrame {
        compressed: Bytes::copy_from_slice(content),
        uncompressed_bytes: length as u32,
        places: Bytes::copy_from_slice(places),
        places_bytes: places.len() as u32,
    };
    if let Ok(Frame::Stored(frame)) = received(F::Stored(raw)) {
        let _ = FrameBuffer::default().decompress(&frame);
    }
    let Ok(Frame::Stored(frame)) = received(F::Stored(stored_message(content, places))) else { return };
    assert!(frame.pieces.len() <= FRAME_PIECES_MAX && frame.uncompressed_bytes <= FRAME_MAX_BYTES);
    let mut buffer = FrameBuffer::default();
    let whole = buffer.decompress(&frame).expect("it was just compressed");
    assert_eq!(whole, content);
    for piece in &frame.pieces {
        let start = piece.frame_offset as usize;
        assert!(piece.length_bytes > 0 && whole.get(start..start + piece.length_bytes as usize).is_some());
        assert!(piece.file_offset.checked_add(u64::from(piece.length_bytes)).is_some());
    }
    if !sampled(input, 16) {
        return;
    }
    match received(F::Stored(frame.to_message())) {
        Ok(Frame::Stored(again)) => assert_eq!(again.pieces, frame.pieces),
        other => panic!("what was accepted is not accepted again: {other:?}"),
    }
}

fn stored_places(u: &mut Unstructured<'_>) -> Result<v1::StoredPlaces> {
    let mut places = v1::StoredPlaces::default();
    let mut files = Vec::new();
    for _ in 0..u.int_in_range(0..=4usize)? {
        files.extend(u.arbitrary::<[u8; 5]>()?);
        places.gaps.push(if u.ratio(1, 4)? { number(u)? as i64 } else { u.int_in_range(0..=8)? });
        places.lengths.push(if u.ratio(1, 8)? { number(u)? as u32 } else { u.int_in_range(0..=50)? });
        places.file_offsets.push(number(u)?);
    }
    if u.ratio(1, 8)? {
        places.lengths.pop();
    }
    places.files = files.into();
    Ok(places)
}

pub(super) fn any_stored_frame(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let content = bytes(u, 200)?;
    let places = stored_places(u)?.encode_to_vec();
    mutate(u, [&(content.len() as u16).to_le_bytes()[..], &content, &places].concat())
}

fn patches_message(list: &[u8]) -> v1::DirectoryPatches {
    v1::DirectoryPatches { compressed: compressed(list), uncompressed_bytes: list.len() as u32 }
}

/// `DirectoryPatchList`, uncompressed.
pub(super) fn patches(input: &[u8]) {
    if let Ok(Frame::Patches(patches)) = received(F::Patches(patches_message(input))) {
        patches.iter().for_each(apply);
        // Encoding compresses at a high level.
        if sampled(input, 64) {
            match received(F::Patches(syncd_shared::wire::patches_message(&patches))) {
                Ok(Frame::Patches(again)) => assert_eq!(again, patches),
                other => panic!("what was accepted is not accepted again: {other:?}"),
            }
        }
    }
    let message = v1::DirectoryPatches {
        compressed: Bytes::copy_from_slice(input),
        uncompressed_bytes: (input.len() as u32).saturating_mul(4),
    };
    let _ = received(F::Patches(message));
}

/// A patch with a result other than promised must be rejected; any other result must be canonical.
fn apply(patch: &DirectoryPatch) {
    let mut pages = Pages::default();
    let on_nothing = DirectoryPatch { from: None, ..patch.clone() };
    // Sums that are too large make pages that do not decode.
    let Ok(built) = on_nothing.apply(&pages) else { return };
    let Some(root) = pages.keep(&built) else { return };
    let honest = DirectoryPatch { to: root, ..on_nothing };
    honest.check(&built).expect("it yields what it promises");
    let other = DirectoryPatch { to: ObjectHash::from_bytes([0; 32]), ..honest };
    assert!(matches!(other.check(&built), Err(WireError::PatchResult { .. })));
    let directory = pages.directory(&root).expect("canonical");
    assert_eq!(directory.hash(), root);
    let removing = DirectoryPatch {
        removed: directory.entries().iter().map(|entry| entry.name.clone()).collect(),
        entries: Vec::new(),
        to: RootEntry::empty().object,
        from: Some(root),
    };
    let built = removing.apply(&pages).expect("reads");
    removing.check(&built).expect("removes all");
}

fn patch(u: &mut Unstructured<'_>) -> Result<DirectoryPatch> {
    let (from, to) = (values::directory(u)?, values::directory(u)?);
    let promised = if u.ratio(1, 8)? { ObjectHash::from_bytes(u.arbitrary()?) } else { to.hash() };
    let removed = from.entries().iter().map(|entry| &entry.name);
    let removed = removed.filter(|name| to.get(name).is_none()).cloned().collect();
    Ok(DirectoryPatch { from: Some(from.hash()), to: promised, removed, entries: to.entries().to_vec() })
}

fn patch_list(u: &mut Unstructured<'_>) -> Result<v1::DirectoryPatchList> {
    let patch = patch(u)?;
    let mut hashes = Vec::new();
    for entry in &patch.entries {
        match entry.kind {
            Kind::File { content, .. } => hashes.extend_from_slice(content.as_bytes()),
            Kind::Directory { object, .. } => hashes.extend_from_slice(object.as_bytes()),
            Kind::Symlink { .. } | Kind::Collected { .. } => {}
        }
    }
    Ok(v1::DirectoryPatchList {
        patches: vec![v1::DirectoryPatch {
            from_object: hash(u)?,
            to_object: Bytes::copy_from_slice(patch.to.as_bytes()),
            removed_names: vec![values::name(u)?.into()],
            entries: syncd_shared::directory::encode_entries(&patch.entries).into(),
            hashes: hashes.into(),
        }],
    })
}

pub(super) fn any_patches(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let list = patch_list(u)?.encode_to_vec();
    mutate(u, list)
}

/// A request of an agent.
pub(super) fn fetch_request(input: &[u8]) {
    let Ok(message) = v1::FetchRequest::decode(input) else { return };
    let Some(v1::fetch_request::Request::Objects(request)) = message.request else { return };
    let Ok((root, batch)) = ObjectsBatch::from_message(&request) else { return };
    let entries: Vec<u32> = (0..100).collect();
    for of in &batch.files_of {
        let taken: Vec<u32> = of.of(&entries).copied().collect();
        assert!(taken.len() as u64 <= of.count() && taken.is_sorted());
    }
    assert_eq!(ObjectsBatch::from_message(&batch.to_message(root)).expect("it was accepted"), (root, batch));
}

pub(super) fn any_fetch_request(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    use v1::fetch_request::Request;
    let request = if u.ratio(1, 4)? {
        Request::Update(v1::UpdateRequest {
            from_root: hash(u)?,
            to_root: hash(u)?,
            first_item: number(u)?,
            features: vec!["deltas".into()],
        })
    } else {
        let mut request = ObjectsBatch::default().to_message(RootHash::from_bytes(u.arbitrary()?));
        request.directories.push(hash(u)?);
        request.files.push(hash(u)?);
        let runs = (0..u.int_in_range(0..=5usize)?).map(|_| Ok(number(u)? as u32)).collect::<Result<_>>()?;
        request.files_of.push(v1::DirectoryFiles { directory: hash(u)?, runs });
        Request::Objects(request)
    };
    mutate(u, v1::FetchRequest { request: Some(request) }.encode_to_vec())
}
