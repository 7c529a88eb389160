//! Reuse of trees: reserved spares, retired trees, and how many are kept.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::*;
use crate::clock::Clock;
use crate::session::worker::ReplicaWork;
use crate::source::Source;
use crate::state::slot::Slot;

/// Inodes of all files and symlinks below a directory, by path.
fn inodes(root: &Path) -> BTreeMap<std::path::PathBuf, u64> {
    let mut found = BTreeMap::new();
    let mut wanted = vec![root.to_owned()];
    while let Some(directory) = wanted.pop() {
        for item in std::fs::read_dir(&directory).unwrap() {
            let path = item.unwrap().path();
            if path.symlink_metadata().unwrap().is_dir() {
                wanted.push(path);
            } else {
                found.insert(path.strip_prefix(root).unwrap().to_owned(), inode(&path));
            }
        }
    }
    found
}

/// Asserts that every spare, reserved or not, equals the live tree link by link.
fn assert_spares_are_links(site: &Site, replica: &Replica) {
    let live = site.live().canonicalize().unwrap();
    let spares = site.spares(replica);
    assert!(!spares.is_empty());
    for spare in spares {
        assert_eq!(snapshot_below(&spare), snapshot_below(&live), "{spare:?}");
        assert_eq!(inodes(&spare), inodes(&live), "{spare:?}");
    }
}

fn protect_from(replica: &mut Replica, number: Option<u64>) {
    replica.slots.protect_from(number, replica.options.clock.now());
}

#[test]
fn a_content_that_came_back_is_linked_anew_in_a_tree_that_was_retired_before() {
    let (mut site, mut replica) = settled();
    replica.options.keep = 1;
    replica.options.grace = Duration::from_secs(3600);
    let page = site.tree().join("docs/0/page-0.html");
    let aside = site.temp.path().join("aside");
    std::fs::rename(&page, &aside).unwrap();
    site.write("docs/0/page-0.html", "second");
    site.publish(&mut replica);
    // No tree of the replica has it to link, so the content is written to a new file.
    std::fs::remove_file(site.generation(1).join("docs/0/page-0.html")).unwrap();
    std::fs::rename(&aside, &page).unwrap();
    site.publish(&mut replica);
    replica.options.grace = Duration::ZERO;
    site.settle(&mut replica);
    assert_spares_are_links(&site, &replica);
    site.write("docs/1/page-1.html", "fourth");
    site.publish(&mut replica);
    site.assert_live_is_tree();
    assert_eq!(replica.status().spare_misses, 0);
}

#[test]
fn a_spare_that_was_left_behind_is_not_taken_for_ready_where_a_content_came_back() {
    let (mut site, mut replica) = settled();
    replica.upkeep.spares.wanted = 3;
    site.settle(&mut replica);
    assert_eq!(replica.status().spares, 3);
    let first = site.origin.last().generation().root;
    site.write("docs/0/page-0.html", "second");
    site.publish(&mut replica);
    // No tree of the replica has it to link, so the content is written to a new file.
    std::fs::remove_file(site.generation(1).join("docs/0/page-0.html")).unwrap();
    let back = site.origin.seal_root(first);
    site.follow(&mut replica, &back);
    assert_eq!(replica.status().spares, 0, "the third has another inode under this name");
    assert!(replica.slots.record().known().unwrap().slots.values().all(|state| state.spare().is_none()));
    site.settle(&mut replica);
    assert!(!replica.upkeep.damaged);
    assert_spares_are_links(&site, &replica);
}

#[test]
fn names_that_came_into_a_retired_tree_are_found_also_where_its_times_were_put_back() {
    let (mut site, mut replica) = settled();
    replica.options.keep = 1;
    replica.options.grace = Duration::from_secs(3600);
    site.write("docs/0/page-0.html", "second");
    site.publish(&mut replica);
    site.settle(&mut replica);
    let retired = site.generation(1);
    let shown = std::fs::metadata(retired.join("docs/2")).unwrap().modified().unwrap();
    std::fs::write(retired.join("docs/2/hidden"), "x").unwrap();
    std::fs::File::open(retired.join("docs/2")).unwrap().set_modified(shown).unwrap();
    std::fs::write(retired.join("docs/1/planted"), "x").unwrap();
    let shown = std::fs::metadata(&retired).unwrap().modified().unwrap();
    std::fs::write(retired.join("index.php"), "x").unwrap();
    std::fs::File::open(&retired).unwrap().set_modified(shown).unwrap();
    replica.options.grace = Duration::ZERO;
    replica.upkeep.spares.wanted = 3;
    // As after many retired trees: only directories are checked.
    replica.upkeep.retired.inspected_whole = Some(Instant::now());
    site.settle(&mut replica);
    assert_eq!(replica.status().drift.map(|drift| drift.paths), Some(3));
    let kept = site.root().join("lost+found/1");
    for name in ["docs/1/planted", "docs/2/hidden", "index.php"] {
        assert!(kept.join(name).exists(), "{name}");
    }
    assert_spares_are_links(&site, &replica);
}

