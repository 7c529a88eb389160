//! One node, with real files and a real journal, and an origin that is written down in each test.

use std::fs;
use std::sync::{Arc, Mutex};

use syncd_shared::collected::{Answer, FileState, Verdict, VersionNumber};
use syncd_shared::hash::ContentHash;
use tempfile::TempDir;

use super::*;
use crate::collected::opening::Surroundings;
use crate::state::disk::{Owners, fault};

const THEIRS: &[u8] = b"theirs";
const HOUR: Duration = Duration::from_secs(60 * 60);

#[derive(Clone, Default)]
struct Wire {
    sent: Arc<Mutex<Vec<Up>>>,
    /// Numbers of contents that travelled together, here and there.
    together: Arc<Mutex<Vec<usize>>>,
}

impl Wire {
    /// The changes that were sent since the last call.
    fn changes(&self) -> Vec<v1::CollectedChange> {
        let sent = std::mem::take(&mut *self.sent.lock().unwrap());
        let change = |message| match message {
            Up::Change(change) => Some(change),
            Up::Hello(_) => None,
        };
        sent.into_iter().filter_map(change).collect()
    }
}

impl Link for Wire {
    fn send(&mut self, message: Up) -> Result<(), CollectedError> {
        self.sent.lock().unwrap().push(message);
        Ok(())
    }

    fn upload(&mut self, contents: &mut [Transfer]) -> Vec<Result<(), CollectedError>> {
        self.together.lock().unwrap().push(contents.len());
        contents.iter().map(|_| Ok(())).collect()
    }

    fn download(&mut self, contents: &mut [Transfer]) -> Vec<Result<(), CollectedError>> {
        self.together.lock().unwrap().push(contents.len());
        let write = |transfer: &mut Transfer| io::Write::write_all(&mut transfer.open, THEIRS);
        contents.iter_mut().map(|transfer| write(transfer).map_err(CollectedError::Read)).collect()
    }
}

struct Unwatched;

impl Watches for Unwatched {
    fn add(&self, _: &CollectedName, _: &TreePath) -> io::Result<()> {
        Ok(())
    }
}

struct Scene {
    root: TempDir,
    engine: Engine,
    wire: Wire,
    key: Key,
}

impl Scene {
    /// A session with a directory without versions. The clock stands still an hour ahead, so that every file
    /// is old enough to be read.
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("collected/uploads")).unwrap();
        fs::create_dir(root.path().join("state")).unwrap();
        let now = Instant::now();
        let clock = Clock::given(now);
        clock.set(now + HOUR);
        let report = watch::Sender::new(None);
        let surroundings =
            Surroundings { owners: Owners::new(None), watch: Box::new(Unwatched), clock, report };
        let engine = surroundings.open(root.path()).unwrap();
        let key = ("uploads".parse().unwrap(), TreePath::from_bytes(b"a.jpg").unwrap());
        let mut scene = Self { root, engine, wire: Wire::default(), key };
        scene.connect();
        scene
    }

    fn connect(&mut self) {
        self.step(Event::Connected(Box::new(self.wire.clone())));
        let directory =
            v1::CollectedDirectory { name: "uploads".into(), line: vec![1].into(), ..Default::default() };
        self.hear(Down::Welcome(v1::CollectedWelcome { directories: vec![directory] }));
        self.hear(Down::CaughtUp(v1::CollectedCaughtUp { directory: "uploads".into() }));
    }

    /// Takes an event, and does everything that needs no other.
    fn step(&mut self, event: Event) {
        assert!(self.engine.step(vec![event]));
        while self.engine.wait() == Duration::ZERO {
            assert!(self.engine.step(Vec::new()));
        }
    }

    fn hear(&mut self, message: Down) {
        self.step(Event::Received(Box::new(v1::CollectedDown { message: Some(message) })));
    }

    fn version(&mut self, number: u64, content: &[u8]) -> Version {
        let state = file(content);
        self.hear(version_at("a.jpg", number, state));
        Version { number: VersionNumber::new(number), state }
    }

    fn answer(&mut self, id: u64, decision: &Decision) {
        self.hear(Down::Answer(decision.to_message(id)));
    }

    fn write(&mut self, content: &[u8]) {
        fs::write(self.file(), content).unwrap();
        self.step(Event::Settled(self.key.0.clone(), self.key.1.clone()));
    }

    fn file(&self) -> std::path::PathBuf {
        self.root.path().join("collected/uploads/a.jpg")
    }

    /// The only change that was sent since the last call.
    fn change(&self) -> v1::CollectedChange {
        let mut changes = self.wire.changes();
        assert_eq!(changes.len(), 1, "{changes:?}");
        changes.remove(0)
    }
}

fn file(content: &[u8]) -> State {
    State::File(FileState {
        content: ContentHash::of(content),
        size: content.len() as u64,
        mode: 0o644,
        mtime: syncd_shared::directory::Timestamp { seconds: 1, nanoseconds: 0 },
    })
}

fn version_at(path: &'static str, number: u64, state: State) -> Down {
    Down::Version(v1::CollectedVersion {
        directory: "uploads".into(),
        path: Bytes::from_static(path.as_bytes()),
        number,
        state: Some(state.to_message()),
    })
}

fn received(message: Down) -> Event {
    Event::Received(Box::new(v1::CollectedDown { message: Some(message) }))
}

fn refused() -> Decision {
    Decision::Refused { reason: "max_bytes of this directory".into() }
}

/// The node offers the file once more, and places the version that came first.
fn gives_way(scene: &mut Scene, current: Version) {
    let again = scene.change();
    assert_eq!(again.base, 0, "the file was made from no version");
    scene.answer(again.id, &Decision::Answered(Answer { verdict: Verdict::Conflict, current }));
    assert_eq!(fs::read(scene.file()).unwrap(), THEIRS);
    assert!(scene.engine.refused.is_empty());
}

