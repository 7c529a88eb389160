//! A content tree in memory, as an origin would seal and serve it, or as none would.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use syncd_proto::v1;
use syncd_proto::v1::fetch_frame::Frame as F;
use syncd_shared::directory::{Page, object_hash_of};
use syncd_shared::stored_frame::{Piece, StoredFrame};
use syncd_shared::wire::{ObjectsBatch, directories_message};
use syncd_shared::{
    Component, ContentHash, ContentTag, Directory, Entry, Kind, Metadata, ObjectHash, RootEntry, Timestamp,
    Totals,
};

pub const FILE: Metadata = Metadata { mode: 0o644, uid: 0, gid: 0, mtime: TIME };
pub const FOLDER: Metadata = Metadata { mode: 0o755, uid: 0, gid: 0, mtime: TIME };
const TIME: Timestamp = Timestamp { seconds: 1_700_000_000, nanoseconds: 42 };

/// All objects reachable from a root.
#[derive(Debug, Clone, Default)]
pub struct Site {
    pub root: Option<RootEntry>,
    pub objects: HashMap<ObjectHash, Vec<u8>>,
    pub contents: HashMap<ContentHash, Vec<u8>>,
}

impl Site {
    /// Makes a tree of files by path.
    pub fn new<'a>(files: impl IntoIterator<Item = (&'a str, Vec<u8>)>) -> Self {
        let mut site = Self::default();
        let files: BTreeMap<&str, Vec<u8>> = files.into_iter().collect();
        let (object, totals) = site.folder(&files.into_iter().collect::<Vec<_>>());
        site.root = Some(RootEntry { object, metadata: FOLDER, totals });
        site
    }

    fn folder(&mut self, files: &[(&str, Vec<u8>)]) -> (ObjectHash, Totals) {
        let mut below: BTreeMap<&str, Vec<(&str, Vec<u8>)>> = BTreeMap::new();
        let mut entries = Vec::new();
        for (path, bytes) in files {
            match path.split_once('/') {
                Some((name, rest)) => below.entry(name).or_default().push((rest, bytes.clone())),
                None => entries.push(self.file(path, bytes)),
            }
        }
        for (name, files) in below {
            let (object, totals) = self.folder(&files);
            entries.push(folder_entry(name, object, totals));
        }
        self.put(entries)
    }

    pub fn file(&mut self, name: &str, bytes: &[u8]) -> Entry {
        let content = ContentHash::of(bytes);
        self.contents.insert(content, bytes.to_vec());
        Entry { name: named(name), metadata: FILE, kind: Kind::File { content, size: bytes.len() as u64 } }
    }

    /// Adds a directory of these entries.
    pub fn put(&mut self, entries: Vec<Entry>) -> (ObjectHash, Totals) {
        let directory = Directory::new(entries).expect("unique names");
        let totals = directory.totals().unwrap_or_default();
        let built = directory.build();
        self.objects.extend(built.pages);
        (built.root, totals)
    }

    /// Adds any bytes under their hash.
    pub fn put_bytes(&mut self, bytes: Vec<u8>) -> ObjectHash {
        let hash = object_hash_of(&bytes);
        self.objects.insert(hash, bytes);
        hash
    }

    /// Replaces the root directory by exactly these bytes.
    pub fn with_root_bytes(mut self, bytes: Vec<u8>, totals: Totals) -> Self {
        let object = self.put_bytes(bytes);
        self.root = Some(RootEntry { object, metadata: FOLDER, totals });
        self
    }

    pub fn root(&self) -> RootEntry {
        self.root.expect("a site has a root")
    }

    /// Answers a request honestly.
    pub fn answer(&self, request: u64, batch: &ObjectsBatch) -> Vec<F> {
        let mut frames = Vec::new();
        let mut missing = Vec::new();
        let (mut wanted, mut sent) = (batch.directories.clone(), Vec::new());
        while let Some(hash) = wanted.pop() {
            let Some(bytes) = self.objects.get(&hash) else {
                missing.push(Bytes::copy_from_slice(hash.as_bytes()));
                continue;
            };
            sent.push(bytes.as_slice());
            if let (true, Ok(page)) = (batch.recursive, Page::decode(bytes)) {
                wanted.extend(page.children());
            }
        }
        // Not more than a frame has room for: each page takes at most 70 KB.
        for sent in sent.chunks(14) {
            frames.push(F::Directories(directories_message(sent.iter().copied())));
        }
        let mut files = batch.files.clone();
        for of in &batch.files_of {
            let page = self.objects.get(&of.directory).map(|bytes| Page::decode(bytes));
            if let Some(Ok(page)) = page {
                files.extend(of.of(page.entries()).filter_map(|entry| match entry.kind {
                    Kind::File { content, .. } => Some(content),
                    _ => None,
                }));
            }
        }
        for hash in files {
            match self.contents.get(&hash) {
                Some(bytes) if bytes.is_empty() => {}
                Some(bytes) => {
                    frames.extend(bytes.chunks(1 << 20).enumerate().map(|(index, part)| {
                        F::Stored(stored(hash, (index << 20) as u64, part).to_message())
                    }))
                }
                None => missing.push(Bytes::copy_from_slice(hash.as_bytes())),
            }
        }
        frames.push(F::End(v1::BatchEnd { request, missing, more: false }));
        frames
    }
}

/// One stretch of a content in a frame of its own.
pub fn stored(file: ContentHash, file_offset: u64, bytes: &[u8]) -> StoredFrame {
    let length_bytes = bytes.len() as u32;
    StoredFrame {
        compressed: zstd::bulk::compress(bytes, 1).expect("compresses").into(),
        uncompressed_bytes: bytes.len(),
        pieces: vec![Piece { file: ContentTag::of(&file), file_offset, frame_offset: 0, length_bytes }],
    }
}

pub fn named(name: &str) -> Component {
    Component::new(name.as_bytes()).expect("a name")
}

pub fn folder_entry(name: &str, object: ObjectHash, totals: Totals) -> Entry {
    Entry { name: named(name), metadata: FOLDER, kind: Kind::Directory { object, totals } }
}

/// Canonical bytes of an entry that no constructor would make.
pub struct RawEntry<'a> {
    pub name: &'a [u8],
    pub kind: u8,
    pub mode: u16,
    pub nanoseconds: u32,
    pub rest: Vec<u8>,
}

impl RawEntry<'_> {
    /// An empty file.
    pub fn file(name: &[u8]) -> RawEntry<'_> {
        let rest = [ContentHash::of(b"").as_bytes().as_slice(), &0u64.to_le_bytes()].concat();
        RawEntry { name, kind: 2, mode: 0o644, nanoseconds: 0, rest }
    }

    pub fn symlink<'a>(name: &'a [u8], target: &[u8]) -> RawEntry<'a> {
        let rest = [&(target.len() as u16).to_le_bytes(), target].concat();
        RawEntry { name, kind: 3, mode: 0o777, nanoseconds: 0, rest }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.name.len() as u8);
        out.extend(self.name);
        out.push(self.kind);
        out.extend(self.mode.to_le_bytes());
        out.extend([0; 8]);
        out.extend(1_700_000_000i64.to_le_bytes());
        out.extend(self.nanoseconds.to_le_bytes());
        out.extend(&self.rest);
    }
}

/// A directory object of such entries, in this order.
pub fn raw_directory(entries: &[RawEntry<'_>]) -> Vec<u8> {
    let mut out = vec![1];
    entries.iter().for_each(|entry| entry.encode(&mut out));
    out
}
