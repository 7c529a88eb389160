//! Whole origins in this process, on small real trees with a real watch.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use syncd_shared::{Generation, GenerationNumber, RootEntry, SignedGeneration, TreePath};
use tempfile::TempDir;

use super::*;
use crate::admin;
use crate::admin::protocol::{Reply as Answer, Request as Asked, Wait};
use crate::admin::status::Status;
use crate::fleet::rollout::Policies;
use crate::keys::Keys;
use crate::scan::{MtimePolicy, ScanError, SymlinkPolicy};
use crate::service::{self, Running, ServeOptions, StartError};
use crate::store::{Damage, Store};

const SOON: Duration = Duration::from_secs(60);
const SETTLE: Trigger = Trigger::Settle {
    quiet: Duration::from_millis(50),
    max: Duration::from_millis(400),
    busy_after: Duration::from_secs(300),
};

mod rollouts;
mod times;

struct Site {
    directory: TempDir,
    mtime: MtimePolicy,
    policies: Policies,
}

impl Site {
    /// Initialised, with a tree of `files` files.
    fn new(files: usize) -> Self {
        let directory = TempDir::new().unwrap();
        let site = Self { directory, mtime: MtimePolicy::Tree, policies: Policies::default() };
        service::init(&site.data()).unwrap();
        fs::create_dir(site.tree()).unwrap();
        (0..files).for_each(|n| site.write(&format!("f{n}"), &format!("content {n}")));
        site
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn tree(&self) -> PathBuf {
        self.directory.path().join("tree")
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.tree().join(name), content).unwrap();
    }

    async fn try_serve(&self, trigger: Trigger) -> Result<Running, StartError> {
        let any = "127.0.0.1:0".parse().unwrap();
        service::start(ServeOptions {
            git: None,
            hold_while: None,
            tree: self.tree(),
            data: self.data(),
            listen: any,
            http: any,
            http_required: true,
            page_listen: None,
            trigger,
            poll: Duration::from_secs(10),
            mtime: self.mtime,
            symlinks: SymlinkPolicy::Verbatim,
            retention: Default::default(),
            policies: self.policies.clone(),
            bwlimit: None,
            publish: None,
            purge: None,
            on_rollout: None,
            collected: Vec::new(),
            admin_group: None,
        })
        .await
    }

    async fn serve(&self, trigger: Trigger) -> Running {
        self.try_serve(trigger).await.unwrap()
    }

    async fn ask(&self, request: Asked) -> Vec<Answer> {
        let socket = admin::socket_path(&self.data());
        let mut responses =
            syncd_runtime::local_socket::request::<_, Answer>(&socket, &request).await.unwrap();
        let mut answers = Vec::new();
        while let Some(answer) = responses.next().await.unwrap() {
            answers.push(answer);
        }
        answers
    }

