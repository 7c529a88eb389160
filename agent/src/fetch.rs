//! Fetches bulk bytes from the origin over a separate TCP connection.
//!
//! An async task moves frames from the gRPC stream into a short bounded channel. Staging takes and decodes
//! them on its blocking thread. [`FRAMES_AHEAD`], [`BYTES_AHEAD`] and the HTTP/2 windows bound the frames
//! that wait, so a slow disk slows the origin down instead of filling memory. Dropping the frames ends the
//! task and resets the stream.
//!
//! An update that breaks off is resumed once, at the next expected item. Any progress allows another attempt.
//! The general path is not resumed here: staging asks again for what is missing.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use syncd_proto::v1;
use syncd_proto::v1::fetch_frame::Frame as FrameKind;
use syncd_proto::v1::fetch_request::Request;
use syncd_proto::v1::replication_client::ReplicationClient;
use syncd_runtime::rate::Rate;
use syncd_shared::limits::{CONTROL_MESSAGE_MAX_BYTES, FETCH_MESSAGE_MAX_BYTES};
use syncd_shared::text::error_chain;
use syncd_shared::wire::Frame;
use syncd_shared::{RootHash, Totals};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, Notify, mpsc};
use tokio::task::AbortHandle;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::dialer::Dialer;
use crate::session::messages::FEATURES;
use crate::source::{Batches, FetchError, Frames, Source};

/// Frames received but not yet taken by staging.
const FRAMES_AHEAD: usize = 4;
/// No further frame is received while this many bytes wait or are being used.
const BYTES_AHEAD: u64 = 8 * 1024 * 1024;
/// Time for which an idle connection stays open. Without transfers, each agent has one connection to its
/// origin.
const LINGER: Duration = Duration::from_secs(30);
/// Time without data after which the origin is given up. Encoding an update takes seconds, not minutes.
const STALL: Duration = Duration::from_secs(120);

/// The origin as a [`Source`]. Clones share one connection.
#[derive(Clone)]
pub struct OriginSource {
    runtime: Handle,
    link: Arc<Mutex<Link>>,
    /// Number of transfers ever started.
    transfers: Arc<AtomicU64>,
    abandoned: CancellationToken,
    /// Limits of the trees that answers refer to.
    totals: Totals,
}

struct Link {
    dialer: Dialer,
    channel: Option<Channel>,
}

impl OriginSource {
    /// Connects on the first request, and disconnects [`LINGER`] after the last transfer. `limit` applies to
    /// reading from the connection. `runtime` drives the connection; the methods of [`Source`] block other
    /// threads.
    pub fn new(runtime: Handle, dialer: Dialer, limit: Option<Rate>) -> Self {
        Self {
            runtime,
            link: Arc::new(Mutex::new(Link { dialer: dialer.limited(limit), channel: None })),
            transfers: Arc::default(),
            abandoned: CancellationToken::new(),
            totals: Totals::default(),
        }
    }

    /// Returns the same source, whose transfers fail with [`FetchError::Superseded`] once `abandoned` is
    /// cancelled.
    pub fn until(&self, abandoned: CancellationToken) -> Self {
        Self { abandoned, ..self.clone() }
    }

    fn start(&self, requests: Requests) -> Received {
        let lease = Lease::new(self);
        let mut transfer = Transfer {
            source: self.clone(),
            requests,
            stream: None,
            next_item: 0,
            resumed: false,
            _lease: lease,
        };
        let (sender, receiver) = mpsc::channel(FRAMES_AHEAD);
        let ahead = Arc::<Ahead>::default();
        let counted = ahead.clone();
        let pump = self.runtime.spawn(async move {
            loop {
                counted.room().await;
                let Some(frame) = transfer.next().await else { return };
                let last = frame.is_err();
                if sender.send(frame.map(|frame| counted.count(frame))).await.is_err() || last {
                    return;
                }
            }
        });
        let totals = self.totals;
        let pump = pump.abort_handle();
        Received { first: None, receiver, pump, totals, ahead, used_bytes: 0, ended: false }
    }

    async fn channel(&self) -> Result<Channel, FetchError> {
        let mut link = self.link.lock().await;
        if let (Some(channel), false) = (&link.channel, link.dialer.is_outdated()) {
            return Ok(channel.clone());
        }
        link.channel = None;
        let channel = link
            .dialer
            .dial()
            .await
            .map_err(|error| FetchError::Disconnected(Some(Status::unavailable(error_chain(&error)))))?;
        Ok(link.channel.insert(channel).clone())
    }
}

impl Source for OriginSource {
    fn expect(&mut self, totals: &Totals) {
        self.totals = *totals;
    }

