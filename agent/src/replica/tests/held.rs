//! A generation whose root this node has already is activated, not built.

use super::*;
use crate::session::worker::ReplicaWork;
use crate::state::hashing;
use crate::state::record::counts as pages;
use crate::state::slot::Slot;

/// Two generations held, the second live, everything settled.
fn two(site: Site) -> (Site, Replica) {
    two_by(site, edit)
}

/// Changes without a renamed directory, so that the node remembers what they touched.
fn edit_a_little(site: &Site) {
    site.write("docs/0/page-0.html", "edited");
    site.write("docs/new/deep/file", "new");
    std::fs::remove_file(site.tree().join("docs/1/page-1.html")).unwrap();
    set_mode(&site.tree().join("twin-b"), 0o600);
}

fn two_by(site: Site, edit: fn(&Site)) -> (Site, Replica) {
    let (mut site, mut replica) = settled_in(site);
    edit(&site);
    site.publish(&mut replica);
    site.settle(&mut replica);
    site.origin.sent.clear();
    (site, replica)
}

fn root_of(replica: &Replica, number: u64) -> RootEntry {
    let slot = replica.slots.generations()[&number];
    replica.slots.state(slot).and_then(Slot::held).unwrap().generation().root
}

/// Orders a new generation with the root of an older one. Returns whether nothing was asked of the origin.
fn return_to(site: &mut Site, replica: &mut Replica, number: u64) -> bool {
    let target = site.origin.seal_root(root_of(replica, number));
    site.origin.sent.clear();
    site.follow(replica, &target);
    site.origin.sent.len() == 0
}

/// Checks the live tree byte for byte, and that the record describes it.
fn assert_sound(site: &Site, replica: &mut Replica, expected: &[String]) {
    assert_eq!(snapshot(&site.live().canonicalize().unwrap()), expected);
    let report = replica.verify(None, &|_| {}, &AtomicBool::new(false)).unwrap();
    assert_eq!(report.drifted, 0, "{report:?}");
    site.settle(replica);
    assert_tidy(site, replica);
    for spare in site.spares(replica) {
        assert_eq!(snapshot_below(&spare), expected[1..]);
    }
}

#[test]
fn a_new_number_for_the_live_root_is_one_commit_and_switches_nothing() {
    for site in [Site::new(), Site::in_memory().exchanging()] {
        let (mut site, mut replica) = two(site);
        let (live, slot) = (inode(&site.live()), replica.slots.live_slot());
        let target = site.origin.seal_root(root_of(&replica, 2));
        let staged = site.stage(&mut replica, &target).unwrap();
        replica.activate(staged, &mut |_| panic!("no hook is due")).unwrap();
        assert!(site.origin.sent.len() == 0);
        assert_eq!((inode(&site.live()), replica.slots.live_slot()), (live, slot));
        let status = replica.status();
        assert_eq!((status.generations, status.spares), (vec![1, 3], 2));
        assert_eq!(status.accepted.unwrap().number().get(), 3);
        let expected = snapshot(&site.tree());
        assert_sound(&site, &mut replica, &expected);
        drop(replica);
        let replica = site.open();
        assert_eq!(replica.status().live.unwrap().number().get(), 3);
        assert_eq!((site.live_number(), site.generations()), (3, vec![1, 3]));
    }
}

#[test]
fn a_root_in_another_slot_becomes_live_as_it_is() {
    for site in [Site::new(), Site::in_memory().exchanging()] {
        let (mut site, mut replica) = two(site);
        let old = snapshot(&site.generation(1));
        let page = inode(&site.generation(1).join("docs/0/page-0.html"));
        assert!(return_to(&mut site, &mut replica, 1));
        assert_eq!(inode(&site.live().join("docs/0/page-0.html")), page);
        assert_eq!(site.generations(), [2, 3]);
        assert_sound(&site, &mut replica, &old);
        // Back again, and on with what is new.
        assert!(return_to(&mut site, &mut replica, 2));
        let edited = snapshot(&site.tree());
        assert_sound(&site, &mut replica, &edited);
        site.write("docs/0/page-0.html", "third");
        site.publish(&mut replica);
        site.assert_live_is_tree();
        let third = snapshot(&site.tree());
        assert_sound(&site, &mut replica, &third);
    }
}

#[test]
fn a_restart_forgets_nothing_that_a_return_needs() {
    let (mut site, replica) = two(Site::new());
    let old = snapshot(&site.generation(1));
    drop(replica);
    let mut replica = site.open();
    assert!(return_to(&mut site, &mut replica, 1));
    assert_sound(&site, &mut replica, &old);
}

