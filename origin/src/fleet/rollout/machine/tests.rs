use syncd_shared::{CheckOutcome, RootHash};

use super::*;
use crate::fleet::rollout::policy::Step;

pub const GOOD: Target = Target { number: 6, root: RootHash::from_bytes([6; 32]) };
pub const NEW: Target = Target { number: 7, root: RootHash::from_bytes([7; 32]) };

/// Connected, with the good generation live.
pub fn node(name: &str) -> Node<'_> {
    Node {
        name,
        group: "",
        connected: true,
        linked: Some(GOOD),
        is_live: true,
        staged: None,
        check: None,
        refused: &[],
        drained: false,
        pinned: false,
        error: None,
    }
}

const NOW: i64 = 1_000;
const LATE: i64 = 1_000_000;

fn policy(steps: &[Step]) -> Policy {
    let steps = steps.iter().cloned().chain([Step::Rest]).collect();
    Policy { name: "test".into(), steps, hold_ms: 30_000, deadline_ms: 60_000, ..Policy::together() }
}

fn started(policy: Policy, nodes: &[Node<'_>]) -> Rollout {
    let mut rollout = Rollout::start(Kind::Commit, NEW, GOOD, policy, NOW);
    rollout.look(nodes, NOW);
    rollout
}

fn stage(nodes: &mut [Node<'_>]) {
    nodes.iter_mut().for_each(|node| node.staged = Some(NEW));
}

fn link(node: &mut Node<'_>) {
    (node.linked, node.staged) = (Some(NEW), None);
}

fn activates(rollout: &Rollout, nodes: &[Node<'_>]) -> String {
    let activates = |node: &Node<'_>| matches!(rollout.want(node), Want::New { activate: true, .. });
    nodes.iter().filter(|node| activates(node)).map(|node| node.name).collect()
}

#[test]
fn all_stage_and_flip_when_the_last_has_staged() {
    let mut nodes = ["a", "b"].map(node);
    let mut rollout = started(policy(&[]), &nodes);
    assert_eq!((rollout.phase, activates(&rollout, &nodes).as_str()), (Phase::Staging, ""));
    assert_eq!(rollout.want(&nodes[0]), Want::New { activate: false, flipped: false });
    stage(&mut nodes[..1]);
    rollout.look(&nodes, NOW);
    assert_eq!(rollout.phase, Phase::Staging);
    stage(&mut nodes[1..]);
    rollout.look(&nodes, NOW);
    assert_eq!((rollout.phase, activates(&rollout, &nodes).as_str()), (Phase::Flipping, "ab"));
    assert_eq!(rollout.want(&nodes[0]), Want::New { activate: true, flipped: false });
    nodes.iter_mut().for_each(link);
    nodes[1].is_live = false;
    rollout.look(&nodes, NOW);
    assert_eq!(rollout.phase, Phase::Flipping, "its hook has not succeeded");
    nodes[1].is_live = true;
    rollout.look(&nodes, NOW);
    assert_eq!(rollout.phase, Phase::Released);
}

#[test]
fn without_quorum_at_the_deadline_nothing_flips_and_the_missing_are_named() {
    let mut nodes = ["a", "b", "c"].map(node);
    let mut rollout = started(policy(&[]), &nodes);
    stage(&mut nodes[..2]);
    nodes[2].error = Some("no space left");
    rollout.look(&nodes, NOW + 59_999);
    assert_eq!(rollout.phase, Phase::Staging);
    rollout.look(&nodes, NOW + 60_000);
    assert_eq!((rollout.phase, activates(&rollout, &nodes).as_str()), (Phase::Failed, ""));
    assert_eq!(rollout.missing, ["c (no space left)"]);
    let reason = rollout.reason.unwrap();
    assert_eq!(reason, "2 of 3 nodes of step 1 have staged it within the deadline, 3 are needed");
}

#[test]
fn with_quorum_at_the_deadline_the_rest_flips_and_a_straggler_knows_that_it_is_behind() {
    let mut nodes = ["a", "b", "c"].map(node);
    let mut rollout = started(Policy { quorum_percent: 60, ..policy(&[]) }, &nodes);
    stage(&mut nodes[..2]);
    nodes[2].connected = false;
    rollout.look(&nodes, NOW + 60_000);
    assert_eq!(rollout.phase, Phase::Flipping);
    nodes[..2].iter_mut().for_each(link);
    rollout.look(&nodes, NOW + 61_000);
    assert_eq!(rollout.phase, Phase::Flipping, "the straggler has time until the deadline");
    assert_eq!(rollout.want(&nodes[2]), Want::New { activate: true, flipped: true });
    rollout.look(&nodes, NOW + 120_000);
    assert_eq!(
        (rollout.phase, rollout.missing.as_slice()),
        (Phase::Released, &["c (not connected)".to_owned()][..])
    );
    nodes[2].connected = true;
    assert_eq!(rollout.want(&nodes[2]), Want::New { activate: true, flipped: true });
}

#[test]
fn a_canary_goes_first_and_the_rest_after_the_hold() {
    let mut nodes = ["a", "b", "c"].map(node);
    let mut rollout = started(policy(&[Step::Nodes(1)]), &nodes);
    stage(&mut nodes[..1]);
    rollout.look(&nodes, NOW);
    assert_eq!((rollout.phase, activates(&rollout, &nodes).as_str()), (Phase::Flipping, "a"));
    link(&mut nodes[0]);
    rollout.look(&nodes, NOW);
    assert_eq!((rollout.phase, rollout.next_ms()), (Phase::Holding, Some(NOW + 30_000)));
    stage(&mut nodes[1..]);
    rollout.look(&nodes, NOW + 29_999);
    assert_eq!(activates(&rollout, &nodes), "a");
    rollout.look(&nodes, NOW + 30_000);
    assert_eq!((rollout.step, rollout.phase), (1, Phase::Flipping));
    assert_eq!(activates(&rollout, &nodes), "abc");
}

#[test]
fn a_failed_check_of_a_node_fails_the_rollout_and_touches_no_other() {
    let mut nodes = ["a", "b"].map(node);
    let mut rollout = started(policy(&[Step::Nodes(1)]), &nodes);
    stage(&mut nodes);
    rollout.look(&nodes, NOW);
    link(&mut nodes[0]);
    nodes[0].check = Some((NEW, CheckOutcome::Running, ""));
    rollout.look(&nodes, NOW);
    assert_eq!(rollout.phase, Phase::Flipping, "it is on trial");
    nodes[0].check = Some((NEW, CheckOutcome::Failed, "502"));
    nodes[0].linked = Some(GOOD);
    rollout.look(&nodes, NOW);
    assert_eq!((rollout.phase, activates(&rollout, &nodes).as_str()), (Phase::Failed, ""));
    assert_eq!(rollout.reason.as_deref(), Some("the check failed on a: 502"));
    assert_eq!(rollout.want(&nodes[0]), Want::Nothing, "what it refuses is not assigned to it");
    // Reports that come late change nothing.
    nodes[0].check = None;
    rollout.look(&nodes, LATE);
    assert_eq!(rollout.phase, Phase::Failed);
}

#[test]
fn a_failed_rollout_has_nobody_else_of_its_step_activate() {
    let mut nodes = ["a", "b", "c"].map(node);
    let mut rollout = started(policy(&[Step::Nodes(2)]), &nodes);
    stage(&mut nodes);
    rollout.look(&nodes, NOW);
    assert_eq!(activates(&rollout, &nodes), "ab");
    nodes[0].check = Some((NEW, CheckOutcome::Failed, "502"));
    rollout.look(&nodes, NOW);
    assert_eq!((rollout.phase, activates(&rollout, &nodes).as_str()), (Phase::Failed, ""));
    // One that has it keeps it until the withdrawal comes.
    link(&mut nodes[1]);
    assert_eq!(activates(&rollout, &nodes), "b");
}

#[test]
fn a_node_that_fails_and_has_nothing_to_return_to_is_left_to_the_quorum() {
    let mut nodes = ["a", "b", "c"].map(node);
    let mut rollout = started(Policy { quorum_percent: 60, ..policy(&[]) }, &nodes);
    stage(&mut nodes);
    rollout.look(&nodes, NOW);
    nodes.iter_mut().for_each(link);
    let passed = Some((NEW, CheckOutcome::Passed, ""));
    nodes.iter_mut().for_each(|node| node.check = passed);
    nodes[0].check = Some((NEW, CheckOutcome::Failed, "502"));
    nodes[1].check = Some((NEW, CheckOutcome::Running, ""));
    rollout.look(&nodes, NOW);
    assert_eq!(rollout.phase, Phase::Flipping);
    let mut without = rollout.clone();
    nodes[1].check = passed;
    rollout.look(&nodes, NOW + 60_000);
    assert_eq!((rollout.phase, rollout.missing.len()), (Phase::Released, 1));
    nodes[1].check = nodes[0].check;
    without.look(&nodes, NOW);
    assert_eq!(without.phase, Phase::Failed, "1 of 3 is no quorum, so nobody waits");
    assert_eq!(without.reason.as_deref(), Some("the check failed on a: 502"));
}

#[test]
fn a_check_that_fails_before_the_flip_is_waited_for_until_the_deadline() {
    let mut nodes = ["a"].map(node);
    let mut rollout = started(policy(&[]), &nodes);
    // Its tree waits for the check.
    nodes[0].check = Some((GOOD, CheckOutcome::FailedBefore, "down anyway"));
    rollout.look(&nodes, NOW);
    assert_eq!(rollout.phase, Phase::Staging);
    rollout.look(&nodes, NOW + 60_000);
    assert_eq!(rollout.missing, ["a (its check fails on what is live: down anyway)"]);
}

#[test]
fn what_a_node_reports_as_staged_flips_although_its_check_fails_on_what_is_live() {
    let mut nodes = ["a", "b"].map(node);
    let back = Target { number: 8, root: NEW.root };
    let mut rollout = Rollout::start(Kind::Rollback, back, GOOD, Policy::rollback(), NOW);
    rollout.look(&nodes, NOW);
    nodes.iter_mut().for_each(|node| {
        (node.check, node.staged) = (Some((GOOD, CheckOutcome::FailedBefore, "502")), Some(back));
    });
    rollout.look(&nodes, NOW);
    assert_eq!(rollout.phase, Phase::Flipping, "it does not wait for its deadline");
}

#[test]
fn a_node_that_stays_though_its_check_fails_on_both_takes_the_same_tree_again() {
    let mut nodes = ["a", "b"].map(node);
    nodes[0].check = Some((GOOD, CheckOutcome::FailedOnBoth, "502"));
    let again = Target { number: 8, root: GOOD.root };
    nodes[1].linked = Some(NEW);
    let mut rollout = Rollout::start(Kind::Rollback, again, NEW, Policy::rollback(), NOW);
    rollout.look(&nodes, NOW);
    assert!(rollout.participants.has("a") && !nodes[0].refuses(&GOOD.root));
    nodes.iter_mut().for_each(|node| node.staged = Some(again));
    rollout.look(&nodes, NOW);
    assert_eq!(rollout.want(&nodes[0]), Want::New { activate: true, flipped: false });
    nodes.iter_mut().for_each(|node| (node.linked, node.staged) = (Some(again), None));
    rollout.look(&nodes, NOW);
    assert_eq!(nodes[0].failed_on(again), Some("502"), "of the earlier number");
    assert_eq!(nodes[0].failed_on(GOOD), Some("502"));
    let refused = [GOOD.root];
    nodes[0].refused = &refused;
    assert!(nodes[0].refuses(&GOOD.root), "one that returned");
}

#[test]
fn the_check_at_the_origin_must_pass_before_the_flip_and_in_each_hold() {
    let mut nodes = ["a", "b"].map(node);
    let asking = Policy { check: Some("ask".into()), ..policy(&[Step::Nodes(1)]) };
    let mut rollout = started(asking, &nodes);
    stage(&mut nodes);
    rollout.look(&nodes, NOW);
    assert!(rollout.wants_check());
    rollout.checked(Phase::Staging, false, "nobody answers".into(), NOW);
    rollout.look(&nodes, NOW);
    assert_eq!((rollout.phase, rollout.wants_check()), (Phase::Staging, true), "it is asked again");
    let mut late = rollout.clone();
    late.look(&nodes, NOW + 60_000);
    assert_eq!(late.reason.as_deref(), Some("the check at the origin has not passed: nobody answers"));
    rollout.checked(Phase::Staging, true, String::new(), NOW);
    rollout.look(&nodes, NOW);
    assert_eq!((rollout.phase, rollout.wants_check()), (Phase::Flipping, false));
    link(&mut nodes[0]);
    rollout.look(&nodes, NOW);
    assert!(rollout.wants_check());
    rollout.look(&nodes, NOW + 30_000);
    assert_eq!(rollout.phase, Phase::Holding, "nothing was asked in this hold yet");
    rollout.checked(Phase::Staging, false, "late".into(), NOW);
    assert_eq!(rollout.phase, Phase::Holding, "it began in another phase");
    let mut failing = rollout.clone();
    failing.checked(Phase::Holding, false, "5 % errors".into(), NOW);
    assert_eq!(failing.reason.as_deref(), Some("the check at the origin failed after step 1: 5 % errors"));
    rollout.checked(Phase::Holding, true, String::new(), NOW + 30_000);
    rollout.look(&nodes, NOW + 30_000);
    assert_eq!(rollout.step, 1);
}

#[test]
fn all_participants_that_die_in_mid_flip_are_a_failure() {
    let mut nodes = ["a", "b"].map(node);
    let mut rollout = started(Policy { quorum_percent: 1, ..policy(&[]) }, &nodes);
    stage(&mut nodes);
    rollout.look(&nodes, NOW);
    nodes.iter_mut().for_each(|node| node.connected = false);
    rollout.look(&nodes, NOW + 60_000);
    assert_eq!(rollout.phase, Phase::Failed);
    assert_eq!(rollout.missing, ["a (not connected)", "b (not connected)"]);
    let forgotten = started(policy(&[]), &["a"].map(node));
    let mut rollout = forgotten;
    rollout.look(&[], NOW + 60_000);
    assert_eq!(rollout.reason.as_deref(), Some("nobody is left of step 1"));
}

#[test]
fn a_drain_in_mid_flip_is_not_waited_for() {
    let mut nodes = ["a", "b"].map(node);
    let mut rollout = started(policy(&[]), &nodes);
    stage(&mut nodes);
    rollout.look(&nodes, NOW);
    link(&mut nodes[0]);
    nodes[1].drained = true;
    rollout.look(&nodes, NOW);
    assert_eq!(rollout.phase, Phase::Released);
    assert_eq!(rollout.want(&nodes[1]), Want::New { activate: true, flipped: true }, "it flips along");
    let pinned = Node { pinned: true, ..nodes[1] };
    assert_eq!(rollout.want(&pinned), Want::Nothing);
}

#[test]
fn drained_nodes_alone_hold_up_nothing() {
    let mut nodes = ["a", "b"].map(node);
    nodes[1].drained = true;
    let mut rollout = started(policy(&[Step::Nodes(1)]), &nodes);
    stage(&mut nodes[..1]);
    rollout.look(&nodes, NOW);
    link(&mut nodes[0]);
    rollout.look(&nodes, NOW);
    rollout.look(&nodes, NOW + 30_000);
    assert_eq!(rollout.phase, Phase::Released);
    let all_drained = started(policy(&[]), &[Node { drained: true, ..node("a") }]);
    assert_eq!(all_drained.phase, Phase::Released);
}

#[test]
fn who_joins_or_returns_gets_what_its_peers_have() {
    let mut nodes = ["a", "b", "c"].map(node);
    let mut rollout = started(policy(&[Step::Nodes(1)]), &nodes[..2]);
    stage(&mut nodes[..2]);
    rollout.look(&nodes, NOW);
    nodes[2].linked = None;
    assert_eq!(rollout.want(&nodes[2]), Want::Base);
    nodes[2].linked = Some(GOOD);
    assert_eq!(rollout.want(&nodes[2]), Want::New { activate: false, flipped: false });
    // The canary comes back with an empty disk.
    (nodes[0].linked, nodes[0].staged) = (None, None);
    assert_eq!(rollout.want(&nodes[0]), Want::New { activate: true, flipped: true });
}

#[test]
fn a_rollout_waits_for_nodes_that_reconnect_after_a_restart_of_the_origin() {
    let mut nodes = ["a", "b"].map(node);
    nodes[1].connected = false;
    let mut rollout = Rollout::start(Kind::Commit, NEW, GOOD, policy(&[]), NOW);
    rollout.resume_at(NOW, NOW + 5_000);
    rollout.look(&nodes, NOW);
    assert_eq!(rollout.phase, Phase::Gathering);
    let mut alone = rollout.clone();
    alone.look(&nodes, NOW + 5_000);
    assert!(alone.participants.has("a") && !alone.participants.has("b"));
    nodes[1].connected = true;
    rollout.look(&nodes, NOW + 1);
    assert!(rollout.participants.has("b"));
    // A time that passed while the origin was dead does not count.
    rollout.resume_at(LATE, LATE + 5_000);
    rollout.look(&nodes, LATE);
    assert_eq!((rollout.phase, rollout.next_ms()), (Phase::Staging, Some(LATE + 60_000)));
}

#[test]
fn nobody_in_service_is_no_failure_and_everybody_refusing_is() {
    let refused = [NEW.root];
    for (node, phase) in [
        (Node { connected: false, ..node("a") }, Phase::Released),
        (Node { pinned: true, ..node("a") }, Phase::Released),
        (Node { refused: &refused, ..node("a") }, Phase::Failed),
    ] {
        assert_eq!(started(policy(&[]), &[node]).phase, phase);
    }
    let group = started(policy(&[Step::Group("eu".into())]), &[node("a")]);
    assert!(group.reason.unwrap().starts_with("no node of group eu is connected"));
}

#[test]
fn a_rollback_never_fails() {
    let mut nodes = ["a", "b"].map(node);
    let mut rollout = Rollout::start(Kind::Rollback, NEW, GOOD, Policy::rollback(), NOW);
    rollout.look(&nodes, NOW);
    assert_eq!(rollout.order(Order::Abort, NOW), Err(OrderError::Rollback));
    let mut nobody = rollout.clone();
    nobody.look(&nodes, LATE);
    assert_eq!((nobody.phase, activates(&nobody, &nodes).as_str()), (Phase::Released, "ab"));
    stage(&mut nodes[..1]);
    rollout.look(&nodes, NOW + 10_000);
    assert_eq!(rollout.phase, Phase::Flipping);
}

#[test]
fn each_order_works_or_says_why_not() {
    let mut nodes = ["a", "b"].map(node);
    let mut rollout = started(policy(&[Step::Nodes(1)]), &nodes);
    assert_eq!(rollout.order(Order::Advance, NOW), Err(OrderError::Staging));
    assert_eq!(rollout.order(Order::Resume, NOW), Err(OrderError::NotPaused));
    rollout.order(Order::Pause, NOW + 10_000).unwrap();
    assert_eq!((rollout.order(Order::Pause, NOW), rollout.next_ms()), (Err(OrderError::Paused), None));
    stage(&mut nodes);
    rollout.look(&nodes, LATE);
    assert_eq!(rollout.phase, Phase::Staging, "a paused rollout has no deadline, and does not flip");
    rollout.order(Order::Resume, LATE).unwrap();
    assert_eq!(rollout.next_ms(), Some(LATE + 50_000), "the time that was left");
    rollout.look(&nodes, LATE);
    assert_eq!(rollout.order(Order::Advance, LATE), Err(OrderError::Flipping));
    link(&mut nodes[0]);
    rollout.look(&nodes, LATE);
    assert_eq!(rollout.phase, Phase::Holding);
    let mut now = rollout.clone();
    now.order(Order::Now, LATE).unwrap();
    assert_eq!(activates(&now, &nodes), "ab");
    rollout.order(Order::Advance, LATE).unwrap();
    rollout.look(&nodes, LATE);
    assert_eq!((rollout.step, activates(&rollout, &nodes).as_str()), (1, "ab"));
    rollout.order(Order::Abort, LATE).unwrap();
    assert_eq!((rollout.phase, activates(&rollout, &nodes).as_str()), (Phase::Aborted, "a"));
    for order in [Order::Pause, Order::Resume, Order::Advance, Order::Abort, Order::Now] {
        assert_eq!(rollout.order(order, LATE), Err(OrderError::NotRunning));
    }
}

#[test]
fn a_paused_rollout_still_fails_on_a_failed_check() {
    let mut nodes = ["a"].map(node);
    let mut rollout = started(policy(&[]), &nodes);
    stage(&mut nodes);
    rollout.look(&nodes, NOW);
    rollout.order(Order::Pause, NOW).unwrap();
    link(&mut nodes[0]);
    nodes[0].check = Some((NEW, CheckOutcome::FailedOnBoth, "502"));
    rollout.look(&nodes, NOW);
    assert_eq!((rollout.phase, rollout.paused_ms), (Phase::Failed, None));
}

#[test]
fn one_that_refuses_the_generation_before_still_takes_part() {
    let mut nodes = ["a", "b"].map(node);
    let refused = [GOOD.root];
    nodes[1].linked = Some(Target { number: 5, root: RootHash::from_bytes([5; 32]) });
    nodes[1].refused = &refused;
    let rollout = started(policy(&[]), &nodes);
    assert!(rollout.participants.has("b"));
    assert_eq!(rollout.want(&nodes[1]), Want::New { activate: false, flipped: false });
}

#[test]
fn a_participant_that_refuses_after_a_restart_is_a_failure() {
    let mut nodes = ["a", "b"].map(node);
    let mut rollout = started(policy(&[Step::Nodes(1)]), &nodes);
    let refused = [NEW.root];
    nodes[0].refused = &refused;
    rollout.look(&nodes, NOW);
    assert_eq!(
        (rollout.phase, rollout.missing.as_slice()),
        (Phase::Failed, &["a (it refuses this tree)".into()][..])
    );
}

#[test]
fn what_went_to_all_at_once_fails_when_a_node_in_service_returned_from_it() {
    let mut nodes = ["a", "b"].map(node);
    let failed = |nodes: &[Node<'_>]| Rollout::failed_at_once(NEW, GOOD, nodes, NOW);
    assert_eq!(failed(&nodes), None);
    link(&mut nodes[0]);
    nodes[0].check = Some((NEW, CheckOutcome::Failed, "502"));
    assert_eq!(failed(&nodes), None, "nothing has passed there, or it has not returned yet");
    nodes[0].linked = Some(GOOD);
    let rollout = failed(&nodes).unwrap();
    assert_eq!((rollout.phase, rollout.policy.name.as_str()), (Phase::Failed, "each"));
    assert_eq!(rollout.reason.as_deref(), Some("the check failed on a: 502"));
    nodes[0].drained = true;
    assert_eq!(failed(&nodes), None);
}

#[test]
fn a_rollback_that_every_node_refuses_does_not_reach_followers() {
    let refused = [NEW.root];
    let mut nodes = ["a", "b"].map(node);
    nodes.iter_mut().for_each(|node| node.refused = &refused);
    for (kind, phase) in [(Kind::Rollback, Phase::Released), (Kind::Commit, Phase::Failed)] {
        let mut rollout = Rollout::start(kind, NEW, GOOD, policy(&[]), NOW);
        rollout.look(&nodes, NOW);
        assert_eq!((rollout.phase, rollout.is_released()), (phase, false));
    }
    nodes[0].refused = &[];
    let mut rollout = Rollout::start(Kind::Rollback, NEW, GOOD, policy(&[]), NOW);
    rollout.look(&nodes, NOW);
    stage(&mut nodes[..1]);
    rollout.look(&nodes, NOW);
    link(&mut nodes[0]);
    rollout.look(&nodes, NOW);
    assert!(rollout.is_released(), "one took it");
}
