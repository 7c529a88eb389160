//! The disk side as a whole: a content tree on one side, a replica on the other.

mod closed;
mod collected;
mod decisions;
mod deltas;
mod exchange;
mod foreign;
mod held;
mod lost_record;
mod mishaps;
mod occupied_names;
mod parts;
mod progress;
mod recycled;
mod visitors;
mod worker;

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use syncd_shared::{ContentHash, ContentTag, RootEntry};

use crate::build::StageError;
use crate::fixture::{Site, path, snapshot, snapshot_below};
use crate::replica::Replica;
use crate::replica::activate::{ActivateError, ActivationContext};
use crate::replica::decide::DecideError;
use crate::replica::maintain::Upkept;
use crate::replica::verify::Damage;
use crate::session::worker::Decision;
use crate::source::FetchError;
use crate::state::decisions::Named;
use crate::state::disk::fault;

fn inode(path: &Path) -> u64 {
    path.symlink_metadata().unwrap().ino()
}

/// One generation live, spares ready.
fn settled() -> (Site, Replica) {
    settled_in(Site::new())
}

fn settled_in(mut site: Site) -> (Site, Replica) {
    site.furnish();
    let mut replica = site.open();
    site.publish(&mut replica);
    site.settle(&mut replica);
    assert_eq!(replica.status().spares, 2);
    (site, replica)
}

