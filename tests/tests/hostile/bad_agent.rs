//! The real origin against malicious peers: strangers, and enrolled agents that have turned malicious.
//! Meanwhile an honest agent updates in normal time.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message as _;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use syncd_proto::v1;
use syncd_proto::v1::enrolment_client::EnrolmentClient;
use syncd_proto::v1::fetch_request::Request as Ask;
use syncd_proto::v1::replication_client::ReplicationClient;
use syncd_runtime::channel::connect;
use syncd_runtime::tls::ClientTls;
use syncd_shared::identity::authority::{Authority, certificate_request, generate_key};
use syncd_shared::identity::{AgentName, JoinToken, SignedTrust};
use syncd_shared::wire::ObjectsBatch;
use syncd_shared::{ContentHash, RootHash, TreeId};
use syncd_tests::edits::{small_site, write};
use syncd_tests::{Agent, Origin, Scene};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::fake_origin::peak_mib;

/// Limit of the origin's memory during an attack.
pub const MEMORY_MAX_MIB: u64 = 256;
/// Time limit for a small update, on a busy machine with a debug build. An update that waits for a stalled
/// connection takes a minute.
pub const NORMAL: Duration = Duration::from_secs(40);

pub struct World {
    pub runtime: Runtime,
    pub origin: Origin,
    pub agent: Agent,
    pub scene: Scene,
    changes: u32,
}

impl World {
    /// A world with one large file and many small ones.
    pub fn new(name: &str) -> Self {
        let scene = Scene::new(name);
        let tree = scene.path("tree");
        small_site(&tree, 60);
        let noise: Vec<u8> =
            (0..600_000u32).flat_map(|n| *blake3::hash(&n.to_le_bytes()).as_bytes()).collect();
        write(&tree, "large.bin", noise);
        Self::of(scene)
    }

    /// A world with only small files.
    pub fn small(name: &str) -> Self {
        let scene = Scene::new(name);
        small_site(&scene.path("tree"), 60);
        Self::of(scene)
    }

    fn of(scene: Scene) -> Self {
        let tree = scene.path("tree");
        let origin = Origin::started(&scene, &tree);
        origin.commit();
        let agent = Agent::started(&scene, &origin, "honest");
        agent.wait_live(1);
        Self { runtime: Runtime::new().expect("a runtime"), origin, agent, scene, changes: 0 }
    }

    pub fn token(&self) -> JoinToken {
        self.origin.token().parse().expect("a token")
    }

    pub fn origin_log(&mut self) -> String {
        self.origin.daemon().log()
    }

    /// Asserts that the fleet works normally, and that the origin's memory is bounded.
    #[track_caller]
    pub fn unharmed(&mut self, attack: &str) {
        self.changes += 1;
        write(&self.origin.tree, "index.html", format!("after {attack} {}", self.changes));
        let started = Instant::now();
        let number = self.origin.commit_live();
        let took = started.elapsed();
        assert!(took < NORMAL, "{attack}: an update took {took:?}");
        assert_eq!(self.agent.live_generation(), Some(number));
        let peak = peak_mib(self.origin.daemon().pid());
        println!("{attack}: an honest update took {} ms, peak {peak} MiB", took.as_millis());
        assert!(peak < MEMORY_MAX_MIB, "{attack}: {peak} MiB");
    }

    fn join(
        &self,
        token: &JoinToken,
        name: impl AsRef<[u8]>,
        request: &[u8],
    ) -> Result<v1::JoinResponse, Status> {
        let authority = self.trust(token)?.document().authority.clone();
        let tls = ClientTls::joining(token.tree_id, &authority).expect("a TLS configuration");
        self.runtime.block_on(async {
            let channel =
                connect(self.origin.address(), tls).await.map_err(|e| Status::unavailable(e.to_string()))?;
            let request = v1::JoinRequest {
                tree_id: Bytes::copy_from_slice(token.tree_id.as_bytes()),
                secret: Bytes::copy_from_slice(&token.secret),
                name: Bytes::copy_from_slice(name.as_ref()),
                certificate_request: Bytes::copy_from_slice(request),
                group: String::new(),
            };
            Ok(EnrolmentClient::new(channel).join(request).await?.into_inner())
        })
    }

