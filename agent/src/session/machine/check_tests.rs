//! Interleavings of checks, returns and orders, with a worker that does at once what it is told.

use bytes::Bytes;
use syncd_proto::v1::agent_message::Message as ToOrigin;
use syncd_proto::v1::origin_message::Message as FromOrigin;
use syncd_shared::ed25519::SigningKey;
use syncd_shared::identity::{Authority, RootKey, TrustDocument};
use syncd_shared::{CheckOutcome, Generation, Pin, SignedGeneration};
use time::OffsetDateTime;

use super::tests::{TREE, generation, holding, hook};
use super::*;
use crate::check::Phase;
use crate::hooks::{HookState, RunOutcome};
use crate::session::messages::PROTOCOL_MAX;
use crate::session::worker::{Command, Failure, Outcome, Report};
use crate::state::decisions::{Decisions, Named, Refusal, STARTS, Trial};

struct Node {
    key: SigningKey,
    machine: Machine,
    now: Instant,
    state: ReplicaState,
    command: Option<Command>,
    staged: Option<SignedGeneration>,
    check: Option<(u64, Phase)>,
    sent: Vec<ToOrigin>,
    hello: v1::Hello,
    /// Results of orders.
    ordered: Vec<Result<(), Failure>>,
    cancelled: bool,
    /// Whether the next return fails.
    cannot_return: bool,
}

impl Node {
    /// Generation 1 is live and good.
    fn new() -> Self {
        let key = SigningKey::from_bytes(&[3; 32]);
        let first = generation(&key, 1);
        let decisions = Decisions { good: Some(Named::of(&first)), ..Decisions::default() };
        Self::started(ReplicaState { decisions, ..holding(&first) })
    }

    fn empty() -> Self {
        Self::started(ReplicaState::default())
    }

    /// An agent that starts on this state, and is connected.
    fn started(state: ReplicaState) -> Self {
        let key = SigningKey::from_bytes(&[3; 32]);
        let root = RootKey { tree_id: TREE, key: SigningKey::from_bytes(&[4; 32]) };
        let authority = Authority::create(TREE, OffsetDateTime::now_utc()).unwrap();
        let document = TrustDocument::first(&root, key.verifying_key(), authority.certificate(), 0, 0);
        let trust = Trust { keys: Trusted::new(root.fingerprint(), document), boot_id: "boot".into() };
        let now = Instant::now();
        let machine = Machine::new(trust, state.clone(), now).checked(true);
        let mut node = Self {
            key,
            machine,
            now,
            state,
            command: None,
            staged: None,
            check: None,
            sent: Vec::new(),
            hello: v1::Hello::default(),
            ordered: Vec::new(),
            cancelled: false,
            cannot_return: false,
        };
        node.apply(Event::Tick);
        node.settle();
        node.welcome();
        node
    }

    fn welcome(&mut self) {
        let welcome = v1::Welcome { protocol: PROTOCOL_MAX, ..v1::Welcome::default() };
        self.hear(FromOrigin::Welcome(welcome));
    }

    fn apply(&mut self, event: Event) {
        for action in self.machine.apply(event, self.now) {
            match action {
                Action::Start(command) => assert!(self.command.replace(*command).is_none()),
                Action::Check(run, _, phase) => assert!(self.check.replace((run, phase)).is_none()),
                Action::StopCheck => assert!(self.check.take().is_some()),
                Action::Send(message) => self.sent.push(message),
                Action::Dial(hello) => self.hello = *hello,
                Action::Ordered(result) => self.ordered.push(result),
                Action::Cancel => self.cancelled = true,
                _ => {}
            }
        }
    }

    fn hear(&mut self, message: FromOrigin) {
        self.apply(Event::Message(v1::OriginMessage { message: Some(message) }));
    }

    fn announce(&mut self, number: u64) {
        let generation = generation(&self.key, number);
        self.announce_this(&generation, false);
    }

    fn announce_this(&mut self, generation: &SignedGeneration, flipped: bool) {
        self.announced(generation, true, flipped);
    }

    /// Announces a generation that is to wait for `Activate`.
    fn announce_to_wait(&mut self, generation: &SignedGeneration) {
        self.announced(generation, false, false);
    }

    fn announced(&mut self, generation: &SignedGeneration, activate_when_staged: bool, flipped: bool) {
        self.hear_announced(generation, activate_when_staged, flipped);
        self.settle();
    }