/// Makes changes of every kind.
fn edit(site: &Site) {
    let tree = site.tree();
    site.write("docs/0/page-0.html", "edited");
    site.write("docs/new/deep/file", "new");
    site.write("docs/new/large.bin", vec![7u8; 200_000]);
    std::fs::remove_file(tree.join("docs/1/page-1.html")).unwrap();
    std::fs::rename(tree.join("docs/2"), tree.join("chapters")).unwrap();
    std::fs::rename(tree.join("twin-a"), tree.join("renamed-twin")).unwrap();
    std::fs::set_permissions(tree.join("twin-b"), PermissionsExt::from_mode(0o600)).unwrap();
    // Names change from one kind of file to another.
    std::fs::remove_file(tree.join("empty")).unwrap();
    site.write("empty/now-a-directory", "x");
    std::fs::remove_dir(tree.join("hollow")).unwrap();
    symlink("media", tree.join("hollow")).unwrap();
    std::fs::remove_file(tree.join("link")).unwrap();
    site.write("link", "now a file");
    std::fs::remove_file(tree.join("outside")).unwrap();
    symlink("/etc/shadow", tree.join("outside")).unwrap();
    std::fs::write(tree.join(std::ffi::OsStr::from_bytes(b"\xff\xfe")), "more bytes").unwrap();
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Asserts that no half-built tree and no leftovers exist, and that links and modes are right.
fn assert_tidy(site: &Site, replica: &Replica) {
    let slots = &replica.slots;
    let known: Vec<_> = slots.held().map(|(slot, _)| slot).chain(slots.spares().map(|(s, _)| s)).collect();
    let mut there: Vec<u64> =
        names(&site.root().join("slots")).iter().map(|name| name.parse().unwrap()).collect();
    there.extend(std::fs::symlink_metadata(site.live()).is_ok_and(|live| live.is_dir()).then_some(0));
    there.sort_unstable();
    assert!(there.iter().all(|slot| known.contains(slot)), "{there:?}, known are {known:?}");
    assert_eq!(there.len(), known.len());
    for spare in site.spares(replica) {
        assert_eq!(spare.metadata().unwrap().permissions().mode() & 0o777, 0o700, "{}", spare.display());
    }
    let numbers: Vec<u64> = slots.generations().into_keys().collect();
    assert_eq!(site.generations(), numbers);
    for (number, slot) in slots.generations() {
        assert_eq!(site.generation(number), slots.path(slot).canonicalize().unwrap());
    }
    let staging = names(&site.root().join("staging"));
    assert!(staging.iter().all(|name| name == "incoming"), "{staging:?}");
    let incoming = site.root().join("staging/incoming");
    // The directory itself must be gone: it would keep its size and be read at every update.
    assert!(!incoming.exists() || names(&incoming).is_empty());
    assert!(names(&site.root().join("trash")).is_empty());
    assert!(!site.root().join("live.next").is_symlink() && !site.root().join("previous.next").is_symlink());
}

#[test]
fn first_sync_makes_the_whole_tree_live() {
    let mut site = Site::new();
    site.furnish();
    let mut replica = site.open();
    site.publish(&mut replica);
    site.assert_live_is_tree();
    assert!(!site.root().join("previous").is_symlink());
    assert_eq!(replica.status().generations, [1]);
    // Two names within one generation are two inodes.
    assert_ne!(inode(&site.live().join("twin-a")), inode(&site.live().join("twin-b")));
}

#[test]
fn contents_that_come_again_beyond_what_is_remembered_are_placed_all_the_same() {
    let mut site = Site::new();
    // More repeats than are remembered.
    for (directory, number) in ["a", "b"].into_iter().flat_map(|d| (0..1100).map(move |n| (d, n))) {
        site.write(&format!("{directory}/{number}"), format!("again {number}"));
    }
    // Repeats within one window, in the next window, and in one asked for when the first is answered; all in
    // several pieces.
    let noise = |seed: u64, bytes: usize| -> Vec<u8> {
        let mut bytes = vec![0; bytes];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    };
    let again = noise(0, 400_000);
    for (index, fill) in ["c", "d", "e", "f"].into_iter().enumerate() {
        site.write(&format!("{fill}/one"), &again);
        site.write(&format!("{fill}/two"), &again);
        site.write(&format!("{fill}/z"), noise(1 + index as u64, 66 << 20));
    }
    // Two contents left by an interrupted attempt, each with two places.
    let mut replica = site.open();
    let left = noise(100, 300_000);
    site.write("g/one", &left);
    site.write("g/two", &left);
    let hash = ContentHash::of(&left).to_string();
    let fan = site.root().join("staging/incoming").join(&hash[..1]);
    std::fs::create_dir_all(&fan).unwrap();
    std::fs::write(fan.join(&hash), &left).unwrap();
    site.publish(&mut replica);
    site.assert_live_is_tree();
    assert_tidy(&site, &replica);
    let one = inode(&site.live().join("g/one"));
    assert_ne!(one, inode(&site.live().join("g/two")));
}

#[test]
fn contents_that_begin_with_the_same_five_bytes_of_hash_are_told_apart() {
    const PAIR: [&str; 2] = ["page 1284966\n", "page 1691862\n"];
    let [one, other] = PAIR.map(|text| ContentTag::of(&ContentHash::of(text.as_bytes())));
    assert_eq!(one, other);
    // In a first sync they arrive in two windows; an update has to fetch them by hash.
    for in_first_sync in [true, false] {
        let mut site = Site::new();
        site.furnish();
        let mut replica = site.open();
        if !in_first_sync {
            site.publish(&mut replica);
        }
        site.write("pair/a", PAIR[0]);
        site.write("pair/b", PAIR[1]);
        site.write("pair/c", PAIR[0]);
        site.write("pair/d", "another");
        site.publish(&mut replica);
        site.assert_live_is_tree();
        assert_tidy(&site, &replica);
    }
}

#[test]
fn an_update_patches_a_spare_and_keeps_untouched_inodes() {
    let (mut site, mut replica) = settled();
    let untouched = site.live().join("media/large.bin").canonicalize().unwrap();
    let edited = site.live().join("docs/0/page-0.html").canonicalize().unwrap();
    let (kept, replaced) = (inode(&untouched), inode(&edited));
    site.origin.sent.clear();
    edit(&site);
    let target = site.origin.seal(&site.tree());
    let staged = site.stage(&mut replica, &target).unwrap();
    let mut changed = Vec::new();
    replica
        .activate(staged, &mut |context| Ok(context.changed_paths.each(&mut |p| changed.push(p.clone()))?))
        .unwrap();
    site.assert_live_is_tree();
    assert_eq!(replica.status().spare_misses, 0);
    assert_eq!(inode(&site.live().join("media/large.bin")), kept);
    assert_ne!(inode(&site.live().join("docs/0/page-0.html")), replaced);
    assert_eq!(site.origin.sent.len(), 6);
    let moved = ["chapters/page-2.html", "docs/2/page-2.html"];
    assert!(moved.iter().all(|name| changed.contains(&path(name))) && changed.is_sorted(), "{changed:?}");
    // The old generation is unchanged.
    assert_eq!(std::fs::read(edited).unwrap(), b"<p>0</p>");
    site.settle(&mut replica);
    assert_eq!((replica.status().spares, replica.status().spare_misses), (2, 0));
    assert_tidy(&site, &replica);
    for spare in site.spares(&replica) {
        assert_eq!(snapshot_below(&spare), snapshot_below(&site.tree()));
    }
}

/// Directories of several pages: names come, go and change in all of them, while trees take turns.
#[test]
fn updates_of_wide_directories_keep_inodes_and_are_right_in_each_tree() {
    let site = Site::new();
    (0..700).for_each(|n| site.write(&format!("wide/page-{n:04}.html"), format!("page {n}")));
    (0..300).for_each(|n| site.write(&format!("all/{n:03}/one"), format!("below {n}")));
    let (mut site, mut replica) = settled_in(site);
    let kept = |site: &Site| inode(&site.live().join("wide/page-0350.html"));
    let before = kept(&site);
    for round in 0..6 {
        site.write(&format!("wide/page-{:04}-new.html", round * 97), format!("new in {round}"));
        site.write(&format!("wide/page-{:04}.html", round * 50), format!("changed in {round}"));
        std::fs::remove_file(site.tree().join(format!("wide/page-{:04}.html", 699 - round * 13))).unwrap();
        site.write(&format!("all/{:03}/two", round * 40), "another");
        site.write(&format!("all/1{round:02}-new/one"), "a directory");
        std::fs::remove_dir_all(site.tree().join(format!("all/2{round:02}"))).unwrap();
        site.publish(&mut replica);
        site.assert_live_is_tree();
        assert_eq!((kept(&site), replica.status().spare_misses), (before, 0));
        site.settle(&mut replica);
        for spare in site.spares(&replica) {
            assert_eq!(snapshot_below(&spare), snapshot_below(&site.tree()));
        }
        assert_tidy(&site, &replica);
    }
    // Somebody adds a name to a tree that is no longer live, behind the agent's back.
    let previous = site.root().join("previous").canonicalize().unwrap();
    std::fs::write(previous.join("wide/page-0001-planted"), "x").unwrap();
    for round in 0..4 {
        site.write("wide/page-0000.html", format!("later {round}"));
        site.publish(&mut replica);
        site.settle(&mut replica);
        site.assert_live_is_tree();
    }
}

#[test]
fn without_a_spare_a_farm_is_built_and_counted() {
    let mut site = Site::new();
    site.furnish();
    let mut replica = site.open();
    site.publish(&mut replica);
    edit(&site);
    assert!(!site.publish(&mut replica));
    site.assert_live_is_tree();
    assert_eq!(replica.status().spare_misses, 1);
}

#[test]
fn a_spare_that_is_behind_is_caught_up_on_the_way() {
    let (mut site, mut replica) = settled();
    for i in 0..2 {
        site.write("docs/0/page-0.html", format!("edit {i}"));
        assert!(site.publish(&mut replica));
        site.assert_live_is_tree();
    }
}

#[test]
fn an_unknown_basis_takes_the_general_path_and_fetches_only_what_is_lacking() {
    let (mut site, mut replica) = settled();
    site.origin.forgetful = true;
    site.origin.sent.clear();
    edit(&site);
    site.write("copy-of-large.bin", std::fs::read(site.tree().join("media/large.bin")).unwrap());
    site.publish(&mut replica);
    site.assert_live_is_tree();
    assert_eq!(site.origin.sent.len(), 6);
}

#[test]
fn a_rollback_to_a_held_generation_fetches_nothing() {
    let (mut site, mut replica) = settled();
    let before = snapshot(&site.tree());
    let old: RootEntry = replica.slots.live().unwrap().generation().root;
    edit(&site);
    site.publish(&mut replica);
    site.settle(&mut replica);
    site.origin.sent.clear();
    let target = site.origin.seal_root(old);
    site.follow(&mut replica, &target);
    assert_eq!(snapshot(&site.live().canonicalize().unwrap()), before);
    assert_eq!(site.origin.sent.len(), 0);
}

#[test]
fn the_same_root_under_a_new_number_is_switched_to() {
    let (mut site, mut replica) = settled();
    site.publish(&mut replica);
    assert_eq!(site.live_number(), 2);
    site.assert_live_is_tree();
    let again = replica.slots.live().unwrap().clone();
    let staged = site.stage(&mut replica, &again).unwrap();
    let nothing = |context: &ActivationContext<'_>| {
        Ok(context.changed_paths.each(&mut |path| panic!("{path} is the same"))?)
    };
    replica.activate(staged, &mut { nothing }).unwrap();
}

