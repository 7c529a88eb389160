//! Encodes an update from one root to another as a sequence of messages.
//!
//! Directories come first (as patches, parents before children), so that the agent knows the whole target
//! before the first byte of content. Content follows (see [`super::delta`]), in parts of the difference, and
//! then the end.

use std::collections::HashSet;

use syncd_proto::v1;
use syncd_proto::v1::fetch_frame::Frame as Message;
use syncd_shared::delta::DeltaEffort;
use syncd_shared::diff::{Change, Comparison, DiffError, DirectorySource, PartLimits};
use syncd_shared::directory::{Entry, Kind};
use syncd_shared::limits::DIRECTORY_FRAME_BYTES;
use syncd_shared::wire::{DirectoryPatch, patches_message};
use syncd_shared::{ObjectHash, RootEntry, RootHash};

use super::contents::{Contents, Directories};
use super::delta;
use super::error::PlanError;
use super::stored::{end, part_end};
use super::tally::Tally;

/// Approximate bytes of a patch without its names.
const PATCH_BYTES: usize = 96;

/// Encodes the update between two roots and passes each message to `sink`, numbered from 0.
pub(super) fn encode(
    contents: &dyn Contents,
    from: RootHash,
    to: RootHash,
    limits: PartLimits,
    effort: DeltaEffort,
    sink: &mut dyn FnMut(v1::FetchFrame) -> Result<(), PlanError>,
) -> Result<(), PlanError> {
    let before = contents.root(&from)?.ok_or(PlanError::UnknownRoot { root: from })?;
    let after = contents.root(&to)?.ok_or(PlanError::UnknownRoot { root: to })?;
    let source = Directories(contents);
    let comparison = Comparison::of(&source, &before, &after, limits)?;
    let mut item = 0;
    let mut tally = Tally::default();
    let mut emit = |message: Message| {
        tally.count(&message);
        let frame = v1::FetchFrame { item, frame: Some(message) };
        item += 1;
        sink(frame)
    };
    let differing = differing_directories((&before, &after), &comparison)?;
    encode_directories(&source, differing, &mut emit)?;
    let released = comparison.released()?;
    for part in comparison.parts() {
        let part = part?;
        delta::encode(contents, &before, &part.changes, &released, effort, &mut emit)?;
        let is_last = part.is_last;
        drop(part);
        emit(if is_last { end(0, []) } else { part_end() })?;
        if !is_last {
            // Otherwise the free memory that parts leave behind adds up.
            syncd_allocator::give_back();
        }
    }
    tracing::debug!(%from, %to, ?tally, "encoded an update");
    Ok(())
}

/// The directory object to start from, if any, and the target object.
type Step = (Option<ObjectHash>, ObjectHash);
type Emit<'a> = &'a mut dyn FnMut(Message) -> Result<(), PlanError>;

fn encode_directories(
    source: &Directories<'_>,
    differing: Vec<Step>,
    emit: Emit<'_>,
) -> Result<(), PlanError> {
    let mut batch = Vec::new();
    let mut batch_bytes = 0;
    let mut add = |patch: DirectoryPatch| {
        let bytes = patch_bytes(&patch);
        if batch_bytes + bytes > DIRECTORY_FRAME_BYTES && !batch.is_empty() {
            emit(Message::Patches(patches_message(&batch)))?;
            batch.clear();
            batch_bytes = 0;
        }
        batch_bytes += bytes;
        batch.push(patch);
        Ok::<_, PlanError>(())
    };
    for (from, to) in differing {
        DirectoryPatch::between(source, from, to, &mut add)?;
    }
    if !batch.is_empty() {
        emit(Message::Patches(patches_message(&batch)))?;
    }
    Ok(())
}

fn patch_bytes(patch: &DirectoryPatch) -> usize {
    PATCH_BYTES
        + patch.removed.iter().map(|name| name.as_bytes().len() + 4).sum::<usize>()
        + patch.entries.iter().map(Entry::encoded_bytes).sum::<usize>()
}

/// Directory objects that the agent is missing, with the object that each is made from, parents before
/// children. Omits objects that the old tree has under any name mentioned by the diff.
fn differing_directories<S: DirectorySource>(
    (before, after): (&RootEntry, &RootEntry),
    comparison: &Comparison<S>,
) -> Result<Vec<Step>, DiffError<S::Error>> {
    let mut known: HashSet<ObjectHash> = HashSet::from([before.object]);
    let mut pairs = vec![(Some(before.object), after.object)];
    comparison.each(|change| {
        let (from, to) = match change {
            Change::Removed { entry: from, .. } => (object(from), None),
            Change::Added { entry, .. } => (None, object(entry)),
            Change::Modified { from, to, .. } => (object(from), object(to)),
        };
        known.extend(from);
        pairs.extend(to.map(|to| (from, to)));
        true
    })?;
    pairs.retain(|(_, to)| known.insert(*to));
    Ok(pairs)
}

fn object(entry: &Entry) -> Option<ObjectHash> {
    match entry.kind {
        Kind::Directory { object, .. } => Some(object),
        _ => None,
    }
}
