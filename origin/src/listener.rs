//! Accepts agents: TCP, then TLS within bounds, and hands connections to tonic.
//!
//! One task owns the listening socket and all handshakes. At most [`HANDSHAKES_MAX`] run at once, of which
//! [`HANDSHAKES_PER_PEER_MAX`] for one address. Others wait in turn, so that a whole fleet behind one address that comes
//! back at once is served and not refused: at most [`WAITING_MAX`], of which [`WAITING_PER_PEER_MAX`] from one address.
//! From accept to the end of its handshake a connection has [`HANDSHAKE_TIMEOUT`]; what fails is logged and ends
//! nothing. A connection without a client certificate is there to join: it lives for [`JOIN_TIMEOUT`], and at most
//! [`JOINS_MAX`] of them at once, [`JOINS_PER_PEER_MAX`] from one address. One agent has at most
//! [`CONNECTIONS_PER_AGENT_MAX`]. A verified connection ends when its [`ConnectionInfo`] is closed (revoked, or a
//! second one with the same certificate).

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::ServerConfig;
use syncd_shared::identity::authority::peer_identity;
use syncd_shared::identity::channel::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT};
use syncd_shared::identity::{AgentName, PeerIdentity};
use syncd_shared::limits::{HTTP2_FRAME_BYTES, ORIGIN_CONNECTION_WINDOW_BYTES, ORIGIN_STREAM_WINDOW_BYTES};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

/// Handshakes at once.
pub const HANDSHAKES_MAX: usize = 256;
/// Handshakes at once with one address.
pub const HANDSHAKES_PER_PEER_MAX: usize = 64;
/// Accepted connections whose handshake is not done, at once; a waiting one costs a descriptor and about 2 KiB.
pub const WAITING_MAX: usize = 8192;
/// The same with one address.
pub const WAITING_PER_PEER_MAX: usize = 2048;
/// From the accepted connection to the end of its handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections without a client certificate at once.
pub const JOINS_MAX: usize = 64;
/// Life of a connection without a client certificate.
pub const JOIN_TIMEOUT: Duration = Duration::from_secs(30);
/// The same from one address: strangers there leave room for the nodes of others.
pub const JOINS_PER_PEER_MAX: usize = 32;
/// Established connections of one agent: it needs two, and as many again while it reconnects.
pub const CONNECTIONS_PER_AGENT_MAX: usize = 8;
/// Requests at once on one connection.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 64;
/// All headers of one request, in bytes.
pub const HEADERS_MAX_BYTES: u32 = 16 * 1024;

/// Pause after the process ran out of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Connections that tonic has not taken yet.
const QUEUE: usize = 16;

/// tonic's server with every setting that the origin needs.
pub fn server_builder() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(ORIGIN_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(ORIGIN_CONNECTION_WINDOW_BYTES)
        .max_frame_size(HTTP2_FRAME_BYTES)
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_max_header_list_size(HEADERS_MAX_BYTES)
}

/// Who is on a connection: in the extensions of every request on it.
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    /// The agent's address, or that of what is between.
    pub peer_address: SocketAddr,
    /// The verified and admitted certificate; `None` without one (then only `Join` is for it).
    pub identity: Option<PeerIdentity>,
    closed: CancellationToken,
}

impl ConnectionInfo {
    /// Ends the connection and all streams on it at once.
    pub fn close(&self) {
        self.closed.cancel();
    }
}

/// An accepted TLS connection.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    info: ConnectionInfo,
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
    ended: bool,
    _join_permit: Option<OwnedSemaphorePermit>,
    _established: Established,
}

/// Counts connections that are through their handshake, by who is on them.
#[derive(Clone, Default)]
struct Registry(Arc<Mutex<HashMap<Who, usize>>>);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Who {
    Agent(AgentName),
    Stranger(IpAddr),
}

/// One of them, until it is dropped.
struct Established {
    registry: Registry,
    who: Who,
}

impl Registry {
    fn admit(&self, who: Who) -> Option<Established> {
        let limit = match &who {
            Who::Agent(_) => CONNECTIONS_PER_AGENT_MAX,
            Who::Stranger(_) => JOINS_PER_PEER_MAX,
        };
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(who.clone()).or_default();
        if *count >= limit {
            return None;
        }
        *count = count.saturating_add(1);
        Some(Established { registry: self.clone(), who })
    }
}

impl Drop for Established {
    fn drop(&mut self) {
        let mut counts = self.registry.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.who) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.who);
            }
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

impl Connection {
    fn new(
        stream: TlsStream<TcpStream>,
        peer_address: SocketAddr,
        identity: Option<PeerIdentity>,
        join_permit: Option<OwnedSemaphorePermit>,
        established: Established,
    ) -> Self {
        let closed = CancellationToken::new();
        let cancelled = closed.clone().cancelled_owned();
        let limit = identity.is_none().then_some(JOIN_TIMEOUT);
        let end = Box::pin(async move {
            match limit {
                Some(limit) => drop(tokio::time::timeout(limit, cancelled).await),
                None => cancelled.await,
            }
        });
        let info = ConnectionInfo { peer_address, identity, closed };
        Self { stream, info, end, ended: false, _join_permit: join_permit, _established: established }
    }

