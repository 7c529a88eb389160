//! Conversion of messages to domain types. Everything is checked: results are well-formed and within the
//! limits.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

mod fields;
mod patches;

use bytes::Bytes;
use prost::Message;
use syncd_proto::v1;

use crate::delta::DeltaFrame;
use crate::diff::DirectorySource;
use crate::directory::{
    Built, DecodeDirectoryError, Edits, Entry, Kind, Overlay, Pairs, Totals, decode_entry_list, edit,
    encode_entries,
};
use crate::hash::{ContentHash, ObjectHash, ParseHashError, RootHash};
use crate::limits::{
    DIRECTORY_ENTRIES_MAX, DIRECTORY_FRAME_BYTES, OBJECTS_BATCH_MAX, PATCH_BYTES, PATCH_NAMES_MAX,
};
use crate::stored_frame::StoredFrame;
use crate::tree_path::{Component, TreePath, TreePathError};
use crate::update_file::UpdateFileError;

pub(crate) use fields::Fields;
use patches::PATCHES_MAX_BYTES;

/// Feature in Hello, Welcome and UpdateRequest by which a side announces that it understands
/// [`Frame::Delta`].
pub const FEATURE_DELTAS: &str = "deltas";

/// Feature in Welcome by which an origin announces that it serves collected directories.
pub const FEATURE_COLLECTED: &str = "collected";

/// zstd level for data compressed separately for each agent.
const ZSTD_LEVEL: i32 = 3;
/// zstd level for data compressed once for all agents.
const ZSTD_LEVEL_ONCE: i32 = 12;

