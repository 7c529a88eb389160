use super::*;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use syncd_shared::ed25519::SigningKey;
use syncd_shared::{Component, Directory, Entry, Generation, GenerationNumber, Kind, TreeId};

use crate::store::Store;
use syncd_shared::diff::DirectorySource as _;

mod collected;
mod content_paths;
mod names;
mod private;

/// A tree, a store, and what a commit would keep between scans.
struct Site {
    base: tempfile::TempDir,
    store: Arc<Store>,
    watch: Option<Watch>,
    options: ScanOptions,
    links: Links,
    root: Option<RootEntry>,
    mounts: BTreeSet<PathBuf>,
    number: u64,
}

impl Site {
    fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir(base.path().join("tree")).unwrap();
        let store = Arc::new(Store::create(&base.path().join("data")).unwrap());
        Self::over(base, store)
    }

    fn over(base: tempfile::TempDir, store: Arc<Store>) -> Self {
        let (options, links, mounts) = Default::default();
        Self { base, store, watch: None, options, links, root: None, mounts, number: 0 }
    }

    fn watched() -> Self {
        let mut site = Self::new();
        let watch = Watch::start(&site.tree(), site.store.data(), Duration::from_secs(60)).unwrap();
        watch.take();
        site.watch = Some(watch);
        site
    }

    fn tree(&self) -> PathBuf {
        self.base.path().join("tree")
    }

    fn at(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.tree().join(relative)
    }

    fn write(&self, relative: &str, content: impl AsRef<[u8]>) {
        let path = self.at(relative);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn try_scan(&mut self, scope: Scope) -> Result<Outcome, ScanError> {
        let writer = self.store.writer().unwrap();
        let work = Scan {
            tree: &self.tree(),
            writer: &writer,
            watch: self.watch.as_ref(),
            options: &self.options,
            mounts: &self.mounts,
            withheld: &Withheld::new(),
            links: &self.links,
            notices: &Notices::default(),
            progress: &Progress::hidden(),
            cancel: &CancellationToken::new(),
        };
        let outcome = scan(&work, self.root, scope)?;
        self.mounts.clone_from(&outcome.mounts);
        if outcome.changed {
            self.number += 1;
            let generation = Generation {
                tree_id: TreeId::from_bytes([1; 16]),
                epoch: 1,
                trust: 1,
                number: GenerationNumber::new(self.number).unwrap(),
                root: outcome.root,
                parent: GenerationNumber::new(self.number - 1),
                created_ms: 0,
                label: String::new(),
            };
            writer.seal(&generation.sign(&SigningKey::from_bytes(&[1; 32]))).unwrap();
            self.root = Some(outcome.root);
        } else {
            writer.save().unwrap();
        }
        Ok(outcome)
    }

    fn scan(&mut self, scope: Scope) -> Outcome {
        self.try_scan(scope).unwrap()
    }

    /// Everything, until no stamp is racy.
    fn calm(&mut self) {
        self.scan(Scope::Everything);
        std::thread::sleep(Duration::from_millis(30));
        let again = self.scan(Scope::Everything);
        assert!(again.racy.is_empty(), "{again:?}");
    }

    /// The scope hinted at by the watch after a flush.
    fn hinted(&self) -> Scope {
        let watch = self.watch.as_ref().unwrap();
        watch.flush();
        watch.take().into()
    }

    fn directory(&self, path: &str) -> Arc<Directory> {
        let root = self.root.expect("a scan was sealed").object;
        let mut directory = TreeObjects::Store(&self.store).directory(&root).unwrap();
        for name in path.split('/').filter(|n| !n.is_empty()) {
            let entry = directory.get(&Component::new(name.as_bytes()).unwrap()).expect(name).clone();
            let Kind::Directory { object, .. } = entry.kind else { panic!("{name} is no directory") };
            directory = TreeObjects::Store(&self.store).directory(&object).unwrap();
        }
        directory
    }

    fn names(&self, path: &str) -> Vec<String> {
        self.directory(path).entries().iter().map(|e| e.name.to_string()).collect()
    }

    fn entry(&self, path: &str) -> Entry {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        self.directory(parent).get(&Component::new(name.as_bytes()).unwrap()).expect(path).clone()
    }

    /// Compares the generation with the tree, byte for byte, by means of its own.
    fn assert_identical(&self) {
        let root = self.root.unwrap();
        let mut totals = (0, 0, 0);
        self.compare(root.object, &self.tree(), &mut totals);
        assert_eq!(totals, (root.totals.entries, root.totals.files, root.totals.bytes));
    }

    fn compare(&self, object: syncd_shared::ObjectHash, path: &Path, totals: &mut (u64, u64, u64)) {
        let directory = TreeObjects::Store(&self.store).directory(&object).unwrap();
        let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        let published: Vec<_> = directory.entries().iter().map(|e| e.name.as_os_str().to_owned()).collect();
        assert_eq!(names, published, "{}", path.display());
        for entry in directory.entries() {
            let path = path.join(entry.name.as_os_str());
            let metadata = path.symlink_metadata().unwrap();
            totals.0 += 1;
            assert_eq!(entry.metadata.mtime.seconds, metadata.mtime(), "{}", path.display());
            assert_eq!(i64::from(entry.metadata.mtime.nanoseconds), metadata.mtime_nsec());
            assert_eq!((entry.metadata.uid, entry.metadata.gid), (metadata.uid(), metadata.gid()));
            assert_eq!(u32::from(entry.metadata.mode), metadata.mode() & 0o1777);
            match &entry.kind {
                Kind::Directory { object, .. } => self.compare(*object, &path, totals),
                Kind::Symlink { target } => {
                    assert_eq!(path.read_link().unwrap().as_os_str().as_bytes(), &**target)
                }
                Kind::Collected { .. } => panic!("none is configured"),
                Kind::File { content, size } => {
                    let mut stored = Vec::new();
                    if *size > 0 {
                        self.store.read_file(content, *size, &mut stored).unwrap();
                    }
                    assert!(stored == fs::read(&path).unwrap(), "{}", path.display());
                    totals.1 += 1;
                    totals.2 += size;
                }
            }
        }
    }
}

