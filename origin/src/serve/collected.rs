//! The service of collected directories: one stream of changes and versions for each node, and contents.
//!
//! A new stream of a node ends its old one, and begins once everything that the old one submitted is judged.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use syncd_proto::v1;
use syncd_proto::v1::collected_down::Message as Down;
use syncd_proto::v1::collected_server::Collected;
use syncd_proto::v1::collected_up::Message as Up;
use syncd_proto::v1::collected_upload::Message as UploadMessage;
use syncd_runtime::rate::Bucket;
use syncd_shared::ContentHash;
use syncd_shared::collected::message::{Decision, MessageError, content, path};
use syncd_shared::collected::{Change, CollectedName};
use syncd_shared::identity::PeerIdentity;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::error::{ServeError, status};
use super::replication::{invalid, peer};
use super::{FromPeer, Services};
use crate::collected::{CollectError, CollectedOptions, Collection, NodeChange};

/// Messages queued for a connection.
const QUEUE: usize = 16;
/// Changes of one node that are not judged yet.
const PENDING_MAX: usize = 256;
/// Versions read from the index at once.
const VERSIONS: usize = 256;
/// Bytes of one piece of a content.
const PIECE_BYTES: usize = 64 * 1024;
/// Time for the first message of a stream, and between the pieces of an upload.
const PATIENCE: Duration = Duration::from_secs(30);
/// Uploads and downloads of all nodes at once.
const TRANSFERS_MAX: usize = 64;