    /// The origin's trust document, as anybody gets it.
    fn trust(&self, token: &JoinToken) -> Result<SignedTrust, Status> {
        self.runtime.block_on(async {
            let tls = ClientTls::untrusting(token.tree_id).expect("a TLS configuration");
            let channel =
                connect(self.origin.address(), tls).await.map_err(|e| Status::unavailable(e.to_string()))?;
            let request = v1::TrustRequest { tree_id: Bytes::copy_from_slice(token.tree_id.as_bytes()) };
            let answer = EnrolmentClient::new(channel).trust(request).await?.into_inner();
            token.check(&answer.document).map_err(|error| Status::data_loss(error.to_string()))
        })
    }

    /// The authority that the origin's trust document names.
    pub fn authority(&self) -> CertificateDer<'static> {
        let trust = self.trust(&self.token()).expect("a trust document");
        trust.document().authority.clone()
    }

    /// A client without a certificate that trusts the origin's authority.
    pub fn joining(&self) -> ClientTls {
        let token = self.token();
        let trust = self.trust(&token).expect("a trust document");
        ClientTls::joining(token.tree_id, &trust.document().authority).expect("TLS")
    }

    /// Enrols an agent properly; it turns malicious afterwards.
    pub fn enrolled(&self, name: &str) -> BadAgent {
        let token = self.token();
        let key = generate_key().expect("a key");
        let answer =
            self.join(&token, name, &certificate_request(&key).expect("a request")).expect("it joins");
        let authority = self.trust(&token).expect("a trust document").document().authority.clone();
        let certificate = CertificateDer::from(answer.certificate.to_vec());
        let tls = ClientTls::enrolled(token.tree_id, &authority, &certificate, &key).expect("TLS");
        let papers = Papers { tree_id: token.tree_id, authority, certificate, key };
        BadAgent { tls, address: self.origin.address().to_owned(), papers: Some(papers) }
    }

    fn code(&self, result: Result<v1::JoinResponse, Status>) -> Code {
        result.map_or_else(|status| status.code(), |_| Code::Ok)
    }
}

pub struct BadAgent {
    tls: ClientTls,
    pub address: String,
    pub papers: Option<Papers>,
}

/// Documents that an agent gets when it joins.
pub struct Papers {
    pub tree_id: TreeId,
    pub authority: CertificateDer<'static>,
    pub certificate: CertificateDer<'static>,
    pub key: KeyPair,
}

impl BadAgent {
    pub async fn channel(&self) -> Result<Channel, String> {
        connect(&self.address, self.tls.clone()).await.map_err(|error| format!("{error:?}"))
    }

    /// Opens a control stream and waits for its welcome. Returns both directions, which keep it open.
    async fn subscribed(&self) -> (mpsc::Sender<v1::AgentMessage>, Streaming<v1::OriginMessage>) {
        self.subscribed_as("bad", "").await
    }

    /// The same, with a chosen boot id and version.
    pub async fn subscribed_as(
        &self,
        boot_id: &str,
        version: &str,
    ) -> (mpsc::Sender<v1::AgentMessage>, Streaming<v1::OriginMessage>) {
        let (sender, receiver) = mpsc::channel(64);
        let hello = v1::Hello {
            protocol_min: 1,
            protocol_max: 1,
            boot_id: boot_id.into(),
            agent_version: version.into(),
            ..Default::default()
        };
        sender.send(agent_message(v1::agent_message::Message::Hello(hello))).await.expect("room");
        let mut client = ReplicationClient::new(self.channel().await.expect("connected"));
        let mut stream =
            client.subscribe(ReceiverStream::new(receiver)).await.expect("subscribed").into_inner();
        stream.message().await.expect("welcome");
        (sender, stream)
    }
}

pub fn agent_message(message: v1::agent_message::Message) -> v1::AgentMessage {
    v1::AgentMessage { message: Some(message) }
}

