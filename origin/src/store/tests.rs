//! The store as a whole: sealing, crashes, damage.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use syncd_shared::hash::ContentHash;
use syncd_shared::{GenerationNumber, RootEntry};

use super::collect::CollectReport;
use super::fixture::{Fixture, Tree, key, noise, put_content, put_tree, signed, tree, try_seal};
use super::frame_builder::LargeContent;
use super::*;

#[test]
fn a_sealed_tree_is_read_back_after_reopening() {
    let mut fixture = Fixture::new();
    assert!(fixture.store().latest().unwrap().is_none());
    let root = fixture.seal(3, &tree(1));
    fixture.reopen();
    assert_eq!(fixture.read(&root).unwrap(), tree(1));
    let store = fixture.store();
    let latest = store.latest().unwrap().unwrap();
    assert_eq!(latest.generation.root, root);
    assert!(latest.verify(latest.generation.tree_id, &key().verifying_key()).is_ok());
    assert_eq!(store.generation(latest.generation.number).unwrap(), Some(latest.clone()));
    assert_eq!(store.generations().unwrap(), [latest]);
    assert_eq!(store.root(&root.hash()).unwrap(), Some(root));
    assert_eq!(store.generation(GenerationNumber::FIRST).unwrap(), None);
}

#[test]
fn numbers_only_go_up_and_a_root_may_come_back() {
    let fixture = Fixture::new();
    let root = fixture.seal(3, &tree(1));
    for number in [1, 3] {
        let refused = try_seal(fixture.store(), number, &tree(2));
        assert!(matches!(refused, Err(SealError::NotAbove { .. })));
    }
    fixture.seal(4, &tree(2));
    let writer = fixture.store().writer().unwrap();
    writer.seal(&signed(5, root, 0)).unwrap();
    assert_eq!(fixture.store().generations().unwrap().len(), 3);
    let writer = fixture.store().writer().unwrap();
    let unknown = RootEntry { object: syncd_shared::ObjectHash::from_bytes([1; 32]), ..root };
    assert!(matches!(writer.seal(&signed(6, unknown, 0)), Err(SealError::RootMissing { .. })));
}

#[test]
fn chunks_that_are_there_are_not_written_again() {
    let fixture = Fixture::new();
    fixture.seal(1, &tree(1));
    let length = || fs::metadata(fixture.data.path().join("packs/00000001.pack")).unwrap().len();
    let before = length();
    let writer = fixture.store().writer().unwrap();
    let mut one = writer.batch().unwrap();
    let mut two = writer.batch().unwrap();
    let known = noise(0, 1_000);
    assert!(!one.add_chunk(&ContentHash::of(&known), &known).unwrap());
    let new = noise(77, 1_000);
    assert!(one.add_chunk(&ContentHash::of(&new), &new).unwrap());
    assert!(!two.add_chunk(&ContentHash::of(&new), &new).unwrap());
    one.finish().unwrap();
    two.finish().unwrap();
    writer.save().unwrap();
    assert!((1_000..1_100).contains(&(length() - before)));
    assert!(fixture.store().has_content(&ContentHash::of(&new), 1_000).unwrap());
    assert!(!fixture.store().has_content(&ContentHash::of(b"other"), 5).unwrap());
}

#[test]
fn small_contents_that_resemble_each_other_share_a_frame() {
    let fixture = Fixture::new();
    let writer = fixture.store().writer().unwrap();
    let mut builder = writer.batch().unwrap();
    let page = |number: u64| [noise(number % 1_000, 4_000), number.to_le_bytes().to_vec()].concat();
    for number in 0..2_000 {
        let page = page(number);
        assert!(builder.add_content(&ContentHash::of(&page), &page).unwrap());
        assert!(!builder.add_content(&ContentHash::of(&page), &page).unwrap());
    }
    builder.finish().unwrap();
    writer.save().unwrap();
    // Pages of one kind were 4 MB apart, which no frame reaches.
    let packed = fs::metadata(fixture.data.path().join("packs/00000001.pack")).unwrap().len();
    assert!((4_000_000..4_500_000).contains(&packed), "{packed} bytes");
    for number in [0, 999, 1_000, 1_999] {
        let (expected, mut out) = (page(number), Vec::new());
        fixture.store().read_file(&ContentHash::of(&expected), expected.len() as u64, &mut out).unwrap();
        assert_eq!(out, expected);
    }
}

