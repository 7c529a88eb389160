//! Content that changes while its time does not: what is counted, and what `--mtime distinct` makes of it.

use std::collections::{BTreeMap, HashMap};

use syncd_shared::diff::DirectorySource as _;
use syncd_shared::{ContentHash, Entry, Kind, TreePath};

use super::*;
use crate::tree_objects::TreeObjects;

/// npm dates every file of its packages like this.
const SECOND: i64 = 499_162_500;

impl Site {
    fn distinct() -> Self {
        Self { mtime: MtimePolicy::Distinct, ..Self::new(0) }
    }

    /// A file of this content and time. No scan sees it with another time. If it replaces one, its directory
    /// keeps its time, as after a change in place.
    fn dated(&self, name: &str, content: &str, second: i64) {
        let (path, new) = (self.tree().join(name), self.directory.path().join("new"));
        let directory = path.parent().unwrap();
        fs::create_dir_all(directory).unwrap();
        let before = path.exists().then(|| directory.metadata().unwrap().modified().unwrap());
        fs::write(&new, content).unwrap();
        let time = std::time::UNIX_EPOCH + Duration::from_secs(second.unsigned_abs());
        fs::File::options().write(true).open(&new).unwrap().set_modified(time).unwrap();
        fs::rename(&new, &path).unwrap();
        if let Some(before) = before {
            fs::File::open(directory).unwrap().set_modified(before).unwrap();
        }
    }
}

/// The files of each retained generation, by path: content and time. The origin has stopped.
fn published(site: &Site) -> BTreeMap<u64, BTreeMap<TreePath, (ContentHash, i64)>> {
    let store = Store::open(&site.data()).unwrap();
    let mut all = BTreeMap::new();
    for stored in store.generations().unwrap() {
        let mut files = BTreeMap::new();
        let mut stack = vec![(TreePath::root(), stored.generation.root.object)];
        while let Some((path, object)) = stack.pop() {
            for Entry { name, metadata, kind } in
                TreeObjects::Store(&store).directory(&object).unwrap().entries()
            {
                let path = path.join(name).unwrap();
                match kind {
                    Kind::Directory { object, .. } => stack.push((path, *object)),
                    Kind::File { content, .. } => {
                        files.insert(path, (*content, metadata.mtime.seconds));
                    }
                    Kind::Symlink { .. } | Kind::Collected { .. } => {}
                }
            }
        }
        all.insert(stored.generation.number.get(), files);
    }
    all
}

