//! Garbage collection.
//!
//! 1. Mark, as a reader: find everything that the retained roots refer to, and the index entries outside that
//!    set.
//! 2. Sweep, as the writer: mark generations sealed since, remove the entries that are still unreferenced,
//!    together with packs left empty, in one transaction, and unlink those packs.
//! 3. Compact, as the writer, one pack at a time: if less than half of a pack is live, append its live frames
//!    elsewhere, then move the chunks and drop the pack in one transaction, and unlink it.
//!
//! After a crash each step has happened or not, and opening the store unlinks leftover packs. Readers with an
//! open pack can continue to read it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use redb::{ReadTransaction, ReadableTable, WriteTransaction};
use syncd_shared::directory::Kind;
use syncd_shared::directory::Page;
use syncd_shared::hash::{ContentHash, ObjectHash, RootHash};
use syncd_shared::{Generation, GenerationNumber, RootEntry};

use super::error::{StoreError, index, poisoned};
use super::frame_builder::FrameBuilder;
use super::index::{CHUNKS, DIRECTORIES, FILES, GENERATIONS, PACKS, ROOTS, decode_location, location_in};
use super::pack::{Location, PACK_HEADER_BYTES, PackFrame, PackId, chunk_bytes};
use super::paths::short;
use super::read::{decode_chunks, decode_root, encode_root};
use super::retention::{Retention, retired};
use super::writer::{WritePermit, Writer};
use super::{Store, history, objects, paths};

/// Objects marked between two questions whether to give way.
const OBJECTS_BETWEEN: usize = 64;

/// Result of a garbage collection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CollectReport {
    /// Retired generations.
    pub generations: Vec<GenerationNumber>,
    /// Removed directory objects.
    pub directories: u64,
    /// Removed chunks.
    pub chunks: u64,
    /// Packs that were rewritten or became empty.
    pub packs: u64,
    /// Bytes of those packs, before the space taken by rewriting them.
    pub pack_bytes: u64,
    /// Damaged packs that could not be rewritten and remain in place.
    pub damaged_packs: Vec<PackId>,
    /// The collection gave way. The next one goes on.
    pub gave_way: bool,
}

/// Everything that the retained generations refer to. Chunks and files are represented by the first 8 bytes
/// of their hash; a collision only keeps an unused entry. Directories are kept whole, because they determine
/// where marking continues.
#[derive(Default)]
pub(super) struct Marks {
    /// Objects still to be marked. Everything that marked objects name is marked, or is here.
    waiting: Vec<ObjectHash>,
    generations: HashSet<u64>,
    directories: HashSet<ObjectHash>,
    files: HashSet<u64>,
    chunks: HashSet<u64>,
}

/// Index entries at the time of marking that no retained generation refers to.
struct Candidates {
    directories: Vec<ObjectHash>,
    files: Vec<ContentHash>,
    chunks: Vec<ContentHash>,
}

impl Marks {
    /// Marks the waiting objects and everything below them. Returns whether none is left.
    fn mark(&mut self, t: &ReadTransaction, gives_way: &dyn Fn() -> bool) -> Result<bool, StoreError> {
        let directories = t.open_table(DIRECTORIES).map_err(index)?;
        let files = t.open_table(FILES).map_err(index)?;
        let mut marked = 0usize;
        while let Some(hash) = self.waiting.pop() {
            if !self.directories.insert(hash) {
                continue;
            }
            marked += 1;
            let stored = directories.get(hash.as_bytes()).map_err(index)?;
            let stored = stored.ok_or(StoreError::DirectoryMissing { hash })?;
            let page = Page::decode(&objects::unpack(stored.value(), &hash)?)
                .map_err(|source| StoreError::Directory { hash, source })?;
            self.waiting.extend(page.children());
            for entry in page.entries() {
                match &entry.kind {
                    Kind::File { content, size } if *size > 0 => {
                        self.chunks.insert(short(content));
                        if let Some(stored) = files.get(content.as_bytes()).map_err(index)? {
                            self.files.insert(short(content));
                            let chunks = decode_chunks(content, stored.value())?;
                            self.chunks.extend(chunks.iter().map(|chunk| short(&chunk.hash)));
                        }
                    }
                    Kind::File { .. }
                    | Kind::Symlink { .. }
                    | Kind::Directory { .. }
                    | Kind::Collected { .. } => {}
                }
            }
            // Some progress is made by each call.
            if marked.is_multiple_of(OBJECTS_BETWEEN) && gives_way() {
                break;
            }
        }
        Ok(self.waiting.is_empty())
    }