    /// Announces a generation, and does not wait for what the worker is told.
    fn hear_announced(&mut self, generation: &SignedGeneration, activate_when_staged: bool, flipped: bool) {
        let message = v1::SignedGeneration {
            record: Bytes::copy_from_slice(generation.record()),
            signature: Bytes::copy_from_slice(generation.signature()),
        };
        let generation = Some(message);
        self.hear(FromOrigin::Announce(v1::Announce {
            generation,
            activate_when_staged,
            flipped,
            ..v1::Announce::default()
        }));
    }

    /// Does what the worker is told, until nothing is left.
    fn settle(&mut self) {
        while let Some(command) = self.command.take() {
            let outcome = self.work(command);
            self.apply(Event::Report(Report::Done(outcome, Box::new(self.state.clone()))));
        }
    }

    fn work(&mut self, command: Command) -> Outcome {
        match command {
            Command::Update { generation, activate: false, .. } => {
                self.staged = Some(*generation);
                Outcome::Staged
            }
            Command::Update { generation, .. } => self.switch(*generation, true),
            Command::Activate => {
                let staged = self.staged.take().expect("a staged tree");
                self.switch(staged, true)
            }
            Command::Return(_) if self.cannot_return => {
                Outcome::Failed(Failure { retry: Some(v1::RetryClass::Retry), reason: "damaged".into() })
            }
            Command::Return(generation) => {
                self.staged = None;
                self.switch(*generation, false)
            }
            Command::Decide(decision) => self.decide(decision),
            Command::Maintain => Outcome::Maintained(Default::default()),
            Command::Verify => Outcome::Verified(Default::default()),
        }
    }

    fn switch(&mut self, to: SignedGeneration, on_trial: bool) -> Outcome {
        let state = &mut self.state;
        let trial = Trial { target: Named::of(&to), starts_left: STARTS };
        state.decisions.trial = Some(trial).filter(|_| on_trial && !state.decisions.is_good(&to));
        state.held.retain(|held| held.number() != to.number());
        state.held.extend(state.live.take());
        state.generations.push(to.number());
        if state.accepted.as_ref().is_none_or(|accepted| accepted.number() < to.number()) {
            state.accepted = Some(to.clone());
        }
        state.live = Some(to);
        Outcome::Activated
    }

    fn decide(&mut self, decision: Decision) -> Outcome {
        let live = self.state.live.as_ref().map(Named::of);
        let decisions = &mut self.state.decisions;
        match decision {
            Decision::Pass(_) => (decisions.good, decisions.trial) = (live, None),
            Decision::Stay(_) => decisions.trial = None,
            Decision::Refuse(generation, reason) => {
                decisions.refuse(Refusal {
                    generation,
                    reason,
                    since_ms: 0,
                    back: decisions.good,
                    announced: None,
                });
            }
            Decision::Announced(refused, number) => {
                let refusal = decisions.refused.iter_mut().find(|r| r.generation == refused);
                refusal.into_iter().for_each(|refusal| refusal.announced = Some(number));
            }
            Decision::Accept(number) => decisions.refused.retain(|r| !r.is_named(number)),
            Decision::Drain(drained) => decisions.node.drained = drained,
            Decision::Pin(generation) => {
                decisions.trial = None;
                let generation = generation.unwrap_or(live.unwrap().number);
                decisions.node.pinned = Some(Pin { generation, since_ms: 0 });
            }
            Decision::Unpin => decisions.node.pinned = None,
            Decision::Ordered(ordered) => decisions.ordered = ordered,
        }
        Outcome::Decided
    }

    /// The running check ends.
    #[track_caller]
    fn check(&mut self, phase: Phase, result: Result<(), &str>) {
        let (run, running) = self.check.take().expect("a check runs");
        assert_eq!(running, phase);
        self.apply(Event::Checked(run, result.map_err(str::to_owned)));
        self.settle();
    }

    /// Follows to `number`, with a check that passes before the switch.
    #[track_caller]
    fn switch_to(&mut self, number: u64) {
        self.announce(number);
        self.check(Phase::Before, Ok(()));
        assert_eq!(self.live(), number);
    }

    fn live(&self) -> u64 {
        self.state.live.as_ref().map_or(0, |live| live.number().get())
    }