#[test]
fn a_tree_that_was_retired_before_live_was_healed_is_looked_at_as_a_whole() {
    let (mut site, mut replica) = settled();
    replica.options.keep = 1;
    replica.options.grace = Duration::from_secs(3600);
    site.write("docs/0/page-0.html", "second");
    site.publish(&mut replica);
    let victim = site.live().join("docs/1/page-4.html").canonicalize().unwrap();
    let mtime = victim.metadata().unwrap().modified().unwrap();
    // Edited in place: all trees have this inode, and no directory shows the change.
    std::fs::write(&victim, "<x>4</x>").unwrap();
    std::fs::File::options().write(true).open(&victim).unwrap().set_modified(mtime).unwrap();
    let report = replica.verify(Some(&mut site.origin), &|_| {}, &AtomicBool::new(false)).unwrap();
    assert!(report.healed);
    replica.options.grace = Duration::ZERO;
    site.settle(&mut replica);
    assert_spares_are_links(&site, &replica);
}

#[test]
fn more_spares_are_kept_where_they_were_lacking_and_fewer_after_hours_without() {
    let (mut site, mut replica) = settled();
    let start = Instant::now();
    let clock = Clock::given(start);
    replica.options.clock = clock.clone();
    replica.options.keep = 1;
    replica.options.grace = Duration::from_secs(150);
    let burst = |site: &mut Site, replica: &mut Replica, what: &str| {
        let before = replica.status().spare_misses;
        for i in 0..6 {
            site.write("docs/0/page-0.html", format!("{what} {i}"));
            site.publish(replica);
            site.assert_live_is_tree();
        }
        replica.status().spare_misses - before
    };
    let missed = burst(&mut site, &mut replica, "first");
    assert!(missed > 2, "{missed}");
    clock.set(start + Duration::from_secs(200));
    site.settle(&mut replica);
    assert_eq!(replica.status().spares as u64, 2 + missed);
    assert_spares_are_links(&site, &replica);
    assert_eq!(burst(&mut site, &mut replica, "second"), 0);
    for hour in 1..10 {
        clock.set(start + Duration::from_secs(3700 * hour));
        site.settle(&mut replica);
    }
    assert_eq!(replica.status().spares, 2);
    assert_spares_are_links(&site, &replica);
    assert_tidy(&site, &replica);
}

#[test]
fn a_spare_that_was_meant_for_an_update_that_did_not_come_stays_a_spare() {
    let (mut site, mut replica) = settled();
    let from = replica.slots.live().unwrap().root_hash();
    site.write("docs/0/page-0.html", "second");
    let target = site.origin.seal(&site.tree());
    let inline = |site: &mut Site| {
        let frames = site.origin.update(from, target.root_hash()).unwrap();
        Some((from, frames.map(Result::unwrap).collect::<Vec<_>>()))
    };
    let update = inline(&mut site);
    let cancelled = replica.stage(&target, update, &mut site.origin, &|_| {}, &AtomicBool::new(true));
    assert!(matches!(cancelled, Err(StageError::Cancelled)), "{:?}", cancelled.err());
    assert_eq!(replica.slots.spares().count(), 2);
    assert_spares_are_links(&site, &replica);
    let update = inline(&mut site);
    let staged = replica.stage(&target, update, &mut site.origin, &|_| {}, &AtomicBool::new(false)).unwrap();
    assert!(staged.signed.is_some());
    assert_eq!(names(&site.root().join("state/signed")), ["1", "2"]);
    replica.activate(staged, &mut |_| Ok(())).unwrap();
    site.assert_live_is_tree();
}

