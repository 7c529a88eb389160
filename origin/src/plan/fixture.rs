//! A store in memory and a replica in memory, for tests of planning and serving.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use syncd_proto::v1;
use syncd_shared::delta::{Basis, DeltaFrame, Replacement};
use syncd_shared::diff::{Change, Comparison, DirectorySource, PartLimits};
use syncd_shared::directory::{DecodeDirectoryError, Entry, Kind, Metadata, Page, Timestamp, object_hash_of};
use syncd_shared::stored_frame::{FrameBuffer, StoredFrame};
use syncd_shared::wire::Frame as WireFrame;
use syncd_shared::{
    Component, ContentHash, ContentTag, Directory, ObjectHash, RootEntry, RootHash, TreePath,
};

use super::contents::{Chunk, Chunks, Contents, Directories, Frame, FrameId, Place, ReadError};

pub(crate) const CHUNK: usize = 64 * 1024;

#[derive(Default)]
struct Tables {
    roots: HashMap<RootHash, RootEntry>,
    directories: HashMap<ObjectHash, (Arc<Page>, Bytes)>,
    files: HashMap<ContentHash, Vec<Chunk>>,
    places: HashMap<ContentHash, Place>,
    frames: Vec<Frame>,
    frames_read: usize,
    directories_read: usize,
    directory_bytes_read: usize,
}

/// Files of one call of [`MemoryStore::put`] lie together in frames of at most `frame_bytes`.
pub(crate) struct MemoryStore {
    tables: Mutex<Tables>,
    frame_bytes: usize,
}

/// Paths and contents; a content of `None` is an empty directory.
pub(crate) type Tree = BTreeMap<String, Vec<u8>>;

pub(crate) fn tree(files: &[(&str, &[u8])]) -> Tree {
    files.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.to_vec())).collect()
}

/// The contents of one tree that replace others at their paths.
pub(crate) fn replacements(
    store: &dyn Contents,
    from: &RootEntry,
    to: &RootEntry,
) -> HashMap<ContentTag, Replacement> {
    let mut found = HashMap::new();
    let comparison = Comparison::of(Directories(store), from, to, PartLimits::default()).unwrap();
    let each = |change: &Change| {
        if let Change::Modified { from, to, .. } = change
            && let (Kind::File { content: old, size: old_bytes }, Kind::File { content, size: new_bytes }) =
                (&from.kind, &to.kind)
        {
            let (old, old_bytes, new_bytes) = (ContentTag::of(old), *old_bytes, *new_bytes);
            found.entry(ContentTag::of(content)).or_insert(Replacement { old, old_bytes, new_bytes });
        }
        true
    };
    comparison.each(each).unwrap();
    found
}

/// Bytes that do not compress, the same for one seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

impl MemoryStore {
    pub(crate) fn new(frame_bytes: usize) -> Arc<Self> {
        Arc::new(Self { tables: Mutex::default(), frame_bytes })
    }

    /// Stores a tree as if it was sealed.
    pub(crate) fn put(&self, tree: &Tree) -> RootEntry {
        self.put_with_mode(tree, 0o644)
    }

    /// The same, with this mode for every entry.
    pub(crate) fn put_with_mode(&self, tree: &Tree, mode: u16) -> RootEntry {
        let mut tables = self.tables.lock().unwrap();
        let mut pending: Vec<(ContentHash, Vec<u8>)> = Vec::new();
        let mut pending_bytes = 0;
        for bytes in tree.values() {
            let content = ContentHash::of(bytes);
            let mut chunks = Vec::new();
            for chunk in bytes.chunks(CHUNK) {
                let hash = ContentHash::of(chunk);
                chunks.push(Chunk { hash, length: chunk.len() as u32 });
                if tables.places.contains_key(&hash) || pending.iter().any(|(h, _)| *h == hash) {
                    continue;
                }
                if pending_bytes + chunk.len() > self.frame_bytes && !pending.is_empty() {
                    tables.seal(&mut pending);
                    pending_bytes = 0;
                }
                pending_bytes += chunk.len();
                pending.push((hash, chunk.to_vec()));
            }
            tables.files.insert(content, chunks);
        }
        tables.seal(&mut pending);
        let (object, totals) = tables.directory(tree, "", mode);
        let root = RootEntry { object, totals, ..RootEntry::empty() };
        tables.roots.insert(root.hash(), root);
        root
    }

    pub(crate) fn forget(&self, root: &RootHash) {
        self.tables.lock().unwrap().roots.remove(root);
    }

    pub(crate) fn forget_content(&self, content: &ContentHash) {
        self.tables.lock().unwrap().files.remove(content);
    }

    pub(crate) fn frames_read(&self) -> usize {
        self.tables.lock().unwrap().frames_read
    }

