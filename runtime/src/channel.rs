//! An agent's connection to the origin: TCP, TLS and HTTP/2, with errors that an operator can act on.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use rustls::AlertDescription;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Sleep;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use crate::rate::Bucket;
use crate::tls::{ClientTls, is_about_time};
use syncd_shared::identity::busy::Busy;
use syncd_shared::limits::{CONNECTION_WINDOW_BYTES, HTTP2_FRAME_BYTES, STREAM_WINDOW_BYTES};

/// Time limit from the first packet to the origin's first bytes inside TLS.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval at which both sides probe a silent connection.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// A connection whose probe is unanswered for this long is dead.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Buffer for the origin's first bytes, which [`dial`] waits for. Larger reads bypass it.
const FIRST_BYTES: usize = Busy::MAX_BYTES;

/// Under a rate limit the receive buffer holds a quarter of a second of data, which suffices for round trips
/// up to that.
const RECEIVE_BUFFERS_PER_SECOND: u64 = 4;
/// Smallest receive buffer under a limit.
const RECEIVE_BUFFER_LEAST_BYTES: u64 = 32 * 1024;
/// Largest receive buffer under a limit.
const RECEIVE_BUFFER_MOST_BYTES: u64 = 16 * 1024 * 1024;
/// Shorter pauses are skipped; the bucket keeps account of them.
const SHORTEST_PAUSE: Duration = Duration::from_millis(2);

type Stream = BufReader<TlsStream<Metered>>;

/// A TCP connection that is read at a limited rate. Unread data waits at the origin, except for a kernel
/// receive buffer sized for the rate, so the limit holds on the network and not only in the process.
struct Metered {
    tcp: TcpStream,
    limit: Option<Arc<Bucket>>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(context));
            self.pause = None;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.tcp).poll_read(context, buffer))?;
        if let Some(limit) = &self.limit {
            let wait = limit.take(buffer.filled().len() - before, Instant::now());
            if wait >= SHORTEST_PAUSE {
                self.pause = Some(Box::pin(tokio::time::sleep(wait)));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}

/// Errors of connecting to the origin.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name has no address, or the text is not HOST:PORT.
    #[error("can't find the address of {address}: use HOST:PORT")]
    Resolve {
        /// The dialled address.
        address: String,
        source: io::Error,
    },
    /// Nothing answered at the address.
    #[error("can't reach the origin at {address} (does it run, and is this TCP port open on the way?)")]
    Unreachable {
        /// The dialled address.
        address: String,
        source: io::Error,
    },
    /// The origin accepted the connection and closed it before it was set up.
    #[error(
        "the origin at {address} closed the connection before it was set up: it is stopping, or has too many connections"
    )]
    Closed {
        /// The dialled address.
        address: String,
        source: io::Error,
    },
    /// The origin accepted the connection but sent nothing in time.
    #[error(
        "the origin at {address} took the connection but did not set it up in time: it has too many at once, or hangs"
    )]
    Silent {
        /// The dialled address.
        address: String,
        /// A timeout.
        source: io::Error,
    },
    /// The origin has no room for this connection now.
    #[error("the origin at {address} has no room for this connection ({reason})")]
    Busy {
        /// The dialled address.
        address: String,
        /// The resource that has run out.
        reason: Busy,
    },
    /// The peer does not speak TLS 1.3 as an origin does.
    #[error(
        "{address} does not answer like a syncd origin: is this its --listen port (8873 by default), and not its --http?"
    )]
    NotAnOrigin {
        /// The dialled address.
        address: String,
        source: io::Error,
    },
    #[error(
        "the origin at {address} refused this agent's certificate ({reason}): join again with a new token"
    )]
    Refused {
        /// The dialled address.
        address: String,
        /// The reason given by the origin.
        reason: RefusedReason,
    },
    /// The peer's identity is not the followed origin, or not the one named in the token.
    #[error("{address} is not the origin of this tree: it shows a certificate of another authority")]
    WrongOrigin {
        /// The dialled address.
        address: String,
        /// The failed check.
        source: io::Error,
    },
    /// The origin's certificate is not valid now, most likely because this machine's clock is wrong.
    #[error("the certificate of the origin at {address} does not hold today: check this machine's clock")]
    Clock {
        /// The dialled address.
        address: String,
        /// The failed check.
        source: io::Error,
    },
    #[error("HTTP/2 with the origin at {address} failed")]
    Http {
        /// The dialled address.
        address: String,
        source: tonic::transport::Error,
    },
}

/// The origin's reason for refusing a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RefusedReason {
    /// It has expired, or the origin's clock is wrong.
    #[error("expired")]
    Expired,
    #[error("revoked")]
    Revoked,
    /// Another authority issued it: the origin was created again.
    #[error("of another authority")]
    OtherAuthority,
    /// Any other TLS alert.
    #[error("TLS alert {0:?}")]
    Alert(AlertDescription),
}

/// Connects to the origin at `address` (HOST:PORT; an IPv6 address in brackets). The address need not match
/// the names in certificates. The channel reconnects by itself when it is used after a failure.
///
/// Returns once the origin has accepted this agent's certificate. Cancel safe.
pub async fn connect(address: &str, tls: ClientTls) -> Result<Channel, ConnectError> {
    connect_limited(address, tls, None).await
}