fn reserved_slot(replica: &Replica) -> u64 {
    let is_reserved = |slot: &u64| matches!(replica.slots.state(*slot), Some(Slot::Reserved(_)));
    let reserved: Vec<u64> = replica.slots.spares().map(|(slot, _)| slot).filter(is_reserved).collect();
    assert_eq!(reserved.len(), 1, "one is reserved ahead of need");
    reserved[0]
}

/// Slots that are spares in the record.
fn recorded_spares(replica: &Replica) -> Vec<u64> {
    let known = replica.slots.record().known().unwrap().slots.into_iter();
    known.filter(|(_, state)| state.spare().is_some()).map(|(slot, _)| slot).collect()
}

#[test]
fn a_small_update_takes_the_lowest_spare_which_was_reserved_ahead_of_need() {
    let (mut site, mut replica) = settled();
    for content in ["second", "third"] {
        let (slot, others) = (reserved_slot(&replica), recorded_spares(&replica));
        assert!(others.iter().all(|other| *other > slot), "{slot} {others:?}");
        site.write("docs/0/page-0.html", content);
        site.publish(&mut replica);
        site.assert_live_is_tree();
        assert_eq!(replica.slots.live_slot(), Some(slot));
        assert_eq!(recorded_spares(&replica), others, "no other spare was touched");
        site.settle(&mut replica);
    }
    assert_eq!((replica.status().spares, replica.status().spare_misses), (2, 0));
    assert_spares_are_links(&site, &replica);
}

#[test]
fn three_slots_take_turns_and_a_fourth_is_in_reserve() {
    let (mut site, mut replica) = settled();
    let mut slots = Vec::new();
    for round in 0..9 {
        site.write("docs/0/page-0.html", format!("round {round}"));
        site.publish(&mut replica);
        site.assert_live_is_tree();
        site.settle(&mut replica);
        slots.push(replica.slots.live_slot().unwrap());
    }
    // No tree has been retired yet.
    assert_eq!(slots, [2, 3, 1, 2, 3, 1, 2, 3, 1]);
    assert_eq!(names(&site.root().join("slots")), ["1", "2", "3", "4"]);
    // A burst of commits also uses the reserve. Afterwards three slots take turns again.
    replica.options.grace = Duration::from_secs(3600);
    for round in 0..3 {
        site.write("docs/0/page-0.html", format!("burst {round}"));
        site.publish(&mut replica);
    }
    site.settle(&mut replica);
    replica.options.grace = Duration::ZERO;
    site.settle(&mut replica);
    for round in 0..6 {
        site.write("docs/0/page-0.html", format!("again {round}"));
        site.publish(&mut replica);
        site.settle(&mut replica);
        slots.push(replica.slots.live_slot().unwrap());
    }
    let (first, second) = slots[9..].split_at(3);
    assert_eq!(first, second, "whichever they are");
    // One more slot if a spare was missing.
    assert!(names(&site.root().join("slots")).len() <= 5);
}

#[test]
fn previous_names_what_was_live_before_and_never_a_tree_that_may_be_changed() {
    for keep in [1, 2, 3] {
        let (mut site, mut replica) = settled();
        replica.options.keep = keep;
        replica.options.grace = Duration::from_secs(3600);
        let previous = site.root().join("previous");
        assert!(!previous.is_symlink(), "there was nothing before");
        for content in ["second", "third", "fourth"] {
            let before = site.live().canonicalize().unwrap();
            site.write("docs/0/page-0.html", content);
            site.publish(&mut replica);
            assert_eq!(previous.canonicalize().unwrap(), before);
            site.settle(&mut replica);
            assert_eq!(previous.canonicalize().unwrap(), before);
        }
        replica.options.grace = Duration::ZERO;
        site.settle(&mut replica);
        assert_eq!(previous.is_symlink(), keep > 1, "kept are {keep}");
        // The next process creates it again.
        drop(replica);
        let link = std::fs::read_link(&previous).ok();
        let _ = std::fs::remove_file(&previous);
        site.options.keep = keep;
        drop(site.open());
        assert_eq!(std::fs::read_link(&previous).ok(), link);
    }
}

