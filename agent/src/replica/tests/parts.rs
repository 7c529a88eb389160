//! Updates that arrive and are applied part by part.

use super::*;
use crate::build::Staged;
use crate::source::FetchError;

/// Makes changes that span parts of any size.
fn edit_much(site: &Site) {
    let tree = site.tree();
    for number in 0..12 {
        site.write(&format!("gone/deep/er/{number}"), format!("goes {number}"));
        site.write(&format!("gone/{number}"), format!("goes, too {number}"));
        site.write(&format!("moves/from/{number}"), format!("moves {number}"));
        site.write(&format!("touched/{number}"), format!("only touched {number}"));
        site.write(&format!("kind/{number}"), "a directory becomes a file");
    }
    site.write("gone/with/whole/one", "a directory that moves out of what goes");
    assert!(tree.join("gone/with/whole").is_dir());
}

fn edit_much_again(site: &Site) {
    let tree = site.tree();
    edit(site);
    std::fs::rename(tree.join("gone/with/whole"), tree.join("zz-whole")).unwrap();
    std::fs::remove_dir_all(tree.join("gone")).unwrap();
    std::fs::remove_dir_all(tree.join("kind")).unwrap();
    site.write("kind", "a file");
    for number in 0..12 {
        site.write(&format!("aa/copies/{number}"), "one content at many places");
        site.write(&format!("zz/copies/{number}"), "one content at many places");
        std::fs::create_dir_all(tree.join("added")).unwrap();
        // One file stays, so that the directory is not renamed as a whole.
        if number > 0 {
            let (from, to) = (format!("moves/from/{number}"), format!("added/{number}"));
            std::fs::rename(tree.join(from), tree.join(to)).unwrap();
        }
        let touched = std::fs::File::open(tree.join(format!("touched/{number}"))).unwrap();
        touched.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(number)).unwrap();
    }
}

/// Number of new contents in the second generation, each fetched once with parts of any size.
const NEW: usize = 8;

fn second(changes: usize) -> (Site, Replica) {
    let site = Site::in_memory().in_parts_of(changes);
    edit_much(&site);
    let (site, replica) = settled_in(site);
    site.origin.sent.clear();
    edit_much_again(&site);
    (site, replica)
}

fn assert_second(site: &Site, replica: &mut Replica) {
    site.assert_live_is_tree();
    site.settle(replica);
    assert!(replica.status().spares >= 2);
    assert_tidy(site, replica);
    for spare in site.spares(replica) {
        assert_eq!(snapshot_below(&spare), snapshot_below(&site.tree()));
    }
    // The recorded inodes are right: nothing is searched for or fetched.
    let report = replica.verify(None, &|_| {}, &AtomicBool::new(false)).unwrap();
    assert_eq!(report.drift, []);
}

#[test]
fn an_update_in_parts_is_the_same_as_one_in_one() {
    for changes in [1, 2, 3, 7, 20, 1000] {
        let (mut site, mut replica) = second(changes);
        let kept = inode(&site.live().join("media/large.bin"));
        let moved = inode(&site.live().join("moves/from/7"));
        let whole = inode(&site.live().join("gone/with/whole/one"));
        assert!(site.publish(&mut replica));
        assert_eq!(inode(&site.live().join("media/large.bin")), kept);
        assert_eq!(inode(&site.live().join("added/7")), moved, "found in another part");
        assert_eq!(inode(&site.live().join("zz-whole/one")), whole);
        let mut sent = site.origin.sent.all();
        let places = sent.len();
        sent.sort_unstable();
        sent.dedup();
        // Only contents needed by several parts arrive more than once.
        assert_eq!(sent.len(), NEW, "parts of {changes}");
        assert!(if changes == 1000 { places == NEW } else { places < NEW + 24 }, "{places}");
        assert_second(&site, &mut replica);
        // Further updates work.
        site.write("docs/0/page-0.html", "third");
        site.publish(&mut replica);
        assert_second(&site, &mut replica);
    }
}

#[test]
fn metadata_alone_brings_no_content_in_any_part() {
    let site = Site::in_memory().in_parts_of(4);
    edit_much(&site);
    let (mut site, mut replica) = settled_in(site);
    site.origin.sent.clear();
    for number in 0..12 {
        let touched = std::fs::File::open(site.tree().join(format!("touched/{number}"))).unwrap();
        touched.set_modified(std::time::UNIX_EPOCH).unwrap();
    }
    let staged = {
        let target = site.origin.seal(&site.tree());
        site.stage(&mut replica, &target).unwrap()
    };
    assert_eq!(site.origin.sent.len(), 0);
    replica.activate(staged, &mut |_| Ok(())).unwrap();
    assert_second(&site, &mut replica);
}