type Step = Box<dyn Fn(&Site)>;

fn path(p: &str) -> TreePath {
    TreePath::from_bytes(p.as_bytes()).unwrap()
}

fn parts(names: &[&str]) -> Scope {
    Scope::directories(names.iter().map(|n| path(n)))
}

fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&length.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

#[test]
fn a_first_scan_publishes_everything_as_it_is() {
    let mut site = Site::new();
    site.write("empty", "");
    site.write("index.html", "hello");
    site.write("a/b/c/deep.txt", "deep");
    site.write("medium", noise(300_000));
    site.write("large", noise(5_000_000));
    site.write(".htaccess", "hidden");
    fs::create_dir(site.at("empty directory")).unwrap();
    symlink("/nowhere", site.at("link")).unwrap();
    fs::write(site.at(OsStr::from_bytes(b"\xff\xfe")), "odd").unwrap();
    fs::set_permissions(site.at("index.html"), fs::Permissions::from_mode(0o600)).unwrap();
    for number in 0..500 {
        site.write(&format!("many/{}/{number}", number % 7), number.to_string());
    }
    let outcome = site.scan(Scope::Everything);
    assert!(outcome.changed);
    assert_eq!(outcome.files_read, outcome.root.totals.files);
    assert_eq!(outcome.root.totals.bytes, outcome.bytes_read);
    site.assert_identical();
}

#[test]
fn a_restart_on_an_unchanged_tree_reads_nothing() {
    let mut site = Site::watched();
    site.write("a/f", "1");
    site.write("b/large", noise(3_000_000));
    site.calm();
    let outcome = site.scan(Scope::Everything);
    assert_eq!((outcome.files_read, outcome.changed, outcome.directories_listed), (0, false, 3));
    assert_eq!(outcome.root, site.root.unwrap());
    assert!(!outcome.records_changed);
}

#[test]
fn one_changed_file_costs_its_directory_only() {
    let mut site = Site::watched();
    for number in 0..200 {
        site.write(&format!("{}/{}/f{number}", number % 10, number % 3), number.to_string());
    }
    site.calm();
    site.hinted();
    site.write("3/0/f3", "changed");
    let scope = site.hinted();
    assert_eq!(scope, named("3/0", &["f3"]).into());
    let outcome = site.scan(scope);
    assert_eq!((outcome.changed, outcome.files_read, outcome.directories_listed), (true, 1, 0));
    site.assert_identical();
}

#[test]
fn no_hints_cost_no_listing() {
    let mut site = Site::watched();
    site.write("a/b/f", "1");
    site.calm();
    site.hinted();
    let scope = site.hinted();
    assert!(scope.is_empty());
    let outcome = site.scan(scope);
    assert_eq!((outcome.changed, outcome.directories_listed, outcome.passes), (false, 0, 1));
    assert!(!outcome.records_changed);
}

#[test]
fn a_renamed_directory_is_not_read_again() {
    let mut site = Site::watched();
    for number in 0..50 {
        site.write(&format!("a/{}/f{number}", number % 5), noise(30_000 + number));
        site.write(&format!("z/{}/f{number}", number % 5), noise(40_000 + number));
    }
    site.calm();
    site.hinted();
    fs::rename(site.at("a"), site.at("b")).unwrap();
    let scope = site.hinted();
    let outcome = site.scan(scope);
    assert_eq!((outcome.changed, outcome.files_read), (true, 0));
    site.assert_identical();
    // Two that change content_paths, and one file in them.
    fs::rename(site.at("z"), site.at("t")).unwrap();
    fs::rename(site.at("b"), site.at("z")).unwrap();
    fs::rename(site.at("t"), site.at("b")).unwrap();
    site.write("b/3/f3", "changed");
    let scope = site.hinted();
    assert_eq!(site.scan(scope).files_read, 1);
    site.assert_identical();
    assert!(!site.scan(Scope::Everything).changed);
}

