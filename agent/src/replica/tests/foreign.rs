//! Foreign names and directories put into a tree.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::chown;
use std::sync::{Arc, Mutex};

use syncd_shared::RootHash;

use super::*;
use crate::fixture::{
    Origin, alone_with_few_descriptors, as_somebody, deepen, open_descriptors, peak_memory_kib, somebody_owns,
};
use crate::source::{Batches, Frames, Source};

/// An origin beside a web user who opened the tree that is built, and exchanges a directory in it whenever
/// something arrives.
struct Raced {
    origin: Origin,
    slots: std::path::PathBuf,
    /// The tree opened at the first frame.
    held: Arc<Mutex<Option<File>>>,
}

impl Source for Raced {
    fn update(&mut self, from: RootHash, to: RootHash) -> Result<Frames, FetchError> {
        let (slots, held) = (self.slots.clone(), Arc::clone(&self.held));
        let exchange = move || {
            let mut held = held.lock().unwrap();
            if held.is_none() {
                let built = slots.join("2");
                *held = built.join("docs").exists().then(|| File::open(built).unwrap());
            }
            let Some(held) = &*held else { return };
            let tree = std::path::PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
            let _ = std::fs::remove_dir_all(tree.join("docs"));
            let _ = std::fs::write(tree.join("docs"), "a file");
        };
        Ok(Box::new(self.origin.update(from, to)?.inspect(move |_| exchange())))
    }

    fn objects(&mut self, root: RootHash, batches: Batches) -> Result<Frames, FetchError> {
        self.origin.objects(root, batches)
    }
}

#[test]
fn a_tree_that_somebody_holds_open_is_not_built_in_twice() {
    let mut site = Site::new();
    site.furnish();
    let mut replica = site.open();
    site.publish(&mut replica);
    let held = Arc::default();
    let slots = site.root().join("slots");
    // Each attempt has something to fetch.
    let mut stage = |content: &str| {
        site.write("docs/0/page-0.html", content);
        let target = site.origin.seal(&site.tree());
        let mut source = Raced { origin: site.origin.clone(), slots: slots.clone(), held: Arc::clone(&held) };
        replica.stage(&target, None, &mut source, &|_| {}, &AtomicBool::new(false))
    };
    let error = stage("edited").unwrap_err();
    assert!(matches!(&error, StageError::Disk(error) if error.is_disturbed()), "{error:?}");
    assert!(held.lock().unwrap().is_some(), "it raced");
    let staged = stage("edited again").unwrap();
    replica.activate(staged, &mut |_| Ok(())).unwrap();
    site.assert_live_is_tree();
    site.settle(&mut replica);
    assert_tidy(&site, &replica);
}

/// Publishes `rounds` generations. Each must match what was sealed, and every tree must stay usable.
fn goes_on(site: &mut Site, replica: &mut Replica, rounds: std::ops::Range<u32>) {
    for round in rounds {
        site.write("docs/0/page-0.html", format!("round {round}"));
        site.publish(replica);
        site.assert_live_is_tree();
        site.settle(replica);
        assert!(replica.status().spares >= 2, "round {round}");
    }
}

#[test]
fn trees_of_any_depth_in_a_live_tree_cost_neither_descriptors_nor_memory() {
    alone_with_few_descriptors("replica::tests::foreign::deep_trees_alone");
}

#[test]
#[ignore = "run by the test above in a process of its own"]
fn deep_trees_alone() {
    let (mut site, mut replica) = settled_in(Site::in_memory());
    replica.options.keep = 1;
    let long = "n".repeat(255);
    let (mut before, mut verified) = (None, 0);
    for round in 0..4 {
        let live = site.live().canonicalize().unwrap();
        for (place, levels) in [("docs", 6_000), ("hollow", 1_500)] {
            deepen(&live.join(place), levels, long.as_bytes());
        }
        let before = *before.get_or_insert_with(|| (open_descriptors(), peak_memory_kib()));
        if round % 2 == 1 {
            let report = replica.verify(Some(&mut site.origin), &|_| {}, &AtomicBool::new(false)).unwrap();
            assert!(report.healed && report.drift.iter().any(|drift| drift.what == Damage::Extra));
            verified += 1;
        }
        goes_on(&mut site, &mut replica, round..round + 1);
        assert!(open_descriptors() <= before.0 + 8, "{} {}", before.0, open_descriptors());
        let grown = peak_memory_kib() - before.1;
        assert!(grown < 24 * 1024, "{grown} KiB");
    }
    assert_eq!(verified, 2);
    // A live tree whose record is lost is read only as far as it can match what was signed.
    deepen(&site.live().join("docs"), 6_000, long.as_bytes());
    drop(replica);
    std::fs::remove_file(site.root().join("state/record.redb")).unwrap();
    let mut replica = site.open();
    replica.options.keep = 1;
    assert!(replica.status().live.is_none());
    goes_on(&mut site, &mut replica, 4..6);
    assert_tidy(&site, &replica);
}

