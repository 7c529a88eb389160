//! Cuts content into content-defined chunks: FastCDC (2020) with the sizes of [`crate::limits`].
//!
//! Cut points depend only on the bytes of the file, so an insertion changes only the chunks that it touches
//! and moves the rest. Memory is one buffer of [`BUFFER_BYTES`], whatever the size of the file.

use std::io::{self, Read};

use fastcdc::v2020::FastCDC;

use crate::limits::{CHUNK_AVERAGE_BYTES, CHUNK_MAX_BYTES, CHUNK_MIN_BYTES};

/// Size of the buffer of a [`Chunker`].
pub const BUFFER_BYTES: usize = 4 * CHUNK_MAX_BYTES;

/// Whether content of this size is never cut. A file of one chunk has no chunk manifest: its content hash is
/// also its chunk hash.
pub fn is_single_chunk(size: u64) -> bool {
    size <= CHUNK_MIN_BYTES as u64
}

/// Lengths of the chunks of `bytes`, in order. Empty input has none.
pub fn cut(bytes: &[u8]) -> impl Iterator<Item = usize> + '_ {
    FastCDC::new(bytes, CHUNK_MIN_BYTES, CHUNK_AVERAGE_BYTES, CHUNK_MAX_BYTES).map(|chunk| chunk.length)
}

/// Cuts the output of a reader into chunks.
#[derive(Debug)]
pub struct Chunker<R> {
    reader: R,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    at_end: bool,
}

impl<R: Read> Chunker<R> {
    /// Starts at the reader's position. `buffer` supplies its capacity and can be taken back with
    /// [`Chunker::into_buffer`].
    pub fn new(reader: R, mut buffer: Vec<u8>) -> Self {
        buffer.resize(BUFFER_BYTES, 0);
        Self { reader, buffer, start: 0, end: 0, at_end: false }
    }

    /// The next chunk, at most [`CHUNK_MAX_BYTES`]; `None` at the end.
    ///
    /// # Errors
    /// Errors of the reader, except interrupted reads, which are retried.
    pub fn next_chunk(&mut self) -> io::Result<Option<&[u8]>> {
        if self.end - self.start < CHUNK_MAX_BYTES && !self.at_end {
            self.fill()?;
        }
        // No cut looks beyond the largest chunk, so additional bytes in the buffer do not move it.
        let window = &self.buffer[self.start..self.end];
        let window = &window[..window.len().min(CHUNK_MAX_BYTES)];
        let Some(length) = cut(window).next() else { return Ok(None) };
        let chunk = self.start..self.start + length;
        self.start = chunk.end;
        Ok(Some(&self.buffer[chunk]))
    }

    /// Returns the buffer for reuse with the next file.
    pub fn into_buffer(self) -> Vec<u8> {
        self.buffer
    }

    fn fill(&mut self) -> io::Result<()> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        while self.end < self.buffer.len() {
            match self.reader.read(&mut self.buffer[self.end..]) {
                Ok(0) => {
                    self.at_end = true;
                    break;
                }
                Ok(count) => self.end += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut bytes);
        bytes
    }

    /// Gives few bytes at a time, as a pipe would.
    struct Trickle<'a>(&'a [u8], usize);

    impl Read for Trickle<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(out.len()).min(self.0.len());
            out[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    fn stream(bytes: &[u8], step: usize) -> Vec<usize> {
        let mut chunker = Chunker::new(Trickle(bytes, step), Vec::new());
        let (mut lengths, mut content) = (Vec::new(), Vec::new());
        while let Some(chunk) = chunker.next_chunk().expect("reads") {
            lengths.push(chunk.len());
            content.extend_from_slice(chunk);
        }
        assert_eq!(content, bytes);
        lengths
    }

    #[test]
    fn a_stream_is_cut_like_the_same_bytes_in_memory() {
        let bytes = noise(5_000_000);
        let whole: Vec<usize> = cut(&bytes).collect();
        assert_eq!(stream(&bytes, usize::MAX), whole);
        assert_eq!(stream(&bytes, 77_777), whole);
        assert!(whole.iter().all(|length| *length <= CHUNK_MAX_BYTES));
        assert!(whole[..whole.len() - 1].iter().all(|length| *length >= CHUNK_MIN_BYTES));
        let average = bytes.len() / whole.len();
        assert!((CHUNK_AVERAGE_BYTES / 2..CHUNK_AVERAGE_BYTES * 2).contains(&average), "{average}");
    }

    #[test]
    fn small_content_is_one_chunk_and_nothing_is_none() {
        assert_eq!(stream(&[], 10), Vec::<usize>::new());
        assert_eq!(stream(&noise(1), 10), [1]);
        assert_eq!(stream(&noise(CHUNK_MIN_BYTES), 4096), [CHUNK_MIN_BYTES]);
        assert!(is_single_chunk(CHUNK_MIN_BYTES as u64) && !is_single_chunk(CHUNK_MIN_BYTES as u64 + 1));
    }

    #[test]
    fn an_insertion_changes_only_the_chunks_around_it() {
        let before = noise(3_000_000);
        let mut after = before.clone();
        after.splice(1_500_000..1_500_000, *b"inserted");
        let hashes = |bytes: &[u8]| {
            let mut at = 0;
            cut(bytes)
                .map(|length| {
                    at += length;
                    *blake3::hash(&bytes[at - length..at]).as_bytes()
                })
                .collect::<std::collections::BTreeSet<_>>()
        };
        let (before, after) = (hashes(&before), hashes(&after));
        assert!(after.difference(&before).count() <= 3);
    }

    #[test]
    fn the_cuts_are_pinned() {
        // Stored chunk manifests of one file must agree from one version of syncd to the next, or nothing is
        // shared.
        let lengths: Vec<usize> = cut(&noise(400_000)).collect();
        assert_eq!(lengths, PINNED);
    }

    const PINNED: &[usize] = &[74076, 101526, 32578, 48426, 83135, 41775, 18484];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn chunks_add_up(length in 0usize..700_000, step in 1usize..300_000) {
            stream(&noise(length), step);
        }
    }
}
