//! Files that visitors of a node write into its trees are kept and reported, and told apart from changes made
//! by syncd.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::clock::Clock;
use crate::fixture::logged;
use crate::hooks::{DurableHook, Hook, HookName};
use crate::replica::scrub::Pass;
use crate::session::worker::Hooks;
use crate::status::Drift;

/// Paths and contents of all files below lost+found.
pub(super) fn kept(site: &Site) -> Vec<(String, String)> {
    let root = site.root().join("lost+found");
    let mut found = Vec::new();
    let mut waiting = vec![root.clone()];
    while let Some(directory) = waiting.pop() {
        let Ok(items) = std::fs::read_dir(&directory) else { continue };
        for item in items {
            let path = item.unwrap().path();
            let kind = path.symlink_metadata().unwrap().file_type();
            if kind.is_dir() {
                waiting.push(path);
                continue;
            }
            let content = match kind.is_symlink() {
                true => format!("-> {}", std::fs::read_link(&path).unwrap().display()),
                false => std::fs::read_to_string(&path).unwrap_or_else(|_| "bytes".into()),
            };
            found.push((path.strip_prefix(&root).unwrap().display().to_string(), content));
        }
    }
    found.sort();
    found
}

pub(super) fn files(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(path, content)| ((*path).to_owned(), (*content).to_owned())).collect()
}

/// One retired generation whose grace period is not over.
fn with_a_retired_tree() -> (Site, Replica) {
    let (mut site, mut replica) = settled();
    replica.options.keep = 1;
    replica.options.grace = Duration::from_secs(3600);
    site.write("docs/0/page-0.html", "second");
    std::fs::remove_dir(site.tree().join("hollow")).unwrap();
    site.publish(&mut replica);
    (site, replica)
}

fn drift(replica: &Replica) -> Option<Drift> {
    replica.status().drift
}

/// Changes a tree in every way that a visitor can. Returns the number of names changed.
fn deface(tree: &Path) -> u64 {
    std::fs::write(tree.join("shell.php"), "<?php").unwrap();
    // In a directory that the next generation does not have.
    std::fs::write(tree.join("hollow/upload.jpg"), "a picture").unwrap();
    std::fs::create_dir_all(tree.join("docs/2/cache/deep/er")).unwrap();
    std::fs::write(tree.join("docs/2/cache/deep/er/entry"), "cached").unwrap();
    // In place: every tree has this inode.
    std::fs::write(tree.join("docs/1/page-1.html"), "edited in place").unwrap();
    // Another file of the same size, with the time restored.
    let page = tree.join("docs/1/page-4.html");
    let shown = page.metadata().unwrap().modified().unwrap();
    std::fs::remove_file(&page).unwrap();
    std::fs::write(&page, "<x>4</x>").unwrap();
    std::fs::File::options().write(true).open(&page).unwrap().set_modified(shown).unwrap();
    std::fs::remove_file(tree.join("link")).unwrap();
    symlink("/etc/shadow", tree.join("link")).unwrap();
    std::fs::remove_file(tree.join("empty")).unwrap();
    7
}

const DEFACED: &[(&str, &str)] = &[
    ("1/docs/1/page-1.html", "edited in place"),
    ("1/docs/1/page-4.html", "<x>4</x>"),
    ("1/docs/2/cache/deep/er/entry", "cached"),
    ("1/hollow/upload.jpg", "a picture"),
    ("1/link", "-> /etc/shadow"),
    ("1/shell.php", "<?php"),
];

#[test]
fn what_visitors_wrote_is_kept_and_reported_once_a_tree_is_recycled_or_thrown_away() {
    for spares_wanted in [3, 0] {
        let (site, mut replica) = with_a_retired_tree();
        let names = deface(&site.generation(1));
        replica.upkeep.spares.wanted = spares_wanted;
        replica.options.grace = Duration::ZERO;
        site.settle(&mut replica);
        assert_eq!(kept(&site), files(DEFACED), "{spares_wanted} spares wanted");
        let found = drift(&replica).unwrap();
        assert_eq!((found.generation, found.paths, found.lost, found.live), (1, names, 0, 2));
        assert_eq!(found.first, "empty", "which is missing");
        assert_eq!(found.kept.as_deref(), site.root().join("lost+found/1").to_str());
        // The next process also reports it.
        drop(replica);
        assert_eq!(drift(&site.open()), Some(found));
        assert_eq!(names_of_trees(&site), ["2"]);
    }
}