    fn update(&mut self, from: RootHash, to: RootHash) -> Result<Frames, FetchError> {
        let mut received = self.start(Requests::Update { from, to });
        // A refusal arrives as the first frame, and becomes the result of the call.
        received.first = received.receiver.blocking_recv().transpose()?;
        Ok(Box::new(received))
    }

    fn objects(&mut self, root: RootHash, batches: Batches) -> Result<Frames, FetchError> {
        Ok(Box::new(self.start(Requests::Objects { root, batches: Some(batches) })))
    }
}

/// Requests on their way to the origin.
enum Messages {
    Update(Option<v1::FetchRequest>),
    Objects { root: RootHash, batches: Option<Batches> },
}

impl Stream for Messages {
    type Item = v1::FetchRequest;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<v1::FetchRequest>> {
        match self.get_mut() {
            Self::Update(message) => Poll::Ready(message.take()),
            Self::Objects { batches: None, .. } => Poll::Ready(None),
            Self::Objects { root, batches: Some(batches) } => batches.poll_recv(context).map(|batch| {
                let batch = batch?.to_message(*root);
                Some(v1::FetchRequest { request: Some(Request::Objects(batch)) })
            }),
        }
    }
}

/// The request that a transfer answers.
enum Requests {
    Update {
        from: RootHash,
        to: RootHash,
    },
    /// `None` once the batches were handed to a stream.
    Objects {
        root: RootHash,
        batches: Option<Batches>,
    },
    /// The update is complete.
    Answered {
        root: RootHash,
    },
}

impl Requests {
    fn messages(&mut self, first_item: u64) -> Messages {
        match self {
            Self::Update { from, to } => {
                let update = v1::UpdateRequest {
                    from_root: Bytes::copy_from_slice(from.as_bytes()),
                    to_root: Bytes::copy_from_slice(to.as_bytes()),
                    first_item,
                    features: FEATURES.iter().map(|f| (*f).to_owned()).collect(),
                };
                Messages::Update(Some(v1::FetchRequest { request: Some(Request::Update(update)) }))
            }
            Self::Objects { root, batches } => Messages::Objects { root: *root, batches: batches.take() },
            Self::Answered { .. } => Messages::Update(None),
        }
    }

    fn root(&self) -> RootHash {
        match self {
            Self::Update { from, .. } => *from,
            Self::Objects { root, .. } | Self::Answered { root } => *root,
        }
    }
}

struct Transfer {
    source: OriginSource,
    requests: Requests,
    stream: Option<Streaming<v1::FetchFrame>>,
    next_item: u64,
    resumed: bool,
    _lease: Lease,
}

/// Keeps the connection open during a transfer and for [`LINGER`] afterwards.
struct Lease {
    source: OriginSource,
    number: u64,
}

impl Lease {
    fn new(source: &OriginSource) -> Self {
        let number = source.transfers.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        Self { source: source.clone(), number }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let (link, transfers, number) =
            (self.source.link.clone(), self.source.transfers.clone(), self.number);
        self.source.runtime.spawn(async move {
            tokio::time::sleep(LINGER).await;
            // A later transfer closes the connection itself. A transfer that still runs keeps its own handle.
            if transfers.load(Ordering::Relaxed) == number {
                link.lock().await.channel = None;
            }
        });
    }
}

impl Transfer {
    /// Returns the next frame in order; `None` once an update is complete. Not cancel safe.
    async fn next(&mut self) -> Option<Result<v1::FetchFrame, FetchError>> {
        if matches!(self.requests, Requests::Answered { .. }) {
            return None;
        }
        loop {
            let abandoned = self.source.abandoned.clone();
            let received = tokio::select! {
                biased;
                () = abandoned.cancelled() => Err(FetchError::Superseded),
                received = self.receive() => received,
            };
            match received {
                Err(FetchError::Disconnected(_)) if self.may_resume() => {
                    tracing::debug!(item = self.next_item, "connection lost in mid-update: resuming");
                    self.resumed = true;
                    self.stream = None;
                }
                Ok(frame) => return Some(self.accept(frame)),
                Err(error) => return Some(Err(error)),
            }
        }
    }

    fn may_resume(&self) -> bool {
        // Without any item there is nothing to resume, so the session's backoff applies.
        matches!(self.requests, Requests::Update { .. }) && !self.resumed && self.next_item > 0
    }

