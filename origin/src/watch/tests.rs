use super::*;
use std::os::unix::fs::symlink;

struct Fixture {
    base: tempfile::TempDir,
    watch: Watch,
}

impl Fixture {
    /// A tree with these directories, all watched, nothing hinted at.
    fn new(directories: &[&str]) -> Self {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir(base.path().join("tree")).unwrap();
        for directory in directories {
            fs::create_dir_all(base.path().join("tree").join(directory)).unwrap();
        }
        Self::over(base, directories)
    }

    fn over(base: tempfile::TempDir, directories: &[&str]) -> Self {
        let watch =
            Watch::start(&base.path().join("tree"), &base.path().join("data"), Duration::from_millis(50))
                .unwrap();
        let fixture = Self { base, watch };
        assert_eq!(fixture.watch.take(), Hints::everything(Reason::Start));
        fixture.watch_all(directories);
        fixture.flush();
        fixture
    }

    fn watch_all(&self, directories: &[&str]) {
        self.watch.prepare().unwrap();
        for directory in std::iter::once(&"").chain(directories) {
            self.watch.directory(&path(directory));
        }
    }

    fn at(&self, relative: &str) -> PathBuf {
        self.base.path().join("tree").join(relative)
    }

    /// The hints after a flush, reduced to directories.
    fn flush(&self) -> Hints {
        let mut hints = self.flush_names();
        for (directory, _) in std::mem::take(&mut hints.names).iter() {
            hints.add_directory(directory.clone());
        }
        hints
    }

    fn flush_names(&self) -> Hints {
        self.watch.flush();
        self.watch.take()
    }
}

fn path(p: &str) -> TreePath {
    TreePath::from_bytes(p.as_bytes()).unwrap()
}

fn directories(names: &[&str]) -> Hints {
    Hints { directories: names.iter().map(|n| path(n)).collect(), ..Hints::default() }
}

fn names(directory: &str, names: &[&str]) -> Hints {
    let mut hints = Hints::default();
    for name in names {
        hints.add_name(path(directory), syncd_shared::Component::new(name.as_bytes()).unwrap());
    }
    hints
}

#[test]
fn changes_are_hinted_at_by_name() {
    let fixture = Fixture::new(&["a"]);
    fs::write(fixture.at("a/f"), "1").unwrap();
    symlink("f", fixture.at("a/l")).unwrap();
    assert_eq!(fixture.flush_names(), names("a", &["f", "l"]));
    fs::write(fixture.at("a/.f"), "2").unwrap();
    fs::rename(fixture.at("a/.f"), fixture.at("a/f")).unwrap();
    assert_eq!(fixture.flush_names(), names("a", &[".f", "f"]));
    fs::remove_file(fixture.at("a/f")).unwrap();
    assert_eq!(fixture.flush_names(), names("a", &["f"]));
    for number in 0..100 {
        fs::write(fixture.at("a").join(number.to_string()), "1").unwrap();
    }
    assert_eq!(fixture.flush_names(), directories(&["a"]));
}