#[test]
fn older_and_conflicting_generations_are_refused() {
    let (mut site, mut replica) = settled();
    let old = replica.slots.live().unwrap().clone();
    site.publish(&mut replica);
    assert!(matches!(site.stage(&mut replica, &old), Err(StageError::Refused(_))));
}

#[test]
fn a_failing_hook_keeps_the_old_generation_and_the_staged_tree() {
    let (mut site, mut replica) = settled();
    edit(&site);
    let target = site.origin.seal(&site.tree());
    let staged = site.stage(&mut replica, &target).unwrap();
    let error = replica.activate(staged, &mut |_| Err("config test failed".into())).unwrap_err();
    let ActivateError::Hook { staged, .. } = error else { panic!("{error}") };
    assert_eq!(site.live_number(), 1);
    replica.activate(*staged, &mut |_| Ok(())).unwrap();
    site.assert_live_is_tree();
}

#[test]
fn what_arrived_before_the_connection_broke_is_not_fetched_again() {
    let mut site = Site::new();
    site.furnish();
    let target = site.origin.seal(&site.tree());
    let mut replica = site.open();
    site.origin.breaks_after = Some(5);
    let error = site.stage(&mut replica, &target).unwrap_err();
    assert!(matches!(error, StageError::Fetch(FetchError::Disconnected(_))), "{error}");
    drop(replica);
    let mut replica = site.open();
    site.origin.breaks_after = None;
    let before = site.origin.sent.len();
    site.origin.sent.clear();
    site.follow(&mut replica, &target);
    site.assert_live_is_tree();
    assert!(site.origin.sent.len() < before);
    site.settle(&mut replica);
    assert_tidy(&site, &replica);
}

