//! `live` is a directory, and the change from and to a link.

use std::time::Instant;

use super::*;
use crate::clock::Clock;
use crate::replica::OpenReplicaError;
use crate::state::layout::LayoutError;
use crate::state::swap::Swap;

fn exchanging() -> Site {
    Site::in_memory().exchanging()
}

fn link(site: &Site, name: &str) -> String {
    std::fs::read_link(site.root().join(name)).unwrap().to_str().unwrap().to_owned()
}

#[test]
fn a_kill_at_any_change_of_an_update_leaves_old_or_new_at_live() {
    sweep(&|| settled_in(exchanging()), &update);
}

#[test]
fn a_kill_at_any_change_of_a_first_sync_leaves_nothing_or_all_at_live() {
    sweep(&|| sealed_in(exchanging()), &update);
}

#[test]
fn a_kill_at_any_change_of_healing_leaves_a_complete_tree_at_live() {
    kill_healing(&exchanging);
}

#[test]
fn an_exchange_that_failed_at_any_change_succeeds_when_it_is_tried_again() {
    mishaps::fail_an_update(&exchanging);
}

#[test]
fn an_exchange_that_was_done_is_never_taken_back_by_recovery() {
    let (mut changes, mut done) = (0, 0);
    loop {
        let (mut site, mut replica) = settled_in(exchanging());
        let before = inode(&site.live());
        edit(&site);
        fault::arm(Some(changes));
        let finished = update(&mut site, &mut replica);
        fault::arm(None);
        let live = inode(&site.live());
        if finished {
            break;
        }
        if live != before {
            done += 1;
            // Recovery fails as well, one change later each time.
            for allowed in 0.. {
                fault::arm(Some(allowed));
                let revived = replica.revive().is_ok();
                fault::arm(None);
                assert_eq!(inode(&site.live()), live, "change {changes}, then {allowed} of recovery");
                if revived {
                    break;
                }
            }
            site.assert_live_is_tree();
        }
        changes += 1;
    }
    assert!(done > 3, "{done} of {changes} changes came after the exchange");
}

/// Makes each change of `work` fail in turn, and recovers long after. Slots that were served until then must
/// rest for the whole grace period.
fn fail_and_recover_late(new: &dyn Fn() -> Site, work: &dyn Fn(&mut Site, &mut Replica) -> bool) {
    let grace = Duration::from_secs(150);
    let (mut changes, mut rested) = (0, 0);
    loop {
        let (mut site, mut replica) = settled_in(new());
        let start = Instant::now();
        let clock = Clock::given(start);
        replica.options.clock = clock.clone();
        replica.options.grace = grace;
        let served = |site: &Site| site.live().metadata().unwrap().ino();
        let old = served(&site);
        fault::arm(Some(changes));
        let finished = work(&mut site, &mut replica);
        fault::arm(None);
        if finished {
            break;
        }
        let is_old = served(&site) == old;
        clock.set(start + 2 * grace);
        replica.revive().unwrap();
        if is_old && served(&site) != old {
            let slots = &replica.slots;
            let mut left = slots.held().map(|(slot, _)| slot).chain(slots.resting());
            let left = left.find(|slot| inode(&slots.path(*slot)) == old).unwrap();
            assert_eq!(slots.rest(left, &clock, grace), Some(grace), "change {changes}");
            rested += 1;
        }
        changes += 1;
    }
    assert!(rested > 0, "recovery never switched");
}

#[test]
fn a_tree_that_an_error_kept_at_live_rests_once_recovery_has_switched() {
    for new in [&exchanging as &dyn Fn() -> Site, &Site::in_memory] {
        fail_and_recover_late(new, &|site, replica| {
            site.write("docs/0/page-0.html", "second");
            update(site, replica)
        });
    }
}

#[test]
fn a_damaged_tree_that_an_error_kept_at_live_rests_once_recovery_has_switched() {
    fail_and_recover_late(&exchanging, &|site, replica| {
        std::fs::write(site.live().join("docs/0/page-3.html"), "defaced").unwrap();
        let report = replica.verify(Some(&mut site.origin), &|_| {}, &AtomicBool::new(false));
        report.is_ok_and(|report| report.healed)
    });
}

