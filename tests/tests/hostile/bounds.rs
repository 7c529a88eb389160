//! Limits that count: connections of one certificate, joins from one address, and the time for which a peer
//! may not read.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rcgen::KeyPair;
use syncd_proto::v1;
use syncd_proto::v1::fetch_frame::Frame;
use syncd_proto::v1::fetch_request::Request as Ask;
use syncd_proto::v1::replication_client::ReplicationClient;
use syncd_runtime::channel::connect;
use syncd_runtime::key_file;
use syncd_runtime::tls::ClientTls;
use syncd_shared::identity::authority::certificate_from_pem;
use syncd_shared::wire::ObjectsBatch;
use syncd_shared::{ContentHash, RootHash};
use syncd_tests::{Agent, binary, wait};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::bad_agent::{BadAgent, World};

/// Limit of connections with one certificate.
const CONNECTIONS: usize = 8;
/// Limit of connections without a certificate from one address.
const JOINS: usize = 32;
/// Limit of requests being answered.
const TURNS: usize = 32;
/// A peer that takes nothing for this long is disconnected if no others wait. The limit is 15 s if they do.
const STALL_ALONE: Duration = Duration::from_secs(60);
/// Allowance for a busy machine.
const SLACK: Duration = Duration::from_secs(40);

/// Opens as many connections as allowed. Returns them, and the refusal of one more.
fn all_connections(world: &World, tls: &ClientTls, count: usize) -> (Vec<Channel>, String) {
    let address = world.origin.address();
    world.runtime.block_on(async {
        let mut open = Vec::new();
        for _ in 0..count {
            open.push(connect(address, tls.clone()).await.expect("room"));
        }
        let refused = connect(address, tls.clone()).await.map(drop).expect_err("no room");
        (open, refused.to_string())
    })
}

/// Reads the identity as a clone of the node would.
fn copied_identity(world: &World, agent: &Agent) -> ClientTls {
    let text = key_file::read(&agent.root.join("state/identity/identity")).expect("an identity");
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let field = |name: &str| json[name].as_str().unwrap_or_else(|| panic!("no {name}"));
    let certificate = certificate_from_pem(field("certificate")).expect("a certificate");
    let key = KeyPair::from_pem(field("key")).expect("a key");
    let tree_id = field("tree_id").parse().expect("an id");
    ClientTls::enrolled(tree_id, &world.authority(), &certificate, &key).expect("TLS")
}

#[test]
fn the_ninth_connection_of_a_certificate_is_refused_and_the_agents_log_says_why() {
    let mut world = World::new("bound-connections");
    let mut shared = Agent::joined(&world.scene, &world.origin, "shared");
    let tls = copied_identity(&world, &shared);
    let (open, refused) = all_connections(&world, &tls, CONNECTIONS);
    println!("one more connection: {refused}");
    assert!(refused.contains("too many connections with this certificate"), "{refused}");
    // The real agent with this certificate reports it too, and continues without help once a connection is
    // free.
    shared.start();
    let error = wait::until("the agent to say why", || shared.try_status().and_then(|status| status.error));
    assert!(error.contains("too many connections with this certificate"), "{error}");
    shared.daemon().wait_logged("too many connections with this certificate");
    world.unharmed("eight connections of one certificate");
    drop(open);
    shared.wait_live(2);
    assert!(shared.status().error.is_none());
}

#[test]
fn nodes_that_join_at_once_wait_for_their_turn_and_are_told_why_in_the_end() {
    let mut world = World::new("bound-joins");
    let token = world.origin.cli("token", &["--uses", "100"]).expect_success().only_line().to_string();
    let join = |name: &str| {
        let mut command = Command::new(binary("syncd-agent"));
        command.args(["join", world.origin.address(), "--token", &token, "--name", name, "--root"]);
        command.arg(world.scene.path(name)).stdout(Stdio::null());
        command
    };
    // More than are allowed, all from one address.
    let started = Instant::now();
    let crowd: Vec<_> = (0..2 * JOINS)
        .map(|number| join(&format!("crowd-{number}")).spawn().expect("start a join"))
        .collect();
    for mut child in crowd {
        assert!(child.wait().expect("a join ends").success(), "everybody gets a turn");
    }
    println!("{} joins at once: {:.1} s", 2 * JOINS, started.elapsed().as_secs_f64());
    // Another peer takes all places: a node gives up and gives the reason.
    let tls = world.joining();
    let (open, refused) = all_connections(&world, &tls, JOINS);
    assert!(refused.contains("too many nodes join"), "{refused}");
    let started = Instant::now();
    let late = Agent::new(&world.scene, "late");
    let outcome = late.join(world.origin.address(), &token);
    println!("without room: given up after {:.1} s: {}", started.elapsed().as_secs_f64(), outcome.stderr);
    outcome.expect_refusal(&["too many nodes join at once from this address", "join again"]);
    // A connection without a certificate lives for 30 s, so a place is free soon.
    late.join(world.origin.address(), &token).expect_success();
    println!("room again after {:.1} s", started.elapsed().as_secs_f64());
    drop(open);
    world.unharmed("joins at once");
}