/// The second of a file of a generation.
fn second(site: &Site, generation: u64, name: &str) -> i64 {
    published(site)[&generation][&TreePath::from_bytes(name.as_bytes()).unwrap()].1
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_without_a_new_second_are_counted_and_named() {
    let site = Site::new(0);
    (0..7).for_each(|n| site.dated(&format!("f{n}"), "old", SECOND));
    site.dated("d/later", "old", SECOND);
    site.dated("d/same", "as it was", SECOND);
    let origin = site.serve(Trigger::Manual).await;
    sealed(commit(&origin).await);
    assert_eq!(site.status().await.warnings, [] as [String; 0]);
    // The size changes as well: OPcache compares only the second.
    (0..7).for_each(|n| site.dated(&format!("f{n}"), "new and longer", SECOND));
    site.dated("d/later", "new", SECOND + 1);
    let answer = origin.committer().commit(CommitOptions::default()).await;
    let names = ["f0", "f1", "f2", "f3", "f4"].map(String::from).to_vec();
    assert_eq!(answer.times.indistinct, SomeFiles { files: 7, paths: names });
    assert_eq!(answer.times.retimed, SomeFiles::default());
    let remark = "7 files with new content and the same second of modification as before: f0, f1, f2, f3, f4 and 2 more.";
    assert!(answer.remarks[0].starts_with(remark), "{:?}", answer.remarks);

    let warned = |status: Status| status.warnings.iter().any(|w| w.contains(remark));
    assert!(warned(site.status().await));
    let lines = site.ask(Asked::Diff { from: None, to: None, pending: false }).await;
    let told = lines.iter().filter(|line| matches!(line, Answer::Diff(line) if line.indistinct)).count();
    assert_eq!(told, 7, "{lines:?}");
    origin.stop().await;
    let origin = site.serve(Trigger::Manual).await;
    assert!(warned(site.status().await), "it is kept");
    // A commit of something else ends it.
    site.dated("d/later", "newer", SECOND + 2);
    assert_eq!(origin.committer().commit(CommitOptions::default()).await.remarks, [] as [String; 0]);
    assert!(!warned(site.status().await));
    // Going back is such a change as well.
    sealed(rollback(&origin, 1).await);
    assert!(warned(site.status().await));
    origin.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn distinct_times_rise_with_each_change_and_stay_where_nothing_changes() {
    let site = Site::distinct();
    site.dated("a.php", "one", SECOND);
    site.dated("b.php", "stays", SECOND);
    let origin = site.serve(Trigger::Manual).await;
    sealed(commit(&origin).await);
    site.dated("a.php", "two", SECOND);
    let answer = origin.committer().commit(CommitOptions::default()).await;
    assert_eq!(answer.times.retimed, SomeFiles { files: 1, paths: vec!["a.php".into()] });
    assert_eq!(answer.times.indistinct, SomeFiles::default());
    sealed(answer.result);
    assert!(matches!(commit(&origin).await, Ok(Outcome::Unchanged(_))));
    origin.stop().await;
    assert_eq!((second(&site, 2, "a.php"), second(&site, 2, "b.php")), (SECOND + 1, SECOND));

    // Neither a restart, nor a look at every byte, nor a fresh checkout is a change.
    let origin = site.serve(Trigger::Manual).await;
    let rescan = CommitOptions { rescan: true, ..CommitOptions::default() };
    let again = origin.committer().commit(rescan).await.result;
    assert!(matches!(again, Ok(Outcome::Unchanged(_))), "{again:?}");
    site.dated("a.php", "two", SECOND + 50);
    let again = commit(&origin).await;
    assert!(matches!(again, Ok(Outcome::Unchanged(_))), "{again:?}");
    // A time that is late enough is published as it is; an earlier one after it is not.
    site.dated("a.php", "three", SECOND + 50);
    sealed(commit(&origin).await);
    site.dated("a.php", "four", SECOND);
    site.dated("c.php", "new", SECOND);
    sealed(commit(&origin).await);
    origin.stop().await;
    assert_eq!((second(&site, 3, "a.php"), second(&site, 4, "a.php")), (SECOND + 50, SECOND + 51));
    assert_eq!(second(&site, 4, "c.php"), SECOND);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_taken_back_before_it_is_published_is_none() {
    let site = Site::distinct();
    site.dated("a.php", "one", SECOND);
    let origin = site.serve(SETTLE).await;
    generation(&origin, 1).await;
    site.dated("a.php", "two", SECOND);
    generation(&origin, 2).await;
    origin.stop().await;
    let origin = site.serve(Trigger::Manual).await;
    site.dated("a.php", "three", SECOND);
    // A look makes it the base of the next scan.
    site.ask(Asked::Diff { from: None, to: None, pending: true }).await;
    site.dated("a.php", "two", SECOND);
    let again = commit(&origin).await;
    assert!(matches!(again, Ok(Outcome::Unchanged(_))), "{again:?}");
    origin.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_gone_or_rolled_back_gets_no_second_twice() {
    let site = Site::distinct();
    site.dated("d/a.php", "one", SECOND);
    site.dated("keep", "it", SECOND);
    let origin = site.serve(Trigger::Manual).await;
    sealed(commit(&origin).await);
    site.dated("d/a.php", "two", SECOND);
    sealed(commit(&origin).await);
    fs::remove_dir_all(site.tree().join("d")).unwrap();
    sealed(commit(&origin).await);
    origin.stop().await;
    let origin = site.serve(Trigger::Manual).await;
    site.dated("d/a.php", "three", SECOND);
    sealed(commit(&origin).await);
    sealed(rollback(&origin, 1).await);
    // The generation that was put aside is published again unchanged.
    sealed(commit(&origin).await);
    sealed(rollback(&origin, 1).await);
    site.dated("d/a.php", "four", SECOND);
    sealed(commit(&origin).await);
    // Moved away whole, and back with other content.
    fs::rename(site.tree().join("d"), site.tree().join("e")).unwrap();
    sealed(commit(&origin).await);
    fs::rename(site.tree().join("e"), site.tree().join("d")).unwrap();
    site.dated("d/a.php", "five", SECOND);
    sealed(commit(&origin).await);
    origin.stop().await;
    let of = |generation| second(&site, generation, "d/a.php") - SECOND;
    assert_eq!([1, 2, 4, 5, 6, 7, 8, 10].map(of), [0, 1, 2, 0, 2, 0, 3, 4]);
    assert_eq!(second(&site, 9, "e/a.php"), SECOND, "a new path");
}

/// Random edits of few files and few times, commits, rollbacks and restarts: no second of a path ever has two
/// contents, and unchanged content keeps its time.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_a_second_of_a_path_has_one_content() {
    let site = Site::distinct();
    site.dated("keep", "it", SECOND);
    let mut random = 7u64;
    let mut below = move |n: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % n
    };
    let mut origin = site.serve(Trigger::Manual).await;
    let (mut newest, mut rolled_back) = (0, Vec::new());
    for _ in 0..120 {
        let name = ["a", "d/a", "d/b", "e/f/a"][below(4) as usize];
        match below(8) {
            0..4 => {
                if site.tree().join(name).parent().unwrap().is_file() {
                    continue;
                }
                site.dated(name, &"x".repeat(1 + below(6) as usize), SECOND + below(3) as i64);
            }
            4 => {
                let directory = ["a", "d", "e/f"][below(3) as usize];
                let path = site.tree().join(directory);
                let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            }
            5 if newest > 1 && below(2) == 0 => {
                if let Ok(Outcome::Sealed(generation)) = rollback(&origin, 1 + below(newest)).await {
                    newest = generation.number().get();
                    rolled_back.push(newest);
                }
            }
            6 if below(4) == 0 => {
                origin.stop().await;
                origin = site.serve(Trigger::Manual).await;
            }
            _ => {
                if let Outcome::Sealed(generation) = commit_mass_deletion(&origin).await.unwrap() {
                    newest = generation.number().get();
                }
            }
        }
    }
    origin.stop().await;
    let all = published(&site);
    let mut contents = HashMap::new();
    for (generation, files) in &all {
        for (path, (content, second)) in files {
            let known = *contents.entry((path.clone(), *second)).or_insert(*content);
            assert_eq!(known, *content, "{path} of generation {generation} at {second}");
            let before =
                generation.checked_sub(1).and_then(|before| all.get(&before)).and_then(|b| b.get(path));
            if let Some((before, then)) = before.filter(|(before, _)| before == content) {
                let is_rollback = rolled_back.contains(generation);
                assert!(is_rollback || then == second, "{path} of generation {generation}: {before}");
            }
        }
    }
    assert!(all.len() > 20 && rolled_back.len() > 2, "{} {}", all.len(), rolled_back.len());
}