#[test]
fn the_number_that_a_change_to_exchange_leaves_is_free_when_no_web_server_can_be_pointed_at_it() {
    let (mut site, replica) = settled_in(Site::new());
    let left = replica.slots.live_slot().unwrap();
    drop(replica);
    let start = Instant::now();
    let clock = Clock::given(start);
    site.options.swap = Some(Swap::Exchange);
    (site.options.clock, site.options.grace) = (clock.clone(), Duration::from_secs(150));
    let mut replica = site.open();
    // The hook is due for the new path.
    let live = replica.status().live.unwrap().number().get();
    let path = replica.slots.path(left);
    for (protected, after, is_free) in
        [(Some(live), 1_000, false), (None, 1_000, false), (None, 1_149, false), (None, 1_150, true)]
    {
        clock.set(start + Duration::from_secs(after));
        replica.slots.protect_from(protected, clock.now());
        site.settle(&mut replica);
        assert!(!path.exists(), "nothing is built there");
        assert_eq!(replica.slots.gone().is_empty(), is_free, "{after} s");
    }
    assert_eq!(replica.slots.make().unwrap(), left);
}

#[test]
fn live_is_the_tree_and_what_was_live_before_is_at_previous() {
    let (mut site, mut replica) = settled_in(Site::new().exchanging());
    let first = snapshot(&site.tree());
    for content in ["second", "third", "fourth"] {
        let (before, old) = (inode(&site.live()), site.live_number());
        let was = snapshot(&site.live());
        site.write("docs/0/page-0.html", content);
        let mut told = None;
        let target = site.origin.seal(&site.tree());
        let staged = site.stage(&mut replica, &target).unwrap();
        let mut before_switch = |context: &ActivationContext<'_>| {
            told = Some((snapshot(&context.staged_tree), context.live_tree.clone()));
            Ok(())
        };
        replica.activate(staged, &mut before_switch).unwrap();
        let (staged, live_tree) = told.unwrap();
        assert_eq!((staged[1..].to_vec(), live_tree), (snapshot(&site.tree())[1..].to_vec(), site.live()));
        assert!(!site.live().is_symlink() && site.live().is_dir());
        site.assert_live_is_tree();
        let previous = site.root().join("previous");
        assert_eq!(inode(&previous.canonicalize().unwrap()), before, "the same directory, elsewhere");
        assert_eq!(snapshot(&previous.canonicalize().unwrap()), was);
        let new = replica.status().live.unwrap().number().get();
        assert_eq!(link(&site, &format!("generations/{new}")), "../live");
        assert_eq!(link(&site, &format!("generations/{old}")), format!("../{}", link(&site, "previous")));
        site.settle(&mut replica);
        assert_tidy(&site, &replica);
    }
    // Back to an earlier tree, under a new number.
    site.write("docs/0/page-0.html", "<p>0</p>");
    site.publish(&mut replica);
    assert_eq!(snapshot(&site.live()).len(), first.len());
    site.assert_live_is_tree();
    assert_eq!(names(&site.root().join("slots")), ["1", "2", "3"]);
}

#[test]
fn what_was_served_is_told_of_the_path_live() {
    let (mut site, mut replica) = settled_in(Site::new().exchanging());
    let succeeded = |replica: &mut Replica| {
        let number = replica.status().live.unwrap().number().get();
        replica.slots.hook_succeeded(number).unwrap();
    };
    succeeded(&mut replica);
    let update = |site: &mut Site, replica: &mut Replica, name: &str| {
        site.write(name, "new");
        let target = site.origin.seal(&site.tree());
        let staged = site.stage(replica, &target).unwrap();
        let mut paths = Vec::new();
        let mut before = |context: &ActivationContext<'_>| {
            Ok(context.slot_paths.each(&mut |path| paths.push(path.to_string()))?)
        };
        replica.activate(staged, &mut before).unwrap();
        paths
    };
    assert_eq!(update(&mut site, &mut replica, "twin-a"), ["twin-a"]);
    // The hook has not succeeded since: both differ from something that was served.
    assert_eq!(update(&mut site, &mut replica, "twin-b"), ["twin-a", "twin-b", "twin-b"]);
    succeeded(&mut replica);
    assert_eq!(update(&mut site, &mut replica, "empty"), ["empty"]);
}