#[test]
fn pieces_may_come_in_any_order() {
    let mut site = Site::new();
    site.write("large", (0..3_000_000u32).map(|i| (i / 1000) as u8).collect::<Vec<_>>());
    site.origin.backwards = true;
    let target = site.origin.seal(&site.tree());
    let mut replica = site.open();
    site.follow(&mut replica, &target);
    site.assert_live_is_tree();
}

#[test]
fn a_change_in_a_retired_tree_never_comes_back_and_is_reported() {
    let (mut site, mut replica) = settled();
    site.options.keep = 1;
    replica.options.keep = 1;
    site.write("docs/0/page-0.html", "second");
    site.publish(&mut replica);
    let retired = site.generation(1);
    std::fs::write(retired.join("docs/1/backdoor.php"), "<?php").unwrap();
    std::fs::remove_file(retired.join("docs/1/page-4.html")).unwrap();
    std::fs::write(retired.join("docs/1/page-4.html"), "defaced").unwrap();
    replica.upkeep.last_write = None;
    site.settle(&mut replica);
    let drift = replica.status().drift.unwrap();
    assert_eq!((drift.generation, drift.paths, drift.first.as_str()), (1, 2, "docs/1/backdoor.php"));
    for i in 0..4 {
        site.write("docs/0/page-0.html", format!("edit {i}"));
        site.publish(&mut replica);
        site.assert_live_is_tree();
        site.settle(&mut replica);
    }
    assert_eq!(replica.status().generations.len(), 1);
}

#[test]
fn a_file_replaced_in_the_live_tree_is_not_linked_on() {
    let (mut site, mut replica) = settled();
    let victim = site.live().join("docs/1/page-4.html");
    let mtime = victim.metadata().unwrap().modified().unwrap();
    std::fs::remove_file(&victim).unwrap();
    std::fs::write(&victim, "<x>4</x>").unwrap();
    std::fs::File::options().write(true).open(&victim).unwrap().set_modified(mtime).unwrap();
    for spare in site.spares(&replica) {
        std::fs::remove_dir_all(spare).unwrap();
    }
    drop(replica);
    replica = site.open();
    let done = replica.maintain(&AtomicBool::new(false)).unwrap();
    assert_eq!(done.did, Upkept::LiveDamaged { paths: 1, first: Some(path("docs/1/page-4.html")) });
    edit(&site);
    site.publish(&mut replica);
    site.assert_live_is_tree();
}

