//! Makes new content from content of the live tree, as delta frames describe.
//!
//! Bases are taken only from the live tree, and only from files that are still what was activated. Decoded
//! bytes are not trusted until the whole content has its hash. If the hash differs, because a basis was
//! damaged or the origin lied, the content stays missing and is fetched by hash.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use syncd_shared::delta::{Basis, BasisFile, DeltaCopy, DeltaFrame, Replacement};
use syncd_shared::diff::Change;
use syncd_shared::manifest_cursor::ManifestCursor;
use syncd_shared::{ContentHash, ContentTag, Entry, Kind, RootEntry, TreePath};

use crate::build::StageError;
use crate::build::incoming::stretch;
use crate::build::receive::Reception;
use crate::state::cursor::LiveTree;
use crate::state::disk;
use crate::state::record::Record;
use crate::state::trees::Trees;

/// Bytes copied at a time.
const COPY_BYTES: usize = 512 * 1024;
/// Bases opened together, so that the kernel can read them together.
const BASES_AHEAD: usize = 64;

/// The live tree as the base of deltas. Shared by the workers.
pub(crate) struct Bases<'a> {
    trees: &'a Trees,
    live: RootEntry,
    changes: &'a [Change],
    /// Contents that this part removes or replaces -> index of their first change.
    released: OnceLock<HashMap<ContentTag, usize>>,
    /// Contents that this part brings -> index of their first change.
    brought: OnceLock<HashMap<ContentTag, usize>>,
}

impl<'a> Bases<'a> {
    /// Bases in the live tree `live`, to which `changes` apply.
    pub fn new(trees: &'a Trees, live: RootEntry, changes: &'a [Change]) -> Self {
        Self { trees, live, changes, released: OnceLock::new(), brought: OnceLock::new() }
    }

    fn released(&self, tag: ContentTag) -> Option<(&TreePath, &Entry)> {
        let index = self.released.get_or_init(|| self.index(|change| old(change).map(|(_, entry)| entry)));
        old(self.changes.get(*index.get(&tag)?)?)
    }

    /// The file that a new content replaces at its first path.
    fn replacement(&self, tag: ContentTag) -> Option<Replacement> {
        let index = self.brought.get_or_init(|| self.index(brought));
        let change = self.changes.get(*index.get(&tag)?)?;
        let Change::Modified { from, to, .. } = change else { return None };
        match (&from.kind, &to.kind) {
            (Kind::File { content, size: old_bytes }, Kind::File { size: new_bytes, .. }) => {
                let (old_bytes, new_bytes) = (*old_bytes, *new_bytes);
                Some(Replacement { old: ContentTag::of(content), old_bytes, new_bytes })
            }
            _ => None,
        }
    }

    fn index(&self, entry: impl Fn(&Change) -> Option<&Entry>) -> HashMap<ContentTag, usize> {
        let mut index = HashMap::new();
        for (at, change) in self.changes.iter().enumerate() {
            if let Some(Entry { kind: Kind::File { content, .. }, .. }) = entry(change) {
                index.entry(ContentTag::of(content)).or_insert(at);
            }
        }
        index
    }
}

/// The entry that a change brings; `None` where only metadata changes.
fn brought(change: &Change) -> Option<&Entry> {
    match change {
        Change::Added { entry, .. } => Some(entry),
        Change::Modified { from, to, .. } => (from.kind != to.kind).then_some(to),
        Change::Removed { .. } => None,
    }
}

fn old(change: &Change) -> Option<(&TreePath, &Entry)> {
    match change {
        Change::Removed { path, entry: from } | Change::Modified { path, from, .. } => Some((path, from)),
        Change::Added { .. } => None,
    }
}

/// A stretch of new content for `incoming`.
enum Part<'f> {
    Decoded { start: usize, length: usize },
    Copied(&'f DeltaCopy),
}

/// Decodes delta frames. One for each thread.
pub(crate) struct Assembler<'a> {
    bases: &'a Bases<'a>,
    tree: LiveTree<'a>,
    manifest: ManifestCursor<'a, Record>,
    /// The basis opened last.
    open: Option<(BasisFile, Option<Arc<File>>)>,
    /// Bytes of the bases. May be longer than the current frame needs.
    prefix: Vec<u8>,
    decoded: Vec<u8>,
    buffer: Vec<u8>,
}

impl<'a> Assembler<'a> {
    pub fn new(bases: &'a Bases<'a>) -> Result<Self, StageError> {
        Ok(Self {
            bases,
            tree: bases.trees.live_tree(&bases.live)?,
            manifest: ManifestCursor::new(&*bases.trees.record, &bases.live)?,
            open: None,
            prefix: Vec::new(),
            decoded: Vec::new(),
            buffer: Vec::new(),
        })
    }

