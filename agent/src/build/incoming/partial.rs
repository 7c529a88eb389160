//! Files that arrive in pieces. Each piece is written at its offset, and the whole is checked at the end.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use syncd_shared::ContentHash;

use super::{AHEAD_MOST, Incoming, Wanted, create_anew, failed, lock};
use crate::build::StageError;
use crate::state::disk;
use crate::state::hashing::hash_stretch;

/// A file that is written piece by piece, in any order, each byte once.
pub(super) struct Partial {
    /// Name until the content is complete. Every attempt at a content uses a new name.
    pub(super) name: String,
    pub(super) hasher: blake3::Hasher,
    /// Number of leading bytes that are written and hashed.
    pub(super) hashed: u64,
    /// Stretches written beyond `hashed`, with gaps between them: start -> end.
    pub(super) ahead: BTreeMap<u64, u64>,
    /// No more pieces are accepted: the content is complete, or was given up.
    pub(super) closed: bool,
}

impl Partial {
    /// Whether nothing was written between these offsets, and one more stretch can be remembered.
    fn is_free(&self, start: u64, end: u64) -> bool {
        let before = self.ahead.range(..end).next_back();
        start >= self.hashed && before.is_none_or(|(_, end)| *end <= start) && self.ahead.len() < AHEAD_MOST
    }

    /// Notes that a free stretch was written to `file`, and hashes all that is now contiguous.
    fn wrote(&mut self, start: u64, bytes: &[u8], file: &std::fs::File) -> std::io::Result<()> {
        let mut end = start.saturating_add(bytes.len() as u64);
        if start == self.hashed {
            self.hasher.update(bytes);
            self.hashed = end;
            if let Some(end) = self.ahead.remove(&end) {
                hash_stretch(file, self.hashed, end, &mut self.hasher)?;
                self.hashed = end;
            }
            return Ok(());
        }
        if let Some(after) = self.ahead.remove(&end) {
            end = after;
        }
        match self.ahead.range_mut(..start).next_back() {
            Some((_, before)) if *before == start => *before = end,
            _ => drop(self.ahead.insert(start, end)),
        }
        Ok(())
    }
}

impl Incoming {
    /// Forgets the pieces of an incomplete content: the next piece starts it anew.
    pub fn drop_part(&self, hash: ContentHash) {
        let partial = lock(&self.partial).remove(&hash);
        if let Some(partial) = partial {
            let mut partial = lock(&partial);
            partial.closed = true;
            // A file that stays is removed with the directory.
            let _ = self.fan(hash).map(|fan| fan.unlink(partial.name.as_bytes()));
        }
    }

    /// Forgets the pieces of all incomplete contents.
    pub fn drop_parts(&self) {
        let all: Vec<_> = lock(&self.partial).keys().copied().collect();
        all.into_iter().for_each(|hash| self.drop_part(hash));
    }

    /// Writes a stretch of a content. Returns whether the content is now complete and verified. Refuses a
    /// stretch that has already arrived: bytes that were hashed are never written again.
    pub fn put_piece(
        &self,
        hash: ContentHash,
        offset: u64,
        bytes: &[u8],
        want: &Wanted,
    ) -> Result<bool, StageError> {
        let outside = || StageError::PieceOutside { content: hash, size: want.size, offset };
        let end = offset.checked_add(bytes.len() as u64).ok_or_else(outside)?;
        if bytes.is_empty() || end > want.size {
            return Err(outside());
        }
        let (fan, name) = (self.fan(hash)?, hash.to_string());
        loop {
            if lock(&self.arrived).contains_key(&hash) {
                return Ok(false);
            }
            let shared = lock(&self.partial).entry(hash).or_insert_with(|| self.begin(&name)).clone();
            let mut partial = lock(&shared);
            if partial.closed {
                // Another thread has just completed or dropped it.
                continue;
            }
            if !partial.is_free(offset, end) {
                return Err(outside());
            }
            let part = partial.name.clone();
            let file = match (partial.hashed, partial.ahead.is_empty()) {
                // The mode is writable in any case, because the file is opened again for the next stretch.
                (0, true) => {
                    let file = create_anew(fan, &part, want.metadata.mode | 0o600)?;
                    // Zeros are not written, so the length is set here.
                    file.set_len(want.size).map_err(failed("write", fan, &part))?;
                    file
                }
                _ => fan.open_file_for_write(part.as_bytes())?,
            };
            disk::write_sparse_at(&file, bytes, offset).map_err(failed("write", fan, &part))?;
            partial.wrote(offset, bytes, &file).map_err(failed("read", fan, &part))?;
            if partial.hashed < want.size {
                return Ok(false);
            }
            let actual = ContentHash::finish(&partial.hasher);
            let result = match actual == hash {
                true => self.finish(hash, fan, &file, &part, want),
                false => {
                    fan.unlink(part.as_bytes())?;
                    Err(StageError::Content { expected: hash, actual })
                }
            };
            // Removed while its lock is held: a thread that waits for the lock finds the content here, or
            // starts anew.
            partial.closed = true;
            lock(&self.partial).remove(&hash);
            return result.map(|()| true);
        }
    }

    fn begin(&self, name: &str) -> Arc<Mutex<Partial>> {
        let number = self.parts.fetch_add(1, Ordering::Relaxed);
        let (name, hasher) = (format!("{name}.part{number}"), blake3::Hasher::new());
        Arc::new(Mutex::new(Partial { name, hasher, hashed: 0, ahead: BTreeMap::new(), closed: false }))
    }

    /// Ends a part: its contents are all in place, so a content that arrives again is written again.
    pub fn end_part(&self) {
        lock(&self.written).clear();
        lock(&self.partial).clear();
    }
}
