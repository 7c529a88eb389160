//! An origin with valid keys that lies: real TLS, real gRPC, and any message that a test wants.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use syncd_proto::v1;
use syncd_proto::v1::agent_message::Message as FromAgent;
use syncd_proto::v1::enrolment_server::{Enrolment, EnrolmentServer};
use syncd_proto::v1::fetch_frame::Frame as F;
use syncd_proto::v1::origin_message::Message as ToAgent;
use syncd_proto::v1::replication_server::{Replication, ReplicationServer};
use syncd_runtime::tls;
use syncd_shared::ed25519::SigningKey;
use syncd_shared::generation::Generation;
use syncd_shared::identity::authority::{self, Authority};
use syncd_shared::identity::{JoinToken, RootKey, SignedTrust, TrustDocument, signing};
use syncd_shared::limits::FETCH_MESSAGE_MAX_BYTES;
use syncd_shared::wire::ObjectsBatch;
use syncd_shared::{GenerationNumber, RootEntry, SignedGeneration, TreeId};
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

use super::site::Site;

pub const TREE: TreeId = TreeId::from_bytes([9; 16]);
const PATIENCE: Duration = Duration::from_secs(60);

/// Changes an honest answer before it is sent; `None` ends the stream. The returned frames are sent one by
/// one, for ever if the iterator never ends.
pub type Twist = Arc<dyn Fn(Vec<F>) -> Box<dyn Iterator<Item = F> + Send> + Send + Sync>;

#[derive(Clone)]
struct Services {
    authority: Arc<Authority>,
    trust: SignedTrust,
    conversations: mpsc::Sender<Conversation>,
    stage: Arc<Mutex<Stage>>,
}

/// Answers to fetches.
#[derive(Default)]
struct Stage {
    site: Arc<Site>,
    twist: Option<Twist>,
}

pub struct FakeOrigin {
    pub runtime: Runtime,
    pub address: String,
    pub signing_key: SigningKey,
    pub root: RootKey,
    pub trust: SignedTrust,
    pub token: JoinToken,
    conversations: mpsc::Receiver<Conversation>,
    stage: Arc<Mutex<Stage>>,
}

impl FakeOrigin {
    pub fn start() -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let now = OffsetDateTime::now_utc();
        let authority = Arc::new(Authority::create(TREE, now).expect("an authority"));
        let key = authority::generate_key().expect("a key");
        let certificate = authority.issue_origin(&key, now).expect("a certificate");
        let signing_key = signing::generate().expect("a signing key");
        let root = RootKey::generate(TREE).expect("a root key");
        let trust =
            TrustDocument::first(&root, signing_key.verifying_key(), authority.certificate(), 0, i64::MAX);
        let token = JoinToken::generate(TREE, root.fingerprint(), trust.number()).expect("a token");
        let own =
            tls::OriginTls::new(authority.certificate(), &certificate, &key, &[]).expect("a certificate");
        let config = tls::server_config(Arc::new(own), Arc::new(|_| true)).expect("a TLS configuration");
        let (sender, conversations) = mpsc::channel(64);
        let stage = Arc::new(Mutex::new(Stage::default()));
        let services =
            Services { authority, trust: trust.clone(), conversations: sender, stage: stage.clone() };
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("listen");
        let address = listener.local_addr().expect("an address").to_string();
        runtime.spawn(serve(listener, TlsAcceptor::from(config), services));
        Self { runtime, address, signing_key, root, trust, token, conversations, stage }
    }

    /// Answers fetches from this site from now on, changed by `twist`.
    pub fn serve(&self, site: &Arc<Site>, twist: Option<Twist>) {
        *self.stage.lock().expect("not poisoned") = Stage { site: site.clone(), twist };
    }

    /// A record as an honest origin would sign it.
    pub fn generation(&self, number: u64, root: RootEntry) -> Generation {
        Generation {
            tree_id: TREE,
            epoch: 1,
            trust: 1,
            number: GenerationNumber::new(number).expect("a number"),
            root,
            parent: None,
            created_ms: 0,
            label: String::new(),
        }
    }

    pub fn sign(&self, number: u64, root: RootEntry) -> SignedGeneration {
        self.generation(number, root).sign(&self.signing_key)
    }

    /// Waits for the next agent that subscribes, and welcomes it if `welcome`.
    pub fn conversation(&mut self, welcome: bool) -> Conversation {
        let next = async { tokio::time::timeout(PATIENCE, self.conversations.recv()).await };
        let mut conversation = self.runtime.block_on(next).expect("in time").expect("an agent subscribes");
        let hello = self.runtime.block_on(conversation.from_agent.message()).expect("a message");
        assert!(matches!(hello.and_then(|m| m.message), Some(FromAgent::Hello(_))), "hello comes first");
        if welcome {
            // Heartbeats are answered only while a test hears: three of them leave it time for its own work.
            let welcome = v1::Welcome { protocol: 1, heartbeat_interval_ms: 10_000, ..Default::default() };
            self.say(&conversation, ToAgent::Welcome(welcome));
        }
        conversation
    }

    pub fn say(&self, conversation: &Conversation, message: ToAgent) {
        self.say_raw(conversation, v1::OriginMessage { message: Some(message) });
    }

    pub fn say_raw(&self, conversation: &Conversation, message: v1::OriginMessage) {
        let _ = self.runtime.block_on(conversation.to_agent.send(Ok(message)));
    }

    /// Waits for the agent's next relevant message; `None`: it disconnected.
    pub fn hear(&self, conversation: &mut Conversation) -> Option<Heard> {
        self.runtime.block_on(async {
            loop {
                let message = tokio::time::timeout(PATIENCE, conversation.from_agent.message()).await;
                match message.expect("the agent says something in time").ok()??.message? {
                    FromAgent::Heartbeat(beat) => {
                        let message = v1::OriginMessage { message: Some(ToAgent::Heartbeat(beat)) };
                        let _ = conversation.to_agent.send(Ok(message)).await;
                    }
                    FromAgent::Activated(activated) => return Some(Heard::Activated(activated.generation)),
                    FromAgent::Failed(failed) => return Some(Heard::Failed(failed.reason)),
                    _ => {}
                }
            }
        })
    }
}

