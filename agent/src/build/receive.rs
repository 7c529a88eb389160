//! Stores what the origin sends in `staging/incoming`, on a few threads when there is much of it.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use syncd_runtime::queue::{Waiting, queue};
use syncd_shared::delta::DeltaFrame;
use syncd_shared::stored_frame::{FrameBuffer, StoredFrame};
use syncd_shared::wire::Frame;
use syncd_shared::{ContentHash, ContentTag, Progress, TreePath};

use crate::build::StageError;
use crate::build::delta::{Assembler, Bases};
use crate::build::incoming::{Incoming, Wanted, stretch};
use crate::build::receive_budget::ReceiveBudget;
use crate::build::writeback::Writeback;
use crate::source::FetchError;

/// Threads that decompress, hash and write.
const WORKERS_MAX: usize = 4;
/// Frames that wait for each worker, at most 1 MiB compressed each. About 20 MiB with those that the workers
/// hold.
const WAITING_FRAMES: usize = 3;
/// Answers with less content than this are processed on the calling thread.
const INLINE_BYTES: u64 = 1024 * 1024;
/// Interval of progress while the workers complete what has arrived.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// The contents expected, and where to put them.
pub(crate) struct Reception<'a> {
    pub incoming: &'a Incoming,
    pub wanted: &'a HashMap<ContentHash, Wanted>,
    pub cancel: &'a AtomicBool,
    pub files_done: AtomicU64,
    pub bytes_done: AtomicU64,
    pub files_total: u64,
    pub bytes_total: u64,
    pub writeback: Writeback,
    /// Base of deltas; `None`: deltas are ignored, and their contents are fetched by hash.
    pub bases: Option<Bases<'a>>,
    /// Contents asked for, by tag. Until it is set, all of `wanted`.
    pub tags: OnceLock<HashMap<ContentTag, ContentHash>>,
}

/// A frame for a worker.
enum Parcel {
    Stored(StoredFrame),
    Delta(DeltaFrame),
}

/// State that a worker keeps between frames.
#[derive(Default)]
struct Workbench<'a> {
    buffer: FrameBuffer,
    assembler: Option<Assembler<'a>>,
}

/// Contents that the answer did not carry.
#[derive(Debug, Default)]
pub(crate) struct NotSent {
    /// Contents that the tree being updated has, with their paths there.
    pub local: Vec<(ContentHash, TreePath)>,
    /// Contents that the origin does not have.
    pub missing: Vec<[u8; 32]>,
    /// The answer was a part of an update, and more parts follow.
    pub more: bool,
}