    /// Stores what a frame brings.
    pub fn take(&mut self, mut frame: DeltaFrame, to: &Reception<'_>) -> Result<(), StageError> {
        frame.resolve(&|tag| self.bases.replacement(tag)).map_err(StageError::Frame)?;
        let parts = parts(&frame, to);
        if parts.is_empty() {
            return Ok(());
        }
        let length = self.read_prefix(&frame.bases)?;
        let prefix = self.prefix.get(..length).unwrap_or_default();
        let mut decoded = std::mem::take(&mut self.decoded);
        let taken = match frame.encoded.restore_to(prefix, frame.output_bytes(), &mut decoded) {
            Ok(()) => self.put(parts, &decoded, to),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "a delta could not be decoded");
                parts.iter().for_each(|(content, ..)| to.incoming.drop_part(*content));
                Ok(())
            }
        };
        self.decoded = decoded;
        taken
    }

    fn put(
        &mut self,
        parts: Vec<(ContentHash, u64, Part<'_>)>,
        decoded: &[u8],
        to: &Reception<'_>,
    ) -> Result<(), StageError> {
        for (content, offset, part) in parts {
            let made = match part {
                Part::Decoded { start, length } => to.put(content, offset, stretch(decoded, start, length)?),
                Part::Copied(copy) => self.copy(content, copy, to),
            };
            match made {
                Ok(()) => {}
                Err(StageError::Content { expected, actual }) => {
                    tracing::warn!(%expected, %actual, "a delta produced other content, which is now fetched whole");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads all bases one after the other to the start of `prefix`, and returns their total length. A basis
    /// that is no longer what was activated is read as zeros: contents that use it fail their hash, the
    /// others do not.
    fn read_prefix(&mut self, bases: &[Basis]) -> Result<usize, StageError> {
        let mut prefix = std::mem::take(&mut self.prefix);
        let mut start = 0usize;
        for bases in bases.chunks(BASES_AHEAD) {
            let mut files = Vec::with_capacity(bases.len());
            for basis in bases {
                let file = self.file(&basis.file)?;
                if let (Some(file), true) = (&file, bases.len() > 1) {
                    disk::will_read(file, basis.offset, basis.length_bytes.into());
                }
                files.push(file);
            }
            for (basis, file) in bases.iter().zip(&files) {
                let end = start.saturating_add(basis.length_bytes as usize);
                // Bytes of an earlier frame are overwritten.
                if prefix.len() < end {
                    prefix.resize(end, 0);
                }
                if let Some(bytes) = prefix.get_mut(start..end) {
                    // A basis that was truncated since is also found by the hash.
                    let read =
                        file.as_ref().is_some_and(|file| file.read_exact_at(bytes, basis.offset).is_ok());
                    if !read {
                        bytes.fill(0);
                    }
                }
                start = end;
            }
        }
        self.prefix = prefix;
        Ok(start)
    }

    fn copy(&mut self, content: ContentHash, copy: &DeltaCopy, to: &Reception<'_>) -> Result<(), StageError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(COPY_BYTES, 0);
        let result = match self.file(&copy.basis)? {
            Some(file) => copy_stretch(&file, content, copy, &mut buffer, to),
            None => {
                to.incoming.drop_part(content);
                Ok(())
            }
        };
        self.buffer = buffer;
        result
    }

    /// Opens a basis file. `None`: the live tree no longer has what was activated there.
    fn file(&mut self, file: &BasisFile) -> Result<Option<Arc<File>>, StageError> {
        if self.open.as_ref().is_none_or(|(open, _)| open != file) {
            let found = self.find(file)?;
            if found.is_none() {
                tracing::warn!(?file, "the live tree does not have the basis of a delta");
            }
            self.open = Some((file.clone(), found.map(Arc::new)));
        }
        Ok(self.open.as_ref().and_then(|(_, found)| found.clone()))
    }

    fn find(&mut self, file: &BasisFile) -> Result<Option<File>, StageError> {
        let named;
        let (path, entry) = match &file.path {
            None => match self.bases.released(file.content) {
                Some(found) => found,
                None => return Ok(None),
            },
            Some(path) => match self.manifest.entry(path)? {
                Some(entry) => {
                    named = entry;
                    (path, &named)
                }
                None => return Ok(None),
            },
        };
        let is_it =
            matches!(&entry.kind, Kind::File { content, .. } if ContentTag::of(content) == file.content);
        if !is_it || self.tree.checked(path, entry)?.is_none() {
            return Ok(None);
        }
        let Some((parent, name)) = path.split_last() else { return Ok(None) };
        Ok(self.tree.dir(&parent)?.open_file(name.as_bytes()).ok())
    }
}

fn copy_stretch(
    file: &File,
    content: ContentHash,
    copy: &DeltaCopy,
    buffer: &mut [u8],
    to: &Reception<'_>,
) -> Result<(), StageError> {
    let mut done = 0u64;
    while let left @ 1.. = copy.length_bytes.saturating_sub(done) {
        if to.cancel.load(Ordering::Relaxed) {
            return Err(StageError::Cancelled);
        }
        let length = left.min(buffer.len() as u64) as usize;
        let Some(bytes) = buffer.get_mut(..length) else { break };
        if file.read_exact_at(bytes, copy.basis_offset.saturating_add(done)).is_err() {
            to.incoming.drop_part(content);
            break;
        }
        let at = copy.file_offset.saturating_add(done);
        to.put(content, at, bytes)?;
        done = done.saturating_add(length as u64);
    }
    Ok(())
}

/// The wanted and missing pieces of a frame, in order within each file.
fn parts<'f>(frame: &'f DeltaFrame, to: &Reception<'_>) -> Vec<(ContentHash, u64, Part<'f>)> {
    let lacking = |tag| to.content(tag).filter(|content| to.incoming.arrived(*content).is_none());
    let mut parts = Vec::with_capacity(frame.pieces.len().saturating_add(frame.copies.len()));
    let mut start = 0usize;
    for piece in &frame.pieces {
        let length = piece.length_bytes as usize;
        if let Some(content) = lacking(piece.file) {
            parts.push((content, piece.file_offset, Part::Decoded { start, length }));
        }
        start = start.saturating_add(length);
    }
    for copy in &frame.copies {
        if let Some(content) = lacking(copy.file) {
            parts.push((content, copy.file_offset, Part::Copied(copy)));
        }
    }
    if !frame.copies.is_empty() {
        parts.sort_by_key(|(content, offset, _)| (*content, *offset));
    }
    parts
}