#[test]
fn damage_of_the_live_tree_is_found_and_healed() {
    let (mut site, mut replica) = settled();
    let live = site.live().canonicalize().unwrap();
    let large = live.join("media/large.bin");
    let mtime = large.metadata().unwrap().modified().unwrap();
    let mut bytes = std::fs::read(&large).unwrap();
    bytes[5] ^= 1;
    std::fs::write(&large, bytes).unwrap();
    std::fs::File::options().write(true).open(&large).unwrap().set_modified(mtime).unwrap();
    std::fs::write(live.join("hollow/extra"), "x").unwrap();
    std::fs::remove_file(live.join("docs/0/page-3.html")).unwrap();
    std::fs::set_permissions(live.join("twin-a"), PermissionsExt::from_mode(0o666)).unwrap();
    let opened = std::fs::File::open(&large).unwrap();
    site.origin.sent.clear();
    let report = replica.verify(Some(&mut site.origin), &|_| {}, &AtomicBool::new(false)).unwrap();
    let found: Vec<_> = report.drift.iter().map(|d| (d.path.to_string(), d.what)).collect();
    let expected = [
        ("docs/0", Damage::Metadata),
        ("docs/0/page-3.html", Damage::Missing),
        ("hollow", Damage::Metadata),
        ("hollow/extra", Damage::Extra),
        ("media/large.bin", Damage::Content),
        ("twin-a", Damage::Metadata),
    ];
    assert_eq!(found, expected.map(|(p, d)| (p.to_owned(), d)));
    assert!(report.healed);
    site.assert_live_is_tree();
    assert_eq!(site.origin.sent.len(), 2);
    assert_eq!(opened.metadata().unwrap().len(), 700_000);
    site.settle(&mut replica);
    assert_tidy(&site, &replica);
    let report = replica.verify(None, &|_| {}, &AtomicBool::new(false)).unwrap();
    assert!(report.drift.is_empty() && !report.healed, "{:?}", report.drift);
    assert_eq!(report.files, replica.slots.live().unwrap().generation().root.totals.files);
    edit(&site);
    site.publish(&mut replica);
    site.assert_live_is_tree();
}

#[test]
fn a_command_verifies_by_the_owner_that_the_agent_ran_with() {
    let mut site = Site::new();
    site.furnish();
    // Without privileges everything stays the user's, and nothing differs.
    let owner = Some((4242, 4243));
    site.options.owner = owner;
    let mut replica = site.open();
    site.publish(&mut replica);
    drop(replica);
    site.options.owner = None;
    site.options.owner_as_before = true;
    let mut replica = site.open();
    assert_eq!(replica.options.owner, owner);
    let report = replica.verify(None, &|_| {}, &AtomicBool::new(false)).unwrap();
    assert!(report.drift.is_empty(), "{:?}", report.drift);
    drop(replica);
    // An agent that runs without the option forgets the owner.
    site.options.owner_as_before = false;
    drop(site.open());
    site.options.owner_as_before = true;
    assert_eq!(site.open().options.owner, None);
}

#[test]
fn another_owner_is_given_everything_at_once_and_is_no_drift() {
    use crate::session::worker::ReplicaWork;
    let (mut site, replica) = settled();
    drop(replica);
    site.options.owner = Some((4242, 4243));
    let mut replica = site.open();
    let never = AtomicBool::new(false);
    assert!(ReplicaWork::maintain(&mut replica, &never).verify);
    assert!(!ReplicaWork::maintain(&mut replica, &never).verify, "asked for once");
    let report = replica.verify(Some(&mut site.origin), &|_| {}, &never).unwrap();
    if rustix::process::geteuid().is_root() {
        assert!(report.healed);
        let owner =
            |path: &str| std::os::unix::fs::MetadataExt::uid(&site.live().join(path).metadata().unwrap());
        for path in [".", "docs/1/page-4.html", "media/large.bin", "twin-a", "hollow"] {
            assert_eq!(owner(path), 4242, "{path}");
        }
    }
    assert_eq!(replica.status().drift, None);
    drop(replica);
    let mut replica = site.open();
    assert!(!ReplicaWork::maintain(&mut replica, &never).verify, "it is the same owner");
}

#[test]
fn a_lost_record_is_built_again_from_the_live_tree() {
    let (mut site, mut replica) = settled();
    edit(&site);
    site.publish(&mut replica);
    drop(replica);
    let record = site.root().join("state/record.redb");
    std::fs::write(&record, "garbage").unwrap();
    let mut replica = site.open();
    let status = replica.status();
    assert_eq!(status.live.map(|l| l.number().get()), Some(2));
    assert_eq!(status.accepted.map(|l| l.number().get()), Some(2));
    site.assert_live_is_tree();
    site.settle(&mut replica);
    site.write("docs/0/page-0.html", "third");
    site.origin.sent.clear();
    assert!(site.publish(&mut replica));
    assert_eq!(site.origin.sent.len(), 1);
    site.assert_live_is_tree();
}

#[test]
fn a_refusal_is_taken_back_by_the_number_announced_last_without_its_record() {
    let (site, mut replica) = settled();
    let mut refused = Named::of(&replica.status().live.unwrap());
    refused.number = 7;
    replica.decide(Decision::Refuse(refused, "broken".into())).unwrap();
    replica.decide(Decision::Announced(refused, 9)).unwrap();
    drop(replica);
    std::fs::remove_file(site.root().join("state/record.redb")).unwrap();
    let mut replica = site.open();
    assert!(matches!(replica.decide(Decision::Accept(8)), Err(DecideError::NotRefused { number: 8 })));
    replica.decide(Decision::Accept(9)).unwrap();
    assert!(matches!(replica.decide(Decision::Accept(7)), Err(DecideError::NotRefused { number: 7 })));
}