#[test]
fn every_kind_of_change_names_its_directory() {
    use std::os::unix::fs::PermissionsExt;
    let fixture = Fixture::new(&["a", "a/b"]);
    fs::write(fixture.at("a/b/f"), "1").unwrap();
    assert_eq!(fixture.flush(), directories(&["a/b"]));
    fs::write(fixture.at("a/b/f"), "2").unwrap();
    assert_eq!(fixture.flush(), directories(&["a/b"]));
    fs::set_permissions(fixture.at("a/b/f"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(fixture.flush(), directories(&["a/b"]));
    fs::set_permissions(fixture.at(""), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(fixture.flush(), directories(&[""]));
    fs::rename(fixture.at("a/b/f"), fixture.at("a/g")).unwrap();
    assert_eq!(fixture.flush(), directories(&["a", "a/b"]));
    symlink("x", fixture.at("l")).unwrap();
    assert_eq!(fixture.flush(), directories(&[""]));
    fs::remove_file(fixture.at("a/g")).unwrap();
    assert_eq!(fixture.flush(), directories(&["a"]));
    assert!(fixture.flush().is_empty());
}

#[test]
fn what_we_read_ourselves_is_no_news() {
    let fixture = Fixture::new(&["a"]);
    fs::write(fixture.at("a/f"), "1").unwrap();
    fixture.flush();
    fs::read(fixture.at("a/f")).unwrap();
    fs::read_dir(fixture.at("a")).unwrap().count();
    assert!(fixture.flush().is_empty());
}

#[test]
fn a_cookie_comes_after_everything_before_it() {
    let fixture = Fixture::new(&["a"]);
    for round in 0..200 {
        fs::write(fixture.at("a/f"), round.to_string()).unwrap();
        assert_eq!(fixture.flush(), directories(&["a"]), "round {round}");
    }
    assert_eq!(fs::read_dir(fixture.base.path().join("data/cookies")).unwrap().count(), 0);
}

#[test]
fn a_renamed_directory_is_watched_under_its_new_name() {
    let fixture = Fixture::new(&["a", "a/b", "a/b/c"]);
    fs::rename(fixture.at("a"), fixture.at("z")).unwrap();
    let hints = fixture.flush();
    assert_eq!((hints.directories, hints.subtrees), (directories(&[""]).directories, [path("a")].into()));
    fixture.watch_all(&["z", "z/b", "z/b/c"]);
    fs::write(fixture.at("z/b/c/f"), "1").unwrap();
    assert_eq!(fixture.flush(), directories(&["z/b/c"]));
    // Another directory under the old name is another directory.
    fs::create_dir_all(fixture.at("a/b/c")).unwrap();
    assert_eq!(fixture.flush(), directories(&[""]));
    fixture.watch_all(&["a", "a/b", "a/b/c"]);
    fs::write(fixture.at("a/b/c/f"), "1").unwrap();
    assert_eq!(fixture.flush(), directories(&["a/b/c"]));
    fs::write(fixture.at("z/b/c/f"), "2").unwrap();
    assert_eq!(fixture.flush(), directories(&["z/b/c"]));
}

#[test]
fn a_directory_moved_away_and_back_is_looked_at_as_a_whole() {
    let fixture = Fixture::new(&["a", "a/b"]);
    let outside = fixture.base.path().join("outside");
    fs::rename(fixture.at("a"), &outside).unwrap();
    fs::write(outside.join("b/f"), "unseen").unwrap();
    fs::rename(&outside, fixture.at("a")).unwrap();
    assert_eq!(fixture.flush().subtrees, [path("a")].into());
    fixture.watch_all(&["a", "a/b"]);
    fs::write(fixture.at("a/b/f"), "1").unwrap();
    assert_eq!(fixture.flush(), directories(&["a/b"]));
}

#[test]
fn a_directory_removed_and_made_again_is_watched_again() {
    let fixture = Fixture::new(&["a"]);
    for round in 0..50 {
        fs::remove_dir_all(fixture.at("a")).unwrap();
        fs::create_dir(fixture.at("a")).unwrap();
        // Before the events have come, as a scan would.
        fixture.watch.directory(&path("a"));
        fixture.flush();
        fixture.watch.directory(&path("a"));
        fs::write(fixture.at("a/f"), "1").unwrap();
        assert!(fixture.flush().directories.contains(&path("a")), "round {round}");
    }
}

#[test]
fn a_tree_renamed_over_or_missing_is_seen() {
    let fixture = Fixture::new(&[]);
    let tree = fixture.at("");
    let away = fixture.base.path().join("away");
    fs::rename(&tree, &away).unwrap();
    assert_eq!(fixture.flush(), Hints::everything(Reason::TreeReplaced));
    assert_eq!(fixture.watch.prepare().unwrap_err().kind(), io::ErrorKind::NotFound);
    fs::create_dir(&tree).unwrap();
    assert_eq!(fixture.flush(), Hints::everything(Reason::TreeReplaced));
    fixture.watch_all(&[]);
    fs::write(fixture.at("f"), "1").unwrap();
    assert_eq!(fixture.flush(), directories(&[""]));
    fs::write(away.join("f"), "1").unwrap();
    assert!(fixture.flush().is_empty());
}

#[test]
fn a_symlinked_tree_follows_its_symlink() {
    let base = tempfile::tempdir().unwrap();
    for release in ["1", "2"] {
        fs::create_dir_all(base.path().join(release)).unwrap();
    }
    symlink("1", base.path().join("tree")).unwrap();
    let fixture = Fixture::over(base, &[]);
    let base = fixture.base.path();
    fs::write(base.join("1/f"), "1").unwrap();
    assert_eq!(fixture.flush(), directories(&[""]));
    symlink("2", base.join("new")).unwrap();
    fs::rename(base.join("new"), base.join("tree")).unwrap();
    assert_eq!(fixture.flush(), Hints::everything(Reason::TreeReplaced));
    let prepared = fixture.watch.prepare().unwrap();
    assert_eq!(prepared.root, base.canonicalize().unwrap().join("2"));
    fixture.watch_all(&[]);
    fixture.flush();
    fs::write(base.join("1/f"), "2").unwrap();
    assert!(fixture.flush().is_empty());
    fs::write(base.join("2/f"), "2").unwrap();
    assert_eq!(fixture.flush(), directories(&[""]));
}

#[test]
fn names_that_are_not_utf8_are_watched() {
    use std::os::unix::ffi::OsStrExt;
    let fixture = Fixture::new(&[]);
    let name = std::ffi::OsStr::from_bytes(b"\xff\xfe");
    fs::create_dir(fixture.at("").join(name)).unwrap();
    fixture.flush();
    let directory = TreePath::from_bytes(b"\xff\xfe").unwrap();
    fixture.watch.directory(&directory);
    fs::write(fixture.at("").join(name).join("f"), "1").unwrap();
    assert_eq!(fixture.flush().directories, [directory].into());
}

#[tokio::test]
async fn changed_wakes_for_a_change_and_sleeps_without() {
    let fixture = Fixture::new(&[]);
    let idle = tokio::time::timeout(Duration::from_millis(150), fixture.watch.changed()).await;
    assert!(idle.is_err());
    fs::write(fixture.at("f"), "1").unwrap();
    tokio::time::timeout(Duration::from_secs(10), fixture.watch.changed()).await.unwrap();
    assert_eq!(fixture.watch.take(), names("", &["f"]));
}

#[tokio::test]
async fn without_watches_the_tree_is_polled_and_a_flush_walks() {
    let fixture = Fixture::new(&["a"]);
    fixture.watch.refused(&path("a"), &notify::Error::new(ErrorKind::MaxFilesWatch));
    let polled = fixture.watch.polled();
    assert!(
        matches!(polled[..], [Polled { reason: PollReason::OutOfWatches { limit: 1.. }, .. }]),
        "{polled:?}"
    );
    assert_eq!(fixture.flush(), Hints::everything(Reason::Polling));
    tokio::time::timeout(Duration::from_secs(10), fixture.watch.changed()).await.unwrap();
    assert_eq!(fixture.watch.take(), Hints::everything(Reason::Polling));
    // A walk that gets all its watches ends it.
    fixture.watch_all(&["a"]);
    assert!(fixture.watch.polled().is_empty());
    fs::write(fixture.at("a/f"), "1").unwrap();
    assert_eq!(fixture.flush(), directories(&["a"]));
}

#[test]
fn a_cookie_that_cannot_be_made_means_everything() {
    let fixture = Fixture::new(&[]);
    fs::remove_dir(fixture.base.path().join("data/cookies")).unwrap();
    assert_eq!(fixture.flush(), Hints::everything(Reason::CookieLost));
}

#[test]
fn an_overflowing_queue_means_everything_and_a_new_watcher() {
    let fixture = Fixture::new(&["a"]);
    let limit: usize =
        fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    {
        // The watcher's thread waits for this lock, and the kernel's queue runs over.
        let _busy = fixture.watch.shared.state();
        for number in 0..=limit {
            fs::write(fixture.at("a").join(number.to_string()), []).unwrap();
        }
    }
    assert_eq!(fixture.flush(), Hints::everything(Reason::Overflow));
    assert_eq!(fixture.watch.prepare().unwrap().everything, Some(Reason::Watcher));
    assert_eq!(fixture.watch.watched(), 0);
    fixture.watch_all(&["a"]);
    fixture.flush();
    fs::write(fixture.at("a/1"), "1").unwrap();
    assert_eq!(fixture.flush(), directories(&["a"]));
}

#[test]
fn out_of_watches_is_polling_until_there_are_some_again() {
    let name = "watch::tests::out_of_watches_is_polling_until_there_are_some_again";
    if !crate::namespace::within(
        name,
        &["--user", "--map-root-user"],
        "echo 10 > /proc/sys/user/max_inotify_watches",
    ) {
        return;
    }
    let names: Vec<String> = (0..20).map(|number| number.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let fixture = Fixture::new(&names);
    assert!(matches!(fixture.watch.polled()[0].reason, PollReason::OutOfWatches { .. }));
    assert!((1..10).contains(&fixture.watch.watched()));
    assert_eq!(fixture.flush(), Hints::everything(Reason::Polling));
    assert_eq!(fixture.watch.prepare().unwrap().everything, Some(Reason::Polling));
    fs::write("/proc/sys/user/max_inotify_watches", "1000").unwrap();
    fixture.watch_all(&names);
    assert!(fixture.watch.polled().is_empty());
    fixture.flush();
    fs::write(fixture.at("19/f"), "1").unwrap();
    assert_eq!(fixture.flush(), directories(&["19"]));
}

#[test]
fn out_of_instances_is_polling() {
    let name = "watch::tests::out_of_instances_is_polling";
    if !crate::namespace::within(
        name,
        &["--user", "--map-root-user"],
        "echo 0 > /proc/sys/user/max_inotify_instances",
    ) {
        return;
    }
    let fixture = Fixture::new(&["a"]);
    assert!(matches!(fixture.watch.polled()[0].reason, PollReason::OutOfInstances { .. }));
    assert_eq!(fixture.flush(), Hints::everything(Reason::Polling));
}

#[tokio::test]
async fn a_mount_that_comes_or_goes_inside_the_tree_is_seen_at_once() {
    let name = "watch::tests::a_mount_that_comes_or_goes_inside_the_tree_is_seen_at_once";
    if !crate::namespace::within(name, &["--user", "--map-root-user", "--mount"], "true") {
        return;
    }
    let fixture = Fixture::new(&["a", "a/below", "b"]);
    assert_eq!(fixture.watch.prepare().unwrap().everything, None);
    let run = |command: &str, arguments: &[&str], at: &str| {
        let at = fixture.at(at);
        assert!(std::process::Command::new(command).args(arguments).arg(at).status().unwrap().success());
    };
    let seen = async |at: &[&str]| {
        tokio::time::timeout(Duration::from_secs(20), fixture.watch.changed()).await.unwrap();
        assert_eq!(fixture.watch.take(), Hints::everything(Reason::Mounts));
        let prepared = fixture.watch.prepare().unwrap();
        assert_eq!(prepared.everything, Some(Reason::Mounts));
        let inside = |point: &PathBuf| point.starts_with(prepared.root.join("a")) || point.ends_with("b");
        let points: Vec<PathBuf> = prepared.mounts.into_iter().flatten().filter(inside).collect();
        assert_eq!(points, at.iter().map(|at| prepared.root.join(at)).collect::<Vec<_>>());
    };
    run("mount", &["-t", "tmpfs", "none"], "a");
    seen(&["a"]).await;
    assert!(fixture.watch.polled().is_empty());
    // The watches are those of what is mounted, not of what it hides.
    fs::create_dir(fixture.at("a/below")).unwrap();
    fixture.watch_all(&["a", "a/below", "b"]);
    fixture.flush();
    fs::write(fixture.at("a/below/f"), "1").unwrap();
    assert_eq!(fixture.flush(), directories(&["a/below"]));
    let a = fixture.at("a");
    run("mount", &["--bind", a.to_str().unwrap()], "b");
    seen(&["a", "b"]).await;
    let polled = fixture.watch.polled();
    assert_eq!(polled, [Polled { path: path("b"), reason: PollReason::MountedTwice }]);
    assert_eq!(fixture.flush().subtrees, [path("b")].into());
    // The file system stays mounted elsewhere: no event says that this is gone.
    run("umount", &[], "b");
    seen(&["a"]).await;
    // A commit that is faster than the thread compares by itself.
    run("umount", &["--lazy"], "a");
    assert_eq!(fixture.flush(), Hints::everything(Reason::Mounts));
}

#[test]
fn a_file_that_is_written_is_open_until_it_is_closed_whatever_it_is_called() {
    use std::io::Write as _;
    let fixture = Fixture::new(&["a"]);
    let open = || {
        fixture.flush();
        let files = fixture.watch.open_files(Duration::from_secs(600));
        files.into_iter().map(|file| file.path.to_string()).collect::<Vec<_>>()
    };
    fs::write(fixture.at("a/before"), "1").unwrap();
    assert!(open().is_empty());
    let mut file = fs::File::create(fixture.at("a/.new")).unwrap();
    file.write_all(b"half").unwrap();
    assert_eq!(open(), ["a/.new"]);
    fs::rename(fixture.at("a/.new"), fixture.at("big")).unwrap();
    assert_eq!(open(), ["big"]);
    drop(file);
    assert!(open().is_empty());
    // A writer that is older than the watch.
    let base = tempfile::tempdir().unwrap();
    fs::create_dir(base.path().join("tree")).unwrap();
    let mut file = fs::File::create(base.path().join("tree/log")).unwrap();
    let fixture = Fixture::over(base, &[]);
    file.write_all(b"line").unwrap();
    fixture.flush();
    assert_eq!(fixture.watch.open_files(Duration::from_secs(600)).len(), 1);
    assert!(fixture.watch.open_files(Duration::ZERO).is_empty(), "idle");
}
