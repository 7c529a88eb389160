use std::path::Path;

use syncd_shared::collected::{Answer, FileState, State, Verdict, VersionNumber};
use syncd_shared::directory::Timestamp;

use super::*;

fn options(max_bytes: u64, losers_max_bytes: u64) -> CollectedOptions {
    CollectedOptions {
        name: name(),
        path: path("wp-content/uploads"),
        owner: (33, 33),
        deny: vec!["*.php".into(), ".htaccess".into()],
        ignore: vec!["*.part".into()],
        max_bytes,
        node_max_bytes: None,
        past_max_bytes: 1_000,
        losers_max_bytes,
        rate: None,
    }
}

fn name() -> CollectedName {
    "uploads".parse().unwrap()
}

fn path(text: &str) -> TreePath {
    TreePath::from_bytes(text.as_bytes()).unwrap()
}

fn open(data: &Path) -> Collection {
    Collection::open(data, vec![options(1_000_000, 1_000)]).unwrap()
}

fn file(text: &str) -> State {
    let (content, size) = (ContentHash::of(text.as_bytes()), text.len() as u64);
    State::File(FileState { content, size, mode: 0o644, mtime: Timestamp::default() })
}

fn upload(collection: &Collection, text: &str) {
    let mut upload =
        collection.contents().upload(ContentHash::of(text.as_bytes()), text.len() as u64).unwrap();
    upload.write(text.as_bytes()).unwrap();
    upload.finish().unwrap();
}

async fn decide(collection: &Collection, at: &str, base: u64, state: State) -> Decision {
    let change = Change { base: VersionNumber::new(base), state };
    let change = NodeChange { directory: name(), node: "web-1".into(), path: path(at), change };
    collection.submit(change).await.unwrap()
}

/// Uploads the content and has the change judged. Returns the verdict and the number of the current version.
async fn change(collection: &Collection, at: &str, base: u64, text: Option<&str>) -> (Verdict, u64) {
    if let Some(text) = text {
        upload(collection, text);
    }
    match decide(collection, at, base, text.map_or(State::Absent, file)).await {
        Decision::Answered(Answer { verdict, current }) => (verdict, current.number.get()),
        other => panic!("{other:?}"),
    }
}

fn losers(collection: &Collection) -> Vec<Loser> {
    collection.losers(&name()).unwrap().into_iter().map(|(_, loser)| loser).collect()
}

fn has(collection: &Collection, text: &str) -> bool {
    collection.contents().has(&ContentHash::of(text.as_bytes()), text.len() as u64)
}

fn versions(collection: &Collection, after: u64) -> Vec<(String, u64, State)> {
    let found = collection.versions(&name(), after, 100).unwrap();
    found.into_iter().map(|(path, v)| (path.to_string(), v.number.get(), v.state)).collect()
}

#[tokio::test]
async fn a_change_is_durable_once_it_is_answered() {
    let data = tempfile::tempdir().unwrap();
    let collection = open(data.path());
    assert_eq!(change(&collection, "a/x.jpg", 0, Some("one")).await, (Verdict::Take, 1));
    assert_eq!(change(&collection, "a/y.jpg", 0, Some("two")).await, (Verdict::Take, 2));
    assert_eq!(change(&collection, "a/x.jpg", 1, Some("three")).await, (Verdict::Take, 3));
    let expected = vec![("a/y.jpg".into(), 2, file("two")), ("a/x.jpg".into(), 3, file("three"))];
    assert_eq!(versions(&collection, 0), expected);
    assert_eq!(versions(&collection, 2), expected[1..]);
    let line = collection.line();
    drop(collection);
    let collection = open(data.path());
    assert_eq!((versions(&collection, 0), collection.line()), (expected, line));
    assert!(has(&collection, "one"), "a past version keeps its content");
    assert_eq!(change(&collection, "a/x.jpg", 3, None).await, (Verdict::Take, 4));
    assert_eq!(versions(&collection, 3), [("a/x.jpg".into(), 4, State::Absent)]);
}

#[tokio::test]
async fn a_change_without_its_content_is_not_judged() {
    let data = tempfile::tempdir().unwrap();
    let collection = open(data.path());
    assert_eq!(decide(&collection, "x", 0, file("one")).await, Decision::NeedsContent);
    assert_eq!((versions(&collection, 0).len(), collection.newest(&name()).unwrap()), (0, 0));
    assert_eq!(change(&collection, "x", 0, Some("one")).await, (Verdict::Take, 1));
    assert_eq!(change(&collection, "y", 0, Some("one")).await, (Verdict::Take, 2), "no upload is needed");
}

