//! The replication service: who calls, and the task of each stream.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use syncd_proto::v1;
use syncd_proto::v1::replication_server::Replication;
use syncd_shared::identity::{AgentName, PeerIdentity};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::error::{ServeError, status};
use super::{Services, fetch, session};
use crate::fleet::Fleet;
use crate::listener::ConnectionInfo;

/// Fetch streams of one agent at once.
const FETCHES_PER_AGENT: usize = 4;
/// Fetch streams at once: each has one to two MiB in memory, a turn and what HTTP/2 took of the one before. Others
/// wait in line, for [`FETCH_WAIT`] at most.
const FETCHES: usize = 96;
/// Less than an agent waits for its first frame.
const FETCH_WAIT: Duration = Duration::from_secs(60);
/// Messages that wait for the connection.
const QUEUE: usize = 1;

/// The identity of a caller: its certificate's, and nothing else.
pub(super) fn peer<T>(request: &Request<T>, fleet: &Fleet) -> Result<PeerIdentity, ServeError> {
    let info = request.extensions().get::<ConnectionInfo>();
    let identity = info.and_then(|info| info.identity.clone()).ok_or(ServeError::NoCertificate)?;
    if fleet.admits(&identity) { Ok(identity) } else { Err(ServeError::Revoked) }
}

pub(super) struct Replicate {
    services: Services,
    shutdown: CancellationToken,
    fetches: Arc<Semaphore>,
    per_agent: Arc<Mutex<HashMap<AgentName, usize>>>,
}

impl Replicate {
    pub(super) fn new(services: Services, shutdown: CancellationToken) -> Self {
        Self { services, shutdown, fetches: Arc::new(Semaphore::new(FETCHES)), per_agent: Arc::default() }
    }

    fn admit_fetch(&self, peer: &PeerIdentity) -> Result<FetchPermit, ServeError> {
        let mut per_agent = self.per_agent.lock().unwrap_or_else(PoisonError::into_inner);
        let running = per_agent.entry(peer.name.clone()).or_default();
        if *running >= FETCHES_PER_AGENT {
            return Err(ServeError::Busy { limit: FETCHES_PER_AGENT, of: "of one agent" });
        }
        *running += 1;
        Ok(FetchPermit { name: peer.name.clone(), per_agent: self.per_agent.clone() })
    }
}

/// A fetch stream's place, given back when it is dropped.
struct FetchPermit {
    name: AgentName,
    per_agent: Arc<Mutex<HashMap<AgentName, usize>>>,
}

impl Drop for FetchPermit {
    fn drop(&mut self) {
        let mut per_agent = self.per_agent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = per_agent.get_mut(&self.name) {
            *running -= 1;
            if *running == 0 {
                per_agent.remove(&self.name);
            }
        }
    }
}

/// Answers a fetch once it is its turn.
async fn answer_in_turn(
    services: &Services,
    fetches: &Semaphore,
    requests: Streaming<v1::FetchRequest>,
    sender: &mpsc::Sender<v1::FetchFrame>,
) -> Result<(), ServeError> {
    let busy = || ServeError::Busy { limit: FETCHES, of: "in all: try again later" };
    let turn = tokio::time::timeout(FETCH_WAIT, fetches.acquire()).await.map_err(|_| busy())?;
    let _turn = turn.map_err(|_| ServeError::Stopping)?;
    fetch::answer(services, requests, sender).await
}

/// Messages of a stream, and the error that ends it: that one comes at once, whatever is still queued.
pub(super) struct Outgoing<T> {
    messages: mpsc::Receiver<T>,
    /// An error ends the stream now; without one it ends once the queue is empty.
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
    type SubscribeStream = Outgoing<v1::OriginMessage>;
    type FetchStream = Outgoing<v1::FetchFrame>;

    async fn subscribe(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let peer = peer(&request, &self.services.fleet).map_err(|e| status(&e))?;
        let (sender, fail, outgoing) = Outgoing::channel();
        let (services, shutdown) = (self.services.clone(), self.shutdown.clone());
        tokio::spawn(async move {
            let name = peer.name.clone();
            let session = session::run(&services, peer, request.into_inner(), &sender);
            let result = tokio::select! {
                result = session => result,
                () = shutdown.cancelled() => Err(ServeError::Stopping),
            };
            if let Err(error) = result {
                tracing::info!(agent = %name, reason = %super::error_text(&error), "control stream ended");
                let _ = fail.send(error);
            }
        });
        Ok(Response::new(outgoing))
    }

    async fn fetch(
        &self,
        request: Request<Streaming<v1::FetchRequest>>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let peer = peer(&request, &self.services.fleet).map_err(|e| status(&e))?;
        let permit = self.admit_fetch(&peer).map_err(|e| status(&e))?;
        let (sender, fail, outgoing) = Outgoing::channel();
        let (services, shutdown) = (self.services.clone(), self.shutdown.clone());
        let fetches = self.fetches.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let mut admission = services.fleet.admission();
            let result = tokio::select! {
                result = answer_in_turn(&services, &fetches, request.into_inner(), &sender) => result,
                _ = admission.wait_for(|a| !a.admits(&peer)) => Err(ServeError::Revoked),
                () = shutdown.cancelled() => Err(ServeError::Stopping),
                () = sender.closed() => Ok(()),
            };
            if let Err(error) = result {
                tracing::info!(agent = %peer.name, reason = %super::error_text(&error), "fetch stream ended");
                let _ = fail.send(error);
            }
        });
        Ok(Response::new(outgoing))
    }
}
