//! An origin that does what a test asks for, over real TLS, and a replica that delays and fails on demand.

#![allow(dead_code)]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use syncd_agent::hooks::{Changed, Occasion};
use syncd_agent::identity::AgentIdentity;
use syncd_agent::join::{self, JoinOptions};
use syncd_agent::service::{self, RunOptions, Running};
use syncd_agent::session::worker::{
    BeforeSwitch, Failure, Inline, Maintenance, NotActivated, ReplicaState, ReplicaWork, Verified,
};
use syncd_agent::source::Source;
use syncd_proto::v1;
use syncd_proto::v1::agent_message::Message as FromAgent;
use syncd_proto::v1::enrolment_server::{Enrolment, EnrolmentServer};
use syncd_proto::v1::origin_message::Message as ToAgent;
use syncd_proto::v1::replication_server::{Replication, ReplicationServer};
use syncd_runtime::tls;
use syncd_shared::ed25519::SigningKey;
use syncd_shared::generation::Generation;
use syncd_shared::identity::authority::{self, Authority};
use syncd_shared::identity::{JoinToken, PeerIdentity, RootKey, SignedTrust, TrustDocument, signing};
use syncd_shared::{GenerationNumber, Progress, RootEntry, SignedGeneration, TreeId, TreePath};
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

pub const TREE: TreeId = TreeId::from_bytes([9; 16]);
/// Deadline that only a broken test reaches.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("timed out: {what}"))
}