#[test]
fn an_end_in_order_leaves_both_spares_to_the_next_start() {
    let (site, mut replica) = settled();
    let before: Vec<_> = site.spares(&replica).iter().map(|spare| (inode(spare), spare.clone())).collect();
    reserved_slot(&replica);
    crate::session::worker::ReplicaWork::end(&mut replica);
    drop(replica);
    let mut replica = site.open();
    assert_eq!(replica.status().spares, 2);
    assert_eq!(recorded_spares(&replica).len(), 2);
    assert_spares_are_links(&site, &replica);
    assert_eq!(replica.maintain(&AtomicBool::new(false)).unwrap().did, Upkept::Drawn);
    let after: Vec<_> = site.spares(&replica).iter().map(|spare| (inode(spare), spare.clone())).collect();
    assert_eq!(before, after, "the same trees as before");
}

#[test]
fn what_is_written_into_a_reserved_spare_before_a_kill_does_not_come_to_life() {
    let (mut site, mut replica) = settled();
    let reserved = replica.slots.path(reserved_slot(&replica));
    // As an update does that is killed half way.
    std::fs::remove_file(reserved.join("docs/0/page-0.html")).unwrap();
    std::fs::write(reserved.join("docs/0/page-0.html"), "half of an update").unwrap();
    std::fs::write(reserved.join("docs/0/planted"), "new").unwrap();
    drop(replica);
    replica = site.open();
    assert_eq!(replica.status().spares, 1);
    site.settle(&mut replica);
    assert_eq!(replica.status().spares, 2);
    assert_spares_are_links(&site, &replica);
    site.write("docs/1/page-1.html", "second");
    site.publish(&mut replica);
    site.assert_live_is_tree();
}

/// Leaves the files of an agent whose on-activate hook is due for generation 2 and last succeeded for 1.
fn leave_due(site: &Site) -> std::path::PathBuf {
    let record = site.root().join("state/on-activate.pending");
    let occasion =
        r#"{"generation":2,"root":"","label":"","previous":1,"tree":"/","live":"/live","succeeded":1}"#;
    std::fs::write(&record, occasion).unwrap();
    record
}

#[test]
fn trees_that_a_failing_hook_may_have_left_the_web_server_on_stay_and_their_grace_begins_with_its_success() {
    let (mut site, mut replica) = settled();
    let start = Instant::now();
    let clock = Clock::given(start);
    replica.options.clock = clock.clone();
    replica.options.keep = 1;
    replica.options.grace = Duration::from_secs(150);
    let served = site.generation(1);
    let first = (snapshot(&served), inodes(&served));
    protect_from(&mut replica, Some(1));
    for number in 2..14 {
        site.write("docs/0/page-0.html", format!("version {number}"));
        site.publish(&mut replica);
        protect_from(&mut replica, Some(1));
        replica.bound_retired();
        clock.set(start + Duration::from_secs(1000 * number));
        site.settle(&mut replica);
    }
    assert_eq!(
        replica.status().generations,
        (1..14).collect::<Vec<_>>(),
        "more than are ever kept otherwise"
    );
    assert_eq!(replica.status().recycled_early, 0);
    assert_eq!((snapshot(&served), inodes(&served)), first);
    // The hook succeeds for generation 13.
    protect_from(&mut replica, None);
    site.settle(&mut replica);
    let left = replica.status().generations;
    assert_eq!(left, (5..14).collect::<Vec<_>>(), "beyond so many the oldest go early, as ever");
    clock.set(start + Duration::from_secs(13_140));
    site.settle(&mut replica);
    assert_eq!(replica.status().generations, left, "none has rested yet");
    clock.set(start + Duration::from_secs(13_160));
    site.settle(&mut replica);
    assert_eq!(replica.status().generations, [13]);
    site.assert_live_is_tree();
}

#[test]
fn a_tree_that_an_activation_left_uncommitted_is_a_building_and_nobody_may_enter_it() {
    let (mut site, mut replica) = settled();
    site.write("docs/0/page-0.html", "second");
    let target = site.origin.seal(&site.tree());
    let staged = site.stage(&mut replica, &target).unwrap();
    let slot = staged.slot.unwrap();
    replica.slots.reveal(slot, &target.generation().root).unwrap();
    drop((staged, replica));
    let mut replica = site.open();
    assert_eq!(replica.slots.buildings(), [slot]);
    assert_eq!(replica.slots.path(slot).metadata().unwrap().permissions().mode() & 0o777, 0o700);
    site.settle(&mut replica);
    assert_tidy(&site, &replica);
    site.follow(&mut replica, &target);
    site.assert_live_is_tree();
}

