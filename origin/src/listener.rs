//! Accepts agents over TCP, runs TLS handshakes within limits, and passes connections to tonic.
//!
//! One task owns the listening socket and all handshakes. At most [`HANDSHAKES_MAX`] run at once, and
//! [`HANDSHAKES_PER_PEER_MAX`] with one address. Others wait in line, so that a whole fleet behind one
//! address can reconnect at once without being refused: at most [`WAITING_MAX`], and [`WAITING_PER_PEER_MAX`]
//! from one address.
//!
//! | limit | applies to |
//! | --- | --- |
//! | [`HELLO_TIMEOUT`] | the first bytes, before a connection enters any queue; and the complete ClientHello, once it has a slot |
//! | [`HANDSHAKE_TIMEOUT`] | from accepting to the end of the handshake |
//! | [`JOIN_TIMEOUT`] | life of a connection without a client certificate, which can only join |
//! | [`JOINS_MAX`], [`JOINS_PER_PEER_MAX`] | number of such connections, in total and from one address |
//! | [`CONNECTIONS_PER_AGENT_MAX`] | connections of one agent |
//!
//! Failures are logged and affect no other connection. After its handshake, a connection beyond a limit is
//! refused with a reason ([`Busy`]). A verified connection ends when its [`ConnectionInfo`] is closed (after
//! a revocation, or for a second one with the same certificate), and when it makes no progress
//! ([`connection`]).

pub mod connection;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::server::Acceptor;
use socket2::SockRef;
use syncd_runtime::channel::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT};
use syncd_shared::identity::authority::peer_identity;
use syncd_shared::identity::{AgentName, Busy, PeerIdentity};
use syncd_shared::limits::{HTTP2_FRAME_BYTES, ORIGIN_CONNECTION_WINDOW_BYTES, ORIGIN_STREAM_WINDOW_BYTES};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tracing::{debug, warn};

pub use connection::{Connection, ConnectionInfo, Written};

use crate::line_budget::LineBudget;
use crate::metrics::{Refused, metrics};

/// Maximum number of concurrent handshakes.
pub const HANDSHAKES_MAX: usize = 256;
/// Maximum number of concurrent handshakes with one address.
pub const HANDSHAKES_PER_PEER_MAX: usize = 64;
/// Maximum number of accepted connections before the end of their handshake. Each costs a descriptor and
/// about 2 KiB.
pub const WAITING_MAX: usize = 8192;
/// The same limit for one address.
pub const WAITING_PER_PEER_MAX: usize = 2048;
/// Time limit from accepting a connection to the end of its handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time limit for the first bytes of a connection, and again for the complete ClientHello once it has a slot.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum number of connections without a client certificate.
pub const JOINS_MAX: usize = 64;
/// Life of a connection without a client certificate, or with one that is not valid now.
pub const JOIN_TIMEOUT: Duration = Duration::from_secs(30);
/// The same limit for one address, so that strangers there leave room for other nodes.
pub const JOINS_PER_PEER_MAX: usize = 32;
/// Established connections of one agent. It needs two, and as many again while it reconnects.
pub const CONNECTIONS_PER_AGENT_MAX: usize = 8;
/// Maximum number of concurrent requests on one connection.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 64;
/// Total size of the headers of one request.
pub const HEADERS_MAX_BYTES: u32 = 16 * 1024;

/// Bytes that the kernel accepts before it can send them. Its own limit is megabytes. A ping waits behind
/// all of them, and on a thin line the peer would look dead.
const UNSENT_MAX_BYTES: u32 = 128 * 1024;
/// Streams reset because the peer violated the protocol, before the connection ends. tonic's default is
/// unlimited; agents never violate it.
const RULES_BROKEN_MAX: usize = 64;
/// Time limit for telling a peer that there is no room.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after the process ran out of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Connections that tonic has not accepted yet.
const QUEUE: usize = 16;

/// Limits log lines about invalid certificates.
static REFUSED: LineBudget = LineBudget::new();
/// Limits log lines about connections beyond a limit.
static TOO_MANY: LineBudget = LineBudget::new();

