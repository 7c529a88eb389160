//! A store in a temporary directory, and trees to seal in it.

use std::collections::BTreeMap;
use std::sync::Arc;

use syncd_shared::directory::Kind;
use syncd_shared::ed25519::SigningKey;
use syncd_shared::hash::ContentHash;
use syncd_shared::{
    Component, Directory, Entry, Generation, GenerationNumber, Metadata, ObjectHash, RootEntry,
    SignedGeneration, Timestamp, TreeId,
};

use super::{Chunk, SealError, Store, StoreError, Writer};

pub(super) const CHUNK: usize = 1_000;

/// Name of a file -> its content; the directory is the part before a slash.
pub(super) type Tree = BTreeMap<String, Vec<u8>>;

pub(crate) struct Fixture {
    pub(super) data: tempfile::TempDir,
    store: Option<Arc<Store>>,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let data = tempfile::tempdir().unwrap();
        let store = Store::create(data.path()).unwrap();
        Self { data, store: Some(Arc::new(store)) }
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        self.store.as_ref().unwrap()
    }

    pub(super) fn close(&mut self) {
        let store = self.store.take().unwrap();
        assert_eq!(Arc::strong_count(&store), 1);
    }

    pub(crate) fn reopen(&mut self) {
        if self.store.is_some() {
            self.close();
        }
        self.store = Some(Arc::new(Store::open(self.data.path()).unwrap()));
    }

    /// Seals a tree as a generation.
    pub(super) fn seal(&self, number: u64, tree: &Tree) -> RootEntry {
        let writer = self.store().writer().unwrap();
        let root = put_tree(&writer, tree).unwrap();
        writer.seal(&signed(number, root, 0)).unwrap();
        root
    }

    /// Everything of a generation, read back.
    pub(super) fn read(&self, root: &RootEntry) -> Result<Tree, StoreError> {
        let mut tree = Tree::new();
        let store = self.store();
        for directory in entries(store, root.object)? {
            let Kind::Directory { object, .. } = directory.kind else { panic!("a directory") };
            for file in entries(store, object)? {
                let Kind::File { content, size } = file.kind else { panic!("a file") };
                let mut bytes = Vec::new();
                store.read_file(&content, size, &mut bytes)?;
                let name = [directory.name.as_bytes(), b"/", file.name.as_bytes()].concat();
                tree.insert(String::from_utf8(name).unwrap(), bytes);
            }
        }
        Ok(tree)
    }
}

/// The entries of all pages of a directory.
fn entries(store: &Store, object: ObjectHash) -> Result<Vec<Entry>, StoreError> {
    let page = store.page(&object)?.ok_or(StoreError::DirectoryMissing { hash: object })?;
    let mut found = page.entries().to_vec();
    for page in page.pages() {
        found.extend(entries(store, page.object)?);
    }
    Ok(found)
}

pub(super) fn key() -> SigningKey {
    SigningKey::from_bytes(&[5; 32])
}

pub(super) fn signed(number: u64, root: RootEntry, created_ms: i64) -> SignedGeneration {
    let number = GenerationNumber::new(number).unwrap();
    let tree_id = TreeId::from_bytes([9; 16]);
    Generation { tree_id, epoch: 1, number, trust: 1, root, parent: None, created_ms, label: String::new() }
        .sign(&key())
}

fn entry(name: &str, kind: Kind) -> Entry {
    let metadata = Metadata { mode: 0o644, uid: 0, gid: 0, mtime: Timestamp::default() };
    Entry { name: Component::new(name.as_bytes()).unwrap(), metadata, kind }
}

/// Adds one file in chunks of [`CHUNK`] bytes.
pub(super) fn put_content(writer: &Writer, content: &[u8]) -> Result<ContentHash, StoreError> {
    let hash = ContentHash::of(content);
    let mut builder = writer.batch()?;
    let mut chunks = Vec::new();
    for bytes in content.chunks(CHUNK) {
        let chunk = Chunk { hash: ContentHash::of(bytes), length: bytes.len() as u32 };
        builder.add_chunk(&chunk.hash, bytes)?;
        chunks.push(chunk);
    }
    builder.finish()?;
    writer.put_file(&hash, &chunks)?;
    Ok(hash)
}

/// Adds a tree; its root entry.
pub(super) fn put_tree(writer: &Writer, tree: &Tree) -> Result<RootEntry, StoreError> {
    let mut directories: BTreeMap<&str, Vec<Entry>> = BTreeMap::new();
    for (path, content) in tree {
        let (directory, name) = path.split_once('/').unwrap();
        let kind = Kind::File { content: put_content(writer, content)?, size: content.len() as u64 };
        directories.entry(directory).or_default().push(entry(name, kind));
    }
    let mut top = Vec::new();
    for (name, entries) in directories {
        let directory = Directory::new(entries).unwrap();
        let (object, totals) = (writer.put_directory(&directory)?, directory.totals().unwrap());
        top.push(entry(name, Kind::Directory { object, totals }));
    }
    let top = Directory::new(top).unwrap();
    let object = writer.put_directory(&top)?;
    Ok(RootEntry { object, totals: top.totals().unwrap(), ..RootEntry::empty() })
}

/// Bytes that do not compress.
pub(super) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut out = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// A tree of a few files, small and large, that depends on `seed`.
pub(super) fn tree(seed: u64) -> Tree {
    Tree::from([
        ("a/constant".into(), noise(0, 5_500)),
        ("a/small".into(), noise(seed, 10)),
        ("b/large".into(), noise(seed + 1_000, 30_250)),
        ("b/empty".into(), Vec::new()),
    ])
}

pub(super) fn try_seal(store: &Arc<Store>, number: u64, tree: &Tree) -> Result<RootEntry, SealError> {
    let writer = store.writer()?;
    let root = put_tree(&writer, tree)?;
    writer.seal(&signed(number, root, 0))?;
    Ok(root)
}