#[test]
fn a_return_past_an_entry_that_went_and_came_back_is_right() {
    for restart in [false, true] {
        let (mut site, mut replica) = settled();
        replica.options.keep = 3;
        site.write("docs/0/page-0.html", "between");
        site.publish(&mut replica);
        site.write("docs/0/page-0.html", "<p>0</p>");
        site.write("twin-a", "a difference");
        let time =
            std::fs::metadata(site.generation(1).join("docs/0/page-0.html")).unwrap().modified().unwrap();
        let file = std::fs::File::options().write(true).open(site.tree().join("docs/0/page-0.html")).unwrap();
        file.set_modified(time).unwrap();
        let docs = std::fs::metadata(site.generation(1).join("docs/0")).unwrap().modified().unwrap();
        std::fs::File::open(site.tree().join("docs/0")).unwrap().set_modified(docs).unwrap();
        site.publish(&mut replica);
        if restart {
            drop(replica);
            replica = site.open();
            replica.options.keep = 3;
        }
        let old = snapshot(&site.generation(1));
        assert!(return_to(&mut site, &mut replica, 1));
        assert_sound(&site, &mut replica, &old);
    }
}

#[test]
fn a_node_returns_to_a_generation_whose_tree_has_to_be_built_anew() {
    let (mut site, mut replica) = two(Site::new());
    let old = snapshot(&site.generation(1));
    let slot = replica.slots.generations()[&1];
    let good = replica.slots.state(slot).and_then(Slot::held).unwrap().clone();
    // A visitor's file, so that nothing proves the tree.
    std::fs::write(site.generation(1).join("docs/0/upload.jpg"), "a picture").unwrap();
    return_back(&mut site, &mut replica, &good);
    assert_eq!((site.live_number(), replica.status().accepted.unwrap().number().get()), (1, 2));
    assert_eq!(snapshot(&site.live().canonicalize().unwrap()), old);
}

/// Returns to a held generation, as after a check that failed.
pub(super) fn return_back(site: &mut Site, replica: &mut Replica, good: &syncd_shared::SignedGeneration) {
    let cancel = AtomicBool::new(false);
    let staged = ReplicaWork::stage_return(replica, good, &mut site.origin, &|_| {}, &cancel).unwrap();
    replica.activate(staged, &mut |_| Ok(())).unwrap();
}

#[test]
fn a_return_takes_the_tree_of_its_number_and_not_an_earlier_one_at_its_root() {
    for site in [Site::new(), Site::in_memory().exchanging()] {
        let (mut site, mut replica) = two(site);
        replica.options.keep = 4;
        std::fs::write(site.generation(1).join("docs/0/upload.jpg"), "a picture").unwrap();
        return_to(&mut site, &mut replica, 1);
        let good = replica.slots.live().unwrap().clone();
        let old = snapshot(&site.live().canonicalize().unwrap());
        site.write("docs/0/page-0.html", "fourth");
        site.publish(&mut replica);
        assert_eq!(site.generations(), [1, 2, 3, 4]);
        site.origin.sent.clear();
        return_back(&mut site, &mut replica, &good);
        assert_eq!(site.origin.sent.len(), 0);
        let held: Vec<u64> = replica.slots.held().map(|(_, held)| held.number().get()).collect();
        assert_eq!(held.len(), 4, "two trees have one number: {held:?}");
        assert_eq!((site.live_number(), site.generations()), (3, vec![1, 2, 3, 4]));
        assert_eq!(snapshot(&site.live().canonicalize().unwrap()), old);
    }
}

#[test]
fn a_return_to_a_damaged_tree_leaves_one_tree_of_its_number() {
    let (mut site, mut replica) = two(Site::new());
    replica.options.keep = 4;
    std::fs::write(site.generation(1).join("docs/0/upload.jpg"), "a picture").unwrap();
    return_to(&mut site, &mut replica, 1);
    let good = replica.slots.live().unwrap().clone();
    let old = snapshot(&site.live().canonicalize().unwrap());
    site.write("docs/0/page-0.html", "fourth");
    site.publish(&mut replica);
    std::fs::write(site.generation(3).join("docs/0/upload.jpg"), "a picture").unwrap();
    return_back(&mut site, &mut replica, &good);
    let mut held: Vec<u64> = replica.slots.held().map(|(_, held)| held.number().get()).collect();
    held.sort_unstable();
    assert_eq!((site.live_number(), held), (3, vec![1, 2, 3, 4]));
    assert_eq!(snapshot(&site.live().canonicalize().unwrap()), old);
}

