//! The replication service: identifies callers and runs a task for each stream.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use syncd_proto::v1;
use syncd_proto::v1::replication_server::Replication;
use syncd_shared::identity::PeerIdentity;
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::error::{ServeError, status};
use super::fetch_slots::{FETCH_SLOTS, FetchSlots, SlotTimeouts};
use super::heap_trim::HeapTrim;
use super::response_body::{NoMessages, attach_body};
use super::{Services, fetch, session};
use crate::fleet::Fleet;
use crate::keys::{AuthorityStanding, Keys};
use crate::listener::ConnectionInfo;

/// Messages queued for the connection.
const QUEUE: usize = 1;
/// Shortest interval between checks of the clock.
const CLOCK_SHORTEST_LOOK: Duration = Duration::from_millis(100);
/// Longest interval between checks of the clock.
const CLOCK_LOOK: Duration = Duration::from_secs(60);
/// Time in which a node reads the trust document that replaces its authority, and connects again.
const REPLACED_GRACE: Duration = Duration::from_secs(60);

/// The identity of a caller with a currently valid certificate of the current authority. Every call except
/// renewals requires it.
pub(super) fn peer<T>(request: &Request<T>, services: &Services) -> Result<PeerIdentity, ServeError> {
    let identity = holder(request, &services.fleet)?;
    match services.keys.standing(identity.issuer) {
        AuthorityStanding::Retired => Err(ServeError::Retired),
        AuthorityStanding::Current if identity.holds(OffsetDateTime::now_utc()) => Ok(identity),
        AuthorityStanding::Current | AuthorityStanding::Replaced => Err(ServeError::OutOfDate),
    }
}

/// Returns once streams with this certificate must end: it is outside its validity by this machine's clock,
/// which may be set at any time, or its authority was retired, or replaced [`REPLACED_GRACE`] ago. Cancel
/// safe.
pub(super) async fn invalid(peer: &PeerIdentity, keys: &Keys) -> ServeError {
    let mut trust = keys.trust_changes();
    let mut ends: Option<Instant> = None;
    loop {
        match keys.standing(peer.issuer) {
            AuthorityStanding::Current => ends = None,
            AuthorityStanding::Replaced => ends = ends.or_else(|| Instant::now().checked_add(REPLACED_GRACE)),
            AuthorityStanding::Retired => return ServeError::Retired,
        }
        let now = OffsetDateTime::now_utc();
        if !peer.holds(now) || ends.is_some_and(|ends| ends <= Instant::now()) {
            return ServeError::OutOfDate;
        }
        let look = peer.remaining_life(now).clamp(CLOCK_SHORTEST_LOOK, CLOCK_LOOK);
        let look = ends.map_or(look, |ends| look.min(ends.saturating_duration_since(Instant::now())));
        tokio::select! {
            Ok(()) = trust.changed() => {}
            () = tokio::time::sleep(look) => {}
        }
    }
}

/// The identity of a caller, taken from its certificate only. The certificate need not be valid now.
pub(super) fn holder<T>(request: &Request<T>, fleet: &Fleet) -> Result<PeerIdentity, ServeError> {
    let info = request.extensions().get::<ConnectionInfo>();
    let identity = info.and_then(|info| info.identity.clone()).ok_or(ServeError::NoCertificate)?;
    if fleet.admits(&identity) { Ok(identity) } else { Err(ServeError::Revoked) }
}

pub(super) struct Replicate {
    services: Services,
    shutdown: CancellationToken,
    slots: FetchSlots,
    heap_trim: HeapTrim,
}

impl Replicate {
    pub(super) fn new(services: Services, shutdown: CancellationToken) -> Self {
        let slots = FetchSlots::new(FETCH_SLOTS, SlotTimeouts::default());
        Self { services, shutdown, slots, heap_trim: HeapTrim::default() }
    }
}

/// Messages of a stream, and the error that ends it. An error is sent at once, ahead of queued messages.
pub(super) struct Outgoing<T> {
    messages: mpsc::Receiver<T>,
    /// An error ends the stream at once. Without one, the stream ends when the queue is empty.
    end: oneshot::Receiver<ServeError>,
    ended: bool,
}

impl<T> Outgoing<T> {
    pub(super) fn channel() -> (mpsc::Sender<T>, oneshot::Sender<ServeError>, Self) {
        let (sender, messages) = mpsc::channel(QUEUE);
        let (fail, end) = oneshot::channel();
        (sender, fail, Self { messages, end, ended: false })
    }
}

impl<T> Stream for Outgoing<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Poll::Ready(Ok(error)) = poll_end(&mut self.end, context) {
            self.ended = true;
            return Poll::Ready(Some(Err(status(&error))));
        }
        let message = ready!(self.messages.poll_recv(context));
        self.ended = message.is_none();
        Poll::Ready(message.map(Ok))
    }
}

fn poll_end(
    end: &mut oneshot::Receiver<ServeError>,
    context: &mut Context<'_>,
) -> Poll<Result<ServeError, oneshot::error::RecvError>> {
    if end.is_terminated() { Poll::Pending } else { Pin::new(end).poll(context) }
}

#[tonic::async_trait]
impl Replication for Replicate {
    type SubscribeStream = NoMessages<v1::OriginMessage>;
    type FetchStream = NoMessages<v1::FetchFrame>;

    async fn subscribe(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let peer = peer(&request, &self.services).map_err(|e| status(&e))?;
        let (sender, fail, outgoing) = Outgoing::channel();
        let (services, shutdown) = (self.services.clone(), self.shutdown.clone());
        tokio::spawn(async move {
            let session = session::run(&services, peer, request.into_inner(), &sender);
            let result = tokio::select! {
                result = session => result,
                () = shutdown.cancelled() => Err(ServeError::Stopping),
            };
            if let Err(error) = result {
                let _ = fail.send(error);
            }
        });
        Ok(attach_body(outgoing))
    }

    async fn fetch(
        &self,
        request: Request<Streaming<v1::FetchRequest>>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let peer = peer(&request, &self.services).map_err(|e| status(&e))?;
        let connection = request.extensions().get::<ConnectionInfo>().map(|info| info.written.clone());
        let slots = self.slots.stream(&peer.name, connection).map_err(|e| status(&e))?;
        let (sender, fail, outgoing) = Outgoing::channel();
        let (services, shutdown) = (self.services.clone(), self.shutdown.clone());
        let stream = self.heap_trim.stream();
        tokio::spawn(async move {
            let mut admission = services.fleet.admission();
            let before = slots.written_bytes();
            let result = tokio::select! {
                result = fetch::answer(&services, &slots, request.into_inner(), &sender) => result,
                _ = admission.wait_for(|a| !a.admits(&peer)) => Err(ServeError::Revoked),
                error = invalid(&peer, &services.keys) => Err(error),
                () = shutdown.cancelled() => Err(ServeError::Stopping),
                () = sender.closed() => Ok(()),
            };
            if let Err(error) = result {
                let reason = crate::error_chain(&error);
                match &error {
                    ServeError::Plan(error) if error.is_expected() => {
                        tracing::debug!(agent = %peer.name, reason, "no update: the agent requests content by hash");
                    }
                    _ => tracing::info!(agent = %peer.name, reason, "stopped sending content to the agent"),
                }
                let _ = fail.send(error);
            }
            stream.end(slots.written_bytes().saturating_sub(before));
        });
        Ok(attach_body(outgoing))
    }
}