/// Asks for a file larger than all windows, without reading.
async fn asks(bad: &BadAgent, file: ContentHash, root: RootHash) -> (Channel, Streaming<v1::FetchFrame>) {
    let channel = bad.channel().await.expect("connected");
    let (sender, receiver) = mpsc::channel(1);
    let batch = ObjectsBatch { files: vec![file], ..ObjectsBatch::default() };
    let request = v1::FetchRequest { request: Some(Ask::Objects(batch.to_message(root))) };
    sender.send(request).await.expect("room");
    let mut client = ReplicationClient::new(channel.clone()).max_decoding_message_size(64 << 20);
    let stream = client.fetch(ReceiverStream::new(receiver)).await.expect("answered").into_inner();
    (channel, stream)
}

/// Asks for a file under the current root. Returns whether it came, rather than being reported as missing.
async fn is_served(bad: &BadAgent, file: ContentHash, root: RootHash) -> bool {
    let (_channel, mut stream) = asks(bad, file, root).await;
    let (mut came, mut missing) = (false, false);
    while let Some(frame) = stream.message().await.expect("an answer") {
        match frame.frame.expect("a frame") {
            Frame::Stored(_) => came = true,
            Frame::End(end) => missing = end.missing == [file.as_bytes().to_vec()],
            other => panic!("{other:?}"),
        }
    }
    assert_ne!(came, missing);
    came
}

#[test]
fn content_that_was_never_committed_is_not_served_by_its_hash() {
    let mut world = World::small("bound-unsealed");
    let secret = b"a password that somebody put into the tree by mistake";
    syncd_tests::edits::write(&world.origin.tree, "secret.txt", secret);
    // Started by hand, the origin scans and publishes nothing: the store has the content.
    world.origin.stop();
    world.origin.start();
    let bad = world.enrolled("bad");
    let root =
        |world: &World| -> RootHash { world.origin.status().root.expect("a root").parse().expect("a hash") };
    let file = ContentHash::of(secret);
    let known = ContentHash::of(&std::fs::read(world.origin.tree.join("index.html")).expect("a page"));
    assert!(world.runtime.block_on(is_served(&bad, known, root(&world))));
    assert!(!world.runtime.block_on(is_served(&bad, file, root(&world))));
    assert!(!world.runtime.block_on(is_served(&bad, known, RootHash::from_bytes([7; 32]))));
    // Once committed, it is content like any other.
    world.origin.commit();
    assert!(world.runtime.block_on(is_served(&bad, file, root(&world))));
    world.unharmed("asking by hash");
}

/// Reads the remaining frames. Returns their number, and how the stream ended.
async fn rest(stream: &mut Streaming<v1::FetchFrame>) -> (usize, Result<(), Status>) {
    let mut frames = 0;
    loop {
        match stream.message().await {
            Ok(Some(_)) => frames += 1,
            Ok(None) => return (frames, Ok(())),
            Err(status) => return (frames, Err(status)),
        }
    }
}

#[test]
fn who_does_not_read_what_it_fetches_is_cut_off_sooner_where_others_wait() {
    let mut world = World::new("bound-stall");
    let noise: Vec<u8> =
        (0..2_000_000u32).flat_map(|n| *blake3::hash(&(!n).to_le_bytes()).as_bytes()).collect();
    let file = ContentHash::of(&noise);
    syncd_tests::edits::write(&world.origin.tree, "larger.bin", noise);
    world.origin.commit_live();
    let root: RootHash = world.origin.status().root.expect("a root").parse().expect("a hash");
    let bad: Vec<BadAgent> = (0..=TURNS).map(|number| world.enrolled(&format!("bad-{number}"))).collect();
    let (first, others) = bad.split_first().expect("some");
    // If no others wait, it has a minute.
    let started = Instant::now();
    let (channel, mut alone) = world.runtime.block_on(asks(first, file, root));
    world.unharmed("one that does not read");
    let almost = STALL_ALONE - Duration::from_secs(3);
    std::thread::sleep(almost.saturating_sub(started.elapsed()));
    let words = "does not read what it asked for";
    assert!(!world.origin_log().contains(words), "cut off before its time");
    wait::within(SLACK, "it to be cut off", || world.origin_log().contains(words).then_some(()));
    println!("alone: cut off after {:.1} s", started.elapsed().as_secs_f64());
    let (frames, ended) = world.runtime.block_on(rest(&mut alone));
    let status = ended.expect_err("cut off");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    println!("{frames} frames had come, then: {}", status.message());
    drop(channel);
    // All places are taken by agents that do not read, and another one waits.
    let mut held: Vec<_> = others.iter().map(|bad| world.runtime.block_on(asks(bad, file, root))).collect();
    let started = Instant::now();
    let (channel, mut waits) = world.runtime.block_on(asks(first, file, root));
    let (frames, ended) = world.runtime.block_on(async {
        let first = waits.message().await.expect("its turn").expect("a frame");
        drop(first);
        println!("where others wait: its turn came after {:.1} s", started.elapsed().as_secs_f64());
        assert!(started.elapsed() < STALL_ALONE, "sooner where others wait: {:?}", started.elapsed());
        drop(channel);
        rest(&mut waits).await
    });
    assert!(ended.is_ok() && frames > 60, "{frames} frames, {ended:?}");
    let codes: Vec<Option<Code>> = held
        .iter_mut()
        .map(|(_, stream)| world.runtime.block_on(rest(stream)).1.err().map(|status| status.code()))
        .collect();
    let cut = codes.iter().filter(|code| **code == Some(Code::DeadlineExceeded)).count();
    println!("{cut} of {TURNS} were cut off for it");
    assert!(cut > 0, "{codes:?}");
    world.unharmed("turns held by those who do not read");
}