#[test]
fn an_update_in_parts_that_failed_at_any_change_succeeds_when_it_is_tried_again() {
    let mut changes = 0;
    loop {
        let (mut site, mut replica) = second([2, 5, 11][changes as usize % 3]);
        fault::arm(Some(changes));
        let finished = update(&mut site, &mut replica);
        fault::arm(None);
        if finished {
            return;
        }
        // By the same process, or by the next one.
        if changes % 2 == 0 {
            replica.revive().unwrap();
        } else {
            drop(replica);
            replica = site.open();
        }
        let target = site.origin.last().clone();
        let staged = site.stage(&mut replica, &target).unwrap_or_else(|e| panic!("change {changes}: {e:?}"));
        replica.activate(staged, &mut |_| Ok(())).unwrap_or_else(|e| panic!("change {changes}: {e:?}"));
        assert_second(&site, &mut replica);
        changes += 5;
    }
}

fn stage_second(site: &mut Site, replica: &mut Replica) -> Result<Staged, StageError> {
    let target = site.origin.seal(&site.tree());
    site.stage(replica, &target)
}

#[test]
fn what_came_before_the_origin_went_is_not_fetched_again() {
    // Background work leaves the tree alone meanwhile, in this process and in the next.
    for is_next in [false, true] {
        let (mut site, mut replica) = second(5);
        site.origin.updates_break = true;
        let error = stage_second(&mut site, &mut replica).unwrap_err();
        assert!(matches!(error, StageError::Fetch(FetchError::Disconnected(_))), "{error:?}");
        if is_next {
            drop(replica);
            replica = site.open();
        }
        site.settle(&mut replica);
        site.origin.updates_break = false;
        site.origin.sent.clear();
        let target = site.origin.last().clone();
        site.follow(&mut replica, &target);
        // Only contents that further parts also need.
        let again = site.origin.sent.all();
        assert!(again.iter().all(|content| *content == ContentHash::of(b"one content at many places")));
        assert_second(&site, &mut replica);
    }
}

#[test]
fn parts_of_another_size_than_the_origins_cost_fetches_and_nothing_else() {
    for (own, origins) in [(3, 7), (7, 3), (1000, 5), (5, 1000)] {
        let (mut site, mut replica) = second(own);
        site.origin.part.changes = origins;
        site.publish(&mut replica);
        assert_second(&site, &mut replica);
    }
}

#[test]
fn deltas_are_made_part_by_part() {
    for changes in [1, 4, 1000] {
        let site = Site::in_memory().in_parts_of(changes);
        let (mut site, mut replica) = settled_in(site);
        site.origin.deltas = true;
        for number in 0..20 {
            let edited = format!("<p>{number}</p> edited");
            site.write(&format!("docs/{}/page-{number}.html", number % 3), edited);
        }
        site.origin.sent.clear();
        site.publish(&mut replica);
        assert_eq!(site.origin.sent.all(), [], "nothing was fetched whole");
        site.assert_live_is_tree();
    }
}

#[test]
fn live_files_that_were_changed_are_mended_in_the_part_they_are_in() {
    for changes in [1, 6] {
        let (mut site, mut replica) = second(changes);
        // Without spares every name is checked.
        while let Some((slot, _)) = replica.slots.lowest_spare() {
            replica.slots.discard(slot).unwrap();
        }
        for name in ["docs/0/page-6.html", "media/large.bin", "docs/2/page-8.html", "twin-b", "moves/from/0"]
        {
            std::fs::write(site.live().join(name), "changed on the node").unwrap();
        }
        site.publish(&mut replica);
        assert_second(&site, &mut replica);
    }
}

#[test]
fn what_was_changed_all_over_the_live_tree_is_healed_in_parts() {
    for changes in [1, 4, 1000] {
        let site = Site::in_memory().in_parts_of(changes);
        edit_much(&site);
        let (mut site, mut replica) = settled_in(site);
        let live = site.live().canonicalize().unwrap();
        for number in 0..12 {
            // Changed content with unchanged size and time, changed times and modes, a removed file, and
            // another kind of file.
            let path = live.join(format!("touched/{number}"));
            let time = path.metadata().unwrap().modified().unwrap();
            let mut content = std::fs::read(&path).unwrap();
            content[0] = b'?';
            std::fs::write(&path, content).unwrap();
            std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
            let touched = std::fs::File::open(live.join(format!("moves/from/{number}"))).unwrap();
            touched.set_modified(std::time::UNIX_EPOCH).unwrap();
            std::fs::remove_file(live.join(format!("gone/{number}"))).unwrap();
        }
        std::fs::set_permissions(live.join("twin-b"), PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::remove_dir_all(live.join("kind")).unwrap();
        std::fs::write(live.join("kind"), "a file").unwrap();
        std::fs::write(live.join("docs/extra"), "nobody's").unwrap();
        let mut origin = site.origin.clone();
        let report = replica.verify(Some(&mut origin), &|_| {}, &AtomicBool::new(false)).unwrap();
        assert!(report.healed);
        assert_eq!(report.drifted as usize, report.drift.len());
        assert!(report.drifted >= 39, "{:?}", report.drift);
        site.assert_live_is_tree();
        assert_eq!(replica.status().spare_misses, 0, "healing is none");
        edit_much_again(&site);
        site.publish(&mut replica);
        site.assert_live_is_tree();
    }
}
