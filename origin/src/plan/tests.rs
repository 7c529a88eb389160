use std::collections::HashSet;
use std::time::Duration;

use syncd_proto::v1;
use syncd_shared::diff::Comparison;
use syncd_shared::wire::DirectoryFiles;
use syncd_shared::{ContentHash, ContentTag, ObjectHash, RootEntry, RootHash};
use tempfile::TempDir;

use super::contents::Directories;
use super::fixture::{MemoryReplica, MemoryStore, Tree, noise, tree};
use super::*;

fn planner(store: &Arc<MemoryStore>, budget: PlanBudget) -> (Planner, TempDir) {
    let data = TempDir::new().unwrap();
    (Planner::new(store.clone(), data.path(), budget).unwrap(), data)
}

/// A replica that has `root` whole, by the general path.
fn replica(planner: &Planner, root: &RootEntry) -> MemoryReplica {
    let mut replica = MemoryReplica::default();
    let batch = ObjectsBatch { directories: vec![root.object], recursive: true, ..ObjectsBatch::default() };
    planner.objects(0, root.hash(), batch).for_each(|frame| replica.take(frame.unwrap()));
    let files = replica.pages.values().flat_map(|d| d.entries()).filter_map(|e| match e.kind {
        syncd_shared::Kind::File { content, size } if size > 0 => Some(content),
        _ => None,
    });
    let batch = ObjectsBatch { files: files.collect(), ..ObjectsBatch::default() };
    planner.objects(1, root.hash(), batch).for_each(|frame| replica.take(frame.unwrap()));
    replica.assemble();
    assert_eq!((replica.missing.len(), replica.ended), (0, 2));
    replica
}

/// An update, once all of it is there, and its messages.
async fn whole(
    planner: &Planner,
    from: RootHash,
    to: RootHash,
) -> Result<(Arc<EncodedUpdate>, Vec<v1::FetchFrame>), Arc<PlanError>> {
    let update = planner.update(from, to).await?;
    let mut frames = Vec::new();
    loop {
        let item = frames.len() as u64;
        update.reached(item).await;
        match update.item(item)? {
            Some(frame) => frames.push(frame),
            None => return Ok((update, frames)),
        }
    }
}

async fn updated(
    store: &dyn Contents,
    planner: &Planner,
    from: &RootEntry,
    to: &RootEntry,
) -> (MemoryReplica, Arc<EncodedUpdate>) {
    let mut replica = replica(planner, from);
    replica.stored.clear();
    replica.replacements = fixture::replacements(store, from, to);
    let (update, frames) = whole(planner, from.hash(), to.hash()).await.unwrap();
    for (item, frame) in (0..).zip(frames) {
        assert_eq!(frame.item, item);
        replica.take(frame);
    }
    assert_eq!(replica.ended, 3);
    replica.assemble();
    (replica, update)
}

fn site() -> Tree {
    let mut site = Tree::new();
    for i in 0..40 {
        site.insert(format!("docs/{:02}/page{i}.html", i / 10), noise(i, 3_000 + 7 * i as usize));
    }
    site.insert("big.bin".into(), noise(1000, 1_300_000));
    let pattern: Vec<u8> = noise(2000, fixture::CHUNK).repeat(5);
    site.insert("repeated.bin".into(), pattern);
    site.insert("empty".into(), Vec::new());
    site
}

#[tokio::test]
async fn the_general_path_brings_the_whole_tree() {
    for frame_bytes in [10_000, 300_000, 1 << 20] {
        let store = MemoryStore::new(frame_bytes);
        let root = store.put(&site());
        let (planner, _data) = planner(&store, PlanBudget::default());
        assert_eq!(replica(&planner, &root).tree(&root), site());
    }
}

