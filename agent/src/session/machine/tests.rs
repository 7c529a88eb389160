//! Orders of events that the suites with real processes meet only by chance.

use bytes::Bytes;
use prost::Message;
use syncd_proto::v1::RetryClass;
use syncd_proto::v1::agent_message::Message as ToOrigin;
use syncd_proto::v1::origin_message::Message as FromOrigin;
use syncd_shared::ed25519::SigningKey;
use syncd_shared::identity::{Authority, RootKey, SignedTrust, TrustDocument};
use syncd_shared::{AgentState, Generation, RootEntry, SignedGeneration, TreeId, update_file};
use time::OffsetDateTime;

use super::hook::SWITCHED_MAX;
use super::schedule::{PROGRESS_DELAY, PROGRESS_INTERVAL};
use super::*;
use crate::hooks::{HookRun, RunOutcome};
use crate::session::messages::PROTOCOL_MAX;
use crate::session::worker::{Command, Failure, Maintenance, Outcome, Report, Verified};

pub(super) const TREE: TreeId = TreeId::from_bytes([7; 16]);

struct Scene {
    key: SigningKey,
    root: RootKey,
    keys: Trusted,
    machine: Machine,
    now: Instant,
}

impl Scene {
    /// An agent with generation 1 live that has just dialled.
    fn new() -> Self {
        let key = SigningKey::from_bytes(&[3; 32]);
        let root = RootKey { tree_id: TREE, key: SigningKey::from_bytes(&[4; 32]) };
        let authority = Authority::create(TREE, OffsetDateTime::now_utc()).unwrap();
        let document = TrustDocument::first(&root, key.verifying_key(), authority.certificate(), 0, 0);
        let keys = Trusted::new(root.fingerprint(), document.clone());
        let trust = Trust { keys: keys.clone(), boot_id: "boot".into() };
        let now = Instant::now();
        let machine = Machine::new(trust, holding(&generation(&key, 1)), now);
        let mut scene = Self { key, root, keys, machine, now };
        assert_eq!(shown_live(&scene.apply(Event::Tick)), Some(1));
        scene
    }

    fn without_maintenance() -> Self {
        let mut scene = Self::new();
        scene.machine.maintain_at = None;
        scene
    }

    fn apply(&mut self, event: Event) -> Vec<Action> {
        self.machine.apply(event, self.now)
    }

    fn welcome(&mut self) -> Vec<Action> {
        let welcome = v1::Welcome { protocol: PROTOCOL_MAX, ..v1::Welcome::default() };
        self.apply(Event::Message(v1::OriginMessage { message: Some(FromOrigin::Welcome(welcome)) }))
    }

    fn announce(&mut self, number: u64) -> Vec<Action> {
        self.announced(&generation(&self.key, number))
    }

    fn announced(&mut self, generation: &SignedGeneration) -> Vec<Action> {
        let message = v1::SignedGeneration {
            record: Bytes::copy_from_slice(generation.record()),
            signature: Bytes::copy_from_slice(generation.signature()),
        };
        let announce =
            v1::Announce { generation: Some(message), activate_when_staged: true, ..Default::default() };
        self.apply(Event::Message(v1::OriginMessage { message: Some(FromOrigin::Announce(announce)) }))
    }

    /// Breaks the connection while generation 2 is staged, and dials again.
    fn redialled_in_an_update() -> Self {
        let mut scene = Self::new();
        scene.welcome();
        let started = scene.announce(2);
        assert!(
            started.iter().any(|a| matches!(a, Action::Start(c) if matches!(**c, Command::Update { .. })))
        );
        scene.apply(Event::Lost("cut".into()));
        scene.now += Duration::from_secs(60);
        assert_eq!(shown_live(&scene.apply(Event::Tick)), Some(1));
        scene
    }

    /// Switches to `number`, for which the on-activate hook is due.
    fn switched(&mut self, number: u64, hook: HookState) -> Vec<Action> {
        let generations = (1..=number).filter_map(GenerationNumber::new).collect();
        let state = ReplicaState { hook: Some(hook), generations, ..holding(&generation(&self.key, number)) };
        self.apply(Event::Report(Report::Done(Outcome::Activated, Box::new(state))))
    }

    fn activated(&mut self, number: u64) -> Vec<Action> {
        let state = Box::new(holding(&generation(&self.key, number)));
        self.apply(Event::Report(Report::Done(Outcome::Activated, state)))
    }
}

pub(super) fn generation(key: &SigningKey, number: u64) -> SignedGeneration {
    generation_in(key, 1, GenerationNumber::new(number).unwrap())
}

fn generation_in(key: &SigningKey, epoch: u32, number: GenerationNumber) -> SignedGeneration {
    let mut root = RootEntry::empty();
    root.metadata.mode = 0o700 + number.get() as u16 % 64;
    let label = String::new();
    Generation { tree_id: TREE, epoch, number, trust: 1, root, parent: None, created_ms: 0, label }.sign(key)
}

pub(super) fn holding(generation: &SignedGeneration) -> ReplicaState {
    ReplicaState {
        live: Some(generation.clone()),
        accepted: Some(generation.clone()),
        ..ReplicaState::default()
    }
}

/// State of a hook that last succeeded for `succeeded`. `run` is the generation and outcome of its last run.
pub(super) fn hook(
    revision: u64,
    succeeded: u64,
    due: Option<u64>,
    run: Option<(u64, RunOutcome)>,
) -> HookState {
    let run = run.map(|(generation, outcome)| HookRun {
        generation,
        outcome,
        duration_ms: 5,
        output: if outcome == RunOutcome::Failed { "exit status: 1".into() } else { String::new() },
        attempt: 1,
    });
    let failing = run.as_ref().is_some_and(|run| run.outcome == RunOutcome::Failed);
    HookState { revision, due, succeeded: Some(succeeded), run, failing }
}