    fn refused(&self) -> Vec<u64> {
        self.state.decisions.refused.iter().map(|refusal| refusal.generation.number).collect()
    }

    /// Messages to the origin since the last call.
    fn told(&mut self) -> Vec<String> {
        let told = self.sent.drain(..).filter_map(|message| match message {
            ToOrigin::Check(report) => {
                let status = syncd_shared::CheckStatus::from_report(&report).unwrap();
                Some(format!(
                    "{:?} {} {}",
                    status.outcome,
                    status.generation,
                    status.returned_to.unwrap_or(0)
                ))
            }
            ToOrigin::Activated(activated) => Some(format!("activated {}", activated.generation)),
            ToOrigin::Staged(staged) => Some(format!("staged {}", staged.generation)),
            ToOrigin::Failed(failed) => Some(format!("failed {}", failed.generation)),
            ToOrigin::Standing(standing) => {
                Some(format!("standing {} {}", standing.drained, standing.pinned))
            }
            _ => None,
        });
        told.collect()
    }

    /// Time passes.
    fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.apply(Event::Tick);
        self.settle();
    }
}

#[test]
fn a_generation_whose_check_passes_is_good() {
    let mut node = Node::new();
    node.told();
    node.switch_to(2);
    node.check(Phase::Trial, Ok(()));
    assert_eq!(node.state.decisions.good.unwrap().number, 2);
    assert_eq!(node.state.decisions.trial, None);
    assert_eq!(node.told(), ["staged 2", "Running 2 0", "activated 2", "Passed 2 0"]);
    assert!(node.check.is_none() && node.command.is_none());
}

#[test]
fn a_hello_after_a_restart_in_a_trial_says_that_the_check_has_not_passed() {
    let mut node = Node::new();
    assert!(node.hello.has_check);
    assert_eq!(node.hello.check.as_ref().unwrap().outcome(), v1::CheckOutcome::Passed);
    node.switch_to(2);
    let node = Node::started(node.state);
    let check = node.hello.check.as_ref().expect("a report in the hello");
    assert_eq!((check.generation, check.outcome()), (2, v1::CheckOutcome::Running));
    assert!(node.check.is_some(), "it runs again");
}

#[test]
fn a_failing_check_returns_the_node_with_and_without_an_origin() {
    for is_connected in [true, false] {
        let mut node = Node::new();
        node.switch_to(2);
        node.told();
        if !is_connected {
            node.apply(Event::Lost("the origin died".into()));
        }
        node.check(Phase::Trial, Err("exit status: 1"));
        assert_eq!((node.live(), node.refused()), (1, vec![2]));
        if is_connected {
            assert_eq!(node.told(), ["Failed 2 0", "failed 2", "Failed 2 1", "activated 1"]);
        }
        node.check(Phase::Returned, Ok(()));
        let status = node.machine.check_status().unwrap();
        assert_eq!((status.generation, status.outcome), (2, CheckOutcome::Failed));
        assert_eq!(status.returned_to, Some(1));
        assert!(node.check.is_none() && node.command.is_none(), "it does not loop");
        assert_eq!(node.machine.state(), AgentState::Live);
    }
}

#[test]
fn a_check_that_fails_on_both_is_reported_and_nothing_loops() {
    let mut node = Node::new();
    node.switch_to(2);
    node.check(Phase::Trial, Err("no database"));
    node.told();
    node.check(Phase::Returned, Err("no database"));
    assert_eq!(node.told(), ["FailedOnBoth 2 1"]);
    node.wait(300);
    assert_eq!(node.live(), 1);
    assert!(node.check.is_none());
}

#[test]
fn the_weather_is_not_the_releases_fault() {
    let mut node = Node::new();
    node.announce(2);
    node.told();
    node.check(Phase::Before, Err("no database"));
    assert_eq!(node.told(), ["FailedBefore 1 0"], "not staged for the origin either");
    assert_eq!((node.live(), node.refused()), (1, Vec::new()));
    assert!(node.check.is_none());
    node.wait(20);
    node.check(Phase::Before, Ok(()));
    assert_eq!(node.live(), 2, "the staged tree was kept");
}