#[test]
fn a_refused_file_gives_way_to_a_newer_version_at_once() {
    let mut scene = Scene::new();
    scene.write(b"too large");
    let id = scene.change().id;
    scene.answer(id, &refused());
    assert!(scene.wire.changes().is_empty(), "a refused file is offered once");
    let current = scene.version(7, THEIRS);
    gives_way(&mut scene, current);
}

#[test]
fn a_version_that_overtakes_the_refusal_is_placed_as_well() {
    let mut scene = Scene::new();
    scene.write(b"too large");
    let id = scene.change().id;
    let current = scene.version(7, THEIRS);
    scene.answer(id, &refused());
    gives_way(&mut scene, current);
}

#[test]
fn a_file_that_is_refused_again_is_offered_once_for_each_newer_version() {
    let mut scene = Scene::new();
    scene.write(b"too large");
    let id = scene.change().id;
    scene.answer(id, &refused());
    scene.version(7, THEIRS);
    let id = scene.change().id;
    scene.answer(id, &refused());
    scene.version(7, THEIRS);
    assert!(scene.wire.changes().is_empty());
    assert_eq!(scene.engine.refused.len(), 1);
    assert_eq!(fs::read(scene.file()).unwrap(), b"too large");
}

#[test]
fn an_edit_before_the_refusal_is_offered_after_it() {
    let mut scene = Scene::new();
    scene.write(b"too large");
    let id = scene.change().id;
    scene.write(b"smaller");
    scene.answer(id, &refused());
    let change = scene.change();
    let content = ContentHash::of(b"smaller");
    assert_eq!(change.state.unwrap().content, content.as_bytes().as_slice());
}

#[test]
fn a_file_that_is_read_without_the_origin_is_synced_before_the_journal_has_it() {
    let mut scene = Scene::new();
    scene.step(Event::Disconnected);
    fs::write(scene.file(), b"meanwhile").unwrap();
    let key = scene.key.clone();
    scene.engine.look(&key).unwrap();
    let seen = scene.engine.rows.get(&key).and_then(|known| known.seen);
    assert!(seen.is_some(), "the row counts the file as read");
    assert!(scene.engine.unsynced.contains(&key));
    assert!(scene.engine.step(Vec::new()));
    assert!(scene.engine.unsynced.is_empty());
    scene.engine.look(&key).unwrap();
    assert!(scene.engine.unsynced.is_empty(), "nothing is new about it");
}

#[test]
fn what_a_failed_sync_may_have_lost_is_read_again() {
    let mut scene = Scene::new();
    fs::write(scene.file(), b"one").unwrap();
    fault::arm(Some(0));
    let settled = Event::Settled(scene.key.0.clone(), scene.key.1.clone());
    assert!(!scene.engine.step(vec![settled]));
    fault::arm(None);
    assert!(scene.wire.changes().is_empty(), "nothing is sent that is not durable");
    assert!(scene.engine.unsynced.is_empty() && scene.engine.rows.is_empty() && scene.engine.link.is_none());
    // As the disk has it.
    fs::write(scene.file(), b"two").unwrap();
    scene.connect();
    let content = ContentHash::of(b"two");
    assert_eq!(scene.change().state.unwrap().content, content.as_bytes().as_slice());
}

fn tree_path(text: &str) -> TreePath {
    TreePath::from_bytes(text.as_bytes()).unwrap()
}

const PATHS: [&str; 6] = ["1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg", "6.jpg"];

impl Scene {
    fn at(&self, path: &str) -> std::path::PathBuf {
        self.file().with_file_name(path)
    }
}

#[test]
fn contents_that_the_origin_asks_for_are_sent_together() {
    let mut scene = Scene::new();
    for path in PATHS {
        fs::write(scene.at(path), path).unwrap();
        scene.step(Event::Settled(scene.key.0.clone(), tree_path(path)));
    }
    let ids: Vec<u64> = scene.wire.changes().iter().map(|change| change.id).collect();
    // One file is gone by then, and the others are sent all the same.
    fs::remove_file(scene.at("3.jpg")).unwrap();
    let wanted = ids.iter().map(|id| received(Down::Answer(Decision::NeedsContent.to_message(*id))));
    assert!(scene.engine.step(wanted.collect()));
    assert_eq!(*scene.wire.together.lock().unwrap(), [5]);
    let again: Vec<u64> = scene.wire.changes().iter().map(|change| change.id).collect();
    let others: Vec<u64> = ids.iter().copied().filter(|id| *id != ids[2]).collect();
    assert_eq!(again, others);
}

#[test]
fn versions_arrive_together_and_a_wrong_content_stops_none_but_its_own() {
    let mut scene = Scene::new();
    let state = |path| file(if path == "3.jpg" { b"others" } else { THEIRS });
    let versions = (1..).zip(PATHS).map(|(number, path)| received(version_at(path, number, state(path))));
    assert!(scene.engine.step(versions.collect()));
    assert_eq!(*scene.wire.together.lock().unwrap(), [6]);
    for path in PATHS {
        let there = fs::read(scene.at(path)).ok();
        assert_eq!(there, (path != "3.jpg").then(|| THEIRS.to_vec()), "{path}");
    }
    assert!(scene.engine.again.contains_key(&(scene.key.0.clone(), tree_path("3.jpg"))));
    let incoming = scene.root.path().join("collected/.incoming");
    assert_eq!(fs::read_dir(incoming).unwrap().count(), 0, "nothing is left over");
}