#[test]
fn edits_of_every_kind_are_followed_through_hints() {
    let mut site = Site::watched();
    site.write("a/b/f", "1");
    site.write("a/g", "1");
    site.write("k", "1");
    site.write("d/e/f/g", "1");
    site.calm();
    let steps: Vec<Step> = vec![
        Box::new(|s| fs::remove_file(s.at("a/g")).unwrap()),
        Box::new(|s| fs::rename(s.at("a"), s.at("z")).unwrap()),
        Box::new(|s| s.write("z/b/f", "2")),
        Box::new(|s| s.write("a/b/f", "another a")),
        Box::new(|s| fs::set_permissions(s.at("k"), fs::Permissions::from_mode(0o640)).unwrap()),
        Box::new(|s| fs::set_permissions(s.at("z"), fs::Permissions::from_mode(0o700)).unwrap()),
        Box::new(|s| {
            fs::remove_file(s.at("k")).unwrap();
            s.write("k/was/a/file", "1");
        }),
        Box::new(|s| {
            fs::remove_dir_all(s.at("d/e")).unwrap();
            s.write("d/e", "was a directory");
        }),
        Box::new(|s| {
            fs::remove_file(s.at("d/e")).unwrap();
            symlink("../k", s.at("d/e")).unwrap();
        }),
        Box::new(|s| {
            fs::rename(s.at("z"), s.at("t")).unwrap();
            fs::rename(s.at("a"), s.at("z")).unwrap();
            fs::rename(s.at("t"), s.at("a")).unwrap();
            s.write("a/b/f", "3");
        }),
        Box::new(|s| {
            fs::rename(s.at("k/was"), s.base.path().join("outside")).unwrap();
            fs::write(s.base.path().join("outside/a/file"), "2").unwrap();
            fs::rename(s.base.path().join("outside"), s.at("k/was")).unwrap();
        }),
        Box::new(|s| fs::remove_dir_all(s.at("k")).unwrap()),
        Box::new(|s| {
            let file = fs::File::options().write(true).open(s.at("a/b/f")).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789)).unwrap();
        }),
    ];
    for (number, step) in steps.iter().enumerate() {
        step(&site);
        let scope = site.hinted();
        assert_ne!(scope, Scope::Everything, "step {number}");
        assert!(site.scan(scope).changed, "step {number}");
        site.assert_identical();
    }
    // A walk of everything agrees.
    assert!(!site.scan(Scope::Everything).changed);
}

/// Hints at names in one directory.
fn named(directory: &str, names: &[&str]) -> Hints {
    let mut hints = Hints::default();
    for name in names {
        hints.add_name(path(directory), Component::new(name.as_bytes()).unwrap());
    }
    hints
}

#[test]
fn a_file_changed_within_one_stamp_is_read_again() {
    let mut site = Site::new();
    site.write("f", "1");
    let outcome = site.scan(Scope::Everything);
    assert_eq!(outcome.racy, named("", &["f"]));
    std::thread::sleep(Duration::from_millis(30));
    // As its caller does with what is racy: once more, without a hint.
    let outcome = site.scan(outcome.racy.into());
    assert_eq!((outcome.files_read, outcome.changed, outcome.records_changed), (1, false, true));
    assert!(outcome.racy.is_empty());
    assert_eq!(site.scan(parts(&[""])).files_read, 0);
}

#[test]
fn directory_times_alone_wait_for_the_next_change() {
    let mut site = Site::watched();
    site.write("a/f", "1");
    site.write("b/f", "1");
    site.calm();
    let before = site.root.unwrap();
    let _ = site.hinted();
    fs::File::open(site.at("a"))
        .unwrap()
        .set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000))
        .unwrap();
    let scope = site.hinted();
    let outcome = site.scan(scope);
    assert_eq!((outcome.changed, outcome.root), (false, before));
    assert_eq!(outcome.times_only, [path("a")].into());
    site.write("b/f", "2");
    let mut scope = site.hinted();
    scope.add_metadata_of(outcome.times_only);
    let outcome = site.scan(scope);
    assert!(outcome.changed && outcome.times_only.is_empty());
    assert_eq!(site.entry("a").metadata.mtime.seconds, 1_000_000_000);
    site.assert_identical();
}

#[test]
fn mtime_keep_makes_a_fresh_checkout_no_change() {
    fresh_checkout(MtimePolicy::Keep);
}

#[test]
fn mtime_distinct_makes_a_fresh_checkout_no_change() {
    fresh_checkout(MtimePolicy::Distinct);
}

fn fresh_checkout(policy: MtimePolicy) {
    let mut site = Site::new();
    site.options.mtime = policy;
    site.write("a/f", "same");
    site.write("a/g", "other");
    site.calm();
    let kept = site.entry("a/f").metadata.mtime;
    for name in ["a/f", "a/g"] {
        let content = fs::read(site.at(name)).unwrap();
        fs::remove_file(site.at(name)).unwrap();
        site.write(name, content);
    }
    assert!(!site.scan(Scope::Everything).changed);
    std::thread::sleep(Duration::from_millis(30));
    site.scan(Scope::Everything);
    assert_eq!(site.scan(Scope::Everything).files_read, 0);
    site.write("a/g", "changed");
    assert!(site.scan(Scope::Everything).changed);
    assert_eq!(site.entry("a/f").metadata.mtime, kept);
    assert_eq!(
        site.entry("a/g").metadata.mtime.nanoseconds as i64,
        site.at("a/g").metadata().unwrap().mtime_nsec()
    );
    fs::set_permissions(site.at("a/f"), fs::Permissions::from_mode(0o600)).unwrap();
    site.scan(Scope::Everything);
    // A time that was given once belongs to the content, whatever its mode.
    assert_eq!(site.entry("a/f").metadata.mtime == kept, policy == MtimePolicy::Distinct);
}