#[tokio::test]
async fn a_content_that_is_not_what_was_announced_is_not_kept() {
    let data = tempfile::tempdir().unwrap();
    let collection = open(data.path());
    let announced = ContentHash::of(b"good");
    let mut wrong = collection.contents().upload(announced, 4).unwrap();
    wrong.write(b"evil").unwrap();
    assert!(matches!(wrong.finish(), Err(CollectError::Content { .. })));
    let mut long = collection.contents().upload(announced, 4).unwrap();
    assert!(matches!(long.write(b"good and more"), Err(CollectError::Size { .. })));
    drop(long);
    let short = collection.contents().upload(announced, 4).unwrap();
    assert!(matches!(short.finish(), Err(CollectError::Size { .. })));
    assert!(!has(&collection, "good"));
    assert_eq!(std::fs::read_dir(data.path().join("collected/incoming")).unwrap().count(), 0);
}

#[test]
fn a_content_that_is_here_is_not_replaced_by_another_upload() {
    use std::os::unix::fs::MetadataExt;

    let data = tempfile::tempdir().unwrap();
    let collection = open(data.path());
    let content = ContentHash::of(b"one");
    let file = || collection.contents().open_content(&content).unwrap();
    upload(&collection, "one");
    let first = file();
    upload(&collection, "one");
    assert_eq!(first.metadata().unwrap().ino(), file().metadata().unwrap().ino());
    // Damage shows in the size.
    let path =
        data.path().join("collected/contents").join(&content.to_string()[..2]).join(content.to_string());
    std::fs::write(path, "on").unwrap();
    assert!(!has(&collection, "one"));
    upload(&collection, "one");
    assert!(has(&collection, "one"));
}

#[tokio::test]
async fn after_a_failed_sync_nodes_are_asked_for_contents_again() {
    let data = tempfile::tempdir().unwrap();
    let collection = open(data.path());
    assert_eq!(change(&collection, "durable", 0, Some("durable")).await, (Verdict::Take, 1));
    upload(&collection, "one");
    upload(&collection, "two");
    // The sync can't open this one.
    let lost = ContentHash::of(b"one");
    let path = data.path().join("collected/contents").join(&lost.to_string()[..2]).join(lost.to_string());
    std::fs::remove_file(path).unwrap();
    let begin = || {
        let mut begun = collection.contents().upload(ContentHash::of(b"three"), 5).unwrap();
        begun.write(b"three").unwrap();
        begun
    };
    let before = begin();
    collection.contents().sync(&[lost].into()).unwrap_err();
    assert!(!has(&collection, "two"), "nobody knows whether it is damaged");
    assert!(matches!(before.finish(), Err(CollectError::LostInSync)), "nor whether this one is");
    begin().finish().unwrap();
    assert!(has(&collection, "durable"));
    assert_eq!(decide(&collection, "two", 0, file("two")).await, Decision::NeedsContent);
    assert_eq!(change(&collection, "two", 0, Some("two")).await, (Verdict::Take, 2));
    collection.contents().sync(&[ContentHash::of(b"two")].into()).unwrap();
}

#[tokio::test]
async fn a_loser_is_kept_within_a_bound_of_bytes() {
    let data = tempfile::tempdir().unwrap();
    let collection = open(data.path());
    let large: Vec<String> = (0..4).map(|n| n.to_string().repeat(400)).collect();
    assert_eq!(change(&collection, "x", 0, Some("first")).await, (Verdict::Take, 1));
    for text in &large {
        assert_eq!(change(&collection, "x", 0, Some(text)).await, (Verdict::Conflict, 1));
        assert_eq!(change(&collection, "x", 0, Some(text)).await, (Verdict::Conflict, 1), "sent again");
    }
    let kept: Vec<ContentHash> = losers(&collection).iter().map(|loser| loser.file.content).collect();
    let newest: Vec<ContentHash> = large[2..].iter().map(|t| ContentHash::of(t.as_bytes())).collect();
    assert_eq!(kept, newest);
    let there: Vec<bool> = large.iter().map(|text| has(&collection, text)).collect();
    assert_eq!(there, [false, false, true, true]);
    drop(collection);
    let collection = open(data.path());
    assert_eq!((losers(&collection).len(), collection.figures(&name()).unwrap().conflicts), (2, 2));
    let newest = collection.newest_losers(&name(), 1).unwrap();
    assert_eq!(newest.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [4]);
}

