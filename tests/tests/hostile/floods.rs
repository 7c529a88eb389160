//! Floods and slow connections: endless connections, streams, headers, resets and frames, from strangers and
//! from a malicious agent. The origin's memory is bounded, attackers lose their connection, and an honest
//! agent updates in normal time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use syncd_proto::v1;
use syncd_proto::v1::fetch_request::Request as Ask;
use syncd_proto::v1::replication_client::ReplicationClient;
use syncd_shared::wire::ObjectsBatch;
use syncd_shared::{ContentHash, RootHash};
use syncd_tests::Agent;
use syncd_tests::oracle::assert_same;
use tokio::net::TcpSocket;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::bad_agent::{BadAgent, World};
use super::raw_http2::{
    self, CONTINUATION, Dialler, END_HEADERS, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    call, frame, head,
};

#[test]
fn floods_leave_the_rest_of_the_fleet_alone() {
    let mut world = World::new("hostile-floods");
    let address: std::net::SocketAddr = world.origin.address().parse().expect("an address");
    // Connections from another address that send nothing, or noise.
    let silent = world.runtime.block_on(async {
        let mut open = Vec::new();
        for number in 0..1_500u32 {
            let socket = TcpSocket::new_v4().expect("a socket");
            socket.bind("127.0.0.2:0".parse().expect("an address")).expect("bind");
            let Ok(tcp) = socket.connect(address).await else { continue };
            if number % 3 == 0 {
                let _ = tcp.try_write(&blake3::hash(&number.to_le_bytes()).as_bytes()[..]);
            }
            open.push(tcp);
        }
        open
    });
    world.unharmed("1,500 connections without a handshake");
    drop(silent);
    // One agent dials endlessly.
    let bad = world.enrolled("bad");
    let channels = world.runtime.block_on(async {
        let mut open = Vec::new();
        for _ in 0..60 {
            open.extend(bad.channel().await);
        }
        open
    });
    world.unharmed("60 connections of one agent");
    drop(channels);
    // Headers beyond the limit, and streams that are opened and reset.
    world.runtime.block_on(async {
        if let Ok(channel) = bad.channel().await {
            for _ in 0..20 {
                let mut request = tonic::Request::new(tokio_stream::empty());
                for n in 0..200 {
                    let key = tonic::metadata::MetadataKey::from_bytes(format!("x-bomb-{n}").as_bytes())
                        .expect("a key");
                    request.metadata_mut().insert(key, "x".repeat(1000).parse().expect("a value"));
                }
                let refused = ReplicationClient::new(channel.clone()).subscribe(request).await;
                assert!(refused.is_err(), "200 kB of headers");
            }
        }
    });
    world.unharmed("header bombs");
    world.runtime.block_on(async {
        for _ in 0..5 {
            let Ok(channel) = bad.channel().await else { continue };
            for _ in 0..1_000 {
                let mut client = ReplicationClient::new(channel.clone());
                let fetch = client.fetch(tokio_stream::pending());
                let _ = tokio::time::timeout(Duration::from_micros(200), fetch).await;
            }
        }
    });
    world.unharmed("5,000 streams opened to be reset");
    // Enrolled agents that all fetch at once: some ask and do not read, some do not even ask.
    let many: Vec<BadAgent> = (0..40).map(|number| world.enrolled(&format!("bad-{number}"))).collect();
    let large = ContentHash::of(&std::fs::read(world.origin.tree.join("large.bin")).expect("read"));
    let status = world.origin.status();
    let root: RootHash = status.root.expect("a root").parse().expect("a hash");
    let held = world.runtime.block_on(async {
        let mut held = Vec::new();
        for (number, bad) in many.iter().enumerate() {
            let Ok(channel) = bad.channel().await else { continue };
            for _ in 0..6 {
                let (sender, receiver) = mpsc::channel(1);
                if number % 2 == 0 {
                    let batch = ObjectsBatch { files: vec![large], ..ObjectsBatch::default() };
                    let request = v1::FetchRequest { request: Some(Ask::Objects(batch.to_message(root))) };
                    let _ = sender.send(request).await;
                }
                let mut client = ReplicationClient::new(channel.clone()).max_decoding_message_size(64 << 20);
                let opened = client.fetch(ReceiverStream::new(receiver));
                if let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_secs(2), opened).await {
                    held.push((stream, sender));
                }
            }
        }
        held
    });
    println!("{} fetch streams are held", held.len());
    world.unharmed("fetch streams that are idle or not read");
    let started = Instant::now();
    let newcomer = Agent::started(&world.scene, &world.origin, "newcomer");
    newcomer.wait_live(2);
    println!("a first sync meanwhile took {:.1} s", started.elapsed().as_secs_f64());
    assert_same(&world.origin.tree, &newcomer.live());
    world.unharmed("a first sync beside them");
    drop(held);
}