/// `(generation, outcome, waits)` of the hook reports sent to the origin.
fn hooks_told(actions: &[Action]) -> Vec<(u64, v1::HookOutcome, u64)> {
    let told = actions.iter().filter_map(|action| match action {
        Action::Send(ToOrigin::Hook(report)) => Some((report.generation, report.outcome(), report.waits)),
        _ => None,
    });
    told.collect()
}

fn starts_update(actions: &[Action]) -> Option<u64> {
    actions.iter().find_map(|action| match action {
        Action::Start(command) => match command.as_ref() {
            Command::Update { generation, .. } => Some(generation.number().get()),
            _ => None,
        },
        _ => None,
    })
}

/// The live generation in the hello of a dial.
fn shown_live(actions: &[Action]) -> Option<u64> {
    let hello = actions.iter().find_map(|action| match action {
        Action::Dial(hello) => Some(hello),
        _ => None,
    });
    Some(Generation::decode(&hello?.live.as_ref()?.record).unwrap().number.get())
}

/// Numbers reported as live.
fn reported(actions: &[Action]) -> Vec<u64> {
    let numbers = actions.iter().filter_map(|action| match action {
        Action::Send(ToOrigin::Activated(activated)) => Some(activated.generation),
        _ => None,
    });
    numbers.collect()
}

/// Messages to the origin, without heartbeats: `(state, files done)` of progress, and numbers reported as
/// live.
fn told(actions: &[Action]) -> (Vec<(i32, u64)>, Vec<u64>) {
    let progress = actions.iter().filter_map(|action| match action {
        Action::Send(ToOrigin::Progress(progress)) => Some((progress.state, progress.files_done)),
        Action::Send(ToOrigin::Staged(_)) => panic!("nobody waits for it: {actions:?}"),
        _ => None,
    });
    (progress.collect(), reported(actions))
}

#[test]
fn of_an_update_that_is_over_in_a_moment_only_its_end_is_told() {
    let mut scene = Scene::new();
    scene.welcome();
    scene.announce(2);
    let under_way = Progress { files_done: 1, files_total: 2, bytes_done: 1, bytes_total: 2 };
    for report in [Report::Progress(Progress::default()), Report::Progress(under_way), Report::Activating] {
        scene.now += PROGRESS_DELAY / 4;
        assert_eq!(told(&scene.apply(Event::Report(report))), (vec![], vec![]));
    }
    assert_eq!(told(&scene.activated(2)), (vec![], vec![2]));
    scene.now += PROGRESS_INTERVAL;
    assert_eq!(told(&scene.apply(Event::Tick)), (vec![], vec![]));
}

#[test]
fn an_update_that_takes_its_time_is_told_now_and_then() {
    let mut scene = Scene::new();
    scene.welcome();
    scene.announce(2);
    let of = |state: AgentState, files: u64| (vec![(i32::from(state.to_message()), files)], vec![]);
    // Progress is reported also when the worker sends none.
    assert_eq!(scene.machine.deadline(), Some(scene.now + PROGRESS_DELAY));
    scene.now += PROGRESS_DELAY;
    assert_eq!(told(&scene.apply(Event::Tick)), of(AgentState::Staging, 0));
    let under_way = Progress { files_done: 1, files_total: 2, bytes_done: 1, bytes_total: 2 };
    assert_eq!(told(&scene.apply(Event::Report(Report::Progress(under_way)))), (vec![], vec![]));
    scene.now += PROGRESS_INTERVAL;
    assert_eq!(told(&scene.apply(Event::Tick)), of(AgentState::Fetching, 1));
    assert_eq!(told(&scene.apply(Event::Report(Report::Activating))), (vec![], vec![]));
    scene.now += PROGRESS_INTERVAL;
    assert_eq!(told(&scene.apply(Event::Tick)), of(AgentState::Staged, 1));
    // A new connection gets the progress at once.
    scene.apply(Event::Lost("cut".into()));
    scene.now += Duration::from_secs(60);
    scene.apply(Event::Tick);
    assert_eq!(told(&scene.welcome()), of(AgentState::Staged, 1));
    assert_eq!(told(&scene.activated(2)), (vec![], vec![2]));
}

#[test]
fn what_was_activated_between_hello_and_welcome_is_reported() {
    let mut scene = Scene::redialled_in_an_update();
    assert!(reported(&scene.activated(2)).is_empty(), "nobody listens yet");
    assert_eq!(reported(&scene.welcome()), [2]);
}

#[test]
fn what_the_hello_showed_is_not_reported_again() {
    let mut scene = Scene::redialled_in_an_update();
    assert!(reported(&scene.welcome()).is_empty());
    assert_eq!(reported(&scene.activated(2)), [2]);
    // The hello shows it as live, so it is not reported again.
    scene.apply(Event::Lost("cut".into()));
    scene.now += Duration::from_secs(60);
    assert_eq!(shown_live(&scene.apply(Event::Tick)), Some(2));
    assert!(reported(&scene.welcome()).is_empty());
}

#[test]
fn what_was_announced_while_a_newer_one_was_activated_is_refused() {
    let mut scene = Scene::new();
    scene.welcome();
    scene.announce(3);
    // It is older than the live generation, and the newer activation can no longer be stopped.
    scene.announce(2);
    let actions = scene.activated(3);
    assert!(!actions.iter().any(|action| matches!(action, Action::Start(_))), "{actions:?}");
    let refused = |action: &Action| matches!(action, Action::Send(ToOrigin::Failed(f)) if f.generation == 2);
    assert!(actions.iter().any(refused), "{actions:?}");
}