#[test]
fn without_record_a_damaged_live_tree_is_served_until_it_is_staged_anew() {
    let (mut site, replica) = settled();
    drop(replica);
    std::fs::remove_file(site.root().join("state/record.redb")).unwrap();
    std::fs::write(site.live().join("twin-a"), "other").unwrap();
    let mut replica = site.open();
    assert_eq!(replica.status().live, None);
    let accepted = replica.status().accepted.unwrap();
    assert_eq!(accepted.number().get(), 1);
    assert!(site.live().join("twin-b").exists());
    site.follow(&mut replica, &accepted);
    site.assert_live_is_tree();
    assert_eq!(site.live_number(), 1);
}

#[test]
fn retired_trees_are_bounded_and_what_is_taken_early_is_counted() {
    let (mut site, mut replica) = settled();
    replica.options.grace = std::time::Duration::from_secs(3600);
    for i in 0..14 {
        site.write("docs/0/page-0.html", format!("edit {i}"));
        site.publish(&mut replica);
        site.settle(&mut replica);
    }
    let status = replica.status();
    assert_eq!(status.generations.len(), replica.options.keep + 8);
    assert!(status.recycled_early > 0);
    site.assert_live_is_tree();
}

/// Runs `test` with a ROOT on a small file system of its own. Skips it if this user may not mount one.
fn on_a_small_disk(options: &str, test: impl FnOnce(&mut Site, &Path)) {
    let mut site = Site::new();
    let small = site.temp.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", options, "tmpfs"])
        .arg(&small)
        .status();
    if !mounted.is_ok_and(|s| s.success()) {
        return;
    }
    let root = small.join("root");
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&mut site, &root)));
    let unmounted = std::process::Command::new("umount").arg(&small).status();
    assert!(unmounted.is_ok_and(|s| s.success()));
    outcome.unwrap_or_else(|e| std::panic::resume_unwind(e));
}

#[test]
fn a_full_disk_is_a_clear_error_and_the_old_generation_stays() {
    on_a_small_disk("size=8m,nr_inodes=200", |site, root| {
        site.furnish();
        let mut replica = Replica::open(root, site.options.clone()).unwrap();
        site.publish(&mut replica);
        site.write("huge.bin", vec![1u8; 9_000_000]);
        let target = site.origin.seal(&site.tree());
        let error = site.stage(&mut replica, &target).unwrap_err();
        assert!(matches!(error, StageError::NoSpace { .. }), "{error}");
        std::fs::remove_file(site.tree().join("huge.bin")).unwrap();
        for i in 0..200 {
            site.write(&format!("many/{i}"), "x");
        }
        let target = site.origin.seal(&site.tree());
        let error = site.stage(&mut replica, &target).unwrap_err();
        assert!(matches!(error, StageError::NoInodes { .. }), "{error}");
        assert_eq!(std::fs::read_link(root.join("live")).unwrap(), Path::new("slots/1"));
        assert_eq!(replica.status().live.unwrap().number().get(), 1);
    });
}

/// Replaces a file of 3 MB by an update. Returns the generations kept.
fn replace_a_large_file(site: &mut Site, replica: &mut Replica, i: u8) -> Result<Vec<u64>, StageError> {
    site.write("large.bin", vec![i; 3_000_000]);
    let target = site.origin.seal(&site.tree());
    let staged = site.stage(replica, &target)?;
    replica.activate(staged, &mut |_| Ok(())).unwrap();
    Ok(replica.status().generations)
}