    pub(crate) fn directories_read(&self) -> usize {
        self.tables.lock().unwrap().directories_read
    }

    pub(crate) fn directory_bytes_read(&self) -> usize {
        self.tables.lock().unwrap().directory_bytes_read
    }
}

impl Tables {
    fn seal(&mut self, pending: &mut Vec<(ContentHash, Vec<u8>)>) {
        let frame = FrameId { pack: 1, offset: self.frames.len() as u64 };
        let mut bytes = Vec::new();
        for (hash, chunk) in pending.drain(..) {
            let place = Place { frame, offset: bytes.len() as u32, length: chunk.len() as u32 };
            self.places.insert(hash, place);
            bytes.extend(chunk);
        }
        if !bytes.is_empty() {
            let compressed = zstd::bulk::compress(&bytes, 1).unwrap().into();
            self.frames.push(Frame { compressed, uncompressed_bytes: bytes.len() as u32 });
        }
    }

    fn directory(&mut self, tree: &Tree, prefix: &str, mode: u16) -> (ObjectHash, syncd_shared::Totals) {
        let mut kinds: BTreeMap<String, Kind> = BTreeMap::new();
        for (path, bytes) in tree.iter().filter_map(|(p, b)| Some((p.strip_prefix(prefix)?, b))) {
            let kind = match path.split_once('/') {
                None => Kind::File { content: ContentHash::of(bytes), size: bytes.len() as u64 },
                Some((name, _)) if kinds.contains_key(name) => continue,
                Some((name, _)) => {
                    let (object, totals) = self.directory(tree, &format!("{prefix}{name}/"), mode);
                    Kind::Directory { object, totals }
                }
            };
            kinds.insert(path.split('/').next().unwrap().to_owned(), kind);
        }
        let metadata = Metadata { mode, uid: 0, gid: 0, mtime: Timestamp::default() };
        let entry = |(name, kind): (String, Kind)| Entry {
            name: Component::new(name.as_bytes()).unwrap(),
            metadata,
            kind,
        };
        let directory = Directory::new(kinds.into_iter().map(entry).collect()).unwrap();
        let built = directory.build();
        for (object, bytes) in built.pages {
            let page = Page::decode_verified(&bytes, object).unwrap();
            self.directories.insert(object, (page, bytes.into()));
        }
        (built.root, built.totals)
    }
}

impl Chunks for MemoryStore {
    fn chunks_of(&self, content: &ContentHash) -> Result<Option<Vec<Chunk>>, ReadError> {
        Ok(self.tables.lock().unwrap().files.get(content).cloned())
    }

    fn locate(&self, chunk: &ContentHash) -> Result<Option<Place>, ReadError> {
        Ok(self.tables.lock().unwrap().places.get(chunk).copied())
    }
}

impl Contents for MemoryStore {
    fn root(&self, hash: &RootHash) -> Result<Option<RootEntry>, ReadError> {
        Ok(self.tables.lock().unwrap().roots.get(hash).copied())
    }

    fn page(&self, hash: &ObjectHash) -> Result<Option<Arc<Page>>, ReadError> {
        let mut tables = self.tables.lock().unwrap();
        tables.directories_read += 1;
        Ok(tables.directories.get(hash).map(|(page, _)| page.clone()))
    }

    fn page_bytes(&self, hash: &ObjectHash) -> Result<Option<Bytes>, ReadError> {
        let mut tables = self.tables.lock().unwrap();
        tables.directory_bytes_read += 1;
        Ok(tables.directories.get(hash).map(|(_, bytes)| bytes.clone()))
    }

    fn look_up(&self, work: &mut dyn FnMut(&dyn Chunks) -> Result<(), ReadError>) -> Result<(), ReadError> {
        work(self)
    }

    fn frame(&self, frame: FrameId) -> Result<Option<Frame>, ReadError> {
        let mut tables = self.tables.lock().unwrap();
        tables.frames_read += 1;
        Ok(tables.frames.get(frame.offset as usize).cloned())
    }
}

/// The state of an agent after it processed frames.
#[derive(Default)]
pub(crate) struct MemoryReplica {
    pub(crate) pages: HashMap<ObjectHash, Arc<Page>>,
    pub(crate) files: HashMap<ContentHash, Vec<u8>>,
    tagged: HashMap<ContentTag, BTreeMap<u64, Vec<u8>>>,
    pub(crate) deltas: Vec<DeltaFrame>,
    /// Replaced contents by new ones. Must be set before an update is processed.
    pub(crate) replacements: HashMap<ContentTag, Replacement>,
    /// Paths of contents in the old tree.
    pub(crate) local: Vec<(ContentHash, TreePath)>,
    pub(crate) stored: Vec<StoredFrame>,
    pub(crate) missing: Vec<[u8; 32]>,
    pub(crate) ended: u64,
    pub(crate) parts_ended: u64,
}