#[test]
fn another_root_under_a_known_number_is_a_fork_until_the_next_good_announcement() {
    let mut scene = Scene::new();
    scene.welcome();
    scene.announce(2);
    let mut state = holding(&generation(&scene.key, 2));
    state.held = vec![generation(&scene.key, 1)];
    scene.apply(Event::Report(Report::Done(Outcome::Activated, Box::new(state))));
    assert_eq!(scene.machine.fork(), None);
    let other = |number: u64| {
        let mut generation = generation(&scene.key, number).generation().clone();
        generation.root.metadata.mode = 0o501;
        generation.sign(&scene.key)
    };
    // Also under the number of a tree that was live before.
    for (number, offered) in [(2, other(2)), (1, other(1))] {
        let actions = scene.announced(&offered);
        assert!(!actions.iter().any(|action| matches!(action, Action::Start(_))), "{actions:?}");
        let fork = scene.machine.fork().unwrap();
        assert_eq!((fork.generation, fork.known), (number, generation(&scene.key, number).root_hash()));
        assert_eq!(fork.other, offered.root_hash());
        assert!(scene.machine.error().unwrap().contains("has two roots"));
    }
    scene.announce(3);
    assert_eq!((scene.machine.fork(), scene.machine.error()), (None, None));
}

#[test]
fn an_announced_update_that_does_not_decode_is_dropped_and_the_general_path_is_taken() {
    let mut scene = Scene::new();
    scene.welcome();
    let generation = generation(&scene.key, 2);
    let message = v1::SignedGeneration {
        record: Bytes::copy_from_slice(generation.record()),
        signature: Bytes::copy_from_slice(generation.signature()),
    };
    // Each frame is within its bounds; their sum is not.
    let objects = v1::DirectoryObjects { compressed: Bytes::new(), uncompressed_bytes: 1 << 20 };
    let frame = v1::FetchFrame { item: 0, frame: Some(v1::fetch_frame::Frame::Directories(objects)) };
    let from = RootEntry::empty().hash();
    let frames = vec![frame.encode_to_vec(); 40];
    let update_file = update_file::write_whole(&from, &generation.root_hash(), &frames).expect("fits");
    let announce = v1::Announce {
        generation: Some(message),
        activate_when_staged: true,
        update_file,
        ..Default::default()
    };
    let message = v1::OriginMessage { message: Some(FromOrigin::Announce(announce)) };
    let actions = scene.apply(Event::Message(message));
    // The next connection would bring the same announcement, so hanging up would not help.
    assert!(!actions.iter().any(|action| matches!(action, Action::Hang)), "{actions:?}");
    let is_general = |action: &Action| match action {
        Action::Start(command) => matches!(command.as_ref(), Command::Update { inline: None, .. }),
        _ => false,
    };
    assert!(actions.iter().any(is_general), "{actions:?}");
    let told = actions.iter().find_map(|action| match action {
        Action::Send(ToOrigin::Failed(failed)) => Some(failed),
        _ => None,
    });
    let told = told.expect("the origin hears of it");
    assert_eq!((told.generation, told.retry()), (2, RetryClass::Resync));
    assert!(told.reason.contains("directories of an announced update"), "{}", told.reason);
    assert_eq!(reported(&scene.activated(2)), [2]);
    assert_eq!(scene.machine.error(), None);
}

#[test]
fn a_node_is_switched_until_its_hook_has_succeeded() {
    use RunOutcome::{Ok, Running};
    let mut scene = Scene::new();
    scene.welcome();
    scene.announce(2);
    // The hook's task may be faster than the worker. Nothing is reported about a switch before the switch
    // itself.
    let early = scene.apply(Event::Hook(hook(2, 1, Some(2), Some((2, Running)))));
    assert_eq!(hooks_told(&early), []);
    let actions = scene.switched(2, hook(1, 1, Some(2), None));
    let due = |action: &Action| matches!(action, Action::Send(ToOrigin::Activated(a)) if a.hook_due);
    assert!(actions.iter().any(due), "{actions:?}");
    assert_eq!(hooks_told(&actions), [(2, v1::HookOutcome::Running, 0)], "and what is older is dropped");
    assert_eq!(scene.machine.state(), AgentState::Switched);
    let actions = scene.apply(Event::Hook(hook(3, 2, None, Some((2, Ok)))));
    assert_eq!(hooks_told(&actions), [(2, v1::HookOutcome::Ok, 0)]);
    assert_eq!((scene.machine.state(), scene.machine.error()), (AgentState::Live, None));
    assert_eq!(hooks_told(&scene.apply(Event::Tick)), [], "once");
    // Without a hook nothing changes.
    let mut scene = Scene::new();
    scene.welcome();
    scene.announce(2);
    let actions = scene.activated(2);
    assert!(!actions.iter().any(due) && hooks_told(&actions).is_empty());
    assert_eq!(scene.machine.state(), AgentState::Live);
}

#[test]
fn a_revoked_node_knows_that_it_is_until_it_is_let_in_again() {
    let mut scene = Scene::new();
    scene.welcome();
    assert!(!scene.machine.is_revoked());
    scene.apply(Event::Revoked("join again".into()));
    assert!(scene.machine.is_revoked() && !scene.machine.is_connected());
    scene.now += Duration::from_secs(60);
    scene.apply(Event::Tick);
    scene.apply(Event::Lost("unreachable".into()));
    assert!(scene.machine.is_revoked(), "no news");
    let keys = scene.keys.clone();
    scene.apply(Event::Renewed(Box::new(keys)));
    assert!(!scene.machine.is_revoked());
}

/// The next trust document, with another signing key.
fn next_document(scene: &Scene, root: &RootKey, key: &SigningKey) -> SignedTrust {
    let mut document = scene.keys.document.document().clone();
    document.replace_signing_key(key.verifying_key()).unwrap();
    (document.number, document.root_key) = (2, root.key.verifying_key());
    document.sign(&root.key).unwrap()
}