#[test]
fn a_return_that_the_origin_interrupts_can_be_tried_again_after_a_restart() {
    for site in [Site::new(), Site::in_memory().exchanging()] {
        let (mut site, mut replica) = two(site);
        let old = snapshot(&site.generation(1));
        let slot = replica.slots.generations()[&1];
        let good = replica.slots.state(slot).and_then(Slot::held).unwrap().clone();
        // Bytes that only the origin has then.
        std::fs::write(site.generation(1).join("docs/0/page-0.html"), "changed").unwrap();
        (site.origin.breaks_after, site.origin.forgetful) = (Some(0), true);
        let cancel = AtomicBool::new(false);
        let staged = ReplicaWork::stage_return(&mut replica, &good, &mut site.origin, &|_| {}, &cancel);
        assert!(staged.is_err());
        drop(replica);
        let mut replica = site.open();
        assert!(replica.slots.held().any(|(_, held)| *held == good), "the way back is forgotten");
        assert_eq!(site.generations(), [1, 2]);
        site.origin.breaks_after = None;
        return_back(&mut site, &mut replica, &good);
        assert_eq!((site.live_number(), site.generations()), (1, vec![1, 2]));
        assert_eq!(snapshot(&site.live().canonicalize().unwrap()), old);
    }
}

type Harm = fn(&Path);

/// Writes into a file and sets its time back, as a visitor can.
fn overwrite(file: &Path, content: &[u8]) {
    let time = std::fs::metadata(file).unwrap().modified().unwrap();
    std::fs::write(file, content).unwrap();
    std::fs::File::options().write(true).open(file).unwrap().set_modified(time).unwrap();
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

/// Damage that visitors may do to the tree of the first generation of [`two`].
const HARMS: [Harm; 7] = [
    |tree| overwrite(&tree.join("docs/0/page-0.html"), b"<p>X</p>"),
    |tree| {
        let file = tree.join("media/large.bin");
        let time = std::fs::metadata(&file).unwrap().modified().unwrap();
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, vec![1; 700_000]).unwrap();
        std::fs::File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
    },
    |tree| std::fs::write(tree.join("docs/1/shell.php"), "<?php").unwrap(),
    |tree| std::fs::remove_file(tree.join("docs/1/page-1.html")).unwrap(),
    |tree| set_mode(&tree.join("docs/1"), 0o777),
    // No update touches this directory.
    |tree| set_mode(&tree.join("media"), 0o777),
    |tree| set_mode(&tree.join("twin-b"), 0o666),
];

#[test]
fn a_held_tree_that_is_damaged_after_it_was_staged_does_not_become_live() {
    let edits: [fn(&Site); 2] = [edit, edit_a_little];
    for (index, harm) in HARMS.into_iter().enumerate() {
        for (site, edit) in [Site::in_memory(), Site::in_memory().exchanging()].into_iter().zip(edits) {
            let (mut site, mut replica) = two_by(site, edit);
            let (old, now) = (snapshot(&site.generation(1)), snapshot(&site.live().canonicalize().unwrap()));
            let target = site.origin.seal_root(root_of(&replica, 1));
            let staged = site.stage(&mut replica, &target).unwrap();
            let tree = site.generation(1);
            let activated = replica.activate(staged, &mut |_| {
                harm(&tree);
                Ok(())
            });
            assert!(matches!(activated, Err(ActivateError::Changed { number: 3 })), "{index}: {activated:?}");
            assert_eq!(snapshot(&site.live().canonicalize().unwrap()), now, "harm {index}");
            site.follow(&mut replica, &target);
            assert_eq!(snapshot(&site.live().canonicalize().unwrap()), old, "harm {index}");
            assert_eq!(site.live_number(), 3);
        }
    }
}

#[test]
fn local_damage_in_a_tree_that_rests_never_comes_back_to_life() {
    for (index, harm) in HARMS.into_iter().enumerate() {
        for (restart, edit) in [(false, edit as fn(&Site)), (false, edit_a_little), (true, edit)] {
            let (mut site, mut replica) = two_by(Site::in_memory(), edit);
            let old = snapshot(&site.generation(1));
            harm(&site.generation(1));
            if restart {
                drop(replica);
                replica = site.open();
            }
            return_to(&mut site, &mut replica, 1);
            let live = snapshot(&site.live().canonicalize().unwrap());
            assert_eq!(live, old, "harm {index}, restart {restart}");
            assert_eq!(site.generations(), [1, 2, 3], "the damaged tree is not the live one");
        }
    }
}