#[test]
fn a_large_content_is_compressed_by_helpers_and_read_as_it_was() {
    let fixture = Fixture::new();
    let chunks: Vec<Vec<u8>> = (0..400).map(|number| noise(number, 64_000 + number as usize)).collect();
    let size = chunks.iter().map(|chunk| chunk.len() as u64).sum();
    let add = |large: &mut LargeContent<'_, '_>| {
        let added = chunks.iter().map(|chunk| large.add_chunk(&ContentHash::of(chunk), chunk));
        added.collect::<Result<Vec<bool>, _>>()
    };
    let writer = fixture.store().writer().unwrap();
    let mut builder = writer.batch().unwrap();
    let fresh = builder.add_large(size, |mut large| add(&mut large)).unwrap();
    assert!(fresh.iter().all(|new| *new));
    let again = builder.add_large(size, |mut large| add(&mut large)).unwrap();
    assert!(again.iter().all(|new| !*new), "helpers were given back, chunks are known");
    builder.finish().unwrap();
    writer.save().unwrap();
    for chunk in &chunks {
        let mut out = Vec::new();
        fixture.store().read_file(&ContentHash::of(chunk), chunk.len() as u64, &mut out).unwrap();
        assert!(out == *chunk);
    }
    // Abandoning a content half-way ends its helpers and leaves nothing that counts.
    let writer = fixture.store().writer().unwrap();
    let mut builder = writer.batch().unwrap();
    let refused = builder.add_large(size, |mut large| {
        let chunk = noise(1_000, 900_000);
        large.add_chunk(&ContentHash::of(&chunk), &chunk)?;
        Err::<(), _>(StoreError::SyncFailed)
    });
    assert!(matches!(refused, Err(StoreError::SyncFailed)));
    drop(builder);
    assert!(matches!(writer.save(), Err(StoreError::Unwritten { .. })));
}

#[test]
fn an_unfinished_builder_makes_the_seal_fail() {
    let fixture = Fixture::new();
    let writer = fixture.store().writer().unwrap();
    let root = put_tree(&writer, &tree(1)).unwrap();
    let mut lost = writer.batch().unwrap();
    lost.add_chunk(&ContentHash::of(b"lost"), b"lost").unwrap();
    drop(lost);
    let refused = writer.seal(&signed(1, root, 0));
    assert!(matches!(refused, Err(SealError::Store(StoreError::Unwritten { count: 1 }))));
    assert!(fixture.store().latest().unwrap().is_none());
}

#[test]
fn threads_share_a_writer() {
    let fixture = Fixture::new();
    let writer = fixture.store().writer().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let writer = &writer;
            scope.spawn(move || {
                for i in 0..50 {
                    put_content(writer, &noise(i + thread % 2 * 25, 2_500)).unwrap();
                }
            });
        }
    });
    writer.save().unwrap();
    for i in 0..75 {
        let content = noise(i, 2_500);
        let mut out = Vec::new();
        fixture.store().read_file(&ContentHash::of(&content), 2_500, &mut out).unwrap();
        assert_eq!(out, content);
    }
}

#[test]
fn stat_records_become_visible_with_the_seal() {
    let mut fixture = Fixture::new();
    let writer = fixture.store().writer().unwrap();
    for path in [&b""[..], b"a", b"a/b", b"ab"] {
        writer.put_stat(path, path).unwrap();
    }
    assert_eq!(writer.stat(b"a/b").unwrap().unwrap(), b"a/b");
    assert_eq!(fixture.store().stat(b"a/b").unwrap(), None);
    writer.save().unwrap();
    let writer = fixture.store().writer().unwrap();
    writer.remove_stat_subtree(b"a").unwrap();
    writer.put_stat(b"a", b"again").unwrap();
    writer.remove_stat(b"").unwrap();
    assert_eq!(writer.stat(b"a/b").unwrap(), None);
    writer.save().unwrap();
    fixture.reopen();
    let store = fixture.store();
    assert_eq!(store.stat(b"a").unwrap().unwrap(), b"again");
    assert_eq!(store.stat(b"a/b").unwrap(), None);
    assert_eq!(store.stat(b"").unwrap(), None);
    assert_eq!(store.stat(b"ab").unwrap().unwrap(), b"ab");
}

