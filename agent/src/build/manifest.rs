//! Obtains the target's manifest: every directory object, verified, is in the record before any content is
//! asked for.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use syncd_shared::diff::{Comparison, DiffError, DirectorySource, PartLimits};
use syncd_shared::directory::{Cursor, Overlay, Page, object_hash_of};
use syncd_shared::limits::{OBJECTS_BATCH_MAX, directory_objects_max};
use syncd_shared::wire::{DirectoryPatch, Frame, ObjectsBatch};
use syncd_shared::{Kind, ObjectHash, RootEntry, RootHash, Totals};

use crate::build::StageError;
use crate::build::duplicates::Duplicates;
use crate::build::receive_budget::ReceiveBudget;
use crate::build::space::Demand;
use crate::source::{FetchError, Frames, Source, all_of};
use crate::state::record::{Record, RecordError};

/// Canonical bytes of directory objects collected before they are written to the record.
const KEEP_BYTES: usize = 512 * 1024;
/// Bytes written to the record before they are made durable.
const PERSIST_BYTES: usize = 4 * 1024 * 1024;

/// The differences from the live tree, and the remaining frames of an update if the origin sent one.
pub(crate) struct Manifest<'a> {
    pub comparison: Comparison<&'a Record>,
    pub update: Option<Frames>,
}

/// Directory objects of the record, as they came from the origin: boundaries of pages, their order and sums
/// are checked, and the totals of each directory against those in its parent's entry.
struct Checked<'a> {
    record: &'a Record,
    expected: RefCell<HashMap<ObjectHash, Totals>>,
}

impl DirectorySource for Checked<'_> {
    type Error = RecordError;

    fn page(&self, hash: &ObjectHash) -> Result<Arc<Page>, RecordError> {
        let page = self.record.page(hash)?;
        let mut expected = self.expected.borrow_mut();
        if let Some(said) = expected.get(hash)
            && page.totals() != *said
        {
            return Err(RecordError::Totals { object: *hash });
        }
        for entry in page.entries() {
            if let Kind::Directory { object, totals } = entry.kind
                && *expected.entry(object).or_insert(totals) != totals
            {
                return Err(RecordError::Totals { object });
            }
        }
        Ok(page)
    }

    fn checks_boundaries(&self) -> bool {
        true
    }
}

/// Compares two trees of the record and checks the totals of the second one.
pub(crate) fn compare<'a>(
    record: &'a Record,
    from: &RootEntry,
    to: &RootEntry,
    part: PartLimits,
) -> Result<Comparison<&'a Record>, DiffError<RecordError>> {
    let expected = RefCell::new(HashMap::from([(to.object, to.totals), (from.object, from.totals)]));
    Ok(Comparison::of(Checked { record, expected }, from, to, part)?.reading(record))
}

/// Whether a comparison failed because directory objects are missing.
fn is_unknown(error: &DiffError<RecordError>) -> bool {
    let DiffError::Source { source, .. } = error else { return false };
    // A damaged object has to be fetched again.
    matches!(source, RecordError::Unknown { .. } | RecordError::Directory(_))
}

/// Fetches whatever is missing of the manifest of `to`. `from` is the live tree.
pub(crate) fn obtain<'a>(
    record: &'a Record,
    from: Option<&RootEntry>,
    to: &RootEntry,
    part: PartLimits,
    inline: Option<(RootHash, Vec<Frame>)>,
    source: &mut dyn Source,
) -> Result<Manifest<'a>, StageError> {
    let empty = RootEntry::empty();
    let basis = from.unwrap_or(&empty);
    source.expect(&to.totals.covering(basis.totals));
    match compare(record, basis, to, part) {
        Ok(comparison) => return Ok(Manifest { comparison, update: None }),
        Err(e) if !is_unknown(&e) => return Err(e.into()),
        Err(_) => {}
    }
    if let Some(from) = from
        && let Some(update) = update_frames(from, to, inline, source)?
    {
        match patched(record, from, to, part, update) {
            Ok(manifest) => return Ok(manifest),
            Err(e) if e.is_transient() => return Err(e),
            Err(e) => {
                tracing::warn!(error = &e as &dyn std::error::Error, "update refused, fetching by hash")
            }
        }
        fetch_unknown(record, to, source)?;
        if let Ok(comparison) = compare(record, from, to, part) {
            return Ok(Manifest { comparison, update: None });
        }
    }
    let batch = ObjectsBatch { directories: vec![to.object], recursive: true, ..ObjectsBatch::default() };
    fetch_directories(record, to, vec![batch], source)?;
    Ok(Manifest { comparison: compare(record, basis, to, part)?, update: None })
}

