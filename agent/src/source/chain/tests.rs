use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use syncd_shared::directory::Page;
use syncd_shared::stored_frame::{Piece, StoredFrame};
use syncd_shared::{ContentTag, Kind, SignedGeneration};

use super::*;
use crate::fixture::Site;
use crate::replica::Replica;
use crate::session::worker::{Failure, ReplicaWork};

/// A directory with one file for each object, named by its hash. Says what it does not have.
#[derive(Clone)]
struct ObjectDirectory {
    path: PathBuf,
    /// Breaks off after this many contents of an answer.
    breaks_after: usize,
}

impl ObjectDirectory {
    /// Exports every directory object, and the contents that `keep` returns `true` for.
    fn of(site: &Site, keep: impl Fn(usize) -> bool) -> Self {
        let path = site.temp.path().join("objects");
        std::fs::create_dir(&path).unwrap();
        for (hash, bytes) in site.origin.directory_objects() {
            std::fs::write(path.join(hash.to_string()), bytes).unwrap();
        }
        for (number, (hash, bytes)) in site.origin.contents().into_iter().enumerate() {
            if keep(number) {
                std::fs::write(path.join(hash.to_string()), bytes).unwrap();
            }
        }
        Self { path, breaks_after: usize::MAX }
    }

    fn read(&self, name: &str) -> Option<Vec<u8>> {
        std::fs::read(self.path.join(name)).ok()
    }

    fn directories(
        &self,
        hash: ObjectHash,
        recursive: bool,
        frames: &mut Vec<Frame>,
        lost: &mut Vec<[u8; 32]>,
    ) {
        let Some(bytes) = self.read(&hash.to_string()) else { return lost.push(*hash.as_bytes()) };
        let page = Page::decode_verified(&bytes, hash).unwrap();
        frames.push(Frame::Directories(vec![bytes]));
        for object in page.children().filter(|_| recursive) {
            self.directories(object, true, frames, lost);
        }
    }

    fn answer(&self, batch: &ObjectsBatch) -> Vec<Result<Frame, FetchError>> {
        let (mut frames, mut missing) = (Vec::new(), Vec::new());
        for hash in &batch.directories {
            self.directories(*hash, batch.recursive, &mut frames, &mut missing);
        }
        let mut files = batch.files.clone();
        for of in &batch.files_of {
            let bytes = self.read(&of.directory.to_string()).unwrap();
            let page = Page::decode_verified(&bytes, of.directory).unwrap();
            files.extend(of.of(page.entries()).filter_map(|entry| match entry.kind {
                Kind::File { content, size: 1.. } => Some(content),
                _ => None,
            }));
        }
        let mut seen = HashSet::new();
        for (number, content) in files.iter().filter(|content| seen.insert(**content)).enumerate() {
            if number == self.breaks_after {
                let ends = Err(FetchError::Disconnected(None));
                return frames.into_iter().map(Ok).chain([ends]).collect();
            }
            let Some(bytes) = self.read(&content.to_string()) else {
                missing.push(*content.as_bytes());
                continue;
            };
            let piece = Piece {
                file: ContentTag::of(content),
                file_offset: 0,
                frame_offset: 0,
                length_bytes: bytes.len() as u32,
            };
            frames.push(Frame::Stored(StoredFrame {
                compressed: zstd::bulk::compress(&bytes, 1).unwrap().into(),
                uncompressed_bytes: bytes.len(),
                pieces: vec![piece],
            }));
        }
        frames.push(Frame::End { request: 0, missing });
        frames.into_iter().map(Ok).collect()
    }
}

impl Source for ObjectDirectory {
    fn update(&mut self, from: RootHash, _: RootHash) -> Result<Frames, FetchError> {
        Err(FetchError::UnknownRoot { root: from })
    }

    fn objects(&mut self, _: RootHash, mut batches: Batches) -> Result<Frames, FetchError> {
        if !self.path.is_dir() {
            return Err(FetchError::Disconnected(None));
        }
        let this = self.clone();
        let answers = std::iter::from_fn(move || Some(this.answer(&batches.blocking_recv()?)));
        Ok(Box::new(answers.flatten()))
    }
}

struct Scene {
    site: Site,
    replica: Replica,
    given_up: GivenUp,
    directory: ObjectDirectory,
    target: SignedGeneration,
}