#[tokio::test]
async fn an_update_turns_one_tree_into_the_other() {
    for frame_bytes in [10_000, 300_000, 1 << 20] {
        let store = MemoryStore::new(frame_bytes);
        let mut next = site();
        next.remove("docs/01/page12.html");
        next.insert("docs/01/page13.html".into(), b"changed".to_vec());
        next.insert("docs/new/deep/er.html".into(), noise(77, 200_000));
        let moved = next.remove("docs/02/page21.html").unwrap();
        next.insert("other/name.html".into(), moved);
        let mut big = next["big.bin"].clone();
        big[500_000] ^= 1;
        next.insert("big.bin".into(), big);
        let (from, to) = (store.put(&site()), store.put(&next));
        let (planner, _data) = planner(&store, PlanBudget::default());
        let (replica, update) = updated(&*store, &planner, &from, &to).await;
        assert_eq!(replica.tree(&to), next);
        assert_eq!(replica.local.len(), 1);
        assert_eq!(replica.local[0].1.as_bytes(), b"docs/02/page21.html");
        assert!(update.bytes() < 2_000_000, "{}", update.bytes());
    }
}

#[tokio::test]
async fn a_large_update_comes_in_parts_that_are_complete() {
    let store = MemoryStore::new(300_000);
    let mut next = site();
    for (path, bytes) in next.iter_mut().filter(|(path, _)| path.starts_with("docs/0")) {
        bytes.extend_from_slice(path.as_bytes());
    }
    for copy in ["aa/copy.bin", "other/copy.bin"] {
        next.insert(copy.into(), noise(78, 30_000));
    }
    let moved = next.remove("docs/00/page2.html").unwrap();
    next.insert("zz/moved.html".into(), moved[..2_000].to_vec());
    let whole = next.remove("docs/02/page21.html").unwrap();
    next.insert("aa/moved.html".into(), site()["docs/02/page21.html"].clone());
    assert_ne!(whole, next["aa/moved.html"]);
    let (from, to) = (store.put(&site()), store.put(&next));
    let (planner, _data) = planner(&store, PlanBudget::default());
    let (together, update) = updated(&*store, &planner, &from, &to).await;
    for changes in [1, 7, 20] {
        let part = PartLimits { changes, ..PartLimits::default() };
        let (planner, _data) = super::tests::planner(&store, PlanBudget { part, ..PlanBudget::default() });
        let (replica, in_parts) = updated(&*store, &planner, &from, &to).await;
        assert_eq!(replica.tree(&to), next);
        let mut count = 0;
        let comparison = Comparison::of(Directories(&*store), &from, &to, part).unwrap();
        comparison.parts().for_each(|part| count += part.unwrap().changes.len());
        assert_eq!(replica.parts_ended, (count - 1) as u64 / changes as u64);
        assert_eq!((replica.ended, together.parts_ended), (together.ended, 0));
        assert_eq!(replica.local, together.local, "what another part releases is not sent");
        // Small as parts are, each of them comes with what it needs alone.
        assert!(in_parts.bytes() >= update.bytes());
    }
}

#[tokio::test]
async fn small_files_travel_as_deltas_together_with_new_ones() {
    let store = MemoryStore::new(1 << 20);
    let mut next = site();
    for (path, bytes) in next.iter_mut().filter(|(path, _)| path.starts_with("docs/")) {
        bytes.extend_from_slice(path.as_bytes());
    }
    // Two new files in a frame that mostly holds what has a basis.
    next.insert("docs/00/new.html".into(), next["docs/00/page3.html"][..2_000].to_vec());
    let moved = next.remove("docs/03/page35.html").unwrap();
    next.insert("elsewhere/page35.html".into(), [&moved[..], b"and edited"].concat());
    let (from, to) = (store.put(&site()), store.put(&next));
    let (planner, _data) = planner(&store, PlanBudget::default());
    let (replica, update) = updated(&*store, &planner, &from, &to).await;
    assert_eq!(replica.tree(&to), next);
    assert_eq!((replica.deltas.len(), replica.stored.len()), (1, 0));
    assert_eq!(replica.deltas[0].pieces.len(), 41);
    assert_eq!(replica.deltas[0].bases.len(), 40, "the file that moved has its old version as basis");
    assert!(update.bytes() < 12_000, "{}", update.bytes());
}

