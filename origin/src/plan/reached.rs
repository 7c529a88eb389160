//! What may be asked for by hash: what retained generations refer to, and nothing else of the store.
//!
//! The store also has content that was scanned and never committed, such as a secret that somebody took out of the tree
//! in time. Hashes are no secrets, so knowing one is no right to its content.
//!
//! Trees are walked when they are asked about, each directory once whatever number of trees has it, so that a new
//! generation costs the directories that changed. Sets hold the first 8 bytes of each hash. When a generation is retired
//! they are emptied, and grow again with the trees that are asked about then.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use syncd_shared::directory::Kind;
use syncd_shared::{ContentHash, ObjectHash};

use super::contents::{Contents, DirectoryError};

/// See the module.
#[derive(Default)]
pub(super) struct Reached(Mutex<Sets>);

/// A directory is in a set together with all that is below it.
#[derive(Default)]
pub(super) struct Sets {
    retired: u64,
    directories: HashSet<u64>,
    /// Directories whose contents, and those of the directories below, are in `contents`.
    listed: HashSet<u64>,
    contents: HashSet<u64>,
}

impl Reached {
    /// The sets with the tree of this directory, which a retained generation has, in them; with its contents where these
    /// are asked about. Blocks for a walk where the tree is new.
    pub(super) fn with_tree(
        &self,
        contents: &dyn Contents,
        root: ObjectHash,
        with_contents: bool,
    ) -> Result<MutexGuard<'_, Sets>, DirectoryError> {
        let mut sets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sets.drop_retired(contents);
        let walked = sets.walk(contents, root, with_contents);
        if walked.is_err() {
            // What is below some directory may be missing.
            *sets = Sets { retired: sets.retired, ..Sets::default() };
        }
        walked.map(|()| sets)
    }

    /// Takes in the directories of a whole tree that was read for another reason.
    pub(super) fn add_directories(&self, contents: &dyn Contents, directories: &HashSet<ObjectHash>) {
        let mut sets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sets.drop_retired(contents);
        sets.directories.extend(directories.iter().map(|hash| short(hash.as_bytes())));
    }
}

impl Sets {
    pub(super) fn has_directory(&self, hash: &ObjectHash) -> bool {
        self.directories.contains(&short(hash.as_bytes()))
    }

    pub(super) fn has_content(&self, hash: &ContentHash) -> bool {
        self.contents.contains(&short(hash.as_bytes()))
    }

    fn drop_retired(&mut self, contents: &dyn Contents) {
        let retired = contents.retired();
        if retired != self.retired {
            *self = Sets { retired, ..Sets::default() };
        }
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
            let directory = contents.directory(&hash)?.ok_or(DirectoryError::Missing { object: hash })?;
            for entry in directory.entries() {
                match entry.kind {
                    Kind::Directory { object, .. } => stack.push(object),
                    Kind::File { content, size: 1.. } if with_contents => {
                        self.contents.insert(short(content.as_bytes()));
                    }
                    Kind::File { .. } | Kind::Symlink { .. } => {}
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