    fn candidates(&self, t: &ReadTransaction) -> Result<Candidates, StoreError> {
        let mut out = Candidates { directories: Vec::new(), files: Vec::new(), chunks: Vec::new() };
        for row in t.open_table(DIRECTORIES).map_err(index)?.iter().map_err(index)? {
            let hash = ObjectHash::from_bytes(*row.map_err(index)?.0.value());
            if !self.directories.contains(&hash) {
                out.directories.push(hash);
            }
        }
        for row in t.open_table(FILES).map_err(index)?.iter().map_err(index)? {
            let hash = ContentHash::from_bytes(*row.map_err(index)?.0.value());
            // Every content that a marked page names is among the chunks. It may have got its row since then.
            if !self.files.contains(&short(&hash)) && !self.chunks.contains(&short(&hash)) {
                out.files.push(hash);
            }
        }
        for row in t.open_table(CHUNKS).map_err(index)?.iter().map_err(index)? {
            let hash = ContentHash::from_bytes(*row.map_err(index)?.0.value());
            if !self.chunks.contains(&short(&hash)) {
                out.chunks.push(hash);
            }
        }
        Ok(out)
    }

    /// Has the trees of all generations wait that are not retired and not yet marked.
    fn add_generations(
        &mut self,
        t: &ReadTransaction,
        retire: &HashSet<GenerationNumber>,
    ) -> Result<(), StoreError> {
        for generation in generations_in(t)? {
            let number = generation.number;
            if !retire.contains(&number) && self.generations.insert(number.get()) {
                self.waiting.push(generation.root.object);
            }
        }
        Ok(())
    }
}

impl Marks {
    /// Marks the chunks of every file that remains listed. A manifest repaired meanwhile may belong to a file
    /// marked earlier, and list chunks that nothing else refers to.
    fn mark_listed(&mut self, t: &ReadTransaction, candidates: &Candidates) -> Result<(), StoreError> {
        let gone: HashSet<&ContentHash> =
            candidates.files.iter().filter(|file| !self.files.contains(&short(file))).collect();
        for row in t.open_table(FILES).map_err(index)?.iter().map_err(index)? {
            let (file, stored) = row.map_err(index)?;
            let file = ContentHash::from_bytes(*file.value());
            if !gone.contains(&file) {
                let chunks = decode_chunks(&file, stored.value())?;
                self.chunks.extend(chunks.iter().map(|chunk| short(&chunk.hash)));
            }
        }
        Ok(())
    }
}

fn generations_in(t: &ReadTransaction) -> Result<Vec<Generation>, StoreError> {
    let table = t.open_table(GENERATIONS).map_err(index)?;
    let rows = table.iter().map_err(index)?;
    rows.map(|row| {
        let (number, stored) = row.map_err(index)?;
        let record = stored.value().get(64..).ok_or(StoreError::Entry { table: "generations" })?;
        let number = number.value();
        Generation::decode(record).map_err(|source| StoreError::Generation { number, source })
    })
    .collect()
}

impl Store {
    /// Generations that [`Store::collect_garbage`] would retire now because of their age.
    pub fn retention(
        &self,
        retention: Retention,
        keep_roots: &HashSet<RootHash>,
        now_ms: i64,
    ) -> Result<Vec<GenerationNumber>, StoreError> {
        let all = self.index.read(generations_in)?;
        Ok(retired(&all, retention, keep_roots, now_ms))
    }