#[test]
fn a_newer_generation_waits_for_the_trial_and_what_it_returns_to_has_passed() {
    let mut node = Node::new();
    node.switch_to(2);
    node.announce(3);
    assert_eq!(node.live(), 2, "staged, not switched");
    assert_eq!(node.staged.as_ref().unwrap().number().get(), 3);
    node.check(Phase::Trial, Err("broken"));
    assert_eq!(node.live(), 1);
    node.check(Phase::Returned, Ok(()));
    node.check(Phase::Before, Ok(()));
    assert_eq!(node.live(), 3);
    node.check(Phase::Trial, Err("broken"));
    assert_eq!((node.live(), node.refused()), (1, vec![2, 3]));
}

#[test]
fn a_newer_generation_may_mend_a_hook_that_fails_in_a_trial() {
    let mut node = Node::new();
    node.state.hook = Some(hook(1, 1, None, None));
    node.apply(Event::Hook(hook(1, 1, None, None)));
    node.switch_to(2);
    let due: HookState = hook(2, 1, Some(2), Some((2, RunOutcome::Failed)));
    node.apply(Event::Hook(due));
    assert!(node.check.is_none(), "the web server may still serve what was live before");
    node.announce(3);
    assert_eq!(node.live(), 3);
    node.apply(Event::Hook(hook(4, 3, None, Some((3, RunOutcome::Ok)))));
    node.check(Phase::Trial, Err("broken"));
    assert_eq!(node.live(), 1, "the last that passed, not the last that was live");
}

#[test]
fn a_check_waits_for_the_hook() {
    let mut node = Node::new();
    node.announce(2);
    node.state.hook = Some(hook(2, 1, Some(2), None));
    node.check(Phase::Before, Ok(()));
    assert!(node.live() == 2 && node.check.is_none());
    node.apply(Event::Hook(hook(3, 2, None, Some((2, RunOutcome::Ok)))));
    node.check(Phase::Trial, Ok(()));
    assert_eq!(node.state.decisions.good.unwrap().number, 2);
}

#[test]
fn two_starts_without_a_passed_check_return_the_node_unasked() {
    let mut node = Node::new();
    node.switch_to(2);
    let restarted = |starts_left| {
        let mut state = node.state.clone();
        state.decisions.trial.as_mut().unwrap().starts_left = starts_left;
        Node::started(state)
    };
    let mut once = restarted(1);
    assert_eq!(once.live(), 2);
    once.check(Phase::Trial, Ok(()));
    let twice = restarted(0);
    assert_eq!((twice.live(), twice.refused()), (1, vec![2]));
}

#[test]
fn a_start_after_a_refusal_goes_on_with_the_return() {
    let mut node = Node::new();
    node.switch_to(2);
    let mut state = node.state.clone();
    let target = state.decisions.trial.unwrap().target;
    state.decisions.refuse(Refusal {
        generation: target,
        reason: "broken".into(),
        since_ms: 0,
        back: None,
        announced: None,
    });
    let mut node = Node::started(state);
    assert_eq!(node.live(), 1);
    node.check(Phase::Returned, Ok(()));
}

#[test]
fn a_return_that_fails_is_tried_again() {
    let mut node = Node::new();
    node.switch_to(2);
    node.cannot_return = true;
    node.check(Phase::Trial, Err("broken"));
    assert_eq!(node.live(), 2);
    assert!(node.machine.error().unwrap().contains("can't go back to generation 1: damaged"));
    node.cannot_return = false;
    node.wait(120);
    assert_eq!(node.live(), 1);
}

#[test]
fn a_newer_generation_is_the_way_out_for_a_node_that_cannot_return() {
    for is_held in [true, false] {
        let mut node = Node::new();
        node.switch_to(2);
        node.cannot_return = true;
        if !is_held {
            node.state.held.clear();
        }
        node.check(Phase::Trial, Err("broken"));
        assert_eq!(node.live(), 2);
        node.announce(3);
        assert_eq!(node.live(), 3, "held: {is_held}");
    }
}