/// Fetches the whole manifest of `to` when there is no tree to compare it with. Adds up the space its files
/// need, and notes which contents occur more than once.
pub(crate) fn obtain_whole(
    record: &Record,
    to: &RootEntry,
    block_bytes: u64,
    source: &mut dyn Source,
) -> Result<(Demand, Duplicates), StageError> {
    source.expect(&to.totals);
    match demand_of(record, to, block_bytes) {
        Err(RecordError::Unknown { .. } | RecordError::Directory(_)) => {}
        other => return Ok(other?),
    }
    let batch = ObjectsBatch { directories: vec![to.object], recursive: true, ..ObjectsBatch::default() };
    fetch_directories(record, to, vec![batch], source)?;
    Ok(demand_of(record, to, block_bytes)?)
}

/// Space that a new tree needs. Reads every directory of the tree and checks its totals.
fn demand_of(record: &Record, to: &RootEntry, block_bytes: u64) -> Result<(Demand, Duplicates), RecordError> {
    let expected = RefCell::new(HashMap::from([(to.object, to.totals)]));
    let checked = Checked { record, expected };
    let (mut demand, mut duplicates) = (Demand::default(), Duplicates::of(to.totals.files));
    let mut waiting = vec![to.object];
    while let Some(object) = waiting.pop() {
        let mut cursor = Cursor::new(&checked, Some(object))?;
        while let Some((_, leaf, _)) = cursor.leaf()? {
            for entry in leaf.entries() {
                match entry.kind {
                    Kind::Directory { object, .. } => {
                        demand.add(1, block_bytes);
                        waiting.push(object);
                    }
                    Kind::File { size, content } => {
                        demand.add(size, block_bytes);
                        duplicates.see(&content);
                    }
                    Kind::Symlink { .. } | Kind::Collected { .. } => demand.add(0, block_bytes),
                }
            }
            cursor.skip_leaf();
        }
    }
    Ok((demand, duplicates))
}

fn update_frames(
    from: &RootEntry,
    to: &RootEntry,
    inline: Option<(RootHash, Vec<Frame>)>,
    source: &mut dyn Source,
) -> Result<Option<Frames>, StageError> {
    let from = from.hash();
    match inline {
        Some((basis, frames)) if basis == from => Ok(Some(Box::new(frames.into_iter().map(Ok)))),
        _ => match source.update(from, to.hash()) {
            Ok(frames) => Ok(Some(frames)),
            Err(FetchError::UnknownRoot { .. } | FetchError::NoUpdate { .. }) => Ok(None),
            Err(e) => Err(StageError::Fetch(e)),
        },
    }
}

/// Applies an update's patches, which precede its other frames.
fn patched<'a>(
    record: &'a Record,
    from: &RootEntry,
    to: &RootEntry,
    part: PartLimits,
    mut frames: Frames,
) -> Result<Manifest<'a>, StageError> {
    let mut objects = Objects::new(record);
    let mut budget = ReceiveBudget::of_manifest(&to.totals);
    let next = loop {
        let frame = frames.next();
        if let Some(Ok(frame)) = &frame {
            budget.take(frame)?;
        }
        match frame {
            Some(Ok(Frame::Patches(patches))) => {
                for patch in &patches {
                    objects.apply(patch)?;
                }
            }
            Some(Ok(Frame::Directories(list))) => {
                for bytes in list {
                    let page = Page::decode(&bytes).map_err(RecordError::from)?;
                    objects.keep(object_hash_of(&bytes), bytes, page)?;
                }
            }
            other => break other,
        }
    };
    objects.finish()?;
    let comparison = compare(record, from, to, part)?;
    Ok(Manifest { comparison, update: Some(Box::new(next.into_iter().chain(frames))) })
}

/// Directory objects to be written to the record.
struct Objects<'a> {
    /// The record, and objects that are not in it yet.
    known: Overlay<&'a Record>,
    record: &'a Record,
    made: Vec<(ObjectHash, Vec<u8>)>,
    bytes: usize,
    /// Bytes written to the record since it was last made durable.
    kept: usize,
}

