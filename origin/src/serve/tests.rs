//! Agents that speak the protocol over real TLS, against the services and a real store of records.

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use syncd_proto::v1;
use syncd_proto::v1::agent_message::Message as ToOrigin;
use syncd_proto::v1::enrolment_client::EnrolmentClient;
use syncd_proto::v1::fetch_request::Request as FetchWhat;
use syncd_proto::v1::origin_message::Message as FromOrigin;
use syncd_proto::v1::replication_client::ReplicationClient;
use syncd_runtime::channel::{ConnectError, connect};
use syncd_runtime::key_file;
use syncd_runtime::tls::ClientTls;
use syncd_shared::identity::authority::{certificate_request, generate_key};
use syncd_shared::identity::{JoinToken, RootFingerprint, RootKey, SignedTrust};
use syncd_shared::limits::FETCH_MESSAGE_MAX_BYTES;
use syncd_shared::update_file::read_whole;
use syncd_shared::wire::{FEATURE_DELTAS, ObjectsBatch};
use syncd_shared::{
    ContentHash, Generation, GenerationNumber, HookOutcome, HookStatus, Progress, RootEntry, RootHash,
    SignedGeneration,
};
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::*;
use crate::fleet::rollout::{Kind, Order, Plan, Policy, RolloutOrder};
use crate::fleet::{AgentProgress, AgentState, AgentView};
use crate::keys::rotation::Rotation;
use crate::plan::PlanBudget;
use crate::plan::fixture::{MemoryReplica, MemoryStore, Tree, noise, replacements, tree};
use crate::store::Store;

const SOON: Duration = Duration::from_secs(20);

struct Origin {
    data: TempDir,
    keys: Arc<Keys>,
    contents: Arc<MemoryStore>,
    fleet: Fleet,
    address: String,
    observed: mpsc::Receiver<SignedGeneration>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

impl Origin {
    async fn start() -> Self {
        let data = TempDir::new().unwrap();
        // Older than any certificate that the tests issue.
        Keys::create_at(data.path(), None, OffsetDateTime::now_utc() - time::Duration::days(400)).unwrap();
        Store::create(data.path()).unwrap();
        Self::open(data, MemoryStore::new(1 << 20)).await
    }

