//! Decisions of a node are on its disk, and count after a restart.

use syncd_shared::OrderedStanding;

use super::*;
use crate::session::worker::ReplicaWork;
use crate::state::decisions::STARTS;

/// Generation 1 live on a node with or without a check.
fn switched(checks: bool) -> (Site, Replica) {
    let mut site = Site::in_memory();
    site.options.checks = checks;
    site.write("page", "one");
    let mut replica = site.open();
    site.publish(&mut replica);
    (site, replica)
}

/// Starts the agent once more.
fn restarted(site: &Site, replica: Replica) -> Replica {
    drop(replica);
    let mut replica = site.open();
    replica.started().unwrap();
    replica
}

/// Number and starts left of the trial.
fn trial(replica: &Replica) -> Option<(u64, u8)> {
    replica.slots.decisions().trial.map(|trial| (trial.target.number, trial.starts_left))
}

fn live(replica: &Replica) -> Named {
    Named::of(replica.slots.live().unwrap())
}

fn decide(replica: &mut Replica, decision: Decision) {
    ReplicaWork::decide(replica, decision).unwrap();
}

#[test]
fn each_start_in_a_trial_counts_until_the_check_passes() {
    let (site, mut replica) = switched(true);
    assert_eq!(trial(&replica), Some((1, STARTS)));
    for left in (0..STARTS).rev() {
        replica = restarted(&site, replica);
        assert_eq!(trial(&replica), Some((1, left)));
    }
    replica = restarted(&site, replica);
    assert_eq!(trial(&replica), Some((1, 0)));
    let first = live(&replica);
    decide(&mut replica, Decision::Pass(first));
    replica = restarted(&site, replica);
    assert_eq!((trial(&replica), replica.slots.decisions().good), (None, Some(first)));
}

#[test]
fn a_start_with_a_new_check_tries_what_is_live_and_one_without_ends_the_trial() {
    let (mut site, replica) = switched(false);
    site.options.checks = true;
    let replica = restarted(&site, replica);
    assert_eq!(trial(&replica), Some((1, STARTS)));
    site.options.checks = false;
    let replica = restarted(&site, replica);
    assert_eq!((trial(&replica), replica.slots.decisions().good), (None, None));
}

#[test]
fn a_result_for_another_tree_than_the_live_one_changes_nothing() {
    let (mut site, mut replica) = switched(true);
    let first = live(&replica);
    site.write("page", "two");
    site.publish(&mut replica);
    let second = live(&replica);
    decide(&mut replica, Decision::Stay(first));
    decide(&mut replica, Decision::Pass(first));
    assert_eq!((trial(&replica), replica.slots.decisions().good), (Some((2, STARTS)), None));
    decide(&mut replica, Decision::Stay(second));
    assert_eq!((trial(&replica), replica.slots.decisions().good), (None, None));
}

#[test]
fn no_start_tries_what_is_pinned_or_refused() {
    let (site, mut replica) = switched(true);
    decide(&mut replica, Decision::Pin(None));
    assert_eq!(trial(&replica), None);
    let mut replica = restarted(&site, replica);
    assert_eq!(trial(&replica), None);
    decide(&mut replica, Decision::Unpin);
    assert_eq!(trial(&replica), Some((1, STARTS)));
    let first = live(&replica);
    decide(&mut replica, Decision::Refuse(first, "exit status: 1".into()));
    decide(&mut replica, Decision::Stay(first));
    let replica = restarted(&site, replica);
    assert_eq!(trial(&replica), None);
    let refused: Vec<_> =
        replica.slots.decisions().refused.iter().map(|refusal| refusal.generation).collect();
    assert_eq!(refused, [first]);
}

#[test]
fn orders_outlive_the_process_and_leave_each_other_alone() {
    let (mut site, mut replica) = switched(false);
    site.write("page", "two");
    site.publish(&mut replica);
    decide(&mut replica, Decision::Drain(true));
    decide(&mut replica, Decision::Pin(None));
    let mut replica = restarted(&site, replica);
    let decisions = replica.slots.decisions();
    assert_eq!(decisions.node.pinned.map(|pin| pin.generation), Some(2));
    assert!(decisions.is_drained() && !decisions.ordered.drained);
    decide(&mut replica, Decision::Pin(Some(1)));
    assert_eq!(replica.slots.decisions().node.pinned.map(|pin| pin.generation), Some(1));
    decide(&mut replica, Decision::Drain(false));
    decide(&mut replica, Decision::Unpin);
    assert!(!replica.slots.decisions().is_drained() && !replica.slots.decisions().is_pinned());
    decide(&mut replica, Decision::Ordered(OrderedStanding { drained: true, pinned: false }));
    let replica = restarted(&site, replica);
    assert!(replica.slots.decisions().is_drained() && !replica.slots.decisions().is_pinned());
}

#[test]
fn what_can_not_be_pinned_is_named() {
    let mut site = Site::in_memory();
    let mut replica = site.open();
    assert!(matches!(replica.decide(Decision::Pin(None)), Err(DecideError::Empty)));
    site.write("page", "one");
    site.publish(&mut replica);
    site.write("page", "two");
    site.publish(&mut replica);
    let missing = replica.decide(Decision::Pin(Some(7))).unwrap_err();
    assert!(matches!(&missing, DecideError::NotHeld { number: 7, held } if held == "1, 2"), "{missing}");
    let second = live(&replica);
    decide(&mut replica, Decision::Refuse(second, "exit status: 1".into()));
    for number in [None, Some(2)] {
        let refused = replica.decide(Decision::Pin(number)).unwrap_err();
        assert!(matches!(refused, DecideError::Refused { number: 2 }), "{refused}");
    }
    decide(&mut replica, Decision::Pin(Some(1)));
}