#[tokio::test]
async fn a_large_file_travels_as_copies_and_its_edits() {
    let store = MemoryStore::new(1 << 20);
    let before = noise(5, 12_000_000);
    let mut after = before.clone();
    for edit in 0..20 {
        after[edit * 590_000..][..4_000].copy_from_slice(&noise(edit as u64, 4_000));
    }
    let (from, to) = (store.put(&tree(&[("f", &before)])), store.put(&tree(&[("f", &after)])));
    let (planner, _data) = planner(&store, PlanBudget::default());
    let (replica, update) = updated(&*store, &planner, &from, &to).await;
    assert_eq!(replica.tree(&to), tree(&[("f", &after)]));
    assert!(update.bytes() < 95_000, "{}", update.bytes());
    assert!(replica.deltas.iter().map(|d| d.copies.len()).sum::<usize>() >= 20);
    // Every part of the file comes in the order of the file.
    let offsets: Vec<u64> = replica
        .deltas
        .iter()
        .flat_map(|delta| {
            let pieces = delta.pieces.iter().map(|p| p.file_offset);
            let mut offsets: Vec<u64> = pieces.chain(delta.copies.iter().map(|c| c.file_offset)).collect();
            offsets.sort_unstable();
            offsets
        })
        .collect();
    assert!(offsets.is_sorted());
}

#[tokio::test]
async fn a_large_file_without_anything_in_common_goes_as_it_is_stored() {
    let store = MemoryStore::new(1 << 20);
    let (before, after) = (noise(6, 3_000_000), noise(7, 3_100_000));
    let (from, to) = (store.put(&tree(&[("f", &before)])), store.put(&tree(&[("f", &after)])));
    let (planner, _data) = planner(&store, PlanBudget::default());
    let (replica, _) = updated(&*store, &planner, &from, &to).await;
    assert_eq!(replica.tree(&to), tree(&[("f", &after)]));
    assert_eq!((replica.deltas.len(), replica.stored.len()), (0, 3));
}

#[tokio::test]
async fn a_large_file_that_changed_everywhere_is_compared_where_it_lies() {
    let store = MemoryStore::new(1 << 20);
    let before = noise(8, 5_000_000);
    let mut after = before.clone();
    after.splice(100..100, noise(9, 1_000));
    for edit in 0..after.len() / 20_000 {
        after[edit * 20_000] ^= 1;
    }
    let (from, to) = (store.put(&tree(&[("f", &before)])), store.put(&tree(&[("f", &after)])));
    let (planner, _data) = planner(&store, PlanBudget::default());
    let (replica, update) = updated(&*store, &planner, &from, &to).await;
    assert_eq!(replica.tree(&to), tree(&[("f", &after)]));
    assert!(update.bytes() < 150_000, "{}", update.bytes());
}

#[tokio::test]
async fn metadata_alone_costs_no_content() {
    let store = MemoryStore::new(1 << 20);
    let (from, to) = (store.put(&site()), store.put_with_mode(&site(), 0o600));
    let (planner, _data) = planner(&store, PlanBudget::default());
    let (replica, update) = updated(&*store, &planner, &from, &to).await;
    assert_eq!(replica.tree(&to), site());
    assert!(update.item(1).unwrap().is_some() && update.item(2).unwrap().is_none());
    assert_eq!(replica.deltas.len() + replica.stored.len() + replica.local.len(), 0);
}

#[tokio::test]
async fn a_renamed_subtree_costs_no_content_and_one_patch() {
    let store = MemoryStore::new(1 << 20);
    let renamed: Tree = site().into_iter().map(|(path, b)| (path.replace("docs/", "manual/"), b)).collect();
    let (from, to) = (store.put(&site()), store.put(&renamed));
    let (planner, _data) = planner(&store, PlanBudget::default());
    let (replica, update) = updated(&*store, &planner, &from, &to).await;
    assert_eq!(replica.tree(&to), renamed);
    assert!(update.item(1).unwrap().is_some() && update.item(2).unwrap().is_none());
    assert_eq!(replica.stored.len(), 0);
    assert!(update.is_inline());
}

#[tokio::test]
async fn a_frame_goes_out_as_stored_only_where_most_of_it_is_wanted() {
    let store = MemoryStore::new(1 << 20);
    let all: Tree = (0..10).map(|i| (format!("f{i}"), noise(i, 10_000))).collect();
    let root = store.put(&all);
    let hashes: Vec<_> = all.values().map(|b| ContentHash::of(b)).collect();
    let (planner, _data) = planner(&store, PlanBudget::default());
    let ask = |files: &[ContentHash]| {
        let mut replica = MemoryReplica::default();
        let batch = ObjectsBatch { files: files.to_vec(), ..ObjectsBatch::default() };
        planner.objects(0, root.hash(), batch).for_each(|frame| replica.take(frame.unwrap()));
        replica.assemble();
        assert_eq!(replica.files.len(), files.len());
        assert_eq!(replica.stored.len(), 1);
        replica.stored[0].uncompressed_bytes
    };
    assert_eq!(ask(&hashes[..9]), 100_000);
    assert_eq!(ask(&hashes[..8]), 80_000);
    assert_eq!(ask(&[hashes[9]]), 10_000);
}