#[test]
fn a_start_knows_what_the_web_server_may_still_serve_also_without_the_record() {
    let (mut site, mut replica) = settled();
    site.write("docs/0/page-0.html", "second");
    site.publish(&mut replica);
    let served = site.generation(1);
    let first = (snapshot(&served), inodes(&served));
    drop(replica);
    let due = leave_due(&site);
    let mut replica = site.open();
    replica.options.keep = 1;
    site.settle(&mut replica);
    assert_eq!(replica.status().generations, [1, 2]);
    drop(replica);
    for name in names(&site.root().join("state")) {
        if name.starts_with("record") {
            std::fs::remove_file(site.root().join("state").join(name)).unwrap();
        }
    }
    let mut replica = site.open();
    assert_eq!(replica.status().generations, [2], "what is live tells of itself");
    site.settle(&mut replica);
    assert_eq!((snapshot(&served), inodes(&served)), first);
    drop(replica);
    // The hook has succeeded.
    std::fs::remove_file(due).unwrap();
    let mut replica = site.open();
    site.settle(&mut replica);
    assert!(!served.exists() || inodes(&served) != first.1, "it may be built on, and may go");
    assert_spares_are_links(&site, &replica);
}

#[test]
fn updates_without_a_pause_let_the_trash_grow_no_further_than_they_fill_it() {
    let (mut site, mut replica) = settled_in(Site::in_memory());
    let (start, clock) = (Instant::now(), Clock::given(Instant::now()));
    replica.options.clock = clock.clone();
    let trash = site.root().join("trash");
    let (mut number, staging) = (0, site.root().join("staging"));
    let mut fill = |replica: &Replica, names: u32| {
        for _ in 0..names {
            number += 1;
            let name = format!("thrown-away-{number}");
            std::fs::write(staging.join(&name), "x").unwrap();
            let layout = replica.slots.layout();
            layout.discard(&layout.staging, name.as_bytes()).unwrap();
        }
    };
    let mut update = |replica: &mut Replica, round: u32| {
        site.write("docs/0/page-0.html", format!("round {round}"));
        site.publish(replica);
        ReplicaWork::bound(replica);
        // Once for each update, however often it is called.
        ReplicaWork::bound(replica);
    };
    for round in 0..30 {
        clock.set(start + Duration::from_millis(200) * round);
        fill(&replica, 40);
        update(&mut replica, round);
        assert!(names(&trash).len() <= 40, "round {round}: {}", names(&trash).len());
    }
    // If a minute of small shares was not enough, larger ones follow.
    fill(&replica, 3_000);
    update(&mut replica, 30);
    assert!(names(&trash).len() > 2_900);
    for round in 31..36 {
        clock.set(start + Duration::from_secs(70) + Duration::from_millis(200) * round);
        update(&mut replica, round);
    }
    assert_eq!(names(&trash), [""; 0]);
    assert!(replica.slots.layout().trash.is_empty());
}

#[test]
fn the_number_of_a_tree_that_was_deleted_by_hand_waits_for_the_hook() {
    let (mut site, mut replica) = settled();
    site.write("docs/0/page-0.html", "second");
    site.publish(&mut replica);
    let served = site.generation(1);
    drop(replica);
    let due = leave_due(&site);
    std::fs::remove_dir_all(&served).unwrap();
    for is_restarted in [true, false] {
        let mut replica = site.open();
        if !is_restarted {
            site.write("docs/0/page-0.html", "third");
            site.publish(&mut replica);
        }
        site.settle(&mut replica);
        assert_eq!(replica.status().spares, 2);
        assert!(!served.exists(), "Apache may still look there");
    }
    // The hook has succeeded.
    std::fs::remove_file(due).unwrap();
    let mut replica = site.open();
    site.settle(&mut replica);
    replica.options.keep = 20;
    for round in 0..4 {
        site.write("docs/0/page-0.html", format!("round {round}"));
        site.publish(&mut replica);
        site.settle(&mut replica);
    }
    assert!(served.exists());
    assert_tidy(&site, &replica);
}

