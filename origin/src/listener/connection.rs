//! An accepted connection: TLS, the peer's identity, and reasons to end it from this side.
//!
//! A connection that must end returns an error to its next reader or writer, and wakes it. Reasons are: it
//! was closed or its time is over; the HTTP/2 preface did not arrive within [`PREFACE_TIMEOUT`] (later on,
//! HTTP/2 pings detect a dead peer); the peer reads next to nothing for [`STALL_TIMEOUT`] (pings do not end
//! such a connection, because HTTP/2 would first queue a GOAWAY behind the unread data).
//!
//! A flush never waits. h2 flushes after each frame. If that flush waits, h2 sends the next data frame
//! before a ping or the answer to one, again and again, and on a line slower than the data the peer looks
//! dead. TLS then still holds up to [`TLS_BUFFER_BYTES`]. The flush has requested a wake-up, and each read
//! flushes first: h2 reads in every poll in which it does not wait for a write.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use syncd_shared::identity::PeerIdentity;
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use tracing::debug;

use super::{Established, JOIN_TIMEOUT};

/// Time limit from the handshake to the end of the HTTP/2 connection preface. There is no keepalive before
/// that.
pub const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time in which a peer must read at least [`STALL_LEAST_BYTES`] of the data written to it.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// About 1 kB/s. The keepalive gets through lines of 48 kB/s and above.
pub const STALL_LEAST_BYTES: usize = 64 * 1024;
/// Bytes that TLS accepts while the kernel accepts none: rustls' default.
const TLS_BUFFER_BYTES: usize = 64 * 1024;
/// Length of the preface ("PRI * HTTP/2.0" and so on).
const PREFACE_BYTES: usize = 24;

/// The peer of a connection, in the extensions of every request on it.
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    /// Address of the agent, or of an intermediary.
    pub peer_address: SocketAddr,
    /// The verified and admitted certificate; `None` without one, which allows only `Join`. A certificate
    /// that is not valid now allows only `Renew`.
    pub identity: Option<PeerIdentity>,
    /// Bytes sent on the connection.
    pub written: Written,
}

/// Counts bytes that the kernel has accepted; before that they occupy memory of this process. While TLS holds
/// any data, its whole buffer counts as not accepted.
#[derive(Debug, Clone, Default)]
pub struct Written(Arc<WrittenBytes>);

#[derive(Debug, Default)]
struct WrittenBytes {
    bytes: AtomicU64,
    more: Notify,
}

impl Written {
    /// Bytes so far, before encryption.
    pub fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::SeqCst)
    }

    /// Waits until this many bytes have been accepted. Cancel safe.
    pub async fn reach(&self, bytes: u64) {
        loop {
            let more = self.0.more.notified();
            tokio::pin!(more);
            // From here on no notification is missed.
            more.as_mut().enable();
            if self.bytes() >= bytes {
                return;
            }
            more.await;
        }
    }

    /// Records the total of `bytes` accepted by TLS, and whether it still holds some of them.
    fn count(&self, bytes: u64, some_held: bool) {
        let gone = if some_held { bytes.saturating_sub(TLS_BUFFER_BYTES as u64) } else { bytes };
        if self.0.bytes.fetch_max(gone, Ordering::SeqCst) < gone {
            self.0.more.notify_waiters();
        }
    }
}

pub struct Connection {
    stream: TlsStream<TcpStream>,
    info: ConnectionInfo,
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
    ended: bool,
    preface: Option<Preface>,
    stall: Stall,
    /// Bytes accepted by TLS.
    taken_bytes: u64,
    _join_permit: Option<OwnedSemaphorePermit>,
    _established: Established,
}

/// The HTTP/2 connection preface, until it is complete.
struct Preface {
    missing_bytes: usize,
    deadline: Pin<Box<Sleep>>,
}

/// Detects a peer that does not read. Progress is measured in bytes, because kernels accept a little more
/// data now and then although the peer reads nothing. The timer is reused, because bulk transfers wait often.
struct Stall {
    timeout: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    waits: bool,
    taken_bytes: usize,
}

/// Bytes accepted by a write.
fn taken(written: &Poll<io::Result<usize>>) -> usize {
    if let Poll::Ready(Ok(bytes)) = written { *bytes } else { 0 }
}

impl Stall {
    const fn new(timeout: Duration) -> Self {
        Self { timeout, timer: None, waits: false, taken_bytes: 0 }
    }

    /// Records the result of a write.
    fn wrote(
        &mut self,
        written: Poll<io::Result<usize>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.taken_bytes = self.taken_bytes.saturating_add(taken(&written));
        if written.is_pending() { self.wait(context).map(Err) } else { written }
    }

    /// Records the result of a flush. After a complete one nothing is waiting.
    fn flushed(&mut self, flushed: Poll<io::Result<()>>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if flushed.is_ready() {
            self.waits = false;
            return flushed;
        }
        self.wait(context).map(Err)
    }

