//! Encodes an update: everything that takes a replica from one root to another, as a sequence of messages.
//!
//! Directories first (as patches, parents before children), so that the agent knows the whole target before the first
//! byte of content; then content (see [`super::delta`]); then the end.

use std::collections::HashSet;

use syncd_proto::v1;
use syncd_proto::v1::fetch_frame::Frame as Message;
use syncd_shared::diff::{Change, DirectorySource, TreeDiff, diff};
use syncd_shared::directory::{Entry, Kind};
use syncd_shared::limits::DIRECTORY_FRAME_BYTES;
use syncd_shared::wire::{DirectoryPatch, patches_message};
use syncd_shared::{ObjectHash, RootEntry, RootHash};

use super::contents::{Contents, Directories};
use super::delta;
use super::error::PlanError;
use super::stored::end;
use super::tally::Tally;

/// Roughly what an entry takes in a patch besides its name.
const ENTRY_BYTES: usize = 96;

/// Encodes the update between two roots and hands each message to `sink`, numbered from 0.
pub(super) fn encode(
    contents: &dyn Contents,
    from: RootHash,
    to: RootHash,
    sink: &mut dyn FnMut(v1::FetchFrame) -> Result<(), PlanError>,
) -> Result<(), PlanError> {
    let before = contents.root(&from)?.ok_or(PlanError::UnknownRoot { root: from })?;
    let after = contents.root(&to)?.ok_or(PlanError::UnknownRoot { root: to })?;
    let source = Directories(contents);
    let tree_diff = diff(&source, &before, &after).map_err(|source| PlanError::Diff {
        from,
        to,
        source: Box::new(source),
    })?;
    let mut item = 0;
    let mut tally = Tally::default();
    let mut emit = |message: Message| {
        tally.count(&message);
        let frame = v1::FetchFrame { item, frame: Some(message) };
        item += 1;
        sink(frame)
    };
    encode_directories(&source, (&before, &after), &tree_diff, &mut emit)?;
    delta::encode(contents, &before, &tree_diff, &mut emit)?;
    emit(end(0, []))?;
    tracing::debug!(%from, %to, ?tally, "encoded an update");
    Ok(())
}

type Emit<'a> = &'a mut dyn FnMut(Message) -> Result<(), PlanError>;

fn encode_directories(
    source: &Directories<'_>,
    (before, after): (&RootEntry, &RootEntry),
    tree_diff: &TreeDiff,
    emit: Emit<'_>,
) -> Result<(), PlanError> {
    let mut batch = Vec::new();
    let mut batch_bytes = 0;
    for (from, to) in differing_directories((before, after), tree_diff) {
        let basis = from.map(|hash| source.directory(&hash)).transpose()?;
        let target = source.directory(&to)?;
        let patch = DirectoryPatch::between(from.zip(basis.as_deref()), (to, &target));
        let bytes = patch_bytes(&patch);
        if batch_bytes + bytes > DIRECTORY_FRAME_BYTES && !batch.is_empty() {
            emit(Message::Patches(patches_message(&batch)))?;
            batch.clear();
            batch_bytes = 0;
        }
        batch_bytes += bytes;
        batch.push(patch);
    }
    if !batch.is_empty() {
        emit(Message::Patches(patches_message(&batch)))?;
    }
    Ok(())
}

fn patch_bytes(patch: &DirectoryPatch) -> usize {
    let entry = |e: &Entry| match &e.kind {
        Kind::Symlink { target } => ENTRY_BYTES + e.name.as_bytes().len() + target.len(),
        _ => ENTRY_BYTES + e.name.as_bytes().len(),
    };
    ENTRY_BYTES
        + patch.removed.iter().map(|name| name.as_bytes().len() + 4).sum::<usize>()
        + patch.entries.iter().map(entry).sum::<usize>()
}

/// Directory objects that the agent lacks, with the object each is made from; parents before children. What the first
/// tree has under any name that the diff mentions is left out.
fn differing_directories(
    (before, after): (&RootEntry, &RootEntry),
    tree_diff: &TreeDiff,
) -> Vec<(Option<ObjectHash>, ObjectHash)> {
    let mut known: HashSet<ObjectHash> = HashSet::from([before.object]);
    known.extend(tree_diff.changes.iter().filter_map(|change| match change {
        Change::Removed { entry: from, .. } | Change::Modified { from, .. } => object(from),
        Change::Added { .. } => None,
    }));
    let mut found = Vec::new();
    if known.insert(after.object) {
        found.push((Some(before.object), after.object));
    }
    for change in &tree_diff.changes {
        let (from, to) = match change {
            Change::Removed { .. } => continue,
            Change::Added { entry, .. } => (None, object(entry)),
            Change::Modified { from, to, .. } => (object(from), object(to)),
        };
        if let Some(to) = to
            && known.insert(to)
        {
            found.push((from, to));
        }
    }
    found
}

fn object(entry: &Entry) -> Option<ObjectHash> {
    match entry.kind {
        Kind::Directory { object, .. } => Some(object),
        _ => None,
    }
}