#[test]
fn the_writer_sees_what_was_put() {
    let fixture = Fixture::new();
    let writer = fixture.store().writer().unwrap();
    let directory = syncd_shared::Directory::default();
    let hash = writer.put_directory(&directory).unwrap();
    assert_eq!(**writer.page(&hash).unwrap().unwrap().leaf().unwrap(), directory);
    assert!(fixture.store().page(&hash).unwrap().is_none());
    let file = put_content(&writer, &noise(1, 5_000)).unwrap();
    assert!(writer.has_content(&file, 5_000).unwrap());
    assert!(!fixture.store().has_content(&file, 5_000).unwrap());
}

#[test]
fn the_second_opener_is_told_who_holds_the_store() {
    let mut fixture = Fixture::new();
    let error = Store::open(fixture.data.path()).err().unwrap();
    assert!(matches!(error, OpenStoreError::Held { pid: Some(pid), .. } if pid == std::process::id()));
    assert!(error.to_string().contains(&std::process::id().to_string()));
    fixture.close();
    let error = Store::create(fixture.data.path()).err().unwrap();
    assert!(matches!(error, OpenStoreError::Exists { .. }));
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(Store::open(empty.path()), Err(OpenStoreError::Missing { .. })));
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0);
}

/// Stops a writer at every stage: what it began is not seen, and leaves no litter.
#[test]
fn a_dropped_writer_leaves_the_last_generation() {
    for stage in 0..5 {
        let mut fixture = Fixture::new();
        let root = fixture.seal(1, &tree(1));
        let pack = fixture.data.path().join("packs/00000001.pack");
        let length = fs::metadata(&pack).unwrap().len();
        let mut writer = fixture.store().writer().unwrap();
        if stage >= 1 {
            put_content(&writer, &noise(50, 100_000)).unwrap();
        }
        if stage >= 2 {
            put_tree(&writer, &tree(2)).unwrap();
        }
        if stage >= 3 {
            writer.put_stat(b"a", b"x").unwrap();
        }
        if stage >= 4 {
            writer.set_pending_max_bytes(1);
            put_tree(&writer, &tree(3)).unwrap();
        }
        drop(writer);
        // As a crash in the creation of the next pack leaves it.
        fs::write(fixture.data.path().join("packs/00000099.pack"), b"SYNC").unwrap();
        fixture.reopen();
        assert_eq!(fixture.store().generations().unwrap().len(), 1);
        assert_eq!(fixture.store().stat(b"a").unwrap(), None);
        assert_eq!(fixture.read(&root).unwrap(), tree(1));
        assert!(!fixture.data.path().join("packs/00000099.pack").exists());
        if stage < 4 {
            assert_eq!(fs::metadata(&pack).unwrap().len(), length, "stage {stage}");
        }
        let second = fixture.seal(2, &tree(2));
        assert_eq!(fixture.read(&second).unwrap(), tree(2));
        assert_eq!(fixture.read(&root).unwrap(), tree(1));
    }
}

#[test]
fn entries_that_are_committed_early_serve_the_seal() {
    let mut fixture = Fixture::new();
    let mut writer = fixture.store().writer().unwrap();
    writer.set_pending_max_bytes(1);
    let root = put_tree(&writer, &tree(1)).unwrap();
    assert!(fixture.store().page(&root.object).unwrap().is_some());
    assert!(fixture.store().latest().unwrap().is_none());
    writer.seal(&signed(1, root, 0)).unwrap();
    fixture.reopen();
    assert_eq!(fixture.read(&root).unwrap(), tree(1));
}

#[test]
fn an_empty_tree_is_a_generation() {
    let fixture = Fixture::new();
    let root = fixture.seal(1, &Tree::new());
    assert_eq!(root.hash(), RootEntry::empty().hash());
    assert_eq!(fixture.read(&root).unwrap(), Tree::new());
}