/// Duration of the floods. An attacker that loses its connection dials again.
const FLOOD: Duration = Duration::from_secs(15);
/// Allowance for a busy machine. A connection without a limit lives as long as the attack.
const SLACK: Duration = Duration::from_secs(30);
/// Longest life of a connection without a preface.
const PREFACE_LIMIT: Duration = Duration::from_secs(10).saturating_add(SLACK);
/// Longest life of a connection that answers no ping: the keepalive takes 15 s and 10 s.
const PING_LIMIT: Duration = Duration::from_secs(25).saturating_add(SLACK);
/// Longest life of a connection that reads nothing: a minute, plus one while buffers fill. A stranger has 30
/// s for everything.
const STALL_LIMIT: Duration = Duration::from_secs(2 * 60).saturating_add(SLACK);
/// Longest life of a connection that exceeds a limit. The origin closes it at once.
const BOUND_LIMIT: Duration = SLACK;

/// Data to send, and the longest life of its connection.
struct Attack {
    name: &'static str,
    first: fn() -> Vec<u8>,
    /// Sent repeatedly, with a number that counts from 0.
    then: fn(u32) -> Vec<u8>,
    pause: Duration,
    reads: bool,
    limit: Duration,
}

const fn slowly(
    name: &'static str,
    first: fn() -> Vec<u8>,
    then: fn(u32) -> Vec<u8>,
    limit: Duration,
) -> Attack {
    Attack { name, first, then, pause: Duration::from_secs(2), reads: true, limit }
}

const fn flood(name: &'static str, then: fn(u32) -> Vec<u8>, limit: Duration) -> Attack {
    Attack { name, first: raw_http2::hello, then, pause: Duration::ZERO, reads: true, limit }
}

const SLOW: [Attack; 4] = [
    slowly("silence", Vec::new, |_| Vec::new(), PREFACE_LIMIT),
    slowly("a preface byte by byte", Vec::new, |n| PREFACE[n as usize % 24..][..1].to_vec(), PREFACE_LIMIT),
    slowly(
        "a frame of headers byte by byte",
        || [raw_http2::hello(), head(16_000, HEADERS, END_HEADERS, 1), call(FETCH)].concat(),
        |_| vec![0],
        PING_LIMIT,
    ),
    slowly(
        "headers that never end",
        || [raw_http2::hello(), frame(HEADERS, 0, 1, &call(FETCH))].concat(),
        |_| frame(CONTINUATION, 0, 1, &[0x00, 1, b'x', 1, b'y']),
        PING_LIMIT,
    ),
];