impl Scene {
    /// A sealed tree, half of whose contents are in a directory of objects.
    fn new() -> Self {
        let mut site = Site::new();
        site.furnish();
        let replica = site.open();
        let target = site.origin.seal(&site.tree());
        let directory = ObjectDirectory::of(&site, |number| number % 2 == 0);
        Self { site, replica, given_up: GivenUp::default(), directory, target }
    }

    /// One attempt, as the worker makes it.
    fn attempt(&mut self) -> Result<(), Failure> {
        let sources: [(&'static str, Box<dyn Source>); 2] =
            [("directory", Box::new(self.directory.clone())), ("origin", Box::new(self.site.origin.clone()))];
        let mut chain = Chain::new(self.given_up.clone(), sources);
        let cancel = AtomicBool::new(false);
        let staged = ReplicaWork::stage(&mut self.replica, &self.target, None, &mut chain, &|_| {}, &cancel)?;
        self.replica.activate(staged, &mut |_| Ok(())).unwrap();
        self.site.assert_live_is_tree();
        Ok(())
    }

    fn is_given_up(&self) -> bool {
        self.given_up.has(self.target.root_hash(), "directory")
    }

    fn contents(&self) -> usize {
        self.site.origin.contents().into_iter().filter(|(_, bytes)| !bytes.is_empty()).count()
    }
}

#[test]
fn the_next_source_is_asked_only_for_what_the_first_does_not_have() {
    let mut scene = Scene::new();
    scene.attempt().unwrap();
    let sent: HashSet<_> = scene.site.origin.sent.all().into_iter().collect();
    assert_eq!(sent.len(), scene.site.origin.sent.len(), "nothing twice");
    assert!(sent.len() < scene.contents() && !sent.is_empty());
    for content in &sent {
        assert!(!scene.directory.path.join(content.to_string()).exists(), "{content} was in the directory");
    }
    assert!(!scene.is_given_up(), "a source that lacks objects is asked again");
}

#[test]
fn an_unreachable_source_is_given_up_for_the_target_and_asked_again_for_the_next() {
    let mut scene = Scene::new();
    let away = scene.site.temp.path().join("away");
    std::fs::rename(&scene.directory.path, &away).unwrap();
    scene.attempt().unwrap();
    assert_eq!(scene.site.origin.sent.len(), scene.contents());
    assert!(scene.is_given_up());
    std::fs::rename(&away, &scene.directory.path).unwrap();
    scene.site.write("docs/new.html", "new");
    scene.target = scene.site.origin.seal(&scene.site.tree());
    scene.attempt().unwrap();
    assert!(!scene.is_given_up());
}

#[test]
fn a_wrong_hash_ends_the_attempt_and_the_next_attempt_asks_the_next_source() {
    let mut scene = Scene::new();
    let contents = scene.site.origin.contents();
    let (there, bytes) = contents
        .iter()
        .find(|(hash, bytes)| !bytes.is_empty() && scene.directory.path.join(hash.to_string()).exists())
        .unwrap();
    std::fs::write(scene.directory.path.join(there.to_string()), vec![b'x'; bytes.len()]).unwrap();
    scene.attempt().unwrap_err();
    assert!(scene.is_given_up());
    scene.attempt().unwrap();
    assert!(scene.site.origin.sent.all().contains(there));
}

#[test]
fn an_answer_that_breaks_off_ends_the_attempt_and_the_next_attempt_asks_the_next_source() {
    let mut scene = Scene::new();
    scene.directory.breaks_after = 2;
    scene.attempt().unwrap_err();
    assert!(scene.is_given_up());
    scene.attempt().unwrap();
}

#[test]
fn an_error_of_the_last_source_is_what_it_is_without_a_chain() {
    let mut scene = Scene::new();
    scene.site.origin.breaks_after = Some(0);
    let Failure { retry, reason } = scene.attempt().unwrap_err();
    let mut alone = Scene::new();
    alone.site.origin.breaks_after = Some(0);
    let cancel = AtomicBool::new(false);
    let (target, origin) = (&alone.target, &mut alone.site.origin);
    let failed = ReplicaWork::stage(&mut alone.replica, target, None, origin, &|_| {}, &cancel).unwrap_err();
    assert_eq!((failed.retry, failed.reason), (retry, reason));
}