#[test]
fn a_refused_root_is_refused_under_every_number_until_a_person_accepts_it() {
    let mut node = Node::new();
    node.switch_to(2);
    node.check(Phase::Trial, Err("broken"));
    node.check(Phase::Returned, Ok(()));
    node.told();
    node.announce(2);
    let same = generation(&node.key, 2);
    let mut renamed = same.generation().clone();
    renamed.number = GenerationNumber::new(9).unwrap();
    let renamed = renamed.sign(&node.key);
    node.announce_this(&renamed, true);
    assert_eq!(node.told(), ["failed 2", "failed 9"]);
    let error = node.machine.error().unwrap();
    let expected =
        "generation 9 is refused on this node: its tree failed the check as generation 2: broken; ";
    assert!(error.starts_with(expected) && error.contains("syncd-agent accept 9"), "{error}");
    assert!(!node.machine.is_behind(), "a node that refuses is not behind");
    assert_eq!(node.state.decisions.refused[0].announced, Some(9), "it is recorded");
    let outcome = |node: &Node| node.machine.check_status().map(|status| (status.generation, status.outcome));
    assert_eq!(outcome(&node), Some((2, CheckOutcome::Failed)));
    node.apply(Event::Order(Decision::Accept(9)));
    node.settle();
    assert!(node.refused().is_empty(), "by the number that was announced last");
    assert_ne!(outcome(&node), Some((2, CheckOutcome::Failed)), "a rollout would end by it again");
    assert!(!node.machine.is_connected(), "the origin is told by a new greeting");
    node.welcome();
    node.announce_this(&renamed, false);
    node.check(Phase::Before, Ok(()));
    assert_eq!(node.live(), 9);
}

#[test]
fn a_first_generation_has_nothing_to_return_to_and_may_be_replaced() {
    let mut node = Node::empty();
    node.announce(1);
    assert_eq!(node.live(), 1, "no check before the first");
    node.check(Phase::Trial, Err("broken"));
    assert_eq!((node.live(), node.refused()), (1, Vec::new()));
    node.wait(3);
    node.check(Phase::Trial, Err("broken"));
    node.announce(2);
    assert_eq!(node.live(), 2, "it may be the cure");
    node.check(Phase::Trial, Ok(()));
    assert_eq!(node.state.decisions.good.unwrap().number, 2);
}

#[test]
fn a_pin_ends_a_trial_and_holds_back_what_is_newer() {
    let mut node = Node::new();
    node.switch_to(2);
    node.told();
    node.apply(Event::Order(Decision::Pin(None)));
    node.settle();
    assert!(node.check.is_none() && node.ordered == [Ok(())]);
    assert_eq!(node.told(), ["standing false 2"]);
    node.announce(3);
    assert!(node.live() == 2 && node.staged.is_none(), "not even staged");
    // An older tree that the node holds, with the origin gone.
    node.apply(Event::Lost("gone".into()));
    node.apply(Event::Order(Decision::Pin(Some(1))));
    node.settle();
    assert_eq!(node.live(), 1);
    node.apply(Event::Order(Decision::Unpin));
    node.settle();
    node.check(Phase::Before, Ok(()));
    assert_eq!(node.live(), 3, "the announced generation is still known");
}

#[test]
fn orders_interrupt_an_update_and_those_of_the_origin_are_kept() {
    let mut node = Node::new();
    let second = generation(&node.key, 2);
    let message = v1::SignedGeneration {
        record: Bytes::copy_from_slice(second.record()),
        signature: Bytes::copy_from_slice(second.signature()),
    };
    let announce = v1::Announce { generation: Some(message), ..v1::Announce::default() };
    node.hear(FromOrigin::Announce(announce));
    assert!(matches!(node.command, Some(Command::Update { .. })));
    node.apply(Event::Order(Decision::Drain(true)));
    assert!(node.cancelled);
    node.command = None;
    let cancelled = Outcome::Failed(Failure::superseded());
    node.apply(Event::Report(Report::Done(cancelled, Box::new(node.state.clone()))));
    node.settle();
    assert!(node.state.decisions.node.drained && node.ordered == [Ok(())]);
    assert!(node.staged.is_some(), "the update goes on");
    let standing = v1::OrderedStanding { drained: true, pinned: true };
    node.hear(FromOrigin::Standing(standing));
    node.settle();
    assert!(node.state.decisions.ordered.drained && node.state.decisions.is_pinned());
    node.apply(Event::Lost("gone".into()));
    assert!(node.state.decisions.ordered.pinned);
}