#[tokio::test]
async fn directories_of_a_whole_tree_are_read_once_for_all_who_join() {
    let store = MemoryStore::new(1 << 20);
    let root = store.put(&site());
    let (planner, _data) = planner(&store, PlanBudget::default());
    let ask = |root: &RootEntry, directories: Vec<ObjectHash>, recursive| {
        let mut replica = MemoryReplica::default();
        let batch = ObjectsBatch { directories, recursive, ..ObjectsBatch::default() };
        planner.objects(0, root.hash(), batch).for_each(|frame| replica.take(frame.unwrap()));
        assert_eq!(replica.ended, 1);
        replica
    };
    let first = ask(&root, vec![root.object], true);
    let below = first.pages.len();
    assert!(below > 1);
    // Missing trees, and trees never requested whole, are not invented.
    assert_eq!(ask(&root, vec![root.object], false).pages.len(), 1);
    let gone = ObjectHash::from_bytes([7; 32]);
    assert_eq!(ask(&root, vec![gone], true).missing, [*gone.as_bytes()]);
    let read = store.directory_bytes_read();
    let second = ask(&root, vec![root.object], true);
    assert_eq!((second.pages.len(), store.directory_bytes_read()), (below, read));
    // Another tree takes its place.
    let other = store.put(&tree(&[("only/one", b"file")]));
    assert_eq!(ask(&other, vec![other.object], true).pages.len(), 2);
    assert_eq!(ask(&root, vec![root.object], true).pages.len(), below);
    assert!(store.directory_bytes_read() >= read + below);
    // So does an update to another one, but none to the same.
    for (from, to, kept) in [(&other, &root, true), (&root, &other, false)] {
        planner.update(from.hash(), to.hash()).await.unwrap();
        let read = store.directory_bytes_read();
        assert_eq!(ask(&root, vec![root.object], true).pages.len(), below);
        assert_eq!(store.directory_bytes_read() == read, kept);
    }
}

#[tokio::test]
async fn a_frame_across_two_requests_goes_out_once() {
    let store = MemoryStore::new(64 * 1024);
    // Large files as well: their last pieces share frames with the content after them.
    let mut all: Tree = (0..40).map(|i| (format!("f{i:02}"), noise(i, 5_000))).collect();
    all.extend([("f10-large".to_owned(), noise(50, 300_000)), ("f29-large".to_owned(), noise(51, 300_000))]);
    let root = store.put(&all);
    let hashes: Vec<_> = all.values().map(|b| ContentHash::of(b)).collect();
    let (planner, _data) = planner(&store, PlanBudget::default());
    let batch = |entries: std::ops::Range<usize>, early| {
        let files_of = vec![DirectoryFiles::new(root.object, entries.map(|entry| entry as u32))];
        ObjectsBatch { files_of, early, ..ObjectsBatch::default() }
    };
    let mut at_once = MemoryReplica::default();
    planner
        .objects(0, root.hash(), batch(0..hashes.len(), false))
        .for_each(|frame| at_once.take(frame.unwrap()));
    let (mut more_early, mut more_apart) = (0, 0);
    for border in 1..hashes.len() {
        let before = &hashes[..border];
        let frames = |early: bool| {
            let mut replica = MemoryReplica::default();
            let mut answer = planner.objects(0, root.hash(), batch(0..border, false));
            answer.set_next(Box::new(planner.objects(1, root.hash(), batch(border..hashes.len(), early))));
            answer.by_ref().for_each(|frame| replica.take(frame.unwrap()));
            assert_eq!(replica.ended, 1);
            let sent: HashSet<_> =
                replica.stored.iter().flat_map(|f| &f.pieces).map(|piece| piece.file).collect();
            assert!(before.iter().all(|content| sent.contains(&ContentTag::of(content))));
            assert!(early || sent.len() == before.len());
            answer.into_next().unwrap().for_each(|frame| replica.take(frame.unwrap()));
            replica.assemble();
            assert_eq!((replica.ended, replica.files.len()), (2, hashes.len()));
            replica.stored.len()
        };
        more_early += frames(true) - at_once.stored.len();
        more_apart += frames(false) - at_once.stored.len();
    }
    // A frame that the first request wants nearly all of is sent whole, before the second request is read.
    assert!(more_apart > hashes.len() / 2 && more_early < more_apart / 3, "{more_early} of {more_apart}");
}