impl DirectorySource for MemoryReplica {
    type Error = DecodeDirectoryError;

    fn page(&self, hash: &ObjectHash) -> Result<Arc<Page>, DecodeDirectoryError> {
        Ok(self.pages[hash].clone())
    }
}

impl MemoryReplica {
    pub(crate) fn take(&mut self, frame: v1::FetchFrame) {
        match WireFrame::from_message(frame).unwrap() {
            WireFrame::Directories(objects) => objects.iter().for_each(|bytes| {
                let object = object_hash_of(bytes);
                self.pages.insert(object, Page::decode_verified(bytes, object).unwrap());
            }),
            WireFrame::Patches(patches) => {
                for patch in patches {
                    let built = patch.apply(&*self).unwrap();
                    patch.check(&built).unwrap();
                    for (object, bytes) in built.pages {
                        self.pages.insert(object, Page::decode_verified(&bytes, object).unwrap());
                    }
                }
            }
            WireFrame::Stored(frame) => {
                let mut buffer = FrameBuffer::default();
                let bytes = buffer.decompress(&frame).unwrap();
                for piece in &frame.pieces {
                    let start = piece.frame_offset as usize;
                    let part = bytes[start..start + piece.length_bytes as usize].to_vec();
                    let twice = self.tagged.entry(piece.file).or_default().insert(piece.file_offset, part);
                    assert!(twice.is_none(), "a piece came twice");
                }
                self.stored.push(frame);
            }
            WireFrame::Delta(frame) => self.assemble_delta(frame),
            WireFrame::Local { file, source } => self.local.push((file, source)),
            WireFrame::PartEnd => {
                self.assemble();
                self.parts_ended += 1;
            }
            WireFrame::End { missing, .. } => {
                self.missing.extend(missing);
                self.ended += 1;
            }
        }
    }

    /// Makes stretches of new files of what the files taken in before have.
    fn assemble_delta(&mut self, mut frame: DeltaFrame) {
        frame.resolve(&|tag| self.replacements.get(&tag).copied()).unwrap();
        let known: HashMap<_, _> = self.files.keys().map(|file| (ContentTag::of(file), *file)).collect();
        let stretch = |files: &HashMap<ContentHash, Vec<u8>>, tag: &ContentTag, offset: u64, length: u64| {
            files[&known[tag]][offset as usize..(offset + length) as usize].to_vec()
        };
        let basis = |b: &Basis| stretch(&self.files, &b.file.content, b.offset, b.length_bytes.into());
        let prefix = frame.bases.iter().map(basis).collect::<Vec<_>>().concat();
        let decoded = frame.encoded.restore(&prefix, frame.output_bytes()).unwrap();
        let mut start = 0;
        for piece in &frame.pieces {
            let end = start + piece.length_bytes as usize;
            let parts = self.tagged.entry(piece.file).or_default();
            assert!(parts.insert(piece.file_offset, decoded[start..end].to_vec()).is_none());
            start = end;
        }
        for copy in &frame.copies {
            let part = stretch(&self.files, &copy.basis.content, copy.basis_offset, copy.length_bytes);
            assert!(self.tagged.entry(copy.file).or_default().insert(copy.file_offset, part).is_none());
        }
        self.deltas.push(frame);
    }

    /// Puts pieces together; only whole files with the right hash are kept.
    pub(crate) fn assemble(&mut self) {
        for (tag, parts) in std::mem::take(&mut self.tagged) {
            let mut bytes = Vec::new();
            for (offset, part) in parts {
                assert_eq!(offset, bytes.len() as u64, "pieces lie end to end");
                bytes.extend(part);
            }
            let file = ContentHash::of(&bytes);
            assert_eq!(ContentTag::of(&file), tag);
            self.files.insert(file, bytes);
        }
    }

    /// The whole tree; panics where anything is missing.
    pub(crate) fn tree(&self, root: &RootEntry) -> Tree {
        let mut out = Tree::new();
        self.collect(&root.object, "", &mut out);
        out
    }

    fn collect(&self, object: &ObjectHash, prefix: &str, out: &mut Tree) {
        for entry in self.directory(object).unwrap().entries() {
            let path = format!("{prefix}{}", String::from_utf8_lossy(entry.name.as_bytes()));
            match &entry.kind {
                Kind::Directory { object, .. } => self.collect(object, &format!("{path}/"), out),
                Kind::File { size: 0, .. } => {
                    out.insert(path, Vec::new());
                }
                Kind::File { content, .. } => {
                    out.insert(path, self.files[content].clone());
                }
                Kind::Symlink { .. } | Kind::Collected { .. } => {}
            }
        }
    }
}