#[test]
fn ignore_rules_leave_out_and_their_change_is_followed() {
    let mut site = Site::watched();
    site.write("keep.txt", "1");
    site.write("a/b/x.tmp", "1");
    site.write("cache/x", "1");
    site.write(".git/config", "1");
    site.write(".gitignore", "keep.txt\n");
    site.write(".syncdignore", "*.tmp\n/cache/\n");
    site.scan(Scope::Everything);
    assert_eq!(site.names(""), [".gitignore", "a", "keep.txt"]);
    assert!(site.names("a/b").is_empty());
    site.hinted();
    site.write(".syncdignore", "*.txt\n");
    let scope = site.hinted();
    assert_eq!(scope, named("", &[".syncdignore"]).into());
    site.scan(scope);
    assert_eq!(site.names(""), [".gitignore", "a", "cache"]);
    assert_eq!(site.names("a/b"), ["x.tmp"]);
    // Found through the watches that the second scan made.
    site.write("cache/y", "1");
    let scope = site.hinted();
    site.scan(scope);
    assert_eq!(site.names("cache"), ["x", "y"]);
    site.write("a/.syncdignore", "/b/x.*\n");
    let scope = site.hinted();
    site.scan(scope);
    assert!(site.names("a/b").is_empty());
    site.write("a/.syncdignore", "[z-a]\n");
    let scope = site.hinted();
    assert!(matches!(site.try_scan(scope), Err(ScanError::Ignore(_))));
}

#[test]
fn rules_that_are_no_regular_file_fail_the_scan_by_name() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let mut site = Site::watched();
    site.write("a/secret.env", "password");
    site.write("shared", "secret.env\n");
    site.calm();
    let rules = site.at("a/.syncdignore");
    let put: [(&str, &dyn Fn()); 4] = [
        ("symlink", &|| symlink("../shared", &rules).unwrap()),
        ("dangling symlink", &|| symlink("nowhere", &rules).unwrap()),
        ("directory", &|| fs::create_dir(&rules).unwrap()),
        ("fifo", &|| mknodat(CWD, &rules, FileType::Fifo, Mode::RWXU, 0).unwrap()),
    ];
    for (what, put) in put {
        put();
        for scope in [site.hinted(), Scope::Everything] {
            let error = site.try_scan(scope).unwrap_err();
            assert!(error.to_string().starts_with("a/.syncdignore is no regular file"), "{what}: {error}");
        }
        if rules.symlink_metadata().unwrap().is_dir() {
            fs::remove_dir(&rules).unwrap();
        } else {
            fs::remove_file(&rules).unwrap();
        }
        let scope = site.hinted();
        site.scan(scope);
    }
}

#[test]
fn a_tree_that_lost_most_of_itself_is_held() {
    let mut site = Site::new();
    for number in 0..30 {
        site.write(&format!("{number}"), "1");
    }
    site.scan(Scope::Everything);
    for number in 0..16 {
        fs::remove_file(site.at(number.to_string())).unwrap();
    }
    let held = site.try_scan(Scope::Everything);
    assert!(matches!(held, Err(ScanError::MassDeletion { before: 30, after: 14 })), "{held:?}");
    site.write("15", "1");
    assert!(site.scan(Scope::Everything).changed);
    for number in 0..30 {
        site.write(&format!("{number}"), "1");
    }
    site.scan(Scope::Everything);
    fs::remove_dir_all(site.tree()).unwrap();
    assert!(matches!(site.try_scan(Scope::Everything), Err(ScanError::TreeMissing { .. })));
    fs::create_dir(site.tree()).unwrap();
    assert!(matches!(site.try_scan(Scope::Everything), Err(ScanError::Emptied { before: 30 })));
    site.options.allow_mass_deletion = true;
    assert!(site.scan(Scope::Everything).changed);
}

#[test]
fn symlinks_that_leave_are_refused_where_asked_for() {
    let mut site = Site::new();
    site.options.symlinks = SymlinkPolicy::Inside;
    fs::create_dir(site.at("a")).unwrap();
    symlink("../b", site.at("a/fine")).unwrap();
    site.scan(Scope::Everything);
    symlink("../../b", site.at("a/out")).unwrap();
    let refused = site.try_scan(Scope::Everything).unwrap_err();
    assert!(matches!(&refused, ScanError::SymlinkLeaves { path: p } if *p == path("a/out")), "{refused}");
    site.options.symlinks = SymlinkPolicy::Verbatim;
    assert!(site.scan(Scope::Everything).changed);
}

