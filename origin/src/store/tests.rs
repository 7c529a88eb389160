//! The store as a whole: sealing, crashes, damage.

use std::fs;
use std::sync::Arc;

use syncd_shared::hash::ContentHash;
use syncd_shared::{GenerationNumber, RootEntry};

use super::fixture::{Fixture, Tree, key, noise, put_content, put_tree, signed, tree, try_seal};
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
    assert_eq!(*writer.directory(&hash).unwrap().unwrap(), directory);
    assert!(fixture.store().directory(&hash).unwrap().is_none());
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
    assert!(fixture.store().directory(&root.object).unwrap().is_some());
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