fn next_trust(scene: &Scene, root: &RootKey, key: &SigningKey) -> Event {
    let document = Bytes::copy_from_slice(next_document(scene, root, key).bytes());
    Event::Message(v1::OriginMessage { message: Some(FromOrigin::TrustDocument(document)) })
}

#[test]
fn what_a_superseded_key_signed_is_not_staged_any_further() {
    let mut scene = Scene::redialled_in_an_update();
    scene.welcome();
    let new = SigningKey::from_bytes(&[5; 32]);
    let actions = scene.apply(next_trust(&scene, &scene.root, &new));
    assert!(actions.iter().any(|action| matches!(action, Action::Follow(_))), "{actions:?}");
    assert!(actions.iter().any(|action| matches!(action, Action::Cancel)), "{actions:?}");
    assert!(scene.announce(3).iter().any(|action| matches!(action, Action::Send(ToOrigin::Failed(_)))));
    assert!(scene.machine.error().is_some_and(|error| error.contains("signing key")));
}

#[test]
fn a_target_is_dropped_too_when_the_keys_change_on_another_connection() {
    let mut scene = Scene::redialled_in_an_update();
    scene.welcome();
    let new = SigningKey::from_bytes(&[5; 32]);
    let keys = Trusted::new(scene.root.fingerprint(), next_document(&scene, &scene.root, &new));
    let actions = scene.apply(Event::Renewed(Box::new(keys)));
    assert!(actions.iter().any(|action| matches!(action, Action::Cancel)), "{actions:?}");
}

#[test]
fn a_node_that_a_thief_led_to_the_last_number_follows_the_next_signing_key() {
    let mut scene = Scene::new();
    let document = scene.keys.document.document().clone();
    let new = SigningKey::from_bytes(&[5; 32]);
    let worst = generation_in(&scene.key, document.epochs.last, document.numbers.last);
    let trust = Trust { keys: scene.keys.clone(), boot_id: "boot".into() };
    scene.machine = Machine::new(trust, holding(&worst), scene.now);
    scene.apply(Event::Tick);
    scene.welcome();
    let beyond = document.numbers.last.next().unwrap();
    let refused = scene.announced(&generation_in(&scene.key, document.epochs.last, beyond));
    assert!(!refused.iter().any(|action| matches!(action, Action::Start(_))), "{refused:?}");
    scene.apply(next_trust(&scene, &scene.root, &new));
    let started = scene.announced(&generation_in(&new, document.epochs.last + 1, beyond));
    assert!(started.iter().any(|action| matches!(action, Action::Start(_))), "{started:?}");
}

#[test]
fn a_document_of_another_root_key_is_reported_and_changes_nothing() {
    let mut scene = Scene::new();
    scene.welcome();
    let other = RootKey { tree_id: TREE, key: SigningKey::from_bytes(&[6; 32]) };
    let new = SigningKey::from_bytes(&[5; 32]);
    let actions = scene.apply(next_trust(&scene, &other, &new));
    assert!(!actions.iter().any(|action| matches!(action, Action::Follow(_) | Action::Hang)), "{actions:?}");
    assert!(scene.machine.error().is_some_and(|error| error.contains("syncd-agent trust")));
    let started = scene.announce(2);
    assert!(started.iter().any(|action| matches!(action, Action::Start(_))), "the known key still counts");
    // The operator pins the other one.
    scene.keys.root = other.fingerprint();
    let keys = scene.keys.clone();
    scene.apply(Event::Renewed(Box::new(keys)));
    scene.apply(Event::Tick);
    scene.welcome();
    let actions = scene.apply(next_trust(&scene, &other, &new));
    assert!(actions.iter().any(|action| matches!(action, Action::Follow(_))), "{actions:?}");
    assert_eq!(scene.machine.error(), None);
}

#[test]
fn locations_beyond_the_limits_end_the_connection() {
    for (count, length, is_refused) in [(8, 1_024, false), (9, 1, true), (1, 1_025, true)] {
        let mut scene = Scene::new();
        scene.welcome();
        let generation = generation(&scene.key, 2);
        let message = v1::SignedGeneration {
            record: Bytes::copy_from_slice(generation.record()),
            signature: Bytes::copy_from_slice(generation.signature()),
        };
        let locations = vec!["x".repeat(length); count];
        let announce = v1::Announce { generation: Some(message), locations, ..Default::default() };
        let message = Some(FromOrigin::Announce(announce));
        let actions = scene.apply(Event::Message(v1::OriginMessage { message }));
        let hung_up = actions.iter().any(|action| matches!(action, Action::Hang));
        assert_eq!(hung_up, is_refused, "{count} of {length} bytes");
    }
}

#[test]
fn a_hello_tells_of_a_hook_that_fails() {
    let mut scene = Scene::new();
    scene.welcome();
    scene.announce(2);
    scene.switched(2, hook(1, 1, Some(2), None));
    scene.apply(Event::Lost("cut".into()));
    scene.apply(Event::Hook(hook(2, 1, Some(2), Some((2, RunOutcome::Failed)))));
    scene.now += Duration::from_secs(60);
    let actions = scene.apply(Event::Tick);
    let Some(Action::Dial(hello)) = actions.iter().find(|a| matches!(a, Action::Dial(_))) else {
        panic!("{actions:?}")
    };
    let report = hello.hook.clone().unwrap();
    assert_eq!((report.generation, report.outcome(), report.succeeded), (2, v1::HookOutcome::Failed, 1));
    assert_eq!(report.output, "exit status: 1");
    assert_eq!(scene.machine.error().as_deref(), Some("hook failed: exit status: 1"));
    assert_eq!(hooks_told(&scene.welcome()), [], "it was told");
}