#[test]
fn many_contents_are_looked_up_in_one_state() {
    let fixture = Fixture::new();
    fixture.seal(1, &tree(1));
    let store: &Arc<Store> = fixture.store();
    let (many, one) = (noise(1_001, 30_250), noise(1, 10));
    let [many, one, none] = [&many[..], &one, b"nobody has it"].map(ContentHash::of);
    let looked_up = store.look_up_chunks(|tables| {
        let chunks = tables.chunks_of_content(&many)?.unwrap();
        assert_eq!(chunks.len(), 31);
        for chunk in &chunks {
            assert_eq!(tables.locate(&chunk.hash)?, store.locate(&chunk.hash)?);
        }
        assert_eq!(tables.chunks_of_content(&one)?, Some(vec![Chunk { hash: one, length: 10 }]));
        assert_eq!(tables.chunks_of_content(&none)?, None);
        tables.locate(&none)
    });
    assert_eq!(looked_up.unwrap(), None);
}

#[test]
fn frames_name_their_chunks() {
    let fixture = Fixture::new();
    fixture.seal(1, &tree(1));
    let store: &Arc<Store> = fixture.store();
    let content = noise(1_001, 30_250);
    let file = ContentHash::of(&content);
    let chunks = store.chunks_of(&file, 30_250).unwrap().unwrap();
    assert_eq!(chunks.len(), 31);
    assert_eq!(store.chunks_of(&file, 30_251).unwrap(), None);
    let locations = store.locate_all(&chunks).unwrap();
    for (chunk, location) in chunks.iter().zip(locations) {
        let location = location.unwrap();
        let frame = store.frame(location.pack, location.frame_offset).unwrap();
        let place = frame.chunk(&chunk.hash).unwrap();
        assert_eq!((place.offset, place.length), (location.offset_in_frame, chunk.length));
    }
}

type Hook = Box<dyn FnOnce(&Arc<Store>)>;

