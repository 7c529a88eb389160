//! Deltas against the old tree: jobs that become one message each.
//!
//! ```text
//! encoding_choice   chooses how each content travels
//! jobs       groups of small files of up to 1 MiB, and pieces of large files of that size, in path order
//! in_order   reads, encodes and compresses runs of jobs on all cores; messages keep the order of jobs
//! ```
//!
//! A job names the content that it needs without holding it. Memory is therefore a few megabytes per core,
//! whatever the size of the files and of the update.

mod encoding_choice;
mod in_order;
mod reader;
mod stretches;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use syncd_proto::v1;
use syncd_proto::v1::fetch_frame::Frame as Message;
use syncd_shared::delta::{Basis, BasisFile, DeltaCopy, DeltaEffort, DeltaFrame, DeltaPiece, Encoded};
use syncd_shared::diff::{Change, Released};
use syncd_shared::limits::DELTA_OUTPUT_MAX_BYTES;
use syncd_shared::{ContentHash, ContentTag, RootEntry};

use super::contents::{Contents, Directories};
use super::error::PlanError;
use super::stored::ContentFrames;
use encoding_choice::{EncodingChoice, NewFile};
use in_order::in_order;
use reader::{ChunkList, KeptFrames, Reader, Stretch};
use stretches::{Part, copied_bytes, parts};

/// Maximum bytes of bases for a group of small files.
const GROUP_BASES_BYTES: usize = 2 * 1024 * 1024;
/// Bases, pieces and copies of a job: well below the receiver's limit.
const JOB_PLACES: usize = 8 * 1024;
/// Consecutive jobs on one thread, which read the same frames of the store.
const RUN_JOBS: usize = 4;
/// A large file that shares less than 1/16 with its basis is probed before it is encoded.
const COMMON_SHARE: u64 = 16;
/// Bytes encoded in a probe of whether a delta is worthwhile.
const PROBE_BYTES: u32 = 256 * 1024;

type Emit<'a> = &'a mut dyn FnMut(Message) -> Result<(), PlanError>;

/// Encodes every content that one part of an update needs. `before` is the old tree, and `released` covers
/// the whole update.
pub(super) fn encode(
    contents: &dyn Contents,
    before: &RootEntry,
    changes: &[Change],
    released: &Released<'_, &Directories<'_>>,
    effort: DeltaEffort,
    emit: Emit<'_>,
) -> Result<(), PlanError> {
    let mut chosen = EncodingChoice::choose(contents, before, changes, released)?;
    for (file, source) in &chosen.local {
        emit(Message::Local(v1::LocalContent {
            file: Bytes::copy_from_slice(file.as_bytes()),
            source_path: Bytes::copy_from_slice(source.as_bytes()),
        }))?;
    }
    let kept = KeptFrames::default();
    let mut jobs = Jobs {
        contents,
        kept: &kept,
        large: std::mem::take(&mut chosen.large).into(),
        small: std::mem::take(&mut chosen.small).into(),
        ready: VecDeque::new(),
        not_worth_it: Vec::new(),
    };
    let mut begun = false;
    let runs = std::iter::from_fn(|| {
        // The first run is short, so that the first message soon goes out.
        let length = if std::mem::replace(&mut begun, true) { RUN_JOBS } else { 1 };
        let run: Result<Vec<Job>, PlanError> = jobs.by_ref().take(length).collect();
        if run.as_ref().is_ok_and(Vec::is_empty) { None } else { Some(run) }
    });
    let work = |tools: &mut Tools<'_>, run: Vec<Job>| {
        run.into_iter().map(|job| job.run(tools)).collect::<Result<Vec<_>, _>>()
    };
    in_order(runs, || Tools::new(contents, &kept, effort), work, &mut |messages| {
        messages.into_iter().try_for_each(|message| emit(Message::Delta(message)))
    })?;
    chosen.stored.append(&mut jobs.not_worth_it);
    encode_stored(contents, chosen.stored, emit)
}

fn encode_stored(contents: &dyn Contents, files: Vec<ContentHash>, emit: Emit<'_>) -> Result<(), PlanError> {
    let mut frames = ContentFrames::new(files).frugal();
    let mut messages = Vec::new();
    while frames.advance(contents, &mut messages)? {
        messages.drain(..).try_for_each(&mut *emit)?;
    }
    messages.drain(..).try_for_each(&mut *emit)?;
    match frames.take_missing().first() {
        Some(content) => Err(PlanError::MissingContent { content: *content }),
        None => Ok(()),
    }
}

/// Tools of a worker thread. Buffers are reused across messages; allocating per message fragments the heap.
struct Tools<'a> {
    reader: Reader<'a>,
    effort: DeltaEffort,
    /// Bases of the current message, concatenated.
    prefix: Vec<u8>,
    output: Vec<u8>,
}