#[test]
fn a_failing_trial_interrupts_the_staging_of_what_is_newer() {
    let mut node = Node::new();
    node.switch_to(2);
    let third = generation(&node.key, 3);
    let message = v1::SignedGeneration {
        record: Bytes::copy_from_slice(third.record()),
        signature: Bytes::copy_from_slice(third.signature()),
    };
    node.hear(FromOrigin::Announce(v1::Announce { generation: Some(message), ..v1::Announce::default() }));
    assert!(matches!(node.command, Some(Command::Update { .. })));
    let (run, _) = node.check.take().unwrap();
    node.apply(Event::Checked(run, Err("broken".into())));
    assert!(node.cancelled);
    node.command = None;
    let cancelled = Outcome::Failed(Failure::superseded());
    node.apply(Event::Report(Report::Done(cancelled, Box::new(node.state.clone()))));
    node.settle();
    assert_eq!(node.live(), 1);
}

#[test]
fn behind_a_flip_ends_with_the_switch() {
    let mut node = Node::new();
    let second = generation(&node.key, 2);
    node.announce_this(&second, true);
    assert!(node.machine.is_behind());
    node.apply(Event::Lost("gone".into()));
    assert!(node.machine.is_behind(), "known before the connection was lost");
    node.check(Phase::Before, Ok(()));
    assert!(node.live() == 2 && !node.machine.is_behind());
}

#[test]
fn a_decision_that_was_not_recorded_is_kept_and_tried_again() {
    let mut node = Node::new();
    node.switch_to(2);
    let (run, _) = node.check.take().unwrap();
    node.apply(Event::Checked(run, Err("broken".into())));
    assert!(matches!(node.command, Some(Command::Decide(Decision::Refuse(..)))));
    node.command = None;
    let failure = Failure { retry: Some(v1::RetryClass::Retry), reason: "disk full".into() };
    node.apply(Event::Report(Report::Done(Outcome::Failed(failure), Box::new(node.state.clone()))));
    // Other events during the pause.
    node.apply(Event::Tick);
    node.apply(Event::Lost("gone".into()));
    node.settle();
    assert_eq!(node.live(), 2);
    assert!(node.check.is_none(), "the result stands");
    node.wait(1);
    assert_eq!((node.live(), node.refused()), (1, vec![2]));
}

#[test]
fn an_order_that_is_taken_back_while_it_is_recorded_does_not_stay() {
    let mut node = Node::new();
    let standing = |drained| FromOrigin::Standing(v1::OrderedStanding { drained, pinned: false });
    node.hear(standing(true));
    assert!(matches!(node.command, Some(Command::Decide(Decision::Ordered(_)))));
    node.hear(standing(false));
    node.settle();
    assert!(!node.state.decisions.ordered.drained);
}

#[test]
fn a_withdrawal_waits_for_no_trial_and_no_check() {
    let mut node = Node::new();
    node.switch_to(2);
    // The content of generation 1 with a new number.
    let mut withdrawal = generation(&node.key, 1).generation().clone();
    withdrawal.number = GenerationNumber::new(3).unwrap();
    let withdrawal = withdrawal.sign(&node.key);
    node.announce_this(&withdrawal, true);
    assert_eq!(node.live(), 3);
    assert!(node.check.is_none() && node.refused().is_empty());
    // A new number for what is live, although its check fails.
    let mut renamed = withdrawal.generation().clone();
    renamed.number = GenerationNumber::new(4).unwrap();
    let renamed = renamed.sign(&node.key);
    node.announce_this(&renamed, true);
    assert_eq!((node.live(), node.check.is_none()), (4, true));
}

#[test]
fn a_return_between_greeting_and_welcome_is_explained_before_it_is_reported() {
    let mut node = Node::new();
    node.switch_to(2);
    node.apply(Event::Lost("gone".into()));
    node.wait(20);
    node.told();
    // The hello has named generation 2.
    node.check(Phase::Trial, Err("broken"));
    assert_eq!(node.live(), 1);
    node.welcome();
    assert_eq!(node.told(), ["Failed 2 1", "activated 1"]);
}

#[test]
fn a_rollback_is_not_held_back_by_what_it_mends_and_not_blamed_for_the_weather() {
    for mends in [true, false] {
        let mut node = Node::new();
        node.switch_to(2);
        node.check(Phase::Trial, Ok(()));
        let mut rollback = generation(&node.key, 1).generation().clone();
        rollback.number = GenerationNumber::new(3).unwrap();
        node.announce_this(&rollback.sign(&node.key), false);
        node.told();
        node.check(Phase::Before, Err("502"));
        assert_eq!(node.live(), 3);
        node.check(Phase::Trial, if mends { Ok(()) } else { Err("502") });
        assert_eq!((node.live(), node.refused()), (3, Vec::new()));
        assert_eq!(node.state.decisions.trial, None);
        assert_eq!(node.state.decisions.good.unwrap().number, if mends { 3 } else { 2 });
        let last = if mends { "Passed 3 0" } else { "FailedOnBoth 3 0" };
        assert_eq!(node.told().last().unwrap(), last);
        assert!(node.check.is_none() && node.command.is_none());
    }
}