#[test]
fn what_moved_before_an_inspection_broke_off_is_reported_then_and_counted_once() {
    let (mut changes, mut partial) = (0, 0);
    loop {
        let (mut site, mut replica) = settled_in(Site::in_memory());
        replica.options.keep = 1;
        site.write("docs/0/page-0.html", "second");
        std::fs::remove_dir(site.tree().join("hollow")).unwrap();
        site.publish(&mut replica);
        let names = deface(&site.generation(1));
        let retired = replica.maintain(&AtomicBool::new(false)).unwrap();
        assert_eq!(retired.did, Upkept::Retired(1));
        fault::arm(Some(changes));
        let inspected = replica.maintain(&AtomicBool::new(false));
        fault::arm(None);
        let (moved, found) = (kept(&site).len() as u64, drift(&replica));
        if inspected.is_err() && moved > 0 {
            let found = found.unwrap();
            assert!((moved..=names).contains(&found.paths), "broken off before change {changes}: {found}");
            assert_eq!(found.kept.as_deref(), site.root().join("lost+found/1").to_str());
            partial += 1;
        }
        site.settle(&mut replica);
        assert_eq!(kept(&site), files(DEFACED), "broken off before change {changes}");
        let found = drift(&replica).unwrap();
        assert_eq!((found.generation, found.paths, found.lost), (1, names, 0), "before change {changes}");
        assert_eq!(found.first, "empty");
        if inspected.is_ok() {
            break;
        }
        changes += 1;
    }
    assert!(partial > 5, "{partial}");
}

#[test]
fn the_log_names_the_first_file_that_was_changed_and_where_it_is_kept() {
    let (site, mut replica) = with_a_retired_tree();
    std::fs::write(site.generation(1).join("docs/shell.php"), "<?php").unwrap();
    replica.options.grace = Duration::ZERO;
    let lines = logged(|| site.settle(&mut replica));
    let kept = site.root().join("lost+found/1");
    let expected = format!(
        "files of the replica were changed locally generation=1 paths=1 first=docs/shell.php kept={} lost=0",
        kept.display()
    );
    assert!(lines.contains(&expected), "{lines:#?}");
}

#[test]
fn what_gave_way_to_an_update_is_reported_as_not_kept() {
    for inspected_before in [false, true] {
        let (site, mut replica) = with_a_retired_tree();
        let names = deface(&site.generation(1));
        replica.options.grace = Duration::ZERO;
        if inspected_before {
            site.settle(&mut replica);
            assert!(drift(&replica).unwrap().kept.is_some());
        }
        let never = |_: &Replica| Err(StageError::Cancelled);
        assert!(replica.make_room(None, &never, &AtomicBool::new(false)).is_err());
        assert_eq!(kept(&site), files(&[]));
        let found = drift(&replica).unwrap();
        assert_eq!(
            (found.generation, found.paths, found.kept.as_deref(), found.lost),
            (1, names, None, names)
        );
        drop(replica);
        assert_eq!(drift(&site.open()), Some(found));
    }
}

fn names_of_trees(site: &Site) -> Vec<String> {
    names(&site.root().join("generations"))
}