impl<'a> Tools<'a> {
    fn new(contents: &'a dyn Contents, kept: &'a KeptFrames, effort: DeltaEffort) -> Result<Self, PlanError> {
        Ok(Self { reader: Reader::new(contents, kept)?, effort, prefix: Vec::new(), output: Vec::new() })
    }
}

/// One message to encode.
#[derive(Debug, Default)]
struct Job {
    bases: Vec<Stretch>,
    pieces: Vec<Stretch>,
    copies: Vec<DeltaCopy>,
    /// Whole replaced files with their replacements. They follow the bases and pieces.
    replaced: Vec<(Stretch, Stretch)>,
    /// Whether this is part of a large file, which is worth more effort.
    by_stretches: bool,
    bases_bytes: usize,
    output_bytes: usize,
}

impl Job {
    fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.copies.is_empty() && self.replaced.is_empty()
    }

    /// Whether a basis and a piece of these sizes still fit.
    fn has_room(&self, bases: usize, output: usize) -> bool {
        self.bases_bytes + bases <= GROUP_BASES_BYTES
            && self.output_bytes + output <= DELTA_OUTPUT_MAX_BYTES
            && self.bases.len() + self.pieces.len() + self.copies.len() + 2 * self.replaced.len() + 2
                <= JOB_PLACES
    }

    fn add(&mut self, basis: Option<Stretch>, piece: Stretch) {
        if let Some(basis) = basis.filter(|basis| basis.length_bytes > 0) {
            self.bases_bytes += basis.length_bytes as usize;
            self.bases.push(basis);
        }
        self.output_bytes += piece.length_bytes as usize;
        self.pieces.push(piece);
    }

    fn add_replaced(&mut self, old: Stretch, new: Stretch) {
        self.bases_bytes += old.length_bytes as usize;
        self.output_bytes += new.length_bytes as usize;
        self.replaced.push((old, new));
    }

    fn run(mut self, tools: &mut Tools<'_>) -> Result<v1::DeltaFrame, PlanError> {
        let Tools { reader, effort, prefix, output } = tools;
        prefix.clear();
        prefix.reserve_exact(self.bases_bytes);
        output.clear();
        output.reserve_exact(self.output_bytes);
        let mut bases = Vec::with_capacity(self.bases.len());
        let mut replaced = Vec::with_capacity(self.replaced.len());
        for basis in &self.bases {
            // A missing basis is left out.
            if reader.read(basis, prefix)? {
                let file = BasisFile { content: ContentTag::of(&basis.content), path: basis.path.clone() };
                bases.push(Basis { file, offset: basis.offset, length_bytes: basis.length_bytes });
            }
        }
        for (old, new) in std::mem::take(&mut self.replaced) {
            if reader.read(&old, prefix)? {
                replaced.push(new);
            } else {
                self.pieces.push(new);
            }
        }
        let mut pieces = Vec::with_capacity(self.pieces.len());
        for piece in &self.pieces {
            if !reader.read(piece, output)? {
                return Err(PlanError::MissingContent { content: piece.content });
            }
            let (file, file_offset) = (ContentTag::of(&piece.content), piece.offset);
            pieces.push(DeltaPiece { file, file_offset, length_bytes: piece.length_bytes });
        }
        for file in &replaced {
            if !reader.read(file, output)? {
                return Err(PlanError::MissingContent { content: file.content });
            }
        }
        let replaced = replaced.iter().map(|file| ContentTag::of(&file.content)).collect();
        let encoded = match self.by_stretches {
            true => Encoded::smallest(prefix, output, *effort),
            false => Encoded::by_zstd(prefix, output),
        }?;
        Ok(DeltaFrame { encoded, bases, pieces, copies: self.copies, replaced }.to_message())
    }
}

/// Iterates over jobs: large files first, because the receiver assembles each on a single thread.
struct Jobs<'a> {
    contents: &'a dyn Contents,
    kept: &'a KeptFrames,
    large: VecDeque<NewFile>,
    small: VecDeque<NewFile>,
    /// Jobs of the current large file.
    ready: VecDeque<Job>,
    /// Large files that have nothing in common with their basis.
    not_worth_it: Vec<ContentHash>,
}