#[test]
fn joining_gives_nothing_away() {
    let mut world = World::new("hostile-joins");
    let key = generate_key().expect("a key");
    let request = certificate_request(&key).expect("a request");
    let token = world.token();
    let mut tried = 0;
    for guess in 0..50u8 {
        let guessed = JoinToken { secret: [guess; 16], ..token.clone() };
        assert_eq!(world.code(world.join(&guessed, "guesser", &request)), Code::PermissionDenied);
        tried += 1;
    }
    let elsewhere = JoinToken { tree_id: TreeId::from_bytes([1; 16]), ..token.clone() };
    assert_eq!(
        world.code(world.join(&elsewhere, "web2", &request)),
        Code::FailedPrecondition,
        "another tree"
    );
    assert_eq!(world.code(world.join(&token, "honest", &request)), Code::AlreadyExists, "a stolen name");
    let long = "n".repeat(64);
    for name in ["", "..", "../x", "a/b", "a b", "a\nb", "a\0b", "\u{202e}gpj", &long, "*", "CN=x"] {
        assert_eq!(world.code(world.join(&token, name, &request)), Code::InvalidArgument, "{name:?}");
        tried += 1;
    }
    assert_eq!(world.code(world.join(&token, b"web\xff", &request)), Code::InvalidArgument, "no text");
    for request in [&b""[..], b"\x30\x82\xff\xff", &request[..request.len() - 1], &[0x30; 20_000]] {
        let code = world.code(world.join(&token, "web2", request));
        assert!(matches!(code, Code::InvalidArgument | Code::OutOfRange), "{code:?}");
        tried += 1;
    }
    // A request for an authority that may serve and sign, under other names.
    let greedy = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec!["origin.example".to_owned()]).expect("parameters");
    params.distinguished_name.push(DnType::CommonName, "honest");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let greedy_request = params.serialize_request(&greedy);
    let der = greedy_request.map(|request| request.der().to_vec()).unwrap_or_else(|_| {
        // rcgen cannot write a request for an authority, so names and usage remain.
        let mut params = CertificateParams::new(vec!["origin.example".to_owned()]).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, "honest");
        params.serialize_request(&greedy).expect("a request").der().to_vec()
    });
    let answer = world.join(&token, "modest", &der).expect("only its key is taken");
    let (_, certificate) = X509Certificate::from_der(&answer.certificate).expect("a certificate");
    assert!(!certificate.is_ca());
    let names: Vec<_> =
        certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok()).collect();
    assert_eq!(names, ["modest"]);
    let usage = certificate.extended_key_usage().expect("well-formed").expect("there");
    assert!(usage.value.client_auth && !usage.value.server_auth && !usage.value.any);
    assert!(certificate.subject_alternative_name().expect("well-formed").is_none());
    assert_eq!(world.code(world.join(&token, "again", &request)), Code::PermissionDenied, "a spent token");
    let text = world.origin.cli("token", &["--ttl", "1s"]).expect_success().only_line().to_string();
    let short: JoinToken = text.parse().expect("a token");
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(world.code(world.join(&short, "late", &request)), Code::PermissionDenied, "an expired token");
    let members: Vec<String> = world.origin.status().agents.into_iter().map(|agent| agent.name).collect();
    assert_eq!(members, ["honest", "modest"]);
    println!("{} joins refused", tried + 4);
    world.unharmed("hostile joins");
}