#[tokio::test]
async fn a_conflict_is_settled_once_its_content_is_current() {
    let data = tempfile::tempdir().unwrap();
    let collection = open(data.path());
    for path in ["x", "x/1"] {
        // Elsewhere the same content is another conflict.
        let winner = format!("the winner of {path}");
        let number = change(&collection, path, 0, Some(&winner)).await.1;
        assert_eq!(change(&collection, path, 0, Some("loser")).await, (Verdict::Conflict, number));
        change(&collection, path, number, None).await;
    }
    let [first, second] = [0, 1].map(|at| collection.losers(&name()).unwrap()[at].clone());
    assert_eq!((&first.1.path, &second.1.path), (&path("x"), &path("x/1")));
    assert_eq!(collection.loser(&name(), first.0).unwrap(), first.1);
    // Another content settles nothing.
    let number = change(&collection, "x", 2, Some("other")).await.1;
    assert_eq!(collection.figures(&name()).unwrap().conflicts, 2);
    assert_eq!(change(&collection, "x", number, Some("loser")).await.0, Verdict::Take);
    assert_eq!(collection.losers(&name()).unwrap(), [second]);
    assert_eq!(collection.figures(&name()).unwrap().conflicts, 1);
    assert!(has(&collection, "loser"));
}

#[tokio::test]
async fn conflicts_are_dismissed_together_or_not_at_all() {
    let data = tempfile::tempdir().unwrap();
    let collection = open(data.path());
    change(&collection, "x", 0, Some("winner")).await;
    for text in ["one", "two", "three"] {
        assert_eq!(change(&collection, "x", 0, Some(text)).await, (Verdict::Conflict, 1));
    }
    let same = collection.clone();
    let refused = blocking(move || same.dismiss(&name(), vec![1, 7])).await.unwrap_err();
    assert!(matches!(*refused, CollectError::NoConflict { number: 7 }), "{refused}");
    assert_eq!((losers(&collection).len(), has(&collection, "one")), (3, true));
    let same = collection.clone();
    blocking(move || same.dismiss(&name(), vec![1, 3])).await.unwrap();
    let left: Vec<u64> = collection.losers(&name()).unwrap().iter().map(|(number, _)| *number).collect();
    assert_eq!((left, collection.figures(&name()).unwrap().conflicts), (vec![2], 1));
    collection.barrier().await;
    let there = ["winner", "one", "two", "three"].map(|text| has(&collection, text));
    assert_eq!(there, [true, false, true, false]);
}

#[tokio::test]
async fn figures_follow_every_change_and_say_that_they_moved() {
    let data = tempfile::tempdir().unwrap();
    let collection = open(data.path());
    let mut changes = collection.figure_changes();
    let mut figures = || {
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        let DirectoryFigures { files, bytes, conflicts, refused, .. } = collection.figures(&name()).unwrap();
        (files, bytes, conflicts, refused)
    };
    change(&collection, "a/x.jpg", 0, Some("one")).await;
    assert_eq!(figures(), (1, 3, 0, 0));
    decide(&collection, "empty", 0, State::Directory { mode: 0o755 }).await;
    assert_eq!(figures(), (1, 3, 0, 0));
    change(&collection, "a/x.jpg", 1, Some("three")).await;
    assert_eq!(figures(), (1, 5, 0, 0));
    assert_eq!(change(&collection, "a/x.jpg", 1, Some("two")).await.0, Verdict::Conflict);
    assert_eq!(figures(), (1, 5, 1, 0));
    decide(&collection, "shell.php", 0, file("two")).await;
    assert_eq!(figures(), (1, 5, 1, 1));
    decide(&collection, "shell.php", 0, State::Absent).await;
    assert_eq!(figures(), (1, 5, 1, 0));
    change(&collection, "a/x.jpg", 3, None).await;
    assert_eq!(figures(), (0, 0, 1, 0));
    drop(changes);
    drop(collection);
    assert_eq!(open(data.path()).figures(&name()).unwrap().conflicts, 1);
}