#[test]
fn a_report_ends_with_a_later_tree_that_is_as_it_was_left_once_nothing_is_kept() {
    let (mut site, mut replica) = with_a_retired_tree();
    std::fs::write(site.generation(1).join("shell.php"), "<?php").unwrap();
    std::fs::write(site.live().join("shell.php"), "<?php again").unwrap();
    replica.options.grace = Duration::ZERO;
    site.settle(&mut replica);
    assert_eq!(drift(&replica).map(|drift| drift.generation), Some(1));
    // Generation 3 was live when the changes of generation 2 were found.
    for (content, of) in [("third", Some(2)), ("fourth", Some(2)), ("fifth", Some(2))] {
        site.write("docs/0/page-0.html", content);
        site.publish(&mut replica);
        site.settle(&mut replica);
        assert_eq!(drift(&replica).map(|drift| drift.generation), of, "{content}");
    }
    assert_eq!(kept(&site), files(&[("1/shell.php", "<?php"), ("2/shell.php", "<?php again")]));
    // The operator has looked at what is kept.
    std::fs::remove_dir_all(site.root().join("lost+found/2")).unwrap();
    site.write("docs/0/page-0.html", "sixth");
    site.publish(&mut replica);
    site.settle(&mut replica);
    assert_eq!(drift(&replica), None);
    drop(replica);
    assert_eq!(drift(&site.open()), None);
}

#[test]
fn a_directory_that_left_the_tree_and_came_back_is_no_local_change() {
    for knows_activations in [true, false] {
        let (mut site, mut replica) = settled();
        replica.options.keep = 1;
        replica.options.grace = Duration::from_secs(3600);
        // A third tree, still at the first generation, also has the old inodes: none of them can be linked
        // again.
        replica.upkeep.spares.wanted = 3;
        site.settle(&mut replica);
        let (docs, away) = (site.tree().join("docs"), site.temp.path().join("away"));
        let before = inode(&site.live().join("docs/0/page-0.html"));
        std::fs::rename(&docs, &away).unwrap();
        site.publish(&mut replica);
        std::fs::rename(&away, &docs).unwrap();
        site.publish(&mut replica);
        assert_ne!(inode(&site.live().join("docs/0/page-0.html")), before, "the case has come about");
        if !knows_activations {
            drop(replica);
            site.options.keep = 1;
            replica = site.open();
            replica.upkeep.spares.wanted = 4;
        }
        replica.options.grace = Duration::ZERO;
        let mut inspected = 0;
        replica.upkeep.last_write = None;
        loop {
            let done = replica.maintain(&AtomicBool::new(false)).unwrap();
            inspected += u64::from(done.did == Upkept::Inspected { drift: None });
            if done.next != Some(Duration::ZERO) {
                break;
            }
        }
        assert_eq!((inspected, drift(&replica)), (2, None));
        assert!(!site.root().join("lost+found").exists());
    }
}

#[test]
fn what_verify_heals_is_kept_and_a_clean_one_ends_the_report() {
    let (mut site, mut replica) = settled();
    let live = site.live().canonicalize().unwrap();
    let names = deface(&live);
    let report = replica.verify(Some(&mut site.origin), &|_| {}, &AtomicBool::new(false)).unwrap();
    assert!(report.healed);
    let totals = replica.slots.live().unwrap().generation().root.totals;
    assert_eq!((report.files, report.bytes), (totals.files, totals.bytes), "damaged ones count, too");
    site.assert_live_is_tree();
    assert_eq!(kept(&site), files(DEFACED));
    assert_eq!(report.kept.as_deref(), site.root().join("lost+found/1").to_str());
    let found = drift(&replica).unwrap();
    // Including the times of directories.
    assert!(found.generation == 1 && found.paths == report.drifted && found.paths > names, "{found:?}");
    let healed = report.drifted;
    let report = replica.verify(None, &|_| {}, &AtomicBool::new(false)).unwrap();
    assert_eq!((report.drifted, drift(&replica)), (0, None));
    assert_eq!(replica.status().healed, healed);
    site.settle(&mut replica);
    assert_eq!(kept(&site), files(DEFACED));
    assert_tidy(&site, &replica);
}