#[tokio::test]
async fn files_are_asked_for_by_their_directories() {
    let store = MemoryStore::new(1 << 20);
    let mut all: Tree = (0..10).map(|i| (format!("f{i}"), noise(i, 10_000))).collect();
    all.extend(tree(&[("empty", b""), ("f3-again", &noise(3, 10_000))]));
    let root = store.put(&all);
    let (planner, _data) = planner(&store, PlanBudget::default());
    let ask = |entries: Vec<u32>, gone: Option<ObjectHash>| {
        let of = |directory| DirectoryFiles::new(directory, entries.iter().copied());
        let files_of = gone.into_iter().chain([root.object]).map(of).collect();
        let mut replica = MemoryReplica::default();
        let batch = ObjectsBatch { files_of, ..ObjectsBatch::default() };
        planner.objects(0, root.hash(), batch).for_each(|frame| replica.take(frame.unwrap()));
        replica.assemble();
        (replica.files.len(), replica.missing)
    };
    // In the order of names: empty, f0, f1, f2, f3, f3-again, f4, ...
    assert_eq!(ask((0..12).collect(), None), (10, vec![]));
    assert_eq!(ask(vec![0], None), (0, vec![]));
    assert_eq!(ask(vec![2, 4, 5, 40], None), (2, vec![]));
    let gone = ObjectHash::from_bytes([7; 32]);
    assert_eq!(ask(vec![1], Some(gone)), (0, vec![*gone.as_bytes()]));
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let store = MemoryStore::new(1 << 20);
    let root = store.put(&site());
    let (planner, _data) = planner(&store, PlanBudget::default());
    let (gone, there) = (ContentHash::of(b"nowhere"), ContentHash::of(&site()["big.bin"]));
    let no_directory = ObjectHash::from_bytes([7; 32]);
    let batch = ObjectsBatch {
        directories: vec![no_directory, root.object],
        files: vec![gone, there],
        ..ObjectsBatch::default()
    };
    let mut replica = MemoryReplica::default();
    planner.objects(7, root.hash(), batch).for_each(|frame| replica.take(frame.unwrap()));
    replica.assemble();
    assert_eq!(replica.missing, [*no_directory.as_bytes(), *gone.as_bytes()]);
    assert_eq!((replica.pages.len(), replica.files.len()), (1, 1));

    let unknown = RootHash::from_bytes([9; 32]);
    let refused = planner.update(unknown, root.hash()).await;
    assert!(
        matches!(refused.as_ref().map_err(|e| &**e), Err(PlanError::UnknownRoot { root }) if *root == unknown)
    );
    store.forget_content(&there);
    let empty = store.put(&Tree::new());
    let refused = planner.update(empty.hash(), root.hash()).await;
    assert!(
        matches!(refused.as_ref().map_err(|e| &**e), Err(PlanError::MissingContent { content }) if *content == there)
    );
}