    async fn receive(&mut self) -> Result<v1::FetchFrame, FetchError> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let opened = self.open().await?;
                self.stream.insert(opened)
            }
        };
        let root = self.requests.root();
        let message = tokio::time::timeout(STALL, stream.message())
            .await
            .map_err(|_| {
                FetchError::Disconnected(Some(Status::deadline_exceeded("the origin sends nothing")))
            })?
            .map_err(|status| refused(status, root))?
            .ok_or(FetchError::Disconnected(None))?;
        Ok(message)
    }

    async fn open(&mut self) -> Result<Streaming<v1::FetchFrame>, FetchError> {
        let channel = self.source.channel().await?;
        let root = self.requests.root();
        let requests = self.requests.messages(self.next_item);
        let mut client = ReplicationClient::new(channel)
            .max_decoding_message_size(FETCH_MESSAGE_MAX_BYTES)
            .max_encoding_message_size(CONTROL_MESSAGE_MAX_BYTES);
        let answer = client.fetch(requests).await.map_err(|status| refused(status, root))?;
        Ok(answer.into_inner())
    }

    fn accept(&mut self, frame: v1::FetchFrame) -> Result<v1::FetchFrame, FetchError> {
        if frame.item != self.next_item {
            let text = format!("item {} came where item {} was due", frame.item, self.next_item);
            return Err(FetchError::Refused(Status::data_loss(text)));
        }
        self.next_item = self.next_item.saturating_add(1);
        self.resumed = false;
        if matches!(&frame.frame, Some(FrameKind::End(end)) if !end.more) {
            // An update is one answer. For objects, the receiver knows how many batches it asked for.
            if let Requests::Update { to, .. } = self.requests {
                self.requests = Requests::Answered { root: to };
            }
            self.next_item = 0;
        }
        Ok(frame)
    }
}

/// Maps a status to an error. A status sent by the origin has no source; one made by the transport has.
pub fn refused(status: Status, root: RootHash) -> FetchError {
    let of_transport = std::error::Error::source(&status).is_some();
    match status.code() {
        Code::NotFound => FetchError::UnknownRoot { root },
        Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded => {
            FetchError::Disconnected(Some(status))
        }
        _ if of_transport => FetchError::Disconnected(Some(status)),
        _ => FetchError::Refused(status),
    }
}

/// A frame, and the length of its message in bytes.
type Counted = (v1::FetchFrame, u64);

/// Bytes of received frames that are still in use.
#[derive(Default)]
struct Ahead {
    bytes: AtomicU64,
    released: Notify,
}

impl Ahead {
    fn count(&self, frame: v1::FetchFrame) -> Counted {
        let bytes = frame.encoded_len() as u64;
        self.bytes.fetch_add(bytes, Ordering::SeqCst);
        (frame, bytes)
    }

    fn release(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::SeqCst);
        self.released.notify_one();
    }

    /// Waits until another frame may be received. Only one task may wait. Cancel safe.
    async fn room(&self) {
        while self.bytes.load(Ordering::SeqCst) >= BYTES_AHEAD {
            self.released.notified().await;
        }
    }
}

/// Frames on their way to staging.
struct Received {
    first: Option<Counted>,
    receiver: mpsc::Receiver<Result<Counted, FetchError>>,
    pump: AbortHandle,
    totals: Totals,
    ahead: Arc<Ahead>,
    /// Bytes of the frame taken last.
    used_bytes: u64,
    ended: bool,
}

impl Iterator for Received {
    type Item = Result<Frame, FetchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        self.ahead.release(std::mem::take(&mut self.used_bytes));
        let received = self.first.take().map(Ok).or_else(|| self.receiver.blocking_recv());
        let frame = received.map(|message| {
            let (message, bytes) = message?;
            self.used_bytes = bytes;
            Ok(Frame::from_message_within(message, &self.totals)?)
        });
        self.ended = !matches!(frame, Some(Ok(_)));
        frame
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_large_frame_holds_back_the_next_until_it_is_used() {
        let ahead = Ahead::default();
        let frame = |bytes: usize| {
            let stored = v1::StoredFrame { compressed: vec![0; bytes].into(), ..v1::StoredFrame::default() };
            v1::FetchFrame { item: 0, frame: Some(FrameKind::Stored(stored)) }
        };
        let has_room = async |limit_ms| {
            tokio::time::timeout(Duration::from_millis(limit_ms), ahead.room()).await.is_ok()
        };
        let (_, small) = ahead.count(frame(1 << 20));
        assert!(has_room(5_000).await);
        let (_, large) = ahead.count(frame(BYTES_AHEAD as usize));
        assert!(!has_room(50).await);
        ahead.release(small);
        assert!(!has_room(50).await);
        ahead.release(large);
        assert!(has_room(5_000).await);
    }
}