#[test]
fn a_file_edited_in_place_is_kept_and_reported_once_though_every_tree_has_it() {
    let (mut site, mut replica) = settled();
    replica.options.keep = 1;
    replica.options.grace = Duration::ZERO;
    let file = site.live().join("docs/1/page-1.html");
    assert!(file.metadata().unwrap().nlink() >= 3, "the spares have it, too");
    std::fs::write(file, "edited in place").unwrap();
    for content in ["second", "third", "fourth"] {
        site.write("docs/0/page-0.html", content);
        site.publish(&mut replica);
        replica.upkeep.retired.inspected_whole = None;
        site.settle(&mut replica);
        let found = drift(&replica).unwrap();
        assert_eq!((found.generation, found.paths, found.lost), (1, 1, 0), "{content}: {found}");
        assert_eq!(kept(&site), files(&[("1/docs/1/page-1.html", "edited in place")]), "{content}");
    }
    // `verify` names the directory where it was kept first.
    let report = replica.verify(Some(&mut site.origin), &|_| {}, &AtomicBool::new(false)).unwrap();
    if report.drifted > 0 {
        assert_eq!(report.kept.as_deref(), site.root().join("lost+found/1").to_str());
    }
    site.settle(&mut replica);
    site.assert_live_is_tree();
    assert_eq!(kept(&site), files(&[("1/docs/1/page-1.html", "edited in place")]));
}

#[test]
fn a_change_of_the_root_directory_alone_is_told_in_words() {
    let (mut site, mut replica) = settled();
    std::fs::File::open(site.live()).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let report = replica.verify(Some(&mut site.origin), &|_| {}, &AtomicBool::new(false)).unwrap();
    assert_eq!((report.drifted, report.healed), (1, true));
    assert_eq!(drift(&replica).unwrap().first, "the tree's root");
}

#[test]
fn a_kill_at_any_step_loses_nothing_that_a_visitor_wrote() {
    let mut changes = 0;
    loop {
        let (site, mut replica) = with_a_retired_tree();
        let tree = site.generation(1);
        std::fs::write(tree.join("shell.php"), "<?php").unwrap();
        std::fs::create_dir(tree.join("docs/cache")).unwrap();
        std::fs::write(tree.join("docs/cache/entry"), "cached").unwrap();
        // Discarded in one round, recycled in the next.
        replica.upkeep.spares.wanted = if changes % 2 == 0 { 3 } else { 0 };
        replica.options.grace = Duration::ZERO;
        replica.upkeep.last_write = Some(replica.options.clock.now());
        fault::arm(Some(changes));
        let mut finished = false;
        for _ in 0..20 {
            match replica.maintain(&AtomicBool::new(false)) {
                Ok(done) if done.next != Some(Duration::ZERO) => finished = true,
                Ok(_) => continue,
                Err(_) => {}
            }
            break;
        }
        fault::arm(None);
        drop(replica);
        let mut options = site.options.clone();
        options.keep = 1;
        let mut replica = Replica::open(&site.root(), options).unwrap();
        site.settle(&mut replica);
        let expected = files(&[("1/docs/cache/entry", "cached"), ("1/shell.php", "<?php")]);
        assert_eq!(kept(&site), expected, "killed before change {changes}");
        assert!(drift(&replica).is_some(), "killed before change {changes}");
        assert_tidy(&site, &replica);
        if finished {
            break;
        }
        changes += 1;
    }
    assert!(changes > 10, "{changes}");
}

/// A replica whose live tree is re-read continuously, with its clock.
fn scrubbed(site: &Site) -> (Replica, Clock, Instant) {
    let (mut replica, now) = (site.open(), Instant::now());
    let clock = Clock::given(now);
    replica.options.clock = clock.clone();
    replica.options.verify_every = Some(Duration::from_millis(1));
    (replica, clock, now)
}

/// Runs steps of the background verification until the pass ends or damage is found. Returns the number of
/// steps, and the damage.
fn one_pass(replica: &mut Replica, clock: &Clock, now: &mut Instant) -> (usize, Option<String>) {
    let mut steps = 0;
    for _ in 0..100 {
        *now += Duration::from_secs(1);
        clock.set(*now);
        let Upkept::Reread { damaged } = replica.maintain(&AtomicBool::new(false)).unwrap().did else {
            continue;
        };
        steps += 1;
        if damaged.is_some() || replica.slots.record().verification::<Pass>().unwrap().unwrap().is_over() {
            return (steps, damaged.map(|path| path.to_string()));
        }
    }
    panic!("the pass does not end");
}

