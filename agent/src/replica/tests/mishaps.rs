//! Failures that the process survives and has to overcome without a restart.

use super::*;
use crate::replica::OpenReplicaError;
use crate::session::worker::ReplicaWork;
use crate::state::layout::LayoutError;

/// A small file system of its own under ROOT, if this process may mount one.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn under(site: &Site, options: &str) -> Option<Self> {
        let root = site.root();
        std::fs::create_dir(&root).unwrap();
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(&root)
            .stderr(std::process::Stdio::null())
            .status();
        mount.is_ok_and(|s| s.success()).then_some(Self(root))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn two_names_are_one_inode(tree: &Path) -> bool {
    let mut seen = std::collections::HashSet::new();
    let mut waiting = vec![tree.to_path_buf()];
    while let Some(dir) = waiting.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            match metadata.is_dir() {
                true => waiting.push(path),
                false if !seen.insert(metadata.ino()) => return true,
                false => {}
            }
        }
    }
    false
}

#[test]
fn an_update_that_failed_at_any_change_succeeds_when_it_is_tried_again() {
    fail_an_update(&Site::in_memory);
}

pub(super) fn fail_an_update(new: &dyn Fn() -> Site) {
    let mut changes = 0;
    loop {
        let (mut site, mut replica) = settled_in(new());
        edit(&site);
        fault::arm(Some(changes));
        let finished = update(&mut site, &mut replica);
        fault::arm(None);
        if finished {
            return;
        }
        let target = site.origin.last().clone();
        replica.revive().unwrap();
        let staged = site.stage(&mut replica, &target).unwrap_or_else(|e| panic!("change {changes}: {e:?}"));
        replica.activate(staged, &mut |_| Ok(())).unwrap_or_else(|e| panic!("change {changes}: {e:?}"));
        site.assert_live_is_tree();
        site.settle(&mut replica);
        assert_eq!(replica.status().spares, 2, "change {changes}");
        assert_tidy(&site, &replica);
        changes += 1;
    }
}

#[test]
fn background_work_that_failed_at_any_change_is_done_when_it_is_tried_again() {
    let mut changes = 0;
    loop {
        let (mut site, mut replica) = settled_in(Site::in_memory());
        replica.options.keep = 1;
        site.write("docs/0/page-0.html", "second");
        site.publish(&mut replica);
        replica.upkeep.last_write = None;
        fault::arm(Some(changes));
        let finished = (0..50).any(|_| {
            let done = replica.maintain(&AtomicBool::new(false));
            done.is_ok_and(|done| done.next != Some(std::time::Duration::ZERO))
        });
        fault::arm(None);
        if finished {
            return;
        }
        site.settle(&mut replica);
        assert_eq!(replica.status().spares, 2, "change {changes}");
        assert_eq!(replica.status().generations.len(), 1, "change {changes}");
        assert_tidy(&site, &replica);
        site.write("docs/0/page-0.html", "third");
        site.publish(&mut replica);
        site.assert_live_is_tree();
        changes += 1;
    }
}

#[test]
fn a_name_that_comes_back_beside_its_renamed_self_is_an_inode_of_its_own() {
    let (mut site, mut replica) = settled();
    let (old, new) = (site.tree().join("media/large.bin"), site.tree().join("media/moved.bin"));
    std::fs::rename(&old, &new).unwrap();
    site.publish(&mut replica);
    site.settle(&mut replica);
    let copied = std::process::Command::new("cp").arg("-p").arg(&new).arg(&old).status().unwrap();
    assert!(copied.success());
    site.publish(&mut replica);
    site.assert_live_is_tree();
    assert!(!two_names_are_one_inode(&site.live().canonicalize().unwrap()));
}

#[test]
fn healing_again_and_again_within_the_grace_never_runs_out_of_names() {
    let mut site = Site::new();
    site.furnish();
    let mut replica = site.open();
    replica.options.grace = std::time::Duration::from_secs(3600);
    site.publish(&mut replica);
    for round in 0..4 {
        std::fs::write(site.live().join("docs/0/page-3.html"), format!("defaced {round}")).unwrap();
        let report = replica.verify(Some(&mut site.origin), &|_| {}, &AtomicBool::new(false)).unwrap();
        assert!(report.healed);
        site.assert_live_is_tree();
    }
    replica.options.grace = std::time::Duration::ZERO;
    site.settle(&mut replica);
    assert_eq!(replica.status().spares, 2);
    assert_tidy(&site, &replica);
}

#[test]
fn a_live_tree_that_was_deleted_is_staged_anew_after_a_restart_or_by_the_next_update() {
    let (mut site, replica) = settled();
    drop(replica);
    std::fs::remove_dir_all(site.generation(1)).unwrap();
    let mut replica = site.open();
    let target = site.origin.last().clone();
    site.follow(&mut replica, &target);
    site.assert_live_is_tree();
    site.settle(&mut replica);

    std::fs::remove_dir_all(site.generation(1)).unwrap();
    site.write("docs/0/page-0.html", "second");
    site.publish(&mut replica);
    site.assert_live_is_tree();
    site.settle(&mut replica);
    assert_eq!(replica.status().spares, 2);
}