#[tokio::test]
async fn only_what_a_retained_generation_has_can_be_asked_for_by_hash() {
    let store = MemoryStore::new(1 << 20);
    let root = store.put(&site());
    // In the store like any other, and of no retained generation.
    let secret = tree(&[("secret/key", b"password"), ("secret/more/f", b"1")]);
    let unsealed = store.put(&secret);
    store.forget(&unsealed.hash());
    let secret_file = ContentHash::of(b"password");
    let (planner, _data) = planner(&store, PlanBudget::default());
    let ask = |under: &RootEntry, batch: ObjectsBatch| {
        let mut answered = MemoryReplica::default();
        planner.objects(0, under.hash(), batch).for_each(|frame| answered.take(frame.unwrap()));
        answered.assemble();
        assert_eq!(answered.ended, 1);
        (answered.pages.len() + answered.files.len(), answered.missing)
    };
    let file = ObjectsBatch { files: vec![secret_file], ..ObjectsBatch::default() };
    let directory =
        |recursive| ObjectsBatch { directories: vec![unsealed.object], recursive, ..ObjectsBatch::default() };
    let files_of = vec![DirectoryFiles::new(unsealed.object, 0..1)];
    let by_directory = ObjectsBatch { files_of, ..ObjectsBatch::default() };
    for under in [&root, &unsealed] {
        assert_eq!(ask(under, file.clone()), (0, vec![*secret_file.as_bytes()]));
        for batch in [directory(false), directory(true), by_directory.clone()] {
            assert_eq!(ask(under, batch), (0, vec![*unsealed.object.as_bytes()]));
        }
    }
    // Early requests must not circumvent it.
    let known = ContentHash::of(&site()["big.bin"]);
    let mut answer =
        planner.objects(0, root.hash(), ObjectsBatch { files: vec![known], ..ObjectsBatch::default() });
    let early = ObjectsBatch { early: true, ..by_directory.clone() };
    answer.set_next(Box::new(planner.objects(1, root.hash(), early)));
    let mut answered = MemoryReplica::default();
    answer.by_ref().for_each(|frame| answered.take(frame.unwrap()));
    answer.into_next().unwrap().for_each(|frame| answered.take(frame.unwrap()));
    answered.assemble();
    assert_eq!((answered.files.len(), answered.missing.len()), (1, 1));
    // Once it is committed it is served.
    let sealed = store.put(&secret);
    assert_eq!(ask(&sealed, file), (1, vec![]));
    assert_eq!(ask(&sealed, directory(true)).0, 3);
}