#[test]
fn a_rollback_is_staged_for_the_origin_although_the_check_fails_on_what_is_live() {
    let mut node = Node::new();
    node.switch_to(2);
    node.check(Phase::Trial, Ok(()));
    let mut rollback = generation(&node.key, 1).generation().clone();
    rollback.number = GenerationNumber::new(3).unwrap();
    node.announce_to_wait(&rollback.sign(&node.key));
    node.told();
    node.check(Phase::Before, Err("502"));
    // In this order: what is reported after the failure does not wait for the check.
    assert_eq!(node.told(), ["FailedBefore 2 0", "staged 3"]);
    // The tree that is live anyway does not wait either.
    let mut again = generation(&node.key, 2).generation().clone();
    again.number = GenerationNumber::new(4).unwrap();
    node.announce_to_wait(&again.sign(&node.key));
    assert_eq!(node.told(), ["staged 4"]);
}

#[test]
fn what_is_staged_anew_after_a_return_is_reported_anew() {
    let mut node = Node::new();
    node.switch_to(2);
    node.cannot_return = true;
    node.check(Phase::Trial, Err("broken"));
    node.told();
    // The return has failed, so that generation 3 may be the way out.
    node.announce_to_wait(&generation(&node.key, 3));
    assert_eq!(node.told(), ["staged 3"]);
    node.cannot_return = false;
    node.wait(20);
    assert_eq!(node.told(), ["Failed 2 1", "activated 1"]);
    node.check(Phase::Returned, Ok(()));
    node.check(Phase::Before, Ok(()));
    assert!(node.told().contains(&"staged 3".to_owned()), "the origin knows of no staged tree any more");
}

#[test]
fn after_a_lost_record_a_staged_tree_waits_for_the_check_and_is_reported_again() {
    // Nothing is known to have passed: the live generation is on trial.
    let first = generation(&SigningKey::from_bytes(&[3; 32]), 1);
    let trial = Some(Trial { target: Named::of(&first), starts_left: STARTS });
    let decisions = Decisions { trial, ..Decisions::default() };
    let mut node = Node::started(ReplicaState { decisions, ..holding(&first) });
    node.announce_to_wait(&generation(&node.key, 2));
    assert_eq!(node.told(), ["staged 2"], "it may be the cure");
    node.check(Phase::Trial, Ok(()));
    node.told();
    node.check(Phase::Before, Err("no database"));
    assert_eq!(node.told(), ["FailedBefore 1 0"], "it waits for the check now");
    node.wait(20);
    node.check(Phase::Before, Ok(()));
    assert_eq!(node.told(), ["Passed 1 0", "staged 2"]);
}

#[test]
fn a_tree_that_gets_another_number_while_its_check_fails_on_both_is_not_on_trial_for_ever() {
    let mut node = Node::new();
    node.switch_to(2);
    node.check(Phase::Trial, Ok(()));
    let again = |node: &Node, number| {
        let rollback = generation(&node.key, 1).generation().clone();
        Generation { number: GenerationNumber::new(number).unwrap(), ..rollback }.sign(&node.key)
    };
    node.announce_this(&again(&node, 3), false);
    node.check(Phase::Before, Err("502"));
    node.told();
    let (run, _) = node.check.take().expect("the trial of generation 3");
    node.hear_announced(&again(&node, 4), true, false);
    let command = node.command.take().expect("an update");
    let outcome = node.work(command);
    node.apply(Event::Report(Report::Done(outcome, Box::new(node.state.clone()))));
    assert!(matches!(node.command, Some(Command::Activate)));
    node.apply(Event::Checked(run, Err("502".into())));
    node.settle();
    assert_eq!((node.live(), node.state.decisions.trial), (4, None));
    assert_eq!(node.machine.check_status().unwrap().outcome, CheckOutcome::FailedOnBoth);
    assert!(!node.told().iter().any(|told| told.starts_with("Running")));
}