const FLOODS: [Attack; 6] = [
    flood(
        "continuation frames of 16 KiB",
        |n| match n {
            0 => frame(HEADERS, 0, 1, &call(FETCH)),
            _ => frame(CONTINUATION, 0, 1, &[0x00, 1, b'x', 1, b'y'].repeat(3_200)),
        },
        BOUND_LIMIT,
    ),
    flood(
        "empty continuation frames",
        |n| match n {
            0 => frame(HEADERS, 0, 1, &call(FETCH)),
            _ => frame(CONTINUATION, 0, 1, &[]).repeat(500),
        },
        BOUND_LIMIT,
    ),
    flood(
        "calls that are reset at once",
        |n| {
            let pair = |i| {
                let stream = 2 * (100 * n + i) + 1;
                let call = frame(HEADERS, END_HEADERS, stream, &call(FETCH));
                [call, frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())].concat()
            };
            (0..100).flat_map(pair).collect()
        },
        BOUND_LIMIT,
    ),
    flood(
        "calls that the origin must reset",
        |n| {
            let pair = |i| {
                let stream = 2 * (20 * n + i) + 1;
                let call = frame(HEADERS, END_HEADERS, stream, &call(FETCH));
                [call, frame(WINDOW_UPDATE, 0, stream, &[0; 4])].concat()
            };
            (0..20).flat_map(pair).collect()
        },
        BOUND_LIMIT,
    ),
    Attack {
        reads: false,
        ..flood("pings whose answers are not read", |_| frame(PING, 0, 0, &[0; 8]).repeat(500), STALL_LIMIT)
    },
    Attack {
        reads: false,
        ..flood(
            "settings whose answers are not read",
            |_| frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9]).repeat(500),
            STALL_LIMIT,
        )
    },
];

const FETCH: &str = "/syncd.v1.Replication/Fetch";

/// Makes one connection after another until `until`. Returns their number and the longest life; `None`: one
/// exceeded its limit.
async fn run(attack: &'static Attack, dialler: Arc<Dialler>, until: Instant) -> (u32, Option<Duration>) {
    let (mut connections, mut longest) = (0, Duration::ZERO);
    loop {
        if let Ok(wire) = dialler.dial(attack.reads).await {
            let mut sent = 0;
            let next = || {
                sent += 1;
                Some(if sent == 1 { (attack.first)() } else { (attack.then)(sent - 2) })
            };
            connections += 1;
            match wire.attack(attack.pause, attack.limit, attack.reads, next).await {
                Some(lasted) => longest = longest.max(lasted),
                None => return (connections, None),
            }
        }
        if Instant::now() >= until {
            return (connections, Some(longest));
        }
    }
}

/// Runs each attack as a stranger and as an agent with a certificate, all at once, while an honest agent
/// updates.
fn all_at_once(world: &mut World, attacks: &'static [Attack], lasting: Duration) {
    let bad = world.enrolled("bad");
    let papers = bad.papers.expect("it joined");
    let until = Instant::now() + lasting;
    let mut running = Vec::new();
    for is_stranger in [true, false] {
        let dialler = Arc::new(Dialler::new(&bad.address, &papers, is_stranger));
        for attack in attacks {
            let who = if is_stranger { "a stranger" } else { "an agent" };
            running.push((attack, who, world.runtime.spawn(run(attack, dialler.clone(), until))));
        }
    }
    while running.iter().any(|(.., task)| !task.is_finished()) {
        world.unharmed("meanwhile");
        std::thread::sleep(Duration::from_secs(1));
    }
    for (attack, who, task) in running {
        let (connections, longest) = world.runtime.block_on(task).expect("no panic");
        println!("{} by {who}: {connections} connections, the longest {longest:.1?}", attack.name);
        assert!(connections > 0, "{} by {who}: never connected", attack.name);
        assert!(longest.is_some(), "{} by {who}: a connection outlived {:?}", attack.name, attack.limit);
    }
    world.unharmed("afterwards");
}

#[test]
fn who_speaks_slowly_inside_tls_loses_the_connection() {
    let mut world = World::new("hostile-slow");
    all_at_once(&mut world, &SLOW, Duration::ZERO);
}

#[test]
fn frames_without_end_lose_the_connection_and_cost_no_memory() {
    let mut world = World::new("hostile-frames");
    all_at_once(&mut world, &FLOODS, FLOOD);
}