#[test]
fn a_whole_tree_of_other_inodes_is_taken_once_it_is_verified() {
    let (mut site, mut replica) = settled();
    replica.slots.end().unwrap();
    drop(replica);
    // Restored from a backup: everything is equal except the inodes.
    let (root, copy) = (site.root(), site.root().with_extension("copy"));
    let copied = std::process::Command::new("cp").arg("-a").arg(&root).arg(&copy).status().unwrap();
    assert!(copied.success());
    std::fs::remove_dir_all(&root).unwrap();
    std::fs::rename(&copy, &root).unwrap();
    let mut replica = site.open();
    let (slot, _) = replica.slots.lowest_spare().unwrap();
    replica.slots.open_up(slot).unwrap();
    site.settle(&mut replica);
    assert_eq!(replica.status().spares, 1);
    let report = replica.verify(Some(&mut site.origin), &|_| {}, &AtomicBool::new(false)).unwrap();
    assert!(report.drift.is_empty());
    site.settle(&mut replica);
    assert_eq!(replica.status().spares, 2);
}

#[test]
fn retired_trees_are_bounded_though_updates_leave_no_time_for_background_work() {
    let (mut site, mut replica) = settled();
    replica.options.grace = std::time::Duration::from_secs(3600);
    for i in 0..24 {
        site.write("docs/0/page-0.html", format!("edit {i}"));
        site.publish(&mut replica);
        replica.bound_retired();
    }
    assert_eq!(names(&site.root().join("generations")).len(), replica.options.keep + 8);
    site.assert_live_is_tree();
}

#[test]
fn no_tree_goes_while_a_switch_is_half_done() {
    let mut changes = 0;
    let mut unsettled = 0;
    loop {
        let (mut site, mut replica) = settled_in(Site::in_memory());
        replica.options.grace = std::time::Duration::from_secs(3600);
        replica.options.keep = 1;
        for number in 2..12 {
            site.write("twin-a", format!("{number}"));
            site.publish(&mut replica);
        }
        site.write("twin-a", "the last");
        fault::arm(Some(changes));
        let finished = update(&mut site, &mut replica);
        fault::arm(None);
        if finished {
            break;
        }
        if replica.slots.is_unsettled() {
            unsettled += 1;
            let before = names(&site.root().join("generations"));
            replica.bound();
            assert_eq!(names(&site.root().join("generations")), before, "change {changes}");
        }
        changes += 1;
    }
    assert!(unsettled > 1);
}

#[test]
fn a_first_sync_that_was_interrupted_fits_on_a_disk_that_it_nearly_fills() {
    let mut site = Site::new();
    let Some(_disk) = SmallDisk::under(&site, "size=12m,nr_inodes=400") else { return };
    for i in 0..8 {
        site.write(&format!("large/{i}.bin"), vec![i; 1_000_000]);
    }
    let mut replica = site.open();
    let target = site.origin.seal(&site.tree());
    // Staged completely but not activated: the process dies.
    drop(site.stage(&mut replica, &target).unwrap());
    drop(replica);
    let mut replica = site.open();
    // Superseded meanwhile by other content.
    std::fs::remove_file(site.tree().join("large/0.bin")).unwrap();
    std::fs::remove_file(site.tree().join("large/1.bin")).unwrap();
    site.write("large/other.bin", vec![9u8; 2_000_000]);
    site.origin.sent.clear();
    site.publish(&mut replica);
    site.assert_live_is_tree();
    assert_eq!(site.origin.sent.len(), 1);
}

#[test]
fn a_large_file_may_be_renamed_on_a_disk_that_could_not_hold_it_twice() {
    let mut site = Site::new();
    let Some(_disk) = SmallDisk::under(&site, "size=12m") else { return };
    site.write("a/large.bin", vec![1u8; 7_000_000]);
    site.write("b/small", "b");
    let mut replica = site.open();
    site.publish(&mut replica);
    std::fs::rename(site.tree().join("a/large.bin"), site.tree().join("b/large.bin")).unwrap();
    site.publish(&mut replica);
    site.assert_live_is_tree();
}

#[test]
fn the_record_is_used_again_when_the_disk_has_space_again() {
    let mut site = Site::new();
    site.furnish();
    let Some(_disk) = SmallDisk::under(&site, "size=16m") else { return };
    let mut replica = site.open();
    site.publish(&mut replica);
    // The disk fills up behind the agent's back.
    let ballast = site.root().join("state/ballast");
    let _ = std::fs::write(&ballast, vec![0u8; 32_000_000]);
    let objects: Vec<_> =
        (0..200u8).map(|i| (syncd_shared::ObjectHash::from_bytes([i; 32]), vec![i; 40_000])).collect();
    let error = replica.slots.record().put_directories(&objects, true).unwrap_err();
    std::fs::remove_file(&ballast).unwrap();
    assert!(replica.slots.record().put_directories(&[], true).is_err(), "the database has given up");
    replica.note_failure(&StageError::from(error));
    site.write("docs/0/page-0.html", "second");
    let target = site.origin.seal(&site.tree());
    let cancel = AtomicBool::new(false);
    let staged = ReplicaWork::stage(&mut replica, &target, None, &mut site.origin, &|_| {}, &cancel).unwrap();
    replica.activate(staged, &mut |_| Ok(())).unwrap();
    site.assert_live_is_tree();
}

#[test]
fn who_waits_for_the_lock_of_root_finds_the_record_closed() {
    let site = Site::new();
    site.open();
    let reopen = || loop {
        match Replica::open(&site.root(), site.options.clone()) {
            // Other processes may hold the lock for longer than this process waits.
            Err(OpenReplicaError::Layout(LayoutError::Locked { .. })) => {}
            opened => break drop(opened.unwrap()),
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..8).for_each(|_| reopen()));
        }
    });
}