#[test]
fn a_file_edited_in_place_with_its_time_put_back_is_found_healed_and_kept() {
    let mut site = Site::new();
    site.furnish();
    // More than one step reads.
    let large: Vec<u8> =
        (0..2_500_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    site.write("media/larger.bin", &large);
    let mut replica = site.open();
    site.publish(&mut replica);
    site.settle(&mut replica);
    drop(replica);
    let (mut replica, clock, mut now) = scrubbed(&site);
    site.settle(&mut replica);
    assert_eq!(one_pass(&mut replica, &clock, &mut now).1, None);
    // As the owner of the file could do; all trees have this inode.
    let file = site.live().join("media/larger.bin");
    let shown = file.metadata().unwrap().modified().unwrap();
    let opened = std::fs::File::options().write(true).open(&file).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&opened, b"defaced", 9_000_000).unwrap();
    opened.set_modified(shown).unwrap();
    let (steps, damaged) = one_pass(&mut replica, &clock, &mut now);
    assert_eq!(damaged.as_deref(), Some("media/larger.bin"));
    assert!(steps > 2, "{steps}");
    let report = replica.verify(Some(&mut site.origin), &|_| {}, &AtomicBool::new(false)).unwrap();
    assert!(report.healed);
    site.assert_live_is_tree();
    let kept = std::fs::read(site.root().join("lost+found/1/media/larger.bin")).unwrap();
    assert_eq!(&kept[9_000_000..9_000_007], b"defaced");
    assert_eq!(drift(&replica).unwrap().first, "media/larger.bin");
    site.settle(&mut replica);
    assert_eq!((one_pass(&mut replica, &clock, &mut now).1, drift(&replica)), (None, None));
}

#[test]
fn a_slow_verification_goes_on_where_the_last_process_was_and_through_updates() {
    let mut site = Site::new();
    for i in 0..1_200 {
        site.write(&format!("pages/{}/{i:04}", i / 400), format!("page {i}"));
    }
    let mut replica = site.open();
    site.publish(&mut replica);
    site.settle(&mut replica);
    drop(replica);
    let (mut replica, clock, mut now) = scrubbed(&site);
    assert_eq!(one_pass(&mut replica, &clock, &mut now).0, 3);
    now += Duration::from_secs(1);
    clock.set(now);
    replica.maintain(&AtomicBool::new(false)).unwrap();
    let at = replica.slots.record().verification::<Pass>().unwrap();
    assert!(!at.as_ref().unwrap().is_over());
    drop(replica);
    let (mut replica, clock, mut now) = scrubbed(&site);
    assert_eq!(replica.slots.record().verification::<Pass>().unwrap(), at);
    // A part that was already read leaves the tree.
    std::fs::remove_dir_all(site.tree().join("pages/0")).unwrap();
    let every = replica.options.verify_every.take();
    site.publish(&mut replica);
    site.settle(&mut replica);
    replica.options.verify_every = every;
    std::fs::write(site.live().join("pages/2/stranger"), "of a visitor").unwrap();
    assert_eq!(one_pass(&mut replica, &clock, &mut now), (2, None));
    // Reported and left in place: the next activation takes it out of the served tree.
    let found = drift(&replica).unwrap();
    assert_eq!((found.generation, found.paths, found.kept), (2, 1, None));
    assert_eq!(found.first, "pages/2/stranger");
    assert!(site.live().join("pages/2/stranger").exists());
}