#[tokio::test]
async fn a_tree_is_walked_once_and_its_successor_only_where_it_differs() {
    let store = MemoryStore::new(1 << 20);
    let pages = |last: &[u8]| -> Tree {
        let mut site: Tree = (0..30).map(|i| (format!("d{i}/f"), noise(i, 200))).collect();
        site.extend(tree(&[("d29/f", last)]));
        site
    };
    let (first, second) = (store.put(&pages(b"1")), store.put(&pages(b"2")));
    let (planner, _data) = planner(&store, PlanBudget::default());
    let read = |root: &RootEntry, file: &[u8]| {
        let before = store.directories_read();
        let batch = ObjectsBatch { files: vec![ContentHash::of(file)], ..ObjectsBatch::default() };
        let mut replica = MemoryReplica::default();
        planner.objects(0, root.hash(), batch).for_each(|frame| replica.take(frame.unwrap()));
        assert_eq!(replica.missing.len(), 0);
        store.directories_read() - before
    };
    assert_eq!(read(&first, b"1"), 31);
    assert_eq!(read(&first, b"1"), 0);
    assert_eq!(read(&second, b"2"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_callers_share_one_encoding() {
    let store = MemoryStore::new(1 << 20);
    let (from, to) = (store.put(&tree(&[("a", b"1")])), store.put(&site()));
    let (planner, _data) = planner(&store, PlanBudget::default());
    let (first, messages) = whole(&planner, from.hash(), to.hash()).await.unwrap();
    let (frames, directories) = (store.frames_read(), store.directories_read());
    let (planner, _data) = super::tests::planner(&store, PlanBudget::default());
    let all = (0..20).map(|_| {
        let planner = planner.clone();
        tokio::spawn(async move { whole(&planner, from.hash(), to.hash()).await.unwrap() })
    });
    for update in futures::future::join_all(all).await {
        let (update, same) = update.unwrap();
        assert!(update.bytes() == first.bytes() && same == messages);
    }
    assert_eq!((store.frames_read(), store.directories_read()), (2 * frames, 2 * directories));
}

#[tokio::test]
async fn the_budget_drops_what_was_not_used_for_longest() {
    let store = MemoryStore::new(1 << 20);
    let empty = store.put(&Tree::new());
    let roots: Vec<_> = (0..4).map(|i| store.put(&tree(&[("f", &noise(i, 400_000))])).hash()).collect();
    let budget = PlanBudget { disk_bytes: 1_000_000, ..PlanBudget::default() };
    let (planner, data) = planner(&store, budget);
    let files = || std::fs::read_dir(data.path().join("spool")).unwrap().count();
    let (held, messages) = whole(&planner, empty.hash(), roots[0]).await.unwrap();
    for root in &roots[1..] {
        whole(&planner, empty.hash(), *root).await.unwrap();
    }
    // Complete updates are read before the rest is removed.
    let settled = async |count, what| {
        let in_time = async {
            while files() != count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), in_time).await.expect(what);
    };
    settled(3, "two within the budget, one that is still read").await;
    assert_eq!(held.item(messages.len() as u64 - 1).unwrap().as_ref(), messages.last());
    drop(held);
    settled(2, "what is not read goes").await;
    let (from, to) = (empty.hash(), store.put(&tree(&[("f", &noise(9, 2_000_000))])).hash());
    for attempt in ["while it is read", "before"] {
        let refused = whole(&planner, from, to).await;
        assert!(matches!(refused.as_ref().map_err(|e| &**e), Err(PlanError::TooLarge { .. })), "{attempt}");
    }
    settled(2, "nothing is left of what was given up").await;
    std::fs::write(data.path().join("spool/99.update"), b"left by a crash").unwrap();
    drop(planner);
    let _again = Planner::new(store, data.path(), budget).unwrap();
    assert_eq!(files(), 0);
}

#[tokio::test]
async fn a_tiny_chunk_of_many_files_stays_within_the_limits_of_a_frame() {
    let store = MemoryStore::new(1);
    let files: Tree =
        (0..3).map(|i| (format!("f{i}"), [noise(i, fixture::CHUNK), b"!".to_vec()].concat())).collect();
    let root = store.put(&files);
    let (planner, _data) = planner(&store, PlanBudget::default());
    assert_eq!(replica(&planner, &root).tree(&root), files);
}

#[tokio::test]
async fn a_sealed_generation_is_planned_from_the_real_store() {
    use crate::store;
    use syncd_shared::Directory;
    use syncd_shared::directory::{Entry, Kind, Metadata, Timestamp};

    let data = TempDir::new().unwrap();
    let store = Arc::new(store::Store::create(data.path()).unwrap());
    let seal = |number: u64, files: &[(&str, Vec<u8>)]| {
        let writer = store.writer().unwrap();
        let mut entries = Vec::new();
        for (name, bytes) in files {
            let content = ContentHash::of(bytes);
            let mut builder = writer.batch().unwrap();
            let mut chunks = Vec::new();
            for chunk in bytes.chunks(fixture::CHUNK) {
                let hash = ContentHash::of(chunk);
                builder.add_chunk(&hash, chunk).unwrap();
                chunks.push(store::Chunk { hash, length: chunk.len() as u32 });
            }
            builder.finish().unwrap();
            writer.put_file(&content, &chunks).unwrap();
            entries.push(Entry {
                name: syncd_shared::Component::new(name.as_bytes()).unwrap(),
                metadata: Metadata { mode: 0o644, uid: 0, gid: 0, mtime: Timestamp::default() },
                kind: Kind::File { content, size: bytes.len() as u64 },
            });
        }
        let directory = Directory::new(entries).unwrap();
        let object = writer.put_directory(&directory).unwrap();
        let root = RootEntry { object, totals: directory.totals().unwrap(), ..RootEntry::empty() };
        let generation = syncd_shared::Generation {
            tree_id: syncd_shared::TreeId::from_bytes([9; 16]),
            epoch: 1,
            trust: 1,
            number: syncd_shared::GenerationNumber::new(number).unwrap(),
            root,
            parent: None,
            created_ms: 0,
            label: String::new(),
        };
        writer.seal(&generation.sign(&syncd_shared::ed25519::SigningKey::from_bytes(&[5; 32]))).unwrap();
        root
    };
    let (small, large) = (noise(1, 700), noise(2, 300_000));
    let from = seal(1, &[("a", small.clone()), ("b", large.clone()), ("empty", Vec::new())]);
    let to = seal(2, &[("a", noise(3, 900)), ("c", large.clone()), ("empty", Vec::new())]);
    let planner = Planner::new(store.clone(), data.path(), PlanBudget::default()).unwrap();
    let (replica, _) = updated(&*store, &planner, &from, &to).await;
    assert_eq!(replica.tree(&to), tree(&[("a", &noise(3, 900)), ("c", &large), ("empty", b"")]));
    assert_eq!(replica.local.len(), 1);
}
