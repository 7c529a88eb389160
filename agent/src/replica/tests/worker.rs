//! A replica as the session's worker sees it.

use super::*;
use crate::check::{Ask, CheckOptions};
use crate::config::{Owner, RunOptions};
use crate::hooks::{HookError, HookName};
use crate::replica::work::replica_options;
use crate::replica::{ReplicaOptions, Signers};
use crate::session::worker::{Changes, Maintenance, ReplicaWork};
use crate::state::swap::Swap;

#[test]
fn the_changes_of_an_update_are_counted_for_the_log() {
    let (mut site, mut replica) = settled_in(Site::in_memory());
    let first = replica.slots.live().unwrap().clone();
    let totals = first.generation().root.totals;
    let everything = Changes { added: totals.entries, bytes: totals.bytes, ..Changes::default() };
    assert_eq!(ReplicaWork::changes(&replica, None, &first), Some(everything));
    site.write("media/one", "new");
    site.write("media/two", "new as well");
    site.write("media/three", "3");
    site.write("twin-a", "changed");
    std::fs::remove_file(site.tree().join("twin-b")).unwrap();
    std::fs::remove_file(site.tree().join("link")).unwrap();
    // Counts as one addition.
    std::fs::rename(site.tree().join("docs/2"), site.tree().join("chapters")).unwrap();
    site.publish(&mut replica);
    let second = replica.slots.live().unwrap();
    let changes = ReplicaWork::changes(&replica, Some(&first), second).unwrap();
    assert_eq!((changes.added, changes.removed), (4, 2));
    assert_eq!(changes.bytes, ["new", "new as well", "3", "changed"].concat().len() as u64);
    assert_eq!(ReplicaWork::changes(&replica, Some(second), second), Some(Changes::default()));
}

#[test]
fn the_worker_is_told_the_whole_state() {
    let (mut site, mut replica) = settled_in(Site::in_memory());
    edit(&site);
    site.publish(&mut replica);
    let state = ReplicaWork::state(&replica);
    let numbers = |list: &[syncd_shared::SignedGeneration]| -> Vec<u64> {
        list.iter().map(|generation| generation.number().get()).collect()
    };
    assert_eq!(state.live.as_ref(), replica.slots.live());
    assert_eq!(state.accepted, state.live);
    assert_eq!(numbers(&state.held), [1]);
    assert_eq!(state.generations.iter().map(|number| number.get()).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(state.spares, replica.status().spares as u64);
}

#[test]
fn a_staged_tree_outlives_a_hook_that_fails() {
    let (mut site, mut replica) = settled_in(Site::in_memory());
    edit(&site);
    let target = site.origin.seal(&site.tree());
    let staged = site.stage(&mut replica, &target).unwrap();
    let failure =
        || HookError::Start { hook: HookName::BeforeActivate, source: std::io::Error::other("no such host") };
    let refused = ReplicaWork::activate(&mut replica, staged, &mut |_, _| Err(failure())).unwrap_err();
    assert!(refused.failure.reason.contains("no such host"), "{}", refused.failure);
    assert_eq!(site.live_number(), 1);
    ReplicaWork::activate(&mut replica, refused.staged.unwrap(), &mut |_, _| Ok(())).unwrap();
    site.assert_live_is_tree();
}

#[test]
fn a_switch_that_failed_at_any_change_is_answered_by_what_is_live() {
    let mut made = [0, 0];
    for changes in 0.. {
        let mut site = Site::in_memory();
        site.write("page", "one");
        let mut replica = site.open();
        site.publish(&mut replica);
        site.write("page", "two");
        let target = site.origin.seal(&site.tree());
        let staged = site.stage(&mut replica, &target).unwrap();
        fault::arm(Some(changes));
        let answer = ReplicaWork::activate(&mut replica, staged, &mut |_, _| Ok(()));
        let is_over = fault::point().is_ok();
        fault::arm(None);
        if let Err(not) = &answer {
            assert!(not.failure.retry.is_some() && not.staged.is_none(), "change {changes}");
        }
        made[usize::from(answer.is_ok())] += 1;
        if answer.is_ok() {
            assert!(ReplicaWork::is_settled(&replica), "change {changes}");
            assert_eq!(site.live_number(), 2, "change {changes}");
        }
        if is_over {
            break;
        }
    }
    assert!(made[0] > 0 && made[1] > 0, "{made:?}");
}

#[test]
fn a_cancelled_step_of_maintenance_goes_on_at_once() {
    let (_site, mut replica) = settled_in(Site::in_memory());
    let cancelled = ReplicaWork::maintain(&mut replica, &AtomicBool::new(true));
    assert_eq!(cancelled.trouble, None);
    replica.slots.unsettle();
    assert!(!ReplicaWork::is_settled(&replica));
    let Maintenance { again, verify, .. } = ReplicaWork::maintain(&mut replica, &AtomicBool::new(false));
    assert!(ReplicaWork::is_settled(&replica) && !verify);
    assert_ne!(again, Some(Duration::from_secs(30)));
}

#[test]
fn a_verification_reports_what_drifted_and_whether_it_was_healed() {
    let (mut site, mut replica) = settled_in(Site::in_memory());
    std::fs::write(site.live().join("twin-a"), "defaced").unwrap();
    let never = AtomicBool::new(false);
    let found = ReplicaWork::verify(&mut replica, &mut site.origin, &|_| {}, &never).unwrap();
    assert_eq!((found.drifted, found.healed, found.error.as_deref()), (1, true, None));
    let drift: Vec<_> = found.drift.iter().map(|d| (d.path.as_str(), d.what.as_str())).collect();
    assert_eq!(drift, [("twin-a", "content")]);
    assert!(found.files > 20 && found.bytes > 700_000);
    site.assert_live_is_tree();
    let cancelled = ReplicaWork::verify(&mut replica, &mut site.origin, &|_| {}, &AtomicBool::new(true));
    assert_eq!(cancelled.unwrap_err().retry, None);
}

#[test]
fn every_option_of_a_run_reaches_the_replica() {
    let signers = || Signers { tree_id: syncd_shared::TreeId::from_bytes([7; 16]), keys: Vec::new() };
    let plain = RunOptions::new("/srv/site".into());
    let defaults: ReplicaOptions = replica_options(&plain, signers());
    assert!(defaults.signers.is_some() && !defaults.checks && defaults.owner.is_none());
    assert_eq!(defaults.verify_every, Some(crate::config::VERIFY_EVERY));
    let check = CheckOptions {
        ask: Ask::Command("true".into()),
        times: 1,
        interval: Duration::ZERO,
        timeout: Duration::from_secs(1),
    };
    let options = RunOptions {
        check: Some(check),
        keep: 7,
        grace: Duration::from_secs(3),
        owner: Some(Owner { uid: 8, gid: 9 }),
        verify_every: Duration::ZERO,
        swap: Some(Swap::Exchange),
        ..plain
    };
    let set = replica_options(&options, signers());
    assert_eq!((set.keep, set.grace, set.owner), (7, Duration::from_secs(3), Some((8, 9))));
    assert_eq!((set.verify_every, set.swap, set.checks), (None, Some(Swap::Exchange), true));
}
