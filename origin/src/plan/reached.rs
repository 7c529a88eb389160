//! The objects that may be requested by hash: those that retained generations refer to, and nothing else in
//! the store.
//!
//! The store also has content that was scanned and never committed, such as a secret that somebody removed
//! from the tree in time. Hashes are not secret, so knowing one gives no right to its content.
//!
//! Trees are walked on the first request about them. Each directory is walked once, however many trees have
//! it, so that a new generation costs only its changed directories. Sets hold the first 8 bytes of each hash.
//! When a generation is retired the sets are cleared, and grow again with the trees requested then. One walk
//! runs at a time, on a copy of the sets. Requests about known trees do not wait for it, and requests that
//! need the same walk share it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use syncd_shared::directory::Kind;
use syncd_shared::{ContentHash, ObjectHash};

use super::contents::{Contents, DirectoryError};

/// The admitted objects. See the module documentation.
#[derive(Default)]
pub(super) struct Reached {
    /// Locked only briefly, and after `walking`.
    sets: Mutex<Arc<Sets>>,
    /// Locked during a walk.
    walking: Mutex<()>,
}

/// A directory is in a set only together with everything below it.
#[derive(Clone, Default)]
pub(super) struct Sets {
    retired: u64,
    directories: HashSet<u64>,
    /// Directories whose contents, with those of all directories below, are in `contents`.
    listed: HashSet<u64>,
    contents: HashSet<u64>,
}

impl Reached {
    /// Returns the sets including the tree of this directory, which must belong to a retained generation.
    /// `with_contents` includes its contents. Blocks for a walk if the tree is new.
    pub(super) fn with_tree(
        &self,
        contents: &dyn Contents,
        root: ObjectHash,
        with_contents: bool,
    ) -> Result<Arc<Sets>, DirectoryError> {
        let known = self.current(contents).clone();
        if known.has_tree(root, with_contents) {
            return Ok(known);
        }
        let _walking = self.walking.lock().unwrap_or_else(PoisonError::into_inner);
        // The walk that held the lock may have been of this tree.
        let known = self.current(contents).clone();
        if known.has_tree(root, with_contents) {
            return Ok(known);
        }
        let mut sets = Sets::clone(&known);
        sets.walk(contents, root, with_contents)?;
        let sets = Arc::new(sets);
        *self.current(contents) = sets.clone();
        Ok(sets)
    }

    /// Adds the directories of a whole tree that was read for another reason. A concurrent walk may drop
    /// them, which costs another walk.
    pub(super) fn add_directories(&self, contents: &dyn Contents, directories: &HashSet<ObjectHash>) {
        let mut sets = self.current(contents);
        let hashes = directories.iter().map(|hash| short(hash.as_bytes()));
        Arc::make_mut(&mut sets).directories.extend(hashes);
    }

    /// The sets, cleared after a generation was retired.
    fn current(&self, contents: &dyn Contents) -> MutexGuard<'_, Arc<Sets>> {
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        let retired = contents.retired();
        if retired != sets.retired {
            *sets = Arc::new(Sets { retired, ..Sets::default() });
        }
        sets
    }
}

impl Sets {
    pub(super) fn has_directory(&self, hash: &ObjectHash) -> bool {
        self.directories.contains(&short(hash.as_bytes()))
    }

    pub(super) fn has_content(&self, hash: &ContentHash) -> bool {
        self.contents.contains(&short(hash.as_bytes()))
    }

    fn has_tree(&self, root: ObjectHash, with_contents: bool) -> bool {
        let walked = if with_contents { &self.listed } else { &self.directories };
        walked.contains(&short(root.as_bytes()))
    }

    fn walk(
        &mut self,
        contents: &dyn Contents,
        root: ObjectHash,
        with_contents: bool,
    ) -> Result<(), DirectoryError> {
        let mut stack = vec![root];
        while let Some(hash) = stack.pop() {
            let walked = if with_contents { &mut self.listed } else { &mut self.directories };
            if !walked.insert(short(hash.as_bytes())) {
                continue;
            }
            self.directories.insert(short(hash.as_bytes()));
            let page = contents.page(&hash)?.ok_or(DirectoryError::Missing { object: hash })?;
            stack.extend(page.children());
            for entry in page.entries().iter().filter(|_| with_contents) {
                if let Kind::File { content, size: 1.. } = entry.kind {
                    self.contents.insert(short(content.as_bytes()));
                }
            }
        }
        Ok(())
    }
}

fn short(hash: &[u8; 32]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *hash;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use bytes::Bytes;
    use syncd_shared::directory::Page;
    use syncd_shared::{RootEntry, RootHash};

    use super::super::contents::{Chunk, Chunks, Frame, FrameId, Place, ReadError};
    use super::super::fixture::{MemoryStore, tree};
    use super::*;

    /// A store that waits for a signal before it reads one directory.
    struct Slow {
        store: Arc<MemoryStore>,
        slow: ObjectHash,
        reading: mpsc::Sender<()>,
        go: Mutex<mpsc::Receiver<()>>,
    }

    impl Chunks for Slow {
        fn chunks_of(&self, content: &ContentHash) -> Result<Option<Vec<Chunk>>, ReadError> {
            self.store.chunks_of(content)
        }

        fn locate(&self, chunk: &ContentHash) -> Result<Option<Place>, ReadError> {
            self.store.locate(chunk)
        }
    }

    impl Contents for Slow {
        fn root(&self, hash: &RootHash) -> Result<Option<RootEntry>, ReadError> {
            self.store.root(hash)
        }

        fn page(&self, hash: &ObjectHash) -> Result<Option<Arc<Page>>, ReadError> {
            if *hash == self.slow {
                self.reading.send(()).unwrap();
                let go = self.go.lock().unwrap().recv_timeout(Duration::from_secs(20));
                go.expect("a request for a known tree waited for the walk");
            }
            self.store.page(hash)
        }

        fn page_bytes(&self, hash: &ObjectHash) -> Result<Option<Bytes>, ReadError> {
            self.store.page_bytes(hash)
        }

        fn look_up(
            &self,
            work: &mut dyn FnMut(&dyn Chunks) -> Result<(), ReadError>,
        ) -> Result<(), ReadError> {
            self.store.look_up(work)
        }

        fn frame(&self, frame: FrameId) -> Result<Option<Frame>, ReadError> {
            self.store.frame(frame)
        }
    }

    #[test]
    fn a_request_for_a_known_tree_does_not_wait_for_a_walk_and_the_same_walk_is_shared() {
        let store = MemoryStore::new(1 << 20);
        let known = store.put(&tree(&[("a/f", b"1")])).object;
        let new = store.put(&tree(&[("b/f", b"2")])).object;
        let ((reading, is_reading), (say_go, go)) = (mpsc::channel(), mpsc::channel());
        let slow = Slow { store: store.clone(), slow: new, reading, go: Mutex::new(go) };
        let reached = Reached::default();
        reached.with_tree(&slow, known, true).unwrap();
        std::thread::scope(|scope| {
            let walk = || reached.with_tree(&slow, new, true).unwrap();
            let both = [scope.spawn(walk), scope.spawn(walk)];
            is_reading.recv().unwrap();
            let sets = reached.with_tree(&slow, known, true).unwrap();
            assert!(sets.has_content(&ContentHash::of(b"1")) && !sets.has_content(&ContentHash::of(b"2")));
            say_go.send(()).unwrap();
            for walked in both {
                let sets = walked.join().unwrap();
                assert!(sets.has_content(&ContentHash::of(b"1")) && sets.has_content(&ContentHash::of(b"2")));
            }
        });
        assert_eq!(store.directories_read(), 4);
    }
}
