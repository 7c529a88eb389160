//! Verifies every byte of the store.

use std::collections::HashSet;
use std::sync::Arc;

use redb::ReadableTable;
use syncd_shared::GenerationNumber;
use syncd_shared::directory::Kind;
use syncd_shared::directory::Page;
use syncd_shared::hash::{ContentHash, ObjectHash};

use super::error::{StoreError, index};
use super::index::{CHUNKS, PACKS, STAT, decode_location, location_in};
use super::pack::{Location, PACK_HEADER_BYTES, PackFrame, PackId, chunk_bytes};
use super::writer::WritePermit;
use super::{Chunk, Store};

/// One damaged item.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// A pack, a frame or the index cannot be read.
    #[error(transparent)]
    Unreadable(#[from] StoreError),
    /// A chunk is missing from its recorded location, or does not match its hash.
    #[error("chunk {hash} is not intact at byte {frame_offset} of pack {pack}", pack = .location.pack, frame_offset = .location.frame_offset)]
    Chunk {
        hash: ContentHash,
        /// Location recorded in the index.
        location: Location,
    },
    /// A directory object that a retained generation needs is missing or damaged.
    #[error("generation {number} lacks directory object {hash}")]
    Directory { number: GenerationNumber, hash: ObjectHash },
    /// The content of a file that a retained generation needs is incomplete.
    #[error("generation {number} lacks content {hash}")]
    Content {
        number: GenerationNumber,
        /// Hash of the content.
        hash: ContentHash,
    },
}

/// Progress of a check.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CheckProgress {
    /// Pack bytes checked so far.
    pub pack_bytes: u64,
    /// Pack bytes in total.
    pub pack_bytes_total: u64,
}

/// Result of a check.
#[derive(Debug, Default)]
pub struct CheckReport {
    /// Generations examined, complete or not.
    pub generations: u64,
    /// Frames read, including damaged ones.
    pub frames: u64,
    /// Chunks found intact at their recorded locations.
    pub chunks: u64,
    /// Intact directory objects.
    pub directories: u64,
    /// Files with complete content.
    pub files: u64,
    pub damage: Vec<Damage>,
}

impl CheckReport {
    pub fn is_intact(&self) -> bool {
        self.damage.is_empty()
    }
}

struct Check<'a> {
    store: &'a Store,
    report: CheckReport,
    progress: CheckProgress,
    /// Chunks found intact at their recorded locations.
    intact: HashSet<ContentHash>,
    directories: HashSet<ObjectHash>,
}

impl Store {
    /// Reads every byte: decompresses every frame, hashes every chunk, decodes every directory object of
    /// every retained generation, and checks that the content of its files is complete. Does not verify
    /// signatures; see [`Store::generations`]. `progress` is called after each frame. Nothing may be written
    /// meanwhile, because chunks moved by garbage collection would be reported as damage.
    pub fn check(&self, mut progress: impl FnMut(CheckProgress)) -> CheckReport {
        let mut check = Check {
            store: self,
            report: CheckReport::default(),
            progress: CheckProgress::default(),
            intact: HashSet::new(),
            directories: HashSet::new(),
        };
        if let Err(error) = check.packs(&mut progress) {
            check.report.damage.push(error.into());
        }
        if let Err(error) = check.index_entries() {
            check.report.damage.push(error.into());
        }
        if let Err(error) = check.generations() {
            check.report.damage.push(error.into());
        }
        check.report
    }
}

impl Store {
    /// Prepares a repair: removes a report's damaged chunks from the index, so that they count as missing,
    /// and all stat records, so that the next scan reads every file and stores missing content again. Returns
    /// the number of chunks removed.
    pub fn forget_damaged(self: &Arc<Self>, report: &CheckReport) -> Result<u64, StoreError> {
        let _permit = WritePermit::acquire(self)?;
        self.index.write(|t| {
            let mut forgotten = 0;
            let mut chunks = t.open_table(CHUNKS).map_err(index)?;
            for damage in &report.damage {
                if let Damage::Chunk { hash, location } = damage
                    && location_in(&chunks, hash)? == Some(*location)
                {
                    chunks.remove(hash.as_bytes()).map_err(index)?;
                    forgotten += 1;
                }
            }
            if forgotten > 0 {
                t.delete_table(STAT).map_err(index)?;
                t.open_table(STAT).map_err(index)?;
            }
            Ok(forgotten)
        })
    }
}