#[test]
fn damage_that_a_former_live_tree_shows_makes_what_live_served_unknown() {
    let mut site = Site::new().exchanging();
    site.furnish();
    site.options.keep = 1;
    let mut replica = site.open();
    site.publish(&mut replica);
    replica.slots.hook_succeeded(1).unwrap();
    std::fs::remove_file(site.live().join("docs/1/page-4.html")).unwrap();
    std::fs::write(site.live().join("docs/1/page-4.html"), "backdoor").unwrap();
    site.write("docs/0/page-0.html", "second");
    site.publish(&mut replica);
    replica.slots.hook_succeeded(2).unwrap();
    let live = replica.slots.live_slot().unwrap();
    assert!(replica.slots.served(live).is_some());
    site.settle(&mut replica);
    assert_eq!(replica.slots.served(live), None);
    let kept = std::fs::read(site.root().join("lost+found/1/docs/1/page-4.html")).unwrap();
    assert_eq!(kept, b"backdoor");
}

/// Opens with the other `--swap`, killed before each of its changes in turn.
fn change_swap(from: Swap, to: Swap) {
    let mut changes = 0;
    loop {
        let (mut site, mut replica) = settled_in({
            let mut site = Site::in_memory();
            site.options.swap = Some(from);
            site
        });
        site.write("docs/0/page-0.html", "second");
        site.publish(&mut replica);
        site.settle(&mut replica);
        drop(replica);
        let live = snapshot(&site.tree());
        site.options.swap = Some(to);
        fault::arm(Some(changes));
        let opened = Replica::open(&site.root(), site.options.clone());
        fault::arm(None);
        let finished = opened.is_ok();
        drop(opened);
        assert_eq!(snapshot(&site.live().canonicalize().unwrap()), live, "killed before change {changes}");
        // A command that has no `--swap`, then the agent again.
        let as_it_is = crate::replica::ReplicaOptions { swap: None, ..site.options.clone() };
        let replica = Replica::open(&site.root(), as_it_is).unwrap();
        assert_eq!(replica.status().live.unwrap().number().get(), 2);
        assert_eq!(replica.swap() == Swap::Exchange, !site.live().is_symlink());
        drop(replica);
        let mut replica = site.open();
        assert_eq!(site.live().is_symlink(), to == Swap::Link);
        assert_eq!(site.root().join("state/exchange").exists(), to == Swap::Exchange);
        assert_eq!(site.live_number(), 2);
        assert_eq!(snapshot(&site.live().canonicalize().unwrap()), live);
        site.settle(&mut replica);
        assert_tidy(&site, &replica);
        edit(&site);
        site.publish(&mut replica);
        site.assert_live_is_tree();
        assert_eq!(snapshot(&site.generation(2))[1..], live[1..]);
        if finished {
            return;
        }
        changes += 1;
    }
}

#[test]
fn a_kill_at_any_change_of_link_to_exchange_leaves_live_what_it_was() {
    change_swap(Swap::Link, Swap::Exchange);
}

#[test]
fn a_kill_at_any_change_of_exchange_to_link_leaves_live_what_it_was() {
    change_swap(Swap::Exchange, Swap::Link);
}