/// tonic's server with all required settings.
pub fn server_builder() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(ORIGIN_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(ORIGIN_CONNECTION_WINDOW_BYTES)
        .max_frame_size(HTTP2_FRAME_BYTES)
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_max_header_list_size(HEADERS_MAX_BYTES)
        .http2_max_local_error_reset_streams(Some(RULES_BROKEN_MAX))
}

/// Counts established connections by peer.
#[derive(Clone, Default)]
struct Registry(Arc<Mutex<HashMap<Who, usize>>>);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Who {
    Agent(AgentName),
    Stranger(IpAddr),
}

/// One established connection; counted until it is dropped.
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

/// Accepts connections on `listener` until the stream is dropped, which `serve_with_incoming_shutdown` does
/// on shutdown. Dropping it ends handshakes in progress, but not connections already passed on.
pub fn incoming(listener: TcpListener, tls: Arc<ServerConfig>) -> ReceiverStream<io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(accept_all(listener, tls, sender));
    ReceiverStream::new(receiver)
}

async fn accept_all(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    sender: mpsc::Sender<io::Result<Connection>>,
) {
    let joins = Arc::new(Semaphore::new(JOINS_MAX));
    let all = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let registry = Registry::default();
    let mut handshakes = JoinSet::new();
    let peers = Peers::default();
    loop {
        tokio::select! {
            () = sender.closed() => return,
            Some(_) = handshakes.join_next() => {}
            accepted = listener.accept(), if handshakes.len() < WAITING_MAX => match accepted {
                Ok((tcp, address)) => {
                    let Some((waiting, of_peer)) = peers.admit(peer_key(address.ip())) else {
                        debug!(%address, "too many handshakes wait with this address, connection dropped");
                        continue;
                    };
                    let slots = [of_peer, all.clone()];
                    let (tls, joins, registry) = (tls.clone(), joins.clone(), registry.clone());
                    let handshake = Handshake { tls, slots, joins, registry, address };
                    let sender = sender.clone();
                    handshakes.spawn(async move {
                        // Given back also where the handshake panics.
                        let _waiting = waiting;
                        if let Some(connection) = handshake.run(tcp).await {
                            // Fails only when nobody serves any more.
                            let _ = sender.send(Ok(connection)).await;
                        }
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

/// Counts connections whose handshake is not complete, by address.
#[derive(Clone, Default)]
struct Peers(Arc<Mutex<HashMap<IpAddr, Peer>>>);

/// Counts as one such connection until dropped, also by a panic.
struct Waiting {
    peers: Peers,
    key: IpAddr,
}

impl Peers {
    /// Counts one more connection and returns the slots of its address. `None` if there are too many.
    fn admit(&self, key: IpAddr) -> Option<(Waiting, Arc<Semaphore>)> {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let peer = peers.entry(key).or_default();
        if peer.connections >= WAITING_PER_PEER_MAX {
            return None;
        }
        peer.connections = peer.connections.saturating_add(1);
        Some((Waiting { peers: self.clone(), key }, peer.handshakes.clone()))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut peers = self.peers.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.get_mut(&self.key) {
            peer.connections = peer.connections.saturating_sub(1);
            if peer.connections == 0 {
                peers.remove(&self.key);
            }
        }
    }
}

/// An address with connections whose handshake is not complete.
struct Peer {
    connections: usize,
    handshakes: Arc<Semaphore>,
}

impl Default for Peer {
    fn default() -> Self {
        Self { connections: 0, handshakes: Arc::new(Semaphore::new(HANDSHAKES_PER_PEER_MAX)) }
    }
}

async fn said_within<T>(limit: Duration, said: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(limit, said).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

struct Handshake {
    tls: Arc<ServerConfig>,
    /// Slots of the address, then of all addresses, so that each address waits in the second queue only for
    /// its share.
    slots: [Arc<Semaphore>; 2],
    joins: Arc<Semaphore>,
    registry: Registry,
    address: SocketAddr,
}

impl Handshake {
    /// Performs the TLS handshake once there is a slot. The semaphores are never closed.
    async fn accept(&self, tcp: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        said_within(HELLO_TIMEOUT, tcp.readable()).await?;
        let _of_peer = self.slots[0].acquire().await.map_err(io::Error::other)?;
        let _of_all = self.slots[1].acquire().await.map_err(io::Error::other)?;
        let hello = LazyConfigAcceptor::new(Acceptor::default(), tcp);
        let start = said_within(HELLO_TIMEOUT, hello).await?;
        start.into_stream(self.tls.clone()).await
    }

    async fn run(self, tcp: TcpStream) -> Option<Connection> {
        let address = self.address;
        let set = tcp.set_nodelay(true);
        if let Err(error) = set.and_then(|()| SockRef::from(&tcp).set_tcp_notsent_lowat(UNSENT_MAX_BYTES)) {
            debug!(%address, %error, "setting TCP_NODELAY and TCP_NOTSENT_LOWAT failed");
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
            Some(Ok(identity)) => self.admit_agent(stream, identity).await,
            Some(Err(error)) => {
                metrics().refused(Refused::Connection);
                if let Some(left_out) = REFUSED.admit() {
                    warn!(%address, %error, left_out, "connection refused");
                }
                None
            }
            None => self.admit_stranger(stream).await,
        }
    }

    async fn admit_agent(self, stream: TlsStream<TcpStream>, identity: PeerIdentity) -> Option<Connection> {
        let address = self.address;
        if let Some(established) = self.registry.admit(Who::Agent(identity.name.clone())) {
            return Some(Connection::new(stream, address, Some(identity), None, established));
        }
        let limit = CONNECTIONS_PER_AGENT_MAX;
        if let Some(left_out) = TOO_MANY.admit() {
            let text = "too many connections of one agent, one dropped";
            warn!(%address, agent = %identity.name, limit, left_out, "{text}");
        }
        tell_busy(stream, Busy::Connections).await;
        None
    }

    /// Admits a connection without a client certificate, which can only join.
    async fn admit_stranger(self, stream: TlsStream<TcpStream>) -> Option<Connection> {
        let address = self.address;
        let established = self.registry.admit(Who::Stranger(peer_key(address.ip())));
        let permit = self.joins.try_acquire_owned();
        if let (Some(established), Ok(permit)) = (established, permit) {
            return Some(Connection::new(stream, address, None, Some(permit), established));
        }
        metrics().refused(Refused::Connection);
        let (limit, in_all) = (JOINS_PER_PEER_MAX, JOINS_MAX);
        if let Some(left_out) = TOO_MANY.admit() {
            let text = "too many connections without a certificate, one dropped";
            warn!(%address, limit, in_all, left_out, "{text}");
        }
        tell_busy(stream, Busy::Joins).await;
        None
    }
}

/// Tells the peer that there is no room, if possible. Otherwise it only sees the connection end.
async fn tell_busy(mut stream: TlsStream<TcpStream>, busy: Busy) {
    let told = async {
        stream.write_all(&busy.encode()).await?;
        stream.shutdown().await
    };
    if !matches!(tokio::time::timeout(BUSY_TIMEOUT, told).await, Ok(Ok(()))) {
        debug!(?busy, "a refused connection was closed before it got the reason");
    }
}

/// Refused certificates deserve an operator's attention, noise from port scanners does not.
fn log_refusal(address: SocketAddr, error: &io::Error) {
    metrics().refused(Refused::Handshake);
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    if let Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Revoked)) = tls {
        debug!(%address, "agent refused; the decision was logged");
    } else if let Some(rustls::Error::InvalidCertificate(reason)) = tls {
        if let Some(left_out) = REFUSED.admit() {
            warn!(%address, ?reason, left_out, "agent refused: its certificate does not hold");
        }
    } else {
        debug!(%address, %error, "TLS handshake failed");
    }
}

/// Masks IPv6 addresses to /64, because one host often has a whole /64.
fn peer_key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

#[cfg(test)]
mod tests;