#[tokio::test]
async fn past_contents_are_given_up_oldest_first() {
    let data = tempfile::tempdir().unwrap();
    let collection = open(data.path());
    let large: Vec<String> = ["1", "2", "3"].iter().map(|text| text.repeat(400)).collect();
    change(&collection, "old", 0, Some(&large[0])).await;
    change(&collection, "new", 0, Some(&large[1])).await;
    change(&collection, "other", 0, Some(&large[2])).await;
    // The first version of all is the last that becomes past.
    change(&collection, "new", 2, Some("a")).await;
    change(&collection, "other", 3, None).await;
    change(&collection, "old", 1, Some("b")).await;
    let there: Vec<bool> = large.iter().map(|text| has(&collection, text)).collect();
    assert_eq!(there, [true, false, true]);
    let kept = |at: &str| {
        let history = collection.history(&name(), &path(at)).unwrap();
        history.iter().map(|version| version.is_kept).collect::<Vec<_>>()
    };
    assert_eq!((kept("new"), kept("old")), (vec![false, true], vec![true, true]));
    assert_eq!(change(&collection, "new", 0, Some(&large[1])).await.0, Verdict::Old, "it stays old");
    drop(collection);
    let collection = open(data.path());
    assert_eq!(change(&collection, "old", 6, Some("c")).await.0, Verdict::Take);
    assert!(has(&collection, "b") && has(&collection, &large[0]), "others make no room any more");
}

#[tokio::test]
async fn a_content_stays_while_anything_uses_it() {
    let data = tempfile::tempdir().unwrap();
    let collection = open(data.path());
    let (one, two) = ("1".repeat(600), "2".repeat(600));
    change(&collection, "x", 0, Some("first")).await;
    assert_eq!(change(&collection, "x", 0, Some(&one)).await, (Verdict::Conflict, 1));
    assert_eq!(change(&collection, "y", 0, Some(&one)).await, (Verdict::Take, 2));
    assert_eq!(change(&collection, "x", 0, Some(&two)).await, (Verdict::Conflict, 1));
    assert_eq!(losers(&collection).len(), 1);
    assert!(has(&collection, &one), "another path has it");
    drop(collection);
    assert!(has(&open(data.path()), &one));
}

#[tokio::test]
async fn a_file_and_a_directory_of_one_name_do_not_stand_together() {
    let data = tempfile::tempdir().unwrap();
    let collection = open(data.path());
    change(&collection, "a/b", 0, Some("below")).await;
    assert_eq!(change(&collection, "a", 0, Some("a file")).await.0, Verdict::Conflict);
    assert_eq!(change(&collection, "a/b/c", 0, Some("deeper")).await.0, Verdict::Conflict);
    assert_eq!(change(&collection, "a.jpg", 0, Some("beside")).await.0, Verdict::Take);
    assert_eq!(change(&collection, "a/b", 1, None).await.0, Verdict::Take);
    assert_eq!(change(&collection, "a", 0, Some("now free")).await.0, Verdict::Take);
}

#[tokio::test]
async fn rules_and_quota_refuse_and_change_nothing() {
    let data = tempfile::tempdir().unwrap();
    let collection = Collection::open(data.path(), vec![options(10, 1_000)]).unwrap();
    upload(&collection, "shell");
    for denied in ["a/b/shell.php", ".htaccess", "a/.htaccess"] {
        let decision = decide(&collection, denied, 0, file("shell")).await;
        assert!(matches!(decision, Decision::Refused { .. }), "{denied}: {decision:?}");
    }
    assert_eq!(change(&collection, "x", 0, Some("12345678")).await, (Verdict::Take, 1));
    upload(&collection, "123");
    assert!(matches!(decide(&collection, "y", 0, file("123")).await, Decision::Refused { .. }));
    assert_eq!(versions(&collection, 0).len(), 1);
    assert_eq!(change(&collection, "x", 1, Some("1234567")).await, (Verdict::Take, 2));
    assert_eq!(change(&collection, "y", 0, Some("123")).await, (Verdict::Take, 3));
}

#[tokio::test]
async fn nothing_that_exceeds_a_limit_is_asked_for_or_kept() {
    let data = tempfile::tempdir().unwrap();
    let collection = Collection::open(data.path(), vec![options(10, 1_000)]).unwrap();
    let limit = Decision::Refused { reason: "max_bytes of this directory".into() };
    assert_eq!(decide(&collection, "x", 0, file("eleven byte")).await, limit);
    // It may have arrived before another file took the room.
    upload(&collection, "six by");
    change(&collection, "first", 0, Some("seven b")).await;
    assert_eq!(decide(&collection, "x", 0, file("six by")).await, limit);
    collection.barrier().await;
    assert!(!has(&collection, "six by") && has(&collection, "seven b"));
}