    /// Ready with an error once too little was read for too long.
    fn wait(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.timeout)));
        let mut begins = !std::mem::replace(&mut self.waits, true);
        loop {
            if begins {
                self.taken_bytes = 0;
                timer.as_mut().reset(Instant::now() + self.timeout);
            }
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            if self.taken_bytes < STALL_LEAST_BYTES {
                return Poll::Ready(io::ErrorKind::TimedOut.into());
            }
            begins = true;
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
    pub(super) fn new(
        mut stream: TlsStream<TcpStream>,
        peer_address: SocketAddr,
        identity: Option<PeerIdentity>,
        join_permit: Option<OwnedSemaphorePermit>,
        established: Established,
    ) -> Self {
        let now = OffsetDateTime::now_utc();
        let is_enrolled = identity.as_ref().is_some_and(|identity| identity.holds(now));
        let limit = (!is_enrolled).then_some(JOIN_TIMEOUT);
        let end = Box::pin(async move {
            match limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        });
        let info = ConnectionInfo { peer_address, identity, written: Written::default() };
        let deadline = Box::pin(tokio::time::sleep(PREFACE_TIMEOUT));
        stream.get_mut().1.set_buffer_limit(Some(TLS_BUFFER_BYTES));
        let preface = Some(Preface { missing_bytes: PREFACE_BYTES, deadline });
        Self {
            stream,
            info,
            end,
            ended: false,
            preface,
            stall: Stall::new(STALL_TIMEOUT),
            taken_bytes: 0,
            _join_permit: join_permit,
            _established: established,
        }
    }

    /// Returns an error once the connection must end. Called by every read, write and flush.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        self.ended = self.ended || self.end.as_mut().poll(context).is_ready();
        if self.ended {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if let Some(preface) = &mut self.preface
            && preface.deadline.as_mut().poll(context).is_ready()
        {
            debug!(address = %self.info.peer_address, "no HTTP/2 preface in time, connection dropped");
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }

    /// Records bytes accepted by a write, or 0 after a flush.
    fn count(&mut self, written: usize) {
        self.taken_bytes = self.taken_bytes.saturating_add(written as u64);
        self.info.written.count(self.taken_bytes, self.stream.get_ref().1.wants_write());
    }

    /// Moves bytes from TLS to the kernel, and requests a wake-up if some are left. Fails also if the peer
    /// has read too little for too long.
    fn push(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let done = Pin::new(&mut self.stream).poll_flush(context);
        self.count(0);
        match self.stall.flushed(done, context) {
            Poll::Ready(done) => done,
            Poll::Pending => Ok(()),
        }
    }

    fn count_preface(&mut self, bytes: usize) {
        if let Some(preface) = &mut self.preface {
            preface.missing_bytes = preface.missing_bytes.saturating_sub(bytes);
            if preface.missing_bytes == 0 {
                self.preface = None;
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        self.push(context)?;
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.count_preface(buffer.filled().len().saturating_sub(before));
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.count(taken(&written));
        self.stall.wrote(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.count(taken(&written));
        self.stall.wrote(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        self.push(context)?;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        let done = Pin::new(&mut self.stream).poll_shutdown(context);
        self.stall.flushed(done, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    /// Whether a peer is given up that reads `bytes` bytes every 20 ms, and is always behind.
    async fn is_given_up(bytes: usize) -> bool {
        let mut stall = Stall::new(Duration::from_millis(100));
        for _ in 0..25 {
            let _ = poll_fn(|context| stall.wrote(Poll::Ready(Ok(bytes)), context)).await;
            let waits = poll_fn(|context| Poll::Ready(stall.wrote(Poll::Pending, context))).await;
            if waits.is_ready() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }

    #[tokio::test]
    async fn who_takes_next_to_nothing_is_given_up_and_who_is_slow_is_not() {
        assert!(is_given_up(1).await);
        assert!(!is_given_up(STALL_LEAST_BYTES).await);
    }

    #[tokio::test]
    async fn who_waits_for_what_is_written_wakes_when_it_is() {
        let written = Written::default();
        written.count(10, false);
        written.reach(10).await;
        let waits = tokio::spawn({
            let written = written.clone();
            async move { written.reach(30).await }
        });
        for (bytes, some_held) in [(20, false), (TLS_BUFFER_BYTES as u64 + 29, true), (30, false)] {
            tokio::task::yield_now().await;
            assert!(!waits.is_finished());
            written.count(bytes, some_held);
        }
        waits.await.unwrap();
    }

    #[tokio::test]
    async fn what_was_flushed_waits_for_nothing() {
        let mut stall = Stall::new(Duration::from_millis(20));
        for _ in 0..5 {
            let waits = poll_fn(|context| Poll::Ready(stall.wrote(Poll::Pending, context))).await;
            assert!(waits.is_pending());
            tokio::time::sleep(Duration::from_millis(10)).await;
            poll_fn(|context| stall.flushed(Poll::Ready(Ok(())), context)).await.unwrap();
        }
    }
}