#[test]
fn special_files_are_skipped_and_setid_bits_dropped() {
    let mut site = Site::new();
    let _socket = std::os::unix::net::UnixListener::bind(site.at("socket")).unwrap();
    site.write("setuid", "1");
    fs::set_permissions(site.at("setuid"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(site.at("setuid"), site.at("hard")).unwrap();
    let outcome = site.scan(Scope::Everything);
    assert_eq!(outcome.skipped, [path("socket")].into());
    assert_eq!(site.names(""), ["hard", "setuid"]);
    assert_eq!(site.entry("setuid").metadata.mode, 0o755);
}

#[test]
fn a_path_that_is_too_deep_is_named() {
    let mut site = Site::new();
    let deep = vec!["d"; syncd_shared::limits::DEPTH_MAX + 1].join("/");
    fs::create_dir_all(site.at(&deep)).unwrap();
    let refused = site.try_scan(Scope::Everything).unwrap_err();
    assert!(matches!(refused, ScanError::Name { .. }), "{refused}");
    site.write(".syncdignore", "d\n");
    site.scan(Scope::Everything);
}

#[test]
fn a_failed_scan_leaves_its_hints_in_the_watch() {
    let mut site = Site::watched();
    site.write("a/f", "1");
    site.calm();
    site.hinted();
    site.options.symlinks = SymlinkPolicy::Inside;
    symlink("/", site.at("a/l")).unwrap();
    let scope = site.hinted();
    site.try_scan(scope).unwrap_err();
    fs::remove_file(site.at("a/l")).unwrap();
    site.write("a/g", "1");
    let scope = site.hinted();
    assert!(site.scan(scope).changed);
    site.assert_identical();
}

#[test]
fn what_is_dirtied_during_a_scan_is_in_it() {
    let mut site = Site::watched();
    for number in 0..200 {
        site.write(&format!("{number}/f"), "1");
    }
    site.calm();
    site.hinted();
    for round in 0..20 {
        // Nobody has taken these hints when the scan begins with other directories.
        for number in 0..200 {
            site.write(&format!("{number}/f"), format!("round {round}"));
        }
        let outcome = site.scan(parts(&["0", "1"]));
        assert!(outcome.changed && outcome.passes > 1, "round {round}");
        site.assert_identical();
    }
}

#[test]
fn a_file_that_keeps_changing_is_named() {
    let mut site = Site::watched();
    site.write("logs/busy", noise(2_000_000));
    let busy = site.at("logs/busy");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = fs::File::options().append(true).open(&busy).unwrap();
            while !stop.load(Ordering::Relaxed) {
                std::io::Write::write_all(&mut file, b"line\n").unwrap();
            }
        });
        // On a busy machine the writer may stand still for as long as a scan takes.
        let refused = (0..50).find_map(|_| site.try_scan(Scope::Everything).err());
        stop.store(true, Ordering::Relaxed);
        let refused = refused.unwrap();
        assert!(
            matches!(refused, ScanError::Unsettled { .. }) && refused.to_string().contains("logs"),
            "{refused}"
        );
    });
    let scope = site.hinted();
    assert!(site.scan(scope).changed);
    site.assert_identical();
}

#[test]
fn what_is_written_during_scans_is_never_torn_and_converges() {
    let mut site = Site::watched();
    for number in 0..300 {
        site.write(&format!("d{}/f{number}", number % 20), vec![b'0'; 40_000]);
    }
    let tree = site.tree();
    let stop = AtomicBool::new(false);
    let mut times_only = BTreeSet::new();
    let (scans, scope) = std::thread::scope(|scope| {
        scope.spawn(|| {
            // Every file is 40,000 times one byte at any time, replaced by renaming; directories come and go.
            let mut round = 0u8;
            while !stop.load(Ordering::Relaxed) {
                round = round.wrapping_add(1);
                let number = usize::from(round) * 7 % 300;
                let to = tree.join(format!("d{}/f{number}", number % 20));
                let new = to.with_extension("new");
                fs::write(&new, vec![b'0' + round % 10; 40_000]).unwrap();
                fs::rename(&new, &to).unwrap();
                let fresh = tree.join(format!("fresh{}", round % 5));
                fs::create_dir_all(fresh.join("sub")).unwrap();
                fs::write(fresh.join("sub/f"), [round]).unwrap();
                if round.is_multiple_of(3) {
                    fs::remove_dir_all(&fresh).unwrap();
                }
                // Pauses now and then, so that a scan can settle.
                let pause = if round.is_multiple_of(32) { 200 } else { 4 };
                std::thread::sleep(Duration::from_millis(pause));
            }
        });
        let mut scans = 0;
        let mut scope = Scope::Everything;
        let started = Instant::now();
        // Longer where the machine is so busy that none settled.
        while started.elapsed() < Duration::from_secs(if scans > 0 { 3 } else { 60 }) {
            match site.try_scan(scope) {
                Ok(outcome) => {
                    scans += 1;
                    times_only = outcome.times_only;
                }
                Err(ScanError::Unsettled { .. }) => {}
                Err(other) => panic!("{other}"),
            }
            scope = site.hinted();
            scope.add_metadata_of(times_only.iter().cloned());
        }
        stop.store(true, Ordering::Relaxed);
        (scans, scope)
    });
    // Nothing but hints from here.
    times_only = site.scan(scope).times_only;
    site.write("last", "so that directory times go along");
    let mut scope = site.hinted();
    scope.add_metadata_of(times_only);
    site.scan(scope);
    site.assert_identical();
    assert!(scans > 0);
}