    /// Number of generations retired since the store was opened.
    pub fn retired_generations(&self) -> u64 {
        self.retired.load(Ordering::Acquire)
    }

    /// Retires generations, removes everything that is no longer referenced, and returns its space. Readers
    /// are not blocked; writers wait while the index changes and while one pack is rewritten. Walks all
    /// retained trees and the index if there is anything to retire, or possibly any unreferenced content;
    /// otherwise costs next to nothing. Damage found in the index stops the collection before anything is
    /// removed.
    ///
    /// `keep_tree` is also kept, whether or not a generation has it. It is the tree that the stat records
    /// describe, and the next scan relies on its content. When `gives_way` says so, the call ends early, and
    /// the next one goes on: nobody waits for the marking of trees, or for more than one pack.
    pub fn collect_garbage(
        self: &Arc<Self>,
        retention: Retention,
        keep_roots: &HashSet<RootHash>,
        keep_tree: Option<&RootEntry>,
        now_ms: i64,
        gives_way: &dyn Fn() -> bool,
    ) -> Result<CollectReport, StoreError> {
        let mut retire: HashSet<_> = self.retention(retention, keep_roots, now_ms)?.into_iter().collect();
        if let Some(limit) = retention.bytes
            && self.history_bytes()?.is_none_or(|bytes| bytes > limit)
        {
            retire.extend(self.index.read(|t| {
                let mut stay = generations_in(t)?;
                stay.retain(|generation| !retire.contains(&generation.number));
                history::beyond(t, &stay, retention, keep_roots, limit)
            })?);
        }
        let orphans = self.orphans.swap(false, Ordering::AcqRel);
        if retire.is_empty() && !orphans {
            return Ok(CollectReport::default());
        }
        let collected = self.mark_and_sweep(&retire, keep_tree, gives_way).and_then(|mut report| {
            if !report.gave_way {
                self.compact(&mut report, gives_way)?;
                self.measure_current()?;
            }
            Ok(report)
        });
        if collected.as_ref().map_or(true, |report| report.gave_way) {
            self.orphans.store(true, Ordering::Release);
        }
        collected
    }

    fn mark_and_sweep(
        self: &Arc<Self>,
        retire: &HashSet<GenerationNumber>,
        keep_tree: Option<&RootEntry>,
        gives_way: &dyn Fn() -> bool,
    ) -> Result<CollectReport, StoreError> {
        // A generation that was marked and is retired since keeps its objects until the next collection. If
        // marking began again for each, it would never end on a busy origin.
        let mut marks = self.marking.lock().map_err(poisoned)?.take().unwrap_or_default();
        let candidates = self.index.read(|t| {
            marks.add_generations(t, retire)?;
            marks.waiting.extend(keep_tree.map(|tree| tree.object));
            if marks.mark(t, gives_way)? { marks.candidates(t).map(Some) } else { Ok(None) }
        })?;
        let Some(candidates) = candidates else {
            *self.marking.lock().map_err(poisoned)? = Some(marks);
            return Ok(CollectReport { gave_way: true, ..CollectReport::default() });
        };
        #[cfg(test)]
        super::tests::between_mark_and_sweep(self);
        let permit = WritePermit::acquire(self)?;
        let mut report = CollectReport::default();
        self.index.read(|t| {
            marks.add_generations(t, retire)?;
            marks.mark(t, &|| false)?;
            marks.mark_listed(t, &candidates)
        })?;
        let dropped = self.index.write(|t| {
            for number in retire {
                retire_generation(t, *number)?;
            }
            remove_unmarked(t, &marks, &candidates, &mut report)?;
            drop_dead_packs(t, &mut report)
        })?;
        self.retired.fetch_add(retire.len() as u64, Ordering::AcqRel);
        if retire.iter().any(|number| marks.generations.contains(&number.get())) {
            self.orphans.store(true, Ordering::Release);
        }
        self.directories.lock().map_err(poisoned)?.clear();
        self.unlink(&dropped)?;
        report.generations = retire.iter().copied().collect();
        report.generations.sort_unstable();
        drop(permit);
        Ok(report)
    }