#[test]
fn an_announcement_of_what_is_switched_already_has_a_hook_that_failed_run_at_once() {
    use RunOutcome::{Failed, Running};
    let mut scene = Scene::new();
    scene.welcome();
    scene.announce(2);
    scene.switched(2, hook(1, 1, Some(2), None));
    let retries = |actions: &[Action]| actions.iter().any(|action| matches!(action, Action::RetryHook));
    scene.apply(Event::Hook(hook(2, 1, Some(2), Some((2, Running)))));
    assert!(!retries(&scene.announce(2)), "it runs");
    scene.apply(Event::Hook(hook(3, 1, Some(2), Some((2, Failed)))));
    let actions = scene.announce(2);
    assert!(retries(&actions), "{actions:?}");
    assert_eq!(hooks_told(&actions), [(2, v1::HookOutcome::Running, 0)], "the old failure is no answer");
    assert!(!retries(&scene.announce(3)), "another one is on its way: its own run follows");
}

#[test]
fn while_the_hook_fails_one_further_generation_is_activated_and_then_the_newest_waits() {
    use RunOutcome::{Failed, Ok};
    let mut scene = Scene::new();
    scene.welcome();
    scene.announce(2);
    scene.switched(2, hook(1, 1, Some(2), None));
    scene.apply(Event::Hook(hook(2, 1, Some(2), Some((2, Failed)))));
    assert_eq!(starts_update(&scene.announce(3)), Some(3), "it may mend what the hook stumbles over");
    scene.switched(3, hook(3, 1, Some(3), Some((2, Failed))));
    scene.apply(Event::Hook(hook(4, 1, Some(3), Some((3, Failed)))));
    for (number, attempt) in [(4, 1), (5, 2)] {
        let actions = scene.announce(number);
        assert_eq!(starts_update(&actions), None);
        // The commit may have fixed the hook, so it runs at once, and its earlier failure is not reported
        // again.
        assert!(actions.iter().any(|action| matches!(action, Action::RetryHook)), "{actions:?}");
        assert_eq!(hooks_told(&actions), [(3, v1::HookOutcome::Running, number)]);
        for (step, outcome) in [(1, RunOutcome::Running), (2, Failed)] {
            let mut state = hook(10 * number + step, 1, Some(3), Some((3, outcome)));
            state.failing = true;
            state.run.as_mut().unwrap().attempt = attempt + 1;
            let actions = scene.apply(Event::Hook(state));
            assert_eq!(starts_update(&actions), None);
            if outcome == Failed {
                assert_eq!(hooks_told(&actions), [(3, v1::HookOutcome::Failed, number)]);
            }
        }
    }
    let report = scene.machine.hook_status().unwrap();
    assert_eq!((report.generation, report.waits), (3, Some(5)));
    let error = scene.machine.error().unwrap();
    assert!(
        error.contains("generation 5 waits: the on-activate hook of generation 3 keeps failing"),
        "{error}"
    );
    assert_eq!(scene.machine.state(), AgentState::Switched);
    let actions = scene.apply(Event::Hook(hook(60, 3, None, Some((3, Ok)))));
    assert_eq!(starts_update(&actions), Some(5), "newest wins");
    assert_eq!(hooks_told(&actions), [(3, v1::HookOutcome::Ok, 0)]);
}

#[test]
fn commits_that_are_faster_than_the_hook_are_bounded() {
    let mut scene = Scene::new();
    scene.welcome();
    let most = 1 + SWITCHED_MAX as u64;
    for number in 2..=most {
        assert_eq!(starts_update(&scene.announce(number)), Some(number));
        scene.switched(number, hook(number, 1, Some(number), Some((2, RunOutcome::Running))));
    }
    assert_eq!(starts_update(&scene.announce(most + 1)), None);
    let error = scene.machine.error().unwrap();
    assert!(error.ends_with("has not succeeded yet"), "{error}");
    let actions = scene.apply(Event::Hook(hook(50, 2, Some(most), Some((2, RunOutcome::Ok)))));
    assert_eq!(starts_update(&actions), Some(most + 1));
}

fn drifted(generation: &SignedGeneration, paths: u64) -> ReplicaState {
    let first = "shell.php".to_owned();
    let drift = Drift { generation: 1, paths, first, kept: Some("/r/lost+found/1".into()), lost: 0, live: 1 };
    ReplicaState { drift: (paths > 0).then_some(drift), ..holding(generation) }
}

/// Counts of local changes reported to the origin.
fn drift_told(actions: &[Action]) -> Vec<u64> {
    let paths = actions.iter().filter_map(|action| match action {
        Action::Send(ToOrigin::Drift(drift)) => Some(drift.paths),
        Action::Dial(hello) => hello.drift.as_ref().map(|drift| drift.paths),
        _ => None,
    });
    paths.collect()
}

#[test]
fn the_origin_hears_of_local_changes_once_and_of_their_end() {
    let mut scene = Scene::new();
    scene.welcome();
    let live = generation(&scene.key, 1);
    let maintained = |scene: &mut Scene, paths: u64| {
        let state = Box::new(drifted(&live, paths));
        let report = Report::Done(Outcome::Maintained(Maintenance::default()), state);
        drift_told(&scene.apply(Event::Report(report)))
    };
    assert_eq!(maintained(&mut scene, 3), [3]);
    assert!(maintained(&mut scene, 3).is_empty());
    // Every hello reports it to an origin that was away.
    scene.apply(Event::Lost("cut".into()));
    scene.now += Duration::from_secs(60);
    assert_eq!(drift_told(&scene.apply(Event::Tick)), [3]);
    assert_eq!(maintained(&mut scene, 4), Vec::<u64>::new());
    assert_eq!(drift_told(&scene.welcome()), [4], "found while it was not connected");
    assert_eq!(maintained(&mut scene, 0), [0]);
}