#[test]
fn damage_never_comes_back_to_life_by_a_second_return() {
    let harms: [Harm; 4] = [
        |tree| overwrite(&tree.join("docs/0/page-0.html"), b"EDITED"),
        |tree| std::fs::write(tree.join("media/shell.php"), "<?php").unwrap(),
        |tree| overwrite(&tree.join("docs/new/deep/file"), b"NEW"),
        |tree| set_mode(&tree.join("docs/new"), 0o777),
    ];
    for (index, harm) in harms.into_iter().enumerate() {
        let (mut site, mut replica) = two_by(Site::in_memory(), edit_a_little);
        let edited = snapshot(&site.generation(2));
        assert!(return_to(&mut site, &mut replica, 1));
        harm(&site.generation(2));
        return_to(&mut site, &mut replica, 2);
        assert_eq!(snapshot(&site.live().canonicalize().unwrap()), edited, "harm {index}");
        assert_eq!(site.generations(), [2, 3, 4], "the damaged tree is not the live one");
    }
}

#[test]
fn the_second_proof_reads_nothing_again_and_a_return_is_remembered_like_an_update() {
    let (mut site, mut replica) = two_by(Site::in_memory(), edit_a_little);
    let target = site.origin.seal_root(root_of(&replica, 1));
    let (read, asked) = (hashing::counted(), pages::asked());
    let staged = site.stage(&mut replica, &target).unwrap();
    let first = hashing::counted() - read;
    assert!(first > 0);
    let (staged_at, pages_of_first) = (pages::asked(), pages::asked() - asked);
    replica.activate(staged, &mut |_| Ok(())).unwrap();
    assert_eq!(hashing::counted() - read, first, "files were read by the second proof");
    let pages_of_second = pages::asked() - staged_at;
    assert!(pages_of_second * 2 < pages_of_first, "{pages_of_second} pages, the first {pages_of_first}");
    let since = replica.upkeep.history.since(2, 3).expect("the way from 2 to 3 is known");
    assert!(since.touched.names.contains_key(&path("docs/0")), "{since:?}");
    assert!(!since.touched.names.contains_key(&path("media")), "{since:?}");
}

#[test]
fn the_tree_of_the_first_sync_is_remembered_like_others() {
    let (mut site, mut replica) = two_by(Site::in_memory(), edit_a_little);
    let since = replica.upkeep.history.since(1, 2).expect("the way from 1 to 2 is known");
    assert!(since.touched.names.contains_key(&path("docs/0")), "{since:?}");
    let old = snapshot(&site.generation(1));
    assert!(return_to(&mut site, &mut replica, 1));
    assert_sound(&site, &mut replica, &old);
}

#[test]
fn a_number_with_a_second_tree_is_not_remembered() {
    let (mut site, mut replica) = two_by(Site::in_memory(), edit_a_little);
    let slot = replica.slots.generations()[&1];
    let good = replica.slots.state(slot).and_then(Slot::held).unwrap().clone();
    HARMS[2](&site.generation(1));
    return_back(&mut site, &mut replica, &good);
    assert_eq!(site.live_number(), 1);
    assert!(replica.upkeep.history.since(2, 1).is_none() && replica.upkeep.history.since(1, 1).is_none());
}

/// Prepares two generations of which the first will be live again.
fn back(site: &mut Site, replica: &mut Replica, number: u64) -> bool {
    let target = site.origin.seal_root(root_of(replica, number));
    match site.stage(replica, &target) {
        Ok(staged) => replica.activate(staged, &mut |_| Ok(())).is_ok(),
        Err(_) => false,
    }
}

/// Kills `back` before every change.
fn sweep_back(prepare: &dyn Fn() -> Site, number: u64) {
    for changes in 0.. {
        let (mut site, mut replica) = two(prepare());
        let (old, new) = (snapshot(&site.live().canonicalize().unwrap()), snapshot(&site.generation(number)));
        fault::arm(Some(changes));
        let finished = back(&mut site, &mut replica, number);
        fault::arm(None);
        drop(replica);
        let mut replica = site.open();
        let live = snapshot(&site.live().canonicalize().unwrap());
        let at = replica.status().live.unwrap().number().get();
        assert_eq!(site.live_number(), at, "change {changes}");
        assert_eq!(live, if at == 3 { new.clone() } else { old }, "change {changes}");
        assert!(!finished || at == 3, "acknowledged and lost, change {changes}");
        let target = site.origin.last().clone();
        site.follow(&mut replica, &target);
        assert_sound(&site, &mut replica, &new);
        if finished {
            assert!(changes > 2, "{changes} changes");
            return;
        }
    }
}

#[test]
fn a_kill_at_any_change_of_a_return_leaves_old_or_new() {
    sweep_back(&Site::in_memory, 1);
    sweep_back(&exchanging, 1);
}

#[test]
fn a_kill_at_any_change_of_a_new_number_leaves_old_or_new() {
    sweep_back(&Site::in_memory, 2);
    sweep_back(&exchanging, 2);
}

fn exchanging() -> Site {
    Site::in_memory().exchanging()
}
