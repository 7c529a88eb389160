//! A whole agent, except for its replica, follows an origin over real TLS; the origin misbehaves on demand.

#![allow(clippy::unwrap_used)]

mod fake;

use std::time::{Duration, Instant};

use bytes::Bytes;
use fake::{Asked, FakeOrigin, FakeReplica, soon};
use syncd_agent::admin::{self, Reply, Request};
use syncd_agent::join::{self, JoinError, JoinOptions};
use syncd_agent::service::RunOptions;
use syncd_agent::session::worker::Failure;
use syncd_proto::v1;
use syncd_proto::v1::RetryClass;
use syncd_proto::v1::agent_message::Message as FromAgent;
use syncd_proto::v1::origin_message::Message as ToAgent;
use syncd_runtime::local_socket;
use syncd_shared::AgentState;
use syncd_shared::identity::signing;
use syncd_shared::text::error_chain;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test(flavor = "multi_thread")]
async fn an_announced_generation_goes_live_and_is_reported() {
    let scratch = tempfile::tempdir().unwrap();
    let mut origin = FakeOrigin::start().await;
    let replica = FakeReplica::default();
    let agent = origin.agent(scratch.path(), &replica).await;
    let mut conversation = origin.welcomed().await;
    let hello = conversation.hello.clone().unwrap();
    assert_eq!((hello.protocol_min, hello.protocol_max), (1, 1));
    assert!(hello.live.is_none() && !hello.boot_id.is_empty());

    conversation.announce(&origin.generation(1), true).await;
    conversation.hear_activated(1).await;
    let mut status = agent.status();
    let status = soon("status", status.wait_for(|s| s.generation == Some(1))).await.unwrap().clone();
    assert_eq!((status.name.as_str(), status.state, status.connected), ("web1", AgentState::Live, true));
    assert!(status.last_contact.is_some() && status.error.is_none());
    assert!(agent.http_address().is_some());
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_cut_the_agent_comes_back_and_reports_what_is_live_without_staging_again() {
    let scratch = tempfile::tempdir().unwrap();
    let mut origin = FakeOrigin::start().await;
    let replica = FakeReplica::default();
    let agent = origin.agent(scratch.path(), &replica).await;
    let first = origin.generation(1);
    let mut conversation = origin.welcomed().await;
    conversation.announce(&first, true).await;
    conversation.hear_activated(1).await;

    origin.cut();
    let mut conversation = origin.welcomed().await;
    let live = conversation.hello.clone().unwrap().live.unwrap();
    assert_eq!(live.record, first.record());
    conversation.announce(&first, true).await;
    conversation.hear_activated(1).await;
    assert_eq!(replica.lock().staged, [1]);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_announcement_wins_over_one_that_is_being_staged() {
    let scratch = tempfile::tempdir().unwrap();
    let mut origin = FakeOrigin::start().await;
    let replica = FakeReplica::default();
    replica.lock().stuck.push(1);
    let agent = origin.agent(scratch.path(), &replica).await;
    let mut conversation = origin.welcomed().await;
    conversation.announce(&origin.generation(1), true).await;
    let mut status = agent.status();
    soon("fetching", status.wait_for(|s| s.state == AgentState::Fetching)).await.unwrap();
    for number in 2..=4 {
        conversation.announce(&origin.generation(number), true).await;
    }
    conversation.hear_activated_at_last(4).await;
    let staged = replica.lock().staged.clone();
    assert_eq!((staged.first(), staged.last()), (Some(&1), Some(&4)));
    assert!(!replica.lock().activated.contains(&1));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_that_does_not_hold_is_refused_and_never_staged() {
    let scratch = tempfile::tempdir().unwrap();
    let mut origin = FakeOrigin::start().await;
    let replica = FakeReplica::default();
    let agent = origin.agent(scratch.path(), &replica).await;
    let mut conversation = origin.welcomed().await;
    conversation.announce(&origin.generation(5), true).await;
    conversation.hear_activated(5).await;

    let good = origin.generation(6);
    let mut signature = good.signature().to_vec();
    signature[0] ^= 1;
    let forged =
        v1::SignedGeneration { record: Bytes::copy_from_slice(good.record()), signature: signature.into() };
    conversation.announce_message(forged, true).await;
    let failed = conversation.hear_failed().await;
    assert_eq!(failed.retry(), RetryClass::Operator);
    assert!(failed.reason.contains("not signed"), "{}", failed.reason);

    for (bad, part) in [
        (origin.generation(4), "older than"),
        (origin.generation_with_mode(5, 0o555), "has two roots"),
        (origin.generation(1_000_000_001), "not one that the trust document allows"),
    ] {
        conversation.announce(&bad, true).await;
        let reason = conversation.hear_failed().await.reason;
        assert!(reason.contains(part), "{reason}");
    }
    let status = agent.status().borrow().clone();
    assert_eq!((status.generation, status.state), (Some(5), AgentState::Failed));
    conversation.announce(&good, true).await;
    conversation.hear_activated(6).await;
    assert_eq!(replica.lock().staged, [5, 6]);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_barrier_holds_until_activate() {
    let scratch = tempfile::tempdir().unwrap();
    let mut origin = FakeOrigin::start().await;
    let replica = FakeReplica::default();
    let agent = origin.agent(scratch.path(), &replica).await;
    let mut conversation = origin.welcomed().await;
    let generation = origin.generation(1);
    conversation.announce(&generation, false).await;
    assert!(matches!(conversation.hear().await, Some(FromAgent::Staged(staged)) if staged.generation == 1));
    assert_eq!(agent.status().borrow().generation, None);

    // When the generation is announced again after a reconnect, the agent does not stage it again.
    origin.cut();
    let mut conversation = origin.welcomed().await;
    conversation.announce(&generation, false).await;
    assert!(matches!(conversation.hear().await, Some(FromAgent::Staged(_))));
    let root = Bytes::copy_from_slice(generation.root_hash().as_bytes());
    conversation.say(ToAgent::Activate(v1::Activate { generation: 1, root, flipped: false })).await;
    conversation.hear_activated(1).await;
    assert_eq!(replica.lock().staged, [1]);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_failure_is_reported_and_tried_again() {
    let scratch = tempfile::tempdir().unwrap();
    let mut origin = FakeOrigin::start().await;
    let replica = FakeReplica::default();
    let reason = "no space left".to_owned();
    replica.lock().failures.push_back(Failure { retry: Some(RetryClass::Retry), reason: reason.clone() });
    let agent = origin.agent(scratch.path(), &replica).await;
    let mut conversation = origin.welcomed().await;
    conversation.announce(&origin.generation(1), true).await;
    let failed = conversation.hear_failed().await;
    assert_eq!((failed.generation, failed.retry(), failed.reason), (1, RetryClass::Retry, reason.clone()));
    assert_eq!(agent.status().borrow().error, Some(reason));
    conversation.hear_activated(1).await;
    assert_eq!(agent.status().borrow().error, None);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_go_out_while_staging_is_stuck_and_a_silent_origin_is_left() {
    let scratch = tempfile::tempdir().unwrap();
    let mut origin = FakeOrigin::start().await;
    let replica = FakeReplica::default();
    replica.lock().stuck.push(1);
    let agent = origin.agent(scratch.path(), &replica).await;
    let mut conversation = origin.welcomed().await;
    conversation.announce(&origin.generation(1), true).await;
    let mut unanswered = 0;
    while conversation.hear_heartbeat().await {
        unanswered += 1;
    }
    assert!((2..=4).contains(&unanswered), "{unanswered}");
    origin.welcomed().await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_of_another_version_or_out_of_order_is_left_with_a_reason() {
    let scratch = tempfile::tempdir().unwrap();
    let mut origin = FakeOrigin::start().await;
    let replica = FakeReplica::default();
    let agent = origin.agent(scratch.path(), &replica).await;
    let mut status = agent.status();
    let conversation = origin.conversation().await;
    conversation.say(ToAgent::Welcome(v1::Welcome { protocol: 7, ..Default::default() })).await;
    let reason = |part: &'static str| {
        move |s: &syncd_agent::status::AgentStatus| s.error.as_ref().is_some_and(|e| e.contains(part))
    };
    soon("version", status.wait_for(reason("protocol version 7"))).await.unwrap();
    let conversation = origin.conversation().await;
    conversation.announce(&origin.generation(1), true).await;
    soon("order", status.wait_for(reason("out of order"))).await.unwrap();
    assert!(replica.lock().staged.is_empty());
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_signing_key_is_followed_and_outlasts_a_restart() {
    let scratch = tempfile::tempdir().unwrap();
    let mut origin = FakeOrigin::start().await;
    let replica = FakeReplica::default();
    let agent = origin.agent(scratch.path(), &replica).await;
    let new_key = signing::generate().unwrap();
    let mut document = origin.trust.document().clone();
    (document.number, document.signing_key) = (2, new_key.verifying_key());
    let trust = document.sign(&origin.root_key.key).unwrap();
    let old_key = std::mem::replace(&mut origin.signing_key, new_key);
    let mut conversation = origin.conversation().await;
    let trust_document = Bytes::copy_from_slice(trust.bytes());
    conversation
        .say(ToAgent::Welcome(v1::Welcome { protocol: 1, trust_document, ..Default::default() }))
        .await;
    conversation.announce(&origin.generation(1), true).await;
    assert!(matches!(conversation.hear().await, Some(FromAgent::Hello(_))));
    conversation.hear_activated(1).await;
    // Nothing new is accepted from the superseded key.
    let new_key = std::mem::replace(&mut origin.signing_key, old_key);
    conversation.announce(&origin.generation(2), true).await;
    let mut status = agent.status();
    let refused = |s: &syncd_agent::status::AgentStatus| {
        s.error.as_ref().is_some_and(|e| e.contains("signing key of the newest trust document"))
    };
    soon("the refusal", status.wait_for(refused)).await.unwrap();
    agent.stop().await;

    let identity = syncd_agent::identity::AgentIdentity::load(scratch.path()).unwrap();
    assert_eq!(*identity.trust().document, trust);
    assert_eq!(identity.signing_keys().last(), Some(&new_key.verifying_key()));
    assert_eq!(replica.lock().staged.len(), 1, "only what the new key signed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_breaks_off_resumes_at_the_item_that_is_due() {
    let scratch = tempfile::tempdir().unwrap();
    let mut origin = FakeOrigin::start().await;
    let replica = FakeReplica::default();
    replica.lock().fetches = true;
    let content =
        v1::LocalContent { file: Bytes::copy_from_slice(&[1; 32]), source_path: Bytes::from_static(b"a") };
    let frame = |item, frame| v1::FetchFrame { item, frame: Some(frame) };
    let local = |item| frame(item, v1::fetch_frame::Frame::Local(content.clone()));
    let end = |item| frame(item, v1::fetch_frame::Frame::End(v1::BatchEnd::default()));
    origin.answer((0..7).map(local).collect(), Some(tonic::Status::unavailable("going away")));
    origin.answer(vec![local(7), local(8), end(9)], None);
    let agent = origin.agent(scratch.path(), &replica).await;
    let mut conversation = origin.welcomed().await;
    conversation.announce(&origin.generation(1), true).await;
    conversation.hear_activated(1).await;
    assert_eq!(replica.lock().frames, 10);
    let asked = [Asked::Update { first_item: 0 }, Asked::Update { first_item: 7 }];
    assert_eq!(*origin.asked.lock().unwrap(), asked);

    // Items out of order are an error. So is a stream that ends too early twice.
    origin.answer(vec![local(1)], None);
    conversation.announce(&origin.generation(2), true).await;
    let failed = conversation.hear_failed().await;
    assert!(failed.reason.contains("item 1 came where item 0 was due"), "{}", failed.reason);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_run_around_the_activation() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out");
    let mut origin = FakeOrigin::start().await;
    let replica = FakeReplica::default();
    let root = scratch.path().join("root");
    let identity = origin.join(&root).await;
    let refuse = scratch.path().join("refuse");
    let broken = scratch.path().join("broken");
    std::fs::write(&refuse, "").unwrap();
    std::fs::write(&broken, "").unwrap();
    let options = RunOptions {
        before_activate: Some(format!("test ! -e {} || {{ echo not now >&2; exit 1; }}", refuse.display())),
        on_activate: Some(format!(
            "cat > {0}; echo $SYNCD_GENERATION $SYNCD_LABEL >> {0}; test ! -e {1} || {{ echo no reload >&2; exit 1; }}",
            out.display(),
            broken.display()
        )),
        ..RunOptions::new(root)
    };
    let agent = origin.agent_with(options, identity, &replica).await;
    let mut conversation = origin.welcomed().await;
    conversation.announce(&origin.generation(1), true).await;
    loop {
        match conversation.hear().await {
            Some(FromAgent::Staged(_)) => {}
            Some(FromAgent::Failed(failed)) => {
                assert!(
                    failed.reason.ends_with("before-activate hook failed: exit status: 1: not now"),
                    "{}",
                    failed.reason
                );
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(replica.lock().activated.is_empty());
    std::fs::remove_file(refuse).unwrap();
    conversation.hear_switched(1).await;
    let failed = conversation.hear_hook(v1::HookOutcome::Failed).await;
    assert_eq!((failed.generation, failed.output.as_str()), (1, "exit status: 1: no reload"));
    std::fs::remove_file(broken).unwrap();
    let live = conversation.hear_hook(v1::HookOutcome::Ok).await;
    assert_eq!((live.generation, live.succeeded), (1, 1));
    assert!(live.attempt > failed.attempt);
    assert_eq!(replica.lock().staged, [1], "what the hook declined stays staged");
    let deadline = Instant::now() + fake::PATIENCE;
    while std::fs::read_to_string(&out).unwrap_or_default() != "index.html\n1 release 1\n" {
        assert!(Instant::now() < deadline, "the hook did not run");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_and_monitors_are_answered() {
    let scratch = tempfile::tempdir().unwrap();
    let mut origin = FakeOrigin::start().await;
    let replica = FakeReplica::default();
    let agent = origin.agent(scratch.path(), &replica).await;
    let health = async || {
        let mut stream = tokio::net::TcpStream::connect(agent.http_address().unwrap()).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    assert!(health().await.starts_with("HTTP/1.0 503"));
    let mut conversation = origin.welcomed().await;
    conversation.announce(&origin.generation(1), true).await;
    conversation.hear_activated(1).await;
    assert!(health().await.ends_with("ok generation 1, connected\n"));

    let socket = admin::socket_path(scratch.path());
    let reply: Reply = local_socket::request_one(&socket, &Request::Status).await.unwrap();
    assert!(matches!(reply, Reply::Status(status) if status.generation == Some(1)));
    let mut replies = local_socket::request::<_, Reply>(&socket, &Request::Verify).await.unwrap();
    let verified = loop {
        match soon("verified", replies.next()).await.unwrap().unwrap() {
            Reply::Progress(_) => {}
            Reply::Verified(verified) => break verified,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((verified.files, verified.is_whole()), (3, true));
    agent.stop().await;
    assert!(!socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_certificate_is_told_in_the_status_and_the_replica_stays() {
    let scratch = tempfile::tempdir().unwrap();
    let mut origin = FakeOrigin::start().await;
    let replica = FakeReplica::default();
    let agent = origin.agent(scratch.path(), &replica).await;
    let mut conversation = origin.welcomed().await;
    conversation.announce(&origin.generation(1), true).await;
    conversation.hear_activated(1).await;
    origin.admit(false);
    origin.cut();
    let mut status = agent.status();
    let told =
        status.wait_for(|s| s.error.as_ref().is_some_and(|e| e.contains("join again with a new token")));
    assert_eq!(soon("told", told).await.unwrap().generation, Some(1));
    // A new token makes it an agent again, and the replica is not touched.
    origin.admit(true);
    origin.welcomed().await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spent_token_and_another_tree_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let origin = FakeOrigin::start().await;
    let options = |token| JoinOptions {
        address: origin.address.to_string(),
        root: scratch.path().join("root"),
        token,
        name: Some("web1".parse().unwrap()),
        rename: false,
        group: None,
        adopt: None,
    };
    let mut spent = origin.token.clone();
    spent.secret = [0; 16];
    let error = join::join(options(spent)).await.unwrap_err();
    assert!(error_chain(&error).contains("spent or expired"), "{error}");
    assert!(!scratch.path().join("root").exists(), "a refused join leaves nothing that was not there");
    std::fs::create_dir(scratch.path().join("root")).unwrap();
    let mut spent = origin.token.clone();
    spent.secret = [0; 16];
    assert!(matches!(join::join(options(spent)).await, Err(JoinError::Refused(_))));
    assert_eq!(std::fs::read_dir(scratch.path().join("root")).unwrap().count(), 0);
    let mut foreign = origin.token.clone();
    foreign.root = syncd_shared::identity::RootFingerprint::from_bytes([0; 32]);
    assert!(matches!(join::join(options(foreign)).await, Err(JoinError::OtherOrigin { .. })));
    let mut newer = origin.token.clone();
    newer.trust += 1;
    let older = join::join(options(newer)).await.unwrap_err();
    assert!(error_chain(&older).contains("trust document 1 is older than 2"), "{older}");

    let joined = join::join(options(origin.token.clone())).await.unwrap().identity;
    assert_eq!(joined.origin_address(), origin.address.to_string());
    join::join(options(origin.token.clone())).await.unwrap();
    let mut other = origin.token.clone();
    other.tree_id = syncd_shared::TreeId::from_bytes([1; 16]);
    assert!(matches!(join::join(options(other)).await, Err(JoinError::OtherTree { .. })));
}