    /// An error once the connection was closed. Polled by every read; a connection always has a read pending.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        self.ended = self.ended || self.end.as_mut().poll(context).is_ready();
        if self.ended { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Accepts on `listener` until the stream is dropped: `serve_with_incoming_shutdown` does that when its signal comes.
/// Handshakes under way are then dropped, connections handed over are not.
pub fn incoming(listener: TcpListener, tls: Arc<ServerConfig>) -> ReceiverStream<io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(accept_all(listener, TlsAcceptor::from(tls), sender));
    ReceiverStream::new(receiver)
}

async fn accept_all(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    sender: mpsc::Sender<io::Result<Connection>>,
) {
    let joins = Arc::new(Semaphore::new(JOINS_MAX));
    let all = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let registry = Registry::default();
    let mut handshakes = JoinSet::new();
    let mut peers: HashMap<IpAddr, Peer> = HashMap::new();
    loop {
        tokio::select! {
            () = sender.closed() => return,
            Some(ended) = handshakes.join_next() => {
                if let Ok(peer) = ended {
                    forget(&mut peers, peer);
                }
            }
            accepted = listener.accept(), if handshakes.len() < WAITING_MAX => match accepted {
                Ok((tcp, address)) => {
                    let key = peer_key(address.ip());
                    let peer = peers.entry(key).or_default();
                    if peer.connections >= WAITING_PER_PEER_MAX {
                        debug!(%address, "too many handshakes wait with this address, connection dropped");
                        continue;
                    }
                    peer.connections += 1;
                    let slots = [peer.handshakes.clone(), all.clone()];
                    let (acceptor, joins, registry) = (acceptor.clone(), joins.clone(), registry.clone());
                    let handshake = Handshake { acceptor, slots, joins, registry, address };
                    let sender = sender.clone();
                    handshakes.spawn(async move {
                        if let Some(connection) = handshake.run(tcp).await {
                            // Fails only when nobody serves any more.
                            let _ = sender.send(Ok(connection)).await;
                        }
                        key
                    });
                }
                Err(error) if is_about_one_connection(&error) => debug!(%error, "a connection broke before it was accepted"),
                Err(error) => {
                    warn!(%error, "accepting connections failed, trying again (raise the limit of open files, if it is that)");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

/// One address, while connections from it are not through their handshake.
struct Peer {
    connections: usize,
    handshakes: Arc<Semaphore>,
}

impl Default for Peer {
    fn default() -> Self {
        Self { connections: 0, handshakes: Arc::new(Semaphore::new(HANDSHAKES_PER_PEER_MAX)) }
    }
}

struct Handshake {
    acceptor: TlsAcceptor,
    /// Those of its address, then those of all: so nobody waits in the second queue for more than its share.
    slots: [Arc<Semaphore>; 2],
    joins: Arc<Semaphore>,
    registry: Registry,
    address: SocketAddr,
}

impl Handshake {
    /// TLS, once there is a slot. An error also where the semaphores are closed, which nobody does.
    async fn accept(&self, tcp: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let _of_peer = self.slots[0].acquire().await.map_err(io::Error::other)?;
        let _of_all = self.slots[1].acquire().await.map_err(io::Error::other)?;
        self.acceptor.accept(tcp).await
    }

    async fn run(self, tcp: TcpStream) -> Option<Connection> {
        let address = self.address;
        if let Err(error) = tcp.set_nodelay(true) {
            debug!(%address, %error, "setting TCP_NODELAY failed");
            return None;
        }
        let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, self.accept(tcp)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                log_refusal(address, &error);
                return None;
            }
            Err(_) => {
                debug!(%address, "TLS handshake took too long");
                return None;
            }
        };
        let certificates = stream.get_ref().1.peer_certificates();
        match certificates.and_then(|chain| chain.first()).map(peer_identity) {
            Some(Ok(identity)) => match self.registry.admit(Who::Agent(identity.name.clone())) {
                Some(established) => {
                    Some(Connection::new(stream, address, Some(identity), None, established))
                }
                None => {
                    let limit = CONNECTIONS_PER_AGENT_MAX;
                    warn!(%address, agent = %identity.name, limit, "too many connections of one agent, one dropped");
                    None
                }
            },
            Some(Err(error)) => {
                warn!(%address, %error, "connection refused");
                None
            }
            None => {
                let established = self.registry.admit(Who::Stranger(peer_key(address.ip())));
                let permit = self.joins.try_acquire_owned();
                match (established, permit) {
                    (Some(established), Ok(permit)) => {
                        Some(Connection::new(stream, address, None, Some(permit), established))
                    }
                    _ => {
                        warn!(%address, limit = JOINS_MAX, "too many connections without a certificate, one dropped");
                        None
                    }
                }
            }
        }
    }
}

/// A refused certificate is worth an operator's eye, noise from port scanners is not.
fn log_refusal(address: SocketAddr, error: &io::Error) {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    if let Some(rustls::Error::InvalidCertificate(reason)) = tls {
        warn!(%address, ?reason, "agent refused: its certificate does not hold");
    } else {
        debug!(%address, %error, "TLS handshake failed");
    }
}

/// One host often has a whole IPv6 /64.
fn peer_key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

fn forget(peers: &mut HashMap<IpAddr, Peer>, key: IpAddr) {
    if let Some(peer) = peers.get_mut(&key) {
        peer.connections -= 1;
        if peer.connections == 0 {
            peers.remove(&key);
        }
    }
}

/// Raises the soft limit of open files to the hard one: each agent holds one or two, and shells still start programs
/// with 1,024.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) =
            setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        warn!(%error, "the limit of open files stays at {:?}", limit.current);
    }
}

fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

#[cfg(test)]
mod tests;