#[test]
fn nothing_is_read_again_before_its_time_nor_where_that_is_off() {
    let (site, mut replica) = settled();
    assert_eq!(replica.scrub_due(), None);
    replica.options.verify_every = Some(Duration::from_secs(3600));
    let done = replica.maintain(&AtomicBool::new(false)).unwrap();
    assert_eq!(done.did, Upkept::Nothing);
    assert!(done.next.is_some_and(|next| next > Duration::from_secs(3000)), "{:?}", done.next);
    drop(replica);
    let mut replica = site.open();
    replica.options.verify_every = Some(Duration::from_secs(3600));
    site.settle(&mut replica);
    assert!(replica.scrub_due().is_some_and(|due| due > Duration::from_secs(3000)));
}

#[test]
fn after_a_kill_in_healing_no_damaged_file_passes_for_the_one_that_took_its_place() {
    let (mut changes, mut exchanged) = (0, 0);
    loop {
        let (mut site, mut replica) = settled_in(Site::in_memory());
        let page = site.live().join("docs/1/page-1.html");
        let shown = page.metadata().unwrap().modified().unwrap();
        std::fs::write(&page, "<X>1</X>").unwrap();
        std::fs::File::options().write(true).open(&page).unwrap().set_modified(shown).unwrap();
        fault::arm(Some(changes));
        let report = replica.verify(Some(&mut site.origin), &|_| {}, &AtomicBool::new(false));
        fault::arm(None);
        drop(replica);
        let mut replica = site.open();
        if std::fs::read_to_string(&page).unwrap() == "<p>1</p>" {
            exchanged += 1;
            site.settle(&mut replica);
            let expected = files(&[("1/docs/1/page-1.html", "<X>1</X>")]);
            assert_eq!(kept(&site), expected, "killed before change {changes}");
            assert!(drift(&replica).is_some(), "killed before change {changes}");
            site.write("docs/0/page-0.html", "second");
            site.publish(&mut replica);
            site.assert_live_is_tree();
        }
        if report.is_ok() {
            break;
        }
        changes += 1;
    }
    assert!(exchanged > 2, "{exchanged}");
}

#[test]
fn the_hook_is_due_for_healed_files_also_if_the_process_ends_before_it_notes_that() {
    let (mut site, mut replica) = settled();
    let state = site.root().join("state");
    let hook = || {
        let hook = Hook::new(HookName::OnActivate, "true".into(), Duration::from_secs(20), &state);
        Arc::new(DurableHook::new(hook, Some(1)))
    };
    std::fs::write(site.live().join("docs/1/page-1.html"), "defaced").unwrap();
    assert!(replica.verify(Some(&mut site.origin), &|_| {}, &AtomicBool::new(false)).unwrap().healed);
    drop(replica);
    let replica = site.open();
    let after = hook();
    assert_eq!(after.state().borrow().due, None);
    Hooks { on: Some(after.clone()), ..Hooks::default() }.run_missing(&replica);
    assert_eq!(after.state().borrow().due, Some(1));
    // The next process also knows it.
    assert_eq!(hook().state().borrow().due, Some(1));
}

#[test]
fn a_file_that_came_into_a_tree_is_reported_before_the_tree_is_inspected() {
    let (mut site, mut replica) = settled();
    replica.options.grace = Duration::from_secs(3600);
    site.write("docs/0/page-0.html", "second");
    site.publish(&mut replica);
    site.settle(&mut replica);
    assert_eq!(drift(&replica), None);
    std::fs::write(site.live().join("docs/1/shell.php"), "<?php").unwrap();
    site.write("docs/0/page-0.html", "third");
    site.publish(&mut replica);
    site.settle(&mut replica);
    let found = drift(&replica).unwrap();
    assert_eq!((found.generation, found.paths, found.live, found.kept), (2, 1, 3, None));
    assert_eq!(found.first, "docs/1/shell.php");
    assert!(site.generation(2).join("docs/1/shell.php").exists(), "a web server may still serve the tree");
    replica.options.keep = 1;
    replica.options.grace = Duration::ZERO;
    site.settle(&mut replica);
    assert_eq!(kept(&site), files(&[("2/docs/1/shell.php", "<?php")]));
    assert!(drift(&replica).unwrap().kept.is_some());
}