#[test]
fn what_is_kept_gives_way_to_an_update_but_not_what_the_node_would_return_to() {
    on_a_small_disk("size=16m", |site, root| {
        site.options.keep = 20;
        let mut replica = Replica::open(root, site.options.clone()).unwrap();
        let mut kept = Vec::new();
        for i in 0..9 {
            if i == 3 {
                std::fs::create_dir_all(root.join("lost+found/1")).unwrap();
                std::fs::write(root.join("lost+found/1/upload"), vec![1; 100_000]).unwrap();
            }
            kept = replace_a_large_file(site, &mut replica, i).unwrap();
            assert!(
                kept.contains(&(u64::from(i) + 1)) && (i == 0 || kept.contains(&u64::from(i))),
                "{kept:?}"
            );
            site.settle(&mut replica);
        }
        assert!((2..6).contains(&kept.len()), "{kept:?}");
        assert!(!root.join("lost+found/1").exists(), "it gives way before generations do");
        // A tree that a web server may still read is never given up, so the update is refused.
        replica.options.grace = std::time::Duration::from_secs(3600);
        let error = (10..20).find_map(|i| replace_a_large_file(site, &mut replica, i).err()).unwrap();
        assert!(matches!(error, StageError::NoSpace { .. }), "{error}");
        assert!(kept.iter().all(|number| root.join(format!("generations/{number}")).exists()));
        // After the grace period the update succeeds even if only the live tree and the one before it exist:
        // a disk that two releases fill must not block all updates.
        replica.options.grace = std::time::Duration::ZERO;
        replace_a_large_file(site, &mut replica, 21).unwrap();
        for i in 22..26 {
            site.write("large.bin", vec![i; 6_000_000]);
            let target = site.origin.seal(&site.tree());
            let staged = site.stage(&mut replica, &target).unwrap();
            replica.activate(staged, &mut |_| Ok(())).unwrap();
        }
        assert_eq!(replica.status().generations.len(), 2);
    });
}

/// Stops `work` before each of its changes to the disk in turn, as a kill would, and reopens the replica each
/// time.
fn sweep(prepare: &dyn Fn() -> (Site, Replica), work: &dyn Fn(&mut Site, &mut Replica) -> bool) {
    let mut changes = 0;
    loop {
        let (mut site, mut replica) = prepare();
        let old = snapshot(&site.tree());
        let first_sync = !site.live().exists();
        edit(&site);
        let new = snapshot(&site.tree());
        site.origin.reseal_is_noop = true;
        fault::arm(Some(changes));
        let finished = work(&mut site, &mut replica);
        fault::arm(None);
        drop(replica);
        let mut replica = site.open();
        if finished || !first_sync || site.live().exists() {
            let live = snapshot(&site.live().canonicalize().unwrap());
            let number = replica.status().live.unwrap().number().get();
            assert!(live == old || live == new, "neither old nor new, killed before change {changes}");
            assert_eq!(site.live_number(), number);
            assert_eq!(live == new, number == site.new_number(), "killed before change {changes}");
            assert!(!finished || live == new, "acknowledged and lost, killed before change {changes}");
        }
        // The next update succeeds without help, and nothing is left over.
        let target = site.origin.last().clone();
        site.follow(&mut replica, &target);
        assert_eq!(snapshot(&site.live().canonicalize().unwrap()), new, "change {changes}");
        site.settle(&mut replica);
        let status = replica.status();
        assert_eq!(status.spares as u64, 2 + status.spare_misses, "change {changes}");
        assert_tidy(&site, &replica);
        for spare in site.spares(&replica) {
            assert_eq!(snapshot_below(&spare), new[1..], "change {changes}");
        }
        if finished {
            return;
        }
        changes += 1;
    }
}

fn update(site: &mut Site, replica: &mut Replica) -> bool {
    let target = site.origin.seal(&site.tree());
    match site.stage(replica, &target) {
        Ok(staged) => replica.activate(staged, &mut |_| Ok(())).is_ok(),
        Err(_) => false,
    }
}

#[test]
fn a_kill_at_any_change_of_an_update_leaves_old_or_new() {
    sweep(&|| settled_in(Site::in_memory()), &update);
}

#[test]
fn a_kill_at_any_change_of_a_first_sync_leaves_nothing_or_all() {
    sweep(&|| sealed_in(Site::in_memory()), &update);
}

/// Nothing live, one generation to follow.
fn sealed_in(mut site: Site) -> (Site, Replica) {
    site.furnish();
    site.origin.seal(&site.tree());
    let replica = site.open();
    (site, replica)
}

#[test]
fn a_kill_at_any_change_of_background_work_leaves_old_or_new() {
    let prepare = || {
        let (mut site, mut replica) = settled_in(Site::in_memory());
        replica.options.keep = 1;
        site.write("docs/0/page-0.html", "second");
        site.publish(&mut replica);
        (site, replica)
    };
    sweep(&prepare, &|site, replica| {
        site.origin.seal(&site.tree());
        replica.upkeep.last_write = None;
        for _ in 0..50 {
            match replica.maintain(&AtomicBool::new(false)) {
                Ok(done) if done.next == Some(std::time::Duration::ZERO) => {}
                Ok(_) => return update(site, replica),
                Err(_) => return false,
            }
        }
        false
    });
}

#[test]
fn a_kill_at_any_change_of_healing_leaves_a_complete_tree() {
    kill_healing(&Site::in_memory);
}