thread_local! {
    static BETWEEN: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

/// Called by garbage collection.
pub(super) fn between_mark_and_sweep(store: &Arc<Store>) {
    if let Some(hook) = BETWEEN.take() {
        hook(store);
    }
}

const NEWEST: Retention = Retention { generations: 1, age: Duration::ZERO, bytes: None };

fn collect(fixture: &Fixture, keep: &[RootEntry]) -> CollectReport {
    let keep = keep.iter().map(RootEntry::hash).collect();
    fixture.store().collect_garbage(NEWEST, &keep, None, 1_000, &|| false).unwrap()
}

#[test]
fn a_collection_that_gives_way_goes_on_where_it_was() {
    for commits in [false, true] {
        let mut fixture = Fixture::new();
        let tree = |number: usize| -> Tree {
            let file = |file: usize| (format!("d{file}/f"), noise((number * 1_000 + file) as u64, 300));
            (0..200).map(file).collect()
        };
        for number in 1..=3 {
            fixture.seal(number, &tree(number as usize));
        }
        let mut calls = 0;
        let report = loop {
            calls += 1;
            let store = fixture.store();
            let report = store.collect_garbage(NEWEST, &HashSet::new(), None, 1_000, &|| true).unwrap();
            if report.directories > 0 {
                break report;
            }
            assert!(report.gave_way && calls < 20, "{report:?}");
            if calls == 2 && commits {
                // The generation that was being marked is retired now.
                fixture.seal(4, &tree(4));
            }
        };
        assert!(calls > 2, "{calls}");
        let last = if commits { 4 } else { 3 };
        assert_eq!(report.generations.len(), last - 1);
        let gone = 200 * (last as u64 - 1);
        // A generation that was marked in vain goes with the next collection.
        let rest = collect(&fixture, &[]);
        let (directories, chunks) = (report.directories + rest.directories, report.chunks + rest.chunks);
        assert!(directories >= gone && chunks >= gone, "{report:?}, {rest:?}");
        assert_eq!(rest.directories > 0, commits, "{rest:?}");
        let newest = fixture.store().latest().unwrap().unwrap().generation.root;
        fixture.reopen();
        assert!(fixture.read(&newest).unwrap() == tree(last));
    }
}

fn pack_bytes(fixture: &Fixture) -> u64 {
    let packs = fs::read_dir(fixture.data.path().join("packs")).unwrap();
    packs.map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

fn assert_intact(fixture: &Fixture) {
    let report = fixture.store().check(|_| {});
    assert!(report.is_intact(), "{:?}", report.damage);
}

#[test]
fn garbage_goes_and_what_is_retained_or_held_stays() {
    let mut fixture = Fixture::new();
    let roots: Vec<_> = (1..=6).map(|number| fixture.seal(number, &tree(number))).collect();
    let before = pack_bytes(&fixture);
    let report = collect(&fixture, &roots[1..2]);
    let numbers: Vec<u64> = report.generations.iter().map(|n| n.get()).collect();
    assert_eq!(numbers, [1, 3, 4, 5]);
    assert_eq!((report.packs, report.damaged_packs.len()), (1, 0));
    assert!(pack_bytes(&fixture) * 2 < before);
    for _ in 0..2 {
        assert_eq!(fixture.read(&roots[1]).unwrap(), tree(2));
        assert_eq!(fixture.read(&roots[5]).unwrap(), tree(6));
        assert!(fixture.read(&roots[0]).is_err());
        assert_eq!(fixture.store().root(&roots[0].hash()).unwrap(), None);
        assert_eq!(fixture.store().generations().unwrap().len(), 2);
        assert_intact(&fixture);
        fixture.reopen();
    }
    assert_eq!(collect(&fixture, &roots[1..2]), CollectReport::default());
    let again = fixture.seal(7, &tree(1));
    assert_eq!(fixture.read(&again).unwrap(), tree(1));
    assert_intact(&fixture);
}

#[test]
fn history_is_measured_and_kept_within_its_bytes() {
    let fixture = Fixture::new();
    let store = fixture.store();
    assert_eq!(store.history_bytes().unwrap(), None, "nothing was measured");
    for number in 1..=6 {
        fixture.seal(number, &tree(number));
    }
    store.measure_current().unwrap();
    let one = 30_260;
    // Packs also have headers.
    let near =
        |bytes: u64, expected: u64| assert!(bytes.abs_diff(expected) < 9_000, "{bytes}, not {expected}");
    near(store.history_bytes().unwrap().unwrap(), 5 * one);
    let collect = |bytes| {
        let retention = Retention { generations: 2, bytes: Some(bytes), ..Retention::default() };
        let report = store.collect_garbage(retention, &HashSet::new(), None, 1_000, &|| false).unwrap();
        report.generations.iter().map(|number| number.get()).collect::<Vec<_>>()
    };
    assert_eq!(collect(6 * one), [] as [u64; 0]);
    assert_eq!(collect(3 * one + one / 2), [1, 2]);
    assert_eq!(collect(0), [3, 4], "the newest stay, whatever they take");
    assert_eq!(collect(0), [] as [u64; 0]);
    near(store.history_bytes().unwrap().unwrap(), one);
    assert_intact(&fixture);
}

#[test]
fn a_root_that_two_generations_have_goes_with_the_last() {
    let fixture = Fixture::new();
    let root = fixture.seal(1, &tree(1));
    fixture.seal(2, &tree(2));
    fixture.seal(3, &tree(1));
    collect(&fixture, &[]);
    assert_eq!(fixture.store().root(&root.hash()).unwrap(), Some(root));
    assert_eq!(fixture.read(&root).unwrap(), tree(1));
    fixture.seal(4, &tree(2));
    collect(&fixture, &[]);
    assert_eq!(fixture.store().root(&root.hash()).unwrap(), None);
}

#[test]
fn what_is_sealed_between_mark_and_sweep_stays() {
    let mut fixture = Fixture::new();
    fixture.seal(1, &tree(1));
    fixture.seal(2, &tree(2));
    BETWEEN.set(Some(Box::new(|store| {
        // Counts on content that was just found to be garbage.
        try_seal(store, 3, &tree(1)).unwrap();
    })));
    let report = collect(&fixture, &[]);
    assert_eq!(report.generations.len(), 1);
    fixture.reopen();
    let latest = fixture.store().latest().unwrap().unwrap();
    assert_eq!(fixture.read(&latest.generation.root).unwrap(), tree(1));
    assert_eq!(fixture.store().generations().unwrap().len(), 2);
    assert_intact(&fixture);
}

#[test]
fn a_reader_follows_a_chunk_that_garbage_collection_moves() {
    let fixture = Fixture::new();
    for number in 1..=5 {
        fixture.seal(number, &tree(number));
    }
    let chunk = ContentHash::of(&noise(0, 5_500)[..1_000]);
    let before = fixture.store().locate(&chunk).unwrap().unwrap();
    collect(&fixture, &[]);
    let gone = fixture.store().frame(before.pack, before.frame_offset);
    assert!(matches!(gone, Err(StoreError::PackMissing { .. })));
    let (location, frame) = fixture.store().frame_of(&chunk).unwrap().unwrap();
    assert_ne!(location, before);
    assert!(frame.chunk(&chunk).is_some());
}

#[test]
fn what_a_dropped_writer_committed_early_is_collected() {
    let fixture = Fixture::new();
    let root = fixture.seal(1, &tree(1));
    collect(&fixture, &[]);
    let mut writer = fixture.store().writer().unwrap();
    writer.set_pending_max_bytes(1);
    put_tree(&writer, &tree(2)).unwrap();
    drop(writer);
    let report = collect(&fixture, &[]);
    assert!(report.chunks > 30 && report.directories > 0 && report.generations.is_empty());
    assert_eq!(fixture.read(&root).unwrap(), tree(1));
    assert_intact(&fixture);
}

#[test]
fn a_lost_pack_is_stored_again_by_the_next_scan() {
    for cut in [None, Some(3), Some(100), Some(10_000)] {
        let mut fixture = Fixture::new();
        let root = fixture.seal(1, &tree(1));
        fixture.close();
        let pack = fixture.data.path().join("packs/00000001.pack");
        match cut {
            None => fs::remove_file(&pack).unwrap(),
            Some(length) => fs::File::options().write(true).open(&pack).unwrap().set_len(length).unwrap(),
        }
        fixture.reopen();
        assert!(fixture.read(&root).is_err());
        assert!(!fixture.store().check(|_| {}).is_intact());
        fixture.seal(2, &tree(1));
        assert_eq!(fixture.read(&root).unwrap(), tree(1));
    }
}

#[test]
fn content_that_rotted_is_forgotten_and_stored_again() {
    let mut fixture = Fixture::new();
    let root = fixture.seal(1, &tree(1));
    let writer = fixture.store().writer().unwrap();
    writer.put_stat(b"a", b"x").unwrap();
    writer.save().unwrap();
    let pack = fixture.data.path().join("packs/00000001.pack");
    flip(&pack, fs::metadata(&pack).unwrap().len() - 20);
    let report = fixture.store().check(|_| {});
    let rotten = report.damage.iter().filter(|d| matches!(d, Damage::Chunk { .. })).count() as u64;
    assert!(rotten > 0 && fixture.read(&root).is_err());
    assert_eq!(fixture.store().forget_damaged(&report).unwrap(), rotten);
    assert_eq!(fixture.store().stat(b"a").unwrap(), None);
    fixture.seal(2, &tree(1));
    fixture.reopen();
    assert_eq!(fixture.read(&root).unwrap(), tree(1));
    assert_eq!(fixture.store().forget_damaged(&CheckReport::default()).unwrap(), 0);
}

/// Flips every byte, truncates to every length and deletes the file: always an error or the right content.
fn assert_damage_is_seen(file: &str, damage: impl Fn(&Path)) {
    let mut fixture = Fixture::new();
    let root = fixture.seal(1, &tree(1));
    fixture.store().update_records(|r| r.put("agents", b"web1", b"value")).unwrap();
    fixture.close();
    damage(&fixture.data.path().join(file));
    let Ok(store) = Store::open(fixture.data.path()) else { return };
    let store = Arc::new(store);
    let latest = store.latest();
    if let Ok(Some(latest)) = &latest {
        let verified = latest.verify(latest.generation.tree_id, &key().verifying_key());
        assert!(verified.is_err() || latest.generation.root == root);
    }
    assert!(
        store.record("agents", b"web1").is_err()
            || store.record("agents", b"web1").unwrap().unwrap() == b"value"
    );
    let intact = store.check(|_| {}).is_intact();
    drop(store);
    fixture.reopen();
    match fixture.read(&root) {
        Ok(read) => assert_eq!(read, tree(1)),
        Err(_) => assert!(!intact, "check did not see it"),
    }
}

fn flip(path: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

fn length_of_a_sealed(file: &str) -> u64 {
    let mut fixture = Fixture::new();
    fixture.seal(1, &tree(1));
    fixture.store().update_records(|r| r.put("agents", b"web1", b"value")).unwrap();
    fixture.close();
    fs::metadata(fixture.data.path().join(file)).unwrap().len()
}

#[test]
fn damage_to_a_pack_is_seen() {
    let file = "packs/00000001.pack";
    let length = length_of_a_sealed(file);
    assert_damage_is_seen(file, |path| fs::remove_file(path).unwrap());
    for i in 0..40 {
        let at = if i < 16 { i } else { length * (i - 16) / 24 };
        assert_damage_is_seen(file, |path| flip(path, at));
        assert_damage_is_seen(file, |path| {
            fs::File::options().write(true).open(path).unwrap().set_len(at).unwrap();
        });
    }
}

#[test]
fn damage_to_the_index_is_seen() {
    let file = "index.redb";
    let length = length_of_a_sealed(file);
    assert_damage_is_seen(file, |path| fs::remove_file(path).unwrap());
    for i in 0..60 {
        let at = if i < 20 { i * 16 } else { length * (i - 20) / 40 };
        assert_damage_is_seen(file, |path| flip(path, at));
        assert_damage_is_seen(file, |path| {
            fs::File::options().write(true).open(path).unwrap().set_len(at).unwrap();
        });
    }
}

#[test]
fn another_format_is_refused() {
    for value in [None, Some(0), Some(2), Some(u64::MAX)] {
        let mut fixture = Fixture::new();
        fixture
            .store()
            .index
            .write(|t| {
                let mut meta = t.open_table(super::index::META).map_err(super::error::index)?;
                match value {
                    Some(value) => drop(meta.insert(super::index::META_FORMAT, value)),
                    None => drop(meta.remove(super::index::META_FORMAT)),
                }
                Ok::<_, StoreError>(())
            })
            .unwrap();
        fixture.close();
        let error = Store::open(fixture.data.path()).err().unwrap();
        assert!(matches!(error, OpenStoreError::Format { expected: 1, .. }));
        assert!(error.to_string().contains("format"));
    }
}

#[derive(Debug, Clone)]
enum Step {
    Seal(u64),
    Abandon(u64),
    Collect(u8),
    Reopen,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u64..12).prop_map(Step::Seal),
        1 => (0u64..12).prop_map(Step::Abandon),
        2 => any::<u8>().prop_map(Step::Collect),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn whatever_happens_retained_generations_stay_readable(
        steps in proptest::collection::vec(any_step(), 1..20),
    ) {
        let mut fixture = Fixture::new();
        let mut sealed: BTreeMap<u64, (RootEntry, u64)> = BTreeMap::new();
        let mut next = 1;
        for step in steps {
            match step {
                Step::Seal(seed) => {
                    sealed.insert(next, (fixture.seal(next, &tree(seed)), seed));
                    next += 1;
                }
                Step::Abandon(seed) => {
                    let mut writer = fixture.store().writer().unwrap();
                    writer.set_pending_max_bytes(if seed.is_multiple_of(2) { 1 } else { usize::MAX });
                    put_tree(&writer, &tree(seed)).unwrap();
                }
                Step::Collect(keep) => {
                    let retention = Retention { generations: usize::from(keep % 4), age: Duration::ZERO, bytes: None };
                    let held = sealed.values().nth(usize::from(keep) % (sealed.len() + 1));
                    let held: HashSet<_> = held.iter().map(|(root, _)| root.hash()).collect();
                    let report = fixture.store().collect_garbage(retention, &held, None, 1_000, &|| false).unwrap();
                    for number in report.generations {
                        let (root, _) = sealed.remove(&number.get()).unwrap();
                        prop_assert!(!held.contains(&root.hash()));
                    }
                }
                Step::Reopen => fixture.reopen(),
            }
            let numbers: Vec<u64> =
                fixture.store().generations().unwrap().iter().map(|g| g.generation.number.get()).collect();
            prop_assert_eq!(numbers, sealed.keys().copied().collect::<Vec<_>>());
            for (root, seed) in sealed.values() {
                prop_assert_eq!(fixture.read(root).unwrap(), tree(*seed));
            }
        }
        let report = fixture.store().check(|_| {});
        prop_assert!(report.is_intact(), "{:?}", report.damage);
    }
}