/// Like [`connect`], reading no faster than `limit` allows. All connections with the same bucket share the
/// limit. Cancel safe.
pub async fn connect_limited(
    address: &str,
    tls: ClientTls,
    limit: Option<Arc<Bucket>>,
) -> Result<Channel, ConnectError> {
    let first = dial(address, &tls, limit.clone()).await?;
    let endpoint =
        endpoint(&tls).map_err(|source| ConnectError::Http { address: address.to_owned(), source })?;
    let first = Arc::new(Mutex::new(Some(first)));
    let dialled: Arc<str> = address.into();
    let connector = tower::service_fn(move |_| {
        let ready = first.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (address, tls, limit) = (dialled.clone(), tls.clone(), limit.clone());
        async move {
            let stream = match ready {
                Some(stream) => stream,
                None => dial(&address, &tls, limit).await?,
            };
            Ok::<_, ConnectError>(TokioIo::new(stream))
        }
    });
    endpoint
        .connect_with_connector(connector)
        .await
        .map_err(|source| ConnectError::Http { address: address.to_owned(), source })
}

fn endpoint(tls: &ClientTls) -> Result<Endpoint, tonic::transport::Error> {
    // The connector handles TLS: with an https URI tonic would add its own.
    let endpoint = Endpoint::from_shared(format!("http://{}", tls.origin_name))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(HTTP2_FRAME_BYTES);
    Ok(endpoint)
}

/// Connects with TLS. In TLS 1.3 the client finishes before the server has verified its certificate, so a
/// refusal arrives later. Therefore this waits for the origin's first bytes (its HTTP/2 settings), which it
/// sends only after accepting.
async fn dial(address: &str, tls: &ClientTls, limit: Option<Arc<Bucket>>) -> Result<Stream, ConnectError> {
    let tcp = Metered { tcp: dial_tcp(address, limit.as_deref()).await?, limit, pause: None };
    let accepted = async {
        let stream = TlsConnector::from(tls.config.clone()).connect(tls.name.clone(), tcp).await?;
        let mut stream = BufReader::with_capacity(FIRST_BYTES, stream);
        let first = stream.fill_buf().await?;
        if first.is_empty() {
            Err(io::ErrorKind::UnexpectedEof.into())
        } else {
            Ok((Busy::decode(first), stream))
        }
    };
    let accepted = within(CONNECT_TIMEOUT, accepted).await;
    let (busy, stream) = accepted.map_err(|source| classify(address.to_owned(), source))?;
    match busy {
        Some(reason) => Err(ConnectError::Busy { address: address.to_owned(), reason }),
        None => Ok(stream),
    }
}

async fn dial_tcp(address: &str, limit: Option<&Bucket>) -> Result<TcpStream, ConnectError> {
    let found = resolve(address).await?;
    let share = CONNECT_TIMEOUT / u32::try_from(found.len().max(1)).unwrap_or(u32::MAX);
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for candidate in found {
        match within(share, connect_tcp(candidate, limit)).await {
            Ok(tcp) => match tcp.set_nodelay(true) {
                Ok(()) => return Ok(tcp),
                Err(error) => last = error,
            },
            Err(error) => last = error,
        }
    }
    Err(ConnectError::Unreachable { address: address.to_owned(), source: last })
}

/// Resolves one or several addresses, separated by commas, in their order.
async fn resolve(addresses: &str) -> Result<Vec<SocketAddr>, ConnectError> {
    let (mut found, mut failed) = (Vec::new(), io::Error::from(io::ErrorKind::NotFound));
    for address in addresses.split(',') {
        match within(CONNECT_TIMEOUT, tokio::net::lookup_host(address.trim())).await {
            Ok(resolved) => found.extend(resolved),
            Err(error) => failed = error,
        }
    }
    match found.is_empty() {
        true => Err(ConnectError::Resolve { address: addresses.to_owned(), source: failed }),
        false => Ok(found),
    }
}

/// Under a limit, sets the kernel's receive buffer before the window is negotiated. Left to itself the buffer
/// grows to megabytes and receives that much beyond the limit.
async fn connect_tcp(address: SocketAddr, limit: Option<&Bucket>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(limit) = limit {
        let bytes = limit.rate().bytes_per_second() / RECEIVE_BUFFERS_PER_SECOND;
        let bytes = bytes.clamp(RECEIVE_BUFFER_LEAST_BYTES, RECEIVE_BUFFER_MOST_BYTES);
        socket.set_recv_buffer_size(u32::try_from(bytes).unwrap_or(u32::MAX))?;
    }
    socket.connect(address).await
}

async fn within<T>(limit: Duration, future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(limit, future).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Classifies an error after the TCP handshake.
fn classify(address: String, source: io::Error) -> ConnectError {
    use rustls::Error as Tls;
    let Some(error) = source.get_ref().and_then(|inner| inner.downcast_ref::<Tls>()) else {
        return match source.kind() {
            io::ErrorKind::TimedOut => ConnectError::Silent { address, source },
            _ => ConnectError::Closed { address, source },
        };
    };
    match error {
        Tls::AlertReceived(alert) => ConnectError::Refused { address, reason: refused_reason(*alert) },
        Tls::InvalidCertificate(error) if is_about_time(error) => ConnectError::Clock { address, source },
        Tls::InvalidCertificate(_) => ConnectError::WrongOrigin { address, source },
        _ => ConnectError::NotAnOrigin { address, source },
    }
}

fn refused_reason(alert: AlertDescription) -> RefusedReason {
    match alert {
        AlertDescription::CertificateExpired => RefusedReason::Expired,
        AlertDescription::CertificateRevoked => RefusedReason::Revoked,
        AlertDescription::UnknownCA | AlertDescription::DecryptError => RefusedReason::OtherAuthority,
        other => RefusedReason::Alert(other),
    }
}