/// A connection that a test can cut.
struct Wire {
    stream: TlsStream<TcpStream>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Connected for Wire {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(std::io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Answer to a fetch: frames, then the end of the stream or a status.
pub struct Answer {
    pub frames: Vec<v1::FetchFrame>,
    pub status: Option<Status>,
}

/// Request of an agent on a fetch stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Asked {
    Update { first_item: u64 },
    Objects,
}

pub struct FakeOrigin {
    pub address: SocketAddr,
    pub authority: Arc<Authority>,
    pub signing_key: SigningKey,
    pub root_key: RootKey,
    pub trust: SignedTrust,
    pub token: JoinToken,
    pub answers: Arc<Mutex<VecDeque<Answer>>>,
    pub asked: Arc<Mutex<Vec<Asked>>>,
    conversations: mpsc::Receiver<Conversation>,
    cut: Arc<Mutex<CancellationToken>>,
    admit: Arc<AtomicBool>,
}

#[derive(Clone)]
struct Services {
    authority: Arc<Authority>,
    trust: SignedTrust,
    secret: [u8; 16],
    conversations: mpsc::Sender<Conversation>,
    answers: Arc<Mutex<VecDeque<Answer>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl FakeOrigin {
    pub async fn start() -> Self {
        let authority = Arc::new(Authority::create(TREE, OffsetDateTime::now_utc()).unwrap());
        let key = authority::generate_key().unwrap();
        let certificate = authority.issue_origin(&key, OffsetDateTime::now_utc()).unwrap();
        let signing_key = signing::generate().unwrap();
        let root_key = RootKey::generate(TREE).unwrap();
        let trust = TrustDocument::first(
            &root_key,
            signing_key.verifying_key(),
            authority.certificate(),
            0,
            i64::MAX,
        );
        let token = JoinToken::generate(TREE, root_key.fingerprint(), trust.number()).unwrap();
        let admit = Arc::new(AtomicBool::new(true));
        let admitting = admit.clone();
        let own = tls::OriginTls::new(authority.certificate(), &certificate, &key, &[]).unwrap();
        let config = tls::server_config(
            Arc::new(own),
            Arc::new(move |_: &PeerIdentity| admitting.load(Ordering::SeqCst)),
        )
        .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, conversations) = mpsc::channel(16);
        let answers = Arc::new(Mutex::new(VecDeque::new()));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let services = Services {
            authority: authority.clone(),
            trust: trust.clone(),
            secret: token.secret,
            conversations: sender,
            answers: answers.clone(),
            asked: asked.clone(),
        };
        let cut = Arc::new(Mutex::new(CancellationToken::new()));
        let (wires, incoming) = mpsc::channel(4);
        tokio::spawn(accept(listener, TlsAcceptor::from(config), wires, cut.clone()));
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(ReplicationServer::new(services.clone()))
                .add_service(EnrolmentServer::new(services))
                .serve_with_incoming(ReceiverStream::new(incoming)),
        );
        Self {
            address,
            authority,
            signing_key,
            root_key,
            trust,
            token,
            answers,
            asked,
            conversations,
            cut,
            admit,
        }
    }

    /// Breaks all connections; new ones are accepted.
    pub fn cut(&self) {
        std::mem::take(&mut *self.cut.lock().unwrap()).cancel();
    }

    pub fn admit(&self, admit: bool) {
        self.admit.store(admit, Ordering::SeqCst);
    }

    pub fn answer(&self, frames: Vec<v1::FetchFrame>, status: Option<Status>) {
        self.answers.lock().unwrap().push_back(Answer { frames, status });
    }

    pub fn generation(&self, number: u64) -> SignedGeneration {
        self.generation_with_mode(number, 0o700 + u16::try_from(number % 8).unwrap())
    }

    pub fn generation_with_mode(&self, number: u64, mode: u16) -> SignedGeneration {
        let mut root = RootEntry::empty();
        root.metadata.mode = mode;
        Generation {
            tree_id: TREE,
            epoch: 1,
            trust: 1,
            number: GenerationNumber::new(number).unwrap(),
            root,
            parent: None,
            created_ms: 0,
            label: format!("release {number}"),
        }
        .sign(&self.signing_key)
    }

    pub async fn join(&self, root: &std::path::Path) -> AgentIdentity {
        let options = JoinOptions {
            address: self.address.to_string(),
            root: root.to_owned(),
            token: self.token.clone(),
            name: Some("web1".parse().unwrap()),
            rename: false,
            group: None,
            adopt: None,
        };
        join::join(options).await.unwrap().identity
    }

    /// Starts an agent with a fake replica.
    pub async fn agent(&self, root: &std::path::Path, replica: &FakeReplica) -> Running {
        let identity = self.join(root).await;
        self.agent_with(RunOptions::new(root.to_owned()), identity, replica).await
    }

    pub async fn agent_with(
        &self,
        options: RunOptions,
        identity: AgentIdentity,
        replica: &FakeReplica,
    ) -> Running {
        let http = "127.0.0.1:0".parse().unwrap();
        let options = RunOptions { http, http_required: true, ..options };
        service::start_with(options, identity, replica.clone()).await.unwrap()
    }

    /// Waits for the next agent that subscribes.
    pub async fn conversation(&mut self) -> Conversation {
        soon("an agent subscribes", self.conversations.recv()).await.unwrap()
    }

    /// Waits for the next agent that subscribes, and welcomes it.
    pub async fn welcomed(&mut self) -> Conversation {
        let mut conversation = self.conversation().await;
        conversation.hello = Some(conversation.hear_hello().await);
        conversation.welcome(100).await;
        conversation
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    wires: mpsc::Sender<std::io::Result<Wire>>,
    cut: Arc<Mutex<CancellationToken>>,
) {
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let (acceptor, wires, cut) = (acceptor.clone(), wires.clone(), cut.lock().unwrap().clone());
        tokio::spawn(async move {
            if let Ok(stream) = acceptor.accept(tcp).await {
                let _ = wires.send(Ok(Wire { stream, cut: Box::pin(cut.cancelled_owned()) })).await;
            }
        });
    }
}

#[tonic::async_trait]
impl Replication for Services {
    type SubscribeStream = ReceiverStream<Result<v1::OriginMessage, Status>>;
    type FetchStream = ReceiverStream<Result<v1::FetchFrame, Status>>;