impl<'a> Objects<'a> {
    fn new(record: &'a Record) -> Self {
        Self { known: Overlay::new(record), record, made: Vec::new(), bytes: 0, kept: 0 }
    }

    /// Makes the pages that a patch changes.
    fn apply(&mut self, patch: &DirectoryPatch) -> Result<(), StageError> {
        let built = patch.apply(&self.known)?;
        patch.check(&built).map_err(StageError::Frame)?;
        for (hash, bytes) in built.pages {
            let page = Page::decode(&bytes).map_err(RecordError::from)?;
            self.keep(hash, bytes, page)?;
        }
        Ok(())
    }

    /// Takes an object whose hash was verified.
    fn keep(&mut self, hash: ObjectHash, bytes: Vec<u8>, page: Page) -> Result<(), StageError> {
        self.known.put(hash, page);
        self.bytes = self.bytes.saturating_add(bytes.len());
        self.made.push((hash, bytes));
        if self.bytes >= KEEP_BYTES {
            self.kept = self.kept.saturating_add(std::mem::take(&mut self.bytes));
            let durable = self.kept >= PERSIST_BYTES;
            self.record.put_directories(&std::mem::take(&mut self.made), durable)?;
            self.known = Overlay::new(self.record);
            self.kept = if durable { 0 } else { self.kept };
        }
        Ok(())
    }

    /// Writes the rest, which becomes durable with the activation.
    fn finish(self) -> Result<(), StageError> {
        Ok(self.record.put_directories(&self.made, false)?)
    }
}

/// Fetches directory objects and keeps those that arrive. Returns them, unless whole trees were asked for.
fn fetch_directories(
    record: &Record,
    to: &RootEntry,
    batches: Vec<ObjectsBatch>,
    source: &mut dyn Source,
) -> Result<Vec<Page>, StageError> {
    let answers = batches.len();
    let keep_decoded = batches.iter().all(|b| !b.recursive);
    let mut frames = source.objects(to.hash(), all_of(batches)).map_err(StageError::Fetch)?;
    let mut objects = Objects::new(record);
    let mut budget = ReceiveBudget::of_manifest(&to.totals);
    let (mut ended, mut total, mut came) = (0usize, 0u64, Vec::new());
    let most = directory_objects_max(&to.totals);
    while ended < answers {
        let frame = frames.next().unwrap_or(Err(FetchError::Disconnected(None)));
        let frame = frame.map_err(StageError::Fetch)?;
        budget.take(&frame)?;
        match frame {
            Frame::Directories(list) => {
                for bytes in list {
                    // Accepts no more objects than the signed totals allow.
                    total = total.saturating_add(1);
                    if total > most {
                        return Err(StageError::TooManyObjects { limit: most });
                    }
                    let page = Page::decode(&bytes).map_err(RecordError::from)?;
                    if keep_decoded {
                        came.push(page.clone());
                    }
                    objects.keep(object_hash_of(&bytes), bytes, page)?;
                }
            }
            Frame::End { missing, .. } => {
                ended = ended.saturating_add(1);
                if let Some(object) = missing.first() {
                    let object = ObjectHash::from_bytes(*object);
                    return Err(StageError::Fetch(FetchError::MissingDirectory { object }));
                }
            }
            Frame::Patches(_) | Frame::Stored(_) | Frame::Delta(_) | Frame::Local { .. } | Frame::PartEnd => {
            }
        }
    }
    objects.finish()?;
    Ok(came)
}

/// Fetches, level by level, the directory objects that the record does not have.
fn fetch_unknown(record: &Record, to: &RootEntry, source: &mut dyn Source) -> Result<(), StageError> {
    let mut level = vec![to.object];
    while !level.is_empty() {
        let mut unknown = Vec::new();
        for hash in level {
            if !record.has_directory(&hash)? {
                unknown.push(hash);
            }
        }
        unknown.sort_unstable();
        unknown.dedup();
        if unknown.is_empty() {
            return Ok(());
        }
        let batch =
            |hashes: &[ObjectHash]| ObjectsBatch { directories: hashes.to_vec(), ..ObjectsBatch::default() };
        let batches = unknown.chunks(OBJECTS_BATCH_MAX).map(batch).collect();
        let came = fetch_directories(record, to, batches, source)?;
        level = came.iter().flat_map(Page::children).collect();
    }
    Ok(())
}