#[tokio::test]
async fn what_was_never_acknowledged_is_removed_at_a_start() {
    let data = tempfile::tempdir().unwrap();
    let collection = open(data.path());
    upload(&collection, "orphan");
    change(&collection, "x", 0, Some("kept")).await;
    std::fs::write(data.path().join("collected/incoming/7"), "half").unwrap();
    drop(collection);
    let collection = open(data.path());
    assert_eq!((has(&collection, "orphan"), has(&collection, "kept")), (false, true));
    assert_eq!(std::fs::read_dir(data.path().join("collected/incoming")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_barrier_passes_after_what_was_submitted_before() {
    let data = tempfile::tempdir().unwrap();
    let collection = open(data.path());
    upload(&collection, "one");
    let mut changes = collection.changes();
    for number in 0..300 {
        let change = Change { base: VersionNumber::NONE, state: file("one") };
        let path = path(&format!("f{number}"));
        let change = NodeChange { directory: name(), node: "web-1".into(), path, change };
        // Nobody waits for the answer.
        let submitted = collection.submit(change);
        let _ = tokio::time::timeout(std::time::Duration::ZERO, submitted).await;
    }
    collection.barrier().await;
    assert_eq!(collection.newest(&name()).unwrap(), 300);
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    let line = collection.line();
    collection.begin_line().unwrap();
    assert_ne!(collection.line(), line);
}

fn settings(limit: impl FnOnce(&mut CollectedOptions)) -> Vec<CollectedOptions> {
    let mut options = options(1_000_000, 1_000);
    limit(&mut options);
    vec![options]
}

/// Does what blocks, beside the runtime.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test]
async fn rules_hold_for_what_is_below_a_directory() {
    let data = tempfile::tempdir().unwrap();
    let collection = open(data.path());
    upload(&collection, "one");
    for refused in ["a.php", "a.php/picture.jpg", "upload.part", ".git/config"] {
        let decision = decide(&collection, refused, 0, file("one")).await;
        assert!(matches!(decision, Decision::Refused { .. }), "{refused}: {decision:?}");
    }
    assert_eq!(collection.figures(&name()).unwrap().refused, 4);
    assert_eq!(decide(&collection, "a.php", 0, State::Absent).await, {
        let current = Version::default();
        Decision::Answered(Answer { verdict: Verdict::Same, current })
    });
}

#[tokio::test]
async fn the_files_of_one_node_are_bounded() {
    let data = tempfile::tempdir().unwrap();
    let limited = settings(|options| options.node_max_bytes = Some(10));
    let collection = Collection::open(data.path(), limited).unwrap();
    assert_eq!(change(&collection, "a", 0, Some("12345678")).await, (Verdict::Take, 1));
    upload(&collection, "abc");
    assert!(matches!(decide(&collection, "b", 0, file("abc")).await, Decision::Refused { .. }));
    assert_eq!(change(&collection, "a", 1, Some("abcdef")).await, (Verdict::Take, 2), "its own room is free");
    assert_eq!(change(&collection, "b", 0, Some("abc")).await, (Verdict::Take, 3));
    assert_eq!(change(&collection, "a", 2, None).await, (Verdict::Take, 4));
    assert_eq!(change(&collection, "c", 0, Some("1234567")).await, (Verdict::Take, 5));
}

#[tokio::test]
async fn a_person_sees_the_history_and_restores_from_it() {
    let data = tempfile::tempdir().unwrap();
    let collection = open(data.path());
    change(&collection, "x", 0, Some("one")).await;
    change(&collection, "x", 1, Some("two")).await;
    change(&collection, "x", 2, None).await;
    let history = collection.history(&name(), &path("x")).unwrap();
    let seen: Vec<_> =
        history.iter().map(|one| (one.version.number.get(), one.version.state, one.node.as_str())).collect();
    let expected = [(1, file("one"), "web-1"), (2, file("two"), "web-1"), (3, State::Absent, "web-1")];
    assert_eq!(seen, expected);
    let (restoring, state) = (collection.clone(), history[0].version.state);
    let moved = blocking(move || restoring.submit_all(&name(), vec![(path("x"), state)])).await.unwrap();
    assert_eq!(moved, Moved { files: 1, left_out: Vec::new() });
    assert_eq!(versions(&collection, 3), [("x".into(), 4, file("one"))]);
    let chains = collection.chains(&name(), &TreePath::root()).unwrap();
    assert_eq!(chains.iter().map(|(_, _, node)| node.as_str()).collect::<Vec<_>>(), [AT_ORIGIN]);
}

#[tokio::test]
async fn a_tree_is_adopted_and_written_out_again() {
    use std::os::unix::fs::PermissionsExt;
    let (data, tree) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let collection = open(data.path());
    fs::create_dir_all(tree.path().join("in/2026/empty")).unwrap();
    for (at, text) in [("2026/a.jpg", "picture"), ("b.jpg", "other"), ("shell.php", "code")] {
        fs::write(tree.path().join("in").join(at), text).unwrap();
    }
    fs::set_permissions(tree.path().join("in/b.jpg"), PermissionsExt::from_mode(0o600)).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", tree.path().join("in/link")).unwrap();
    let (from, to) = (tree.path().join("in"), tree.path().join("out"));
    for _ in 0..2 {
        let (adopting, from) = (collection.clone(), from.clone());
        let moved = blocking(move || adopting.adopt(&name(), &from)).await.unwrap();
        assert_eq!((moved.files, moved.left_out.len()), (2, 2), "{moved:?}");
    }
    let (releasing, released) = (collection.clone(), to.clone());
    let moved = blocking(move || releasing.release(&name(), &released)).await.unwrap();
    assert_eq!(moved.files, 2);
    assert_eq!(fs::read(to.join("2026/a.jpg")).unwrap(), b"picture");
    assert!(to.join("2026/empty").is_dir());
    let stats = [&from, &to].map(|at| fs::metadata(at.join("b.jpg")).unwrap());
    let [(time, mode), (time_out, mode_out)] = stats.map(|s| (s.modified().unwrap(), s.permissions().mode()));
    assert_eq!((time, mode), (time_out, mode_out));
    let again = collection.clone();
    assert!(matches!(
        blocking(move || again.release(&name(), &to)).await,
        Err(CollectError::NotEmpty { .. })
    ));
}

#[tokio::test]
async fn a_backup_has_all_contents_and_begins_another_line() {
    let (data, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let collection = open(data.path());
    change(&collection, "x", 0, Some("one")).await;
    change(&collection, "x", 1, Some("two")).await;
    change(&collection, "x", 1, Some("loser")).await;
    let (copied, to) = (collection.clone(), copy.path().to_owned());
    blocking(move || copied.backup(&to, &mut |_| {})).await.unwrap();
    change(&collection, "x", 2, Some("later")).await;
    let restored = open(copy.path());
    assert_eq!(versions(&restored, 0), [("x".into(), 2, file("two"))]);
    assert_eq!(losers(&restored).len(), 1);
    assert!(["one", "two", "loser"].iter().all(|text| has(&restored, text)) && !has(&restored, "later"));
    assert_ne!(restored.line(), collection.line());
}

#[tokio::test]
async fn no_content_is_removed_while_a_backup_is_made() {
    let data = tempfile::tempdir().unwrap();
    let collection = open(data.path());
    let large: Vec<String> = (0..4).map(|n| n.to_string().repeat(600)).collect();
    change(&collection, "x", 0, Some("first")).await;
    change(&collection, "x", 0, Some(&large[0])).await;
    let held = collection.shared.removals.hold();
    change(&collection, "x", 0, Some(&large[1])).await;
    assert!(has(&collection, &large[0]), "given up, and still there");
    drop(held);
    change(&collection, "x", 0, Some(&large[2])).await;
    collection.barrier().await;
    assert_eq!([0, 1, 2].map(|n| has(&collection, &large[n])), [false, false, true]);
}

#[tokio::test]
async fn nothing_of_this_year_is_forgotten() {
    let data = tempfile::tempdir().unwrap();
    let collection = open(data.path());
    for (index, at) in ["a", "b", "c"].iter().enumerate() {
        change(&collection, at, 0, Some("one")).await;
        change(&collection, at, 2 * index as u64 + 1, None).await;
    }
    assert_eq!(collection.expire(Vec::new()).await.unwrap(), None);
    assert!(has(&collection, "one"));
    let transaction = collection.shared.index.begin().unwrap();
    let (mut from, mut unused) = (Vec::new(), Vec::new());
    loop {
        let mut tables = index::Tables::open(&transaction).unwrap();
        let (some, next) = tables.expire(&from, 2, u64::MAX).unwrap();
        unused.extend(some);
        match next {
            Some(next) => from = next,
            None => break,
        }
    }
    Index::commit(transaction).unwrap();
    assert_eq!(unused, [ContentHash::of(b"one")], "once nothing uses it any more");
    assert!(collection.chains(&name(), &TreePath::root()).unwrap().is_empty());
    assert!(versions(&collection, 0).is_empty());
}