/// Announces generation 2 for staging alone.
fn staged_alone() -> Node {
    let mut node = Node::new();
    let second = generation(&node.key, 2);
    node.announce_to_wait(&second);
    node.check(Phase::Before, Ok(()));
    assert!(node.staged.is_some() && node.live() == 1);
    assert_eq!(node.machine.state(), AgentState::Staged);
    node
}

#[test]
fn a_staged_tree_waits_for_the_order_that_names_its_number_and_root() {
    let mut node = staged_alone();
    let root = |number: u64, key: &SigningKey| {
        Bytes::copy_from_slice(generation(key, number).root_hash().as_bytes())
    };
    for (generation, root) in [(2, root(1, &node.key)), (3, root(2, &node.key)), (1, root(1, &node.key))] {
        node.hear(FromOrigin::Activate(v1::Activate { generation, root, flipped: false }));
        assert!(
            node.machine.is_connected() && node.command.is_none(),
            "an order for generation {generation}"
        );
    }
    node.hear(FromOrigin::Activate(v1::Activate { generation: 2, root: root(2, &node.key), flipped: false }));
    node.settle();
    assert_eq!(node.live(), 2);
    // The root is malformed.
    node.hear(FromOrigin::Activate(v1::Activate {
        generation: 2,
        root: Bytes::from_static(b"short"),
        flipped: false,
    }));
    assert!(!node.machine.is_connected());
}

#[test]
fn while_a_staged_tree_is_activated_the_node_says_staged() {
    let mut node = staged_alone();
    let root = Bytes::copy_from_slice(generation(&node.key, 2).root_hash().as_bytes());
    node.hear(FromOrigin::Activate(v1::Activate { generation: 2, root, flipped: false }));
    assert!(matches!(node.command, Some(Command::Activate)));
    assert_eq!(node.machine.state(), AgentState::Staged);
    // Nothing interrupts it.
    node.apply(Event::Order(Decision::Drain(true)));
    node.apply(Event::Stop);
    assert!(!node.cancelled);
    node.settle();
    assert_eq!(node.live(), 2);
}

/// A node that refuses generation 2, whose tree is announced again as `number` while the worker is busy.
fn refused_while_busy(number: u64) -> Node {
    let mut node = Node::new();
    node.switch_to(2);
    node.check(Phase::Trial, Err("broken"));
    node.check(Phase::Returned, Ok(()));
    node.apply(Event::Order(Decision::Drain(true)));
    assert!(matches!(node.command, Some(Command::Decide(_))));
    announce_renamed(&mut node, number);
    node
}

fn announce_renamed(node: &mut Node, number: u64) {
    let mut renamed = generation(&node.key, 2).generation().clone();
    renamed.number = GenerationNumber::new(number).unwrap();
    let renamed = renamed.sign(&node.key);
    node.hear_announced(&renamed, false, false);
}

#[test]
fn a_number_can_be_accepted_before_it_is_recorded() {
    let mut node = refused_while_busy(9);
    node.apply(Event::Order(Decision::Accept(9)));
    node.settle();
    assert_eq!((node.refused(), node.ordered.len()), (Vec::new(), 2));
}

#[test]
fn another_number_than_the_announced_one_accepts_nothing() {
    let mut node = refused_while_busy(9);
    node.apply(Event::Order(Decision::Accept(5)));
    node.settle();
    assert_eq!(node.refused(), [2]);
}

#[test]
fn decisions_that_wait_are_replaced_by_newer_ones_of_their_kind_alone() {
    let mut node = refused_while_busy(9);
    announce_renamed(&mut node, 10);
    for drained in [true, false] {
        let pinned = !drained;
        node.hear(FromOrigin::Standing(v1::OrderedStanding { drained, pinned }));
    }
    announce_renamed(&mut node, 11);
    let mut recorded = Vec::new();
    while let Some(command) = node.command.take() {
        if let Command::Decide(decision) = &command {
            recorded.push(decision.clone());
        }
        let outcome = node.work(command);
        node.apply(Event::Report(Report::Done(outcome, Box::new(node.state.clone()))));
    }
    assert_eq!(recorded.len(), 3, "{recorded:?}");
    assert_eq!(node.state.decisions.refused[0].announced, Some(11));
    let ordered = node.state.decisions.ordered;
    assert!(ordered.pinned && !ordered.drained);
}
