//! A content tree, an origin and a replica, for tests, and what tests ask of the process.

mod origin;

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};

use syncd_shared::{ContentHash, SignedGeneration, TreePath};

pub(crate) use self::origin::Origin;
use self::origin::metadata;
use crate::build::StageError;
use crate::replica::{Replica, ReplicaOptions};
use crate::state::swap::Swap;

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