#[test]
fn damage_that_maintenance_finds_is_verified_and_healed_at_once() {
    let mut scene = Scene::new();
    scene.welcome();
    let state = Box::new(holding(&generation(&scene.key, 1)));
    let damaged = Maintenance { verify: true, ..Maintenance::default() };
    let actions = scene.apply(Event::Report(Report::Done(Outcome::Maintained(damaged), state)));
    let verifies =
        |action: &Action| matches!(action, Action::Start(command) if matches!(**command, Command::Verify));
    assert!(actions.iter().any(verifies), "{actions:?}");
}

#[test]
fn local_changes_are_no_trouble_any_more_when_the_live_tree_is_found_whole() {
    let mut scene = Scene::new();
    scene.welcome();
    let live = generation(&scene.key, 1);
    let maintained = |scene: &mut Scene, maintenance: Maintenance| {
        let report = Report::Done(Outcome::Maintained(maintenance), Box::new(holding(&live)));
        scene.apply(Event::Report(report));
        scene.machine.error()
    };
    let trouble = Some("1 path of the live tree changed locally".to_owned());
    let damaged = Maintenance { trouble: trouble.clone(), ..Maintenance::default() };
    assert_eq!(maintained(&mut scene, damaged), trouble);
    assert_eq!(maintained(&mut scene, Maintenance::default()), trouble, "a step that looked at other things");
    let whole = Maintenance { whole: true, ..Maintenance::default() };
    assert_eq!(maintained(&mut scene, whole), None);
}

#[test]
fn a_node_that_flips_along_is_behind_once_its_activation_fails() {
    let mut scene = Scene::new();
    scene.welcome();
    let second = generation(&scene.key, 2);
    let message = v1::SignedGeneration {
        record: Bytes::copy_from_slice(second.record()),
        signature: Bytes::copy_from_slice(second.signature()),
    };
    let announce = v1::Announce { generation: Some(message), ..Default::default() };
    scene.apply(Event::Message(v1::OriginMessage { message: Some(FromOrigin::Announce(announce)) }));
    let state = || Box::new(holding(&generation(&SigningKey::from_bytes(&[3; 32]), 1)));
    scene.apply(Event::Report(Report::Done(Outcome::Staged, state())));
    let root = Bytes::copy_from_slice(second.root_hash().as_bytes());
    let activate = v1::Activate { generation: 2, root, flipped: true };
    scene.apply(Event::Message(v1::OriginMessage { message: Some(FromOrigin::Activate(activate)) }));
    assert!(!scene.machine.is_behind(), "all that flip together would stop being ready at once");
    let failure = Failure { retry: Some(RetryClass::Retry), reason: "the hook refuses".into() };
    scene.apply(Event::Report(Report::Done(Outcome::Declined(failure), state())));
    assert!(scene.machine.is_behind());
    scene.now += Duration::from_secs(60);
    scene.apply(Event::Tick);
    assert!(scene.machine.is_behind(), "also while it tries again");
    scene.activated(2);
    assert!(!scene.machine.is_behind());
}

fn starts(actions: &[Action]) -> Option<&Command> {
    actions.iter().find_map(|action| match action {
        Action::Start(command) => Some(command.as_ref()),
        _ => None,
    })
}

fn done(scene: &mut Scene, outcome: Outcome) -> Vec<Action> {
    let state = Box::new(holding(&generation(&scene.key, 1)));
    scene.apply(Event::Report(Report::Done(outcome, state)))
}

fn failure(retry: RetryClass) -> Outcome {
    Outcome::Failed(Failure { retry: Some(retry), reason: "no space".into() })
}

#[test]
fn a_failed_update_is_tried_again_later_the_later_the_less_it_helps() {
    for (class, at_least, at_most) in [(RetryClass::Retry, 0, 1), (RetryClass::Operator, 7, 15)] {
        let mut scene = Scene::without_maintenance();
        scene.welcome();
        assert_eq!(starts_update(&scene.announce(2)), Some(2));
        let failed = done(&mut scene, failure(class));
        assert!(failed.iter().any(|a| matches!(a, Action::Send(ToOrigin::Failed(f)) if f.generation == 2)));
        assert_eq!(scene.machine.error().as_deref(), Some("no space"));
        assert_eq!(scene.machine.state(), AgentState::Failed);
        scene.now += Duration::from_secs(at_least);
        assert_eq!(starts_update(&scene.apply(Event::Tick)), None, "{class:?}");
        scene.now += Duration::from_secs(at_most - at_least);
        assert_eq!(starts_update(&scene.apply(Event::Tick)), Some(2), "{class:?}");
    }
}

#[test]
fn a_retry_is_due_later_and_ends_with_the_agent() {
    let mut scene = Scene::without_maintenance();
    scene.welcome();
    let idle = scene.machine.deadline().unwrap();
    scene.announce(2);
    done(&mut scene, failure(RetryClass::Retry));
    let due = scene.machine.deadline().unwrap();
    assert!(scene.now < due && due < idle, "the retry comes before the next heartbeat");
    scene.apply(Event::Stop);
    assert_eq!(scene.machine.deadline(), None);
}

#[test]
fn an_origin_that_does_not_greet_is_given_up_in_time() {
    let scene = Scene::new();
    let mut scene = Scene { now: scene.now + MAINTAIN_DELAY, ..scene };
    assert!(matches!(starts(&scene.apply(Event::Tick)), Some(Command::Maintain)));
    let greeting = scene.now - MAINTAIN_DELAY + GREETING_TIMEOUT;
    assert_eq!(scene.machine.deadline(), Some(greeting));
}