    async fn open(data: TempDir, contents: Arc<MemoryStore>) -> Self {
        let keys = Arc::new(Keys::open(data.path()).unwrap());
        let store = Arc::new(Store::open(data.path()).unwrap());
        let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (sender, observed) = mpsc::channel(4);
        let fleet = Fleet::start(store, keys.clone(), sender, shutdown.clone(), &tasks).unwrap();
        let planner = Planner::new(contents.clone(), data.path(), PlanBudget::default()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let audit = Audit::open(data.path()).unwrap();
        let services = Services {
            keys: keys.clone(),
            fleet: fleet.clone(),
            planner,
            limit: None,
            collected: None,
            locations: None,
            audit,
        };
        tasks.spawn(serve(listener, services, shutdown.clone()).unwrap());
        Self { data, keys, contents, fleet, address, observed, shutdown, tasks }
    }

    async fn restart(self) -> Self {
        self.shutdown.cancel();
        self.tasks.close();
        tokio::time::timeout(SOON, self.tasks.wait()).await.expect("everything ends");
        let Self { data, contents, fleet, .. } = self;
        drop(fleet);
        Self::open(data, contents).await
    }

    fn generation(&self, number: u64, root: RootEntry) -> SignedGeneration {
        let number = GenerationNumber::new(number).unwrap();
        let tree_id = self.keys.tree_id();
        Generation {
            tree_id,
            epoch: 1,
            number,
            trust: 1,
            root,
            parent: None,
            created_ms: 0,
            label: String::new(),
        }
        .sign(&self.keys.signing_key())
    }

    fn joining(&self) -> ClientTls {
        ClientTls::joining(self.keys.tree_id(), self.keys.authority().certificate()).unwrap()
    }

    async fn token(&self, ttl: Duration, uses: u32) -> JoinToken {
        self.fleet.create_token(ttl, uses).await.unwrap()
    }

    async fn join(&self, token: &JoinToken, name: &str) -> Result<Node, Status> {
        let key = generate_key().unwrap();
        let untrusting = ClientTls::untrusting(token.tree_id).unwrap();
        let mut client = EnrolmentClient::new(connect(&self.address, untrusting).await.unwrap());
        let tree_id = Bytes::copy_from_slice(self.keys.tree_id().as_bytes());
        let shown = client.trust(v1::TrustRequest { tree_id }).await?.into_inner().document;
        assert_eq!(shown, self.keys.trust().bytes());
        let document = SignedTrust::of_tree(&shown, self.keys.tree_id()).unwrap();
        let tls = ClientTls::joining(self.keys.tree_id(), &document.document().authority).unwrap();
        let channel = connect(&self.address, tls).await.unwrap();
        let request = v1::JoinRequest {
            tree_id: Bytes::copy_from_slice(token.tree_id.as_bytes()),
            secret: Bytes::copy_from_slice(&token.secret),
            name: Bytes::copy_from_slice(name.as_bytes()),
            certificate_request: certificate_request(&key).unwrap().into(),
            group: String::new(),
        };
        let response = EnrolmentClient::new(channel).join(request).await?.into_inner();
        let certificate = CertificateDer::from(response.certificate.to_vec());
        Ok(Node { certificate, key })
    }

    async fn node(&self, name: &str) -> Node {
        let token = self.token(Duration::from_secs(60), 1).await;
        self.join(&token, name).await.unwrap()
    }

    /// A node that was enrolled with a certificate of that time.
    fn node_of(&self, name: &str, issued: OffsetDateTime) -> Node {
        let key = generate_key().unwrap();
        let request = certificate_request(&key).unwrap();
        let (certificate, _) =
            self.keys.authority().issue_agent(&name.parse().unwrap(), &request, issued).unwrap();
        Node { certificate, key }
    }

    async fn renew(&self, node: &Node) -> Result<Node, Status> {
        let key = generate_key().unwrap();
        let request = v1::RenewRequest { certificate_request: certificate_request(&key).unwrap().into() };
        let channel = self.channel(node).await.unwrap();
        let renewed = EnrolmentClient::new(channel).renew(request).await?.into_inner();
        Ok(Node { certificate: CertificateDer::from(renewed.certificate.to_vec()), key })
    }

    /// Replaces keys, signed by the root key.
    fn rotate(&self, rotation: Rotation<'_>) {
        let root = key_file::read(&self.keys.root_key_here().unwrap()).unwrap();
        let root = RootKey::from_text(&root, None).unwrap();
        let document = self.keys.prepare(&rotation, OffsetDateTime::now_utc()).unwrap();
        self.keys.take(&document.sign(&root.key).unwrap()).unwrap();
    }

    async fn channel(&self, node: &Node) -> Result<Channel, ConnectError> {
        let authority = self.keys.authority();
        let ca = authority.certificate();
        let tls = ClientTls::enrolled(self.keys.tree_id(), ca, &node.certificate, &node.key).unwrap();
        connect(&self.address, tls).await
    }

    async fn subscribe(&self, node: &Node, hello: v1::Hello) -> Control {
        let channel = self.channel(node).await.unwrap();
        let (sender, receiver) = mpsc::channel(8);
        sender.send(v1::AgentMessage { message: Some(ToOrigin::Hello(hello)) }).await.unwrap();
        let mut client = replication(channel);
        let stream = client.subscribe(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Control { sender, stream }
    }

    async fn attached(&self, node: &Node, hello: v1::Hello) -> Control {
        let mut control = self.subscribe(node, hello).await;
        assert!(matches!(control.next().await.unwrap(), FromOrigin::Welcome(w) if w.protocol == PROTOCOL));
        control
    }

    async fn until(&self, name: &str, condition: impl Fn(&AgentView) -> bool) -> AgentView {
        let mut view = self.fleet.view();
        let holds =
            |f: &Arc<crate::fleet::FleetView>| f.agents.iter().any(|a| a.name == name && condition(a));
        let found = tokio::time::timeout(SOON, view.wait_for(holds)).await.expect("comes true").unwrap();
        found.agents.iter().find(|a| a.name == name).unwrap().clone()
    }

    async fn fetch(&self, node: &Node, requests: Vec<FetchWhat>) -> Result<Vec<v1::FetchFrame>, Status> {
        let mut client = replication(self.channel(node).await.unwrap());
        let requests = requests.into_iter().map(|r| v1::FetchRequest { request: Some(r) });
        let mut stream = client.fetch(tokio_stream::iter(requests.collect::<Vec<_>>())).await?.into_inner();
        let mut frames = Vec::new();
        while let Some(frame) = tokio::time::timeout(SOON, stream.message()).await.expect("goes on")? {
            frames.push(frame);
        }
        Ok(frames)
    }
}

struct Node {
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

struct Control {
    sender: mpsc::Sender<v1::AgentMessage>,
    stream: Streaming<v1::OriginMessage>,
}

impl Control {
    async fn next(&mut self) -> Result<FromOrigin, Status> {
        let message = tokio::time::timeout(SOON, self.stream.message()).await.expect("something comes")?;
        message.ok_or_else(|| Status::ok("the stream ended")).map(|m| m.message.unwrap())
    }

    async fn announce(&mut self) -> v1::Announce {
        loop {
            if let FromOrigin::Announce(announce) = self.next().await.unwrap() {
                return announce;
            }
        }
    }

    async fn say(&self, message: ToOrigin) {
        self.sender.send(v1::AgentMessage { message: Some(message) }).await.unwrap();
    }

    async fn activated(&self, generation: u64, root: RootHash) {
        let root = Bytes::copy_from_slice(root.as_bytes());
        self.say(ToOrigin::Activated(v1::Activated { generation, root, spare_misses: 0, hook_due: false }))
            .await;
    }

    async fn refusal(&mut self) -> Status {
        loop {
            match self.next().await {
                Ok(_) => {}
                Err(status) => return status,
            }
        }
    }
}

fn replication(channel: Channel) -> ReplicationClient<Channel> {
    ReplicationClient::new(channel).max_decoding_message_size(FETCH_MESSAGE_MAX_BYTES)
}

fn hello() -> v1::Hello {
    let features = vec![FEATURE_DELTAS.to_owned()];
    v1::Hello { protocol_min: 1, protocol_max: 1, boot_id: "boot".into(), features, ..v1::Hello::default() }
}

fn message(generation: &SignedGeneration) -> v1::SignedGeneration {
    v1::SignedGeneration {
        record: Bytes::copy_from_slice(generation.record()),
        signature: Bytes::copy_from_slice(generation.signature()),
    }
}

fn update(from: &RootEntry, to: &RootEntry, first_item: u64) -> FetchWhat {
    FetchWhat::Update(v1::UpdateRequest {
        from_root: Bytes::copy_from_slice(from.hash().as_bytes()),
        to_root: Bytes::copy_from_slice(to.hash().as_bytes()),
        first_item,
        features: vec![FEATURE_DELTAS.to_owned()],
    })
}

/// Everything of a tree by the general path.
async fn general_path(origin: &Origin, node: &Node, root: &RootEntry) -> MemoryReplica {
    let mut replica = MemoryReplica::default();
    let batch = ObjectsBatch { directories: vec![root.object], recursive: true, ..ObjectsBatch::default() };
    let ask = |batch: ObjectsBatch| FetchWhat::Objects(batch.to_message(root.hash()));
    for frame in origin.fetch(node, vec![ask(batch)]).await.unwrap() {
        replica.take(frame);
    }
    let entries = replica.pages.values().flat_map(|d| d.entries());
    let files: Vec<ContentHash> = entries
        .filter_map(|e| match e.kind {
            syncd_shared::Kind::File { content, size } if size > 0 => Some(content),
            _ => None,
        })
        .collect();
    let batch = |files: &[ContentHash]| ObjectsBatch {
        files: files.to_vec(),
        early: true,
        ..ObjectsBatch::default()
    };
    let batches = files.chunks(3).map(batch);
    let requests: Vec<_> = batches.map(ask).collect();
    let count = requests.len() as u64;
    for frame in origin.fetch(node, requests).await.unwrap() {
        replica.take(frame);
    }
    assert_eq!(replica.ended, 1 + count);
    replica.assemble();
    replica
}

fn site(pages: u64, extra: &[(&str, &[u8])]) -> Tree {
    let mut site: Tree = (0..pages).map(|i| (format!("docs/{i}.html"), noise(i, 9_000))).collect();
    site.extend(tree(extra));
    site
}

/// Frames of the update file that an announcement carries.
fn frames_of(announce: &v1::Announce, from: &RootEntry, to: &RootEntry) -> Vec<v1::FetchFrame> {
    let (index, frames) = read_whole(&announce.update_file).expect("a small update travels along");
    assert_eq!((index.from(), index.to()), (from.hash(), to.hash()));
    frames.into_iter().map(|frame| v1::FetchFrame::decode(frame).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_follow_by_the_general_path_and_by_an_inline_update() {
    let origin = Origin::start().await;
    let (first, second) = (site(30, &[("a", b"1")]), site(30, &[("a", b"2"), ("new/b", b"3")]));
    let (from, to) = (origin.contents.put(&first), origin.contents.put(&second));
    let (web1, web2) = (origin.node("web1").await, origin.node("web2").await);
    let (mut one, mut two) = (origin.attached(&web1, hello()).await, origin.attached(&web2, hello()).await);
    origin.fleet.announce(origin.generation(1, from));
    for (node, control) in [(&web1, &mut one), (&web2, &mut two)] {
        let announce = control.announce().await;
        assert!(announce.activate_when_staged && announce.update_file.is_empty());
        assert_eq!(announce.generation, Some(message(&origin.generation(1, from))));
        assert_eq!(general_path(&origin, node, &from).await.tree(&from), first);
        control.activated(1, from.hash()).await;
    }
    for name in ["web1", "web2"] {
        let view = origin.until(name, |a| a.generation == GenerationNumber::new(1)).await;
        assert_eq!((view.connected, view.state, view.root), (true, AgentState::Live, Some(from.hash())));
    }
    assert!(origin.fleet.retained_roots().contains(&from.hash()));
    origin.fleet.announce(origin.generation(2, to));
    for (node, control) in [(&web1, &mut one), (&web2, &mut two)] {
        let frames = frames_of(&control.announce().await, &from, &to);
        let mut replica = general_path(&origin, node, &from).await;
        replica.replacements = replacements(&*origin.contents, &from, &to);
        frames.into_iter().for_each(|frame| replica.take(frame));
        replica.assemble();
        assert_eq!(replica.tree(&to), second);
        control.activated(2, to.hash()).await;
    }
    // A rollback: another number for a root that is there.
    origin.until("web1", |a| a.generation == GenerationNumber::new(2)).await;
    origin.fleet.announce(origin.generation(3, to));
    let announce = one.announce().await;
    assert!(announce.update_file.is_empty());
    let origin = origin.restart().await;
    let view = origin.until("web1", |a| a.generation == GenerationNumber::new(2)).await;
    assert!(!view.connected && view.root == Some(to.hash()) && view.last_seen_ms > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_update_is_fetched_and_resumed_by_item() {
    let origin = Origin::start().await;
    let (first, second) = (site(3, &[]), site(700, &[("big", &noise(9_999, 3_000_000))]));
    let (from, to) = (origin.contents.put(&first), origin.contents.put(&second));
    let node = origin.node("web1").await;
    let live = Some(message(&origin.generation(1, from)));
    origin.fleet.announce(origin.generation(2, to));
    let mut control = origin.attached(&node, v1::Hello { live, ..hello() }).await;
    assert!(control.announce().await.update_file.is_empty());
    let frames = origin.fetch(&node, vec![update(&from, &to, 0)]).await.unwrap();
    let middle = frames.len() as u64 / 2;
    let rest = origin.fetch(&node, vec![update(&from, &to, middle)]).await.unwrap();
    assert_eq!(rest, frames[middle as usize..]);
    let mut replica = general_path(&origin, &node, &from).await;
    replica.replacements = replacements(&*origin.contents, &from, &to);
    frames.into_iter().for_each(|frame| replica.take(frame));
    replica.assemble();
    assert_eq!(replica.tree(&to), second);

    let unknown = RootEntry { object: from.object, ..to };
    let refused = origin.fetch(&node, vec![update(&unknown, &to, 0)]).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
    origin.contents.forget(&from.hash());
    let twice = vec![update(&from, &to, 0), update(&from, &to, 0)];
    let refused = origin.fetch(&node, twice).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_generations_behind_gets_one_direct_update() {
    let origin = Origin::start().await;
    let sites: Vec<Tree> = (0..5u64).map(|i| site(20, &[("f", &i.to_le_bytes())])).collect();
    let roots: Vec<_> = sites.iter().map(|site| origin.contents.put(site)).collect();
    for (root, number) in roots.iter().zip(1..) {
        origin.fleet.announce(origin.generation(number, *root));
    }
    let node = origin.node("web1").await;
    let live = Some(message(&origin.generation(1, roots[0])));
    let mut control = origin.attached(&node, v1::Hello { live, ..hello() }).await;
    let announce = control.announce().await;
    assert_eq!(announce.generation, Some(message(&origin.generation(5, roots[4]))));
    let frames = frames_of(&announce, &roots[0], &roots[4]);
    let mut replica = general_path(&origin, &node, &roots[0]).await;
    replica.replacements = replacements(&*origin.contents, &roots[0], &roots[4]);
    frames.into_iter().for_each(|frame| replica.take(frame));
    replica.assemble();
    assert_eq!(replica.tree(&roots[4]), sites[4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_update_is_encoded_for_a_tree_that_the_agent_has() {
    let origin = Origin::start().await;
    let sites: Vec<Tree> = (0..3u64).map(|i| site(20, &[("f", &i.to_le_bytes())])).collect();
    let roots: Vec<_> = sites.iter().map(|site| origin.contents.put(site)).collect();
    let generation = |number: u64| origin.generation(number, roots[number as usize % 3]);
    origin.fleet.announce(generation(2));
    let node = origin.node("web1").await;
    let (live, held) = (Some(message(&generation(2))), vec![message(&generation(1))]);
    let mut control = origin.attached(&node, v1::Hello { live, held, ..hello() }).await;
    control.announce().await;
    // Back to a tree of its hello.
    origin.fleet.announce(generation(4));
    assert!(control.announce().await.update_file.is_empty());
    control.activated(4, roots[1].hash()).await;
    origin.until("web1", |a| a.generation == GenerationNumber::new(4)).await;
    // Back to the tree that it left.
    origin.fleet.announce(generation(5));
    assert!(control.announce().await.update_file.is_empty());
    control.activated(5, roots[2].hash()).await;
    origin.until("web1", |a| a.generation == GenerationNumber::new(5)).await;
    origin.fleet.announce(generation(6));
    frames_of(&control.announce().await, &roots[2], &roots[0]);
    // If the tree is of no use, the agent asks.
    assert!(!origin.fetch(&node, vec![update(&roots[2], &roots[1], 0)]).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_that_is_to_wait_goes_live_when_the_policy_says_so() {
    let origin = Origin::start().await;
    let root = origin.contents.put(&tree(&[("f", b"1")]));
    let nodes = [origin.node("web1").await, origin.node("web2").await];
    let base = origin.generation(1, origin.contents.put(&tree(&[])));
    let shown = || v1::Hello { live: Some(message(&base)), ..hello() };
    let mut controls = [origin.attached(&nodes[0], shown()).await, origin.attached(&nodes[1], shown()).await];
    let order = Order { kind: Kind::Commit, policy: Policy::together(), base: base.clone() };
    origin.fleet.publish(origin.generation(2, root), Plan::Rollout(Box::new(order)));
    for control in &mut controls {
        assert!(!control.announce().await.activate_when_staged);
    }
    let hash = Bytes::copy_from_slice(root.hash().as_bytes());
    let staged = || ToOrigin::Staged(v1::Staged { generation: 2, root: hash.clone() });
    controls[0].say(staged()).await;
    let view = origin.until("web1", |agent| agent.staged.is_some()).await;
    let second = GenerationNumber::new(2).unwrap();
    assert_eq!((view.staged, view.state), (Some((second, root.hash())), AgentState::Staged));
    // Nobody is told to go on before the other one has it as well.
    controls[0].say(ToOrigin::Heartbeat(v1::Heartbeat { sequence: 7 })).await;
    assert!(matches!(controls[0].next().await.unwrap(), FromOrigin::Heartbeat(_)));
    controls[1].say(staged()).await;
    for control in &mut controls {
        let told = control.next().await.unwrap();
        let FromOrigin::Activate(activate) = told else { panic!("{told:?}") };
        assert_eq!((activate.generation, &activate.root), (2, &hash));
    }
    controls[0].activated(2, root.hash()).await;
    let view = origin.until("web1", |agent| agent.generation == Some(second)).await;
    assert_eq!(view.staged, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_flips_at_once_and_what_is_given_to_all_names_the_flip() {
    for now in [false, true] {
        let origin = Origin::start().await;
        let root = origin.contents.put(&tree(&[("f", b"1")]));
        let base = origin.generation(1, origin.contents.put(&tree(&[])));
        let shown = || v1::Hello { live: Some(message(&base)), has_check: true, ..hello() };
        let nodes = [origin.node("web1").await, origin.node("web2").await];
        let mut controls =
            [origin.attached(&nodes[0], shown()).await, origin.attached(&nodes[1], shown()).await];
        let order = Order { kind: Kind::Rollback, policy: Policy::rollback(), base: base.clone() };
        origin.fleet.publish(origin.generation(2, root), Plan::Rollout(Box::new(order)));
        let hash = Bytes::copy_from_slice(root.hash().as_bytes());
        let live = Bytes::copy_from_slice(base.root_hash().as_bytes());
        for control in &mut controls {
            assert!(!control.announce().await.activate_when_staged);
        }
        for control in if now { &controls[..1] } else { &controls[..] } {
            let outcome = v1::CheckOutcome::FailedBefore.into();
            let check = v1::CheckReport { generation: 1, root: live.clone(), outcome, ..Default::default() };
            control.say(ToOrigin::Check(check)).await;
            control.say(ToOrigin::Staged(v1::Staged { generation: 2, root: hash.clone() })).await;
        }
        if now {
            origin.until("web1", |agent| agent.staged.is_some()).await;
            origin.fleet.order_rollout(RolloutOrder::Now).await.unwrap();
        }
        let told = controls[0].next().await.unwrap();
        let FromOrigin::Activate(activate) = told else { panic!("{told:?}") };
        // After the deadline of the rollback it would name the flip.
        assert_eq!((activate.generation, activate.flipped), (2, now));
    }
}

/// On one thread, so that all is announced before anything is sent.
#[tokio::test]
async fn an_agent_that_reads_late_gets_only_the_newest() {
    let origin = Origin::start().await;
    let roots: Vec<_> = (0..50u64).map(|i| origin.contents.put(&tree(&[("f", &i.to_le_bytes())]))).collect();
    let node = origin.node("web1").await;
    let mut control = origin.attached(&node, hello()).await;
    let all: Vec<_> = roots.iter().zip(1..).map(|(root, number)| origin.generation(number, *root)).collect();
    all.into_iter().for_each(|generation| origin.fleet.announce(generation));
    let newest = message(&origin.generation(50, roots[49]));
    let mut seen = 0;
    while control.announce().await.generation != Some(newest.clone()) {
        seen += 1;
    }
    assert!(seen < 40, "{seen}");
    control.say(ToOrigin::Heartbeat(v1::Heartbeat { sequence: 7 })).await;
    assert!(matches!(control.next().await.unwrap(), FromOrigin::Heartbeat(h) if h.sequence == 7));
}

#[tokio::test(flavor = "multi_thread")]
async fn local_changes_on_a_node_are_shown_until_it_says_that_they_are_past() {
    let origin = Origin::start().await;
    let node = origin.node("web1").await;
    let report = |paths: u64| v1::DriftReport {
        generation: 7,
        paths,
        first_path: "up\u{1b}[2Jloads/x.php\n".into(),
        kept: "/r/lost+found/7".into(),
        lost: 1,
    };
    let control = origin.attached(&node, v1::Hello { drift: Some(report(3)), ..hello() }).await;
    let shown = origin.until("web1", |a| a.drift.as_ref().is_some_and(|drift| drift.paths == 3)).await;
    let line = shown.drift.unwrap().to_string();
    assert!(!line.contains(['\u{1b}', '\n']), "{line:?}");
    assert!(line.starts_with("3 local changes in generation 7 (first up"), "{line}");
    assert!(line.ends_with("kept in /r/lost+found/7, 1 not kept"), "{line}");
    control.say(ToOrigin::Drift(report(4))).await;
    origin.until("web1", |a| a.drift.as_ref().is_some_and(|drift| drift.paths == 4)).await;
    control.say(ToOrigin::Drift(v1::DriftReport::default())).await;
    origin.until("web1", |a| a.drift.is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn revoking_closes_streams_at_once_and_refuses_the_next_connection() {
    let origin = Origin::start().await;
    let node = origin.node("web1").await;
    let mut control = origin.attached(&node, hello()).await;
    let channel = origin.channel(&node).await.unwrap();
    origin.until("web1", |a| a.connected).await;
    origin.fleet.revoke("web1".into()).await.unwrap();
    let refused = control.refusal().await;
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let renewal = v1::RenewRequest { certificate_request: certificate_request(&node.key).unwrap().into() };
    let refused = EnrolmentClient::new(channel).renew(renewal).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(matches!(origin.channel(&node).await, Err(ConnectError::Refused { .. })));
    // Once more does no harm.
    origin.fleet.revoke("web1".into()).await.unwrap();
    let origin = origin.restart().await;
    assert!(matches!(origin.channel(&node).await, Err(ConnectError::Refused { .. })));
    // The name is free again.
    let node = origin.node("web1").await;
    origin.attached(&node, hello()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_connection_with_one_certificate_closes_the_first_and_is_shown() {
    let origin = Origin::start().await;
    let node = origin.node("web1").await;
    let mut first = origin.attached(&node, hello()).await;
    let clone = v1::Hello { boot_id: "other".into(), ..hello() };
    let second = origin.attached(&node, clone).await;
    assert_eq!(first.refusal().await.code(), Code::Aborted);
    let view = origin.until("web1", |a| a.connected && !a.notes.is_empty()).await;
    assert!(view.notes[0].contains("boot other after boot boot"), "{:?}", view.notes);
    drop(second);
    origin.until("web1", |a| !a.connected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_once_and_in_time_and_for_a_free_name() {
    let origin = Origin::start().await;
    let token = origin.token(Duration::from_secs(60), 1).await;
    let node = origin.join(&token, "web1").await.unwrap();
    let code = |joined: Result<Node, Status>| joined.map(drop).unwrap_err().code();
    assert_eq!(code(origin.join(&token, "web2").await), Code::PermissionDenied);
    let expired = origin.token(Duration::ZERO, 1).await;
    assert_eq!(code(origin.join(&expired, "web2").await), Code::PermissionDenied);
    let guessed = JoinToken { secret: [7; 16], ..token.clone() };
    assert_eq!(code(origin.join(&guessed, "web2").await), Code::PermissionDenied);
    // Looked up before anything else of the request, which is expensive to check.
    let channel = connect(&origin.address, origin.joining()).await.unwrap();
    let request = v1::JoinRequest {
        tree_id: Bytes::copy_from_slice(guessed.tree_id.as_bytes()),
        secret: Bytes::copy_from_slice(&guessed.secret),
        name: "web2".into(),
        certificate_request: Bytes::from_static(b"no request"),
        group: String::new(),
    };
    let refused = EnrolmentClient::new(channel).join(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let fresh = origin.token(Duration::from_secs(60), 2).await;
    assert_eq!(code(origin.join(&fresh, "web1").await), Code::AlreadyExists);
    assert_eq!(code(origin.join(&fresh, "../web").await), Code::InvalidArgument);
    // Refusals took nothing from the token, and a restart forgets nothing.
    let origin = origin.restart().await;
    assert_eq!(code(origin.join(&token, "web2").await), Code::PermissionDenied);
    origin.join(&fresh, "web2").await.unwrap();
    origin.join(&fresh, "web3").await.unwrap();
    assert_eq!(code(origin.join(&fresh, "web4").await), Code::PermissionDenied);
    let names: Vec<_> = origin.fleet.view().borrow().agents.iter().map(|a| a.name.clone()).collect();
    assert_eq!(names, ["web1", "web2", "web3"]);

    let renewal = v1::RenewRequest { certificate_request: certificate_request(&node.key).unwrap().into() };
    let channel = origin.channel(&node).await.unwrap();
    let early = EnrolmentClient::new(channel).renew(renewal.clone()).await.unwrap_err();
    assert_eq!(early.code(), Code::FailedPrecondition, "{early}");
    let anonymous = connect(&origin.address, origin.joining()).await.unwrap();
    let refused = EnrolmentClient::new(anonymous.clone()).renew(renewal).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let refused = replication(anonymous).fetch(tokio_stream::empty()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_does_not_hold_today_is_good_for_its_renewal_alone() {
    let origin = Origin::start().await;
    // Expired for a month and for ten, and issued by an origin whose clock was ahead.
    for (name, days) in [("web1", -60), ("web2", -330), ("web3", 90)] {
        let node = origin.node_of(name, OffsetDateTime::now_utc() + time::Duration::days(days));
        let channel = origin.channel(&node).await.unwrap();
        let refused = replication(channel.clone()).fetch(tokio_stream::empty()).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{name}: {refused}");
        let (_sender, receiver) = mpsc::channel::<v1::AgentMessage>(1);
        let refused = replication(channel).subscribe(ReceiverStream::new(receiver)).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{name}: {refused}");
        let renewed = origin.renew(&node).await.unwrap();
        origin.attached(&renewed, hello()).await;
        origin.fleet.revoke(name.into()).await.unwrap();
        assert!(matches!(origin.channel(&node).await, Err(ConnectError::Refused { .. })), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn open_streams_end_when_the_certificate_expires() {
    let origin = Origin::start().await;
    let life = syncd_shared::identity::authority::AGENT_CERTIFICATE_LIFE;
    let node = origin.node_of("web1", OffsetDateTime::now_utc() - life + time::Duration::seconds(4));
    let mut control = origin.attached(&node, hello()).await;
    let (_requests, receiver) = mpsc::channel::<v1::FetchRequest>(1);
    let channel = origin.channel(&node).await.unwrap();
    let mut fetch = replication(channel).fetch(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let ended = tokio::time::timeout(SOON, async { (control.refusal().await, fetch.message().await) });
    let (control, fetch) = ended.await.expect("both end");
    assert_eq!(control.code(), Code::Unauthenticated, "{control}");
    assert_eq!(fetch.unwrap_err().code(), Code::Unauthenticated);
    assert!(origin.renew(&node).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_a_replaced_authority_is_renewed_only_if_it_is_on_record() {
    let origin = Origin::start().await;
    let node = origin.node("web1").await;
    // A thief of the authority's key makes a new node, or the same one again.
    let made = ["ghost", "web1"].map(|name| origin.node_of(name, OffsetDateTime::now_utc()));
    origin.rotate(Rotation { authority: true, ..Rotation::default() });
    for made in &made {
        let refused = origin.renew(made).await.map(drop).unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    }
    assert!(origin.fleet.view().borrow().agents.iter().all(|agent| agent.name == "web1"));
    let renewed = origin.renew(&node).await.unwrap();
    origin.attached(&renewed, hello()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retiring_an_authority_ends_what_its_certificates_have_open() {
    let origin = Origin::start().await;
    let node = origin.node("web1").await;
    let mut control = origin.attached(&node, hello()).await;
    let (_requests, receiver) = mpsc::channel::<v1::FetchRequest>(1);
    let channel = origin.channel(&node).await.unwrap();
    let mut client = replication(channel.clone());
    let mut fetch = client.fetch(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    origin.rotate(Rotation { authority: true, ..Rotation::default() });
    let shown = loop {
        if let FromOrigin::TrustDocument(shown) = control.next().await.unwrap() {
            break shown;
        }
    };
    assert_eq!(shown, origin.keys.trust().bytes(), "the stream lasts until the node has read it");
    origin.rotate(Rotation { retire: true, ..Rotation::default() });
    let ended = tokio::time::timeout(SOON, async { (control.refusal().await, fetch.message().await) });
    let (control, fetch) = ended.await.expect("both end");
    assert_eq!(control.code(), Code::PermissionDenied, "{control}");
    assert_eq!(fetch.unwrap_err().code(), Code::PermissionDenied);
    let refused = client.fetch(tokio_stream::empty()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let renewal = v1::RenewRequest { certificate_request: certificate_request(&node.key).unwrap().into() };
    let refused = EnrolmentClient::new(channel).renew(renewal).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_that_share_a_boot_id_are_known_by_how_often_they_take_turns() {
    let origin = Origin::start().await;
    let node = origin.node("web1").await;
    let mut streams = vec![origin.attached(&node, hello()).await];
    for _ in 0..4 {
        streams.push(origin.attached(&node, hello()).await);
        assert_eq!(origin.until("web1", |a| a.connected).await.notes, Vec::<String>::new());
    }
    for _ in 0..2 {
        streams.push(origin.attached(&node, hello()).await);
    }
    let view = origin.until("web1", |a| !a.notes.is_empty()).await;
    assert!(view.notes[0].contains("two machines share one certificate"), "{:?}", view.notes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_above_ours_is_reported_and_nothing_lower_announced() {
    let mut origin = Origin::start().await;
    let root = origin.contents.put(&tree(&[("f", b"1")]));
    origin.fleet.announce(origin.generation(3, root));
    let node = origin.node("web1").await;
    let ahead = origin.generation(57, root);
    let accepted = Some(message(&ahead));
    let live = Some(message(&origin.generation(2, root)));
    let mut control = origin.attached(&node, v1::Hello { live, accepted, ..hello() }).await;
    let told = tokio::time::timeout(SOON, origin.observed.recv()).await.unwrap().unwrap();
    assert_eq!(told, ahead);
    origin.fleet.announce(origin.generation(58, root));
    let announce = control.announce().await;
    assert_eq!(announce.generation, Some(message(&origin.generation(58, root))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_above_ours_is_reported_even_if_the_node_refuses_it() {
    let mut origin = Origin::start().await;
    let (good, bad) =
        (origin.contents.put(&tree(&[("f", b"1")])), origin.contents.put(&tree(&[("f", b"bad")])));
    origin.fleet.announce(origin.generation(2, good));
    let node = origin.node("web1").await;
    // The node has returned from 3, which this origin has lost.
    let lost = origin.generation(3, bad);
    let live = Some(message(&origin.generation(2, good)));
    let root = Bytes::copy_from_slice(bad.hash().as_bytes());
    let refused = vec![v1::RefusedGeneration { epoch: 1, number: 3, root }];
    let _control =
        origin.attached(&node, v1::Hello { live, accepted: Some(message(&lost)), refused, ..hello() }).await;
    assert_eq!(tokio::time::timeout(SOON, origin.observed.recv()).await.unwrap(), Some(lost));
    let view = origin.fleet.view().borrow().clone();
    assert_eq!(view.agents[0].refused, [bad.hash()], "nothing adopts it");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_activated_of_a_lost_origin_is_asked_for_by_ending_the_conversation() {
    let mut origin = Origin::start().await;
    let (ours, lost) =
        (origin.contents.put(&tree(&[("f", b"1")])), origin.contents.put(&tree(&[("f", b"lost")])));
    origin.fleet.announce(origin.generation(3, ours));
    let node = origin.node("web1").await;
    // A higher number, and ours with another root: neither is of this origin.
    for (number, root) in [(4, lost), (3, lost)] {
        let mut control = origin.attached(&node, hello()).await;
        control.announce().await;
        control.activated(number, root.hash()).await;
        let refusal = control.refusal().await;
        assert_eq!(refusal.code(), Code::Aborted, "{refusal}");
        assert!(refusal.message().contains("connect again and show it"), "{refusal}");
    }
    // The next greeting brings the signed record.
    let live = origin.generation(4, lost);
    let shown = Some(message(&live));
    let hello_again = v1::Hello { live: shown.clone(), accepted: shown, ..hello() };
    let _control = origin.attached(&node, hello_again).await;
    assert_eq!(tokio::time::timeout(SOON, origin.observed.recv()).await.unwrap(), Some(live));
    // A generation that this origin announced is accepted.
    let other = origin.node("web2").await;
    let control = origin.attached(&other, hello()).await;
    control.activated(3, ours.hash()).await;
    let view = origin.until("web2", |a| a.state == AgentState::Live).await;
    assert!(view.connected, "{view:?}");
}

fn hook(generation: u64, outcome: v1::HookOutcome) -> v1::HookReport {
    let output =
        if outcome == v1::HookOutcome::Failed { "exit status: 1: a\nb".into() } else { String::new() };
    v1::HookReport { generation, outcome: outcome.into(), output, attempt: 1, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_live_once_its_hook_has_succeeded() {
    let origin = Origin::start().await;
    let root = origin.contents.put(&tree(&[("f", b"1")]));
    origin.fleet.announce(origin.generation(1, root));
    let node = origin.node("web1").await;
    let mut control = origin.attached(&node, hello()).await;
    let switched = |number: u64| {
        let root = Bytes::copy_from_slice(root.hash().as_bytes());
        ToOrigin::Activated(v1::Activated { generation: number, root, spare_misses: 0, hook_due: true })
    };
    control.say(switched(1)).await;
    let view = origin.until("web1", |a| a.generation == GenerationNumber::new(1)).await;
    assert_eq!((view.state, view.hook), (AgentState::Switched, Some(HookStatus::due(1, None))));
    let failed = v1::HookReport { waits: 9, ..hook(1, v1::HookOutcome::Failed) };
    control.say(ToOrigin::Hook(failed)).await;
    let view = origin.until("web1", |a| a.hook.as_ref().is_some_and(|hook| hook.has_failed())).await;
    assert_eq!(view.state, AgentState::Switched);
    let told = view.hook.unwrap();
    assert_eq!((told.output.as_str(), told.waits), ("exit status: 1: a\\nb", None), "9 was never announced");
    // Repeating a state in answer to an announcement reverts nothing.
    control.say(switched(1)).await;
    control.say(ToOrigin::Hook(v1::HookReport { succeeded: 1, ..hook(1, v1::HookOutcome::Ok) })).await;
    let view = origin.until("web1", |a| a.state == AgentState::Live).await;
    assert_eq!(view.hook.unwrap().outcome, HookOutcome::Ok);
    // A greeting also reports it.
    let live = Some(message(&origin.generation(1, root)));
    // A success for a generation that is no longer linked does not count.
    let put_back = v1::HookReport { succeeded: 2, ..hook(1, v1::HookOutcome::Failed) };
    let greeting = v1::Hello { live, hook: Some(put_back.clone()), ..hello() };
    let mut again = origin.attached(&node, greeting).await;
    let view = origin.until("web1", |a| a.connected && a.state == AgentState::Switched).await;
    assert!(view.hook.is_some_and(|hook| hook.has_failed() && hook.succeeded.is_none()));
    again.say(ToOrigin::Hook(v1::HookReport { attempt: 2, ..put_back })).await;
    let view = origin.until("web1", |a| a.hook.as_ref().is_some_and(|hook| hook.attempt == 2)).await;
    assert_eq!(view.hook.unwrap().succeeded, None);
    // A hook report for a generation that is not linked is refused.
    again.say(ToOrigin::Hook(hook(2, v1::HookOutcome::Ok))).await;
    assert_eq!(again.refusal().await.code(), Code::Aborted);
    let _ = control.refusal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_that_no_agent_has_are_not_believed() {
    let origin = Origin::start().await;
    let root = origin.contents.put(&tree(&[("f", b"12345")]));
    origin.fleet.announce(origin.generation(5, root));
    let node = origin.node("web1").await;
    let live = Some(message(&origin.generation(3, root)));
    let mut control = origin.attached(&node, v1::Hello { live, ..hello() }).await;
    let progress = |generation: u64| {
        ToOrigin::Progress(v1::Progress {
            generation,
            state: v1::AgentState::Fetching.into(),
            files_done: u64::MAX,
            bytes_done: u64::MAX,
            files_total: u64::MAX,
            bytes_total: u64::MAX,
        })
    };
    control.say(progress(5)).await;
    let view = origin.until("web1", |a| a.progress.is_some()).await;
    assert_eq!(
        view.progress,
        Some(AgentProgress {
            generation: 5,
            done: Progress { files_done: 1, files_total: 1, bytes_done: 5, bytes_total: 5 }
        })
    );
    for message in [
        progress(u64::MAX),
        ToOrigin::Staged(v1::Staged {
            generation: u64::MAX,
            root: Bytes::copy_from_slice(root.hash().as_bytes()),
        }),
        ToOrigin::Activated(v1::Activated {
            generation: 4,
            root: Bytes::copy_from_slice(root.hash().as_bytes()),
            spare_misses: u64::MAX,
            hook_due: false,
        }),
    ] {
        control.say(message).await;
    }
    let view = origin.until("web1", |a| a.generation == GenerationNumber::new(4)).await;
    assert_eq!((view.progress, view.spare_misses), (None, u64::from(u32::MAX)));
    control.activated(3, root.hash()).await;
    let refusal = control.refusal().await;
    assert_eq!(refusal.code(), Code::InvalidArgument, "{refusal}");
    assert!(refusal.message().contains("generation 3 is reported after 4"), "{refusal}");
    let view = origin.until("web1", |a| !a.connected).await;
    assert_eq!(view.generation, GenerationNumber::new(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_out_of_order_and_other_protocols_are_refused() {
    let origin = Origin::start().await;
    let node = origin.node("web1").await;
    let newer = v1::Hello { protocol_min: 2, protocol_max: 3, ..hello() };
    let refused = origin.subscribe(&node, newer).await.refusal().await;
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    let mut control = origin.attached(&node, hello()).await;
    control.say(ToOrigin::Hello(hello())).await;
    assert_eq!(control.refusal().await.code(), Code::InvalidArgument);
    let foreign = v1::SignedGeneration { record: Bytes::from_static(b"x"), signature: Bytes::new() };
    let _control = origin.attached(&node, v1::Hello { live: Some(foreign), ..hello() }).await;
    let view = origin.until("web1", |a| a.connected && !a.notes.is_empty()).await;
    assert_eq!((view.generation, view.state), (None, AgentState::Empty));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_has_a_bounded_number_of_fetch_streams() {
    let origin = Origin::start().await;
    let node = origin.node("web1").await;
    let mut client = replication(origin.channel(&node).await.unwrap());
    let mut open = Vec::new();
    for _ in 0..4 {
        let (sender, receiver) = mpsc::channel(1);
        open.push((sender, client.fetch(ReceiverStream::new(receiver)).await.unwrap()));
    }
    let refused = client.fetch(tokio_stream::empty()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    drop(open);
    let again = async {
        while client.fetch(tokio_stream::empty()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, again).await.expect("places are given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_a_newer_trust_document_shows_that_this_origin_is_older() {
    let origin = Origin::start().await;
    let node = origin.node("web1").await;
    let _control = origin.attached(&node, v1::Hello { trust: 7, ..hello() }).await;
    let view = origin.until("web1", |a| a.connected && !a.notes.is_empty()).await;
    assert!(view.notes[0].contains("trust document 7, newer than 1"), "{:?}", view.notes);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_key_that_a_node_has_pinned_is_known() {
    let origin = Origin::start().await;
    let node = origin.node("web1").await;
    let pinned = [7; 32];
    let hello = |key: &[u8]| v1::Hello { root_key: Bytes::copy_from_slice(key), ..hello() };
    let control = origin.attached(&node, hello(&pinned)).await;
    let view = origin.until("web1", |a| a.connected).await;
    assert_eq!(view.root_key, Some(RootFingerprint::from_bytes(pinned)));
    drop(control);
    // It is known while the node is away, and an older agent does not report it.
    let view = origin.until("web1", |a| !a.connected).await;
    assert!(view.root_key.is_some());
    let _control = origin.attached(&node, hello(&[])).await;
    origin.until("web1", |a| a.connected && a.root_key.is_none()).await;
}

#[test]
fn a_welcome_names_collected_directories_only_if_this_origin_has_them() {
    assert_eq!(features(true), ["deltas", "collected"]);
    assert_eq!(features(false), ["deltas"]);
    assert!(takes_updates(&[FEATURE_DELTAS.to_owned()]), "agents name no collected directories");
}