    fn unlink(&self, packs: &[PackId]) -> Result<(), StoreError> {
        for &pack in packs {
            let path = self.packs.path(pack);
            match fs::remove_file(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                other => other.map_err(|source| StoreError::Io { doing: "remove", path, source })?,
            }
            // After the unlink, so that nobody can open it again.
            self.packs.forget(pack);
        }
        Ok(())
    }

    fn compact(
        self: &Arc<Self>,
        report: &mut CollectReport,
        gives_way: &dyn Fn() -> bool,
    ) -> Result<(), StoreError> {
        let sparse = self.index.read(|t| {
            let live = live_bytes(&t.open_table(CHUNKS).map_err(index)?)?;
            let mut sparse = Vec::new();
            for row in t.open_table(PACKS).map_err(index)?.iter().map_err(index)? {
                let (id, length) = row.map_err(index)?;
                let (id, (bytes, content_bytes)) = (PackId(id.value()), length.value());
                let live = live.get(&id).copied().unwrap_or(0);
                if live < content_bytes / 2 {
                    sparse.push((id, bytes));
                }
            }
            Ok(sparse)
        })?;
        for (pack, bytes) in sparse {
            if gives_way() {
                report.gave_way = true;
                return Ok(());
            }
            let permit = WritePermit::acquire(self)?;
            match self.rewrite(pack, bytes, permit) {
                Ok(()) => {
                    report.packs += 1;
                    report.pack_bytes += bytes;
                }
                Err(StoreError::Frame { .. } | StoreError::PackMissing { .. }) => {
                    report.damaged_packs.push(pack);
                }
                Err(other) => return Err(other),
            }
        }
        Ok(())
    }

    /// Moves the live chunks of a pack elsewhere and drops the pack.
    fn rewrite(&self, pack: PackId, bytes: u64, permit: WritePermit) -> Result<(), StoreError> {
        let writer = Writer::open_apart_from(permit, pack)?;
        let mut builder = writer.batch()?;
        let mut offset = PACK_HEADER_BYTES as u64;
        // A writer may have appended to this pack since it was chosen.
        let bytes = self.index.read(|t| {
            let packs = t.open_table(PACKS).map_err(index)?;
            Ok(packs.get(pack.get()).map_err(index)?.map_or(bytes, |length| length.value().0))
        })?;
        while offset < bytes {
            let (frame, next) = self.packs.frame(pack, offset)?;
            self.move_live(&writer, &mut builder, pack, offset, &frame)?;
            offset = next;
        }
        builder.finish()?;
        writer.finish_with(|t| {
            t.open_table(PACKS).map_err(index)?.remove(pack.get()).map_err(index)?;
            Ok(())
        })?;
        self.unlink(&[pack])
    }

    fn move_live(
        &self,
        writer: &Writer,
        builder: &mut FrameBuilder<'_>,
        pack: PackId,
        offset: u64,
        frame: &PackFrame,
    ) -> Result<(), StoreError> {
        let live: Vec<_> = self.index.read(|t| {
            let table = t.open_table(CHUNKS).map_err(index)?;
            let mut live = Vec::new();
            for chunk in &frame.chunks {
                let here = Location {
                    pack,
                    frame_offset: offset,
                    offset_in_frame: chunk.offset,
                    length: chunk.length,
                };
                if location_in(&table, &chunk.hash)? == Some(here) {
                    live.push(*chunk);
                }
            }
            Ok(live)
        })?;
        if live.is_empty() {
            return Ok(());
        }
        if live.len() == frame.chunks.len() {
            return writer.append(&frame.chunks, frame.uncompressed_bytes, &frame.compressed);
        }
        let damaged = |source| StoreError::Frame { pack, offset, source };
        let content = frame.decompress().map_err(damaged)?;
        for chunk in live {
            let bytes = chunk_bytes(&content, chunk.offset, chunk.length, &chunk.hash).map_err(damaged)?;
            builder.move_chunk(&chunk.hash, bytes)?;
        }
        Ok(())
    }
}