/// Reasons why a call ended.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("malformed message")]
    Message(#[from] MessageError),
    #[error(transparent)]
    Collect(#[from] CollectError),
    #[error(transparent)]
    Shared(#[from] Arc<CollectError>),
    #[error("a content of {actual} bytes exceeds max_bytes of the directory, {limit}")]
    TooLarge { actual: u64, limit: u64 },
}

impl From<ExchangeError> for Status {
    fn from(error: ExchangeError) -> Self {
        let text = crate::error_chain(&error);
        match &error {
            ExchangeError::Serve(error) => status(error),
            ExchangeError::Message(_) => Status::invalid_argument(text),
            ExchangeError::TooLarge { .. } => Status::resource_exhausted(text),
            ExchangeError::Collect(error) => Status::new(code(error), text),
            ExchangeError::Shared(error) => Status::new(code(error), text),
        }
    }
}

fn code(error: &CollectError) -> tonic::Code {
    match error {
        CollectError::Content { .. } | CollectError::Size { .. } => tonic::Code::InvalidArgument,
        CollectError::UnknownDirectory => tonic::Code::NotFound,
        CollectError::NoSpace { .. } => tonic::Code::ResourceExhausted,
        _ => tonic::Code::Internal,
    }
}

/// The token that ends the newest stream of a node, and a lock that the stream holds.
type Newest = (CancellationToken, Arc<tokio::sync::Mutex<()>>);

/// The streams of nodes, by name.
#[derive(Clone, Default)]
pub struct Sessions(Arc<Mutex<HashMap<String, Newest>>>);

impl Sessions {
    /// Serves one stream of a node, until it ends or the node has another one.
    pub async fn serve(
        &self,
        collection: Collection,
        node: String,
        incoming: impl FromPeer<v1::CollectedUp>,
        sender: &Sender,
    ) -> Result<(), ExchangeError> {
        let (replaced, _guard) = self.begin(&node).await;
        let session = Session { collection, node, sender: sender.clone(), sent: BTreeMap::new() };
        tokio::select! {
            result = session.run(incoming) => result,
            () = sender.closed() => Ok(()),
            () = replaced.cancelled() => Err(ServeError::Replaced.into()),
        }
    }

    /// Ends the node's stream before this one. Returns what ends this one, and a guard to hold meanwhile.
    async fn begin(&self, name: &str) -> (CancellationToken, OwnedMutexGuard<()>) {
        let token = CancellationToken::new();
        let lock = {
            let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let (newest, lock) = sessions.entry(name.to_owned()).or_default();
            std::mem::replace(newest, token.clone()).cancel();
            lock.clone()
        };
        (token, lock.lock_owned().await)
    }
}

/// Limits of uploads, by directory and node.
#[derive(Default)]
struct Rates(Mutex<HashMap<(CollectedName, String), Arc<Bucket>>>);

impl Rates {
    /// `None`: uploads to this directory are not limited.
    fn of(&self, options: &CollectedOptions, node: &str) -> Option<Arc<Bucket>> {
        let rate = options.rate?;
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.entry((options.name.clone(), node.to_owned()));
        Some(bucket.or_insert_with(|| Arc::new(Bucket::new(rate))).clone())
    }
}

pub(super) struct Collect {
    services: Services,
    collection: Collection,
    sessions: Sessions,
    transfers: Arc<Semaphore>,
    rates: Rates,
    shutdown: CancellationToken,
}

impl Collect {
    pub(super) fn new(services: Services, collection: Collection, shutdown: CancellationToken) -> Self {
        let transfers = Arc::new(Semaphore::new(TRANSFERS_MAX));
        Self {
            services,
            collection,
            sessions: Sessions::default(),
            transfers,
            rates: Rates::default(),
            shutdown,
        }
    }

    async fn permit(&self) -> Result<OwnedSemaphorePermit, Status> {
        self.transfers.clone().acquire_owned().await.map_err(|_| Status::unavailable("stopping"))
    }
}

type Sender = mpsc::Sender<Result<v1::CollectedDown, Status>>;
/// A change that is judged some time.
type Judged = Pin<Box<dyn Future<Output = Result<Down, ExchangeError>> + Send>>;

/// The stream of one node.
struct Session {
    collection: Collection,
    node: String,
    sender: Sender,
    /// The newest version sent of each directory.
    sent: BTreeMap<CollectedName, u64>,
}

impl Session {
    async fn run(mut self, mut incoming: impl FromPeer<v1::CollectedUp>) -> Result<(), ExchangeError> {
        self.collection.barrier().await;
        let first = tokio::time::timeout(PATIENCE, incoming.next()).await;
        let silent = || ServeError::Silent { what: "Hello", seconds: PATIENCE.as_secs() };
        let first = first.map_err(|_| silent())?.transpose().map_err(ServeError::received)?;
        let Some(v1::CollectedUp { message: Some(Up::Hello(hello)) }) = first else {
            return Err(ServeError::Missing { field: "hello" }.into());
        };
        let mut changes = self.collection.changes();
        self.welcome(&hello).await?;
        self.send_versions().await?;
        for directory in self.sent.keys().map(ToString::to_string).collect::<Vec<_>>() {
            self.send(Down::CaughtUp(v1::CollectedCaughtUp { directory })).await;
        }
        let mut pending = FuturesUnordered::<Judged>::new();
        loop {
            tokio::select! {
                // In a fixed order, so that a simulation repeats itself.
                biased;
                Some(answer) = pending.next() => self.send(answer?).await,
                message = incoming.next(), if pending.len() < PENDING_MAX => {
                    match message.transpose().map_err(ServeError::received)? {
                        None => return Ok(()),
                        Some(v1::CollectedUp { message: Some(Up::Change(change)) }) => {
                            pending.push(self.judged(change)?);
                        }
                        Some(_) => return Err(ServeError::OutOfOrder { what: "a message" }.into()),
                    }
                }
                Ok(()) = changes.changed() => self.send_versions().await?,
            }
        }
    }

    async fn welcome(&mut self, hello: &v1::CollectedHello) -> Result<(), ExchangeError> {
        let positions: HashMap<&str, _> =
            hello.positions.iter().map(|position| (position.directory.as_str(), position)).collect();
        let names: Vec<CollectedName> = self.collection.directories().map(|d| d.name.clone()).collect();
        for name in &names {
            let newest = self.collection.newest(name)?;
            let line = self.collection.line();
            let known = positions.get(name.as_str()).filter(|position| position.line == line.as_slice());
            let after = known.map_or(0, |position| position.after);
            if after > newest {
                tracing::warn!(directory = %name, node = %self.node, after, newest,
                    "the node has seen versions that this origin does not have: all nodes offer what they have");
                self.collection.begin_line()?;
                return Box::pin(self.welcome(&v1::CollectedHello::default())).await;
            }
            self.sent.insert(name.clone(), after);
        }
        let line = Bytes::copy_from_slice(&self.collection.line());
        let directory = |options: &CollectedOptions| v1::CollectedDirectory {
            name: options.name.to_string(),
            line: line.clone(),
            ignore: options.ignore.clone(),
            deny: options.deny.clone(),
        };
        let directories = self.collection.directories().map(directory).collect();
        self.send(Down::Welcome(v1::CollectedWelcome { directories })).await;
        Ok(())
    }

    /// Sends all newer versions.
    async fn send_versions(&mut self) -> Result<(), ExchangeError> {
        for (name, mut after) in self.sent.clone() {
            loop {
                let versions = self.collection.versions(&name, after, VERSIONS)?;
                let Some((_, last)) = versions.last() else { break };
                after = last.number.get();
                for (path, version) in versions {
                    self.send(Down::Version(v1::CollectedVersion {
                        directory: name.to_string(),
                        path: Bytes::copy_from_slice(path.as_bytes()),
                        number: version.number.get(),
                        state: Some(version.state.to_message()),
                    }))
                    .await;
                }
            }
            self.sent.insert(name, after);
        }
        Ok(())
    }

    /// Has a change judged.
    fn judged(&self, message: v1::CollectedChange) -> Result<Judged, ExchangeError> {
        let change = NodeChange {
            directory: name(&message.directory)?,
            node: self.node.clone(),
            path: path(&message.path)?,
            change: Change::from_message(&message)?,
        };
        let collection = self.collection.clone();
        Ok(Box::pin(async move {
            let decision: Decision = collection.submit(change).await?;
            Ok(Down::Answer(decision.to_message(message.id)))
        }))
    }

    /// A closed connection is noticed by the caller.
    async fn send(&self, message: Down) {
        let _ = self.sender.send(Ok(v1::CollectedDown { message: Some(message) })).await;
    }
}

fn name(text: &str) -> Result<CollectedName, MessageError> {
    text.parse().map_err(|_| MessageError::Field { field: "directory" })
}

/// Runs a call until its work ends, or the caller may not go on.
async fn until_ended<T>(
    services: &Services,
    peer: &PeerIdentity,
    shutdown: &CancellationToken,
    work: impl Future<Output = Result<T, ExchangeError>>,
) -> Result<T, ExchangeError> {
    let mut admission = services.fleet.admission();
    tokio::select! {
        result = work => result,
        _ = admission.wait_for(|a| !a.admits(peer)) => Err(ServeError::Revoked.into()),
        error = invalid(peer, &services.keys) => Err(error.into()),
        () = shutdown.cancelled() => Err(ServeError::Stopping.into()),
    }
}

#[tonic::async_trait]
impl Collected for Collect {
    type ExchangeStream = ReceiverStream<Result<v1::CollectedDown, Status>>;
    type DownloadStream = Pin<Box<dyn Stream<Item = Result<v1::CollectedPiece, Status>> + Send>>;

    async fn exchange(
        &self,
        request: Request<Streaming<v1::CollectedUp>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let peer = peer(&request, &self.services).map_err(|e| status(&e))?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let (services, shutdown) = (self.services.clone(), self.shutdown.clone());
        let (sessions, collection) = (self.sessions.clone(), self.collection.clone());
        tokio::spawn(async move {
            let node = peer.name.to_string();
            let run = sessions.serve(collection, node, request.into_inner(), &sender);
            if let Err(error) = until_ended(&services, &peer, &shutdown, run).await {
                tracing::debug!(node = %peer.name, error = crate::error_chain(&error), "an exchange ended");
                let _ = tokio::time::timeout(PATIENCE, sender.send(Err(error.into()))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn upload(
        &self,
        request: Request<Streaming<v1::CollectedUpload>>,
    ) -> Result<Response<v1::CollectedUploaded>, Status> {
        let peer = peer(&request, &self.services).map_err(|e| status(&e))?;
        let _permit = self.permit().await?;
        let node = peer.name.to_string();
        let work = receive(&self.collection, &self.rates, &node, request.into_inner());
        until_ended(&self.services, &peer, &self.shutdown, work).await?;
        Ok(Response::new(v1::CollectedUploaded {}))
    }

    async fn download(
        &self,
        request: Request<v1::CollectedContent>,
    ) -> Result<Response<Self::DownloadStream>, Status> {
        peer(&request, &self.services).map_err(|e| status(&e))?;
        let permit = self.permit().await?;
        let wanted = request.into_inner();
        let content = content(&wanted.content).map_err(|e| Status::from(ExchangeError::from(e)))?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let collection = self.collection.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = send_content(&collection, &content, &sender) {
                let _ = sender.blocking_send(Err(ExchangeError::from(error).into()));
            }
            drop(permit);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Receives a content, which is durable once its change is answered. Its writer blocks a thread of its own.
async fn receive(
    collection: &Collection,
    rates: &Rates,
    node: &str,
    mut incoming: Streaming<v1::CollectedUpload>,
) -> Result<(), ExchangeError> {
    let first = next_piece(&mut incoming).await?;
    let Some(UploadMessage::Content(first)) = first else {
        return Err(ServeError::Missing { field: "content" }.into());
    };
    let (hash, size) = (content(&first.content)?, first.size);
    let options = collection.directory(&name(&first.directory)?)?;
    let (limit, rate) = (options.max_bytes, rates.of(options, node));
    if size > limit {
        return Err(ExchangeError::TooLarge { actual: size, limit });
    }
    let (pieces, queue) = mpsc::channel(QUEUE);
    let writing = collection.clone();
    let writer = tokio::task::spawn_blocking(move || write(&writing, hash, size, queue));
    while let Some(message) = next_piece(&mut incoming).await? {
        let UploadMessage::Piece(piece) = message else {
            return Err(ServeError::OutOfOrder { what: "a content" }.into());
        };
        if let Some(bucket) = &rate {
            bucket.pass(piece.len()).await;
        }
        // The writer has failed: it says why.
        if pieces.send(Some(piece)).await.is_err() {
            break;
        }
    }
    let _ = pieces.send(None).await;
    drop(pieces);
    Ok(writer.await.map_err(|_| CollectError::Ended)??)
}

async fn next_piece(
    incoming: &mut Streaming<v1::CollectedUpload>,
) -> Result<Option<UploadMessage>, ExchangeError> {
    let message = tokio::time::timeout(PATIENCE, incoming.message()).await;
    let silent = || ServeError::Silent { what: "a piece", seconds: PATIENCE.as_secs() };
    let message = message.map_err(|_| silent())?.map_err(ServeError::received)?;
    message.map(|message| message.message.ok_or(ServeError::Missing { field: "message" }.into())).transpose()
}

/// Writes the pieces up to `None`. If the sender is dropped before, the upload is given up.
fn write(
    collection: &Collection,
    hash: ContentHash,
    size: u64,
    mut queue: mpsc::Receiver<Option<Bytes>>,
) -> Result<(), CollectError> {
    let mut upload = collection.contents().upload(hash, size)?;
    while let Some(piece) = queue.blocking_recv() {
        match piece {
            Some(piece) => upload.write(&piece)?,
            None => return upload.finish(),
        }
    }
    Err(CollectError::Ended)
}

fn send_content(
    collection: &Collection,
    content: &ContentHash,
    sender: &mpsc::Sender<Result<v1::CollectedPiece, Status>>,
) -> Result<(), CollectError> {
    let mut file = collection.contents().open_content(content)?;
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        let read = file.read(&mut buffer).map_err(CollectError::Read)?;
        let Some(piece) = buffer.get(..read).filter(|piece| !piece.is_empty()) else { return Ok(()) };
        let piece = v1::CollectedPiece { piece: Bytes::copy_from_slice(piece) };
        if sender.blocking_send(Ok(piece)).is_err() {
            return Ok(());
        }
    }
}