#[test]
fn an_unreadable_file_or_directory_is_named() {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    let mut site = Site::new();
    site.write("a/f", "1");
    site.write("b/f", "1");
    fs::set_permissions(site.at("a/f"), fs::Permissions::from_mode(0o000)).unwrap();
    // Root reads everything, unless its thread gives that up.
    std::thread::spawn(move || {
        let mut sets = capabilities(None).unwrap();
        sets.effective -= CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
        set_capabilities(None, sets).unwrap();
        let refused = site.try_scan(Scope::Everything).unwrap_err();
        assert!(matches!(&refused, ScanError::Unreadable { path: p, .. } if *p == path("a/f")), "{refused}");
        fs::set_permissions(site.at("b"), fs::Permissions::from_mode(0o000)).unwrap();
        let refused = site.try_scan(Scope::Everything).unwrap_err();
        assert!(refused.to_string().starts_with("cannot read"), "{refused}");
        site.write(".syncdignore", "/b\nf\n");
        site.scan(Scope::Everything);
        assert_eq!(site.names(""), ["a"]);
    })
    .join()
    .unwrap();
}

#[test]
fn an_unmounted_tree_is_held() {
    let name = "scan::tests::an_unmounted_tree_is_held";
    if !crate::namespace::within(name, &["--user", "--map-root-user", "--mount"], "true") {
        return;
    }
    let mut site = Site::watched();
    let run = |command: &str, arguments: &[&OsStr]| {
        assert!(std::process::Command::new(command).args(arguments).status().unwrap().success());
    };
    let tree = site.tree();
    run("mount", &["-t".as_ref(), "tmpfs".as_ref(), "none".as_ref(), tree.as_ref()]);
    site.write("f", "1");
    site.calm();
    site.hinted();
    run("umount", &[tree.as_ref()]);
    // The unmount is an event of its own.
    let scope = site.hinted();
    assert_eq!(scope, Scope::Everything);
    assert!(matches!(site.try_scan(scope), Err(ScanError::Unmounted { .. })));
    // The content hidden by the mount is not a deployment either.
    site.write("f", "2");
    assert!(matches!(site.try_scan(Scope::Everything), Err(ScanError::Unmounted { .. })));
    site.options.allow_mass_deletion = true;
    assert!(site.scan(Scope::Everything).changed);
    site.options.allow_mass_deletion = false;
    site.write("f", "3");
    assert!(site.scan(Scope::Everything).changed);
}

#[test]
fn a_nested_mount_that_is_lost_is_held_whatever_it_was() {
    let name = "scan::tests::a_nested_mount_that_is_lost_is_held_whatever_it_was";
    if !crate::namespace::within(name, &["--user", "--map-root-user", "--mount"], "true") {
        return;
    }
    let run = |command: &str, arguments: &[&OsStr]| {
        assert!(std::process::Command::new(command).args(arguments).status().unwrap().success());
    };
    // A bind mount has the device of what it hides.
    for kind in ["tmpfs", "bind"] {
        let mut site = Site::watched();
        (0..100).for_each(|n| site.write(&format!("{n}"), "1"));
        site.write("uploads/hidden", "1");
        let (uploads, source) = (site.at("uploads"), site.base.path().join("source"));
        fs::create_dir(&source).unwrap();
        let mount = || match kind {
            "tmpfs" => run("mount", &["-t".as_ref(), kind.as_ref(), "none".as_ref(), uploads.as_ref()]),
            _ => run("mount", &["--bind".as_ref(), source.as_ref(), uploads.as_ref()]),
        };
        mount();
        (0..9).for_each(|n| site.write(&format!("uploads/{n}"), "1"));
        site.calm();
        assert_eq!(site.names("uploads").len(), 9, "{kind}");
        run("umount", &[uploads.as_ref()]);
        let scope = site.hinted();
        assert_eq!(scope, Scope::Everything, "{kind}");
        let held = site.try_scan(scope).unwrap_err();
        assert!(
            matches!(&held, ScanError::Unmounted { path } if path.ends_with("uploads")),
            "{kind}: {held}"
        );
        // After a restart as well.
        site.watch = Some(Watch::start(&site.tree(), site.store.data(), Duration::from_secs(60)).unwrap());
        assert!(matches!(site.try_scan(Scope::Everything), Err(ScanError::Unmounted { .. })), "{kind}");
        if kind == "bind" {
            mount();
            assert!(!site.scan(Scope::Everything).changed, "what is back is what it was");
            run("umount", &[uploads.as_ref()]);
        }
        site.options.allow_mass_deletion = true;
        assert!(site.scan(Scope::Everything).changed, "{kind}");
        assert_eq!(site.names("uploads"), ["hidden"], "{kind}");
    }
}