fn kill_healing(new: &dyn Fn() -> Site) {
    let mut changes = 0;
    loop {
        let (mut site, mut replica) = settled_in(new());
        std::fs::write(site.live().join("docs/0/page-3.html"), "defaced").unwrap();
        fault::arm(Some(changes));
        let report = replica.verify(Some(&mut site.origin), &|_| {}, &AtomicBool::new(false));
        fault::arm(None);
        drop(replica);
        let mut replica = site.open();
        assert_eq!(site.live_number(), 1);
        assert_eq!(snapshot(&site.live().canonicalize().unwrap()).len(), snapshot(&site.tree()).len());
        replica.verify(Some(&mut site.origin), &|_| {}, &AtomicBool::new(false)).unwrap();
        site.assert_live_is_tree();
        site.settle(&mut replica);
        replica.verify(Some(&mut site.origin), &|_| {}, &AtomicBool::new(false)).unwrap();
        site.settle(&mut replica);
        assert_eq!(replica.status().spares, 2, "killed before change {changes}");
        edit(&site);
        site.publish(&mut replica);
        site.assert_live_is_tree();
        site.settle(&mut replica);
        assert_tidy(&site, &replica);
        if report.is_ok_and(|r| r.healed) {
            return;
        }
        changes += 1;
    }
}

#[test]
fn what_was_staged_is_not_activated_after_healing_has_begun() {
    let mut site = Site::new();
    for i in 0..6000 {
        site.write(&format!("zzz/{}/{i}", i % 60), "x");
    }
    site.furnish();
    let mut replica = site.open();
    site.publish(&mut replica);
    site.settle(&mut replica);
    edit(&site);
    let target = site.origin.seal(&site.tree());
    let staged = site.stage(&mut replica, &target).unwrap();
    let error = replica.activate(staged, &mut |_| Err("config test failed".into())).unwrap_err();
    let ActivateError::Hook { staged, .. } = error else { panic!("{error}") };
    let tree = replica.slots.path(staged.slot.unwrap());
    assert!(tree.join("chapters").exists());
    std::fs::remove_file(site.live().join("docs/1/page-4.html")).unwrap();
    let cancel = AtomicBool::new(false);
    let report = std::thread::scope(|scope| {
        scope.spawn(|| {
            let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
            while tree.join("chapters").exists() && std::time::Instant::now() < end {}
            cancel.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        replica.verify(Some(&mut site.origin), &|_| {}, &cancel)
    });
    assert!(report.is_err(), "{report:?}");
    let activated = replica.activate(*staged, &mut |_| Ok(()));
    assert!(matches!(activated, Err(ActivateError::Outdated { .. })), "{activated:?}");
    // After staging again it is complete.
    let staged = site.stage(&mut replica, &target).unwrap();
    replica.activate(staged, &mut |_| Ok(())).unwrap();
    site.assert_live_is_tree();
}

#[test]
fn healing_forgets_what_a_slot_served() {
    let (mut site, mut replica) = settled();
    let number = replica.status().live.unwrap().number().get();
    replica.slots.hook_succeeded(number).unwrap();
    let slot = replica.slots.live_slot().unwrap();
    assert!(replica.slots.served(slot).is_some());
    std::fs::write(site.live().join("docs/1/page-4.html"), "defaced").unwrap();
    let report = replica.verify(Some(&mut site.origin), &|_| {}, &AtomicBool::new(false)).unwrap();
    assert!(report.healed);
    assert!(replica.slots.served(slot).is_none());
}

#[test]
fn a_slot_with_local_damage_is_not_known_to_have_served_anything() {
    let mut site = Site::new();
    site.furnish();
    site.options.keep = 1;
    site.options.grace = Duration::ZERO;
    let mut replica = site.open();
    site.publish(&mut replica);
    site.settle(&mut replica);
    let succeeded = |replica: &mut Replica| {
        let number = replica.status().live.unwrap().number().get();
        replica.slots.hook_succeeded(number).unwrap();
    };
    succeeded(&mut replica);
    let slot = replica.slots.live_slot().unwrap();
    // A web server may have cached it under this slot's path.
    std::fs::remove_file(site.live().join("docs/1/page-4.html")).unwrap();
    std::fs::write(site.live().join("docs/1/page-4.html"), "backdoor").unwrap();
    site.write("docs/0/page-0.html", "second");
    site.publish(&mut replica);
    succeeded(&mut replica);
    assert!(replica.slots.served(slot).is_some());
    site.settle(&mut replica);
    assert!(replica.status().drift.is_some());
    assert_eq!(replica.slots.served(slot), None);
    drop(replica);
    assert_eq!(site.open().slots.served(slot), None, "after a restart");
}