impl Reception<'_> {
    /// Reads until `answers` requests are answered, or until a part of an update ends.
    pub fn receive(
        &self,
        frames: &mut dyn Iterator<Item = Result<Frame, FetchError>>,
        answers: usize,
        budget: ReceiveBudget,
        progress: &dyn Fn(Progress),
    ) -> Result<NotSent, StageError> {
        if self.bytes_total <= INLINE_BYTES {
            let mut bench = Workbench::default();
            return self.read(frames, answers, budget, progress, &mut |parcel| {
                self.store(parcel, &mut bench).map(|()| true)
            });
        }
        let workers = syncd_runtime::threads::at_most(WORKERS_MAX);
        let failed = AtomicBool::new(false);
        let work = |mut waiting: Waiting<Parcel>, _ended: Sender<Infallible>| {
            let mut bench = Workbench::default();
            let result = waiting.try_for_each(|parcel| self.store(parcel, &mut bench));
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            result
        };
        let work = &work;
        std::thread::scope(|scope| {
            let (sender, waiting) = queue::<Parcel>(WAITING_FRAMES.saturating_mul(workers));
            let (ended, all_ended) = channel();
            let start = |(waiting, ended)| scope.spawn(move || work(waiting, ended));
            let handles: Vec<_> = std::iter::repeat_n((waiting, ended), workers).map(start).collect();
            let read = self.read(frames, answers, budget, progress, &mut |parcel| {
                Ok(!failed.load(Ordering::Relaxed) && sender.send(parcel).is_ok())
            });
            drop(sender);
            while all_ended.recv_timeout(PROGRESS_EVERY) == Err(RecvTimeoutError::Timeout) {
                progress(self.done());
            }
            for handle in handles {
                match handle.join() {
                    Ok(result) => result?,
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            read
        })
    }

    fn read(
        &self,
        frames: &mut dyn Iterator<Item = Result<Frame, FetchError>>,
        answers: usize,
        mut budget: ReceiveBudget,
        progress: &dyn Fn(Progress),
        store: &mut dyn FnMut(Parcel) -> Result<bool, StageError>,
    ) -> Result<NotSent, StageError> {
        let mut not_sent = NotSent::default();
        let mut ended = 0usize;
        while ended < answers {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(StageError::Cancelled);
            }
            match frames.next() {
                None => return Err(StageError::Fetch(FetchError::Disconnected(None))),
                Some(frame) => match budget.taken(frame.map_err(StageError::Fetch)?)? {
                    frame @ (Frame::Stored(_) | Frame::Delta(_)) => {
                        let parcel = match frame {
                            Frame::Delta(frame) => Parcel::Delta(frame),
                            Frame::Stored(frame) => Parcel::Stored(frame),
                            _ => continue,
                        };
                        if !store(parcel)? {
                            // The worker reports its error when it is joined.
                            return Ok(not_sent);
                        }
                        progress(self.done());
                    }
                    Frame::Local { file, source } => not_sent.local.push((file, source)),
                    Frame::End { missing, .. } => {
                        not_sent.missing.extend(missing);
                        ended = ended.saturating_add(1);
                    }
                    Frame::PartEnd => {
                        not_sent.more = true;
                        break;
                    }
                    Frame::Directories(_) | Frame::Patches(_) => {}
                },
            }
        }
        Ok(not_sent)
    }

    /// The content with this tag, if it was asked for.
    pub fn content(&self, tag: ContentTag) -> Option<ContentHash> {
        let tags = self.tags.get_or_init(|| self.wanted.keys().map(|c| (ContentTag::of(c), *c)).collect());
        tags.get(&tag).copied()
    }

    fn store<'b>(&'b self, parcel: Parcel, bench: &mut Workbench<'b>) -> Result<(), StageError> {
        match (parcel, &self.bases) {
            (Parcel::Stored(frame), _) => self.store_pieces(&frame, &mut bench.buffer),
            (Parcel::Delta(_), None) => Ok(()),
            (Parcel::Delta(frame), Some(bases)) => {
                let assembler = match &mut bench.assembler {
                    Some(assembler) => assembler,
                    none => none.insert(Assembler::new(bases)?),
                };
                assembler.take(frame, self)
            }
        }
    }

    /// Stores the wanted pieces of a frame.
    fn store_pieces(&self, frame: &StoredFrame, buffer: &mut FrameBuffer) -> Result<(), StageError> {
        let bytes = buffer.decompress(frame).map_err(StageError::Frame)?;
        for piece in &frame.pieces {
            let slice = stretch(bytes, piece.frame_offset as usize, piece.length_bytes as usize)?;
            if let Some(content) = self.content(piece.file) {
                self.put(content, piece.file_offset, slice)?;
            }
        }
        Ok(())
    }

    /// Stores a stretch of a content that is wanted and missing, and counts it at once.
    pub fn put(&self, content: ContentHash, offset: u64, bytes: &[u8]) -> Result<(), StageError> {
        let (files, bytes) = self.incoming.put(content, offset, bytes, self.wanted)?;
        self.files_done.fetch_add(files, Ordering::Relaxed);
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
        self.writeback.wrote(bytes);
        Ok(())
    }

    /// Pieces that were given up and fetched again count twice, but never beyond the total.
    pub fn done(&self) -> Progress {
        Progress {
            files_done: self.files_done.load(Ordering::Relaxed),
            files_total: self.files_total,
            bytes_done: self.bytes_done.load(Ordering::Relaxed).min(self.bytes_total),
            bytes_total: self.bytes_total,
        }
    }
}