#[test]
fn maintenance_goes_on_when_it_says_and_not_without_a_reason() {
    let mut scene = Scene::new();
    scene.welcome();
    scene.now += MAINTAIN_DELAY;
    assert!(matches!(starts(&scene.apply(Event::Tick)), Some(Command::Maintain)));
    let again = Some(Duration::from_secs(3));
    let ended = done(&mut scene, Outcome::Maintained(Maintenance { again, ..Maintenance::default() }));
    assert!(starts(&ended).is_none(), "not at once");
    scene.now += Duration::from_secs(2);
    assert!(starts(&scene.apply(Event::Tick)).is_none());
    assert_eq!(scene.machine.deadline(), Some(scene.now + Duration::from_secs(1)));
    scene.now += Duration::from_secs(1);
    assert!(matches!(starts(&scene.apply(Event::Tick)), Some(Command::Maintain)));
    done(&mut scene, Outcome::Maintained(Maintenance::default()));
    assert_eq!(scene.machine.maintain_at, None);
}

#[test]
fn the_result_of_a_verification_reaches_those_who_wait_and_the_status() {
    let mut scene = Scene::new();
    scene.welcome();
    assert!(matches!(starts(&scene.apply(Event::Verify)), Some(Command::Verify)));
    let drifted = Verified { drifted: 2, error: Some("origin away".into()), ..Verified::default() };
    let ended = done(&mut scene, Outcome::Verified(drifted));
    assert!(ended.iter().any(|a| matches!(a, Action::Verified(Ok(v)) if v.drifted == 2)), "{ended:?}");
    assert!(starts(&ended).is_none(), "once");
    assert_eq!(scene.machine.maintain_at, Some(scene.now + MAINTAIN_DELAY));
    let error = scene.machine.error().unwrap();
    assert_eq!(error, "2 paths of the live tree drifted and could not be healed: origin away");
    // A new connection may heal it.
    scene.machine.maintain_at = None;
    scene.apply(Event::Lost("cut".into()));
    scene.now += Duration::from_secs(1);
    scene.apply(Event::Tick);
    assert!(matches!(starts(&scene.welcome()), Some(Command::Verify)));
    done(&mut scene, Outcome::Verified(Verified::default()));
    scene.apply(Event::Verify);
    done(&mut scene, Outcome::Verified(Verified::default()));
    assert_eq!(scene.machine.error(), None);
}

#[test]
fn a_verification_that_fails_is_answered_and_one_that_gives_way_starts_again() {
    let mut scene = Scene::new();
    scene.welcome();
    scene.apply(Event::Verify);
    let ended = done(&mut scene, failure(RetryClass::Operator));
    assert!(ended.iter().any(|action| matches!(action, Action::Verified(Err(_)))));
    assert!(starts(&ended).is_none());
    scene.apply(Event::Verify);
    assert!(scene.announce(2).iter().any(|action| matches!(action, Action::Cancel)));
    let ended = done(&mut scene, Outcome::Failed(Failure::superseded()));
    assert!(!ended.iter().any(|action| matches!(action, Action::Verified(_))), "{ended:?}");
    assert_eq!(starts_update(&ended), Some(2));
    assert!(matches!(starts(&scene.activated(2)), Some(Command::Verify)));
    // An agent that stops answers.
    scene.apply(Event::Stop);
    let ended = done(&mut scene, Outcome::Failed(Failure::superseded()));
    assert!(ended.iter().any(|action| matches!(action, Action::Verified(Err(_)))));
    assert!(ended.iter().any(|action| matches!(action, Action::Stopped)));
}

#[test]
fn the_same_announcement_leaves_an_update_alone_and_another_one_cancels_it() {
    let mut scene = Scene::new();
    scene.welcome();
    scene.announce(2);
    let cancels = |actions: Vec<Action>| actions.iter().any(|action| matches!(action, Action::Cancel));
    assert!(!cancels(scene.announce(2)));
    // The same tree under another number.
    let mut renamed = generation(&scene.key, 2).generation().clone();
    renamed.number = GenerationNumber::new(3).unwrap();
    let renamed = renamed.sign(&scene.key);
    assert!(cancels(scene.announced(&renamed)));
    assert!(!cancels(scene.announce(4)), "once");
}

#[test]
fn maintenance_gives_way_to_a_verification_and_to_an_update() {
    for is_update in [true, false] {
        let mut scene = Scene::new();
        scene.welcome();
        scene.now += MAINTAIN_DELAY;
        assert!(matches!(starts(&scene.apply(Event::Tick)), Some(Command::Maintain)));
        let actions = if is_update { scene.announce(2) } else { scene.apply(Event::Verify) };
        assert!(actions.iter().any(|action| matches!(action, Action::Cancel)), "{actions:?}");
    }
}

fn hangs(actions: &[Action]) -> bool {
    actions.iter().any(|action| matches!(action, Action::Hang))
}

#[test]
fn heartbeats_keep_the_connection_and_silence_ends_it() {
    let mut scene = Scene::without_maintenance();
    let (interval, moment) = (Duration::from_secs(2), Duration::from_millis(1));
    let welcome =
        v1::Welcome { protocol: PROTOCOL_MAX, heartbeat_interval_ms: 2_000, ..v1::Welcome::default() };
    scene.apply(Event::Message(v1::OriginMessage { message: Some(FromOrigin::Welcome(welcome)) }));
    assert_eq!(scene.machine.deadline(), Some(scene.now + interval));
    let beats = |actions: Vec<Action>| -> Vec<u64> {
        let beats = actions.iter().filter_map(|action| match action {
            Action::Send(ToOrigin::Heartbeat(heartbeat)) => Some(heartbeat.sequence),
            _ => None,
        });
        beats.collect()
    };
    scene.now += interval - moment;
    assert!(beats(scene.apply(Event::Tick)).is_empty());
    scene.now += moment;
    assert_eq!(beats(scene.apply(Event::Tick)), [1]);
    assert!(beats(scene.apply(Event::Tick)).is_empty());
    scene.now += interval;
    assert_eq!(beats(scene.apply(Event::Tick)), [2]);
    let heartbeat = FromOrigin::Heartbeat(v1::Heartbeat::default());
    scene.apply(Event::Message(v1::OriginMessage { message: Some(heartbeat) }));
    scene.now += interval * MISSED_HEARTBEATS - moment;
    assert_eq!(beats(scene.apply(Event::Tick)), [3]);
    assert!(scene.machine.is_connected());
    assert_eq!(scene.machine.deadline(), Some(scene.now + moment));
    scene.now += moment;
    assert!(hangs(&scene.apply(Event::Tick)) && !scene.machine.is_connected());
    assert_eq!(scene.machine.error().as_deref(), Some("the origin has fallen silent"));
}