    async fn status(&self) -> Status {
        match self.ask(Asked::Status).await.remove(0) {
            Answer::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    /// A generation signed by this origin's key that its store need not know.
    fn signed(&self, number: u64, root: RootEntry) -> SignedGeneration {
        self.signed_in(1, number, root)
    }

    fn signed_in(&self, epoch: u32, number: u64, root: RootEntry) -> SignedGeneration {
        let keys = Keys::open(&self.data()).unwrap();
        let number = GenerationNumber::new(number).unwrap();
        let (tree_id, label) = (keys.tree_id(), String::new());
        Generation { tree_id, epoch, number, trust: 1, root, parent: None, created_ms: 0, label }
            .sign(&keys.signing_key())
    }
}

async fn until(origin: &Running, what: &str, condition: impl Fn(&OriginView) -> bool) -> OriginView {
    let mut view = origin.committer().view();
    let found = tokio::time::timeout(SOON, view.wait_for(|view| condition(view))).await;
    let Ok(found) = found else { panic!("{what}: {:?}", *origin.committer().view().borrow()) };
    found.unwrap().clone()
}

async fn generation(origin: &Running, number: u64) -> OriginView {
    until(origin, &format!("generation {number}"), |v| number_of(v) == number).await
}

async fn state(origin: &Running, state: State) -> String {
    until(origin, &format!("{state:?}"), |v| v.state == state).await.reason.unwrap_or_default()
}

fn number_of(view: &OriginView) -> u64 {
    view.current.as_ref().map_or(0, |g| g.number().get())
}

fn sealed(outcome: Result<Outcome, CommitError>) -> SignedGeneration {
    match outcome {
        Ok(Outcome::Sealed(generation)) => generation,
        other => panic!("not sealed: {other:?}"),
    }
}

async fn commit(origin: &Running) -> Result<Outcome, CommitError> {
    origin.committer().commit(CommitOptions::default()).await.result
}

async fn commit_mass_deletion(origin: &Running) -> Result<Outcome, CommitError> {
    let options = CommitOptions { allow_mass_deletion: true, ..CommitOptions::default() };
    origin.committer().commit(options).await.result
}

fn labelled(label: &str) -> CommitOptions {
    CommitOptions { label: label.into(), ..CommitOptions::default() }
}

async fn rollback(origin: &Running, number: u64) -> Result<Outcome, CommitError> {
    origin.committer().rollback(GenerationNumber::new(number), None).await.result
}

/// An agent's certificate.
fn peer() -> syncd_shared::identity::PeerIdentity {
    let not_after = time::OffsetDateTime::now_utc() + time::Duration::days(1);
    syncd_shared::identity::PeerIdentity {
        name: "web1".parse().unwrap(),
        serial: syncd_shared::identity::Serial::from_bytes([1; 16]),
        fingerprint: [1; 32],
        not_before: not_after - time::Duration::days(2),
        not_after,
        issuer: syncd_shared::identity::authority::AuthorityKey([0; 20]),
    }
}

/// Tells an origin of a generation as an agent's hello does.
async fn show(origin: &Running, shown: SignedGeneration) {
    let greeting = crate::fleet::Greeting { live: Some(shown), ..Default::default() };
    origin.fleet().attach(peer(), greeting).await.unwrap().detach().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_not_durable_in_the_audit_seals_nothing() {
    let site = Site::new(2);
    // Takes every line, and fails every sync.
    std::os::unix::fs::symlink("/dev/null", site.data().join("audit")).unwrap();
    let origin = site.serve(Trigger::Manual).await;
    let (label, rollout, wait) = (String::new(), None, None);
    let commit =
        Asked::Commit { label, allow_mass_deletion: false, rescan: false, rollout, now: false, wait };
    for _ in 0..2 {
        let answers = site.ask(commit.clone()).await;
        let told = answers.iter().any(
            |answer| matches!(answer, Answer::Error { message } if message.contains("can't be recorded")),
        );
        assert!(told, "{answers:?}");
        assert_eq!(origin.committer().view().borrow().current, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thief_who_signed_the_last_generation_is_overcome_by_another_signing_key() {
    let site = Site::new(3);
    let origin = site.serve(Trigger::Manual).await;
    sealed(commit(&origin).await);
    let keys = Keys::open(&site.data()).unwrap();
    let trust = keys.trust();
    let (epochs, numbers) = (trust.document().epochs, trust.document().numbers);
    let stolen = |epoch, number: GenerationNumber| site.signed_in(epoch, number.get(), RootEntry::empty());
    show(&origin, stolen(epochs.last, numbers.last)).await;
    state(&origin, State::Waiting).await;
    let refused = commit(&origin).await.unwrap_err();
    assert!(refused.to_string().contains("key rotate --signing"), "{refused}");

    let root = syncd_runtime::key_file::read(&keys.root_key_here().unwrap()).unwrap();
    let root = syncd_shared::identity::RootKey::from_text(&root, None).unwrap();
    let rotation = crate::keys::rotation::Rotation { signing: true, ..Default::default() };
    let document = keys.prepare(&rotation, time::OffsetDateTime::now_utc()).unwrap();
    let signed = document.clone().sign(&root.key).unwrap();
    origin.committer().take_trust(signed).await.result.unwrap();
    site.write("f0", "by the owner");
    let next = sealed(commit(&origin).await);
    assert_eq!((next.epoch(), next.number()), (epochs.last + 1, numbers.last.next().unwrap()));
    assert_eq!(document.verify_generation(next.record(), next.signature()).as_ref(), Ok(&next));
    origin.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_is_held_through_edits_and_restarts_until_a_commit() {
    let site = Site::new(3);
    let origin = site.serve(SETTLE).await;
    let first = generation(&origin, 1).await;
    site.write("f0", "changed");
    let second = generation(&origin, 2).await;
    assert_ne!(first.current.unwrap().root_hash(), second.current.unwrap().root_hash());
    let answer = origin.committer().rollback(Some(GenerationNumber::FIRST), None).await;
    // Further remarks may report edits within one second.
    assert_eq!(answer.remarks[0], "held after rollback to 1: fix the tree, then commit");
    assert_eq!(sealed(answer.result).number().get(), 3);
    site.write("f1", "an edit that has nothing to do with it");
    assert_eq!(state(&origin, State::Held).await, answer.remarks[0]);
    origin.stop().await;

    let origin = site.serve(SETTLE).await;
    state(&origin, State::Held).await;
    site.write("f2", "another");
    // Far longer than it takes to settle: what is wrong would be published by now.
    tokio::time::sleep(Duration::from_millis(400)).await;
    let status = site.status().await;
    let hold = status.hold.clone().unwrap();
    assert_eq!((status.generation, hold.generation, hold.reason), (Some(3), 3, answer.remarks[0].clone()));
    assert!(status.to_text().contains("held after rollback to 1"), "{}", status.to_text());
    let health = health(&origin).await;
    assert!(health.starts_with("HTTP/1.1 503") && health.contains("held after rollback to 1"), "{health}");

    let answer = origin.committer().commit(CommitOptions::default()).await;
    let again = "this publishes again what was rolled back: generation 2";
    assert_eq!((sealed(answer.result).number().get(), &answer.remarks[0][..]), (4, again));
    assert_eq!(state(&origin, State::Ready).await, "");
    assert_eq!(site.status().await.hold, None);
    site.write("f1", "a new deployment");
    generation(&origin, 5).await;
    origin.stop().await;
}

/// The whole answer of `/healthz`, including headers.
async fn health(origin: &Running) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(origin.http_address().unwrap()).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_says_how_much_of_what_was_rolled_back_it_publishes_again() {
    let site = Site::new(3);
    let origin = site.serve(Trigger::Manual).await;
    sealed(commit(&origin).await);
    site.write("f0", "bad");
    site.write("f1", "bad, too");
    fs::create_dir(site.tree().join("d")).unwrap();
    site.write("d/new", "bad as well");
    sealed(commit(&origin).await);
    sealed(rollback(&origin, 1).await);
    assert!(state(&origin, State::Held).await.starts_with("held after rollback to 1"));
    let unwell = health(&origin).await;
    assert!(unwell.starts_with("HTTP/1.1 503") && unwell.contains("held after rollback to 1"), "{unwell}");
    assert!(site.status().await.to_text().contains("held after rollback to 1"));
    site.write("f0", "mended");
    let remarks = origin.committer().commit(CommitOptions::default()).await.remarks;
    let part = "this publishes again a part of what was rolled back: generation 2 (2 of 3 paths)";
    assert_eq!(remarks[0], part);
    assert_eq!(site.status().await.hold, None);

    // To go back to what is current holds as well, and a commit that finds nothing to publish ends it.
    assert!(matches!(rollback(&origin, 4).await, Ok(Outcome::Unchanged(_))));
    assert_eq!(site.status().await.hold.map(|hold| hold.generation), Some(4));
    assert!(matches!(commit(&origin).await, Ok(Outcome::Unchanged(_))));
    assert_eq!(site.status().await.hold, None);
    origin.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mended_mode_of_the_tree_is_not_what_was_rolled_back() {
    use std::os::unix::fs::PermissionsExt;
    let site = Site::new(3);
    let origin = site.serve(Trigger::Manual).await;
    let chmod = |mode| fs::set_permissions(site.tree(), fs::Permissions::from_mode(mode)).unwrap();
    let again = async || {
        let answer = origin.committer().commit(CommitOptions::default()).await;
        sealed(answer.result);
        answer.remarks.into_iter().find(|remark| remark.contains("publishes again"))
    };
    chmod(0o755);
    sealed(commit(&origin).await);
    chmod(0o700);
    sealed(commit(&origin).await);
    sealed(rollback(&origin, 1).await);
    chmod(0o751);
    assert_eq!(again().await, None);
    sealed(rollback(&origin, 1).await);
    site.write("f0", "nothing to do with it");
    assert_eq!(again().await.unwrap(), "this publishes again what was rolled back: generation 4");
    origin.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn manual_publishes_only_on_command_and_after_a_restart_without_reading_files() {
    let site = Site::new(3);
    let origin = site.serve(Trigger::Manual).await;
    assert_eq!(state(&origin, State::Ready).await, "");
    assert_eq!(number_of(&origin.committer().view().borrow()), 0);
    let first = sealed(origin.committer().commit(labelled("one")).await.result);
    assert_eq!((first.number().get(), first.generation().label.as_str()), (1, "one"));
    assert!(matches!(commit(&origin).await, Ok(Outcome::Unchanged(g)) if g == first));
    origin.stop().await;

    site.write("f0", "while it was down");
    let origin = site.serve(Trigger::Manual).await;
    state(&origin, State::Ready).await;
    assert_eq!(number_of(&origin.committer().view().borrow()), 1);
    origin.stop().await;
    let store = Arc::new(Store::open(&site.data()).unwrap());
    assert!(scan_base::ScanBase::load(&store).unwrap().unwrap().unpublished);
    drop(store);

    let origin = site.serve(Trigger::Manual).await;
    assert_eq!(sealed(commit(&origin).await).number().get(), 2);
    origin.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_that_loses_most_is_held_until_it_is_back_or_allowed() {
    let site = Site::new(40);
    let origin = site.serve(SETTLE).await;
    generation(&origin, 1).await;
    (0..30).for_each(|n| fs::remove_file(site.tree().join(format!("f{n}"))).unwrap());
    let reason = state(&origin, State::Held).await;
    assert!(reason.contains("allow-mass-deletion"), "{reason}");
    assert!(commit(&origin).await.is_err());
    assert_pending_deletions(&site, 30).await;
    (0..30).for_each(|n| site.write(&format!("f{n}"), "back"));
    generation(&origin, 2).await;
    (0..30).for_each(|n| fs::remove_file(site.tree().join(format!("f{n}"))).unwrap());
    state(&origin, State::Held).await;
    let allowed = sealed(commit_mass_deletion(&origin).await);
    assert_eq!(allowed.generation().root.totals.files, 10);
    state(&origin, State::Ready).await;
    origin.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_that_goes_away_bit_by_bit_is_held_too() {
    let site = Site::new(40);
    let origin = site.serve(Trigger::Manual).await;
    sealed(commit(&origin).await);
    origin.stop().await;
    // Each restart scans, and none of the scans loses half.
    for gone in [0..15, 15..25] {
        gone.for_each(|n| fs::remove_file(site.tree().join(format!("f{n}"))).unwrap());
        site.serve(Trigger::Manual).await.stop_when_scanned().await;
    }
    let origin = site.serve(SETTLE).await;
    state(&origin, State::Held).await;
    assert_pending_deletions(&site, 25).await;
    assert!(matches!(
        commit(&origin).await,
        Err(CommitError::Scan(ScanError::MassDeletion { before: 40, after: 15 }))
    ));
    // A rollback puts that tree aside.
    sealed(commit_mass_deletion(&origin).await);
    sealed(rollback(&origin, 1).await);
    assert!(state(&origin, State::Held).await.contains("rollback"));
    origin.stop().await;
}

/// `diff --pending` lists what is held, and lets nothing of it pass: a second time, and the state stays.
async fn assert_pending_deletions(site: &Site, count: usize) {
    for _ in 0..2 {
        let told = site.ask(Asked::Diff { from: None, to: None, pending: true }).await;
        let removed = |answer: &&Answer| matches!(answer, Answer::Diff(line) if line.change == "removed");
        assert_eq!(told.iter().filter(removed).count(), count, "{told:?}");
        let because = |reason: &str| reason.contains("allow-mass-deletion");
        let held = |answer: &Answer| matches!(answer, Answer::WouldHold { reason } if because(reason));
        assert!(told.iter().any(held) && matches!(told.last(), Some(Answer::Done { code: 0 })), "{told:?}");
        assert_eq!(site.status().await.state, State::Held);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_warns_of_a_tree_that_others_may_not_enter_at_each_mode() {
    use std::os::unix::fs::PermissionsExt;

    let site = Site::new(1);
    let origin = site.serve(Trigger::Manual).await;
    for (mode, is_told) in [(0o700, true), (0o750, true), (0o755, false)] {
        fs::set_permissions(site.tree(), fs::Permissions::from_mode(mode)).unwrap();
        let answer = origin.committer().commit(CommitOptions::default()).await;
        let told = answer.remarks.iter().any(|remark| remark.contains("answers 403"));
        assert_eq!(told, is_told, "{mode:o}: {:?}", answer.remarks);
        sealed(answer.result);
    }
    origin.stop().await;
}

impl Running {
    async fn stop_when_scanned(self) {
        until(&self, "scanned", |v| v.state != State::Scanning).await;
        self.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_tree_an_origin_starts_held_serves_and_recovers() {
    let site = Site::new(3);
    let away = site.directory.path().join("away");
    fs::rename(site.tree(), &away).unwrap();
    assert!(matches!(site.try_serve(SETTLE).await, Err(StartError::NoTree { .. })));
    fs::rename(&away, site.tree()).unwrap();
    let origin = site.serve(SETTLE).await;
    generation(&origin, 1).await;
    origin.stop().await;

    fs::rename(site.tree(), &away).unwrap();
    let origin = site.serve(SETTLE).await;
    let reason = state(&origin, State::Held).await;
    assert!(reason.contains("is missing"), "{reason}");
    let status = site.status().await;
    assert_eq!((status.state, status.generation), (State::Held, Some(1)));
    fs::rename(&away, site.tree()).unwrap();
    state(&origin, State::Ready).await;
    site.write("f0", "changed");
    generation(&origin, 2).await;
    origin.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_that_agents_hold_are_never_used_again() {
    for trigger in [SETTLE, Trigger::Manual] {
        let site = Site::new(3);
        let origin = site.serve(Trigger::Manual).await;
        sealed(commit(&origin).await);
        origin.stop().await;

        let origin = site.serve(trigger).await;
        let mut elsewhere = RootEntry::empty();
        elsewhere.metadata.mode = 0o700;
        show(&origin, site.signed(9, elsewhere)).await;
        let reason = state(&origin, State::Waiting).await;
        assert!(reason.contains("generation 9"), "{reason}");
        site.write("f0", "changed");
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(number_of(&origin.committer().view().borrow()), 1, "{trigger:?} waits for an operator");
        origin.stop().await;

        // The agent is away now.
        let origin = site.serve(trigger).await;
        state(&origin, State::Waiting).await;
        site.write("f0", "content 0");
        let past = sealed(commit(&origin).await);
        assert_eq!(past.number().get(), 10);
        state(&origin, State::Ready).await;
        origin.stop().await;
        let origin = site.serve(Trigger::Manual).await;
        state(&origin, State::Ready).await;
        assert!(matches!(commit(&origin).await, Ok(Outcome::Unchanged(_))));
        origin.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_gets_past_what_agents_hold_also_where_nothing_changed() {
    let site = Site::new(3);
    let origin = site.serve(Trigger::Manual).await;
    sealed(commit(&origin).await);
    show(&origin, site.signed(4, RootEntry::empty())).await;
    state(&origin, State::Waiting).await;
    assert_eq!(sealed(commit(&origin).await).number().get(), 5);
    // The same number with another tree is as unknown.
    show(&origin, site.signed(5, RootEntry::empty())).await;
    state(&origin, State::Waiting).await;
    assert_eq!(sealed(commit(&origin).await).number().get(), 6);
    show(&origin, site.signed(7, RootEntry::empty())).await;
    state(&origin, State::Waiting).await;
    assert_eq!(sealed(rollback(&origin, 1).await).number().get(), 8);
    show(&origin, site.signed(3, RootEntry::empty())).await;
    let reason = state(&origin, State::Held).await;
    assert!(reason.contains("rollback"), "also with a manual trigger: {reason}");
    origin.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_that_the_tree_still_is_is_taken_back() {
    let site = Site::new(3);
    let origin = site.serve(SETTLE).await;
    let root = generation(&origin, 1).await.current.unwrap().generation().root;
    show(&origin, site.signed(6, root)).await;
    generation(&origin, 6).await;
    state(&origin, State::Ready).await;
    site.write("f0", "changed");
    generation(&origin, 7).await;
    origin.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_that_a_node_refuses_is_not_taken_back_although_the_node_is_away_after_a_restart() {
    let site = Site::new(3);
    let origin = site.serve(Trigger::Manual).await;
    sealed(commit(&origin).await);
    let greet = async |origin: &Running, lost: &SignedGeneration, refused| {
        let greeting = crate::fleet::Greeting { accepted: Some(lost.clone()), refused, ..Default::default() };
        origin.fleet().attach(peer(), greeting).await.unwrap().detach().await;
    };
    let is_refused = |view: &OriginView| {
        view.reason.as_ref().is_some_and(|reason| reason.contains("A node refuses that generation"))
    };
    // Another node has refused it since.
    let lost = site.signed(6, RootEntry::empty());
    greet(&origin, &lost, Vec::new()).await;
    assert!(!state(&origin, State::Waiting).await.contains("refuses"));
    greet(&origin, &lost, vec![lost.root_hash()]).await;
    until(&origin, "the refusal", is_refused).await;
    let current = sealed(commit(&origin).await);
    assert_eq!(current.number().get(), 7, "an operator's commit ends it");
    // The tree has its root.
    let lost = site.signed(9, current.generation().root);
    greet(&origin, &lost, vec![lost.root_hash()]).await;
    assert_eq!(number_of(&until(&origin, "the refusal", is_refused).await), 7);
    origin.stop().await;

    let origin = site.serve(Trigger::Manual).await;
    assert_eq!(number_of(&until(&origin, "the refusal", is_refused).await), 7);
    assert_eq!(sealed(commit(&origin).await).number().get(), 10);
    origin.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unrest_is_named_and_forgotten_when_it_is_quiet() {
    let site = Site::new(3);
    let quiet = Duration::from_millis(300);
    let origin =
        site.serve(Trigger::Settle { quiet, max: Duration::from_millis(900), busy_after: SOON }).await;
    generation(&origin, 1).await;
    fs::create_dir(site.tree().join("busy")).unwrap();
    let mut reason = String::new();
    for n in 0..400 {
        site.write("busy/log", &n.to_string());
        let view = origin.committer().view().borrow().clone();
        if view.state == State::Waiting {
            reason = view.reason.unwrap();
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(reason.contains("busy/log") && reason.contains(".syncdignore"), "{reason:?}");
    generation(&origin, 2).await;
    assert_eq!(state(&origin, State::Ready).await, "");
    origin.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_change_neither_generation_nor_state() {
    let site = Site::new(3);
    let origin = site.serve(Trigger::Manual).await;
    sealed(commit(&origin).await);
    let long = "x".repeat(syncd_shared::limits::LABEL_MAX_BYTES + 1);
    site.write("f0", "changed");
    let refused = origin.committer().commit(labelled(&long)).await.result;
    assert!(matches!(refused, Err(CommitError::Label(_))));
    assert!(matches!(rollback(&origin, 7).await, Err(CommitError::UnknownGeneration { .. })));
    state(&origin, State::Ready).await;
    assert_eq!(sealed(commit(&origin).await).number().get(), 2);
    origin.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_has_the_shape_that_scripts_depend_on() {
    let site = Site::new(3);
    let origin = site.serve(Trigger::Manual).await;
    sealed(origin.committer().commit(labelled("one")).await.result);
    let status = serde_json::to_value(site.status().await).unwrap();
    let fields = [
        "tree_id",
        "tree",
        "grpc_address",
        "http_address",
        "state",
        "generation",
        "root",
        "label",
        "created",
        "files",
        "bytes",
        "agents",
    ];
    assert!(fields.iter().all(|field| status.get(field).is_some_and(|value| !value.is_null())), "{status}");
    assert_eq!((status["state"].as_str(), status["generation"].as_u64()), (Some("ready"), Some(1)));
    assert_eq!((status["files"].as_u64(), status["label"].as_str()), (Some(3), Some("one")));
    origin.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commit_answers_with_the_number_and_waiting_for_nobody_is_code_3() {
    let site = Site::new(3);
    let origin = site.serve(Trigger::Manual).await;
    let wait = Some(Wait { timeout_ms: 60_000, require_all: false });
    let request = Asked::Commit {
        label: String::new(),
        allow_mass_deletion: false,
        rescan: false,
        rollout: None,
        now: false,
        wait,
    };
    let answers = site.ask(request.clone()).await;
    let line = answers.iter().find_map(|a| if let Answer::Generation(line) = a { Some(line) } else { None });
    assert!(line.is_some_and(|line| line.generation == 1 && line.changed), "{answers:?}");
    assert!(matches!(answers.last(), Some(Answer::Done { code: 3 })), "{answers:?}");
    let again = site.ask(request).await;
    assert!(again.iter().any(|a| matches!(a, Answer::Generation(line) if !line.changed)), "{again:?}");
    let unknown = site.ask(Asked::Rollback { generation: Some(9), shown: None, wait: None }).await;
    assert!(matches!(unknown.last(), Some(Answer::Error { message }) if message.contains("history")));
    origin.stop().await;
}

/// Flips a byte in the last frame of a pack.
fn damage(data: &Path) {
    let pack = fs::read_dir(data.join("packs")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&pack).unwrap();
    *bytes.last_mut().unwrap() ^= 0xff;
    fs::write(&pack, bytes).unwrap();
}

fn code(answers: &[Answer]) -> u8 {
    match answers.last() {
        Some(Answer::Done { code }) => *code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_mends_what_the_tree_still_has() {
    let site = Site::new(30);
    let origin = site.serve(SETTLE).await;
    generation(&origin, 1).await;
    assert_eq!(code(&site.ask(Asked::Check).await), 0);
    damage(&site.data());
    assert_eq!(code(&site.ask(Asked::Check).await), 1);
    let mended = site.ask(Asked::Check).await;
    let lost = |a: &Answer| matches!(a, Answer::Damage { damage } if damage.contains("lacks content"));
    assert!(!mended.iter().any(lost), "{mended:?}");
    assert_eq!(number_of(&origin.committer().view().borrow()), 1);
    origin.stop().await;

    // While nothing serves, the next start mends.
    let store = Arc::new(Store::open(&site.data()).unwrap());
    let base = scan_base::ScanBase::load(&store).unwrap().unwrap();
    let mut report = store.check(|_| ());
    report.damage.push(Damage::Directory { number: GenerationNumber::FIRST, hash: base.root.object });
    forget_damaged(&store, &report).unwrap();
    assert_eq!(scan_base::ScanBase::load(&store).unwrap(), None);
    drop(store);
    let origin = site.serve(SETTLE).await;
    state(&origin, State::Ready).await;
    assert_eq!(number_of(&origin.committer().view().borrow()), 1);
    site.write("f0", "changed");
    generation(&origin, 2).await;
    origin.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_in_use_names_who_holds_it() {
    let site = Site::new(1);
    let origin = site.serve(Trigger::Manual).await;
    let Err(error) = site.try_serve(Trigger::Manual).await else {
        panic!("two origins on one data directory")
    };
    assert!(error.to_string().contains(&format!("pid {}", std::process::id())), "{error}");
    origin.stop().await;
}

#[test]
fn init_goes_on_where_it_was_interrupted_or_with_restored_keys_and_refuses_otherwise() {
    let directory = TempDir::new().unwrap();
    let keys = Keys::create(directory.path()).unwrap();
    let restored = service::init_sealed(directory.path(), || unreachable!("no root key is made"));
    assert_eq!(restored.unwrap().tree_id(), keys.tree_id());
    assert!(service::init(directory.path()).is_err());
    assert!(Store::open(directory.path()).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_file_is_published_when_its_writer_closes_it_or_stops_writing() {
    use std::io::Write as _;
    let site = Site::new(3);
    let max = Duration::from_secs(600);
    let settle = |max| Trigger::Settle { quiet: Duration::from_millis(50), max, busy_after: 2 * max };
    let origin = site.serve(settle(max)).await;
    generation(&origin, 1).await;
    let mut file = fs::File::create(site.tree().join(".big.tmp")).unwrap();
    file.write_all(b"half").unwrap();
    let reason = state(&origin, State::Waiting).await;
    assert!(reason.contains(".big.tmp is written and not closed"), "{reason}");
    fs::rename(site.tree().join(".big.tmp"), site.tree().join("big")).unwrap();
    let renamed = |view: &OriginView| view.reason.as_ref().is_some_and(|r| r.starts_with("big is written"));
    until(&origin, "the new name", renamed).await;
    assert_eq!(number_of(&origin.committer().view().borrow()), 1);
    file.write_all(b" and half").unwrap();
    drop(file);
    let second = generation(&origin, 2).await;
    assert_eq!(second.current.unwrap().generation().root.totals.files, 4);
    assert_eq!(state(&origin, State::Ready).await, "");
    origin.stop().await;

    let origin = site.serve(settle(Duration::from_millis(500))).await;
    state(&origin, State::Ready).await;
    let mut log = fs::File::create(site.tree().join("log")).unwrap();
    log.write_all(b"a line").unwrap();
    generation(&origin, 3).await;
    origin.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_that_is_over_is_not_shown_while_an_open_file_delays_publishing() {
    use std::io::Write as _;
    let site = Site::new(3);
    let max = Duration::from_secs(600);
    // Longer than any pause between making the file and writing to it, on a busy machine.
    let trigger = Trigger::Settle { quiet: Duration::from_secs(1), max, busy_after: 2 * max };
    let origin = site.serve(trigger).await;
    generation(&origin, 1).await;
    let names: Vec<_> = fs::read_dir(site.tree()).unwrap().map(|file| file.unwrap().path()).collect();
    names.iter().for_each(|path| fs::remove_file(path).unwrap());
    state(&origin, State::Held).await;
    // The tree is no longer empty.
    let mut file = fs::File::create(site.tree().join("upload")).unwrap();
    file.write_all(b"half").unwrap();
    let reason = state(&origin, State::Waiting).await;
    assert!(reason.contains("upload is written and not closed"), "{reason}");
    assert_eq!(number_of(&origin.committer().view().borrow()), 1);
    // A later scan leaves it so.
    origin.committer().preview().await.result.unwrap();
    let view = origin.committer().view().borrow().clone();
    assert_eq!((view.state, view.reason), (State::Waiting, Some(reason)));
    drop(file);
    generation(&origin, 2).await;
    origin.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_open_before_the_start_is_published_when_its_writer_closes_it() {
    use std::io::Write as _;
    let site = Site::new(3);
    let mut file = fs::File::create(site.tree().join("upload")).unwrap();
    file.write_all(b"half").unwrap();
    let max = Duration::from_secs(600);
    let trigger = Trigger::Settle { quiet: Duration::from_millis(50), max, busy_after: 2 * max };
    let origin = site.serve(trigger).await;
    let reason = state(&origin, State::Waiting).await;
    assert!(reason.contains("upload is written and not closed"), "{reason}");
    assert!(origin.committer().view().borrow().current.is_none(), "nothing is published");
    file.write_all(b" and half").unwrap();
    drop(file);
    let first = generation(&origin, 1).await.current.unwrap();
    let listed = fs::read_dir(site.tree()).unwrap();
    let bytes: u64 = listed.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(first.generation().root.totals.bytes, bytes);
    origin.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_never_rests_does_not_hold_back_the_others() {
    let site = Site::new(3);
    site.write("debug.log", "published");
    let quiet = Duration::from_millis(800);
    let trigger = Trigger::Settle { quiet, max: quiet * 2, busy_after: quiet * 3 };
    let origin = site.serve(trigger).await;
    generation(&origin, 1).await;
    let stop = CancellationToken::new();
    let (writer, log) = (stop.clone(), site.tree().join("debug.log"));
    let writing = tokio::task::spawn_blocking(move || {
        use std::io::Write as _;
        let (mut longest_gap, mut last) = (Duration::ZERO, Instant::now());
        while !writer.is_cancelled() {
            let mut log = fs::File::options().append(true).open(&log).unwrap();
            log.write_all(b"line\n").unwrap();
            longest_gap = longest_gap.max(last.elapsed());
            last = Instant::now();
            std::thread::sleep(Duration::from_millis(20));
        }
        longest_gap
    });
    let totals = |view: &OriginView| view.current.as_ref().unwrap().generation().root.totals;
    let files = async |count| {
        let view = until(&origin, &format!("{count} files"), |view| totals(view).files == count).await;
        view.current.unwrap().generation().root
    };
    site.write("first", "a deployment");
    let first = files(5).await;
    let reason = state(&origin, State::Waiting).await;
    assert!(reason.contains("debug.log") && reason.contains(".syncdignore"), "{reason}");
    // From now on others are published as if it were not there.
    site.write("second", "another deployment");
    let second = files(6).await;
    stop.cancel();
    let longest_gap = writing.await.unwrap();
    let listed = fs::read_dir(site.tree()).unwrap();
    let bytes: u64 = listed.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    let is_whole = |view: &OriginView| view.state == State::Ready && totals(view).bytes == bytes;
    until(&origin, "all of debug.log", is_whole).await;
    origin.stop().await;
    let store = Arc::new(Store::open(&site.data()).unwrap());
    let log = TreePath::from_bytes(b"debug.log").unwrap();
    let size = |root: &RootEntry| {
        let entry = crate::tree_objects::TreeObjects::Store(&store).entry_at(root, &log).unwrap().unwrap();
        match entry.kind {
            syncd_shared::Kind::File { size, .. } => size,
            other => panic!("{other:?}"),
        }
    };
    // On a machine that stalls, the log may have rested for long enough to be published.
    if longest_gap < quiet / 2 {
        assert!(reason.starts_with("debug.log keeps changing"), "{reason}");
        let published = "published".len() as u64;
        assert_eq!((size(&first), size(&second)), (published, published), "not as it was at some moment");
    }
}