#[test]
fn an_empty_file_system_in_the_tree_is_held_however_it_came() {
    let name = "scan::tests::an_empty_file_system_in_the_tree_is_held_however_it_came";
    if !crate::namespace::within(name, &["--user", "--map-root-user", "--mount"], "true") {
        return;
    }
    let run = |command: &str, arguments: &[&OsStr]| {
        assert!(std::process::Command::new(command).args(arguments).status().unwrap().success());
    };
    let mut site = Site::watched();
    (0..100).for_each(|n| site.write(&format!("{n}"), "1"));
    (0..3).for_each(|n| site.write(&format!("uploads/{n}"), "1"));
    site.calm();
    let uploads = site.at("uploads");
    let mount = || run("mount", &["-t".as_ref(), "tmpfs".as_ref(), "none".as_ref(), uploads.as_ref()]);
    mount();
    let scope = site.hinted();
    let held = site.try_scan(scope);
    assert!(matches!(held, Err(ScanError::EmptiedMount { before: 3, .. })), "{held:?}");
    (0..9).for_each(|n| site.write(&format!("uploads/new-{n}"), "1"));
    assert!(site.scan(Scope::Everything).changed);
    site.calm();
    // Another one takes its place between two scans.
    run("umount", &[uploads.as_ref()]);
    mount();
    let scope = site.hinted();
    let held = site.try_scan(scope);
    assert!(matches!(held, Err(ScanError::EmptiedMount { before: 9, .. })), "{held:?}");
    site.options.allow_mass_deletion = true;
    assert!(site.scan(Scope::Everything).changed);
    assert!(site.names("uploads").is_empty());
}

#[test]
fn a_mount_that_hid_nothing_may_go() {
    let name = "scan::tests::a_mount_that_hid_nothing_may_go";
    if !crate::namespace::within(name, &["--user", "--map-root-user", "--mount"], "true") {
        return;
    }
    let mut site = Site::watched();
    site.write("f", "1");
    fs::create_dir_all(site.at("cache/below")).unwrap();
    site.write(".syncdignore", "/cache\n");
    let mount = |command: &str, more: &[&str]| {
        let cache = site.at("cache");
        assert!(std::process::Command::new(command).args(more).arg(cache).status().unwrap().success());
    };
    mount("mount", &["-t", "tmpfs", "none"]);
    let cache = site.at("cache");
    site.calm();
    assert!(std::process::Command::new("umount").arg(cache).status().unwrap().success());
    let scope = site.hinted();
    assert_eq!(scope, Scope::Everything);
    assert!(!site.scan(scope).changed);
}

#[test]
fn a_tree_that_lost_most_of_its_bytes_is_held() {
    let mut site = Site::new();
    (0..60).for_each(|n| site.write(&format!("small/{n}"), "1"));
    (0..30).for_each(|n| site.write(&format!("large/{n}"), [b'x'; 5_000]));
    site.write("video", [b'x'; 120_000]);
    site.scan(Scope::Everything);
    // One file may be as large as it likes; and 19 may go.
    fs::remove_file(site.at("video")).unwrap();
    assert!(site.scan(Scope::Everything).changed);
    (0..19).for_each(|n| fs::remove_file(site.at(format!("large/{n}"))).unwrap());
    assert!(site.scan(Scope::Everything).changed);
    (0..30).for_each(|n| site.write(&format!("large/{n}"), [b'x'; 5_000]));
    site.scan(Scope::Everything);
    fs::rename(site.at("large"), site.base.path().join("away")).unwrap();
    let held = site.try_scan(Scope::Everything);
    assert!(matches!(held, Err(ScanError::MassByteLoss { before: 150_060, after: 60 })), "{held:?}");
    // Emptied in place counts as gone.
    fs::rename(site.base.path().join("away"), site.at("large")).unwrap();
    assert!(!site.scan(Scope::Everything).changed);
    (0..30).for_each(|n| site.write(&format!("large/{n}"), ""));
    assert!(matches!(site.try_scan(Scope::Everything), Err(ScanError::MassByteLoss { .. })));
    site.options.allow_mass_deletion = true;
    assert!(site.scan(Scope::Everything).changed);
}

#[test]
fn a_small_tree_may_lose_anything_but_all() {
    let mut site = Site::new();
    ["a", "b", "c"].iter().for_each(|name| site.write(name, "1"));
    site.scan(Scope::Everything);
    ["a", "b"].iter().for_each(|name| fs::remove_file(site.at(name)).unwrap());
    assert!(site.scan(Scope::Everything).changed);
    fs::remove_file(site.at("c")).unwrap();
    assert!(matches!(site.try_scan(Scope::Everything), Err(ScanError::Emptied { before: 1 })));
    site.options.allow_mass_deletion = true;
    assert!(site.scan(Scope::Everything).changed);
}

#[test]
fn lost_events_are_made_up_for_by_a_walk() {
    let mut site = Site::watched();
    site.write("a/f", "1");
    site.calm();
    let watch = site.watch.as_ref().unwrap();
    watch.put_back(Hints::everything(Reason::Overflow));
    site.write("a/f", "2");
    let scope = site.hinted();
    assert_eq!(scope, Scope::Everything);
    assert!(site.scan(scope).changed);
    site.assert_identical();
}

#[test]
fn content_that_the_store_lost_is_read_again() {
    let mut site = Site::new();
    site.write("a/f", "1");
    site.calm();
    let other = tempfile::tempdir().unwrap();
    let record = site.store.stat(b"a").unwrap().unwrap();
    // Another store knows the file's stamp but has neither content nor base.
    site.store = Arc::new(Store::create(other.path()).unwrap());
    let writer = site.store.writer().unwrap();
    writer.put_stat(b"a", &record).unwrap();
    writer.save().unwrap();
    (site.root, site.number) = (None, 0);
    assert_eq!(site.scan(Scope::Everything).files_read, 1);
    site.assert_identical();
}