impl Check<'_> {
    fn packs(&mut self, progress: &mut impl FnMut(CheckProgress)) -> Result<(), StoreError> {
        let packs: Vec<(PackId, u64)> = self.store.index.read(|t| {
            let table = t.open_table(PACKS).map_err(index)?;
            let rows = table.iter().map_err(index)?;
            rows.map(|row| row.map_err(index).map(|(id, l)| (PackId(id.value()), l.value().0))).collect()
        })?;
        self.progress.pack_bytes_total = packs.iter().map(|(_, bytes)| bytes).sum();
        for (pack, bytes) in packs {
            let before = self.progress.pack_bytes;
            let mut offset = PACK_HEADER_BYTES as u64;
            while offset < bytes {
                match self.store.packs.frame(pack, offset) {
                    Ok((frame, next)) => {
                        self.frame(pack, offset, &frame)?;
                        offset = next;
                    }
                    // The position of the next frame is unknown. `index_entries` determines which chunks are
                    // lost.
                    Err(error) => {
                        self.report.damage.push(error.into());
                        break;
                    }
                }
                self.progress.pack_bytes = before + offset.min(bytes);
                progress(self.progress);
            }
            self.progress.pack_bytes = before + bytes;
        }
        Ok(())
    }

    fn frame(&mut self, pack: PackId, offset: u64, frame: &PackFrame) -> Result<(), StoreError> {
        let damaged = |source| Damage::Unreadable(StoreError::Frame { pack, offset, source });
        self.report.frames += 1;
        let content = match frame.decompress() {
            Ok(content) => content,
            Err(source) => {
                self.report.damage.push(damaged(source));
                return Ok(());
            }
        };
        let hashes: Vec<_> = frame.chunks.iter().map(|c| Chunk { hash: c.hash, length: c.length }).collect();
        let located = self.store.locate_all(&hashes)?;
        for (chunk, location) in frame.chunks.iter().zip(located) {
            if let Err(source) = chunk_bytes(&content, chunk.offset, chunk.length, &chunk.hash) {
                self.report.damage.push(damaged(source));
            } else if location.is_some_and(|l| {
                (l.pack, l.frame_offset, l.offset_in_frame, l.length)
                    == (pack, offset, chunk.offset, chunk.length)
            }) {
                self.intact.insert(chunk.hash);
            }
        }
        Ok(())
    }

    /// Compares the index with the chunks found intact. Frames behind a damaged header were not reached, but
    /// the index may still locate them.
    fn index_entries(&mut self) -> Result<(), StoreError> {
        let lost: Vec<(ContentHash, Location)> = self.store.index.read(|t| {
            let mut lost = Vec::new();
            for row in t.open_table(CHUNKS).map_err(index)?.iter().map_err(index)? {
                let (hash, location) = row.map_err(index)?;
                let hash = ContentHash::from_bytes(*hash.value());
                if !self.intact.contains(&hash) {
                    lost.push((hash, decode_location(location.value())));
                }
            }
            Ok(lost)
        })?;
        for (hash, location) in lost {
            if self.is_intact(&hash, &location) {
                self.intact.insert(hash);
            } else {
                self.report.damage.push(Damage::Chunk { hash, location });
            }
        }
        self.report.chunks = self.intact.len() as u64;
        Ok(())
    }

    fn is_intact(&self, hash: &ContentHash, location: &Location) -> bool {
        let frame = self.store.frame(location.pack, location.frame_offset);
        frame.is_ok_and(|frame| {
            frame.decompress().is_ok_and(|content| {
                chunk_bytes(&content, location.offset_in_frame, location.length, hash).is_ok()
            })
        })
    }

    fn generations(&mut self) -> Result<(), StoreError> {
        for stored in self.store.generations()? {
            self.report.generations += 1;
            let generation = stored.generation;
            if !matches!(self.store.root(&generation.root_hash()), Ok(Some(root)) if root == generation.root)
            {
                self.report.damage.push(StoreError::Root { hash: generation.root_hash() }.into());
            }
            self.tree(generation.number, generation.root.object)?;
        }
        Ok(())
    }

    fn tree(&mut self, number: GenerationNumber, root: ObjectHash) -> Result<(), StoreError> {
        let mut stack = vec![root];
        while let Some(hash) = stack.pop() {
            if !self.directories.insert(hash) {
                continue;
            }
            let Some(page) =
                self.store.page_bytes(&hash).ok().flatten().and_then(|bytes| Page::decode(&bytes).ok())
            else {
                self.report.damage.push(Damage::Directory { number, hash });
                continue;
            };
            self.report.directories += 1;
            stack.extend(page.children());
            for entry in page.entries() {
                if let Kind::File { content, size } = &entry.kind {
                    self.file(number, content, *size)?;
                }
            }
        }
        Ok(())
    }

    fn file(&mut self, number: GenerationNumber, hash: &ContentHash, size: u64) -> Result<(), StoreError> {
        let complete = match self.store.chunks_of(hash, size) {
            Ok(Some(chunks)) => chunks.iter().all(|chunk| self.intact.contains(&chunk.hash)),
            Ok(None) | Err(StoreError::Entry { .. }) => false,
            Err(other) => return Err(other),
        };
        if complete {
            self.report.files += 1;
        } else {
            self.report.damage.push(Damage::Content { number, hash: *hash });
        }
        Ok(())
    }
}