#[test]
fn a_greeting_without_an_answer_is_given_up_at_its_limit() {
    let mut scene = Scene::without_maintenance();
    let moment = Duration::from_millis(1);
    scene.now += GREETING_TIMEOUT - moment;
    assert!(!hangs(&scene.apply(Event::Tick)));
    scene.now += moment;
    assert!(hangs(&scene.apply(Event::Tick)));
    assert_eq!(scene.machine.error().as_deref(), Some("the origin does not answer"));
    // The agent dials again by itself, and a second report of the loss does not put that off.
    let due = scene.machine.deadline();
    scene.apply(Event::Lost("cut".into()));
    assert_eq!(scene.machine.deadline(), due);
    scene.now = due.unwrap();
    assert_eq!(shown_live(&scene.apply(Event::Tick)), Some(1));
}

#[test]
fn only_a_connection_that_lasted_makes_the_next_pause_short() {
    let mut scene = Scene::without_maintenance();
    let redials = |scene: &mut Scene| {
        scene.apply(Event::Lost("cut".into()));
        let pause = scene.machine.deadline().unwrap() - scene.now;
        scene.now += Duration::from_secs(10);
        assert_eq!(shown_live(&scene.apply(Event::Tick)), Some(1));
        pause
    };
    for _ in 0..6 {
        redials(&mut scene);
    }
    scene.welcome();
    scene.now += Duration::from_secs(4);
    assert!(redials(&mut scene) > Duration::from_secs(4));
    scene.welcome();
    scene.now += Duration::from_secs(5);
    assert!(redials(&mut scene) <= Duration::from_millis(200));
}

#[test]
fn new_keys_dial_anew_and_hang_up_only_what_is_connected() {
    let mut scene = Scene::without_maintenance();
    scene.welcome();
    for is_connected in [true, false] {
        if !is_connected {
            scene.apply(Event::Lost("cut".into()));
        }
        let renewed = scene.apply(Event::Renewed(Box::new(scene.keys.clone())));
        assert_eq!((hangs(&renewed), shown_live(&renewed)), (is_connected, Some(1)));
    }
}

#[test]
fn the_state_says_what_holds_the_node_up() {
    let mut scene = Scene::new();
    assert_eq!(scene.machine.state(), AgentState::Live);
    scene.welcome();
    assert_eq!(scene.machine.origin_version(), None);
    scene.announce(2);
    scene.switched(2, hook(2, 1, Some(2), None));
    assert_eq!(scene.machine.state(), AgentState::Switched);
    scene.apply(Event::Hook(hook(3, 2, None, Some((2, RunOutcome::Ok)))));
    assert_eq!(scene.machine.state(), AgentState::Live);
    let trust = Trust { keys: scene.keys.clone(), boot_id: "boot".into() };
    assert_eq!(Machine::new(trust, ReplicaState::default(), scene.now).state(), AgentState::Empty);
}

#[test]
fn each_welcome_says_whether_the_origin_has_collected_directories() {
    let mut scene = Scene::new();
    for features in [vec!["deltas", "collected"], vec!["deltas"]] {
        let collects = features.contains(&"collected");
        let features = features.into_iter().map(str::to_owned).collect();
        let welcome = v1::Welcome { protocol: PROTOCOL_MAX, features, ..v1::Welcome::default() };
        scene.apply(Event::Message(v1::OriginMessage { message: Some(FromOrigin::Welcome(welcome)) }));
        assert_eq!(scene.machine.origin_collects(), collects);
        scene.apply(Event::Lost("restarted".into()));
        assert_eq!(scene.machine.origin_collects(), collects, "until the next welcome");
        scene.now += Duration::from_secs(60);
        scene.apply(Event::Tick);
    }
}

#[test]
fn progress_and_version_are_shown_while_they_are_known() {
    let mut scene = Scene::new();
    assert_eq!((scene.machine.origin_version(), scene.machine.progress()), (None, None));
    let version = "0.2.0";
    let welcome =
        v1::Welcome { protocol: PROTOCOL_MAX, origin_version: version.into(), ..v1::Welcome::default() };
    scene.apply(Event::Message(v1::OriginMessage { message: Some(FromOrigin::Welcome(welcome)) }));
    assert_eq!(scene.machine.origin_version(), Some(version));
    let heartbeat = FromOrigin::Heartbeat(v1::Heartbeat::default());
    scene.apply(Event::Message(v1::OriginMessage { message: Some(heartbeat) }));
    assert!(scene.machine.is_connected());
    scene.announce(2);
    let under_way = Progress { files_done: 1, files_total: 2, bytes_done: 1, bytes_total: 2 };
    scene.apply(Event::Report(Report::Progress(under_way)));
    assert_eq!(scene.machine.progress(), Some(under_way));
    scene.activated(2);
    assert_eq!(scene.machine.progress(), None);
    assert_eq!(scene.machine.replica().live, Some(generation(&scene.key, 2)));
}