    async fn subscribe(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let (to_agent, stream) = mpsc::channel(16);
        let from_agent = request.into_inner();
        let _ = self.conversations.send(Conversation { from_agent, to_agent, hello: None }).await;
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn fetch(
        &self,
        request: Request<Streaming<v1::FetchRequest>>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        use v1::fetch_request::Request as R;
        let mut requests = request.into_inner();
        while let Some(request) = requests.message().await? {
            self.asked.lock().unwrap().push(match request.request.unwrap() {
                R::Update(update) => Asked::Update { first_item: update.first_item },
                R::Objects(_) => Asked::Objects,
            });
        }
        let answer = self.answers.lock().unwrap().pop_front();
        let Some(answer) = answer else { return Err(Status::not_found("no such root")) };
        let (sender, stream) = mpsc::channel(1);
        tokio::spawn(async move {
            for frame in answer.frames {
                let _ = sender.send(Ok(frame)).await;
            }
            if let Some(status) = answer.status {
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

#[tonic::async_trait]
impl Enrolment for Services {
    async fn trust(&self, request: Request<v1::TrustRequest>) -> Result<Response<v1::TrustDocument>, Status> {
        if request.into_inner().tree_id != self.trust.document().tree_id.as_bytes()[..] {
            return Err(Status::failed_precondition("another tree"));
        }
        Ok(Response::new(v1::TrustDocument { document: Bytes::copy_from_slice(self.trust.bytes()) }))
    }

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let request = request.into_inner();
        if request.secret != self.secret[..] {
            return Err(Status::permission_denied("this token is spent or expired: make another"));
        }
        let name = std::str::from_utf8(&request.name).unwrap().parse().unwrap();
        let issued = self
            .authority
            .issue_agent(&name, &request.certificate_request, OffsetDateTime::now_utc())
            .unwrap();
        Ok(Response::new(v1::JoinResponse { certificate: Bytes::copy_from_slice(&issued.0) }))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        let name = "web1".parse().unwrap();
        let request = request.into_inner().certificate_request;
        let issued = self.authority.issue_agent(&name, &request, OffsetDateTime::now_utc()).unwrap();
        Ok(Response::new(v1::RenewResponse { certificate: Bytes::copy_from_slice(&issued.0) }))
    }
}

/// The origin's end of a control stream.
pub struct Conversation {
    from_agent: Streaming<v1::AgentMessage>,
    to_agent: mpsc::Sender<Result<v1::OriginMessage, Status>>,
    pub hello: Option<v1::Hello>,
}

impl Conversation {
    async fn hear_hello(&mut self) -> v1::Hello {
        match soon("hello", self.from_agent.message()).await.unwrap().unwrap().message.unwrap() {
            FromAgent::Hello(hello) => hello,
            other => panic!("{other:?}"),
        }
    }

    pub async fn say(&self, message: ToAgent) {
        let _ = self.to_agent.send(Ok(v1::OriginMessage { message: Some(message) })).await;
    }

    pub async fn welcome(&self, heartbeat_interval_ms: u32) {
        self.say(ToAgent::Welcome(v1::Welcome { protocol: 1, heartbeat_interval_ms, ..Default::default() }))
            .await;
    }

    pub async fn announce(&self, generation: &SignedGeneration, activate_when_staged: bool) {
        let generation = v1::SignedGeneration {
            record: Bytes::copy_from_slice(generation.record()),
            signature: Bytes::copy_from_slice(generation.signature()),
        };
        self.announce_message(generation, activate_when_staged).await;
    }

    pub async fn announce_message(&self, generation: v1::SignedGeneration, activate_when_staged: bool) {
        self.say(ToAgent::Announce(v1::Announce {
            generation: Some(generation),
            activate_when_staged,
            update_file: Bytes::new(),
            ..Default::default()
        }))
        .await;
    }

    /// Waits for the next message except heartbeats, which it answers, and progress.
    pub async fn hear(&mut self) -> Option<FromAgent> {
        loop {
            match soon("the agent says something", self.from_agent.message()).await.ok()??.message.unwrap() {
                FromAgent::Heartbeat(beat) => self.say(ToAgent::Heartbeat(beat)).await,
                FromAgent::Progress(_) => {}
                other => return Some(other),
            }
        }
    }

    pub async fn hear_activated(&mut self, number: u64) {
        loop {
            match self.hear().await {
                Some(FromAgent::Activated(activated)) if activated.generation == number => return,
                Some(FromAgent::Staged(_)) => {}
                other => panic!("expected Activated {number}: {other:?}"),
            }
        }
    }

    /// Waits for a switch after which the on-activate hook is due.
    pub async fn hear_switched(&mut self, number: u64) {
        loop {
            match self.hear().await {
                Some(FromAgent::Activated(a)) if a.generation == number => return assert!(a.hook_due),
                Some(FromAgent::Staged(_) | FromAgent::Failed(_)) => {}
                other => panic!("expected Activated {number}: {other:?}"),
            }
        }
    }

    /// Waits until the on-activate hook ended with this outcome.
    pub async fn hear_hook(&mut self, outcome: v1::HookOutcome) -> v1::HookReport {
        loop {
            match self.hear().await {
                Some(FromAgent::Hook(report)) if report.outcome() == outcome => return report,
                Some(FromAgent::Hook(_)) => {}
                other => panic!("expected a HookReport: {other:?}"),
            }
        }
    }

    /// Like [`Conversation::hear_activated`], but skips messages before it.
    pub async fn hear_activated_at_last(&mut self, number: u64) {
        loop {
            match self.hear().await {
                Some(FromAgent::Activated(activated)) if activated.generation == number => return,
                Some(FromAgent::Staged(_) | FromAgent::Activated(_)) => {}
                other => panic!("expected Activated {number}: {other:?}"),
            }
        }
    }

    pub async fn hear_failed(&mut self) -> v1::Failed {
        match self.hear().await {
            Some(FromAgent::Failed(failed)) => failed,
            other => panic!("expected Failed: {other:?}"),
        }
    }

    /// Waits for the next heartbeat without answering it.
    pub async fn hear_heartbeat(&mut self) -> bool {
        loop {
            match soon("heartbeat", self.from_agent.message()).await {
                Ok(Some(v1::AgentMessage { message: Some(FromAgent::Heartbeat(_)) })) => return true,
                Ok(Some(_)) => {}
                _ => return false,
            }
        }
    }
}

/// A replica in memory.
#[derive(Clone, Default)]
pub struct FakeReplica {
    pub inner: Arc<Mutex<FakeReplicaState>>,
}

#[derive(Default)]
pub struct FakeReplicaState {
    pub state: ReplicaState,
    /// Numbers whose staging blocks until it is cancelled.
    pub stuck: Vec<u64>,
    /// Staging blocks while this is set.
    pub gate: bool,
    pub failures: VecDeque<Failure>,
    pub staged: Vec<u64>,
    pub activated: Vec<u64>,
    pub verified: u64,
    /// Staging takes an update from the source.
    pub fetches: bool,
    pub frames: u64,
}

impl FakeReplica {
    pub fn lock(&self) -> std::sync::MutexGuard<'_, FakeReplicaState> {
        self.inner.lock().unwrap()
    }
}

impl ReplicaWork for FakeReplica {
    type Staged = SignedGeneration;

    fn state(&self) -> ReplicaState {
        self.lock().state.clone()
    }

    fn stage(
        &mut self,
        generation: &SignedGeneration,
        _inline: Option<Inline>,
        source: &mut dyn Source,
        progress: &dyn Fn(Progress),
        cancel: &AtomicBool,
    ) -> Result<SignedGeneration, Failure> {
        let number = generation.number().get();
        self.lock().staged.push(number);
        progress(Progress { files_done: 1, files_total: 2, bytes_done: 1, bytes_total: 2 });
        if let Some(failure) = self.lock().failures.pop_front() {
            return Err(failure);
        }
        while self.lock().gate || self.lock().stuck.contains(&number) {
            if cancel.load(Ordering::Relaxed) {
                return Err(Failure::superseded());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        if self.lock().fetches {
            let failure =
                |error: syncd_agent::source::FetchError| Failure::new(v1::RetryClass::Retry, &error);
            let frames = source.update(generation.root_hash(), generation.root_hash()).map_err(failure)?;
            for frame in frames {
                frame.map_err(failure)?;
                self.lock().frames += 1;
            }
        }
        Ok(generation.clone())
    }

    fn activate(
        &mut self,
        staged: SignedGeneration,
        before: &mut BeforeSwitch<'_>,
    ) -> Result<(), NotActivated<SignedGeneration>> {
        let paths = |show: &mut dyn FnMut(&TreePath)| {
            show(&TreePath::from_bytes(b"index.html").unwrap());
            Ok(())
        };
        let occasion = Occasion::of(&staged, None, "/t".into(), "/l".into());
        let tree = occasion.tree.clone();
        if let Err(error) = before(occasion, &Changed { all: &paths, slot: &paths, tree: &tree }) {
            let failure = Failure::new(v1::RetryClass::Retry, &error);
            return Err(NotActivated { failure, staged: Some(staged) });
        }
        let mut inner = self.lock();
        inner.activated.push(staged.number().get());
        inner.state.generations.push(staged.number());
        inner.state.accepted = Some(staged.clone());
        inner.state.live = Some(staged);
        Ok(())
    }

    fn maintain(&mut self, _: &AtomicBool) -> Maintenance {
        Maintenance::default()
    }

    fn verify(
        &mut self,
        _: &mut dyn Source,
        _: &dyn Fn(Progress),
        _: &AtomicBool,
    ) -> Result<Verified, Failure> {
        self.lock().verified += 1;
        Ok(Verified { files: 3, bytes: 30, drifted: 1, healed: true, ..Verified::default() })
    }
}