#[test]
fn who_is_not_of_the_fleet_is_refused_at_once() {
    let mut world = World::new("hostile-strangers");
    let address = world.origin.address().to_owned();
    // Plaintext of two protocols.
    for said in [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let mut tcp = TcpStream::connect(&address).expect("connect");
        tcp.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
        tcp.write_all(said).expect("write");
        let mut answer = Vec::new();
        let _ = tcp.read_to_end(&mut answer);
        assert!(answer.len() < 32, "an alert at most: {answer:?}");
    }
    // TLS 1.2.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let old = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .expect("TLS 1.2")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let refused = world.runtime.block_on(async {
        let tcp = tokio::net::TcpStream::connect(&address).await.expect("connect");
        let name = "origin.example".try_into().expect("a name");
        TlsConnector::from(Arc::new(old)).connect(name, tcp).await.map(drop).expect_err("refused")
    });
    assert!(refused.to_string().contains("ProtocolVersion"), "{refused}");
    // Without a certificate, only joining is allowed.
    let token = world.token();
    let joining = world.joining();
    let codes = world.runtime.block_on(async {
        let channel = connect(&address, joining).await.expect("connected");
        let mut client = ReplicationClient::new(channel.clone());
        let subscribe = client.subscribe(tokio_stream::empty()).await.map(drop).expect_err("refused");
        let fetch = client.fetch(tokio_stream::empty()).await.map(drop).expect_err("refused");
        let renew =
            EnrolmentClient::new(channel).renew(v1::RenewRequest::default()).await.expect_err("refused");
        [subscribe.code(), fetch.code(), renew.code()]
    });
    assert_eq!(codes, [Code::Unauthenticated; 3]);
    // A certificate of another authority with the same name.
    let now = time::OffsetDateTime::now_utc();
    let foreign = Authority::create(token.tree_id, now).expect("an authority");
    let key = generate_key().expect("a key");
    let name: AgentName = "honest".parse().expect("a name");
    let request = certificate_request(&key).expect("a request");
    let (certificate, _) = foreign.issue_agent(&name, &request, now).expect("issued");
    let real = world.enrolled("real");
    let authority = world.trust(&world.token()).expect("a trust document").document().authority.clone();
    let _ = PrivatePkcs8KeyDer::from(key.serialize_der());
    let tls = ClientTls::enrolled(token.tree_id, &authority, &certificate, &key).expect("TLS");
    let foreign = BadAgent { tls, address: address.clone(), papers: None };
    let error = world.runtime.block_on(foreign.channel()).map(drop).expect_err("refused");
    assert!(error.contains("Refused"), "{error}");
    // Revoked while a stream is open.
    let (sender, mut stream) = world.runtime.block_on(real.subscribed());
    world.origin.cli("revoke", &["real"]).expect_success();
    let ended = world.runtime.block_on(async {
        loop {
            match tokio::time::timeout(Duration::from_secs(10), stream.message()).await.expect("at once") {
                Ok(Some(_)) => {}
                ended => break ended.is_err(),
            }
        }
    });
    assert!(ended, "the stream ends with an error");
    drop(sender);
    let error = world.runtime.block_on(real.channel()).map(drop).expect_err("refused");
    assert!(error.contains("Revoked"), "{error}");
    world.unharmed("strangers");
}