#[test]
fn a_record_that_is_lost_while_names_are_behind_is_built_from_the_tree_at_live() {
    let (mut site, mut replica) = settled_in(Site::new().exchanging());
    edit(&site);
    site.publish(&mut replica);
    let slot = replica.slots.generations()[&1];
    drop(replica);
    // As a power cut leaves it that took the names of the signed records back.
    let signed = |name: &str| site.root().join("state/signed").join(name);
    std::fs::rename(signed("0"), signed("aside")).unwrap();
    std::fs::rename(signed(&slot.to_string()), signed("0")).unwrap();
    std::fs::rename(signed("aside"), signed(&slot.to_string())).unwrap();
    std::fs::remove_file(site.root().join("state/record.redb")).unwrap();
    let mut replica = site.open();
    assert_eq!(replica.status().live.map(|live| live.number().get()), Some(2));
    assert_eq!(replica.status().accepted.map(|live| live.number().get()), Some(2));
    site.assert_live_is_tree();
    drop(replica);
    // The names are right again.
    std::fs::remove_file(site.root().join("state/record.redb")).unwrap();
    std::fs::write(site.live().join("twin-b"), "other").unwrap();
    replica = site.open();
    assert_eq!(replica.status().live, None);
    assert_eq!(replica.status().accepted.as_ref().map(|live| live.number().get()), Some(2));
    let accepted = replica.status().accepted.unwrap();
    site.follow(&mut replica, &accepted);
    site.assert_live_is_tree();
}

#[test]
fn inodes_of_a_root_that_was_copied_elsewhere_mean_nothing() {
    let (mut site, mut replica) = settled_in(Site::new().exchanging());
    site.write("twin-a", "second");
    site.publish(&mut replica);
    drop(replica);
    let (root, copy) = (site.root(), site.temp.path().join("copy"));
    let copied = std::process::Command::new("cp").arg("-a").arg(&root).arg(&copy).status().unwrap();
    assert!(copied.success());
    std::fs::remove_dir_all(&root).unwrap();
    std::fs::rename(&copy, &root).unwrap();
    let mut replica = site.open();
    assert_eq!(replica.status().live.unwrap().number().get(), 2);
    site.assert_live_is_tree();
    site.write("twin-b", "third");
    site.publish(&mut replica);
    site.assert_live_is_tree();
}

#[test]
fn a_directory_of_somebody_elses_is_refused_and_an_empty_one_is_taken() {
    let mut site = Site::new().exchanging();
    site.furnish();
    let theirs = site.live().join("index.html");
    std::fs::create_dir_all(site.live()).unwrap();
    std::fs::write(&theirs, "theirs").unwrap();
    let error = Replica::open(&site.root(), site.options.clone()).unwrap_err();
    assert!(matches!(error, OpenReplicaError::Layout(LayoutError::LinkOccupied { .. })), "{error}");
    assert_eq!(names(&site.root()), ["live"], "nothing was made");
    std::fs::remove_file(&theirs).unwrap();
    let mut replica = site.open();
    assert_eq!(replica.status().live, None);
    // Somebody puts a file there meanwhile.
    std::fs::write(&theirs, "theirs").unwrap();
    site.publish(&mut replica);
    assert_eq!(std::fs::read(site.root().join("lost+found/0/live/index.html")).unwrap(), b"theirs");
    site.assert_live_is_tree();
    site.settle(&mut replica);
    assert_tidy(&site, &replica);
    // In place of a link it is also refused.
    drop(replica);
    site.options.swap = Some(Swap::Link);
    drop(site.open());
    std::fs::remove_file(site.live()).unwrap();
    std::fs::create_dir(site.live()).unwrap();
    std::fs::write(&theirs, "theirs").unwrap();
    for swap in [None, Some(Swap::Link), Some(Swap::Exchange)] {
        site.options.swap = swap;
        let error = Replica::open(&site.root(), site.options.clone()).unwrap_err();
        assert!(matches!(error, OpenReplicaError::Layout(LayoutError::LinkOccupied { .. })), "{error}");
    }
}

#[test]
fn a_generation_without_files_is_live_as_an_empty_directory() {
    let mut site = Site::new().exchanging();
    let mut replica = site.open();
    site.publish(&mut replica);
    drop(replica);
    let mut replica = site.open();
    assert_eq!(replica.status().live.unwrap().number().get(), 1);
    site.furnish();
    site.publish(&mut replica);
    site.assert_live_is_tree();
    site.settle(&mut replica);
    assert_tidy(&site, &replica);
}
