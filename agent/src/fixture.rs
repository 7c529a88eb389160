//! An origin made of directories, for tests.

use std::collections::{HashMap, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};

use syncd_shared::collected::CollectedName;
use syncd_shared::delta::{Basis, BasisFile, DeltaCopy, DeltaFrame, DeltaPiece, Encoded};
use syncd_shared::diff::{Change, Comparison, DirectorySource, Part, PartLimits, Released};
use syncd_shared::directory::{DecodeDirectoryError, MODE_MASK, Page};
use syncd_shared::ed25519::SigningKey;
use syncd_shared::stored_frame::{Piece, StoredFrame};
use syncd_shared::wire::{DirectoryPatch, Frame, ObjectsBatch};
use syncd_shared::{
    Component, ContentHash, ContentTag, Directory, Entry, Generation, GenerationNumber, Kind, Metadata,
    ObjectHash, RootEntry, RootHash, SignedGeneration, Timestamp, TreeId, TreePath,
};

use crate::build::StageError;
use crate::replica::{Replica, ReplicaOptions};
use crate::source::{Batches, FetchError, Frames, Source};
use crate::state::swap::Swap;

/// Small enough that files of a few hundred KiB have several pieces.
const PIECE_BYTES: usize = 64 * 1024;

/// Keeps everything that was ever sealed.
#[derive(Default, Clone)]
pub(crate) struct Origin {
    directories: HashMap<ObjectHash, Arc<Page>>,
    contents: HashMap<ContentHash, Vec<u8>>,
    roots: HashMap<RootHash, RootEntry>,
    sealed: Vec<SignedGeneration>,
    /// Contents sent, in order.
    pub sent: Sent,
    /// Refuses updates, so that the general path is taken.
    pub forgetful: bool,
    /// Breaks the connection after this many content frames.
    pub breaks_after: Option<usize>,
    /// Breaks updates before their last frame.
    pub updates_break: bool,
    /// Makes no new generation when the same root is sealed again.
    pub reseal_is_noop: bool,
    /// Sends the pieces of large files in reverse order.
    pub backwards: bool,
    /// Sends replaced files as deltas in updates.
    pub deltas: bool,
    /// Makes deltas against bytes that the tree did not have.
    pub lies: bool,
    /// Limits of a part of an update.
    pub part: PartLimits,
}

/// Shared with answers that are being sent.
#[derive(Default, Clone)]
pub(crate) struct Sent(Arc<Mutex<Vec<ContentHash>>>);

impl Sent {
    pub fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    pub fn all(&self) -> Vec<ContentHash> {
        self.0.lock().unwrap().clone()
    }