/// Reaction of the agent to an announcement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    Activated(u64),
    Failed(String),
}

/// The origin's end of a control stream.
pub struct Conversation {
    from_agent: Streaming<v1::AgentMessage>,
    to_agent: mpsc::Sender<Result<v1::OriginMessage, Status>>,
}

pub fn announce(generation: &SignedGeneration, update_file: Option<Bytes>) -> ToAgent {
    announce_bytes(generation.record(), generation.signature(), update_file)
}

pub fn announce_bytes(record: &[u8], signature: &[u8], update_file: Option<Bytes>) -> ToAgent {
    let generation = v1::SignedGeneration {
        record: Bytes::copy_from_slice(record),
        signature: Bytes::copy_from_slice(signature),
    };
    let update_file = update_file.unwrap_or_default();
    ToAgent::Announce(v1::Announce {
        generation: Some(generation),
        activate_when_staged: true,
        update_file,
        ..Default::default()
    })
}

struct Wire(TlsStream<TcpStream>);

impl Connected for Wire {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, out)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, services: Services) {
    let (wires, incoming) = mpsc::channel(4);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, wires) = (acceptor.clone(), wires.clone());
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(tcp).await {
                    let _ = wires.send(Ok::<_, std::io::Error>(Wire(stream))).await;
                }
            });
        }
    });
    let replication = ReplicationServer::new(services.clone())
        .max_encoding_message_size(2 * FETCH_MESSAGE_MAX_BYTES)
        .max_decoding_message_size(FETCH_MESSAGE_MAX_BYTES);
    let _ = tonic::transport::Server::builder()
        .add_service(replication)
        .add_service(EnrolmentServer::new(services))
        .serve_with_incoming(ReceiverStream::new(incoming))
        .await;
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
        let _ = self.conversations.send(Conversation { from_agent: request.into_inner(), to_agent }).await;
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn fetch(
        &self,
        request: Request<Streaming<v1::FetchRequest>>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        use v1::fetch_request::Request as R;
        let mut requests = request.into_inner();
        let (sender, stream) = mpsc::channel(1);
        let stage = self.stage.clone();
        tokio::spawn(async move {
            let mut ordinal = 0;
            while let Ok(Some(request)) = requests.message().await {
                let Some(R::Objects(request)) = request.request else {
                    let _ = sender.send(Err(Status::not_found("no updates here"))).await;
                    return;
                };
                let (_, batch) = ObjectsBatch::from_message(&request).expect("agents ask properly");
                let frames: Box<dyn Iterator<Item = F> + Send> = {
                    let stage = stage.lock().expect("not poisoned");
                    let honest = stage.site.answer(ordinal, &batch);
                    match &stage.twist {
                        Some(twist) => twist(honest),
                        None => Box::new(honest.into_iter()),
                    }
                };
                ordinal += 1;
                for (item, frame) in (0..).zip(frames) {
                    if sender.send(Ok(v1::FetchFrame { item, frame: Some(frame) })).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

#[tonic::async_trait]
impl Enrolment for Services {
    async fn trust(&self, _: Request<v1::TrustRequest>) -> Result<Response<v1::TrustDocument>, Status> {
        Ok(Response::new(v1::TrustDocument { document: Bytes::copy_from_slice(self.trust.bytes()) }))
    }

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let request = request.into_inner();
        let name =
            String::from_utf8_lossy(&request.name).parse().map_err(|_| Status::invalid_argument("a name"))?;
        let now = OffsetDateTime::now_utc();
        let issued = self.authority.issue_agent(&name, &request.certificate_request, now);
        let (certificate, _) = issued.map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(v1::JoinResponse { certificate: Bytes::copy_from_slice(&certificate) }))
    }

    async fn renew(&self, _: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        Err(Status::unavailable("not today"))
    }
}

/// Peak resident memory of a process in MiB.
pub fn peak_mib(pid: u32) -> u64 {
    let status =
        std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status")).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("kB") / 1024
}
