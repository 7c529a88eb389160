//! Git repositories as the source of trees. The repositories are made by git itself.

#[path = "git/collected.rs"]
mod collected;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use syncd_tests::edits::write;
use syncd_tests::{Origin, OriginStatus, Scene, require_program, wait};

/// A repository with a work tree.
struct Repository {
    path: PathBuf,
    /// Seconds of the next commit, so that commits are reproducible.
    clock: u64,
}

impl Repository {
    fn create(scene: &Scene, name: &str) -> Self {
        let path = scene.new_directory(name);
        git(&path, &["init", "-q", "-b", "main"]);
        Self { path, clock: 1_700_000_000 }
    }

    fn git(&self, args: &[&str]) -> String {
        git_at(&self.path, self.clock, args)
    }

    /// Commits the whole work tree, a minute after the commit before.
    fn commit(&mut self, subject: &str) -> String {
        self.clock += 60;
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "--allow-empty", "-m", subject]);
        self.git(&["rev-parse", "HEAD"])
    }
}

fn git(directory: &Path, args: &[&str]) -> String {
    git_at(directory, 1_700_000_000, args)
}

fn git_at(directory: &Path, seconds: u64, args: &[&str]) -> String {
    let mut command = Command::new(require_program("git", "git"));
    command.arg("-C").arg(directory).args(args);
    let date = format!("{seconds} +0000");
    command.env("GIT_AUTHOR_DATE", &date).env("GIT_COMMITTER_DATE", &date);
    for (name, value) in [("NAME", "T"), ("EMAIL", "t@example.org")] {
        command.env(format!("GIT_AUTHOR_{name}"), value).env(format!("GIT_COMMITTER_{name}"), value);
    }
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
    let output = command.output().expect("run git");
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn origin(scene: &Scene, name: &str, tree: &Path, options: &[&str]) -> Origin {
    let all: Vec<&str> = ["--trigger", "git"].iter().chain(options).copied().collect();
    let mut origin = Origin::create_named(scene, name, tree).with_options(&all);
    origin.start();
    origin
}

/// Waits until the label of the current generation begins with the commit.
#[track_caller]
fn published(origin: &Origin, commit: &str) -> OriginStatus {
    wait::until_ok("the commit to be published", || {
        let status = origin.status();
        match status.label.as_deref() {
            Some(label) if label.starts_with(&commit[..10]) => Ok(status),
            _ => Err(format!("{status:?}")),
        }
    })
}

/// Waits until the origin is held for this reason.
#[track_caller]
fn held(origin: &Origin, reason: &str) {
    wait::until_ok("the origin to be held", || {
        let status = origin.status();
        match (status.state.as_str(), &status.reason) {
            ("held", Some(text)) if text.contains(reason) => Ok(()),
            _ => Err(format!("{status:?}")),
        }
    });
}

fn diff(origin: &Origin) -> String {
    origin.cli("diff", &[]).expect_success().stdout
}

#[test]
fn what_is_committed_is_published_and_uncommitted_files_are_not() {
    let scene = Scene::new("git-commit");
    let mut repository = Repository::create(&scene, "site");
    write(&repository.path, "index.html", "one");
    write(&repository.path, "a/b/page.html", "page");
    write(&repository.path, "a/other.html", "other");
    let first = repository.commit("first");
    let origin = origin(&scene, "origin", &repository.path, &[]);
    let status = published(&origin, &first);
    assert_eq!(
        (status.files, status.label.as_deref()),
        (3, Some(format!("{} first", &first[..10]).as_str()))
    );

    write(&repository.path, "uncommitted", "no");
    write(&repository.path, "a/b/page.html", "another page");
    repository.git(&["add", "a"]);
    repository.git(&["commit", "-q", "-m", "second"]);
    let second = repository.git(&["rev-parse", "HEAD"]);
    let status = published(&origin, &second);
    assert_eq!(status.files, 3);
    let changes = diff(&origin);
    assert!(changes.contains("a/b/page.html"), "{changes}");
    assert!(!changes.contains("index.html") && !changes.contains("other.html"), "{changes}");
}

#[test]
fn a_push_into_a_bare_repository_is_published_and_so_is_a_forced_one() {
    let scene = Scene::new("git-push");
    let mut repository = Repository::create(&scene, "work");
    let bare = scene.path("site.git");
    git(scene.directory(), &["init", "-q", "--bare", "-b", "main", "site.git"]);
    git(&bare, &["config", "receive.denyDeleteCurrent", "ignore"]);
    let remote = bare.to_str().expect("a path").to_owned();
    write(&repository.path, "index.html", "one");
    write(&repository.path, "kept.html", "kept");
    let first = repository.commit("first");
    repository.git(&["push", "-q", &remote, "main"]);
    let mut origin = origin(&scene, "origin", &bare, &["--git-ref", "main"]);
    let one = published(&origin, &first);

    write(&repository.path, "index.html", "two");
    let second = repository.commit("second");
    repository.git(&["push", "-q", &remote, "main"]);
    let two = published(&origin, &second);
    assert_ne!(one.root, two.root);

    // A rewind gives the tree of the first commit, to the byte and the second.
    repository.git(&["reset", "-q", "--hard", &first]);
    repository.git(&["push", "-q", "-f", &remote, "main"]);
    assert_eq!(published(&origin, &first).root, one.root);

    // Another line, and references that are packed.
    write(&repository.path, "index.html", "three");
    let third = repository.commit("third");
    repository.git(&["push", "-q", "-f", &remote, "main"]);
    git(&bare, &["pack-refs", "--all"]);
    git(&bare, &["gc", "-q", "--prune=now"]);
    let three = published(&origin, &third);

    // Killed between a push and what follows: it is published after the next start.
    origin.kill9();
    write(&repository.path, "index.html", "four");
    let fourth = repository.commit("fourth");
    repository.git(&["push", "-q", &remote, "main"]);
    origin.start();
    let four = published(&origin, &fourth);
    assert!(four.generation > three.generation);

    repository.git(&["push", "-q", &remote, ":main"]);
    held(&origin, "has no main");
    repository.git(&["push", "-q", &remote, "main"]);
    wait::until("the origin to go on", || (origin.status().state == "ready").then_some(()));
    assert_eq!(origin.status().root, four.root);
}

#[test]
fn the_same_commit_has_the_same_root_on_any_machine_and_however_it_came() {
    for mtime in ["file-commit", "commit"] {
        let scene = Scene::new("git-root");
        let mut repository = Repository::create(&scene, "one");
        let options = ["--git-mtime", mtime, "--git-ref", "main"];
        write(&repository.path, "index.html", "one");
        write(&repository.path, "d/e/run.sh", "#!/bin/sh");
        let script = repository.path.join("d/e/run.sh");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("make a script");
        std::os::unix::fs::symlink("index.html", repository.path.join("link")).expect("make a link");
        let mut last = repository.commit("first");
        // Work goes on elsewhere, so that several commits come at once.
        repository.git(&["checkout", "-q", "-b", "work"]);
        let followed = origin(&scene, "followed", &repository.path, &options);
        let mut root = published(&followed, &last).root;
        for (path, content) in
            [("d/new", "n"), ("index.html", "two"), ("index.html", "one"), ("d/e/x/y", "y")]
        {
            write(&repository.path, path, content);
            last = repository.commit(path);
            if path != "index.html" {
                repository.git(&["branch", "-q", "-f", "main", "work"]);
                root = published(&followed, &last).root;
            }
        }
        repository.git(&["rm", "-q", "-r", "d/e/x"]);
        last = repository.commit("removed");
        repository.git(&["branch", "-q", "-f", "main", "work"]);
        root = published(&followed, &last).root.or(root);
        git(scene.directory(), &["clone", "-q", "--no-local", "-b", "main", "one", "two"]);
        let clone = scene.path("two");
        for directory in ["d", "d/e", "."] {
            let closed = fs::Permissions::from_mode(0o700);
            fs::set_permissions(clone.join(directory), closed).expect("change a mode");
        }
        let at_once = origin(&scene, "at-once", &clone, &options);
        assert_eq!(published(&at_once, &last).root, root, "{mtime}");
    }
}

#[test]
fn a_change_of_one_file_reads_one_file() {
    let scene = Scene::new("git-one");
    let mut repository = Repository::create(&scene, "site");
    for number in 0..3_000 {
        write(&repository.path, &format!("d{}/e{}/f{number}", number % 30, number % 7), number.to_string());
    }
    let first = repository.commit("first");
    let mut origin = origin(&scene, "origin", &repository.path, &[]);
    published(&origin, &first);
    origin.stop();
    // The log of the second process alone is looked at.
    let mut origin = traced(origin);
    origin.start();
    write(&repository.path, "d3/e3/f3", "changed");
    let second = repository.commit("second");
    published(&origin, &second);
    let log = origin.daemon().log();
    let line = log.lines().find(|line| line.contains("read the commit")).expect("a line of the log");
    assert!(line.contains("files_read=1 ") && line.contains("partly=true"), "{line}");
}

fn traced(mut origin: Origin) -> Origin {
    origin.under(&["env".into(), "SYNCD_LOG=debug".into()]);
    origin
}

#[test]
fn submodules_pointers_of_lfs_and_shallow_clones_are_refused_unless_told_otherwise() {
    let scene = Scene::new("git-refused");
    let mut repository = Repository::create(&scene, "site");
    write(&repository.path, "index.html", "one");
    let first = repository.commit("first");
    let serving = origin(&scene, "origin", &repository.path, &[]);
    published(&serving, &first);

    repository.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{first},theme")]);
    repository.git(&["commit", "-q", "-m", "submodule"]);
    held(&serving, "theme is a submodule");
    assert_eq!(serving.status().generation, Some(1));
    let ignoring = origin(&scene, "ignoring", &repository.path, &["--git-submodules", "ignore"]);
    assert_eq!(published(&ignoring, &repository.git(&["rev-parse", "HEAD"])).files, 1);

    repository.git(&["reset", "-q", "--hard", &first]);
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n";
    write(&repository.path, "video.mp4", pointer);
    let with_pointer = repository.commit("pointer");
    held(&serving, "video.mp4 is a pointer of git-lfs");
    let taking = origin(&scene, "taking", &repository.path, &["--git-lfs", "pointer"]);
    assert_eq!(published(&taking, &with_pointer).files, 2);

    let from = format!("file://{}", repository.path.display());
    git(scene.directory(), &["clone", "-q", "--depth", "1", &from, "shallow"]);
    let shallow = origin(&scene, "shallow-origin", &scene.path("shallow"), &["--git-lfs", "pointer"]);
    held(&shallow, "is a shallow clone");
}

#[test]
fn a_damaged_object_holds_the_origin() {
    let scene = Scene::new("git-damage");
    let mut repository = Repository::create(&scene, "site");
    write(&repository.path, "index.html", "one");
    let first = repository.commit("first");
    let origin = origin(&scene, "origin", &repository.path, &[]);
    published(&origin, &first);
    write(&repository.path, "index.html", "two");
    repository.git(&["add", "-A"]);
    let blob = repository.git(&["rev-parse", ":index.html"]);
    let object = repository.path.join(".git/objects").join(&blob[..2]).join(&blob[2..]);
    let other = repository.git(&["rev-parse", "HEAD:index.html"]);
    let good = fs::read(&object).expect("read an object");
    fs::set_permissions(&object, fs::Permissions::from_mode(0o644)).expect("open an object");
    fs::copy(repository.path.join(".git/objects").join(&other[..2]).join(&other[2..]), &object)
        .expect("damage an object");
    repository.commit("second");
    held(&origin, "git fsck");
    fs::set_permissions(&object, fs::Permissions::from_mode(0o644)).expect("open an object");
    fs::write(&object, good).expect("mend the object");
    published(&origin, &repository.git(&["rev-parse", "HEAD"]));
}

#[test]
fn a_rollback_holds_until_the_reference_moves() {
    let scene = Scene::new("git-rollback");
    let mut repository = Repository::create(&scene, "site");
    write(&repository.path, "index.html", "one");
    let first = repository.commit("first");
    let mut origin = origin(&scene, "origin", &repository.path, &[]);
    let one = published(&origin, &first);
    write(&repository.path, "index.html", "two");
    let second = repository.commit("second");
    published(&origin, &second);
    origin.cli("rollback", &["1"]).expect_success();
    held(&origin, "rollback");
    origin.stop();
    origin.start();
    let status = origin.status();
    assert_eq!((status.state.as_str(), &status.root), ("held", &one.root), "{status:?}");
    write(&repository.path, "index.html", "three");
    let third = repository.commit("third");
    assert_eq!(published(&origin, &third).state, "ready");
}