    pub fn clear(&self) {
        self.0.lock().unwrap().clear();
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum UnknownDirectory {
    #[error("unknown directory")]
    Unknown,
    #[error("damaged")]
    Damaged(#[from] DecodeDirectoryError),
}

impl DirectorySource for Origin {
    type Error = UnknownDirectory;

    fn page(&self, hash: &ObjectHash) -> Result<Arc<Page>, UnknownDirectory> {
        if *hash == Directory::default().hash() {
            return Ok(Arc::default());
        }
        self.directories.get(hash).cloned().ok_or(UnknownDirectory::Unknown)
    }
}

fn metadata(path: &Path) -> Metadata {
    let m = path.symlink_metadata().unwrap();
    let mode = if m.is_symlink() { 0o777 } else { m.mode() as u16 & MODE_MASK };
    let mtime = Timestamp { seconds: m.mtime(), nanoseconds: m.mtime_nsec() as u32 };
    Metadata { mode, uid: m.uid(), gid: m.gid(), mtime }
}

/// A symlink to `collected:NAME` stands for a collected directory.
fn link(target: &[u8]) -> Kind {
    match target.strip_prefix(b"collected:") {
        Some(name) => Kind::Collected { name: CollectedName::new(name).unwrap() },
        None => Kind::Symlink { target: target.into() },
    }
}

impl Origin {
    fn scan(&mut self, path: &Path) -> Kind {
        let mut entries = Vec::new();
        for item in std::fs::read_dir(path).unwrap() {
            let item = item.unwrap();
            let kind = match item.file_type().unwrap() {
                t if t.is_dir() => self.scan(&item.path()),
                t if t.is_symlink() => link(std::fs::read_link(item.path()).unwrap().as_os_str().as_bytes()),
                _ => {
                    let bytes = std::fs::read(item.path()).unwrap();
                    let (content, size) = (ContentHash::of(&bytes), bytes.len() as u64);
                    self.contents.insert(content, bytes);
                    Kind::File { content, size }
                }
            };
            let name = Component::new(item.file_name().as_bytes()).unwrap();
            let mut metadata = metadata(&item.path());
            if matches!(kind, Kind::Collected { .. }) {
                metadata.mtime = Timestamp::default();
            }
            entries.push(Entry { name, metadata, kind });
        }
        let directory = Directory::new(entries).unwrap();
        let built = directory.build();
        for (object, bytes) in built.pages {
            self.directories.insert(object, Page::decode_verified(&bytes, object).unwrap());
        }
        Kind::Directory { object: built.root, totals: built.totals }
    }

    /// Seals a directory as the next generation.
    pub fn seal(&mut self, path: &Path) -> SignedGeneration {
        let Kind::Directory { object, totals } = self.scan(path) else { unreachable!() };
        self.seal_root(RootEntry { object, totals, metadata: metadata(path) })
    }

    /// Seals a root again, as in a rollback.
    pub fn seal_root(&mut self, root: RootEntry) -> SignedGeneration {
        if let Some(last) = self.sealed.last()
            && self.reseal_is_noop
            && last.root_hash() == root.hash()
        {
            return last.clone();
        }
        self.roots.insert(root.hash(), root);
        let generation = Generation {
            tree_id: TreeId::from_bytes([1; 16]),
            epoch: 1,
            trust: 1,
            number: GenerationNumber::new(self.sealed.len() as u64 + 1).unwrap(),
            root,
            parent: None,
            created_ms: 0,
            label: String::new(),
        }
        .sign(&SigningKey::from_bytes(&[9; 32]));
        self.sealed.push(generation.clone());
        generation
    }

    /// The last generation sealed.
    pub fn last(&self) -> &SignedGeneration {
        self.sealed.last().unwrap()
    }

    /// Every directory object, as canonical bytes.
    pub fn directory_objects(&self) -> Vec<(ObjectHash, Vec<u8>)> {
        self.directories.iter().map(|(hash, directory)| (*hash, directory.encode())).collect()
    }

    /// Every content, in the order of the hashes.
    pub fn contents(&self) -> Vec<(ContentHash, Vec<u8>)> {
        let mut contents: Vec<_> = self.contents.clone().into_iter().collect();
        contents.sort_unstable_by_key(|(hash, _)| *hash);
        contents
    }

    fn content_frames(&self, contents: &[ContentHash]) -> Vec<Result<Frame, FetchError>> {
        let mut frames = Vec::new();
        let (mut bytes, mut pieces) = (Vec::new(), Vec::new());
        let mut flush = |bytes: &mut Vec<u8>, pieces: &mut Vec<Piece>| {
            if !bytes.is_empty() {
                let frame = StoredFrame {
                    compressed: zstd::bulk::compress(bytes, 1).unwrap().into(),
                    uncompressed_bytes: bytes.len(),
                    pieces: std::mem::take(pieces),
                };
                frames.push(Ok(Frame::Stored(frame)));
                bytes.clear();
            }
        };
        for content in contents {
            self.sent.0.lock().unwrap().push(*content);
            let all = &self.contents[content];
            for (i, piece) in all.chunks(PIECE_BYTES).enumerate() {
                pieces.push(Piece {
                    file: ContentTag::of(content),
                    file_offset: (i * PIECE_BYTES) as u64,
                    frame_offset: bytes.len() as u32,
                    length_bytes: piece.len() as u32,
                });
                bytes.extend_from_slice(piece);
                if bytes.len() >= PIECE_BYTES {
                    flush(&mut bytes, &mut pieces);
                }
            }
        }
        flush(&mut bytes, &mut pieces);
        if self.backwards {
            frames.reverse();
        }
        if let Some(after) = self.breaks_after
            && frames.len() > after
        {
            frames.truncate(after);
            frames.push(Err(FetchError::Disconnected(None)));
        }
        frames
    }

    /// Encodes every large enough replaced file as two copies and a delta between them. Returns the contents
    /// encoded this way.
    fn delta_frames(
        &self,
        part: &Part<'_>,
        frames: &mut Vec<Result<Frame, FetchError>>,
    ) -> HashSet<ContentHash> {
        let mut made = HashSet::new();
        for change in part.changes.iter() {
            let Change::Modified { from, to, .. } = change else { continue };
            let (Kind::File { content: old, .. }, Kind::File { content: new, .. }) = (&from.kind, &to.kind)
            else {
                continue;
            };
            if old == new || !made.insert(*new) {
                continue;
            }
            let (mut before, after) = (self.contents[old].clone(), &self.contents[new]);
            let common =
                |pairs: &mut dyn Iterator<Item = (&u8, &u8)>| pairs.take_while(|(a, b)| a == b).count();
            let head = common(&mut before.iter().zip(after)) / 2;
            let tail = common(&mut before.iter().rev().zip(after.iter().rev())) / 2;
            let basis = BasisFile { content: ContentTag::of(old), path: None };
            let file = ContentTag::of(new);
            let copy = |file_offset: usize, basis_offset: usize, length: usize| DeltaCopy {
                file,
                file_offset: file_offset as u64,
                basis: basis.clone(),
                basis_offset: basis_offset as u64,
                length_bytes: length as u64,
            };
            let copies = [copy(0, 0, head), copy(after.len() - tail, before.len() - tail, tail)];
            let (offset, length_bytes) = (head as u64, (before.len() - head - tail) as u32);
            if self.lies {
                before.reverse();
            }
            let middle = &after[head..after.len() - tail];
            let encoded = Encoded::by_zstd(&before[head..head + length_bytes as usize], middle).unwrap();
            let piece = DeltaPiece { file, file_offset: offset, length_bytes: middle.len() as u32 };
            frames.push(Ok(Frame::Delta(DeltaFrame {
                encoded,
                bases: vec![Basis { file: basis, offset, length_bytes }],
                pieces: if middle.is_empty() { Vec::new() } else { vec![piece] },
                copies: copies.into_iter().filter(|copy| copy.length_bytes > 0).collect(),
                replaced: Vec::new(),
            })));
        }
        made
    }

    fn below(&self, object: ObjectHash, recursive: bool, out: &mut Vec<Vec<u8>>) {
        let Ok(page) = self.page(&object) else { return };
        out.push(page.encode());
        for object in page.children().filter(|_| recursive) {
            self.below(object, true, out);
        }
    }
}

impl Origin {
    /// The contents that a batch asks for, each once.
    fn files_of(&self, batch: &ObjectsBatch) -> Vec<ContentHash> {
        let mut files = batch.files.clone();
        for of in &batch.files_of {
            for entry in of.of(self.directories[&of.directory].entries()) {
                if let Kind::File { content, size: 1.. } = entry.kind
                    && !files.contains(&content)
                {
                    files.push(content);
                }
            }
        }
        files
    }
}

impl Source for Origin {
    fn update(&mut self, from: RootHash, to: RootHash) -> Result<Frames, FetchError> {
        if self.forgetful || !self.roots.contains_key(&from) {
            return Err(FetchError::UnknownRoot { root: from });
        }
        let comparison = Comparison::of(&*self, &self.roots[&from], &self.roots[&to], self.part).unwrap();
        let object = |entry: &Entry| match entry.kind {
            Kind::Directory { object, .. } => Some(object),
            _ => None,
        };
        let mut pairs = vec![(Some(self.roots[&from].object), self.roots[&to].object)];
        let each = |change: &Change| {
            match change {
                Change::Added { entry, .. } => pairs.extend(object(entry).map(|to| (None, to))),
                Change::Modified { from, to, .. } if object(from) != object(to) => {
                    pairs.extend(object(to).map(|to| (object(from), to)));
                }
                _ => {}
            }
            true
        };
        comparison.each(each).unwrap();
        let mut patches = Vec::new();
        for (from, to) in pairs {
            let mut add = |patch| {
                patches.push(patch);
                Ok::<_, UnknownDirectory>(())
            };
            DirectoryPatch::between(&*self, from, to, &mut add).unwrap();
        }
        let mut frames = vec![Ok(Frame::Patches(patches))];
        let released = comparison.released().unwrap();
        for part in comparison.parts() {
            let part = part.unwrap();
            let made = if self.deltas { self.delta_frames(&part, &mut frames) } else { HashSet::new() };
            let mut wanted = wanted_of(&part, &released);
            wanted.retain(|content| !made.contains(content));
            frames.extend(self.content_frames(&wanted));
            frames.push(Ok(match part.is_last {
                true => Frame::End { request: 0, missing: Vec::new() },
                false => Frame::PartEnd,
            }));
        }
        if self.updates_break {
            frames.pop();
            frames.push(Err(FetchError::Disconnected(None)));
        }
        Ok(Box::new(frames.into_iter()))
    }

    fn objects(&mut self, _: RootHash, mut batches: Batches) -> Result<Frames, FetchError> {
        let origin = self.clone();
        let mut request = 0;
        let (mut next, mut came_early) = (None::<ObjectsBatch>, HashSet::new());
        // As on the wire, a batch is read only once the answers before it were taken.
        let answers = std::iter::from_fn(move || {
            let batch = next.take().or_else(|| batches.blocking_recv())?;
            let mut frames = Vec::new();
            let mut directories = Vec::new();
            for object in &batch.directories {
                origin.below(*object, batch.recursive, &mut directories);
            }
            if !directories.is_empty() {
                frames.push(Ok(Frame::Directories(directories)));
            }
            let mut files = origin.files_of(&batch);
            files.retain(|content| !came_early.remove(content));
            // Half of the next batch is sent early, in one frame with the end of this batch.
            next = batches.try_recv().ok();
            if let Some(next) = next.as_ref().filter(|next| next.early) {
                let early = origin.files_of(next);
                let early =
                    early[..early.len().div_ceil(2)].iter().filter(|content| !files.contains(content));
                let early = early.copied().collect::<Vec<_>>();
                came_early.extend(early.iter().copied());
                files.extend(early);
            }
            frames.extend(origin.content_frames(&files));
            frames.push(Ok(Frame::End { request, missing: Vec::new() }));
            request += 1;
            Some(frames)
        });
        Ok(Box::new(answers.flatten()))
    }
}

/// Contents that a part brings and that the first tree does not release.
fn wanted_of(part: &Part<'_>, released: &Released<'_, &Origin>) -> Vec<ContentHash> {
    let mut wanted = Vec::new();
    for change in part.changes.iter() {
        let (from, to) = match change {
            Change::Removed { .. } => continue,
            Change::Added { entry, .. } => (None, entry),
            Change::Modified { from, to, .. } => (Some(from), to),
        };
        if let Kind::File { content, size: 1.. } = to.kind
            && from.is_none_or(|from| from.kind != to.kind)
            && released.files(content).next().is_none()
            && !wanted.contains(&content)
        {
            wanted.push(content);
        }
    }
    wanted
}

/// A content tree, an origin and a replica in one temporary directory.
pub(crate) struct Site {
    pub temp: tempfile::TempDir,
    pub origin: Origin,
    pub options: ReplicaOptions,
}

pub(crate) fn path(text: &str) -> TreePath {
    TreePath::from_bytes(text.as_bytes()).unwrap()
}

impl Site {
    pub fn new() -> Self {
        Self::in_directory(tempfile::tempdir().unwrap())
    }

    /// In memory if possible, for tests with hundreds of steps.
    pub fn in_memory() -> Self {
        Self::in_directory(tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap())
    }

    fn in_directory(temp: tempfile::TempDir) -> Self {
        let options = ReplicaOptions { grace: std::time::Duration::ZERO, ..ReplicaOptions::default() };
        let site = Self { temp, origin: Origin::default(), options };
        std::fs::create_dir(site.tree()).unwrap();
        site
    }

    /// Limits a part of an update to this many changes.
    pub fn in_parts_of(mut self, changes: usize) -> Self {
        self.origin.part.changes = changes;
        self.options.part.changes = changes;
        self
    }

    /// `live` is a directory.
    pub fn exchanging(mut self) -> Self {
        self.options.swap = Some(Swap::Exchange);
        self
    }

    pub fn tree(&self) -> PathBuf {
        self.temp.path().join("tree")
    }

    pub fn root(&self) -> PathBuf {
        self.temp.path().join("root")
    }

    pub fn live(&self) -> PathBuf {
        self.root().join("live")
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.tree().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = std::fs::remove_file(&path);
        std::fs::write(path, content).unwrap();
    }

    /// Directory of a held generation.
    pub fn generation(&self, number: u64) -> PathBuf {
        self.root().join(format!("generations/{number}")).canonicalize().unwrap()
    }

    /// Numbers listed in `generations/`.
    pub fn generations(&self) -> Vec<u64> {
        let items = std::fs::read_dir(self.root().join("generations")).unwrap();
        let mut numbers: Vec<u64> =
            items.map(|item| item.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
        numbers.sort_unstable();
        numbers
    }

    /// Number of the generation that `live` points to.
    pub fn live_number(&self) -> u64 {
        let live = self.live().canonicalize().unwrap();
        let is_live = |number: &u64| self.generation(*number) == live;
        self.generations().into_iter().find(is_live).unwrap()
    }

    /// Directories of the spares.
    pub fn spares(&self, replica: &Replica) -> Vec<PathBuf> {
        replica.slots.spares().map(|(slot, _)| replica.slots.path(slot)).collect()
    }

    /// Number of the newest generation.
    pub fn new_number(&self) -> u64 {
        self.origin.last().number().get()
    }

    pub fn open(&self) -> Replica {
        Replica::open(&self.root(), self.options.clone()).unwrap()
    }

    /// Fills the tree with entries of every kind.
    pub fn furnish(&self) {
        for i in 0..20 {
            self.write(&format!("docs/{}/page-{i}.html", i % 3), format!("<p>{i}</p>"));
        }
        let large: Vec<u8> =
            (0..300_000u32).flat_map(|i| (i.wrapping_mul(2_654_435_761)).to_le_bytes()).collect();
        self.write("media/large.bin", &large[..700_000]);
        self.write("empty", "");
        self.write("twin-a", "the same");
        self.write("twin-b", "the same");
        std::fs::create_dir(self.tree().join("hollow")).unwrap();
        std::os::unix::fs::symlink("docs/0", self.tree().join("link")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", self.tree().join("outside")).unwrap();
        std::fs::write(self.tree().join(std::ffi::OsStr::from_bytes(b"caf\xe9 \xff.txt")), "bytes").unwrap();
    }

    pub fn stage(
        &mut self,
        replica: &mut Replica,
        target: &SignedGeneration,
    ) -> Result<crate::build::Staged, StageError> {
        replica.stage(target, None, &mut self.origin, &|_| {}, &AtomicBool::new(false))
    }

    /// Seals the tree and makes it live. Returns whether a spare was ready.
    pub fn publish(&mut self, replica: &mut Replica) -> bool {
        let target = self.origin.seal(&self.tree());
        self.follow(replica, &target)
    }

    pub fn follow(&mut self, replica: &mut Replica, target: &SignedGeneration) -> bool {
        let misses = replica.status().spare_misses;
        let staged = self.stage(replica, target).unwrap();
        replica.activate(staged, &mut |_| Ok(())).unwrap();
        replica.status().spare_misses == misses
    }

    /// Runs maintenance until nothing is left to do.
    pub fn settle(&self, replica: &mut Replica) {
        replica.upkeep.last_write = None;
        for _ in 0..200 {
            let done = replica.maintain(&AtomicBool::new(false)).unwrap();
            if done.next != Some(std::time::Duration::ZERO) {
                return;
            }
        }
        panic!("background work does not end");
    }

    pub fn assert_live_is_tree(&self) {
        assert_eq!(snapshot(&self.live().canonicalize().unwrap()), snapshot(&self.tree()));
    }
}

/// Like [`snapshot`], without the directory itself: a tree that is not live has a closed root.
pub(crate) fn snapshot_below(root: &Path) -> Vec<String> {
    snapshot(root).split_off(1)
}

/// Every name below a directory, with everything that is replicated about it.
pub(crate) fn snapshot(root: &Path) -> Vec<String> {
    fn walk(root: &Path, path: &Path, out: &mut Vec<String>) {
        let meta = metadata(path);
        let kind = path.symlink_metadata().unwrap().file_type();
        let content = match kind {
            k if k.is_file() => ContentHash::of(&std::fs::read(path).unwrap()).to_string(),
            k if k.is_symlink() => format!("-> {:?}", std::fs::read_link(path).unwrap()),
            _ => "directory".into(),
        };
        out.push(format!("{:?} {meta:?} {content}", path.strip_prefix(root).unwrap()));
        if kind.is_dir() {
            let mut names: Vec<_> = std::fs::read_dir(path).unwrap().map(|e| e.unwrap().path()).collect();
            names.sort();
            names.iter().for_each(|p| walk(root, p, out));
        }
    }
    let mut out = Vec::new();
    walk(root, root, &mut out);
    out
}

/// Runs `body` without privileges, on a thread that becomes nobody if this process is root.
pub(crate) fn as_somebody<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    use rustix::process::{Gid, Uid};
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if rustix::process::geteuid().is_root() {
                let (user, group) = (Uid::from_raw(65_534), Gid::from_raw(65_534));
                rustix::thread::set_thread_groups(&[]).unwrap();
                rustix::thread::set_thread_res_gid(group, group, group).unwrap();
                rustix::thread::set_thread_res_uid(user, user, user).unwrap();
            }
            body()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Gives a directory and everything below it to the user of [`as_somebody`].
pub(crate) fn somebody_owns(path: &Path) {
    give(path, 65_534);
}

/// Gives a directory and everything below it to a user.
pub(crate) fn give(path: &Path, user: u32) {
    if path.symlink_metadata().unwrap().is_dir() {
        std::fs::read_dir(path).unwrap().for_each(|item| give(&item.unwrap().path(), user));
    }
    std::os::unix::fs::lchown(path, Some(user), Some(user)).unwrap();
}

/// Makes a chain of directories that is longer than any path may be.
pub(crate) fn deepen(path: &Path, levels: usize, name: &[u8]) {
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let mut directory = openat(CWD, path, flags, Mode::empty()).unwrap();
    for _ in 0..levels {
        mkdirat(&directory, name, Mode::from_raw_mode(0o755)).unwrap();
        directory = openat(&directory, name, flags, Mode::empty()).unwrap();
    }
}

/// Runs one ignored test in a process of its own, with at most 256 open files.
#[track_caller]
pub(crate) fn alone_with_few_descriptors(test: &str) {
    let program = std::env::current_exe().unwrap();
    let command = "ulimit -n 256 && exec \"$0\" --exact --ignored --nocapture \"$1\"";
    let ran = std::process::Command::new("sh").args(["-c", command]).arg(program).arg(test).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    let errors = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success() && said.contains("1 passed"), "{said}\n{errors}");
}

/// Number of descriptors that this process has open.
pub(crate) fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Peak resident memory of this process.
pub(crate) fn peak_memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().strip_suffix(" kB").unwrap().trim().parse().unwrap()
}

/// Runs `body` and returns the lines that it logged on this thread: the message, then the fields.
pub(crate) fn logged<T>(body: impl FnOnce() -> T) -> Vec<String> {
    // If a process has one dispatcher only, the first thread that reaches a log call decides for all threads
    // whether it is enabled. A test on another thread, which has none, would silence the call.
    static OTHER: OnceLock<tracing::Dispatch> = OnceLock::new();
    OTHER.get_or_init(|| tracing::Dispatch::new(Log::default()));
    let lines = Log::default();
    tracing::subscriber::with_default(lines.clone(), body);
    lines.0.lock().unwrap().clone()
}

#[test]
fn a_line_is_logged_though_another_thread_came_to_the_call_first() {
    fn log() {
        tracing::info!(number = 1, "a line");
    }
    let lines = logged(|| {
        std::thread::spawn(log).join().unwrap();
        log();
    });
    assert_eq!(lines, ["a line number=1"]);
}

#[derive(Default, Clone)]
struct Log(Arc<Mutex<Vec<String>>>);

/// One line under construction.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl tracing::field::Visit for Line {
    fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            name => self.fields.push_str(&format!(" {name}={value:?}")),
        }
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        self.0.lock().unwrap().push(line.message + &line.fields);
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}