#[test]
fn messages_that_no_agent_sends_end_its_stream_alone() {
    use v1::agent_message::Message as M;
    let mut world = World::new("hostile-agent-messages");
    let bad = world.enrolled("bad");
    let root = Bytes::from_static(&[1; 32]);
    let messages = vec![
        v1::AgentMessage { message: None },
        agent_message(M::Hello(v1::Hello::default())),
        agent_message(M::Progress(v1::Progress { state: 99, ..Default::default() })),
        agent_message(M::Staged(v1::Staged { generation: 1, root: Bytes::from_static(b"short") })),
        agent_message(M::Activated(v1::Activated { generation: 0, root, spare_misses: 0, hook_due: false })),
        agent_message(M::Failed(v1::Failed { generation: 1, retry: 77, reason: String::new() })),
        agent_message(M::Failed(v1::Failed { generation: 1, retry: 1, reason: "x".repeat(10_000) })),
        agent_message(M::Failed(v1::Failed { generation: 1, retry: 1, reason: "x".repeat(2 << 20) })),
    ];
    for (index, message) in messages.into_iter().enumerate() {
        let code = world.runtime.block_on(async {
            let (sender, mut stream) = bad.subscribed().await;
            let _ = sender.send(message).await;
            loop {
                match tokio::time::timeout(Duration::from_secs(10), stream.message()).await.expect("in time")
                {
                    Ok(Some(_)) => {}
                    Ok(None) => break Code::Ok,
                    Err(status) => break status.code(),
                }
            }
        });
        assert!(matches!(code, Code::InvalidArgument | Code::OutOfRange), "message {index}: {code:?}");
    }
    // A number lower than the one reported before, and a hook of a generation that the agent does not have.
    write(&world.origin.tree, "index.html", "second");
    world.origin.commit_live();
    let ours = world.origin.status();
    let current: RootHash = ours.root.and_then(|root| root.parse().ok()).expect("a root");
    let activated = |generation: u64| {
        let root = Bytes::copy_from_slice(current.as_bytes());
        agent_message(M::Activated(v1::Activated {
            generation,
            root,
            spare_misses: u64::MAX,
            hook_due: false,
        }))
    };
    let hook = v1::HookReport { generation: u64::MAX, outcome: 2, ..Default::default() };
    let progress =
        v1::Progress { generation: u64::MAX, state: 3, files_done: u64::MAX, ..Default::default() };
    for (messages, expected) in [
        (vec![activated(2), activated(1)], Code::InvalidArgument),
        (vec![activated(2), agent_message(M::Hook(hook))], Code::Aborted),
        (
            vec![agent_message(M::Progress(progress)), agent_message(M::Hello(v1::Hello::default()))],
            Code::InvalidArgument,
        ),
    ] {
        let code = world.runtime.block_on(async {
            let (sender, mut stream) = bad.subscribed().await;
            for message in messages {
                sender.send(message).await.expect("room");
            }
            loop {
                match tokio::time::timeout(Duration::from_secs(10), stream.message()).await.expect("in time")
                {
                    Ok(Some(_)) => {}
                    Ok(None) => break Code::Ok,
                    Err(status) => break status.code(),
                }
            }
        });
        assert_eq!(code, expected);
        let shown = world.origin.cli("status", &["--json"]).expect_success().stdout;
        assert!(!shown.contains(&u64::MAX.to_string()), "{shown}");
    }
    let hash = ContentHash::of(b"x");
    let batch = |count: usize| {
        let batch = ObjectsBatch { files: vec![hash; count], ..ObjectsBatch::default() };
        Ask::Objects(batch.to_message(RootHash::from_bytes([1; 32])))
    };
    let update = |root: &'static [u8]| {
        let (from_root, to_root) = (Bytes::from_static(root), Bytes::from_static(root));
        Ask::Update(v1::UpdateRequest {
            from_root,
            to_root,
            first_item: u64::MAX,
            features: vec!["deltas".into()],
        })
    };
    let of = v1::DirectoryFiles { directory: Bytes::from_static(&[1; 32]), runs: vec![0, u32::MAX] };
    let absurd = Ask::Objects(v1::ObjectsRequest {
        root: Bytes::from_static(&[1; 32]),
        files_of: vec![of; 100],
        ..Default::default()
    });
    for (asked, expected) in [
        (vec![batch(40_000)], &[Code::InvalidArgument, Code::OutOfRange][..]),
        (vec![absurd], &[Code::InvalidArgument]),
        (vec![update(b"short")], &[Code::InvalidArgument]),
        (vec![update(&[1; 32])], &[Code::NotFound]),
        (vec![batch(1), update(&[1; 32])], &[Code::InvalidArgument]),
    ] {
        let code = world.runtime.block_on(async {
            let mut client = ReplicationClient::new(bad.channel().await.expect("connected"));
            let requests = asked.into_iter().map(|request| v1::FetchRequest { request: Some(request) });
            let requests = tokio_stream::iter(requests.collect::<Vec<_>>());
            let mut stream = match client.fetch(requests).await {
                Ok(stream) => stream.into_inner(),
                Err(status) => return status.code(),
            };
            loop {
                match stream.message().await {
                    Ok(Some(message)) => assert!(message.encoded_len() < 1000),
                    Ok(None) => return Code::Ok,
                    Err(status) => return status.code(),
                }
            }
        });
        assert!(expected.contains(&code), "{code:?} is none of {expected:?}");
    }
    world.unharmed("odd messages");
}