#[test]
fn a_manifest_as_deep_as_one_may_be_needs_few_descriptors() {
    alone_with_few_descriptors("replica::tests::foreign::deep_manifest_alone");
}

#[test]
#[ignore = "run by the test above in a process of its own"]
fn deep_manifest_alone() {
    let mut site = Site::in_memory();
    site.furnish();
    // Deeper, the paths of this test would be too long.
    let depth = syncd_shared::limits::DEPTH_MAX.min(400) - 1;
    let deep = |name: &str| format!("{}{name}", "d/".repeat(depth));
    site.write(&deep("file"), "deep");
    let mut replica = site.open();
    replica.options.keep = 1;
    site.publish(&mut replica);
    site.assert_live_is_tree();
    site.settle(&mut replica);
    for round in 0..3 {
        site.write(&deep("file"), format!("deep {round}"));
        goes_on(&mut site, &mut replica, round..round + 1);
    }
    std::fs::remove_file(site.live().join(deep("file"))).unwrap();
    let report = replica.verify(Some(&mut site.origin), &|_| {}, &AtomicBool::new(false)).unwrap();
    assert!(report.healed);
    site.assert_live_is_tree();
    drop(replica);
    std::fs::remove_file(site.root().join("state/record.redb")).unwrap();
    let mut replica = site.open();
    assert!(replica.status().live.is_some(), "its manifest is built from its files");
    site.settle(&mut replica);
    goes_on(&mut site, &mut replica, 3..5);
}

#[test]
fn directories_of_another_user_stop_no_update_of_an_agent_without_privileges() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: no directory of another user can be made");
        return;
    }
    let mut site = Site::new();
    site.furnish();
    for place in ["open/sub", "open/other"] {
        site.write(&format!("{place}/file"), place);
    }
    for place in ["open", "open/sub"] {
        std::fs::set_permissions(site.tree().join(place), PermissionsExt::from_mode(0o777)).unwrap();
    }
    somebody_owns(site.temp.path());
    let mut replica = as_somebody(|| {
        let mut replica = site.open();
        replica.options.keep = 1;
        site.publish(&mut replica);
        site.settle(&mut replica);
        replica
    });
    let theirs = |path: std::path::PathBuf| {
        std::fs::create_dir_all(path.join("inside")).unwrap();
        std::fs::write(path.join("inside/file"), "theirs").unwrap();
        for path in [path.join("inside"), path] {
            chown(&path, Some(33), Some(33)).unwrap();
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o700)).unwrap();
        }
    };
    let live = site.live().canonicalize().unwrap();
    // Beside an existing directory, and in its place.
    theirs(live.join("open/theirs"));
    std::fs::rename(live.join("open/sub"), live.join("open/aside")).unwrap();
    theirs(live.join("open/sub"));
    as_somebody(|| {
        for round in 0..3 {
            site.write("docs/0/page-0.html", format!("round {round}"));
            site.publish(&mut replica);
            site.assert_live_is_tree();
            for _ in 0..20 {
                // The tree is not whole, so no spare can be made from it.
                replica.maintain(&AtomicBool::new(false)).unwrap();
            }
        }
        let report = replica.verify(Some(&mut site.origin), &|_| {}, &AtomicBool::new(false)).unwrap();
        assert_eq!((report.drifted, report.healed), (0, false));
        goes_on(&mut site, &mut replica, 3..6);
    });
    // Only what contains the foreign directory is left.
    let left = names(&site.root().join("trash"));
    assert_eq!(left, ["stuck"]);
}