#[test]
fn where_the_live_tree_was_deleted_by_hand_nothing_is_built_in_its_place_before_the_hook_succeeded() {
    let (mut site, mut replica) = settled();
    let served = site.generation(1);
    std::fs::remove_dir_all(&served).unwrap();
    let target = site.origin.last().clone();
    let staged = site.stage(&mut replica, &target).unwrap();
    // As noted for the hook.
    replica.protect(Some(0));
    replica.activate(staged, &mut |_| Ok(())).unwrap();
    site.assert_live_is_tree();
    assert!(!site.root().join("previous").is_symlink(), "to nothing");
    for round in 0..3 {
        site.settle(&mut replica);
        site.write("docs/0/page-0.html", format!("round {round}"));
        site.publish(&mut replica);
    }
    assert!(!served.exists());
    replica.protect(None);
    site.settle(&mut replica);
    assert!(replica.slots.gone().is_empty());
}

#[test]
fn a_tree_that_comes_back_after_it_was_deleted_is_inspected() {
    let (site, mut replica) = with_a_gone_tree();
    let (served, away) = (site.root().join("slots/1"), site.temp.path().join("away"));
    std::fs::write(away.join("docs/1/upload.jpg"), "a picture").unwrap();
    std::fs::rename(&away, &served).unwrap();
    replica.options.grace = Duration::ZERO;
    site.settle(&mut replica);
    let kept = super::visitors::kept(&site);
    assert!(kept.iter().any(|(path, _)| path == "1/docs/1/upload.jpg"), "{kept:?}");
    assert_tidy(&site, &replica);
}

/// Generation 2 is live, and the tree of generation 1 was moved away during its grace period.
fn with_a_gone_tree() -> (Site, Replica) {
    let (mut site, mut replica) = settled();
    replica.options.grace = Duration::from_secs(3600);
    site.write("docs/0/page-0.html", "second");
    site.publish(&mut replica);
    std::fs::rename(site.generation(1), site.temp.path().join("away")).unwrap();
    site.settle(&mut replica);
    assert_eq!(replica.slots.gone(), [1]);
    (site, replica)
}

/// Files and symlinks of a tree with all that is replicated of them, by path.
fn leaves(tree: &Path) -> BTreeMap<String, String> {
    let leaf = |line: &String| {
        let (path, rest) = line.split_once("\" ")?;
        (!rest.ends_with("directory")).then(|| (path.trim_start_matches('"').to_owned(), rest.to_owned()))
    };
    snapshot_below(tree).iter().filter_map(leaf).collect()
}

#[test]
fn the_paths_of_a_slot_are_those_that_differ_from_any_tree_it_served_since_the_hook_succeeded() {
    use std::collections::BTreeSet;
    let (mut site, mut replica) = settled();
    // Trees that each slot served since, and with, the last success.
    let mut served: BTreeMap<std::path::PathBuf, Vec<BTreeMap<String, String>>> = BTreeMap::new();
    let mut known = 0;
    for round in 0..12u64 {
        let tree = site.tree();
        match round % 4 {
            0 => site.write(&format!("docs/new/{round}"), "comes"),
            1 => std::fs::remove_file(tree.join(format!("docs/new/{}", round - 1))).unwrap(),
            2 => std::fs::rename(tree.join("media"), tree.join("moved")).unwrap(),
            _ => std::fs::rename(tree.join("moved"), tree.join("media")).unwrap(),
        }
        site.write("docs/0/page-0.html", format!("round {round}"));
        let target = site.origin.seal(&tree);
        let staged = site.stage(&mut replica, &target).unwrap();
        let mut told = BTreeSet::new();
        let mut slot = None;
        let activated = replica.activate(staged, &mut |context| {
            slot = Some(context.staged_tree.clone());
            Ok(context.slot_paths.each(&mut |path| {
                let shown = format!("{:?}", Path::new(std::ffi::OsStr::from_bytes(path.as_bytes())));
                told.insert(shown.trim_matches('"').to_owned());
            })?)
        });
        activated.unwrap();
        let (slot, now) = (slot.unwrap(), leaves(&tree));
        let mut expected = BTreeSet::new();
        for before in served.get(&slot).into_iter().flatten() {
            let names = before.keys().chain(now.keys());
            expected.extend(names.filter(|name| before.get(*name) != now.get(*name)).cloned());
            known += 1;
        }
        assert_eq!(told, expected, "round {round}");
        // Every third run of the hook fails: what was served then counts as well.
        if round % 3 != 2 {
            ReplicaWork::hook_succeeded(&mut replica, target.number().get());
            served.insert(slot, vec![now]);
        } else if let Some(before) = served.get_mut(&slot) {
            before.push(now);
        }
        site.settle(&mut replica);
    }
    assert!(known > 4, "{known}");
}