#[test]
fn a_cancelled_scan_ends() {
    let site = Site::new();
    let writer = site.store.writer().unwrap();
    let cancel = CancellationToken::new();
    cancel.cancel();
    let work = Scan {
        tree: &site.tree(),
        writer: &writer,
        watch: None,
        mounts: &BTreeSet::new(),
        options: &site.options,
        withheld: &Withheld::new(),
        links: &Links::default(),
        notices: &Notices::default(),
        progress: &Progress::hidden(),
        cancel: &cancel,
    };
    assert!(matches!(scan(&work, None, Scope::Everything), Err(ScanError::Cancelled)));
}

#[test]
fn a_data_directory_that_takes_no_cookie_is_named_and_not_the_tree() {
    let mut site = Site::watched();
    fs::write(site.at("f"), "first").unwrap();
    site.calm();
    let cookies = site.store.data().join("cookies");
    let names: Vec<_> = (1..100).map(|number| cookies.join(number.to_string())).collect();
    names.iter().for_each(|name| fs::create_dir(name).unwrap());
    fs::write(site.at("f"), "changed").unwrap();
    let refused = site.try_scan(Scope::Everything).unwrap_err();
    assert!(matches!(refused, ScanError::Cookie(_)), "{refused}");
    assert!(refused.to_string().contains("check that the data directory is writable"), "{refused}");
    // The next scan examines the scope of the failed one.
    names.iter().for_each(|name| fs::remove_dir(name).unwrap());
    let scope = site.hinted();
    assert!(site.scan(scope).changed);
    site.assert_identical();
}

#[test]
fn a_write_through_another_name_is_found_by_looking_at_all_names() {
    let mut site = Site::watched();
    site.write("v1/f", "old");
    site.write("v1/single", "1");
    site.calm();
    assert!(site.links.is_empty());
    // The first name is linked without an event of its own, and written before the new name is noticed.
    fs::create_dir(site.at("v2")).unwrap();
    fs::hard_link(site.at("v1/f"), site.at("v2/f")).unwrap();
    fs::write(site.at("v2/f"), "new").unwrap();
    let scope = site.hinted();
    let outcome = site.scan(scope);
    assert_eq!(outcome.walked, Some(Reason::HardLinks));
    site.assert_identical();
    site.calm();
    // From now on both names are known.
    fs::write(site.at("v2/f"), "newer").unwrap();
    let mut scope = site.hinted();
    assert_eq!(site.links.changed(&site.tree()).names.iter().count(), 2);
    scope.add(site.links.changed(&site.tree()));
    let outcome = site.scan(scope);
    assert_eq!((outcome.walked, outcome.files_read), (None, 2));
    site.assert_identical();
    fs::remove_file(site.at("v2/f")).unwrap();
    let scope = site.hinted();
    assert_eq!(site.scan(scope).walked, None, "a name that goes is no reason to look for others");
    assert!(!site.links.changed(&site.tree()).is_empty(), "the count of its links is another one");
    let scope = site.links.changed(&site.tree()).into();
    site.scan(scope);
    assert!(site.links.is_empty());
}

#[test]
fn a_name_outside_is_looked_for_once_and_its_writes_are_found() {
    let mut site = Site::watched();
    let outside = site.base.path().join("outside");
    fs::write(&outside, "old").unwrap();
    site.write("d/g", "1");
    site.calm();
    fs::hard_link(&outside, site.at("d/f")).unwrap();
    let scope = site.hinted();
    assert_eq!(site.scan(scope).walked, Some(Reason::HardLinks));
    fs::write(&outside, "new").unwrap();
    assert!(site.hinted().is_empty(), "no event tells");
    let scope: Scope = site.links.changed(&site.tree()).into();
    assert!(!scope.is_empty());
    let outcome = site.scan(scope);
    assert_eq!((outcome.walked, outcome.changed), (None, true));
    site.assert_identical();
    fs::remove_dir_all(site.at("d")).unwrap();
    site.write("x", "1");
    let scope = site.hinted();
    site.options.allow_mass_deletion = true;
    site.scan(scope);
    assert!(site.links.is_empty());
}

#[test]
fn reading_all_finds_what_no_time_shows() {
    let mut site = Site::new();
    site.write("db", "old");
    site.write("other", "xyz");
    site.scan(Scope::Everything);
    std::thread::sleep(Duration::from_millis(30));
    site.scan(Scope::Everything);
    // As a write through a mapped page that is dirty already: content changes, and nothing else.
    let writer = site.store.writer().unwrap();
    let bytes = writer.stat(b"").unwrap().unwrap();
    let mut record = stat_record::StatRecord::decode(&bytes).unwrap();
    record.files[0].content = syncd_shared::ContentHash::of(b"xyz");
    writer.put_stat(b"", &record.encode()).unwrap();
    writer.save().unwrap();
    assert!(site.scan(Scope::Everything).files_read == 0, "its times are those of the record");
    site.options.read_all = true;
    let outcome = site.scan(Scope::Everything);
    assert_eq!(outcome.files_read, 2);
    site.assert_identical();
}