impl Jobs<'_> {
    fn group(&mut self) -> Option<Job> {
        let mut job = Job::default();
        while let Some(file) = self.small.front() {
            let length = file.size as usize;
            // The beginning of a much larger basis suffices.
            let basis = file.basis.map(|old| (old, old.size.min(DELTA_OUTPUT_MAX_BYTES as u64) as u32));
            if !job.has_room(basis.map_or(0, |(_, bytes)| bytes as usize), length) && !job.is_empty() {
                break;
            }
            let new = Stretch::start_of(file.content, file.size as u32);
            match basis {
                Some((old, bytes)) if file.is_replacement && u64::from(bytes) == old.size => {
                    job.add_replaced(Stretch::start_of(old.content, bytes), new);
                }
                _ => job.add(basis.map(|(old, bytes)| Stretch::start_of(old.content, bytes)), new),
            }
            self.small.pop_front();
        }
        (!job.is_empty()).then_some(job)
    }

    /// Splits the next large file into jobs.
    fn cut(&mut self, file: NewFile) -> Result<(), PlanError> {
        let Some(basis) = file.basis else {
            self.not_worth_it.push(file.content);
            return Ok(());
        };
        let load = |content| ChunkList::load(self.contents, content);
        let (Some(old), Some(new)) = (load(&basis.content)?, load(&file.content)?) else {
            self.not_worth_it.push(file.content);
            return Ok(());
        };
        let (old, new) = (Arc::new(old), Arc::new(new));
        let parts = parts(&old, &new);
        let stretch = |content, chunks: &Arc<ChunkList>, offset, length_bytes| Stretch {
            content,
            path: None,
            chunks: Some(chunks.clone()),
            offset,
            length_bytes,
        };
        let pair = |offset, length_bytes, basis_offset, basis_bytes| {
            let piece = stretch(file.content, &new, offset, length_bytes);
            (stretch(basis.content, &old, basis_offset, basis_bytes), piece)
        };
        if copied_bytes(&parts) < file.size / COMMON_SHARE && !self.is_worth_it(&parts, &pair)? {
            self.not_worth_it.push(file.content);
            return Ok(());
        }
        let mut job = Job { by_stretches: true, ..Job::default() };
        let next = |job: &mut Job, ready: &mut VecDeque<Job>| {
            ready.push_back(std::mem::replace(job, Job { by_stretches: true, ..Job::default() }));
        };
        for part in parts {
            match part {
                Part::Copy { offset, basis_offset, length_bytes } => {
                    if !job.has_room(0, 0) {
                        next(&mut job, &mut self.ready);
                    }
                    job.copies.push(DeltaCopy {
                        file: ContentTag::of(&file.content),
                        file_offset: offset,
                        basis: BasisFile { content: ContentTag::of(&basis.content), path: None },
                        basis_offset,
                        length_bytes,
                    });
                }
                Part::Changed { offset, length_bytes, basis_offset, basis_bytes } => {
                    if !job.has_room(basis_bytes as usize, length_bytes as usize) && !job.is_empty() {
                        next(&mut job, &mut self.ready);
                    }
                    let (basis, piece) = pair(offset, length_bytes, basis_offset, basis_bytes);
                    job.add(Some(basis), piece);
                }
            }
        }
        if !job.is_empty() {
            self.ready.push_back(job);
        }
        Ok(())
    }

    /// Whether the basis helps a file with which it shares no chunks. Encodes a part of the file with and
    /// without it.
    fn is_worth_it(
        &self,
        parts: &[Part],
        pair: &dyn Fn(u64, u32, u64, u32) -> (Stretch, Stretch),
    ) -> Result<bool, PlanError> {
        let changed = parts.iter().filter(|part| matches!(part, Part::Changed { .. }));
        let Some(Part::Changed { offset, length_bytes, basis_offset, basis_bytes }) =
            changed.max_by_key(|part| match part {
                Part::Changed { length_bytes, offset, .. } => (*length_bytes, *offset),
                Part::Copy { .. } => (0, 0),
            })
        else {
            return Ok(true);
        };
        let (basis, piece) = pair(*offset, (*length_bytes).min(PROBE_BYTES), *basis_offset, *basis_bytes);
        let mut reader = Reader::new(self.contents, self.kept)?;
        let (mut prefix, mut data) = (Vec::new(), Vec::new());
        if !reader.read(&basis, &mut prefix)? || !reader.read(&piece, &mut data)? {
            return Ok(false);
        }
        let with = Encoded::by_zstd(&prefix, &data)?.compressed.len();
        let without = Encoded::by_zstd(&[], &data)?.compressed.len();
        Ok(with < without - without / COMMON_SHARE as usize)
    }
}

impl Iterator for Jobs<'_> {
    type Item = Result<Job, PlanError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.ready.is_empty() {
            let Some(file) = self.large.pop_front() else { return self.group().map(Ok) };
            if let Err(error) = self.cut(file) {
                return Some(Err(error));
            }
        }
        self.ready.pop_front().map(Ok)
    }
}