fn retire_generation(t: &WriteTransaction, number: GenerationNumber) -> Result<(), StoreError> {
    let mut generations = t.open_table(GENERATIONS).map_err(index)?;
    let Some(hash) = ({
        let stored = generations.remove(number.get()).map_err(index)?;
        stored
            .map(|stored| {
                let record = stored.value().get(64..).ok_or(StoreError::Entry { table: "generations" })?;
                let decoded = Generation::decode(record);
                decoded
                    .map(|g| g.root_hash())
                    .map_err(|source| StoreError::Generation { number: number.get(), source })
            })
            .transpose()?
    }) else {
        return Ok(());
    };
    let mut roots = t.open_table(ROOTS).map_err(index)?;
    let known = {
        let stored = roots.get(hash.as_bytes()).map_err(index)?;
        stored.map(|stored| decode_root(&hash, stored.value())).transpose()?
    };
    match known {
        Some((count, entry)) if count > 1 => {
            roots.insert(hash.as_bytes(), encode_root(count - 1, &entry).as_slice()).map_err(index)?;
        }
        Some(_) => {
            roots.remove(hash.as_bytes()).map_err(index)?;
        }
        None => {}
    }
    Ok(())
}

fn remove_unmarked(
    t: &WriteTransaction,
    marks: &Marks,
    candidates: &Candidates,
    report: &mut CollectReport,
) -> Result<(), StoreError> {
    let mut table = t.open_table(DIRECTORIES).map_err(index)?;
    for hash in candidates.directories.iter().filter(|hash| !marks.directories.contains(hash)) {
        table.remove(hash.as_bytes()).map_err(index)?;
        report.directories += 1;
    }
    let mut table = t.open_table(FILES).map_err(index)?;
    for hash in candidates.files.iter().filter(|hash| !marks.files.contains(&short(hash))) {
        table.remove(hash.as_bytes()).map_err(index)?;
    }
    let mut table = t.open_table(CHUNKS).map_err(index)?;
    for hash in candidates.chunks.iter().filter(|hash| !marks.chunks.contains(&short(hash))) {
        table.remove(hash.as_bytes()).map_err(index)?;
        report.chunks += 1;
    }
    paths::retain(t, |content| marks.chunks.contains(&content))
}

/// Uncompressed bytes of the indexed chunks in each pack.
fn live_bytes(
    chunks: &impl ReadableTable<&'static [u8; 32], &'static [u8; 20]>,
) -> Result<HashMap<PackId, u64>, StoreError> {
    let mut live = HashMap::new();
    for row in chunks.iter().map_err(index)? {
        let location = decode_location(row.map_err(index)?.1.value());
        *live.entry(location.pack).or_default() += u64::from(location.length);
    }
    Ok(live)
}

fn drop_dead_packs(t: &WriteTransaction, report: &mut CollectReport) -> Result<Vec<PackId>, StoreError> {
    let live = live_bytes(&t.open_table(CHUNKS).map_err(index)?)?;
    let mut packs = t.open_table(PACKS).map_err(index)?;
    let mut dead = BTreeMap::new();
    for row in packs.iter().map_err(index)? {
        let (id, length) = row.map_err(index)?;
        if !live.contains_key(&PackId(id.value())) {
            dead.insert(PackId(id.value()), length.value().0);
        }
    }
    for (id, bytes) in &dead {
        packs.remove(id.get()).map_err(index)?;
        report.packs += 1;
        report.pack_bytes += bytes;
    }
    Ok(dead.into_keys().collect())
}
