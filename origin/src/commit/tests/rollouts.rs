//! Generations that go to every node at once: no record, and a withdrawal if a node's own check fails.

use syncd_shared::{CheckOutcome, CheckStatus};

use super::*;
use crate::fleet::rollout::record::ROLLOUT;
use crate::fleet::{Attachment, FleetView, Greeting, Report};

async fn node(origin: &Running, live: &SignedGeneration) -> Attachment {
    let greeting = Greeting { live: Some(live.clone()), ..Default::default() };
    origin.fleet().attach(peer(), greeting).await.unwrap()
}

async fn activated(node: &Attachment, generation: &SignedGeneration) {
    let (generation, root) = (generation.number(), generation.root_hash());
    node.report(Report::Activated { generation, root, spare_misses: 0, hook_due: false }).await;
}

/// The node's check fails on a generation, and the node returns.
async fn returned(node: &Attachment, from: &SignedGeneration, to: &SignedGeneration) {
    let check = |outcome, returned_to| CheckStatus {
        generation: from.number().get(),
        root: from.root_hash(),
        outcome,
        returned_to,
        output: "502".to_owned(),
    };
    activated(node, from).await;
    node.report(Report::Check(check(CheckOutcome::Running, None))).await;
    node.report(Report::Check(check(CheckOutcome::Failed, Some(to.number().get())))).await;
    activated(node, to).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_returns_withdraws_what_went_to_all_nodes_at_once() {
    let site = Site::new(3);
    let origin = site.serve(Trigger::Manual).await;
    let good = sealed(commit(&origin).await);
    let node = node(&origin, &good).await;
    site.write("f0", "bad");
    let bad = sealed(commit(&origin).await);
    returned(&node, &bad, &good).await;
    let view = until(&origin, "the withdrawal", |view| number_of(view) == 3).await;
    assert_eq!(view.current.unwrap().root_hash(), good.root_hash());
    assert_eq!(view.hold.and_then(|hold| hold.withdrawn), Some(bad.number()));
    // The same failure on the tree of before withdraws nothing any more.
    let current = origin.committer().view().borrow().current.clone().unwrap();
    returned(&node, &current, &good).await;
    site.write("f0", "better");
    assert_eq!(sealed(commit(&origin).await).number().get(), 4);
    node.detach().await;
    origin.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_when_all_others_have_passed_returns_alone() {
    let site = Site::new(3);
    let origin = site.serve(Trigger::Manual).await;
    let good = sealed(commit(&origin).await);
    let node = node(&origin, &good).await;
    site.write("f0", "new");
    let new = sealed(commit(&origin).await);
    let mut rollout = origin.fleet().rollout();
    drop(tokio::time::timeout(SOON, rollout.wait_for(|view| view.newest == Some(2))).await.unwrap().unwrap());
    activated(&node, &new).await;
    let (generation, root) = (new.number().get(), new.root_hash());
    let (outcome, output) = (CheckOutcome::Passed, String::new());
    node.report(Report::Check(CheckStatus { generation, root, outcome, returned_to: None, output })).await;
    let mut fleet = origin.fleet().view();
    let passed = |fleet: &Arc<FleetView>| fleet.agents.iter().any(|agent| agent.check.is_some());
    drop(tokio::time::timeout(SOON, fleet.wait_for(passed)).await.unwrap().unwrap());
    returned(&node, &new, &good).await;
    // The commit looks at what the fleet shows.
    let refuses = |fleet: &Arc<FleetView>| fleet.agents.iter().any(|agent| !agent.refused.is_empty());
    drop(tokio::time::timeout(SOON, fleet.wait_for(refuses)).await.unwrap().unwrap());
    site.write("f0", "newer");
    let next = sealed(commit(&origin).await);
    assert_eq!(next.number().get(), 3, "nothing was withdrawn before");
    // It is no place to return to although the others have passed: not now, and not after a restart.
    node.detach().await;
    origin.stop().await;
    let origin = site.serve(Trigger::Manual).await;
    let back = sealed(origin.committer().rollback(None, None).await.result);
    assert_eq!(back.root_hash(), good.root_hash());
    origin.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_that_a_node_refuses_after_it_was_replaced_is_no_place_to_return_to() {
    let site = Site::new(3);
    let origin = site.serve(Trigger::Manual).await;
    let good = sealed(commit(&origin).await);
    let node = node(&origin, &good).await;
    site.write("f0", "bad");
    let bad = sealed(commit(&origin).await);
    site.write("f0", "worse");
    let worse = sealed(commit(&origin).await);
    returned(&node, &bad, &good).await;
    let mut fleet = origin.fleet().view();
    let refuses = |fleet: &Arc<FleetView>| fleet.agents.iter().any(|agent| !agent.refused.is_empty());
    drop(tokio::time::timeout(SOON, fleet.wait_for(refuses)).await.unwrap().unwrap());
    returned(&node, &worse, &good).await;
    let view = until(&origin, "the withdrawal", |view| number_of(view) > 3).await;
    assert_eq!(view.hold.and_then(|hold| hold.withdrawn), Some(worse.number()));
    assert_eq!(view.current.unwrap().root_hash(), good.root_hash());
    node.detach().await;
    origin.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_to_all_nodes_at_once_writes_no_record_of_a_rollout() {
    let site = Site::new(3);
    let origin = site.serve(Trigger::Manual).await;
    for content in ["one", "two"] {
        site.write("f0", content);
        sealed(commit(&origin).await);
    }
    origin.stop().await;
    let store = Store::open(&site.data()).unwrap();
    assert!(store.records(ROLLOUT, b"").unwrap().is_empty());
}

/// The question before a rollback to this generation.
async fn question(site: &Site, generation: Option<u64>) -> RollbackShown {
    match site.ask(Asked::RollbackTarget { generation }).await.remove(0) {
        Answer::RollbackTarget { from, to, refused_by } => {
            RollbackShown { from: from.generation, to: to.generation, refused_by }
        }
        other => panic!("{other:?}"),
    }
}

/// Answers it with yes. Returns the refusal.
async fn confirm(site: &Site, shown: &RollbackShown) -> Option<String> {
    let (generation, shown) = (Some(shown.to), Some(shown.clone()));
    match site.ask(Asked::Rollback { generation, shown, wait: None }).await.pop() {
        Some(Answer::Error { message }) => Some(message),
        Some(Answer::Done { code: 0 }) => None,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_question_before_a_rollback_names_who_refuses_the_tree_and_its_answer_is_checked() {
    let site = Site::new(3);
    let origin = site.serve(Trigger::Manual).await;
    let good = sealed(commit(&origin).await);
    let node = node(&origin, &good).await;
    site.write("f0", "bad");
    let bad = sealed(commit(&origin).await);
    site.write("f0", "better");
    sealed(commit(&origin).await);
    let early = question(&site, Some(2)).await;
    assert_eq!(early, RollbackShown { from: 3, to: 2, refused_by: Vec::new() });
    // Meanwhile the check fails there.
    returned(&node, &bad, &good).await;
    let mut fleet = origin.fleet().view();
    let refuses = |fleet: &Arc<FleetView>| !fleet.refusing(&bad.root_hash()).is_empty();
    drop(tokio::time::timeout(SOON, fleet.wait_for(refuses)).await.unwrap().unwrap());
    let refusal = confirm(&site, &early).await.unwrap();
    assert!(refusal.starts_with("web1 refused the tree of generation 2 since"), "{refusal}");
    let late = question(&site, Some(2)).await;
    assert_eq!(late.refused_by, ["web1"]);
    assert_eq!(question(&site, None).await.to, 1, "the one before that nobody refuses");
    // Meanwhile another one is published.
    site.write("f0", "best");
    sealed(commit(&origin).await);
    let refusal = confirm(&site, &late).await.unwrap();
    assert!(refusal.starts_with("generation 4 is in effect by now, and no longer 3"), "{refusal}");
    assert_eq!(confirm(&site, &question(&site, Some(2)).await).await, None);
    assert_eq!(number_of(&origin.committer().view().borrow()), 5);
    node.detach().await;
    origin.stop().await;
}