/// Reasons to reject a message.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// A required field is missing.
    #[error("message has no {field}")]
    Missing { field: &'static str },
    /// A hash whose length is not 32 bytes.
    #[error("invalid hash in {field}")]
    Hash { field: &'static str, source: ParseHashError },
    /// An invalid path or name.
    #[error("invalid path")]
    Path(#[from] TreePathError),
    /// Invalid directory entries.
    #[error("invalid directory entries")]
    Entries(#[from] DecodeDirectoryError),
    #[error("{what}: {actual} exceeds {limit}")]
    Limit {
        /// The limited quantity.
        what: &'static str,
        /// Amount given.
        actual: u64,
        limit: u64,
    },
    /// A content tag whose length is not 5 bytes.
    #[error("invalid content tag in {field}")]
    Tag { field: &'static str },
    /// A content tag that matches no content of the update.
    #[error("content tag of no content of the update")]
    UnknownTag,
    /// An rsync delta that cannot be applied.
    #[error("damaged rsync delta")]
    Rsync(#[source] fast_rsync::ApplyError),
    /// A piece outside its frame or file.
    #[error("piece lies outside its frame")]
    PieceRange,
    /// Invalid compressed data, or a length other than announced.
    #[error("damaged compressed data")]
    Compression(#[source] std::io::Error),
    /// Decompressed data has another length than announced.
    #[error("decompressed to {actual} bytes, expected {expected}")]
    Length { expected: usize, actual: usize },
    #[error(transparent)]
    UpdateFile(#[from] UpdateFileError),
    /// An announcement whose update leads elsewhere.
    #[error("an update to {to}, which is not what was announced")]
    OtherUpdate { to: RootHash },
    /// Bytes that are not a message.
    #[error("malformed message")]
    Decode(#[from] prost::DecodeError),
    /// A patch whose result is not the promised object.
    #[error("directory patch yields {actual}, expected {expected}")]
    PatchResult { expected: ObjectHash, actual: ObjectHash },
}

pub(crate) fn limit(what: &'static str, actual: usize, limit: usize) -> Result<(), WireError> {
    if actual > limit {
        return Err(WireError::Limit { what, actual: actual as u64, limit: limit as u64 });
    }
    Ok(())
}

pub fn root_hash(bytes: &[u8], field: &'static str) -> Result<RootHash, WireError> {
    RootHash::try_from(bytes).map_err(|source| WireError::Hash { field, source })
}

pub fn object_hash(bytes: &[u8], field: &'static str) -> Result<ObjectHash, WireError> {
    ObjectHash::try_from(bytes).map_err(|source| WireError::Hash { field, source })
}

pub fn content_hash(bytes: &[u8], field: &'static str) -> Result<ContentHash, WireError> {
    ContentHash::try_from(bytes).map_err(|source| WireError::Hash { field, source })
}

/// Compresses bytes separately for each agent.
pub(crate) fn compress(bytes: &[u8]) -> Bytes {
    compress_at(bytes, ZSTD_LEVEL)
}

fn compress_at(bytes: &[u8], level: i32) -> Bytes {
    zstd::bulk::compress(bytes, level).expect("compressing memory into memory does not fail").into()
}

/// Decompresses exactly `expected` bytes. Any other length is an error, and no more is ever allocated.
pub fn decompress(compressed: &[u8], expected: usize) -> Result<Vec<u8>, WireError> {
    let bytes = zstd::bulk::decompress(compressed, expected).map_err(WireError::Compression)?;
    if bytes.len() != expected {
        return Err(WireError::Length { expected, actual: bytes.len() });
    }
    Ok(bytes)
}

/// A message of a fetch stream, checked for form only. Content is not yet checked against its hashes.
#[derive(Debug, Clone)]
pub enum Frame {
    /// Canonical bytes of directory objects.
    Directories(Vec<Vec<u8>>),
    /// Changed directories, parents before children.
    Patches(Vec<DirectoryPatch>),
    /// Content as the store keeps it.
    Stored(StoredFrame),
    /// Content that the basis tree already has.
    Local {
        file: ContentHash,
        /// Its path in the tree that the update starts from.
        source: TreePath,
    },
    /// Content made from content of the basis tree.
    Delta(DeltaFrame),
    /// One part of an update is complete; more will follow.
    PartEnd,
    /// The answer to one request is complete.
    End {
        /// Ordinal of the request on its stream, from 0.
        request: u64,
        /// Hashes of content that the origin does not have, or no longer has.
        missing: Vec<[u8; 32]>,
    },
}

impl Frame {
    /// Checks the form of a message.
    pub fn from_message(message: v1::FetchFrame) -> Result<Self, WireError> {
        let any = Totals { entries: DIRECTORY_ENTRIES_MAX, files: 0, bytes: 0 };
        Self::from_message_within(message, &any)
    }

    /// Like [`Self::from_message`], for trees within these signed totals. Anything that cannot fit them is
    /// rejected before memory is allocated for it.
    pub fn from_message_within(message: v1::FetchFrame, totals: &Totals) -> Result<Self, WireError> {
        use v1::fetch_frame::Frame as F;
        match message.frame.ok_or(WireError::Missing { field: "frame" })? {
            F::Directories(d) => {
                let expected = d.uncompressed_bytes as usize;
                limit("directory frame", expected, DIRECTORY_FRAME_BYTES)?;
                let bytes = decompress(&d.compressed, expected)?;
                split_objects(&bytes).map(Self::Directories)
            }
            F::Patches(p) => {
                let expected = p.uncompressed_bytes as usize;
                limit("directory patches", expected, PATCHES_MAX_BYTES)?;
                let bytes = decompress(&p.compressed, expected)?;
                patches::decode_list(&bytes, totals.entries).map(Self::Patches)
            }
            F::Stored(s) => StoredFrame::from_message(s).map(Self::Stored),
            F::Local(l) => Ok(Self::Local {
                file: content_hash(&l.file, "file")?,
                source: TreePath::from_bytes(&l.source_path)?,
            }),
            F::Delta(d) => DeltaFrame::from_message(d).map(Self::Delta),
            F::End(e) if e.more => Ok(Self::PartEnd),
            F::End(e) => {
                limit("missing objects", e.missing.len(), OBJECTS_BATCH_MAX)?;
                let missing = e.missing.iter().map(|m| {
                    m.as_ref()
                        .try_into()
                        .map_err(|_| WireError::Hash { field: "missing", source: ParseHashError })
                });
                Ok(Self::End { request: e.request, missing: missing.collect::<Result<_, _>>()? })
            }
        }
    }
}

fn split_objects(all: &[u8]) -> Result<Vec<Vec<u8>>, WireError> {
    let mut objects = Vec::new();
    let mut bytes = all;
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk::<4>().ok_or(WireError::Missing { field: "length" })?;
        let length = u32::from_le_bytes(*length) as usize;
        let cut = || WireError::Length { expected: length, actual: rest.len() };
        let (object, after) = rest.split_at_checked(length).ok_or_else(cut)?;
        if object.is_empty() {
            return Err(WireError::Missing { field: "directory object" });
        }
        objects.push(object.to_vec());
        bytes = after;
    }
    Ok(objects)
}

/// Packs canonical directory objects into one message.
pub fn directories_message<'a>(objects: impl IntoIterator<Item = &'a [u8]>) -> v1::DirectoryObjects {
    let mut bytes = Vec::new();
    for object in objects {
        bytes.extend_from_slice(&(object.len() as u32).to_le_bytes());
        bytes.extend_from_slice(object);
    }
    v1::DirectoryObjects { compressed: compress(&bytes), uncompressed_bytes: bytes.len() as u32 }
}

/// Packs directory patches into one message.
pub fn patches_message(patches: &[DirectoryPatch]) -> v1::DirectoryPatches {
    let list = v1::DirectoryPatchList { patches: patches.iter().map(DirectoryPatch::to_message).collect() };
    let bytes = list.encode_to_vec();
    let compressed = compress_at(&bytes, ZSTD_LEVEL_ONCE);
    v1::DirectoryPatches { compressed, uncompressed_bytes: bytes.len() as u32 }
}

/// Changes that turn one directory into another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryPatch {
    /// Object to change; `None` for the empty directory.
    pub from: Option<ObjectHash>,
    /// Object that must result.
    pub to: ObjectHash,
    /// Removed names.
    pub removed: Vec<Component>,
    /// Added or changed entries, sorted by name.
    pub entries: Vec<Entry>,
}

impl DirectoryPatch {
    /// Passes the patches that make `to` of `from` to `emit`: a chain of directories, each with at most
    /// [`PATCH_NAMES_MAX`] names changed. Reads only pages that differ.
    pub fn between<S: DirectorySource, E: From<S::Error>>(
        source: &S,
        from: Option<ObjectHash>,
        to: ObjectHash,
        emit: &mut dyn FnMut(Self) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut steps = Overlay::of(source, &[]).map_err(S::Error::from)?;
        let mut pairs = Pairs::new(source, from, Some(to))?;
        let mut patch = Self { from, to, removed: Vec::new(), entries: Vec::new() };
        let mut bytes = 0usize;
        while let Some((old, new)) = pairs.next_pair()? {
            if patch.removed.len().saturating_add(patch.entries.len()) >= PATCH_NAMES_MAX
                || bytes >= PATCH_BYTES
            {
                let built = edit(&steps, patch.from, &patch.edits())?;
                steps.add(&built.pages).map_err(S::Error::from)?;
                let (removed, entries) = (Vec::new(), Vec::new());
                let next = Self { from: Some(built.root), to, removed, entries };
                emit(Self { to: built.root, ..std::mem::replace(&mut patch, next) })?;
                bytes = 0;
            }
            match (old, new) {
                (_, Some(entry)) => {
                    bytes = bytes.saturating_add(entry.encoded_bytes());
                    patch.entries.push(entry);
                }
                (Some(entry), None) => patch.removed.push(entry.name),
                (None, None) => {}
            }
        }
        emit(patch)
    }

    /// The names that it changes.
    fn edits(&self) -> Edits {
        let removed = self.removed.iter().map(|name| (name.clone(), None));
        let entries = self.entries.iter().map(|entry| (entry.name.clone(), Some(entry.clone())));
        removed.chain(entries).collect()
    }

    /// Applies the patch. The result is not yet the promised one: see [`Self::check`].
    pub fn apply<S: DirectorySource>(&self, source: &S) -> Result<Built, S::Error> {
        edit(source, self.from, &self.edits())
    }

    /// Checks the result against [`DirectoryPatch::to`].
    pub fn check(&self, built: &Built) -> Result<(), WireError> {
        if built.root == self.to {
            Ok(())
        } else {
            Err(WireError::PatchResult { expected: self.to, actual: built.root })
        }
    }

    fn from_message(message: v1::DirectoryPatch, entries_max: u64) -> Result<Self, WireError> {
        let from = match message.from_object.as_ref() {
            [] => None,
            bytes => Some(object_hash(bytes, "from_object")?),
        };
        let mut removed =
            message.removed_names.iter().map(|n| Component::new(n)).collect::<Result<Vec<_>, _>>()?;
        removed.sort_unstable();
        Ok(Self {
            from,
            to: object_hash(&message.to_object, "to_object")?,
            removed,
            entries: join_hashes(decode_entry_list(&message.entries, entries_max)?, &message.hashes)?,
        })
    }

    fn to_message(&self) -> v1::DirectoryPatch {
        let (entries, hashes) = split_hashes(&self.entries);
        v1::DirectoryPatch {
            from_object: self.from.map_or(Bytes::new(), |h| Bytes::copy_from_slice(h.as_bytes())),
            to_object: Bytes::copy_from_slice(self.to.as_bytes()),
            removed_names: self.removed.iter().map(|n| Bytes::copy_from_slice(n.as_bytes())).collect(),
            entries: encode_entries(&entries).into(),
            hashes: hashes.into(),
        }
    }
}

/// Separates hashes from entries, which compress well without them.
fn split_hashes(entries: &[Entry]) -> (Vec<Entry>, Vec<u8>) {
    let mut entries = entries.to_vec();
    let mut hashes = Vec::new();
    for entry in &mut entries {
        match &mut entry.kind {
            Kind::File { content, .. } => {
                hashes.extend_from_slice(content.as_bytes());
                *content = ContentHash::from_bytes([0; 32]);
            }
            Kind::Directory { object, .. } => {
                hashes.extend_from_slice(object.as_bytes());
                *object = ObjectHash::from_bytes([0; 32]);
            }
            Kind::Symlink { .. } | Kind::Collected { .. } => {}
        }
    }
    (entries, hashes)
}

/// Reverses [`split_hashes`].
fn join_hashes(mut entries: Vec<Entry>, hashes: &[u8]) -> Result<Vec<Entry>, WireError> {
    let wrong = || WireError::Hash { field: "hashes", source: ParseHashError };
    let (hashes, rest) = hashes.as_chunks::<32>();
    let mut hashes = hashes.iter();
    for entry in &mut entries {
        match &mut entry.kind {
            Kind::File { content, .. } => {
                *content = ContentHash::from_bytes(*hashes.next().ok_or_else(wrong)?)
            }
            Kind::Directory { object, .. } => {
                *object = ObjectHash::from_bytes(*hashes.next().ok_or_else(wrong)?);
            }
            Kind::Symlink { .. } | Kind::Collected { .. } => {}
        }
    }
    if hashes.next().is_some() || !rest.is_empty() {
        return Err(wrong());
    }
    Ok(entries)
}

/// A request of an agent for objects named by hash.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObjectsBatch {
    pub directories: Vec<ObjectHash>,
    /// Also everything below the directories.
    pub recursive: bool,
    pub files: Vec<ContentHash>,
    /// Files of whole directories, sent after `files`.
    pub files_of: Vec<DirectoryFiles>,
    /// Allows content in the answer to the preceding batch, in frames that both batches need.
    pub early: bool,
}

/// Selects some files of a page of a directory without naming each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryFiles {
    pub directory: ObjectHash,
    /// Alternating counts of entries to skip and entries to take, in the object's order.
    runs: Vec<u32>,
}

impl DirectoryFiles {
    /// Selects entries by ascending index.
    pub fn new(directory: ObjectHash, entries: impl IntoIterator<Item = u32>) -> Self {
        let (mut runs, mut next) = (Vec::<u32>::new(), 0u32);
        for entry in entries {
            match runs.last_mut() {
                Some(taken) if entry == next => *taken = taken.saturating_add(1),
                _ => runs.extend([entry.saturating_sub(next), 1]),
            }
            next = entry.saturating_add(1);
        }
        Self { directory, runs }
    }

    /// Number of selected entries.
    pub fn count(&self) -> u64 {
        self.runs.iter().skip(1).step_by(2).map(|taken| u64::from(*taken)).sum()
    }

    /// The selected items of a list parallel to the directory's entries. Indices past its end are ignored.
    pub fn of<'a, T>(&self, entries: &'a [T]) -> impl Iterator<Item = &'a T> + use<'a, '_, T> {
        let mut next = 0usize;
        self.runs.chunks(2).flat_map(move |run| {
            let start = next.saturating_add(run.first().map_or(0, |left_out| *left_out as usize));
            next = start.saturating_add(run.get(1).map_or(0, |taken| *taken as usize));
            entries.get(start.min(entries.len())..next.min(entries.len())).unwrap_or_default()
        })
    }
}

impl ObjectsBatch {
    /// Checks the form of a message. Returns the root that all objects belong to, and the batch.
    pub fn from_message(message: &v1::ObjectsRequest) -> Result<(RootHash, Self), WireError> {
        let mut files_of = Vec::with_capacity(message.files_of.len());
        for message in &message.files_of {
            let directory = object_hash(&message.directory, "directory")?;
            files_of.push(DirectoryFiles { directory, runs: message.runs.clone() });
        }
        let of_directories = files_of.iter().fold(0u64, |sum, of| sum.saturating_add(of.count()));
        let named = [message.directories.len(), message.files.len(), files_of.len()];
        let named = named.into_iter().fold(0, usize::saturating_add);
        let wanted = of_directories.saturating_add(named as u64);
        limit("objects in a batch", usize::try_from(wanted).unwrap_or(usize::MAX), 2 * OBJECTS_BATCH_MAX)?;
        let directories =
            message.directories.iter().map(|h| object_hash(h, "directories")).collect::<Result<_, _>>()?;
        let files = message.files.iter().map(|h| content_hash(h, "files")).collect::<Result<_, _>>()?;
        let (recursive, early) = (message.recursive, message.early);
        let batch = Self { directories, recursive, files, files_of, early };
        Ok((root_hash(&message.root, "root")?, batch))
    }

    pub fn to_message(&self, root: RootHash) -> v1::ObjectsRequest {
        v1::ObjectsRequest {
            root: Bytes::copy_from_slice(root.as_bytes()),
            directories: self.directories.iter().map(|h| Bytes::copy_from_slice(h.as_bytes())).collect(),
            recursive: self.recursive,
            files: self.files.iter().map(|h| Bytes::copy_from_slice(h.as_bytes())).collect(),
            files_of: self.files_of.iter().map(DirectoryFiles::to_message).collect(),
            early: self.early,
        }
    }
}

impl DirectoryFiles {
    fn to_message(&self) -> v1::DirectoryFiles {
        let directory = Bytes::copy_from_slice(self.directory.as_bytes());
        v1::DirectoryFiles { directory, runs: self.runs.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Directory;
    use crate::directory::pages_tests::{Pages, patches};
    use crate::directory::tests::{any_entry, file, symlink};
    use proptest::prelude::*;

    fn directory(mut entries: Vec<Entry>) -> Directory {
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        entries.dedup_by(|a, b| a.name == b.name);
        Directory::new(entries).expect("unique names")
    }

    proptest! {
        #[test]
        fn a_patch_turns_one_directory_into_the_other(
            a in proptest::collection::vec(any_entry(), 0..12),
            b in proptest::collection::vec(any_entry(), 0..12),
            common in proptest::collection::vec(any_entry(), 0..12),
        ) {
            let from = directory(a.into_iter().chain(common.clone()).collect());
            let to = directory(b.into_iter().chain(common).collect());
            let mut pages = Pages::default();
            let (from, to) = (pages.put(&from), pages.put(&to));
            let [patch] = &patches(&pages, Some(from), to)[..] else { panic!("one patch") };
            let frame = v1::FetchFrame { item: 0, frame: Some(v1::fetch_frame::Frame::Patches(patches_message(std::slice::from_ref(patch)))) };
            let Frame::Patches(read) = Frame::from_message(frame).expect("well-formed") else { panic!("patches") };
            prop_assert_eq!(&read[0], patch);
            prop_assert_eq!(read[0].apply(&pages).expect("applies").root, to);
        }

        #[test]
        fn random_messages_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(message) = v1::FetchFrame::decode(bytes.as_slice()) {
                let _ = Frame::from_message(message);
            }
            let _ = split_objects(&bytes);
        }
    }

    #[test]
    fn runs_name_the_entries_that_they_were_made_from() {
        let entries: Vec<u32> = (0..20).collect();
        for wanted in [vec![], vec![0], vec![3], vec![0, 1, 2, 5, 6, 19], (0..20).collect()] {
            let of = DirectoryFiles::new(ObjectHash::from_bytes([1; 32]), wanted.iter().copied());
            assert_eq!(of.count(), wanted.len() as u64);
            assert_eq!(of.of(&entries).copied().collect::<Vec<_>>(), wanted);
            assert_eq!(of.of(&entries[..4]).count(), wanted.iter().filter(|index| **index < 4).count());
        }
    }

    #[test]
    fn runs_of_absurd_lengths_are_refused_or_end_with_the_directory() {
        let of = |runs| DirectoryFiles { directory: ObjectHash::from_bytes([1; 32]), runs };
        assert_eq!(of(vec![u32::MAX, u32::MAX, u32::MAX, 1]).of(&[1, 2, 3]).count(), 0);
        let batch = ObjectsBatch { files_of: vec![of(vec![0, u32::MAX])], ..ObjectsBatch::default() };
        let message = batch.to_message(RootHash::from_bytes([2; 32]));
        assert!(matches!(ObjectsBatch::from_message(&message), Err(WireError::Limit { .. })));
    }

    #[test]
    fn a_patch_needs_one_hash_for_each_entry_that_has_one() {
        let entries = vec![file("a", b"1"), symlink("b", "a"), file("c", b"2")];
        let (without, hashes) = split_hashes(&entries);
        assert_eq!(join_hashes(without.clone(), &hashes).expect("two hashes"), entries);
        for bad in [&hashes[..32], &hashes[..63], &[&hashes[..], &hashes[..32]].concat()] {
            assert!(matches!(join_hashes(without.clone(), bad), Err(WireError::Hash { .. })));
        }
    }

    fn patches_of(list: &[u8]) -> Result<Frame, WireError> {
        let patches =
            v1::DirectoryPatches { compressed: compress(list), uncompressed_bytes: list.len() as u32 };
        Frame::from_message(v1::FetchFrame { item: 0, frame: Some(v1::fetch_frame::Frame::Patches(patches)) })
    }

    #[test]
    fn what_grows_a_hundredfold_when_it_is_decoded_is_refused_before() {
        // Empty patches: 2 bytes of a list, 160 once decoded.
        let empty = patches_of(&[0x0a, 0].repeat(1024 * 1024));
        assert!(matches!(empty, Err(WireError::Hash { field: "to_object", .. })));
        let patch = |name: &[u8], count: usize| {
            v1::DirectoryPatch {
                to_object: vec![1; 32].into(),
                removed_names: vec![Bytes::copy_from_slice(name); count],
                ..Default::default()
            }
            .encode_to_vec()
        };
        let list = |patches: &[&[u8]]| {
            let mut list = Vec::new();
            for patch in patches {
                prost::encoding::encode_key(1, prost::encoding::WireType::LengthDelimited, &mut list);
                prost::encoding::encode_varint(patch.len() as u64, &mut list);
                list.extend_from_slice(patch);
            }
            list
        };
        let large = patch(&[b'n'; 200], DIRECTORY_FRAME_BYTES / 200);
        assert!(patches_of(&list(&[&large])).is_ok());
        let several = patches_of(&list(&[&large, &large]));
        assert!(matches!(several, Err(WireError::Limit { what: "directory patches", .. })));
    }

    #[test]
    fn objects_of_a_frame_have_their_lengths() {
        let objects = |bytes: &[u8]| split_objects(bytes).map(|objects| objects.len());
        assert_eq!(objects(&[1, 0, 0, 0, 7].repeat(100)).expect("a frame"), 100);
        assert!(objects(&[0, 0, 0, 0]).is_err());
        assert!(objects(&[2, 0, 0, 0, 7]).is_err());
    }

    #[test]
    fn a_patch_against_other_bytes_is_refused() {
        let mut pages = Pages::default();
        let from = pages.put(&directory(vec![file("a", b"1")]));
        let to = pages.put(&directory(vec![file("a", b"1"), symlink("b", "a")]));
        let [patch] = &patches(&pages, Some(from), to)[..] else { panic!("one patch") };
        assert_eq!(patch.entries.len(), 1);
        let other = pages.put(&directory(vec![file("a", b"2")]));
        let patch = DirectoryPatch { from: Some(other), ..patch.clone() };
        let built = patch.apply(&pages).expect("has the pages");
        assert!(matches!(patch.check(&built), Err(WireError::PatchResult { .. })));
    }

    #[test]
    fn lying_lengths_are_refused() {
        let bytes = vec![7u8; 1000];
        assert!(decompress(&compress(&bytes), 999).is_err());
        assert!(decompress(&compress(&bytes), 1001).is_err());
    }
}
